//! Text to configuration: errors name the line and the key.
//!
//! Owns the order of reading and the words of its errors.

use std::path::Path;

use super::locate::{self, Spans};
use super::raw::{Raw, build};
use super::{Config, ConfigError, check};

/// See [`super::parse`].
pub fn config(text: &str, file: Option<&Path>) -> Result<Config, ConfigError> {
    let fail = |line: Option<usize>, key: Option<String>, why: &str| ConfigError {
        file: file.map(Path::to_path_buf),
        line,
        key,
        why: plain(why),
    };
    let document = toml::de::DeTable::parse(text).map_err(|e| {
        let at = e.span().map_or(text.len(), |s| s.start);
        fail(Some(locate::line(text, at)), locate::key_near(text, at), e.message())
    })?;
    let spans = Spans::new(text, document.get_ref());
    let raw: Raw = toml::from_str(text).map_err(|e| {
        let at = e.span().map_or(0, |s| s.start);
        let key = spans.path_at(at).map(str::to_owned);
        let hint = if key.as_deref() == Some("route") { ": write [[route]]" } else { "" };
        fail(Some(spans.line(at)), key, &format!("{}{hint}", e.message()))
    })?;
    let (mut config, given) = build(raw, file);
    check::config(&config, &given).map_err(|(key, why)| {
        // A key with its default has no line: its section's line stands in, or the first.
        let parents = std::iter::successors(Some(key.as_str()), |k| k.rsplit_once(['.', '[']).map(|(p, _)| p));
        let line = parents.into_iter().find_map(|k| spans.line_of(k)).unwrap_or(1);
        fail(Some(line), Some(key.clone()), &why)
    })?;
    config.warnings = check::warnings(&config, &given)
        .into_iter()
        .map(|(key, why)| fail(spans.line_of(&key), Some(key), &why).to_string())
        .collect();
    Ok(config)
}

/// The words of the TOML library in ours.
fn plain(why: &str) -> String {
    const WORDS: [(&str, &str); 12] = [
        ("unknown field", "unknown key"),
        ("missing field", "missing key"),
        ("unknown variant", "unknown value"),
        ("expected usize", "expected a whole number, 0 or more"),
        ("expected u32", "expected a whole number, 0 or more"),
        ("expected a sequence", "expected a list"),
        ("expected a map", "expected a table"),
        ("invalid type: map", "invalid type: table"),
        ("invalid type: sequence", "invalid type: list"),
        (" as i128", ""),
        (
            "string values must be quoted, expected literal string",
            "is not a value: text must be in quotes, and a key has one value",
        ),
        ("expected struct RawAgent", "expected a table: [agent.NAME]"),
    ];
    let line = why.trim_end().replace('\n', "; ");
    WORDS.iter().fold(line, |line, (theirs, ours)| line.replace(theirs, ours))
}
