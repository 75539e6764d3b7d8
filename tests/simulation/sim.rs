//! The simulated daemon, of real parts: the coordinator, the registry with its roster, workers, delivery and hub, over the real
//! store in memory. A seed decides what goes on next: a worker, a job, an event of the coordinator, a call of a handler, a
//! message, the clock, a death.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use ostler::config::{self, AgentKind, Config};
use ostler::daemon::context::{Context, Parts, Reloaded, Request};
use ostler::daemon::coordinator::{Coordinator, Event, NewWorker};
use ostler::daemon::delivery::{Delivery, Message, Pump};
use ostler::daemon::hub::{Delivering, Hub, Listening};
use ostler::daemon::mailbox::Mailbox;
use ostler::daemon::signals::Signal;
use ostler::daemon::worker::{Begins, Input, Next, Worker};
use ostler::hooks::{self, Hooks};
use ostler::model::event::{HandlerId, StopReason, Urgency};
use ostler::model::keep_policy::{Agents, Keep, StopRequest};
use ostler::store::{BootInfo, Env, Error, Recovered, Store};

use crate::dice::Dice;
use crate::parts::{Actor, Clock, Fault, Machine, NoHost, Notes, Scripts, Seen, T0};
use crate::rider::{Rider, Runner};
use crate::room::{Room, environment};
use crate::witness::Witness;
use crate::world::{Below, Outside, World};
pub use faults::Death;
use faults::{Fate, Faults};

mod conclusion;
mod faults;
mod outlived;
mod people;
mod recovery;
mod steps;

const KEYS: [&str; 6] = ["k:a", "k:b", "h:c", "h:d", "h:e", "x:f"];
const HANDLERS: [&str; 2] = ["x", "y"];

/// So long is no interrupted turn left alone, where every one must go on: more than a seed's whole time, less than a clock
/// may be behind.
const LONG_WINDOW: &str = "30d";
/// `retention.reports`, before it is changed.
const REPORTS: usize = 1000;
/// What retention keeps for a while only is kept for this long.
const AGE_MS: i64 = 3_600_000;
/// How far the wall clock may be behind: a bit, an hour, or as on a machine without a battery.
const BEHIND_MS: [i64; 3] = [60_000, AGE_MS, 31_000_000_000];

/// A message, as its sender knows it.
#[derive(Clone, Debug)]
struct Sent {
    key: &'static str,
    text: String,
    id: Option<String>,
    /// Turn and message of its 202.
    acked: Option<(String, String)>,
    /// When that was, by the store's clock.
    at: i64,
    /// It was sent again since, and nobody knows whether that was kept: its id may mean a newer message.
    doubted: bool,
}

/// A worker and its thread, which only waits.
struct Thread {
    sid: i64,
    key: String,
    worker: Worker,
    mailbox: Arc<Mailbox>,
    next: Next,
    ended: Option<Box<dyn FnOnce() + Send>>,
    /// It does not come back from what it does, and goes on at some later time: after it was given up, perhaps.
    hangs: bool,
}

/// A reload that was asked for: the value that stood in the file then.
struct Asked {
    value: usize,
    answer: Receiver<Result<Reloaded, String>>,
}

/// What dies with the process.
struct Process {
    ctx: Arc<Context>,
    machine: Arc<Machine>,
    scripts: Arc<Scripts>,
    coordinator: Coordinator,
    pump: Pump,
    delivery: Delivery,
    inbox: Receiver<Message>,
    pump_due: Option<Instant>,
    requests: (Sender<Request>, Receiver<Request>),
    nudges: Receiver<()>,
    doubts: Receiver<()>,
    starting: Arc<Mutex<Vec<NewWorker>>>,
    threads: Vec<Thread>,
    /// Answers that are being handed over.
    handing: Vec<Delivering>,
    /// Who follows everything, until the daemon leaves.
    reader: Option<Listening>,
    read: i64,
    /// The number of the last event before it.
    first: i64,
    reloads: Vec<Asked>,
    /// The configuration that was in force when the stop began.
    stops_with: Option<Arc<Config>>,
    stop_began: Option<i64>,
    blocked: BTreeSet<i64>,
    /// Shims of earlier daemons whose agents are not gone on with: they are ended at some time.
    leftovers: Vec<String>,
    /// The shims of those that are.
    spared: BTreeSet<String>,
    swept: bool,
    /// Running sessions were marked, for certain.
    marked: bool,
    /// Every activation was closed, for certain.
    closed: Option<Agents>,
    /// The newest delivery when it was to be noted whose handlers were not called.
    uncalled_upto: i64,
}

