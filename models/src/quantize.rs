//! Quantising a model folder or GGUF into GGUF files of the wanted kinds.

use pipe_files::{GgufKind, ModelFiles, write_gguf};
use pipe_job::QuantizeJob;

use crate::events::Events;
use crate::{ModelError, Result};

/// Runs the job: one file per kind, each appearing only when whole.
pub fn quantize(job: &QuantizeJob, events: &Events) -> Result<()> {
    let files = ModelFiles::open(&job.model)?;
    let kinds = job.outputs.iter().map(|(name, path)| kind(name).map(|kind| (name, kind, path)));
    for (name, kind, path) in kinds.collect::<Result<Vec<_>>>()? {
        let whole = write_gguf(&files, kind, path, &mut |done, total| {
            events.progress(name, "tensors", done, total);
            !events.is_cancelled()
        })?;
        if !whole {
            return Err(ModelError::Cancelled);
        }
        let bytes = std::fs::metadata(path).map_err(|e| ModelError::io(path, e))?.len();
        events.fact(&format!("{name}_bytes"), bytes as f64);
    }
    Ok(())
}

fn kind(name: &str) -> Result<GgufKind> {
    GgufKind::named(name).ok_or_else(|| {
        let known: Vec<&str> = GgufKind::ALL.iter().map(|(_, name, _)| *name).collect();
        ModelError::input(format!("quantisation type {name:?} is not known; choose one of {}", known.join(", ")))
    })
}
