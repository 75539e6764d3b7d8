//! The store: the only place that knows SQL. What is in memory elsewhere is a cache of it, or a handle.
//!
//! One [`writer`] thread owns the only writing connection and commits whatever waits in one transaction; readers have
//! connections of their own. Each durable change is one named transaction, a method of [`Store`] in the file of its
//! subject; the journalled event is written in the same transaction as the change that it tells.
//!
//! It must not know threads other than its own, agents, hooks or HTTP.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use engine::Engine;
use job::Job;
use sql::Sql;

use crate::clock::Millis;
use crate::model::event::{HandlerId, HookEvent};
use crate::model::trust::{Problem, judge};

mod accept;
mod activations;
mod boots;
mod condition;
mod damage;
mod dirs;
mod engine;
mod env;
mod isolate;
mod job;
mod journal;
mod kv;
mod outbox;
mod output;
mod read;
mod retention;
mod sessions;
mod sql;
mod sqlite;
mod turns;
mod tx;
mod write_queue;

pub use accept::{Accept, Accepted, Limits};
pub use activations::{Opened, OpenedSession};
pub use boots::{BootInfo, Recovered, StopNote, StopOutcome};
pub use damage::Damaged;
pub use dirs::Leaving;
pub use env::{Env, Faults, Step};
pub use journal::{FailedEvent, JournalCounts, Owed, Settled, Tally};
pub use outbox::{Batch, Outbox};
pub use output::Item;
pub use read::{Counts, EventRow, History, Page, SessionFilter, SessionView, TranscriptEntry, TurnView};
pub use retention::Pruned;
pub use sessions::{Acted, Target, Wanted};
pub use sql::SqlError;
pub use sqlite::{Exam, examine, knows_session, reports_of, restore, version as schema_version};
pub use turns::{Begin, Begun, Cut, Ended, Overlooked, TurnRef};
pub use tx::{Commit, Published, Tx};

/// Why a transaction was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The rules say no; nothing was changed.
    #[error("{0}")]
    Refused(Refusal),
    /// The engine says no; nothing was changed.
    #[error("store: {0}")]
    Sql(SqlError),
    /// The commit failed or did not come in time: it may or may not have been kept.
    #[error("store: {0}")]
    Unavailable(String),
    /// No room in the writer's queue came free in time; nothing was changed.
    #[error("store: too many operations wait for the disk")]
    Overloaded,
    /// The file cannot be opened.
    #[error("{}: {why}", path.display())]
    Open {
        /// The database file.
        path: PathBuf,
        /// What the system or SQLite said.
        why: String,
    },
    /// The file is not ours.
    #[error("{}: not an ostler database: {why}", path.display())]
    Foreign {
        /// The database file.
        path: PathBuf,
        /// What it is.
        why: String,
    },
    /// The file is of a newer ostler.
    #[error("{}: its schema is version {found}, this ostler knows up to {known}: use the newer ostler", path.display())]
    Newer {
        /// The database file.
        path: PathBuf,
        /// Its version.
        found: usize,
        /// Ours.
        known: usize,
    },
}

impl Error {
    /// The refusal, if the rules said no.
    #[must_use]
    pub const fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Refused(r) => Some(*r),
            _ => None,
        }
    }
}

impl From<SqlError> for Error {
    fn from(error: SqlError) -> Self {
        Self::Sql(error)
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// The rules that refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such session.
    #[error("no such session")]
    SessionNotFound,
    /// The session named by its id is not its key's current one.
    #[error("the session is not the current one of its key")]
    NotCurrent,
    /// The session is over.
    #[error("the session has ended")]
    Ended,
    /// The id was used for another text.
    #[error("the id was used before with another text")]
    IdReused,
    /// `queue_limit`.
    #[error("too many messages wait in this session")]
    QueueFull,
    /// `queue_total`.
    #[error("too many messages wait")]
    Overloaded,
    /// A late writer: the session, epoch or turn it speaks for is not the current one any more.
    #[error("the session has gone on without this writer")]
    Stale,
    /// The directory of a session that is to go with its files is another's too.
    #[error("another session of its key works in the same directory: delete that one too, or keep the files")]
    DirInUse,
    /// Turns do not start now: a stop has begun, or the daemon is held.
    #[error("turns do not start now")]
    Closed,
    /// A value that is to be counted on is something else.
    #[error("the value there is no integer")]
    NoInteger,
    /// A counter would leave its 64 bits.
    #[error("the sum is beyond 64 bits")]
    TooLarge,
    /// The session is one death short of suspension, and another such one runs alone just now.
    #[error("another session that may be what kills the daemon runs alone just now")]
    Apart,
    /// The session's rows cannot be used.
    #[error("the session's rows cannot be used; see the daemon's log")]
    Damaged,
    /// No such thing (set-aside event, report).
    #[error("no such entry")]
    NotFound,
}

/// Whether turns may start. Kept by the daemon, looked at inside each transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Turns start.
    Open,
    /// Messages are accepted, turns wait for a release.
    Held,
    /// A stop has begun: messages are accepted as deferred.
    Stopping,
}

