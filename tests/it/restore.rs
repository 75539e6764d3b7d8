//! A backup is put back while the daemon is down: what it has is there, what was there before is kept under another name,
//! and nothing of the old log reaches the new database.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::daemon::{Daemon, Ran, bytes};

const STATE_FILES: [&str; 4] =
    ["state/ostler.db", "state/ostler.db-wal", "state/ostler.db-shm", "state/ostler.db.restoring"];

/// A daemon that said `monday`, was backed up to `copy.db`, said `tuesday` in two sessions, and was killed.
fn killed() -> Daemon {
    let mut d = Daemon::new().start();
    d.send("local:a", "monday");
    d.cli(&["backup", &text(&d.path("copy.db"))]).ok();
    d.send("local:a", "tuesday");
    d.send("local:b", "tuesday");
    d.kill9();
    assert!(std::fs::metadata(d.path("state/ostler.db-wal")).unwrap().len() > 0, "the log is not folded in");
    d
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn restore(d: &Daemon, file: &Path, more: &[&str]) -> Ran {
    let (file, state) = (text(file), text(&d.path("state")));
    d.cli(&[&["restore", &file, "--state-dir", &state], more].concat())
}

/// How many messages of a text a database has, as whoever opens it next reads it.
fn messages(db: &Path, of: &str) -> i64 {
    let conn = rusqlite::Connection::open(db).unwrap();
    let sound: String = conn.query_row("PRAGMA integrity_check", [], |r| r.get(0)).unwrap();
    assert_eq!(sound, "ok", "{}", db.display());
    conn.query_row("SELECT count(*) FROM messages WHERE text=?1", [of], |r| r.get(0)).unwrap()
}

/// The databases that were kept, without their logs.
fn kept(d: &Daemon) -> Vec<PathBuf> {
    let names = std::fs::read_dir(d.path("state")).unwrap().map(|e| e.unwrap().path());
    let mut kept: Vec<_> = names.filter(|p| text(p).contains(".before-restore-") && text(p).ends_with('Z')).collect();
    kept.sort();
    kept
}

/// What stands in the state directory, byte for byte; the lock has the pid of whoever had it last.
fn state(d: &Daemon) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = std::fs::read_dir(d.path("state")).unwrap().map(|e| e.unwrap().path());
    paths.filter(|p| p.is_file() && !p.ends_with("lock")).map(|p| (p.clone(), bytes(&p))).collect()
}

