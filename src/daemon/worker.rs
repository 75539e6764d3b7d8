//! One session's thread: opens its activation, runs its turns one after the other, parks it.
//!
//! What it blocks on, and what wakes it:
//! - its mailbox, at rest or in a turn: any letter, the agent's descriptors, or a deadline ([`super::turn_host`]);
//! - the store: each commit is answered within the store's patience;
//! - a `before_turn` hook: answered within the hooks' timeouts;
//! - its agent's `close`: bounded by the instant that it is given.
//!
//! It holds no truth: the queue, the turn and the activation are rows, and every write names session, epoch and turn and
//! is refused when they are not current. So a worker that was given up changes nothing later.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::context::{CANCEL, Context};
use super::mailbox::{Close, Mailbox, Why, Woken};
use super::registry::{Doing, WorkRequest};
use super::turn_host::{Running, TurnHost};
use crate::agent::{self, Agent, Answer, Continuity, Identity, Progress, Prompt};
use crate::config::{self, AgentKind};
use crate::hooks::Verdict;
use crate::model::event::{Actor, EndReason, HookEvent, MarkReason, Outcome, StopReason};
use crate::model::names;
use crate::store::{Batch, Begin, Begun, Error, Refusal};

mod agent_turn;
mod notify;

/// How long an agent may take to close when nobody else sets a limit.
const CLOSE: Duration = Duration::from_secs(10);
/// How long a worker waits before it tries the store again.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest pause before an agent that keeps dying is started again.
const BACKOFF: Duration = Duration::from_secs(60);

/// What a worker's thread does, from its start to its end.
pub fn run(ctx: &Arc<Context>, wish: &WorkRequest, config: config::Agent, mailbox: &Arc<Mailbox>) {
    crate::log::about("key", &wish.key);
    let body = std::panic::AssertUnwindSafe(|| Worker::open(ctx, wish, config, mailbox).map(|mut w| w.live()));
    if std::panic::catch_unwind(body).is_err() {
        // The panic itself was logged where it happened. Its turn fails, its activation ends, and the session goes on.
        log::error!(key = wish.key; "the session's worker panicked; its turn fails");
        write_death(ctx, wish, mailbox);
    }
}

/// Writes the death of a worker, as often as it takes: while its activation stands open no other worker gets the session. A
/// stop, or somebody who put the session away, writes the end instead.
fn write_death(ctx: &Context, wish: &WorkRequest, mailbox: &Mailbox) {
    let mut again = false;
    loop {
        match ctx.store.worker_died(wish.sid, again) {
            // What waited was told to this worker alone: the next one is told here. Each panic ends a turn, so it is not
            // for ever.
            Ok(()) => {
                let _ = ctx.registry.set(wish.sid, Doing::Closing);
                return ctx.registry.want(WorkRequest { auto_continue: false, ..wish.clone() });
            }
            Err(e) if e.lies_in_rows() => {
                return log::error!(key = wish.key; "its end could not be written, the next boot writes it: {e}");
            }
            Err(e) => {
                again = true;
                log::error!(key = wish.key; "its end cannot be written yet: {e}");
                let _ = mailbox.wait(&mut [], Some(Instant::now() + AGAIN));
                if mailbox.take().close.is_some() {
                    return;
                }
            }
        }
    }
}

struct Worker {
    host: TurnHost,
    agent: Box<dyn Agent>,
    agent_session: Option<String>,
    turns: i64,
    failures: u32,
    start_after: Option<Instant>,
    /// The turn in which the agent's process ended: the next prompt tells of it.
    cut_short: Option<String>,
    /// No agent was started yet in this activation.
    fresh: bool,
    /// When the agent last did something by itself: it may have more to do.
    own_work: Option<Instant>,
}

