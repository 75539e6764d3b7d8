//! What scripts keep, and what retention removes.

use super::*;
use crate::config::Retention;
use crate::model::event::EventKind;
use crate::store::Refusal;
use serde_json::json;

const DAY: i64 = 24 * HOUR;

fn keep() -> Retention {
    let week = Some(Duration::from_secs(7 * 86_400));
    Retention { ended: None, events: week, ids: week, journal: week, reports: 100 }
}

/// Prunes until nothing is left to prune.
fn prune(rig: &Rig, keep: &Retention) -> Pruned {
    let mut all = Pruned::default();
    for _ in 0..1000 {
        let p = rig.store.prune(keep.clone()).unwrap();
        if p.total() == 0 {
            return all;
        }
        all += p;
    }
    panic!("pruning does not end");
}

#[test]
fn values_are_set_got_expired_and_compared() {
    let rig = Rig::new();
    let set = |name: &str, value, ttl: Option<u64>, only_if| {
        rig.store.kv_set(name.into(), value, ttl.map(Duration::from_secs), only_if).unwrap()
    };
    let get = |name: &str| rig.store.kv_get(name).unwrap();
    assert_eq!(get("a"), None);
    assert!(set("a", Some(json!({ "x": 1 })), None, None));
    assert_eq!(get("a"), Some(json!({ "x": 1 })));
    assert!(!set("a", Some(json!(2)), None, Some(None)), "only if there is none");
    assert!(!set("a", Some(json!(2)), None, Some(Some(json!(3)))));
    assert!(set("a", Some(json!(2)), None, Some(Some(json!({ "x": 1 })))));
    assert!(set("b", Some(json!("short")), Some(10), Some(None)));
    rig.pass(9_999);
    assert_eq!(get("b"), Some(json!("short")));
    rig.pass(1);
    assert_eq!(get("b"), None);
    assert!(set("b", Some(json!("new")), None, Some(None)), "an expired one is none");
    assert!(set("a", None, None, None));
    assert_eq!(get("a"), None);
}

#[test]
fn numbers_are_added_to_and_end_with_their_first_expiry() {
    let rig = Rig::new();
    let incr = |by, ttl: Option<u64>| rig.store.kv_incr("n".into(), by, ttl.map(Duration::from_secs)).unwrap();
    assert_eq!((incr(2, Some(60)), incr(3, Some(60)), incr(-1, None)), (2, 5, 4));
    rig.pass(59_999);
    assert_eq!(incr(1, Some(60)), 5, "the expiry is the first one's");
    rig.pass(1);
    assert_eq!(incr(1, Some(60)), 1);
    let refused = |name: &str, by| rig.store.kv_incr(name.into(), by, None).unwrap_err().refusal();
    assert_eq!(refused("n", i64::MAX), Some(Refusal::TooLarge), "it neither wraps nor stops short");
    for other in [json!("text"), json!(1.5), json!(null), json!([1])] {
        assert!(rig.store.kv_set("other".into(), Some(other.clone()), None, None).unwrap());
        assert_eq!(refused("other", 1), Some(Refusal::NoInteger), "{other}");
        assert_eq!(rig.store.kv_get("other").unwrap(), Some(other), "what is there stays");
    }
    assert_eq!(incr(0, None), 1);
}

#[test]
fn a_due_time_is_claimed_once() {
    let mut rig = Rig::new();
    let claim = |rig: &Rig, due| rig.store.timer_claim("t".into(), due).unwrap();
    assert_eq!(rig.store.timer_last("t").unwrap(), None);
    assert!(claim(&rig, 10) && !claim(&rig, 10) && !claim(&rig, 9) && claim(&rig, 20));
    rig.crash();
    assert!(!claim(&rig, 20));
    assert_eq!(rig.store.timer_last("t").unwrap(), Some(20));
    // The clock was ahead when it was written.
    rig.store.timer_restart("t".into(), 12).unwrap();
    rig.crash();
    assert!(!claim(&rig, 12) && claim(&rig, 13));
    assert_eq!(rig.store.timer_last("t").unwrap(), Some(13));
}

