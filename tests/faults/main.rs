//! The daemon with faults: killed between any two steps, stalled, starved, its agents and handlers misbehaving.
//!
//! Needs the feature `failpoints`. `OSTLER_KILLS` is how many times the daemon is killed under load in one run,
//! `OSTLER_KILL_SEED` repeats a run.
#![allow(clippy::unwrap_used, missing_docs)]

#[allow(dead_code)] // Shared with the tests from outside.
#[path = "../it/daemon/mod.rs"]
mod daemon;
#[path = "../it/invariants.rs"]
mod invariants;

mod clock;
mod delivery;
mod disk;
mod faults;
mod kept;
mod load;
mod power;
mod rig;
mod stop;
mod stuck;
mod threads;
