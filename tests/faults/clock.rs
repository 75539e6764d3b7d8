//! The wall clock jumps, ahead or back, in the midst of everything: what is waited for does not wait longer or shorter, and
//! what is stored keeps its order.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::daemon::{Daemon, not_kept};
use crate::rig::{FS, NOTE, boot_ready, check_answers, check_calls, check_kept, settled};

const DAY: i64 = 86_400_000;

/// Deadlines are the monotonic clock's; ids, order, marks and their ages survive a jump, and one more at the next boot.
#[test]
fn the_wall_clock_jumps() {
    // A mark that is a day old by the clock is too old, whatever the clock did; one from the future is fresh.
    for (jump, next, window) in [(-DAY, -DAY, "1h"), (-DAY, 0, "never"), (DAY, DAY, "1h"), (DAY, 0, "1h")] {
        let case = format!("{jump} then {next}");
        let config = not_kept(&[], "env = { FAKE_AGENT_STATE = \"@DIR@\" }")
            + FS
            + &format!("[sessions]\nidle_reset = \"48h\"\nresume_window = \"{window}\"\n")
            + "[shutdown]\ndrain = \"400ms\"\ninterrupt = \"5s\"\n";
        let d = Daemon::new().config(&config).hook("note.lua", NOTE);
        let mut d = boot_ready(d, &format!("prompt.before@local:jump/clock.wall=set:{jump}"));
        let mut gate = d.gate("gate");
        let first = d.post_id("local:a", "say first", "first");
        let mut events = d.events("local:a");
        assert_eq!(settled(&mut events, first["turn_id"].as_str().unwrap()).0, "completed");
        let running =
            d.post_id("local:a", &format!("say begun; wait-file {}; say done", gate.path.display()), "running");
        events.until_where("its begin", |e| e.event == "text" && e.data["turn_id"] == running["turn_id"]);
        let waiting = d.post_id("local:a", "say waited", "waiting");
        d.send("local:jump", "say jumped");
        // What came before the jump is known after it, and what comes now stands behind it.
        for (id, text, before) in [("first", "say first", &first), ("waiting", "say waited", &waiting)] {
            let again = d.post_id("local:a", text, id);
            assert_eq!((&again["duplicate"], &again["turn_id"]), (&Value::from(true), &before["turn_id"]), "{case}");
        }
        let last = d.post_id("local:a", "say last", "last");
        assert_eq!(last["session_id"], first["session_id"], "{case}");
        let since = Instant::now();
        d.sigterm();
        d.wait_log("draining");
        let blocking = d.get("/v1/status")["stop"]["blocking"].clone();
        let age = blocking[0]["age_ms"].as_i64().unwrap();
        assert!((0..60_000).contains(&age), "{case}: {blocking}");
        assert_eq!(d.exit_code(), 0, "{case}");
        let took = since.elapsed();
        assert!((Duration::from_millis(400)..Duration::from_secs(9)).contains(&took), "{case}: {took:?}");
        let report: Value = serde_json::from_str(&d.sql::<String>("SELECT report FROM boots")).unwrap();
        // The report counts from a moment after the deadline was set, in whole milliseconds.
        let drained = report["phases"][0]["took_ms"].as_i64().unwrap();
        assert!((350..9000).contains(&drained), "{case}: {report}");
        gate.open();
        let from = d.log.count();
        let mut d = boot_ready(d, &format!("clock.wall=set:{next}"));
        let mut events = d.events("local:a");
        for (turn, many) in [(&running, 2), (&waiting, 1), (&last, 1)] {
            let (outcome, turns) = settled(&mut events, turn["turn_id"].as_str().unwrap());
            assert_eq!((outcome.as_str(), turns), ("completed", many), "{case}");
        }
        let said: Vec<String> = d.said("local:a").into_iter().filter(|l| l.starts_with("user")).collect();
        let texts = ["user: say first", &format!("user: {}", running_text(&d)), "user: say waited", "user: say last"];
        assert_eq!(said, texts, "{case}");
        let numbers: Vec<u64> = events.seen.iter().filter_map(|e| e.id).collect();
        assert!(numbers.is_sorted(), "{case}: {numbers:?}");
        assert!(d.log.all().iter().skip(from).all(|l| !l.contains("panicked")), "{case}");
        assert_eq!(d.stop(), 0, "{case}");
        check_answers(&d);
        check_calls(&d);
        check_kept(&d, &["first", "running", "waiting", "last"].map(|id| format!("local:a {id}")));
    }
}

