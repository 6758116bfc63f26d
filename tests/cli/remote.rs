//! Rows and models by address: fetched once, pinned, checked, and never asked for by commands that only look.

use std::path::Path;

use super::harness::{Project, Ran, fixture, rows, set};
use super::hub::{Hub, Seen};

/// The data recipe with its rows at an address, and a hub that has them.
fn project(hub: &Hub, path: &str) -> Project {
    let project = Project::with_data_recipe();
    project.edit("recipe.yml", "path: rows.jsonl", &format!("path: {path}"));
    hub.publish("datasets/org/rows", "c1", &[("README.md", b"# Rows"), ("train.jsonl", rows(0..20).as_bytes())]);
    project
}

fn run(project: &Project, hub: &Hub) -> Ran {
    let ran = project.run_among(&[], &hub.environment());
    assert_eq!(ran.code, 0);
    ran
}

fn paths(seen: &[Seen]) -> Vec<&str> {
    seen.iter().map(|seen| seen.path.as_str()).filter(|path| !path.starts_with("/cdn/")).collect()
}

#[test]
fn rows_on_a_hub_are_fetched_once_and_stay_at_their_commit() {
    let hub = Hub::start();
    let project = project(&hub, "hf://datasets/org/rows");
    for command in ["validate", "plan", "why"] {
        let said = project.pipe_among(&[command, "recipe.yml", "--json"], &hub.environment());
        assert_eq!(said.code, 0, "{}", said.stderr);
        let told = said.stdout.contains("hf://datasets/org/rows@main would be fetched");
        assert_eq!(told, command != "validate", "{}", said.stdout);
    }
    assert_eq!(hub.seen().len(), 0, "commands that look ask nobody");

    let ran = run(&project, &hub);
    assert!(ran.executed.contains("ingest.docker"), "{:?}", ran.executed);
    let seen = hub.seen();
    let resolved = ["/api/datasets/org/rows/revision/main?blobs=true", "/datasets/org/rows/resolve/c1/train.jsonl"];
    assert!(resolved.iter().all(|path| paths(&seen).contains(path)), "{:?}", paths(&seen));
    let local = Project::with_data_recipe();
    assert_eq!(
        project.output(&ran, "clean.docker").file_name(),
        local.output(&local.run(&[]), "clean.docker").file_name(),
        "where rows come from is no part of what is made of them"
    );

    // The branch moves on; the project does not, until it is told to.
    hub.publish("datasets/org/rows", "c2", &[("train.jsonl", rows(0..30).as_bytes())]);
    assert_eq!((run(&project, &hub).executed, hub.seen().len()), (set(&[]), 0));
    let fetched = project.pipe_among(&["fetch", "recipe.yml", "--json"], &hub.environment()).json();
    assert_eq!((&fetched["sources"][0]["revision"], &fetched["sources"][0]["fetched"]), (&"c1".into(), &0.into()));
    let updated = project.pipe_among(&["fetch", "recipe.yml", "--update"], &hub.environment());
    assert!(updated.code == 0 && updated.stdout.contains("(c2): 1 fetched"), "{}{}", updated.stdout, updated.stderr);
    assert!(run(&project, &hub).executed.contains("ingest.docker"));
    // And back by name: what was fetched before is still here.
    hub.seen();
    project.edit("recipe.yml", "org/rows", "org/rows@c1");
    assert_eq!(run(&project, &hub).executed, set(&[]));
    assert!(hub.seen().iter().all(|seen| !seen.path.ends_with("train.jsonl")));
}

