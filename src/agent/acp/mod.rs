//! `acp`: a program that speaks the Agent Client Protocol (version 1) on its stdin and stdout.
//!
//! Owns the process, the agent's session and the turn's protocol. It must not know the store or the API. Everything
//! runs on the worker's thread, which waits for the pipes, the exit and its letters together.
//!
//! Reading order: [`wire`] is lines and JSON-RPC, [`client`] a connection, [`session`] the handshake and its checks with
//! [`login`], [`live`] a running agent, [`offers`] what is chosen in its session, [`turn`] the updates, [`running`] the
//! stages of a turn. This file is the agent: start, begin, idle, close.
//!
//! A prompt ends in one of four ways: the agent answers; the agent dies; the agent answers a cancel (with a result or
//! an error: agents do both); or it does not answer the cancel, and its process is ended. The agent lives on only after
//! the first and the third. After an error as the answer to a cancel it is ended too, if it can reopen the session: see
//! `Driven::cancelled` in [`running`].

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use super::json::Raw;
use super::process::{Launch, Process, Rung};
use super::{
    Agent, Answer, Continuity, Failure, Host, Interrupt, Mark, Outlived, Progress, Prompt, Said, Started, Watch,
};
use crate::config;
use crate::model::offers::{MODE, MODEL, Pick};
use client::{CallError, Client, Event, SavedClient};
use live::Live;
use offers::Picks;
use running::{End, Running, SavedRunning, Step};
use session::{Capabilities, SessionRequest, Trouble};
use wire::v1;

mod client;
mod live;
mod login;
mod offers;
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
/// Between turns so much of an agent's output is taken in before that is made durable.
const UNMARKED: u64 = 256 * 1024;
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
    authenticate: String,
    instructions: String,
    servers: BTreeMap<String, config::McpServer>,
    picks: Picks,
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
    /// Between turns: up to there the output was marked.
    marked_upto: u64,
    /// It has exited in a turn whose outcome is not durable yet: until then its shim keeps the exit.
    exited: Option<Process>,
}

