//! What scripts keep: key/value with expiry, and the last run of each timer.

use std::time::Duration;

use serde_json::Value;

use super::sql::params;
use super::{Error, Refusal, Store};
use crate::clock::Millis;

fn expiry(now: Millis, ttl: Option<Duration>) -> Option<Millis> {
    ttl.map(|ttl| now.saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX)))
}

const LIVE: &str = "SELECT value FROM kv WHERE name=?1 AND (expires_at IS NULL OR expires_at>?2)";

impl Store {
    /// The value under a name, unless it has expired.
    ///
    /// # Errors
    /// The store fails.
    pub fn kv_get(&self, name: &str) -> Result<Option<Value>, Error> {
        let text: Option<String> = self.read(|sql| sql.row(LIVE, params![name, self.now()], |r| r.get(0)))?;
        Ok(text.and_then(|t| serde_json::from_str(&t).ok()))
    }

    /// Sets or (with `None`) removes a value. `only_if`: `Some(None)` only when there is none, `Some(Some(v))` only when it
    /// is `v`. `false`: the condition did not hold.
    ///
    /// # Errors
    /// The store fails.
    pub fn kv_set(
        &self,
        name: String,
        value: Option<Value>,
        ttl: Option<Duration>,
        only_if: Option<Option<Value>>,
    ) -> Result<bool, Error> {
        self.write("kv_set", move |tx| {
            if let Some(wanted) = &only_if {
                let found: Option<String> = tx.row(LIVE, params![name, tx.now], |r| r.get(0))?;
                let found: Option<Value> = found.and_then(|t| serde_json::from_str(&t).ok());
                if found != *wanted {
                    return Ok(false);
                }
            }
            match &value {
                None => tx.run("DELETE FROM kv WHERE name=?1", params![&name])?,
                Some(value) => tx.run(
                    "INSERT INTO kv (name, value, expires_at) VALUES (?1, ?2, ?3)
                     ON CONFLICT (name) DO UPDATE SET value=excluded.value, expires_at=excluded.expires_at",
                    params![name, value.to_string(), expiry(tx.now, ttl)],
                )?,
            };
            Ok(true)
        })
    }

    /// Adds to an integer; a name without a value counts from 0. Only the first addition sets the expiry, so that a
    /// counter per minute ends with its minute.
    ///
    /// # Errors
    /// [`Refusal::NoInteger`], [`Refusal::TooLarge`].
    pub fn kv_incr(&self, name: String, by: i64, ttl: Option<Duration>) -> Result<i64, Error> {
        self.write("kv_incr", move |tx| {
            let found: Option<String> = tx.row(LIVE, params![name, tx.now], |r| r.get(0))?;
            let before = match &found {
                Some(text) => text.parse::<i64>().map_err(|_| Refusal::NoInteger)?,
                None => 0,
            };
            let after = before.checked_add(by).ok_or(Refusal::TooLarge)?;
            match found {
                Some(_) => tx.run("UPDATE kv SET value=?2 WHERE name=?1", params![name, after.to_string()])?,
                None => tx.run(
                    "INSERT INTO kv (name, value, expires_at) VALUES (?1, ?2, ?3)
                     ON CONFLICT (name) DO UPDATE SET value=excluded.value, expires_at=excluded.expires_at",
                    params![name, after.to_string(), expiry(tx.now, ttl)],
                )?,
            };
            Ok(after)
        })
    }

    /// Claims the run of a timer that is due; `false`: that one, or a later one, was claimed before.
    ///
    /// # Errors
    /// The store fails.
    pub fn timer_claim(&self, name: String, due: Millis) -> Result<bool, Error> {
        self.write("timer_claim", move |tx| {
            Ok(tx.run(
                "INSERT INTO timers (name, last_due) VALUES (?1, ?2)
                 ON CONFLICT (name) DO UPDATE SET last_due=excluded.last_due WHERE timers.last_due<excluded.last_due",
                params![name, due],
            )? > 0)
        })
    }

    /// Sets the newest run of a timer back: the recorded one lies in the future.
    ///
    /// # Errors
    /// The store fails.
    pub fn timer_restart(&self, name: String, due: Millis) -> Result<(), Error> {
        self.write("timer_restart", move |tx| {
            tx.tell("UPDATE timers SET last_due=?2 WHERE name=?1", params![name, due])?;
            Ok(())
        })
    }

    /// When a timer last ran.
    ///
    /// # Errors
    /// The store fails.
    pub fn timer_last(&self, name: &str) -> Result<Option<Millis>, Error> {
        self.read(|sql| sql.row("SELECT last_due FROM timers WHERE name=?1", params![name], |r| r.get(0)))
    }
}
