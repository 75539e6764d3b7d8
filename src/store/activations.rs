//! Activations: opened once, closed once. An open activation is a row from its first instant.

use serde_json::json;

use super::sql::params;
use super::tx::Tx;
use super::{Error, Refusal, Store};
use crate::model::event::{Actor, EndReason, EventKind, HookEvent, MarkReason, Outcome, StartReason};

/// The definition of an agent that may outlive the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// It, as JSON.
    pub json: String,
    /// Its processes live for a turn.
    pub per_turn: bool,
}

/// An activation that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its number within the session, from 1.
    pub epoch: i64,
    /// The session.
    pub session: OpenedSession,
}

/// What its worker needs of the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedSession {
    /// The row.
    pub sid: i64,
    /// The id.
    pub id: String,
    /// The key.
    pub key: String,
    /// The agent's own session id from before.
    pub agent_session: Option<String>,
    /// Turns so far.
    pub turns: i64,
}

impl Store {
    /// Opens an activation: `session_start`. The session becomes live. `kept`: its agent may outlive the daemon.
    ///
    /// # Errors
    /// [`Refusal::Stale`]: the session is not open any more, or is live already. [`Refusal::Closed`]: a stop has begun.
    /// [`Refusal::Damaged`]: its rows cannot be used.
    pub fn open_activation(
        &self,
        sid: i64,
        agent: String,
        cwd: String,
        kept: Option<Definition>,
    ) -> Result<Opened, Error> {
        self.write("open_activation", move |tx| {
            match tx.in_savepoint(|tx| tx.open_activation(sid, (&agent, &cwd), kept.as_ref()))? {
                Err(why) if why.refusal().is_none() => {
                    tx.name_damaged("activation", sid, &why);
                    Err(Refusal::Damaged.into())
                }
                opened => opened,
            }
        })
    }

    /// The activation that this boot has open already. For the session's worker, after an [`Store::open_activation`]
    /// that was refused.
    ///
    /// # Errors
    /// [`Refusal::Stale`]: there is none.
    pub fn reopen_activation(&self, sid: i64) -> Result<Opened, Error> {
        self.write("reopen_activation", move |tx| {
            let s = tx.session(sid)?.ok_or(Refusal::Stale)?;
            let epoch = tx
                .row(
                    "SELECT epoch FROM activations WHERE sid=?1 AND bid=?2 AND closed_at IS NULL",
                    params![sid, tx.bid],
                    |r| r.get(0),
                )?
                .ok_or(Refusal::Stale)?;
            let session = OpenedSession { sid, id: s.id, key: s.key, agent_session: s.agent_session, turns: s.turns };
            Ok(Opened { epoch, session })
        })
    }

    /// Whether the previous activation ended in a crash, so that its agent had no time to save anything.
    ///
    /// # Errors
    /// The store fails.
    pub fn follows_a_crash(&self, sid: i64, epoch: i64) -> Result<bool, Error> {
        self.read(|sql| {
            sql.exists(
                "SELECT 1 FROM activations WHERE sid=?1 AND epoch=?2 AND end_reason='crash'",
                params![sid, epoch - 1],
            )
        })
    }

    /// Notes the agent's own session id, for the next activation.
    ///
    /// # Errors
    /// [`Refusal::Stale`].
    pub fn note_agent(&self, sid: i64, epoch: i64, agent_session: Option<String>) -> Result<(), Error> {
        self.write("note_agent", move |tx| {
            tx.current_activation(sid, epoch)?;
            tx.tell("UPDATE sessions SET agent_session=?2 WHERE sid=?1", params![sid, agent_session])?;
            Ok(())
        })
    }

    /// Notes the agent's process, so that the next boot finds its leftovers.
    ///
    /// # Errors
    /// [`Refusal::Stale`].
    pub fn note_process(&self, sid: i64, epoch: i64, pid: u32, start: u64) -> Result<(), Error> {
        self.write("note_process", move |tx| {
            tx.current_activation(sid, epoch)?;
            tx.tell(
                "UPDATE activations SET pid=?3, pid_start=?4 WHERE sid=?1 AND epoch=?2",
                params![sid, epoch, pid, i64::try_from(start).unwrap_or(0)],
            )?;
            Ok(())
        })
    }

