//! How the shim starts its agent: what the child does to itself between fork and exec, and what is held of it then.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Resource, Signal, WaitId, WaitIdOptions, getpid};

use super::frame::{Confined, Status, Who};
use super::landlock;
use super::start::{ProcessLimit, Start};
use crate::proc::procfs;
use crate::sys;

/// An agent that was started.
#[derive(Debug)]
pub struct Agent {
    pid: Pid,
    /// Its process.
    pub who: Who,
    /// Its confinement.
    pub confined: Confined,
    /// Its input, until it is closed.
    pub stdin: Option<OwnedFd>,
    /// Its output, until its end.
    pub stdout: Option<OwnedFd>,
    /// Its errors, until their end.
    pub stderr: Option<OwnedFd>,
    /// Readable once it is dead.
    pub pidfd: OwnedFd,
    /// Ends all of its control group at once.
    kill_group: Option<File>,
    reaped: bool,
}

/// Why there is no agent.
#[derive(Debug)]
pub struct NotStarted {
    /// What was being done.
    pub step: &'static str,
    /// What came of it.
    pub error: io::Error,
}

/// A step, as it is named when it fails.
fn step<T>(step: &'static str, result: io::Result<T>) -> Result<T, NotStarted> {
    result.map_err(|error| NotStarted { step, error })
}

/// The steps of the child itself. When one fails, its number comes back through a pipe.
const STEPS: [&str; 6] =
    ["a session of its own", "its tie to the shim", "control group", "oom_score_adj", "limits", "confinement"];

/// What the child does between fork and exec. All of it was made before, so that it allocates nothing.
struct SetUp {
    parent: Pid,
    procs: Option<File>,
    oom_adj: Option<String>,
    limits: Vec<(Resource, u64)>,
    rules: Option<OwnedFd>,
    failed: OwnedFd,
}

impl SetUp {
    fn run(&self) -> io::Result<()> {
        let steps: [&dyn Fn() -> io::Result<()>; STEPS.len()] = [
            &|| {
                sys::plain_signals();
                Ok(rustix::process::setsid().map(drop)?)
            },
            &|| {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
                // A shim that died before that would not be noticed any more.
                if rustix::process::getppid() == Some(self.parent) {
                    Ok(())
                } else {
                    Err(rustix::io::Errno::SRCH.into())
                }
            },
            // 0: whoever writes.
            &|| self.procs.as_ref().map_or(Ok(()), |procs| (&*procs).write_all(b"0")),
            &|| {
                self.oom_adj.as_ref().map_or(Ok(()), |value| {
                    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
                    let mode = rustix::fs::Mode::empty();
                    let file = rustix::fs::openat(rustix::fs::CWD, c"/proc/self/oom_score_adj", flags, mode)?;
                    Ok(rustix::io::write(file, value.as_bytes()).map(drop)?)
                })
            },
            &|| {
                for (resource, soft) in &self.limits {
                    sys::set_soft_limit(*resource, *soft);
                }
                Ok(())
            },
            &|| self.rules.as_ref().map_or(Ok(()), |rules| landlock::restrict(rules.as_fd())),
        ];
        for (n, step) in (0_u8..).zip(steps) {
            if let Err(e) = step() {
                let _ = rustix::io::write(&self.failed, &[n]);
                return Err(e);
            }
        }
        Ok(())
    }
}

