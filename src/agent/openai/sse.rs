//! What an OpenAI-compatible endpoint streams: server-sent events, each with a JSON chunk.
//!
//! Owns the reading of chunks, pure: bytes in, pieces out. It must not know the connection.

use serde_json::Value;

use crate::agent::lines::{Line, Lines};

/// The longest line of a stream.
const LINE_LIMIT: usize = 4 * 1024 * 1024;

/// A piece of the answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Text of the answer.
    Text(String),
    /// Reasoning.
    Thought(String),
    /// Tokens.
    Usage(Value),
    /// Why the model stopped.
    Finish(String),
    /// The endpoint failed in the middle.
    Error(String),
    /// The stream's own end mark.
    Done,
}

/// Reads a stream of server-sent events.
#[derive(Debug)]
pub struct Stream {
    lines: Lines,
    data: String,
    touched: bool,
}

impl Stream {
    /// At its beginning.
    pub const fn new() -> Self {
        Self { lines: Lines::new(LINE_LIMIT), data: String::new(), touched: false }
    }

    /// Whether nothing but white space came so far.
    pub const fn is_untouched(&self) -> bool {
        !self.touched
    }

    /// Takes in bytes and returns the pieces that they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Piece> {
        self.touched |= !bytes.trim_ascii().is_empty();
        self.lines.push(bytes);
        let mut pieces = Vec::new();
        while let Some(line) = self.lines.next(|l| String::from_utf8_lossy(l).into_owned()) {
            match line {
                Line::Whole(line) if line.is_empty() => pieces.extend(self.dispatch()),
                Line::Whole(line) => self.field(&line),
                Line::TooLong(bytes) => {
                    pieces.push(Piece::Error(format!("a line of {bytes} bytes is longer than is read")));
                }
            }
            if self.data.len() > LINE_LIMIT {
                self.data.clear();
                pieces.push(Piece::Error("an event is longer than is read".to_string()));
            }
        }
        pieces
    }

    /// The pieces of an event that the end of the stream cut short of its blank line.
    pub fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = self.push(b"\n");
        pieces.extend(self.dispatch());
        pieces
    }

    fn field(&mut self, line: &str) {
        if let Some(data) = line.strip_prefix("data:") {
            if !self.data.is_empty() {
                self.data.push('\n');
            }
            self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
        }
    }

    fn dispatch(&mut self) -> Vec<Piece> {
        let data = std::mem::take(&mut self.data);
        match data.trim() {
            "" => Vec::new(),
            "[DONE]" => vec![Piece::Done],
            data => match serde_json::from_str(data) {
                Ok(chunk) => read_chunk(&chunk),
                // Nothing that a model said: a proxy's keep-alive or the like.
                Err(_) => Vec::new(),
            },
        }
    }
}

/// The pieces of one chunk, or of a whole answer that was not streamed.
pub fn read_chunk(chunk: &Value) -> Vec<Piece> {
    if let Some(error) = error_text(chunk) {
        return vec![Piece::Error(error)];
    }
    let choice = &chunk["choices"][0];
    let said = if choice["delta"].is_object() { &choice["delta"] } else { &choice["message"] };
    let text = |name: &str| said[name].as_str().filter(|t| !t.is_empty()).map(str::to_string);
    let mut pieces = Vec::new();
    pieces.extend(text("reasoning_content").or_else(|| text("reasoning")).map(Piece::Thought));
    pieces.extend(text("content").or_else(|| text("refusal")).map(Piece::Text));
    pieces.extend(choice["finish_reason"].as_str().map(|reason| Piece::Finish(reason.to_string())));
    pieces.extend(Some(&chunk["usage"]).filter(|u| u.is_object()).cloned().map(Piece::Usage));
    pieces
}

/// The text of an error object, as endpoints write it.
pub fn error_text(body: &Value) -> Option<String> {
    let error = Some(&body["error"]).filter(|e| !e.is_null())?;
    let text = error["message"].as_str().or_else(|| error.as_str());
    Some(text.map_or_else(|| error.to_string(), str::to_string))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_do_not_depend_on_how_the_stream_is_cut() {
        let stream = concat!(
            ": hello\n\n",
            "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\r\n\r\n",
            "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}\n\n",
            "event: x\ndata:{\"choices\":[{\"delta\":{\"content\":\"für \"}}]}\n\n",
            "data: {\"choices\":[{\"delta\":\ndata: {\"content\":\"10 €\"},\"finish_reason\":\"stop\"}]}\n\n",
            "data: not json\n\n",
            "data: {\"choices\":[],\"usage\":{\"total_tokens\":3}}\n\n",
            "data: [DONE]",
        );
        let expected = [
            Piece::Thought("hm".into()),
            Piece::Text("für ".into()),
            Piece::Text("10 €".into()),
            Piece::Finish("stop".into()),
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
        let whole = serde_json::json!({ "choices": [{ "message": { "content": "hi" }, "finish_reason": "length" }] });
        assert_eq!(read_chunk(&whole), [Piece::Text("hi".into()), Piece::Finish("length".into())]);
        let error = serde_json::json!({ "error": { "message": "overloaded" } });
        assert_eq!(read_chunk(&error), [Piece::Error("overloaded".into())]);
        assert_eq!(error_text(&serde_json::json!({ "error": "plain" })).as_deref(), Some("plain"));
    }
}
