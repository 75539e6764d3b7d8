//! A start: exec to READY with an empty database, with one that holds much, and after a kill.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rusqlite::Connection;

use crate::rig::{self, ECHO, ENDS, Place};
use crate::table::{Goal, Scale, Table, median};
use crate::{bare, fill, stop};

/// An existing empty database.
pub fn empty(scale: Scale, table: &mut Table) {
    let place = Place::new(&rig::config(ECHO), None);
    place.start().stop();
    let (ours, bare) = starts(scale, &place);
    table.row("exec to READY, an existing empty database", "ms", ours, Some(bare), Goal::More(5.0));
}

/// Many parked sessions.
pub fn stored(scale: Scale, table: &mut Table) {
    for n in [scale.of(100_000, 100), scale.of(1_000_000, 1_000)] {
        let place = Place::new(&rig::config(ECHO), None);
        place.start().stop();
        fill::sessions(&place.database(), n);
        let (ours, bare) = starts(scale, &place);
        table.row(&format!("exec to READY, {n} stored sessions"), "ms", ours, Some(bare), Goal::More(20.0));
    }
}

fn starts(scale: Scale, place: &Place) -> (f64, f64) {
    let round = |_| {
        let daemon = place.start();
        let ours = millis(daemon.ready_after);
        daemon.stop();
        (ours, bare_start("open", &place.database()))
    };
    median((0..scale.of(15, 2)).map(round).collect())
}

fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// This program in a role that works on a database and then says READY.
fn bare_start(role: &str, database: &Path) -> f64 {
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.arg(format!("role:{role}")).arg(database);
    let (mut child, took) = rig::until_ready(command, dir.path());
    assert!(child.wait().expect("its end").success());
    millis(took)
}

/// The role: opens a database, no more.
pub fn bare_open(args: &[String]) {
    let conn = Connection::open(&args[0]).expect("a database");
    conn.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL").expect("settings");
    let _: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0)).expect("a count");
    rig::say_ready();
}

/// kill -9 in the middle of many turns, and the next boot.
pub fn killed(scale: Scale, table: &mut Table) {
    let n = scale.of(10_000, 100);
    let died = Place::new(&rig::config(stop::LONG), Some(ENDS));
    let daemon = died.start();
    daemon.message_all(0..n);
    stop::all_run(&daemon, n);
    daemon.kill();
    let round = |_| {
        let place = Place::new(&rig::config(stop::LONG), Some(ENDS));
        copy(&died, &place);
        let daemon = place.start();
        let ours = millis(daemon.ready_after);
        daemon.kill();
        copy(&died, &place);
        (ours, bare_start("recover", &place.database()))
    };
    let (ours, bare) = median((0..scale.of(5, 1)).map(round).collect());
    table.row(&format!("kill -9 to READY, {n} open activations"), "ms", ours, Some(bare), Goal::Times(2.0));
}

/// The database and its log, as a death left them.
fn copy(from: &Place, to: &Place) {
    let _ = std::fs::remove_dir_all(to.state());
    std::fs::create_dir(to.state()).expect("a directory");
    for name in ["ostler.db", "ostler.db-wal"] {
        std::fs::copy(from.state().join(name), to.state().join(name)).expect("a copy");
    }
}

/// The role: recovers the log, and writes the rows of a recovery in one transaction.
pub fn bare_recover(args: &[String]) {
    let conn = bare::open(Path::new(&args[0]));
    let all = bare::open_activations(&conn);
    conn.execute_batch("BEGIN IMMEDIATE").expect("begun");
    for a in &all {
        if let Some((tid, turn)) = &a.turn {
            bare::interrupt(&conn, (a.sid, *tid), &a.key, &a.session, turn);
        }
        bare::end(&conn, (a.aid, a.sid), &a.key, &a.session, "crash");
    }
    bare::run(&conn, "UPDATE boots SET ended_at=9, clean=0", []);
    conn.execute_batch("COMMIT").expect("committed");
    rig::say_ready();
}
