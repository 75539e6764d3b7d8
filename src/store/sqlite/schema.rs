//! The schema: numbered migrations, and the check that a file is ours.
//!
//! A migration is never changed once released; a new one is added. Each runs in one transaction with its number.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::failpoint;
use crate::store::Error;
use crate::store::damage::{self, Damaged};
use crate::store::sql::SqlError;

/// `application_id` of our files: "ostl".
pub(super) const APPLICATION_ID: i32 = 0x6f73_746c;

/// How long a transaction waits for a lock that another process holds.
pub(in crate::store) const BUSY: Duration = Duration::from_secs(5);

/// Every migration, in order; the schema's version is how many have run.
pub(in crate::store) const MIGRATIONS: &[&str] =
    &[include_str!("0001_first.sql"), include_str!("0002_portable.sql"), include_str!("0003_shims.sql")];

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
    if !path.exists() {
        create(path).map_err(|e| Error::Open { path: path.into(), why: e.to_string() })?;
    }
    connect(path, durable)
}

/// Opens a database file again that [`open`] has made ready; it makes none.
///
/// # Errors
/// It cannot be opened.
pub fn reopen(path: &Path, durable: bool) -> Result<Connection, Error> {
    connect(path, durable)
}

/// How an existing file is opened: if it is gone, none is made. A database in memory is made by the first who opens it.
fn existing(path: &Path) -> OpenFlags {
    let mut flags = OpenFlags::default();
    flags.set(OpenFlags::SQLITE_OPEN_CREATE, path.to_string_lossy().starts_with("file:"));
    flags
}

/// Opens a database in memory by its URI. There is no file to inspect or to make.
///
/// # Errors
/// SQLite says no.
pub fn open_memory(uri: &Path) -> Result<Connection, Error> {
    connect(uri, false)
}

fn connect(path: &Path, durable: bool) -> Result<Connection, Error> {
    let mut conn = Connection::open_with_flags(path, existing(path)).map_err(|e| Error::open(path, &e))?;
    configure(&conn, durable).map_err(|e| Error::open(path, &e))?;
    migrate(&mut conn).map_err(|e| Error::open(path, &e))?;
    #[cfg(test)]
    let conn = crate::store::tests::cost::watched(conn);
    Ok(conn)
}

/// Makes an empty file that only its owner can read, whatever the umask and the directory's mode, for it will hold
/// conversations. SQLite gives the files beside a database the same mode.
///
/// # Errors
/// It cannot be made, or is there already.
pub fn create(path: &Path) -> std::io::Result<()> {
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map(drop)
}

/// Opens a reading connection to a file that [`open`] has made ready. It maps no pages, so that an unreadable sector or
/// a truncated file is a read error, and not a signal that ends the process.
///
/// # Errors
/// The file cannot be opened.
pub fn open_reader(path: &Path) -> Result<Connection, Error> {
    let conn = Connection::open_with_flags(path, existing(path)).map_err(|e| Error::open(path, &e))?;
    conn.execute_batch("PRAGMA query_only=ON; PRAGMA cache_size=-2048; PRAGMA mmap_size=0;")
        .and_then(|()| conn.busy_timeout(BUSY))
        .and_then(|()| keep_plans(&conn))
        .map_err(|e| Error::open(path, &e))?;
    conn.set_prepared_statement_cache_capacity(64);
    #[cfg(test)]
    let conn = crate::store::tests::cost::watched(conn);
    Ok(conn)
}

/// Makes a cached statement keep its plan whatever is bound to it. Otherwise SQLite compiles many statements with an
/// `ORDER BY` anew for each run, in case the new values allow a better plan.
fn keep_plans(conn: &Connection) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(|_| ())
}

/// The result of an examination.
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
    /// Sessions of which something cannot be used.
    pub damaged: Vec<Damaged>,
}

