//! Finds and ends processes by their markers: those that left their group, and those that an earlier boot left behind.
//!
//! Owns the decision which process may be signalled: its pid, start time and markers must still be those that were
//! found, and it is never this process, its ancestors or process 1. This file must not know agents, sessions or the
//! store.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::proc::has_ended;
use crate::proc::mark::{self, Tag};
use crate::proc::procfs::{self, Picture, Stat};

/// A process that carries the markers of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Its id.
    pub pid: u32,
    /// Its start time in clock ticks since boot; with the pid it names the process for good.
    pub start: u64,
    /// The session whose agent it belongs to, if it says so.
    pub session_id: Option<String>,
    /// The session's row, if only that is known.
    pub sid: Option<i64>,
    /// The boot that made it; empty when its environment was cleared.
    pub boot_id: String,
    /// The identity of its state directory; older versions did not mark it.
    pub state_id: Option<String>,
    /// Its name, at most 15 bytes.
    pub name: String,
}

impl Leftover {
    /// A process whose environment was cleared, so that nothing is known of it yet.
    fn unmarked(stat: &Stat) -> Self {
        let (pid, start, name) = (stat.pid, stat.start, stat.name.clone());
        Self { pid, start, session_id: None, sid: None, boot_id: String::new(), state_id: None, name }
    }
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

/// Kills that very process, if it still runs and belongs to this very state directory: a copy of the directory has the same
/// rows, but another identity.
pub fn kill_own(pid: u32, start: u64) {
    let ours =
        || procfs::marks(pid).is_some_and(|m| m.state_id.is_some() && m.state_id.as_deref() == mark::own_state());
    if let Some(target) = Target::hold_if(pid, "", || is_alive(pid, start) && ours()) {
        target.signal(Signal::KILL);
    }
}

/// Whose leftovers are looked for.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// The identity of the state directory whose leftovers are looked for.
    pub state_id: Option<&'a str>,
    /// The live boot of that directory, if there is one.
    pub boot_id: Option<&'a str>,
    /// The process that owns the state directory, if there is one: its descendants are no leftovers.
    pub owner: Option<u32>,
    /// Shims whose agents go on, by pid and start time: nor are these and their descendants.
    pub kept: &'a [(u32, u64)],
}

impl Claim<'_> {
    /// The processes of a picture that dead boots of this state directory left: marked processes, and processes with a
    /// cleared environment that have their tag or descend from them. A process without a directory's identity was made
    /// by an older version: it counts only if its session is known here and it descends from no live daemon.
    fn choose(
        &self,
        picture: &Picture,
        is_daemon: impl Fn(&Stat) -> bool,
        tag: impl Fn(u32) -> Option<Tag>,
    ) -> Vec<Leftover> {
        let mut spared = picture.untouchable();
        if let Some(owner) = self.owner {
            spared.insert(owner);
            spared.extend(picture.descendants(owner).iter().map(|(s, _)| s.pid));
        }
        for (pid, start) in self.kept {
            if picture.all.iter().any(|(s, _)| s.pid == *pid && s.start == *start) {
                spared.insert(*pid);
                spared.extend(picture.descendants(*pid).iter().map(|(s, _)| s.pid));
            }
        }
        let dead = |l: &Leftover| {
            let ours = match &l.state_id {
                Some(id) => self.state_id == Some(id),
                None => !picture.ancestors(l.pid).into_iter().any(&is_daemon),
            };
            ours && self.boot_id != Some(&l.boot_id) && !spared.contains(&l.pid)
        };
        let mut found: Vec<Leftover> = marked(picture).filter(dead).collect();
        if let Some(state_id) = self.state_id {
            // The kernel's own threads have neither an environment nor a parent of ours.
            let unmarked = picture.all.iter().filter(|(s, marks)| marks.is_none() && s.is_live() && s.parent != 2);
            for (stat, _) in unmarked.filter(|(s, _)| !spared.contains(&s.pid)) {
                if let Some(tag) = tag(stat.pid).filter(|tag| tag.is_of(state_id)) {
                    let state_id = Some(state_id.to_owned());
                    found.push(Leftover { state_id, sid: tag.sid(), ..Leftover::unmarked(stat) });
                }
            }
        }
        let mut known: HashSet<u32> = found.iter().map(|l| l.pid).collect();
        let mut at = 0;
        while let Some(parent) = found.get(at).cloned() {
            for (stat, marks) in picture.descendants(parent.pid) {
                if marks.is_none() && !spared.contains(&stat.pid) && known.insert(stat.pid) {
                    let (session_id, state_id) = (parent.session_id.clone(), parent.state_id.clone());
                    found.push(Leftover { session_id, sid: parent.sid, state_id, ..Leftover::unmarked(stat) });
                }
            }
            at += 1;
        }
        found
    }
}

