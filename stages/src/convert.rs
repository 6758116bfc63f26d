//! `convert`: what was trained as a folder that others can load, weights in the wanted type, the tokenizer and its chat
//! template beside them: a PEFT adapter with its base model's name, or, where the base's own weights were trained, a Hugging
//! Face model.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use pipe_engine::task::{Context, SourceFile, Summary, Task, TaskError};
use pipe_files::{FolderWriter, ModelFiles, TensorType};
use pipe_job::WeightType;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Serialize;
use serde_json::Value;

use crate::companions::Companions;
use crate::model::BaseModel;

/// Largest shard of a published model.
const SHARD_BYTES: u64 = 5_000_000_000;

/// Publishes an adapter or a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Convert {
    pub dtype: WeightType,
    /// `base_model_name_or_path` of the published `adapter_config.json`.
    pub base_model: String,
    #[serde(rename = "chat_template")]
    pub companions: Companions,
    #[serde(skip)]
    pub model: BaseModel,
}

impl Task for Convert {
    fn stage(&self) -> &'static str {
        "convert"
    }

    fn version(&self) -> String {
        "3".into()
    }

    fn params(&self) -> Value {
        serde_json::to_value(self).unwrap_or(Value::Null)
    }

    fn files(&self) -> Vec<SourceFile> {
        self.companions.files()
    }

    fn run(&self, ctx: &Context) -> Result<Summary, TaskError> {
        if let Some(source) = ctx.input_opt("model") {
            write_model(source, ctx, self.dtype)?;
            self.companions.write(ctx.out())?;
            return Ok(Summary::default());
        }
        self.model.require()?;
        let source = ctx.input("adapter")?;
        write_weights(source, ctx.out(), self.dtype)?;
        write_config(source, ctx.out(), &self.base_model)?;
        self.companions.write(ctx.out())?;
        Ok(Summary::default())
    }
}

/// A trained model, one tensor in memory at a time.
fn write_model(source: &Path, ctx: &Context, dtype: WeightType) -> Result<(), TaskError> {
    let failed = |e: pipe_files::FilesError| TaskError::Failed(e.to_string());
    let files = ModelFiles::open(source).map_err(failed)?;
    let kind = match dtype {
        WeightType::F32 => TensorType::F32,
        WeightType::F16 => TensorType::F16,
        WeightType::Bf16 => TensorType::Bf16,
    };
    let tensors = files.config().tensors();
    let mut writer = FolderWriter::create(ctx.out(), &tensors, kind, SHARD_BYTES).map_err(failed)?;
    let mut values = Vec::new();
    for (done, place) in tensors.iter().enumerate() {
        let name = &place.name;
        ctx.cancel.check()?;
        files.read_f32(name, &mut values).map_err(failed)?;
        files.release(name);
        writer.write(name, &values).map_err(failed)?;
        ctx.progress(done as u64 + 1, tensors.len() as u64, "tensors");
    }
    writer.finish().map_err(failed)?;
    pipe_files::write_config(&files, kind, ctx.out()).map_err(failed)
}

fn write_weights(source: &Path, out: &Path, dtype: WeightType) -> Result<(), TaskError> {
    let path = source.join("adapter_model.safetensors");
    let bytes = std::fs::read(&path).map_err(TaskError::io(format!("reading {}", path.display())))?;
    let broken = |e: safetensors::SafeTensorError| TaskError::Failed(format!("{}: {e}", path.display()));
    let tensors = SafeTensors::deserialize(&bytes).map_err(broken)?;
    let mut data: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for (name, view) in tensors.tensors() {
        let (dtype, converted) = cast(&view, dtype)?;
        data.insert(name, (dtype, view.shape().to_vec(), converted));
    }
    let mut views = BTreeMap::new();
    for (name, (dtype, shape, bytes)) in &data {
        views.insert(name.clone(), TensorView::new(*dtype, shape.clone(), bytes).map_err(broken)?);
    }
    let metadata = Some([("format".to_string(), "pt".to_string())].into());
    safetensors::serialize_to_file(views, metadata, &out.join("adapter_model.safetensors")).map_err(broken)
}

/// Trained adapters are float32; anything else is passed through untouched.
fn cast(view: &TensorView<'_>, dtype: WeightType) -> Result<(Dtype, Vec<u8>), TaskError> {
    if view.dtype() != Dtype::F32 || dtype == WeightType::F32 {
        return Ok((view.dtype(), view.data().to_vec()));
    }
    let floats = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    Ok(match dtype {
        WeightType::F16 => (Dtype::F16, floats.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect()),
        _ => (Dtype::BF16, floats.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect()),
    })
}

fn write_config(source: &Path, out: &Path, base_model: &str) -> Result<(), TaskError> {
    let path = source.join("adapter_config.json");
    let text = std::fs::read_to_string(&path).map_err(TaskError::io(format!("reading {}", path.display())))?;
    let mut config: Value =
        serde_json::from_str(&text).map_err(|e| TaskError::Failed(format!("{}: {e}", path.display())))?;
    config["base_model_name_or_path"] = Value::from(base_model);
    let text = serde_json::to_string_pretty(&config).map_err(|e| TaskError::Failed(e.to_string()))?;
    std::fs::write(out.join("adapter_config.json"), text + "\n").map_err(TaskError::io("writing adapter_config.json"))
}
