//! The writer thread: group commit.
//!
//! Whatever waits is run in one transaction, a savepoint each, so that a refused member sinks alone; one COMMIT makes all
//! of them durable, and only then is anybody answered. After an error SQLite is asked whether the transaction still
//! stands, because a full disk rolls all of it back: its members are then run again, one by one. A COMMIT that fails
//! acknowledges nobody, and the connection is opened anew before anything else is accepted: after a failed fsync the
//! cached pages are not to be trusted.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use rusqlite::Connection;

use super::lane::{Queue, Woken};
use super::tx::{Commit, Tx};
use super::world::Step;
use super::{Error, Shared, closed, schema};
use crate::failpoint;

/// The most members of one transaction.
const GROUP: usize = 512;
/// After this long without work the log is folded into the file.
const QUIET: Duration = Duration::from_secs(2);

/// One operation on its way.
pub(super) enum Job {
    /// A named transaction.
    Work(Box<dyn Work>),
    /// Checkpoint, close, answer, end.
    Close(Sender<Result<(), Error>>),
}

impl Job {
    pub(super) fn work<T, R, D>(name: &'static str, run: R, done: D) -> Self
    where
        T: Send + 'static,
        R: FnMut(&mut Tx<'_>) -> Result<T, Error> + Send + 'static,
        D: FnOnce(Result<T, Error>) + Send + 'static,
    {
        Self::Work(Box::new(Named { name, run, value: None, done: Some(done) }))
    }

    /// Tells the caller that it was not done.
    pub(super) fn refuse(self, error: &Error) {
        match self {
            Self::Work(mut work) => work.done(Err(error.clone())),
            Self::Close(answer) => {
                let _ = answer.send(Err(error.clone()));
            }
        }
    }
}

/// A transaction that can be run again, and whoever waits for it.
pub(super) trait Work: Send {
    fn name(&self) -> &'static str;
    fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), Error>;
    fn done(&mut self, outcome: Result<(), Error>);
}

struct Named<T, R, D> {
    name: &'static str,
    run: R,
    value: Option<T>,
    done: Option<D>,
}

impl<T, R, D> Work for Named<T, R, D>
where
    T: Send,
    R: FnMut(&mut Tx<'_>) -> Result<T, Error> + Send,
    D: FnOnce(Result<T, Error>) + Send,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), Error> {
        self.value = None;
        self.value = Some((self.run)(tx)?);
        Ok(())
    }

    fn done(&mut self, outcome: Result<(), Error>) {
        let Some(done) = self.done.take() else { return };
        match (outcome, self.value.take()) {
            (Ok(()), Some(value)) => done(Ok(value)),
            (Ok(()), None) => done(Err(closed())),
            (Err(e), _) => done(Err(e)),
        }
    }
}

/// The writing connection. One thread at a time has it: the writer's own, or a caller's that found it free.
pub(super) struct Writer {
    shared: Arc<Shared>,
    conn: Option<Connection>,
    /// Something was committed since the log was folded in, the last of it at that instant.
    dirty: Option<Instant>,
    over: bool,
}

