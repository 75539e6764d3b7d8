//! A kick: what gets a call out of a wait that may be long, a request or a program, when nobody wants its outcome any more.
//!
//! One way only: once kicked, always kicked. Lua itself sees the flag at its next look at the deadline; a wait in Rust
//! has the descriptor among those that it waits for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// Whether calls are to end now, as a flag and as a descriptor that is readable from then on.
#[derive(Debug)]
pub struct Kick {
    flag: Arc<AtomicBool>,
    bell: OwnedFd,
}

impl Kick {
    /// Nobody was kicked yet.
    ///
    /// # Errors
    /// The system has no descriptor to give.
    pub fn new() -> io::Result<Arc<Self>> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self { flag: Arc::default(), bell }))
    }

    /// Every wait ends now.
    pub fn kick(&self) {
        self.flag.store(true, Ordering::Release);
        // It counts; that it is readable already is as good.
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
