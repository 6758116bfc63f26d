//! LLaMA-Factory's data sets by name: `dataset_info.json` says where rows are and which columns hold what.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::Style;
use crate::import::ImportError;
use crate::import::draft::Draft;

/// Where that tool keeps the files of its own small data sets.
const OWN: &str = "https://raw.githubusercontent.com/hiyouga/LLaMA-Factory/main/data";

/// The list of data sets beside a configuration, if there is one.
pub(super) struct Catalogue {
    /// The folders above the configuration, nearest first.
    above: Vec<PathBuf>,
    folder: Option<PathBuf>,
    sets: Map<String, Value>,
}

impl Catalogue {
    /// Looks for `dataset_dir/dataset_info.json` from the configuration's folder upwards: that tool is started from the top
    /// of its repository, wherever the configuration lies.
    pub fn near(config: &Path, dataset_dir: &str) -> Catalogue {
        let absolute = std::path::absolute(config).unwrap_or_else(|_| config.to_path_buf());
        let above: Vec<PathBuf> = absolute.ancestors().skip(1).map(Path::to_path_buf).collect();
        for folder in &above {
            let data = folder.join(dataset_dir);
            let listed = std::fs::read_to_string(data.join("dataset_info.json")).ok();
            if let Some(Ok(Value::Object(sets))) = listed.map(|text| serde_json::from_str(&text)) {
                return Catalogue { folder: Some(data), sets, above };
            }
        }
        Catalogue { folder: None, sets: Map::new(), above }
    }

    /// The recipe's entries for a name: one, or several for v1's YAML lists of data sets.
    ///
    /// # Errors
    /// When the rows are of an objective that recipes do not have.
    pub fn entries(
        &self,
        name: &str,
        style: &Style,
        most: Option<u64>,
        draft: &mut Draft,
    ) -> Result<Vec<Value>, ImportError> {
        let bare =
            |path: &str| Map::from_iter([("path".to_string(), json!(path)), ("type".to_string(), style.rows.clone())]);
        let mut entries = match self.sets.get(name) {
            Some(Value::Object(set)) => vec![self.listed(name, set, style, draft)],
            _ if name.ends_with(".yaml") || name.ends_with(".yml") => match self.list(name) {
                Some(sets) => self.of_list(&sets, style, draft)?,
                None => {
                    draft.lose(
                        format!("train_dataset: {name}"),
                        "the list was not found; name its files under `datasets`",
                    );
                    vec![bare(name)]
                }
            },
            // A folder, a file or a hub id stands for itself.
            _ if name.contains('/') => vec![bare(name)],
            _ => vec![self.unlisted(name, style, draft)],
        };
        for entry in &mut entries {
            if let Some(most) = most
                && !entry.contains_key("max_rows")
            {
                entry.insert("max_rows".to_string(), json!(most));
            }
        }
        Ok(entries.into_iter().map(Value::Object).collect())
    }

    /// v1's list of data sets, relative to any folder above the configuration.
    fn list(&self, name: &str) -> Option<Map<String, Value>> {
        let texts = self.above.iter().filter_map(|folder| std::fs::read_to_string(folder.join(name)).ok());
        texts.filter_map(|text| serde_yaml::from_str(&text).ok()).next()
    }

    fn of_list(
        &self,
        sets: &Map<String, Value>,
        style: &Style,
        draft: &mut Draft,
    ) -> Result<Vec<Map<String, Value>>, ImportError> {
        let mut entries = Vec::new();
        for (name, set) in sets {
            let text = |key: &str| set.get(key).and_then(Value::as_str);
            let converter = text("converter").unwrap_or("alpaca");
            if converter == "pair" {
                let what = format!("`{name}` holds preferences, and recipes train on text");
                return Err(ImportError::foreign(what, "name data sets with one answer to a row"));
            }
            let path = text("path").unwrap_or_default();
            // The listing's own form, so that columns are read in one place.
            let mut listed = Map::new();
            if text("source") == Some("local") {
                listed.insert("file_name".to_string(), json!(path.rsplit('/').next().unwrap_or(path)));
            } else {
                listed.insert("hf_hub_url".to_string(), json!(path));
                listed.extend(text("split").map(|split| ("split".to_string(), json!(split))));
            }
            if let Some(size) = set.get("size").or(set.get("num_samples")) {
                listed.insert("num_samples".to_string(), size.clone());
            }
            if converter == "sharegpt" {
                listed.insert("formatting".to_string(), json!("sharegpt"));
            }
            entries.push(self.listed(name, &listed, style, draft));
        }
        Ok(entries)
    }

