//! Boots, stops, and what a boot makes of what the last one left.

use super::*;
use crate::config::Retention;

fn alive(rig: &Rig) {
    rig.store.note_alive().unwrap();
}

#[test]
fn a_crash_ends_every_activation_once_and_marks_what_ran() {
    let mut rig = Rig::new();
    let (runs, turn) = rig.running(KEY, "runs");
    rig.store.append(turn.turn, batch(1, vec![Item::Text("so far".into())])).unwrap();
    let idle = rig.say("local:idle", "m");
    let epoch = rig.open(idle.sid);
    let b = rig.begin(idle.sid, epoch);
    rig.finish(b.turn, Outcome::Completed);
    let parked = rig.say("local:parked", "m");
    rig.pass(1000);
    alive(&rig);
    rig.pass(7 * 60_000);
    let seen = rig.newest();
    let r = rig.crash();
    assert_eq!(
        r,
        Recovered { deaths: 1, activations: 2, interrupted: 1, suspended: 0, recent_deaths: 0, pending: vec![] }
    );
    assert_eq!(rig.events(KEY, seen), ["turn_end:interrupted", "session_end:crash"]);
    assert_eq!(rig.events("local:idle", seen), ["session_end:crash"]);
    assert!(rig.events("local:parked", seen).is_empty());
    assert_eq!(rig.marked_at(runs.sid), T0 + 1000, "the last sign of life");
    assert_eq!([runs.sid, idle.sid, parked.sid].map(|s| rig.mark(s)), ["crash", "", ""]);
    assert_eq!([runs.sid, idle.sid, parked.sid].map(|s| rig.unclean(s)), [1, 0, 0]);
    assert_eq!(rig.transcript(&runs.session_id), ["user: runs", "agent: so far"], "the partial answer is kept");
    assert_eq!(rig.state(&parked.turn_id), "queued");
    let r = rig.crash();
    assert_eq!((r.deaths, r.activations, r.interrupted), (1, 0, 0), "each end once");
    assert_eq!(r.recent_deaths, 1);
    assert_eq!(refused(rig.store.append(turn.turn, batch(2, vec![]))), Refusal::Stale);
}

#[test]
fn the_last_sign_of_life_is_the_newest_of_commits_and_notes() {
    let mut rig = Rig::new();
    let (a, _) = rig.running(KEY, "m");
    rig.pass(500);
    rig.say("local:b", "a message is a commit");
    rig.pass(90_000);
    rig.crash();
    assert_eq!(rig.marked_at(a.sid), T0 + 500);
    let mut rig = Rig::new();
    let (a, _) = rig.running(KEY, "m");
    rig.now.store(T0 - 10 * HOUR, Ordering::SeqCst);
    rig.crash();
    assert_eq!(rig.marked_at(a.sid), T0, "though the clock is behind");
}

#[test]
fn a_stop_in_order_leaves_nothing_to_recover() {
    let mut rig = Rig::new();
    let (done, turn) = rig.running(KEY, "finishes in the drain");
    let (cut, cut_turn) = rig.running("local:cut", "does not");
    let idle = rig.say("local:idle", "m");
    rig.open(idle.sid);
    rig.store.cancel(Target::Key("local:idle".into()), true).unwrap();
    rig.store.set_admission(Admission::Stopping);
    assert_eq!(rig.store.mark_running(note()).unwrap(), 2);
    assert_eq!(rig.store.mark_running(note()).unwrap(), 0, "once");
    assert_eq!([done.sid, cut.sid, idle.sid].map(|s| rig.mark(s)), ["restart_timeout", "restart_timeout", ""]);
    rig.finish(turn.turn, Outcome::Completed);
    rig.pass(30_000);
    assert_eq!(rig.store.refresh_marks(MarkReason::RestartTimeout, false).unwrap(), 1);
    rig.store.finish_turn(cut_turn.turn, vec![], Outcome::Interrupted, None, MarkReason::RestartTimeout).unwrap();
    let seen = rig.newest();
    assert_eq!(rig.store.close_activations(StopReason::Restart, 3, None).unwrap(), 3);
    assert_eq!(rig.store.close_activations(StopReason::Restart, 3, None).unwrap(), 0);
    for key in [KEY, "local:cut", "local:idle"] {
        assert_eq!(rig.events(key, seen), ["session_end:restart"]);
    }
    rig.store.close_boot(true, serde_json::json!({ "boot_id": "boot-1" }), 100).unwrap();
    assert_eq!(rig.crash(), Recovered::default());
    assert_eq!([done.sid, cut.sid, idle.sid].map(|s| rig.mark(s)), ["", "restart_timeout", ""]);
    assert_eq!([done.sid, cut.sid, idle.sid].map(|s| rig.unclean(s)), [0, 0, 0]);
    assert_eq!(rig.store.reports(Some("boot-1"), 9).unwrap().len(), 1);
    assert_eq!(refused(rig.store.reports(Some("boot-9"), 9)), Refusal::NotFound);
}

