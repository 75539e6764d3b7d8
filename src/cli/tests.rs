//! What the commands promise, against a daemon's face that answers as it is told.
#![allow(clippy::unwrap_used)]

mod asked;
mod commands;
mod consent;
mod following;
mod packaging;
mod talking;
mod terminal;
