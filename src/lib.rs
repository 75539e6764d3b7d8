//! scaffold
#![allow(missing_docs)]
pub mod agent;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod log;
pub mod model;
pub mod thread;
pub mod hooks;
