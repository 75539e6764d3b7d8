//! One session's rows are damaged while the daemon is down: it starts, serves everybody else, and says which session it is.

use crate::daemon::{Daemon, not_kept};

#[test]
fn a_damaged_session_keeps_nobody_from_being_served() {
    let mut d = Daemon::new().config(&not_kept(&[], "")).start();
    let gate = d.gate("gate");
    let text = format!("say begun; wait-file {}; say done", gate.path.display());
    let mut running = Vec::new();
    for key in ["local:bad", "local:good"] {
        let mut events = d.events(key);
        running.push(d.post(key, &text));
        events.until("text");
    }
    d.kill9();
    let db = rusqlite::Connection::open(d.path("state/ostler.db")).unwrap();
    let id: String = d.sql("SELECT id FROM sessions WHERE key='local:bad'");
    db.execute("UPDATE events SET data='{' WHERE session_id=?1 AND kind='text'", [&id]).unwrap();
    db.execute("UPDATE sessions SET agent_session=CAST(x'ff41' AS TEXT) WHERE id=?1", [&id]).unwrap();
    drop(db);
    let doctor = |d: &Daemon| {
        let path = |name: &str| d.path(name).to_str().unwrap().to_owned();
        let ran = d.cli(&["doctor", "--config", &path("ostler.toml"), "--state-dir", &path("state")]);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.out.contains("local:bad") && ran.out.contains(&id) && !ran.out.contains("local:good"), "{ran:?}");
    };
    doctor(&d);
    d.boot();
    // The good one is recovered, and goes on; a new one is served.
    let mut events = d.events("local:good");
    assert_eq!(events.end_of(&running[1]).0, "interrupted");
    let start = events.until("turn_start");
    assert_eq!(start.data["continues"], running[1]["turn_id"]);
    assert_eq!(events.end_of(&serde_json::json!({ "turn_id": start.text("turn_id") })).0, "completed");
    assert_eq!(d.send("local:new", "say hello"), "hello");
    // The bad one has its end, too, without what could not be read of it; who cannot be served is told.
    let past = d.past("local:bad");
    assert!(past.iter().any(|e| e.event == "notice" && e.text("code") == "answer_lost"), "{past:?}");
    assert!(past.iter().any(|e| e.event == "turn_end" && e.text("outcome") == "interrupted"), "{past:?}");
    assert!(past.iter().any(|e| e.event == "session_end" && e.text("reason") == "crash"), "{past:?}");
    assert!(d.try_post("local:bad", "say more", None).is_err());
    let line = d.wait_log("the session's rows cannot be used");
    assert!(line.contains("local:bad"), "{line}");
    doctor(&d);
    let listed = d.cli(&["sessions"]);
    assert!(
        listed.code == 0 && ["local:bad", "local:good", "local:new"].iter().all(|k| listed.out.contains(k)),
        "{listed:?}"
    );
    assert!(d.show("local:bad")["damaged"].is_string());
    // A restart in order ends as one, and the next boot does, too.
    d.sigterm();
    assert_eq!(d.ended().code(), Some(0));
    d.boot();
    assert_eq!(d.send("local:good", "say again"), "again");
    // Put away, it is out of the way: its key is served by a new session.
    assert_eq!(d.cli(&["delete", "local:bad"]).code, 0);
    assert_eq!(d.send("local:bad", "say new"), "new");
    d.kill9();
}
