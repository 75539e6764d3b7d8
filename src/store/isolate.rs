//! What is done to all sessions at once: recovery, the closing of a stop, retention. Each session's part runs in a
//! savepoint of its own, so that rows of one session that cannot be used never keep the others from theirs.
//!
//! What fails for a reason that lies in a session's rows is undone, named in the log, and the rest goes on. What fails for
//! a reason that lies in the disk or the file fails the whole transaction, as ever.

use super::Error;
use super::sql::{ErrorClass, SqlError, Value, params};
use super::tx::Tx;

/// The most sessions whose damage is remembered, so that it is logged once.
const REMEMBERED: usize = 10_000;

impl Error {
    /// Whether the cause lies in the rows that were read or written, so that other rows may well do.
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
    /// Runs something in a savepoint. `Ok(Err(why))`: rows did not allow it, and nothing of it stands.
    pub(super) fn apart<T>(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<Result<T, Error>, Error> {
        let mark = self.out.mark();
        self.run("SAVEPOINT apart", params![])?;
        match run(self) {
            Ok(value) => {
                self.run("RELEASE apart", params![])?;
                Ok(Ok(value))
            }
            // Whoever runs the transaction undoes it, or SQLite has done so already.
            Err(e) if !e.lies_in_rows() || self.sql.has_lost_transaction() => Err(e),
            Err(e) => {
                self.out.truncate(mark);
                self.run("ROLLBACK TO apart", params![])?;
                self.run("RELEASE apart", params![])?;
                Ok(Err(e))
            }
        }
    }

    /// Does something to one session among many. `None`: its rows did not allow it; it is left alone and named.
    pub(super) fn for_one<T>(
        &mut self,
        what: &'static str,
        sid: i64,
        run: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        Ok(match self.apart(run)? {
            Ok(value) => Some(value),
            Err(why) => {
                self.name_damaged(what, sid, &why);
                None
            }
        })
    }

    /// An UPDATE of many sessions: of all at once, or of each by itself where one row does not allow it. `set` may use the
    /// parameters, `which` none.
    pub(super) fn update_sessions(
        &mut self,
        what: &'static str,
        set: &str,
        which: &str,
        params: &[Value<'_>],
    ) -> Result<usize, Error> {
        let at_once = format!("UPDATE sessions SET {set} WHERE {which}");
        if let Ok(n) = self.apart(|tx| Ok(tx.run(&at_once, params)?))? {
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

    /// Rows of sessions, by a statement that gives them; those that are no numbers are nobody's.
    pub(super) fn sids(&self, sql: &str, params: &[Value<'_>]) -> Result<Vec<i64>, Error> {
        let found = self.rows(sql, params, |r| Ok(r.get::<i64>(0).ok()))?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Says which session cannot be dealt with, once in the life of this process for each thing.
    pub(super) fn name_damaged(&self, what: &'static str, sid: i64, why: &Error) {
        let mut told = self.shared.damaged.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if told.len() >= REMEMBERED || !told.insert((sid, what)) {
            return;
        }
        drop(told);
        let name =
            self.row("SELECT key, id FROM sessions WHERE sid=?1", params![sid], |r| Ok((r.text(0)?, r.text(1)?)));
        let (key, id) = name.ok().flatten().unwrap_or_else(|| (format!("row {sid}"), String::new()));
        log::warn!(key = key, session_id = id; "{what}: the session's rows cannot be used, it is left alone: {why}");
    }
}
