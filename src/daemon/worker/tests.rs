//! A worker that is stepped by hand, on one thread, over a real store and registry: time passes when the test says so,
//! hooks answer when it lets them, and commits fail when it wants them to.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use super::*;
use crate::agent::{Agent, Answer, Continuity, Failure, Host, Progress, Prompt, Said, Started};
use crate::clock::Millis;
use crate::daemon::context::Parts;
use crate::daemon::handlers::Handlers;
use crate::daemon::hub::Hub;
use crate::daemon::mailbox::Close;
use crate::daemon::runtime::{Job, Runtime};
use crate::hooks::trial::TrialHost;
use crate::hooks::{Delivered, Event, HandlerId, Hooks, Verdict, load};
use crate::model::event::HookEvent;
use crate::store::{Accept, BootInfo, Env, Faults, Step, Store};

mod attaching;

/// How long the puppet thinks.
const THINKS: Duration = Duration::from_secs(5);

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Clock(Instant, Mutex<Duration>);

impl Runtime for Clock {
    fn now(&self) -> Instant {
        self.0 + *lock(&self.1)
    }

    fn wall(&self) -> Millis {
        crate::clock::now()
    }

    fn spawn(&self, _: String, _: usize, _: Job) -> io::Result<Option<JoinHandle<()>>> {
        unreachable!("a worker makes no thread")
    }

    fn spawn_own(&self, _: String, _: usize, _: Job) -> io::Result<Option<JoinHandle<()>>> {
        unreachable!("a worker makes no thread")
    }
}

type Answers = Box<dyn FnOnce(Verdict) + Send>;

/// Handlers of `before_turn`, if there are any, that answer when they are let.
#[derive(Default)]
struct Asked {
    registered: Mutex<bool>,
    waiting: Mutex<Vec<Answers>>,
}

impl Handlers for Asked {
    fn has(&self, event: HookEvent) -> bool {
        event == HookEvent::BeforeTurn && *lock(&self.registered)
    }

    fn notify(&self, _: Event, _: Box<dyn FnOnce(usize) + Send>) {}

    fn deliver(&self, _: &HandlerId, _: Event, _: Box<dyn FnOnce(Delivered) + Send>) {}

    fn ask(&self, _: Event, done: Answers) {
        lock(&self.waiting).push(done);
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn is_off(&self) -> bool {
        false
    }

    fn stop_timers(&self) {}

    fn stop_calling(&self) {}

    fn close(&self, _: Instant) -> usize {
        0
    }
}

/// What the puppets of a test share.
#[derive(Default)]
struct Strings {
    prompts: Vec<String>,
    panics: bool,
    fails_to_start: bool,
    dies: bool,
    /// What happens once the outcome of a turn is committed, while the agent is told of it.
    meanwhile: Option<Box<dyn FnOnce() + Send>>,
}

/// An agent that thinks, and answers.
struct Puppet {
    strings: Arc<Mutex<Strings>>,
    started: bool,
    at: Option<Instant>,
}

impl Agent for Puppet {
    fn start(&mut self, _: &mut dyn Host, _: Option<&str>, _: bool, _: Instant) -> Result<Started, Failure> {
        if lock(&self.strings).fails_to_start {
            return Err(Failure::new("agent_start", "on purpose"));
        }
        self.started = true;
        Ok(Started { agent_session: None, continuity: Continuity::New })
    }

    fn is_ready(&self) -> bool {
        self.started
    }

    fn begin(&mut self, host: &mut dyn Host, prompt: &Prompt) -> Progress {
        let context = prompt.context.clone().unwrap_or_default();
        lock(&self.strings).prompts.push(format!("{context}{}", prompt.text));
        host.said(Said::Text("half".into()));
        let at = host.now() + THINKS;
        self.at = Some(at);
        Progress::Pending { until: Some(at) }
    }

    fn input(&mut self, host: &mut dyn Host) -> Progress {
        assert!(!lock(&self.strings).panics, "on purpose");
        if host.interrupt().is_some() {
            return Progress::Done(Answer::Cancelled);
        }
        if self.at.is_some_and(|at| at > host.now()) {
            return Progress::Pending { until: self.at };
        }
        if lock(&self.strings).dies {
            return Progress::Done(Answer::Failed(Failure::new("agent_died", "on purpose")));
        }
        host.said(Said::Text(" and half".into()));
        Progress::Done(Answer::Completed { stop_reason: None })
    }

    fn end(&mut self, _: &mut dyn Host) {
        self.at = None;
    }

