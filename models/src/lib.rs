//! The libtorch side of pipe: models, kernels, the training loop and everything else that touches weights in memory.
//!
//! The binary `pipe-torch` is the only program that links this crate. It must not know recipes, plans or stores:
//! a job comes in, events and files go out.

pub mod adapter;
pub mod agreement;
pub mod attention;
pub mod bitsandbytes;
pub mod cache;
pub mod checkpoint;
pub mod decoder;
pub mod device;
pub mod error;
pub mod eval;
pub mod events;
pub mod few;
#[cfg(test)]
mod fixture;
pub mod generate;
pub mod gguf_blocks;
pub mod importance;
pub mod init;
pub mod int8;
pub mod journal;
pub mod kernels;
pub mod lanes;
pub mod layer;
pub mod layerwise;
pub mod linear;
pub mod load;
pub mod loss;
pub mod merge;
pub mod mlp;
pub mod nf4;
pub mod norm;
pub mod optimizer;
pub mod packs;
pub mod pool;
pub mod quantize;
pub mod random;
pub mod sample;
pub mod schedule;
pub mod serve;
pub mod shim;
pub mod steps;
pub mod tensors;
pub mod token_rows;
pub mod train;
pub mod train_samples;
pub mod tuned;
pub mod tunings;
pub mod whole;
pub mod window;

pub use error::{ModelError, Result};
