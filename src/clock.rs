//! Time: the wall clock for what is stored and shown, the monotonic one for every deadline.
//!
//! Wall time is milliseconds since the Unix epoch. Nothing waits by the wall clock: it may jump.

use std::time::{SystemTime, UNIX_EPOCH};

/// Wall time, in milliseconds since the Unix epoch.
pub type Millis = i64;

/// The wall clock now. In a build with failpoints a test may set it ahead or back (`clock.wall`).
#[must_use]
pub fn now() -> Millis {
    system().saturating_add(crate::failpoint::number("clock.wall").unwrap_or(0))
}

fn system() -> Millis {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(d) => i64::try_from(d.as_millis()).unwrap_or(i64::MAX),
        Err(e) => i64::try_from(e.duration().as_millis()).map_or(i64::MIN, |ms| -ms),
    }
}

/// Milliseconds since the machine's boot, with the time in which it slept. It goes on while no daemon runs.
#[must_use]
pub fn since_boot() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(time.tv_sec).unwrap_or(0), u64::try_from(time.tv_nsec).unwrap_or(0));
    seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000)
}

/// RFC 3339 in UTC with milliseconds, as the API shows times: `2026-11-22T01:36:12.345Z`.
#[must_use]
pub fn rfc3339(at: Millis) -> String {
    match jiff::Timestamp::from_millisecond(at) {
        Ok(t) => format!("{t:.3}"),
        Err(_) => at.to_string(),
    }
}

/// Why local times are UTC though somebody said otherwise: a zone that is named and is not there (no tzdata).
#[must_use]
pub fn zone_problem() -> Option<String> {
    if jiff::tz::TimeZone::try_system().is_ok() {
        return None;
    }
    match std::env::var_os("TZ").filter(|tz| !tz.is_empty()) {
        Some(tz) => Some(format!("TZ={}: there is no such time zone here (is tzdata installed?)", tz.display())),
        None => {
            let link = std::fs::read_link("/etc/localtime").ok()?;
            Some(format!("/etc/localtime: {}: there is no such time zone here (is tzdata installed?)", link.display()))
        }
    }
}

/// The newest local time `hour:minute` at or before `at`: the boundary of a daily reset.
///
/// A day on which the clocks jump over the time has its boundary where the jump lands.
#[must_use]
pub fn last_daily(at: Millis, hour: i8, minute: i8) -> Millis {
    let Ok(now) = jiff::Timestamp::from_millisecond(at) else { return i64::MIN };
    let here = now.to_zoned(jiff::tz::TimeZone::system());
    for back in 0..3 {
        let Ok(day) = here.date().checked_sub(jiff::Span::new().days(back)) else { break };
        if let Ok(boundary) = day.at(hour, minute, 0, 0).to_zoned(here.time_zone().clone())
            && boundary.timestamp() <= now
        {
            return boundary.timestamp().as_millisecond();
        }
    }
    i64::MIN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_utc() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(1_795_311_372_345), "2026-11-22T01:36:12.345Z");
    }

    #[test]
    fn the_daily_boundary_is_at_most_a_day_old_and_not_ahead() {
        let now = 1_795_311_372_345;
        for (h, m) in [(0, 0), (4, 0), (23, 59)] {
            let b = last_daily(now, h, m);
            assert!(b <= now && now - b <= 25 * 3_600_000, "{h}:{m} gave {b}");
        }
    }
}
