//! Signals: one thread that translates them, and the way out that needs nothing of the process.

use std::io;

use crossbeam_channel::{Receiver, Sender};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::thread;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, SIGINT: stop; a further one, harder.
    Stop,
    /// SIGUSR1: stop, to be started again.
    Restart,
    /// SIGHUP: read configuration and hooks anew.
    Reload,
}

/// Starts to listen. From here on no signal is lost: those before the daemon is ready wait in the channel.
///
/// # Errors
/// The signals cannot be taken over.
pub fn listen(reap: impl Fn() + Send + 'static) -> io::Result<Receiver<Signal>> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGCHLD])?;
    let (send, receive): (Sender<Signal>, _) = crossbeam_channel::bounded(64);
    thread::spawn_own("signals", thread::IO_STACK, move || {
        for signal in signals.forever() {
            let meaning = match signal {
                SIGTERM | SIGINT => Signal::Stop,
                SIGUSR1 => Signal::Restart,
                SIGHUP => Signal::Reload,
                _ => {
                    reap();
                    continue;
                }
            };
            // Full: sixty-four wait already, and urgency knows three steps.
            let _ = send.try_send(meaning);
        }
    })?;
    Ok(receive)
}

/// Leaves at once: no destructors, no exit handlers, no locks.
pub fn leave(code: u8) -> ! {
    signal_hook::low_level::exit(i32::from(code))
}
