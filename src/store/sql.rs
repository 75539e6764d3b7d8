//! The seam between the named transactions and the engine: values, rows and statements.
//!
//! Statements are written once, in SQL that every engine takes, with parameters `?1`, `?2`, … A number that the engine
//! draws comes back by `RETURNING`. What only one engine knows stands in its folder. This file must not know an engine's
//! library.

use std::ops::ControlFlow;

use super::sqlite;

/// A value of a statement: a parameter, or what stands in a column.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'v> {
    /// Nothing.
    Null,
    /// An integer, a time, or a truth value (0 or 1).
    Int(i64),
    /// A floating-point number; only a damaged row holds one.
    Real(f64),
    /// A text.
    Text(&'v str),
    /// Bytes; also a text that is no UTF-8, which only a damaged row holds.
    Bytes(&'v [u8]),
}

impl Value<'_> {
    /// What it is, for a message.
    const fn name(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Int(_) => "an integer",
            Self::Real(_) => "a floating-point number",
            Self::Text(_) => "a text",
            Self::Bytes(_) => "bytes",
        }
    }
}

/// What a parameter of a statement may be.
pub(super) trait Param {
    /// The value that is bound.
    fn value(&self) -> Value<'_>;
}

/// What a column may be read as.
pub(super) trait Column: Sized {
    /// What is expected there, for a message.
    const EXPECTED: &'static str;

    /// The value as this type; `None`: it is of another one.
    fn from_value(value: Value<'_>) -> Option<Self>;
}

/// The parameters of a statement, in order.
macro_rules! params {
    ($($param:expr),* $(,)?) => {
        &[$($crate::store::sql::Param::value(&$param)),*]
    };
}
pub(super) use params;

/// An integer type that a column holds as 64 bits.
macro_rules! integer {
    ($($type:ty),*) => {$(
        impl Column for $type {
            const EXPECTED: &'static str = "an integer";

            fn from_value(value: Value<'_>) -> Option<Self> {
                match value {
                    Value::Int(n) => n.try_into().ok(),
                    _ => None,
                }
            }
        }
    )*};
}
integer!(i64, u32);

impl Column for bool {
    const EXPECTED: &'static str = "a truth value";

    fn from_value(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Int(n) => Some(n != 0),
            _ => None,
        }
    }
}

impl Column for String {
    const EXPECTED: &'static str = "a text";

    fn from_value(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Text(text) => Some(text.to_owned()),
            _ => None,
        }
    }
}

impl Column for Vec<u8> {
    const EXPECTED: &'static str = "bytes";

    fn from_value(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Bytes(bytes) => Some(bytes.to_vec()),
            _ => None,
        }
    }
}

impl<T: Column> Column for Option<T> {
    const EXPECTED: &'static str = T::EXPECTED;

    fn from_value(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Null => Some(None),
            value => T::from_value(value).map(Some),
        }
    }
}

impl Param for i64 {
    fn value(&self) -> Value<'_> {
        Value::Int(*self)
    }
}

impl Param for u32 {
    fn value(&self) -> Value<'_> {
        Value::Int(i64::from(*self))
    }
}

impl Param for bool {
    fn value(&self) -> Value<'_> {
        Value::Int(i64::from(*self))
    }
}

impl Param for str {
    fn value(&self) -> Value<'_> {
        Value::Text(self)
    }
}

impl Param for String {
    fn value(&self) -> Value<'_> {
        Value::Text(self)
    }
}

impl Param for Vec<u8> {
    fn value(&self) -> Value<'_> {
        Value::Bytes(self)
    }
}

impl<P: Param + ?Sized> Param for &P {
    fn value(&self) -> Value<'_> {
        (**self).value()
    }
}

impl<P: Param> Param for Option<P> {
    fn value(&self) -> Value<'_> {
        self.as_ref().map_or(Value::Null, Param::value)
    }
}

/// Why a statement was not run, or its rows could not be read.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{why}")]
pub struct SqlError {
    pub(super) class: ErrorClass,
    pub(super) why: String,
}

/// Where the cause of a [`SqlError`] lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorClass {
    /// In the rows that were read or written: other rows may well do.
    Rows,
    /// No room on the disk.
    Full,
    /// Another process holds a lock.
    Busy,
    /// In the file, the disk or the statement.
    Other,
}

/// A row of a result.
pub(super) enum Row<'r> {
    /// Of SQLite.
    Sqlite(&'r sqlite::RawRow<'r>),
}

