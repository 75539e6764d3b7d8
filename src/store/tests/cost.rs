//! What statements cost: nothing that happens every day may cost more because much is stored.
//!
//! SQLite counts the steps of its virtual machine for each run of a statement. The same day is lived over a small store and
//! over a large one, and each statement's worst run is compared.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use rusqlite::trace::{TraceEvent, TraceEventCodes};
use rusqlite::{Connection, StatementStatus};

use super::*;
use crate::model::event::{EndReason, EventKind};

/// A statement, and the steps of its worst run.
type Costs = Arc<Mutex<BTreeMap<String, i32>>>;

thread_local! {
    /// Where connections opened on this thread note what they do, if anywhere.
    static NOTED: RefCell<Option<Costs>> = const { RefCell::new(None) };
}

/// A connection that notes what its statements cost, if the test wants that.
pub(in crate::store) fn watched(mut conn: Connection) -> Connection {
    let Some(costs) = NOTED.with_borrow(Clone::clone) else { return conn };
    // The counter of a statement that is kept adds up over its runs.
    conn.set_prepared_statement_cache_capacity(0);
    let note = move |event: TraceEvent<'_>| {
        if let TraceEvent::Profile(statement, _) = event {
            let steps = statement.get_status(StatementStatus::VmStep);
            let mut costs = costs.lock().unwrap();
            let worst = costs.entry(statement.sql().into_owned()).or_default();
            *worst = steps.max(*worst);
        }
    };
    conn.trace_v2(TraceEventCodes::SQLITE_TRACE_PROFILE, Some(note)).unwrap();
    conn
}

/// How much is stored.
#[derive(Clone, Copy)]
struct Stored {
    /// Other keys, each with a session that ended and one that is open, a third of them live.
    keys: usize,
    /// Turns in the one session whose day it is.
    turns: usize,
}

fn tool(status: &str) -> Item {
    let (id, title, kind) = ("t1".into(), "Run it".into(), "execute".into());
    Item::Tool { id, title, kind, status: status.into(), detail: Value::Null }
}

fn text(text: &str) -> Item {
    Item::Text(text.into())
}

/// A turn with a tool and text in several writes.
fn turn(rig: &Rig, key: &str, open: Option<i64>) -> (Accepted, TurnRef) {
    let a = rig.say(key, "a message");
    let epoch = open.unwrap_or_else(|| rig.open(a.sid));
    let b = rig.begin(a.sid, epoch);
    rig.store.append(b.turn, batch(1, vec![text("first "), tool("pending")])).unwrap();
    rig.store.append(b.turn, batch(2, vec![tool("completed"), text("then ")])).unwrap();
    let last = batch(3, vec![text("last")]);
    rig.store.finish_turn(b.turn, last, Outcome::Completed, None, MarkReason::Crash).unwrap();
    (a, b.turn)
}

fn settle_all(rig: &Rig) {
    loop {
        let owed = rig.store.pending_deliveries(0, 100).unwrap();
        if owed.is_empty() {
            return;
        }
        for o in owed {
            rig.store.settle_delivery(o.did, Settled::Delivered, true, |kept| kept.unwrap());
        }
    }
}

fn fill(rig: &Rig, stored: Stored) {
    for n in 0..stored.keys {
        let key = format!("other:{n}");
        let (a, _) = turn(rig, &key, None);
        rig.store.reset(Target::Id(a.session_id), "agent".into(), ACTOR).unwrap();
        let (a, t) = turn(rig, &key, None);
        if n % 3 > 0 {
            rig.store.close_activation(a.sid, t.epoch, EndReason::Parked, ACTOR).unwrap();
        }
    }
    let (_, first) = turn(rig, KEY, None);
    for _ in 1..stored.turns {
        turn(rig, KEY, Some(first.epoch));
    }
    settle_all(rig);
}

