//! The bell of the timer thread, and the run of a timer that rings it when it is over.
//!
//! It must not know which timers there are, nor what runs them.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::lock;
use crate::clock::Millis;

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
    pub fn sleep(&self, time: Option<Duration>) -> Option<Vec<String>> {
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
pub(crate) struct TimerRun {
    pub name: String,
    pub due: Millis,
    bell: Arc<Bell>,
}

impl TimerRun {
    pub fn new(name: &str, due: Millis, bell: &Arc<Bell>) -> Self {
        Self { name: name.to_owned(), due, bell: Arc::clone(bell) }
    }
}

impl Drop for TimerRun {
    fn drop(&mut self) {
        self.bell.ended(&self.name);
    }
}