#[test]
fn old_events_go_in_order_and_numbers_are_never_used_again() {
    let mut rig = Rig::new();
    for n in 0..700 {
        let a = rig.say("local:many", &n.to_string());
        rig.store.fail_waiting(a.sid, "c", "t".into()).unwrap();
    }
    let newest = rig.newest();
    assert_eq!(rig.store.event_bounds().unwrap(), (700, 0));
    rig.pass(7 * DAY + 1);
    let p = rig.store.prune(keep()).unwrap();
    assert!(p.events > 0 && p.events < 700, "small steps: {}", p.events);
    prune(&rig, &keep());
    assert!(rig.store.events(None, 0, 10).unwrap().items.is_empty());
    assert_eq!(rig.store.event_bounds().unwrap(), (newest, newest));
    rig.crash();
    let a = rig.say(KEY, "m");
    rig.open(a.sid);
    assert_eq!(rig.store.events(None, 0, 10).unwrap().items[0].seq, newest + 1);
    // What a refused transaction had taken was never seen by anybody; what was committed is not given out again.
    assert!(rig.store.open_activation(a.sid, "agent".into(), "/w".into(), None).is_err());
    rig.store.reset(key(), "agent".into(), ACTOR).unwrap();
    let seqs: Vec<i64> = rig.store.events(None, 0, 10).unwrap().items.iter().map(|e| e.seq).collect();
    assert!(seqs.is_sorted() && seqs.windows(2).all(|w| w[0] < w[1]), "{seqs:?}");
}

#[test]
fn a_running_turns_text_is_kept_until_it_is_in_the_transcript() {
    let rig = Rig::new();
    let (a, b) = rig.running(KEY, "m");
    rig.store.append(b.turn, batch(1, vec![Item::Text("early ".into())])).unwrap();
    rig.pass(8 * DAY);
    prune(&rig, &keep());
    rig.store.append(b.turn, batch(2, vec![Item::Text("late".into())])).unwrap();
    rig.finish(b.turn, Outcome::Completed);
    assert_eq!(rig.transcript(&a.session_id), ["user: m", "agent: early late"]);
    rig.pass(8 * DAY);
    prune(&rig, &keep());
    assert!(rig.store.events(Some(KEY), 0, 10).unwrap().items.is_empty(), "then it goes");
    assert_eq!(rig.transcript(&a.session_id).len(), 2);
}

/// A clock that ran ahead and was set back keeps nothing of what came since from being pruned, nor what it wrote itself.
#[test]
fn what_a_clock_wrote_that_ran_ahead_keeps_nothing_from_being_pruned() {
    let rig = Rig::new();
    let sent = |key: &str, n: i64| {
        let id = Some(n.to_string());
        rig.store.accept_message(Accept { client_id: id, ..rig.accept(key, "m") }).unwrap()
    };
    let settled = || {
        let a = rig.say(KEY, "m");
        rig.open(a.sid);
        rig.store.reset(key(), "agent".into(), ACTOR).unwrap();
        for o in rig.store.pending_deliveries(0, 100).unwrap() {
            rig.store.settle_delivery(o.did, Settled::Delivered, false, |_| ());
        }
    };
    rig.pass(400 * DAY);
    for n in 0..700 {
        let a = sent("local:ahead", n);
        rig.store.fail_waiting(a.sid, "c", "t".into()).unwrap();
    }
    settled();
    rig.now.store(T0, Ordering::SeqCst);
    for n in 0..50 {
        let a = sent("local:since", n);
        rig.store.fail_waiting(a.sid, "c", "t".into()).unwrap();
    }
    settled();
    assert_eq!(prune(&rig, &keep()).total(), 0, "all of it is young");
    rig.pass(7 * DAY + 1);
    let p = prune(&rig, &keep());
    assert_eq!(rig.number("SELECT count(*) FROM events"), 0, "{p:?}");
    assert_eq!((p.ids, rig.number("SELECT count(*) FROM messages WHERE client_id IS NOT NULL")), (750, 0), "{p:?}");
    assert_eq!((p.deliveries, rig.number("SELECT count(*) FROM deliveries")), (6, 0), "{p:?}");
}

/// A turn that runs for long keeps its own text, and nothing else.
#[test]
fn a_turn_that_runs_keeps_nobody_elses_events() {
    let rig = Rig::new();
    let (_, b) = rig.running(KEY, "m");
    for n in 1..700 {
        rig.store.append(b.turn, batch(n, vec![Item::Text("x".into())])).unwrap();
    }
    let (_, other) = rig.running("local:other", "m");
    rig.finish(other.turn, Outcome::Completed);
    rig.pass(8 * DAY);
    prune(&rig, &keep());
    assert!(rig.store.events(Some("local:other"), 0, 10).unwrap().items.is_empty());
    assert_eq!(rig.number("SELECT count(*) FROM events"), 699);
}

#[test]
fn ids_are_known_for_their_time_and_until_their_turn_is_over() {
    let mut rig = Rig::new();
    let send = |rig: &Rig, key: &str| {
        rig.store.accept_message(Accept { client_id: Some("x".into()), ..rig.accept(key, "m") }).unwrap()
    };
    let done = send(&rig, KEY);
    rig.store.fail_waiting(done.sid, "c", "t".into()).unwrap();
    let waits = send(&rig, "local:waits");
    let cut = send(&rig, "local:cut");
    let epoch = rig.open(cut.sid);
    rig.begin(cut.sid, epoch);
    rig.crash();
    rig.pass(7 * DAY);
    assert_eq!(prune(&rig, &keep()).ids, 0);
    rig.pass(1);
    assert_eq!(prune(&rig, &keep()).ids, 1);
    assert!(!send(&rig, KEY).duplicate);
    assert_eq!(send(&rig, "local:waits").turn_id, waits.turn_id);
    assert_eq!(send(&rig, "local:cut").turn_id, cut.turn_id, "it may still go on, so it has no outcome yet");
}

