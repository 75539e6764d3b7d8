//! The daemon's end of a connection to a shim: a greeting in which both prove who they are, then frames both ways, without
//! blocking. Whoever owns a [`Client`] polls its descriptor with its own.
//!
//! It must not know what the agent says, and keeps no more of it than the packet that was read last.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::conn::{Broken, Received, address, receive, receive_into, send};
use super::frame::{
    Attach, Attached, Code, Confined, Exit, Kept, Ladder, PACKET, PAYLOAD, Reply, Request, Rung, Taken, VERSION, Who,
    input_header, start_header,
};
use super::launch::SocketName;
use super::proof::{self, Challenges, Claim, NONCE, Place, Token};
use super::start::Start;
use crate::sys;

/// The most bytes that may wait to be sent; the same as what a shim takes.
pub const OUTGOING_LIMIT: usize = 64 * 1024 * 1024;

/// The memory that is kept from one packet to the next.
const SMALL: usize = 8 * 1024;

/// Who the daemon is, and whose shim it expects.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// What the two share.
    pub token: Token,
    /// Where the daemon lives.
    pub place: Place,
    /// The number of its boot.
    pub boot: u64,
    /// The offset up to which it has kept the agent's output.
    pub from: u64,
}

/// Why there is no connection.
#[derive(Debug)]
pub enum Refusal {
    /// Nobody listens there (any more), or the connection broke.
    Gone(io::Error),
    /// It did not answer in time.
    Late,
    /// The shim speaks another version: that one.
    Version(u64),
    /// Whoever listens there is not this daemon's shim. It was told nothing that it could use.
    Impostor(&'static str),
    /// The shim refused.
    Refused {
        /// Why.
        code: Code,
        /// See [`Code`].
        number: u64,
        /// For a person.
        text: String,
    },
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gone(e) => write!(f, "the shim is gone: {e}"),
            Self::Late => f.write_str("the shim does not answer"),
            Self::Version(version) => write!(f, "the shim speaks version {version} of the protocol, not {VERSION}"),
            Self::Impostor(why) => write!(f, "this is not the session's shim: {why}"),
            Self::Refused { text, .. } => write!(f, "the shim refused: {text}"),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Broken> for Refusal {
    fn from(_: Broken) -> Self {
        Self::Gone(io::ErrorKind::BrokenPipe.into())
    }
}

/// What a shim tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The agent was started.
    Started {
        /// Its process.
        agent: Who,
        /// Its confinement.
        confined: Confined,
    },
    /// The agent's input stands so. Frames up to the highest need not be sent again.
    Taken(Taken),
    /// Output, each byte once and in order.
    Output {
        /// The offset of its first byte.
        offset: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// What the agent wrote to stderr.
    Stderr {
        /// How many bytes before it were dropped.
        dropped: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// The spool is full or fails, or does not any more.
    Spool(Kept),
    /// The agent is being ended, or has ended by itself. Output may still come.
    Ending,
    /// The agent has closed its stdout, and all that it wrote there came. It may live on.
    EndOfOutput,
    /// All is over. Acknowledge it once it is kept.
    Exit(Exit),
    /// Something went wrong: the agent was not started, or a frame was not taken.
    Trouble {
        /// What.
        code: Code,
        /// See [`Code`].
        number: u64,
        /// For a person.
        text: &'a str,
    },
}

/// Why a connection is over. The shim goes on, unless it said that it leaves; another connection may be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It was closed by the shim, which may be dead.
    Closed,
    /// A newer boot, or another connection of this one, took its place.
    Superseded,
    /// The shim said what no shim says, or that this side did.
    Protocol(String),
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed => f.write_str("the shim closed the connection"),
            Self::Superseded => f.write_str("another connection took this one's place"),
            Self::Protocol(why) => write!(f, "protocol error: {why}"),
        }
    }
}

impl std::error::Error for Lost {}

/// A greeting under way.
#[derive(Debug)]
pub struct Greeting {
    socket: OwnedFd,
    daemon: Daemon,
    nonce: [u8; NONCE],
    proved: bool,
    shim: Who,
}

impl Greeting {
    /// Connects to a shim by its name in a directory, and sends the first packet. It does not wait.
    ///
    /// # Errors
    /// Nobody listens there, or too many wait already ([`Refusal::Late`]).
    pub fn begin(dir: BorrowedFd<'_>, name: &SocketName, daemon: Daemon) -> Result<Self, Refusal> {
        Self::begin_within(dir, name, daemon, Duration::ZERO)
    }

