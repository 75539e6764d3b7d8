//! Processes: whose child is it, and what /proc says. Below everybody who starts one (agents, and hooks' `ostler.exec`);
//! it must not know what they run.

mod children;
pub mod mark;
pub mod moment;
pub mod origin;
mod piped_child;
pub mod procfs;

pub use children::{
    Registered, any_made, is_inherited, is_registered, note_descriptors, note_inherited, reap_strays, set_apart, spawn,
};
pub use piped_child::{NoChild, PipedChild, has_ended};
