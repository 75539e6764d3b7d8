//! `acp`: a program that speaks the Agent Client Protocol (version 1) on its stdin and stdout.
//!
//! Owns the process, the agent's session and the turn's protocol. It must not know the store or the API. Everything
//! runs on the worker's thread, which waits for the pipes, the exit and its letters together.
//!
//! Reading order: [`wire`] is lines and JSON-RPC, [`client`] a connection, [`session`] the handshake and its checks,
//! [`turn`] the agent's updates, [`running`] the stages of a turn. This file is the agent: start, begin, idle, close.
//!
//! A prompt ends in one of four ways: the agent answers; the agent dies; the agent answers a cancel (with a result or
//! an error: agents do both); or it does not answer the cancel, and its process is ended. The agent lives on only after
//! the first and the third. After an error as the answer to a cancel it is ended too, if it can reopen the session: see
//! `Driven::cancelled` in [`running`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::json::Raw;
use super::process::{Launch, Process, Rung};
use super::{Agent, Answer, Continuity, Failure, Host, Interrupt, Progress, Prompt, Said, Started, Watch};
use crate::config;
use client::{CallError, Client, Event};
use running::{End, Running};
use session::{Capabilities, SessionRequest, Trouble};

mod client;
mod running;
mod session;
mod turn;
mod wire;

/// The longest time to end a process that has failed.
const END_TIME: Duration = Duration::from_secs(4);
/// The longest time for `session/close`.
const CLOSE_TIME: Duration = Duration::from_secs(1);
/// The most events that are handled between turns in one call: more than a slice can hold, so no old event is left in
/// the buffer when a prompt begins.
const IDLE_EVENTS: usize = 50_000;
/// How much is shown of updates that came too late for a turn of their own, in bytes.
const LATE_SHOWN: usize = 16 * 1024;
/// After this many failures in a row to reopen a session it counts as lost.
const REOPEN_FAILURES: u32 = 2;

/// The agent.
#[derive(Debug)]
pub struct Acp {
    /// The agent's name in the configuration.
    name: String,
    start_retries: u32,
    command: Vec<String>,
    env: BTreeMap<String, String>,
    env_pass: Vec<String>,
    history: u64,
    live: Option<Live>,
    /// The agent has lost the conversation: the next prompt carries it.
    forgot: bool,
    reopen_failures: u32,
    /// The missing part of the conversation: the next prompt carries it.
    lacks: Option<String>,
    /// Its last process may have ended before it saved the session; `None`: there was no process in this activation.
    unclean: Option<bool>,
    /// The turn in progress.
    running: Option<Running>,
    /// The last turn left a process that must be ended: from which rung, and by when.
    condemned: Option<(Rung, Instant)>,
}

/// A running agent.
#[derive(Debug)]
struct Live {
    client: Client,
    can: Capabilities,
    session: String,
    /// There is proof beyond the agent's answer that it knows the session.
    proven: bool,
    /// The session changed within a turn: the worker must be told its id by a `start`.
    changed: bool,
    /// The first event of work that the agent began between turns; it gets a turn of its own. Nothing after it has been
    /// read.
    own: Option<Event>,
}

impl Live {
    /// Whether an event shows work that the agent began by itself: an update of its session, or a permission request.
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
    /// Another try may succeed.
    Again(Failure),
    /// No other try will succeed.
    Final(Failure),
}

