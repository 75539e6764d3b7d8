//! Event streams: durable numbers, from any of them on, without a gap.

use serde_json::json;
use ureq::http::Method;

use crate::daemon::{Daemon, Events, PATIENCE, fake};
use ostler::client::session_path;

fn ids(events: &[ostler::client::SseEvent]) -> Vec<u64> {
    events.iter().filter_map(|e| e.id).collect()
}

#[track_caller]
fn assert_rising(ids: &[u64]) {
    assert!(ids.windows(2).all(|w| w[0] < w[1]), "{ids:?}");
}

/// Numbers rise over resets, and a stream from any number on is the rest of the whole.
#[test]
fn numbers_rise_over_resets() {
    let mut d = Daemon::new().start();
    for n in 0..3 {
        d.send("local:a", &format!("{n}"));
        d.act("local:a", "reset");
        d.send("local:b", "between");
    }
    let all = d.past("local:a");
    assert_rising(&ids(&all));
    for (n, event) in all.iter().enumerate() {
        let path = session_path("local:a", &format!("/events?follow=0&after={}", event.id.unwrap()));
        assert_eq!(Events::open(&d.client(), &path, None).rest(), all[n + 1..]);
    }
    assert!(
        all.iter().all(|e| e.text("key") == "local:a" && e.data["at"].is_string() && e.data["session_id"].is_string())
    );
    let starts = all.iter().filter(|e| e.event == "session_start").count();
    assert_eq!((starts, all.iter().filter(|e| e.event == "session_closed").count()), (3, 3));
    assert_eq!(d.stop(), 0);
}

/// `Last-Event-ID` wins over `after`.
#[test]
fn the_header_wins() {
    let d = Daemon::new().start();
    d.send("local:a", "x");
    let all = d.past("local:a");
    let from = all[1].id.unwrap();
    let path = session_path("local:a", "/events?follow=0&after=0");
    assert_eq!(Events::open(&d.client(), &path, Some(from)).rest(), all[2..]);
    for bad in ["after=-1", "after=x"] {
        let path = session_path("local:a", &format!("/events?{bad}"));
        let e = d.client().stream(&path, Method::GET, None, None).unwrap_err();
        assert_eq!((e.status, e.code.as_str()), (400, "invalid_parameter"), "{bad}");
    }
}

/// Without a number: from now on. Beyond what exists: told by `events_reset`, and then from now on.
#[test]
fn from_now_on() {
    let d = Daemon::new().start();
    d.send("local:a", "old");
    let mut now = Events::open(&d.client(), &session_path("local:a", "/events"), None);
    let mut beyond = Events::open(&d.client(), &session_path("local:a", "/events?after=999999"), None);
    d.send("local:a", "new");
    for stream in [&mut now, &mut beyond] {
        stream.until("turn_end");
        assert!(!stream.told().contains("old"), "{}", stream.told());
        assert!(stream.told().contains("echo: new"));
    }
    assert_eq!((beyond.seen[0].event.as_str(), beyond.seen[0].text("code")), ("notice", "events_reset"));
    assert_eq!(now.seen[0].event, "turn_start");
}

/// Older than what is kept: told by `events_pruned`, and then what is kept.
#[test]
fn pruned_events_are_told() {
    let mut d = Daemon::new().start();
    d.send("local:a", "old");
    assert_eq!(d.stop(), 0);
    let db = rusqlite::Connection::open(d.path("state/ostler.db")).unwrap();
    let cut: i64 = db.query_row("SELECT max(seq)-2 FROM events", [], |r| r.get(0)).unwrap();
    db.execute_batch(&format!("DELETE FROM events WHERE seq<={cut}; INSERT INTO meta VALUES ('events_pruned', {cut})"))
        .unwrap();
    drop(db);
    d.boot();
    let mut events = d.events("local:a");
    let first = events.next().unwrap();
    assert_eq!((first.event.as_str(), first.text("code"), first.id), ("notice", "events_pruned", None));
    let next = events.next().unwrap();
    assert_eq!(next.id, Some(cut as u64 + 1));
}

/// Several streams, of a key, of an id and of all, each whole and in order; those of a key see nothing of others.
#[test]
fn several_streams() {
    let d = Daemon::new().start();
    let first = d.turn("local:a", "0").session().to_owned();
    let mut of_key = [d.events("local:a"), d.events("local:a")];
    let mut all = Events::open(&d.client(), "/v1/events?after=0", None);
    let mut of_id = Events::open(&d.client(), &session_path(&first, "/events?after=0"), None);
    std::thread::scope(|scope| {
        for key in ["local:a", "local:b"] {
            let d = &d;
            scope.spawn(move || (0..20).for_each(|n| drop(d.send(key, &format!("{n}")))));
        }
    });
    d.act("local:a", "reset");
    d.send("local:a", "last");
    let last = |e: &ostler::client::SseEvent| e.event == "text" && e.text("text") == "echo: last";
    for stream in &mut of_key {
        stream.until_where("the last", last);
        assert!(stream.seen.iter().all(|e| e.text("key") == "local:a"));
        assert_rising(&ids(&stream.seen));
    }
    assert_eq!(of_key[0].seen, of_key[1].seen);
    all.until_where("the last", last);
    assert_rising(&ids(&all.seen));
    let own: Vec<_> = all.seen.iter().filter(|e| e.text("key") == "local:a").cloned().collect();
    assert_eq!(own, of_key[0].seen);
    of_id.until("session_closed");
    assert!(of_id.seen.iter().all(|e| e.text("session_id") == first));
}

