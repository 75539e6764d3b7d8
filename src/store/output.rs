//! The output of a turn, on its way into the event stream and the transcript.
//!
//! Text stays in the stream until something else follows it; then it goes into the transcript, as entries of at most
//! [`ENTRY`] bytes, so that no more of a long answer is in memory at once. A batch that was kept already, although its
//! commit was in doubt, is not added again.

use std::borrow::Cow;
use std::ops::ControlFlow;

use serde_json::{Value as Json, json};

use super::outbox::Batch;
use super::sql::{Value, params};
use super::tx::{SessionRow, Tx};
use super::{Error, Refusal};
use crate::model::event::{EventKind, Role};

/// The most bytes of one event of an answer, and of one entry of the transcript that an agent writes.
pub(super) const ENTRY: usize = 1 << 20;

/// Something that a turn adds to the transcript or the stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A piece of the answer.
    Text(String),
    /// A piece of reasoning.
    Thought(String),
    /// A tool call, whole as now known.
    Tool {
        /// The agent's id for it.
        id: String,
        /// One line.
        title: String,
        /// Its kind.
        kind: String,
        /// Its status.
        status: String,
        /// Raw fields.
        detail: Json,
    },
    /// Any other event of the stream, as it is.
    Event(EventKind, Json),
    /// The agent asks for permission: kept until it is settled, and shown by an event of its own.
    Asked {
        /// Its id.
        request_id: String,
        /// The request.
        request: Json,
        /// How often handlers were asked.
        asks: i64,
        /// Clients may answer it.
        shown: bool,
    },
    /// A permission is settled, and what the agent is sent is decided.
    Settled(String),
}

/// A text event's own fields.
#[derive(serde::Deserialize)]
struct Piece<'d> {
    #[serde(borrow)]
    text: Cow<'d, str>,
}

/// What a transaction reads of a running turn.
pub(super) struct Live {
    pub(super) id: String,
    /// Why a cancel was asked for.
    pub(super) cancel: Option<String>,
    /// How many appends it has had.
    pub(super) pieces: i64,
}

/// How much of a text fits into [`ENTRY`] bytes, in whole characters.
fn fitting(text: &str) -> usize {
    if text.len() <= ENTRY { text.len() } else { (0..=ENTRY).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0) }
}

