//! Marks: what a stop or a death leaves for the next boot, who clears it, and how a marked session goes on.

use std::time::Duration;

use serde_json::{Value, json};

use rustix::process::Signal;

use crate::daemon::{Daemon, Gate, fake, not_kept};

/// A daemon that stopped while `local:a` was in a turn, and is down.
fn cut_off(config: &str) -> (Daemon, Gate, Value) {
    let config =
        format!("[shutdown]\ndrain = \"10ms\"\n{config}\n{}", not_kept(&[], "env = { FAKE_AGENT_STATE = \"@DIR@\" }"));
    let mut d = Daemon::new().config(&config).start();
    let gate = d.gate("gate");
    let turn = begin(&d, "local:a", &gate);
    assert_eq!(d.stop(), 0);
    (d, gate, turn)
}

fn begin(d: &Daemon, key: &str, gate: &Gate) -> Value {
    let mut events = d.events(key);
    let turn = d.post(key, &format!("say begun; wait-file {}; say done", gate.path.display()));
    events.until_where("its words", |e| e.event == "text" && e.data["turn_id"] == turn["turn_id"]);
    turn
}

fn mark(d: &Daemon, name: &str) -> Value {
    d.show(name)["resume_pending"].clone()
}

/// Makes the mark of `local:a` older, while the daemon is down.
fn age(d: &Daemon, by: Duration) {
    let db = rusqlite::Connection::open(d.path("state/ostler.db")).unwrap();
    let by = i64::try_from(by.as_millis()).unwrap();
    let n = db.execute("UPDATE sessions SET marked_at=marked_at-?1 WHERE mark_reason IS NOT NULL", [by]).unwrap();
    assert_eq!(n, 1);
}

/// Checklist 1, 3, 7, 13. Mark, reason and time survive restarts; reading does not clear them, nor does a turn that fails or is
/// cancelled; an interrupt marks again, with its own reason and time; a turn that completes clears it.
#[test]
fn a_mark_lasts_until_a_turn_completes() {
    let (mut d, gate, _) = cut_off("[sessions]\nresume = \"on_message\"\n");
    d.boot();
    let first = mark(&d, "local:a");
    assert_eq!(first["reason"], "shutdown_timeout");
    assert!(first["marked_at"].is_string(), "{first}");
    d.transcript("local:a");
    d.past("local:a");
    let listed = d.get("/v1/sessions?state=resume_pending");
    assert_eq!(listed["sessions"][0]["resume_pending"], first);
    d.restart();
    assert_eq!(mark(&d, "local:a"), first, "over a restart");
    assert_eq!(d.turn("local:a", "error no luck").outcome(), "failed");
    assert_eq!(mark(&d, "local:a"), first, "a turn that failed");
    let mut events = d.events("local:a");
    let hangs = begin(&d, "local:a", &gate);
    d.act("local:a", "cancel");
    assert_eq!(events.end_of(&hangs).0, "cancelled");
    assert_eq!(mark(&d, "local:a"), first, "a turn that was cancelled");
    begin(&d, "local:a", &gate);
    assert_eq!(mark(&d, "local:a"), first, "a message");
    d.signal(Signal::USR1);
    assert_eq!(d.exit_code(), 75);
    d.boot();
    let second = mark(&d, "local:a");
    assert_eq!(second["reason"], "restart_timeout");
    assert!(second["marked_at"].as_str() > first["marked_at"].as_str(), "{first} {second}");
    assert_eq!(d.send("local:a", "say well"), "well");
    assert_eq!(mark(&d, "local:a"), Value::Null);
    assert_eq!(d.stop(), 0);
}

/// Checklist 8. A mark from before the stop stays when the turn that runs in the drain does not complete, and the stop's
/// own is taken back by any end of its turn.
#[test]
fn a_stop_takes_back_only_its_own_marks() {
    let (mut d, gate, _) = cut_off("[sessions]\nresume = \"on_message\"\n");
    d.write_config(
        &std::fs::read_to_string(d.path("ostler.toml")).unwrap().replace("drain = \"10ms\"", "drain = \"20s\""),
    );
    d.boot();
    let before = mark(&d, "local:a");
    let (a, b) = (begin(&d, "local:a", &gate), begin(&d, "local:b", &gate));
    let from = d.log.count();
    d.sigterm();
    d.log.find(from, "the marks", |l| l.contains("are marked"));
    assert_eq!((mark(&d, "local:a"), &mark(&d, "local:b")["reason"]), (before.clone(), &json!("shutdown_timeout")));
    let (mut of_a, mut of_b) = (d.events("local:a"), d.events("local:b"));
    d.act("local:a", "cancel");
    d.act("local:b", "cancel");
    assert_eq!((of_a.end_of(&a).0.as_str(), of_b.end_of(&b).0.as_str()), ("cancelled", "cancelled"));
    assert_eq!(d.exit_code(), 0);
    d.boot();
    assert_eq!((mark(&d, "local:a"), mark(&d, "local:b")), (before, Value::Null));
    assert_eq!(d.stop(), 0);
}

