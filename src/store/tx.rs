//! A transaction in progress: its statements, the sessions' rows that it reads, and the events and journal entries that
//! it writes.

#[cfg(any(debug_assertions, test))]
use std::cell::RefCell;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use serde_json::{Value as Json, json};
use uuid::Uuid;

use super::sql::{Row, Sql, SqlError, Value, params};
use super::{Admission, Error, Shared, Tally};
use crate::clock::{self, Millis};
use crate::model::event::{EventKind, HookEvent};

/// A transaction in progress.
pub struct Tx<'c> {
    pub(super) sql: Sql<'c>,
    /// The time at its begin: the wall clock, unless that is known to be wrong.
    pub(super) now: Millis,
    /// This boot's row.
    pub(super) bid: i64,
    pub(super) shared: &'c Shared,
    pub(super) out: Commit,
    pub(super) locked: Locked,
}

impl std::fmt::Debug for Tx<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tx").field("now", &self.now).finish_non_exhaustive()
    }
}

/// The keys of which a transaction has read a session's row, which locks it. (SQLite has locked the whole database by
/// then; an engine with many writers locks the row.) The number of an event is drawn after that, so within a key numbers
/// rise in the order of the commits, and a reader that has seen one has seen all below it. Kept in debug builds, in which
/// [`Tx::emit`] checks it.
#[derive(Default)]
pub(super) struct Locked(#[cfg(any(debug_assertions, test))] RefCell<Vec<String>>);

impl Locked {
    #[cfg(any(debug_assertions, test))]
    fn add(&self, sessions: &[SessionRow]) {
        sessions.iter().for_each(|s| self.add_key(&s.key));
    }

    #[cfg(any(debug_assertions, test))]
    pub(super) fn add_key(&self, key: &str) {
        self.0.borrow_mut().push(key.to_owned());
    }

    #[cfg(not(any(debug_assertions, test)))]
    const fn add(&self, _sessions: &[SessionRow]) {}

    #[cfg(any(debug_assertions, test))]
    fn has(&self, key: &str) -> bool {
        self.0.borrow().iter().any(|locked| locked == key)
    }

    /// Another transaction begins, in the same group.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// One event of the durable stream, as published after its commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Its number.
    pub seq: i64,
    /// Its key.
    pub key: String,
    /// Its session.
    pub session_id: String,
    /// Its turn.
    pub turn_id: Option<String>,
    /// What it is.
    pub kind: EventKind,
    /// What is beside `key`, `session_id`, `turn_id` and `at`, as JSON.
    pub data: String,
    /// When it became true.
    pub at: Millis,
}

/// What a commit has to make known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// New events, in order.
    pub events: Vec<Arc<Published>>,
    /// How many deliveries to handlers became due.
    pub deliveries: usize,
    /// What was counted.
    pub tally: Tally,
    /// How many more messages wait than before; fewer: negative.
    pub waiting: i64,
}

/// How far a [`Commit`] had come: what a member of the transaction adds after it can be taken back.
#[derive(Clone, Copy)]
pub(super) struct Progress {
    events: usize,
    deliveries: usize,
    tally: Tally,
    waiting: i64,
}

impl Commit {
    pub(super) const fn is_empty(&self) -> bool {
        self.events.is_empty() && self.deliveries == 0
    }

    pub(super) const fn mark(&self) -> Progress {
        Progress { events: self.events.len(), deliveries: self.deliveries, tally: self.tally, waiting: self.waiting }
    }

    pub(super) fn truncate(&mut self, to: Progress) {
        self.events.truncate(to.events);
        self.deliveries = to.deliveries;
        self.tally = to.tally;
        self.waiting = to.waiting;
    }
}

/// The columns of a session that most transactions read.
#[derive(Clone, Debug)]
pub(super) struct SessionRow {
    pub sid: i64,
    pub id: String,
    pub key: String,
    pub status: String,
    pub hidden: bool,
    pub agent: String,
    pub epoch: i64,
    pub created_at: Millis,
    pub active_at: Millis,
    pub mark_reason: Option<String>,
    pub marked_at: Option<Millis>,
    pub cut_turn: Option<i64>,
    pub previous_id: Option<String>,
    pub next_id: Option<String>,
    pub turns: i64,
    pub messages: i64,
    pub start_reason: String,
    pub unclean: i64,
    pub agent_session: Option<String>,
    /// Messages that wait.
    pub queued: i64,
}

