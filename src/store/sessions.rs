//! What people do to sessions: reset, delete, suspend, resume, cancel. Also the end of an activation and of a session,
//! for every transaction that writes one.

use serde_json::{Value, json};

use super::sql::params;
use super::tx::{SESSION_COLUMNS, SessionRow, Tx, time};
use super::{Error, Refusal, Store};
use crate::clock::{self, Millis};
use crate::model::event::{Actor, EndReason, EventKind, HookEvent, Outcome, StartReason};

/// Which session is meant: the current one of a key, or the one with an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The current session of a key.
    Key(String),
    /// The session with this id.
    Id(String),
}

/// What was done, and what the daemon must do about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acted {
    /// The session that answers the request.
    pub session_id: String,
    /// Its row.
    pub sid: i64,
    /// Sessions whose workers must stop.
    pub retired: Vec<i64>,
    /// Running turns that are to be cancelled: session and turn.
    pub cancel: Vec<(i64, i64)>,
    /// Sessions in which something may run now.
    pub wake: Vec<i64>,
    /// An interrupted turn is to be continued without a message.
    pub auto_continue: bool,
}

/// A session in which something waits to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its row.
    pub sid: i64,
    /// Its key.
    pub key: String,
    /// The agent that answered it last.
    pub agent: String,
    /// Unclean deaths in a row.
    pub unclean: i64,
    /// A message waits.
    pub queued: bool,
}

impl Store {
    /// Ends the session and opens a new one at once. Its running and queued turns are cancelled; the senders are
    /// notified.
    ///
    /// # Errors
    /// No such session, not the current one, or it has ended.
    pub fn reset(&self, target: Target, agent: String, actor: Actor) -> Result<Acted, Error> {
        self.write("reset", move |tx| {
            let old = tx.target(&target)?;
            tx.must_be_current(&old)?;
            tx.cancel_queued(&old, "reset")?;
            tx.give_way(&old)?;
            let new = tx.new_session(&old.key, StartReason::Reset, &agent, Some(&old.id))?;
            tx.end_session(&old, EndReason::Reset, actor, Some(&new.id))?;
            Ok(Acted { session_id: new.id, sid: new.sid, retired: vec![old.sid], ..Acted::default() })
        })
    }

    /// Hides the session at once; with `all`, every session of its key. The text is purged when the ends are settled.
    ///
    /// # Errors
    /// No such session.
    pub fn delete(&self, target: Target, all: bool, actor: Actor) -> Result<Acted, Error> {
        self.write("delete", move |tx| {
            let sessions = tx.to_delete(&target, all)?;
            tx.delete(sessions, actor)
        })
    }

    /// Suspends the session. Its turn is cancelled, an older mark stays, and its queue moves to the session that
    /// answers from now on.
    ///
    /// # Errors
    /// No such session, not the current one, or it has ended.
    pub fn suspend(&self, target: Target, agent: String, actor: Actor) -> Result<Acted, Error> {
        self.write("suspend", move |tx| {
            let s = tx.target(&target)?;
            let mut acted = Acted { session_id: s.id.clone(), sid: s.sid, ..Acted::default() };
            if s.status == "suspended" {
                return Ok(acted);
            }
            tx.must_be_current(&s)?;
            if let Some(new) = tx.suspend_session(&s, actor, &agent)? {
                acted.wake.push(new);
            }
            acted.retired.push(s.sid);
            Ok(acted)
        })
    }

