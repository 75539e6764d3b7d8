//! The roster: which sessions have a worker, which wait for one, and which must not start yet.
//!
//! It is a value without a lock, a thread or a clock. Each method changes it and returns [`Effect`]s for its owner to
//! perform. It knows a worker only by its session's row; the caller passes in whether a mailbox has unread letters.
//!
//! - **Slots** ([`slots`]): a session has at most one worker, and the limits of the daemon and of the agent bound the
//!   number of workers. When they are full, the least recently used idle sessions are parked for sessions that wait.
//! - **Wait queue** ([`wait_queue`]): one queue per agent, in order of arrival.
//! - **Direct begin** ([`direct_begin`]): an idle session is reserved while another thread begins its next turn.
//! - **Probation** ([`probation`]): a session one death short of suspension runs without other such sessions for a
//!   while.
//! - **Leftovers** ([`leftovers`]): a session waits while processes of its last agent still run.

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

/// A request for a worker of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkRequest {
    /// The session's row.
    pub sid: i64,
    /// Its key.
    pub key: String,
    /// An interrupted turn is to go on without a message.
    pub auto_continue: bool,
}

/// The state of a worker, as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Its agent is being started.
    Starting,
    /// No turn runs.
    Idle,
    /// A turn begins or runs.
    Running {
        /// The turn; `None` until its begin is committed.
        turn_id: Option<String>,
        /// When it began.
        since: Instant,
        /// The tool that it is running.
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

/// An action for the owner of the roster. Actions are performed in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Wake the session's worker: it may have waiting work.
    Wake {
        /// The session's row.
        sid: i64,
        /// An interrupted turn is to go on without a message.
        auto_continue: bool,
    },
    /// Close the session's worker to make room.
    Park(i64),
    /// Close the session's worker, because the daemon stops.
    Stop(i64),
    /// Cut off the session's turn and end its worker, because the session is no longer current.
    Retire(i64),
    /// Release the session's worker without waking it: it has nothing to close.
    Release(i64),
    /// Drop the session's open permissions, because their turn is over.
    DropPermissions(i64),
    /// Notify the coordinator: no turn runs any more, a worker has gone, or a slot may be free.
    Nudge,
}

/// A live session.
#[derive(Clone, Debug)]
struct LiveSession {
    key: String,
    agent: String,
    /// While idle it has nothing to close: no process and no agent state.
    light: bool,
    /// Its agent may outlive the daemon.
    kept: bool,
    /// A stop leaves it alone: its agent goes on.
    spared: bool,
    doing: Doing,
    /// The number of its last use.
    used: u64,
    /// The request for the next worker that came while it closed.
    again: Option<WorkRequest>,
    /// Its agent has worked between turns and may go on, so other sessions give way first.
    works_aside: bool,
    /// The activation's number, if its agent is ready and its worker is idle or writes the end of a turn.
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
    /// How long it has been running.
    pub age: Duration,
    /// The tool that it is running.
    pub tool: Option<String>,
}

/// Numbers of sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// With a worker.
    pub live: usize,
    /// With a turn.
    pub running: usize,
    /// Waiting for a worker.
    pub waiting: usize,
    /// With an agent that may outlive the daemon.
    pub kept: usize,
}

/// The roster, as described in the module.
#[derive(Debug, Default)]
pub struct Roster {
    live: BTreeMap<i64, LiveSession>,
    /// The newest live session under each key.
    by_key: HashMap<String, i64>,
    waiting: WaitQueue,
    by_agent: BTreeMap<String, AgentSlots>,
    running: usize,
    /// How many of the live sessions have an agent that may outlive the daemon.
    kept: usize,
    /// The number of the newest use.
    uses: u64,
    /// A stop has begun: no session is admitted any more.
    closed: bool,
    /// The session on probation, and since when. The database holds the fact; this adds the time.
    probation: Option<(i64, Instant)>,
    /// Live sessions whose turn waits until the probation is over.
    after_probation: BTreeSet<i64>,
    /// The search for leftover processes still runs: no session starts, because any session may have one.
    searching: bool,
    /// Sessions with leftover processes.
    leftovers: BTreeSet<i64>,
}

impl Roster {
    /// A session has waiting work: wakes its worker, or queues the request.
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

