//! The server: its accept threads and its end.
//!
//! It owns the listeners, and enters every connection into the register. It must not know what connections say.
//!
//! How it ends ([`Server::drain`]): *draining* is set, and each connection checks it whenever it becomes idle, a new
//! connection at once. The accept threads are woken and joined, so that no new connection comes. Then connections
//! without a complete request are no longer read. The flag and a connection's *busy* are each written before the other
//! is read, in one order for all threads, so no connection is overlooked. Running requests are waited for until the
//! given instant, and then cut.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use super::attendant::Attendant;
use super::places::Kind;
use super::shared::{Conn, Counters, Shared};
use super::socket::Socket;
use super::{Handler, Limits, Listener, Refusal, conn, respond};
use crate::thread;

/// How long an accept thread that finds no descriptor or memory waits for a connection to end before it tries again.
const BREATH: Duration = Duration::from_secs(1);

/// What a server has seen since its start. Each number only rises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections that got a thread.
    pub accepted: u64,
    /// Connections turned away with 503 because there were too many, or no thread could be made.
    pub refused: u64,
    /// Requests whose head was read and found good.
    pub requests: u64,
    /// Requests refused for what they are: malformed, too large, not understood.
    pub protocol_errors: u64,
    /// Clients cut for being too slow: in a head, in a body, in taking an answer. Idle ones do not count.
    pub timeouts: u64,
    /// Panics of the handler.
    pub panics: u64,
}

impl Shared {
    /// Enters a connection, unless there are too many.
    fn enter(self: &Arc<Self>, conn: &Arc<Conn>) -> Result<Entry, String> {
        let mut register = self.register();
        register.places.enter(&self.limits, conn.kind, conn.listener)?;
        let id = register.next;
        register.next += 1;
        register.conns.insert(id, Arc::clone(conn));
        Ok(Entry { shared: Arc::clone(self), id, conn: Some(Arc::clone(conn)) })
    }

    /// Turns a client away without a thread. Logged once until the next client is let in.
    fn turn_away(&self, conn: &Arc<Conn>, why: String) {
        self.counters.refused.add();
        if !self.full.swap(true, Ordering::Relaxed) {
            log::warn!("http: clients are turned away: {why}");
        }
        let response = respond::refusal(&*self.handler, &Refusal::new(503, why));
        match respond::last_words(&response) {
            Ok(bytes) => {
                conn.socket.dismiss(&bytes);
                self.attendant.see_off(conn, self.limits.linger);
            }
            Err(e) => log::warn!("http: refusal: {e}"),
        }
    }

    /// Waits until a connection has ended, accepting stops, or a moment has passed.
    fn breathe(&self) {
        let register = self.register();
        let live = register.places.live();
        // A timeout is as good as an event here: the accept thread tries again.
        let _ = self.changed.wait_timeout_while(register, BREATH, |r| r.places.live() >= live && !r.stopping);
    }
}

/// A connection's place in the register, given back when its thread ends or could not be made.
struct Entry {
    shared: Arc<Shared>,
    id: u64,
    conn: Option<Arc<Conn>>,
}

impl Entry {
    fn serve(&self) {
        self.shared.counters.accepted.add();
        if let Some(conn) = &self.conn {
            conn::serve(&self.shared, conn);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let entered = self.shared.register().conns.remove(&self.id);
        // The descriptor is closed first: the thread that is woken may be waiting for one.
        drop(entered);
        let Some(conn) = self.conn.take() else { return };
        let (kind, listener, known) = (conn.kind, conn.listener, conn.known.load(Ordering::Relaxed));
        drop(conn);
        self.shared.register().places.leave(kind, listener, known);
        self.shared.changed.notify_all();
    }
}

/// A running server. Dropped, it stops accepting and cuts every connection.
pub struct Server {
    shared: Arc<Shared>,
    accepting: Mutex<Vec<Accepting>>,
}

/// A thread that accepts on one listener.
struct Accepting {
    place: usize,
    /// Readable once its listener has been replaced.
    over: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Starts to accept on all listeners, one thread each.
    ///
    /// # Errors
    /// No thread or descriptor can be made, or a listener cannot be polled.
    pub fn start(listeners: Vec<Listener>, limits: Limits, handler: Arc<dyn Handler>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            handler,
            limits,
            counters: Counters::default(),
            register: Mutex::default(),
            changed: Condvar::new(),
            draining: AtomicBool::new(false),
            full: AtomicBool::new(false),
            attendant: Attendant::start()?,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let server = Self { shared, accepting: Mutex::default() };
        for (place, listener) in listeners.into_iter().enumerate() {
            let accepting = server.accept(place, listener)?;
            server.accept_threads().push(accepting);
        }
        Ok(server)
    }