    /// The same; waits for so long at most while too many others wait.
    fn begin_within(
        dir: BorrowedFd<'_>,
        name: &SocketName,
        daemon: Daemon,
        patience: Duration,
    ) -> Result<Self, Refusal> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};
        let gone = |e: Errno| Refusal::Gone(e.into());
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(gone)?;
        let address = address(dir, name.as_str()).map_err(Refusal::Gone)?;
        if patience.is_zero() {
            rustix::io::ioctl_fionbio(&socket, true).map_err(gone)?;
        } else {
            // The time of a blocking connect, too.
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(patience)).map_err(gone)?;
        }
        connect(&socket, &address).map_err(|e| match e {
            Errno::AGAIN | Errno::INTR => Refusal::Late,
            e => gone(e),
        })?;
        rustix::io::ioctl_fionbio(&socket, true).map_err(gone)?;
        let nonce = proof::random().map_err(Refusal::Gone)?;
        let mut packet = Vec::new();
        Request::Hello { version: VERSION, nonce }.encode(&mut packet);
        send(&socket, &[&packet])?;
        Ok(Self { socket, daemon, nonce, proved: false, shim: Who::default() })
    }

    /// Readable when [`Self::proceed`] has something to do.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes the next packet, if one is there; `None`: wait.
    ///
    /// # Errors
    /// It is not the daemon's shim, or refuses.
    pub fn proceed(&mut self) -> Result<Option<Attached>, Refusal> {
        let mut buffer = [0; 2048];
        let length = match receive(&self.socket, &mut buffer) {
            Received::Packet(length) => length,
            Received::Nothing => return Ok(None),
            Received::Over => return Err(Broken.into()),
        };
        match Reply::decode(&buffer[..length]) {
            Ok(Reply::Challenge { version: VERSION, nonce, shim, place, proof }) if !self.proved => {
                self.answer(nonce, shim, place, proof).map(|()| None)
            }
            Ok(Reply::Attached(attached)) if self.proved => Ok(Some(attached)),
            Ok(Reply::Error { code: Code::Version, number, .. }) => Err(Refusal::Version(number)),
            Ok(Reply::Error { code, number, text }) => Err(Refusal::Refused { code, number, text: text.to_owned() }),
            _ => Err(Refusal::Impostor("it says what no shim says")),
        }
    }

    /// Looks at what the shim claims, and claims what the daemon is. Nothing is claimed to an impostor.
    fn answer(&mut self, nonce: [u8; NONCE], shim: Who, place: Place, proof: [u8; 32]) -> Result<(), Refusal> {
        let peer = sys::peer_cred(&self.socket).map_err(Refusal::Gone)?;
        if peer.uid != rustix::process::geteuid().as_raw() {
            return Err(Refusal::Impostor("it belongs to another user"));
        }
        // Who listens, by the kernel, and not who passes packets on.
        if peer.pid.and_then(|pid| u32::try_from(pid).ok()) != Some(shim.pid) {
            return Err(Refusal::Impostor("another process listens"));
        }
        let both = Challenges { daemon: self.nonce, shim: nonce };
        let claim = Claim::Shim { pid: shim.pid, start: shim.start };
        if !proof::holds(&proof, &self.daemon.token, VERSION, &both, &place, &claim) {
            return Err(Refusal::Impostor("its proof is wrong"));
        }
        if place != self.daemon.place {
            return Err(Refusal::Impostor("it belongs to another state directory, or another boot of the machine"));
        }
        let Daemon { token, place, boot, from } = &self.daemon;
        let claim = Claim::Daemon { pid: std::process::id(), boot: *boot, from: *from };
        let proof = proof::prove(token, VERSION, &both, place, &claim);
        let mut packet = Vec::new();
        Request::Attach(Attach { boot: *boot, from: *from, place: *place, proof }).encode(&mut packet);
        send(&self.socket, &[&packet])?;
        (self.proved, self.shim) = (true, shim);
        Ok(())
    }

    /// The connection, once [`Self::proceed`] said that the shim is attached.
    #[must_use]
    pub fn into_client(self) -> Client {
        Client {
            socket: self.socket,
            shim: self.shim,
            expected: self.daemon.from,
            outgoing: VecDeque::new(),
            waiting: 0,
            buffer: Vec::new(),
        }
    }
}

/// Something that waits to be sent.
#[derive(Debug)]
enum Outgoing {
    /// A packet.
    Packet(Vec<u8>),
    /// A frame for the agent's input, and how much of it was sent.
    Input(u64, Vec<u8>, usize),
    /// What to start, likewise.
    Start(Vec<u8>, usize),
}

