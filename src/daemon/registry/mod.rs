//! The registry: the [`Roster`] under a lock, with the handles of the live sessions' workers (mailboxes, threads) and
//! the open permissions. It performs the roster's decisions.
//!
//! It is the only place that knows whether a session is running. Its lock is held briefly and never across I/O; letters
//! are posted after its release.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::Sender;

use super::mailbox::{Close, Mailbox, Why};
use super::runtime::{Machine, Runtime};
use crate::agent::Interrupt;
use crate::config::{AgentKind, Config};
pub use crate::model::roster::{Blocking, Doing, Numbers, WorkRequest};
use crate::model::roster::{Effect, Roster, Route, Routes, Waiting};
use crate::store::Pending;

mod direct_begin;
mod not_yet;
mod permissions;
mod process;

pub use direct_begin::Reservation;
pub use permissions::{Answered, OpenPermission};
pub use process::ProcessInfo;

/// The handles of a live session.
#[derive(Default)]
struct Handle {
    mailbox: Arc<Mailbox>,
    join: Option<JoinHandle<()>>,
    permissions: Vec<OpenPermission>,
    process: Option<ProcessInfo>,
    /// Its agent's shim is being attached to: what is open in the database is not known here yet.
    attaching: bool,
    /// Permissions that were answered meanwhile.
    answered: Vec<String>,
}

#[derive(Default)]
struct Inner {
    roster: Roster,
    /// One for each entry of the roster.
    handles: HashMap<i64, Handle>,
    /// The configuration that routed the waiting sessions.
    routed_by: Option<Arc<Config>>,
}

impl Inner {
    fn mailbox(&self, sid: i64) -> Option<Arc<Mailbox>> {
        self.handles.get(&sid).map(|h| h.mailbox.clone())
    }

    fn mailboxes(&self, sids: impl IntoIterator<Item = i64>) -> Vec<Arc<Mailbox>> {
        sids.into_iter().filter_map(|sid| self.mailbox(sid)).collect()
    }

    fn has_begun(&self, sid: i64) -> bool {
        self.handles.get(&sid).is_some_and(|h| h.mailbox.has_begun())
    }
}

fn has_letters(handles: &HashMap<i64, Handle>) -> impl Fn(i64) -> bool {
    |sid| handles.get(&sid).is_some_and(|h| h.mailbox.has_letters())
}

/// The routes of a configuration.
struct Routing<'c>(&'c Config);

impl Routes for Routing<'_> {
    fn route(&self, key: &str) -> Route<'_> {
        let agent = self.0.route(key);
        Route { agent: &agent.name, most: agent.max_processes, light: is_light(agent.kind) }
    }
}

/// Whether an agent of this kind has nothing to close between two turns.
const fn is_light(kind: AgentKind) -> bool {
    match kind {
        AgentKind::Echo | AgentKind::Exec | AgentKind::Openai => true,
        AgentKind::Acp | AgentKind::Lua => false,
    }
}

/// A session that was given a slot: its worker may be started with this mailbox.
#[derive(Debug)]
pub struct Admitted {
    waiting: Waiting,
    /// The worker's mailbox.
    pub mailbox: Arc<Mailbox>,
}

impl Admitted {
    /// The request.
    #[must_use]
    pub const fn request(&self) -> &WorkRequest {
        &self.waiting.request
    }
}

/// The registry; shared by all threads that wake sessions.
pub struct Registry {
    inner: Mutex<Inner>,
    nudge: OnceLock<Sender<()>>,
    runtime: Arc<dyn Runtime>,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new(Arc::new(Machine))
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("numbers", &self.numbers()).finish()
    }
}

