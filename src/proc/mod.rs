//! Processes: how children are started, marked and reaped, and what /proc says of processes. Agents and `ostler.exec`
//! use it. It must not know what they run.

pub mod cgroup;
mod children;
pub mod mark;
pub mod moment;
pub mod origin;
mod piped_child;
pub mod procfs;

pub use children::{
    Registered, any_made, inherited, is_inherited, is_registered, note_descriptors, note_inherited, reap_strays,
    set_apart, spawn,
};
pub use piped_child::{NoChild, PipedChild, has_ended};
