//! The engine: recipe documents with positions, plans, keys, the store, the scheduler and the record of runs.
//!
//! It names no stage and knows nothing of tables, tokenizers or models: a node is a [`task::Task`] with inputs, and its
//! output is a folder of files. What a stage means lives in `pipe-stages`.

pub mod bucket;
pub mod cache;
mod credentials;
pub mod digest;
pub mod document;
mod earlier;
pub mod event;
mod execute;
mod export;
pub mod key;
mod lock;
pub mod manifest;
pub mod memo;
pub mod memory;
pub mod outline;
pub mod plan;
pub mod problem;
pub mod record;
pub mod remote;
pub mod runs;
pub mod schedule;
mod secret;
pub mod seen;
mod sharing;
pub mod state;
pub mod store;
pub mod task;
pub mod why;

#[cfg(test)]
mod tests;
