//! `acp`: a program that speaks the Agent Client Protocol (version 1) on its stdin and stdout.
//!
//! Owns the process, the agent's session and the turn's protocol. It must not know the store or the API. Everything runs
//! on the worker's thread, which waits in [`Host::wait`] for the pipes, the exit and its letters together.
//!
//! Reading order: [`wire`] is lines and JSON-RPC, [`client`] a connection, [`session`] the handshake and the doubt in
//! it, [`turn`] what is said. This file is the agent: start, prompt, cancel, idle, close.
//!
//! A prompt ends in one of four ways: the agent answers it; it dies; a cancel is answered (by a result or an error alike:
//! agents do both); or a cancel is not, and the process is ended. Only in the first and third does the agent live on, and
//! in the third not after an error, if it can reopen the session: see [`Running::cancelled`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::json::Raw;
use super::process::{Launch, Process, Rung};
use super::{Agent, Answer, Continuity, Failure, Host, Interrupt, Prompt, Said, Started, Watch};
use crate::config;
use client::{CallError, Client, Event};
use session::{Capabilities, Trouble, Wish};
use turn::Turn;
use wire::Id;

mod client;
mod session;
mod turn;
mod wire;

/// The most that a cancel waits for the agent's own answer.
const CANCEL_TIME: Duration = Duration::from_secs(5);
/// The number of no request: they count from 1.
const NO_REQUEST: u64 = 0;
/// For ending a process that has failed.
const END_TIME: Duration = Duration::from_secs(4);
/// For `session/close`.
const CLOSE_TIME: Duration = Duration::from_secs(1);
/// For a new session in the middle of a turn.
const RENEW_TIME: Duration = Duration::from_secs(60);
/// What is taken in between turns before the worker is asked again: more than a slice can hold, so that nothing stale
/// stays behind in the buffer when a prompt begins.
const IDLE_EVENTS: usize = 50_000;
/// A turn that the agent began by itself is over when nothing came for so long.
const QUIET: Duration = Duration::from_secs(2);
/// The most that is told of what came too late to be a turn of its own.
const LATE_SHOWN: usize = 16 * 1024;
/// After so many failures in a row to reopen a session it is given up.
const REOPEN_FAILURES: u32 = 2;

/// The agent.
#[derive(Debug)]
pub struct Acp {
    /// Its configuration's name.
    name: String,
    start_retries: u32,
    command: Vec<String>,
    env: BTreeMap<String, String>,
    env_pass: Vec<String>,
    history: u64,
    live: Option<Live>,
    /// The agent does not know what was said: the next prompt carries it.
    forgot: bool,
    reopen_failures: u32,
    /// What the agent lacks of the conversation: the next prompt carries it.
    lacks: Option<String>,
    /// Its last process had no time to write anything down; `None`: it had none in this activation.
    unclean: Option<bool>,
}

/// A running agent.
#[derive(Debug)]
struct Live {
    client: Client,
    can: Capabilities,
    session: String,
    /// There is more than the agent's word that it knows the session.
    proven: bool,
    /// The session changed within a turn: the worker must be told its id by a `start`.
    changed: bool,
    /// What the agent did first between turns, and is to be told in a turn of its own. Nothing after it was read yet.
    own: Option<Event>,
}

impl Live {
    /// Whether the agent works by itself: it says something in its session, or asks for leave.
    fn is_own_work(&self, event: &Event) -> bool {
        match event {
            Event::Request(_, method, _) => method == "session/request_permission",
            Event::Notification(method, params) if method == "session/update" => {
                let [id, update] = Raw::of(params).fields(["sessionId", "update"]);
                id.string().is_none_or(|id| id == self.session) && session::is_own_words(update)
            }
            _ => false,
        }
    }
}

/// Why a start failed.
enum Stumble {
    /// Another try may be better.
    Again(Failure),
    /// None will be.
    Final(Failure),
}

/// How a prompt went.
enum End {
    Over(Answer),
    /// The agent does not know the session, and nothing was begun.
    UnknownSession,
    /// The process is of no more use.
    Broken(Failure),
    /// It has to be ended.
    Ended(Interrupt),
    /// It answered a cancel in a way after which it is not to be trusted.
    Doubtful,
}

