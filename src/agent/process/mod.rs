//! An agent's process: its clean environment, its markers, and the ladder that ends it and all it started.
//!
//! Owns how an agent's process is started and how it ends; the pipes and the group are [`PipedChild`]'s. It must not
//! know a protocol, a turn or the store. Nothing here blocks but in [`Host::wait`].
//!
//! The leader of the group is not reaped before the ladder is done, so its pid (which is the group's id too) cannot be
//! given to a stranger while we still signal it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{Failure, Host, Identity, NewShim, Wake, Watch};
use crate::proc::mark::{self, Tag};
use crate::proc::moment::Moment;
use crate::proc::{NoChild, PipedChild, Registered, procfs, set_apart, spawn};
use crate::shim::client::{Client, Refusal};
use crate::shim::frame::{Attached, Confined, Ladder, Standing, Status};
use crate::shim::launch::{Seed, SocketName};
use crate::shim::machine::Patience;
use crate::shim::proof::Token;
use crate::shim::start::Start;

mod bounds;
pub mod confine;
mod keeper;
mod kept;
mod ladder;
mod leftovers;
mod tail;

use kept::KeptChild;

pub use bounds::{Bound, Bounds, TEMPORARY};
pub use keeper::{Keeper, SOCKETS};
pub use ladder::Rung;
pub use leftovers::{
    Claim, Leftover, end_leftovers, end_orphans, find_dead, find_marked, is_alive, kill_leftovers, kill_own,
};
pub use tail::Tail;

/// The most bytes that may wait to be written: a prompt with its history, and many answers.
const OUTGOING_LIMIT: usize = 64 * 1024 * 1024;
/// A shim that was started listens within this time, and its agent has begun within the same.
const START: Duration = Duration::from_secs(10);
/// A shim that lives answers within this time.
pub const ATTACH: Duration = Duration::from_secs(5);
/// The kernel ends an agent before the daemon and its shim when memory is short.
const OOM_ADJ: u16 = 200;

/// An agent that takes no bytes for so long, while some wait, does not read its input.
const WRITE_STALL: Duration = Duration::from_secs(60);

/// How to start a process.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Program and arguments; the program is looked up in the process's `PATH`.
    pub command: &'a [String],
    /// Set for it.
    pub env: &'a BTreeMap<String, String>,
    /// Passed on from the daemon's own environment.
    pub env_pass: &'a [String],
    /// Set for this one process.
    pub extra: &'a [(&'a str, &'a str)],
}

/// A shim that is to be attached to.
#[derive(Clone, Debug)]
pub struct KnownShim {
    /// The name of its socket.
    pub name: String,
    /// The secret that it shares with the daemon.
    pub token: [u8; 32],
    /// The boot of the daemon that marks its processes.
    pub boot_id: String,
}

/// Whose child it is.
#[derive(Debug)]
enum Parent {
    /// The daemon's, by pipes.
    Piped(PipedChild),
    /// A shim's.
    Kept(Box<KeptChild>),
}

/// A running child. Dropped before [`Process::end`], its group is killed and it is left to be reaped.
#[derive(Debug)]
pub struct Process {
    body: Parent,
    start: u64,
    name: String,
    session_id: String,
    boot_id: String,
    tag: Option<Tag>,
    /// A moment before it was made; all that it starts began after it.
    moment: Option<Moment>,
    overflowed: bool,
    ended: bool,
    tail: Tail,
    /// What it said before its start was over.
    early: Vec<u8>,
}

