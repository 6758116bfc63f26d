//! Collecting an importance matrix: the squares of what every linear layer is given, summed over rows, as llama-imatrix does it.

use pipe_files::{Importance, ModelFiles};
use pipe_job::ImportanceJob;
use tch::{Kind, Tensor};

use crate::events::Events;
use crate::layerwise::{Layerwise, documents, segments};
use crate::{ModelError, Result};

/// Sums of squared inputs of a linear layer.
#[derive(Debug, Default)]
pub struct Heard {
    /// By input.
    pub sums: Vec<f64>,
    pub rows: u64,
}

impl Heard {
    /// Adds rows `[rows, inputs]`.
    pub fn add(&mut self, x: &Tensor) {
        let sums =
            tch::no_grad(|| x.to_kind(Kind::Float).square().sum_dim_intlist([0i64].as_slice(), false, Kind::Double));
        let sums: Vec<f64> = Vec::try_from(sums).unwrap_or_default();
        self.sums.resize(sums.len(), 0.0);
        self.sums.iter_mut().zip(sums).for_each(|(own, more)| *own += more);
        self.rows += x.size()[0] as u64;
    }
}

/// Runs the job and writes the file.
///
/// # Errors
/// No rows, and rows of another model's tokens.
pub fn importance(job: &ImportanceJob, events: &Events) -> Result<()> {
    let groups = documents(&job.packs, job.rows)?;
    if groups.is_empty() {
        return Err(ModelError::input("there are no rows to measure the weights' importance on"));
    }
    let places = ModelFiles::open(&job.model.path)?.config().tensors();
    let longest = groups.iter().flat_map(|group| &group.lengths).max().copied().unwrap_or(0);
    let count = groups.iter().map(|group| group.lengths.len()).sum::<usize>();
    let mut found = Importance::new(longest as u32, count as u32);
    let mut model = Layerwise::open(&job.model)?;
    let config = model.decoder.config.clone();
    let segments: Vec<_> = groups.iter().map(segments).collect();
    let listen = &mut |layer: &mut crate::layer::Layer| {
        layer.linears_mut().into_iter().for_each(|linear| linear.heard = Some(Default::default()));
    };
    let note = &mut |mut layer: crate::layer::Layer| {
        for linear in layer.linears_mut() {
            let Some(heard) = linear.take_heard() else { continue };
            let place = places.iter().find(|place| place.is_quantised() && place.module() == linear.name);
            // An expert that was never chosen heard nothing; it still has its place among the others.
            let inputs = linear.shape().1 as usize;
            if let Some(place) = place {
                let sums: Vec<f32> = heard.sums.iter().map(|sum| *sum as f32).collect();
                let sums = if sums.is_empty() { vec![0.0; inputs] } else { sums };
                if sums.iter().any(|sum| !sum.is_finite()) {
                    return Err(ModelError::work(format!(
                        "{} is given infinities; the weights are damaged",
                        linear.name
                    )));
                }
                found.add(&config, place, &sums, heard.rows);
            }
        }
        Ok(())
    };
    let progress = &mut |done, total| events.progress("importance", "layers", done, total);
    model.pass(&segments, listen, note, progress, events)?;
    found.write(&job.output)?;
    events.fact("rows", count as f64);
    Ok(())
}
