//! What a 202 means: ids, queues, limits, and messages from many at once.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use ureq::http::Method;

use crate::daemon::{Daemon, PATIENCE, fake};
use ostler::client::session_path;

/// Checklist 41. The same id again is the same turn, run once, whatever happened in between; other text under it is an error.
#[test]
fn an_id_is_accepted_once() {
    let mut d = Daemon::new().start();
    let first = d.post_id("local:a", "hello", "id-1");
    let again = d.post_id("local:a", "hello", "id-1");
    assert_eq!(again["duplicate"], true);
    for field in ["turn_id", "message_id", "session_id"] {
        assert_eq!(first[field], again[field], "{field}");
    }
    let other = json!({ "text": "other", "id": "id-1" });
    let path = session_path("local:a", "/messages");
    assert_eq!(d.refusal(Method::POST, &path, Some(&other)), (422, "id_reused".into()));
    // Another key has ids of its own.
    assert_eq!(d.post_id("local:b", "other", "id-1")["duplicate"], false);
    d.act("local:a", "reset");
    assert_eq!(d.post_id("local:a", "hello", "id-1")["turn_id"], first["turn_id"]);
    d.restart();
    assert_eq!(d.post_id("local:a", "hello", "id-1")["turn_id"], first["turn_id"]);
    d.kill9();
    d.boot();
    assert_eq!(d.post_id("local:a", "hello", "id-1")["turn_id"], first["turn_id"]);
    assert_eq!(d.refusal(Method::POST, &path, Some(&other)), (422, "id_reused".into()));
    assert_eq!(d.stop(), 0);
    let runs: i64 = d.sql("SELECT count(*) FROM turns t JOIN messages m ON m.tid=t.tid WHERE m.key='local:a'");
    assert_eq!(runs, 1);
}

/// A 202 follows its commit: whoever has one finds the message in the file, whatever the daemon does from then on.
#[test]
fn a_202_follows_its_commit() {
    let mut d = Daemon::new().start();
    let file = d.db();
    std::thread::scope(|scope| {
        for client in 0..4 {
            let (d, path) = (&d, file.path().unwrap().to_owned());
            scope.spawn(move || {
                let file = rusqlite::Connection::open(path).unwrap();
                let mut look = file.prepare("SELECT count(*) FROM messages WHERE id=?1").unwrap();
                for n in 0..50 {
                    let accepted = d.post(&format!("local:{client}"), &n.to_string());
                    let id = accepted["message_id"].as_str().unwrap();
                    assert_eq!(look.query_row([id], |r| r.get::<_, i64>(0)).unwrap(), 1, "{accepted}");
                }
            });
        }
    });
    assert_eq!(file.query_row("PRAGMA journal_mode", [], |r| r.get::<_, String>(0)).unwrap(), "wal");
    drop(file);
    d.kill9();
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM messages"), 200);
}

/// A client that follows a duplicate is given what the turn said, from its beginning.
#[test]
fn a_duplicate_can_be_followed() {
    let d = Daemon::new().start();
    let body = json!({ "text": "hello", "id": "x" });
    let first = d.turn_body("local:a", &body);
    let again = d.turn_body("local:a", &body);
    assert_eq!((again.id(), again.text()), (first.id(), first.text()));
    assert_eq!((first.outcome(), again.outcome()), ("completed", "completed"));
    let ids = |t: &crate::daemon::Turn| t.events.iter().map(|e| e.id).collect::<Vec<_>>();
    assert_eq!(ids(&first), ids(&again));
}

/// An id has 1 to 128 bytes.
#[test]
fn ids_have_a_length() {
    let d = Daemon::new().start();
    let path = session_path("local:a", "/messages");
    for id in ["".to_owned(), "x".repeat(129)] {
        let body = json!({ "text": "hello", "id": id });
        assert_eq!(d.refusal(Method::POST, &path, Some(&body)), (400, "invalid_parameter".into()));
    }
    assert_eq!(d.post_id("local:a", "hello", &"x".repeat(128))["duplicate"], false);
}