/// What is made once and used by one seed after the other.
pub struct Tools {
    hooks: Hooks,
    dir: tempfile::TempDir,
}

impl Tools {
    pub fn new() -> Self {
        let none = config::Config::default().hooks;
        let scripts = hooks::load(&none, "simulation").expect("no scripts");
        let hooks = Hooks::start(scripts, Arc::new(NoHost), "simulation").expect("no threads");
        Self { hooks, dir: tempfile::tempdir().expect("a directory") }
    }
}

pub struct Sim {
    pub dice: Dice,
    pub steps: u64,
    pub boots: u64,
    tools: Arc<Tools>,
    clock: Arc<Clock>,
    faults: Arc<Faults>,
    config: Config,
    text: String,
    /// The newest value of `retention.reports` in the file.
    value: usize,
    strict: bool,
    /// Most of what happens concerns agents that outlive daemons.
    outlives: bool,
    store: Option<Store>,
    broom: rusqlite::Connection,
    gathers: bool,
    process: Option<Process>,
    witness: Witness,
    sent: Vec<Sent>,
    notes: Arc<Mutex<Notes>>,
    seen: Arc<Mutex<Seen>>,
    before_turn: bool,
    agents: Arc<AtomicU64>,
    outside: Arc<Outside>,
    quiet: bool,
    /// The last process left in order, and said so.
    left_clean: bool,
    /// Up to this delivery it is noted, for certain, whose handler the last process did not call.
    uncalled_upto: Option<i64>,
}

impl Sim {
    pub fn new(seed: u64, room: Room, tools: Arc<Tools>) -> Self {
        let mut dice = Dice::new(seed ^ 0x7369_6d00);
        room.sweep();
        let Room { store, eyes, broom } = room;
        let strict = dice.chance(50);
        let outlives = dice.chance(50);
        let text = configuration(&mut dice, strict, outlives, &tools.dir);
        let clock = Arc::new(Clock {
            ms: AtomicI64::new(T0),
            behind: AtomicI64::new(0),
            // Ahead of the machine's own, so that an instant of the seed has not passed where that one is asked.
            base: Instant::now() + Duration::from_secs(86_400),
        });
        let (before_turn, gathers) = (dice.chance(30), dice.chance(50));
        let trace = std::env::var_os("OSTLER_SIM_TRACE").is_some();
        let faults = Arc::new(Faults { trace, ..Faults::default() });
        let notes: Arc<Mutex<Notes>> = Arc::default();
        let (deadly, dead) = (faults.clone(), faults.clone());
        let outside = Arc::new(Outside::new(
            World::new(clock.clone(), notes.clone(), seed),
            move || deadly.dead.store(true, Ordering::Relaxed),
            move || dead.dead.load(Ordering::Relaxed),
        ));
        let mut sim = Self {
            dice,
            steps: 0,
            boots: 0,
            tools,
            clock,
            faults,
            config: config::parse(&text, None).unwrap_or_else(|e| panic!("{e}\n{text}")),
            text,
            value: REPORTS,
            strict,
            outlives,
            store: Some(store),
            broom,
            gathers,
            process: None,
            witness: Witness::new(eyes),
            sent: Vec::new(),
            notes,
            seen: Arc::default(),
            before_turn,
            agents: Arc::new(AtomicU64::new(seed << 16)),
            outside,
            quiet: false,
            left_clean: false,
            uncalled_upto: Some(0),
        };
        sim.write_config();
        sim.boot();
        sim
    }

    /// The room, for the next seed.
    pub fn leave(self) -> Room {
        Room { store: self.store.expect("a store"), eyes: self.witness.eyes(), broom: self.broom }
    }

    fn file(&self) -> PathBuf {
        self.tools.dir.path().join("ostler.toml")
    }

    fn write_config(&mut self) {
        self.value += 1;
        let text = self.text.replace("reports = 1000", &format!("reports = {}", self.value));
        std::fs::write(self.file(), text).unwrap();
    }

    fn p(&mut self) -> &mut Process {
        self.process.as_mut().expect("a process")
    }

    fn dead(&self) -> bool {
        self.faults.dead.load(Ordering::Relaxed)
    }

    /// Does something that a thread of the daemon does: it may die in it.
    fn guarded<T>(&mut self, f: impl FnOnce(&mut Self) -> T) -> Option<T> {
        match catch_unwind(AssertUnwindSafe(|| f(self))) {
            Ok(value) => Some(value),
            Err(payload) if payload.is::<Death>() => None,
            Err(payload) => resume_unwind(payload),
        }
    }

