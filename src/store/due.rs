//! What the daemon asks before it acts: what waits to run, what a commit in doubt did, whose a process is, what became of a
//! stop.

use rusqlite::{OptionalExtension as _, params};

use super::isolate::{maybe_text, number, text};
use super::{Error, Store};
use crate::clock::Millis;

/// What became of one session in a stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopOutcome {
    /// Its row.
    pub sid: i64,
    /// Its key.
    pub key: String,
    /// Its id.
    pub session_id: String,
    /// The mark that it carries now.
    pub mark: Option<String>,
    /// The state of the turn that ended in the stop.
    pub turn: Option<String>,
    /// Its end is still owed to a handler.
    pub end_pending: bool,
}

/// What a commit in doubt did after all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlooked {
    /// Sessions that are over or suspended: their workers are to go.
    pub gone: Vec<i64>,
    /// Running turns, with their sessions, of which a cancel was asked for.
    pub cancelled: Vec<(i64, i64)>,
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
    /// Sessions in which something waits to run: messages, or an interrupted turn under a mark not older than `since`.
    ///
    /// # Errors
    /// The store fails.
    pub fn wanted(&self, after: i64, limit: usize, marked_since: Option<Millis>) -> Result<Vec<Wanted>, Error> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached(
                "SELECT s.sid, s.key, s.agent, s.unclean,
                   EXISTS (SELECT 1 FROM turns t WHERE t.sid=s.sid AND t.state='queued')
                 FROM (SELECT sid FROM turns WHERE state='queued' AND sid>?1
                       UNION SELECT sid FROM sessions
                       WHERE mark_reason IS NOT NULL AND sid>?1 AND cut_turn IS NOT NULL AND marked_at>=?3) w
                 CROSS JOIN sessions s ON s.sid=w.sid WHERE s.status='open' ORDER BY s.sid LIMIT ?2",
            )?;
            let mut rows = statement.query(params![after, limit as i64, marked_since.unwrap_or(i64::MAX)])?;
            let mut found = Vec::new();
            while let Some(r) = rows.next()? {
                // A worker finds out whether the session can be used, and says so.
                let (sid, queued) = (r.get(0)?, number(r, 4)? != 0);
                found.push(Wanted { sid, key: text(r, 1)?, agent: text(r, 2)?, unclean: number(r, 3)?, queued });
            }
            Ok(found)
        })
    }

    /// What workers may not have been told of, because its commit was in doubt. `live`: the sessions that have one.
    ///
    /// # Errors
    /// The store fails.
    pub fn overlooked(&self, live: &[i64]) -> Result<Overlooked, Error> {
        self.read(|conn| {
            let mut open = conn.prepare_cached("SELECT 1 FROM sessions WHERE sid=?1 AND status='open' AND hidden=0")?;
            let mut cancelled =
                conn.prepare_cached("SELECT tid FROM turns WHERE sid=?1 AND state='running' AND cancel IS NOT NULL")?;
            let mut found = Overlooked::default();
            for sid in live {
                if !open.exists([sid])? {
                    found.gone.push(*sid);
                } else if let Some(tid) = cancelled.query_row([sid], |r| r.get(0)).optional()? {
                    found.cancelled.push((*sid, tid));
                }
            }
            Ok(found)
        })
    }

    /// The row of a session by its id, deleted ones too.
    ///
    /// # Errors
    /// The store fails.
    pub fn sid_of(&self, session_id: &str) -> Result<Option<i64>, Error> {
        self.read(|conn| {
            conn.prepare_cached("SELECT sid FROM sessions WHERE id=?1")?
                .query_row([session_id], |r| r.get(0))
                .optional()
        })
    }

    /// What became of sessions that a stop found live: each with the turn that ran in it then, if one did.
    ///
    /// # Errors
    /// The store fails.
    pub fn stop_outcomes(&self, live: &[(i64, Option<String>)]) -> Result<Vec<StopOutcome>, Error> {
        self.read(|conn| {
            let mut statement = conn.prepare_cached(
                "SELECT s.key, s.id, s.mark_reason, (SELECT state FROM turns WHERE id=?2),
                   EXISTS (SELECT 1 FROM journal j JOIN deliveries d ON d.jid=j.jid WHERE j.sid=s.sid AND d.state='pending')
                 FROM sessions s WHERE s.sid=?1",
            )?;
            let mut outcomes = Vec::with_capacity(live.len());
            for (sid, turn) in live {
                let found = statement.query_row(params![sid, turn], |r| {
                    Ok(StopOutcome {
                        sid: *sid,
                        key: text(r, 0)?,
                        session_id: text(r, 1)?,
                        mark: maybe_text(r, 2)?,
                        turn: maybe_text(r, 3)?,
                        end_pending: number(r, 4)? != 0,
                    })
                });
                outcomes.extend(found.optional()?);
            }
            Ok(outcomes)
        })
    }
}
