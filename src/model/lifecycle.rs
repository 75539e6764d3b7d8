//! The machine of a daemon's life: (phase, event, now) → actions.
//!
//! # The ladder of a stop
//!
//! Durable facts come first; everything after only removes work. So a death on any rung leaves a database from which
//! the next boot derives what this stop would have written.
//!
//! - `running`: turns start. The first request to stop closes admission to turns (not to messages), notes the stop and
//!   marks every running session in one transaction, and only then does anything wait. The `shutdown` hooks start beside
//!   the drain, and every session is told to close: an idle one does so at once, a running one after its turn.
//! - `draining`: running turns may finish, and their answers be handed over. It ends the moment nothing runs; at its
//!   timeout, or when the urgency rises to `fast`, what still runs is marked anew and interrupted.
//! - `interrupting`: agents are cancelled by protocol, then by signals, and their workers joined. One that does not come by
//!   the end of the budget is abandoned: its writes are refused from then on, and the exit is unclean.
//! - `sweeping`: the agents of idle sessions finish closing.
//! - `calling_hooks`: every activation still open is closed with its `session_end`; the ends are delivered once the
//!   `shutdown` hooks are done or cut off, and none before; then the `stopped` hooks, last of all.
//! - `closing`: checkpoint, clean record, release.
//!
//! Urgency only rises. `fast` skips the drain; `now` kills agents and goes to `closing` from wherever it is: what it
//! leaves open the next boot closes. The deadline is one absolute instant fixed at the first request; each phase has
//! its share of it, and their sum was checked when the configuration was read. Whether the deadline itself passed is
//! not decided here: a watchdog that needs nothing of this leaves then.
//!
//! The machine knows phases, urgency and time, and nothing of threads or files. It asks for one alarm at a time
//! ([`Lifecycle::alarm`]) and is told with [`Event::TimeUp`]. Every pair of phase and event has a decided answer.

use std::time::{Duration, Instant};

use super::event::{StopReason, Urgency, string_enum};
use super::settings::Budget;

string_enum! {
    /// Where the daemon is in its life.
    Phase {
        /// Recovery runs, messages are not yet accepted.
        Starting = "starting",
        /// Turns start.
        Running = "running",
        /// Running turns may finish.
        Draining = "draining",
        /// What still runs is being ended.
        Interrupting = "interrupting",
        /// Idle sessions' agents finish closing.
        Sweeping = "sweeping",
        /// Ends are journalled and delivered, then `stopped`.
        CallingHooks = "calling_hooks",
        /// The store is being closed.
        Closing = "closing",
        /// Nothing is left to do.
        Ended = "ended",
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Messages are accepted.
    BecameReady,
    /// A stop was asked for, or asked for again: urgency becomes the greater of both.
    StopAsked(StopReason, Urgency),
    /// No turn runs and no answer waits to be handed over.
    TurnsEnded,
    /// No worker is left.
    WorkersGone,
    /// The `shutdown` handlers returned or were cut off.
    ShutdownHooksEnded,
    /// Nothing that is journalled is owed any more, or it cannot be delivered now.
    EndsDelivered,
    /// The `stopped` handlers returned or were cut off.
    StoppedHooksEnded,
    /// The store is closed, cleanly or not.
    StoreClosed,
    /// The alarm that the machine had asked for.
    TimeUp,
}

/// What is to be done, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Turns do not start any more; messages are accepted as deferred.
    CloseAdmission,
    /// Note the stop and mark every running session, in one transaction, and wait for its commit (bounded).
    MarkRunning,
    /// Tell the service manager, once, with the time that is needed.
    TellManager,
    /// From now on no `session_end` is delivered.
    HoldEnds,
    /// Call the `shutdown` handlers, cut off at the instant.
    CallShutdownHooks(Instant),
    /// Every worker is to close: idle ones at once, running ones after their turn.
    CloseWorkers,
    /// Sessions still running carry this stop's reason and time.
    RefreshMarks,
    /// Running turns are to be ended by the instant.
    Interrupt(Instant),
    /// Agents are killed.
    Kill,
    /// Workers that have not come are given up.
    Abandon,
    /// It is noted, durably, whom the stop gave up: what runs there counts as an unclean death.
    NoteAbandoned,
    /// Idle sessions' agents are to be closed by the instant.
    Sweep(Instant),
    /// Journal the end of every activation still open.
    CloseActivations,
    /// The `shutdown` handlers are done or cut off: a `session_end` may be delivered again.
    ReleaseEnds,
    /// Deliver what is journalled, until the instant.
    DeliverEnds(Instant),
    /// Call the `stopped` handlers, cut off at the instant.
    CallStopped(Instant),
    /// Agents that outlive the daemon are let go: all that they said so far is committed.
    LetGo,
    /// Write the clean record, checkpoint, close, by the instant.
    CloseStore(Instant),
    /// Exit.
    Leave,
}

