//! The composition root: takes the state's lock, opens the store and the sockets, starts the hooks, the daemon, the
//! service and the doors, and leaves in the opposite order. The one place that knows all of them; it decides nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use crate::agent::process;
use crate::api::{self, Api};
use crate::client::Client;
use crate::config::{self, Config};
use crate::daemon::{self, StartError, Wired, files, limits, lock, notify, signals, state_dir, watchdog};
use crate::exit;
use crate::hooks::{self, Hooks};
use crate::http::{Limits, Server};
use crate::model::event::StopReason;
use crate::service::{ScriptHost, Service};
use crate::store::Store;
use crate::thread;

mod socket;
mod successor;

use successor::{Kept, Left, Program};

/// What `serve` was asked.
#[derive(Clone, Debug)]
pub struct Options {
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

/// Why the daemon did not start: an exit code and a text.
struct NoStart(u8, String);

impl From<StartError> for NoStart {
    fn from(e: StartError) -> Self {
        let code = match e {
            StartError::Internal(_) => exit::INTERNAL,
            StartError::State(_) => exit::STATE,
        };
        Self(code, e.to_string())
    }
}

/// Runs the daemon; returns its exit code.
#[must_use]
pub fn serve(options: Options) -> u8 {
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

fn start(mut options: Options) -> Result<u8, NoStart> {
    let left = successor::left();
    let program = Program::note(&left).map_err(|e| NoStart(exit::INTERNAL, e.to_string()))?;
    crate::sys::bound_arenas();
    // Before anything is started that it could be passed on to.
    if let Err(e) = crate::sys::keep_inherited() {
        log::warn!("what was open at the start may be passed on to agents: {e}");
    }
    crate::proc::note_inherited(left.inherited.clone());
    let bad_config = |e: String| NoStart(exit::CONFIG, e);
    let unusable = |e: String| NoStart(exit::STATE, e);
    options.config.hooks.dir = config::paths::hooks_dir(&options.config);
    let (safe, by) = limits::threads();
    thread::set_limit(safe, daemon::OWN_THREADS + options.config.hooks.threads);
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
    if left.inherited.is_some() {
        // The last program left them blocked: what came meanwhile is heard now.
        crate::sys::unblock_signals();
    }
    // Until the process ends: what comes after the stop's last phase is a part of the stop too.
    let watched = watchdog::start().map_err(internal)?;
    if let Err(e) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        log::warn!("what agents leave behind cannot be adopted: {e}");
    }
    state_dir::make(&options.state_dir).map_err(unusable)?;
    // Agents and hooks are told of directories in it: those names must hold wherever they stand.
    options.state_dir = fs::canonicalize(&options.state_dir)
        .map_err(|e| NoStart(exit::STATE, format!("{}: {e}", options.state_dir.display())))?;
    let lock = take_lock(&options.state_dir, &options.socket, options.replace, options.config.shutdown.deadline)?;
    state_dir::probe(&options.state_dir).map_err(unusable)?;
    crate::failpoint::hit("boot", "locked");
    let store = Store::open(&options.state_dir.join("ostler.db")).map_err(|e| NoStart(exit::STATE, e.to_string()))?;
    crate::reserved::keep(&options.state_dir);
    let lock = files::watch(&options.state_dir, lock, store.clone()).map_err(internal)?;
    let opened = store.clone();
    let ended = run(options, token, store, scripts, signals, left).inspect_err(|_| {
        // A start that fails leaves the file as a stop does; after a stop it is closed already.
        let _ = opened.close(Instant::now() + Duration::from_secs(2));
    })?;
    drop(lock);
    crate::failpoint::hit("stop", "unlocked");
    if ended.goes_on.is_some() {
        log::info!("restarting in place: {}", program.path().display());
    }
    crate::log::flush(within(Duration::from_secs(2), ended.deadline));
    drop(watched);
    if let Some((sockets, own)) = ended.goes_on {
        let e = program.go_on(&sockets);
        log::error!("cannot restart in place, nothing starts the daemon again: {}: {e}", program.path().display());
        own.iter().for_each(socket::Own::remove);
        crate::log::flush(Instant::now() + Duration::from_secs(1));
    }
    Ok(ended.code)
}

/// How the daemon ended.
struct Ended {
    code: u8,
    deadline: Option<Instant>,
    /// The process goes on in another program: with these sockets, and the file of our own.
    goes_on: Option<(Kept, Option<socket::Own>)>,
}

fn run(
    options: Options,
    token: Option<api::Token>,
    store: Store,
    scripts: hooks::Scripts,
    signals: Receiver<signals::Signal>,
    left: Left,
) -> Result<Ended, NoStart> {
    let internal = |e: std::io::Error| NoStart(exit::INTERNAL, e.to_string());
    crate::failpoint::hit("boot", "opened");
    let boot_id = uuid::Uuid::new_v4().to_string();
    crate::log::set_boot(&boot_id);
    let state_id = crate::proc::mark::state_id(&options.state_dir)
        .map_err(|e| NoStart(exit::STATE, format!("{}: {e}", options.state_dir.display())))?;
    crate::proc::mark::declare(state_id, boot_id.clone());
    let host = ScriptHost::new(store.clone());
    let hooks = Hooks::start(scripts, host.clone(), &boot_id).map_err(internal)?;
    let Options { config, state_dir, no_resume, socket, .. } = options;
    let dir = state_dir.clone();
    let http = config.http.clone();
    let wired =
        Wired::new(daemon::Setup { config, store: store.clone(), hooks, boot_id, state_dir, no_resume, signals });
    let ctx = wired.context().clone();
    let service = Arc::new(Service::new(ctx.clone(), wired.delivery().clone()));
    // A timer that was missed while the daemon was down may run, and send, from here on.
    host.enter(&service);
    // Before the boot is noted: a daemon that cannot be reached, because another one sits on its socket, had no boot.
    // Without a service manager a restart goes on in this process, with these sockets.
    let opened = socket::listen(&socket, http.as_ref(), token.is_some(), left.sockets, !ctx.supervised)?;
    let mut kept = opened.kept;
    let daemon = wired.recover()?;

    let cookie = state_dir::make_cookie(&dir)
        .inspect_err(|e| log::warn!("{}: no cookie for programs of its user: {e}", dir.display()))
        .ok();
    let api = Arc::new(Api::new(service, token, cookie, &opened.listeners));
    let most = Limits::default().max_connections;
    // Clients leave the other half of the threads to sessions, which run what was accepted.
    let max_connections = most.min(thread::limit() / 2);
    let limits = Limits { stack: 512 * 1024, max_connections, ..Limits::default() };
    let server = Arc::new(Server::start(opened.listeners, limits, api.clone()).map_err(internal)?);
    api.enter(&server);
    let keeper = opened.own.map(|own| socket::Keeper::start(own, &server));
    let _fed = notify::watchdog(ctx.requests.clone(), store);
    crate::failpoint::hit("boot", "listening");

    let ending = daemon.run();

    crate::failpoint::hit("stop", "left");
    // Whoever asked for the state goes on with it: this daemon is not to be started again.
    let wanted = lock::is_wanted(&dir);
    let goes_on = ending.again && !ctx.supervised && !wanted;
    if !goes_on {
        kept.clear();
        keeper.iter().for_each(socket::Keeper::keep_nothing);
    }
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
    let own = match keeper {
        Some(keeper) if goes_on => {
            let (own, socket) = keeper.hand_over();
            kept.extend(socket);
            Some(own)
        }
        Some(keeper) => {
            keeper.end();
            None
        }
        None => None,
    };
    log::info!("stopped{}", if ending.clean { "" } else { ", uncleanly" });
    let code = match (ending.reason, ending.clean) {
        (StopReason::Restart, _) if !wanted => exit::RESTART,
        (StopReason::Shutdown | StopReason::Restart, true) => exit::OK,
        (StopReason::Shutdown | StopReason::Restart, false) => exit::FAILURE,
    };
    Ok(Ended { code, deadline: ending.deadline, goes_on: goes_on.then_some((kept, own)) })
}

/// So long from now, but not beyond a tenth of a second before the stop's deadline: then the watchdog leaves.
fn within(time: Duration, deadline: Option<Instant>) -> Instant {
    let until = Instant::now() + time;
    deadline.and_then(|at| at.checked_sub(Duration::from_millis(100))).map_or(until, |at| at.min(until))
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
