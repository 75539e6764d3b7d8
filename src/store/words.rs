//! What a turn says, as it goes into the stream and the transcript.
//!
//! Text stays in the stream until something else closes it off; then it becomes one entry of the transcript. A batch that
//! was kept already, though its commit was in doubt, is not added again.

use rusqlite::params;
use serde_json::{Value, json};

use super::tx::{SessionRow, Tx};
use super::unkept::Batch;
use super::{Error, Refusal};
use crate::model::event::{EventKind, Role};

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
        detail: Value,
    },
    /// Any other event of the stream, as it is.
    Event(EventKind, Value),
}

/// What a transaction for a running turn looks at.
pub(super) struct Live {
    pub(super) id: String,
    /// Why a cancel was asked for.
    pub(super) cancel: Option<String>,
    /// How many appends it has had.
    pub(super) pieces: i64,
}

impl Tx<'_> {
    /// Adds the last that a turn said. What of its answer is not in the transcript yet, and the number of the last text
    /// event: known without asking, where all of it comes in this one write.
    pub(super) fn last_words(
        &mut self,
        s: &SessionRow,
        tid: i64,
        live: &Live,
        batches: &[Batch],
    ) -> Result<Option<(i64, String)>, Error> {
        let mut items = batches.iter().flat_map(|b| &b.items);
        if live.pieces > 0 || items.any(|i| matches!(i, Item::Tool { .. })) {
            self.add_new(s, tid, &live.id, batches)?;
            return self.unsealed(s, tid, &live.id);
        }
        let mut said: Option<(i64, String)> = None;
        for item in batches.iter().flat_map(|b| &b.items) {
            self.add(s, tid, &live.id, std::slice::from_ref(item))?;
            if let (Item::Text(text), Some(last)) = (item, self.out.events.last()) {
                let so_far = said.map(|(_, t)| t).unwrap_or_default();
                said = Some((last.seq, so_far + text));
            }
        }
        Ok(said)
    }

    /// Adds the batches that are not kept yet.
    pub(super) fn add_new(&mut self, s: &SessionRow, tid: i64, turn_id: &str, batches: &[Batch]) -> Result<(), Error> {
        for batch in batches {
            if self.run("UPDATE turns SET pieces=?2 WHERE tid=?1 AND pieces<?2", params![tid, batch.number])? > 0 {
                self.add(s, tid, turn_id, &batch.items)?;
            }
        }
        Ok(())
    }

    /// Adds what a turn said, in order. Text stays in the stream until something else closes it off.
    fn add(&mut self, s: &SessionRow, tid: i64, turn_id: &str, items: &[Item]) -> Result<(), Error> {
        for item in items {
            match item {
                Item::Text(text) => {
                    self.emit(EventKind::Text, &s.key, &s.id, Some(turn_id), &json!({ "text": text }))?;
                }
                Item::Thought(text) => {
                    self.emit(EventKind::Thought, &s.key, &s.id, Some(turn_id), &json!({ "text": text }))?;
                }
                Item::Event(kind, data) => {
                    self.emit(*kind, &s.key, &s.id, Some(turn_id), data)?;
                }
                Item::Tool { id, title, kind, status, detail } => {
                    self.seal(s, tid, turn_id)?;
                    let data = json!({ "tool_call_id": id, "title": title, "kind": kind, "status": status });
                    self.emit(EventKind::Tool, &s.key, &s.id, Some(turn_id), &data)?;
                    let whole = json!({
                        "tool_call_id": id, "title": title, "kind": kind, "status": status, "detail": detail
                    });
                    let known = self.run(
                        "UPDATE entries SET text=?3, detail=?4 WHERE tid=?1 AND role='tool'
                         AND json_extract(detail, '$.tool_call_id')=?2",
                        params![tid, id, title, whole.to_string()],
                    )?;
                    if known == 0 {
                        self.entry(s.sid, Some(tid), Role::Tool, title, Some(&whole))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Moves the answer so far from the stream into the transcript, as one entry.
    pub(super) fn seal(&mut self, s: &SessionRow, tid: i64, turn_id: &str) -> Result<(), Error> {
        let Some((last, text)) = self.unsealed(s, tid, turn_id)? else { return Ok(()) };
        self.run("UPDATE turns SET sealed=?2 WHERE tid=?1", params![tid, last])?;
        self.entry(s.sid, Some(tid), Role::Agent, &text, None)
    }

    /// What of the answer is in the stream and not yet in the transcript, and the number of the last event of it.
    pub(super) fn unsealed(&self, s: &SessionRow, tid: i64, turn_id: &str) -> Result<Option<(i64, String)>, Error> {
        let sealed: i64 =
            self.row("SELECT sealed FROM turns WHERE tid=?1", [tid], |r| r.get(0))?.ok_or(Refusal::Stale)?;
        let pieces = self.rows(
            "SELECT seq, json_extract(data, '$.text') FROM events
             WHERE key=?1 AND seq>?2 AND turn_id=?3 AND kind='text' ORDER BY seq",
            params![s.key, sealed, turn_id],
            |r| Ok((r.get::<_, i64>(0)?, r.get::<_, String>(1)?)),
        )?;
        Ok(pieces.last().map(|(last, _)| (*last, pieces.iter().map(|(_, t)| t.as_str()).collect())))
    }

    pub(super) fn user_entries(&mut self, s: &SessionRow, tid: i64) -> Result<(), Error> {
        self.run(
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
        detail: Option<&Value>,
    ) -> Result<(), Error> {
        self.run(
            "INSERT INTO entries (sid, tid, role, text, detail, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![sid, tid, role.as_str(), text, detail.map(Value::to_string), self.now],
        )?;
        Ok(())
    }
}
