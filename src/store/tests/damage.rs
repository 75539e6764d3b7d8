//! One session's rows are spoilt in every way that a disk, a bug or a hand can spoil them; everybody else is served.

use rusqlite::Connection;

use super::*;
use crate::config::Retention;
use crate::store::{Refusal, damage};

const BAD: &str = "local:bad";
const GOOD: &str = "local:good";

/// What is done to the rows of one session. `{sid}` and `{id}` are its own; a text that is no UTF-8 is `{raw}`.
pub(super) const DAMAGE: &[(&str, &str)] = &[
    ("an id that is no text", "UPDATE sessions SET id=x'00ff' WHERE sid={sid}"),
    ("an id that is no UTF-8", "UPDATE sessions SET id={raw} WHERE sid={sid}"),
    ("a key that is no text", "UPDATE sessions SET key=x'00ff' WHERE sid={sid}"),
    ("a key that is no UTF-8", "UPDATE sessions SET key={raw} WHERE sid={sid}"),
    ("no key", "UPDATE sessions SET key=NULL WHERE sid={sid}"),
    ("an unknown status", "UPDATE sessions SET status='strange' WHERE sid={sid}"),
    ("a status that is no text", "UPDATE sessions SET status=x'ff' WHERE sid={sid}"),
    ("an agent that is no UTF-8", "UPDATE sessions SET agent={raw} WHERE sid={sid}"),
    ("no agent", "UPDATE sessions SET agent=NULL WHERE sid={sid}"),
    ("an epoch that is no number", "UPDATE sessions SET epoch='many' WHERE sid={sid}"),
    ("the greatest epoch", "UPDATE sessions SET epoch=9223372036854775807 WHERE sid={sid}"),
    ("a beginning that is no time", "UPDATE sessions SET created_at='soon' WHERE sid={sid}"),
    ("the last of all times", "UPDATE sessions SET created_at=9223372036854775807 WHERE sid={sid}"),
    ("a life that is no time", "UPDATE sessions SET active_at=x'ff' WHERE sid={sid}"),
    ("an unknown mark", "UPDATE sessions SET mark_reason='weather', marked_at=1 WHERE sid={sid}"),
    ("a mark that is no UTF-8", "UPDATE sessions SET mark_reason={raw} WHERE sid={sid}"),
    ("a mark without a time", "UPDATE sessions SET mark_reason='crash', marked_at='soon' WHERE sid={sid}"),
    ("a mark of no boot", "UPDATE sessions SET mark_reason='crash', mark_boot='x' WHERE sid={sid}"),
    ("a turn that is no number", "UPDATE sessions SET cut_turn='x' WHERE sid={sid}"),
    (
        "a turn that is not there",
        "UPDATE sessions SET cut_turn=424242, mark_reason='crash', marked_at=1 WHERE sid={sid}",
    ),
    ("a forerunner that is no text", "UPDATE sessions SET previous_id=x'ff' WHERE sid={sid}"),
    ("turns that are no number", "UPDATE sessions SET turns='x' WHERE sid={sid}"),
    ("less turns than there can be", "UPDATE sessions SET turns=-9223372036854775807 WHERE sid={sid}"),
    ("no count of messages", "UPDATE sessions SET messages=NULL WHERE sid={sid}"),
    ("an unknown start", "UPDATE sessions SET start_reason='weather' WHERE sid={sid}"),
    ("a start that is no text", "UPDATE sessions SET start_reason=x'ff' WHERE sid={sid}"),
    ("deaths that are no number", "UPDATE sessions SET unclean='x' WHERE sid={sid}"),
    ("all the deaths there can be", "UPDATE sessions SET unclean=9223372036854775807 WHERE sid={sid}"),
    ("an agent's id that is no UTF-8", "UPDATE sessions SET agent_session={raw} WHERE sid={sid}"),
    ("a queue that is no number", "UPDATE sessions SET queued='x' WHERE sid={sid}"),
    ("hidden by no number", "UPDATE sessions SET hidden=x'ff' WHERE sid={sid}"),
    ("no row of the session", "DELETE FROM sessions WHERE sid={sid}"),
    ("an activation without a number", "UPDATE activations SET epoch='x' WHERE sid={sid}"),
    ("an activation by an agent that is no UTF-8", "UPDATE activations SET agent={raw} WHERE sid={sid}"),
    ("an activation in a directory that is no text", "UPDATE activations SET cwd=x'ff' WHERE sid={sid}"),
    ("an activation of no time", "UPDATE activations SET opened_at='x' WHERE sid={sid}"),
    ("an activation after very many turns", "UPDATE activations SET turns_before=-9223372036854775807 WHERE sid={sid}"),
    ("an activation of an unknown boot", "UPDATE activations SET bid=4242 WHERE sid={sid}"),
    ("an activation of no boot", "UPDATE activations SET bid='x' WHERE sid={sid}"),
    ("an activation that is gone", "DELETE FROM activations WHERE sid={sid}"),
    ("abandoned by no number", "UPDATE activations SET abandoned='x' WHERE sid={sid}"),
    ("a turn whose id is no UTF-8", "UPDATE turns SET id={raw} WHERE sid={sid} AND state<>'queued'"),
    ("a turn whose id is no text", "UPDATE turns SET id=x'ff' WHERE sid={sid} AND state<>'queued'"),
    ("a cancel that is no UTF-8", "UPDATE turns SET cancel={raw} WHERE sid={sid}"),
    ("a cancel that is no text", "UPDATE turns SET cancel=x'ff' WHERE sid={sid}"),
    ("a turn in an unknown state", "UPDATE turns SET state='strange' WHERE sid={sid}"),
    ("sealed by no number", "UPDATE turns SET sealed='x' WHERE sid={sid}"),
    ("a turn that goes on with no number", "UPDATE turns SET continues='x', continued_by='x' WHERE sid={sid}"),
    ("turns that are gone", "DELETE FROM turns WHERE sid={sid}"),
    ("a message that is no UTF-8", "UPDATE messages SET text={raw} WHERE sid={sid}"),
    ("a message that is no text", "UPDATE messages SET text=x'ff' WHERE sid={sid}"),
    ("a message of no time", "UPDATE messages SET at='x' WHERE sid={sid}"),
    ("no message", "DELETE FROM messages WHERE sid={sid}"),
    ("an unknown speaker", "UPDATE entries SET role='wind' WHERE sid={sid}"),
    ("an entry that is no text", "UPDATE entries SET text=x'ff' WHERE sid={sid}"),
    ("an entry's detail that is no JSON", "UPDATE entries SET detail='{' WHERE sid={sid}"),
    ("no entry", "DELETE FROM entries WHERE sid={sid}"),
    ("a piece that is no JSON", "UPDATE events SET data='{' WHERE session_id='{id}'"),
    (
        "a piece that is no UTF-8",
        "UPDATE events SET data=CAST(x'7b2274657874223a22ff227d' AS TEXT) WHERE session_id='{id}'",
    ),
    ("a piece that is a number", "UPDATE events SET data='{\"text\":7}' WHERE session_id='{id}'"),
    ("a piece that is a list", "UPDATE events SET data='[]' WHERE session_id='{id}'"),
    ("a piece that is no text", "UPDATE events SET data=x'ff00' WHERE session_id='{id}'"),
    (
        "a piece that is very long",
        "UPDATE events SET data='{\"text\":\"'||hex(zeroblob(6000000))||'\"}' WHERE session_id='{id}' AND kind='text'",
    ),
    ("a piece of no time", "UPDATE events SET at='x' WHERE session_id='{id}'"),
    ("a piece of no turn", "UPDATE events SET turn_id=x'ff' WHERE session_id='{id}'"),
    ("no piece", "DELETE FROM events WHERE session_id='{id}'"),
    ("an end whose fields are no JSON", "UPDATE journal SET fields='{' WHERE sid={sid}"),
    ("an unknown event", "UPDATE journal SET event='weather' WHERE sid={sid}"),
    ("an event of a key that is no UTF-8", "UPDATE journal SET key={raw} WHERE sid={sid}"),
    ("an event that is gone", "DELETE FROM journal WHERE sid={sid}"),
    ("a delivery to no script", "UPDATE deliveries SET script=x'ff' WHERE {jids}"),
    ("a delivery tried no number of times", "UPDATE deliveries SET attempts='x' WHERE {jids}"),
    ("a delivery settled at no time", "UPDATE deliveries SET settled_at='x' WHERE {jids}"),
];