/// What became of a group.
enum Fate {
    /// Committed; the outcome of each member.
    Committed(Vec<Result<(), Error>>, Commit),
    /// Rolled back whole before the COMMIT: run the members one by one.
    Lost,
    /// The COMMIT failed.
    Broken(Error),
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, conn: Connection) -> Self {
        Self { shared, conn: Some(conn), dirty: Some(Instant::now()), over: false }
    }

    /// Nothing was committed since the log was folded in.
    pub(super) fn is_folded(&self) -> bool {
        self.dirty.is_none()
    }

    /// The connection as a death leaves it: what was not committed is undone.
    pub(super) fn die(&mut self) -> Option<Connection> {
        self.over = true;
        self.conn.take().inspect(rollback)
    }

    /// One job, alone.
    pub(super) fn perform(&mut self, job: Job) -> Result<(), Job> {
        match job {
            job if self.over => return Err(job),
            Job::Work(work) => self.commit(vec![work]),
            Job::Close(answer) => {
                let _ = answer.send(self.close());
            }
        }
        Ok(())
    }

    /// The writer's thread, until the store is closed or every handle is gone.
    pub(super) fn run(writer: &Mutex<Self>, queue: &Queue) {
        let lock = || -> MutexGuard<'_, Self> { writer.lock().unwrap_or_else(PoisonError::into_inner) };
        let _end = End(queue);
        let mut patience = Some(QUIET);
        loop {
            match queue.wait(patience) {
                Woken::Over => return,
                Woken::Stirred => patience = Some(QUIET),
                Woken::Quiet => patience = lock().fold_when_quiet(),
                Woken::Work => {
                    let mut writer = lock();
                    // Taken with the connection in hand, so that all that came while another used it is one group.
                    if writer.serve(queue.take(GROUP)) {
                        return;
                    }
                    patience = Some(QUIET);
                }
            }
        }
    }

    /// Commits what was taken from the queue. `true`: the store is closed.
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
        self.shared.working.store(true, Ordering::SeqCst);
        let fate = if self.shared.world.inline {
            self.attempt(&mut group)
        } else {
            // A transaction that panics must not take the writer with it: it fails as one whose commit failed.
            let attempt = std::panic::AssertUnwindSafe(|| self.attempt(&mut group));
            std::panic::catch_unwind(attempt)
                .unwrap_or_else(|_| Fate::Broken(Error::Unavailable("a transaction panicked".into())))
        };
        self.shared.working.store(false, Ordering::SeqCst);
        match fate {
            Fate::Committed(outcomes, commit) => self.answer(group, outcomes, &commit),
            Fate::Broken(error) => self.broken(group, &error),
            Fate::Lost => {
                for work in group {
                    let mut one = vec![work];
                    match self.attempt(&mut one) {
                        Fate::Committed(outcomes, commit) => self.answer(one, outcomes, &commit),
                        Fate::Broken(error) => self.broken(one, &error),
                        Fate::Lost => one.into_iter().for_each(|mut w| w.done(Err(disk_full()))),
                    }
                }
            }
        }
    }

    fn answer(&self, group: Vec<Box<dyn Work>>, outcomes: Vec<Result<(), Error>>, commit: &Commit) {
        *self.shared.tally.lock().unwrap_or_else(PoisonError::into_inner) += commit.tally;
        if !commit.is_empty() {
            let observer = self.shared.observer.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
            observer(commit);
        }
        for (mut work, outcome) in group.into_iter().zip(outcomes) {
            work.done(outcome);
        }
    }

    /// A failed COMMIT: nobody is acknowledged, and the connection is opened anew.
    fn broken(&mut self, group: Vec<Box<dyn Work>>, error: &Error) {
        log::error!("store: commit: {error}; the database is opened anew");
        if !self.shared.world.memory {
            self.conn = None;
        }
        for mut work in group {
            work.done(Err(Error::Unavailable(format!("the commit failed, it may or may not have been kept: {error}"))));
        }
        self.shared.doubted();
    }

    /// The connection, opened anew if the last commit failed.
    fn ready(&mut self) -> Result<&Connection, Error> {
        if self.conn.is_none() {
            self.conn = Some(schema::open(&self.shared.path, self.shared.world.durable)?);
            log::info!("store: the database is open again");
        }
        self.conn.as_ref().ok_or_else(closed)
    }

    fn attempt(&mut self, group: &mut [Box<dyn Work>]) -> Fate {
        self.dirty = Some(Instant::now());
        let shared = self.shared.clone();
        let conn = match self.ready() {
            Ok(conn) => conn,
            Err(e) => return Fate::Broken(e),
        };
        if let Err(e) = quick(conn, "BEGIN IMMEDIATE") {
            return Fate::Broken(e.into());
        }
        let alone = group.len() == 1;
        let mut outcomes = Vec::with_capacity(group.len());
        let mut tx = Tx {
            conn,
            now: shared.world.now(),
            bid: shared.boot.load(Ordering::SeqCst),
            shared: &shared,
            out: Commit::default(),
        };
        for work in group.iter_mut() {
            failpoint::hit(work.name(), "before");
            shared.world.strikes(work.name(), Step::Before);
            match one(&mut tx, work.as_mut(), alone) {
                Ok(outcome) => outcomes.push(outcome),
                Err(()) => return Fate::Lost,
            }
            failpoint::hit(work.name(), "inside");
            shared.world.strikes(work.name(), Step::Inside);
        }
        let commit = tx.out;
        let strikes = |step| group.iter().any(|work| shared.world.strikes(work.name(), step));
        let committed = if strikes(Step::Commit) {
            Err(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_FSYNC), None))
        } else {
            quick(conn, "COMMIT")
        };
        if let Err(e) = committed {
            if !conn.is_autocommit() {
                let _ = conn.execute_batch("ROLLBACK");
            }
            return Fate::Broken(e.into());
        }
        for work in group.iter() {
            failpoint::hit(work.name(), "committed");
        }
        if strikes(Step::Committed) {
            return Fate::Broken(Error::Unavailable("the answer of the disk was lost".into()));
        }
        Fate::Committed(outcomes, commit)
    }

    /// Folds the log into the file, if nobody has written for a while; else, how much of that while is left.
    fn fold_when_quiet(&mut self) -> Option<Duration> {
        let left = QUIET.saturating_sub(self.dirty?.elapsed());
        if !left.is_zero() {
            return Some(left);
        }
        self.dirty = None;
        if let Some(conn) = &self.conn
            && let Err(e) = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        {
            log::debug!("store: checkpoint: {e}");
        }
        None
    }

    fn close(&mut self) -> Result<(), Error> {
        self.over = true;
        if self.shared.world.memory {
            return Ok(());
        }
        let Some(conn) = self.conn.take() else { return Ok(()) };
        let busy: i64 = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |r| r.get(0))?;
        conn.close().map_err(|(conn, e)| {
            drop(conn);
            Error::from(e)
        })?;
        if busy == 0 { Ok(()) } else { Err(Error::Unavailable("close: a reader held up the checkpoint".into())) }
    }
}

/// The thread is gone, by whatever way: who waits for it hears so.
struct End<'q>(&'q Queue);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.end().into_iter().for_each(|job| job.refuse(&closed()));
    }
}

/// Runs one member in its savepoint. `Err(())`: the whole transaction is gone.
fn one(tx: &mut Tx<'_>, work: &mut dyn Work, alone: bool) -> Result<Result<(), Error>, ()> {
    let conn = tx.conn;
    let mark = tx.out.mark();
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
            // Nothing else is in this transaction: what the member did before its error goes with it.
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

fn disk_full() -> Error {
    Error::Unavailable("the disk is full or failing; nothing was kept of this".into())
}
