//! `pipe model show`: what a model is, before anything is loaded.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use pipe_stages::inspect::{self, Inspected};
use pipe_stages::memory::{self, Recompute, Shape, Tokens};
use serde_json::{Value, json};

use crate::args::{RecipeArgs, StoreArgs};
use crate::failure::{Failure, Outcome};
use crate::open;
use crate::report;
use crate::report::model as text;

/// Look at a model: a Hugging Face folder or a GGUF file.
#[derive(Args, Debug)]
pub struct ModelArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    Show(ShowArgs),
}

/// Family, parameters, modules and types of a model, and what a recipe would train of it.
#[derive(Args, Debug)]
struct ShowArgs {
    /// The model's folder or GGUF file.
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// Every linear module with its shape.
    #[arg(long)]
    modules: bool,
    /// What this recipe would train, and the memory that takes.
    #[arg(long, value_name = "RECIPE")]
    recipe: Option<PathBuf>,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// What a recipe makes of the model.
pub struct Use {
    pub recipe: PathBuf,
    /// Names of the adapted modules; empty when weights are trained themselves.
    pub targets: Vec<String>,
    pub estimate: memory::Estimate,
}

pub fn model(args: &ModelArgs) -> Outcome {
    let Action::Show(args) = &args.action;
    let found = inspect::inspect(&args.model).map_err(|error| {
        let failure = Failure::invalid(error.to_string());
        if args.model.exists() { failure } else { failure.hint("name a Hugging Face folder or a .gguf file") }
    })?;
    let used = args.recipe.as_deref().map(|recipe| of_recipe(recipe, &found)).transpose()?;
    if args.json {
        report::json(&as_json(&found, used.as_ref(), args.modules));
    } else {
        report::print(&text::render(&found, used.as_ref(), args.modules, report::width()));
    }
    Ok(())
}

/// What the recipe would train if this were its base model.
fn of_recipe(recipe: &Path, found: &Inspected) -> Result<Use, Failure> {
    // Only the recipe's own words count here; its base model need not be on this machine.
    let path = std::path::absolute(&found.path).unwrap_or_else(|_| found.path.clone());
    let set = vec![("base_model".to_string(), path.display().to_string())];
    let args = RecipeArgs { recipe: recipe.to_path_buf(), set, store: StoreArgs::default() };
    let (opened, _) = open::open_quietly(&args)?;
    let train = opened.plan.nodes().iter().find(|node| node.name.stage() == "train");
    let Some(train) = train.map(|node| node.task.params()) else {
        return Err(Failure::invalid(format!("{} trains nothing", recipe.display())));
    };
    let recompute = match opened.recipe.gradient_checkpointing {
        None | Some(pipe_stages::recipe::Checkpointing::Off) => Recompute::Nothing,
        Some(_) => Recompute::Layers,
    };
    let tokens = Tokens { sequence_len: opened.recipe.sequence_len.unwrap_or(512), fullest: None, recompute };
    let estimate = memory::estimate(&found.path, "", &train, tokens);
    let estimate = estimate.ok_or_else(|| Failure::invalid("the model's configuration cannot be read"))?;
    let shape = Shape::read(&found.path);
    let targets = shape.iter().flat_map(|shape| memory::targets(shape, &train)).map(|m| m.name.clone()).collect();
    Ok(Use { recipe: recipe.to_path_buf(), targets, estimate })
}

fn as_json(found: &Inspected, used: Option<&Use>, modules: bool) -> Value {
    let mut value = serde_json::to_value(found).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        if !modules {
            object.shift_remove("modules");
        }
        if let Some(used) = used {
            let train = json!({
                "recipe": used.recipe,
                "trainable_parameters": used.estimate.trainable_parameters,
                "targets": used.targets,
            });
            object.insert("train".to_string(), train);
            object.insert("memory".to_string(), serde_json::to_value(&used.estimate).unwrap_or_default());
        }
    }
    value
}
