//! The daemon from outside: what PRODUCT.md and INTERFACE.md promise, asked of the real binary.
#![allow(clippy::unwrap_used, missing_docs)]

mod daemon;
mod invariants;
mod talk;