    fn durable(&mut self, host: &mut dyn Host) {
        let meanwhile = if self.at.is_none() { lock(&self.strings).meanwhile.take() } else { None };
        if let Some(meanwhile) = meanwhile {
            meanwhile();
            // As an agent does that has a process to wait for.
            let until = host.now();
            host.wait(&mut [], Some(until));
        }
    }

    fn close(&mut self, _: &mut dyn Host, _: Instant) -> Vec<String> {
        Vec::new()
    }
}

/// A message under the one key of the test.
fn message(ctx: &Context, text: &str) -> Accept {
    Accept {
        key: "a:b".into(),
        text: text.into(),
        original: text.into(),
        client_id: None,
        agent: "default".into(),
        limits: ctx.limits(),
        session_id: None,
    }
}

struct Rig {
    ctx: Arc<Context>,
    clock: Arc<Clock>,
    asked: Arc<Asked>,
    strings: Arc<Mutex<Strings>>,
    /// How many commits of a transaction still fail, by its name.
    faults: Arc<Mutex<HashMap<&'static str, u32>>>,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let faults: Arc<Mutex<HashMap<&'static str, u32>>> = Arc::default();
        let planned = faults.clone();
        let fails: Faults = Arc::new(move |name, step| {
            let mut planned = lock(&planned);
            let left = planned.get_mut(name).filter(|left| step == Step::Commit && **left > 0);
            left.map(|left| *left -= 1).is_some()
        });
        let env = Env { faults: Some(fails), durable: false, ..Env::default() };
        let store = Store::open_in(&dir.path().join("ostler.db"), env).unwrap();
        store.open_boot(BootInfo { boot_id: "boot".into(), pid: 1, threshold: 3, machine: None }).unwrap();
        let config = config::parse("[sessions]\npark_after = \"60s\"\n", None).unwrap();
        let scripts = load(&config.hooks, "1").unwrap();
        let hooks = Hooks::start(scripts, Arc::new(TrialHost::default()), "boot").unwrap();
        let clock = Arc::new(Clock(Instant::now(), Mutex::default()));
        let (asked, strings) = (Arc::<Asked>::default(), Arc::<Mutex<Strings>>::default());
        let puppets = strings.clone();
        let ctx = Arc::new(Context::new(Parts {
            store,
            hub: Arc::new(Hub::default()),
            hooks,
            runtime: clock.clone(),
            handlers: asked.clone(),
            agents: Arc::new(move |_, _| Box::new(Puppet { strings: puppets.clone(), started: false, at: None })),
            boot_id: "boot".into(),
            state_dir: dir.path().to_owned(),
            supervised: false,
            requests: crossbeam_channel::bounded(1).0,
            config,
        }));
        Self { ctx, clock, asked, strings, faults, _dir: dir }
    }

    fn fail(&self, name: &'static str, times: u32) {
        lock(&self.faults).insert(name, times);
    }

    fn pass(&self, time: Duration) {
        *lock(&self.clock.1) += time;
    }

    /// A message under the one key of the test; gives the turn.
    fn say(&self, text: &str) -> String {
        let accepted = self.ctx.store.accept_message(message(&self.ctx, text)).unwrap();
        self.ctx.registry.want(WorkRequest { sid: accepted.sid, key: "a:b".into(), auto_continue: false });
        accepted.turn_id
    }

    /// The worker of the session that waits for one.
    fn worker(&self) -> Worker {
        let config = self.ctx.config();
        let admitted = self.ctx.registry.admit(&config).pop().unwrap();
        Worker::open(&self.ctx, admitted.request(), config.route("a:b").clone(), &admitted.mailbox)
    }

    fn outcome(&self, turn: &str) -> (String, Option<(String, String)>) {
        let turn = self.ctx.store.turn(turn).unwrap();
        (turn.state, turn.error)
    }
}

/// Steps it until it waits: the states that it came through, the last one included, and what it waits for.
fn drive(worker: &mut Worker, input: Input) -> (Vec<State>, Next) {
    let (mut states, mut input) = (Vec::new(), input);
    loop {
        let next = catch_unwind(AssertUnwindSafe(|| worker.step(input))).unwrap_or_else(|_| worker.panicked());
        input = Input::Go;
        if states.last() != Some(&worker.state()) {
            states.push(worker.state());
        }
        if next != Next::Again {
            return (states, next);
        }
        assert!(states.len() < 50, "it comes to no rest: {states:?}");
    }
}

