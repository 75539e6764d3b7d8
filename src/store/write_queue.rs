//! The queue to the writer's thread, and the answer to each caller.
//!
//! Never spin: with few cores a spinning waiter takes time from the thread that it waits for. A caller that meets an
//! idle writer commits on its own thread, which saves two hand-overs between threads.
//!
//! It must not know SQL.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::job::Job;
use super::{Error, closed};

/// A job that the writer did not take.
pub(super) enum NotTaken {
    /// The queue was full until the deadline.
    Full(Job),
    /// The writer has ended.
    Over(Job),
}

impl NotTaken {
    /// Why it was not taken.
    pub(super) fn why(&self) -> Error {
        match self {
            Self::Full(_) => Error::Overloaded,
            Self::Over(_) => closed(),
        }
    }

    /// Answers the caller that the job was not done.
    pub(super) fn refuse(self) {
        let why = self.why();
        let (Self::Full(job) | Self::Over(job)) = self;
        job.refuse(&why);
    }
}

/// The jobs that wait for the writer's thread.
pub(super) struct JobQueue {
    state: Mutex<QueueState>,
    arrived: Condvar,
    room: Condvar,
    bound: usize,
}

#[derive(Default)]
struct QueueState {
    jobs: VecDeque<Job>,
    /// The thread sleeps: the next sender wakes it.
    asleep: bool,
    /// Senders that wait for room.
    crowd: usize,
    /// Another thread has committed: the writer's thread must plan a checkpoint.
    dirty: bool,
    /// Every handle is gone, or the writer.
    over: bool,
}

/// Why the thread woke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// A job waits.
    Work,
    /// Another thread has committed.
    Dirty,
    /// The time passed.
    Quiet,
    /// No more will come.
    Over,
}

impl JobQueue {
    pub(super) fn new(bound: usize) -> Self {
        Self { state: Mutex::default(), arrived: Condvar::new(), room: Condvar::new(), bound }
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job at the end. Returns it if the queue is full until the deadline, or the writer has ended.
    pub(super) fn push(&self, job: Job, until: Instant) -> Result<(), NotTaken> {
        let mut state = self.lock();
        while state.jobs.len() >= self.bound && !state.over {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NotTaken::Full(job));
            }
            state.crowd += 1;
            state = self.room.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.crowd -= 1;
        }
        if state.over {
            return Err(NotTaken::Over(job));
        }
        state.jobs.push_back(job);
        let asleep = std::mem::take(&mut state.asleep);
        drop(state);
        if asleep {
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Sleeps until a job waits, or until the given time has passed.
    pub(super) fn wait(&self, patience: Option<Duration>) -> Woken {
        let until = patience.map(|p| Instant::now() + p);
        let mut state = self.lock();
        loop {
            if !state.jobs.is_empty() {
                return Woken::Work;
            }
            if state.over {
                return Woken::Over;
            }
            if std::mem::take(&mut state.dirty) {
                return Woken::Dirty;
            }
            state.asleep = true;
            match until {
                None => state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        state.asleep = false;
                        return Woken::Quiet;
                    }
                    state = self.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
            state.asleep = false;
        }
    }

    /// Takes at most this many waiting jobs.
    pub(super) fn take(&self, most: usize) -> VecDeque<Job> {
        let mut state = self.lock();
        let rest = if state.jobs.len() > most { state.jobs.split_off(most) } else { VecDeque::new() };
        let taken = std::mem::replace(&mut state.jobs, rest);
        let crowd = state.crowd > 0;
        drop(state);
        if crowd {
            self.room.notify_all();
        }
        taken
    }

    /// Closes the queue and returns the waiting jobs.
    pub(super) fn end(&self) -> VecDeque<Job> {
        let mut state = self.lock();
        state.over = true;
        let left = std::mem::take(&mut state.jobs);
        drop(state);
        self.arrived.notify_all();
        self.room.notify_all();
        left
    }

    /// Whether the queue is empty and the thread runs.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.lock();
        state.jobs.is_empty() && !state.over
    }

    /// Another thread has committed: if the writer's thread sleeps without a limit, it must sleep until the next
    /// checkpoint only.
    pub(super) fn mark_dirty(&self) {
        let mut state = self.lock();
        state.dirty = true;
        let asleep = std::mem::take(&mut state.asleep);
        drop(state);
        if asleep {
            self.arrived.notify_one();
        }
    }
}

/// The handles' end of the queue. The writer's thread ends when the last one is dropped.
pub(super) struct QueueOwner(pub(super) Arc<JobQueue>);

impl Drop for QueueOwner {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.arrived.notify_all();
    }
}

/// The caller's end of one answer.
pub(super) struct Reply<T>(Arc<Slot<T>>);

/// The writer's end of a [`Reply`]. If it is dropped unused, the caller learns that no answer will come.
pub(super) struct Answer<T>(Arc<Slot<T>>);

struct Slot<T> {
    state: Mutex<ReplyState<T>>,
    changed: Condvar,
}

enum ReplyState<T> {
    Waiting,
    Answered(Result<T, Error>),
    Gone,
}

/// Makes the two ends of one answer.
pub(super) fn reply<T>() -> (Answer<T>, Reply<T>) {
    let slot = Arc::new(Slot { state: Mutex::new(ReplyState::Waiting), changed: Condvar::new() });
    (Answer(slot.clone()), Reply(slot))
}

impl<T> Answer<T> {
    pub(super) fn give(self, outcome: Result<T, Error>) {
        self.set(ReplyState::Answered(outcome));
    }

    fn set(&self, new: ReplyState<T>) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, ReplyState::Waiting) {
            *state = new;
            drop(state);
            self.0.changed.notify_one();
        }
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        self.set(ReplyState::Gone);
    }
}

impl<T> Reply<T> {
    /// The answer; `None`: it did not come before the deadline.
    pub(super) fn wait(self, until: Instant) -> Option<Result<T, Error>> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match std::mem::replace(&mut *state, ReplyState::Waiting) {
                ReplyState::Answered(outcome) => return Some(outcome),
                ReplyState::Gone => return Some(Err(closed())),
                ReplyState::Waiting => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
