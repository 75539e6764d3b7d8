//! The timer thread: asleep until the next `ostler.every` is due, by the wall clock.
//!
//! [`ScriptTimers`] decides what runs now. The host keeps which run was the last, so that a missed run comes once at the next
//! boot and no run comes twice. A run is claimed where it runs. This file must not know the hook threads.

use std::sync::Arc;

use super::HookHost;
use super::bell::Bell;
use super::scripts::{Plan, Timer};
use crate::clock::{self, Millis};
use crate::model::every::{Look, ScriptTimers, nap};

/// What the timer thread needs of the pool.
pub(crate) trait Timed {
    /// The scripts in force, with their timers.
    fn plan(&self) -> Arc<Plan>;
    /// Wakes the thread.
    fn bell(&self) -> &Bell;
    /// Keeps which run was the last.
    fn host(&self) -> &dyn HookHost;
    /// Queues a run.
    fn run_timer(&self, name: &str, due: Millis);
}

/// The life of the timer thread.
pub(crate) fn run(pool: &impl Timed) {
    let mut timers = ScriptTimers::default();
    loop {
        let plan = pool.plan();
        let next = hand_out(pool, &plan, &mut timers);
        let Some(ended) = pool.bell().sleep(nap(next, clock::now())) else { return };
        for name in ended {
            timers.ended(&name);
        }
    }
}

/// Hands out what is due; gives when the next one is.
fn hand_out(pool: &impl Timed, plan: &Plan, timers: &mut ScriptTimers) -> Option<Millis> {
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

/// The newest run of a timer. For a timer that never ran, the present is stored, so that the first run that it misses
/// while the daemon is down counts as missed.
fn last_run(pool: &impl Timed, timer: &Timer, newest: Millis) -> Millis {
    let host = pool.host();
    let last = match host.timer_last(&timer.name) {
        Ok(Some(last)) => Ok(last),
        Ok(None) => host.timer_claim(&timer.name, newest).map(|_| newest),
        Err(why) => Err(why),
    };
    last.unwrap_or_else(|why| {
        log::error!(target: "hook", hook = timer.name.as_str();
            "timer {}: its last run cannot be read: {why}", timer.name);
        newest
    })
}

/// Stores the present in place of a run that lies in the future.
fn restart(pool: &impl Timed, timer: &Timer, from: Millis) {
    let name = timer.name.as_str();
    log::warn!(target: "hook", hook = name;
        "timer {name}: its last run lies in the future (the clock was ahead then): it continues from now");
    if let Err(why) = pool.host().timer_restart(name, from) {
        log::error!(target: "hook", hook = name; "timer {name}: its new start cannot be stored: {why}");
    }
}
