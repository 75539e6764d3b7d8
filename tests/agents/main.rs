//! The agents, each against a real other side: a scripted ACP program, the shell, a small HTTP server.
#![allow(clippy::unwrap_used, missing_docs)]

mod acp;
mod exec;
mod host;
mod odd;
mod openai;
mod process;
mod settings;
