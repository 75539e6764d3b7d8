//! The counts of each handler, and the breaker that skips a handler after repeated timeouts.
//!
//! In memory only, summed over all states; a new set of scripts begins at zero.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::lock;
use super::scripts::Registered;

/// Timeouts in a row after which a synchronous handler is skipped.
const TIMEOUTS_IN_A_ROW: u32 = 3;
/// How long it is skipped.
pub const REST: Duration = Duration::from_secs(30);
/// How many of the newest durations count for the percentiles.
const SAMPLES: usize = 256;

/// One handler, as `ostler hooks list` and `GET /v1/hooks` show it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct HandlerInfo {
    /// The event, or `every`.
    pub event: String,
    /// The script's file name.
    pub script: String,
    /// The line of its registration.
    pub line: usize,
    /// Its name.
    pub name: String,
    /// Higher is called first.
    pub priority: i64,
    /// Calls that ended, with any outcome.
    pub calls: u64,
    /// Calls that failed, without timeouts.
    pub failures: u64,
    /// Calls that ran out of time.
    pub timeouts: u64,
    /// Times that it was skipped after three timeouts in a row.
    pub skipped: u64,
    /// The median of its newest 256 durations, in microseconds.
    pub p50_us: u64,
    /// Their 99th percentile.
    pub p99_us: u64,
}

/// How a call ended, for the counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Well,
    Failed,
    TimedOut,
}

#[derive(Default)]
struct Counts {
    calls: u64,
    failures: u64,
    timeouts: u64,
    skipped: u64,
    timeouts_in_a_row: u32,
    rests_until: Option<Instant>,
    durations: Vec<u32>,
    next: usize,
}

impl Counts {
    fn percentile(sorted: &[u32], percent: usize) -> u64 {
        let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(at).map_or(0, |us| u64::from(*us))
    }
}

/// The counts of all handlers, by event, script and name.
#[derive(Default)]
pub(crate) struct Stats {
    by: Mutex<HashMap<(String, String, String), Counts>>,
    rest: Option<Duration>,
}

/// What names a handler in the counts.
pub(crate) type Label<'a> = (&'a str, &'a str, &'a str);

fn owned((event, script, name): Label<'_>) -> (String, String, String) {
    (event.to_owned(), script.to_owned(), name.to_owned())
}

impl Stats {
    /// With another time of rest, for tests.
    pub fn with_rest(rest: Duration) -> Self {
        Self { by: Mutex::default(), rest: Some(rest) }
    }

    /// How long a handler is skipped.
    pub fn rest(&self) -> Duration {
        self.rest.unwrap_or(REST)
    }

    /// Counts a call. True when it was the third timeout in a row: from now on it is skipped for a while.
    pub fn ended(&self, label: Label<'_>, ended: Ended, took: Duration) -> bool {
        let mut by = lock(&self.by);
        let counts = by.entry(owned(label)).or_default();
        counts.calls += 1;
        let us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        if counts.durations.len() < SAMPLES {
            counts.durations.push(us);
        } else {
            counts.durations[counts.next] = us;
        }
        counts.next = (counts.next + 1) % SAMPLES;
        match ended {
            Ended::Well => counts.timeouts_in_a_row = 0,
            Ended::Failed => {
                counts.timeouts_in_a_row = 0;
                counts.failures += 1;
            }
            Ended::TimedOut => {
                counts.timeouts += 1;
                counts.timeouts_in_a_row += 1;
                if counts.timeouts_in_a_row >= TIMEOUTS_IN_A_ROW {
                    counts.timeouts_in_a_row = 0;
                    counts.rests_until = Some(Instant::now() + self.rest());
                    return true;
                }
            }
        }
        false
    }

    /// Whether a synchronous handler is to be skipped now; counted.
    pub fn skip(&self, label: Label<'_>) -> bool {
        let mut by = lock(&self.by);
        let Some(counts) = by.get_mut(&owned(label)) else { return false };
        let resting = counts.rests_until.is_some_and(|until| Instant::now() < until);
        if resting {
            counts.skipped += 1;
        } else {
            counts.rests_until = None;
        }
        resting
    }

    /// Begins at zero again, for another set of scripts.
    pub fn clear(&self) {
        lock(&self.by).clear();
    }

    /// The handlers with their counts, in calling order, the timers last.
    pub fn list(&self, registered: &Registered) -> Vec<HandlerInfo> {
        let by = lock(&self.by);
        let info = |event: &str, script: &str, name: &str, line, priority| {
            let counts = by.get(&owned((event, script, name)));
            let mut sorted = counts.map(|c| c.durations.clone()).unwrap_or_default();
            sorted.sort_unstable();
            HandlerInfo {
                event: event.to_owned(),
                script: script.to_owned(),
                line,
                name: name.to_owned(),
                priority,
                calls: counts.map_or(0, |c| c.calls),
                failures: counts.map_or(0, |c| c.failures),
                timeouts: counts.map_or(0, |c| c.timeouts),
                skipped: counts.map_or(0, |c| c.skipped),
                p50_us: Counts::percentile(&sorted, 50),
                p99_us: Counts::percentile(&sorted, 99),
            }
        };
        let handlers =
            registered.handlers.iter().map(|h| info(h.id.event.as_str(), &h.id.script, &h.id.name, h.line, h.priority));
        let timers = registered.timers.iter().map(|t| info("every", &t.script, &t.short, t.line, 0));
        handlers.chain(timers).collect()
    }
}