impl Process {
    /// Starts it in the session's working directory, in a session of the kernel's and a group of its own; below a shim,
    /// if the host has a [`Keeper`]. Then what is sent goes at once, until [`Process::set_direct`] says otherwise.
    ///
    /// # Errors
    /// `agent_start`: says which program, and why (not found, not executable, the working directory, the shim).
    pub fn spawn(launch: &Launch<'_>, host: &mut dyn Host) -> Result<Self, Failure> {
        let identity = host.identity().clone();
        let (program, args) =
            launch.command.split_first().ok_or_else(|| Failure::new("agent_start", "command: it is empty"))?;
        make_cwd(&identity.cwd)?;
        let mut env = environment(launch, &identity);
        if let Some(keeper) = host.keeper() {
            return Self::spawn_kept(&keeper, host, &identity, (launch, program, env));
        }
        host.bound(None, &mut env).map_err(|why| Failure::new("agent_start", why))?;
        let mut command = Command::new(program);
        command.args(args).current_dir(&identity.cwd).env_clear().envs(&env);
        let moment = Moment::now();
        let child = PipedChild::spawn(&mut command, identity.sid).map_err(|none| {
            let why = match none {
                NoChild::NotStarted(e) => why_not(program, &env, &e),
                NoChild::NotWatched(e) => format!("{program}: it was started, but cannot be watched: {e}"),
            };
            Failure::new("agent_start", why)
        })?;
        let start = procfs::stat(child.id()).map_or(0, |s| s.start);
        let process = Self::of(Parent::Piped(child), start, program, &identity, moment);
        host.process_started(process.id(), process.start);
        host.process_runs(&process);
        Ok(process)
    }

