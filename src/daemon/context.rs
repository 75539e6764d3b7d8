//! The handles that all threads of the daemon share, and the configuration in force.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::handlers::Handlers;
use super::hub::Hub;
use super::registry::{Registry, WorkRequest};
use super::runtime::Runtime;
use super::shims::Shims;
use crate::agent::Agent;
use crate::agent::process::{Bounds, Keeper};
use crate::clock;
use crate::config::{self, Config};
use crate::hooks::Hooks;
use crate::model::event::{HookEvent, Outcome, StopReason, Urgency};
use crate::model::keep_policy::{Agents, StopRequest};
use crate::model::session::Policy;
use crate::store::{Acted, Limits, Store};

/// So many sessions attach to their shims at a time after a start.
pub const ATTACHING: usize = 32;

/// A place among those who attach to shims.
#[derive(Debug)]
pub struct AttachPlace<'c>(&'c Receiver<()>);

impl Drop for AttachPlace<'_> {
    fn drop(&mut self) {
        let _ = self.0.try_recv();
    }
}

/// A request to the coordinator.
#[derive(Debug)]
pub enum Request {
    /// Stop, or raise the urgency of a stop. The answer comes at once.
    Stop(StopRequest, Sender<Result<(), &'static str>>),
    /// Reload configuration and hooks.
    Reload(Sender<Result<Reloaded, String>>),
    /// Accept messages, start no turns.
    Hold(bool),
    /// Answer, to show that the coordinator lives.
    Ping(Sender<()>),
    /// Begin a round of retention now.
    Prune,
    /// Remove files of deleted sessions now.
    Tidy,
}

/// What a reload changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Keys that are in force now.
    pub changed: Vec<String>,
    /// Keys whose value differs from the value at the start and needs a restart.
    pub needs_restart: Vec<String>,
}

/// Counts of messages and turns since the boot, for the metrics. Refusals count too.
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

/// Makes the agent of a definition, without starting it.
pub type MakeAgent = Arc<dyn Fn(&Arc<Context>, &config::Agent) -> Box<dyn Agent> + Send + Sync>;

/// The handles that all threads of the daemon share.
pub struct Context {
    /// The store.
    pub store: Store,
    /// The live sessions.
    pub registry: Registry,
    /// The listeners.
    pub hub: Arc<Hub>,
    /// The clocks and the threads.
    pub runtime: Arc<dyn Runtime>,
    /// The operator's handlers, as the daemon's parts call them.
    pub handlers: Arc<dyn Handlers>,
    /// Makes agents.
    pub agents: MakeAgent,
    /// The operator's scripts: their list, and their swap.
    pub hooks: Hooks,
    /// Counts of messages and turns.
    pub tally: Tally,
    /// The id of this boot.
    pub boot_id: String,
    /// When it began, by the wall clock.
    pub started_at: clock::Millis,
    /// The state directory.
    pub state_dir: PathBuf,
    /// A service manager or another supervisor starts the daemon again.
    pub supervised: bool,
    /// Requests to the coordinator.
    pub requests: Sender<Request>,
    /// The state that the coordinator shows.
    pub board: RwLock<Board>,
    bounds: OnceLock<Bounds>,
    config: RwLock<Arc<Config>>,
    booted_with: Arc<Config>,
    /// The search for what earlier agents left goes on.
    pub sweeping: AtomicBool,
    shims: OnceLock<Option<Arc<dyn Shims>>>,
    /// So many workers attach to shims at a time.
    attaching: (Sender<()>, Receiver<()>),
    ready: OnceLock<Instant>,
    report: (Mutex<Option<serde_json::Value>>, Condvar),
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("boot_id", &self.boot_id).finish_non_exhaustive()
    }
}

/// The state that the coordinator shows; only the coordinator writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Board {
    /// The name of the phase.
    pub phase: &'static str,
    /// An operator holds the daemon: no turn starts.
    pub held: bool,
    /// The stop in progress: reason, urgency, deadline by the wall clock.
    pub stop: Option<(StopReason, Urgency, clock::Millis)>,
    /// What becomes of the agents in that stop.
    pub agents: Option<Agents>,
}

/// The parts of a [`Context`].
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
    /// A context of these parts.
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
            bounds: OnceLock::new(),
            config: RwLock::new(config.clone()),
            booted_with: config,
            sweeping: AtomicBool::new(false),
            shims: OnceLock::new(),
            attaching: crossbeam_channel::bounded(ATTACHING),
            ready: OnceLock::new(),
            report: (Mutex::new(None), Condvar::new()),
        }
    }

    /// The agents' shims; `None`: agents do not outlive the daemon.
    #[must_use]
    pub fn shims(&self) -> Option<Arc<dyn Shims>> {
        self.shims.get().cloned().flatten()
    }

    /// Sets the agents' shims, once, before the first agent is made.
    pub fn set_shims(&self, shims: Option<Arc<dyn Shims>>) {
        let _ = self.shims.set(shims);
    }

    /// What the shims have in common that are processes.
    #[must_use]
    pub fn keeper(&self) -> Option<Arc<Keeper>> {
        self.shims().and_then(|shims| shims.keeper())
    }

    /// Waits until fewer than [`ATTACHING`] others attach to shims; the place is held while the value lives.
    #[must_use]
    pub fn attaching(&self) -> AttachPlace<'_> {
        let _ = self.attaching.0.send(());
        AttachPlace(&self.attaching.1)
    }

    /// The monotonic clock, for every deadline.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.runtime.now()
    }

    /// The time left until an instant.
    #[must_use]
    pub fn left(&self, until: Instant) -> Duration {
        until.saturating_duration_since(self.now())
    }

    /// The wall clock, for what is stored and shown.
    #[must_use]
    pub fn wall(&self) -> clock::Millis {
        self.runtime.wall()
    }

    /// What there is on this machine to bound agents' processes with, looked for once.
    pub fn bounds(&self) -> &Bounds {
        self.bounds.get_or_init(|| Bounds::find(&self.state_dir))
    }

    /// The configuration in force.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The configuration of the start, which stays in force for keys that need a restart.
    #[must_use]
    pub fn booted_with(&self) -> &Config {
        &self.booted_with
    }

    /// Puts another configuration in force.
    pub fn set_config(&self, config: Config) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    /// The state that the coordinator shows.
    #[must_use]
    pub fn board(&self) -> Board {
        self.board.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the board.
    pub fn show(&self, write: impl FnOnce(&mut Board)) {
        write(&mut self.board.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// The daemon is ready: it accepts messages from now on.
    pub fn set_ready(&self) {
        let _ = self.ready.set(self.now());
    }

    /// When the daemon became ready.
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

    /// Tells the workers what a transaction changed for their sessions.
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
                Err(e) => log::error!("cannot wake a session: {e}"),
            }
        }
    }

    /// Requests a round of retention, to remove the text of deleted sessions. If the request is lost, the next round
    /// does it.
    pub fn prune_now(&self) {
        let _ = self.requests.try_send(Request::Prune);
    }

    /// Requests the removal of files, because a session that worked in a deleted session's directory may have ended. As
    /// above.
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
/// How long the turn of a session that is no longer current may take to end.
pub const RETIRE: Duration = Duration::from_secs(10);