impl Acp {
    /// Runs the command of this configuration.
    #[must_use]
    pub fn new(config: &config::Agent) -> Self {
        Self {
            name: config.name.clone(),
            start_retries: config.start_retries,
            command: config.command.clone(),
            env: config.env.clone(),
            env_pass: config.env_pass.clone(),
            history: config.history,
            live: None,
            forgot: false,
            reopen_failures: 0,
            lacks: None,
            unclean: None,
        }
    }

    fn handshake(
        &mut self,
        client: &mut Client,
        host: &mut dyn Host,
        (known, had_turns): (Option<&str>, bool),
        until: Instant,
    ) -> Result<(Capabilities, session::Opened), Failure> {
        let can = session::initialize(client, host, until)?;
        let cwd = host.identity().cwd.to_string_lossy().into_owned();
        let known = known.filter(|_| self.reopen_failures < REOPEN_FAILURES);
        let unclean = known.is_some() && self.unclean.unwrap_or_else(|| host.left_unclean());
        let wish = Wish { cwd: &cwd, known, had_turns, unclean, history: self.history };
        match session::open(client, host, can, wish, until) {
            Ok(opened) => {
                self.reopen_failures = 0;
                Ok((can, opened))
            }
            Err(Trouble { failure, reopening }) => {
                // An agent that dies of a session each time must not take the conversation with it.
                if reopening && host.interrupt().is_none() {
                    self.reopen_failures += 1;
                }
                Err(failure)
            }
        }
    }

    /// A failure, told with the agent's name.
    fn named(&self, failure: Failure) -> Failure {
        Failure { message: format!("agent {}: {}", self.name, failure.message), ..failure }
    }

    /// One try to start it.
    fn start_once(
        &mut self,
        host: &mut dyn Host,
        (agent_session, had_turns): (Option<&str>, bool),
        until: Instant,
    ) -> Result<Started, Stumble> {
        let launch = Launch { command: &self.command, env: &self.env, env_pass: &self.env_pass, extra: &[] };
        let spawned = Process::spawn(&launch, host.identity());
        let process = spawned.map_err(|failure| Stumble::Final(self.named(failure)))?;
        host.process_started(process.id(), process.start_time());
        let mut client = Client::new(process);
        match self.handshake(&mut client, host, (agent_session, had_turns), until) {
            Ok((can, opened)) => {
                self.forgot = opened.continuity == Continuity::Lost;
                self.lacks = opened.lacks;
                let started = Started { agent_session: Some(opened.id.clone()), continuity: opened.continuity };
                self.live =
                    Some(Live { client, can, session: opened.id, proven: opened.proven, changed: false, own: None });
                Ok(started)
            }
            Err(failure) => {
                let (rung, until) = hurry(host.interrupt());
                end_process(host, client.process, rung, until);
                let failure = self.named(failure);
                Err(if failure.code == "auth_required" { Stumble::Final(failure) } else { Stumble::Again(failure) })
            }
        }
    }

    /// Ends the process, if there is one, and logs what could not be ended.
    fn end(&mut self, host: &mut dyn Host, from: Rung, until: Instant) {
        if let Some(live) = self.live.take() {
            self.unclean = Some(from != Rung::EndOfInput);
            end_process(host, live.client.process, from, until);
        }
    }

    /// Takes in what came since the last turn, so that it is not taken for the answer to the next prompt.
    fn take_in(&mut self, host: &mut dyn Host) {
        for _ in 0..IDLE_EVENTS {
            let Some(live) = self.live.as_mut().filter(|live| live.own.is_none()) else { return };
            match live.client.try_next() {
                Some(event) if live.is_own_work(&event) => live.own = Some(event),
                Some(Event::Request(id, method, _)) => live.client.refuse(&id, &method),
                Some(Event::Gone) => {
                    let how = live.client.process.exit_text().unwrap_or_else(|| "closed its output".to_string());
                    log::warn!(
                        "{}: the agent {how} between turns: {}",
                        host.identity().key,
                        live.client.process.stderr_tail()
                    );
                    if let Some(live) = self.live.take() {
                        self.unclean = Some(true);
                        live.client.process.end_now();
                    }
                }
                Some(_) => {}
                None => return,
            }
        }
    }

