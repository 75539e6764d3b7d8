//! The wire format: JSON-RPC 2.0, one message per line.
//!
//! Owns the shape of a message; it must not know a method ([`v1`] knows those of the protocol's version). It tolerates several messages on a line, text before a
//! message and batches, ignores unknown fields and returns an id as the agent wrote it. An unreadable message becomes
//! a [`Lost`], with everything that can be recognised in it.

use serde_json::{Value, json};

use crate::agent::json::{self, Raw};

pub mod v1;

/// How much of a line without a message is shown, in bytes.
const JUNK_SHOWN: usize = 200;
/// The error code of a cancelled request.
pub const REQUEST_CANCELLED: i64 = -32800;
/// The error code of an unreadable request.
pub const PARSE_ERROR: i64 = -32700;
/// The most messages that are read from one line.
const BATCH_LIMIT: usize = 1000;
/// How much of the end of an unread line is searched for an id, in bytes.
const ENDS: usize = 4096;
/// The most places on one line where a message is looked for.
const TRIES: usize = 16;

/// An agent's error response.
#[derive(Clone, Debug, PartialEq)]
pub struct RpcError {
    /// JSON-RPC's or ACP's code.
    pub code: i64,
    /// The message, and the text in `data` if there is one: agents often put the cause there.
    pub text: String,
}

impl RpcError {
    fn read(error: Raw<'_>) -> Self {
        let [code, message, data] = error.fields(["code", "message", "data"]);
        let message = message.string().unwrap_or_else(|| "an error without a message".to_string());
        let [details, inner] = data.fields(["details", "message"]);
        let detail = data.string().or_else(|| details.string()).or_else(|| inner.string());
        let text = match detail {
            Some(detail) if !message.contains(&detail) => format!("{message}: {detail}"),
            _ => message,
        };
        Self { code: code.integer().unwrap_or(0), text: shorten(&text, 2000) }
    }
}

impl std::fmt::Display for RpcError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.text, self.code)
    }
}

/// A request's id, as the agent wrote it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Id(String);

impl Id {
    /// The id in this value; `None` for `null`.
    pub fn read(raw: Raw<'_>) -> Option<Self> {
        (!raw.is_null()).then(|| Self(raw.text().to_string()))
    }
}

/// An unreadable message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Its id, if that can be recognised.
    pub id: Option<Id>,
    /// Whether it named a method, so it was not an answer.
    pub method: bool,
    /// The line was over the limit.
    pub too_long: bool,
    /// The line, for people.
    pub what: String,
}

impl Lost {
    /// What can be recognised in the remains of a line. `None`: it was no message.
    fn read(text: &str, what: String) -> Option<Self> {
        let [id, method] = json::outline(text, ["id", "method"]);
        // Some agents write the id last.
        let id = id.or_else(|| last_id(text)).filter(|id| id != "null").map(Id);
        let method = method.is_some();
        let is_message = id.is_some() || method || text.contains("\"jsonrpc\"");
        is_message.then_some(Self { id, method, too_long: false, what })
    }

    /// What can be recognised in the beginning and the end of a line that was too long to keep.
    pub fn too_long(bytes: usize, ends: &[u8]) -> Self {
        let what = format!("a line of {bytes} bytes, over the limit");
        let text = json::text_of(ends);
        let left = Self::read(&text, what.clone()).unwrap_or(Self { id: None, method: true, too_long: true, what });
        Self { too_long: true, ..left }
    }

    /// Whether it may have been a request, whose sender waits for an answer.
    pub fn is_request(&self) -> bool {
        match &self.id {
            Some(_) => self.method || self.answers().is_none(),
            None => !self.method,
        }
    }

    /// The number of our request, if it was an answer.
    pub fn answers(&self) -> Option<u64> {
        self.id.as_ref().filter(|_| !self.method).and_then(|id| Raw::of(&id.0).whole())
    }
}

/// The value of an `"id"` at the end of a line.
fn last_id(text: &str) -> Option<String> {
    let rest = text[text.rfind("\"id\"")? + 4..].trim_start().strip_prefix(':')?;
    let value = rest.trim().strip_suffix('}')?.trim();
    (Raw::of(value).whole().is_some()
        || json::value_at(value).is_some_and(|(_, n)| n == value.len() && value.starts_with('"')))
    .then(|| value.to_string())
}

