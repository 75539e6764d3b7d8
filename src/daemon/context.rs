//! What every thread of the daemon shares: handles, and the configuration in force.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::handlers::Handlers;
use super::hub::Hub;
use super::registry::{Registry, WorkRequest};
use super::runtime::Runtime;
use crate::agent::Agent;
use crate::clock;
use crate::config::{self, Config};
use crate::hooks::Hooks;
use crate::model::event::{HookEvent, Outcome, StopReason, Urgency};
use crate::model::session::Policy;
use crate::store::{Acted, Limits, Store};

/// What the coordinator is told by others.
#[derive(Debug)]
pub enum Request {
    /// Stop, or stop harder. The answer is given at once.
    Stop(StopReason, Urgency, Sender<Result<(), &'static str>>),
    /// Swap configuration and hooks.
    Reload(Sender<Result<Reloaded, String>>),
    /// Accept messages, start no turns.
    Hold(bool),
    /// Are you there?
    Ping(Sender<()>),
    /// Something may be pruned that should not wait.
    Prune,
    /// Files of deleted sessions may be removed by now.
    Tidy,
}

/// What a reload changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Keys that are in force now.
    pub changed: Vec<String>,
    /// Keys whose value in the file is not the one that the boot began with, and needs a restart.
    pub needs_restart: Vec<String>,
}

/// What has come of messages and turns since the boot, for the metrics: what is refused is counted too.
#[derive(Debug, Default)]
pub struct Tally {
    /// Messages accepted.
    pub accepted: AtomicU64,
    /// Messages that had been accepted before.
    pub duplicates: AtomicU64,
    refused: Mutex<BTreeMap<&'static str, u64>>,
    turns: Mutex<BTreeMap<&'static str, u64>>,
}

impl Tally {
    /// A message was refused, with this code.
    pub fn refuse(&self, code: &'static str) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(code).or_default() += 1;
    }

    /// A worker ended a turn.
    pub fn turn(&self, outcome: Outcome) {
        *self.turns.lock().unwrap_or_else(PoisonError::into_inner).entry(outcome.as_str()).or_default() += 1;
    }

    /// Messages refused, by code.
    #[must_use]
    pub fn refused(&self) -> BTreeMap<&'static str, u64> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Turns that workers ended, by outcome.
    #[must_use]
    pub fn turns(&self) -> BTreeMap<&'static str, u64> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Makes the agent of a definition, not started yet.
pub type MakeAgent = Arc<dyn Fn(&Arc<Context>, &config::Agent) -> Box<dyn Agent> + Send + Sync>;

/// What every thread of the daemon shares.
pub struct Context {
    /// Truth.
    pub store: Store,
    /// Who is live.
    pub registry: Registry,
    /// Who listens.
    pub hub: Arc<Hub>,
    /// The clocks and the threads.
    pub runtime: Arc<dyn Runtime>,
    /// The operator's handlers, as the daemon's parts call them.
    pub handlers: Arc<dyn Handlers>,
    /// Makes agents.
    pub agents: MakeAgent,
    /// The operator's scripts: who they are, and their swap.
    pub hooks: Hooks,
    /// What has come of messages and turns.
    pub tally: Tally,
    /// This boot.
    pub boot_id: String,
    /// When it began, by the wall clock.
    pub started_at: clock::Millis,
    /// Where the state is.
    pub state_dir: PathBuf,
    /// Runs under a service manager or another supervisor that starts it again.
    pub supervised: bool,
    /// To the coordinator.
    pub requests: Sender<Request>,
    /// What the coordinator shows of itself.
    pub board: RwLock<Board>,
    config: RwLock<Arc<Config>>,
    booted_with: Arc<Config>,
    ready: OnceLock<Instant>,
    report: (Mutex<Option<serde_json::Value>>, Condvar),
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("boot_id", &self.boot_id).finish_non_exhaustive()
    }
}

/// What the coordinator shows of itself: written by it alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Board {
    /// The phase's word.
    pub phase: &'static str,
    /// Turns do not start, by an operator's order.
    pub held: bool,
    /// The stop in progress: reason, urgency, deadline by the wall clock.
    pub stop: Option<(StopReason, Urgency, clock::Millis)>,
}

/// What a [`Context`] is made of.
pub struct Parts {
    /// See [`Context`].
    pub store: Store,
    /// See [`Context`].
    pub hub: Arc<Hub>,
    /// See [`Context`].
    pub hooks: Hooks,
    /// See [`Context`].
    pub runtime: Arc<dyn Runtime>,
    /// See [`Context`].
    pub handlers: Arc<dyn Handlers>,
    /// See [`Context`].
    pub agents: MakeAgent,
    /// See [`Context`].
    pub boot_id: String,
    /// See [`Context`].
    pub state_dir: PathBuf,
    /// See [`Context`].
    pub supervised: bool,
    /// See [`Context`].
    pub requests: Sender<Request>,
    /// See [`Context::config`].
    pub config: Config,
}

