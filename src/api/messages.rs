//! A message comes in: checked, shown to hooks, accepted, acknowledged after its commit; and, if asked for, its turn's
//! events on the same connection.

use std::io;
use std::sync::atomic::Ordering;

use serde::Serialize;
use serde_json::json;

use super::events::{Feed, Only};
use super::route::Query;
use super::{Api, ApiError, bodies};
use crate::daemon::{self, hook_events};
use crate::hooks::Verdict;
use crate::http::{Peer, Request, Responder, Response};
use crate::model::event::HookEvent;
use crate::model::session::{id_fault, text_fault};
use crate::store::{Accept, Accepted, Target};

pub fn post(api: &Api, request: &Request, query: &Query, to: Target, out: Responder<'_>) -> io::Result<()> {
    let streams = request.head.header("accept").is_some_and(|a| a.contains("text/event-stream"));
    let message = match read(api, request, to) {
        Ok(message) => message,
        Err(e) => return refuse(api, &e, out),
    };
    // Listening begins before the message is accepted, so that nothing of its turn is missed.
    let deltas = query.flag("deltas").unwrap_or(false);
    let feed = match streams.then(|| Feed::open(&api.ctx, &message.key, deltas)).transpose() {
        Ok(feed) => feed,
        Err(e) => return out.send(e.response()),
    };
    let accepted = match accept(api, request, message) {
        Ok(accepted) => accepted,
        Err(e) => return refuse(api, &e, out),
    };
    let tally = &api.ctx.tally;
    let of = if accepted.duplicate { &tally.duplicates } else { &tally.accepted };
    of.fetch_add(1, Ordering::Relaxed);
    match feed {
        None => out.send(Response::json_text(202, told(&accepted))),
        Some(feed) => follow(&accepted, feed, out),
    }
}

/// The sender is told why, the operator how often.
fn refuse(api: &Api, e: &ApiError, out: Responder<'_>) -> io::Result<()> {
    api.ctx.tally.refuse(e.code());
    out.send(e.response())
}

struct Message {
    key: String,
    text: String,
    id: Option<String>,
    session_id: Option<String>,
}

fn read(api: &Api, request: &Request, to: Target) -> Result<Message, ApiError> {
    let body: bodies::Message = bodies::read(&request.body)?;
    let bodies::Field::Text(text) = body.text else {
        return Err(ApiError::new(400, "invalid_text", "text: a text is needed"));
    };
    if let Some(fault) = text_fault(&text) {
        return Err(ApiError::new(400, "invalid_text", format!("the text {fault}")));
    }
    let id = body.id.optional("id")?;
    if let Some(fault) = id.as_deref().and_then(id_fault) {
        return Err(ApiError::parameter(format!("id: {fault}")));
    }
    let (key, session_id) = match to {
        Target::Key(key) => (key, None),
        Target::Id(id) => (api.ctx.store.key_of(&id)?, Some(id)),
    };
    Ok(Message { key, text, id, session_id })
}

fn accept(api: &Api, request: &Request, message: Message) -> Result<Accepted, ApiError> {
    let ctx = &api.ctx;
    let mut text = message.text.clone();
    if ctx.hooked(HookEvent::Message) {
        // A duplicate is answered before any hook.
        if let Some(id) = &message.id
            && let Some(known) = ctx.store.find_duplicate(&message.key, id, &message.text)?
        {
            return Ok(known);
        }
        let peer = match &request.peer {
            Peer::Unix { uid, pid, .. } => json!({ "uid": uid, "pid": pid }),
            Peer::Tcp(address) => json!({ "address": address.to_string() }),
        };
        let fields = json!({ "text": message.text, "id": message.id, "origin": "api", "peer": peer });
        match daemon::ask(ctx, hook_events::unjournalled(HookEvent::Message, &message.key, fields, None)) {
            Verdict::Pass(None) => {}
            Verdict::Pass(Some(rewritten)) => text = rewritten,
            Verdict::Refuse(why) => return Err(ApiError::refused(why)),
            Verdict::HookFailed(why) => return Err(ApiError::new(503, "hook_failed", why)),
        }
    }
    let accept = Accept {
        agent: ctx.agent_of(&message.key),
        limits: ctx.limits(),
        key: message.key,
        text,
        original: message.text,
        client_id: message.id,
        session_id: message.session_id,
    };
    Ok(daemon::accept(ctx, accept)?)
}

/// What a sender is told.
#[derive(Serialize)]
struct Told<'a> {
    session_id: &'a str,
    turn_id: &'a str,
    message_id: &'a str,
    duplicate: bool,
    continued_by: Option<&'a str>,
    deferred: bool,
    queued: i64,
    notice: Option<Notice<'a>>,
}

#[derive(Serialize)]
struct Notice<'a> {
    code: &'a str,
    text: &'a str,
}

fn told(a: &Accepted) -> String {
    let told = Told {
        session_id: &a.session_id,
        turn_id: &a.turn_id,
        message_id: &a.message_id,
        duplicate: a.duplicate,
        continued_by: a.continued_by.as_deref(),
        deferred: a.deferred,
        queued: a.queued,
        notice: a.notice.as_ref().map(|(code, text)| Notice { code, text }),
    };
    // Texts, numbers and flags: there is nothing in it that could not be written as JSON.
    serde_json::to_string(&told).unwrap_or_default()
}

fn follow(accepted: &Accepted, feed: Feed, out: Responder<'_>) -> io::Result<()> {
    let mut buf = Vec::new();
    crate::http::sse::event(&mut buf, Some("accepted"), None, &told(accepted));
    if accepted.deferred {
        return out.stream_with(200, super::events::HEADERS, &buf)?.finish();
    }
    feed.run(out, buf, Only::Turn { id: accepted.turn_id.clone(), replay: accepted.duplicate })
}
