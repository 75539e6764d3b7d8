//! Direct begin: reserving a session at rest, so that another thread can accept a message and begin its turn in one
//! transaction.
//!
//! A worker that rests says so with its activation's number. Who reserves its session tells what came of that in any case;
//! until then the worker begins nothing.

use std::time::Instant;

use super::{Doing, Effect, Kind, Roster};

/// A reserved session, of which a turn may be begun on its worker's behalf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectBegin {
    /// The session's row.
    pub sid: i64,
    /// The activation's number.
    pub epoch: i64,
}

impl Roster {
    /// A worker rests; `ready`: its activation's number, if its agent waits for nothing but a prompt. `None`: it is to close
    /// instead. `false`: its session is reserved, and a letter will say what came of that.
    pub fn rest(&mut self, sid: i64, ready: Option<i64>, has_begun: bool) -> Option<(bool, Vec<Effect>)> {
        let effects = self.set(sid, Doing::Idle, has_begun)?;
        let entry = self.live.get_mut(&sid)?;
        if entry.doing == Doing::Idle {
            entry.ready = ready;
        }
        Some((entry.reserved.is_none(), effects))
    }

    /// A worker is about to write the end of its turn, and will then rest. Whoever hears of that end may send the next
    /// message before the worker itself has heard that it is written.
    pub fn finishing(&mut self, sid: i64, epoch: i64) {
        if let Some(entry) = self.live.get_mut(&sid).filter(|e| e.doing.kind() == Kind::Running) {
            entry.ready = Some(epoch);
        }
    }

    /// A worker is about to begin a turn. As [`Self::rest`] otherwise: `false` if somebody else is about to, or has
    /// (`has_begun`).
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

    /// Reserves the session under a key whose worker rests with nothing to do, or is about to. It counts as running from
    /// here on. `has_letters`: something lies unread in the mailbox of a session's worker.
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

    /// A turn was begun in a reserved session. `true`: its worker is to be handed the turn; `false`: the worker went
    /// meanwhile, and the next one is given the turn by the store.
    #[must_use]
    pub fn hand_over(&mut self, sid: i64) -> bool {
        self.live.get_mut(&sid).is_some_and(|entry| entry.reserved.take().is_some())
    }

    /// No turn was begun in a reserved session, or nobody knows: its worker looks for itself.
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
