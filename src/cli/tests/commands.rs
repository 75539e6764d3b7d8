//! Arguments, listings, the daemon's own commands, and the files for packages.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use clap::{CommandFactory as _, Parser as _};
use serde_json::{Value, json};

use crate::cli::args::Cli;
use crate::cli::testing::{Ran, at, file_in, ostler, ostler_typed};
use crate::cli::{parse, reach_with};
use crate::client::testing::{Answer, Fake, Request, event, refusal};

fn usage_error(args: &[&str]) -> String {
    let e = Cli::try_parse_from(std::iter::once(&"ostler").chain(args)).expect_err("taken");
    assert_eq!(e.exit_code(), 2, "{args:?}");
    e.to_string()
}

#[test]
fn the_command_line_is_sound_and_wrong_usage_is_refused() {
    Cli::command().debug_assert();
    usage_error(&[]);
    usage_error(&["dance"]);
    usage_error(&["stop", "--fast", "--now"]);
    usage_error(&["status", "--url", "http://h", "--socket", "/s"]);
    usage_error(&["hooks", "retry"]);
    usage_error(&["hooks", "retry", "id", "--all"]);
    usage_error(&["hooks", "check"]);
    assert!(usage_error(&["send", "a", "b", "--timeout", "soon"]).contains("not a duration"));
    usage_error(&["send", "a", "b", "--timeout", "0s"]);
    for zero in [&["sessions", "--limit", "0"][..], &["transcript", "a", "--limit", "0"], &["events", "a", "-n", "0"]] {
        assert!(usage_error(zero).contains("must be at least 1"), "{zero:?}");
    }
    assert!(usage_error(&["hooks", "retry"]).contains("<ID|--all>"));
    usage_error(&["sessions", "--quiet", "--json"]);
    usage_error(&["transcript", "a", "-n", "2", "--after", "1"]);
    for fine in [
        &["send", "a", "-"][..],
        &["send", "a", "-5 degrees"],
        &["send", "a", "b", "--timeout", "never", "--id", "x"],
        &["serve", "--replace", "--no-resume", "--state-dir", "/s"],
        &["stop", "--now", "--json"],
        &["--socket", "/s", "status"],
        &["--url", "http://h", "--token-file", "/t", "hooks", "list"],
        &["hooks", "--socket", "/s", "failed"],
        &["ls", "-q"],
        &["rm", "a", "-y"],
        &["logs", "a", "-f", "-n", "5"],
        &["events", "a", "-f", "-n", "5"],
    ] {
        assert!(Cli::try_parse_from(std::iter::once(&"ostler").chain(fine)).is_ok(), "{fine:?}");
    }
    assert_eq!(Cli::try_parse_from(["ostler", "--help"]).expect_err("help").exit_code(), 0);
}

#[test]
fn every_command_says_when_the_daemon_is_not_there() {
    let nowhere = Path::new("/nonexistent/ostler.sock");
    for args in [
        &["sessions"][..],
        &["show", "a"],
        &["transcript", "a"],
        &["events", "a"],
        &["export", "a"],
        &["cancel", "a"],
        &["reset", "a"],
        &["suspend", "a"],
        &["resume", "a"],
        &["delete", "a"],
        &["hold"],
        &["release"],
        &["status"],
        &["status", "--watch"],
        &["stop"],
        &["restart"],
        &["reload"],
        &["report"],
        &["hooks", "list"],
        &["hooks", "failed"],
        &["hooks", "fire", "session_end"],
        &["backup", "/tmp/x"],
        &["send", "a", "b"],
        &["send", "a", "b", "--no-wait"],
        &["transcript", "a", "--follow"],
        &["transcript", "a", "-n", "3"],
        &["events", "a", "--follow"],
    ] {
        let Ran { code, out, err } = at(nowhere, args);
        assert_eq!((code, out.as_str()), (69, ""), "{args:?}");
        assert!(err.starts_with("ostler: /nonexistent/ostler.sock: the daemon is not there: "), "{args:?}: {err}");
    }
    let Ran { code, out, err } = at(nowhere, &["status", "--json"]);
    assert_eq!((code, out.as_str()), (69, ""));
    let error: Value = serde_json::from_str(&err).unwrap();
    assert_eq!(error["error"]["code"], "unreachable", "{err}");
}

