//! What a shim does next: a pure machine over what happens to it. Time is passed in, in milliseconds of a clock that also
//! runs while the machine sleeps (CLOCK_BOOTTIME).
//!
//! ```text
//! Waiting ──START──► Running ──END, SIGTERM, orphaned──► Ending(EndOfInput → Terminate → Kill)
//!    │ no START         │                                     │                     │
//!    ▼                  └──────── the agent is gone ──────────┴──► Lingering        │
//!   Left                                                              │ pipes closed, or 500 ms
//!    ▲                                                                ▼             ▼
//!    └── exit acknowledged, or nobody came for it ── Gone ◄── no child is left ── Sweeping
//! ```
//!
//! The agent's own process (the leader) may be gone long before what it started. Whoever holds its pipes has a moment to
//! finish, then all of them are ended. The order of the ladder only rises: a later END shortens it and never begins anew.

use super::frame::{Exit, Ladder, Rung, Standing, Status};

/// Milliseconds of CLOCK_BOOTTIME.
pub type Millis = u64;

/// However late it is, what was killed has so long to be gone.
const LAST_BREATH: u32 = 100;

/// The times of a shim that has no START yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How long it waits for START.
    pub start: u32,
    /// How long a connection has to prove whose it is.
    pub hello: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self { start: 10_000, hello: 5_000 }
    }
}

/// What the loop is to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Close the agent's input; what waits for it is dropped.
    CloseInput,
    /// SIGTERM to the agent's group.
    Terminate,
    /// SIGKILL to the agent's group and control group, and to all that descends from the shim.
    Kill,
    /// The pipes are read until nothing is there, and closed: whoever still holds them is none of ours.
    ClosePipes,
    /// Take the socket's name away and leave.
    Leave,
}

/// What becomes of a daemon that has proved whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the shim's daemon from now on; a connection from before is cut.
    Accepted,
    /// A newer boot was here: that number.
    Stale(u64),
    /// Its offset is not among what is kept: the nearest that is.
    NoOffset(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Until then for START.
    Waiting(Millis),
    Running,
    /// At which rung, and until when.
    Ending(Rung, Millis),
    /// The leader is gone; others may hold its pipes until then.
    Lingering(Millis),
    /// All is killed; until then for it to be gone.
    Sweeping(Millis),
    Gone,
    Left,
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    patience: Patience,
    phase: Phase,
    ladder: Ladder,
    /// The highest boot that ever attached.
    boot: u64,
    attached: bool,
    /// How long the agent may live without a connection.
    orphan: Millis,
    /// When it is an orphan for too long.
    orphan_at: Option<Millis>,
    /// When it is ended, connection or not.
    lease_at: Option<Millis>,
    leader: Option<Status>,
    pipes_closed: bool,
    /// Nobody is expected to ask for the exit.
    forsaken: bool,
    exit: Option<Exit>,
    actions: Vec<Action>,
}

impl Machine {
    /// A shim that waits for START.
    #[must_use]
    pub const fn new(now: Millis, patience: Patience) -> Self {
        Self {
            patience,
            phase: Phase::Waiting(now.saturating_add(patience.start as Millis)),
            ladder: Ladder { input: 2000, term: 2000, kill: 2000, linger: 500 },
            boot: 0,
            attached: false,
            orphan: 0,
            orphan_at: None,
            lease_at: None,
            leader: None,
            pipes_closed: false,
            forsaken: false,
            exit: None,
            actions: Vec::new(),
        }
    }

    /// What is to be done now, in this order. Each is said once.
    pub fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Where the agent stands.
    #[must_use]
    pub const fn standing(&self) -> Standing {
        match self.phase {
            Phase::Waiting(_) => Standing::Waiting,
            Phase::Running => Standing::Running,
            Phase::Ending(..) | Phase::Lingering(_) | Phase::Sweeping(_) => Standing::Ending,
            Phase::Gone | Phase::Left => Standing::Gone,
        }
    }

    /// How the agent's own process ended, if it did.
    #[must_use]
    pub const fn status(&self) -> Option<Status> {
        self.leader
    }

    /// Whether all that can be ended is being ended now.
    #[must_use]
    pub const fn is_sweeping(&self) -> bool {
        matches!(self.phase, Phase::Sweeping(_) | Phase::Ending(Rung::Kill, _))
    }

