//! JSON to what people read: tables, fields, ages. Pure but for the clock that `ago` is given.

use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

use super::Ui;
use crate::clock::{self, Millis};
use crate::config::is_unseen;

/// How long a status may take: it is asked for when something is wrong, and nobody waits long for it.
pub const STATUS: Duration = Duration::from_secs(10);

/// A table without lines, as wide as the terminal; `-` where there is nothing.
pub fn table(ui: &Ui, headers: &[&str], rows: Vec<Vec<String>>) -> String {
    table_within(ui.width, headers, rows)
}

/// A table if it fits the terminal; else a block of names and values for each row, so that a value to copy stays in one
/// piece.
pub fn table_or_records(ui: &Ui, headers: &[&str], rows: Vec<Vec<String>>) -> String {
    let whole = table_within(None, headers, rows.clone());
    if fits(ui, &whole) {
        return whole;
    }
    let block = |row: Vec<String>| fields(&headers.iter().copied().zip(row).collect::<Vec<_>>());
    rows.into_iter().map(block).collect::<Vec<_>>().join("\n\n")
}

/// Whether no line is wider than the terminal.
pub fn fits(ui: &Ui, text: &str) -> bool {
    ui.width.is_none_or(|w| text.lines().all(|l| l.chars().count() <= usize::from(w)))
}

/// The first characters of a text, at most so many; the last is `…` if the text is longer.
pub fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// A table as wide as its rows.
pub fn whole_table(headers: &[&str], rows: Vec<Vec<String>>) -> String {
    table_within(None, headers, rows)
}

fn table_within(width: Option<u16>, headers: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    let fit = if width.is_some() { ContentArrangement::Dynamic } else { ContentArrangement::Disabled };
    table.load_style(presets::NOTHING).set_content_arrangement(fit);
    if let Some(width) = width {
        table.set_width(width);
    }
    table.set_header(headers.iter().map(|h| h.to_uppercase()));
    for row in rows {
        table.add_row(row.into_iter().map(|c| if c.is_empty() { "-".to_owned() } else { label(&c) }));
    }
    let text = table.to_string();
    let lines = text.lines().map(|l| l.strip_prefix(' ').unwrap_or(l).trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

/// Names and values in two columns; rows without a value are left out.
pub fn fields(rows: &[(&str, String)]) -> String {
    let rows: Vec<_> = rows.iter().filter(|(_, v)| !v.is_empty()).collect();
    let width = rows.iter().map(|(n, _)| n.len()).max().unwrap_or(0);
    rows.iter().map(|(n, v)| format!("{n:width$}  {}\n", label(v))).collect::<String>().trim_end().to_owned()
}

/// A field's value as text; empty for `null` and a missing field.
pub fn text(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(s)) => s.clone(),
        Some(other) => other.to_string(),
    }
}

/// A number, 0 if it is not there.
pub fn number(value: &Value, pointer: &str) -> i64 {
    value.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

/// The list in an answer: `{"sessions":[…]}`, or the array itself.
pub fn items(value: &Value) -> &[Value] {
    let list = match value {
        Value::Array(list) => Some(list),
        Value::Object(fields) => fields.values().find_map(Value::as_array),
        _ => None,
    };
    list.map_or(&[], Vec::as_slice)
}

/// An error in an event or an answer, which may be `{code, message}` or a text.
pub fn error_text(error: &Value) -> String {
    match (error.get("code").and_then(Value::as_str), error.get("message").and_then(Value::as_str)) {
        (Some(code), Some(message)) => format!("{message} ({code})"),
        (Some(one), None) | (None, Some(one)) => one.to_owned(),
        (None, None) => match error {
            Value::Null => String::new(),
            Value::String(s) => s.clone(),
            other => other.to_string(),
        },
    }
}

/// How long ago an instant was: `3m ago`.
pub fn ago(at: &str, now: Millis) -> String {
    let Ok(then) = at.parse::<jiff::Timestamp>() else { return at.to_owned() };
    let seconds = (now - then.as_millisecond()) / 1000;
    match seconds {
        ..0 => at.to_owned(),
        0..60 => format!("{seconds}s ago"),
        60..3600 => format!("{}m ago", seconds / 60),
        3600..86_400 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

/// `ago` by the wall clock.
pub fn ago_now(at: &str) -> String {
    ago(at, clock::now())
}

/// Milliseconds for people: `850ms`, `12.3s`, `4m 10s`.
pub fn millis(ms: i64) -> String {
    match ms {
        ..0 => "0ms".into(),
        0..1000 => format!("{ms}ms"),
        1000..60_000 => format!("{}.{}s", ms / 1000, ms % 1000 / 100),
        60_000..3_600_000 => format!("{}m {}s", ms / 60_000, ms % 60_000 / 1000),
        _ => format!("{}h {}m", ms / 3_600_000, ms % 3_600_000 / 60_000),
    }
}

/// `1 turn`, `2 turns`.
pub fn count(n: i64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// What still blocks a stop, a line each: key, age of the turn, tool.
pub fn blocking(status: &Value) -> Vec<String> {
    let list = status.pointer("/stop/blocking").and_then(Value::as_array);
    let line = |b: &Value| {
        let tool = text(b, "/tool");
        let tool = if tool.is_empty() { tool } else { format!(", {}", clean(&tool)) };
        format!("{} {}{tool}", clean(&text(b, "/key")), millis(number(b, "/age_ms")))
    };
    list.into_iter().flatten().map(line).collect()
}

/// Text of agents and users without control characters, which could control the reader's terminal.
pub fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

/// A name or a title within a line, without control characters, line ends, invisible characters and characters that
/// change the direction of text, so that two names that look the same are the same.
pub fn label(text: &str) -> String {
    text.chars()
        .filter_map(|c| match c {
            '\n' | '\t' | '\r' | '\u{2028}' | '\u{2029}' => Some(' '),
            c if c.is_control() || is_unseen(c) => None,
            c => Some(c),
        })
        .collect()
}

/// Whether a name is shown and typed as it is.
pub fn is_plain(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() || is_unseen(c))
}

/// JSON whose strings cannot control a terminal: JSON itself only escapes U+0000 to U+001F.
pub fn json_for_terminal(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            // Outside of strings JSON has no such characters except its line ends, which stay.
            '\u{7f}'..='\u{9f}' => out += &format!("\\u{:04x}", u32::from(c)),
            c => out.push(c),
        }
    }
    out
}

/// Dim text, where colour is welcome.
pub fn dim(color: bool, text: &str) -> String {
    paint(color, "2", text)
}

/// Bold text, where colour is welcome.
pub fn bold(color: bool, text: &str) -> String {
    paint(color, "1", text)
}

fn paint(color: bool, code: &str, text: &str) -> String {
    if color { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
}
