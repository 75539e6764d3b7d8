//! The writer: group commit, full disks, failed commits, and files that are not ours.

use std::sync::Mutex;
use std::sync::mpsc;

use super::*;
use crate::model::event::EventKind;

/// A store as the daemon opens it, with its writer's thread, failing where it is told.
pub(super) fn threaded(path: &std::path::Path, faults: Option<Faults>) -> Store {
    Store::open_in(path, Env { faults, ..Env::default() }).unwrap()
}

pub(super) fn file() -> (tempfile::TempDir, PathBuf) {
    let dir = directory();
    let path = dir.path().join("ostler.db");
    (dir, path)
}

/// Holds the writer's thread, so that what is sent meanwhile becomes one group.
pub(super) fn hold(store: &Store) -> mpsc::Sender<()> {
    let (go, wait) = mpsc::channel::<()>();
    let (entered, inside) = mpsc::channel();
    store.write_then(
        "hold",
        move |_| {
            let _ = entered.send(());
            let _ = wait.recv();
            Ok(())
        },
        |_| (),
    );
    inside.recv().unwrap();
    go
}

pub(super) type Outcomes = Arc<Mutex<Vec<(usize, Result<i64, Error>)>>>;

pub(super) type Member = Box<dyn Fn(&mut Tx<'_>) -> Result<(), Error> + Send>;

/// Sends `members`, each writing one event and then what it is told to, as one group; returns their outcomes in the order
/// in which they were answered.
pub(super) fn group(store: &Store, members: Vec<Member>) -> Vec<(usize, Result<i64, Error>)> {
    let go = hold(store);
    let outcomes = Outcomes::default();
    let (done, all) = mpsc::channel();
    let count = members.len();
    for (n, member) in members.into_iter().enumerate() {
        let (outcomes, done) = (outcomes.clone(), done.clone());
        store.write_then(
            "member",
            move |tx| {
                let seq = tx.emit_locked(EventKind::Notice, KEY, "s", &serde_json::json!({ "n": n }))?;
                member(tx)?;
                Ok(seq)
            },
            move |outcome| {
                outcomes.lock().unwrap().push((n, outcome));
                let _ = done.send(());
            },
        );
    }
    go.send(()).unwrap();
    for _ in 0..count {
        all.recv().unwrap();
    }
    let mut all = outcomes.lock().unwrap();
    std::mem::take(&mut *all)
}

pub(super) fn well(_: &mut Tx<'_>) -> Result<(), Error> {
    Ok(())
}

pub(super) fn kept(store: &Store) -> Vec<i64> {
    store.events(Some(KEY), 0, 1000).unwrap().items.iter().map(|e| e.seq).collect()
}

/// A fault in one transaction is not the end of the writer: nobody of its group is acknowledged, and the next is served.
#[test]
fn a_transaction_that_panics_fails_its_group_and_no_other() {
    let (_dir, path) = file();
    let store = threaded(&path, None);
    let outcomes = group(&store, vec![Box::new(well), Box::new(|_| panic!("a fault, wanted by the test"))]);
    assert!(outcomes.iter().all(|(_, o)| matches!(o, Err(Error::Unavailable(_)))), "{outcomes:?}");
    assert_eq!(kept(&store), Vec::<i64>::new());
    assert!(!store.is_working(), "a service manager's watchdog would take it for alive for ever");
    let outcomes = group(&store, vec![Box::new(well)]);
    assert!(outcomes[0].1.is_ok(), "{outcomes:?}");
    assert_eq!(kept(&store).len(), 1);
}

#[test]
fn a_202_is_durable() {
    let (_dir, path) = file();
    let store = threaded(&path, None);
    let ask = |sql: &'static str| {
        store
            .write("ask", move |tx| Ok(tx.conn().query_row(sql, [], |r| r.get::<_, rusqlite::types::Value>(0))?))
            .unwrap()
    };
    assert_eq!(ask("PRAGMA synchronous"), rusqlite::types::Value::Integer(2), "FULL: each commit waits for the disk");
    assert_eq!(ask("PRAGMA journal_mode"), rusqlite::types::Value::Text("wal".into()));
}

#[test]
fn it_is_still_durable_after_the_file_was_opened_anew() {
    let (_dir, path) = file();
    let struck = Mutex::new(false);
    let faults: Faults = Arc::new(move |name, step| {
        name == "doomed" && step == Step::Commit && !std::mem::replace(&mut *struck.lock().unwrap(), true)
    });
    let store = threaded(&path, Some(faults));
    assert!(store.write("doomed", |_| Ok(())).is_err());
    let sync =
        store.write("ask", |tx| Ok(tx.conn().query_row("PRAGMA synchronous", [], |r| r.get::<_, i64>(0))?)).unwrap();
    assert_eq!(sync, 2);
}

