//! A connected stream, unix or TCP, with a deadline on every wait.
//!
//! It owns the system calls of a connection. It must not know HTTP.
//!
//! Reads use the socket's own timeout, which is set again only when it has to change, so that a keep-alive request
//! costs one `recv`. Writes never block in the kernel: they try, and `poll` for room, because a blocking send that is
//! cut half-way does not tell when the client last took bytes.

use std::io::{self, IoSlice, Read};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags};

use super::Peer;

/// The bytes that the kernel may hold for a client that does not read. They bound the memory of such a client, and how
/// far a slow client may lag: the wait for room ends when about a third is free.
const TCP_SEND_BUFFER: usize = 256 * 1024;

/// The bytes that a client may still send after it was closed with unread input.
const LINGER_BYTES: usize = 8 << 20;

#[derive(Debug)]
enum Transport {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// A connected stream. One thread reads and writes; any thread may shut it down.
#[derive(Debug)]
pub(super) struct Socket {
    kind: Transport,
    /// The read timeout in force, in nanoseconds; 0 before the first.
    timeout: AtomicU64,
}

impl From<UnixStream> for Socket {
    fn from(stream: UnixStream) -> Self {
        Self { kind: Transport::Unix(stream), timeout: AtomicU64::new(0) }
    }
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Self {
        Self { kind: Transport::Tcp(stream), timeout: AtomicU64::new(0) }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            Transport::Unix(s) => s.as_fd(),
            Transport::Tcp(s) => s.as_fd(),
        }
    }
}

/// The error of a deadline that passed.
fn timed_out(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl Socket {
    /// The peer of a connection to that listener. Sets the options that streams of small chunks need over TCP.
    ///
    /// # Errors
    /// The connection is already gone.
    pub(super) fn prepare(&self, listener: usize) -> io::Result<Peer> {
        match &self.kind {
            Transport::Unix(s) => {
                let cred = crate::sys::peer_cred(s)?;
                // Older kernels do not tell the other groups.
                let groups = crate::sys::peer_groups(s).unwrap_or_default();
                Ok(Peer::Unix { uid: cred.uid, gid: cred.gid, groups, pid: cred.pid, listener, note: OnceLock::new() })
            }
            Transport::Tcp(s) => {
                s.set_nodelay(true)?;
                rustix::net::sockopt::set_socket_send_buffer_size(s, TCP_SEND_BUFFER)?;
                Ok(Peer::Tcp(s.peer_addr()?))
            }
        }
    }

    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        // Zero would mean "for ever" to the kernel, and is an error to the standard library.
        let timeout = timeout.max(Duration::from_millis(1));
        let set = Duration::from_nanos(self.timeout.load(Ordering::Relaxed));
        // A slightly longer timeout will do, and saves a call for each request.
        if set >= timeout && set - timeout <= timeout / 64 {
            return Ok(());
        }
        self.timeout.store(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        match &self.kind {
            Transport::Unix(s) => s.set_read_timeout(Some(timeout)),
            Transport::Tcp(s) => s.set_read_timeout(Some(timeout)),
        }
    }

    fn read_once(&self, buf: &mut [u8]) -> io::Result<usize> {
        match &self.kind {
            Transport::Unix(s) => (&mut &*s).read(buf),
            Transport::Tcp(s) => (&mut &*s).read(buf),
        }
    }

    /// Reads what there is, waiting at most `timeout` for the first byte; 0 is the end of the stream.
    ///
    /// # Errors
    /// `TimedOut`, or the connection broke.
    pub(super) fn read(&self, buf: &mut [u8], timeout: Duration) -> io::Result<usize> {
        let deadline = after(timeout);
        let mut left = timeout;
        loop {
            self.set_read_timeout(left)?;
            match self.read_once(buf) {
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                other => return other,
            }
            // The kernel's clock is coarser than ours: only ours decides.
            left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(timed_out("read: the client sent nothing in time"));
            }
        }
    }

    /// Writes everything, as far as possible in one system call.
    ///
    /// # Errors
    /// `TimedOut` when the client took nothing for `timeout`, or the connection broke.
    pub(super) fn write_all(&self, mut parts: &mut [IoSlice<'_>], timeout: Duration) -> io::Result<()> {
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            match self.send(parts) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => IoSlice::advance_slices(&mut parts, n),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait_for_room(timeout)?,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Sends what the kernel takes at once. `NOSIGNAL`: a client that left is an error here and not the process's
    /// death.
    fn send(&self, parts: &[IoSlice<'_>]) -> rustix::io::Result<usize> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::net::sendmsg(self, parts, &mut SendAncillaryBuffer::default(), flags)
    }

    fn wait_for_room(&self, timeout: Duration) -> io::Result<()> {
        let deadline = after(timeout);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(self, PollFlags::OUT)];
            match poll(&mut fds, Some(&timespec(left))) {
                Ok(0) if left.is_zero() => return Err(timed_out("write: the client took nothing in time")),
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Writes a short message to a client that is not served, without waiting, and shuts the connection down for
    /// writing.
    pub(super) fn dismiss(&self, bytes: &[u8]) {
        // A new connection has an empty buffer: it takes the message whole, or the client is gone.
        let _ = self.send(&[IoSlice::new(bytes)]);
        self.shutdown(Shutdown::Write);
        self.discard_what_is_there();
    }

    /// Reads away what has arrived, without waiting; true if the other side has ended.
    pub(super) fn discard_or_end(&self) -> bool {
        let mut away = [0_u8; 4096];
        for _ in 0..16 {
            match rustix::net::recv(self, &mut away, rustix::net::RecvFlags::DONTWAIT) {
                Ok((n, _)) if n > 0 => {}
                Err(Errno::AGAIN | Errno::INTR) => return false,
                _ => return true,
            }
        }
        false
    }

    /// Ends one or both directions and wakes the thread that waits in the socket. A connection that is over is no
    /// error.
    pub(super) fn shutdown(&self, how: Shutdown) {
        let _ = match &self.kind {
            Transport::Unix(s) => s.shutdown(how),
            Transport::Tcp(s) => s.shutdown(how),
        };
    }

    /// Reads away what has arrived; true if anything had.
    fn discard_what_is_there(&self) -> bool {
        let mut away = [0_u8; 4096];
        let mut any = false;
        for _ in 0..16 {
            match rustix::net::recv(self, &mut away, rustix::net::RecvFlags::DONTWAIT) {
                Ok((n, _)) if n > 0 => any = true,
                _ => break,
            }
        }
        any
    }

    /// Says that no more comes, and, if the client may still be sending (`unread`, or something is there unread),
    /// listens for `linger` at most, so that it gets to read the last answer.
    pub(super) fn close_in_order(&self, unread: bool, linger: Duration) {
        self.shutdown(Shutdown::Write);
        let unread = self.discard_what_is_there() || unread;
        if !unread {
            return;
        }
        let deadline = after(linger);
        let mut away = [0_u8; 16 * 1024];
        let mut taken = 0;
        while taken < LINGER_BYTES {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.read(&mut away, left) {
                Ok(n) if n > 0 => taken += n,
                _ => break,
            }
        }
    }
}

/// The instant `timeout` from now; a year from now if that is beyond the clock's end.
pub(super) fn after(timeout: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(timeout).unwrap_or_else(|| now + Duration::from_secs(365 * 86_400))
}

/// A duration as the kernel takes it; a longer one becomes its longest.
pub(super) fn timespec(d: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(d.subsec_nanos()) }
}
