//! A conversation with the echo agent, by the API and by the commands.

use serde_json::{Value, json};
use ureq::http::Method;

use crate::daemon::{Daemon, run};
use ostler::client::session_path;

/// The fields of an object, in the order of the contract.
#[track_caller]
pub fn assert_fields(value: &Value, fields: &[&str]) {
    let object = value.as_object().unwrap_or_else(|| panic!("no object: {value}"));
    for field in fields {
        assert!(object.contains_key(*field), "{field} is missing in {value}");
    }
}

const SESSION: &[&str] = &[
    "key",
    "id",
    "state",
    "epoch",
    "agent",
    "turn",
    "queued",
    "resume_pending",
    "unclean",
    "created_at",
    "updated_at",
    "ended_at",
    "end_reason",
    "previous_id",
    "next_id",
    "turns",
    "messages",
];

/// A message is accepted with every field of the contract, answered on the same connection, and kept.
#[test]
fn a_message_is_answered() {
    let mut d = Daemon::new().start();
    let turn = d.turn("local:a", "hello");
    assert_eq!(turn.outcome(), "completed");
    assert_eq!(turn.text(), "echo: hello");
    let a = &turn.accepted;
    assert_fields(
        a,
        &["session_id", "turn_id", "message_id", "duplicate", "continued_by", "deferred", "queued", "notice"],
    );
    assert_eq!(
        (&a["duplicate"], &a["continued_by"], &a["deferred"], &a["queued"], &a["notice"]),
        (&json!(false), &Value::Null, &json!(false), &json!(0), &Value::Null)
    );
    let kinds: Vec<_> = turn.events.iter().map(|e| e.event.as_str()).collect();
    assert_eq!(kinds, ["turn_start", "text", "turn_end"]);
    for e in &turn.events {
        assert_fields(&e.data, &["key", "session_id", "turn_id", "at"]);
        assert_eq!((e.text("key"), e.text("turn_id")), ("local:a", turn.id()));
    }
    assert_eq!(d.said("local:a"), ["user: hello", "agent: echo: hello"]);
    assert_eq!(d.stop(), 0);
}

/// The second message goes on in the same session, and `GET` shows it with the contract's fields.
#[test]
fn a_session_goes_on_and_is_shown() {
    let mut d = Daemon::new().start();
    let (a, b) = (d.turn("local:a", "one"), d.turn("local:a", "two"));
    assert_eq!(a.session(), b.session());
    assert_ne!(a.id(), b.id());
    let shown = d.show("local:a");
    assert_fields(&shown, SESSION);
    assert_eq!(shown, d.show(a.session()));
    assert_eq!(shown["state"], "live");
    assert_eq!(
        (&shown["turns"], &shown["messages"], &shown["epoch"], &shown["turn"], &shown["agent"]),
        (&json!(2), &json!(2), &json!(1), &Value::Null, &json!("default"))
    );
    for entry in d.transcript("local:a") {
        assert_fields(&entry, &["seq", "turn_id", "role", "text", "at"]);
    }
    assert_eq!(d.stop(), 0);
}

/// Pages of a transcript join without a gap, and `next` is null at the end.
#[test]
fn a_transcript_has_pages() {
    let d = Daemon::new().start();
    for n in 0..5 {
        d.send("local:a", &format!("m{n}"));
    }
    let (mut after, mut all) = (0, Vec::new());
    loop {
        let page = d.get(&session_path("local:a", &format!("/transcript?after={after}&limit=3")));
        let entries = page["entries"].as_array().unwrap();
        assert!(entries.len() <= 3 && !entries.is_empty(), "{page}");
        all.extend(entries.iter().map(|e| e["text"].as_str().unwrap().to_owned()));
        match page["next"].as_i64() {
            Some(next) => after = next,
            None => break,
        }
    }
    let want: Vec<String> = (0..5).flat_map(|n| [format!("m{n}"), format!("echo: m{n}")]).collect();
    assert_eq!(all, want);
}

