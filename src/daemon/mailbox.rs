//! A worker's mailbox: requests to the worker, and its wake-up.
//!
//! Letters are flags, the strongest interrupt, and the answers of open permissions and hooks (at most one per request).
//! Posting the same letter twice adds nothing, so the mailbox is never full and posting never blocks. The worker sleeps
//! on a condition variable or, if its agent has descriptors, in poll(2) with an eventfd that is created on first use.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::agent::{Interrupt, PermissionOutcome, Watch};
use crate::hooks::Verdict;
pub use crate::model::worker::{Close, Why};
use crate::store::Begun;

/// The letters since the worker last took them.
#[derive(Debug, Default)]
pub struct Letters {
    /// The session may have waiting work.
    pub work: bool,
    /// What was sent to the store is kept.
    pub kept: bool,
    /// An interrupted turn is to go on without a message.
    pub auto_continue: bool,
    /// A turn was begun for it, in the transaction that accepted its message.
    pub begun: Option<Box<Begun>>,
    /// Close, after the running turn.
    pub close: Option<Close>,
    /// Let the agent go: it outlives the daemon.
    pub let_go: bool,
    /// End the running turn.
    pub interrupt: Option<(Interrupt, Why)>,
    /// End this turn (its row) by the deadline. If it has ended meanwhile, nothing happens.
    pub cancel: Option<(i64, Instant)>,
    /// The deadline of the close.
    pub close_by: Option<Instant>,
    /// Settled permissions: request, outcome, by whom.
    pub permissions: Vec<(String, PermissionOutcome, &'static str)>,
    /// Permissions that clients have answered, durably: request, outcome.
    pub answers: Vec<(String, PermissionOutcome)>,
    /// The verdicts of hooks about permissions.
    pub verdicts: Vec<(String, Verdict)>,
    /// The verdict of the `before_turn` hooks, and the number of its ask.
    pub before_turn: Option<(u64, Verdict)>,
}

/// Keeps the verdict of the newest ask: the verdict of an earlier ask that timed out may come late.
pub fn newer(kept: &mut Option<(u64, Verdict)>, come: Option<(u64, Verdict)>) {
    if come.as_ref().map(|(n, _)| n) >= kept.as_ref().map(|(n, _)| n) {
        *kept = come;
    }
}

impl Letters {
    const fn any(&self) -> bool {
        self.work
            || self.kept
            || self.auto_continue
            || self.begun.is_some()
            || self.close.is_some()
            || self.let_go
            || self.interrupt.is_some()
            || self.cancel.is_some()
            || self.close_by.is_some()
            || !self.permissions.is_empty()
            || !self.answers.is_empty()
            || !self.verdicts.is_empty()
            || self.before_turn.is_some()
    }

    /// Adds later letters.
    pub fn add(&mut self, later: Self) {
        self.work |= later.work;
        self.kept |= later.kept;
        self.auto_continue |= later.auto_continue;
        self.begun = later.begun.or(self.begun.take());
        self.close = self.close.max(later.close);
        self.let_go |= later.let_go;
        if let Some((interrupt, why)) = later.interrupt {
            self.raise(interrupt, why);
        }
        self.cancel = later.cancel.or(self.cancel);
        self.close_by = later.close_by.or(self.close_by);
        self.permissions.extend(later.permissions);
        self.answers.extend(later.answers);
        self.verdicts.extend(later.verdicts);
        newer(&mut self.before_turn, later.before_turn);
    }

