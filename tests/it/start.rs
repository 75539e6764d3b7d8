//! A start: what must be right, who owns the state, and what is left untouched when it is not ours.

use std::os::unix::fs::PermissionsExt as _;

use crate::daemon::{Daemon, bytes, run};

/// A configuration that cannot be: exit 78, with file, line and key; nothing was made.
#[test]
fn a_wrong_configuration() {
    for (text, wants) in [
        ("[sessions]\nmax_live = 10\nmax_lives = 3\n", &["ostler.toml:3", "max_lives"][..]),
        ("[sessions]\nmax_live = \"many\"\n", &["ostler.toml:2", "max_live"]),
        ("[sessions]\npark_after = \"soon\"\n", &["ostler.toml:2", "park_after"]),
        ("[sessions\n", &["ostler.toml:1"]),
        ("[shutdown]\ndrain = \"55s\"\n", &["ostler.toml", "drain", "deadline"]),
        ("[http]\nlisten = \"0.0.0.0:7411\"\n", &["ostler.toml", "token_file"]),
        ("[[route]]\nmatch = \"a:*\"\nagent = \"nobody\"\n", &["ostler.toml", "nobody"]),
        ("[agent.default]\nkind = \"acp\"\n", &["ostler.toml", "command"]),
    ] {
        let d = Daemon::new().config(text);
        let ran = d.refuses();
        assert_eq!(ran.code, 78, "{text}: {ran:?}");
        assert!(ran.err.starts_with("ostler: "), "{ran:?}");
        for want in wants {
            assert!(ran.err.contains(want), "{want} is missing: {ran:?}");
        }
        assert!(!d.path("state").exists(), "{text}");
    }
    let d = Daemon::new();
    std::fs::remove_file(d.path("ostler.toml")).unwrap();
    let ran = d.refuses();
    assert_eq!(ran.code, 78, "a configuration that was named must be there: {ran:?}");
}

/// A script that cannot be loaded: exit 78 with file and line, and the state is not touched.
#[test]
fn a_wrong_script() {
    for (script, want) in [
        ("ostler.on('turn_end', function()\n", "10-bad.lua"),
        ("\n\nostler.on('no_such_event', function() end)\n", "10-bad.lua:3"),
        ("\nostler.on('turn_end', 7)\n", "10-bad.lua:2"),
        ("ostler.on('turn_end', function() end, { timeot = '1s' })\n", "timeot"),
        ("error('at load')\n", "10-bad.lua:1"),
    ] {
        let d = Daemon::new().hook("10-bad.lua", script);
        let ran = d.refuses();
        assert_eq!(ran.code, 78, "{script}: {ran:?}");
        assert!(ran.err.contains(want), "{want}: {ran:?}");
        assert!(!d.path("state/ostler.db").exists());
    }
}

/// Scripts that other users could write to are refused.
#[test]
fn a_script_of_everybody() {
    let d = Daemon::new().hook("10-open.lua", "ostler.on('turn_end', function() end)\n");
    std::fs::set_permissions(d.path("hooks.d/10-open.lua"), std::fs::Permissions::from_mode(0o666)).unwrap();
    let ran = d.refuses();
    assert_eq!(ran.code, 78, "{ran:?}");
    assert!(ran.err.contains("10-open.lua"), "{ran:?}");
}

/// Checklist 29. A second daemon on the same state refuses, names the owner's pid, and disturbs nothing.
#[test]
fn a_second_daemon_refuses() {
    let mut d = Daemon::new().start();
    d.send("local:a", "x");
    let ran = d.refuses();
    assert_eq!(ran.code, 69, "{ran:?}");
    assert!(ran.err.contains(&d.pid().to_string()), "{ran:?}");
    // The same state by another socket, too.
    let mut command = d.command(&["serve"]);
    command.arg("--state-dir").arg(d.path("state")).arg("--socket").arg(d.path("other"));
    assert_eq!(run(&mut command, "").code, 69);
    assert_eq!(d.send("local:a", "y"), "echo: y");
    assert_eq!(d.stop(), 0);
}