/// The columns of [`SessionRow`], for statements that are put together as constants.
macro_rules! session_columns {
    () => {
        "sid, id, key, status, hidden, agent, epoch, created_at, active_at, mark_reason, marked_at, cut_turn, previous_id, \
         next_id, turns, messages, start_reason, unclean, agent_session, queued"
    };
}
pub(super) use session_columns;

pub(super) const SESSION_COLUMNS: &str = session_columns!();

impl SessionRow {
    pub(super) fn read(r: &Row<'_>) -> Result<Self, SqlError> {
        Ok(Self {
            sid: r.get(0)?,
            id: r.get(1)?,
            key: r.get(2)?,
            status: r.get(3)?,
            hidden: r.get(4)?,
            agent: r.get(5)?,
            epoch: r.get(6)?,
            created_at: r.get(7)?,
            active_at: r.get(8)?,
            mark_reason: r.get(9)?,
            marked_at: r.get(10)?,
            cut_turn: r.get(11)?,
            previous_id: r.get(12)?,
            next_id: r.get(13)?,
            turns: r.get(14)?,
            messages: r.get(15)?,
            start_reason: r.get(16)?,
            unclean: r.get(17)?,
            agent_session: r.get(18)?,
            queued: r.get(19)?,
        })
    }
}

impl SessionRow {
    /// As [`SessionRow::read`], as far as the row can be read. For what must be possible with a damaged session too.
    pub(super) fn read_any(r: &Row<'_>) -> Result<Self, SqlError> {
        Ok(Self {
            sid: r.get(0)?,
            id: r.text(1)?,
            key: r.text(2)?,
            status: r.text(3)?,
            hidden: r.number(4)? != 0,
            agent: r.text(5)?,
            epoch: r.number(6)?,
            created_at: r.number(7)?,
            active_at: r.number(8)?,
            mark_reason: r.maybe_text(9)?,
            marked_at: r.maybe_number(10)?,
            cut_turn: r.maybe_number(11)?,
            previous_id: r.maybe_text(12)?,
            next_id: r.maybe_text(13)?,
            turns: r.number(14)?,
            messages: r.number(15)?,
            start_reason: r.text(16)?,
            unclean: r.number(17)?,
            agent_session: r.maybe_text(18)?,
            queued: r.number(19)?,
        })
    }
}