impl Worker {
    /// Opens the activation. `None`: the session is not open any more, or a stop has begun.
    fn open(ctx: &Arc<Context>, wish: &WorkRequest, config: config::Agent, mailbox: &Arc<Mailbox>) -> Option<Self> {
        let id = if names::needs_id(&config.cwd) { session_id(ctx, wish, mailbox)? } else { String::new() };
        let cwd = working_dir(&ctx.state_dir, &config.cwd, &wish.key, &id);
        let mut doubt = false;
        let opened = loop {
            let mut opened = ctx.store.open_activation(wish.sid, config.name.clone(), cwd.display().to_string());
            if doubt && matches!(opened, Err(Error::Refused(Refusal::Stale))) {
                // What stands open is its own, opened by a commit of whose fate it never heard.
                opened = ctx.store.reopen_activation(wish.sid);
            }
            match opened {
                Ok(opened) => break opened,
                Err(Error::Refused(_)) => return None,
                Err(e) => {
                    doubt = true;
                    log::error!(key = wish.key; "the session cannot be opened yet: {e}");
                    // What comes for it meanwhile is found by the worker once it is open, or by the next one.
                    if mailbox.wait_close(Instant::now() + AGAIN) {
                        let letters = mailbox.take();
                        let _ = ctx.registry.set(wish.sid, Doing::Closing);
                        if letters.close != Some(Close::Stop) {
                            ctx.registry.want(WorkRequest {
                                auto_continue: wish.auto_continue || letters.auto_continue,
                                ..wish.clone()
                            });
                        }
                        return None;
                    }
                }
            }
        };
        let identity = Identity {
            key: opened.session.key.clone(),
            session_id: opened.session.id.clone(),
            sid: wish.sid,
            boot_id: ctx.boot_id.clone(),
            cwd,
        };
        crate::log::about("session_id", &identity.session_id);
        log::info!(key = identity.key, session_id = identity.session_id;
            "session live: activation {}, agent {}", opened.epoch, config.name);
        let config = named(config, &identity);
        let agent = make(ctx, &config);
        let mut host = TurnHost::new(ctx.clone(), wish.sid, opened.epoch, config, mailbox.clone(), identity);
        host.work = true;
        host.auto_continue = wish.auto_continue;
        Some(Self {
            host,
            agent,
            agent_session: opened.session.agent_session,
            turns: opened.session.turns,
            failures: 0,
            start_after: None,
            own_work: None,
            cut_short: None,
            fresh: true,
        })
    }

    /// Until it is to close.
    fn live(&mut self) {
        let mut idle_since = Instant::now();
        let why = loop {
            self.host.collect();
            if self.host.is_killed() {
                break self.host.close.unwrap_or(Close::Stop);
            }
            let next = match self.host.begun.take() {
                Some(begun) if self.host.close != Some(Close::Retire) => self.run_begun(&begun),
                Some(_) | None => match self.host.close {
                    Some(close) if self.awaits_begin(close) => Next::Reserved,
                    Some(close) => {
                        self.host.collect();
                        if self.host.begun.is_none() || close == Close::Retire {
                            break close;
                        }
                        Next::More
                    }
                    None if self.agent.wants_turn() => self.own_turn(),
                    None if self.host.work || self.host.auto_continue => self.work(),
                    None => Next::Idle,
                },
            };
            match next {
                Next::More | Next::Rest => idle_since = Instant::now(),
                Next::Idle | Next::Reserved | Next::Doubt => {}
                Next::Gone => break Close::Retire,
            }
            if next == Next::Doubt {
                // A turn of its own may stand there: it counts as running until the store answers.
                let _ = self.host.rest(&mut [], Some(Instant::now() + AGAIN));
                continue;
            }
            // A letter that it took in meanwhile, in a turn for one, does not come a second time.
            if next == Next::More
                || next == Next::Rest && self.agent.wants_turn()
                || next != Next::Reserved && self.host.close.is_some()
            {
                continue;
            }
            let ready = self.is_ready().then_some(self.host.epoch);
            let free = match self.ctx().registry.rest(self.host.sid, ready) {
                Some(free) => free,
                None => {
                    // It was chosen to give way, or given up: the letter says which.
                    if self.host.close.is_none()
                        && self.host.rest(&mut [], Some(Instant::now() + AGAIN)) != Woken::Letter
                    {
                        break Close::Retire;
                    }
                    continue;
                }
            };
            if !free {
                // Somebody is about to begin a turn for it: a letter says what came of that.
                let _ = self.host.rest(&mut [], Some(Instant::now() + AGAIN));
                continue;
            }
            let sessions = &self.ctx().config().sessions;
            let held_until =
                self.own_work.and_then(|at| Some(at + sessions.background_hold?)).filter(|_| self.agent.is_ready());
            let park_at =
                sessions.park_after.map(|after| held_until.map_or(idle_since + after, |at| at.max(idle_since + after)));
            let again =
                self.start_after.filter(|_| self.host.work || self.host.auto_continue || self.agent.wants_turn());
            let until = [park_at, again].into_iter().flatten().min();
            let mut watches = self.agent.watches();
            let woken = self.host.rest(&mut watches, until);
            drop(watches);
            match woken {
                Woken::Ready => self.agent.idle(&mut self.host),
                Woken::Letter => {}
                Woken::Timeout => {
                    let parked = park_at.is_some_and(|at| at <= Instant::now());
                    if parked && !self.host.work && self.ctx().registry.may_park(self.host.sid) {
                        break Close::Park;
                    }
                }
            }
        };
        self.shut(why);
    }

