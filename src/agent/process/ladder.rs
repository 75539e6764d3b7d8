//! How a process ends, with everything that it started.
//!
//! End of input, SIGTERM to the group, SIGKILL to the group, SIGKILL to what left the group and is found by its markers
//! or, if it cleared its environment, by its descent or its tag. Only what began since the leader did is looked at.
//! Each rung is skipped when nothing is left for it, each has a share of the time, and a kill asked for by the host
//! skips to the last two. A group kill alone is not enough: agents start their tools in sessions of their own.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::Process;
use super::leftovers::Target;
use crate::agent::{Host, Interrupt, Watch};
use crate::proc::mark::Marks;
use crate::proc::procfs::{self, Stat};
use crate::proc::{self, moment};

/// The most that each of the rungs before the kill waits.
const PATIENCE: Duration = Duration::from_secs(2);

/// A killed process is given at least so long to be gone, however late it is: else it would be told as one that cannot
/// be ended.
const LAST_BREATH: Duration = Duration::from_millis(100);

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

impl Process {
    /// Ends it and all it started, over by the instant. Returns a line for each process that could not be ended.
    pub fn end(mut self, host: &mut dyn Host, from: Rung, until: Instant) -> Vec<String> {
        // Before the leader is gone: what descends from it is nobody's afterwards.
        let gone = self.is_gone();
        let family = self.relatives();
        let over = gone && family.is_empty();
        let patience = (until.saturating_duration_since(Instant::now()) / 3).min(PATIENCE);
        if from <= Rung::EndOfInput {
            self.child.close_input();
            self.wait_for(host, Instant::now() + patience, &[], true);
        }
        if from <= Rung::Terminate && !over {
            let members = self.group_members();
            if !self.is_gone() || !members.is_empty() {
                self.signal_group(Signal::TERM);
                self.wait_for(host, Instant::now() + patience, &members, true);
            }
        }
        // Harmless when nobody is left in it: the unreaped leader keeps the group's id from being given to another.
        self.signal_group(Signal::KILL);
        let left = self.sweep(host, until.max(Instant::now() + LAST_BREATH), &family);
        self.reap();
        left
    }

    /// Kills all of it now, without waiting; what is not dead at once is reaped later.
    pub fn end_now(self) {
        drop(self);
    }

    /// What a dropped one does: it may be the stack of a worker that died.
    pub(super) fn kill(&mut self) {
        if !self.ended {
            let family = self.relatives();
            self.signal_group(Signal::KILL);
            self.strays(&family).iter().for_each(|t| t.signal(Signal::KILL));
            self.reap();
        }
    }

    /// Kills what carries our markers until nothing is found or the instant passes, and waits for the leader too.
    fn sweep(&mut self, host: &mut dyn Host, until: Instant, family: &[Stat]) -> Vec<String> {
        loop {
            let strays = self.strays(family);
            if !self.is_gone() {
                self.child.kill();
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

    /// What belongs to it and is there, and of the family whoever still lives.
    fn strays(&self, family: &[Stat]) -> Vec<Target> {
        let mut all = self.relatives();
        all.extend_from_slice(family);
        let mut seen = HashSet::new();
        all.retain(|s| seen.insert(s.pid));
        all.iter().filter_map(Target::hold_known).collect()
    }

    /// All live processes beside the leader that belong to it: its group, what carries the markers of this session and
    /// boot, wherever it went, and of what carries none, for its environment was cleared, what descends from the leader or
    /// has its tag. Those with the markers of another boot or session belong to another daemon, which answers for them.
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

    /// Waits until the leader and the targets have ended; what the child still writes is thrown away, so that a full pipe
    /// holds up nobody. False when the instant passed first, or (if `gentle`) when the host wants it killed.
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
        self.child.reap();
        proc::reap_strays();
    }
}
