//! Decides which timers of `ostler.every` run now. A timer has one run at a time. Runs that were missed meanwhile, or
//! while the daemon was down, run once. A recorded run in the future is ignored, because the clock was ahead when it
//! was written.
//!
//! The caller computes the schedule and passes in a timer's newest due time and its next.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Millis;

/// How far beyond the next due time a recorded run may lie: a clock may be set back a little.
const LEEWAY: Millis = 60_000;
/// The longest sleep: the wall clock may be set, or the machine suspended, meanwhile.
pub const NAP: Duration = Duration::from_secs(30);

/// The decision about a timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Its newest run is unknown: read it, and pass it to [`ScriptTimers::learn`].
    Unknown,
    /// The recorded run lies in the future: the timer starts again with this due time, which must be recorded.
    Restart(Millis),
    /// It runs now, for this due time. [`ScriptTimers::ended`] ends the run.
    Run(Millis),
    /// A run is still in progress.
    Busy,
    /// It is not due.
    Rest,
}

#[derive(Clone, Copy, Debug)]
struct ScriptTimer {
    ran: Millis,
    busy: bool,
}

/// The timers, by name.
#[derive(Debug, Default)]
pub struct ScriptTimers {
    by: BTreeMap<String, ScriptTimer>,
}

impl ScriptTimers {
    /// Decides about a timer with the newest due time `newest` and the next one `next`.
    pub fn look(&mut self, name: &str, newest: Millis, next: Millis) -> Look {
        let Some(entry) = self.by.get_mut(name) else { return Look::Unknown };
        if entry.busy {
            return Look::Busy;
        }
        if entry.ran > next.saturating_add(LEEWAY) {
            entry.ran = newest;
            return Look::Restart(newest);
        }
        if newest <= entry.ran {
            return Look::Rest;
        }
        *entry = ScriptTimer { ran: newest, busy: true };
        Look::Run(newest)
    }

    /// Sets the newest run of a timer.
    pub fn learn(&mut self, name: &str, ran: Millis) {
        self.by.insert(name.to_owned(), ScriptTimer { ran, busy: false });
    }

    /// A run of a timer is over, with any outcome.
    pub fn ended(&mut self, name: &str) {
        if let Some(entry) = self.by.get_mut(name) {
            entry.busy = false;
        }
    }

    /// Removes timers that no longer exist and do not run.
    pub fn keep(&mut self, there: impl Fn(&str) -> bool) {
        self.by.retain(|name, entry| entry.busy || there(name));
    }
}

/// How long to sleep until the next due time; `None`: there is none.
#[must_use]
pub fn nap(next: Option<Millis>, now: Millis) -> Option<Duration> {
    next.map(|due| Duration::from_millis(u64::try_from(due.saturating_sub(now)).unwrap_or(0)).min(NAP))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at a timer of every 10 at an instant.
    fn at(timers: &mut ScriptTimers, now: Millis) -> Look {
        let newest = now - now.rem_euclid(10_000);
        timers.look("t", newest, newest + 10_000)
    }

    #[test]
    fn a_run_is_never_begun_beside_another_and_a_backlog_is_one_run() {
        let mut timers = ScriptTimers::default();
        assert_eq!(at(&mut timers, 15_000), Look::Unknown);
        timers.learn("t", 10_000);
        assert_eq!(at(&mut timers, 19_999), Look::Rest);
        assert_eq!(at(&mut timers, 20_000), Look::Run(20_000));
        for now in [20_001, 30_000, 40_000, 55_000] {
            assert_eq!(at(&mut timers, now), Look::Busy, "{now}");
        }
        timers.ended("t");
        assert_eq!(at(&mut timers, 55_001), Look::Run(50_000), "three were missed: one run, the newest");
        timers.ended("t");
        assert_eq!(at(&mut timers, 55_002), Look::Rest);
        assert_eq!(at(&mut timers, 60_000), Look::Run(60_000));
    }

    #[test]
    fn a_run_in_the_future_is_not_believed_but_a_clock_may_be_set_back_a_little() {
        let mut timers = ScriptTimers::default();
        timers.learn("t", 2_000_000_000);
        assert_eq!(at(&mut timers, 100_000), Look::Restart(100_000));
        assert_eq!(at(&mut timers, 109_999), Look::Rest, "it begins with the present");
        assert_eq!(at(&mut timers, 110_000), Look::Run(110_000));
        timers.ended("t");
        // Set back by a minute: what ran does not run again, and nothing else until the clock is there again.
        for now in [50_001, 109_999, 119_999] {
            assert_eq!(at(&mut timers, now), Look::Rest, "{now}");
        }
        assert_eq!(at(&mut timers, 120_000), Look::Run(120_000));
        timers.ended("t");
        assert_eq!(at(&mut timers, 10_000), Look::Restart(10_000), "set back by more");
    }

    #[test]
    fn what_is_gone_is_forgotten_once_it_does_not_run() {
        let mut timers = ScriptTimers::default();
        timers.learn("t", 0);
        assert_eq!(at(&mut timers, 10_000), Look::Run(10_000));
        timers.keep(|_| false);
        assert_eq!(at(&mut timers, 20_000), Look::Busy, "a reload that brings it back does not double it");
        timers.ended("t");
        timers.keep(|_| false);
        assert_eq!(at(&mut timers, 20_000), Look::Unknown);
        timers.ended("nobody");
    }

    #[test]
    fn no_sleep_is_longer_than_a_jump_of_the_clock_may_stay_unseen() {
        assert_eq!(nap(None, 5), None);
        assert_eq!(nap(Some(10), 5), Some(Duration::from_millis(5)));
        assert_eq!(nap(Some(5), 10), Some(Duration::ZERO));
        assert_eq!(nap(Some(Millis::MAX), 0), Some(NAP));
        assert_eq!(nap(Some(0), Millis::MIN), Some(NAP), "a difference that no integer holds");
        assert!(NAP <= Duration::from_secs(60));
    }
}
