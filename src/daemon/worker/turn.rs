//! Runs a turn and writes its outcome.

use std::time::Instant;

use serde_json::json;

use super::session::{Session, Stage};
use super::{AGAIN, Input, Next, class};
use crate::agent::{self, Answer, Progress, Prompt};
use crate::config::AgentKind;
use crate::daemon::mailbox::Close;
use crate::daemon::registry::Doing;
use crate::daemon::turn_host::Running;
use crate::model::event::{HookEvent, MarkReason, Outcome};
use crate::model::worker::{Ending, Judged, Then, Why, Written, finish_again, finished, mark, verdict};
use crate::store::{Batch, Begun, Error};

/// A running turn.
pub(super) struct Turn {
    begun: Begun,
    since: Instant,
    /// The agent began it by itself.
    own: bool,
    /// When the agent must be called if nothing comes.
    until: Option<Instant>,
}

/// A turn that has ended, with the outcome to write.
pub(super) struct Finish {
    begun: Begun,
    since: Instant,
    own: bool,
    answer: String,
    unconfirmed: Vec<Batch>,
    outcome: Outcome,
    error: Option<(String, String)>,
    mark: MarkReason,
    /// A try to write it failed.
    tried: bool,
}

impl Session {
    /// Runs a turn that has begun. `own`: the agent began it by itself.
    pub(super) fn turn(&mut self, mut begun: Begun, context: Option<String>, own: bool) -> Next {
        // Its agent may have been started since.
        begun.frame = self.host.decided(begun.frame);
        let since = self.now_runs(&begun);
        log::debug!(key = self.key(), turn_id = begun.turn_id; "turn begins");
        self.host.begin(&begun);
        self.notify(HookEvent::TurnStart, &begun, json!({}));
        let prompt = Prompt {
            turn_id: begun.turn_id.clone(),
            text: match self.cut_short.take_if(|_| !begun.prompt.is_empty()) {
                // The prompt of a continuation already describes the turn that was cut off.
                Some(before) if begun.continues.is_none() => self.recalling(&before, &begun.prompt),
                _ => begun.prompt.clone(),
            },
            context,
            frame: begun.frame.and_then(|frame| u64::try_from(frame).ok()),
            resumed: begun.continues.as_ref().is_some_and(|c| c.rerun),
        };
        crate::failpoint::hit_for("prompt", "before", self.key());
        let progress = if begun.prompt.is_empty() {
            self.agent.listen(&mut self.host)
        } else {
            self.agent.begin(&mut self.host, &prompt)
        };
        self.progress(Box::new(Turn { begun, since, own, until: None }), progress)
    }

    /// Goes on with a turn that another daemon began.
    pub(super) fn run_on(&mut self, begun: Begun, progress: Progress) -> Next {
        let since = self.now_runs(&begun);
        let own = begun.prompt.is_empty();
        self.progress(Box::new(Turn { begun, since, own, until: None }), progress)
    }

    /// Tells the registry and the log which turn runs. Returns since when.
    fn now_runs(&self, begun: &Begun) -> Instant {
        let (sid, since) = (self.host.sid, self.ctx().now());
        let doing = Doing::Running { turn_id: Some(begun.turn_id.clone()), since, tool: None };
        let _ = self.ctx().registry.set(sid, doing);
        if begun.on_probation {
            self.ctx().registry.begin_probation(sid);
        }
        crate::log::about("turn_id", &begun.turn_id);
        since
    }

    /// Advances the running turn.
    pub(super) fn run(&mut self, turn: Box<Turn>, input: Input) -> Next {
        let mut concerns = self.host.collect();
        if self.host.let_go && self.host.close.is_none() {
            return self.let_go();
        }
        concerns |= self.host.act_on_time();
        self.agent.durable(&mut self.host);
        let late = turn.until.is_some_and(|at| at <= self.ctx().now());
        // While the store accepts nothing, the agent's output is not read, but the agent still gets its letters.
        let room = agent::Host::has_room(&self.host);
        if !concerns && !(room && (late || input == Input::Ready)) {
            return self.listen_on(turn);
        }
        let progress = self.agent.input(&mut self.host);
        self.progress(turn, progress)
    }

    fn progress(&mut self, mut turn: Box<Turn>, progress: Progress) -> Next {
        match progress {
            Progress::Pending { until } => {
                turn.until = until;
                self.listen_on(turn)
            }
            Progress::Done(answer) => {
                let answer = self.host.within_memory(answer);
                self.answered(*turn, &answer)
            }
        }
    }

    fn listen_on(&mut self, turn: Box<Turn>) -> Next {
        self.agent.durable(&mut self.host);
        let room = agent::Host::has_room(&self.host);
        let agents = turn.until.filter(|_| room);
        let until = agents.into_iter().chain(self.host.due()).min();
        self.wait(Stage::Running(turn), until.or_else(|| (!room).then(|| self.ctx().now() + AGAIN)), room)
    }

