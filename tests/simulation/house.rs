//! The simulated daemon: the real store, machine and recovery, driven step by step; workers, agents, hooks, people and the
//! process itself are models that do what theirs do, in an order that the dice choose.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use ostler::config::{Budget, Busy, OnInterrupt, Resume, Retention};
use ostler::model::event::{Actor, EndReason, HandlerId, HookEvent, MarkReason, Outcome, StopReason, Urgency};
use ostler::model::lifecycle::{Action, Event, Lifecycle, Phase};
use ostler::model::session::Policy;
use ostler::store::{
    Accept, Acted, Admission, Batch, Begin, Begun, BootInfo, Env, Error, Item, Limits, Outbox, Owed, Refusal, Settled,
    Step, StopNote, Store, Target, TurnRef,
};

use crate::dice::Dice;
use crate::witness::Witness;

mod conclusion;
mod coordinator;
mod delivery;
mod people;
mod steps;
mod workers;

use workers::alone_at;

pub const T0: i64 = 1_800_000_000_000;
const SHUTDOWN: Budget = Budget {
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
/// How far a boot's wall clock may be behind: a bit, an hour, or as on a machine without a battery.
const BEHIND_MS: [i64; 3] = [60_000, 3_600_000, 31_000_000_000];
/// So long is no interrupted turn left alone: more than a seed's whole time, less than a clock may be behind.
const LONG_WINDOW: Duration = Duration::from_secs(30 * 86_400);

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
}

impl Plan {
    fn strike(&self, step: Step) -> bool {
        if self.death_in.load(Ordering::Relaxed) > 0 && self.death_in.fetch_sub(1, Ordering::Relaxed) == 1 {
            resume_unwind(Box::new(Death));
        }
        let due = match step {
            Step::Commit => 1,
            Step::Committed => 2,
            Step::Before | Step::Inside | Step::Room => return false,
        };
        self.commit.compare_exchange(due, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
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
            window: if strict { *dice.pick(&[None, Some(LONG_WINDOW)]) } else { Some(Duration::from_secs(3600)) },
            idle_reset: dice.chance(25).then_some(Duration::from_secs(7200)),
            threshold: *dice.pick(&[3, 3, 2, 1, 0]),
            max_live: *dice.pick(&[1, 2, 8]),
            queue_limit: *dice.pick(&[3, 32]),
        }
    }

