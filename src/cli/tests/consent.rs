//! Permissions: how a request looks, and how it is answered from the command line and in `chat`.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use serde_json::{Value, json};

use crate::cli::chat::{Conversation, Input};
use crate::cli::testing::{at, ui};
use crate::client::testing::{Answer, Fake, Request, refusal};

fn option(id: &str, name: &str, kind: &str) -> Value {
    json!({ "option_id": id, "name": name, "kind": kind })
}

fn request(id: &str, title: &str) -> Value {
    json!({
        "key": "local:a", "session_id": "s1", "request_id": id, "turn_id": "t", "tool_call_id": "c", "title": title,
        "kind": "execute", "input": { "command": "rm -rf build\nls" }, "since": "2020-01-01T00:00:00Z",
        "content": [{ "type": "diff", "path": "/x/a.txt", "oldText": "one\ntwo\nthree", "newText": "one\n2\nthree" }],
        "locations": [{ "path": "/x/a.txt", "line": 2 }],
        "options": [
            option("always", "Always", "allow_always"), option("yes", "Yes\n  2. Nothing", "allow_once"),
            option("no", "No", "reject_once")
        ]
    })
}

/// A session of which these are open, and what was answered.
fn daemon(dir: &tempfile::TempDir, open: &[Value]) -> Fake {
    let open = open.to_vec();
    Fake::start(&dir.path().join("s"), move |r| match r.line().as_str() {
        "GET /v1/status" => Answer::Json(200, json!({ "boot_id": "b", "phase": "running" })),
        "GET /v1/permissions" => Answer::Json(200, json!({ "permissions": open })),
        "POST /v1/sessions/s1/permission" | "POST /v1/sessions/local%3Aa/permission" => {
            if r.json()["request_id"] == "late" {
                refusal(409, "resolved")
            } else {
                Answer::Json(200, json!({ "id": "s1" }))
            }
        }
        "GET /v1/sessions?limit=200" => {
            let s = json!({ "key": "local:a", "id": "s1", "state": "live", "turn": { "state": "running" }, "permissions": open });
            Answer::Json(200, json!({ "sessions": [s], "next_cursor": null }))
        }
        _ => {
            Answer::Json(200, json!({ "key": "local:a", "id": "s1", "state": "live", "turns": 1, "permissions": open }))
        }
    })
}

fn answered(fake: &Fake) -> Vec<(String, String)> {
    let given = |r: &Request| {
        let (body, text) = (r.json(), |v: &Value| v.as_str().unwrap().to_owned());
        (text(&body["request_id"]), text(&body["option_id"]))
    };
    fake.seen().iter().filter(|r| r.path.ends_with("/permission")).map(given).collect()
}

const SHOWN: &str = "Permission requested: Run it (execute)\n  $ rm -rf build\n    ls\n  change of /x/a.txt\n  - two\n  + 2\n\
    \u{20} at /x/a.txt:2\n  1. Always [allow always]\n  2. Yes   2. Nothing [allow once]\n  3. No [reject once]\n";

/// The command, the change, the places, and each option in a line of its own with what it means.
#[test]
fn a_request_is_shown_whole_and_forges_no_line() {
    let dir = tempfile::tempdir().unwrap();
    let fake = daemon(&dir, &[request("r1", "Run it"), request("r2", "Run\nthat\u{202e}")]);
    let out = at(&dir.path().join("s"), &["permissions"]).out;
    let mut parts = out.split("\n\n");
    let first = parts.next().unwrap();
    assert!(first.starts_with("local:a 1, ") && format!("{first}\n").ends_with(SHOWN), "{out}");
    let second = parts.next().unwrap();
    assert!(
        second.starts_with("local:a 2, ") && second.contains("Permission requested: Run that (execute)\n"),
        "{out}"
    );
    drop(fake);
    let mut big = request("r1", "Run it");
    big["input"] = json!({ "command": "x\n".repeat(1000) });
    big["options"] = json!(vec![option("o", &"n".repeat(500), "allow_once"); 100]);
    let _fake = daemon(&dir, &[big]);
    let out = at(&dir.path().join("s"), &["permissions"]).out;
    assert!(out.lines().count() < 40, "it fits a screen: {out}");
    assert!(out.lines().all(|l| l.chars().count() <= 100) && out.contains("… [allow once]"), "{out}");
    assert!(out.contains("more lines") && out.contains("80 more options"), "{out}");
}

