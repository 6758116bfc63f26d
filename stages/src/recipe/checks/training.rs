//! Adapters, number formats, batches, optimizer and schedule.

use pipe_engine::problem::Severity;

use super::Facts;
use crate::recipe::OptimizerName;
use crate::recipe::values::{AdapterName, AutoFlag, SchedulerName, Targets};

pub(super) fn check(facts: &mut Facts<'_>) {
    adapter(facts);
    precision(facts);
    batches(facts);
    targets(facts);
    schedule(facts);
    optimizer(facts);
}

/// Optimizers with small state are accepted; what they save is memory, and an adapter's state is small.
fn optimizer(facts: &mut Facts<'_>) {
    use OptimizerName as Name;
    let smaller = [Name::AdamwTorch4bit, Name::AoAdamw4bit, Name::Lion8bit, Name::PagedLion8bit];
    let small = facts.recipe.optimizer.is_some_and(|name| smaller.contains(&name));
    if small && facts.sound(&["optimizer"]) {
        let message = "`optimizer` keeps its state in 32 bits here, which is exact; only memory differs".to_string();
        facts.say(Severity::Notice, "optimizer-state", "optimizer", message, None);
    }
}

fn adapter(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    let (four, eight) = (recipe.load_in_4bit == Some(true), recipe.load_in_8bit == Some(true));
    if four && eight {
        facts.conflict(["load_in_4bit", "load_in_8bit"], "the base is held in one format", "load_in_8bit: false");
    }
    let sound = facts.sound(&["adapter", "load_in_4bit", "load_in_8bit"]);
    match recipe.adapter {
        Some(AdapterName::Qlora) if sound => {
            if eight && !four {
                facts.conflict(["adapter", "load_in_8bit"], "QLoRA holds the base in 4 bits", "load_in_4bit: true");
            } else if !four {
                let key = if recipe.load_in_4bit.is_some() { "load_in_4bit" } else { "adapter" };
                let message = "`adapter: qlora` trains on a 4-bit base, and `load_in_4bit` is not true".to_string();
                facts.error("needs-key", key, message, Some("load_in_4bit: true".to_string()));
            }
        }
        None if sound && recipe.train != Some(false) => {
            for (key, on) in [("load_in_4bit", four), ("load_in_8bit", eight)] {
                if on {
                    let message =
                        format!("`{key}` holds the base in a format that cannot be trained, and there is no `adapter`");
                    let adapter = if key == "load_in_4bit" { "adapter: qlora" } else { "adapter: lora" };
                    facts.error("needs-key", key, message, Some(adapter.to_string()));
                    facts.taint("adapter");
                }
            }
        }
        _ => {}
    }
    if let Some(adapter) = recipe.adapter.filter(|_| recipe.lora_model_dir.is_none()) {
        let name = if adapter == AdapterName::Lora { "lora" } else { "qlora" };
        for (key, missing, value) in
            [("lora_r", recipe.lora_r.is_none(), "16"), ("lora_alpha", recipe.lora_alpha.is_none(), "32")]
        {
            if missing && recipe.train != Some(false) && facts.sound(&[key, "adapter"]) {
                let message =
                    format!("`adapter: {name}` without `{key}` takes PEFT's or Axolotl's default; better say it");
                facts.warning("missing-key", key, message, Some(format!("{key}: {value}")));
            }
        }
    }
    let lora = ["lora_r", "lora_alpha", "lora_target_modules", "lora_target_linear"];
    let written: Vec<&str> = lora.into_iter().filter(|key| facts.written(key)).collect();
    if recipe.adapter.is_none()
        && !written.is_empty()
        && recipe.train != Some(false)
        && facts.sound(&["adapter"])
        && !four
        && !eight
    {
        let message = format!("`{}` has no effect without `adapter`: all weights are trained", written[0]);
        facts.warning("no-effect", written[0], message, Some("adapter: lora".to_string()));
    }
}

fn precision(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    if recipe.bf16 == Some(AutoFlag::On) && recipe.fp16 == Some(true) {
        facts.conflict(["bf16", "fp16"], "arithmetic has one type", "fp16: false");
    }
    if recipe.fp16 == Some(true)
        && recipe.bf16 != Some(AutoFlag::On)
        && facts.sound(&["fp16"])
        && recipe.learning_rate.is_some_and(|lr| lr > 0.01)
    {
        facts.warning(
            "out-of-range",
            "fp16",
            "fp16 overflows easily at this learning rate".to_string(),
            Some("bf16: auto".to_string()),
        );
    }
}

