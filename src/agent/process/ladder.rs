//! How a process ends, with everything that it started.
//!
//! End of input, SIGTERM to the group, SIGKILL to the group, SIGKILL to what left the group and is found by its markers
//! or, if it cleared its environment, by its descent.
//! Each rung is skipped when nothing is left for it, each has a share of the time, and a kill asked for by the host
//! skips to the last two. A group kill alone is not enough: agents start their tools in sessions of their own.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::Process;
use super::leftovers::{Target, marked};
use crate::agent::{Host, Interrupt, Watch};
use crate::proc::procfs::Stat;
use crate::proc::{self, procfs};

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
        let family = self.family();
        let patience = (until.saturating_duration_since(Instant::now()) / 3).min(PATIENCE);
        if from <= Rung::EndOfInput {
            self.close_stdin();
            self.wait_for(host, Instant::now() + patience, &[], true);
        }
        if from <= Rung::Terminate {
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
            let family = self.family();
            self.signal_group(Signal::KILL);
            self.strays(&family).iter().for_each(|t| t.signal(Signal::KILL));
            self.reap();
        }
    }

    fn close_stdin(&mut self) {
        self.stdin = None;
        self.outgoing = Vec::new();
        self.written = 0;
    }

    /// Kills what carries our markers until nothing is found or the instant passes, and waits for the leader too.
    fn sweep(&mut self, host: &mut dyn Host, until: Instant, family: &[Stat]) -> Vec<String> {
        loop {
            let strays = self.strays(family);
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

    /// What carries the markers of this session and boot, wherever it went, the leader too; and of the family whoever
    /// still lives.
    fn strays(&self, family: &[Stat]) -> Vec<Target> {
        let mut found: Vec<Target> = marked(&procfs::picture())
            .filter(|l| l.boot_id == self.boot_id && l.session_id.as_deref() == Some(&self.session_id))
            .filter_map(|l| Target::hold(&l))
            .collect();
        let others = family.iter().filter_map(Target::hold_known).filter(|t| found.iter().all(|f| f.pid() != t.pid()));
        let others: Vec<Target> = others.collect();
        found.extend(others);
        found
    }

    /// The descendants of the leader that carry no markers at all: their environment was cleared. Those with the markers
    /// of another boot or session belong to another daemon, which answers for them.
    fn family(&self) -> Vec<Stat> {
        let picture = procfs::picture();
        let descendants = picture.descendants(self.id());
        descendants.into_iter().filter(|(_, marks)| marks.is_none()).map(|(stat, _)| stat.clone()).collect()
    }

    /// The live members of the group beside its leader, marked or not.
    fn group_members(&self) -> Vec<Target> {
        let picture = procfs::picture();
        let others = picture.all.iter().filter(|(s, _)| s.group == self.id() && s.pid != self.id() && s.is_live());
        others.filter_map(|(s, _)| Target::hold_known(s)).collect()
    }

    /// Waits until the leader and the targets have ended; what the child still writes is thrown away, so that a full pipe
    /// holds up nobody. False when the instant passed first, or (if `gentle`) when the host wants it killed.
    fn wait_for(&mut self, host: &mut dyn Host, until: Instant, targets: &[Target], gentle: bool) -> bool {
        let mut thrown_away = Vec::new();
        loop {
            self.take_in(&mut thrown_away);
            thrown_away.clear();
            let left: Vec<&Target> = targets.iter().filter(|t| !t.is_gone()).collect();
            if self.exited && left.is_empty() {
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
        let _ = self.child.try_wait();
        proc::reap_strays();
    }
}
