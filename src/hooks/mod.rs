//! Hooks: the operator's Lua. Owns every Lua state, its thread, its limits and the `ostler.*` API.
//!
//! Lua is named here and nowhere else (but in the lua agent, which borrows [`sandbox`]). Scripts ask the daemon through
//! [`HookHost`]; the daemon tells the scripts an [`Event`]. The hooks must not know the store, the workers or the API:
//! a callback tells the caller whether an event was delivered, and the caller keeps it.
//!
//! Reading order: [`scripts`] reads the files and loads them, once for each state; [`sandbox`] is a Lua state with
//! limits, [`deadline`] stops a call in it, [`pattern`] is the part of Lua that had to be rewritten for that; [`api`]
//! is what scripts may call; [`pool`] owns the threads and their queues, [`hook_thread`] is one of them, [`verdict`]
//! reads a handler's answer, [`stats`] counts and decides when a handler is skipped; [`timer`] runs `ostler.every`,
//! woken by [`bell`]; [`kick`] ends the wait of a run when the daemon stops; [`check`](mod@check), [`sample`] and
//! [`trial`] serve the commands and the tests of scripts.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::clock::Millis;
use crate::model::event::HookEvent;

pub mod api;
mod bell;
pub mod check;
pub mod deadline;
mod globals;
mod hook_thread;
pub mod kick;
pub mod pattern;
pub mod pool;
mod sample;
pub mod sandbox;
pub mod scripts;
pub mod stats;
mod task;
#[cfg(test)]
mod tests;
mod timer;
pub mod trial;
mod verdict;

pub use check::{Problem, check};
pub use pool::Hooks;
pub use sample::{sample, sample_with};
pub use scripts::{LoadError, Scripts, load};
pub use stats::HandlerInfo;

pub use crate::model::event::HandlerId;

impl std::fmt::Display for HandlerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.script, self.name)
    }
}

/// An event on its way to scripts.
#[derive(Clone, Debug)]
pub struct Event {
    /// Which.
    pub kind: HookEvent,
    /// Unique; the same for every delivery of one event.
    pub event_id: String,
    /// When it became true.
    pub at: Millis,
    /// Which delivery this is, from 1.
    pub attempt: u32,
    /// The handler may have seen it before.
    pub redelivered: bool,
    /// Sent by `ostler hooks fire`.
    pub test: bool,
    /// The key, for the events of a session: chooses the thread, so that one key's events stay in order.
    pub key: Option<String>,
    /// The event's own fields (an object), as INTERFACE.md names them.
    pub fields: Value,
    /// What `ev:transcript{}` may read: the session's id and the newest entry at the event.
    pub transcript: Option<(String, i64)>,
}

/// What a single handler made of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// It returned.
    Done,
    /// It raised an error, ran out of memory, or returned something that makes no sense: text with script, line, event
    /// and key.
    Failed(String),
    /// It ran past its timeout and was stopped (or its thread was given up).
    TimedOut(String),
    /// No such handler is registered (any more).
    Orphaned,
    /// The hooks are closing (or switched off, or too much waits); it was not called.
    NotCalled,
}

/// The answer of the synchronous handlers of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on; `message`: the rewritten text; `before_turn`: the context to put before the prompt; `permission`: an
    /// option's id, `allow` or `deny`; `None`: nobody had an opinion.
    Pass(Option<String>),
    /// `message`: refused, with the reason for the sender.
    Refuse(String),
    /// A handler with `on_error = "refuse"` failed; the text is for the log and the sender.
    HookFailed(String),
}

/// When `kv_set` sets: `None` = always; `Some(None)` = only if absent; `Some(Some(v))` = only if equal.
pub type OnlyIf = Option<Option<Value>>;

/// What scripts may ask of the daemon, which implements it over the store. Called on hook threads. Errors are texts for
/// the script.
pub trait HookHost: Send + Sync {
    /// Entries of a session's transcript after `after`, at most `limit`, none beyond `upto`.
    ///
    /// # Errors
    /// A text for the script, as with all that follow.
    fn transcript(
        &self,
        session_id: &str,
        after: i64,
        limit: usize,
        upto: Option<i64>,
    ) -> Result<Vec<crate::model::event::Entry>, String>;

    /// The value kept under a key.
    ///
    /// # Errors
    /// A text for the script.
    fn kv_get(&self, key: &str) -> Result<Option<Value>, String>;

    /// Keeps a value, or removes it (`None`). `Ok(false)`: the condition did not hold.
    ///
    /// # Errors
    /// A text for the script.
    fn kv_set(&self, key: &str, value: Option<Value>, ttl: Option<Duration>, only_if: OnlyIf) -> Result<bool, String>;

    /// Adds to an integer (0 when absent) and gives the sum.
    ///
    /// # Errors
    /// A text for the script.
    fn kv_incr(&self, key: &str, by: i64, ttl: Option<Duration>) -> Result<i64, String>;

    /// Sends a message under a key, past the `message` handlers; gives what the API answers.
    ///
    /// # Errors
    /// A text for the script.
    fn send(&self, key: &str, text: &str, id: Option<&str>) -> Result<Value, String>;

    /// The key's current session, as the API shows it.
    ///
    /// # Errors
    /// A text for the script.
    fn session_info(&self, key: &str) -> Result<Option<Value>, String>;

    /// A timer registered by `ostler.every`: tell (durably) that run `due` (ms) of `name` is claimed by this call;
    /// false: another already ran it.
    ///
    /// # Errors
    /// A text for the log.
    fn timer_claim(&self, name: &str, due: Millis) -> Result<bool, String>;

    /// A timer's run on record lies in the future, for the clock was ahead when it was written: from now on this one
    /// stands.
    ///
    /// # Errors
    /// A text for the log.
    fn timer_restart(&self, name: &str, due: Millis) -> Result<(), String>;

    /// The newest run of a timer that was claimed.
    ///
    /// # Errors
    /// A text for the log.
    fn timer_last(&self, name: &str) -> Result<Option<Millis>, String>;
}

/// Locks; what a panicking thread left is used as it is, since every change under these locks is one assignment.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