/// What happens every day, but for what looks at everything by its nature: the status's counts, and a boot.
fn a_day(rig: &mut Rig) {
    let epoch = rig.number(&format!("SELECT epoch FROM sessions WHERE key='{KEY}' AND status='open'"));
    let (a, _) = turn(rig, KEY, Some(epoch));
    let store = &rig.store;
    // Several at once, and the same again.
    let mut twice = rig.accept(KEY, "once");
    twice.client_id = Some("id".into());
    let running = store.accept_and_begin(twice.clone(), (a.sid, epoch)).unwrap().1.unwrap();
    assert!(store.accept_message(twice.clone()).unwrap().duplicate);
    assert!(store.find_duplicate(KEY, "id", "once").unwrap().is_some());
    store.append(running.turn, batch(1, vec![text("words"), tool("in_progress")])).unwrap();
    store.append(running.turn, batch(2, vec![tool("pending"), Item::Event(EventKind::Plan, Value::Null)])).unwrap();
    rig.say(KEY, "waits");
    look(rig, &a, &running.turn_id);
    let store = &rig.store;
    store.cancel(key(), true).unwrap();
    rig.finish(running.turn, Outcome::Cancelled);
    let b = rig.say(KEY, "waits again");
    assert!(store.peek_turn(b.sid).unwrap().is_some());
    assert!(store.preview_turn(rig.next_turn(b.sid, epoch)).unwrap().is_some());
    store.fail_queued(b.sid, epoch, "code".into(), "text".into()).unwrap();
    // Parked, called again, retired.
    store.close_activation(a.sid, epoch, EndReason::Parked, ACTOR).unwrap();
    let (a, t) = turn(rig, KEY, None);
    store.note_agent(a.sid, t.epoch, Some("x".into())).unwrap();
    store.note_process(a.sid, t.epoch, 1, 1).unwrap();
    store.suspend(key(), "agent".into(), ACTOR).unwrap();
    store.resume(Target::Id(a.session_id.clone()), ACTOR).unwrap();
    // Cut off in a turn with a tool, and taken up.
    let (a, b) = rig.running(KEY, "cut");
    store.append(b.turn, batch(1, vec![tool("pending")])).unwrap();
    store.mark_running(note()).unwrap();
    store.refresh_marks(MarkReason::ShutdownTimeout, false).unwrap();
    rig.finish(b.turn, Outcome::Interrupted);
    let next_turn = Begin { auto_continue: true, ..rig.next_turn(a.sid, b.turn.epoch) };
    let again = store.begin_turn(next_turn).unwrap().unwrap();
    assert!(again.continues.is_some());
    rig.finish(again.turn, Outcome::Completed);
    store.worker_died(a.sid, false).unwrap();
    look(rig, &a, &again.turn_id);
    let store = &rig.store;
    store.reset(key(), "agent".into(), ACTOR).unwrap();
    look(rig, &a, &again.turn_id);
    let store = &rig.store;
    // The journal.
    let owed = store.pending_deliveries(0, 2).unwrap();
    store.note_attempt(owed[0].did, owed[0].next_attempt(), |kept| kept.unwrap());
    store.take_back_attempt(owed[0].did, 0, false, |kept| kept.unwrap());
    store.note_uncalled(vec![owed[0].did], |kept| kept.unwrap());
    store.settle_delivery(owed[0].did, Settled::SetAside("no".into()), true, |kept| kept.unwrap());
    store.failed_events(10).unwrap();
    store.retry_failed(Some(owed[0].event_id.clone())).unwrap();
    store.journal_counts().unwrap();
    settle_all(rig);
    // What an operator does, and time.
    store.kv_set("name".into(), Some(Value::Null), Some(Duration::from_secs(9)), None).unwrap();
    store.kv_get("name").unwrap();
    store.note_alive().unwrap();
    let ages = |age: u64| config_ages(Some(Duration::from_secs(age)));
    store.prune(ages(365 * 86_400)).unwrap();
    store.delete(key(), false, ACTOR).unwrap();
}

const fn config_ages(age: Option<Duration>) -> crate::config::Retention {
    crate::config::Retention { ended: age, events: age, ids: age, journal: age, reports: 100 }
}

/// Everything that can be read of it.
fn look(rig: &Rig, a: &Accepted, turn_id: &str) {
    let store = &rig.store;
    let id = Target::Id(a.session_id.clone());
    store.session(&id).unwrap();
    store.session_in_row(a.sid).unwrap();
    let all = ["live", "parked", "suspended", "ended", "running", "resume_pending"];
    for states in all.iter().map(|s| vec![(*s).to_owned()]).chain([Vec::new(), vec!["live".into(), "parked".into()]]) {
        for key in [None, Some(KEY.to_owned())] {
            store.sessions(&SessionFilter { states: states.clone(), key, limit: 2, before: None }).unwrap();
        }
    }
    let (newest, _) = store.event_bounds().unwrap();
    store.transcript(&id, 0, 10).unwrap();
    store.entries(&a.session_id, 0, i64::MAX, 10, 1000).unwrap();
    let upto = store.newest_entry(a.sid).unwrap();
    store.history(a.sid, upto, 0, 100).unwrap();
    store.events(Some(KEY), newest - 3, 10).unwrap();
    store.events(None, newest - 3, 10).unwrap();
    let first = store.turn(turn_id).unwrap().events_after;
    let events = store.events(Some(KEY), first, 2).unwrap().items;
    assert!(events.iter().any(|e| e.turn_id.as_deref() == Some(turn_id)), "{events:?}");
    store.key_of(&a.session_id).unwrap();
    store.key_of_row(a.sid).unwrap();
    store.is_purged(&a.session_id).unwrap();
    store.turn(turn_id).unwrap();
    store.wanted(0, 10, Some(0)).unwrap();
    store.overlooked(&[a.sid]).unwrap();
    store.sid_of(&a.session_id).unwrap();
    store.stop_outcomes(&[(a.sid, Some(turn_id.to_owned()))]).unwrap();
    store.reports(None, 3).unwrap();
}

/// The worst run of each statement of a day over so much.
fn cost_of_a_day(stored: Stored) -> BTreeMap<String, i32> {
    let costs = Costs::default();
    NOTED.set(Some(costs.clone()));
    let mut rig = Rig::new();
    fill(&rig, stored);
    rig.exec("ANALYZE; PRAGMA optimize");
    costs.lock().unwrap().clear();
    a_day(&mut rig);
    NOTED.set(None);
    drop(rig);
    let costs = std::mem::take(&mut *costs.lock().unwrap());
    assert!(costs.len() > 100, "few statements are seen: {}", costs.len());
    costs
}

#[test]
fn no_day_costs_more_because_much_is_stored() {
    let few = cost_of_a_day(Stored { keys: 40, turns: 40 });
    let many = cost_of_a_day(Stored { keys: 400, turns: 400 });
    let grown: Vec<_> = many
        .iter()
        .filter_map(|(sql, many)| {
            let few = few.get(sql).copied().unwrap_or(0);
            (*many > 2 * few + 150).then(|| format!("{few} -> {many} steps: {sql}"))
        })
        .collect();
    assert!(grown.is_empty(), "{}", grown.join("\n\n"));
}
