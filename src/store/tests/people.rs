//! What people do: reset, delete, suspend, resume, cancel. Each end is told once, to the stream and to the journal.

use super::*;
use crate::model::event::EndReason;

/// The journal, as `event:reason`, in order.
fn journal(rig: &Rig) -> Vec<String> {
    rig.store
        .pending_deliveries(0, 1000)
        .unwrap()
        .into_iter()
        .map(|o| format!("{}:{}", o.handler.event, o.fields["reason"].as_str().unwrap()))
        .collect()
}

/// What the stream said of sessions.
fn lives(rig: &Rig, after: i64) -> Vec<String> {
    rig.events(KEY, after).into_iter().filter(|e| e.starts_with("session_")).collect()
}

/// A running turn, one that waits, and where the stream stands.
fn busy(rig: &Rig) -> (Accepted, Begun, Accepted, i64) {
    let (a, b) = rig.running(KEY, "runs");
    let waits = rig.say(KEY, "waits");
    (a, b, waits, rig.newest())
}

#[test]
fn reset_cancels_all_and_makes_the_new_row_at_once() {
    let rig = Rig::new();
    let (a, b, waits, seen) = busy(&rig);
    let acted = rig.store.reset(key(), "other".into(), ACTOR).unwrap();
    assert_eq!((acted.retired.as_slice(), acted.wake.as_slice()), ([a.sid].as_slice(), [].as_slice()));
    assert_eq!(
        rig.events(KEY, seen),
        ["turn_end:cancelled/reset", "turn_end:cancelled/reset", "session_end:reset", "session_closed:reset"]
    );
    assert_eq!([rig.state(&b.turn_id), rig.state(&waits.turn_id)], ["cancelled", "cancelled"]);
    assert_eq!(journal(&rig), ["session_start:new", "session_end:reset", "session_closed:reset"]);
    let (old, new) =
        (rig.store.session(&Target::Id(a.session_id)).unwrap().json, rig.store.session(&key()).unwrap().json);
    assert_eq!((old["state"].as_str(), new["state"].as_str()), (Some("ended"), Some("parked")));
    assert_eq!((old["next_id"].as_str(), new["previous_id"].as_str()), (new["id"].as_str(), old["id"].as_str()));
    assert_eq!(new["id"].as_str(), Some(acted.session_id.as_str()));
    let n = rig.say(KEY, "n");
    assert_eq!(n.sid, acted.sid);
    rig.open(n.sid);
    assert_eq!(lives(&rig, seen).last().unwrap(), "session_start:reset");
}

#[test]
fn a_parked_session_is_closed_without_an_end() {
    let rig = Rig::new();
    rig.say(KEY, "m");
    rig.store.reset(key(), "agent".into(), ACTOR).unwrap();
    assert_eq!(journal(&rig), ["session_closed:reset"]);
    assert_eq!(rig.events(KEY, 0), ["turn_end:cancelled/reset", "session_closed:reset"]);
}

#[test]
fn delete_hides_at_once_and_ends_once() {
    let rig = Rig::new();
    let (a, _, _, seen) = busy(&rig);
    let acted = rig.store.delete(key(), false, ACTOR).unwrap();
    assert_eq!(acted.retired, [a.sid]);
    assert_eq!(rig.events(KEY, seen).len(), 4);
    assert_eq!(lives(&rig, seen), ["session_end:deleted", "session_closed:deleted"]);
    assert_eq!(refused(rig.store.session(&Target::Id(a.session_id.clone()))), Refusal::SessionNotFound);
    assert_eq!(refused(rig.store.delete(Target::Id(a.session_id), false, ACTOR)), Refusal::SessionNotFound);
    let b = rig.say(KEY, "n");
    assert_ne!(a.sid, b.sid);
    assert_eq!(b.notice, None, "nobody is told of what was deleted");
}

