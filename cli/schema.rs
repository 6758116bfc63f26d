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
    /// The Parquet columns of every kind of row, in Markdown.
    Rows,
}

pub fn schema(args: &SchemaArgs) -> Outcome {
    let text = match args.what {
        What::Recipe => serde_json::to_string_pretty(&pipe_stages::recipe::schema()).unwrap_or_default(),
        What::Reference => pipe_stages::recipe::reference_markdown(),
        What::Rows => pipe_stages::rows::reference::markdown(),
    };
    report::bytes(format!("{}\n", text.trim_end()).as_bytes());
    Ok(())
}