    fn ctx(&self) -> &Arc<Context> {
        &self.host.ctx
    }

    /// Whether a turn could begin for it at once.
    fn is_ready(&self) -> bool {
        let free =
            !self.host.work && !self.host.auto_continue && self.host.close.is_none() && self.host.begun.is_none();
        free && !self.agent.wants_turn() && self.start_after.is_none() && self.agent.is_ready()
    }

    /// Whether it is to wait with its close for a turn that somebody is about to begin for it.
    fn awaits_begin(&self, close: Close) -> bool {
        close != Close::Retire
            && self.host.close_by.is_none_or(|by| by > Instant::now())
            && self.ctx().registry.is_reserved(self.host.sid)
    }

    /// Runs a turn that was begun together with the accept of its message.
    fn run_begun(&mut self, begun: &Begun) -> Next {
        if !self.agent.is_ready() {
            // It ended in the very moment in which its session was given a turn.
            if let Err(next) = self.start() {
                return next;
            }
        }
        self.turn(begun, None)
    }

    /// Does the next thing that waits.
    fn work(&mut self) -> Next {
        if self.start_after.is_some_and(|at| at > Instant::now()) {
            return Next::Idle;
        }
        if !self.agent.is_ready() {
            match self.start() {
                Ok(()) => {}
                Err(next) => return next,
            }
        }
        let sid = self.host.sid;
        match self.ctx().registry.begin(sid) {
            None => return Next::Idle,
            Some(false) => return Next::Reserved,
            Some(true) => {}
        }
        self.host.work = false;
        let config = self.ctx().config();
        let mut begin = Begin {
            sid,
            epoch: self.host.epoch,
            on_interrupt: self.host.agent.on_interrupt,
            resume: config.sessions.resume,
            policy: self.ctx().policy(),
            asked: self.host.auto_continue,
            context: None,
            fresh_id: uuid::Uuid::now_v7().to_string(),
            alone_at: match i64::from(config.sessions.stuck_threshold) {
                0 => 0,
                threshold => (threshold - 1).max(1),
            },
        };
        let context = match self.before_turn(&begin) {
            Ok(context) => context,
            Err(next) => return next,
        };
        begin.context.clone_from(&context);
        match self.ctx().store.begin_turn(begin) {
            Ok(Some(begun)) => {
                self.host.auto_continue = false;
                self.turn(&begun, context)
            }
            Ok(None) => {
                self.host.auto_continue = false;
                Next::Idle
            }
            Err(Error::Refused(Refusal::Closed)) => Next::Idle,
            Err(Error::Refused(Refusal::Apart)) => {
                self.host.work = true;
                if self.ctx().registry.wait_for_probation(sid) { Next::More } else { Next::Idle }
            }
            Err(Error::Refused(_)) => self.gone(),
            Err(e) if e.lies_in_rows() => {
                // To try again would be in vain: its sender is told, and what waits behind it has its turn.
                log::error!(key = self.key(); "the next turn cannot begin, it fails: {e}");
                let why = format!("what was kept of the turn cannot be used: {e}");
                match self.ctx().store.fail_queued(sid, self.host.epoch, "internal".to_owned(), why) {
                    Ok(more) => {
                        (self.host.work, self.host.auto_continue) = (more, false);
                        if more { Next::More } else { Next::Rest }
                    }
                    Err(Error::Refused(_)) => self.gone(),
                    Err(e) => {
                        log::error!(key = self.key(); "nor can that be written: {e}");
                        self.start_after = Some(Instant::now() + BACKOFF);
                        Next::Idle
                    }
                }
            }
            Err(e) => {
                log::error!(key = self.key(); "the next turn cannot begin yet: {e}");
                self.host.work = true;
                Next::Doubt
            }
        }
    }

