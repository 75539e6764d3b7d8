//! What a database must show, whatever happened to the daemon that wrote it.

use rusqlite::Connection;

/// Each: what is wrong, and the rows for which it is.
const ALWAYS: &[(&str, &str)] = &[
    ("a message without its turn", "SELECT id FROM messages WHERE tid NOT IN (SELECT tid FROM turns)"),
    (
        "a message in another session than its turn",
        "SELECT m.id FROM messages m JOIN turns t ON t.tid=m.tid WHERE m.sid<>t.sid",
    ),
    (
        "a turn that does not know how many messages it has",
        "SELECT id FROM turns t WHERE messages<>(SELECT count(*) FROM messages m WHERE m.tid=t.tid)",
    ),
    (
        "a turn without a message that continues nothing and that no agent began",
        "SELECT id FROM turns t WHERE messages=0 AND continues IS NULL AND NOT EXISTS (
           SELECT 1 FROM events e WHERE e.turn_id=t.id AND e.kind='turn_start' AND json_extract(e.data, '$.origin')='agent')",
    ),
    (
        "a session that counts its messages wrongly",
        "SELECT id FROM sessions s WHERE messages<>(SELECT count(*) FROM messages m WHERE m.sid=s.sid)",
    ),
    (
        "a chain of turns with two completed",
        "WITH RECURSIVE chain(root, tid) AS (
           SELECT tid, tid FROM turns WHERE continues IS NULL
           UNION ALL SELECT c.root, t.tid FROM chain c JOIN turns t ON t.continues=c.tid)
         SELECT root FROM chain JOIN turns t ON t.tid=chain.tid WHERE t.state='completed' GROUP BY root HAVING count(*)>1",
    ),
    (
        "a continuation of what was not interrupted, or that is not named by it",
        "SELECT t.id FROM turns t JOIN turns o ON o.tid=t.continues
         WHERE o.state<>'interrupted' OR o.continued_by IS NOT t.tid",
    ),
    ("a turn that goes on twice", "SELECT continues FROM turns WHERE continues IS NOT NULL GROUP BY 1 HAVING count(*)>1"),
    ("two current sessions of a key", "SELECT key FROM sessions WHERE status='open' AND hidden=0 GROUP BY key HAVING count(*)>1"),
    ("a gap among epochs", "SELECT sid FROM activations GROUP BY sid HAVING count(*)<>max(epoch) OR min(epoch)<>1"),
    (
        "a session that counts its activations wrongly",
        "SELECT id FROM sessions s WHERE epoch<>(SELECT count(*) FROM activations a WHERE a.sid=s.sid)",
    ),
    (
        "an activation without exactly one session_start",
        "SELECT a.sid, a.epoch FROM activations a JOIN sessions s ON s.sid=a.sid WHERE 1<>(
           SELECT count(*) FROM events e WHERE e.session_id=s.id AND e.kind='session_start'
           AND json_extract(e.data, '$.epoch')=a.epoch)",
    ),
    (
        "an activation with other than one session_end when closed, none when open",
        "SELECT a.sid, a.epoch FROM activations a JOIN sessions s ON s.sid=a.sid WHERE (a.closed_at IS NOT NULL)<>(
           SELECT count(*) FROM events e WHERE e.session_id=s.id AND e.kind='session_end'
           AND json_extract(e.data, '$.epoch')=a.epoch)",
    ),
    (
        "a session that said other than once that it is over, or said it alive",
        "SELECT id FROM sessions s WHERE (status='ended')<>(
           SELECT count(*) FROM events e WHERE e.session_id=s.id AND e.kind='session_closed')",
    ),
    ("an ended session with an open activation", "SELECT s.id FROM sessions s JOIN activations a ON a.sid=s.sid
         WHERE s.status<>'open' AND a.closed_at IS NULL"),
    (
        "an activation of an earlier boot that is open, and whose agent is not kept",
        "SELECT sid, epoch FROM activations a WHERE closed_at IS NULL AND bid<(SELECT max(bid) FROM boots)
         AND EXISTS (SELECT 1 FROM boots WHERE ended_at IS NULL AND bid=(SELECT max(bid) FROM boots))
         AND NOT EXISTS (SELECT 1 FROM kept k WHERE k.sid=a.sid AND k.epoch=a.epoch)",
    ),
    (
        "an activation of a boot that ended in order that is open, and whose agent was not kept",
        "SELECT a.sid, a.epoch FROM activations a JOIN boots b ON b.bid=a.bid WHERE b.ended_at IS NOT NULL
         AND b.clean=1 AND a.closed_at IS NULL AND NOT (EXISTS (SELECT 1 FROM meta WHERE name='keeps ' || b.bid)
           AND EXISTS (SELECT 1 FROM kept k WHERE k.sid=a.sid AND k.epoch=a.epoch))",
    ),
    ("a turn that runs without an activation", "SELECT id FROM turns t WHERE state='running' AND NOT EXISTS (
         SELECT 1 FROM activations a WHERE a.sid=t.sid AND a.epoch=t.epoch AND a.closed_at IS NULL)"),
    (
        "a turn with other than one turn_end when over, none before",
        "SELECT id FROM turns t WHERE (state NOT IN ('queued', 'running'))<>(
           SELECT count(*) FROM events e WHERE e.turn_id=t.id AND e.kind='turn_end')",
    ),
    (
        "a turn with other than one turn_start when begun, none before",
        "SELECT id FROM turns t WHERE (started_at IS NOT NULL)<>(
           SELECT count(*) FROM events e WHERE e.turn_id=t.id AND e.kind='turn_start')",
    ),
    (
        "events of a turn before its start or after its end",
        "SELECT e.turn_id, e.seq FROM events e JOIN events b ON b.turn_id=e.turn_id AND b.kind='turn_start'
         LEFT JOIN events f ON f.turn_id=e.turn_id AND f.kind='turn_end'
         WHERE e.kind NOT IN ('notice', 'turn_start', 'turn_end') AND (e.seq<b.seq OR e.seq>f.seq)",
    ),
    (
        "a message of a turn that began that is not in the transcript once",
        "SELECT m.id FROM messages m JOIN turns t ON t.tid=m.tid JOIN sessions s ON s.sid=m.sid
         WHERE t.started_at IS NOT NULL AND s.hidden=0
         AND 1<>(SELECT count(*) FROM entries e WHERE e.mid=m.mid)",
    ),
    (
        "an answer that differs between the stream and the transcript",
        "SELECT t.id FROM turns t JOIN sessions s ON s.sid=t.sid
         WHERE t.state NOT IN ('queued', 'running') AND s.hidden=0 AND
         coalesce((SELECT group_concat(json_extract(data, '$.text'), '') FROM
           (SELECT data FROM events e WHERE e.key=s.key AND e.turn_id=t.id AND e.kind='text' ORDER BY seq)), '')<>
         coalesce((SELECT group_concat(text, '') FROM
           (SELECT text FROM entries n WHERE n.sid=t.sid AND n.tid=t.tid AND n.role='agent' ORDER BY seq)), '')",
    ),
    (
        "turns of a session that did not begin in the order in which they came",
        "SELECT a.id FROM turns a JOIN turns b ON b.sid=a.sid AND b.tid>a.tid
         WHERE a.messages>0 AND b.messages>0 AND a.state='queued' AND b.started_at IS NOT NULL",
    ),
    (
        "a mark that waits for a turn that is not interrupted",
        "SELECT s.id FROM sessions s JOIN turns t ON t.tid=s.cut_turn WHERE t.state<>'interrupted'",
    ),
    ("two shims of a session", "SELECT sid FROM shims GROUP BY sid HAVING count(*)>1"),
    ("a shim without its secret", "SELECT name FROM shims WHERE length(token)<>32"),
    ("a frame for nobody", "SELECT name FROM frames WHERE name NOT IN (SELECT name FROM shims)"),
    (
        "a frame beyond the last that was decided",
        "SELECT f.name FROM frames f JOIN shims s ON s.name=f.name WHERE f.number>s.frames",
    ),
    (
        "a prompt beyond the last frame that was decided",
        "SELECT k.sid FROM kept k JOIN shims s ON s.sid=k.sid AND s.epoch=k.epoch JOIN turns t ON t.tid=k.tid
         WHERE k.frame>s.frames AND t.state='running'",
    ),
    (
        "a kept agent of no open activation",
        "SELECT sid FROM kept k WHERE NOT EXISTS (
           SELECT 1 FROM activations a WHERE a.sid=k.sid AND a.epoch=k.epoch AND a.closed_at IS NULL)",
    ),
    (
        "an open permission of a turn that does not run",
        "SELECT request_id FROM permissions WHERE tid NOT IN (SELECT tid FROM turns WHERE state='running')",
    ),
    (
        "a permission that was asked or settled twice",
        "SELECT json_extract(data, '$.request_id') FROM events WHERE kind='permission'
         GROUP BY 1, json_extract(data, '$.state') HAVING count(*)>1",
    ),
    (
        "a turn that completed though a permission of it was not settled",
        "SELECT t.id FROM turns t JOIN events e ON e.turn_id=t.id AND e.kind='permission' WHERE t.state='completed'
         AND json_extract(e.data, '$.state')='open' AND NOT EXISTS (
           SELECT 1 FROM events r WHERE r.turn_id=t.id AND r.kind='permission' AND json_extract(r.data, '$.state')='resolved'
           AND json_extract(r.data, '$.request_id')=json_extract(e.data, '$.request_id'))",
    ),
    ("a delivery of nothing", "SELECT did FROM deliveries WHERE jid NOT IN (SELECT jid FROM journal)"),
    (
        "a journalled end or start that is there twice",
        "SELECT sid FROM journal GROUP BY sid, event, json_extract(fields, '$.epoch') HAVING count(*)>1",
    ),
];

