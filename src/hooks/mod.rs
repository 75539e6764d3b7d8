//! Hooks: the operator's Lua. Owns every Lua state, its thread, its limits and the `ostler.*` API.
//!
//! Lua is named here and nowhere else (but in the lua agent, which borrows [`sandbox`]). What the scripts may ask of the
//! house comes in through [`Home`]; what the house tells the scripts goes in as an [`Event`]. The hooks must not know the
//! store, the workers or the API: whether an event was delivered is told by a callback and kept by whoever asked.

use serde_json::Value;

use crate::clock::Millis;
use crate::model::event::HookEvent;

pub mod sandbox;

/// A handler's identity: stable over reloads and boots. A journalled event is owed to handlers by this.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HandlerId {
    /// The event.
    pub event: HookEvent,
    /// The script's file name (`10-audit.lua`).
    pub script: String,
    /// Its `name`, by default its ordinal for that event in the file (`1`).
    pub name: String,
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
    /// It raised an error, ran out of memory, or returned something that makes no sense: text with script, line, event and key.
    Failed(String),
    /// It ran past its timeout and was stopped (or its thread was given up).
    TimedOut(String),
    /// No such handler is registered (any more).
    Orphaned,
    /// The hooks are closing; it was not called.
    NotCalled,
}

/// The answer of the synchronous handlers of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on; `message`: the rewritten text; `before_turn`: the context to put before the prompt; `permission`: an option's
    /// id, `allow` or `deny`; `None`: nobody had an opinion.
    Pass(Option<String>),
    /// `message`: refused, with the reason for the sender.
    Refuse(String),
    /// A handler with `on_error = "refuse"` failed; the text is for the log and the sender.
    HookFailed(String),
}
