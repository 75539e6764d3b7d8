//! What a command shows of what was asked: tables that fit, ends of transcripts, JSON, questions before a deletion.

use serde_json::{Value, json};

use crate::cli::testing::{at, file_in, ostler, ostler_typed, ostler_wide};
use crate::client::testing::{Answer, Fake, event, refusal};

#[test]
fn sessions_fit_the_terminal_and_their_ids_stay_whole() {
    let dir = tempfile::tempdir().unwrap();
    let id = "0190a3c4-7b1e-7abc-8def-0123456789ab";
    let long = format!("telegram:{}", "4711".repeat(10));
    let all = [long.clone(), "local:a".to_owned(), "evil:\u{202e}a\u{200b}b".to_owned()].map(|key| {
        json!({ "key": key, "id": id, "state": "parked", "agent": "default", "turns": 3, "queued": 1,
            "updated_at": "2020-01-01T00:00:00Z", "resume_pending": { "reason": "crash" } })
    });
    let _fake = Fake::start(&dir.path().join("s"), move |r| {
        let more = if r.path.contains("limit=1&") || r.path.ends_with("limit=1") { json!("c") } else { Value::Null };
        Answer::Json(200, json!({ "sessions": all, "next_cursor": more }))
    });
    let socket = dir.path().join("s");
    let list = |width: u16, more: &[&str]| {
        ostler_wide(true, Some(width), &[&["sessions", "--socket", socket.to_str().unwrap()], more].concat())
    };
    for width in [80, 100, 120, 200] {
        let out = list(width, &[]).out;
        assert_eq!(out.lines().count(), 4, "{width}: {out}");
        assert!(out.lines().all(|l| l.chars().count() <= usize::from(width)), "{width}: {out}");
        assert_eq!(out.matches(id).count(), 3, "{width}: {out}");
        assert!(out.contains("interrupted") && out.contains("evil:ab"), "{width}: {out}");
    }
    assert!(list(80, &[]).out.contains("telegram:4711"), "as much of the key as there is room for");
    assert!(list(200, &[]).out.contains(&long));
    assert_eq!(list(80, &["--wide"]).out, list(200, &[]).out);
    assert_eq!(list(80, &["-q"]).out, format!("{id}\n").repeat(3));
    let ran = list(80, &["--limit", "1"]);
    assert_eq!((ran.out.lines().count(), ran.err.as_str()), (2, "ostler: sessions: there are more (--limit)\n"));
}

/// A person is asked before anything is deleted, a script is not.
#[test]
fn a_deletion_is_asked_for_on_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::start(&dir.path().join("s"), |_| Answer::Json(200, json!({ "id": "s1", "state": "ended" })));
    let socket = dir.path().join("s");
    let delete = |typed: &str, more: &[&str]| {
        let args = [&["delete", "a", "--socket", socket.to_str().unwrap()], more].concat();
        let before = fake.seen().len();
        let ran = ostler_typed(typed, &args);
        (ran, fake.seen().len() - before)
    };
    for no in ["\n", "n\n", "", "what\n"] {
        let (ran, asked) = delete(no, &[]);
        assert_eq!((ran.code, asked), (1, 0), "{no:?}: {ran:?}");
        let question = "Delete session local:a with its transcript? [y/N] ostler: local:a: not deleted\n";
        assert_eq!(ran.err, question, "{no:?}");
    }
    assert_eq!(delete("y\n", &[]).1, 1);
    let (ran, asked) = delete("", &["--yes", "--all"]);
    assert_eq!((ran.code, asked, ran.err.as_str()), (0, 1, ""), "{ran:?}");
    let (ran, _) = delete("n\n", &["--all", "--files"]);
    assert!(ran.err.starts_with("Delete every session under local:a with its transcript and its files? "), "{ran:?}");
}

