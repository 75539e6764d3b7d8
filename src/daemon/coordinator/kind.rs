//! Which kind of stop it is, and what becomes of the agents: signals and requests become the machine's `StopAsked`.
//!
//! Under a service manager a SIGTERM may belong to a restart or to a stop, and only the manager knows. It is asked on a
//! thread of its own; until it has answered, or [`job::PATIENCE`] is over, no turn starts and nothing else happens. The
//! stop's deadline counts from the signal.

use std::time::Instant;

use super::{Coordinator, Event, Timer};
use crate::daemon::job;
use crate::daemon::signals::Signal;
use crate::daemon::sweep;
use crate::model::event::{StopReason, Urgency};
use crate::model::keep_policy::{Agents, Exit, StopRequest, agents_after, agents_at};
use crate::model::lifecycle;
use crate::store::Admission;

/// A SIGTERM whose kind is not known yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    /// When it came.
    at: Instant,
    /// Signals that come meanwhile raise it; not used where a stop is in progress, which has its own.
    urgency: Urgency,
}

impl Coordinator {
    pub(super) fn signal(&mut self, signal: Signal) {
        let reason = match signal {
            Signal::Reload => return self.reload(None),
            Signal::Terminate => return self.ask_kind(),
            Signal::Stop => StopReason::Shutdown,
            Signal::Restart => StopReason::Restart,
        };
        let stop = self.machine.stop();
        let urgency = match &mut self.question {
            Some(question) if stop.is_none() => {
                question.urgency = question.urgency.raised();
                if reason == StopReason::Restart {
                    // It is wanted sooner, whatever it is.
                    return;
                }
                question.urgency
            }
            _ => stop.map_or(Urgency::Graceful, |s| s.urgency.raised()),
        };
        self.ask_stop(StopRequest { reason, urgency, agents: None });
    }

    /// A SIGTERM under a service manager.
    fn ask_kind(&mut self) {
        match (self.machine.stop(), &mut self.question) {
            (None, Some(question)) => return question.urgency = question.urgency.raised(),
            // Whatever it is, no turn starts any more.
            (None, None) => self.ctx.store.set_admission(Admission::Stopping),
            (Some(stop), question) => {
                let asked = question.is_some();
                let (reason, urgency, agents) = (stop.reason, stop.urgency.raised(), Some(self.agents));
                self.ask_stop(StopRequest { reason, urgency, agents });
                if asked || self.agents == Agents::End {
                    return;
                }
            }
        }
        let at = self.ctx.now();
        self.question = Some(Question { at, urgency: Urgency::Graceful });
        let until = at + job::PATIENCE;
        self.timers.set(Timer::Kind, until);
        let unknown = Event::KindKnown(StopReason::Shutdown);
        let asked = self.aside("job", Some(unknown), move |_| Some(Event::KindKnown(job::ask(until))));
        if asked.is_err() {
            self.kind_known(StopReason::Shutdown);
        }
    }

    /// The service manager has answered, or did not in time. An answer to a question that is settled changes nothing.
    pub(super) fn kind_known(&mut self, reason: StopReason) {
        let Some(question) = self.question else { return };
        if self.machine.stop().is_none() {
            return self.ask_stop(StopRequest { reason, urgency: question.urgency, agents: None });
        }
        self.question = None;
        self.timers.clear(Timer::Kind);
        if reason == StopReason::Shutdown {
            self.ask_stop(StopRequest { reason, urgency: Urgency::Graceful, agents: None });
        }
    }

    /// A request to stop; `Err` says why it is not taken.
    pub(super) fn request_stop(&mut self, mut asked: StopRequest) -> Result<(), &'static str> {
        let stop = self.machine.stop();
        if asked.reason == StopReason::Restart {
            if stop.is_some_and(|s| s.reason == StopReason::Shutdown) {
                return Err("a shutdown is in progress");
            }
            if stop.is_none() && self.question.is_some() {
                return Err("a stop is in progress");
            }
        }
        if let Some(question) = self.question.filter(|_| stop.is_none()) {
            asked.urgency = asked.urgency.max(question.urgency);
        }
        self.ask_stop(asked);
        Ok(())
    }

    /// A stop whose reason is known. A question that is open is answered by it, and the stop began when that was asked.
    fn ask_stop(&mut self, asked: StopRequest) {
        let StopRequest { reason, urgency, agents } = asked;
        let config = self.ctx.config();
        let agents = agents_at(Exit::Stop(reason), config.agents.keep, agents);
        let now = self.ctx.now();
        let began = match self.machine.stop() {
            None => {
                self.agents = agents;
                self.timers.clear(Timer::Kind);
                self.question.take().map_or(now, |question| question.at)
            }
            Some(stop) => {
                let before = self.agents;
                self.agents = agents_after(before, agents);
                if before == Agents::Keep && self.agents == Agents::End {
                    self.spare_none();
                    // Nobody is left who would end them, nor who would write that they ended: the next boot does.
                    if self.gone_on {
                        self.unclean = true;
                        sweep::cut_short(&self.ctx, true);
                    }
                }
                self.overtaken |= stop.reason == StopReason::Restart && reason == StopReason::Shutdown;
                now
            }
        };
        self.ctx.show(|b| b.agents = Some(self.agents));
        self.machine.set_budget(config.shutdown);
        self.step_at(lifecycle::Event::StopAsked(reason, urgency), began);
        self.refuse_reloads();
    }
}
