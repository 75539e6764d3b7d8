//! Retention: what is pruned, in small transactions while the daemon is idle, and counted.

use std::time::Duration;

use super::sql::params;
use super::tx::Tx;
use super::{Error, Store};
use crate::clock::Millis;
use crate::config::Retention;

/// Rows removed by one small transaction.
const STEP: i64 = 500;
/// Rows of sessions removed by one small transaction, however long their conversations were.
const ROWS: usize = 2000;
/// How many pages of unusable rows are skipped at once.
const PAGES: usize = 20;
/// Whether a session's ends are settled.
const SETTLED: &str = "NOT EXISTS (SELECT 1 FROM journal j JOIN deliveries d ON d.jid=j.jid
     WHERE j.sid=sessions.sid AND d.state='pending')";
/// A running turn's text is still needed for its transcript.
const NEEDED: &str = "(e.kind='text' AND EXISTS (
     SELECT 1 FROM turns t WHERE t.id=e.turn_id AND t.state='running' AND e.seq>t.sealed))";
/// Set-aside events are kept longer than settled ones.
const SET_ASIDE: Duration = Duration::from_secs(30 * 86_400);

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Events of the stream.
    pub events: usize,
    /// Idempotency ids.
    pub ids: usize,
    /// Settled deliveries, those set aside not among them.
    pub deliveries: usize,
    /// Set-aside deliveries: never made.
    pub set_aside: usize,
    /// Sessions whose text went.
    pub sessions: usize,
    /// Entries and turns of such sessions, and the sessions of which nothing more is known.
    pub rows: usize,
    /// Expired key/value pairs.
    pub kv: usize,
}

impl Pruned {
    /// How much in all.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.events + self.ids + self.deliveries + self.set_aside + self.sessions + self.rows + self.kv
    }
}

impl std::ops::AddAssign for Pruned {
    fn add_assign(&mut self, more: Self) {
        let Self { events, ids, deliveries, set_aside, sessions, rows, kv } = more;
        self.events += events;
        self.ids += ids;
        self.deliveries += deliveries;
        self.set_aside += set_aside;
        self.sessions += sessions;
        self.rows += rows;
        self.kv += kv;
    }
}

impl Store {
    /// One small step of pruning. When [`Pruned::total`] is 0, nothing is left to prune now.
    ///
    /// # Errors
    /// The store fails.
    pub fn prune(&self, keep: Retention) -> Result<Pruned, Error> {
        self.write("prune", move |tx| {
            let before = |age: Option<Duration>| {
                age.map(|a| tx.now.saturating_sub(i64::try_from(a.as_millis()).unwrap_or(i64::MAX)))
            };
            let (events, ids, journal, ended) =
                (before(keep.events), before(keep.ids), before(keep.journal), before(keep.ended));
            let set_aside = before(Some(SET_ASIDE));
            let mut left = ROWS;
            let sessions = tx.purge_sessions(ended, &mut left)?;
            tx.forget_sessions(ids, &mut left)?;
            let settled = "('delivered', 'orphaned', 'discarded')";
            let pruned = Pruned {
                events: tx.part("events", |tx| tx.prune_events(events))?,
                ids: tx.prune_ids(ids)?,
                deliveries: tx.part("deliveries", |tx| tx.prune_deliveries(settled, journal))?,
                set_aside: tx.part("set-aside deliveries", |tx| tx.prune_deliveries("('failed')", set_aside))?,
                sessions,
                rows: ROWS - left,
                kv: tx.part("kv", |tx| {
                    Ok(tx.run(
                        "DELETE FROM kv WHERE name IN (SELECT name FROM kv WHERE expires_at<=?1 LIMIT ?2)",
                        params![tx.now, STEP],
                    )?)
                })?,
            };
            tx.out.tally.pruned += pruned;
            Ok(pruned)
        })
    }
}

