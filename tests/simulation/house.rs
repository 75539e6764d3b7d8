//! The simulated daemon: the real store, machine and recovery, driven step by step; workers, agents, hooks, people and the
//! process itself are models that do what theirs do, in an order that the dice choose.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ostler::config::{Busy, OnInterrupt, Resume, Retention, Shutdown};
use ostler::model::event::{Actor, EndReason, HandlerId, MarkReason, Outcome, StopReason, Urgency};
use ostler::model::lifecycle::{Action, Event, Lifecycle, Phase};
use ostler::model::session::Policy;
use ostler::store::{
    Accept, Acted, Admission, Begin, Begun, BootInfo, Error, Item, Limits, Owed, Refusal, Settled, Step, StopNote,
    Store, Target, TurnRef, World,
};

use crate::dice::Dice;
use crate::witness::Witness;

pub const T0: i64 = 1_800_000_000_000;
const SHUTDOWN: Shutdown = Shutdown {
    drain: Duration::from_secs(30),
    interrupt: Duration::from_secs(10),
    hooks: Duration::from_secs(10),
    close: Duration::from_secs(5),
    deadline: Duration::from_secs(60),
};
const KEYS: [&str; 3] = ["k:a", "k:b", "k:c"];
const HANDLERS: [&str; 2] = ["x", "y"];
const ATTEMPTS: u32 = 3;
const ALONE_MS: i64 = 10_000;

/// How a death travels through the store.
struct Death;

/// What went wrong with a call of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Out {
    /// The rules said no.
    Refused(Refusal),
    /// Nobody knows whether it was kept.
    Doubt,
    /// The process died in it.
    Dead,
}

type Res<T> = Result<T, Out>;

/// What strikes, and when. Shared with the store's world.
#[derive(Default)]
struct Plan {
    /// Steps until the process dies; 0: it does not.
    death_in: AtomicU64,
    /// The next COMMIT fails: 1 before it, 2 after it.
    commit: AtomicU8,
    files: Mutex<(PathBuf, PathBuf)>,
}

impl Plan {
    fn strike(&self, step: Step) -> bool {
        if self.death_in.load(Ordering::Relaxed) > 0 && self.death_in.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.keep();
            resume_unwind(Box::new(Death));
        }
        let due = match step {
            Step::Commit => 1,
            Step::Committed => 2,
            Step::Before | Step::Inside => return false,
        };
        self.commit.compare_exchange(due, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// What a death leaves: the files as they are at this instant.
    fn keep(&self) {
        let (from, to) = &*self.files.lock().unwrap();
        copy(from, to);
    }
}

fn wal(path: &Path) -> PathBuf {
    path.with_extension("db-wal")
}

fn copy(from: &Path, to: &Path) {
    std::fs::copy(from, to).unwrap();
    if wal(from).exists() {
        std::fs::copy(wal(from), wal(to)).unwrap();
    }
}

fn remove(path: &Path) {
    for end in ["db", "db-wal", "db-shm"] {
        let _ = std::fs::remove_file(path.with_extension(end));
    }
}

/// What a seed is configured as.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub busy: Busy,
    pub on_interrupt: OnInterrupt,
    pub resume: Resume,
    pub window: Option<Duration>,
    pub idle_reset: Option<Duration>,
    pub threshold: i64,
    pub max_live: usize,
    pub queue_limit: usize,
}

impl Config {
    fn roll(dice: &mut Dice) -> Self {
        let strict = dice.chance(50);
        Self {
            busy: *dice.pick(Busy::ALL),
            on_interrupt: if strict {
                *dice.pick(&[OnInterrupt::Resume, OnInterrupt::Rerun])
            } else {
                *dice.pick(OnInterrupt::ALL)
            },
            resume: if strict { Resume::Auto } else { *dice.pick(Resume::ALL) },
            window: (!strict).then_some(Duration::from_secs(3600)),
            idle_reset: dice.chance(25).then_some(Duration::from_secs(7200)),
            threshold: *dice.pick(&[3, 3, 2, 1, 0]),
            max_live: *dice.pick(&[1, 2, 8]),
            queue_limit: *dice.pick(&[3, 32]),
        }
    }

