//! A reservation: the session at rest of which another thread may begin a turn on its worker's behalf.

use super::{Registry, WorkRequest, has_letters};
use crate::store::Begun;

/// A session that is reserved by [`Registry::reserve`]. Its worker hears what came of it in any case.
#[derive(Debug)]
pub struct Reservation<'r> {
    registry: &'r Registry,
    /// The session's row.
    pub sid: i64,
    /// The activation's number.
    pub epoch: i64,
    key: String,
    over: bool,
}

impl Reservation<'_> {
    /// A turn was begun: the worker is to run it.
    pub fn hand_over(mut self, begun: Box<Begun>) {
        self.over = true;
        let mut inner = self.registry.lock();
        let mailbox = if inner.roster.hand_over(self.sid) { inner.mailbox(self.sid) } else { None };
        if let Some(mailbox) = mailbox {
            // Under the lock: a worker that is to close and sees no reservation any more finds the letter.
            return mailbox.post(|l| l.begun = Some(begun));
        }
        drop(inner);
        // Its worker went meanwhile; the next one is given the turn by the store.
        self.registry.want(WorkRequest { sid: self.sid, key: self.key.clone(), auto_continue: false });
    }
}

impl Drop for Reservation<'_> {
    /// No turn was begun, or nobody knows: the worker looks for itself.
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut inner = self.registry.lock();
        let effects = inner.roster.end_reservation(self.sid);
        self.registry.perform(inner, effects, None);
    }
}

impl Registry {
    /// A worker rests; `ready`: its activation's number, if its agent waits for nothing but a prompt. `None`: it is to close
    /// instead; `Some(false)`: its session is reserved, and a letter will say what came of that.
    pub fn rest(&self, sid: i64, ready: Option<i64>) -> Option<bool> {
        let mut inner = self.lock();
        let has_begun = inner.has_begun(sid);
        let (free, effects) = inner.roster.rest(sid, ready, has_begun)?;
        self.perform(inner, effects, None);
        Some(free)
    }

    /// A worker is about to write the end of its turn, and will then rest. Whoever hears of that end may send the next
    /// message before the worker itself has heard that it is written.
    pub fn finishing(&self, sid: i64, epoch: i64) {
        self.lock().roster.finishing(sid, epoch);
    }

    /// A worker is about to begin a turn. As [`Registry::rest`] otherwise: `Some(false)` if somebody else is about to.
    pub fn begin(&self, sid: i64) -> Option<bool> {
        let now = self.runtime.now();
        let mut inner = self.lock();
        let has_begun = inner.has_begun(sid);
        let (begins, effects) = inner.roster.begin(sid, now, has_begun)?;
        self.perform(inner, effects, None);
        Some(begins)
    }

    /// Whether the session is reserved.
    pub fn is_reserved(&self, sid: i64) -> bool {
        self.lock().roster.is_reserved(sid)
    }

    /// Reserves the session under a key whose worker rests with nothing to do, or is about to, so that a message to it and
    /// the begin of its turn can be one transaction. It counts as running from here on.
    pub fn reserve<'r>(&'r self, key: &str) -> Option<Reservation<'r>> {
        let now = self.runtime.now();
        let mut guard = self.lock();
        let inner = &mut *guard;
        let reserved = inner.roster.reserve(key, now, has_letters(&inner.handles))?;
        Some(Reservation { registry: self, sid: reserved.sid, epoch: reserved.epoch, key: key.to_owned(), over: false })
    }
}
