//! Server-sent events, bytes in, events out. Pure and bounded.

use serde_json::Value;

/// Longest event: a message has at most 4 MiB of body, and JSON may escape each byte with six.
const LIMIT: usize = 32 << 20;

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct SseEvent {
    /// Its durable number; previews have none.
    pub id: Option<u64>,
    /// The kind; `message` if the server named none.
    pub event: String,
    /// The data; a string when it is not JSON.
    pub data: Value,
}

impl SseEvent {
    /// A text field of the data, `""` if there is none.
    #[must_use]
    pub fn text(&self, field: &str) -> &str {
        self.data.get(field).and_then(Value::as_str).unwrap_or_default()
    }
}

/// Takes bytes in any pieces and gives events.
#[derive(Debug, Default)]
pub struct SseParser {
    bytes: Vec<u8>,
    /// What of `bytes` is used up.
    used: usize,
    /// From where a line's end has not been looked for yet.
    looked: usize,
    /// The last line ended with a carriage return: a line feed that follows belongs to it.
    after_cr: bool,
    id: Option<u64>,
    event: String,
    data: Option<String>,
}

impl SseParser {
    /// Takes in what was read.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.used);
        self.looked -= self.used;
        self.used = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole event, or `None` until more is fed.
    ///
    /// # Errors
    /// An event is longer than 32 MiB; nothing sensible can follow.
    pub fn next_event(&mut self) -> Result<Option<SseEvent>, String> {
        while let Some(line) = self.line() {
            if let Some(event) = self.take(&line) {
                return Ok(Some(event));
            }
        }
        let held = self.bytes.len() - self.used + self.data.as_ref().map_or(0, String::len);
        if held > LIMIT { Err(format!("an event is longer than {LIMIT} bytes")) } else { Ok(None) }
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
        let line = String::from_utf8_lossy(&self.bytes[self.used..end]).into_owned();
        self.after_cr = self.bytes[end] == b'\r';
        self.used = end + 1;
        self.looked = self.used;
        Some(line)
    }

    fn take(&mut self, line: &str) -> Option<SseEvent> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            let id = self.id.take();
            let data = self.data.take()?;
            let data = serde_json::from_str(&data).unwrap_or(Value::String(data));
            let event = if event.is_empty() { "message".to_owned() } else { event };
            return Some(SseEvent { id, event, data });
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
