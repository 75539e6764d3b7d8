//! The hook journal: deliveries that are due, and what became of them.

use std::ops::ControlFlow;
use std::sync::PoisonError;

use serde_json::{Value, json};

use super::sql::{Row, SqlError, params};
use super::tx::Tx;
use super::{Error, Pruned, Refusal, Store};
use crate::clock::{self, Millis};
use crate::model::event::{HandlerId, HookEvent};

/// One event owed to one handler.
#[derive(Clone, Debug, PartialEq)]
pub struct Owed {
    /// The delivery's row; rises with time.
    pub did: i64,
    /// To whom.
    pub handler: HandlerId,
    /// The event's id.
    pub event_id: String,
    /// Its key.
    pub key: String,
    /// Its session's id.
    pub session_id: String,
    /// The newest transcript entry at the event.
    pub upto: i64,
    /// Its own fields.
    pub fields: Value,
    /// When it became true.
    pub at: Millis,
    /// Deliveries so far.
    pub attempts: u32,
    /// Not before this.
    pub next_at: Millis,
    /// It was journalled by an earlier boot, so its attempt is committed before the call.
    pub earlier_boot: bool,
    /// That boot is known not to have called the handler.
    pub uncalled: bool,
    /// The boot that noted the last attempt died before it was settled.
    pub fatal: bool,
}

impl Owed {
    /// Whether its attempt is committed before the call, so that a death during the call is counted.
    #[must_use]
    pub const fn is_noted_first(&self) -> bool {
        self.earlier_boot || self.attempts > 0
    }

    /// The number of the next call. The boot that journalled the event may have called the handler and died before it
    /// noted that; then that call counts.
    #[must_use]
    pub fn next_attempt(&self) -> u32 {
        self.attempts.max(u32::from(self.earlier_boot && !self.uncalled)) + 1
    }
}

/// A delivery that cannot be read, and why.
type Unreadable = (i64, String);

/// What became of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The handler returned.
    Delivered,
    /// It failed; tried again not before the time given.
    Retry(String, Millis),
    /// It failed too often: set aside.
    SetAside(String),
    /// The handler does not exist any more.
    Orphaned,
}

/// A set-aside event, as listed.
#[derive(Clone, Debug, PartialEq)]
pub struct FailedEvent(pub Value);

/// How the journal stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalCounts {
    /// Deliveries that are owed.
    pub pending: i64,
    /// Set aside.
    pub failed: i64,
}

/// What became of deliveries, and what retention removed, since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Their handlers returned.
    pub delivered: u64,
    /// Failed too often.
    pub set_aside: u64,
    /// Their handlers were gone.
    pub orphaned: u64,
    /// Given up by an operator.
    pub discarded: u64,
    /// Removed.
    pub pruned: Pruned,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        let Self { delivered, set_aside, orphaned, discarded, pruned } = more;
        self.delivered += delivered;
        self.set_aside += set_aside;
        self.orphaned += orphaned;
        self.discarded += discarded;
        self.pruned += pruned;
    }
}

impl Store {
    /// Deliveries that are owed, oldest first, after row `after`. Fewer than `limit`: there are no more.
    ///
    /// # Errors
    /// The store fails.
    pub fn pending_deliveries(&self, mut after: i64, limit: usize) -> Result<Vec<Owed>, Error> {
        let mut all = Vec::new();
        loop {
            let room = limit - all.len();
            let (owed, unreadable) = self.read_pending(after, room)?;
            // Unreadable deliveries do not count against the limit.
            let more = !unreadable.is_empty() && owed.len() + unreadable.len() == room;
            let last = owed.iter().map(|o| o.did).chain(unreadable.iter().map(|(did, _)| *did)).max();
            after = last.unwrap_or(after);
            self.set_aside_unreadable(unreadable);
            all.extend(owed);
            if !more {
                return Ok(all);
            }
        }
    }

    /// As [`Store::pending_deliveries`]; also which deliveries cannot be read, and why.
    fn read_pending(&self, after: i64, limit: usize) -> Result<(Vec<Owed>, Vec<Unreadable>), Error> {
        let bid = self.shared.boot.load(std::sync::atomic::Ordering::SeqCst);
        self.read(|sql| {
            let statement =
                "SELECT d.did, j.event, d.script, d.name, j.event_id, j.key, j.session_id, j.upto, j.fields, j.at,
                 d.attempts, d.next_at, j.bid, CASE WHEN b.clean=0 AND b.stop_reason IS NULL THEN 1 ELSE 0 END, d.uncalled
                 FROM deliveries d JOIN journal j ON j.jid=d.jid LEFT JOIN boots b ON b.bid=d.noted_by
                 WHERE d.state='pending' AND d.did>?1 ORDER BY d.did LIMIT ?2";
            // A delivery that cannot be read is set aside, and the others go on.
            let (mut owed, mut unreadable) = (Vec::new(), Vec::new());
            sql.each(statement, params![after, limit as i64], |r| {
                match owed_in(r, bid) {
                    Ok(one) => owed.push(one),
                    Err(why) => unreadable.push((r.get(0)?, why.to_string())),
                }
                Ok(ControlFlow::Continue(()))
            })?;
            Ok((owed, unreadable))
        })
    }

