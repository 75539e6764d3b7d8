//! Promise 9: a restart is no interruption. Whatever becomes of the daemon, an agent goes on, hears each prompt and each
//! answer once, and each byte of what it says is kept once and in order.

use serde_json::{Value, json};

use crate::daemon::{Daemon, kept};

fn session(turn: &Value) -> &str {
    turn["session_id"].as_str().unwrap()
}

/// The agent's words of a turn in the transcript.
fn answer(d: &Daemon, key: &str, turn: &Value) -> String {
    let of_turn = |e: &&Value| e["role"] == "agent" && e["turn_id"] == turn["turn_id"];
    d.transcript(key).iter().filter(of_turn).map(|e| e["text"].as_str().unwrap()).collect()
}

/// What must hold of a key over whose agent only daemons died: one start, no end, no interruption, no death counted; each
/// prompt heard once, by one agent, and each of its words kept once.
#[track_caller]
fn unharmed(d: &Daemon, key: &str, turns: &[&Value]) {
    let past = d.past(key);
    let count = |kind: &str| past.iter().filter(|e| e.event == kind).count();
    let told = || past.iter().map(|e| format!("\n{} {}", e.event, e.data)).collect::<String>();
    assert_eq!((count("session_start"), count("session_end")), (1, 0), "{key}: {}", told());
    assert_eq!((count("turn_start"), count("turn_end")), (turns.len(), turns.len()), "{key}: {}", told());
    let shown = d.show(key);
    assert_eq!(
        (&shown["unclean"], &shown["resume_pending"], &shown["epoch"]),
        (&json!(0), &Value::Null, &json!(1)),
        "{shown}"
    );
    let diary = d.diary(session(turns[0]));
    assert_eq!(diary.told.len(), turns.len(), "{key}: prompts {:#?}", diary.told);
    for (turn, told) in turns.iter().zip(&diary.told) {
        assert_eq!(answer(d, key, turn), told.said, "{key}: what was kept, and what was said");
    }
    for (asked, answers) in &diary.permissions {
        assert_eq!(answers.len(), 1, "{key}: {asked:?} was answered {answers:?}");
    }
    if !key.starts_with("local:x") {
        assert_eq!(diary.agents.len(), 1, "{key}: agents {:?}", diary.agents);
    }
}

/// A stop in order ends every agent: nothing is left, no shim's socket either, and each activation has its one end.
#[track_caller]
fn stops(mut d: Daemon) {
    assert_eq!(d.stop(), 0);
    empty(&d);
    let ends: i64 = d.sql("SELECT count(*) FROM events WHERE kind='session_end'");
    assert_eq!(ends, d.sql::<i64>("SELECT count(*) FROM activations"), "one end for each activation");
}

/// No socket of a shim is left.
#[track_caller]
fn empty(d: &Daemon) {
    let left: Vec<_> =
        std::fs::read_dir(d.path("state/s")).into_iter().flatten().map(|e| e.unwrap().file_name()).collect();
    assert!(left.is_empty(), "sockets of shims are left: {left:?}");
}

/// What these tests compare: an agent's diary, and what was kept.
#[test]
fn diaries_tell_what_was_said() {
    let d = Daemon::new().config(&kept(&[], "")).start();
    let mut pace = d.pace("pace");
    let turns = ["lines 2 0; paced PATH 3; tool t; think x; say end", "lines 1 0; permission; lines 1 0"]
        .map(|text| d.turn("local:y", &text.replace("PATH", &pace_steps(&mut pace))).accepted);
    unharmed(&d, "local:y", &[&turns[0], &turns[1]]);
    assert_eq!(answer(&d, "local:y", &turns[0]), "line 1\nline 2\nline 3\nline 4\nline 5\ntool doneend");
    let turn = d.turn("local:x", &format!("lines 2 0; paced {} 3; say end", pace_steps(&mut pace))).accepted;
    unharmed(&d, "local:x", &[&turn]);
    assert_eq!(answer(&d, "local:x", &turn), "line 1\nline 2\nline 3\nline 4\nline 5\nend");
    stops(d);
}

/// Three lines more; the pipe's path.
fn pace_steps(pace: &mut crate::daemon::Pace) -> String {
    pace.step(3);
    pace.path.display().to_string()
}
