//! Where a key stands in the text, and which key stands at an offset, so that every error has a line and a key.
//!
//! Owns the spans of one parsed document. It must not know what the keys mean.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The spans of every key and value of a document, by dotted path.
pub struct Spans<'t> {
    text: &'t str,
    entries: Vec<Entry>,
}

struct Entry {
    path: String,
    key: Range<usize>,
    value: Range<usize>,
}

impl<'t> Spans<'t> {
    /// Of a document that parsed.
    pub fn new(text: &'t str, table: &DeTable<'_>) -> Self {
        let mut entries = Vec::new();
        walk_table("", table, &mut entries);
        Self { text, entries }
    }

    /// The line, from 1, of a byte offset.
    pub fn line(&self, offset: usize) -> usize {
        line(self.text, offset)
    }

    /// The line on which a dotted path begins, if it is in the document.
    pub fn line_of(&self, path: &str) -> Option<usize> {
        self.entries.iter().find(|e| e.path == path).map(|e| self.line(e.key.start))
    }

    /// The innermost path whose key or value holds the offset.
    pub fn path_at(&self, offset: usize) -> Option<&str> {
        let holds = |r: &Range<usize>| (r.contains(&offset) || r.start == offset).then_some(r.len());
        self.entries
            .iter()
            .filter_map(|e| [holds(&e.key), holds(&e.value)].into_iter().flatten().min().map(|len| (len, e)))
            // Of equal spans the longer path is the inner one.
            .min_by_key(|(len, e)| (*len, usize::MAX - e.path.len()))
            .map(|(_, e)| e.path.as_str())
    }
}

/// The line, from 1, of a byte offset.
pub fn line(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|b| **b == b'\n').count()
}

/// The key nearest to an offset of a text that does not parse: the section and the name before the `=`.
pub fn key_near(text: &str, offset: usize) -> Option<String> {
    let wanted = line(text, offset);
    let mut section = String::new();
    for (n, one) in text.lines().enumerate().take(wanted) {
        let one = one.trim();
        if one.starts_with('[') && (n + 1 < wanted || one.contains(']')) {
            one.trim_start_matches('[').split(']').next().unwrap_or_default().trim().clone_into(&mut section);
        }
        if n + 1 == wanted
            && let Some((name, _)) = one.split_once('=')
            && !one.starts_with('[')
        {
            let name = name.trim();
            return Some(if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") });
        }
    }
    (!section.is_empty()).then_some(section)
}

fn walk_table(at: &str, table: &DeTable<'_>, out: &mut Vec<Entry>) {
    for (key, value) in table {
        let path = join(at, key.get_ref());
        out.push(Entry { path: path.clone(), key: key.span(), value: value.span() });
        walk_value(&path, value, out);
    }
}

fn walk_value(at: &str, value: &Spanned<DeValue<'_>>, out: &mut Vec<Entry>) {
    match value.get_ref() {
        DeValue::Table(table) => walk_table(at, table, out),
        DeValue::Array(items) => {
            for (n, item) in items.iter().enumerate() {
                let path = format!("{at}[{n}]");
                out.push(Entry { path: path.clone(), key: item.span(), value: item.span() });
                walk_value(&path, item, out);
            }
        }
        _ => {}
    }
}

/// `a.b`; parts that are no bare keys are in quotes.
pub fn join(at: &str, part: &str) -> String {
    let bare = !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let part = if bare { part.to_owned() } else { format!("{part:?}") };
    if at.is_empty() { part } else { format!("{at}.{part}") }
}
