//! One child process: its clean environment, its three pipes, its group, and the ladder that ends it and all it started.
//!
//! Owns spawning, the buffers between us and the pipes, and the end. It must not know a protocol, a turn or the store.
//! Nothing here blocks but in [`Host::wait`].
//!
//! The leader of the group is not reaped before the ladder is done, so its pid (which is the group's id too) cannot be
//! given to a stranger while we still signal it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use super::{Failure, Host, Identity, Wake, Watch};
use crate::proc::mark::{self, Tag};
use crate::proc::moment::Moment;
use crate::proc::{self, Registered, procfs};

mod ladder;
mod leftovers;
mod tail;

pub use ladder::Rung;
pub use leftovers::{Claim, Leftover, end_leftovers, end_orphans, find_dead, find_marked, is_alive};
pub use tail::Tail;

/// What is read from a pipe before the caller is asked again.
pub const SLICE: usize = 64 * 1024;
/// What may wait to be written: a prompt with its history, and many answers.
const OUTGOING_LIMIT: usize = 64 * 1024 * 1024;
/// An agent that takes nothing of what waits to be written for so long does not read its input.
const WRITE_STALL: Duration = Duration::from_secs(60);

/// How to start a process.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Program and arguments; the program is looked for in the `PATH` that the process is given.
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
    child: Child,
    _registered: Registered,
    pid: Pid,
    start: u64,
    pidfd: OwnedFd,
    name: String,
    session_id: String,
    boot_id: String,
    tag: Option<Tag>,
    /// Before it was made: all that it starts began since.
    moment: Option<Moment>,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    outgoing: Vec<u8>,
    written: usize,
    overflowed: bool,
    close_after: bool,
    progress: Instant,
    exited: bool,
    /// After the exit a read found nothing more: what comes now comes from somebody else who holds the pipe.
    drained: bool,
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
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        proc::set_apart(&mut command, identity.sid);
        let moment = Moment::now();
        let (child, registered) =
            proc::spawn(&mut command).map_err(|e| Failure::new("agent_start", why_not(program, &env, &e)))?;
        Self::adopt(child, registered, moment, program, identity)
            .map_err(|e| Failure::new("agent_start", format!("{program}: it was started, but cannot be watched: {e}")))
    }

    fn adopt(
        mut child: Child,
        registered: Registered,
        moment: Option<Moment>,
        program: &str,
        identity: &Identity,
    ) -> io::Result<Self> {
        let pid = Pid::from_child(&child);
        let taken = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty());
        let nonblocking = || -> io::Result<()> {
            let (stdin, stdout, stderr) = (taken.0.as_ref(), taken.1.as_ref(), taken.2.as_ref());
            let fds = [stdin.map(AsFd::as_fd), stdout.map(AsFd::as_fd), stderr.map(AsFd::as_fd)];
            fds.into_iter().flatten().try_for_each(|fd| rustix::io::ioctl_fionbio(fd, true))?;
            Ok(())
        };
        let pidfd = match (pidfd, nonblocking()) {
            (Ok(pidfd), Ok(())) => pidfd,
            (Err(e), _) => return Err(give_up(&mut child, pid, e.into())),
            (_, Err(e)) => return Err(give_up(&mut child, pid, e)),
        };
        let (stdin, stdout, stderr) = taken;
        Ok(Self {
            start: procfs::stat(child.id()).map_or(0, |s| s.start),
            child,
            _registered: registered,
            pid,
            pidfd,
            name: program.to_string(),
            session_id: identity.session_id.clone(),
            boot_id: identity.boot_id.clone(),
            tag: mark::own_tag(identity.sid),
            moment,
            stdin,
            stdout,
            stderr,
            outgoing: Vec::new(),
            written: 0,
            overflowed: false,
            close_after: false,
            progress: Instant::now(),
            exited: false,
            drained: false,
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
        self.exited
    }

    /// Whether the leader has exited, asked of the kernel now.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.exited || leftovers::is_readable(self.pidfd.as_fd())
    }

    /// Whether all that the leader itself wrote to stdout was read: it closed it, or exited and nothing more was there.
    #[must_use]
    pub const fn is_drained(&self) -> bool {
        self.stdout.is_none() || self.drained
    }

    /// Whether its stdout is still open somewhere.
    #[must_use]
    pub const fn has_output(&self) -> bool {
        self.stdout.is_some()
    }

    /// `exited with status 3`, `was killed by signal 9`; `None` while it runs. Takes nothing: the leader stays unreaped.
    #[must_use]
    pub fn exit_text(&self) -> Option<String> {
        let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), peek).ok()??;
        Some(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exited with status {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "ended".to_string(),
        })
    }

    /// Whether it exited with status 0.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), peek)
            .is_ok_and(|s| s.is_some_and(|s| s.exit_status() == Some(0)))
    }

    /// Puts bytes into the outgoing buffer and writes what the pipe takes now. Beyond the buffer's limit they are dropped,
    /// and [`Process::write_deadline`] has passed.
    pub fn send(&mut self, bytes: &[u8]) {
        self.overflowed |= self.outgoing.len() + bytes.len() > OUTGOING_LIMIT;
        if self.stdin.is_none() || self.overflowed {
            return;
        }
        if self.outgoing.is_empty() {
            self.progress = Instant::now();
        }
        self.outgoing.extend_from_slice(bytes);
        self.flush();
    }

    /// Closes stdin once everything is written.
    pub fn finish_input(&mut self) {
        self.close_after = true;
        self.flush();
    }

    /// When to give up on an agent that takes nothing of its input; `None` when nothing waits to be written.
    #[must_use]
    pub fn write_deadline(&self) -> Option<Instant> {
        let patience = if self.overflowed { Duration::ZERO } else { WRITE_STALL };
        (!self.outgoing.is_empty()).then(|| self.progress + patience)
    }

    fn flush(&mut self) {
        while let Some(stdin) = self.stdin.as_mut() {
            if self.written >= self.outgoing.len() {
                self.outgoing = Vec::new();
                self.written = 0;
                if self.close_after {
                    self.stdin = None;
                }
                return;
            }
            match stdin.write(&self.outgoing[self.written..]) {
                Ok(n) => {
                    self.written += n;
                    self.progress = Instant::now();
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                // It closed its input. What that means shows on its output and in its exit.
                Err(_) => {
                    self.stdin = None;
                    self.outgoing = Vec::new();
                    self.written = 0;
                }
            }
        }
    }

    /// Waits for the child or the host, moves one slice of bytes each way, and says why it came back. `out` takes what
    /// came from stdout. With nothing left to watch it waits for the host alone.
    pub fn step(&mut self, host: &mut dyn Host, until: Option<Instant>, out: &mut Vec<u8>) -> Wake {
        let until = if self.exited && !self.is_drained() { Some(Instant::now()) } else { until };
        let wake = host.wait(&mut self.watches(), until);
        self.take_in(out);
        wake
    }

    /// Takes in what is there now, at most a slice from each pipe, without waiting.
    pub fn take_in(&mut self, out: &mut Vec<u8>) {
        // The exit is looked at before stdout is read: what was written before the exit is then read after it was seen.
        self.exited = self.is_gone();
        let pid = self.child.id();
        read_slice(&mut self.stderr, &mut |bytes| {
            self.tail.push(bytes);
            log::debug!("agent process {pid}: {}", String::from_utf8_lossy(bytes).trim_end());
        });
        let empty = read_slice(&mut self.stdout, &mut |bytes| out.extend_from_slice(bytes));
        self.drained |= self.exited && empty;
        self.flush();
    }

    /// What to wait for: readable pipes, a stdin that has something waiting, and the exit until it was seen.
    #[must_use]
    pub fn watches(&self) -> Vec<Watch<'_>> {
        let mut watches = Vec::with_capacity(4);
        let readable = |fd| Watch { fd, read: true, write: false, ready: false };
        watches.extend(self.stdout.as_ref().map(|p| readable(p.as_fd())));
        watches.extend(self.stderr.as_ref().map(|p| readable(p.as_fd())));
        if !self.exited {
            watches.push(readable(self.pidfd.as_fd()));
        }
        if let Some(stdin) = self.stdin.as_ref().filter(|_| !self.outgoing.is_empty()) {
            watches.push(Watch { fd: stdin.as_fd(), read: false, write: true, ready: false });
        }
        watches
    }

    /// Signals the whole group. The leader is not reaped yet, so the id is still its own.
    fn signal_group(&self, signal: Signal) {
        if let Err(e) = rustix::process::kill_process_group(self.pid, signal)
            && e != rustix::io::Errno::SRCH
        {
            log::warn!("{}: process group {}: cannot signal it: {e}", self.name, self.id());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that is not dead yet loses its place in the register and is reaped as a stray.
        self.kill();
    }
}

/// Ends a child that cannot be watched; returns the reason that was given.
fn give_up(child: &mut Child, pid: Pid, why: io::Error) -> io::Error {
    let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    let _ = child.try_wait();
    why
}

/// Reads at most a slice and says whether nothing more is there now; end of file and errors close the pipe.
fn read_slice<P: Read>(pipe: &mut Option<P>, taken: &mut dyn FnMut(&[u8])) -> bool {
    let mut buffer = [0; 16 * 1024];
    let mut left = SLICE;
    while let Some(open) = pipe.as_mut().filter(|_| left > 0) {
        match open.read(&mut buffer) {
            Ok(0) => *pipe = None,
            Ok(n) => {
                taken(&buffer[..n]);
                left = left.saturating_sub(n);
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
            Err(_) => *pipe = None,
        }
    }
    pipe.is_none()
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

/// Nothing of the daemon's environment but what is passed on by name; never what speaks for the daemon to its service
/// manager, whatever the configuration says.
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
            None => format!("{program}: not found, for the agent has no PATH: add it to env or env_pass"),
        },
        ErrorKind::PermissionDenied => format!("{program}: not executable: {error}"),
        _ => format!("{program}: cannot be started: {error}"),
    }
}
