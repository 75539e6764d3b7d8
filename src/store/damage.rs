//! Sessions whose rows cannot be used: looked for by the doctor, in a database that is only read.

use std::ops::ControlFlow;

use serde::de::IgnoredAny;

use super::sql::{Row, Sql, SqlError, params};
use super::tx::{SESSION_COLUMNS, SessionRow};
use crate::model::event::{EndReason, HookEvent, MarkReason};
use crate::model::turn::TurnState;

/// The most that is listed.
const LISTED: usize = 100;

/// A session of which something cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// Its key, as far as that can be read.
    pub key: String,
    /// Its id, as far as that can be read; empty where its row is missing.
    pub session_id: String,
    /// What cannot be used, and why.
    pub why: String,
}

/// What is looked at: a statement whose first column is the session's row, and what is wrong with a row of it, if anything.
type Check = (&'static str, String, fn(&Row<'_>) -> Result<Option<String>, SqlError>);

/// Looks for what cannot be used of sessions that are not over.
pub(super) fn find(sql: Sql<'_>) -> Result<Vec<Damaged>, SqlError> {
    let mut found: Vec<(i64, String)> = Vec::new();
    for (what, statement, check) in checks() {
        let looked = sql.each(&statement, params![], |r| {
            let wrong = check(r).unwrap_or_else(|e| Some(e.to_string()));
            let sid = r.number(0).unwrap_or(0);
            if let Some(why) = wrong
                && found.len() < LISTED
                && !found.iter().any(|(known, w)| *known == sid && w.starts_with(what))
            {
                found.push((sid, format!("{what}: {why}")));
            }
            Ok(ControlFlow::Continue(()))
        });
        // The rows after it cannot be reached: the statement is over.
        if let Err(e) = looked {
            found.push((0, format!("{what}: {e}")));
        }
    }
    let named = |sid: i64| {
        sql.row("SELECT key, id FROM sessions WHERE sid=?1", params![sid], |r| Ok((r.text(0)?, r.text(1)?)))
            .ok()
            .flatten()
            .unwrap_or_else(|| (format!("row {sid}"), String::new()))
    };
    Ok(found
        .into_iter()
        .map(|(sid, why)| {
            let (key, session_id) = named(sid);
            Damaged { key, session_id, why }
        })
        .collect())
}

fn checks() -> Vec<Check> {
    vec![
        ("session", format!("SELECT {SESSION_COLUMNS}, mark_boot, purged, ended_at, end_reason FROM sessions"), |r| {
            let s = SessionRow::read(r)?;
            let _: (Option<i64>, bool, Option<i64>, Option<String>) = (r.get(20)?, r.get(21)?, r.get(22)?, r.get(23)?);
            let mark = s.mark_reason.as_deref().filter(|word| MarkReason::parse(word).is_none());
            Ok(match (s.status.as_str(), mark) {
                ("open" | "suspended" | "ended", None) => None,
                ("open" | "suspended" | "ended", Some(mark)) => Some(format!("no such mark: {mark:?}")),
                (status, _) => Some(format!("no such status: {status:?}")),
            })
        }),
        ("end", "SELECT sid, end_reason, ended_at FROM sessions WHERE status='ended'".into(), |r| {
            let (word, _): (Option<String>, Option<i64>) = (r.get(1)?, r.get(2)?);
            Ok(word.filter(|word| EndReason::parse(word).is_none()).map(|word| format!("no such reason: {word:?}")))
        }),
        (
            "activation",
            "SELECT a.sid, a.epoch, a.bid, a.agent, a.cwd, a.opened_at, a.turns_before, a.messages_before,
               EXISTS (SELECT 1 FROM sessions s WHERE s.sid=a.sid), EXISTS (SELECT 1 FROM boots b WHERE b.bid=a.bid AND b.ended_at IS NULL),
               a.pid, a.pid_start, a.abandoned
             FROM activations a WHERE a.closed_at IS NULL"
                .into(),
            |r| {
                let _: (i64, i64, i64) = (r.get(0)?, r.get(1)?, r.get(2)?);
                let _: (String, String) = (r.get(3)?, r.get(4)?);
                let _: (i64, i64, i64) = (r.get(5)?, r.get(6)?, r.get(7)?);
                let (session, boot): (bool, bool) = (r.get(8)?, r.get(9)?);
                let _: (Option<i64>, Option<i64>, bool) = (r.get(10)?, r.get(11)?, r.get(12)?);
                Ok(if !session {
                    Some("its session is missing".into())
                } else if !boot {
                    Some("its boot is over, or missing".into())
                } else {
                    None
                })
            },
        ),
        (
            "turn",
            "SELECT t.sid, t.id, t.state, t.cancel, EXISTS (SELECT 1 FROM sessions s WHERE s.sid=t.sid),
               EXISTS (SELECT 1 FROM activations a WHERE a.sid=t.sid AND a.closed_at IS NULL), t.error_code, t.error_text,
               t.messages, t.created_at, t.resumed, t.pieces, t.sealed, t.events_after, t.epoch, t.started_at, t.continues,
               t.continued_by
             FROM turns t WHERE t.state NOT IN ('completed', 'failed', 'cancelled', 'interrupted')"
                .into(),
            |r| {
                let (_, state, _): (String, String, Option<String>) = (r.get(1)?, r.get(2)?, r.get(3)?);
                let (session, live): (bool, bool) = (r.get(4)?, r.get(5)?);
                let _: (Option<String>, Option<String>) = (r.get(6)?, r.get(7)?);
                for column in 8..18 {
                    let n: Option<i64> = r.get(column)?;
                    if n.is_none() && column < 14 {
                        return Ok(Some("a number of it is missing".into()));
                    }
                }
                Ok(match TurnState::parse(&state) {
                    None => Some(format!("no such state: {state:?}")),
                    Some(_) if !session => Some("its session is missing".into()),
                    Some(TurnState::Running) if !live => Some("it runs in no activation".into()),
                    Some(_) => None,
                })
            },
        ),
        (
            "message",
            "SELECT t.sid, m.text FROM turns t LEFT JOIN messages m ON m.tid=t.tid
             WHERE t.state IN ('queued', 'running') AND t.messages>0"
                .into(),
            |r| r.get::<String>(1).map(|_| None),
        ),
        (
            "answer",
            "SELECT t.sid, e.data FROM turns t JOIN sessions s ON s.sid=t.sid
             JOIN events e ON e.key=s.key AND e.seq>t.sealed AND e.turn_id=t.id AND e.kind='text' WHERE t.state='running'"
                .into(),
            |r| {
                let piece: Result<IgnoredAny, _> = serde_json::from_str(&r.get::<String>(1)?);
                Ok(piece.is_err().then(|| "a piece of it is no JSON".into()))
            },
        ),
        (
            "event owed to a handler",
            "SELECT j.sid, j.event, j.key, j.session_id, j.fields, j.at, j.upto, d.script, d.name FROM deliveries d
             LEFT JOIN journal j ON j.jid=d.jid WHERE d.state='pending'"
                .into(),
            |r| {
                let (_, event, _): (i64, String, String) = (r.get(0)?, r.get(1)?, r.get(2)?);
                let (_, fields, _): (String, String, i64) = (r.get(3)?, r.get(4)?, r.get(5)?);
                let _: (i64, String, String) = (r.get(6)?, r.get(7)?, r.get(8)?);
                Ok(if HookEvent::parse(&event).is_none() {
                    Some(format!("no such event: {event:?}"))
                } else if serde_json::from_str::<serde_json::Value>(&fields).is_err() {
                    Some("its fields are no JSON".into())
                } else {
                    None
                })
            },
        ),
    ]
}