/// Examines a database for the doctor, beside a daemon that may have it open; changes nothing.
///
/// # Errors
/// It cannot be read, is foreign, or of a newer ostler.
pub fn examine(path: &Path) -> Result<Exam, Error> {
    inspect(path)?;
    let conn = open_quietly(path)?;
    let sound = conn.query_row("PRAGMA quick_check(1)", [], |r| r.get(0)).map_err(|e| Error::open(path, &e))?;
    let ask = || -> Result<Exam, SqlError> {
        Ok(Exam {
            sound,
            schema: conn.query_row("PRAGMA user_version", [], |r| r.get(0))?,
            sessions: conn.query_row("SELECT count(*) FROM sessions WHERE hidden=0", [], |r| r.get(0))?,
            bytes: std::fs::metadata(path).map_or(0, |m| m.len()),
            damaged: damage::find(super::sql(&conn))?,
        })
    };
    ask().map_err(|e| Error::Open { path: path.into(), why: e.to_string() })
}

/// Opens without leaving a trace, for root's doctor must not make files that the daemon's user cannot open. If no log
/// is open, the file is read without one.
fn open_quietly(path: &Path) -> Result<Connection, Error> {
    if beside(path, "-shm").exists() {
        return Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(|e| Error::open(path, &e));
    }
    open_still(path)
}

/// Opens a file that nobody has open, to read it without its log.
///
/// # Errors
/// SQLite says no.
pub(super) fn open_still(path: &Path) -> Result<Connection, Error> {
    let name =
        percent_encoding::utf8_percent_encode(&path.to_string_lossy(), percent_encoding::NON_ALPHANUMERIC).to_string();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(format!("file:{name}?immutable=1"), flags).map_err(|e| Error::open(path, &e))
}

