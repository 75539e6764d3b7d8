//! Whose process is it? Peers and agents that this daemon cannot see as its own.

use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::daemon::{Daemon, PATIENCE, Proc, fake, open_pid, run, wait_pidfd};

fn lives(fd: &OwnedFd) -> bool {
    !wait_pidfd(fd, Duration::ZERO)
}

/// A turn of `local:a` that says its process's number and waits for the gate: its 202, the number, the process.
fn hanging(d: &Daemon) -> (crate::daemon::Gate, Value, OwnedFd) {
    let gate = d.gate("gate");
    let mut events = d.events("local:a");
    let turn = d.post("local:a", &format!("pid; wait-file {}; say done", gate.path.display()));
    let told = events.until_where("its pid", |e| e.event == "text");
    let pid = told.text("text").chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap();
    (gate, turn, open_pid(pid).unwrap())
}

/// A daemon on a copy of the state, by a backup or of the whole directory, ends nothing that is the original's, and its
/// doctor speaks of nothing that is.
#[test]
fn a_copy_leaves_the_agents_of_the_original_alone() {
    for how in ["backup", "cp"] {
        let config = format!("[sessions]\nresume = \"on_message\"\n{}", fake(&[], ""));
        let mut original = Daemon::new().config(&config).start();
        let (mut gate, turn, agent) = hanging(&original);
        let mut copy = Daemon::new().config(&config);
        if how == "cp" {
            let to = copy.path("state");
            run(Command::new("cp").arg("-a").arg(original.path("state")).arg(to), "").ok();
        } else {
            std::fs::create_dir(copy.path("state")).unwrap();
            original.cli(&["backup", copy.path("state/ostler.db").to_str().unwrap()]).ok();
        }
        let of_copy = ["--config", copy.path("ostler.toml").to_str().unwrap()].map(str::to_owned);
        let state = copy.path("state").to_str().unwrap().to_owned();
        let doctor = |d: &Daemon| {
            let args = ["doctor", &of_copy[0], &of_copy[1], "--state-dir", &state, "--json"];
            let ran = d.cli(&args);
            assert!(ran.out.contains("no process of an earlier agent"), "{how}: {ran:?}");
        };
        doctor(&copy);
        copy.boot();
        // A session starts only when the search is over.
        assert_eq!(copy.send("local:b", "say copy"), "copy");
        doctor(&copy);
        assert!(lives(&agent), "{how}: the copy ended the original's agent");
        assert_eq!(copy.stop(), 0);
        let mut events = original.events("local:a");
        gate.open();
        assert_eq!(events.end_of(&turn).0, "completed", "{how}");
        assert_eq!(original.stop(), 0);
    }
}

/// What an older version left, which did not say to which state directory it belongs, is ended where the session is known
/// and nobody lives who answers for it.
#[test]
fn what_an_older_version_left_is_judged_by_its_line() {
    let mut d = Daemon::new().config(&fake(&[], "")).start();
    let session = d.turn("local:a", "say one").session().to_owned();
    assert_eq!(d.stop(), 0);
    let older = |session: &str, program: &str| {
        let mut command = Command::new(program);
        command.args(["-c", "sleep 1000 & echo $!; wait"]).env_clear().env("PATH", "/usr/bin:/bin");
        command.env("OSTLER_SESSION_ID", session).env("OSTLER_BOOT_ID", "an older boot").env("HOME", d.path(""));
        let mut proc = Proc::spawn(command.stdout(std::process::Stdio::piped()));
        let mut line = String::new();
        let out = proc.child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
        (proc, open_pid(line.trim().parse().unwrap()).unwrap())
    };
    // A live daemon of another name of the kernel's: what descends from it is its own.
    std::os::unix::fs::symlink("/bin/sh", d.path("ostler")).unwrap();
    let (dead, of_a_daemon, unknown) = (
        older(&session, "/bin/sh"),
        older(&session, d.path("ostler").to_str().unwrap()),
        older("of nobody", "/bin/sh"),
    );
    d.boot();
    assert_eq!(d.send("local:a", "say two"), "two");
    assert!(!lives(&dead.1), "it ran beside its session");
    assert!(lives(&of_a_daemon.1) && lives(&unknown.1), "they are somebody else's");
    for mut proc in [dead.0, of_a_daemon.0, unknown.0] {
        let _ = proc.child.kill();
        assert!(proc.wait_for(PATIENCE).is_some());
    }
    for fd in [of_a_daemon.1, unknown.1] {
        let _ = rustix::process::pidfd_send_signal(&fd, Signal::KILL);
        assert!(wait_pidfd(&fd, PATIENCE));
    }
    assert_eq!(d.stop(), 0);
}

/// A daemon in a pid namespace of its own serves whoever comes from outside: their process has no number there.
#[test]
fn a_client_of_another_pid_namespace_is_served() {
    let can = Command::new("unshare").args(["-pf", "--mount-proc", "true"]).output();
    if !can.is_ok_and(|o| o.status.success()) {
        eprintln!("SKIPPED: this sandbox makes no pid namespace");
        return;
    }
    let mut d = Daemon::new();
    // The inner one is process 1 there and dies with the outer one.
    d.set_wrapper(&["unshare", "-pf", "--mount-proc", "--kill-child"]);
    d.boot();
    assert_eq!(d.send("local:a", "from outside"), "echo: from outside");
    d.signal(Signal::KILL);
    d.ended();
}