    /// Starts a shim, notes it, and only then has it start the agent.
    fn spawn_kept(
        keeper: &Arc<Keeper>,
        host: &mut dyn Host,
        identity: &Identity,
        (launch, program, mut env): (&Launch<'_>, &str, BTreeMap<String, OsString>),
    ) -> Result<Self, Failure> {
        let failed = |why: String| Failure::new("agent_start", why);
        let moment = Moment::now();
        let (name, child, client, attached, token) =
            start_shim(keeper, identity).map_err(|why| failed(format!("its shim: {why}")))?;
        let shim = client.shim();
        let mut kept = KeptChild::new(keeper.clone(), name.clone(), client, Some(child), &attached);
        crate::failpoint::hit_for("shim", "listens", &identity.key);
        let row =
            NewShim { name, token: *token.bytes(), machine: keeper.own_machine(), pid: shim.pid, start: shim.start };
        if let Err(why) = host.shim_started(row) {
            // Without a START it would leave by itself, later.
            kept.kill_shim();
            kept.dismiss(Instant::now() + ladder::LAST_BREATH);
            return Err(failed(format!("its shim cannot be noted: {why}")));
        }
        crate::failpoint::hit_for("shim", "noted", &identity.key);
        let bound = match host.bound(Some((kept.name(), shim.pid)), &mut env) {
            Ok(bound) => bound.unwrap_or_default(),
            Err(why) => {
                kept.kill_shim();
                kept.dismiss(Instant::now() + ladder::LAST_BREATH);
                host.shim_ended(kept.name());
                return Err(failed(why));
            }
        };
        kept.set_direct(true);
        kept.start(&Start {
            argv: launch.command.iter().map(Into::into).collect(),
            env: env.iter().map(|(k, v)| (k.into(), v.clone())).collect(),
            cwd: identity.cwd.clone(),
            limits: Vec::new(),
            oom_adj: OOM_ADJ,
            cgroup: bound.cgroup,
            confine: bound.rules,
            spool: Some(keeper.path().to_owned()),
            spool_limit: keeper.spool(),
            ladder: Ladder::default(),
            orphan: u64::try_from(keeper.orphan().as_millis()).unwrap_or(u64::MAX),
        });
        let mut process = Self::of(Parent::Kept(Box::new(kept)), 0, program, identity, moment);
        if let Err(failure) = process.await_start(program, &env) {
            process.give_up_shim(host);
            return Err(failure);
        }
        crate::failpoint::hit_for("shim", "started", &identity.key);
        host.process_runs(&process);
        Ok(process)
    }

    /// A shim that has not started its agent, and is not to any more, is ended.
    fn give_up_shim(&mut self, host: &mut dyn Host) {
        if let Parent::Kept(kept) = &mut self.body {
            kept.kill_shim();
            kept.dismiss(Instant::now() + ladder::LAST_BREATH);
            host.shim_ended(kept.name());
            self.ended = true;
        }
    }

    fn await_start(&mut self, program: &str, env: &BTreeMap<String, OsString>) -> Result<(), Failure> {
        let until = Instant::now() + START;
        let failed = |why: String| Failure::new("agent_start", why);
        let Parent::Kept(kept) = &mut self.body else { return Ok(()) };
        let mut read = Vec::new();
        while kept.agent().pid == 0 {
            if let Some((number, text)) = kept.take_in(&mut read, &mut self.tail) {
                let error =
                    i32::try_from(number).map_or_else(|_| io::ErrorKind::Other.into(), io::Error::from_raw_os_error);
                let why = if text.starts_with("program: ") { why_not(program, env, &error) } else { text };
                return Err(failed(why));
            }
            let left = until.saturating_duration_since(Instant::now());
            if kept.is_over() || left.is_zero() {
                return Err(failed(format!("{program}: its shim does not start it")));
            }
            if kept.agent().pid == 0 {
                kept.wait(left);
            }
        }
        self.start = kept.agent().start;
        self.early = read;
        Ok(())
    }

    /// Attaches to the shim of an agent that has outlived a daemon. `from`: up to there its output is kept. Also returns
    /// whether it was ever told to start its agent.
    ///
    /// # Errors
    /// There is no such shim, or it refuses.
    pub fn attach(
        keeper: &Arc<Keeper>,
        shim: &KnownShim,
        (identity, program): (&Identity, &str),
        from: u64,
    ) -> Result<(Self, bool), Refusal> {
        let gone = |why: &str| Refusal::Gone(io::Error::new(ErrorKind::InvalidData, why.to_owned()));
        let name = SocketName::parse(&shim.name).ok_or_else(|| gone("its socket has no name"))?;
        let daemon = keeper.daemon(&Token::from_bytes(shim.token), from);
        let (client, attached) = Client::attach(keeper.dir(), &name, daemon, Instant::now() + ATTACH)?;
        let start = attached.agent.map_or(0, |a| a.start);
        let kept = KeptChild::new(keeper.clone(), shim.name.clone(), client, None, &attached);
        let mut process = Self::of(Parent::Kept(Box::new(kept)), start, program, identity, None);
        process.boot_id.clone_from(&shim.boot_id);
        Ok((process, attached.standing != Standing::Waiting))
    }

    fn of(body: Parent, start: u64, program: &str, identity: &Identity, moment: Option<Moment>) -> Self {
        Self {
            body,
            start,
            name: program.to_owned(),
            session_id: identity.session_id.clone(),
            boot_id: identity.boot_id.clone(),
            tag: mark::own_tag(identity.sid),
            moment,
            overflowed: false,
            ended: false,
            tail: Tail::default(),
            early: Vec::new(),
        }
    }

    /// The name of its shim; `None`: it has none.
    #[must_use]
    pub fn shim(&self) -> Option<&str> {
        match &self.body {
            Parent::Piped(_) => None,
            Parent::Kept(kept) => Some(kept.name()),
        }
    }

    /// Its start time in clock ticks since the machine's boot.
    #[must_use]
    pub const fn start_time(&self) -> u64 {
        self.start
    }

    /// Below a shim: how it is confined.
    #[must_use]
    pub fn confined(&self) -> Option<Confined> {
        match &self.body {
            Parent::Piped(_) => None,
            Parent::Kept(kept) => Some(kept.confined()),
        }
    }

    /// Below a shim: whether what is sent goes at once. Otherwise it waits in [`Process::take_loose`] until it is decided.
    pub fn set_direct(&mut self, direct: bool) {
        if let Parent::Kept(kept) = &mut self.body {
            kept.set_direct(direct);
        }
    }

    /// From now on what it says is read by nobody.
    pub fn discard(&mut self) {
        if let Parent::Kept(kept) = &mut self.body {
            kept.discard();
        }
    }

    /// What is to be sent once it is decided.
    pub fn take_loose(&mut self) -> Vec<Vec<u8>> {
        match &mut self.body {
            Parent::Piped(_) => Vec::new(),
            Parent::Kept(kept) => kept.take_loose(),
        }
    }

    /// Whether something is to be decided.
    #[must_use]
    pub fn has_loose(&self) -> bool {
        matches!(&self.body, Parent::Kept(kept) if kept.has_loose())
    }

    /// Below a shim: sends what was decided, under its number.
    pub fn transmit(&mut self, number: u64, bytes: Vec<u8>) {
        if let Parent::Kept(kept) = &mut self.body {
            kept.transmit(number, bytes);
        }
    }

    /// Below a shim: closes the agent's input by the frame of this number.
    pub fn transmit_end(&mut self, number: u64) {
        if let Parent::Kept(kept) = &mut self.body {
            kept.close_input(number);
        }
    }

    /// Below a shim: what came before the offset is kept.
    pub fn acknowledge(&mut self, offset: u64) {
        if let Parent::Kept(kept) = &mut self.body {
            kept.acknowledge(offset);
        }
    }

    /// Below a shim: the number of the last frame that was sent, and of the last that the shim has.
    #[must_use]
    pub fn frames(&self) -> (u64, u64) {
        match &self.body {
            Parent::Piped(_) => (0, 0),
            Parent::Kept(kept) => (kept.number(), kept.heard()),
        }
    }

    /// Below a shim: the offset behind all that was read.
    #[must_use]
    pub fn received(&self) -> u64 {
        match &self.body {
            Parent::Piped(_) => 0,
            Parent::Kept(kept) => kept.received(),
        }
    }

    /// Below a shim: whether it is being ended, or has ended by itself. Its exit is told once its output is acknowledged.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        matches!(&self.body, Parent::Kept(kept) if kept.is_ending())
    }