fn batches(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    let keys = ["batch_size", "micro_batch_size", "gradient_accumulation_steps"];
    if recipe.batch_size.is_some() && recipe.gradient_accumulation_steps.is_some() {
        let why = "one follows from the other and `micro_batch_size`";
        facts.conflict(["gradient_accumulation_steps", "batch_size"], why, "keep `gradient_accumulation_steps`");
    } else if let (Some(batch), Some(micro)) = (recipe.batch_size, recipe.micro_batch_size)
        && batch % micro != 0
        && facts.sound(&keys)
    {
        let right = (batch / micro).max(1) * micro;
        let message = format!("`batch_size` {batch} is not a multiple of `micro_batch_size` {micro}");
        facts.error("unfit-value", "batch_size", message, Some(format!("{right}")));
    }
    let written =
        [recipe.batch_size.is_some(), recipe.micro_batch_size.is_some(), recipe.gradient_accumulation_steps.is_some()];
    let trains = recipe.train != Some(false) && !facts.written("rl");
    if trains && written.iter().filter(|is| **is).count() < 2 && facts.sound(&keys) {
        let missing = if written[1] { "gradient_accumulation_steps" } else { "micro_batch_size" };
        let message = "two of `micro_batch_size`, `gradient_accumulation_steps` and `batch_size` must be written";
        facts.error("missing-key", missing, message.to_string(), Some(format!("{missing}: 1")));
    }
    if trains && recipe.learning_rate.is_none() && facts.sound(&["learning_rate"]) {
        let message = "there is no `learning_rate`, and no value suits every recipe".to_string();
        facts.error("missing-key", "learning_rate", message, Some("learning_rate: 2e-4".to_string()));
    }
    if let Some(lr) = recipe.learning_rate
        && lr >= 0.1
        && facts.sound(&["learning_rate"])
    {
        let message = format!("a `learning_rate` of {lr} is far beyond what any recipe uses; is an exponent missing?");
        facts.warning("out-of-range", "learning_rate", message, Some("2e-4".to_string()));
    }
}

fn targets(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    let sound = facts.sound(&["lora_target_modules", "lora_target_linear", "adapter", "lora_target_parameters"]);
    match &recipe.lora_target_modules {
        Some(Targets::Names(names)) if names.is_empty() && recipe.lora_target_linear != Some(true) && sound => {
            facts.error(
                "unfit-value",
                "lora_target_modules",
                "`lora_target_modules` is an empty list".to_string(),
                Some("lora_target_linear: true".to_string()),
            );
        }
        Some(Targets::Regex(text)) if text != "all-linear" && sound => {
            if text.contains(',')
                && text.split(',').all(|name| name.trim().chars().all(|c| c.is_alphanumeric() || "_. ".contains(c)))
            {
                let list = text.split(',').map(str::trim).collect::<Vec<_>>().join(", ");
                let message =
                    format!("`lora_target_modules` as text is one regular expression, and `{text}` looks like a list");
                facts.error("unfit-value", "lora_target_modules", message, Some(format!("[{list}]")));
            } else if let Err((why, remedy)) = balanced(text) {
                let message = format!("`lora_target_modules` is not a regular expression: {why}");
                facts.error("unfit-value", "lora_target_modules", message, Some(remedy));
            }
        }
        None if recipe.adapter.is_some()
            && recipe.lora_target_linear != Some(true)
            && recipe.lora_model_dir.is_none()
            && sound
            && !facts.written("lora_target_parameters") =>
        {
            let message = "neither `lora_target_linear` nor `lora_target_modules` says what to adapt; PEFT's choice for the architecture is used".to_string();
            facts.warning("missing-key", "lora_target_modules", message, Some("lora_target_linear: true".to_string()));
        }
        _ => {}
    }
}

fn schedule(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    let name = recipe.lr_scheduler.unwrap_or(SchedulerName::Cosine);
    let floored = [SchedulerName::Cosine, SchedulerName::CosineWithMinLr, SchedulerName::Rex];
    if recipe.cosine_min_lr_ratio.is_some()
        && !floored.contains(&name)
        && facts.sound(&["cosine_min_lr_ratio", "lr_scheduler"])
    {
        facts.warning(
            "no-effect",
            "cosine_min_lr_ratio",
            "`cosine_min_lr_ratio` has no effect on this `lr_scheduler`".to_string(),
            Some("lr_scheduler: cosine".to_string()),
        );
    }
    let warms = recipe.warmup_steps.unwrap_or(0) > 0 || recipe.warmup_ratio.unwrap_or(0.0) > 0.0;
    if recipe.lr_scheduler == Some(SchedulerName::Constant) && warms && facts.sound(&["lr_scheduler"]) {
        let message = "`lr_scheduler: constant` has no warm-up, and one is asked for".to_string();
        facts.warning("no-effect", "lr_scheduler", message, Some("constant_with_warmup".to_string()));
    }
}

/// The commonest mistakes in a regular expression, with a remedy: brackets that do not pair, a repetition of nothing.
fn balanced(text: &str) -> Result<(), (String, String)> {
    let mut open: Vec<char> = Vec::new();
    let mut escaped = false;
    let mut before = None;
    for (at, c) in text.char_indices() {
        let in_set = open.last() == Some(&'[');
        if escaped {
            escaped = false;
        } else {
            match c {
                '\\' => escaped = true,
                '[' if !in_set => open.push('['),
                ']' if in_set => {
                    open.pop();
                }
                '(' if !in_set => open.push('('),
                ')' if !in_set && open.pop() != Some('(') => {
                    let without = format!("{}{}", &text[..at], &text[at + 1..]);
                    return Err(("a `)` has no `(` before it".to_string(), without));
                }
                '*' | '+' if !in_set && matches!(before, None | Some('(') | Some('|')) => {
                    let why = format!("`{c}` has nothing before it to repeat; to match anything write `.*`");
                    return Err((why, format!("{}.{}", &text[..at], &text[at..])));
                }
                _ => {}
            }
        }
        before = Some(c);
    }
    match (open.last(), escaped) {
        (Some(c), _) => {
            let close = if *c == '[' { ']' } else { ')' };
            Err((format!("a `{c}` is never closed"), format!("{text}{close}")))
        }
        (None, true) => Err(("it ends in `\\`".to_string(), text.trim_end_matches('\\').to_string())),
        (None, false) => Ok(()),
    }
}
