//! Signals: one thread that translates them, and an exit that depends on nothing in the process.

use std::io;

use crossbeam_channel::{Receiver, Sender};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::notify;
use crate::thread;

/// The meaning of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT, or SIGTERM without a service manager: stop. Each further signal raises the urgency.
    Stop,
    /// SIGTERM under a service manager, which knows whether it is a stop or a restart.
    Terminate,
    /// SIGUSR1: restart.
    Restart,
    /// SIGHUP: reload configuration and hooks.
    Reload,
}

/// Starts to listen. From here on no signal is lost: signals before the daemon is ready wait in the channel.
///
/// # Errors
/// The handlers or the thread cannot be set up.
pub fn listen(reap: impl Fn() + Send + 'static) -> io::Result<Receiver<Signal>> {
    let managed = notify::is_supervised();
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGCHLD])?;
    let (send, receive): (Sender<Signal>, _) = crossbeam_channel::bounded(64);
    thread::spawn_own("signals", thread::IO_STACK, move || {
        for signal in signals.forever() {
            let meaning = match signal {
                SIGTERM if managed => Signal::Terminate,
                SIGTERM | SIGINT => Signal::Stop,
                SIGUSR1 => Signal::Restart,
                SIGHUP => Signal::Reload,
                _ => {
                    reap();
                    continue;
                }
            };
            // A full channel already holds 64 signals, and urgency has only three steps.
            let _ = send.try_send(meaning);
        }
    })?;
    Ok(receive)
}

/// Exits at once: no destructors, no exit handlers, no locks.
pub fn exit(code: u8) -> ! {
    signal_hook::low_level::exit(i32::from(code))
}
