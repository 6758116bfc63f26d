//! `config.json` by field, with transformers' defaults where a family says so. Knows no family.

use std::path::Path;

use serde_json::{Map, Value as Json};

use crate::config::Activation;
use crate::{FilesError, Rope, RopeScaling};

/// A configuration file's object.
pub(crate) struct Fields<'a> {
    pub path: &'a Path,
    pub object: &'a Map<String, Json>,
}

impl Fields<'_> {
    /// The first of several spellings that is there and not null.
    pub fn get(&self, keys: &[&str]) -> Option<&Json> {
        keys.iter().filter_map(|key| self.object.get(*key)).find(|value| !value.is_null())
    }

    /// A positive whole number that must be there, under one of its spellings.
    pub fn size(&self, keys: &[&str]) -> Result<usize, FilesError> {
        let value = self.optional_size(keys)?;
        value.filter(|v| *v > 0).ok_or_else(|| missing(self.path, keys[0]))
    }

    pub fn optional_size(&self, keys: &[&str]) -> Result<Option<usize>, FilesError> {
        let Some(value) = self.get(keys) else { return Ok(None) };
        let number = value.as_u64().and_then(|v| usize::try_from(v).ok());
        number
            .map(Some)
            .ok_or_else(|| self.wrong(keys[0], format!("is {value}, which is not a whole number of 0 or more")))
    }

    pub fn float(&self, key: &str) -> Option<f64> {
        self.object.get(key).and_then(Json::as_f64)
    }

    /// A truth value, or what holds when the file is silent.
    pub fn flag(&self, key: &str, silent: bool) -> bool {
        self.object.get(key).and_then(Json::as_bool).unwrap_or(silent)
    }

    /// Token ids: one number or a list.
    pub fn tokens(&self, key: &str) -> Vec<u32> {
        let one = |v: &Json| v.as_u64().and_then(|v| u32::try_from(v).ok());
        match self.object.get(key) {
            Some(Json::Array(items)) => items.iter().filter_map(one).collect(),
            Some(value) => one(value).into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// Key-value heads: `silent` when the file does not say, as many as query heads when it says null.
    pub fn kv_heads(&self, heads: usize, silent: Option<usize>) -> Result<usize, FilesError> {
        let keys = ["num_key_value_heads", "num_kv_heads"];
        let said = keys.iter().any(|key| self.object.contains_key(*key));
        Ok(self.optional_size(&keys)?.unwrap_or(if said { heads } else { silent.unwrap_or(heads) }))
    }

    pub fn activation(&self, keys: &[&str], silent: Activation) -> Result<Activation, FilesError> {
        let Some(value) = self.get(keys) else { return Ok(silent) };
        let name = value.as_str().unwrap_or_default();
        Activation::named(name).ok_or_else(|| {
            let known: Vec<&str> = Activation::NAMES.iter().map(|(name, _)| *name).collect();
            self.wrong(keys[0], format!("is {value}; supported are {}", known.join(", ")))
        })
    }

    /// Refuses a setting under which the network would be another one.
    pub fn refuse(&self, key: &str, bad: bool, why: &str) -> Result<(), FilesError> {
        if bad { Err(self.wrong(key, why.to_owned())) } else { Ok(()) }
    }

    pub fn wrong(&self, key: &str, what: String) -> FilesError {
        FilesError::Config { path: self.path.to_owned(), key: key.to_owned(), what }
    }

    /// `layer_types` of transformers 5: whether each layer attends within a window.
    pub fn sliding_layers(&self, layers: usize) -> Result<Option<Vec<bool>>, FilesError> {
        let Some(Json::Array(types)) = self.object.get("layer_types") else { return Ok(None) };
        let one =
            |kind: &Json| match kind.as_str() {
                Some("full_attention") => Ok(false),
                Some("sliding_attention") => Ok(true),
                _ => Err(self
                    .wrong("layer_types", format!("holds {kind}; full_attention and sliding_attention are supported"))),
            };
        let all = types.iter().map(one).collect::<Result<Vec<bool>, _>>()?;
        let whole = all.len() == layers;
        self.refuse("layer_types", !whole, &format!("has {} entries for {layers} layers", all.len()))?;
        Ok(Some(all))
    }

    /// The rotary positions that `rope_parameters` (transformers 5), `rope_scaling` or top-level keys describe.
    pub fn rope(&self, head_dim: usize, max_positions: usize, silent: RopeDefaults) -> Result<Rope, FilesError> {
        let nested = self.get(&["rope_scaling"]).filter(|r| r.as_object().is_some_and(|o| !o.is_empty()));
        let object = nested.or_else(|| self.get(&["rope_parameters"])).and_then(Json::as_object);
        let empty = Map::new();
        let by_layer = object.is_some_and(|o| o.contains_key("full_attention") || o.contains_key("sliding_attention"));
        self.refuse("rope_parameters", by_layer, "differ by layer type, which this architecture has no place for")?;
        self.rope_of(object.unwrap_or(&empty), head_dim, max_positions, silent)
    }

    /// Rotary positions from one object of rope parameters.
    pub fn rope_of(
        &self,
        object: &Map<String, Json>,
        head_dim: usize,
        max_positions: usize,
        silent: RopeDefaults,
    ) -> Result<Rope, FilesError> {
        let number = |key: &str| object.get(key).and_then(Json::as_f64);
        let theta = number("rope_theta").or_else(|| self.float(silent.theta_key)).unwrap_or(silent.theta);
        let share = number("partial_rotary_factor").or_else(|| self.float(silent.partial_key)).unwrap_or(1.0);
        let share = match silent.partial {
            None => 1.0,
            Some(own) if number("partial_rotary_factor").or_else(|| self.float(silent.partial_key)).is_none() => own,
            Some(_) => share,
        };
        let dim = ((head_dim as f64 * share) as usize).next_multiple_of(2);
        let scaling = self.scaling(object, dim, max_positions, silent)?;
        Ok(Rope { theta, dim, max_positions, scaling })
    }

    fn scaling(
        &self,
        object: &Map<String, Json>,
        dim: usize,
        max_positions: usize,
        silent: RopeDefaults,
    ) -> Result<Option<RopeScaling>, FilesError> {
        let kind = object.get("rope_type").or_else(|| object.get("type")).and_then(Json::as_str).unwrap_or("default");
        let number = |key: &str| object.get(key).and_then(Json::as_f64);
        let need = |key: &str| {
            number(key).ok_or_else(|| self.wrong("rope_scaling", format!("of type {kind} has no number {key}")))
        };
        let top = self.float("original_max_position_embeddings").or(silent.original);
        let original = top.or_else(|| number("original_max_position_embeddings")).unwrap_or(max_positions as f64);
        match kind {
            "default" => Ok(None),
            "linear" => Ok(Some(RopeScaling::Linear { factor: need("factor")? })),
            "dynamic" => Ok(Some(RopeScaling::Dynamic { factor: need("factor")? })),
            "llama3" => Ok(Some(RopeScaling::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_max_positions: original,
            })),
            "longrope" | "su" => self.longrope(object, dim, max_positions, original).map(Some),
            // Phi-3's first files call it so.
            "yarn" if object.contains_key("long_factor") => self.longrope(object, dim, max_positions, original).map(Some),
            "yarn" => {
                let factor = number("factor").unwrap_or(max_positions as f64 / original);
                let scale = |by: f64| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
                let inferred = match (number("mscale"), number("mscale_all_dim")) {
                    (Some(one), Some(all)) if one != 0.0 && all != 0.0 => scale(one) / scale(all),
                    _ => scale(1.0),
                };
                let given = |key: &str, silent: f64| number(key).filter(|v| *v != 0.0).unwrap_or(silent);
                Ok(Some(RopeScaling::Yarn {
                    factor,
                    original,
                    attention_factor: number("attention_factor").unwrap_or(inferred),
                    beta_fast: given("beta_fast", 32.0),
                    beta_slow: given("beta_slow", 1.0),
                    truncate: object.get("truncate").and_then(Json::as_bool).unwrap_or(true),
                }))
            }
            other => Err(self.wrong(
                "rope_scaling",
                format!(
                    "is of type {other:?}; supported are default, linear, dynamic, yarn, llama3 and longrope. Remove it to \
                     use plain rotary positions"
                ),
            )),
        }
    }

    fn longrope(
        &self,
        object: &Map<String, Json>,
        dim: usize,
        max_positions: usize,
        original: f64,
    ) -> Result<RopeScaling, FilesError> {
        let list = |key: &str| {
            let items = object.get(key).and_then(Json::as_array).into_iter().flatten();
            let factors: Vec<f32> = items.filter_map(|v| v.as_f64().map(|v| v as f32)).collect();
            let why = format!("of type longrope needs {} numbers in {key}, not {}", dim / 2, factors.len());
            self.refuse("rope_scaling", factors.len() != dim / 2, &why).map(|()| factors)
        };
        let number = |key: &str| object.get(key).and_then(Json::as_f64);
        let factor = number("factor").unwrap_or(max_positions as f64 / original);
        let inferred = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
        Ok(RopeScaling::LongRope {
            short: list("short_factor")?,
            long: list("long_factor")?,
            original: original as usize,
            attention_factor: number("attention_factor").unwrap_or(inferred),
        })
    }
}

/// What a family's files may leave out about rotary positions, and how they spell it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RopeDefaults {
    pub theta: f64,
    pub theta_key: &'static str,
    /// The share of a head that is rotated when the file is silent; `None` where the family always rotates all of it.
    pub partial: Option<f64>,
    pub partial_key: &'static str,
    /// `original_max_position_embeddings` of the family's class.
    pub original: Option<f64>,
}

impl RopeDefaults {
    pub const PLAIN: Self = Self {
        theta: 10_000.0,
        theta_key: "rope_theta",
        partial: None,
        partial_key: "partial_rotary_factor",
        original: None,
    };
}

pub(crate) fn missing(path: &Path, key: &str) -> FilesError {
    let what = "is missing or not a positive whole number; the file is not a complete model configuration".to_owned();
    FilesError::Config { path: path.to_owned(), key: key.to_owned(), what }
}