/// Checklist 41, 42. Beyond `queue_limit` the sender is told; a duplicate is answered also then; nothing that was accepted is lost.
#[test]
fn a_full_queue_is_told() {
    let mut d = Daemon::new().config(&format!("[sessions]\nqueue_limit = 3\n{}", fake(&[], ""))).start();
    let mut gate = d.gate("gate");
    let mut events = d.events("local:a");
    d.post("local:a", &format!("wait-file {}; say first", gate.path.display()));
    events.until("turn_start");
    let queued: Vec<Value> = (0..3).map(|n| d.post_id("local:a", &format!("say {n}"), &format!("id-{n}"))).collect();
    assert_eq!(queued.iter().map(|q| q["queued"].as_i64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
    let e = d.try_post("local:a", "say 3", None).unwrap_err();
    assert_eq!((e.status, e.code.as_str(), e.retry_after.is_some()), (429, "queue_full", true));
    let again = d.post_id("local:a", "say 1", "id-1");
    assert_eq!((&again["duplicate"], &again["turn_id"]), (&json!(true), &queued[1]["turn_id"]));
    // Other keys have queues of their own.
    assert_eq!(d.send("local:b", "say x"), "x");
    gate.open();
    for _ in 0..4 {
        events.until("turn_end");
    }
    let answers: Vec<_> = d.said("local:a").into_iter().filter(|l| l.starts_with("agent")).collect();
    assert_eq!(answers, ["agent: first", "agent: 0", "agent: 1", "agent: 2"]);
    assert_eq!(d.stop(), 0);
}

/// Beyond `queue_total` the whole daemon says so.
#[test]
fn too_much_in_all_is_told() {
    let mut d = Daemon::new().config("[sessions]\nqueue_total = 2\n").start();
    d.client().post("/v1/hold", None).unwrap();
    d.post("local:a", "1");
    d.post("local:b", "2");
    let e = d.try_post("local:c", "3", None).unwrap_err();
    assert_eq!((e.status, e.code.as_str(), e.retry_after.is_some()), (503, "overloaded", true));
    let mut events = d.events("local:b");
    d.client().post("/v1/release", None).unwrap();
    events.until("turn_end");
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM messages"), 2);
}

/// Many clients on as many keys at once: each message has its own answer, and nobody another's.
#[test]
fn many_clients_on_many_keys() {
    let mut d = Daemon::new().start();
    std::thread::scope(|scope| {
        for n in 0..50 {
            let d = &d;
            scope.spawn(move || {
                for m in 0..4 {
                    assert_eq!(d.send(&format!("local:k{n}"), &format!("{n}-{m}")), format!("echo: {n}-{m}"));
                }
            });
        }
    });
    assert_eq!(d.get("/v1/sessions?limit=1000")["sessions"].as_array().unwrap().len(), 50);
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM turns WHERE state='completed'"), 200);
}

/// Checklist 40. Many clients on one key: one session, each message one turn, and each client's own messages in their order.
#[test]
fn many_clients_on_one_key() {
    let mut d = Daemon::new().config("[sessions]\nqueue_limit = 1000\n").start();
    let sessions: HashSet<String> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..50)
            .map(|n| {
                let d = &d;
                scope.spawn(move || {
                    let posts: Vec<Value> = (0..4).map(|m| d.post("local:one", &format!("{n}-{m}"))).collect();
                    posts.iter().map(|p| p["session_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
                })
            })
            .collect();
        clients.into_iter().flat_map(|c| c.join().unwrap()).collect()
    });
    assert_eq!(sessions.len(), 1, "one session answers all");
    let mut events = d.events("local:one");
    for _ in 0..200 {
        events.until("turn_end");
    }
    let said: Vec<String> =
        d.said("local:one").into_iter().filter_map(|l| l.strip_prefix("user: ").map(str::to_owned)).collect();
    assert_eq!(said.iter().collect::<HashSet<_>>().len(), 200);
    assert_eq!(said.len(), 200);
    for n in 0..50 {
        let own: Vec<_> = said.iter().filter(|t| t.starts_with(&format!("{n}-"))).cloned().collect();
        assert_eq!(own, (0..4).map(|m| format!("{n}-{m}")).collect::<Vec<_>>());
    }
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM turns WHERE state='completed'"), 200);
}

/// The same id from many clients at once is one message.
#[test]
fn one_id_from_many_clients() {
    let mut d = Daemon::new().start();
    let first = AtomicUsize::new(0);
    let turns: HashSet<String> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..20)
            .map(|_| {
                let (d, first) = (&d, &first);
                scope.spawn(move || {
                    let turn = d.turn_body("local:a", &json!({ "text": "x", "id": "same" }));
                    assert_eq!((turn.outcome(), turn.text().as_str()), ("completed", "echo: x"));
                    first.fetch_add(usize::from(turn.accepted["duplicate"] == false), Ordering::Relaxed);
                    turn.id().to_owned()
                })
            })
            .collect();
        clients.into_iter().map(|c| c.join().unwrap()).collect()
    });
    assert_eq!((turns.len(), first.into_inner()), (1, 1));
    assert_eq!(d.stop(), 0);
}