    /// Goes away; below a shim the agent works on.
    pub fn let_go(mut self) {
        if let Parent::Kept(kept) = &mut self.body {
            kept.let_go();
            self.ended = true;
        }
    }

    /// Its process id, which is its group's too.
    #[must_use]
    pub fn id(&self) -> u32 {
        match &self.body {
            Parent::Piped(child) => child.id(),
            Parent::Kept(kept) => kept.agent().pid,
        }
    }

    /// The last of what it wrote to stderr.
    #[must_use]
    pub fn stderr_tail(&self) -> String {
        self.tail.text()
    }

    /// Whether the leader was seen to have exited; below a shim, when all that it started is gone too.
    #[must_use]
    pub fn has_exited(&self) -> bool {
        match &self.body {
            Parent::Piped(child) => child.has_exited(),
            Parent::Kept(kept) => kept.is_over(),
        }
    }

    /// Whether the leader has exited, asked of the kernel now.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match &self.body {
            Parent::Piped(child) => child.is_gone(),
            Parent::Kept(kept) => kept.is_gone(),
        }
    }

    /// Whether all that the leader itself wrote to stdout was read: it closed it, or exited and nothing more was there.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        match &self.body {
            Parent::Piped(child) => child.is_drained(),
            Parent::Kept(kept) => kept.is_silent(),
        }
    }

    /// Whether its stdout is still open somewhere.
    #[must_use]
    pub fn has_output(&self) -> bool {
        match &self.body {
            Parent::Piped(child) => child.has_output(),
            Parent::Kept(kept) => !kept.is_silent(),
        }
    }

    /// `exited with status 3`, `was killed by signal 9`; `None` while it runs. Takes nothing: the leader stays
    /// unreaped.
    #[must_use]
    pub fn exit_text(&self) -> Option<String> {
        let (code, signal) = match &self.body {
            Parent::Piped(child) => {
                let status = child.exit_status()?;
                (status.exit_status(), status.terminating_signal())
            }
            Parent::Kept(kept) => match kept.status() {
                Some(Status::Code(code)) => (Some(code), None),
                Some(Status::Signal(signal)) => (None, Some(signal)),
                None if kept.is_lost() => return Some("ended with its shim".to_string()),
                None => return None,
            },
        };
        Some(match (code, signal) {
            (Some(code), _) => format!("exited with status {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "ended".to_string(),
        })
    }

    /// Whether it exited with status 0.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        match &self.body {
            Parent::Piped(child) => child.exit_status().is_some_and(|s| s.exit_status() == Some(0)),
            Parent::Kept(kept) => kept.status() == Some(Status::Code(0)),
        }
    }

    /// Puts bytes into the outgoing buffer and writes what the pipe takes now. Beyond the buffer's limit they are
    /// dropped, and [`Process::write_deadline`] has passed. Below a shim this is one frame.
    pub fn send(&mut self, bytes: &[u8]) {
        self.overflowed |= self.outgoing().saturating_add(bytes.len()) > OUTGOING_LIMIT;
        if !self.overflowed {
            match &mut self.body {
                Parent::Piped(child) => child.send(bytes),
                Parent::Kept(kept) => kept.send(bytes.to_vec()),
            }
        }
    }

    fn outgoing(&self) -> usize {
        match &self.body {
            Parent::Piped(child) => child.outgoing(),
            Parent::Kept(kept) => kept.outgoing(),
        }
    }

    /// Closes stdin once everything is written.
    pub fn finish_input(&mut self) {
        match &mut self.body {
            Parent::Piped(child) => child.finish_input(),
            Parent::Kept(kept) => kept.close_input(kept.number() + 1),
        }
    }

    /// When to give up on an agent that takes nothing of its input; `None` when nothing waits to be written.
    #[must_use]
    pub fn write_deadline(&self) -> Option<Instant> {
        let patience = if self.overflowed { Duration::ZERO } else { WRITE_STALL };
        let progress = match &self.body {
            Parent::Piped(child) => child.progress(),
            Parent::Kept(kept) => kept.progress(),
        };
        (self.outgoing() > 0).then(|| progress + patience)
    }

    /// Waits for the child or the host, moves one slice of bytes each way, and says why it came back. `out` takes what
    /// came from stdout. With nothing left to watch it waits for the host alone.
    pub fn step(&mut self, host: &mut dyn Host, until: Option<Instant>, out: &mut Vec<u8>) -> Wake {
        let until = if self.has_exited() && !self.is_drained() || !self.early.is_empty() {
            Some(Instant::now())
        } else {
            until
        };
        let wake = host.wait(&mut self.watches(), until);
        self.take_in(out);
        wake
    }

    /// Takes in what is there now, at most a slice from each pipe, without waiting.
    pub fn take_in(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.early);
        let tail = &mut self.tail;
        match &mut self.body {
            Parent::Piped(child) => {
                let pid = child.id();
                child.take_in(&mut |bytes| out.extend_from_slice(bytes), &mut |bytes| {
                    tail.push(bytes);
                    log::debug!("agent process {pid}: {}", String::from_utf8_lossy(bytes).trim_end());
                });
            }
            Parent::Kept(kept) => {
                kept.take_in(out, tail);
            }
        }
    }

    /// What to wait for: readable pipes, a stdin that has something waiting, and the exit until it was seen; below a shim,
    /// its connection.
    #[must_use]
    pub fn watches(&self) -> Vec<Watch<'_>> {
        let watch = |(fd, write): (_, bool)| Watch { fd, read: !write, write, ready: false };
        match &self.body {
            Parent::Piped(child) => child.descriptors().map(watch).collect(),
            Parent::Kept(kept) => {
                kept.descriptor().map(|(fd, write)| Watch { fd, read: true, write, ready: false }).into_iter().collect()
            }
        }
    }

    /// Signals the whole group. The leader is not reaped yet, so the id is still its own; below a shim that is not known,
    /// and the shim does it.
    fn signal_group(&self, signal: Signal) {
        if let Parent::Piped(child) = &self.body
            && let Err(e) = child.signal_group(signal)
        {
            log::warn!("{}: process group {}: cannot signal it: {e}", self.name, self.id());
        }
    }
}

