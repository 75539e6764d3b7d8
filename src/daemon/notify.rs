//! The service manager: READY, RELOADING, STOPPING, STATUS, EXTEND_TIMEOUT_USEC, WATCHDOG. Nothing happens without one.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use sd_notify::NotifyState;

use super::context::Request;
use crate::store::Store;
use crate::thread;

fn send(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        log::debug!("the service manager cannot be told: {e}");
    }
}

/// Messages are accepted.
pub fn ready() {
    send(&[NotifyState::Ready, NotifyState::Status("running")]);
}

/// A reload begins.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(e) => log::debug!("the service manager cannot be told: {e}"),
    }
}

/// A stop begins, and needs at most this long: asked for at once, so that a shorter timeout of the unit does not cut it off.
pub fn stopping(within: Duration) {
    // Written out, since the library's number ends at 71 minutes.
    let extend = format!("EXTEND_TIMEOUT_USEC={}", within.as_micros());
    send(&[NotifyState::Stopping, NotifyState::Custom(&extend)]);
}

/// One line for people.
pub fn status(text: &str) {
    send(&[NotifyState::Status(text)]);
}

/// Whether somebody starts us again after we leave with 75: a service manager that says so by its notify socket.
#[must_use]
pub fn is_supervised() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some() || std::env::var_os("INVOCATION_ID").is_some()
}

/// How the manager's watchdog is fed, of the period in which it must be: the pause between two rounds, how long the
/// coordinator and the store have for their answers in one, and what the store has at least when the coordinator took all
/// of that.
fn pace(period: Duration) -> (Duration, Duration, Duration) {
    (period / 3, period / 3, period / 12)
}

/// Feeds the service manager's watchdog, if it has one: a timer asks, and only answers of the coordinator and the store
/// feed it. The thread ends when the guard that is returned is dropped.
pub fn watchdog(coordinator: Sender<Request>, store: Store) -> Option<Sender<()>> {
    let (every, patience, least) = pace(sd_notify::watchdog_enabled()?);
    let (guard, ended): (Sender<()>, Receiver<()>) = crossbeam_channel::bounded(1);
    let body = move || {
        let mut pause = every;
        while ended.recv_timeout(pause) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
            let until = Instant::now() + patience;
            let (answer, answered) = crossbeam_channel::bounded(1);
            let coordinator_lives = coordinator.send_deadline(Request::Ping(answer), until).is_ok()
                && answered.recv_deadline(until).is_ok();
            // A stalled disk is shown, not cured by a kill.
            let store_lives = store.is_alive(until.saturating_duration_since(Instant::now()).max(least));
            if coordinator_lives && store_lives {
                send(&[NotifyState::Watchdog]);
                pause = every;
            } else {
                log::error!("watchdog: coordinator {coordinator_lives}, store {store_lives}: not fed");
                // Asked again soon: it may yet answer in time.
                pause = least;
            }
        }
    };
    match thread::spawn_own("watchdog", thread::IO_STACK, body) {
        Ok(_) => Some(guard),
        Err(e) => {
            log::error!("no thread to feed the service manager's watchdog: {e}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_fed_within_its_period_however_late_the_answers_are() {
        for period in [Duration::from_millis(200), Duration::from_secs(30), Duration::from_secs(3600)] {
            let (pause, patience, least) = pace(period);
            assert!(pause + patience + least <= period * 3 / 4, "{period:?}");
        }
    }
}