    /// The session has gone on without this worker: what it was told of is for the next one.
    fn gone(&mut self) -> Next {
        self.host.work = true;
        Next::Gone
    }

    fn key(&self) -> &str {
        &agent::Host::identity(&self.host).key
    }

    /// Starts the agent. What waits fails if it cannot be started, and its sender is told.
    fn start(&mut self) -> Result<(), Next> {
        let sid = self.host.sid;
        let _ = self.ctx().registry.set(sid, Doing::Starting);
        crate::failpoint::hit_for("start", "before", self.key());
        let cwd = agent::Host::identity(&self.host).cwd.clone();
        let until = Instant::now() + self.host.agent.start_timeout;
        let known = self.agent_session.clone();
        let made = make_dir(&cwd, self.host.agent.kind);
        let started = match made {
            Ok(()) => self.agent.start(&mut self.host, known.as_deref(), self.turns > 0, until),
            Err(e) => Err(agent::Failure::new("agent_start", format!("{}: {e}", cwd.display()))),
        };
        match started {
            Ok(started) => {
                if std::mem::take(&mut self.fresh) {
                    self.cut_short = self.died_before();
                }
                if matches!(started.continuity, Continuity::Lost | Continuity::Stateless) {
                    // It is given all that was said, or never remembers anything.
                    self.cut_short = None;
                }
                if started.agent_session != self.agent_session {
                    self.agent_session = started.agent_session;
                    if let Err(e) = self.ctx().store.note_agent(sid, self.host.epoch, self.agent_session.clone()) {
                        log::warn!(key = self.key(); "the agent's session could not be noted: {e}");
                    }
                }
                if started.continuity == Continuity::Lost {
                    log::warn!(key = self.key(); "the agent had lost the session; it is given the transcript");
                }
                Ok(())
            }
            Err(_) if self.host.close.is_some() => Err(Next::More),
            Err(failure) => {
                self.back_off();
                log::warn!(key = self.key(), agent = self.host.agent.name; "agent: {failure}");
                let failed = self.ctx().store.fail_queued(
                    sid,
                    self.host.epoch,
                    failure.code.to_owned(),
                    failure.message.clone(),
                );
                self.host.auto_continue = false;
                self.host.work = match failed {
                    Ok(more) => more,
                    Err(Error::Refused(_)) => return Err(self.gone()),
                    Err(_) => true,
                };
                Err(Next::Rest)
            }
        }
    }

    /// One failure is no pattern; from the second on the next start waits, longer each time.
    fn back_off(&mut self) {
        self.failures = self.failures.saturating_add(1);
        let pause = match self.failures {
            0 | 1 => Duration::ZERO,
            n => Duration::from_secs(1 << (n - 2).min(6)).min(BACKOFF),
        };
        self.start_after = Some(Instant::now() + pause);
    }

