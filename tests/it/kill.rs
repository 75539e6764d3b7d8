//! SIGKILL at any instant: what was accepted is kept, and the next boot writes what the dead one could not.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};

use serde_json::{Value, json};

use crate::daemon::{Daemon, PATIENCE, fake, not_kept, open_pid, wait_pidfd};

/// Checklist 7, 13, 51. A turn that is cut off by a death is interrupted by the next boot, its activation ended as a crash, and goes on once.
#[test]
fn a_turn_survives_a_death() {
    let mut d = Daemon::new().config(&not_kept(&[], "")).start();
    let gate = d.gate("gate");
    let mut events = d.events("local:a");
    let running = d.post_id("local:a", &format!("say begun; wait-file {}; say done", gate.path.display()), "one");
    events.until("text");
    let before = events.seen.last().unwrap().id;
    d.kill9();
    d.check(false);
    d.boot();
    let mut events = d.events("local:a");
    let (outcome, _) = events.end_of(&running);
    assert_eq!(outcome, "interrupted");
    let end = events.until("session_end");
    assert_eq!((end.text("reason"), end.text("actor"), &end.data["final"]), ("crash", "crash", &json!(false)));
    assert!(end.id > before, "numbers go on rising");
    let start = events.until("session_start");
    assert_eq!((start.text("reason"), &start.data["epoch"]), ("resume", &json!(2)));
    let turn = events.until("turn_start");
    assert_eq!(turn.data["continues"], running["turn_id"]);
    assert_eq!(events.end_of(&json!({ "turn_id": turn.text("turn_id") })).0, "completed");
    let again = d.post_id("local:a", &format!("say begun; wait-file {}; say done", gate.path.display()), "one");
    assert_eq!((&again["duplicate"], &again["continued_by"]), (&json!(true), &json!(turn.text("turn_id"))));
    let said = d.said("local:a");
    assert!(said[2].contains("crashed") && said[2].contains("> say begun"), "{said:?}");
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM turns WHERE state='completed'"), 1);
}

/// Checklist 14. A session that had finished before the death gets no turn of its own, and no mark.
#[test]
fn a_finished_session_is_left_alone() {
    let mut d = Daemon::new().start();
    d.send("local:a", "x");
    d.kill9();
    d.boot();
    let shown = d.show("local:a");
    assert_eq!(
        (&shown["state"], &shown["resume_pending"], &shown["unclean"]),
        (&json!("parked"), &Value::Null, &json!(0))
    );
    assert_eq!(d.past("local:a").iter().filter(|e| e.event == "session_end").count(), 1);
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM turns"), 1);
    assert_eq!(d.sql::<String>("SELECT end_reason FROM activations"), "crash");
}

/// Checklist 53. What a dead boot's agent left running is gone before its session runs again.
#[test]
fn agents_of_a_dead_boot_are_ended_first() {
    let mut d = Daemon::new().config(&not_kept(&["--ignore-term", "--ignore-eof"], "")).start();
    let mut events = d.events("local:a");
    d.post("local:a", "pid; grandchild; hang-hard");
    let text = events.until_where("both", |e| e.event == "text" && e.text("text").contains("grandchild"));
    let told: String = events.seen.iter().filter(|e| e.event == "text").map(|e| e.text("text")).collect();
    drop(text);
    let numbers: Vec<u32> = told.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
    assert_eq!(numbers.len(), 2, "{told:?}");
    let old: Vec<_> = numbers.iter().filter_map(|pid| open_pid(*pid)).collect();
    assert_eq!(old.len(), 2, "both live");
    d.kill9();
    d.boot();
    let mut events = d.events("local:a");
    events.until_where("the continuation", |e| e.event == "turn_start" && e.data["continues"].is_string());
    for fd in &old {
        assert!(wait_pidfd(fd, std::time::Duration::ZERO), "it still ran when the session went on");
    }
    d.act("local:a", "cancel");
    events.until_where("its end", |e| e.event == "turn_end" && e.text("outcome") != "interrupted");
    assert_eq!(d.stop(), 0);
}

/// A session that was running at three deaths in a row is suspended, told, and brought back by resume; others go on.
#[test]
fn a_stuck_session_is_suspended() {
    let config = not_kept(&[], "") + "[agent.echo]\nkind = \"echo\"\n[[route]]\nmatch = \"echo:*\"\nagent = \"echo\"\n";
    let mut d = Daemon::new().config(&config).start();
    let (gate, _events, first) = d.waiting("local:a", "");
    d.kill9();
    for round in 0..2 {
        d.write_config(&not_kept(&["--never-init"], ""));
        d.boot();
        // Its continuation would wait for its pace; a message makes it go on now, and cuts off again.
        d.write_config(&config);
        d.kill9();
        d.boot();
        let mut events = d.events("local:a");
        let next = d.post("local:a", &format!("say again {round}; wait-file {}", gate.path.display()));
        events.until_where("the next turn", |e| e.event == "text" && e.data["turn_id"] == next["turn_id"]);
        d.kill9();
    }
    d.boot();
    let old = d.show(first["session_id"].as_str().unwrap());
    assert_eq!((&old["state"], &old["unclean"]), (&json!("suspended"), &json!(3)));
    let notices: Vec<_> = d.past("local:a").into_iter().filter(|e| e.event == "notice").collect();
    assert!(!notices.is_empty(), "it is told");
    assert_eq!(d.status()["sessions"]["suspended"], 1);
    let turn = d.turn("local:a", "say fresh");
    assert_eq!((turn.text().as_str(), turn.accepted["notice"]["code"].is_string()), ("fresh", true));
    assert_ne!(turn.session(), old["id"]);
    assert_eq!(d.send("echo:b", "x"), "echo: x");
    let back = d.act(old["id"].as_str().unwrap(), "resume");
    assert_eq!((&back["id"], &back["unclean"]), (&old["id"], &json!(0)));
    assert_eq!(d.stop(), 0);
}

