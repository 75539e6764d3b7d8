//! Sessions: what happens to them during a turn and between turns.

use serde_json::{Value, json};
use ureq::http::Method;

use crate::daemon::{Daemon, Events, Gate, fake};
use ostler::client::session_path;

/// A daemon with the scripted agent; its key `local:a` is in a turn that waits for the gate.
fn in_a_turn(config: &str) -> (Daemon, Gate, Events, Value) {
    let d = Daemon::new().config(&format!("{config}\n{}", fake(&[], ""))).start();
    let (gate, events, running) = d.waiting("local:a", "; say done");
    (d, gate, events, running)
}

/// queue: each message its own turn, one after the other, in order.
#[test]
fn busy_queue() {
    let (mut d, mut gate, mut events, running) = in_a_turn("");
    let b = d.post("local:a", "say b");
    let c = d.post("local:a", "say c");
    assert_ne!(b["turn_id"], c["turn_id"]);
    let shown = d.show("local:a");
    assert_eq!(
        (&shown["queued"], &shown["turn"]["id"], &shown["turn"]["state"]),
        (&json!(2), &running["turn_id"], &json!("running"))
    );
    assert_eq!(d.status()["sessions"]["running"], 1);
    gate.open();
    assert_eq!(events.end_of(&running).0, "completed");
    assert_eq!(events.end_of(&b).0, "completed");
    assert_eq!(events.end_of(&c).0, "completed");
    assert_eq!(d.said("local:a")[1..], ["agent: begundone", "user: say b", "agent: b", "user: say c", "agent: c"]);
    assert_eq!(d.stop(), 0);
}

/// Checklist 43. collect: all that wait share one turn, in order, each its own entry.
#[test]
fn busy_collect() {
    let (mut d, mut gate, mut events, running) = in_a_turn("[sessions]\nbusy = \"collect\"\n");
    let b = d.post("local:a", "one");
    let c = d.post("local:a", "two");
    assert_eq!(b["turn_id"], c["turn_id"]);
    assert_ne!(b["message_id"], c["message_id"]);
    assert_ne!(b["turn_id"], running["turn_id"]);
    gate.open();
    assert_eq!(events.end_of(&b).0, "completed");
    assert_eq!(d.said("local:a")[2..4], ["user: one", "user: two"]);
    assert!(d.said("local:a")[4].contains("one") && d.said("local:a")[4].contains("two"), "{:?}", d.said("local:a"));
    assert_eq!(d.stop(), 0);
}

/// Checklist 43. interrupt: the running turn is cancelled, the new message is next, what was queued stays.
#[test]
fn busy_interrupt() {
    let (mut d, _gate, mut events, running) = in_a_turn("[sessions]\nbusy = \"interrupt\"\n");
    let b = d.post("local:a", "say b");
    let (outcome, data) = events.end_of(&running);
    assert_eq!((outcome.as_str(), &data["error"]), ("cancelled", &Value::Null));
    assert_eq!(events.end_of(&b).0, "completed");
    assert_eq!(d.said("local:a")[1..], ["agent: begun", "user: say b", "agent: b"]);
    assert_eq!(d.stop(), 0);
}

/// cancel ends the running turn, what waits goes on; with nothing running it is no error.
#[test]
fn cancel() {
    let (mut d, _gate, mut events, running) = in_a_turn("");
    let b = d.post("local:a", "say b");
    let shown = d.act("local:a", "cancel");
    assert_eq!(shown["key"], "local:a");
    assert_eq!(events.end_of(&running).0, "cancelled");
    assert_eq!(events.end_of(&b).0, "completed");
    d.act("local:a", "cancel");
    assert_eq!(
        d.refusal(Method::POST, &session_path("local:nobody", "/cancel"), None),
        (404, "session_not_found".into())
    );
    assert_eq!(d.stop(), 0);
}

