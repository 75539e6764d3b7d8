//! The daemon: the threads that keep sessions, and the order in which they come and go.
//!
//! [`Wired`] connects the parts over an open store and recovers from the last boot; [`Daemon::run`] is the
//! [`coordinator`]'s loop until the end of a stop. The daemon must not know the API and the channels, which stand above
//! [`crate::service`].

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use crate::agent::process::Keeper;
use crate::config::{self, Config};
use crate::hooks::{Event, Hooks, Verdict};
use crate::model::keep_policy::Keep;
use crate::store::{BootInfo, Recovered, Store};
use crate::thread;

pub mod context;
pub mod coordinator;
pub mod delivery;
mod dirs;
pub mod doctor;
pub mod end_agents;
pub mod files;
pub mod handlers;
pub mod hook_events;
pub mod hub;
mod job;
pub mod limits;
pub mod lock;
pub mod mailbox;
pub mod notify;
pub mod outbox;
mod prune;
pub mod registry;
mod reload;
pub mod report;
pub mod restore;
pub mod runtime;
pub mod shims;
pub mod signals;
pub mod state_dir;
mod sweep;
pub mod turn_host;
pub mod watchdog;
pub mod worker;

use context::Context;
use delivery::Delivery;
use hub::Hub;
use shims::{Processes, Shims};

/// The most threads of the daemon itself, without the hooks' threads: one for each of its parts (15 with two
/// listeners), one for each of the coordinator's slow operations (8), and one for each hook that may hang (8).
pub const OWN_THREADS: usize = 31;

/// The parts of a daemon.
pub struct Setup {
    /// The configuration of the start.
    pub config: Config,
    /// The open store. The caller holds the lock of its directory.
    pub store: Store,
    /// The operator's scripts.
    pub hooks: Hooks,
    /// This boot's id.
    pub boot_id: String,
    /// The state directory, absolute.
    pub state_dir: PathBuf,
    /// Interrupted turns do not go on, for the first boot of a restored copy.
    pub no_resume: bool,
    /// The signals since before everything else was started.
    pub signals: Receiver<signals::Signal>,
}

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A thread cannot be started, or another system call failed.
    #[error("{0}")]
    Internal(#[from] io::Error),
    /// The database cannot be recovered.
    #[error("{0}")]
    State(String),
}

/// A daemon that is recovered and runs no turn yet.
pub struct Daemon {
    ctx: Arc<Context>,
    delivery: Delivery,
    inboxes: coordinator::Inboxes,
    recovered: Recovered,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon").field("ctx", &self.ctx).finish_non_exhaustive()
    }
}

/// A daemon whose parts are connected. Messages can be sent, and are accepted once the boot is noted.
pub struct Wired {
    ctx: Arc<Context>,
    delivery: Delivery,
    delivery_inbox: Receiver<delivery::Message>,
    requests: Receiver<context::Request>,
    signals: Receiver<signals::Signal>,
    no_resume: bool,
}

impl std::fmt::Debug for Wired {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wired").field("ctx", &self.ctx).finish_non_exhaustive()
    }
}

impl Wired {
    /// Connects the parts.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let Setup { config, store, hooks, boot_id, state_dir, no_resume, signals } = setup;
        let hub = Arc::new(Hub::default());
        let (delivery, delivery_inbox) = Delivery::new();
        connect(&store, &hooks, &hub, &delivery);
        let (sender, requests) = crossbeam_channel::bounded(256);
        let ctx = Arc::new(Context::new(context::Parts {
            store,
            hub,
            handlers: Arc::new(hooks.clone()),
            hooks,
            runtime: Arc::new(runtime::Machine),
            agents: Arc::new(worker::make_agent),
            boot_id,
            state_dir,
            supervised: notify::is_supervised(),
            requests: sender,
            config,
        }));
        Self { ctx, delivery, delivery_inbox, requests, signals, no_resume }
    }

    /// The handles that its threads will share.
    #[must_use]
    pub const fn context(&self) -> &Arc<Context> {
        &self.ctx
    }

    /// The delivery of the journal.
    #[must_use]
    pub const fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    /// Notes the boot, recovers from the last one, and starts the search for leftover processes.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn recover(self) -> Result<Daemon, StartError> {
        let Self { ctx, delivery, delivery_inbox, requests, signals, no_resume } = self;
        let threshold = i64::from(ctx.config().sessions.stuck_threshold);
        let keep = ctx.config().agents.keep != Keep::Never;
        let machine = if keep && !no_resume { Keeper::machine().ok() } else { None };
        let boot = BootInfo { boot_id: ctx.boot_id.clone(), pid: std::process::id(), threshold, machine };
        let recovered = recover(&ctx.store, boot, no_resume)?;
        ctx.set_shims(shims(&ctx, keep));
        log::info!("agents' processes: {}", ctx.bounds().groups().state());
        crate::failpoint::hit("boot", "recovered");
        let (nudge, nudges) = crossbeam_channel::bounded(1);
        ctx.hub.set_nudge(nudge.clone());
        ctx.registry.set_nudge(nudge);
        let (doubt, doubts) = crossbeam_channel::bounded(1);
        let hub = ctx.hub.clone();
        ctx.store.set_doubt(Arc::new(move || {
            hub.doubt();
            // A notice that already waits is enough.
            let _ = doubt.try_send(());
        }));
        if let (Some(keeper), Ok(shims)) = (ctx.keeper(), ctx.store.shims()) {
            keeper.tidy(&shims.into_iter().map(|(_, shim)| shim.name).collect::<Vec<_>>());
        }
        sweep::start(&ctx, spared(&ctx.store, &recovered, no_resume));
        crate::failpoint::hit("boot", "swept");
        let (courier, me) = (ctx.clone(), delivery.clone());
        thread::spawn_own("delivery", thread::IO_STACK, move || delivery::run(courier, me, &delivery_inbox))?;
        let inboxes = coordinator::Inboxes { signals, requests, nudges, doubts };
        Ok(Daemon { ctx, delivery, inboxes, recovered })
    }
}

