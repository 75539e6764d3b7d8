//! The frames of the protocol, as packets: what the daemon asks of a shim, and what the shim tells. Pure.
//!
//! A packet is one datagram of a SOCK_SEQPACKET socket, at most [`PACKET`] bytes: a header of [`HEADER`] bytes and a
//! payload. Numbers are little-endian. The header: kind (1 byte), flags (1 byte; bit 0: the last packet of its message), two
//! bytes of nought, the payload's length (4 bytes, which must be right), and a number (8 bytes) whose meaning depends on the
//! kind. HELLO and ERROR look the same in every version, so that two versions can always tell that they differ.
//!
//! Nothing in a packet is believed: every length is compared with what is there and with a bound, before it is used.

use super::proof::{MACHINE, NONCE, PROOF, Place};

/// The version of the protocol that this program speaks.
pub const VERSION: u16 = 1;
/// The most bytes of a packet.
pub const PACKET: usize = 64 * 1024;
/// The bytes of a packet's header.
pub const HEADER: usize = 16;
/// The most bytes of a packet's payload.
pub const PAYLOAD: usize = PACKET - HEADER;
/// The most bytes of an error's text.
pub const TEXT: usize = 1024;
/// The most processes that an exit names.
pub const NAMED: usize = 32;

const MAGIC: &[u8; 8] = b"ostlersh";
const LAST: u8 = 1;

/// Why a packet was not understood. The peer is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Malformed {}

/// Where the ladder that ends an agent begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// Its input is closed.
    EndOfInput,
    /// SIGTERM to its group.
    Terminate,
    /// SIGKILL to its group and to all that it started.
    Kill,
}

impl Rung {
    const fn code(self) -> u8 {
        match self {
            Self::EndOfInput => 0,
            Self::Terminate => 1,
            Self::Kill => 2,
        }
    }

    const fn of(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::EndOfInput),
            1 => Some(Self::Terminate),
            2 => Some(Self::Kill),
            _ => None,
        }
    }
}

/// How long each rung waits, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ladder {
    /// After the end of input.
    pub input: u32,
    /// After SIGTERM.
    pub term: u32,
    /// After SIGKILL, until what lives still is named as left over.
    pub kill: u32,
    /// After the agent itself is gone, for others who hold its pipes.
    pub linger: u32,
}

impl Default for Ladder {
    fn default() -> Self {
        Self { input: 2000, term: 2000, kill: 2000, linger: 500 }
    }
}

/// Where an agent stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The shim waits for START.
    Waiting,
    /// It runs.
    Running,
    /// It is being ended, or has ended and what it left is being ended. Nothing stops that any more.
    Ending,
    /// It is gone with all that it started; its exit is told once its output is acknowledged.
    Gone,
}

impl Standing {
    const fn code(self) -> u8 {
        match self {
            Self::Waiting => 0,
            Self::Running => 1,
            Self::Ending => 2,
            Self::Gone => 3,
        }
    }

    const fn of(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Waiting),
            1 => Some(Self::Running),
            2 => Some(Self::Ending),
            3 => Some(Self::Gone),
            _ => None,
        }
    }
}

/// How an agent's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// By itself, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// The end of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// How the agent's own process ended.
    pub status: Status,
    /// How many processes could not be ended.
    pub left: u32,
    /// The first of them, by their numbers.
    pub named: Vec<u32>,
}

/// A process, for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Who {
    /// Its number.
    pub pid: u32,
    /// When it began, in clock ticks since the machine's boot.
    pub start: u64,
}

/// What is confined, of what was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confined {
    /// The version of the kernel's Landlock; 0: it has none, or none was asked for.
    pub abi: u32,
    /// The accesses to files that are handled.
    pub files: u64,
    /// The scopes that are set.
    pub scopes: u64,
    /// How many rules named a path that is not there.
    pub missing: u32,
}

/// How the agent's input stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// The highest number of a whole frame that the shim has. It will reach the agent as long as both live.
    pub highest: u64,
    /// How many bytes of such frames wait for the agent to read them.
    pub waiting: u64,
    /// How many bytes were written to the agent, ever.
    pub written: u64,
    /// The agent's input is closed.
    pub closed: bool,
}