/// cancel --queued takes back what waits, each told, and leaves what runs.
#[test]
fn cancel_queued() {
    let (mut d, mut gate, mut events, running) = in_a_turn("");
    let (b, c) = (d.post("local:a", "say b"), d.post("local:a", "say c"));
    d.act("local:a", "cancel?queued=1");
    for turn in [&b, &c] {
        let (outcome, data) = events.end_of(turn);
        assert_eq!((outcome.as_str(), data["reason"].is_string()), ("cancelled", true), "{data}");
    }
    assert_eq!(d.show("local:a")["queued"], 0);
    gate.open();
    assert_eq!(events.end_of(&running).0, "completed");
    assert_eq!(d.stop(), 0);
}

/// A follower of a turn that is cancelled hears its end.
#[test]
fn a_follower_hears_of_a_cancel() {
    let (mut d, _gate, mut events, _) = in_a_turn("");
    let queued = d.post_id("local:a", "say b", "b");
    let turn = std::thread::scope(|scope| {
        let follower = scope.spawn(|| d.turn_body("local:a", &json!({ "text": "say b", "id": "b" })));
        d.act("local:a", "cancel?queued=1");
        follower.join().unwrap()
    });
    assert_eq!((turn.outcome(), turn.id()), ("cancelled", queued["turn_id"].as_str().unwrap()));
    d.act("local:a", "cancel");
    events.until_where("the running turn's end", |e| e.event == "turn_end" && e.data["turn_id"] != queued["turn_id"]);
    assert_eq!(d.stop(), 0);
}

/// Checklist 44. reset during a turn: it is cancelled first, its late output goes nowhere, one end and one start that name each other.
#[test]
fn reset_during_a_turn() {
    let (mut d, mut gate, mut events, running) = in_a_turn("");
    let waiting = d.post("local:a", "say waiting");
    let old = running["session_id"].as_str().unwrap().to_owned();
    let shown = d.act("local:a", "reset");
    let new = shown["id"].as_str().unwrap().to_owned();
    assert_ne!(old, new);
    gate.open();
    let mut ends: Vec<(String, String)> = Vec::new();
    let answer = d.turn("local:a", "say fresh");
    assert_eq!((answer.session(), answer.text().as_str()), (new.as_str(), "fresh"));
    events.until_where("the fresh end", |e| e.event == "turn_end" && e.text("turn_id") == answer.id());
    for e in &events.seen {
        if e.event == "turn_end" {
            ends.push((e.text("turn_id").to_owned(), e.text("outcome").to_owned()));
        }
        if e.text("session_id") == old {
            assert!(!e.text("text").contains("done"), "late output");
        }
    }
    let id = |v: &Value| v["turn_id"].as_str().unwrap().to_owned();
    assert!(ends.contains(&(id(&running), "cancelled".into())), "{ends:?}");
    assert!(ends.contains(&(id(&waiting), "cancelled".into())), "{ends:?}");
    let of = |kind: &str| events.seen.iter().filter(|e| e.event == kind).collect::<Vec<_>>();
    let (end, closed, starts) = (of("session_end"), of("session_closed"), of("session_start"));
    assert_eq!((end.len(), closed.len(), starts.len()), (1, 1, 2));
    assert_eq!(
        (end[0].text("reason"), &end[0].data["final"], end[0].text("next_id")),
        ("reset", &json!(true), new.as_str())
    );
    assert_eq!((closed[0].text("reason"), closed[0].text("session_id")), ("reset", old.as_str()));
    assert_eq!(
        (starts[1].text("reason"), starts[1].text("previous_id"), starts[1].text("session_id")),
        ("reset", old.as_str(), new.as_str())
    );
    assert_eq!(
        d.said(&old),
        [
            "user: ".to_owned() + &format!("say begun; wait-file {}; say done", gate.path.display()),
            "agent: begun".into()
        ]
    );
    assert_eq!((&d.show(&old)["next_id"], &d.show(&new)["previous_id"]), (&json!(new), &json!(old)));
    assert_eq!(d.stop(), 0);
}

