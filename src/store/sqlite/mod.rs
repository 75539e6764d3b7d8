//! SQLite, the engine of one machine: the file and its log, the one writing connection, the readers, backup and restore.
//!
//! The only place that names rusqlite. It must not know what the named transactions write.

use std::ops::ControlFlow;
use std::path::Path;

use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, ffi};

use super::Error;
use super::sql::{ErrorClass, Row, Sql, SqlError, Value};

mod backup;
pub(super) mod engine;
mod files;
mod readers;
pub mod restore;
pub(super) mod schema;
pub(super) mod writer;

pub(super) use engine::Sqlite;
pub use schema::{Exam, examine, knows_session, reports_of, shims_of, version};

/// A row as rusqlite gives it.
pub(super) type RawRow<'r> = rusqlite::Row<'r>;

/// A connection on which statements are run.
#[derive(Clone, Copy)]
pub(super) struct Link<'c>(&'c Connection);

/// The same for whoever knows no engine.
pub(super) const fn sql(conn: &Connection) -> Sql<'_> {
    Sql::Sqlite(Link(conn))
}

impl Link<'_> {
    pub(super) fn run(self, sql: &str, params: &[Value<'_>]) -> Result<usize, SqlError> {
        Ok(self.0.prepare_cached(sql)?.execute(rusqlite::params_from_iter(params))?)
    }

    pub(super) fn row<T>(
        self,
        sql: &str,
        params: &[Value<'_>],
        read: impl FnOnce(&Row<'_>) -> Result<T, SqlError>,
    ) -> Result<Option<T>, SqlError> {
        let mut statement = self.0.prepare_cached(sql)?;
        let mut rows = statement.query(rusqlite::params_from_iter(params))?;
        match rows.next()? {
            Some(row) => read(&Row::Sqlite(row)).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn each(
        self,
        sql: &str,
        params: &[Value<'_>],
        mut read: impl FnMut(&Row<'_>) -> Result<ControlFlow<()>, SqlError>,
    ) -> Result<(), SqlError> {
        let mut statement = self.0.prepare_cached(sql)?;
        let mut rows = statement.query(rusqlite::params_from_iter(params))?;
        while let Some(row) = rows.next()? {
            if read(&Row::Sqlite(row))?.is_break() {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn newest_event(self) -> Result<i64, SqlError> {
        let newest = self.row("SELECT seq FROM sqlite_sequence WHERE name='events'", &[], |r| r.get(0))?;
        Ok(newest.unwrap_or(0))
    }

    pub(super) fn has_lost_transaction(self) -> bool {
        self.0.is_autocommit()
    }
}

#[cfg(test)]
impl<'c> super::Tx<'c> {
    /// The connection itself, for tests that look beneath the seam.
    pub(super) const fn conn(&self) -> &'c Connection {
        let Sql::Sqlite(Link(conn)) = self.sql;
        conn
    }
}

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match *self {
            Self::Null => ValueRef::Null,
            Self::Int(n) => ValueRef::Integer(n),
            Self::Real(n) => ValueRef::Real(n),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

/// What stands in a column.
pub(super) fn value<'r>(row: &'r RawRow<'_>, column: usize) -> Result<Value<'r>, SqlError> {
    Ok(match row.get_ref(column)? {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(n) => Value::Int(n),
        ValueRef::Real(n) => Value::Real(n),
        ValueRef::Text(bytes) => std::str::from_utf8(bytes).map_or(Value::Bytes(bytes), Value::Text),
        ValueRef::Blob(bytes) => Value::Bytes(bytes),
    })
}

/// How many bytes the text in a column has.
pub(super) fn size(row: &RawRow<'_>, column: usize) -> Result<usize, SqlError> {
    Ok(match row.get_ref(column)? {
        ValueRef::Text(text) | ValueRef::Blob(text) => text.len(),
        _ => 0,
    })
}

/// A column's name.
pub(super) fn name(row: &RawRow<'_>, column: usize) -> String {
    row.as_ref().column_name(column).unwrap_or_default().to_owned()
}

impl From<rusqlite::Error> for SqlError {
    fn from(error: rusqlite::Error) -> Self {
        Self { class: class(&error), why: error.to_string() }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        SqlError::from(error).into()
    }
}

impl Error {
    /// A file that cannot be opened, and why.
    fn open(path: &Path, error: &rusqlite::Error) -> Self {
        let mut why = error.to_string();
        let code = error.sqlite_error().map_or(0, |e| e.extended_code);
        if [ffi::SQLITE_IOERR_SHMMAP, ffi::SQLITE_IOERR_SHMOPEN, ffi::SQLITE_IOERR_SHMSIZE, ffi::SQLITE_IOERR_SHMLOCK]
            .contains(&code)
        {
            why.push_str(
                ": the file system cannot map memory that processes share (FUSE with direct_io?); the state directory \
                 must be on another one (--state-dir)",
            );
        }
        Self::Open { path: path.into(), why }
    }
}

fn class(error: &rusqlite::Error) -> ErrorClass {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) | rusqlite::Error::SqlInputError { error: failure, .. } => {
            match failure.code {
                ErrorCode::DiskFull => ErrorClass::Full,
                ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => ErrorClass::Busy,
                ErrorCode::TooBig
                | ErrorCode::ConstraintViolation
                | ErrorCode::TypeMismatch
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::OutOfMemory
                // A function that met a value which it cannot take: no JSON, for one.
                | ErrorCode::Unknown => ErrorClass::Rows,
                _ => ErrorClass::Other,
            }
        }
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::Utf8Error(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::QueryReturnedNoRows => ErrorClass::Rows,
        _ => ErrorClass::Other,
    }
}

/// Whether another process holds a lock.
fn is_busy(error: &rusqlite::Error) -> bool {
    class(error) == ErrorClass::Busy
}
