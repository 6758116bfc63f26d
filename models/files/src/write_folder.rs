//! Writing Hugging Face folders: weights in shards, configuration, tokenizer, chat template.
//!
//! What is written loads in transformers without any trust in this program, also when the source was a GGUF. Equal
//! input gives equal bytes: no times, no paths, no map order.

use std::collections::HashMap;
use std::path::Path;

use rayon::prelude::*;
use serde_json::{Map, Value as Json, json};

use crate::blocks::TensorType;
use crate::encode::encode;
use crate::model::transposed;
use crate::parts::Place;
use crate::shard_writer::{ShardWriter, StoredTensor};
use crate::special::{TokenizerInfo, json_file};
use crate::template_fingerprint::{self, TemplateFingerprint};
use crate::{FilesError, Gguf, ModelFiles, Source, gguf_config, older_tokenizer, tokenizer};

/// Numbers whose bytes are held at one time: the largest tensor is not held twice.
const PIECE: usize = 1 << 22;

/// Writes a folder's weights one tensor at a time, in the order announced.
#[derive(Debug)]
pub struct FolderWriter {
    shards: ShardWriter,
    kind: TensorType,
    /// Names of tensors that are stored as `[inputs, outputs]`, with their inputs.
    turned: HashMap<String, usize>,
    bytes: Vec<u8>,
}

impl FolderWriter {
    /// Plans the shards of `tensors` in `kind` (F32, F16 or Bf16). A shard holds at most `max_bytes`
    /// unless a single tensor is larger.
    pub fn create(folder: &Path, tensors: &[Place], kind: TensorType, max_bytes: u64) -> Result<Self, FilesError> {
        let stored = tensors.iter().map(|place| StoredTensor::of(place, kind)).collect();
        let turned = tensors.iter().filter(|place| place.transposed);
        let turned = turned.map(|place| (place.name.clone(), place.stored_shape()[0])).collect();
        Ok(Self { shards: ShardWriter::create(folder, stored, max_bytes)?, kind, turned, bytes: Vec::new() })
    }

    /// Writes the next tensor, in the network's orientation; `name` and length must be the announced ones.
    pub fn write(&mut self, name: &str, values: &[f32]) -> Result<(), FilesError> {
        let turned = self.turned.get(name).map(|inputs| transposed(values, *inputs));
        let values = turned.as_deref().unwrap_or(values);
        self.shards.expect(name, self.kind.bytes(values.len()))?;
        for piece in values.chunks(PIECE).chain(values.is_empty().then_some(values)) {
            floats(self.kind, piece, &mut self.bytes);
            self.shards.write_piece(name, &self.bytes)?;
        }
        Ok(())
    }

    /// Writes the index where there are several shards.
    pub fn finish(self) -> Result<(), FilesError> {
        self.shards.finish()
    }
}

impl StoredTensor {
    /// A network's tensor in one of the floating-point types.
    pub fn of(place: &Place, kind: TensorType) -> Self {
        let dtype = match kind {
            TensorType::F16 => "F16",
            TensorType::Bf16 => "BF16",
            _ => "F32",
        };
        let bytes = kind.bytes(place.shape.iter().product());
        Self { name: place.name.clone(), dtype, shape: place.stored_shape(), bytes }
    }
}

/// The bytes of `values` in a floating-point type.
pub fn floats(kind: TensorType, values: &[f32], bytes: &mut Vec<u8>) {
    let step = 1 << 16;
    bytes.resize(kind.bytes(values.len()), 0);
    let pairs = bytes.par_chunks_mut(kind.bytes(step)).zip(values.par_chunks(step));
    pairs.for_each(|(d, s)| encode(kind, s, None, d));
}

/// Writes `config.json` and `generation_config.json` for weights stored as `kind`: the source's own with the type
/// changed, or written anew from a GGUF.
pub fn write_config(source: &ModelFiles, kind: TensorType, folder: &Path) -> Result<(), FilesError> {
    std::fs::create_dir_all(folder).map_err(FilesError::write(folder))?;
    let dtype = match kind {
        TensorType::F16 => "float16",
        TensorType::Bf16 => "bfloat16",
        _ => "float32",
    };
    let mut config = match source.source() {
        Source::Folder => json_file(&source.path().join("config.json"))?,
        Source::Gguf(gguf) => Json::Object(gguf_config::folder_config(gguf)?),
    };
    if let Some(object) = config.as_object_mut() {
        object.shift_remove("quantization_config");
        let key = if object.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        object.insert(key.to_owned(), json!(dtype));
    }
    write_json(&folder.join("config.json"), &config)?;
    let (own, out) = (source.path().join("generation_config.json"), folder.join("generation_config.json"));
    if own.is_file() {
        return std::fs::copy(&own, &out).map(|_| ()).map_err(FilesError::write(&out));
    }
    let mut generation = json!({"_from_model_config": true});
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        if let Some(value) = config.get(key).filter(|v| !v.is_null()) {
            generation[key] = value.clone();
        }
    }
    write_json(&out, &generation)
}