#[test]
fn a_refused_member_sinks_alone_and_tells_nobody() {
    let (_dir, path) = file();
    let store = threaded(&path, None);
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = told.clone();
    store
        .set_observer(Arc::new(move |c| sink.lock().unwrap().push(c.events.iter().map(|e| e.seq).collect::<Vec<_>>())));
    let outcomes = group(
        &store,
        vec![
            Box::new(well),
            Box::new(|tx| {
                tx.conn().execute("INSERT INTO meta VALUES ('sunk', 1)", [])?;
                Err(Refusal::QueueFull.into())
            }),
            Box::new(|tx| Ok(tx.conn().execute_batch("INSERT INTO nowhere VALUES (1)")?)),
            Box::new(well),
        ],
    );
    assert!(matches!(outcomes[0].1, Ok(1)) && outcomes[3].1.is_ok());
    assert_eq!(outcomes[1].1.as_ref().unwrap_err().refusal(), Some(Refusal::QueueFull));
    assert!(matches!(outcomes[2].1, Err(Error::Sql(_))));
    assert_eq!(kept(&store).len(), 2);
    assert_eq!(*told.lock().unwrap(), [kept(&store)], "one commit, told once, with what was kept");
    let sunk = store.write("ask", |tx| {
        Ok(tx.conn().query_row("SELECT count(*) FROM meta WHERE name='sunk'", [], |r| r.get::<_, i64>(0))?)
    });
    assert_eq!(sunk.unwrap(), 0);
}

#[test]
fn one_that_is_refused_alone_leaves_nothing_either() {
    let (_dir, path) = file();
    let store = threaded(&path, None);
    let told = Arc::new(Mutex::new(0));
    let sink = told.clone();
    store.set_observer(Arc::new(move |_| *sink.lock().unwrap() += 1));
    let outcome = store.write("alone", |tx| {
        tx.emit_locked(EventKind::Notice, KEY, "s", &Value::Null)?;
        Err::<(), _>(Refusal::Stale.into())
    });
    assert_eq!(refused(outcome), Refusal::Stale);
    assert!(kept(&store).is_empty() && *told.lock().unwrap() == 0);
    store.write("next", |_| Ok(())).unwrap();
}

#[test]
fn members_that_fit_are_kept_when_the_disk_fills_up() {
    let (_dir, path) = file();
    let store = threaded(&path, None);
    let pages = |n: i64| {
        store
            .write("limit", move |tx| {
                let have: i64 = tx.conn().query_row("PRAGMA page_count", [], |r| r.get(0))?;
                let limit = if n < 0 { i64::from(u32::MAX - 1) } else { have + n };
                Ok(tx.conn().query_row(&format!("PRAGMA max_page_count={limit}"), [], |r| r.get::<_, i64>(0))?)
            })
            .unwrap()
    };
    pages(4);
    let big = |tx: &mut Tx<'_>| {
        tx.conn().execute("INSERT INTO meta VALUES (hex(randomblob(200000)), 1)", [])?;
        Ok(())
    };
    let outcomes = group(&store, vec![Box::new(well), Box::new(big), Box::new(well), Box::new(well)]);
    let mut good: Vec<_> = outcomes.iter().filter(|(_, o)| o.is_ok()).map(|(n, _)| *n).collect();
    good.sort_unstable();
    assert_eq!(good, [0, 2, 3], "{outcomes:?}");
    assert_eq!(kept(&store).len(), 3);
    let full = outcomes.iter().find(|(n, _)| *n == 1).unwrap().1.as_ref().unwrap_err();
    assert!(matches!(full, Error::Sql(_) | Error::Unavailable(_)), "{full:?}");
    // Once space is back it goes on.
    pages(-1);
    let outcomes = group(&store, vec![Box::new(well), Box::new(big)]);
    assert!(outcomes.iter().all(|(_, o)| o.is_ok()), "{outcomes:?}");
}

#[test]
fn a_group_that_is_lost_whole_is_run_again_one_by_one() {
    let (_dir, path) = file();
    let store = threaded(&path, None);
    let lost = |tx: &mut Tx<'_>| {
        // What SQLite does of itself when a disk is full at a bad moment.
        tx.conn().execute_batch("ROLLBACK")?;
        Err(Refusal::Overloaded.into())
    };
    let outcomes = group(&store, vec![Box::new(well), Box::new(lost), Box::new(well)]);
    let by = |n| outcomes.iter().find(|(m, _)| *m == n).unwrap().1.clone();
    assert!(by(0).is_ok() && by(2).is_ok());
    assert!(matches!(by(1), Err(Error::Unavailable(_))));
    assert_eq!(kept(&store), [by(0).unwrap(), by(2).unwrap()]);
}

