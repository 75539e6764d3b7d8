//! A session's agent is started, and its next turn begun.

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

/// How long what is damaged and cannot even be failed is left alone.
const DAMAGED: Duration = Duration::from_secs(60);
/// How much longer than they need at most hooks are waited for: this bound is for a fault in them.
const HOOKS_LATE: Duration = Duration::from_secs(30);

/// How far a begin has come.
pub(super) enum Beginning {
    /// The next turn is to begin.
    Next,
    /// A turn for what the agent says by itself is to begin.
    Own,
    /// Hooks are asked for context: for the time of this number, until the instant.
    Asked { begin: Box<Begin>, ask: u64, until: Instant },
}

impl Session {
    /// Starts the agent. What waits fails if it cannot be started, and its sender is told.
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
            // It is given all that was said, or never remembers anything.
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

    /// Fails what waits first. Whether more waits.
    fn fail_waiting(&self, code: &str, why: String) -> Result<bool, Error> {
        self.ctx().store.fail_queued(self.host.sid, self.host.epoch, code.to_owned(), why)
    }

    /// Takes a begin further.
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

    /// Begins what waits, after the hooks were asked.
    fn begin_next(&mut self) -> Next {
        self.host.work = false;
        let config = self.ctx().config();
        let begin = Begin {
            sid: self.host.sid,
            epoch: self.host.epoch,
            on_interrupt: self.host.agent.on_interrupt,
            resume: config.sessions.resume,
            policy: self.ctx().policy(),
            // As with `work`: what comes from here on is for the next begin.
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
        // Nothing to begin, or no begin now: the begin itself says so.
        let Ok(Some(begun)) = self.ctx().store.preview_turn(begin.clone()) else {
            return self.commit_begin(begin, None);
        };
        let fields = json!({ "text": begun.prompt, "first": begun.first });
        let event = self.event(HookEvent::BeforeTurn, &begun, fields);
        self.asks += 1;
        let (mailbox, ask) = (self.host.mailbox().clone(), self.asks);
        let handlers = self.ctx().handlers.clone();
        // The hooks answer within their own timeouts, a lost thread included.
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

    /// To try again would be in vain: the sender is told, and what waits behind it has its turn.
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

    /// Hooks do not let the turn begin.
    fn hooks_refused(&mut self, why: String) -> Began {
        // A continuation that is refused stays marked, and is asked for again by the next boot or an operator.
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
