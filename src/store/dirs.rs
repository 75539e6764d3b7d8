//! The files of deleted sessions: which directories are to be removed, and whether they may be.
//!
//! The request is durable (in `meta`, under the session's row) from the deletion until the directory is gone. So it
//! survives an agent that still writes there, and a death of the daemon.

use super::sessions::Acted;
use super::sql::{Sql, SqlError, params};
use super::tx::SessionRow;
use super::{Error, Refusal, Store, Target, Tx};
use crate::model::event::Actor;

const REQUEST: &str = "files:";
/// The requests' names lie between [`REQUEST`] and this.
const BEHIND: &str = "files;";

/// A deleted session whose directories are to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeletedFiles {
    /// Its row.
    pub sid: i64,
    /// Its id.
    pub session_id: String,
    /// Its key.
    pub key: String,
    /// Its ends are settled, and it is not live.
    pub settled: bool,
    /// The directories in which it worked.
    pub dirs: Vec<String>,
}

/// Another session of the key that works in a directory or below it. A session without an activation may work in any.
const USER: &str = "SELECT s.id FROM sessions s WHERE s.key=?1 AND s.sid<>?2 AND s.hidden=0 AND s.status<>'ended'
    AND (s.epoch=0 OR EXISTS (SELECT 1 FROM activations a WHERE a.sid=s.sid
      AND (a.cwd=?3 OR substr(a.cwd, 1, length(?3) + 1)=?3 || '/'))) ORDER BY s.sid LIMIT 1";
const DIRS: &str = "SELECT DISTINCT cwd FROM activations WHERE sid=?1";

impl Store {
    /// As [`Store::delete`]; the directories in which the sessions worked are removed too, once their ends are settled.
    ///
    /// # Errors
    /// No such session; [`Refusal::DirInUse`]: another session of the key works there.
    pub fn delete_with_files(&self, target: Target, all: bool, actor: Actor) -> Result<Acted, Error> {
        self.write("delete_with_files", move |tx| {
            let sessions = tx.to_delete(&target, all)?;
            for s in &sessions {
                // If all sessions of the key are deleted, none is left to work there.
                if !all && tx.works_beside(s)? {
                    return Err(Refusal::DirInUse.into());
                }
                tx.tell(
                    "INSERT INTO meta (name, value) VALUES (?1, 1) ON CONFLICT (name) DO UPDATE SET value=excluded.value",
                    params![format!("{REQUEST}{}", s.sid)],
                )?;
            }
            tx.delete(sessions, actor)
        })
    }

    /// The deleted sessions whose directories are still to be removed.
    ///
    /// # Errors
    /// The store fails.
    pub fn files_to_remove(&self) -> Result<Vec<DeletedFiles>, Error> {
        self.read(|sql| {
            let names: Vec<String> =
                sql.rows("SELECT name FROM meta WHERE name>?1 AND name<?2", params![REQUEST, BEHIND], |r| r.get(0))?;
            let sids = names.iter().filter_map(|name| name[REQUEST.len()..].parse::<i64>().ok());
            let mut found = Vec::new();
            for sid in sids {
                match deleted_files(sql, sid) {
                    Ok(files) => found.push(files),
                    // A damaged row is not read in part: with half a key, another session's directory would look like
                    // its own.
                    Err(e) if e.lies_in_rows() => {
                        log::warn!("the files of the deleted session of row {sid} stay: its rows cannot be used: {e}");
                    }
                    Err(e) => return Err(e),
                }
            }
            Ok(found)
        })
    }

    /// The id of another session of the deleted one's key that works in this directory, or below it.
    ///
    /// # Errors
    /// The store fails.
    pub fn works_there(&self, files: &DeletedFiles, dir: &str) -> Result<Option<String>, Error> {
        self.read(|sql| sql.row(USER, params![files.key, files.sid, dir], |r| r.get(0)))
    }

    /// A deleted session's directories are removed, or stay for good.
    ///
    /// # Errors
    /// The store fails.
    pub fn files_removed(&self, sid: i64) -> Result<(), Error> {
        self.write("files_removed", move |tx| {
            tx.tell("DELETE FROM meta WHERE name=?1", params![format!("{REQUEST}{sid}")])?;
            Ok(())
        })
    }
}

/// Reads a deleted session whose directories are still to be removed.
fn deleted_files(sql: Sql<'_>, sid: i64) -> Result<DeletedFiles, SqlError> {
    let found = sql.row(
        "SELECT id, key, NOT EXISTS (SELECT 1 FROM activations a WHERE a.sid=s.sid AND a.closed_at IS NULL)
           AND NOT EXISTS (SELECT 1 FROM journal j JOIN deliveries d ON d.jid=j.jid
                           WHERE j.sid=s.sid AND d.state='pending')
         FROM sessions s WHERE sid=?1",
        params![sid],
        |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
    )?;
    // A session of which nothing is known any more has no directories either.
    let (session_id, key, settled) = found.unwrap_or((String::new(), String::new(), true));
    let dirs = sql.rows(DIRS, params![sid], |r| r.get(0))?;
    Ok(DeletedFiles { sid, session_id, key, settled, dirs })
}

impl Tx<'_> {
    /// Whether another session of the key works in a directory of this one.
    fn works_beside(&self, s: &SessionRow) -> Result<bool, Error> {
        for dir in self.rows(DIRS, params![s.sid], |r| r.get::<String>(0))? {
            if self.row(USER, params![s.key, s.sid, dir], |r| r.get::<String>(0))?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