/// A message from an agent. Parameters and results stay as the agent wrote them.
#[derive(Debug, PartialEq)]
pub enum Message {
    /// A request: id, method, parameters.
    Request(Id, String, String),
    /// A notification: method, parameters.
    Notification(String, String),
    /// The answer to our request of this number.
    Response(u64, Result<String, RpcError>),
    /// An unreadable message.
    Lost(Lost),
    /// The beginning of a text that is no message (a banner, a stray print).
    Junk(String),
}

impl Message {
    /// Reads one line. It never fails: text that is no message becomes [`Message::Junk`].
    pub fn read(line: &[u8]) -> Vec<Self> {
        let text = json::text_of(line);
        let mut messages = Vec::new();
        let mut rest = text.trim_start_matches(is_blank);
        let mut strays = Vec::new();
        let mut tries = 0;
        let mut found = false;
        while !rest.is_empty() {
            if messages.len() + strays.len() >= BATCH_LIMIT {
                messages.push(Self::too_many(rest));
                break;
            }
            let at_start = tries == 0;
            tries += 1;
            let value = if rest.starts_with(['{', '[']) { json::value_at(rest) } else { None };
            let used = match value {
                // After other text, only an object with a `jsonrpc` field counts as a message.
                Some((value, used)) if at_start || found || !Raw::of(&value).get("jsonrpc").is_null() => {
                    found = true;
                    Self::take(Raw::of(&value), &mut messages);
                    used
                }
                _ => {
                    let first = rest.chars().next().map_or(0, char::len_utf8);
                    let next = if tries < TRIES { rest[first..].find('{').map(|n| first + n) } else { None };
                    let end = next.unwrap_or(rest.len());
                    strays.push(&rest[..end]);
                    end
                }
            };
            rest = rest[used..].trim_start_matches(is_blank);
        }
        if !found && !strays.is_empty() {
            let what = format!("an unreadable line: {}", shown(&text));
            messages.push(Lost::read(&text, what).map_or_else(|| Self::Junk(shown(&text)), Self::Lost));
        } else {
            messages.extend(strays.into_iter().map(|stray| Self::Junk(shown(stray))));
        }
        messages
    }

    /// Reads a value on a line: a message, or a batch.
    fn take(value: Raw<'_>, messages: &mut Vec<Self>) {
        let mut batch = value.items(BATCH_LIMIT + 1);
        if batch.iter().any(|item| item.is_object()) {
            let too_many = batch.len() > BATCH_LIMIT;
            batch.truncate(BATCH_LIMIT);
            messages.extend(batch.into_iter().map(Self::of));
            if too_many {
                messages.push(Self::too_many(value.text()));
            }
        } else {
            messages.push(Self::of(value));
        }
    }

    /// The rest of a line with more messages than are read.
    fn too_many(rest: &str) -> Self {
        let ends = (rest.len().saturating_sub(ENDS)..rest.len()).find(|n| rest.is_char_boundary(*n)).unwrap_or(0);
        let what = format!("a line of more than {BATCH_LIMIT} messages");
        Self::Lost(Lost { what, ..Lost::too_long(rest.len(), &rest.as_bytes()[ends..]) })
    }

    fn of(value: Raw<'_>) -> Self {
        let [id, method, params, result, error] = value.fields(["id", "method", "params", "result", "error"]);
        let own = |raw: Raw<'_>| raw.text().to_string();
        let junk = || Self::Junk(shown(value.text()));
        if !method.is_null() {
            let Some(method) = method.string() else { return junk() };
            return match Id::read(id) {
                Some(id) => Self::Request(id, method, own(params)),
                None => Self::Notification(method, own(params)),
            };
        }
        match id.whole() {
            Some(number) if error.is_null() => Self::Response(number, Ok(own(result))),
            Some(number) => Self::Response(number, Err(RpcError::read(error))),
            None => junk(),
        }
    }
}

fn is_blank(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\u{feff}'
}