/// The processes that dead boots of a state directory left running. A process without a directory's identity is of an
/// older version, and not ours if its session is not known. Processes of another directory, or of a copy of this one,
/// are never among them.
#[must_use]
pub fn find_dead(claim: &Claim<'_>) -> Vec<Leftover> {
    // Its name, or, should it have another one, the lock of a state directory.
    let is_daemon = |s: &Stat| {
        s.is_live()
            && (s.name == "ostler"
                || procfs::locked_files(s.pid).iter().any(|f| f.file_name() == Some("lock".as_ref())))
    };
    claim.choose(&procfs::picture(), is_daemon, procfs::tag)
}

/// The live processes that carry a boot marker: of that session if one is given, and not of the boot `not_boot`.
/// Processes of other daemons are among them, so this alone does not justify ending any.
#[must_use]
pub fn find_marked(session_id: Option<&str>, not_boot: Option<&str>) -> Vec<Leftover> {
    let wanted = |l: &Leftover| {
        session_id.is_none_or(|id| l.session_id.as_deref() == Some(id)) && not_boot.is_none_or(|id| l.boot_id != id)
    };
    marked(&procfs::picture()).filter(wanted).collect()
}

/// The marked live processes of a picture that may be signalled.
fn marked(picture: &Picture) -> impl Iterator<Item = Leftover> {
    let spared = picture.untouchable();
    picture.all.iter().filter_map(move |(stat, marks)| {
        let marks = marks.as_ref().filter(|_| !spared.contains(&stat.pid))?;
        Some(Leftover {
            pid: stat.pid,
            start: stat.start,
            session_id: marks.session_id.clone(),
            sid: None,
            boot_id: marks.boot_id.clone(),
            state_id: marks.state_id.clone(),
            name: stat.name.clone(),
        })
    })
}

/// A process held by a descriptor, so that a signal cannot reach another process with its reused pid.
#[derive(Debug)]
pub(super) struct Target {
    pid: u32,
    name: String,
    fd: OwnedFd,
}

