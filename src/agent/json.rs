//! JSON as programs write it, read without building a tree.
//!
//! Owns the tolerance: a lone half of a surrogate pair, bytes that are not UTF-8, `NaN`, numbers out of range, control
//! characters and deep nesting cost at most the character or number that is wrong. A value stays text until a caller
//! asks for one of its fields, so an unused value costs nothing beyond its own bytes. It must not know what the values
//! mean.

use std::borrow::Cow;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::text;

/// One JSON value, as its sender wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raw<'a>(&'a str);

impl<'a> Raw<'a> {
    /// The value of a missing field.
    pub const NULL: Self = Raw("null");

    /// The text of a value that was read before.
    #[must_use]
    pub const fn of(text: &'a str) -> Self {
        Self(text)
    }

    /// The text of the value.
    #[must_use]
    pub const fn text(self) -> &'a str {
        self.0
    }

    /// Whether it is `null` or missing.
    #[must_use]
    pub fn is_null(self) -> bool {
        self.0 == "null"
    }

    /// Whether it is `true`.
    #[must_use]
    pub fn is_true(self) -> bool {
        self.0 == "true"
    }

    /// Whether it is an object.
    #[must_use]
    pub fn is_object(self) -> bool {
        self.0.starts_with('{')
    }

    /// Whether it is an array.
    #[must_use]
    pub fn is_array(self) -> bool {
        self.0.starts_with('[')
    }

    /// Fields of an object, in one pass over it; [`Raw::NULL`] for each missing field. If a name occurs twice, the last
    /// value counts.
    #[must_use]
    pub fn fields<const N: usize>(self, names: [&str; N]) -> [Self; N] {
        let mut found = [Self::NULL; N];
        if self.is_object() {
            let pick = Pick { names: &names, found: &mut found };
            // The text was read as a value before, so it parses.
            let _ = serde_json::Deserializer::from_str(self.0).deserialize_map(pick);
        }
        found
    }

    /// One field of an object.
    #[must_use]
    pub fn get(self, name: &str) -> Self {
        self.fields([name])[0]
    }

    /// The bytes of a string, with a lone half of a surrogate pair in WTF-8; `None` if the value is not a string.
    #[must_use]
    pub fn bytes(self) -> Option<Vec<u8>> {
        if !self.0.starts_with('"') {
            return None;
        }
        serde_json::Deserializer::from_str(self.0).deserialize_bytes(Bytes).ok()
    }

    /// A string, with bytes that are not UTF-8 replaced.
    #[must_use]
    pub fn string(self) -> Option<String> {
        let bytes = self.bytes()?;
        Some(String::from_utf8(bytes).unwrap_or_else(|e| text::lossy(e.as_bytes())))
    }

    /// A whole number, also as `3.0` and `"3"`.
    #[must_use]
    pub fn whole(self) -> Option<u64> {
        let text = self.0.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(self.0);
        let exact = |n: f64| n >= 0.0 && n.fract() == 0.0 && n < 9_007_199_254_740_992.0;
        text.parse().ok().or_else(|| text.parse().ok().filter(|n| exact(*n)).map(|n: f64| n as u64))
    }

    /// A whole number with its sign.
    #[must_use]
    pub fn integer(self) -> Option<i64> {
        self.0.parse().ok()
    }

    /// The items of an array, the first `limit` of them.
    #[must_use]
    pub fn items(self, limit: usize) -> Vec<Self> {
        if self.is_array() { self.collect(limit) } else { Vec::new() }
    }

    /// The values of an object, the first `limit` of them.
    #[must_use]
    pub fn values(self, limit: usize) -> Vec<Self> {
        if self.is_object() { self.collect(limit) } else { Vec::new() }
    }

    fn collect(self, limit: usize) -> Vec<Self> {
        let mut items = Vec::new();
        let _ = serde_json::Deserializer::from_str(self.0).deserialize_any(Items { items: &mut items, limit });
        items
    }

    /// The value as a tree, if its text has at most `limit` bytes. A longer value, or one nested too deep for a tree,
    /// becomes an object with `truncated` set, the size in `bytes` and the beginning in `head`.
    #[must_use]
    pub fn value(self, limit: usize) -> Value {
        if self.0.len() <= limit {
            let built = serde_json::from_str(self.0).ok();
            let mended = || mend(self.0, true).and_then(|(text, _)| serde_json::from_str(&text).ok());
            if let Some(value) = built.or_else(mended) {
                return value;
            }
        }
        // Escapes may double its length.
        let head = cut(self.0, (limit / 2).saturating_sub(32));
        serde_json::json!({ "truncated": true, "bytes": self.0.len(), "head": head })
    }
}

