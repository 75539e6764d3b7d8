//! The bare limit of what the store does: the same tables, settings and rows, written by nothing but SQLite.

use std::path::Path;
use std::time::Instant;

use ostler::store::Store;
use rusqlite::{Connection, params};

use crate::rig::TEXT;

/// A database with the tables of the daemon's, made by the daemon's own schema, and sessions to write into.
pub fn database(dir: &Path, sessions: usize) -> Connection {
    let path = dir.join("bare.db");
    let store = Store::open(&path).expect("a store");
    store.close(Instant::now() + std::time::Duration::from_secs(10)).expect("closed");
    let conn = open(&path);
    conn.execute_batch("BEGIN").expect("begun");
    for sid in 1..=sessions {
        conn.execute(
            "INSERT INTO sessions (sid, id, key, status, start_reason, agent, created_at, active_at)
             VALUES (?1, ?2, ?3, 'open', 'new', 'default', 0, 0)",
            params![sid as i64, id(), format!("bench:{sid}")],
        )
        .expect("a session");
    }
    conn.execute_batch("COMMIT").expect("committed");
    conn
}

/// Opens with the settings of the daemon's writer.
pub fn open(path: &Path) -> Connection {
    let conn = Connection::open(path).expect("a database");
    conn.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=4000;
         PRAGMA journal_size_limit=16777216; PRAGMA cache_size=-8192; PRAGMA temp_store=MEMORY;",
    )
    .expect("settings");
    conn.set_prepared_statement_cache_capacity(64);
    conn
}

pub fn id() -> String {
    uuid::Uuid::now_v7().to_string()
}

pub fn run(conn: &Connection, sql: &str, params: impl rusqlite::Params) {
    conn.prepare_cached(sql).and_then(|mut s| s.execute(params)).expect("a row");
}

/// The rows of one accept. Its turn.
pub fn accept(conn: &Connection, sid: i64) -> i64 {
    run(
        conn,
        "INSERT INTO turns (id, sid, state, messages, created_at) VALUES (?1, ?2, 'queued', 1, 7)",
        params![id(), sid],
    );
    let tid = conn.last_insert_rowid();
    run(
        conn,
        "INSERT INTO messages (id, key, sid, tid, text, at) VALUES (?1, ?2, ?3, ?4, ?5, 7)",
        params![id(), format!("bench:{sid}"), sid, tid, TEXT],
    );
    run(conn, "UPDATE sessions SET messages=messages+1, queued=queued+1, active_at=8 WHERE sid=?1", [sid]);
    tid
}

/// The rows of one turn from its beginning to its end: what an echo says is one piece.
pub fn turn(conn: &Connection, sid: i64, tid: i64) {
    let (key, session, turn) =
        (format!("bench:{sid}"), "0197b6a0-0000-7000-8000-000000000000", "0197b6a0-0000-7000-8000-000000000001");
    run(conn, "UPDATE turns SET state='running', epoch=1, started_at=8 WHERE tid=?1", [tid]);
    run(conn, "UPDATE sessions SET turns=turns+1, queued=queued-1 WHERE sid=?1", [sid]);
    let event = |kind: &str, data: String| {
        run(
            conn,
            "INSERT INTO events (key, session_id, turn_id, kind, data, at) VALUES (?1, ?2, ?3, ?4, ?5, 8)",
            params![key, session, turn, kind, data],
        );
        conn.last_insert_rowid()
    };
    event("turn_start", "{\"continues\":null,\"resumed\":false}".to_owned());
    run(
        conn,
        "INSERT INTO entries (sid, tid, role, mid, at) SELECT ?1, ?2, 'user', mid, 8 FROM messages WHERE tid=?2",
        params![sid, tid],
    );
    let sealed = event("text", format!("{{\"text\":\"echo: {TEXT}\"}}"));
    run(
        conn,
        "INSERT INTO entries (sid, tid, role, text, at) VALUES (?1, ?2, 'agent', ?3, 8)",
        params![sid, tid, format!("echo: {TEXT}")],
    );
    run(conn, "UPDATE turns SET state='completed', ended_at=9, sealed=?2 WHERE tid=?1", params![tid, sealed]);
    run(conn, "UPDATE sessions SET active_at=9 WHERE sid=?1", [sid]);
    event("turn_end", "{\"outcome\":\"completed\",\"error\":null}".to_owned());
}

