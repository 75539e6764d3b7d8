//! The reading connections. No reader waits for the writer, and no read transaction is long, for that would hold up the
//! checkpoint.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::files::{self, Files};
use super::schema;
use crate::store::{Error, closed};

/// The pool of reading connections. A connection is opened when it is first needed, so that a start does not pay for
/// it; the most recently used one is taken first.
#[derive(Clone)]
pub(super) struct Readers(Arc<Pool>);

struct Pool {
    path: PathBuf,
    /// None where the database is in memory.
    files: Option<Arc<Files>>,
    state: Mutex<PoolState>,
    returned: Condvar,
}

struct PoolState {
    free: Vec<Connection>,
    /// Not open yet.
    unopened: usize,
    /// In use.
    lent: usize,
    closed: bool,
}

impl Readers {
    pub(super) fn new(path: &Path, readers: usize, files: Option<Arc<Files>>) -> Self {
        let state = PoolState { free: Vec::new(), unopened: readers, lent: 0, closed: false };
        Self(Arc::new(Pool { path: path.into(), files, state: Mutex::new(state), returned: Condvar::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the connections, and waits until the instant for those in use. A connection that stays open keeps the
    /// log's file from being removed.
    pub(super) fn close(&self, until: Instant) {
        let mut state = self.lock();
        state.closed = true;
        state.free.clear();
        self.0.returned.notify_all();
        while state.lent > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.0.returned.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Runs a read on a connection that nobody else uses meanwhile.
    ///
    /// # Errors
    /// None came free in time, or none can be opened.
    pub(super) fn with<T>(&self, patience: Duration, run: impl FnOnce(&Connection) -> T) -> Result<T, Error> {
        let lent = self.take(patience)?;
        lent.conn.as_ref().map(run).ok_or_else(closed)
    }

    fn take(&self, patience: Duration) -> Result<Lent, Error> {
        let busy = |s: &mut PoolState| !s.closed && s.free.is_empty() && s.unopened == 0;
        let waited = self.0.returned.wait_timeout_while(self.lock(), patience, busy);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        if state.closed {
            return Err(closed());
        }
        let conn = state.free.pop();
        if conn.is_none() {
            if state.unopened == 0 {
                return Err(Error::Unavailable("all readers are busy".into()));
            }
            state.unopened -= 1;
        }
        state.lent += 1;
        drop(state);
        // From here on the place is given back in any case.
        let mut lent = Lent { readers: self.clone(), conn };
        if lent.conn.is_none() {
            // Another file under the name is another database.
            files::intact(self.0.files.as_deref())?;
            lent.conn = Some(schema::open_reader(&self.0.path)?);
        }
        Ok(lent)
    }
}

/// A connection in use; given back when dropped, opened or not.
struct Lent {
    readers: Readers,
    conn: Option<Connection>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut state = self.readers.lock();
        state.lent -= 1;
        match self.conn.take() {
            // Closed under the lock, so that the thread that waits for the last one finds it closed.
            conn if state.closed => {
                drop(conn);
                return self.readers.0.returned.notify_all();
            }
            Some(conn) => state.free.push(conn),
            None => state.unopened += 1,
        }
        self.readers.0.returned.notify_one();
    }
}
