//! The values that recipe keys take when a plain string, number or boolean does not say enough.
//!
//! Every type here reads exactly what its schema accepts; nothing here knows which key it serves.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::dataset::UserDefined;
use super::format::Format;

/// `true`, `false`, or `auto` for what the machine supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoFlag {
    Auto,
    On,
    Off,
}

/// A list of names, or one regular expression that must match a whole module name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    Names(Vec<String>),
    Regex(String),
}

/// One string or several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OneOrMany(pub Vec<String>);

/// A section that may also be switched with a plain boolean: `merge: true`, or `merge: {dtype: bf16}`.
#[derive(Clone, Debug, PartialEq)]
pub enum Toggle<T> {
    Off,
    On(T),
}

/// `gradient_checkpointing`: a boolean, a number of layers, or one of Axolotl's offloading variants, which recompute just the same here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkpointing {
    Off,
    On,
    /// Layers in groups of this many.
    Every(u64),
}

/// What `datasets[].type` says: a format's name with its variant, or a map of columns and prompt formats.
#[derive(Clone, Debug, PartialEq)]
pub enum DatasetType {
    Named(Format),
    UserDefined(UserDefined),
}

/// Optimizers by Axolotl's and transformers' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerName {
    AdamwTorch,
    AdamwTorchFused,
    AdamwHf,
    #[serde(rename = "adamw_bnb_8bit")]
    AdamwBnb8bit,
    #[serde(rename = "adamw_8bit")]
    Adamw8bit,
    #[serde(rename = "adamw_torch_8bit")]
    AdamwTorch8bit,
    #[serde(rename = "adamw_torch_4bit")]
    AdamwTorch4bit,
    #[serde(rename = "ao_adamw_8bit")]
    AoAdamw8bit,
    #[serde(rename = "ao_adamw_4bit")]
    AoAdamw4bit,
    #[serde(rename = "paged_adamw_8bit")]
    PagedAdamw8bit,
    #[serde(rename = "paged_adamw_32bit")]
    PagedAdamw32bit,
    PagedAdamw,
    Adafactor,
    #[serde(rename = "lion_32bit")]
    Lion32bit,
    #[serde(rename = "lion_8bit")]
    Lion8bit,
    #[serde(rename = "paged_lion_32bit")]
    PagedLion32bit,
    #[serde(rename = "paged_lion_8bit")]
    PagedLion8bit,
    LionPytorch,
    Muon,
    Sgd,
}

/// Learning-rate schedules by transformers' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerName {
    Constant,
    ConstantWithWarmup,
    Linear,
    Cosine,
    CosineWithRestarts,
    CosineWithMinLr,
    Polynomial,
    InverseSqrt,
    OneCycle,
    Rex,
}

/// What to train: all weights when unset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdapterName {
    /// Low-rank adapter on a base in its own precision (or 8 bits).
    Lora,
    /// Low-rank adapter on a 4-bit base.
    Qlora,
}

/// Which end-of-turn tokens are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TrainOn {
    /// Those of trained turns.
    Turn,
    /// Every one.
    All,
    /// Only the last of the conversation.
    Last,
    /// None of them.
    None,
}

/// What happens to rows longer than `sequence_len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExcessLength {
    Drop,
    Truncate,
    Split,
    #[serde(alias = "error")]
    Raise,
}

/// File types of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    Json,
    Jsonl,
    Csv,
    Tsv,
    Parquet,
    Arrow,
    Text,
    Markdown,
}

/// When something happens during training. YAML reads a plain `no` as false.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    No,
    Steps,
    Epoch,
}

/// What to do with special-token text inside a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SpecialTokensInContent {
    /// Parsed as transformers does, counted and warned about.
    Parse,
    /// Tokenised as ordinary text.
    Escape,
    /// The row is an error.
    Error,
}

impl DatasetType {
    pub fn format(&self) -> Option<Format> {
        match self {
            DatasetType::Named(format) => Some(*format),
            DatasetType::UserDefined(_) => None,
        }
    }
}

impl<'de> Deserialize<'de> for AutoFlag {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = AutoFlag;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or auto")
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<AutoFlag, E> {
                Ok(if on { AutoFlag::On } else { AutoFlag::Off })
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<AutoFlag, E> {
                if text == "auto" {
                    Ok(AutoFlag::Auto)
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(text), &self))
                }
            }
        }
        from.deserialize_any(V)
    }
}

impl Serialize for AutoFlag {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            AutoFlag::Auto => to.serialize_str("auto"),
            AutoFlag::On => to.serialize_bool(true),
            AutoFlag::Off => to.serialize_bool(false),
        }
    }
}

impl JsonSchema for AutoFlag {
    fn schema_name() -> Cow<'static, str> {
        "AutoFlag".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [{"type": "boolean"}, {"type": "string", "enum": ["auto"]}]})
    }
}