#[test]
fn only_the_files_that_are_read_are_fetched() {
    let hub = Hub::start();
    let project = project(&hub, "org/rows");
    let card = "---\nconfigs:\n- config_name: one\n  data_files:\n  - split: train\n    path: one/*.jsonl\n  - split: test\n    \
                path: more/t.jsonl\n---\n";
    let row = rows(0..20);
    let files: [(&str, &[u8]); 4] = [
        ("README.md", card.as_bytes()),
        ("one/a.jsonl", row.as_bytes()),
        ("more/t.jsonl", row.as_bytes()),
        ("more/u.jsonl", row.as_bytes()),
    ];
    hub.publish("datasets/org/rows", "c1", &files);
    run(&project, &hub);
    let seen = hub.seen();
    assert!(paths(&seen).contains(&"/datasets/org/rows/resolve/c1/one/a.jsonl"), "{:?}", paths(&seen));
    assert!(paths(&seen).iter().all(|path| !path.contains("more/")), "{:?}", paths(&seen));
    // Another split is fetched when the recipe asks for it; equal bytes are here already.
    project.edit("recipe.yml", "type: alpaca", "type: alpaca\n    split: test");
    run(&project, &hub);
    assert!(paths(&hub.seen()).is_empty());
    project.edit("recipe.yml", "split: test", "split: tests");
    let said = project.pipe_among(&["validate", "recipe.yml"], &hub.environment());
    assert!(said.code == 2 && said.stderr.contains("there is no split `tests`"), "{}", said.stderr);
}

#[test]
fn a_model_on_a_hub_gives_its_tokenizer_without_its_weights() {
    let hub = Hub::start();
    let project = project(&hub, "org/rows");
    project.edit("recipe.yml", "base_model: model", "base_model: org/tiny");
    let read = |name: &str| std::fs::read(fixture("tiny-llama").join(name)).unwrap();
    let names =
        ["config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"];
    let files: Vec<(&str, Vec<u8>)> = names.iter().map(|name| (*name, read(name))).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    hub.publish("models/org/tiny", "m1", &files);
    let ran = run(&project, &hub);
    let seen = hub.seen();
    assert!(paths(&seen).contains(&"/org/tiny/resolve/m1/tokenizer.json"), "{:?}", paths(&seen));
    assert!(paths(&seen).iter().all(|path| !path.ends_with("safetensors")), "{:?}", paths(&seen));
    // A recipe that trains fetches them when it comes to that, not before.
    project.edit("recipe.yml", "train: false", "adapter: lora\nlora_r: 4\nlora_alpha: 8\nlora_target_linear: true\nmicro_batch_size: 1\ngradient_accumulation_steps: 1\nlearning_rate: 1e-3");
    let until = project.run_among(&["--until", "pack"], &hub.environment());
    assert_eq!((until.code, until.executed), (0, set(&[])));
    assert!(paths(&hub.seen()).iter().all(|path| !path.ends_with("safetensors")));
    let said = project.pipe_among(&["run", "recipe.yml", "--until", "packs"], &hub.environment());
    assert!(said.code == 2 && hub.seen().is_empty(), "{}", said.stderr);
    let local = Project::with_data_recipe();
    let packs = |project: &Project, ran: &Ran| project.output(ran, "pack.train").file_name().unwrap().to_owned();
    assert_eq!(packs(&project, &ran), packs(&local, &local.run(&[])));
}

#[test]
fn a_token_opens_what_is_private_and_goes_nowhere_else() {
    let hub = Hub::start();
    let project = project(&hub, "hf://datasets/org/rows");
    let token = "hf_aTokenThatNobodyHas";
    hub.set(|state| state.token = Some(token.to_string()));
    let refused = project.pipe_among(&["run", "recipe.yml"], &hub.environment());
    assert!(refused.code == 2 && refused.stderr.contains("recipe.yml:3:5"), "{}", refused.stderr);
    assert!(refused.stderr.contains("HF_TOKEN") && refused.stderr.contains("datasets[0].path"), "{}", refused.stderr);
    hub.seen();

    let folder = project.path("home/.cache/huggingface");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("token"), format!("{token}\n")).unwrap();
    let said = project.pipe_among(&["run", "recipe.yml"], &hub.environment());
    assert!(said.code == 0 && !said.stderr.contains(token) && !said.stdout.contains(token), "{}", said.stderr);
    let (elsewhere, here): (Vec<Seen>, Vec<Seen>) =
        hub.seen().into_iter().partition(|seen| seen.host.starts_with("localhost"));
    assert!(!elsewhere.is_empty() && elsewhere.iter().all(|seen| seen.token.is_none()), "{elsewhere:?}");
    assert!(!here.is_empty() && here.iter().all(|seen| seen.token.is_some()));
    assert_eq!(files_with(&project.path("work"), token), Vec::<String>::new());
}

