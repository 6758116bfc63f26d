//! Checkpoints: everything an interrupted run needs to end as if it had not been.
//!
//! A checkpoint is written to a draft folder, flushed to disk and renamed, so a folder with the final name is whole. Random
//! numbers are functions of seed and step, so there is no generator state to keep. The weights of the best evaluation lie
//! beside the checkpoints, once, and go when no checkpoint names them any more.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use pipe_job::TrainJob;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::optimizer::{Optimizer, Parameter};
use crate::random;
use crate::tensors::{read_tensors, write_tensors};
use crate::{ModelError, Result};

const STATE: &str = "state.json";
const WEIGHTS: &str = "weights.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const METRICS: &str = "metrics.jsonl";
const DRAFT: &str = ".draft-";

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps done.
    pub step: u64,
    /// Whether the evaluation due after this step was made.
    pub evaluated: bool,
    pub best: Option<Best>,
    /// Evaluations in a row that were no better than the best.
    pub idle_evals: u64,
    /// Steps in a row with a loss above the watchdog's threshold.
    pub high_losses: u64,
    /// Digest of everything that decides the result; another run's checkpoint is not resumed.
    pub run: String,
}

/// The best evaluation so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub step: u64,
    pub loss: f64,
}

/// The folder of a run's checkpoints.
#[derive(Debug)]
pub struct Checkpoints<'a> {
    folder: &'a Path,
    run: String,
    keep: usize,
}

impl<'a> Checkpoints<'a> {
    /// Checkpoints of this job on packs with this fingerprint.
    pub fn new(job: &'a TrainJob, packs: u64) -> Self {
        let mut meaning = job.clone();
        // What may change between an interrupted run and its resumption without changing the result.
        meaning.output = PathBuf::new();
        meaning.checkpoints = PathBuf::new();
        meaning.train = PathBuf::new();
        meaning.val = None;
        meaning.resume = None;
        meaning.watchdog = None;
        meaning.save.keep = 0;
        let text = serde_json::to_string(&meaning).unwrap_or_default();
        let run = format!("{:016x}", random::mix(random::name_key(&text), packs));
        Self { folder: &job.checkpoints, run, keep: job.save.keep.max(1) }
    }

    /// Writes a checkpoint and removes the oldest beyond those kept.
    pub fn save(&self, state: &State, optimizer: &Optimizer, metrics: &[u8]) -> Result<()> {
        let (draft, whole) = (self.folder.join(format!("{DRAFT}{}", state.step)), self.folder.join(name(state.step)));
        remove(&draft)?;
        fs::create_dir_all(&draft).map_err(|e| ModelError::io(&draft, e))?;
        write_tensors(&draft.join(WEIGHTS), weights(optimizer.parameters()), &[])?;
        write_tensors(&draft.join(OPTIMIZER), optimizer.state(), &[])?;
        let state = State { run: self.run.clone(), ..state.clone() };
        write(&draft.join(STATE), &serde_json::to_vec(&state).unwrap_or_default())?;
        write(&draft.join(METRICS), metrics)?;
        sync(&draft)?;
        remove(&whole)?;
        fs::rename(&draft, &whole).map_err(|e| ModelError::io(&whole, e))?;
        sync_one(self.folder)?;
        for old in self.whole()?.iter().rev().skip(self.keep) {
            remove(&old.1)?;
        }
        self.forget_bests()
    }

    /// Keeps the weights of the evaluation after `step` steps.
    pub fn save_best(&self, step: u64, parameters: &[Parameter]) -> Result<()> {
        fs::create_dir_all(self.folder).map_err(|e| ModelError::io(self.folder, e))?;
        let (draft, whole) = (self.folder.join(format!("{DRAFT}best")), self.best(step));
        write_tensors(&draft, weights(parameters), &[])?;
        sync_one(&draft)?;
        fs::rename(&draft, &whole).map_err(|e| ModelError::io(&whole, e))?;
        sync_one(self.folder)
    }

    /// Brings the weights of the best evaluation back.
    pub fn load_best(&self, step: u64, parameters: &[Parameter]) -> Result<()> {
        restore(parameters, &self.best(step))
    }

