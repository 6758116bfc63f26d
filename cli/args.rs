//! The command line, exactly as the contract lists it. Types only: nothing is decided here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{
    cache, chat, convert, doctor, eval, fetch, merge, model, page, plan, quantize, recipes, run, runs, schema, serve,
    show, template, ui, validate, why,
};

/// Fine-tune language models from one YAML recipe: rows in; a tuned, evaluated, quantised model out.
///
/// Every stage is cached by what it reads and what it is told: a second run does only what changed.
#[derive(Parser, Debug)]
#[command(name = "pipe", version, max_term_width = 110, propagate_version = false, disable_help_subcommand = true)]
#[command(after_help = "Exit codes: 0 done, 1 a stage failed, 2 invalid recipe, argument or input, \
    3 a lock or resource could not be had, 130 interrupted (the next run resumes).\n\n\
    Start here: pipe recipes list")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    Run(run::RunArgs),
    Plan(plan::PlanArgs),
    Validate(validate::ValidateArgs),
    Fetch(fetch::FetchArgs),
    Why(why::WhyArgs),
    Show(show::ShowArgs),
    Schema(schema::SchemaArgs),
    Recipes(recipes::RecipesArgs),
    Runs(runs::RunsArgs),
    Report(page::ReportArgs),
    Ui(ui::UiArgs),
    Cache(cache::CacheArgs),
    Template(template::TemplateArgs),
    Merge(merge::MergeArgs),
    Convert(convert::ConvertArgs),
    Quantize(quantize::QuantizeArgs),
    Eval(eval::EvalArgs),
    Chat(chat::ChatArgs),
    Serve(serve::ServeArgs),
    Model(model::ModelArgs),
    Doctor(doctor::DoctorArgs),
}

/// A recipe and the keys set over it.
#[derive(Args, Debug, Clone)]
pub struct RecipeArgs {
    /// The recipe file.
    #[arg(value_name = "RECIPE")]
    pub recipe: PathBuf,
    /// Set a recipe key over what the file says; dotted, reaches into lists: datasets[0].path=rows.jsonl. Repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
    #[command(flatten)]
    pub store: StoreArgs,
}

/// Where results are kept.
#[derive(Args, Debug, Clone, Default)]
pub struct StoreArgs {
    /// Folder of the store; default PIPE_CACHE_DIR, else .pipe in the project.
    #[arg(long, value_name = "DIR", global = true)]
    pub cache_dir: Option<PathBuf>,
}

/// `key=value` again, as recipes take them.
pub fn assignments(set: &[(String, String)]) -> Vec<String> {
    set.iter().map(|(key, value)| format!("{key}={value}")).collect()
}

/// Splits `key=value` at the first `=`.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_string(), value.to_string())),
        _ => Err("write it as key=value, for example learning_rate=1e-4".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn settings_split_at_the_first_equals_sign() {
        assert_eq!(key_value("a.b=c=d"), Ok(("a.b".to_string(), "c=d".to_string())));
        assert!(key_value("=x").is_err());
        assert!(key_value("learning_rate").is_err());
    }
}
