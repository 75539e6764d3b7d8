//! What a service manager sees and does: its socket kept over a restart, what it is told, and the way to take a place.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::bus::{Bus, Says};
use crate::daemon::{Daemon, Lines, NEVER, PATIENCE, Proc, fake, run};

/// The socket is the service manager's: no connection is refused while the daemon restarts, what is asked in between is
/// answered by the next boot, and each message is there once.
#[test]
fn a_socket_that_is_passed_outlives_the_daemon() {
    let mut d = Daemon::new();
    d.keep_socket();
    let mut d = d.start();
    assert_eq!(d.send("local:a", "one"), "echo: one");
    let accepted = d.talked_to("local:a", |d, more| {
        for _ in 0..3 {
            more(5);
            d.signal(Signal::USR1);
            assert_eq!(d.exit_code(), 75);
            assert!(d.socket().exists(), "it is not the daemon's to remove");
            // While nobody is there.
            let waiting = d.raw();
            d.boot();
            drop(waiting);
        }
        more(5);
    });
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM messages WHERE client_id IS NOT NULL"), accepted);
}

/// READY once messages are accepted, STATUS with what blocks, STOPPING with the time that is asked for, in this order.
#[test]
fn what_the_service_manager_is_told() {
    let mut d = Daemon::new().config(&fake(&[], "")).start();
    d.notes.find(0, "a status", |l| l.starts_with("STATUS="));
    assert_eq!(d.notes.all(), ["READY=1", "STATUS=running"]);
    let (mut gate, _events, _) = d.waiting("local:a", "");
    let from = d.notes.count();
    d.sigterm();
    d.notes.find(from, "what blocks", |l| l.starts_with("STATUS=") && l.contains("local:a"));
    gate.open();
    assert_eq!(d.exit_code(), 0);
    let told: Vec<String> = d.notes.all().into_iter().skip(from).collect();
    assert_eq!(told[0], "STOPPING=1", "{told:?}");
    assert!(told[1].starts_with("EXTEND_TIMEOUT_USEC="), "{told:?}");
    assert_eq!(told.iter().filter(|l| *l == "STOPPING=1").count(), 1, "{told:?}");
    let phases: Vec<&str> = told.iter().filter_map(|l| l.strip_prefix("STATUS=")).collect();
    assert!(phases[0].starts_with("draining"), "{told:?}");
}

/// The service manager's watchdog is fed as long as the daemon lives, in a drain too.
#[test]
fn the_watchdog_is_fed() {
    let mut d = Daemon::new().config(&fake(&[], "")).env("WATCHDOG_USEC", "200000").start();
    let fed = |d: &Daemon| {
        let from = d.notes.count();
        for _ in 0..3 {
            let from = d.notes.count().max(from);
            d.notes.find(from, "WATCHDOG=1", |l| l == "WATCHDOG=1");
        }
    };
    fed(&d);
    let (mut gate, _events, _) = d.waiting("local:a", "");
    d.sigterm();
    d.notes.find(0, "STOPPING=1", |l| l == "STOPPING=1");
    fed(&d);
    gate.open();
    assert_eq!(d.exit_code(), 0);
}

/// Checklist 30. `--replace` asks an owner that does not listen, waits, and then forces it.
#[test]
fn a_deaf_owner_is_forced() {
    let short =
        "[shutdown]\ndrain = \"0s\"\ninterrupt = \"100ms\"\nhooks = \"100ms\"\nclose = \"2s\"\ndeadline = \"3200ms\"\n";
    let mut d = Daemon::new().config(short).start();
    d.send("local:a", "x");
    d.signal(Signal::STOP);
    let mut other = d.serve_command();
    other.arg("--replace").env("NOTIFY_SOCKET", d.path("notify")).stderr(Stdio::piped());
    let from = d.notes.count();
    let replacing = std::thread::spawn(move || run(&mut other, ""));
    d.notes.find(from, "READY", |l| l == "READY=1");
    assert!(d.ended().code().is_none(), "it was killed");
    assert_eq!(d.send("local:a", "y"), "echo: y");
    d.client().post("/v1/stop", None).unwrap();
    let ran = replacing.join().unwrap();
    assert_eq!(ran.code, 0, "{ran:?}");
    let (asked, killed) = (ran.err.find("asking it to leave"), ran.err.find("killing it"));
    assert!(asked.is_some() && asked < killed, "{ran:?}");
    d.check(true);
}

