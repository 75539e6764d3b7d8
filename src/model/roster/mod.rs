//! The roster: which sessions have a worker, which wait for one, and which must not start yet.
//!
//! A value without a lock, a thread or a clock. Each method changes it and returns what its owner is to do, as [`Effect`]s.
//! It knows workers by their session's row alone; what lies unread in a worker's mailbox is passed in.
//!
//! **Slots** ([`slots`]): a session has at most one worker. The daemon's and the agent's limits bound how many there are;
//! when they are full, the sessions at rest that were used least recently are closed for those that wait.
//! **Wait queue** ([`wait_queue`]): one queue an agent, in the order of arrival. **Direct begin** ([`direct_begin`]): a
//! session at rest is reserved while another thread begins its next turn. **Probation** ([`probation`]): a session one
//! death short of suspension runs without the others for a while. **Leftovers** ([`leftovers`]): a session waits while
//! processes of its last agent still run.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

mod direct_begin;
mod leftovers;
mod probation;
mod slots;
mod wait_queue;

pub use direct_begin::DirectBegin;
use slots::AgentSlots;
pub use slots::{Route, Routes};
use wait_queue::WaitQueue;
pub use wait_queue::Waiting;

/// A session that is to have a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkRequest {
    /// The session's row.
    pub sid: i64,
    /// Its key.
    pub key: String,
    /// An interrupted turn is to go on without a message.
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

impl Doing {
    /// A turn that is about to begin.
    const fn beginning(now: Instant) -> Self {
        Self::Running { turn_id: None, since: now, tool: None }
    }

    const fn kind(&self) -> Kind {
        match self {
            Self::Starting => Kind::Starting,
            Self::Idle => Kind::Resting,
            Self::Running { .. } => Kind::Running,
            Self::Closing => Kind::Closing,
        }
    }
}

/// [`Doing`] without its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Starting,
    Resting,
    Running,
    Closing,
}

/// What the owner of the roster is to do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Wake the session's worker: something may wait to run.
    Wake {
        /// The session's row.
        sid: i64,
        /// An interrupted turn is to go on without a message.
        auto_continue: bool,
    },
    /// Tell the session's worker to close: it makes room.
    Park(i64),
    /// Tell the session's worker to close: the daemon stops.
    Stop(i64),
    /// Cut the session's turn off and end its worker: the session gave way to another one.
    Retire(i64),
    /// Let go of the session's worker as it is: it holds nothing that has to be closed.
    Release(i64),
    /// The permissions that are open in the session have lost their turn.
    DropPermissions(i64),
    /// Tell the coordinator to look: nothing runs any more, a worker has gone, or there may be room.
    Nudge,
}

/// A live session.
#[derive(Clone, Debug)]
struct LiveSession {
    key: String,
    agent: String,
    /// At rest it holds nothing that must be closed: no process, no state of an agent's.
    light: bool,
    doing: Doing,
    /// When it was used last, in numbers of use.
    used: u64,
    /// What came for it while it closed: the request for the next worker.
    again: Option<WorkRequest>,
    /// Its agent has worked between turns and may go on: others give way before it.
    works_aside: bool,
    /// Its worker rests, or writes the end of a turn, with an agent that is ready: the activation's number.
    ready: Option<i64>,
    /// Set while another thread may begin a turn on the worker's behalf; holds what the worker reported meanwhile.
    reserved: Option<Doing>,
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
    pub age: Duration,
    /// In which tool.
    pub tool: Option<String>,
}

/// How many sessions there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// With a worker.
    pub live: usize,
    /// With a turn.
    pub running: usize,
    /// That wait for a worker.
    pub waiting: usize,
}

/// The roster. See the module.
#[derive(Debug, Default)]
pub struct Roster {
    live: BTreeMap<i64, LiveSession>,
    /// The newest live session under each key.
    by_key: HashMap<String, i64>,
    waiting: WaitQueue,
    by_agent: BTreeMap<String, AgentSlots>,
    running: usize,
    /// The newest number of use.
    uses: u64,
    /// A stop has begun: nobody is admitted any more.
    closed: bool,
    /// The session on probation, and since when. The database is the truth of it: this is its clock.
    probation: Option<(i64, Instant)>,
    /// Live sessions whose turn waits until the probation is over.
    after_probation: BTreeSet<i64>,
    /// What earlier agents left running is still being looked for: no session starts, for it could be anybody's.
    searching: bool,
    /// Sessions whose last agent's processes are still being ended.
    leftovers: BTreeSet<i64>,
}

impl Roster {
    /// Something waits in a session: its worker is to look, or it waits for one.
    #[must_use]
    pub fn want(&mut self, request: WorkRequest) -> Vec<Effect> {
        if let Some(effects) = self.wake_live(&request) {
            return effects;
        }
        if self.closed {
            return Vec::new();
        }
        self.waiting.add(request);
        vec![Effect::Nudge]
    }