/// Before the command or after it, from flags or the environment; what is given twice is refused.
#[test]
fn the_daemon_is_named_by_flags_or_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "secret\n").unwrap();
    let token = token.to_str().unwrap();
    let reach = |args: &[&str], vars: &[(&str, &str)]| {
        let args: Vec<_> = std::iter::once("ostler").chain(args.iter().copied()).map(Into::into).collect();
        let (cli, _) = parse(&args).map_err(|e| e.to_string())?;
        let env = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        reach_with(&cli.to, &env).map(|c| c.name().to_owned()).map_err(|f| format!("{} {}", f.code, f.text))
    };
    let (url, socket) = (("OSTLER_URL", "http://env"), ("OSTLER_SOCKET", "/env.sock"));
    for (args, vars, want) in [
        (&["--socket", "/a", "status"][..], &[url, socket][..], Ok("/a")),
        (&["status", "--socket", "/a"], &[url], Ok("/a")),
        (&["hooks", "list", "--url", "http://a"], &[url, socket], Ok("http://a")),
        (&["--url", "http://a", "hooks", "list"], &[], Ok("http://a")),
        (&["status"], &[url], Ok("http://env")),
        (&["status"], &[url, ("OSTLER_TOKEN_FILE", token)], Ok("http://env")),
        (&["--token-file", token, "status"], &[url], Ok("http://env")),
        (&["status"], &[socket, ("OSTLER_TOKEN_FILE", "/nonexistent")], Ok("/env.sock")),
        (&["status"], &[url, socket], Err("2 $OSTLER_SOCKET and $OSTLER_URL are both set")),
        (&["--socket", "/a", "status", "--url", "http://b"], &[], Err("2 --socket and --url")),
        (&["status", "--token-file", token], &[], Err("2 --token-file: is for --url")),
        (&["status"], &[url, ("OSTLER_TOKEN_FILE", "/nonexistent")], Err("1 /nonexistent: ")),
        (&["status"], &[("OSTLER_URL", "ftp://h")], Err("2 $OSTLER_URL: ")),
    ] {
        match (reach(args, vars), want) {
            (Ok(name), Ok(want)) => assert_eq!(name, want, "{args:?} {vars:?}"),
            (Err(why), Err(want)) => assert!(why.starts_with(want), "{args:?} {vars:?}: {why}"),
            (other, _) => panic!("{args:?} {vars:?}: {other:?}"),
        }
    }
    // None is there: each place that was looked at is named, the user's own first.
    let home = dir.path().to_str().unwrap();
    let name = reach(&["status"], &[("HOME", home)]).unwrap();
    assert!(name.starts_with(&format!("{home}/.local/state/ostler/ostler.sock, ")), "{name}");
    assert!(name.ends_with(crate::config::paths::SERVICE_SOCKET), "{name}");
}

/// Each command shows two examples, and each of them is a command line that is taken.
#[test]
fn every_command_has_examples_that_work() {
    let mut cli = Cli::command();
    cli.build();
    let mut examples = 0;
    let mut leaves: Vec<clap::Command> = Vec::new();
    for command in cli.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        let below: Vec<_> = command.get_subcommands().filter(|c| c.get_name() != "help").cloned().collect();
        leaves.extend(if below.is_empty() { vec![command.clone()] } else { below });
    }
    for command in leaves {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let lines = help.split("Examples:\n").nth(1).unwrap_or_else(|| panic!("{}: no examples", command.get_name()));
        let lines: Vec<_> = lines.lines().collect();
        assert!(lines.len() >= 2, "{}: {help}", command.get_name());
        for line in lines {
            let line =
                line.split(" > ").next().unwrap().split(" | ").last().unwrap().trim().replace("\"How are you?\"", "x");
            if let Err(e) = Cli::try_parse_from(line.split_whitespace()) {
                panic!("{line}: {e}");
            }
            assert!(line.split_whitespace().any(|w| w == command.get_name()), "{line}");
            examples += 1;
        }
    }
    assert!(examples > 50, "{examples}");
    let help = Cli::try_parse_from(["ostler", "transcript", "--help"]).expect_err("help").to_string();
    assert!(help.find("--after").unwrap() < help.find("--json").unwrap(), "own options come first: {help}");
}

fn session(key: &str, n: usize) -> Value {
    json!({
        "key": key, "id": format!("id-{n}"), "state": "live", "agent": "default", "turns": n, "queued": 0,
        "turn": { "id": "t", "state": "running", "tool": "ls" }, "updated_at": "2020-01-01T00:00:00Z",
        "resume_pending": { "reason": "crash", "marked_at": "2020-01-01T00:00:00Z" }
    })
}