    /// Takes up a whole checkpoint of this run, `explicit` or the newest: restores weights and optimizer, and returns the
    /// state and the metrics so far. `None` when there is nothing to resume.
    pub fn resume(&self, explicit: Option<&Path>, optimizer: &mut Optimizer) -> Result<Option<(State, Vec<u8>)>> {
        let found = match explicit {
            Some(folder) => Some(self.explicit(folder)?),
            None => self.whole()?.into_iter().rev().find_map(|(_, folder)| {
                let state = read_state(&folder).filter(|state| state.run == self.run)?;
                Some((state, folder))
            }),
        };
        let Some((state, folder)) = found else { return Ok(None) };
        restore(optimizer.parameters(), &folder.join(WEIGHTS))?;
        optimizer.restore(state.step, &read_tensors(&folder.join(OPTIMIZER))?)?;
        let path = folder.join(METRICS);
        let metrics = fs::read(&path).map_err(|e| ModelError::io(&path, e))?;
        Ok(Some((state, metrics)))
    }

    fn explicit(&self, folder: &Path) -> Result<(State, PathBuf)> {
        let wrong = |what: &str| {
            ModelError::input(format!(
                "resume_from_checkpoint: {} {what}; to start from an adapter's weights alone, name its folder in lora_model_dir",
                folder.display()
            ))
        };
        let state = read_state(folder).ok_or_else(|| wrong("is no whole checkpoint of pipe's"))?;
        if state.run != self.run {
            return Err(wrong("was written by a run with another recipe, other data or another base"));
        }
        Ok((state, folder.to_path_buf()))
    }

    fn best(&self, step: u64) -> PathBuf {
        self.folder.join(format!("best-{step:08}.safetensors"))
    }

    /// Removes weights of bests that no checkpoint names.
    fn forget_bests(&self) -> Result<()> {
        let states = self.whole()?;
        let named: Vec<PathBuf> =
            states.iter().filter_map(|(_, folder)| Some(self.best(read_state(folder)?.best?.step))).collect();
        let entries = fs::read_dir(self.folder).map_err(|e| ModelError::io(self.folder, e))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let is_best = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("best-"));
            if is_best && !named.contains(&path) {
                fs::remove_file(&path).map_err(|e| ModelError::io(&path, e))?;
            }
        }
        Ok(())
    }

    /// Whole checkpoints, oldest first.
    fn whole(&self) -> Result<Vec<(u64, PathBuf)>> {
        let entries = match fs::read_dir(self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(ModelError::io(self.folder, error)),
        };
        let mut found: Vec<(u64, PathBuf)> = entries
            .flatten()
            .filter_map(|entry| {
                let step = entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok()?;
                Some((step, entry.path()))
            })
            .collect();
        found.sort();
        Ok(found)
    }
}

fn read_state(folder: &Path) -> Option<State> {
    serde_json::from_slice(&fs::read(folder.join(STATE)).ok()?).ok()
}

fn weights(parameters: &[Parameter]) -> Vec<(String, Tensor)> {
    parameters.iter().map(|p| (p.name.clone(), p.tensor.shallow_clone())).collect()
}

fn restore(parameters: &[Parameter], file: &Path) -> Result<()> {
    let saved: BTreeMap<String, Tensor> = read_tensors(file)?;
    for parameter in parameters {
        let own = saved.get(&parameter.name).filter(|saved| saved.size() == parameter.tensor.size());
        let own = own.ok_or_else(|| {
            ModelError::work(format!("{}: {} is missing; remove this checkpoint", file.display(), parameter.name))
        })?;
        tch::no_grad(|| parameter.tensor.shallow_clone().copy_(own));
    }
    Ok(())
}

fn name(step: u64) -> String {
    format!("step-{step:08}")
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|e| ModelError::io(path, e))
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(ModelError::io(folder, error)),
        _ => Ok(()),
    }
}

fn sync(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| ModelError::io(folder, e))?.flatten() {
        sync_one(&entry.path())?;
    }
    sync_one(folder)
}

fn sync_one(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|e| ModelError::io(path, e))
}