/// The rows of an activation's end: its own, the stream's event, the journal's, and one delivery.
pub fn end(conn: &Connection, (aid, sid): (i64, i64), key: &str, session: &str, reason: &str) -> i64 {
    run(conn, "UPDATE activations SET closed_at=9, end_reason=?2 WHERE aid=?1", params![aid, reason]);
    let fields = format!(
        "{{\"epoch\":1,\"reason\":\"{reason}\",\"final\":false,\"actor\":\"supervisor\",\"agent\":\"default\",\"cwd\":\"/tmp/a/state/work/{key}\",\
         \"started_at\":\"2026-11-25T12:00:00.000Z\",\"ended_at\":\"2026-11-25T12:00:00.000Z\",\"turns\":1,\"messages\":1,\
         \"previous_id\":null,\"next_id\":null,\"resume_pending\":null}}"
    );
    run(
        conn,
        "INSERT INTO events (key, session_id, turn_id, kind, data, at) VALUES (?1, ?2, NULL, 'session_end', ?3, 9)",
        params![key, session, fields],
    );
    run(
        conn,
        "INSERT INTO journal (event_id, event, key, session_id, sid, upto, fields, bid, at)
         VALUES (?1, 'session_end', ?2, ?3, ?4, 7, ?5, 1, 9)",
        params![id(), key, session, sid, fields],
    );
    let jid = conn.last_insert_rowid();
    run(conn, "INSERT INTO deliveries (jid, script, name, state) VALUES (?1, 'bench.lua', '1', 'pending')", [jid]);
    conn.last_insert_rowid()
}

/// The rows of a turn that a death cut off, and of its session's mark.
pub fn interrupt(conn: &Connection, (sid, tid): (i64, i64), key: &str, session: &str, turn: &str) {
    run(conn, "UPDATE turns SET state='interrupted', ended_at=9 WHERE tid=?1", [tid]);
    run(
        conn,
        "UPDATE sessions SET active_at=9, mark_reason='crash', marked_at=9, mark_boot=NULL, cut_turn=?2, unclean=1 WHERE sid=?1",
        params![sid, tid],
    );
    run(
        conn,
        "INSERT INTO events (key, session_id, turn_id, kind, data, at) VALUES (?1, ?2, ?3, 'turn_end', ?4, 9)",
        params![key, session, turn, "{\"outcome\":\"interrupted\",\"error\":null}"],
    );
}

/// An open activation: its row, its session's row, key and id, and the running turn's row and id.
pub struct Open {
    pub aid: i64,
    pub sid: i64,
    pub key: String,
    pub session: String,
    pub turn: Option<(i64, String)>,
}

/// All that are open.
pub fn open_activations(conn: &Connection) -> Vec<Open> {
    let mut statement = conn
        .prepare(
            "SELECT a.aid, s.sid, s.key, s.id, t.tid, t.id FROM activations a JOIN sessions s ON s.sid=a.sid
             LEFT JOIN turns t ON t.sid=a.sid AND t.state='running' WHERE a.closed_at IS NULL ORDER BY a.aid",
        )
        .expect("a statement");
    let rows = statement.query_map([], |r| {
        let turn: Option<i64> = r.get(4)?;
        let name: Option<String> = r.get(5)?;
        Ok(Open { aid: r.get(0)?, sid: r.get(1)?, key: r.get(2)?, session: r.get(3)?, turn: turn.zip(name) })
    });
    rows.expect("rows").collect::<Result<_, _>>().expect("rows")
}