/// Spoils rows as no transaction of ours could: past the types, the checks and the NOT NULLs of the schema, which stand
/// again afterwards.
fn spoil(rig: &Rig, sql: &str, bad: &Accepted) {
    spoil_file(&rig.path, sql, bad.sid, &bad.session_id);
}

/// The same in a file that no store has open.
pub(super) fn spoil_file(path: &std::path::Path, sql: &str, sid: i64, id: &str) {
    let sql = sql
        .replace("{sid}", &sid.to_string())
        .replace("{id}", id)
        .replace("{raw}", &format!("CAST(x'ff{:04x}' AS TEXT)", 0x4100 + sid))
        .replace("{jids}", &format!("jid IN (SELECT jid FROM journal WHERE sid={sid})"));
    let conn = Connection::open(path).unwrap();
    conn.execute_batch(
        "CREATE TEMP TABLE before AS SELECT name, sql FROM sqlite_schema WHERE type='table' AND sql LIKE '%STRICT';
         PRAGMA ignore_check_constraints=ON; PRAGMA writable_schema=ON;
         UPDATE sqlite_schema SET sql=replace(replace(sql, 'STRICT', ''), 'NOT NULL', '')
           WHERE type='table' AND name IN (SELECT name FROM before);
         PRAGMA writable_schema=RESET;",
    )
    .unwrap();
    conn.execute_batch(&sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    conn.execute_batch(
        "PRAGMA writable_schema=ON;
         UPDATE sqlite_schema SET sql=(SELECT k.sql FROM before k WHERE k.name=sqlite_schema.name)
           WHERE type='table' AND name IN (SELECT name FROM before);
         PRAGMA writable_schema=RESET;",
    )
    .unwrap();
}

/// Spoils a session in each way in turn, and tells all the ways in which it is not borne.
fn each(run: impl Fn(&str, &str)) {
    let borne =
        |(what, sql): &&(&str, &str)| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(what, sql))).is_ok();
    let not_borne: Vec<&str> = DAMAGE.iter().filter(|d| !borne(d)).map(|(what, _)| *what).collect();
    assert!(not_borne.is_empty(), "not borne: {not_borne:?}");
}

