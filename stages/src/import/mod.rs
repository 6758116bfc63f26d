//! Recipes from other tools' configurations: each importer reads what its tool means, and says what has no place here.
//!
//! An importer turns settings into a [`Draft`]; the recipe reader then has the last word, and a key it will not have is
//! taken out again and listed with the reader's own reason. Nothing of another tool is ever run.

mod alpaca_lora;
mod draft;
mod flags;
mod llama_factory;
mod peft;
mod prompts;
mod settings;
mod torchtune;
mod trl;
pub mod xtuner;

use std::path::{Path, PathBuf};

use pipe_engine::problem::{Problem, Severity};

pub use draft::{Draft, Lost};

use crate::recipe;

/// Tools whose configurations can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    LlamaFactory,
    Xtuner,
    Torchtune,
    AlpacaLora,
    Trl,
}

/// What there is to import.
#[derive(Clone, Debug)]
pub enum Source {
    File(PathBuf),
    Flags(Vec<String>),
}

/// A recipe as text, and what could not be carried over.
#[derive(Clone, Debug)]
pub struct Imported {
    pub text: String,
    pub lost: Vec<Lost>,
    /// What the recipe reader still complains about; empty for a valid recipe.
    pub problems: Vec<Problem>,
}

/// Why nothing was imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("cannot read {path}: {why}")]
    Read { path: PathBuf, why: String },
    #[error("{path}{place}: {why}")]
    Syntax { path: PathBuf, place: String, why: String },
    #[error("`{key}` is `{value}`, which is not {wanted}")]
    Value { key: String, value: String, wanted: String },
    #[error("the command line could not be read: {what}")]
    Flags { what: String },
    /// A configuration for something else than what recipes describe.
    #[error("{what}")]
    Foreign { what: String, instead: String },
}

impl ImportError {
    pub fn hint(&self) -> Option<String> {
        match self {
            ImportError::Foreign { instead, .. } => Some(instead.clone()),
            ImportError::Flags { .. } => Some("write the script's own flags after `--`".to_string()),
            _ => None,
        }
    }

    fn foreign(what: impl Into<String>, instead: impl Into<String>) -> ImportError {
        ImportError::Foreign { what: what.into(), instead: instead.into() }
    }
}

impl Tool {
    pub fn title(self) -> &'static str {
        match self {
            Tool::LlamaFactory => "LLaMA-Factory",
            Tool::Xtuner => "XTuner",
            Tool::Torchtune => "torchtune",
            Tool::AlpacaLora => "alpaca-lora",
            Tool::Trl => "TRL",
        }
    }

    /// Whether its settings come as flags of a command line instead of a file.
    pub fn takes_flags(self) -> bool {
        matches!(self, Tool::AlpacaLora | Tool::Trl)
    }
}

/// Reads `source` as `tool` would. `folder` is where the recipe will stand: what is said of its files depends on it.
///
/// # Errors
/// When the source cannot be read, or is no configuration of a training run that a recipe could describe.
pub fn import(tool: Tool, source: &Source, folder: &Path) -> Result<Imported, ImportError> {
    let (draft, origin) = match (tool, source) {
        (Tool::LlamaFactory, Source::File(path)) => (llama_factory::draft(path)?, name(path)),
        (Tool::Xtuner, Source::File(path)) => (xtuner::draft(path)?, name(path)),
        (Tool::Torchtune, Source::File(path)) => (torchtune::draft(path)?, name(path)),
        (Tool::AlpacaLora, Source::Flags(words)) => (alpaca_lora::draft(words)?, words.join(" ")),
        (Tool::Trl, Source::Flags(words)) => (trl::draft(words)?, words.join(" ")),
        (tool, Source::File(path)) => {
            let what = format!("{} takes its settings as flags, not from a file", tool.title());
            return Err(ImportError::foreign(
                what,
                format!("leave out {} and write the flags after `--`", path.display()),
            ));
        }
        (tool, Source::Flags(_)) => {
            let what = format!("{} takes its settings from a file, not as flags", tool.title());
            return Err(ImportError::foreign(what, "name the file instead"));
        }
    };
    let head = format!("Imported from {}: {origin}", tool.title());
    Ok(settled(
        draft,
        &[head, "Check it with `pipe validate`, and see what it will do with `pipe plan`.".into()],
        folder,
    ))
}

