//! Keys, and the decision which session answers a message.
//!
//! [`resolve`] makes that decision once, in the transaction that accepts the message, from facts that the transaction
//! read. It must not know where they are stored.

use std::time::Duration;

use crate::clock::Millis;

use super::event::{EndReason, StartReason};

/// The shortest and the longest key, in bytes.
pub const KEY_BYTES: std::ops::RangeInclusive<usize> = 3..=200;
/// The longest idempotency id, in bytes.
pub const ID_BYTES: usize = 128;

/// What is wrong with a key, or `None`. A key is `channel:conversation[:thread]`: 3 to 200 bytes of UTF-8 without
/// control characters, with a colon that has text on both sides.
#[must_use]
pub fn key_error(key: &str) -> Option<&'static str> {
    if !KEY_BYTES.contains(&key.len()) {
        return Some("a key has 3 to 200 bytes");
    }
    if key.chars().any(char::is_control) {
        return Some("a key has no control characters");
    }
    let (channel, rest) = match key.split_once(':') {
        Some(parts) => parts,
        None => return Some("a key has a colon: channel:conversation"),
    };
    if channel.is_empty() || rest.is_empty() {
        return Some("a key has something on both sides of its colon");
    }
    None
}

/// What is wrong with an idempotency id, or `None`.
#[must_use]
pub fn id_error(id: &str) -> Option<&'static str> {
    if id.is_empty() || id.len() > ID_BYTES {
        Some("an id has 1 to 128 bytes")
    } else if id.chars().any(char::is_control) {
        Some("an id has no control characters")
    } else {
        None
    }
}

/// The longest message, in bytes.
pub const TEXT_BYTES: usize = 4 * 1024 * 1024;

/// What is wrong with a message's text, or `None`.
#[must_use]
pub fn text_error(text: &str) -> Option<&'static str> {
    if text.trim().is_empty() {
        Some("is empty")
    } else if text.contains('\0') {
        Some("has a NUL")
    } else if text.len() > TEXT_BYTES {
        Some("is longer than 4 MiB")
    } else {
        None
    }
}

/// The durable mark of a session that was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// When its turn was cut off.
    pub at: Millis,
}

/// The current session of a key when a message comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current {
    /// Its mark, if its last turn was cut off.
    pub mark: Option<Mark>,
    /// The time of its last message or answer.
    pub active_at: Millis,
    /// Whether a turn is queued or running in it.
    pub busy: bool,
    /// Whether a turn runs: then it is being resumed already, whatever the age of its mark.
    pub running: bool,
}

/// The facts for [`resolve`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The key's current session: the newest that is neither ended, deleted nor suspended.
    pub current: Option<Current>,
    /// Whether, with no current session, the newest one under the key is suspended.
    pub suspended: bool,
}

/// The configured policies, with the newest daily boundary, which the caller computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How old a mark may be; `None`: always resumed.
    pub resume_window: Option<Duration>,
    /// After this time an idle session ends.
    pub idle_reset: Option<Duration>,
    /// The newest daily boundary at or before now, with `daily_reset` configured.
    pub daily_boundary: Option<Millis>,
}

/// The session that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The current session.
    Same,
    /// A new session.
    New {
        /// How the previous session ended.
        start: StartReason,
        /// The reason for which the current session ends; `None`: there is none, or a suspended one stays as it is.
        end: Option<EndReason>,
    },
}

impl Resolution {
    const fn after(start: StartReason, end: EndReason) -> Self {
        Self::New { start, end: Some(end) }
    }

    /// The notice for the sender if the conversation does not simply go on: a code and a text.
    #[must_use]
    pub const fn notice(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Same => None,
            Self::New { start, .. } => match start {
                StartReason::Suspended => {
                    Some(("session_suspended", "the session under this key is suspended; a new one begins"))
                }
                StartReason::Expired => {
                    Some(("session_expired", "the interrupted session was too old to go on; a new one begins"))
                }
                StartReason::Idle => Some(("session_idle", "the session had been idle for long; a new one begins")),
                StartReason::Daily => Some(("session_daily", "the session ended with the day; a new one begins")),
                StartReason::New | StartReason::Reset | StartReason::Message | StartReason::Resume => None,
            },
        }
    }
}

