//! The schema: numbered migrations, and the check that a file is ours.
//!
//! A migration is never changed once released; a new one is added. Each runs in one transaction with its number.

use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::Error;

/// `application_id` of our files: "ostl".
const APPLICATION_ID: i32 = 0x6f73_746c;

/// Every migration, in order; the schema's version is how many have run.
const MIGRATIONS: &[&str] = &[include_str!("0001_first.sql")];

/// The schema version that this program writes.
#[must_use]
pub const fn version() -> usize {
    MIGRATIONS.len()
}

/// Opens a database file that is ours or new, and brings its schema up to date.
///
/// # Errors
/// The file is no database, damaged, another program's, or of a newer ostler: it is left untouched. Without `durable` a commit does not wait for
/// the disk.
pub fn open(path: &Path, durable: bool) -> Result<Connection, Error> {
    inspect(path)?;
    let mut conn = Connection::open(path).map_err(|e| Error::open(path, &e))?;
    configure(&conn, durable).map_err(|e| Error::open(path, &e))?;
    migrate(&mut conn).map_err(|e| Error::open(path, &e))?;
    Ok(conn)
}

/// Opens a reading connection to a file that [`open`] has made ready.
///
/// # Errors
/// The file cannot be opened.
pub fn open_reader(path: &Path) -> Result<Connection, Error> {
    let conn = Connection::open(path).map_err(|e| Error::open(path, &e))?;
    conn.execute_batch("PRAGMA query_only=ON; PRAGMA cache_size=-1024; PRAGMA mmap_size=268435456;")
        .and_then(|()| conn.busy_timeout(std::time::Duration::from_secs(5)))
        .and_then(|()| keep_plans(&conn))
        .map_err(|e| Error::open(path, &e))?;
    conn.set_prepared_statement_cache_capacity(64);
    Ok(conn)
}

/// A cached statement keeps its plan whatever is bound to it. Without this, SQLite compiles many a statement with an
/// `ORDER BY` anew each time it runs, in case a plan for the new values were better.
fn keep_plans(conn: &Connection) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(|_| ())
}

/// What a look at a database says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exam {
    /// `ok`, or what is damaged.
    pub sound: String,
    /// The schema's version.
    pub schema: i64,
    /// Sessions in it.
    pub sessions: i64,
    /// The file's size.
    pub bytes: u64,
}

/// Examines a database for the doctor, beside a daemon that may have it open; changes nothing.
///
/// # Errors
/// It cannot be read, is foreign, or of a newer ostler.
pub fn examine(path: &Path) -> Result<Exam, Error> {
    inspect(path)?;
    let conn = open_quietly(path)?;
    let ask = || -> rusqlite::Result<Exam> {
        Ok(Exam {
            sound: conn.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))?,
            schema: conn.query_row("PRAGMA user_version", [], |r| r.get(0))?,
            sessions: conn.query_row("SELECT count(*) FROM sessions WHERE hidden=0", [], |r| r.get(0))?,
            bytes: std::fs::metadata(path).map_or(0, |m| m.len()),
        })
    };
    ask().map_err(|e| Error::open(path, &e))
}

/// Opens without leaving a trace: root's doctor must not make files that the daemon's user cannot open. Where no log is
/// open, the file is read as it lies.
fn open_quietly(path: &Path) -> Result<Connection, Error> {
    let shared = path.with_file_name(format!("{}-shm", path.file_name().unwrap_or_default().to_string_lossy()));
    let opened = if shared.exists() {
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
    } else {
        let name = percent_encoding::utf8_percent_encode(&path.to_string_lossy(), percent_encoding::NON_ALPHANUMERIC)
            .to_string();
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        Connection::open_with_flags(format!("file:{name}?immutable=1"), flags)
    };
    opened.map_err(|e| Error::open(path, &e))
}

/// Whether a session of this id was ever kept in a database.
///
/// # Errors
/// It cannot be read.
pub fn knows_session(path: &Path, session_id: &str) -> Result<bool, Error> {
    let conn = open_quietly(path)?;
    conn.query_row("SELECT EXISTS (SELECT 1 FROM sessions WHERE id=?1)", [session_id], |r| r.get(0))
        .map_err(|e| Error::open(path, &e))
}

/// Looks at an existing file without changing a byte of it.
fn inspect(path: &Path) -> Result<(), Error> {
    match std::fs::metadata(path) {
        Ok(m) if m.len() == 0 => return Ok(()),
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::Open { path: path.into(), why: e.to_string() }),
    }
    let foreign = |why: String| Error::Foreign { path: path.into(), why };
    // The header alone tells a foreign file without touching its log: bytes 68..72 are the application id.
    let mut head = [0u8; 100];
    let read = std::fs::File::open(path).and_then(|mut f| std::io::Read::read(&mut f, &mut head));
    match read {
        Ok(100) if head.starts_with(b"SQLite format 3\0") => {}
        Ok(_) => return Err(foreign("it is not an SQLite database".into())),
        Err(e) => return Err(Error::Open { path: path.into(), why: e.to_string() }),
    }
    // A log that was not folded in yet may hold the header, so ask SQLite where the file itself says nothing yet.
    let log = path.with_file_name(format!("{}-wal", path.file_name().unwrap_or_default().to_string_lossy()));
    let (id, found) = if log.exists() {
        let conn =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(|e| Error::open(path, &e))?;
        let ask = |sql| conn.query_row(sql, [], |r| r.get::<_, i32>(0));
        (
            ask("PRAGMA application_id").map_err(|e| Error::open(path, &e))?,
            ask("PRAGMA user_version").map_err(|e| Error::open(path, &e))?,
        )
    } else {
        let word = |at: usize| i32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        (word(68), word(60))
    };
    if id != APPLICATION_ID {
        return Err(foreign("another program's database".into()));
    }
    let found = usize::try_from(found).unwrap_or(usize::MAX);
    if found > version() {
        return Err(Error::Newer { path: path.into(), found, known: version() });
    }
    Ok(())
}

/// The settings of the one writing connection. Durable at each commit: `synchronous=FULL`.
fn configure(conn: &Connection, durable: bool) -> rusqlite::Result<()> {
    conn.busy_timeout(std::time::Duration::from_secs(5))?;
    conn.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=OFF; PRAGMA wal_autocheckpoint=4000;
         PRAGMA journal_size_limit=16777216; PRAGMA cache_size=-8192; PRAGMA temp_store=MEMORY;",
    )?;
    if !durable {
        conn.execute_batch("PRAGMA synchronous=OFF")?;
    }
    keep_plans(conn)?;
    conn.set_prepared_statement_cache_capacity(256);
    Ok(())
}

fn migrate(conn: &mut Connection) -> rusqlite::Result<()> {
    let have: i32 = conn.query_row("PRAGMA user_version", [], |r| r.get(0))?;
    let have = usize::try_from(have).unwrap_or(0);
    for (n, sql) in MIGRATIONS.iter().enumerate().skip(have) {
        let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        tx.execute_batch(sql)?;
        tx.execute_batch(&format!("PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={}", n + 1))?;
        tx.commit()?;
        log::debug!("schema version {} is in place", n + 1);
    }
    Ok(())
}
