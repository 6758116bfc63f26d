//! Located complaints about a recipe or its inputs; what `validate --json` prints.

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Error,
    Warning,
    /// Accepted, and without effect here.
    Notice,
}

/// One complaint, with the place it is about and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub severity: Severity,
    /// Stable name, documented in docs/problems.md, such as `unknown-key`.
    pub code: &'static str,
    /// What is wrong and why, one sentence.
    pub message: String,
    /// The recipe file as the user named it.
    pub file: String,
    /// 1-based; absent where nothing was written (a missing key).
    pub line: Option<usize>,
    /// 1-based, in characters.
    pub column: Option<usize>,
    /// Dotted path such as `datasets[0].type`.
    pub key: Option<String>,
    /// What to write instead; contains the word to write.
    pub suggestion: Option<String>,
}

impl Problem {
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}
