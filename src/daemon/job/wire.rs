//! As much of D-Bus as one question takes: the greeting of a bus, calls with a few arguments, and their answers.
//!
//! Every length is bounded, and the whole conversation ends at an instant. It must not know what is asked.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The longest packet that is read; what systemd answers here has a few hundred bytes.
const LONGEST: usize = 64 << 10;
/// How many packets that are no answer are passed over: a bus sends a signal or two to every client that is new.
const OTHERS: usize = 64;
/// The longest line of the greeting.
const LINE: usize = 256;

/// Kinds of packets.
const CALL: u8 = 1;
const RETURN: u8 = 2;
const ERROR: u8 = 3;
/// Fields of a header.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// An argument of a call.
#[derive(Clone, Copy, Debug)]
pub(super) enum Argument<'a> {
    Text(&'a str),
    Number(u32),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    /// A number and a path: systemd's way to name a job.
    Job(u32, String),
}

impl Value {
    pub fn text(self) -> io::Result<String> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Job(..) => Err(wrong("a job, and not a text")),
        }
    }

    pub fn job(self) -> io::Result<(u32, String)> {
        match self {
            Self::Job(id, path) => Ok((id, path)),
            Self::Text(_) => Err(wrong("a text, and not a job")),
        }
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the bus answered {what}"))
}

/// A connection to a bus that has let us in.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    until: Instant,
    serial: u32,
}

impl Bus {
    /// Says who we are (EXTERNAL: the kernel vouches for it), and Hello.
    pub fn greet(stream: UnixStream, uid: u32, until: Instant) -> io::Result<Self> {
        let mut bus = Self { stream, until, serial: 0 };
        let name: String = uid.to_string().bytes().map(|b| format!("{b:02x}")).collect();
        bus.write(format!("\0AUTH EXTERNAL {name}\r\n").as_bytes())?;
        let line = bus.line()?;
        if !line.starts_with("OK ") {
            return Err(wrong(&format!("{line:?} to the greeting")));
        }
        bus.write(b"BEGIN\r\n")?;
        let dbus = "org.freedesktop.DBus";
        bus.call(dbus, "/org/freedesktop/DBus", dbus, "Hello", &[], "s")?;
        Ok(bus)
    }

    /// Calls a method and gives its answer, which must be of the type `expected` (`s`, `o` or `v`).
    pub fn call(
        &mut self,
        to: &str,
        path: &str,
        interface: &str,
        member: &str,
        arguments: &[Argument<'_>],
        expected: &str,
    ) -> io::Result<Value> {
        self.serial += 1;
        let call = call(self.serial, to, path, interface, member, arguments)?;
        self.write(&call)?;
        for _ in 0..OTHERS {
            let packet = self.packet()?;
            let head = Head::read(&packet)?;
            if head.reply_to != Some(self.serial) {
                continue;
            }
            return match head.kind {
                RETURN if head.signature == expected => head.body().value(expected),
                RETURN => Err(wrong(&format!("a value of type {:?}", head.signature))),
                ERROR => Err(io::Error::other(format!("{member}: {}", head.error))),
                other => Err(wrong(&format!("a packet of kind {other}"))),
            };
        }
        Err(wrong("with too much that is no answer"))
    }

    /// The time that is left, for the next read or write.
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.set_write_timeout(self.left()?)?;
            match self.stream.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(late(e)),
            }
        }
        Ok(())
    }

    fn read(&mut self, mut to: &mut [u8]) -> io::Result<()> {
        while !to.is_empty() {
            self.stream.set_read_timeout(self.left()?)?;
            match self.stream.read(to) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => to = &mut to[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(late(e)),
            }
        }
        Ok(())
    }

    /// A line of the greeting, byte by byte: what follows it is no line.
    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() == LINE {
                return Err(wrong("a long line to the greeting"));
            }
            let mut byte = [0];
            self.read(&mut byte)?;
            line.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&line[..line.len() - 2]).into_owned())
    }

    fn packet(&mut self) -> io::Result<Vec<u8>> {
        let mut packet = vec![0; 16];
        self.read(&mut packet)?;
        let mut head = Reader::of(&packet)?;
        head.at = 4;
        let body = head.number()? as usize;
        head.number()?;
        let fields = head.number()? as usize;
        // Each is checked before they are added: on a small machine their sum could be a small number.
        if fields > LONGEST || body > LONGEST || 16 + fields + 7 + body > LONGEST {
            return Err(wrong("a packet that is too long"));
        }
        packet.resize((16 + fields).next_multiple_of(8) + body, 0);
        self.read(&mut packet[16..])?;
        Ok(packet)
    }
}

/// A time limit that the kernel kept reads like a full buffer.
fn late(e: io::Error) -> io::Error {
    if e.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { e }
}