/// The listing has all but ended sessions, filters by state, and pages by cursor.
#[test]
fn sessions_are_listed() {
    let d = Daemon::new().start();
    for n in 0..5 {
        d.send(&format!("local:k{n}"), "x");
    }
    d.act("local:k0", "reset");
    d.act("local:k1", "suspend");
    let keys = |path: &str| {
        let mut keys: Vec<String> = d.get(path)["sessions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| {
                assert_fields(s, SESSION);
                format!("{} {}", s["key"].as_str().unwrap(), s["state"].as_str().unwrap())
            })
            .collect();
        keys.sort();
        keys
    };
    let all = ["local:k0 parked", "local:k1 suspended", "local:k2 live", "local:k3 live", "local:k4 live"];
    assert_eq!(keys("/v1/sessions"), all);
    assert_eq!(keys("/v1/sessions?state=ended"), ["local:k0 ended"]);
    assert_eq!(keys("/v1/sessions?state=ended,suspended"), ["local:k0 ended", "local:k1 suspended"]);
    assert_eq!(keys("/v1/sessions?state=running"), Vec::<String>::new());
    assert_eq!(d.refusal(Method::GET, "/v1/sessions?state=nonsense", None), (400, "invalid_parameter".into()));
    assert_eq!(keys("/v1/sessions?key=local:k0&state=ended,parked"), ["local:k0 ended", "local:k0 parked"]);
    assert_eq!(d.refusal(Method::GET, "/v1/sessions?key=nonsense", None), (400, "invalid_key".into()));
    assert!(d.cli(&["sessions", "--key", "k2"]).ok().contains("local:k2"));
    // Whoever asks for a suspended one by its key is told where it is.
    let lost = d.cli(&["show", "k1"]);
    let id = d.get("/v1/sessions?key=local:k1")["sessions"][0]["id"].as_str().unwrap().to_owned();
    assert!(lost.code == 1 && lost.err.contains(&id), "{lost:?}");
    let (mut cursor, mut seen) = (String::new(), 0);
    loop {
        let page = d.get(&format!("/v1/sessions?limit=2{cursor}"));
        seen += page["sessions"].as_array().unwrap().len();
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, 5);
}

/// The status has the contract's fields, and counts what there is.
#[test]
fn the_status_has_its_fields() {
    let mut d = Daemon::new().start();
    d.send("local:a", "x");
    let s = d.status();
    assert_fields(
        &s,
        &[
            "version",
            "pid",
            "boot_id",
            "phase",
            "held",
            "started_at",
            "supervised",
            "state_dir",
            "config",
            "sessions",
            "hooks",
            "threads",
            "dropped_log_lines",
            "clock_problem",
            "stop",
        ],
    );
    assert_fields(
        &s["sessions"],
        &["live", "running", "idle", "queued", "waiting", "parked", "suspended", "resume_pending"],
    );
    assert_fields(&s["hooks"], &["pending", "delivered", "failed"]);
    assert_eq!((&s["phase"], &s["stop"], &s["held"]), (&json!("running"), &Value::Null, &json!(false)));
    assert_eq!((&s["sessions"]["live"], &s["sessions"]["idle"]), (&json!(1), &json!(1)));
    assert_eq!(s["pid"], d.pid());
    for path in ["/healthz", "/readyz"] {
        d.get(path);
    }
    let metrics = d.get("/metrics");
    assert!(metrics.as_str().unwrap().lines().any(|l| l.starts_with("ostler_")), "{metrics}");
    assert_eq!(d.stop(), 0);
}

/// `send` prints the answer, reads stdin for `-`, and with `--no-wait` prints the 202.
#[test]
fn send_prints_the_answer() {
    let mut d = Daemon::new().start();
    assert_eq!(d.cli(&["send", "a", "hello"]).ok(), "echo: hello\n");
    assert_eq!(d.cli_in(&["send", "a", "-"], "from stdin").ok(), "echo: from stdin\n");
    let accepted = d.cli(&["send", "a", "later", "--no-wait", "--id", "one"]).json();
    assert_fields(&accepted, &["session_id", "turn_id", "message_id", "duplicate", "deferred", "queued"]);
    let again = d.cli(&["send", "a", "later", "--no-wait", "--id", "one"]).json();
    assert_eq!((&again["turn_id"], &again["duplicate"]), (&accepted["turn_id"], &json!(true)));
    // Waiting for a duplicate gives the answer of the one turn.
    assert_eq!(d.cli(&["send", "a", "later", "--id", "one"]).ok(), "echo: later\n");
    assert_eq!(d.stop(), 0);
    let messages: i64 = d.sql("SELECT count(*) FROM messages");
    assert_eq!(messages, 3);
}