/// Previews repeat in the durable text, have no number, and are there only for who asks.
#[test]
fn previews() {
    let mut d = Daemon::new().config(&fake(&[], "")).start();
    let mut plain = d.events("local:a");
    let mut with = Events::open(&d.client(), &session_path("local:a", "/events?after=0&deltas=1"), None);
    let turn = d.turn("local:a", "stream 20 20");
    with.until("turn_end");
    plain.until("turn_end");
    let deltas: Vec<_> = with.seen.iter().filter(|e| e.event == "delta").collect();
    assert!(!deltas.is_empty());
    let mut joined = String::new();
    for delta in &deltas {
        assert_eq!((delta.id, delta.text("turn_id"), delta.text("kind")), (None, turn.id(), "text"));
        assert_eq!(delta.data["offset"], joined.len());
        joined.push_str(delta.text("text"));
    }
    assert_eq!(joined, turn.text());
    assert!(plain.seen.iter().all(|e| e.event != "delta"));
    assert_eq!(d.stop(), 0);
}

/// A stream that goes on after a restart of the daemon, by the last number seen, has no gap and nothing twice.
#[test]
fn a_stream_goes_on_over_restarts() {
    let mut d = Daemon::new().start();
    let mut seen = Vec::new();
    for round in 0..4 {
        let mut events = match seen.last() {
            None => d.events("local:a"),
            Some(last) => Events::open(&d.client(), &session_path("local:a", "/events"), Some(*last)),
        };
        let turn = d.turn("local:a", &format!("{round}"));
        events.until_where("this turn's end", |e| e.event == "turn_end" && e.text("turn_id") == turn.id());
        if round % 2 == 0 {
            assert_eq!(d.stop(), 0);
            let rest = events.rest();
            seen.extend(ids(&rest));
        } else {
            d.kill9();
            seen.extend(ids(&events.rest()));
        }
        d.boot();
    }
    let all = ids(&d.past("local:a"));
    assert_eq!(all[..seen.len()], seen);
    assert_rising(&seen);
    assert_eq!(d.stop(), 0);
}

/// A client that goes away in the middle of its turn cancels nothing.
#[test]
fn a_client_that_goes_cancels_nothing() {
    let mut d = Daemon::new().config(&fake(&[], "")).start();
    let mut gate = d.gate("gate");
    let mut events = d.events("local:a");
    let body = json!({ "text": format!("say begun; wait-file {}; say done", gate.path.display()) });
    let until = Some(std::time::Instant::now() + PATIENCE);
    let mut follower =
        d.client().stream_until(&session_path("local:a", "/messages"), Method::POST, Some(&body), None, until).unwrap();
    assert_eq!(follower.next().unwrap().unwrap().event, "accepted");
    events.until("text");
    drop(follower);
    gate.open();
    assert_eq!(events.until("turn_end").text("outcome"), "completed");
    assert_eq!(d.stop(), 0);
}

/// Who follows a turn gets previews of that one alone, whatever another turn says: its id, for one.
#[test]
fn a_preview_of_another_turn_is_not_sent() {
    let says = "[agent.default]\nkind = \"exec\"\ncommand = [\"/bin/sh\", \"-c\", \"read -r m; if [ $m = quote ]; then cat @DIR@/gate; else echo $m; fi\"]\n";
    let mut d = Daemon::new().config(says).start();
    let gate = d.gate("gate");
    let mut events = d.events("local:a");
    d.post("local:a", "quote");
    events.until("turn_start");
    let body = json!({ "text": "mine" });
    let until = Some(std::time::Instant::now() + PATIENCE);
    let path = session_path("local:a", "/messages?deltas=1");
    let mut follower = d.client().stream_until(&path, Method::POST, Some(&body), None, until).unwrap();
    let accepted = follower.next().unwrap().unwrap();
    let id = accepted.text("turn_id").to_owned();
    std::fs::write(&gate.path, format!("not {id}\n")).unwrap();
    let seen: Vec<_> = follower.map(|e| e.unwrap()).collect();
    assert_eq!(seen.last().unwrap().event, "turn_end");
    let strange: Vec<_> = seen.iter().filter(|e| e.text("turn_id") != id).collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert!(seen.iter().any(|e| e.event == "delta" && e.text("text").contains("mine")), "{seen:?}");
    assert_eq!(d.stop(), 0);
}
