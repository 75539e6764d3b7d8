//! The daemon from outside: what PRODUCT.md and INTERFACE.md promise, asked of the real binary.
#![allow(clippy::unwrap_used, missing_docs)]

mod accept;
mod access;
mod adopted;
mod agents;
mod bad;
mod bus;
mod busy;
mod completion;
#[allow(dead_code)] // Shared with the tests of faults.
mod daemon;
mod damage;
mod dirs;
mod endpoint;
mod ends;
mod flight;
mod hooks;
mod in_place;
mod invariants;
mod kept;
mod kill;
mod leftovers;
mod limits;
mod manager;
mod marks;
mod operator;
mod restore;
mod start;
mod stop;
mod streams;
mod talk;
mod ways;
