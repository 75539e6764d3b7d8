//! Measures how long this process was awake. A process that is stopped and continued (`docker pause`, SIGSTOP, a
//! debugger) finds deadlines that passed meanwhile; work with a time limit is not charged for that time.
//!
//! An observer ticks while a measurement runs. At most [`MOST`] is charged for the time between two ticks, because a
//! running process ticks more often. [`Meter`] is the pure rule; the rest is the thread that ticks.

use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::thread;

/// The time between two ticks of the observer.
const TICK: Duration = Duration::from_millis(250);
/// The most that is charged for the time between two ticks.
const MOST: Duration = Duration::from_millis(500);

/// The time that the process was awake, from the ticks of an observer. The caller passes in the time, since any start.
#[derive(Clone, Copy, Debug, Default)]
struct Meter {
    at: Duration,
    awake: Duration,
}

impl Meter {
    /// The time awake at an instant.
    fn read(self, now: Duration) -> Duration {
        self.awake + now.saturating_sub(self.at).min(MOST)
    }

    /// A tick.
    fn tick(&mut self, now: Duration) {
        *self = Self { at: now.max(self.at), awake: self.read(now) };
    }
}

#[derive(Default)]
struct Watched {
    meter: Meter,
    spans: usize,
    /// The observer sleeps until a measurement starts.
    parked: bool,
}

struct Observer {
    base: Instant,
    watched: Mutex<Watched>,
    wake: Condvar,
    /// Without a thread there is no observer, and all time counts.
    ticks: bool,
}

impl Observer {
    fn get() -> &'static Self {
        static OBSERVER: OnceLock<Observer> = OnceLock::new();
        OBSERVER.get_or_init(|| {
            let ticks = thread::spawn_own("awake", thread::IO_STACK, || Self::get().watch());
            if let Err(e) = &ticks {
                log::warn!("no thread to tell a pause of the process by: its timeouts go on in one: {e}");
            }
            Self { base: Instant::now(), watched: Mutex::default(), wake: Condvar::new(), ticks: ticks.is_ok() }
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body of the thread.
    fn watch(&self) {
        let mut watched = self.lock();
        loop {
            if watched.spans == 0 {
                watched.parked = true;
                watched = self.wake.wait(watched).unwrap_or_else(PoisonError::into_inner);
            } else {
                watched = self.wake.wait_timeout(watched, TICK).unwrap_or_else(PoisonError::into_inner).0;
                watched.meter.tick(self.base.elapsed());
            }
        }
    }
}

/// A measurement that counts only the time during which the process was awake.
#[derive(Debug)]
pub struct Span {
    began: Duration,
    instant: Instant,
}

impl Span {
    /// Starts now.
    #[must_use]
    pub fn begin() -> Self {
        let observer = Observer::get();
        let mut watched = observer.lock();
        watched.spans += 1;
        if watched.spans == 1 {
            watched.meter.tick(observer.base.elapsed());
        }
        let began = watched.meter.read(observer.base.elapsed());
        if std::mem::take(&mut watched.parked) {
            observer.wake.notify_one();
        }
        Self { began, instant: Instant::now() }
    }

    /// The time awake since the start.
    #[must_use]
    pub fn spent(&self) -> Duration {
        let observer = Observer::get();
        if !observer.ticks {
            return self.instant.elapsed();
        }
        observer.lock().meter.read(observer.base.elapsed()).saturating_sub(self.began)
    }

    /// The time left of a limit.
    #[must_use]
    pub fn left(&self, of: Duration) -> Duration {
        of.saturating_sub(self.spent())
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        Observer::get().lock().spans -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_not_charged_whoever_looks_first_after_it() {
        let ms = Duration::from_millis;
        let mut meter = Meter::default();
        for tick in [250, 500, 751] {
            meter.tick(ms(tick));
        }
        assert_eq!(meter.read(ms(900)), ms(900), "awake, all of it counts");
        // Ten seconds of pause; a deadline is looked at before the observer's next tick, and after it.
        assert_eq!(meter.read(ms(10_900)), ms(1251));
        meter.tick(ms(10_900));
        assert_eq!(meter.read(ms(10_900)), ms(1251));
        assert_eq!(meter.read(ms(11_000)), ms(1351));
        // A look with an older time, from a thread that was overtaken, takes nothing back.
        meter.tick(ms(10_000));
        assert_eq!(meter.read(ms(11_000)), ms(1351));
    }

    #[test]
    fn a_process_that_runs_is_charged_what_it_takes() {
        let span = Span::begin();
        let other = Span::begin();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        // The later one is read first: time goes on between the two looks.
        let least = other.spent();
        assert!(least >= Duration::from_millis(15), "{least:?}");
        assert!(span.spent() >= least, "{least:?}");
        assert_eq!(span.left(Duration::ZERO), Duration::ZERO);
    }
}
