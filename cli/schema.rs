//! `pipe schema`: the JSON Schema of recipes, and the other descriptions that are generated from types.

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
    /// JSON Schema of recipes.
    Recipe,
    /// The reference of all recipe keys, in Markdown.
    Reference,
    /// The Parquet columns of every kind of row.
    Rows,
}

pub fn schema(args: &SchemaArgs) -> Outcome {
    let text = match args.what {
        What::Recipe => pretty(&pipe_stages::recipe::schema()),
        What::Reference => pipe_stages::recipe::reference_markdown(),
        What::Rows => pretty(&pipe_stages::rows::shapes::described()),
    };
    report::bytes(format!("{}\n", text.trim_end()).as_bytes());
    Ok(())
}

fn pretty(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}