/// At most `limit` bytes of a text, cut between two characters.
fn cut(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0);
    &text[..end]
}

/// The value at the beginning of a text, and its length in bytes. `None`: there is no value, or it is cut off.
#[must_use]
pub fn value_at(text: &str) -> Option<(Cow<'_, str>, usize)> {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    if let Some(Ok(value)) = stream.next() {
        return Some((Cow::Borrowed(value.get()), stream.byte_offset()));
    }
    let (mended, used) = mend(text, false)?;
    let valid = serde_json::from_str::<IgnoredAny>(&mended).is_ok();
    valid.then_some((Cow::Owned(mended), used))
}

/// Bytes as text, with everything that is not UTF-8 replaced.
#[must_use]
pub fn text_of(bytes: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(bytes).map_or_else(|_| Cow::Owned(text::lossy(bytes)), Cow::Borrowed)
}

/// The top-level fields of an object that may be broken, as far as they can be recognised.
#[must_use]
pub fn outline<const N: usize>(text: &str, names: [&str; N]) -> [Option<String>; N] {
    let mut found = [const { None }; N];
    let (mut depth, mut key, mut at) = (0_usize, None, text.find('{').unwrap_or(text.len()));
    while let Some(byte) = text.as_bytes().get(at) {
        let end = match byte {
            b'"' => string_end(text, at),
            b'{' | b'[' => {
                depth += 1;
                at + 1
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    break;
                }
                at + 1
            }
            b',' | b':' | b' ' | b'\t' => at + 1,
            _ => word_end(text, at),
        };
        match (byte, key) {
            (b',', _) if depth == 1 => key = None,
            (b'"', None) if depth == 1 => {
                let name = text[at..end].trim_matches('"');
                key = names.iter().position(|n| *n == name).or(Some(N));
            }
            (b'{' | b'[' | b'}' | b']' | b',' | b':' | b' ' | b'\t', _) => {}
            (_, Some(n)) if depth == 1 && n < N => found[n] = Some(text[at..end].to_string()),
            _ => {}
        }
        at = end;
    }
    found
}

/// Where the string that begins at `at` ends.
fn string_end(text: &str, at: usize) -> usize {
    let bytes = text.as_bytes();
    let mut i = at + 1;
    while let Some(byte) = bytes.get(i) {
        match byte {
            b'\\' => i += 2,
            b'"' => return i + 1,
            _ => i += 1,
        }
    }
    text.len()
}

/// Where the word that begins at `at` ends. A word has at least one character.
fn word_end(text: &str, at: usize) -> usize {
    let rest = &text[at..];
    let first = rest.chars().next().map_or(1, char::len_utf8);
    let end = rest[first..].find([',', ':', '[', ']', '{', '}', '"', ' ', '\t', '\r', '\n']);
    at + end.map_or(rest.len(), |n| first + n)
}

/// The value at the beginning of a text, repaired, and its length in the text in bytes. Repairs control characters in
/// strings, unknown escapes, `NaN` and the like; with `strict` also lone halves of surrogate pairs and numbers out of
/// range, which a tree cannot hold. `None`: the value is cut off or cannot be repaired.
fn mend(text: &str, strict: bool) -> Option<(String, usize)> {
    let bytes = text.as_bytes();
    let mut mended = String::with_capacity(text.len());
    let (mut depth, mut at) = (0_usize, 0);
    loop {
        let end = match bytes.get(at)? {
            b'"' => {
                let end = string_end(text, at);
                mend_string(text.get(at..end)?, strict, &mut mended)?;
                end
            }
            open @ (b'{' | b'[') => {
                depth += 1;
                mended.push(char::from(*open));
                at + 1
            }
            close @ (b'}' | b']') => {
                depth = depth.checked_sub(1)?;
                mended.push(char::from(*close));
                at + 1
            }
            other @ (b',' | b':' | b' ' | b'\t' | b'\r' | b'\n') => {
                mended.push(char::from(*other));
                at + 1
            }
            _ => {
                let end = word_end(text, at);
                mended.push_str(mend_word(&text[at..end], strict)?);
                end
            }
        };
        let blank = matches!(bytes[at], b' ' | b'\t' | b'\r' | b'\n');
        at = end;
        if depth == 0 && !blank {
            return Some((mended, at));
        }
    }
}