    /// Whether every interrupted turn must go on.
    const fn strict(&self) -> bool {
        self.window.is_none()
            && matches!(self.resume, Resume::Auto)
            && matches!(self.on_interrupt, OnInterrupt::Resume | OnInterrupt::Rerun)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Close {
    Park,
    Stop,
    Retire,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Cancelled,
    Stop,
    Retired,
}

#[derive(Clone, Debug)]
enum At {
    Opening,
    Idle,
    Running(Box<Run>),
    /// What is left is the end of its activation.
    Shutting(Close),
}

#[derive(Clone, Debug)]
struct Run {
    turn: TurnRef,
    id: String,
    number: i64,
    unkept: Vec<Item>,
    /// A batch that was sent and whose fate is unknown: it is sent again as it was, under its number.
    doubtful: Vec<Item>,
    said: String,
    kept: usize,
    ending: Option<(Outcome, Vec<Item>)>,
}

#[derive(Clone, Debug)]
struct Worker {
    sid: i64,
    epoch: i64,
    at: At,
    work: bool,
    asked: bool,
    close: Option<Close>,
    interrupt: Option<Why>,
    killed: bool,
    doubt: bool,
}

/// A message, as its sender knows it.
#[derive(Clone, Debug)]
struct Sent {
    key: &'static str,
    text: String,
    id: Option<String>,
    /// Session, turn and message of its 202.
    acked: Option<(String, String, String)>,
}

/// A delivery that the simulated delivery thread holds.
#[derive(Clone, Debug)]
struct Held {
    attempts: u32,
    /// Called before in this boot: from the second call on each attempt is committed before it.
    called: bool,
    settled: Option<Settled>,
}

/// What dies with the process.
struct Daemon {
    machine: Lifecycle,
    workers: BTreeMap<i64, Worker>,
    /// Workers that were given up or retired by force: they still try to write.
    ghosts: Vec<Worker>,
    wishes: BTreeMap<i64, bool>,
    loners: VecDeque<i64>,
    solo: Option<(i64, Option<i64>)>,
    continuations: VecDeque<i64>,
    held_back: bool,
    closed: bool,
    hooks_running: bool,
    stopped_running: bool,
    draining: bool,
    halted: bool,
    store_closed: bool,
    deliveries: BTreeMap<i64, Held>,
    doubt: bool,
    doubted: bool,
    left: bool,
    marked: bool,
}

pub struct House {
    pub dice: Dice,
    pub config: Config,
    pub steps: u64,
    pub boots: u64,
    dir: PathBuf,
    file: u64,
    path: PathBuf,
    now: Arc<AtomicI64>,
    base: Instant,
    plan: Arc<Plan>,
    store: Option<Store>,
    daemon: Daemon,
    dead: bool,
    witness: Witness,
    sent: Vec<Sent>,
    prompts: BTreeMap<String, String>,
    /// What each agent said in a turn, and how much of it was certainly kept.
    said: BTreeMap<String, (String, usize)>,
    settled: BTreeSet<i64>,
    attempts: BTreeMap<i64, u32>,
    began: Option<i64>,
    quiet: bool,
}

impl House {
    pub fn new(seed: u64, dir: &Path, template: &Path) -> Self {
        let mut dice = Dice::new(seed);
        let config = Config::roll(&mut dice);
        let path = dir.join("0.db");
        remove(&path);
        copy(template, &path);
        let mut house = Self {
            dice,
            config,
            steps: 0,
            boots: 0,
            dir: dir.into(),
            file: 0,
            path,
            now: Arc::new(AtomicI64::new(T0)),
            base: Instant::now(),
            plan: Arc::default(),
            store: None,
            daemon: Daemon::new(),
            dead: false,
            witness: Witness::default(),
            sent: Vec::new(),
            prompts: BTreeMap::new(),
            said: BTreeMap::new(),
            settled: BTreeSet::new(),
            attempts: BTreeMap::new(),
            began: None,
            quiet: false,
        };
        house.witness.trace = std::env::var_os("OSTLER_SIM_TRACE").is_some();
        house.boot();
        house
    }

    fn ms(&self) -> i64 {
        self.now.load(Ordering::Relaxed)
    }

    fn instant(&self) -> Instant {
        self.base + Duration::from_millis((self.ms() - T0) as u64)
    }

    fn pass(&mut self, ms: i64) {
        let room = self
            .daemon
            .machine
            .alarm()
            .map_or(i64::MAX, |at| at.saturating_duration_since(self.instant()).as_millis() as i64);
        self.now.fetch_add(ms.min(room), Ordering::Relaxed);
        if self.daemon.machine.alarm().is_some_and(|at| at <= self.instant()) {
            self.life(Event::TimeUp);
        }
    }

    /// Calls the store, as a thread of the daemon would.
    fn call<T>(&mut self, f: impl FnOnce(&Store) -> Result<T, Error>) -> Res<T> {
        if self.dead {
            return Err(Out::Dead);
        }
        let store = self.store.as_ref().expect("a store");
        let result = catch_unwind(AssertUnwindSafe(|| f(store)));
        let result = match result {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Error::Refused(refusal))) => Err(Out::Refused(refusal)),
            Ok(Err(Error::Unavailable(_))) => Err(Out::Doubt),
            Ok(Err(other)) => panic!("the store fails: {other}"),
            Err(payload) if payload.is::<Death>() => {
                self.dead = true;
                return Err(Out::Dead);
            }
            Err(payload) => resume_unwind(payload),
        };
        if matches!(result, Err(Out::Doubt)) {
            self.daemon.doubt = true;
            self.daemon.doubted = true;
        }
        self.witness.read();
        result
    }

    // ---- the process ----------------------------------------------------------------------------------------------

    /// The process dies here and now.
    fn crash(&mut self) {
        if !self.dead {
            self.plan.keep();
            self.dead = true;
        }
    }

    /// A new process, until one comes up.
    fn boot(&mut self) {
        loop {
            let ended = self.daemon.store_closed;
            self.store = None;
            self.witness.look_away();
            if self.dead {
                remove(&self.path);
                self.path = self.next();
            }
            let (path, next) = (self.path.clone(), self.next_of(self.file + 1));
            remove(&next);
            *self.plan.files.lock().unwrap() = (path, next);
            self.dead = false;
            self.daemon = Daemon::new();
            self.began = None;
            self.boots += 1;
            self.witness.look_at(&self.path);
            self.witness.read();
            if self.boots > 1 {
                let away = *self.dice.pick(&[10, 1000, 30_000, 30_000, 4_000_000]);
                self.now.fetch_add(away, Ordering::Relaxed);
            }
            let (clock, plan) = (self.now.clone(), self.plan.clone());
            let world = World {
                clock: Arc::new(move || clock.load(Ordering::Relaxed)),
                faults: Some(Arc::new(move |_, step| plan.strike(step))),
                durable: false,
                inline: true,
                readers: 1,
            };
            let store = Store::open_in(&self.path, world).expect("the store opens");
            store.set_owed(Arc::new(|event| {
                let id = |name: &&str| HandlerId { event, script: "s.lua".into(), name: (*name).to_owned() };
                if event.is_journalled() { HANDLERS.iter().map(id).collect() } else { Vec::new() }
            }));
            self.store = Some(store);
            let ran = self.ran();
            let info = BootInfo { boot_id: format!("b{}", self.boots), pid: 1, threshold: self.config.threshold };
            match self.call(|s| s.open_boot(info)) {
                Ok(recovered) => {
                    if ended {
                        assert_eq!((recovered.deaths, recovered.activations), (0, 0), "a stop in order leaves nothing");
                    }
                    self.check_recovery(&ran);
                    break;
                }
                Err(Out::Dead) => {}
                Err(Out::Doubt) => self.crash(),
                Err(Out::Refused(r)) => panic!("a boot is refused: {r}"),
            }
        }
        assert!(self.daemon.machine.step(Event::BecameReady, self.instant()).is_empty());
        self.schedule();
    }

    fn next_of(&self, n: u64) -> PathBuf {
        self.dir.join(format!("{n}.db"))
    }

    fn next(&mut self) -> PathBuf {
        self.file += 1;
        self.next_of(self.file)
    }

    /// Sessions with a running turn, whether a stop was noted, and the counts before.
    fn ran(&self) -> (BTreeSet<i64>, bool, BTreeMap<i64, i64>) {
        let conn = self.witness.conn();
        let mut statement = conn.prepare("SELECT sid FROM turns WHERE state='running'").unwrap();
        let running = statement.query_map([], |r| r.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
        let stop =
            self.witness.number("SELECT count(*) FROM boots WHERE ended_at IS NULL AND stop_reason IS NOT NULL") > 0;
        let mut statement = conn.prepare("SELECT sid, unclean FROM sessions").unwrap();
        let counts =
            statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).unwrap().collect::<Result<_, _>>().unwrap();
        (running, stop, counts)
    }