impl Registry {
    /// A registry without sessions, by this clock.
    #[must_use]
    pub fn new(runtime: Arc<dyn Runtime>) -> Self {
        Self { inner: Mutex::default(), nudge: OnceLock::new(), runtime }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the channel that is notified when the last turn has ended, a worker has gone, or a slot may be free.
    pub fn set_nudge(&self, nudge: Sender<()>) {
        let _ = self.nudge.set(nudge);
    }

    /// Performs the roster's decisions. `by`: the deadline of workers that are retired.
    fn perform(&self, mut inner: MutexGuard<'_, Inner>, effects: Vec<Effect>, by: Option<Instant>) {
        let mut letters: Vec<(Arc<Mailbox>, Effect)> = Vec::new();
        let mut nudges = false;
        for effect in effects {
            match effect {
                Effect::Wake { sid, .. } | Effect::Park(sid) | Effect::Stop(sid) | Effect::Retire(sid) => {
                    letters.extend(inner.mailbox(sid).map(|mailbox| (mailbox, effect)));
                }
                Effect::Release(sid) => drop(inner.handles.remove(&sid)),
                Effect::DropPermissions(sid) => {
                    if let Some(handle) = inner.handles.get_mut(&sid) {
                        handle.permissions.clear();
                    }
                }
                Effect::Nudge => nudges = true,
            }
        }
        drop(inner);
        for (mailbox, effect) in letters {
            match effect {
                Effect::Wake { auto_continue, .. } => mailbox.post(|l| {
                    l.work = true;
                    l.auto_continue |= auto_continue;
                }),
                Effect::Park(_) => mailbox.post(|l| l.close = l.close.max(Some(Close::Park))),
                Effect::Stop(_) => mailbox.post(|l| l.close = l.close.max(Some(Close::Stop))),
                Effect::Retire(_) => {
                    mailbox.interrupt(Interrupt::Cancel(by.unwrap_or_else(|| self.runtime.now())), Why::Retired);
                    mailbox.post(|l| l.close = Some(Close::Retire));
                }
                Effect::Release(_) | Effect::DropPermissions(_) | Effect::Nudge => {}
            }
        }
        if nudges && let Some(nudge) = self.nudge.get() {
            // A notice that already waits is enough.
            let _ = nudge.try_send(());
        }
    }

    /// A session has waiting work: wakes its worker, or queues a request for one.
    pub fn want(&self, request: WorkRequest) {
        let mut inner = self.lock();
        let effects = inner.roster.want(request);
        self.perform(inner, effects, None);
    }

    /// Gives free slots to the sessions that have waited longest, and asks idle sessions to make room for the others.
    /// Returns the sessions that got a slot; the caller starts their workers.
    pub fn admit(&self, config: &Arc<Config>) -> Vec<Admitted> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        if !inner.routed_by.as_ref().is_some_and(|c| Arc::ptr_eq(c, config)) {
            inner.routed_by = Some(config.clone());
            inner.roster.routes_changed();
        }
        let handles = &inner.handles;
        let has_work = |sid| handles.get(&sid).is_some_and(|h: &Handle| h.mailbox.has_work());
        let (waiting, effects) = inner.roster.admit(config.sessions.max_live, &Routing(config), &has_work);
        let admit = |waiting: Waiting| {
            let handle = Handle::default();
            let mailbox = handle.mailbox.clone();
            inner.handles.insert(waiting.request.sid, handle);
            Admitted { waiting, mailbox }
        };
        let admitted = waiting.into_iter().map(admit).collect();
        self.perform(guard, effects, None);
        admitted
    }

    /// A session goes on with the agent of another daemon, whatever the limits say: from here on it is live.
    pub fn adopt(&self, pending: &Pending) {
        let mut inner = self.lock();
        let request = WorkRequest { sid: pending.sid, key: pending.key.clone(), auto_continue: false };
        let runs_since = pending.running.then(|| self.runtime.now());
        inner.roster.adopt(&request, &pending.agent, pending.per_turn, runs_since);
        inner.handles.insert(pending.sid, Handle { attaching: true, ..Handle::default() });
    }

    /// A session goes on, and what its agent waits for is known here.
    pub fn attached(&self, sid: i64) {
        if let Some(handle) = self.lock().handles.get_mut(&sid) {
            handle.attaching = false;
        }
    }

    /// Whether a session's agent is being attached to.
    pub fn is_attaching(&self, sid: i64) -> bool {
        self.lock().handles.get(&sid).is_some_and(|h| h.attaching)
    }

    /// The mailbox of a live session.
    pub fn mailbox(&self, sid: i64) -> Option<Arc<Mailbox>> {
        self.lock().mailbox(sid)
    }

    /// The worker of an admitted session could not be started: frees its slot and returns it to its place in the queue.
    pub fn give_back(&self, admitted: Admitted) {
        let Admitted { waiting, mailbox } = admitted;
        let mut inner = self.lock();
        inner.handles.remove(&waiting.request.sid);
        // Letters that came meanwhile have no reader.
        let effects = inner.roster.give_back(waiting, mailbox.take().auto_continue);
        self.perform(inner, effects, None);
    }

    /// The worker's thread was started; without one its handle is `None`.
    pub fn started(&self, sid: i64, join: Option<JoinHandle<()>>) {
        if let Some(handle) = self.lock().handles.get_mut(&sid) {
            handle.join = join;
        }
    }

    /// A worker reports its state. `None`: it must close, because it was just chosen to give way.
    pub fn set(&self, sid: i64, doing: Doing) -> Option<()> {
        let mut inner = self.lock();
        let has_begun = doing == Doing::Idle && inner.has_begun(sid);
        let effects = inner.roster.set(sid, doing, has_begun)?;
        self.perform(inner, effects, None);
        Some(())
    }

    /// The tool that a turn is running.
    pub fn set_tool(&self, sid: i64, now_in: Option<String>) {
        self.lock().roster.set_tool(sid, now_in);
    }