    /// Closes an activation at the end of its worker: `session_end`. `false`: it was closed already.
    ///
    /// # Errors
    /// The store fails.
    pub fn close_activation(&self, sid: i64, epoch: i64, reason: EndReason, actor: Actor) -> Result<bool, Error> {
        self.write("close_activation", move |tx| match tx.current_activation(sid, epoch) {
            Ok(s) => {
                // A turn that still runs was begun by a commit in doubt, and its worker does not know it: it is
                // continued later.
                tx.end_running(&s, Outcome::Interrupted, Some((MarkReason::Crash, tx.now)), None)?;
                let s = tx.session(sid)?.unwrap_or(s);
                tx.close_activation(&s, reason, actor, None)
            }
            Err(Error::Refused(Refusal::Stale)) => Ok(false),
            Err(e) => Err(e),
        })
    }

    /// A worker panicked. Its running turn fails, or else the oldest queued one; its activation ends. `again`: this was
    /// sent before and may have been kept; a closed activation then says so.
    ///
    /// # Errors
    /// The store fails; the next boot writes the end.
    pub fn worker_died(&self, sid: i64, again: bool) -> Result<(), Error> {
        self.write("worker_died", move |tx| {
            let Some(s) = tx.session_any(sid)? else { return Ok(()) };
            if again && tx.open_activation_of(sid)?.is_none() {
                return Ok(());
            }
            let (code, text) = ("internal", "the session's worker failed; see the daemon's log");
            match tx.running_turn(sid)? {
                Some(tid) => {
                    let error = (code.to_owned(), text.to_owned());
                    tx.end_turn(&s, tid, Outcome::Failed, Some(&error), None, MarkReason::Crash)?;
                }
                None => tx.fail_first(&s, code, text)?,
            }
            let s = tx.session_any(sid)?.unwrap_or(s);
            tx.close_activation(&s, EndReason::Crash, Actor::Supervisor, None)?;
            Ok(())
        })
    }
}

impl Tx<'_> {
    fn open_activation(
        &mut self,
        sid: i64,
        (agent, cwd): (&str, &str),
        kept: Option<&Definition>,
    ) -> Result<Opened, Error> {
        if self.admission() == super::Admission::Stopping {
            return Err(Refusal::Closed.into());
        }
        let s = self.session(sid)?.ok_or(Refusal::Stale)?;
        if s.status != "open" || s.hidden || self.open_activation_of(sid)?.is_some() {
            return Err(Refusal::Stale.into());
        }
        let epoch = s.epoch.checked_add(1).ok_or(Refusal::Damaged)?;
        // The first activation says why the session was opened; later ones say why it goes on.
        let reason = if s.epoch == 0 {
            StartReason::parse(&s.start_reason).unwrap_or(StartReason::New)
        } else if s.mark_reason.is_some() {
            StartReason::Resume
        } else {
            StartReason::Message
        };
        self.tell("UPDATE sessions SET epoch=?2, agent=?3 WHERE sid=?1", params![sid, epoch, agent])?;
        // What waited when it opened is counted to this activation.
        self.tell(
            "INSERT INTO activations (sid, epoch, bid, start_reason, agent, cwd, opened_at, turns_before, messages_before)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![sid, epoch, self.bid, reason.as_str(), agent, cwd, self.now, s.turns, s.messages.saturating_sub(s.queued)],
        )?;
        if let Some(kept) = kept {
            self.tell(
                "INSERT INTO kept (sid, epoch, definition, per_turn) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (sid) DO UPDATE SET epoch=?2, definition=?3, per_turn=?4, tid=NULL, frame=NULL",
                params![sid, epoch, kept.json, kept.per_turn],
            )?;
        }
        let fields = json!({
            "epoch": epoch, "reason": reason, "previous_id": s.previous_id, "agent": agent, "cwd": cwd,
        });
        self.record(EventKind::SessionStart, HookEvent::SessionStart, &s, fields)?;
        let session = OpenedSession { sid, id: s.id, key: s.key, agent_session: s.agent_session, turns: s.turns };
        Ok(Opened { epoch, session })
    }
}
