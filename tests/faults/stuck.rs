//! Sessions that are the death of the daemon, prompts that never arrived, and what agents of a dead boot leave running.

use std::time::Duration;

use serde_json::{Value, json};

use crate::daemon::{Daemon, not_kept, open_pid, wait_pidfd};
use crate::rig::{Came, boot, boot_ready, end, settled};

/// Checklist 52. A session that kills the daemon each time it runs is resumed alone at last, and suspended; none of those
/// that ran beside it is.
#[test]
fn a_deadly_session_is_suspended_alone() {
    let rule = "prompt.before@local:bad=kill:1";
    let mut d = boot_ready(Daemon::new().config(&not_kept(&[], "")), rule);
    let mut gate = d.gate("gate");
    let mut turns: Vec<(String, Value)> = Vec::new();
    for n in 0..3 {
        let key = format!("local:n{n}");
        let mut events = d.events(&key);
        turns.push((key.clone(), d.post(&key, &format!("say begun; wait-file {}", gate.path.display()))));
        events.until("text");
    }
    let _ = d.try_post("local:bad", "say deadly", None);
    assert_eq!(end(&mut d), Came::Died);
    let mut d = boot_ready(d, rule);
    assert_eq!(end(&mut d), Came::Died);
    gate.open();
    let mut d = boot_ready(d, rule);
    assert_eq!(end(&mut d), Came::Died);
    let alone: i64 = d.sql(
        "SELECT count(*) FROM boots b JOIN sessions s ON s.sid=b.solo WHERE s.key='local:bad' AND b.ended_at IS NULL",
    );
    assert_eq!(alone, 1, "the third time it ran alone");
    let mut d = boot_ready(d, rule);
    for (key, turn) in &turns {
        let (outcome, _) = settled(&mut d.events(key), turn["turn_id"].as_str().unwrap());
        assert_eq!(outcome, "completed", "{key}");
        let shown = d.show(key);
        assert_eq!((&shown["unclean"], &shown["resume_pending"]), (&json!(0), &Value::Null), "{shown}");
    }
    let suspended = d.get("/v1/sessions?state=suspended");
    let suspended = suspended["sessions"].as_array().unwrap();
    assert_eq!(suspended.len(), 1, "{suspended:?}");
    assert_eq!((&suspended[0]["key"], &suspended[0]["unclean"]), (&json!("local:bad"), &json!(3)));
    let id = suspended[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(d.stop(), 0);
    let mut d = boot_ready(d, "");
    d.act(&id, "resume");
    assert_eq!(d.send(&id, "say well again"), "well again");
    assert_eq!(d.stop(), 0);
}

/// Checklist 51. The turn had begun, its prompt had not reached the agent: the continuation quotes the message, and it is
/// answered.
#[test]
fn a_prompt_that_never_arrived() {
    for point in ["begin_turn.committed", "prompt.before", "prompt.answered", "finish_turn.before"] {
        let mut d = boot_ready(Daemon::new().config(&not_kept(&[], "")), &format!("{point}=kill:1"));
        let _ = d.try_post("local:a", "what is the capital", Some("one"));
        assert_eq!(end(&mut d), Came::Died, "{point}");
        let mut d = boot_ready(d, "");
        let turn = d.post_id("local:a", "what is the capital", "one");
        assert_eq!(turn["duplicate"], true);
        let (outcome, length) = settled(&mut d.events("local:a"), turn["turn_id"].as_str().unwrap());
        assert_eq!((outcome.as_str(), length), ("completed", 2), "{point}");
        let said = d.said("local:a");
        assert!(said.last().unwrap().starts_with("agent: heard: "), "{said:?}");
        assert!(said.last().unwrap().contains("> what is the capital"), "{point}: {said:?}");
        assert_eq!(said.iter().filter(|l| *l == "user: what is the capital").count(), 1, "{said:?}");
        assert_eq!(d.stop(), 0);
    }
}

/// Checklist 53. What agents of a dead boot left running is gone before its session runs another turn, also when boots die
/// while they look for it and end it.
#[test]
fn what_a_dead_boot_left_is_ended() {
    let mut d = boot_ready(Daemon::new().config(&not_kept(&["--ignore-term", "--ignore-eof"], "")), "");
    let mut old = Vec::new();
    for key in ["local:a", "local:b"] {
        let mut events = d.events(key);
        d.post(key, "pid; grandchild; child; hang-hard");
        let mut told = String::new();
        while !told.contains("\nchild") {
            told.push('\n');
            told.push_str(events.until("text").text("text"));
            told = told.replace("child", "\nchild").replace("grand\nchild", "grandchild");
        }
        let pids = told.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok());
        old.extend(pids.map(|pid: u32| open_pid(pid).unwrap_or_else(|| panic!("{pid} of {told:?}"))));
    }
    assert_eq!(old.len(), 6);
    d.kill9();
    for point in ["boot.looked", "boot.recovered"] {
        let mut came;
        (d, came) = boot(d, &format!("{point}=kill:1"));
        if came == Came::Ready {
            // It looks beside what it does for others, and may be ready before it has looked.
            came = end(&mut d);
        }
        assert_eq!(came, Came::Died, "{point}");
    }
    let mut d = boot_ready(d, "");
    for (n, key) in ["local:a", "local:b"].iter().enumerate() {
        let mut events = d.events(key);
        events.until_where("the continuation", |e| e.event == "turn_start" && e.data["continues"].is_string());
        for fd in &old[3 * n..3 * n + 3] {
            assert!(wait_pidfd(fd, Duration::ZERO), "{key}: it still ran when the session went on");
        }
        d.act(key, "cancel");
    }
    assert_eq!(d.stop(), 0);
}

