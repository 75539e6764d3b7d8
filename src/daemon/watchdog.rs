//! The watchdog of a stop: when the one deadline has passed, it says what hangs and leaves.
//!
//! It needs nothing that may hang or may not be had: its thread is there from the start, and it uses no allocator, no lock,
//! no log queue, no store. What it would say is kept ready for it in one of two places, of which one is written while the
//! other is the newest; it says it with one write that cannot block. It watches until the process ends: what comes after
//! the stop's last phase is a part of the stop too.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::signals;
use crate::thread;

/// The most that one write without blocking is sure to take.
const ATOMIC: usize = 4096;

/// What would be said: two places, and how often they were written. The newest is the one of that number.
struct Facts {
    places: [[AtomicU8; ATOMIC]; 2],
    lengths: [AtomicUsize; 2],
    written: AtomicUsize,
}

static FACTS: Facts = Facts {
    places: [const { [const { AtomicU8::new(0) }; ATOMIC] }; 2],
    lengths: [const { AtomicUsize::new(0) }; 2],
    written: AtomicUsize::new(0),
};

impl Facts {
    /// Keeps a text. One writer at a time: the coordinator.
    fn keep(&self, text: &str) {
        let written = self.written.load(Ordering::Acquire) + 1;
        let text = &text.as_bytes()[..text.len().min(ATOMIC)];
        for (to, from) in self.places[written % 2].iter().zip(text) {
            to.store(*from, Ordering::Relaxed);
        }
        self.lengths[written % 2].store(text.len(), Ordering::Relaxed);
        self.written.store(written, Ordering::Release);
    }

    /// The newest text: into `to`, and its length.
    fn read(&self, to: &mut [u8; ATOMIC]) -> usize {
        let mut length = 0;
        // Again, should it have been overwritten meanwhile; the coordinator is not that fast.
        for _ in 0..4 {
            let written = self.written.load(Ordering::Acquire);
            length = self.lengths[written % 2].load(Ordering::Relaxed).min(ATOMIC);
            for (to, from) in to.iter_mut().zip(&self.places[written % 2]).take(length) {
                *to = from.load(Ordering::Relaxed);
            }
            if self.written.load(Ordering::Acquire) <= written + 1 {
                break;
            }
        }
        length
    }
}

/// Keeps ready what would be said now; what is beyond a page is cut off.
pub fn facts(text: &str) {
    FACTS.keep(text);
}

static ORDERS: OnceLock<Sender<(Instant, u8)>> = OnceLock::new();

/// Has its thread made, which waits for the first [`arm`]. Dropping what is returned disarms it for good.
///
/// # Errors
/// No thread is to be had.
pub fn start() -> io::Result<Sender<()>> {
    let (guard, disarmed) = crossbeam_channel::bounded::<()>(1);
    let (orders, ordered) = crossbeam_channel::bounded(1);
    thread::spawn_own("deadline", thread::IO_STACK, move || {
        let Ok((deadline, code)) = ordered.recv() else { return };
        if disarmed.recv_deadline(deadline) == Err(RecvTimeoutError::Timeout) {
            say();
            signals::leave(code);
        }
    })?;
    let _ = ORDERS.set(orders);
    Ok(guard)
}

/// Arms it: past `deadline` the process leaves with `code`.
pub fn arm(deadline: Instant, code: u8) {
    if let Some(orders) = ORDERS.get() {
        let _ = orders.try_send((deadline, code));
    }
}

fn say() {
    let mut text = [0; ATOMIC];
    let length = FACTS.read(&mut text);
    let text = if length == 0 { &b"ostler: the stop's deadline has passed\n"[..] } else { &text[..length] };
    let stderr = io::stderr();
    let mut fds = [PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::OUT)];
    let none = Timespec::try_from(Duration::ZERO).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
    // A pipe that polls writable takes at least this much without blocking.
    if poll(&mut fds, Some(&none)).is_ok_and(|n| n == 1) {
        let _ = rustix::io::write(fds[0].as_fd(), text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_facts_are_said_however_many_there_were() {
        let facts = Facts {
            places: [const { [const { AtomicU8::new(0) }; ATOMIC] }; 2],
            lengths: [const { AtomicUsize::new(0) }; 2],
            written: AtomicUsize::new(0),
        };
        let mut text = [0; ATOMIC];
        assert_eq!(facts.read(&mut text), 0);
        for n in 0..1000 {
            facts.keep(&format!("after {n} s"));
            let length = facts.read(&mut text);
            assert_eq!(std::str::from_utf8(&text[..length]), Ok(format!("after {n} s").as_str()));
        }
        facts.keep(&"x".repeat(2 * ATOMIC));
        assert_eq!(facts.read(&mut text), ATOMIC);
        facts.keep("y");
        assert_eq!(facts.read(&mut text), 1);
    }
}
