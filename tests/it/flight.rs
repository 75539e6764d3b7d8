//! What is in flight has an owner, and the order of a stop is the machine's.

use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use ureq::http::Method;

use crate::daemon::{Daemon, Gate, PATIENCE, Proc, fake};

/// A configuration that is a pipe from now on: whoever reads it is held up there until somebody writes it.
fn pipe_as_config(d: &Daemon) -> Gate {
    std::fs::remove_file(d.path("ostler.toml")).unwrap();
    d.gate("ostler.toml")
}

/// Waits until somebody reads the pipe; what is written to it is what they read.
fn read_by_somebody(gate: &Gate) -> std::fs::File {
    std::fs::File::options().write(true).open(&gate.path).unwrap()
}

/// Checklist 38. Whoever asks for a reload while one reads the old file is answered by one that has read the new one.
#[test]
fn a_reload_under_a_reload_is_another_one() {
    let mut d = Daemon::new().start();
    let pipe = pipe_as_config(&d);
    std::thread::scope(|scope| {
        let reload = || d.client().request(Method::POST, "/v1/reload", None, PATIENCE).unwrap().body;
        let first = scope.spawn(reload);
        let mut old = read_by_somebody(&pipe);
        std::fs::remove_file(&pipe.path).unwrap();
        d.write_config("[sessions]\nqueue_limit = 7\n");
        let second = scope.spawn(reload);
        // It is asked by now, in all likelihood; what it is promised holds either way.
        for _ in 0..20 {
            d.status();
        }
        old.write_all(b"[sessions]\nqueue_limit = 3\n").unwrap();
        drop(old);
        let (first, second) = (first.join().unwrap(), second.join().unwrap());
        assert_eq!(first["changed"][0], "sessions.queue_limit", "{first}");
        assert_eq!(second["changed"][0], "sessions.queue_limit", "the file that stood there when it asked: {second}");
    });
    let third = d.client().post("/v1/reload", None).unwrap();
    assert_eq!(third["changed"].as_array().unwrap().len(), 0, "{third}");
    assert_eq!(d.stop(), 0);
}

/// Checklist 18, 38. A stop overtakes a reload: whoever asked is told at once, and nothing is swapped in the midst of the
/// stop, however late the reload comes.
#[test]
fn a_reload_that_a_stop_overtakes_changes_nothing() {
    let told = |word: &str| format!("ostler.on('stopped', function() ostler.log.info('STOPPED {word}') end)\n");
    let mut d = Daemon::new().config(&fake(&[], "")).hook("a.lua", &told("old")).start();
    let (mut gate, mut events, running) = d.waiting("local:a", "");
    let pipe = pipe_as_config(&d);
    d.write_hook("a.lua", &told("new"));
    let mut late = std::thread::scope(|scope| {
        let asked = scope.spawn(|| d.refusal(Method::POST, "/v1/reload", None));
        let late = read_by_somebody(&pipe);
        d.sigterm();
        assert_eq!(asked.join().unwrap(), (503, "stopping".to_owned()));
        late
    });
    let from = d.log.count();
    late.write_all(b"").unwrap();
    drop(late);
    d.log.find(from, "a refusal", |l| l.contains("reload refused"));
    gate.open();
    assert_eq!(events.end_of(&running).0, "completed");
    assert_eq!(d.exit_code(), 0);
    let notes = d.notes.all();
    let stopping = notes.iter().position(|l| l == "STOPPING=1").unwrap();
    assert!(!notes[stopping..].iter().any(|l| l == "READY=1"), "{notes:?}");
    let log = d.log.all();
    assert!(log.iter().any(|l| l.contains("STOPPED old")) && !log.iter().any(|l| l.contains("STOPPED new")));
}

/// Longer than any step of these stops takes, the handlers that wait included.
const LONG: &str = "[shutdown]\ndrain = \"1s\"\ninterrupt = \"1s\"\nhooks = \"90s\"\ndeadline = \"100s\"\n\
                    [hooks]\nallow = [\"exec\"]\ntimeout = \"80s\"\n";

/// Checklist 19, 21. Step 9 of a stop: however long a `shutdown` handler takes, no `session_end` is delivered beside it.
#[test]
fn no_end_is_delivered_beside_a_shutdown_handler() {
    let hook = r#"
ostler.on("shutdown", function()
  ostler.log.info("SHUTDOWN begins")
  ostler.exec{ argv = { "/bin/sh", "-c", ": < @DIR@/gate" }, timeout = "80s" }
  ostler.log.info("SHUTDOWN done")
end)
ostler.on("session_end", function(ev) ostler.log.info("END " .. ev.key) end)
"#;
    let mut d = Daemon::new().config(LONG).hook("a.lua", hook);
    let mut gate = d.gate("gate");
    d.boot();
    for key in 0..8 {
        d.send(&format!("local:{key}"), "x");
    }
    d.sigterm();
    d.wait_log("SHUTDOWN begins");
    d.wait_log("8 activations closed");
    // The ends are journalled, and whoever would deliver them has been told.
    for _ in 0..20 {
        d.status();
    }
    gate.open();
    assert_eq!(d.exit_code(), 0);
    let log = d.log.all();
    let done = log.iter().position(|l| l.contains("SHUTDOWN done")).unwrap();
    let ends: Vec<usize> = (0..log.len()).filter(|n| log[*n].contains("END local:")).collect();
    assert_eq!(ends.len(), 8, "{log:#?}");
    assert!(ends.iter().all(|end| *end > done), "{log:#?}");
}

/// What a process has used of the processors.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

/// Nothing polls: a stop that waits for a handler leaves the processor to it.
#[test]
fn a_stop_that_waits_costs_nothing() {
    let hook = r#"
ostler.on("session_end", function()
  ostler.log.info("END begins")
  ostler.exec{ argv = { "/bin/sh", "-c", ": < @DIR@/gate" }, timeout = "80s" }
end)
"#;
    let mut d = Daemon::new().config(LONG).hook("a.lua", hook);
    let mut gate = d.gate("gate");
    d.boot();
    d.send("local:a", "x");
    d.sigterm();
    d.wait_log("END begins");
    let (since, before) = (Instant::now(), cpu(d.pid()));
    let mut clock = Proc::spawn(Command::new("sleep").arg("4"));
    assert!(clock.wait_for(PATIENCE).is_some());
    let (took, used) = (since.elapsed(), cpu(d.pid()).saturating_sub(before));
    // A loop that spins has its share of a busy machine at the least; one that waits has nearly none.
    assert!(used < took / 10, "{used:?} of the processor in {took:?}");
    gate.open();
    assert_eq!(d.exit_code(), 0);
}

/// Two signals for a reload in one moment, and one that comes with a message: each finds the daemon at work.
#[test]
fn many_reloads_at_once_come_to_an_end() {
    let mut d = Daemon::new().start();
    for n in 0..10 {
        d.write_config(&format!("[sessions]\nqueue_limit = {}\n", 10 + n));
        d.signal(Signal::HUP);
    }
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| d.client().post("/v1/reload", None).unwrap());
        }
    });
    let last = d.client().post("/v1/reload", None).unwrap();
    assert_eq!(last["changed"].as_array().unwrap().len(), 0, "{last}");
    assert_eq!(d.stop(), 0);
}
