//! How the conversations that a model was trained on were written: digests that travel with its adapter, its folder and its
//! GGUF file. Nothing is hashed here: who trains fills them in, who talks to the model compares them.

use std::path::Path;

use serde_json::{Value as Json, json};

use crate::gguf::{Gguf, Value};
use crate::special::optional_json;
use crate::write_folder::write_json;
use crate::{FilesError, tokenizer};

/// Its file in a folder.
pub(crate) const FILE: &str = "template_fingerprint.json";
const TEMPLATE: &str = "pipe.chat_template.digest";
const TOKENS: &str = "pipe.chat_template.tokens_digest";

/// Two digests, in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateFingerprint {
    /// Of the chat template and the special tokens that it names.
    pub template: String,
    /// Of the token ids that the tokenizer gives the template's own text.
    pub tokens: String,
}

impl TemplateFingerprint {
    /// What a folder or a GGUF file says it was trained with; `None` where it does not say.
    ///
    /// # Errors
    /// A file that is there and cannot be read.
    pub fn read(path: &Path) -> Result<Option<Self>, FilesError> {
        if path.is_dir() {
            let file = optional_json(&path.join(FILE))?;
            let text = |key: &str| file.get(key).and_then(Json::as_str).map(str::to_owned);
            return Ok(both(text("chat_template"), text("tokens")));
        }
        if tokenizer::own_file(path).is_some() {
            return Ok(None);
        }
        let gguf = Gguf::open(path)?;
        let text = |key: &str| gguf.get(key).and_then(Value::as_str).map(str::to_owned);
        Ok(both(text(TEMPLATE), text(TOKENS)))
    }

    /// Puts it into a folder that holds weights or an adapter.
    pub fn write(&self, folder: &Path) -> Result<(), FilesError> {
        write_json(&folder.join(FILE), &json!({ "chat_template": self.template, "tokens": self.tokens }))
    }

    /// As GGUF metadata.
    pub(crate) fn metadata(self) -> [(String, Value); 2] {
        [(TEMPLATE.to_owned(), Value::Str(self.template)), (TOKENS.to_owned(), Value::Str(self.tokens))]
    }
}

fn both(template: Option<String>, tokens: Option<String>) -> Option<TemplateFingerprint> {
    Some(TemplateFingerprint { template: template?, tokens: tokens? })
}
