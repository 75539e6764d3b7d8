//! `send`: one message, one answer.

use std::io::Write as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::http::Method;

use super::args::Send;
use super::follow::{self, Ask, Listener, Seen};
use super::render::{clean, count, number, text};
use super::{Done, Failure, PROBE, Ui, exit, permissions};
use crate::client::{Client, name_to_key, session_path};

/// `send`
pub fn send(client: &Client, a: &Send, ui: &mut Ui) -> Done {
    let key = name_to_key(&a.key);
    let message = if a.text == "-" { stdin()? } else { a.text.clone() };
    if message.is_empty() {
        return Err(Failure::usage(format!("{key}: an empty message cannot be sent")));
    }
    let id = a.id.clone().unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
    let until = a.timeout.0.map(|d| Instant::now() + d);
    let left = |most: Duration| a.timeout.0.map_or(most, |d| most.min(d));
    client.answers(left(PROBE)).map_err(|e| match a.timeout.0 {
        Some(d) if d < PROBE => Failure::coded(exit::TIMEOUT, format!("{}; the message was not sent", e.message)),
        _ => Failure::api(&key, &e),
    })?;
    if a.no_wait {
        let body = json!({ "text": message, "id": id });
        let path = session_path(&key, "/messages");
        let answer = client.request(Method::POST, &path, Some(&body), left(ACCEPT)).map_err(|e| {
            let mut failure = Failure::api(&key, &e);
            if e.is_passing() && !e.is_unreachable() {
                failure.text += &format!("; the message may or may not be kept: send it again with --id {id}");
            }
            if e.code == "timeout" {
                failure.code = exit::TIMEOUT;
            }
            failure
        })?;
        if a.json || !ui.out_tty {
            ui.json(&answer.body)?;
        } else {
            ui.say(handed_over(&key, &answer.body))?;
        }
        return Ok(0);
    }
    let mut out =
        SentAnswer { ui, key: &key, held: String::new(), at_line_start: true, json: a.json, accepted: Value::Null };
    let ask = Ask { key: &key, text: &message, id: &id, deltas: false, patient: false, until };
    let end = follow::ask(client, &ask, &mut None, &mut out);
    if a.json {
        let end = end?;
        let error = if end.error.is_empty() { Value::Null } else { json!(end.error) };
        let body = json!({
            "session_id": out.accepted["session_id"], "turn_id": end.turn, "message_id": out.accepted["message_id"],
            "outcome": end.outcome, "error": error, "text": out.held,
        });
        out.ui.json(&body)?;
        return Ok(u8::from(end.outcome != "completed"));
    }
    out.finish()?;
    let end = end?;
    if end.outcome == "completed" {
        return Ok(0);
    }
    let why = if end.error.is_empty() { String::new() } else { format!(": {}", end.error) };
    Err(Failure::new(&key, format!("turn {}{why}", end.outcome)))
}

/// How long the daemon may take to accept a message.
const ACCEPT: Duration = Duration::from_secs(60);

/// The acceptance in a line.
fn handed_over(key: &str, body: &Value) -> String {
    let before = match number(body, "/queued") {
        _ if body["duplicate"] == true => ", sent before".to_owned(),
        _ if body["deferred"] == true => ", to be answered after the daemon's next start".to_owned(),
        0 => String::new(),
        n => format!(", after {}", count(n, "queued message")),
    };
    format!("{key}: accepted (turn {}{before})", text(body, "/turn_id"))
}

fn stdin() -> Result<String, Failure> {
    let most = crate::model::session::TEXT_BYTES as u64;
    let text = crate::config::bounded::take(std::io::stdin().lock(), most).map_err(|e| Failure::new("stdin", e))?;
    String::from_utf8(text).map_err(|_| Failure::new("stdin", "is not UTF-8 text"))
}

/// Prints the answer: on a terminal as it comes, else in one piece when it is whole.
struct SentAnswer<'u> {
    ui: &'u mut Ui,
    key: &'u str,
    held: String,
    at_line_start: bool,
    /// The answer becomes a field.
    json: bool,
    /// What the API said of the message.
    accepted: Value,
}

impl SentAnswer<'_> {
    fn print(&mut self, piece: &str) -> Result<(), Failure> {
        if self.json {
            self.held.push_str(piece);
            return Ok(());
        }
        if self.ui.out_tty {
            let piece = clean(piece);
            self.ui.out.write_all(piece.as_bytes())?;
            self.ui.out.flush()?;
        } else {
            self.held.push_str(piece);
        }
        self.at_line_start = piece.ends_with('\n');
        Ok(())
    }

    fn end_line(&mut self) -> Result<(), Failure> {
        if self.json || self.at_line_start { Ok(()) } else { self.print("\n") }
    }

    fn finish(&mut self) -> Result<(), Failure> {
        self.end_line()?;
        let held = std::mem::take(&mut self.held);
        self.ui.out.write_all(held.as_bytes())?;
        self.ui.out.flush()?;
        Ok(())
    }

    fn note(&mut self, line: &str) -> Result<(), Failure> {
        if self.ui.out_tty {
            self.end_line()?;
        }
        self.ui.note(line);
        Ok(())
    }
}

impl Listener for SentAnswer<'_> {
    fn on(&mut self, seen: Seen<'_>) -> Result<(), Failure> {
        match seen {
            Seen::Text(piece) => self.print(piece),
            Seen::Turn { resumed, continues } => {
                if continues {
                    self.end_line()?;
                }
                if resumed {
                    // The message runs again: the text before the break is not part of this answer.
                    self.held.clear();
                    self.at_line_start = true;
                }
                Ok(())
            }
            Seen::Accepted { deferred, body } => {
                self.accepted = body.clone();
                if !deferred {
                    return Ok(());
                }
                self.note("the daemon is stopping: the message is kept, and answered after the next start")
            }
            Seen::Lost(e) => self.note(&format!("{}; waiting for the daemon", e.message)),
            Seen::Back { restarted: true } => self.note("the daemon restarted; waiting for the answer"),
            Seen::Back { restarted: false } => self.note("connected again"),
            Seen::Interrupted => self.note("the turn was interrupted; waiting for it to continue"),
            Seen::Notice(code, said) => {
                let said = if said.is_empty() { code } else { said };
                self.note(&clean(said))
            }
            Seen::Permission(p) if text(p, "/state") == "open" => {
                let (key, title) = (self.key, permissions::title(p));
                self.note(&format!(
                    "{key} is waiting for permission: {title}; answer with `ostler allow {key}`, `ostler deny {key}`, \
                     or `ostler chat {key}`"
                ))
            }
            Seen::Thought(_) | Seen::Tool(_) | Seen::Permission(_) => Ok(()),
        }
    }
}