impl Tx<'_> {
    /// Whether turns may start.
    pub(super) fn admission(&self) -> Admission {
        self.shared.admission()
    }

    /// How many messages wait in all, with what this transaction has changed.
    pub(super) fn waiting(&self) -> i64 {
        self.shared.waiting.load(Ordering::SeqCst) + self.out.waiting
    }

    /// Notes that messages of a session wait no longer: their turn begins, or is over.
    pub(super) fn leave_queue(&mut self, sid: i64, messages: i64) -> Result<(), SqlError> {
        self.out.waiting -= messages;
        self.tell("UPDATE sessions SET queued=queued-?2 WHERE sid=?1", params![sid, messages])
    }

    /// Runs a statement. How many rows it changed.
    pub(super) fn run(&self, sql: &str, params: &[Value<'_>]) -> Result<usize, SqlError> {
        self.sql.run(sql, params)
    }

    /// Runs a statement whose count nobody needs.
    pub(super) fn tell(&self, sql: &str, params: &[Value<'_>]) -> Result<(), SqlError> {
        self.sql.tell(sql, params)
    }

    /// Inserts a row by a statement that ends in `RETURNING` with the number that the engine drew for it.
    pub(super) fn insert(&self, sql: &str, params: &[Value<'_>]) -> Result<i64, SqlError> {
        self.sql.insert(sql, params)
    }

    /// The first row, if there is any.
    pub(super) fn row<T>(
        &self,
        sql: &str,
        params: &[Value<'_>],
        read: impl FnOnce(&Row<'_>) -> Result<T, SqlError>,
    ) -> Result<Option<T>, SqlError> {
        self.sql.row(sql, params, read)
    }

    /// Every row.
    pub(super) fn rows<T>(
        &self,
        sql: &str,
        params: &[Value<'_>],
        read: impl FnMut(&Row<'_>) -> Result<T, SqlError>,
    ) -> Result<Vec<T>, SqlError> {
        self.sql.rows(sql, params, read)
    }

    /// Whether there is a row.
    pub(super) fn exists(&self, sql: &str, params: &[Value<'_>]) -> Result<bool, SqlError> {
        self.sql.exists(sql, params)
    }

    /// The first session of a statement, its row locked.
    pub(super) fn session_row(
        &self,
        sql: &str,
        params: &[Value<'_>],
        read: fn(&Row<'_>) -> Result<SessionRow, SqlError>,
    ) -> Result<Option<SessionRow>, SqlError> {
        let found = self.row(sql, params, read)?;
        self.locked.add(found.as_slice());
        Ok(found)
    }

    /// Every session of a statement, their rows locked.
    pub(super) fn session_rows(
        &self,
        sql: &str,
        params: &[Value<'_>],
        read: fn(&Row<'_>) -> Result<SessionRow, SqlError>,
    ) -> Result<Vec<SessionRow>, SqlError> {
        let found = self.rows(sql, params, read)?;
        self.locked.add(&found);
        Ok(found)
    }

    /// The session in row `sid`.
    pub(super) fn session(&self, sid: i64) -> Result<Option<SessionRow>, Error> {
        let sql = concat!("SELECT ", session_columns!(), " FROM sessions WHERE sid=?1");
        Ok(self.session_row(sql, params![sid], SessionRow::read)?)
    }

    /// As [`Tx::session`], as far as the row can be read.
    pub(super) fn session_any(&self, sid: i64) -> Result<Option<SessionRow>, Error> {
        let sql = concat!("SELECT ", session_columns!(), " FROM sessions WHERE sid=?1");
        Ok(self.session_row(sql, params![sid], SessionRow::read_any)?)
    }

    /// Appends to the durable event stream. `data` holds what is beside `key`, `session_id`, `turn_id` and `at`.
    pub(super) fn emit(
        &mut self,
        kind: EventKind,
        key: &str,
        session_id: &str,
        turn_id: Option<&str>,
        data: &Json,
    ) -> Result<i64, Error> {
        #[cfg(any(debug_assertions, test))]
        assert!(
            self.locked.has(key),
            "a number is drawn for an event of {key:?} before a row of its sessions is locked"
        );
        let data = data.to_string();
        let seq = self.insert(
            "INSERT INTO events (key, session_id, turn_id, kind, data, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6) RETURNING seq",
            params![key, session_id, turn_id, kind.as_str(), data, self.now],
        )?;
        self.out.events.push(Arc::new(Published {
            seq,
            key: key.to_owned(),
            session_id: session_id.to_owned(),
            turn_id: turn_id.map(str::to_owned),
            kind,
            data,
            at: self.now,
        }));
        Ok(seq)
    }

    /// Notifies the sender of something, through the stream.
    pub(super) fn notice(
        &mut self,
        s: &SessionRow,
        turn_id: Option<&str>,
        code: &str,
        text: &str,
    ) -> Result<(), Error> {
        self.emit(EventKind::Notice, &s.key, &s.id, turn_id, &json!({ "code": code, "text": text }))?;
        Ok(())
    }

    /// Journals an event for the handlers that are registered now. Without handlers nothing is written.
    pub(super) fn journal(&mut self, event: HookEvent, s: &SessionRow, fields: &Json) -> Result<(), Error> {
        let owed = self.shared.owed.read().unwrap_or_else(PoisonError::into_inner).clone()(event);
        if owed.is_empty() {
            return Ok(());
        }
        let upto = self
            .row("SELECT max(seq) FROM entries WHERE sid=?1", params![s.sid], |r| r.get::<Option<i64>>(0))?
            .flatten()
            .unwrap_or(0);
        let jid = self.insert(
            "INSERT INTO journal (event_id, event, key, session_id, sid, upto, fields, bid, at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) RETURNING jid",
            params![new_id(self.now), event.as_str(), s.key, s.id, s.sid, upto, fields.to_string(), self.bid, self.now],
        )?;
        for handler in owed {
            self.run(
                "INSERT INTO deliveries (jid, script, name, state) VALUES (?1, ?2, ?3, 'pending')",
                params![jid, handler.script, handler.name],
            )?;
            self.out.deliveries += 1;
        }
        Ok(())
    }
}

/// A new id: UUIDv7, so that ids sort by their time.
pub(super) fn new_id(_now: Millis) -> String {
    Uuid::now_v7().to_string()
}

/// A time as the API shows it, or null.
pub(super) fn time(at: Option<Millis>) -> Json {
    at.map_or(Json::Null, |at| clock::rfc3339(at).into())
}
