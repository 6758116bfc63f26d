//! When to evaluate, save and warm up, and the sections that need something to work on.

use super::Facts;
use crate::recipe::sections::{MergeOnto, SplitName};
use crate::recipe::values::Strategy;

/// Keys that hold rows out of training.
const HELD_OUT: [&str; 5] = ["val_set_size", "split", "split.val", "split.test", "test_datasets"];

pub(super) fn check(facts: &mut Facts<'_>) {
    warmup(facts);
    sections(facts);
    evaluation(facts);
    saving(facts);
}

fn warmup(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    // Axolotl's own recipes hold a zero beside the other; it says nothing.
    let steps = recipe.warmup_steps.filter(|steps| *steps > 0);
    let ratio = recipe.warmup_ratio.filter(|ratio| *ratio > 0.0);
    if steps.is_some() && ratio.is_some() {
        facts.conflict(
            ["warmup_steps", "warmup_ratio"],
            "both say how long the warm-up is",
            "keep one, such as `warmup_ratio`",
        );
    }
    if let (Some(steps), Some(most)) = (recipe.warmup_steps, recipe.max_steps)
        && steps >= most
        && facts.sound(&["warmup_steps", "max_steps"])
    {
        let message = format!("the warm-up of {steps} steps is no shorter than the training of {most}");
        facts.warning("out-of-range", "warmup_steps", message, Some(format!("{}", most / 10)));
    }
}

fn evaluation(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    let both = recipe.eval_steps.is_some() && recipe.evals_per_epoch.is_some();
    if both {
        facts.conflict(
            ["eval_steps", "evals_per_epoch"],
            "both say when to evaluate",
            "keep one, such as `evals_per_epoch`",
        );
    }
    let split = recipe.split.clone().unwrap_or_default();
    let held = split.val.or(recipe.val_set_size).unwrap_or(0.0) > 0.0;
    let tests = recipe.test_datasets.as_ref().is_some_and(|list| !list.is_empty()) || split.test.unwrap_or(0.0) > 0.0;
    let weighed = [HELD_OUT.as_slice(), &["eval_steps", "evals_per_epoch", "eval_strategy", "eval.metrics"]].concat();
    let sound = facts.sound(&weighed);
    if !held && !tests && sound {
        let remedy = Some("val_set_size: 0.05".to_string());
        if recipe.eval_steps.is_some() && !both {
            let message = "`eval_steps` asks for evaluations, and no rows are held out for them".to_string();
            facts.error("no-eval-data", "eval_steps", message, remedy.clone());
        } else if recipe.evals_per_epoch.is_some() {
            let message =
                "`evals_per_epoch` asks for evaluations, and no rows are held out for them; none will run".to_string();
            facts.warning("no-eval-data", "evals_per_epoch", message, remedy.clone());
        }
        if matches!(recipe.eval_strategy, Some(Strategy::Steps | Strategy::Epoch)) && recipe.eval_steps.is_none() {
            let message =
                "`eval_strategy` asks for evaluations, and no rows are held out for them; none will run".to_string();
            facts.warning("no-eval-data", "eval_strategy", message, remedy);
        }
    }
    strategy(
        facts,
        "eval_strategy",
        recipe.eval_strategy,
        [("eval_steps", recipe.eval_steps.is_some()), ("evals_per_epoch", recipe.evals_per_epoch.is_some())],
    );
}

fn saving(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    if recipe.save_steps.is_some() && recipe.saves_per_epoch.is_some() {
        facts.conflict(
            ["save_steps", "saves_per_epoch"],
            "both say when to save",
            "keep one, such as `saves_per_epoch`",
        );
    }
    strategy(
        facts,
        "save_strategy",
        recipe.save_strategy,
        [("save_steps", recipe.save_steps.is_some()), ("saves_per_epoch", recipe.saves_per_epoch.is_some())],
    );
    best(facts);
}