#[test]
fn delete_all_takes_every_session_of_the_key_and_no_other() {
    let rig = Rig::new();
    rig.say(KEY, "1");
    rig.store.reset(key(), "agent".into(), ACTOR).unwrap();
    let suspended = rig.say(KEY, "2");
    rig.store.suspend(key(), "agent".into(), ACTOR).unwrap();
    let b = rig.say("local:b", "b");
    let seen = rig.newest();
    rig.store.delete(key(), true, ACTOR).unwrap();
    assert_eq!(rig.number("SELECT count(*) FROM sessions WHERE hidden=1"), 3);
    assert_eq!(rig.number("SELECT count(*) FROM sessions WHERE hidden=0"), 1);
    assert_eq!(rig.status(b.sid), "open");
    assert_eq!(
        lives(&rig, seen),
        ["session_closed:deleted", "session_closed:deleted"],
        "the reset one is over already"
    );
    assert_eq!(rig.status(suspended.sid), "ended");
    assert_eq!(refused(rig.store.delete(key(), true, ACTOR)), Refusal::SessionNotFound);
}

#[test]
fn suspend_cancels_the_turn_moves_the_queue_and_keeps_an_older_mark_only() {
    for older in [false, true] {
        let mut rig = Rig::new();
        if older {
            rig.running(KEY, "cut off");
            rig.crash();
            let sid = rig.number("SELECT sid FROM sessions");
            rig.say(KEY, "runs");
            let epoch = rig.open(sid);
            rig.begin(sid, epoch);
        } else {
            rig.running(KEY, "runs");
        }
        let s = rig.store.session(&key()).unwrap();
        let (one, two) = (rig.say(KEY, "one"), rig.say(KEY, "two"));
        rig.store.mark_running(note()).unwrap();
        let seen = rig.newest();
        let acted = rig.store.suspend(key(), "agent".into(), Actor::Operator).unwrap();
        assert_eq!(acted.retired, [s.sid]);
        assert_eq!(
            rig.events(KEY, seen),
            [
                "turn_end:cancelled/suspended",
                "session_end:suspended",
                "notice:session_suspended",
                "notice:moved",
                "notice:moved"
            ]
        );
        assert_eq!(rig.mark(s.sid), if older { "crash" } else { "" });
        let end = rig.store.pending_deliveries(0, 100).unwrap().pop().unwrap();
        assert_eq!(end.fields["resume_pending"]["reason"].as_str(), older.then_some("crash"), "as it is after");
        let now = rig.store.session(&key()).unwrap();
        assert_eq!((rig.status(s.sid).as_str(), acted.wake.as_slice()), ("suspended", [now.sid].as_slice()));
        let epoch = rig.open(now.sid);
        for waits in [one, two] {
            let b = rig.begin(now.sid, epoch);
            assert_eq!(b.turn_id, waits.turn_id);
            rig.finish(b.turn, Outcome::Completed);
        }
        assert_eq!(
            refused(
                rig.store
                    .suspend(Target::Id(now.id.clone()), "agent".into(), ACTOR)
                    .and_then(|_| { rig.store.reset(Target::Id(s.id.clone()), "agent".into(), ACTOR) })
            ),
            Refusal::NotCurrent
        );
    }
}

#[test]
fn suspending_twice_says_it_once() {
    let rig = Rig::new();
    let a = rig.say(KEY, "m");
    rig.open(a.sid);
    let suspend = || rig.store.suspend(Target::Id(a.session_id.clone()), "agent".into(), ACTOR).unwrap();
    suspend();
    let seen = rig.newest();
    assert_eq!(suspend(), Acted { session_id: a.session_id.clone(), sid: a.sid, ..Acted::default() });
    assert_eq!(rig.newest(), seen);
}