/// Checklist 30. `--replace` never touches a process that does not hold the lock: not one whose pid stands in the file, nor
/// one that has it open.
#[test]
fn replace_kills_no_stranger() {
    let d = Daemon::new();
    std::fs::create_dir(d.path("state")).unwrap();
    let path = d.path("state/lock");
    let lock = std::fs::File::create(&path).unwrap();
    lock.try_lock().unwrap();
    for open in [false, true] {
        let input = if open { Stdio::from(std::fs::File::open(&path).unwrap()) } else { Stdio::null() };
        let mut stranger = Proc::spawn(Command::new("sleep").arg("1000").stdin(input));
        std::fs::write(&path, format!("{}\n", stranger.pid())).unwrap();
        let ran = run(d.serve_command().arg("--replace"), "");
        let alive = stranger.wait_for(Duration::ZERO).is_none();
        assert!(alive, "it killed a stranger (open: {open}): {ran:?}");
        stranger.signal(Signal::KILL);
        assert!(stranger.wait_for(PATIENCE).is_some());
        assert_eq!(ran.code, 69, "{ran:?}");
        assert!(ran.err.contains("owns it"), "{ran:?}");
    }
    drop(lock);
    let mut d = d.start();
    assert_eq!(d.stop(), 0);
}

/// Two `--replace` at once, or one beside a stop: the owner is asked once, so its drain is not cut short; one of them gets
/// the state.
#[test]
fn a_second_replace_waits_for_the_drain_of_the_first() {
    // Agents that are kept need no drain.
    let mut d = Daemon::new().config(&format!("{NEVER}{}", fake(&[], ""))).start();
    let (mut gate, mut events, running) = d.waiting("local:a", "; say done");
    let log = std::sync::Arc::new(Lines::default());
    let replace = || {
        let mut command = d.serve_command();
        command.arg("--replace").env("NOTIFY_SOCKET", d.path("notify")).stderr(Stdio::piped());
        let mut proc = Proc::spawn(&mut command);
        let (stderr, log) = (BufReader::new(proc.child.stderr.take().unwrap()), log.clone());
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).for_each(|l| log.push(l)));
        proc
    };
    let from = d.notes.count();
    let first = replace();
    d.notes.find(from, "STOPPING", |l| l == "STOPPING=1");
    let second = replace();
    log.find(0, "the second one", |l| l.contains("; waiting"));
    assert_eq!(d.status()["stop"]["urgency"], "graceful");
    gate.open();
    assert_eq!(events.end_of(&running).0, "completed");
    assert_eq!(d.ended().code(), Some(0));
    d.notes.find(from, "READY", |l| l == "READY=1");
    let winner = i64::from(d.status()["pid"].as_u64().unwrap() as u32);
    let (mut winner, mut loser) = if i64::from(first.pid()) == winner { (first, second) } else { (second, first) };
    assert_eq!(loser.wait_for(PATIENCE).unwrap().code(), Some(69));
    assert!(winner.wait_for(Duration::ZERO).is_none());
    winner.signal(Signal::TERM);
    assert_eq!(winner.wait_for(PATIENCE).unwrap().code(), Some(0));
    d.check(true);
}

/// A daemon that finds this bus, whichever it looks for.
fn on_a_bus(says: Says) -> (Daemon, Bus) {
    let d = Daemon::new().config(&format!("{NEVER}{}", fake(&[], "")));
    let bus = Bus::new(&d.path("bus"), says);
    let address = format!("unix:path={}", d.path("bus").display());
    let d = d.env("DBUS_SYSTEM_BUS_ADDRESS", &address).env("DBUS_SESSION_BUS_ADDRESS", &address);
    (d, bus)
}

