//! Promise 9: a restart is no interruption. Whatever becomes of the daemon, an agent goes on, hears each prompt and each
//! answer once, and each byte of what it says is kept once and in order.

use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::{Duration, Instant};

use ostler::client::session_path;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::daemon::{Daemon, Events, PATIENCE, kept, open_pid, run, wait_pidfd};

/// The two kinds of agents that are kept, by a key of each.
const KINDS: [&str; 2] = ["local:a", "local:x"];

fn config(agents: &str, more: &str) -> String {
    format!("[agents]\norphan_after = \"60s\"\n{agents}\n{}{more}", kept(&[], ""))
}

fn daemon() -> Daemon {
    Daemon::new().config(&config("", "")).start()
}

pub fn session(turn: &Value) -> &str {
    turn["session_id"].as_str().unwrap()
}

/// The newest agent of a session and its shim, held.
pub fn processes(d: &Daemon, session: &str) -> [OwnedFd; 2] {
    let (agent, shim) = d.diary(session).newest();
    [agent, shim].map(|pid| open_pid(pid).expect("it lives"))
}

pub fn lives(fd: &OwnedFd) -> bool {
    !wait_pidfd(fd, Duration::ZERO)
}

#[track_caller]
fn ends(fds: &[OwnedFd]) {
    fds.iter().for_each(|fd| assert!(wait_pidfd(fd, PATIENCE), "it goes on"));
}

/// SIGKILL and another start.
fn die_and_boot(d: &mut Daemon) {
    d.kill9();
    d.check(false);
    d.boot();
}

/// The agent's words of a turn in the transcript.
pub fn answer(d: &Daemon, key: &str, turn: &Value) -> String {
    let of_turn = |e: &&Value| e["role"] == "agent" && e["turn_id"] == turn["turn_id"];
    d.transcript(key).iter().filter(of_turn).map(|e| e["text"].as_str().unwrap()).collect()
}

