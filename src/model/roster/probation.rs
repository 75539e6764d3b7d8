//! Probation: a session one death short of suspension runs a turn while no other such session does, so that the next
//! death is known to be its own.

use std::time::Instant;

use super::{Effect, Roster};

impl Roster {
    /// A turn runs on probation from now on.
    #[must_use]
    pub fn begin_probation(&mut self, sid: i64, now: Instant) -> Vec<Effect> {
        self.probation = Some((sid, now));
        vec![Effect::Nudge]
    }

    /// A turn on probation is over or has stood its time, or its worker has ended: the sessions that waited for that
    /// try again.
    #[must_use]
    pub fn end_probation(&mut self, sid: i64) -> Vec<Effect> {
        self.probation.take_if(|(on_probation, _)| *on_probation == sid);
        let waited = std::mem::take(&mut self.after_probation);
        let live = waited.into_iter().filter(|sid| self.live.contains_key(sid));
        live.map(|sid| Effect::Wake { sid, auto_continue: false }).collect()
    }

    /// A session's turn has to wait until another session's probation is over. `true`: it was not known before, so the
    /// probation may be over already.
    pub fn wait_for_probation(&mut self, sid: i64) -> bool {
        self.after_probation.insert(sid)
    }

    /// The session on probation, and since when.
    #[must_use]
    pub const fn probation(&self) -> Option<(i64, Instant)> {
        self.probation
    }

    /// Takes out the session that has been on probation since before the instant: it has stood its time.
    pub fn take_probation(&mut self, before: Instant) -> Option<i64> {
        self.probation.take_if(|(_, since)| *since <= before).map(|(sid, _)| sid)
    }
}