/// `systemctl restart` and `systemctl stop` send the same signal; which of them it was is what the bus says.
#[test]
fn a_sigterm_is_what_the_service_managers_job_says() {
    for (says, reason) in [
        (Says::Job(Some("restart"), "running"), "restart"),
        (Says::Job(Some("restart"), "degraded"), "restart"),
        (Says::Job(Some("restart"), "stopping"), "shutdown"),
        (Says::Job(Some("stop"), "running"), "shutdown"),
        (Says::Job(None, "running"), "shutdown"),
        (Says::NoUnit, "shutdown"),
    ] {
        let (d, bus) = on_a_bus(says);
        let mut d = d.start();
        d.send("local:a", "say hello");
        d.sigterm();
        assert_eq!(d.exit_code(), if reason == "restart" { 75 } else { 0 });
        let report = d.cli(&["report", "--json", "--state-dir", d.path("state").to_str().unwrap()]);
        let report: serde_json::Value = serde_json::from_str(&report.out).unwrap();
        assert_eq!((&report["reason"], &report["clean"]), (&json!(reason), &json!(true)));
        let heard: Vec<String> = bus.heard.try_iter().collect();
        let expected: &[&str] = match says {
            Says::Job(Some(_), _) => &["Hello", "SystemState", "GetUnitByPID", "Job", "JobType"],
            Says::Job(None, _) => &["Hello", "SystemState", "GetUnitByPID", "Job"],
            Says::NoUnit | Says::Nothing => &[],
        };
        assert_eq!(heard, expected);
    }
}

/// A bus that does not answer holds nothing up for more than a second, and a signal whose meaning is known not even that.
#[test]
fn a_silent_bus_makes_a_shutdown_of_a_sigterm() {
    let mut reasons = Vec::new();
    for second in [None, Some(Signal::INT)] {
        let (d, bus) = on_a_bus(Says::Nothing);
        let mut d = d.start();
        let began = std::time::Instant::now();
        d.sigterm();
        bus.heard.recv_timeout(PATIENCE).unwrap();
        if let Some(signal) = second {
            d.signal(signal);
        }
        assert_eq!(d.exit_code(), 0);
        reasons.push(began.elapsed());
    }
    assert!(reasons[0] >= Duration::from_millis(900), "it was waited for: {reasons:?}");
    assert!(reasons[1] < reasons[0], "a known reason needs no answer: {reasons:?}");
}

/// While the service manager is asked no turn starts: what is sent then is answered by the next boot.
#[test]
fn no_turn_starts_while_the_reason_is_not_known() {
    let (d, bus) = on_a_bus(Says::Nothing);
    let mut d = d.start();
    d.send("local:a", "say hello");
    d.sigterm();
    bus.heard.recv_timeout(PATIENCE).unwrap();
    assert_eq!(d.post("local:a", "say late")["deferred"], true);
    let refused = d.refusal(ureq::http::Method::POST, "/v1/stop", Some(&json!({ "reason": "restart" })));
    assert_eq!(refused.0, 409, "{refused:?}");
    assert_eq!(d.exit_code(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM turns WHERE started_at IS NOT NULL"), 1);
}

/// Nobody is asked by a daemon that no service manager started.
#[test]
fn without_a_service_manager_the_bus_is_not_asked() {
    let (mut d, bus) = on_a_bus(Says::Job(Some("restart"), "running"));
    d.set_wrapper(&["env", "-u", "NOTIFY_SOCKET"]);
    d.spawn();
    d.log.find(0, "ready", |l| l.contains("ready,"));
    d.sigterm();
    assert_eq!(d.exit_code(), 0);
    assert_eq!(bus.heard.try_iter().count(), 0);
}

/// Whoever waits for the answer of a turn that goes on holds up no restart, and gets it from the next boot.
#[test]
fn a_restart_waits_for_no_turn_that_goes_on() {
    let mut d = Daemon::new().config(&fake(&[], "")).start();
    let mut gate = d.gate("gate");
    let mut events = d.events("local:a");
    let text = format!("wait-file {}; say done", gate.path.display());
    let mut send = d.command(&["send", "local:a", &text]);
    let send = std::thread::spawn(move || run(&mut send, ""));
    events.until("turn_start");
    d.signal(Signal::USR1);
    assert_eq!(d.ended().code(), Some(75), "with the turn still running");
    d.boot();
    gate.open();
    let ran = send.join().unwrap();
    assert!(ran.code == 0 && ran.out.ends_with("done\n"), "{ran:?}");
    assert_eq!(d.stop(), 0);
}
