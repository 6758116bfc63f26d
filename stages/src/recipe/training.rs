//! Values of the keys that say how training goes: starts of adapters, numbers of schedules, what "best" means.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `peft_init_lora_weights`: what an adapter holds before the first step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitLoraWeights {
    Default,
    Gaussian,
    Orthogonal,
    /// With a number of rounds when the directions are found by the randomised method.
    Pissa(Option<u32>),
    Loftq,
}

/// `resume_from_checkpoint`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Whatever a boolean says, a run goes on from its own newest checkpoint.
    Newest,
    Folder(String),
}

/// Settings of PEFT that have no key of their own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PeftSection {
    /// Start the adapter with what quantising the base loses (LoftQ).
    pub loftq_config: Option<LoftqConfig>,
}

/// Settings of LoftQ.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoftqConfig {
    /// Bits of the base.
    #[schemars(range(min = 4, max = 4), extend("default" = 4))]
    pub loftq_bits: Option<u64>,
    /// Rounds of quantising and decomposing.
    #[schemars(range(min = 1, max = 1), extend("default" = 1))]
    pub loftq_iter: Option<u64>,
}

/// Numbers of a learning-rate course, by transformers' and torch's names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SchedulerKwargs {
    /// Waves of the cosine courses: 0.5 for cosine, 1 restart for cosine_with_restarts.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub num_cycles: Option<f64>,
    /// Exponent of polynomial.
    #[schemars(extend("default" = 1.0))]
    pub power: Option<f64>,
    /// Last rate of polynomial.
    #[schemars(range(min = 0), extend("default" = 1e-7))]
    pub lr_end: Option<f64>,
    /// Time scale of inverse_sqrt, in steps; the warm-up by default.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub timescale: Option<f64>,
    /// Last rate of cosine_with_min_lr.
    #[schemars(range(min = 0))]
    pub min_lr: Option<f64>,
    /// The same as a share of the peak.
    #[schemars(range(min = 0, max = 1))]
    pub min_lr_rate: Option<f64>,
    /// Share of the steps in which one_cycle rises; the warm-up by default.
    #[schemars(range(min = 0, max = 1))]
    pub pct_start: Option<f64>,
    /// Shape of one_cycle's two halves.
    #[schemars(extend("default" = "cos"))]
    pub anneal_strategy: Option<Anneal>,
    /// Peak of one_cycle divided by its first rate.
    #[schemars(extend("exclusiveMinimum" = 0), extend("default" = 25.0))]
    pub div_factor: Option<f64>,
    /// First rate of one_cycle divided by its last.
    #[schemars(extend("exclusiveMinimum" = 0), extend("default" = 10000.0))]
    pub final_div_factor: Option<f64>,
}

/// Constants of an optimizer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimArgs {
    /// Momentum of sgd (0 by default) and muon (0.95).
    #[schemars(range(min = 0, max = 1))]
    pub momentum: Option<f64>,
}

/// Shape of a rise or fall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Anneal {
    /// Half a cosine wave.
    Cos,
    /// A line.
    Linear,
}

/// What the best evaluation is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BestMetric {
    /// Nats per trained token.
    Loss,
    EvalLoss,
    /// The same order as the loss.
    Perplexity,
    EvalPerplexity,
}

impl InitLoraWeights {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "gaussian" => Some(Self::Gaussian),
            "orthogonal" => Some(Self::Orthogonal),
            "loftq" => Some(Self::Loftq),
            "pissa" => Some(Self::Pissa(None)),
            other => other.strip_prefix("pissa_niter_")?.parse().ok().map(|rounds| Self::Pissa(Some(rounds))),
        }
    }
}

impl<'de> Deserialize<'de> for InitLoraWeights {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = InitLoraWeights;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, gaussian, orthogonal, pissa, pissa_niter_N or loftq")
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<InitLoraWeights, E> {
                match on {
                    true => Ok(InitLoraWeights::Default),
                    false => Err(E::invalid_value(de::Unexpected::Bool(on), &self)),
                }
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<InitLoraWeights, E> {
                InitLoraWeights::parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        from.deserialize_any(V)
    }
}

impl Serialize for InitLoraWeights {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Default => to.serialize_bool(true),
            Self::Gaussian => to.serialize_str("gaussian"),
            Self::Orthogonal => to.serialize_str("orthogonal"),
            Self::Pissa(None) => to.serialize_str("pissa"),
            Self::Pissa(Some(rounds)) => to.serialize_str(&format!("pissa_niter_{rounds}")),
            Self::Loftq => to.serialize_str("loftq"),
        }
    }
}

impl JsonSchema for InitLoraWeights {
    fn schema_name() -> Cow<'static, str> {
        "InitLoraWeights".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [
            {"type": "boolean", "enum": [true]},
            {"type": "string", "enum": ["gaussian", "orthogonal", "pissa", "loftq"]},
            {"type": "string", "pattern": "^pissa_niter_[0-9]{1,9}$"}
        ]})
    }
}

impl<'de> Deserialize<'de> for Resume {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Resume;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a checkpoint folder, or a boolean")
            }
            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Resume, E> {
                Ok(Resume::Newest)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Resume, E> {
                Ok(Resume::Folder(text.to_string()))
            }
        }
        from.deserialize_any(V)
    }
}

impl Serialize for Resume {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Newest => to.serialize_bool(true),
            Self::Folder(folder) => to.serialize_str(folder),
        }
    }
}

impl JsonSchema for Resume {
    fn schema_name() -> Cow<'static, str> {
        "Resume".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [{"type": "boolean"}, {"type": "string"}]})
    }
}
