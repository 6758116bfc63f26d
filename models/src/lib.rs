//! The libtorch side of pipe: models, kernels, the training loop and everything else that touches weights in memory.
//!
//! The binary `pipe-torch` is the only program that links this crate. It must not know recipes, plans or stores:
//! a job comes in, events and files go out.

pub mod attention;
pub mod decoder;
pub mod device;
pub mod error;
pub mod events;
#[cfg(test)]
mod fixture;
pub mod kernels;
pub mod linear;
pub mod load;
pub mod loss;
pub mod nf4;
pub mod random;
pub mod shim;

pub use error::{ModelError, Result};
