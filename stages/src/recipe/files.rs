//! Paths in a recipe: what is missing, and where it would be found.

use super::checks::Facts;
use super::dataset::{Dataset, Role, is_builder};
use super::training::Resume;
use crate::fetch::{Address, HubKind};
use crate::ingest::files;
use crate::project::{Place, is_hub_id};

/// Datasets, models, adapters and templates that are not where the recipe says.
pub(super) fn check(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    let models = [
        ("base_model", &recipe.base_model),
        ("tokenizer_config", &recipe.tokenizer_config),
        ("base_model_config", &recipe.base_model_config),
        ("lora_model_dir", &recipe.lora_model_dir),
    ];
    for (key, path) in models {
        if let Some(path) = path {
            one(facts, key, path, "model");
            let revision = recipe.model_revision.as_deref().filter(|_| key == "base_model");
            address(facts, key, path, HubKind::Model, revision);
        }
    }
    checkpoint(facts);
    if let Some(clean) = &recipe.clean {
        if let Some(path) = &clean.profanity_list {
            one(facts, "clean.profanity_list", path, "list");
        }
        for path in clean.contamination_files.iter().flat_map(|files| &files.0) {
            one(facts, "clean.contamination_files", path, "data");
        }
    }
    merged_and_quantised(facts);
    if let Some(eval) = recipe.eval.as_ref().and_then(|toggle| toggle.on()) {
        for path in eval.general.iter().flat_map(|files| &files.0) {
            one(facts, "eval.general", path, "text");
        }
        for (i, path) in eval.choices.iter().flatten().enumerate().filter_map(|(i, own)| Some((i, own.path.as_ref()?)))
        {
            one(facts, &format!("eval.choices[{i}].path"), path, "file of questions");
        }
    }
    for (list, datasets) in [("datasets", &recipe.datasets), ("test_datasets", &recipe.test_datasets)] {
        for (i, dataset) in datasets.iter().flatten().enumerate() {
            let at = format!("{list}[{i}]");
            let Some(path) = &dataset.path else { continue };
            if is_builder(path) {
                match &dataset.data_files {
                    Some(files) => {
                        for file in &files.0 {
                            one(facts, &format!("{at}.data_files"), file, "data");
                            address(facts, &format!("{at}.data_files"), file, HubKind::Dataset, None);
                        }
                    }
                    None => facts.error(
                        "needs-key",
                        &format!("{at}.path"),
                        format!("`path: {path}` only says how to read; the files are named by `data_files`"),
                        Some("data_files: data.jsonl".to_string()),
                    ),
                }
            } else {
                one(facts, &format!("{at}.path"), path, "data");
                address(facts, &format!("{at}.path"), path, HubKind::Dataset, dataset.revision.as_deref());
            }
            let role = if list == "datasets" { Role::Train } else { Role::Test };
            rows(facts, &at, dataset, role);
        }
    }
}

/// What goes into merged and quantised models besides what is trained.
fn merged_and_quantised(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    let merge = recipe.merge.as_ref().and_then(|toggle| toggle.on());
    for (i, adapter) in merge.iter().flat_map(|section| section.adapters.iter().flatten()).enumerate() {
        match &adapter.path {
            Some(path) => one(facts, &format!("merge.adapters[{i}].path"), path, "adapter"),
            None => {
                let message = "`path` is missing: the folder of the adapter to merge".to_string();
                facts.error(
                    "missing-key",
                    &format!("merge.adapters[{i}].path"),
                    message,
                    Some("path: DIR".to_string()),
                );
            }
        }
    }
    let quantize = recipe.quantize.as_ref().and_then(|toggle| toggle.on());
    let importance = quantize.and_then(|section| section.importance.as_ref()?.on()?.file.as_ref());
    if let Some(path) = importance {
        one(facts, "quantize.importance.file", path, "importance matrix");
    }
}

/// The checkpoint to go on from is always a folder of this machine.
fn checkpoint(facts: &mut Facts<'_>) {
    let Some(Resume::Folder(folder)) = &facts.recipe.resume_from_checkpoint else { return };
    let looked = facts.project.resolve(folder);
    if looked.is_dir() || !facts.sound(&["resume_from_checkpoint"]) {
        return;
    }
    let message = format!(
        "`resume_from_checkpoint`: there is no folder at `{}` (relative paths start at {}); without the key a run goes on \
         from its own newest checkpoint",
        looked.display(),
        facts.project.root.display()
    );
    let near = similar(&looked).map_or("true".to_string(), |name| sibling(folder, &name));
    facts.error("missing-file", "resume_from_checkpoint", message, Some(near));
}

/// Splits, configurations and files of a dataset that is on this machine.
fn rows(facts: &mut Facts<'_>, at: &str, dataset: &Dataset, role: Role) {
    let keys = ["path", "split", "name", "data_files"].map(|key| format!("{at}.{key}"));
    if !facts.sound(&keys.each_ref().map(String::as_str)) {
        return;
    }
    if let Err(wrong) = files::reading(facts.project, dataset, role) {
        let key = format!("{at}.{}", wrong.key);
        facts.error("dataset-files", &key, format!("`{key}`: {}", wrong.message), wrong.suggestion);
    }
}

/// An address that cannot be read as one.
fn address(facts: &mut Facts<'_>, key: &str, path: &str, kind: HubKind, revision: Option<&str>) {
    if let Place::Remote(written) = facts.project.place(path)
        && let Err(why) = Address::parse(&written, kind, revision)
        && facts.sound(&[key])
    {
        let instead = if kind == HubKind::Dataset { "hf://datasets/ORG/NAME" } else { "hf://models/ORG/NAME" };
        facts.error("bad-value", key, format!("`{key}`: {why}"), Some(instead.to_string()));
    }
}

fn one(facts: &mut Facts<'_>, key: &str, path: &str, what: &str) {
    if files::is_pattern(path) && !path.contains("://") {
        return;
    }
    facts.missing(key, path, what);
}

impl Facts<'_> {
    /// Says that nothing is at `path`, if so, and where it would be found.
    pub fn missing(&mut self, key: &str, path: &str, what: &str) {
        if let Place::Missing(looked) = self.project.place(path) {
            missing(self, key, path, what, &looked);
        }
    }
}

fn missing(facts: &mut Facts<'_>, key: &str, path: &str, what: &str, looked: &std::path::Path) {
    // A bare word may be one of the hub's oldest ids, such as gpt2; the hub is never asked here.
    let bare = is_hub_id(&format!("hub/{path}"));
    let hint = facts.project.hint(path);
    let root = facts.project.root.display();
    let mut message = format!("`{key}`: there is no {what} at `{}` (relative paths start at {root})", looked.display());
    if let Some(found) = &hint {
        message.push_str(&format!("; there is one at `{found}`"));
    }
    if bare && hint.is_none() {
        facts.warning("missing-file", key, format!("{message}; it is taken for the id of something on a hub"), None);
    } else {
        let near = hint.or_else(|| similar(looked).map(|name| sibling(path, &name)));
        facts.error("missing-file", key, message, near);
    }
}

/// A file beside the missing one whose name is close.
fn similar(missing: &std::path::Path) -> Option<String> {
    let wanted = missing.file_name()?.to_str()?;
    let names = std::fs::read_dir(missing.parent()?).ok()?.take(1000).flatten();
    names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .map(|name| (strsim::osa_distance(wanted, &name), name))
        .filter(|(distance, _)| *distance <= 3)
        .min()
        .map(|(_, name)| name)
}

fn sibling(path: &str, name: &str) -> String {
    match path.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/{name}"),
        None => name.to_string(),
    }
}
