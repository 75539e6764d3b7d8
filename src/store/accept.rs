//! Accepting a message: the transaction behind every 202.

use serde_json::json;
use uuid::Uuid;

use super::sql::{Row, Sql, SqlError, params};
use super::turns::{TurnRow, plain_start};
use super::tx::{SessionRow, Tx, new_id};
use super::{Admission, Begun, Error, Refusal, Store, TurnRef};
use crate::model::event::{Actor, EventKind, StartReason};
use crate::model::session::{Current, Facts, Mark, Policy, Resolution, resolve};
use crate::model::settings::Busy;
use crate::model::turn::place;

/// The limits and policies for a message, from the configuration in force.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Which session answers.
    pub policy: Policy,
    /// What a message during a turn does.
    pub busy: Busy,
    /// Queued messages a session.
    pub queue_limit: usize,
    /// Waiting messages in all.
    pub queue_total: usize,
}

/// A message on its way in.
#[derive(Clone, Debug)]
pub struct Accept {
    /// Where the conversation lives; a valid key.
    pub key: String,
    /// What is stored: as sent, or as a hook rewrote it. Never empty.
    pub text: String,
    /// What was sent.
    pub original: String,
    /// The sender's id for it.
    pub client_id: Option<String>,
    /// Who would answer in a new session: the agent's name.
    pub agent: String,
    /// Policies and limits.
    pub limits: Limits,
    /// The id of the only session that may answer; `None`: the key's current one.
    pub session_id: Option<String>,
}

/// What a message was accepted as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The session's row.
    pub sid: i64,
    /// The session's id.
    pub session_id: String,
    /// The turn that will answer it.
    pub turn_id: String,
    /// Its own id.
    pub message_id: String,
    /// The id was accepted before: this is the answer of then, and nothing was done now.
    pub duplicate: bool,
    /// The turn that continues its turn, if that was interrupted.
    pub continued_by: Option<String>,
    /// Whether its turn already has its outcome.
    pub over: bool,
    /// This boot will not run it.
    pub deferred: bool,
    /// Messages that wait before it.
    pub queued: i64,
    /// What the sender should know: code and text.
    pub notice: Option<(String, String)>,
    /// The running turn that is to be cancelled.
    pub interrupt: Option<i64>,
    /// A session that another one replaced. If it was live, its worker must stop.
    pub retired: Option<i64>,
}

/// The digest by which a resent text is known again.
pub(super) fn digest(text: &str) -> Vec<u8> {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()).as_bytes().to_vec()
}

impl Store {
    /// Looks an id up and accepts nothing: a duplicate is answered before any hook or limit applies.
    ///
    /// # Errors
    /// [`Refusal::IdReused`], or the store fails.
    pub fn find_duplicate(&self, key: &str, client_id: &str, original: &str) -> Result<Option<Accepted>, Error> {
        let (key, client_id, original) = (key.to_owned(), client_id.to_owned(), original.to_owned());
        self.write_here("find_duplicate", move |tx| tx.duplicate(&key, &client_id, &original))
    }

    /// Accepts a message. When this returns, the message is durable.
    ///
    /// # Errors
    /// A limit or an id refuses it; or the store fails, and it may or may not have been kept.
    pub fn accept_message(&self, accept: Accept) -> Result<Accepted, Error> {
        self.write_here("accept_message", move |tx| tx.accept(&accept, None).map(|(accepted, _)| accepted))
    }

    /// As [`Store::accept_message`], for a session whose worker is idle with a ready agent; `ready`: that session's row
    /// and epoch. If the message is for that session and nothing else has to be done first, its turn begins in the same
    /// transaction.
    ///
    /// # Errors
    /// As there. If the outcome is in doubt, [`Store::begin_turn`] finds the turn that began.
    pub fn accept_and_begin(&self, accept: Accept, ready: (i64, i64)) -> Result<(Accepted, Option<Begun>), Error> {
        self.write_here("accept_message", move |tx| tx.accept(&accept, Some(ready)))
    }
}

/// How many messages wait in all, by the rows.
pub(super) fn waiting(sql: Sql<'_>) -> Result<i64, SqlError> {
    // A damaged count counts for nothing: their sum must not overflow.
    let sum =
        "SELECT CAST(coalesce(sum(CASE WHEN messages BETWEEN 0 AND 1000000 THEN messages ELSE 0 END), 0) AS BIGINT)
               FROM turns WHERE state='queued'";
    Ok(sql.row(sum, params![], |r| r.get(0))?.unwrap_or(0))
}

