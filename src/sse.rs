//! Server-sent events, read: bytes in, events out. Pure and bounded; used by every reader of such a stream.
//!
//! It must not know what the events mean, nor where the bytes come from.

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number, if it has one.
    pub id: Option<u64>,
    /// Its kind; empty if none was named.
    pub event: String,
    /// Its data, lines joined by line feeds.
    pub data: String,
}

/// Takes bytes in any pieces and gives events. Lines end in CRLF, LF or CR; comments and unknown fields mean nothing.
#[derive(Debug)]
pub struct Reader {
    limit: usize,
    bytes: Vec<u8>,
    /// What of `bytes` is used up.
    used: usize,
    /// From where a line's end has not been looked for yet.
    looked: usize,
    /// The last line ended with a carriage return: a line feed that follows belongs to it.
    after_cr: bool,
    /// No line was read yet: a byte order mark may come.
    fresh: bool,
    id: Option<u64>,
    event: String,
    data: Option<String>,
}

impl Reader {
    /// At the beginning of a stream whose events are of at most so many bytes.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self {
            limit,
            bytes: Vec::new(),
            used: 0,
            looked: 0,
            after_cr: false,
            fresh: true,
            id: None,
            event: String::new(),
            data: None,
        }
    }

    /// Takes in what was read.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.used);
        self.looked -= self.used;
        self.used = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The stream is over: an event that only lacks its empty line is whole.
    pub fn finish(&mut self) {
        self.feed(b"\n\n");
    }

    /// The next whole event, or `None` until more is fed.
    ///
    /// # Errors
    /// An event is longer than the limit; nothing sensible can follow.
    pub fn next_event(&mut self) -> Result<Option<Event>, String> {
        while let Some(line) = self.line() {
            if let Some(event) = self.take(&line) {
                return Ok(Some(event));
            }
            // However short its lines are.
            if self.data.as_ref().is_some_and(|data| data.len() > self.limit) {
                break;
            }
        }
        let held = self.bytes.len() - self.used + self.data.as_ref().map_or(0, String::len);
        if held > self.limit { Err(format!("an event is longer than {} bytes", self.limit)) } else { Ok(None) }
    }

    fn line(&mut self) -> Option<String> {
        if self.after_cr {
            match self.bytes.get(self.used) {
                Some(b'\n') => {
                    self.used += 1;
                    self.looked = self.looked.max(self.used);
                    self.after_cr = false;
                }
                Some(_) => self.after_cr = false,
                None => return None,
            }
        }
        let Some(end) = self.bytes[self.looked..].iter().position(|b| matches!(b, b'\n' | b'\r')) else {
            self.looked = self.bytes.len();
            return None;
        };
        let end = self.looked + end;
        let bytes = &self.bytes[self.used..end];
        let bytes =
            if std::mem::take(&mut self.fresh) { bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes) } else { bytes };
        let line = String::from_utf8_lossy(bytes).into_owned();
        self.after_cr = self.bytes[end] == b'\r';
        self.used = end + 1;
        self.looked = self.used;
        Some(line)
    }

    fn take(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let (id, event) = (self.id.take(), std::mem::take(&mut self.event));
            return self.data.take().map(|data| Event { id, event, data });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event),
            // Unlike a browser's, an id here is its own event's alone: previews must not inherit one.
            "id" => self.id = value.parse().ok(),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            _ => {}
        }
        None
    }
}
