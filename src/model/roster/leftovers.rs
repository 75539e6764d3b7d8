//! Leftovers: processes of an earlier agent that still run. Their session does not start until they are gone.

use super::{Effect, Roster};

impl Roster {
    /// What earlier agents left running is about to be looked for: until it is known no session starts.
    pub const fn search_leftovers(&mut self) {
        self.searching = true;
    }

    /// It is known: these sessions must not start until the processes of their last activation are gone.
    #[must_use]
    pub fn block_on_leftovers(&mut self, sids: impl IntoIterator<Item = i64>) -> Vec<Effect> {
        self.leftovers.extend(sids);
        self.searching = false;
        vec![Effect::Nudge]
    }

    /// A session's leftovers are gone.
    #[must_use]
    pub fn unblock(&mut self, sid: i64) -> Vec<Effect> {
        self.leftovers.remove(&sid);
        self.waiting.return_aside();
        // Its request has been waiting, and nothing else may happen for long.
        vec![Effect::Nudge]
    }

    /// Nobody knows what is left, and nobody waits for it.
    #[must_use]
    pub fn unblock_all(&mut self) -> Vec<Effect> {
        self.searching = false;
        self.leftovers.clear();
        self.waiting.return_aside();
        vec![Effect::Nudge]
    }

    /// Whether a session's worker, or what an earlier one left, may still be at work.
    #[must_use]
    pub fn is_held(&self, sid: i64) -> bool {
        self.searching || self.leftovers.contains(&sid) || self.live.contains_key(&sid)
    }
}