/// Decides which session answers a message now: the rules of PRODUCT.md, in their order.
///
/// A session with a queued or running turn is not idle and has no daily reset: policies end only idle conversations.
#[must_use]
pub fn resolve(facts: &Facts, policy: &Policy, now: Millis) -> Resolution {
    let Some(current) = facts.current else {
        let start = if facts.suspended { StartReason::Suspended } else { StartReason::New };
        return Resolution::New { start, end: None };
    };
    if let Some(mark) = current.mark {
        return if current.running || may_resume(mark.at, policy, now) {
            Resolution::Same
        } else {
            Resolution::after(StartReason::Expired, EndReason::Expired)
        };
    }
    if current.busy {
        return Resolution::Same;
    }
    if policy.idle_reset.is_some_and(|idle| age(current.active_at, now) >= idle) {
        return Resolution::after(StartReason::Idle, EndReason::Idle);
    }
    if policy.daily_boundary.is_some_and(|boundary| current.active_at < boundary) {
        return Resolution::after(StartReason::Daily, EndReason::Daily);
    }
    Resolution::Same
}

/// Whether a session marked at `marked_at` may still go on.
#[must_use]
pub fn may_resume(marked_at: Millis, policy: &Policy, now: Millis) -> bool {
    policy.resume_window.is_none_or(|window| age(marked_at, now) < window)
}

/// The time since `at`; zero for a time in the future (the wall clock may have been set back).
#[must_use]
pub fn age(at: Millis, now: Millis) -> Duration {
    Duration::from_millis(u64::try_from(now.saturating_sub(at)).unwrap_or(0))
}

/// The numbers of an agent's sessions, while some wait for a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crowd {
    /// Waiting for a worker.
    pub waiting: usize,
    /// How many more the agent may have.
    pub free: usize,
    /// Closing.
    pub closing: usize,
    /// Idle.
    pub resting: usize,
}

