//! Reading: sessions, transcripts, events, turns and reports, as the API shows them.

use std::ops::ControlFlow;

use serde_json::{Value, json};

use super::accept::waiting;
use super::sessions::{Target, mark_json};
use super::sql::{Row, Sql, SqlError, params};
use super::tx::{Published, SESSION_COLUMNS, SessionRow, session_columns, time};
use super::{Error, Refusal, Store};
use crate::clock::{self, Millis};
use crate::model::event::{Entry, Role};

/// The most bytes of text on one page of a transcript or of events. A longer item is a page of its own.
pub const PAGE: usize = 4 << 20;

/// One session, as the API shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionView {
    /// Its id.
    pub id: String,
    /// Its row: the place in a listing.
    pub sid: i64,
    /// Its key.
    pub key: String,
    /// The JSON.
    pub json: Value,
}

/// A turn, as the API shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct TurnView {
    /// Its state's word.
    pub state: String,
    /// The turn that goes on with it.
    pub continued_by: Option<String>,
    /// Its error.
    pub error: Option<(String, String)>,
    /// No event of it is older than this one.
    pub events_after: i64,
    /// When it got its outcome.
    pub ended_at: Option<Millis>,
}

/// Which sessions to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionFilter {
    /// Any of these; empty: all but ended.
    pub states: Vec<String>,
    /// Under this key; `None`: any.
    pub key: Option<String>,
    /// At most so many.
    pub limit: usize,
    /// Older than this row.
    pub before: Option<i64>,
}

/// A page of a listing.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// Where the next begins, if there may be one.
    pub next: Option<i64>,
}

/// A page while it is filled.
struct Filling<T> {
    page: Page<T>,
    limit: usize,
    left: usize,
    last: i64,
}

impl<T> Filling<T> {
    const fn new(limit: usize) -> Self {
        Self { page: Page { items: Vec::new(), next: None }, limit, left: PAGE, last: 0 }
    }

    /// Whether an item of this size still fits. If not, the next page begins with it.
    fn has_room(&mut self, size: usize) -> bool {
        let fits = self.page.items.is_empty() || self.page.items.len() < self.limit && size <= self.left;
        if fits {
            self.left = self.left.saturating_sub(size);
        } else {
            self.page.next = Some(self.last);
        }
        fits
    }

    fn put(&mut self, place: i64, item: T) {
        self.last = place;
        self.page.items.push(item);
    }

    fn done(self) -> Page<T> {
        self.page
    }
}

/// A transcript entry, as the API shows it.
pub type TranscriptEntry = Value;

/// One event of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRow {
    /// Its number.
    pub seq: i64,
    /// Its kind's word.
    pub kind: String,
    /// Its session.
    pub session_id: String,
    /// Its turn.
    pub turn_id: Option<String>,
    /// When it was journalled.
    pub at: Millis,
    /// The JSON, whole.
    pub data: String,
}

/// How many sessions there are of each sort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Turns that run.
    pub running: i64,
    /// Messages that wait.
    pub queued: i64,
    /// Open activations.
    pub live: i64,
    /// Sessions neither live, suspended nor ended. Counted by subtraction of what is indexed.
    pub parked: i64,
    /// Suspended.
    pub suspended: i64,
    /// Marked.
    pub resume_pending: i64,
}

/// What was read of a transcript for an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Oldest first.
    pub entries: Vec<Entry>,
    /// Whether there are no others.
    pub all: bool,
    /// The newest entry that was looked at.
    pub upto: i64,
}

impl Store {
    /// The session that is meant.
    ///
    /// # Errors
    /// [`Refusal::SessionNotFound`].
    pub fn session(&self, target: &Target) -> Result<SessionView, Error> {
        self.read(|sql| match find(sql, target)? {
            Some(row) => shown(sql, &row).map(Some),
            None => Ok(None),
        })?
        .ok_or_else(|| Refusal::SessionNotFound.into())
    }

    /// The session in a row, deleted ones too.
    ///
    /// # Errors
    /// [`Refusal::SessionNotFound`].
    pub fn session_in_row(&self, sid: i64) -> Result<SessionView, Error> {
        self.read(|sql| {
            let statement = concat!("SELECT ", session_columns!(), " FROM sessions WHERE sid=?1");
            let row = sql.row(statement, params![sid], any)?;
            row.map(|row| shown(sql, &row)).transpose()
        })?
        .ok_or_else(|| Refusal::SessionNotFound.into())
    }

