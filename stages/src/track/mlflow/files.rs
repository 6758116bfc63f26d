//! MLflow's file store: a folder per experiment, in it a folder per run, in it a file per parameter, tag and metric.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use pipe_engine::digest::Digest;
use serde::{Deserialize, Serialize};

use super::{DEFAULT_EXPERIMENT, Number, RunToBe, Store};
use crate::track::TrackError;

const RUNNING: u8 = 1;
const FINISHED: u8 = 3;
const FAILED: u8 = 4;
/// MLflow's word for programs that are not a project, a notebook or a job.
const LOCAL: u8 = 4;

/// `meta.yaml` of an experiment.
#[derive(Serialize, Deserialize)]
struct Experiment {
    artifact_location: String,
    creation_time: i64,
    experiment_id: String,
    last_update_time: i64,
    lifecycle_stage: String,
    name: String,
}

/// `meta.yaml` of a run.
#[derive(Clone, Serialize)]
struct Run {
    artifact_uri: String,
    end_time: Option<i64>,
    entry_point_name: String,
    experiment_id: String,
    lifecycle_stage: String,
    run_id: String,
    run_name: String,
    source_name: String,
    source_type: u8,
    source_version: String,
    start_time: i64,
    status: u8,
    tags: Vec<String>,
    user_id: String,
}

/// A store in a folder.
pub(super) struct FileStore {
    folder: PathBuf,
    run: Option<(PathBuf, Run)>,
}

impl FileStore {
    pub fn new(folder: PathBuf) -> FileStore {
        FileStore { folder, run: None }
    }

    /// The experiment of this name, made if there is none; its id.
    fn experiment(&self, name: &str, time: i64) -> Result<String, TrackError> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for entry in entries {
            let text = fs::read_to_string(entry.path().join("meta.yaml")).unwrap_or_default();
            if let Ok(found) = serde_yaml::from_str::<Experiment>(&text)
                && found.name == name
            {
                return Ok(found.experiment_id);
            }
        }
        // MLflow's own ids are decimal digits; the default experiment is 0.
        let digest = Digest::of(name.as_bytes()).to_string();
        let number = u64::from_str_radix(&digest[..15], 16).unwrap_or(1);
        let id = if name == DEFAULT_EXPERIMENT { "0".to_string() } else { format!("{number:018}") };
        let meta = Experiment {
            artifact_location: uri(&self.folder.join(&id)),
            creation_time: time,
            experiment_id: id.clone(),
            last_update_time: time,
            lifecycle_stage: "active".to_string(),
            name: name.to_string(),
        };
        write_yaml(&self.folder.join(&id).join("meta.yaml"), &meta)?;
        Ok(id)
    }
}

impl Store for FileStore {
    fn begin(&mut self, run: &RunToBe) -> Result<(), TrackError> {
        let facts = &run.facts;
        self.folder = std::path::absolute(&self.folder).unwrap_or_else(|_| self.folder.clone());
        let experiment = self.experiment(&run.experiment, facts.started)?;
        let run_id = Digest::of(facts.run.as_bytes()).to_string()[..32].to_string();
        let folder = self.folder.join(&experiment).join(&run_id);
        let meta = Run {
            artifact_uri: uri(&folder.join("artifacts")),
            end_time: None,
            entry_point_name: String::new(),
            experiment_id: experiment,
            lifecycle_stage: "active".to_string(),
            run_id,
            run_name: run.name.clone(),
            source_name: String::new(),
            source_type: LOCAL,
            source_version: String::new(),
            start_time: facts.started,
            status: RUNNING,
            tags: Vec::new(),
            user_id: String::new(),
        };
        for part in ["artifacts", "metrics", "params", "tags"] {
            let folder = folder.join(part);
            fs::create_dir_all(&folder).map_err(failed(&folder))?;
        }
        for (key, value) in &facts.params {
            write(&folder.join("params").join(file_name(key)), value)?;
        }
        for (key, value) in tags(run) {
            write(&folder.join("tags").join(key), &value)?;
        }
        write_yaml(&folder.join("meta.yaml"), &meta)?;
        self.run = Some((folder, meta));
        Ok(())
    }

    fn log(&mut self, numbers: &[Number]) -> Result<(), TrackError> {
        let Some((folder, _)) = &self.run else { return Ok(()) };
        for number in numbers {
            let path = number.key.split('/').fold(folder.join("metrics"), |path, part| path.join(file_name(part)));
            make_parent(&path)?;
            let line = format!("{} {} {}\n", number.time, python(number.value), number.step);
            let file = OpenOptions::new().create(true).append(true).open(&path);
            file.and_then(|mut file| file.write_all(line.as_bytes())).map_err(failed(&path))?;
        }
        Ok(())
    }

    fn end(&mut self, ok: bool, time: i64) -> Result<(), TrackError> {
        let Some((folder, meta)) = self.run.take() else { return Ok(()) };
        let status = if ok { FINISHED } else { FAILED };
        write_yaml(&folder.join("meta.yaml"), &Run { end_time: Some(time), status, ..meta })
    }
}

/// Tags that MLflow's own clients write, and ours.
pub(super) fn tags(run: &RunToBe) -> [(&'static str, String); 4] {
    [
        ("mlflow.runName", run.name.clone()),
        ("mlflow.source.name", run.facts.recipe.clone()),
        ("mlflow.source.type", "LOCAL".to_string()),
        ("pipe.run", run.facts.run.clone()),
    ]
}

/// Floats as Python's `float()` reads them.
fn python(value: f64) -> String {
    match value {
        v if v.is_nan() => "nan".to_string(),
        v if v.is_infinite() => if v > 0.0 { "inf" } else { "-inf" }.to_string(),
        v => format!("{v:?}"),
    }
}

/// A key that names no other folder.
fn file_name(key: &str) -> String {
    let name: String = key.chars().map(|c| if c == '/' || c.is_control() { '_' } else { c }).collect();
    if name.is_empty() || name.chars().all(|c| c == '.') { "_".to_string() } else { name }
}

fn uri(path: &Path) -> String {
    format!("file://{}", path.display())
}

fn write_yaml(path: &Path, value: &impl Serialize) -> Result<(), TrackError> {
    write(path, &serde_yaml::to_string(value).map_err(|e| failed(path)(std::io::Error::other(e)))?)
}

fn write(path: &Path, text: &str) -> Result<(), TrackError> {
    make_parent(path)?;
    fs::write(path, text).map_err(failed(path))
}

fn make_parent(path: &Path) -> Result<(), TrackError> {
    path.parent().map_or(Ok(()), |folder| fs::create_dir_all(folder).map_err(failed(folder)))
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> TrackError {
    let path = path.to_path_buf();
    move |source| TrackError::Io { path, source }
}