    /// A boot leaves nothing open, and blames only what ran in a death that no stop explains.
    fn check_recovery(&mut self, (ran, stop, before): &(BTreeSet<i64>, bool, BTreeMap<i64, i64>)) {
        self.witness.check();
        assert_eq!(
            self.witness.number("SELECT count(*) FROM activations WHERE closed_at IS NULL"),
            0,
            "a boot closes all"
        );
        assert_eq!(self.witness.number("SELECT count(*) FROM turns WHERE state='running'"), 0);
        assert!(self.witness.sessions.values().all(|s| !s.open && s.running.is_none()), "each end is told");
        for (sid, unclean) in &self.witness.unclean {
            let was = before.get(sid).copied().unwrap_or(0);
            let more = unclean - was;
            assert!(
                more == 0 || (more == 1 && ran.contains(sid) && !stop),
                "session {sid}: {was} deaths became {unclean}"
            );
            let suspended =
                self.witness.number(&format!("SELECT status='suspended' FROM sessions WHERE sid={sid}")) > 0;
            if more == 1 {
                let at = self.config.threshold;
                assert_eq!(suspended, at > 0 && *unclean >= at, "session {sid} at {unclean} deaths of {at}");
            }
        }
    }

    // ---- the coordinator ------------------------------------------------------------------------------------------

    fn schedule(&mut self) {
        let since = self.config.window.map_or(0, |w| self.ms() - w.as_millis() as i64);
        let marked = (self.config.resume == Resume::Auto).then_some(since);
        let Ok(page) = self.call(|s| s.wanted(0, 1000, marked)) else { return };
        let alone_at = self.config.threshold - 1;
        for w in page {
            let asked = marked.is_some();
            if alone_at > 0 && w.unclean >= alone_at {
                if !self.daemon.loners.contains(&w.sid) && !self.daemon.workers.contains_key(&w.sid) {
                    self.daemon.loners.push_back(w.sid);
                }
            } else if w.queued {
                self.want(w.sid, asked);
            } else if !self.daemon.continuations.contains(&w.sid) {
                self.daemon.continuations.push_back(w.sid);
            }
        }
    }

    fn want(&mut self, sid: i64, asked: bool) {
        if let Some(w) = self.daemon.workers.get_mut(&sid)
            && !matches!(w.at, At::Shutting(_))
        {
            w.work = true;
            w.asked |= asked;
        } else if !self.daemon.closed {
            *self.daemon.wishes.entry(sid).or_default() |= asked;
        }
    }

    /// Gives workers to sessions that want one.
    fn seat(&mut self) {
        let d = &mut self.daemon;
        if d.machine.phase() != Phase::Running {
            return;
        }
        if d.solo.is_none()
            && let Some(sid) = d.loners.pop_front()
        {
            d.solo = Some((sid, None));
            self.want(sid, true);
        }
        if let Some(sid) = self.daemon.continuations.pop_front() {
            self.want(sid, true);
        }
        let d = &mut self.daemon;
        let wishes: Vec<(i64, bool)> = d.wishes.iter().map(|(s, a)| (*s, *a)).collect();
        for (sid, asked) in wishes {
            if let Some(w) = d.workers.get_mut(&sid) {
                if !matches!(w.at, At::Shutting(_)) {
                    d.wishes.remove(&sid);
                    w.work = true;
                    w.asked |= asked;
                }
                continue;
            }
            if d.workers.len() >= self.config.max_live {
                let idle = d.workers.values_mut().find(|w| matches!(w.at, At::Idle) && !w.work && w.close.is_none());
                if let Some(w) = idle {
                    w.close = Some(Close::Park);
                }
                return;
            }
            d.wishes.remove(&sid);
            d.workers.insert(
                sid,
                Worker {
                    sid,
                    epoch: 0,
                    at: At::Opening,
                    work: true,
                    asked,
                    close: None,
                    interrupt: None,
                    killed: false,
                    doubt: false,
                },
            );
        }
    }

    fn retire(&mut self, sid: i64) {
        self.daemon.wishes.remove(&sid);
        if let Some(w) = self.daemon.workers.get_mut(&sid) {
            w.close = Some(Close::Retire);
            w.interrupt = Some(Why::Retired);
        }
    }

    fn catch_up(&mut self, acted: &Acted) {
        for sid in &acted.retired {
            self.retire(*sid);
        }
        for (sid, tid) in &acted.cancel {
            self.cancel_turn(*sid, *tid);
        }
        for sid in &acted.wake {
            self.want(*sid, acted.asked);
        }
    }

    fn cancel_turn(&mut self, sid: i64, tid: i64) {
        // A worker that has gone on to another turn, or to none, is not concerned.
        let concerned = |w: &&mut Worker| matches!(&w.at, At::Running(run) if run.turn.tid == tid);
        if let Some(w) = self.daemon.workers.get_mut(&sid).filter(concerned) {
            w.interrupt.get_or_insert(Why::Cancelled);
        }
    }

    /// What the coordinator does whenever it wakes in a stop.
    fn look_stopping(&mut self) {
        let phase = self.daemon.machine.phase();
        if !matches!(phase, Phase::Draining | Phase::Interrupting | Phase::Sweeping) || self.dead {
            return;
        }
        let delivering = !self.quiet && self.dice.chance(20);
        let running = self.daemon.workers.values().any(|w| matches!(w.at, At::Running(_)));
        if self.daemon.workers.is_empty() && (!delivering || phase != Phase::Draining) {
            self.life(Event::WorkersGone);
        } else if !running && !delivering && phase != Phase::Sweeping {
            self.life(Event::TurnsEnded);
        }
    }

    fn life(&mut self, event: Event) {
        if self.dead {
            return;
        }
        if matches!(event, Event::StopAsked(..)) && self.daemon.machine.stop().is_none() {
            self.began = Some(self.ms());
        }
        let actions = self.daemon.machine.step(event, self.instant());
        for action in actions {
            if self.dead {
                return;
            }
            self.perform(action);
        }
        let stopping = self.daemon.machine.stop().is_some();
        assert_eq!(
            stopping && self.daemon.machine.phase() != Phase::Ended,
            self.daemon.machine.alarm().is_some(),
            "a stop always has an alarm"
        );
    }

