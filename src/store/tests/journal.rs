//! The hook journal.

use super::*;
use crate::model::event::HookEvent;

fn settle(rig: &Rig, did: i64, settled: Settled, counted: bool) {
    let (send, receive) = crossbeam_channel::bounded(1);
    rig.store.settle_delivery(did, settled, counted, move |kept| send.send(kept).unwrap());
    receive.recv().unwrap().unwrap();
}

fn attempt(rig: &Rig, did: i64) {
    let (send, receive) = crossbeam_channel::bounded(1);
    let next = owed(rig).iter().find(|o| o.did == did).map_or(0, Owed::next_attempt);
    rig.store.note_attempt(did, next, move |kept| send.send(kept).unwrap());
    receive.recv().unwrap().unwrap();
}

fn owed(rig: &Rig) -> Vec<Owed> {
    rig.store.pending_deliveries(0, 100).unwrap()
}

/// One session_start that is owed.
fn one() -> (Rig, Owed) {
    let rig = Rig::new();
    let a = rig.say(KEY, "m");
    rig.open(a.sid);
    let owed = owed(&rig).remove(0);
    (rig, owed)
}

#[test]
fn an_event_is_owed_to_whoever_was_registered_at_that_moment() {
    let rig = Rig::new();
    let handlers = |names: &'static [&'static str]| {
        rig.store.set_owed(Arc::new(move |event| {
            let id = |n: &&str| HandlerId { event, script: "s.lua".into(), name: (*n).to_owned() };
            names.iter().map(id).collect()
        }));
    };
    handlers(&[]);
    let a = rig.say(KEY, "m");
    rig.open(a.sid);
    assert_eq!((owed(&rig).len(), rig.number("SELECT count(*) FROM journal")), (0, 0), "with none nothing is written");
    handlers(&["x", "y"]);
    rig.store.reset(key(), "agent".into(), ACTOR).unwrap();
    handlers(&["z"]);
    let told: Vec<_> = owed(&rig).iter().map(|o| format!("{}/{}", o.handler.event, o.handler.name)).collect();
    assert_eq!(told, ["session_end/x", "session_end/y", "session_closed/x", "session_closed/y"]);
    let ids: Vec<_> = owed(&rig).into_iter().map(|o| o.event_id).collect();
    assert!(ids[0] == ids[1] && ids[1] != ids[2], "one event, one id, whoever it is told");
    assert_eq!(rig.store.pending_deliveries(owed(&rig)[1].did, 100).unwrap().len(), 2, "after a row");
    assert_eq!(rig.store.pending_deliveries(0, 3).unwrap().len(), 3);
}

#[test]
fn a_commit_tells_how_many_became_due() {
    let rig = Rig::new();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = seen.clone();
    rig.store.set_observer(Arc::new(move |c| sink.lock().unwrap().push((c.events.len(), c.deliveries))));
    let a = rig.say(KEY, "m");
    assert!(seen.lock().unwrap().is_empty(), "nothing to tell");
    rig.open(a.sid);
    rig.store.reset(key(), "agent".into(), ACTOR).unwrap();
    assert_eq!(*seen.lock().unwrap(), [(1, 1), (3, 2)]);
}

#[test]
fn a_handler_sees_the_transcript_as_it_stood() {
    let rig = Rig::new();
    let (a, b) = rig.running(KEY, "m");
    let upto = rig.number("SELECT max(seq) FROM entries");
    rig.finish(b.turn, Outcome::Completed);
    rig.store.close_activation(a.sid, 1, crate::model::event::EndReason::Parked, Actor::Policy).unwrap();
    rig.running(KEY, "later");
    let all = owed(&rig);
    assert_eq!((all[0].upto, all[1].upto), (0, upto));
    let seen = rig.store.entries(&a.session_id, 0, all[1].upto, 10, 1000).unwrap().unwrap();
    assert_eq!(rig.store.entries(&a.session_id, 0, all[1].upto, 10, 0).unwrap(), None, "more than no bytes");
    assert_eq!(seen.iter().map(|e| e.text.as_str()).collect::<Vec<_>>(), ["m"]);
}

#[test]
fn what_was_settled_is_never_owed_again() {
    for (settled, listed) in [(Settled::Delivered, 0), (Settled::Orphaned, 1), (Settled::SetAside("why".into()), 1)] {
        let (rig, o) = one();
        settle(&rig, o.did, settled.clone(), false);
        assert!(owed(&rig).is_empty(), "{settled:?}");
        assert_eq!(rig.store.failed_events(10).unwrap().len(), listed, "{settled:?}");
        // A second word about it changes nothing.
        settle(&rig, o.did, Settled::Retry("late".into(), 0), false);
        assert!(owed(&rig).is_empty(), "{settled:?}");
        let failed = i64::from(matches!(settled, Settled::SetAside(_)));
        assert_eq!(rig.store.journal_counts().unwrap(), JournalCounts { pending: 0, failed });
    }
}

