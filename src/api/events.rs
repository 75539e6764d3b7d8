//! Event streams: a feed, written as server-sent events.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::route::Query;
use super::{Api, ApiError};
use crate::http::{Hangup, Request, Responder, sse};
use crate::service::feed::{Batch, Feed, Then, Wanted};
use crate::store::Target;

/// A comment that keeps the connection known to be alive.
const PING: Duration = Duration::from_secs(15);

pub const HEADERS: &[(&str, &str)] =
    &[("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no")];

/// Streams until the client goes, the daemon leaves, or what was asked for is over. `buf`: what is said first, at once.
///
/// # Errors
/// The connection failed, or the store did.
pub fn run(mut feed: Feed, out: Responder<'_>, mut buf: Vec<u8>) -> io::Result<()> {
    // What is there already goes out with the head. The head goes out in any case, so that a client knows that it listens.
    let first = feed.first();
    write(&first, &mut buf);
    let mut stream = out.stream_with(200, HEADERS, &buf)?;
    if first.then == Then::Over {
        return stream.finish();
    }
    // The moment the client is gone its place is free; what cannot be watched is found out by the next ping.
    let alarm = feed.alarm();
    let _watch = stream.watch(Arc::new(move |hangup| alarm(hangup == Hangup::Gone)));
    loop {
        buf.clear();
        let ping_at = Instant::now() + PING;
        let batch = feed.next(ping_at).map_err(|e| io::Error::other(e.to_string()))?;
        write(&batch, &mut buf);
        match batch.then {
            Then::Over => return stream.finish_with(&buf),
            Then::Gone => return Err(io::ErrorKind::BrokenPipe.into()),
            Then::More => {}
        }
        if buf.is_empty() && !feed.is_behind() && (batch.doubt || Instant::now() >= ping_at) {
            sse::ping(&mut buf);
        }
        stream.write(&buf)?;
    }
}

fn write(batch: &Batch, buf: &mut Vec<u8>) {
    if let Some(notice) = &batch.notice {
        sse::event(buf, Some("notice"), None, &notice.to_string());
    }
    for preview in &batch.previews {
        sse::event(buf, Some("delta"), None, &preview.json);
    }
    for event in &batch.events {
        sse::event(buf, Some(&event.kind), Some(event.seq), &event.data);
    }
    if let Some(outcome) = &batch.outcome {
        sse::event(buf, Some("turn_end"), None, &outcome.to_string());
    }
}

/// `GET …/events`.
pub fn stream(api: &Api, request: &Request, query: &Query, of: Option<Target>, out: Responder<'_>) -> io::Result<()> {
    let open = || -> Result<Feed, ApiError> {
        if let Some(Target::Id(id)) = &of {
            api.service.key_of(id)?;
        }
        let (after, deltas) = (query.number("after")?, query.flag("deltas")?);
        let after = request.head.header("last-event-id").map_or(Ok(after), |text| last_event_id(text).map(Some))?;
        // `follow=0`: what is kept, and no more.
        let wanted = Wanted { after, deltas, follow: query.get("follow") != Some("0") };
        Ok(api.service.follow(of, &wanted)?)
    };
    match open() {
        Ok(feed) => run(feed, out, b": listening\n\n".to_vec()),
        Err(e) => out.send(e.response()),
    }
}

fn last_event_id(text: &str) -> Result<i64, ApiError> {
    let number = text.trim().parse::<i64>().ok().filter(|n| *n >= 0);
    number.ok_or_else(|| ApiError::parameter(format!("Last-Event-ID: {text:?} is not a number from 0")))
}
