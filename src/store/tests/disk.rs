//! The writer beside others: outside readers, full disks, faults of those whom it tells.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use super::write::{file, group, hold, kept, threaded, well};
use super::*;
use crate::store::sqlite::engine::QUEUE;
use crate::store::sqlite::schema;
use crate::store::sqlite::writer::checkpoint;

/// Somebody outside who reads, and does not end.
fn reader(path: &std::path::Path) -> rusqlite::Connection {
    let conn = rusqlite::Connection::open(path).unwrap();
    conn.execute_batch("BEGIN").unwrap();
    conn.query_row("SELECT count(*) FROM sessions", [], |r| r.get::<_, i64>(0)).unwrap();
    conn
}

fn log_of(path: &std::path::Path) -> u64 {
    std::fs::metadata(path.with_extension("db-wal")).map_or(0, |m| m.len())
}

/// It neither waits for a reader that is at the log's end, nor for one behind; and a transaction waits for a lock again.
#[test]
fn a_checkpoint_waits_for_no_reader() {
    for behind in [false, true] {
        let (_dir, path) = file();
        let conn = schema::open(&path, true).unwrap();
        let outside = reader(&path);
        if behind {
            conn.execute("INSERT INTO meta VALUES ('later', 1)", []).unwrap();
        }
        let since = Instant::now();
        assert!(!checkpoint(&conn).unwrap(), "behind: {behind}");
        assert!(since.elapsed() < schema::BUSY, "it waited as a transaction does for a lock");
        let wait: i64 = conn.query_row("PRAGMA busy_timeout", [], |r| r.get(0)).unwrap();
        assert_eq!(wait, 5000);
        assert!(log_of(&path) > 0);
        drop(outside);
        assert!(checkpoint(&conn).unwrap());
        assert_eq!(log_of(&path), 0);
    }
}

#[test]
fn a_close_beside_a_reader_is_in_order_and_keeps_the_log() {
    let (_dir, path) = file();
    let store = threaded(&path, None);
    group(&store, vec![Box::new(well)]);
    let outside = reader(&path);
    group(&store, vec![Box::new(well)]);
    store.close(Instant::now() + Duration::from_secs(30)).unwrap();
    assert!(log_of(&path) > 0);
    drop(outside);
    assert_eq!(kept(&threaded(&path, None)).len(), 2);
}

/// A full disk at the COMMIT leaves nothing in doubt: the members that find room are kept.
#[test]
fn a_group_without_room_is_run_one_by_one() {
    let (_dir, path) = file();
    let full = Arc::new(AtomicBool::new(true));
    let fails = full.clone();
    let faults: Faults =
        Arc::new(move |name, step| name == "member" && step == Step::Room && fails.swap(false, Ordering::SeqCst));
    let store = threaded(&path, Some(faults));
    let doubts = Arc::new(AtomicI64::new(0));
    let count = doubts.clone();
    store.set_doubt(Arc::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
    }));
    let outcomes = group(&store, vec![Box::new(well), Box::new(well), Box::new(well)]);
    assert!(outcomes.iter().all(|(_, o)| o.is_ok()), "{outcomes:?}");
    assert_eq!(kept(&store).len(), 3);
    assert_eq!(doubts.load(Ordering::SeqCst), 0);
    assert_eq!(store.trouble(Duration::from_secs(30)), None);
}

/// As long as there is none, everybody hears that nothing was kept, the connection stays, and the trouble is shown.
#[test]
fn a_disk_without_room_refuses_and_nothing_is_in_doubt() {
    let (_dir, path) = file();
    let full = Arc::new(AtomicBool::new(false));
    let fails = full.clone();
    let faults: Faults = Arc::new(move |name, step| {
        matches!(name, "member" | "note_alive") && step == Step::Room && fails.load(Ordering::SeqCst)
    });
    let store = threaded(&path, Some(faults));
    let doubts = Arc::new(AtomicI64::new(0));
    let count = doubts.clone();
    store.set_doubt(Arc::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
    }));
    // Of this connection alone.
    store.write("mark", |tx| Ok(tx.conn().execute_batch("CREATE TEMP TABLE of_this_connection (x)")?)).unwrap();
    full.store(true, Ordering::SeqCst);
    for members in [1, 3] {
        let outcomes = group(&store, (0..members).map(|_| Box::new(well) as _).collect());
        for (_, outcome) in outcomes {
            assert!(outcome.unwrap_err().to_string().contains("nothing was kept"));
        }
    }
    assert_eq!(doubts.load(Ordering::SeqCst), 0);
    assert!(store.is_alive(Duration::from_secs(30)) && store.answers(Duration::from_secs(30)));
    let trouble = store.trouble(Duration::from_secs(30)).unwrap();
    assert!(trouble.contains("full"), "{trouble}");
    full.store(false, Ordering::SeqCst);
    assert_eq!(store.trouble(Duration::from_secs(30)), None, "it is tried whether that is over");
    let there = store.write("ask", |tx| {
        Ok(tx.conn().query_row("SELECT count(*) FROM of_this_connection", [], |r| r.get::<_, i64>(0))?)
    });
    assert_eq!(there.unwrap(), 0, "the database was not opened anew");
    assert!(kept(&store).is_empty());
}