    /// Sessions, newest first.
    ///
    /// # Errors
    /// The store fails.
    pub fn sessions(&self, filter: &SessionFilter) -> Result<Page<SessionView>, Error> {
        let limit = filter.limit.clamp(1, 1000);
        let columns = SESSION_COLUMNS.split(", ").map(|c| format!("s.{c}")).collect::<Vec<_>>().join(", ");
        self.read(|sql| {
            let (source, meant) = listing(sql, filter);
            let row = if source.starts_with("sessions") { "s.sid" } else { "o.sid" };
            let statement = format!(
                "SELECT {columns} FROM {source} WHERE hidden=0 AND {row}<?1 AND (CAST(?3 AS TEXT) IS NULL OR key=?3) AND {meant}
                 ORDER BY {row} DESC LIMIT ?2"
            );
            let rows: Vec<Any> =
                sql.rows(&statement, params![filter.before.unwrap_or(i64::MAX), limit as i64 + 1, filter.key], any)?;
            let more = rows.len() > limit;
            let items = rows.iter().take(limit).map(|row| shown(sql, row)).collect::<Result<Vec<_>, _>>()?;
            let next = if more { items.last().map(|v| v.sid) } else { None };
            Ok(Page { items, next })
        })
    }

    /// The transcript after an entry: at most so many entries and at most [`PAGE`] bytes of them, but always one.
    ///
    /// # Errors
    /// [`Refusal::SessionNotFound`].
    pub fn transcript(&self, target: &Target, after: i64, limit: usize) -> Result<Page<TranscriptEntry>, Error> {
        self.read(|sql| {
            let Some((s, _)) = find(sql, target)? else { return Ok(None) };
            let mut page = Filling::new(limit);
            sql.each(
                "SELECT e.seq, t.id, e.role, coalesce(e.text, m.text, ''), e.at, e.detail, m.id, c.id FROM entries e
                 LEFT JOIN messages m ON m.mid=e.mid LEFT JOIN turns t ON t.tid=e.tid LEFT JOIN turns c ON c.tid=t.continues
                 WHERE e.sid=?1 AND e.seq>?2 ORDER BY e.seq LIMIT ?3",
                params![s.sid, after, limit as i64 + 1],
                |r| {
                    if !page.has_room(r.size(3)? + r.size(5)?) {
                        return Ok(ControlFlow::Break(()));
                    }
                    page.put(r.get(0)?, shown_entry(r)?);
                    Ok(ControlFlow::Continue(()))
                },
            )?;
            Ok(Some(page.done()))
        })?
        .ok_or_else(|| Refusal::SessionNotFound.into())
    }