/// `chat` talks line by line from a pipe, under the key that it is given.
#[test]
fn chat_talks_from_a_pipe() {
    let mut d = Daemon::new().start();
    let out = d.cli_in(&["chat", "local:c"], "first\nsecond\n").ok();
    let (one, two) = (out.find("echo: first").unwrap(), out.find("echo: second").unwrap());
    assert!(one < two, "{out}");
    assert_eq!(d.said("local:c"), ["user: first", "agent: echo: first", "user: second", "agent: echo: second"]);
    assert_eq!(d.stop(), 0);
}

/// `--json` of each listing is the API's JSON.
#[test]
fn json_of_the_commands_is_that_of_the_api() {
    let d = Daemon::new().start();
    d.send("local:a", "hello");
    assert_eq!(d.cli(&["sessions", "--json"]).json(), d.get("/v1/sessions"));
    assert_eq!(d.cli(&["show", "a", "--json"]).json(), d.show("local:a"));
    let transcript = d.cli(&["transcript", "a", "--json"]).json();
    assert_eq!(transcript["entries"], json!(d.transcript("local:a")));
    let status = d.cli(&["status", "--json"]).json();
    assert_fields(&status, &["version", "pid", "boot_id", "phase", "sessions", "hooks"]);
    assert_eq!(d.cli(&["hooks", "list", "--json"]).json(), d.get("/v1/hooks"));
    assert_eq!(d.cli(&["hooks", "failed", "--json"]).json(), d.get("/v1/hooks/failed"));
    let events = d.cli(&["events", "a", "--json"]).ok();
    let events: Vec<Value> = events.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(events.len(), d.past("local:a").len());
    let export = d.cli(&["export", "a", "--json"]).ok();
    let lines: Vec<Value> = export.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(lines.iter().any(|l| l["text"] == "echo: hello"), "{export}");
}

/// The same for people: each names what it is about.
#[test]
fn commands_speak_to_people() {
    let d = Daemon::new().start();
    d.send("local:a", "hello there");
    for (args, want) in [
        (&["sessions"][..], "local:a"),
        (&["show", "a"], "local:a"),
        (&["transcript", "a"], "echo: hello there"),
        (&["events", "a"], "session_start"),
        (&["export", "a"], "hello there"),
        (&["status"], "running"),
    ] {
        let out = d.cli(args).ok();
        assert!(out.contains(want), "{args:?}: {out}");
    }
}

/// 1 failed, 2 wrong usage, 69 not there, 78 configuration; `ostler: what: why` on stderr, nothing on stdout.
#[test]
fn commands_fail_with_their_codes() {
    let d = Daemon::new().start();
    let failed = |args: &[&str], code: i32, what: &str| {
        let ran = d.cli(args);
        assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{args:?}: {ran:?}");
        assert!(ran.err.contains(what), "{args:?}: {ran:?}");
        ran.err
    };
    for (args, code, what) in [
        (&["show", "nobody"][..], 1, "local:nobody"),
        (&["reset", "nobody"], 1, "local:nobody"),
        (&["transcript", "nobody"], 1, "local:nobody"),
        (&["report"], 1, ""),
        (&["send", "a", ""], 2, "local:a"),
        (&["status", "--socket", "/nonexistent/sock"], 69, "/nonexistent/sock"),
        (&["send", "a", "x", "--socket", "/nonexistent/sock"], 69, "/nonexistent/sock"),
    ] {
        let err = failed(args, code, what);
        let line = err.lines().next().unwrap();
        assert!(line.starts_with("ostler: ") && line[8..].contains(": "), "{args:?}: {err}");
    }
    failed(&["no-such-command"], 2, "no-such-command");
    failed(&["send", "a"], 2, "TEXT");
    let bad = d.path("bad.toml");
    std::fs::write(&bad, "[sessions]\nmax_live = 10\nno_such_key = 1\n").unwrap();
    let ran = d.cli(&["check-config", bad.to_str().unwrap()]);
    assert_eq!(ran.code, 78, "{ran:?}");
    assert!(ran.err.contains("bad.toml:3") && ran.err.contains("no_such_key"), "{ran:?}");
    std::fs::write(&bad, "[sessions]\nmax_live = 10\n").unwrap();
    assert_eq!(d.cli(&["check-config", bad.to_str().unwrap()]).code, 0);
}

