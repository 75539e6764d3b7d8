//! Finding and ending processes by their markers: what left its group, and what an earlier boot left behind.
//!
//! Owns the decision which process may be signalled: one whose pid, start time *and* markers are still those that were
//! found, and never this process, its ancestors or the first one. It must not know agents, sessions or the store.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::proc::procfs::{self, Picture, Stat};

/// A process that carries the markers of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Its id.
    pub pid: u32,
    /// Its start time in clock ticks since boot; with the pid it names the process for good.
    pub start: u64,
    /// Whose agent it belongs to, when it says so.
    pub session_id: Option<String>,
    /// The boot that made it.
    pub boot_id: String,
    /// Its name, at most 15 bytes.
    pub name: String,
}

impl std::fmt::Display for Leftover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

/// Whether the very process that began at `start` still runs; a zombie does not.
#[must_use]
pub fn is_alive(pid: u32, start: u64) -> bool {
    procfs::stat(pid).is_some_and(|s| s.start == start && s.is_live())
}

/// The live processes that carry a boot marker: of that session if one is given, and not of the boot `not_boot`.
///
/// Another daemon of the same user marks its agents too: who asks without a session must choose among what is found by
/// the boots and sessions in its own store before it ends anything.
#[must_use]
pub fn find_marked(session_id: Option<&str>, not_boot: Option<&str>) -> Vec<Leftover> {
    let wanted = |l: &Leftover| {
        session_id.is_none_or(|id| l.session_id.as_deref() == Some(id)) && not_boot.is_none_or(|id| l.boot_id != id)
    };
    marked(&procfs::picture()).filter(wanted).collect()
}

/// The marked live processes of a picture that may be signalled.
pub(super) fn marked(picture: &Picture) -> impl Iterator<Item = Leftover> {
    let spared = picture.untouchable();
    picture.all.iter().filter_map(move |(stat, marks)| {
        let marks = marks.as_ref().filter(|_| !spared.contains(&stat.pid))?;
        Some(Leftover {
            pid: stat.pid,
            start: stat.start,
            session_id: marks.session_id.clone(),
            boot_id: marks.boot_id.clone(),
            name: stat.name.clone(),
        })
    })
}

/// A process held by a descriptor, so that a signal cannot reach another one that was given its pid.
#[derive(Debug)]
pub(super) struct Target {
    pid: u32,
    name: String,
    fd: OwnedFd,
}

impl Target {
    /// Takes hold of it; `None` when it is gone or is no longer what was found.
    pub fn hold(leftover: &Leftover) -> Option<Self> {
        // Looked at after the descriptor was opened: if these still agree, the descriptor is the one that was found.
        let same = || {
            is_alive(leftover.pid, leftover.start)
                && procfs::marks(leftover.pid)
                    .is_some_and(|m| m.boot_id == leftover.boot_id && m.session_id == leftover.session_id)
        };
        Self::hold_if(leftover.pid, &leftover.name, same)
    }

    /// Takes hold of a process that is known by its descent or its group; `None` when it is gone.
    pub fn hold_known(stat: &Stat) -> Option<Self> {
        Self::hold_if(stat.pid, &stat.name, || is_alive(stat.pid, stat.start))
    }

    fn hold_if(pid: u32, name: &str, same: impl Fn() -> bool) -> Option<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).filter(|_| pid > 1 && pid != std::process::id())?;
        let fd = rustix::process::pidfd_open(raw, PidfdFlags::empty()).ok()?;
        same().then(|| Self { pid, name: name.to_string(), fd })
    }

    /// Its pid.
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Its pid and name, for people.
    pub fn name(&self) -> String {
        format!("process {} ({})", self.pid, self.name)
    }

    /// Sends it a signal; one that is already gone is what was wanted.
    pub fn signal(&self, signal: Signal) {
        if let Err(e) = rustix::process::pidfd_send_signal(&self.fd, signal)
            && e != rustix::io::Errno::SRCH
        {
            log::warn!("{}: cannot signal it: {e}", self.name());
        }
    }

    /// Whether it has ended (as a zombie too).
    pub fn is_gone(&self) -> bool {
        is_readable(self.fd.as_fd())
    }
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether a descriptor is readable now: for a process's descriptor, whether the process has ended.
pub(super) fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|n| n > 0)
}

/// Ends what agents left behind that is known by nothing but its descent: live children of this process that it did not
/// make, orphans whose parent died. For the end of a stop, when every agent is closed; blocks until all are gone or the
/// instant has passed, and returns a line for each that could not be ended.
#[must_use]
pub fn end_orphans(until: Instant) -> Vec<String> {
    loop {
        let picture = procfs::picture();
        let me = std::process::id();
        let own_group = picture.all.iter().find(|(s, _)| s.pid == me).map(|(s, _)| s.group);
        let orphans = picture.all.iter().map(|(s, _)| s).filter(|s| {
            s.parent == me && s.is_live() && Some(s.group) != own_group && !crate::proc::is_registered(s.pid)
        });
        let mut left: Vec<Target> = orphans.filter_map(Target::hold_known).collect();
        left.iter().for_each(|t| t.signal(Signal::KILL));
        let none = left.is_empty();
        wait_gone(&mut left, until);
        crate::proc::reap_strays();
        // What an orphan had started is an orphan now: looked for again until nothing new turns up.
        if none || Instant::now() >= until {
            return left.iter().map(Target::name).collect();
        }
    }
}

/// Ends leftovers: SIGTERM, and SIGKILL to what is still there after a third of the time (at most 2 s). Blocks until all
/// are gone or the instant has passed, and returns those that it could not end.
#[must_use]
pub fn end_leftovers(leftovers: &[Leftover], until: Instant) -> Vec<Leftover> {
    let mut left: Vec<Target> = leftovers.iter().filter_map(Target::hold).collect();
    let now = Instant::now();
    let grace = (until.saturating_duration_since(now) / 3).min(Duration::from_secs(2));
    for (signal, until) in [(Signal::TERM, now + grace), (Signal::KILL, until)] {
        left.iter().for_each(|t| t.signal(signal));
        wait_gone(&mut left, until);
    }
    crate::proc::reap_strays();
    leftovers.iter().filter(|l| left.iter().any(|t| t.pid == l.pid)).cloned().collect()
}

/// Waits until all have ended or the instant has passed; those that have ended are taken out.
fn wait_gone(left: &mut Vec<Target>, until: Instant) {
    loop {
        left.retain(|t| !t.is_gone());
        let time = until.saturating_duration_since(Instant::now());
        if left.is_empty() || time.is_zero() {
            return;
        }
        let mut fds: Vec<_> = left.iter().map(|t| PollFd::new(t, PollFlags::IN)).collect();
        let Ok(time) = Timespec::try_from(time) else { return };
        if let Err(e) = rustix::event::poll(&mut fds, Some(&time))
            && e != rustix::io::Errno::INTR
        {
            log::warn!("cannot wait for leftovers: {e}");
            return;
        }
    }
}