#[test]
fn listings_follow_their_pages() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::start(&dir.path().join("s"), |r| {
        let second = r.path.contains("cursor=c%202");
        let next = if second { Value::Null } else { json!("c 2") };
        let key = if second { "local:b\u{1b}" } else { "local:a" };
        Answer::Json(200, json!({ "sessions": [session(key, 2)], "next_cursor": next }))
    });
    let socket = dir.path().join("s");
    let ran = at(&socket, &["sessions", "--state", "live,running"]);
    let rows: Vec<Vec<&str>> = ran.out.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["KEY", "STATE", "AGENT", "TURNS", "QUEUED", "UPDATED", "ID"], "{}", ran.out);
    assert_eq!(rows[1][..6], ["local:a", "running,", "interrupted", "default", "2", "-"], "{}", ran.out);
    assert_eq!((rows.len(), rows[2][0]), (3, "local:b"), "no control character reaches a terminal");
    let seen = fake.seen();
    assert_eq!(seen[0].path, "/v1/sessions?limit=200&state=live%2Crunning");
    assert_eq!(seen[1].path, "/v1/sessions?limit=200&state=live%2Crunning&cursor=c%202");
    let ran = at(&socket, &["sessions", "--json", "--limit", "1"]);
    let json: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((json["sessions"].as_array().unwrap().len(), &json["next_cursor"]), (1, &json!("c 2")));
}

#[test]
fn a_session_is_shown_and_acted_on() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::start(&dir.path().join("s"), |r| match r.path.as_str() {
        "/v1/sessions/local%3Aghost" => refusal(404, "session_not_found"),
        "/v1/sessions/local%3A" => refusal(400, "invalid_key"),
        _ => Answer::Json(200, session("local:a", 2)),
    });
    let socket = dir.path().join("s");
    let ran = at(&socket, &["show", "a"]);
    assert!(ran.out.starts_with("local:a\nid "), "{}", ran.out);
    assert!(ran.out.contains("running t, tool ls") && ran.out.contains("crash, "), "{}", ran.out);
    assert_eq!(at(&socket, &["show", "a", "--json"]).out, format!("{:#}\n", session("local:a", 2)));
    let ran = at(&socket, &["show", "ghost"]);
    let want = "ostler: local:ghost: because of session_not_found (session_not_found)\n";
    assert_eq!((ran.code, ran.err.as_str()), (1, want));
    assert_eq!(at(&socket, &["show", ""]).code, 2);
    for args in [
        &["cancel", "a"][..],
        &["cancel", "a", "--queued"],
        &["reset", "a"],
        &["suspend", "a"],
        &["resume", "0190a3c4-7b1e-7abc-8def-0123456789ab"],
        &["delete", "a"],
        &["delete", "a", "--all", "--files"],
    ] {
        let ran = at(&socket, args);
        assert!(ran.code == 0 && ran.out.ends_with("(session id-2, live)\n"), "{args:?}: {ran:?}");
    }
    let lines: Vec<_> = fake.seen().iter().filter(|r| r.method != "GET").map(Request::line).collect();
    let a = "/v1/sessions/local%3Aa";
    assert_eq!(
        lines,
        [
            format!("POST {a}/cancel"),
            format!("POST {a}/cancel?queued=1"),
            format!("POST {a}/reset"),
            format!("POST {a}/suspend"),
            "POST /v1/sessions/0190a3c4-7b1e-7abc-8def-0123456789ab/resume".into(),
            format!("DELETE {a}"),
            format!("DELETE {a}?all=1&files=1"),
        ]
    );
}

