//! Datasets, splits, templates and packing.

use super::Facts;
use crate::project::Place;
use crate::recipe::dataset::Dataset;
use crate::recipe::format::Reads;
use crate::recipe::values::DatasetType;
use crate::recipe::{known, suggest};
use crate::template::builtin;
use crate::template::prompts::PromptStyle;

pub(super) fn check(facts: &mut Facts<'_>) {
    presence(facts);
    splits(facts);
    packing(facts);
    template(facts);
    let recipe = facts.recipe;
    for (list, datasets) in [("datasets", &recipe.datasets), ("test_datasets", &recipe.test_datasets)] {
        for (i, dataset) in datasets.iter().flatten().enumerate() {
            one(facts, dataset, &format!("{list}[{i}]"));
        }
    }
}

fn presence(facts: &mut Facts<'_>) {
    let other = ["datasets", "test_datasets", "pretraining_dataset", "streaming"];
    let recipe = facts.recipe;
    let train = recipe.datasets.as_ref().is_some_and(|list| !list.is_empty());
    let test = recipe.test_datasets.as_ref().is_some_and(|list| !list.is_empty());
    let after = recipe.merge.as_ref().is_some_and(|toggle| toggle.on().is_some())
        || recipe.quantize.as_ref().is_some_and(|toggle| toggle.on().is_some());
    let enough = train || ((test || after) && recipe.train == Some(false));
    if !enough && facts.sound(&other) {
        let message = if recipe.datasets.is_some() {
            "`datasets` is an empty list, and there is nothing to train on"
        } else {
            "there are no `datasets`, and there is nothing to train on"
        };
        facts.error(
            "missing-key",
            "datasets",
            message.to_string(),
            Some("datasets: [{path: data.jsonl, type: alpaca}]".to_string()),
        );
    }
    if recipe.base_model.is_none() && facts.sound(&["base_model"]) {
        let message = "there is no `base_model`, and its tokenizer and weights are needed".to_string();
        facts.error("missing-key", "base_model", message, Some("base_model: org/name or a folder".to_string()));
    }
}

fn splits(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    let section = recipe.split.clone().unwrap_or_default();
    let alias = recipe.val_set_size.is_some_and(|size| size > 0.0);
    if let (Some(size), Some(val)) = (recipe.val_set_size, section.val)
        && size != val
    {
        facts.conflict(["val_set_size", "split.val"], "they mean the same and differ", "keep one, such as `split.val`");
    }
    let tests = recipe.test_datasets.as_ref().is_some_and(|list| !list.is_empty());
    if tests && alias {
        let why = "the rows to evaluate on are either given or taken from the training rows";
        facts.conflict(["test_datasets", "val_set_size"], why, "split.val, which may stand beside test_datasets");
    }
    let (val, test) = (section.val.or(recipe.val_set_size).unwrap_or(0.0), section.test.unwrap_or(0.0));
    if (0.0..1.0).contains(&val)
        && (0.0..1.0).contains(&test)
        && val + test >= 1.0
        && facts.sound(&["split", "split.val", "split.test", "val_set_size"])
    {
        let key = if section.val.is_some() { "split.val" } else { "val_set_size" };
        let message = format!("validation ({val}) and test ({test}) together leave no rows to train on");
        facts.error("unfit-value", key, message, Some("shares that add up to less than 1".to_string()));
    }
    if val == 1.0 && facts.sound(&["split.val", "val_set_size"]) {
        let key = if section.val.is_some() { "split.val" } else { "val_set_size" };
        facts.warning(
            "ambiguous-share",
            key,
            format!("`{key}: 1` is a count, and holds out one row; Axolotl reads it as all rows"),
            Some("a share below 1, or a count above 1".to_string()),
        );
    }
}

fn packing(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    let packed = recipe.sample_packing == Some(true);
    if recipe.group_by_length == Some(true) {
        if packed {
            facts.conflict(
                ["sample_packing", "group_by_length"],
                "packs are all of one length",
                "group_by_length: false",
            );
        }
        if recipe.curriculum_sampling == Some(true) {
            let why = "rows are trained in the order of the data, or by length";
            facts.conflict(["curriculum_sampling", "group_by_length"], why, "group_by_length: false");
        }
    }
    if recipe.eval_sample_packing == Some(true)
        && recipe.sample_packing == Some(false)
        && facts.sound(&["sample_packing", "eval_sample_packing"])
    {
        facts.warning(
            "packing",
            "eval_sample_packing",
            "evaluation is packed and training is not; losses are the same either way".to_string(),
            None,
        );
    }
    if let (Some(least), Some(most)) = (recipe.min_sample_len, recipe.sequence_len.or(Some(512)))
        && least > most
        && facts.sound(&["min_sample_len", "sequence_len"])
    {
        let message = format!("`min_sample_len` is {least} and `sequence_len` {most}: every row would be dropped");
        facts.error("unfit-value", "min_sample_len", message, Some("2".to_string()));
    }
    if recipe.curriculum_sampling == Some(true) && recipe.shuffle_merged_datasets == Some(true) {
        let why = "rows are trained in the order of the data, or mixed";
        facts.conflict(["curriculum_sampling", "shuffle_merged_datasets"], why, "shuffle_merged_datasets: false");
    }
}