    /// Whether every interrupted turn must go on.
    const fn strict(&self) -> bool {
        !matches!(self.window, Some(w) if w.as_secs() < LONG_WINDOW.as_secs())
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
    unkept: Outbox,
    said: String,
    kept: usize,
    ending: Option<(Outcome, Vec<Batch>)>,
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
    settled: Option<Settled>,
}

/// What dies with the process.
struct Daemon {
    machine: Lifecycle,
    workers: BTreeMap<i64, Worker>,
    /// Workers that were given up or retired by force: they still try to write.
    ghosts: Vec<Worker>,
    wishes: BTreeMap<i64, bool>,
    alone: Option<(i64, i64)>,
    apart: BTreeSet<i64>,
    continuations: VecDeque<i64>,
    held_back: bool,
    closed: bool,
    hooks_running: bool,
    /// The `shutdown` handlers are done or cut off.
    shutdown_over: bool,
    ends_held: bool,
    stopped_running: bool,
    draining: bool,
    halted: bool,
    store_closed: bool,
    told_uncalled: bool,
    deliveries: BTreeMap<i64, Held>,
    doubt: bool,
    doubted: bool,
    left: bool,
    marked: bool,
}

/// A database in memory and its connections, used by one seed after the other.
pub struct Room {
    pub store: Store,
    pub eyes: Connection,
    pub broom: Connection,
}

impl Room {
    /// An empty one. The name is its own in this process.
    pub fn new(name: &str) -> Self {
        let uri = format!("file:/ostler-simulation-{name}?vfs=memdb");
        let store = Store::open_in(Path::new(&uri), world()).expect("a database in memory");
        Self { store, eyes: Connection::open(&uri).unwrap(), broom: Connection::open(&uri).unwrap() }
    }
}

/// The world but for its clock and its faults.
pub fn world() -> Env {
    Env { durable: false, inline: true, memory: true, readers: 1, ..Env::default() }
}

/// Empties a database: what [`Store::open_in`] would have made of a new file.
pub const SWEEP: &str = "
    BEGIN; DELETE FROM boots; DELETE FROM sessions; DELETE FROM activations; DELETE FROM turns; DELETE FROM messages;
    DELETE FROM entries; DELETE FROM events; DELETE FROM journal; DELETE FROM deliveries; DELETE FROM kv; DELETE FROM timers;
    DELETE FROM meta; DELETE FROM sqlite_sequence; COMMIT;";

pub struct House {
    pub dice: Dice,
    pub config: Config,
    pub steps: u64,
    pub boots: u64,
    now: Arc<AtomicI64>,
    /// How far the wall clock is behind: from a boot until somebody sets it.
    behind: Arc<AtomicI64>,
    base: Instant,
    plan: Arc<Plan>,
    store: Option<Store>,
    broom: Connection,
    daemon: Daemon,
    dead: bool,
    witness: Witness,
    sent: Vec<Sent>,
    prompts: BTreeMap<String, String>,
    /// What each agent said in a turn, and how much of it was certainly kept.
    said: BTreeMap<String, (String, usize)>,
    settled: BTreeSet<i64>,
    attempts: BTreeMap<i64, u32>,
    maybe_seen: BTreeSet<i64>,
    began: Option<i64>,
    quiet: bool,
}

impl House {
    pub fn new(seed: u64, room: Room) -> Self {
        let mut dice = Dice::new(seed);
        let config = Config::roll(&mut dice);
        let Room { store, eyes, broom } = room;
        broom.execute_batch(SWEEP).unwrap();
        let mut house = Self {
            dice,
            config,
            steps: 0,
            boots: 0,
            now: Arc::new(AtomicI64::new(T0)),
            behind: Arc::default(),
            base: Instant::now(),
            plan: Arc::default(),
            store: Some(store),
            broom,
            daemon: Daemon::new(),
            dead: false,
            witness: Witness::new(eyes),
            sent: Vec::new(),
            prompts: BTreeMap::new(),
            said: BTreeMap::new(),
            settled: BTreeSet::new(),
            attempts: BTreeMap::new(),
            maybe_seen: BTreeSet::new(),
            began: None,
            quiet: false,
        };
        house.boot();
        house
    }

    /// The room, for the next seed.
    pub fn leave(self) -> Room {
        Room { store: self.store.expect("a store"), eyes: self.witness.eyes(), broom: self.broom }
    }

    fn ms(&self) -> i64 {
        self.now.load(Ordering::Relaxed)
    }

    fn instant(&self) -> Instant {
        self.base + Duration::from_millis((self.ms() - T0) as u64)
    }