/// Opens an existing file for writing and reads nothing yet. Closing it does not touch the log either.
pub(super) fn open_bare(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open_with_flags(path, existing(path))?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(conn)
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

/// The shims that a database names, by pid and start time, for whoever has no daemon to ask. No file is made or changed.
///
/// # Errors
/// It cannot be read.
pub fn shims_of(path: &Path) -> Result<Vec<(u32, u64)>, Error> {
    let conn = open_quietly(path)?;
    let read = || -> rusqlite::Result<Vec<(u32, u64)>> {
        conn.prepare("SELECT pid, pid_start FROM shims")?
            .query_map([], |r| Ok((r.get(0)?, u64::try_from(r.get::<_, i64>(1)?).unwrap_or(0))))?
            .collect()
    };
    read().map_err(|e| Error::open(path, &e))
}

/// The stop reports in a database, newest first, for whoever has no daemon to ask. No file is made or changed.
///
/// # Errors
/// It is not there, or cannot be read.
pub fn reports_of(path: &Path) -> Result<Vec<serde_json::Value>, Error> {
    std::fs::metadata(path).map_err(|e| Error::Open { path: path.into(), why: e.to_string() })?;
    let conn = open_quietly(path)?;
    let read = || -> rusqlite::Result<Vec<String>> {
        conn.prepare("SELECT report FROM boots WHERE report IS NOT NULL ORDER BY bid DESC LIMIT 1000")?
            .query_map([], |r| r.get(0))?
            .collect()
    };
    let rows = read().map_err(|e| Error::open(path, &e))?;
    Ok(rows.iter().filter_map(|t| serde_json::from_str(t).ok()).collect())
}

/// The file beside the database with this suffix.
pub(super) fn beside(path: &Path, suffix: &str) -> std::path::PathBuf {
    path.with_file_name(format!("{}{suffix}", path.file_name().unwrap_or_default().to_string_lossy()))
}

/// The head of a file, as far as it is there.
fn head(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    std::fs::File::open(path).and_then(|f| std::io::Read::read_to_end(&mut std::io::Read::take(f, 108), &mut head))?;
    Ok(head)
}

/// Whether a start died while it made the file: its rollback journal says that the file was empty before. SQLite
/// empties such a file when it opens it, whatever it holds.
fn was_being_made(path: &Path) -> bool {
    const MAGIC: &[u8] = &[0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
    head(&beside(path, "-journal")).is_ok_and(|j| j.starts_with(MAGIC) && j.get(16..20) == Some(&[0; 4]))
}

/// Looks at an existing file without changing a byte of it.
pub(super) fn inspect(path: &Path) -> Result<(), Error> {
    // The header alone tells a foreign file without touching its log: bytes 68..72 are the application id.
    let head = match head(path) {
        Ok(head) if head.is_empty() => return Ok(()),
        Ok(head) => head,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::Open { path: path.into(), why: e.to_string() }),
    };
    if was_being_made(path) {
        return Ok(());
    }
    let foreign = |why: String| Error::Foreign { path: path.into(), why };
    if head.len() < 108 || !head.starts_with(b"SQLite format 3\0") {
        return Err(foreign("it is not an SQLite database".into()));
    }
    // The newest header may be in the log, so SQLite is asked if there is one. The last value is whether the database
    // is empty: a start leaves that if it dies before the first migration.
    let (id, found, empty) = if beside(path, "-wal").exists() {
        let conn =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(|e| Error::open(path, &e))?;
        let ask = |sql| conn.query_row(sql, [], |r| r.get::<_, i32>(0)).map_err(|e| Error::open(path, &e));
        (ask("PRAGMA application_id")?, ask("PRAGMA user_version")?, ask("SELECT count(*) FROM sqlite_schema")? == 0)
    } else {
        let word = |at: usize| i32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        // Empty: one page, a leaf without a cell.
        (word(68), word(60), word(28) == 1 && head[100] == 13 && head[103..105] == [0, 0])
    };
    if id != APPLICATION_ID && !(id == 0 && found == 0 && empty) {
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
    conn.busy_timeout(BUSY)?;
    conn.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=OFF; PRAGMA wal_autocheckpoint=4000;
         PRAGMA journal_size_limit=16777216; PRAGMA cache_size=-8192; PRAGMA temp_store=MEMORY;",
    )?;
    if !durable {
        conn.execute_batch("PRAGMA synchronous=OFF")?;
    }
    // Tests weaken the durability, to show that they would notice, and make checkpoints frequent.
    for (pragma, number) in [("synchronous", "store.synchronous"), ("wal_autocheckpoint", "store.checkpoint")] {
        if let Some(n) = failpoint::number(number) {
            conn.execute_batch(&format!("PRAGMA {pragma}={n}"))?;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the file is, with this in it and in its rollback journal.
    fn lies(db: &[u8], journal: Option<&[u8]>) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ostler.db");
        std::fs::write(&path, db).expect("written");
        if let Some(journal) = journal {
            std::fs::write(beside(&path, "-journal"), journal).expect("written");
        }
        (dir, path)
    }

    /// A database of one page in which nothing is, as a start leaves it that dies before its first migration.
    fn nothing() -> Vec<u8> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("new.db");
        let conn = Connection::open(&path).expect("new");
        conn.execute_batch("PRAGMA journal_mode=WAL").expect("made");
        drop(conn);
        std::fs::read(path).expect("read")
    }

    #[test]
    fn what_a_start_left_that_died_is_begun_anew() {
        let new = nothing();
        assert_eq!(new.len(), 4096);
        let (_dir, path) = lies(&new, None);
        open(&path, true).expect("nothing is in it");
        // The first page half written, and the journal that takes it back.
        let mut torn = vec![0; 512];
        torn.extend(&new[512..]);
        let mut journal = vec![0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0];
        journal.extend(512u32.to_be_bytes());
        journal.extend(4096u32.to_be_bytes());
        journal.resize(512, 0);
        let (_dir, path) = lies(&torn, Some(&journal));
        open(&path, true).expect("it is emptied first");
        // Without the journal, or with one of a file that was there before, it is nobody's that is known.
        let (_dir, path) = lies(&torn, None);
        assert!(matches!(open(&path, true), Err(Error::Foreign { .. })));
        journal[19] = 1;
        let (_dir, path) = lies(&torn, Some(&journal));
        assert!(matches!(open(&path, true), Err(Error::Foreign { .. })));
        assert_eq!(std::fs::read(&path).expect("read"), torn, "untouched");
    }
}
