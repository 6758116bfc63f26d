//! Clean: drops rows that cannot teach, and whatever else its section asks for.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which rows to drop, and what to change in the others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CleanSection {
    /// Keep the first of equal rows, or of nearly equal ones.
    #[schemars(extend("default" = "none"))]
    pub dedup: Option<Dedup>,
    /// Drop rows with fewer characters than this, counted over all texts of the row.
    #[schemars(range(min = 0))]
    pub min_chars: Option<u64>,
    /// Drop rows with more characters than this, counted over all texts of the row.
    #[schemars(range(min = 1))]
    pub max_chars: Option<u64>,
    /// Drop rows without an answer, or without any text.
    #[schemars(extend("default" = true))]
    pub drop_empty: Option<bool>,
    /// Unix line ends, no control or zero-width characters, no white space at the ends of lines and texts.
    #[schemars(extend("default" = false))]
    pub normalize: Option<bool>,
    /// Similarity from which two rows count as nearly equal: the share of five-word runs in common.
    #[schemars(range(min = 0.1, max = 1.0), extend("default" = 0.8))]
    pub near_threshold: Option<f64>,
}

/// Which rows count as the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dedup {
    /// None: every row stays.
    #[default]
    None,
    /// Rows with equal content.
    Exact,
    /// Rows with equal content, and rows that share most of their words in order.
    Near,
}
