//! The shim from outside: the real binary, agents that are small scripts, and clients that come and go.
#![allow(clippy::unwrap_used, missing_docs)]

mod confine;
mod ends;
mod fuzz;
mod relay;
mod rig;
mod starts;
mod who;