#[test]
fn resume_brings_a_suspended_session_back_and_the_newer_one_ends() {
    let mut rig = Rig::new();
    let (old, cut) = rig.running(KEY, "cut off");
    rig.crash();
    rig.exec("UPDATE sessions SET unclean=2");
    rig.store.suspend(key(), "agent".into(), ACTOR).unwrap();
    let (new, runs) = rig.running(KEY, "runs");
    let waits = rig.say(KEY, "waits");
    rig.pass(5 * HOUR);
    let seen = rig.newest();
    let acted = rig.store.resume(key(), Actor::Operator).unwrap();
    assert_eq!(
        (acted.sid, acted.retired.as_slice(), acted.wake.as_slice()),
        (old.sid, [new.sid].as_slice(), [old.sid].as_slice())
    );
    assert_eq!(
        rig.events(KEY, seen),
        ["notice:moved", "turn_end:cancelled/new", "session_end:new", "session_closed:new"]
    );
    assert_eq!(rig.state(&runs.turn_id), "cancelled");
    assert_eq!((rig.status(old.sid), rig.status(new.sid)), ("open".into(), "ended".into()));
    assert_eq!((rig.unclean(old.sid), rig.marked_at(old.sid)), (0, T0 + 5 * HOUR), "its mark counts as fresh");
    let epoch = rig.open(old.sid);
    assert_eq!(epoch, 2);
    let b = rig.begin(old.sid, epoch);
    assert_eq!((b.turn_id, b.continues.unwrap().turn_id), (waits.turn_id, cut.turn_id));
}

#[test]
fn resume_in_every_other_state() {
    let mut rig = Rig::new();
    let (a, _) = rig.running(KEY, "m");
    let seen = rig.newest();
    let acted = rig.store.resume(key(), ACTOR).unwrap();
    assert!(acted.wake.is_empty() && !acted.auto_continue, "of a live one: nothing");
    rig.crash();
    rig.pass(2 * HOUR);
    let acted = rig.store.resume(key(), ACTOR).unwrap();
    assert_eq!(
        (acted.wake.as_slice(), acted.auto_continue, rig.marked_at(a.sid)),
        ([a.sid].as_slice(), true, T0 + 2 * HOUR)
    );
    let epoch = rig.open(a.sid);
    let b = rig.store.begin_turn(Begin { auto_continue: true, ..rig.next_turn(a.sid, epoch) }).unwrap().unwrap();
    assert!(b.continues.is_some(), "of a parked marked one: continues now");
    rig.finish(b.turn, Outcome::Completed);
    rig.store.close_activation(a.sid, epoch, EndReason::Parked, Actor::Policy).unwrap();
    let acted = rig.store.resume(key(), ACTOR).unwrap();
    assert!(acted.wake.is_empty() && !acted.auto_continue, "of an unmarked one: nothing");
    rig.store.suspend(key(), "agent".into(), ACTOR).unwrap();
    let acted = rig.store.resume(Target::Id(a.session_id.clone()), ACTOR).unwrap();
    assert!(acted.wake.is_empty(), "with nothing that waits it is parked");
    rig.store.reset(key(), "agent".into(), ACTOR).unwrap();
    assert_eq!(refused(rig.store.resume(Target::Id(a.session_id), ACTOR)), Refusal::Ended);
    assert_eq!(refused(rig.store.resume(Target::Key("no:body".into()), ACTOR)), Refusal::SessionNotFound);
    assert!(rig.newest() > seen);
}

#[test]
fn cancel_asks_the_running_turn_or_takes_back_what_waits() {
    let rig = Rig::new();
    assert_eq!(refused(rig.store.cancel(key(), false)), Refusal::SessionNotFound);
    let (a, b, waits, seen) = busy(&rig);
    assert_eq!(rig.store.cancel(key(), false).unwrap().cancel.iter().map(|c| c.0).collect::<Vec<_>>(), [a.sid]);
    assert_eq!(
        (rig.state(&b.turn_id), rig.state(&waits.turn_id), rig.newest()),
        ("running".into(), "queued".into(), seen)
    );
    let acted = rig.store.cancel(key(), true).unwrap();
    assert!(acted.cancel.is_empty());
    assert_eq!(rig.events(KEY, seen), ["turn_end:cancelled/cancel"]);
    assert_eq!(rig.state(&waits.turn_id), "cancelled");
    rig.finish(b.turn, Outcome::Cancelled);
    let seen = rig.newest();
    for queued in [false, true] {
        assert!(rig.store.cancel(key(), queued).unwrap().cancel.is_empty(), "with nothing running it is no error");
    }
    assert_eq!(rig.newest(), seen);
}

