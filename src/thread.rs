//! The one place where threads are made: named, counted against a budget, a panic reported and survived.
//!
//! Past the system's limits the standard library aborts the process (a thread whose signal stack cannot be mapped), so
//! the daemon keeps well below them: [`set_limit`] fixes a budget at start, and a thread beyond it is an error to
//! whoever asked. It must not know what the threads do.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};

/// Stack of a thread that does I/O only.
pub const IO_STACK: usize = 256 * 1024;
/// Stack of a thread that may run Lua, TLS or deeply nested JSON.
pub const DEEP_STACK: usize = 2 * 1024 * 1024;

static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Sets how many threads made here may live at once.
pub fn set_limit(threads: usize) {
    LIMIT.store(threads, Ordering::Relaxed);
}

/// The limit in force.
#[must_use]
pub fn limit() -> usize {
    LIMIT.load(Ordering::Relaxed)
}

/// Prepares the kernel for as many threads at rest as there may be live sessions: one chain each, up to a megabyte of them.
///
/// To be called before the first thread is made: the kernel waits for 30 ms to change the table of a process that has more
/// than one, longer than all the rest of a start.
pub fn expect_sleepers(live: usize) {
    // Refused by a kernel that has one table for the threads of all: that one is large enough.
    let _ = crate::sys::spread_sleepers(live.clamp(256, 16_384).next_power_of_two());
}

/// How many threads made here live now.
#[must_use]
pub fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}

/// A place in the count, given back when the thread ends (or was never made).
struct Slot;

impl Slot {
    fn take() -> io::Result<Self> {
        let limit = limit();
        COUNT
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < limit).then_some(n + 1))
            .map(|_| Self)
            .map_err(|n| {
                io::Error::new(
                    io::ErrorKind::WouldBlock,
                    format!("{n} threads are running, the most that is safe here"),
                )
            })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        COUNT.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Starts a named thread. The first 15 bytes of the name are what the system shows.
///
/// A panic in it is logged by the panic hook and comes out of `join` as an error; it ends nothing else.
///
/// # Errors
/// The budget is used up, or the system has no thread or memory to give.
pub fn spawn<T: Send + 'static>(
    name: impl Into<String>,
    stack: usize,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let slot = Slot::take()?;
    Builder::new().name(name.into()).stack_size(stack).spawn(move || {
        let _slot = slot;
        body()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_the_threads_own() {
        let before = count();
        let t = spawn("doomed", IO_STACK, || panic!("on purpose")).expect("a thread");
        assert!(t.join().is_err());
        assert!(count() <= before + 8, "slots are given back");
    }
}
