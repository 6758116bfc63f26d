//! What the base model on this machine says of a recipe: its architecture, its length, its modules and its tokens.
//!
//! Only small files are read, and none that is not there: a remote id is never asked.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pipe_files::{Family, FilesError, Gguf, ModelConfig, ModelFiles, Part, TokenizerInfo};

use super::Facts;
use crate::compile;
use crate::fetch::Need;
use crate::project::is_remote;
use crate::recipe::suggest;
use crate::recipe::values::Targets;
use crate::template::builtin;

pub(super) fn check(facts: &mut Facts<'_>) {
    let Some(model) = base(facts) else { return };
    if facts.sound(&["base_model"]) && has_config(&model) {
        match ModelConfig::read(&model) {
            Ok(config) => {
                length(facts, &config);
                targets(facts, &config);
                whole(facts, &config);
                weights(facts, &model);
            }
            Err(error) if needs_network(facts) => {
                let message = format!("`base_model` cannot be used: {error}");
                facts.error("unsupported-model", "base_model", message, Some("another `base_model`".to_string()));
            }
            Err(_) => {}
        }
    }
    continued(facts);
    let own = local(facts, facts.recipe.tokenizer_config.as_deref(), Need::Tokenizer);
    let key = if own.is_some() { "tokenizer_config" } else { "base_model" };
    match Vocabulary::open(&own.unwrap_or(model)) {
        Ok(vocabulary) => {
            terminators(facts, &vocabulary);
            special_tokens(facts, &vocabulary);
        }
        Err(error) if facts.recipe.datasets.is_some() && facts.sound(&[key, "base_model"]) => {
            let remedy = "a model with its tokenizer files whole".to_string();
            facts.error("unusable-tokenizer", key, error.to_string(), Some(remedy));
        }
        Err(_) => {}
    }
}

fn base(facts: &Facts<'_>) -> Option<PathBuf> {
    let path = compile::base_model(facts.recipe, facts.project)?.path;
    path.exists().then_some(path)
}

fn local(facts: &Facts<'_>, path: Option<&str>, need: Need) -> Option<PathBuf> {
    Some(facts.project.model(path?, None, need)).filter(|path| path.exists())
}

fn has_config(model: &Path) -> bool {
    model.is_file() || model.join("config.json").is_file()
}

/// Whether anything but the tokenizer of the model is used.
fn needs_network(facts: &Facts<'_>) -> bool {
    let recipe = facts.recipe;
    recipe.train != Some(false) || recipe.merge.is_some() || recipe.quantize.is_some() || recipe.eval.is_some()
}

/// A folder's configuration says nothing of its weights; their headers do. What was fetched holds what was needed.
fn weights(facts: &mut Facts<'_>, model: &Path) {
    let fetched = facts.recipe.base_model.as_deref().is_some_and(is_remote);
    if fetched || !model.is_dir() || !needs_network(facts) {
        return;
    }
    if let Err(error) = ModelFiles::open(model) {
        let message = format!("`base_model` has no weights to use: {error}");
        let remedy = "a folder with its .safetensors files whole".to_string();
        facts.error("unsupported-model", "base_model", message, Some(remedy));
    }
}

/// Rotary positions go a little beyond what a model was made for, as Axolotl lets them; not far.
fn length(facts: &mut Facts<'_>, config: &ModelConfig) {
    let most = config.max_positions as u64;
    for (key, asked) in
        [("sequence_len", facts.recipe.sequence_len), ("eval_sequence_len", facts.recipe.eval_sequence_len)]
    {
        let Some(asked) = asked.filter(|asked| *asked > most && facts.sound(&[key])) else { continue };
        let message = format!("`{key}` is {asked}, and the model was made for {most} tokens");
        if asked > 2 * most {
            facts.error("unfit-value", key, message, Some(format!("at most {most}")));
        } else {
            let message = format!("{message}; what lies beyond, it has never seen");
            facts.warning("out-of-range", key, message, Some(format!("{most}")));
        }
    }
}