#[test]
fn only_the_current_session_is_reset_or_suspended() {
    let rig = Rig::new();
    let a = rig.say(KEY, "m");
    let id = || Target::Id(a.session_id.clone());
    rig.store.reset(id(), "agent".into(), ACTOR).unwrap();
    assert_eq!(refused(rig.store.reset(id(), "agent".into(), ACTOR)), Refusal::Ended);
    assert_eq!(refused(rig.store.suspend(id(), "agent".into(), ACTOR)), Refusal::Ended);
    assert_eq!(refused(rig.store.reset(Target::Id("nobody".into()), "agent".into(), ACTOR)), Refusal::SessionNotFound);
}

#[test]
fn an_activation_is_opened_once_and_closed_once() {
    let rig = Rig::new();
    let a = rig.say(KEY, "m");
    let open = || rig.store.open_activation(a.sid, "agent".into(), "/w".into(), None);
    assert_eq!(open().unwrap().epoch, 1);
    assert_eq!(refused(open()), Refusal::Stale, "it is live");
    let close = |epoch| rig.store.close_activation(a.sid, epoch, EndReason::Parked, Actor::Policy).unwrap();
    assert!(!close(2) && close(1) && !close(1));
    assert_eq!(open().unwrap().epoch, 2);
    let again = rig.store.reopen_activation(a.sid).unwrap();
    assert_eq!((again.epoch, again.session.id.as_str()), (2, a.session_id.as_str()), "whose commit was in doubt");
    rig.store.note_agent(a.sid, 2, Some("theirs".into())).unwrap();
    rig.store.note_process(a.sid, 2, 42, 7).unwrap();
    close(2);
    assert_eq!(open().unwrap().session.agent_session.as_deref(), Some("theirs"));
    rig.store.reset(key(), "agent".into(), ACTOR).unwrap();
    assert_eq!(refused(open()), Refusal::Stale, "it is over");
    assert_eq!(refused(rig.store.reopen_activation(a.sid)), Refusal::Stale);
    assert_eq!(refused(rig.store.open_activation(99, "agent".into(), "/w".into(), None)), Refusal::Stale);
    assert_eq!(
        lives(&rig, 0),
        [
            "session_start:new",
            "session_end:parked",
            "session_start:message",
            "session_end:parked",
            "session_start:message",
            "session_end:reset",
            "session_closed:reset"
        ]
    );
    assert_eq!(journal(&rig), lives(&rig, 0));
}

#[test]
fn an_end_counts_its_own_turns_and_messages() {
    let rig = Rig::new();
    let (a, b) = rig.running(KEY, "1");
    rig.finish(b.turn, Outcome::Completed);
    rig.store.close_activation(a.sid, 1, EndReason::Parked, Actor::Policy).unwrap();
    rig.say(KEY, "2");
    let epoch = rig.open(a.sid);
    rig.say(KEY, "3");
    rig.begin(a.sid, epoch);
    rig.store.reset(key(), "agent".into(), ACTOR).unwrap();
    let told = rig.store.pending_deliveries(0, 100).unwrap();
    let numbers = |event: &str, n: usize| {
        let f = &told.iter().filter(|o| o.handler.event.as_str() == event).nth(n).unwrap().fields;
        (f["turns"].as_i64().unwrap(), f["messages"].as_i64().unwrap())
    };
    assert_eq!(
        (numbers("session_end", 0), numbers("session_end", 1), numbers("session_closed", 0)),
        ((1, 1), (1, 2), (2, 3))
    );
    let last = told.last().unwrap();
    assert_eq!((last.fields["epochs"].as_i64(), last.fields["actor"].as_str()), (Some(2), Some("user")));
}

