//! The timer thread: asleep until the next `ostler.every` is due, by the wall clock.
//!
//! What was run last is the house's to know, so that a missed run comes once at the next boot and none comes twice. The
//! run itself is claimed where it runs. It must not know lanes.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::lock;
use super::pool::Pool;
use super::scripts::{Plan, Timer};
use crate::clock::{self, Millis};

/// The wall clock can be set while we sleep; no sleep is longer than this.
const LONGEST_SLEEP: Millis = 3_600_000;

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

    /// Sleeps until rung, closed, or the time is over (`None`: as long as it takes). False: closed.
    fn sleep(&self, time: Option<Duration>) -> bool {
        let mut rung = lock(&self.rung);
        if !rung.again && !rung.closing {
            rung = match time {
                Some(time) => self.wake.wait_timeout(rung, time).unwrap_or_else(PoisonError::into_inner).0,
                None => self.wake.wait(rung).unwrap_or_else(PoisonError::into_inner),
            };
        }
        rung.again = false;
        !rung.closing
    }
}

/// The life of the timer thread.
pub(crate) fn run(pool: &Arc<Pool>) {
    // The newest due time of each timer that was handed out, in this life or, by the house, in another.
    let mut ran: HashMap<String, Millis> = HashMap::new();
    loop {
        let plan = pool.plan();
        let next = hand_out(pool, &plan, &mut ran);
        let now = clock::now();
        let sleep =
            next.map(|due| Duration::from_millis(u64::try_from((due - now).clamp(0, LONGEST_SLEEP)).unwrap_or(0)));
        if !pool.timers.sleep(sleep) {
            return;
        }
    }
}

/// Hands out what is due; gives when the next one is.
fn hand_out(pool: &Pool, plan: &Plan, ran: &mut HashMap<String, Millis>) -> Option<Millis> {
    let mut next: Option<Millis> = None;
    for timer in &plan.registered.timers {
        let newest = timer.schedule.last(clock::now());
        let last = *ran.entry(timer.name.clone()).or_insert_with(|| last_run(pool, timer, newest));
        if newest > last {
            ran.insert(timer.name.clone(), newest);
            pool.run_timer(&timer.name, newest);
        }
        let due = timer.schedule.next(clock::now());
        next = Some(next.map_or(due, |n| n.min(due)));
    }
    ran.retain(|name, _| plan.registered.timers.iter().any(|t| t.name == *name));
    next
}

/// The newest run of a timer. One that never ran starts from the present, durably, so that the first run it misses
/// while the daemon is down counts as missed.
fn last_run(pool: &Pool, timer: &Timer, newest: Millis) -> Millis {
    let home = &pool.shared.home;
    let last = match home.timer_last(&timer.name) {
        Ok(Some(last)) => Ok(last),
        Ok(None) => home.timer_claim(&timer.name, newest).map(|_| newest),
        Err(why) => Err(why),
    };
    last.unwrap_or_else(|why| {
        log::error!(target: "hook", hook = timer.name.as_str();
            "timer {}: its last run is not known: {why}", timer.name);
        newest
    })
}
