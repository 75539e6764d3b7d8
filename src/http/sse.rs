//! The text of server-sent events: written for clients, and read by our own.
//!
//! It must not know sockets nor what the events mean.

use std::collections::VecDeque;

/// Appends an event. Line breaks in `data` become lines of it; in `event` they are left out, as they cannot be told.
pub fn event(buf: &mut Vec<u8>, event: Option<&str>, id: Option<i64>, data: &str) {
    if let Some(event) = event {
        buf.extend_from_slice(b"event: ");
        buf.extend(event.bytes().filter(|b| !matches!(b, b'\r' | b'\n')));
        buf.push(b'\n');
    }
    if let Some(id) = id {
        buf.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    let mut rest = data;
    loop {
        let end = rest.find(['\r', '\n']);
        buf.extend_from_slice(b"data: ");
        buf.extend_from_slice(&rest.as_bytes()[..end.unwrap_or(rest.len())]);
        buf.push(b'\n');
        let Some(end) = end else { break };
        let width = if rest[end..].starts_with("\r\n") { 2 } else { 1 };
        rest = &rest[end + width..];
    }
    buf.push(b'\n');
}

/// Appends a comment that means nothing: it keeps the connection alive, and finds out whether it is.
pub fn ping(buf: &mut Vec<u8>) {
    buf.extend_from_slice(b": ping\n\n");
}

/// An event as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SseEvent {
    /// Its kind; `None` where none was named.
    pub event: Option<String>,
    /// Its id, if it has one that is a number.
    pub id: Option<i64>,
    /// Its data, lines joined by line feeds.
    pub data: String,
}

/// What one event may take, unless told otherwise: the longest text of a message, as JSON that escapes every byte.
const DEFAULT_LIMIT: usize = 32 << 20;

/// Reads events from a stream that comes in pieces of any size. Lines end in CRLF, LF or CR; comments (pings) and
/// unknown fields mean nothing. Push what was read, then take events until there is `None`.
///
/// An event larger than the limit is left out, with everything up to its end, and counted.
#[derive(Debug)]
pub struct SseParser {
    limit: usize,
    /// The line that has begun.
    line: Vec<u8>,
    /// The line that has begun has bytes, kept or not.
    begun: bool,
    /// The last byte was a CR: a LF now belongs to it.
    after_cr: bool,
    /// Nothing was read yet: a byte order mark may come.
    fresh: bool,
    event: Option<String>,
    id: Option<i64>,
    data: Option<String>,
    /// Bytes of the present event so far.
    size: usize,
    oversized: u64,
    ready: VecDeque<SseEvent>,
}

impl Default for SseParser {
    fn default() -> Self {
        Self::with_limit(DEFAULT_LIMIT)
    }
}

impl SseParser {
    /// A parser at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, for events of at most so many bytes.
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        Self {
            limit,
            line: Vec::new(),
            begun: false,
            after_cr: false,
            fresh: true,
            event: None,
            id: None,
            data: None,
            size: 0,
            oversized: 0,
            ready: VecDeque::new(),
        }
    }

    /// Takes in what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(&first) = rest.first() {
            if std::mem::take(&mut self.after_cr) && first == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let end = rest.iter().position(|b| matches!(b, b'\r' | b'\n'));
            let part = &rest[..end.unwrap_or(rest.len())];
            self.begun |= !part.is_empty();
            self.size = self.size.saturating_add(part.len());
            if self.size <= self.limit {
                self.line.extend_from_slice(part);
            }
            let Some(end) = end else { break };
            self.after_cr = rest[end] == b'\r';
            rest = &rest[end + 1..];
            self.end_line();
        }
    }

    /// How many events were left out for their size.
    #[must_use]
    pub fn oversized(&self) -> u64 {
        self.oversized
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let fresh = std::mem::take(&mut self.fresh);
        let begun = std::mem::take(&mut self.begun);
        if self.size > self.limit {
            if !begun {
                self.oversized += 1;
                self.end_event();
            }
            return;
        }
        let line = if fresh { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line) } else { &line };
        if line.is_empty() {
            if let Some(event) = self.end_event() {
                self.ready.push_back(event);
            }
            return;
        }
        let bytes = line.len();
        let line = String::from_utf8_lossy(line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            "event" => self.event = (!value.is_empty()).then(|| value.to_owned()),
            "id" => self.id = value.parse().ok(),
            // A comment: however many come, they are no part of an event.
            "" => self.size = self.size.saturating_sub(bytes),
            _ => {}
        }
    }

    /// Forgets the present event, and gives it if it had data: without, it is none.
    fn end_event(&mut self) -> Option<SseEvent> {
        self.size = 0;
        let (event, id, data) = (self.event.take(), self.id.take(), self.data.take());
        data.map(|data| SseEvent { event, id, data })
    }
}

impl Iterator for SseParser {
    type Item = SseEvent;

    /// The next event that is complete. `None` means none yet: push more and ask again.
    fn next(&mut self) -> Option<SseEvent> {
        self.ready.pop_front()
    }
}