    /// Accepts on a listener from now on.
    fn accept(&self, place: usize, listener: Listener) -> io::Result<Accepting> {
        // The client may be gone between poll and accept, which must not block the thread.
        match &listener {
            Listener::Unix(l) => l.set_nonblocking(true)?,
            Listener::Tcp(l) => l.set_nonblocking(true)?,
        }
        let over = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (shared, ends) = (Arc::clone(&self.shared), Arc::clone(&over));
        let accept = move || accept_all(&shared, &listener, place, &ends);
        let thread = thread::spawn_own("http-accept", thread::IO_STACK, accept)?;
        Ok(Accepting { place, over, thread })
    }

    /// Replaces a listener; clients that have connected to the old one are still served. A server that has stopped
    /// accepting takes none.
    ///
    /// # Errors
    /// As [`Server::start`]; the old one stays.
    pub fn replace(&self, place: usize, listener: Listener) -> io::Result<()> {
        let mut threads = self.accept_threads();
        if self.shared.register().stopping {
            return Ok(());
        }
        let new = self.accept(place, listener)?;
        let (old, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut *threads).into_iter().partition(|a| a.place == place);
        *threads = rest;
        threads.push(new);
        drop(threads);
        for accepting in old {
            let _ = rustix::io::write(&accepting.over, &1_u64.to_ne_bytes());
            let _ = accepting.thread.join();
        }
        Ok(())
    }

    fn accept_threads(&self) -> MutexGuard<'_, Vec<Accepting>> {
        self.accepting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many connections there are, including idle and ending connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.register().places.live()
    }

    /// What has happened so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let c = &self.shared.counters;
        Stats {
            accepted: c.accepted.get(),
            refused: c.refused.get(),
            requests: c.requests.get(),
            protocol_errors: c.protocol_errors.get(),
            timeouts: c.timeouts.get(),
            panics: c.panics.get(),
        }
    }

    /// Ends the accept threads and closes the listeners' descriptors; when it returns, nobody new is let in. A socket
    /// that a service manager also holds keeps its queue. Connections go on. A second call does nothing.
    pub fn stop_accepting(&self) {
        self.shared.register().stopping = true;
        self.shared.changed.notify_all();
        // A failed write means that the counter is full, so the descriptor is readable.
        let _ = rustix::io::write(&self.shared.wake, &1_u64.to_ne_bytes());
        let threads = std::mem::take(&mut *self.accept_threads());
        for Accepting { thread, .. } in threads {
            // An accept thread waits only for `wake` and `changed`. The panic hook has logged its panic.
            let _ = thread.join();
        }
    }

    /// Ends the server in order: stops accepting; ends idle connections, and those whose request is not yet complete;
    /// lets every answer in work be finished, with `Connection: close`; waits for that until `until` at the latest, and
    /// cuts what is left. Returns how many connections were cut. A handler that does not return keeps its thread.
    pub fn drain(&self, until: Instant) -> usize {
        // The flag first, so that whoever finds the listener closed also finds every answer to be the last.
        self.shared.draining.store(true, Ordering::SeqCst);
        self.stop_accepting();
        let all: Vec<Arc<Conn>> = self.shared.register().conns.values().cloned().collect();
        for conn in all {
            if !conn.busy.load(Ordering::SeqCst) {
                conn.socket.shutdown(Shutdown::Read);
            }
        }
        let left = until.saturating_duration_since(Instant::now());
        let waited = self.shared.changed.wait_timeout_while(self.shared.register(), left, |r| r.places.live() > 0);
        let (register, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let rest: Vec<Arc<Conn>> = register.conns.values().cloned().collect();
        drop(register);
        for conn in &rest {
            conn.socket.shutdown(Shutdown::Both);
        }
        rest.len()
    }
}