    fn pass(&mut self, ms: i64) {
        // Sooner or later somebody sets the clock; none is behind for an hour.
        if ms > 600_000 || self.dice.chance(50) {
            self.behind.store(0, Ordering::Relaxed);
        }
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

    /// The process dies here and now.
    fn crash(&mut self) {
        self.dead = true;
    }

    /// A new process, until one comes up.
    fn boot(&mut self) {
        loop {
            let (ended, told_uncalled) = (self.daemon.store_closed, self.daemon.told_uncalled);
            self.dead = false;
            self.daemon = Daemon::new();
            self.began = None;
            self.boots += 1;
            if self.boots > 1 {
                let away = *self.dice.pick(&[10, 1000, 30_000, 30_000, 4_000_000]);
                self.now.fetch_add(away, Ordering::Relaxed);
                let behind = if self.dice.chance(15) { *self.dice.pick(&BEHIND_MS) } else { 0 };
                self.behind.store(behind, Ordering::Relaxed);
            }
            let (clock, behind, plan) = (self.now.clone(), self.behind.clone(), self.plan.clone());
            let world = Env {
                clock: Arc::new(move || clock.load(Ordering::Relaxed) - behind.load(Ordering::Relaxed)),
                faults: Some(Arc::new(move |_, step| plan.strike(step))),
                ..world()
            };
            let store = self.store.take().expect("a store").again(world).expect("the store opens");
            self.witness.read();
            if !told_uncalled {
                self.doubt_deliveries();
            }
            store.set_owed(Arc::new(|event| {
                let id = |name: &&str| HandlerId { event, script: "s.lua".into(), name: (*name).to_owned() };
                if event.is_journalled() { HANDLERS.iter().map(id).collect() } else { Vec::new() }
            }));
            self.store = Some(store);
            let (before, expected) = (self.witness.unclean.clone(), self.expected());
            let info = BootInfo { boot_id: format!("b{}", self.boots), pid: 1, threshold: self.config.threshold };
            match self.call(|s| s.open_boot(info)) {
                Ok(recovered) => {
                    if ended {
                        assert_eq!((recovered.deaths, recovered.activations), (0, 0), "a stop in order leaves nothing");
                    }
                    self.check_recovery(&expected, &before);
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

    /// The counts of deaths as they must be after this boot.
    fn expected(&self) -> BTreeMap<i64, i64> {
        let conn = self.witness.conn();
        let mut statement = conn.prepare_cached("SELECT sid, unclean FROM sessions").unwrap();
        let mut counts: BTreeMap<i64, i64> =
            statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).unwrap().collect::<Result<_, _>>().unwrap();
        // A death counts against all that run; against the one that runs alone only; in a stop, against what it gave up.
        let mut statement = conn
            .prepare_cached(
                "SELECT t.sid, CASE WHEN b.stop_reason IS NOT NULL THEN a.abandoned ELSE coalesce(b.solo=t.sid, 1) END
                 FROM turns t JOIN activations a ON a.sid=t.sid AND a.closed_at IS NULL JOIN boots b ON b.bid=a.bid
                 WHERE t.state='running'",
            )
            .unwrap();
        let mut rows = statement.query([]).unwrap();
        while let Some(r) = rows.next().unwrap() {
            *counts.entry(r.get(0).unwrap()).or_default() += r.get::<_, i64>(1).unwrap();
        }
        counts
    }

    /// A boot leaves nothing open, and blames only what ran in a death that no stop explains.
    fn check_recovery(&mut self, expected: &BTreeMap<i64, i64>, before: &BTreeMap<i64, i64>) {
        self.witness.check();
        assert_eq!(
            self.witness.number("SELECT count(*) FROM activations WHERE closed_at IS NULL"),
            0,
            "a boot closes all"
        );
        assert_eq!(self.witness.number("SELECT count(*) FROM turns WHERE state='running'"), 0);
        assert!(self.witness.sessions.values().all(|s| !s.open && s.running.is_none()), "each end is told");
        let threshold = self.config.threshold;
        for (sid, unclean) in &self.witness.unclean {
            let (was, must) = (before.get(sid).copied().unwrap_or(0), expected.get(sid).copied().unwrap_or(0));
            assert_eq!(*unclean, must, "session {sid}: its {was} deaths in a row");
            if must > was {
                let suspended =
                    self.witness.number(&format!("SELECT status='suspended' FROM sessions WHERE sid={sid}")) > 0;
                assert_eq!(
                    suspended,
                    threshold > 0 && must >= threshold,
                    "session {sid}: {must} deaths of {threshold}"
                );
            }
        }
    }
}

impl Daemon {
    fn new() -> Self {
        Self {
            machine: Lifecycle::new(SHUTDOWN),
            workers: BTreeMap::new(),
            ghosts: Vec::new(),
            wishes: BTreeMap::new(),
            alone: None,
            apart: BTreeSet::new(),
            continuations: VecDeque::new(),
            held_back: false,
            closed: false,
            hooks_running: false,
            shutdown_over: false,
            ends_held: false,
            stopped_running: false,
            draining: false,
            halted: false,
            store_closed: false,
            told_uncalled: false,
            deliveries: BTreeMap::new(),
            doubt: false,
            doubted: false,
            left: false,
            marked: false,
        }
    }
}