#[test]
fn a_worker_is_driven_from_its_opening_to_its_end() {
    use State::{Beginning, Closing, Gone, Idle, Running, Starting};
    let rig = Rig::new();
    let turn = rig.say("hi");
    let mut worker = rig.worker();
    assert_eq!(worker.state(), State::Opening);
    let (states, next) = drive(&mut worker, Input::Go);
    assert_eq!(states, [Idle, Starting, Beginning, Running]);
    let Next::Wait { until: Some(flush), agent: true } = next else { panic!("{next:?}") };
    assert!(flush < rig.ctx.now() + THINKS, "what was said is committed before the agent goes on");
    rig.pass(Duration::from_millis(100));
    let (states, next) = drive(&mut worker, Input::Timeout);
    let at = rig.clock.0 + THINKS;
    assert_eq!((states, next), (vec![Running], Next::Wait { until: Some(at), agent: true }));
    rig.pass(THINKS);
    let (states, next) = drive(&mut worker, Input::Timeout);
    assert_eq!((states, rig.outcome(&turn).0.as_str()), (vec![Idle], "completed"));
    let park = rig.ctx.now() + Duration::from_secs(60);
    assert_eq!(next, Next::Wait { until: Some(park), agent: true });
    let second = rig.say("again");
    let (states, _) = drive(&mut worker, Input::Letter);
    assert_eq!(states, [Beginning, Running], "its agent stands ready");
    rig.pass(THINKS);
    let (states, _) = drive(&mut worker, Input::Timeout);
    assert_eq!((states, rig.outcome(&second).0.as_str()), (vec![Idle], "completed"));
    rig.pass(Duration::from_secs(60));
    assert_eq!(drive(&mut worker, Input::Timeout), (vec![Closing, Gone], Next::Gone));
    assert_eq!(lock(&rig.strings).prompts, ["hi", "again"]);
}

/// An agent may have to wait for its process once its turn's outcome is committed, and letters are read meanwhile.
#[test]
fn what_comes_while_the_agent_is_told_that_all_is_kept_is_not_lost() {
    for direct in [false, true] {
        let rig = Rig::new();
        rig.say("hi");
        let mut worker = rig.worker();
        drive(&mut worker, Input::Go);
        let ctx = rig.ctx.clone();
        lock(&rig.strings).meanwhile = Some(Box::new(move || {
            let accept = message(&ctx, "again");
            if direct {
                let reserved = ctx.registry.reserve("a:b").unwrap();
                let (_, begun) = ctx.store.accept_and_begin(accept, (reserved.sid, reserved.epoch)).unwrap();
                return reserved.hand_over(Box::new(begun.unwrap()));
            }
            let sid = ctx.store.accept_message(accept).unwrap().sid;
            ctx.registry.want(WorkRequest { sid, key: "a:b".into(), auto_continue: false });
        }));
        rig.pass(THINKS);
        drive(&mut worker, Input::Timeout);
        assert_eq!((worker.state(), rig.ctx.registry.numbers().running), (State::Running, 1), "{direct}");
        assert_eq!(lock(&rig.strings).prompts, ["hi", "again"]);
    }
}

/// The same of a stop that lets agents go.
#[test]
fn a_let_go_that_comes_while_the_agent_is_told_is_heeded() {
    let rig = Rig::new();
    rig.say("hi");
    let mut worker = rig.worker();
    drive(&mut worker, Input::Go);
    let ctx = rig.ctx.clone();
    lock(&rig.strings).meanwhile = Some(Box::new(move || {
        ctx.registry.post(1, |m| m.post(|l| l.let_go = true));
    }));
    rig.pass(THINKS);
    drive(&mut worker, Input::Timeout);
    assert_eq!(worker.state(), State::Gone);
}

#[test]
fn hooks_are_waited_for_in_a_state_and_their_context_reaches_the_agent() {
    let rig = Rig::new();
    *lock(&rig.asked.registered) = true;
    rig.say("hi");
    let mut worker = rig.worker();
    drive(&mut worker, Input::Go);
    assert_eq!(worker.state(), State::Beginning);
    rig.ctx.registry.post(1, |m| m.post(|l| l.work = true));
    assert_eq!(drive(&mut worker, Input::Letter).0, [State::Beginning], "another letter is no answer");
    lock(&rig.asked.waiting).pop().unwrap()(Verdict::Pass(Some("mind: ".into())));
    assert_eq!(drive(&mut worker, Input::Letter).0, [State::Running]);
    assert_eq!(lock(&rig.strings).prompts, ["mind: hi"]);
}