#[test]
fn what_did_nothing_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let _fake = Fake::start(&dir.path().join("s"), |r| {
        let running = r.path.contains("busy");
        let turn = if running { json!({ "id": "t", "state": "running" }) } else { Value::Null };
        let mark = if running { json!({ "reason": "crash" }) } else { Value::Null };
        let queued = i64::from(running) * 2;
        Answer::Json(200, json!({ "id": "s", "state": "live", "turn": turn, "queued": queued, "resume_pending": mark }))
    });
    let socket = dir.path().join("s");
    for (args, want) in [
        (&["cancel", "idle"][..], "local:idle: no turn was running (session s, live)\n"),
        (&["cancel", "busy"], "local:busy: cancelled (session s, live)\n"),
        (&["cancel", "idle", "--queued"], "local:idle: no message was queued (session s, live)\n"),
        (&["cancel", "busy", "--queued"], "local:busy: cancelled 2 queued messages (session s, live)\n"),
        (&["resume", "idle"], "local:idle: nothing to resume (session s, live)\n"),
        (&["resume", "busy"], "local:busy: resumed (session s, live)\n"),
    ] {
        let ran = at(&socket, args);
        assert_eq!((ran.code, ran.out.as_str()), (0, want), "{args:?}");
    }
}

/// The newest entries and events, and those that come: with few requests, however much was said before.
#[test]
fn the_end_of_a_transcript_is_found_without_reading_it_all() {
    let dir = tempfile::tempdir().unwrap();
    // Numbers are shared with other sessions, so they have holes.
    let seqs: Vec<i64> = (1..=3000).map(|n| n * 7).collect();
    let all = seqs.clone();
    let fake = Fake::start(&dir.path().join("s"), move |r| {
        let query = |name: &str| {
            let value = r.path.split(['?', '&']).find_map(|p| p.strip_prefix(name)?.strip_prefix('='));
            value.map_or(0, |v| v.parse::<i64>().unwrap())
        };
        let (after, limit) = (query("after"), usize::try_from(query("limit")).unwrap());
        let left: Vec<_> = all.iter().filter(|s| **s > after).collect();
        let page: Vec<_> = left.iter().take(limit).map(|s| json!({ "seq": s, "role": "user", "text": "x" })).collect();
        let next = if left.len() > limit { page.last().map_or(Value::Null, |e| e["seq"].clone()) } else { Value::Null };
        Answer::Json(200, json!({ "entries": page, "next": next }))
    });
    let socket = dir.path().join("s");
    for n in [1, 10, 2999, 3000, 4000] {
        let before = fake.seen().len();
        let ran = at(&socket, &["transcript", "a", "-n", &n.to_string(), "--json"]);
        let told: Value = serde_json::from_str(&ran.out).unwrap();
        let got: Vec<i64> = told["entries"].as_array().unwrap().iter().map(|e| e["seq"].as_i64().unwrap()).collect();
        assert_eq!(got, seqs[seqs.len().saturating_sub(n)..], "{n}");
        let asked = fake.seen().len() - before;
        assert!(n > 100 || asked < 60, "{n}: {asked} requests");
    }
}

#[test]
fn the_last_events_are_printed() {
    let dir = tempfile::tempdir().unwrap();
    let _fake = Fake::start(&dir.path().join("s"), |_| {
        Answer::Sse((1..=5).map(|n| event(n, "text", json!({ "at": "then", "text": n.to_string() }))).collect())
    });
    let ran = at(&dir.path().join("s"), &["events", "a", "-n", "2"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "4 then text 4\n5 then text 5\n"));
}

/// Entries of a running turn come with its end; a break and another session lose and repeat nothing.
#[test]
fn a_transcript_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let mut streams = 0;
    let mut stage = 0;
    let _fake = Fake::start(&dir.path().join("s"), move |r| {
        let path = r.path.split('?').next().unwrap();
        match path.rsplit('/').next().unwrap() {
            "status" => Answer::Json(200, json!({ "boot_id": "b" })),
            "events" => {
                streams += 1;
                match streams {
                    1 => {
                        stage = 1;
                        Answer::Cut(event(1, "turn_end", json!({})))
                    }
                    2 => {
                        stage = 2;
                        Answer::Sse(event(2, "session_start", json!({})))
                    }
                    _ => refusal(401, "unauthorized"),
                }
            }
            "transcript" => {
                let after: i64 = r.path.rsplit("after=").next().and_then(|a| a.parse().ok()).unwrap_or(0);
                let mut all = vec![(1, "old", "t1"), (2, "old", "t2")];
                if stage >= 1 {
                    all.push((3, "old", "t2"));
                }
                if stage >= 2 {
                    all.push((5, "new", "t3"));
                }
                let of = path.split('/').nth(3).unwrap().to_owned();
                let entry = |(seq, _, turn): (i64, &str, &str)| json!({ "seq": seq, "turn_id": turn, "role": "user", "text": seq.to_string() });
                let found: Vec<_> = all.into_iter().filter(|(seq, s, _)| *seq > after && *s == of).map(entry).collect();
                Answer::Json(200, json!({ "entries": found, "next": null }))
            }
            _ if stage == 2 => Answer::Json(200, json!({ "id": "new", "turn": null })),
            _ if stage == 1 => Answer::Json(200, json!({ "id": "old", "turn": null })),
            _ => Answer::Json(200, json!({ "id": "old", "turn": { "id": "t2" } })),
        }
    });
    let ran = at(&dir.path().join("s"), &["transcript", "a", "--follow", "--json"]);
    assert_eq!(ran.code, 1, "it goes on until it is refused: {ran:?}");
    let seqs: Vec<_> = ran.out.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["seq"].clone()).collect();
    assert_eq!(seqs, [1, 2, 3, 5], "{ran:?}");
}

