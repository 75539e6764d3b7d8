//! Starts a session's agent and begins its next turn.

use std::time::{Duration, Instant};

use serde_json::json;

use super::make::make_dir;
use super::session::{Session, Stage};
use super::{AGAIN, Input, Next, class};
use crate::agent::{self, Continuity, Failure};
use crate::daemon::mailbox::newer;
use crate::daemon::registry::Doing;
use crate::hooks::Verdict;
use crate::model::event::HookEvent;
use crate::model::worker::{Began, Started, Written, began, started};
use crate::store::{Begin, Begun, Error, Refusal};

/// The pause after damaged work that cannot even be failed.
const DAMAGED: Duration = Duration::from_secs(60);
/// The time to wait for hooks beyond their own timeouts. It guards against an error in the hooks.
const HOOKS_LATE: Duration = Duration::from_secs(30);

/// The stage of a begin.
pub(super) enum Beginning {
    /// The next turn begins.
    Next,
    /// A turn for work that the agent began by itself begins.
    Own,
    /// The hooks are asked for context: the number of this ask, and its deadline.
    Asked { begin: Box<Begin>, ask: u64, until: Instant },
}

impl Session {
    /// Starts the agent. If that fails, the oldest waiting message fails, and its sender is told.
    pub(super) fn start(&mut self, begun: Option<Box<Begun>>) -> Next {
        let _ = self.ctx().registry.set(self.host.sid, Doing::Starting);
        crate::failpoint::hit_for("start", "before", self.key());
        let cwd = agent::Host::identity(&self.host).cwd.clone();
        let until = self.ctx().now() + self.host.agent.start_timeout;
        let known = self.agent_session.clone();
        let came = match make_dir(&cwd, self.host.agent.kind) {
            Ok(()) => self.agent.start(&mut self.host, known.as_deref(), self.turns > 0, until),
            Err(e) => Err(Failure::new("agent_start", format!("{}: {e}", cwd.display()))),
        };
        let came = match came {
            Ok(agent) => {
                self.agent_started(agent);
                return match begun {
                    Some(begun) => self.turn(*begun, None, false),
                    None => self.go(Stage::Beginning(Beginning::Next)),
                };
            }
            Err(_) if self.host.close.is_some() => Started::ToClose,
            Err(failure) => Started::Failed(self.start_failed(failure)),
        };
        self.then(started(came))
    }

    fn agent_started(&mut self, started: agent::Started) {
        if std::mem::take(&mut self.fresh) {
            self.cut_short = self.died_before();
        }
        if matches!(started.continuity, Continuity::Lost | Continuity::Stateless) {
            // A stateless agent gets the whole conversation, or never remembers anything.
            self.cut_short = None;
        }
        if started.agent_session != self.agent_session {
            self.agent_session = started.agent_session;
            let noted = self.ctx().store.note_agent(self.host.sid, self.host.epoch, self.agent_session.clone());
            if let Err(e) = noted {
                log::warn!(key = self.key(); "the agent's session could not be noted: {e}");
            }
        }
        if started.continuity == Continuity::Lost {
            log::warn!(key = self.key(); "the agent had lost the session; it is given the transcript");
        }
    }

    fn start_failed(&mut self, failure: Failure) -> Written {
        self.back_off();
        log::warn!(key = self.key(), agent = self.host.agent.name; "agent: {failure}");
        let failed = self.fail_waiting(failure.code, failure.message);
        self.host.auto_continue = false;
        match &failed {
            Ok(more) => self.host.work = *more,
            Err(_) => self.host.work = true,
        }
        written(&failed)
    }

    /// Fails the oldest waiting message. Returns whether more wait.
    fn fail_waiting(&self, code: &str, why: String) -> Result<bool, Error> {
        self.ctx().store.fail_queued(self.host.sid, self.host.epoch, code.to_owned(), why)
    }

    /// Advances a begin.
    pub(super) fn begin(&mut self, beginning: Beginning, input: Input) -> Next {
        let came = match beginning {
            Beginning::Own => return self.begin_own(),
            Beginning::Next => match self.ctx().registry.begin(self.host.sid) {
                None => Began::Chosen,
                Some(false) => Began::Reserved,
                Some(true) => return self.begin_next(),
            },
            Beginning::Asked { begin, ask, until } => {
                self.host.collect();
                let verdict = match self.host.before_turn.take() {
                    Some((answered, verdict)) if answered == ask => verdict,
                    _ if input == Input::Timeout && until <= self.ctx().now() => {
                        Verdict::HookFailed("the hooks did not answer".into())
                    }
                    _ => {
                        return self.wait(Stage::Beginning(Beginning::Asked { begin, ask, until }), Some(until), false);
                    }
                };
                match verdict {
                    Verdict::Pass(context) => return self.commit_begin(*begin, context),
                    Verdict::Refuse(why) | Verdict::HookFailed(why) => self.hooks_refused(why),
                }
            }
        };
        self.then(began(came))
    }

