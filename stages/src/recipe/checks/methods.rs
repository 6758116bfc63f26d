//! What is trained: adapters and their starts, or some of the base's own weights.

use super::Facts;
use crate::recipe::{AdapterName, InitLoraWeights, Recipe, SchedulerName, suggest};

pub(super) fn check(facts: &mut Facts<'_>) {
    if facts.recipe.train == Some(false) {
        return;
    }
    starts(facts);
    parts(facts);
    whole(facts);
    rates(facts);
}

fn quantised(recipe: &Recipe) -> Option<&'static str> {
    match (recipe.load_in_4bit, recipe.load_in_8bit, recipe.adapter) {
        (Some(true), ..) | (None, _, Some(AdapterName::Qlora)) => Some("load_in_4bit"),
        (_, Some(true), _) => Some("load_in_8bit"),
        _ => None,
    }
}

fn starts(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    let key = "peft_init_lora_weights";
    if !facts.sound(&[key, "lora_r"]) {
        return;
    }
    match recipe.peft_init_lora_weights {
        Some(InitLoraWeights::Orthogonal) if recipe.lora_r.is_some_and(|r| r % 2 != 0) => {
            let r = recipe.lora_r.unwrap_or(0);
            let message = format!("`peft_init_lora_weights: orthogonal` needs an even rank, and `lora_r` is {r}");
            facts.error("unfit-value", key, message, Some(format!("lora_r: {}", r + 1)));
        }
        Some(InitLoraWeights::Pissa(_)) => {
            if let Some(other) = quantised(recipe) {
                let why = "PiSSA takes the adapter's start out of the base's weights, which are quantised";
                facts.conflict([other, key], why, "peft_init_lora_weights: loftq");
            }
        }
        _ => {}
    }
    let loftq = recipe.peft.as_ref().is_some_and(|peft| peft.loftq_config.is_some());
    if loftq && recipe.load_in_8bit == Some(true) {
        facts.conflict(["load_in_8bit", "peft"], "LoftQ makes up for a 4-bit base", "load_in_4bit: true");
    }
}

fn parts(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    let named = recipe.unfrozen_parameters.as_ref().is_some_and(|list| !list.is_empty());
    let remedy = "lora_modules_to_save, which names what is trained whole beside an adapter";
    if recipe.adapter.is_some() && named && facts.sound(&["adapter", "unfrozen_parameters"]) {
        // Axolotl's own examples write both, to keep parts frozen that an adapter leaves frozen anyway.
        let message = "`unfrozen_parameters` has no effect beside `adapter`: only the adapter is trained".to_string();
        facts.warning("no-effect", "unfrozen_parameters", message, Some(remedy.to_string()));
    }
    if recipe.adapter.is_some() && recipe.unfrozen_layers.is_some() {
        facts.conflict(["adapter", "unfrozen_layers"], "an adapter leaves the base's own weights frozen", remedy);
    }
    let lora = [
        "lora_modules_to_save",
        "lora_rank_pattern",
        "lora_alpha_pattern",
        "peft_init_lora_weights",
        "peft",
        "loraplus_lr_ratio",
    ];
    let written = lora.into_iter().find(|key| facts.written(key));
    if let Some(key) = written.filter(|_| recipe.adapter.is_none() && facts.sound(&["adapter"])) {
        let message = format!("`{key}` has no effect without `adapter`");
        facts.warning("no-effect", key, message, Some("adapter: lora".to_string()));
    }
}

fn rates(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    if recipe.loraplus_lr_embedding.is_some() && recipe.loraplus_lr_ratio.is_none() {
        let message = "`loraplus_lr_embedding` has no effect without `loraplus_lr_ratio`".to_string();
        facts.warning("no-effect", "loraplus_lr_embedding", message, Some("loraplus_lr_ratio: 16".to_string()));
    }
    if recipe.cosine_constant_lr_ratio.is_some() && recipe.cosine_min_lr_ratio.unwrap_or(0.0) == 0.0 {
        let message = "`cosine_constant_lr_ratio` has no effect without `cosine_min_lr_ratio`".to_string();
        facts.warning("no-effect", "cosine_constant_lr_ratio", message, Some("cosine_min_lr_ratio: 0.1".to_string()));
    }
    let cosine = recipe.lr_scheduler.unwrap_or(SchedulerName::Cosine) == SchedulerName::Cosine;
    if recipe.lr_quadratic_warmup == Some(true) && !cosine {
        let message = "`lr_quadratic_warmup` has no effect on this `lr_scheduler`".to_string();
        facts.warning("no-effect", "lr_quadratic_warmup", message, Some("lr_scheduler: cosine".to_string()));
    }
    let numbers = recipe.lr_scheduler_kwargs.clone().unwrap_or_default();
    let floor = numbers.min_lr.is_some() || numbers.min_lr_rate.is_some() || recipe.cosine_min_lr_ratio.is_some();
    if recipe.lr_scheduler == Some(SchedulerName::CosineWithMinLr) && !floor {
        let message = "`lr_scheduler: cosine_with_min_lr` needs its floor".to_string();
        facts.error(
            "needs-key",
            "lr_scheduler_kwargs",
            message,
            Some("lr_scheduler_kwargs: {min_lr_rate: 0.1}".to_string()),
        );
    }
}

/// Names in `lora_modules_to_save` end a module's name, as in PEFT; which names a model has is checked with its configuration.
fn whole(facts: &mut Facts<'_>) {
    let key = "lora_modules_to_save";
    if facts.recipe.adapter.is_none() || !facts.sound(&[key]) {
        return;
    }
    for (i, name) in facts.recipe.lora_modules_to_save.iter().flatten().enumerate() {
        if pipe_files::Family::ALL.iter().any(|family| family.table(name).is_some()) {
            continue;
        }
        let near = suggest::word(name, &["embed_tokens".to_string(), "lm_head".to_string()]);
        let message = format!("`{name}` cannot be trained whole beside an adapter; embed_tokens and lm_head can");
        let remedy = near.unwrap_or_else(|| "embed_tokens, lm_head".to_string());
        facts.error("no-module", &format!("{key}[{i}]"), message, Some(remedy));
    }
}