    /// Asks `before_turn` handlers for context.
    fn before_turn(&mut self, begin: &Begin) -> Result<Option<String>, Next> {
        if !self.ctx().hooked(HookEvent::BeforeTurn) {
            return Ok(None);
        }
        // Nothing to begin, or no begin now: the begin itself says so.
        let Ok(Some(begun)) = self.ctx().store.preview_turn(begin.clone()) else { return Ok(None) };
        let fields = json!({ "text": begun.prompt, "first": begun.first });
        let event = self.event(HookEvent::BeforeTurn, &begun, fields);
        match super::ask(&self.host.ctx, event) {
            Verdict::Pass(context) => Ok(context),
            Verdict::Refuse(why) | Verdict::HookFailed(why) => {
                // A continuation that is refused stays marked, and is asked for again by the next boot or an operator.
                self.host.auto_continue = false;
                match self.ctx().store.fail_queued(self.host.sid, self.host.epoch, "hook_failed".to_owned(), why) {
                    Ok(more) => {
                        self.host.work = more;
                        Err(if more { Next::More } else { Next::Rest })
                    }
                    Err(Error::Refused(_)) => Err(self.gone()),
                    Err(e) => {
                        log::error!(key = self.key(); "the turn that a hook refused cannot be failed yet: {e}");
                        self.host.work = true;
                        self.start_after = Some(Instant::now() + AGAIN);
                        Err(Next::Rest)
                    }
                }
            }
        }
    }

    /// Runs a turn that has begun, to its outcome.
    fn turn(&mut self, begun: &Begun, context: Option<String>) -> Next {
        let (sid, since) = (self.host.sid, Instant::now());
        let doing = Doing::Running { turn_id: Some(begun.turn_id.clone()), since, tool: None };
        let _ = self.ctx().registry.set(sid, doing);
        if begun.alone {
            self.ctx().registry.begin_probation(sid);
        }
        crate::log::about("turn_id", &begun.turn_id);
        log::debug!(key = self.key(), turn_id = begun.turn_id; "turn begins");
        self.host.begin(begun);
        self.notify(HookEvent::TurnStart, begun, json!({}));
        let prompt = Prompt {
            turn_id: begun.turn_id.clone(),
            text: match self.cut_short.take_if(|_| !begun.prompt.is_empty()) {
                // A continuation tells of what was cut off by itself.
                Some(before) if begun.continues.is_none() => self.recalling(&before, &begun.prompt),
                _ => begun.prompt.clone(),
            },
            context,
            resumed: begun.continues.as_ref().is_some_and(|c| c.rerun),
        };
        crate::failpoint::hit_for("prompt", "before", self.key());
        let mut progress = if begun.prompt.is_empty() {
            self.agent.listen(&mut self.host)
        } else {
            self.agent.begin(&mut self.host, &prompt)
        };
        let answer = loop {
            match progress {
                Progress::Done(answer) => break answer,
                Progress::Pending { until } => {
                    agent::Host::wait(&mut self.host, &mut self.agent.watches(), until);
                    progress = self.agent.input(&mut self.host);
                }
            }
        };
        self.agent.end(&mut self.host);
        crate::failpoint::hit_for("prompt", "answered", self.key());
        // What came with the answer and is none of it.
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
        let Some((running, unkept, why)) = self.host.end() else { return Next::Gone };
        let (outcome, error) = verdict(&answer, &running, why);
        match &error {
            Some((code, why)) => log::warn!(key = self.key(), turn_id = begun.turn_id; "turn {outcome}: {code}: {why}"),
            None => log::debug!(key = self.key(), turn_id = begun.turn_id; "turn {outcome}"),
        }
        if self.host.agent.kind == AgentKind::Acp && !self.agent.is_ready() {
            self.cut_short = matches!(outcome, Outcome::Failed | Outcome::Cancelled).then(|| begun.turn_id.clone());
        }
        if self.is_ready() {
            self.ctx().registry.finishing(sid, self.host.epoch);
        }
        let next = self.finish(begun, &running, unkept, outcome, error, since);
        crate::log::about("turn_id", "");
        if begun.alone {
            self.ctx().registry.end_probation(sid);
        }
        // The registry hears of the end after the database: a drain that sees nothing running finds it committed.
        let _ = self.ctx().registry.set(sid, Doing::Idle);
        next
    }