    /// Makes a suspended session current again, or lets a parked session with a mark continue now.
    ///
    /// # Errors
    /// No such session, or it has ended.
    pub fn resume(&self, target: Target, actor: Actor) -> Result<Acted, Error> {
        self.write("resume", move |tx| {
            let s = tx.resume_target(&target)?;
            let mut acted = Acted { session_id: s.id.clone(), sid: s.sid, ..Acted::default() };
            match s.status.as_str() {
                "ended" => return Err(Refusal::Ended.into()),
                "suspended" => {
                    // The newer current session ends before this one is open again; its queue moves here.
                    let newer = tx.session_rows(&format!(
                            "SELECT {SESSION_COLUMNS} FROM sessions WHERE key=?1 AND status='open' AND hidden=0 AND sid<>?2"
                        ),
                        params![s.key, s.sid],
                        SessionRow::read_any,
                    )?;
                    for current in newer {
                        tx.move_queue(&current, &s)?;
                        tx.end_session(&current, EndReason::New, actor, Some(&s.id))?;
                        acted.retired.push(current.sid);
                    }
                    tx.tell(
                        "UPDATE sessions SET status='open', unclean=0,
                         marked_at=CASE WHEN mark_reason IS NULL THEN NULL ELSE CAST(?2 AS BIGINT) END WHERE sid=?1",
                        params![s.sid, tx.now],
                    )?;
                    // The session is parked, unless messages have moved here.
                    if tx.first_queued(s.sid)?.is_some() {
                        acted.wake.push(s.sid);
                    }
                }
                _ if s.mark_reason.is_some() && tx.open_activation_of(s.sid)?.is_none() => {
                    tx.tell("UPDATE sessions SET marked_at=?2 WHERE sid=?1", params![s.sid, tx.now])?;
                    acted.wake.push(s.sid);
                    acted.auto_continue = true;
                }
                _ => {}
            }
            Ok(acted)
        })
    }

    /// Cancels the running turn, or with `queued` what waits. Nothing to cancel is no error.
    ///
    /// # Errors
    /// No such session.
    pub fn cancel(&self, target: Target, queued: bool) -> Result<Acted, Error> {
        self.write("cancel", move |tx| {
            let s = tx.target(&target)?;
            let mut acted = Acted { session_id: s.id.clone(), sid: s.sid, ..Acted::default() };
            if queued {
                tx.cancel_queued(&s, "cancel")?;
            } else if let Some(tid) = tx.ask_cancel(s.sid, "cancel")? {
                acted.cancel.push((s.sid, tid));
            }
            Ok(acted)
        })
    }

    /// Sessions in which something waits to run: messages, or an interrupted turn under a mark not older than `since`.
    ///
    /// # Errors
    /// The store fails.
    pub fn wanted(&self, after: i64, limit: usize, marked_since: Option<Millis>) -> Result<Vec<Wanted>, Error> {
        self.read(|sql| {
            sql.rows(
                "SELECT s.sid, s.key, s.agent, s.unclean,
                   EXISTS (SELECT 1 FROM turns t WHERE t.sid=s.sid AND t.state='queued')
                 FROM (SELECT sid FROM turns WHERE state='queued' AND sid>?1
                       UNION SELECT sid FROM sessions
                       WHERE mark_reason IS NOT NULL AND sid>?1 AND cut_turn IS NOT NULL AND marked_at>=?3) w
                 CROSS JOIN sessions s WHERE s.sid=w.sid AND s.status='open' ORDER BY s.sid LIMIT ?2",
                params![after, limit as i64, marked_since.unwrap_or(i64::MAX)],
                // Read as far as it can be: a worker finds out whether the session is damaged.
                |r| {
                    Ok(Wanted {
                        sid: r.get(0)?,
                        key: r.text(1)?,
                        agent: r.text(2)?,
                        unclean: r.number(3)?,
                        queued: r.number(4)? != 0,
                    })
                },
            )
        })
    }
}

