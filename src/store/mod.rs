//! The store: the only place that knows SQL. What other rooms keep in memory is a cache of it, or a handle.
//!
//! Each durable change is one named transaction: a method of [`Store`] in the file of its subject. The event that a
//! hook or a stream hears of is written in the same transaction. The named transactions know no engine; their
//! statements pass the seam [`sql`]. The engine ([`sqlite`]) has one writer, which commits all that waits in one go,
//! and readers beside it.
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
mod shims;
mod sql;
mod sqlite;
mod turns;
mod tx;
mod write_queue;

pub use accept::{Accept, Accepted, Limits};
pub use activations::{Definition, Opened, OpenedSession};
pub use boots::{BootInfo, Recovered, StopNote, StopOutcome};
pub use damage::Damaged;
pub use dirs::DeletedFiles;
pub use env::{Env, Faults, Step};
pub use journal::{FailedEvent, JournalCounts, Owed, Settled, Tally};
pub use outbox::{Batch, Outbox};
pub use output::Item;
pub use read::{Counts, EventRow, History, Page, SessionFilter, SessionView, TranscriptEntry, TurnView};
pub use retention::Pruned;
pub use sessions::{Acted, Target, Wanted};
pub use shims::{Asked, Frames, Keep, Pending, Readied, Resumed, RunsOn, ShimRow};
pub use sql::SqlError;
pub use sqlite::{Exam, examine, knows_session, reports_of, restore, shims_of, version as schema_version};
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
    /// The writer is late: its session, epoch or turn is not the current one any more.
    #[error("the session has gone on without this writer")]
    Stale,
    /// The session cannot be deleted with its files: another session works in the same directory.
    #[error("another session of its key works in the same directory: delete that one too, or keep the files")]
    DirInUse,
    /// Turns do not start now: a stop has begun, or the daemon is held.
    #[error("turns do not start now")]
    Closed,
    /// The value is no integer, so nothing can be added to it.
    #[error("the value there is no integer")]
    NoInteger,
    /// The sum does not fit into 64 bits.
    #[error("the sum is beyond 64 bits")]
    TooLarge,
    /// The session would run on probation, one death short of suspension, and another one does so now.
    #[error("waiting: a session on probation is running alone")]
    OnProbation,
    /// The session's rows cannot be used.
    #[error("the session's rows cannot be used; see the daemon's log")]
    Damaged,
    /// No such set-aside event or report.
    #[error("no such entry")]
    NotFound,
}

/// Whether turns may start. The daemon sets it; each transaction reads it.
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
    /// Damaged sessions that the log has named already, and during what.
    damaged: Mutex<BTreeSet<(i64, &'static str)>>,
    owed: RwLock<OwedTo>,
    observer: RwLock<Observer>,
    doubt: RwLock<Doubt>,
}

/// The newest time that the database held at the boot, and the instant at which it was read.
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

/// How long a caller waits for the writer. After that the outcome is unknown.
pub const PATIENCE: Duration = Duration::from_secs(30);

impl Store {
    /// Opens `path`, migrates it, and starts the writer.
    ///
    /// # Errors
    /// The file cannot be opened or migrated, is damaged, or is of another program or a newer ostler; or no thread can
    /// be started.
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

    /// The same database after the death of its process: uncommitted changes are undone, and older handles do not reach
    /// it any more. For simulations that keep the database in memory: opening it anew would take most of their time.
    ///
    /// # Errors
    /// Its writer has a thread.
    pub fn again(self, env: Env) -> Result<Self, Error> {
        let shared = Shared::new(&self.shared.path, env);
        let engine = self.engine.again(&shared).ok_or_else(closed)??;
        Ok(Self { shared, engine, patience: patience() })
    }