fn mend_word(word: &str, strict: bool) -> Option<&str> {
    match word {
        "NaN" | "nan" | "Infinity" | "-Infinity" | "inf" | "-inf" | "-NaN" | "undefined" | "None" => Some("null"),
        "True" => Some("true"),
        "False" => Some("false"),
        _ if serde_json::from_str::<IgnoredAny>(word).is_err() => None,
        _ if strict && word.parse::<f64>().is_ok_and(|n| !n.is_finite()) => Some("null"),
        _ => Some(word),
    }
}

fn mend_string(string: &str, strict: bool, mended: &mut String) -> Option<()> {
    let inner = string.strip_prefix('"')?.strip_suffix('"')?;
    mended.push('"');
    let mut rest = inner;
    while let Some(at) = rest.find(|c: char| c == '\\' || c < ' ') {
        mended.push_str(&rest[..at]);
        rest = &rest[at..];
        let used = match rest.as_bytes() {
            [b'\\', b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => {
                mended.push_str(&rest[..2]);
                2
            }
            [b'\\', b'u', ..] => match unit(rest) {
                Some(0xD800..=0xDBFF) if matches!(unit(&rest[6..]), Some(0xDC00..=0xDFFF)) => {
                    mended.push_str(&rest[..12]);
                    12
                }
                Some(0xD800..=0xDFFF) if strict => {
                    mended.push(char::REPLACEMENT_CHARACTER);
                    6
                }
                Some(_) => {
                    mended.push_str(&rest[..6]);
                    6
                }
                None => {
                    mended.push_str("\\\\");
                    1
                }
            },
            [b'\\', ..] => {
                mended.push_str("\\\\");
                1
            }
            [control, ..] => {
                match control {
                    b'\t' => mended.push_str("\\t"),
                    b'\r' => mended.push_str("\\r"),
                    b'\n' => mended.push_str("\\n"),
                    _ => mended.push(char::REPLACEMENT_CHARACTER),
                }
                1
            }
            [] => return None,
        };
        rest = &rest[used..];
    }
    mended.push_str(rest);
    mended.push('"');
    Some(())
}

/// The code unit of the escape (`\u` and four digits) at the beginning of a text.
fn unit(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    if digits.bytes().all(|b| b.is_ascii_hexdigit()) { u32::from_str_radix(digits, 16).ok() } else { None }
}

/// Picks fields of an object.
struct Pick<'p, 'a, const N: usize> {
    names: &'p [&'p str; N],
    found: &'p mut [Raw<'a>; N],
}