/// Checklist 2. A turn that completes in a session without a mark writes nothing of marks.
#[test]
fn clearing_no_mark_writes_nothing() {
    let (mut d, _gate, _) = cut_off("[sessions]\nresume = \"on_message\"\n");
    let db = rusqlite::Connection::open(d.path("state/ostler.db")).unwrap();
    db.execute_batch(
        "CREATE TABLE seen (key TEXT);
         CREATE TRIGGER watch AFTER UPDATE OF mark_reason, marked_at, mark_boot, cut_turn ON sessions
         BEGIN INSERT INTO seen VALUES (new.key); END",
    )
    .unwrap();
    drop(db);
    d.boot();
    d.send("local:b", "say one");
    d.send("local:b", "say two");
    d.send("local:a", "say three");
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM seen WHERE key='local:b'"), 0);
    assert!(d.sql::<i64>("SELECT count(*) FROM seen WHERE key='local:a'") > 0, "the watch sees");
}

/// Checklist 1, 4. A suspended session is left alone by a stop, keeps its mark, and gives way to a new one; a marked one
/// answers under its id with its whole transcript.
#[test]
fn suspended_wins_over_a_mark() {
    let (mut d, gate, cut) = cut_off("[sessions]\nresume = \"on_message\"\n");
    d.boot();
    let (old, before) = (cut["session_id"].as_str().unwrap(), mark(&d, "local:a"));
    d.act("local:a", "suspend");
    let running = begin(&d, "local:b", &gate);
    let mut events = d.events("local:b");
    d.act("local:b", "suspend");
    assert_eq!(events.end_of(&running).0, "cancelled");
    let from = d.log.count();
    d.restart();
    for (id, mark) in [(old, &before), (running["session_id"].as_str().unwrap(), &Value::Null)] {
        let shown = d.show(id);
        assert_eq!((&shown["state"], &shown["resume_pending"]), (&json!("suspended"), mark));
    }
    d.log.find(from, "no mark", |l| l.contains("0 running sessions are marked"));
    let turn = d.turn("local:a", "say fresh");
    assert_ne!(turn.session(), old);
    assert_eq!(turn.accepted["notice"]["code"], "session_suspended");
    d.act(old, "resume");
    let turn = d.turn("local:a", "say back");
    assert_eq!((turn.session(), turn.outcome()), (old, "completed"));
    assert_eq!(turn.of("turn_start").next().unwrap().data["continues"], cut["turn_id"]);
    let said = d.said("local:a");
    assert!(said[0].starts_with("user: say begun") && said[1] == "agent: begun", "{said:?}");
    assert_eq!(said.last().unwrap(), "agent: back");
    assert_eq!(d.stop(), 0);
}

/// Checklist 4, 5. A mark older than `resume_window` gives way to a new session, and the sender is told; a younger one goes
/// on under its id; with `never` any does.
#[test]
fn a_mark_grows_old() {
    const MIN: u64 = 60;
    for (window, minutes, expires) in
        [("1h", 61, true), ("1h", 59, false), ("never", 60 * 24 * 400, false), ("2h", 61, false)]
    {
        let (mut d, _gate, cut) =
            cut_off(&format!("[sessions]\nresume = \"on_message\"\nresume_window = \"{window}\"\n"));
        age(&d, Duration::from_secs(minutes * MIN));
        d.boot();
        let turn = d.turn("local:a", "say next");
        assert_eq!((turn.outcome(), turn.text().as_str()), ("completed", "next"));
        let old = d.show(cut["session_id"].as_str().unwrap());
        if expires {
            assert_ne!(turn.session(), old["id"]);
            assert_eq!(turn.accepted["notice"]["code"], "session_expired");
            assert_eq!((&old["state"], &old["end_reason"]), (&json!("ended"), &json!("expired")));
            let past = d.past("local:a");
            let start = past.iter().rfind(|e| e.event == "session_start").unwrap();
            assert_eq!((start.text("reason"), &start.data["previous_id"]), ("expired", &old["id"]));
        } else {
            assert_eq!(turn.session(), old["id"], "{window} {minutes}");
            assert_eq!(turn.accepted["notice"], Value::Null);
            let start = turn.of("turn_start").next().unwrap();
            assert_eq!(start.data["continues"], cut["turn_id"], "{window} {minutes}");
        }
        assert_eq!(d.stop(), 0);
    }
}

