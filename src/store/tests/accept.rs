//! Accepting: ids, limits, placement, policies.

use super::*;
use crate::config::Busy;

fn with_id(rig: &Rig, text: &str, id: &str) -> Accept {
    Accept { client_id: Some(id.into()), ..rig.accept(KEY, text) }
}

#[test]
fn a_first_message_makes_a_session_and_a_turn_that_waits() {
    let rig = Rig::new();
    let a = rig.say(KEY, "hello");
    assert!(!a.duplicate && !a.deferred && !a.over && a.queued == 0 && a.notice.is_none() && a.retired.is_none());
    assert_eq!(rig.state(&a.turn_id), "queued");
    assert_eq!(rig.number("SELECT count(*) FROM sessions"), 1);
    assert!(rig.events(KEY, 0).is_empty(), "its session_start comes with its first activation");
    let wanted = rig.store.wanted(0, 10, None).unwrap();
    assert_eq!((wanted.len(), wanted[0].sid, wanted[0].queued), (1, a.sid, true));
}

#[test]
fn the_same_id_does_nothing_the_second_time_and_not_with_another_text() {
    let rig = Rig::new();
    let first = rig.store.accept_message(with_id(&rig, "hello", "x")).unwrap();
    let second = rig.store.accept_message(with_id(&rig, "hello", "x")).unwrap();
    assert!(second.duplicate);
    assert_eq!(
        (&second.turn_id, &second.message_id, &second.session_id),
        (&first.turn_id, &first.message_id, &first.session_id)
    );
    assert_eq!(refused(rig.store.accept_message(with_id(&rig, "other", "x"))), Refusal::IdReused);
    assert_eq!(refused(rig.store.find_duplicate(KEY, "x", "other")), Refusal::IdReused);
    assert_eq!(rig.store.find_duplicate(KEY, "y", "hello").unwrap(), None);
    assert_eq!(rig.store.find_duplicate("local:b", "x", "hello").unwrap(), None, "an id is unique within its key");
    assert_eq!(rig.number("SELECT count(*) FROM messages"), 1);

    // What counts is what was sent, not what a hook made of it.
    let rewritten = Accept { text: "rewritten".into(), ..with_id(&rig, "sent", "r") };
    rig.store.accept_message(rewritten).unwrap();
    assert!(rig.store.find_duplicate(KEY, "r", "sent").unwrap().is_some());
    assert_eq!(refused(rig.store.find_duplicate(KEY, "r", "rewritten")), Refusal::IdReused);
}

#[test]
fn an_id_is_known_over_resets_limits_stops_and_its_own_end() {
    let mut rig = Rig::new();
    let first = rig.store.accept_message(with_id(&rig, "hello", "x")).unwrap();
    let full = Limits { queue_limit: 1, queue_total: 1, ..LIMITS };
    let again = |rig: &Rig| rig.store.accept_message(Accept { limits: full, ..with_id(rig, "hello", "x") }).unwrap();
    assert!(again(&rig).duplicate, "before any limit");
    rig.store.set_admission(Admission::Stopping);
    let in_stop = again(&rig);
    assert!(in_stop.duplicate && in_stop.deferred, "also in a stop");
    rig.store.set_admission(Admission::Open);
    let epoch = rig.open(first.sid);
    let b = rig.begin(first.sid, epoch);
    assert!(!again(&rig).over && !again(&rig).deferred);
    rig.crash();
    assert!(again(&rig).over, "interrupted");
    let epoch = rig.open(first.sid);
    let next = rig.store.begin_turn(Begin { auto_continue: true, ..rig.next_turn(first.sid, epoch) }).unwrap().unwrap();
    assert_eq!(again(&rig).continued_by.as_ref(), Some(&next.turn_id));
    rig.finish(next.turn, Outcome::Completed);
    assert_eq!(again(&rig).turn_id, b.turn_id);
    rig.store.reset(key(), "agent".into(), ACTOR).unwrap();
    assert!(again(&rig).duplicate, "over a reset");
}

#[test]
fn a_duplicate_says_how_many_wait_before_it() {
    let rig = Rig::new();
    for n in 0..3 {
        let a = rig.store.accept_message(with_id(&rig, "m", &n.to_string())).unwrap();
        assert_eq!(a.queued, n);
    }
    assert_eq!(rig.store.accept_message(with_id(&rig, "m", "1")).unwrap().queued, 1);
}

