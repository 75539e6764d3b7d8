//! The engine as the store uses it: the one writer, on a thread of its own or the caller's, and the readers.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::files::{self, Files};
use super::readers::Readers;
use super::writer::Writer;
use super::{backup, schema, sql};
use crate::store::job::Job;
use crate::store::sql::{Sql, SqlError};
use crate::store::write_queue::{JobQueue, NotTaken, QueueOwner};
use crate::store::{Error, Shared};

/// How many operations may wait for the writer.
pub(in crate::store) const QUEUE: usize = 1024;

/// A database of SQLite; cheap to clone.
#[derive(Clone)]
pub(in crate::store) struct Sqlite {
    /// What waits for the writer's thread. `None`: transactions run on the caller's thread.
    queue: Option<Arc<QueueOwner>>,
    /// What nobody waits for, where it is gathered ([`Env::gathers`](crate::store::Env::gathers)).
    gathered: Option<Arc<Mutex<VecDeque<Job>>>>,
    writer: Arc<Mutex<Writer>>,
    readers: Readers,
    /// `None`: the database is in memory.
    files: Option<Arc<Files>>,
}

impl Sqlite {
    /// Opens the file, migrates it, and starts the writer.
    ///
    /// # Errors
    /// See [`schema::open`]; or no thread can be started.
    pub(in crate::store) fn open(shared: &Arc<Shared>) -> Result<Self, Error> {
        let (path, env) = (&shared.path, &shared.env);
        let conn = if env.memory { schema::open_memory(path)? } else { schema::open(path, env.durable)? };
        let files = (!env.memory).then(|| Arc::new(Files::new(path)));
        let readers = Readers::new(path, env.readers, files.clone());
        Self::with(shared, conn, files, readers)
    }

    /// The same database after the death of its process: uncommitted changes are undone, and older handles do not reach
    /// it any more. `None`: its writer has a thread.
    ///
    /// # Errors
    /// No thread can be started.
    pub(in crate::store) fn again(self, shared: &Arc<Shared>) -> Option<Result<Self, Error>> {
        if self.queue.is_some() {
            return None;
        }
        let conn = self.writer.lock().unwrap_or_else(PoisonError::into_inner).die()?;
        Some(Self::with(shared, conn, self.files, self.readers))
    }

    fn with(
        shared: &Arc<Shared>,
        conn: Connection,
        files: Option<Arc<Files>>,
        readers: Readers,
    ) -> Result<Self, Error> {
        let writer = Arc::new(Mutex::new(Writer::new(shared.clone(), files.clone(), conn)));
        let mut queue = None;
        if !shared.env.inline {
            let jobs = Arc::new(JobQueue::new(QUEUE));
            let (mine, inbox) = (writer.clone(), jobs.clone());
            crate::thread::spawn_own("store", crate::thread::DEEP_STACK, move || Writer::run(&mine, &inbox))
                .map_err(|e| Error::Unavailable(format!("no thread for the writer: {e}")))?;
            queue = Some(Arc::new(QueueOwner(jobs)));
        }
        let gathered = (shared.env.inline && shared.env.gathers).then(Arc::default);
        Ok(Self { queue, gathered, writer, readers, files })
    }

    /// Sends a job to the writer.
    ///
    /// # Errors
    /// It was not taken by the instant, or nobody is there to take it.
    pub(in crate::store) fn send(&self, job: Job, until: Instant) -> Result<(), NotTaken> {
        match &self.queue {
            Some(owner) => owner.0.push(job, until),
            None if self.gathered.is_some() => {
                // The group is answered in the order in which it was sent.
                let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
                let mut group = self.take_gathered();
                group.push_back(job);
                writer.perform_all(group)
            }
            None => self.writer.lock().unwrap_or_else(PoisonError::into_inner).perform(job),
        }
    }

    /// As [`Sqlite::send`], for a job whose caller does not wait for it.
    ///
    /// # Errors
    /// As there.
    pub(in crate::store) fn post(&self, job: Job, until: Instant) -> Result<(), NotTaken> {
        match &self.gathered {
            Some(gathered) if !self.writer.lock().unwrap_or_else(PoisonError::into_inner).is_over() => {
                gathered.lock().unwrap_or_else(PoisonError::into_inner).push_back(job);
                Ok(())
            }
            _ => self.send(job, until),
        }
    }

    fn take_gathered(&self) -> VecDeque<Job> {
        let gathered = self.gathered.as_ref();
        gathered
            .map(|jobs| std::mem::take(&mut *jobs.lock().unwrap_or_else(PoisonError::into_inner)))
            .unwrap_or_default()
    }

    /// Commits what was gathered, as one group.
    pub(in crate::store) fn commit_gathered(&self) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(refused) = writer.perform_all(self.take_gathered()) {
            refused.refuse();
        }
    }

    /// Whether something was gathered.
    pub(in crate::store) fn has_gathered(&self) -> bool {
        let gathered = self.gathered.as_ref();
        gathered.is_some_and(|jobs| !jobs.lock().unwrap_or_else(PoisonError::into_inner).is_empty())
    }

    /// As [`Sqlite::send`], for a thread that may wait for the disk itself. If the writer is idle and nothing waits,
    /// the job is done on this thread, which saves two hand-overs between threads.
    ///
    /// # Errors
    /// As there.
    pub(in crate::store) fn commit_inline(&self, job: Job, until: Instant) -> Result<(), NotTaken> {
        let Some(owner) = self.queue.as_ref().filter(|owner| owner.0.is_idle()) else { return self.send(job, until) };
        let mut writer = match self.writer.try_lock() {
            Ok(writer) => writer,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return self.send(job, until),
        };
        let dirty = writer.is_clean();
        writer.perform(job)?;
        drop(writer);
        if dirty {
            owner.0.mark_dirty();
        }
        Ok(())
    }

    /// Runs a read on a connection of its own.
    ///
    /// # Errors
    /// None came free in time, or none can be opened; or the read failed.
    pub(in crate::store) fn read<T>(
        &self,
        patience: Duration,
        run: impl FnOnce(Sql<'_>) -> Result<T, SqlError>,
    ) -> Result<T, Error> {
        Ok(self.readers.with(patience, |conn| run(sql(conn)))??)
    }

    /// Closes the readers, at the latest at the instant.
    pub(in crate::store) fn close_readers(&self, until: Instant) {
        // In memory the database goes with its last connection.
        if self.files.is_some() {
            self.readers.close(until);
        }
    }

    /// Checks that the files are still those that were opened.
    ///
    /// # Errors
    /// They are not.
    pub(in crate::store) fn check_files(&self) -> Result<(), Error> {
        files::intact(self.files.as_deref())
    }

    /// A consistent copy, made while the writer goes on.
    ///
    /// # Errors
    /// The copy cannot be written, or is not sound.
    pub(in crate::store) fn backup(&self, from: &Path, to: &Path) -> Result<(), Error> {
        self.check_files()?;
        backup::to_file(from, to)
    }
}
