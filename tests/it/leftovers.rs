//! Whose process is it? Peers and agents that this daemon cannot see as its own.

use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::daemon::{Daemon, NEVER, PATIENCE, Proc, fake, open_pid, run, wait_pidfd};

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

/// An agent for which a message is a script.
const SHELL: &str = "[agent.default]\nkind = \"exec\"\ncommand = [\"/bin/sh\", \"-c\", \"eval \\\"$(cat)\\\"\"]\n\
                     env = { PATH = \"/usr/bin:/bin\" }\n";

/// The process whose number stands in a file of the test's.
fn noted(d: &Daemon, name: &str) -> Option<OwnedFd> {
    let text = std::fs::read_to_string(d.path(name)).unwrap();
    open_pid(text.trim().parse().unwrap())
}

/// A command that leaves a process with a cleared environment, in a session of its own and without its parent, and notes
/// its number.
fn leave(d: &Daemon, name: &str) -> String {
    let file = d.path(name).display().to_string();
    format!("env -i sh -c 'setsid sleep 1000 >/dev/null 2>&1 & echo $! >{file}.new; mv {file}.new {file}'")
}

/// Checklist 53. What cleared its environment is ended with the dead boot's agents, before its session goes on: what
/// descends from them, and what had lost its parent before.
#[test]
fn what_cleared_its_environment_is_ended_with_the_rest() {
    let mut d = Daemon::new().config(&format!("{NEVER}{SHELL}")).start();
    let below = d.path("below").display().to_string();
    let script = format!(
        "{}; env -i setsid sh -c 'sleep 1000 & echo $! >{below}; wait' & while [ ! -s {below} ]; do :; done; echo begun; sleep 1000",
        leave(&d, "orphan")
    );
    let mut events = d.events("local:a");
    d.post("local:a", &script);
    events.until_where("its words", |e| e.event == "text");
    let (orphan, below) = (noted(&d, "orphan").unwrap(), noted(&d, "below").unwrap());
    assert!(lives(&orphan) && lives(&below));
    d.kill9();
    let doctor = d.cli(&[
        "doctor",
        "--config",
        d.path("ostler.toml").to_str().unwrap(),
        "--state-dir",
        d.path("state").to_str().unwrap(),
    ]);
    assert!(doctor.out.contains("processes of earlier agents") && doctor.out.contains("(sleep)"), "{doctor:?}");
    d.boot();
    let mut events = d.events("local:a");
    events.until_where("the continuation", |e| e.event == "turn_start" && e.data["continues"].is_string());
    assert!(!lives(&orphan) && !lives(&below), "it ran beside the continuation");
    d.act("local:a", "cancel");
    events.until_where("its end", |e| e.event == "turn_end" && e.text("outcome") != "interrupted");
    assert_eq!(d.stop(), 0);
}

/// What a turn left with a cleared environment is gone with the turn; what another session's did is not touched by it.
#[test]
fn a_turn_ends_what_cleared_its_environment_and_nobody_elses() {
    let mut d = Daemon::new().config(SHELL).start();
    let mut events = d.events("local:b");
    let hanging = d.post("local:b", &format!("{}; echo begun; sleep 1000", leave(&d, "b")));
    events.until_where("its words", |e| e.event == "text");
    let of_b = noted(&d, "b").unwrap();
    assert_eq!(d.turn("local:a", &leave(&d, "a")).outcome(), "completed");
    assert!(noted(&d, "a").is_none_or(|fd| !lives(&fd)), "it outlived its turn");
    assert!(lives(&of_b), "it was another session's");
    d.act("local:b", "cancel");
    assert_eq!(events.end_of(&hanging).0, "cancelled");
    assert!(!lives(&of_b));
    assert_eq!(d.stop(), 0);
}

/// The children that the daemon was started with are left alone by its stop, and what it was started under does not make
/// its own processes an agent's.
#[test]
fn what_it_was_started_with_is_left_alone() {
    let mut d = Daemon::new().config(SHELL);
    let file = d.path("before").display().to_string();
    // The limit is a tag of another daemon's, where this shell can set one.
    let script = format!(
        "set -m; ulimit -S -R 4611686018427387999 2>/dev/null; env -i sleep 1000 >/dev/null 2>&1 & echo $! >{file}; exec \"$@\""
    );
    d.set_wrapper(&["bash", "-c", &script, "bash"]);
    d.boot();
    let before = noted(&d, "before").unwrap();
    let limit = |text: &str| {
        let line = text.lines().find(|l| l.starts_with("Max realtime timeout")).unwrap();
        line.split_ascii_whitespace().nth(3).unwrap().to_owned()
    };
    let of_agent = limit(&d.turn("local:a", "cat /proc/self/limits").text());
    assert!(of_agent.len() == 19 && of_agent != "4611686018427387999", "{of_agent}");
    let own = std::fs::read_to_string(format!("/proc/{}/limits", d.pid())).unwrap();
    assert_eq!(limit(&own), "unlimited");
    assert_eq!(d.stop(), 0);
    assert!(lives(&before), "it was not the daemon's to end");
    assert!(!d.log.all().iter().any(|l| l.contains("is ended")), "{:?}", d.log.all());
    let _ = rustix::process::pidfd_send_signal(&before, Signal::KILL);
    assert!(wait_pidfd(&before, PATIENCE));
}

