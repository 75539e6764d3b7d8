//! Setting a resting session aside, so that a message to it and the begin of its turn can be one transaction.
//!
//! A worker that rests says so with its activation's number. Who sets it aside tells it what came of that in any case, with
//! the begun turn or with a call to look for itself; until then the worker begins nothing.

use std::time::Instant;

use super::{Doing, Entry, Registry, Wish};
use crate::store::Begun;

/// A session that is set aside by [`Registry::reserve`]. Its worker hears what came of it in any case.
#[derive(Debug)]
pub struct Reserved<'r> {
    registry: &'r Registry,
    /// The session's row.
    pub sid: i64,
    /// The activation's number.
    pub epoch: i64,
    key: String,
    over: bool,
}

impl Reserved<'_> {
    /// A turn was begun: the worker is to run it.
    pub fn hand_over(mut self, begun: Box<Begun>) {
        self.over = true;
        let mut inner = self.registry.lock();
        match inner.live.get_mut(&self.sid) {
            Some(entry) if entry.reserved.is_some() => {
                entry.reserved = None;
                let mailbox = entry.mailbox.clone();
                drop(inner);
                mailbox.post(|l| l.begun = Some(begun));
            }
            // Its worker went meanwhile; the next one is given the turn by the store.
            Some(_) | None => {
                drop(inner);
                self.registry.want(Wish { sid: self.sid, key: self.key.clone(), auto_continue: false });
            }
        }
    }
}

impl Drop for Reserved<'_> {
    /// No turn was begun, or nobody knows: the worker looks for itself.
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut inner = self.registry.lock();
        let back = |entry: &mut Entry| {
            entry.doing = entry.reserved.take()?;
            Some(entry.mailbox.clone())
        };
        let Some(mailbox) = inner.change(self.sid, back).flatten() else { return };
        if inner.running == 0 || !inner.wishes.is_empty() {
            self.registry.nudge();
        }
        drop(inner);
        mailbox.post(|l| l.work = true);
    }
}

impl Registry {
    /// A worker rests; `ready`: its activation's number, if its agent waits for nothing but a prompt. `None`: it is to close
    /// instead; `Some(false)`: somebody is about to begin a turn for it, and a letter will say what came of that.
    pub fn rest(&self, sid: i64, ready: Option<i64>) -> Option<bool> {
        let mut inner = self.lock();
        self.set_in(&mut inner, sid, Doing::Idle)?;
        let entry = inner.live.get_mut(&sid)?;
        if entry.doing == Doing::Idle {
            entry.ready = ready;
        }
        Some(entry.reserved.is_none())
    }

    /// A worker is about to write the end of its turn, and will then rest. Whoever hears of that end may send the next
    /// message before the worker itself has heard that it is written.
    pub fn finishing(&self, sid: i64, epoch: i64) {
        if let Some(entry) = self.lock().live.get_mut(&sid).filter(|e| matches!(e.doing, Doing::Running { .. })) {
            entry.ready = Some(epoch);
        }
    }

    /// A worker is about to begin a turn. As [`Registry::rest`] otherwise: `Some(false)` if somebody else is about to.
    pub fn begin(&self, sid: i64) -> Option<bool> {
        let mut inner = self.lock();
        let entry = inner.live.get(&sid)?;
        if entry.reserved.is_some() || entry.mailbox.has_begun() {
            return Some(false);
        }
        let running = Doing::Running { turn_id: None, since: Instant::now(), tool: None };
        self.set_in(&mut inner, sid, running).map(|()| true)
    }

    /// Whether somebody is about to begin a turn for the session.
    pub fn is_reserved(&self, sid: i64) -> bool {
        self.lock().live.get(&sid).is_some_and(|e| e.reserved.is_some())
    }

    /// Sets a session aside whose worker rests with nothing to do, or is about to, so that a message to it and the begin of its turn can be
    /// one transaction. It counts as running from here on.
    pub fn reserve<'r>(&'r self, key: &str) -> Option<Reserved<'r>> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if inner.closed {
            return None;
        }
        let sid = *inner.by_key.get(key)?;
        let entry = inner.live.get_mut(&sid)?;
        let epoch = entry.ready?;
        let free = matches!(entry.doing, Doing::Idle | Doing::Running { .. }) && entry.reserved.is_none();
        if !free || entry.abandoned || entry.mailbox.has_letters() {
            return None;
        }
        let used = inner.tick();
        inner.change(sid, |entry| {
            let running = Doing::Running { turn_id: None, since: Instant::now(), tool: None };
            entry.reserved = Some(std::mem::replace(&mut entry.doing, running));
            entry.ready = None;
            entry.used = used;
        })?;
        Some(Reserved { registry: self, sid, epoch, key: key.to_owned(), over: false })
    }
}
