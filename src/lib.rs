//! scaffold
#![allow(missing_docs)]
pub mod agent;
pub mod clock;
pub mod config;
pub mod model;
pub mod thread;
pub mod hooks;
pub mod http;
