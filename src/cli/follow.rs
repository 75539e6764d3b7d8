//! One message, followed to its outcome: through broken connections, restarts and continuations.
//!
//! The message is sent with an id, so that sending it again after a break does nothing twice. Once it is accepted, only
//! its events are read: from the first connection while that lasts, then from the key's stream after the last event
//! seen. When its turn is interrupted, the turn that `continues` it is followed instead, until one of the chain ends.
//! Owns the place in that chain; the [`Listener`] shows it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::http::Method;

use super::render::STATUS;
use super::render::{error_text, text};
use super::{Failure, exit};
use crate::client::{Client, ClientError, EventStream, SseEvent, session_path};

/// Between two attempts to connect, from and to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The key, or a session's id.
    pub key: &'a str,
    /// The message.
    pub text: &'a str,
    /// Its id.
    pub id: &'a str,
    /// Previews of the answer too.
    pub deltas: bool,
    /// Wait for the daemon if it is not there at first.
    pub patient: bool,
    /// The instant to give up.
    pub until: Option<Instant>,
}

/// What the listener is shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Seen<'e> {
    /// The message is kept; `deferred`: this boot will not answer it.
    Accepted {
        /// Answered after the next start.
        deferred: bool,
        /// What the API said of it.
        body: &'e Value,
    },
    /// The connection is lost; it will be tried again.
    Lost(&'e ClientError),
    /// There is a connection again.
    Back {
        /// The daemon is not the same process as before.
        restarted: bool,
    },
    /// A turn of the chain begins; `resumed`: it runs the message again from its beginning.
    Turn {
        /// The answer begins anew.
        resumed: bool,
        /// It goes on where the interrupted turn ended.
        continues: bool,
    },
    /// A piece of the answer, each piece once.
    Text(&'e str),
    /// A piece of reasoning, each piece once.
    Thought(&'e str),
    /// A tool call began or changed.
    Tool(&'e Value),
    /// A permission was asked for or settled.
    Permission(&'e Value),
    /// A notice for the sender.
    Notice(&'e str, &'e str),
    /// The turn was cut off; it will be continued.
    Interrupted,
}

/// Shows what happens.
pub trait Listener {
    /// Shows it. An error (our output is closed) ends the following, not the turn.
    fn on(&mut self, seen: Seen<'_>) -> Result<(), Failure>;
}

/// How the chain ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// `completed`, `failed`, `cancelled`, or `interrupted` when it will not be continued.
    pub outcome: String,
    /// Why not completed.
    pub error: String,
    /// The last turn of the chain.
    pub turn: String,
}

/// Sends the message and follows it to its end. `boot` is the boot id last known, if any, and is kept up to date, so
/// that a restart between two messages is told too.
///
/// # Errors
/// It was refused, the daemon is not there to begin with, or the time is up.
pub fn ask(
    client: &Client,
    ask: &Ask<'_>,
    boot: &mut Option<String>,
    listener: &mut dyn Listener,
) -> Result<End, Failure> {
    let now = boot_id(client, ask.until);
    if boot.is_some() && now.is_some() && *boot != now {
        listener.on(Seen::Back { restarted: true })?;
    }
    *boot = now.or(boot.take());
    let previews = [Preview::default(); 2];
    let mut follow = Follow {
        client,
        ask,
        turns: Vec::new(),
        last: None,
        looking_back: false,
        cut_off: None,
        told: String::new(),
        boot,
        previews,
    };
    follow.run(listener)
}

enum Broken {
    Api(ClientError),
    Told(Failure),
}

impl From<ClientError> for Broken {
    fn from(e: ClientError) -> Self {
        Self::Api(e)
    }
}

/// The time left until then, at most the time of a status.
fn soon(until: Option<Instant>) -> Duration {
    let left = until.map_or(STATUS, |t| t.saturating_duration_since(Instant::now()));
    left.clamp(Duration::from_millis(1), STATUS)
}

fn boot_id(client: &Client, until: Option<Instant>) -> Option<String> {
    client.status(soon(until)).ok().map(|s| text(&s, "/boot_id")).filter(|b| !b.is_empty())
}

struct Follow<'a> {
    client: &'a Client,
    ask: &'a Ask<'a>,
    /// The chain: first the message's own turn, last the turn that is followed now.
    turns: Vec<String>,
    /// The last event seen.
    last: Option<u64>,
    /// The events that come are older than our turn.
    looking_back: bool,
    /// The session of our turn, while the turn is interrupted and not yet continued.
    cut_off: Option<String>,
    /// The notice that came with the acceptance; its event repeats it.
    told: String,
    boot: &'a mut Option<String>,
    /// The shown text and thoughts of the turn that is followed.
    previews: [Preview; 2],
}

impl Follow<'_> {
    fn accepted(&self) -> bool {
        !self.turns.is_empty()
    }

    /// Connects, reads, and connects again after every break, until the chain ends or the time is up.
    fn run(&mut self, listener: &mut dyn Listener) -> Result<End, Failure> {
        let mut pause = PAUSE.0;
        let mut lost = false;
        let mut attempts = 0_u64;
        loop {
            let stream = if lost { self.again(listener) } else { self.connect() };
            let broke = match stream {
                Ok(stream) => {
                    lost = false;
                    let before = self.last;
                    let (end, broke) = self.read(stream, listener)?;
                    if let Some(end) = end {
                        return Ok(end);
                    }
                    if self.last != before {
                        pause = PAUSE.0;
                    }
                    broke
                }
                Err(Broken::Told(failure)) => return Err(failure),
                Err(Broken::Api(e)) => {
                    let absent = attempts == 0 && e.is_unreachable() && !self.ask.patient;
                    if absent || !(e.is_passing() || (self.accepted() && e.status >= 500)) {
                        return Err(Failure::api(self.ask.key, &e));
                    }
                    Some(e)
                }
            };
            attempts += 1;
            self.time_left()?;
            if let Some(e) = &broke {
                if !lost {
                    listener.on(Seen::Lost(e))?;
                }
                lost = true;
            }
            self.pause(pause.max(broke.and_then(|e| e.retry_after).unwrap_or_default()))?;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    fn pause(&self, pause: Duration) -> Result<(), Failure> {
        let left = self.ask.until.map_or(Duration::MAX, |t| t.saturating_duration_since(Instant::now()));
        std::thread::sleep(pause.min(left));
        self.time_left()
    }

    fn time_left(&self) -> Result<(), Failure> {
        if self.ask.until.is_none_or(|t| Instant::now() < t) {
            return Ok(());
        }
        let Ask { key, id, .. } = self.ask;
        let why = if self.accepted() {
            format!(
                "no answer in time; the message is kept (id {id}), and `ostler transcript {key}` shows the answer when it is there"
            )
        } else {
            format!("no answer in time; the message may or may not be kept: send it again with --id {id}")
        };
        Err(Failure::coded(exit::TIMEOUT, format!("{key}: {why}")))
    }

    fn connect(&mut self) -> Result<EventStream, Broken> {
        let Ask { key, text, id, deltas, until, patient: _ } = *self.ask;
        if !self.accepted() {
            let path = session_path(key, if deltas { "/messages?deltas=1" } else { "/messages" });
            let body = json!({ "text": text, "id": id });
            return Ok(self.client.stream_until(&path, Method::POST, Some(&body), None, until)?);
        }
        // If no event was seen, all kept events are searched for ours.
        self.looking_back |= self.last.is_none();
        let after = self.last.unwrap_or(0);
        let deltas = if deltas { "&deltas=1" } else { "" };
        let path = session_path(key, &format!("/events?after={after}{deltas}"));
        Ok(self.client.stream_until(&path, Method::GET, None, None, until)?)
    }

    /// Connects after a break, and tells whether it is still the same daemon.
    fn again(&mut self, listener: &mut dyn Listener) -> Result<EventStream, Broken> {
        let status = self.client.status(soon(self.ask.until))?;
        let boot = text(&status, "/boot_id");
        let stream = self.connect()?;
        let restarted = self.boot.as_ref().is_some_and(|b| *b != boot);
        *self.boot = Some(boot);
        if restarted {
            // Previews of the dead daemon that were not committed will not come again.
            self.previews.iter_mut().for_each(Preview::forget);
        }
        listener.on(Seen::Back { restarted }).map_err(Broken::Told)?;
        Ok(stream)
    }

    /// Reads to the end of the chain, or of the stream; the error says how the stream broke.
    fn read(
        &mut self,
        stream: EventStream,
        listener: &mut dyn Listener,
    ) -> Result<(Option<End>, Option<ClientError>), Failure> {
        for event in stream {
            let event = match event {
                Ok(event) => event,
                Err(e) => return Ok((None, Some(e))),
            };
            if let Some(id) = event.id {
                if self.last.is_some_and(|last| id <= last) {
                    continue;
                }
                self.last = Some(id);
            }
            if let Some(end) = self.take(&event, listener)? {
                return Ok((Some(end), None));
            }
        }
        Ok((None, None))
    }

    fn take(&mut self, event: &SseEvent, listener: &mut dyn Listener) -> Result<Option<End>, Failure> {
        let ours = self.turns.last().is_some_and(|t| t == event.text("turn_id"));
        self.looking_back &= !ours;
        match event.event.as_str() {
            "accepted" => self.accept(&event.data, listener)?,
            "turn_start" => self.turn(event, listener)?,
            "turn_end" if ours => return self.turn_end(event, listener),
            "text" if ours => self.said(0, event, Seen::Text, listener)?,
            "thought" if ours => self.said(1, event, Seen::Thought, listener)?,
            "delta" if ours => {
                let thought = event.text("kind") == "thought";
                let offset = event.data.get("offset").and_then(Value::as_u64).and_then(|o| usize::try_from(o).ok());
                let preview = &mut self.previews[usize::from(thought)];
                if let Some(new) = preview.delta(offset.unwrap_or(0), event.text("text")) {
                    listener.on(if thought { Seen::Thought(new) } else { Seen::Text(new) })?;
                }
            }
            "tool" if ours => listener.on(Seen::Tool(&event.data))?,
            "permission" if ours => listener.on(Seen::Permission(&event.data))?,
            // A notice without a turn is for every listener of the key, unless it is old.
            "notice" if !self.told.is_empty() && self.told == event.text("code") => self.told.clear(),
            "notice" if ours || (event.data.get("turn_id").is_none_or(Value::is_null) && !self.looking_back) => {
                listener.on(Seen::Notice(event.text("code"), event.text("text")))?;
            }
            "session_closed" | "session_end" => return Ok(self.session_over(event)),
            _ => {}
        }
        Ok(None)
    }

    fn accept(&mut self, body: &Value, listener: &mut dyn Listener) -> Result<(), Failure> {
        self.turns = vec![text(body, "/turn_id")];
        let continued = text(body, "/continued_by");
        if !continued.is_empty() {
            self.turns.push(continued);
        }
        listener.on(Seen::Accepted { deferred: body["deferred"] == true, body })?;
        match &body["notice"] {
            Value::Null => Ok(()),
            Value::String(said) => listener.on(Seen::Notice("notice", said)),
            notice => {
                self.told = text(notice, "/code");
                listener.on(Seen::Notice(&self.told, &text(notice, "/text")))
            }
        }
    }

    fn turn(&mut self, event: &SseEvent, listener: &mut dyn Listener) -> Result<(), Failure> {
        let turn = event.text("turn_id");
        let continues = self.turns.iter().any(|t| t == event.text("continues"));
        if continues && !self.turns.iter().any(|t| t == turn) {
            self.turns.push(turn.to_owned());
        }
        if self.turns.last().is_some_and(|t| t == turn) {
            self.cut_off = None;
            self.previews = [Preview::default(); 2];
            let resumed = event.data["resumed"] == true;
            listener.on(Seen::Turn { resumed, continues })?;
        }
        Ok(())
    }

    fn said<'e>(
        &mut self,
        which: usize,
        event: &'e SseEvent,
        seen: fn(&'e str) -> Seen<'e>,
        listener: &mut dyn Listener,
    ) -> Result<(), Failure> {
        match self.previews[which].committed(event.text("text")) {
            Some(new) => listener.on(seen(new)),
            None => Ok(()),
        }
    }

    fn turn_end(&mut self, event: &SseEvent, listener: &mut dyn Listener) -> Result<Option<End>, Failure> {
        let outcome = event.text("outcome");
        if outcome == "interrupted" {
            self.cut_off = Some(event.text("session_id").to_owned());
            listener.on(Seen::Interrupted)?;
            return Ok(None);
        }
        let error = event.data.get("error").map(error_text).unwrap_or_default();
        Ok(Some(End { outcome: outcome.to_owned(), error, turn: event.text("turn_id").to_owned() }))
    }

    /// A session that is over or suspended continues no turn.
    fn session_over(&self, event: &SseEvent) -> Option<End> {
        let reason = event.text("reason");
        let over = event.event == "session_closed" || reason == "suspended";
        let waiting = self.cut_off.as_deref().is_some_and(|s| s == event.text("session_id"));
        (over && waiting).then(|| End {
            outcome: "interrupted".into(),
            error: format!("the turn was interrupted and will not continue: session {reason}"),
            turn: self.turns.last().cloned().unwrap_or_default(),
        })
    }
}

/// How much of one turn's text was shown, ahead of what is committed. In bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Preview {
    shown: usize,
    committed: usize,
}

impl Preview {
    /// The new part of a preview. A preview with a gap before it is not shown; its text will come.
    fn delta<'e>(&mut self, offset: usize, text: &'e str) -> Option<&'e str> {
        let seen = self.shown.checked_sub(offset)?;
        let new = text.get(seen..).filter(|t| !t.is_empty())?;
        self.shown = offset + text.len();
        Some(new)
    }

    /// The part of a committed piece that was not previewed.
    fn committed<'e>(&mut self, text: &'e str) -> Option<&'e str> {
        let seen = self.shown.saturating_sub(self.committed);
        self.committed += text.len();
        self.shown = self.shown.max(self.committed);
        text.get(seen..).filter(|t| !t.is_empty())
    }

    /// What was previewed only is not to be counted on.
    fn forget(&mut self) {
        self.shown = self.committed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_repeats_no_preview_and_fills_every_gap() {
        let mut p = Preview::default();
        assert_eq!(p.delta(0, "he"), Some("he"));
        assert_eq!(p.delta(2, "ll"), Some("ll"));
        assert_eq!(p.committed("hello"), Some("o"), "a commit that is ahead of the previews");
        assert_eq!(p.delta(3, "lo w"), Some(" w"), "a preview that is behind");
        assert_eq!(p.delta(9, "!"), None, "a gap");
        assert_eq!(p.committed(" wor"), Some("or"));
        assert_eq!(p.delta(0, "hello"), None);
        assert_eq!(p.committed("ä!"), Some("ä!"));
        let mut p = Preview::default();
        p.delta(0, "lost");
        p.forget();
        assert_eq!(p.committed("found"), Some("found"));
    }
}
