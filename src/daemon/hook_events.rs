//! Events for hooks that are not in the journal. Owns their form; it must not know who is called.

use serde_json::Value;

use crate::clock;
use crate::hooks::Event;
use crate::model::event::HookEvent;

/// An event that is handed to handlers at once and never written to the journal: it is not delivered again.
///
/// `key` may be empty (the daemon's own events); `transcript` names the session and the newest entry that handlers may read.
#[must_use]
pub fn unjournalled(kind: HookEvent, key: &str, fields: Value, transcript: Option<(String, i64)>) -> Event {
    Event {
        kind,
        event_id: uuid::Uuid::now_v7().to_string(),
        at: clock::now(),
        attempt: 1,
        redelivered: false,
        test: false,
        key: (!key.is_empty()).then(|| key.to_owned()),
        fields,
        transcript,
    }
}