/// A connection to a shim.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    shim: Who,
    /// The offset of the next byte of output.
    expected: u64,
    outgoing: VecDeque<Outgoing>,
    /// The bytes of it.
    waiting: usize,
    buffer: Vec<u8>,
}

impl Client {
    /// Connects and greets, over by that instant. Beside it `also` is not watched: a thread that must hear something else
    /// meanwhile uses [`Greeting`].
    ///
    /// # Errors
    /// It is not the daemon's shim, refuses, or is late.
    pub fn attach(
        dir: BorrowedFd<'_>,
        name: &SocketName,
        daemon: Daemon,
        until: Instant,
    ) -> Result<(Self, Attached), Refusal> {
        let patience = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let mut greeting = Greeting::begin_within(dir, name, daemon, patience)?;
        loop {
            if let Some(attached) = greeting.proceed()? {
                return Ok((greeting.into_client(), attached));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Refusal::Late);
            }
            wait(greeting.descriptor(), PollFlags::IN, left).map_err(Refusal::Gone)?;
        }
    }

    /// The shim's own process.
    #[must_use]
    pub const fn shim(&self) -> Who {
        self.shim
    }

    /// Its descriptor: readable when [`Self::receive`] has something.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether the descriptor is to be watched for room, too: [`Self::flush`] sends more then.
    #[must_use]
    pub fn wants_to_write(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// How many bytes wait to be sent.
    #[must_use]
    pub const fn waiting(&self) -> usize {
        self.waiting
    }

    /// The offset of the next byte of output: all before it was received.
    #[must_use]
    pub const fn received(&self) -> u64 {
        self.expected
    }

    /// Starts the agent. What comes of it is [`Event::Started`], or [`Event::Trouble`].
    ///
    /// # Errors
    /// The connection is over.
    pub fn start(&mut self, start: &Start) -> Result<(), Lost> {
        self.put(Outgoing::Start(start.encode(), 0))
    }

    /// Sends a frame for the agent's input. It has reached the shim for good when [`Event::Taken`] has its number.
    ///
    /// # Errors
    /// The connection is over, or too much waits already.
    pub fn input(&mut self, number: u64, bytes: Vec<u8>) -> Result<(), Lost> {
        self.put(Outgoing::Input(number, bytes, 0))
    }

    /// Sends the frame that ends the agent's input.
    ///
    /// # Errors
    /// The connection is over.
    pub fn close_input(&mut self, number: u64) -> Result<(), Lost> {
        self.request(&Request::CloseInput { number })
    }

    /// Says that output up to an offset is kept for good.
    ///
    /// # Errors
    /// The connection is over.
    pub fn acknowledge(&mut self, offset: u64) -> Result<(), Lost> {
        self.request(&Request::Ack { offset })
    }

    /// Says that the exit is kept for good. The shim leaves.
    ///
    /// # Errors
    /// The connection is over.
    pub fn acknowledge_exit(&mut self) -> Result<(), Lost> {
        self.request(&Request::AckExit)
    }

    /// Says how long the agent may work on without a connection, and with `lease` how long at all unless this is said
    /// again.
    ///
    /// # Errors
    /// The connection is over.
    pub fn orphan(&mut self, after: Duration, lease: Option<Duration>) -> Result<(), Lost> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        // A lease that is over is one of a moment; nought would be none.
        self.request(&Request::Orphan { after: millis(after), lease: lease.map_or(0, |l| millis(l).max(1)) })
    }

    /// Ends the agent, from a rung on.
    ///
    /// # Errors
    /// The connection is over.
    pub fn end(&mut self, rung: Rung, ladder: Ladder) -> Result<(), Lost> {
        self.request(&Request::End { rung, ladder })
    }

    fn request(&mut self, request: &Request<'_>) -> Result<(), Lost> {
        let mut packet = Vec::new();
        request.encode(&mut packet);
        self.put(Outgoing::Packet(packet))
    }

    fn put(&mut self, outgoing: Outgoing) -> Result<(), Lost> {
        let (Outgoing::Packet(bytes) | Outgoing::Input(_, bytes, _) | Outgoing::Start(bytes, _)) = &outgoing;
        if self.waiting.saturating_add(bytes.len()) > OUTGOING_LIMIT + PACKET {
            return Err(Lost::Protocol("too much waits to be sent".to_owned()));
        }
        self.waiting += bytes.len();
        self.outgoing.push_back(outgoing);
        self.flush()
    }

    /// Sends what the socket takes now.
    ///
    /// # Errors
    /// The connection is over. What is there to be read is still there.
    pub fn flush(&mut self) -> Result<(), Lost> {
        while let Some(first) = self.outgoing.front_mut() {
            let (sent, done) = match first {
                Outgoing::Packet(packet) => (send(&self.socket, &[packet]), Some(packet.len())),
                Outgoing::Input(number, bytes, from) => {
                    let (number, last, piece) = (*number, bytes.len() - *from <= PAYLOAD, next_piece(bytes, *from));
                    let sent = send(&self.socket, &[&input_header(number, last, piece.len()), piece]);
                    let (more, length) = (piece.len(), bytes.len());
                    *from += if sent == Ok(true) { more } else { 0 };
                    (sent, last.then_some(length))
                }
                Outgoing::Start(bytes, from) => {
                    let (last, piece) = (bytes.len() - *from <= PAYLOAD, next_piece(bytes, *from));
                    let sent = send(&self.socket, &[&start_header(last, piece.len()), piece]);
                    let (more, length) = (piece.len(), bytes.len());
                    *from += if sent == Ok(true) { more } else { 0 };
                    (sent, last.then_some(length))
                }
            };
            match (sent, done) {
                (Ok(true), Some(bytes)) => {
                    self.outgoing.pop_front();
                    self.waiting -= bytes;
                }
                (Ok(true), None) => {}
                (Ok(false), _) => return Ok(()),
                (Err(Broken), _) => return Err(Lost::Closed),
            }
        }
        Ok(())
    }

    /// The next thing that the shim tells; `None`: nothing now.
    ///
    /// # Errors
    /// The connection is over.
    pub fn receive(&mut self) -> Result<Option<Event<'_>>, Lost> {
        match receive_into(&self.socket, &mut self.buffer) {
            Received::Packet(_) => {}
            Received::Nothing => {
                if self.buffer.capacity() > SMALL {
                    self.buffer = Vec::new();
                }
                return Ok(None);
            }
            Received::Over => return Err(Lost::Closed),
        }
        let wrong = |why: &str| Lost::Protocol(why.to_owned());
        match Reply::decode(&self.buffer).map_err(|e| wrong(e.0))? {
            Reply::Challenge { .. } | Reply::Attached(_) => Err(wrong("a greeting in the middle")),
            Reply::Started { agent, confined } => Ok(Some(Event::Started { agent, confined })),
            Reply::Taken(taken) => Ok(Some(Event::Taken(taken))),
            Reply::Output { offset, bytes } => {
                if offset != self.expected {
                    return Err(wrong("output is missing, or came twice"));
                }
                self.expected += bytes.len() as u64;
                Ok(Some(Event::Output { offset, bytes }))
            }
            Reply::Stderr { dropped, bytes } => Ok(Some(Event::Stderr { dropped, bytes })),
            Reply::Spool(kept) => Ok(Some(Event::Spool(kept))),
            Reply::Ending => Ok(Some(Event::Ending)),
            Reply::EndOfOutput => Ok(Some(Event::EndOfOutput)),
            Reply::Exit(exit) => Ok(Some(Event::Exit(exit))),
            Reply::Error { code: Code::Superseded | Code::Stale, .. } => Err(Lost::Superseded),
            Reply::Error { code: Code::Protocol, text, .. } => Err(Lost::Protocol(text.to_owned())),
            Reply::Error { code, number, text } => Ok(Some(Event::Trouble { code, number, text })),
        }
    }

    /// Waits until there is something to receive, or, while something waits to be sent, room for it; for so long at most.
    /// Whether there is. For a thread that waits for nothing else.
    ///
    /// # Errors
    /// The system cannot poll.
    pub fn wait(&self, time: Duration) -> io::Result<bool> {
        let flags = if self.wants_to_write() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        wait(self.descriptor(), flags, time)
    }
}

fn next_piece(bytes: &[u8], from: usize) -> &[u8] {
    &bytes[from..][..(bytes.len() - from).min(PAYLOAD)]
}

fn wait(fd: BorrowedFd<'_>, flags: PollFlags, time: Duration) -> io::Result<bool> {
    let time = time.try_into().map_err(io::Error::other)?;
    match poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&time)) {
        Ok(n) => Ok(n > 0),
        Err(Errno::INTR) => Ok(true),
        Err(e) => Err(e.into()),
    }
}
