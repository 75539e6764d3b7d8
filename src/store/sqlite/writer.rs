//! The writer thread: group commit.
//!
//! All waiting jobs run in one transaction, each in a savepoint, so that a refused member is undone alone. One COMMIT
//! makes all of them durable, and only then their callers are answered. A full disk, in a statement or at the COMMIT,
//! rolls the group back; its members are then run again one by one, and nothing is in doubt. If a COMMIT fails for any
//! other reason, no caller is acknowledged, and the connection is opened again first: after a failed fsync the cached
//! pages cannot be trusted.
//!
//! No reader can hold up the writer: a checkpoint that meets a reader is tried again later.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::files::{self, Files};
use super::{schema, sql};
use crate::failpoint;
use crate::store::accept::waiting;
use crate::store::env::Step;
use crate::store::job::{Job, Work};
use crate::store::sql::ErrorClass;
use crate::store::tx::{Commit, Locked, Tx};
use crate::store::write_queue::{JobQueue, NotTaken, Woken};
use crate::store::{Error, Shared, closed, not_kept};

/// The most members of one transaction.
const GROUP: usize = 512;
/// The time without work before a checkpoint moves the log into the file.
const QUIET: Duration = Duration::from_secs(2);
/// The longest pause before a checkpoint that a reader stopped is tried again. The pause doubles up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(64);

/// The writing connection. One thread at a time has it: the writer's own, or that of a caller that found it idle.
pub(super) struct Writer {
    shared: Arc<Shared>,
    /// `None`: the database is in memory.
    files: Option<Arc<Files>>,
    conn: Option<Connection>,
    /// When the next checkpoint is due; `None`: nothing was written since the last one.
    checkpoint_at: Option<Instant>,
    /// The pause before the next checkpoint, after a checkpoint that a reader stopped.
    pause: Duration,
    /// The growing write-ahead log has been reported.
    warned: bool,
    /// The waiting messages must be counted again: the connection is new, or a commit was in doubt.
    recount: bool,
    over: bool,
}