/// A lock that somebody else holds leaves nothing in doubt either.
#[test]
fn a_transaction_that_cannot_begin_was_not_kept() {
    let (_dir, path) = file();
    let store = threaded(&path, None);
    let doubts = Arc::new(AtomicI64::new(0));
    let count = doubts.clone();
    store.set_doubt(Arc::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
    }));
    store.write("hurry", |tx| Ok(tx.conn().busy_timeout(Duration::ZERO)?)).unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let outcomes = group_of_one(&store);
    assert!(outcomes.unwrap_err().to_string().contains("nothing was kept"));
    assert!(!store.answers(Duration::from_secs(30)), "it cannot begin");
    assert!(store.is_alive(Duration::from_secs(30)), "but it is there");
    assert!(store.trouble(Duration::from_secs(30)).unwrap().contains("locked"));
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(store.trouble(Duration::from_secs(30)), None);
    assert_eq!(doubts.load(Ordering::SeqCst), 0);
}

fn group_of_one(store: &Store) -> Result<i64, Error> {
    store.write("member", |tx| tx.emit_locked(crate::model::event::EventKind::Notice, KEY, "s", &Value::Null))
}

/// A fault in what somebody does with the news of a commit is not the end of the store.
#[test]
fn who_is_told_may_panic() {
    let (_dir, path) = file();
    let store = threaded(&path, None);
    let told = Arc::new(Mutex::new(0));
    let count = told.clone();
    store.set_observer(Arc::new(move |_| {
        let mut told = count.lock().unwrap();
        *told += 1;
        if *told == 1 {
            drop(told);
            panic!("a fault of an observer, wanted by the test");
        }
    }));
    group_of_one(&store).unwrap();
    let (done, heard) = std::sync::mpsc::channel();
    let go = hold(&store);
    store.write_then("fault", |_| Ok(()), |_| panic!("a fault of who is told, wanted by the test"));
    store.write_then("member", |_| Ok(()), move |outcome| done.send(outcome).unwrap());
    go.send(()).unwrap();
    heard.recv().unwrap().unwrap();
    group_of_one(&store).unwrap();
    assert_eq!((kept(&store).len(), *told.lock().unwrap()), (2, 2));
    assert!(!store.is_working());
}

/// That is no store that is closed: the same message may be taken in a second.
#[test]
fn a_full_queue_is_an_overload() {
    let (_dir, path) = file();
    let store = threaded(&path, None);
    let go = hold(&store);
    let (done, heard) = std::sync::mpsc::channel();
    for _ in 0..QUEUE {
        let done = done.clone();
        store.write_then("member", |_| Ok(()), move |outcome| done.send(outcome.is_ok()).unwrap());
    }
    let hurried = store.until(Instant::now());
    let refused = hurried.write("late", |_| Ok(())).unwrap_err();
    assert!(matches!(refused, Error::Overloaded), "{refused:?}");
    let (late, outcome) = std::sync::mpsc::channel();
    hurried.write_then("late", |_| Ok(()), move |r| late.send(r).unwrap());
    assert!(matches!(outcome.recv().unwrap(), Err(Error::Overloaded)));
    go.send(()).unwrap();
    drop(done);
    assert_eq!(heard.iter().filter(|well| *well).count(), QUEUE);
}

/// What a reader maps ends the process when the disk cannot give it.
#[test]
fn no_reader_maps_the_file() {
    let (_dir, path) = file();
    let store = threaded(&path, None);
    let mapped = store.read(|conn| conn.row("PRAGMA mmap_size", sql::params![], |r| r.get::<i64>(0)));
    assert_eq!(mapped.unwrap(), Some(0));
}
