//! The stream of an OpenAI-compatible endpoint: server-sent events, each with a JSON chunk.
//!
//! Owns the parsing of chunks, without I/O: bytes in, pieces out. It must not know the connection.

use serde_json::Value;

use crate::agent::json::{self, Raw};
use crate::agent::one_line;
use crate::sse::Reader;

/// The longest event of a stream, in bytes.
const EVENT_LIMIT: usize = 4 * 1024 * 1024;

/// How much of an error's text is shown, in bytes.
const ERROR_SHOWN: usize = 2000;
/// How much of a finish reason is shown, in bytes.
const REASON_SHOWN: usize = 100;
/// How much of an unreadable chunk is shown, in characters.
const SHOWN: usize = 200;
/// The largest `usage` object that is kept, in bytes.
const USAGE_LIMIT: usize = 16 * 1024;

/// A piece of the answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Text of the answer. A character may be split between two pieces.
    Text(Vec<u8>),
    /// Reasoning.
    Thought(Vec<u8>),
    /// The tokens used.
    Usage(Value),
    /// Why the model stopped.
    Finish(String),
    /// The endpoint failed during the answer.
    Error(String),
    /// Data that is not a readable chunk: its beginning, and whether it looks like a chunk.
    Unreadable(String, bool),
    /// The stream's own end mark.
    Done,
}

/// Reads a stream of server-sent events.
#[derive(Debug)]
pub struct Stream {
    reader: Reader,
    touched: bool,
}

impl Stream {
    /// The reader at the beginning of a stream.
    pub const fn new() -> Self {
        Self { reader: Reader::new(EVENT_LIMIT), touched: false }
    }

    /// Whether only white space has come so far.
    pub const fn is_untouched(&self) -> bool {
        !self.touched
    }

    /// Reads bytes and returns the pieces that they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Piece> {
        self.touched |= !bytes.trim_ascii().is_empty();
        self.reader.feed(bytes);
        self.pieces()
    }

    /// The pieces of the last event, if the stream ended without its blank line.
    pub fn finish(&mut self) -> Vec<Piece> {
        self.reader.finish();
        self.pieces()
    }

    fn pieces(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        loop {
            match self.reader.next_event() {
                Ok(Some(event)) => pieces.extend(read_data(event.data.trim())),
                Ok(None) => return pieces,
                Err(why) => {
                    self.reader = Reader::new(EVENT_LIMIT);
                    pieces.push(Piece::Error(why));
                    return pieces;
                }
            }
        }
    }
}

/// The pieces of an event's data.
fn read_data(data: &str) -> Vec<Piece> {
    match data {
        "" => Vec::new(),
        "[DONE]" => vec![Piece::Done],
        data => match json::value_at(data) {
            Some((chunk, _)) if chunk.starts_with('{') => read_chunk(Raw::of(&chunk)),
            // A proxy's keep-alive or the like, unless it begins like a chunk.
            _ => {
                let head: String = data.chars().take(SHOWN).collect();
                vec![Piece::Unreadable(head.escape_debug().to_string(), data.starts_with('{'))]
            }
        },
    }
}

/// The pieces of one chunk, or of a whole answer that the endpoint did not stream.
pub fn read_chunk(chunk: Raw<'_>) -> Vec<Piece> {
    if let Some(error) = error_text(chunk) {
        return vec![Piece::Error(error)];
    }
    let [choices, usage] = chunk.fields(["choices", "usage"]);
    let choice = choices.items(1).first().copied().unwrap_or(Raw::NULL);
    let [delta, message, finish] = choice.fields(["delta", "message", "finish_reason"]);
    let said = if delta.is_object() { delta } else { message };
    let [reasoning_content, reasoning, content, refusal] = said
        .fields(["reasoning_content", "reasoning", "content", "refusal"])
        .map(|field| field.bytes().filter(|text| !text.is_empty()));
    let mut pieces = Vec::new();
    pieces.extend(reasoning_content.or(reasoning).map(Piece::Thought));
    pieces.extend(content.or(refusal).map(Piece::Text));
    pieces.extend(finish.string().map(|reason| Piece::Finish(one_line(&reason, REASON_SHOWN))));
    pieces.extend(Some(usage).filter(|u| u.is_object()).map(|u| Piece::Usage(u.value(USAGE_LIMIT))));
    pieces
}

/// The text of an error object, in any of the forms that endpoints use.
pub fn error_text(body: Raw<'_>) -> Option<String> {
    let error = Some(body.get("error")).filter(|e| !e.is_null())?;
    let text = error.get("message").string().or_else(|| error.string());
    let text = text.unwrap_or_else(|| error.text().to_string());
    Some(one_line(&text, ERROR_SHOWN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_do_not_depend_on_where_the_stream_is_cut() {
        let stream = concat!(
            ": hello\n\n",
            "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\r\n\r\n",
            "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}\n\n",
            "event: x\ndata:{\"choices\":[{\"delta\":{\"content\":\"für \"}}]}\n\n",
            "data: {\"choices\":[{\"delta\":\ndata: {\"content\":\"10 €\"},\"finish_reason\":\"stop\"}]}\n\n",
            "data: not json\n\n",
            "data: {\"choices\":[{\"delta\":{\"con\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"\\ud83d\",\"x\":NaN}}]}\n\n",
            "data: {\"choices\":[],\"usage\":{\"total_tokens\":3}}\n\n",
            "data: [DONE]",
        );
        let expected = [
            Piece::Thought("hm".into()),
            Piece::Text("für ".into()),
            Piece::Text("10 €".into()),
            Piece::Finish("stop".into()),
            Piece::Unreadable("not json".into(), false),
            Piece::Unreadable("{\\\"choices\\\":[{\\\"delta\\\":{\\\"con".into(), true),
            Piece::Text(b"\xed\xa0\xbd".to_vec()),
            Piece::Usage(serde_json::json!({ "total_tokens": 3 })),
            Piece::Done,
        ];
        for size in [1, 2, 7, 1000] {
            let mut reader = Stream::new();
            let mut pieces: Vec<Piece> = stream.as_bytes().chunks(size).flat_map(|b| reader.push(b)).collect();
            pieces.extend(reader.finish());
            assert_eq!(pieces, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn a_whole_answer_and_an_error_are_read_too() {
        let read = |text: &str| read_chunk(Raw::of(text));
        let whole = r#"{"choices":[{"message":{"content":"hi"},"finish_reason":"length"}]}"#;
        assert_eq!(read(whole), [Piece::Text("hi".into()), Piece::Finish("length".into())]);
        assert_eq!(read(r#"{"error":{"message":"overloaded"}}"#), [Piece::Error("overloaded".into())]);
        assert_eq!(error_text(Raw::of(r#"{"error":"plain"}"#)).as_deref(), Some("plain"));
        let long = format!(r#"{{"error":{{"message":"{}"}}}}"#, "x".repeat(100_000));
        assert!(error_text(Raw::of(&long)).is_some_and(|text| text.len() < ERROR_SHOWN + 10));
    }
}
