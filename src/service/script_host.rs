//! The host functions of scripts: the hooks' view of the store.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use serde_json::{Value, json};

use super::intake::Origin;
use super::{Fault, Service};
use crate::clock::Millis;
use crate::hooks::{HookHost, OnlyIf};
use crate::model::event::Entry;
use crate::store::{Error, Refusal, Store, Target};

/// The most text of a transcript in one answer, in bytes: memory holds it twice.
const TRANSCRIPT: usize = 32 * 1024 * 1024;

/// The host functions: the store, and the service once it exists (scripts are loaded before it).
#[derive(Debug)]
pub struct ScriptHost {
    store: Store,
    service: OnceLock<Weak<Service>>,
}

impl ScriptHost {
    /// Host functions over a store.
    #[must_use]
    pub fn new(store: Store) -> Arc<Self> {
        Arc::new(Self { store, service: OnceLock::new() })
    }

    /// Sets the service: from now on messages can be sent.
    pub fn enter(&self, service: &Arc<Service>) {
        let _ = self.service.set(Arc::downgrade(service));
    }

    fn service(&self) -> Result<Arc<Service>, String> {
        self.service.get().and_then(Weak::upgrade).ok_or_else(|| "the daemon is not ready yet".to_owned())
    }
}

fn text(e: Error) -> String {
    e.to_string()
}

impl HookHost for ScriptHost {
    fn transcript(&self, session_id: &str, after: i64, limit: usize, upto: Option<i64>) -> Result<Vec<Entry>, String> {
        let found = self.store.entries(session_id, after, upto.unwrap_or(i64::MAX), limit.min(10_000), TRANSCRIPT);
        let Some(entries) = found.map_err(text)? else {
            return Err(format!("more than {TRANSCRIPT} bytes of text: ask for fewer entries at once (limit)"));
        };
        if entries.is_empty() && self.store.is_purged(session_id).map_err(text)? {
            return Err(format!(
                "the text of session {session_id} is gone: it was deleted, or is older than what is kept"
            ));
        }
        Ok(entries)
    }

    fn kv_get(&self, key: &str) -> Result<Option<Value>, String> {
        self.store.kv_get(key).map_err(text)
    }

    fn kv_set(&self, key: &str, value: Option<Value>, ttl: Option<Duration>, only_if: OnlyIf) -> Result<bool, String> {
        self.store.kv_set(key.to_owned(), value, ttl, only_if).map_err(text)
    }

    fn kv_incr(&self, key: &str, by: i64, ttl: Option<Duration>) -> Result<i64, String> {
        self.store.kv_incr(key.to_owned(), by, ttl).map_err(text)
    }

    /// Never runs `message` handlers.
    fn send(&self, key: &str, body: &str, id: Option<&str>) -> Result<Value, String> {
        let service = self.service()?;
        let fault = |e: Fault| e.to_string();
        let to = Target::Key(key.to_owned());
        let message = service.message(to, body.to_owned(), id.map(str::to_owned)).map_err(fault)?;
        let accepted = service.accept(message, &Origin::Script).map_err(fault)?;
        Ok(json!({
            "session_id": accepted.session_id, "turn_id": accepted.turn_id, "message_id": accepted.message_id,
            "duplicate": accepted.duplicate, "deferred": accepted.deferred, "queued": accepted.queued,
        }))
    }

    fn session_info(&self, key: &str) -> Result<Option<Value>, String> {
        let target = if uuid::Uuid::parse_str(key).is_ok() { Target::Id(key.into()) } else { Target::Key(key.into()) };
        match self.store.session(&target) {
            Ok(view) => Ok(Some(view.json)),
            Err(Error::Refused(Refusal::SessionNotFound)) => Ok(None),
            Err(e) => Err(text(e)),
        }
    }

    fn timer_claim(&self, name: &str, due: Millis) -> Result<bool, String> {
        self.store.timer_claim(name.to_owned(), due).map_err(text)
    }

    fn timer_restart(&self, name: &str, due: Millis) -> Result<(), String> {
        self.store.timer_restart(name.to_owned(), due).map_err(text)
    }

    fn timer_last(&self, name: &str) -> Result<Option<Millis>, String> {
        self.store.timer_last(name).map_err(text)
    }
}
