//! Keys that have a meaning, and that no stage serves yet: said here, so that none is dropped in silence.

use super::Facts;
use pipe_engine::problem::Severity;

use crate::recipe::{OptimizerName, QuantType};

pub(super) fn check(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    if recipe.report.is_some() {
        say(facts, "report", "there is no report page yet", "no report section");
    }
    optimizer(facts);
    evaluation(facts);
    let types =
        recipe.quantize.iter().filter_map(|toggle| toggle.on()).flat_map(|section| section.types.iter().flatten());
    if types.clone().any(|kind| matches!(kind, QuantType::Nf4 | QuantType::Int8)) {
        say(facts, "quantize.types", "bitsandbytes' formats are not written yet", "a GGUF type such as q4_k_m");
    }
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

fn evaluation(facts: &mut Facts<'_>) {
    let Some(section) = facts.recipe.eval.as_ref().and_then(|toggle| toggle.on()) else { return };
    let (every, rows) = (section.sample_every.is_some(), section.max_rows.is_some());
    if every {
        say(facts, "eval.sample_every", "samples are answered after training only", "samples without sample_every");
    }
    if rows {
        say(facts, "eval.max_rows", "all rows of a split are answered", "a smaller split.test");
    }
}

fn say(facts: &mut Facts<'_>, key: &str, why: &str, instead: &str) {
    let within =
        |other: &str| other.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
    let said = facts.problems.iter().any(|problem| problem.key.as_deref().is_some_and(within));
    if facts.sound(&[key]) && !said {
        facts.error("unserved", key, format!("`{key}`: {why}"), Some(instead.to_string()));
    }
}
