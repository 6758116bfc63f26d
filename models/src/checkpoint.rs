//! Checkpoints: everything an interrupted run needs to end as if it had not been.
//!
//! A checkpoint is written to a draft folder, flushed to disk and renamed, so a folder with the final name is whole. Random
//! numbers are functions of seed and step, so there is no generator state to keep.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use pipe_job::TrainJob;
use serde::{Deserialize, Serialize};

use crate::adapter;
use crate::decoder::Decoder;
use crate::optimizer::Optimizer;
use crate::random;
use crate::{ModelError, Result};

const STATE: &str = "state.json";
const OPTIMIZER: &str = "optimizer.safetensors";
const METRICS: &str = "metrics.jsonl";
const DRAFT: &str = ".draft-";

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps done.
    pub step: u64,
    /// Whether the evaluation due after this step was made.
    pub evaluated: bool,
    /// Digest of everything that decides the result; another run's checkpoint is not resumed.
    pub run: String,
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
        meaning.save.keep = 0;
        let text = serde_json::to_string(&meaning).unwrap_or_default();
        let run = format!("{:016x}", random::mix(random::name_key(&text), packs));
        Self { folder: &job.checkpoints, run, keep: job.save.keep.max(1) }
    }

    /// Writes a checkpoint after `step` steps and removes the oldest beyond those kept.
    pub fn save(
        &self,
        job: &TrainJob,
        decoder: &Decoder,
        settings: &pipe_job::Lora,
        optimizer: &Optimizer,
        metrics: &[u8],
        progress: (u64, bool),
    ) -> Result<()> {
        let (step, evaluated) = progress;
        let (draft, whole) = (self.folder.join(format!("{DRAFT}{step}")), self.folder.join(name(step)));
        remove(&draft)?;
        fs::create_dir_all(&draft).map_err(|e| ModelError::io(&draft, e))?;
        adapter::save(decoder, settings, &job.model.path, &draft)?;
        adapter::write_tensors(&draft.join(OPTIMIZER), optimizer.state(), &[])?;
        let state = State { step, evaluated, run: self.run.clone() };
        write(&draft.join(STATE), &serde_json::to_vec(&state).unwrap_or_default())?;
        write(&draft.join(METRICS), metrics)?;
        sync(&draft)?;
        remove(&whole)?;
        fs::rename(&draft, &whole).map_err(|e| ModelError::io(&whole, e))?;
        sync_one(self.folder)?;
        for old in self.whole()?.iter().rev().skip(self.keep) {
            remove(&old.1)?;
        }
        Ok(())
    }

    /// Takes up the newest whole checkpoint of this run: restores adapter and optimizer, and returns the state and the
    /// metrics so far. `None` when there is nothing to resume.
    pub fn resume(&self, decoder: &mut Decoder, optimizer: &mut Optimizer) -> Result<Option<(State, Vec<u8>)>> {
        for (_, folder) in self.whole()?.iter().rev() {
            let Some(state) = self.state(folder) else { continue };
            let weights = adapter::read_tensors(&folder.join(adapter::WEIGHTS))?;
            for parameter in adapter::parameters(decoder) {
                let saved = weights.get(&parameter.name).filter(|saved| saved.size() == parameter.tensor.size());
                let saved = saved.ok_or_else(|| {
                    ModelError::work(format!("{}: {} is missing; remove this folder", folder.display(), parameter.name))
                })?;
                tch::no_grad(|| parameter.tensor.shallow_clone().copy_(saved));
            }
            optimizer.restore(state.step, &adapter::read_tensors(&folder.join(OPTIMIZER))?)?;
            let path = folder.join(METRICS);
            let metrics = fs::read(&path).map_err(|e| ModelError::io(&path, e))?;
            return Ok(Some((state, metrics)));
        }
        Ok(None)
    }

    /// Removes this folder's checkpoints: the run they belonged to is complete.
    pub fn clear(&self) -> Result<()> {
        self.whole()?.iter().try_for_each(|(_, folder)| remove(folder))
    }

    fn state(&self, folder: &Path) -> Option<State> {
        let state: State = serde_json::from_slice(&fs::read(folder.join(STATE)).ok()?).ok()?;
        (state.run == self.run).then_some(state)
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