impl<'a, const N: usize> Visitor<'a> for Pick<'_, 'a, N> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key_seed(Bytes)? {
            match self.names.iter().position(|name| name.as_bytes() == key) {
                Some(n) => self.found[n] = Raw(map.next_value::<&'a RawValue>()?.get()),
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// Collects the items of an array, or the values of an object.
struct Items<'p, 'a> {
    items: &'p mut Vec<Raw<'a>>,
    limit: usize,
}

impl<'a> Visitor<'a> for Items<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array or an object")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<(), A::Error> {
        while self.items.len() < self.limit {
            match seq.next_element::<&'a RawValue>()? {
                Some(item) => self.items.push(Raw(item.get())),
                None => break,
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key_seed(Bytes)?.is_some() {
            let value = map.next_value::<&'a RawValue>()?;
            if self.items.len() < self.limit {
                self.items.push(Raw(value.get()));
            }
        }
        Ok(())
    }
}

/// A string's bytes.
struct Bytes;

impl<'a> DeserializeSeed<'a> for Bytes {
    type Value = Vec<u8>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Vec<u8>, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl Visitor<'_> for Bytes {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a string")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }

    fn visit_str<E>(self, text: &str) -> Result<Vec<u8>, E> {
        Ok(text.as_bytes().to_vec())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn read(text: &str) -> String {
        let (value, used) = value_at(text).unwrap();
        assert_eq!(used, text.trim_end().len(), "{text}");
        value.into_owned()
    }

    #[test]
    fn fields_are_picked_in_one_pass() {
        let text = r#"{"a":1,"b":{"c":[1,{"d":"x"}]},"a":"last","\ud800":7,"e":null}"#;
        let [a, b, e, f] = Raw::of(text).fields(["a", "b", "e", "f"]);
        assert_eq!((a.string().as_deref(), e.is_null(), f.is_null()), (Some("last"), true, true));
        assert_eq!(b.get("c").items(9)[1].get("d").string().as_deref(), Some("x"));
        assert_eq!(b.get("c").items(1).len(), 1);
        assert_eq!(Raw::of(text).values(2).len(), 2);
        assert_eq!(Raw::of("[1]").get("a"), Raw::NULL);
        assert_eq!(Raw::of("7").items(3), []);
    }

    #[test]
    fn an_error_costs_only_the_wrong_character_or_number() {
        for (text, built) in [
            (r#"{"a":NaN,"b":-Infinity,"c":1e999}"#, json!({ "a": null, "b": null, "c": null })),
            (r#"{"a":"x\ud83dy","b":"\ude00"}"#, json!({ "a": "x\u{fffd}y", "b": "\u{fffd}" })),
            (r#"{"a":"\ud83d\ude00"}"#, json!({ "a": "😀" })),
            ("{\"a\":\"tab\there \u{1}\"}", json!({ "a": "tab\there \u{fffd}" })),
            (r#"{"a":"C:\path\uzz"}"#, json!({ "a": "C:\\path\\uzz" })),
            (r#"[True, False, None]"#, json!([true, false, null])),
        ] {
            assert_eq!(Raw::of(&read(text)).value(1000), built, "{text}");
        }
        for text in ["{\"a\":", "{\"a\":\"x", "{a:1}", "{\"a\":1}}"] {
            let found = value_at(text).map(|(_, used)| used);
            assert_eq!(found, (text == "{\"a\":1}}").then_some(7), "{text}");
        }
    }

    #[test]
    fn nesting_has_no_limit_and_a_value_too_deep_for_a_tree_says_so() {
        let deep = format!("{{\"id\":3,\"x\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
        let value = read(&deep);
        assert_eq!(Raw::of(&value).get("id").whole(), Some(3));
        let built = Raw::of(&value).get("x").value(100_000);
        assert_eq!((&built["truncated"], &built["bytes"]), (&json!(true), &json!(10_000)));
    }

    #[test]
    fn numbers_are_whole_however_they_are_written() {
        for (text, whole) in
            [("3", Some(3)), ("3.0", Some(3)), ("\"3\"", Some(3)), ("3.5", None), ("-1", None), ("\"x\"", None)]
        {
            assert_eq!(Raw::of(text).whole(), whole, "{text}");
        }
    }

    #[test]
    fn a_value_that_is_too_large_says_how_it_begins() {
        let text = format!("\"{}\"", "ü".repeat(1000));
        let value = Raw::of(&text).value(200);
        assert_eq!((&value["truncated"], &value["bytes"]), (&json!(true), &json!(2002)));
        assert!(value["head"].as_str().unwrap().len() <= 100);
    }

    #[test]
    fn a_broken_object_has_an_outline() {
        let names = ["id", "method"];
        let s = |text: &str| Some(text.to_string());
        for (text, expected) in [
            (r#"{"jsonrpc":"2.0","id":7,"result":{"id":9,"#, [s("7"), None]),
            (r#"{"id":"a","method":"m","params":{"x":"#, [s("\"a\""), s("\"m\"")]),
            (r#"{"result":{"id":1},"id": 4 ,}"#, [s("4"), None]),
            (r#"{"text":"\"id\":5","method":"m"#, [None, s("\"m")]),
            ("no object", [None, None]),
        ] {
            assert_eq!(outline(text, names), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "[\\[\\]{}\",:\\\\udD8a0-9eNn ü\u{1}]{0,40}") {
            if let Some((value, used)) = value_at(&text) {
                prop_assert!(text.is_char_boundary(used));
                let _ = (Raw::of(&value).fields(["a", ""]), Raw::of(&value).value(30), Raw::of(&value).string());
            }
            let _ = outline(&text, ["a", ""]);
        }

        #[test]
        fn a_correct_value_is_not_changed(keys in prop::collection::vec(".{0,6}", 0..5), text in ".{0,20}") {
            let value: Value = keys.iter().map(|k| (k.clone(), json!([text, { "k": 1.5 }]))).collect::<serde_json::Map<_, _>>().into();
            let written = value.to_string();
            prop_assert_eq!(Raw::of(&read(&written)).value(10_000), value.clone());
            prop_assert_eq!(mend(&written, true).unwrap().0, written);
        }
    }
}