/// Starts it.
///
/// # Errors
/// Says which step failed, and why. Nothing is left of it then.
#[allow(unsafe_code)]
pub fn start(start: &Start) -> Result<Agent, NotStarted> {
    let (program, args) =
        start.argv.split_first().ok_or(NotStarted { step: "program", error: io::ErrorKind::NotFound.into() })?;
    step("working directory", is_dir(&start.cwd))?;
    let open =
        |name: &str| start.cgroup.as_ref().map(|dir| OpenOptions::new().write(true).open(dir.join(name))).transpose();
    let procs = step("control group", open("cgroup.procs"))?;
    // Kernels before 5.14 have none; what it would end is found by descent.
    let kill_group = open("cgroup.kill").unwrap_or_default();
    let (rules, confined) = match &start.confine {
        Some(confine) => step("confinement", landlock::rules(confine))?,
        None => (None, Confined::default()),
    };
    let (mut failing, failed) = step("pipe", pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(Into::into))
        .map(|(read, write)| (File::from(read), write))?;
    let set_up = SetUp {
        parent: getpid(),
        procs,
        oom_adj: oom_adj(start.oom_adj),
        limits: start.limits.iter().filter_map(|l| Some((resource(l)?, l.soft))).collect(),
        rules,
        failed,
    };
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(start.env.iter().map(|(k, v)| (k, v))).current_dir(&start.cwd);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: the closure runs in the child between fork and exec. This process has one thread, so no lock can be held by
    // another; the closure makes system calls on values that were made before, and allocates nothing.
    unsafe { command.pre_exec(move || set_up.run()) };
    let spawned = command.spawn();
    // Its copies of the closure's descriptors.
    drop(command);
    let child = spawned.map_err(|error| {
        let mut number = [0];
        let step = match failing.read(&mut number) {
            Ok(1) => STEPS.get(usize::from(number[0])).copied().unwrap_or("program"),
            _ => "program",
        };
        NotStarted { step, error }
    })?;
    held(child, kill_group, confined)
}

/// Takes hold of a child that runs.
fn held(mut child: Child, kill_group: Option<File>, confined: Confined) -> Result<Agent, NotStarted> {
    let pid = Pid::from_child(&child);
    let stdin = child.stdin.take().map(OwnedFd::from);
    let stdout = child.stdout.take().map(OwnedFd::from);
    let stderr = child.stderr.take().map(OwnedFd::from);
    let watched = [&stdin, &stdout, &stderr]
        .into_iter()
        .flatten()
        .try_for_each(|fd| rustix::io::ioctl_fionbio(fd, true))
        .and_then(|()| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
    match watched {
        Ok(pidfd) => {
            let who = Who { pid: child.id(), start: procfs::stat(child.id()).map_or(0, |s| s.start) };
            Ok(Agent { pid, who, confined, stdin, stdout, stderr, pidfd, kill_group, reaped: false })
        }
        Err(e) => {
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
            let _ = child.wait();
            Err(NotStarted { step: "descriptors", error: e.into() })
        }
    }
}

fn is_dir(path: &Path) -> io::Result<()> {
    if !path.is_absolute() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not absolute"));
    }
    if std::fs::metadata(path)?.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
}

/// The shim's own value and so much more; `None` where it cannot be read.
fn oom_adj(more: u16) -> Option<String> {
    let own: i32 = std::fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse().ok()?;
    (more > 0).then(|| own.saturating_add(more.into()).min(1000).to_string())
}

fn resource(limit: &ProcessLimit) -> Option<Resource> {
    const ALL: [Resource; 16] = [
        Resource::Cpu,
        Resource::Fsize,
        Resource::Data,
        Resource::Stack,
        Resource::Core,
        Resource::Rss,
        Resource::Nproc,
        Resource::Nofile,
        Resource::Memlock,
        Resource::As,
        Resource::Locks,
        Resource::Sigpending,
        Resource::Msgqueue,
        Resource::Nice,
        Resource::Rtprio,
        Resource::Rttime,
    ];
    ALL.into_iter().find(|resource| *resource as u32 == limit.resource)
}

impl Agent {
    /// How it ended, if it did; it stays unreaped.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), peek).ok()??;
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Some(Status::Code(code)),
            (None, signal) => Some(Status::Signal(signal.unwrap_or(0))),
        }
    }

    /// Sends a signal to its group, whose number is its own until it is reaped.
    pub fn signal_group(&self, signal: Signal) {
        if !self.reaped {
            let _ = rustix::process::kill_process_group(self.pid, signal);
        }
    }

    /// Kills it, its group, and its control group.
    pub fn kill(&mut self) {
        self.signal_group(Signal::KILL);
        if !self.reaped {
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        }
        if let Some(file) = &mut self.kill_group {
            let _ = file.write_all(b"1");
        }
    }

    /// From now on it may be reaped like any other child.
    pub const fn let_go(&mut self) {
        self.reaped = true;
    }

    /// Whether both of its pipes are at their end.
    #[must_use]
    pub const fn is_silent(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }
}
