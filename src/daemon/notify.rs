//! Messages to the service manager: READY, RELOADING, STOPPING, STATUS, EXTEND_TIMEOUT_USEC, WATCHDOG. Without a
//! service manager nothing is sent.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use sd_notify::NotifyState;

use super::context::Request;
use crate::store::Store;
use crate::thread;

fn send(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        log::debug!("cannot notify the service manager: {e}");
    }
}

/// The daemon accepts messages.
pub fn ready() {
    send(&[NotifyState::Ready, NotifyState::Status("running")]);
}

/// A reload begins.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(e) => log::debug!("cannot notify the service manager: {e}"),
    }
}

/// A stop begins and needs at most `within`. The time is asked for at once, so a shorter timeout of the unit does not
/// cut the stop off.
pub fn stopping(within: Duration) {
    // Written by hand: the library's `u32` of microseconds ends at 71 minutes.
    let extend = format!("EXTEND_TIMEOUT_USEC={}", within.as_micros());
    send(&[NotifyState::Stopping, NotifyState::Custom(&extend)]);
}

/// One line for people.
pub fn status(text: &str) {
    send(&[NotifyState::Status(text)]);
}

/// Whether a service manager starts the daemon again after exit code 75.
#[must_use]
pub fn is_supervised() -> bool {
    let env = |name: &str| std::env::var(name).ok();
    is_supervised_by(&env, std::process::id())
}

/// As [`is_supervised`], for a process with this environment. What a service starts inherits INVOCATION_ID, a terminal for
/// example, and everything in it; SYSTEMD_EXEC_PID says which process is the service itself.
fn is_supervised_by(env: &dyn Fn(&str) -> Option<String>, pid: u32) -> bool {
    let is_ours = || env("SYSTEMD_EXEC_PID").is_none_or(|of| of == pid.to_string());
    env("NOTIFY_SOCKET").is_some() || (env("INVOCATION_ID").is_some() && is_ours())
}

/// The timing of the watchdog, from the period of the service manager: the pause between two rounds, the time for both
/// answers of a round, and the least time for the store's answer if the coordinator's took all of that.
fn pace(period: Duration) -> (Duration, Duration, Duration) {
    (period / 3, period / 3, period / 12)
}

/// Feeds the service manager's watchdog, if it has one: only if the coordinator and the store both answer in time. The
/// thread ends when the returned guard is dropped.
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
            // A stalled disk does not count as dead: a kill would not help.
            let store_lives = store.is_alive(until.saturating_duration_since(Instant::now()).max(least));
            if coordinator_lives && store_lives {
                send(&[NotifyState::Watchdog]);
                pause = every;
            } else {
                let state = |lives| if lives { "answers" } else { "does not answer" };
                let (coordinator, store) = (state(coordinator_lives), state(store_lives));
                log::error!("watchdog not fed: the coordinator {coordinator}, the store {store}");
                // Asked again soon: they may still answer in time.
                pause = least;
            }
        }
    };
    match thread::spawn_own("watchdog", thread::IO_STACK, body) {
        Ok(_) => Some(guard),
        Err(e) => {
            log::error!("cannot start a thread to feed the service manager's watchdog: {e}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_service_started_is_no_service() {
        for (set, expected) in [
            (&[][..], false),
            (&[("NOTIFY_SOCKET", "/n")], true),
            (&[("INVOCATION_ID", "1")], true),
            (&[("INVOCATION_ID", "1"), ("SYSTEMD_EXEC_PID", "7")], true),
            (&[("INVOCATION_ID", "1"), ("SYSTEMD_EXEC_PID", "8")], false),
            (&[("INVOCATION_ID", "1"), ("SYSTEMD_EXEC_PID", "8"), ("NOTIFY_SOCKET", "/n")], true),
            (&[("SYSTEMD_EXEC_PID", "7")], false),
        ] {
            let env = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
            assert_eq!(is_supervised_by(&env, 7), expected, "{set:?}");
        }
    }

    #[test]
    fn the_watchdog_is_fed_within_its_period_even_if_answers_are_late() {
        for period in [Duration::from_millis(200), Duration::from_secs(30), Duration::from_secs(3600)] {
            let (pause, patience, least) = pace(period);
            assert!(pause + patience + least <= period * 3 / 4, "{period:?}");
        }
    }
}
