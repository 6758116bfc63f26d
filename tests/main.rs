//! The one test binary of the whole: what a user sees, and the house rules.
#![allow(clippy::unwrap_used)]

mod cli;
mod tidy;