    fn listed(&self, name: &str, set: &Map<String, Value>, style: &Style, draft: &mut Draft) -> Map<String, Value> {
        let text = |key: &str| set.get(key).and_then(Value::as_str);
        let mut entry = Map::new();
        if let Some(id) = text("hf_hub_url") {
            entry.insert("path".to_string(), json!(id));
            for (theirs, ours) in [("subset", "name"), ("split", "split")] {
                if let Some(value) = text(theirs) {
                    entry.insert(ours.to_string(), json!(value));
                }
            }
        } else if let Some(file) = text("file_name") {
            let local = self.folder.as_ref().map(|folder| folder.join(file)).filter(|path| path.exists());
            let path = local.map_or_else(|| format!("{OWN}/{file}"), |path| path.display().to_string());
            entry.insert("path".to_string(), json!(path));
            entry.insert("ds_type".to_string(), json!(if file.ends_with(".jsonl") { "jsonl" } else { "json" }));
        } else {
            draft.lose(format!("dataset: {name}"), "it is neither a file nor on the Hugging Face hub");
            entry.insert("path".to_string(), json!(name));
        }
        if let Some(most) = set.get("num_samples").filter(|n| n.is_u64()) {
            entry.insert("max_rows".to_string(), most.clone());
        }
        if set.get("ranking").and_then(Value::as_bool) == Some(true) {
            draft.lose(format!("dataset: {name} (ranking)"), "it holds preferences; give rows with one answer instead");
        }
        columns(name, set, style, &mut entry, draft);
        entry
    }

    /// Without its list, a name can only be one of the tool's own files.
    fn unlisted(&self, name: &str, style: &Style, draft: &mut Draft) -> Map<String, Value> {
        let why = match self.folder {
            Some(_) => "its dataset_info.json has no such name; correct the path",
            None => {
                "there is no dataset_info.json near the file; the path is where LLaMA-Factory keeps its own data sets"
            }
        };
        draft.lose(format!("dataset: {name} (columns)"), why);
        let path = format!("{OWN}/{name}.json");
        let mut entry = Map::from_iter([("path".to_string(), json!(path)), ("ds_type".to_string(), json!("json"))]);
        entry.insert("type".to_string(), style.rows.clone());
        entry.insert("label".to_string(), json!(name));
        if style.pretraining {
            entry.insert("field".to_string(), json!("text"));
        }
        entry
    }
}

/// Which columns and turns hold what.
fn columns(name: &str, set: &Map<String, Value>, style: &Style, entry: &mut Map<String, Value>, draft: &mut Draft) {
    let column = |key: &str| set.get("columns").and_then(|columns| columns.get(key)).and_then(Value::as_str);
    entry.insert("label".to_string(), json!(name));
    for media in ["images", "videos", "audios"] {
        if column(media).is_some() {
            draft.lose(format!("dataset: {name} ({media})"), "only text is trained here");
        }
    }
    if style.pretraining {
        entry.insert("type".to_string(), json!("completion"));
        entry.insert("field".to_string(), json!(column("prompt").unwrap_or("instruction")));
        return;
    }
    if matches!(set.get("formatting").and_then(Value::as_str), Some("sharegpt" | "openai")) {
        conversation(set, entry);
        if style.chat_template.is_none() {
            draft.lose(format!("dataset: {name} (template)"), "conversations are rendered by a chat template");
        }
        return;
    }
    let usual = [("prompt", "instruction"), ("query", "input"), ("response", "output"), ("system", "system")];
    let own: Vec<_> = usual.iter().filter_map(|(key, usual)| Some((*usual, column(key)?))).collect();
    entry.insert("type".to_string(), style.rows.clone());
    if own.iter().all(|(usual, named)| usual == named) {
        return;
    }
    // Columns of other names are only mapped by the user-defined type, which has a prompt instead of a chat template.
    if let Value::Object(prompt) = &style.rows {
        let mut kind = prompt.clone();
        kind.extend(own.iter().map(|(usual, named)| (format!("field_{usual}"), json!(named))));
        entry.insert("type".to_string(), Value::Object(kind));
    } else {
        let told: Vec<String> = own.iter().map(|(usual, named)| format!("{named} -> {usual}")).collect();
        draft.lose(format!("dataset: {name} (columns {})", told.join(", ")), "rename the columns in the data");
    }
}

fn conversation(set: &Map<String, Value>, entry: &mut Map<String, Value>) {
    let openai = set.get("formatting").and_then(Value::as_str) == Some("openai");
    let named = |group: &str, key: &str, usual: &str| {
        let found = set.get(group).and_then(|group| group.get(key)).and_then(Value::as_str);
        found.unwrap_or(usual).to_string()
    };
    let usual = if openai {
        ["messages", "role", "content", "user", "assistant"]
    } else {
        ["conversations", "from", "value", "human", "gpt"]
    };
    entry.insert("type".to_string(), json!("chat_template"));
    entry.insert("field_messages".to_string(), json!(named("columns", "messages", usual[0])));
    let mappings =
        json!({"role": named("tags", "role_tag", usual[1]), "content": named("tags", "content_tag", usual[2])});
    entry.insert("message_property_mappings".to_string(), mappings);
    let roles = json!({
        "user": [named("tags", "user_tag", usual[3])],
        "assistant": [named("tags", "assistant_tag", usual[4]), named("tags", "function_tag", "function_call")],
        "tool": [named("tags", "observation_tag", if openai { "tool" } else { "observation" })],
        "system": [named("tags", "system_tag", "system")],
    });
    entry.insert("roles".to_string(), roles);
    for (theirs, ours) in [("system", "field_system"), ("tools", "field_tools")] {
        let column = set.get("columns").and_then(|columns| columns.get(theirs)).and_then(Value::as_str);
        if let Some(column) = column.filter(|column| *column != theirs) {
            entry.insert(ours.to_string(), json!(column));
        }
    }
}