fn template(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    jinja(facts, "chat_template", recipe.chat_template.as_deref(), recipe.chat_template_jinja.as_deref());
}

fn jinja(facts: &mut Facts<'_>, key: &str, template: Option<&str>, text: Option<&str>) {
    if let Some(name) = template.filter(|name| !matches!(*name, "jinja" | "tokenizer_default")) {
        named_template(facts, key, name);
    }
    let other = format!("{key}_jinja");
    if template == Some("jinja") && text.is_none() && facts.sound(&[key, &other]) {
        let message = format!("`{key}: jinja` needs the template under `{other}`");
        facts.error("needs-key", key, message, Some(other));
    }
}

/// A template is built in, a file, or a model's folder.
fn named_template(facts: &mut Facts<'_>, key: &str, name: &str) {
    let builtin_name = name.strip_prefix("tokenizer_default_fallback_").unwrap_or(name);
    if builtin::text(builtin_name).is_some() || !facts.sound(&[key]) {
        return;
    }
    let path_like = builtin_name == name && (name.contains('/') || name.ends_with(".jinja"));
    match facts.project.place(name) {
        Place::Local(_) | Place::Remote(_) => {}
        Place::Missing(_) if path_like => {
            facts.missing(key, name, "template");
        }
        Place::Missing(_) => {
            if let Some(known) = known::value("chat_template", builtin_name) {
                let message = format!("`{key}: {name}` is known from Axolotl and not supported here: {}", known.why);
                facts.error("unserved", key, message, Some(known.instead.to_string()));
                return;
            }
            let mut names: Vec<String> = builtin::names().map(str::to_string).collect();
            names.extend(["jinja", "tokenizer_default"].map(str::to_string));
            let near = suggest::word(builtin_name, &names);
            let message = match &near {
                Some(near) => format!("`{key}` does not take `{name}`; did you mean `{near}`?"),
                None => format!("`{key}`: no template `{name}` is built in, and there is no such file"),
            };
            facts.error("unfit-value", key, message, Some(near.unwrap_or_else(|| suggest::listed(&names))));
        }
    }
}

fn one(facts: &mut Facts<'_>, dataset: &Dataset, at: &str) {
    let key = |name: &str| format!("{at}.{name}");
    if !facts.sound(&[at]) {
        return;
    }
    if dataset.path.is_none() && facts.sound(&[&key("path")]) {
        facts.error("missing-key", &key("path"), format!("`{at}` has no `path`"), Some("path".to_string()));
    }
    if dataset.kind.is_none() && facts.sound(&[&key("type")]) && !facts.written("rl") {
        let message = format!("`{at}` has no `type`, so its rows must be tokenised already (input_ids, labels)");
        facts.warning("missing-key", &key("type"), message, Some("type: alpaca".to_string()));
    }
    jinja(facts, &key("chat_template"), dataset.chat_template.as_deref(), dataset.chat_template_jinja.as_deref());
    mappings(facts, dataset, at);
    names(facts, dataset, at);
    shards(facts, dataset, at);
    columns(facts, dataset, at);
    if let Some(DatasetType::UserDefined(map)) = &dataset.kind
        && let Err(why) = PromptStyle::user_defined(map)
        && facts.sound(&[&key("type")])
    {
        facts.error("unfit-value", &key("type"), format!("`{at}.type`: {why}"), None);
    }
    if let Some(DatasetType::UserDefined(map)) = &dataset.kind
        && map.field_output.is_none()
        && facts.sound(&[&key("type.field_output")])
    {
        let message = format!("`{at}.type` names no `field_output`; the column `output` is read");
        facts.warning("missing-key", &key("type"), message, Some("field_output".to_string()));
    }
}

