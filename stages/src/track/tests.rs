//! Trackers against the files of TensorBoard's, MLflow's and Weights & Biases' own writers (`tests/fixtures/trackers/generate.py`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::*;
use crate::recipe::Recipe;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/trackers")
}

/// The same as in the fixtures' generator.
fn points() -> Vec<Point> {
    let point = |kind, step, time, values: &[(&str, f64)]| Point {
        kind,
        step,
        time,
        values: values.iter().map(|(name, value)| (name.to_string(), *value)).collect(),
    };
    let nan = f64::NAN;
    vec![
        point(Kind::Train, 1, 1_764_350_000_250, &[("loss", 3.5), ("learning_rate", 0.0), ("grad_norm", nan)]),
        point(Kind::Train, 2, 1_764_350_001_500, &[("loss", 2.25), ("learning_rate", 1e-4), ("grad_norm", 7.0625)]),
        point(Kind::Eval("val".into()), 300, 1_764_350_002_750, &[("loss", 1.125)]),
    ]
}

#[test]
fn event_files_are_byte_for_byte_those_of_tensorboard() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut tracker = TensorBoard::new(run.clone());
    tracker.log(&[]).unwrap();
    assert!(!run.exists(), "a run without numbers leaves nothing");
    let points = points();
    tracker.log(&points[..1]).unwrap();
    tracker.log(&points[1..]).unwrap();
    tracker.end(true, 0).unwrap();
    let name = "events.out.tfevents.1764350000.pipe";
    let (ours, theirs) =
        (fs::read(run.join(name)).unwrap(), fs::read(fixtures().join("tensorboard").join(name)).unwrap());
    assert!(ours == theirs, "{} bytes, and {} in the fixture", ours.len(), theirs.len());
}

#[test]
fn a_file_store_holds_what_mlflow_writes() {
    let folder = tempfile::tempdir().unwrap();
    let facts = RunFacts {
        run: "20251128T1724-ab".into(),
        recipe: "r.yml".into(),
        started: 1_764_350_000_250,
        params: vec![("optimizer.lr".into(), "0.0005".into()), ("batching.micro_batch".into(), "1".into())],
    };
    let address = Address::Folder(folder.path().to_path_buf());
    let (experiment, name) = (Some("docker/commands"), Some("first try"));
    let mut tracker = Mlflow::new(address.clone(), Credentials::default(), experiment, name, facts.clone());
    tracker.log(&points()).unwrap();
    let last = vec![("tuned/val/perplexity".to_string(), 1.5)];
    tracker.log(&[Point { kind: Kind::Final, step: 300, time: 1_764_350_002_750, values: last }]).unwrap();
    tracker.end(true, 1_764_350_002_750).unwrap();
    let only = |folder: &Path| fs::read_dir(folder).unwrap().flatten().map(|e| e.path()).find(|p| p.is_dir()).unwrap();
    let experiment = only(folder.path());
    let run = only(&experiment);
    for part in ["metrics", "params"] {
        let theirs = files(&fixtures().join("mlflow").join(part));
        assert!(theirs.len() >= 2);
        assert_eq!(files(&run.join(part)), theirs, "{part}");
    }
    for (name, folder) in [("run", &run), ("experiment", &experiment)] {
        let ours: Value = serde_yaml::from_str(&fs::read_to_string(folder.join("meta.yaml")).unwrap()).unwrap();
        let theirs: Value =
            serde_json::from_slice(&fs::read(fixtures().join(format!("mlflow/{name}.json"))).unwrap()).unwrap();
        for (key, value) in ours.as_object().unwrap() {
            let told = &theirs[key.as_str()];
            let is_own = told.as_str().is_some_and(|text| text.contains("RUN") || text.contains("EXPERIMENT"));
            let is_time = key.ends_with("creation_time") || key.ends_with("update_time");
            assert!(told == value || is_own || is_time || key == "user_id", "{name}: {key} is {value}, not {told}");
        }
    }
    // A second run finds the experiment.
    let mut second = Mlflow::new(
        address,
        Credentials::default(),
        Some("docker/commands"),
        None,
        RunFacts { run: "b".into(), ..facts },
    );
    second.log(&points()).unwrap();
    assert_eq!(fs::read_dir(&experiment).unwrap().flatten().filter(|e| e.path().is_dir()).count(), 2);
}

