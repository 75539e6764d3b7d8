//! What a boot makes of what the last one left.
//!
//! A boot that ended by itself leaves no activation open and no turn running. Whatever is still open was left by a
//! death: of a daemon that worked, or of one whose stop was cut off. [`judge`] says, for one session that was left
//! live, how its activation ends, what becomes of its turn, and whether it is suspended. A stop asks the same of those
//! that it leaves running. It must not know where that is written.
//!
//! Deaths in a row count while no turn completes in between. Words alone are no progress: a session that kills the
//! daemon after its first sentence would be resumed for ever.

use crate::clock::Millis;

use super::event::{Actor, EndReason, MarkReason, Outcome, StopReason};

/// The death of a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Death {
    /// The stop that had been noted, if one was cut off.
    pub stop: Option<StopReason>,
    /// Its last sign of life.
    pub last_life: Millis,
    /// A session was on probation: the death counts against that session only.
    pub on_probation: bool,
}

/// A session that was live at the death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// Its turn was running.
    pub running: bool,
    /// A cancel of that turn had been asked for.
    pub cancelled: bool,
    /// It was the session on probation.
    pub on_probation: bool,
    /// The stop that was cut off had given its worker up.
    pub abandoned: bool,
    /// Unclean deaths in a row before this one.
    pub unclean: i64,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How its activation ends.
    pub end: EndReason,
    /// By whom.
    pub actor: Actor,
    /// What becomes of its running turn.
    pub turn: Option<Outcome>,
    /// The mark of an interrupted one.
    pub mark: Option<(MarkReason, Millis)>,
    /// The unclean deaths in a row from now on.
    pub unclean: i64,
    /// Whether it is suspended.
    pub suspend: bool,
}

/// Judges one session that a death left live. `threshold` is `stuck_threshold`; 0 switches suspension off.
#[must_use]
pub fn judge(death: &Death, left: &Left, threshold: i64) -> Verdict {
    let (end, actor, reason) = match death.stop {
        None => (EndReason::Crash, Actor::Crash, MarkReason::Crash),
        Some(stop) => (stop.end(), Actor::Supervisor, stop.mark()),
    };
    let turn = left.running.then_some(if left.cancelled { Outcome::Cancelled } else { Outcome::Interrupted });
    let interrupted = turn == Some(Outcome::Interrupted);
    // A stop explains the death of all but those that would not end; a session on probation takes the blame alone.
    let blamed = left.running
        && match death.stop {
            Some(_) => left.abandoned,
            None => !death.on_probation || left.on_probation,
        };
    let unclean = left.unclean.saturating_add(i64::from(blamed));
    Verdict {
        end,
        actor,
        turn,
        mark: interrupted.then_some((reason, death.last_life)),
        unclean,
        suspend: blamed && threshold > 0 && unclean >= threshold,
    }
}

/// How long continuations wait after READY: `unclean` seconds for as many unclean boots within the last five minutes,
/// at most ten, so that a daemon that dies at each boot does not spin.
#[must_use]
pub const fn continuation_delay_s(unclean: u32) -> u32 {
    if unclean > 10 { 10 } else { unclean }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Millis = 42;
    const CRASH: Death = Death { stop: None, last_life: LIFE, on_probation: false };
    const IDLE: Left = Left { running: false, cancelled: false, on_probation: false, abandoned: false, unclean: 0 };
    const RUNNING: Left = Left { running: true, ..IDLE };

    #[test]
    fn the_table() {
        let crash = |turn, mark, unclean, suspend| Verdict {
            end: EndReason::Crash,
            actor: Actor::Crash,
            turn,
            mark,
            unclean,
            suspend,
        };
        let cut = Some(Outcome::Interrupted);
        let mark = Some((MarkReason::Crash, LIFE));
        let stop = |reason: StopReason, turn, mark, unclean| Verdict {
            end: reason.end(),
            actor: Actor::Supervisor,
            turn,
            mark,
            unclean,
            suspend: false,
        };
        let table = [
            ("idle at a crash", CRASH, IDLE, crash(None, None, 0, false)),
            ("running at a crash", CRASH, RUNNING, crash(cut, mark, 1, false)),
            ("third time", CRASH, Left { unclean: 2, ..RUNNING }, crash(cut, mark, 3, true)),
            ("idle keeps its count", CRASH, Left { unclean: 2, ..IDLE }, crash(None, None, 2, false)),
            (
                "cancelled before the crash",
                CRASH,
                Left { cancelled: true, ..RUNNING },
                crash(Some(Outcome::Cancelled), None, 1, false),
            ),
            (
                "neighbour of a session on probation",
                Death { on_probation: true, ..CRASH },
                Left { unclean: 1, ..RUNNING },
                crash(cut, mark, 1, false),
            ),
            (
                "the session on probation",
                Death { on_probation: true, ..CRASH },
                Left { on_probation: true, unclean: 2, ..RUNNING },
                crash(cut, mark, 3, true),
            ),
            (
                "a stop cut off explains it",
                Death { stop: Some(StopReason::Restart), ..CRASH },
                Left { unclean: 2, ..RUNNING },
                stop(StopReason::Restart, cut, Some((MarkReason::RestartTimeout, LIFE)), 2),
            ),
            (
                "given up by a stop that was cut off",
                Death { stop: Some(StopReason::Shutdown), on_probation: true, ..CRASH },
                Left { abandoned: true, unclean: 1, ..RUNNING },
                stop(StopReason::Shutdown, cut, Some((MarkReason::ShutdownTimeout, LIFE)), 2),
            ),
            (
                "given up for the third time",
                Death { stop: Some(StopReason::Shutdown), ..CRASH },
                Left { abandoned: true, unclean: 2, ..RUNNING },
                Verdict {
                    suspend: true,
                    ..stop(StopReason::Shutdown, cut, Some((MarkReason::ShutdownTimeout, LIFE)), 3)
                },
            ),
            (
                "given up, but idle",
                Death { stop: Some(StopReason::Shutdown), ..CRASH },
                Left { abandoned: true, unclean: 2, ..IDLE },
                stop(StopReason::Shutdown, None, None, 2),
            ),
            (
                "idle in a stop cut off",
                Death { stop: Some(StopReason::Shutdown), ..CRASH },
                IDLE,
                stop(StopReason::Shutdown, None, None, 0),
            ),
        ];
        for (name, death, left, want) in table {
            assert_eq!(judge(&death, &left, 3), want, "{name}");
        }
    }

    #[test]
    fn a_threshold_of_nought_suspends_nobody() {
        assert!(!judge(&CRASH, &Left { unclean: 99, ..RUNNING }, 0).suspend);
    }

    #[test]
    fn continuations_wait_longer_the_more_boots_died() {
        assert_eq!([0, 1, 9, 10, 11, 99].map(continuation_delay_s), [0, 1, 9, 10, 10, 10]);
    }
}
