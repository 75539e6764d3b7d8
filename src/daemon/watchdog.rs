//! The watchdog of a stop: when the stop's deadline has passed, it reports what hangs and ends the process.
//!
//! It depends on nothing that can hang or fail: its thread exists from the start, and it uses no allocator, no lock, no
//! log queue and no store. The coordinator keeps its text up to date in two buffers, one with the newest text and one
//! to write to; the watchdog prints the newest with one write that cannot block. It watches until the process ends,
//! because the work after the stop's last phase counts towards the deadline too.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::signals;
use crate::thread;

/// How many bytes one write without blocking is sure to take.
const ATOMIC: usize = 4096;

/// The text of the watchdog: two buffers, and the number of writes. The newest text is in the buffer `written % 2`.
struct Facts {
    buffers: [[AtomicU8; ATOMIC]; 2],
    lengths: [AtomicUsize; 2],
    written: AtomicUsize,
}

static FACTS: Facts = Facts {
    buffers: [const { [const { AtomicU8::new(0) }; ATOMIC] }; 2],
    lengths: [const { AtomicUsize::new(0) }; 2],
    written: AtomicUsize::new(0),
};

impl Facts {
    /// Keeps a text. Only one thread may write: the coordinator.
    fn keep(&self, text: &str) {
        let written = self.written.load(Ordering::Acquire) + 1;
        let text = &text.as_bytes()[..text.len().min(ATOMIC)];
        for (to, from) in self.buffers[written % 2].iter().zip(text) {
            to.store(*from, Ordering::Relaxed);
        }
        self.lengths[written % 2].store(text.len(), Ordering::Relaxed);
        self.written.store(written, Ordering::Release);
    }

    /// Copies the newest text into `to` and returns its length.
    fn read(&self, to: &mut [u8; ATOMIC]) -> usize {
        let mut length = 0;
        // A second write during the copy may spoil the text; then it is copied again.
        for _ in 0..4 {
            let written = self.written.load(Ordering::Acquire);
            length = self.lengths[written % 2].load(Ordering::Relaxed).min(ATOMIC);
            for (to, from) in to.iter_mut().zip(&self.buffers[written % 2]).take(length) {
                *to = from.load(Ordering::Relaxed);
            }
            if self.written.load(Ordering::Acquire) <= written + 1 {
                break;
            }
        }
        length
    }
}

/// Sets the text that the watchdog would print now; at most [`ATOMIC`] bytes of it.
pub fn facts(text: &str) {
    FACTS.keep(text);
}

static ORDERS: OnceLock<Sender<(Instant, u8)>> = OnceLock::new();

/// Starts the thread, which waits for the first [`arm`]. Dropping the returned guard disarms it for good.
///
/// # Errors
/// The thread cannot be started.
pub fn start() -> io::Result<Sender<()>> {
    let (guard, disarmed) = crossbeam_channel::bounded::<()>(1);
    let (orders, ordered) = crossbeam_channel::bounded(1);
    thread::spawn_own("deadline", thread::IO_STACK, move || {
        let Ok((deadline, code)) = ordered.recv() else { return };
        if disarmed.recv_deadline(deadline) == Err(RecvTimeoutError::Timeout) {
            print();
            signals::exit(code);
        }
    })?;
    let _ = ORDERS.set(orders);
    Ok(guard)
}

/// Arms it: after `deadline` the process exits with `code`.
pub fn arm(deadline: Instant, code: u8) {
    if let Some(orders) = ORDERS.get() {
        let _ = orders.try_send((deadline, code));
    }
}

fn print() {
    let mut text = [0; ATOMIC];
    let length = FACTS.read(&mut text);
    let text = if length == 0 { &b"ostler: the stop's deadline has passed\n"[..] } else { &text[..length] };
    let stderr = io::stderr();
    let mut fds = [PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::OUT)];
    let none = Timespec::try_from(Duration::ZERO).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
    // A pipe that is ready for writing takes at least this much without blocking.
    if poll(&mut fds, Some(&none)).is_ok_and(|n| n == 1) {
        let _ = rustix::io::write(fds[0].as_fd(), text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_text_is_printed() {
        let facts = Facts {
            buffers: [const { [const { AtomicU8::new(0) }; ATOMIC] }; 2],
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