/// Files below a folder that hold these words.
fn files_with(folder: &Path, words: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, words));
        } else if std::fs::read(&path).unwrap().windows(words.len()).any(|part| part == words.as_bytes()) {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn a_broken_transfer_goes_on_and_wrong_bytes_are_refused() {
    let hub = Hub::start();
    let whole = project(&hub, "hf://datasets/org/rows/train.jsonl");
    hub.set(|state| state.cut = Some(100));
    run(&whole, &hub);
    let resumed: Vec<Option<String>> =
        hub.seen().into_iter().filter(|seen| seen.path.starts_with("/cdn/")).map(|seen| seen.range).collect();
    assert!(resumed.contains(&Some("bytes=100-".to_string())), "{resumed:?}");

    let other = project(&hub, "hf://datasets/org/rows/train.jsonl");
    hub.set(|state| state.garbled = true);
    let said = other.pipe_among(&["fetch", "recipe.yml"], &hub.environment());
    assert!(said.code == 2 && said.stderr.contains("other bytes"), "{}", said.stderr);
    let blobs = std::fs::read_dir(other.path("work/.pipe/downloads/blobs")).unwrap();
    assert_eq!(blobs.count(), 0);
    hub.set(|state| state.garbled = false);
    run(&other, &hub);
}

#[test]
fn without_a_network_what_is_missing_is_said_with_its_place() {
    let hub = Hub::start();
    let project = project(&hub, "hf://datasets/org/rows");
    let mut offline = hub.environment();
    offline.push(("HF_HUB_OFFLINE", "1".to_string()));
    let said = project.pipe_among(&["run", "recipe.yml"], &offline);
    assert!(said.code == 2 && hub.seen().is_empty(), "{}", said.stderr);
    for words in ["recipe.yml:3:5", "datasets[0].path", "HF_HUB_OFFLINE", "pipe fetch"] {
        assert!(said.stderr.contains(words), "{words}: {}", said.stderr);
    }
    assert_eq!(project.pipe_among(&["fetch", "recipe.yml"], &hub.environment()).code, 0);
    assert_eq!(project.run_among(&[], &offline).code, 0);

    let gone = [("HF_ENDPOINT", "http://127.0.0.1:9".to_string())];
    project.edit("recipe.yml", "org/rows", "org/others");
    let said = project.pipe_among(&["run", "recipe.yml"], &gone);
    assert!(
        said.code == 3 && said.stderr.contains("recipe.yml:3:5") && said.stderr.contains("cannot be asked"),
        "{}",
        said.stderr
    );
    let said = project.pipe_among(&["run", "recipe.yml"], &hub.environment());
    assert!(said.code == 2 && said.stderr.contains("status 404"), "{}", said.stderr);
}

#[test]
fn a_page_is_rows_too() {
    let hub = Hub::start();
    let project = project(&hub, "org/rows");
    let page = format!("{}/cdn/datasets/org/rows/c1/-/train.jsonl?key=abc", hub.address());
    project.edit("recipe.yml", "path: org/rows", &format!("path: {page}"));
    run(&project, &hub);
    hub.seen();
    assert_eq!((run(&project, &hub).executed, hub.seen().len()), (set(&[]), 0));
    let fetched = project.pipe(&["fetch", "recipe.yml"]);
    assert!(fetched.code == 0 && !fetched.stdout.contains("abc"), "what a query holds stays there: {}", fetched.stdout);
}

#[test]
fn an_address_that_cannot_be_read_is_a_mistake_of_the_recipe() {
    let project = Project::with_data_recipe();
    for (path, words) in [("ftp://host/rows.jsonl", "`ftp://` is not read"), ("hf://datasets/a/b/../c", "leads out")] {
        project.write("recipe.yml", &super::harness::DATA_RECIPE.replace("rows.jsonl", path));
        let said = project.pipe(&["validate", "recipe.yml"]);
        assert!(
            said.code == 2 && said.stderr.contains(words) && said.stderr.contains("recipe.yml:3:5"),
            "{}",
            said.stderr
        );
    }
}