/// A stop in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Why.
    pub reason: StopReason,
    /// How much of the ladder it walks.
    pub urgency: Urgency,
    /// When it was first asked for.
    pub began: Instant,
    /// The one absolute deadline.
    pub deadline: Instant,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    phase: Phase,
    budget: Budget,
    stop: Option<Stop>,
    alarm: Option<Instant>,
    workers_gone: bool,
    /// How long the `shutdown` handlers took, once they have ended.
    hooks_took: Option<Duration>,
    swept_since: Option<Instant>,
    /// How long the sweep took.
    swept: Duration,
    ends_called: bool,
    stopped_called: bool,
    abandoned: bool,
}

impl Lifecycle {
    /// A daemon that is starting.
    #[must_use]
    pub const fn new(budget: Budget) -> Self {
        Self {
            phase: Phase::Starting,
            budget,
            stop: None,
            alarm: None,
            workers_gone: false,
            hooks_took: None,
            swept_since: None,
            swept: Duration::ZERO,
            ends_called: false,
            stopped_called: false,
            abandoned: false,
        }
    }

    /// Where it is.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// The stop in progress.
    #[must_use]
    pub const fn stop(&self) -> Option<Stop> {
        self.stop
    }

    /// When [`Event::TimeUp`] is due.
    #[must_use]
    pub const fn alarm(&self) -> Option<Instant> {
        self.alarm
    }

    /// Whether workers were given up.
    #[must_use]
    pub const fn abandoned(&self) -> bool {
        self.abandoned
    }

    /// A new budget, from a reload; a stop in progress keeps its own.
    pub fn set_budget(&mut self, budget: Budget) {
        if self.stop.is_none() {
            self.budget = budget;
        }
    }

