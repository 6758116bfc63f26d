//! House rules that no compiler checks: which crate may know which, how long files are, what may be depended on, and that
//! what is written about data sets, recipes and pages is true. Reads files only; says nothing about behaviour.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use sha2::{Digest, Sha256};

/// Who may depend on whom among our own crates.
const ARROWS: &[(&str, &[&str])] = &[
    ("pipe", &["pipe-engine", "pipe-stages"]),
    ("pipe-engine", &[]),
    ("pipe-stages", &["pipe-engine", "pipe-files", "pipe-job"]),
    ("pipe-models", &["pipe-files", "pipe-job"]),
    ("pipe-job", &[]),
    ("pipe-files", &[]),
];

/// Crates that must not be reached, however indirectly, from ours.
const KEPT_OUT: &[(&str, &[&str])] = &[
    ("pipe", &["tch", "torch-sys"]),
    ("pipe-stages", &["tch", "torch-sys"]),
    ("pipe-files", &["tch", "torch-sys", "polars", "arrow"]),
    ("pipe-job", &["tch", "torch-sys", "polars", "arrow", "tokenizers"]),
    ("pipe-engine", &["tch", "torch-sys", "polars", "arrow", "parquet", "tokenizers", "minijinja"]),
    ("pipe-models", &["polars", "minijinja"]),
];

/// Licences that this project may be shipped with.
const LICENCES: &[&str] = &[
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "0BSD",
    "CC0-1.0",
    "BSL-1.0",
    // The root certificates that webpki-roots carries.
    "CDLA-Permissive-2.0",
    "Unicode-3.0",
    "Unlicense",
];

const LONGEST_FILE: usize = 800;
const FEWEST_RECIPES: usize = 24;
const VAGUE_NAMES: &[&str] = &["utils", "util", "common", "helpers", "core", "misc", "imp"];
const HEADER: &[&str] = &["Purpose", "Command", "Minutes", "Memory", "Result"];

#[test]
fn crates_know_only_whom_they_may() {
    let metadata = metadata();
    let ours: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    let members: BTreeSet<&str> = list(&metadata["workspace_members"]).iter().filter_map(Value::as_str).collect();
    let packages = list(&metadata["packages"]).iter().filter(|package| members.contains(text(&package["id"])));
    let found: BTreeSet<&str> = packages.map(|package| text(&package["name"])).collect();
    assert_eq!(found, ours, "a crate came or went: say in ARROWS whom it may know");
    for (name, allowed) in ARROWS {
        for dependency in list(&package(&metadata, name)["dependencies"]) {
            let known = text(&dependency["name"]);
            if dependency["kind"] != "dev" && ours.contains(known) {
                assert!(allowed.contains(&known), "{name} must not depend on {known}");
            }
        }
    }
}

#[test]
fn heavy_crates_stay_where_they_belong() {
    let metadata = metadata();
    for (name, kept_out) in KEPT_OUT {
        let reached = reached_from(&metadata, text(&package(&metadata, name)["id"]));
        for heavy in *kept_out {
            assert!(!reached.contains(heavy), "{name} reaches {heavy}: see `cargo tree -p {name} -i {heavy}`");
        }
    }
}

#[test]
fn every_dependency_is_from_crates_io_under_a_permissive_licence() {
    for package in list(&metadata()["packages"]) {
        let (name, Some(source)) = (text(&package["name"]), package["source"].as_str()) else { continue };
        assert!(source.contains("github.com/rust-lang/crates.io-index"), "{name} comes from {source}");
        let licence = package["license"].as_str().unwrap_or("");
        assert!(permissive(licence), "{name} {} has the licence '{licence}'", text(&package["version"]));
    }
}

#[test]
fn source_files_are_short_and_say_their_role() {
    let (mut seen, mut wrong) = (0, Vec::new());
    for path in files(&["rs"]) {
        let text = read(&path);
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        if text.lines().count() > LONGEST_FILE {
            wrong.push(format!("{} is longer than {LONGEST_FILE} lines", shown(&path)));
        }
        if !text.starts_with("//!") && stem != "tests" {
            wrong.push(format!("{} does not begin with a `//!` line that says its role", shown(&path)));
        }
        if VAGUE_NAMES.contains(&stem.as_ref()) {
            wrong.push(format!("{}: name it after what it holds", shown(&path)));
        }
        seen += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 20, "only {seen} source files found: is this the right folder?");
}

#[test]
fn recipe_types_neither_flatten_nor_guess() {
    for path in files(&["rs"]).into_iter().filter(|p| shown(p).starts_with("stages/src/recipe")) {
        for (number, line) in read(&path).lines().enumerate() {
            let banned =
                line.trim_start().starts_with("#[serde") && (line.contains("flatten") || line.contains("untagged"));
            assert!(!banned, "{}:{}: serde flatten and untagged lose positions", shown(&path), number + 1);
        }
    }
}

#[test]
fn nothing_names_a_place_on_one_machine() {
    // This machine's: where the project lies, and what the home folder keeps to itself.
    let home = std::env::var("HOME").unwrap_or_default();
    let places = [format!("{}/", root().display()), format!("{home}/."), format!("{home}/Documents")];
    for path in files(&["rs", "md", "toml", "yml", "sh"]) {
        for (number, line) in read(&path).lines().enumerate() {
            let place = places.iter().find(|place| names(line, place));
            assert!(place.is_none(), "{}:{} names {}", shown(&path), number + 1, place.map_or("", String::as_str));
        }
    }
}

