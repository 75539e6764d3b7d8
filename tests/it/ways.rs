//! What must be true of every way in and every way out: ends, releases, the closed store, and a start that nothing holds up.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::http::Method;

use ostler::client::session_path;

use crate::daemon::{Daemon, PATIENCE, fake, run};

/// Another process can write at once.
#[track_caller]
fn writable(d: &Daemon) {
    let db = rusqlite::Connection::open(d.path("state/ostler.db")).unwrap();
    db.busy_timeout(Duration::ZERO).unwrap();
    db.execute_batch("BEGIN IMMEDIATE; CREATE TABLE t (x); ROLLBACK").unwrap();
}

/// Checklist 16. Without time to drain a running turn is interrupted at once; with it the drain ends the moment the turn does.
#[test]
fn a_drain_takes_what_it_needs() {
    for drain in ["0s", "40s"] {
        let config = format!("[shutdown]\ndrain = \"{drain}\"\ninterrupt = \"5s\"\nhooks = \"5s\"\n{}", fake(&[], ""));
        let mut d = Daemon::new().config(&config).start();
        let (mut gate, mut events, turn) = d.waiting("local:a", "");
        let since = Instant::now();
        d.sigterm();
        if drain != "0s" {
            d.wait_log("are marked");
            gate.open();
        }
        let (outcome, _) = events.end_of(&turn);
        assert_eq!(outcome, if drain == "0s" { "interrupted" } else { "completed" });
        assert_eq!(d.exit_code(), 0);
        assert!(since.elapsed() < Duration::from_secs(20), "{drain}: {:?}", since.elapsed());
    }
}

/// Checklist 22. One of the idle sessions has an agent that must be killed, and the agent of another is dead already: each
/// gets its one end, and the stop is in order.
#[test]
fn idle_agents_that_fail_to_close() {
    let config = format!(
        "{}[agent.bad]\nkind = \"acp\"\ncommand = [\"@FAKE@\", \"--ignore-term\", \"--ignore-eof\"]\n\
         [[route]]\nmatch = \"local:bad*\"\nagent = \"bad\"\n[shutdown]\ninterrupt = \"2s\"\n",
        fake(&[], "")
    );
    let mut d = Daemon::new().config(&config).start();
    for key in ["local:a", "local:bad", "local:b"] {
        d.send(key, "say x");
    }
    assert_eq!(d.turn("local:gone", "bye").outcome(), "completed");
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM events WHERE kind='session_end'"), 4);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM activations WHERE end_reason='shutdown'"), 4);
}

/// Checklist 23. Fifty sessions released by many clients at once, by reset, delete and suspend, leave nothing live behind
/// and touch no other; after the stop none is live.
#[test]
fn fifty_released_at_once() {
    let mut d = Daemon::new().config("[agent.default]\nkind = \"echo\"\nmax_processes = 100\n").start();
    let keys: Vec<String> = (0..50).map(|n| format!("local:r{n}")).collect();
    let others: Vec<String> = (0..10).map(|n| format!("local:keep{n}")).collect();
    for key in keys.iter().chain(&others) {
        d.send(key, "x");
    }
    assert_eq!(d.status()["sessions"]["live"], 60);
    std::thread::scope(|scope| {
        for (n, key) in keys.iter().enumerate() {
            let client = d.client();
            scope.spawn(move || match n % 3 {
                0 => client.post(&session_path(key, "/reset"), None).unwrap(),
                1 => client.delete(&session_path(key, "")).unwrap(),
                _ => client.post(&session_path(key, "/suspend"), None).unwrap(),
            });
        }
    });
    // Each worker says its end; then it is gone.
    let mut all = crate::daemon::Events::open(&d.client(), "/v1/events?after=0", None);
    for _ in 0..50 {
        all.until("session_end");
    }
    let live = |d: &Daemon| d.get("/v1/sessions?state=live&limit=1000")["sessions"].as_array().unwrap().len();
    for key in &others {
        assert_eq!(d.send(key, "y"), "echo: y", "the others are as they were");
        assert_eq!(d.show(key)["epoch"], 1);
    }
    assert_eq!(live(&d), 10);
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM activations"), 60);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM activations WHERE closed_at IS NULL"), 0);
    d.boot();
    assert_eq!((live(&d), &d.status()["sessions"]["live"]), (0, &json!(0)));
    assert_eq!(d.stop(), 0);
}

