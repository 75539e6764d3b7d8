//! The commands and the start as an operator meets them: what is said when something is not as it should be.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use ostler::model::names::slug;

use crate::daemon::{Daemon, PATIENCE, Ran, fake, run};

/// `serve` started by a shell that does something first; stopped through the API once `then` was done.
#[track_caller]
fn serve_after(d: &Daemon, first: &str, serve: &Command, then: impl FnOnce()) -> Ran {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("{first}; exec \"$0\" \"$@\"")]).arg(serve.get_program()).args(serve.get_args());
    command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", d.path("")).env("NOTIFY_SOCKET", d.path("notify"));
    command.current_dir(serve.get_current_dir().unwrap());
    let from = d.notes.count();
    std::thread::scope(|scope| {
        let served = scope.spawn(|| run(&mut command, ""));
        d.notes.find(from, "READY=1", |l| l == "READY=1");
        then();
        d.client().post("/v1/stop", None).unwrap();
        served.join().unwrap()
    })
}

/// Wrong usage is told in the same words as every other error; help that was asked for is no error.
#[test]
fn wrong_usage() {
    let d = Daemon::new();
    for args in [&["dance"][..], &["send"], &["sessions", "--limit", "0"], &["transcript", "a", "--limit", "0"]] {
        let ran = d.cli(args);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{ran:?}");
        assert!(ran.err.starts_with("ostler: ") && !ran.err.contains("error: "), "{ran:?}");
    }
    let ran = d.cli(&["--help"]);
    assert!(ran.out.contains("Usage: ") && ran.err.is_empty(), "{ran:?}");
    let d = d.start();
    let ran = d.cli(&["send", "a", "  "]);
    assert_eq!(ran.code, 2, "{ran:?}");
}

/// Without a daemon the error says what to do about it.
#[test]
fn nobody_there() {
    let d = Daemon::new();
    let ran = d.cli(&["status"]);
    assert_eq!(ran.code, 69, "{ran:?}");
    assert!(ran.err.contains("`ostler serve`") && ran.err.contains("--socket"), "{ran:?}");
}

/// A key without a current session: told by every command, with the suspended session that could be brought back; the
/// sender of the next message is told once.
#[test]
fn no_current_session() {
    let d = Daemon::new().start();
    for command in ["show", "transcript", "events", "export", "cancel"] {
        let ran = d.cli(&[command, "nobody"]);
        assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
        assert!(ran.err.starts_with("ostler: local:nobody: no such session"), "{ran:?}");
    }
    d.send("local:a", "x");
    let id = d.show("local:a")["id"].as_str().unwrap().to_owned();
    d.cli(&["suspend", "a"]).ok();
    for command in ["show", "transcript", "export", "cancel", "suspend"] {
        let ran = d.cli(&[command, "a"]);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.err.contains(&id) && ran.err.contains("resume"), "{ran:?}");
    }
    let ran = d.cli(&["send", "a", "y"]);
    assert_eq!(ran.out, "echo: y\n");
    assert_eq!(ran.err.matches("suspended").count(), 1, "{ran:?}");
}

