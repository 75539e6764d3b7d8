//! The errors of the service: a stable code and a text for people.

use crate::store::{Error, Refusal};

/// A refusal or a failure, before a surface formats it.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A parameter is out of its range.
    #[error("{0}")]
    Parameter(String),
    /// The key is invalid.
    #[error("{0}")]
    Key(String),
    /// The text cannot be a message.
    #[error("{0}")]
    Text(String),
    /// A `message` handler refused it.
    #[error("{0}")]
    Refused(String),
    /// A `message` handler failed.
    #[error("{0}")]
    HookFailed(String),
    /// The daemon is stopping, or its coordinator did not answer.
    #[error("{0}")]
    Stopping(String),
    /// The configuration or a script is wrong.
    #[error("{0}")]
    Config(String),
    /// The present state does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// The permission is not open (any more).
    #[error("this permission is not open (any more)")]
    Resolved,
    /// There is no current session; the text says more than the store's error.
    #[error("{0}")]
    NoSession(String),
    /// There is no such thing.
    #[error("no such resource")]
    NotFound,
    /// The store refuses or fails.
    #[error(transparent)]
    Store(#[from] Error),
}

impl Fault {
    /// The code in answers and metrics.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Parameter(_) => "invalid_parameter",
            Self::Key(_) => "invalid_key",
            Self::Text(_) => "invalid_text",
            Self::Refused(_) => "refused",
            Self::HookFailed(_) => "hook_failed",
            Self::Stopping(_) => "stopping",
            Self::Config(_) => "invalid_config",
            Self::Conflict(_) => "conflict",
            Self::Resolved => "resolved",
            Self::NoSession(_) => "session_not_found",
            Self::NotFound => "not_found",
            Self::Store(Error::Refused(refusal)) => of_refusal(*refusal),
            Self::Store(Error::Overloaded) => "overloaded",
            Self::Store(_) => "store_unavailable",
        }
    }
}

const fn of_refusal(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::SessionNotFound => "session_not_found",
        Refusal::NotFound => "not_found",
        Refusal::NotCurrent => "not_current",
        Refusal::Ended => "ended",
        Refusal::NoInteger | Refusal::TooLarge | Refusal::DirInUse | Refusal::Stale | Refusal::Damaged => "conflict",
        Refusal::IdReused => "id_reused",
        Refusal::QueueFull => "queue_full",
        Refusal::Overloaded => "overloaded",
        Refusal::Closed | Refusal::OnProbation => "stopping",
    }
}