#[test]
fn permissions_are_answered_by_command() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let fake = daemon(&dir, &[request("r1", "Run it")]);
    assert_eq!(at(&socket, &["allow", "a"]).out, "local:a: allowed: Run it (Yes   2. Nothing)\n");
    assert_eq!(at(&socket, &["deny", "a", "1"]).out, "local:a: denied: Run it (No)\n");
    assert_eq!(at(&socket, &["allow", "a", "2"]).code, 2, "there is no second");
    assert_eq!(answered(&fake), [("r1".into(), "yes".into()), ("r1".into(), "no".into())]);
    let told: Value = serde_json::from_str(&at(&socket, &["allow", "a", "--json"]).out).unwrap();
    assert_eq!(told, json!({ "id": "s1" }));
    drop(fake);
    let mut other = request("late", "Late");
    other["options"] = json!([option("always", "Always", "allow_always")]);
    let fake = daemon(&dir, &[request("r1", "Run it"), other]);
    let ran = at(&socket, &["allow", "a"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("2 are open") && ran.err.contains("1: Run it; 2: Late"), "{ran:?}");
    let ran = at(&socket, &["allow", "a", "2"]);
    assert!(ran.code == 1 && ran.err.contains("already answered"), "{ran:?}");
    let ran = at(&socket, &["deny", "a", "2"]);
    assert!(ran.code == 1 && ran.err.contains("no option that rejects it"), "{ran:?}");
    assert_eq!(answered(&fake), [("late".to_owned(), "always".to_owned())]);
    drop(fake);
    let _fake = daemon(&dir, &[]);
    let ran = at(&socket, &["deny", "a"]);
    assert_eq!((ran.code, ran.err.as_str()), (1, "ostler: local:a: no permission is open\n"));
    assert_eq!(at(&socket, &["permissions"]).out, "no agent waits for a permission\n");
}

#[test]
fn listings_tell_who_waits() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let _fake = daemon(&dir, &[request("r1", "Run it")]);
    assert!(at(&socket, &["show", "a"]).out.contains("permission  waiting for permission: Run it\n"));
    assert!(at(&socket, &["sessions"]).out.contains("running, waits for permission"));
    assert!(at(&socket, &["status"]).out.contains("1 open (ostler permissions)"));
}

/// What was asked before `chat` began is shown and answered in it.
#[test]
fn chat_answers_what_is_open_when_it_begins() {
    let dir = tempfile::tempdir().unwrap();
    let fake = daemon(&dir, &[request("r1", "Run it"), request("r2", "And that")]);
    let (mut ui, out, _) = ui(false);
    let client = fake.client();
    let presses = Arc::new(AtomicUsize::new(usize::MAX));
    let input = Input::lines("hello\n3\n\n/quit\n".as_bytes());
    let mut chat = Conversation { client: &client, key: "local:a".into(), ui: &mut ui, input, presses, boot: None };
    assert_eq!(chat.run(), Ok(0));
    let out = out.text();
    assert!(out.contains(SHOWN) && out.contains("enter a number from 1 to 3"), "{out}");
    assert!(out.contains("[left open: `ostler allow local:a`"), "{out}");
    assert_eq!(answered(&fake), [("r1".to_owned(), "no".to_owned())], "and no message was sent");
    assert!(fake.seen().iter().all(|r| !r.path.contains("/messages")));
}

#[test]
fn without_a_daemon_the_report_is_read_from_the_database() {
    let dir = tempfile::tempdir().unwrap();
    let (state, none) = (dir.path().join("state"), dir.path().join("none"));
    let (state, none) = (state.to_str().unwrap(), none.to_str().unwrap());
    let nowhere = dir.path().join("s");
    let ran = at(&nowhere, &["report", "--state-dir", state]);
    assert!(ran.code == 0 && ran.out.contains("boot b1"), "{ran:?}");
    assert!(at(&nowhere, &["report", "b1", "--state-dir", state]).out.contains("boot b1"));
    assert_eq!(at(&nowhere, &["report", "b2", "--state-dir", state]).code, 1);
    assert_eq!(at(&nowhere, &["report", "--all", "--state-dir", state]).out.lines().count(), 2);
    let ran = at(&nowhere, &["report", "--state-dir", none]);
    assert!(ran.code == 1 && ran.err.contains("none: is not there"), "{ran:?}");
    assert_eq!(at(&nowhere, &["report"]).code, 69, "a daemon that was named is not passed over");
}
