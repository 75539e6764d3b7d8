//! What the real parts of the daemon are given in the simulation instead of the machine's own: time and threads, the operator's
//! handlers, agents. Each does in its own order what the dice choose, and asserts what the parts promise it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ostler::agent::{
    Agent, Answer, Continuity, Failure, Host, Interrupt, PermissionOption, PermissionRequest, Progress, Prompt, Said,
    Started, ToolCall,
};
use ostler::clock::Millis;
use ostler::daemon::handlers::Handlers;
use ostler::daemon::runtime::{Job, Runtime};
use ostler::hooks::{Delivered, Event, HandlerId, HookHost, Verdict};
use ostler::model::event::{Entry, HookEvent};
use serde_json::Value;

use crate::dice::Dice;

/// When a seed begins, by the wall clock.
pub const T0: Millis = 1_800_000_000_000;

/// The seed's time.
pub struct Clock {
    pub ms: AtomicI64,
    /// How far the wall clock is behind.
    pub behind: AtomicI64,
    pub base: Instant,
}

impl Clock {
    pub fn ms(&self) -> i64 {
        self.ms.load(Ordering::Relaxed)
    }

    pub fn now(&self) -> Instant {
        self.base + Duration::from_millis((self.ms() - T0) as u64)
    }

    pub fn wall(&self) -> Millis {
        self.ms() - self.behind.load(Ordering::Relaxed)
    }
}

/// Time and threads: a job waits until the dice run it.
pub struct Machine {
    pub clock: Arc<Clock>,
    pub jobs: Mutex<Vec<(String, Job)>>,
    /// No thread is to be had now.
    pub full: AtomicBool,
}

impl Runtime for Machine {
    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn wall(&self) -> Millis {
        self.clock.wall()
    }

    fn spawn(&self, name: String, _: usize, job: Job) -> io::Result<Option<JoinHandle<()>>> {
        if self.full.load(Ordering::Relaxed) {
            return Err(io::Error::other("no thread"));
        }
        self.jobs.lock().unwrap().push((name, job));
        Ok(None)
    }

    fn spawn_own(&self, name: String, stack: usize, job: Job) -> io::Result<Option<JoinHandle<()>>> {
        self.spawn(name, stack, job)
    }
}

/// A handler, and the event that is delivered to it.
pub type Delivery = (String, String);

/// A call of handlers that has not come back.
pub enum Call {
    Deliver { key: String, of: Delivery, before: u32, done: Box<dyn FnOnce(Delivered) + Send> },
    Notify { kind: HookEvent, done: Box<dyn FnOnce(usize) + Send> },
    Ask { done: Box<dyn FnOnce(Verdict) + Send> },
}

impl Call {
    /// Which delivery it is, if it is one.
    const fn of(&self) -> Option<&Delivery> {
        match self {
            Self::Deliver { of, .. } => Some(of),
            Self::Notify { .. } | Self::Ask { .. } => None,
        }
    }
}

/// The operator's handlers: as many threads as there are calls.
#[derive(Default)]
pub struct Scripts {
    pub calls: Mutex<Vec<Call>>,
    pub before_turn: bool,
    pub clock: Option<Arc<Clock>>,
    stopped: AtomicBool,
    /// Until when the `shutdown` handlers are waited for, while they run.
    shutdown: Mutex<Option<Instant>>,
    /// Delivery has read what it was told before they were called: what it had begun by then may still be called.
    pub heard: AtomicBool,
    seen: Mutex<Arc<Mutex<Seen>>>,
}

/// What handlers have seen, over all boots.
#[derive(Default)]
pub struct Seen {
    /// The newest attempt of each delivery.
    attempts: BTreeMap<Delivery, u32>,
    /// What each handler was given of each key, in order; a repeated one once.
    pub order: BTreeMap<(String, String), Vec<String>>,
    /// How often a handler took an event, and said so.
    pub done: BTreeMap<Delivery, u32>,
    /// What was called since this was last looked at.
    pub called: Vec<Delivery>,
    /// Set-aside ones that an operator had delivered again.
    pub again: BTreeSet<Delivery>,
    /// Deliveries that handlers may have seen, or may have said to be done, for all that the daemon can know.
    pub in_doubt: BTreeSet<Delivery>,
}

