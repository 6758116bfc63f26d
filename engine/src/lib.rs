//! The engine: recipe documents with positions, plans, keys, the store, the scheduler and the record of runs.
//!
//! It names no stage and knows nothing of tables, tokenizers or models: a node is a [`task::Task`] with inputs, and its
//! output is a folder of files. What a stage means lives in `pipe-stages`.

pub mod digest;
pub mod document;
pub mod event;
pub mod plan;
pub mod problem;
pub mod task;