    fn raise(&mut self, interrupt: Interrupt, why: Why) {
        if rises(self.interrupt.map(|i| i.0), interrupt) {
            self.interrupt = Some((interrupt, why));
        }
    }
}

/// Whether an interrupt is stronger than the present one: a kill, or a cancel with less time.
pub fn rises(in_force: Option<Interrupt>, new: Interrupt) -> bool {
    match (in_force, new) {
        (None, _) | (Some(Interrupt::Cancel(_)), Interrupt::Kill) => true,
        (Some(Interrupt::Cancel(old)), Interrupt::Cancel(new)) => new < old,
        (Some(Interrupt::Kill), _) => false,
    }
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// A letter is there.
    Letter,
    /// A descriptor is ready.
    Ready,
    /// The deadline passed.
    Timeout,
}

/// The mailbox.
#[derive(Debug, Default)]
pub struct Mailbox {
    letters: Mutex<Letters>,
    arrived: Condvar,
    wake: OnceLock<Arc<OwnedFd>>,
    interrupted: Arc<AtomicBool>,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Letters> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the letters and wakes the worker.
    pub fn post(&self, write: impl FnOnce(&mut Letters)) {
        let mut letters = self.lock();
        write(&mut letters);
        if letters.interrupt.is_some() || letters.cancel.is_some() {
            self.interrupted.store(true, Ordering::Release);
        }
        drop(letters);
        self.arrived.notify_one();
        if let Some(fd) = self.wake.get() {
            // A full counter wakes the worker too.
            let _ = rustix::io::write(fd.as_fd(), &1u64.to_ne_bytes());
        }
    }

    /// Posts an interrupt. A weaker one than the present has no effect.
    pub fn interrupt(&self, interrupt: Interrupt, why: Why) {
        self.post(|l| l.raise(interrupt, why));
    }

    /// Takes the letters.
    pub fn take(&self) -> Letters {
        if let Some(fd) = self.wake.get() {
            let mut count = [0u8; 8];
            let _ = rustix::io::read(fd.as_fd(), &mut count);
        }
        std::mem::take(&mut *self.lock())
    }

    /// Whether a letter is there. Takes nothing.
    pub fn has_letters(&self) -> bool {
        self.lock().any()
    }

    /// Whether a turn was begun for the worker. Takes nothing.
    pub fn has_begun(&self) -> bool {
        self.lock().begun.is_some()
    }

    /// Whether a letter asks for work. Takes nothing.
    pub fn has_work(&self) -> bool {
        let l = self.lock();
        l.work || l.auto_continue
    }

    /// The flag that an interrupt sets; [`Self::turn_flag`] resets it.
    pub fn interrupted(&self) -> Arc<AtomicBool> {
        self.interrupted.clone()
    }

    /// A turn begins, or has ended (`None`): from now on the flag shows interrupts of this turn. `in_force`: an
    /// interrupt that was taken before concerns it.
    pub fn turn_flag(&self, turn: Option<i64>, in_force: bool) {
        let letters = self.lock();
        let cancelled = letters.cancel.is_some_and(|(tid, _)| Some(tid) == turn);
        self.interrupted.store(in_force || cancelled || letters.interrupt.is_some(), Ordering::Release);
    }

    /// A descriptor that is readable while letters are there.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn waker(&self) -> std::io::Result<Arc<OwnedFd>> {
        if let Some(fd) = self.wake.get() {
            return Ok(fd.clone());
        }
        let fd = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let fd = self.wake.get_or_init(|| fd).clone();
        if self.lock().any() {
            let _ = rustix::io::write(fd.as_fd(), &1u64.to_ne_bytes());
        }
        Ok(fd)
    }

    /// Waits for a letter, a descriptor or the deadline.
    ///
    /// # Errors
    /// The system cannot poll (out of memory or descriptors).
    pub fn wait(&self, watches: &mut [Watch<'_>], until: Option<Instant>) -> std::io::Result<Woken> {
        if watches.is_empty() {
            return Ok(self.wait_letters(until));
        }
        let waker = self.waker()?;
        loop {
            if self.lock().any() {
                return Ok(Woken::Letter);
            }
            let timeout = until.map(|u| timespec(u.saturating_duration_since(Instant::now())));
            let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(watches.len() + 1);
            fds.push(PollFd::new(&*waker, PollFlags::IN));
            for w in watches.iter() {
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::IN, w.read);
                flags.set(PollFlags::OUT, w.write);
                fds.push(PollFd::from_borrowed_fd(w.fd, flags));
            }
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) => return Ok(Woken::Timeout),
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
                Ok(_) => {}
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            for (w, ready) in watches.iter_mut().zip(&ready[1..]) {
                w.ready = *ready;
            }
            if ready[1..].contains(&true) {
                return Ok(Woken::Ready);
            }
            if !self.lock().any() {
                // The letter behind this wake-up was already taken: the counter is emptied, or poll would spin.
                let mut count = [0u8; 8];
                let _ = rustix::io::read(waker.as_fd(), &mut count);
            }
        }
    }

    fn wait_letters(&self, until: Option<Instant>) -> Woken {
        let mut letters = self.lock();
        while !letters.any() {
            match until {
                None => letters = self.arrived.wait(letters).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Woken::Timeout;
                    }
                    letters = self.arrived.wait_timeout(letters, left).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
        Woken::Letter
    }
}

