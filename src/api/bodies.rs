//! Bodies of requests: what each may say. A field that nobody asks for is skipped and never built, so that a body costs
//! what it is long and not what it could become as a tree.

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::ApiError;

/// A field that should be a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Field {
    /// It is not there, or null.
    #[default]
    Absent,
    /// It is one.
    Text(String),
    /// It is something else.
    Other,
}

impl Field {
    /// The text, if there is one.
    ///
    /// # Errors
    /// It is something else.
    pub fn optional(self, name: &str) -> Result<Option<String>, ApiError> {
        match self {
            Self::Absent => Ok(None),
            Self::Text(text) => Ok(Some(text)),
            Self::Other => Err(ApiError::parameter(format!("{name}: a text is needed"))),
        }
    }

    /// The text.
    ///
    /// # Errors
    /// There is none.
    pub fn needed(self, name: &str) -> Result<String, ApiError> {
        let missing = || ApiError::parameter(format!("{name}: a text is needed"));
        self.optional(name)?.ok_or_else(missing)
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(FieldVisitor)
    }
}

struct FieldVisitor;

impl<'de> Visitor<'de> for FieldVisitor {
    type Value = Field;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("anything")
    }

    fn visit_str<E>(self, text: &str) -> Result<Field, E> {
        Ok(Field::Text(text.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Field, E> {
        Ok(Field::Absent)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Field, E> {
        Ok(Field::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Field, E> {
        Ok(Field::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Field, E> {
        Ok(Field::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Field, E> {
        Ok(Field::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Field, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Field::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Field, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Field::Other)
    }
}

/// A message.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Message {
    /// What is said.
    pub text: Field,
    /// The client's own id of it.
    pub id: Field,
}

/// A stop.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Stop {
    /// `shutdown` or `restart`.
    pub reason: Field,
    /// `graceful`, `fast` or `now`.
    pub urgency: Field,
    /// `keep` or `end`: what becomes of the agents this time.
    pub agents: Field,
}

/// A copy of the database.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Backup {
    /// Where to.
    pub path: Field,
}

/// The answer to an agent's question.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Permission {
    /// Which question.
    pub request_id: Field,
    /// The answer.
    pub option_id: Field,
}

/// A sample event. Its fields are for the script to judge: the one tree that is built of a body, of one that is small.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Fire {
    /// Which.
    pub event: Field,
    /// What stands in it beside, or in place of, what a sample has.
    pub fields: Option<Map<String, Value>>,
}

/// The most bytes of a message's body.
const MESSAGE: u64 = 4 << 20;
/// The most bytes of any other body: names, paths, a sample's fields.
const SMALL: u64 = 256 << 10;

/// The most bytes that the body of a request for this path may have.
#[must_use]
pub fn limit(path: &str) -> u64 {
    if path.starts_with("/v1/sessions/") && path.ends_with("/messages") { MESSAGE } else { SMALL }
}

/// A JSON object from a body; none at all is an empty one.
///
/// # Errors
/// It is no JSON object, or a field in it is not what it should be.
pub fn read<'de, T: Deserialize<'de> + Default>(body: &'de [u8]) -> Result<T, ApiError> {
    let invalid = |what: String| ApiError::new(400, "invalid_json", what);
    let first = body.iter().find(|b| !b" \t\r\n".contains(b));
    match first {
        None if body.is_empty() => Ok(T::default()),
        // A struct could be read from a list too, field by field.
        Some(b'[' | b'"') if serde_json::from_slice::<IgnoredAny>(body).is_ok() => {
            Err(invalid("the body is not a JSON object".to_owned()))
        }
        _ => serde_json::from_slice(body).map_err(|e| invalid(format!("the body is not JSON as it is meant: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_body_is_read_as_it_is_meant() {
        let text = |t: &str| Field::Text(t.to_owned());
        type Read = Result<(Field, Field), &'static str>;
        let table: &[(&str, Read)] = &[
            ("", Ok((Field::Absent, Field::Absent))),
            ("{}", Ok((Field::Absent, Field::Absent))),
            (" \n{\"text\":\"a\\u00e4\",\"id\":null}\r\n", Ok((text("aä"), Field::Absent))),
            ("{\"id\":[1,{\"a\":[]}],\"text\":{\"text\":\"b\"}}", Ok((Field::Other, Field::Other))),
            ("{\"text\":1.5,\"id\":true}", Ok((Field::Other, Field::Other))),
            ("{\"x\":[1,1,[[[]]],{\"text\":\"no\"}],\"text\":\"a\"}", Ok((text("a"), Field::Absent))),
            ("[\"a\",\"b\"]", Err("not a JSON object")),
            ("\"a\"", Err("not a JSON object")),
            ("7", Err("not JSON")),
            (" ", Err("not JSON")),
            ("{\"text\":\"a\"", Err("not JSON")),
            ("{\"text\":\"a\"} {}", Err("not JSON")),
            ("{\"text\":\"a\",\"text\":\"b\"}", Err("duplicate")),
            ("{\"text\":\"\\ud800\"}", Err("not JSON")),
        ];
        for (body, wanted) in table {
            match (read::<Message>(body.as_bytes()), wanted) {
                (Ok(m), Ok((text, id))) => assert_eq!((&m.text, &m.id), (text, id), "{body}"),
                (Err(e), Err(word)) => {
                    assert_eq!(e.code(), "invalid_json");
                    assert!(e.to_string().contains(word), "{body}: {e}");
                }
                (got, _) => panic!("{body}: {got:?}"),
            }
        }
    }

    #[test]
    fn only_messages_are_large() {
        assert_eq!(limit("/v1/sessions/local%3Aa/messages"), 4 << 20);
        assert_eq!(limit("/v1/sessions/local%3Aa/permission"), 256 << 10);
        assert_eq!(limit("/v1/hooks/fire"), 256 << 10);
    }
}
