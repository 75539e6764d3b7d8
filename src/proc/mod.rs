//! Processes: whose child is it, and what /proc says. Below everybody who starts one (agents, and hooks' `ostler.exec`);
//! it must not know what they run.

mod children;
pub mod mark;
pub mod origin;
pub mod procfs;

pub use children::{Registered, any_made, is_registered, reap_strays, spawn};
