//! A stop: bounded, marked before it waits, and nothing left.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use ureq::http::Method;

use crate::daemon::{Daemon, Events, Gate, NEVER, fake};

/// A daemon whose key `local:a` is in a turn that waits for the gate.
fn in_a_turn(config: &str) -> (Daemon, Gate, Events, Value) {
    let d = Daemon::new().config(&format!("{config}\n{}", fake(&[], "env = { FAKE_AGENT_STATE = \"@DIR@\" }"))).start();
    let (gate, events, running) = d.waiting("local:a", "; say done");
    (d, gate, events, running)
}

fn stopping(d: &Daemon) {
    d.notes.find(0, "STOPPING=1", |l| l == "STOPPING=1");
}

/// Checklist 16, 22. With nothing running the drain takes no time; the service manager is told, and asked for exactly the time needed.
#[test]
fn an_idle_daemon_stops_at_once() {
    let mut d = Daemon::new().start();
    d.send("local:a", "x");
    let before = Instant::now();
    assert_eq!(d.stop(), 0);
    assert!(before.elapsed() < Duration::from_secs(10), "{:?}", before.elapsed());
    stopping(&d);
    let asked = d.notes.find(0, "EXTEND", |l| l.starts_with("EXTEND_TIMEOUT_USEC="));
    let usec: u64 = asked.split_once('=').unwrap().1.parse().unwrap();
    assert!((59_000_000..=60_000_000).contains(&usec), "{usec}");
    assert_eq!(d.sql::<String>("SELECT end_reason FROM activations"), "shutdown");
}