/// delete: hidden at once, one end and no start; what was never there gives nothing but 404.
#[test]
fn delete() {
    let (mut d, _gate, mut events, running) = in_a_turn("");
    let old = running["session_id"].as_str().unwrap().to_owned();
    let shown = d.client().delete(&session_path("local:a", "")).unwrap();
    assert_eq!((&shown["id"], &shown["state"]), (&json!(old), &json!("ended")));
    assert!(shown["ended_at"].is_string() && shown["turn"].is_null(), "{shown}");
    let gone = (404, "session_not_found".to_owned());
    assert_eq!(d.refusal(Method::GET, &session_path("local:a", ""), None), gone);
    assert_eq!(d.refusal(Method::GET, &session_path(&old, ""), None), gone);
    assert_eq!(d.refusal(Method::GET, &session_path(&old, "/transcript"), None), gone);
    assert_eq!(d.refusal(Method::DELETE, &session_path("local:a", ""), None), gone);
    assert_eq!(d.refusal(Method::DELETE, &session_path("local:never", ""), None), gone);
    assert_eq!(d.refusal(Method::POST, &session_path("local:never", "/reset"), None), gone);
    let closed = events.until("session_closed");
    assert_eq!((closed.text("reason"), &closed.data["next_id"]), ("deleted", &Value::Null));
    assert_eq!(events.kinds().iter().filter(|k| **k == "session_end").count(), 1);
    assert_eq!(events.kinds().iter().filter(|k| **k == "session_start").count(), 1);
    assert!(d.past("local:never").is_empty());
    // A new conversation under the key knows nothing of it.
    let fresh = d.turn("local:a", "say fresh");
    assert_ne!(fresh.session(), old);
    assert_eq!(d.said("local:a"), ["user: say fresh", "agent: fresh"]);
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM sessions WHERE key='local:never'"), 0);
}

/// delete --all takes every session of the key, ended ones too.
#[test]
fn delete_all() {
    let mut d = Daemon::new().start();
    d.send("local:a", "1");
    d.act("local:a", "reset");
    d.send("local:a", "2");
    d.client().delete(&session_path("local:a", "?all=1")).unwrap();
    assert!(d.get("/v1/sessions?state=live,parked,suspended,ended")["sessions"].as_array().unwrap().is_empty());
    assert_eq!(d.stop(), 0);
}

/// suspend: the turn is cancelled, what waits moves to a new session with its ids, and each sender is told. resume: the old
/// one comes back with what waits.
#[test]
fn suspend_and_resume() {
    let (mut d, mut gate, mut events, running) = in_a_turn("");
    let waiting = d.post("local:a", "say waiting");
    let old = running["session_id"].as_str().unwrap().to_owned();
    let shown = d.act("local:a", "suspend");
    assert_eq!(
        (&shown["id"], &shown["state"], &shown["resume_pending"]),
        (&json!(old), &json!("suspended"), &Value::Null)
    );
    assert_eq!(events.end_of(&running).0, "cancelled");
    let (outcome, data) = events.end_of(&waiting);
    assert_eq!(outcome, "completed");
    let new = data["session_id"].as_str().unwrap().to_owned();
    assert_ne!(new, old);
    let notice = events.seen.iter().find(|e| e.event == "notice" && e.data["turn_id"] == waiting["turn_id"]);
    assert!(notice.is_some(), "the sender is told that it moved: {:#?}", events.seen);
    assert_eq!(d.said(&new), ["user: say waiting", "agent: waiting"]);
    // Resume of the suspended one: the newer ends, its queue moves.
    gate.open();
    let mut second = d.gate("second");
    let run = d.post("local:a", &format!("say x; wait-file {}", second.path.display()));
    events.until_where("the second turn's text", |e| e.event == "text" && e.data["turn_id"] == run["turn_id"]);
    let moved = d.post("local:a", "say moved");
    let shown = d.act(&old, "resume");
    assert_eq!(shown["id"], old.as_str());
    assert_eq!(events.end_of(&run).0, "cancelled");
    let (outcome, data) = events.end_of(&moved);
    assert_eq!((outcome.as_str(), &data["session_id"]), ("completed", &json!(old)));
    second.open();
    assert_eq!((&d.show(&new)["state"], &d.show(&new)["end_reason"]), (&json!("ended"), &json!("new")));
    assert_eq!(d.show("local:a")["id"], old.as_str());
    assert_eq!(d.refusal(Method::POST, &session_path(&new, "/resume"), None), (409, "ended".into()));
    assert_eq!(d.stop(), 0);
}