/// What is shared between the handle and the writer.
struct Shared {
    path: PathBuf,
    env: Env,
    admission: AtomicU8,
    boot: AtomicI64,
    /// How many messages wait in all: a cache of the rows, counted by the writer when it opens the database and kept with
    /// each commit.
    waiting: AtomicI64,
    working: AtomicBool,
    condition: condition::Condition,
    known: RwLock<Known>,
    tally: Mutex<Tally>,
    /// Sessions whose rows could not be used, and for what: logged already.
    damaged: Mutex<BTreeSet<(i64, &'static str)>>,
    owed: RwLock<OwedTo>,
    observer: RwLock<Observer>,
    doubt: RwLock<Doubt>,
}

/// The newest time that the database knew at the boot, and when that was.
type Known = Option<(Millis, Instant)>;
type OwedTo = Arc<dyn Fn(HookEvent) -> Vec<HandlerId> + Send + Sync>;
type Observer = Arc<dyn Fn(&Commit) + Send + Sync>;
type Doubt = Arc<dyn Fn() + Send + Sync>;

/// A handle to the store; cheap to clone.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    engine: Engine,
    patience: Duration,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

/// How long a caller waits for the writer before it must take the outcome as unknown.
pub const PATIENCE: Duration = Duration::from_secs(30);

impl Store {
    /// Opens `path`, migrates it, and starts the writer.
    ///
    /// # Errors
    /// See [`schema::open`]; or no thread is to be had.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_in(path, Env::default())
    }

    /// As [`Store::open`], in an environment of the caller's.
    ///
    /// # Errors
    /// As there.
    pub fn open_in(path: &Path, env: Env) -> Result<Self, Error> {
        let shared = Shared::new(path, env);
        let engine = Engine::open(&shared)?;
        Ok(Self { shared, engine, patience: patience() })
    }

    /// The same database after a death of whoever held it: what was not committed is undone, and no handle from before
    /// reaches it any more. For simulations that keep it in memory, where opening it anew would take most of the time.
    ///
    /// # Errors
    /// Its writer has a thread.
    pub fn again(self, env: Env) -> Result<Self, Error> {
        let shared = Shared::new(&self.shared.path, env);
        let engine = self.engine.again(&shared).ok_or_else(closed)??;
        Ok(Self { shared, engine, patience: patience() })
    }

