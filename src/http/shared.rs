//! What the threads of a server share: handler, limits, counters, and the register of connections.
//!
//! It must not know how connections are accepted, nor what they say.

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::attendant::Attendant;
pub(super) use super::client::Conn;
use super::places::Places;
use super::{Handler, Limits};

/// A number that only rises.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) accepted: Counter,
    pub(super) refused: Counter,
    pub(super) requests: Counter,
    pub(super) protocol_errors: Counter,
    pub(super) timeouts: Counter,
    pub(super) panics: Counter,
}

/// Every connection that is being served.
#[derive(Debug, Default)]
pub(super) struct Register {
    pub(super) conns: HashMap<u64, Arc<Conn>>,
    pub(super) next: u64,
    /// The places of connections with an open descriptor: those in `conns`, and those that are ending.
    pub(super) places: Places,
    pub(super) stopping: bool,
}

/// What the threads of a server share.
pub(super) struct Shared {
    pub(super) handler: Arc<dyn Handler>,
    pub(super) limits: Limits,
    pub(super) counters: Counters,
    pub(super) register: Mutex<Register>,
    /// A connection ended, or the server stops accepting.
    pub(super) changed: Condvar,
    pub(super) draining: AtomicBool,
    /// The last client was turned away.
    pub(super) full: AtomicBool,
    pub(super) attendant: Attendant,
    /// Readable for ever once the server stops accepting.
    pub(super) wake: OwnedFd,
}

impl Shared {
    pub(super) fn register(&self) -> MutexGuard<'_, Register> {
        // No panic under the lock can leave the register half changed.
        self.register.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// A connection has no request in work. In a drain it is then shut down for reading; bytes that have arrived are
    /// still read.
    pub(super) fn now_idle(&self, conn: &Conn) {
        conn.busy.store(false, Ordering::SeqCst);
        if self.is_draining() {
            conn.socket.shutdown(Shutdown::Read);
        }
    }

    /// A request of a connection was let in.
    pub(super) fn now_known(&self, conn: &Conn) {
        if !conn.known.load(Ordering::Relaxed) {
            let mut register = self.register();
            if !conn.known.swap(true, Ordering::Relaxed) {
                register.places.known(conn.kind, conn.listener);
            }
        }
    }
}
