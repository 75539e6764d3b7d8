//! Power loss: the promises hold for whatever a disk that keeps what fsync promised may be left with.
//!
//! The real daemon is recorded under load, over a SIGKILL and an orderly stop, by `strace`: every change of a file or a
//! name in its directory, every fsync, and everything that its clients are told, in the order in which the kernel saw them.
//! A shim in SQLite's place would see less (not the directories that the daemon makes, nor its lock) and need unsafe code;
//! strace needs neither, and what is recorded is the program that is shipped, but for its failpoints. It must be installed.
//!
//! At instants of the recording the disk is then rebuilt: what an fsync had promised is there, everything else is there or
//! not as a seed says, down to the sector (`power/disk.rs`). The store recovers each such disk as a boot does, some are
//! given to a whole daemon; and nothing that a client had been told by that instant may be missing or different.
//! That the test can see a loss is shown with recordings of a daemon that does not wait for its commits, or only at
//! checkpoints (`store.synchronous`, a switch of test builds).
//!
//! `OSTLER_POWER_SEED` repeats a run, `OSTLER_POWER_DISKS` sets how many disks are looked at.

mod disk;
mod trace;

use std::collections::BTreeSet;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use ostler::store::{BootInfo, Env, Store};
use rusqlite::{Connection, OptionalExtension};
use rustix::process::Signal;
use serde_json::Value;

use crate::daemon::{Daemon, Gate};
use crate::invariants;
use crate::load::Rng;
use crate::rig::{boot_ready, check_answers, end, number, settled};
use disk::{Disk, Image, Loss};
use trace::{CALLS, Op, Told, Trace};

/// The daemon's state is two directories deep, so that what it makes above its state counts too.
const STATE: &str = "deep/state";

fn config() -> String {
    "[sessions]\nstuck_threshold = 0\nqueue_limit = 1000\n[shutdown]\ndrain = \"20ms\"\nclose = \"30s\"\n\
     [agent.echo]\nkind = \"echo\"\n\
     [agent.fake]\nkind = \"acp\"\ncommand = [\"@FAKE@\"]\nenv = { FAKE_AGENT_STATE = \"@DIR@/agent\" }\n\
     [[route]]\nmatch = \"local:f*\"\nagent = \"fake\"\n[[route]]\nmatch = \"*\"\nagent = \"echo\"\n"
        .to_owned()
}

/// A daemon whose every step is written down, each boot's through a pipe of its own.
struct Recorded {
    d: Daemon,
    trace: Trace,
    boots: usize,
}

impl Recorded {
    fn new() -> Self {
        let version = Command::new("strace").arg("-V").output();
        assert!(
            version.is_ok_and(|v| v.status.success()),
            "the test of power loss needs strace: apt-get install strace"
        );
        let mut d = Daemon::new().config(&config());
        std::fs::create_dir(d.path("agent")).unwrap();
        d = d.state(STATE);
        Self { d, trace: Trace::default(), boots: 0 }
    }

    /// Boots, lets `life` do what it does and end the daemon, and reads what was recorded.
    fn boot(mut self, failpoints: &str, life: impl FnOnce(&mut Daemon)) -> Self {
        self.boots += 1;
        let pipe = self.d.gate(&format!("strace{}", self.boots)).path;
        let words =
            ["strace", "-D", "-f", "--seccomp-bpf", "-y", "-xx", "-s", "1000000", "-e", "signal=none", "-e", CALLS];
        let words: Vec<&str> = words.into_iter().chain(["-o", pipe.to_str().unwrap(), "--"]).collect();
        self.d.set_wrapper(&words);
        let root = self.d.path("");
        let mut trace = std::mem::take(&mut self.trace);
        let reader = std::thread::spawn(move || {
            trace.read(&root, BufReader::new(std::fs::File::open(&pipe).unwrap()));
            trace
        });
        self.d = boot_ready(self.d, failpoints);
        life(&mut self.d);
        self.d.end_leftovers();
        self.trace = reader.join().unwrap();
        self
    }
}

