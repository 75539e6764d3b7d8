//! The one place where threads are made: named, counted against a budget, a panic reported and survived.
//!
//! Past the system's limits the standard library aborts the process (a thread whose signal stack cannot be mapped), so
//! the daemon keeps well below them: [`set_limit`] fixes a budget at start, and a thread beyond it is an error to
//! whoever asked. A part of the budget is kept back for what the daemon itself needs ([`spawn_own`]): however many clients
//! and sessions there are, a stop, a reload, the hooks and the store get theirs. It must not know what the threads do.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};

/// Stack of a thread that does I/O only.
pub const IO_STACK: usize = 256 * 1024;
/// Stack of a thread that may run Lua, TLS or deeply nested JSON.
pub const DEEP_STACK: usize = 2 * 1024 * 1024;

static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);
static RESERVE: AtomicUsize = AtomicUsize::new(0);
/// All, and those among them that are the daemon's own.
static COUNT: AtomicUsize = AtomicUsize::new(0);
static OWN: AtomicUsize = AtomicUsize::new(0);

/// Sets how many threads made here may live at once, and how many of them are kept back for the daemon's own: at most half.
pub fn set_limit(threads: usize, reserve: usize) {
    RESERVE.store(reserve.min(threads / 2), Ordering::Relaxed);
    LIMIT.store(threads, Ordering::Relaxed);
}

/// The limit in force.
#[must_use]
pub fn limit() -> usize {
    LIMIT.load(Ordering::Relaxed)
}

/// How many threads are kept back for the daemon's own.
#[must_use]
pub fn reserve() -> usize {
    RESERVE.load(Ordering::Relaxed)
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

/// Whether there is room for one more. `own`: how many of the daemon's own live; what is left of their reserve is free for
/// them alone.
const fn has_room(count: usize, own: usize, limit: usize, reserve: usize, is_own: bool) -> bool {
    let kept = if is_own { 0 } else { reserve.saturating_sub(own) };
    count < limit.saturating_sub(kept)
}

/// A place in the count, given back when the thread ends (or was never made).
struct Slot {
    is_own: bool,
}

impl Slot {
    fn take(is_own: bool) -> io::Result<Self> {
        let (limit, reserve) = (limit(), reserve());
        let room = |n: usize| has_room(n, OWN.load(Ordering::Relaxed), limit, reserve, is_own).then_some(n + 1);
        match COUNT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room) {
            Ok(_) => {
                OWN.fetch_add(usize::from(is_own), Ordering::Relaxed);
                Ok(Self { is_own })
            }
            Err(n) => {
                let kept = if is_own { String::new() } else { format!(", {reserve} are kept for the daemon's own") };
                let why = format!("{n} threads are running, the most that is safe here is {limit}{kept}");
                Err(io::Error::new(io::ErrorKind::WouldBlock, why))
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        OWN.fetch_sub(usize::from(self.is_own), Ordering::Relaxed);
        COUNT.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Starts a named thread for a client or a session. The first 15 bytes of the name are what the system shows.
///
/// A panic in it is logged by the panic hook and comes out of `join` as an error; it ends nothing else.
///
/// # Errors
/// The budget is used up, but for what is kept for the daemon's own; or the system has no thread or memory to give.
pub fn spawn<T: Send + 'static>(
    name: impl Into<String>,
    stack: usize,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    start(false, name.into(), stack, body)
}

/// As [`spawn`], for what the daemon itself needs: the number of such threads does not grow with clients and sessions.
///
/// # Errors
/// The whole budget is used up, or the system has no thread or memory to give.
pub fn spawn_own<T: Send + 'static>(
    name: impl Into<String>,
    stack: usize,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    start(true, name.into(), stack, body)
}

fn start<T: Send + 'static>(
    is_own: bool,
    name: String,
    stack: usize,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let slot = Slot::take(is_own)?;
    Builder::new().name(name).stack_size(stack).spawn(move || {
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

    #[test]
    fn the_reserve_is_for_the_daemons_own() {
        // Of ten, four are kept: count, own, and whether a guest and an own thread have room.
        for (count, own, guest, mine) in [
            (0, 0, true, true),
            (5, 0, true, true),
            (6, 0, false, true),
            (6, 3, true, true),
            (9, 3, false, true),
            (9, 4, true, true),
            (9, 7, true, true),
            (10, 4, false, false),
        ] {
            let room = |is_own| has_room(count, own, 10, 4, is_own);
            assert_eq!((room(false), room(true)), (guest, mine), "{count} with {own}");
        }
        assert!(has_room(1 << 40, 0, usize::MAX, 0, false), "without a limit");
    }
}