/// The outcome of a group.
enum Fate {
    /// Committed; the outcome of each member, and whether anything was written.
    Committed(Vec<Result<(), Error>>, Commit, bool),
    /// Rolled back whole, because the disk is full: run the members one by one.
    Lost,
    /// It could not begin: nothing was kept.
    Refused(Error),
    /// It was committed, but the database's path now has other files.
    Gone(Error),
    /// The COMMIT failed.
    Broken(Error),
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, files: Option<Arc<Files>>, conn: Connection) -> Self {
        Self {
            shared,
            files,
            conn: Some(conn),
            checkpoint_at: Some(Instant::now() + QUIET),
            pause: QUIET,
            warned: false,
            recount: true,
            over: false,
        }
    }

    /// Checks that the files are those that were opened.
    fn intact(&self) -> Result<(), Error> {
        files::intact(self.files.as_deref())
    }

    /// Whether nothing was written since the last checkpoint.
    pub(super) fn is_clean(&self) -> bool {
        self.checkpoint_at.is_none()
    }

    /// The connection as a death leaves it, with uncommitted changes undone.
    pub(super) fn die(&mut self) -> Option<Connection> {
        self.over = true;
        self.conn.take().inspect(rollback)
    }

    /// Runs one job alone.
    pub(super) fn perform(&mut self, job: Job) -> Result<(), NotTaken> {
        match job {
            job if self.over => return Err(NotTaken::Over(job)),
            Job::Work(work) => self.commit(vec![work]),
            Job::Close(answer) => {
                let _ = answer.send(self.close());
            }
        }
        Ok(())
    }

    /// Some jobs, as one group.
    pub(super) fn perform_all(&mut self, mut jobs: VecDeque<Job>) -> Result<(), NotTaken> {
        if self.over {
            let last = jobs.pop_back();
            jobs.into_iter().for_each(|job| job.refuse(&closed()));
            return last.map_or(Ok(()), |job| Err(NotTaken::Over(job)));
        }
        let _ = self.serve(jobs);
        Ok(())
    }

    /// Whether it takes no more jobs.
    pub(super) const fn is_over(&self) -> bool {
        self.over
    }

    /// The writer's thread, until the store is closed or every handle is gone.
    pub(super) fn run(writer: &Mutex<Self>, queue: &JobQueue) {
        let lock = || -> MutexGuard<'_, Self> { writer.lock().unwrap_or_else(PoisonError::into_inner) };
        let _end = End(queue);
        let mut patience = Some(QUIET);
        loop {
            match queue.wait(patience) {
                Woken::Over => return,
                Woken::Dirty => patience = lock().until_checkpoint(),
                Woken::Quiet => patience = lock().checkpoint_when_quiet(),
                Woken::Work => {
                    let mut writer = lock();
                    // Taken after the lock, so that all jobs that came while another thread had the connection are one
                    // group.
                    if writer.serve(queue.take(GROUP)) {
                        return;
                    }
                    // Frequent pings must not delay the checkpoint.
                    patience = writer.until_checkpoint();
                }
            }
        }
    }

    /// Commits the jobs from the queue. `true`: the store is closed.
    fn serve(&mut self, jobs: VecDeque<Job>) -> bool {
        let mut group = Vec::with_capacity(jobs.len());
        let mut jobs = jobs.into_iter();
        while let Some(job) = jobs.next() {
            match job {
                Job::Work(work) => group.push(work),
                Job::Close(answer) => {
                    self.commit(group);
                    let _ = answer.send(self.close());
                    jobs.for_each(|job| job.refuse(&closed()));
                    return true;
                }
            }
        }
        self.commit(group);
        false
    }

    /// Runs a group to its end and answers every member.
    fn commit(&mut self, mut group: Vec<Box<dyn Work>>) {
        if group.is_empty() {
            return;
        }
        let fate = self.shielded_attempt(&mut group);
        if matches!(fate, Fate::Lost) && group.len() > 1 {
            for work in group {
                let mut one = vec![work];
                let fate = self.shielded_attempt(&mut one);
                self.conclude(one, fate);
            }
        } else {
            self.conclude(group, fate);
        }
    }

    /// A transaction that panics must not end the writer: it counts as a failed commit.
    fn shielded_attempt(&mut self, group: &mut [Box<dyn Work>]) -> Fate {
        let shared = self.shared.clone();
        let _working = shared.working();
        if shared.env.inline {
            return self.attempt(group);
        }
        std::panic::catch_unwind(AssertUnwindSafe(|| self.attempt(group)))
            .unwrap_or_else(|_| Fate::Broken(Error::Unavailable("a transaction panicked".into())))
    }

    fn conclude(&mut self, group: Vec<Box<dyn Work>>, fate: Fate) {
        match fate {
            Fate::Committed(outcomes, commit, wrote) => {
                match outcomes.iter().find_map(|o| o.as_ref().err().filter(|e| is_full(e))) {
                    Some(full) => self.shared.condition.failed(&full.to_string()),
                    // If something was written, the disk is not full.
                    None if wrote => self.shared.condition.well(),
                    None => {}
                }
                self.answer(group, outcomes, &commit);
            }
            Fate::Lost => self.refuse(group, &disk_full()),
            Fate::Refused(error) => {
                self.refuse(group, &not_kept(&error));
            }
            Fate::Gone(error) => {
                // If the file is put back in its place, it has the commit.
                self.recount = true;
                self.refuse(group, &Error::Unavailable(format!("it may or may not have been kept: {error}")));
                self.shielded("observer of doubts", || self.shared.doubted());
            }
            Fate::Broken(error) => self.broken(group, &error),
        }
    }

    fn answer(&self, group: Vec<Box<dyn Work>>, outcomes: Vec<Result<(), Error>>, commit: &Commit) {
        *self.shared.tally.lock().unwrap_or_else(PoisonError::into_inner) += commit.tally;
        self.shared.waiting.fetch_add(commit.waiting, Ordering::SeqCst);
        if !commit.is_empty() {
            let observer = self.shared.observer.read().unwrap_or_else(PoisonError::into_inner).clone();
            self.shielded("observer of commits", || observer(commit));
        }
        for (mut work, outcome) in group.into_iter().zip(outcomes) {
            self.shielded(work.name(), || work.done(outcome));
        }
    }

    /// Calls a callback. A panic in it ends neither the writer nor the callbacks that follow. Injected deaths unwind
    /// too, and are passed on.
    fn shielded(&self, whom: &str, tell: impl FnOnce()) {
        if self.shared.env.inline {
            return tell();
        }
        if std::panic::catch_unwind(AssertUnwindSafe(tell)).is_err() {
            log::error!("store: {whom}: the callback panicked");
        }
    }

    /// Refuses every member of a group.
    fn refuse(&self, group: Vec<Box<dyn Work>>, error: &Error) {
        self.shared.condition.failed(&error.to_string());
        for mut work in group {
            self.shielded(work.name(), || work.done(Err(error.clone())));
        }
    }

    /// After a failed COMMIT: refuses every member, and closes the connection so that it is opened again.
    fn broken(&mut self, group: Vec<Box<dyn Work>>, error: &Error) {
        log::error!("store: commit: {error}; the database is opened again");
        self.recount = true;
        self.give_up_connection();
        let error = Error::Unavailable(format!("the commit failed, it may or may not have been kept: {error}"));
        self.refuse(group, &error);
        self.shielded("observer of doubts", || self.shared.doubted());
    }

    fn give_up_connection(&mut self) {
        if !self.shared.env.memory {
            let shared = self.shared.clone();
            let _working = shared.working();
            self.drop_connection();
        }
    }

    fn drop_connection(&mut self) {
        let conn = self.conn.take();
        match &self.files {
            Some(files) => files.with_new_log(|| drop(conn)),
            None => drop(conn),
        }
    }

    /// The connection, opened again if the last commit failed.
    fn ready(&mut self) -> Result<&Connection, Error> {
        if self.conn.is_none() {
            let open = || schema::reopen(&self.shared.path, self.shared.env.durable);
            self.conn = Some(self.files.as_ref().map_or_else(open, |files| files.with_new_log(open))?);
            log::info!("store: the database is open again");
        }
        self.conn.as_ref().ok_or_else(closed)
    }

    /// Begins a transaction. The connection is kept if another process holds the lock or the disk is full.
    fn begin(&mut self) -> Result<(), Error> {
        self.intact()?;
        let begun = quick(self.ready()?, "BEGIN IMMEDIATE").map_err(Error::from);
        match begun {
            Err(e) if is_busy(&e) => Err(Error::Unavailable(self.locked())),
            Err(e) if !is_full(&e) && !self.shared.env.memory => {
                self.drop_connection();
                Err(e)
            }
            Ok(()) => self.count_waiting(),
            begun => begun,
        }
    }

    /// Counts the waiting messages, once per connection. The index has only rows of waiting messages.
    fn count_waiting(&mut self) -> Result<(), Error> {
        let Some(conn) = self.conn.as_ref().filter(|_| self.recount) else { return Ok(()) };
        match waiting(sql(conn)) {
            Ok(waiting) => {
                self.shared.waiting.store(waiting, Ordering::SeqCst);
                self.recount = false;
            }
            Err(e) if conn.is_autocommit() => {
                // SQLite has rolled the transaction back: later statements would be committed one by one.
                if !self.shared.env.memory {
                    self.drop_connection();
                }
                return Err(e.into());
            }
            Err(e) => {
                // The limit of waiting messages is then less exact, which is no reason to accept no messages.
                let e = Error::from(e);
                self.recount = !e.lies_in_rows();
                log::warn!("store: cannot count the waiting messages: {e}");
            }
        }
        Ok(())
    }

    /// An error text that names the process with the write lock.
    fn locked(&self) -> String {
        let path = self.shared.path.display();
        let index = format!("{path}-shm");
        match files::lockers(std::path::Path::new(&index)).as_slice() {
            [] => format!("{path}: the database is locked by another process"),
            holders => format!("{path}: the database is locked by {}", holders.join(", ")),
        }
    }

    fn attempt(&mut self, group: &mut [Box<dyn Work>]) -> Fate {
        let shared = self.shared.clone();
        if let Err(e) = self.begin() {
            return Fate::Refused(e);
        }
        let Some(conn) = &self.conn else { return Fate::Refused(closed()) };
        let (alone, before) = (group.len() == 1, conn.total_changes());
        let mut outcomes = Vec::with_capacity(group.len());
        let mut tx = Tx {
            sql: sql(conn),
            now: shared.clock().0,
            bid: shared.boot.load(Ordering::SeqCst),
            shared: &shared,
            out: Commit::default(),
            locked: Locked::default(),
        };
        for work in group.iter_mut() {
            failpoint::hit(work.name(), "before");
            shared.env.inject_fault(work.name(), Step::Before);
            match run_member(conn, &mut tx, work.as_mut(), alone) {
                Ok(outcome) => outcomes.push(outcome),
                Err(()) => return Fate::Lost,
            }
            failpoint::hit(work.name(), "inside");
            shared.env.inject_fault(work.name(), Step::Inside);
        }
        let commit = tx.out;
        let wrote = conn.total_changes() != before;
        if wrote {
            self.checkpoint_at = Some(Instant::now() + QUIET);
            self.pause = QUIET;
        }
        let inject = |step| group.iter().any(|work| shared.env.inject_fault(work.name(), step));
        let committed = if inject(Step::Room) {
            Err(failure(rusqlite::ffi::SQLITE_FULL))
        } else if inject(Step::Commit) {
            Err(failure(rusqlite::ffi::SQLITE_IOERR_FSYNC))
        } else {
            quick(conn, "COMMIT")
        };
        if let Err(e) = committed {
            rollback(conn);
            let e = Error::from(e);
            // The disk was full before the end of the transaction was written, so the log does not contain it.
            return if is_full(&e) { Fate::Lost } else { Fate::Broken(e) };
        }
        for work in group.iter() {
            failpoint::hit(work.name(), "committed");
        }
        if inject(Step::Committed) {
            return Fate::Broken(Error::Unavailable("the answer of the disk was lost".into()));
        }
        if let Err(gone) = self.intact() {
            return Fate::Gone(gone);
        }
        Fate::Committed(outcomes, commit, wrote)
    }

    /// How long until the next checkpoint.
    fn until_checkpoint(&self) -> Option<Duration> {
        self.checkpoint_at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Runs a checkpoint if it is due. Returns the time until the next one. A checkpoint that a reader stops is tried
    /// again later.
    fn checkpoint_when_quiet(&mut self) -> Option<Duration> {
        let left = self.until_checkpoint()?;
        if !left.is_zero() {
            return Some(left);
        }
        let checkpointed = {
            let _working = self.shared.working();
            let intact = self.intact().is_ok();
            self.conn.as_ref().map_or(Ok(true), |conn| if intact { checkpoint(conn) } else { Ok(false) })
        };
        if let Ok(true) = checkpointed {
            self.checkpoint_at = None;
            self.pause = QUIET;
            self.warned = false;
            return None;
        }
        if self.pause == LONGEST_PAUSE && !std::mem::replace(&mut self.warned, true) {
            let why = checkpointed.map_or_else(|e| e.to_string(), |_| "another process or thread uses it".to_owned());
            let path = self.shared.path.display();
            log::warn!("store: {path}: the write-ahead log cannot be checkpointed and grows: {why}");
        }
        self.checkpoint_at = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.until_checkpoint()
    }

    fn close(&mut self) -> Result<(), Error> {
        self.over = true;
        if self.shared.env.memory {
            return Ok(());
        }
        let Some(conn) = self.conn.take() else { return Ok(()) };
        let _working = self.shared.working();
        self.intact()?;
        let whole = checkpoint(&conn)?;
        // SQLite removes the log with the last connection, and the check of the files must not take that for a loss.
        let close = || {
            conn.close().map_err(|(conn, e)| {
                drop(conn);
                Error::from(e)
            })
        };
        match &self.files {
            Some(files) => files.with_new_log(close)?,
            None => close()?,
        }
        if !whole {
            // All commits are on the disk: the next process that opens the file reads them from the log.
            let path = self.shared.path.display();
            log::warn!("store: {path}: somebody reads the database: its write-ahead log stays beside it");
        }
        Ok(())
    }
}

