//! Sessions that must not start or go on yet: leftovers of their last agent still run, or another session is on
//! probation.

use std::time::Instant;

use super::Registry;

impl Registry {
    /// The search for leftover processes begins: no session starts before its end.
    pub fn search_leftovers(&self) {
        self.lock().roster.search_leftovers();
    }

    /// The search has ended: these sessions must not start until the processes of their last activation are gone.
    pub fn block_on_leftovers(&self, sids: impl IntoIterator<Item = i64>) {
        let mut inner = self.lock();
        let effects = inner.roster.block_on_leftovers(sids);
        self.perform(inner, effects, None);
    }

    /// A session's leftovers are gone.
    pub fn unblock(&self, sid: i64) {
        let mut inner = self.lock();
        let effects = inner.roster.unblock(sid);
        self.perform(inner, effects, None);
    }

    /// The search failed: no session waits for leftovers.
    pub fn unblock_all(&self) {
        let mut inner = self.lock();
        let effects = inner.roster.unblock_all();
        self.perform(inner, effects, None);
    }

    /// Whether a session's worker, or a leftover process of an earlier worker, may still run.
    pub fn is_held(&self, sid: i64) -> bool {
        self.lock().roster.is_held(sid)
    }

    /// A turn runs on probation from now on.
    pub fn begin_probation(&self, sid: i64) {
        let now = self.runtime.now();
        let mut inner = self.lock();
        let effects = inner.roster.begin_probation(sid, now);
        self.perform(inner, effects, None);
    }

    /// The probation of a session is over: its turn has ended or has run long enough, or its worker has ended. The
    /// sessions that waited for that try again.
    pub fn end_probation(&self, sid: i64) {
        let mut inner = self.lock();
        let effects = inner.roster.end_probation(sid);
        self.perform(inner, effects, None);
    }

    /// A session's turn has to wait until another session's probation is over. `true`: it was not known before, so the
    /// probation may be over already.
    pub fn wait_for_probation(&self, sid: i64) -> bool {
        self.lock().roster.wait_for_probation(sid)
    }

    /// The session on probation, and since when.
    pub fn probation(&self) -> Option<(i64, Instant)> {
        self.lock().roster.probation()
    }

    /// Takes out the session that has been on probation since before this instant.
    pub fn take_probation(&self, before: Instant) -> Option<i64> {
        self.lock().roster.take_probation(before)
    }
}