/// Clients on keys of their own, each in a thread: one after another, some followed to their end.
fn talk(d: &Daemon, round: usize, messages: usize) {
    std::thread::scope(|scope| {
        for (n, key) in ["local:e1", "local:e2", "local:f1"].into_iter().enumerate() {
            scope.spawn(move || {
                for m in 0..messages {
                    // Some that take several pages.
                    let text = format!("say r{round}m{m}{}", "x".repeat(if m % 5 == n { 9000 } else { 0 }));
                    if m % 2 == n % 2 {
                        assert_eq!(d.turn(key, &text).outcome(), "completed");
                    } else {
                        d.post_id(key, &text, &format!("r{round}m{m}"));
                    }
                    if m == messages / 2 && n == 1 {
                        d.act(key, "reset");
                    }
                }
            });
        }
    });
}

/// A turn that waits for the gate.
fn begin(d: &Daemon, key: &str, gate: &Gate) {
    let mut events = d.events(key);
    let turn = d.post(key, &format!("say begun; wait-file {}; say done", gate.path.display()));
    events.until_where("its first words", |e| e.event == "text" && e.data["turn_id"] == turn["turn_id"]);
}

/// What was recorded, and whose.
struct Recording {
    ops: Vec<Op>,
    root: PathBuf,
    d: Daemon,
    /// Turns that wait for it go on.
    _gate: Gate,
}

/// Two boots under load: the first is killed while a turn runs, the second interrupts two in its stop.
fn record(failpoints: &str, messages: usize) -> Recording {
    let mut r = Recorded::new();
    let mut gate = r.d.gate("gate");
    r = r.boot(failpoints, |d| {
        talk(d, 1, messages);
        begin(d, "local:f2", &gate);
        d.signal(Signal::KILL);
        d.ended();
    });
    r = r.boot(failpoints, |d| {
        talk(d, 2, messages);
        begin(d, "local:f3", &gate);
        d.sigterm();
        end(d);
    });
    gate.open();
    Recording { ops: r.trace.ops, root: r.d.path(""), d: r.d, _gate: gate }
}

/// An instant of the recording, what is lost, and what had been told by then.
struct Case {
    at: usize,
    loss: Loss,
    image: Image,
    told: Vec<Told>,
}

/// Disks at instants of the recording: seeded ones, and each instant just after somebody was told something, and just
/// before an fsync returns.
fn cases(ops: &[Op], root: &Path, seed: u64, count: usize) -> Vec<Case> {
    let mut rng = Rng(seed);
    let mut instants = BTreeSet::new();
    let sharp: Vec<usize> = (0..ops.len())
        .filter(|n| matches!(ops[*n], Op::Told(_) | Op::Synced(..) | Op::Unlink(_) | Op::Create(..)))
        .collect();
    while instants.len() < (count / 2).min(ops.len()) {
        let at = if rng.below(3) == 0 { rng.below(ops.len()) } else { sharp[rng.below(sharp.len())] };
        instants.insert(at);
    }
    // The beginning is where names are made.
    instants.extend(0..60.min(ops.len()));
    let mut disk = Disk::new(root);
    let mut told = Vec::new();
    let mut cases = Vec::new();
    for (n, op) in ops.iter().enumerate() {
        disk.apply(n, op);
        if let Op::Told(t) = op {
            told.push(t.clone());
        }
        if instants.contains(&n) {
            let losses = [Loss::All, Loss::None, Loss::Some(rng.next()), Loss::Some(rng.next())];
            // Those in which nothing is decided by chance are the rarer ones.
            let chosen = if rng.below(2) == 0 { &losses[..2] } else { &losses[2..] };
            cases.extend(chosen.iter().map(|loss| Case {
                at: n,
                loss: *loss,
                image: disk.image(*loss),
                told: told.clone(),
            }));
        }
    }
    cases
}

/// Puts an image where the recording's directory was: `to` in place of `root`. What no boot may believe is garbage.
fn write(image: &Image, root: &Path, to: &Path, garbage: bool) {
    for (path, content) in image {
        let path = to.join(path.strip_prefix(root).unwrap());
        match content {
            None => std::fs::create_dir_all(&path).unwrap(),
            Some(content) => std::fs::write(&path, content).unwrap(),
        }
    }
    let state = to.join(STATE);
    if garbage && state.exists() {
        std::fs::write(state.join("lock"), "1\n").unwrap();
        if state.join("ostler.db-wal").exists() {
            std::fs::write(state.join("ostler.db-shm"), [0xa5; 32768]).unwrap();
        }
    }
}

