//! Quantising a model folder or GGUF into GGUF files and bitsandbytes folders of the wanted kinds.

use std::path::Path;

use pipe_files::{GgufKind, Importance, ModelFiles, write_gguf};
use pipe_job::QuantizeJob;

use crate::bitsandbytes::{self, Saved};
use crate::events::Events;
use crate::{ModelError, Result};

/// Runs the job: one file or folder per kind; a file appears only when whole.
pub fn quantize(job: &QuantizeJob, events: &Events) -> Result<()> {
    let files = ModelFiles::open(&job.model)?;
    let importance = job.importance.as_deref().map(Importance::read).transpose()?;
    let ways = job.outputs.iter().map(|(name, path)| Ok((name, way(name)?, path)));
    for (name, way, path) in ways.collect::<Result<Vec<_>>>()? {
        match way {
            Way::Gguf(kind) => {
                let whole = write_gguf(&files, kind, importance.as_ref(), path, &mut |done, total| {
                    events.progress(name, "tensors", done, total);
                    !events.is_cancelled()
                })?;
                if !whole {
                    return Err(ModelError::Cancelled);
                }
            }
            Way::Folder(saved) => bitsandbytes::write(&files, saved, name, path, events)?,
        }
        events.fact(&format!("{name}_bytes"), size(path)? as f64);
    }
    Ok(())
}

/// What is written: a GGUF file, or a folder in bitsandbytes' layout.
enum Way {
    Gguf(GgufKind),
    Folder(Saved),
}

fn way(name: &str) -> Result<Way> {
    match Saved::named(name) {
        Some(saved) => Ok(Way::Folder(saved)),
        None => kind(name).map(Way::Gguf),
    }
}

/// Bytes of a file, or of a folder's files.
fn size(path: &Path) -> Result<u64> {
    let failed = |e| ModelError::io(path, e);
    let found = std::fs::metadata(path).map_err(failed)?;
    if found.is_file() {
        return Ok(found.len());
    }
    std::fs::read_dir(path).map_err(failed)?.try_fold(0, |sum, entry| {
        let found = entry.and_then(|entry| entry.metadata()).map_err(failed)?;
        Ok(sum + found.len())
    })
}

fn kind(name: &str) -> Result<GgufKind> {
    GgufKind::named(name).ok_or_else(|| {
        let known: Vec<&str> = GgufKind::ALL.iter().map(|(_, name, _)| *name).chain(["nf4", "int8"]).collect();
        ModelError::input(format!("quantisation type {name:?} is not known; choose one of {}", known.join(", ")))
    })
}
