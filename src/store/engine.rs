//! The engine that keeps the rows. There is one: SQLite.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::job::Job;
use super::sql::{Sql, SqlError};
use super::sqlite::Sqlite;
use super::write_queue::NotTaken;
use super::{Error, Shared};

/// A database, open; cheap to clone.
#[derive(Clone)]
pub(super) enum Engine {
    /// A file on this machine.
    Sqlite(Sqlite),
}

impl Engine {
    /// Opens the database, migrates it, and starts its writer.
    ///
    /// # Errors
    /// It cannot be opened, is not ours, or of a newer ostler.
    pub(super) fn open(shared: &Arc<Shared>) -> Result<Self, Error> {
        Sqlite::open(shared).map(Self::Sqlite)
    }

    /// The same database after a death of whoever held it. `None`: its writer has a thread.
    ///
    /// # Errors
    /// As for [`Engine::open`].
    pub(super) fn again(self, shared: &Arc<Shared>) -> Option<Result<Self, Error>> {
        match self {
            Self::Sqlite(engine) => engine.again(shared).map(|again| again.map(Self::Sqlite)),
        }
    }

    /// Sends a job to the writer.
    ///
    /// # Errors
    /// It was not taken by the instant, or nobody is there to take it.
    pub(super) fn send(&self, job: Job, until: Instant) -> Result<(), NotTaken> {
        match self {
            Self::Sqlite(engine) => engine.send(job, until),
        }
    }

    /// As [`Engine::send`], for a job whose caller does not wait for it.
    ///
    /// # Errors
    /// As there.
    pub(super) fn post(&self, job: Job, until: Instant) -> Result<(), NotTaken> {
        match self {
            Self::Sqlite(engine) => engine.post(job, until),
        }
    }

    /// Commits what was gathered ([`Env::gathers`](super::Env::gathers)).
    pub(super) fn commit_gathered(&self) {
        match self {
            Self::Sqlite(engine) => engine.commit_gathered(),
        }
    }

    /// Whether something was gathered.
    pub(super) fn has_gathered(&self) -> bool {
        match self {
            Self::Sqlite(engine) => engine.has_gathered(),
        }
    }

    /// As [`Engine::send`], on the caller's own thread where the writer is idle.
    ///
    /// # Errors
    /// As there.
    pub(super) fn commit_inline(&self, job: Job, until: Instant) -> Result<(), NotTaken> {
        match self {
            Self::Sqlite(engine) => engine.commit_inline(job, until),
        }
    }

    /// Runs a read beside the writer.
    ///
    /// # Errors
    /// No connection came free in time; or the read failed.
    pub(super) fn read<T>(
        &self,
        patience: Duration,
        run: impl FnOnce(Sql<'_>) -> Result<T, SqlError>,
    ) -> Result<T, Error> {
        match self {
            Self::Sqlite(engine) => engine.read(patience, run),
        }
    }

    /// Closes what only reads, at the latest at the instant.
    pub(super) fn close_readers(&self, until: Instant) {
        match self {
            Self::Sqlite(engine) => engine.close_readers(until),
        }
    }

    /// Checks that the database is still the file that was opened.
    ///
    /// # Errors
    /// It is not.
    pub(super) fn check_files(&self) -> Result<(), Error> {
        match self {
            Self::Sqlite(engine) => engine.check_files(),
        }
    }

    /// A consistent copy of the database at `from`, made while the writer goes on.
    ///
    /// # Errors
    /// The copy cannot be written, or is not sound.
    pub(super) fn backup(&self, from: &Path, to: &Path) -> Result<(), Error> {
        match self {
            Self::Sqlite(engine) => engine.backup(from, to),
        }
    }
}