impl Daemon {
    /// Says READY and runs until a stop is over.
    pub fn run(self) -> coordinator::Ending {
        let start_worker = Box::new(coordinator::start_worker);
        coordinator::Coordinator::new(self.ctx, self.delivery, start_worker).run(&self.inboxes, &self.recovered)
    }
}

/// The agents' shims. Without them agents are the daemon's own children, and end with it.
fn shims(ctx: &Context, keep: bool) -> Option<Arc<dyn Shims>> {
    if !keep {
        return None;
    }
    let config = ctx.config();
    let opened = Keeper::open(&ctx.state_dir, ctx.store.boot(), config.agents.spool, config.agents.orphan_after);
    let keeper = opened.inspect_err(|e| log::error!("agents do not outlive the daemon: {e}")).ok()?;
    Some(Arc::new(Processes(Arc::new(keeper))))
}

/// The shims that no search for leftovers may end: those whose agents may go on. Without a resume nothing that a row names is
/// ended; their agents end by themselves.
fn spared(store: &Store, recovered: &Recovered, no_resume: bool) -> Vec<(u32, u64)> {
    let shims = store.shims().unwrap_or_else(|e| {
        log::error!("the shims of agents cannot be read: {e}");
        Vec::new()
    });
    let goes_on = |sid: i64| no_resume || recovered.pending.iter().any(|p| p.sid == sid);
    shims.into_iter().filter(|(sid, _)| goes_on(*sid)).map(|(_, shim)| (shim.pid, shim.pid_start)).collect()
}

/// Notes the boot and recovers from the last one.
fn recover(store: &Store, boot: BootInfo, no_resume: bool) -> Result<Recovered, StartError> {
    let recovered = store.open_boot(boot).map_err(|e| {
        let file = store.path().display();
        let hint = "if the file is damaged, `ostler restore` puts a backup at its place";
        StartError::State(format!("{file}: recovery: {e}; {hint}"))
    })?;
    if recovered.deaths > 0 {
        log::warn!(
            "the last boot died: {} activations closed, {} turns interrupted, {} sessions suspended",
            recovered.activations,
            recovered.interrupted,
            recovered.suspended
        );
    }
    if no_resume {
        store.forget_cut_turns().map_err(|e| StartError::State(format!("--no-resume: {e}")))?;
    }
    Ok(recovered)
}

/// Connects the store with the handlers that events are owed to, and the hub and the delivery with its commits.
fn connect(store: &Store, hooks: &Hooks, hub: &Arc<Hub>, delivery: &Delivery) {
    let hooks = hooks.clone();
    store.set_owed(Arc::new(move |event| hooks.handlers(event)));
    let (hub, delivery) = (hub.clone(), delivery.clone());
    store.set_observer(Arc::new(move |commit| {
        hub.publish(commit);
        if commit.deliveries > 0 {
            delivery.poke();
        }
    }));
}

/// Asks synchronous handlers and waits for their verdict.
#[must_use]
pub fn ask(ctx: &Context, event: Event) -> Verdict {
    let (send, receive) = crossbeam_channel::bounded(1);
    // The hooks answer within their own timeouts, even if a thread is lost; this bound guards against an error in the
    // hooks.
    let patience = ctx.handlers.patience().saturating_add(Duration::from_secs(30));
    ctx.handlers.ask(
        event,
        Box::new(move |verdict| {
            let _ = send.try_send(verdict);
        }),
    );
    receive.recv_timeout(patience).unwrap_or_else(|_| Verdict::HookFailed("the hooks did not answer".into()))
}

/// An agent that is a Lua function.
fn lua_agent(ctx: &Arc<Context>, config: &config::Agent) -> crate::agent::lua::Lua {
    crate::agent::lua::Lua::new(config, &ctx.config().hooks, env!("CARGO_PKG_VERSION"))
}
