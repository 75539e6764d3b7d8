//! Whether the store keeps what it is given, as the last group showed: for readiness and the log.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Whether something is wrong, and what.
#[derive(Default)]
pub(super) struct Condition {
    bad: AtomicBool,
    why: Mutex<Option<String>>,
}

impl Condition {
    /// A group was refused. Logged once for each reason, not for each message.
    pub(super) fn failed(&self, why: &str) {
        let mut known = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_deref() != Some(why) {
            log::error!("messages are refused: {why}");
            *known = Some(why.to_owned());
        }
        self.bad.store(true, Ordering::SeqCst);
    }

    /// A group was kept.
    pub(super) fn well(&self) {
        if self.bad.load(Ordering::SeqCst) && self.bad.swap(false, Ordering::SeqCst) {
            *self.why.lock().unwrap_or_else(PoisonError::into_inner) = None;
            log::info!("messages are kept again");
        }
    }

    /// Why nothing is kept at present; `None`: all is well.
    pub(super) fn trouble(&self) -> Option<String> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