#[test]
fn a_run_s_records_are_byte_for_byte_those_of_wandb() {
    let folder = tempfile::tempdir().unwrap();
    let setting = |key: &str, value: &str| (key.to_string(), value.to_string());
    let facts = RunFacts {
        run: "20251128T1724-ab".into(),
        recipe: "r.yml".into(),
        started: 1_764_350_000_250,
        params: vec![
            setting("optimizer.lr", "0.0005"),
            setting("batching.in_order", "true"),
            // Longer than a block of the file.
            setting("long", &"x".repeat(70_000)),
        ],
    };
    let about = WandbRun {
        project: Some("docker".into()),
        entity: Some("me".into()),
        name: Some("first try".into()),
        id: None,
    };
    let mut tracker = Wandb::new(folder.path().join("wandb"), about, facts);
    tracker.log(&[]).unwrap();
    assert!(!folder.path().join("wandb").exists(), "a run without numbers leaves nothing");
    let points = points();
    tracker.log(&points[..1]).unwrap();
    tracker.log(&points[1..]).unwrap();
    tracker.end(false, 1_764_350_002_750).unwrap();
    let run = folder.path().join("wandb/offline-run-20251128_171320-20251128T1724-ab");
    let ours = fs::read(run.join("run-20251128T1724-ab.wandb")).unwrap();
    let theirs = fs::read(fixtures().join("wandb/run.wandb")).unwrap();
    let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b);
    assert!(ours == theirs, "{} bytes, {} in the fixture, differing from {differs:?}", ours.len(), theirs.len());
    let summary: Value = serde_json::from_slice(&fs::read(run.join("files/wandb-summary.json")).unwrap()).unwrap();
    assert_eq!((&summary["train/loss"], &summary["train/grad_norm"]), (&2.25.into(), &7.0625.into()));
    assert_eq!(summary["train/global_step"], 300);
}

fn files(folder: &Path) -> BTreeMap<String, String> {
    let (mut found, mut todo) = (BTreeMap::new(), vec![folder.to_path_buf()]);
    while let Some(at) = todo.pop() {
        for path in fs::read_dir(&at).unwrap().flatten().map(|entry| entry.path()) {
            match path.is_dir() {
                true => todo.push(path),
                false => {
                    let name = path.strip_prefix(folder).unwrap().display().to_string();
                    found.insert(name, numbers(&fs::read_to_string(&path).unwrap()));
                }
            }
        }
    }
    found
}

/// Numbers as values: Python and Rust write `1e-4` differently.
fn numbers(text: &str) -> String {
    let word = |word: &str| word.parse::<f64>().map_or(word.to_string(), |number| number.to_string());
    text.lines().map(|line| line.split(' ').map(word).collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join("\n")
}

#[test]
fn axolotl_s_keys_switch_trackers_as_report_to_does() {
    let told = |text: &str| trackers(&serde_yaml::from_str::<Recipe>(text).unwrap());
    use TrackerName::{Mlflow, Tensorboard, Wandb};
    assert_eq!(told("report_to: tensorboard"), [Tensorboard]);
    assert_eq!(told("report_to: [mlflow, tensorboard]"), [Tensorboard, Mlflow]);
    assert_eq!(told("use_tensorboard: true\nmlflow_experiment_name: x"), [Tensorboard, Mlflow]);
    assert_eq!(told("use_mlflow: false\nmlflow_experiment_name: x"), []);
    assert_eq!(told("report_to: none\nmlflow_experiment_name: x"), []);
    assert_eq!(told("mlflow_tracking_uri: http://localhost:5000"), []);
    assert_eq!(told("report_to: [wandb, mlflow]"), [Mlflow, Wandb]);
    assert_eq!(told("wandb_project: x"), [Wandb]);
    assert_eq!(told("use_wandb: true\nwandb_mode: dryrun"), [Wandb]);
    assert_eq!(told("wandb_project: x\nuse_wandb: false"), []);
    assert_eq!(told("report_to: wandb\nuse_wandb: true\nwandb_mode: disabled"), []);
    assert_eq!(told("wandb_mode: offline\nwandb_name: x"), []);
}

#[test]
fn addresses_are_servers_or_folders() {
    let project = crate::project::Project::of(Path::new("/p/recipe.yml"));
    let told = |uri: &str| match address(uri, &project) {
        Some(Address::Server(url)) => format!("server {url}"),
        Some(Address::Folder(folder)) => format!("folder {}", folder.display()),
        None => "none".to_string(),
    };
    assert_eq!(told("http://localhost:5000/"), "server http://localhost:5000");
    assert_eq!(told("file:///a/mlruns"), "folder /a/mlruns");
    assert!(told("mlruns").starts_with("folder ") && told("./a/mlruns").ends_with("a/mlruns"));
    for not in ["sqlite:///mlflow.db", "postgresql://me:pw@host/db", "databricks", "databricks://profile", "http://"] {
        assert_eq!(told(not), "none", "{not}");
    }
}