/// Two thousand sessions are live at once where the limits allow it, and a stop ends each once.
#[test]
fn two_thousand_live_sessions() {
    const SESSIONS: usize = 2000;
    let mut d = Daemon::new()
        .config("[sessions]\nmax_live = 4000\n[agent.default]\nkind = \"echo\"\nmax_processes = 4000\n")
        .start();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= SESSIONS {
                        return;
                    }
                    assert_eq!(d.send(&format!("local:k{n}"), "x"), "echo: x");
                }
            });
        }
    });
    assert_eq!(d.status()["sessions"]["live"], SESSIONS);
    assert_eq!(d.stop(), 0);
    let ends: i64 = d.sql("SELECT count(*) FROM activations WHERE end_reason='shutdown'");
    assert_eq!(ends, SESSIONS as i64);
}

/// More sessions than `max_live`: all are answered, the least recently used give way, each told as parked.
#[test]
fn more_sessions_than_may_live() {
    let mut d = Daemon::new().config("[sessions]\nmax_live = 20\n").start();
    std::thread::scope(|scope| {
        for c in 0..8 {
            let d = &d;
            scope.spawn(move || {
                for n in 0..20 {
                    assert_eq!(d.send(&format!("local:c{c}-{n}"), "x"), "echo: x");
                }
            });
        }
    });
    let live = d.status()["sessions"]["live"].as_i64().unwrap();
    assert!((1..=20).contains(&live), "{live}");
    assert_eq!(d.stop(), 0);
    let parked: i64 = d.sql("SELECT count(*) FROM activations WHERE end_reason='parked'");
    assert!(parked >= 140, "{parked}");
}

/// Checklist 41. `deferred` while stopping: a duplicate is answered too, other text under an id is still an error.
#[test]
fn ids_hold_in_a_stop() {
    let mut d = Daemon::new().config(&fake(&[], "")).start();
    let mut gate = d.gate("gate");
    let mut events = d.events("local:a");
    let running = d.post_id("local:a", &format!("wait-file {}; say done", gate.path.display()), "run");
    events.until("turn_start");
    d.sigterm();
    d.notes.find(0, "STOPPING=1", |l| l == "STOPPING=1");
    let late = d.post_id("local:a", "say late", "late");
    assert_eq!((&late["deferred"], &late["duplicate"]), (&json!(true), &json!(false)));
    let again = d.post_id("local:a", "say late", "late");
    assert_eq!(
        (&again["turn_id"], &again["duplicate"], &again["deferred"]),
        (&late["turn_id"], &json!(true), &json!(true))
    );
    let same = d.post_id("local:a", &format!("wait-file {}; say done", gate.path.display()), "run");
    assert_eq!((&same["turn_id"], &same["deferred"]), (&running["turn_id"], &json!(false)));
    let other = json!({ "text": "say other", "id": "late" });
    let path = session_path("local:a", "/messages");
    assert_eq!(d.refusal(Method::POST, &path, Some(&other)), (422, "id_reused".into()));
    gate.open();
    assert_eq!(d.exit_code(), 0);
    d.boot();
    let mut events = d.events("local:a");
    events.until_where("the late answer", |e| e.event == "turn_end" && e.data["turn_id"] == late["turn_id"]);
    assert_eq!(d.said("local:a")[1..], ["agent: done", "user: say late", "agent: late"]);
    assert_eq!(d.stop(), 0);
}

/// A follower of a deferred message is told so and let go at once.
#[test]
fn a_deferred_message_is_not_waited_for() {
    let mut d = Daemon::new().config(&fake(&[], "")).start();
    let mut gate = d.gate("gate");
    let mut events = d.events("local:a");
    d.post("local:a", &format!("wait-file {}; say done", gate.path.display()));
    events.until("turn_start");
    d.sigterm();
    d.notes.find(0, "STOPPING=1", |l| l == "STOPPING=1");
    let body = json!({ "text": "say late" });
    let path = session_path("local:b", "/messages");
    let until = Some(std::time::Instant::now() + PATIENCE);
    let stream = d.client().stream_until(&path, Method::POST, Some(&body), None, until).unwrap();
    let events: Vec<_> = stream.map(Result::unwrap).collect();
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].event.as_str(), &events[0].data["deferred"]), ("accepted", &json!(true)));
    gate.open();
    assert_eq!(d.exit_code(), 0);
    d.boot();
    d.events("local:b").until("turn_end");
    assert_eq!(d.stop(), 0);
}