/// The first message under a suspended key opens a new session, and its sender is told in the 202 and in the stream.
#[test]
fn a_message_to_a_suspended_key() {
    let mut d = Daemon::new().start();
    let old = d.turn("local:a", "1").session().to_owned();
    d.act("local:a", "suspend");
    let turn = d.turn("local:a", "2");
    assert_ne!(turn.session(), old);
    assert!(turn.accepted["notice"]["code"].is_string(), "{}", turn.accepted);
    let start = d.past("local:a").into_iter().rfind(|e| e.event == "session_start").unwrap();
    assert_eq!(start.text("reason"), "suspended");
    assert_eq!(d.refusal(Method::POST, &session_path(&old, "/reset"), None), (409, "not_current".into()));
    assert_eq!(d.stop(), 0);
}

/// idle_reset: the next message after it begins a new session, and its sender is told.
#[test]
fn an_idle_session_gives_way() {
    let mut d = Daemon::new().config("[sessions]\nidle_reset = \"1h\"\n").start();
    let a = d.turn("local:a", "1");
    assert_eq!(d.stop(), 0);
    // What was said, was said two hours ago.
    let db = rusqlite::Connection::open(d.path("state/ostler.db")).unwrap();
    db.execute("UPDATE sessions SET active_at=active_at-7200000", []).unwrap();
    drop(db);
    d.boot();
    let b = d.turn("local:a", "2");
    assert_ne!(a.session(), b.session());
    assert!(b.accepted["notice"]["code"].is_string(), "{}", b.accepted);
    let notice = d.past("local:a").into_iter().find(|e| e.event == "notice").unwrap();
    assert_eq!(notice.data["turn_id"], b.id());
    assert_eq!(
        (&d.show(a.session())["end_reason"], &d.show(a.session())["next_id"]),
        (&json!("idle"), &json!(b.session()))
    );
    assert_eq!(d.stop(), 0);
}

/// It gives way while it is live, too: its end says why.
#[test]
fn an_idle_session_gives_way_while_it_is_live() {
    let mut d = Daemon::new().config("[sessions]\nidle_reset = \"100ms\"\n").start();
    let first = d.turn("local:a", "1");
    // Others' time stamps show that the clock has moved on.
    let at = |d: &Daemon, key: &str| d.sql::<i64>(&format!("SELECT active_at FROM sessions WHERE key='{key}'"));
    let since = at(&d, "local:a");
    d.turn("local:b", "1");
    while at(&d, "local:b") - since < 200 {
        d.turn("local:b", "1");
    }
    let second = d.turn("local:a", "2");
    assert_ne!(first.session(), second.session());
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<String>("SELECT end_reason FROM activations ORDER BY aid LIMIT 1"), "idle");
}

/// daily_reset: a session from before the boundary gives way, one from after it does not.
#[test]
fn the_day_ends_a_session() {
    let mut d = Daemon::new().config("[sessions]\ndaily_reset = \"04:00\"\n").start();
    let a = d.turn("local:a", "1");
    let same = d.turn("local:a", "2");
    assert_eq!(a.session(), same.session());
    assert_eq!(d.stop(), 0);
    // What was said, was said two days ago.
    let db = rusqlite::Connection::open(d.path("state/ostler.db")).unwrap();
    db.execute("UPDATE sessions SET active_at=active_at-172800000", []).unwrap();
    drop(db);
    d.boot();
    let b = d.turn("local:a", "3");
    assert_ne!(a.session(), b.session());
    assert!(b.accepted["notice"]["code"].is_string(), "{}", b.accepted);
    let closed = d.past("local:a").into_iter().find(|e| e.event == "session_closed").unwrap();
    assert_eq!((closed.text("reason"), closed.text("session_id")), ("daily", a.session()));
    assert_eq!(d.stop(), 0);
}