    /// Sets aside the deliveries whose rows cannot be read.
    fn set_aside_unreadable(&self, unreadable: Vec<Unreadable>) {
        if unreadable.is_empty() {
            return;
        }
        for (did, why) in &unreadable {
            log::error!("hook journal: delivery {did} cannot be read, it is set aside: {why}");
        }
        self.write_aside(
            "set_aside_unreadable",
            move |tx| {
                for (did, why) in &unreadable {
                    let set_aside = tx.in_savepoint(|tx| {
                        tx.settle(*did, &Settled::SetAside(format!("its row cannot be read: {why}")), true)
                    })?;
                    if let Err(e) = set_aside {
                        log::error!("hook journal: delivery {did} cannot be set aside: {e}");
                    }
                }
                Ok(())
            },
            |_| (),
        );
    }

    /// Commits the number of an attempt before its call, so that the event of a handler that kills the daemon is set
    /// aside in the end.
    pub fn note_attempt(&self, did: i64, attempt: u32, done: impl FnOnce(Result<(), Error>) + Send + 'static) {
        self.write_aside(
            "note_attempt",
            move |tx| {
                tx.tell(
                    "UPDATE deliveries SET attempts=?3, uncalled=0, noted_by=?2 WHERE did=?1 AND state='pending'",
                    params![did, tx.bid, attempt],
                )?;
                Ok(())
            },
            done,
        );
    }

    /// Takes back an attempt whose call was not made, if it was noted. `attempts` and `uncalled`: the values from
    /// before.
    pub fn take_back_attempt(
        &self,
        did: i64,
        attempts: u32,
        uncalled: bool,
        done: impl FnOnce(Result<(), Error>) + Send + 'static,
    ) {
        self.write_aside(
            "take_back_attempt",
            move |tx| {
                tx.tell(
                    "UPDATE deliveries SET attempts=?4, uncalled=?2, noted_by=NULL
                     WHERE did=?1 AND state='pending' AND noted_by=?3",
                    params![did, uncalled, tx.bid, attempts],
                )?;
                Ok(())
            },
            done,
        );
    }

    /// An orderly stop: notes that handlers have not seen what this boot journalled. `called`: the deliveries that were
    /// handed over and are not settled.
    pub fn note_uncalled(&self, called: Vec<i64>, done: impl FnOnce(Result<(), Error>) + Send + 'static) {
        self.write_aside(
            "note_uncalled",
            move |tx| {
                tx.tell(
                    "UPDATE deliveries SET uncalled=1 WHERE state='pending' AND attempts=0
                     AND EXISTS (SELECT 1 FROM journal j WHERE j.jid=deliveries.jid AND j.bid=?1)",
                    params![tx.bid],
                )?;
                for did in &called {
                    tx.tell("UPDATE deliveries SET uncalled=0 WHERE did=?1", params![did])?;
                }
                Ok(())
            },
            done,
        );
    }

    /// Settles a delivery. `counted`: its attempt was committed before the call.
    pub fn settle_delivery(
        &self,
        did: i64,
        settled: Settled,
        counted: bool,
        done: impl FnOnce(Result<(), Error>) + Send + 'static,
    ) {
        self.write_aside("settle_delivery", move |tx| tx.settle(did, &settled, counted), done);
    }

    /// Makes a set-aside event due again; `None`: all of them. Returns how many deliveries are due again. Attempts are
    /// counted on, so an event that fails again is set aside again.
    ///
    /// # Errors
    /// [`Refusal::NotFound`].
    pub fn retry_failed(&self, event_id: Option<String>) -> Result<usize, Error> {
        self.write("retry_failed", move |tx| {
            let n = tx.run(
                "UPDATE deliveries SET state='pending', next_at=0, settled_at=NULL WHERE state='failed'
                 AND (CAST(?1 AS TEXT) IS NULL OR jid IN (SELECT jid FROM journal WHERE event_id=?1))",
                params![&event_id],
            )?;
            tx.out.deliveries += n;
            if n == 0 && event_id.is_some() { Err(Refusal::NotFound.into()) } else { Ok(n) }
        })
    }

