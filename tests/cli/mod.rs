//! What a user sees: the real binary in a sealed environment.

mod bad_input;
mod crash;
mod display;
mod gallery;
mod harness;
mod importing;
mod incremental;
mod looking;
mod mutations;
mod planning;
mod reuse;
mod whole_path;