/// Thirty deaths under load, each right after some 202s: every acknowledged message has exactly one outcome and one answer.
#[test]
fn thirty_deaths_under_load() {
    const KILLS: usize = 30;
    const CLIENTS: usize = 4;
    let config = "[sessions]\nstuck_threshold = 0\n[agent.default]\nkind = \"echo\"\ndelay = \"2ms\"\n";
    let mut d = Daemon::new().config(config);
    d.boot();
    let (acked, done) = (crossbeam_channel::unbounded::<(String, String, Value)>(), AtomicBool::new(false));
    // Clients that met a death wait for the next boot.
    let up = (Mutex::new(1usize), Condvar::new());
    let client = d.client();
    let mut kept: BTreeMap<(String, String), Value> = BTreeMap::new();
    std::thread::scope(|scope| {
        for c in 0..CLIENTS {
            let (send, done, up, client) = (acked.0.clone(), &done, &up, client.clone());
            scope.spawn(move || {
                let key = format!("local:k{c}");
                for n in 0.. {
                    let id = format!("{c}-{n}");
                    let body = json!({ "text": id, "id": id });
                    loop {
                        if done.load(Ordering::SeqCst) {
                            return;
                        }
                        let seen = *up.0.lock().unwrap();
                        let path = ostler::client::session_path(&key, "/messages");
                        let said = client.stream(&path, ureq::http::Method::POST, Some(&body), None);
                        let mut said = said.into_iter().flatten().map_while(Result::ok);
                        if let Some(accepted) = said.next() {
                            send.send((key.clone(), id.clone(), accepted.data)).unwrap();
                            // Until its turn ends or the daemon does.
                            said.for_each(drop);
                            break;
                        }
                        // Not acknowledged: again, with the next boot or when all is over.
                        let boots = up.0.lock().unwrap();
                        drop(up.1.wait_timeout_while(boots, PATIENCE, |b| *b == seen).unwrap());
                    }
                }
            });
        }
        for kill in 0..KILLS {
            for _ in 0..1 + (kill * 7) % 11 {
                let (key, id, answer) = acked.1.recv_timeout(PATIENCE).unwrap();
                kept.insert((key, id), answer);
            }
            d.kill9();
            d.check(false);
            d.boot();
            *up.0.lock().unwrap() += 1;
            up.1.notify_all();
        }
        done.store(true, Ordering::SeqCst);
        *up.0.lock().unwrap() += 1;
        up.1.notify_all();
    });
    kept.extend(acked.1.try_iter().map(|(key, id, answer)| ((key, id), answer)));
    // One more message on each key lets what was cut off go on at once, and comes last.
    for c in 0..CLIENTS {
        let last = d.post(&format!("local:k{c}"), "last");
        assert_eq!(d.events(&format!("local:k{c}")).end_of(&last).0, "completed");
    }
    for ((key, id), answer) in &kept {
        let again = d.post_id(key, id, id);
        assert_eq!((&again["duplicate"], &again["message_id"]), (&json!(true), &answer["message_id"]), "{key} {id}");
    }
    assert_eq!(d.stop(), 0);
    let db = d.db();
    let mut outcome = db
        .prepare(
            "WITH RECURSIVE chain(tid) AS (
               SELECT tid FROM messages WHERE id=?1 UNION ALL SELECT t.tid FROM chain JOIN turns t ON t.continues=chain.tid)
             SELECT group_concat(t.state) FROM chain JOIN turns t ON t.tid=chain.tid WHERE t.state<>'interrupted'",
        )
        .unwrap();
    for ((key, id), answer) in &kept {
        let message = answer["message_id"].as_str().unwrap();
        let states: Option<String> = outcome.query_row([message], |r| r.get(0)).unwrap();
        assert_eq!(states.as_deref(), Some("completed"), "{key} {id}: one outcome");
    }
    let answers: i64 = db
        .query_row(
            "SELECT count(*) FROM (SELECT n.sid, n.text FROM entries n JOIN turns t ON t.tid=n.tid
             WHERE n.role='agent' AND t.state='completed' AND n.text<>'echo: last' GROUP BY 1, 2 HAVING count(*)>1)",
            [],
            |r| r.get(0),
        )
        .unwrap();
    assert_eq!(answers, 0, "no message has two answers");
    assert!(kept.len() >= 100, "{}", kept.len());
}

/// A death in a stop loses nothing: what the stop had noted is completed by the next boot.
#[test]
fn a_death_in_a_stop() {
    let mut d = Daemon::new().config(&fake(&[], "")).start();
    let (_gate, _events, running) = d.waiting("local:a", "");
    d.send("local:idle", "say x");
    d.sigterm();
    d.log.find(0, "marked", |l| l.contains("are marked"));
    let late = d.post("local:a", "say late");
    assert_eq!(late["deferred"], true);
    d.kill9();
    d.boot();
    let mut events = d.events("local:a");
    assert_eq!(events.end_of(&running).0, "interrupted");
    assert_eq!(events.end_of(&late).0, "completed");
    let end = events.seen.iter().find(|e| e.event == "session_end").unwrap();
    assert_eq!(end.text("reason"), "shutdown", "the reason of the stop that was cut off");
    // A stop had been noted: the death does not count against it.
    assert_eq!(d.show("local:a")["unclean"], 0);
    assert_eq!(d.stop(), 0);
}
