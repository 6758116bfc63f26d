//! Clean, mix and augment: values that a type alone cannot judge, and keys that have nothing to work on.

use super::Facts;
use crate::clean::Contamination;
use crate::mix::MixSection;
use crate::recipe::{Mistake, Role};

pub(super) fn check(facts: &mut Facts<'_>) {
    clean(facts);
    weights(facts);
    if let Some(mix) = facts.recipe.mix.clone() {
        mixing(facts, &mix);
    }
    augment(facts);
    eval(facts);
}

fn clean(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    let Some(section) = &recipe.clean else { return };
    if !facts.sound(&["clean"]) {
        return;
    }
    mistakes(facts, "clean", section.mistakes());
    for (key, instead) in section.idle() {
        let key = format!("clean.{key}");
        facts.warning(
            "no-effect",
            &key,
            format!("`{key}` has no effect without `{instead}`"),
            Some(instead.to_string()),
        );
    }
    let looks = section.contamination.is_some_and(|action| action != Contamination::Ignore);
    let tests = recipe.test_datasets.as_ref().is_some_and(|list| !list.is_empty());
    if looks && !tests && section.contamination_files.is_none() {
        let message =
            "`clean.contamination` has nothing to compare training rows with: the recipe has no `test_datasets`";
        facts.error(
            "needs-key",
            "clean.contamination",
            message.to_string(),
            Some("contamination_files: benchmark.jsonl".to_string()),
        );
    }
}

fn weights(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    for (i, dataset) in recipe.test_datasets.iter().flatten().enumerate() {
        let key = format!("test_datasets[{i}].weight");
        if dataset.weight.is_some_and(|weight| weight > 1.0) && facts.sound(&[&key]) {
            let message = format!("`{key}` is above 1, and test rows are never repeated");
            facts.error("unfit-value", &key, message, Some("at most 1".to_string()));
        }
    }
    let shares = recipe.mix.as_ref().is_some_and(|mix| mix.weights.is_some() || mix.temperature.is_some());
    for (i, dataset) in recipe.datasets.iter().flatten().enumerate() {
        let key = format!("datasets[{i}].weight");
        if shares && dataset.weight.is_some_and(|weight| weight > 1.0) {
            facts.conflict([&key, "mix"], "the mix already says how often rows occur", "mix.weights");
        }
    }
}

fn mixing(facts: &mut Facts<'_>, mix: &MixSection) {
    if !facts.sound(&["mix", "datasets"]) {
        return;
    }
    let sources = facts.recipe.sources();
    let labels: Vec<String> =
        sources.into_iter().filter(|source| source.role == Role::Train).map(|source| source.label).collect();
    if mix.weights.is_some() && mix.temperature.is_some() {
        facts.conflict(["mix.weights", "mix.temperature"], "both say what share a dataset has", "keep one of the two");
    }
    let replay = mix.replay.as_ref().and_then(|replay| replay.dataset.clone());
    named(facts, mix, &labels, replay.as_deref());
    if let Some(weights) = &mix.weights {
        for (label, weight) in weights {
            let key = format!("mix.weights.{label}");
            if !weight.is_finite() || *weight < 0.0 {
                facts.error("unfit-value", &key, format!("`{key}` is {weight}, and a share is at least 0"), None);
            }
        }
        for label in labels.iter().filter(|label| !weights.contains_key(*label) && replay.as_ref() != Some(label)) {
            let message =
                format!("`mix.weights` leaves out the dataset `{label}`: none of its rows would be trained on");
            facts.error("needs-key", "mix.weights", message, Some(format!("{label}: 1 (or 0)")));
        }
        if weights.values().sum::<f64>() <= 0.0 && facts.sound(&["mix.weights"]) {
            let message = "`mix.weights` are all 0, and nothing would be trained on".to_string();
            facts.error("unfit-value", "mix.weights", message, Some("1".to_string()));
        }
    }
    let shares = mix.weights.is_some() || mix.temperature.is_some();
    if mix.stop.is_some() && (!shares || mix.max_rows.is_some()) {
        let message = "`mix.stop` has no effect: it says where a mix by shares ends that has no `max_rows`".to_string();
        facts.warning("no-effect", "mix.stop", message, Some("mix.weights".to_string()));
    }
}

/// Labels that are written must be labels that there are.
fn named(facts: &mut Facts<'_>, mix: &MixSection, labels: &[String], replay: Option<&str>) {
    let known = labels.join(", ");
    if mix.replay.is_some() {
        match replay {
            None => {
                let message = "`mix.replay` names no `dataset`".to_string();
                facts.error("needs-key", "mix.replay.dataset", message, labels.last().cloned());
            }
            Some(name) if !labels.iter().any(|label| label == name) => {
                let message = format!("`mix.replay.dataset`: there is no dataset `{name}` among {known}");
                facts.error("unfit-value", "mix.replay.dataset", message, labels.last().cloned());
            }
            Some(_) if labels.len() == 1 => {
                let message = "`mix.replay` needs a dataset besides the one that is replayed".to_string();
                facts.error("unfit-value", "mix.replay", message, Some("a second dataset".to_string()));
            }
            Some(name) if mix.weights.as_ref().is_some_and(|weights| weights.contains_key(name)) => {
                let key = format!("mix.weights.{name}");
                facts.conflict([&key, "mix.replay"], "both say what share the dataset has", "keep one of the two");
            }
            Some(_) => {}
        }
    }
    for label in mix.weights.iter().flat_map(|weights| weights.keys()) {
        if !labels.contains(label) {
            let key = format!("mix.weights.{label}");
            let near = labels.iter().min_by_key(|other| strsim::osa_distance(label, other)).cloned();
            let message = format!("`{key}`: there is no dataset `{label}`; there are {known}");
            facts.error("unfit-value", &key, message, near);
        }
    }
}

fn augment(facts: &mut Facts<'_>) {
    let Some(section) = &facts.recipe.augment else { return };
    if !facts.sound(&["augment"]) {
        return;
    }
    mistakes(facts, "augment", section.mistakes());
}

fn eval(facts: &mut Facts<'_>) {
    let Some(section) = facts.recipe.eval.as_ref().and_then(|toggle| toggle.on()) else { return };
    mistakes(facts, "eval", section.mistakes());
}

fn mistakes(facts: &mut Facts<'_>, section: &str, found: Vec<Mistake>) {
    for mistake in found {
        let key = format!("{section}.{}", mistake.key);
        if facts.sound(&[&key]) {
            facts.error(mistake.code, &key, format!("`{key}` {}", mistake.why), mistake.instead);
        }
    }
}
