//! The recipe's typed keys and the twelve stages.
//!
//! A stage is one file: the section its keys come from, the resolved configuration that is its cache key, and its run.
//! [`compile`] turns a recipe into nodes of the engine's plan. Nothing here prints, chooses exit codes, or names libtorch:
//! training, evaluation, merging and quantising are jobs for the worker ([`worker`]).

mod agreement;
mod alike;
pub mod augment;
pub mod chat;
pub mod clean;
mod companions;
pub mod compile;
pub mod conversation;
pub mod convert;
pub mod eval;
pub mod fetch;
mod fingerprint;
pub mod generator;
mod hex;
pub mod import;
mod importance;
pub mod ingest;
pub mod inspect;
pub mod memory;
pub mod merge;
pub mod mix;
pub mod model;
pub mod pack;
pub mod project;
pub mod prompter;
pub mod quantize;
pub mod recipe;
pub mod reuse;
pub mod rows;
pub mod show;
pub mod size;
pub mod split;
pub mod template;
pub mod tokenize;
pub mod track;
pub mod train;
pub mod worker;