    /// Whether an idle worker may park: yes, unless a letter came for it.
    pub fn may_park(&self, sid: i64) -> bool {
        let mut inner = self.lock();
        let has_work = inner.handles.get(&sid).is_some_and(|h| h.mailbox.has_work());
        inner.roster.may_park(sid, has_work)
    }

    /// A worker has ended: removes its entry. Returns its thread's handle, and the request that came while it closed.
    pub fn remove(&self, sid: i64) -> Option<(Option<JoinHandle<()>>, Option<WorkRequest>)> {
        let mut inner = self.lock();
        let again = inner.roster.remove(sid)?;
        let join = inner.handles.remove(&sid).and_then(|h| h.join);
        self.perform(inner, vec![Effect::Nudge], None);
        Some((join, again))
    }

    /// Posts a letter to a live session.
    pub fn post(&self, sid: i64, write: impl FnOnce(&Mailbox)) -> bool {
        let mailbox = self.lock().mailbox(sid);
        if let Some(mailbox) = &mailbox {
            write(mailbox);
        }
        mailbox.is_some()
    }

    /// A session is no longer current: its worker ends, and its turn is cut off at the deadline.
    pub fn retire(&self, sid: i64, by: Instant) {
        let mut inner = self.lock();
        let effects = inner.roster.retire(sid);
        self.perform(inner, effects, Some(by));
    }

    /// A stop begins: admits no session from now on, and closes or releases every worker. `keep`: but for those whose agents
    /// may outlive the daemon.
    pub fn close_all(&self, keep: bool) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let effects = inner.roster.close_all(has_letters(&inner.handles), keep);
        self.perform(guard, effects, None);
    }

    /// The agents of a stop are to be ended after all.
    pub fn spare_none(&self) {
        let mut inner = self.lock();
        let effects = inner.roster.spare_none();
        self.perform(inner, effects, None);
    }

    /// Lets go of the agents that outlive the daemon. Returns how many workers are to end.
    pub fn let_go(&self) -> usize {
        let inner = self.lock();
        let spared = inner.mailboxes(inner.roster.spared());
        drop(inner);
        for mailbox in &spared {
            mailbox.post(|l| l.let_go = true);
        }
        spared.len()
    }

    /// The sessions whose agents a stop leaves alone.
    pub fn spared(&self) -> Vec<i64> {
        self.lock().roster.spared().collect()
    }

    /// The keys of the same.
    pub fn spared_keys(&self) -> Vec<String> {
        let inner = self.lock();
        inner.roster.live().filter(|(sid, _)| inner.roster.is_spared(*sid)).map(|(_, key)| key.to_owned()).collect()
    }

    /// Whether the session's agent may outlive the daemon from now on.
    pub fn set_kept(&self, sid: i64, kept: bool) {
        self.lock().roster.set_kept(sid, kept);
    }

    /// Interrupts every running turn.
    pub fn interrupt_running(&self, interrupt: Interrupt) {
        let inner = self.lock();
        let running = inner.mailboxes(inner.roster.running());
        drop(inner);
        for mailbox in running {
            mailbox.interrupt(interrupt, Why::Stop);
        }
    }

    fn all(&self) -> Vec<Arc<Mailbox>> {
        self.lock().handles.values().map(|h| h.mailbox.clone()).collect()
    }

    /// Sets a deadline for every worker; with `kill`, agents are killed.
    pub fn hurry(&self, by: Instant, kill: bool) {
        let inner = self.lock();
        let closed = inner.mailboxes(inner.handles.keys().copied().filter(|sid| !inner.roster.is_spared(*sid)));
        drop(inner);
        for mailbox in closed {
            mailbox.post(|l| l.close_by = Some(by));
            if kill {
                mailbox.interrupt(Interrupt::Kill, Why::Stop);
            }
        }
    }

    /// Wakes every worker: turns start again.
    pub fn wake_all(&self) {
        for mailbox in self.all() {
            mailbox.post(|l| l.work = true);
        }
    }

    /// Abandons the workers that have not ended. Returns their sessions' rows and keys.
    pub fn abandon(&self) -> Vec<(i64, String)> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let roster = &inner.roster;
        inner.handles.retain(|sid, _| roster.is_spared(*sid));
        inner.roster.abandon()
    }

    /// The running turns, oldest first.
    pub fn blocking(&self) -> Vec<Blocking> {
        self.lock().roster.blocking(self.runtime.now())
    }

    /// The numbers of sessions.
    pub fn numbers(&self) -> Numbers {
        self.lock().roster.numbers()
    }

    /// Every live session, with its key.
    pub fn live(&self) -> BTreeMap<i64, String> {
        self.lock().roster.live().map(|(sid, key)| (sid, key.to_owned())).collect()
    }

    /// The session's agent works between turns, so other sessions make room first.
    pub fn hold_back(&self, sid: i64) {
        self.lock().roster.hold_back(sid);
    }
}

#[cfg(test)]
mod tests;
