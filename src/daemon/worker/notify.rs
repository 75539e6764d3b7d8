//! Events for hooks about a session's turns.

use std::time::Instant;

use serde_json::json;

use super::session::Session;
use crate::agent;
use crate::daemon::hook_events::unjournalled;
use crate::hooks::Event;
use crate::model::event::{HookEvent, Outcome};
use crate::store::Begun;

impl Session {
    /// Notifies the handlers of a turn's outcome.
    pub(super) fn notify_end(&self, begun: &Begun, outcome: Outcome, answer: &str, since: Instant) {
        let took = i64::try_from(self.ctx().now().saturating_duration_since(since).as_millis()).unwrap_or(i64::MAX);
        self.notify(HookEvent::TurnEnd, begun, json!({ "outcome": outcome, "duration_ms": took, "text": answer }));
    }

    /// Notifies the handlers of an event about a turn.
    pub(super) fn notify(&self, kind: HookEvent, begun: &Begun, fields: serde_json::Value) {
        if self.ctx().hooked(kind) {
            self.ctx().handlers.notify(self.event(kind, begun, fields), Box::new(|_| ()));
        }
    }

    /// An event about a turn, with the present transcript.
    pub(super) fn event(&self, kind: HookEvent, begun: &Begun, mut fields: serde_json::Value) -> Event {
        let identity = agent::Host::identity(&self.host);
        fields["session_id"] = identity.session_id.as_str().into();
        fields["turn_id"] = begun.turn_id.as_str().into();
        fields["resumed"] = begun.continues.as_ref().is_some_and(|c| c.rerun).into();
        fields["continues"] = begun.continues.as_ref().map(|c| c.turn_id.clone()).into();
        let upto = self.ctx().store.newest_entry(self.host.sid).unwrap_or(0);
        unjournalled(kind, &identity.key, fields, Some((identity.session_id.clone(), upto)))
    }
}
