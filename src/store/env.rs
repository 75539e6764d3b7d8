//! The environment of a store beside its file: the clock, how durably it writes, and the faults that a test injects.
//!
//! The daemon uses the real environment ([`Env::default`]). A simulation passes its own, so that a seed decides the time
//! and the instant of a death; the code that runs is the same.

use std::sync::Arc;

use crate::clock::{self, Millis};

/// A point of a transaction at which a fault may be injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Before the transaction looks at anything.
    Before,
    /// After its last statement.
    Inside,
    /// Before the COMMIT of its group, for which there may be no room on the disk.
    Room,
    /// Just before the COMMIT of its group.
    Commit,
    /// After that COMMIT, before anybody is answered.
    Committed,
}

/// Called at each step of each named transaction. `true` at [`Step::Room`]: the disk is full. `true` at
/// [`Step::Commit`] or [`Step::Committed`]: the COMMIT counts as failed; in the second case it was kept. The function
/// may also unwind, which is a death.
pub type Faults = Arc<dyn Fn(&'static str, Step) -> bool + Send + Sync>;

/// The environment of a store.
#[derive(Clone)]
pub struct Env {
    /// The wall clock.
    pub clock: Arc<dyn Fn() -> Millis + Send + Sync>,
    /// Injected faults; `None`: none.
    pub faults: Option<Faults>,
    /// Whether each commit waits for the disk. Without it a commit outlives the process, not the power.
    pub durable: bool,
    /// Transactions run on the caller's thread, one by one, instead of the writer's.
    pub inline: bool,
    /// With `inline`: what nobody waits for is gathered until somebody waits for a commit, or until
    /// [`Store::commit_gathered`](super::Store::commit_gathered); all of it is one group then, as it is where the
    /// writer's thread was busy.
    pub gathers: bool,
    /// The database is in memory (a `file:` URI with `vfs=memdb`). Its connections stay open over a failed commit and a
    /// close, and [`Store::again`](super::Store::again) takes them over.
    pub memory: bool,
    /// How many may read at once.
    pub readers: usize,
}

impl Default for Env {
    fn default() -> Self {
        Self {
            clock: Arc::new(clock::now),
            faults: None,
            durable: true,
            inline: false,
            gathers: false,
            memory: false,
            readers: 4,
        }
    }
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Env").field("durable", &self.durable).field("inline", &self.inline).finish_non_exhaustive()
    }
}

impl Env {
    /// The time.
    #[must_use]
    pub fn now(&self) -> Millis {
        (self.clock)()
    }

    /// Whether a fault is injected here.
    pub(super) fn inject_fault(&self, name: &'static str, step: Step) -> bool {
        self.faults.as_ref().is_some_and(|faults| faults(name, step))
    }
}
