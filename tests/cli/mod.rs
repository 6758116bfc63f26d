//! What a user sees: the real binary in a sealed environment.

mod bad_input;
mod bucket;
mod comparing;
mod crash;
mod display;
mod evaluating;
mod exporting;
mod gallery;
mod harness;
mod hub;
mod importing;
mod incremental;
mod looking;
mod mutations;
mod planning;
mod remote;
mod report;
mod reuse;
mod serving;
mod sharing;
mod trackers;
mod ui;
mod whole_path;