/// The large tables, with the order that these questions want: without it the time grows with the square of their length.
const COPIES: &str = "
    CREATE TEMP TABLE events AS SELECT * FROM main.events;
    CREATE INDEX temp.events_of_turn ON events (turn_id, kind);
    CREATE INDEX temp.events_of_session ON events (session_id, kind);
    CREATE TEMP TABLE entries AS SELECT * FROM main.entries;
    CREATE INDEX temp.entries_of_message ON entries (mid);
    CREATE INDEX temp.entries_of_turn ON entries (tid);";

/// These too, after a stop in order.
const CLOSED: &[(&str, &str)] = &[
    ("a turn that still runs", "SELECT id FROM turns WHERE state='running'"),
    ("an open activation", "SELECT sid, epoch FROM activations WHERE closed_at IS NULL"),
    ("a boot that does not say how it ended", "SELECT boot_id FROM boots WHERE ended_at IS NULL OR clean IS NULL"),
    (
        "a newest boot without a report",
        "SELECT boot_id FROM boots WHERE bid=(SELECT max(bid) FROM boots) AND report IS NULL",
    ),
];

/// Fails with the first that does not hold.
#[track_caller]
pub fn check(db: &Connection, closed: bool) {
    if let Err(what) = holds(db, closed) {
        panic!("{what}");
    }
}

/// The first that does not hold, if one does not.
pub fn holds(db: &Connection, closed: bool) -> Result<(), String> {
    let sound: String = db.query_row("PRAGMA integrity_check", [], |r| r.get(0)).map_err(|e| e.to_string())?;
    if sound != "ok" {
        return Err(format!("the database is not sound: {sound}"));
    }
    db.execute_batch(COPIES).map_err(|e| e.to_string())?;
    for (what, sql) in ALWAYS.iter().chain(if closed { CLOSED } else { &[] }) {
        let mut statement = db.prepare(sql).map_err(|e| format!("{what}: {e}"))?;
        let rows: Result<Vec<String>, _> =
            statement.query_map([], |r| Ok(format!("{:?}", r.get_ref(0)?))).and_then(Iterator::collect);
        let rows = rows.map_err(|e| format!("{what}: {e}"))?;
        if !rows.is_empty() {
            return Err(format!("the database has {what}: {rows:?}"));
        }
    }
    Ok(())
}
