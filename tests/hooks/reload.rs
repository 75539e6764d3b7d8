//! A thousand reloads while turns run: no event is lost, none is doubled, and nothing piles up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use ostler::client::Client;

use super::*;

const ROUNDS: usize = 1000;
/// From here on memory is compared with what it was.
const WARM: usize = 300;
/// And so many when nobody talks any more.
const QUIET: usize = 500;

const SCRIPT: &str = r#"
local junk = {} for i = 1, 2000 do junk[i] = ("x"):rep(50) .. i end
local function note(...)
  local file <close> = assert(io.open(ostler.config.out, "a"))
  assert(file:write(table.concat({ ... }, " ") .. "\n"))
end
ostler.on("session_start", function(ev) note("start", ev.session_id, ev.epoch) end)
ostler.on("session_end", function(ev) note("end", ev.session_id, ev.epoch) end, { name = "first" })
ostler.on("session_end", function(ev) note("end2", ev.session_id, ev.epoch) end, { name = "second" })
ostler.on("session_closed", function(ev) note("closed", ev.session_id) end)
ostler.on("turn_end", function(ev) note("turn", ev.turn_id, ev.outcome) end)
ostler.on("message", function(ev) return { text = ev.text .. "!" } end)
"#;

/// Talks until told to stop, in session after session; gives the turns that it had.
fn talk(client: &Client, key: &str, sessions: bool, over: &AtomicBool) -> Vec<String> {
    let mut turns = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let answered = say(client, key, "hello");
        assert_eq!((answered.outcome.as_str(), answered.text.as_str()), ("completed", "echo: hello!"), "{key}");
        turns.push(answered.turn_id);
        if sessions && turns.len().is_multiple_of(3) {
            client.post(&session_path(key, "/reset"), None).unwrap();
        }
    }
    turns
}

/// Resident memory of a process, in bytes.
fn resident(pid: u32) -> usize {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * rustix::param::page_size()
}

/// Every session there is: its id, how many activations it had, and whether it is over.
fn sessions(daemon: &Daemon) -> Vec<(String, i64, bool)> {
    let mut found = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/v1/sessions?state=ended,live,parked,suspended&limit=500{cursor}");
        let page = daemon.get(&path);
        for s in page["sessions"].as_array().unwrap() {
            let (id, epoch) = (s["id"].as_str().unwrap().to_owned(), s["epoch"].as_i64().unwrap());
            found.push((id, epoch, s["state"] == "ended"));
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={}", ostler::client::segment(next)),
            None => return found,
        }
    }
}

#[test]
fn a_thousand_reloads_under_load_lose_nothing_double_nothing_and_leak_nothing() {
    let mut daemon = Daemon::start(
        SCRIPT,
        "[agent.default]\nkind = \"echo\"\n[agent.slow]\nkind = \"echo\"\ndelay = \"500ms\"\n\
         [[route]]\nmatch = \"slow:*\"\nagent = \"slow\"\n",
    );
    let (pid, over) = (daemon.child.id(), AtomicBool::new(false));
    let (mut warm, mut threads) = (0, 0);
    let mut turns = Vec::new();
    std::thread::scope(|scope| {
        let talkers: Vec<_> = [("local:a", true), ("local:b", true), ("slow:a", false), ("slow:b", false)]
            .into_iter()
            .map(|(key, resets)| {
                let (client, over) = (Client::unix(&daemon.at("sock")), &over);
                scope.spawn(move || talk(&client, key, resets, over))
            })
            .collect();
        let end = Ends(&over);
        for round in 0..ROUNDS {
            if round % 100 == 50 {
                daemon.script("ostler.on('session_end', function(ev)");
                let refused = daemon.client.post("/v1/reload", None).unwrap_err();
                assert_eq!(refused.status, 422, "{refused}");
                assert!(refused.message.contains("a.lua:1: "), "{refused}");
            }
            daemon.script(&format!("-- {round}\n{SCRIPT}"));
            daemon.post("/v1/reload", None);
            if round == WARM {
                warm = resident(pid);
                threads = daemon.get("/v1/status")["threads"].as_i64().unwrap();
            }
        }
        drop(end);
        for talker in talkers {
            turns.extend(talker.join().unwrap());
        }
    });
    let grown = resident(pid).saturating_sub(warm);
    let more = daemon.get("/v1/status")["threads"].as_i64().unwrap() - threads;
    // With nobody talking nothing at all stays behind: what talking leaves (pages of the database) is not to be seen here.
    let quiet = |rounds: usize| {
        for _ in 0..rounds {
            daemon.post("/v1/reload", None);
        }
        resident(pid)
    };
    let before = quiet(100);
    let left = quiet(QUIET).saturating_sub(before);
    let sessions = sessions(&daemon);
    println!(
        "{} turns, {} sessions; {} KiB and {more} threads more after {} reloads under load, {} KiB after {QUIET} without",
        turns.len(),
        sessions.len(),
        grown / 1024,
        ROUNDS - WARM,
        left / 1024
    );
    assert!(turns.len() > 200, "only {} turns: that is no load", turns.len());
    assert_eq!(daemon.get("/v1/hooks/failed")["events"], json!([]));
    let stopped = daemon.stop();
    assert_eq!(stopped.code(), Some(0), "{}", daemon.stderr());

    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for line in daemon.log() {
        *counts.entry(line).or_default() += 1;
    }
    let twice: Vec<_> = counts.iter().filter(|(_, n)| **n > 1).collect();
    assert!(twice.is_empty(), "delivered more than once: {twice:?}");
    let mut wanted: BTreeSet<String> = turns.iter().map(|id| format!("turn {id} completed")).collect();
    for (id, epochs, is_over) in &sessions {
        for epoch in 1..=*epochs {
            wanted.extend(["start", "end", "end2"].map(|what| format!("{what} {id} {epoch}")));
        }
        wanted.extend(is_over.then(|| format!("closed {id}")));
    }
    let told: BTreeSet<String> = counts.into_keys().collect();
    let lost: Vec<_> = wanted.difference(&told).collect();
    let strange: Vec<_> = told.difference(&wanted).collect();
    assert!(lost.is_empty() && strange.is_empty(), "lost: {lost:?}, made up: {strange:?}");
    // 700 more sets of three states went by; one state is a third of a MiB.
    assert!(grown < 8 << 20, "{} KiB more after {} reloads", grown / 1024, ROUNDS - WARM);
    assert!(left < 2 << 20, "{} KiB more after {QUIET} reloads", left / 1024);
    assert!(more <= 2, "{more} threads more");
}

/// Tells the talkers to stop, also when the test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