#[test]
fn settled_deliveries_go_and_set_aside_ones_later() {
    let rig = Rig::new();
    let a = rig.say(KEY, "m");
    rig.open(a.sid);
    rig.store.reset(key(), "agent".into(), ACTOR).unwrap();
    let owed = rig.store.pending_deliveries(0, 10).unwrap();
    assert_eq!(owed.len(), 3);
    rig.store.settle_delivery(owed[0].did, Settled::Delivered, false, |_| ());
    rig.store.settle_delivery(owed[1].did, Settled::SetAside("why".into()), false, |_| ());
    rig.pass(7 * DAY + 1);
    assert_eq!(prune(&rig, &keep()).deliveries, 1);
    assert_eq!(rig.number("SELECT count(*) FROM journal"), 2);
    rig.pass(23 * DAY);
    let later = prune(&rig, &keep());
    assert_eq!((later.deliveries, later.set_aside), (0, 1));
    rig.pass(900 * DAY);
    assert_eq!(prune(&rig, &keep()).total(), 0, "what is owed never goes");
    // Counted, for the metrics.
    let tally = rig.store.tally();
    assert_eq!((tally.delivered, tally.set_aside, tally.orphaned), (1, 1, 0));
    assert_eq!((tally.pruned.deliveries, tally.pruned.set_aside), (1, 1));
    assert_eq!(rig.store.journal_counts().unwrap().pending, 1);
}

#[test]
fn deleted_text_goes_once_its_ends_are_settled() {
    let rig = Rig::new();
    let (a, b) = rig.running(KEY, "secret question");
    rig.store.append(b.turn, batch(1, vec![Item::Text("secret answer".into())])).unwrap();
    let sent = Accept { client_id: Some("x".into()), ..rig.accept(KEY, "secret, queued") };
    rig.store.accept_message(sent.clone()).unwrap();
    rig.store.delete(key(), false, ACTOR).unwrap();
    assert_eq!(prune(&rig, &keep()).sessions, 0, "a handler may still ask for it");
    assert_eq!(rig.transcript(&a.session_id), ["user: secret question", "agent: secret answer"]);
    for o in rig.store.pending_deliveries(0, 10).unwrap() {
        rig.store.settle_delivery(o.did, Settled::Delivered, false, |_| ());
    }
    assert_eq!(prune(&rig, &keep()).sessions, 1);
    for table in ["entries", "messages", "events", "journal"] {
        let text = rig.text(&format!("SELECT group_concat(t) FROM (SELECT json_array(*) t FROM {table})").replace(
            "json_array(*)",
            match table {
                "entries" => "coalesce(text, '')",
                "messages" => "text",
                "events" => "data",
                _ => "fields",
            },
        ));
        assert!(!text.contains("secret"), "{table}: {text}");
    }
    assert!(rig.store.accept_message(sent).unwrap().duplicate, "its id stays known for its time");
}

#[test]
fn ended_sessions_keep_their_text_as_long_as_is_configured() {
    let rig = Rig::new();
    let (a, b) = rig.running(KEY, "m");
    rig.finish(b.turn, Outcome::Completed);
    rig.store.reset(key(), "agent".into(), ACTOR).unwrap();
    for o in rig.store.pending_deliveries(0, 10).unwrap() {
        rig.store.settle_delivery(o.did, Settled::Delivered, false, |_| ());
    }
    rig.pass(900 * DAY);
    prune(&rig, &keep());
    assert_eq!(rig.transcript(&a.session_id), ["user: m"]);
    let month = Retention { ended: Some(Duration::from_secs(30 * 86_400)), ..keep() };
    prune(&rig, &month);
    assert!(rig.transcript(&a.session_id).is_empty());
}