/// `reset`, `suspend`, `resume`, `cancel`, `delete`, `hold`, `release` do what they say; a UUID is an id.
#[test]
fn commands_act() {
    let mut d = Daemon::new().start();
    let first = d.turn("local:a", "one").session().to_owned();
    d.cli(&["reset", "a"]).ok();
    assert_eq!(d.show(&first)["end_reason"], "reset");
    d.cli(&["cancel", "a"]).ok();
    d.cli(&["cancel", "a", "--queued"]).ok();
    let second = d.turn("local:a", "two").session().to_owned();
    d.cli(&["suspend", "a"]).ok();
    assert_eq!(d.show(&second)["state"], "suspended");
    d.cli(&["resume", &second]).ok();
    assert_eq!(d.show("local:a")["id"], second.as_str());
    d.cli(&["hold"]).ok();
    assert_eq!(d.status()["held"], true);
    let held = d.post("local:a", "held");
    assert_eq!(d.show("local:a")["queued"], 1);
    let mut events = d.events("local:a");
    d.cli(&["release"]).ok();
    events.until_where("the held turn's end", |e| e.event == "turn_end" && e.data["turn_id"] == held["turn_id"]);
    d.cli(&["delete", "a"]).ok();
    assert_eq!(d.cli(&["show", "a"]).code, 1);
    assert_eq!(d.stop(), 0);
}

/// `stop` waits and reports; `report` shows the stop of the boot before, with every phase.
#[test]
fn stop_and_report_by_command() {
    let mut d = Daemon::new().start();
    d.send("local:a", "x");
    let boot = d.status()["boot_id"].as_str().unwrap().to_owned();
    d.cli(&["stop"]).ok();
    assert_eq!(d.exit_code(), 0);
    assert_eq!(d.cli(&["status"]).code, 69);
    // Without a daemon the database is read, and nothing is made beside it.
    let state = d.path("state");
    let files = || {
        let mut names: Vec<_> = std::fs::read_dir(&state).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = files();
    let offline = d.cli(&["report", "--json", "--state-dir", state.to_str().unwrap()]).json();
    assert_eq!(files(), before);
    d.boot();
    assert_eq!(offline, d.get(&format!("/v1/reports/{boot}")));
    let report = d.cli(&["report", "--json"]).json();
    assert_fields(&report, &["boot_id", "reason", "urgency", "clean", "started_at", "ended_at", "phases", "sessions"]);
    assert_eq!(report, d.get(&format!("/v1/reports/{boot}")));
    assert_eq!(
        (&report["boot_id"], &report["reason"], &report["clean"]),
        (&json!(boot), &json!("shutdown"), &json!(true))
    );
    let phases: Vec<_> = report["phases"].as_array().unwrap().iter().map(|p| p["phase"].as_str().unwrap()).collect();
    assert_eq!(phases, ["draining", "interrupting", "sweeping", "calling_hooks", "closing"]);
    for phase in report["phases"].as_array().unwrap() {
        assert_fields(phase, &["phase", "planned_ms", "took_ms"]);
    }
    assert_fields(&report["sessions"][0], &["key", "session_id", "outcome", "tool", "resume_pending", "end_event"]);
    assert_eq!((&report["sessions"][0]["key"], &report["sessions"][0]["outcome"]), (&json!("local:a"), &json!("idle")));
    assert!(d.cli(&["report", &boot]).ok().contains("draining"));
    assert_eq!(d.get("/v1/reports")["reports"].as_array().unwrap().len(), 1);
    assert_eq!(d.stop(), 0);
}

/// A copy made while the daemon runs is a whole database that a daemon starts on.
#[test]
fn a_backup_starts() {
    let d = Daemon::new().start();
    d.send("local:a", "kept");
    let file = d.path("copy.db");
    d.cli(&["backup", file.to_str().unwrap()]).ok();
    assert_eq!(d.cli(&["backup", file.to_str().unwrap()]).code, 1, "an existing file is not overwritten");
    let mut other = Daemon::new().arg("--no-resume");
    std::fs::create_dir(other.path("state")).unwrap();
    std::fs::copy(&file, other.path("state/ostler.db")).unwrap();
    other.boot();
    assert_eq!(other.said("local:a"), ["user: kept", "agent: echo: kept"]);
    assert_eq!(other.send("local:a", "more"), "echo: more");
    assert_eq!(other.stop(), 0);
}

/// A conversation survives a stop in order and a start: same session, same transcript, next epoch.
#[test]
fn a_conversation_survives_a_restart() {
    let mut d = Daemon::new().start();
    let before = d.turn("local:a", "one");
    d.restart();
    let shown = d.show("local:a");
    assert_eq!((&shown["state"], &shown["resume_pending"]), (&json!("parked"), &Value::Null));
    let after = d.turn("local:a", "two");
    assert_eq!(before.session(), after.session());
    assert_eq!(d.show("local:a")["epoch"], 2);
    assert_eq!(d.said("local:a"), ["user: one", "agent: echo: one", "user: two", "agent: echo: two"]);
    assert_eq!(d.stop(), 0);
}

/// A key or an id reaches the same session, and a message to an id reaches that very session or none.
#[test]
fn an_id_means_that_very_session() {
    let mut d = Daemon::new().start();
    let first = d.turn("local:a", "one").session().to_owned();
    assert_eq!(d.send(&first, "by id"), "echo: by id");
    let second = d.act("local:a", "reset")["id"].as_str().unwrap().to_owned();
    assert_ne!(first, second);
    let body = json!({ "text": "to the old" });
    assert_eq!(d.refusal(Method::POST, &session_path(&first, "/messages"), Some(&body)), (409, "ended".into()));
    assert_eq!(d.said(&first).len(), 4);
    assert_eq!(d.stop(), 0);
}

/// Completions and the version need no daemon.
#[test]
fn commands_without_a_daemon() {
    let d = Daemon::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(d.cli(&["completions", shell]).ok().contains("ostler"));
    }
    assert!(d.cli(&["--version"]).ok().contains(env!("CARGO_PKG_VERSION")));
    let script = d.path("hooks.d/a.lua");
    std::fs::write(&script, "ostler.on('turn_end', function() end)\n").unwrap();
    assert_eq!(run(d.command(&["hooks", "check"]).arg(&script), "").code, 0);
    std::fs::write(&script, "\nostler.on('no_such_event', function() end)\n").unwrap();
    let ran = run(d.command(&["hooks", "check"]).arg(&script), "");
    assert_eq!(ran.code, 78, "{ran:?}");
    assert!(ran.err.contains("a.lua:2") && ran.err.contains("no_such_event"), "{ran:?}");
    // A directory that `serve` refuses is refused here.
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(&script, "ostler.on('turn_end', function() end)\n").unwrap();
    let mode = |mode| std::fs::set_permissions(d.path("hooks.d"), std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o777);
    let config = d.path("ostler.toml");
    let ran = run(d.command(&["hooks", "check"]).arg(&script).arg("--config").arg(&config), "");
    assert!(ran.code == 78 && ran.err.contains("chmod go-w"), "{ran:?}");
    assert_eq!(d.refuses().code, 78, "as serve does");
    mode(0o755);
    assert_eq!(run(d.command(&["hooks", "check"]).arg(&script).arg("--config").arg(&config), "").code, 0);
}