/// Checklist 11, 12, 21. The note tells a stop, a restart and a crash apart, how long ago it was, and which tool calls were
/// in flight and not those that had finished; what had been said and done is in the transcript; a message that waits is
/// asked to be answered first, and stands in the transcript as the user wrote it.
#[test]
fn the_note() {
    for (how, word) in [("stop", "was stopped"), ("restart", "was restarted"), ("crash", "crashed")] {
        let config = format!(
            "[sessions]\nresume = \"on_message\"\n[shutdown]\ndrain = \"10ms\"\n{}",
            not_kept(&[], "permission = \"allow\"")
        );
        let mut d = Daemon::new().config(&config).start();
        let gate = d.gate("gate");
        let mut events = d.events("local:a");
        let text = format!("say begun; tool one; say between; tool-open slowly; wait-file {}", gate.path.display());
        d.post("local:a", &text);
        events.until_where("the call in flight", |e| e.event == "tool" && e.data["title"] == "Run slowly");
        match how {
            "stop" => assert_eq!(d.stop(), 0),
            "restart" => {
                d.signal(Signal::USR1);
                assert_eq!(d.exit_code(), 75);
            }
            _ => d.kill9(),
        }
        // A crash is marked by the boot that finds it.
        d.boot();
        assert_eq!(d.stop(), 0);
        age(&d, Duration::from_secs(600));
        d.boot();
        let answer = d.send("local:a", "echo-context");
        for want in [word, " 10 min ago", "> say begun; tool one", "answer it first"] {
            assert!(answer.contains(want), "{how}: {want:?} is missing: {answer}");
        }
        assert!(answer.contains("may or may not have finished:\n- Run slowly\n"), "{how}: {answer}");
        assert_eq!(answer.matches("\n- ").count(), 1, "{how}: {answer}");
        let said = d.said("local:a");
        assert!(said.iter().any(|l| l == "user: echo-context"), "{said:?}");
        assert!(said.iter().any(|l| l.starts_with("agent: begun")), "{said:?}");
        assert_eq!(said.iter().filter(|l| l.starts_with("tool: ")).count(), 2, "{said:?}");
        assert!(said.iter().all(|l| l.split_once(": ").is_some_and(|(_, text)| !text.is_empty())), "{said:?}");
        assert_eq!(d.stop(), 0);
    }
}

/// Checklist 12, 13. Marked sessions go on once each, also when messages come at the same moment; no agent is given an
/// empty message.
#[test]
fn a_message_and_a_resume_at_once() {
    let config = format!("[shutdown]\ndrain = \"10ms\"\n{}", fake(&[], "env = { FAKE_AGENT_STATE = \"@DIR@\" }"));
    let mut d = Daemon::new().config(&config).start();
    let gate = d.gate("gate");
    let keys: Vec<String> = (0..8).map(|n| format!("local:k{n}")).collect();
    let cut: Vec<Value> = keys.iter().map(|k| begin(&d, k, &gate)).collect();
    assert_eq!(d.stop(), 0);
    let from = d.notes.count();
    d.spawn();
    d.wait_ready(from);
    std::thread::scope(|scope| {
        for key in &keys[1..] {
            scope.spawn(|| assert_eq!(d.turn(key, "say hello").outcome(), "completed"));
        }
    });
    for (key, cut) in keys.iter().zip(&cut) {
        let mut events = d.events(key);
        let next = events.until_where(key, |e| e.event == "turn_start" && e.data["continues"] == cut["turn_id"]);
        assert_eq!(events.end_of(&next.data).0, "completed", "{key}");
        assert_eq!(mark(&d, key), Value::Null, "{key}");
        for line in d.said(key) {
            assert!(line != "agent: heard: " && line != "system: ", "{key}: an empty prompt");
        }
    }
    assert_eq!(d.stop(), 0);
    let twice: i64 = d.sql("SELECT count(*)-count(DISTINCT continues) FROM turns WHERE continues IS NOT NULL");
    assert_eq!((twice, d.sql::<i64>("SELECT count(*) FROM turns WHERE continues IS NOT NULL")), (0, 8));
}

/// Checklist 15. Sessions whose resume hangs, in starting their agent or in their turn, delay neither the others' nor a new
/// message of anybody's.
#[test]
fn a_hanging_resume_delays_nobody() {
    let route = |flags: &[&str]| {
        let command = json!([&["@FAKE@"], flags].concat());
        format!(
            "[shutdown]\ndrain = \"10ms\"\ninterrupt = \"2s\"\n{}[agent.slow]\nkind = \"acp\"\ncommand = {command}\n\
             [[route]]\nmatch = \"local:hang*\"\nagent = \"slow\"\n",
            fake(&[], "")
        )
    };
    let mut d = Daemon::new().config(&route(&[])).start();
    let gate = d.gate("gate");
    let keys = ["local:hang1", "local:hang2", "local:hang3", "local:a", "local:b"];
    for key in keys {
        begin(&d, key, &gate);
    }
    assert_eq!(d.stop(), 0);
    d.write_config(&route(&["--never-init"]));
    d.boot();
    for key in &keys[..3] {
        d.events(key).until_where("its resume", |e| e.event == "session_start" && e.data["reason"] == "resume");
    }
    assert_eq!(d.send("local:new", "say new"), "new");
    for key in &keys[3..] {
        d.events(key).until_where(key, |e| e.event == "turn_end" && e.data["outcome"] == "completed");
        assert_eq!(d.send(key, "say more"), "more");
    }
    for key in &keys[..3] {
        assert!(mark(&d, key).is_object(), "{key} hangs still");
    }
    assert_eq!(d.stop(), 0);
}
