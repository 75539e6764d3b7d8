//! The timer thread: asleep until the next `ostler.every` is due, by the wall clock.
//!
//! [`Timers`] decides what runs now. The host keeps which run was the last, so that a missed run comes once at the next
//! boot and no run comes twice. A run is claimed where it runs. This file must not know the hook threads.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::lock;
use super::pool::Pool;
use super::scripts::{Plan, Timer};
use crate::clock::{self, Millis};
use crate::model::every::{Look, Timers, nap};

/// Wakes the timer thread.
#[derive(Default)]
pub(crate) struct Bell {
    rung: Mutex<Rung>,
    wake: Condvar,
}

#[derive(Default)]
struct Rung {
    again: bool,
    closing: bool,
    /// The timers whose run is over.
    ended: Vec<String>,
}

impl Bell {
    /// The timers are others now.
    pub fn ring(&self) {
        lock(&self.rung).again = true;
        self.wake.notify_all();
    }

    /// No timer is run any more.
    pub fn close(&self) {
        lock(&self.rung).closing = true;
        self.wake.notify_all();
    }

    fn ended(&self, name: &str) {
        let mut rung = lock(&self.rung);
        rung.again = true;
        rung.ended.push(name.to_owned());
        drop(rung);
        self.wake.notify_all();
    }

    /// Sleeps until rung, closed, or the time is over (`None`: as long as it takes). Gives the timers whose run is
    /// over; `None`: closed.
    fn sleep(&self, time: Option<Duration>) -> Option<Vec<String>> {
        let mut rung = lock(&self.rung);
        if !rung.again && !rung.closing {
            rung = match time {
                Some(time) => self.wake.wait_timeout(rung, time).unwrap_or_else(PoisonError::into_inner).0,
                None => self.wake.wait(rung).unwrap_or_else(PoisonError::into_inner),
            };
        }
        rung.again = false;
        (!rung.closing).then(|| std::mem::take(&mut rung.ended))
    }
}

/// A run that was handed out. However it goes, it is over when this is dropped.
pub(crate) struct Run {
    pub name: String,
    pub due: Millis,
    bell: Arc<Bell>,
}

impl Run {
    pub fn new(name: &str, due: Millis, bell: &Arc<Bell>) -> Self {
        Self { name: name.to_owned(), due, bell: Arc::clone(bell) }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.bell.ended(&self.name);
    }
}

/// The life of the timer thread.
pub(crate) fn run(pool: &Arc<Pool>) {
    let mut timers = Timers::default();
    loop {
        let plan = pool.plan();
        let next = hand_out(pool, &plan, &mut timers);
        let Some(ended) = pool.timers.sleep(nap(next, clock::now())) else { return };
        for name in ended {
            timers.ended(&name);
        }
    }
}

/// Hands out what is due; gives when the next one is.
fn hand_out(pool: &Pool, plan: &Plan, timers: &mut Timers) -> Option<Millis> {
    timers.keep(|name| plan.registered.timers.iter().any(|t| t.name == name));
    let mut next: Option<Millis> = None;
    for timer in &plan.registered.timers {
        let now = clock::now();
        let (newest, due) = (timer.schedule.last(now), timer.schedule.next(now));
        let mut look = timers.look(&timer.name, newest, due);
        if look == Look::Unknown {
            timers.learn(&timer.name, last_run(pool, timer, newest));
            look = timers.look(&timer.name, newest, due);
        }
        match look {
            Look::Run(due) => pool.run_timer(&timer.name, due),
            Look::Restart(from) => restart(pool, timer, from),
            Look::Unknown | Look::Busy | Look::Rest => {}
        }
        next = Some(next.map_or(due, |n| n.min(due)));
    }
    next
}

/// The newest run of a timer. One that never ran starts from the present, durably, so that the first run it misses
/// while the daemon is down counts as missed.
fn last_run(pool: &Pool, timer: &Timer, newest: Millis) -> Millis {
    let host = &pool.shared.host;
    let last = match host.timer_last(&timer.name) {
        Ok(Some(last)) => Ok(last),
        Ok(None) => host.timer_claim(&timer.name, newest).map(|_| newest),
        Err(why) => Err(why),
    };
    last.unwrap_or_else(|why| {
        log::error!(target: "hook", hook = timer.name.as_str();
            "timer {}: its last run is not known: {why}", timer.name);
        newest
    })
}

/// A run on record lies in the future: the present stands instead.
fn restart(pool: &Pool, timer: &Timer, from: Millis) {
    let name = timer.name.as_str();
    log::warn!(target: "hook", hook = name;
        "timer {name}: its last run lies in the future, for the clock was ahead then: it goes on from now");
    if let Err(why) = pool.shared.host.timer_restart(name, from) {
        log::error!(target: "hook", hook = name; "timer {name}: where it goes on from cannot be kept: {why}");
    }
}