/// A turn in which the agent rings a bell and then waits for a gate: the events, and what was accepted.
pub fn begun(d: &Daemon, key: &str, text: &str) -> (Events, Value) {
    let mut events = d.events(key);
    let turn = d.post(key, text);
    events.until_where("its first words", |e| e.event == "text" && e.data["turn_id"] == turn["turn_id"]);
    (events, turn)
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
pub fn stops(mut d: Daemon) {
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

/// The daemon is killed in the middle of a turn, the agent goes on, and the next daemon has its answer: also what was said
/// while nobody listened.
#[test]
fn a_turn_goes_on_over_a_death() {
    for key in KINDS {
        let mut d = daemon();
        let (mut first, bell, mut last) = (d.gate("first"), d.bell("bell"), d.gate("last"));
        let [first_path, bell_path, last_path] = [&first.path, &bell.path, &last.path].map(|p| p.display().to_string());
        let text = format!(
            "say begun; wait-file {first_path}; lines 5 0; notify {bell_path}; wait-file {last_path}; say done"
        );
        let (_, turn) = begun(&d, key, &text);
        let before = processes(&d, session(&turn));
        d.kill9();
        d.check(false);
        first.open();
        bell.wait();
        d.boot();
        let mut events = d.events(key);
        events.until_where("what nobody heard", |e| e.event == "text" && e.text("text").contains("line 5"));
        last.open();
        assert_eq!(events.end_of(&turn).0, "completed", "{key}");
        assert_eq!(answer(&d, key, &turn), "begunline 1\nline 2\nline 3\nline 4\nline 5\ndone", "{key}");
        unharmed(&d, key, &[&turn]);
        if key == "local:a" {
            assert!(before.iter().all(lives), "the same agent, and the same shim");
            assert_eq!(d.send(key, "say more"), "more");
            assert_eq!(d.diary(session(&turn)).agents.len(), 1);
        }
        stops(d);
    }
}

/// Three deaths in one turn, each at another step of it, tools and permissions in between; listeners are told at most once a
/// boot.
#[test]
fn several_deaths_in_one_turn() {
    let config = config("", "[sessions]\nstuck_threshold = 0\n");
    let mut d = Daemon::new().config(&config).start();
    let mut pace = d.pace("pace");
    let path = pace.path.display();
    let text = format!("paced {path} 3; tool one; paced {path} 3; tool two; paced {path} 3");
    pace.step(1);
    let (_, turn) = begun(&d, "local:y", &text);
    let mut boots = 0;
    for steps in [3, 3, 2] {
        d.kill9();
        pace.step(steps);
        d.boot();
        boots += 1;
        let line = format!("line {}", 1 + [3, 6, 8][boots - 1]);
        let mut events = d.events("local:y");
        events.until_where(&line, |e| e.event == "text" && e.text("text").contains(&line));
    }
    assert_eq!(d.events("local:y").end_of(&turn).0, "completed");
    unharmed(&d, "local:y", &[&turn]);
    let past = d.past("local:y");
    let told = past.iter().filter(|e| e.event == "notice" && e.text("code") == "reattached").count();
    assert!(told <= boots, "told {told} times in {boots} boots");
    let tools: Vec<String> = past
        .iter()
        .filter(|e| e.event == "tool")
        .map(|e| format!("{} {} {}", e.text("tool_call_id"), e.text("title"), e.text("status")))
        .collect();
    // The question gives a call another title.
    let of = |id: &str| {
        [format!("{id} Touch a file pending"), format!("{id} touch x pending"), format!("{id} touch x completed")]
    };
    assert_eq!(tools, [of("one"), of("two")].concat(), "each tool's begin and end once");
    stops(d);
}

/// An idle session that is live is live again after a death, without a new agent.
#[test]
fn an_idle_agent_is_kept() {
    let mut d = daemon();
    let first = d.turn("local:a", "pid");
    die_and_boot(&mut d);
    let second = d.turn("local:a", "pid");
    assert_eq!(first.text(), second.text());
    unharmed(&d, "local:a", &[&first.accepted, &second.accepted]);
    stops(d);
}

/// A permission that was asked for before the death is answered after it.
#[test]
fn a_permission_outlives_the_daemon() {
    let mut d = daemon();
    let mut events = d.events("local:a");
    let turn = d.post("local:a", "say first; permission; say last");
    let asked = events.until("permission");
    die_and_boot(&mut d);
    let mut events = d.events("local:a");
    // Who comes back at once need not know that the agent is being attached to.
    let given = json!({ "request_id": asked.data["request_id"], "option_id": "allow-once" });
    let after = d.client().post(&session_path("local:a", "/permission"), Some(&given)).unwrap();
    assert_eq!(after["permissions"], json!([]));
    assert_eq!(events.end_of(&turn).0, "completed");
    assert_eq!(answer(&d, "local:a", &turn), "firstoutcome: selected allow-oncelast");
    let states: Vec<&str> = events.seen.iter().filter(|e| e.event == "permission").map(|e| e.text("state")).collect();
    assert_eq!(states, ["open", "resolved"], "asked once, settled once");
    unharmed(&d, "local:a", &[&turn]);
    stops(d);
}

/// An answer to a permission that was acknowledged reaches the agent, once, however soon the daemon dies.
#[test]
fn an_answer_to_a_permission_outlives_the_daemon() {
    let mut d = Daemon::new().config(&config("", "[sessions]\nstuck_threshold = 0\n")).start();
    let mut turns = Vec::new();
    for _ in 0..5 {
        let mut events = d.events("local:a");
        let turn = d.post("local:a", "permission");
        let open = |e: &ostler::client::SseEvent| {
            e.event == "permission" && e.data["turn_id"] == turn["turn_id"] && e.text("state") == "open"
        };
        let asked = events.until_where("the question", open);
        let given = json!({ "request_id": asked.data["request_id"], "option_id": "allow-once" });
        d.client().post(&session_path("local:a", "/permission"), Some(&given)).unwrap();
        die_and_boot(&mut d);
        assert_eq!(d.events("local:a").end_of(&turn).0, "completed");
        assert_eq!(answer(&d, "local:a", &turn), "outcome: selected allow-once");
        turns.push(turn);
    }
    unharmed(&d, "local:a", &turns.iter().collect::<Vec<_>>());
    stops(d);
}

/// A prompt's number is decided when its turn begins. A cancel may come before the prompt was sent, and the next prompt is
/// heard all the same, here and by the next daemon.
#[test]
fn a_turn_that_is_cancelled_before_its_prompt_holds_up_none() {
    let mut d = daemon();
    d.send("local:a", "say warm");
    for n in 0..40 {
        let turn = d.post("local:a", "say one");
        let _ = d.client().post(&session_path("local:a", "/cancel"), None);
        d.events("local:a").end_of(&turn);
        if n % 10 == 9 {
            assert_eq!(d.send("local:a", "say two"), "two");
        }
    }
    die_and_boot(&mut d);
    assert_eq!(d.send("local:a", "say three"), "three");
    assert_eq!(d.stop(), 0);
}

/// A cancel that was acknowledged is carried out after the death.
#[test]
fn a_cancel_outlives_the_daemon() {
    for key in KINDS {
        let mut d = daemon();
        let gate = d.gate("gate");
        let (_, turn) = begun(&d, key, &format!("say begun; wait-file {}", gate.path.display()));
        d.act(key, "cancel");
        die_and_boot(&mut d);
        assert_eq!(d.events(key).end_of(&turn).0, "cancelled", "{key}");
        let diary = d.diary(session(&turn));
        assert_eq!(diary.told.len(), 1, "{key}");
        if key == "local:a" {
            assert_eq!((diary.cancels, diary.agents.len()), (1, 1));
        }
        assert_eq!(answer(&d, key, &turn), "begun", "{key}");
        let past = d.past(key);
        let count = |kind: &str| past.iter().filter(|e| e.event == kind).count();
        assert_eq!((count("session_start"), count("session_end"), count("turn_end")), (1, 0, 1), "{key}");
        assert_eq!(d.send(key, "say on"), "on");
        stops(d);
    }
}

/// A cancel takes back what nobody has answered: whoever answers after that is told so, while the agent still runs.
#[test]
fn a_permission_that_a_cancel_took_back_is_answered_no_more() {
    let d = daemon();
    let mut events = d.events("local:a");
    let turn = d.post("local:a", "permission; hang-hard");
    let asked = events.until("permission");
    d.act("local:a", "cancel");
    events.until_where("that its agent goes on", |e| e.event == "text");
    let given = json!({ "request_id": asked.data["request_id"], "option_id": "allow-once" });
    let refused = d.client().post(&session_path("local:a", "/permission"), Some(&given)).unwrap_err();
    assert_eq!(refused.code, "resolved");
    events.end_of(&turn);
    assert_eq!(answer(&d, "local:a", &turn), "outcome: cancelled ");
    stops(d);
}

/// A stop that ends the agents of an earlier boot leaves alone what bears the marks of no directory: another daemon's.
#[test]
fn a_stop_after_a_death_ends_nobody_elses_agents() {
    let mut d = daemon();
    let mut gate = d.gate("gate");
    let (_, turn) = begun(&d, "local:a", &format!("say begun; wait-file {}", gate.path.display()));
    let held = processes(&d, session(&turn));
    die_and_boot(&mut d);
    gate.open();
    assert_eq!(d.events("local:a").end_of(&turn).0, "completed");
    let marks = [("OSTLER_BOOT_ID", "another"), ("OSTLER_SESSION_ID", "another")];
    let mut others = Command::new("sleep").arg("1000").envs(marks).spawn().unwrap();
    assert_eq!(d.stop(), 0);
    ends(&held);
    assert!(others.try_wait().unwrap().is_none());
    others.kill().unwrap();
    others.wait().unwrap();
}

/// An agent that finishes while nobody is attached has finished.
#[test]
fn an_agent_finishes_alone() {
    for key in KINDS {
        let mut d = daemon();
        let (mut gate, bell) = (d.gate("gate"), d.bell("bell"));
        let rings = if key == "local:a" { "signal" } else { "notify" };
        let text = format!("say begun; wait-file {}; say done; {rings} {}", gate.path.display(), bell.path.display());
        let (_, turn) = begun(&d, key, &text);
        let [agent, _] = processes(&d, session(&turn));
        d.kill9();
        gate.open();
        bell.wait();
        if key == "local:x" {
            assert!(wait_pidfd(&agent, PATIENCE));
        }
        d.boot();
        assert_eq!(d.events(key).end_of(&turn).0, "completed", "{key}");
        assert_eq!(answer(&d, key, &turn), "begundone", "{key}");
        unharmed(&d, key, &[&turn]);
        stops(d);
    }
}

/// An agent that dies while nobody is attached has failed its turn, as it would have before everybody's eyes.
#[test]
fn an_agent_dies_alone() {
    for key in KINDS {
        let outcomes = [false, true].map(|alone| {
            let mut d = daemon();
            let mut gate = d.gate("gate");
            let (_, turn) = begun(&d, key, &format!("say begun; wait-file {}; die 3", gate.path.display()));
            let [agent, _] = processes(&d, session(&turn));
            if alone {
                d.kill9();
            }
            gate.open();
            assert!(wait_pidfd(&agent, PATIENCE));
            if alone {
                d.boot();
            }
            let mut events = d.events(key);
            let (outcome, end) = events.end_of(&turn);
            assert_eq!(answer(&d, key, &turn), "begun", "{key}");
            let ends = d.past(key).iter().filter(|e| e.event == "turn_end").count();
            assert_eq!(ends, 1, "{key}: told once");
            assert_eq!(d.send(key, "say on"), "on");
            let error = end["error"].clone();
            stops(d);
            (outcome, error["code"].clone(), error["message"].clone())
        });
        assert_eq!(outcomes[0], outcomes[1], "{key}: alone, as before everybody's eyes");
        assert_eq!(outcomes[0].0, "failed", "{key}");
    }
}

/// A restart keeps turns, and does not wait for them.
#[test]
fn a_restart_keeps_turns() {
    for key in KINDS {
        let mut d = Daemon::new().config(&config("", "[shutdown]\ndrain = \"25s\"\n")).start();
        let mut gate = d.gate("gate");
        let idle = (key == "local:a").then(|| d.turn("local:idle", "pid"));
        let (_, turn) = begun(&d, key, &format!("say begun; wait-file {}; say done", gate.path.display()));
        let before = processes(&d, session(&turn));
        let since = Instant::now();
        d.signal(Signal::USR1);
        assert_eq!(d.ended().code(), Some(75), "{key}");
        assert!(since.elapsed() < Duration::from_secs(10), "{key}: it drained: {:?}", since.elapsed());
        d.check(false);
        assert!(before.iter().all(lives), "{key}");
        let report: String = d.sql("SELECT report FROM boots ORDER BY bid DESC LIMIT 1");
        let report: Value = serde_json::from_str(&report).unwrap();
        let sessions = report["sessions"].as_array().unwrap();
        let of_key = sessions.iter().find(|s| s["key"] == key).unwrap_or_else(|| panic!("{report}"));
        assert_eq!((&of_key["outcome"], &report["clean"]), (&json!("kept"), &json!(true)), "{report}");
        d.boot();
        gate.open();
        assert_eq!(d.events(key).end_of(&turn).0, "completed", "{key}");
        unharmed(&d, key, &[&turn]);
        if let Some(idle) = idle {
            assert_eq!(d.send("local:idle", "pid"), idle.text());
            assert_eq!(d.past("local:idle").iter().filter(|e| e.event == "session_end").count(), 0);
        }
        stops(d);
    }
}

/// A stop ends every agent by the ladder, whatever it has started, and marks what ran.
#[test]
fn a_stop_ends_kept_agents() {
    for key in KINDS {
        let mut d = Daemon::new().config(&config("", "[shutdown]\ndrain = \"50ms\"\n")).start();
        let gate = d.gate("gate");
        let (_, turn) = begun(&d, key, &format!("outlaw; wait-file {}", gate.path.display()));
        let before = processes(&d, session(&turn));
        // One that was attached, and one that this daemon started.
        die_and_boot(&mut d);
        d.send("local:idle", "say x");
        d.sigterm();
        assert_eq!(d.exit_code(), 0, "{key}");
        ends(&before);
        empty(&d);
        assert_eq!(d.sql::<String>("SELECT state FROM turns WHERE tid=1"), "interrupted", "{key}");
        let reasons: String = d.sql("SELECT group_concat(DISTINCT end_reason) FROM activations");
        assert_eq!(reasons, "shutdown", "{key}");
    }
}

/// A stop that comes while the daemon still attaches ends all the same agents.
#[test]
fn a_stop_while_agents_are_attached() {
    let mut d = Daemon::new().config(&config("", "[shutdown]\ndrain = \"50ms\"\n")).start();
    let gate = d.gate("gate");
    let text = format!("say begun; wait-file {}", gate.path.display());
    let turns: Vec<_> = (0..6).flat_map(|n| KINDS.map(|key| begun(&d, &format!("{key}{n}"), &text).1)).collect();
    let agents: Vec<OwnedFd> = turns.iter().flat_map(|t| processes(&d, session(t))).collect();
    d.kill9();
    let from = d.notes.count();
    d.spawn();
    d.notes.find(from, "READY=1", |l| l == "READY=1");
    d.sigterm();
    assert_eq!(d.exit_code(), 0);
    ends(&agents);
    empty(&d);
}

/// `keep = "crash"`: a restart ends agents, a death does not.
#[test]
fn only_a_crash_keeps() {
    let mut d = Daemon::new().config(&config("keep = \"crash\"", "[shutdown]\ndrain = \"50ms\"\n")).start();
    let mut gate = d.gate("gate");
    let text = format!("say begun; wait-file {}; say done", gate.path.display());
    let (_, turn) = begun(&d, "local:a", &text);
    let before = processes(&d, session(&turn));
    die_and_boot(&mut d);
    assert!(before.iter().all(lives));
    d.signal(Signal::USR1);
    // `exit_code` looks for whatever is left.
    assert_eq!(d.exit_code(), 75);
    ends(&before);
    d.boot();
    let mut events = d.events("local:a");
    assert_eq!(events.end_of(&turn).0, "interrupted");
    let next = events.until_where("its continuation", |e| e.event == "turn_start" && e.data["continues"].is_string());
    gate.open();
    assert_eq!(events.end_of(&next.data).0, "completed");
    stops(d);
}

/// `keep = "never"`: a death interrupts, and what it left is ended before the session goes on.
#[test]
fn nothing_is_kept_where_it_is_not_wanted() {
    let mut d = Daemon::new().config(&config("keep = \"never\"", "")).start();
    let mut gate = d.gate("gate");
    let text = format!("pid; wait-file {}; say done", gate.path.display());
    let (_, turn) = begun(&d, "local:a", &text);
    let agent = open_pid(d.diary(session(&turn)).newest().0).unwrap();
    d.kill9();
    d.boot();
    let mut events = d.events("local:a");
    assert_eq!(events.end_of(&turn).0, "interrupted");
    let next = events.until_where("its continuation", |e| e.event == "turn_start" && e.data["continues"].is_string());
    assert!(!lives(&agent), "it still ran when the session went on");
    gate.open();
    assert_eq!(events.end_of(&next.data).0, "completed");
    stops(d);
}

/// Agents whose daemon does not come back are ended after `orphan_after`, with all that they started.
#[test]
fn orphans_are_ended() {
    let config = format!("[agents]\norphan_after = \"2s\"\n{}", kept(&["--ignore-term", "--ignore-eof"], ""));
    let mut d = Daemon::new().config(&config).start();
    let mut all = Vec::new();
    let mut turns = Vec::new();
    for key in KINDS {
        let gate = d.gate(key);
        let (events, turn) = begun(&d, key, &format!("outlaw; say .; wait-file {}", gate.path.display()));
        let said: String = events.seen.iter().filter(|e| e.event == "text").map(|e| e.text("text")).collect();
        let outlaw: String =
            said.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
        all.extend(processes(&d, session(&turn)));
        all.push(open_pid(outlaw.parse().unwrap()).expect("the outlaw lives"));
        turns.push(turn);
    }
    d.kill9();
    ends(&all);
    d.boot();
    for (key, turn) in KINDS.iter().zip(&turns) {
        assert_eq!(d.events(key).end_of(turn).0, "interrupted", "{key}");
        d.act(key, "reset");
    }
    stops(d);
}

/// A daemon on a copy of the state directory attaches to nothing of the original's, and ends nothing.
#[test]
fn a_copy_attaches_to_nothing() {
    let mut original = daemon();
    let mut gate = original.gate("gate");
    let text = format!("say begun; wait-file {}; say done", gate.path.display());
    let turns = KINDS.map(|key| begun(&original, key, &text).1);
    let agents: Vec<OwnedFd> = turns.iter().flat_map(|t| processes(&original, session(t))).collect();
    original.kill9();
    let mut copy = Daemon::new().config(&config("", "[sessions]\nresume = \"on_message\"\n"));
    run(Command::new("cp").arg("-a").arg(original.path("state")).arg(copy.path("state")), "").ok();
    copy.boot();
    for (key, turn) in KINDS.iter().zip(&turns) {
        assert_eq!(copy.events(key).end_of(turn).0, "interrupted", "{key}");
    }
    assert_eq!(copy.send("local:b", "say copy"), "copy");
    assert_eq!(copy.stop(), 0);
    assert!(agents.iter().all(lives), "the copy ended what is the original's");
    original.boot();
    gate.open();
    for (key, turn) in KINDS.iter().zip(&turns) {
        assert_eq!(original.events(key).end_of(turn).0, "completed", "{key}");
        unharmed(&original, key, &[turn]);
    }
    stops(original);
}

/// `--no-resume` attaches to nothing and ends nothing.
#[test]
fn no_resume_leaves_agents_alone() {
    let mut d = daemon();
    let gate = d.gate("gate");
    let (_, turn) = begun(&d, "local:a", &format!("say begun; wait-file {}; say done", gate.path.display()));
    let before = processes(&d, session(&turn));
    d.kill9();
    let mut d = d.arg("--no-resume");
    d.boot();
    assert_eq!(d.send("local:b", "say beside"), "beside");
    assert!(before.iter().all(lives));
    assert_eq!(d.diary(session(&turn)).told.len(), 1);
    d.sigterm();
    assert_eq!(d.ended().code(), Some(0));
    assert!(before.iter().all(lives), "a stop ends what it attached to");
}

/// A line of 30 MiB that comes while the daemon dies, twice, costs none of its neighbours.
#[test]
fn a_long_line_comes_over_deaths() {
    let mut d = Daemon::new().config(&config("", "[sessions]\nstuck_threshold = 0\n")).start();
    let mut gate = d.gate("gate");
    let text = format!("say begun; wait-file {}; longline {}; say done", gate.path.display(), 30 * 1024 * 1024);
    let (_, turn) = begun(&d, "local:a", &text);
    gate.open();
    die_and_boot(&mut d);
    die_and_boot(&mut d);
    assert_eq!(d.events("local:a").end_of(&turn).0, "completed");
    assert_eq!(answer(&d, "local:a", &turn), "begunafterdone");
    unharmed(&d, "local:a", &[&turn]);
    stops(d);
}

/// A character of a command's answer whose bytes come before and after a death is whole.
#[test]
fn a_character_in_two_pieces_is_whole() {
    let mut d = daemon();
    let mut gate = d.gate("gate");
    let (_, turn) = begun(&d, "local:x", &format!("say begun ; half {}; say .", gate.path.display()));
    die_and_boot(&mut d);
    gate.open();
    assert_eq!(d.events("local:x").end_of(&turn).0, "completed");
    assert_eq!(answer(&d, "local:x", &turn), "begun\u{e4}.");
    stops(d);
}

/// An agent that says more than the spool holds while nobody listens waits, and nothing is lost.
#[test]
fn a_full_spool_loses_nothing() {
    let mut d = Daemon::new().config(&config("spool = \"64MiB\"", "")).start();
    let (mut gate, bell) = (d.gate("gate"), d.bell("bell"));
    let long = format!("longline {}", 31 * 1024 * 1024);
    let text = format!(
        "say begun; wait-file {}; lines 3 0; {long}; lines 2 0; {long}; notify {}; {long}; lines 1 0; {long}; say done",
        gate.path.display(),
        bell.path.display()
    );
    let (_, turn) = begun(&d, "local:a", &text);
    d.kill9();
    gate.open();
    bell.wait();
    d.boot();
    assert_eq!(d.events("local:a").end_of(&turn).0, "completed");
    let want = "begunline 1\nline 2\nline 3\nafterline 4\nline 5\nafterafterline 6\nafterdone";
    assert_eq!(answer(&d, "local:a", &turn), want);
    unharmed(&d, "local:a", &[&turn]);
    stops(d);
}

/// What an agent says by itself while nobody listens becomes a turn of its own.
#[test]
fn own_words_become_a_turn() {
    let mut d = daemon();
    let (mut gate, said) = (d.gate("own"), d.bell("own.said"));
    let first = d.turn("local:a", &format!("say one; own {} by the way", gate.path.display()));
    assert_eq!(first.text(), "one");
    d.kill9();
    gate.open();
    said.wait();
    d.boot();
    let mut events = d.events("local:a");
    let words = events.until_where("its own words", |e| e.event == "text" && e.text("text") == "by the way");
    assert_ne!(words.data["turn_id"], first.accepted["turn_id"]);
    assert_eq!(words.data["session_id"], first.accepted["session_id"]);
    events.end_of(&words.data);
    assert_eq!(d.send("local:a", "say two"), "two");
    assert_eq!(d.diary(first.session()).agents.len(), 1);
    stops(d);
}
