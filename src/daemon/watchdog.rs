//! The watchdog of a stop: when the one deadline has passed, it says what hangs and leaves.
//!
//! It needs nothing that may hang: no allocator, no lock, no log queue, no store. What it would say is kept ready for it
//! in slots that are written once and read without a lock; it says it with one write that cannot block.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::signals;
use crate::thread;

/// How often the facts may change in a stop; the last slot is kept for the end.
const SLOTS: usize = 256;
/// The most that one write without blocking is sure to take.
const ATOMIC: usize = 4096;

static FACTS: [OnceLock<String>; SLOTS] = [const { OnceLock::new() }; SLOTS];
static NEWEST: AtomicUsize = AtomicUsize::new(0);

/// Keeps ready what would be said now.
pub fn facts(text: String) {
    let at = NEWEST.load(Ordering::Acquire);
    if at + 1 < SLOTS && FACTS[at].set(text).is_ok() {
        NEWEST.store(at + 1, Ordering::Release);
    }
}

/// Arms the watchdog: past `deadline` the process leaves with `code`. Dropping the guard disarms it.
///
/// # Errors
/// No thread is to be had.
pub fn arm(deadline: Instant, code: i32) -> io::Result<Sender<()>> {
    let (guard, disarmed) = crossbeam_channel::bounded::<()>(1);
    thread::spawn("deadline", thread::IO_STACK, move || {
        if disarmed.recv_deadline(deadline) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
            say();
            signals::leave(code);
        }
    })?;
    Ok(guard)
}

fn say() {
    let at = NEWEST.load(Ordering::Acquire);
    let text = at
        .checked_sub(1)
        .and_then(|at| FACTS[at].get())
        .map_or("ostler: the stop's deadline has passed\n", String::as_str);
    let stderr = io::stderr();
    let mut fds = [PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::OUT)];
    let none = Timespec::try_from(Duration::ZERO).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
    // A pipe that polls writable takes at least this much without blocking.
    if poll(&mut fds, Some(&none)).is_ok_and(|n| n == 1) {
        let bytes = text.as_bytes();
        let _ = rustix::io::write(fds[0].as_fd(), &bytes[..bytes.len().min(ATOMIC)]);
    }
}
