//! Adapters checked against what is on disk: the one a recipe goes on training, and the modules that its targets name.

use std::path::Path;

use pipe_engine::problem::Problem;
use pipe_files::{ModelConfig, PeftConfig, PeftTargets, Selector};
use pipe_job::{Init, Lora, Targets};

use super::problem;
use crate::model::BaseModel;
use crate::recipe::{Recipe, Targets as Named};

/// The settings of the PEFT adapter in `folder`.
///
/// # Errors
/// It cannot be read, or a key of the recipe says something else than its configuration.
pub fn adapter(recipe: &Recipe, folder: &Path) -> Result<Lora, Problem> {
    let config = PeftConfig::read(folder).map_err(|e| problem("bad-adapter", "lora_model_dir", e.to_string()))?;
    if !config.target_parameters.is_empty() {
        let message = format!(
            "the adapter in {} adapts experts that one tensor holds (target_parameters), which merge, eval, chat and serve \
             read; training goes on only with experts that are adapted one by one",
            folder.display()
        );
        return Err(problem("bad-adapter", "lora_model_dir", message));
    }
    agree(recipe, &config, folder)?;
    Ok(Lora {
        r: config.r,
        alpha: config.alpha,
        // Dropout is a matter of this training, not of what the matrices mean.
        dropout: recipe.lora_dropout.unwrap_or(config.dropout),
        targets: match config.targets {
            PeftTargets::AllLinear => Targets::AllLinear,
            PeftTargets::Names(names) => Targets::Names(names),
            PeftTargets::Pattern(pattern) => Targets::Regex(pattern),
        },
        rslora: config.rslora,
        dora: config.dora,
        rank_pattern: config.rank_pattern,
        alpha_pattern: config.alpha_pattern,
        modules_to_save: config.modules_to_save,
        init: Init::Kaiming,
    })
}

/// A recipe may repeat the adapter's settings, and must not contradict them.
fn agree(recipe: &Recipe, config: &PeftConfig, folder: &Path) -> Result<(), Problem> {
    let differs = |key: &str, ours: String, theirs: String| {
        let message = format!(
            "`{key}` is {ours}, and the adapter in {} has {theirs}; it goes on as it was begun",
            folder.display()
        );
        let mut problem = problem("conflicting-keys", key, message);
        problem.suggestion = Some(format!("{key}: {theirs}"));
        problem
    };
    let numbers =
        [("lora_r", recipe.lora_r.map(|r| r as f64), config.r as f64), ("lora_alpha", recipe.lora_alpha, config.alpha)];
    for (key, ours, theirs) in numbers {
        if let Some(ours) = ours.filter(|ours| *ours != theirs) {
            return Err(differs(key, ours.to_string(), theirs.to_string()));
        }
    }
    let flags = [
        ("peft_use_rslora", recipe.peft_use_rslora, config.rslora),
        ("peft_use_dora", recipe.peft_use_dora, config.dora),
    ];
    for (key, ours, theirs) in flags {
        if let Some(ours) = ours.filter(|ours| *ours != theirs) {
            return Err(differs(key, ours.to_string(), theirs.to_string()));
        }
    }
    if let (Some(Named::Names(ours)), PeftTargets::Names(theirs)) = (&recipe.lora_target_modules, &config.targets) {
        let sorted = |names: &[String]| {
            let mut names: Vec<String> = names.to_vec();
            names.sort();
            names
        };
        let (ours, theirs) = (sorted(ours), sorted(theirs));
        if ours != theirs && recipe.lora_target_linear != Some(true) {
            return Err(differs("lora_target_modules", format!("{ours:?}"), format!("[{}]", theirs.join(", "))));
        }
    }
    if let Some(ours) = &recipe.lora_modules_to_save
        && ours.iter().any(|module| !config.modules_to_save.contains(module))
    {
        return Err(differs("lora_modules_to_save", format!("{ours:?}"), format!("{:?}", config.modules_to_save)));
    }
    Ok(())
}

/// Whether every target names a module of the base model, where that is on this machine.
///
/// # Errors
/// A target matches nothing, or is no regular expression.
pub fn check_targets(lora: &Lora, model: &BaseModel) -> Result<(), Problem> {
    let wrong = |message: String| problem("bad-value", "lora_target_modules", message);
    let selector = match &lora.targets {
        Targets::AllLinear => return Ok(()),
        Targets::Names(names) => Selector::Names(names.clone()),
        Targets::Regex(pattern) => Selector::pattern(pattern).map_err(wrong)?,
    };
    let Ok(config) = ModelConfig::read(&model.path) else { return Ok(()) };
    let modules = config.modules();
    selector.choose(modules.iter().map(|module| module.name.as_str())).map(|_| ()).map_err(|unmatched| {
        let mut problem = wrong(format!("`lora_target_modules`: {unmatched}"));
        problem.suggestion = unmatched.near.or(Some(unmatched.known.join(", ")));
        problem
    })
}
