//! A message comes in: checked, shown to hooks, accepted, acknowledged after its commit; and, if asked for, its turn's
//! events on the same connection.

use std::io;

use serde::Serialize;
use serde_json::{Value, json};

use super::route::Query;
use super::{Api, ApiError, bodies};
use crate::http::{Peer, Request, Responder, Response};
use crate::service::feed::Feed;
use crate::service::intake::{Message, Origin};
use crate::store::{Accepted, Target};

pub fn post(api: &Api, request: &Request, query: &Query, to: Target, out: Responder<'_>) -> io::Result<()> {
    let streams = request.head.header("accept").is_some_and(|a| a.contains("text/event-stream"));
    let message = match read(api, request, to) {
        Ok(message) => message,
        Err(e) => return refuse(api, &e, out),
    };
    // Listening begins before the message is accepted, so that nothing of its turn is missed.
    let deltas = query.flag("deltas").unwrap_or(false);
    let feed = match streams.then(|| api.service.listen(&message.key, deltas)).transpose() {
        Ok(feed) => feed,
        Err(e) => return out.send(ApiError::from(e).response()),
    };
    let accepted = match api.service.accept(message, &Origin::Api(peer(&request.peer))) {
        Ok(accepted) => accepted,
        Err(e) => return out.send(ApiError::from(e).response()),
    };
    match feed {
        None => out.send(Response::json_text(202, told(&accepted))),
        Some(feed) => follow(&accepted, feed, out),
    }
}

/// A body that is no message: the sender is told why, the operator how often.
fn refuse(api: &Api, e: &ApiError, out: Responder<'_>) -> io::Result<()> {
    api.service.context().tally.refuse(e.code());
    out.send(e.response())
}

fn read(api: &Api, request: &Request, to: Target) -> Result<Message, ApiError> {
    let body: bodies::Message = bodies::read(&request.body)?;
    let bodies::Field::Text(text) = body.text else {
        return Err(ApiError::new(400, "invalid_text", "text: a text is needed"));
    };
    let id = body.id.optional("id");
    // What is wrong with the text is said first.
    let message = api.service.message(to, text, id.as_ref().ok().cloned().flatten())?;
    id.map(|_| message)
}

/// What `message` handlers are shown of the sender.
fn peer(peer: &Peer) -> Value {
    match peer {
        Peer::Unix { uid, pid, .. } => json!({ "uid": uid, "pid": pid }),
        Peer::Tcp(address) => json!({ "address": address.to_string() }),
    }
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
    match feed.of_turn(&accepted.turn_id, accepted.duplicate) {
        Ok(feed) => super::events::run(feed, out, buf),
        Err(e) => out.send(ApiError::from(e).response()),
    }
}