/// A duration for poll(2), rounded up so that a wait does not end just before its deadline.
fn timespec(d: std::time::Duration) -> Timespec {
    let nanos = d.as_nanos().saturating_add(1);
    Timespec { tv_sec: i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX), tv_nsec: (nanos % 1_000_000_000) as _ }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_letter_posted_before_the_wait_is_seen_by_it() {
        let m = Mailbox::default();
        m.post(|l| l.work = true);
        assert_eq!(m.wait(&mut [], None).expect("a wait"), Woken::Letter);
        assert!(m.take().work && !m.take().work);
    }

    #[test]
    fn letters_that_come_later_are_added() {
        let (soon, m) = (Instant::now(), Mailbox::default());
        m.post(|l| l.auto_continue = true);
        m.interrupt(Interrupt::Cancel(soon), Why::Stop);
        let mut letters = m.take();
        m.post(|l| (l.work, l.close, l.close_by) = (true, Some(Close::Park), Some(soon)));
        m.interrupt(Interrupt::Cancel(soon + Duration::from_secs(9)), Why::Retired);
        letters.add(m.take());
        m.post(|l| l.close = Some(Close::Stop));
        letters.add(m.take());
        letters.add(Letters::default());
        assert_eq!((letters.work, letters.auto_continue), (true, true));
        assert_eq!((letters.close, letters.close_by), (Some(Close::Stop), Some(soon)));
        assert_eq!(letters.interrupt, Some((Interrupt::Cancel(soon), Why::Stop)));
    }

    #[test]
    fn a_wait_ends_at_its_instant() {
        let m = Mailbox::default();
        let until = Instant::now() + Duration::from_millis(20);
        assert_eq!(m.wait(&mut [], Some(until)).expect("a wait"), Woken::Timeout);
        assert!(Instant::now() >= until);
    }

    #[test]
    fn poll_sees_letters_and_descriptors() {
        let m = Arc::new(Mailbox::default());
        let (read, write) = rustix::pipe::pipe().expect("a pipe");
        let watch = || Watch { fd: read.as_fd(), read: true, write: false, ready: false };
        let poster = m.clone();
        let t = std::thread::spawn(move || poster.post(|l| l.work = true));
        assert_eq!(m.wait(&mut [watch()], None).expect("a wait"), Woken::Letter);
        t.join().expect("posted");
        let _ = m.take();
        rustix::io::write(&write, b"x").expect("written");
        let mut watches = [watch()];
        assert_eq!(m.wait(&mut watches, None).expect("a wait"), Woken::Ready);
        assert!(watches[0].ready);
    }

    #[test]
    fn interrupts_only_rise() {
        let m = Mailbox::default();
        let soon = Instant::now();
        let late = soon + Duration::from_secs(9);
        m.interrupt(Interrupt::Cancel(late), Why::Retired);
        m.interrupt(Interrupt::Cancel(soon), Why::Stop);
        m.interrupt(Interrupt::Cancel(late), Why::Retired);
        assert!(m.interrupted().load(Ordering::Acquire));
        assert_eq!(m.take().interrupt, Some((Interrupt::Cancel(soon), Why::Stop)));
    }

    #[test]
    fn a_cancel_of_a_turn_that_has_ended_does_not_touch_the_next() {
        let m = Mailbox::default();
        m.post(|l| l.cancel = Some((7, Instant::now())));
        assert!(m.interrupted().load(Ordering::Acquire));
        m.turn_flag(Some(8), false);
        assert!(!m.interrupted().load(Ordering::Acquire));
        m.turn_flag(Some(7), false);
        assert!(m.interrupted().load(Ordering::Acquire));
    }
}
