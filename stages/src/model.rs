//! A recipe's base model: where it lies and which of its files a node depends on.

use std::path::{Path, PathBuf};

use pipe_engine::task::{SourceFile, TaskError, View};
use pipe_job::{BaseWeights, Compute, ModelSource};

/// The base model a recipe names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseModel {
    /// As the recipe writes it; goes into published adapters, never into a key.
    pub written: String,
    /// Where it is looked for.
    pub path: PathBuf,
    /// `lora_model_dir`: the PEFT adapter to start from, used wherever no adapter was trained before.
    pub adapter: Option<PathBuf>,
}

impl BaseModel {
    /// Every file whose bytes decide the weights and the architecture; empty when the model is not on this machine.
    pub fn weight_sources(&self) -> Vec<SourceFile> {
        let paths = pipe_files::weight_files(&self.path).unwrap_or_default();
        let mut files: Vec<SourceFile> = paths.into_iter().map(|path| whole("model", &self.path, path)).collect();
        if let Some(adapter) = &self.adapter {
            files.extend(adapter_files("adapter", adapter));
        }
        files
    }

    /// The model as the worker is told to load it.
    pub fn source(&self, adapter: Option<&Path>, base: BaseWeights, compute: Compute) -> ModelSource {
        ModelSource {
            path: self.path.clone(),
            adapter: adapter.map(Path::to_path_buf).or(self.adapter.clone()),
            base,
            compute,
        }
    }

    /// An error that says what to do when the model is not on this machine.
    pub fn require(&self) -> Result<(), TaskError> {
        if self.path.exists() {
            return Ok(());
        }
        Err(TaskError::Input(format!(
            "base_model `{}` is not on this machine (looked at {}). Put the model's folder or GGUF file there, or set \
             base_model to where it is",
            self.written,
            self.path.display()
        )))
    }
}

/// The files of a PEFT adapter.
pub fn adapter_files(role: &str, folder: &Path) -> Vec<SourceFile> {
    let parts = ["adapter_config.json", "adapter_model.safetensors"];
    parts.map(|part| whole(role, folder, folder.join(part))).to_vec()
}

/// A source file that enters the key by its name within its folder, so that moving the folder changes nothing.
fn whole(role: &str, folder: &Path, path: PathBuf) -> SourceFile {
    let name = match path.strip_prefix(folder) {
        Ok(rest) if !rest.as_os_str().is_empty() => rest.to_string_lossy().into_owned(),
        // A single file (GGUF): its name is not part of what it holds.
        _ => "weights".to_string(),
    };
    SourceFile { role: format!("{role}/{name}"), path, view: View::Whole }
}