#[test]
fn attempts_are_counted_once_each() {
    let (mut rig, o) = one();
    assert_eq!((o.attempts, o.earlier_boot), (0, false));
    settle(&rig, o.did, Settled::Retry("why".into(), T0 + 5000), false);
    let again = owed(&rig).remove(0);
    assert_eq!((again.attempts, again.next_at, again.event_id.as_str()), (1, T0 + 5000, o.event_id.as_str()));
    rig.crash();
    let after = owed(&rig).remove(0);
    assert!(after.earlier_boot);
    attempt(&rig, o.did);
    assert_eq!(owed(&rig)[0].attempts, 2, "committed before the call");
    settle(&rig, o.did, Settled::Retry("why".into(), 0), true);
    assert_eq!(owed(&rig)[0].attempts, 2);
    // The boot that journalled it may have called and died before it could say so.
    let (mut rig, o) = one();
    rig.crash();
    attempt(&rig, o.did);
    assert_eq!(owed(&rig)[0].attempts, 2);
}

#[test]
fn what_was_only_queued_for_its_handler_is_not_redelivered() {
    let mut rig = Rig::new();
    rig.store.set_owed(Arc::new(|event| {
        let id = |n: &str| HandlerId { event, script: "s.lua".into(), name: n.to_owned() };
        vec![id("a"), id("b")]
    }));
    let a = rig.say(KEY, "m");
    rig.open(a.sid);
    let due = owed(&rig);
    let (seen, queued) = (due[0].did, due[1].did);
    let note = |rig: &Rig, called: Vec<i64>| {
        let (send, receive) = std::sync::mpsc::channel();
        rig.store.note_uncalled(called, move |kept| send.send(kept).unwrap());
        receive.recv().unwrap().unwrap();
    };
    let of =
        |rig: &Rig, did: i64| owed(rig).into_iter().find(|o| o.did == did).map(|o| (o.uncalled, o.attempts)).unwrap();
    note(&rig, vec![seen]);
    rig.crash();
    assert_eq!([of(&rig, seen), of(&rig, queued)], [(false, 0), (true, 0)]);
    // A stop comes before the call once more.
    for (did, left) in [(seen, (false, 0)), (queued, (true, 0))] {
        let before = owed(&rig).into_iter().find(|o| o.did == did).unwrap();
        attempt(&rig, did);
        let (send, receive) = std::sync::mpsc::channel();
        rig.store.take_back_attempt(did, before.attempts, before.uncalled, move |kept| send.send(kept).unwrap());
        receive.recv().unwrap().unwrap();
        assert_eq!(of(&rig, did), left);
    }
    note(&rig, vec![]);
    rig.crash();
    attempt(&rig, seen);
    attempt(&rig, queued);
    assert_eq!([of(&rig, seen), of(&rig, queued)], [(false, 2), (false, 1)], "its first call is the first");
    rig.crash();
    attempt(&rig, queued);
    assert_eq!(of(&rig, queued), (false, 2), "a death in it is an attempt");
}

#[test]
fn what_was_set_aside_is_retried_or_given_up() {
    let (rig, o) = one();
    let id = || Some(o.event_id.clone());
    assert_eq!(refused(rig.store.retry_failed(id())), Refusal::NotFound);
    for _ in 0..4 {
        settle(&rig, o.did, Settled::Retry("why".into(), T0 + HOUR), false);
    }
    settle(&rig, o.did, Settled::SetAside("last".into()), false);
    let listed = &rig.store.failed_events(10).unwrap()[0].0;
    assert_eq!(
        (listed["event_id"].as_str(), listed["error"].as_str(), listed["attempts"].as_i64()),
        (Some(o.event_id.as_str()), Some("last"), Some(5))
    );
    assert_eq!(rig.store.retry_failed(id()).unwrap(), 1);
    let again = owed(&rig).remove(0);
    assert_eq!((again.attempts, again.next_at), (5, 0), "at once, and its next call is a higher attempt");
    settle(&rig, o.did, Settled::SetAside("again".into()), false);
    assert_eq!(rig.store.retry_failed(None).unwrap(), 1);
    settle(&rig, o.did, Settled::SetAside("again".into()), false);
    assert_eq!(rig.store.discard_failed(o.event_id.clone()).unwrap(), 1);
    assert_eq!(refused(rig.store.discard_failed(o.event_id.clone())), Refusal::NotFound);
    assert_eq!(refused(rig.store.retry_failed(id())), Refusal::NotFound);
    assert_eq!(rig.store.retry_failed(None).unwrap(), 0);
    assert!(rig.store.failed_events(10).unwrap().is_empty());
}

#[test]
fn a_refused_transaction_journals_nothing() {
    let rig = Rig::new();
    let a = rig.say(KEY, "m");
    rig.open(a.sid);
    let before = (rig.newest(), owed(&rig).len());
    assert!(rig.store.open_activation(a.sid, "agent".into(), "/w".into(), None).is_err());
    let stray = rig.store.write("stray", move |tx| {
        let s = tx.session(a.sid)?.unwrap();
        tx.record(
            crate::model::event::EventKind::SessionEnd,
            HookEvent::SessionEnd,
            &s,
            serde_json::json!({ "reason": "x" }),
        )?;
        Err::<(), _>(Refusal::Stale.into())
    });
    assert_eq!(refused(stray), Refusal::Stale);
    assert_eq!((rig.newest(), owed(&rig).len()), before);
}