/// park_after: the agent of an idle session is closed, its end says parked; the next message goes on in the same session.
#[test]
fn an_idle_session_is_parked() {
    let config = format!(
        "[sessions]\npark_after = \"50ms\"\n{}",
        fake(&["--ignore-eof"], "env = { FAKE_AGENT_STATE = \"@DIR@\" }\n")
    );
    let mut d = Daemon::new().config(&config).start();
    let a = d.turn("local:a", "pid");
    let pid: u32 = a.text().strip_prefix("pid ").unwrap().parse().unwrap();
    let mut events = d.events("local:a");
    let end = events.until("session_end");
    assert_eq!((end.text("reason"), &end.data["final"]), ("parked", &json!(false)));
    if let Some(fd) = crate::daemon::open_pid(pid) {
        assert!(crate::daemon::wait_pidfd(&fd, crate::daemon::PATIENCE));
    }
    let b = d.turn("local:a", "recall");
    assert_eq!((b.session(), b.text().as_str()), (a.session(), "prompts before: 1"));
    let start = d.past("local:a").into_iter().rfind(|e| e.event == "session_start").unwrap();
    assert_eq!((start.text("reason"), &start.data["epoch"]), ("message", &json!(2)));
    assert_eq!(d.stop(), 0);
}

/// max_live: the least recently used idle one is parked for a newcomer.
#[test]
fn the_least_recently_used_gives_way() {
    let mut d = Daemon::new().config("[sessions]\nmax_live = 2\n").start();
    d.send("local:a", "1");
    d.send("local:b", "1");
    d.send("local:a", "2");
    d.send("local:c", "1");
    let ends = |key: &str| d.past(key).iter().filter(|e| e.event == "session_end").count();
    assert_eq!((ends("local:a"), ends("local:b"), ends("local:c")), (0, 1, 0));
    assert_eq!(d.show("local:b")["state"], "parked");
    assert_eq!(d.stop(), 0);
}

/// If all run, the newcomer waits its turn, and gets it.
#[test]
fn a_newcomer_waits_when_all_run() {
    let (mut d, mut gate, mut events, running) = in_a_turn("[sessions]\nmax_live = 1\n");
    let b = d.post("local:b", "say b");
    assert_eq!(d.show("local:b")["turn"]["state"], "queued");
    assert_eq!(d.status()["sessions"]["waiting"], 1);
    let mut others = d.events("local:b");
    gate.open();
    assert_eq!(events.end_of(&running).0, "completed");
    assert_eq!(others.end_of(&b).0, "completed");
    assert_eq!(d.show("local:a")["state"], "parked");
    assert_eq!(d.stop(), 0);
}

/// max_processes bounds the live sessions of one agent by the same rule; other agents' sessions do not count.
#[test]
fn an_agent_has_a_bound_of_its_own() {
    let config = fake(&[], "max_processes = 1\n")
        + "[agent.other]\nkind = \"echo\"\n[[route]]\nmatch = \"echo:*\"\nagent = \"other\"\n";
    let mut d = Daemon::new().config(&config).start();
    let mut gate = d.gate("gate");
    let mut events = d.events("local:a");
    let running = d.post("local:a", &format!("say x; wait-file {}", gate.path.display()));
    events.until("text");
    let b = d.post("local:b", "say b");
    assert_eq!(d.send("echo:c", "c"), "echo: c");
    assert_eq!(d.show("local:b")["turn"]["state"], "queued");
    gate.open();
    assert_eq!(events.end_of(&running).0, "completed");
    assert_eq!(d.events("local:b").end_of(&b).0, "completed");
    assert_eq!(d.stop(), 0);
}

/// hold accepts and starts nothing; release lets go on.
#[test]
fn hold_and_release() {
    let mut d = Daemon::new().start();
    d.client().post("/v1/hold", None).unwrap();
    let held = d.post("local:a", "x");
    assert_eq!(held["deferred"], false);
    assert_eq!(d.show("local:a")["turn"]["state"], "queued");
    let mut events = d.events("local:a");
    d.client().post("/v1/release", None).unwrap();
    assert_eq!(events.end_of(&held).0, "completed");
    assert_eq!(d.stop(), 0);
}