/// A fault of ours in looking for what a dead boot left, or in ending it, holds up nobody: sessions start.
#[test]
fn a_search_that_fails_holds_up_nobody() {
    for point in ["sweep.begun", "sweep.round"] {
        let mut d = boot_ready(Daemon::new().config(&not_kept(&["--ignore-term", "--ignore-eof"], "")), "");
        let mut events = d.events("local:a");
        let turn = d.post("local:a", "pid; hang-hard");
        events.until("text");
        d.kill9();
        let mut d = boot_ready(d, &format!("{point}=panic:1"));
        assert_eq!(d.send("local:b", "say here"), "here", "{point}");
        let mut events = d.events("local:a");
        events.until_where("the continuation", |e| e.event == "turn_start" && e.data["continues"] == turn["turn_id"]);
        // What was not ended is still there.
        d.end_leftovers();
        events.until_where("the end of the continuation", |e| {
            e.event == "turn_end" && e.data["turn_id"] != turn["turn_id"]
        });
        assert_eq!(d.stop(), 0, "{point}");
    }
}

/// Nobody knows whether a turn began, and another session wants its place: it counts as running until the store answers. It
/// is not parked, its turn is not taken for one that a crash cut off, and completes.
#[test]
fn a_begin_in_doubt_makes_room_for_nobody() {
    let config = "[sessions]\nmax_live = 1\n";
    let mut d = boot_ready(Daemon::new().config(config), "store.patience=set:2000,begin_turn.committed=once:5000");
    d.client().post("/v1/hold", None).unwrap();
    let (a, b) = (d.post("local:a", "x"), d.post("local:b", "y"));
    d.client().post("/v1/release", None).unwrap();
    for (key, turn) in [("local:a", a), ("local:b", b)] {
        assert_eq!(settled(&mut d.events(key), turn["turn_id"].as_str().unwrap()), ("completed".into(), 1), "{key}");
    }
    d.wait_log("the next turn cannot begin yet");
    assert_eq!(d.stop(), 0);
    let marks: i64 = d.sql("SELECT count(*) FROM turns WHERE state='interrupted'");
    assert_eq!(marks, 0);
}