#[test]
fn a_failed_commit_acknowledges_nobody_and_the_next_one_works() {
    for (step, survives) in [(Step::Commit, false), (Step::Committed, true)] {
        let (_dir, path) = file();
        let armed = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let trigger = armed.clone();
        let faults: Faults =
            Arc::new(move |name, at| name == "member" && at == step && trigger.swap(false, Ordering::SeqCst));
        let store = threaded(&path, Some(faults));
        let told = Arc::new(Mutex::new(0));
        let sink = told.clone();
        store.set_observer(Arc::new(move |_| *sink.lock().unwrap() += 1));
        let outcomes = group(&store, vec![Box::new(well), Box::new(well)]);
        assert!(outcomes.iter().all(|(_, o)| matches!(o, Err(Error::Unavailable(_)))), "{step:?}: {outcomes:?}");
        assert_eq!(*told.lock().unwrap(), 0, "{step:?}");
        assert_eq!(kept(&store).len(), if survives { 2 } else { 0 }, "{step:?}");
        let outcomes = group(&store, vec![Box::new(well)]);
        assert!(outcomes[0].1.is_ok(), "{step:?}: {outcomes:?}");
        let seqs = kept(&store);
        assert!(seqs.windows(2).all(|w| w[0] < w[1]), "{step:?}: {seqs:?}");
    }
}

#[test]
fn a_doubt_is_told_and_what_it_did_is_found() {
    let mut rig = Rig::new();
    let (gone, _) = rig.running("local:gone", "m");
    let (cut, turn) = rig.running("local:cut", "m");
    let (well, _) = rig.running("local:well", "m");
    let doubtful = Arc::new(AtomicBool::new(false));
    let fails = doubtful.clone();
    let env = Env {
        faults: Some(Arc::new(move |_, step| step == Step::Committed && fails.load(Ordering::SeqCst))),
        ..env(&rig.now)
    };
    rig.store = Store::open_in(&rig.path, env).unwrap();
    let told = Arc::new(AtomicI64::new(0));
    let count = told.clone();
    rig.store.set_doubt(Arc::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
    }));
    doubtful.store(true, Ordering::SeqCst);
    let suspended = rig.store.suspend(Target::Key("local:gone".into()), "agent".into(), Actor::Operator);
    assert!(matches!(suspended, Err(Error::Unavailable(_))));
    assert!(rig.store.cancel(Target::Key("local:cut".into()), false).is_err());
    doubtful.store(false, Ordering::SeqCst);
    assert_eq!(told.load(Ordering::SeqCst), 2);
    assert!(rig.store.answers(Duration::from_secs(5)));
    let found = rig.store.overlooked(&[gone.sid, cut.sid, well.sid]).unwrap();
    assert_eq!((found.gone, found.cancelled), (vec![gone.sid], vec![(cut.sid, turn.turn.tid)]));
    assert!(found.newest > 0);
}

#[test]
fn a_message_whose_commit_was_in_doubt_is_sent_again_and_kept_once() {
    for step in [Step::Commit, Step::Committed] {
        let (_dir, path) = file();
        let armed = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let trigger = armed.clone();
        let faults: Faults =
            Arc::new(move |name, at| name == "accept_message" && at == step && trigger.swap(false, Ordering::SeqCst));
        let store = threaded(&path, Some(faults));
        let message = Accept {
            key: KEY.into(),
            text: "m".into(),
            original: "m".into(),
            client_id: Some("x".into()),
            agent: "agent".into(),
            limits: LIMITS,
            session_id: None,
        };
        assert!(matches!(store.accept_message(message.clone()), Err(Error::Unavailable(_))));
        let again = store.accept_message(message.clone()).unwrap();
        assert_eq!(again.duplicate, step == Step::Committed);
        assert_eq!(store.counts().unwrap().queued, 1);
        let mut other = Accept { key: "local:other".into(), client_id: None, ..message };
        other.limits.queue_total = 1;
        assert_eq!(refused(store.accept_message(other)), Refusal::Overloaded, "{step:?}: the doubtful one counts");
    }
}

