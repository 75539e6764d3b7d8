//! `delete --files`: the directory goes with its session, and with nobody else's.

use ostler::client::session_path;
use serde_json::Value;
use ureq::http::Method;

use crate::daemon::{Daemon, PATIENCE};

/// Adds a file to its directory, and says what is there.
const KEEPS: &str = "[agent.default]\nkind = \"exec\"\ncommand = [\"/bin/sh\", \"-c\", \"read -r m; echo $m > $m; echo $(ls) in $(pwd)\"]\n";

fn delete(d: &Daemon, key: &str, query: &str) -> Result<Value, (u16, String)> {
    let answer = d.client().request(Method::DELETE, &session_path(key, query), None, PATIENCE);
    answer.map(|r| r.body).map_err(|e| (e.status, e.code))
}

/// What the agent said: the files, and where they are.
fn said(d: &Daemon, key: &str, text: &str) -> (String, std::path::PathBuf) {
    let said = d.send(key, text);
    let (files, dir) = said.trim().split_once(" in ").unwrap();
    (files.to_owned(), dir.into())
}

fn wait_removed(d: &Daemon, dir: &std::path::Path) {
    d.wait_log(&format!("{}: removed", dir.display()));
    assert!(!dir.exists());
}

/// A session that is over does not take the files of the one that goes on under its key.
#[test]
fn files_that_another_session_works_with_stay() {
    let mut d = Daemon::new().config(KEEPS).start();
    let (_, dir) = said(&d, "local:a", "old");
    let old = d.show("local:a")["id"].as_str().unwrap().to_owned();
    d.act("local:a", "reset");
    assert_eq!(said(&d, "local:a", "new"), ("new old".to_owned(), dir.clone()));
    assert_eq!(delete(&d, &old, "?files=1"), Err((409, "conflict".to_owned())));
    assert_eq!(d.show(&old)["state"], "ended", "nothing was deleted");
    assert_eq!(said(&d, "local:a", "more").0, "more new old");
    // Also one that is parked, or suspended.
    d.restart();
    assert_eq!(delete(&d, &old, "?files=1"), Err((409, "conflict".to_owned())));
    d.act("local:a", "suspend");
    assert_eq!(delete(&d, &old, "?files=1"), Err((409, "conflict".to_owned())));
    assert_eq!(delete(&d, &old, "").unwrap()["id"], old.as_str(), "without its files it goes");
    // With all of its key there is nobody left.
    delete(&d, "local:a", "?all=1&files=1").unwrap();
    wait_removed(&d, &dir);
    assert_eq!(d.stop(), 0);
}

/// Nor those of one that works below its directory.
#[test]
fn files_around_another_sessions_directory_stay() {
    let mut d = Daemon::new().config(KEEPS).start();
    let (_, dir) = said(&d, "local:a", "old");
    let old = d.show("local:a")["id"].as_str().unwrap().to_owned();
    d.write_config(&format!("{KEEPS}cwd = \"work/{{slug}}/{{id}}\"\n"));
    d.client().post("/v1/reload", None).unwrap();
    d.act("local:a", "reset");
    let (_, inner) = said(&d, "local:a", "new");
    assert!(inner.starts_with(&dir) && inner != dir, "{}", inner.display());
    assert_eq!(delete(&d, &old, "?files=1"), Err((409, "conflict".to_owned())));
    assert_eq!(said(&d, "local:a", "more").1, inner);
    assert_eq!(d.stop(), 0);
}

/// An agent that writes until it is ended delays the removal, and is no error.
#[test]
fn files_go_when_their_agent_has_ended() {
    let writes = "[agent.default]\nkind = \"exec\"\ncommand = [\"/bin/sh\", \"-c\", \"pwd; trap '' TERM; while :; do n=$((n+1)); mkdir -p d$n; echo x > d$n/f; done\"]\n";
    let mut d = Daemon::new().config(writes).start();
    let mut events = d.events("local:a");
    d.post("local:a", "x");
    let dir = std::path::PathBuf::from(events.until("text").text("text").trim());
    assert!(dir.is_dir());
    delete(&d, "local:a", "?files=1").unwrap();
    wait_removed(&d, &dir);
    assert_eq!(d.stop(), 0);
}

/// What was asked for is done though the daemon dies before: the next boot removes it once the ends are settled.
#[test]
fn files_go_though_the_daemon_died() {
    let hook = "ostler.on('session_end', function() ostler.exec{ argv = { '/bin/sh', '-c', ': < @DIR@/gate' } } end)\n";
    let config = format!("{KEEPS}[hooks]\nallow = [\"exec\"]\ntimeout = \"25s\"\n");
    let mut d = Daemon::new().config(&config).hook("a.lua", hook);
    let mut gate = d.gate("gate");
    d.boot();
    let (_, dir) = said(&d, "local:a", "x");
    delete(&d, "local:a", "?files=1").unwrap();
    assert!(dir.is_dir(), "its end is not settled");
    d.kill9();
    d.end_leftovers();
    gate.open();
    d.boot();
    wait_removed(&d, &dir);
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM meta WHERE name LIKE 'files:%'"), 0);
}

/// A directory that all keys share is nobody's to remove.
#[test]
fn a_shared_directory_stays() {
    let mut d = Daemon::new().config(&format!("{KEEPS}cwd = \"@DIR@/project\"\n")).start();
    let (_, dir) = said(&d, "local:a", "x");
    delete(&d, "local:a", "?files=1").unwrap();
    d.wait_log("is not the key's own");
    assert!(dir.join("x").exists());
    assert_eq!(d.stop(), 0);
}
