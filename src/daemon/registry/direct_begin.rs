//! A reservation: allows another thread to begin a turn of an idle session on its worker's behalf.

use super::{Registry, WorkRequest, has_letters};
use crate::store::Begun;

/// A session that is reserved by [`Registry::reserve`]. Its worker always gets the outcome.
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
    /// A turn was begun: passes it to the worker.
    pub fn hand_over(mut self, begun: Box<Begun>) {
        self.over = true;
        let mut inner = self.registry.lock();
        let mailbox = if inner.roster.hand_over(self.sid) { inner.mailbox(self.sid) } else { None };
        if let Some(mailbox) = mailbox {
            // Posted under the lock: a closing worker that no longer sees the reservation finds the letter.
            return mailbox.post(|l| l.begun = Some(begun));
        }
        drop(inner);
        // Its worker has ended meanwhile; the next one gets the turn from the store.
        self.registry.want(WorkRequest { sid: self.sid, key: self.key.clone(), auto_continue: false });
    }
}

impl Drop for Reservation<'_> {
    /// No turn was begun, or that is unknown: the worker asks the store.
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
    /// A worker becomes idle. `ready`: its activation's number, if its agent is ready for a prompt. `None`: the worker
    /// must close. `Some(false)`: its session is reserved, and a letter will bring the outcome.
    pub fn rest(&self, sid: i64, ready: Option<i64>) -> Option<bool> {
        let mut inner = self.lock();
        let has_begun = inner.has_begun(sid);
        let (free, effects) = inner.roster.rest(sid, ready, has_begun)?;
        self.perform(inner, effects, None);
        Some(free)
    }

    /// A worker is about to write the end of its turn and will then be idle. A client that sees that end may send the
    /// next message before the worker knows of the commit.
    pub fn finishing(&self, sid: i64, epoch: i64) {
        self.lock().roster.finishing(sid, epoch);
    }

    /// A worker is about to begin a turn. Returns as [`Registry::rest`]; `Some(false)`: another thread is about to
    /// begin one.
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

    /// Reserves the session under a key if its worker is idle or about to be, so that the accept of a message and the
    /// begin of its turn can be one transaction. The session counts as running from here on.
    pub fn reserve<'r>(&'r self, key: &str) -> Option<Reservation<'r>> {
        let now = self.runtime.now();
        let mut guard = self.lock();
        let inner = &mut *guard;
        let reserved = inner.roster.reserve(key, now, has_letters(&inner.handles))?;
        Some(Reservation { registry: self, sid: reserved.sid, epoch: reserved.epoch, key: key.to_owned(), over: false })
    }
}
