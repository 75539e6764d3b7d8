//! ostler keeps AI-agent sessions: it takes a conversation in, runs one agent for it, carries it through restarts and
//! crashes, and sees it off exactly once.
//!
//! A tour in reading order: [`model`] is every decision, pure; [`store`] is where truth lives; [`daemon`]
//! has the threads, with the coordinator's one loop and a worker a session; [`agent`] is whatever answers; [`hooks`] the
//! operator's Lua; [`http`] a small server that knows nothing of ostler, and [`api`] what it serves; [`client`] and
//! [`cli`] the other side; [`shim`] the other binary, the parent of an agent's process. [`config`], [`log`], [`proc`],
//! [`clock`], [`awake`], [`thread`], [`exit`], [`reserved`] and [`sys`] are below them all.

#![warn(missing_docs)]
// Module documentation is written for whoever reads the code, and names what is private to it.
#![allow(rustdoc::private_intra_doc_links)]

#[cfg(all(feature = "vendored-lua", feature = "system-lua"))]
compile_error!("vendored-lua and system-lua exclude each other: add --no-default-features to --features system-lua");
#[cfg(not(any(feature = "vendored-lua", feature = "system-lua")))]
compile_error!("which Lua? One of the features vendored-lua (the default) and system-lua is needed");

pub mod agent;
pub mod api;
pub mod awake;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod exit;
pub mod failpoint;
pub mod hooks;
pub mod http;
pub mod log;
pub mod model;
pub mod proc;
pub mod reserved;
pub mod serve;
pub mod service;
pub mod shim;
pub mod sse;
pub mod store;
pub mod sys;
pub mod thread;