/// Checklist 25. The store is closed on every way out: a start that fails after it was opened, a stop by each urgency, and
/// one in which a reader of somebody else's holds up the close.
#[test]
fn the_store_is_closed_on_every_way_out() {
    let mut d = Daemon::new().start();
    d.send("local:a", "x");
    for urgency in ["graceful", "fast", "now"] {
        d.client().post("/v1/stop", Some(&json!({ "reason": "shutdown", "urgency": urgency }))).unwrap();
        assert_eq!(d.exit_code(), i32::from(urgency == "now"));
        writable(&d);
        d.boot();
        d.send("local:a", urgency);
    }
    assert_eq!(d.stop(), 0);
    // No place for its socket.
    std::fs::write(d.socket(), "mine").unwrap();
    assert_eq!(d.refuses().code, 74);
    std::fs::remove_file(d.socket()).unwrap();
    assert!(!d.path("state/ostler.db-wal").exists(), "the log was not folded in");
    writable(&d);
    // Somebody reads an old state of the database while it is to be folded in.
    d.boot();
    let reader = rusqlite::Connection::open(d.path("state/ostler.db")).unwrap();
    reader.execute_batch("BEGIN").unwrap();
    let _: i64 = reader.query_row("SELECT count(*) FROM events", [], |r| r.get(0)).unwrap();
    d.send("local:a", "while it reads");
    d.sigterm();
    let code = d.ended().code().unwrap();
    assert!(code == 0 || code == 1, "{code}");
    let writer = rusqlite::Connection::open(d.path("state/ostler.db")).unwrap();
    writer.busy_timeout(Duration::ZERO).unwrap();
    writer.execute_batch("BEGIN IMMEDIATE; CREATE TABLE t (x); ROLLBACK").unwrap();
    drop((reader, writer));
    d.boot();
    assert!(d.said("local:a").contains(&"agent: echo: while it reads".to_owned()));
    assert_eq!(d.stop(), 0);
    writable(&d);
}

/// Checklist 29. A lock file that names a process which lives and has nothing to do with it does not block.
#[test]
fn a_pid_of_somebody_else_does_not_block() {
    let mut d = Daemon::new();
    std::fs::create_dir(d.path("state")).unwrap();
    std::fs::write(d.path("state/lock"), format!("{}\n", std::process::id())).unwrap();
    d.boot();
    assert_eq!(std::fs::read_to_string(d.path("state/lock")).unwrap(), format!("{}\n", d.pid()));
    assert_eq!(d.stop(), 0);
}

/// Checklist 32. READY comes while a handler of `daemon_start` spins and an agent cannot start, and a message is accepted
/// and answered at once.
#[test]
fn ready_waits_for_nobody() {
    let config = format!(
        "[hooks]\ntimeout = \"20s\"\n[shutdown]\nhooks = \"1s\"\n{}[agent.bad]\nkind = \"acp\"\ncommand = [\"@FAKE@\", \"--never-init\"]\n\
         [[route]]\nmatch = \"local:bad\"\nagent = \"bad\"\n",
        fake(&[], "")
    );
    let script = "ostler.on(\"daemon_start\", function() while true do end end)\n";
    let mut d = Daemon::new().config(&config);
    d.boot();
    d.post("local:bad", "waits for its agent");
    d.kill9();
    d.write_hook("spin.lua", script);
    let since = Instant::now();
    d.boot();
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    assert_eq!(d.get("/readyz")["status"].as_str().unwrap_or("ready"), "ready");
    assert_eq!(d.post("local:a", "say hello")["deferred"], false);
    assert!(since.elapsed() < Duration::from_secs(12), "{:?}", since.elapsed());
    d.sigterm();
    assert!(matches!(d.exit_code(), 0 | 1));
}

/// Checklist 40. First messages under one key at once make one session.
#[test]
fn first_messages_at_once_make_one_session() {
    let mut d = Daemon::new().start();
    for round in 0..10 {
        let key = format!("local:k{round}");
        let ids: Vec<String> = std::thread::scope(|scope| {
            let post = || d.post(&key, "x")["session_id"].as_str().unwrap().to_owned();
            let clients: Vec<_> = (0..8).map(|_| scope.spawn(post)).collect();
            clients.into_iter().map(|c| c.join().unwrap()).collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }
    let mut events = d.events("local:order");
    let turns: Vec<Value> = (0..20).map(|n| d.post("local:order", &format!("m{n}"))).collect();
    assert_eq!(events.end_of(turns.last().unwrap()).0, "completed");
    let said: Vec<String> = d.said("local:order").into_iter().filter(|l| l.starts_with("user")).collect();
    assert_eq!(said, (0..20).map(|n| format!("user: m{n}")).collect::<Vec<_>>(), "in the order of their 202s");
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM sessions"), 11);
}

/// Checklist 49. One turn at a time reaches a session's agent, however many clients write.
#[test]
fn one_turn_at_a_time() {
    let script = "mkdir @DIR@/one || echo TWO; cat; rmdir @DIR@/one";
    let config = format!("[agent.default]\nkind = \"exec\"\ncommand = [\"/bin/sh\", \"-c\", \"{script}\"]\n");
    let mut d = Daemon::new().config(&config).start();
    let answers: Vec<String> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..6)
            .map(|n| {
                let d = &d;
                scope.spawn(move || (0..3).map(|m| d.send("local:a", &format!("{n}.{m}"))).collect::<Vec<_>>())
            })
            .collect();
        clients.into_iter().flat_map(|c| c.join().unwrap()).collect()
    });
    assert_eq!(answers.len(), 18);
    assert!(answers.iter().all(|a| !a.contains("TWO")), "{answers:?}");
    assert_eq!(d.stop(), 0);
}