#[test]
fn a_transcript_is_read_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::start(&dir.path().join("s"), |r| {
        let entry = |seq: i64, role: &str, text: &str| json!({ "seq": seq, "role": role, "text": text, "at": "then" });
        if !r.path.contains("/transcript") {
            return Answer::Json(200, json!({ "key": "local:a", "id": "s1", "created_at": "then" }));
        }
        Answer::Json(
            200,
            match r.path.contains("after=2") {
                false => json!({ "entries": [entry(1, "user", "hi"), entry(2, "system", "a\nb")], "next": 2 }),
                true => json!({
                    "entries": [
                        { "seq": 3, "role": "tool", "text": "", "title": "ls", "status": "failed" },
                        entry(4, "agent", "hello")
                    ],
                    "next": null
                }),
            },
        )
    });
    let socket = dir.path().join("s");
    let ran = at(&socket, &["transcript", "a"]);
    assert_eq!(
        ran.out,
        "[1] user then\nhi\n\n[2] system then\na\nb\n\n[3] tool \nls (failed)\n\n[4] agent then\nhello\n\n"
    );
    let ran = at(&socket, &["transcript", "a", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap()["entries"].as_array().unwrap().len(), 4);
    let ran = at(&socket, &["export", "a"]);
    let want = "# local:a\n\nSession s1, begun then.\n\n## User (then)\n\nhi\n\n\
        > Note: a\n> b\n\n> Tool: ls (failed)\n\n\
        ## Agent (then)\n\nhello\n";
    assert_eq!(ran.out, want);
    let ran = at(&socket, &["export", "a", "--json"]);
    let seqs: Vec<_> = ran.out.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["seq"].clone()).collect();
    assert_eq!(seqs, [1, 2, 3, 4]);
    at(&socket, &["transcript", "a", "--after", "7", "--limit", "3"]);
    let paths: Vec<_> = fake.seen().into_iter().map(|r| r.path).collect();
    assert!(paths.iter().any(|p| p == "/v1/sessions/local%3Aa/transcript?limit=3&after=7"), "{paths:?}");
}

#[test]
fn events_are_printed_a_line_each() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::start(&dir.path().join("s"), |r| match r.path.as_str() {
        "/v1/status" => Answer::Json(200, json!({ "boot_id": "b" })),
        p if p.ends_with("after=4") => refusal(401, "unauthorized"),
        _ => Answer::Sse(
            event(3, "turn_start", json!({ "at": "then", "turn_id": "t2", "continues": "t1" }))
                + &event(4, "text", json!({ "at": "then", "text": "a\nb" })),
        ),
    });
    let socket = dir.path().join("s");
    let ran = at(&socket, &["events", "a"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "3 then turn_start t2 continues t1\n4 then text a\\nb\n"));
    let ran = at(&socket, &["events", "a", "--json", "--follow", "--after", "2"]);
    assert_eq!(ran.code, 1, "it goes on until it is refused: {}", ran.err);
    assert!(ran.err.contains("waiting for the daemon") && ran.err.contains("unauthorized"), "{}", ran.err);
    let second: Value = serde_json::from_str(ran.out.lines().nth(1).unwrap()).unwrap();
    assert_eq!(second, json!({ "id": 4, "event": "text", "data": { "at": "then", "text": "a\nb" } }));
    let paths: Vec<_> = fake.seen().iter().map(|r| r.path.clone()).collect();
    let events = "/v1/sessions/local%3Aa/events";
    assert_eq!(paths, ["?after=0&follow=0", "?after=2", "?after=4"].map(|q| format!("{events}{q}")));
}

fn status(boot: &str, phase: &str, stop: Value) -> Value {
    json!({
        "version": "0", "pid": null, "boot_id": boot, "phase": phase, "held": true, "supervised": true,
        "started_at": "2020-01-01T00:00:00Z", "threads": 7, "dropped_log_lines": 0, "stop": stop,
        "sessions": {
            "live": 2, "running": 1, "idle": 1, "queued": 3, "waiting": 0, "parked": 4, "suspended": 0,
            "resume_pending": 0
        },
        "hooks": { "pending": 0, "delivered": 9, "failed": 2 }
    })
}

fn blocking(urgency: &str, tool: &str) -> Value {
    let at = crate::clock::rfc3339(crate::clock::now() + 30_000);
    let blocking = json!([{ "key": "local:a", "turn_id": "t", "age_ms": 1500, "tool": tool }]);
    json!({ "reason": "shutdown", "urgency": urgency, "deadline_at": at, "blocking": blocking })
}

/// A daemon that stops when it is told to, and comes back under `next`.
fn stopping(dir: &tempfile::TempDir, supervised: bool, report: Option<Value>) -> Fake {
    let mut after_stop: Option<u32> = None;
    let mut urgency = String::new();
    Fake::start(&dir.path().join("s"), move |r| match r.line().as_str() {
        "POST /v1/stop" => {
            after_stop = Some(0);
            urgency = r.json()["urgency"].as_str().unwrap().to_owned();
            Answer::Json(202, json!({}))
        }
        "GET /v1/status" => Answer::Json(
            200,
            match &mut after_stop {
                None => {
                    let mut s = status("old", "running", Value::Null);
                    s["supervised"] = supervised.into();
                    s
                }
                Some(n) => {
                    *n += 1;
                    match *n {
                        1 => status("old", "draining", blocking(&urgency, "ls")),
                        2 => status("old", "draining", blocking(&urgency, "make")),
                        3 => status("new", "starting", Value::Null),
                        _ => status("new", "running", Value::Null),
                    }
                }
            },
        ),
        "GET /v1/reports/old?wait=1" => match &report {
            Some(report) => Answer::Json(200, report.clone()),
            None => Answer::Gone,
        },
        "GET /v1/reports/old" => Answer::Json(200, json!({ "clean": true, "sessions": [] })),
        _ => refusal(404, "not_found"),
    })
}