impl Tx<'_> {
    fn prune_events(&mut self, before: Option<Millis>) -> Result<usize, Error> {
        let Some(before) = before else { return Ok(0) };
        // Numbers rise with time, so old events come first, and nothing after the first young event is removed. An
        // event from the future was written under a clock that was set back since. It is no younger than the next event
        // that is not from the future.
        let first = self.row(
            &format!("SELECT seq FROM events e WHERE at<=?1 AND NOT {NEEDED} ORDER BY seq LIMIT 1"),
            params![self.now],
            |r| r.get::<i64>(0),
        )?;
        let Some(first) = first else { return Ok(0) };
        let last: Option<i64> = self
            .row(
                &format!(
                    "WITH front AS (SELECT seq, at FROM events e WHERE seq>=?4 AND NOT {NEEDED} ORDER BY seq LIMIT ?2)
                     SELECT max(seq) FROM front WHERE at<?1 AND seq<coalesce(
                       (SELECT min(seq) FROM front WHERE at>=?1 AND at<=?3), 9223372036854775807)"
                ),
                params![before, STEP, self.now, first],
                |r| r.get(0),
            )?
            .flatten();
        let Some(last) = last else { return Ok(0) };
        let gone = self.sids(
            &format!("SELECT seq FROM events e WHERE seq<=?1 AND NOT {NEEDED} ORDER BY seq LIMIT ?2"),
            params![last, STEP],
        )?;
        for seq in &gone {
            self.tell("DELETE FROM events WHERE seq=?1", params![seq])?;
        }
        if let Some(newest) = gone.last() {
            self.remember("events_pruned", *newest)?;
        }
        Ok(gone.len())
    }

    /// Prunes one kind of thing. If its rows cannot be used, the other kinds go on.
    fn part(
        &mut self,
        what: &'static str,
        run: impl FnOnce(&mut Self) -> Result<usize, Error>,
    ) -> Result<usize, Error> {
        Ok(self.for_one(what, 0, run)?.unwrap_or(0))
    }

    fn prune_ids(&mut self, before: Option<Millis>) -> Result<usize, Error> {
        let Some(before) = before else { return Ok(0) };
        // A message from the future was accepted before the next one that is not from the future. The `+0` keeps the
        // engine from scanning back from the newest message: few are from the future.
        let newest = "SELECT max(mid+0) FROM messages WHERE client_id IS NOT NULL AND at>?1";
        let next = "SELECT at FROM messages WHERE mid>?1 AND at<=?2 ORDER BY mid LIMIT 1";
        let ahead =
            if self.is_old_though_ahead(newest, next, before)? { self.forget_ids(self.now, i64::MAX)? } else { 0 };
        Ok(ahead + self.forget_ids(i64::MIN, before)?)
    }

    /// Whether rows from the future are older than `before`. `newest` finds the last of them; `next` finds the time of
    /// the first row after it that is not from the future, which was written later.
    fn is_old_though_ahead(&self, newest: &str, next: &str, before: Millis) -> Result<bool, Error> {
        let Some(newest) = self.row(newest, params![self.now], |r| r.maybe_number(0))?.flatten() else {
            return Ok(false);
        };
        let next = self.row(next, params![newest, self.now], |r| r.maybe_number(0))?.flatten();
        Ok(next.is_some_and(|at| at < before))
    }

    fn forget_ids(&mut self, from: Millis, before: Millis) -> Result<usize, Error> {
        const FORGET: &str = "UPDATE messages SET client_id=NULL, digest=NULL WHERE mid=?1";
        let mut after = (i64::MIN, i64::MIN);
        for _ in 0..PAGES {
            // An interrupted turn is not over while a turn of its chain runs, or waits for its continuation.
            let old = self.rows(
                "SELECT m.mid, m.at, m.sid FROM messages m JOIN turns t ON t.tid=m.tid
                 WHERE m.client_id IS NOT NULL AND m.at<?1 AND m.at>?5 AND (m.at, m.mid)>(?3, ?4)
                 AND t.state NOT IN ('queued', 'running')
                 AND (t.state<>'interrupted' OR NOT EXISTS (
                   WITH RECURSIVE chain(tid) AS (
                     SELECT t.tid UNION
                     SELECT c.continued_by FROM chain JOIN turns c ON c.tid=chain.tid WHERE c.continued_by IS NOT NULL)
                   SELECT 1 FROM chain JOIN turns c ON c.tid=chain.tid JOIN sessions s ON s.sid=c.sid
                   WHERE c.state='running' OR s.cut_turn=c.tid)) ORDER BY m.at, m.mid LIMIT ?2",
                params![before, STEP, after.0, after.1, from],
                |r| Ok((r.get::<i64>(0)?, r.number(1)?, r.number(2)?)),
            )?;
            let at_once = self.in_savepoint(|tx| {
                for (mid, ..) in &old {
                    tx.tell(FORGET, params![mid])?;
                }
                Ok(old.len())
            })?;
            let Err(_) = at_once else { return Ok(old.len()) };
            let mut n = 0;
            for (mid, _, sid) in &old {
                n += self.for_one("retention of ids", *sid, |tx| Ok(tx.run(FORGET, params![mid])?))?.unwrap_or(0);
            }
            match old.last() {
                // None of this page can be changed: the next page must not wait for it.
                Some((mid, at, _)) if n == 0 && old.len() as i64 == STEP => after = (*at, *mid),
                _ => return Ok(n),
            }
        }
        Ok(0)
    }

    fn remember(&self, name: &str, value: i64) -> Result<(), Error> {
        self.tell(
            "INSERT INTO meta (name, value) VALUES (?1, ?2)
             ON CONFLICT (name) DO UPDATE SET value=CASE WHEN meta.value<excluded.value THEN excluded.value ELSE meta.value END",
            params![name, value],
        )?;
        Ok(())
    }

    fn prune_deliveries(&mut self, states: &str, before: Option<Millis>) -> Result<usize, Error> {
        let Some(before) = before else { return Ok(0) };
        // As for ids: a delivery that was owed before one that was settled long ago was settled long ago too.
        let newest = "SELECT max(did+0) FROM deliveries WHERE settled_at>?1";
        let next = "SELECT settled_at FROM deliveries WHERE did>?1 AND +settled_at<=?2 ORDER BY did LIMIT 1";
        let ahead = if self.is_old_though_ahead(newest, next, before)? { self.now } else { i64::MAX };
        let gone = self.rows(
            &format!(
                "SELECT did, jid FROM deliveries WHERE (settled_at<?1 OR settled_at>?3) AND state IN {states} LIMIT ?2"
            ),
            params![before, STEP, ahead],
            |r| Ok((r.get::<i64>(0)?, r.number(1)?)),
        )?;
        for (did, jid) in &gone {
            self.tell("DELETE FROM deliveries WHERE did=?1", params![did])?;
            self.tell(
                "DELETE FROM journal WHERE jid=?1 AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.jid=?1)",
                params![jid],
            )?;
        }
        Ok(gone.len())
    }

    /// Removes the text of deleted sessions, once their ends are settled, and of sessions that ended long ago.
    fn purge_sessions(&mut self, ended_before: Option<Millis>, left: &mut usize) -> Result<usize, Error> {
        let hidden = "SELECT sid, 0 FROM sessions WHERE hidden=1 AND purged=0 AND (CAST(0 AS BIGINT), sid)>(?3, ?2)
             AND CAST(?1 AS BIGINT)=0";
        let hidden = format!("{hidden} AND {SETTLED} ORDER BY sid LIMIT 20");
        let mut purged = self.sweep("retention", &hidden, 0, left, |tx, sid, left| tx.purge(sid, true, left))?;
        if let Some(before) = ended_before {
            let ended = "SELECT sid, ended_at FROM sessions WHERE ended_at IS NOT NULL AND purged=0 AND hidden=0
                         AND ended_at<?1 AND (ended_at, sid)>(?3, ?2)";
            let ended = format!("{ended} AND {SETTLED} ORDER BY ended_at, sid LIMIT 20");
            purged += self.sweep("retention", &ended, before, left, |tx, sid, left| tx.purge(sid, false, left))?;
        }
        Ok(purged)
    }

    /// Does something to the first sessions of a list, one by one. Sessions whose rows cannot be used are skipped.
    /// Returns for how many it was done: at most a page, and no more than `left` allows.
    fn sweep(
        &mut self,
        what: &'static str,
        page: &str,
        before: Millis,
        left: &mut usize,
        run: impl Fn(&mut Self, i64, &mut usize) -> Result<bool, Error>,
    ) -> Result<usize, Error> {
        let (mut done, mut after) = (0, (i64::MIN, i64::MIN));
        for _ in 0..PAGES {
            let sessions =
                self.rows(page, params![before, after.0, after.1], |r| Ok((r.get::<i64>(0)?, r.number(1)?)))?;
            for (sid, _) in &sessions {
                let mut room = *left;
                if let Some(whole) = self.for_one(what, *sid, |tx| run(tx, *sid, &mut room))? {
                    *left = room;
                    if !whole {
                        return Ok(done);
                    }
                    done += 1;
                }
            }
            let Some(last) = sessions.last().filter(|_| done == 0) else { break };
            after = *last;
        }
        Ok(done)
    }

    /// Removes the text of a session. Its ids stay known for their time. `false`: more is left.
    fn purge(&mut self, sid: i64, hidden: bool, left: &mut usize) -> Result<bool, Error> {
        let gone = self.step(
            "DELETE FROM entries WHERE seq IN (SELECT seq FROM entries WHERE sid=?1 LIMIT ?2)",
            sid,
            left,
        )? && self.step(
            "UPDATE messages SET text='' WHERE mid IN (SELECT mid FROM messages WHERE sid=?1 AND text<>'' LIMIT ?2)",
            sid,
            left,
        )? && (!hidden
            || self.step(
                "DELETE FROM events WHERE seq IN (SELECT e.seq FROM sessions s JOIN events e ON e.key=s.key
                 WHERE s.sid=?1 AND e.session_id=s.id
                 AND e.kind IN ('text', 'thought', 'tool', 'plan', 'permission') LIMIT ?2)",
                sid,
                left,
            )?);
        if gone {
            self.tell("UPDATE sessions SET purged=1 WHERE sid=?1", params![sid])?;
        }
        Ok(gone)
    }

    /// Removes sessions whose text is gone and of which no id is kept any more, with their turns, messages and
    /// activations, so that the database does not grow. A session with a set-aside event stays, for the event may be
    /// tried again.
    fn forget_sessions(&mut self, ids_before: Option<Millis>, left: &mut usize) -> Result<(), Error> {
        let Some(before) = ids_before else { return Ok(()) };
        let page = "SELECT sid, ended_at FROM sessions WHERE purged=1 AND ended_at<?1 AND (ended_at, sid)>(?3, ?2)
             AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.sid=sessions.sid AND m.client_id IS NOT NULL)
             AND NOT EXISTS (SELECT 1 FROM meta WHERE name='files:'||sessions.sid)
             AND NOT EXISTS (SELECT 1 FROM journal j JOIN deliveries d ON d.jid=j.jid
                             WHERE j.sid=sessions.sid AND d.state IN ('pending', 'failed'))
             ORDER BY ended_at, sid LIMIT 100";
        self.sweep("retention", page, before, left, Self::forget).map(|_| ())
    }

    fn forget(&mut self, sid: i64, left: &mut usize) -> Result<bool, Error> {
        for sql in [
            // Turns without a message have an index of their own; the others are found by their messages.
            "DELETE FROM turns WHERE tid IN (SELECT tid FROM turns WHERE sid=?1 AND messages=0 LIMIT ?2)",
            "DELETE FROM turns WHERE tid IN (
               SELECT DISTINCT t.tid FROM messages m JOIN turns t ON t.tid=m.tid WHERE m.sid=?1 LIMIT ?2)",
            "DELETE FROM messages WHERE mid IN (SELECT mid FROM messages WHERE sid=?1 LIMIT ?2)",
            "DELETE FROM activations WHERE aid IN (SELECT aid FROM activations WHERE sid=?1 LIMIT ?2)",
            "DELETE FROM sessions WHERE sid IN (SELECT sid FROM sessions WHERE sid=?1 LIMIT ?2)",
        ] {
            if !self.step(sql, sid, left)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Runs a statement that changes at most `?2` rows of the session `?1`. `false`: more may be left for the next
    /// small transaction.
    fn step(&self, sql: &str, of: i64, left: &mut usize) -> Result<bool, Error> {
        if *left == 0 {
            return Ok(false);
        }
        *left -= self.run(sql, params![of, *left as i64])?.min(*left);
        Ok(*left > 0)
    }
}
