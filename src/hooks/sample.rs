//! Sample events, for `ostler hooks fire` and the tests of scripts: every field that INTERFACE.md names, with a value
//! of the right kind and never null, so that a script sees every field.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Event;
use crate::clock;
use crate::model::event::HookEvent;

/// A sample of an event, marked as a test.
#[must_use]
pub fn sample(event: HookEvent) -> Event {
    let now = clock::now();
    let of_session =
        !matches!(event, HookEvent::DaemonStart | HookEvent::Shutdown | HookEvent::Stopped | HookEvent::Reload);
    // The events that carry the session's place in the transcript.
    let stands = of_session && event != HookEvent::Message;
    Event {
        kind: event,
        event_id: Uuid::now_v7().to_string(),
        at: now,
        attempt: 1,
        redelivered: false,
        test: true,
        key: of_session.then(|| KEY.to_owned()),
        fields: fields(event, now),
        transcript: stands.then(|| (SESSION.to_owned(), i64::MAX)),
    }
}

/// The same with the caller's fields: those of the event, and `key`, `event_id`, `attempt`, `redelivered` and `test`.
/// The transcript is that of `session_id`.
#[must_use]
pub fn sample_with(event: HookEvent, fields: &Map<String, Value>) -> Event {
    let mut event = sample(event);
    for (name, value) in fields {
        match (name.as_str(), value) {
            ("event_id", Value::String(id)) => event.event_id.clone_from(id),
            ("redelivered", Value::Bool(is)) => event.redelivered = *is,
            ("test", Value::Bool(is)) => event.test = *is,
            ("attempt", Value::Number(n)) => {
                event.attempt = n.as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(event.attempt);
            }
            ("key", Value::String(key)) if event.key.is_some() => event.key = Some(key.clone()),
            ("session_id", Value::String(id)) => {
                if let Some((session_id, _)) = &mut event.transcript {
                    session_id.clone_from(id);
                }
            }
            _ => {}
        }
        event.fields[name] = value.clone();
    }
    event
}

/// The sample's key.
const KEY: &str = "local:sample";
/// The sample's session.
pub(crate) const SESSION: &str = "00000000-0000-7000-8000-000000000001";

fn fields(event: HookEvent, now: clock::Millis) -> Value {
    let (key, session) = (KEY, SESSION);
    let turn = "00000000-0000-7000-8000-000000000002";
    let cut = "00000000-0000-7000-8000-000000000003";
    let (previous, next) = ("00000000-0000-7000-8000-000000000004", "00000000-0000-7000-8000-000000000005");
    let (then, at) = (clock::rfc3339(now - 60_000), clock::rfc3339(now));
    match event {
        HookEvent::DaemonStart => json!({ "version": env!("CARGO_PKG_VERSION"),
            "recovered": { "deaths": 0, "activations": 0, "interrupted": 0, "suspended": 0 } }),
        HookEvent::SessionStart => json!({ "key": key, "session_id": session, "epoch": 1, "reason": "reset",
            "previous_id": previous, "agent": "default", "cwd": "/tmp" }),
        HookEvent::Message => json!({ "key": key, "text": "a sample message", "id": "sample-1", "origin": "api",
            "peer": { "uid": 1000, "pid": 1 } }),
        HookEvent::BeforeTurn => json!({ "key": key, "session_id": session, "turn_id": turn,
            "text": "a sample message", "first": true, "resumed": false, "continues": cut }),
        HookEvent::TurnStart => json!({ "key": key, "session_id": session, "turn_id": turn, "resumed": false,
            "continues": cut }),
        HookEvent::TurnEnd => json!({ "key": key, "session_id": session, "turn_id": turn, "resumed": false,
            "continues": cut, "outcome": "completed", "duration_ms": 1200, "text": "a sample answer" }),
        HookEvent::Permission => json!({ "key": key, "session_id": session, "turn_id": turn, "request_id": "sample",
            "tool": "sample-call", "title": "Run a sample", "kind": "execute", "input": { "command": "true" },
            "content": [{ "type": "content", "content": { "type": "text", "text": "why" } }],
            "locations": [{ "path": "/tmp/sample", "line": 1 }], "options": [
                { "option_id": "once", "name": "Allow once", "kind": "allow_once" },
                { "option_id": "no", "name": "Reject", "kind": "reject_once" } ] }),
        HookEvent::SessionEnd => json!({ "key": key, "session_id": session, "epoch": 1, "reason": "shutdown",
            "final": false, "actor": "supervisor", "agent": "default", "cwd": "/tmp", "started_at": then,
            "ended_at": at, "turns": 1, "messages": 1, "previous_id": previous, "next_id": next,
            "resume_pending": { "reason": "shutdown_timeout", "marked_at": at } }),
        HookEvent::SessionClosed => json!({ "key": key, "session_id": session, "reason": "reset", "actor": "user",
            "previous_id": previous, "next_id": next, "epochs": 1, "turns": 1, "messages": 1, "created_at": then,
            "ended_at": at }),
        HookEvent::Shutdown => json!({ "reason": "shutdown", "deadline_ms": 30_000, "running": [key], "live": 1 }),
        HookEvent::Stopped => json!({ "reason": "shutdown", "clean": true, "report": {
            "boot_id": "sample", "reason": "shutdown", "urgency": "graceful", "clean": true, "started_at": then,
            "ended_at": at, "phases": [{ "phase": "draining", "planned_ms": 30_000, "took_ms": 12 }],
            "sessions": [] } }),
        HookEvent::Reload => json!({ "changed": ["hooks.timeout"] }),
    }
}