impl Target {
    /// Takes hold of it; `None` when it is gone or is another process now.
    pub fn hold(leftover: &Leftover) -> Option<Self> {
        // Looked at after the descriptor was opened: if these still agree, the descriptor is the one that was found.
        // The markers can be gone, if it became another program with a cleared environment; but they do not change.
        let same = || {
            let unmarked = leftover.boot_id.is_empty();
            let others = procfs::marks(leftover.pid).filter(|_| !unmarked).is_some_and(|m| {
                (&m.session_id, &m.boot_id, &m.state_id)
                    != (&leftover.session_id, &leftover.boot_id, &leftover.state_id)
            });
            is_alive(leftover.pid, leftover.start) && !others
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

    /// Its pid and name, for people.
    pub fn name(&self) -> String {
        format!("process {} ({})", self.pid, self.name)
    }

    /// Sends it a signal. A process that is gone is no error.
    pub fn signal(&self, signal: Signal) {
        if let Err(e) = rustix::process::pidfd_send_signal(&self.fd, signal)
            && e != rustix::io::Errno::SRCH
        {
            log::warn!("{}: cannot signal it: {e}", self.name());
        }
    }

    /// Whether it has ended (as a zombie too).
    pub fn is_gone(&self) -> bool {
        has_ended(self.fd.as_fd())
    }
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Ends the orphans of agents: live children of this process that it did not make and did not inherit. Where the system
/// keeps tags, only those with a tag or marks of this boot: other children came with the inherited ones. For the end of
/// a stop, when every agent is closed. Blocks until all are gone or the instant has passed, and returns a line for each
/// that could not be ended.
#[must_use]
pub fn end_orphans(until: Instant) -> Vec<String> {
    let me = std::process::id();
    let ours = |stat: &Stat, boot_id: Option<&str>| match mark::own_tag(0) {
        Some(own) => {
            procfs::tag(stat.pid).is_some_and(|tag| tag.same_boot(own))
                || (boot_id.is_some() && boot_id == mark::own_boot())
        }
        None => true,
    };
    loop {
        let picture = procfs::picture();
        let own_group = picture.all.iter().find(|(s, _)| s.pid == me).map(|(s, _)| s.group);
        let orphans = picture.all.iter().filter(|(s, marks)| {
            s.parent == me
                && s.is_live()
                && Some(s.group) != own_group
                && !crate::proc::is_registered(s.pid)
                && !crate::proc::is_inherited(s)
                && ours(s, marks.as_ref().map(|m| m.boot_id.as_str()))
        });
        let mut left: Vec<Target> = orphans.filter_map(|(s, _)| Target::hold_known(s)).collect();
        for target in &left {
            log::warn!("{}: left behind by an agent; killing it", target.name());
            target.signal(Signal::KILL);
        }
        let none = left.is_empty();
        wait_gone(&mut left, until);
        crate::proc::reap_strays();
        // The children of an ended orphan are orphans now: look again until none is found.
        if none || Instant::now() >= until {
            return left.iter().map(Target::name).collect();
        }
    }
}

/// Ends leftovers: SIGTERM, and after a third of the time (at most 2 s) SIGKILL to those that are left. Blocks until
/// all are gone or the instant has passed, and returns those that it could not end.
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

/// The same at once: SIGKILL.
#[must_use]
pub fn kill_leftovers(leftovers: &[Leftover], until: Instant) -> Vec<Leftover> {
    let mut left: Vec<Target> = leftovers.iter().filter_map(Target::hold).collect();
    left.iter().for_each(|t| t.signal(Signal::KILL));
    wait_gone(&mut left, until);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::mark::Marks;

    fn process(pid: u32, parent: u32, name: &str, marks: Option<(&str, Option<&str>)>) -> (Stat, Option<Marks>) {
        let stat = Stat { pid, name: name.to_owned(), state: 'S', parent, group: pid, start: u64::from(pid) };
        let marks = marks.map(|(boot, state)| Marks {
            session_id: Some("s".to_owned()),
            boot_id: boot.to_owned(),
            state_id: state.map(str::to_owned),
        });
        (stat, marks)
    }

    #[test]
    fn only_the_dead_boots_of_one_directory_leave_something() {
        let base = 4_000_000_000;
        let pid = |n: u32| base + n;
        let picture = Picture::of(vec![
            process(1, 0, "init", None),
            process(pid(10), 1, "ostler", None),
            process(pid(11), pid(10), "own", Some(("live", Some("here")))),
            process(pid(12), pid(10), "there-at-the-start", Some(("dead", Some("here")))),
            process(pid(20), 1, "dead", Some(("dead", Some("here")))),
            process(pid(21), 1, "away-from-its-line", Some(("live", Some("here")))),
            process(pid(30), 1, "copy's", Some(("dead", Some("copy")))),
            process(pid(40), 1, "older", Some(("dead", None))),
            process(pid(50), 1, "ostler", None),
            process(pid(51), pid(50), "sh", None),
            process(pid(52), pid(51), "older-of-another", Some(("dead", None))),
            process(pid(60), 1, "unmarked", None),
            process(pid(61), 1, "tagged", None),
            process(pid(62), 1, "tagged-copy's", None),
            process(pid(63), pid(10), "tagged-own", None),
            process(pid(64), 1, "tagged-of-none", None),
            process(pid(70), pid(20), "cleared", None),
            process(pid(71), pid(70), "cleared-below", None),
            process(pid(72), pid(71), "another's-below", Some(("live", Some("copy")))),
        ]);
        let tag = |of: u32| match of - base {
            61 => Some(Tag::new("here", "dead", 7)),
            62 => Some(Tag::new("copy", "dead", 7)),
            63 => Some(Tag::new("here", "live", 7)),
            64 => Some(Tag::new("here", "dead", 0)),
            _ => None,
        };
        let is_daemon = |s: &Stat| s.name == "ostler";
        let found = |claim: Claim<'_>| -> Vec<String> {
            claim.choose(&picture, is_daemon, tag).into_iter().map(|l| l.name).collect()
        };
        let claim = Claim { state_id: Some("here"), boot_id: Some("live"), owner: Some(pid(10)), kept: &[] };
        assert_eq!(found(claim), ["dead", "older", "tagged", "tagged-of-none", "cleared", "cleared-below"]);
        let of = |name: &str| claim.choose(&picture, is_daemon, tag).into_iter().find(|l| l.name == name);
        assert_eq!(of("tagged").map(|l| (l.session_id, l.sid)), Some((None, Some(7))));
        assert_eq!(of("cleared-below").map(|l| (l.session_id, l.sid)), Some((Some("s".to_owned()), None)));
        assert_eq!(
            found(Claim { boot_id: None, owner: None, ..claim }),
            [
                "own",
                "there-at-the-start",
                "dead",
                "away-from-its-line",
                "older",
                "tagged",
                "tagged-own",
                "tagged-of-none",
                "cleared",
                "cleared-below"
            ]
        );
        assert_eq!(
            found(Claim { state_id: None, boot_id: Some("dead"), owner: None, kept: &[] }),
            Vec::<String>::new()
        );
    }
}