/// Moves the log into the file and empties it, without waiting. `false`: a reader or another writer stopped it.
pub(in crate::store) fn checkpoint(conn: &Connection) -> rusqlite::Result<bool> {
    log::debug!("store: checkpoint: the write-ahead log is moved into the file");
    failpoint::hit("checkpoint", "before");
    let step = |sql: &str| -> rusqlite::Result<bool> {
        let moved = conn.query_row(sql, [], |r| Ok((r.get::<_, i64>(0)?, r.get::<_, i64>(1)?, r.get::<_, i64>(2)?)));
        match moved {
            Ok((busy, log, moved)) => Ok(busy == 0 && log == moved),
            Err(e) if super::is_busy(&e) => Ok(false),
            Err(e) => Err(e),
        }
    };
    conn.busy_timeout(Duration::ZERO)?;
    let whole = match step("PRAGMA wal_checkpoint(PASSIVE)") {
        // Only a log that was moved whole can be emptied. This does not wait for a reader at the end of the log.
        Ok(true) => step("PRAGMA wal_checkpoint(TRUNCATE)"),
        other => other,
    };
    conn.busy_timeout(schema::BUSY)?;
    whole
}

/// Answers all waiting callers when the thread ends, also by a panic.
struct End<'q>(&'q JobQueue);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.end().into_iter().for_each(|job| job.refuse(&closed()));
    }
}

