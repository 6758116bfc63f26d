//! The keys of one entry of `datasets` or `test_datasets`.

use std::collections::HashMap;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Recipe;
use super::format::Format;
use super::values::{DatasetType, FileKind, OneOrMany, TrainOn};
use crate::fetch::{Address, HubKind};
use crate::project::is_hub_id;

/// One source of rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Dataset {
    /// A file, a folder, a pattern of files, an address (`hf://`, `s3://`, `gs://`, `az://`, `https://`), a Hugging Face dataset id, or a
    /// builder name (`json`, `csv`, `parquet`, `arrow`, `text`) beside `data_files`.
    #[schemars(regex(pattern = r"\S"))]
    pub path: Option<String>,
    /// Row format by name, or a map of columns and prompt formats.
    #[serde(rename = "type")]
    #[schemars(extend("examples" = ["alpaca", "chat_template"]))]
    pub kind: Option<DatasetType>,
    /// Name in node names (`ingest.LABEL`); by default the file stem or the last part of the id.
    #[schemars(regex(pattern = "^[A-Za-z0-9_][A-Za-z0-9_.-]*$"))]
    pub label: Option<String>,
    /// Configuration of a hub dataset.
    pub name: Option<String>,
    /// Split to read, with slices: `train`, `train[:10%]`, `train[100:200]+test`.
    #[schemars(extend("default" = "train"))]
    pub split: Option<String>,
    /// Files to read inside `path`, or from the project root beside a builder name.
    pub data_files: Option<OneOrMany>,
    /// File type, when the extension does not tell.
    pub ds_type: Option<FileKind>,
    /// Revision of a hub dataset: branch, tag or commit.
    pub revision: Option<String>,
    /// Column that holds the text of `completion` rows.
    #[schemars(extend("default" = "text"))]
    pub field: Option<String>,
    /// Column of the human's turn in one-turn formats.
    pub field_human: Option<String>,
    /// Column of the model's turn in one-turn formats.
    pub field_model: Option<String>,
    /// Column that holds the conversation.
    #[schemars(extend("default" = "messages"))]
    pub field_messages: Option<String>,
    /// Column that holds the tools offered to the model.
    #[schemars(extend("default" = "tools"))]
    pub field_tools: Option<String>,
    /// Column that holds a system prompt, injected as the first turn.
    #[schemars(extend("default" = "system"))]
    pub field_system: Option<String>,
    /// Message property that holds the reasoning text.
    pub field_thinking: Option<String>,
    /// Name under which the template reads the reasoning text.
    #[schemars(extend("default" = "reasoning_content"))]
    pub template_thinking_key: Option<String>,
    /// Message property that holds the role; older spelling of `message_property_mappings.role`.
    pub message_field_role: Option<String>,
    /// Message property that holds the text; older spelling of `message_property_mappings.content`.
    pub message_field_content: Option<String>,
    /// Template property to the message property that holds it, such as `role: from`.
    pub message_property_mappings: Option<IndexMap<String, String>>,
    /// Message property that says whether this turn is trained.
    pub message_field_training: Option<String>,
    /// Message property that lists character ranges to train.
    pub message_field_training_detail: Option<String>,
    /// Cut think tags out of assistant text into the reasoning property.
    #[schemars(extend("default" = false))]
    pub split_thinking: Option<bool>,
    /// Target role to the source names that mean it.
    pub roles: Option<IndexMap<String, Vec<String>>>,
    /// Roles whose turns are trained.
    #[schemars(extend("default" = ["assistant"]))]
    pub roles_to_train: Option<Vec<String>>,
    /// Which end-of-sequence tokens are trained.
    #[schemars(extend("default" = "turn"))]
    pub train_on_eos: Option<TrainOn>,
    /// Which end-of-turn tokens are trained; as `train_on_eos` by default.
    pub train_on_eot: Option<TrainOn>,
    /// Train the prompt as well, for this dataset only.
    pub train_on_inputs: Option<bool>,
    /// Leave out a leading system turn.
    #[schemars(extend("default" = false))]
    pub drop_system_message: Option<bool>,
    /// Chat template for this dataset only.
    pub chat_template: Option<String>,
    /// Text or file of the template when `chat_template` is `jinja`.
    pub chat_template_jinja: Option<String>,
    /// Extra variables for the template.
    pub chat_template_kwargs: Option<IndexMap<String, serde_json::Value>>,
    /// Cut the rows into this many parts, dealt out one by one, and take one part.
    #[schemars(range(min = 1))]
    pub shards: Option<u64>,
    /// Which part to take, from 0.
    pub shards_idx: Option<u64>,
    /// Share of the rows to take, chosen by a seeded digest: 0.5 takes half, before anything is held out. Above 1, training
    /// rows repeat: 2.5 takes each twice, and half of them once more.
    #[schemars(extend("exclusiveMinimum" = 0), extend("default" = 1.0))]
    pub weight: Option<f64>,
    /// At most this many rows, chosen by content.
    #[schemars(range(min = 1))]
    pub max_rows: Option<u64>,
}