#[test]
fn a_stop_shows_what_blocks_and_reports_how_it_went() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let outcome = |word: &str| json!({ "key": "k", "outcome": word });
    let clean = json!({ "clean": true, "sessions": [outcome("finished"), outcome("idle"), outcome("idle")] });
    let fake = stopping(&dir, true, Some(clean));
    let ran = at(&socket, &["stop", "--fast"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.starts_with("stopped after ") && ran.out.ends_with(": 1 finished, 2 idle\n"), "{}", ran.out);
    assert_eq!(ran.err, "ostler: draining: local:a 1.5s, ls\nostler: draining: local:a 1.5s, make\n");
    let asked = fake.seen().into_iter().find(|r| r.path == "/v1/stop").unwrap();
    assert_eq!(asked.json(), json!({ "reason": "shutdown", "urgency": "fast" }));
    drop(fake);

    // Whether agents are kept is said only where it is not as configured.
    let kept = json!({ "clean": true, "sessions": [] });
    let fake = stopping(&dir, true, Some(kept));
    assert_eq!(at(&socket, &["stop", "--keep"]).code, 0);
    let asked = fake.seen().into_iter().find(|r| r.path == "/v1/stop").unwrap();
    assert_eq!(asked.json(), json!({ "reason": "shutdown", "urgency": "graceful", "agents": "keep" }));
    drop(fake);

    let fake = stopping(&dir, true, Some(json!({ "clean": false, "sessions": [outcome("abandoned")] })));
    let ran = at(&socket, &["stop"]);
    assert!(ran.code == 1 && ran.out.ends_with(", not clean: 1 abandoned\n"), "{ran:?}");
    drop(fake);

    let fake = stopping(&dir, true, None);
    assert_eq!(at(&socket, &["stop", "--now"]).code, 1, "without a report a `now` is not clean");
    drop(fake);
    let _fake = Fake::start(&socket, |r| match r.path.as_str() {
        "/v1/status" => Answer::Json(200, status("old", "draining", Value::Null)),
        _ => refusal(409, "conflict"),
    });
    let ran = at(&socket, &["restart"]);
    assert_eq!((ran.code, ran.err.as_str()), (1, "ostler: restart: because of conflict (conflict)\n"), "{ran:?}");
}

#[test]
fn without_a_daemon_what_its_agents_left_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nobody");
    let of = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    for command in [vec!["stop"], vec!["doctor", "--end-agents"]] {
        let run = |name: &str| at(&socket, &[&command[..], &["--state-dir", &of(name)]].concat());
        let ran = run("left");
        assert!(ran.code == 0 && ran.out.ends_with("left: no daemon; 3 processes of its agents ended\n"), "{ran:?}");
        let ran = run("stuck");
        assert_eq!((ran.code, ran.err.as_str()), (1, "ostler: process 7 (agent) could not be ended\n"), "{ran:?}");
        let ran = run("owned");
        assert!(ran.code == 69 && ran.err.contains("another ostler owns it"), "{ran:?}");
    }
    // Nothing is left: the daemon that is not there is what is told, as where only a socket is named.
    for more in [vec!["--state-dir", "/none"], vec![]] {
        let ran = at(&socket, &[&["stop"][..], &more].concat());
        assert!(ran.code == 69 && ran.err.contains("the daemon is not there"), "{ran:?}");
    }
    let ran = at(&socket, &["doctor", "--end-agents", "--state-dir", "/none"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "no process of an agent is left\n"), "{ran:?}");
}

