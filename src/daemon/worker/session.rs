//! An open session: its stage, and its decisions while it is idle.

use std::sync::Arc;
use std::time::Instant;

use super::begin::Beginning;
use super::turn::{Finish, Turn};
use super::{AGAIN, Input, Next};
use crate::agent::{self, Agent, Watch};
use crate::daemon::context::Context;
use crate::daemon::mailbox::Close;
use crate::daemon::turn_host::TurnHost;
use crate::model::worker::{Act, AtRest, State, Then, look, park_at, pause, rests};
use crate::store::Begun;

/// The stage of a session, with its data.
pub(super) enum Stage {
    /// No turn runs.
    Idle(Idle),
    /// Its agent is being started, for a turn that has begun or will begin.
    Starting(Option<Box<Begun>>),
    /// A turn is about to begin.
    Beginning(Beginning),
    /// A turn runs.
    Running(Box<Turn>),
    /// Its outcome is being written.
    Finishing(Box<Finish>),
    /// Its agent is being closed, in this way.
    Closing(Close),
    /// Its agent is closed; its activation is being ended as parked. `tried`: a try failed.
    Parking { tried: bool },
}

/// The stages of an idle session.
#[derive(Clone, Copy, Debug)]
pub(super) enum Idle {
    /// Decides what to do next.
    Look,
    /// Is about to wait for a letter.
    Rest,
    /// Waits for a letter; it may be parked at this instant.
    Resting { park_at: Option<Instant> },
    /// It was chosen to give way or is abandoned: a letter says which.
    Chosen,
}

/// An open session, as its worker sees it.
pub struct Session {
    pub(super) host: TurnHost,
    pub(super) agent: Box<dyn Agent>,
    pub(super) agent_session: Option<String>,
    pub(super) turns: i64,
    pub(super) failures: u32,
    /// The next start, or the next try of a begin, waits until then.
    pub(super) start_after: Option<Instant>,
    /// That time had not come at the last decision, or was set since.
    backing_off: bool,
    /// The turn during which the agent's process ended: the next prompt reports it.
    pub(super) cut_short: Option<String>,
    /// No agent was started yet in this activation.
    pub(super) fresh: bool,
    /// When the agent last did work by itself: it may have more to do.
    pub(super) own_work: Option<Instant>,
    /// How often `before_turn` hooks were asked.
    pub(super) asks: u64,
    idle_since: Instant,
    stage: Stage,
}

impl Session {
    /// A session whose activation was just opened.
    pub(super) fn new(host: TurnHost, agent: Box<dyn Agent>, agent_session: Option<String>, turns: i64) -> Self {
        let idle_since = host.ctx.now();
        Self {
            host,
            agent,
            agent_session,
            turns,
            failures: 0,
            start_after: None,
            backing_off: false,
            cut_short: None,
            fresh: true,
            own_work: None,
            asks: 0,
            idle_since,
            stage: Stage::Idle(Idle::Look),
        }
    }

    /// A session that goes on with the agent of another daemon.
    pub(super) fn go_on(host: TurnHost, agent: Box<dyn Agent>, agent_session: Option<String>, turns: i64) -> Self {
        Self { fresh: false, ..Self::new(host, agent, agent_session, turns) }
    }

    /// Its state.
    pub(super) const fn state(&self) -> State {
        match &self.stage {
            Stage::Idle(_) => State::Idle,
            Stage::Starting(_) => State::Starting,
            Stage::Beginning(_) => State::Beginning,
            Stage::Running(_) => State::Running,
            Stage::Finishing(_) => State::Finishing,
            Stage::Closing(_) | Stage::Parking { .. } => State::Closing,
        }
    }

