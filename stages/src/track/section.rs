//! `report_to`, and Axolotl's keys that mean the same.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::recipe::Recipe;

/// Who is told what training measures, by transformers' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TrackerName {
    /// Nobody but the run's record.
    None,
    /// Event files under `output_dir/runs`.
    Tensorboard,
    /// The store or server of `mlflow_tracking_uri`; by default a store in `.pipe/mlruns`.
    Mlflow,
    /// Weights & Biases' offline runs under `output_dir/wandb`, for `wandb sync`.
    Wandb,
}

/// What becomes of a run for Weights & Biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WandbMode {
    /// It is written, and sent by `wandb sync`.
    Offline,
    /// The same, by an older name.
    Dryrun,
    /// It is not written.
    Disabled,
}

/// One tracker, or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ReportTo(pub Vec<TrackerName>);

/// The trackers of a recipe: those of `report_to` and those that Axolotl's keys switch on. There `mlflow_experiment_name` is
/// such a key, and so is `wandb_project`; `use_...: false` switches off what it names, and so does `wandb_mode: disabled`.
pub fn trackers(recipe: &Recipe) -> Vec<TrackerName> {
    let named = |name| recipe.report_to.as_ref().is_some_and(|list| list.0.contains(&name));
    let experiment = recipe.mlflow_experiment_name.is_some();
    let project = recipe.wandb_project.is_some();
    let wandb = if recipe.wandb_mode == Some(WandbMode::Disabled) { Some(false) } else { recipe.use_wandb };
    let wanted = [
        (TrackerName::Tensorboard, named(TrackerName::Tensorboard), recipe.use_tensorboard),
        (TrackerName::Mlflow, named(TrackerName::Mlflow) || experiment, recipe.use_mlflow),
        (TrackerName::Wandb, named(TrackerName::Wandb) || project, wandb),
    ];
    let silent = named(TrackerName::None);
    let on = wanted.into_iter().filter(|(_, named, switch)| !silent && switch.unwrap_or(*named));
    on.map(|(name, ..)| name).collect()
}

impl<'de> Deserialize<'de> for ReportTo {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = ReportTo;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a tracker, or a list of them")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ReportTo, E> {
                TrackerName::deserialize(de::value::StrDeserializer::new(text)).map(|name| ReportTo(vec![name]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<ReportTo, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(list)).map(ReportTo)
            }
        }
        from.deserialize_any(V)
    }
}

impl JsonSchema for ReportTo {
    fn schema_name() -> Cow<'static, str> {
        "ReportTo".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let name = generator.subschema_for::<TrackerName>();
        json_schema!({"anyOf": [name, {"type": "array", "items": name}]})
    }
}
