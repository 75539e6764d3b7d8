//! How agents end, and shims.

use std::time::{Duration, Instant};

use ostler::shim::frame::{Ladder, Rung, Standing, Status};
use ostler::shim::machine::Patience;
use ostler::shim::start::Start;
use rustix::process::{Pid, Signal, kill_process};

use crate::rig::{HANGS, Heard, QUICK, Shim, gone, lives, script};

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
}

/// The numbers in a text.
fn pids(text: &str) -> Vec<u32> {
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn without_a_start_it_leaves_after_its_time() {
    let begun = Instant::now();
    let mut shim = Shim::patient(Patience { start: 300, ..Patience::default() });
    shim.leaves();
    assert!(begun.elapsed() >= Duration::from_millis(300));
    // Also with a daemon that never says it.
    let mut shim = Shim::patient(Patience { start: 300, ..Patience::default() });
    let (mut link, _) = shim.attach(1, 0);
    link.closes();
    shim.leaves();
    assert_eq!(Patience::default().start, 10_000);
}

#[test]
fn the_ladder_ends_what_does_not_end_by_itself() {
    const TRAPS: &str = "trap 'exit 4' TERM; echo up; while :; do sleep 1000 & wait; done";
    const LONG: u32 = 30_000;
    for (text, rung, input, term, ends) in [
        ("echo up; read go; exit 3", Rung::EndOfInput, LONG, LONG, Status::Code(3)),
        (TRAPS, Rung::EndOfInput, 100, LONG, Status::Code(4)),
        (TRAPS, Rung::Terminate, LONG, LONG, Status::Code(4)),
        ("trap '' TERM; echo up; while :; do sleep 1000; done", Rung::EndOfInput, 100, 100, Status::Signal(9)),
        (TRAPS, Rung::Kill, LONG, LONG, Status::Signal(9)),
    ] {
        let ladder = Ladder { input, term, kill: LONG, linger: 100 };
        let mut shim = Shim::new();
        let (mut link, who) = shim.start(&script(text));
        link.read_until("up\n");
        link.client.acknowledge(3).unwrap();
        link.client.end(rung, ladder).unwrap();
        link.until(|h| (*h == Heard::Ending).then_some(()));
        let (_, exit) = link.finish();
        assert_eq!((exit.status, exit.left), (ends, 0), "{text}, {rung:?}");
        assert!(gone(who.pid, Duration::ZERO));
        link.client.acknowledge_exit().unwrap();
        shim.leaves();
    }
}

/// Starts helpers that leave the group, the session and the environment, one of them by a double fork, and says who they are.
const STRAYS: &str = "sh -c 'trap \"\" TERM; echo $$; exec sleep 1000' & \
    setsid sh -c 'echo $$; exec sleep 1000' & \
    env -i setsid sh -c '(trap \"\" HUP TERM; sh -c \"echo \\$PPID\"; sleep 1000; :) & exit' & \
    echo up; read go; exit 5";

#[test]
fn strays_are_ended_whatever_they_did() {
    for how in ["exit", "end", "kill"] {
        let mut shim = Shim::new();
        let (mut link, who) = shim.start(&script(STRAYS));
        let mut text = String::new();
        while !text.contains("up") || pids(&text).len() < 3 {
            if let Heard::Output(_, bytes) = link.next().unwrap() {
                text += &String::from_utf8(bytes).unwrap();
            }
        }
        let strays = pids(&text);
        assert_eq!(strays.len(), 3, "{text}");
        assert!(strays.iter().all(|pid| lives(*pid)) && lives(who.pid));
        match how {
            "exit" => link.client.input(1, b"go\n".to_vec()).unwrap(),
            "end" => link.client.end(Rung::Terminate, QUICK).unwrap(),
            _ => signal(who.pid, Signal::KILL),
        }
        link.client.acknowledge(link.client.received()).unwrap();
        let (_, exit) = link.finish();
        assert_eq!(exit.left, 0);
        assert!(strays.iter().all(|pid| gone(*pid, Duration::ZERO)), "{how}: {strays:?}");
        link.client.acknowledge_exit().unwrap();
        shim.leaves();
    }
}

#[test]
fn an_orphan_is_ended_after_its_time_and_not_before() {
    let mut shim = Shim::new();
    let (mut link, who) = shim.start(&script("echo up; read go"));
    link.read_until("up\n");
    // A daemon that comes back in time finds all as it was.
    link.client.orphan(Duration::from_millis(1500), None).unwrap();
    drop(link);
    let (mut link, attached) = shim.attach(2, 3);
    assert_eq!(attached.standing, Standing::Running);
    assert!(!gone(who.pid, Duration::from_millis(2000)), "the timer is off");
    link.client.orphan(Duration::from_millis(300), None).unwrap();
    let left = Instant::now();
    drop(link);
    assert!(gone(who.pid, HANGS) && left.elapsed() >= Duration::from_millis(300));
    shim.leaves();
}

#[test]
fn a_stop_that_dies_has_ended_its_agents_before() {
    let mut shim = Shim::new();
    let (mut link, who) = shim.start(&script("echo up; read go"));
    link.read_until("up\n");
    link.client.orphan(Duration::ZERO, None).unwrap();
    assert!(lives(who.pid), "while it is there nothing happens");
    drop(link);
    assert!(gone(who.pid, HANGS));
    shim.leaves();
}

#[test]
fn a_lease_that_is_not_renewed_ends_the_agent_before_a_silent_daemon() {
    let shim = Shim::new();
    let (mut link, _) = shim.start(&script("echo up; read go"));
    link.client.orphan(Duration::from_secs(60), Some(Duration::from_millis(200))).unwrap();
    link.until(|h| (*h == Heard::Ending).then_some(()));
}

#[test]
fn an_agent_that_is_being_ended_says_so_at_the_greeting() {
    let mut shim = Shim::new();
    // It needs longer than an orphan may live, for it ignores the first two rungs.
    let ladder = Ladder { input: 300, term: 60_000, kill: 5000, linger: 300 };
    let (mut link, who) =
        shim.start(&Start { ladder, ..script("trap '' TERM; echo up; while :; do sleep 1000; done") });
    link.read_until("up\n");
    link.client.orphan(Duration::ZERO, None).unwrap();
    drop(link);
    let mut boot = 2;
    let mut link = loop {
        let (link, attached) = shim.attach(boot, 3);
        boot += 1;
        if attached.standing == Standing::Ending {
            break link;
        }
        assert_eq!(attached.standing, Standing::Running, "it had not begun yet");
    };
    link.client.end(Rung::Kill, QUICK).unwrap();
    assert_eq!(link.finish().1.status, Status::Signal(9));
    assert!(gone(who.pid, Duration::ZERO));
    drop(link);
    shim.leaves();
}

#[test]
fn the_exit_is_kept_until_it_is_acknowledged_and_told_after_all_output() {
    let mut shim = Shim::new();
    let (link, who) = shim.start(&script("seq 1 1000; exit 7"));
    drop(link);
    assert!(gone(who.pid, HANGS));
    let whole: String = (1..=1000).map(|n| format!("{n}\n")).collect();
    for boot in 2..12 {
        let (mut link, attached) = shim.attach(boot, 0);
        if attached.status.is_some() {
            assert_eq!(attached.status, Some(Status::Code(7)), "known before it is told");
        }
        let text = link.read_until("\n1000\n");
        assert_eq!(text, whole);
        // All is acknowledged in the last round only.
        link.client.acknowledge(if boot < 11 { 0 } else { whole.len() as u64 }).unwrap();
        if boot == 11 {
            assert_eq!(
                link.finish(),
                (Vec::new(), ostler::shim::frame::Exit { status: Status::Code(7), left: 0, named: vec![] })
            );
        }
    }
    // Told, and not acknowledged.
    for boot in 12..15 {
        let (mut link, attached) = shim.attach(boot, whole.len() as u64);
        assert_eq!((attached.standing, attached.status), (Standing::Gone, Some(Status::Code(7))));
        let (_, exit) = link.finish();
        assert_eq!(exit.status, Status::Code(7));
        assert!(!shim.has_left());
        if boot == 14 {
            link.client.acknowledge_exit().unwrap();
        }
    }
    shim.leaves();
}

#[test]
fn a_killed_shim_takes_its_agent_with_it() {
    let shim = Shim::new();
    let (mut link, who) = shim.start(&script("echo up; exec sleep 1000"));
    link.read_until("up\n");
    signal(shim.child.id(), Signal::KILL);
    assert!(gone(who.pid, HANGS));
    link.closes();
}

#[test]
fn sigterm_ends_the_agent_and_then_the_shim() {
    let mut shim = Shim::new();
    let (mut link, who) = shim.start(&script("trap '' TERM; echo up; while :; do sleep 1000; done"));
    link.read_until("up\n");
    drop(link);
    signal(shim.child.id(), Signal::TERM);
    assert!(gone(who.pid, HANGS));
    shim.leaves();
    // With a daemon there, that hears how it ended.
    let mut shim = Shim::new();
    let (mut link, _) = shim.start(&script("echo up; read go; exit 6"));
    link.read_until("up\n");
    link.client.acknowledge(3).unwrap();
    signal(shim.child.id(), Signal::TERM);
    assert_eq!(link.finish().1.status, Status::Code(6));
    link.client.acknowledge_exit().unwrap();
    shim.leaves();
    // Before there is an agent it leaves at once.
    let mut shim = Shim::new();
    signal(shim.child.id(), Signal::TERM);
    shim.leaves();
}

#[test]
fn who_holds_the_pipes_has_a_moment_and_no_more() {
    let ladder = Ladder { linger: 2000, ..QUICK };
    let mut shim = Shim::new();
    let (mut link, _) =
        shim.start(&Start { ladder, ..script("(sleep 0.05; echo late; sleep 1000) & echo early; exit 0") });
    let (bytes, exit) = link.finish();
    assert_eq!((String::from_utf8(bytes).unwrap().as_str(), exit.status), ("early\nlate\n", Status::Code(0)));
    assert_eq!(exit.left, 0);
    link.client.acknowledge_exit().unwrap();
    shim.leaves();
}

#[test]
fn a_thousand_forks_are_all_ended() {
    let mut shim = Shim::new();
    let text = "i=0; while [ $i -lt 100 ]; do setsid sleep 1000 & i=$((i+1)); done; echo up; \
        while :; do sleep 0.01 & setsid sh -c 'sleep 1000 & sleep 1000' & done";
    let (mut link, who) = shim.start(&script(text));
    link.read_until("up\n");
    link.client.acknowledge(3).unwrap();
    link.client.end(Rung::Kill, QUICK).unwrap();
    let (_, exit) = link.finish();
    assert_eq!((exit.status, exit.left), (Status::Signal(9), 0));
    assert!(gone(who.pid, Duration::ZERO));
    assert_eq!(ostler::shim::family::descendants(shim.child.id()), Vec::<u32>::new());
    link.client.acknowledge_exit().unwrap();
    shim.leaves();
}