#[test]
fn what_is_abandoned_is_interrupted_and_counted() {
    let mut rig = Rig::new();
    let (a, turn) = rig.running(KEY, "m");
    let (c, _) = rig.running("local:c", "cancelled");
    rig.store.cancel(Target::Key("local:c".into()), false).unwrap();
    let (killed, _) = rig.running("local:killed", "killed by an impatient operator");
    rig.store.mark_running(note()).unwrap();
    rig.store.note_abandoned(vec![a.sid, c.sid]).unwrap();
    rig.store.close_activations(StopReason::Restart, 3, None).unwrap();
    assert_eq!(
        (rig.state(&turn.turn_id).as_str(), rig.mark(a.sid).as_str(), rig.unclean(a.sid)),
        ("interrupted", "restart_timeout", 1)
    );
    assert_eq!((rig.mark(killed.sid).as_str(), rig.unclean(killed.sid)), ("restart_timeout", 0), "not given up");
    assert_eq!(rig.mark(c.sid), "", "a cancelled one does not go on");
    assert_eq!(
        refused(rig.store.append(turn.turn, batch(1, vec![]))),
        Refusal::Stale,
        "its worker can change nothing later"
    );
    rig.store.close_boot(false, Value::Null, 100).unwrap();
    assert_eq!(rig.crash().activations, 0);
}

#[test]
fn what_was_abandoned_counts_although_its_stop_was_cut_off() {
    let mut rig = Rig::new();
    let (a, _) = rig.running(KEY, "hangs");
    let (b, _) = rig.running("local:b", "runs");
    rig.store.mark_running(note()).unwrap();
    rig.store.note_abandoned(vec![a.sid]).unwrap();
    rig.crash();
    assert_eq!((rig.unclean(a.sid), rig.unclean(b.sid)), (1, 0));
}

#[test]
fn what_is_abandoned_time_and_again_is_suspended() {
    let mut rig = Rig::new();
    let a = rig.say(KEY, "hangs");
    for n in 1..=3 {
        let epoch = rig.open(a.sid);
        rig.store.begin_turn(Begin { auto_continue: true, ..rig.next_turn(a.sid, epoch) }).unwrap().unwrap();
        rig.store.mark_running(note()).unwrap();
        rig.store.note_abandoned(vec![a.sid]).unwrap();
        let seen = rig.newest();
        rig.store.close_activations(StopReason::Restart, 3, None).unwrap();
        let told = rig.events(KEY, seen);
        assert_eq!(told.iter().filter(|e| e.starts_with("session_end")).count(), 1, "one end: {told:?}");
        rig.store.close_boot(false, Value::Null, 100).unwrap();
        rig.crash();
        assert_eq!((rig.unclean(a.sid), rig.status(a.sid).as_str()), (n, if n < 3 { "open" } else { "suspended" }));
    }
}