    /// Begins the waiting work, after the hooks were asked.
    fn begin_next(&mut self) -> Next {
        self.host.work = false;
        let config = self.ctx().config();
        let begin = Begin {
            sid: self.host.sid,
            epoch: self.host.epoch,
            on_interrupt: self.host.agent.on_interrupt,
            resume: config.sessions.resume,
            policy: self.ctx().policy(),
            // As with `work`: later letters are for the next begin.
            auto_continue: std::mem::take(&mut self.host.auto_continue),
            context: None,
            fresh_id: uuid::Uuid::now_v7().to_string(),
            probation_at: match i64::from(config.sessions.stuck_threshold) {
                0 => 0,
                threshold => (threshold - 1).max(1),
            },
        };
        if !self.ctx().hooked(HookEvent::BeforeTurn) {
            return self.commit_begin(begin, None);
        }
        // If there is nothing to begin, or no turn may begin now, the begin itself returns that.
        let Ok(Some(begun)) = self.ctx().store.preview_turn(begin.clone()) else {
            return self.commit_begin(begin, None);
        };
        let fields = json!({ "text": begun.prompt, "first": begun.first });
        let event = self.event(HookEvent::BeforeTurn, &begun, fields);
        self.asks += 1;
        let (mailbox, ask) = (self.host.mailbox().clone(), self.asks);
        let handlers = self.ctx().handlers.clone();
        // The hooks answer within their own timeouts, even if a thread is lost.
        let until = self.ctx().now() + handlers.patience().saturating_add(HOOKS_LATE);
        handlers.ask(event, Box::new(move |verdict| mailbox.post(|l| newer(&mut l.before_turn, Some((ask, verdict))))));
        self.wait(Stage::Beginning(Beginning::Asked { begin: Box::new(begin), ask, until }), Some(until), false)
    }

    fn commit_begin(&mut self, mut begin: Begin, context: Option<String>) -> Next {
        begin.context.clone_from(&context);
        let auto_continue = begin.auto_continue;
        let came = match self.ctx().store.begin_turn(begin) {
            Ok(Some(begun)) => return self.turn(begun, context, false),
            Ok(None) => Began::Nothing,
            Err(Error::Refused(Refusal::Closed)) => {
                self.host.auto_continue |= auto_continue;
                Began::Nothing
            }
            Err(Error::Refused(Refusal::OnProbation)) => {
                self.host.work = true;
                self.host.auto_continue |= auto_continue;
                Began::Probation { new: self.ctx().registry.wait_for_probation(self.host.sid) }
            }
            Err(Error::Refused(_)) => {
                self.host.auto_continue |= auto_continue;
                Began::Refused
            }
            Err(e) if e.lies_in_rows() => self.damaged(&e, auto_continue),
            Err(e) => {
                log::error!(key = self.key(); "the next turn cannot begin yet: {e}");
                self.host.work = true;
                self.host.auto_continue |= auto_continue;
                Began::InDoubt
            }
        };
        self.then(began(came))
    }

    /// Another try would fail too: fails the message, tells its sender, and goes on with the next.
    fn damaged(&mut self, e: &Error, auto_continue: bool) -> Began {
        log::error!(key = self.key(); "the next turn cannot begin, it fails: {e}");
        let failed = self.fail_waiting("internal", format!("what was kept of the turn cannot be used: {e}"));
        match &failed {
            Ok(more) => self.host.work = *more,
            Err(Error::Refused(_)) => self.host.auto_continue |= auto_continue,
            Err(e) => {
                log::error!(key = self.key(); "nor can that be written: {e}");
                self.host.work = true;
                self.host.auto_continue |= auto_continue;
                self.not_before(self.ctx().now() + DAMAGED);
            }
        }
        Began::Failed(written(&failed))
    }

    /// The hooks refuse the turn.
    fn hooks_refused(&mut self, why: String) -> Began {
        // A refused continuation stays marked; the next boot or an operator requests it again.
        let failed = self.fail_waiting("hook_failed", why);
        match &failed {
            Ok(more) => self.host.work = *more,
            Err(Error::Refused(_)) => {}
            Err(e) => {
                log::error!(key = self.key(); "the turn that a hook refused cannot be failed yet: {e}");
                self.host.work = true;
                self.not_before(self.ctx().now() + AGAIN);
            }
        }
        Began::Failed(written(&failed))
    }
}

fn written(failed: &Result<bool, Error>) -> Written {
    match failed {
        Ok(more) => Written::Yes { more: *more },
        Err(e) => class(e),
    }
}
