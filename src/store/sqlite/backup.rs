//! A consistent copy of a database, made beside its writer.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ffi};

use super::schema;
use crate::store::Error;

/// The pause between two tries to copy past somebody's lock.
const COPY_AGAIN: Duration = Duration::from_millis(50);

/// Copies the database at `from` into a new file.
///
/// # Errors
/// The copy cannot be written, or is not sound; then there is none.
pub(super) fn to_file(from: &Path, to: &Path) -> Result<(), Error> {
    let from = schema::open_reader(from)?;
    schema::create(to).map_err(|e| Error::Open { path: to.into(), why: e.to_string() })?;
    let done = copy(&from, to);
    if done.is_err() {
        // Half a copy would be taken for one.
        let _ = std::fs::remove_file(to);
    }
    done
}

/// Copies a database and checks the copy. In one step, so within one read transaction: it is of one instant.
///
/// # Errors
/// The copy cannot be written, or is not sound.
pub(super) fn copy(from: &Connection, to: &Path) -> Result<(), Error> {
    let mut copy = Connection::open(to).map_err(|e| Error::open(to, &e))?;
    step_through(from, &mut copy).map_err(|e| Error::open(to, &e))?;
    let sound: String =
        copy.query_row("PRAGMA integrity_check(1)", [], |r| r.get(0)).map_err(|e| Error::open(to, &e))?;
    if sound != "ok" {
        return Err(Error::Open { path: to.into(), why: format!("the copy is not sound: {sound}") });
    }
    Ok(())
}

/// Copies in one step; a lock that somebody has is waited for as long as a transaction waits for one.
fn step_through(from: &Connection, to: &mut Connection) -> rusqlite::Result<()> {
    let backup = Backup::new(from, to)?;
    let until = Instant::now() + schema::BUSY;
    loop {
        match backup.step(i32::MAX)? {
            StepResult::Done => return Ok(()),
            _ if Instant::now() >= until => {
                let busy = ffi::Error::new(ffi::SQLITE_BUSY);
                return Err(rusqlite::Error::SqliteFailure(busy, Some("somebody else has it locked".to_owned())));
            }
            _ => std::thread::park_timeout(COPY_AGAIN),
        }
    }
}