/// A session in whose turn something was said, with a message behind it; and one like it.
fn two(rig: &Rig) -> (Accepted, Accepted) {
    let said = |key| {
        let (a, b) = rig.running(key, "question");
        rig.store.append(b.turn, batch(1, vec![Item::Text("so far".into())])).unwrap();
        rig.say(key, "next");
        a
    };
    (said(BAD), said(GOOD))
}

/// What the daemon reads of all sessions: none of it fails, and the good one is in it.
fn others_are_served(rig: &Rig, what: &str, bad: &Accepted, good: &Accepted) {
    let listed = rig.store.sessions(&SessionFilter { limit: 10, ..SessionFilter::default() }).unwrap();
    assert!(listed.items.iter().any(|s| s.key == GOOD), "{what}: {listed:?}");
    assert!(rig.store.wanted(0, 10, Some(0)).unwrap().iter().any(|w| w.sid == good.sid), "{what}");
    let owed = rig.store.pending_deliveries(0, 100).unwrap();
    assert!(owed.iter().any(|o| o.key == GOOD), "{what}: {owed:?}");
    rig.store.failed_events(10).unwrap();
    rig.store.counts().unwrap();
    let live = [(bad.sid, Some(bad.turn_id.clone())), (good.sid, Some(good.turn_id.clone()))];
    let outcomes = rig.store.stop_outcomes(&live).unwrap();
    assert!(outcomes.iter().any(|o| o.sid == good.sid && o.turn.as_deref() == Some("interrupted")), "{what}");
    let overlooked = rig.store.overlooked(&[good.sid]).unwrap();
    assert!(overlooked.gone.is_empty() && overlooked.cancelled.is_empty(), "{what}: {overlooked:?}");
    rig.store.events(None, 0, 1000).unwrap();
    assert_eq!(rig.transcript(&good.session_id), ["user: question", "agent: so far"], "{what}");
    // Of the bad one as much as can be read; a refusal is an answer.
    for target in [Target::Key(BAD.into()), Target::Id(bad.session_id.clone())] {
        for failed in
            [rig.store.session(&target).err(), rig.store.transcript(&target, 0, 10).err()].into_iter().flatten()
        {
            assert_eq!(failed.refusal(), Some(Refusal::SessionNotFound), "{what}: {failed}");
        }
    }
    rig.store.history(bad.sid, 0, 0, 1 << 20).unwrap();
    rig.store.events(Some(BAD), 0, 1000).unwrap();
    // A worker that is given it is told so, and tries no more.
    let opened = rig.store.open_activation(bad.sid, "agent".into(), "/w".into(), None);
    assert!(opened.as_ref().map_or_else(|e| e.refusal().is_some(), |_| true), "{what}: {opened:?}");
    let new = rig.say("local:new", "hello");
    let epoch = rig.open(new.sid);
    let begun = rig.begin(new.sid, epoch);
    assert_eq!(rig.finish(begun.turn, Outcome::Completed).outcome, Outcome::Completed, "{what}");
}

