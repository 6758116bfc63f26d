//! What lies beside published weights: the tokenizer, the chat template and the special tokens that training used, and their
//! fingerprint, so that whoever loads the folder writes to the model as its training rows did, or is told that he does not.

use std::path::{Path, PathBuf};

use pipe_engine::task::{SourceFile, TaskError, View};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::fingerprint;
use crate::template::TemplateSource;
use crate::template::render::SpecialTexts;

/// Tokenizer and chat template of a published model.
#[derive(Clone, Debug, PartialEq)]
pub struct Companions {
    /// A model folder, a tokenizer folder or a GGUF file.
    pub tokenizer: PathBuf,
    /// Where it is the model's own, or no row needed one, the tokenizer's template stays.
    pub template: TemplateSource,
    /// Special tokens that the recipe gives the tokenizer.
    pub special: SpecialTexts,
}

impl Serialize for Companions {
    /// As it enters a key: no paths, the content of files is digested apart.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let template = match &self.template {
            TemplateSource::Text(text) => json!({ "text": text }),
            TemplateSource::File(_) => json!("file"),
            TemplateSource::Model(_) => json!("model"),
            TemplateSource::Unused => Value::Null,
        };
        match self.special_tokens().as_slice() {
            [] => template.serialize(serializer),
            special => json!({ "template": template, "special": special }).serialize(serializer),
        }
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
        let special = self.special_tokens();
        if !special.is_empty() {
            pipe_files::write_special_tokens(&special, folder).map_err(failed)?;
        }
        let text = match &self.template {
            TemplateSource::Text(text) => Some(text.clone()),
            TemplateSource::File(path) => {
                Some(std::fs::read_to_string(path).map_err(TaskError::io(format!("reading {}", path.display())))?)
            }
            TemplateSource::Model(_) => None,
            // No conversation was trained on: what the base model's were written with still holds.
            TemplateSource::Unused => return Ok(()),
        };
        if let Some(text) = text {
            pipe_files::write_chat_template(&text, folder).map_err(failed)?;
        }
        match fingerprint::of_folder(folder).map_err(failed)? {
            Some(fingerprint) => fingerprint.write(folder).map_err(failed),
            None => Ok(()),
        }
    }

    /// Those of the recipe, under the tokenizer's keys.
    fn special_tokens(&self) -> Vec<(&str, &str)> {
        let own = &self.special;
        let all = [("bos_token", &own.bos), ("eos_token", &own.eos), ("pad_token", &own.pad), ("unk_token", &own.unk)];
        all.into_iter().filter(|(_, text)| !text.is_empty()).map(|(key, text)| (key, text.as_str())).collect()
    }
}

/// The bytes of a model's tokenizer, special tokens and chat template, wherever it keeps them.
pub fn tokenizer_part(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = pipe_files::tokenizer_bytes(path).map_err(|e| e.to_string())?;
    bytes.extend(pipe_files::chat_template_bytes(path).map_err(|e| e.to_string())?);
    if let Some(fingerprint) = pipe_files::TemplateFingerprint::read(path).map_err(|e| e.to_string())? {
        bytes.extend(format!("{fingerprint:?}").bytes());
    }
    Ok(bytes)
}