    /// The end, once all is over. It is told when the output that the shim keeps is acknowledged.
    #[must_use]
    pub const fn exit(&self) -> Option<&Exit> {
        self.exit.as_ref()
    }

    /// The next instant at which [`Self::tick`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Millis> {
        let own = match self.phase {
            Phase::Waiting(until) | Phase::Ending(_, until) | Phase::Lingering(until) | Phase::Sweeping(until) => {
                Some(until)
            }
            Phase::Running | Phase::Gone | Phase::Left => None,
        };
        // An agent that is being ended is not ended again, and one that was never started has a patience of its own.
        let alone = match self.phase {
            Phase::Running => [self.orphan_at, self.lease_at],
            Phase::Gone => [self.orphan_at, None],
            _ => [None, None],
        };
        own.into_iter().chain(alone.into_iter().flatten()).min()
    }

    /// A daemon has proved whose it is. `from`: the offset up to which it has kept the output; `held`: what is here.
    pub fn attach(&mut self, now: Millis, boot: u64, from: u64, held: std::ops::RangeInclusive<u64>) -> Verdict {
        if boot < self.boot {
            return Verdict::Stale(self.boot);
        }
        if !held.contains(&from) {
            return Verdict::NoOffset(from.clamp(*held.start(), *held.end()));
        }
        self.boot = boot;
        self.attached = true;
        self.orphan_at = None;
        if let Phase::Waiting(until) = &mut self.phase {
            *until = now.saturating_add(self.patience.start.into());
        }
        Verdict::Accepted
    }

    /// The daemon's connection has ended.
    pub fn detach(&mut self, now: Millis) {
        self.attached = false;
        self.orphan_at = Some(now.saturating_add(self.orphan));
        if self.forsaken && self.phase == Phase::Gone {
            self.leave();
        }
    }

    /// The agent was started.
    pub fn started(&mut self, now: Millis, ladder: Ladder, orphan: Millis) {
        if let Phase::Waiting(_) = self.phase {
            self.phase = Phase::Running;
            self.ladder = ladder;
            self.orphan = orphan;
            if !self.attached {
                self.orphan_at = Some(now.saturating_add(orphan));
            }
        }
    }

    /// ORPHAN: how long it may be alone, and how long at all (0: no such bound).
    pub fn set_orphan(&mut self, now: Millis, after: Millis, lease: Millis) {
        self.orphan = after;
        self.lease_at = (lease > 0).then(|| now.saturating_add(lease));
        if !self.attached {
            self.orphan_at = Some(now.saturating_add(after));
        }
    }

    /// END: the ladder from a rung on.
    pub fn end(&mut self, now: Millis, rung: Rung, ladder: Ladder) {
        match self.phase {
            Phase::Waiting(_) => self.leave(),
            Phase::Running => {
                self.ladder = ladder;
                self.climb(now, rung);
            }
            Phase::Ending(at, _) if rung > at => {
                self.ladder = ladder;
                self.climb(now, rung);
            }
            Phase::Ending(at, until) => {
                self.ladder = ladder;
                self.phase = Phase::Ending(at, until.min(self.rung_until(now, at)));
            }
            Phase::Lingering(until) => {
                self.ladder = ladder;
                let new = now.saturating_add(ladder.linger.into());
                if rung == Rung::Kill { self.sweep(now) } else { self.phase = Phase::Lingering(until.min(new)) }
            }
            Phase::Sweeping(_) | Phase::Gone | Phase::Left => {}
        }
    }

    /// SIGTERM to the shim itself: the agent is ended, and nobody is expected to ask how.
    pub fn terminated(&mut self, now: Millis) {
        self.forsaken = true;
        match self.phase {
            Phase::Gone if !self.attached => self.leave(),
            _ => self.end(now, Rung::EndOfInput, self.ladder),
        }
    }

    /// The agent's own process is gone.
    pub fn leader_gone(&mut self, now: Millis, status: Status) {
        self.leader.get_or_insert(status);
        match self.phase {
            Phase::Running | Phase::Ending(Rung::EndOfInput | Rung::Terminate, _) => {
                self.actions.push(Action::CloseInput);
                self.phase = Phase::Lingering(now.saturating_add(self.ladder.linger.into()));
                if self.pipes_closed {
                    self.sweep(now);
                }
            }
            Phase::Ending(Rung::Kill, until) => self.phase = Phase::Sweeping(until),
            Phase::Waiting(_) | Phase::Lingering(_) | Phase::Sweeping(_) | Phase::Gone | Phase::Left => {}
        }
    }

    /// Both of the agent's pipes are at their end.
    pub fn pipes_closed(&mut self, now: Millis) {
        self.pipes_closed = true;
        if let Phase::Lingering(_) = self.phase {
            self.sweep(now);
        }
    }

    /// A child died while all is being ended; `left`: the shim's descendants that live still. Others may have come
    /// to light.
    pub fn child_died(&mut self, now: Millis, left: &[u32]) {
        match self.phase {
            Phase::Sweeping(_) if left.is_empty() => self.gone(now, left),
            Phase::Sweeping(_) | Phase::Ending(Rung::Kill, _) => self.actions.push(Action::Kill),
            _ => {}
        }
    }

    /// The exit was acknowledged.
    pub fn exit_acknowledged(&mut self) {
        if self.phase == Phase::Gone {
            self.leave();
        }
    }

    /// Time has passed; `left` as for [`Self::child_died`], asked for only while all is being ended.
    pub fn tick(&mut self, now: Millis, left: impl FnOnce() -> Vec<u32>) {
        let over = |at: Option<Millis>| at.is_some_and(|at| now >= at);
        match self.phase {
            Phase::Waiting(until) if now >= until => self.leave(),
            Phase::Running if over(self.orphan_at) || over(self.lease_at) => {
                self.forsaken = true;
                self.climb(now, Rung::EndOfInput);
            }
            Phase::Ending(rung, until) if now >= until => match rung {
                Rung::EndOfInput => self.climb(now, Rung::Terminate),
                Rung::Terminate => self.climb(now, Rung::Kill),
                Rung::Kill => self.gone(now, &left()),
            },
            Phase::Lingering(until) if now >= until => self.sweep(now),
            Phase::Sweeping(until) if now >= until => self.gone(now, &left()),
            Phase::Gone if !self.attached && over(self.orphan_at) => self.leave(),
            _ => {}
        }
    }

    fn rung_until(&self, now: Millis, rung: Rung) -> Millis {
        now.saturating_add(match rung {
            Rung::EndOfInput => self.ladder.input.into(),
            Rung::Terminate => self.ladder.term.into(),
            Rung::Kill => self.ladder.kill.max(LAST_BREATH).into(),
        })
    }

    fn climb(&mut self, now: Millis, rung: Rung) {
        self.phase = Phase::Ending(rung, self.rung_until(now, rung));
        self.actions.push(match rung {
            Rung::EndOfInput => Action::CloseInput,
            Rung::Terminate => Action::Terminate,
            Rung::Kill => Action::Kill,
        });
    }

    fn sweep(&mut self, now: Millis) {
        self.phase = Phase::Sweeping(self.rung_until(now, Rung::Kill));
        self.actions.push(Action::Kill);
    }

    fn gone(&mut self, now: Millis, left: &[u32]) {
        self.phase = Phase::Gone;
        self.exit = Some(Exit {
            // A leader that cannot be killed is among those that are left.
            status: self.leader.unwrap_or(Status::Signal(0)),
            left: u32::try_from(left.len()).unwrap_or(u32::MAX),
            named: left.iter().copied().take(super::frame::NAMED).collect(),
        });
        self.actions.push(Action::ClosePipes);
        if self.forsaken && !self.attached {
            self.leave();
        } else if !self.attached
            && let Some(at) = &mut self.orphan_at
        {
            // It may have gone by itself at the last moment: the exit is kept as long as an orphan may live.
            *at = (*at).max(now.saturating_add(self.orphan));
        }
    }

    fn leave(&mut self) {
        self.phase = Phase::Left;
        self.actions.push(Action::Leave);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LADDER: Ladder = Ladder { input: 100, term: 200, kill: 300, linger: 50 };

    fn waiting() -> Machine {
        Machine::new(0, Patience { start: 1000, hello: 10 })
    }

    /// One that runs since 10 with a daemon of boot 1, and may be alone for 5000.
    fn running() -> Machine {
        let mut m = waiting();
        assert_eq!(m.attach(5, 1, 0, 0..=0), Verdict::Accepted);
        m.started(10, LADDER, 5000);
        m
    }

    fn nobody() -> Vec<u32> {
        Vec::new()
    }

    #[test]
    fn without_a_start_it_leaves() {
        let mut m = waiting();
        assert_eq!(m.deadline(), Some(1000));
        m.tick(999, nobody);
        assert_eq!(m.actions(), []);
        assert_eq!(m.attach(999, 3, 0, 0..=0), Verdict::Accepted);
        assert_eq!((m.deadline(), m.standing()), (Some(1999), Standing::Waiting), "a daemon that came has as long");
        m.detach(1500);
        m.tick(1999, nobody);
        assert_eq!(m.actions(), [Action::Leave]);
        for say in [|m: &mut Machine| m.terminated(1), |m: &mut Machine| m.end(1, Rung::Terminate, LADDER)] {
            let mut m = waiting();
            say(&mut m);
            assert_eq!(m.actions(), [Action::Leave], "there is nothing to end");
        }
    }

    #[test]
    fn the_newest_boot_wins_and_an_offset_must_be_there() {
        let mut m = running();
        for (boot, from, verdict) in [
            (1, 7, Verdict::Accepted),
            (4, 9, Verdict::Accepted),
            (3, 9, Verdict::Stale(4)),
            (4, 4, Verdict::NoOffset(5)),
            (4, 10, Verdict::NoOffset(9)),
            (5, 99, Verdict::NoOffset(9)),
            (4, 5, Verdict::Accepted),
        ] {
            assert_eq!(m.attach(20, boot, from, 5..=9), verdict, "boot {boot}, from {from}");
        }
        m.detach(30);
        assert_eq!(m.attach(40, 3, 9, 5..=9), Verdict::Stale(4), "also when nobody is attached");
    }

    #[test]
    fn the_ladder_has_its_rungs_and_they_their_times() {
        let mut m = running();
        m.end(20, Rung::EndOfInput, LADDER);
        assert_eq!((m.actions(), m.deadline(), m.standing()), (vec![Action::CloseInput], Some(120), Standing::Ending));
        m.tick(119, nobody);
        assert_eq!(m.actions(), []);
        m.tick(120, nobody);
        assert_eq!((m.actions(), m.deadline()), (vec![Action::Terminate], Some(320)));
        m.tick(320, nobody);
        assert_eq!((m.actions(), m.deadline(), m.is_sweeping()), (vec![Action::Kill], Some(620), true));
        m.child_died(330, &[7]);
        assert_eq!(m.actions(), [Action::Kill], "more came to light");
        m.leader_gone(340, Status::Signal(9));
        m.child_died(350, &[]);
        assert_eq!((m.actions(), m.standing()), (vec![Action::ClosePipes], Standing::Gone));
        assert_eq!(m.exit(), Some(&Exit { status: Status::Signal(9), left: 0, named: vec![] }));
        m.tick(1_000_000, nobody);
        assert_eq!((m.actions(), m.deadline()), (vec![], None), "the exit is kept while a daemon is there");
        m.exit_acknowledged();
        assert_eq!(m.actions(), [Action::Leave]);
    }

    #[test]
    fn urgency_only_rises() {
        let mut m = running();
        m.end(20, Rung::Terminate, LADDER);
        assert_eq!((m.actions(), m.deadline()), (vec![Action::Terminate], Some(220)));
        m.end(30, Rung::EndOfInput, Ladder { input: 9999, term: 9999, ..LADDER });
        assert_eq!((m.actions(), m.deadline()), (vec![], Some(220)));
        m.end(40, Rung::Terminate, Ladder { term: 10, ..LADDER });
        assert_eq!((m.actions(), m.deadline()), (vec![], Some(50)));
        m.terminated(45);
        assert_eq!((m.actions(), m.deadline()), (vec![], Some(50)));
        m.end(46, Rung::Kill, LADDER);
        assert_eq!((m.actions(), m.deadline()), (vec![Action::Kill], Some(346)));
        m.tick(346, || vec![5, 6]);
        assert_eq!(m.actions(), [Action::ClosePipes]);
        let stuck = Exit { status: Status::Signal(0), left: 2, named: vec![5, 6] };
        assert_eq!(m.exit(), Some(&stuck), "what cannot be ended is named");
    }

    #[test]
    fn what_a_dead_leader_left_is_ended_at_once() {
        let mut m = running();
        m.leader_gone(20, Status::Code(3));
        assert_eq!((m.actions(), m.deadline(), m.standing()), (vec![Action::CloseInput], Some(70), Standing::Ending));
        m.pipes_closed(30);
        assert_eq!((m.actions(), m.is_sweeping()), (vec![Action::Kill], true));
        m.child_died(31, &[]);
        assert_eq!(m.exit().map(|e| e.status), Some(Status::Code(3)));
        let mut m = running();
        m.leader_gone(20, Status::Code(0));
        m.tick(70, nobody);
        assert_eq!(m.actions(), [Action::CloseInput, Action::Kill], "whoever holds the pipes has a moment");
        let mut m = running();
        m.pipes_closed(15);
        assert_eq!((m.actions(), m.standing()), (vec![], Standing::Running), "an agent may close its output");
        m.leader_gone(20, Status::Code(0));
        assert_eq!(m.actions(), [Action::CloseInput, Action::Kill]);
    }

    #[test]
    fn an_orphan_is_ended_after_its_time() {
        let mut m = running();
        assert_eq!(m.deadline(), None);
        m.detach(100);
        assert_eq!(m.deadline(), Some(5100));
        assert_eq!(m.attach(5099, 2, 0, 0..=0), Verdict::Accepted);
        m.tick(5100, nobody);
        assert_eq!((m.actions(), m.deadline()), (vec![], None), "the timer is off");
        m.set_orphan(5200, 0, 0);
        assert_eq!((m.actions(), m.deadline()), (vec![], None), "a stop sets it while it is there");
        m.detach(5300);
        m.tick(5300, nobody);
        assert_eq!(m.actions(), [Action::CloseInput]);
        assert_eq!(m.attach(5301, 2, 0, 0..=0), Verdict::Accepted);
        assert_eq!(m.standing(), Standing::Ending, "once begun it goes on, and the daemon hears so");
        m.leader_gone(5310, Status::Code(0));
        m.pipes_closed(5310);
        m.child_died(5310, &[]);
        assert!(!m.actions().contains(&Action::Leave), "somebody asks for the exit");
        m.detach(5400);
        assert_eq!(m.actions(), [Action::Leave], "and nobody will come again");
    }

    #[test]
    fn a_lease_ends_it_connection_or_not() {
        let mut m = running();
        m.set_orphan(100, 5000, 300);
        assert_eq!(m.deadline(), Some(400));
        m.set_orphan(390, 5000, 300);
        m.tick(400, nobody);
        assert_eq!((m.actions(), m.deadline()), (vec![], Some(690)), "renewed");
        m.tick(690, nobody);
        assert_eq!(m.actions(), [Action::CloseInput]);
    }

    #[test]
    fn the_exit_is_kept_as_long_as_an_orphan_lives() {
        let end = |m: &mut Machine, now| {
            m.leader_gone(now, Status::Code(0));
            m.pipes_closed(now);
            m.child_died(now, &[]);
        };
        let mut m = running();
        m.detach(100);
        end(&mut m, 4000);
        assert_eq!(m.deadline(), Some(9000), "counted anew");
        m.tick(8999, nobody);
        assert!(!m.actions().contains(&Action::Leave));
        m.tick(9000, nobody);
        assert_eq!(m.actions(), [Action::Leave]);
        // Ended because nobody was there: nobody is waited for.
        let mut m = running();
        m.detach(100);
        m.tick(5100, nobody);
        end(&mut m, 5200);
        assert_eq!(m.actions().last(), Some(&Action::Leave));
        // SIGTERM, likewise.
        let mut m = running();
        m.detach(100);
        m.terminated(200);
        end(&mut m, 210);
        assert_eq!(m.actions().last(), Some(&Action::Leave));
        // SIGTERM with a daemon: it hears of the exit.
        let mut m = running();
        m.terminated(200);
        end(&mut m, 210);
        assert!(!m.actions().contains(&Action::Leave));
        m.exit_acknowledged();
        assert_eq!(m.actions(), [Action::Leave]);
    }
}
