//! Direct begin: reserves an idle session, so that another thread can accept a message and begin its turn in one
//! transaction.
//!
//! An idle worker reports its activation's number. The thread that reserves its session always reports the outcome;
//! until then the worker begins no turn.

use std::time::Instant;

use super::{Doing, Effect, Kind, Roster};

/// A reserved session, whose turn another thread may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectBegin {
    /// The session's row.
    pub sid: i64,
    /// The activation's number.
    pub epoch: i64,
}

impl Roster {
    /// A worker becomes idle. `ready`: its activation's number, if its agent is ready for a prompt. `None`: the worker
    /// must close. `false`: its session is reserved, and a letter will bring the outcome.
    pub fn rest(&mut self, sid: i64, ready: Option<i64>, has_begun: bool) -> Option<(bool, Vec<Effect>)> {
        let effects = self.set(sid, Doing::Idle, has_begun)?;
        let entry = self.live.get_mut(&sid)?;
        if entry.doing == Doing::Idle {
            entry.ready = ready;
        }
        Some((entry.reserved.is_none(), effects))
    }

    /// A worker is about to write the end of its turn and will then be idle. A client that sees that end may send the
    /// next message before the worker knows of the commit.
    pub fn finishing(&mut self, sid: i64, epoch: i64) {
        if let Some(entry) = self.live.get_mut(&sid).filter(|e| e.doing.kind() == Kind::Running) {
            entry.ready = Some(epoch);
        }
    }

    /// A worker is about to begin a turn. Returns as [`Self::rest`]; `false`: another thread is about to begin one, or
    /// has (`has_begun`).
    pub fn begin(&mut self, sid: i64, now: Instant, has_begun: bool) -> Option<(bool, Vec<Effect>)> {
        if self.live.get(&sid)?.reserved.is_some() || has_begun {
            return Some((false, Vec::new()));
        }
        self.set(sid, Doing::beginning(now), false).map(|effects| (true, effects))
    }

    /// Whether the session is reserved.
    #[must_use]
    pub fn is_reserved(&self, sid: i64) -> bool {
        self.live.get(&sid).is_some_and(|e| e.reserved.is_some())
    }

    /// Reserves the session under a key if its worker is idle or about to be. It counts as running from here on.
    /// `has_letters`: whether the mailbox of a session's worker has unread letters.
    pub fn reserve(&mut self, key: &str, now: Instant, has_letters: impl Fn(i64) -> bool) -> Option<DirectBegin> {
        if self.closed {
            return None;
        }
        let sid = *self.by_key.get(key)?;
        let entry = self.live.get(&sid)?;
        let epoch = entry.ready?;
        let rests = matches!(entry.doing, Doing::Idle | Doing::Running { .. }) && entry.reserved.is_none();
        if !rests || has_letters(sid) {
            return None;
        }
        let used = self.next_use();
        self.change(sid, |entry| {
            entry.reserved = Some(std::mem::replace(&mut entry.doing, Doing::beginning(now)));
            entry.ready = None;
            entry.used = used;
        })?;
        Some(DirectBegin { sid, epoch })
    }

    /// A turn was begun in a reserved session. `true`: pass the turn to its worker. `false`: the worker has ended
    /// meanwhile, and the next one gets the turn from the store.
    #[must_use]
    pub fn hand_over(&mut self, sid: i64) -> bool {
        self.live.get_mut(&sid).is_some_and(|entry| entry.reserved.take().is_some())
    }

    /// No turn was begun in a reserved session, or that is unknown: its worker asks the store.
    #[must_use]
    pub fn end_reservation(&mut self, sid: i64) -> Vec<Effect> {
        let back = self.change(sid, |entry| {
            entry.doing = entry.reserved.take()?;
            Some(())
        });
        if back.flatten().is_none() {
            return Vec::new();
        }
        let mut effects = vec![Effect::Wake { sid, auto_continue: false }];
        if self.running == 0 || !self.waiting.is_empty() {
            effects.push(Effect::Nudge);
        }
        effects
    }
}