#[test]
fn a_turn_whose_hooks_refuse_or_never_answer_fails() {
    for late in [false, true] {
        let rig = Rig::new();
        *lock(&rig.asked.registered) = true;
        let turn = rig.say("hi");
        let mut worker = rig.worker();
        drive(&mut worker, Input::Go);
        if late {
            rig.pass(Duration::from_secs(36));
            drive(&mut worker, Input::Timeout);
            // An answer to a question that is over begins nothing.
            lock(&rig.asked.waiting).pop().unwrap()(Verdict::Pass(None));
            drive(&mut worker, Input::Letter);
        } else {
            lock(&rig.asked.waiting).pop().unwrap()(Verdict::Refuse("no".into()));
            drive(&mut worker, Input::Letter);
        }
        let (state, error) = rig.outcome(&turn);
        assert_eq!((state.as_str(), error.unwrap().0.as_str()), ("failed", "hook_failed"));
        assert_eq!((worker.state(), lock(&rig.strings).prompts.len()), (State::Idle, 0));
    }
}

#[test]
fn each_write_that_fails_is_tried_again_after_its_pause() {
    use State::{Beginning, Idle, Opening, Running, Starting};
    let rig = Rig::new();
    rig.fail("open_activation", 2);
    rig.fail("begin_turn", 1);
    rig.fail("finish_turn", 2);
    let turn = rig.say("hi");
    let mut worker = rig.worker();
    let pause = |next: Next| assert_eq!(next, Next::Wait { until: Some(rig.ctx.now() + AGAIN), agent: false });
    let (states, next) = drive(&mut worker, Input::Go);
    assert_eq!(states, [Opening]);
    pause(next);
    rig.ctx.registry.post(1, |m| m.post(|l| l.work = true));
    let (states, next) = drive(&mut worker, Input::Letter);
    assert_eq!(states, [Opening], "a letter does not make the store better");
    pause(next);
    rig.pass(AGAIN);
    assert_eq!(drive(&mut worker, Input::Timeout).0, [Opening]);
    rig.pass(AGAIN);
    let (states, next) = drive(&mut worker, Input::Timeout);
    assert_eq!(states, [Idle, Starting, Beginning, Idle], "nobody knows whether a turn began");
    pause(next);
    rig.pass(AGAIN);
    assert_eq!(drive(&mut worker, Input::Timeout).0, [Beginning, Running]);
    rig.pass(THINKS);
    for _ in 0..2 {
        let (states, next) = drive(&mut worker, Input::Timeout);
        assert_eq!(states, [State::Finishing]);
        pause(next);
        rig.pass(AGAIN);
    }
    assert_eq!(drive(&mut worker, Input::Timeout).0, [Idle]);
    assert_eq!(rig.outcome(&turn).0, "completed");
}

#[test]
fn a_worker_that_is_to_close_before_it_is_open_hands_on_what_waits() {
    let rig = Rig::new();
    rig.fail("open_activation", 9);
    rig.say("hi");
    let mut worker = rig.worker();
    drive(&mut worker, Input::Go);
    rig.ctx.registry.post(1, |m| m.post(|l| (l.auto_continue, l.close) = (true, Some(Close::Park))));
    assert_eq!(drive(&mut worker, Input::Letter), (vec![State::Gone], Next::Gone));
    let (_, again) = rig.ctx.registry.remove(1).unwrap();
    assert!(again.unwrap().auto_continue);
}

#[test]
fn a_cancel_ends_the_turn_that_it_means() {
    let rig = Rig::new();
    let turn = rig.say("hi");
    let mut worker = rig.worker();
    drive(&mut worker, Input::Go);
    rig.ctx.cancel_turn(1, 77);
    assert_eq!(drive(&mut worker, Input::Letter).0, [State::Running], "another turn is meant");
    rig.ctx.cancel_turn(1, 1);
    assert_eq!(drive(&mut worker, Input::Letter).0, [State::Idle]);
    assert_eq!(rig.outcome(&turn).0, "cancelled");
}

