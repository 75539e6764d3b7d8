//! The disk and the database's files: a reader from outside, a disk that stalls, files that change under the daemon.

use serde_json::json;

use crate::daemon::{Daemon, fake};
use crate::rig::{boot_ready, settled};

/// A reader from outside costs a stop nothing: the marks are in time, also beside a checkpoint that meets it, the exit is in
/// order, and what was committed is in the log.
#[test]
fn a_stop_beside_a_reader() {
    let config = fake(&[], "") + "[shutdown]\ndrain = \"100ms\"\nclose = \"4s\"\ndeadline = \"40s\"\n";
    let mut d = boot_ready(Daemon::new().config(&config).env("RUST_LOG", "debug"), "");
    let mut gate = d.gate("gate");
    let mut events = d.events("local:a");
    let turn = d.post("local:a", &format!("say begun; wait-file {}", gate.path.display()));
    events.until("text");
    let other = rusqlite::Connection::open(d.path("state/ostler.db")).unwrap();
    other.execute_batch("BEGIN").unwrap();
    other.query_row("SELECT count(*) FROM sessions", [], |r| r.get::<_, i64>(0)).unwrap();
    let from = d.log.count();
    d.log.find(from, "a checkpoint", |l| l.contains("the write-ahead log is folded"));
    d.sigterm();
    assert_eq!(d.ended().code(), Some(0));
    d.wait_log("1 running sessions are marked");
    d.wait_log("somebody reads the database");
    drop(other);
    assert_eq!(d.sql::<i64>("SELECT clean FROM boots"), 1);
    d.check(true);
    gate.open();
    let mut d = boot_ready(d, "");
    assert_eq!(settled(&mut d.events("local:a"), turn["turn_id"].as_str().unwrap()), ("completed".into(), 2));
    assert_eq!(d.stop(), 0);
}

/// A disk that stalls in the checkpoint is no reason for the service manager to kill the daemon.
#[test]
fn a_stalled_checkpoint_feeds_the_watchdog() {
    let d = Daemon::new().env("RUST_LOG", "debug").env("WATCHDOG_USEC", "200000");
    let mut d = boot_ready(d, "fold.before=stall:3000");
    d.send("local:a", "hello");
    let from = d.log.count();
    d.log.find(from, "a checkpoint", |l| l.contains("the write-ahead log is folded"));
    let mut from = d.notes.count();
    for _ in 0..3 {
        d.notes.find(from, "WATCHDOG=1", |l| l == "WATCHDOG=1");
        from = d.notes.count();
    }
    assert_eq!(d.get("/healthz"), json!({ "ok": true }));
    assert_eq!(d.stop(), 0);
    let starved: Vec<String> = d.log.all().into_iter().filter(|l| l.contains("store false")).collect();
    assert!(starved.is_empty(), "{starved:?}");
}
