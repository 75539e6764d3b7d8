//! Who may not start or go on yet: sessions whose old processes are still there, and those that wait until another one has
//! run alone.

use std::time::Instant;

use super::Registry;

impl Registry {
    /// What earlier agents left running is about to be looked for: until it is known no session starts.
    pub fn search(&self) {
        self.lock().searching = true;
    }

    /// It is known: these sessions must not start until the processes of their last activation are gone.
    pub fn haunt(&self, sids: impl IntoIterator<Item = i64>) {
        let mut inner = self.lock();
        inner.haunted.extend(sids);
        inner.searching = false;
        drop(inner);
        self.nudge();
    }

    /// A session's old processes are gone.
    pub fn exorcise(&self, sid: i64) {
        let mut inner = self.lock();
        inner.haunted.remove(&sid);
        inner.wishes.return_aside();
        drop(inner);
        // Its wish has been waiting, and nothing else may happen for long.
        self.nudge();
    }

    /// Whether a session's worker, or what an earlier one left, may still be at work.
    pub fn is_held(&self, sid: i64) -> bool {
        let inner = self.lock();
        inner.searching || inner.haunted.contains(&sid) || inner.live.contains_key(&sid)
    }

    /// Nobody knows what is left, and nobody waits for it.
    pub fn exorcise_all(&self) {
        let mut inner = self.lock();
        inner.searching = false;
        inner.haunted.clear();
        inner.wishes.return_aside();
        drop(inner);
        self.nudge();
    }

    /// A turn runs alone from now on.
    pub fn alone_begun(&self, sid: i64) {
        self.lock().alone = Some((sid, Instant::now()));
        self.nudge();
    }

    /// A turn that ran alone is over or has stood its time, or its worker has ended: who waited for that tries again.
    pub fn alone_over(&self, sid: i64) {
        let mut inner = self.lock();
        if inner.alone.is_some_and(|(who, _)| who == sid) {
            inner.alone = None;
        }
        let waiting = std::mem::take(&mut inner.apart);
        let all: Vec<_> =
            waiting.iter().filter_map(|sid| inner.live.get(sid)).map(|entry| entry.mailbox.clone()).collect();
        drop(inner);
        for mailbox in all {
            mailbox.post(|l| l.work = true);
        }
    }

    /// A session's turn has to wait until another one has run alone. `true`: it was not known before, so what it waits for
    /// may be over already.
    pub fn wait_apart(&self, sid: i64) -> bool {
        self.lock().apart.insert(sid)
    }

    /// The session whose turn runs alone, and since when.
    pub fn alone(&self) -> Option<(i64, Instant)> {
        self.lock().alone
    }

    /// The session that has run alone since before the instant, taken out: it has stood its time.
    pub fn take_alone(&self, before: Instant) -> Option<i64> {
        let mut inner = self.lock();
        inner.alone.take_if(|(_, since)| *since <= before).map(|(sid, _)| sid)
    }
}
