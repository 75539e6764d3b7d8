//! Restore: puts a backup in the database's place. The backup is checked, the present database is kept under another
//! name, and neither ever lies beside the other's log.
//!
//! The caller holds the state directory's lock. A death at any instant leaves the old database whole, or the new one.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags};
use serde_json::{Value, json};

use super::backup::copy;
use super::{files, schema};
use crate::clock::{self, Millis};
use crate::failpoint;
use crate::store::Error;

/// The files that SQLite puts beside a database. Beside the new one they would be replayed into it.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];
/// The suffix of the new database until it is whole.
const COMING: &str = ".restoring";
/// The suffix of the copy of the old database until that is whole, on file systems without hard links.
const KEEPING: &str = ".keeping";

/// A summary of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holds {
    sessions: i64,
    newest: Option<Millis>,
}

impl Holds {
    fn of(conn: &Connection) -> rusqlite::Result<Self> {
        let newest = "SELECT max(at) FROM (SELECT at FROM messages ORDER BY mid DESC LIMIT 1)";
        Ok(Self {
            sessions: conn.query_row("SELECT count(*) FROM sessions WHERE hidden=0", [], |r| r.get(0))?,
            newest: conn.query_row(newest, [], |r| r.get(0))?,
        })
    }

    fn json(&self) -> Value {
        json!({ "sessions": self.sessions, "newest_message": self.newest.map(clock::rfc3339) })
    }
}

/// A sound database of ours, open for reading and unchanged.
#[derive(Debug)]
pub struct Candidate {
    file: PathBuf,
    meta: Metadata,
    conn: Connection,
    holds: Holds,
}

/// What a restore will do.
#[derive(Debug)]
pub struct Plan {
    from: Candidate,
    database: PathBuf,
    /// Where the present database goes, and what it holds or why that is unknown. `None`: there is none.
    old: Option<(PathBuf, Result<Holds, String>)>,
}

impl Candidate {
    /// Checks whether a file can be restored.
    ///
    /// # Errors
    /// It cannot be read, is not ours, of a newer ostler, or damaged.
    pub fn check(file: &Path) -> Result<Self, Error> {
        let fail = |why: String| Error::Open { path: file.into(), why };
        // By its own name, beside which its log is.
        let real = std::fs::canonicalize(file).map_err(|e| fail(e.to_string()))?;
        let meta = std::fs::metadata(&real).map_err(|e| fail(e.to_string()))?;
        if !meta.is_file() {
            return Err(fail("it is not a file".into()));
        }
        schema::inspect(&real)?;
        let conn = open_whole(&real)?;
        let ask = |sql: &str| conn.query_row(sql, [], |r| r.get::<_, i64>(0)).map_err(|e| Error::open(file, &e));
        let version = ask("PRAGMA user_version")?;
        if ask("PRAGMA application_id")? != i64::from(schema::APPLICATION_ID) || version < 1 {
            return Err(Error::Foreign { path: file.into(), why: "nothing of ostler is in it".into() });
        }
        let found = usize::try_from(version).unwrap_or(usize::MAX);
        if found > schema::version() {
            return Err(Error::Newer { path: file.into(), found, known: schema::version() });
        }
        let sound: String =
            conn.query_row("PRAGMA integrity_check(1)", [], |r| r.get(0)).map_err(|e| Error::open(file, &e))?;
        if sound != "ok" {
            return Err(fail(format!("it is damaged: {sound}")));
        }
        let holds = Holds::of(&conn).map_err(|e| Error::open(file, &e))?;
        Ok(Self { file: file.into(), meta, conn, holds })
    }

    /// Plans to put it in the place of `database`. Nothing is changed yet.
    ///
    /// # Errors
    /// It is that database itself.
    pub fn plan(self, database: &Path) -> Result<Plan, Error> {
        for name in ["", COMING, KEEPING] {
            let taken = schema::beside(database, name);
            if std::fs::metadata(&taken).is_ok_and(|m| (m.dev(), m.ino()) == (self.meta.dev(), self.meta.ino())) {
                let why = format!("it is what is to be replaced, {}: name a backup", taken.display());
                return Err(Error::Open { path: self.file, why });
            }
        }
        let there = std::iter::once("").chain(BESIDE).any(|s| is_there(&schema::beside(database, s)));
        let old = there.then(|| {
            let holds = open_whole(database)
                .and_then(|conn| Holds::of(&conn).map_err(|e| Error::open(database, &e)))
                .map_err(|e| e.to_string());
            (free_name(database, clock::now()), holds)
        });
        Ok(Plan { from: self, database: database.into(), old })
    }
}