    fn perform(&mut self, action: Action) {
        assert!(!self.daemon.left, "after Leave: {action:?}");
        let stop = self.daemon.machine.stop().expect("an action is a stop's");
        match action {
            Action::CloseAdmission => self.store.as_ref().expect("a store").set_admission(Admission::Stopping),
            Action::MarkRunning => {
                let note = StopNote { reason: stop.reason, urgency: stop.urgency, deadline_at: self.ms() + 60_000 };
                let kept = self.call(|s| s.mark_running(note)).is_ok();
                self.witness.marked(kept);
                self.daemon.marked |= kept;
            }
            Action::TellManager => {}
            Action::CallShutdownHooks(_) => self.daemon.hooks_running = true,
            Action::CloseWorkers => {
                self.daemon.closed = true;
                self.daemon.wishes.clear();
                for w in self.daemon.workers.values_mut() {
                    w.close = if w.close > Some(Close::Stop) { w.close } else { Some(Close::Stop) };
                }
            }
            Action::RefreshMarks => {
                let kept = self.call(|s| s.refresh_marks(stop.reason.mark())).is_ok();
                self.witness.marked(kept);
                self.daemon.marked |= kept;
            }
            Action::Interrupt(_) => {
                for w in self.daemon.workers.values_mut().filter(|w| matches!(w.at, At::Running(_))) {
                    w.interrupt.get_or_insert(Why::Stop);
                }
            }
            Action::Kill => {
                for w in self.daemon.workers.values_mut() {
                    w.killed = true;
                    w.interrupt.get_or_insert(Why::Stop);
                }
            }
            Action::Abandon => {
                let workers = std::mem::take(&mut self.daemon.workers);
                self.daemon.ghosts.extend(workers.into_values());
            }
            Action::Sweep(_) => {}
            Action::CloseActivations => {
                if self.call(|s| s.close_activations(stop.reason)).is_ok() {
                    assert_eq!(self.witness.number("SELECT count(*) FROM activations WHERE closed_at IS NULL"), 0);
                }
            }
            Action::DeliverEnds(_) => self.daemon.draining = true,
            Action::CallStopped(_) => {
                self.daemon.halted = true;
                self.daemon.stopped_running = true;
            }
            Action::CloseStore(_) => {
                self.daemon.halted = true;
                let closed = self.call(|s| s.close_boot(true, serde_json::json!({}), 100)).is_ok();
                if !self.dead {
                    let until = Instant::now() + Duration::from_secs(30);
                    self.call(|s| s.close(until)).expect("the store closes");
                    self.daemon.store_closed =
                        closed && self.witness.number("SELECT count(*) FROM activations WHERE closed_at IS NULL") == 0;
                }
            }
            Action::Leave => {
                self.daemon.left = true;
                let took = self.ms() - self.began.expect("a stop began");
                assert!(took <= 59_000, "the stop took {took} ms");
            }
        }
    }

    // ---- the workers ----------------------------------------------------------------------------------------------

    fn work(&mut self, sid: i64) {
        let Some(mut w) = self.daemon.workers.remove(&sid) else { return };
        let stays = self.act(&mut w);
        if self.dead || stays {
            self.daemon.workers.insert(sid, w);
            return;
        }
        self.no_longer_alone(sid);
        // What it was given and did not do is for the session's next worker.
        let opened = !matches!(w.at, At::Opening);
        if opened && w.close != Some(Close::Stop) && (w.work || w.asked) {
            self.want(sid, w.asked);
        }
    }

    /// One act of a worker. Whether it stays.
    fn act(&mut self, w: &mut Worker) -> bool {
        match w.at.clone() {
            At::Opening => self.act_opening(w),
            At::Idle => self.act_idle(w),
            At::Running(run) => self.act_running(w, *run),
            At::Shutting(why) => {
                if why == Close::Stop {
                    return false;
                }
                // One that was told to go before it opened has an activation of its own to close; else it is closed already.
                let (sid, epoch) = (w.sid, w.epoch);
                match self.call(|s| s.close_activation(sid, epoch, EndReason::Parked, Actor::Policy)) {
                    Ok(_) | Err(Out::Refused(_)) => false,
                    Err(Out::Doubt) => w.close != Some(Close::Stop),
                    Err(Out::Dead) => true,
                }
            }
        }
    }

    fn act_opening(&mut self, w: &mut Worker) -> bool {
        let (sid, again) = (w.sid, w.doubt);
        let opened = self.call(|s| match s.open_activation(sid, "agent".into(), "/w".into()) {
            Err(Error::Refused(Refusal::Stale)) if again => s.reopen_activation(sid),
            other => other,
        });
        match opened {
            Ok(opened) => {
                w.epoch = opened.epoch;
                w.at = At::Idle;
                true
            }
            Err(Out::Refused(_)) => false,
            Err(Out::Doubt) => {
                w.doubt = true;
                w.close.is_none()
            }
            Err(Out::Dead) => true,
        }
    }

    fn act_idle(&mut self, w: &mut Worker) -> bool {
        if let Some(close) = w.close {
            w.at = At::Shutting(close);
            return true;
        }
        if w.killed {
            return false;
        }
        if !(w.work || w.asked) {
            if !self.quiet && self.dice.chance(15) {
                w.close = Some(Close::Park);
            }
            return true;
        }
        if self.daemon.held_back {
            return true;
        }
        let (sid, epoch, asked) = (w.sid, w.epoch, w.asked);
        if !self.quiet && self.dice.chance(5) {
            w.asked = false;
            match self.call(|s| s.fail_queued(sid, epoch, "agent_start".into(), "cannot".into())) {
                Ok(more) => {
                    w.work = more;
                    self.no_longer_alone(sid);
                }
                Err(Out::Refused(_)) => return false,
                Err(Out::Doubt | Out::Dead) => w.work = true,
            }
            return true;
        }
        w.work = false;
        let c = self.config;
        let begin = Begin {
            fresh_id: uuid::Uuid::now_v7().to_string(),
            sid,
            epoch,
            on_interrupt: c.on_interrupt,
            resume: c.resume,
            policy: self.policy(),
            asked,
            context: None,
            alone_at: if c.threshold == 0 { 0 } else { (c.threshold - 1).max(1) },
        };
        match self.call(|s| s.begin_turn(begin)) {
            Ok(Some(begun)) => {
                w.asked = false;
                self.begun(w, begun);
                true
            }
            Ok(None) => {
                w.asked = false;
                self.no_longer_alone(sid);
                true
            }
            Err(Out::Refused(Refusal::Closed)) => true,
            Err(Out::Refused(_)) => false,
            Err(Out::Doubt | Out::Dead) => {
                // If it did begin, and this worker must go before it hears of it, the next one goes on with it.
                w.work = true;
                w.asked = true;
                true
            }
        }
    }

    fn begun(&mut self, w: &mut Worker, begun: Begun) {
        assert!(!begun.prompt.is_empty(), "an agent is asked something");
        if begun.alone
            && let Some((who, since)) = &mut self.daemon.solo
            && *who == w.sid
        {
            *since = Some(self.now.load(Ordering::Relaxed));
        }
        self.prompts.insert(begun.turn_id.clone(), begun.prompt);
        self.said.insert(begun.turn_id.clone(), (String::new(), 0));
        w.at = At::Running(Box::new(Run {
            turn: begun.turn,
            id: begun.turn_id,
            number: 0,
            unkept: Vec::new(),
            doubtful: Vec::new(),
            said: String::new(),
            kept: 0,
            ending: None,
        }));
    }

