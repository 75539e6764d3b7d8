//! A connected client, as the server's threads see it.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Peer;
use super::places::Kind;
use super::socket::Socket;

/// A connection as the server sees it.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) socket: Socket,
    /// Which listener it came to.
    pub(super) listener: usize,
    pub(super) peer: Peer,
    pub(super) kind: Kind,
    /// A request of it was let in; written under the register's lock.
    pub(super) known: AtomicBool,
    /// A request's head is complete, and its answer is not.
    pub(super) busy: AtomicBool,
}

impl Conn {
    pub(super) fn now_busy(&self) {
        self.busy.store(true, Ordering::SeqCst);
    }
}
