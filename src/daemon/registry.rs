//! The registry: one map of the live sessions, one entry a session, and the only place that knows whether one is running.
//!
//! An entry owns the mailbox, the turn and the timestamps together, so that they cannot drift apart. Its lock is held for
//! moments and never across I/O. Which session gives way is decided by the model; who is woken, here.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::Sender;

use super::mailbox::{Close, Mailbox, Why};
use crate::agent::{Interrupt, PermissionOption, PermissionOutcome};
use crate::model::session::{Cached, victim};
use crate::store::Begun;

/// A session that wants a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The session's row.
    pub sid: i64,
    /// Its key.
    pub key: String,
    /// An interrupted turn is to go on by itself.
    pub asked: bool,
}

/// What a worker does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Its agent is being started.
    Starting,
    /// It waits.
    Idle,
    /// A turn begins or runs.
    Running {
        /// The turn; `None` until its begin is committed.
        turn_id: Option<String>,
        /// Since when.
        since: Instant,
        /// The tool in which it is.
        tool: Option<String>,
    },
    /// It is closing.
    Closing,
}

/// A permission that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its id.
    pub request_id: String,
    /// What the agent offers.
    pub options: Vec<PermissionOption>,
}

struct Entry {
    key: String,
    agent: String,
    /// At rest it holds nothing that must be closed: no process, no state of an agent's.
    light: bool,
    mailbox: Arc<Mailbox>,
    doing: Doing,
    used: u64,
    join: Option<JoinHandle<()>>,
    again: Option<Wish>,
    permissions: Vec<Asked>,
    abandoned: bool,
    /// Its worker rests, or writes the end of a turn, with an agent that is ready: the activation's number.
    ready: Option<i64>,
    /// Somebody is about to begin a turn for it, and its worker begins none until it hears what came of that. What the
    /// worker itself does meanwhile.
    reserved: Option<Doing>,
}

#[derive(Default)]
struct Inner {
    live: HashMap<i64, Entry>,
    /// The newest live session under each key.
    by_key: HashMap<String, i64>,
    wishes: VecDeque<Wish>,
    by_agent: HashMap<String, usize>,
    running: usize,
    clock: u64,
    closed: bool,
    /// The session whose turn runs alone, being one death short of suspension; since when. The database is the truth of
    /// it: this is its clock.
    alone: Option<(i64, Instant)>,
    /// Sessions whose turn waits until that one has stood its time.
    apart: std::collections::HashSet<i64>,
    /// What earlier agents left running is still being looked for: nobody starts, for it could be anybody's.
    searching: bool,
    /// Sessions whose last activation's processes are still being ended.
    haunted: std::collections::HashSet<i64>,
}

/// Room for a newcomer, or who is asked to make it.
#[derive(Debug, PartialEq, Eq)]
pub enum Room {
    /// There is room: its entry is made, its worker may be started with this mailbox.
    Granted,
    /// A session was asked to give way, or all run: it waits.
    Wait,
    /// The session has its worker already, who was told.
    Live,
}

/// A running turn, as a stop shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocking {
    /// The session's row.
    pub sid: i64,
    /// Its key.
    pub key: String,
    /// The turn.
    pub turn_id: Option<String>,
    /// For how long.
    pub age: std::time::Duration,
    /// In which tool.
    pub tool: Option<String>,
}

/// What came of an answer to a permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// It was the first.
    Settled,
    /// It had been settled, or never asked.
    Resolved,
    /// The agent did not offer that.
    NotOffered,
}

/// Numbers for the status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Workers.
    pub live: usize,
    /// With a turn.
    pub running: usize,
    /// Sessions that wait for room.
    pub waiting: usize,
}