/// Targets by name match the end of a module's name; a regular expression matches all of it.
fn targets(facts: &mut Facts<'_>, config: &ModelConfig) {
    let recipe = facts.recipe;
    let key = "lora_target_modules";
    if recipe.adapter.is_none() || !facts.sound(&[key]) {
        return;
    }
    let mut names: Vec<String> = config.modules().into_iter().map(|module| module.name).collect();
    names.extend(["lm_head", "model.embed_tokens"].map(str::to_string));
    let mut ends: Vec<String> = Vec::new();
    for end in names.iter().filter_map(|name| name.rsplit('.').next()) {
        if !ends.iter().any(|seen| seen == end) {
            ends.push(end.to_string());
        }
    }
    match &recipe.lora_target_modules {
        Some(Targets::Names(wanted)) => {
            let hits = |target: &str| names.iter().any(|name| name == target || name.ends_with(&format!(".{target}")));
            let any = wanted.iter().any(|target| hits(target));
            for (i, target) in wanted.iter().enumerate().filter(|(_, target)| !hits(target)) {
                let near = suggest::word(target, &ends);
                let message = format!("`{target}` names no module of this model; it has {}", suggest::listed(&ends));
                let at = format!("{key}[{i}]");
                if any && near.is_none() {
                    facts.warning("no-module", &at, message, Some(suggest::listed(&ends)));
                } else {
                    facts.error("no-module", &at, message, Some(near.unwrap_or_else(|| suggest::listed(&ends))));
                }
            }
        }
        Some(Targets::Regex(text)) if text != "all-linear" => {
            // What this engine cannot read (look-around), the one that trains may.
            let Ok(pattern) = regex::Regex::new(&format!("^(?:{text})$")) else { return };
            if !names.iter().any(|name| pattern.is_match(name)) {
                let first = names.first().map_or("", String::as_str);
                let message =
                    format!("`{key}` as a regular expression matches no whole module name, such as `{first}`");
                facts.error("no-module", key, message, Some(format!(".*\\.({})", ends[..ends.len().min(3)].join("|"))));
            }
        }
        _ => {}
    }
}

/// `lora_modules_to_save` names tables as this family does, or as most do.
fn whole(facts: &mut Facts<'_>, config: &ModelConfig) {
    let key = "lora_modules_to_save";
    if facts.recipe.adapter.is_none() || !facts.sound(&[key]) {
        return;
    }
    let family = config.family;
    let own = [Part::Embedding, Part::Head].map(|part| family.in_peft(part).rsplit('.').next().unwrap_or_default());
    for (i, name) in facts.recipe.lora_modules_to_save.iter().flatten().enumerate() {
        // What no family has is told already.
        if family.table(name).is_none() && Family::ALL.iter().any(|family| family.table(name).is_some()) {
            let message = format!("`{name}` is not in this model; {} can be trained whole", own.join(" and "));
            facts.error("no-module", &format!("{key}[{i}]"), message, Some(own.join(", ")));
        }
    }
}

/// `lora_model_dir` goes on with an adapter as it is.
fn continued(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    let Some(folder) = local(facts, recipe.lora_model_dir.as_deref(), Need::Weights) else { return };
    let Ok(text) = std::fs::read_to_string(folder.join("adapter_config.json")) else { return };
    let Ok(config) = serde_json::from_str::<serde_json::Value>(&text) else { return };
    let number = |key: &str| config.get(key).and_then(serde_json::Value::as_f64);
    let pairs = [
        ("lora_r", recipe.lora_r.map(|r| r as f64), number("r")),
        ("lora_alpha", recipe.lora_alpha, number("lora_alpha")),
    ];
    for (key, here, there) in pairs {
        if let (Some(here), Some(there)) = (here, there)
            && here != there
        {
            let why = format!("the adapter was made with {there}, and the recipe says {here}");
            facts.conflict(["lora_model_dir", key], &why, &format!("{key}: {there}"));
        }
    }
}

/// A tokenizer's files, searched for single tokens without reading them whole.
enum Vocabulary {
    Folder(Vec<Vec<u8>>, PathBuf),
    Gguf(Arc<Gguf>, PathBuf),
}

/// What every `tokenizer.json` has.
#[derive(serde::Deserialize)]
struct Whole {
    #[serde(rename = "model")]
    _model: serde::de::IgnoredAny,
}

impl Vocabulary {
    /// Whole as far as can be told without building the tokenizer, which takes a while.
    fn open(path: &Path) -> Result<Vocabulary, FilesError> {
        if path.is_file() && path.extension().is_none_or(|end| end != "json") {
            return Ok(Vocabulary::Gguf(Gguf::open(path)?, path.to_path_buf()));
        }
        let main = pipe_files::tokenizer_json(path)?;
        if let Err(error) = serde_json::from_slice::<Whole>(&main) {
            let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() };
            return Err(FilesError::Tokenizer { path: file, what: format!("its JSON: {error}") });
        }
        let more = ["added_tokens.json", "tokenizer_config.json"];
        let mut files = vec![main];
        files.extend(more.into_iter().filter_map(|name| std::fs::read(path.join(name)).ok()));
        Ok(Vocabulary::Folder(files, path.to_path_buf()))
    }

    fn has(&self, token: &str) -> bool {
        match self {
            Vocabulary::Folder(files, _) => {
                let Ok(quoted) = serde_json::to_string(token) else { return false };
                files.iter().any(|file| memchr::memmem::find(file, quoted.as_bytes()).is_some())
            }
            Vocabulary::Gguf(gguf, _) => {
                let tokens = gguf.get("tokenizer.ggml.tokens").and_then(|value| value.as_array()).unwrap_or(&[]);
                tokens.iter().any(|one| one.as_str() == Some(token))
            }
        }
    }

    /// What ends a text in this vocabulary.
    fn end(&self) -> Option<String> {
        let (Vocabulary::Folder(_, path) | Vocabulary::Gguf(_, path)) = self;
        TokenizerInfo::read(path).ok()?.eos.map(|token| token.text)
    }
}

