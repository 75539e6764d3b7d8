//! The shim's end of a connection: the greeting with a peer that has proved nothing yet, and what an attached daemon has
//! been told. Nothing waits in a queue: what is to be told is what differs from what was.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use super::frame::{Attach, Code, Kept, PACKET, Reply, Request, Taken, VERSION, Who};
use super::machine::Millis;
use super::proof::{self, Challenges, Claim, Place, Token};

/// Why a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// Sends a packet. `Ok(false)`: not now.
///
/// # Errors
/// The connection is over.
pub fn send(socket: impl AsFd, parts: &[&[u8]]) -> Result<bool, Broken> {
    let slices: [IoSlice<'_>; 2] = [0, 1].map(|n| IoSlice::new(parts.get(n).copied().unwrap_or_default()));
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match rustix::net::sendmsg(socket, &slices[..parts.len().min(2)], &mut SendAncillaryBuffer::default(), flags) {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS | Errno::NOMEM) => Ok(false),
        Err(_) => Err(Broken),
    }
}

/// What came of looking for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A packet of so many bytes.
    Packet(usize),
    /// None is there now.
    Nothing,
    /// The peer is gone, or sends what no version would.
    Over,
}

/// Receives a packet into a buffer of [`PACKET`] bytes.
#[must_use]
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Received {
    // With TRUNC the whole length is told, whatever fits.
    match rustix::net::recv(socket, buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
        Ok((_, 0)) => Received::Over,
        Ok((read, length)) if length == read && length <= PACKET => Received::Packet(length),
        Err(Errno::AGAIN | Errno::INTR) => Received::Nothing,
        Ok(_) | Err(_) => Received::Over,
    }
}

/// Receives a packet into memory that is as long as the packet.
#[must_use]
pub fn receive_into(socket: impl AsFd, buffer: &mut Vec<u8>) -> Received {
    let look = RecvFlags::DONTWAIT | RecvFlags::PEEK | RecvFlags::TRUNC;
    let length = match rustix::net::recv(&socket, &mut [0_u8; 0][..], look) {
        Ok((_, length)) if (1..=PACKET).contains(&length) => length,
        Err(Errno::AGAIN | Errno::INTR) => return Received::Nothing,
        Ok(_) | Err(_) => return Received::Over,
    };
    buffer.clear();
    buffer.reserve_exact(length);
    match rustix::net::recv(&socket, rustix::buffer::spare_capacity(buffer), RecvFlags::DONTWAIT) {
        Ok(_) if buffer.len() == length => Received::Packet(length),
        Ok(_) | Err(_) => Received::Over,
    }
}

/// A peer that has proved nothing yet.
#[derive(Debug)]
pub struct Candidate {
    /// Its number among all that ever came.
    pub number: u64,
    socket: OwnedFd,
    pid: u32,
    /// Until when it must have.
    pub until: Millis,
    challenges: Option<Challenges>,
}

/// What a shim says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// The token.
    pub token: &'a Token,
    /// Its place.
    pub place: Place,
    /// Its process.
    pub shim: Who,
}

/// How far a candidate has come.
#[derive(Debug)]
pub enum Progress {
    /// It is waited for.
    Going,
    /// It has proved whose it is, and asks for this.
    Proved(Attach),
    /// It is sent away.
    Over,
}

impl Candidate {
    /// A peer of that process.
    #[must_use]
    pub const fn new(number: u64, socket: OwnedFd, pid: u32, until: Millis) -> Self {
        Self { number, socket, pid, until, challenges: None }
    }

    /// Its descriptor.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Its descriptor, for good.
    #[must_use]
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// Says why it is sent away.
    pub fn refuse(&self, code: Code, number: u64, text: &str) {
        let mut packet = Vec::new();
        Reply::Error { code, number, text }.encode(&mut packet);
        let _ = send(&self.socket, &[&packet]);
    }