/// How the agent's output stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Bytes that wait in the spool file.
    pub spooled: u64,
    /// The agent is not read at present, because there is no room.
    pub full: bool,
    /// The error number of the spool's last failure, while it lasts; 0: none.
    pub error: u32,
    /// How often the spool failed, ever.
    pub failures: u64,
}

/// What a shim says to a daemon that it accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Where the agent stands.
    pub standing: Standing,
    /// The agent's process, once it was started.
    pub agent: Option<Who>,
    /// Its confinement.
    pub confined: Confined,
    /// Its input.
    pub taken: Taken,
    /// The offset up to which its output is acknowledged.
    pub acked: u64,
    /// The offset up to which output is there.
    pub available: u64,
    /// Its spool.
    pub kept: Kept,
    /// How the agent's process ended, if it did; told here before its output is acknowledged.
    pub status: Option<Status>,
}

/// What went wrong, for a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The shim speaks another version: the number. It cuts the connection.
    Version,
    /// The proof is wrong, or the peer is not who may ask. It cuts the connection.
    Refused,
    /// A newer boot was here: its number. It cuts the connection.
    Stale,
    /// The daemon's state directory, or its machine's boot, is another. It cuts the connection.
    OtherPlace,
    /// The daemon's offset is not among what is kept: the number is the nearest that is. It cuts the connection.
    Offset,
    /// A packet was not understood, or came at the wrong time. It cuts the connection.
    Protocol,
    /// Another connection took this one's place. It cuts the connection.
    Superseded,
    /// The agent could not be started: the number is the system's error, the text says which step.
    Start,
    /// There is no agent that could take the frame, or not any more: the frame's number.
    NoAgent,
    /// A frame is missing before this one: the number is that of the frame which is expected.
    Gap,
    /// There is no room for the frame now: its number. It was not taken, and may be sent again.
    InputFull,
}

const CODES: [Code; 11] = [
    Code::Version,
    Code::Refused,
    Code::Stale,
    Code::OtherPlace,
    Code::Offset,
    Code::Protocol,
    Code::Superseded,
    Code::Start,
    Code::NoAgent,
    Code::Gap,
    Code::InputFull,
];

/// What a daemon says of itself, and by what it proves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attach {
    /// The number of its boot; the highest wins.
    pub boot: u64,
    /// The offset up to which it has kept the agent's output.
    pub from: u64,
    /// Where it lives.
    pub place: Place,
    /// That it has the token.
    pub proof: [u8; PROOF],
}

/// What a daemon sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// The first packet of a connection.
    Hello {
        /// The version that it speaks.
        version: u16,
        /// Its challenge.
        nonce: [u8; NONCE],
    },
    /// The second.
    Attach(Attach),
    /// A piece of what to start.
    Start {
        /// Whether it is the last piece.
        last: bool,
        /// The piece.
        bytes: &'a [u8],
    },
    /// A piece of a frame for the agent's input.
    Input {
        /// The frame's number: one more than that of the frame before, from 1 on.
        number: u64,
        /// Whether it is the last piece.
        last: bool,
        /// The piece.
        bytes: &'a [u8],
    },
    /// A frame that ends the agent's input, once all before it was read.
    CloseInput {
        /// The frame's number.
        number: u64,
    },
    /// Output up to this offset is kept for good, and need not be kept here.
    Ack {
        /// The offset.
        offset: u64,
    },
    /// The exit is kept for good.
    AckExit,
    /// What becomes of the agent without a daemon.
    Orphan {
        /// How long it may work on without a connection, in milliseconds.
        after: u64,
        /// How long from now on at most, connection or not, unless this is said again; 0: no such bound.
        lease: u64,
    },
    /// End the agent.
    End {
        /// Where to begin.
        rung: Rung,
        /// The times.
        ladder: Ladder,
    },
}