/// What ends and is not kept leaves nothing behind in the end: its rows stay while an id of theirs is known, and then go.
#[test]
fn a_session_whose_text_is_gone_is_forgotten_with_its_ids() {
    let mut rig = Rig::new();
    let day = Retention { ended: Some(Duration::from_secs(86_400)), ..keep() };
    let tables = ["sessions", "turns", "messages", "entries", "activations", "events", "journal", "deliveries"];
    let id = |rig: &Rig, id: &str, text: &str| {
        rig.store.accept_message(Accept { client_id: Some(id.into()), ..rig.accept(KEY, text) }).unwrap()
    };
    // A conversation with an id, an interrupted turn and its continuation, longer than one small transaction.
    let a = id(&rig, "x", "first");
    let epoch = rig.open(a.sid);
    rig.begin(a.sid, epoch);
    rig.crash();
    let epoch = rig.open(a.sid);
    let begun = rig.store.begin_turn(Begin { auto_continue: true, ..rig.next_turn(a.sid, epoch) }).unwrap().unwrap();
    assert!(begun.continues.is_some());
    rig.store
        .append(begun.turn, batch(1, (0..2500).map(|n| Item::Event(EventKind::Usage, json!({ "n": n }))).collect()))
        .unwrap();
    let tool = |n: i64| Item::Tool {
        id: format!("t{n}"),
        title: "t".into(),
        kind: "other".into(),
        status: "completed".into(),
        detail: json!(null),
    };
    rig.store.append(begun.turn, batch(2, (0..2500).map(tool).collect())).unwrap();
    rig.finish(begun.turn, Outcome::Completed);
    rig.store.reset(key(), "agent".into(), ACTOR).unwrap();
    for o in rig.store.pending_deliveries(0, 10).unwrap() {
        rig.store.settle_delivery(o.did, Settled::Delivered, false, |_| ());
    }
    rig.pass(DAY + 1);
    assert_eq!(prune(&rig, &day).sessions, 1);
    assert!(rig.transcript(&a.session_id).is_empty());
    assert!(id(&rig, "x", "first").duplicate, "its id is still known");
    assert_eq!(rig.store.session(&Target::Id(a.session_id.clone())).unwrap().json["state"], "ended");
    rig.pass(7 * DAY);
    prune(&rig, &day);
    assert!(matches!(
        rig.store.session(&Target::Id(a.session_id.clone())),
        Err(Error::Refused(Refusal::SessionNotFound))
    ));
    // All that is left is the empty session that the reset made.
    let left: Vec<i64> = tables.iter().map(|t| rig.number(&format!("SELECT count(*) FROM {t}"))).collect();
    assert_eq!(left, [1, 0, 0, 0, 0, 0, 0, 0], "{tables:?}");
    assert!(!id(&rig, "x", "first").duplicate, "a new message in a new session");
}

/// What a wrong clock wrote neither stops retention, where it was ahead, nor takes what is young with it, where it was behind.
/// Turns that an agent began by itself have no message by which they could be found.
#[test]
fn turns_that_an_agent_began_by_itself_go_with_their_session() {
    let rig = Rig::new();
    let (a, b) = rig.running(KEY, "hello");
    rig.finish(b.turn, Outcome::Completed);
    for n in 0..3 {
        let own = rig.store.begin_agent_turn(a.sid, b.turn.epoch, format!("own-{n}")).unwrap();
        rig.finish(own.turn, Outcome::Completed);
    }
    rig.store.reset(Target::Id(a.session_id), "agent".into(), ACTOR).unwrap();
    for owed in rig.store.pending_deliveries(0, 100).unwrap() {
        rig.store.settle_delivery(owed.did, Settled::Delivered, true, |kept| kept.unwrap());
    }
    rig.pass(DAY);
    let hour = Some(Duration::from_secs(3600));
    prune(&rig, &Retention { ended: hour, events: hour, ids: hour, journal: hour, reports: 100 });
    let left = |table: &str| rig.number(&format!("SELECT count(*) FROM {table} WHERE sid={}", a.sid));
    assert_eq!(["sessions", "turns", "messages", "entries", "activations"].map(left), [0; 5]);
}

#[test]
fn times_of_a_wrong_clock_do_not_stop_retention() {
    let rig = Rig::new();
    let day = Retention { events: Some(Duration::from_secs(86_400)), ..keep() };
    let tell = |n: usize| {
        for _ in 0..n {
            rig.store
                .write("tell", |tx| tx.emit_locked(crate::model::event::EventKind::Notice, KEY, "s", &Value::Null))
                .unwrap();
        }
    };
    rig.pass(300 * 24 * HOUR);
    tell(1200);
    rig.pass(-300 * 24 * HOUR);
    tell(3);
    assert_eq!(prune(&rig, &day).events, 0, "nobody knows yet how old they are");
    rig.pass(25 * HOUR);
    tell(2);
    assert_eq!(prune(&rig, &day).events, 1203);
    rig.pass(-400 * 24 * HOUR);
    tell(1);
    rig.pass(400 * 24 * HOUR);
    tell(1);
    assert_eq!(prune(&rig, &day).events, 0, "two young ones stand before it");
    rig.pass(25 * HOUR);
    assert_eq!(prune(&rig, &day).events, 4);
}
