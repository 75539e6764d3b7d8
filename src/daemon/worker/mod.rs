//! A session's worker: opens the activation, runs the turns one after the other, and closes the activation. It is a
//! value: each [`Worker::step`] performs the work of its state and returns what it waits for. [`crate::model::worker`]
//! decides what follows.
//!
//! Each session has a thread of its own ([`run`]), which only waits and steps. It waits:
//! - between two steps, for a letter in the mailbox, for the agent's descriptors, or for a deadline;
//! - within a step, for the store, which answers each commit within its patience, and for an agent's start, end and
//!   close (and the turns of `openai` and `lua`), which check the mailbox themselves and have deadlines.
//!
//! The worker's state is not the truth: the queue, the turn and the activation are rows. Every write names session,
//! epoch and turn and is refused as stale if they are not current, so an abandoned worker changes nothing later.
//!
//! Reading order: this file is the worker and its thread; [`opening`] opens the activation of a [`session`]. Of the
//! session, `begin` starts agents and begins turns, `turn` runs and finishes turns, `agent_turn` handles turns that the
//! agent begins by itself, and `closing` is the end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::context::Context;
use super::mailbox::{Mailbox, Woken};
use super::registry::{Doing, WorkRequest};
use crate::agent::Watch;
use crate::config;
use crate::model::worker::{State, Written};
use crate::store::{Error, Pending};
use attaching::Attaching;
use opening::{Opening, Tried};
use session::Session;

mod agent_turn;
mod attaching;
mod begin;
mod closing;
mod make;
mod notify;
mod opening;
mod session;
mod turn;

pub use make::{make_agent, working_dir};

/// How long a worker waits before it tries the store again.
const AGAIN: Duration = Duration::from_secs(1);

/// The reason for a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The worker is new, or asked for another step ([`Next::Again`]).
    Go,
    /// A letter is in its mailbox.
    Letter,
    /// A descriptor of its agent is ready.
    Ready,
    /// The deadline that it named has passed.
    Timeout,
}

impl From<Woken> for Input {
    fn from(woken: Woken) -> Self {
        match woken {
            Woken::Letter => Self::Letter,
            Woken::Ready => Self::Ready,
            Woken::Timeout => Self::Timeout,
        }
    }
}

/// What a worker waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing: it must be stepped again.
    Again,
    /// A letter, the deadline, or (with `agent`) one of [`Worker::watches`].
    Wait {
        /// When it must be stepped if nothing comes.
        until: Option<Instant>,
        /// Whether its agent's output is read.
        agent: bool,
    },
    /// It has ended and can be dropped.
    Gone,
}

/// One session's worker.
pub struct Worker {
    ctx: Arc<Context>,
    request: WorkRequest,
    mailbox: Arc<Mailbox>,
    life: Life,
}

/// The stage of a worker.
enum Life {
    Opening(Box<Opening>),
    Attaching(Box<Attaching>),
    Open(Box<Session>),
    /// It panicked, and its death must be written. `doubt`: a try failed and may be committed.
    Dead {
        doubt: bool,
    },
    Gone,
}

impl Worker {
    /// A worker for a request. `config`: the agent that answers the key. It does nothing before the first step.
    #[must_use]
    pub fn open(ctx: &Arc<Context>, request: &WorkRequest, config: config::Agent, mailbox: &Arc<Mailbox>) -> Self {
        Self {
            ctx: ctx.clone(),
            request: request.clone(),
            mailbox: mailbox.clone(),
            life: Life::Opening(Box::new(Opening::new(config))),
        }
    }

    /// A worker for a session whose agent may have outlived another daemon. It does nothing before the first step.
    #[must_use]
    pub fn attach(ctx: &Arc<Context>, request: &WorkRequest, pending: Pending, mailbox: &Arc<Mailbox>) -> Self {
        Self {
            ctx: ctx.clone(),
            request: request.clone(),
            mailbox: mailbox.clone(),
            life: Life::Attaching(Box::new(Attaching::new(pending))),
        }
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> State {
        match &self.life {
            Life::Opening(_) => State::Opening,
            Life::Attaching(_) => State::Attaching,
            Life::Open(session) => session.state(),
            Life::Dead { .. } => State::Closing,
            Life::Gone => State::Gone,
        }
    }

    /// The agent's descriptors, for a [`Next::Wait`] with `agent`.
    #[must_use]
    pub fn watches(&self) -> Vec<Watch<'_>> {
        match &self.life {
            Life::Open(session) => session.watches(),
            Life::Opening(_) | Life::Attaching(_) | Life::Dead { .. } | Life::Gone => Vec::new(),
        }
    }