/// Writes a model's tokenizer files into `folder`: a folder's own files as they are, or the same set built from a GGUF.
pub fn write_tokenizer(source: &Path, folder: &Path) -> Result<(), FilesError> {
    std::fs::create_dir_all(folder).map_err(FilesError::write(folder))?;
    if source.is_dir() {
        return copy_tokenizer(source, folder);
    }
    if source.extension().is_some_and(|extension| extension == "json") {
        let bytes = std::fs::read(source).map_err(FilesError::read(source))?;
        return write(&folder.join("tokenizer.json"), &bytes);
    }
    let gguf = Gguf::open(source)?;
    let info = TokenizerInfo::from_gguf(&gguf)?;
    let text = tokenizer::describe(&gguf)?.to_string();
    write(&folder.join("tokenizer.json"), text.as_bytes())?;
    let mut map = Map::new();
    for (key, token) in
        [("bos_token", &info.bos), ("eos_token", &info.eos), ("pad_token", &info.pad), ("unk_token", &info.unk)]
    {
        if let Some(token) = token {
            map.insert(key.to_owned(), json!(token.text));
        }
    }
    write_json(&folder.join("special_tokens_map.json"), &Json::Object(map.clone()))?;
    let mut config = map;
    config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
    config.insert("add_bos_token".to_owned(), json!(info.add_bos));
    if let Some(length) = gguf.arch("context_length").and_then(crate::Value::as_i64) {
        config.insert("model_max_length".to_owned(), json!(length));
    }
    if let Some(template) = &info.chat_template {
        config.insert("chat_template".to_owned(), json!(template));
        write(&folder.join("chat_template.jinja"), template.as_bytes())?;
    }
    if let Some(fingerprint) = TemplateFingerprint::read(source)? {
        fingerprint.write(folder)?;
    }
    write_json(&folder.join("tokenizer_config.json"), &Json::Object(config))
}

/// Makes `text` (Jinja) the chat template of a folder that holds a tokenizer, in each place where loaders look for one.
pub fn write_chat_template(text: &str, folder: &Path) -> Result<(), FilesError> {
    write(&folder.join("chat_template.jinja"), text.as_bytes())?;
    let older = folder.join("chat_template.json");
    if older.is_file() {
        write_json(&older, &json!({ "chat_template": text }))?;
    }
    set(&folder.join("tokenizer_config.json"), &[("chat_template", text)])
}

/// Gives a folder that holds a tokenizer other special tokens: pairs of a key such as `eos_token` and a text.
pub fn write_special_tokens(tokens: &[(&str, &str)], folder: &Path) -> Result<(), FilesError> {
    let map = folder.join("special_tokens_map.json");
    if map.is_file() {
        set(&map, tokens)?;
    }
    set(&folder.join("tokenizer_config.json"), tokens)
}

/// Sets keys of a JSON object in a file, which is made where it is not there.
fn set(path: &Path, pairs: &[(&str, &str)]) -> Result<(), FilesError> {
    let mut object: Map<String, Json> = match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| FilesError::damaged(path, e.to_string()))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Map::new(),
        Err(e) => return Err(FilesError::read(path)(e)),
    };
    object.extend(pairs.iter().map(|(key, text)| ((*key).to_owned(), json!(text))));
    write_json(path, &Json::Object(object))
}

fn copy_tokenizer(source: &Path, folder: &Path) -> Result<(), FilesError> {
    const FILES: [&str; 12] = [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "tokenizer.model",
        "spm.model",
        "tiktoken.model",
        "vocab.json",
        "merges.txt",
        template_fingerprint::FILE,
    ];
    for name in FILES {
        let (from, to) = (source.join(name), folder.join(name));
        if from.is_file() {
            // Content only: a copy must not inherit a read-only cache's permissions.
            let bytes = std::fs::read(&from).map_err(FilesError::read(&from))?;
            write(&to, &bytes)?;
        }
    }
    let whole = source.join("tokenizer.json");
    match if whole.is_file() { None } else { older_tokenizer::describe(source)? } {
        // Loaders that cannot read the older files read this one.
        Some(description) => write(&folder.join("tokenizer.json"), description.to_string().as_bytes()),
        None => Ok(()),
    }
}

pub(crate) fn write_json(path: &Path, value: &Json) -> Result<(), FilesError> {
    write(path, format!("{value:#}\n").as_bytes())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), FilesError> {
    std::fs::write(path, bytes).map_err(FilesError::write(path))
}
