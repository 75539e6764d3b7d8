//! `send`: one message, one answer, whatever happens to the connection and the daemon.

use serde_json::{Value, json};

use crate::cli::testing::{at, ostler_on};
use crate::client::testing::{Answer, Fake, Request, event, refusal};

fn accepted(turn: &str, deferred: bool) -> String {
    let body = json!({
        "session_id": "s1", "turn_id": turn, "message_id": "m", "duplicate": false, "continued_by": null,
        "deferred": deferred, "queued": 0, "notice": null
    });
    event(0, "accepted", body)
}

fn start(id: u64, turn: &str, continues: Option<&str>, resumed: bool) -> String {
    event(id, "turn_start", json!({ "turn_id": turn, "session_id": "s1", "continues": continues, "resumed": resumed }))
}

fn text(id: u64, turn: &str, text: &str) -> String {
    event(id, "text", json!({ "turn_id": turn, "session_id": "s1", "text": text }))
}

fn end(id: u64, turn: &str, outcome: &str, error: Value) -> String {
    event(id, "turn_end", json!({ "turn_id": turn, "session_id": "s1", "outcome": outcome, "error": error }))
}

/// Answers messages and event streams with one answer after the other, and the status with a boot for each.
fn script(dir: &tempfile::TempDir, boots: &'static [&'static str], answers: Vec<Answer>) -> Fake {
    let mut answers = answers.into_iter();
    let mut boots = boots.iter();
    Fake::start(&dir.path().join("s"), move |r| match r.path.as_str() {
        "/v1/status" => match boots.next() {
            Some(&"") => Answer::Gone,
            Some(boot) => Answer::Json(200, json!({ "boot_id": boot })),
            None => Answer::Json(200, json!({ "boot_id": "last" })),
        },
        _ => answers.next().unwrap_or_else(|| refusal(500, "script_is_over")),
    })
}

fn lines(seen: &[Request]) -> Vec<String> {
    seen.iter().map(Request::line).collect()
}

fn id(request: &Request) -> String {
    request.json()["id"].as_str().unwrap().to_owned()
}

#[test]
fn the_answer_is_printed_whole_or_as_it_comes() {
    let answer = || {
        Answer::Sse(
            accepted("t1", false)
                + &start(1, "t1", None, false)
                + &text(2, "t1", "hel")
                + &text(3, "other", "not ours")
                + &text(4, "t1", "lo\u{1b}[2J")
                + &end(5, "t1", "completed", Value::Null),
        )
    };
    let dir = tempfile::tempdir().unwrap();
    let fake = script(&dir, &["b", "b"], vec![answer(), answer()]);
    let socket = dir.path().join("s");
    let ran = at(&socket, &["send", "alice", "hi", "--id", "x"]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "hello\u{1b}[2J\n", ""));
    let ran = ostler_on(true, &["send", "alice", "hi", "--socket", socket.to_str().unwrap()]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "hello[2J\n"), "no command reaches the terminal");
    let seen = fake.seen();
    assert_eq!(lines(&seen), ["POST /v1/sessions/local%3Aalice/messages"; 2]);
    assert_eq!(seen[0].json(), json!({ "text": "hi", "id": "x" }));
    assert_eq!(seen[0].header("accept"), Some("text/event-stream"));
    assert_eq!(id(&seen[1]).len(), 36, "an id of its own");
}

#[test]
fn a_restart_in_between_is_told_and_the_continuation_followed() {
    let dir = tempfile::tempdir().unwrap();
    let first = accepted("t1", false) + &start(3, "t1", None, false) + &text(4, "t1", "half");
    let second = end(5, "t1", "interrupted", Value::Null)
        + &start(7, "t0", Some("unrelated"), false)
        + &text(8, "t0", "not ours")
        + &start(9, "t2", Some("t1"), false)
        + &text(10, "t2", "the rest");
    // The second stream breaks too; the third repeats an event that was seen.
    let third = text(10, "t2", "the rest") + &text(11, "t2", "!") + &end(12, "t2", "completed", Value::Null);
    let fake = script(&dir, &["b1", "", "b2", "b2"], vec![Answer::Cut(first), Answer::Cut(second), Answer::Sse(third)]);
    let ran = at(&dir.path().join("s"), &["send", "alice", "hi"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "half\nthe rest!\n"), "{}", ran.err);
    assert_eq!(ran.err.matches("the daemon restarted").count(), 1, "{}", ran.err);
    assert_eq!(ran.err.matches("waiting for the daemon").count(), 2, "once a break: {}", ran.err);
    assert!(ran.err.contains("connected again"), "{}", ran.err);
    assert_eq!(
        lines(&fake.seen()),
        [
            "POST /v1/sessions/local%3Aalice/messages",
            "GET /v1/sessions/local%3Aalice/events?after=4",
            "GET /v1/sessions/local%3Aalice/events?after=10",
        ]
    );
}