impl Acp {
    /// The agent of this configuration.
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
            running: None,
            condemned: None,
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
        let request = SessionRequest { cwd: &cwd, known, had_turns, unclean, history: self.history };
        match session::open(client, host, can, request, until) {
            Ok(opened) => {
                self.reopen_failures = 0;
                Ok((can, opened))
            }
            Err(Trouble { failure, reopening }) => {
                // If the agent dies each time it reopens the session, the conversation must go on without that session.
                if reopening && host.interrupt().is_none() {
                    self.reopen_failures += 1;
                }
                Err(failure)
            }
        }
    }

    /// A failure with the agent's name in its text.
    fn named(&self, failure: Failure) -> Failure {
        Failure { message: format!("agent {}: {}", self.name, failure.message), ..failure }
    }

    /// One try to start the agent.
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

    /// Ends the process, if there is one, and logs processes that cannot be ended.
    fn end_live(&mut self, host: &mut dyn Host, from: Rung, until: Instant) {
        if let Some(live) = self.live.take() {
            self.unclean = Some(from != Rung::EndOfInput);
            end_process(host, live.client.process, from, until);
        }
    }

    /// Handles events since the last turn, so they do not count as the answer to the next prompt.
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

    /// Reports work that the agent began by itself and that gets no turn of its own, because another turn has begun.
    /// Its permission requests are withdrawn. It is not an answer to the prompt.
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
            text.push_str(&format!(" [and {left_out} more updates]"));
        }
        if !text.is_empty() {
            let text = format!("between the turns the agent said: {text}");
            log::info!("{}: {}", host.identity().key, super::one_line(&text, 300));
            host.said(Said::Notice("between_turns".into(), text));
        }
    }

    /// Sends a prompt, preceded by the conversation that the agent lacks. `renewed`: the agent opened a new session for
    /// it.
    fn send(&mut self, host: &mut dyn Host, prompt: Prompt, renewed: bool) -> Result<(), End> {
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
            return Err(End::Broken(Failure::new("agent_died", "the agent is not running")));
        };
        let params = json!({ "sessionId": live.session, "prompt": blocks });
        let number = live.client.request("session/prompt", &params);
        self.running = Some(Running::prompt(prompt, number, renewed, live.changed));
        Ok(())
    }

    /// Advances the turn as far as possible without waiting.
    fn advance(&mut self, host: &mut dyn Host) -> Progress {
        loop {
            let (Some(live), Some(running)) = (self.live.as_mut(), self.running.as_mut()) else {
                return self.over(host, End::Broken(Failure::new("agent_died", "the agent is not running")));
            };
            let end = match running.advance(live, host) {
                Ok(until) => return Progress::Pending { until },
                Err(end) => end,
            };
            running.turn.flush(host);
            if running.is_prompt() {
                // The agent turned out to use another session, which has this prompt but not the conversation before
                // it.
                self.forgot = live.changed && !running.changed_before;
            }
            let end = match end {
                End::UnknownSession if !running.renewed => {
                    running.renew(live, host);
                    continue;
                }
                End::Renewed => {
                    self.forgot = true;
                    let Some(prompt) = running.again.take() else { return self.over(host, End::UnknownSession) };
                    match self.send(host, prompt, true) {
                        Ok(()) => continue,
                        Err(end) => end,
                    }
                }
                end => end,
            };
            return self.over(host, end);
        }
    }

    /// The turn is over: decides what becomes of the process ([`Agent::end`] does it), and returns the answer.
    fn over(&mut self, host: &mut dyn Host, end: End) -> Progress {
        self.running = None;
        let interrupt = host.interrupt();
        let (answer, condemned) = match end {
            End::Over(answer) => (answer, None),
            End::UnknownSession | End::Renewed => {
                let why = "the agent does not know the session that it has just opened";
                (Answer::Failed(Failure::new("agent_error", why)), None)
            }
            End::Broken(failure) => {
                let answer = if interrupt.is_some() { Answer::Cancelled } else { Answer::Failed(failure) };
                (answer, Some(hurry(interrupt)))
            }
            // No turn runs in it, and it may still have to save the session.
            End::Doubtful => (Answer::Cancelled, Some((Rung::EndOfInput, hurry(interrupt).1))),
            End::Ended(interrupt) => (Answer::Cancelled, Some(hurry(Some(interrupt)))),
        };
        self.condemned = condemned;
        Progress::Done(answer)
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
            self.end_live(host, Rung::Kill, Instant::now() + END_TIME);
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
            log::warn!("{}: {failure}; starting it again in {} s", host.identity().key, pause.as_secs());
            while Instant::now() < next && host.interrupt().is_none() {
                host.wait(&mut [], Some(next));
            }
            if host.interrupt().is_some() {
                return Err(failure);
            }
            pause *= 2;
        }
        Err(Failure::new("agent_start", format!("agent {}: not started", self.name)))
    }

    fn is_ready(&self) -> bool {
        self.live.as_ref().is_some_and(|live| !live.changed && !live.client.process.is_gone())
    }

    fn begin(&mut self, host: &mut dyn Host, prompt: &Prompt) -> Progress {
        self.tell_late(host);
        if host.interrupt().is_some() {
            return Progress::Done(Answer::Cancelled);
        }
        match self.send(host, prompt.clone(), false) {
            Ok(()) => self.advance(host),
            Err(end) => self.over(host, end),
        }
    }

    fn input(&mut self, host: &mut dyn Host) -> Progress {
        if let Some(live) = self.live.as_mut() {
            live.client.take_in();
        }
        self.advance(host)
    }

    fn end(&mut self, host: &mut dyn Host) {
        if let Some((rung, until)) = self.condemned.take() {
            self.end_live(host, rung, until);
        }
    }

    fn watches(&self) -> Vec<Watch<'_>> {
        // Between turns nothing more is read while work of its own waits for a turn.
        let live = self.live.as_ref().filter(|live| self.running.is_some() || live.own.is_none());
        live.map(|live| live.client.process.watches()).unwrap_or_default()
    }

    fn wants_turn(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.own.is_some())
    }

    fn listen(&mut self, host: &mut dyn Host) -> Progress {
        let first = self.live.as_mut().and_then(|live| live.own.take());
        self.running = Some(Running::own(first, host.now()));
        self.advance(host)
    }

    fn idle(&mut self, host: &mut dyn Host) {
        self.take_in(host);
    }

    fn close(&mut self, host: &mut dyn Host, until: Instant) -> Vec<String> {
        self.take_in(host);
        let Some(mut live) = self.live.take() else { return Vec::new() };
        if live.own.is_some() {
            log::warn!(
                "{}: the agent had begun work by itself; it was closed before that got a turn",
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

/// The rung to begin with, and the deadline, for a process that must be ended.
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
        log::warn!("{}: {line}: left by the agent and cannot be ended", host.identity().key);
    }
}