/// How many idle sessions give way to the waiting sessions: for each agent of its own, and of all agents together those
/// that have been idle longest. `free`: how many more sessions the daemon may have. A closing session already makes
/// room, so no other gives way for it. No session gives way for a session that its own agent's limit keeps out.
#[must_use]
pub fn give_way(crowds: &[Crowd], free: usize) -> (Vec<usize>, usize) {
    let own = |c: &Crowd| c.waiting.saturating_sub(c.free + c.closing).min(c.resting);
    let own: Vec<usize> = crowds.iter().map(own).collect();
    let places = |(c, own): (&Crowd, &usize)| c.waiting.min(c.free + c.closing + own);
    let wanted: usize = crowds.iter().zip(&own).map(places).sum();
    let coming: usize = crowds.iter().map(|c| c.closing).sum::<usize>() + own.iter().sum::<usize>();
    (own, wanted.saturating_sub(free + coming))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;
    const NOW: Millis = 1_000 * HOUR;

    fn policy() -> Policy {
        Policy { resume_window: Some(Duration::from_secs(3600)), idle_reset: None, daily_boundary: None }
    }

    fn at_rest(active_at: Millis) -> Facts {
        Facts { current: Some(Current { mark: None, active_at, busy: false, running: false }), suspended: false }
    }

    fn marked(at: Millis) -> Facts {
        let current = Current { mark: Some(Mark { at }), active_at: at, busy: false, running: false };
        Facts { current: Some(current), suspended: false }
    }

    #[test]
    fn the_rules_in_their_order() {
        use Resolution::{New, Same};
        let nothing = Facts { current: None, suspended: false };
        let suspended = Facts { current: None, suspended: true };
        let idle = Policy { idle_reset: Some(Duration::from_secs(7200)), ..policy() };
        let daily = Policy { daily_boundary: Some(NOW - HOUR), ..policy() };
        let ever = Policy { resume_window: None, ..policy() };
        let busy = |f: Facts| Facts { current: f.current.map(|c| Current { busy: true, ..c }), ..f };
        let running = |f: Facts| Facts { current: f.current.map(|c| Current { busy: true, running: true, ..c }), ..f };
        let after = |start, end| New { start, end: Some(end) };
        let table = [
            ("nothing there", nothing, policy(), New { start: StartReason::New, end: None }),
            ("suspended gives way", suspended, policy(), New { start: StartReason::Suspended, end: None }),
            ("at rest", at_rest(NOW - 100 * HOUR), policy(), Same),
            ("fresh mark", marked(NOW - HOUR + 1), policy(), Same),
            ("old mark", marked(NOW - HOUR), policy(), after(StartReason::Expired, EndReason::Expired)),
            ("old mark, being resumed", running(marked(0)), policy(), Same),
            ("old mark, only queued", busy(marked(0)), policy(), after(StartReason::Expired, EndReason::Expired)),
            ("old mark, no window", marked(0), ever, Same),
            (
                "fresh mark beats idle",
                marked(NOW - HOUR / 2),
                Policy { idle_reset: Some(Duration::ZERO), ..policy() },
                Same,
            ),
            ("mark from the future", marked(NOW + HOUR), policy(), Same),
            ("idle", at_rest(NOW - 2 * HOUR), idle, after(StartReason::Idle, EndReason::Idle)),
            ("not yet idle", at_rest(NOW - 2 * HOUR + 1), idle, Same),
            ("idle but busy", busy(at_rest(NOW - 9 * HOUR)), idle, Same),
            ("daily", at_rest(NOW - HOUR - 1), daily, after(StartReason::Daily, EndReason::Daily)),
            ("since the boundary", at_rest(NOW - HOUR), daily, Same),
            ("daily but busy", busy(at_rest(NOW - 9 * HOUR)), daily, Same),
        ];
        for (name, facts, policy, want) in table {
            assert_eq!(resolve(&facts, &policy, NOW), want, "{name}");
        }
    }

    #[test]
    fn whoever_gets_a_new_session_by_rule_is_told() {
        for (start, told) in [
            (StartReason::New, false),
            (StartReason::Suspended, true),
            (StartReason::Expired, true),
            (StartReason::Idle, true),
            (StartReason::Daily, true),
        ] {
            assert_eq!(Resolution::New { start, end: None }.notice().is_some(), told, "{start}");
        }
    }

    #[test]
    fn keys() {
        for good in ["a:b", "local:alice", "telegram:1:2", "x:ü/ ?%", &format!("a:{}", "k".repeat(198))] {
            assert_eq!(key_error(good), None, "{good}");
        }
        for bad in
            ["", "a:", ":b", "ab", "abc", "ab:", ":ab", ":", "a:\u{7}", "a:b\n", &format!("a:{}", "k".repeat(199))]
        {
            assert!(key_error(bad).is_some(), "{bad:?}");
        }
        assert!(id_error("").is_some() && id_error(&"x".repeat(129)).is_some());
        assert!(id_error("a\nb").is_some() && id_error("a\u{85}").is_some() && id_error("ä b").is_none());
        assert!(id_error("x").is_none() && id_error(&"x".repeat(128)).is_none());
    }

    #[test]
    fn texts() {
        let longest = "x".repeat(4 << 20);
        for (text, error) in [
            ("", Some("is empty")),
            (" \n\t", Some("is empty")),
            ("a\0b", Some("has a NUL")),
            (&format!("{longest}x"), Some("is longer than 4 MiB")),
            (&longest, None),
            ("a", None),
        ] {
            assert_eq!(text_error(text), error, "{} bytes", text.len());
        }
    }

    #[test]
    fn so_many_give_way_as_are_needed() {
        let crowd = |waiting, free, closing, resting| Crowd { waiting, free, closing, resting };
        for (what, crowds, free, own, any) in [
            ("nobody waits", vec![crowd(0, 5, 0, 9)], 0, vec![0], 0),
            ("there is room", vec![crowd(3, 5, 0, 9)], 3, vec![0], 0),
            ("all slots are taken", vec![crowd(3, 5, 0, 9)], 1, vec![0], 2),
            ("some are on their way out", vec![crowd(3, 5, 2, 9)], 0, vec![0], 1),
            ("all are", vec![crowd(3, 5, 3, 9)], 0, vec![0], 0),
            ("the agent is full", vec![crowd(3, 0, 0, 9)], 7, vec![3], 0),
            ("the agent is full and one closes", vec![crowd(3, 0, 1, 9)], 7, vec![2], 0),
            ("the agent is full and all of its run", vec![crowd(3, 0, 0, 0), crowd(0, 9, 0, 9)], 7, vec![0, 0], 0),
            (
                "no other gives way to those of a full agent",
                vec![crowd(3, 0, 0, 0), crowd(0, 9, 0, 9)],
                0,
                vec![0, 0],
                0,
            ),
            ("both are full: its own make room in both", vec![crowd(3, 0, 0, 9)], 0, vec![3], 0),
            (
                "another agent's closing counts for all agents",
                vec![crowd(3, 5, 0, 9), crowd(0, 9, 2, 0)],
                0,
                vec![0, 0],
                1,
            ),
            ("two agents wait", vec![crowd(2, 1, 0, 4), crowd(2, 9, 0, 0)], 1, vec![1, 0], 2),
        ] {
            assert_eq!(give_way(&crowds, free), (own, any), "{what}");
        }
    }
}