impl Row<'_> {
    /// What stands in a column, counted from 0.
    pub(super) fn value(&self, column: usize) -> Result<Value<'_>, SqlError> {
        match self {
            Self::Sqlite(row) => sqlite::value(row, column),
        }
    }

    /// A column as a type. Anything else in it is an error of class [`ErrorClass::Rows`].
    pub(super) fn get<T: Column>(&self, column: usize) -> Result<T, SqlError> {
        let value = self.value(column)?;
        T::from_value(value).ok_or_else(|| SqlError {
            class: ErrorClass::Rows,
            why: format!("{} in column {:?}, {} was expected", value.name(), self.name(column), T::EXPECTED),
        })
    }

    /// How many bytes the text in a column has; nothing is copied. 0: there is no text.
    pub(super) fn size(&self, column: usize) -> Result<usize, SqlError> {
        match self {
            Self::Sqlite(row) => sqlite::size(row, column),
        }
    }

    /// A text as far as it can be read: what is no UTF-8 is replaced, a number is written out, nothing is empty.
    pub(super) fn text(&self, column: usize) -> Result<String, SqlError> {
        Ok(self.maybe_text(column)?.unwrap_or_default())
    }

    /// As [`Row::text`], where nothing stays nothing.
    pub(super) fn maybe_text(&self, column: usize) -> Result<Option<String>, SqlError> {
        Ok(match self.value(column)? {
            Value::Null => None,
            Value::Text(text) => Some(text.to_owned()),
            Value::Bytes(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            Value::Int(n) => Some(n.to_string()),
            Value::Real(n) => Some(n.to_string()),
        })
    }

    /// An integer; 0 where there is none.
    pub(super) fn number(&self, column: usize) -> Result<i64, SqlError> {
        Ok(self.maybe_number(column)?.unwrap_or(0))
    }

    /// As [`Row::number`], where anything else is nothing.
    pub(super) fn maybe_number(&self, column: usize) -> Result<Option<i64>, SqlError> {
        Ok(match self.value(column)? {
            Value::Int(n) => Some(n),
            _ => None,
        })
    }

    fn name(&self, column: usize) -> String {
        match self {
            Self::Sqlite(row) => sqlite::name(row, column),
        }
    }
}

/// A connection on which statements are run: the writer's, or a reader's. Statements keep their plans.
#[derive(Clone, Copy)]
pub(super) enum Sql<'c> {
    /// To SQLite.
    Sqlite(sqlite::Link<'c>),
}

impl Sql<'_> {
    /// Runs a statement. How many rows it changed.
    pub(super) fn run(self, sql: &str, params: &[Value<'_>]) -> Result<usize, SqlError> {
        match self {
            Self::Sqlite(link) => link.run(sql, params),
        }
    }

    /// Runs a statement whose count nobody needs: an engine may put it on its way and answer with the next read.
    pub(super) fn tell(self, sql: &str, params: &[Value<'_>]) -> Result<(), SqlError> {
        self.run(sql, params).map(|_| ())
    }

    /// Inserts a row by a statement that ends in `RETURNING` with the number that the engine drew for it.
    pub(super) fn insert(self, sql: &str, params: &[Value<'_>]) -> Result<i64, SqlError> {
        debug_assert!(sql.contains(" RETURNING "), "{sql}");
        self.row(sql, params, |r| r.get(0))?
            .ok_or_else(|| SqlError { class: ErrorClass::Other, why: "an insert gave no number back".into() })
    }

    /// The first row, if there is any.
    pub(super) fn row<T>(
        self,
        sql: &str,
        params: &[Value<'_>],
        read: impl FnOnce(&Row<'_>) -> Result<T, SqlError>,
    ) -> Result<Option<T>, SqlError> {
        match self {
            Self::Sqlite(link) => link.row(sql, params, read),
        }
    }

    /// Every row.
    pub(super) fn rows<T>(
        self,
        sql: &str,
        params: &[Value<'_>],
        mut read: impl FnMut(&Row<'_>) -> Result<T, SqlError>,
    ) -> Result<Vec<T>, SqlError> {
        let mut all = Vec::new();
        self.each(sql, params, |r| {
            all.push(read(r)?);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(all)
    }

    /// Row by row, until there are no more or `read` breaks: what is left is not read.
    pub(super) fn each(
        self,
        sql: &str,
        params: &[Value<'_>],
        read: impl FnMut(&Row<'_>) -> Result<ControlFlow<()>, SqlError>,
    ) -> Result<(), SqlError> {
        match self {
            Self::Sqlite(link) => link.each(sql, params, read),
        }
    }

    /// Whether there is a row.
    pub(super) fn exists(self, sql: &str, params: &[Value<'_>]) -> Result<bool, SqlError> {
        Ok(self.row(sql, params, |_| Ok(()))?.is_some())
    }

    /// The newest number that was drawn for an event, whether or not that event is still kept; 0: none was.
    pub(super) fn newest_event(self) -> Result<i64, SqlError> {
        match self {
            Self::Sqlite(link) => link.newest_event(),
        }
    }

    /// What a statement that must go by an index says after the table's name, where the engine takes such a hint.
    pub(super) fn by_index(self, index: &str) -> String {
        match self {
            Self::Sqlite(_) => format!(" INDEXED BY {index}"),
        }
    }

    /// Whether the engine has ended the transaction by itself, after an error.
    pub(super) fn has_lost_transaction(self) -> bool {
        match self {
            Self::Sqlite(link) => link.has_lost_transaction(),
        }
    }
}
