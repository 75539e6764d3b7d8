//! A turn in progress: its state, and the effect of each event on it.
//!
//! Owns the stage of the turn and its deadlines; it never waits. It must not know how a process is started or ended.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::{CallError, EXIT_AFTER_EOF, Event};
use super::live::Live;
use super::turn::{SavedTurn, Turn};
use super::wire::{self, Id, v1};
use super::{offers, session};
use crate::agent::json::Raw;
use crate::agent::{Answer, Failure, Host, Interrupt, PermissionOutcome, Prompt, Said, ToolCall};

/// The longest time that a cancel waits for the agent's answer.
const CANCEL_TIME: Duration = Duration::from_secs(5);
/// A number that no request has: they count from 1.
const NO_REQUEST: u64 = 0;
/// The longest time for a new session within a turn.
const RENEW_TIME: Duration = Duration::from_secs(60);
/// The longest time for the output of an agent that ends to be kept.
const KEPT_FIRST: Duration = Duration::from_secs(10);
/// A turn that the agent began by itself is over after this time without an event.
const QUIET: Duration = Duration::from_secs(2);

/// How a turn went.
pub enum End {
    /// It has its answer.
    Over(Answer),
    /// The agent does not know the session, and has not begun the turn.
    UnknownSession,
    /// The agent has opened a new session: the prompt must be sent again.
    Renewed,
    /// The process must be ended, and the turn has failed.
    Broken(Failure),
    /// The process must be ended because of an interrupt.
    Ended(Interrupt),
    /// It answered a cancel with an error, so its state is doubtful.
    Doubtful,
}

/// What a turn waits for.
#[derive(Debug)]
enum Stage {
    /// The answer to the prompt.
    Answer,
    /// The next update of an agent that works by itself, until `quiet_at`.
    Words { quiet_at: Instant },
    /// The answer to `session/new`, until the deadline.
    Session { until: Instant },
    /// The exit of an agent that closed its output, until the deadline. `method`: the call that failed; `None`: the
    /// turn.
    Exit { method: Option<&'static str>, until: Instant },
}

/// What came of an advance.
#[derive(Debug)]
pub enum Step {
    /// When to advance again if no event comes before.
    Wait(Option<Instant>),
    /// What was said so far is to be marked before more is read.
    Mark,
}

/// What another daemon must know of a turn in progress.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct SavedRunning {
    turn: SavedTurn,
    stage: SavedStage,
    number: u64,
    renewed: bool,
    changed_before: bool,
    cancelled: bool,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum SavedStage {
    Answer,
    Words,
    Session,
}

/// A turn in progress.
#[derive(Debug)]
pub struct Running {
    /// What the agent has said so far.
    pub turn: Turn,
    /// The prompt, in case it must be sent again in a new session. `None`: the agent began the turn by itself.
    pub again: Option<Prompt>,
    /// The agent opened a new session for this turn.
    pub renewed: bool,
    /// The session had changed before it.
    pub changed_before: bool,
    stage: Stage,
    /// The request whose answer is awaited.
    number: u64,
    /// A cancel was sent, and this is the deadline for its answer.
    cancel: Option<Instant>,
    /// An event that was read before the turn and belongs to it.
    first: Option<Event>,
}

impl Running {
    /// A turn whose prompt was sent under this number.
    pub fn prompt(prompt: Prompt, number: u64, renewed: bool, changed_before: bool) -> Self {
        let again = Some(prompt);
        let (turn, stage) = (Turn::default(), Stage::Answer);
        Self { turn, again, renewed, changed_before, stage, number, cancel: None, first: None }
    }

    /// A turn that the agent began by itself, with this event.
    pub fn own(first: Option<Event>, now: Instant) -> Self {
        let stage = Stage::Words { quiet_at: now + QUIET };
        let (turn, number) = (Turn::default(), NO_REQUEST);
        Self { turn, again: None, renewed: false, changed_before: false, stage, number, cancel: None, first }
    }