#[test]
fn a_stop_that_was_cut_off_explains_the_death() {
    let mut rig = Rig::new();
    let (a, _) = rig.running(KEY, "runs");
    let (c, cancelled) = rig.running("local:c", "cancelled in the stop");
    let (f, failed) = rig.running("local:f", "failed in the stop");
    rig.pass(1000);
    rig.store.mark_running(note()).unwrap();
    rig.store.cancel(Target::Key("local:c".into()), false).unwrap();
    rig.finish(failed.turn, Outcome::Failed);
    let seen = rig.newest();
    let r = rig.crash();
    assert_eq!((r.deaths, r.activations), (1, 3));
    assert_eq!(rig.events(KEY, seen), ["turn_end:interrupted", "session_end:restart"]);
    assert_eq!([a.sid, c.sid, f.sid].map(|s| rig.mark(s)), ["restart_timeout", "", ""]);
    assert_eq!([a.sid, c.sid, f.sid].map(|s| rig.unclean(s)), [0, 0, 0]);
    assert_eq!(rig.state(&cancelled.turn_id), "cancelled");
    assert_eq!(r.recent_deaths, 0, "a stop that was cut off is no reason to slow down");
    // What the next boot finds is a mark from before now: a turn that fails does not clear it.
    let epoch = rig.open(a.sid);
    let b = rig.store.begin_turn(Begin { auto_continue: true, ..rig.next_turn(a.sid, epoch) }).unwrap().unwrap();
    assert!(b.prompt.contains("restarted"), "{}", b.prompt);
    rig.finish(b.turn, Outcome::Failed);
    assert_eq!(rig.mark(a.sid), "restart_timeout");
}

#[test]
fn three_deaths_in_a_row_suspend_and_the_queue_moves() {
    let mut rig = Rig::new();
    let a = rig.say(KEY, "stuck");
    let mut last = String::new();
    for death in 1..=3 {
        let epoch = rig.open(a.sid);
        last = rig
            .store
            .begin_turn(Begin { auto_continue: true, ..rig.next_turn(a.sid, epoch) })
            .unwrap()
            .unwrap()
            .turn_id;
        if death == 3 {
            rig.say(KEY, "waits");
        }
        let r = rig.crash();
        assert_eq!((r.suspended, rig.unclean(a.sid)), (i64::from(death == 3), death));
    }
    assert_eq!(
        (rig.status(a.sid).as_str(), rig.mark(a.sid).as_str(), rig.state(&last).as_str()),
        ("suspended", "crash", "interrupted")
    );
    let now = rig.store.session(&key()).unwrap();
    assert_ne!(now.sid, a.sid);
    assert_eq!(rig.store.wanted(0, 10, Some(0)).unwrap().iter().map(|w| w.sid).collect::<Vec<_>>(), [now.sid]);
    let tail = rig.events(KEY, 0);
    assert_eq!(
        tail[tail.len() - 4..],
        ["turn_end:interrupted", "session_end:crash", "notice:session_suspended", "notice:moved"]
    );
    let r = rig.crash();
    assert_eq!((r.suspended, rig.status(a.sid).as_str()), (0, "suspended"), "nothing touches it");
}

#[test]
fn a_completed_turn_clears_the_count_and_a_threshold_of_nought_counts_only() {
    let mut rig = Rig::new();
    let a = rig.say(KEY, "m");
    for _ in 0..2 {
        let epoch = rig.open(a.sid);
        rig.store.begin_turn(Begin { auto_continue: true, ..rig.next_turn(a.sid, epoch) }).unwrap().unwrap();
        rig.crash();
    }
    let epoch = rig.open(a.sid);
    let b = rig.store.begin_turn(Begin { auto_continue: true, ..rig.next_turn(a.sid, epoch) }).unwrap().unwrap();
    assert_eq!(rig.unclean(a.sid), 2);
    rig.finish(b.turn, Outcome::Completed);
    assert_eq!(rig.unclean(a.sid), 0);
    let mut rig = Rig::new();
    let a = rig.say(KEY, "m");
    for n in 1..5 {
        let epoch = rig.open(a.sid);
        rig.store.begin_turn(Begin { auto_continue: true, ..rig.next_turn(a.sid, epoch) }).unwrap().unwrap();
        assert_eq!((rig.crash_at(0).suspended, rig.unclean(a.sid)), (0, n));
    }
}

/// A session two deaths on, resumed alone, and a neighbour that runs.
fn alone() -> (Rig, Accepted, Begun, Accepted) {
    let mut rig = Rig::new();
    let a = rig.say(KEY, "stuck");
    for _ in 0..2 {
        let epoch = rig.open(a.sid);
        rig.store.begin_turn(Begin { auto_continue: true, ..rig.next_turn(a.sid, epoch) }).unwrap().unwrap();
        rig.crash();
    }
    let (n, _) = rig.running("local:n", "neighbour");
    let epoch = rig.open(a.sid);
    let b = rig.store.begin_turn(Begin { auto_continue: true, ..rig.next_turn(a.sid, epoch) }).unwrap().unwrap();
    assert!(b.on_probation);
    (rig, a, b, n)
}

