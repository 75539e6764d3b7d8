//! What the daemon's parts ask of the machine: the time, and threads. A test of the real parts passes its own.
//!
//! Deadlines are taken from [`Runtime::now`], times that are stored or shown from [`Runtime::wall`]. It must not know
//! what a job does.

use std::io;
use std::thread::JoinHandle;
use std::time::Instant;

use crate::clock::{self, Millis};
use crate::thread;

/// What a thread is to do.
pub type Job = Box<dyn FnOnce() + Send>;

/// Time and threads.
pub trait Runtime: Send + Sync {
    /// The monotonic clock: for every deadline.
    fn now(&self) -> Instant;

    /// The wall clock, in milliseconds since the epoch: for what is stored and shown. It may jump.
    fn wall(&self) -> Millis;

    /// Runs a job for a client or a session on a thread of its own, with so many bytes of stack; `None`: the job is
    /// run, but there is no thread to join.
    ///
    /// # Errors
    /// There is no room for another thread. The job is dropped.
    fn spawn(&self, name: String, stack: usize, job: Job) -> io::Result<Option<JoinHandle<()>>>;

    /// As [`Self::spawn`], for what the daemon itself needs: threads are kept back for it.
    ///
    /// # Errors
    /// There is no room for another thread. The job is dropped.
    fn spawn_own(&self, name: String, stack: usize, job: Job) -> io::Result<Option<JoinHandle<()>>>;
}

/// The machine's clocks and threads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine;

impl Runtime for Machine {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall(&self) -> Millis {
        clock::now()
    }

    fn spawn(&self, name: String, stack: usize, job: Job) -> io::Result<Option<JoinHandle<()>>> {
        thread::spawn(name, stack, job).map(Some)
    }

    fn spawn_own(&self, name: String, stack: usize, job: Job) -> io::Result<Option<JoinHandle<()>>> {
        thread::spawn_own(name, stack, job).map(Some)
    }
}
