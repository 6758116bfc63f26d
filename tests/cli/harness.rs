//! A project in a folder of its own, and the binary run in it with nothing of the surrounding environment.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use serde_json::Value;

/// A temporary project with a home folder beside it.
pub struct Project {
    root: tempfile::TempDir,
}

/// What a finished command said.
pub struct Said {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// The last line of `run --json`, and how often rows were computed.
pub struct Ran {
    pub executed: BTreeSet<String>,
    pub cached: BTreeSet<String>,
    pub code: i32,
    pub events: Vec<Value>,
}

impl Project {
    pub fn new() -> Project {
        let project = Project { root: tempfile::tempdir().unwrap() };
        std::fs::create_dir_all(project.path("home")).unwrap();
        std::fs::create_dir_all(project.path("work/.git")).unwrap();
        project
    }

    /// A project whose recipe prepares data with the tiny tokenizer, without training.
    pub fn with_data_recipe() -> Project {
        let project = Project::new();
        copy_folder(&fixture("tiny-llama"), &project.path("work/model"));
        project.write("rows.jsonl", &rows(0..20));
        project.write("recipe.yml", DATA_RECIPE);
        project
    }

    /// With the tiny model under `model`, for what the worker does.
    pub fn with_worker() -> Project {
        let worker = Path::new(env!("CARGO_BIN_EXE_pipe")).with_file_name("pipe-torch");
        assert!(worker.is_file(), "{} is missing; test the whole workspace, which builds it", worker.display());
        let project = Project::new();
        copy_folder(&fixture("tiny-llama"), &project.path("work/model"));
        project
    }

    /// A path within the temporary folder; the project itself is `work`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path("work").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path("work").join(name)).unwrap()
    }

    /// Replaces text that must be there.
    pub fn edit(&self, name: &str, from: &str, to: &str) {
        let text = self.read(name);
        assert!(text.contains(from), "{name} has no `{from}`");
        self.write(name, &text.replacen(from, to, 1));
    }

    pub fn pipe(&self, args: &[&str]) -> Said {
        self.pipe_in("work", args)
    }

    pub fn pipe_in(&self, folder: &str, args: &[&str]) -> Said {
        let output = self.command(folder, args).output().unwrap();
        Said {
            code: output.status.code().unwrap_or(-1),
            stdout: self.plain(&output.stdout),
            stderr: self.plain(&output.stderr),
        }
    }

    /// The same with one variable of the environment set.
    pub fn pipe_with(&self, args: &[&str], name: &str, value: &str) -> Said {
        self.pipe_among(args, &[(name, value.to_string())])
    }

    /// The same with several.
    pub fn pipe_among(&self, args: &[&str], environment: &[(&str, String)]) -> Said {
        let output = self.command("work", args).envs(environment.iter().cloned()).output().unwrap();
        Said {
            code: output.status.code().unwrap_or(-1),
            stdout: self.plain(&output.stdout),
            stderr: self.plain(&output.stderr),
        }
    }

    /// Starts a command without waiting for it.
    pub fn start(&self, args: &[&str]) -> Child {
        self.command("work", args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// The same, keeping what it says.
    pub fn start_telling(&self, args: &[&str]) -> Child {
        self.command("work", args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs the recipe with `--json`.
    pub fn run(&self, args: &[&str]) -> Ran {
        self.run_among(args, &[])
    }

    /// The same with variables of the environment set.
    pub fn run_among(&self, args: &[&str], environment: &[(&str, String)]) -> Ran {
        let said = self.pipe_among(&[&["run", "recipe.yml", "--json"], args].concat(), environment);
        let events: Vec<Value> = said.stdout.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
        let last = events.last().unwrap_or_else(|| panic!("no events; {}", said.stderr));
        assert_eq!(last["event"], "run_finished", "{}", said.stderr);
        let names = |key: &str| strings(&last[key]);
        Ran { executed: names("executed"), cached: names("cached"), code: said.code, events }
    }

    /// The store folder of a node's output.
    pub fn output(&self, ran: &Ran, node: &str) -> PathBuf {
        let root = self.root.path().canonicalize().unwrap();
        let folder = ran.events.last().unwrap()["outputs"][node].as_str().unwrap();
        PathBuf::from(folder.replace("$ROOT", root.to_str().unwrap()))
    }

    pub fn command(&self, folder: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipe"));
        command.current_dir(self.path(folder)).args(args).env_clear().stdin(Stdio::null());
        command.env("HOME", self.path("home")).env("COLUMNS", "100").env("PATH", "/usr/bin:/bin");
        command
    }

    /// The text with the temporary folder named `$ROOT`.
    fn plain(&self, bytes: &[u8]) -> String {
        let root = self.root.path().canonicalize().unwrap();
        String::from_utf8_lossy(bytes).replace(root.to_str().unwrap(), "$ROOT")
    }
}

impl Ran {
    /// What was warned of, in order.
    pub fn warnings(&self) -> Vec<&str> {
        let warned = self.events.iter().filter(|event| event["event"] == "warning");
        warned.filter_map(|event| event["message"].as_str()).collect()
    }
}

impl Said {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}\n{}", self.stdout, self.stderr))
    }
}

/// The address that a server tells of, what it said until then, and the lines that follow.
pub fn address_of(child: &mut Child) -> (String, String, Lines<BufReader<ChildStderr>>) {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = String::new();
    loop {
        let Some(Ok(line)) = lines.next() else { panic!("it does not serve: {said}") };
        said.push_str(&line);
        if let Some((_, rest)) = line.split_once("http://") {
            return (rest.split_whitespace().next().unwrap().to_string(), said, lines);
        }
    }
}

/// Prepares data only: no stage needs the worker.
pub const DATA_RECIPE: &str = "\
base_model: model
datasets:
  - path: rows.jsonl
    type: alpaca
    label: docker
val_set_size: 0.2
sequence_len: 128
sample_packing: true
train: false
eval: false
output_dir: out
";

/// Alpaca rows, one per number, of about twenty tokens.
pub fn rows(numbers: std::ops::Range<usize>) -> String {
    let row = |i: usize| {
        let instruction = format!("Please list the {i} running container");
        serde_json::json!({ "instruction": instruction, "input": "", "output": format!("docker container list {i}") })
    };
    numbers.map(|i| format!("{}\n", row(i))).collect()
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

pub fn strings(value: &Value) -> BTreeSet<String> {
    value.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_string()).collect()
}

/// The same in its order.
pub fn list(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_string()).collect()
}

pub fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| name.to_string()).collect()
}