    /// Writes the outcome, as often as it takes: a full disk delays it, a stop that gives this worker up ends it.
    fn finish(
        &mut self,
        begun: &Begun,
        running: &Running,
        unkept: Vec<Batch>,
        outcome: Outcome,
        error: Option<(String, String)>,
        since: Instant,
    ) -> Next {
        let mark = match self.ctx().board().stop {
            Some((StopReason::Restart, ..)) => MarkReason::RestartTimeout,
            Some((StopReason::Shutdown, ..)) | None => MarkReason::ShutdownTimeout,
        };
        loop {
            let store = &self.host.ctx.store;
            match store.finish_turn(begun.turn, unkept.clone(), outcome, error.clone(), mark) {
                Ok(ended) => {
                    self.ctx().tally.turn(ended.outcome);
                    self.host.work |= ended.more;
                    self.tell_end(begun, ended.outcome, &running.answer, since);
                    return if ended.more { Next::More } else { Next::Rest };
                }
                Err(Error::Refused(_)) => {
                    // Somebody else ended it, or this very write was kept although its commit was in doubt.
                    if let Some(outcome) = store.turn(&begun.turn_id).ok().and_then(|t| Outcome::parse(&t.state)) {
                        self.tell_end(begun, outcome, &running.answer, since);
                    }
                    return match store.peek_turn(self.host.sid) {
                        Ok(Some(_)) => {
                            self.host.work = true;
                            Next::More
                        }
                        _ => Next::Rest,
                    };
                }
                Err(e) if e.lies_in_rows() => {
                    // To try again would be in vain, for this worker and for the next.
                    log::error!(key = self.key(), turn_id = begun.turn_id; "the turn's outcome cannot be written, the session is given up: {e}");
                    return Next::Gone;
                }
                Err(e) => {
                    log::error!(key = self.key(), turn_id = begun.turn_id; "the turn's outcome cannot be written yet: {e}");
                    let _ = self.host.rest(&mut [], Some(Instant::now() + AGAIN));
                    self.host.collect();
                    if self.host.is_killed() || self.host.close_by.is_some_and(|by| by <= Instant::now()) {
                        return Next::Gone;
                    }
                }
            }
        }
    }

    /// Closes the agent and, where nobody else does, the activation.
    fn shut(&mut self, why: Close) {
        let _ = self.host.ctx.registry.set(self.host.sid, Doing::Closing);
        let within = match why {
            Close::Retire => CANCEL,
            // What the sweep will grant, whenever it begins: an agent that has to be killed is no reason to give its
            // worker up.
            Close::Stop => self.ctx().config().shutdown.close * 4 / 10,
            Close::Park => CLOSE,
        };
        // A stop tells how many it closed, in one line.
        let level = if why == Close::Park { log::Level::Info } else { log::Level::Debug };
        log::log!(level, key = self.key(), session_id = agent::Host::identity(&self.host).session_id; "session closes: {why:?}");
        let until = self.host.close_by.unwrap_or_else(|| Instant::now() + within);
        for left in self.agent.close(&mut self.host, until) {
            log::warn!(key = self.key(); "the agent could not be ended: {left}");
        }
        if why == Close::Stop {
            return;
        }
        self.host.collect();
        if self.host.work || self.host.auto_continue {
            // What it was given and did not do is for the next worker of the session. One that gave way may have come back
            // while this one ended; one that has not refuses the next worker's activation.
            let wish =
                WorkRequest { sid: self.host.sid, key: self.key().to_owned(), auto_continue: self.host.auto_continue };
            self.host.ctx.registry.want(wish);
        }
        if why != Close::Park {
            return;
        }
        loop {
            let store = &self.host.ctx.store;
            match store.close_activation(self.host.sid, self.host.epoch, EndReason::Parked, Actor::Policy) {
                Ok(_) | Err(Error::Refused(_)) => return,
                Err(e) if e.lies_in_rows() => {
                    return log::error!(key = self.key(); "the session cannot be parked, the next boot tries it: {e}");
                }
                Err(e) => {
                    log::error!(key = self.key(); "the session cannot be parked yet: {e}");
                    let _ = self.host.rest(&mut [], Some(Instant::now() + AGAIN));
                    self.host.collect();
                    if self.host.close > Some(Close::Park) {
                        return;
                    }
                }
            }
        }
    }
}

