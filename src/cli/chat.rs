//! `chat`: a conversation at a terminal, or with lines from a pipe.
//!
//! While a turn runs, its events are read here, and another thread takes Ctrl-C and cancels the turn through the API,
//! so that output never waits for input.

use std::io::{BufRead, IsTerminal as _, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustyline::error::ReadlineError;
use serde_json::{Value, json};

use super::follow::{self, Ask, Listener, Seen};
use super::render::STATUS;
use super::render::{bold, clean, count, dim, number, text};
use super::screen::Screen;
use super::signals::OnInterrupt;
use super::{Done, Failure, Ui, permissions, sessions};
use crate::client::{Client, name_to_key, session_path};
use crate::config::paths::{find_state_dir, process_env};

/// Lines of history that are kept.
const HISTORY: usize = 1000;
/// Longest line: more than a message may have.
const LINE: u64 = 5 << 20;

const HELP: &str = "\
/reset   end the session; the next message begins a new one
/cancel  cancel the running turn and the queued messages
/status  show the session
/help    show this help
/quit    quit (or Ctrl-D)
Ctrl-C cancels the running turn; a second Ctrl-C quits. A line that begins with // is sent with one /.";

/// `chat [KEY]`
pub fn chat(client: &Client, key: Option<&str>, ui: &mut Ui) -> Done {
    let key = match key {
        Some(name) => name_to_key(name),
        None => {
            let user = ["USER", "LOGNAME"].iter().find_map(|v| std::env::var(v).ok()).filter(|u| !u.is_empty());
            let Some(user) = user else {
                return Err(Failure::usage("chat: $USER is not set: name a key"));
            };
            format!("local:{user}")
        }
    };
    let input = if std::io::stdin().is_terminal() { Input::editor()? } else { Input::lines(std::io::stdin().lock()) };
    // How often Ctrl-C came since the turn began; `IDLE` while no turn runs.
    let presses = Arc::new(AtomicUsize::new(IDLE));
    let _interrupts = cancel_on_interrupt(client, &key, &presses).map_err(|e| Failure::new("chat", e))?;
    Conversation { client, key, ui, input, presses, boot: None }.run()
}

/// [`Conversation::presses`] while no turn runs.
const IDLE: usize = usize::MAX;

fn cancel_on_interrupt(client: &Client, key: &str, presses: &Arc<AtomicUsize>) -> std::io::Result<OnInterrupt> {
    let (client, path, presses) = (client.clone(), session_path(key, "/cancel"), Arc::clone(presses));
    OnInterrupt::new(move || {
        let before = presses.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n != IDLE).then_some(n + 1));
        if before != Ok(0) {
            // No turn runs, or it was cancelled before: leave. A running turn goes on in the daemon.
            std::process::exit(130);
        }
        if let Err(e) = client.post(&path, None) {
            eprintln!("ostler: cancel: {}; press Ctrl-C again to quit", e.message);
        }
    })
}

/// What was typed.
pub(super) enum Line {
    Text(String),
    /// Ctrl-C at the prompt.
    Interrupted,
    End,
}

/// The source of lines.
pub(super) enum Input<'i> {
    Editor(Box<rustyline::DefaultEditor>, Option<PathBuf>),
    Lines(Box<dyn BufRead + 'i>),
}

impl<'i> Input<'i> {
    fn editor() -> Result<Self, Failure> {
        let fail = |e| Failure::new("chat", e);
        let config = rustyline::Config::builder().max_history_size(HISTORY).map_err(fail)?.build();
        let mut editor = rustyline::DefaultEditor::with_config(config).map_err(fail)?;
        let file = find_state_dir(None, &process_env).ok().map(|d| d.join("chat_history"));
        if let Some(file) = &file {
            if let Some(dir) = file.parent() {
                // Without the directory there is no history, and the conversation still works.
                // It may become the daemon's state directory too, so it is private.
                let _ = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
            }
            let _ = editor.load_history(file);
        }
        Ok(Self::Editor(Box::new(editor), file))
    }

    pub(super) fn lines(from: impl BufRead + 'i) -> Self {
        Self::Lines(Box::new(from))
    }

    fn line(&mut self, prompt: &str, remember: bool) -> Result<Line, Failure> {
        match self {
            Self::Editor(editor, file) => match editor.readline(prompt) {
                Ok(line) => {
                    if remember && !line.trim().is_empty() {
                        let _ = editor.add_history_entry(line.as_str());
                        if let Some(file) = file {
                            let _ = editor.append_history(file);
                        }
                    }
                    Ok(Line::Text(line))
                }
                Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(e) => Err(Failure::new("chat", e)),
            },
            Self::Lines(lines) => {
                let mut bytes = Vec::new();
                let n =
                    lines.by_ref().take(LINE).read_until(b'\n', &mut bytes).map_err(|e| Failure::new("stdin", e))?;
                let text = String::from_utf8(bytes).map_err(|_| Failure::new("stdin", "is not UTF-8 text"))?;
                Ok(if n == 0 { Line::End } else { Line::Text(text.trim_end_matches(['\n', '\r']).to_owned()) })
            }
        }
    }
}