/// What a shim sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// The answer to HELLO.
    Challenge {
        /// The version that it speaks.
        version: u16,
        /// Its challenge.
        nonce: [u8; NONCE],
        /// The shim's own process.
        shim: Who,
        /// Where it was made.
        place: Place,
        /// That it has the token.
        proof: [u8; PROOF],
    },
    /// The answer to ATTACH.
    Attached(Attached),
    /// The agent was started.
    Started {
        /// Its process.
        agent: Who,
        /// Its confinement.
        confined: Confined,
    },
    /// The agent's input stands so.
    Taken(Taken),
    /// A piece of what the agent wrote to stdout.
    Output {
        /// The offset of its first byte.
        offset: u64,
        /// The piece.
        bytes: &'a [u8],
    },
    /// A piece of what the agent wrote to stderr.
    Stderr {
        /// How many bytes before it were dropped since the last piece.
        dropped: u64,
        /// The piece.
        bytes: &'a [u8],
    },
    /// The spool stands so.
    Spool(Kept),
    /// The agent is being ended, or has ended by itself.
    Ending,
    /// The agent has closed its stdout, and all that it wrote there was told. It may live on.
    EndOfOutput,
    /// All is over, and all output is acknowledged.
    Exit(Exit),
    /// Something went wrong.
    Error {
        /// What.
        code: Code,
        /// See [`Code`].
        number: u64,
        /// For a person.
        text: &'a str,
    },
}

/// Writes one packet behind what is in `out`.
fn packet(out: &mut Vec<u8>, kind: u8, flags: u8, number: u64, payload: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend_from_slice(&header(kind, flags, number, 0));
    payload(out);
    let length = (out.len() - begin).saturating_sub(HEADER);
    debug_assert!(length <= PAYLOAD, "a packet of {length} bytes");
    out[begin + 4..begin + 8].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
}

fn header(kind: u8, flags: u8, number: u64, length: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = kind;
    header[1] = flags;
    header[4..8].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    header[8..].copy_from_slice(&number.to_le_bytes());
    header
}

/// The header of an OUTPUT of so many bytes, for a sender that does not want to copy them.
#[must_use]
pub fn output_header(offset: u64, length: usize) -> [u8; HEADER] {
    header(37, LAST, offset, length)
}

/// The header of a piece of an INPUT of so many bytes, likewise.
#[must_use]
pub fn input_header(number: u64, last: bool, length: usize) -> [u8; HEADER] {
    header(4, u8::from(last), number, length)
}

/// The header of a piece of a START of so many bytes, likewise.
#[must_use]
pub fn start_header(last: bool, length: usize) -> [u8; HEADER] {
    header(3, u8::from(last), 0, length)
}

/// A cursor over bytes that nobody vouches for.
#[derive(Debug)]
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn bytes(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(length).ok_or(Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(head)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(*head)
    }

    pub fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("neither yes nor no")),
        }
    }

    pub const fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("more than was expected")) }
    }

    fn place(&mut self) -> Result<Place, Malformed> {
        Ok(Place { device: self.u64()?, inode: self.u64()?, machine: self.array::<MACHINE>()? })
    }

    fn who(&mut self) -> Result<Who, Malformed> {
        Ok(Who { pid: self.u32()?, start: self.u64()? })
    }

    pub fn ladder(&mut self) -> Result<Ladder, Malformed> {
        Ok(Ladder { input: self.u32()?, term: self.u32()?, kill: self.u32()?, linger: self.u32()? })
    }

    fn confined(&mut self) -> Result<Confined, Malformed> {
        Ok(Confined { abi: self.u32()?, files: self.u64()?, scopes: self.u64()?, missing: self.u32()? })
    }

    fn taken(&mut self) -> Result<Taken, Malformed> {
        Ok(Taken { highest: self.u64()?, waiting: self.u64()?, written: self.u64()?, closed: self.flag()? })
    }

    fn kept(&mut self) -> Result<Kept, Malformed> {
        Ok(Kept { spooled: self.u64()?, full: self.flag()?, error: self.u32()?, failures: self.u64()? })
    }

    fn status(&mut self) -> Result<Option<Status>, Malformed> {
        let (kind, value) = (self.u8()?, self.u32()?.cast_signed());
        match kind {
            0 => Ok(None),
            1 => Ok(Some(Status::Code(value))),
            2 => Ok(Some(Status::Signal(value))),
            _ => Err(Malformed("an unknown kind of exit")),
        }
    }
}

fn put_place(out: &mut Vec<u8>, place: &Place) {
    out.extend_from_slice(&place.bytes());
}

fn put_who(out: &mut Vec<u8>, who: Who) {
    out.extend_from_slice(&who.pid.to_le_bytes());
    out.extend_from_slice(&who.start.to_le_bytes());
}