#[test]
fn a_death_while_one_is_resumed_alone_is_its_own() {
    let (mut rig, a, _, n) = alone();
    assert_eq!(rig.crash().suspended, 1);
    assert_eq!((rig.status(a.sid).as_str(), rig.unclean(n.sid), rig.mark(n.sid).as_str()), ("suspended", 0, "crash"));
}

#[test]
fn once_it_stood_its_time_or_ended_a_death_is_everybodys() {
    for ended in [false, true] {
        let (mut rig, a, b, n) = alone();
        if ended {
            rig.finish(b.turn, Outcome::Failed);
        } else {
            rig.store.end_probation(n.sid).unwrap();
            assert!(rig.number("SELECT solo FROM boots ORDER BY bid DESC LIMIT 1") == a.sid, "only its own");
            rig.store.end_probation(a.sid).unwrap();
        }
        rig.crash();
        assert_eq!(rig.unclean(n.sid), 1);
        assert_eq!(rig.status(a.sid), if ended { "open" } else { "suspended" });
    }
}

#[test]
fn of_those_that_may_be_deadly_one_runs_at_a_time() {
    let mut rig = Rig::new();
    let sids: Vec<i64> = ["local:a", "local:b"].iter().map(|key| rig.running(key, "m").0.sid).collect();
    rig.crash();
    for sid in &sids {
        let epoch = rig.open(*sid);
        rig.store.begin_turn(Begin { auto_continue: true, ..rig.next_turn(*sid, epoch) }).unwrap().unwrap();
    }
    rig.crash();
    let (a, b) = (sids[0], sids[1]);
    let epochs = [rig.open(a), rig.open(b)];
    let begin = |n: usize| rig.store.begin_turn(Begin { auto_continue: true, ..rig.next_turn(sids[n], epochs[n]) });
    let first = begin(0).unwrap().unwrap();
    assert!(first.on_probation);
    assert_eq!(refused(begin(1)), Refusal::OnProbation);
    assert_eq!(begin(0).unwrap().unwrap().turn, first.turn, "its own is given again");
    // A session that is not at risk runs beside it.
    let (n, beside) = rig.running("local:n", "m");
    assert!(!beside.on_probation);
    rig.finish(first.turn, Outcome::Failed);
    let second = begin(1).unwrap().unwrap();
    assert!(second.on_probation);
    // With nothing to do it waits for nobody, and holds nobody up.
    assert_eq!(begin(0).unwrap().map(|b| b.turn_id), None);
    let more = rig.say("local:a", "more");
    assert_eq!(more.sid, a);
    assert_eq!(refused(begin(0)), Refusal::OnProbation, "a message waits like a continuation");
    rig.store.end_probation(b).unwrap();
    assert!(begin(0).unwrap().unwrap().on_probation);
    rig.crash();
    assert_eq!(sids.iter().map(|s| rig.unclean(*s)).collect::<Vec<_>>(), [3, 2], "the one that ran alone");
    assert_eq!((rig.status(a).as_str(), rig.unclean(n.sid)), ("suspended", 0));
}

#[test]
fn a_death_inside_recovery_changes_nothing() {
    let mut rig = Rig::new();
    let (a, _) = rig.running(KEY, "m");
    let env = Env { faults: Some(Arc::new(|name, step| (name, step) == ("open_boot", Step::Commit))), ..env(&rig.now) };
    rig.store = Store::open_in(&rig.path, env).unwrap();
    let info = BootInfo { boot_id: "doomed".into(), pid: 1, threshold: 3, machine: None };
    assert!(matches!(rig.store.open_boot(info), Err(Error::Unavailable(_))));
    assert_eq!((rig.mark(a.sid).as_str(), rig.number("SELECT count(*) FROM boots")), ("", 1));
    let r = rig.crash();
    assert_eq!((r.deaths, r.interrupted, rig.unclean(a.sid)), (1, 1, 1));
}

