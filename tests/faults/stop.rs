//! SIGKILL at every step of a stop: between any two of its actions, and before, inside and after each of its transactions.

use serde_json::Value;

use crate::daemon::{Daemon, Gate, not_kept};
use crate::rig::{Came, FS, NOTE, boot_ready, check_answers, check_calls, check_kept, settled, stop_or_die};

/// Hit by every stop.
const ALWAYS: &[&str] = &[
    "act.CloseAdmission",
    "act.TellManager",
    "act.MarkRunning",
    "mark_running.before",
    "mark_running.inside",
    "mark_running.committed",
    "stop.marked",
    "act.CallShutdownHooks",
    "act.CloseWorkers",
    "act.Sweep",
    "act.CloseActivations",
    "stop.swept",
    "close_activations.before",
    "close_activations.inside",
    "close_activations.committed",
    "act.DeliverEnds",
    "stop.ended",
    "delivery.before",
    "delivery.answered",
    "settle_delivery.before",
    "settle_delivery.inside",
    "settle_delivery.committed",
    "delivery.kept",
    "act.CallStopped",
    "act.CloseStore",
    "stop.stopped",
    "close_boot.before",
    "close_boot.inside",
    "close_boot.committed",
    "stop.recorded",
    "stop.closed",
    "act.Leave",
    "stop.left",
    "stop.unlocked",
];
/// Hit when a turn ends in the stop.
const ENDING: &[&str] = &["prompt.answered", "finish_turn.before", "finish_turn.inside", "finish_turn.committed"];
/// Hit when the drain runs out.
const CUT: &[&str] = &[
    "act.RefreshMarks",
    "stop.timeout",
    "refresh_marks.before",
    "refresh_marks.inside",
    "refresh_marks.committed",
    "act.Interrupt",
];
/// Hit by a message in a stop.
const LATE: &[&str] = &["accept_message.before", "accept_message.inside", "accept_message.committed"];

fn make(drain: &str, failpoints: &str) -> Daemon {
    let more = "env = { FAKE_AGENT_STATE = \"@DIR@/agent\" }\n[agent.echo]\nkind = \"echo\"\n\
                [[route]]\nmatch = \"local:e*\"\nagent = \"echo\"\n";
    let config = format!(
        "{}{FS}[sessions]\nstuck_threshold = 0\n[shutdown]\ndrain = \"{drain}\"\ninterrupt = \"5s\"\nhooks = \"6s\"\n",
        not_kept(&[], more)
    );
    let d = Daemon::new().config(&config).hook("note.lua", NOTE);
    std::fs::create_dir(d.path("agent")).unwrap();
    boot_ready(d, failpoints)
}

/// The rule that kills at the first hit of a point in the stop.
fn kill_at(point: &str) -> String {
    if point == "act.CloseAdmission" { format!("{point}=kill:1") } else { format!("act.CloseAdmission/{point}=kill:1") }
}

/// A turn that waits for the gate.
fn begin(d: &Daemon, key: &str, gate: &Gate) -> Value {
    let mut events = d.events(key);
    let turn = d.post_id(key, &format!("say begun; wait-file {}; say done", gate.path.display()), "run");
    events.until_where("the turn", |e| e.event == "text" && e.data["turn_id"] == turn["turn_id"]);
    turn
}

/// What a dead daemon's database must show: promise 3, and the ends that the next boot owes, as `(sid, epoch)`.
fn look(d: &Daemon) -> (bool, Vec<(i64, i64)>) {
    d.check(false);
    let noted: bool = d.sql("SELECT stop_reason IS NOT NULL FROM boots ORDER BY bid DESC LIMIT 1");
    let unmarked: i64 = d.sql(
        "SELECT count(*) FROM turns t JOIN sessions s ON s.sid=t.sid WHERE t.state='running' AND s.mark_reason IS NULL",
    );
    let running: i64 = d.sql("SELECT count(*) FROM turns WHERE state='running'");
    assert_eq!(
        unmarked,
        if noted { 0 } else { running },
        "a stop that is noted has marked all that runs, else nothing"
    );
    let db = d.db();
    let mut open = db.prepare("SELECT sid, epoch FROM activations WHERE closed_at IS NULL").unwrap();
    let open = open.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).unwrap().map(Result::unwrap).collect();
    (noted, open)
}

/// The daemon was killed at a step of its stop. Where the last workers go before the last turn's end is seen nothing is left
/// to sweep, and that step is not taken.
#[track_caller]
fn assert_died(d: &Daemon, point: &str, came: Came) {
    let sweeps = d.log.all().iter().any(|line| line.contains("→ sweeping"));
    assert!(came == Came::Died || point == "act.Sweep" && !sweeps, "{point}: {came:?}");
}