    /// The turn has its answer: decides the outcome, which is written next.
    fn answered(&mut self, turn: Turn, answer: &Answer) -> Next {
        self.agent.end(&mut self.host);
        let Turn { begun, since, own, .. } = turn;
        crate::failpoint::hit_for("prompt", "answered", self.key());
        // Events that came with the answer and do not belong to it.
        self.agent.idle(&mut self.host);
        if self.agent.is_ready() {
            if matches!(answer, Answer::Completed { .. }) {
                self.failures = 0;
                self.start_after = None;
            }
        } else {
            self.back_off();
        }
        self.turns += 1;
        let Some((running, unconfirmed, why)) = self.host.end() else { return self.go(Stage::Closing(Close::Retire)) };
        let (outcome, error) = judge(answer, &running, why);
        match &error {
            Some((code, why)) => log::warn!(key = self.key(), turn_id = begun.turn_id; "turn {outcome}: {code}: {why}"),
            None => log::debug!(key = self.key(), turn_id = begun.turn_id; "turn {outcome}"),
        }
        if self.host.agent.kind == AgentKind::Acp && !self.agent.is_ready() {
            self.cut_short = matches!(outcome, Outcome::Failed | Outcome::Cancelled).then(|| begun.turn_id.clone());
        }
        if self.is_ready() {
            self.ctx().registry.finishing(self.host.sid, self.host.epoch);
        }
        let mark = mark(self.ctx().board().stop.map(|(reason, ..)| reason));
        let answer = running.answer;
        self.finish(Box::new(Finish { begun, since, own, answer, unconfirmed, outcome, error, mark, tried: false }))
    }

    /// Writes the outcome, and retries until that succeeds: a full disk delays it, a stop that abandons this worker
    /// ends it.
    pub(super) fn finish(&mut self, mut finish: Box<Finish>) -> Next {
        if finish.tried {
            self.host.collect();
            let late = self.host.close_by.is_some_and(|by| by <= self.ctx().now());
            if finish_again(self.host.is_killed(), late) == Then::Close {
                return self.over(&finish, Then::Close);
            }
        }
        let store = self.host.ctx.store.clone();
        let f = &*finish;
        let (outcome, error) = (f.outcome, f.error.clone());
        let (written, more) = match store.finish_turn(f.begun.turn, f.unconfirmed.clone(), outcome, error, f.mark) {
            Ok(ended) => {
                self.ctx().tally.turn(ended.outcome);
                self.host.finished(&finish.unconfirmed);
                self.agent.durable(&mut self.host);
                self.notify_end(&f.begun, ended.outcome, &f.answer, f.since);
                (Written::Yes { more: ended.more }, ended.more)
            }
            Err(Error::Refused(_)) => {
                // The turn was ended elsewhere, or an earlier write in doubt was committed.
                self.agent.durable(&mut self.host);
                if let Some(outcome) = store.turn(&f.begun.turn_id).ok().and_then(|t| Outcome::parse(&t.state)) {
                    self.notify_end(&f.begun, outcome, &f.answer, f.since);
                }
                (Written::Refused, matches!(store.peek_turn(self.host.sid), Ok(Some(_))))
            }
            Err(e) => {
                let written = class(&e);
                let what = if written == Written::Damaged { ", the session is given up" } else { " yet" };
                log::error!(key = self.key(), turn_id = f.begun.turn_id; "the turn's outcome cannot be written{what}: {e}");
                (written, false)
            }
        };
        // Letters may have been read while the agent was told that its output is kept: of a message that was accepted since.
        self.host.work |= more;
        match finished(written, self.host.work) {
            Then::Again => {
                finish.tried = true;
                self.pause(Stage::Finishing(finish))
            }
            then => self.over(&finish, then),
        }
    }

    /// The turn is over for this worker.
    fn over(&mut self, finish: &Finish, then: Then) -> Next {
        crate::log::about("turn_id", "");
        let sid = self.host.sid;
        if finish.begun.on_probation {
            self.ctx().registry.end_probation(sid);
        }
        // The registry is updated after the database, so a drain that sees no running turn finds the outcome committed.
        if self.host.begun.is_none() {
            let _ = self.ctx().registry.set(sid, Doing::Idle);
        }
        if finish.own {
            self.own_work = Some(self.ctx().now());
            self.ctx().registry.hold_back(sid);
        }
        if then == Then::Close {
            // A session that has gone on without this worker is different: no waiting work is known.
            return self.go(Stage::Closing(Close::Retire));
        }
        self.then(then)
    }
}

/// The outcome of a turn, with its error.
fn judge(answer: &Answer, running: &Running, why: Option<Why>) -> (Outcome, Option<(String, String)>) {
    let failed = |code: &str, text: String| (Outcome::Failed, Some((code.to_owned(), text)));
    let ending = match answer {
        Answer::Completed { .. } => Ending::Completed,
        Answer::Failed(_) => Ending::Failed,
        Answer::Cancelled => Ending::Cancelled,
    };
    match verdict(ending, running.too_large.is_some(), running.timed_out.is_some(), why) {
        Judged::Ended(outcome) => (outcome, None),
        Judged::TooLarge => failed("answer_too_large", running.too_large.clone().unwrap_or_default()),
        Judged::TimedOut => failed("timeout", running.timed_out.clone().unwrap_or_default()),
        Judged::AgentFailed => match answer {
            Answer::Failed(failure) => failed(failure.code, failure.message.clone()),
            Answer::Completed { .. } | Answer::Cancelled => failed("agent_error", String::new()),
        },
        Judged::AgentCancelled => failed("agent_error", "the agent cancelled the turn by itself".to_owned()),
    }
}