/// The draft as text that the recipe reader accepts, where taking keys out can bring that about.
pub fn settled(mut draft: Draft, head: &[String], folder: &Path) -> Imported {
    // Each round takes out at least one key, so this ends.
    loop {
        let text = draft.text(head);
        let problems = check(&text, folder);
        let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
        let mut taken = false;
        for problem in errors {
            // What says where rows and weights are is left for the reader of the recipe to mend.
            let Some(key) = problem.key.as_deref().filter(|_| problem.code != "missing-file") else { continue };
            taken |= draft.retract(key, &problem.message);
        }
        if !taken {
            let problems = problems.into_iter().filter(|problem| problem.severity == Severity::Error).collect();
            return Imported { text, lost: draft.losses(), problems };
        }
    }
}

/// What the recipe reader says of a text, as if it stood in `folder`.
fn check(text: &str, folder: &Path) -> Vec<Problem> {
    let draft = |folder: &Path| tempfile::Builder::new().prefix(".import-").suffix(".yml").tempfile_in(folder);
    let Ok(file) = draft(folder).or_else(|_| draft(&std::env::temp_dir())) else { return Vec::new() };
    match std::fs::write(file.path(), text) {
        Ok(()) => recipe::load(file.path(), &[]).problems,
        Err(_) => Vec::new(),
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Reads a YAML file as a map.
fn yaml(path: &Path) -> Result<(serde_json::Map<String, serde_json::Value>, String), ImportError> {
    let text = read(path)?;
    let value: serde_json::Value = serde_yaml::from_str(&text).map_err(|e| ImportError::Syntax {
        path: path.to_path_buf(),
        place: e.location().map_or_else(String::new, |at| format!(":{}:{}", at.line(), at.column())),
        why: format!("not valid YAML ({e})"),
    })?;
    match value {
        serde_json::Value::Object(map) => Ok((map, text)),
        _ => {
            let why = "not a map of settings".to_string();
            Err(ImportError::Syntax { path: path.to_path_buf(), place: ":1:1".to_string(), why })
        }
    }
}

/// A configuration is a small text; anything else is not read.
fn read(path: &Path) -> Result<String, ImportError> {
    const MOST: u64 = 1 << 20;
    let wrong = |why: String| ImportError::Read { path: path.to_path_buf(), why };
    let size = std::fs::metadata(path).map_err(|e| wrong(e.to_string()))?.len();
    if size > MOST {
        return Err(wrong(format!("it has {size} bytes, and a configuration has at most {MOST}")));
    }
    std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))
}

/// Puts what nobody took among the losses: with the reason where it is known, else as unknown.
fn leftovers(draft: &mut Draft, rest: Vec<(String, serde_json::Value)>, known: &[(&str, &str)]) {
    for (key, value) in rest {
        let last = key.rsplit('.').next().unwrap_or(&key);
        let matches = |names: &str| {
            names.split_whitespace().any(|name| match name.strip_suffix('*') {
                Some(start) => key.starts_with(start) || last.starts_with(start),
                None => name == key || name == last,
            })
        };
        let why = known.iter().find(|(names, _)| matches(names)).map_or("there is no counterpart here", |(_, why)| why);
        draft.lose(format!("{key}: {}", draft::inline(&value)), why);
    }
}

/// transformers' names of optimizers and schedules where they differ from the recipe's.
fn trainer_names(draft: &mut Draft, optimizer: Option<String>, schedule: Option<String>, usual: (&str, &str)) {
    match optimizer {
        Some(name) => draft.set("optimizer", name),
        None => draft.note("optimizer", usual.0, "its default"),
    }
    match schedule {
        Some(name) => draft.set("lr_scheduler", name),
        None => draft.note("lr_scheduler", usual.1, "its default"),
    }
}

/// Warm-up as transformers takes it: `warmup_steps` below 1 is a share of all steps.
fn warmup(draft: &mut Draft, steps: Option<f64>, ratio: Option<f64>) {
    match (steps.filter(|n| *n > 0.0), ratio.filter(|n| *n > 0.0)) {
        (Some(share), _) if share < 1.0 => draft.set("warmup_ratio", share),
        (Some(steps), _) => draft.set("warmup_steps", steps as u64),
        (None, Some(ratio)) => draft.set("warmup_ratio", ratio),
        (None, None) => draft.note("warmup_steps", 0, "its default"),
    }
}

/// A number as people write it: whole where it is whole.
fn number(n: f64) -> serde_json::Value {
    if n.fract() == 0.0 && n.abs() < 1e15 { (n as i64).into() } else { n.into() }
}

#[cfg(test)]
mod tests;