/// Boots what a stop with a fault left, lets it come to rest, and checks all that it promises. `turns` ran or waited, each
/// with its key; gives how many turns the chain of each had.
#[track_caller]
fn recover(d: Daemon, point: &str, came: Came, died: bool, turns: &[(&str, Value)]) -> Vec<usize> {
    if died {
        assert_died(&d, point, came);
    } else {
        assert_eq!(came, Came::Ready, "{point}");
    }
    let (noted, open) = look(&d);
    let mut d = boot_ready(d, "");
    let mut lengths = Vec::new();
    for (key, turn) in turns {
        let (outcome, length) = settled(&mut d.events(key), turn["turn_id"].as_str().unwrap());
        assert_eq!(outcome, "completed", "{point}: {key}");
        lengths.push(length);
    }
    let keys: Vec<String> = d.get("/v1/sessions")["sessions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["key"].as_str().unwrap().to_owned())
        .collect();
    for key in &keys {
        assert_eq!(d.turn(key, "say last").outcome(), "completed", "{point}: {key}");
    }
    assert_eq!(d.stop(), 0, "{point}");
    check_calls(&d);
    check_answers(&d);
    for (sid, epoch) in open {
        let reason: String = d.sql(&format!("SELECT end_reason FROM activations WHERE sid={sid} AND epoch={epoch}"));
        assert_eq!(reason, if noted { "shutdown" } else { "crash" }, "{point}");
    }
    lengths
}

/// Checklist 6, 22, 25, 33, 34. Idle sessions, killed at every step of the stop: each start has its one end, told to the
/// handler with one event_id.
#[test]
fn idle_sessions() {
    for point in ALWAYS {
        let mut d = make("50ms", &kill_at(point));
        d.send("local:e1", "one");
        d.send("local:a", "say one");
        d.send("local:b", "say one");
        d.act("local:b", "reset");
        let came = stop_or_die(&mut d);
        recover(d, point, came, true, &[]);
    }
}

/// Checklist 6, 7, 8, 13, 14, 21. Running turns whose drain runs out, killed at every step: marked before any wait, gone on
/// with exactly once, beside a session that was idle and stays so.
#[test]
fn running_turns() {
    for point in ALWAYS.iter().chain(ENDING).chain(CUT) {
        let mut d = make("50ms", &kill_at(point));
        let mut gate = d.gate("gate");
        d.send("local:e1", "one");
        let turns = [("local:a", begin(&d, "local:a", &gate)), ("local:b", begin(&d, "local:b", &gate))];
        let came = stop_or_die(&mut d);
        gate.open();
        assert_eq!(recover(d, point, came, true, &turns), [2, 2], "{point}: each goes on once");
    }
}

/// Checklist 19, 41. Messages that come in the drain, the daemon killed at every step: each that was acknowledged is
/// answered once after the boot, in order; sent again under its id it is one message.
#[test]
fn deferred_messages() {
    for point in ALWAYS.iter().chain(ENDING).chain(LATE) {
        let mut d = make("20s", &kill_at(point));
        let mut gate = d.gate("gate");
        d.send("local:e1", "one");
        let running = begin(&d, "local:a", &gate);
        let late = [
            ("local:a", "say d1", "d1"),
            ("local:new", "say d2", "d2"),
            ("local:e1", "d3", "d3"),
            ("local:a", "say d4", "d4"),
        ];
        let from = d.notes.count();
        d.sigterm();
        d.notes.find(from, "the stop, or a death", |l| l == "STOPPING=1" || l.starts_with("GONE"));
        let accepted: Vec<Option<Value>> =
            late.iter().map(|(key, text, id)| d.try_post(key, text, Some(id)).ok()).collect();
        for a in accepted.iter().flatten() {
            assert_eq!(a["deferred"], true, "{point}: {a}");
        }
        gate.open();
        let came = crate::rig::end(&mut d);
        assert_died(&d, point, came);
        let (noted, _) = look(&d);
        let mut d = boot_ready(d, "");
        let mut turns = vec![("local:a", running)];
        for ((key, text, id), before) in late.iter().zip(&accepted) {
            let again = d.post_id(key, text, id);
            if let Some(before) = before {
                assert_eq!(again["duplicate"], true, "{point}: {id}");
                for field in ["turn_id", "message_id", "session_id"] {
                    assert_eq!(again[field], before[field], "{point}: {id}");
                }
            }
            turns.push((key, again));
        }
        for (key, turn) in &turns {
            let (outcome, length) = settled(&mut d.events(key), turn["turn_id"].as_str().unwrap());
            assert_eq!(outcome, "completed", "{point}: {key}");
            assert!(length <= 2, "{point}");
        }
        let said: Vec<String> = d.said("local:a").into_iter().filter(|l| l.starts_with("user: say d")).collect();
        assert_eq!(said, ["user: say d1", "user: say d4"], "{point}");
        assert_eq!(d.stop(), 0, "{point}");
        check_calls(&d);
        check_answers(&d);
        let sent: Vec<String> = late.iter().map(|(key, _, id)| format!("{key} {id}")).collect();
        check_kept(&d, &sent);
        assert!(
            noted
                || accepted.iter().flatten().count() == 0
                || point.starts_with("mark_running")
                || *point == "act.MarkRunning",
            "{point}"
        );
    }
}

/// Checklist 20, 24. A worker that does not come is abandoned; killed there, its turn goes on at the next boot all the same.
#[test]
fn abandoned_workers() {
    for point in ["act.Kill", "act.Abandon"] {
        let mut d = make("50ms", &format!("prompt.answered@local:a=stall:60000,{}", kill_at(point)));
        d = short(d);
        let mut gate = d.gate("gate");
        let turn = begin(&d, "local:a", &gate);
        let came = stop_or_die(&mut d);
        gate.open();
        assert_eq!(recover(d, point, came, true, &[("local:a", turn)]), [2], "{point}");
    }
}

/// Checklist 24. A worker that was given up comes with its result while the ends are being told: it changes nothing.
#[test]
fn a_late_result() {
    let more = "env = { FAKE_AGENT_STATE = \"@DIR@/agent\" }\n";
    let config = format!(
        "{}[shutdown]\ndrain = \"50ms\"\ninterrupt = \"300ms\"\nhooks = \"8s\"\n[hooks]\ntimeout = \"6s\"\n",
        not_kept(&[], more)
    );
    // Tells the end for longer than the worker is late.
    let script = "ostler.on(\"session_end\", function()\n  local since = os.time()\n  while os.time() - since < 4 do end\nend)\n";
    let d = Daemon::new().config(&config).hook("slow.lua", script);
    std::fs::create_dir(d.path("agent")).unwrap();
    let mut d = boot_ready(d, "prompt.answered@local:a=stall:1500");
    let gate = d.gate("gate");
    let turn = begin(&d, "local:a", &gate);
    d.sigterm();
    assert_eq!(d.ended().code(), Some(1), "a worker was given up");
    d.check(false);
    let row = |what: &str| d.sql::<String>(&format!("SELECT {what} FROM turns"));
    assert_eq!((row("state"), row("id").as_str()), ("interrupted".into(), turn["turn_id"].as_str().unwrap()));
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM events WHERE kind='turn_end'"), 1);
    assert_eq!(d.sql::<String>("SELECT mark_reason FROM sessions"), "shutdown_timeout");
}

/// A stop is clean only if the ends were written and the database was closed; what was late is there at the next boot.
#[test]
fn what_could_not_be_written_in_time_is_told() {
    let config = "[agent.default]\nkind = \"echo\"\n[shutdown]\nclose = \"1s\"\nhooks = \"6s\"\n";
    let script = "ostler.on('stopped', function(ev) ostler.log.info('STOPPED ' .. tostring(ev.clean)) end)\n\
                  ostler.on('session_end', function(ev) ostler.log.info('END ' .. ev.key) end)\n";
    for (point, told, recorded) in
        [("close_activations.before=once:1500", false, false), ("stop.recorded=once:1500", true, true)]
    {
        let mut d = boot_ready(Daemon::new().config(config).hook("a.lua", script), point);
        d.send("local:a", "x");
        d.sigterm();
        assert_eq!(d.ended().code(), Some(1), "{point}");
        d.wait_log(&format!("STOPPED {told}"));
        assert_eq!(d.sql::<bool>("SELECT clean FROM boots ORDER BY bid DESC LIMIT 1"), recorded, "{point}");
        let mut d = boot_ready(d, "");
        d.wait_log("END local:a");
        assert_eq!(d.stop(), 0);
        let ends = d.log.all().iter().filter(|l| l.contains("END local:a")).count();
        assert_eq!(ends, 1, "{point}");
    }
}

/// The same daemon with a short interrupt.
fn short(d: Daemon) -> Daemon {
    let config =
        std::fs::read_to_string(d.path("ostler.toml")).unwrap().replace("interrupt = \"5s\"", "interrupt = \"300ms\"");
    d.write_config(&config);
    d.client().post("/v1/reload", None).unwrap();
    d
}