pub(super) struct Conversation<'a> {
    pub client: &'a Client,
    pub key: String,
    pub ui: &'a mut Ui,
    pub input: Input<'a>,
    pub presses: Arc<AtomicUsize>,
    /// The daemon's boot, as last known.
    pub boot: Option<String>,
}

impl Conversation<'_> {
    pub fn run(&mut self) -> Done {
        self.greet()?;
        loop {
            let line = match self.input.line("> ", true)? {
                Line::Text(line) => line,
                Line::Interrupted => continue,
                Line::End => return Ok(0),
            };
            let line = line.trim();
            match line {
                "" => {}
                "/quit" | "/exit" => return Ok(0),
                "/help" => self.ui.say(HELP)?,
                "/reset" => self.act("/reset", "the next message begins a new session")?,
                "/cancel" => self.cancel()?,
                "/status" => self.status()?,
                _ if line.starts_with("//") => self.ask(&line[1..])?,
                _ if line.starts_with('/') => {
                    self.ui.say(format!("unknown command: {line}; /help lists the commands"))?
                }
                _ => self.ask(line)?,
            }
        }
    }

    fn greet(&mut self) -> Result<(), Failure> {
        let status = self.client.status(STATUS).map_err(|e| Failure::api("chat", &e))?;
        self.boot = Some(text(&status, "/boot_id")).filter(|b| !b.is_empty());
        let key = &self.key;
        let mut open = Vec::new();
        let about = match self.client.get(&session_path(key, "")) {
            Ok(s) => {
                open = s["permissions"].as_array().cloned().unwrap_or_default();
                let running = if s["turn"]["state"] == "running" { ", a turn is running" } else { "" };
                let queued = match number(&s, "/queued") {
                    0 => String::new(),
                    n => format!(", {} waiting", count(n, "message")),
                };
                format!("{}, {}{running}{queued}", text(&s, "/state"), count(number(&s, "/turns"), "turn"))
            }
            Err(e) if e.status == 404 => "a new session".to_owned(),
            Err(e) => return Err(Failure::api(key, &e)),
        };
        let line = format!("{} ({about}); /help for commands", bold(self.ui.color, &clean(key)));
        self.ui.styled(line)?;
        // A permission that was requested before we came can be answered here.
        for request in &open {
            let mut screen = Screen::new();
            ask_permission(self.client, key, request, &mut screen, self.ui, &mut self.input)?;
        }
        Ok(())
    }

    /// An error of a command ends the command, not the conversation.
    fn act(&mut self, rest: &str, done: &str) -> Result<(), Failure> {
        match self.client.post(&session_path(&self.key, rest), None) {
            Ok(_) => self.ui.styled(dim(self.ui.color, &format!("[{done}]")))?,
            Err(e) => self.ui.note(Failure::api(&self.key, &e).text),
        }
        Ok(())
    }

    /// Cancels the queued messages first, so that none begins when the running turn ends.
    fn cancel(&mut self) -> Result<(), Failure> {
        match self.client.post(&session_path(&self.key, "/cancel?queued=1"), None) {
            Ok(_) => self.act("/cancel", "cancelled"),
            Err(e) => {
                self.ui.note(Failure::api(&self.key, &e).text);
                Ok(())
            }
        }
    }

    fn status(&mut self) -> Result<(), Failure> {
        match self.client.get(&session_path(&self.key, "")) {
            Ok(s) => sessions::print(&s, false, self.ui).map(drop),
            Err(e) => {
                self.ui.note(Failure::api(&self.key, &e).text);
                Ok(())
            }
        }
    }

    fn ask(&mut self, message: &str) -> Result<(), Failure> {
        let id = uuid::Uuid::now_v7().to_string();
        let ask = Ask { key: &self.key, text: message, id: &id, deltas: true, patient: true, until: None };
        let (client, key) = (self.client, self.key.as_str());
        let mut show = Show { client, key, ui: self.ui, input: &mut self.input, screen: Screen::new(), fatal: None };
        self.presses.store(0, Ordering::SeqCst);
        let end = follow::ask(client, &ask, &mut self.boot, &mut show);
        self.presses.store(IDLE, Ordering::SeqCst);
        show.screen.end_line(show.ui)?;
        if let Some(failure) = show.fatal {
            return Err(failure);
        }
        match end {
            Ok(end) if end.outcome == "completed" => {}
            Ok(end) if end.error.is_empty() => self.ui.note(format!("turn {}", end.outcome)),
            Ok(end) => self.ui.note(format!("turn {}: {}", end.outcome, clean(&end.error))),
            Err(failure) => self.ui.note(failure.text),
        }
        Ok(())
    }
}

