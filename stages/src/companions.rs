//! What lies beside published weights: the tokenizer, and the chat template that training used, so that whoever loads the
//! folder writes to the model as its training rows did.

use std::path::{Path, PathBuf};

use pipe_engine::task::{SourceFile, TaskError, View};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::template::TemplateSource;

/// Tokenizer and chat template of a published model.
#[derive(Clone, Debug, PartialEq)]
pub struct Companions {
    /// A model folder, a tokenizer folder or a GGUF file.
    pub tokenizer: PathBuf,
    /// Where it is the model's own, or no row needed one, the tokenizer's template stays.
    pub template: TemplateSource,
}

impl Serialize for Companions {
    /// As it enters a key: no paths, the content of files is digested apart.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let template = match &self.template {
            TemplateSource::Text(text) => json!({ "text": text }),
            TemplateSource::File(_) => json!("file"),
            TemplateSource::Model(_) | TemplateSource::Unused => Value::Null,
        };
        template.serialize(serializer)
    }
}

impl Companions {
    pub fn files(&self) -> Vec<SourceFile> {
        let view = View::Part { name: "tokenizer-files", bytes: tokenizer_part };
        let mut files = vec![SourceFile { role: "tokenizer".into(), path: self.tokenizer.clone(), view }];
        if let TemplateSource::File(path) = &self.template {
            files.push(SourceFile { role: "template".into(), path: path.clone(), view: View::Whole });
        }
        files
    }

    /// Writes them into a folder that holds weights and `config.json`.
    pub fn write(&self, folder: &Path) -> Result<(), TaskError> {
        let failed = |e: pipe_files::FilesError| TaskError::Failed(e.to_string());
        pipe_files::write_tokenizer(&self.tokenizer, folder).map_err(failed)?;
        let text = match &self.template {
            TemplateSource::Text(text) => text.clone(),
            TemplateSource::File(path) => {
                std::fs::read_to_string(path).map_err(TaskError::io(format!("reading {}", path.display())))?
            }
            TemplateSource::Model(_) | TemplateSource::Unused => return Ok(()),
        };
        pipe_files::write_chat_template(&text, folder).map_err(failed)
    }
}

/// The bytes of a model's tokenizer, special tokens and chat template, wherever it keeps them.
pub fn tokenizer_part(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = pipe_files::tokenizer_bytes(path).map_err(|e| e.to_string())?;
    bytes.extend(pipe_files::chat_template_bytes(path).map_err(|e| e.to_string())?);
    Ok(bytes)
}
