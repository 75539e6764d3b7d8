//! The attendant: one thread that watches the clients that no other thread reads from.
//!
//! It owns two kinds. Clients of waiting streams: when such a client hangs up, the stream is told at once, so that it
//! does not hold its place until the next ping. And clients that were turned away: they have no thread, and their
//! connection stays open for a moment, because closing it at once would reset it before they read the answer.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::client::Conn;
use super::places::Kind;
use super::socket::timespec;
use crate::thread;

/// How a client hung up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hangup {
    /// It will send no more. It may be gone, which a write finds out, or it may wait for the rest of the answer.
    Perhaps,
    /// It is gone.
    Gone,
}

/// The callback for it.
pub type Alarm = Arc<dyn Fn(Hangup) + Send + Sync>;

/// The most clients that were turned away and are still open: of root and our own user, and of all others.
const TURNED_AWAY: [usize; 2] = [64, 256];
/// For the wake's own descriptor.
const WAKE: u64 = 0;

enum Client {
    Stream(Alarm),
    TurnedAway(Arc<Conn>),
}

#[derive(Default)]
struct Watched {
    last: u64,
    clients: HashMap<u64, Client>,
    /// The clients that were turned away, in the order of the instants at which they are closed.
    until: VecDeque<(Instant, u64)>,
    turned_away: [usize; 2],
    leaving: bool,
}

impl Watched {
    fn forget(&mut self, id: u64) -> Option<Client> {
        let client = self.clients.remove(&id)?;
        if let Client::TurnedAway(conn) = &client {
            self.turned_away[class(conn)] -= 1;
        }
        Some(client)
    }
}

fn class(conn: &Conn) -> usize {
    usize::from(conn.kind != Kind::Own)
}

struct Attended {
    epoll: OwnedFd,
    wake: OwnedFd,
    state: Mutex<Watched>,
}

impl Attended {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a client in; its events come from now on, including those that are there already.
    fn enter(&self, conn: &Arc<Conn>, client: Client, events: EventFlags) -> io::Result<u64> {
        let mut state = self.lock();
        state.last += 1;
        let id = state.last;
        epoll::add(&self.epoll, &conn.socket, EventData::new_u64(id), events)?;
        state.clients.insert(id, client);
        Ok(id)
    }

    fn poke(&self) {
        // A failed write means that the counter is full, so the descriptor is readable.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// The thread and what it watches.
pub(super) struct Attendant {
    shared: Arc<Attended>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Attendant {
    pub fn start() -> io::Result<Self> {
        let shared = Arc::new(Attended {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            state: Mutex::default(),
        });
        epoll::add(&shared.epoll, &shared.wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        let own = Arc::clone(&shared);
        let thread = thread::spawn_own("http-attendant", thread::IO_STACK, move || attend(&own))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Watches a stream's client until what is returned is dropped.
    pub fn watch(&self, conn: &Arc<Conn>, alarm: Alarm) -> io::Result<Watch> {
        // Edge-triggered: a client that only sends no more would else wake this thread without end.
        let events = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR | EventFlags::ET;
        let id = self.shared.enter(conn, Client::Stream(alarm), events)?;
        Ok(Watch { shared: Arc::clone(&self.shared), conn: Arc::clone(conn), id })
    }

    /// Keeps a client that was turned away open for a moment. Beyond the limit it is closed at once.
    pub fn see_off(&self, conn: &Arc<Conn>, linger: Duration) {
        let class = class(conn);
        {
            let mut state = self.shared.lock();
            if state.turned_away[class] >= TURNED_AWAY[class] || state.leaving {
                return;
            }
            state.turned_away[class] += 1;
        }
        let client = Client::TurnedAway(Arc::clone(conn));
        match self.shared.enter(conn, client, EventFlags::IN | EventFlags::RDHUP) {
            Ok(id) => {
                self.shared.lock().until.push_back((super::socket::after(linger), id));
                self.shared.poke();
            }
            Err(_) => self.shared.lock().turned_away[class] -= 1,
        }
    }
}

impl Drop for Attendant {
    fn drop(&mut self) {
        self.shared.lock().leaving = true;
        self.shared.poke();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

/// A client that is watched.
pub struct Watch {
    shared: Arc<Attended>,
    conn: Arc<Conn>,
    id: u64,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let gone = self.shared.lock().forget(self.id);
        let _ = epoll::delete(&self.shared.epoll, &self.conn.socket);
        drop(gone);
    }
}

/// The thread. It waits for clients, for the wake, or until the next one is let go.
fn attend(shared: &Attended) {
    let mut events: Vec<Event> = Vec::with_capacity(64);
    loop {
        let until = {
            let state = shared.lock();
            if state.leaving {
                return;
            }
            state.until.front().map(|(at, _)| *at)
        };
        let left = until.map(|at| timespec(at.saturating_duration_since(Instant::now()) + Duration::from_millis(1)));
        events.clear();
        match epoll::wait(&shared.epoll, rustix::buffer::spare_capacity(&mut events), left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => {
                log::error!("http: clients that hang up are no longer noticed: {e}");
                return;
            }
        }
        for event in &events {
            let (flags, id) = (event.flags, event.data.u64());
            if id == WAKE {
                let _ = rustix::io::read(&shared.wake, &mut [0_u8; 8]);
            } else {
                see_to(shared, id, flags);
            }
        }
        let_go(shared, Instant::now());
    }
}

fn see_to(shared: &Attended, id: u64, flags: EventFlags) {
    let mut state = shared.lock();
    match state.clients.get(&id) {
        Some(Client::Stream(alarm)) => {
            let alarm = Arc::clone(alarm);
            drop(state);
            let gone = flags.intersects(EventFlags::HUP | EventFlags::ERR);
            alarm(if gone { Hangup::Gone } else { Hangup::Perhaps });
        }
        // After it has read the answer it closes its end.
        Some(Client::TurnedAway(conn)) if !conn.socket.discard_or_end() => {}
        Some(Client::TurnedAway(_)) => drop(state.forget(id)),
        // It was closed a moment ago.
        None => {}
    }
}

/// Closes the clients whose time is over.
fn let_go(shared: &Attended, now: Instant) {
    let mut state = shared.lock();
    while let Some((at, id)) = state.until.front().copied()
        && (at <= now || !state.clients.contains_key(&id))
    {
        state.until.pop_front();
        drop(state.forget(id));
    }
}
