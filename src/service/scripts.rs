//! The operator's scripts: registered handlers, set-aside events, and sample events on demand.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::{Fault, Service};
use crate::daemon::delivery::Message;
use crate::hooks::{self, Delivered, HandlerInfo};
use crate::model::event::HookEvent;

/// The most set-aside events in one answer.
const FAILED: usize = 1000;

impl Service {
    /// Every registered handler, with its numbers.
    #[must_use]
    pub fn handlers(&self) -> Vec<HandlerInfo> {
        self.ctx.hooks.list()
    }

    /// The events that were set aside.
    ///
    /// # Errors
    /// The store fails.
    pub fn failed_events(&self) -> Result<Vec<Value>, Fault> {
        Ok(self.ctx.store.failed_events(FAILED)?.into_iter().map(|e| e.0).collect())
    }

    /// Delivers a set-aside event again, or all of them (`all`); returns the number of deliveries.
    ///
    /// # Errors
    /// There is none, or the store fails.
    pub fn retry_event(&self, id: &str) -> Result<usize, Fault> {
        let deliveries = self.ctx.store.retry_failed((id != "all").then(|| id.to_owned()))?;
        self.delivery.send(Message::Rescan);
        Ok(deliveries)
    }

    /// Discards a set-aside event; returns the number of deliveries.
    ///
    /// # Errors
    /// There is none, or the store fails.
    pub fn discard_event(&self, id: &str) -> Result<usize, Fault> {
        Ok(self.ctx.store.discard_failed(id.to_owned())?)
    }

    /// Sends a sample event, never journalled, to each of its handlers; returns the outcome of each call.
    #[must_use]
    pub fn fire(&self, kind: HookEvent, fields: &Map<String, Value>) -> Vec<Value> {
        let mut event = hooks::sample_with(kind, fields);
        event.test = true;
        let mut results = Vec::new();
        for handler in self.ctx.hooks.handlers(kind) {
            let began = Instant::now();
            let (send, receive) = crossbeam_channel::bounded(1);
            self.ctx.hooks.deliver(
                &handler,
                event.clone(),
                Box::new(move |d| {
                    let _ = send.try_send(d);
                }),
            );
            let patience = self.ctx.config().hooks.timeout * 2 + Duration::from_secs(60);
            let (outcome, error) = match receive.recv_timeout(patience).unwrap_or(Delivered::NotCalled) {
                Delivered::Done => ("delivered", None),
                Delivered::Failed(why) => ("failed", Some(why)),
                Delivered::TimedOut(why) => ("timed_out", Some(why)),
                Delivered::Orphaned => ("orphaned", Some("it is not registered any more".to_owned())),
                Delivered::NotCalled => ("not_called", Some("the hooks are busy or closing".to_owned())),
            };
            results.push(json!({
                "script": handler.script, "name": handler.name, "outcome": outcome, "error": error,
                "took_us": began.elapsed().as_micros() as u64,
            }));
        }
        results
    }
}