    fn act_running(&mut self, w: &mut Worker, mut run: Run) -> bool {
        if !self.quiet && run.ending.is_none() && self.dice.chance(2) {
            // The worker panics.
            let sid = w.sid;
            return match self.call(|s| s.worker_died(sid)) {
                Ok(()) => {
                    // What still waits in the session is for its next worker.
                    self.daemon.wishes.insert(sid, w.asked);
                    false
                }
                // Whether that was kept is found out by the next boot.
                Err(Out::Doubt) => {
                    self.crash();
                    true
                }
                Err(Out::Dead) => true,
                Err(Out::Refused(r)) => panic!("{r}"),
            };
        }
        if run.ending.is_none() {
            let outcome = match w.interrupt {
                Some(_) if w.killed || self.quiet || self.dice.chance(50) => Some(match w.interrupt {
                    _ if self.dice.chance(10) => Outcome::Completed,
                    Some(Why::Stop) => Outcome::Interrupted,
                    _ => Outcome::Cancelled,
                }),
                Some(_) => None,
                None if self.quiet => Some(Outcome::Completed),
                None => match self.dice.below(100) {
                    0..25 => Some(Outcome::Completed),
                    25..30 => Some(Outcome::Failed),
                    _ => None,
                },
            };
            match outcome {
                Some(outcome) => run.ending = Some((outcome, std::mem::take(&mut run.unkept))),
                None => return self.speak(w, run),
            }
        }
        self.finish(w, run)
    }

    /// The agent says something, or hangs.
    fn speak(&mut self, w: &mut Worker, mut run: Run) -> bool {
        if self.dice.chance(30) {
            w.at = At::Running(Box::new(run));
            return true;
        }
        if self.dice.chance(80) {
            let piece = format!("{} ", self.dice.below(1000));
            run.said.push_str(&piece);
            run.unkept.push(Item::Text(piece));
            if self.dice.chance(30) {
                run.unkept.push(Item::Tool {
                    id: format!("t{}", self.dice.below(3)),
                    title: "tool".into(),
                    kind: "other".into(),
                    status: (*self.dice.pick(&["pending", "completed"])).to_owned(),
                    detail: serde_json::Value::Null,
                });
            }
        }
        self.flush(w, &mut run);
        w.at = At::Running(Box::new(run));
        true
    }

    /// Sends what was not kept yet; a batch in doubt first. Whether all of it is settled.
    fn flush(&mut self, w: &mut Worker, run: &mut Run) -> bool {
        if run.doubtful.is_empty() {
            run.doubtful = std::mem::take(&mut run.unkept);
        }
        if run.doubtful.is_empty() {
            return true;
        }
        let (turn, number, items) = (run.turn, run.number + 1, run.doubtful.clone());
        self.said.insert(run.id.clone(), (run.said.clone(), run.kept));
        match self.call(|s| s.append(turn, number, items)) {
            Ok(()) => {
                let text: usize = run.doubtful.iter().map(|i| if let Item::Text(t) = i { t.len() } else { 0 }).sum();
                run.number += 1;
                run.kept += text;
                run.doubtful.clear();
                self.said.insert(run.id.clone(), (run.said.clone(), run.kept));
                true
            }
            Err(Out::Refused(_)) => {
                assert!(w.close == Some(Close::Retire) || self.daemon.doubted, "a current worker is refused: {w:?}");
                w.interrupt = Some(Why::Retired);
                w.killed = true;
                run.doubtful.clear();
                run.unkept.clear();
                true
            }
            Err(Out::Doubt | Out::Dead) => false,
        }
    }

    fn finish(&mut self, w: &mut Worker, run: Run) -> bool {
        let mut run = run;
        if !run.doubtful.is_empty() && !self.flush(w, &mut run) {
            w.at = At::Running(Box::new(run));
            return self.dead || !w.killed;
        }
        let Some((outcome, items)) = run.ending.clone() else { return true };
        let turn = run.turn;
        let mark = match self.daemon.machine.stop().map(|s| s.reason) {
            Some(StopReason::Restart) => MarkReason::RestartTimeout,
            _ => MarkReason::ShutdownTimeout,
        };
        match self.call(|s| s.finish_turn(turn, items, outcome, None, mark)) {
            Ok(ended) => {
                self.said.insert(run.id.clone(), (run.said.clone(), run.said.len()));
                w.work |= ended.more;
            }
            Err(Out::Refused(_)) => {
                let sid = w.sid;
                w.work |= matches!(self.call(|s| s.peek_turn(sid)), Ok(Some(_)));
            }
            Err(Out::Doubt) => {
                w.at = At::Running(Box::new(run));
                return !w.killed;
            }
            Err(Out::Dead) => {
                w.at = At::Running(Box::new(run));
                return true;
            }
        }
        w.at = At::Idle;
        w.interrupt = None;
        self.no_longer_alone(w.sid);
        true
    }

    fn no_longer_alone(&mut self, sid: i64) {
        if self.daemon.solo.is_some_and(|(who, _)| who == sid) {
            self.daemon.solo = None;
        }
    }

    /// A worker that was given up tries to write. It must change nothing.
    fn haunt(&mut self) {
        let n = self.daemon.ghosts.len() as u64;
        let at = self.dice.below(n) as usize;
        let ghost = self.daemon.ghosts[at].clone();
        let At::Running(run) = ghost.at else { return };
        // Only once the stop closed what it had: before that it may still speak for the current turn.
        let closed = self.witness.number(&format!(
            "SELECT count(*) FROM turns WHERE tid={} AND state='running' AND epoch={}",
            run.turn.tid, run.turn.epoch
        )) == 0;
        if !closed {
            return;
        }
        let events = self.witness.events;
        let turn = run.turn;
        let wrote = self.call(|s| s.append(turn, run.number + 1, vec![Item::Text("late".into())]));
        assert!(!matches!(wrote, Ok(())), "a ghost wrote");
        let ended = self.call(|s| s.finish_turn(turn, Vec::new(), Outcome::Completed, None, MarkReason::Crash));
        assert!(ended.is_err(), "a ghost ended a turn");
        assert_eq!(events, self.witness.events);
    }

    // ---- hooks ----------------------------------------------------------------------------------------------------

    /// The delivery thread hands one event over, or notes what came of one.
    fn deliver(&mut self) {
        if self.daemon.halted {
            return;
        }
        let Ok(owed) = self.call(|s| s.pending_deliveries(0, 100)) else { return };
        for o in &owed {
            assert!(!self.settled.contains(&o.did), "settled, and owed again: {o:?}");
        }
        // The head of each lane.
        let mut heads: BTreeMap<(String, String), Owed> = BTreeMap::new();
        for o in owed {
            heads.entry((o.handler.name.clone() + o.handler.event.as_str(), o.key.clone())).or_insert(o);
        }
        let heads: Vec<Owed> = heads.into_values().collect();
        if heads.is_empty() {
            return;
        }
        let o = self.dice.pick(&heads).clone();
        self.hand_over(&o);
    }