#[test]
fn an_agent_that_cannot_be_started_fails_the_turn_and_is_left_alone_for_longer_each_time() {
    let rig = Rig::new();
    lock(&rig.strings).fails_to_start = true;
    let mut turns = vec![rig.say("one")];
    let mut worker = rig.worker();
    drive(&mut worker, Input::Go);
    for pause in [0, 1, 2, 4] {
        assert_eq!(rig.outcome(turns.last().unwrap()).1.unwrap().0, "agent_start");
        turns.push(rig.say("next"));
        let (states, next) = drive(&mut worker, Input::Letter);
        if pause > 0 {
            let at = rig.ctx.now() + Duration::from_secs(pause);
            assert_eq!((states, next), (vec![State::Idle], Next::Wait { until: Some(at), agent: true }));
            rig.pass(Duration::from_secs(pause));
            drive(&mut worker, Input::Timeout);
        }
    }
}

#[test]
fn a_worker_that_panics_fails_its_turn_and_the_session_gets_another_one() {
    let rig = Rig::new();
    rig.fail("worker_died", 1);
    let turn = rig.say("hi");
    let mut worker = rig.worker();
    drive(&mut worker, Input::Go);
    lock(&rig.strings).panics = true;
    rig.pass(THINKS);
    let (states, next) = drive(&mut worker, Input::Timeout);
    assert_eq!(states, [State::Closing]);
    assert_eq!(next, Next::Wait { until: Some(rig.ctx.now() + AGAIN), agent: false });
    rig.pass(AGAIN);
    assert_eq!(drive(&mut worker, Input::Timeout), (vec![State::Gone], Next::Gone));
    let (state, error) = rig.outcome(&turn);
    assert_eq!((state.as_str(), error.unwrap().0.as_str()), ("failed", "internal"));
    assert!(rig.ctx.registry.remove(1).unwrap().1.is_some());
}

#[test]
fn a_stop_closes_it_at_once_and_hands_nothing_on() {
    let rig = Rig::new();
    rig.say("hi");
    let mut worker = rig.worker();
    drive(&mut worker, Input::Go);
    rig.pass(THINKS);
    drive(&mut worker, Input::Timeout);
    rig.ctx.registry.post(1, |m| m.post(|l| l.close = Some(Close::Stop)));
    assert_eq!(drive(&mut worker, Input::Letter), (vec![State::Closing, State::Gone], Next::Gone));
}

/// The kernel has ended processes of the agent: whether it lives decides what becomes of the turn.
#[test]
fn a_turn_whose_agent_went_beyond_its_memory_says_so() {
    use crate::daemon::registry::ProcessInfo;
    let group = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(group.path().join(name), text).unwrap();
    let ended = |n: u32| write("memory.events.local", &format!("oom {n}\noom_kill {n}\n"));
    write("memory.max", "67108864\n");
    write("memory.peak", "66000000\n");
    ended(0);
    let rig = Rig::new();
    let run = |worker: &mut Worker| {
        rig.pass(THINKS);
        drive(worker, Input::Timeout);
    };
    let process = |pid: u32| {
        let start = crate::proc::procfs::stat(pid).map_or(0, |s| s.start);
        let cgroup = Some(group.path().to_owned());
        let info = ProcessInfo { session_id: "s".into(), agent: "a".into(), pid, start, cgroup, confined: None };
        rig.ctx.registry.set_process(1, info);
    };
    let notices = || {
        let events = rig.ctx.store.events(None, 0, 100).unwrap();
        events.items.iter().filter(|e| format!("{e:?}").contains("out_of_memory")).count()
    };

    let first = rig.say("a tool dies");
    let mut worker = rig.worker();
    drive(&mut worker, Input::Go);
    process(std::process::id());
    ended(1);
    run(&mut worker);
    assert_eq!((rig.outcome(&first).0.as_str(), notices()), ("completed", 1), "it goes on, and that is told");
    let second = rig.say("nothing new");
    drive(&mut worker, Input::Letter);
    run(&mut worker);
    assert_eq!((rig.outcome(&second).0.as_str(), notices()), ("completed", 1), "once");

    lock(&rig.strings).dies = true;
    let third = rig.say("it dies of something else");
    drive(&mut worker, Input::Letter);
    process(u32::MAX);
    run(&mut worker);
    assert_eq!(rig.outcome(&third).1.unwrap().0, "agent_died");
    let fourth = rig.say("it dies of that");
    drive(&mut worker, Input::Letter);
    if worker.state() != State::Running {
        rig.pass(Duration::from_secs(120));
        drive(&mut worker, Input::Timeout);
    }
    process(u32::MAX);
    ended(2);
    run(&mut worker);
    let (code, why) = rig.outcome(&fourth).1.unwrap();
    assert_eq!(code, "out_of_memory");
    assert!(why.contains("limit of 64.0 MiB, at most 62.9 MiB") && why.contains("on purpose"), "{why}");
}
