//! The vocabulary: reasons, outcomes, actors and event names, as they stand in the API, the database and the hooks.
//!
//! Owns the words and nothing else; it must not know where they are kept or who sends them.

/// Declares a closed set of words: an enum, its text form, and the way back.
macro_rules! string_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// Every word of the set, in the order of its declaration.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The word as it stands in the API, the database and the logs.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }

            /// The way back from [`Self::as_str`]; `None` for any other text.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some($name::$variant),)+ _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use string_enum;

string_enum! {
    /// Why an activation closed (`session_end`) or a session is over (`session_closed`).
    EndReason {
        /// Its agent was closed to make room or after `park_after`; the conversation goes on.
        Parked = "parked",
        /// The daemon stopped.
        Shutdown = "shutdown",
        /// The daemon stopped to be started again.
        Restart = "restart",
        /// The daemon died without ending it; written by the next boot.
        Crash = "crash",
        /// Quarantined, by an operator or after repeated unclean deaths.
        Suspended = "suspended",
        /// Over: somebody asked for a new session.
        Reset = "reset",
        /// Over: nothing was said for `idle_reset`.
        Idle = "idle",
        /// Over: a daily boundary passed.
        Daily = "daily",
        /// Over: its mark was older than `resume_window`.
        Expired = "expired",
        /// Over: deleted.
        Deleted = "deleted",
        /// Over: replaced by a resumed one.
        New = "new",
    }
}

impl EndReason {
    /// Whether the session is over, rather than only its activation.
    #[must_use]
    pub const fn is_final(self) -> bool {
        match self {
            Self::Parked | Self::Shutdown | Self::Restart | Self::Crash | Self::Suspended => false,
            Self::Reset | Self::Idle | Self::Daily | Self::Expired | Self::Deleted | Self::New => true,
        }
    }
}

string_enum! {
    /// Why an activation opened (`session_start`): how the session before it gave way, or that one goes on.
    StartReason {
        /// First session under its key.
        New = "new",
        /// After a reset.
        Reset = "reset",
        /// After `idle_reset`.
        Idle = "idle",
        /// After `daily_reset`.
        Daily = "daily",
        /// After a mark that had expired.
        Expired = "expired",
        /// Beside a suspended one.
        Suspended = "suspended",
        /// A parked session goes on with a message.
        Message = "message",
        /// A marked session goes on where it was cut off.
        Resume = "resume",
    }
}

string_enum! {
    /// Who ended it.
    Actor {
        /// The person or program that talks to the agent.
        User = "user",
        /// Whoever runs the daemon.
        Operator = "operator",
        /// A configured rule: idle, daily, expiry, parking.
        Policy = "policy",
        /// The daemon's own stop, or its guard against sessions that are stuck.
        Supervisor = "supervisor",
        /// Nobody: the daemon died.
        Crash = "crash",
    }
}

string_enum! {
    /// Why a session carries the durable mark `resume_pending`.
    MarkReason {
        /// Its turn was running when the drain of a shutdown ran out.
        ShutdownTimeout = "shutdown_timeout",
        /// Its turn was running when the drain of a restart ran out.
        RestartTimeout = "restart_timeout",
        /// Its turn was running when the daemon died.
        Crash = "crash",
    }
}

string_enum! {
    /// How a turn ended.
    Outcome {
        /// The agent gave its whole answer.
        Completed = "completed",
        /// The agent or a deadline failed it.
        Failed = "failed",
        /// Somebody took it back.
        Cancelled = "cancelled",
        /// A stop or a crash cut it off; a continuation may follow.
        Interrupted = "interrupted",
    }
}

string_enum! {
    /// Why a daemon stops.
    StopReason {
        /// It is to be over.
        Shutdown = "shutdown",
        /// It is to be started again by its supervisor (exit code 75).
        Restart = "restart",
    }
}

impl StopReason {
    /// The mark that sessions still running in this stop carry.
    #[must_use]
    pub const fn mark(self) -> MarkReason {
        match self {
            Self::Shutdown => MarkReason::ShutdownTimeout,
            Self::Restart => MarkReason::RestartTimeout,
        }
    }

    /// The reason with which this stop closes activations.
    #[must_use]
    pub const fn end(self) -> EndReason {
        match self {
            Self::Shutdown => EndReason::Shutdown,
            Self::Restart => EndReason::Restart,
        }
    }
}

string_enum! {
    /// How much of the ladder a stop still walks. It only rises.
    Urgency {
        /// Running turns may finish within the drain.
        Graceful = "graceful",
        /// No drain: straight to the interrupt.
        Fast = "fast",
        /// Kill agents, close the store, leave.
        Now = "now",
    }
}