    fn hand_over(&mut self, o: &Owed) {
        let held = self.daemon.deliveries.get(&o.did).cloned();
        let mut held = held.unwrap_or(Held { attempts: o.attempts, called: false, settled: None });
        held.called |= o.attempts > 0;
        if held.settled.is_none() {
            if (o.earlier_boot || held.called) && self.later(|s, done| s.note_attempt(o.did, done)).is_err() {
                return;
            }
            held.attempts = if o.earlier_boot || held.called { held.attempts.max(1) + 1 } else { held.attempts + 1 };
            let last = self.attempts.insert(o.did, held.attempts).unwrap_or(0);
            assert!(held.attempts > last, "a call again is a higher attempt: {last}, then {}", held.attempts);
            if !self.quiet && self.dice.chance(10) {
                // It dies in the handler, or the handler takes its time.
                self.daemon.deliveries.insert(o.did, held.clone());
                if self.dice.chance(50) {
                    self.crash();
                } else {
                    self.daemon.deliveries.remove(&o.did);
                    self.settle(o, &mut Held { settled: Some(Settled::Retry("slow".into(), 0)), ..held });
                }
                return;
            }
            held.settled = Some(match self.dice.below(10) {
                _ if self.quiet => Settled::Delivered,
                0..7 => Settled::Delivered,
                _ if held.attempts >= ATTEMPTS => Settled::SetAside("why".into()),
                _ => Settled::Retry("why".into(), 0),
            });
        }
        self.settle(o, &mut held);
    }

    fn settle(&mut self, o: &Owed, held: &mut Held) {
        let Some(settled) = held.settled.clone() else { return };
        let (did, counted) = (o.did, o.earlier_boot || held.called);
        let word = settled.clone();
        match self.later(|s, done| s.settle_delivery(did, word, counted, done)) {
            Ok(()) => {
                self.daemon.deliveries.remove(&did);
                if matches!(settled, Settled::Delivered) {
                    self.settled.insert(did);
                }
            }
            Err(Out::Doubt) => {
                self.daemon.deliveries.insert(did, held.clone());
            }
            Err(_) => {}
        }
    }

    /// A call whose outcome is told to a callback.
    fn later(&mut self, f: impl FnOnce(&Store, Box<dyn FnOnce(Result<(), Error>) + Send>)) -> Res<()> {
        let told = Arc::new(Mutex::new(None));
        let sink = told.clone();
        self.call(move |s| {
            f(s, Box::new(move |r| *sink.lock().unwrap() = Some(r)));
            Ok(())
        })?;
        let told = told.lock().unwrap().take();
        match told.expect("the writer answers") {
            Ok(()) => Ok(()),
            Err(Error::Refused(r)) => Err(Out::Refused(r)),
            Err(_) => {
                self.daemon.doubt = true;
                self.daemon.doubted = true;
                Err(Out::Doubt)
            }
        }
    }

    // ---- people ---------------------------------------------------------------------------------------------------

    fn policy(&self) -> Policy {
        Policy { resume_window: self.config.window, idle_reset: self.config.idle_reset, daily_boundary: None }
    }

    fn send(&mut self) {
        let again = !self.sent.is_empty() && self.dice.chance(30);
        let at = if again {
            let n = self.sent.len() as u64;
            self.dice.below(n) as usize
        } else {
            let key = *self.dice.pick(&KEYS);
            let n = self.sent.len();
            let id = self.dice.chance(70).then(|| format!("id{n}"));
            self.sent.push(Sent { key, text: format!("<m{n}>"), id, acked: None });
            n
        };
        if again && self.sent[at].id.is_none() {
            return;
        }
        self.send_one(at);
    }

    fn send_one(&mut self, at: usize) {
        let sent = self.sent[at].clone();
        let other = sent.acked.is_some() && self.dice.chance(10);
        let text = if other { "other".to_owned() } else { sent.text.clone() };
        let accept = Accept {
            key: sent.key.into(),
            text: text.clone(),
            original: text,
            client_id: sent.id.clone(),
            agent: "agent".into(),
            limits: Limits {
                policy: self.policy(),
                busy: self.config.busy,
                queue_limit: self.config.queue_limit,
                queue_total: 10_000,
            },
            session_id: None,
        };
        let accepted = self.call(|s| s.accept_message(accept));
        match accepted {
            Ok(a) => {
                assert!(!other, "an id was taken with another text");
                let ids = (a.session_id.clone(), a.turn_id.clone(), a.message_id.clone());
                if let Some(before) = &sent.acked {
                    assert!(a.duplicate, "an id that was acknowledged is a duplicate");
                    assert_eq!((&before.1, &before.2), (&ids.1, &ids.2), "the same turn and message");
                }
                self.sent[at].acked = Some(ids);
                if let Some(retired) = a.retired {
                    self.retire(retired);
                }
                if let Some(tid) = a.interrupt {
                    self.cancel_turn(a.sid, tid);
                }
                if !a.deferred && !a.over {
                    self.want(a.sid, false);
                }
            }
            Err(Out::Refused(Refusal::IdReused)) => assert!(other, "its own text"),
            Err(Out::Refused(Refusal::QueueFull)) => assert!(sent.acked.is_none(), "a duplicate meets no limit"),
            Err(Out::Refused(r)) => panic!("refused: {r}"),
            Err(Out::Doubt | Out::Dead) => {}
        }
    }

    fn people(&mut self) {
        let target = Target::Key((*self.dice.pick(&KEYS)).to_owned());
        let agent = || "agent".to_owned();
        let acted = match self.dice.below(14) {
            0..4 => self.call(|s| s.cancel(target, false)),
            4..6 => self.call(|s| s.cancel(target, true)),
            6..8 => self.call(|s| s.reset(target, agent(), Actor::User)),
            8 => self.call(|s| s.delete(target, false, Actor::User)),
            9 if self.dice.chance(30) => self.call(|s| s.delete(target, true, Actor::User)),
            9..12 => self.call(|s| s.suspend(target, agent(), Actor::Operator)),
            _ => self.call(|s| s.resume(target, Actor::Operator)),
        };
        match acted {
            Ok(acted) => self.catch_up(&acted),
            Err(Out::Refused(r)) => assert!(matches!(r, Refusal::SessionNotFound | Refusal::NotCurrent), "{r}"),
            Err(Out::Doubt | Out::Dead) => {}
        }
    }

    // ---- a step ---------------------------------------------------------------------------------------------------