pub(super) fn put_ladder(out: &mut Vec<u8>, ladder: Ladder) {
    for time in [ladder.input, ladder.term, ladder.kill, ladder.linger] {
        out.extend_from_slice(&time.to_le_bytes());
    }
}

fn put_confined(out: &mut Vec<u8>, confined: &Confined) {
    out.extend_from_slice(&confined.abi.to_le_bytes());
    out.extend_from_slice(&confined.files.to_le_bytes());
    out.extend_from_slice(&confined.scopes.to_le_bytes());
    out.extend_from_slice(&confined.missing.to_le_bytes());
}

fn put_taken(out: &mut Vec<u8>, taken: &Taken) {
    for number in [taken.highest, taken.waiting, taken.written] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.push(u8::from(taken.closed));
}

fn put_kept(out: &mut Vec<u8>, kept: &Kept) {
    out.extend_from_slice(&kept.spooled.to_le_bytes());
    out.push(u8::from(kept.full));
    out.extend_from_slice(&kept.error.to_le_bytes());
    out.extend_from_slice(&kept.failures.to_le_bytes());
}

fn put_status(out: &mut Vec<u8>, status: Option<Status>) {
    let (kind, value) = match status {
        None => (0, 0),
        Some(Status::Code(code)) => (1, code),
        Some(Status::Signal(signal)) => (2, signal),
    };
    out.push(kind);
    out.extend_from_slice(&value.to_le_bytes());
}

/// The parts of a packet whose header is right.
struct Parts<'a> {
    kind: u8,
    last: bool,
    number: u64,
    rest: Reader<'a>,
}

fn parts(packet: &[u8]) -> Result<Parts<'_>, Malformed> {
    if packet.len() > PACKET {
        return Err(Malformed("a packet is too long"));
    }
    let mut rest = Reader(packet);
    let (kind, flags, zero, length, number) = (rest.u8()?, rest.u8()?, rest.u16()?, rest.u32()?, rest.u64()?);
    if zero != 0 || flags & !LAST != 0 {
        return Err(Malformed("unknown bits in a header"));
    }
    if usize::try_from(length) != Ok(rest.0.len()) {
        return Err(Malformed("a header's length is not its packet's"));
    }
    Ok(Parts { kind, last: flags & LAST != 0, number, rest })
}

impl<'a> Request<'a> {
    /// Writes the packet behind what is in `out`. A piece longer than [`PAYLOAD`] is a mistake of the caller.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello { version, nonce } => packet(out, 1, LAST, u64::from(*version), |out| {
                out.extend_from_slice(MAGIC);
                out.extend_from_slice(nonce);
            }),
            Self::Attach(attach) => packet(out, 2, LAST, attach.boot, |out| {
                out.extend_from_slice(&attach.from.to_le_bytes());
                put_place(out, &attach.place);
                out.extend_from_slice(&attach.proof);
            }),
            Self::Start { last, bytes } => packet(out, 3, u8::from(*last), 0, |out| out.extend_from_slice(bytes)),
            Self::Input { number, last, bytes } => {
                packet(out, 4, u8::from(*last), *number, |out| out.extend_from_slice(bytes));
            }
            Self::CloseInput { number } => packet(out, 5, LAST, *number, |_| ()),
            Self::Ack { offset } => packet(out, 6, LAST, *offset, |_| ()),
            Self::AckExit => packet(out, 7, LAST, 0, |_| ()),
            Self::Orphan { after, lease } => {
                packet(out, 8, LAST, *after, |out| out.extend_from_slice(&lease.to_le_bytes()));
            }
            Self::End { rung, ladder } => packet(out, 9, LAST, u64::from(rung.code()), |out| put_ladder(out, *ladder)),
        }
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// It is not one that this version knows.
    pub fn decode(packet: &'a [u8]) -> Result<Self, Malformed> {
        let Parts { kind, last, number, mut rest } = parts(packet)?;
        if !last && !matches!(kind, 3 | 4) {
            return Err(Malformed("a message that has no pieces is not whole"));
        }
        let request = match kind {
            1 => {
                if rest.array::<8>()? != *MAGIC {
                    return Err(Malformed("no greeting of ostler's"));
                }
                // What follows the nonce is another version's affair.
                let nonce = rest.array()?;
                rest.0 = &[];
                let version = u16::try_from(number).map_err(|_| Malformed("no version"))?;
                Self::Hello { version, nonce }
            }
            2 => Self::Attach(Attach { boot: number, from: rest.u64()?, place: rest.place()?, proof: rest.array()? }),
            3 => Self::Start { last, bytes: std::mem::take(&mut rest.0) },
            4 => Self::Input { number, last, bytes: std::mem::take(&mut rest.0) },
            5 => Self::CloseInput { number },
            6 => Self::Ack { offset: number },
            7 => Self::AckExit,
            8 => Self::Orphan { after: number, lease: rest.u64()? },
            9 => {
                let rung = u8::try_from(number).ok().and_then(Rung::of).ok_or(Malformed("an unknown rung"))?;
                Self::End { rung, ladder: rest.ladder()? }
            }
            _ => return Err(Malformed("an unknown kind of request")),
        };
        rest.end()?;
        Ok(request)
    }
}