    /// Gives a set-aside event up.
    ///
    /// # Errors
    /// [`Refusal::NotFound`].
    pub fn discard_failed(&self, event_id: String) -> Result<usize, Error> {
        self.write("discard_failed", move |tx| {
            let n = tx.run(
                "UPDATE deliveries SET state='discarded', settled_at=?2 WHERE state='failed'
                 AND jid IN (SELECT jid FROM journal WHERE event_id=?1)",
                params![event_id, tx.now],
            )?;
            tx.out.tally.discarded += n as u64;
            if n == 0 { Err(Refusal::NotFound.into()) } else { Ok(n) }
        })
    }

    /// What was set aside, then what was orphaned, newest first.
    ///
    /// # Errors
    /// The store fails.
    pub fn failed_events(&self, limit: usize) -> Result<Vec<FailedEvent>, Error> {
        self.read(|sql| {
            sql.rows(
                "SELECT j.event_id, j.event, j.key, j.session_id, d.script, d.name, d.state, d.attempts, d.error, j.at, j.fields
                 FROM (SELECT did FROM (SELECT did FROM deliveries WHERE state='failed' ORDER BY did DESC LIMIT ?1) failed
                       UNION ALL
                       SELECT did FROM (SELECT did FROM deliveries WHERE state='orphaned' ORDER BY did DESC LIMIT ?1) orphaned) f
                 CROSS JOIN deliveries d CROSS JOIN journal j WHERE d.did=f.did AND j.jid=d.jid
                 ORDER BY d.state='orphaned', d.did DESC LIMIT ?1",
                params![limit as i64],
                |r| {
                Ok(FailedEvent(json!({
                    "event_id": r.text(0)?, "event": r.text(1)?, "key": r.text(2)?, "session_id": r.text(3)?,
                    "script": r.text(4)?, "name": r.text(5)?, "state": r.text(6)?, "attempts": r.number(7)?,
                    "error": r.maybe_text(8)?, "at": clock::rfc3339(r.number(9)?),
                    "fields": serde_json::from_str::<Value>(&r.text(10)?).unwrap_or_default(),
                })))
            })
        })
    }

    /// What became of deliveries, and what retention removed, since the store was opened.
    #[must_use]
    pub fn tally(&self) -> Tally {
        *self.shared.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the journal stands.
    ///
    /// # Errors
    /// The store fails.
    pub fn journal_counts(&self) -> Result<JournalCounts, Error> {
        self.read(|sql| {
            let count = |of: &str| Ok::<i64, SqlError>(sql.row(of, params![], |r| r.get(0))?.unwrap_or(0));
            Ok(JournalCounts {
                pending: count("SELECT count(*) FROM deliveries WHERE state='pending'")?,
                failed: count("SELECT count(*) FROM deliveries WHERE state='failed'")?,
            })
        })
    }
}

fn owed_in(r: &Row<'_>, bid: i64) -> Result<Owed, SqlError> {
    let event: String = r.get(1)?;
    let fields: String = r.get(8)?;
    Ok(Owed {
        did: r.get(0)?,
        handler: HandlerId {
            event: HookEvent::parse(&event).unwrap_or(HookEvent::SessionEnd),
            script: r.get(2)?,
            name: r.get(3)?,
        },
        event_id: r.get(4)?,
        key: r.get(5)?,
        session_id: r.get(6)?,
        upto: r.get(7)?,
        fields: serde_json::from_str(&fields).unwrap_or_default(),
        at: r.get(9)?,
        attempts: r.get(10)?,
        next_at: r.get(11)?,
        earlier_boot: r.get::<i64>(12)? != bid,
        fatal: r.get(13)?,
        uncalled: r.get(14)?,
    })
}

impl Tx<'_> {
    fn settle(&mut self, did: i64, settled: &Settled, counted: bool) -> Result<(), Error> {
        let one = i64::from(!counted);
        let (state, error, next_at, at) = match settled {
            Settled::Delivered => ("delivered", None, 0, Some(self.now)),
            Settled::Retry(error, next_at) => ("pending", Some(error), *next_at, None),
            Settled::SetAside(error) => ("failed", Some(error), 0, Some(self.now)),
            Settled::Orphaned => ("orphaned", None, 0, Some(self.now)),
        };
        let n = self.run(
            "UPDATE deliveries SET state=?2, error=coalesce(?3, error), next_at=?4, settled_at=?5, attempts=attempts+?6,
             noted_by=NULL
             WHERE did=?1 AND state='pending'",
            params![did, state, error, next_at, at, one],
        )?;
        let tally = &mut self.out.tally;
        match settled {
            Settled::Delivered => tally.delivered += n as u64,
            Settled::SetAside(_) => tally.set_aside += n as u64,
            Settled::Orphaned => tally.orphaned += n as u64,
            Settled::Retry(..) => {}
        }
        Ok(())
    }
}