    /// The same store, for a caller that must not wait for it beyond an instant.
    #[must_use]
    pub fn until(&self, until: Instant) -> Self {
        Self { patience: until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)), ..self.clone() }
    }

    /// Where the database is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// To whom a journalled event is owed; asked inside the transaction that writes it.
    pub fn set_owed(&self, owed: OwedTo) {
        *self.shared.owed.write().unwrap_or_else(PoisonError::into_inner) = owed;
    }

    /// Who is told of each commit, on the writer's thread; must not block.
    pub fn set_observer(&self, observer: Observer) {
        *self.shared.observer.write().unwrap_or_else(PoisonError::into_inner) = observer;
    }

    /// Who is told that a commit is in doubt: what it was to let in or to end may be true, and nobody was told of it. On
    /// whatever thread; must not block. What is to be done once the store answers again says [`Store::overlooked`].
    pub fn set_doubt(&self, doubt: Doubt) {
        *self.shared.doubt.write().unwrap_or_else(PoisonError::into_inner) = doubt;
    }

    /// Opens or closes the door for turns; transactions after this see it.
    pub fn set_admission(&self, admission: Admission) {
        self.shared.admission.store(admission as u8, Ordering::SeqCst);
    }

    /// Whether turns may start.
    #[must_use]
    pub fn admission(&self) -> Admission {
        self.shared.admission()
    }

    /// Runs one named transaction and waits for its commit.
    fn write<T: Send + 'static>(
        &self,
        name: &'static str,
        run: impl FnMut(&mut Tx<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.write_by(Engine::send, name, run)
    }

    /// As [`Store::write`], on the caller's own thread where the writer is free: for threads that are few and may wait for
    /// the disk as long as it takes. What others send meanwhile is the next group.
    fn write_here<T: Send + 'static>(
        &self,
        name: &'static str,
        run: impl FnMut(&mut Tx<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.write_by(Engine::commit_inline, name, run)
    }

    fn write_by<T: Send + 'static>(
        &self,
        way: fn(&Engine, Job, Instant) -> Result<(), write_queue::NotTaken>,
        name: &'static str,
        run: impl FnMut(&mut Tx<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let until = Instant::now() + self.patience;
        let (answer, reply) = write_queue::reply();
        if let Err(refused) = way(&self.engine, Job::work(name, run, move |result| answer.give(result)), until) {
            refused.tell();
        }
        match reply.wait(until) {
            Some(result) => result,
            None => {
                self.shared.doubted();
                Err(Error::Unavailable(format!("{name}: the disk did not answer within {} s", self.patience.as_secs())))
            }
        }
    }

    /// Runs one named transaction; `done` is told on the writer's thread, after the commit, and must not block.
    fn write_then<T: Send + 'static>(
        &self,
        name: &'static str,
        run: impl FnMut(&mut Tx<'_>) -> Result<T, Error> + Send + 'static,
        done: impl FnOnce(Result<T, Error>) + Send + 'static,
    ) {
        let job = Job::work(name, run, done);
        if let Err(refused) = self.engine.send(job, Instant::now() + self.patience) {
            refused.tell();
        }
    }

    /// Runs a read beside the writer.
    fn read<T>(&self, run: impl FnOnce(Sql<'_>) -> Result<T, SqlError>) -> Result<T, Error> {
        self.engine.read(self.patience, run)
    }

    /// Answers once everything before it was committed: whether the writer can begin a transaction.
    #[must_use]
    pub fn answers(&self, within: Duration) -> bool {
        self.ping(within).is_some_and(|well| well)
    }

    /// Whether the writer is alive: it answers, with whatever, or is inside SQLite. A disk that is full or stalled is no
    /// reason to kill the daemon.
    #[must_use]
    pub fn is_alive(&self, within: Duration) -> bool {
        self.ping(within).is_some() || self.is_working()
    }

    /// What the writer says to a transaction that does nothing; `None`: it says nothing in time.
    fn ping(&self, within: Duration) -> Option<bool> {
        let (send, receive) = crossbeam_channel::bounded(1);
        let job = Job::work(
            "ping",
            |_| Ok(()),
            move |r: Result<(), Error>| {
                let _ = send.send(r.is_ok());
            },
        );
        let until = Instant::now() + within;
        self.engine.send(job, until).ok()?;
        receive.recv_deadline(until).ok()
    }

    /// Why nothing that is sent to it is kept just now; `None` when all is well. After a refusal a write that takes no more
    /// than `within` tries whether that is over.
    #[must_use]
    pub fn trouble(&self, within: Duration) -> Option<String> {
        if self.shared.condition.trouble().is_none() {
            let late = || format!("the disk did not answer within {} s", within.as_secs());
            return if self.answers(within) { None } else { self.shared.condition.trouble().or_else(|| Some(late())) };
        }
        let hurried = self.until(Instant::now() + within);
        hurried.note_alive().err().map(|e| self.shared.condition.trouble().unwrap_or_else(|| e.to_string()))
    }

    /// Looks whether the database's files are still those that were opened; else the trouble is told and shown at once, not
    /// only when the next message comes.
    pub fn look(&self) {
        if let Err(e) = self.engine.look() {
            self.shared.condition.failed(&not_kept(&e).to_string());
        }
    }

    /// The time that what is stored goes by: the wall clock, where it is believed.
    #[must_use]
    pub fn now(&self) -> Millis {
        self.shared.clock().0
    }

    /// What is wrong with the wall clock; `None` when all is well.
    #[must_use]
    pub fn clock_problem(&self) -> Option<Problem> {
        self.shared.clock().1
    }

    /// Whether the writer is inside SQLite now: a stalled disk keeps it there, and is no reason to kill the daemon.
    #[must_use]
    pub fn is_working(&self) -> bool {
        self.shared.working.load(Ordering::SeqCst)
    }

    /// Writes the log back into the file, empties it and closes the file; later operations are refused.
    ///
    /// # Errors
    /// The checkpoint failed or did not end in time; what was committed is safe in the log.
    pub fn close(&self, until: Instant) -> Result<(), Error> {
        // Half of the time for those who still read; the rest is the writer's.
        self.engine.close_readers(Instant::now() + until.saturating_duration_since(Instant::now()) / 2);
        let (send, receive) = crossbeam_channel::bounded(1);
        self.engine.send(Job::Close(send), until).map_err(|refused| refused.why())?;
        receive.recv_deadline(until).map_err(|_| Error::Unavailable("close: the disk did not answer in time".into()))?
    }

    /// A consistent copy, made step by step so that writers are not held up.
    ///
    /// # Errors
    /// The copy cannot be written, or is not sound.
    pub fn backup(&self, to: &Path) -> Result<(), Error> {
        self.engine.backup(self.path(), to)
    }
}

