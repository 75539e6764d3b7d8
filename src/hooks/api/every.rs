//! Schedules of `ostler.every`, and durations as the configuration writes them.
//!
//! Pure: it says what is due when. A daily time is local; an interval counts from the epoch, so that every state, boot
//! and machine agrees on it.

use std::time::Duration;

use crate::clock::Millis;

/// When a timer is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Every day at this local hour and minute.
    Daily(i8, i8),
    /// Every so many milliseconds since the epoch.
    Interval(Millis),
}

/// The shortest interval.
const SHORTEST: Duration = Duration::from_secs(1);
/// The longest interval, and the longest duration an option may have.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

impl Schedule {
    /// `"04:00"` or `"1h"`.
    ///
    /// # Errors
    /// It is neither, or too short or long.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some((hour, minute)) = text.split_once(':') {
            let part = |s: &str, below: i8| -> Option<i8> {
                (s.len() == 2 && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse().ok())?.filter(|n| *n < below)
            };
            return match (part(hour, 24), part(minute, 60)) {
                (Some(h), Some(m)) => Ok(Self::Daily(h, m)),
                _ => Err("a time of day is written HH:MM, 00:00 to 23:59".to_owned()),
            };
        }
        let interval = parse_duration(text)?;
        if interval < SHORTEST {
            return Err("the shortest interval is 1s".to_owned());
        }
        Ok(Self::Interval(Millis::try_from(interval.as_millis()).unwrap_or(Millis::MAX)))
    }

    /// The newest due time at or before `at`.
    #[must_use]
    pub fn last(self, at: Millis) -> Millis {
        match self {
            Self::Daily(hour, minute) => crate::clock::last_daily(at, hour, minute),
            Self::Interval(every) => at - at.rem_euclid(every),
        }
    }

    /// The first due time after `at`.
    #[must_use]
    pub fn next(self, at: Millis) -> Millis {
        match self {
            Self::Interval(every) => at - at.rem_euclid(every) + every,
            Self::Daily(..) => {
                // The clock's own rule for a day is the only one: the first hour ahead at which the last due time is
                // new. Then back to the minute, so that days of 23 and 25 hours come out right.
                let last = self.last(at);
                (1..=26)
                    .map(|hours| self.last(at + hours * 3_600_000))
                    .find(|due| *due > last)
                    .unwrap_or(at + 24 * 3_600_000)
            }
        }
    }
}

/// A duration as the configuration writes it (`"30s"`, `"5m"`, `"1h 30m"`, `"500ms"`); above zero, at most 366 days.
///
/// # Errors
/// It is something else.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = crate::config::parse_duration(text).map_err(|_| "a duration is written like 30s, 5m or 1h30m")?;
    if duration.is_zero() {
        return Err("it must be above zero".to_owned());
    }
    if duration > LONGEST {
        return Err("the longest is 366 days".to_owned());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations_and_times_of_day_are_strict() {
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        // One grammar: what the file takes, scripts take.
        for text in ["1 hour", "1.5h", "2w", "1h 30m", "90min", "0.5s", "1us", "7d", "2 days 3 hours"] {
            assert_eq!(parse_duration(text), crate::config::parse_duration(text), "{text}");
            assert!(parse_duration(text).is_ok(), "{text}");
        }
        for bad in ["", "5", "s", "-1s", "P1D", "1:30:00", "0s", "99999999999999999999s", "400d", "é"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert_eq!(Schedule::parse("04:05"), Ok(Schedule::Daily(4, 5)));
        assert_eq!(Schedule::parse("1h"), Ok(Schedule::Interval(3_600_000)));
        for bad in ["24:00", "4:00", "04:60", "04:0", "04:00:00", "999ms", "never", "+4:00"] {
            assert!(Schedule::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_next_due_time_is_the_first_whose_last_is_new() {
        let now = 1_795_311_372_345;
        for schedule in [Schedule::Daily(4, 0), Schedule::Daily(23, 59), Schedule::Interval(5_400_000)] {
            let (last, next) = (schedule.last(now), schedule.next(now));
            assert!(last <= now && now < next, "{schedule:?}");
            assert_eq!(schedule.last(next), next);
            assert_eq!(schedule.last(next - 1), last);
        }
    }
}