    /// Takes its next packet.
    pub fn proceed(&mut self, own: &Identity<'_>) -> Progress {
        // The two packets of a greeting are short. A longer one is none.
        let mut buffer = [0; 256];
        let length = match receive(&self.socket, &mut buffer) {
            Received::Packet(length) => length,
            Received::Nothing => return Progress::Going,
            Received::Over => return Progress::Over,
        };
        match (Request::decode(&buffer[..length]), self.challenges) {
            (Ok(Request::Hello { version, .. }), None) if version != VERSION => {
                self.refuse(Code::Version, VERSION.into(), "this shim speaks another version of the protocol");
                Progress::Over
            }
            (Ok(Request::Hello { nonce, .. }), None) => {
                let Ok(shim) = proof::random() else { return Progress::Over };
                let challenges = Challenges { daemon: nonce, shim };
                self.challenges = Some(challenges);
                let claim = Claim::Shim { pid: own.shim.pid, start: own.shim.start };
                let proof = proof::prove(own.token, VERSION, &challenges, &own.place, &claim);
                let mut packet = Vec::new();
                let (shim, place) = (own.shim, own.place);
                Reply::Challenge { version: VERSION, nonce: challenges.shim, shim, place, proof }.encode(&mut packet);
                if send(&self.socket, &[&packet]) == Ok(true) { Progress::Going } else { Progress::Over }
            }
            (Ok(Request::Attach(attach)), Some(challenges)) => {
                let claim = Claim::Daemon { pid: self.pid, boot: attach.boot, from: attach.from };
                if !proof::holds(&attach.proof, own.token, VERSION, &challenges, &attach.place, &claim) {
                    self.refuse(Code::Refused, 0, "the proof is wrong");
                    return Progress::Over;
                }
                if attach.place != own.place {
                    self.refuse(
                        Code::OtherPlace,
                        0,
                        "this shim belongs to another state directory, or another boot of the machine",
                    );
                    return Progress::Over;
                }
                Progress::Proved(attach)
            }
            _ => {
                self.refuse(Code::Refused, 0, "no greeting");
                Progress::Over
            }
        }
    }
}

/// An attached daemon, and what it was told.
#[derive(Debug)]
pub struct Conn {
    socket: OwnedFd,
    /// The pieces of a START so far.
    pub start: Vec<u8>,
    /// The offset of the next byte of output to be sent.
    pub sent: u64,
    /// Whether it is told of the agent's start.
    pub started: bool,
    /// What it was told of the input.
    pub taken: Taken,
    /// What it was told of the spool.
    pub kept: Kept,
    /// Whether it was told that the agent is being ended.
    pub ending: bool,
    /// Whether it was told that no output comes any more.
    pub closed: bool,
    /// Whether it was told of the exit.
    pub exit: bool,
    /// What went wrong, and is to be told; the first thing of several.
    pub trouble: Option<(Code, u64, String)>,
    /// The last packet did not fit: wait until there is room.
    pub blocked: bool,
}

impl Conn {
    /// A connection that was told what [`Reply::Attached`] says.
    #[must_use]
    pub const fn new(socket: OwnedFd, sent: u64, taken: Taken, kept: Kept, ending: bool) -> Self {
        Self {
            socket,
            start: Vec::new(),
            sent,
            started: true,
            taken,
            kept,
            ending,
            closed: false,
            exit: false,
            trouble: None,
            blocked: false,
        }
    }

    /// Its descriptor.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Notes what went wrong, unless something is still to be told.
    pub fn complain(&mut self, code: Code, number: u64, text: impl Into<String>) {
        if self.trouble.is_none() {
            self.trouble = Some((code, number, text.into()));
        }
    }

    /// Sends a packet; notes when it did not fit.
    ///
    /// # Errors
    /// The connection is over.
    pub fn tell(&mut self, reply: &Reply<'_>) -> Result<bool, Broken> {
        let mut packet = Vec::new();
        reply.encode(&mut packet);
        self.tell_parts(&[&packet])
    }

    /// The same with parts that lie apart, at most two.
    ///
    /// # Errors
    /// The connection is over.
    pub fn tell_parts(&mut self, parts: &[&[u8]]) -> Result<bool, Broken> {
        let sent = send(&self.socket, parts)?;
        self.blocked |= !sent;
        Ok(sent)
    }
}

/// A listening socket of a directory by a name in it, with mode 0600, however long the directory's path is; and its file's
/// device and inode.
///
/// # Errors
/// The name is taken, or the system has no more sockets.
pub fn listen(dir: BorrowedFd<'_>, name: &str) -> io::Result<(OwnedFd, (u64, u64))> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = bind(&socket, &address(dir, name)?);
    rustix::process::umask(before);
    bound?;
    listen(&socket, 128)?;
    let stat = rustix::fs::statat(dir, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
    Ok((socket, (stat.st_dev, stat.st_ino)))
}

/// The address of a socket by its directory's descriptor.
///
/// # Errors
/// The name is too long.
pub fn address(dir: BorrowedFd<'_>, name: &str) -> io::Result<rustix::net::SocketAddrUnix> {
    use std::os::fd::AsRawFd as _;
    let path = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
    Ok(rustix::net::SocketAddrUnix::new(path)?)
}