    /// The same store, with a deadline for the caller's waits.
    #[must_use]
    pub fn until(&self, until: Instant) -> Self {
        Self { patience: until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)), ..self.clone() }
    }

    /// Where the database is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Sets who says to which handlers a journalled event is owed. It is asked inside the transaction that writes the
    /// event.
    pub fn set_owed(&self, owed: OwedTo) {
        *self.shared.owed.write().unwrap_or_else(PoisonError::into_inner) = owed;
    }

    /// Sets who is notified of each commit, on the writer's thread. It must not block.
    pub fn set_observer(&self, observer: Observer) {
        *self.shared.observer.write().unwrap_or_else(PoisonError::into_inner) = observer;
    }

    /// Sets who is notified that a commit is in doubt: its changes may have been kept, and nobody was notified of them.
    /// It is called on any thread and must not block. Once the store answers again, [`Store::overlooked`] says what
    /// those changes were.
    pub fn set_doubt(&self, doubt: Doubt) {
        *self.shared.doubt.write().unwrap_or_else(PoisonError::into_inner) = doubt;
    }

    /// Sets whether turns may start. Transactions that run after this see it.
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

    /// As [`Store::write`], on the caller's own thread if the writer is idle. For threads that are few and may wait for
    /// the disk. What others send meanwhile is the next group.
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
            refused.refuse();
        }
        match reply.wait(until) {
            Some(result) => result,
            None => {
                self.shared.doubted();
                Err(Error::Unavailable(format!("{name}: the disk did not answer within {}", span(self.patience))))
            }
        }
    }

    /// Runs one named transaction. `done` is called on the writer's thread after the commit, and must not block.
    fn write_then<T: Send + 'static>(
        &self,
        name: &'static str,
        run: impl FnMut(&mut Tx<'_>) -> Result<T, Error> + Send + 'static,
        done: impl FnOnce(Result<T, Error>) + Send + 'static,
    ) {
        let job = Job::work(name, run, done);
        if let Err(refused) = self.engine.send(job, Instant::now() + self.patience) {
            refused.refuse();
        }
    }

    /// As [`Store::write_then`], for what no thread ever waits for.
    fn write_aside(
        &self,
        name: &'static str,
        run: impl FnMut(&mut Tx<'_>) -> Result<(), Error> + Send + 'static,
        done: impl FnOnce(Result<(), Error>) + Send + 'static,
    ) {
        let job = Job::work(name, run, done);
        if let Err(refused) = self.engine.post(job, Instant::now() + self.patience) {
            refused.refuse();
        }
    }

    /// Commits what was gathered ([`Env::gathers`]) as one group.
    pub fn commit_gathered(&self) {
        self.engine.commit_gathered();
    }

    /// Whether something was gathered that [`Store::commit_gathered`] would commit.
    #[must_use]
    pub fn has_gathered(&self) -> bool {
        self.engine.has_gathered()
    }

    /// Runs a read beside the writer.
    fn read<T>(&self, run: impl FnOnce(Sql<'_>) -> Result<T, SqlError>) -> Result<T, Error> {
        self.engine.read(self.patience, run)
    }

    /// Whether the writer can begin a transaction. Answers after everything sent before it was committed.
    #[must_use]
    pub fn answers(&self, within: Duration) -> bool {
        self.ping(within).is_some_and(|well| well)
    }

    /// Whether the writer is alive: it answers, if only with an error, or is inside the engine. A full or stalled disk
    /// is no reason to kill the daemon.
    #[must_use]
    pub fn is_alive(&self, within: Duration) -> bool {
        self.ping(within).is_some() || self.is_working()
    }

    /// Runs a transaction that does nothing. Whether it succeeded; `None`: no answer came in time.
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

    /// Why the store keeps nothing at present; `None`: it keeps what it is given. After a refusal, this tries a write
    /// that takes at most `within`, to find out whether the trouble is over.
    #[must_use]
    pub fn trouble(&self, within: Duration) -> Option<String> {
        if self.shared.condition.trouble().is_none() {
            let late = || format!("the disk did not answer within {}", span(within));
            return if self.answers(within) { None } else { self.shared.condition.trouble().or_else(|| Some(late())) };
        }
        let hurried = self.until(Instant::now() + within);
        hurried.note_alive().err().map(|e| self.shared.condition.trouble().unwrap_or_else(|| e.to_string()))
    }

    /// Checks that the database's files are still those that were opened. If not, the trouble is logged and shown at
    /// once, and not only with the next message.
    pub fn check_files(&self) {
        if let Err(e) = self.engine.check_files() {
            self.shared.condition.failed(&not_kept(&e).to_string());
        }
    }

    /// The time for what is stored: the wall clock, unless that is known to be wrong.
    #[must_use]
    pub fn now(&self) -> Millis {
        self.shared.clock().0
    }

    /// What is wrong with the wall clock; `None` when all is well.
    #[must_use]
    pub fn clock_problem(&self) -> Option<Problem> {
        self.shared.clock().1
    }

    /// Whether the writer is inside the engine now. A stalled disk keeps it there, which is no reason to kill the
    /// daemon.
    #[must_use]
    pub fn is_working(&self) -> bool {
        self.shared.working.load(Ordering::SeqCst)
    }

    /// Writes the log back into the file, empties it and closes the file; later operations are refused.
    ///
    /// # Errors
    /// The checkpoint failed or did not end in time; what was committed is safe in the log.
    pub fn close(&self, until: Instant) -> Result<(), Error> {
        // Readers get half of the time, the writer the rest.
        self.engine.close_readers(Instant::now() + until.saturating_duration_since(Instant::now()) / 2);
        let (send, receive) = crossbeam_channel::bounded(1);
        self.engine.send(Job::Close(send), until).map_err(|refused| refused.why())?;
        receive.recv_deadline(until).map_err(|_| Error::Unavailable("close: the disk did not answer in time".into()))?
    }

    /// Makes a consistent copy of the database while the writer goes on.
    ///
    /// # Errors
    /// The copy cannot be written, or is not sound.
    pub fn backup(&self, to: &Path) -> Result<(), Error> {
        self.engine.backup(self.path(), to)
    }
}

/// While it lives, the writer counts as being inside the engine.
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

    /// The time for what is stored, and what is wrong with the wall clock.
    fn clock(&self) -> (Millis, Option<Problem>) {
        let known = *self.known.read().unwrap_or_else(PoisonError::into_inner);
        let elapsed = known.map_or(Duration::ZERO, |(_, since)| since.elapsed());
        judge(known.map(|(newest, _)| newest), self.env.now(), elapsed)
    }

    /// Sets the newest time in the database, against which the wall clock is checked from now on.
    fn hold_clock_against(&self, newest: Option<Millis>) {
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = newest.map(|newest| (newest, Instant::now()));
    }

    /// The writer is about to call the engine. Guards do not nest: one thread at a time has the writer.
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

/// A span of time for a message, in seconds or, below one, in milliseconds.
fn span(span: Duration) -> String {
    if span < Duration::from_secs(1) { format!("{} ms", span.as_millis()) } else { format!("{} s", span.as_secs()) }
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
