//! Databases as years of use would leave them, written by SQL alone.

use std::ops::Range;
use std::path::Path;

use rusqlite::{Connection, params};

use crate::rig::TEXT;

/// Opens a database that no daemon has open, to be filled at speed.
pub fn open(path: &Path) -> Connection {
    let conn = Connection::open(path).expect("a database");
    conn.execute_batch(
        "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-400000; PRAGMA temp_store=MEMORY; PRAGMA locking_mode=EXCLUSIVE",
    )
    .expect("settings");
    conn
}

/// Every following row `i` of a range.
const ROWS: &str = "WITH RECURSIVE n(i) AS (SELECT ?1 UNION ALL SELECT i+1 FROM n WHERE i+1<?2)";

fn insert(conn: &Connection, range: &Range<usize>, into: &str) {
    if range.is_empty() {
        return;
    }
    conn.execute(&format!("{ROWS} {into}"), params![range.start as i64, range.end as i64]).expect("rows");
}

/// Parked sessions with a whole turn each; the event stream has been pruned.
pub fn sessions(path: &Path, n: usize) {
    let conn = open(path);
    let range = 1..n + 1;
    conn.execute_batch("BEGIN").expect("begun");
    insert(
        &conn,
        &range,
        "INSERT INTO sessions (sid, id, key, status, start_reason, agent, epoch, created_at, active_at, turns, messages)
         SELECT i, printf('%08x-0000-7000-8000-%012x', i, 1), 'bench:' || i, 'open', 'new', 'default', 1, 7, 9, 1, 1 FROM n",
    );
    insert(
        &conn,
        &range,
        "INSERT INTO activations (sid, epoch, bid, start_reason, agent, cwd, opened_at, turns_before, messages_before, closed_at,
         end_reason) SELECT i, 1, 1, 'new', 'default', '/var/lib/ostler/work/bench%3A' || i, 7, 0, 0, 9, 'parked' FROM n",
    );
    turns(&conn, &range, "i");
    conn.execute_batch("COMMIT").expect("committed");
    close(conn);
}

/// Completed turns and their messages and entries, in the session that an expression names.
fn turns(conn: &Connection, range: &Range<usize>, sid: &str) {
    insert(
        conn,
        range,
        &format!(
            "INSERT INTO turns (tid, id, sid, state, messages, epoch, created_at, started_at, ended_at, pieces, sealed)
             SELECT i, printf('%08x-0000-7000-8000-%012x', i, 2), {sid}, 'completed', 1, 1, 7, 8, 9, 1, 7 FROM n"
        ),
    );
    insert(
        conn,
        range,
        &format!(
            "INSERT INTO messages (mid, id, key, sid, tid, text, at)
             SELECT i, printf('%08x-0000-7000-8000-%012x', i, 3), 'bench:' || {sid}, {sid}, i, '{TEXT}', 7 FROM n"
        ),
    );
    insert(
        conn,
        range,
        &format!("INSERT INTO entries (seq, sid, tid, role, mid, at) SELECT 2*i, {sid}, i, 'user', i, 8 FROM n"),
    );
    insert(
        conn,
        range,
        &format!(
            "INSERT INTO entries (seq, sid, tid, role, text, at) SELECT 2*i+1, {sid}, i, 'agent', 'echo: {TEXT}', 9 FROM n"
        ),
    );
}

/// Back to how the daemon has it.
fn close(conn: Connection) {
    conn.execute_batch("PRAGMA locking_mode=NORMAL; PRAGMA journal_mode=WAL").expect("settings");
    let _: i64 = conn.query_row("SELECT count(*) FROM boots", [], |r| r.get(0)).expect("a count");
    conn.close().expect("closed");
}

/// More messages with their turns, transcript and events: half of them in session 1, the others over all `sessions`,
/// which exist.
pub fn messages(path: &Path, range: Range<usize>, sessions: usize) {
    let conn = open(path);
    let sid = format!("iif(i%2=0, 1, 1+(i/2)%{sessions})");
    // The daemon's own rows stand after the last, so what is new goes after them.
    let next = |table: &str, column: &str| -> i64 {
        conn.query_row(&format!("SELECT coalesce(max({column}), 0)+1 FROM {table}"), [], |r| r.get(0))
            .expect("a number")
    };
    let first =
        [next("turns", "tid"), next("messages", "mid"), next("entries", "seq") / 2 + 1].into_iter().max().unwrap_or(1);
    let first = usize::try_from(first).unwrap_or(1);
    let range = first..first + range.len();
    conn.execute_batch("BEGIN").expect("begun");
    turns(&conn, &range, &sid);
    for (kind, data) in [
        ("turn_start", "{\"continues\":null,\"resumed\":false}".to_owned()),
        ("text", format!("{{\"text\":\"echo: {TEXT}\"}}")),
        ("turn_end", "{\"outcome\":\"completed\",\"error\":null}".to_owned()),
    ] {
        let now = ostler::clock::now();
        insert(
            &conn,
            &range,
            &format!(
                "INSERT INTO events (key, session_id, turn_id, kind, data, at)
                 SELECT 'bench:' || {sid}, printf('%08x-0000-7000-8000-%012x', {sid}, 1),
                 printf('%08x-0000-7000-8000-%012x', i, 2), '{kind}', '{data}', {now} FROM n"
            ),
        );
    }
    conn.execute_batch("COMMIT").expect("committed");
    close(conn);
}