/// Checklist 29. Of two that race one wins; the other says so.
#[test]
fn two_that_race() {
    let mut d = Daemon::new();
    for _ in 0..5 {
        let from = d.notes.count();
        d.spawn();
        let ran = std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                // Its own copy of serve, which ends by itself, or is stopped by the test if it won.
                let mut command = d.serve_command();
                command.env("NOTIFY_SOCKET", d.path("notify"));
                run(&mut command, "")
            });
            d.notes.find(from, "READY=1", |l| l == "READY=1");
            let seen = d.notes.count();
            // Whoever owns the socket is told to stop; the loser has left or will.
            let owner = d.status()["pid"].as_u64().unwrap();
            if owner != u64::from(d.pid()) {
                d.client().post("/v1/stop", None).unwrap();
            }
            (owner, other.join().unwrap(), seen)
        });
        let (owner, other, seen) = ran;
        if owner == u64::from(d.pid()) {
            assert_eq!(other.code, 69, "{other:?}");
            assert_eq!(d.stop(), 0);
        } else {
            assert_eq!(other.code, 0, "{other:?}");
            // The loser may have waited for the owner's name, and found the lock free.
            if !d.was_gone(from, seen) && d.ready_or_gone(seen) {
                assert_eq!(d.stop(), 0);
            } else {
                assert_eq!(d.exit_code(), 69);
            }
        }
    }
}

/// Checklist 29. A lock that a dead process left does not block.
#[test]
fn a_dead_owner_does_not_block() {
    let mut d = Daemon::new().start();
    d.kill9();
    assert!(d.path("state/lock").exists());
    d.boot();
    assert_eq!(d.stop(), 0);
}

/// Checklist 30. `--replace` asks the owner to leave, in order, and takes its place.
#[test]
fn replace() {
    let mut d = Daemon::new().start();
    d.send("local:a", "x");
    let old = d.pid();
    let mut other = d.serve_command();
    other.arg("--replace").env("NOTIFY_SOCKET", d.path("notify"));
    let from = d.notes.count();
    let replacing = std::thread::spawn(move || run(&mut other, ""));
    d.notes.find(from, "STOPPING", |l| l == "STOPPING=1");
    d.notes.find(from, "READY", |l| l == "READY=1");
    let new = d.status()["pid"].as_u64().unwrap();
    assert_ne!(new, u64::from(old));
    assert_eq!(d.send("local:a", "y"), "echo: y");
    d.client().post("/v1/stop", None).unwrap();
    let ran = replacing.join().unwrap();
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(d.exit_code(), 0, "the old one left in order");
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM boots WHERE clean=1"), 2);
    assert_eq!(d.sql::<String>("SELECT stop_reason FROM boots ORDER BY rowid LIMIT 1"), "restart", "agents are kept");
}

/// Checklist 31. A database file that is not ours is refused and left as it is, byte for byte.
#[test]
fn a_foreign_database() {
    let foreign = tempfile::NamedTempFile::new().unwrap();
    let db = rusqlite::Connection::open(foreign.path()).unwrap();
    db.execute_batch("PRAGMA application_id=7; CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)").unwrap();
    drop(db);
    let theirs = bytes(foreign.path());
    let mut cut = theirs.clone();
    cut.truncate(50);
    for (what, content) in [
        ("foreign", theirs),
        ("garbage", b"not a database at all, but long enough for a header".repeat(9)),
        ("cut", cut),
    ] {
        let d = Daemon::new();
        std::fs::create_dir(d.path("state")).unwrap();
        let file = d.path("state/ostler.db");
        std::fs::write(&file, &content).unwrap();
        let ran = d.refuses();
        assert_eq!(ran.code, 74, "{what}: {ran:?}");
        assert!(ran.err.contains("ostler.db"), "{what}: {ran:?}");
        assert_eq!(bytes(&file), content, "{what}: untouched");
        assert!(!d.path("state/ostler.db-wal").exists());
    }
}