impl<'a> Reply<'a> {
    /// Writes the packet behind what is in `out`. A piece longer than [`PAYLOAD`] is a mistake of the caller.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Challenge { version, nonce, shim, place, proof } => {
                packet(out, 33, LAST, u64::from(*version), |out| {
                    out.extend_from_slice(nonce);
                    put_who(out, *shim);
                    put_place(out, place);
                    out.extend_from_slice(proof);
                });
            }
            Self::Attached(attached) => packet(out, 34, LAST, attached.available, |out| {
                out.push(attached.standing.code());
                out.push(u8::from(attached.agent.is_some()));
                put_who(out, attached.agent.unwrap_or_default());
                put_confined(out, &attached.confined);
                put_taken(out, &attached.taken);
                out.extend_from_slice(&attached.acked.to_le_bytes());
                put_kept(out, &attached.kept);
                put_status(out, attached.status);
            }),
            Self::Started { agent, confined } => packet(out, 35, LAST, u64::from(agent.pid), |out| {
                out.extend_from_slice(&agent.start.to_le_bytes());
                put_confined(out, confined);
            }),
            Self::Taken(taken) => packet(out, 36, LAST, taken.highest, |out| put_taken(out, taken)),
            Self::Output { offset, bytes } => packet(out, 37, LAST, *offset, |out| out.extend_from_slice(bytes)),
            Self::Stderr { dropped, bytes } => packet(out, 38, LAST, *dropped, |out| out.extend_from_slice(bytes)),
            Self::Spool(kept) => packet(out, 39, LAST, kept.spooled, |out| put_kept(out, kept)),
            Self::Ending => packet(out, 40, LAST, 0, |_| ()),
            Self::EndOfOutput => packet(out, 43, LAST, 0, |_| ()),
            Self::Exit(exit) => packet(out, 41, LAST, u64::from(exit.left), |out| {
                put_status(out, Some(exit.status));
                for pid in exit.named.iter().take(NAMED) {
                    out.extend_from_slice(&pid.to_le_bytes());
                }
            }),
            Self::Error { code, number, text } => packet(out, 42, LAST, *number, |out| {
                let place = CODES.iter().position(|c| c == code).unwrap_or_default();
                out.push(u8::try_from(place).unwrap_or_default());
                let most = (0..=text.len().min(TEXT)).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0);
                out.extend_from_slice(&text.as_bytes()[..most]);
            }),
        }
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// It is not one that this version knows.
    pub fn decode(packet: &'a [u8]) -> Result<Self, Malformed> {
        let Parts { kind, last, number, mut rest } = parts(packet)?;
        if !last {
            return Err(Malformed("a message that has no pieces is not whole"));
        }
        let reply = match kind {
            33 => Self::Challenge {
                version: u16::try_from(number).map_err(|_| Malformed("no version"))?,
                nonce: rest.array()?,
                shim: rest.who()?,
                place: rest.place()?,
                proof: rest.array()?,
            },
            34 => Self::Attached(decode_attached(number, &mut rest)?),
            35 => {
                let pid = u32::try_from(number).map_err(|_| Malformed("no process"))?;
                Self::Started { agent: Who { pid, start: rest.u64()? }, confined: rest.confined()? }
            }
            36 => Self::Taken(rest.taken()?),
            37 => {
                let bytes = std::mem::take(&mut rest.0);
                let past_the_end = number.checked_add(bytes.len() as u64).is_none();
                if past_the_end || bytes.is_empty() {
                    return Err(Malformed("an offset beyond all, or nothing at it"));
                }
                Self::Output { offset: number, bytes }
            }
            38 => Self::Stderr { dropped: number, bytes: std::mem::take(&mut rest.0) },
            39 => Self::Spool(rest.kept()?),
            40 => Self::Ending,
            43 => Self::EndOfOutput,
            41 => {
                let left = u32::try_from(number).map_err(|_| Malformed("too many processes"))?;
                let status = rest.status()?.ok_or(Malformed("an exit without a status"))?;
                let mut named = Vec::new();
                while !rest.0.is_empty() && named.len() < NAMED {
                    named.push(rest.u32()?);
                }
                Self::Exit(Exit { status, left, named })
            }
            42 => {
                let code = CODES.get(usize::from(rest.u8()?)).copied().ok_or(Malformed("an unknown error"))?;
                let bytes = std::mem::take(&mut rest.0);
                if bytes.len() > TEXT {
                    return Err(Malformed("an error's text is too long"));
                }
                let text = std::str::from_utf8(bytes).map_err(|_| Malformed("an error's text is no text"))?;
                Self::Error { code, number, text }
            }
            _ => return Err(Malformed("an unknown kind of reply")),
        };
        rest.end()?;
        Ok(reply)
    }
}

