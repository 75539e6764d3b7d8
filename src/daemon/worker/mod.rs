//! One session's worker: opens its activation, runs its turns one after the other, closes it. A value that is driven: each
//! [`Worker::step`] does what its state stands for and says what it waits for. What follows what is decided in
//! [`crate::model::worker`].
//!
//! Each session has a thread of its own ([`run`]), which only waits and steps:
//! - for a letter in the mailbox, for the agent's descriptors, or for an instant, between two steps;
//! - in a step, for the store, which answers each commit within its patience, and in an agent's start, end and close (and
//!   the turns of `openai` and `lua`), which look at the mailbox themselves and are bounded by the instants that they are given.
//!
//! It holds no truth: the queue, the turn and the activation are rows, and every write names session, epoch and turn and
//! is refused when they are not current. So a worker that was given up changes nothing later.
//!
//! Reading order: this file is the worker and its thread; [`opening`] comes before there is a [`session`]; in that, `begin`
//! starts agents and begins turns, `turn` runs and finishes them, `agent_turn` is of the agent's own, `closing` the end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::context::Context;
use super::mailbox::{Mailbox, Woken};
use super::registry::{Doing, WorkRequest};
use crate::agent::Watch;
use crate::config;
use crate::model::worker::{State, Written};
use crate::store::Error;
use opening::{Opening, Tried};
use session::Session;

mod agent_turn;
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

/// Why a worker is stepped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// It was just made, or asked for it ([`Next::Again`]).
    Go,
    /// A letter is in its mailbox.
    Letter,
    /// A descriptor of its agent is ready.
    Ready,
    /// The instant that it named has passed.
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
    /// Nothing: it is to be stepped again.
    Again,
    /// A letter; or the instant, if there is one; or, with `agent`, one of [`Worker::watches`].
    Wait {
        /// When it is to be stepped although nothing came.
        until: Option<Instant>,
        /// Whether its agent is listened to.
        agent: bool,
    },
    /// It has ended, and is to be dropped.
    Gone,
}

/// One session's worker.
pub struct Worker {
    ctx: Arc<Context>,
    request: WorkRequest,
    mailbox: Arc<Mailbox>,
    life: Life,
}

/// How far a worker has come.
enum Life {
    Opening(Box<Opening>),
    Open(Box<Session>),
    /// It panicked, and its death is to be written. `doubt`: that was tried.
    Dead {
        doubt: bool,
    },
    Gone,
}

impl Worker {
    /// A worker for whoever asks for one; `config`: the agent that answers the key. Nothing is done before the first step.
    #[must_use]
    pub fn open(ctx: &Arc<Context>, request: &WorkRequest, config: config::Agent, mailbox: &Arc<Mailbox>) -> Self {
        Self {
            ctx: ctx.clone(),
            request: request.clone(),
            mailbox: mailbox.clone(),
            life: Life::Opening(Box::new(Opening::new(config))),
        }
    }

    /// In which state it is.
    #[must_use]
    pub fn state(&self) -> State {
        match &self.life {
            Life::Opening(_) => State::Opening,
            Life::Open(session) => session.state(),
            Life::Dead { .. } => State::Closing,
            Life::Gone => State::Gone,
        }
    }

    /// The agent's descriptors, to be waited for when [`Next::Wait`] says so.
    #[must_use]
    pub fn watches(&self) -> Vec<Watch<'_>> {
        match &self.life {
            Life::Open(session) => session.watches(),
            Life::Opening(_) | Life::Dead { .. } | Life::Gone => Vec::new(),
        }
    }

    /// Does what its state stands for.
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

    /// Writes the death of a worker, as often as it takes: while its activation stands open no other worker gets the
    /// session. A stop, or somebody who put the session away, writes the end instead.
    fn write_death(&mut self, doubt: bool) -> Next {
        if doubt && self.mailbox.take().close.is_some() {
            return self.gone();
        }
        match self.ctx.store.worker_died(self.request.sid, doubt) {
            // What waited was told to this worker alone: the next one is told here. Each panic ends a turn, so it is not
            // for ever.
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

/// What a worker's thread does, from its start to its end.
pub fn run(ctx: &Arc<Context>, request: &WorkRequest, config: config::Agent, mailbox: &Arc<Mailbox>) {
    crate::log::about("key", &request.key);
    let mut worker = Worker::open(ctx, request, config, mailbox);
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
        // Without descriptors it is no poll that could fail again. What is there of the agent is read all the same.
        let woken = mailbox.wait(&mut [], Some(Instant::now() + AGAIN)).unwrap_or(Woken::Timeout);
        if woken == Woken::Timeout && !watches.is_empty() { Woken::Ready } else { woken }
    })
}

/// What an error of the store means for what a worker does next.
fn class(error: &Error) -> Written {
    match error {
        Error::Refused(_) => Written::Refused,
        e if e.lies_in_rows() => Written::Damaged,
        _ => Written::InDoubt,
    }
}

#[cfg(test)]
mod tests;
