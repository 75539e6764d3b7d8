//! The daemon: its threads, and the order in which they come and go.
//!
//! [`serve`] is the whole of it: configuration, state directory and lock, store, recovery, scripts, API, and then the
//! [`coordinator`]'s loop until the machine says leave.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::agent::process;
use crate::client::Client;
use crate::config::{self, Config};
use crate::exit;
use crate::hooks::{self, Event, Hooks, Verdict};
use crate::http::{Limits, Server};
use crate::model::event::{HookEvent, StopReason};
use crate::store::{Accept, Accepted, Admission, BootInfo, Error, Store};
use crate::{api, thread};

pub mod context;
pub mod coordinator;
pub mod delivery;
mod dirs;
pub mod doctor;
mod files;
pub mod handlers;
pub mod hook_events;
mod hook_host;
pub mod hub;
pub mod limits;
pub mod lock;
pub mod mailbox;
mod notify;
mod prune;
pub mod registry;
mod reload;
pub mod report;
pub mod restore;
pub mod runtime;
pub mod signals;
mod socket;
mod sweep;
pub mod turn_host;
mod watchdog;
pub mod worker;

use context::{Context, Parts};
use registry::WorkRequest;

/// What `serve` was asked.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The configuration.
    pub config: Config,
    /// The state directory.
    pub state_dir: PathBuf,
    /// The API's socket.
    pub socket: PathBuf,
    /// A live owner of the state is asked to leave.
    pub replace: bool,
    /// Interrupted turns do not go on: for the first boot of a restored copy.
    pub no_resume: bool,
}

/// The most threads of the daemon's own that live at once, beside those of the hooks: each of its rooms has one (15 with two
/// listeners), whatever it does aside one each (8), and as many as there may be hooks that hang (8).
const OWN_THREADS: usize = 31;

/// Why the daemon did not start: an exit code and a text.
struct NoStart(u8, String);

/// Runs the daemon; returns its exit code.
#[must_use]
pub fn serve(options: ServeOptions) -> u8 {
    match start(options) {
        Ok(code) => code,
        Err(NoStart(code, why)) => {
            // The log may be going to a journal, or nowhere yet: whoever started it by hand reads stderr.
            eprintln!("ostler: {why}");
            crate::log::flush(Instant::now() + Duration::from_secs(1));
            code
        }
    }
}

fn start(mut options: ServeOptions) -> Result<u8, NoStart> {
    crate::sys::bound_arenas();
    // Before anything is started that it could be passed on to.
    if let Err(e) = crate::sys::keep_inherited() {
        log::warn!("what was open at the start may be passed on to agents: {e}");
    }
    crate::proc::note_inherited();
    let bad_config = |e: String| NoStart(exit::CONFIG, e);
    options.config.hooks.dir = config::paths::hooks_dir(&options.config);
    let (safe, by) = limits::threads();
    thread::set_limit(safe, OWN_THREADS + options.config.hooks.threads);
    let descriptors = limits::raise_descriptors();
    log::info!("ostler {}; at most {safe} threads (by {by}), {descriptors} descriptors", env!("CARGO_PKG_VERSION"));
    if descriptors < limits::LEAST_DESCRIPTORS {
        let least = limits::LEAST_DESCRIPTORS;
        let why = format!("{descriptors} file descriptors are too few, at least {least}: raise the limit (ulimit -n)");
        return Err(NoStart(exit::STATE, why));
    }
    if let Some(why) = crate::clock::zone_problem() {
        log::warn!("{why}: times of day (every, daily_reset) are in UTC");
    }
    let scripts =
        hooks::load(&options.config.hooks, env!("CARGO_PKG_VERSION")).map_err(|e| bad_config(e.to_string()))?;
    let token = api::token(&options.config).map_err(bad_config)?;

    let internal = |e: std::io::Error| NoStart(exit::INTERNAL, e.to_string());
    let signals = signals::listen(|| {
        crate::proc::reap_strays();
    })
    .map_err(internal)?;
    // Until the process ends: what comes after the stop's last phase is a part of the stop too.
    let watched = watchdog::start().map_err(internal)?;
    if let Err(e) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        log::warn!("what agents leave behind cannot be adopted: {e}");
    }
    make_state_dir(&options.state_dir)?;
    // Agents and hooks are told of directories in it: those names must hold wherever they stand.
    options.state_dir = fs::canonicalize(&options.state_dir)
        .map_err(|e| NoStart(exit::STATE, format!("{}: {e}", options.state_dir.display())))?;
    let lock = take_lock(&options.state_dir, &options.socket, options.replace, options.config.shutdown.deadline)?;
    probe(&options.state_dir)?;
    crate::failpoint::hit("boot", "locked");
    let store = Store::open(&options.state_dir.join("ostler.db")).map_err(|e| NoStart(exit::STATE, e.to_string()))?;
    crate::reserved::keep(&options.state_dir);
    let lock = files::watch(&options.state_dir, lock, store.clone()).map_err(internal)?;
    let opened = store.clone();
    let (code, deadline) = run(options, token, store, scripts, signals).inspect_err(|_| {
        // A start that fails leaves the file as a stop does; after a stop it is closed already.
        let _ = opened.close(Instant::now() + Duration::from_secs(2));
    })?;
    drop(lock);
    crate::failpoint::hit("stop", "unlocked");
    crate::log::flush(within(Duration::from_secs(2), deadline));
    drop(watched);
    Ok(code)
}

