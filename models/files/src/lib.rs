//! Model files as they lie on disk: Hugging Face folders, safetensors, GGUF and their tokenizers.
//!
//! Everything downstream sees one naming scheme (Hugging Face's) and one row order, whatever the source. This crate
//! reads and writes bytes; it does no arithmetic on models, starts no process and must never depend on libtorch.

mod bitsandbytes;
mod blocks;
mod bpe;
mod config;
mod encode;
mod encode_k;
mod encoder;
mod error;
mod families;
mod fields;
mod fingerprint;
mod fits;
mod gguf;
mod gguf_config;
mod gguf_names;
mod gguf_tokenizer;
mod importance;
mod kquants;
mod mapped;
mod mixture;
mod model;
mod older_tokenizer;
mod parts;
mod peft;
mod peft_experts;
mod resident;
mod rope;
mod shard_writer;
mod shards;
mod special;
mod targets;
mod template_fingerprint;
mod tokenizer;
mod write_folder;
mod write_gguf;

pub use blocks::{IQ4_NL, TensorType};
pub use bpe::{Scratch, Token};
pub use config::{Activation, Dropout, Experts, LayerKind, ModelConfig, NormStyle, Scales};
pub use encoder::{Encoder, SpecialText};
pub use error::FilesError;
pub use families::{Family, GgufNames};
pub use fingerprint::{chat_template_bytes, tokenizer_bytes, weight_files};
pub use gguf::{Gguf, Value};
pub use importance::Importance;
pub use mixture::GgufKind;
pub use model::{ModelFiles, Source};
pub use parts::{Module, Part, Place, QkNorm, QkvLayout};
pub use peft::{PeftAdapter, PeftConfig, PeftModule, PeftTargets, PeftTensor};
pub use resident::release_code;
pub use rope::{Rope, RopeScaling};
pub use shard_writer::{ShardWriter, StoredTensor};
pub use special::{SpecialToken, TemplateTexts, TokenizerInfo, tokenizer_info};
pub use targets::{Exceptions, Selector, Unmatched, WeightPattern, is_named};
pub use template_fingerprint::TemplateFingerprint;
pub use tokenizer::{tokenizer, tokenizer_json};
pub use tokenizers::Tokenizer;
pub use write_folder::{
    FolderWriter, floats, write_chat_template, write_config, write_special_tokens, write_tokenizer,
};
pub use write_gguf::write_gguf;