impl Scripts {
    pub fn new(clock: Arc<Clock>, seen: Arc<Mutex<Seen>>, before_turn: bool) -> Self {
        Self { clock: Some(clock), seen: Mutex::new(seen), before_turn, ..Self::default() }
    }

    /// A call comes back. `late`: nobody listens to that any more.
    pub fn come_back(&self, call: Call, dice: &mut Dice, quiet: bool, late: bool) {
        match call {
            Call::Deliver { of, before, done, .. } => {
                let answer = match dice.below(12) {
                    _ if quiet => Delivered::Done,
                    0..9 => Delivered::Done,
                    9 => Delivered::NotCalled,
                    10 => Delivered::TimedOut("late".into()),
                    _ => Delivered::Failed("why".into()),
                };
                let seen = self.seen.lock().unwrap().clone();
                let mut seen = seen.lock().unwrap();
                if late {
                    seen.in_doubt.insert(of.clone());
                }
                match answer {
                    Delivered::Done => *seen.done.entry(of).or_default() += 1,
                    Delivered::NotCalled => {
                        seen.attempts.insert(of, before);
                    }
                    _ => {}
                }
                drop(seen);
                done(answer);
            }
            Call::Notify { kind, done } => {
                if kind == HookEvent::Shutdown {
                    *self.shutdown.lock().unwrap() = None;
                }
                done(0);
            }
            Call::Ask { done } => done(match dice.below(10) {
                _ if quiet => Verdict::Pass(None),
                0..8 => Verdict::Pass(None),
                8 => Verdict::Pass(Some("context".into())),
                _ => Verdict::Refuse("no".into()),
            }),
        }
    }
}

impl Handlers for Scripts {
    fn has(&self, event: HookEvent) -> bool {
        match event {
            HookEvent::BeforeTurn => self.before_turn,
            HookEvent::Shutdown | HookEvent::Stopped | HookEvent::DaemonStart | HookEvent::Reload => true,
            _ => event.is_journalled(),
        }
    }

    fn notify(&self, event: Event, done: Box<dyn FnOnce(usize) + Send>) {
        if !self.has(event.kind) {
            return done(0);
        }
        if event.kind == HookEvent::Shutdown {
            let left = event.fields["deadline_ms"].as_u64().expect("its deadline");
            let now = self.clock.as_ref().expect("a clock").now();
            *self.shutdown.lock().unwrap() = Some(now + Duration::from_millis(left));
            self.heard.store(false, Ordering::Relaxed);
        }
        self.calls.lock().unwrap().push(Call::Notify { kind: event.kind, done });
    }

    fn deliver(&self, handler: &HandlerId, event: Event, done: Box<dyn FnOnce(Delivered) + Send>) {
        if self.stopped.load(Ordering::Relaxed) {
            return done(Delivered::NotCalled);
        }
        let (handler, key) = (handler.name.clone(), event.key.clone().expect("a key"));
        if event.kind == HookEvent::SessionEnd {
            let until = *self.shutdown.lock().unwrap();
            let now = self.clock.as_ref().expect("a clock").now();
            let over = until.is_none_or(|until| until <= now);
            assert!(over || !self.heard.load(Ordering::Relaxed), "an end is delivered beside the `shutdown` handlers");
        }
        let mut calls = self.calls.lock().unwrap();
        let same = |c: &Call| {
            c.of().is_some_and(|of| of.0 == handler) && matches!(c, Call::Deliver { key: k, .. } if *k == key)
        };
        let seen = self.seen.lock().unwrap().clone();
        let mut seen = seen.lock().unwrap();
        let of = (handler.clone(), event.event_id.clone());
        // What an operator has delivered again stands beside what is delivered already.
        let beside = seen.again.contains(&of)
            || calls.iter().any(|c| same(c) && c.of().is_some_and(|of| seen.again.contains(of)));
        assert!(beside || !calls.iter().any(&same), "two events of {key} at once for {handler}");
        let before = seen.attempts.insert(of.clone(), event.attempt).unwrap_or(0);
        assert!(event.attempt > before, "a call again is a higher attempt: {before}, then {}", event.attempt);
        assert_eq!(event.redelivered, event.attempt > 1);
        assert!(!event.redelivered || before > 0 || seen.in_doubt.contains(&of), "redelivered, and never seen: {of:?}");
        seen.called.push(of.clone());
        let order = seen.order.entry((handler, key.clone())).or_default();
        if !order.contains(&event.event_id) {
            order.push(event.event_id);
        }
        calls.push(Call::Deliver { key, of, before, done });
    }