fn shown(text: &str) -> String {
    shorten(text, JUNK_SHOWN).escape_debug().to_string()
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
pub fn response(id: &Id, result: &Value) -> Vec<u8> {
    format!("{{\"jsonrpc\":\"2.0\",\"id\":{},\"result\":{result}}}\n", id.0).into_bytes()
}

/// An error response as a line; its id is `null` if the request's id is unknown.
pub fn refusal(id: Option<&Id>, code: i64, message: &str) -> Vec<u8> {
    let (id, error) = (id.map_or("null", |id| &id.0), json!({ "code": code, "message": message }));
    format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{error}}}\n").into_bytes()
}

fn line(message: &Value) -> Vec<u8> {
    let mut bytes = message.to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

/// At most `limit` bytes of a text, cut between two characters, with a mark at the cut.
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

        #[test]
        fn any_piece_of_a_message_is_read_without_a_panic(from in 0_usize..60, to in 0_usize..120) {
            let line = r#"{"jsonrpc":"2.0","id":3,"method":"m\ud83d","params":[NaN,{"a":"ü"}]}{"id":1,"result":{}}"#.as_bytes();
            let _ = Message::read(&line[from.min(line.len())..to.clamp(from, line.len())]);
        }
    }

    fn one(line: &str) -> Message {
        let mut messages = Message::read(line.as_bytes());
        assert_eq!(messages.len(), 1, "{line}: {messages:?}");
        messages.remove(0)
    }

    fn id(text: &str) -> Option<Id> {
        Some(Id(text.to_string()))
    }

    #[test]
    fn ids_of_every_kind_come_back_unchanged() {
        for id in ["0", "\"8a1f\"", "1.5", "\"\\ud83d\""] {
            let line = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"fs/read_text_file","params":{{}}}}"#);
            let Message::Request(id_read, method, _) = one(&line) else { panic!("{line}") };
            assert_eq!((id_read.0.as_str(), method.as_str()), (id, "fs/read_text_file"));
            let answer = String::from_utf8(refusal(Some(&id_read), -32601, "no such method")).unwrap();
            assert!(answer.contains(&format!("\"id\":{id},")) && answer.ends_with("}\n"), "{answer}");
        }
        assert!(String::from_utf8(refusal(None, -32700, "?")).unwrap().contains("\"id\":null,"));
    }

    #[test]
    fn an_answer_is_matched_by_its_number_in_every_notation() {
        for id in ["3", "3.0", "\"3\""] {
            assert_eq!(one(&format!("{{\"id\":{id},\"result\":7}}")), Message::Response(3, Ok("7".into())), "{id}");
        }
    }

    #[test]
    fn what_is_no_message_is_junk() {
        for line in
            ["Welcome!", "[1,2]", "{}", "{\"method\":7}", "\"text\"", "{\"id\":null,\"result\":1}", "{\"half\": "]
        {
            assert!(matches!(one(line), Message::Junk(_)), "{line}");
        }
        assert_eq!(Message::read(b" \t"), []);
        assert_eq!(Message::read("\u{feff}".as_bytes()), []);
    }

    /// A strict reader would lose each of them.
    #[test]
    fn a_message_is_found_among_other_text() {
        let plain = r#"{"jsonrpc":"2.0","id":3,"result":{"stopReason":"end_turn"}}"#;
        let answer = || Message::Response(3, Ok(r#"{"stopReason":"end_turn"}"#.into()));
        let read = |line: String| Message::read(line.as_bytes());
        assert_eq!(read(format!("\u{feff}{plain}")), [answer()], "a byte order mark");
        assert_eq!(read(format!("{plain}{plain}")), [answer(), answer()], "two on a line");
        assert_eq!(read(format!("{plain} {plain}\r")), [answer(), answer()]);
        assert_eq!(read(format!("[{plain},{plain}]")), [answer(), answer()], "a batch");
        let prefixed = read(format!("2026-11-27 INFO {{x}} sent {plain}"));
        assert_eq!(prefixed[0], answer(), "after the prefix of a log");
        assert!(prefixed[1..].iter().all(|m| matches!(m, Message::Junk(_))), "{prefixed:?}");
        let followed = read(format!("{plain} and more"));
        assert_eq!(followed, [answer(), Message::Junk("and more".into())]);
        for odd in [r#""x":NaN"#, r#""x":1e999"#, r#""x":"\ud83c""#, "\"x\":\"\u{1}\""] {
            let line = plain.replace("}}", &format!(",{odd}}}}}"));
            assert!(
                matches!(&read(line)[..], [Message::Response(3, Ok(result))] if result.contains("end_turn")),
                "{odd}"
            );
        }
        let mut bytes = plain.replace("}}", ",\"x\":\"caf@\"}}").into_bytes();
        let at = bytes.iter().position(|b| *b == b'@').unwrap();
        bytes[at] = 0xE9;
        assert!(matches!(&Message::read(&bytes)[..], [Message::Response(3, Ok(r))] if r.contains("caf\u{fffd}")));
        let deep = plain.replace("}}", &format!(",\"x\":{}{}}}}}", "[".repeat(9000), "]".repeat(9000)));
        assert!(matches!(&read(deep)[..], [Message::Response(3, Ok(_))]));
    }

    /// The number of messages that are read is bounded, and the rest is reported with the id of the answer in it.
    #[test]
    fn a_line_of_very_many_messages_is_bounded() {
        let end = r#"{"jsonrpc":"2.0","id":3,"result":{"stopReason":"end_turn"}}"#;
        let many = "{}".repeat(100_000);
        let all = vec!["{}"; BATCH_LIMIT].join(",");
        for line in [format!("{many}{end}"), format!("[{all},{end}]")] {
            let read = Message::read(line.as_bytes());
            assert_eq!(read.len(), BATCH_LIMIT + 1);
            assert!(matches!(read.last(), Some(Message::Lost(lost)) if lost.too_long), "{:?}", read.last());
        }
    }

    #[test]
    fn an_unreadable_message_is_recognised_by_what_is_left_of_it() {
        let lost = |line: &str| match one(line) {
            Message::Lost(lost) => lost,
            other => panic!("{line}: {other:?}"),
        };
        let request = lost(r#"{"jsonrpc":"2.0","id":"p","method":"session/request_permission","params":{"x":"#);
        assert_eq!((request.id.clone(), request.method, request.answers()), (id("\"p\""), true, None));
        let answer = lost(r#"{"jsonrpc":"2.0","id":3,"result":{"stopReason":"end_tu"#);
        assert_eq!((answer.id.clone(), answer.answers()), (id("3"), Some(3)));
        assert!(answer.what.contains("unreadable line: {\\\"jsonrpc"), "{}", answer.what);
        let last = lost(r#"{"result":{"a":garbage here,"stopReason":"end_turn"},"jsonrpc":"2.0","id":3}"#);
        assert_eq!(last.answers(), Some(3));
        let update = lost(r#"{"jsonrpc":"2.0","method":"session/update","params":{"x":"#);
        assert_eq!((update.id, update.method), (None, true));
        assert_eq!(Lost::too_long(99, br#"{"jsonrpc":"2.0","id":3,"result":{"x":"yyyy"}}"#).answers(), Some(3));
        let nothing = Lost::too_long(99, b"xxxxxx");
        assert_eq!((nothing.id, nothing.what.as_str()), (None, "a line of 99 bytes, over the limit"));
    }

    #[test]
    fn an_error_names_the_cause_in_its_data() {
        let read = |line: &str| match one(line) {
            Message::Response(_, Err(e)) => e.to_string(),
            other => panic!("{other:?}"),
        };
        let line = r#"{"id":1,"error":{"code":-32603,"message":"Internal error","data":{"details":"no such thing"}}}"#;
        assert_eq!(read(line), "Internal error: no such thing (-32603)");
        assert_eq!(read(r#"{"id":1,"error":"odd"}"#), "an error without a message (0)");
        assert_eq!(read(r#"{"id":1,"error":{"code":1,"message":"caf\udce9"}}"#), "caf\u{fffd} (1)");
    }

    #[test]
    fn a_text_is_cut_at_a_character() {
        assert_eq!(shorten("aé", 2), "a…");
        assert_eq!(shorten("aé", 3), "aé");
    }
}
