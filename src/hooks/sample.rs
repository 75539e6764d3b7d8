//! Sample events, for `ostler hooks fire`: every field that INTERFACE.md names, with a value of the right kind.

use serde_json::{Value, json};
use uuid::Uuid;

use super::Event;
use crate::clock;
use crate::model::event::HookEvent;

/// A sample of an event, marked as a test.
#[must_use]
pub fn sample(event: HookEvent) -> Event {
    let key = "local:sample";
    let session = "00000000-0000-7000-8000-000000000001";
    let turn = "00000000-0000-7000-8000-000000000002";
    let now = clock::now();
    let (then, at) = (clock::rfc3339(now - 60_000), clock::rfc3339(now));
    let of_session =
        !matches!(event, HookEvent::DaemonStart | HookEvent::Shutdown | HookEvent::Stopped | HookEvent::Reload);
    let fields: Value = match event {
        HookEvent::DaemonStart => json!({ "version": env!("CARGO_PKG_VERSION"), "recovered": {} }),
        HookEvent::SessionStart => json!({ "key": key, "session_id": session, "epoch": 1, "reason": "new",
            "previous_id": null, "agent": "default", "cwd": "/tmp" }),
        HookEvent::Message => {
            json!({ "key": key, "text": "a sample message", "id": null, "origin": "test", "peer": null })
        }
        HookEvent::BeforeTurn => {
            json!({ "key": key, "session_id": session, "turn_id": turn, "text": "a sample message",
            "first": true, "resumed": false, "continues": null })
        }
        HookEvent::TurnStart => json!({ "key": key, "session_id": session, "turn_id": turn, "resumed": false,
            "continues": null }),
        HookEvent::TurnEnd => json!({ "key": key, "session_id": session, "turn_id": turn, "resumed": false,
            "continues": null, "outcome": "completed", "duration_ms": 1200, "text": "a sample answer" }),
        HookEvent::Permission => json!({ "key": key, "session_id": session, "turn_id": turn, "request_id": "sample",
            "tool": "sample-call", "title": "Run a sample", "kind": "execute", "input": { "command": "true" },
            "locations": [], "options": [
                { "option_id": "once", "name": "Allow once", "kind": "allow_once" },
                { "option_id": "no", "name": "Reject", "kind": "reject_once" } ] }),
        HookEvent::SessionEnd => {
            json!({ "key": key, "session_id": session, "epoch": 1, "reason": "parked", "final": false,
            "actor": "policy", "agent": "default", "cwd": "/tmp", "started_at": then, "ended_at": at, "turns": 1,
            "messages": 1, "previous_id": null, "next_id": null, "resume_pending": false })
        }
        HookEvent::SessionClosed => json!({ "key": key, "session_id": session, "reason": "reset", "actor": "user",
            "previous_id": null, "next_id": null, "epochs": 1, "turns": 1, "messages": 1, "created_at": then,
            "ended_at": at }),
        HookEvent::Shutdown => json!({ "reason": "shutdown", "deadline_ms": 30_000, "running": [key], "live": 1 }),
        HookEvent::Stopped => json!({ "reason": "shutdown", "clean": true, "report": {} }),
        HookEvent::Reload => json!({ "changed": ["hooks"] }),
    };
    Event {
        kind: event,
        event_id: Uuid::now_v7().to_string(),
        at: now,
        attempt: 1,
        redelivered: false,
        test: true,
        key: of_session.then(|| key.to_owned()),
        fields,
        transcript: event.is_journalled().then(|| (session.to_owned(), 0)),
    }
}