#[cfg(test)]
impl Server {
    /// Waits until there are so many connections; false if that takes longer than anybody would wait.
    pub(super) fn wait_for_connections(&self, n: usize) -> bool {
        let patience = Duration::from_secs(60);
        let begun = Instant::now();
        let waited = self.shared.changed.wait_timeout_while(self.shared.register(), patience, |r| r.places.live() != n);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() && begun.elapsed() < patience
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.drain(Instant::now());
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Unix(l) => l.as_fd(),
            Listener::Tcp(l) => l.as_fd(),
        }
    }
}

impl Listener {
    fn accept(&self) -> io::Result<Socket> {
        match self {
            Listener::Unix(l) => l.accept().map(|(s, _)| Socket::from(s)),
            Listener::Tcp(l) => l.accept().map(|(s, _)| Socket::from(s)),
        }
    }
}

/// The accept thread. It waits for the listener, the wake, or the end of its place, and for nothing else but a breath
/// when the system is out of descriptors.
fn accept_all(shared: &Arc<Shared>, listener: &Listener, place: usize, over: &OwnedFd) {
    let mut starved = false;
    loop {
        let fd = PollFd::new(listener, PollFlags::IN);
        let mut fds = [fd, PollFd::new(&shared.wake, PollFlags::IN), PollFd::new(over, PollFlags::IN)];
        let error = match poll(&mut fds, None) {
            Ok(_) if !fds[1].revents().is_empty() => return,
            // Whoever waits there already is still taken in.
            Ok(_) if fds[0].revents().is_empty() && !fds[2].revents().is_empty() => return,
            Ok(_) => listener.accept().map(|socket| admit(shared, socket, place)).err(),
            Err(e) => Some(e.into()),
        };
        match error {
            None => starved = false,
            Some(e) if concerns_one_client(&e) => {}
            Some(e) => {
                // The listener stays readable, so without a pause this would be a busy loop.
                if !starved {
                    log::warn!("http: accept: {e}; trying again as connections end");
                }
                starved = true;
                shared.breathe();
            }
        }
    }
}

/// Whether an error of accept used up the one connection that it is about (see accept(2)).
fn concerns_one_client(e: &io::Error) -> bool {
    const PASSING: [Errno; 12] = [
        Errno::AGAIN,
        Errno::INTR,
        Errno::CONNABORTED,
        Errno::PERM,
        Errno::PROTO,
        Errno::NETDOWN,
        Errno::NOPROTOOPT,
        Errno::HOSTDOWN,
        Errno::NONET,
        Errno::HOSTUNREACH,
        Errno::OPNOTSUPP,
        Errno::NETUNREACH,
    ];
    Errno::from_io_error(e).is_some_and(|e| PASSING.contains(&e))
}

fn admit(shared: &Arc<Shared>, socket: Socket, listener: usize) {
    // One that is gone already needs no place.
    let Ok(peer) = socket.prepare(listener) else { return };
    let kind = Kind::of(&peer, rustix::process::geteuid().as_raw());
    let (known, busy) = (AtomicBool::new(false), AtomicBool::new(false));
    let conn = Arc::new(Conn { socket, listener, peer, kind, known, busy });
    let entry = match shared.enter(&conn) {
        Ok(entry) => entry,
        Err(why) => return shared.turn_away(&conn, why),
    };
    match thread::spawn("http", shared.limits.stack, move || entry.serve()) {
        Ok(_detached) => shared.full.store(false, Ordering::Relaxed),
        Err(e) => shared.turn_away(&conn, format!("no thread for this connection: {e}")),
    }
}
