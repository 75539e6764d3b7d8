//! scaffold
#![allow(missing_docs)]
pub mod agent;
pub mod api;
pub mod client;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod failpoint;
pub mod hooks;
pub mod http;
pub mod log;
pub mod model;
pub mod store;
pub mod sys;
pub mod thread;