    /// Plain entries for hooks: after `after`, at most up to `upto`, oldest first. `None`: they have more than `bytes`.
    ///
    /// # Errors
    /// The store fails.
    pub fn entries(
        &self,
        session_id: &str,
        after: i64,
        upto: i64,
        limit: usize,
        bytes: usize,
    ) -> Result<Option<Vec<Entry>>, Error> {
        self.read(|sql| {
            let (mut found, mut size) = (Vec::new(), 0);
            let statement = concat!(
                entry_columns!(),
                " WHERE e.sid=(SELECT sid FROM sessions WHERE id=?1) AND e.seq>?2 AND e.seq<=?3 ORDER BY e.seq LIMIT ?4"
            );
            sql.each(statement, params![session_id, after, upto, limit as i64], |r| {
                let entry = entry(r)?;
                size += entry.text.len();
                found.push(entry);
                Ok(if size > bytes { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            Ok(if size > bytes { None } else { Some(found) })
        })
    }

    /// Whether a session's text was removed.
    ///
    /// # Errors
    /// The store fails.
    pub fn is_purged(&self, session_id: &str) -> Result<bool, Error> {
        let purged = "SELECT purged FROM sessions WHERE id=?1";
        Ok(self.read(|sql| sql.row(purged, params![session_id], |r| r.get(0)))?.unwrap_or(false))
    }

    /// The newest entry of a session's transcript; 0 when it has none.
    ///
    /// # Errors
    /// The store fails.
    pub fn newest_entry(&self, sid: i64) -> Result<i64, Error> {
        let newest = "SELECT coalesce(max(seq), 0) FROM entries WHERE sid=?1";
        Ok(self.read(|sql| sql.row(newest, params![sid], |r| r.get(0)))?.unwrap_or(0))
    }

    /// The newest whole entries after the entry `after` that fit into `bytes`, oldest first, without those of the turn
    /// `but`.
    ///
    /// # Errors
    /// The store fails.
    pub fn history(&self, sid: i64, but: i64, after: i64, bytes: u64) -> Result<History, Error> {
        self.read(|sql| {
            let statement = concat!(
                entry_columns!(),
                " WHERE e.sid=?1 AND e.seq>?3 AND e.role IN ('user', 'agent') AND e.tid IS DISTINCT FROM ?2 ORDER BY e.seq DESC"
            );
            // Each with whether the next entry continues it: a long text is several entries, and is given as one.
            let (mut kept, mut left) = (Vec::<(Entry, bool)>::new(), bytes);
            let (mut all, mut upto) = (true, after);
            sql.each(statement, params![sid, but, after], |r| {
                let e = entry(r)?;
                upto = upto.max(e.seq);
                let more = kept.last().is_some_and(|(next, _)| goes_on(&e, next));
                let size = e.text.len() as u64;
                if size > left {
                    all = false;
                    let mut cut = more;
                    while cut {
                        cut = kept.pop().is_some_and(|(_, more)| more);
                    }
                    return Ok(ControlFlow::Break(()));
                }
                left -= size;
                kept.push((e, more));
                Ok(ControlFlow::Continue(()))
            })?;
            let (mut joined, mut going) = (Vec::<Entry>::with_capacity(kept.len()), false);
            for (e, more) in kept.into_iter().rev() {
                match joined.last_mut().filter(|_| going) {
                    Some(last) => last.text.push_str(&e.text),
                    None => joined.push(e),
                }
                going = more;
            }
            Ok(History { entries: joined, all, upto })
        })
    }

    /// Events after `after`, of one key or of all: at most so many and at most [`PAGE`] bytes of them, but always one.
    ///
    /// # Errors
    /// The store fails.
    pub fn events(&self, key: Option<&str>, after: i64, limit: usize) -> Result<Page<EventRow>, Error> {
        self.read(|sql| {
            let more = limit as i64 + 1;
            let mut page = Filling::new(limit);
            let fill = |r: &Row<'_>| {
                if !page.has_room(r.size(4)?) {
                    return Ok(ControlFlow::Break(()));
                }
                page.put(r.get(0)?, event(r)?);
                Ok(ControlFlow::Continue(()))
            };
            match key {
                Some(key) => sql.each(
                    "SELECT seq, kind, session_id, turn_id, data, at, key FROM events WHERE key=?1 AND seq>?2
                     ORDER BY seq LIMIT ?3",
                    params![key, after, more],
                    fill,
                )?,
                None => sql.each(
                    "SELECT seq, kind, session_id, turn_id, data, at, key FROM events WHERE seq>?1
                     ORDER BY seq LIMIT ?2",
                    params![after, more],
                    fill,
                )?,
            }
            Ok(page.done())
        })
    }

    /// The newest event's number, and the newest that retention removed.
    ///
    /// # Errors
    /// The store fails.
    pub fn event_bounds(&self) -> Result<(i64, i64), Error> {
        self.read(|sql| {
            let pruned = sql.row("SELECT value FROM meta WHERE name='events_pruned'", params![], |r| r.get(0))?;
            Ok((sql.newest_event()?, pruned.unwrap_or(0)))
        })
    }

    /// The key of a session that still exists, by its id.
    ///
    /// # Errors
    /// [`Refusal::SessionNotFound`].
    pub fn key_of(&self, session_id: &str) -> Result<String, Error> {
        self.session(&Target::Id(session_id.to_owned())).map(|s| s.key)
    }

    /// The key of the session in a row.
    ///
    /// # Errors
    /// [`Refusal::SessionNotFound`].
    pub fn key_of_row(&self, sid: i64) -> Result<String, Error> {
        self.read(|sql| sql.row("SELECT key FROM sessions WHERE sid=?1", params![sid], |r| r.get(0)))?
            .ok_or_else(|| Refusal::SessionNotFound.into())
    }

    /// A turn's state.
    ///
    /// # Errors
    /// [`Refusal::NotFound`].
    pub fn turn(&self, turn_id: &str) -> Result<TurnView, Error> {
        self.read(|sql| {
            sql.row(
                "SELECT t.state, n.id, t.error_code, t.error_text, t.events_after, t.ended_at FROM turns t
                 LEFT JOIN turns n ON n.tid=t.continued_by WHERE t.id=?1",
                params![turn_id],
                |r| {
                    let code: Option<String> = r.get(2)?;
                    let text: Option<String> = r.get(3)?;
                    Ok(TurnView {
                        state: r.get(0)?,
                        continued_by: r.get(1)?,
                        error: code.zip(text),
                        events_after: r.get(4)?,
                        ended_at: r.get(5)?,
                    })
                },
            )
        })?
        .ok_or_else(|| Refusal::NotFound.into())
    }

    /// How many sessions there are of each sort.
    ///
    /// # Errors
    /// The store fails.
    pub fn counts(&self) -> Result<Counts, Error> {
        self.read(|sql| {
            let count = |of: &str| Ok::<i64, SqlError>(sql.row(of, params![], |r| r.get(0))?.unwrap_or(0));
            let live = count("SELECT count(*) FROM activations WHERE closed_at IS NULL")?;
            let suspended = count("SELECT count(*) FROM sessions WHERE status='suspended'")?;
            let ended = count("SELECT count(*) FROM sessions WHERE status='ended'")?;
            let all = count("SELECT count(*) FROM sessions")?;
            Ok(Counts {
                running: count("SELECT count(*) FROM turns WHERE state='running'")?,
                queued: waiting(sql)?,
                live,
                parked: (all - live - suspended - ended).max(0),
                suspended,
                resume_pending: count("SELECT count(*) FROM sessions WHERE mark_reason IS NOT NULL")?,
            })
        })
    }

    /// The stored reports, newest first; or one of them.
    ///
    /// # Errors
    /// [`Refusal::NotFound`].
    pub fn reports(&self, boot_id: Option<&str>, limit: usize) -> Result<Vec<Value>, Error> {
        let rows: Vec<String> = self.read(|sql| {
            sql.rows(
                "SELECT report FROM boots WHERE report IS NOT NULL AND (CAST(?1 AS TEXT) IS NULL OR boot_id=?1) ORDER BY bid DESC LIMIT ?2",
                params![boot_id, limit as i64],
                |r| r.text(0),
            )
        })?;
        if rows.is_empty() && boot_id.is_some() {
            return Err(Refusal::NotFound.into());
        }
        Ok(rows.iter().filter_map(|t| serde_json::from_str(t).ok()).collect())
    }

    /// The row of a session by its id, deleted ones too.
    ///
    /// # Errors
    /// The store fails.
    pub fn sid_of(&self, session_id: &str) -> Result<Option<i64>, Error> {
        self.read(|sql| sql.row("SELECT sid FROM sessions WHERE id=?1", params![session_id], |r| r.get(0)))
    }
}

/// Whether the next entry continues the text that fills this one.
fn goes_on(e: &Entry, next: &Entry) -> bool {
    let full = e.text.len() + 4 > super::output::ENTRY;
    full && e.role == Role::Agent && next.role == Role::Agent && e.turn_id == next.turn_id
}

/// The columns of an entry as hooks and agents see it.
macro_rules! entry_columns {
    () => {
        "SELECT e.seq, t.id, e.role, coalesce(e.text, m.text, ''), e.at FROM entries e
         LEFT JOIN messages m ON m.mid=e.mid LEFT JOIN turns t ON t.tid=e.tid"
    };
}
use entry_columns;

/// An entry as the API shows it.
fn shown_entry(r: &Row<'_>) -> Result<Value, SqlError> {
    let mut entry = json!({
        "seq": r.get::<i64>(0)?, "turn_id": r.maybe_text(1)?, "role": r.text(2)?, "text": r.text(3)?,
        "at": clock::rfc3339(r.number(4)?),
    });
    if let Some(detail) = r.maybe_text(5)?
        && let Ok(Value::Object(detail)) = serde_json::from_str(&detail)
    {
        for (name, value) in detail {
            entry[name] = value;
        }
    }
    if let Some(message) = r.maybe_text(6)? {
        entry["message_id"] = message.into();
    }
    if let Some(continues) = r.maybe_text(7)? {
        entry["continues"] = continues.into();
    }
    Ok(entry)
}

fn entry(r: &Row<'_>) -> Result<Entry, SqlError> {
    Ok(Entry {
        seq: r.get(0)?,
        turn_id: r.maybe_text(1)?,
        role: Role::parse(&r.text(2)?).unwrap_or(Role::System),
        text: r.text(3)?,
        at: r.number(4)?,
    })
}

fn event(r: &Row<'_>) -> Result<EventRow, SqlError> {
    let (session_id, turn_id) = (r.text(2)?, r.maybe_text(3)?);
    let (own, at, key) = (r.text(4)?, r.number(5)?, r.text(6)?);
    let data = whole(&key, &session_id, turn_id.as_deref(), at, &own);
    Ok(EventRow { seq: r.get(0)?, kind: r.text(1)?, session_id, turn_id, at, data })
}

/// What every event has.
#[derive(serde::Serialize)]
struct Common<'e> {
    key: &'e str,
    session_id: &'e str,
    #[serde(skip_serializing_if = "Option::is_none")]
    turn_id: Option<&'e str>,
    at: &'e str,
}

/// An event's JSON: the common fields, then its own, which are copied as they were written.
fn whole(key: &str, session_id: &str, turn_id: Option<&str>, at: Millis, own: &str) -> String {
    let at = clock::rfc3339(at);
    let common = Common { key, session_id, turn_id, at: &at };
    // There are only texts in it, and any text can be written as JSON.
    let mut text = serde_json::to_string(&common).unwrap_or_default();
    match own.strip_prefix('{') {
        Some("}") | None => {}
        Some(fields) => {
            text.pop();
            text.push(',');
            text.push_str(fields);
        }
    }
    text
}

impl From<&Published> for EventRow {
    fn from(p: &Published) -> Self {
        Self {
            seq: p.seq,
            kind: p.kind.as_str().to_owned(),
            session_id: p.session_id.clone(),
            turn_id: p.turn_id.clone(),
            at: p.at,
            data: whole(&p.key, &p.session_id, p.turn_id.as_deref(), p.at, &p.data),
        }
    }
}

/// The tables and the condition of a listing, by an index that has few other sessions.
fn listing(sql: Sql<'_>, filter: &SessionFilter) -> (String, String) {
    const LIVE: &str = "EXISTS (SELECT 1 FROM activations a WHERE a.sid=s.sid AND a.closed_at IS NULL)";
    const RUNNING: &str = "EXISTS (SELECT 1 FROM turns t WHERE t.sid=s.sid AND t.state='running')";
    let states: Vec<&str> = filter.states.iter().map(String::as_str).collect();
    let sort = |state: &&str| match *state {
        "live" => LIVE.to_owned(),
        "parked" => format!("(status='open' AND NOT {LIVE})"),
        "suspended" => "status='suspended'".to_owned(),
        "ended" => "status='ended'".to_owned(),
        "running" => RUNNING.to_owned(),
        "resume_pending" => "mark_reason IS NOT NULL".to_owned(),
        _ => "1=0".to_owned(),
    };
    let any =
        if states.is_empty() { "1=1".to_owned() } else { states.iter().map(sort).collect::<Vec<_>>().join(" OR ") };
    let here = format!("status<>'ended' AND ({any})");
    let sessions = |index: &str| format!("sessions s{}", sql.by_index(index));
    // Few sessions are live or running, so their table comes first.
    let joined = |table: &str, index: &str| format!("{table} o{} CROSS JOIN sessions s", sql.by_index(index));
    match (filter.key.is_some(), states.as_slice()) {
        (true, all) if all.contains(&"ended") => (sessions("sessions_key"), format!("key=?3 AND ({any})")),
        (true, _) => (sessions("sessions_key"), format!("key=?3 AND {here}")),
        (false, ["live"]) => {
            (joined("activations", "activations_open"), "s.sid=o.sid AND o.closed_at IS NULL".to_owned())
        }
        (false, ["running"]) => (joined("turns", "turns_running"), "s.sid=o.sid AND o.state='running'".to_owned()),
        (false, ["suspended"]) => (sessions("sessions_suspended"), any),
        (false, ["resume_pending"]) => (sessions("sessions_marked"), any),
        (false, ["ended"]) => (sessions("sessions_over"), any),
        (false, all) if all.contains(&"ended") => ("sessions s".to_owned(), format!("({any})")),
        (false, _) => (sessions("sessions_here"), here),
    }
}

/// A session as far as its row can be read and, if part of it cannot be, why.
type Any = (SessionRow, Option<String>);

fn any(r: &Row<'_>) -> Result<Any, SqlError> {
    match SessionRow::read(r) {
        Ok(row) => Ok((row, None)),
        Err(why) => Ok((SessionRow::read_any(r)?, Some(why.to_string()))),
    }
}

/// A session as the API shows it. A damaged session is shown as far as it can be read, with the reason in `damaged`.
fn shown(sql: Sql<'_>, (s, why): &Any) -> Result<SessionView, SqlError> {
    let (mut view, why) = match (view(sql, s), why) {
        (Ok(view), why) => (view, why.clone()),
        (Err(e), _) if e.lies_in_rows() => (
            SessionView { id: s.id.clone(), sid: s.sid, key: s.key.clone(), json: bare(s, Value::Null) },
            Some("its turn cannot be read".to_owned()),
        ),
        (Err(e), _) => return Err(e),
    };
    if let Some(why) = why {
        view.json["damaged"] = why.into();
    }
    Ok(view)
}

fn find(sql: Sql<'_>, target: &Target) -> Result<Option<Any>, SqlError> {
    let (statement, value) = match target {
        Target::Key(key) => (
            concat!(
                "SELECT ",
                session_columns!(),
                " FROM sessions WHERE key=?1 AND status='open' AND hidden=0 ORDER BY sid DESC LIMIT 1"
            ),
            key,
        ),
        Target::Id(id) => (concat!("SELECT ", session_columns!(), " FROM sessions WHERE id=?1 AND hidden=0"), id),
    };
    sql.row(statement, params![value], any)
}

fn view(sql: Sql<'_>, s: &SessionRow) -> Result<SessionView, SqlError> {
    let live = sql.exists("SELECT 1 FROM activations WHERE sid=?1 AND closed_at IS NULL", params![s.sid])?;
    let turn = sql.row(
        "SELECT t.id, t.state, t.started_at, c.id,
           (SELECT e.text FROM entries e WHERE e.tid=t.tid AND e.role='tool'
            AND e.tool_status IN ('pending', 'in_progress') ORDER BY e.seq DESC LIMIT 1)
         FROM turns t LEFT JOIN turns c ON c.tid=t.continues
         WHERE t.tid=coalesce((SELECT tid FROM turns WHERE sid=?1 AND state='running'),
                              (SELECT tid FROM turns WHERE sid=?1 AND state='queued' ORDER BY tid LIMIT 1))",
        params![s.sid],
        |r| {
            Ok(json!({
                "id": r.text(0)?, "state": r.text(1)?, "started_at": time(r.maybe_number(2)?),
                "tool": r.maybe_text(4)?, "continues": r.maybe_text(3)?,
            }))
        },
    )?;
    let mut json = bare(s, turn.into());
    if live && s.status == "open" {
        json["state"] = "live".into();
    }
    let end = sql.row("SELECT ended_at, end_reason FROM sessions WHERE sid=?1", params![s.sid], |r| {
        Ok((r.maybe_number(0)?, r.maybe_text(1)?))
    })?;
    let (ended_at, end_reason) = end.unwrap_or_default();
    json["ended_at"] = time(ended_at);
    json["end_reason"] = end_reason.into();
    Ok(SessionView { id: s.id.clone(), sid: s.sid, key: s.key.clone(), json })
}

/// What the session's own row says.
fn bare(s: &SessionRow, turn: Value) -> Value {
    let state = if s.status == "open" { "parked" } else { s.status.as_str() };
    json!({
        "key": s.key, "id": s.id, "state": state, "epoch": s.epoch, "agent": s.agent, "turn": turn, "queued": s.queued,
        "resume_pending": mark_json(s.mark_reason.as_deref(), s.marked_at), "unclean": s.unclean,
        "created_at": clock::rfc3339(s.created_at), "updated_at": clock::rfc3339(s.active_at), "ended_at": null,
        "end_reason": null, "previous_id": s.previous_id, "next_id": s.next_id, "turns": s.turns, "messages": s.messages,
    })
}