/// A daemon that is stopped, or hangs, still has its connections accepted: no command waits for it, and none is carried out
/// later, when it goes on.
#[test]
fn a_frozen_daemon_is_told_and_nothing_is_left_to_be_done() {
    let mut d = Daemon::new().start();
    d.send("local:a", "hello");
    d.signal(rustix::process::Signal::STOP);
    for (args, code) in [
        (&["status"][..], 69),
        (&["hold"], 69),
        (&["sessions", "--json"], 69),
        (&["send", "a", "x"], 69),
        (&["send", "a", "x", "--timeout", "1s"], 124),
        (&["send", "a", "x", "--timeout", "1s", "--no-wait"], 124),
    ] {
        let ran = d.cli(args);
        assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{args:?}: {ran:?}");
        assert!(ran.err.contains("accepts connections but does not answer"), "{args:?}: {ran:?}");
        assert!(ran.err.contains(d.socket().to_str().unwrap()), "{args:?}: {ran:?}");
    }
    let doctor = d.cli(&["doctor", "--config", "/dev/null", "--state-dir", "/nonexistent"]);
    assert!(doctor.code == 1 && doctor.out.contains("does not answer"), "{doctor:?}");
    d.signal(rustix::process::Signal::CONT);
    assert_eq!(d.status()["held"], false, "a command that was given up is not carried out");
    assert_eq!(d.said("local:a"), ["user: hello", "agent: echo: hello"]);
    assert_eq!(d.stop(), 0);
}