#[test]
fn a_message_that_runs_again_is_answered_once() {
    let dir = tempfile::tempdir().unwrap();
    let first = accepted("t1", false) + &start(1, "t1", None, false) + &text(2, "t1", "half");
    let second = end(3, "t1", "interrupted", Value::Null)
        + &start(4, "t2", Some("t1"), true)
        + &text(5, "t2", "whole")
        + &end(6, "t2", "completed", Value::Null);
    let _fake = script(&dir, &["b1", "b2"], vec![Answer::Cut(first), Answer::Sse(second)]);
    let ran = at(&dir.path().join("s"), &["send", "alice", "hi"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "whole\n"), "{}", ran.err);
}

#[test]
fn what_may_not_have_been_kept_is_sent_again_with_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let answer = accepted("t1", false) + &text(1, "t1", "once") + &end(2, "t1", "completed", Value::Null);
    let answers = vec![Answer::Gone, refusal(503, "store_unavailable"), refusal(503, "stopping"), Answer::Sse(answer)];
    let fake = script(&dir, &["b", "b", "b", "b"], answers);
    let ran = at(&dir.path().join("s"), &["send", "alice", "hi"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "once\n"), "{}", ran.err);
    let seen = fake.seen();
    assert_eq!(seen.len(), 4);
    assert!(seen.iter().all(|r| r.method == "POST" && id(r) == id(&seen[0])), "{seen:?}");
}

#[test]
fn a_deferred_message_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let notice = |id, said| event(id, "notice", json!({ "code": "idle", "text": said }));
    let later = notice(1, "of old")
        + &start(2, "t1", None, false)
        + &notice(3, "of now")
        + &text(4, "t1", "late")
        + &end(5, "t1", "completed", Value::Null);
    let fake = script(
        &dir,
        &["b1", "b2"],
        vec![Answer::Sse(accepted("t1", true)), Answer::Cut(String::new()), Answer::Sse(later)],
    );
    let ran = at(&dir.path().join("s"), &["send", "alice", "hi"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "late\n"), "{}", ran.err);
    assert!(ran.err.contains("the daemon is stopping") && ran.err.contains("the daemon restarted"), "{}", ran.err);
    assert!(ran.err.contains("of now") && !ran.err.contains("of old"), "{}", ran.err);
    assert_eq!(fake.seen()[1].path, "/v1/sessions/local%3Aalice/events?after=0");
}

#[test]
fn a_daemon_that_really_went_away_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let (cut, wait) = crossbeam_channel::bounded(0);
    let mut first = Some(Answer::After(wait, Box::new(Answer::Cut(accepted("t1", false)))));
    let (asked, is_asked) = crossbeam_channel::bounded(1);
    let old = Fake::start(&socket, move |r| {
        if r.path == "/v1/status" {
            return Answer::Json(200, json!({ "boot_id": "old" }));
        }
        asked.send(()).unwrap();
        first.take().unwrap()
    });
    let at_socket = socket.clone();
    let sending = crate::thread::spawn("send", crate::thread::DEEP_STACK, move || at(&at_socket, &["send", "a", "hi"]));
    is_asked.recv().unwrap();
    drop(old);
    drop(cut);
    let later = text(2, "t1", "late") + &end(3, "t1", "completed", Value::Null);
    let new = Fake::start(&socket, move |r| match r.path.as_str() {
        "/v1/status" => Answer::Json(200, json!({ "boot_id": "new" })),
        _ => Answer::Sse(later.clone()),
    });
    let ran = sending.unwrap().join().unwrap();
    assert_eq!((ran.code, ran.out.as_str()), (0, "late\n"), "{}", ran.err);
    assert!(ran.err.contains("the daemon restarted"), "{}", ran.err);
    assert_eq!(new.seen().len(), 1, "it was not sent twice");
}

#[test]
fn what_does_not_complete_is_a_failure_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let error = json!({ "code": "agent_died", "message": "exit status 3" });
    let failed = accepted("t1", false) + &text(1, "t1", "part") + &end(2, "t1", "failed", error);
    let cancelled = accepted("t1", false) + &end(1, "t1", "cancelled", json!("reset"));
    let closed = accepted("t1", false)
        + &end(1, "t1", "interrupted", Value::Null)
        + &event(2, "session_end", json!({ "session_id": "s1", "reason": "shutdown" }))
        + &event(3, "session_closed", json!({ "session_id": "s1", "reason": "expired" }));
    let answers = vec![Answer::Sse(failed), Answer::Sse(cancelled), Answer::Sse(closed), refusal(429, "queue_full")];
    let _fake = script(&dir, &["b"; 4], answers);
    let send = || at(&dir.path().join("s"), &["send", "alice", "hi"]);
    let ran = send();
    assert_eq!((ran.code, ran.out.as_str()), (1, "part\n"));
    assert_eq!(ran.err, "ostler: local:alice: turn failed: exit status 3 (agent_died)\n");
    assert_eq!(send().err, "ostler: local:alice: turn cancelled: reset\n");
    let ran = send();
    assert!(ran.code == 1 && ran.err.ends_with("will not continue: session expired\n"), "{}", ran.err);
    let ran = send();
    assert_eq!((ran.code, ran.err.as_str()), (1, "ostler: local:alice: because of queue_full (queue_full)\n"));
}