    /// A worker says what it does. `has_begun`: a turn was begun for it and it has not read of it yet, so it does not rest.
    /// `None`: it is to close instead (it was chosen to give way in this moment), or it has been let go.
    pub fn set(&mut self, sid: i64, doing: Doing, has_begun: bool) -> Option<Vec<Effect>> {
        let entry = self.live.get_mut(&sid)?;
        if doing == Doing::Idle && has_begun {
            return Some(Vec::new());
        }
        if entry.reserved.is_some() && doing != Doing::Closing {
            // To others it runs, until it is known what came of that.
            entry.reserved = Some(doing);
            return Some(vec![Effect::DropPermissions(sid)]);
        }
        let (was, is) = (entry.doing.kind() == Kind::Running, doing.kind() == Kind::Running);
        let used = self.next_use();
        let set = self.change(sid, |entry| {
            entry.reserved = None;
            if doing != Doing::Idle {
                entry.ready = None;
            }
            let closing = entry.doing == Doing::Closing;
            if closing && is {
                return false;
            }
            if !closing {
                entry.doing = doing;
            }
            entry.used = used;
            true
        })?;
        if !set {
            return None;
        }
        let mut effects = Vec::new();
        if was && !is {
            effects.push(Effect::DropPermissions(sid));
        }
        if self.running == 0 && was != is || !self.waiting.is_empty() && !is {
            effects.push(Effect::Nudge);
        }
        Some(effects)
    }

    /// The tool in which a turn is.
    pub fn set_tool(&mut self, sid: i64, now_in: Option<String>) {
        if let Some(LiveSession { doing: Doing::Running { tool, .. }, .. }) = self.live.get_mut(&sid) {
            *tool = now_in;
        }
    }

    /// The session's agent works between turns: others make room before it.
    pub fn hold_back(&mut self, sid: i64) {
        if let Some(entry) = self.live.get_mut(&sid) {
            entry.works_aside = true;
        }
    }

    /// An idle worker wants to park: allowed, and it is closing, unless work lies unread in its mailbox.
    #[must_use]
    pub fn may_park(&mut self, sid: i64, has_work: bool) -> bool {
        let park = |entry: &mut LiveSession| {
            let may = entry.doing == Doing::Idle && !has_work;
            if may {
                entry.doing = Doing::Closing;
            }
            may
        };
        self.change(sid, park).unwrap_or(false)
    }

    /// A worker has ended: its slot is free. `None`: it has none. With what came for the session while it closed.
    pub fn remove(&mut self, sid: i64) -> Option<Option<WorkRequest>> {
        let entry = self.live.remove(&sid)?;
        if self.by_key.get(&entry.key) == Some(&sid) {
            self.by_key.remove(&entry.key);
        }
        self.after_probation.remove(&sid);
        self.count_out(&entry);
        Some(entry.again)
    }

    /// A session gave way: its worker ends, its turn is cut off.
    #[must_use]
    pub fn retire(&mut self, sid: i64) -> Vec<Effect> {
        self.waiting.forget(sid);
        if self.live.contains_key(&sid) { vec![Effect::Retire(sid)] } else { Vec::new() }
    }

    /// A stop: nobody is admitted from now on, and every worker is told to close. Those at rest that hold nothing are let
    /// go as they are: waking ten thousand threads to say that there is nothing to do takes longer than all the rest of a
    /// stop. Their threads sleep until the process ends; their activations are rows, and closed with all others.
    #[must_use]
    pub fn close_all(&mut self, has_letters: impl Fn(i64) -> bool) -> Vec<Effect> {
        self.closed = true;
        self.waiting.clear();
        let leaves = |(sid, e): &(&i64, &LiveSession)| e.light && e.doing == Doing::Idle && !has_letters(**sid);
        let leaving: Vec<i64> = self.live.iter().filter(leaves).map(|(sid, _)| *sid).collect();
        for sid in &leaving {
            if let Some(entry) = self.live.remove(sid) {
                self.count_out(&entry);
            }
        }
        leaving.into_iter().map(Effect::Release).chain(self.live.keys().copied().map(Effect::Stop)).collect()
    }

    /// Gives up the workers that have not come: their sessions' rows and keys.
    pub fn abandon(&mut self) -> Vec<(i64, String)> {
        let abandoned = std::mem::take(&mut self.live).into_iter().map(|(sid, entry)| (sid, entry.key)).collect();
        self.by_key.clear();
        self.by_agent.clear();
        self.running = 0;
        abandoned
    }

    /// What still runs, oldest first.
    #[must_use]
    pub fn blocking(&self, now: Instant) -> Vec<Blocking> {
        let running = |(sid, e): (&i64, &LiveSession)| match &e.doing {
            Doing::Running { turn_id, since, tool } => Some(Blocking {
                sid: *sid,
                key: e.key.clone(),
                turn_id: turn_id.clone(),
                age: now.saturating_duration_since(*since),
                tool: tool.clone(),
            }),
            Doing::Starting | Doing::Idle | Doing::Closing => None,
        };
        let mut blocking: Vec<_> = self.live.iter().filter_map(running).collect();
        blocking.sort_by(|a, b| b.age.cmp(&a.age).then_with(|| a.key.cmp(&b.key)));
        blocking
    }

    /// The sessions in which a turn begins or runs.
    pub fn running(&self) -> impl Iterator<Item = i64> {
        self.live.iter().filter(|(_, e)| e.doing.kind() == Kind::Running).map(|(sid, _)| *sid)
    }

    /// How many there are.
    #[must_use]
    pub fn numbers(&self) -> Numbers {
        Numbers { live: self.live.len(), running: self.running, waiting: self.waiting.len() }
    }

    /// Every live session, with its key.
    pub fn live(&self) -> impl Iterator<Item = (i64, &str)> {
        self.live.iter().map(|(sid, e)| (*sid, e.key.as_str()))
    }

    /// What the session's worker does; `None`: it has none.
    #[must_use]
    pub fn doing(&self, sid: i64) -> Option<&Doing> {
        self.live.get(&sid).map(|e| &e.doing)
    }
}

#[cfg(test)]
mod tests;
