//! An agent's process: its clean environment, its markers, and the ladder that ends it and all it started.
//!
//! Owns how an agent's process is started and how it ends; the pipes and the group are [`PipedChild`]'s. It must not
//! know a protocol, a turn or the store. Nothing here blocks but in [`Host::wait`].
//!
//! The leader of the group is not reaped before the ladder is done, so its pid (which is the group's id too) cannot be
//! given to a stranger while we still signal it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{Failure, Host, Identity, Wake, Watch};
use crate::proc::mark::{self, Tag};
use crate::proc::moment::Moment;
use crate::proc::{NoChild, PipedChild, procfs};

pub mod confine;
mod ladder;
mod leftovers;
mod tail;

pub use ladder::Rung;
pub use leftovers::{Claim, Leftover, end_leftovers, end_orphans, find_dead, find_marked, is_alive};
pub use tail::Tail;

/// The most bytes that may wait to be written: a prompt with its history, and many answers.
const OUTGOING_LIMIT: usize = 64 * 1024 * 1024;
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

/// A running child. Dropped before [`Process::end`], its group is killed and it is left to be reaped.
#[derive(Debug)]
pub struct Process {
    child: PipedChild,
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
}

impl Process {
    /// Starts it in the session's working directory, in a session of the kernel's and a group of its own.
    ///
    /// # Errors
    /// `agent_start`: says which program, and why (not found, not executable, the working directory).
    pub fn spawn(launch: &Launch<'_>, identity: &Identity) -> Result<Self, Failure> {
        let (program, args) =
            launch.command.split_first().ok_or_else(|| Failure::new("agent_start", "command: it is empty"))?;
        make_cwd(&identity.cwd)?;
        let env = environment(launch, identity);
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
        Ok(Self {
            start: procfs::stat(child.id()).map_or(0, |s| s.start),
            child,
            name: program.clone(),
            session_id: identity.session_id.clone(),
            boot_id: identity.boot_id.clone(),
            tag: mark::own_tag(identity.sid),
            moment,
            overflowed: false,
            ended: false,
            tail: Tail::default(),
        })
    }

    /// Its process id, which is its group's too.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its start time in clock ticks since boot.
    #[must_use]
    pub const fn start_time(&self) -> u64 {
        self.start
    }

    /// The last of what it wrote to stderr.
    #[must_use]
    pub fn stderr_tail(&self) -> String {
        self.tail.text()
    }

    /// Whether the leader was seen to have exited.
    #[must_use]
    pub const fn has_exited(&self) -> bool {
        self.child.has_exited()
    }

    /// Whether the leader has exited, asked of the kernel now.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.child.is_gone()
    }

    /// Whether all that the leader itself wrote to stdout was read: it closed it, or exited and nothing more was there.
    #[must_use]
    pub const fn is_drained(&self) -> bool {
        self.child.is_drained()
    }

    /// Whether its stdout is still open somewhere.
    #[must_use]
    pub const fn has_output(&self) -> bool {
        self.child.has_output()
    }

    /// `exited with status 3`, `was killed by signal 9`; `None` while it runs. Takes nothing: the leader stays
    /// unreaped.
    #[must_use]
    pub fn exit_text(&self) -> Option<String> {
        let status = self.child.exit_status()?;
        Some(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exited with status {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "ended".to_string(),
        })
    }

    /// Whether it exited with status 0.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.child.exit_status().is_some_and(|s| s.exit_status() == Some(0))
    }

    /// Puts bytes into the outgoing buffer and writes what the pipe takes now. Beyond the buffer's limit they are
    /// dropped, and [`Process::write_deadline`] has passed.
    pub fn send(&mut self, bytes: &[u8]) {
        self.overflowed |= self.child.outgoing() + bytes.len() > OUTGOING_LIMIT;
        if !self.overflowed {
            self.child.send(bytes);
        }
    }

    /// Closes stdin once everything is written.
    pub fn finish_input(&mut self) {
        self.child.finish_input();
    }

    /// When to give up on an agent that takes nothing of its input; `None` when nothing waits to be written.
    #[must_use]
    pub fn write_deadline(&self) -> Option<Instant> {
        let patience = if self.overflowed { Duration::ZERO } else { WRITE_STALL };
        (self.child.outgoing() > 0).then(|| self.child.progress() + patience)
    }

    /// Waits for the child or the host, moves one slice of bytes each way, and says why it came back. `out` takes what
    /// came from stdout. With nothing left to watch it waits for the host alone.
    pub fn step(&mut self, host: &mut dyn Host, until: Option<Instant>, out: &mut Vec<u8>) -> Wake {
        let until = if self.has_exited() && !self.is_drained() { Some(Instant::now()) } else { until };
        let wake = host.wait(&mut self.watches(), until);
        self.take_in(out);
        wake
    }

    /// Takes in what is there now, at most a slice from each pipe, without waiting.
    pub fn take_in(&mut self, out: &mut Vec<u8>) {
        let (pid, tail) = (self.child.id(), &mut self.tail);
        self.child.take_in(&mut |bytes| out.extend_from_slice(bytes), &mut |bytes| {
            tail.push(bytes);
            log::debug!("agent process {pid}: {}", String::from_utf8_lossy(bytes).trim_end());
        });
    }

    /// What to wait for: readable pipes, a stdin that has something waiting, and the exit until it was seen.
    #[must_use]
    pub fn watches(&self) -> Vec<Watch<'_>> {
        let watch = |(fd, write): (_, bool)| Watch { fd, read: !write, write, ready: false };
        self.child.descriptors().map(watch).collect()
    }

    /// Signals the whole group. The leader is not reaped yet, so the id is still its own.
    fn signal_group(&self, signal: Signal) {
        if let Err(e) = self.child.signal_group(signal) {
            log::warn!("{}: process group {}: cannot signal it: {e}", self.name, self.id());
        }
    }
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