#[test]
fn ends_that_a_stop_could_not_write_are_written_by_the_next_boot() {
    let mut rig = Rig::new();
    let (a, turn) = rig.running(KEY, "m");
    rig.store.mark_running(note()).unwrap();
    // The ends fail, the clean record does not.
    rig.store.close_boot(false, Value::Null, 100).unwrap();
    let seen = rig.newest();
    let r = rig.crash();
    assert_eq!((r.deaths, r.activations, r.interrupted), (1, 1, 1));
    assert_eq!(rig.events(KEY, seen), ["turn_end:interrupted", "session_end:restart"]);
    assert_eq!(
        (rig.state(&turn.turn_id).as_str(), rig.mark(a.sid).as_str(), rig.unclean(a.sid)),
        ("interrupted", "restart_timeout", 0)
    );
    rig.open(a.sid);
}

#[test]
fn reports_are_kept_by_number() {
    let mut rig = Rig::new();
    for _ in 0..4 {
        rig.store.close_boot(true, serde_json::json!({}), 2).unwrap();
        rig.crash();
    }
    assert_eq!(rig.number("SELECT count(*) FROM boots"), 3, "two ended ones and this");
}

#[test]
fn the_outcomes_of_a_stop() {
    let rig = Rig::new();
    let (_, done) = rig.running("local:done", "m");
    let (_, cut) = rig.running("local:cut", "m");
    let idle = rig.say("local:idle", "m");
    rig.open(idle.sid);
    rig.pass(1000);
    let live = [
        (done.turn.sid, Some(done.turn_id.clone())),
        (cut.turn.sid, Some(cut.turn_id.clone())),
        (idle.sid, None),
        (999, None),
    ];
    rig.store.mark_running(note()).unwrap();
    rig.finish(done.turn, Outcome::Completed);
    rig.finish(cut.turn, Outcome::Interrupted);
    rig.store.close_activations(StopReason::Restart, 3, None).unwrap();
    let told = rig.store.stop_outcomes(&live).unwrap();
    let mut told: Vec<_> =
        told.iter().map(|o| (o.key.as_str(), o.turn.as_deref(), o.mark.is_some(), o.end_pending)).collect();
    told.sort_unstable();
    assert_eq!(
        told,
        [
            ("local:cut", Some("interrupted"), true, true),
            ("local:done", Some("completed"), false, true),
            ("local:idle", None, false, true)
        ]
    );
}

const YEAR: i64 = 365 * 24 * HOUR;

/// Sessions whose turn would go on by itself, as the coordinator asks for them.
fn going_on(rig: &Rig) -> usize {
    let since = rig.store.now() - i64::try_from(POLICY.resume_window.unwrap().as_millis()).unwrap();
    rig.store.wanted(0, 100, Some(since)).unwrap().len()
}

/// A wall clock that is wrong at a boot, and right a moment later: no continuation is lost, then nor at the next boot, no
/// id is forgotten, and what is written meanwhile is as old as it is.
#[test]
fn a_clock_that_is_wrong_at_a_boot_costs_nothing() {
    for (wrong, told) in
        [(T0 - YEAR, "behind"), (T0 - 10 * HOUR, "behind"), (0, "behind"), (T0 + 11 * YEAR, "far ahead")]
    {
        let mut rig = Rig::new();
        let mut message = rig.accept("local:id", "m");
        message.client_id = Some("x".into());
        rig.store.accept_message(message.clone()).unwrap();
        let (a, _) = rig.running(KEY, "m");
        rig.now.store(wrong, Ordering::SeqCst);
        rig.crash();
        let problem = rig.store.clock_problem().unwrap().to_string();
        assert!(problem.contains(told), "{wrong}: {problem}");
        assert_eq!(going_on(&rig), 2, "{wrong}: the one that waits and the one that was cut off");
        let mark = rig.marked_at(a.sid);
        assert_eq!(mark, T0, "{wrong}");
        let (b, _) = rig.running("local:b", "m");
        let keep = Retention {
            events: Some(Duration::from_secs(3600)),
            ids: Some(Duration::from_secs(3600)),
            ..crate::config::Config::default().retention
        };
        assert_eq!(rig.store.prune(keep.clone()).unwrap().total(), 0, "{wrong}");
        // Set right.
        rig.now.store(T0 + 60_000, Ordering::SeqCst);
        assert_eq!(rig.store.prune(keep.clone()).unwrap().total(), 0, "{wrong}");
        assert!(rig.store.accept_message(message).unwrap().duplicate, "{wrong}");
        assert!(rig.store.clock_problem().is_none(), "{wrong}");
        assert_eq!(going_on(&rig), 2, "{wrong}");
        rig.crash();
        assert_eq!(going_on(&rig), 3, "{wrong}");
        assert_eq!([rig.mark(a.sid), rig.mark(b.sid)], ["crash", "crash"], "{wrong}");
        assert!(rig.store.clock_problem().is_none(), "{wrong}");
    }
}