#[test]
fn datasets_are_what_their_pages_say() {
    let mut checked = 0;
    for page in files(&["md"]).into_iter().filter(|p| shown(p).starts_with("datasets/")) {
        for line in read(&page).lines() {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [name, rows, digest] = cells[..] else { continue };
            if !name.ends_with(".jsonl") {
                continue;
            }
            let path = page.with_file_name(name);
            let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", shown(&path)));
            let found = bytes.iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(found.to_string(), rows, "rows of {}", shown(&path));
            assert_eq!(hex(&Sha256::digest(&bytes)), digest, "sha256 of {}", shown(&path));
            checked += 1;
        }
    }
    assert!(checked >= 4, "only {checked} data files are described");
}

#[test]
fn held_out_requests_are_not_trained_on() {
    let folder = root().join("datasets/docker-commands");
    let asked = |name: &str| -> BTreeSet<String> {
        let rows = read(&folder.join(name));
        rows.lines()
            .map(|line| {
                let row: serde_json::Value = serde_json::from_str(line).unwrap();
                format!("{}\n{}", row["instruction"].as_str().unwrap().to_lowercase(), row["input"].as_str().unwrap())
            })
            .collect()
    };
    let (train, test) = (asked("train.jsonl"), asked("test.jsonl"));
    assert!(train.len() >= 2000, "{} train rows", train.len());
    let shared: Vec<_> = train.intersection(&test).collect();
    assert!(shared.is_empty(), "in both: {shared:?}");
}

#[test]
fn recipes_begin_with_what_a_reader_wants_to_know() {
    let recipes: Vec<_> = files(&["yml"]).into_iter().filter(|p| shown(p).starts_with("recipes/")).collect();
    assert!(recipes.len() >= FEWEST_RECIPES, "{} recipes", recipes.len());
    for path in recipes {
        let text = read(&path);
        for word in HEADER {
            assert!(
                text.lines().any(|l| l.starts_with(&format!("# {word}: "))),
                "{}: no '# {word}:' line",
                shown(&path)
            );
        }
        assert!(text.contains("$schema=../schemas/recipe.schema.json"), "{}: no schema line for editors", shown(&path));
    }
}

#[test]
fn links_between_pages_lead_somewhere() {
    for page in files(&["md"]) {
        for target in links(&read(&page)) {
            let target = target.split('#').next().unwrap_or("");
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let there = page.parent().unwrap_or(Path::new("")).join(target);
            assert!(there.exists(), "{}: no {target}", shown(&page));
        }
    }
}

/// Whether `line` holds the absolute path `place`, not the tail of a relative one.
fn names(line: &str, place: &str) -> bool {
    line.match_indices(place).any(|(at, _)| !line[..at].ends_with(|c: char| c == '.' || c.is_alphanumeric()))
}

/// What `cargo metadata` says. Read as plain JSON: the crate for it would turn on a feature of serde_json, and with that
/// have half of all dependencies compiled a second time for the tests.
fn metadata() -> Value {
    // The crates of this machine's platform are on disk, or this test would not have been built; others may not be.
    let cargo = std::env::var("CARGO").unwrap_or("cargo".into());
    let wanted = ["metadata", "--format-version=1", "--offline", "--filter-platform", &host()];
    let said = Command::new(cargo).args(wanted).current_dir(root()).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    serde_json::from_slice(&said.stdout).unwrap()
}

fn host() -> String {
    let rustc = Command::new(std::env::var("RUSTC").unwrap_or("rustc".into())).arg("-vV").output().unwrap();
    let said = String::from_utf8(rustc.stdout).unwrap();
    said.lines().find_map(|line| line.strip_prefix("host: ")).unwrap().to_string()
}

fn package<'a>(metadata: &'a Value, name: &str) -> &'a Value {
    let found = list(&metadata["packages"]).iter().find(|package| package["name"] == name);
    found.unwrap_or_else(|| panic!("no package {name}"))
}

/// Names of all packages that `from` needs to be built and run; what only its tests need does not count.
fn reached_from<'a>(metadata: &'a Value, from: &'a str) -> BTreeSet<&'a str> {
    let nodes = &metadata["resolve"]["nodes"];
    let nodes: BTreeMap<&str, &Value> = list(nodes).iter().map(|node| (text(&node["id"]), node)).collect();
    let packages = list(&metadata["packages"]);
    let names: BTreeMap<&str, &str> = packages.iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
    let (mut reached, mut todo) = (BTreeSet::new(), vec![from]);
    while let Some(id) = todo.pop() {
        for dependency in list(&nodes[id]["deps"]) {
            let needed = list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"] != "dev");
            let id = text(&dependency["pkg"]);
            if needed && reached.insert(names[id]) {
                todo.push(id);
            }
        }
    }
    reached
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

/// Whether a licence expression can be satisfied: every `AND` part has an allowed `OR` choice.
fn permissive(expression: &str) -> bool {
    let plain = expression.replace(['(', ')'], " ").replace('/', " OR ");
    plain.split(" AND ").all(|part| part.split(" OR ").any(|choice| LICENCES.contains(&choice.trim())))
}

/// Targets of Markdown links, outside code.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        if fenced {
            continue;
        }
        for piece in line.split("](").skip(1) {
            if let Some((target, _)) = piece.split_once(')') {
                found.push(target.to_string());
            }
        }
    }
    found
}

/// The project's own files with one of these endings.
fn files(endings: &[&str]) -> Vec<PathBuf> {
    const FOREIGN: &[&str] = &["target", "downloads", "outputs", "fixtures"];
    let (mut found, mut todo) = (Vec::new(), vec![root()]);
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && !FOREIGN.contains(&name.as_str()) {
                    todo.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(&format!(".{ending}"))) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).to_string_lossy().replace('\\', "/")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", shown(path)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