#[test]
fn nobody_waits_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let (_open, never) = crossbeam_channel::bounded(0);
    let hang = || Answer::After(never.clone(), Box::new(Answer::Gone));
    let fake = script(&dir, &["b"; 2], vec![hang()]);
    let socket = dir.path().join("s");
    let ran = at(&socket, &["send", "alice", "hi", "--timeout", "3s", "--id", "x1"]);
    assert_eq!(ran.code, 124, "not the code of a turn that failed: {ran:?}");
    assert!(ran.err.contains("no answer in time") && ran.err.contains("--id x1"), "{}", ran.err);
    drop(fake);
    let ran = at(&socket, &["send", "alice", "hi"]);
    assert_eq!(ran.code, 69, "not there to begin with: {}", ran.err);
    let ran = at(&socket, &["send", "alice", ""]);
    assert_eq!(ran.code, 2);
}

#[test]
fn without_waiting_the_apis_answer_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let body = json!({ "session_id": "s1", "turn_id": "t1", "deferred": false });
    let _fake = script(&dir, &[], vec![Answer::Json(202, body.clone()), refusal(503, "store_unavailable")]);
    let ran = at(&dir.path().join("s"), &["send", "alice", "hi", "--no-wait"]);
    assert_eq!((ran.code, serde_json::from_str(&ran.out).ok()), (0, Some(body)));
    let ran = at(&dir.path().join("s"), &["send", "alice", "hi", "--no-wait", "--id", "x1"]);
    assert!(ran.code == 1 && ran.err.contains("send it again with --id x1"), "{}", ran.err);
}

#[test]
fn on_a_terminal_the_acceptance_is_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let body = json!({ "session_id": "s1", "turn_id": "t1", "deferred": false, "queued": 2 });
    let _fake = script(&dir, &[], vec![Answer::Json(202, body.clone()), Answer::Json(202, body.clone())]);
    let socket = dir.path().join("s");
    let send = ["send", "alice", "hi", "--no-wait", "--socket", socket.to_str().unwrap()];
    let ran = ostler_on(true, &send);
    assert_eq!((ran.code, ran.out.as_str()), (0, "local:alice: accepted (turn t1, after 2 queued messages)\n"));
    let ran = ostler_on(true, &[&send[..], &["--json"]].concat());
    assert_eq!(serde_json::from_str::<Value>(&ran.out).ok(), Some(body));
}

#[test]
fn an_answer_is_one_json_object() {
    let dir = tempfile::tempdir().unwrap();
    let answer = |outcome: &str, error: Value| {
        Answer::Sse(
            accepted("t1", false)
                + &start(1, "t1", None, false)
                + &text(2, "t1", "hel")
                + &text(3, "t1", "lo")
                + &end(4, "t1", outcome, error),
        )
    };
    let broke = json!({ "code": "agent", "message": "it broke" });
    let _fake = script(&dir, &["b"; 2], vec![answer("completed", Value::Null), answer("failed", broke)]);
    let send = || at(&dir.path().join("s"), &["send", "alice", "hi", "--json"]);
    let ran = send();
    let want = json!({
        "session_id": "s1", "turn_id": "t1", "message_id": "m", "outcome": "completed", "error": null, "text": "hello"
    });
    assert_eq!((ran.code, serde_json::from_str::<Value>(&ran.out).unwrap()), (0, want));
    let ran = send();
    let told: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((ran.code, &told["outcome"], &told["error"]), (1, &json!("failed"), &json!("it broke (agent)")));
}

#[test]
fn notices_and_waits_for_a_permission_go_to_stderr() {
    let dir = tempfile::tempdir().unwrap();
    let answer = accepted("t1", false)
        .replace("\"notice\":null", "\"notice\":{\"code\":\"idle\",\"text\":\"a new session\"}")
        + &event(1, "permission", json!({ "turn_id": "t1", "request_id": "r", "state": "open", "title": "rm -rf" }))
        + &text(2, "t1", "done")
        + &end(3, "t1", "completed", Value::Null);
    let _fake = script(&dir, &["b"], vec![Answer::Sse(answer)]);
    let ran = at(&dir.path().join("s"), &["send", "alice", "hi"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "done\n"));
    assert_eq!(
        ran.err,
        "ostler: a new session\nostler: local:alice is waiting for permission: rm -rf; answer with \
        `ostler allow local:alice`, `ostler deny local:alice`, or `ostler chat local:alice`\n"
    );
}