    /// A new process, until one comes up.
    fn boot(&mut self) {
        loop {
            self.outside.world().daemon_gone();
            self.process = None;
            self.faults.revive();
            self.boots += 1;
            if self.boots > 1 {
                self.go_on_outside();
                let away = *self.dice.pick(&[10, 1000, 30_000, 30_000, 4_000_000]);
                self.clock.ms.fetch_add(away, Ordering::Relaxed);
                let behind = if self.dice.chance(15) { *self.dice.pick(&BEHIND_MS) } else { 0 };
                self.clock.behind.store(behind, Ordering::Relaxed);
            }
            let store = self.open_store();
            let orphan = self.config.agents.orphan_after.as_millis() as i64;
            self.outside.world().boots(self.boots, orphan);
            self.witness.read();
            if self.faults.died_marking.swap(false, Ordering::Relaxed) {
                self.witness.marked(true);
            }
            match self.uncalled_upto.take() {
                // What came after that note is not in it.
                Some(last) => self.doubt(&format!("d.state='pending' AND d.did>{last}")),
                None => self.doubt("d.state='pending'"),
            }
            let expected = self.expected();
            let info = BootInfo {
                boot_id: format!("b{}", self.boots),
                pid: 1,
                threshold: self.config.sessions.stuck_threshold.into(),
                machine: self.keeps().then(|| self.outside.world().machine()),
            };
            let mut process = self.assemble(&store);
            match self.guarded(|_| store.open_boot(info)) {
                Some(Ok(recovered)) => {
                    self.witness.read();
                    self.witness.stops_are_over();
                    self.check_recovery(&expected, &recovered);
                    self.look_for_leftovers(&mut process, &recovered);
                    process.coordinator.begin(&recovered);
                    self.process = Some(process);
                    return;
                }
                Some(Err(Error::Unavailable(_))) | None => {}
                Some(Err(e)) => panic!("a boot fails: {e}"),
            }
        }
    }

    /// The store as a new process opens it.
    fn open_store(&mut self) -> Store {
        let (clock, faults) = (self.clock.clone(), self.faults.clone());
        let env = Env {
            clock: Arc::new(move || clock.wall()),
            faults: Some(Arc::new(move |name, step| faults.strike(name, step))),
            gathers: self.gathers,
            ..environment()
        };
        let store = self.store.take().expect("a store").again(env).expect("the store opens");
        store.set_owed(Arc::new(|event| {
            let id = |name: &&str| HandlerId { event, script: "s.lua".into(), name: (*name).to_owned() };
            if event.is_journalled() { HANDLERS.iter().map(id).collect() } else { Vec::new() }
        }));
        self.store = Some(store.clone());
        store
    }

    fn assemble(&mut self, store: &Store) -> Process {
        let machine = Arc::new(Machine { clock: self.clock.clone(), jobs: Mutex::default(), full: false.into() });
        let scripts = Arc::new(Scripts::new(self.clock.clone(), self.seen.clone(), self.before_turn));
        let (notes, agents) = (self.notes.clone(), self.agents.clone());
        let (outside, boot) = (self.outside.clone(), self.boots);
        let hub = Arc::new(Hub::default());
        let requests = bounded(256);
        let mut config = self.config.clone();
        config.file = Some(self.file());
        let ctx = Arc::new(Context::new(Parts {
            store: store.clone(),
            hub: hub.clone(),
            hooks: self.tools.hooks.clone(),
            runtime: machine.clone(),
            handlers: scripts.clone(),
            agents: Arc::new(move |ctx, config| {
                let seed = agents.fetch_add(1, Ordering::Relaxed);
                match config.kind {
                    AgentKind::Acp if ctx.shims().is_some() => Box::new(Rider::new(outside.clone(), boot, seed)),
                    AgentKind::Exec if ctx.shims().is_some() => Box::new(Runner::new(outside.clone(), boot, seed)),
                    _ => Box::new(Actor::new(notes.clone(), seed)),
                }
            }),
            boot_id: format!("b{}", self.boots),
            state_dir: self.tools.dir.path().to_owned(),
            supervised: false,
            requests: requests.0.clone(),
            config,
        }));
        if self.keeps() {
            ctx.set_shims(Some(Arc::new(Below(self.outside.clone()))));
        }
        let (delivery, inbox) = Delivery::new();
        let (published, poked) = (hub.clone(), delivery.clone());
        store.set_observer(Arc::new(move |commit| {
            published.publish(commit);
            if commit.deliveries > 0 {
                poked.poke();
            }
        }));
        let (nudge, nudges) = bounded(1);
        ctx.hub.set_nudge(nudge.clone());
        ctx.registry.set_nudge(nudge);
        let (doubt, doubts) = bounded(1);
        let doubted = hub.clone();
        store.set_doubt(Arc::new(move || {
            doubted.doubt();
            let _ = doubt.try_send(());
        }));
        let starting: Arc<Mutex<Vec<NewWorker>>> = Arc::default();
        let (queue, threads) = (starting.clone(), machine.clone());
        let start = move |new: NewWorker| {
            if threads.full.load(Ordering::Relaxed) {
                return Err(std::io::Error::other("no thread"));
            }
            queue.lock().unwrap().push(new);
            Ok(None)
        };
        let coordinator = Coordinator::new(ctx.clone(), delivery.clone(), Box::new(start));
        let reader = Some(hub.listen(None, false));
        Process {
            pump: Pump::new(ctx.clone(), delivery.clone()),
            delivery,
            ctx,
            machine,
            scripts,
            coordinator,
            inbox,
            pump_due: None,
            requests,
            nudges,
            doubts,
            starting,
            threads: Vec::new(),
            handing: Vec::new(),
            reader,
            read: self.witness.seq,
            first: self.witness.seq,
            reloads: Vec::new(),
            stops_with: None,
            stop_began: None,
            blocked: BTreeSet::new(),
            leftovers: Vec::new(),
            spared: BTreeSet::new(),
            swept: false,
            marked: false,
            closed: None,
            uncalled_upto: 0,
        }
    }
}