    /// What the agent did by itself and can be no turn any more, because another has begun: it is told in that, and a
    /// permission withdrawn. It is no answer to the prompt.
    fn tell_late(&mut self, host: &mut dyn Host) {
        self.take_in(host);
        let (mut text, mut left_out) = (String::new(), 0);
        for _ in 0..IDLE_EVENTS {
            let Some(live) = self.live.as_mut() else { break };
            let Some(event) = live.own.take() else { break };
            match event {
                Event::Notification(_, params) => {
                    let words = turn::words(Raw::of(&params).get("update"));
                    if text.len() < LATE_SHOWN {
                        text.push_str(&wire::shorten(&words, LATE_SHOWN));
                    } else if !words.is_empty() {
                        left_out += 1;
                    }
                }
                Event::Request(id, ..) => {
                    live.client.respond(&id, &turn::outcome(&super::PermissionOutcome::Cancelled));
                    text.push_str("[asked for a permission, which was withdrawn]");
                }
                _ => {}
            }
            self.take_in(host);
        }
        if left_out > 0 {
            text.push_str(&format!(" [and {left_out} pieces more]"));
        }
        if !text.is_empty() {
            let text = format!("between the turns the agent said: {text}");
            log::info!("{}: {}", host.identity().key, super::one_line(&text, 300));
            host.said(Said::Notice("between_turns".into(), text));
        }
    }

    fn prompt_once(&mut self, host: &mut dyn Host, prompt: &Prompt) -> End {
        let mut blocks = Vec::new();
        if self.forgot {
            let text = session::history_text(&host.history(self.history));
            let told = if text.is_some() { "it is given what was said" } else { "there is nothing to give it" };
            host.said(Said::Notice("context_lost".into(), format!("the agent had lost the conversation; {told}")));
            blocks.extend(text);
        } else if let Some(lacks) = self.lacks.take() {
            let told = "the agent had lost a part of the conversation; it is given what is missing";
            host.said(Said::Notice("context_lost".into(), told.into()));
            blocks.push(lacks);
        }
        blocks.extend(prompt.context.clone());
        blocks.push(prompt.text.clone());
        let blocks: Vec<Value> = blocks.into_iter().map(|text| json!({ "type": "text", "text": text })).collect();
        let Some(live) = self.live.as_mut() else {
            return End::Broken(Failure::new("agent_died", "the agent is not running"));
        };
        let params = json!({ "sessionId": live.session, "prompt": blocks });
        let number = live.client.request("session/prompt", &params);
        let changed_before = live.changed;
        let mut running = Running { live, turn: Turn::default(), number, cancel: None };
        let end = running.run(host);
        running.turn.flush(host);
        // It turned out to be another session, which has this prompt and nothing that was said before.
        self.forgot = running.live.changed && !changed_before;
        end
    }

    /// The agent does not know the session after all: a new one, in the same process.
    fn renew(&mut self, host: &mut dyn Host) -> Result<(), Failure> {
        let Some(live) = self.live.as_mut() else {
            return Err(Failure::new("agent_died", "the agent is not running"));
        };
        let cwd = host.identity().cwd.to_string_lossy().into_owned();
        log::info!("{}: the agent does not know session {} any more", host.identity().key, live.session);
        live.session = session::create(&mut live.client, host, &cwd, Instant::now() + RENEW_TIME)?;
        (live.proven, live.changed) = (true, true);
        self.forgot = true;
        Ok(())
    }
}

/// What an end means for the agent, and what is told of it.
fn settle(acp: &mut Acp, host: &mut dyn Host, end: End) -> Answer {
    match end {
        End::Over(answer) => answer,
        End::UnknownSession => {
            Answer::Failed(Failure::new("agent_error", "the agent does not know the session that it has just made"))
        }
        End::Broken(failure) => {
            let interrupt = host.interrupt();
            let (rung, until) = hurry(interrupt);
            acp.end(host, rung, until);
            if interrupt.is_some() { Answer::Cancelled } else { Answer::Failed(failure) }
        }
        End::Doubtful => {
            let (_, until) = hurry(host.interrupt());
            // Nothing runs in it, and it may have something to write down.
            acp.end(host, Rung::EndOfInput, until);
            Answer::Cancelled
        }
        End::Ended(interrupt) => {
            let (rung, until) = hurry(Some(interrupt));
            acp.end(host, rung, until);
            Answer::Cancelled
        }
    }
}