#[test]
fn limits_refuse_and_leave_nothing_behind() {
    let rig = Rig::new();
    let try_with = |key: &str, queue_limit, queue_total| {
        rig.store
            .accept_message(Accept { limits: Limits { queue_limit, queue_total, ..LIMITS }, ..rig.accept(key, "m") })
    };
    assert_eq!(refused(try_with(KEY, 0, 9)), Refusal::QueueFull);
    assert_eq!(refused(try_with(KEY, 9, 0)), Refusal::Overloaded);
    assert_eq!(rig.number("SELECT count(*) FROM sessions"), 0, "a refused message makes no session");
    try_with(KEY, 2, 3).unwrap();
    try_with(KEY, 2, 3).unwrap();
    assert_eq!(refused(try_with(KEY, 2, 3)), Refusal::QueueFull);
    try_with("local:b", 2, 3).unwrap();
    assert_eq!(refused(try_with("local:c", 2, 3)), Refusal::Overloaded);
    // A turn that runs waits no more.
    let sid = rig.number("SELECT min(sid) FROM sessions");
    let epoch = rig.open(sid);
    rig.begin(sid, epoch);
    try_with(KEY, 2, 3).unwrap();
}

#[test]
fn a_queue_that_moves_counts_against_the_limit_of_its_new_session() {
    let mut rig = Rig::new();
    rig.running(KEY, "cut off");
    rig.crash();
    for _ in 0..2 {
        rig.say(KEY, "waits");
    }
    rig.pass(HOUR);
    let limits = Limits { queue_limit: 2, ..LIMITS };
    let late = Accept { limits, ..rig.accept(KEY, "one too many") };
    assert_eq!(refused(rig.store.accept_message(late)), Refusal::QueueFull);
}

#[test]
fn placement_by_policy() {
    for (busy, joined, interrupts) in
        [(Busy::Queue, false, false), (Busy::Collect, true, false), (Busy::Interrupt, false, true)]
    {
        let rig = Rig::new();
        let say = |text: &str| {
            let limits = Limits { busy, ..LIMITS };
            rig.store.accept_message(Accept { limits, ..rig.accept(KEY, text) }).unwrap()
        };
        let (first, _) = rig.running(KEY, "runs");
        let second = say("waits");
        let third = say("waits too");
        assert_ne!(first.turn_id, second.turn_id, "{busy}: never into a turn that runs");
        assert_eq!(second.turn_id == third.turn_id, joined, "{busy}");
        assert_eq!((second.interrupt.is_some(), third.interrupt.is_some()), (interrupts, interrupts), "{busy}");
        assert_eq!((second.queued, third.queued), (0, 1), "{busy}");
        let cancel = rig.text(&format!("SELECT cancel FROM turns WHERE id='{}'", first.turn_id));
        assert_eq!(cancel, if interrupts { "interrupt" } else { "" }, "{busy}");
        assert_eq!(rig.state(&second.turn_id), "queued", "{busy}: what was queued stays");
    }
}

#[test]
fn collected_messages_are_one_prompt_and_each_its_own_entry() {
    let rig = Rig::new();
    let limits = Limits { busy: Busy::Collect, ..LIMITS };
    let one = rig.store.accept_message(Accept { limits, ..rig.accept(KEY, "one") }).unwrap();
    rig.store.accept_message(Accept { limits, ..rig.accept(KEY, "two") }).unwrap();
    let epoch = rig.open(one.sid);
    assert_eq!(rig.begin(one.sid, epoch).prompt, "one\n\ntwo");
    assert_eq!(rig.transcript(&one.session_id), ["user: one", "user: two"]);
}

#[test]
fn a_session_by_its_id_answers_or_nobody_does() {
    let mut rig = Rig::new();
    let to = |rig: &Rig, id: &str| {
        rig.store.accept_message(Accept { session_id: Some(id.into()), ..rig.accept(KEY, "m") }).map(|a| a.session_id)
    };
    let (a, _) = rig.running(KEY, "m");
    assert_eq!(to(&rig, &a.session_id).unwrap(), a.session_id);
    rig.crash();
    assert_eq!(to(&rig, &a.session_id).unwrap(), a.session_id, "marked and fresh");
    rig.pass(HOUR);
    assert_eq!(refused(to(&rig, &a.session_id)), Refusal::NotCurrent, "the mark expired: a new one would answer");
    assert_eq!(rig.status(a.sid), "open", "and nothing was changed");
    rig.store.suspend(key(), "agent".into(), ACTOR).unwrap();
    assert_eq!(refused(to(&rig, &a.session_id)), Refusal::NotCurrent);
    rig.store.delete(Target::Id(a.session_id.clone()), false, ACTOR).unwrap();
    assert_eq!(refused(to(&rig, &a.session_id)), Refusal::Ended);
}