/// Checklist 6, 8, 27. A turn that ends within the drain completes; nothing is marked; its follower has the whole answer; the drain ends then.
#[test]
fn a_running_turn_finishes_in_the_drain() {
    let (mut d, mut gate, mut events, running) = in_a_turn("");
    d.sigterm();
    stopping(&d);
    let status = d.status();
    assert_eq!(status["phase"], "draining");
    let blocking = &status["stop"]["blocking"][0];
    assert_eq!((&blocking["key"], &blocking["turn_id"]), (&json!("local:a"), &running["turn_id"]));
    assert_eq!((&status["stop"]["reason"], &status["stop"]["urgency"]), (&json!("shutdown"), &json!("graceful")));
    assert_eq!(d.refusal(Method::GET, "/readyz", None).0, 503);
    // Marked before it waits.
    d.wait_log("running sessions are marked");
    assert_eq!(d.show("local:a")["resume_pending"]["reason"], "shutdown_timeout");
    gate.open();
    assert_eq!(events.end_of(&running).0, "completed");
    assert_eq!(d.exit_code(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM sessions WHERE mark_reason IS NOT NULL"), 0);
    let report: Value = serde_json::from_str(&d.sql::<String>("SELECT report FROM boots")).unwrap();
    assert_eq!(
        (&report["sessions"][0]["outcome"], &report["sessions"][0]["resume_pending"]),
        (&json!("finished"), &json!(false))
    );
}

/// Checklist 4, 7, 11, 21. The drain runs out: the turn is interrupted, its partial answer kept, the session marked; the next boot goes on with a
/// note that quotes the message.
#[test]
fn a_turn_that_is_cut_off_goes_on() {
    let (mut d, _gate, mut events, running) = in_a_turn("[shutdown]\ndrain = \"50ms\"\n");
    d.sigterm();
    assert_eq!(events.end_of(&running).0, "interrupted");
    assert_eq!(d.exit_code(), 0);
    let mark: String = d.sql("SELECT mark_reason FROM sessions");
    assert_eq!(mark, "shutdown_timeout");
    d.boot();
    let mut events = d.events("local:a");
    let end = events.until("session_end");
    assert_eq!(
        (end.text("reason"), &end.data["final"], end.data["resume_pending"]["reason"].as_str()),
        ("shutdown", &json!(false), Some("shutdown_timeout"))
    );
    let start = events
        .until_where("the continuation", |e| e.event == "turn_start" && e.data["continues"] == running["turn_id"]);
    let (outcome, _) = events.end_of(&json!({ "turn_id": start.text("turn_id") }));
    assert_eq!(outcome, "completed");
    let said = d.said("local:a");
    assert_eq!(said[1], "agent: begun", "the partial answer is kept: {said:?}");
    assert!(
        said[2].starts_with("system: ") && said[2].contains("> say begun; wait-file") && said[2].contains("stopped"),
        "{said:?}"
    );
    assert!(said[3].starts_with("agent: heard: "), "the agent was given the note: {said:?}");
    let again = d.show("local:a");
    assert_eq!((&again["resume_pending"], &again["unclean"]), (&Value::Null, &json!(0)));
    // Whoever sends the message again learns by which turn it was continued.
    assert_eq!(d.stop(), 0);
}

/// Checklist 11. A message that waits carries the note: one turn, the message first, and the transcript keeps what the user wrote.
#[test]
fn a_waiting_message_carries_the_note() {
    let (mut d, _gate, mut events, running) = in_a_turn("[shutdown]\ndrain = \"50ms\"\n");
    let next = d.post("local:a", "echo-context");
    d.sigterm();
    assert_eq!(events.end_of(&running).0, "interrupted");
    assert_eq!(d.exit_code(), 0);
    d.boot();
    let mut events = d.events("local:a");
    let (outcome, _) = events.end_of(&next);
    assert_eq!(outcome, "completed");
    let start = events.seen.iter().find(|e| e.event == "turn_start" && e.data["turn_id"] == next["turn_id"]).unwrap();
    assert_eq!(start.data["continues"], running["turn_id"]);
    let said = d.said("local:a");
    assert!(said.contains(&"user: echo-context".to_owned()), "{said:?}");
    assert!(said.last().unwrap().contains("> say begun"), "{said:?}");
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM turns"), 2);
}

/// Checklist 7, 11. SIGUSR1 is a restart: 75, and what is cut off is marked so.
#[test]
fn a_restart() {
    let (mut d, _gate, mut events, running) = in_a_turn(&format!("[shutdown]\ndrain = \"50ms\"\n{NEVER}"));
    d.signal(Signal::USR1);
    assert_eq!(events.end_of(&running).0, "interrupted");
    assert_eq!(d.exit_code(), 75);
    assert_eq!(d.sql::<String>("SELECT mark_reason FROM sessions"), "restart_timeout");
    assert_eq!(d.sql::<String>("SELECT end_reason FROM activations"), "restart");
    d.boot();
    d.events("local:a")
        .until_where("the continuation's end", |e| e.event == "turn_end" && e.data["outcome"] == "completed");
    assert!(d.said("local:a")[2].contains("restarted"));
    assert_eq!(d.stop(), 0);
}

/// Checklist 17. A second SIGTERM skips the drain; the exit is still in order.
#[test]
fn two_signals_are_fast() {
    let (mut d, _gate, mut events, running) = in_a_turn("");
    d.sigterm();
    stopping(&d);
    d.sigterm();
    assert_eq!(events.end_of(&running).0, "interrupted");
    assert_eq!(d.exit_code(), 0);
    let report: Value = serde_json::from_str(&d.sql::<String>("SELECT report FROM boots")).unwrap();
    assert_eq!(
        (&report["urgency"], &report["clean"], &report["sessions"][0]["outcome"]),
        (&json!("fast"), &json!(true), &json!("interrupted"))
    );
}

/// Checklist 17. A third one: agents are killed, the store is closed, exit 1; the next boot derives what was not written.
#[test]
fn three_signals_are_now() {
    let config = fake(&["--ignore-term", "--ignore-eof"], "");
    let mut d = Daemon::new().config(&config).start();
    let mut events = d.events("local:a");
    let running = d.post("local:a", "say begun; hang-hard");
    events.until("text");
    d.sigterm();
    stopping(&d);
    d.sigterm();
    d.log.find(0, "interrupting", |l| l.contains("interrupting"));
    d.sigterm();
    assert_eq!(d.exit_code(), 1);
    d.boot();
    let mut events = d.events("local:a");
    assert_eq!(events.end_of(&running).0, "interrupted");
    events.until_where("the continuation", |e| e.event == "turn_start" && e.data["continues"] == running["turn_id"]);
    d.act("local:a", "cancel");
    events.until_where("its end", |e| e.event == "turn_end" && e.data["turn_id"] != running["turn_id"]);
    assert_eq!(d.stop(), 0);
}

/// The same by command and by API; urgency only rises, a restart does not become of a shutdown.
#[test]
fn a_stop_by_the_api() {
    // A turn that lives in the daemon is waited for, whatever becomes of the agents.
    let echo = "[agent.echo]\nkind = \"echo\"\ndelay = \"5s\"\n[[route]]\nmatch = \"echo:*\"\nagent = \"echo\"\n";
    let (mut d, mut gate, _events, _) = in_a_turn(echo);
    let mut echoes = d.events("echo:a");
    d.post("echo:a", "x");
    echoes.until("turn_start");
    let post = |body: Value| d.client().post("/v1/stop", Some(&body));
    assert_eq!(
        d.refusal(Method::POST, "/v1/stop", Some(&json!({ "reason": "because" }))),
        (400, "invalid_parameter".into())
    );
    let refused = d.refusal(Method::POST, "/v1/stop", Some(&json!({ "agents": "some" })));
    assert_eq!(refused, (400, "invalid_parameter".into()));
    let asked = post(json!({ "reason": "shutdown", "urgency": "graceful", "agents": "keep" })).unwrap();
    assert_eq!((&asked["urgency"], &asked["agents"]), (&json!("graceful"), &json!("keep")));
    // What is to end is not kept after all.
    for (agents, now) in [(json!("keep"), "keep"), (json!(null), "end"), (json!("keep"), "end")] {
        assert_eq!(post(json!({ "reason": "shutdown", "agents": agents })).unwrap()["agents"], now);
        assert_eq!(d.status()["stop"]["agents"], now);
    }
    stopping(&d);
    let e = post(json!({ "reason": "restart" })).unwrap_err();
    assert_eq!((e.status, e.code.as_str()), (409, "conflict"));
    assert_eq!(d.refusal(Method::POST, "/v1/reload", None).0, 503);
    assert_eq!(d.status()["stop"]["urgency"], "graceful");
    gate.open();
    assert_eq!(d.exit_code(), 0);
}

/// Checklist 18. SIGHUP in a stop is refused and logged.
#[test]
fn no_reload_in_a_stop() {
    let (mut d, mut gate, _events, _) = in_a_turn("");
    d.sigterm();
    stopping(&d);
    let from = d.log.count();
    d.signal(Signal::HUP);
    d.log.find(from, "a refusal", |l| l.contains("reload refused"));
    gate.open();
    assert_eq!(d.exit_code(), 0);
}

/// Checklist 20. An agent that ignores cancel, SIGTERM and the end of its input is killed, with what it started; the exit is in order.
#[test]
fn a_stubborn_agent_is_ended() {
    let config =
        format!("[shutdown]\ndrain = \"10ms\"\ninterrupt = \"2s\"\n{}", fake(&["--ignore-term", "--ignore-eof"], ""));
    let mut d = Daemon::new().config(&config).start();
    let mut events = d.events("local:a");
    let running = d.post("local:a", "child; grandchild; outlaw; hang-hard");
    events.until_where("all three", |e| e.event == "text" && e.text("text").contains("outlaw"));
    d.sigterm();
    assert_eq!(events.end_of(&running).0, "interrupted");
    // exit_code() looks for anything that is left.
    assert_eq!(d.exit_code(), 0);
}

/// Checklist 20, 22. The same at rest: an idle agent that has to be killed is no reason for an exit that is not in order.
#[test]
fn a_stubborn_agent_at_rest_is_ended() {
    let mut d = Daemon::new().config(&fake(&["--ignore-term", "--ignore-eof"], "")).start();
    d.send("local:a", "child; grandchild; say ready");
    assert_eq!(d.stop(), 0);
}

/// Checklist 26. Streams left open, clients that do not read, requests that stop half-way: none delays a stop.
#[test]
fn clients_do_not_delay_a_stop() {
    use std::io::Write as _;
    let mut d = Daemon::new().config(&fake(&[], "")).start();
    let mut half = d.raw();
    half.write_all(
        b"POST /v1/sessions/local%3Aa/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{\"te",
    )
    .unwrap();
    let mut head = d.raw();
    head.write_all(b"GET /v1/sta").unwrap();
    let idle = d.raw();
    let mut deaf = d.raw();
    deaf.write_all(b"GET /v1/events?after=0&deltas=1 HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut streams: Vec<Events> = (0..5).map(|_| d.events("local:a")).collect();
    // More than a socket holds.
    assert_eq!(d.turn("local:a", "flood 8000").outcome(), "completed");
    for s in &mut streams {
        s.until("turn_end");
    }
    d.sigterm();
    d.wait_log("closing → ended");
    let since = Instant::now();
    assert_eq!(d.exit_code(), 0);
    assert!(since.elapsed() < Duration::from_secs(5), "their share is half a second: {:?}", since.elapsed());
    for s in streams {
        // Each is closed, not left to hang.
        s.rest();
    }
    drop((half, head, idle, deaf));
}

/// Checklist 25. After the exit a successor can write at once, and nothing of the lock is in its way.
#[test]
fn the_database_is_released() {
    let mut d = Daemon::new().start();
    d.send("local:a", "x");
    assert_eq!(d.stop(), 0);
    let db = rusqlite::Connection::open(d.path("state/ostler.db")).unwrap();
    db.busy_timeout(Duration::ZERO).unwrap();
    db.execute_batch("BEGIN IMMEDIATE; CREATE TABLE t (x); ROLLBACK").unwrap();
    drop(db);
    assert!(!d.socket().exists(), "the socket is removed");
    d.boot();
    assert_eq!(d.send("local:a", "y"), "echo: y");
    assert_eq!(d.stop(), 0);
}

/// Checklist 9. A session whose agent is still starting is not marked: its message is answered after the boot.
#[test]
fn a_starting_session_is_not_marked() {
    let mut d = Daemon::new().config(&format!("[shutdown]\ndrain = \"50ms\"\n{}", fake(&["--never-init"], ""))).start();
    let mut events = d.events("local:a");
    let waiting = d.post("local:a", "say late");
    events.until("session_start");
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM sessions WHERE mark_reason IS NOT NULL"), 0);
    assert_eq!(d.sql::<String>("SELECT state FROM turns"), "queued");
    d.write_config(&fake(&[], ""));
    d.boot();
    assert_eq!(d.events("local:a").end_of(&waiting).0, "completed");
    assert_eq!(d.said("local:a"), ["user: say late", "agent: late"]);
    assert_eq!(d.stop(), 0);
}

/// Checklist 22. Many sessions, running and idle: each end once, those running interrupted, all within the budget.
#[test]
fn many_sessions_end_once_each() {
    let config = format!(
        "[shutdown]\ndrain = \"50ms\"\n{}[agent.echo]\nkind = \"echo\"\nmax_processes = 100\n[[route]]\nmatch = \"echo:*\"\nagent = \"echo\"\n",
        fake(&[], "")
    );
    let mut d = Daemon::new().config(&config).start();
    for n in 0..40 {
        d.send(&format!("echo:{n}"), "x");
    }
    let gate = d.gate("gate");
    for n in 0..6 {
        let mut events = d.events(&format!("local:{n}"));
        d.post(&format!("local:{n}"), &format!("say x; wait-file {}", gate.path.display()));
        events.until("text");
    }
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM activations WHERE end_reason='shutdown'"), 46);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM sessions WHERE mark_reason='shutdown_timeout'"), 6);
    let report: Value = serde_json::from_str(&d.sql::<String>("SELECT report FROM boots")).unwrap();
    assert_eq!(report["sessions"].as_array().unwrap().len(), 46);
}

/// `ostler send` goes on over a restart, and prints the one answer.
#[test]
fn send_waits_over_a_restart() {
    let mut d = Daemon::new()
        .config("[shutdown]\ndrain = \"10ms\"\n[agent.default]\nkind = \"echo\"\ndelay = \"300ms\"\n")
        .start();
    let mut command = d.command(&["send", "a", "hello", "--timeout", "25s"]);
    // No process of the daemon's: by its home it would be taken for one.
    command.env("HOME", "/nonexistent");
    let sender = std::thread::spawn(move || crate::daemon::run(&mut command, ""));
    d.events("local:a").until("turn_start");
    assert_eq!(d.stop(), 0);
    d.boot();
    let ran = sender.join().unwrap();
    assert_eq!((ran.code, ran.out.as_str()), (0, "echo: hello\n"), "{ran:?}");
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM messages"), 1);
}