/// A prompt on its way.
struct Running<'a> {
    live: &'a mut Live,
    turn: Turn,
    number: u64,
    /// A cancel was sent; until then the agent may answer it.
    cancel: Option<Instant>,
}

impl Running<'_> {
    fn run(&mut self, host: &mut dyn Host) -> End {
        loop {
            match host.interrupt() {
                Some(Interrupt::Cancel(until)) => self.cancel(until),
                Some(Interrupt::Kill) => return End::Ended(Interrupt::Kill),
                None => {}
            }
            for (request_id, settled) in host.permission_answers() {
                let answer = self.turn.settle(&request_id, &settled);
                self.respond(answer);
            }
            let event = self.live.client.next(host, self.cancel);
            if let Some(end) = self.take(host, event) {
                return end;
            }
            if self.cancel.is_some_and(|until| Instant::now() >= until)
                && let Some(interrupt) = host.interrupt()
            {
                return End::Ended(interrupt);
            }
        }
    }

    /// Listens to what the agent does by itself, until it is quiet and waits for nobody.
    fn listen(&mut self, host: &mut dyn Host, first: Option<Event>) -> End {
        let mut next = first;
        let mut quiet_at = Instant::now() + QUIET;
        loop {
            match host.interrupt() {
                Some(Interrupt::Cancel(_)) => {
                    self.withdraw_all();
                    let params = json!({ "sessionId": self.live.session });
                    self.live.client.notify("session/cancel", &params);
                    return End::Over(Answer::Cancelled);
                }
                Some(Interrupt::Kill) => return End::Ended(Interrupt::Kill),
                None => {}
            }
            for (request_id, settled) in host.permission_answers() {
                let answer = self.turn.settle(&request_id, &settled);
                self.respond(answer);
                quiet_at = Instant::now() + QUIET;
            }
            let until = (!self.turn.is_asking()).then_some(quiet_at);
            match next.take().unwrap_or_else(|| self.live.client.next(host, until)) {
                Event::Timeout if until.is_some() => return End::Over(Answer::Completed { stop_reason: None }),
                Event::Look | Event::Timeout => {}
                event => {
                    quiet_at = Instant::now() + QUIET;
                    if let Some(end) = self.take(host, event) {
                        return end;
                    }
                }
            }
        }
    }

    /// Asks the agent to stop; half of the time is left for signals. Permissions are withdrawn with it: some agents say
    /// nothing before they have their answer.
    fn cancel(&mut self, until: Instant) {
        let share = (until.saturating_duration_since(Instant::now()) / 2).min(CANCEL_TIME);
        let by = Instant::now() + share;
        if self.cancel.is_none() {
            self.withdraw_all();
            let params = json!({ "sessionId": self.live.session });
            self.live.client.notify("session/cancel", &params);
        }
        self.cancel = Some(self.cancel.map_or(by, |before| before.min(until)));
    }

    fn take(&mut self, host: &mut dyn Host, event: Event) -> Option<End> {
        match event {
            Event::Notification(method, params) if method == "session/update" => self.update(host, Raw::of(&params)),
            Event::Notification(method, params) if method == "$/cancel_request" => {
                let id = Id::read(Raw::of(&params).get("requestId"));
                let answer = id.and_then(|id| self.turn.withdraw(host, &id));
                self.respond(answer);
            }
            Event::Request(id, method, params) if method == "session/request_permission" => {
                let answer = if self.cancel.is_some() {
                    Some((id, turn::outcome(&super::PermissionOutcome::Cancelled)))
                } else {
                    self.turn.ask(host, id, Raw::of(&params))
                };
                self.respond(answer);
            }
            Event::Request(id, method, _) => self.live.client.refuse(&id, &method),
            Event::Response(number, answer) if number == self.number => {
                self.withdraw_all();
                return Some(self.answered(host, answer));
            }
            Event::Lost(lost) if lost.answers() == Some(self.number) => {
                self.withdraw_all();
                let why = format!("the end of its answer was on {}", lost.what);
                return Some(End::Over(match self.cancel {
                    Some(_) => Answer::Cancelled,
                    None => Answer::Failed(Failure::new("agent_error", why)),
                }));
            }
            Event::Lost(lost) => {
                let code = if lost.too_long { "line_too_long" } else { "line_unreadable" };
                let text = format!("the agent sent {}; it was skipped", lost.what);
                host.said(Said::Notice(code.into(), text));
            }
            Event::Gone => {
                let how = self.live.client.epitaph(host);
                return Some(End::Broken(Failure::new("agent_died", format!("the agent {how}"))));
            }
            Event::Deaf => {
                let why = "the agent does not read its input";
                return Some(End::Broken(Failure::new("agent_error", why)));
            }
            Event::Notification(..) | Event::Response(..) | Event::Timeout | Event::Look => {}
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
                // It took the resume, and goes on under another id: it made a new session and knows nothing.
                log::info!("{}: the agent goes on under session {id}", host.identity().key);
                self.live.session = id;
                (self.live.proven, self.live.changed) = (true, true);
                let text = "the agent had lost the conversation, and answers without it";
                host.said(Said::Notice("context_lost".into(), text.into()));
            }
            _ => self.live.proven = true,
        }
        self.turn.update(host, update);
    }

    fn answered(&self, host: &mut dyn Host, answer: Result<String, wire::RpcError>) -> End {
        if self.cancel.is_some() {
            return self.cancelled(host, answer.err());
        }
        let result = match answer {
            Ok(result) => result,
            Err(e) if session::is_unknown_session(&e) && !self.turn.spoke => return End::UnknownSession,
            Err(e) => {
                let code = if e.code == session::AUTH_REQUIRED { "auth_required" } else { "agent_error" };
                return End::Over(Answer::Failed(Failure::new(code, format!("the agent failed: {e}"))));
            }
        };
        let stop_reason = Raw::of(&result).get("stopReason").string().map(|reason| wire::shorten(&reason, 200));
        let failed = |code, why: &str| End::Over(Answer::Failed(Failure::new(code, why)));
        match stop_reason.as_deref() {
            // Some agents refuse a prompt of a session that they do not know.
            Some("refusal") if !self.turn.spoke && !self.live.proven => End::UnknownSession,
            Some("refusal") if !self.turn.spoke => failed("agent_refused", "the agent refused to answer"),
            // Its own decision, or what it makes of a permission that was denied.
            Some("cancelled") if !self.turn.spoke && !self.turn.settled => {
                failed("agent_error", "the agent cancelled the turn by itself")
            }
            _ => {
                if !self.turn.spoke {
                    let text = "the agent ended its turn without a word";
                    host.said(Said::Notice("empty_answer".into(), text.into()));
                }
                End::Over(Answer::Completed { stop_reason })
            }
        }
    }

    /// An agent whose own handling of a cancel failed may take the turn for running for ever, and then answers each
    /// later prompt with "Queued for the next turn", as if that were the answer (hermes-agent 0.19 does). So it is not
    /// trusted any more, and reopens the session in a new process; unless it could not, and would lose the conversation.
    fn cancelled(&self, host: &dyn Host, error: Option<wire::RpcError>) -> End {
        let can_reopen = self.live.can.load || self.live.can.resume;
        match error.filter(|e| e.code != wire::REQUEST_CANCELLED) {
            Some(e) if can_reopen => {
                log::info!("{}: the agent failed at a cancel and is ended: {e}", host.identity().key);
                End::Doubtful
            }
            _ => End::Over(Answer::Cancelled),
        }
    }

    fn withdraw_all(&mut self) {
        for (id, outcome) in self.turn.withdraw_all() {
            self.live.client.respond(&id, &outcome);
        }
    }

    fn respond(&mut self, answer: Option<(Id, Value)>) {
        if let Some((id, outcome)) = answer {
            self.live.client.respond(&id, &outcome);
        }
    }
}

