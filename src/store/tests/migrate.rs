//! A database of the last release is migrated, and everything in it can be read and goes on.

use rusqlite::Connection;

use super::*;
use crate::store::sqlite::schema::MIGRATIONS;

/// Made by the release with schema 1; see `fixtures/README.md`.
const RELEASED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/store/tests/fixtures/schema1.sqlite");

/// The database of the last release, in a directory of its own.
fn released() -> (tempfile::TempDir, PathBuf) {
    let dir = directory();
    let path = dir.path().join("ostler.db");
    std::fs::copy(RELEASED, &path).unwrap();
    (dir, path)
}

fn number(path: &std::path::Path, sql: &str) -> i64 {
    Connection::open(path).unwrap().query_row(sql, [], |r| r.get(0)).unwrap()
}

const TRIGGERS: &str = "SELECT count(*) FROM sqlite_schema WHERE type='trigger'";
const VERSION: &str = "SELECT user_version FROM pragma_user_version";

/// The store over it, some time later, before its first boot.
fn migrated((dir, path): (tempfile::TempDir, PathBuf)) -> Rig {
    let now = Arc::new(AtomicI64::new(T0 + 60_000));
    let store = open(&path, &now);
    Rig { store, now, path, boots: 10, _dir: dir }
}

#[test]
fn what_was_searched_or_counted_has_its_place_after_the_migration() {
    let (dir, path) = released();
    let own = |id: &str| format!("SELECT count(*) FROM turns WHERE id='0198-own-turn-{id}'");
    assert_eq!((number(&path, VERSION), number(&path, TRIGGERS)), (1, 4));
    assert_eq!(number(&path, &own("gone")), 1, "what the agent of a forgotten session began was left over");
    // The number of its session was given to another one since; nearly always it is not.
    let leftover = "UPDATE turns SET sid=99 WHERE id='0198-own-turn-gone'";
    Connection::open(&path).unwrap().execute_batch(leftover).unwrap();
    let rig = migrated((dir, path));
    assert_eq!((rig.number(VERSION), rig.number(TRIGGERS)), (3, 0));
    assert_eq!((rig.number(&own("gone")), rig.number(&own("one"))), (0, 1));
    assert_eq!(rig.number("SELECT count(*) FROM entries WHERE role='tool'"), 5);
    let unfilled = "SELECT count(*) FROM entries WHERE role='tool' AND (tool_call_id IS NULL OR tool_status IS NULL
         OR tool_call_id<>json_extract(detail, '$.tool_call_id') OR tool_status<>json_extract(detail, '$.status'))
         AND tid IN (SELECT tid FROM turns WHERE state<>'completed')";
    assert_eq!(rig.number(unfilled), 0);
    assert_eq!(rig.number("SELECT count(*) FROM meta WHERE name='queued'"), 0);
    assert_eq!((rig.store.counts().unwrap().queued, rig.number("SELECT sum(queued) FROM sessions")), (5, 5));
    // And what waits in all still counts against the limit.
    let mut full = rig.accept("local:new", "one too many");
    full.limits.queue_total = 5;
    assert_eq!(refused(rig.store.accept_message(full)), Refusal::Overloaded);
}

#[test]
fn everything_of_the_last_release_is_read_and_goes_on() {
    let mut rig = migrated(released());
    let found = rig.boot(3);
    assert_eq!((found.activations, found.interrupted, found.suspended), (1, 1, 0), "{found:?}");
    let exam = examine(&rig.path).unwrap();
    assert_eq!((exam.sound.as_str(), exam.schema, exam.damaged), ("ok", 3, Vec::new()));
    let all = |states: &[&str]| {
        let states = states.iter().map(|s| (*s).to_owned()).collect();
        rig.store.sessions(&SessionFilter { states, key: None, limit: 100, before: None }).unwrap().items
    };
    let keys = |of: &[SessionView]| of.iter().map(|s| s.key.clone()).collect::<Vec<_>>();
    assert_eq!(keys(&all(&[])), ["local:four", "local:three", "local:two", "local:one"]);
    assert_eq!(
        (keys(&all(&["ended"])), keys(&all(&["suspended"]))),
        (vec!["local:one".into()], vec!["local:two".into()])
    );
    let one = rig.transcript(&all(&["ended"])[0].id);
    assert_eq!(
        one,
        [
            "user: first",
            "agent: I look. ",
            "tool: Tool t1",
            "tool: Tool t2",
            "agent: Found it.",
            "agent: One more thing."
        ]
    );
    let ends: Vec<String> = rig.events("local:one", 0).into_iter().filter(|e| e.starts_with("turn_end")).collect();
    assert_eq!(ends, ["turn_end:completed", "turn_end:completed"]);
    let duplicate = Accept { client_id: Some("id-1".into()), ..rig.accept("local:one", "first") };
    assert!(rig.store.accept_message(duplicate).unwrap().duplicate);
    assert_eq!(rig.store.kv_get("name").unwrap(), Some(serde_json::json!({ "x": 1 })));
    assert_eq!(rig.store.timer_last("timer").unwrap(), Some(T0));
    assert_eq!(rig.store.journal_counts().unwrap().failed, 1);
    assert!(!rig.store.pending_deliveries(0, 100).unwrap().is_empty());
    // What was cut off goes on, and says which tool was left open.
    for (key, tool) in [("local:two", "Tool t1"), ("local:four", "Tool t2")] {
        let sid = match key {
            "local:two" => rig.store.resume(Target::Id(all(&["suspended"])[0].id.clone()), ACTOR).unwrap().sid,
            _ => rig.store.session(&Target::Key(key.into())).unwrap().sid,
        };
        let epoch = rig.open(sid);
        let begun = rig.store.begin_turn(Begin { auto_continue: true, ..rig.next_turn(sid, epoch) }).unwrap().unwrap();
        assert!(begun.prompt.contains(tool), "{key}: {}", begun.prompt);
        // A tool is one entry, however often it is told of.
        for (n, status) in [(1, "pending"), (2, "completed")] {
            let (id, title, kind) = ("t9".into(), "Tool t9".into(), "execute".into());
            let tool = Item::Tool { id, title, kind, status: status.into(), detail: Value::Null };
            rig.store.append(begun.turn, batch(n, vec![tool])).unwrap();
        }
        let state =
            format!("SELECT group_concat(tool_status) FROM entries WHERE tid={} AND role='tool'", begun.turn.tid);
        assert_eq!(rig.text(&state), "completed");
        rig.finish(begun.turn, Outcome::Completed);
    }
    assert_eq!(rig.store.counts().unwrap().queued, rig.number("SELECT sum(queued) FROM sessions"));
}