    /// What another daemon must know of it.
    pub fn saved(&self) -> SavedRunning {
        SavedRunning {
            turn: self.turn.saved(),
            stage: match self.stage {
                // The exit is told again.
                Stage::Answer | Stage::Exit { method: None, .. } => SavedStage::Answer,
                Stage::Words { .. } => SavedStage::Words,
                Stage::Session { .. } | Stage::Exit { method: Some(_), .. } => SavedStage::Session,
            },
            number: self.number,
            renewed: self.renewed,
            changed_before: self.changed_before,
            cancelled: self.cancel.is_some(),
        }
    }

    /// A turn that goes on. `prompt`: `None` if the agent began it by itself.
    pub fn resume(saved: SavedRunning, prompt: Option<Prompt>, tools: Vec<ToolCall>, now: Instant) -> Self {
        Self {
            turn: Turn::resume(saved.turn, tools),
            again: prompt,
            renewed: saved.renewed,
            changed_before: saved.changed_before,
            stage: match saved.stage {
                SavedStage::Answer => Stage::Answer,
                SavedStage::Words => Stage::Words { quiet_at: now + QUIET },
                SavedStage::Session => Stage::Session { until: now + RENEW_TIME },
            },
            number: saved.number,
            cancel: saved.cancelled.then(|| now + CANCEL_TIME),
            first: None,
        }
    }

    /// Whether it began with a prompt.
    pub const fn is_prompt(&self) -> bool {
        self.again.is_some()
    }

    /// The agent does not know the session: asks the same process for a new one.
    pub fn renew(&mut self, live: &mut Live, host: &dyn Host, setup: &v1::Setup<'_>) {
        log::info!("{}: the agent no longer knows session {}", host.identity().key, live.session);
        self.number = live.client.request(v1::NEW, &v1::new(setup));
        self.stage = Stage::Session { until: host.now() + RENEW_TIME };
    }

    /// Advances as far as possible without waiting, or until what was said is to be marked.
    ///
    /// # Errors
    /// The turn, or its stage, has ended.
    pub fn advance(&mut self, live: &mut Live, host: &mut dyn Host) -> Result<Step, End> {
        let mut driven = Driven { live, it: self };
        loop {
            if let Some(end) = driven.check_host(host) {
                return Err(end);
            }
            if driven.live.client.process.has_loose() || host.wants_mark() {
                return Ok(Step::Mark);
            }
            match driven.next() {
                Some(event) => {
                    if let Some(end) = driven.handle(host, event) {
                        return Err(end);
                    }
                    // A flood of updates must not outrun a deadline.
                    if let Some(end) = driven.late(host) {
                        return Err(end);
                    }
                }
                None => {
                    return match driven.late(host).or_else(|| driven.quiet(host)) {
                        Some(end) => Err(end),
                        None => Ok(Step::Wait(driven.due(host))),
                    };
                }
            }
        }
    }
}

/// A turn together with its agent.
struct Driven<'a> {
    live: &'a mut Live,
    it: &'a mut Running,
}

