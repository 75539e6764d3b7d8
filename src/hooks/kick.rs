//! A kick ends the wait of a call for a request or a program when nobody wants the outcome any more.
//!
//! Once kicked, always kicked. Lua sees the flag when it next looks at the deadline; a wait in Rust polls the
//! descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// Whether calls must end now: a flag, and a descriptor that is readable once the flag is set.
#[derive(Debug)]
pub struct Kick {
    flag: Arc<AtomicBool>,
    bell: OwnedFd,
}

impl Kick {
    /// A kick that was not given yet.
    ///
    /// # Errors
    /// The system has no descriptor to give.
    pub fn new() -> io::Result<Arc<Self>> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self { flag: Arc::default(), bell }))
    }

    /// Ends every wait.
    pub fn kick(&self) {
        self.flag.store(true, Ordering::Release);
        // A failed write means that the counter is full, so the descriptor is readable.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// Whether it was kicked.
    #[must_use]
    pub fn is_kicked(&self) -> bool {
        self.flag.load(Ordering::Acquire)
    }

    /// The flag, for the deadline of a state.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.flag)
    }
}

impl AsFd for Kick {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