/// Starts a shim and attaches to it: its name, the child, the connection, and the secret that both share.
#[allow(clippy::type_complexity)]
fn start_shim(
    keeper: &Keeper,
    identity: &Identity,
) -> Result<(String, (std::process::Child, Registered), Client, Attached, Token), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let (token, name) = (Token::new().map_err(|e| text(&e))?, SocketName::new().map_err(|e| text(&e))?);
    let place = keeper.place();
    let patience = Patience::default();
    let seed = Seed { token: token.clone(), device: place.device, inode: place.inode, patience, name };
    let own = [
        (mark::KEY_VAR, Some(identity.key.as_str())),
        (mark::SESSION_VAR, Some(&identity.session_id)),
        (mark::BOOT_VAR, Some(&identity.boot_id)),
        (mark::STATE_VAR, mark::own_state()),
    ];
    let marks: Vec<(&OsStr, &OsStr)> =
        own.into_iter().filter_map(|(k, v)| Some((OsStr::new(k), OsStr::new(v?)))).collect();
    let dir = format!("/proc/self/fd/{}", keeper.dir().as_raw_fd());
    let mut spawned = keeper
        .program()
        .spawn(Path::new(&dir), &seed, &marks, |command| {
            set_apart(command, identity.sid);
            spawn(command)
        })
        .map_err(|e| format!("{}: {e}", keeper.program().path().display()))?;
    let until = Instant::now() + START;
    spawned.listens_until(until).map_err(|e| text(&e))?;
    let (client, attached) =
        Client::attach(keeper.dir(), &name, keeper.daemon(&token, 0), until).map_err(|e| text(&e))?;
    Ok((name.as_str().to_owned(), (spawned.child, spawned.kept), client, attached, token))
}

