//! The wire: JSON-RPC 2.0, a message a line, and what an agent may do to it.
//!
//! Owns the shape of a message; it must not know a method. Tolerant in what it takes: what is no message
//! is named and skipped, an id is a value to be sent back as it came, fields that nobody asked for do not matter.

use serde_json::{Value, json};

/// How much of a line that is no message is shown.
const JUNK_SHOWN: usize = 200;
/// The code of an error that says no more than that a request was cancelled.
pub const REQUEST_CANCELLED: i64 = -32800;

/// An error that an agent answers with.
#[derive(Clone, Debug, PartialEq)]
pub struct RpcError {
    /// JSON-RPC's or ACP's code.
    pub code: i64,
    /// The message, and the text in `data` if there is one: agents put what matters there.
    pub text: String,
}

impl RpcError {
    fn read(error: &Value) -> Self {
        let message = error["message"].as_str().unwrap_or("an error without a message");
        let data = &error["data"];
        let detail = data.as_str().or_else(|| data["details"].as_str()).or_else(|| data["message"].as_str());
        let text = match detail {
            Some(detail) if !message.contains(detail) => format!("{message}: {detail}"),
            _ => message.to_string(),
        };
        Self { code: error["code"].as_i64().unwrap_or(0), text: shorten(&text, 2000) }
    }
}

impl std::fmt::Display for RpcError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.text, self.code)
    }
}

/// A message from an agent.
#[derive(Debug, PartialEq)]
pub enum Message {
    /// It wants an answer under this id.
    Request(Value, String, Value),
    /// It tells something.
    Notification(String, Value),
    /// It answers what we asked under this id.
    Response(Value, Result<Value, RpcError>),
    /// A line that is no message (a banner, a stray print), and how it begins.
    Junk(String),
    /// Nothing on the line.
    Blank,
}

impl Message {
    /// Reads one line. Never fails: what is no message is [`Message::Junk`].
    pub fn read(line: &[u8]) -> Self {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Self::Blank;
        }
        let junk = || {
            let head = String::from_utf8_lossy(&line[..line.len().min(JUNK_SHOWN)]);
            Self::Junk(head.escape_debug().to_string())
        };
        let Ok(Value::Object(mut object)) = serde_json::from_slice(line) else { return junk() };
        let method = match object.remove("method") {
            Some(Value::String(method)) => Some(method),
            Some(_) => return junk(),
            None => None,
        };
        let id = object.remove("id").filter(|id| !id.is_null());
        match (method, id) {
            (Some(method), Some(id)) => Self::Request(id, method, object.remove("params").unwrap_or_default()),
            (Some(method), None) => Self::Notification(method, object.remove("params").unwrap_or_default()),
            (None, Some(id)) => match object.remove("error").filter(|e| !e.is_null()) {
                Some(error) => Self::Response(id, Err(RpcError::read(&error))),
                None => Self::Response(id, Ok(object.remove("result").unwrap_or_default())),
            },
            (None, None) => junk(),
        }
    }
}

/// A request as a line.
pub fn request(id: u64, method: &str, params: &Value) -> Vec<u8> {
    line(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }))
}

/// A notification as a line.
pub fn notification(method: &str, params: &Value) -> Vec<u8> {
    line(&json!({ "jsonrpc": "2.0", "method": method, "params": params }))
}

/// An answer as a line.
pub fn response(id: &Value, result: &Value) -> Vec<u8> {
    line(&json!({ "jsonrpc": "2.0", "id": id, "result": result }))
}

/// An answer that refuses, as a line.
pub fn refusal(id: &Value, code: i64, message: &str) -> Vec<u8> {
    line(&json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } }))
}

fn line(message: &Value) -> Vec<u8> {
    let mut bytes = message.to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

/// At most so many bytes of a text, cut at a character, with a mark where it was cut.
pub fn shorten(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_string();
    }
    let end = (0..=limit).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::read(&line);
        }
    }

    #[test]
    fn ids_of_every_kind_come_back_as_they_were() {
        for id in ["0", "\"8a1f\"", "1.5"] {
            let line = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"fs/read_text_file","params":{{}}}}"#);
            let Message::Request(id_read, method, _) = Message::read(line.as_bytes()) else { panic!("{line}") };
            assert_eq!((id_read.to_string(), method.as_str()), (id.to_string(), "fs/read_text_file"));
            let answer = String::from_utf8(refusal(&id_read, -32601, "no such method")).unwrap();
            assert!(answer.contains(&format!("\"id\":{id}")) && answer.ends_with("}\n"), "{answer}");
        }
    }

    #[test]
    fn what_is_no_message_is_junk() {
        for line in ["Welcome!", "[1,2]", "{}", "{\"method\":7}", "\"text\"", "{\"id\":null,\"result\":1}"] {
            assert!(matches!(Message::read(line.as_bytes()), Message::Junk(_)), "{line}");
        }
        assert_eq!(Message::read(b" \t"), Message::Blank);
        let deep = format!("{{\"method\":\"m\",\"params\":{}", "[".repeat(100_000));
        assert!(matches!(Message::read(deep.as_bytes()), Message::Junk(head) if head.len() < 300));
    }

    #[test]
    fn an_error_names_what_the_agent_hid_in_its_data() {
        let read = |line: &str| match Message::read(line.as_bytes()) {
            Message::Response(_, Err(e)) => e.to_string(),
            other => panic!("{other:?}"),
        };
        let line = r#"{"id":1,"error":{"code":-32603,"message":"Internal error","data":{"details":"no such thing"}}}"#;
        assert_eq!(read(line), "Internal error: no such thing (-32603)");
        assert_eq!(read(r#"{"id":1,"error":"odd"}"#), "an error without a message (0)");
    }

    #[test]
    fn a_text_is_cut_at_a_character() {
        assert_eq!(shorten("aé", 2), "a…");
        assert_eq!(shorten("aé", 3), "aé");
    }
}
