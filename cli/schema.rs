//! `pipe schema`: the JSON Schema of recipes.

use clap::{Args, ValueEnum};

use crate::failure::Outcome;
use crate::report;

/// Print the JSON Schema (draft 2020-12) of recipes.
#[derive(Args, Debug)]
pub struct SchemaArgs {
    /// What to describe.
    #[arg(value_enum, default_value_t = What::Recipe)]
    what: What,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    Recipe,
}

pub fn schema(args: &SchemaArgs) -> Outcome {
    let What::Recipe = args.what;
    let text = serde_json::to_string_pretty(&pipe_stages::recipe::schema()).unwrap_or_default();
    report::bytes(format!("{text}\n").as_bytes());
    Ok(())
}