/// The older spelling and the newer one of the same column must agree.
fn mappings(facts: &mut Facts<'_>, dataset: &Dataset, at: &str) {
    let Some(map) = &dataset.message_property_mappings else { return };
    for (target, older, name) in [
        ("role", &dataset.message_field_role, "message_field_role"),
        ("content", &dataset.message_field_content, "message_field_content"),
    ] {
        if let (Some(new), Some(old)) = (map.get(target), older)
            && new != old
        {
            let keys = [format!("{at}.message_property_mappings"), format!("{at}.{name}")];
            facts.conflict(
                [&keys[0], &keys[1]],
                "they name different columns for the same thing",
                "message_property_mappings",
            );
        }
    }
}

/// Properties of a message that templates read, and roles; any other name may be right, but not one that is nearly one of these.
const PROPERTIES: [&str; 9] =
    ["role", "content", "reasoning_content", "tool_calls", "tool_call_id", "tools", "name", "thinking", "weight"];
const ROLES: [&str; 7] = ["system", "user", "assistant", "tool", "developer", "function", "ipython"];

/// Misspelt properties under `message_property_mappings`, and misspelt roles.
fn names(facts: &mut Facts<'_>, dataset: &Dataset, at: &str) {
    let key = format!("{at}.message_property_mappings");
    for name in dataset.message_property_mappings.iter().flat_map(|map| map.keys()) {
        if let Some(near) = misspelt(name, &PROPERTIES) {
            let message = format!("`{key}` maps `{name}`, which no template reads; did you mean `{near}`?");
            facts.error("unfit-value", &format!("{key}.{name}"), message, Some(near));
        }
    }
    let own: Vec<&str> = dataset.roles.iter().flat_map(|roles| roles.keys()).map(String::as_str).collect();
    for name in own.iter().copied() {
        if let Some(near) = misspelt(name, &ROLES) {
            let message = format!("`{at}.roles` names `{name}`, which no template knows; did you mean `{near}`?");
            facts.error("unfit-value", &format!("{at}.roles.{name}"), message, Some(near));
        }
    }
    for (i, name) in
        dataset.roles_to_train.iter().flatten().enumerate().filter(|(_, name)| !own.contains(&name.as_str()))
    {
        let known: Vec<&str> = ROLES.into_iter().chain(own.iter().copied()).collect();
        if let Some(near) = misspelt(name, &known) {
            let message = format!("`{at}.roles_to_train` names `{name}`, which is no role; did you mean `{near}`?");
            facts.error("unfit-value", &format!("{at}.roles_to_train[{i}]"), message, Some(near));
        }
    }
}

/// The known name that `name` nearly is.
fn misspelt(name: &str, known: &[&str]) -> Option<String> {
    let known: Vec<String> = known.iter().map(|one| one.to_string()).collect();
    suggest::word(name, &known).filter(|near| near != name)
}

fn shards(facts: &mut Facts<'_>, dataset: &Dataset, at: &str) {
    let (count, index) = (format!("{at}.shards"), format!("{at}.shards_idx"));
    match (dataset.shards, dataset.shards_idx) {
        (Some(shards), Some(i)) if i >= shards && facts.sound(&[&count, &index]) => {
            let message = format!("`{index}` is {i}, and of {shards} shards the last is {}", shards - 1);
            facts.error("unfit-value", &index, message, Some(format!("{}", shards - 1)));
        }
        (None, Some(_)) if facts.sound(&[&count]) => {
            facts.error("needs-key", &index, format!("`{index}` needs `shards`"), Some("shards".to_string()));
        }
        _ => {}
    }
}

/// Keys that only a conversation has, on formats that have none.
fn columns(facts: &mut Facts<'_>, dataset: &Dataset, at: &str) {
    let Some(format) = dataset.format().filter(|format| !format.uses_chat_template()) else { return };
    if dataset.kind.is_none() {
        return;
    }
    let chat = [
        ("field_messages", dataset.field_messages.is_some()),
        ("message_property_mappings", dataset.message_property_mappings.is_some()),
        ("roles_to_train", dataset.roles_to_train.is_some()),
        ("train_on_eos", dataset.train_on_eos.is_some()),
        ("chat_template", dataset.chat_template.is_some()),
    ];
    for (name, _) in chat.iter().filter(|(_, written)| *written) {
        let message = format!("`{name}` has no effect on rows of type `{}`, which are no conversations", format.name());
        facts.warning("no-effect", &format!("{at}.{name}"), message, Some("type: chat_template".to_string()));
    }
    if format.reads() != Reads::Text && dataset.field.is_some() {
        let message = format!("`field` has no effect on rows of type `{}`", format.name());
        facts.warning("no-effect", &format!("{at}.field"), message, Some("type: completion".to_string()));
    }
}
