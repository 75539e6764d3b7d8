//! The registry: one map of the live sessions, one entry a session, and the only place that knows whether one is running.
//!
//! An entry owns the mailbox, the turn and the timestamps together, so that they cannot drift apart. Its lock is held for
//! moments and never across I/O. Which session gives way is decided by the model; who is woken, here.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::Sender;

use super::mailbox::{Close, Mailbox, Why};
use crate::agent::{Interrupt, PermissionOption, PermissionOutcome};

mod apart;
mod reserve;
mod seats;
mod wishes;

pub use reserve::Reserved;
pub use seats::Newcomer;
use seats::OfAgent;
pub use wishes::Numbered;
use wishes::Wishes;

/// A session that wants a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The session's row.
    pub sid: i64,
    /// Its key.
    pub key: String,
    /// An interrupted turn is to go on by itself.
    pub auto_continue: bool,
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

/// [`Doing`] without what belongs to it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    Starting,
    Resting,
    Running,
    Closing,
}

impl Doing {
    const fn sort(&self) -> Sort {
        match self {
            Self::Starting => Sort::Starting,
            Self::Idle => Sort::Resting,
            Self::Running { .. } => Sort::Running,
            Self::Closing => Sort::Closing,
        }
    }
}

/// A permission that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenPermission {
    /// Its id.
    pub request_id: String,
    /// What the agent offers.
    pub options: Vec<PermissionOption>,
    /// The session that asks.
    pub session_id: String,
    /// What whoever may answer is shown.
    pub shown: Arc<serde_json::Value>,
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
    permissions: Vec<OpenPermission>,
    abandoned: bool,
    /// Its agent has worked by itself and may go on: others give way before it.
    busy_aside: bool,
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
    wishes: Wishes,
    by_agent: HashMap<String, OfAgent>,
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
        if let Some(tell) = inner.tell(&wish) {
            drop(inner);
            tell();
            return;
        }
        if inner.closed {
            return;
        }
        inner.wishes.add(wish);
        self.nudge();
    }

    /// Whether anybody waits for room.
    pub fn has_wishes(&self) -> bool {
        !self.lock().wishes.is_empty()
    }

    /// The worker's thread was started; without one its handle is `None`.
    pub fn started(&self, sid: i64, join: Option<JoinHandle<()>>) {
        if let Some(entry) = self.lock().live.get_mut(&sid) {
            entry.join = join;
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
        let (was, is) = (entry.doing.sort() == Sort::Running, doing.sort() == Sort::Running);
        let used = inner.tick();
        let set = inner.change(sid, |entry| {
            entry.reserved = None;
            if doing != Doing::Idle {
                entry.ready = None;
            }
            let closing = entry.doing == Doing::Closing;
            if closing && is {
                return None;
            }
            if !closing {
                entry.doing = doing;
            }
            if was && !is {
                entry.permissions.clear();
            }
            entry.used = used;
            Some(())
        })?;
        set?;
        let look = inner.running == 0 && was != is || (!inner.wishes.is_empty() && !is);
        if look {
            self.nudge();
        }
        Some(())
    }

    /// The tool in which a turn is.
    pub fn set_tool(&self, sid: i64, now_in: Option<String>) {
        if let Some(Entry { doing: Doing::Running { tool, .. }, .. }) = self.lock().live.get_mut(&sid) {
            *tool = now_in;
        }
    }

    /// An idle worker wants to park: allowed unless something came for it.
    pub fn may_park(&self, sid: i64) -> bool {
        let park = |entry: &mut Entry| {
            let may = entry.doing == Doing::Idle && !entry.mailbox.has_work();
            if may {
                entry.doing = Doing::Closing;
            }
            may
        };
        self.lock().change(sid, park).unwrap_or(false)
    }

    /// A worker has ended: its entry goes, with its thread's handle, and the wish that came while it closed.
    pub fn remove(&self, sid: i64) -> Option<(Option<JoinHandle<()>>, Option<Wish>)> {
        let mut inner = self.lock();
        let entry = inner.live.remove(&sid)?;
        if inner.by_key.get(&entry.key) == Some(&sid) {
            inner.by_key.remove(&entry.key);
        }
        if let Some(of) = inner.by_agent.get_mut(&entry.agent) {
            of.live -= 1;
            of.count_out(entry.doing.sort(), entry.used);
        }
        inner.running -= usize::from(entry.doing.sort() == Sort::Running);
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
        inner.wishes.forget(sid);
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
        let Inner { live, by_agent, .. } = &mut *inner;
        live.retain(|_, e| {
            let stays = !e.light || e.doing != Doing::Idle || e.mailbox.has_letters();
            if let Some(of) = by_agent.get_mut(&e.agent).filter(|_| !stays) {
                of.live -= 1;
                of.count_out(e.doing.sort(), e.used);
            }
            stays
        });
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

    /// The session's agent works by itself: others make room before it.
    pub fn hold_back(&self, sid: i64) {
        if let Some(entry) = self.lock().live.get_mut(&sid) {
            entry.busy_aside = true;
        }
    }

    /// The agent asks for leave: known from here on to whoever may answer.
    pub fn open_permission(&self, sid: i64, permission: OpenPermission) {
        if let Some(entry) = self.lock().live.get_mut(&sid) {
            entry.permissions.push(permission);
        }
    }

    /// What is open of a session, oldest first.
    pub fn permissions(&self, sid: i64) -> Vec<Arc<serde_json::Value>> {
        let inner = self.lock();
        inner.live.get(&sid).into_iter().flat_map(|e| e.permissions.iter().map(|p| p.shown.clone())).collect()
    }

    /// What is open of all sessions: key, session and what is shown.
    pub fn all_permissions(&self) -> Vec<(String, String, Arc<serde_json::Value>)> {
        let inner = self.lock();
        let of = |e: &Entry| -> Vec<_> {
            e.permissions.iter().map(|p| (e.key.clone(), p.session_id.clone(), p.shown.clone())).collect()
        };
        inner.live.values().flat_map(of).collect()
    }

    /// How many sessions wait for a permission.
    pub fn asking(&self) -> usize {
        self.lock().live.values().filter(|e| !e.permissions.is_empty()).count()
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
}

#[cfg(test)]
mod tests;
