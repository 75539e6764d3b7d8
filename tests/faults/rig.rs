//! What the tests with faults share: booting with failpoints, a hook that writes down each call, and what must hold of
//! those calls and of every message.

use std::collections::{HashMap, HashSet};
use std::os::unix::process::ExitStatusExt;

use ostler::client::SseEvent;
use rustix::process::Signal;
use serde_json::Value;

use crate::daemon::{Daemon, Events};

/// Allows scripts to write files below the test's directory.
pub const FS: &str = "[hooks]\nallow = [\"fs\"]\nfs_roots = [\"@DIR@\"]\n";

/// Writes down each journalled event at its delivery, before anything else is done with it.
pub const NOTE: &str = r#"
local function note(ev)
  local f = assert(io.open("@DIR@/calls", "a"))
  f:write(ostler.json.encode({ event = ev.event, id = ev.event_id, attempt = ev.attempt, redelivered = ev.redelivered,
    key = ev.key, session = ev.session_id, epoch = ev.epoch, reason = ev.reason }) .. "\n")
  f:close()
end
for _, event in ipairs { "session_start", "session_end", "session_closed" } do
  ostler.on(event, note, { name = "note" })
end
"#;

/// A number that the environment gives.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Lives two daemons beside each other, each with half of the deaths, by a seed: that of the environment, or of the clock,
/// which is told so that the run can be repeated.
pub fn lives<T: Send>(seed: &str, deaths: usize, life: fn(u64, usize, usize) -> T) -> Vec<T> {
    let given = number(seed).unwrap_or_else(|| u64::from(uuid::Uuid::new_v4().as_fields().0));
    eprintln!("{seed}={given}, {deaths} deaths");
    std::thread::scope(|scope| {
        let lives: Vec<_> = (0..2)
            .map(|half| scope.spawn(move || life(given.wrapping_add(half as u64), deaths.div_ceil(2), half)))
            .collect();
        lives.into_iter().map(|l| l.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    })
}

/// How a boot went on, or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    Ready,
    Died,
}

/// Starts it with failpoints, and waits until it is ready or dead.
pub fn boot(mut d: Daemon, failpoints: &str) -> (Daemon, Came) {
    d = d.env("OSTLER_FAILPOINTS", failpoints);
    let from = d.notes.count();
    d.spawn();
    if d.ready_or_gone(from) {
        return (d, Came::Ready);
    }
    let status = d.ended();
    assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{failpoints}: {status}");
    (d, Came::Died)
}

/// Starts it with failpoints that are not to be hit before it is ready.
#[track_caller]
pub fn boot_ready(d: Daemon, failpoints: &str) -> Daemon {
    let (d, came) = boot(d, failpoints);
    assert_eq!(came, Came::Ready, "{failpoints}: {:#?}", d.log.all());
    d
}

/// SIGTERM, and whether it died of a failpoint (else it ended in order).
#[track_caller]
pub fn stop_or_die(d: &mut Daemon) -> Came {
    d.signal(Signal::TERM);
    end(d)
}

/// Waits for its end: of a failpoint, or in order.
#[track_caller]
pub fn end(d: &mut Daemon) -> Came {
    let status = d.ended();
    match status.code() {
        None if status.signal() == Some(Signal::KILL.as_raw()) => Came::Died,
        Some(0) => Came::Ready,
        _ => panic!("it ended with {status}"),
    }
}

