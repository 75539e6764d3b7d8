//! `chat`, with lines from a pipe.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use serde_json::{Value, json};

use crate::cli::chat::{Conversation, Input};
use crate::cli::testing::ui;
use crate::client::testing::{Answer, Fake, Request, event, refusal};

fn talk(fake: &Fake, lines: &str, tty: bool) -> (String, String) {
    let (mut ui, out, err) = ui(tty);
    let client = fake.client();
    let input = Input::lines(lines.as_bytes());
    let presses = Arc::new(AtomicUsize::new(usize::MAX));
    let mut chat = Conversation { client: &client, key: "local:a".into(), ui: &mut ui, input, presses, boot: None };
    assert_eq!(chat.run(), Ok(0));
    (out.text(), err.text())
}

fn on(turn: &str, mut data: Value) -> Value {
    data["turn_id"] = turn.into();
    data["session_id"] = "s1".into();
    data
}

fn turn(events: &[(u64, &str, Value)]) -> Answer {
    let accepted = event(0, "accepted", json!({ "turn_id": "t1", "session_id": "s1", "deferred": false }));
    let rest: String = events.iter().map(|(id, kind, data)| event(*id, kind, on("t1", data.clone()))).collect();
    Answer::Sse(accepted + &rest + &event(99, "turn_end", on("t1", json!({ "outcome": "completed" }))))
}

fn daemon(dir: &tempfile::TempDir, mut answer: impl FnMut(&Request) -> Answer + Send + 'static) -> Fake {
    Fake::start(&dir.path().join("s"), move |r| match r.line().as_str() {
        "GET /v1/status" => Answer::Json(200, json!({ "boot_id": "b" })),
        "GET /v1/sessions/local%3Aa" => Answer::Json(200, json!({ "key": "local:a", "state": "parked", "turns": 1 })),
        _ => answer(r),
    })
}

#[test]
fn previews_are_shown_once_and_everything_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let fake = daemon(&dir, |_| {
        turn(&[
            (0, "delta", json!({ "kind": "thought", "offset": 0, "text": "hm" })),
            (1, "thought", json!({ "text": "hmm" })),
            (0, "delta", json!({ "kind": "text", "offset": 0, "text": "Hel" })),
            (0, "delta", json!({ "kind": "text", "offset": 3, "text": "lo" })),
            (2, "text", json!({ "text": "Hello" })),
            (3, "tool", json!({ "tool_call_id": "c", "title": "ls", "status": "pending" })),
            (4, "text", json!({ "text": "there" })),
            (5, "tool", json!({ "tool_call_id": "c", "status": "in_progress" })),
            (6, "tool", json!({ "tool_call_id": "c", "status": "completed" })),
        ])
    });
    let (out, err) = talk(&fake, "hi\n\n/quit\nnever read\n", false);
    let want = "local:a (parked, 1 turn); /help for commands\n\
        [thought] hmm\nHello\n· ls (pending)\nthere\n· ls (completed)\n";
    assert_eq!((out.as_str(), err.as_str()), (want, ""));
    assert_eq!(fake.seen()[1].line(), "POST /v1/sessions/local%3Aa/messages?deltas=1");
}

#[test]
fn a_tool_calls_line_is_rewritten_while_nothing_stands_below_it() {
    let dir = tempfile::tempdir().unwrap();
    let fake = daemon(&dir, |_| {
        turn(&[
            (1, "tool", json!({ "tool_call_id": "c", "title": "ls", "status": "pending" })),
            (2, "tool", json!({ "tool_call_id": "c", "status": "completed" })),
        ])
    });
    let (out, _) = talk(&fake, "hi\n", true);
    assert!(out.ends_with("· ls (pending)\n\u{1b}[1A\u{1b}[2K· ls (completed)\n"), "{out:?}");
}

#[test]
fn a_tool_call_without_a_title_draws_nothing_with_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let fake = daemon(&dir, |_| {
        turn(&[(1, "tool", json!({ "tool_call_id": "\u{1b}]0;x\u{7}c", "title": "\u{1b}", "status": "pending" }))])
    });
    let (out, _) = talk(&fake, "hi\n", false);
    assert!(out.contains("(pending)") && !out.contains('\u{1b}') && !out.contains('\u{7}'), "{out:?}");
}

#[test]
fn a_permission_is_asked_for_and_given() {
    let dir = tempfile::tempdir().unwrap();
    let options = json!([{ "option_id": "yes", "name": "Do it" }, { "option_id": "no", "name": "Do not" }]);
    let fake = daemon(&dir, move |r| {
        if r.path.ends_with("/permission") {
            return if r.json()["option_id"] == "no" { refusal(409, "resolved") } else { Answer::Json(200, json!({})) };
        }
        turn(&[
            (1, "permission", json!({ "request_id": "r1", "state": "open", "title": "rm x", "options": options })),
            (2, "permission", json!({ "request_id": "r1", "state": "resolved", "outcome": "yes", "by": "client" })),
        ])
    });
    let (out, _) = talk(&fake, "hi\nwhat\n3\n1\nhi\n2\n", false);
    assert!(out.contains("Permission requested: rm x\n  1. Do it\n  2. Do not\n"), "{out}");
    assert_eq!(out.matches("enter a number from 1 to 2").count(), 2);
    assert!(out.contains("[permission: yes by client]") && out.contains("[already answered]"), "{out}");
    let given: Vec<_> = fake.seen().iter().filter(|r| r.path.ends_with("/permission")).map(Request::json).collect();
    assert_eq!(
        given,
        [json!({ "request_id": "r1", "option_id": "yes" }), json!({ "request_id": "r1", "option_id": "no" })]
    );
}

#[test]
fn commands_do_not_reach_the_agent_and_errors_end_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let fake = daemon(&dir, |r| match r.line().as_str() {
        "POST /v1/sessions/local%3Aa/reset" => Answer::Json(200, json!({ "id": "s2" })),
        "POST /v1/sessions/local%3Aa/cancel?queued=1" => refusal(404, "session_not_found"),
        _ if r.json()["text"] == "/slash" => turn(&[(1, "text", json!({ "text": "ok" }))]),
        _ => refusal(429, "queue_full"),
    });
    let (out, err) = talk(&fake, "/reset\n/cancel\n/status\n/help\n/nonsense\nhi\n//slash\n", false);
    assert!(out.contains("[the next message begins a new session]"), "{out}");
    assert!(out.contains("unknown command: /nonsense") && out.contains("/quit") && out.ends_with("ok\n"), "{out}");
    let want = "ostler: local:a: because of session_not_found (session_not_found)\n\
        ostler: local:a: because of queue_full (queue_full)\n";
    assert_eq!(err, want);
}

#[test]
fn a_restart_between_two_messages_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut boots = ["b1", "b1", "b2", "b2"].into_iter();
    let fake = Fake::start(&dir.path().join("s"), move |r| match r.line().as_str() {
        "GET /v1/status" => Answer::Json(200, json!({ "boot_id": boots.next().unwrap_or("b2") })),
        "GET /v1/sessions/local%3Aa" => refusal(404, "session_not_found"),
        _ => turn(&[(1, "text", json!({ "text": "ok" }))]),
    });
    let (out, _) = talk(&fake, "one\ntwo\nthree\n", false);
    let want = "local:a (a new session); /help for commands\nok\n\
        [the daemon restarted; the conversation goes on]\nok\nok\n";
    assert_eq!(out, want);
}
