//! The engine run with fake stages: what runs, what does not, and what is left behind.
#![allow(clippy::unwrap_used)]

mod caring;
mod crash;
mod damage;
mod fake;
mod incremental;
mod model;
mod running;
mod sharing;
