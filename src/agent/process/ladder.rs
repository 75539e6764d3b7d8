//! How a process ends, with everything that it started.
//!
//! The rungs: end of input, SIGTERM to the group, SIGKILL to the group, SIGKILL to processes that left the group. Those
//! are found by their markers or, if they cleared their environment, by their descent or their tag, among the processes
//! that began after the leader. A rung is skipped when no process is left for it, each rung has a share of the time,
//! and when the host asks for a kill the first two are skipped. A group kill alone is not enough: agents start their
//! tools in sessions of their own.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::leftovers::Target;
use super::{Parent, Process};
use crate::agent::{Host, Interrupt, Watch};
use crate::proc::mark::Marks;
use crate::proc::procfs::{self, Stat};
use crate::proc::{self, moment};
use crate::shim::frame::Ladder;

/// The longest wait of each rung before the kill.
const PATIENCE: Duration = Duration::from_secs(2);

/// A killed process has at least this long to be gone, however late it is; else it would be reported as one that cannot
/// be ended.
pub(super) const LAST_BREATH: Duration = Duration::from_millis(100);

/// Where the ladder begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// Close stdin and wait.
    EndOfInput,
    /// SIGTERM to the group.
    Terminate,
    /// SIGKILL to the group.
    Kill,
}

/// The live processes below a shim.
fn below(shim: u32) -> Vec<Target> {
    let picture = procfs::picture();
    let all = picture.descendants(shim);
    all.iter().filter(|(s, _)| s.is_live()).filter_map(|(s, _)| Target::hold_known(s)).collect()
}

/// The rungs of a shim, over by the instant.
fn ladder_until(until: Instant) -> Ladder {
    let patience = (until.saturating_duration_since(Instant::now()) / 3).min(PATIENCE);
    let millis = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
    Ladder { input: millis, term: millis, kill: millis, linger: 100 }
}

impl Rung {
    /// As a shim knows it.
    const fn of_shim(self) -> crate::shim::frame::Rung {
        match self {
            Self::EndOfInput => crate::shim::frame::Rung::EndOfInput,
            Self::Terminate => crate::shim::frame::Rung::Terminate,
            Self::Kill => crate::shim::frame::Rung::Kill,
        }
    }
}

impl Process {
    /// Ends it and all it started, over by the instant. Returns a line for each process that could not be ended.
    pub fn end(mut self, host: &mut dyn Host, from: Rung, until: Instant) -> Vec<String> {
        if matches!(self.body, Parent::Kept(_)) {
            return self.end_kept(host, from, until);
        }
        // Looked for while the leader lives: afterwards its descendants cannot be told from others.
        let gone = self.is_gone();
        let family = self.relatives();
        let over = gone && family.is_empty();
        let patience = (until.saturating_duration_since(Instant::now()) / 3).min(PATIENCE);
        if from <= Rung::EndOfInput {
            if let Parent::Piped(child) = &mut self.body {
                child.close_input();
            }
            self.wait_for(host, Instant::now() + patience, &[], true);
        }
        if from <= Rung::Terminate && !over {
            let members = self.group_members();
            if !self.is_gone() || !members.is_empty() {
                self.signal_group(Signal::TERM);
                self.wait_for(host, Instant::now() + patience, &members, true);
            }
        }
        // Harmless for an empty group: the unreaped leader keeps its id from being reused.
        self.signal_group(Signal::KILL);
        let left = self.sweep(host, until.max(Instant::now() + LAST_BREATH), &family);
        self.reap();
        left
    }

    /// Below a shim: ends it and all it started, but leaves it to a later [`Process::end`] to acknowledge the exit. So a
    /// daemon that dies before the turn's outcome is durable is told of it by the shim.
    pub fn wind_down(&mut self, host: &mut dyn Host, from: Rung, until: Instant) {
        let late = until.max(Instant::now() + LAST_BREATH);
        let ladder = ladder_until(until);
        let mut rung = from;
        let Parent::Kept(kept) = &mut self.body else { return };
        let shim = kept.shim();
        kept.end(rung.of_shim(), ladder);
        let mut thrown_away = Vec::new();
        loop {
            // What it started is below the shim too, which ends it once the agent is gone.
            let family = if self.is_gone() { below(shim) } else { Vec::new() };
            if self.is_gone() && family.is_empty() || Instant::now() >= late {
                return;
            }
            if rung < Rung::Kill && host.interrupt() == Some(Interrupt::Kill) {
                rung = Rung::Kill;
                if let Parent::Kept(kept) = &mut self.body {
                    kept.end(rung.of_shim(), ladder);
                }
            }
            let mut watches = self.watches();
            watches.extend(family.iter().map(|t| Watch { fd: t.as_fd(), read: true, write: false, ready: false }));
            host.wait(&mut watches, Some(late));
            self.take_in(&mut thrown_away);
            thrown_away.clear();
        }
    }

