//! What a terminal gets: no commands of anybody's text, tables that fit, a watch that tells changes.

use serde_json::{Value, json};

use crate::cli::testing::{at, ostler_on, ostler_wide};
use crate::cli::usable_width;
use crate::client::testing::{Answer, Fake, event};

/// OSC 52, a title, a cleared screen, CSI as one character, DEL.
const ATTACK: &str = "a\u{1b}]52;c;aGk=\u{7}b\u{1b}]0;x\u{7}\u{1b}[2Jc\u{9b}31md\u{7f}e";

#[track_caller]
fn harmless(what: &str, out: &str) {
    let bad = out.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t'));
    assert_eq!(bad, None, "{what}: {out:?}");
}

#[test]
fn nothing_that_somebody_said_commands_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let hostile = json!({
        "key": format!("local:{ATTACK}"), "id": ATTACK, "state": ATTACK, "agent": ATTACK, "created_at": ATTACK,
        "turn": { "id": ATTACK, "state": ATTACK, "tool": ATTACK }, "end_reason": ATTACK, "phase": ATTACK
    });
    let answer = hostile.clone();
    let _fake = Fake::start(&dir.path().join("s"), move |r| {
        let path = r.path.split('?').next().unwrap();
        match path.rsplit('/').next().unwrap() {
            "sessions" => Answer::Json(200, json!({ "sessions": [answer.clone()], "next_cursor": null })),
            "transcript" => {
                let entry = |role: &str| json!({ "seq": 1, "role": role, "text": ATTACK, "at": ATTACK });
                let all = ["user", "agent", "tool", "system"].map(entry);
                Answer::Json(200, json!({ "entries": all, "next": null }))
            }
            "events" => Answer::Sse(event(1, "text", json!({ "at": ATTACK, "text": ATTACK }))),
            "reports" => {
                Answer::Json(200, json!({ "reports": [{ "boot_id": ATTACK, "reason": ATTACK, "phases": [] }] }))
            }
            "reload" => Answer::Json(200, json!({ "changed": [ATTACK], "needs_restart": [ATTACK] })),
            "hooks" => Answer::Json(200, json!({ "hooks": [{ "event": ATTACK, "script": ATTACK }] })),
            "failed" => Answer::Json(200, json!({ "failed": [{ "event_id": ATTACK, "error": ATTACK }] })),
            _ => Answer::Json(200, answer.clone()),
        }
    });
    let socket = dir.path().join("s");
    let socket = socket.to_str().unwrap();
    for command in [
        &["export", "a"][..],
        &["transcript", "a"],
        &["events", "a"],
        &["show", "a"],
        &["sessions"],
        &["status"],
        &["report"],
        &["report", "--all"],
        &["reset", "a"],
        &["reload"],
        &["hooks", "list"],
        &["hooks", "failed"],
    ] {
        for json in [&[][..], &["--json"]] {
            let args = [command, json, &["--socket", socket]].concat();
            let ran = ostler_on(true, &args);
            assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
            assert!(!ran.out.is_empty(), "{args:?}");
            harmless(&format!("{args:?}"), &ran.out);
            harmless(&format!("{args:?}"), &ran.err);
        }
    }
    // It is the same JSON, escaped; and without a terminal it is what the API said.
    let ran = ostler_on(true, &["show", "a", "--json", "--socket", socket]);
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap(), hostile);
    assert!(ran.out.contains("\\u009b31md\\u007fe"), "{}", ran.out);
    let ran = ostler_on(false, &["show", "a", "--json", "--socket", socket]);
    assert_eq!(ran.out, format!("{hostile:#}\n"));
    let ran = ostler_on(false, &["export", "a", "--socket", socket]);
    assert!(ran.out.contains(ATTACK), "a file gets what was said");
}

#[test]
fn a_terminal_without_a_width_is_as_wide_as_a_line() {
    assert_eq!([0, 1, 20, 80, 200].map(usable_width), [None, Some(80), Some(80), Some(80), Some(200)]);
    let dir = tempfile::tempdir().unwrap();
    let report = json!({ "boot_id": "0190a3c4-7b1e-7abc-8def-0123456789ab", "reason": "shutdown", "clean": true,
        "urgency": "graceful", "ended_at": "2020-01-01T00:00:00Z" });
    let _fake = Fake::start(&dir.path().join("s"), move |_| Answer::Json(200, json!({ "reports": [report] })));
    let socket = dir.path().join("s");
    for width in [None, Some(80)] {
        let ran = ostler_wide(true, width, &["report", "--all", "--socket", socket.to_str().unwrap()]);
        assert_eq!(ran.out.lines().count(), 2, "{width:?}: {}", ran.out);
        assert!(ran.out.contains("0190a3c4-7b1e-7abc-8def-0123456789ab"), "{width:?}: {}", ran.out);
    }
}

/// One line for each change, none for what is the same, and an end when the daemon is another.
#[test]
fn a_watch_in_json_tells_changes() {
    let dir = tempfile::tempdir().unwrap();
    let mut looks = ["running", "running", "draining", "draining", "closing"].into_iter();
    let _fake = Fake::start(&dir.path().join("s"), move |_| {
        let (boot, phase) = looks.next().map_or(("b2", "starting"), |phase| ("b1", phase));
        Answer::Json(200, json!({ "boot_id": boot, "phase": phase }))
    });
    let ran = at(&dir.path().join("s"), &["status", "--json", "--watch"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let told: Vec<Value> = ran.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let phases: Vec<_> = told.iter().map(|s| s["phase"].as_str().unwrap()).collect();
    assert_eq!(phases, ["running", "draining", "closing"]);
}