impl Agent for Acp {
    fn start(
        &mut self,
        host: &mut dyn Host,
        agent_session: Option<&str>,
        had_turns: bool,
        until: Instant,
    ) -> Result<Started, Failure> {
        self.take_in(host);
        if self.live.as_ref().is_some_and(|live| live.client.process.is_gone()) {
            self.end(host, Rung::Kill, Instant::now() + END_TIME);
        }
        if let Some(live) = self.live.as_mut() {
            live.changed = false;
            let continuity = if self.forgot { Continuity::Lost } else { Continuity::Kept };
            return Ok(Started { agent_session: Some(live.session.clone()), continuity });
        }
        let mut pause = Duration::from_secs(1);
        for retries_left in (0..=self.start_retries).rev() {
            let failure = match self.start_once(host, (agent_session, had_turns), until) {
                Err(Stumble::Again(failure)) => failure,
                Err(Stumble::Final(failure)) => return Err(failure),
                Ok(started) => return Ok(started),
            };
            let next = Instant::now() + pause;
            if retries_left == 0 || next >= until || host.interrupt().is_some() {
                return Err(failure);
            }
            log::warn!("{}: {failure}; it is started once more in {} s", host.identity().key, pause.as_secs());
            while Instant::now() < next && host.interrupt().is_none() {
                host.wait(&mut [], Some(next));
            }
            if host.interrupt().is_some() {
                return Err(failure);
            }
            pause *= 2;
        }
        Err(Failure::new("agent_start", format!("agent {}: it was not started", self.name)))
    }