/// What another daemon must know of an agent.
#[derive(serde::Serialize, serde::Deserialize)]
struct Saved {
    session: String,
    can: Capabilities,
    proven: bool,
    changed: bool,
    client: SavedClient,
    forgot: bool,
    lacks: Option<String>,
    reopen_failures: u32,
    running: Option<SavedRunning>,
    /// The agent's own name, and why it asks nobody, if it does.
    #[serde(default)]
    agent: String,
    #[serde(default)]
    silent: Option<String>,
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
            authenticate: config.authenticate.clone(),
            instructions: config.system_prompt.clone(),
            servers: config.mcp.clone(),
            picks: picks(config),
            live: None,
            forgot: false,
            reopen_failures: 0,
            lacks: None,
            unclean: None,
            running: None,
            condemned: None,
            marked_upto: 0,
            exited: None,
        }
    }

    fn handshake(
        &mut self,
        client: &mut Client,
        host: &mut dyn Host,
        (known, had_turns): (Option<&str>, bool),
        until: Instant,
    ) -> Result<(Capabilities, session::Opened), Failure> {
        let session::Hello { can, name, methods } = session::initialize(client, host, until)?;
        if !self.authenticate.is_empty() {
            login::check(&methods, &self.authenticate)?;
            login::log_in(client, host, &self.authenticate, until)?;
        }
        let cwd = host.identity().cwd.to_string_lossy().into_owned();
        let known = known.filter(|_| self.reopen_failures < REOPEN_FAILURES);
        let unclean = known.is_some() && self.unclean.unwrap_or_else(|| host.left_unclean());
        let setup = setup(&self.servers, &self.instructions, can, &cwd);
        self.tell_left_out(host, can);
        let request = SessionRequest { setup, known, had_turns, unclean, history: self.history };
        let mut opened = session::open(client, host, can, request.clone(), until);
        let method = login::by_variables(&methods, &|name| self.has_variable(name));
        if let (Err(trouble), Some(method), true) = (&opened, method, self.authenticate.is_empty())
            && trouble.failure.code == "auth_required"
        {
            login::log_in(client, host, method, until)?;
            opened = session::open(client, host, can, request, until);
        }
        match opened {
            Ok(mut opened) => {
                self.reopen_failures = 0;
                opened.offers.agent = name;
                let of = (opened.id.as_str(), &mut opened.offers);
                offers::fulfil(client, host, of, &self.picks, until)?;
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

    /// Whether a variable is set in the agent's environment.
    fn has_variable(&self, name: &str) -> bool {
        let passed = || self.env_pass.iter().any(|passed| passed == name) && std::env::var_os(name).is_some();
        self.env.contains_key(name) || passed()
    }

    /// Tells of what the configuration gives to sessions and this agent does not take.
    fn tell_left_out(&self, host: &dyn Host, can: Capabilities) {
        let key = &host.identity().key;
        if !can.instructions && !self.instructions.is_empty() {
            log::warn!("{key}: agent {} takes no instructions: system_prompt is left out", self.name);
        }
        for (name, _) in self.servers.iter().filter(|(_, server)| !can.http && !server.url.is_empty()) {
            log::warn!("{key}: agent {} takes no tools over HTTP: mcp.{name} is left out", self.name);
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
        let spawned = Process::spawn(&launch, host);
        let process = spawned.map_err(|failure| Stumble::Final(self.named(failure)))?;
        let mut client = Client::new(process);
        match self.handshake(&mut client, host, (agent_session, had_turns), until) {
            Ok((can, opened)) => {
                self.forgot = opened.continuity == Continuity::Lost;
                self.lacks = opened.lacks;
                let started = Started { agent_session: Some(opened.id.clone()), continuity: opened.continuity };
                let mut live = Live::new(client, can, opened.id);
                (live.proven, live.offers, live.consent) = (opened.proven, opened.offers, self.picks.consent);
                self.live = Some(live);
                match self.ready(host) {
                    Ok(()) => Ok(started),
                    Err(why) => {
                        self.end_live(host, Rung::Terminate, Instant::now() + END_TIME);
                        Err(Stumble::Again(self.named(Failure::new("agent_start", why))))
                    }
                }
            }
            Err(failure) => {
                let (rung, until) = hurry(host.interrupt());
                end_process(host, client.process, rung, until);
                let failure = self.named(failure);
                let is_final = matches!(failure.code, "auth_required" | "agent_option");
                Err(if is_final { Stumble::Final(failure) } else { Stumble::Again(failure) })
            }
        }
    }

    /// The agent is ready for prompts: below a shim it may outlive the daemon from here on.
    fn ready(&mut self, host: &mut dyn Host) -> Result<(), String> {
        let Some(mark) = self.marked() else { return Ok(()) };
        let Some(live) = self.live.as_mut() else { return Ok(()) };
        let (frames, offset) = (live.client.process.frames().0, mark.offset);
        crate::failpoint::hit_for("ready", "before", &host.identity().key);
        host.agent_ready(frames, &live.session, mark).map_err(|why| format!("its start cannot be noted: {why}"))?;
        crate::failpoint::hit_for("ready", "after", &host.identity().key);
        live.client.process.set_direct(false);
        live.client.process.acknowledge(offset);
        Ok(())
    }

    /// What another daemon must know to go on from here; `None`: the agent has no shim.
    fn marked(&mut self) -> Option<Mark> {
        let live = self.live.as_mut()?;
        let shim = live.client.process.shim()?.to_owned();
        let (offset, skip) = live.own_at.unwrap_or_else(|| live.client.position());
        let saved = Saved {
            session: live.session.clone(),
            can: live.can,
            proven: live.proven,
            changed: live.changed,
            client: live.client.saved(),
            forgot: self.forgot,
            lacks: self.lacks.clone(),
            reopen_failures: self.reopen_failures,
            running: self.running.as_ref().map(Running::saved),
            agent: live.offers.agent.clone(),
            silent: live.silent.clone(),
        };
        Some(Mark {
            shim,
            offset,
            skip,
            state: serde_json::to_string(&saved).unwrap_or_default(),
            frames: live.client.process.take_loose(),
            heard: live.client.process.frames().1,
            urgent: live.client.process.is_ending(),
        })
    }

    /// Marks how far the agent's output was taken in, with all that is to be sent because of it.
    fn mark(&mut self, host: &mut dyn Host) {
        if let Some(mark) = self.marked() {
            host.mark(mark);
            self.durable(host);
        }
    }

    /// Marks between turns, if something waits for it.
    fn mark_between(&mut self, host: &mut dyn Host) {
        let waits = |live: &Live| {
            let process = &live.client.process;
            let far = live.client.position().0.saturating_sub(self.marked_upto) > UNMARKED;
            process.has_loose() || far || process.is_ending() && !process.has_exited()
        };
        if self.running.is_none() && self.live.as_ref().is_some_and(waits) {
            self.marked_upto = self.live.as_ref().map_or(0, |live| live.client.position().0);
            self.mark(host);
        }
    }

    /// The exit of a process is durable: its shim leaves.
    fn bury(&mut self, host: &mut dyn Host) {
        if let Some(process) = self.exited.take() {
            end_process(host, process, Rung::Kill, Instant::now() + END_TIME);
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
            let at = live.client.position();
            match live.client.try_next() {
                Some(event) if live.is_own_work(&event) => (live.own, live.own_at) = (Some(event), Some(at)),
                Some(Event::Request(id, method, _)) => live.client.refuse(&id, &method),
                Some(Event::Notification(method, params)) if method == v1::UPDATE => {
                    offers::update(&mut live.offers, Raw::of(&params).get("update"));
                }
                Some(Event::Gone) => {
                    let how = live.client.process.exit_text().unwrap_or_else(|| "closed its output".to_string());
                    log::warn!(
                        "{}: the agent {how} between turns: {}",
                        host.identity().key,
                        live.client.process.stderr_tail()
                    );
                    if let Some(live) = self.live.take() {
                        self.unclean = Some(true);
                        let shim = live.client.process.shim().map(str::to_owned);
                        live.client.process.end_now();
                        shim.iter().for_each(|shim| host.shim_ended(shim));
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
            live.own_at = None;
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
                    live.client.respond(&id, &v1::permission(&super::PermissionOutcome::Cancelled));
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
    /// it. `sent`: another daemon has sent it already, and only what is told with it is told.
    fn send(&mut self, host: &mut dyn Host, prompt: Prompt, renewed: bool, sent: bool) -> Result<(), End> {
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
        let Some(live) = self.live.as_mut() else {
            return Err(End::Broken(Failure::new("agent_died", "the agent is not running")));
        };
        if renewed {
            let (calls, missing) = offers::requests(&live.session, &mut live.offers, &self.picks);
            for (method, params) in calls {
                let number = live.client.request(method, &params);
                live.choosing.insert(number);
            }
            missing.into_iter().for_each(|why| host.said(Said::Notice("agent_option".into(), why)));
        }
        live.tell_consent(host);
        offers::strictly(&live.offers, &self.picks).map_err(End::Broken)?;
        let params = v1::prompt(&live.session, blocks);
        let frame = prompt.frame.filter(|_| !renewed);
        let number = match sent {
            // Another daemon has sent it.
            true => {
                live.client.note_request();
                live.client.next_number() - 1
            }
            false => live.client.request_as(frame, v1::PROMPT, &params),
        };
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
                Ok(Step::Wait(until)) => {
                    self.mark(host);
                    return Progress::Pending { until };
                }
                Ok(Step::Mark) => {
                    self.mark(host);
                    continue;
                }
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
                    let cwd = host.identity().cwd.to_string_lossy().into_owned();
                    running.renew(live, host, &setup(&self.servers, &self.instructions, live.can, &cwd));
                    continue;
                }
                End::Renewed => {
                    self.forgot = true;
                    let Some(prompt) = running.again.take() else { return self.over(host, End::UnknownSession) };
                    match self.send(host, prompt, true, false) {
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
        if let Some(mark) = self.marked() {
            // It becomes durable with the outcome, and not before: the answer is not read again.
            host.mark_last(mark);
        }
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
        self.bury(host);
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
            if let (Some(live), Some(frame)) = (self.live.as_mut(), prompt.frame) {
                // Its number was decided, and the frames behind it wait for it: nothing is said in it.
                live.client.process.transmit(frame, Vec::new());
            }
            return Progress::Done(Answer::Cancelled);
        }
        match self.send(host, prompt.clone(), false, false) {
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
        let kept = |live: &mut Live| live.client.process.shim().is_some();
        if let Some((rung, until)) = self.condemned.take_if(|_| self.live.as_mut().is_some_and(kept))
            && let Some(live) = self.live.take()
        {
            let mut process = live.client.process;
            if !process.has_exited() {
                process.wind_down(host, rung, until);
            }
            (self.exited, self.unclean) = (Some(process), Some(rung != Rung::EndOfInput));
        }
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
        let own = |live: &mut Live| {
            live.own_at = None;
            live.own.take()
        };
        let first = self.live.as_mut().and_then(own);
        self.running = Some(Running::own(first, host.now()));
        self.advance(host)
    }

    fn idle(&mut self, host: &mut dyn Host) {
        self.take_in(host);
        self.mark_between(host);
    }

    fn durable(&mut self, host: &mut dyn Host) {
        let durable = host.durable();
        self.bury(host);
        let Some(live) = self.live.as_mut() else { return };
        for (number, bytes) in durable.frames {
            live.client.process.transmit(number, bytes);
        }
        if let Some(offset) = durable.offset {
            live.client.process.acknowledge(offset);
        }
    }

    fn let_go(&mut self) -> bool {
        if let Some(process) = self.exited.take() {
            // The next daemon hears of its exit.
            process.let_go();
            return true;
        }
        match self.live.take() {
            Some(live) if live.client.process.shim().is_some() => {
                live.client.process.let_go();
                true
            }
            live => {
                self.live = live;
                false
            }
        }
    }

    fn attach(&mut self, host: &mut dyn Host, outlived: Outlived) -> Result<Option<Progress>, Failure> {
        let Outlived { process, offset, skip, state, frames, unsent, running } = outlived;
        let failed = |why: &str| Failure::new("internal", format!("what was kept of the agent cannot be used: {why}"));
        let mut process = process.ok_or_else(|| failed("it has no process"))?;
        let saved: Saved = serde_json::from_str(&state.unwrap_or_default()).map_err(|e| failed(&e.to_string()))?;
        let highest = process.frames().1;
        let prompt = running.as_ref().and_then(|r| r.prompt.clone());
        let frame = prompt.as_ref().map(|p| p.frame.unwrap_or(u64::MAX));
        let sent = frame.is_none_or(|frame| frame <= highest);
        // Numbers of which nothing is known any more are those of prompts that were cancelled before they were sent.
        let known: HashSet<u64> = unsent.iter().map(|f| f.0).chain(frame).collect();
        (highest + 1..=frames).filter(|n| !known.contains(n)).for_each(|n| process.transmit(n, Vec::new()));
        unsent.into_iter().for_each(|(number, bytes)| process.transmit(number, bytes));
        let client = Client::resume(process, (offset, skip), saved.client);
        let mut live = Live::new(client, saved.can, saved.session);
        (live.proven, live.changed, live.consent) = (saved.proven, saved.changed, self.picks.consent);
        (live.offers.agent, live.silent) = (saved.agent, saved.silent);
        self.live = Some(live);
        (self.forgot, self.lacks, self.reopen_failures) = (saved.forgot, saved.lacks, saved.reopen_failures);
        self.marked_upto = offset;
        let Some(turn) = running else { return Ok(None) };
        match (saved.running.filter(|_| turn.marked), turn.prompt) {
            (Some(saved), prompt) => self.running = Some(Running::resume(saved, prompt, turn.tools, host.now())),
            (None, None) => self.running = Some(Running::own(None, host.now())),
            (None, Some(prompt)) => {
                if let Err(end) = self.send(host, prompt, false, sent) {
                    return Ok(Some(self.over(host, end)));
                }
            }
        }
        Ok(Some(self.input(host)))
    }

    fn close(&mut self, host: &mut dyn Host, until: Instant) -> Vec<String> {
        self.bury(host);
        self.take_in(host);
        let Some(mut live) = self.live.take() else { return Vec::new() };
        live.client.process.set_direct(true);
        live.client.process.discard();
        if live.own.is_some() {
            log::warn!(
                "{}: the agent had begun work by itself; it was closed before that got a turn",
                host.identity().key
            );
        }
        if live.can.close {
            let share = (until.saturating_duration_since(Instant::now()) / 4).min(CLOSE_TIME);
            let params = v1::close(&live.session);
            let asked = live.client.call(host, (v1::CLOSE, &params), Instant::now() + share, &mut |_, _| {});
            if let Err(CallError::Refused(e)) = asked {
                log::debug!("{}: session/close: {e}", host.identity().key);
            }
        }
        live.client.process.end(host, Rung::EndOfInput, until)
    }
}

/// What the configuration picks of each session.
fn picks(config: &config::Agent) -> Picks {
    let named = [(MODEL, &config.model), (MODE, &config.mode)].into_iter().filter(|(_, value)| !value.is_empty());
    let named = named.map(|(id, value)| (id.to_owned(), Pick::Value(value.clone())));
    let all = named.chain(config.options.iter().map(|(id, pick)| (id.clone(), pick.clone()))).collect();
    Picks { all, consent: config.consent }
}

/// What a session of an agent is set up with.
fn setup<'a>(
    servers: &'a BTreeMap<String, config::McpServer>,
    instructions: &'a str,
    can: Capabilities,
    cwd: &'a str,
) -> v1::Setup<'a> {
    let taken = servers.iter().filter(|(_, server)| can.http || server.url.is_empty());
    let servers = taken.map(|(name, server)| (name.as_str(), server)).collect();
    v1::Setup { cwd, servers, instructions: if can.instructions { instructions } else { "" } }
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