/// Shows a turn, and asks the user about its permissions.
struct Show<'a, 'i> {
    client: &'a Client,
    key: &'a str,
    ui: &'a mut Ui,
    input: &'a mut Input<'i>,
    screen: Screen,
    /// An error that ends the conversation and not only the turn: our own input or output is gone.
    fatal: Option<Failure>,
}

impl Listener for Show<'_, '_> {
    fn on(&mut self, seen: Seen<'_>) -> Result<(), Failure> {
        let done = self.show(seen);
        if let Err(failure) = &done {
            self.fatal = Some(failure.clone());
        }
        done
    }
}

impl Show<'_, '_> {
    fn show(&mut self, seen: Seen<'_>) -> Result<(), Failure> {
        let (screen, ui) = (&mut self.screen, &mut *self.ui);
        match seen {
            Seen::Text(piece) => screen.text(ui, piece),
            Seen::Thought(piece) => screen.thought(ui, piece),
            Seen::Tool(call) => screen.tool(ui, call),
            Seen::Accepted { deferred: true, .. } => {
                screen.note(ui, "the daemon is stopping: the message is kept, and answered after the next start")
            }
            Seen::Accepted { deferred: false, .. } => Ok(()),
            Seen::Lost(e) => screen.note(ui, &format!("{}; waiting for the daemon", e.message)),
            Seen::Back { restarted: true } => screen.note(ui, "the daemon restarted; the conversation goes on"),
            Seen::Back { restarted: false } => screen.note(ui, "connected again"),
            Seen::Turn { continues: true, resumed } => {
                screen.note(ui, if resumed { "the message runs again" } else { "the turn is continued" })
            }
            Seen::Turn { continues: false, .. } => Ok(()),
            Seen::Interrupted => screen.note(ui, "the turn was interrupted; waiting for it to continue"),
            Seen::Notice(code, said) => screen.note(ui, if said.is_empty() { code } else { said }),
            Seen::Permission(p) if text(p, "/state") == "open" => {
                match ask_permission(self.client, self.key, p, screen, ui, self.input)? {
                    Asked::Done => Ok(()),
                    Asked::Interrupted => {
                        if let Err(e) = self.client.post(&session_path(self.key, "/cancel"), None) {
                            self.ui.note(Failure::api(self.key, &e).text);
                        }
                        Ok(())
                    }
                }
            }
            Seen::Permission(p) => {
                let by = text(p, "/by");
                let by = if by.is_empty() { by } else { format!(" by {by}") };
                screen.note(ui, &format!("permission: {}{by}", text(p, "/outcome")))
            }
        }
    }
}

/// What became of a question.
enum Asked {
    /// Answered, or left to others.
    Done,
    /// Ctrl-C.
    Interrupted,
}

/// Shows a permission request and has it answered by its number; an empty line leaves it open.
fn ask_permission(
    client: &Client,
    key: &str,
    request: &Value,
    screen: &mut Screen,
    ui: &mut Ui,
    input: &mut Input<'_>,
) -> Result<Asked, Failure> {
    let options = permissions::options(request);
    screen.end_line(ui)?;
    permissions::show(request, ui)?;
    let body = loop {
        match input.line(&format!("1-{}> ", options.len()), false)? {
            Line::Text(line) if line.trim().is_empty() => {
                screen.note(ui, &format!("left open: `ostler allow {key}` and `ostler deny {key}` answer it"))?;
                return Ok(Asked::Done);
            }
            Line::Text(line) => {
                let choice = line.trim().parse::<usize>().ok().and_then(|n| options.get(n.checked_sub(1)?));
                if let Some(option) = choice {
                    break json!({ "request_id": request["request_id"], "option_id": option["option_id"] });
                }
                ui.say(format!("enter a number from 1 to {}, or an empty line to leave it open", options.len()))?;
            }
            Line::Interrupted => return Ok(Asked::Interrupted),
            Line::End => {
                screen.note(ui, "end of input: not answered")?;
                return Ok(Asked::Done);
            }
        }
    };
    match client.post(&session_path(key, "/permission"), Some(&body)) {
        Ok(_) => {}
        Err(e) if e.code == "resolved" => screen.note(ui, "already answered")?,
        Err(e) => screen.note(ui, &e.message)?,
    }
    Ok(Asked::Done)
}