    /// Takes in an event and says what is to be done.
    #[must_use]
    pub fn step(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::WorkersGone => self.workers_gone = true,
            Event::ShutdownHooksEnded => {
                self.hooks_took.get_or_insert(now.saturating_duration_since(self.stop.map_or(now, |s| s.began)));
            }
            Event::BecameReady
            | Event::TurnsEnded
            | Event::StopAsked(..)
            | Event::EndsDelivered
            | Event::StoppedHooksEnded
            | Event::StoreClosed
            | Event::TimeUp => {}
        }
        match (self.phase, event) {
            (Phase::Starting, Event::BecameReady) => {
                self.phase = Phase::Running;
                Vec::new()
            }
            (Phase::Starting | Phase::Running, Event::StopAsked(reason, urgency)) => self.begin(reason, urgency, now),
            (
                Phase::Draining | Phase::Interrupting | Phase::Sweeping | Phase::CallingHooks | Phase::Closing,
                Event::StopAsked(_, urgency),
            ) => self.raise(urgency, now),

            (Phase::Draining, Event::TurnsEnded) => self.sweep(now),
            (Phase::Draining, Event::WorkersGone) => self.sweep(now),
            (Phase::Draining, Event::TimeUp) => self.interrupt(now),

            (Phase::Interrupting, Event::TurnsEnded | Event::WorkersGone) => self.sweep(now),
            (Phase::Interrupting, Event::TimeUp) => [self.abandon(), self.sweep(now)].concat(),

            (Phase::Sweeping, Event::WorkersGone) => self.call_hooks(now),
            (Phase::Sweeping, Event::TimeUp) => [self.abandon(), self.call_hooks(now)].concat(),

            (Phase::CallingHooks, Event::ShutdownHooksEnded) => self.deliver_ends(now),
            (Phase::CallingHooks, Event::EndsDelivered) => self.call_stopped(now),
            (Phase::CallingHooks, Event::TimeUp) => match (self.ends_called, self.stopped_called) {
                (false, false) => self.deliver_ends(now),
                (true, false) => self.call_stopped(now),
                (_, true) => self.close(now),
            },
            (Phase::CallingHooks, Event::StoppedHooksEnded) => self.close(now),

            (Phase::Closing, Event::StoreClosed | Event::TimeUp) => {
                self.phase = Phase::Ended;
                self.alarm = None;
                vec![Action::Leave]
            }

            // News that changes nothing where it comes: remembered above where it matters later.
            (Phase::Starting | Phase::Running | Phase::Ended, Event::TurnsEnded | Event::WorkersGone)
            | (
                Phase::Running
                | Phase::Draining
                | Phase::Interrupting
                | Phase::Sweeping
                | Phase::CallingHooks
                | Phase::Closing
                | Phase::Ended,
                Event::BecameReady,
            )
            | (Phase::Sweeping | Phase::CallingHooks | Phase::Closing, Event::TurnsEnded)
            | (Phase::CallingHooks | Phase::Closing, Event::WorkersGone)
            | (
                Phase::Starting | Phase::Running | Phase::Draining | Phase::Interrupting | Phase::Sweeping,
                Event::ShutdownHooksEnded | Event::EndsDelivered | Event::StoppedHooksEnded | Event::StoreClosed,
            )
            | (Phase::CallingHooks, Event::StoreClosed)
            | (
                Phase::Closing | Phase::Ended,
                Event::ShutdownHooksEnded | Event::EndsDelivered | Event::StoppedHooksEnded,
            )
            | (Phase::Starting | Phase::Running | Phase::Ended, Event::TimeUp)
            | (Phase::Ended, Event::StopAsked(..) | Event::StoreClosed) => Vec::new(),
        }
    }

    fn begin(&mut self, reason: StopReason, urgency: Urgency, now: Instant) -> Vec<Action> {
        self.stop = Some(Stop { reason, urgency, began: now, deadline: now + self.budget.deadline });
        let mut actions = vec![Action::CloseAdmission, Action::TellManager, Action::MarkRunning];
        if urgency == Urgency::Now {
            actions.extend(self.leave_now(now));
            return actions;
        }
        actions.push(Action::HoldEnds);
        actions.push(Action::CallShutdownHooks(now + self.budget.hooks / 3));
        actions.push(Action::CloseWorkers);
        if urgency == Urgency::Fast || self.budget.drain.is_zero() {
            actions.extend(self.interrupt(now));
        } else {
            self.phase = Phase::Draining;
            self.alarm = Some(now + self.budget.drain);
        }
        actions
    }

    fn raise(&mut self, urgency: Urgency, now: Instant) -> Vec<Action> {
        let Some(stop) = &mut self.stop else { return Vec::new() };
        if urgency <= stop.urgency {
            return Vec::new();
        }
        stop.urgency = urgency;
        match (self.phase, urgency) {
            (Phase::Draining, Urgency::Fast) => self.interrupt(now),
            (Phase::Draining | Phase::Interrupting | Phase::Sweeping | Phase::CallingHooks, Urgency::Now) => {
                self.leave_now(now)
            }
            (Phase::Interrupting | Phase::Sweeping | Phase::CallingHooks | Phase::Closing, Urgency::Fast)
            | (Phase::Closing, Urgency::Now)
            | (Phase::Starting | Phase::Running | Phase::Ended, Urgency::Fast | Urgency::Now)
            | (
                Phase::Starting
                | Phase::Running
                | Phase::Draining
                | Phase::Interrupting
                | Phase::Sweeping
                | Phase::CallingHooks
                | Phase::Closing
                | Phase::Ended,
                Urgency::Graceful,
            ) => Vec::new(),
        }
    }

    fn interrupt(&mut self, now: Instant) -> Vec<Action> {
        let until = now + self.budget.interrupt;
        self.phase = Phase::Interrupting;
        self.alarm = Some(until);
        // The workers get nine tenths, so that one that ends at its own deadline is still joined.
        vec![Action::RefreshMarks, Action::Interrupt(now + self.budget.interrupt * 9 / 10)]
    }

    /// The workers that are left are abandoned.
    fn abandon(&mut self) -> Vec<Action> {
        self.abandoned = true;
        vec![Action::Kill, Action::Abandon, Action::NoteAbandoned]
    }

    fn sweep(&mut self, now: Instant) -> Vec<Action> {
        if self.workers_gone {
            return self.call_hooks(now);
        }
        let until = now + self.budget.close / 2;
        self.phase = Phase::Sweeping;
        self.swept_since = Some(now);
        self.alarm = Some(until);
        vec![Action::Sweep(now + self.budget.close * 4 / 10)]
    }

    fn call_hooks(&mut self, now: Instant) -> Vec<Action> {
        self.end_sweep(now);
        self.phase = Phase::CallingHooks;
        let mut actions = vec![Action::CloseActivations];
        if self.hooks_took.is_some() {
            actions.extend(self.deliver_ends(now));
        } else {
            // They were given their third at the first request; what is left of it cuts them off.
            let began = self.stop.map_or(now, |s| s.began);
            self.alarm = Some((began + self.budget.hooks / 3).max(now));
        }
        actions
    }

    fn deliver_ends(&mut self, now: Instant) -> Vec<Action> {
        if self.ends_called {
            return Vec::new();
        }
        self.ends_called = true;
        // One pot: what the `shutdown` handlers left of their third is there for the ends; a tenth stays for `stopped`.
        let third = self.budget.hooks / 3;
        let used = self.hooks_took.map_or(third, |took| took.min(third));
        let until = now + (self.budget.hooks * 9 / 10).saturating_sub(used);
        self.alarm = Some(until);
        vec![Action::ReleaseEnds, Action::DeliverEnds(until)]
    }

    fn call_stopped(&mut self, now: Instant) -> Vec<Action> {
        if self.stopped_called || !self.ends_called {
            return Vec::new();
        }
        self.stopped_called = true;
        let until = now + self.budget.hooks / 10;
        self.alarm = Some(until);
        vec![Action::CallStopped(until)]
    }

    fn close(&mut self, now: Instant) -> Vec<Action> {
        // What the sweep left of its half is there for the store.
        let until = now + self.budget.close - self.swept.min(self.budget.close / 2);
        self.phase = Phase::Closing;
        self.alarm = Some(until);
        vec![Action::LetGo, Action::CloseStore(until)]
    }

    fn end_sweep(&mut self, now: Instant) {
        if let (Phase::Sweeping, Some(since)) = (self.phase, self.swept_since) {
            self.swept = now.saturating_duration_since(since);
        }
    }

    fn leave_now(&mut self, now: Instant) -> Vec<Action> {
        self.end_sweep(now);
        self.abandoned |= !self.workers_gone;
        let mut actions = vec![Action::Kill, Action::Abandon, Action::CloseActivations];
        actions.extend(self.close(now));
        actions
    }
}