    fn is_ready(&self) -> bool {
        self.live.as_ref().is_some_and(|live| !live.changed && !live.client.process.is_gone())
    }

    fn prompt(&mut self, host: &mut dyn Host, prompt: &Prompt) -> Answer {
        self.tell_late(host);
        if host.interrupt().is_some() {
            return Answer::Cancelled;
        }
        let mut end = self.prompt_once(host, prompt);
        if matches!(end, End::UnknownSession) {
            end = match self.renew(host) {
                Ok(()) => self.prompt_once(host, prompt),
                Err(failure) => match host.interrupt() {
                    Some(interrupt) => End::Ended(interrupt),
                    None => End::Broken(failure),
                },
            };
        }
        settle(self, host, end)
    }

    fn watches(&self) -> Vec<Watch<'_>> {
        // With something to tell, nothing more is read until that is told.
        let live = self.live.as_ref().filter(|live| live.own.is_none());
        live.map(|live| live.client.process.watches()).unwrap_or_default()
    }

    fn wants_turn(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.own.is_some())
    }

    fn listen(&mut self, host: &mut dyn Host) -> Answer {
        let Some(live) = self.live.as_mut() else {
            return Answer::Failed(Failure::new("agent_died", "the agent is not running"));
        };
        let first = live.own.take();
        let mut running = Running { live, turn: Turn::default(), number: NO_REQUEST, cancel: None };
        let end = running.listen(host, first);
        running.turn.flush(host);
        settle(self, host, end)
    }

    fn idle(&mut self, host: &mut dyn Host) {
        self.take_in(host);
    }

    fn close(&mut self, host: &mut dyn Host, until: Instant) -> Vec<String> {
        self.take_in(host);
        let Some(mut live) = self.live.take() else { return Vec::new() };
        if live.own.is_some() {
            log::warn!(
                "{}: the agent had begun something by itself, which was not told before it was closed",
                host.identity().key
            );
        }
        if live.can.close {
            let share = (until.saturating_duration_since(Instant::now()) / 4).min(CLOSE_TIME);
            let params = json!({ "sessionId": live.session });
            let asked = live.client.call(host, ("session/close", &params), Instant::now() + share, &mut |_, _| {});
            if let Err(CallError::Refused(e)) = asked {
                log::debug!("{}: session/close: {e}", host.identity().key);
            }
        }
        live.client.process.end(host, Rung::EndOfInput, until)
    }
}

/// From which rung a process that is of no more use is ended, and by when.
fn hurry(interrupt: Option<Interrupt>) -> (Rung, Instant) {
    let by = Instant::now() + END_TIME;
    match interrupt {
        Some(Interrupt::Kill) => (Rung::Kill, by),
        Some(Interrupt::Cancel(until)) => (Rung::Terminate, by.min(until)),
        None => (Rung::Terminate, by),
    }
}

fn end_process(host: &mut dyn Host, process: Process, from: Rung, until: Instant) {
    for line in process.end(host, from, until) {
        log::warn!("{}: {line}: left by the agent, and it cannot be ended", host.identity().key);
    }
}