/// The bad session's activation is closed, or the doctor names it.
fn closed_or_named(rig: &Rig, what: &str, bad: &Accepted) {
    let open = rig.number(&format!("SELECT count(*) FROM activations WHERE closed_at IS NULL AND sid={}", bad.sid));
    let found = damage::find(sqlite::sql(&Connection::open(&rig.path).unwrap())).unwrap();
    assert!(open == 0 || !found.is_empty(), "{what}: neither closed nor named");
    assert!(found.iter().all(|d| d.key != GOOD), "{what}: {found:?}");
}

#[test]
fn a_boot_recovers_everybody_else() {
    each(|what, sql| {
        let mut rig = Rig::new();
        let (bad, good) = two(&rig);
        spoil(&rig, sql, &bad);
        let seen = rig.newest();
        let r = rig.crash();
        assert_eq!(r.deaths, 1, "{what}");
        assert_eq!(rig.events(GOOD, seen), ["turn_end:interrupted", "session_end:crash"], "{what}");
        assert_eq!((rig.mark(good.sid).as_str(), rig.unclean(good.sid)), ("crash", 1), "{what}");
        closed_or_named(&rig, what, &bad);
        others_are_served(&rig, what, &bad, &good);
        // The next boot, too, and it does not recover the good one again.
        let again = rig.newest();
        rig.crash();
        assert!(rig.events(GOOD, again).is_empty(), "{what}");
    });
}

#[test]
fn a_stop_marks_and_closes_everybody_else() {
    each(|what, sql| {
        let mut rig = Rig::new();
        let (bad, good) = two(&rig);
        spoil(&rig, sql, &bad);
        let seen = rig.newest();
        rig.store.set_admission(Admission::Stopping);
        assert!(rig.store.mark_running(note()).unwrap() >= 1, "{what}");
        assert_eq!(rig.mark(good.sid), "restart_timeout", "{what}");
        rig.pass(1000);
        rig.store.refresh_marks(MarkReason::RestartTimeout, false).unwrap();
        assert_eq!(rig.marked_at(good.sid), T0 + 1000, "{what}");
        rig.store.note_abandoned(vec![bad.sid]).unwrap();
        assert!(rig.store.close_activations(StopReason::Restart, 3, None).unwrap() >= 1, "{what}");
        assert_eq!(rig.events(GOOD, seen), ["turn_end:interrupted", "session_end:restart"], "{what}");
        rig.store.set_admission(Admission::Open);
        closed_or_named(&rig, what, &bad);
        others_are_served(&rig, what, &bad, &good);
        rig.store.close_boot(true, Value::Null, 100).unwrap();
        rig.crash();
        rig.store.forget_cut_turns().unwrap();
        assert_eq!((rig.mark(good.sid).as_str(), rig.unclean(good.sid)), ("restart_timeout", 0), "{what}");
    });
}

#[test]
fn retention_goes_on_behind_it() {
    let keep = Retention {
        ended: Some(Duration::from_secs(60)),
        events: Some(Duration::from_secs(60)),
        ids: Some(Duration::from_secs(60)),
        journal: Some(Duration::from_secs(60)),
        reports: 100,
    };
    each(|what, sql| {
        for hide in [false, true] {
            let rig = Rig::new();
            let said = |key: &str| {
                let sent = Accept { client_id: Some("x".into()), ..rig.accept(key, "question") };
                let a = rig.store.accept_message(sent).unwrap();
                let epoch = rig.open(a.sid);
                let b = rig.begin(a.sid, epoch);
                rig.store.append(b.turn, batch(1, vec![Item::Text("answer".into())])).unwrap();
                rig.finish(b.turn, Outcome::Completed);
                rig.store.reset(Target::Key(key.into()), "agent".into(), ACTOR).unwrap();
                if hide {
                    rig.store.delete(Target::Id(a.session_id.clone()), false, ACTOR).unwrap();
                }
                a
            };
            let (bad, good) = (said(BAD), said(GOOD));
            for o in rig.store.pending_deliveries(0, 100).unwrap() {
                rig.store.settle_delivery(o.did, Settled::Delivered, false, |_| ());
            }
            spoil(&rig, sql, &bad);
            rig.pass(61_000);
            let mut rounds = 0;
            while rig.store.prune(keep.clone()).unwrap().total() > 0 {
                rounds += 1;
                assert!(rounds < 1000, "{what}: pruning does not end");
            }
            for table in ["sessions", "messages", "turns", "entries", "activations"] {
                let left = rig.number(&format!("SELECT count(*) FROM {table} WHERE sid={}", good.sid));
                assert_eq!(left, 0, "{what}, hidden {hide}: {table}");
            }
            let events = format!("SELECT count(*) FROM events WHERE session_id='{}'", good.session_id);
            assert_eq!(rig.number(&events), 0, "{what}, hidden {hide}: events");
            let journal = format!("SELECT count(*) FROM journal WHERE sid={}", good.sid);
            assert_eq!(rig.number(&journal), 0, "{what}, hidden {hide}: journal");
        }
    });
}

