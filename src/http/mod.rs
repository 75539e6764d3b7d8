//! A small synchronous HTTP/1.1 server: one thread a connection, every wait with a deadline, every size with a bound.
//!
//! It owns the sockets, the framing (RFC 9112), the limits and the orderly end; a [`Handler`] answers. It knows nothing
//! of sessions, routes or JSON bodies, and must stay so: what a path means is the handler's business.
//!
//! The life of a connection: the accept thread counts it and gives it a thread (or answers 503). The thread waits for a
//! head (`head.rs`), lets the handler look at it ([`Handler::gate`]), reads the body (`body.rs`), lets the handler
//! answer through a [`Responder`] (`respond.rs`), and begins again unless one side wants to close. Whatever is ambiguous
//! about where a message ends is refused and ends the connection: that is how requests get smuggled.
//!
//! ```text
//! server.rs   Server, accept threads, drain
//! shared.rs   what the threads share: handler, limits, counters, the register of connections
//! places.rs   how many connections there may be, and whose
//! client.rs   a connected client
//! attendant.rs  one thread that watches the clients of waiting streams, and those that were turned away
//! conn.rs     the loop of one connection
//! input.rs    the bytes that were read and not yet used
//! head.rs     request line and header fields, and what they say about the body
//! body.rs     Content-Length and chunked bodies
//! respond.rs  answers, whole or streamed
//! socket.rs   a unix or TCP stream with deadlines
//! sse.rs      the text of server-sent events, written
//! ```

use std::borrow::Cow;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;
use std::sync::OnceLock;
use std::time::Duration;

mod attendant;
mod body;
mod client;
mod conn;
mod head;
mod input;
mod places;
mod respond;
mod server;
mod shared;
mod socket;
pub mod sse;
#[cfg(test)]
mod tests;

pub use attendant::{Alarm, Hangup, Watch};
pub use head::Head;
pub use respond::{Responder, Response, Stream};
pub use server::{Server, Stats};

/// A bound and listening socket. When the server stops accepting it closes its descriptor and does nothing else to the
/// socket: one that a service manager keeps open too goes on queueing clients for whoever comes next.
#[derive(Debug)]
pub enum Listener {
    /// A unix socket; the file belongs to whoever bound it, and is never unlinked here.
    Unix(UnixListener),
    /// A TCP socket.
    Tcp(TcpListener),
}

/// Who is on the other side of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A process of this machine, as the kernel vouches for it at the time of its connect.
    Unix {
        /// Its effective user.
        uid: u32,
        /// Its effective group.
        gid: u32,
        /// Its other groups.
        groups: Vec<u32>,
        /// Its process id, if it is visible from here. For logs alone: it may have ended and been given anew.
        pid: Option<i32>,
        /// The socket that it came to: its place among the listeners that the server was started with.
        listener: usize,
        /// What the handler found out about it, once for the connection.
        note: OnceLock<Option<String>>,
    },
    /// An address, which proves nothing.
    Tcp(SocketAddr),
}

/// The bounds of a server. All are in force for each connection on its own, but for [`Limits::max_connections`].
#[derive(Clone, Debug)]
pub struct Limits {
    /// The most bytes of a request's line and header fields together; beyond it 431 (414 if the line alone is longer).
    pub head_bytes: usize,
    /// The most header fields; beyond it 431.
    pub headers: usize,
    /// How long a whole head may take, from its first byte (on a new connection from the accept); then 408.
    pub head_timeout: Duration,
    /// How long a connection may stay idle between two requests; then it is closed without a word.
    pub idle_timeout: Duration,
    /// How long a whole body may take, beside what [`Limits::body_rate`] grants; then 408.
    pub body_timeout: Duration,
    /// Bytes a second that a body must bring: each byte received extends the deadline by its share of a second.
    pub body_rate: u64,
    /// How long a write may wait for a client that takes nothing; then the connection is cut.
    pub write_timeout: Duration,
    /// How long a connection that is closed with input unread is still listened to, so that its client gets to read the
    /// answer. Closing at once would make the kernel send a reset, which can overtake it.
    pub linger: Duration,
    /// The most connections at once; beyond it a client gets 503 with `Retry-After` and is closed.
    pub max_connections: usize,
    /// Of these, places for root and the server's own user on unix sockets, and nobody else; a quarter at most.
    pub kept: usize,
    /// On each listener, the most connections of others that have not had a request let in yet ([`Handler::gate`]); half of
    /// those at most.
    pub unknown: usize,
    /// Bytes of stack of a connection's thread.
    pub stack: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 16 * 1024,
            headers: 64,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(10),
            body_rate: 16 * 1024,
            write_timeout: Duration::from_secs(10),
            linger: Duration::from_secs(2),
            max_connections: 4096,
            kept: 64,
            unknown: 256,
            stack: 512 * 1024,
        }
    }
}

/// A request with its whole body.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its line and header fields.
    pub head: Head,
    /// Its body, decoded; empty if it has none.
    pub body: Vec<u8>,
    /// Who sent it.
    pub peer: Peer,
}

/// What answers requests. Its methods are called on the connections' threads, many at once.
///
/// A panic in any of them costs its connection, after a 500 if nothing was sent yet.
pub trait Handler: Send + Sync + 'static {
    /// The most bytes this request's body may have, judged by its head; beyond it 413.
    fn body_limit(&self, head: &Head) -> u64 {
        let _ = head;
        4 << 20
    }

    /// A look at a client as soon as its connection is there, before anything is read: it may be gone by the first request.
    fn meet(&self, peer: &Peer, socket: BorrowedFd<'_>) {
        let _ = (peer, socket);
    }

    /// A look before the body is read (authority, 404, 405): `Some` refuses the request with that answer, leaves its
    /// body unread and closes the connection.
    fn gate(&self, head: &Head, peer: &Peer) -> Option<Response> {
        let _ = (head, peer);
        None
    }

    /// Answers a request through `out`. One that returns without having answered gives the client a 500.
    ///
    /// # Errors
    /// What `out` gave: the client is gone or took too long. The connection ends; nobody else is told.
    fn handle(&self, request: Request, out: Responder<'_>) -> io::Result<()>;

    /// How the server's own refusals look (400, 408, 413, 414, 417, 431, 500, 501, 503, 505). The server adds
    /// `Retry-After` to a 503, and `Connection: close` to all.
    fn error(&self, status: u16, what: &str) -> Response {
        Response::new(status).header("Content-Type", "text/plain; charset=utf-8").body(format!("{what}\n"))
    }
}

/// Why a request is not served: the status, and a sentence for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refusal {
    status: u16,
    what: Cow<'static, str>,
}

impl Refusal {
    fn new(status: u16, what: impl Into<Cow<'static, str>>) -> Self {
        Self { status, what: what.into() }
    }

    fn bad(what: impl Into<Cow<'static, str>>) -> Self {
        Self::new(400, what)
    }
}