#[test]
fn a_restart_waits_for_the_next_boot_if_there_will_be_one() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let fake = stopping(&dir, true, None);
    let ran = at(&socket, &["restart"]);
    assert!(ran.code == 0 && ran.out.starts_with("restarted (boot new) after "), "{ran:?}");
    drop(fake);
    let fake = stopping(&dir, true, None);
    assert_eq!(at(&socket, &["restart", "--end"]).code, 0);
    let asked = fake.seen().into_iter().find(|r| r.path == "/v1/stop").unwrap();
    assert_eq!(asked.json(), json!({ "reason": "restart", "urgency": "graceful", "agents": "end" }));
    drop(fake);
    // Without a service manager it is the same process that goes on.
    let _fake = stopping(&dir, false, None);
    let ran = at(&socket, &["restart"]);
    assert!(ran.code == 0 && ran.out.starts_with("restarted (boot new) after "), "{ran:?}");
}

#[test]
fn status_says_what_matters() {
    let dir = tempfile::tempdir().unwrap();
    let _fake =
        Fake::start(&dir.path().join("s"), |_| Answer::Json(200, status("b", "draining", blocking("fast", "ls"))));
    let socket = dir.path().join("s");
    let out = at(&socket, &["status"]).out;
    for want in [
        "draining, held",
        "2 live (1 running, 1 idle), 4 parked, 0 suspended",
        "3 queued",
        "9 delivered, 2 set aside",
        "shutdown (fast), over by ",
        "  local:a 1.5s, ls",
    ] {
        assert!(out.contains(want), "{want}: {out}");
    }
    assert!(serde_json::from_str::<Value>(&at(&socket, &["status", "--json"]).out).is_ok());
}

#[test]
fn the_daemons_own_commands_say_what_came_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut reloads = 0;
    let fake = Fake::start(&dir.path().join("s"), move |r| match r.line().as_str() {
        "POST /v1/reload" => {
            reloads += 1;
            match reloads {
                1 => Answer::Json(
                    200,
                    json!({ "changed": ["sessions.max_live", "http.listen"], "needs_restart": ["http.listen"] }),
                ),
                _ => refusal(422, "invalid_config"),
            }
        }
        "POST /v1/backup" => Answer::Json(200, json!({ "path": "x", "bytes": 2048 })),
        _ => Answer::Json(202, json!({})),
    });
    let socket = dir.path().join("s");
    let ran = at(&socket, &["reload"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "reloaded: sessions.max_live, http.listen\n"));
    assert!(ran.err.contains("needs a restart to take effect: http.listen"), "{}", ran.err);
    assert_eq!(at(&socket, &["reload"]).code, 78);
    assert!(at(&socket, &["hold"]).out.starts_with("held"));
    assert!(at(&socket, &["release"]).out.starts_with("released"));
    let ran = at(&socket, &["backup", "copy.db"]);
    assert!(ran.code == 0 && ran.out.contains("copy.db: written (2"), "{ran:?}");
    let path = fake.seen().last().unwrap().json()["path"].as_str().unwrap().to_owned();
    assert!(Path::new(&path).is_absolute() && path.ends_with("/copy.db"), "{path}");
}

/// It is said first what will be done; a terminal is asked, a script says `--yes`.
#[test]
fn a_restore_asks_first() {
    let to = ["--state-dir", "/tmp/state", "--socket", "/nonexistent/ostler.sock"];
    let args = |more: &[&'static str]| [&["restore", "copy.db"], &to[..], more].concat();
    let ran = ostler(&args(&[]));
    assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{ran:?}");
    assert!(ran.err.contains("--yes"), "{ran:?}");
    let ran = ostler_typed("no\n", &args(&[]));
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.out.contains("2 sessions; the newest message is of 2026-11-22T01:36:12.345Z"), "{ran:?}");
    assert!(ran.out.contains("cannot be read: it is damaged") && ran.out.contains("kept as /tmp/state/old"), "{ran:?}");
    assert!(ran.err.contains("Restore it? [y/N]") && ran.err.contains("copy.db: not restored"), "{ran:?}");
    let ran = ostler_typed("y\n", &args(&[]));
    assert!(ran.code == 0 && ran.out.contains("/tmp/state/ostler.db: restored"), "{ran:?}");
    assert!(ran.out.contains("ostler serve --no-resume"), "{ran:?}");
    let ran = ostler(&args(&["--yes", "--json"]));
    let told: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((ran.code, &told["database"], ran.err.as_str()), (0, &json!("/tmp/state/ostler.db"), ""));
    let ran = ostler(&[&["restore", "other.db", "--yes"], &to[..]].concat());
    assert_eq!((ran.code, ran.err.as_str()), (69, "ostler: /tmp/state: another ostler owns it\n"));
}

