//! What a section says of its own values that their types alone cannot judge; the checks put it in its place.

/// A value that is wrong in itself or beside its neighbours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The problem's code, as docs/problems.md lists it.
    pub code: &'static str,
    /// The key, from the section on.
    pub key: String,
    pub why: String,
    /// What to write.
    pub instead: Option<String>,
}

impl Mistake {
    pub fn value(key: impl Into<String>, why: impl Into<String>, instead: Option<String>) -> Mistake {
        Mistake { code: "unfit-value", key: key.into(), why: why.into(), instead }
    }

    pub fn missing(key: impl Into<String>, why: impl Into<String>, instead: Option<String>) -> Mistake {
        Mistake { code: "missing-key", ..Mistake::value(key, why, instead) }
    }
}