fn running_text(d: &Daemon) -> String {
    d.sql("SELECT text FROM messages WHERE client_id='running'")
}

/// Checklist 7, 14. The age of a crash's mark counts from the interruption, not from the boot that wrote it: a boot that
/// comes three hours later finds it too old. What had finished gets no turn of its own.
#[test]
fn a_crash_is_as_old_as_its_last_sign_of_life() {
    let config = not_kept(&[], "") + "[sessions]\nresume_window = \"1h\"\n";
    let mut d = boot_ready(Daemon::new().config(&config), "");
    assert_eq!(d.send("local:done", "say done"), "done");
    let (_gate, events, turn) = d.waiting("local:a", "");
    let death = events.seen.last().unwrap().text("at").to_owned();
    d.kill9();
    let mut d = boot_ready(d, &format!("clock.wall=set:{}", 3 * 3_600_000));
    let shown = d.show("local:a");
    assert_eq!(shown["resume_pending"]["reason"], "crash", "{shown}");
    assert_eq!(shown["resume_pending"]["marked_at"], death.as_str(), "the newest of its commits: {shown}");
    assert_eq!(d.show("local:done")["resume_pending"], Value::Null);
    let next = d.turn("local:a", "say fresh");
    assert_eq!((next.outcome(), next.text().as_str()), ("completed", "fresh"));
    assert_ne!(next.accepted["session_id"], turn["session_id"]);
    assert_eq!(next.accepted["notice"]["code"], "session_expired");
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM turns"), 3);
}

/// A clock that is years ahead, or behind, at one boot, and right at the next: what was cut off goes on, what was sent is
/// known, and the trouble is shown as long as it lasts.
#[test]
fn a_clock_that_is_wrong_at_a_boot_costs_nothing() {
    for (wrong, told) in [(11 * 365 * DAY, "far ahead"), (-365 * DAY, "behind")] {
        let config = not_kept(&[], "") + "[sessions]\nresume_window = \"1h\"\n";
        let mut d = boot_ready(Daemon::new().config(&config), "");
        let mut gate = d.gate("gate");
        let mut events = d.events("local:a");
        let turn = d.post_id("local:a", &format!("say begun; wait-file {}; say done", gate.path.display()), "x");
        events.until("text");
        assert_eq!(d.status()["clock_problem"], Value::Null);
        d.kill9();
        d.end_leftovers();
        gate.open();
        let mut d = boot_ready(d, &format!("clock.wall=set:{wrong}"));
        let problem = d.status()["clock_problem"].as_str().unwrap().to_owned();
        assert!(problem.contains(told), "{problem}");
        d.wait_log(told);
        let doctor = d.cli(&["doctor", "--state-dir", d.path("state").to_str().unwrap()]);
        assert!(doctor.out.contains(told), "{}", doctor.out);
        assert_eq!(settled(&mut d.events("local:a"), turn["turn_id"].as_str().unwrap()), ("completed".into(), 2));
        assert_eq!(d.stop(), 0);
        let mut d = boot_ready(d, "");
        assert_eq!(d.status()["clock_problem"], Value::Null);
        assert_eq!(d.post_id("local:a", &running_text_of(&d), "x")["duplicate"], true);
        assert_eq!(d.stop(), 0);
        check_answers(&d);
    }
}

fn running_text_of(d: &Daemon) -> String {
    d.sql("SELECT text FROM messages WHERE client_id='x'")
}
