//! `pipe validate`: everything that is wrong with recipes, at once.

use std::path::PathBuf;

use clap::Args;
use pipe_engine::problem::Problem;
use pipe_stages::recipe;

use crate::args::{assignments, key_value};
use crate::failure::{Failure, Kind, Outcome};
use crate::report;
use crate::report::style::{BAD, GOOD, paint};

/// Check recipes: syntax, keys, cross-field rules and files; every problem at once.
#[derive(Args, Debug)]
pub struct ValidateArgs {
    /// Recipe files.
    #[arg(value_name = "RECIPE", required = true)]
    recipes: Vec<PathBuf>,
    /// Set a recipe key over what the file says. Repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

pub fn validate(args: &ValidateArgs) -> Outcome {
    let sets = assignments(&args.set);
    let checked: Vec<(&PathBuf, Vec<Problem>)> =
        args.recipes.iter().map(|path| (path, recipe::load(path, &sets).problems)).collect();
    let valid = !checked.iter().flat_map(|(_, problems)| problems).any(Problem::is_error);
    if args.json {
        let problems: Vec<&Problem> = checked.iter().flat_map(|(_, problems)| problems).collect();
        report::json(&serde_json::json!({ "valid": valid, "problems": problems }));
    } else {
        checked.iter().for_each(|(path, problems)| tell(path, problems));
    }
    if valid { Ok(()) } else { Err(Failure::told(Kind::Invalid)) }
}

/// Problems go to standard error, the verdict on each recipe to standard output.
fn tell(path: &std::path::Path, problems: &[Problem]) {
    if !problems.is_empty() {
        report::error_lines(&[report::problems::render(problems)]);
    }
    let verdict = if problems.iter().any(Problem::is_error) { paint(BAD, "invalid") } else { paint(GOOD, "valid") };
    let tally = report::problems::tally(problems);
    let tally = if tally.is_empty() { tally } else { format!(" ({tally})") };
    report::print(&format!("{}: {verdict}{tally}", path.display()));
}
