//! `quantize`: a model as GGUF files of the wanted types, or as folders in bitsandbytes' layout, tokenizer and chat template
//! inside.

use pipe_engine::task::{Context, Resources, SourceFile, Summary, Task, TaskError};
use pipe_job::QuantizeJob;
use serde_json::{Value, json};

use crate::companions::tokenizer_part;
use crate::model::BaseModel;
use crate::recipe::QuantType;
use crate::worker::Worker;

/// Quantises the merged model, or the base model where nothing was merged.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantize {
    pub types: Vec<QuantType>,
    /// Read when there is no `model` input.
    pub model: BaseModel,
    pub merged: bool,
    pub worker: Worker,
}

impl Task for Quantize {
    fn stage(&self) -> &'static str {
        "quantize"
    }

    fn version(&self) -> String {
        format!("4+{}", pipe_job::NUMERICS)
    }

    fn params(&self) -> Value {
        json!({ "types": self.types.iter().map(|t| t.name()).collect::<Vec<_>>() })
    }

    fn files(&self) -> Vec<SourceFile> {
        if self.merged {
            return Vec::new();
        }
        let mut files = self.model.weight_sources();
        files.push(SourceFile {
            role: "tokenizer".into(),
            path: self.model.path.clone(),
            view: pipe_engine::task::View::Part { name: "tokenizer-files", bytes: tokenizer_part },
        });
        files
    }

    fn resources(&self) -> Resources {
        Resources { cores: usize::MAX, gpus: 1, weight: 50 }
    }

    fn run(&self, ctx: &Context) -> Result<Summary, TaskError> {
        let model = match ctx.input_opt("model") {
            Some(merged) => merged.to_path_buf(),
            None => {
                self.model.require()?;
                self.model.path.clone()
            }
        };
        let file = |kind: &QuantType| {
            let end = if kind.is_gguf() { ".gguf" } else { "" };
            ctx.out().join(format!("model-{}{end}", kind.name()))
        };
        let outputs = self.types.iter().map(|kind| (kind.name(), file(kind))).collect();
        let report = self.worker.run(pipe_job::Task::Quantize(Box::new(QuantizeJob { model, outputs })), ctx)?;
        Ok(report.into_summary())
    }
}