impl Drop for Process {
    fn drop(&mut self) {
        // A process that is not dead yet loses its place in the register and is reaped as a stray.
        self.kill();
    }
}

fn make_cwd(cwd: &Path) -> Result<(), Failure> {
    let failed = |why: &dyn std::fmt::Display| {
        Failure::new("agent_start", format!("working directory {}: {why}", cwd.display()))
    };
    if !cwd.is_absolute() {
        return Err(failed(&"it is not absolute"));
    }
    std::fs::create_dir_all(cwd).map_err(|e| failed(&e))
}

/// The environment of an agent: of the daemon's own only the variables that are passed on by name, and never those of
/// the service manager, whatever the configuration says.
fn environment(launch: &Launch<'_>, identity: &Identity) -> BTreeMap<String, OsString> {
    let mut env: BTreeMap<String, OsString> = BTreeMap::new();
    env.extend(launch.env_pass.iter().filter_map(|name| Some((name.clone(), std::env::var_os(name)?))));
    env.extend(launch.env.iter().map(|(k, v)| (k.clone(), v.into())));
    env.retain(|name, _| {
        name != "NOTIFY_SOCKET" && !["WATCHDOG_", "LISTEN_"].iter().any(|prefix| name.starts_with(prefix))
    });
    env.extend(launch.extra.iter().map(|(k, v)| ((*k).to_string(), v.into())));
    let own = [
        (mark::KEY_VAR, Some(identity.key.as_str())),
        (mark::SESSION_VAR, Some(&identity.session_id)),
        (mark::BOOT_VAR, Some(&identity.boot_id)),
        (mark::STATE_VAR, mark::own_state()),
    ];
    env.extend(own.into_iter().filter_map(|(k, v)| Some((k.to_string(), v?.into()))));
    env
}

fn why_not(program: &str, env: &BTreeMap<String, OsString>, error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound if program.contains('/') => {
            format!("{program}: not found (or the interpreter that it names is not)")
        }
        ErrorKind::NotFound => match env.get("PATH") {
            Some(path) => format!("{program}: not found in PATH ({})", path.to_string_lossy()),
            None => format!("{program}: not found: the agent has no PATH; add it to env or env_pass"),
        },
        ErrorKind::PermissionDenied => format!("{program}: not executable: {error}"),
        _ => format!("{program}: cannot be started: {error}"),
    }
}
