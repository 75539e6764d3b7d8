//! What is done to all sessions at once: recovery, the closing of a stop, retention. Each session's part runs in a
//! savepoint of its own, so that rows of one session that cannot be used never keep the others from theirs.
//!
//! What fails for a reason that lies in a session's rows is undone, named in the log, and the rest goes on. What fails for
//! a reason that lies in the disk or the file fails the whole transaction, as ever.

use rusqlite::types::ValueRef;
use rusqlite::{ErrorCode, Row, ToSql};

use super::Error;
use super::tx::Tx;

/// The most sessions whose damage is remembered, so that it is logged once.
const REMEMBERED: usize = 10_000;

impl Error {
    /// Whether the cause lies in the rows that were read or written, so that other rows may well do.
    #[must_use]
    pub fn lies_in_rows(&self) -> bool {
        match self {
            Self::Sql(error) => lies_in_rows(error),
            other => matches!(other, Self::Refused(_)),
        }
    }
}

/// As [`Error::lies_in_rows`], for what SQLite said.
pub(super) fn lies_in_rows(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) | rusqlite::Error::SqlInputError { error: failure, .. } => {
            matches!(
                failure.code,
                ErrorCode::TooBig
                        | ErrorCode::ConstraintViolation
                        | ErrorCode::TypeMismatch
                        | ErrorCode::DatabaseCorrupt
                        | ErrorCode::OutOfMemory
                        // A function that met a value which it cannot take: no JSON, for one.
                        | ErrorCode::Unknown
            )
        }
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::Utf8Error(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::QueryReturnedNoRows => true,
        _ => false,
    }
}

impl Tx<'_> {
    /// Runs something in a savepoint. `Ok(Err(why))`: rows did not allow it, and nothing of it stands.
    pub(super) fn apart<T>(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<Result<T, Error>, Error> {
        let mark = self.out.mark();
        self.run("SAVEPOINT apart", [])?;
        match run(self) {
            Ok(value) => {
                self.run("RELEASE apart", [])?;
                Ok(Ok(value))
            }
            // Whoever runs the transaction undoes it, or SQLite has done so already.
            Err(e) if !e.lies_in_rows() || self.conn.is_autocommit() => Err(e),
            Err(e) => {
                self.out.truncate(mark);
                self.run("ROLLBACK TO apart", [])?;
                self.run("RELEASE apart", [])?;
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
        params: &[&dyn ToSql],
    ) -> Result<usize, Error> {
        let at_once = format!("UPDATE sessions SET {set} WHERE {which}");
        if let Ok(n) = self.apart(|tx| Ok(tx.run(&at_once, params)?))? {
            return Ok(n);
        }
        let each = format!("UPDATE sessions SET {set} WHERE sid=?{}", params.len() + 1);
        let mut done = 0;
        for sid in self.sids(&format!("SELECT sid FROM sessions WHERE {which}"), [])? {
            let mut with: Vec<&dyn ToSql> = params.to_vec();
            with.push(&sid);
            done += self.for_one(what, sid, |tx| Ok(tx.run(&each, with.as_slice())?))?.unwrap_or(0);
        }
        Ok(done)
    }

    /// Rows of sessions, by a statement that gives them; those that are no numbers are nobody's.
    pub(super) fn sids(&self, sql: &str, params: impl rusqlite::Params) -> Result<Vec<i64>, Error> {
        let found = self.rows(sql, params, |r| Ok(r.get::<_, i64>(0).ok()))?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Says which session cannot be dealt with, once in the life of this process for each thing.
    pub(super) fn name_damaged(&self, what: &'static str, sid: i64, why: &Error) {
        let mut told = self.shared.damaged.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if told.len() >= REMEMBERED || !told.insert((sid, what)) {
            return;
        }
        drop(told);
        let name = self.row("SELECT key, id FROM sessions WHERE sid=?1", [sid], |r| Ok((text(r, 0)?, text(r, 1)?)));
        let (key, id) = name.ok().flatten().unwrap_or_else(|| (format!("row {sid}"), String::new()));
        log::warn!(key = key, session_id = id; "{what}: the session's rows cannot be used, it is left alone: {why}");
    }
}

/// A text as far as it can be read: what is no UTF-8 is replaced, what is nothing is empty.
pub(super) fn text(r: &Row<'_>, column: usize) -> rusqlite::Result<String> {
    Ok(maybe_text(r, column)?.unwrap_or_default())
}

/// As [`text`], where nothing stays nothing.
pub(super) fn maybe_text(r: &Row<'_>, column: usize) -> rusqlite::Result<Option<String>> {
    Ok(match r.get_ref(column)? {
        ValueRef::Null => None,
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        ValueRef::Integer(n) => Some(n.to_string()),
        ValueRef::Real(n) => Some(n.to_string()),
    })
}

/// A number, or 0 where there is none.
pub(super) fn number(r: &Row<'_>, column: usize) -> rusqlite::Result<i64> {
    Ok(maybe_number(r, column)?.unwrap_or(0))
}

/// As [`number`], where what is none is nothing.
pub(super) fn maybe_number(r: &Row<'_>, column: usize) -> rusqlite::Result<Option<i64>> {
    Ok(match r.get_ref(column)? {
        ValueRef::Integer(n) => Some(n),
        _ => None,
    })
}
