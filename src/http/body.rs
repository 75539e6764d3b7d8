//! Bodies of requests: a length or chunks, up to a cap, at a pace.
//!
//! It owns the decoder of chunks and the deadline of a body. It must not know what the body is for.

use std::io;
use std::time::{Duration, Instant};

use super::head::BodyKind;
use super::input::{Input, Trouble};
use super::{Limits, Refusal};

/// The most bytes of chunk extensions and trailer fields in one body; all of them are ignored.
const TRIMMINGS: usize = 16 * 1024;
/// As many hexadecimal digits as a `u64` has.
const SIZE_DIGITS: u8 = 16;
/// Read at a time, when a body of known length comes in.
const STEP: usize = 64 * 1024;

fn too_large(cap: u64) -> Refusal {
    Refusal::new(413, format!("body: more than {cap} bytes"))
}

/// When a body of which `received` bytes are here must be complete.
pub(super) fn deadline(started: Instant, received: usize, limits: &Limits) -> Instant {
    let rate = limits.body_rate.max(1);
    let earned = Duration::from_millis((received as u64).saturating_mul(1000) / rate);
    let granted = limits.body_timeout.saturating_add(earned);
    started.checked_add(granted).unwrap_or_else(|| super::socket::after(granted))
}

/// Refuses a body whose head already says that it is too large.
pub(super) fn check(kind: BodyKind, cap: u64) -> Result<(), Refusal> {
    match kind {
        BodyKind::Length(n) if n > cap => Err(too_large(cap)),
        _ => Ok(()),
    }
}

/// Reads a whole body of at most `cap` bytes (see [`check`]).
pub(super) fn read(input: &mut Input<'_>, kind: BodyKind, cap: u64, limits: &Limits) -> Result<Vec<u8>, Trouble> {
    match kind {
        BodyKind::Length(0) => Ok(Vec::new()),
        BodyKind::Length(n) => {
            let n = usize::try_from(n).map_err(|_| too_large(cap))?;
            read_length(input, n, limits)
        }
        BodyKind::Chunked => read_chunked(input, cap, limits),
    }
}

/// Memory grows with the bytes that came, never with the announced length.
fn read_length(input: &mut Input<'_>, n: usize, limits: &Limits) -> Result<Vec<u8>, Trouble> {
    let started = Instant::now();
    let mut body = input.take(n);
    while body.len() < n {
        let have = body.len();
        body.resize(n.min(have + STEP), 0);
        match input.read_past(&mut body[have..], deadline(started, have, limits)) {
            Ok(0) => return Err(Trouble::Ended),
            Ok(got) => body.truncate(have + got),
            Err(e) => return Err(in_body(e)),
        }
    }
    Ok(body)
}

fn read_chunked(input: &mut Input<'_>, cap: u64, limits: &Limits) -> Result<Vec<u8>, Trouble> {
    let started = Instant::now();
    let mut decoder = Chunked::new(cap);
    let mut body = Vec::new();
    loop {
        let used = decoder.push(input.bytes(), &mut body)?;
        input.consume(used);
        if decoder.is_done() {
            return Ok(body);
        }
        match input.fill(deadline(started, body.len(), limits)) {
            Ok(0) => return Err(Trouble::Ended),
            Ok(_) => {}
            Err(e) => return Err(in_body(e)),
        }
    }
}

fn in_body(e: io::Error) -> Trouble {
    match e.kind() {
        io::ErrorKind::TimedOut => Trouble::Refused(Refusal::new(408, "body: it came too slowly")),
        _ => Trouble::Broken(e),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkState {
    /// In a chunk's size, after so many digits.
    Size(u8),
    Extension,
    SizeLf,
    Data(u64),
    DataCr,
    DataLf,
    /// At the start of a line after the last chunk.
    Trailer,
    TrailerField,
    TrailerLf,
    EndLf,
    Done,
}

/// Decodes a chunked body from pieces of any size.
#[derive(Debug)]
pub(super) struct Chunked {
    state: ChunkState,
    size: u64,
    left: u64,
    cap: u64,
    trimmings: usize,
}

impl Chunked {
    pub(super) fn new(cap: u64) -> Self {
        Self { state: ChunkState::Size(0), size: 0, left: cap, cap, trimmings: TRIMMINGS }
    }

    pub(super) fn is_done(&self) -> bool {
        self.state == ChunkState::Done
    }

    /// Takes what it can of `input`, appends the data in it to `body` and returns how many bytes it took: all, unless
    /// the body ends within.
    pub(super) fn push(&mut self, input: &[u8], body: &mut Vec<u8>) -> Result<usize, Refusal> {
        let mut at = 0;
        while at < input.len() && self.state != ChunkState::Done {
            if let ChunkState::Data(left) = self.state {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(input.len() - at);
                body.extend_from_slice(&input[at..at + here]);
                at += here;
                let left = left - here as u64;
                self.state = if left == 0 { ChunkState::DataCr } else { ChunkState::Data(left) };
            } else {
                self.state = self.step(input[at])?;
                at += 1;
            }
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<ChunkState, Refusal> {
        let bad = || Refusal::bad("body: malformed chunk");
        Ok(match (self.state, byte) {
            (ChunkState::Size(digits), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if digits < SIZE_DIGITS => {
                let value = char::from(byte).to_digit(16).ok_or_else(bad)?;
                self.size = self.size << 4 | u64::from(value);
                ChunkState::Size(digits + 1)
            }
            (ChunkState::Size(1..), b'\r') | (ChunkState::Extension, b'\r') => ChunkState::SizeLf,
            (ChunkState::Size(1..), b';') => self.trim(ChunkState::Extension)?,
            (ChunkState::Extension, b'\t' | b' '..=b'~' | 0x80..) => self.trim(ChunkState::Extension)?,
            (ChunkState::SizeLf, b'\n') => self.begin_chunk()?,
            (ChunkState::DataCr, b'\r') => ChunkState::DataLf,
            (ChunkState::DataLf, b'\n') => ChunkState::Size(0),
            (ChunkState::Trailer, b'\r') => ChunkState::EndLf,
            // A line that begins with a space would continue the line before it, which is forbidden.
            (ChunkState::Trailer, b'!'..=b'~') => self.trim(ChunkState::TrailerField)?,
            (ChunkState::TrailerField, b'\r') => ChunkState::TrailerLf,
            (ChunkState::TrailerField, b'\t' | b' '..=b'~' | 0x80..) => self.trim(ChunkState::TrailerField)?,
            (ChunkState::TrailerLf, b'\n') => ChunkState::Trailer,
            (ChunkState::EndLf, b'\n') => ChunkState::Done,
            _ => return Err(bad()),
        })
    }

    fn begin_chunk(&mut self) -> Result<ChunkState, Refusal> {
        let size = std::mem::take(&mut self.size);
        if size == 0 {
            return Ok(ChunkState::Trailer);
        }
        self.left = self.left.checked_sub(size).ok_or_else(|| too_large(self.cap))?;
        Ok(ChunkState::Data(size))
    }

    fn trim(&mut self, next: ChunkState) -> Result<ChunkState, Refusal> {
        self.trimmings = self
            .trimmings
            .checked_sub(1)
            .ok_or_else(|| Refusal::bad("body: chunk extensions and trailers are too long"))?;
        Ok(next)
    }
}