/// What was told to clients and is not so, if anything.
fn kept(db: &Connection, told: &[Told]) -> Result<(), String> {
    let sql = |e: rusqlite::Error| e.to_string();
    let mut chain = db
        .prepare(
            "WITH RECURSIVE chain(tid) AS (
               SELECT tid FROM messages WHERE id=?1 UNION ALL SELECT t.tid FROM chain JOIN turns t ON t.continues=chain.tid)
             SELECT t.state, t.tid IS s.cut_turn AND s.mark_reason IS NOT NULL, t.continued_by IS NOT NULL
             FROM chain JOIN turns t ON t.tid=chain.tid JOIN sessions s ON s.sid=t.sid ORDER BY t.tid",
        )
        .map_err(sql)?;
    let mut event = db.prepare("SELECT kind, key, data FROM events WHERE seq=?1").map_err(sql)?;
    for t in told {
        match t {
            Told::Accepted(id) => {
                let turns: Result<Vec<(String, bool, bool)>, _> =
                    chain.query_map([id], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?))).and_then(Iterator::collect);
                let turns = turns.map_err(sql)?;
                let Some((state, marked, _)) = turns.last() else {
                    return Err(format!("message {id} was acknowledged and is lost"));
                };
                let goes_on = match state.as_str() {
                    "completed" | "failed" | "cancelled" | "queued" => true,
                    "interrupted" => *marked,
                    // The boot has ended what ran.
                    _ => false,
                };
                if !goes_on {
                    return Err(format!("message {id} has no outcome and will get none: {turns:?}"));
                }
            }
            Told::Event(seq, kind, key, data) => {
                let row: Option<(String, String, String)> = event
                    .query_row([i64::try_from(*seq).unwrap()], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
                    .optional()
                    .map_err(sql)?;
                let Some((k, of, row)) = row else {
                    return Err(format!("event {seq} ({kind} of {key}) was told and is lost"));
                };
                let said = |text: &str, field: &str| {
                    serde_json::from_str::<Value>(text).ok().map(|v| v[field].clone()).unwrap_or_default()
                };
                let same = ["outcome", "text", "epoch"].iter().all(|f| {
                    let now = said(&row, f);
                    now.is_null() || now == said(data, f)
                });
                if (&k, &of) != (kind, key) || !same {
                    return Err(format!("event {seq} was told as {kind} of {key} {data} and is {k} of {of} {row}"));
                }
            }
        }
    }
    Ok(())
}

/// Recovers a disk as a boot does, and looks whether all that was told is so, and every start has its one end.
fn recovers(case: &Case, root: &Path, garbage: bool) -> Result<(), String> {
    let dir = tempfile::Builder::new().prefix("ostp").tempdir_in(quick()).unwrap();
    write(&case.image, root, dir.path(), garbage);
    let state = dir.path().join(STATE);
    std::fs::create_dir_all(&state).unwrap();
    let path = state.join("ostler.db");
    // This boot's own writes need not wait for the disk.
    let world = Env { durable: false, inline: true, readers: 1, ..Env::default() };
    let store = Store::open_in(&path, world).map_err(|e| e.to_string())?;
    let info = BootInfo { boot_id: uuid::Uuid::new_v4().to_string(), pid: 1, threshold: 0, machine: None };
    store.open_boot(info).map_err(|e| format!("recovery: {e}"))?;
    let db = Connection::open(&path).map_err(|e| e.to_string())?;
    invariants::holds(&db, false)?;
    let open: i64 = db
        .query_row("SELECT count(*) FROM activations WHERE closed_at IS NULL", [], |r| r.get(0))
        .map_err(|e| e.to_string())?;
    if open > 0 {
        return Err(format!("{open} activations without an end after the boot"));
    }
    kept(&db, &case.told)
}

/// Where files are made without a disk, if there is such a place.
fn quick() -> &'static Path {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory } else { Path::new("/tmp") }
}

/// How many of the disks keep what was told, and what is wrong with the others.
fn look(ops: &[Op], root: &Path, seed: u64, count: usize) -> (usize, Vec<String>) {
    let cases = cases(ops, root, seed, count);
    let halves = cases.split_at(cases.len() / 2);
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let each = |cases| {
            scope.spawn(move || {
                let cases: &[Case] = cases;
                let fault = |(n, case): (usize, &Case)| {
                    let fault = recovers(case, root, n % 2 == 0).err()?;
                    Some(format!("step {} of {}, {:?} lost: {fault}", case.at, ops.len(), case.loss))
                };
                cases.iter().enumerate().filter_map(fault).collect::<Vec<_>>()
            })
        };
        [each(halves.0), each(halves.1)].into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    (cases.len(), wrong)
}