/// One spoilt row is no reason to serve nobody.
#[test]
fn damaged_rows_do_not_hold_up_a_migration() {
    // An index of that schema let no such detail in.
    for (what, damage) in super::damage::DAMAGE.iter().filter(|(_, damage)| !damage.contains("detail='{'")) {
        let (dir, path) = released();
        let conn = Connection::open(&path).unwrap();
        let four = "SELECT sid, id FROM sessions WHERE key='local:four'";
        let (sid, id): (i64, String) = conn.query_row(four, [], |r| Ok((r.get(0)?, r.get(1)?))).unwrap();
        drop(conn);
        super::damage::spoil_file(&path, damage, sid, &id);
        let mut rig = migrated((dir, path));
        assert_eq!((rig.number(VERSION), rig.number(TRIGGERS)), (3, 0), "{what}");
        rig.boot(3);
        let next = rig.accept("local:beside", "another one");
        rig.store.accept_message(next).unwrap();
    }
}

/// What a process leaves that dies in the middle of a migration: the file, and a log without a commit.
#[test]
fn a_death_in_the_migration_changes_nothing() {
    let (dir, path) = released();
    let conn = Connection::open(&path).unwrap();
    conn.execute_batch("PRAGMA journal_mode=WAL; PRAGMA cache_size=2; PRAGMA cache_spill=ON; BEGIN IMMEDIATE;")
        .unwrap();
    conn.execute_batch(MIGRATIONS[1]).unwrap();
    conn.execute_batch("PRAGMA user_version=2").unwrap();
    let left = directory();
    for name in ["ostler.db", "ostler.db-wal"] {
        std::fs::copy(dir.path().join(name), left.path().join(name)).unwrap();
    }
    drop(conn);
    let path = left.path().join("ostler.db");
    assert_eq!((number(&path, VERSION), number(&path, TRIGGERS)), (1, 4));
    let rig = migrated((left, path));
    assert_eq!((rig.number(VERSION), rig.number(TRIGGERS)), (3, 0));
}

#[test]
fn a_migration_that_cannot_be_done_is_not_done_by_half() {
    let (dir, path) = released();
    Connection::open(&path).unwrap().execute_batch("CREATE INDEX turns_own ON timers(last_due)").unwrap();
    let refused = Store::open(&path).unwrap_err();
    assert!(refused.to_string().contains("turns_own"), "{refused}");
    assert_eq!((number(&path, VERSION), number(&path, TRIGGERS)), (1, 4));
    assert_eq!(number(&path, "SELECT value FROM meta WHERE name='queued'"), 5);
    Connection::open(&path).unwrap().execute_batch("DROP INDEX turns_own").unwrap();
    assert_eq!(migrated((dir, path)).number(VERSION), 3);
}

#[test]
fn of_several_open_sessions_of_a_key_the_newest_stays_and_none_is_lost() {
    let (dir, path) = released();
    Connection::open(&path)
        .unwrap()
        .execute_batch(
            "INSERT INTO sessions (id, key, status, start_reason, agent, created_at, active_at)
             VALUES ('newer', 'local:three', 'open', 'new', 'agent', 7, 7)",
        )
        .unwrap();
    let mut rig = migrated((dir, path));
    rig.boot(3);
    let key = Target::Key("local:three".into());
    assert_eq!(rig.store.session(&key).unwrap().id, "newer");
    let resumed = rig.store.resume(key.clone(), ACTOR).unwrap();
    assert_eq!(rig.store.session(&key).unwrap().id, resumed.session_id);
    assert_ne!(resumed.session_id, "newer");
    assert!(rig.store.peek_turn(resumed.sid).unwrap().unwrap().1.contains("one"), "its messages wait in it");
    let twice = "INSERT INTO sessions (id, key, status, start_reason, agent, created_at, active_at)
         VALUES ('twice', 'local:three', 'open', 'new', 'agent', 7, 7)";
    assert!(rig.store.write("test", move |tx| Ok(tx.run(twice, sql::params![])?)).is_err(), "a key has one");
}