impl Urgency {
    /// One step up; `now` stays.
    #[must_use]
    pub const fn raised(self) -> Self {
        match self {
            Self::Graceful => Self::Fast,
            Self::Fast | Self::Now => Self::Now,
        }
    }
}

string_enum! {
    /// The kinds of the durable event stream (`event:` of a server-sent event).
    EventKind {
        /// An activation opened.
        SessionStart = "session_start",
        /// A turn began to run.
        TurnStart = "turn_start",
        /// A piece of the answer.
        Text = "text",
        /// A piece of the agent's reasoning.
        Thought = "thought",
        /// A tool call began or changed.
        Tool = "tool",
        /// The agent's plan, whole.
        Plan = "plan",
        /// Tokens and cost.
        Usage = "usage",
        /// A permission was asked for or settled.
        Permission = "permission",
        /// A turn ended.
        TurnEnd = "turn_end",
        /// An activation closed.
        SessionEnd = "session_end",
        /// A session is over.
        SessionClosed = "session_closed",
        /// Something the sender should know.
        Notice = "notice",
    }
}

string_enum! {
    /// The events for which a Lua function may be registered.
    HookEvent {
        /// After READY.
        DaemonStart = "daemon_start",
        /// An activation opened (journalled).
        SessionStart = "session_start",
        /// Before a message is accepted (synchronous).
        Message = "message",
        /// Just before a prompt (synchronous).
        BeforeTurn = "before_turn",
        /// A turn began.
        TurnStart = "turn_start",
        /// A turn ended.
        TurnEnd = "turn_end",
        /// An agent asks for permission (synchronous).
        Permission = "permission",
        /// An activation closed (journalled).
        SessionEnd = "session_end",
        /// A session is over (journalled).
        SessionClosed = "session_closed",
        /// A stop begins.
        Shutdown = "shutdown",
        /// Last of all.
        Stopped = "stopped",
        /// After a successful reload.
        Reload = "reload",
    }
}

impl HookEvent {
    /// Whether it is journalled: written in the transaction that makes it true and delivered at least once.
    #[must_use]
    pub const fn is_journalled(self) -> bool {
        matches!(self, Self::SessionStart | Self::SessionEnd | Self::SessionClosed)
    }

    /// Whether the daemon waits for the handler's answer.
    #[must_use]
    pub const fn is_synchronous(self) -> bool {
        matches!(self, Self::Message | Self::BeforeTurn | Self::Permission)
    }
}

string_enum! {
    /// Who speaks in a transcript entry.
    Role {
        /// The person or program that talks to the agent.
        User = "user",
        /// The agent.
        Agent = "agent",
        /// A tool call of the agent.
        Tool = "tool",
        /// The daemon or a hook: context, notes.
        System = "system",
    }
}

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

/// A transcript entry, as agents and hooks are given it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the transcript.
    pub seq: i64,
    /// The turn it belongs to.
    pub turn_id: Option<String>,
    /// Who speaks.
    pub role: Role,
    /// What.
    pub text: String,
    /// When.
    pub at: crate::clock::Millis,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_go_there_and_back() {
        for w in EndReason::ALL {
            assert_eq!(EndReason::parse(w.as_str()), Some(*w));
        }
        for w in HookEvent::ALL {
            assert_eq!(HookEvent::parse(w.as_str()), Some(*w));
        }
        assert_eq!(Outcome::parse("finished"), None);
    }

    #[test]
    fn urgency_only_rises() {
        assert_eq!(Urgency::Graceful.raised(), Urgency::Fast);
        assert_eq!(Urgency::Fast.raised(), Urgency::Now);
        assert_eq!(Urgency::Now.raised(), Urgency::Now);
        assert!(Urgency::Graceful < Urgency::Fast && Urgency::Fast < Urgency::Now);
    }

    #[test]
    fn what_is_journalled_and_what_is_waited_for() {
        let of = |is: fn(HookEvent) -> bool| -> Vec<_> {
            HookEvent::ALL.iter().filter(|e| is(**e)).map(|e| e.as_str()).collect()
        };
        assert_eq!(of(HookEvent::is_journalled), ["session_start", "session_end", "session_closed"]);
        assert_eq!(of(HookEvent::is_synchronous), ["message", "before_turn", "permission"]);
    }

    #[test]
    fn final_reasons_are_those_that_close_a_session() {
        let finals: Vec<_> = EndReason::ALL.iter().filter(|r| r.is_final()).map(|r| r.as_str()).collect();
        assert_eq!(finals, ["reset", "idle", "daily", "expired", "deleted", "new"]);
    }
}