/// Texts that end a turn in one template or another.
const TERMINATORS: [&str; 10] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eot|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<|END_OF_TURN_TOKEN|>",
    "[|endofturn|]",
    "<|endofturn|>",
    "<|end_of_turn|>",
];

fn terminators(facts: &mut Facts<'_>, vocabulary: &Vocabulary) {
    let recipe = facts.recipe;
    if ["tokens", "added_tokens_overrides"].iter().any(|key| facts.written(key)) {
        return;
    }
    if let Some(tokens) = recipe.eot_tokens.as_ref().filter(|_| facts.sound(&["eot_tokens"])) {
        for (i, token) in tokens.iter().enumerate().filter(|(_, token)| !token.is_empty()) {
            if !vocabulary.has(token) && !defined(facts, token) {
                let message = format!("`{token}` is no token of this model, so it cannot end a turn");
                facts.error("not-a-token", &format!("eot_tokens[{i}]"), message, vocabulary.end());
            }
        }
        return;
    }
    let datasets = recipe.datasets.iter().flatten().enumerate();
    let own = datasets.map(|(i, dataset)| (format!("datasets[{i}].chat_template"), dataset.chat_template.clone()));
    let top = ("chat_template".to_string(), recipe.chat_template.clone());
    let chats = recipe.datasets.iter().flatten().any(|d| d.format().is_some_and(|format| format.uses_chat_template()));
    let written: Vec<(String, Option<String>)> = std::iter::once(top).filter(|_| chats).chain(own).collect();
    for (key, name) in written {
        let Some(text) = name.as_deref().and_then(builtin::text) else { continue };
        let ends: Vec<&str> = TERMINATORS.into_iter().filter(|end| text.contains(end)).collect();
        let [end] = ends[..] else { continue };
        if facts.sound(&[&key]) && !vocabulary.has(end) && !defined(facts, end) {
            let name = name.unwrap_or_default();
            let message = format!(
                "`{name}` ends a turn with `{end}`, which is no token of this model: it would not learn to stop"
            );
            facts.error("not-a-token", &key, message, Some("tokenizer_default".to_string()));
        }
    }
}

/// Whether `special_tokens` brings the token along.
fn defined(facts: &Facts<'_>, token: &str) -> bool {
    let Some(special) = &facts.recipe.special_tokens else { return false };
    let one = [&special.bos_token, &special.eos_token, &special.pad_token, &special.unk_token];
    one.into_iter().flatten().chain(special.additional_special_tokens.iter().flatten()).any(|text| text == token)
}

/// A token that is new needs its embedding trained; padding is never trained.
fn special_tokens(facts: &mut Facts<'_>, vocabulary: &Vocabulary) {
    let recipe = facts.recipe;
    let Some(special) = recipe.special_tokens.as_ref().filter(|_| recipe.adapter.is_some()) else { return };
    if facts.written("lora_modules_to_save") || !facts.sound(&["special_tokens"]) {
        return;
    }
    let mut written: Vec<(String, &String)> = Vec::new();
    for (name, token) in
        [("bos_token", &special.bos_token), ("eos_token", &special.eos_token), ("unk_token", &special.unk_token)]
    {
        written.extend(token.iter().map(|token| (name.to_string(), token)));
    }
    let more = special.additional_special_tokens.iter().flatten().enumerate();
    written.extend(more.map(|(i, token)| (format!("additional_special_tokens[{i}]"), token)));
    for (name, token) in written {
        if !vocabulary.has(token) {
            let message = format!("`{token}` is no token of this model, and an adapter leaves its embedding untrained");
            let remedy = "lora_modules_to_save: [embed_tokens, lm_head]";
            facts.error("not-a-token", &format!("special_tokens.{name}"), message, Some(remedy.to_string()));
        }
    }
}