#[test]
fn a_worker_that_died_fails_its_turn_and_ends_its_activation() {
    let rig = Rig::new();
    let (a, b) = rig.running(KEY, "m");
    rig.store.append(b.turn, batch(1, vec![Item::Text("so far".into())])).unwrap();
    let waits = rig.say(KEY, "next");
    rig.store.worker_died(a.sid, false).unwrap();
    // One whose commit was in doubt is sent again: what waits behind is not failed for it.
    rig.store.worker_died(a.sid, true).unwrap();
    assert_eq!(rig.state(&waits.turn_id), "queued");
    assert_eq!(rig.store.turn(&b.turn_id).unwrap().error.unwrap().0, "internal");
    assert_eq!(rig.transcript(&a.session_id), ["user: m", "agent: so far"]);
    assert_eq!(lives(&rig, 0), ["session_start:new", "session_end:crash"]);
    assert_eq!((rig.mark(a.sid).as_str(), rig.status(a.sid).as_str()), ("", "open"));
}

/// Each sort of listing looks in a place of its own; what it finds is what a look at every session finds.
#[test]
fn a_listing_finds_what_is_meant_and_nothing_else() {
    let mut rig = Rig::new();
    let mut keys = Vec::new();
    for n in 0..18 {
        // Three keys, each with sessions in a row.
        let key = format!("local:{}", n % 3);
        keys.push(key.clone());
        let target = Target::Key(key.clone());
        let (a, b) = rig.running(&key, "one");
        match n % 6 {
            0 => {}
            1 => drop(rig.finish(b.turn, Outcome::Completed)),
            2 => {
                rig.finish(b.turn, Outcome::Completed);
                rig.store.close_activation(a.sid, b.turn.epoch, EndReason::Parked, ACTOR).unwrap();
            }
            3 => drop(rig.store.suspend(target, "agent".into(), ACTOR).unwrap()),
            4 => drop(rig.finish(b.turn, Outcome::Interrupted)),
            _ => drop(rig.store.reset(target, "agent".into(), ACTOR).unwrap()),
        }
        if n % 6 != 3 && n < 15 {
            rig.store.reset(Target::Key(key), "agent".into(), ACTOR).unwrap();
        }
        if n == 8 {
            rig.crash();
        }
    }
    rig.say("local:9", "waits");
    let all = ["live", "parked", "suspended", "ended", "running", "resume_pending"];
    let list = |states: &[&str], key: Option<&str>| {
        let states = states.iter().map(|s| (*s).to_owned()).collect();
        let filter = SessionFilter { states, key: key.map(str::to_owned), limit: 1000, before: None };
        rig.store.sessions(&filter).unwrap().items
    };
    let every = list(&all, None);
    assert!(every.len() > 18, "{}", every.len());
    let mut found = 0;
    for chosen in 0..1 << all.len() {
        let states: Vec<&str> = (0..all.len()).filter(|n| chosen >> n & 1 == 1).map(|n| all[n]).collect();
        for key in [None, Some("local:0"), Some("local:1"), Some("local:8")] {
            let meant = |s: &&SessionView| {
                let is = |state: &&str| match *state {
                    "running" => s.json["turn"]["state"] == "running",
                    "resume_pending" => !s.json["resume_pending"].is_null(),
                    state => s.json["state"] == state,
                };
                let sort = if states.is_empty() { s.json["state"] != "ended" } else { states.iter().any(is) };
                sort && key.is_none_or(|k| s.key == k)
            };
            let expected: Vec<i64> = every.iter().filter(meant).map(|s| s.sid).collect();
            let got: Vec<i64> = list(&states, key).iter().map(|s| s.sid).collect();
            assert_eq!(got, expected, "{states:?} {key:?}");
            found += got.len();
        }
    }
    assert!(found > 500, "{found}");
    // Page by page it is the same.
    let page = |before| {
        let filter = SessionFilter { states: vec!["live".into()], key: None, limit: 1, before };
        rig.store.sessions(&filter).unwrap()
    };
    let (mut before, mut paged) = (None, Vec::new());
    loop {
        let page = page(before);
        paged.extend(page.items.iter().map(|s| s.sid));
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(paged, list(&["live"], None).iter().map(|s| s.sid).collect::<Vec<_>>());
}