/// Runs one member in its savepoint. `Err(())`: the whole transaction is gone.
fn run_member(conn: &Connection, tx: &mut Tx<'_>, work: &mut dyn Work, alone: bool) -> Result<Result<(), Error>, ()> {
    let mark = tx.out.mark();
    tx.locked.clear();
    if !alone && quick(conn, "SAVEPOINT member").is_err() {
        rollback(conn);
        return Err(());
    }
    let outcome = work.run(tx);
    if outcome.is_err() {
        tx.out.truncate(mark);
        if conn.is_autocommit() {
            return Err(());
        }
        if alone {
            // The transaction has only this member, so all of it is undone.
            rollback(conn);
            return match quick(conn, "BEGIN IMMEDIATE") {
                Ok(()) => Ok(outcome),
                Err(_) => Err(()),
            };
        }
        if quick(conn, "ROLLBACK TO member").is_err() {
            rollback(conn);
            return Err(());
        }
    }
    if !alone && quick(conn, "RELEASE member").is_err() {
        rollback(conn);
        return Err(());
    }
    Ok(outcome)
}

/// Runs a statement without parameters, its plan cached.
fn quick(conn: &Connection, sql: &str) -> rusqlite::Result<()> {
    conn.prepare_cached(sql)?.execute([]).map(|_| ())
}

fn rollback(conn: &Connection) {
    if !conn.is_autocommit() {
        let _ = conn.execute_batch("ROLLBACK");
    }
}

fn failure(code: i32) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None)
}

fn is_full(error: &Error) -> bool {
    matches!(error, Error::Sql(e) if e.class == ErrorClass::Full)
}

fn is_busy(error: &Error) -> bool {
    matches!(error, Error::Sql(e) if e.class == ErrorClass::Busy)
}

fn disk_full() -> Error {
    Error::Unavailable("the disk is full or failing; nothing was kept of this".into())
}