#[test]
fn reports_and_hooks_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let report = |boot: &str, at: &str| {
        json!({
            "boot_id": boot, "reason": "shutdown", "urgency": "graceful", "clean": true, "started_at": at,
            "ended_at": at,
            "phases": [{ "phase": "draining", "planned_ms": 30000, "took_ms": 1250 }],
            "sessions": [{
                "key": "local:a", "outcome": "interrupted", "tool": "ls", "resume_pending": true,
                "end_event": "delivered"
            }]
        })
    };
    let fake = Fake::start(&dir.path().join("s"), move |r| match r.line().as_str() {
        "GET /v1/reports" => Answer::Json(200, json!({ "reports": [report("b1", "2020"), report("b2", "2021")] })),
        "GET /v1/reports/b1" => Answer::Json(200, report("b1", "2020")),
        "GET /v1/hooks" => Answer::Json(
            200,
            json!({ "hooks": [{ "event": "session_end", "script": "a.lua", "line": 3, "calls": 2 }] }),
        ),
        "GET /v1/hooks/failed" => Answer::Json(
            200,
            json!({ "failed": [{ "event_id": "e2" }, { "event_id": "e1" }, { "event_id": "e2" },
                { "event_id": "e3", "state": "orphaned" }] }),
        ),
        "POST /v1/hooks/fire" => {
            Answer::Json(200, json!({ "results": [{ "script": "a.lua", "outcome": "failed", "error": "boom" }] }))
        }
        "POST /v1/hooks/failed/gone/retry" => refusal(404, "not_found"),
        _ => Answer::Json(200, json!({})),
    });
    let socket = dir.path().join("s");
    assert!(at(&socket, &["report"]).out.contains("boot b2, 2021"), "the newest");
    let out = at(&socket, &["report", "b1"]).out;
    let words: Vec<_> = out.split_whitespace().collect();
    assert!(words.join(" ").contains("draining 1.2s 30.0s") && out.contains("will be continued"), "{out}");
    assert_eq!(at(&socket, &["report", "--all"]).out.lines().count(), 3);
    assert!(at(&socket, &["hooks", "list"]).out.contains("a.lua"));
    let ran = at(&socket, &["hooks", "fire", "session_end"]);
    assert!(ran.code == 1 && ran.out.contains("boom"), "a handler that fails fails the command: {ran:?}");
    assert_eq!(
        at(&socket, &["hooks", "retry", "--all"]).out,
        "e1: will be delivered again\ne2: will be delivered again\n"
    );
    assert_eq!(at(&socket, &["hooks", "retry", "gone"]).code, 1);
    assert_eq!(at(&socket, &["hooks", "discard", "e 1"]).code, 0);
    assert_eq!(fake.seen().last().unwrap().line(), "DELETE /v1/hooks/failed/e%201");
}

#[test]
fn scripts_and_configurations_are_checked_without_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| file_in(dir.path(), name, text);
    let (good, bad) = (file("good.lua", ""), file("bad.lua", "bad"));
    let config = file("ostler.toml", "\n[sessions]\nmax_live = 0");
    let empty = file("empty.toml", "[agent.unused]");
    let ran = ostler(&["hooks", "check", &bad, &good, "--config", &empty]);
    assert_eq!(ran.code, 78);
    let warned = format!("ostler: {good}:1: warning: global 'x' does not exist\n");
    assert_eq!(ran.err, format!("ostler: {bad}:2: unexpected symbol\n{warned}"));
    assert_eq!(ran.out, format!("{good}: valid\n"), "the others are checked all the same");
    let ran = ostler(&["check-config", &config]);
    assert_eq!((ran.code, ran.out.as_str()), (78, ""));
    assert_eq!(ran.err, format!("ostler: {config}:3: sessions.max_live: 0 would let no session run; at least 1\n"));
    let ran = ostler(&["check-config", &empty]);
    assert_eq!((ran.code, ran.out), (0, format!("{empty}: valid\n")));
    assert!(ran.err.contains("agent.unused: is never used"), "{}", ran.err);
    assert_eq!(ostler(&["check-config", "/nonexistent.toml"]).code, 78);
    let ran = ostler(&["serve", "--config", &config]);
    assert_eq!(ran.code, 78, "and the daemon does not start with it");
}

