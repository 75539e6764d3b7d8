//! Leftovers: processes of an earlier agent that still run. Their session does not start until they are gone.

use super::{Effect, Roster};

impl Roster {
    /// The search for leftover processes begins: no session starts before its end.
    pub const fn search_leftovers(&mut self) {
        self.searching = true;
    }

    /// The search has ended: these sessions must not start until the processes of their last activation are gone.
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
        // Its request waits, and no other event may come for long.
        vec![Effect::Nudge]
    }

    /// The search failed: no session waits for leftovers.
    #[must_use]
    pub fn unblock_all(&mut self) -> Vec<Effect> {
        self.searching = false;
        self.leftovers.clear();
        self.waiting.return_aside();
        vec![Effect::Nudge]
    }

    /// Whether a session's worker, or a leftover process of an earlier worker, may still run.
    #[must_use]
    pub fn is_held(&self, sid: i64) -> bool {
        self.searching || self.leftovers.contains(&sid) || self.live.contains_key(&sid)
    }
}