fn run(
    options: ServeOptions,
    token: Option<api::Token>,
    store: Store,
    scripts: hooks::Scripts,
    signals: crossbeam_channel::Receiver<signals::Signal>,
) -> Result<(u8, Option<Instant>), NoStart> {
    let internal = |e: std::io::Error| NoStart(exit::INTERNAL, e.to_string());
    crate::failpoint::hit("boot", "opened");
    let boot_id = uuid::Uuid::new_v4().to_string();
    crate::log::set_boot(&boot_id);
    let state_id = crate::proc::mark::state_id(&options.state_dir)
        .map_err(|e| NoStart(exit::STATE, format!("{}: {e}", options.state_dir.display())))?;
    crate::proc::mark::declare(state_id, boot_id.clone());
    let host = hook_host::Host::new(store.clone());
    let hooks = Hooks::start(scripts, host.clone(), &boot_id).map_err(internal)?;
    let hub = Arc::new(hub::Hub::default());
    let (delivery, delivery_inbox) = delivery::Delivery::new();
    connect(&store, &hooks, &hub, &delivery);

    let http = options.config.http.clone();
    let threshold = i64::from(options.config.sessions.stuck_threshold);
    let (requests, request_inbox) = crossbeam_channel::bounded(256);
    let ctx = Arc::new(Context::new(Parts {
        store: store.clone(),
        hub,
        handlers: Arc::new(hooks.clone()),
        hooks,
        runtime: Arc::new(runtime::Machine),
        boot_id: boot_id.clone(),
        state_dir: options.state_dir.clone(),
        supervised: notify::is_supervised(),
        requests: requests.clone(),
        config: options.config,
    }));
    host.enter(&ctx);

    // Before the boot is noted: one that cannot be reached, because another one sits on its socket, was none.
    let opened = socket::listen(&options.socket, http.as_ref(), token.is_some())?;
    let recovered = store.open_boot(BootInfo { boot_id, pid: std::process::id(), threshold }).map_err(|e| {
        NoStart(
            exit::STATE,
            format!(
                "{}: recovery: {e}; if the file is damaged, `ostler restore` puts a backup at its place",
                store.path().display()
            ),
        )
    })?;
    if recovered.deaths > 0 {
        log::warn!(
            "the last boot died: {} activations closed, {} turns interrupted, {} sessions suspended",
            recovered.activations,
            recovered.interrupted,
            recovered.suspended
        );
    }
    if options.no_resume
        && let Err(e) = store.forget_cut_turns()
    {
        return Err(NoStart(exit::STATE, format!("--no-resume: {e}")));
    }
    crate::failpoint::hit("boot", "recovered");
    let (nudge, nudges) = crossbeam_channel::bounded(1);
    ctx.hub.set_nudge(nudge.clone());
    ctx.registry.set_nudge(nudge);
    let (doubt, doubts) = crossbeam_channel::bounded(1);
    ctx.store.set_doubt(Arc::new(move || {
        // One that waits already says the same.
        let _ = doubt.try_send(());
    }));
    sweep::start(&ctx);
    crate::failpoint::hit("boot", "swept");

    let courier = ctx.clone();
    let me = delivery.clone();
    thread::spawn_own("delivery", thread::IO_STACK, move || delivery::run(courier, me, &delivery_inbox))
        .map_err(internal)?;
    let service = Arc::new(api::Api::new(ctx.clone(), token, delivery.clone(), &opened.listeners));
    let most = Limits::default().max_connections;
    // Clients leave the other half of the threads to sessions, which run what was accepted.
    let max_connections = most.min(thread::limit() / 2);
    let limits = Limits { stack: 512 * 1024, max_connections, ..Limits::default() };
    let server = Arc::new(Server::start(opened.listeners, limits, service.clone()).map_err(internal)?);
    service.enter(&server);
    let keeper = opened.own.map(|own| socket::Keeper::start(own, &server));
    let _fed = notify::watchdog(requests, store);
    crate::failpoint::hit("boot", "listening");

    let inboxes = coordinator::Inboxes { signals, requests: request_inbox, nudges, doubts };
    let ending = coordinator::Coordinator::new(ctx.clone(), delivery, Box::new(coordinator::start_worker))
        .run(&inboxes, &recovered);

    crate::failpoint::hit("stop", "left");
    ctx.hub.close();
    let cut = server.drain(within(Duration::from_millis(500), ending.deadline));
    if cut > 0 {
        log::info!("{cut} connections were cut");
    }
    if crate::proc::any_made() {
        for left in process::end_orphans(within(Duration::from_secs(1), ending.deadline)) {
            log::error!("what an agent left behind could not be ended: {left}");
        }
    }
    if let Some(keeper) = keeper {
        keeper.end();
    }
    log::info!("stopped{}", if ending.clean { "" } else { ", uncleanly" });
    let code = match (ending.reason, ending.clean) {
        (StopReason::Restart, _) => exit::RESTART,
        (StopReason::Shutdown, true) => exit::OK,
        (StopReason::Shutdown, false) => exit::FAILURE,
    };
    Ok((code, ending.deadline))
}