#[test]
fn a_close_checkpoints_and_refuses_what_comes_later() {
    let (dir, path) = file();
    let store = threaded(&path, None);
    group(&store, vec![Box::new(well)]);
    store.close(Instant::now() + Duration::from_secs(10)).unwrap();
    // The log is gone with the last connection, which is no loss to whoever looks after the files.
    store.check_files();
    assert_eq!(store.shared.condition.trouble(), None);
    assert!(matches!(store.write("late", |_| Ok(())), Err(Error::Unavailable(_))));
    assert!(matches!(store.counts(), Err(Error::Unavailable(_))));
    assert!(!store.answers(Duration::from_secs(1)));
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(left, ["ostler.db"], "no log is left");
    // A successor can write at once.
    let next = threaded(&path, None);
    assert_eq!(kept(&next).len(), 1);
    group(&next, vec![Box::new(well)]);
    let inline = open(&dir.path().join("other.db"), &Arc::default());
    inline.close(Instant::now() + Duration::from_secs(10)).unwrap();
    assert!(matches!(inline.write("late", |_| Ok(())), Err(Error::Unavailable(_))), "inline as well");
}

#[test]
fn a_writer_that_is_held_up_costs_the_caller_its_patience_only() {
    let (_dir, path) = file();
    let store = threaded(&path, None);
    let go = hold(&store);
    let hurried = store.until(Instant::now());
    assert!(matches!(hurried.write("late", |_| Ok(())), Err(Error::Unavailable(_))));
    assert!(!store.answers(Duration::from_millis(1)));
    assert!(store.is_working(), "inside a transaction: a stalled disk is no reason to kill the daemon");
    go.send(()).unwrap();
    assert!(store.answers(Duration::from_secs(30)));
}

#[test]
fn a_backup_is_a_database_of_its_own() {
    let (dir, path) = file();
    let store = threaded(&path, None);
    group(&store, vec![Box::new(well)]);
    let to = dir.path().join("copy.db");
    store.backup(&to).unwrap();
    group(&store, vec![Box::new(well)]);
    assert_eq!(kept(&threaded(&to, None)).len(), 1);
    assert!(store.backup(std::path::Path::new("/nowhere/copy.db")).is_err());
}

/// What is there is left alone, and half a copy is none.
#[test]
fn a_backup_that_fails_leaves_nothing_and_takes_nothing() {
    let (dir, path) = file();
    let store = threaded(&path, None);
    let to = dir.path().join("copy.db");
    std::fs::write(&to, "mine").unwrap();
    assert!(store.backup(&to).is_err());
    assert_eq!(std::fs::read(&to).unwrap(), b"mine");
}

/// What stands in a directory, byte for byte.
fn bytes(dir: &std::path::Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|f| f.unwrap())
        // The log's index is no content: whoever looks at a log makes one.
        .filter(|f| !f.file_name().to_string_lossy().ends_with("-shm"))
        .map(|f| (f.file_name(), std::fs::read(f.path()).unwrap()))
        .collect();
    all.sort();
    all
}

/// A database of ours in good order, changed by `sql` if any; `log`: it still has its log, as after a death.
fn ours(sql: &str, log: bool) -> (tempfile::TempDir, PathBuf) {
    let (dir, path) = file();
    let made = dir.path().join("made.db");
    let store = threaded(&made, None);
    group(&store, vec![Box::new(well)]);
    store.close(Instant::now() + Duration::from_secs(10)).unwrap();
    let conn = rusqlite::Connection::open(&made).unwrap();
    if !sql.is_empty() {
        conn.execute_batch(sql).unwrap();
    }
    if log {
        std::fs::copy(made.with_extension("db-wal"), path.with_extension("db-wal")).unwrap();
        std::fs::copy(&made, &path).unwrap();
        drop(conn);
    } else {
        drop(conn);
        std::fs::copy(&made, &path).unwrap();
    }
    for f in std::fs::read_dir(dir.path()).unwrap() {
        let f = f.unwrap();
        if f.file_name().to_string_lossy().starts_with("made") {
            std::fs::remove_file(f.path()).unwrap();
        }
    }
    (dir, path)
}

#[test]
fn a_file_of_a_newer_ostler_is_left_as_it_is() {
    for log in [false, true] {
        let (dir, path) = ours("PRAGMA journal_mode=WAL; PRAGMA user_version=99;", log);
        let before = bytes(dir.path());
        assert_eq!(before.len(), if log { 2 } else { 1 });
        match Store::open(&path).unwrap_err() {
            Error::Newer { found, known, .. } => assert_eq!((found, known), (99, schema_version())),
            other => panic!("{other}"),
        }
        assert!(before == bytes(dir.path()), "log={log}");
    }
}