impl Driven<'_> {
    /// Checks the host for an interrupt and for settled permissions.
    fn check_host(&mut self, host: &mut dyn Host) -> Option<End> {
        self.give_answers(host);
        match (host.interrupt(), &self.it.stage) {
            (None, _) | (Some(_), Stage::Exit { .. }) => {}
            (Some(interrupt), Stage::Session { .. }) => return Some(End::Ended(interrupt)),
            (Some(Interrupt::Kill), _) => return Some(End::Ended(Interrupt::Kill)),
            (Some(Interrupt::Cancel(until)), Stage::Answer) => self.cancel(host, until),
            (Some(Interrupt::Cancel(_)), Stage::Words { .. }) => {
                self.take_back(host);
                self.withdraw_all();
                self.live.client.notify(v1::CANCEL, &v1::cancel(&self.live.session));
                return Some(End::Over(Answer::Cancelled));
            }
        }
        None
    }

    /// Gives the agent the answers to what it asked.
    fn give_answers(&mut self, host: &mut dyn Host) {
        for (request_id, settled) in host.permission_answers() {
            let answer = self.it.turn.settle(&request_id, &settled);
            self.respond(answer);
            self.heard(host.now());
        }
    }

    /// Withdraws what is open, but for what somebody has answered: an answer that was promised is what the agent hears.
    fn take_back(&mut self, host: &mut dyn Host) {
        self.it.turn.take_back(host);
        self.give_answers(host);
    }

    /// The next event that is there, without waiting.
    fn next(&mut self) -> Option<Event> {
        if let Some(first) = self.it.first.take() {
            return Some(first);
        }
        // An agent that has closed its output sends nothing more.
        if matches!(self.it.stage, Stage::Exit { .. }) { None } else { self.live.client.next_ready() }
    }

    /// Extends the turn of an agent that works by itself.
    fn heard(&mut self, now: Instant) {
        if let Stage::Words { quiet_at } = &mut self.it.stage {
            *quiet_at = now + QUIET;
        }
    }

    fn handle(&mut self, host: &mut dyn Host, event: Event) -> Option<End> {
        if let Stage::Session { .. } = self.it.stage {
            return self.session(host, event);
        }
        self.heard(host.now());
        self.take(host, event)
    }

    /// Handles an event while a new session is being opened.
    fn session(&mut self, host: &mut dyn Host, event: Event) -> Option<End> {
        let error = match event {
            Event::Response(number, Ok(result)) if number == self.it.number => {
                return Some(match session::new_id(&result) {
                    Ok(id) => {
                        self.live.session = id;
                        (self.live.proven, self.live.changed) = (true, true);
                        offers::take_in(&mut self.live.offers, Raw::of(&result));
                        End::Renewed
                    }
                    Err(failure) => End::Broken(failure),
                });
            }
            Event::Response(number, Err(e)) if number == self.it.number => CallError::Refused(e),
            Event::Lost(lost) if lost.answers() == Some(self.it.number) => CallError::Lost(lost.what),
            Event::Request(id, method, _) => {
                self.live.client.refuse(&id, &method);
                return None;
            }
            Event::Gone => {
                self.await_exit(host);
                return None;
            }
            _ => return None,
        };
        Some(End::Broken(session::explain(&mut self.live.client, host, v1::NEW, error)))
    }

    /// The agent has closed its output: waits for its exit status.
    fn await_exit(&mut self, host: &dyn Host) {
        let method = matches!(self.it.stage, Stage::Session { .. }).then_some(v1::NEW);
        self.it.stage = Stage::Exit { method, until: host.now() + EXIT_AFTER_EOF };
    }

    /// How much longer an exit may take than the end of the output: a shim tells it once all output is kept for good.
    fn exit_takes(&self) -> Duration {
        if self.live.client.process.is_ending() { KEPT_FIRST } else { Duration::ZERO }
    }

    /// Whether a deadline that ends the turn has passed.
    fn late(&mut self, host: &mut dyn Host) -> Option<End> {
        let now = host.now();
        match &self.it.stage {
            Stage::Exit { method, until } => {
                let exited = self.live.client.process.has_exited();
                if !exited && now < *until + self.exit_takes() && host.interrupt().is_none() {
                    return None;
                }
                let how = self.live.client.how_it_ended(host);
                Some(End::Broken(match method {
                    Some(method) => Failure::new("agent_start", format!("{method}: the agent {how}")),
                    None => Failure::new("agent_died", format!("the agent {how}")),
                }))
            }
            Stage::Session { until } if *until <= now => {
                let late = CallError::Timeout;
                Some(End::Broken(session::explain(&mut self.live.client, host, v1::NEW, late)))
            }
            Stage::Answer | Stage::Words { .. } | Stage::Session { .. } => {
                let late = self.it.cancel.is_some_and(|until| until <= now);
                host.interrupt().filter(|_| late).map(End::Ended)
            }
        }
    }

    /// Whether the turn ends because there is nothing to read.
    fn quiet(&mut self, host: &mut dyn Host) -> Option<End> {
        let now = host.now();
        let deaf = self.live.client.process.write_deadline().is_some_and(|at| at <= now);
        match self.it.stage {
            Stage::Exit { .. } => None,
            Stage::Session { .. } if deaf => {
                let late = CallError::Timeout;
                Some(End::Broken(session::explain(&mut self.live.client, host, v1::NEW, late)))
            }
            _ if deaf => self.take(host, Event::Deaf),
            Stage::Words { quiet_at } if quiet_at <= now && !self.it.turn.is_asking() => {
                Some(End::Over(Answer::Completed { stop_reason: None }))
            }
            Stage::Words { .. } | Stage::Answer | Stage::Session { .. } => None,
        }
    }

    /// When to advance again if no event comes before.
    fn due(&self, host: &dyn Host) -> Option<Instant> {
        let process = &self.live.client.process;
        let exiting = matches!(self.it.stage, Stage::Exit { .. });
        if process.has_exited() && !process.is_drained() && !exiting {
            // Output from before its exit is read without a pause.
            return Some(host.now());
        }
        let own = match self.it.stage {
            Stage::Answer => self.it.cancel,
            Stage::Words { quiet_at } => (!self.it.turn.is_asking()).then_some(quiet_at),
            Stage::Session { until } => Some(until),
            Stage::Exit { until, .. } => return Some(until + self.exit_takes()),
        };
        [own, process.write_deadline()].into_iter().flatten().min()
    }

    /// Asks the agent to stop; half of the time is left for signals. Open permissions are withdrawn, because some
    /// agents answer a cancel only after that.
    fn cancel(&mut self, host: &mut dyn Host, until: Instant) {
        let now = host.now();
        let share = (until.saturating_duration_since(now) / 2).min(CANCEL_TIME);
        if self.it.cancel.is_none() {
            self.take_back(host);
            self.live.client.notify(v1::CANCEL, &v1::cancel(&self.live.session));
        }
        self.it.cancel = Some(self.it.cancel.map_or(now + share, |before| before.min(until)));
    }

    fn take(&mut self, host: &mut dyn Host, event: Event) -> Option<End> {
        match event {
            Event::Notification(method, params) if method == v1::UPDATE => self.update(host, Raw::of(&params)),
            Event::Notification(method, params) if method == "$/cancel_request" => {
                let id = Id::read(Raw::of(&params).get("requestId"));
                let answer = id.and_then(|id| self.it.turn.withdraw(host, &id));
                self.respond(answer);
            }
            Event::Request(id, method, params) if method == v1::REQUEST_PERMISSION => {
                let answer = if self.it.cancel.is_some() {
                    Some((id, v1::permission(&PermissionOutcome::Cancelled)))
                } else {
                    self.it.turn.ask(host, id, Raw::of(&params))
                };
                self.respond(answer);
            }
            Event::Request(id, method, _) => self.live.client.refuse(&id, &method),
            Event::Response(number, answer) if number == self.it.number => {
                self.withdraw_all();
                return Some(self.answered(host, answer));
            }
            Event::Response(number, Err(e)) if self.live.choosing.remove(&number) => {
                let text = format!("the agent refuses what is chosen for its session: {e}");
                log::warn!("{}: {text}", host.identity().key);
                host.said(Said::Notice("agent_option".into(), text));
            }
            Event::Lost(lost) if lost.answers() == Some(self.it.number) => {
                self.withdraw_all();
                let why = format!("the end of the answer is lost: {}", lost.what);
                return Some(End::Over(match self.it.cancel {
                    Some(_) => Answer::Cancelled,
                    None => Answer::Failed(Failure::new("agent_error", why)),
                }));
            }
            Event::Lost(lost) => {
                let code = if lost.too_long { "line_too_long" } else { "line_unreadable" };
                let text = format!("the agent sent {}; it was skipped", lost.what);
                host.said(Said::Notice(code.into(), text));
            }
            Event::Gone => self.await_exit(host),
            Event::Deaf => {
                let why = "the agent does not read its input";
                return Some(End::Broken(Failure::new("agent_error", why)));
            }
            Event::Notification(..) | Event::Response(..) | Event::Timeout | Event::CheckHost => {}
        }
        None
    }

    fn update(&mut self, host: &mut dyn Host, params: Raw<'_>) {
        let [id, update] = params.fields(["sessionId", "update"]);
        match id.string() {
            Some(id) if id != self.live.session => {
                if self.live.proven {
                    return;
                }
                // It accepted the resume but uses another id: it opened a new session without the conversation.
                log::info!("{}: the agent goes on under session {id}", host.identity().key);
                self.live.session = id;
                (self.live.proven, self.live.changed) = (true, true);
                let text = "the agent had lost the conversation, and answers without it";
                host.said(Said::Notice("context_lost".into(), text.into()));
            }
            _ => self.live.proven = true,
        }
        if offers::update(&mut self.live.offers, update) {
            self.live.tell_consent(host);
        }
        self.it.turn.update(host, update);
    }

    fn answered(&self, host: &mut dyn Host, answer: Result<String, wire::RpcError>) -> End {
        if self.it.cancel.is_some() {
            return self.cancelled(host, answer.err());
        }
        let result = match answer {
            Ok(result) => result,
            Err(e) if session::is_unknown_session(&e) && !self.it.turn.spoke => return End::UnknownSession,
            Err(e) => {
                let code = if e.code == session::AUTH_REQUIRED { "auth_required" } else { "agent_error" };
                return End::Over(Answer::Failed(Failure::new(code, format!("the agent failed: {e}"))));
            }
        };
        let stop_reason = Raw::of(&result).get("stopReason").string().map(|reason| wire::shorten(&reason, 200));
        let failed = |code, why: &str| End::Over(Answer::Failed(Failure::new(code, why)));
        match stop_reason.as_deref() {
            // Some agents refuse a prompt of a session that they do not know.
            Some("refusal") if !self.it.turn.spoke && !self.live.proven => End::UnknownSession,
            Some("refusal") if !self.it.turn.spoke => failed("agent_refused", "the agent refused to answer"),
            // The agent's own decision, or its reaction to a denied permission.
            Some("cancelled") if !self.it.turn.spoke && !self.it.turn.settled => {
                failed("agent_error", "the agent cancelled the turn by itself")
            }
            _ => {
                if !self.it.turn.spoke {
                    let text = "the agent sent an empty answer";
                    host.said(Said::Notice("empty_answer".into(), text.into()));
                }
                End::Over(Answer::Completed { stop_reason })
            }
        }
    }

    /// An agent that fails to handle a cancel may keep the turn as running for ever, and then answers each later prompt
    /// with "Queued for the next turn" (hermes-agent 0.19 does). So its process is ended, and a new process reopens the
    /// session. An agent that cannot reopen sessions is kept, because it would lose the conversation.
    fn cancelled(&self, host: &dyn Host, error: Option<wire::RpcError>) -> End {
        let can_reopen = self.live.can.load || self.live.can.resume;
        match error.filter(|e| e.code != wire::REQUEST_CANCELLED) {
            Some(e) if can_reopen => {
                log::info!("{}: the agent failed to cancel its turn; ending it: {e}", host.identity().key);
                End::Doubtful
            }
            _ => End::Over(Answer::Cancelled),
        }
    }

    fn withdraw_all(&mut self) {
        for (id, outcome) in self.it.turn.withdraw_all() {
            self.live.client.respond(&id, &outcome);
        }
    }

    fn respond(&mut self, answer: Option<(Id, Value)>) {
        if let Some((id, outcome)) = answer {
            self.live.client.respond(&id, &outcome);
        }
    }
}
