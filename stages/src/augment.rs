//! Augment: more training rows from the ones there are.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How training rows are multiplied. Validation and test rows are never touched.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AugmentSection {
    /// How often each row occurs.
    #[schemars(range(min = 1), extend("default" = 1))]
    pub repeat: Option<u64>,
    /// Ways to word a request, with `{request}` for the row's own; each row gains one reworded copy per `copies`.
    #[schemars(extend("examples" = [["{request}, please.", "Could you tell me: {request}"]]))]
    pub paraphrase: Option<Vec<String>>,
    /// Reworded copies of each row, each with another of the `paraphrase` templates.
    #[schemars(range(min = 1), extend("default" = 1))]
    pub copies: Option<u64>,
    /// Another seed chooses other templates.
    #[schemars(extend("default" = 42))]
    pub seed: Option<u64>,
}
