//! Single values as text: the readers of durations, sizes, local times, addresses and log filters, and the way back.
//!
//! It must not know which keys have which values.

use std::time::Duration;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, de};

use super::Maybe;

/// The longest duration; more is `"never"`. It keeps every sum with a clock far from overflow.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

const DURATION: &str = "a duration (such as \"30s\", \"5m\", \"1h30m\")";
const MAYBE: &str = "a duration (such as \"30s\", \"5m\", \"1h30m\") or \"never\"";
const SIZE: &str = "a size (such as \"64KiB\", \"64MiB\")";
const PERCENT: &str = "a part of the processors (such as \"50%\" of one, \"200%\" for two)";
const LOCAL_TIME: &str = "a local time (HH:MM) or \"never\"";

/// Reads a duration such as `30s`, `5m`, `1h30m` or `7d` (a day is 24 hours).
///
/// # Errors
/// It is empty, negative, without a unit, longer than 100 years, or no duration.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not {DURATION}");
    // The parser also takes ISO 8601 ("P1D") and clock forms ("1:30:00"), which the manual does not promise.
    let friendly = text.starts_with(|c: char| c.is_ascii_digit()) && !text.contains(':');
    let span: jiff::Span = if friendly { text.parse().map_err(|_| wrong())? } else { return Err(wrong()) };
    let exact = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    let duration = Duration::try_from(exact).map_err(|_| wrong())?;
    if duration > LONGEST {
        return Err(format!("{text:?} is longer than 100 years"));
    }
    Ok(duration)
}

/// Reads a duration or `never` (`None`).
///
/// # Errors
/// As [`parse_duration`].
pub fn parse_maybe(text: &str) -> Result<Maybe, String> {
    if text == "never" {
        return Ok(None);
    }
    parse_duration(text).map(Some).map_err(|why| why.replace(DURATION, MAYBE))
}

/// A duration as the configuration would have it: `1h 30m`, `0s`.
#[must_use]
pub fn duration_text(duration: Duration) -> String {
    match jiff::SignedDuration::try_from(duration) {
        Ok(d) => format!("{d:#}"),
        Err(_) => format!("{duration:?}"),
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    match text.parse::<bytesize::ByteSize>() {
        Ok(size) if text.starts_with(|c: char| c.is_ascii_digit()) => Ok(size.as_u64()),
        _ => Err(format!("{text:?} is not {SIZE}")),
    }
}

fn parse_percent(text: &str) -> Result<u32, String> {
    let digits = text.strip_suffix('%').filter(|d| d.bytes().all(|b| b.is_ascii_digit()));
    digits.and_then(|d| d.parse().ok()).ok_or_else(|| format!("{text:?} is not {PERCENT}"))
}

fn parse_local_time(text: &str) -> Result<Option<(i8, i8)>, String> {
    if text == "never" {
        return Ok(None);
    }
    let part = |s: &str, end: i8| s.parse::<i8>().ok().filter(|n| s.len() == 2 && (0..end).contains(n));
    text.split_once(':')
        .and_then(|(h, m)| Some((part(h, 24)?, part(m, 60)?)))
        .map(Some)
        .ok_or_else(|| format!("{text:?} is not {LOCAL_TIME}"))
}

/// A string that `parse` turns into a value. For any other type the error says what is wanted: `drain = 30` says what a
/// duration looks like.
fn string_as<'de, D: Deserializer<'de>, T>(
    d: D,
    wanted: &'static str,
    parse: fn(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    struct Visitor<T>(&'static str, fn(&str) -> Result<T, String>);
    impl<'de, T> de::Visitor<'de> for Visitor<T> {
        type Value = T;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            (self.1)(text).map_err(E::custom)
        }
        fn visit_i64<E: de::Error>(self, n: i64) -> Result<T, E> {
            Err(E::custom(format!("{n} is not {}", self.0)))
        }
        fn visit_f64<E: de::Error>(self, n: f64) -> Result<T, E> {
            Err(E::custom(format!("{n} is not {}", self.0)))
        }
        fn visit_bool<E: de::Error>(self, b: bool) -> Result<T, E> {
            Err(E::custom(format!("{b} is not {}", self.0)))
        }
        /// A bare date or time, such as `04:00:00`, comes as a table of one.
        fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            let at = toml::value::Datetime::deserialize(de::value::MapAccessDeserializer::new(map));
            Err(A::Error::custom(match at {
                Ok(at) => format!("{at} is not {}: put it in quotes", self.0),
                Err(_) => format!("a table is not {}", self.0),
            }))
        }
    }
    d.deserialize_any(Visitor(wanted, parse))
}

pub(super) fn duration<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    string_as(d, DURATION, parse_duration)
}

