//! The one shape that every data format becomes at ingest and keeps until it is rendered.
//!
//! A row of data is an [`Example`], stored as one JSON text per row with key order kept, because chat templates can see
//! the order and any extra keys of a message.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One training example, before any template.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "shape", rename_all = "snake_case")]
pub enum Example {
    /// A conversation. Each message has `role`, usually `content`, and whatever else the template reads
    /// (`tool_calls`, `name`, `reasoning_content`, ...); training flags sit under `train` and `train_detail`.
    Chat {
        messages: Vec<Map<String, Value>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tools: Option<Value>,
    },
    /// Instruction, optional input and answer, rendered by a prompt style instead of a chat template.
    Instruct {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        system: Option<String>,
        instruction: String,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        input: String,
        output: String,
    },
    /// Plain text, all of it trained.
    Completion { text: String },
    /// Pieces of text, each trained or not, joined without anything between.
    Segments { segments: Vec<Segment> },
    /// Already tokenised; labels are -100 where masked.
    Tokens { input_ids: Vec<i64>, labels: Vec<i64> },
}

/// A piece of an `input_output` row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    pub label: bool,
    pub text: String,
}
