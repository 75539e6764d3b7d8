//! `ostler-shim`: the parent of one agent's process, which outlives the daemon; and the daemon's side of its protocol.
//!
//! The shim starts one agent, relays its three streams, and ends it with all that it started. The daemon may die and come
//! back: output is kept and numbered until it is acknowledged, and a frame of input is taken once. The protocol is told in
//! ARCHITECTURE.md, "The shim's protocol".
//!
//! [`frame`] and [`start`] are the codec, [`proof`] shows who is who, [`machine`] decides: these four do no I/O and read no
//! clock. [`buffer`], [`spool`], [`ring`] and [`input`] keep bytes; [`child`] and [`family`] make and end processes; [`run`]
//! and [`conn`] are the loop of the binary. [`launch`] and [`client`] are the daemon's side. Nothing here knows a protocol
//! of agents, JSON, a database, or a configuration.

pub mod buffer;
pub mod child;
pub mod client;
pub mod conn;
pub mod family;
pub mod frame;
pub mod input;
pub mod landlock;
pub mod launch;
pub mod machine;
pub mod proof;
pub mod ring;
pub mod run;
pub mod spool;
pub mod start;