/// Whatever the umask and the directory's mode: nobody else reads transcripts, neither in the database nor in a copy.
#[test]
fn files_are_private() {
    let d = Daemon::new();
    std::fs::create_dir(d.path("state")).unwrap();
    std::fs::set_permissions(d.path("state"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mode = |name: &str| std::fs::metadata(d.path(name)).unwrap().permissions().mode() & 0o777;
    let ran = serve_after(&d, "umask 0", &d.serve_command(), || {
        d.send("local:a", "x");
        d.cli(&["backup", d.path("copy.db").to_str().unwrap()]).ok();
        for name in ["state/ostler.db", "state/ostler.db-wal", "state/lock", "sock", "copy.db"] {
            assert_eq!(mode(name), 0o600, "{name}");
        }
    });
    assert_eq!(ran.code, 0, "{ran:?}");
}

/// Paths on the command line may be relative, and stay what they were for agents, which run elsewhere.
#[test]
fn relative_paths() {
    let d = Daemon::new().config("[agent.default]\nkind = \"exec\"\ncommand = [\"pwd\"]\n");
    let mut serve = d.command(&["serve", "--config", "ostler.toml", "--state-dir", "state", "--socket", "sock"]);
    serve.current_dir(d.path(""));
    let ran = serve_after(&d, ":", &serve, || {
        assert_eq!(d.send("local:a", "x").trim(), d.path("state/work").join(slug("local:a")).to_str().unwrap());
        d.write_config("[agent.default]\nkind = \"exec\"\ncommand = [\"echo\", \"new\"]\n");
        d.cli(&["reload"]).ok();
        assert_eq!(d.send("local:b", "x"), "new\n");
    });
    assert_eq!(ran.code, 0, "{ran:?}");
}

/// What waits for a restart is named by each reload, and no longer once it is as it was.
#[test]
fn a_reload_names_what_waits_for_a_restart() {
    let d = Daemon::new().start();
    let reload = || d.cli(&["reload", "--json"]).json();
    d.write_config("[http]\nlisten = \"127.0.0.1:7999\"\n");
    assert_eq!(reload()["needs_restart"][0], "http.listen");
    let again = reload();
    assert_eq!((again["changed"].as_array().unwrap().len(), &again["needs_restart"][0]), (0, &"http.listen".into()));
    let ran = d.cli(&["reload"]);
    assert!(ran.out.contains("no key changed") && ran.err.contains("http.listen"), "{ran:?}");
    d.write_config("");
    let back = reload();
    assert_eq!(back["changed"][0], "http.listen");
    assert_eq!(back["needs_restart"].as_array().unwrap().len(), 0, "{back}");
}

/// A start that was refused is no death of a boot.
#[test]
fn a_refused_start_is_no_death() {
    let mut d = Daemon::new();
    std::fs::write(d.socket(), "mine").unwrap();
    assert_eq!(d.refuses().code, 74);
    std::fs::remove_file(d.socket()).unwrap();
    d.boot();
    assert!(!d.log.all().iter().any(|l| l.contains("boot died")), "{:?}", d.log.all());
    d.kill9();
    d.boot();
    d.wait_log("the last boot died: ");
}

/// What the system does not allow is told with the number that matters.
#[test]
fn limits_of_the_system() {
    let d = Daemon::new();
    let long = d.path(&"x".repeat(110));
    let mut serve = d.command(&["serve", "--state-dir", d.path("state").to_str().unwrap()]);
    let ran = run(serve.arg("--socket").arg(&long), "");
    assert_eq!(ran.code, 74, "{ran:?}");
    assert!(ran.err.contains("107 bytes") && ran.err.contains("--socket"), "{ran:?}");
    let ran = d.cli(&["status", "--socket", long.to_str().unwrap()]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("107 bytes"), "{ran:?}");
    let serve = d.serve_command();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "ulimit -n 20; exec \"$0\" \"$@\""]).arg(serve.get_program()).args(serve.get_args());
    let ran = run(&mut command, "");
    assert_eq!(ran.code, 74, "{ran:?}");
    assert!(ran.err.contains("20 file descriptors") && ran.err.contains("ulimit -n"), "{ran:?}");
}

/// `events --follow` goes on over a restart, with the event that comes next.
#[test]
fn events_are_followed_over_a_restart() {
    let mut d = Daemon::new().start();
    d.send("local:a", "one");
    let mut command = d.command(&["events", "a", "--follow", "--after", "0"]);
    // Of no concern to the daemon, whose stop is to leave nothing of its own.
    command.env("HOME", "/nonexistent");
    let mut follower = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (send, lines) = crossbeam_channel::unbounded();
    let (out, err) = (follower.stdout.take().unwrap(), follower.stderr.take().unwrap());
    let other = send.clone();
    std::thread::spawn(move || BufReader::new(out).lines().map_while(Result::ok).try_for_each(|l| send.send(l)));
    std::thread::spawn(move || BufReader::new(err).lines().map_while(Result::ok).try_for_each(|l| other.send(l)));
    let mut seen: Vec<String> = Vec::new();
    // What is told on stdout and on stderr comes by two ways, in any order.
    let mut until = |all: &[&str]| {
        while !all.iter().all(|what| seen.iter().any(|l| l.contains(what))) {
            match lines.recv_timeout(PATIENCE) {
                Ok(line) => seen.push(line),
                Err(e) => panic!("{e}: not all of {all:?} in {seen:#?}"),
            }
        }
    };
    until(&["text echo: one"]);
    d.restart();
    d.send("local:a", "two");
    until(&["text echo: two", "waiting for the daemon", "the daemon restarted"]);
    follower.kill().unwrap();
    follower.wait().unwrap();
    let said = seen.join("\n");
    assert_eq!(said.matches("session_start").count(), 2, "{said}");
    assert_eq!(said.matches("session_end").count(), 1, "each event once: {said}");
}

