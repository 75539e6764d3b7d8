//! Whether the wall clock is to be believed after a boot.
//!
//! A machine without a battery clock boots in the past, one whose clock is broken in the future, and soon somebody sets
//! it right. What would be decided meanwhile by a wrong age stays decided: a mark that expired, an id that was
//! forgotten. So a clock that contradicts the database is doubted for an hour: time goes on from the newest time that
//! the database knows, until the clock agrees. After that hour it is believed, for then it is the database that was
//! written by a wrong clock.

use std::time::Duration;

use crate::clock::Millis;

/// How long a clock is doubted.
const DOUBT: Duration = Duration::from_secs(3600);
/// A clock that is further from the database than this is no clock that was a bit off: ahead it is doubted, and behind
/// it is the database that is not believed. Machines are rarely off for longer.
const FAR: Millis = 366 * 86_400_000;
/// Nobody is told of less.
const SLIGHT: Millis = 300_000;
/// 2024-01-01: no clock that is right is before the time in which this was written.
const WRITTEN: Millis = 1_704_067_200_000;

/// What is wrong with the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// So far behind what the database knows.
    Behind(Millis),
    /// So far ahead of it.
    Ahead(Millis),
    /// The clock is believed, and the database has times ahead of it.
    TimesAhead(Millis),
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (by, what) = match self {
            Self::Behind(by) => (by, "the wall clock is behind the newest time in the database"),
            Self::Ahead(by) => (by, "the wall clock is far ahead of the newest time in the database"),
            Self::TimesAhead(by) => (by, "the database has times ahead of the wall clock"),
        };
        let by = match by / 60_000 {
            minutes @ ..120 => format!("{minutes} minutes"),
            minutes @ 120..2880 => format!("{} hours", minutes / 60),
            minutes => format!("{} days", minutes / 1440),
        };
        let meanwhile = match self {
            Self::Behind(_) | Self::Ahead(_) => ": it is not believed for an hour, or until it agrees",
            Self::TimesAhead(_) => ": it is believed",
        };
        write!(f, "{what} (by {by}){meanwhile}")
    }
}

/// The time to go by, and what is to be told. `newest`: the newest time that the database knew at the boot; `elapsed`:
/// since then, by the monotonic clock.
#[must_use]
pub fn judge(newest: Option<Millis>, wall: Millis, elapsed: Duration) -> (Millis, Option<Problem>) {
    let Some(newest) = newest else { return (wall, None) };
    let last = newest.saturating_add(Millis::try_from(elapsed.as_millis()).unwrap_or(Millis::MAX));
    let fresh = elapsed < DOUBT;
    let behind = last.saturating_sub(wall);
    let problem =
        |problem: fn(Millis) -> Problem| (behind.saturating_abs() > SLIGHT).then(|| problem(behind.saturating_abs()));
    if wall < newest {
        return if wall < WRITTEN || fresh && behind <= FAR {
            (last, problem(Problem::Behind))
        } else {
            (wall, problem(Problem::TimesAhead))
        };
    }
    if fresh && behind < -FAR {
        return (last, problem(Problem::Ahead));
    }
    (wall, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = 1_800_000_000_000;
    const HOUR: Millis = 3_600_000;
    const YEAR: Millis = 365 * 86_400_000;

    #[test]
    fn the_table() {
        let min = Duration::from_secs(60);
        let (soon, late) = (NOW + 60_000, Duration::from_secs(7200));
        let table = [
            ("a new database", None, 0, min, (0, None)),
            ("a clock that is right", Some(NOW), NOW + HOUR, min, (NOW + HOUR, None)),
            ("off for half a year", Some(NOW), NOW + YEAR / 2, min, (NOW + YEAR / 2, None)),
            ("a second back", Some(NOW), NOW - 1000, Duration::ZERO, (NOW, None)),
            ("an hour behind", Some(NOW), NOW - HOUR, min, (soon, Some(Problem::Behind(HOUR + 60_000)))),
            ("a year behind", Some(NOW), NOW - YEAR, min, (soon, Some(Problem::Behind(YEAR + 60_000)))),
            (
                "a year behind for long",
                Some(NOW),
                NOW - YEAR,
                late,
                (NOW - YEAR, Some(Problem::TimesAhead(YEAR + 2 * HOUR))),
            ),
            ("no clock at all", Some(NOW), 0, min, (soon, Some(Problem::Behind(soon)))),
            ("nor for long", Some(NOW), HOUR, late, (NOW + 2 * HOUR, Some(Problem::Behind(NOW + HOUR)))),
            (
                "a database of 2038",
                Some(NOW + 11 * YEAR),
                NOW,
                min,
                (NOW, Some(Problem::TimesAhead(11 * YEAR + 60_000))),
            ),
            ("2038", Some(NOW), NOW + 11 * YEAR, min, (soon, Some(Problem::Ahead(11 * YEAR - 60_000)))),
            ("2038 for long", Some(NOW), NOW + 11 * YEAR, late, (NOW + 11 * YEAR, None)),
            ("set right meanwhile", Some(NOW), NOW + 61_000, min, (NOW + 61_000, None)),
        ];
        for (name, newest, wall, elapsed, want) in table {
            assert_eq!(judge(newest, wall, elapsed), want, "{name}");
        }
    }
}
