//! The files of deleted sessions: whose directories are to go, and whether they may.
//!
//! A wish for it is durable (in `meta`, by the session's row) from the deletion until the directory is gone, so neither an
//! agent that still writes there nor a death of the daemon loses it.

use super::sql::{Sql, SqlError, params};

use super::sessions::Acted;
use super::tx::SessionRow;
use super::{Error, Refusal, Store, Target, Tx};
use crate::model::event::Actor;

const WISH: &str = "files:";
/// The wishes' names are from [`WISH`] up to this.
const BEHIND: &str = "files;";

/// A deleted session whose directories are to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
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

/// A session that is left under a key and works in a directory or below it: in that of an activation of its own, or, where it
/// had none yet, in any.
const USER: &str = "SELECT s.id FROM sessions s WHERE s.key=?1 AND s.sid<>?2 AND s.hidden=0 AND s.status<>'ended'
    AND (s.epoch=0 OR EXISTS (SELECT 1 FROM activations a WHERE a.sid=s.sid
      AND (a.cwd=?3 OR substr(a.cwd, 1, length(?3) + 1)=?3 || '/'))) ORDER BY s.sid LIMIT 1";
const DIRS: &str = "SELECT DISTINCT cwd FROM activations WHERE sid=?1";

impl Store {
    /// As [`Store::delete`], and the directories in which the sessions worked go as well, once their ends are settled.
    ///
    /// # Errors
    /// No such session; [`Refusal::DirInUse`]: another one is left under the key that works there.
    pub fn delete_with_files(&self, target: Target, all: bool, actor: Actor) -> Result<Acted, Error> {
        self.write("delete_with_files", move |tx| {
            let sessions = tx.to_delete(&target, all)?;
            for s in &sessions {
                // With all of its key nobody is left.
                if !all && tx.works_beside(s)? {
                    return Err(Refusal::DirInUse.into());
                }
                tx.tell(
                    "INSERT INTO meta (name, value) VALUES (?1, 1) ON CONFLICT (name) DO UPDATE SET value=excluded.value",
                    params![format!("{WISH}{}", s.sid)],
                )?;
            }
            tx.delete(sessions, actor)
        })
    }

    /// The deleted sessions whose directories are still to go.
    ///
    /// # Errors
    /// The store fails.
    pub fn leaving(&self) -> Result<Vec<Leaving>, Error> {
        self.read(|sql| {
            let names: Vec<String> =
                sql.rows("SELECT name FROM meta WHERE name>?1 AND name<?2", params![WISH, BEHIND], |r| r.get(0))?;
            let sids = names.iter().filter_map(|name| name[WISH.len()..].parse::<i64>().ok());
            let mut leaving = Vec::new();
            for sid in sids {
                match leaving_in(sql, sid) {
                    Ok(found) => leaving.push(found),
                    // Not read as far as it goes: by half a key somebody else's directory would look like its own.
                    Err(e) if e.lies_in_rows() => {
                        log::warn!("the files of the deleted session of row {sid} stay: its rows cannot be used: {e}");
                    }
                    Err(e) => return Err(e),
                }
            }
            Ok(leaving)
        })
    }

    /// The id of a session that is left under the key of a deleted one and works in this directory of it, or below.
    ///
    /// # Errors
    /// The store fails.
    pub fn works_there(&self, leaving: &Leaving, dir: &str) -> Result<Option<String>, Error> {
        self.read(|sql| sql.row(USER, params![leaving.key, leaving.sid, dir], |r| r.get(0)))
    }

    /// A deleted session's directories are gone, or stay for good.
    ///
    /// # Errors
    /// The store fails.
    pub fn has_left(&self, sid: i64) -> Result<(), Error> {
        self.write("has_left", move |tx| {
            tx.tell("DELETE FROM meta WHERE name=?1", params![format!("{WISH}{sid}")])?;
            Ok(())
        })
    }
}

/// A deleted session whose directories are still to go.
fn leaving_in(sql: Sql<'_>, sid: i64) -> Result<Leaving, SqlError> {
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
    Ok(Leaving { sid, session_id, key, settled, dirs })
}

impl Tx<'_> {
    /// Whether another session that is left under the key works in a directory of this one's.
    fn works_beside(&self, s: &SessionRow) -> Result<bool, Error> {
        for dir in self.rows(DIRS, params![s.sid], |r| r.get::<String>(0))? {
            if self.row(USER, params![s.key, s.sid, dir], |r| r.get::<String>(0))?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