/// The planned time of each phase, for the report.
#[must_use]
pub fn plan(budget: &Budget) -> [(Phase, Duration); 5] {
    [
        (Phase::Draining, budget.drain),
        (Phase::Interrupting, budget.interrupt),
        (Phase::Sweeping, budget.close / 2),
        (Phase::CallingHooks, budget.hooks),
        (Phase::Closing, budget.close / 2),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Budget = Budget {
        drain: Duration::from_secs(30),
        interrupt: Duration::from_secs(10),
        hooks: Duration::from_secs(10),
        close: Duration::from_secs(5),
        deadline: Duration::from_secs(60),
    };
    const STOP: Event = Event::StopAsked(StopReason::Shutdown, Urgency::Graceful);

    fn running() -> (Lifecycle, Instant) {
        let mut m = Lifecycle::new(BUDGET);
        let t = Instant::now();
        assert!(m.step(Event::BecameReady, t).is_empty());
        (m, t)
    }

    fn names(actions: &[Action]) -> Vec<String> {
        actions.iter().map(|a| format!("{a:?}").split('(').next().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn a_stop_with_nothing_to_do_waits_for_nothing() {
        let (mut m, t) = running();
        assert_eq!(
            names(&m.step(STOP, t)),
            ["CloseAdmission", "TellManager", "MarkRunning", "HoldEnds", "CallShutdownHooks", "CloseWorkers"]
        );
        assert!(m.step(Event::ShutdownHooksEnded, t).is_empty());
        assert_eq!(names(&m.step(Event::WorkersGone, t)), ["CloseActivations", "ReleaseEnds", "DeliverEnds"]);
        assert_eq!(names(&m.step(Event::EndsDelivered, t)), ["CallStopped"]);
        assert_eq!(names(&m.step(Event::StoppedHooksEnded, t)), ["LetGo", "CloseStore"]);
        assert_eq!(names(&m.step(Event::StoreClosed, t)), ["Leave"]);
        assert_eq!((m.phase(), m.abandoned()), (Phase::Ended, false));
    }

    #[test]
    fn one_deadline_from_the_first_request_on() {
        let (mut m, t) = running();
        m.set_budget(Budget { deadline: Duration::from_secs(90), hooks: Duration::from_secs(12), ..BUDGET });
        let actions = m.step(STOP, t);
        assert!(actions.contains(&Action::CallShutdownHooks(t + Duration::from_secs(4))), "a third: {actions:?}");
        let deadline = t + Duration::from_secs(90);
        assert_eq!(m.stop().map(|s| (s.began, s.deadline)), Some((t, deadline)));
        // A reload that comes too late changes nothing.
        m.set_budget(BUDGET);
        let later = t + Duration::from_secs(5);
        let _ = m.step(Event::StopAsked(StopReason::Restart, Urgency::Fast), later);
        assert_eq!(m.stop().map(|s| (s.reason, s.deadline)), Some((StopReason::Shutdown, deadline)));
        let _ = m.step(Event::WorkersGone, later);
        let third = t + Duration::from_secs(4);
        assert_eq!(m.alarm(), Some(later.max(third)), "of the budget in force when it began");
    }

    #[test]
    fn each_kind_of_handler_is_called_in_its_turn_and_once() {
        let (mut m, t) = running();
        let _ = m.step(STOP, t);
        let _ = m.step(Event::WorkersGone, t);
        assert!(m.step(Event::EndsDelivered, t).is_empty(), "not before the ends were called for");
        assert_eq!(names(&m.step(Event::ShutdownHooksEnded, t)), ["ReleaseEnds", "DeliverEnds"]);
        assert_eq!(names(&m.step(Event::EndsDelivered, t)), ["CallStopped"]);
        assert!(m.step(Event::EndsDelivered, t).is_empty() && m.step(Event::ShutdownHooksEnded, t).is_empty());
        assert_eq!(names(&m.step(Event::TimeUp, t)), ["LetGo", "CloseStore"], "cut off");
    }

    #[test]
    fn a_now_abandons_whoever_is_still_there() {
        for gone in [true, false] {
            let (mut m, t) = running();
            let _ = m.step(STOP, t);
            if gone {
                let _ = m.step(Event::WorkersGone, t);
            }
            let actions = m.step(Event::StopAsked(StopReason::Shutdown, Urgency::Now), t);
            assert_eq!(names(&actions), ["Kill", "Abandon", "CloseActivations", "LetGo", "CloseStore"]);
            assert_eq!(m.abandoned(), !gone);
        }
    }

    #[test]
    fn the_mark_comes_before_anything_waits() {
        for urgency in Urgency::ALL {
            let (mut m, t) = running();
            let actions = names(&m.step(Event::StopAsked(StopReason::Restart, *urgency), t));
            let mark = actions.iter().position(|a| a == "MarkRunning").expect("marked");
            for later in ["CallShutdownHooks", "CloseWorkers", "Interrupt", "Kill", "CloseStore"] {
                assert!(actions.iter().position(|a| a == later).is_none_or(|at| at > mark), "{later} in {actions:?}");
            }
        }
    }

    #[test]
    fn at_the_timeout_what_runs_is_marked_anew_and_interrupted() {
        let (mut m, t) = running();
        let _ = m.step(STOP, t);
        assert_eq!(m.alarm(), Some(t + BUDGET.drain));
        let late = t + BUDGET.drain;
        assert_eq!(names(&m.step(Event::TimeUp, late)), ["RefreshMarks", "Interrupt"]);
        assert_eq!(m.alarm(), Some(late + BUDGET.interrupt));
        assert_eq!(
            names(&m.step(Event::TimeUp, late + BUDGET.interrupt)),
            ["Kill", "Abandon", "NoteAbandoned", "Sweep"]
        );
        assert!(m.abandoned());
    }

    #[test]
    fn a_second_request_starts_nothing_twice_and_raises_the_urgency() {
        let (mut m, t) = running();
        let _ = m.step(STOP, t);
        assert!(m.step(STOP, t).is_empty());
        let fast = Event::StopAsked(StopReason::Shutdown, Urgency::Fast);
        assert_eq!(names(&m.step(fast, t)), ["RefreshMarks", "Interrupt"]);
        assert!(m.step(fast, t).is_empty() && m.step(STOP, t).is_empty());
        assert_eq!(m.stop().map(|s| s.urgency), Some(Urgency::Fast));
        let now = Event::StopAsked(StopReason::Shutdown, Urgency::Now);
        assert_eq!(names(&m.step(now, t)), ["Kill", "Abandon", "CloseActivations", "LetGo", "CloseStore"]);
        assert!(m.step(now, t).is_empty());
    }

    #[test]
    fn a_drain_of_nought_goes_straight_to_the_interrupt() {
        let mut m = Lifecycle::new(Budget { drain: Duration::ZERO, ..BUDGET });
        let _ = m.step(Event::BecameReady, Instant::now());
        assert!(names(&m.step(STOP, Instant::now())).ends_with(&["RefreshMarks".into(), "Interrupt".into()]));
    }

    #[test]
    fn ends_wait_for_the_shutdown_hooks_until_their_third_is_over() {
        let (mut m, t) = running();
        let _ = m.step(STOP, t);
        assert_eq!(names(&m.step(Event::WorkersGone, t)), ["CloseActivations"]);
        assert_eq!(m.alarm(), Some(t + BUDGET.hooks / 3));
        assert_eq!(names(&m.step(Event::TimeUp, t + BUDGET.hooks / 3)), ["ReleaseEnds", "DeliverEnds"]);
        assert!(m.step(Event::ShutdownHooksEnded, t).is_empty(), "late news changes nothing");
    }

    #[test]
    fn what_the_shutdown_hooks_leave_of_their_third_is_there_for_the_ends() {
        for (took, ends) in [(0, 9_000), (1_000, 8_000), (3_000, 6_000)] {
            let (mut m, t) = running();
            let _ = m.step(STOP, t);
            let hooks = t + Duration::from_millis(took);
            let _ = m.step(Event::ShutdownHooksEnded, hooks);
            let gone = t + Duration::from_secs(20);
            let actions = m.step(Event::WorkersGone, gone);
            let until = gone + Duration::from_millis(ends);
            assert_eq!(
                actions,
                [Action::CloseActivations, Action::ReleaseEnds, Action::DeliverEnds(until)],
                "{took} ms"
            );
            assert_eq!(m.alarm(), Some(until));
            let stopped = until + Duration::from_secs(1);
            assert_eq!(m.step(Event::TimeUp, until), [Action::CallStopped(stopped)], "a tenth stays");
        }
        // Cut off, they had their third and no more.
        let (mut m, t) = running();
        let _ = m.step(STOP, t);
        let _ = m.step(Event::WorkersGone, t);
        let third = t + BUDGET.hooks / 3;
        let until = third + BUDGET.hooks * 9 / 10 - BUDGET.hooks / 3;
        assert_eq!(m.step(Event::TimeUp, third), [Action::ReleaseEnds, Action::DeliverEnds(until)]);
    }

    #[test]
    fn what_the_sweep_leaves_of_its_half_is_there_for_the_store() {
        for (swept, store) in [(0, 5_000), (1_000, 4_000), (2_500, 2_500), (3_000, 2_500)] {
            let (mut m, t) = running();
            let _ = m.step(STOP, t);
            let _ = m.step(Event::ShutdownHooksEnded, t);
            assert_eq!(m.step(Event::TurnsEnded, t), [Action::Sweep(t + BUDGET.close * 4 / 10)]);
            assert_eq!(m.alarm(), Some(t + BUDGET.close / 2));
            let gone = t + Duration::from_millis(swept);
            let _ = m.step(if swept < 2_500 { Event::WorkersGone } else { Event::TimeUp }, gone);
            assert_eq!(m.abandoned(), swept >= 2_500);
            let _ = m.step(Event::EndsDelivered, gone);
            let until = gone + Duration::from_millis(store);
            assert_eq!(
                m.step(Event::StoppedHooksEnded, gone),
                [Action::LetGo, Action::CloseStore(until)],
                "{swept} ms"
            );
            assert_eq!(m.alarm(), Some(until));
        }
        // Cut short by a `now`, and without a sweep.
        let (mut m, t) = running();
        let _ = m.step(STOP, t);
        let _ = m.step(Event::TurnsEnded, t);
        let late = t + Duration::from_secs(2);
        let actions = m.step(Event::StopAsked(StopReason::Shutdown, Urgency::Now), late);
        assert_eq!(actions.last(), Some(&Action::CloseStore(late + Duration::from_secs(3))));
        let (mut m, t) = running();
        let actions = m.step(Event::StopAsked(StopReason::Shutdown, Urgency::Now), t);
        assert_eq!(actions.last(), Some(&Action::CloseStore(t + BUDGET.close)));
    }

    /// Whatever happens in whatever order, the machine ends before its deadline, leaves once, and never waits unmarked.
    #[test]
    fn every_order_of_events_ends_within_the_deadline() {
        let events = [
            Event::TurnsEnded,
            Event::WorkersGone,
            Event::ShutdownHooksEnded,
            Event::EndsDelivered,
            Event::StoppedHooksEnded,
            Event::StoreClosed,
            STOP,
            Event::StopAsked(StopReason::Shutdown, Urgency::Fast),
            Event::StopAsked(StopReason::Restart, Urgency::Now),
        ];
        for seed in 0..20_000u64 {
            let (mut m, t) = running();
            let mut now = t;
            let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            let mut left = 0;
            let mut actions = m.step(STOP, now);
            let (mut held, mut hooks_done) = (false, false);
            for _ in 0..200 {
                for action in &actions {
                    match action {
                        Action::HoldEnds => held = true,
                        Action::ReleaseEnds => held = false,
                        Action::DeliverEnds(_) => assert!(!held, "seed {seed}: asked for, and held"),
                        _ => {}
                    }
                }
                let cut_off = now >= t + BUDGET.hooks / 3;
                assert!(
                    held || hooks_done || cut_off || m.phase() >= Phase::Closing,
                    "seed {seed}: ends beside shutdown"
                );
                left += actions.iter().filter(|a| **a == Action::Leave).count();
                if m.phase() == Phase::Ended {
                    break;
                }
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                let event = match usize::try_from(x % 12).unwrap_or(0) {
                    n @ 0..9 => events[n],
                    _ => {
                        now = now.max(m.alarm().expect("a stop always has an alarm"));
                        Event::TimeUp
                    }
                };
                hooks_done |= event == Event::ShutdownHooksEnded;
                actions = m.step(event, now);
            }
            assert_eq!((m.phase(), left), (Phase::Ended, 1), "seed {seed}");
            assert!(now <= t + BUDGET.deadline - Duration::from_secs(1), "seed {seed}: {:?}", now - t);
        }
    }

    #[test]
    fn the_plan_fits_the_default_deadline() {
        let sum: Duration = plan(&BUDGET).iter().map(|p| p.1).sum();
        assert!(sum + Duration::from_secs(1) <= BUDGET.deadline);
    }
}