    /// Whatever happens next.
    pub fn step(&mut self) {
        self.steps += 1;
        if self.dice.chance(2) {
            let when = 1 + self.dice.below(16);
            self.plan.death_in.store(when, Ordering::Relaxed);
        }
        if self.dice.chance(3) {
            let how = 1 + self.dice.below(2) as u8;
            self.plan.commit.store(how, Ordering::Relaxed);
        }
        if self.witness.trace {
            eprintln!("step {} at {}: {:?}", self.steps, self.ms() - T0, self.daemon.workers);
        }
        self.happen();
        self.after();
    }

    fn happen(&mut self) {
        let stopping = self.daemon.machine.stop().is_some();
        match self.dice.below(100) {
            0..14 => self.send(),
            14..64 if !self.daemon.workers.is_empty() => {
                let sids: Vec<i64> = self.daemon.workers.keys().copied().collect();
                let sid = *self.dice.pick(&sids);
                self.work(sid);
            }
            14..64 if stopping => self.stop_goes_on(),
            64..68 => self.people(),
            68..74 => self.deliver(),
            74..80 => {
                let most = if stopping { 8000 } else { *self.dice.pick(&[5000, 5000, 5000, 60_000, 8_000_000]) };
                let ms = 1 + self.dice.below(most) as i64;
                self.pass(ms);
            }
            80..82 => {
                let reason = *self.dice.pick(StopReason::ALL);
                let again = self.daemon.machine.stop().map_or(Urgency::Graceful, |s| s.urgency.raised());
                let urgency = if self.dice.chance(70) { again } else { *self.dice.pick(Urgency::ALL) };
                if !stopping || self.dice.chance(50) {
                    self.life(Event::StopAsked(reason, urgency));
                }
            }
            82..84 if self.dice.chance(20) => self.crash(),
            84..94 if stopping => self.stop_goes_on(),
            94 => self.prune(),
            95 => {
                let _ = self.call(|s| s.retry_failed(None));
            }
            96 if !stopping => {
                let hold = !self.daemon.held_back;
                self.hold(hold);
            }
            97 => {
                let _ = self.call(Store::note_alive);
            }
            _ if !self.daemon.ghosts.is_empty() => self.haunt(),
            _ => {}
        }
    }

    fn hold(&mut self, hold: bool) {
        self.daemon.held_back = hold;
        self.store.as_ref().expect("a store").set_admission(if hold { Admission::Held } else { Admission::Open });
        if !hold {
            for w in self.daemon.workers.values_mut() {
                w.work = true;
            }
            self.schedule();
        }
    }

    fn prune(&mut self) {
        let keep = Retention { ended: None, events: None, ids: None, journal: None, reports: 100 };
        let _ = self.call(|s| s.prune(keep));
    }

    /// Hooks return, ends are delivered, the store is closed; or time passes.
    fn stop_goes_on(&mut self) {
        match self.daemon.machine.phase() {
            Phase::Closing => self.life(Event::StoreClosed),
            _ if self.daemon.hooks_running && self.dice.chance(50) => {
                self.daemon.hooks_running = false;
                self.life(Event::ShutdownHooksEnded);
            }
            Phase::CallingHooks if self.daemon.stopped_running && self.dice.chance(70) => {
                self.daemon.stopped_running = false;
                self.life(Event::StoppedHooksEnded);
            }
            Phase::CallingHooks if self.daemon.draining => {
                if self.dice.chance(50) {
                    self.deliver();
                } else {
                    self.life(Event::EndsDelivered);
                }
            }
            _ => {
                let ms = 1 + self.dice.below(10_000) as i64;
                self.pass(ms);
            }
        }
    }

    /// What follows each step, and what must hold after it.
    fn after(&mut self) {
        if !self.dead {
            self.look_stopping();
        }
        if !self.dead {
            if let Some((sid, Some(since))) = self.daemon.solo
                && since + ALONE_MS <= self.ms()
            {
                self.daemon.solo = None;
                let _ = self.call(Store::clear_solo);
                let _ = sid;
            }
            if self.daemon.doubt && self.daemon.machine.phase() == Phase::Running && !self.dead {
                // What a commit in doubt may have let in is looked for.
                self.daemon.doubt = false;
                self.schedule();
            }
            self.seat();
        }
        if self.dead || self.daemon.left {
            // Nobody is left to answer; the next process comes.
            self.boot();
        }
        self.check();
    }

    fn check(&mut self) {
        if self.daemon.store_closed {
            return;
        }
        self.witness.check();
        if self.daemon.machine.stop().is_some() && self.daemon.marked {
            self.witness.check_marked();
        }
    }

    // ---- the end --------------------------------------------------------------------------------------------------

    /// Lets everything come to its end: no faults, nothing hangs, everything suspended is resumed.
    pub fn settle_down(&mut self) {
        self.plan.death_in.store(0, Ordering::Relaxed);
        self.plan.commit.store(0, Ordering::Relaxed);
        self.quiet = true;
        self.finish_stop();
        if self.daemon.held_back {
            self.hold(false);
        }
        for _ in 0..20 {
            let suspended = self
                .witness
                .conn()
                .prepare("SELECT id FROM sessions WHERE status='suspended'")
                .unwrap()
                .query_map([], |r| r.get(0))
                .unwrap()
                .collect::<Result<Vec<String>, _>>()
                .unwrap();
            let Some(id) = suspended.into_iter().next() else { break };
            let acted = self.call(|s| s.resume(Target::Id(id), Actor::Operator)).expect("resumed");
            self.catch_up(&acted);
            self.check();
        }
        // Without another boot: what waits must be found by those who were told of it, or by what follows a doubt.
        self.run_dry();
        let marked = self
            .witness
            .conn()
            .prepare("SELECT id FROM sessions WHERE status='open' AND mark_reason IS NOT NULL AND cut_turn IS NOT NULL")
            .unwrap()
            .query_map([], |r| r.get(0))
            .unwrap()
            .collect::<Result<Vec<String>, _>>()
            .unwrap();
        for id in marked {
            for w in self.daemon.workers.values_mut() {
                w.close = Some(Close::Park);
            }
            self.run_dry();
            let acted = self.call(|s| s.resume(Target::Id(id), Actor::Operator)).expect("resumed");
            self.catch_up(&acted);
            self.run_dry();
        }
        self.life(Event::StopAsked(StopReason::Shutdown, Urgency::Graceful));
        self.finish_stop();
        for _ in 0..10_000 {
            if self.witness.number("SELECT count(*) FROM deliveries WHERE state='pending'") == 0 {
                break;
            }
            self.deliver();
        }
        self.conclude();
    }

