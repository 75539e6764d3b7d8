//! A stop: from SIGTERM to the exit with many sessions at rest, and marking those that run.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::process::Signal;

use crate::bare::{self, run};
use crate::rig::{self, Daemon, ECHO, ENDS, Place};
use crate::table::{Goal, Scale, Table, median};

/// SIGTERM to exit.
pub fn exit(scale: Scale, table: &mut Table) {
    for n in [scale.of(2_000, 50), scale.of(10_000, 100)] {
        let mut parts = [0.0; 3];
        let mut least = i64::MAX;
        let pairs = (0..scale.of(3, 1))
            .map(|_| {
                let copy = tempfile::tempdir().expect("a directory");
                let (ours, delivered) = stopped(n, copy.path());
                least = least.min(delivered);
                parts = bare_stop(n, &bare::open(&copy.path().join("copy.db")));
                (ours, parts.iter().sum())
            })
            .collect();
        let (ours, bare) = median(pairs);
        table.row(&format!("{n} idle live sessions, SIGTERM to exit"), "ms", ours, Some(bare), Goal::Times(1.5));
        if least < n as i64 {
            // A machine that is too busy: the rest is owed to the next boot, and the stop took its whole budget for it.
            table.note(&format!("in one round {least} of {n} ends were delivered within the hooks' budget"));
        }
        let [threads, lua, commits] = parts;
        table.note(&format!(
            "bare, last round: threads woken and joined {threads:.0} ms, Lua calls {lua:.0} ms, two commits {commits:.0} ms"
        ));
    }
}

/// Milliseconds, and the ends delivered; leaves a copy of the database from just before the signal.
fn stopped(n: usize, copy: &Path) -> (f64, i64) {
    let place = Place::new(&rig::config(ECHO), Some(ENDS));
    let daemon = place.start();
    daemon.message_all(0..n);
    daemon.settle();
    let conn = Connection::open(place.database()).expect("a database");
    conn.execute("VACUUM INTO ?1", [copy.join("copy.db").display().to_string()]).expect("a copy");
    drop(conn);
    let (took, status) = daemon.stop();
    assert!(status.success(), "{status}");
    let conn = Connection::open(place.database()).expect("a database");
    let delivered =
        conn.query_row("SELECT count(*) FROM deliveries WHERE state='delivered'", [], |r| r.get(0)).expect("a count");
    (took.as_secs_f64() * 1e3, delivered)
}

/// Threads woken and joined, Lua calls, two commits: milliseconds each.
fn bare_stop(n: usize, conn: &Connection) -> [f64; 3] {
    let ms = |began: Instant| began.elapsed().as_secs_f64() * 1e3;
    let started = Arc::new(Barrier::new(n + 1));
    let threads: Vec<_> = (0..n)
        .map(|_| {
            let started = started.clone();
            let body = move || {
                started.wait();
                std::thread::park();
            };
            std::thread::Builder::new().stack_size(ostler::thread::IO_STACK).spawn(body).expect("a thread")
        })
        .collect();
    started.wait();
    std::thread::sleep(Duration::from_millis(200));
    let began = Instant::now();
    threads.iter().for_each(|t| t.thread().unpark());
    threads.into_iter().for_each(|t| t.join().expect("its end"));
    let threads = ms(began);

    let mut call = lua_call();
    let began = Instant::now();
    (0..n).for_each(&mut call);
    let lua = ms(began);

    let all = bare::open_activations(conn);
    assert_eq!(all.len(), n);
    let began = Instant::now();
    conn.execute_batch("BEGIN IMMEDIATE").expect("begun");
    let owed: Vec<i64> = all.iter().map(|a| bare::end(conn, (a.aid, a.sid), &a.key, &a.session, "shutdown")).collect();
    conn.execute_batch("COMMIT; BEGIN IMMEDIATE").expect("committed");
    for did in owed {
        run(conn, "UPDATE deliveries SET state='delivered', settled_at=9, attempts=1 WHERE did=?1", [did]);
    }
    conn.execute_batch("COMMIT").expect("committed");
    [threads, lua, ms(began)]
}

/// A plain Lua function with a handler's body, called with a table of the same fields.
fn lua_call() -> impl FnMut(usize) {
    let lua = mlua::Lua::new();
    let body = "local turns = 0 return function(ev) turns = turns + ev.turns return ev.key .. ev.reason end";
    let function: mlua::Function = lua.load(body).call(()).expect("a function");
    let texts = [
        "session_id",
        "reason",
        "actor",
        "agent",
        "cwd",
        "started_at",
        "ended_at",
        "event_id",
        "at",
        "boot_id",
        "event",
    ];
    move |i| {
        let ev = lua.create_table().expect("a table");
        for name in texts {
            ev.raw_set(name, "0197b6a0-0000-7000-8000-000000000000").expect("a field");
        }
        for name in ["epoch", "turns", "messages", "attempt"] {
            ev.raw_set(name, 1).expect("a field");
        }
        for name in ["final", "redelivered", "test"] {
            ev.raw_set(name, false).expect("a field");
        }
        ev.raw_set("key", format!("bench:{i}")).expect("a field");
        let _: mlua::Value = function.call(ev).expect("a call");
    }
}

/// The marks of a stop, while many turns run.
pub fn mark(scale: Scale, table: &mut Table) {
    let n = scale.of(10_000, 100);
    let place = Place::new(&rig::config(LONG), None);
    let daemon = place.start();
    daemon.message_all(0..n);
    all_run(&daemon, n);
    daemon.kill();
    let conn = bare::open(&place.database());
    let mut pairs = Vec::new();
    for _ in 0..scale.of(3, 1) {
        let ours = marked(n);
        conn.execute("UPDATE sessions SET mark_reason=NULL, marked_at=NULL, mark_boot=NULL", []).expect("unmarked");
        let began = Instant::now();
        conn.execute("UPDATE sessions SET mark_reason='shutdown_timeout', marked_at=9, mark_boot=1", [])
            .expect("marked");
        pairs.push((ours, began.elapsed().as_secs_f64() * 1e3));
    }
    let (ours, bare) = median(pairs);
    table.row(&format!("marking {n} running sessions"), "ms", ours, Some(bare), Goal::Times(2.0));
}

/// An agent whose turns are still running when they are wanted to.
pub const LONG: &str = "kind = \"echo\"\ndelay = \"1h\"";

/// Waits until that many turns run.
pub fn all_run(daemon: &Daemon<'_>, n: usize) {
    daemon.until("all run", |s| s["sessions"]["running"] == n);
}

/// Milliseconds between the daemon's words that a stop begins and that the running sessions are marked.
fn marked(n: usize) -> f64 {
    let place = Place::new(&rig::config(LONG), None);
    let mut command = place.command();
    command.stderr(Stdio::piped());
    let mut daemon = place.start_as(command);
    daemon.message_all(0..n);
    all_run(&daemon, n);
    let (tell, told) = mpsc::channel();
    let stderr = daemon.child.stderr.take().expect("its words");
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let _ = tell.send((Instant::now(), line));
        }
    });
    daemon.signal(Signal::TERM);
    let said = |words: &str| {
        let found = told.iter().find(|(_, line)| line.contains(words));
        found.expect("it says so").0
    };
    let began = said("stop: shutdown (graceful)");
    let took = said(&format!("{n} running sessions are marked")).saturating_duration_since(began);
    daemon.kill();
    took.as_secs_f64() * 1e3
}