    /// Has its shim end it and all it started. What a shim that is gone or late has left is found as without one.
    fn end_kept(&mut self, host: &mut dyn Host, from: Rung, until: Instant) -> Vec<String> {
        let ladder = ladder_until(until);
        let Parent::Kept(kept) = &mut self.body else { return Vec::new() };
        let mut rung = from;
        kept.discard();
        kept.end(rung.of_shim(), ladder);
        let late = until.max(Instant::now() + LAST_BREATH);
        let mut thrown_away = Vec::new();
        loop {
            self.take_in(&mut thrown_away);
            thrown_away.clear();
            if self.has_exited() || Instant::now() >= late {
                break;
            }
            if rung < Rung::Kill && host.interrupt() == Some(Interrupt::Kill) {
                rung = Rung::Kill;
                if let Parent::Kept(kept) = &mut self.body {
                    kept.end(rung.of_shim(), ladder);
                }
            }
            host.wait(&mut self.watches(), Some(late));
        }
        let mut left = Vec::new();
        let Parent::Kept(kept) = &mut self.body else { return left };
        let (shim, told) = (kept.name().to_owned(), kept.exit().cloned());
        match &told {
            Some(exit) => {
                left.extend(exit.named.iter().map(|pid| format!("process {pid}")));
                kept.dismiss(Instant::now() + Duration::from_secs(1));
            }
            None => {
                // Looked for only now: a stop of many agents must not read all processes for each of them.
                let family = self.relatives();
                if let Parent::Kept(kept) = &mut self.body {
                    kept.kill_shim();
                    kept.dismiss(Instant::now() + Duration::from_secs(1));
                }
                left = self.sweep(host, late, &family);
            }
        }
        if left.is_empty() {
            host.shim_ended(&shim);
        }
        self.reap();
        left
    }

    /// Kills all of it now, without waiting; processes that are not dead at once are reaped later.
    pub fn end_now(self) {
        drop(self);
    }

    /// What a drop does, for instance when the stack of a dead worker is unwound.
    pub(super) fn kill(&mut self) {
        if !self.ended {
            if let Parent::Kept(kept) = &mut self.body {
                // Its shim is told to, and goes on to do it.
                kept.discard();
                kept.end(crate::shim::frame::Rung::Kill, Ladder::default());
                kept.dismiss(Instant::now() + LAST_BREATH);
                return self.reap();
            }
            let family = self.relatives();
            self.signal_group(Signal::KILL);
            self.strays(&family).iter().for_each(|t| t.signal(Signal::KILL));
            self.reap();
        }
    }

    /// Kills processes with our markers until none is found or the instant passes, and waits for the leader too.
    fn sweep(&mut self, host: &mut dyn Host, until: Instant, family: &[Stat]) -> Vec<String> {
        loop {
            let strays = self.strays(family);
            if !self.is_gone()
                && let Parent::Piped(child) = &self.body
            {
                child.kill();
            }
            strays.iter().for_each(|t| t.signal(Signal::KILL));
            if self.wait_for(host, until, &strays, false) && strays.is_empty() {
                return Vec::new();
            }
            if Instant::now() >= until {
                let mut left: Vec<String> = strays.iter().filter(|t| !t.is_gone()).map(|t| t.name()).collect();
                if left.is_empty() && !self.is_gone() {
                    left.push(format!("process {} ({})", self.id(), self.name));
                }
                return left;
            }
        }
    }

    /// The live processes that belong to it now, and those of the family that still live.
    fn strays(&self, family: &[Stat]) -> Vec<Target> {
        let mut all = self.relatives();
        all.extend_from_slice(family);
        let mut seen = HashSet::new();
        all.retain(|s| seen.insert(s.pid));
        all.iter().filter_map(Target::hold_known).collect()
    }

    /// All live processes beside the leader that belong to it: its group; processes with the markers of this session
    /// and boot; and, of processes without markers, the descendants of the leader and those with its tag. Processes
    /// with the markers of another boot or session belong to another daemon, which ends them.
    fn relatives(&self) -> Vec<Stat> {
        let picture = moment::since(self.moment.as_ref());
        let spared = picture.untouchable();
        let below: HashSet<u32> = picture.descendants(self.id()).iter().map(|(s, _)| s.pid).collect();
        let belongs = |stat: &Stat, marks: Option<&Marks>| {
            stat.group == self.id()
                || match marks {
                    Some(m) => m.boot_id == self.boot_id && m.session_id.as_deref() == Some(&self.session_id),
                    None => {
                        let tagged = || stat.start >= self.start && procfs::tag(stat.pid) == self.tag;
                        below.contains(&stat.pid) || (self.tag.is_some() && tagged())
                    }
                }
        };
        let others = picture.all.iter().filter(|(s, _)| s.pid != self.id() && s.is_live() && !spared.contains(&s.pid));
        others.filter(|(s, marks)| belongs(s, marks.as_ref())).map(|(s, _)| s.clone()).collect()
    }

    /// The live members of the group beside its leader, marked or not.
    fn group_members(&self) -> Vec<Target> {
        self.relatives().iter().filter(|s| s.group == self.id()).filter_map(Target::hold_known).collect()
    }

    /// Waits until the leader and the targets have ended. The child's output is thrown away meanwhile, so that it does
    /// not hang on a full pipe. False when the instant passed first, or (if `gentle`) when the host wants it killed.
    fn wait_for(&mut self, host: &mut dyn Host, until: Instant, targets: &[Target], gentle: bool) -> bool {
        let mut thrown_away = Vec::new();
        loop {
            self.take_in(&mut thrown_away);
            thrown_away.clear();
            let left: Vec<&Target> = targets.iter().filter(|t| !t.is_gone()).collect();
            if self.has_exited() && left.is_empty() {
                return true;
            }
            if Instant::now() >= until || (gentle && host.interrupt() == Some(Interrupt::Kill)) {
                return false;
            }
            let mut watches = self.watches();
            watches.extend(left.iter().map(|t| Watch { fd: t.as_fd(), read: true, write: false, ready: false }));
            host.wait(&mut watches, Some(until));
        }
    }

    fn reap(&mut self) {
        self.ended = true;
        if let Parent::Piped(child) = &mut self.body {
            child.reap();
        }
        proc::reap_strays();
    }
}
