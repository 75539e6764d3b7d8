//! Isolation of damaged sessions. Recovery, the end of a stop, and retention change many sessions in one transaction;
//! each session's part runs in a savepoint of its own, so that damaged rows of one never hold up the others.
//!
//! If the cause of a failure lies in a session's rows, that session's part is undone and logged, and the rest goes on.
//! If it lies in the disk or the file, the whole transaction fails.

use super::Error;
use super::sql::{ErrorClass, SqlError, Value, params};
use super::tx::Tx;

/// For at most so many sessions the damage is remembered, so that it is logged once.
const REMEMBERED: usize = 10_000;

impl Error {
    /// Whether the cause lies in the rows that were read or written; other rows may be sound.
    #[must_use]
    pub fn lies_in_rows(&self) -> bool {
        match self {
            Self::Sql(error) => error.lies_in_rows(),
            other => matches!(other, Self::Refused(_)),
        }
    }
}

impl SqlError {
    /// As [`Error::lies_in_rows`].
    pub(super) fn lies_in_rows(&self) -> bool {
        self.class == ErrorClass::Rows
    }
}

impl Tx<'_> {
    /// Runs something in a savepoint. `Ok(Err(why))`: damaged rows did not allow it, and nothing of it was kept.
    pub(super) fn in_savepoint<T>(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<Result<T, Error>, Error> {
        let mark = self.out.mark();
        self.run("SAVEPOINT part", params![])?;
        match run(self) {
            Ok(value) => {
                self.run("RELEASE part", params![])?;
                Ok(Ok(value))
            }
            // The caller undoes the transaction, or the engine has done so already.
            Err(e) if !e.lies_in_rows() || self.sql.has_lost_transaction() => Err(e),
            Err(e) => {
                self.out.truncate(mark);
                self.run("ROLLBACK TO part", params![])?;
                self.run("RELEASE part", params![])?;
                Ok(Err(e))
            }
        }
    }

    /// Does something to one session among many. `None`: its rows cannot be used; it is skipped, and the log names it.
    pub(super) fn for_one<T>(
        &mut self,
        what: &'static str,
        sid: i64,
        run: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        Ok(match self.in_savepoint(run)? {
            Ok(value) => Some(value),
            Err(why) => {
                self.name_damaged(what, sid, &why);
                None
            }
        })
    }

    /// Updates many sessions: all at once or, if one row does not allow that, one by one. `set` may use the parameters,
    /// `which` may not.
    pub(super) fn update_sessions(
        &mut self,
        what: &'static str,
        set: &str,
        which: &str,
        params: &[Value<'_>],
    ) -> Result<usize, Error> {
        let at_once = format!("UPDATE sessions SET {set} WHERE {which}");
        if let Ok(n) = self.in_savepoint(|tx| Ok(tx.run(&at_once, params)?))? {
            return Ok(n);
        }
        let each = format!("UPDATE sessions SET {set} WHERE sid=?{}", params.len() + 1);
        let mut done = 0;
        for sid in self.sids(&format!("SELECT sid FROM sessions WHERE {which}"), params![])? {
            let mut with = params.to_vec();
            with.push(Value::Int(sid));
            done += self.for_one(what, sid, |tx| Ok(tx.run(&each, &with)?))?.unwrap_or(0);
        }
        Ok(done)
    }

    /// The sessions' rows that a statement selects. Values that are no numbers are left out.
    pub(super) fn sids(&self, sql: &str, params: &[Value<'_>]) -> Result<Vec<i64>, Error> {
        let found = self.rows(sql, params, |r| Ok(r.get::<i64>(0).ok()))?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Logs which session cannot be used, once in this process for each kind of work.
    pub(super) fn name_damaged(&self, what: &'static str, sid: i64, why: &Error) {
        let mut logged = self.shared.damaged.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if logged.len() >= REMEMBERED || !logged.insert((sid, what)) {
            return;
        }
        drop(logged);
        let name =
            self.row("SELECT key, id FROM sessions WHERE sid=?1", params![sid], |r| Ok((r.text(0)?, r.text(1)?)));
        let (key, id) = name.ok().flatten().unwrap_or_else(|| (format!("row {sid}"), String::new()));
        log::warn!(key = key, session_id = id; "{what}: the session's rows cannot be used, it is left alone: {why}");
    }
}