impl Context {
    /// Puts it together.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let config = Arc::new(parts.config);
        Self {
            store: parts.store,
            registry: Registry::new(parts.runtime.clone()),
            hub: parts.hub,
            started_at: parts.runtime.wall(),
            runtime: parts.runtime,
            handlers: parts.handlers,
            agents: parts.agents,
            hooks: parts.hooks,
            tally: Tally::default(),
            boot_id: parts.boot_id,
            state_dir: parts.state_dir,
            supervised: parts.supervised,
            requests: parts.requests,
            board: RwLock::new(Board { phase: "starting", ..Board::default() }),
            config: RwLock::new(config.clone()),
            booted_with: config,
            ready: OnceLock::new(),
            report: (Mutex::new(None), Condvar::new()),
        }
    }

    /// The monotonic clock, for every deadline.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.runtime.now()
    }

    /// How much is left until an instant.
    #[must_use]
    pub fn left(&self, until: Instant) -> Duration {
        until.saturating_duration_since(self.now())
    }

    /// The wall clock, for what is stored and shown.
    #[must_use]
    pub fn wall(&self) -> clock::Millis {
        self.runtime.wall()
    }

    /// The configuration in force.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The configuration that this boot began with: in force for what only a restart changes.
    #[must_use]
    pub fn booted_with(&self) -> &Config {
        &self.booted_with
    }

    /// Puts another configuration in force.
    pub fn set_config(&self, config: Config) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    /// What the coordinator shows of itself.
    #[must_use]
    pub fn board(&self) -> Board {
        self.board.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the board.
    pub fn show(&self, write: impl FnOnce(&mut Board)) {
        write(&mut self.board.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Messages are accepted from now on.
    pub fn set_ready(&self) {
        let _ = self.ready.set(self.now());
    }

    /// When messages began to be accepted.
    #[must_use]
    pub fn ready_since(&self) -> Option<Instant> {
        self.ready.get().copied()
    }

    /// The stop's report is complete.
    pub fn set_report(&self, report: serde_json::Value) {
        *self.report.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
        self.report.1.notify_all();
    }

    /// Waits for the stop's report.
    #[must_use]
    pub fn wait_report(&self, patience: Duration) -> Option<serde_json::Value> {
        let guard = self.report.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.report.1.wait_timeout_while(guard, patience, |r| r.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// The policies that decide which session answers, as of now.
    #[must_use]
    pub fn policy(&self) -> Policy {
        let s = &self.config().sessions;
        Policy {
            resume_window: s.resume_window,
            idle_reset: s.idle_reset,
            daily_boundary: s.daily_reset.map(|(hour, minute)| clock::last_daily(self.store.now(), hour, minute)),
        }
    }

    /// The limits that a message meets, as of now.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let s = &self.config().sessions;
        Limits { policy: self.policy(), busy: s.busy, queue_limit: s.queue_limit, queue_total: s.queue_total }
    }

    /// The agent that answers a key.
    #[must_use]
    pub fn agent_of(&self, key: &str) -> String {
        self.config().route(key).name.clone()
    }

    /// Lets the workers catch up with what a transaction did.
    pub fn catch_up(&self, acted: &Acted) {
        let by = self.now() + RETIRE;
        for sid in &acted.retired {
            self.registry.retire(*sid, by);
        }
        for (sid, tid) in &acted.cancel {
            self.cancel_turn(*sid, *tid);
        }
        for sid in &acted.wake {
            match self.store.key_of_row(*sid) {
                Ok(key) => self.registry.want(WorkRequest { sid: *sid, key, auto_continue: acted.auto_continue }),
                Err(e) => log::error!("a session cannot be woken: {e}"),
            }
        }
    }

    /// Has the text of deleted sessions removed soon. One that is not heard is made up for by the next round.
    pub fn prune_now(&self) {
        let _ = self.requests.try_send(Request::Prune);
    }

    /// Whoever was at work in the directory of a deleted session may have ended. As above.
    pub fn tidy_now(&self) {
        let _ = self.requests.try_send(Request::Tidy);
    }

    /// Cancels a turn of a live session, if that one still runs.
    pub fn cancel_turn(&self, sid: i64, tid: i64) {
        let by = self.now() + CANCEL;
        self.registry.post(sid, |m| m.post(|l| l.cancel = Some((tid, by))));
    }

    /// Whether a hook is registered for this event.
    #[must_use]
    pub fn hooked(&self, event: HookEvent) -> bool {
        self.handlers.has(event)
    }
}

/// How long a cancelled turn may take to end: cancel by protocol, then signals.
pub const CANCEL: Duration = Duration::from_secs(10);
/// How long the turn of a session that gave way may take to end.
pub const RETIRE: Duration = Duration::from_secs(10);