impl Tx<'_> {
    /// The sessions that a deletion means, the newest first.
    pub(super) fn to_delete(&self, target: &Target, all: bool) -> Result<Vec<SessionRow>, Error> {
        let key = match (target, all) {
            (target, false) => return Ok(vec![self.target(target)?]),
            (Target::Key(key), true) => key.clone(),
            (target, true) => self.target(target)?.key,
        };
        let sql = format!("SELECT {SESSION_COLUMNS} FROM sessions WHERE key=?1 AND hidden=0 ORDER BY sid DESC");
        let all = self.session_rows(&sql, params![key], SessionRow::read_any)?;
        if all.is_empty() { Err(Refusal::SessionNotFound.into()) } else { Ok(all) }
    }

    /// Ends and hides sessions, at least one.
    pub(super) fn delete(&mut self, sessions: Vec<SessionRow>, actor: Actor) -> Result<Acted, Error> {
        let first = sessions.first().ok_or(Refusal::SessionNotFound)?;
        let mut acted = Acted { session_id: first.id.clone(), sid: first.sid, ..Acted::default() };
        for s in sessions {
            if s.status != "ended" {
                self.cancel_queued(&s, "deleted")?;
                self.end_session(&s, EndReason::Deleted, actor, None)?;
                acted.retired.push(s.sid);
            }
            self.tell("UPDATE sessions SET hidden=1 WHERE sid=?1", params![s.sid])?;
        }
        Ok(acted)
    }

    /// The session that is meant.
    pub(super) fn target(&self, target: &Target) -> Result<SessionRow, Error> {
        let found = match target {
            // Read as far as it can be: a damaged session can be reset, suspended and deleted too.
            Target::Key(key) => self.current_as(key, SessionRow::read_any)?,
            Target::Id(id) => self.session_row(
                &format!("SELECT {SESSION_COLUMNS} FROM sessions WHERE id=?1 AND hidden=0"),
                params![id],
                SessionRow::read_any,
            )?,
        };
        found.ok_or_else(|| Refusal::SessionNotFound.into())
    }

    /// For `resume`, a key means its newest suspended session, else its current one.
    fn resume_target(&self, target: &Target) -> Result<SessionRow, Error> {
        if let Target::Key(key) = target {
            let suspended = self.session_row(&format!(
                    "SELECT {SESSION_COLUMNS} FROM sessions WHERE key=?1 AND status='suspended' AND hidden=0 ORDER BY sid DESC LIMIT 1"
                ),
                params![key],
                SessionRow::read,
            )?;
            if let Some(s) = suspended {
                return Ok(s);
            }
        }
        self.target(target)
    }

    fn must_be_current(&self, s: &SessionRow) -> Result<(), Error> {
        match s.status.as_str() {
            "ended" => Err(Refusal::Ended.into()),
            "suspended" => Err(Refusal::NotCurrent.into()),
            _ => match self.current_as(&s.key, SessionRow::read_any)? {
                Some(current) if current.sid == s.sid => Ok(()),
                _ => Err(Refusal::NotCurrent.into()),
            },
        }
    }

    /// Suspends an open session. Returns the session to which its queue moved, if anything waited.
    pub(super) fn suspend_session(&mut self, s: &SessionRow, actor: Actor, agent: &str) -> Result<Option<i64>, Error> {
        self.end_running(s, Outcome::Cancelled, None, Some("suspended"))?;
        self.tell("UPDATE sessions SET status='suspended' WHERE sid=?1", params![s.sid])?;
        // The end of the turn has removed a mark of this stop, so the row is read again.
        let s = &self.session_any(s.sid)?.unwrap_or_else(|| s.clone());
        self.close_activation(s, EndReason::Suspended, actor, None)?;
        self.notice(s, None, "session_suspended", "the session is suspended; `ostler resume` brings it back")?;
        if s.queued == 0 {
            return Ok(None);
        }
        let new = match self.current(&s.key)? {
            // It was no longer the key's current session.
            Some(current) => current,
            None => self.new_session(&s.key, StartReason::Suspended, agent, Some(&s.id))?,
        };
        self.move_queue(s, &new)?;
        Ok(Some(new.sid))
    }

    /// Cancels every queued turn of a session, and notifies its sender of the reason.
    pub(super) fn cancel_queued(&mut self, s: &SessionRow, reason: &str) -> Result<usize, Error> {
        let turns = self.queue_of(s.sid)?;
        for turn in &turns {
            self.tell(
                "UPDATE turns SET state='cancelled', ended_at=?2, cancel=?3 WHERE tid=?1",
                params![turn.tid, self.now, reason],
            )?;
            self.leave_queue(s.sid, turn.messages)?;
            let data = json!({ "outcome": Outcome::Cancelled, "error": null, "reason": reason });
            self.emit(EventKind::TurnEnd, &s.key, &s.id, Some(&turn.id), &data)?;
        }
        Ok(turns.len())
    }

    /// Ends a session for good: its turn is cancelled, its activation closed, and `session_closed` written once.
    pub(super) fn end_session(
        &mut self,
        s: &SessionRow,
        reason: EndReason,
        actor: Actor,
        next_id: Option<&str>,
    ) -> Result<(), Error> {
        self.end_running(s, Outcome::Cancelled, None, Some(reason.as_str()))?;
        self.tell(
            "UPDATE sessions SET status='ended', ended_at=?2, end_reason=?3, next_id=?4, mark_reason=NULL, marked_at=NULL,
             mark_boot=NULL, cut_turn=NULL WHERE sid=?1",
            params![s.sid, self.now, reason.as_str(), next_id],
        )?;
        // The counts may have changed in this transaction.
        let s = &self.session_any(s.sid)?.unwrap_or_else(|| s.clone());
        self.close_activation(s, reason, actor, next_id)?;
        let fields = json!({
            "reason": reason, "actor": actor, "previous_id": s.previous_id, "next_id": next_id, "epochs": s.epoch,
            "turns": s.turns, "messages": s.messages, "created_at": clock::rfc3339(s.created_at),
            "ended_at": clock::rfc3339(self.now),
        });
        self.record(EventKind::SessionClosed, HookEvent::SessionClosed, s, fields)
    }

    /// Closes the session's open activation, if there is one: `session_end`, once.
    pub(super) fn close_activation(
        &mut self,
        s: &SessionRow,
        reason: EndReason,
        actor: Actor,
        next_id: Option<&str>,
    ) -> Result<bool, Error> {
        let Some(a) = self.open_activation_of(s.sid)? else { return Ok(false) };
        self.tell(
            "UPDATE activations SET closed_at=?2, end_reason=?3 WHERE aid=?1",
            params![a.aid, self.now, reason.as_str()],
        )?;
        self.tell("DELETE FROM kept WHERE sid=?1", params![s.sid])?;
        let fields = json!({
            "epoch": a.epoch, "reason": reason, "final": reason.is_final(), "actor": actor, "agent": a.agent, "cwd": a.cwd,
            "started_at": clock::rfc3339(a.opened_at), "ended_at": clock::rfc3339(self.now),
            "turns": s.turns.saturating_sub(a.turns_before), "messages": s.messages.saturating_sub(a.messages_before),
            "previous_id": s.previous_id, "next_id": next_id,
            "resume_pending": mark_json(s.mark_reason.as_deref(), s.marked_at),
        });
        self.record(EventKind::SessionEnd, HookEvent::SessionEnd, s, fields)?;
        Ok(true)
    }

    /// Writes an event to the stream and to the journal.
    pub(super) fn record(
        &mut self,
        kind: EventKind,
        hook: HookEvent,
        s: &SessionRow,
        fields: Value,
    ) -> Result<(), Error> {
        self.emit(kind, &s.key, &s.id, None, &fields)?;
        self.journal(hook, s, &fields)
    }

    pub(super) fn open_activation_of(&self, sid: i64) -> Result<Option<ActivationRow>, Error> {
        Ok(self.row(
            "SELECT aid, epoch, agent, cwd, opened_at, turns_before, messages_before FROM activations
             WHERE sid=?1 AND closed_at IS NULL",
            params![sid],
            |r| {
                Ok(ActivationRow {
                    aid: r.get(0)?,
                    epoch: r.number(1)?,
                    agent: r.text(2)?,
                    cwd: r.text(3)?,
                    opened_at: r.number(4)?,
                    turns_before: r.number(5)?,
                    messages_before: r.number(6)?,
                })
            },
        )?)
    }
}

/// An open activation.
#[derive(Clone, Debug)]
pub(super) struct ActivationRow {
    pub aid: i64,
    pub epoch: i64,
    pub agent: String,
    pub cwd: String,
    pub opened_at: i64,
    pub turns_before: i64,
    pub messages_before: i64,
}

/// `resume_pending` as the API and the hooks show it.
pub(super) fn mark_json(reason: Option<&str>, at: Option<i64>) -> Value {
    match reason {
        Some(reason) => json!({ "reason": reason, "marked_at": time(at) }),
        None => Value::Null,
    }
}