/// An agent gets the soft limit of descriptors that the daemon was started with.
#[test]
fn an_agent_has_the_old_limit_of_descriptors() {
    let mut d = Daemon::new().config(SHELL);
    d.set_wrapper(&["sh", "-c", "ulimit -Sn 256; exec \"$@\"", "sh"]);
    d.boot();
    assert_eq!(d.send("local:a", "ulimit -Sn").trim(), "256");
    let own = std::fs::read_to_string(format!("/proc/{}/limits", d.pid())).unwrap();
    assert!(!own.lines().any(|l| l.starts_with("Max open files") && l.contains(" 256 ")), "the daemon raised its own");
    assert_eq!(d.stop(), 0);
}

/// A terminal: the side that a person would sit at, and the name of the other one.
#[allow(unsafe_code)]
fn terminal() -> Option<(OwnedFd, String)> {
    use std::os::fd::FromRawFd;
    let mut name = [0; 128];
    // SAFETY: a new descriptor, which nobody else knows, and calls on it that write at most the bytes that `name` has.
    let fd = unsafe {
        let fd = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
        if fd < 0 || libc::grantpt(fd) != 0 || libc::unlockpt(fd) != 0 {
            return None;
        }
        if libc::ptsname_r(fd, name.as_mut_ptr(), name.len()) != 0 {
            return None;
        }
        OwnedFd::from_raw_fd(fd)
    };
    let bytes: Vec<u8> = name.iter().map(|c| c.cast_unsigned()).take_while(|b| *b != 0).collect();
    Some((fd, String::from_utf8(bytes).unwrap()))
}

/// An agent, and what a hook runs, has no terminal, though the daemon has one: what asks for a password there fails.
#[test]
fn an_agent_has_no_terminal() {
    let Some((_person, name)) = terminal() else {
        eprintln!("SKIPPED: this sandbox has no pseudo-terminals");
        return;
    };
    let look = "(: </dev/tty) 2>/dev/null && echo terminal || echo none";
    let hook = format!(
        "ostler.on('turn_start', function()\nlocal r = ostler.exec{{argv={{'/bin/sh', '-c', [[{look}]]}}}}\n\
         ostler.log.info('the hook has ' .. r.stdout)\nend)\n"
    );
    let mut d = Daemon::new().config(&format!("{SHELL}[hooks]\nallow = [\"exec\"]\n")).hook("look.lua", &hook);
    d.set_wrapper(&["sh", "-c", &format!("exec setsid -w -c \"$@\" <{name}"), "sh"]);
    d.boot();
    let pid = d.status()["pid"].as_u64().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let terminal = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(4).unwrap().to_owned();
    assert_ne!(terminal, "0", "the daemon has one");
    assert_eq!(d.send("local:a", look).trim(), "none");
    let said = d.wait_log("the hook has");
    assert!(said.contains("the hook has none"), "{said}");
    // Signals still reach the whole group.
    let mut events = d.events("local:a");
    let turn = d.post("local:a", "echo begun; sleep 1000 & wait");
    events.until_where("its words", |e| e.event == "text" && e.text("text").contains("begun"));
    d.act("local:a", "cancel");
    assert_eq!(events.end_of(&turn).0, "cancelled");
    d.cli(&["stop"]).ok();
    assert_eq!(d.exit_code(), 0);
}

/// A daemon in a pid namespace of its own serves whoever comes from outside: their process has no number there. Neither has
/// the leader of its own process group, and its agents are children like any.
#[test]
fn a_client_of_another_pid_namespace_is_served() {
    let can = Command::new("unshare").args(["-pf", "--mount-proc", "true"]).output();
    if !can.is_ok_and(|o| o.status.success()) {
        eprintln!("SKIPPED: this sandbox makes no pid namespace");
        return;
    }
    let script = r#"[agent.sh]
kind = "exec"
command = ["sh", "-c", "setsid true; echo from a child"]
[[route]]
match = "sh:*"
agent = "sh"
"#;
    let mut d = Daemon::new().config(script);
    // The inner one is process 1 there and dies with the outer one.
    d.set_wrapper(&["unshare", "-pf", "--mount-proc", "--kill-child"]);
    d.boot();
    assert_eq!(d.send("local:a", "from outside"), "echo: from outside");
    assert_eq!(d.send("sh:a", "x").trim(), "from a child");
    d.signal(Signal::KILL);
    d.ended();
}

/// The agents of a daemon that died go on without it, and are ended by hand; under a live one nothing is touched.
#[test]
fn agents_without_a_daemon_are_ended_by_hand() {
    for command in [&["stop"][..], &["doctor", "--end-agents"]] {
        let mut d = Daemon::new().config(&fake(&[], "")).start();
        let (_gate, _events, _running) = d.waiting("local:a", "");
        let state = d.path("state").to_str().unwrap().to_owned();
        let owned = d.cli(&["doctor", "--end-agents", "--state-dir", &state]);
        assert!(owned.code == 69 && owned.err.contains("owns it"), "{owned:?}");
        d.kill9();
        assert!(!d.leftovers().is_empty(), "its agent goes on");
        let ran = d.cli(&[command, &["--state-dir", &state]].concat());
        assert!(ran.code == 0 && ran.out.contains("of its agents ended"), "{ran:?}");
        assert_eq!(d.leftovers(), [], "{ran:?}");
        let again = d.cli(&[command, &["--state-dir", &state]].concat());
        assert!(again.code == if command[0] == "stop" { 69 } else { 0 }, "{again:?}");
        // The turn that was cut off is not lost.
        d.boot();
        assert_eq!(d.stop(), 0);
    }
}
