//! `quantize`: a model as GGUF files of the wanted types, tokenizer and chat template inside.

use pipe_engine::task::{Context, Resources, SourceFile, Summary, Task, TaskError};
use pipe_job::QuantizeJob;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::convert::tokenizer_part;
use crate::model::BaseModel;
use crate::worker::Worker;

/// Keys of the `quantize` section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QuantizeSection {
    /// Types to write, one file each.
    pub types: Option<Vec<QuantType>>,
}

/// A GGUF file type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QuantType {
    F16,
    Bf16,
    Q8_0,
    Q6K,
    Q4KM,
    Q4_0,
    Q4_1,
}

impl QuantType {
    /// The type's name in lower case, as the recipe writes it.
    pub fn name(self) -> &'static str {
        match self {
            QuantType::F16 => "f16",
            QuantType::Bf16 => "bf16",
            QuantType::Q8_0 => "q8_0",
            QuantType::Q6K => "q6_k",
            QuantType::Q4KM => "q4_k_m",
            QuantType::Q4_0 => "q4_0",
            QuantType::Q4_1 => "q4_1",
        }
    }
}

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
        format!("1+{}", pipe_job::NUMERICS)
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
        Resources { cores: usize::MAX, weight: 50, ..Resources::default() }
    }

    fn run(&self, ctx: &Context) -> Result<Summary, TaskError> {
        let model = match ctx.input_opt("model") {
            Some(merged) => merged.to_path_buf(),
            None => {
                self.model.require()?;
                self.model.path.clone()
            }
        };
        let file = |kind: &QuantType| ctx.out().join(format!("model-{}.gguf", kind.name()));
        let outputs = self.types.iter().map(|kind| (kind.name().to_string(), file(kind))).collect();
        let report = self.worker.run(pipe_job::Task::Quantize(Box::new(QuantizeJob { model, outputs })), ctx)?;
        Ok(report.into_summary())
    }
}