pub(super) fn maybe<'de, D: Deserializer<'de>>(d: D) -> Result<Maybe, D::Error> {
    string_as(d, MAYBE, parse_maybe)
}

pub(super) fn local_time<'de, D: Deserializer<'de>>(d: D) -> Result<Option<(i8, i8)>, D::Error> {
    string_as(d, LOCAL_TIME, parse_local_time)
}

pub(super) fn filter<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    string_as(d, "a log filter (such as \"info\")", |text| log_filter(text).map(|()| text.to_owned()))
}

pub(super) fn size<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    string_as(d, SIZE, parse_size)
}

pub(super) fn some_duration<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    duration(d).map(Some)
}

/// An address with its port.
pub(super) fn address<'de, D: Deserializer<'de>>(d: D) -> Result<std::net::SocketAddr, D::Error> {
    let text = String::deserialize(d)?;
    text.parse().map_err(|_| {
        D::Error::custom(format!("{text:?} is not an IP address with a port (such as \"127.0.0.1:7411\")"))
    })
}

pub(super) fn some_maybe<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Maybe>, D::Error> {
    maybe(d).map(Some)
}

pub(super) fn some_size<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    size(d).map(Some)
}

pub(super) fn some_percent<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u32>, D::Error> {
    string_as(d, PERCENT, parse_percent).map(Some)
}

/// A table of any values, as JSON, which Lua sees as `ostler.config`. Dates become strings.
pub(super) fn json_table<'de, D: Deserializer<'de>>(d: D) -> Result<serde_json::Value, D::Error> {
    let table = toml::Table::deserialize(d)?;
    json(toml::Value::Table(table)).map_err(D::Error::custom)
}

fn json(value: toml::Value) -> Result<serde_json::Value, String> {
    use serde_json::Value as J;
    Ok(match value {
        toml::Value::String(s) => J::String(s),
        toml::Value::Integer(n) => J::from(n),
        toml::Value::Float(x) => {
            J::Number(serde_json::Number::from_f64(x).ok_or_else(|| format!("{x} is not a number that JSON has"))?)
        }
        toml::Value::Boolean(b) => J::Bool(b),
        toml::Value::Datetime(at) => J::String(at.to_string()),
        toml::Value::Array(items) => J::Array(items.into_iter().map(json).collect::<Result<_, _>>()?),
        toml::Value::Table(table) => {
            J::Object(table.into_iter().map(|(k, v)| Ok((k, json(v)?))).collect::<Result<_, String>>()?)
        }
    })
}

/// Refuses a log filter that would not do what it looks like. A lone word that is no level would silence everything but
/// the module of that name: more likely it is a typing error.
fn log_filter(text: &str) -> Result<(), String> {
    env_filter::Builder::new().try_parse(text).map_err(|e| format!("{text:?} is not a log filter: {e}"))?;
    for part in text.split('/').next().unwrap_or_default().split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let module = |m: &str| m.contains("::") || m == "ostler";
        if !part.contains('=') && part.parse::<log::LevelFilter>().is_err() && !module(part) {
            return Err(format!("{text:?} is not a log filter: {part:?} is neither a level nor MODULE=LEVEL"));
        }
    }
    Ok(())
}