    /// The agent's descriptors.
    pub(super) fn watches(&self) -> Vec<Watch<'_>> {
        self.agent.watches()
    }

    /// Performs the work of its stage.
    pub(super) fn step(&mut self, input: Input) -> Next {
        match std::mem::replace(&mut self.stage, Stage::Idle(Idle::Look)) {
            Stage::Idle(idle) => self.idle(idle, input),
            Stage::Starting(begun) => self.start(begun),
            Stage::Beginning(beginning) => self.begin(beginning, input),
            Stage::Running(turn) => self.run(turn, input),
            Stage::Finishing(finish) => self.finish(finish),
            Stage::Closing(close) => self.close(close),
            Stage::Parking { tried } => self.park(tried),
        }
    }

    pub(super) const fn ctx(&self) -> &Arc<Context> {
        &self.host.ctx
    }

    pub(super) fn key(&self) -> &str {
        &agent::Host::identity(&self.host).key
    }

    /// Goes to this stage at once.
    pub(super) fn go(&mut self, stage: Stage) -> Next {
        self.stage = stage;
        Next::Again
    }

    /// Goes to this stage when something comes.
    pub(super) fn wait(&mut self, stage: Stage, until: Option<Instant>, agent: bool) -> Next {
        self.stage = stage;
        Next::Wait { until, agent }
    }

    /// Goes to this stage after a pause, or as soon as a letter comes.
    pub(super) fn pause(&mut self, stage: Stage) -> Next {
        let until = Some(self.ctx().now() + AGAIN);
        self.wait(stage, until, false)
    }

    /// Follows a decision that is not simply the next stage.
    pub(super) fn then(&mut self, then: Then) -> Next {
        if matches!(then, Then::Look { worked: true } | Then::Rest { worked: true }) {
            self.idle_since = self.ctx().now();
        }
        let called = self.host.close.is_some() || self.host.let_go || self.host.begun.is_some();
        if rests(then, called, self.agent.wants_turn()) {
            return self.go(Stage::Idle(Idle::Rest));
        }
        match then {
            Then::Close => {
                // Its letters about waiting work are for the session's next worker.
                self.host.work = true;
                self.go(Stage::Closing(Close::Retire))
            }
            Then::LookLater => self.pause(Stage::Idle(Idle::Look)),
            Then::Gone => Next::Gone,
            Then::Go | Then::Look { .. } | Then::Rest { .. } | Then::RestReserved | Then::Again => {
                self.go(Stage::Idle(Idle::Look))
            }
        }
    }

    fn idle(&mut self, idle: Idle, input: Input) -> Next {
        match idle {
            Idle::Rest => return self.rest(),
            Idle::Chosen if input != Input::Letter => return self.go(Stage::Closing(Close::Retire)),
            Idle::Resting { park_at } => match input {
                Input::Ready => self.agent.idle(&mut self.host),
                Input::Timeout => {
                    let parked = park_at.is_some_and(|at| at <= self.ctx().now());
                    if parked && !self.host.work {
                        if self.ctx().registry.may_park(self.host.sid) {
                            return self.go(Stage::Closing(Close::Park));
                        }
                        // A letter is there, or a stop that keeps its agent is in progress.
                        return self.pause(Stage::Idle(Idle::Look));
                    }
                }
                Input::Go | Input::Letter => {}
            },
            Idle::Look | Idle::Chosen => {}
        }
        self.decide()
    }

    /// Decides what to do next, and goes to that stage.
    fn decide(&mut self) -> Next {
        self.host.collect();
        let mut reserved = false;
        if self.host.close.is_some() {
            let in_time = self.host.close_by.is_none_or(|by| by > self.ctx().now());
            reserved = in_time && self.ctx().registry.is_reserved(self.host.sid);
            // The other thread may have begun a turn since, so letters are collected once more.
            self.host.collect();
        }
        self.backing_off = self.start_after.is_some_and(|at| at > self.ctx().now());
        let facts = AtRest {
            killed: self.host.is_killed(),
            let_go: self.host.let_go,
            close: self.host.close,
            begun: self.host.begun.is_some(),
            reserved,
            agent_speaks: self.agent.wants_turn(),
            work: self.host.work || self.host.auto_continue,
            backing_off: self.backing_off,
            agent_ready: self.agent.is_ready(),
        };
        match look(&facts) {
            Act::Close(close) => self.go(Stage::Closing(close)),
            Act::LetGo => self.let_go(),
            Act::Start => {
                let begun = self.host.begun.take();
                self.go(Stage::Starting(begun))
            }
            Act::Run => match self.host.begun.take() {
                Some(begun) => self.turn(*begun, None, false),
                None => self.go(Stage::Idle(Idle::Look)),
            },
            Act::Begin => self.go(Stage::Beginning(Beginning::Next)),
            Act::BeginOwn => self.go(Stage::Beginning(Beginning::Own)),
            Act::Rest if reserved => self.then(Then::RestReserved),
            Act::Rest => self.then(Then::Rest { worked: false }),
        }
    }

    /// Lets the agent go, which outlives the daemon: whatever is not committed is read again by the next one.
    pub(super) fn let_go(&mut self) -> Next {
        self.host.flush();
        self.agent.durable(&mut self.host);
        if self.agent.let_go() {
            return Next::Gone;
        }
        self.go(Stage::Closing(Close::Stop))
    }

    /// Whether a turn could begin in it at once.
    pub(super) fn is_ready(&self) -> bool {
        let host = &self.host;
        let free = !host.work && !host.auto_continue && host.close.is_none() && host.begun.is_none();
        free && !self.agent.wants_turn() && self.start_after.is_none() && self.agent.is_ready()
    }

    fn rest(&mut self) -> Next {
        let ready = self.is_ready().then_some(self.host.epoch);
        match self.ctx().registry.rest(self.host.sid, ready) {
            None if self.host.close.is_some() => return self.go(Stage::Idle(Idle::Look)),
            None => return self.pause(Stage::Idle(Idle::Chosen)),
            // Another thread is about to begin a turn for it: a letter will bring the outcome.
            Some(false) => return self.pause(Stage::Idle(Idle::Look)),
            Some(true) => {}
        }
        let config = self.ctx().config();
        let own_work = self.own_work.filter(|_| self.agent.is_ready());
        let sessions = &config.sessions;
        let park_at = park_at(self.idle_since, sessions.park_after, own_work, sessions.background_hold);
        let waits = self.host.work || self.host.auto_continue || self.agent.wants_turn();
        // If that time had passed at the last decision, something else holds the work back, and a letter will report
        // that.
        let again = self.start_after.filter(|_| waits && self.backing_off);
        let until = [park_at, again].into_iter().flatten().min();
        self.wait(Stage::Idle(Idle::Resting { park_at }), until, true)
    }

    /// The agent failed: the next start waits, longer after each failure.
    pub(super) fn back_off(&mut self) {
        self.failures = self.failures.saturating_add(1);
        self.not_before(self.ctx().now() + pause(self.failures));
    }

    /// Sets the time of the next start or try.
    pub(super) const fn not_before(&mut self, at: Instant) {
        self.start_after = Some(at);
        self.backing_off = true;
    }
}
