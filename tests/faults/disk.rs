//! The disk and the database's files: a reader from outside, a disk that stalls, files that change under the daemon.

use std::path::Path;

use serde_json::json;

use crate::daemon::{Daemon, fake};
use crate::faults::not_ready;
use crate::rig::{boot_ready, settled};

/// A reader from outside costs a stop nothing: the marks are in time, also beside a checkpoint that meets it, the exit is in
/// order, and what was committed is in the log.
#[test]
fn a_stop_beside_a_reader() {
    let config = fake(&[], "") + "[shutdown]\ndrain = \"100ms\"\nclose = \"4s\"\ndeadline = \"40s\"\n";
    let mut d = boot_ready(Daemon::new().config(&config).env("RUST_LOG", "debug"), "");
    let (mut gate, _events, turn) = d.waiting("local:a", "");
    let other = rusqlite::Connection::open(d.path("state/ostler.db")).unwrap();
    other.execute_batch("BEGIN").unwrap();
    other.query_row("SELECT count(*) FROM sessions", [], |r| r.get::<_, i64>(0)).unwrap();
    let from = d.log.count();
    d.log.find(from, "a checkpoint", |l| l.contains("checkpoint: the write-ahead log"));
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
    let mut d = boot_ready(d, "checkpoint.before=stall:3000");
    d.send("local:a", "hello");
    let from = d.log.count();
    d.log.find(from, "a checkpoint", |l| l.contains("checkpoint: the write-ahead log"));
    let mut from = d.notes.count();
    for _ in 0..3 {
        d.notes.find(from, "WATCHDOG=1", |l| l == "WATCHDOG=1");
        from = d.notes.count();
    }
    assert_eq!(d.get("/healthz"), json!({ "ok": true }));
    assert_eq!(d.stop(), 0);
    let starved: Vec<String> = d.log.all().into_iter().filter(|l| l.contains("the store does not answer")).collect();
    assert!(starved.is_empty(), "{starved:?}");
}

fn delete(db: &Path) {
    std::fs::rename(db, db.with_extension("away")).unwrap();
}

fn replace(db: &Path) {
    std::fs::copy(db, db.with_extension("copy")).unwrap();
    std::fs::rename(db.with_extension("copy"), db).unwrap();
}

fn cut_off(db: &Path) {
    std::fs::File::options().write(true).open(db).unwrap().set_len(8192).unwrap();
}

fn take_log(db: &Path) {
    std::fs::rename(db.with_extension("db-wal"), db.with_extension("gone")).unwrap();
}

/// The database is deleted, replaced or cut off, or its log, while the daemon runs: nothing is acknowledged into nothing,
/// it is told once and shown, and the daemon lives.
#[test]
fn a_database_that_changes_under_the_daemon() {
    type Change = fn(&Path);
    let cases: [(Change, &str); 4] = [
        (delete, "ostler.db: the database was deleted"),
        (replace, "ostler.db: the database was replaced"),
        (cut_off, "ostler.db: the database was cut off"),
        (take_log, "ostler.db-wal: the database's log was deleted"),
    ];
    for (change, told) in cases {
        let mut d = boot_ready(Daemon::new().env("RUST_LOG", "debug"), "");
        for n in 0..20 {
            d.send("local:a", &format!("{n} {}", "x".repeat(20_000)));
        }
        let db = d.path("state/ostler.db");
        // The log is folded in, so that the file is longer than what is left of it.
        d.log.find(0, "a checkpoint", |l| l.contains("checkpoint: the write-ahead log"));
        d.send("local:a", "hello");
        change(&db);
        if told.contains("deleted") || told.contains("replaced") {
            d.wait_log(told);
        }
        for _ in 0..3 {
            let e = d.try_post("local:a", "hello", Some("x")).unwrap_err();
            assert_eq!((e.status, e.code.as_str()), (503, "store_unavailable"), "{e}");
            assert!(e.message.contains(told), "{e}");
        }
        let reason = not_ready(&d);
        assert!(reason.contains(told), "{reason}");
        assert_eq!(d.get("/healthz"), json!({ "ok": true }));
        let backup = d.cli(&["backup", d.path("copy.db").to_str().unwrap()]);
        assert!(backup.code != 0 && backup.err.contains(told), "{backup:?}");
        assert!(!d.path("copy.db").exists());
        // Readers get what is there, or an error; never the end of the process.
        let _ = d.client().get("/v1/sessions/local%3Aa/transcript?limit=1000");
        let _ = d.client().get("/v1/sessions");
        let lines = d.log.all();
        assert_eq!(lines.iter().filter(|l| l.contains("messages are refused")).count(), 1, "{lines:#?}");
        if told.contains("ostler.db: the database was deleted") {
            assert!(!db.exists(), "nobody made another");
            let doctor = d.cli(&["doctor", "--state-dir", d.path("state").to_str().unwrap()]);
            assert!(doctor.code == 1 && doctor.out.contains("it is gone, though a daemon"), "{doctor:?}");
            std::fs::rename(db.with_extension("away"), &db).unwrap();
            assert_eq!(d.get("/readyz")["ready"], true, "it was put back");
            assert_eq!(d.post_id("local:a", "hello", "x")["duplicate"], false);
            assert_eq!(d.stop(), 0);
        } else {
            d.sigterm();
            assert_eq!(d.ended().code(), Some(1), "{told}");
        }
    }
}

/// The lock's file is removed by hand: it is created again within a moment, and no second daemon starts beside.
#[test]
fn a_lock_that_is_removed_is_made_anew() {
    let mut d = boot_ready(Daemon::new(), "");
    let lock = d.path("state/lock");
    std::fs::remove_file(&lock).unwrap();
    d.wait_log("the lock was removed or replaced while the daemon runs; it is created again");
    assert_eq!(std::fs::read_to_string(&lock).unwrap().trim(), d.pid().to_string());
    let second = d.refuses();
    assert_eq!(second.code, 69, "{second:?}");
    assert!(second.err.contains(&format!("another ostler (pid {})", d.pid())), "{second:?}");
    assert_eq!(d.send("local:a", "hello"), "echo: hello");
    assert_eq!(d.stop(), 0);
}