#[test]
fn a_file_of_another_program_is_left_as_it_is() {
    let other = |sql: &str| {
        let (dir, path) = file();
        rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        (dir, path)
    };
    let plain = |content: &[u8]| {
        let (dir, path) = file();
        std::fs::write(&path, content).unwrap();
        (dir, path)
    };
    let broken_head = {
        let (dir, path) = ours("", false);
        let mut content = std::fs::read(&path).unwrap();
        content[3] = b'X';
        std::fs::write(&path, content).unwrap();
        (dir, path)
    };
    for (name, (dir, path)) in [
        ("another's", other("CREATE TABLE t (x)")),
        ("another's with a log", ours("PRAGMA journal_mode=WAL; PRAGMA application_id=7;", true)),
        ("a text", plain(&b"hello\n".repeat(100))),
        ("a few bytes", plain(b"SQLite format 3\0")),
        ("a broken head", broken_head),
    ] {
        let before = bytes(dir.path());
        let error = Store::open(&path).unwrap_err();
        assert!(matches!(error, Error::Foreign { .. }), "{name}: {error}");
        assert!(before == bytes(dir.path()), "{name}");
    }
}

#[test]
fn a_damaged_file_is_left_as_it_is() {
    for (name, damage) in [
        ("cut short", (|c: &mut Vec<u8>| c.truncate(3000)) as fn(&mut Vec<u8>)),
        ("its first page is gone", |c| c[100..4096].fill(0xAA)),
    ] {
        let (dir, path) = ours("", false);
        let mut content = std::fs::read(&path).unwrap();
        damage(&mut content);
        std::fs::write(&path, content).unwrap();
        let before = bytes(dir.path());
        let error = Store::open(&path).unwrap_err();
        assert!(matches!(error, Error::Open { .. } | Error::Foreign { .. }), "{name}: {error}");
        assert!(before == bytes(dir.path()), "{name}");
    }
}

#[test]
fn an_empty_file_and_none_are_new_and_a_directory_is_an_error() {
    let (dir, path) = file();
    std::fs::write(&path, b"").unwrap();
    threaded(&path, None).close(Instant::now() + Duration::from_secs(10)).unwrap();
    threaded(&dir.path().join("none.db"), None);
    assert!(matches!(Store::open(dir.path()).unwrap_err(), Error::Open { .. } | Error::Foreign { .. }));
    assert!(matches!(Store::open(std::path::Path::new("/nowhere/ostler.db")).unwrap_err(), Error::Open { .. }));
}

#[test]
fn what_is_committed_after_the_file_was_opened_anew_is_there_for_everybody() {
    let (dir, path) = file();
    let armed = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let trigger = armed.clone();
    let faults: Faults =
        Arc::new(move |name, at| name == "member" && at == Step::Commit && trigger.swap(false, Ordering::SeqCst));
    let store = threaded(&path, Some(faults));
    for round in 1..=5 {
        let outcomes = group(&store, vec![Box::new(well)]);
        assert!(outcomes[0].1.is_ok());
        armed.store(true, Ordering::SeqCst);
        let outcomes = group(&store, vec![Box::new(well)]);
        assert!(outcomes[0].1.is_err());
        let outcomes = group(&store, vec![Box::new(well)]);
        assert!(outcomes[0].1.is_ok());
        assert_eq!(kept(&store).len(), 2 * round, "a reader that was open before");
        // What a death would leave.
        let copy = dir.path().join(format!("copy{round}.db"));
        std::fs::copy(&path, &copy).unwrap();
        std::fs::copy(path.with_extension("db-wal"), copy.with_extension("db-wal")).unwrap();
        assert_eq!(kept(&threaded(&copy, None)).len(), 2 * round, "after a death");
    }
}

#[test]
fn a_caller_that_may_commits_by_itself_where_the_writer_is_free() {
    let (_dir, path) = file();
    let store = threaded(&path, None);
    let me = std::thread::current().id();
    let who = |_: &mut Tx<'_>| Ok(std::thread::current().id());
    assert_eq!(store.write_here("who", who).unwrap(), me);
    assert_ne!(store.write("who", who).unwrap(), me);
    store.close(std::time::Instant::now() + Duration::from_secs(10)).unwrap();
    assert!(matches!(store.write_here("who", who), Err(Error::Unavailable(_))), "closed for it too");
}

/// With many writers a number that is drawn before the lock could be committed after a higher one of the same key.
#[test]
#[should_panic(expected = "before a row of its sessions is locked")]
fn no_number_is_drawn_before_a_row_of_the_keys_sessions_is_locked() {
    let rig = Rig::new();
    rig.say(KEY, "a message");
    let _ = rig.store.write("blind", |tx| tx.emit(EventKind::Notice, KEY, "s", None, &Value::Null));
}
