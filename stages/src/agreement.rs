//! `merge.agreement` and `quantize.agreement`: how far what was made agrees with what it was made of, on held-out rows.
//!
//! A merged model is compared with base and adapter, a quantised one with the model that was quantised: perplexity of both,
//! and how far their logits are apart. Models are passed layer by layer, so this needs no more memory than making them did.
//! The output is `agreement.json`; nothing depends on it.

use pipe_engine::task::{Context, Resources, SourceFile, Summary, Task, TaskError};
use pipe_job::{AgreementJob, BaseWeights, Compute, ModelSource};
use serde_json::{Value, json};

use crate::model::BaseModel;
use crate::quantize::file_name;
use crate::recipe::QuantType;
use crate::worker::Worker;

/// A comparison of models on the same rows (input `packs`).
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    pub of: Compared,
    /// Documents at most.
    pub rows: usize,
    pub compute: Compute,
    /// The split that the rows are from; only told.
    pub split: &'static str,
    pub model: BaseModel,
    pub worker: Worker,
}

/// What is compared with what.
#[derive(Clone, Debug, PartialEq)]
pub enum Compared {
    /// The input `merged` with the base held in `base` and the input `adapter`, or the recipe's own.
    Merged { base: BaseWeights },
    /// The files in the input `quantized` with the input `model`, or the base model.
    Quantised { types: Vec<QuantType>, merged: bool },
}

impl Task for Agreement {
    fn stage(&self) -> &'static str {
        match self.of {
            Compared::Merged { .. } => "merge",
            Compared::Quantised { .. } => "quantize",
        }
    }

    fn version(&self) -> String {
        format!("agreement-1+{}", pipe_job::NUMERICS)
    }

    fn params(&self) -> Value {
        let of = match &self.of {
            Compared::Merged { base } => json!({ "base": base }),
            Compared::Quantised { types, .. } => json!({ "types": types }),
        };
        json!({ "of": of, "rows": self.rows, "compute": self.compute })
    }

    fn files(&self) -> Vec<SourceFile> {
        if matches!(self.of, Compared::Quantised { merged: true, .. }) {
            return Vec::new();
        }
        self.model.weight_sources()
    }

    fn resources(&self) -> Resources {
        Resources { cores: usize::MAX, gpus: 1, weight: 40 }
    }

    fn run(&self, ctx: &Context) -> Result<Summary, TaskError> {
        let whole = |path: &std::path::Path| ModelSource {
            path: path.to_path_buf(),
            adapter: None,
            base: BaseWeights::Dense,
            compute: self.compute,
        };
        let (reference, others) = match &self.of {
            Compared::Merged { base } => {
                self.model.require()?;
                let tuned = self.model.source(ctx.input_opt("adapter"), *base, self.compute);
                (("tuned".to_string(), tuned), vec![("merged".to_string(), whole(ctx.input("merged")?))])
            }
            Compared::Quantised { types, .. } => {
                let model = ctx.input_opt("model");
                if model.is_none() {
                    self.model.require()?;
                }
                let name = if model.is_some() { "merged" } else { "base" };
                let folder = ctx.input("quantized")?;
                let others = types.iter().map(|kind| (kind.name(), whole(&folder.join(file_name(*kind)))));
                ((name.to_string(), whole(model.unwrap_or(&self.model.path))), others.collect())
            }
        };
        let output = ctx.out().join("agreement.json");
        let packs = ctx.input("packs")?.to_path_buf();
        let job = AgreementJob { reference, others, packs, rows: self.rows, output: output.clone() };
        let report = self.worker.run(pipe_job::Task::Agreement(Box::new(job)), ctx)?;
        let bytes = std::fs::read(&output).map_err(TaskError::io("reading the comparison"))?;
        let mut table: Value = serde_json::from_slice(&bytes).map_err(|e| TaskError::Failed(e.to_string()))?;
        table["split"] = self.split.into();
        let mut summary = report.into_summary();
        summary.rows = table.get("rows").and_then(Value::as_u64);
        summary.stats.insert("agreement".to_string(), table);
        Ok(summary)
    }
}