/// Checklist 50. An agent has its three streams open and nothing else of the daemon's, nor of what that was started with: a
/// script's lock, say, that would be held until the last agent is gone.
#[test]
fn no_open_file_leaks() {
    let config = "[agent.default]\nkind = \"exec\"\ncommand = [\"/bin/sh\", \"-c\", \"echo /proc/$$/fd/*\"]\n";
    let mut d = Daemon::new().config(config);
    d.set_wrapper(&["sh", "-c", "exec 7>/dev/null 8</dev/null; exec \"$@\"", "sh"]);
    let mut d = d.start();
    let mut streams: Vec<_> = (0..3).map(|_| d.events("local:b")).collect();
    d.send("local:b", "x");
    streams.iter_mut().for_each(|s| drop(s.until("turn_end")));
    let listed = d.send("local:a", "x");
    let open: Vec<&str> = listed.split_whitespace().filter_map(|p| p.rsplit('/').next()).collect();
    // The shell itself has the directory open while it lists it.
    let others: Vec<&&str> = open.iter().filter(|n| !["0", "1", "2"].contains(n)).collect();
    assert!(others.len() <= 1, "{listed}");
    assert_eq!(d.stop(), 0);
}

/// Checklist 27. While it stops the status has its phase, what blocks it and counts that are never negative; the report has
/// every phase and each session's outcome.
#[test]
fn a_stop_is_shown_and_reported() {
    let config = format!(
        "[shutdown]\ndrain = \"20s\"\n{}[agent.echo]\nkind = \"echo\"\n[[route]]\nmatch = \"echo:*\"\nagent = \"echo\"\n",
        fake(&[], "")
    );
    let mut d = Daemon::new().config(&config).start();
    d.send("echo:idle", "x");
    let mut gate = d.gate("gate");
    let mut cut = d.events("local:cut");
    d.post("local:cut", "say begun; tool-open slowly; hang");
    cut.until_where("the tool", |e| e.event == "tool");
    let mut ends = d.events("local:ends");
    let turn = d.post("local:ends", &format!("say begun; wait-file {}", gate.path.display()));
    ends.until("text");
    d.sigterm();
    d.wait_log("are marked");
    let status = d.status();
    assert_eq!(status["phase"], "draining");
    let counts = status["sessions"].as_object().unwrap();
    assert!(counts.values().all(|n| n.as_u64().is_some()), "{status}");
    assert_eq!(status["sessions"]["running"], 2, "{status}");
    let blocking = status["stop"]["blocking"].as_array().unwrap();
    let of = |key: &str| blocking.iter().find(|b| b["key"] == key).unwrap_or_else(|| panic!("{status}"));
    assert_eq!(blocking.len(), 2, "{status}");
    assert_eq!(of("local:cut")["tool"], "Run slowly", "{status}");
    assert!(of("local:ends")["age_ms"].as_u64().is_some_and(|age| age < 60_000), "{status}");
    gate.open();
    assert_eq!(ends.end_of(&turn).0, "completed");
    d.sigterm();
    assert_eq!(d.exit_code(), 0);
    let report: Value = serde_json::from_str(&d.sql::<String>("SELECT report FROM boots")).unwrap();
    let phases: Vec<&str> = report["phases"].as_array().unwrap().iter().map(|p| p["phase"].as_str().unwrap()).collect();
    assert_eq!(phases, ["draining", "interrupting", "sweeping", "calling_hooks", "closing"], "{report}");
    for phase in report["phases"].as_array().unwrap() {
        assert!(phase["planned_ms"].as_u64().is_some() && phase["took_ms"].as_u64().is_some(), "{report}");
    }
    let outcome = |key: &str| {
        let session = report["sessions"].as_array().unwrap().iter().find(|s| s["key"] == key);
        let session = session.unwrap_or_else(|| panic!("{key}: {report}"));
        (session["outcome"].as_str().unwrap().to_owned(), session["resume_pending"].as_bool().unwrap())
    };
    assert_eq!(outcome("echo:idle"), ("idle".into(), false));
    assert_eq!(outcome("local:ends"), ("finished".into(), false));
    assert_eq!(outcome("local:cut"), ("interrupted".into(), true));
    // The same by the API of the next boot, and by the command.
    d.boot();
    let reports = d.get("/v1/reports");
    assert_eq!(reports["reports"].as_array().or_else(|| reports.as_array()).unwrap().len(), 1, "{reports}");
    let ran = run(&mut d.command(&["report"]), "");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("local:cut") && ran.out.contains("interrupted"), "{ran:?}");
    let _ = d.client().request(Method::POST, &session_path("local:cut", "/cancel"), None, PATIENCE);
    assert_eq!(d.stop(), 0);
}