/// What of an answer cannot be read is left out of the transcript, the rest is in it, and that is told.
#[test]
fn an_answer_of_which_a_piece_is_broken_ends_with_the_rest() {
    let rig = Rig::new();
    let (a, b) = rig.running(KEY, "question");
    for (n, text) in [(1, "first "), (2, "broken "), (3, "last")] {
        rig.store.append(b.turn, batch(n, vec![Item::Text(text.into())])).unwrap();
    }
    spoil(&rig, "UPDATE events SET data='{' WHERE kind='text' AND data LIKE '%broken%'", &a);
    let seen = rig.newest();
    rig.finish(b.turn, Outcome::Completed);
    assert_eq!(rig.events(KEY, seen), ["notice:answer_lost", "turn_end:completed"]);
    let lost = "system: a part of the answer could not be read, and is not in the transcript";
    assert_eq!(rig.transcript(&a.session_id), ["user: question", "agent: first last", lost]);
}

/// Who puts a damaged session away can, and the next message under its key is answered by a new one.
#[test]
fn a_damaged_session_can_be_put_away() {
    let rig = Rig::new();
    let (bad, _) = two(&rig);
    spoil(&rig, "UPDATE sessions SET agent_session={raw} WHERE sid={sid}", &bad);
    assert!(rig.store.accept_message(rig.accept(BAD, "m")).is_err(), "it cannot be answered");
    let shown = rig.store.session(&Target::Key(BAD.into())).unwrap().json;
    assert!(shown["damaged"].is_string(), "{shown}");
    rig.store.delete(Target::Key(BAD.into()), false, ACTOR).unwrap();
    assert_ne!(rig.say(BAD, "m").session_id, bad.session_id);
}

/// A full page of them hides nothing that stands behind.
#[test]
fn deliveries_that_cannot_be_read_take_nobodys_place() {
    let rig = Rig::new();
    let (bad, _) = two(&rig);
    spoil(&rig, "UPDATE deliveries SET attempts='x' WHERE {jids}", &bad);
    let spoiled = rig.store.pending_deliveries(0, 1).unwrap();
    assert_eq!(spoiled.iter().map(|o| o.key.as_str()).collect::<Vec<_>>(), [GOOD]);
}

/// What was accepted is begun though the turn that it would go on with is not there any more.
#[test]
fn a_message_does_not_wait_for_a_turn_that_is_gone() {
    let mut rig = Rig::new();
    let (a, _) = rig.running(BAD, "question");
    rig.crash();
    let next = rig.say(BAD, "next");
    let epoch = rig.open(a.sid);
    spoil(&rig, "UPDATE sessions SET cut_turn=424242 WHERE sid={sid}", &a);
    let begun = rig.store.begin_turn(rig.next_turn(a.sid, epoch)).unwrap().unwrap();
    assert_eq!((begun.turn_id, begun.prompt), (next.turn_id, "next".to_owned()));
}

/// The files of others go, those of the one whose rows are broken stay.
#[test]
fn files_of_others_are_known_beside_a_session_whose_rows_are_broken() {
    let rig = Rig::new();
    let (bad, good) = two(&rig);
    for id in [&bad, &good] {
        rig.store.delete_with_files(Target::Id(id.session_id.clone()), false, Actor::Operator).unwrap();
    }
    spoil(&rig, "UPDATE activations SET cwd=x'ff' WHERE sid={sid}", &bad);
    let found = rig.store.files_to_remove().unwrap();
    assert_eq!(found.iter().map(|l| l.sid).collect::<Vec<_>>(), [good.sid]);
}