#[test]
fn policies_give_a_new_session_and_tell_the_sender() {
    let day = Policy { daily_boundary: Some(T0 + HOUR), ..POLICY };
    let idle = Policy { idle_reset: Some(Duration::from_secs(3600)), ..POLICY };
    for (policy, wait, reason) in
        [(idle, HOUR, "idle"), (day, 2 * HOUR, "daily"), (idle, HOUR - 1, ""), (POLICY, 99 * HOUR, "")]
    {
        let rig = Rig::new();
        let (a, b) = rig.running(KEY, "m");
        rig.finish(b.turn, Outcome::Completed);
        rig.store.close_activation(a.sid, b.turn.epoch, crate::model::event::EndReason::Parked, Actor::Policy).unwrap();
        rig.pass(wait);
        let seen = rig.newest();
        let limits = Limits { policy, ..LIMITS };
        let next = rig.store.accept_message(Accept { limits, ..rig.accept(KEY, "n") }).unwrap();
        if reason.is_empty() {
            assert_eq!((next.sid, next.notice, next.retired), (a.sid, None, None));
            continue;
        }
        assert_eq!(next.retired, Some(a.sid), "{reason}");
        let code = next.notice.clone().unwrap().0;
        assert_eq!(rig.events(KEY, seen), [format!("session_closed:{reason}"), format!("notice:{code}")]);
        let (old, new) = (
            rig.store.session(&Target::Id(a.session_id.clone())).unwrap().json,
            rig.store.session(&key()).unwrap().json,
        );
        assert_eq!((old["state"].as_str(), old["end_reason"].as_str()), (Some("ended"), Some(reason)));
        assert_eq!((old["next_id"].as_str(), new["previous_id"].as_str()), (new["id"].as_str(), old["id"].as_str()));
        let epoch = rig.open(next.sid);
        assert_eq!(epoch, 1);
        assert_eq!(rig.events(KEY, seen).last().unwrap(), &format!("session_start:{reason}"));
    }
}

#[test]
fn an_expired_mark_ends_the_session_and_what_waits_moves_in_order() {
    let mut rig = Rig::new();
    let (a, _) = rig.running(KEY, "cut off");
    rig.crash();
    let (w1, w2) = (rig.say(KEY, "first"), rig.say(KEY, "second"));
    assert_eq!((w1.sid, w2.sid), (a.sid, a.sid));
    rig.pass(HOUR);
    let seen = rig.newest();
    let collect = Limits { busy: Busy::Collect, ..LIMITS };
    let new = rig.store.accept_message(Accept { limits: collect, ..rig.accept(KEY, "third") }).unwrap();
    assert_eq!((new.retired, new.queued), (Some(a.sid), 2));
    assert_eq!(new.turn_id, w2.turn_id, "collect: it joins what waits, moved or not");
    assert_eq!(
        rig.events(KEY, seen),
        ["notice:moved", "notice:moved", "session_closed:expired", "notice:session_expired"]
    );
    let epoch = rig.open(new.sid);
    let b = rig.begin(new.sid, epoch);
    assert_eq!((b.turn_id, b.prompt.as_str(), b.continues), (w1.turn_id, "first", None));
    rig.finish(b.turn, Outcome::Completed);
    assert_eq!(rig.begin(new.sid, epoch).prompt, "second\n\nthird");
}

#[test]
fn beside_a_suspended_session_a_new_one_answers_and_the_sender_is_told() {
    let rig = Rig::new();
    let a = rig.say(KEY, "m");
    rig.open(a.sid);
    rig.store.cancel(key(), true).unwrap();
    rig.store.suspend(key(), "agent".into(), Actor::Operator).unwrap();
    let b = rig.say(KEY, "n");
    assert_ne!(a.sid, b.sid);
    assert_eq!((b.notice.unwrap().0.as_str(), b.retired), ("session_suspended", None));
    assert_eq!(rig.say(KEY, "o").notice, None, "told once");
    rig.open(b.sid);
    assert_eq!(rig.events(KEY, 0).last().unwrap(), "session_start:suspended");
    assert_eq!(rig.status(a.sid), "suspended");
}

#[test]
fn in_a_stop_messages_are_kept_for_the_next_boot() {
    let mut rig = Rig::new();
    rig.store.set_admission(Admission::Stopping);
    let a = rig.say(KEY, "m");
    assert!(a.deferred);
    assert_eq!(refused(rig.store.open_activation(a.sid, "agent".into(), "/w".into(), None)), Refusal::Closed);
    rig.restart();
    let epoch = rig.open(a.sid);
    assert_eq!(rig.begin(a.sid, epoch).turn_id, a.turn_id);
    let rig = Rig::new();
    rig.store.set_admission(Admission::Held);
    assert!(!rig.say(KEY, "m").deferred, "a hold is no stop");
}