#[test]
fn the_old_log_does_not_reach_the_restored_database() {
    let mut d = killed();
    let said = restore(&d, &d.path("copy.db"), &["--yes"]).ok();
    for word in ["1 session;", "2 sessions;", "the newest message is of 2", ".before-restore-", "--no-resume"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(STATE_FILES[1..].iter().all(|f| !d.path(f).exists()), "{:?}", state(&d).keys());
    let old = kept(&d);
    assert_eq!((old.len(), messages(&old[0], "tuesday")), (1, 2), "the old one is whole, with what its log had");
    let mode = std::fs::metadata(d.path("state/ostler.db")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    d.boot();
    let told = d.said("local:a");
    assert!(told.iter().any(|l| l == "user: monday") && !told.iter().any(|l| l.contains("tuesday")), "{told:?}");
    assert_eq!(d.show("local:a")["key"], "local:a");
    d.send("local:a", "wednesday");
    assert_eq!(d.stop(), 0);
    assert_eq!(messages(&d.path("state/ostler.db"), "tuesday"), 0);
    // Back again: what was kept is a backup, too, and stays what it is.
    let ran = restore(&d, &old[0], &["--yes", "--json"]).json();
    assert_eq!((&ran["restored"]["sessions"], &ran["replaced"]["sessions"]), (&2.into(), &1.into()), "{ran}");
    assert_eq!(kept(&d).len() + usize::from(ran["replaced"]["kept_as"].as_str().unwrap().ends_with("-2")), 2, "{ran}");
    d.boot();
    assert!(d.said("local:b").iter().any(|l| l == "user: tuesday"));
    assert_eq!(d.stop(), 0);
}

#[test]
fn a_daemon_that_runs_keeps_its_database() {
    let mut d = Daemon::new().start();
    d.send("local:a", "monday");
    let copy = d.path("copy.db");
    d.cli(&["backup", &text(&copy)]).ok();
    // Named, or found through the daemon that answers.
    for ran in [restore(&d, &copy, &["--yes"]), d.cli(&["restore", &text(&copy), "--yes"])] {
        assert_eq!((ran.code, ran.out.as_str()), (69, ""), "{ran:?}");
        assert!(ran.err.contains(&text(&d.path("state"))) && ran.err.contains("ostler stop"), "{ran:?}");
    }
    assert_eq!(d.send("local:a", "tuesday"), "echo: tuesday");
    assert!(kept(&d).is_empty());
    assert_eq!(d.stop(), 0);
}

#[test]
fn what_is_no_sound_database_of_ours_is_refused_and_changes_nothing() {
    let mut d = Daemon::new().start();
    d.send("local:a", "monday");
    let copy = d.path("copy.db");
    d.cli(&["backup", &text(&copy)]).ok();
    assert_eq!(d.stop(), 0);
    let before = state(&d);
    let file = |name: &str, bytes: &[u8]| {
        std::fs::write(d.path(name), bytes).unwrap();
        d.path(name)
    };
    let whole = bytes(&copy);
    let mut torn = whole.clone();
    torn[8192..12288].fill(0xff);
    let newer = file("newer.db", &whole);
    rusqlite::Connection::open(&newer).unwrap().pragma_update(None, "user_version", 99).unwrap();
    rusqlite::Connection::open(d.path("foreign.db")).unwrap().execute_batch("CREATE TABLE t(x)").unwrap();
    rusqlite::Connection::open(d.path("vacant.db")).unwrap().execute_batch("PRAGMA journal_mode=WAL").unwrap();
    std::os::unix::fs::symlink(d.path("state/ostler.db"), d.path("link.db")).unwrap();
    for (path, why) in [
        (d.path("absent.db"), "No such file"),
        (d.path("state"), "not a file"),
        (file("text.db", &[b'x'; 8192]), "not an SQLite database"),
        (file("empty.db", b""), "not an ostler database"),
        (d.path("vacant.db"), "not an ostler database"),
        (d.path("foreign.db"), "another program's database"),
        (newer, "use the newer ostler"),
        (file("torn.db", &torn), "torn.db"),
        (file("half.db", &whole[..whole.len() / 2]), "half.db"),
        (d.path("state/ostler.db"), "name a backup"),
        (d.path("link.db"), "name a backup"),
    ] {
        let was = path.is_file().then(|| bytes(&path));
        let ran = restore(&d, &path, &["--yes"]);
        assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
        assert!(ran.err.contains(&text(&path)) && ran.err.contains(why), "{}: {ran:?}", path.display());
        assert_eq!(path.is_file().then(|| bytes(&path)), was, "{}", path.display());
        assert!(!d.path("absent.db").exists());
        assert!(state(&d) == before, "{}: {:?}", path.display(), state(&d).keys());
    }
    // Nobody to be asked.
    let ran = restore(&d, &copy, &[]);
    assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{ran:?}");
    assert!(ran.err.contains("--yes") && state(&d) == before, "{ran:?}");
    // No state directory is made for a file that cannot be used.
    let ran = d.cli(&["restore", &text(&d.path("empty.db")), "--state-dir", &text(&d.path("new")), "--yes"]);
    assert!(ran.code == 1 && !d.path("new").exists(), "{ran:?}");
}

/// A copy of a dead daemon's files: what stands in the log beside it only is restored, too, and into an empty place.
#[test]
fn a_file_with_a_log_is_restored_with_it() {
    let d = killed();
    std::fs::create_dir(d.path("other")).unwrap();
    for name in ["ostler.db", "ostler.db-wal"] {
        std::fs::copy(d.path("state").join(name), d.path("other").join(name)).unwrap();
    }
    let file = d.path("other/ostler.db");
    let was = [bytes(&file), bytes(&d.path("other/ostler.db-wal"))];
    let new = text(&d.path("new"));
    let told = d.cli(&["restore", &text(&file), "--state-dir", &new, "--yes", "--json"]).json();
    assert_eq!(told["file"], text(&file));
    assert_eq!(told["database"], format!("{new}/ostler.db"));
    assert_eq!((&told["restored"]["sessions"], &told["replaced"]), (&2.into(), &serde_json::Value::Null), "{told}");
    assert!(told["restored"]["newest_message"].as_str().unwrap().ends_with('Z'), "{told}");
    assert_eq!(messages(&d.path("new/ostler.db"), "tuesday"), 2);
    assert!([bytes(&file), bytes(&d.path("other/ostler.db-wal"))] == was, "the backup is only read");
    assert_eq!(std::fs::metadata(&new).unwrap().permissions().mode() & 0o777, 0o700);
}

/// An old database that cannot be opened is moved away with its log; one that somebody has open stays.
#[test]
fn an_old_database_that_cannot_be_opened_is_kept_with_its_log() {
    let mut d = killed();
    let db = d.path("state/ostler.db");
    let mut garbage = bytes(&db);
    garbage[..100].fill(b'x');
    std::fs::write(&db, &garbage).unwrap();
    // Whole, it would have the header.
    let mut log = bytes(&d.path("state/ostler.db-wal"));
    log[..32].fill(b'x');
    std::fs::write(d.path("state/ostler.db-wal"), &log).unwrap();
    let told = restore(&d, &d.path("copy.db"), &["--yes", "--json"]).json();
    assert!(told["replaced"]["problem"].is_string(), "{told}");
    let old = told["replaced"]["kept_as"].as_str().unwrap();
    assert!(bytes(Path::new(old)) == garbage && bytes(Path::new(&format!("{old}-wal"))) == log, "{told}");
    assert!(STATE_FILES[1..].iter().all(|f| !d.path(f).exists()), "{:?}", state(&d).keys());
    d.boot();
    assert!(d.said("local:a").iter().any(|l| l == "user: monday"));
    assert_eq!(d.stop(), 0);
    let other = rusqlite::Connection::open(&db).unwrap();
    other.execute_batch("PRAGMA journal_mode=WAL; BEGIN; SELECT count(*) FROM messages").unwrap();
    let ran = restore(&d, &d.path("copy.db"), &["--yes"]);
    assert!(ran.code == 1 && ran.err.contains(&text(&db)) && ran.err.contains("has it open"), "{ran:?}");
    assert_eq!(kept(&d).len(), 1);
    assert!(!d.path("state/ostler.db.restoring").exists());
}

/// Killed at any step: the old one is whole, or the new one is, and the next try does it.
#[cfg(feature = "failpoints")]
#[test]
fn a_restore_that_is_killed_leaves_one_of_the_two_whole() {
    for (step, new) in [("copied", false), ("folded", false), ("kept", false), ("replaced", true)] {
        let d = killed();
        let (file, state_dir) = (text(&d.path("copy.db")), text(&d.path("state")));
        let mut command = d.command(&["restore", &file, "--state-dir", &state_dir, "--yes"]);
        command.env("OSTLER_FAILPOINTS", format!("restore.{step}=kill:1"));
        let ran = crate::daemon::run(&mut command, "");
        assert_ne!(ran.code, 0, "{step}: {ran:?}");
        let db = d.path("state/ostler.db");
        if new {
            assert!(!d.path("state/ostler.db-wal").exists());
        }
        assert_eq!(messages(&db, "tuesday"), if new { 0 } else { 2 }, "{step}");
        assert_eq!(messages(&db, "monday"), 1, "{step}");
        restore(&d, &d.path("copy.db"), &["--yes"]).ok();
        assert_eq!(messages(&db, "tuesday"), 0, "{step}");
        assert!(!d.path("state/ostler.db.restoring").exists());
        assert!(kept(&d).iter().any(|old| messages(old, "tuesday") == 2), "{step}");
    }
}