    fn ask(&self, event: Event, done: Box<dyn FnOnce(Verdict) + Send>) {
        if !self.has(event.kind) {
            return done(Verdict::Pass(None));
        }
        self.calls.lock().unwrap().push(Call::Ask { done });
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn is_off(&self) -> bool {
        false
    }

    fn stop_timers(&self) {}

    fn stop_calling(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    fn close(&self, _: Instant) -> usize {
        let calls = std::mem::take(&mut *self.calls.lock().unwrap());
        for call in calls {
            match call {
                Call::Deliver { of, before, done, .. } => {
                    let seen = self.seen.lock().unwrap().clone();
                    let mut seen = seen.lock().unwrap();
                    seen.attempts.insert(of.clone(), before);
                    seen.in_doubt.insert(of);
                    drop(seen);
                    done(Delivered::NotCalled);
                }
                Call::Notify { done, .. } => done(1),
                Call::Ask { done } => done(Verdict::HookFailed("closing".into())),
            }
        }
        0
    }
}

/// How a worker panics.
pub struct Fault;

/// What agents said and were asked, over all boots.
#[derive(Default)]
pub struct Notes {
    pub prompts: BTreeMap<String, String>,
    pub said: BTreeMap<String, String>,
    /// Turns that were completed as far as their agent knows.
    pub whole: BTreeSet<String>,
    pub asked: u64,
    /// The turn in which such an agent asked.
    pub asked_in: BTreeMap<String, String>,
    /// What it was answered, and what clients were told to be the answer.
    pub answers: BTreeMap<String, String>,
    pub agreed: BTreeMap<String, String>,
    /// Turns in which it went on without an answer.
    pub impatient: BTreeSet<String>,
    /// Agents do not fail any more, and begin nothing by themselves.
    pub quiet: bool,
}

/// An agent: says some pieces, fails at times, asks for permissions, works by itself.
pub struct Actor {
    notes: Arc<Mutex<Notes>>,
    dice: Dice,
    ready: bool,
    turn: String,
    pieces: u64,
    /// Does not hear of a cancel before its instant.
    deaf: bool,
    asks: Option<String>,
    speaks: bool,
}

impl Actor {
    pub fn new(notes: Arc<Mutex<Notes>>, seed: u64) -> Self {
        let dice = Dice::new(seed);
        Self { notes, dice, ready: false, turn: String::new(), pieces: 0, deaf: false, asks: None, speaks: false }
    }

    fn quiet(&self) -> bool {
        self.notes.lock().unwrap().quiet
    }

    fn say(&mut self, host: &mut dyn Host) {
        if self.dice.chance(20) {
            return host.said(Said::Thought("hm".into()));
        }
        if self.dice.chance(20) {
            let status = *self.dice.pick(&["pending", "completed"]);
            return host.said(Said::Tool(ToolCall {
                id: format!("t{}", self.dice.below(3)),
                title: Some("tool".into()),
                status: Some(status.into()),
                ..ToolCall::default()
            }));
        }
        let n = self.dice.below(1000);
        let long = self.dice.chance(2);
        let piece = if long { "x".repeat(70_000) } else { format!("<{n}>") };
        self.notes.lock().unwrap().said.entry(self.turn.clone()).or_default().push_str(&piece);
        host.said(Said::Text(piece));
    }

    fn go_on(&mut self, host: &mut dyn Host) -> Progress {
        if let Some(interrupt) = host.interrupt() {
            let until = match interrupt {
                Interrupt::Cancel(by) if self.deaf && !self.quiet() && by > host.now() => by,
                Interrupt::Cancel(_) | Interrupt::Kill => {
                    self.asks = None;
                    self.ready = self.ready && matches!(interrupt, Interrupt::Cancel(_));
                    return Progress::Done(Answer::Cancelled);
                }
            };
            return Progress::Pending { until: Some(until) };
        }
        if host.permission_answers().iter().any(|(id, _)| self.asks.as_ref() == Some(id)) {
            self.asks = None;
        }
        if self.asks.is_some() && !self.quiet() {
            return Progress::Pending { until: None };
        }
        if self.pieces > 0 && host.has_room() {
            self.pieces -= 1;
            self.say(host);
            return Progress::Pending { until: None };
        }
        if !self.quiet() && self.dice.chance(1) {
            resume_unwind(Box::new(Fault));
        }
        if !self.quiet() && self.dice.chance(8) && !self.deaf {
            return self.ask(host);
        }
        match self.dice.below(12) {
            0 if !self.quiet() => {
                self.ready = false;
                Progress::Done(Answer::Failed(Failure::new("agent_died", "gone")))
            }
            1 if !self.quiet() => Progress::Done(Answer::Failed(Failure::new("agent_error", "no"))),
            _ => {
                self.notes.lock().unwrap().whole.insert(self.turn.clone());
                Progress::Done(Answer::Completed { stop_reason: None })
            }
        }
    }

    fn ask(&mut self, host: &mut dyn Host) -> Progress {
        let request_id = {
            let mut notes = self.notes.lock().unwrap();
            notes.asked += 1;
            format!("p{}", notes.asked)
        };
        let option = PermissionOption { option_id: "yes".into(), name: "Yes".into(), kind: "allow_once".into() };
        let request =
            PermissionRequest { request_id: request_id.clone(), tool: ToolCall::default(), options: vec![option] };
        if host.permission(request).is_none() {
            self.asks = Some(request_id);
        }
        Progress::Pending { until: None }
    }
}

impl Agent for Actor {
    fn start(&mut self, _: &mut dyn Host, _: Option<&str>, _: bool, _: Instant) -> Result<Started, Failure> {
        if !self.quiet() && self.dice.chance(8) {
            return Err(Failure::new("agent_start", "it does not start"));
        }
        self.ready = true;
        Ok(Started { agent_session: None, continuity: Continuity::Stateless })
    }

    fn is_ready(&self) -> bool {
        self.ready
    }

    fn begin(&mut self, host: &mut dyn Host, prompt: &Prompt) -> Progress {
        self.turn.clone_from(&prompt.turn_id);
        self.pieces = self.dice.below(4);
        self.deaf = !self.quiet() && self.dice.chance(10);
        self.asks = None;
        self.notes.lock().unwrap().prompts.insert(prompt.turn_id.clone(), prompt.text.clone());
        if self.dice.chance(20) { self.go_on(host) } else { Progress::Pending { until: None } }
    }

    fn listen(&mut self, _: &mut dyn Host) -> Progress {
        self.speaks = false;
        self.turn = String::new();
        self.pieces = 0;
        self.deaf = false;
        self.asks = None;
        Progress::Pending { until: None }
    }

    fn input(&mut self, host: &mut dyn Host) -> Progress {
        self.go_on(host)
    }

    fn idle(&mut self, _: &mut dyn Host) {
        if !self.quiet() && self.dice.chance(10) {
            self.speaks = true;
        }
    }

    fn wants_turn(&self) -> bool {
        self.speaks && self.ready
    }

    fn close(&mut self, _: &mut dyn Host, _: Instant) -> Vec<String> {
        self.ready = false;
        Vec::new()
    }
}

/// A host of which no script asks anything.
pub struct NoHost;

impl HookHost for NoHost {
    fn transcript(&self, _: &str, _: i64, _: usize, _: Option<i64>) -> Result<Vec<Entry>, String> {
        Ok(Vec::new())
    }
    fn kv_get(&self, _: &str) -> Result<Option<Value>, String> {
        Ok(None)
    }
    fn kv_set(&self, _: &str, _: Option<Value>, _: Option<Duration>, _: Option<Option<Value>>) -> Result<bool, String> {
        Ok(true)
    }
    fn kv_incr(&self, _: &str, by: i64, _: Option<Duration>) -> Result<i64, String> {
        Ok(by)
    }
    fn send(&self, _: &str, _: &str, _: Option<&str>) -> Result<Value, String> {
        Ok(Value::Null)
    }
    fn session_info(&self, _: &str) -> Result<Option<Value>, String> {
        Ok(None)
    }
    fn timer_claim(&self, _: &str, _: Millis) -> Result<bool, String> {
        Ok(true)
    }
    fn timer_restart(&self, _: &str, _: Millis) -> Result<(), String> {
        Ok(())
    }
    fn timer_last(&self, _: &str) -> Result<Option<Millis>, String> {
        Ok(None)
    }
}