/// A boot that has no report is named as such.
#[test]
fn a_report_that_is_not_there() {
    let d = Daemon::new().start();
    let ran = d.cli(&["report", "4711"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.starts_with("ostler: 4711: no report of this boot"), "{ran:?}");
}

/// Whoever comes into a conversation in which a turn runs is told so.
#[test]
fn chat_tells_what_runs() {
    let d = Daemon::new().config(&fake(&[], "")).start();
    let mut events = d.events("local:a");
    d.post("local:a", "hang");
    events.until("turn_start");
    let ran = d.cli(&["chat", "a"]);
    assert!(ran.out.contains("a turn is running"), "{ran:?}");
    d.act("local:a", "cancel");
    events.until("turn_end");
    assert!(!d.cli(&["chat", "a"]).ok().contains("running"));
}

/// The first steps of the README: a daemon without a configuration, which is written and reloaded while it runs.
#[test]
fn the_first_configuration() {
    let d = Daemon::new();
    let state = d.path("state");
    let mut serve = d.command(&["serve", "--state-dir", state.to_str().unwrap(), "--socket"]);
    serve.arg(d.socket());
    let ran = serve_after(&d, ":", &serve, || {
        assert_eq!(d.send("local:a", "x"), "echo: x");
        std::fs::create_dir_all(d.path(".config/ostler")).unwrap();
        let file = d.path(".config/ostler/ostler.toml");
        std::fs::write(&file, "[agent.default]\nkind = \"exec\"\ncommand = [\"echo\", \"real\"]\n").unwrap();
        let changed = d.cli(&["reload", "--json"]).json();
        let changed = changed["changed"].as_array().unwrap().iter().any(|c| c == "agent.default.command");
        assert!(changed, "it is found");
        assert_eq!(d.send("local:b", "x"), "real\n");
        std::fs::remove_file(&file).unwrap();
        assert_eq!(d.cli(&["reload"]).code, 78, "the one that was read is missed");
    });
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains(&format!("listening on {}", d.socket().display())), "{ran:?}");
}

/// What the configuration names and is not there is told before the daemon refuses it, or goes on without it.
#[test]
fn what_is_named_and_not_there() {
    let d = Daemon::new().config("[http]\ntoken_file = \"nowhere\"\n[hooks]\ndir = \"no-hooks\"\n");
    let ran = d.cli(&["check-config", d.path("ostler.toml").to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains("http.token_file: ") && ran.err.contains("hooks.dir: "), "{ran:?}");
    let ran = d.refuses();
    assert_eq!(ran.code, 78, "{ran:?}");
    assert!(ran.err.contains(d.path("nowhere").to_str().unwrap()), "{ran:?}");
    d.write_config("[hooks]\ndir = \"no-hooks\"\n");
    let d = d.start();
    d.wait_log("no-hooks: does not exist: no script is loaded");
}

/// A backup that cannot be written says so once, and whose rights count; what is there is left alone.
#[test]
fn a_backup_that_cannot_be() {
    let d = Daemon::new().start();
    let missing = d.path("none/copy.db");
    let ran = d.cli(&["backup", missing.to_str().unwrap()]);
    assert_eq!((ran.code, ran.err.matches("copy.db").count()), (1, 1), "{ran:?}");
    assert!(ran.err.contains("No such file") && ran.err.contains("the daemon's user"), "{ran:?}");
    std::fs::write(d.path("mine"), "mine").unwrap();
    let ran = d.cli(&["backup", d.path("mine").to_str().unwrap()]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert_eq!(std::fs::read(d.path("mine")).unwrap(), b"mine");
}