#[test]
fn an_event_is_fired_with_fields_of_ones_own_and_at_a_script_without_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| file_in(dir.path(), name, text);
    let (fields, list, broken) = (file("f.json", r#"{"text": "hi"}"#), file("l.json", "[1]"), file("b.json", "{"));
    let (empty, script) = (file("empty.toml", ""), file("a.lua", ""));
    let fake = Fake::start(&dir.path().join("s"), |_| Answer::Json(200, json!({ "handlers": [] })));
    let socket = dir.path().join("s");
    let ran = at(&socket, &["hooks", "fire", "message", "--fields", &fields]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "message: no handler is registered for it\n"));
    let seen = fake.seen();
    assert_eq!(seen[0].json(), json!({ "event": "message", "fields": { "text": "hi" } }));
    let with = ["hooks", "fire", "message", "--fields", &fields, "--script", &script, "--config", &empty];
    let ran = ostler(&with);
    assert_eq!(ran.code, 0, "{ran:?}");
    for words in ["a.lua", "answer: {\"text\":\"hi\"}", "sent to local:b: hello", "kv n = 1"] {
        assert!(ran.out.contains(words), "{words}: {}", ran.out);
    }
    let ran = ostler(&[&with[..], &["--json"]].concat());
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap()["kv"]["n"], 1, "--json is about the output");
    assert_eq!(fake.seen().len(), seen.len(), "no daemon is asked");
    let bad = file("bad.json", r#"{"bad": 1}"#);
    for (args, code, why) in [
        (vec!["message", "--fields", &list], 1, "l.json: an object of fields expected"),
        (vec!["message", "--fields", &broken], 1, "b.json: EOF"),
        (vec!["message", "--fields", "/nonexistent"], 1, "/nonexistent: "),
        (vec!["dance", "--script", &script, "--config", &empty], 2, "dance: no such event: one of daemon_start"),
        (vec!["message", "--fields", &bad, "--script", &script, "--config", &empty], 78, "a.lua:2: unexpected"),
    ] {
        let ran = ostler(&[&["hooks", "fire"][..], &args].concat());
        assert!(ran.code == code && ran.err.contains(why), "{args:?}: {ran:?}");
    }
    usage_error(&["hooks", "fire", "message", "--config", "x"]);
    usage_error(&["hooks", "fire", "message", "--script", "x", "--socket", "y"]);
}

#[test]
fn the_doctor_finds_what_will_go_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let socket = path("none.sock");
    let write = |name: &str, text: &str, mode: u32| {
        std::fs::write(dir.path().join(name), text).unwrap();
        std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    std::fs::create_dir_all(dir.path().join("hooks.d")).unwrap();
    std::fs::create_dir_all(dir.path().join("state")).unwrap();
    for sub in ["state", "hooks.d"] {
        std::fs::set_permissions(dir.path().join(sub), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    write("hooks.d/a.lua", "", 0o666);
    write("token", "secret", 0o644);
    let config = "[http]\ntoken_file = \"token\"\n[agent.default]\nkind = \"exec\"\ncommand = [\"no-such-program\"]\n";
    write("ostler.toml", config, 0o644);
    let (config, state) = (path("ostler.toml"), path("state"));
    let doctor = ["doctor", "--config", &config, "--state-dir", &state, "--socket", &socket, "--json"];
    let ran = ostler(&doctor);
    assert_eq!(ran.code, 1, "{}", ran.out);
    let found: Value = serde_json::from_str(&ran.out).unwrap();
    let verdict = |name: &str, piece: &str| {
        let all = found["checks"].as_array().unwrap();
        let one = all.iter().find(|c| c["name"] == name && c["found"].as_str().unwrap().contains(piece));
        one.unwrap_or_else(|| panic!("{name}, {piece}: {found:#}"))["verdict"].clone()
    };
    assert_eq!(verdict("hooks", "others could write"), "bad");
    assert_eq!(verdict("http.token_file", "readable for others"), "warning");
    assert_eq!(verdict("agent default", "no-such-program"), "warning");
    assert_eq!(verdict("state directory", "open to everybody"), "warning");
    assert_eq!(verdict("configuration", "is valid"), "good");
    assert_eq!(verdict("daemon", "not running"), "skipped");
    write("hooks.d/a.lua", "", 0o644);
    assert_eq!(ostler(&doctor).code, 0, "warnings alone are no failure");
    write("ostler.toml", "[sessions]\nmax_live = 0", 0o644);
    let ran = ostler(&doctor[..7]);
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("ostler.toml:2: sessions.max_live"), "{}", ran.out);
}