/// What was done, as JSON, and what was not.
#[test]
fn json_is_for_every_command_and_every_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| file_in(dir.path(), name, text);
    let (good, bad) = (file("good.lua", ""), file("bad.lua", "bad"));
    let (empty, wrong) = (file("empty.toml", "[agent.unused]"), file("wrong.toml", "[sessions]\nmax_live = 0"));
    let _fake = Fake::start(&dir.path().join("s"), |r| match r.line().as_str() {
        "POST /v1/backup" => Answer::Json(200, json!({ "path": "x", "bytes": 2048 })),
        "GET /v1/hooks/failed" => Answer::Json(200, json!({ "failed": [{ "event_id": "e1" }] })),
        "POST /v1/hooks/failed/gone/retry" => refusal(404, "not_found"),
        _ => Answer::Json(200, json!({})),
    });
    let socket = dir.path().join("s");
    let json = |args: &[&str]| {
        let ran = at(&socket, args);
        (ran.code, serde_json::from_str::<Value>(&ran.out).unwrap_or_else(|e| panic!("{args:?}: {e}: {ran:?}")))
    };
    assert_eq!(json(&["backup", "x", "--json"]), (0, json!({ "path": "x", "bytes": 2048 })));
    assert_eq!(json(&["hooks", "retry", "--all", "--json"]), (0, json!({ "retried": ["e1"] })));
    assert_eq!(json(&["hooks", "discard", "e9", "--json"]), (0, json!({ "discarded": ["e9"] })));
    let (code, checked) = json(&["hooks", "check", &bad, &good, "--config", &empty, "--json"]);
    assert_eq!((code, &checked["scripts"][0]["valid"]), (78, &json!(false)), "{checked}");
    assert_eq!(checked["scripts"][0]["error"], format!("{bad}:2: unexpected symbol"));
    assert_eq!((&checked["scripts"][1]["valid"], &checked["scripts"][1]["error"]), (&json!(true), &Value::Null));
    let (code, checked) = json(&["check-config", &empty, "--json"]);
    assert_eq!((code, &checked["valid"], &checked["file"]), (0, &json!(true), &json!(empty)), "{checked}");
    assert!(checked["warnings"][0].as_str().unwrap().contains("agent.unused"), "{checked}");
    for (args, code, word, piece) in [
        (&["check-config", &wrong, "--json"][..], 78, "invalid_config", "sessions.max_live"),
        (&["hooks", "retry", "gone", "--json"], 1, "not_found", "gone: "),
        (&["send", "a", "", "--json"], 2, "usage", "local:a"),
    ] {
        let ran = at(&socket, args);
        assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{args:?}: {ran:?}");
        let error: Value = serde_json::from_str(&ran.err).unwrap_or_else(|e| panic!("{args:?}: {e}: {ran:?}"));
        assert_eq!(error["error"]["code"], word, "{args:?}");
        assert!(error["error"]["message"].as_str().unwrap().contains(piece), "{args:?}: {error}");
    }
    let roots = file(
        "roots.toml",
        "[hooks]\nallow = [\"fs\"]\nfs_roots = [\"/nonexistent/x\"]\n[http]\ntoken_file = \"/tmp\"\n",
    );
    let told = json(&["check-config", &roots, "--json"]).1["warnings"].to_string();
    assert!(told.contains("hooks.fs_roots: /nonexistent/x is not a directory"), "{told}");
    assert!(told.contains("http.token_file: /tmp is not a file"), "{told}");
    let ran = ostler(&["check-config", &empty, "--show"]);
    assert!(ran.code == 0 && ran.out.contains("[sessions]\nmax_live = 1024\n"), "{ran:?}");
}