impl Plan {
    /// The plan as JSON, for people and programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let old = self.old.as_ref().map(|(kept_as, holds)| {
            let mut old = match holds {
                Ok(holds) => holds.json(),
                Err(why) => json!({ "problem": why }),
            };
            old["kept_as"] = json!(kept_as);
            old
        });
        json!({ "file": self.from.file, "database": self.database, "restored": self.from.holds.json(), "replaced": old })
    }

    /// Does it.
    ///
    /// # Errors
    /// Something could not be written, or another process has the database open; the present one is at its place.
    pub fn perform(&self) -> Result<(), Error> {
        let coming = schema::beside(&self.database, COMING);
        // What a restore left that died.
        clear(&coming)?;
        let done = self.bring(&coming);
        if done.is_err() {
            let _ = clear(&coming);
        }
        done
    }

    fn bring(&self, coming: &Path) -> Result<(), Error> {
        let db = &self.database;
        schema::create(coming).map_err(|e| fault(coming, &e))?;
        copy(&self.from.conn, coming)?;
        let like = std::fs::metadata(db).or_else(|_| std::fs::metadata(dir_of(db))).map_err(|e| fault(db, &e))?;
        own_like(coming, &like).map_err(|e| fault(coming, &e))?;
        File::open(coming).and_then(|f| f.sync_all()).map_err(|e| fault(coming, &e))?;
        failpoint::hit("restore", "copied");
        if let Some((kept_as, _)) = &self.old {
            if is_there(db) {
                checkpoint(db)?;
            }
            failpoint::hit("restore", "folded");
            keep(db, kept_as)?;
            failpoint::hit("restore", "kept");
        }
        std::fs::rename(coming, db).map_err(|e| fault(db, &e))?;
        failpoint::hit("restore", "replaced");
        sync_dir(db)
    }
}

/// Opens a database to read all of it, its log included. The files are not changed.
fn open_whole(path: &Path) -> Result<Connection, Error> {
    if !is_there(&schema::beside(path, "-wal")) && !is_there(&schema::beside(path, "-journal")) {
        std::fs::metadata(path).map_err(|e| fault(path, &e))?;
        return schema::open_still(path);
    }
    let conn =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(|e| Error::open(path, &e))?;
    conn.busy_timeout(schema::BUSY).map_err(|e| Error::open(path, &e))?;
    conn.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).map_err(|e| Error::Open {
        path: path.into(),
        why: format!("it has a log beside it that cannot be read: {e}; copy both into a directory of your own"),
    })?;
    Ok(conn)
}

/// Moves the old database's log into it. If it cannot be opened, both stay as they are.
fn checkpoint(db: &Path) -> Result<(), Error> {
    let asked = schema::open_bare(db).and_then(|conn| {
        conn.busy_timeout(schema::BUSY)?;
        conn.query_row("PRAGMA journal_mode=DELETE", [], |r| r.get::<_, String>(0))
    });
    let busy = match &asked {
        Ok(mode) => mode == "wal",
        Err(e) => matches!(e.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)),
    };
    if busy {
        let who = files::lockers(db).join(", ");
        let who = if who.is_empty() { "another process".to_owned() } else { who };
        return Err(Error::Open { path: db.into(), why: format!("{who} has it open: end that first") });
    }
    if let Err(e) = asked {
        // A file that is no database, or a broken one, loses nothing by being moved away with its log.
        if !matches!(e.sqlite_error_code(), Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt)) {
            return Err(Error::Open { path: db.into(), why: format!("its log cannot be moved into it: {e}") });
        }
        log::debug!("{}: moved away as it lies: {e}", db.display());
    }
    Ok(())
}

/// Gives the old database a second name, and removes the log under the first. The file itself stays until the new one
/// replaces it, so that a start in between does not make an empty one.
fn keep(db: &Path, kept_as: &Path) -> Result<(), Error> {
    for suffix in std::iter::once("").chain(BESIDE) {
        let (from, to) = (schema::beside(db, suffix), schema::beside(kept_as, suffix));
        if !is_there(&from) {
            continue;
        }
        match std::fs::hard_link(&from, &to) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(fault(&to, &e)),
            // A file system without hard links.
            Err(_) => copy_whole(&from, &schema::beside(db, KEEPING), &to).map_err(|e| fault(&to, &e))?,
        }
    }
    sync_dir(db)?;
    for suffix in BESIDE {
        remove(&schema::beside(db, suffix))?;
    }
    sync_dir(db)
}

fn copy_whole(from: &Path, half: &Path, to: &Path) -> io::Result<()> {
    let _ = std::fs::remove_file(half);
    std::fs::copy(from, half)?;
    own_like(half, &std::fs::metadata(from)?)?;
    File::open(half)?.sync_all()?;
    std::fs::rename(half, to)
}

/// Gives a file that root made to the daemon's user.
///
/// # Errors
/// The system says no.
pub fn own_like(path: &Path, like: &Metadata) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    chown(path, Some(like.uid()), Some(like.gid()))
}

/// A free name for the old database.
fn free_name(database: &Path, now: Millis) -> PathBuf {
    let time: String = clock::rfc3339(now).chars().take(19).filter(|c| !matches!(c, '-' | ':')).collect();
    let name = |n: u32| match n {
        1 => format!(".before-restore-{time}Z"),
        n => format!(".before-restore-{time}Z-{n}"),
    };
    let names = (1..=u32::MAX).map(|n| schema::beside(database, &name(n)));
    let is_free = |p: &PathBuf| std::iter::once("").chain(BESIDE).all(|s| !is_there(&schema::beside(p, s)));
    names.into_iter().find(is_free).unwrap_or_else(|| schema::beside(database, &name(1)))
}

/// Whether the name exists, even as a dangling link.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn clear(coming: &Path) -> Result<(), Error> {
    std::iter::once("").chain(BESIDE).try_for_each(|s| remove(&schema::beside(coming, s)))
}

fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(fault(path, &e)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn dir_of(db: &Path) -> &Path {
    db.parent().unwrap_or_else(|| Path::new("."))
}

fn sync_dir(db: &Path) -> Result<(), Error> {
    let dir = dir_of(db);
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| fault(dir, &e))
}

fn fault(path: &Path, error: &io::Error) -> Error {
    Error::Open { path: path.into(), why: error.to_string() }
}