/// What a worker does after something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Look again at once.
    More,
    /// It has done something, and nothing more waits.
    Rest,
    /// Nothing was to be done.
    Idle,
    /// Somebody else is about to begin a turn for it.
    Reserved,
    /// Nobody knows whether a turn began.
    Doubt,
    /// The session has gone on without it.
    Gone,
}

/// What an answer means for its turn.
fn verdict(answer: &Answer, running: &Running, why: Option<Why>) -> (Outcome, Option<(String, String)>) {
    let failed = |code: &str, text: String| (Outcome::Failed, Some((code.to_owned(), text)));
    if let Some(why) = &running.too_large {
        return failed("answer_too_large", why.clone());
    }
    match (answer, &running.timed_out, why) {
        (Answer::Completed { .. }, ..) => (Outcome::Completed, None),
        (_, Some(timeout), _) => failed("timeout", timeout.clone()),
        (_, None, Some(Why::Stop)) => (Outcome::Interrupted, None),
        (_, None, Some(Why::Cancelled | Why::Retired)) => (Outcome::Cancelled, None),
        (Answer::Failed(failure), None, None) => failed(failure.code, failure.message.clone()),
        (Answer::Cancelled, None, None) => failed("agent_error", "the agent cancelled the turn by itself".to_owned()),
    }
}

/// The agent of a kind.
fn make(ctx: &Arc<Context>, config: &config::Agent) -> Box<dyn Agent> {
    match config.kind {
        AgentKind::Echo => Box::new(agent::echo::Echo::new(config.delay)),
        AgentKind::Exec => Box::new(agent::exec::Exec::new(config)),
        AgentKind::Acp => Box::new(agent::acp::Acp::new(config)),
        AgentKind::Openai => {
            let looked_up = |f: &PathBuf| config::paths::secret_file(f, &ctx.config(), &config::paths::process_env);
            let api_key_file = config.api_key_file.as_ref().map(looked_up);
            Box::new(agent::openai::Openai::new(&config::Agent { api_key_file, ..config.clone() }))
        }
        AgentKind::Lua => Box::new(super::lua_agent(ctx, config)),
    }
}

/// The working directory of a session, as the system stands now.
#[must_use]
pub fn working_dir(state_dir: &Path, template: &str, key: &str, id: &str) -> PathBuf {
    let home = config::paths::process_env("HOME");
    names::working_dir(state_dir, home.as_deref(), template, names::Whose { key, id }, Path::is_dir)
}

/// The session's id, as soon as the store says it; `None`: it is to close first, or there is no such session.
fn session_id(ctx: &Context, wish: &WorkRequest, mailbox: &Mailbox) -> Option<String> {
    loop {
        match ctx.store.session_in_row(wish.sid) {
            Ok(session) => return Some(session.id),
            Err(Error::Refused(_)) => return None,
            Err(e) => {
                log::error!(key = wish.key; "the session cannot be opened yet: {e}");
                if mailbox.wait_close(Instant::now() + AGAIN) {
                    return None;
                }
            }
        }
    }
}

/// The agent's definition with the session's names in its arguments and its environment.
fn named(config: config::Agent, identity: &Identity) -> config::Agent {
    let expand = |text: String| names::expand(&text, &identity.key, &identity.session_id);
    let mut command = config.command.into_iter();
    let command = command.next().into_iter().chain(command.map(expand)).collect();
    let env = config.env.into_iter().map(|(name, value)| (name, expand(value))).collect();
    config::Agent { command, env, ..config }
}

fn make_dir(cwd: &Path, kind: AgentKind) -> std::io::Result<()> {
    match kind {
        AgentKind::Acp | AgentKind::Exec => std::fs::create_dir_all(cwd),
        AgentKind::Openai | AgentKind::Lua | AgentKind::Echo => Ok(()),
    }
}
