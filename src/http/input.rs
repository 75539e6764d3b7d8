//! The bytes that a connection has read and not yet used, and what can go wrong with a request.
//!
//! It owns the buffer and the deadline of a read. It must not know what the bytes mean.

use std::io;
use std::time::Instant;

use super::Refusal;
use super::socket::Socket;

/// The bytes of one read when the length is not known.
const STEP: usize = 8 * 1024;

/// Why a request is not handled to its end.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The client gets to know why.
    Refused(Refusal),
    /// The input ended within the message.
    Ended,
    /// The connection broke.
    Broken(io::Error),
    /// The handler gave up.
    Handler(io::Error),
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// What has been read from the connection and not yet used.
pub(super) struct Input<'s> {
    socket: &'s Socket,
    buf: Vec<u8>,
    start: usize,
}

impl<'s> Input<'s> {
    pub(super) fn new(socket: &'s Socket) -> Self {
        Self { socket, buf: Vec::new(), start: 0 }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.buf[self.start..]
    }

    pub(super) fn consume(&mut self, n: usize) {
        self.start += n;
        if self.start >= self.buf.len() {
            self.buf.clear();
            self.start = 0;
        }
    }

    /// The next bytes, at most `n`, of those that are here.
    pub(super) fn take(&mut self, n: usize) -> Vec<u8> {
        let here = self.bytes();
        let taken = here[..n.min(here.len())].to_vec();
        self.consume(taken.len());
        taken
    }

    /// Waits for more; 0 is the end.
    pub(super) fn fill(&mut self, deadline: Instant) -> io::Result<usize> {
        self.buf.drain(..self.start);
        self.start = 0;
        let have = self.buf.len();
        self.buf.resize(have + STEP, 0);
        let got = read_until(self.socket, &mut self.buf[have..], deadline);
        self.buf.truncate(have + got.as_ref().map_or(0, |n| *n));
        got
    }

    /// Reads into the caller's own buffer. Only when this buffer is empty.
    pub(super) fn read_past(&mut self, into: &mut [u8], deadline: Instant) -> io::Result<usize> {
        debug_assert!(self.bytes().is_empty(), "what came first is used first");
        read_until(self.socket, into, deadline)
    }

    /// Drops the empty lines that some clients send after a body (RFC 9112, 2.2).
    pub(super) fn skip_empty_lines(&mut self) {
        while self.bytes().starts_with(b"\r\n") {
            self.consume(2);
        }
    }
}

/// A read after the deadline fails even if something is there, or a client that always has one more byte would win.
fn read_until(socket: &Socket, into: &mut [u8], deadline: Instant) -> io::Result<usize> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    socket.read(into, left)
}
