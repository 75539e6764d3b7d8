//! The daemon's events, as a client gets them: server-sent events with JSON in them.

use serde_json::Value;

use crate::sse::{Event, Reader};

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
#[derive(Debug)]
pub struct SseParser(Reader);

impl Default for SseParser {
    fn default() -> Self {
        Self(Reader::new(LIMIT))
    }
}

impl SseParser {
    /// Takes in what was read.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.0.feed(bytes);
    }

    /// The next whole event, or `None` until more is fed.
    ///
    /// # Errors
    /// An event is longer than 32 MiB; nothing sensible can follow.
    pub fn next_event(&mut self) -> Result<Option<SseEvent>, String> {
        let Some(Event { id, event, data }) = self.0.next_event()? else { return Ok(None) };
        let event = if event.is_empty() { "message".to_owned() } else { event };
        let data = serde_json::from_str(&data).unwrap_or(Value::String(data));
        Ok(Some(SseEvent { id, event, data }))
    }
}