/// The configuration of a seed. `strict`: every interrupted turn must go on.
fn configuration(dice: &mut Dice, strict: bool, outlives: bool, dir: &tempfile::TempDir) -> String {
    let on_interrupt = if strict { *dice.pick(&["resume", "rerun"]) } else { *dice.pick(&["resume", "rerun", "wait"]) };
    let resume = if strict { "auto" } else { *dice.pick(&["auto", "on_message", "never"]) };
    let window = if strict { *dice.pick(&["never", LONG_WINDOW]) } else { "1h" };
    let idle_reset = if dice.chance(25) { "2h" } else { "never" };
    let busy = *dice.pick(&["queue", "collect", "interrupt"]);
    let max_live = *dice.pick(&[1, 2, 8]);
    let queue_limit = *dice.pick(&[3, 32]);
    let threshold = *dice.pick(&[3, 3, 2, 1, 0]);
    let park = *dice.pick(&["never", "30s", "5m"]);
    let most = *dice.pick(&[1, 8]);
    let mut age = || *dice.pick(&["never", "1h"]);
    let (ended, events, ids, journal) = (age(), age(), age(), age());
    let turn = *dice.pick(&["never", "2m"]);
    let keep = if outlives { "restart" } else { *dice.pick(&["restart", "crash", "never"]) };
    let max_live = if outlives { 8 } else { max_live };
    format!(
        "[agents]\nkeep = \"{keep}\"\n[sessions]\nmax_live = {max_live}\nbusy = \"{busy}\"\nqueue_limit = {queue_limit}\nresume = \"{resume}\"\n\
         resume_window = \"{window}\"\nidle_reset = \"{idle_reset}\"\nstuck_threshold = {threshold}\npark_after = \"{park}\"\n\
         [shutdown]\ndrain = \"30s\"\ninterrupt = \"10s\"\nhooks = \"10s\"\nclose = \"5s\"\ndeadline = \"60s\"\n\
         [hooks]\nattempts = 3\n\
         [retention]\nended = \"{ended}\"\nevents = \"{events}\"\nids = \"{ids}\"\njournal = \"{journal}\"\nreports = {REPORTS}\n\
         [agent.light]\nkind = \"echo\"\nmax_processes = 8\non_interrupt = \"{on_interrupt}\"\nturn_timeout = \"{turn}\"\n\
         [agent.heavy]\nkind = \"acp\"\ncommand = [\"true\"]\ncwd = \"{}\"\nmax_processes = {most}\n\
         on_interrupt = \"{on_interrupt}\"\npermission_timeout = \"1m\"\npermission = \"ask\"\n\
         [agent.once]\nkind = \"exec\"\ncommand = [\"true\"]\ncwd = \"{}\"\non_interrupt = \"{on_interrupt}\"\n\
         [[route]]\nmatch = \"h:*\"\nagent = \"heavy\"\n[[route]]\nmatch = \"x:*\"\nagent = \"once\"\n[[route]]\nmatch = \"*\"\nagent = \"light\"\n",
        dir.path().display(),
        dir.path().display()
    )
}