impl Tx<'_> {
    fn duplicate(&self, key: &str, client_id: &str, original: &str) -> Result<Option<Accepted>, Error> {
        let found = self.row(
            "SELECT m.id, m.digest, m.sid, s.id, t.id, t.state, n.id, m.mid
             FROM messages m JOIN turns t ON t.tid=m.tid JOIN sessions s ON s.sid=m.sid
             LEFT JOIN turns n ON n.tid=t.continued_by WHERE m.key=?1 AND m.client_id=?2",
            params![key, client_id],
            |r| {
                let digest: Option<Vec<u8>> = r.get(1)?;
                let state: String = r.get(5)?;
                let mid: i64 = r.get(7)?;
                Ok((
                    digest,
                    mid,
                    state.clone(),
                    Accepted {
                        sid: r.get(2)?,
                        session_id: r.get(3)?,
                        turn_id: r.get(4)?,
                        message_id: r.get(0)?,
                        duplicate: true,
                        continued_by: r.get(6)?,
                        over: !matches!(state.as_str(), "queued" | "running"),
                        deferred: false,
                        queued: 0,
                        notice: None,
                        interrupt: None,
                        retired: None,
                    },
                ))
            },
        )?;
        let Some((known, mid, state, mut accepted)) = found else { return Ok(None) };
        if known.is_some_and(|known| known != digest(original)) {
            return Err(Refusal::IdReused.into());
        }
        if state == "queued" {
            accepted.deferred = self.admission() == Admission::Stopping;
            accepted.queued = self
                .row(
                    "SELECT count(*) FROM turns t JOIN messages m ON m.tid=t.tid
                     WHERE t.sid=?1 AND t.state='queued' AND m.mid<?2",
                    params![accepted.sid, mid],
                    |r| r.get(0),
                )?
                .unwrap_or(0);
        }
        Ok(Some(accepted))
    }

    fn accept(&mut self, a: &Accept, ready: Option<(i64, i64)>) -> Result<(Accepted, Option<Begun>), Error> {
        if let Some(id) = &a.client_id
            && let Some(known) = self.duplicate(&a.key, id, &a.original)?
        {
            return Ok((known, None));
        }
        let current = self.current(&a.key)?;
        let suspended = current.is_none() && self.newest_is_suspended(&a.key)?;
        let waits = current.as_ref().map_or(0, |s| s.queued);
        let running = match &current {
            Some(s) => self.running_turn(s.sid)?.is_some(),
            None => false,
        };
        let facts = Facts {
            current: current.as_ref().map(|s| Current {
                mark: s.marked_at.filter(|_| s.mark_reason.is_some()).map(|at| Mark { at }),
                active_at: s.active_at,
                busy: running || waits > 0,
                running,
            }),
            suspended,
        };
        let resolution = resolve(&facts, &a.limits.policy, self.now);
        if let Some(id) = &a.session_id {
            self.must_answer(id, resolution, current.as_ref())?;
        }
        // The queue of a replaced session moves to the new one, so it counts in either case.
        self.check_limits(&a.limits, waits)?;
        let (session, retired) = self.answering(a, resolution, current)?;
        if let Some((sid, epoch)) = ready
            && (sid, waits, running) == (session.sid, 0, false)
            && self.may_begin(&session, epoch)?
        {
            return self.begin_accepted(a, session, epoch);
        }
        // Nothing runs yet in a session that has just replaced another.
        let placement = place(a.limits.busy, waits > 0, running && retired.is_none());
        let joined = if placement.join { self.last_queued(session.sid)? } else { None };
        let (tid, turn_id) = match joined {
            Some((tid, id)) => {
                self.tell("UPDATE turns SET messages=messages+1 WHERE tid=?1", params![tid])?;
                (tid, id)
            }
            None => self.queue_turn(session.sid)?,
        };
        self.out.waiting += 1;
        let (_, message_id) = self.keep_message(a, session.sid, tid)?;
        self.tell(
            "UPDATE sessions SET messages=messages+1, queued=queued+1, active_at=?2 WHERE sid=?1",
            params![session.sid, self.now],
        )?;
        let interrupt = if placement.interrupt { self.ask_cancel(session.sid, "interrupt")? } else { None };
        let notice = resolution.notice();
        if let Some((code, text)) = notice {
            self.emit(EventKind::Notice, &a.key, &session.id, Some(&turn_id), &json!({ "code": code, "text": text }))?;
        }
        let accepted = Accepted {
            sid: session.sid,
            session_id: session.id,
            turn_id,
            message_id,
            duplicate: false,
            continued_by: None,
            over: false,
            deferred: self.admission() == Admission::Stopping,
            queued: waits,
            notice: notice.map(|(c, t)| (c.to_owned(), t.to_owned())),
            interrupt,
            retired,
        };
        Ok((accepted, None))
    }

    /// The session that answers, which may be a new one, and the row of the session that it replaces.
    fn answering(
        &mut self,
        a: &Accept,
        resolution: Resolution,
        current: Option<SessionRow>,
    ) -> Result<(SessionRow, Option<i64>), Error> {
        Ok(match (resolution, current) {
            (Resolution::Same, Some(s)) => (s, None),
            (Resolution::Same, None) => return Err(Refusal::SessionNotFound.into()),
            (Resolution::New { start, end }, current) => {
                if let (Some(_), Some(old)) = (end, &current) {
                    self.give_way(old)?;
                }
                let new = self.new_session(&a.key, start, &a.agent, current.as_ref().map(|c| c.id.as_str()))?;
                let retired = match (end, current) {
                    (Some(reason), Some(old)) => {
                        self.move_queue(&old, &new)?;
                        self.end_session(&old, reason, Actor::Policy, Some(&new.id))?;
                        Some(old.sid)
                    }
                    _ => None,
                };
                (new, retired)
            }
        })
    }

    /// Whether the turn of a message to this idle session can begin at once: the activation is current, turns may
    /// start, nothing is to be continued, and the session is not on probation.
    fn may_begin(&self, s: &SessionRow, epoch: i64) -> Result<bool, Error> {
        let plain = s.mark_reason.is_none() && s.cut_turn.is_none() && s.unclean == 0;
        Ok(plain
            && self.admission() == Admission::Open
            && self.open_activation_of(s.sid)?.is_some_and(|a| a.epoch == epoch))
    }

    /// Accepts a message and begins its turn. The rows are those of both steps; the turn is never queued.
    fn begin_accepted(&mut self, a: &Accept, s: SessionRow, epoch: i64) -> Result<(Accepted, Option<Begun>), Error> {
        crate::failpoint::hit("begin_turn", "before");
        let turn_id = new_id(self.now);
        let (tid, frame) = self.begin_row(&s, epoch, &turn_id, TurnRow::New { messages: 1 }, &plain_start())?;
        let (mid, message_id) = self.keep_message(a, s.sid, tid)?;
        self.tell(
            "UPDATE sessions SET messages=messages+1, turns=turns+1, active_at=?2 WHERE sid=?1",
            params![s.sid, self.now],
        )?;
        self.tell(
            "INSERT INTO entries (sid, tid, role, mid, at) VALUES (?1, ?2, 'user', ?3, ?4)",
            params![s.sid, tid, mid, self.now],
        )?;
        crate::failpoint::hit("begin_turn", "inside");
        let begun = Begun {
            turn: TurnRef { sid: s.sid, epoch, tid },
            turn_id: turn_id.clone(),
            prompt: a.text.clone(),
            continues: None,
            first: s.turns == 0,
            turns: s.turns,
            on_probation: false,
            frame,
        };
        let accepted = Accepted {
            sid: s.sid,
            session_id: s.id,
            turn_id,
            message_id,
            duplicate: false,
            continued_by: None,
            over: false,
            deferred: false,
            queued: 0,
            notice: None,
            interrupt: None,
            retired: None,
        };
        Ok((accepted, Some(begun)))
    }

    /// A message's own row. Its number and its id.
    fn keep_message(&mut self, a: &Accept, sid: i64, tid: i64) -> Result<(i64, String), Error> {
        let id = new_id(self.now);
        let digest = a.client_id.as_ref().map(|_| digest(&a.original));
        let mid = self.insert(
            "INSERT INTO messages (id, key, sid, tid, client_id, digest, text, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             RETURNING mid",
            params![id, a.key, sid, tid, a.client_id, digest, a.text, self.now],
        )?;
        Ok((mid, id))
    }

    /// A message to a session by its id is answered by that session or refused.
    fn must_answer(&self, id: &str, resolution: Resolution, current: Option<&SessionRow>) -> Result<(), Error> {
        if resolution == Resolution::Same && current.is_some_and(|c| c.id == *id) {
            return Ok(());
        }
        let ended = self.exists("SELECT 1 FROM sessions WHERE id=?1 AND status='ended'", params![id])?;
        Err(if ended { Refusal::Ended.into() } else { Refusal::NotCurrent.into() })
    }

    fn check_limits(&self, limits: &Limits, in_session: i64) -> Result<(), Error> {
        let full = |n: i64, limit: usize| usize::try_from(n).unwrap_or(0) >= limit;
        if full(in_session, limits.queue_limit) {
            return Err(Refusal::QueueFull.into());
        }
        if full(self.waiting(), limits.queue_total) {
            return Err(Refusal::Overloaded.into());
        }
        Ok(())
    }

    /// The key's current session: the newest that is neither ended, deleted nor suspended.
    pub(super) fn current(&self, key: &str) -> Result<Option<SessionRow>, Error> {
        self.current_as(key, SessionRow::read)
    }

    pub(super) fn current_as(
        &self,
        key: &str,
        read: fn(&Row<'_>) -> Result<SessionRow, SqlError>,
    ) -> Result<Option<SessionRow>, Error> {
        let sql = concat!(
            "SELECT ",
            super::tx::session_columns!(),
            " FROM sessions WHERE key=?1 AND status='open' AND hidden=0 ORDER BY sid DESC LIMIT 1"
        );
        Ok(self.session_row(sql, params![key], read)?)
    }

    pub(super) fn newest_is_suspended(&self, key: &str) -> Result<bool, Error> {
        let status = self.row(
            "SELECT status FROM sessions WHERE key=?1 AND hidden=0 ORDER BY sid DESC LIMIT 1",
            params![key],
            |r| r.get::<String>(0),
        )?;
        Ok(status.as_deref() == Some("suspended"))
    }

    /// The newest turn that waits in a session.
    fn last_queued(&self, sid: i64) -> Result<Option<(i64, String)>, Error> {
        Ok(self.row(
            "SELECT tid, id FROM turns WHERE sid=?1 AND state='queued' ORDER BY tid DESC LIMIT 1",
            params![sid],
            |r| Ok((r.get(0)?, r.get(1)?)),
        )?)
    }

    /// Makes room for another open session of the key, for a key has at most one. The end of the old session is written
    /// afterwards.
    pub(super) fn give_way(&self, s: &SessionRow) -> Result<(), SqlError> {
        self.tell("UPDATE sessions SET status='ended' WHERE sid=?1", params![s.sid])
    }

    /// A new session's row. Its `session_start` comes with its first activation.
    pub(super) fn new_session(
        &mut self,
        key: &str,
        start: StartReason,
        agent: &str,
        previous: Option<&str>,
    ) -> Result<SessionRow, Error> {
        let id = new_id(self.now);
        // If it replaces no current session, the previous one is the newest of the key, suspended or ended.
        let before = match previous {
            Some(id) => Some(id.to_owned()),
            None => {
                self.row("SELECT id FROM sessions WHERE key=?1 ORDER BY sid DESC LIMIT 1", params![key], |r| r.get(0))?
            }
        };
        let sid = self.insert(
            "INSERT INTO sessions (id, key, status, start_reason, agent, created_at, active_at, previous_id)
             VALUES (?1, ?2, 'open', ?3, ?4, ?5, ?5, ?6) RETURNING sid",
            params![id, key, start.as_str(), agent, self.now, before],
        )?;
        self.session(sid)?.ok_or_else(|| Refusal::SessionNotFound.into())
    }

    fn queue_turn(&mut self, sid: i64) -> Result<(i64, String), Error> {
        let id = new_id(self.now);
        Ok((self.new_turn(&id, sid, 1)?, id))
    }

    /// A turn that waits. Its row.
    pub(super) fn new_turn(&mut self, id: &str, sid: i64, messages: i64) -> Result<i64, Error> {
        Ok(self.insert(
            "INSERT INTO turns (id, sid, state, messages, created_at, events_after)
             VALUES (?1, ?2, 'queued', ?4, ?3, (SELECT coalesce(max(seq), 0) FROM events)) RETURNING tid",
            params![id, sid, self.now, messages],
        )?)
    }

    /// Notes that the running turn is to be cancelled, so that it is not continued after a crash. Returns that turn, if
    /// one runs.
    pub(super) fn ask_cancel(&mut self, sid: i64, why: &str) -> Result<Option<i64>, Error> {
        self.tell("UPDATE turns SET cancel=?2 WHERE sid=?1 AND state='running'", params![sid, why])?;
        self.running_turn(sid)
    }

    /// Moves the queued turns to the session that answers now, in order and with their ids, and notifies their senders.
    pub(super) fn move_queue(&mut self, from: &SessionRow, to: &SessionRow) -> Result<usize, Error> {
        let turns = self.queue_of(from.sid)?;
        for turn in &turns {
            self.tell("UPDATE turns SET sid=?2 WHERE tid=?1", params![turn.tid, to.sid])?;
            let moved = self.run("UPDATE messages SET sid=?2 WHERE tid=?1", params![turn.tid, to.sid])? as i64;
            self.tell(
                "UPDATE sessions SET messages=messages-?2, queued=queued-?3 WHERE sid=?1",
                params![from.sid, moved, turn.messages],
            )?;
            self.tell(
                "UPDATE sessions SET messages=messages+?2, queued=queued+?3 WHERE sid=?1",
                params![to.sid, moved, turn.messages],
            )?;
            self.notice(to, Some(&turn.id), "moved", "the message moved to the session that answers now")?;
        }
        Ok(turns.len())
    }
}
