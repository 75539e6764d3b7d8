//! What `chat` shows while a turn runs: the answer, thoughts, one line for each tool call, notes.
//!
//! Owns the position on the screen. It must not know the source of what it shows.

use std::collections::HashMap;

use serde_json::Value;

use super::render::{clean, dim, text};
use super::{Failure, Ui};

/// Tool calls whose titles are kept; a turn with more forgets the first.
const TOOLS: usize = 1000;

enum At {
    /// The start of a line, after anything.
    Start,
    /// Within the answer.
    Text,
    /// Within a thought.
    Thought,
    /// Right below the line of this tool call.
    Tool(String),
}

/// The screen while a turn runs.
pub struct Screen {
    at: At,
    /// Title and status shown last, by tool call.
    tools: HashMap<String, (String, String)>,
}

impl Screen {
    /// At the start of a line.
    pub fn new() -> Self {
        Self { at: At::Start, tools: HashMap::new() }
    }

    /// A piece of the answer.
    pub fn text(&mut self, ui: &mut Ui, piece: &str) -> Result<(), Failure> {
        if matches!(self.at, At::Thought) {
            self.end_line(ui)?;
        }
        let piece = clean(piece);
        ui.out.write_all(piece.as_bytes())?;
        ui.out.flush()?;
        self.at = if piece.ends_with('\n') { At::Start } else { At::Text };
        Ok(())
    }

    /// A piece of a thought: dim, or marked where there is no colour.
    pub fn thought(&mut self, ui: &mut Ui, piece: &str) -> Result<(), Failure> {
        if matches!(self.at, At::Text) {
            self.end_line(ui)?;
        }
        if !ui.color && !matches!(self.at, At::Thought) {
            ui.out.write_all(b"[thought] ")?;
        }
        let piece = dim(ui.color, &clean(piece));
        ui.out.write_all(piece.as_bytes())?;
        ui.out.flush()?;
        self.at = At::Thought;
        Ok(())
    }

    /// A tool call: one line. A new status replaces the line if it is the last; otherwise only the end of the call is
    /// shown.
    pub fn tool(&mut self, ui: &mut Ui, call: &Value) -> Result<(), Failure> {
        let id = text(call, "/tool_call_id");
        let (title, status) = (clean(&text(call, "/title")).replace('\n', " "), clean(&text(call, "/status")));
        let known = self.tools.get(&id).cloned();
        let (old_title, old_status) = known.clone().unwrap_or_default();
        let title = if title.is_empty() { old_title.clone() } else { title };
        let status = if status.is_empty() { old_status.clone() } else { status };
        if known.is_some() && (&old_title, &old_status) == (&title, &status) {
            return Ok(());
        }
        if self.tools.len() >= TOOLS {
            self.tools.clear();
        }
        self.tools.insert(id.clone(), (title.clone(), status.clone()));
        let below = matches!(&self.at, At::Tool(last) if *last == id);
        if known.is_some() && !below && !matches!(status.as_str(), "completed" | "failed") {
            return Ok(());
        }
        self.end_line(ui)?;
        let named = clean(&id).replace('\n', " ");
        let mut line = format!("· {}", if title.is_empty() { &named } else { &title });
        if !status.is_empty() {
            line += &format!(" ({status})");
        }
        if below && ui.out_tty {
            // Over the line above: up, and clear it.
            ui.out.write_all(b"\x1b[1A\x1b[2K")?;
        }
        let line = dim(ui.color, &line);
        ui.styled(line)?;
        ui.out.flush()?;
        self.at = At::Tool(id);
        Ok(())
    }

    /// A line of our own.
    pub fn note(&mut self, ui: &mut Ui, line: &str) -> Result<(), Failure> {
        self.end_line(ui)?;
        let line = dim(ui.color, &format!("[{}]", clean(line)));
        ui.styled(line)?;
        ui.out.flush()?;
        Ok(())
    }

    /// To the start of a line.
    pub fn end_line(&mut self, ui: &mut Ui) -> Result<(), Failure> {
        if matches!(self.at, At::Text | At::Thought) {
            ui.say("")?;
        }
        self.at = At::Start;
        Ok(())
    }
}