/// A clock that was years ahead for long is not what the next boots go by.
#[test]
fn a_database_of_the_future_is_gone_on_with() {
    let mut rig = Rig::new();
    rig.pass(11 * YEAR);
    let (a, _) = rig.running(KEY, "m");
    rig.now.store(T0, Ordering::SeqCst);
    rig.crash();
    assert_eq!(rig.store.now(), T0);
    assert_eq!(going_on(&rig), 1);
    assert!(rig.store.clock_problem().unwrap().to_string().contains("has times ahead"));
    let epoch = rig.open(a.sid);
    let mut next_turn = rig.next_turn(a.sid, epoch);
    next_turn.auto_continue = true;
    let begun = rig.store.begin_turn(next_turn).unwrap().unwrap();
    rig.finish(begun.turn, Outcome::Completed);
    assert_eq!(rig.mark(a.sid), "");
}

/// An agent that is kept and not attached to goes on, however often that happens.
#[test]
fn what_a_stop_keeps_is_kept_until_it_is_attached_to() {
    let mut rig = Rig::new();
    let machine = || "machine".to_owned();
    let boot = |rig: &Rig, id: i32| {
        let info = BootInfo { boot_id: format!("boot {id}"), pid: 1, threshold: 3, machine: Some(machine()) };
        rig.store.open_boot(info).unwrap()
    };
    let a = rig.say(KEY, "m");
    let definition = Definition { json: "{}".into(), per_turn: true };
    let epoch = rig.store.open_activation(a.sid, "agent".into(), "/w".into(), Some(definition)).unwrap().epoch;
    rig.begin(a.sid, epoch);
    let other = rig.say("local:other", "m");
    let definition = Definition { json: "{}".into(), per_turn: true };
    rig.store.open_activation(other.sid, "agent".into(), "/w".into(), Some(definition)).unwrap();
    let stop = StopNote { reason: StopReason::Shutdown, keep: true, ..note() };
    for round in 0..3 {
        rig.store.set_admission(Admission::Stopping);
        rig.store.mark_running(stop).unwrap();
        if round == 1 {
            // A later request is to end them after all, and one after that is not.
            for keep in [false, true] {
                rig.store.refresh_marks(MarkReason::ShutdownTimeout, keep).unwrap();
            }
        }
        // One that the stop does not leave alone is closed, whatever its rows say.
        let spare = Some((vec![a.sid], machine()));
        let closed = rig.store.close_activations(stop.reason, 3, spare).unwrap();
        assert_eq!(closed, i64::from(round == 0), "{round}");
        rig.store.close_boot(true, Value::Null, 100).unwrap();
        rig.store = open(&rig.path, &rig.now);
        let recovered = boot(&rig, round);
        assert_eq!((recovered.deaths, recovered.activations), (0, 0), "{round}");
        assert_eq!(recovered.pending.iter().map(|p| p.sid).collect::<Vec<_>>(), [a.sid], "{round}");
    }
    rig.store.attach_activation(a.sid, epoch, false).unwrap();
    rig.store = open(&rig.path, &rig.now);
    assert_eq!(boot(&rig, 9).pending.len(), 1);
    assert_eq!(rig.number("SELECT count(*) FROM meta WHERE name LIKE 'keeps %'"), 0, "what is over is forgotten");
    // It was not attached to, so its activation is an earlier boot's.
    rig.store.mark_running(stop).unwrap();
    rig.store.refresh_marks(MarkReason::ShutdownTimeout, false).unwrap();
    rig.store = open(&rig.path, &rig.now);
    assert_eq!(boot(&rig, 10).pending, [], "a stop that ends them after all, and dies in that");
    assert_eq!(rig.mark(a.sid), "shutdown_timeout");
}
