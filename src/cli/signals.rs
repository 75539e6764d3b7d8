//! SIGINT while a turn runs in `chat`. The only place in the commands that handles a signal.

use std::io;

use signal_hook::consts::SIGINT;
use signal_hook::iterator::{Handle, Signals};

use crate::thread;

/// Calls back on each SIGINT until dropped.
pub struct OnInterrupt(Handle);

impl OnInterrupt {
    /// Starts to listen. The callback runs on a thread of its own, so it may block.
    ///
    /// # Errors
    /// There is no thread, or the handler cannot be set.
    pub fn new(mut callback: impl FnMut() + Send + 'static) -> io::Result<Self> {
        let mut signals = Signals::new([SIGINT])?;
        let handle = signals.handle();
        thread::spawn("interrupts", thread::DEEP_STACK, move || {
            for _ in signals.forever() {
                callback();
            }
        })?;
        Ok(Self(handle))
    }
}

impl Drop for OnInterrupt {
    fn drop(&mut self) {
        self.0.close();
    }
}
