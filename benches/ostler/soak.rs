//! An hour of a busy daemon, compressed by load: many turns over many keys with parking and resets, and what of it stays.
//!
//! `OSTLER_SOAK_TURNS` says how many turns (a million by default); a line is printed every twentieth of them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rustix::process::Signal;

use crate::rig::{self, Daemon, ECHO, Place};
use crate::table::{Scale, Table};

/// Clients at once.
const CLIENTS: usize = 16;
/// Every so many turns of its own a session is reset.
const RESET: usize = 12;

/// From one pair of keys to the next: prime, so that a lap meets them all.
const STRIDE: usize = 7919;

/// The daemon's size at some moment.
struct Size {
    anonymous: f64,
    threads: usize,
    descriptors: usize,
    /// The database's pages, and of them those in use.
    file: f64,
    used: f64,
}

/// Once with a short retention, where everything is to be flat, and once without, where only the database grows.
pub fn run(scale: Scale, table: &mut Table) {
    let turns: usize = match std::env::var("OSTLER_SOAK_TURNS") {
        Ok(n) => n.parse().expect("OSTLER_SOAK_TURNS is a number"),
        Err(_) => scale.of(1_000_000, 400),
    };
    let keys = scale.of(10_000, 20);
    let short = "[retention]\nended = \"1s\"\nevents = \"1s\"\nids = \"1s\"\njournal = \"1s\"\n";
    let slices = scale.of(20, 3);
    soak(table, "short retention", short, turns, keys, slices);
    soak(
        table,
        "no retention",
        "[retention]\nevents = \"never\"\nids = \"never\"\njournal = \"never\"\n",
        turns,
        keys,
        slices,
    );
}

fn soak(table: &mut Table, name: &str, retention: &str, turns: usize, keys: usize, slices: usize) {
    let live = (keys / 5).max(2);
    let config = rig::config(ECHO).replace("max_live = 20000", &format!("max_live = {live}"));
    let place = Place::new(&format!("{config}{retention}"), Some(rig::ENDS));
    let daemon = place.start();
    let began = Instant::now();
    table.note(&format!(
        "soak, {name}: {turns} turns over {keys} keys, at most {live} live, each reset every {RESET} turns of its own"
    ));
    let mut last = (0, size(&daemon, &place).used);
    for slice in 1..=slices {
        let done = turns * (slice - 1) / slices;
        let upto = turns * slice / slices;
        let since = Instant::now();
        work(&daemon, done..upto, keys);
        let speed = (upto - done) as f64 / since.elapsed().as_secs_f64();
        // An hour has pauses in which what is owed is delivered.
        daemon.until("nothing owed", |s| s["hooks"]["pending"] == 0);
        // What an hour would have pruned by itself is pruned now: a reload looks for it at once.
        daemon.signal(Signal::HUP);
        pruned(&place, retention);
        let now = size(&daemon, &place);
        table.note(&format!(
            "{upto:>9} turns, {:>5.0} s, {speed:>5.0} a second: {:>7.1} MiB anonymous, {:>5} threads, {:>5} descriptors, database {:>8.1} MiB, {:>8.1} in use, {:>6.0} bytes a turn",
            began.elapsed().as_secs_f64(),
            now.anonymous / 1024.0,
            now.threads,
            now.descriptors,
            now.file / f64::from(1 << 20),
            now.used / f64::from(1 << 20),
            (now.used - last.1) / (upto - last.0) as f64
        ));
        last = (upto, now.used);
    }
    let (took, status) = daemon.stop();
    table.note(&format!("SIGTERM to exit: {:.0} ms, {status}", took.as_secs_f64() * 1e3));
}

/// Turns by several clients, each key in its turn; now and then a reset.
fn work(daemon: &Daemon<'_>, turns: std::ops::Range<usize>, keys: usize) {
    let next = AtomicUsize::new(turns.start);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = daemon.client();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= turns.end {
                        return;
                    }
                    // Two turns of a pair of keys after each other, so that some find their session live and others
                    // parked; in a lap, four turns a key, each is once the first of its pair.
                    let key = (n / 4 * STRIDE + n % 2) % keys;
                    client.turn_or_cancel(key);
                    let lap = n / (4 * keys);
                    if n.is_multiple_of(4) && (lap + key).is_multiple_of(RESET / 4) {
                        let (status, text) = client.post(&format!("/v1/sessions/bench:{key}/reset"), "");
                        assert!(status == 200 || status == 404, "{text}");
                    }
                }
            });
        }
    });
    daemon.settle();
}

/// Waits until the daemon has pruned what is old: retention's ages are a second.
fn pruned(place: &Place, retention: &str) {
    if retention.contains("never") {
        return;
    }
    let conn = rusqlite::Connection::open(place.database()).expect("a database");
    let began = Instant::now();
    let mut last = i64::MAX;
    // While it prunes the stream shrinks; when two looks a second apart see the same, it is done.
    while began.elapsed().as_secs() < 60 {
        std::thread::sleep(std::time::Duration::from_secs(1));
        let now: i64 = conn
            .query_row(
                "SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM entries) + (SELECT count(*) FROM turns)",
                [],
                |r| r.get(0),
            )
            .expect("a count");
        if now == last {
            return;
        }
        last = now;
    }
}

fn size(daemon: &Daemon<'_>, place: &Place) -> Size {
    let count = |what: &str| std::fs::read_dir(format!("/proc/{}/{what}", daemon.pid())).map_or(0, Iterator::count);
    let conn = rusqlite::Connection::open(place.database()).expect("a database");
    let pragma = |name: &str| conn.query_row(&format!("PRAGMA {name}"), [], |r| r.get::<_, i64>(0)).expect("a number");
    Size {
        anonymous: rig::memory(daemon.pid()).anonymous,
        threads: count("task"),
        descriptors: count("fd"),
        file: (pragma("page_count") * pragma("page_size")) as f64,
        used: ((pragma("page_count") - pragma("freelist_count")) * pragma("page_size")) as f64,
    }
}