/// While it lives, the writer counts as being inside SQLite.
struct Working<'a>(&'a AtomicBool);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl Shared {
    fn new(path: &Path, env: Env) -> Arc<Self> {
        Arc::new(Self {
            path: path.into(),
            env,
            admission: AtomicU8::new(0),
            boot: AtomicI64::new(0),
            waiting: AtomicI64::new(0),
            working: AtomicBool::new(false),
            condition: condition::Condition::default(),
            known: RwLock::new(None),
            tally: Mutex::default(),
            damaged: Mutex::default(),
            owed: RwLock::new(Arc::new(|_| Vec::new())),
            observer: RwLock::new(Arc::new(|_| ())),
            doubt: RwLock::new(Arc::new(|| ())),
        })
    }

    /// The time to go by, and what is wrong with the wall clock.
    fn clock(&self) -> (Millis, Option<Problem>) {
        let known = *self.known.read().unwrap_or_else(PoisonError::into_inner);
        let elapsed = known.map_or(Duration::ZERO, |(_, since)| since.elapsed());
        judge(known.map(|(newest, _)| newest), self.env.now(), elapsed)
    }

    /// From now on the wall clock is held against the newest time that the database knows.
    fn hold_clock_against(&self, newest: Option<Millis>) {
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = newest.map(|newest| (newest, Instant::now()));
    }

    /// The writer is about to call SQLite. Guards do not nest: one thread alone has the writer.
    fn working(&self) -> Working<'_> {
        self.working.store(true, Ordering::SeqCst);
        Working(&self.working)
    }

    fn doubted(&self) {
        let doubt = self.doubt.read().unwrap_or_else(PoisonError::into_inner).clone();
        doubt();
    }

    fn admission(&self) -> Admission {
        match self.admission.load(Ordering::SeqCst) {
            0 => Admission::Open,
            1 => Admission::Held,
            _ => Admission::Stopping,
        }
    }
}

/// Nothing was changed, for this reason.
fn not_kept(why: &Error) -> Error {
    let why = why.to_string();
    Error::Unavailable(format!("nothing was kept of this: {}", why.trim_start_matches("store: ")))
}

/// [`PATIENCE`], unless a test has less.
fn patience() -> Duration {
    crate::failpoint::number("store.patience").map_or(PATIENCE, |ms| Duration::from_millis(ms.unsigned_abs()))
}

fn closed() -> Error {
    Error::Unavailable("the store is closed".into())
}

#[cfg(test)]
mod tests;