fn decode_attached(available: u64, rest: &mut Reader<'_>) -> Result<Attached, Malformed> {
    let standing = Standing::of(rest.u8()?).ok_or(Malformed("an unknown standing"))?;
    let (started, who) = (rest.flag()?, rest.who()?);
    let attached = Attached {
        standing,
        agent: started.then_some(who),
        confined: rest.confined()?,
        taken: rest.taken()?,
        acked: rest.u64()?,
        available,
        kept: rest.kept()?,
        status: rest.status()?,
    };
    if attached.acked > available {
        return Err(Malformed("more is acknowledged than there is"));
    }
    Ok(attached)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn requests() -> Vec<Request<'static>> {
        let place = Place { device: 1, inode: 2, machine: [3; MACHINE] };
        let ladder = Ladder { input: 1, term: 2, kill: 3, linger: 4 };
        vec![
            Request::Hello { version: 7, nonce: [9; NONCE] },
            Request::Attach(Attach { boot: u64::MAX, from: 5, place, proof: [8; PROOF] }),
            Request::Start { last: false, bytes: b"piece" },
            Request::Start { last: true, bytes: b"" },
            Request::Input { number: 1, last: true, bytes: b"{}\n" },
            Request::Input { number: u64::MAX, last: false, bytes: &[0; PAYLOAD] },
            Request::CloseInput { number: 3 },
            Request::Ack { offset: 4 },
            Request::AckExit,
            Request::Orphan { after: 120_000, lease: 0 },
            Request::End { rung: Rung::EndOfInput, ladder },
            Request::End { rung: Rung::Kill, ladder },
        ]
    }

    fn replies() -> Vec<Reply<'static>> {
        let place = Place { device: 1, inode: 2, machine: [3; MACHINE] };
        let (who, confined) = (Who { pid: 7, start: 8 }, Confined { abi: 7, files: 1, scopes: 3, missing: 2 });
        let taken = Taken { highest: 3, waiting: 4, written: 5, closed: true };
        let kept = Kept { spooled: 1, full: true, error: 28, failures: 2 };
        let attached = Attached {
            standing: Standing::Ending,
            agent: Some(who),
            confined,
            taken,
            acked: 5,
            available: 9,
            kept,
            status: Some(Status::Signal(9)),
        };
        let waiting =
            Attached { standing: Standing::Waiting, agent: None, status: None, acked: 0, available: 0, ..attached };
        let mut all = vec![
            Reply::Challenge { version: 1, nonce: [1; NONCE], shim: who, place, proof: [2; PROOF] },
            Reply::Attached(attached),
            Reply::Attached(waiting),
            Reply::Started { agent: who, confined },
            Reply::Taken(taken),
            Reply::Output { offset: 12, bytes: &[b'x'; PAYLOAD] },
            Reply::Stderr { dropped: 3, bytes: b"oh" },
            Reply::Spool(kept),
            Reply::Ending,
            Reply::EndOfOutput,
            Reply::Exit(Exit { status: Status::Code(-1), left: 40, named: (1..=32).collect() }),
            Reply::Exit(Exit { status: Status::Code(0), left: 0, named: vec![] }),
        ];
        all.extend(CODES.map(|code| Reply::Error { code, number: 6, text: "why" }));
        all
    }

    #[test]
    fn every_frame_comes_back_as_it_was_and_no_part_of_one_does() {
        let mut packet = Vec::new();
        for request in requests() {
            packet.clear();
            request.encode(&mut packet);
            assert!(packet.len() <= PACKET);
            assert_eq!(Request::decode(&packet), Ok(request.clone()));
            assert!(Reply::decode(&packet).is_err(), "a request is no reply");
            (0..packet.len().min(200)).for_each(|n| assert!(Request::decode(&packet[..n]).is_err(), "{request:?}"));
            packet.push(0);
            assert!(Request::decode(&packet).is_err(), "{request:?} and more");
        }
        for reply in replies() {
            packet.clear();
            reply.encode(&mut packet);
            assert!(packet.len() <= PACKET);
            assert_eq!(Reply::decode(&packet), Ok(reply.clone()));
            assert!(Request::decode(&packet).is_err(), "a reply is no request");
            (0..packet.len().min(200)).for_each(|n| assert!(Reply::decode(&packet[..n]).is_err(), "{reply:?}"));
            packet.push(0);
            assert!(Reply::decode(&packet).is_err(), "{reply:?} and more");
        }
    }

    #[test]
    fn headers_that_are_made_apart_are_the_same() {
        let mut packet = Vec::new();
        Reply::Output { offset: 77, bytes: b"abc" }.encode(&mut packet);
        assert_eq!(packet, [&output_header(77, 3)[..], b"abc"].concat());
        packet.clear();
        Request::Input { number: 78, last: false, bytes: b"abcd" }.encode(&mut packet);
        assert_eq!(packet, [&input_header(78, false, 4)[..], b"abcd"].concat());
        packet.clear();
        Request::Start { last: true, bytes: b"abcde" }.encode(&mut packet);
        assert_eq!(packet, [&start_header(true, 5)[..], b"abcde"].concat());
    }

    #[test]
    fn what_no_version_says_is_refused() {
        let mut ack = Vec::new();
        Request::Ack { offset: 4 }.encode(&mut ack);
        for (at, value, why) in [
            (0, 99, "an unknown kind"),
            (1, 3, "an unknown flag"),
            (1, 0, "a piece of what has none"),
            (2, 1, "a reserved byte"),
            (4, 1, "a wrong length"),
            (7, 255, "a length beyond all"),
        ] {
            let mut packet = ack.clone();
            packet[at] = value;
            assert!(Request::decode(&packet).is_err(), "{why}");
        }
        let mut long = vec![0; PACKET + 1];
        long[..HEADER].copy_from_slice(&input_header(1, true, PAYLOAD + 1));
        assert!(Request::decode(&long).is_err());
        let mut packet = Vec::new();
        Reply::Output { offset: u64::MAX, bytes: b"x" }.encode(&mut packet);
        assert!(Reply::decode(&packet).is_err(), "an offset that would overflow");
        packet.clear();
        Reply::Error { code: Code::Gap, number: 0, text: &"é".repeat(TEXT) }.encode(&mut packet);
        let Ok(Reply::Error { text, .. }) = Reply::decode(&packet) else { panic!("a long text is cut") };
        assert_eq!(text.len(), TEXT);
    }

    #[test]
    fn another_version_is_told_by_its_greeting() {
        let mut packet = Vec::new();
        Request::Hello { version: 9, nonce: [1; NONCE] }.encode(&mut packet);
        packet.extend_from_slice(b"what version 9 adds");
        let length = u32::try_from(packet.len() - HEADER).unwrap();
        packet[4..8].copy_from_slice(&length.to_le_bytes());
        assert_eq!(Request::decode(&packet), Ok(Request::Hello { version: 9, nonce: [1; NONCE] }));
    }
}