#[test]
fn a_message_for_a_worker_that_is_ready_begins_its_turn_at_once() {
    let rig = Rig::new();
    let (a, first) = rig.running(KEY, "one");
    rig.finish(first.turn, Outcome::Completed);
    let seen = rig.newest();
    let (two, begun) = rig.store.accept_and_begin(rig.accept(KEY, "two"), (a.sid, first.turn.epoch)).unwrap();
    let begun = begun.unwrap();
    assert_eq!((two.sid, two.queued, two.deferred), (a.sid, 0, false));
    assert_eq!((&begun.turn_id, begun.prompt.as_str(), begun.first, begun.turns), (&two.turn_id, "two", false, 1));
    assert_eq!(rig.events(KEY, seen), ["turn_start"]);
    assert_eq!(rig.state(&two.turn_id), "running");
    assert_eq!(rig.number("SELECT queued FROM sessions") + rig.store.counts().unwrap().queued, 0);
    // A worker that never heard of it is given the same turn.
    let again = rig.begin(a.sid, first.turn.epoch);
    assert_eq!((again.turn, again.prompt.as_str(), again.turns), (begun.turn, "two", 1));
    // While it runs, the next one waits, whoever is said to be ready.
    let (three, none) = rig.store.accept_and_begin(rig.accept(KEY, "three"), (a.sid, first.turn.epoch)).unwrap();
    assert_eq!((none, rig.state(&three.turn_id).as_str()), (None, "queued"));
    assert!(rig.finish(begun.turn, Outcome::Completed).more);
    assert_eq!(rig.transcript(&a.session_id), ["user: one", "user: two"]);
    let third = rig.begin(a.sid, first.turn.epoch);
    assert_eq!((third.prompt.as_str(), third.turns), ("three", 2));
    assert_eq!(rig.number("SELECT messages*10+turns FROM sessions"), 33);
}

#[test]
fn a_message_waits_where_its_turn_cannot_begin_at_once() {
    let waits = |prepare: &dyn Fn(&Rig, i64, i64), ready: (i64, i64)| {
        let rig = Rig::new();
        let (a, b) = rig.running(KEY, "one");
        rig.finish(b.turn, Outcome::Completed);
        prepare(&rig, a.sid, b.turn.epoch);
        let ready = (a.sid + ready.0, b.turn.epoch + ready.1);
        let (two, begun) = rig.store.accept_and_begin(rig.accept(KEY, "two"), ready).unwrap();
        begun.is_none() && rig.state(&two.turn_id) == "queued"
    };
    let set = |what: &'static str| move |rig: &Rig, _: i64, _: i64| rig.exec(&format!("UPDATE sessions SET {what}"));
    assert!(!waits(&|_, _, _| (), (0, 0)));
    assert!(waits(&|_, _, _| (), (1, 0)), "another session's worker");
    assert!(waits(&|_, _, _| (), (0, 1)), "another activation");
    assert!(waits(&|rig, _, _| rig.store.set_admission(Admission::Held), (0, 0)), "held");
    assert!(waits(&|rig, _, _| rig.store.set_admission(Admission::Stopping), (0, 0)), "stopping");
    assert!(waits(&set("mark_reason='crash', marked_at=1800000000000"), (0, 0)), "marked");
    assert!(waits(&set("unclean=1"), (0, 0)), "watched");
    assert!(waits(&set("cut_turn=1"), (0, 0)), "with something to take up");
    let parked = |rig: &Rig, sid, epoch| {
        assert!(rig.store.close_activation(sid, epoch, crate::model::event::EndReason::Parked, Actor::Policy).unwrap());
    };
    assert!(waits(&parked, (0, 0)), "parked meanwhile");
    assert!(waits(&|rig, _, _| drop(rig.say(KEY, "before it")), (0, 0)), "behind another");
}

#[test]
fn a_duplicate_or_refused_message_begins_nothing() {
    let rig = Rig::new();
    let (a, b) = rig.running(KEY, "one");
    rig.finish(b.turn, Outcome::Completed);
    let ready = (a.sid, b.turn.epoch);
    rig.store.accept_message(with_id(&rig, "two", "x")).unwrap();
    let (known, none) = rig.store.accept_and_begin(with_id(&rig, "two", "x"), ready).unwrap();
    assert!(known.duplicate && none.is_none());
    assert_eq!(refused(rig.store.accept_and_begin(with_id(&rig, "other", "x"), ready)), Refusal::IdReused);
}