/// Writes a call, little-endian.
fn call(
    serial: u32,
    to: &str,
    path: &str,
    interface: &str,
    member: &str,
    arguments: &[Argument<'_>],
) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    let mut types = String::new();
    for argument in arguments {
        match argument {
            Argument::Text(text) => {
                types.push('s');
                put_text(&mut body, text)?;
            }
            Argument::Number(n) => {
                types.push('u');
                pad(&mut body, 4);
                body.extend(n.to_le_bytes());
            }
        }
    }
    let mut fields = Vec::new();
    for (code, kind, text) in
        [(PATH, b'o', path), (INTERFACE, b's', interface), (MEMBER, b's', member), (DESTINATION, b's', to)]
    {
        pad(&mut fields, 8);
        fields.extend([code, 1, kind, 0]);
        put_text(&mut fields, text)?;
    }
    if !types.is_empty() {
        pad(&mut fields, 8);
        fields.extend([SIGNATURE, 1, b'g', 0, u8::try_from(types.len()).map_err(io::Error::other)?]);
        fields.extend(types.bytes().chain([0]));
    }
    let mut packet = vec![b'l', CALL, 0, 1];
    packet.extend(length(body.len())?);
    packet.extend(serial.to_le_bytes());
    packet.extend(length(fields.len())?);
    packet.extend(fields);
    pad(&mut packet, 8);
    packet.extend(body);
    Ok(packet)
}

fn length(of: usize) -> io::Result<[u8; 4]> {
    u32::try_from(of).map(u32::to_le_bytes).map_err(io::Error::other)
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn put_text(bytes: &mut Vec<u8>, text: &str) -> io::Result<()> {
    pad(bytes, 4);
    bytes.extend(length(text.len())?);
    bytes.extend(text.bytes().chain([0]));
    Ok(())
}

/// What a packet's header says.
struct Head<'a> {
    kind: u8,
    reply_to: Option<u32>,
    signature: String,
    error: String,
    body: Reader<'a>,
}

impl<'a> Head<'a> {
    fn read(packet: &'a [u8]) -> io::Result<Self> {
        let mut r = Reader::of(packet)?;
        let kind = *packet.get(1).ok_or_else(|| wrong("half a packet"))?;
        r.at = 12;
        let fields = r.number()? as usize;
        let end = r.at + fields;
        let (mut reply_to, mut signature, mut error) = (None, String::new(), String::new());
        while r.at < end {
            r.align(8);
            let code = r.byte()?;
            let of = r.signature()?;
            match (code, of.as_str()) {
                (REPLY_SERIAL, "u") => reply_to = Some(r.number()?),
                (SIGNATURE, "g") => signature = r.signature()?,
                (ERROR_NAME, "s") => error = r.text()?,
                (_, "u") => drop(r.number()?),
                (_, "s" | "o") => drop(r.text()?),
                (_, "g") => drop(r.signature()?),
                (_, other) => return Err(wrong(&format!("a header of type {other:?}"))),
            }
        }
        let at = end.next_multiple_of(8);
        let body = packet.get(at..).ok_or_else(|| wrong("half a packet"))?;
        Ok(Self { kind, reply_to, signature, error, body: Reader { bytes: body, at: 0, big: r.big } })
    }

    fn body(self) -> Reader<'a> {
        self.body
    }
}

/// Reads values from bytes that the sender aligned; it never reads beyond them.
#[derive(Clone, Copy)]
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    big: bool,
}

impl<'a> Reader<'a> {
    /// A packet says its order of bytes first.
    fn of(packet: &'a [u8]) -> io::Result<Self> {
        match packet.first() {
            Some(b'l') => Ok(Self { bytes: packet, at: 0, big: false }),
            Some(b'B') => Ok(Self { bytes: packet, at: 0, big: true }),
            _ => Err(wrong("what is no packet")),
        }
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, n: usize) -> io::Result<&'a [u8]> {
        let end = self.at.checked_add(n).ok_or_else(|| wrong("half a packet"))?;
        let bytes = self.bytes.get(self.at..end).ok_or_else(|| wrong("half a packet"))?;
        self.at = end;
        Ok(bytes)
    }

    fn byte(&mut self) -> io::Result<u8> {
        self.take(1).map(|b| b[0])
    }

    fn number(&mut self) -> io::Result<u32> {
        self.align(4);
        let bytes = self.take(4)?.first_chunk().copied().unwrap_or_default();
        Ok(if self.big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn text(&mut self) -> io::Result<String> {
        let length = self.number()? as usize;
        self.string(length)
    }

    fn signature(&mut self) -> io::Result<String> {
        let length = self.byte()?.into();
        self.string(length)
    }

    /// So many bytes of text, and the nought behind them.
    fn string(&mut self, length: usize) -> io::Result<String> {
        let text = self.take(length)?.to_vec();
        self.take(1)?;
        String::from_utf8(text).map_err(|_| wrong("a text that is none"))
    }

    /// A value of a type that is asked for here.
    fn value(mut self, of: &str) -> io::Result<Value> {
        match of {
            "s" | "o" => self.text().map(Value::Text),
            "(uo)" => {
                self.align(8);
                let id = self.number()?;
                Ok(Value::Job(id, self.text()?))
            }
            "v" => match self.signature()?.as_str() {
                of @ ("s" | "o" | "(uo)") => self.value(of),
                other => Err(wrong(&format!("a value of type {other:?}"))),
            },
            other => Err(wrong(&format!("a value of type {other:?}"))),
        }
    }
}

#[cfg(test)]
mod tests;