/// `type:` as a map: which columns hold what, and how prompts are put together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UserDefined {
    /// Text of the system prompt when a row has none.
    pub system_prompt: Option<String>,
    /// How the system prompt is written; `{system}` stands for it.
    pub system_format: Option<String>,
    /// Column of the system prompt.
    pub field_system: Option<String>,
    /// Column of the instruction.
    pub field_instruction: Option<String>,
    /// Column of the input.
    pub field_input: Option<String>,
    /// Column of the answer.
    pub field_output: Option<String>,
    /// Prompt with an input; `{instruction}` and `{input}` stand for the columns.
    pub format: Option<String>,
    /// Prompt without an input.
    pub no_input_format: Option<String>,
}

/// Where a dataset stands in the recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Under `datasets`.
    Train,
    /// Under `test_datasets`.
    Test,
}

/// A dataset with its label, unique in the recipe.
#[derive(Clone, Debug, PartialEq)]
pub struct Source<'a> {
    pub label: String,
    pub role: Role,
    pub dataset: &'a Dataset,
}

impl Dataset {
    /// The format by name; `None` for a user-defined map. A dataset without `type` is already tokenised.
    pub fn format(&self) -> Option<Format> {
        match &self.kind {
            Some(DatasetType::Named(format)) => Some(*format),
            Some(DatasetType::UserDefined(_)) => None,
            None => Some(Format::pretokenized()),
        }
    }

    /// Template property to message property, with the older `message_field_*` keys folded in.
    pub fn property_mappings(&self) -> IndexMap<String, String> {
        let mut all = self.message_property_mappings.clone().unwrap_or_default();
        let older = [("role", &self.message_field_role), ("content", &self.message_field_content)];
        for (target, source) in older {
            if let Some(source) = source {
                all.entry(target.to_string()).or_insert_with(|| source.clone());
            }
        }
        for target in ["role", "content"] {
            all.entry(target.to_string()).or_insert_with(|| target.to_string());
        }
        all
    }

    fn base_label(&self) -> String {
        if let Some(label) = &self.label {
            return label.clone();
        }
        let path = match (&self.path, &self.data_files) {
            (Some(path), Some(files)) if is_builder(path) => files.0.first().unwrap_or(path),
            (Some(path), _) => path,
            (None, _) => return "data".to_string(),
        };
        stem(path)
    }
}

impl Recipe {
    /// Every dataset, training ones first, with labels made unique by `-2`, `-3`.
    pub fn sources(&self) -> Vec<Source<'_>> {
        let train = self.datasets.iter().flatten().map(|dataset| (Role::Train, dataset));
        let test = self.test_datasets.iter().flatten().map(|dataset| (Role::Test, dataset));
        let mut seen: HashMap<String, usize> = HashMap::new();
        let mut sources: Vec<Source<'_>> = Vec::new();
        for (role, dataset) in train.chain(test) {
            let base = dataset.base_label();
            let mut label = base.clone();
            while sources.iter().any(|source| source.label == label) {
                let n = seen.entry(base.clone()).or_insert(1);
                *n += 1;
                label = format!("{base}-{n}");
            }
            sources.push(Source { label, role, dataset });
        }
        sources
    }
}

/// Names that stand for a reader instead of a place; the files are then under `data_files`.
pub fn is_builder(path: &str) -> bool {
    matches!(path, "json" | "csv" | "parquet" | "arrow" | "text" | "markdown")
}

fn stem(path: &str) -> String {
    // A revision is no part of a name.
    let hub = (path.starts_with("hf://") || is_hub_id(path)).then(|| Address::parse(path, HubKind::Dataset, None).ok());
    let named = hub.flatten().map(|address| address.name());
    let path = named.as_deref().unwrap_or(path);
    let path = path.split(['?', '#']).next().unwrap_or(path).trim_end_matches(['/', '\\']);
    let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
    let packed = [".gz", ".zst", ".xz", ".bz2"].iter().find_map(|ext| name.strip_suffix(ext)).unwrap_or(name);
    let kinds = [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".text", ".md"];
    let bare = kinds.iter().find_map(|ext| packed.strip_suffix(ext)).unwrap_or(packed);
    let clean: String =
        bare.chars().map(|c| if c.is_ascii_alphanumeric() || "_-.".contains(c) { c } else { '_' }).collect();
    let clean = clean.trim_start_matches(['.', '-']);
    if clean.is_empty() { "data".to_string() } else { clean.to_string() }
}