impl<'de> Deserialize<'de> for Checkpointing {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Checkpointing;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, a number of layers, offload or offload_disk")
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Checkpointing, E> {
                Ok(if on { Checkpointing::On } else { Checkpointing::Off })
            }
            fn visit_u64<E: de::Error>(self, layers: u64) -> Result<Checkpointing, E> {
                Ok(if layers == 0 { Checkpointing::Off } else { Checkpointing::Every(layers) })
            }
            fn visit_i64<E: de::Error>(self, layers: i64) -> Result<Checkpointing, E> {
                match u64::try_from(layers) {
                    Ok(layers) => self.visit_u64(layers),
                    Err(_) => Err(E::invalid_value(de::Unexpected::Signed(layers), &self)),
                }
            }
            fn visit_str<E: de::Error>(self, _: &str) -> Result<Checkpointing, E> {
                Ok(Checkpointing::On)
            }
        }
        from.deserialize_any(V)
    }
}

impl Serialize for Checkpointing {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Checkpointing::Every(layers) => to.serialize_u64(*layers),
            other => to.serialize_bool(*other == Checkpointing::On),
        }
    }
}

impl JsonSchema for Checkpointing {
    fn schema_name() -> Cow<'static, str> {
        "Checkpointing".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [
            {"type": "boolean"},
            {"type": "string", "enum": ["offload", "offload_disk", "unsloth"]},
            {"type": "integer", "minimum": 0}
        ]})
    }
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match Targets::deserialize(from)? {
            Targets::Names(names) => Ok(OneOrMany(names)),
            Targets::Regex(one) => Ok(OneOrMany(vec![one])),
        }
    }
}

impl Serialize for OneOrMany {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(to)
    }
}

impl JsonSchema for OneOrMany {
    fn schema_name() -> Cow<'static, str> {
        "OneOrMany".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [
            {"type": "string", "pattern": "\\S"},
            {"type": "array", "items": {"type": "string", "pattern": "\\S"}}
        ]})
    }
}

impl<'de> Deserialize<'de> for Strategy {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Strategy;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("no, steps or epoch")
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Strategy, E> {
                match on {
                    false => Ok(Strategy::No),
                    true => Err(E::invalid_value(de::Unexpected::Bool(on), &self)),
                }
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Strategy, E> {
                match text {
                    "no" => Ok(Strategy::No),
                    "steps" => Ok(Strategy::Steps),
                    "epoch" => Ok(Strategy::Epoch),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        from.deserialize_any(V)
    }
}

impl JsonSchema for Strategy {
    fn schema_name() -> Cow<'static, str> {
        "Strategy".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [{"type": "string", "enum": ["no", "steps", "epoch"]}, {"const": false}]})
    }
}

impl<'de> Deserialize<'de> for Targets {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Targets;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Targets, E> {
                Ok(Targets::Regex(text.to_string()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Targets, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = seq.next_element()? {
                    names.push(name);
                }
                Ok(Targets::Names(names))
            }
        }
        from.deserialize_any(V)
    }
}

impl Serialize for Targets {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Targets::Names(names) => names.serialize(to),
            Targets::Regex(text) => to.serialize_str(text),
        }
    }
}

impl JsonSchema for Targets {
    fn schema_name() -> Cow<'static, str> {
        "Targets".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]})
    }
}

impl<T> Toggle<T> {
    pub fn on(&self) -> Option<&T> {
        match self {
            Toggle::On(section) => Some(section),
            Toggle::Off => None,
        }
    }
}

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for Toggle<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct V<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Default> Visitor<'de> for V<T> {
            type Value = Toggle<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or a section")
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Toggle<T>, E> {
                Ok(if on { Toggle::On(T::default()) } else { Toggle::Off })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Toggle<T>, A::Error> {
                T::deserialize(de::value::MapAccessDeserializer::new(map)).map(Toggle::On)
            }
        }
        from.deserialize_any(V(std::marker::PhantomData))
    }
}

impl<T: Serialize> Serialize for Toggle<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Toggle::Off => to.serialize_bool(false),
            Toggle::On(section) => section.serialize(to),
        }
    }
}

impl<T: JsonSchema> JsonSchema for Toggle<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("Toggle{}", T::schema_name()).into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let section = generator.subschema_for::<T>();
        json_schema!({"anyOf": [section, {"type": "boolean"}]})
    }
}

impl<'de> Deserialize<'de> for DatasetType {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = DatasetType;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a format, or a map of columns and prompts")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<DatasetType, E> {
                Format::deserialize(de::value::StrDeserializer::new(text)).map(DatasetType::Named)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<DatasetType, A::Error> {
                UserDefined::deserialize(de::value::MapAccessDeserializer::new(map)).map(DatasetType::UserDefined)
            }
        }
        from.deserialize_any(V)
    }
}

impl Serialize for DatasetType {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            DatasetType::Named(format) => format.serialize(to),
            DatasetType::UserDefined(map) => map.serialize(to),
        }
    }
}

impl JsonSchema for DatasetType {
    fn schema_name() -> Cow<'static, str> {
        "DatasetType".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let format = generator.subschema_for::<Format>();
        let user = generator.subschema_for::<UserDefined>();
        json_schema!({"anyOf": [format, user]})
    }
}
