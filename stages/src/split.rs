//! Split: train, validation and test rows by content.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Rows held out of training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SplitSection {
    /// Validation rows: a share below 1, or a count.
    #[schemars(range(min = 0.0), extend("default" = 0.0))]
    pub val: Option<f64>,
    /// Test rows: a share below 1, or a count.
    #[schemars(range(min = 0.0), extend("default" = 0.0))]
    pub test: Option<f64>,
    /// Another seed holds out other rows.
    #[schemars(extend("default" = 42))]
    pub seed: Option<u64>,
    /// Column whose every value is held out in the same proportion.
    pub stratify_by: Option<String>,
    /// Column whose equal values stay together on one side.
    pub group_by: Option<String>,
}