/// Keys that act on evaluations during training, of which there must be some.
fn best(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    let split = recipe.split.clone().unwrap_or_default();
    let held = split.val.or(recipe.val_set_size).unwrap_or(0.0) > 0.0;
    let asked = recipe.eval_steps.is_some()
        || recipe.evals_per_epoch.is_some()
        || matches!(recipe.eval_strategy, Some(Strategy::Steps | Strategy::Epoch));
    let keys = [
        ("early_stopping_patience", recipe.early_stopping_patience.is_some()),
        ("load_best_model_at_end", recipe.load_best_model_at_end == Some(true)),
    ];
    let wanted = keys.into_iter().filter(|(_, on)| *on && recipe.train != Some(false)).map(|(key, _)| key).next();
    let Some(key) = wanted else { return };
    if !held && facts.sound(&[key]) && facts.sound(&HELD_OUT) {
        let message = format!("`{key}` acts on evaluations during training, and no rows are held out for them");
        facts.error("no-eval-data", key, message, Some("val_set_size: 0.05".to_string()));
    } else if !asked && facts.sound(&[key, "eval_steps", "evals_per_epoch", "eval_strategy"]) {
        let message = format!("`{key}` acts on evaluations during training, and the recipe asks for none");
        facts.error("needs-key", key, message, Some("evals_per_epoch: 1".to_string()));
    }
}

fn strategy(facts: &mut Facts<'_>, key: &str, strategy: Option<Strategy>, points: [(&str, bool); 2]) {
    for (point, written) in points {
        let clash = match strategy {
            Some(Strategy::No) => written,
            Some(Strategy::Epoch) => written,
            _ => false,
        };
        if clash {
            facts.conflict([key, point], "they say different things about when", "remove one of the two");
        }
    }
}

fn sections(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    let split = recipe.split.clone().unwrap_or_default();
    let val = split.val.or(recipe.val_set_size).unwrap_or(0.0) > 0.0;
    let test = split.test.unwrap_or(0.0) > 0.0 || recipe.test_datasets.as_ref().is_some_and(|list| !list.is_empty());
    let eval = recipe.eval.as_ref().and_then(|toggle| toggle.on()).cloned();
    let sound = facts.sound(&["eval"]) && facts.sound(&HELD_OUT);
    if let Some(eval) = eval.filter(|_| sound) {
        for (i, name) in eval.splits.iter().flatten().enumerate() {
            let (missing, word, remedy) = match name {
                SplitName::Val => (!val, "val", "split.val"),
                SplitName::Test => (!test, "test", "split.test"),
                SplitName::Train => (false, "train", ""),
            };
            if missing {
                let message = format!("`eval.splits` names `{word}`, and the recipe holds out no such rows");
                facts.error("no-eval-data", &format!("eval.splits[{i}]"), message, Some(remedy.to_string()));
            }
        }
        if !val && !test && eval.splits.is_none() && eval.metrics.as_ref().is_some_and(|metrics| !metrics.is_empty()) {
            let message = "`eval.metrics` asks for measures, and the recipe holds out no rows for them".to_string();
            facts.error("no-eval-data", "eval.metrics", message, Some("split.val".to_string()));
        }
        if eval.sample_every.is_some() && eval.samples.as_ref().is_none_or(Vec::is_empty) {
            let message = "`eval.sample_every` needs prompts under `eval.samples`".to_string();
            facts.error("needs-key", "eval.sample_every", message, Some("samples".to_string()));
        }
    }
    let untrained = recipe.train == Some(false) && recipe.lora_model_dir.is_none();
    // The original base itself may be written as a folder.
    let merges = recipe.merge.as_ref().and_then(|toggle| toggle.on());
    if untrained && merges.is_some_and(|section| section.base != Some(MergeOnto::Original)) {
        facts.conflict(
            ["train", "merge"],
            "nothing is trained, so there is no adapter to merge",
            "train: true, or lora_model_dir",
        );
    }
    let whole = recipe.train != Some(false) && recipe.adapter.is_none();
    for key in ["adapters", "weight"] {
        if whole && facts.written(&format!("merge.{key}")) && facts.sound(&["adapter"]) {
            let message = format!("`merge.{key}` adds up adapters, and the base model's own weights are trained here");
            facts.error("unfit-value", &format!("merge.{key}"), message, Some("adapter: lora".to_string()));
        }
    }
}