/// So long from now, but not beyond a tenth of a second before the stop's deadline: then the watchdog leaves.
fn within(time: Duration, deadline: Option<Instant>) -> Instant {
    let until = Instant::now() + time;
    deadline.and_then(|at| at.checked_sub(Duration::from_millis(100))).map_or(until, |at| at.min(until))
}

/// Lets the store know the handlers, and everybody else its commits.
fn connect(store: &Store, hooks: &Hooks, hub: &Arc<hub::Hub>, delivery: &delivery::Delivery) {
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

fn make_state_dir(dir: &Path) -> Result<(), NoStart> {
    let no = |e: std::io::Error| NoStart(exit::STATE, format!("{}: {e}", dir.display()));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(no)
}

/// Whether files can be made and written in the state directory. Only its owner asks: two that race would remove each
/// other's probe.
fn probe(dir: &Path) -> Result<(), NoStart> {
    let no = |e: std::io::Error| NoStart(exit::STATE, format!("{}: {e}", dir.display()));
    let probe = dir.join(".probe");
    fs::write(&probe, b"ostler").and_then(|()| fs::remove_file(&probe)).map_err(no)?;
    keep_names(dir);
    Ok(())
}

/// What is committed below a directory that a power loss takes away is lost with it: the names of the state directory and
/// of what was made above it are on the disk before anything is accepted. An earlier boot may have made them and died, so
/// each directory counts in which we could have.
fn keep_names(dir: &Path) {
    for above in dir.ancestors().skip(1).filter(|a| rustix::fs::access(*a, rustix::fs::Access::WRITE_OK).is_ok()) {
        if let Err(e) = fs::File::open(above).and_then(|d| d.sync_all()) {
            log::warn!("{}: the names in it may not outlive a power loss: {e}", above.display());
        }
    }
}

fn take_lock(dir: &Path, socket: &Path, replace: bool, deadline: Duration) -> Result<lock::Lock, NoStart> {
    let is_stopping = |pid: i32| {
        let status = Client::unix(socket).status(Duration::from_secs(2));
        status.is_ok_and(|s| s["pid"] == pid && !s["stop"].is_null())
    };
    let taken = if replace {
        lock::Lock::replace(dir, deadline + Duration::from_secs(5), &is_stopping)
    } else {
        lock::Lock::take(dir)
    };
    taken.map_err(|e| match e {
        lock::Held::Owned { .. } => NoStart(exit::UNAVAILABLE, e.to_string()),
        lock::Held::Io { .. } => NoStart(exit::STATE, e.to_string()),
    })
}

/// Accepts a message, and wakes who is to answer it: the one way in, for every channel.
///
/// Where the session's worker rests with an agent that is ready, the turn begins in the same transaction: the worker is set
/// aside for that moment, and handed the turn. A `before_turn` handler is to be asked in between, so with one it is not so.
///
/// # Errors
/// A rule refuses it, or the store fails.
pub fn accept(ctx: &Arc<Context>, accept: Accept) -> Result<Accepted, Error> {
    let key = accept.key.clone();
    let plain = !ctx.hooked(HookEvent::BeforeTurn) && ctx.store.admission() == Admission::Open;
    let reserved = if plain { ctx.registry.reserve(&key) } else { None };
    let accepted = match reserved {
        None => ctx.store.accept_message(accept)?,
        Some(reserved) => {
            // Where the store cannot say what it kept, the worker looks: that is what an unused reservation makes it do.
            let (accepted, begun) = ctx.store.accept_and_begin(accept, (reserved.sid, reserved.epoch))?;
            if let Some(begun) = begun {
                crate::failpoint::hit("begin_turn", "committed");
                reserved.hand_over(Box::new(begun));
                return Ok(accepted);
            }
            accepted
        }
    };
    // While the daemon is held nobody is woken for nothing: a release looks in the database for what waits, after it has
    // opened the door, so a message that still met a closed one is found there.
    let wakes = !accepted.deferred && ctx.store.admission() != Admission::Held;
    if accepted.duplicate {
        // The first try may have been kept although its sender was told otherwise: then nobody was woken for it.
        if !accepted.over && wakes {
            ctx.registry.want(WorkRequest { sid: accepted.sid, key, auto_continue: false });
        }
        return Ok(accepted);
    }
    if let Some(retired) = accepted.retired {
        ctx.registry.retire(retired, ctx.now() + context::RETIRE);
    }
    if let Some(tid) = accepted.interrupt {
        ctx.cancel_turn(accepted.sid, tid);
    }
    if wakes {
        ctx.registry.want(WorkRequest { sid: accepted.sid, key, auto_continue: false });
    }
    Ok(accepted)
}

/// Asks synchronous handlers and waits for their verdict.
#[must_use]
pub fn ask(ctx: &Context, event: Event) -> Verdict {
    let (send, receive) = crossbeam_channel::bounded(1);
    // The hooks answer within their own timeouts, a lost thread included; this bound is for a fault in them.
    let patience = ctx.handlers.patience().saturating_add(Duration::from_secs(30));
    ctx.handlers.ask(
        event,
        Box::new(move |verdict| {
            let _ = send.try_send(verdict);
        }),
    );
    receive.recv_timeout(patience).unwrap_or_else(|_| Verdict::HookFailed("the hooks did not answer".into()))
}

/// The agent that is a Lua function.
fn lua_agent(ctx: &Arc<Context>, config: &config::Agent) -> crate::agent::lua::Lua {
    crate::agent::lua::Lua::new(config, &ctx.config().hooks, env!("CARGO_PKG_VERSION"))
}