    /// A worker reports its state. `has_begun`: a turn was begun for it and it has not read that letter yet, so it is
    /// not idle. `None`: it must close, because it was just chosen to give way, or it has been released.
    pub fn set(&mut self, sid: i64, doing: Doing, has_begun: bool) -> Option<Vec<Effect>> {
        let entry = self.live.get_mut(&sid)?;
        if doing == Doing::Idle && has_begun {
            return Some(Vec::new());
        }
        if entry.reserved.is_some() && doing != Doing::Closing {
            // It counts as running until the reservation ends.
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

    /// Sets the tool that a turn is running.
    pub fn set_tool(&mut self, sid: i64, now_in: Option<String>) {
        if let Some(LiveSession { doing: Doing::Running { tool, .. }, .. }) = self.live.get_mut(&sid) {
            *tool = now_in;
        }
    }

    /// The session's agent works between turns, so other sessions make room first.
    pub fn hold_back(&mut self, sid: i64) {
        if let Some(entry) = self.live.get_mut(&sid) {
            entry.works_aside = true;
        }
    }

    /// Whether an idle worker may park: yes, unless its mailbox has unread work. If so, it is closing from now on.
    #[must_use]
    pub fn may_park(&mut self, sid: i64, has_work: bool) -> bool {
        let park = |entry: &mut LiveSession| {
            let may = entry.doing == Doing::Idle && !has_work && !entry.spared;
            if may {
                entry.doing = Doing::Closing;
            }
            may
        };
        self.change(sid, park).unwrap_or(false)
    }

    /// A worker has ended: frees its slot. Returns the request that came for the session while it closed. `None`: the
    /// session has no slot.
    pub fn remove(&mut self, sid: i64) -> Option<Option<WorkRequest>> {
        let entry = self.live.remove(&sid)?;
        if self.by_key.get(&entry.key) == Some(&sid) {
            self.by_key.remove(&entry.key);
        }
        self.after_probation.remove(&sid);
        self.count_out(&entry);
        Some(entry.again)
    }

    /// A session is no longer current: its worker ends, and its turn is cut off.
    #[must_use]
    pub fn retire(&mut self, sid: i64) -> Vec<Effect> {
        self.waiting.forget(sid);
        if self.live.contains_key(&sid) { vec![Effect::Retire(sid)] } else { Vec::new() }
    }

    /// A stop begins: admits no session from now on and closes every worker. Idle workers with nothing to close are
    /// released without being woken: waking ten thousand threads takes longer than the rest of a stop. Their threads
    /// sleep until the process ends; their activations are closed with all others. `keep`: sessions whose agents may outlive
    /// the daemon are left alone, and count no more.
    #[must_use]
    pub fn close_all(&mut self, has_letters: impl Fn(i64) -> bool, keep: bool) -> Vec<Effect> {
        self.closed = true;
        self.waiting.clear();
        if keep {
            self.live.values_mut().for_each(|entry| entry.spared = entry.kept);
        }
        let released =
            |(sid, e): &(&i64, &LiveSession)| !e.spared && e.light && e.doing == Doing::Idle && !has_letters(**sid);
        let released: Vec<i64> = self.live.iter().filter(released).map(|(sid, _)| *sid).collect();
        for sid in &released {
            if let Some(entry) = self.live.remove(sid) {
                self.count_out(&entry);
            }
        }
        let closed = self.live.iter().filter(|(_, e)| !e.spared).map(|(sid, _)| Effect::Stop(*sid));
        released.into_iter().map(Effect::Release).chain(closed).collect()
    }

    /// The agents of a stop are to be ended after all: closes the workers that it had left alone.
    #[must_use]
    pub fn spare_none(&mut self) -> Vec<Effect> {
        let spared: Vec<i64> = self.spared().collect();
        self.live.values_mut().for_each(|entry| entry.spared = false);
        spared.into_iter().map(Effect::Stop).collect()
    }

    /// The sessions that a stop leaves alone.
    pub fn spared(&self) -> impl Iterator<Item = i64> {
        self.live.iter().filter(|(_, e)| e.spared).map(|(sid, _)| *sid)
    }

    /// Whether a stop leaves this session alone.
    #[must_use]
    pub fn is_spared(&self, sid: i64) -> bool {
        self.live.get(&sid).is_some_and(|e| e.spared)
    }

    /// Whether the session's agent may outlive the daemon from now on.
    pub fn set_kept(&mut self, sid: i64, kept: bool) {
        if let Some(entry) = self.live.get_mut(&sid) {
            self.kept = self.kept + usize::from(kept) - usize::from(entry.kept);
            entry.kept = kept;
        }
    }

    /// Abandons the workers that have not ended, but for those that the stop leaves alone. Returns their sessions' rows
    /// and keys.
    pub fn abandon(&mut self) -> Vec<(i64, String)> {
        let given_up: Vec<i64> = self.live.iter().filter(|(_, e)| !e.spared).map(|(sid, _)| *sid).collect();
        let remove = |sid: i64| {
            let entry = self.live.remove(&sid)?;
            self.count_out(&entry);
            Some((sid, entry.key))
        };
        let abandoned = given_up.into_iter().filter_map(remove).collect();
        self.by_key.clear();
        abandoned
    }

    /// The running turns, oldest first.
    #[must_use]
    pub fn blocking(&self, now: Instant) -> Vec<Blocking> {
        let running = |(sid, e): (&i64, &LiveSession)| match &e.doing {
            Doing::Running { turn_id, since, tool } if !e.spared => Some(Blocking {
                sid: *sid,
                key: e.key.clone(),
                turn_id: turn_id.clone(),
                age: now.saturating_duration_since(*since),
                tool: tool.clone(),
            }),
            Doing::Running { .. } | Doing::Starting | Doing::Idle | Doing::Closing => None,
        };
        let mut blocking: Vec<_> = self.live.iter().filter_map(running).collect();
        blocking.sort_by(|a, b| b.age.cmp(&a.age).then_with(|| a.key.cmp(&b.key)));
        blocking
    }

    /// The sessions in which a turn begins or runs, but for those that a stop leaves alone.
    pub fn running(&self) -> impl Iterator<Item = i64> {
        self.live.iter().filter(|(_, e)| e.doing.kind() == Kind::Running && !e.spared).map(|(sid, _)| *sid)
    }

    /// The numbers of sessions. Those that a stop leaves alone are counted apart.
    #[must_use]
    pub fn numbers(&self) -> Numbers {
        let (mut spared, mut running_on) = (0, 0);
        if self.closed {
            let all = || self.live.values().filter(|e| e.spared);
            (spared, running_on) = (all().count(), all().filter(|e| e.doing.kind() == Kind::Running).count());
        }
        let (live, running) = (self.live.len() - spared, self.running - running_on);
        Numbers { live, running, waiting: self.waiting.len(), kept: self.kept }
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