    /// Performs the work of its state.
    pub fn step(&mut self, input: Input) -> Next {
        match &mut self.life {
            Life::Opening(opening) => match opening.try_to(&self.ctx, &self.request, &self.mailbox) {
                Tried::Open(session) => {
                    self.life = Life::Open(session);
                    Next::Again
                }
                Tried::Later(at) => Next::Wait { until: Some(at), agent: false },
                Tried::Gone => self.gone(),
            },
            Life::Attaching(attaching) => match attaching.try_to(&self.ctx, &self.request, &self.mailbox) {
                attaching::Attempt::On(mut session, running) => {
                    let next = running.map_or(Next::Again, |(begun, progress)| session.run_on(*begun, progress));
                    self.life = Life::Open(session);
                    next
                }
                attaching::Attempt::Later(at) => Next::Wait { until: Some(at), agent: false },
                attaching::Attempt::Gone => self.gone(),
            },
            Life::Open(session) => match session.step(input) {
                Next::Gone => self.gone(),
                next => next,
            },
            Life::Dead { doubt } => {
                let doubt = *doubt;
                self.write_death(doubt)
            }
            Life::Gone => Next::Gone,
        }
    }

    /// A step panicked: the turn fails, the activation ends, and the session goes on with another worker.
    pub fn panicked(&mut self) -> Next {
        if matches!(self.life, Life::Dead { .. }) {
            return self.pause();
        }
        // The panic itself was logged where it happened.
        log::error!(key = self.request.key; "the session's worker panicked; its turn fails");
        self.life = Life::Dead { doubt: false };
        Next::Again
    }

    /// Writes the death of a worker, and retries until that succeeds: no other worker gets the session while its
    /// activation is open. During a stop, or if the session is no longer current, the end is written elsewhere.
    fn write_death(&mut self, doubt: bool) -> Next {
        if doubt && self.mailbox.take().close.is_some() {
            return self.gone();
        }
        match self.ctx.store.worker_died(self.request.sid, doubt) {
            // Only this worker got the letters about waiting work, so the next worker is requested here. Each panic
            // ends a turn, so this does not repeat for ever.
            Ok(()) => {
                let _ = self.ctx.registry.set(self.request.sid, Doing::Closing);
                self.ctx.registry.want(WorkRequest { auto_continue: false, ..self.request.clone() });
                self.gone()
            }
            Err(e) if e.lies_in_rows() => {
                log::error!(key = self.request.key; "its end could not be written, the next boot writes it: {e}");
                self.gone()
            }
            Err(e) => {
                log::error!(key = self.request.key; "its end cannot be written yet: {e}");
                self.life = Life::Dead { doubt: true };
                self.pause()
            }
        }
    }

    fn pause(&self) -> Next {
        Next::Wait { until: Some(self.ctx.now() + AGAIN), agent: false }
    }

    fn gone(&mut self) -> Next {
        self.life = Life::Gone;
        Next::Gone
    }
}

/// How a worker begins.
#[derive(Debug)]
pub enum Begins {
    /// With an activation of its own, and this agent.
    Anew(Box<config::Agent>),
    /// With the activation of another daemon.
    Attaching(Box<Pending>),
}

/// The body of a worker's thread.
pub fn run(ctx: &Arc<Context>, request: &WorkRequest, how: Begins, mailbox: &Arc<Mailbox>) {
    crate::log::about("key", &request.key);
    let mut worker = match how {
        Begins::Anew(config) => Worker::open(ctx, request, *config, mailbox),
        Begins::Attaching(pending) => Worker::attach(ctx, request, *pending, mailbox),
    };
    let mut input = Input::Go;
    loop {
        let stepped = catch_unwind(AssertUnwindSafe(|| worker.step(input)));
        input = match stepped.unwrap_or_else(|_| worker.panicked()) {
            Next::Again => Input::Go,
            Next::Wait { until, agent } => {
                let mut watches = if agent { worker.watches() } else { Vec::new() };
                wait(mailbox, &mut watches, until).into()
            }
            Next::Gone => return,
        };
    }
}

fn wait(mailbox: &Mailbox, watches: &mut [Watch<'_>], until: Option<Instant>) -> Woken {
    mailbox.wait(watches, until).unwrap_or_else(|e| {
        log::error!("cannot wait for the agent: {e}");
        // Without descriptors no poll can fail again. The agent's output is still read.
        let woken = mailbox.wait(&mut [], Some(Instant::now() + AGAIN)).unwrap_or(Woken::Timeout);
        if woken == Woken::Timeout && !watches.is_empty() { Woken::Ready } else { woken }
    })
}

/// The meaning of a store error for a worker's next step.
fn class(error: &Error) -> Written {
    match error {
        Error::Refused(_) => Written::Refused,
        e if e.lies_in_rows() => Written::Damaged,
        _ => Written::InDoubt,
    }
}

#[cfg(test)]
mod tests;