fn seed() -> u64 {
    number("OSTLER_POWER_SEED").unwrap_or_else(|| u64::from(uuid::Uuid::new_v4().as_fields().0))
}

/// Promises 1, 2, 3 and 5 for power loss: whatever the disk is left with, what was told is so, each start has its end, and
/// what was cut off goes on.
#[test]
fn whatever_is_left_holds() {
    let seed = seed();
    let count = usize::try_from(number("OSTLER_POWER_DISKS").unwrap_or(500)).unwrap();
    let since = Instant::now();
    let Recording { ops, root, d: recorded, _gate } = record("store.checkpoint=set:30", 12);
    let told = ops.iter().filter(|op| matches!(op, Op::Told(_))).count();
    let syncs = ops.iter().filter(|op| matches!(op, Op::Synced(..))).count();
    eprintln!("OSTLER_POWER_SEED={seed}: {} steps, {syncs} fsyncs, {told} told, in {:?}", ops.len(), since.elapsed());
    // What the recording says was acknowledged is what the database has.
    let acknowledged: BTreeSet<&String> =
        ops.iter().filter_map(|op| if let Op::Told(Told::Accepted(id)) = op { Some(id) } else { None }).collect();
    let messages: i64 = recorded.sql("SELECT count(*) FROM messages");
    assert_eq!(i64::try_from(acknowledged.len()).unwrap(), messages, "the recording misses what clients are told");
    let (looked, wrong) = look(&ops, &root, seed, count);
    eprintln!("{looked} disks, {} wrong, in {:?}", wrong.len(), since.elapsed());
    assert!(wrong.is_empty(), "OSTLER_POWER_SEED={seed}: {} of {looked}: {wrong:#?}", wrong.len());
    // Whole daemons on some of them.
    for case in cases(&ops, &root, seed ^ 1, 24).iter().filter(|c| !c.told.is_empty()).take(8) {
        whole(case, &root);
    }
    eprintln!("in all {:?}", since.elapsed());
}

/// Gives a disk to a whole daemon: each message that was acknowledged gets its outcome, and the stop is in order.
fn whole(case: &Case, root: &Path) {
    let d = Daemon::new().config(&config()).state(STATE);
    std::fs::create_dir(d.path("agent")).unwrap();
    write(&case.image, root, &d.path(""), true);
    let mut d = boot_ready(d, "");
    // Those that nobody was told of too: the disk kept them, so they are accepted.
    let turns: Vec<(String, String)> = {
        let db = d.db();
        let mut turn = db.prepare("SELECT m.key, t.id FROM messages m JOIN turns t ON t.tid=m.tid").unwrap();
        turn.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).unwrap().map(Result::unwrap).collect()
    };
    for (key, turn) in &turns {
        let (outcome, _) = settled(&mut d.events(key), turn);
        assert!(["completed", "cancelled"].contains(&outcome.as_str()), "step {}: {key} {turn}: {outcome}", case.at);
    }
    for key in ["local:e1", "local:f1", "local:f2"] {
        assert_eq!(d.turn(key, "say last").outcome(), "completed");
    }
    assert_eq!(d.stop(), 0, "step {}", case.at);
    check_answers(&d);
    kept(&d.db(), &case.told).unwrap();
}

/// The same look finds the losses of a daemon that does not wait for its commits, or only at checkpoints.
#[test]
fn a_commit_that_is_not_waited_for_is_seen() {
    for synchronous in [0, 1] {
        let failpoints = format!("store.checkpoint=set:30,store.synchronous=set:{synchronous}");
        let Recording { ops, root, .. } = &record(&failpoints, 3);
        let (looked, wrong) = look(ops, root, 7, 120);
        let lost = wrong.iter().filter(|w| w.contains("and is lost")).count();
        eprintln!("synchronous={synchronous}: {looked} disks, {} wrong, {lost} with losses", wrong.len());
        assert!(lost > 0, "synchronous={synchronous}: {looked} disks, and no loss is seen: {wrong:#?}");
    }
}