/// Checklist 31. A newer schema is refused with both versions named; a damaged file of ours with a clear error; both untouched.
#[test]
fn a_newer_and_a_damaged_database() {
    let mut d = Daemon::new().start();
    d.send("local:a", "x");
    assert_eq!(d.stop(), 0);
    let file = d.path("state/ostler.db");
    let good = bytes(&file);
    let db = rusqlite::Connection::open(&file).unwrap();
    let version: i64 = db.query_row("PRAGMA user_version", [], |r| r.get(0)).unwrap();
    db.execute_batch(&format!("PRAGMA user_version={}", version + 41)).unwrap();
    drop(db);
    let newer = bytes(&file);
    let ran = d.refuses();
    assert_eq!(ran.code, 74, "{ran:?}");
    assert!(ran.err.contains(&(version + 41).to_string()) && ran.err.contains(&version.to_string()), "{ran:?}");
    assert_eq!(bytes(&file), newer);
    let mut damaged = good.clone();
    let half = damaged.len() / 2;
    damaged.truncate(half - half % 4096 + 100);
    for byte in &mut damaged[100..4096] {
        *byte = 0xa5;
    }
    std::fs::write(&file, &damaged).unwrap();
    let ran = d.refuses();
    assert_eq!(ran.code, 74, "{ran:?}");
    assert!(ran.err.contains("ostler.db"), "{ran:?}");
    assert_eq!(bytes(&file), damaged);
    std::fs::write(&file, &good).unwrap();
    d.boot();
    assert_eq!(d.said("local:a"), ["user: x", "agent: echo: x"]);
    assert_eq!(d.stop(), 0);
}

/// A state directory that cannot be: exit 74, and the path in the error.
#[test]
fn an_unusable_state_directory() {
    let d = Daemon::new();
    std::fs::write(d.path("state"), "a file in the way").unwrap();
    let ran = d.refuses();
    assert_eq!(ran.code, 74, "{ran:?}");
    assert!(ran.err.contains(d.path("state").to_str().unwrap()), "{ran:?}");
    assert_eq!(bytes(&d.path("state")), b"a file in the way");
    // A path with something in the way of the socket.
    let d = Daemon::new();
    std::fs::write(d.socket(), "mine").unwrap();
    let ran = d.refuses();
    assert_eq!(ran.code, 74, "{ran:?}");
    assert_eq!(bytes(&d.socket()), b"mine");
}

/// A directory in which this user may not write: exit 74.
#[test]
fn a_state_directory_of_somebody_else() {
    let d = Daemon::new();
    std::fs::create_dir(d.path("state")).unwrap();
    let mut command = if rustix::process::geteuid().is_root() {
        // Root may write anywhere: another user is asked.
        std::fs::set_permissions(d.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
        let serve = d.serve_command();
        let mut command = std::process::Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(serve.get_program())
            .args(serve.get_args());
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/nonexistent").current_dir("/");
        command
    } else {
        std::fs::set_permissions(d.path("state"), std::fs::Permissions::from_mode(0o500)).unwrap();
        d.serve_command()
    };
    let ran = run(&mut command, "");
    assert_eq!(ran.code, 74, "{ran:?}");
    assert!(ran.err.contains("state"), "{ran:?}");
}

/// What the state directory and the socket let others see: nothing.
#[test]
fn the_state_is_private() {
    let d = Daemon::new().start();
    let mode = |name: &str| std::fs::metadata(d.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("state"), mode("sock")), (0o700, 0o600));
}

/// `doctor` finds nothing wrong with a daemon that is well, and something with one that is not.
#[test]
fn doctor() {
    let d = Daemon::new().start();
    let args = |d: &Daemon| -> Vec<String> {
        let path = |name: &str| d.path(name).to_str().unwrap().to_owned();
        vec!["doctor".into(), "--config".into(), path("ostler.toml"), "--state-dir".into(), path("state")]
    };
    let well = args(&d);
    let ran = d.cli(&well.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(ran.code, 0, "{ran:?}");
    // Not told where to look, it looks where the daemon that answers says, and not into the caller's own directories.
    let ran = d.cli(&["doctor"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let looked = [d.path("ostler.toml"), d.path("state")].map(|p| p.to_str().unwrap().to_owned());
    assert!(looked.iter().all(|path| ran.out.contains(path)), "{looked:?}: {ran:?}");
    assert!(!ran.out.contains("another state directory"), "{ran:?}");
    let ill = Daemon::new();
    std::fs::create_dir(ill.path("state")).unwrap();
    std::fs::write(ill.path("state/ostler.db"), "no database".repeat(20)).unwrap();
    let args = args(&ill);
    let ran = ill.cli(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.out.contains("ostler.db"), "{ran:?}");
}