impl Tx<'_> {
    /// Adds the last output of a turn and moves the rest of its answer to the transcript. Returns the number of the
    /// last text event. If the whole answer comes in this one write, nothing is read back.
    pub(super) fn write_last(
        &mut self,
        s: &SessionRow,
        tid: i64,
        live: &Live,
        batches: &[Batch],
    ) -> Result<Option<i64>, Error> {
        let mut items = batches.iter().flat_map(|b| &b.items);
        if live.pieces > 0 || items.any(|i| matches!(i, Item::Tool { .. })) {
            self.add_new(s, tid, &live.id, batches)?;
            return self.move_to_transcript(s, tid, &live.id);
        }
        let (mut last, mut said) = (None, String::new());
        for item in batches.iter().flat_map(|b| &b.items) {
            self.add(s, tid, &live.id, std::slice::from_ref(item))?;
            if let (Item::Text(text), Some(event)) = (item, self.out.events.last()) {
                last = Some(event.seq);
                said.push_str(text);
                self.write_full(s.sid, tid, &mut said)?;
            }
        }
        self.write_rest(s.sid, tid, said)?;
        batches.iter().filter_map(|b| b.keep.as_ref()).try_for_each(|keep| self.keep(keep))?;
        Ok(last)
    }

    /// Adds the batches that are not kept yet.
    pub(super) fn add_new(&mut self, s: &SessionRow, tid: i64, turn_id: &str, batches: &[Batch]) -> Result<(), Error> {
        for batch in batches {
            if self.run("UPDATE turns SET pieces=?2 WHERE tid=?1 AND pieces<?2", params![tid, batch.number])? > 0 {
                self.add(s, tid, turn_id, &batch.items)?;
                if let Some(keep) = &batch.keep {
                    self.keep(keep)?;
                }
            }
        }
        Ok(())
    }

    /// Adds output of a turn, in order. Text stays in the stream until something else follows it.
    fn add(&mut self, s: &SessionRow, tid: i64, turn_id: &str, items: &[Item]) -> Result<(), Error> {
        for item in items {
            match item {
                Item::Text(text) => self.emit_pieces(EventKind::Text, s, turn_id, text)?,
                Item::Thought(text) => self.emit_pieces(EventKind::Thought, s, turn_id, text)?,
                Item::Event(kind, data) => {
                    self.emit(*kind, &s.key, &s.id, Some(turn_id), data)?;
                }
                Item::Asked { .. } | Item::Settled(_) => self.keep_permission(s.sid, tid, item)?,
                Item::Tool { id, title, kind, status, detail } => {
                    self.seal(s, tid, turn_id)?;
                    let data = json!({ "tool_call_id": id, "title": title, "kind": kind, "status": status });
                    self.emit(EventKind::Tool, &s.key, &s.id, Some(turn_id), &data)?;
                    let whole = json!({
                        "tool_call_id": id, "title": title, "kind": kind, "status": status, "detail": detail
                    });
                    let known = self.run(
                        "UPDATE entries SET text=?3, detail=?4, tool_status=?5
                         WHERE tid=?1 AND role='tool' AND tool_call_id=?2",
                        params![tid, id, title, whole.to_string(), status],
                    )?;
                    if known == 0 {
                        self.tell(
                            "INSERT INTO entries (sid, tid, role, text, detail, tool_call_id, tool_status, at)
                             VALUES (?1, ?2, 'tool', ?3, ?4, ?5, ?6, ?7)",
                            params![s.sid, tid, title, whole.to_string(), id, status, self.now],
                        )?;
                    }
                }
            }
        }
        Ok(())
    }

    /// A piece of an answer or of its reasoning, as events of at most [`ENTRY`] bytes.
    fn emit_pieces(&mut self, kind: EventKind, s: &SessionRow, turn_id: &str, text: &str) -> Result<(), Error> {
        let mut rest = text;
        loop {
            let (piece, more) = rest.split_at(fitting(rest));
            self.emit(kind, &s.key, &s.id, Some(turn_id), &json!({ "text": piece }))?;
            if more.is_empty() {
                return Ok(());
            }
            rest = more;
        }
    }

    /// Moves the answer so far from the stream into the transcript.
    pub(super) fn seal(&mut self, s: &SessionRow, tid: i64, turn_id: &str) -> Result<(), Error> {
        if let Some(last) = self.move_to_transcript(s, tid, turn_id)? {
            self.tell("UPDATE turns SET sealed=?2 WHERE tid=?1", params![tid, last])?;
        }
        Ok(())
    }

    /// Copies the part of the answer that is only in the stream to the transcript. Returns the number of its last
    /// event: up to there the turn is sealed. Unreadable parts are left out, and a notice says so.
    pub(super) fn move_to_transcript(&mut self, s: &SessionRow, tid: i64, turn_id: &str) -> Result<Option<i64>, Error> {
        let sealed: i64 =
            self.row("SELECT sealed FROM turns WHERE tid=?1", params![tid], |r| r.get(0))?.ok_or(Refusal::Stale)?;
        let (mut last, mut said, mut lost) = (None, String::new(), 0);
        let mut failed = None;
        let read = self.sql.each(
            "SELECT seq, data FROM events
             WHERE key=?1 AND seq>?2 AND turn_id=?3 AND kind='text' ORDER BY seq",
            params![s.key, sealed, turn_id],
            |r| {
                last = Some(r.get(0)?);
                match r.value(1)? {
                    Value::Text(data) => match serde_json::from_str::<Piece<'_>>(data) {
                        Ok(piece) => said.push_str(&piece.text),
                        Err(_) => lost += 1,
                    },
                    _ => lost += 1,
                }
                failed = self.write_full(s.sid, tid, &mut said).err();
                Ok(if failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            },
        );
        if let Some(e) = failed {
            return Err(e);
        }
        if let Err(e) = read {
            // The rows after it cannot be reached: the statement is over.
            if !e.lies_in_rows() {
                return Err(e.into());
            }
            lost += 1;
            last = self
                .row("SELECT max(seq) FROM events WHERE key=?1 AND seq>?2", params![s.key, sealed], |r| {
                    r.get::<Option<i64>>(0)
                })?
                .flatten();
        }
        self.write_rest(s.sid, tid, said)?;
        if lost > 0 {
            log::error!(key = s.key, session_id = s.id, turn_id = turn_id; "a part of the answer cannot be read, and is not in the transcript");
            let text = "a part of the answer could not be read, and is not in the transcript";
            self.notice(s, Some(turn_id), "answer_lost", text)?;
            self.entry(s.sid, Some(tid), Role::System, text, None)?;
        }
        Ok(last)
    }

    /// Writes the entries that `said` fills, and leaves the rest in it.
    fn write_full(&mut self, sid: i64, tid: i64, said: &mut String) -> Result<(), Error> {
        let mut rest = said.as_str();
        while rest.len() > ENTRY {
            let (full, more) = rest.split_at(fitting(rest));
            self.entry(sid, Some(tid), Role::Agent, full, None)?;
            rest = more;
        }
        said.drain(..said.len() - rest.len());
        Ok(())
    }

    fn write_rest(&mut self, sid: i64, tid: i64, said: String) -> Result<(), Error> {
        if said.is_empty() { Ok(()) } else { self.entry(sid, Some(tid), Role::Agent, &said, None) }
    }

    pub(super) fn user_entries(&mut self, s: &SessionRow, tid: i64) -> Result<(), Error> {
        self.tell(
            "INSERT INTO entries (sid, tid, role, mid, at) SELECT ?1, ?2, 'user', mid, ?3 FROM messages WHERE tid=?2 ORDER BY mid",
            params![s.sid, tid, self.now],
        )?;
        Ok(())
    }

    pub(super) fn entry(
        &mut self,
        sid: i64,
        tid: Option<i64>,
        role: Role,
        text: &str,
        detail: Option<&Json>,
    ) -> Result<(), Error> {
        self.tell(
            "INSERT INTO entries (sid, tid, role, text, detail, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![sid, tid, role.as_str(), text, detail.map(Json::to_string), self.now],
        )?;
        Ok(())
    }
}