/// What the noting hook was given, in order.
pub fn calls(d: &Daemon) -> Vec<Value> {
    let text = std::fs::read_to_string(d.path("calls")).unwrap_or_default();
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

/// Promise 2: every journalled event came to the handler; again only with `redelivered` and a higher attempt; and for a key
/// the end of an activation before the start of the next.
#[track_caller]
pub fn check_calls(d: &Daemon) {
    let calls = calls(d);
    let hooks: HashSet<&str> = calls.iter().map(hook).collect();
    assert!(!hooks.is_empty(), "nobody was called");
    for name in hooks {
        check_calls_of(d, &calls.iter().filter(|c| hook(c) == name).collect::<Vec<_>>());
    }
    let unsettled: i64 = d.sql("SELECT count(*) FROM deliveries WHERE state<>'delivered'");
    assert_eq!(unsettled, 0, "deliveries that are not settled as delivered");
}

/// Which of several noting handlers it was; they all listen to the same events.
fn hook(call: &Value) -> &str {
    call["hook"].as_str().unwrap_or_default()
}

#[track_caller]
fn check_calls_of(d: &Daemon, calls: &[&Value]) {
    let mut attempts: HashMap<&str, i64> = HashMap::new();
    let mut newest: HashMap<&str, i64> = HashMap::new();
    let rows = d.db();
    let mut statement = rows.prepare("SELECT event_id, jid FROM journal").unwrap();
    let jids: HashMap<String, i64> =
        statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).unwrap().map(Result::unwrap).collect();
    for call in calls {
        let (id, attempt) = (call["id"].as_str().unwrap(), call["attempt"].as_i64().unwrap());
        let again = call["redelivered"].as_bool().unwrap();
        assert_eq!(again, attempt > 1, "{call}");
        if let Some(before) = attempts.insert(id, attempt) {
            assert!(attempt > before, "delivered twice under one number: {call}");
        }
        // The journal's rows rise with time.
        let jid = jids.get(id).copied().unwrap_or_else(|| panic!("nobody journalled {call}"));
        let before = newest.insert(call["key"].as_str().unwrap(), jid).unwrap_or(0);
        assert!(jid >= before, "a later event of the key came first: {call}");
    }
    let owed: Vec<&String> = jids.keys().filter(|id| !attempts.contains_key(id.as_str())).collect();
    assert!(owed.is_empty(), "never delivered: {owed:?}");
}

/// Follows a key's events until the chain of a turn has its outcome; gives it with how many turns the chain has.
#[track_caller]
pub fn settled(events: &mut Events, turn_id: &str) -> (String, usize) {
    let (mut id, mut turns) = (turn_id.to_owned(), 1);
    loop {
        let ends = |e: &SseEvent| e.event == "turn_end" && e.text("turn_id") == id;
        let end = match events.seen.iter().find(|e| ends(e)) {
            Some(end) => end.clone(),
            None => events.until_where(&id, ends),
        };
        let outcome = end.text("outcome").to_owned();
        if outcome != "interrupted" {
            return (outcome, turns);
        }
        let goes_on = |e: &SseEvent| e.event == "turn_start" && e.text("continues") == id;
        let next = match events.seen.iter().find(|e| goes_on(e)) {
            Some(next) => next.clone(),
            None => events.until_where("the continuation", goes_on),
        };
        id = next.text("turn_id").to_owned();
        turns += 1;
    }
}

/// Promise 1 in the database of a quiet daemon: every message is answered by one chain that has its one outcome.
#[track_caller]
pub fn check_answers(d: &Daemon) {
    let open: i64 = d.sql("SELECT count(*) FROM turns WHERE state IN ('queued', 'running')");
    assert_eq!(open, 0, "turns without an outcome");
    let cut: i64 = d.sql(
        "SELECT count(*) FROM turns t JOIN sessions s ON s.sid=t.sid WHERE t.state='interrupted'
         AND t.continued_by IS NULL AND s.status='open' AND s.hidden=0",
    );
    assert_eq!(cut, 0, "turns that were cut off and never went on");
    let marks: i64 = d
        .sql("SELECT count(*) FROM sessions WHERE status='open' AND (mark_reason IS NOT NULL OR cut_turn IS NOT NULL)");
    assert_eq!(marks, 0, "marks that nothing has cleared");
}

/// Ids of messages as the database has them: `key id`.
pub fn kept(d: &Daemon) -> Vec<String> {
    let db = d.db();
    let mut statement = db.prepare("SELECT key || ' ' || client_id FROM messages WHERE client_id IS NOT NULL").unwrap();
    statement.query_map([], |r| r.get(0)).unwrap().map(Result::unwrap).collect()
}

/// Every id is there once, and no other.
#[track_caller]
pub fn check_kept(d: &Daemon, sent: &[String]) {
    let kept = kept(d);
    let set: HashSet<&String> = kept.iter().collect();
    assert_eq!(set.len(), kept.len(), "a message is there twice");
    let lost: Vec<&String> = sent.iter().filter(|id| !set.contains(id)).collect();
    assert!(lost.is_empty(), "accepted and lost: {lost:?}");
}