    /// Walks a stop to its end, if there is one, and starts again.
    fn finish_stop(&mut self) {
        for _ in 0..10_000 {
            if self.daemon.machine.stop().is_none() {
                return;
            }
            let sids: Vec<i64> = self.daemon.workers.keys().copied().collect();
            for sid in sids {
                self.work(sid);
            }
            self.stop_goes_on();
            self.after();
        }
        panic!("a stop does not end");
    }

    /// Until no worker has anything to do.
    fn run_dry(&mut self) {
        for _ in 0..2000 {
            let d = &self.daemon;
            let busy = d.workers.values().any(|w| w.work || w.asked || w.close.is_some() || !matches!(w.at, At::Idle));
            if !busy && d.wishes.is_empty() && d.loners.is_empty() && d.continuations.is_empty() {
                return;
            }
            let sids: Vec<i64> = self.daemon.workers.keys().copied().collect();
            for sid in sids {
                self.work(sid);
            }
            self.after();
        }
        panic!("the sessions do not come to rest: {:?} {:?}", self.daemon.workers, self.daemon.wishes);
    }

    /// What must hold in the end.
    fn conclude(&mut self) {
        let w = &self.witness;
        assert_eq!(
            w.number("SELECT count(*) FROM turns WHERE state IN ('queued', 'running')"),
            0,
            "nothing waits for ever"
        );
        assert_eq!(w.number("SELECT count(*) FROM events"), w.events, "no event that was seen is gone");
        assert_eq!(
            w.number("SELECT count(*) FROM deliveries WHERE state='pending'"),
            0,
            "every event is delivered or set aside"
        );
        self.conclude_messages();
        self.conclude_journal();
        self.conclude_text();
        self.conclude_order();
    }

    fn conclude_messages(&self) {
        let conn = self.witness.conn();
        let mut turns: BTreeMap<String, (String, Option<String>, String)> = BTreeMap::new();
        let mut statement = conn
            .prepare(
                "SELECT t.id, t.state, n.id, s.status FROM turns t LEFT JOIN turns n ON n.tid=t.continued_by JOIN sessions s ON s.sid=t.sid",
            )
            .unwrap();
        let mut rows = statement.query([]).unwrap();
        while let Some(r) = rows.next().unwrap() {
            turns.insert(r.get(0).unwrap(), (r.get(1).unwrap(), r.get(2).unwrap(), r.get(3).unwrap()));
        }
        for (id, (state, _, _)) in &turns {
            let told = self.witness.turns.get(id).and_then(|t| t.outcome.clone());
            assert_eq!(told.as_deref(), Some(state.as_str()), "each turn's outcome is told, once");
        }
        for sent in &self.sent {
            let Some((_, first, message)) = &sent.acked else { continue };
            let found = conn
                .prepare_cached("SELECT text FROM messages m JOIN turns t ON t.tid=m.tid WHERE m.id=?1 AND t.id=?2")
                .unwrap()
                .query_row([message, first], |r| r.get::<_, String>(0));
            let found = found.unwrap_or_else(|e| panic!("accepted means kept: {sent:?}: {e}"));
            let deleted = || {
                let sql = "SELECT hidden FROM sessions s JOIN turns t ON t.sid=s.sid WHERE t.id=?1";
                conn.prepare_cached(sql).unwrap().query_row([first], |r| r.get::<_, bool>(0)).unwrap()
            };
            assert!(found == sent.text || (found.is_empty() && deleted()), "its text is kept: {sent:?}, {found:?}");
            let (mut turn, mut completed) = (first.clone(), 0);
            loop {
                let (state, next, status) = &turns[&turn];
                completed += i32::from(state == "completed");
                match (state.as_str(), next) {
                    ("interrupted", Some(next)) => turn = next.clone(),
                    ("interrupted", None) => {
                        assert!(!self.config.strict() || status == "ended", "it never went on: {sent:?}, turn {turn}");
                        break;
                    }
                    (_, None) => break,
                    (state, Some(_)) => panic!("{state}, and continued: {turn}"),
                }
            }
            assert!(completed <= 1, "two answers: {sent:?}");
            if completed == 1 {
                let prompt = &self.prompts[&turn];
                assert!(prompt.contains(&sent.text), "answered without having been asked: {sent:?}, {prompt}");
            }
        }
    }

    fn conclude_journal(&self) {
        let conn = self.witness.conn();
        let mut journal: Vec<(String, String, String)> = conn
            .prepare("SELECT event, session_id, json_extract(fields, '$.reason') FROM journal ORDER BY jid")
            .unwrap()
            .query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        assert!(journal == self.witness.told, "the journal is the stream's facts, each once");
        journal.clear();
        let owed = self.witness.number("SELECT count(*) FROM deliveries");
        assert_eq!(owed as usize, self.witness.told.len() * HANDLERS.len(), "to each handler once");
    }

    /// The transcript is what the agent said: all that was certainly kept, nothing twice, nothing else.
    fn conclude_text(&self) {
        let conn = self.witness.conn();
        let mut statement = conn
            .prepare(
                "SELECT coalesce(group_concat(e.text, ''), '') FROM
                   (SELECT text FROM entries WHERE tid=(SELECT tid FROM turns WHERE id=?1) AND role='agent' ORDER BY seq) e",
            )
            .unwrap();
        for (id, (said, kept)) in &self.said {
            let text: String = statement.query_row([id], |r| r.get(0)).unwrap();
            assert!(
                said.starts_with(&text) && text.len() >= *kept,
                "turn {id}: said {said:?}, kept {kept}, transcript {text:?}"
            );
            let streamed = self.witness.turns.get(id).map_or("", |t| t.text.as_str());
            assert_eq!(text, streamed, "the transcript is the stream, joined");
        }
    }

    /// Under a key messages are begun in the order in which they were accepted.
    fn conclude_order(&self) {
        let late = self.witness.number(
            "SELECT count(*) FROM messages a JOIN messages b ON b.key=a.key AND b.mid>a.mid
             JOIN turns ta ON ta.tid=a.tid JOIN turns tb ON tb.tid=b.tid
             WHERE ta.started_at>tb.started_at",
        );
        assert_eq!(late, 0, "order under a key");
    }
}

impl Daemon {
    fn new() -> Self {
        Self {
            machine: Lifecycle::new(SHUTDOWN),
            workers: BTreeMap::new(),
            ghosts: Vec::new(),
            wishes: BTreeMap::new(),
            loners: VecDeque::new(),
            solo: None,
            continuations: VecDeque::new(),
            held_back: false,
            closed: false,
            hooks_running: false,
            stopped_running: false,
            draining: false,
            halted: false,
            store_closed: false,
            deliveries: BTreeMap::new(),
            doubt: false,
            doubted: false,
            left: false,
            marked: false,
        }
    }
}