/// The registry; shared by everybody who wakes a session.
#[derive(Default)]
pub struct Registry {
    inner: Mutex<Inner>,
    nudge: OnceLock<Sender<()>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("numbers", &self.numbers()).finish()
    }
}

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
                self.registry.want(Wish { sid: self.sid, key: self.key.clone(), asked: false });
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
        let Some(entry) = inner.live.get_mut(&self.sid) else { return };
        let Some(doing) = entry.reserved.take() else { return };
        let mailbox = entry.mailbox.clone();
        let over = !matches!(doing, Doing::Running { .. });
        entry.doing = doing;
        if over {
            inner.running -= 1;
            if inner.running == 0 || !inner.wishes.is_empty() {
                self.registry.nudge();
            }
        }
        drop(inner);
        mailbox.post(|l| l.work = true);
    }
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is nudged when nothing runs any more, a worker has gone, or room may have come free.
    pub fn set_nudge(&self, nudge: Sender<()>) {
        let _ = self.nudge.set(nudge);
    }

    fn nudge(&self) {
        if let Some(nudge) = self.nudge.get() {
            // A nudge that waits already says the same.
            let _ = nudge.try_send(());
        }
    }

    /// Something waits in a session: wakes its worker, or remembers that it wants one.
    pub fn want(&self, wish: Wish) {
        let mut inner = self.lock();
        inner.clock += 1;
        let clock = inner.clock;
        if let Some(entry) = inner.live.get_mut(&wish.sid) {
            entry.used = clock;
            if entry.doing == Doing::Closing {
                let asked = wish.asked || entry.again.as_ref().is_some_and(|w| w.asked);
                entry.again = Some(Wish { asked, ..wish });
            } else {
                let mailbox = entry.mailbox.clone();
                drop(inner);
                mailbox.post(|l| {
                    l.work = true;
                    l.asked |= wish.asked;
                });
            }
            return;
        }
        if inner.closed {
            return;
        }
        match inner.wishes.iter_mut().find(|w| w.sid == wish.sid) {
            Some(known) => known.asked |= wish.asked,
            None => inner.wishes.push_back(wish),
        }
        self.nudge();
    }

    /// The sessions that want a worker, taken out; the coordinator gives back those for which there is no room.
    pub fn take_wishes(&self) -> VecDeque<Wish> {
        std::mem::take(&mut self.lock().wishes)
    }

    /// Gives back wishes that must wait, before those that came since.
    pub fn return_wishes(&self, waiting: VecDeque<Wish>) {
        let mut inner = self.lock();
        for wish in waiting.into_iter().rev() {
            if !inner.wishes.iter().any(|w| w.sid == wish.sid) {
                inner.wishes.push_front(wish);
            }
        }
    }

    /// Whether anybody waits for room.
    pub fn has_wishes(&self) -> bool {
        !self.lock().wishes.is_empty()
    }

    /// Looks for room, and makes the newcomer's entry or asks the least recently used idle session to give way. `light`: its
    /// agent holds nothing while at rest.
    pub fn room(
        &self,
        wish: &Wish,
        (agent, light): (&str, bool),
        max_live: usize,
        max_processes: usize,
        mailbox: &Arc<Mailbox>,
    ) -> Room {
        let mut inner = self.lock();
        if inner.live.contains_key(&wish.sid) {
            // It came while an earlier wish of the same session was being granted: its worker is told, or the next one.
            drop(inner);
            self.want(wish.clone());
            return Room::Live;
        }
        if inner.closed || inner.searching || inner.haunted.contains(&wish.sid) {
            return Room::Wait;
        }
        let of_agent = inner.by_agent.get(agent).copied().unwrap_or(0);
        if inner.live.len() < max_live && of_agent < max_processes {
            inner.clock += 1;
            let used = inner.clock;
            *inner.by_agent.entry(agent.to_owned()).or_default() += 1;
            inner.live.insert(
                wish.sid,
                Entry {
                    key: wish.key.clone(),
                    agent: agent.to_owned(),
                    light,
                    mailbox: mailbox.clone(),
                    doing: Doing::Starting,
                    used,
                    join: None,
                    again: None,
                    permissions: Vec::new(),
                    abandoned: false,
                    ready: None,
                    reserved: None,
                },
            );
            inner.by_key.insert(wish.key.clone(), wish.sid);
            return Room::Granted;
        }
        // One that is closing already makes room soon; another need not go as well.
        let full = of_agent >= max_processes;
        let mine = |e: &Entry| !full || e.agent == agent;
        let closing = inner.live.values().filter(|e| e.doing == Doing::Closing && mine(e)).count();
        let wishing = inner.wishes.len() + 1;
        if closing < wishing {
            let idle = inner.live.iter().filter(|(_, e)| mine(e) && e.doing != Doing::Closing).map(|(sid, e)| {
                (*sid, Cached { running: e.doing != Doing::Idle || e.mailbox.has_work(), used: e.used })
            });
            if let Some(sid) = victim(idle)
                && let Some(entry) = inner.live.get_mut(&sid)
            {
                entry.doing = Doing::Closing;
                let mailbox = entry.mailbox.clone();
                drop(inner);
                mailbox.post(|l| l.close = l.close.max(Some(Close::Park)));
            }
        }
        Room::Wait
    }

    /// The worker's thread was started.
    pub fn started(&self, sid: i64, join: JoinHandle<()>) {
        if let Some(entry) = self.lock().live.get_mut(&sid) {
            entry.join = Some(join);
        }
    }

    /// A worker says what it does. `None`: it is to close instead (it was chosen to give way in this moment).
    pub fn set(&self, sid: i64, doing: Doing) -> Option<()> {
        self.set_in(&mut self.lock(), sid, doing)
    }

    fn set_in(&self, inner: &mut Inner, sid: i64, doing: Doing) -> Option<()> {
        let entry = inner.live.get_mut(&sid)?;
        if entry.abandoned {
            return None;
        }
        if doing == Doing::Idle && entry.mailbox.has_begun() {
            // A turn was begun for it and it has not read of it yet: it does not rest.
            return Some(());
        }
        if entry.reserved.is_some() && doing != Doing::Closing {
            // To others it runs, until it is known what came of that.
            entry.reserved = Some(doing);
            entry.permissions.clear();
            return Some(());
        }
        entry.reserved = None;
        if doing != Doing::Idle {
            entry.ready = None;
        }
        let was = matches!(entry.doing, Doing::Running { .. });
        let is = matches!(doing, Doing::Running { .. });
        let closing = entry.doing == Doing::Closing;
        if closing && is {
            return None;
        }
        if !closing {
            entry.doing = doing;
        }
        if was && !is {
            inner.running -= 1;
            entry.permissions.clear();
        } else if is && !was {
            inner.running += 1;
        }
        inner.clock += 1;
        entry.used = inner.clock;
        let look = inner.running == 0 && was != is || (!inner.wishes.is_empty() && !is);
        if look {
            self.nudge();
        }
        Some(())
    }

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
        let running = Doing::Running { turn_id: None, since: Instant::now(), tool: None };
        let was = std::mem::replace(&mut entry.doing, running);
        if was == Doing::Idle {
            inner.running += 1;
        }
        entry.reserved = Some(was);
        entry.ready = None;
        inner.clock += 1;
        entry.used = inner.clock;
        Some(Reserved { registry: self, sid, epoch, key: key.to_owned(), over: false })
    }

    /// The tool in which a turn is.
    pub fn set_tool(&self, sid: i64, now_in: Option<String>) {
        if let Some(Entry { doing: Doing::Running { tool, .. }, .. }) = self.lock().live.get_mut(&sid) {
            *tool = now_in;
        }
    }

    /// An idle worker wants to park: allowed unless something came for it.
    pub fn may_park(&self, sid: i64) -> bool {
        let mut inner = self.lock();
        match inner.live.get_mut(&sid) {
            Some(entry) if entry.doing == Doing::Idle && !entry.mailbox.has_work() => {
                entry.doing = Doing::Closing;
                true
            }
            _ => false,
        }
    }

    /// A worker has ended: its entry goes, with its thread's handle, and the wish that came while it closed.
    pub fn remove(&self, sid: i64) -> Option<(Option<JoinHandle<()>>, Option<Wish>)> {
        let mut inner = self.lock();
        let entry = inner.live.remove(&sid)?;
        if inner.by_key.get(&entry.key) == Some(&sid) {
            inner.by_key.remove(&entry.key);
        }
        if let Some(n) = inner.by_agent.get_mut(&entry.agent) {
            *n -= 1;
        }
        if matches!(entry.doing, Doing::Running { .. }) {
            inner.running -= 1;
        }
        self.nudge();
        Some((entry.join, entry.again))
    }

    /// Posts to a live session.
    pub fn post(&self, sid: i64, write: impl FnOnce(&Mailbox)) -> bool {
        let mailbox = match self.lock().live.get(&sid) {
            Some(entry) => entry.mailbox.clone(),
            None => return false,
        };
        write(&mailbox);
        true
    }

    /// A session gave way: its worker ends, its turn is cut off.
    pub fn retire(&self, sid: i64, by: Instant) {
        let mut inner = self.lock();
        inner.wishes.retain(|w| w.sid != sid);
        let Some(entry) = inner.live.get_mut(&sid) else { return };
        let mailbox = entry.mailbox.clone();
        drop(inner);
        mailbox.interrupt(Interrupt::Cancel(by), Why::Retired);
        mailbox.post(|l| l.close = Some(Close::Retire));
    }

    /// No newcomers from now on; every worker is told to close. Those at rest that hold nothing are let go as they are:
    /// waking ten thousand threads to say that there is nothing to do takes longer than all the rest of a stop. Their
    /// threads sleep until the process ends; their activations are rows, and closed with all others.
    pub fn close_all(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.wishes.clear();
        inner.live.retain(|_, e| !e.light || e.doing != Doing::Idle || e.mailbox.has_letters());
        let all: Vec<_> = inner.live.values().map(|e| e.mailbox.clone()).collect();
        drop(inner);
        for mailbox in all {
            mailbox.post(|l| l.close = l.close.max(Some(Close::Stop)));
        }
    }

    /// Interrupts every session in which a turn runs.
    pub fn interrupt_running(&self, interrupt: Interrupt) {
        let running: Vec<_> = self
            .lock()
            .live
            .values()
            .filter(|e| matches!(e.doing, Doing::Running { .. }))
            .map(|e| e.mailbox.clone())
            .collect();
        for mailbox in running {
            mailbox.interrupt(interrupt, Why::Stop);
        }
    }

    /// Every worker is to be done by the instant; with `kill`, agents are killed.
    pub fn hurry(&self, by: Instant, kill: bool) {
        let all: Vec<_> = self.lock().live.values().map(|e| e.mailbox.clone()).collect();
        for mailbox in all {
            mailbox.post(|l| l.close_by = Some(by));
            if kill {
                mailbox.interrupt(Interrupt::Kill, Why::Stop);
            }
        }
    }

    /// Gives up the workers that have not come: their keys, and their sessions' rows.
    pub fn abandon(&self) -> Vec<(i64, String)> {
        let mut inner = self.lock();
        let mut given_up = Vec::new();
        for (sid, entry) in &mut inner.live {
            entry.abandoned = true;
            given_up.push((*sid, entry.key.clone()));
        }
        inner.live.clear();
        inner.by_key.clear();
        inner.by_agent.clear();
        inner.running = 0;
        given_up.sort();
        given_up
    }

    /// What still runs, oldest first.
    pub fn blocking(&self) -> Vec<Blocking> {
        let now = Instant::now();
        let mut blocking: Vec<_> = self
            .lock()
            .live
            .iter()
            .filter_map(|(sid, e)| match &e.doing {
                Doing::Running { turn_id, since, tool } => Some(Blocking {
                    sid: *sid,
                    key: e.key.clone(),
                    turn_id: turn_id.clone(),
                    age: now.saturating_duration_since(*since),
                    tool: tool.clone(),
                }),
                Doing::Starting | Doing::Idle | Doing::Closing => None,
            })
            .collect();
        blocking.sort_by(|a, b| b.age.cmp(&a.age).then_with(|| a.key.cmp(&b.key)));
        blocking
    }

    /// How many there are.
    pub fn numbers(&self) -> Numbers {
        let inner = self.lock();
        Numbers { live: inner.live.len(), running: inner.running, waiting: inner.wishes.len() }
    }

    /// Every live session, with its key.
    pub fn live(&self) -> BTreeMap<i64, String> {
        self.lock().live.iter().map(|(sid, e)| (*sid, e.key.clone())).collect()
    }

    /// Wakes every worker: turns start again.
    pub fn wake_all(&self) {
        let all: Vec<_> = self.lock().live.values().map(|e| e.mailbox.clone()).collect();
        for mailbox in all {
            mailbox.post(|l| l.work = true);
        }
    }

    /// The agent asks for leave: known from here on to whoever may answer.
    pub fn open_permission(&self, sid: i64, asked: Asked) {
        if let Some(entry) = self.lock().live.get_mut(&sid) {
            entry.permissions.push(asked);
        }
    }

    /// Settles an open permission, first come first served.
    pub fn answer_permission(&self, sid: i64, request_id: &str, option: Option<&str>, by: &'static str) -> Answered {
        let mut inner = self.lock();
        let Some(entry) = inner.live.get_mut(&sid) else { return Answered::Resolved };
        let Some(at) = entry.permissions.iter().position(|p| p.request_id == request_id) else {
            return Answered::Resolved;
        };
        let outcome = match option {
            None => PermissionOutcome::Cancelled,
            Some(option) if entry.permissions[at].options.iter().any(|o| o.option_id == option) => {
                PermissionOutcome::Selected(option.to_owned())
            }
            Some(_) => return Answered::NotOffered,
        };
        entry.permissions.remove(at);
        let mailbox = entry.mailbox.clone();
        drop(inner);
        mailbox.post(|l| l.permissions.push((request_id.to_owned(), outcome, by)));
        Answered::Settled
    }

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
        self.lock().haunted.remove(&sid);
        // Its wish has been waiting, and nothing else may happen for long.
        self.nudge();
    }

    /// Nobody knows what is left, and nobody waits for it.
    pub fn exorcise_all(&self) {
        let mut inner = self.lock();
        inner.searching = false;
        inner.haunted.clear();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::TurnRef;

    fn live(registry: &Registry, ready: Option<i64>) -> Arc<Mailbox> {
        let mailbox = Arc::new(Mailbox::default());
        let wish = Wish { sid: 7, key: "x:a".into(), asked: false };
        assert_eq!(registry.room(&wish, ("agent", false), 9, 9, &mailbox), Room::Granted);
        assert_eq!(registry.rest(7, ready), Some(true));
        mailbox
    }

    fn begun() -> Box<Begun> {
        let turn = TurnRef { sid: 7, epoch: 3, tid: 5 };
        let (turn_id, prompt) = ("t".into(), "p".into());
        Box::new(Begun { turn, turn_id, prompt, continues: None, first: true, turns: 0, alone: false })
    }

    /// Two messages to a parked session may each leave a wish, the second while the first is being granted.
    #[test]
    fn a_wish_of_a_session_that_is_live_by_now_does_not_wait() {
        let registry = Registry::default();
        let wish = Wish { sid: 7, key: "x:a".into(), asked: false };
        registry.want(wish.clone());
        let taken = registry.take_wishes();
        registry.want(wish);
        let mailbox = Arc::new(Mailbox::default());
        assert_eq!(registry.room(&taken[0], ("agent", false), 9, 9, &mailbox), Room::Granted);
        let again = registry.take_wishes();
        assert_eq!(registry.room(&again[0], ("agent", false), 9, 9, &Arc::default()), Room::Live);
        assert!(mailbox.has_work(), "its worker is told");
        assert_eq!(registry.numbers().waiting, 0);
    }

    #[test]
    fn only_a_worker_that_rests_and_is_ready_is_set_aside_and_once() {
        let registry = Registry::default();
        let mailbox = live(&registry, None);
        assert!(registry.reserve("x:a").is_none(), "its agent is not ready");
        assert_eq!(registry.rest(7, Some(3)), Some(true));
        assert!(registry.reserve("x:b").is_none(), "another key");
        mailbox.post(|l| l.work = true);
        assert!(registry.reserve("x:a").is_none(), "it has a letter to read");
        let _ = mailbox.take();
        let reserved = registry.reserve("x:a").expect("set aside");
        assert_eq!((reserved.sid, reserved.epoch, registry.numbers().running), (7, 3, 1));
        assert!(registry.reserve("x:a").is_none() && !registry.may_park(7));
        assert_eq!((registry.begin(7), registry.rest(7, Some(3))), (Some(false), Some(false)), "its worker waits");
        reserved.hand_over(begun());
        assert_eq!(mailbox.take().begun, Some(begun()));
        assert_eq!((registry.begin(7), registry.numbers().running), (Some(true), 1));
        assert_eq!((registry.rest(7, Some(3)), registry.numbers().running), (Some(true), 0));
        registry.close_all();
        assert!(registry.reserve("x:a").is_none(), "a stop");
    }

    #[test]
    fn a_stop_lets_go_who_rests_and_holds_nothing() {
        let registry = Registry::default();
        let mailboxes: Vec<_> = [(1, true, true), (2, false, true), (3, true, false), (4, true, true)]
            .into_iter()
            .map(|(sid, light, rests)| {
                let (wish, mailbox) =
                    (Wish { sid, key: format!("x:{sid}"), asked: false }, Arc::new(Mailbox::default()));
                assert_eq!(registry.room(&wish, ("agent", light), 9, 9, &mailbox), Room::Granted);
                let doing = if rests { Doing::Idle } else { Doing::Starting };
                assert_eq!(registry.set(sid, doing), Some(()));
                mailbox
            })
            .collect();
        mailboxes[3].post(|l| l.work = true);
        registry.close_all();
        assert_eq!(
            registry.live().into_keys().collect::<Vec<_>>(),
            [2, 3, 4],
            "with an agent, starting, with a letter"
        );
        let told: Vec<_> = mailboxes.iter().map(|m| m.take().close.is_some()).collect();
        assert_eq!(told, [false, true, true, true]);
    }

    #[test]
    fn a_worker_that_writes_the_end_of_its_turn_is_set_aside_too() {
        let registry = Registry::default();
        let mailbox = live(&registry, Some(3));
        assert_eq!(registry.begin(7), Some(true));
        assert!(registry.reserve("x:a").is_none(), "it runs");
        registry.finishing(7, 3);
        let reserved = registry.reserve("x:a").expect("set aside");
        drop(reserved);
        assert_eq!((mailbox.take().work, registry.numbers().running), (true, 1), "it is not done yet");
        registry.finishing(7, 3);
        let reserved = registry.reserve("x:a").expect("set aside");
        assert_eq!((registry.set(7, Doing::Idle), registry.numbers().running), (Some(()), 1));
        drop(reserved);
        assert_eq!((mailbox.take().work, registry.numbers().running), (true, 0), "it is done");
        assert_eq!(registry.begin(7), Some(true));
        registry.finishing(7, 3);
        let reserved = registry.reserve("x:a").expect("set aside");
        assert_eq!(registry.rest(7, Some(3)), Some(false));
        reserved.hand_over(begun());
        assert_eq!((mailbox.take().begun, registry.numbers().running), (Some(begun()), 1));
    }

    #[test]
    fn a_reservation_that_came_to_nothing_wakes_the_worker() {
        let registry = Registry::default();
        let mailbox = live(&registry, Some(3));
        drop(registry.reserve("x:a").expect("set aside"));
        assert_eq!((mailbox.take().work, registry.numbers().running), (true, 0));
        assert!(registry.reserve("x:a").is_none(), "until it rests again");
    }

    #[test]
    fn a_turn_for_a_worker_that_went_is_looked_for_by_the_next() {
        let registry = Registry::default();
        let mailbox = live(&registry, Some(3));
        let reserved = registry.reserve("x:a").expect("set aside");
        assert_eq!(registry.set(7, Doing::Closing), Some(()));
        assert_eq!(registry.numbers().running, 0);
        reserved.hand_over(begun());
        assert_eq!(mailbox.take().begun, None);
        let (_, again) = registry.remove(7).expect("its entry");
        assert_eq!(again.map(|w| w.sid), Some(7));
    }
}
