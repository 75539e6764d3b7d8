//! Event streams: what the store holds after a number, then whatever comes, without a gap.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::route::Query;
use super::{Api, ApiError};
use crate::clock;
use crate::daemon::context::Context;
use crate::daemon::hub::{Delivering, Listening, News, Preview};
use crate::http::{Hangup, Request, Responder, Stream, sse};
use crate::store::{Error, EventRow, Target};

/// A comment that keeps the connection known to be alive.
const PING: Duration = Duration::from_secs(15);
/// Events read at once, beside the store's own limit in bytes.
const PAGE: usize = 256;

pub const HEADERS: &[(&str, &str)] =
    &[("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no")];

/// Which events of a feed are meant.
pub enum Only {
    /// All.
    All,
    /// Those of one session.
    Session(String),
    /// Those of one turn, until its end; `replay`: from its beginning.
    Turn {
        /// Its id.
        id: String,
        /// It may have begun before.
        replay: bool,
    },
}

/// A place in the stream of a key, or of all.
pub struct Feed {
    ctx: Arc<Context>,
    key: Option<String>,
    listening: Listening,
    /// The last event that was seen to.
    after: i64,
    /// Up to here the store has to be read; what comes after is handed over by the hub.
    missed: i64,
    deltas: bool,
    follow: bool,
    notice: Option<(&'static str, &'static str)>,
}

impl Feed {
    /// Begins to listen. From now on nothing is missed.
    pub fn open(ctx: &Arc<Context>, key: &str, deltas: bool) -> Result<Self, ApiError> {
        let listening = ctx.hub.listen(Some(key), deltas);
        let newest = match ctx.hub.newest() {
            0 => ctx.store.event_bounds()?.0,
            newest => newest,
        };
        let (ctx, key) = (ctx.clone(), Some(key.to_owned()));
        Ok(Self { ctx, key, listening, after: newest, missed: newest, deltas, follow: true, notice: None })
    }

    fn from(
        ctx: &Arc<Context>,
        key: Option<&str>,
        after: Option<i64>,
        header: Option<&str>,
        deltas: bool,
    ) -> Result<Self, ApiError> {
        let listening = ctx.hub.listen(key, deltas);
        let (newest, pruned) = ctx.store.event_bounds()?;
        let asked =
            match header {
                Some(text) => {
                    Some(text.trim().parse::<i64>().ok().filter(|n| *n >= 0).ok_or_else(|| {
                        ApiError::parameter(format!("Last-Event-ID: {text:?} is not a number from 0"))
                    })?)
                }
                None => after,
            };
        let (after, notice) = match asked {
            None => (newest, None),
            Some(n) if n > newest => {
                (newest, Some(("events_reset", "there is no such event here: the stream goes on from now")))
            }
            Some(n) if n < pruned => (n, Some(("events_pruned", "older events have been removed"))),
            Some(n) => (n, None),
        };
        let key = key.map(str::to_owned);
        Ok(Self { ctx: ctx.clone(), key, listening, after, missed: newest, deltas, follow: true, notice })
    }

    /// Streams until the client goes, the daemon leaves, or what was asked for is over. `buf`: what is said first, at once.
    pub fn run(mut self, out: Responder<'_>, mut buf: Vec<u8>, only: Only) -> io::Result<()> {
        if let Some((code, text)) = self.notice.take() {
            let at = clock::rfc3339(clock::now());
            let data = json!({ "key": self.key, "session_id": null, "at": at, "code": code, "text": text });
            sse::event(&mut buf, Some("notice"), None, &data.to_string());
        }
        let mut delivering: Option<Delivering> = None;
        // What is there already goes out with the head. The head goes out in any case, so that a client knows that it listens.
        let over = match &only {
            // Page by page, below: it may be as long as an answer.
            Only::Turn { replay: true, .. } => false,
            _ if self.after >= self.missed => {
                let news = self.listening.wait(self.after, Instant::now());
                self.take_in(news, &only, &mut buf, &mut delivering)
            }
            _ => false,
        };
        let mut stream = out.stream_with(200, HEADERS, &buf)?;
        buf.clear();
        if over {
            return stream.finish();
        }
        // The moment the client is gone its place is free; what cannot be watched is found out by the next ping.
        let alarm = self.listening.alarm();
        let _watch = stream.watch(Arc::new(move |hangup| alarm(hangup == Hangup::Gone)));
        if let Only::Turn { id, replay: true } = &only
            && self.replay(id, &mut buf, &mut stream)?
        {
            return stream.finish_with(&buf);
        }
        let mut closed = false;
        loop {
            // Everything that is durable, then previews, then wait.
            while self.after < self.missed {
                let page = self
                    .ctx
                    .store
                    .events(self.key.as_deref(), self.after, PAGE)
                    .map_err(|e| io::Error::other(e.to_string()))?;
                let full = page.next.is_some();
                if self.write_all(&page.items, &only, &mut buf, &mut delivering) {
                    return stream.finish_with(&buf);
                }
                stream.write(&buf)?;
                buf.clear();
                if !full {
                    self.after = self.after.max(self.missed);
                }
            }
            if closed || !self.follow {
                return stream.finish();
            }
            let ping_at = Instant::now() + PING;
            let news = self.listening.wait(self.after, ping_at);
            closed = news.closed;
            if news.gone {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let doubt = news.doubt;
            if self.take_in(news, &only, &mut buf, &mut delivering) {
                return stream.finish_with(&buf);
            }
            if buf.is_empty() && self.after >= self.missed && (doubt || Instant::now() >= ping_at) {
                sse::ping(&mut buf);
            }
            stream.write(&buf)?;
            buf.clear();
        }
    }

    /// Writes what the hub handed over: previews, and the rows that were not read already. `true`: all is over.
    fn take_in(&mut self, news: News, only: &Only, buf: &mut Vec<u8>, delivering: &mut Option<Delivering>) -> bool {
        if self.deltas {
            let meant = |of: &Preview| match only {
                Only::All => true,
                Only::Session(id) => of.session_id == *id,
                Only::Turn { id, .. } => of.turn_id == *id,
            };
            for delta in news.deltas.iter().filter(|d| meant(d)) {
                sse::event(buf, Some("delta"), None, &delta.json);
            }
        }
        self.missed = self.missed.max(news.missed);
        if self.after < self.missed {
            // Something before these has to be read first, and these with it.
            self.missed = news.rows.back().map_or(self.missed, |last| last.seq.max(self.missed));
            return false;
        }
        let rows: Vec<EventRow> = news.rows.iter().filter(|r| r.seq > self.after).map(|r| (&**r).into()).collect();
        self.write_all(&rows, only, buf, delivering)
    }

    /// Writes events. `true`: all is over.
    fn write_all(
        &mut self,
        events: &[EventRow],
        only: &Only,
        buf: &mut Vec<u8>,
        delivering: &mut Option<Delivering>,
    ) -> bool {
        for event in events {
            self.after = event.seq;
            let over = write(event, only, buf);
            if let Only::Turn { .. } = only
                && event.kind == "turn_start"
                && !buf.is_empty()
            {
                // A drain waits for the answer to be handed over.
                delivering.get_or_insert_with(|| self.ctx.hub.deliver());
            }
            if over {
                return true;
            }
        }
        false
    }

    /// What a turn that is known already has said so far. `true`: it is over, and what is left in `buf` is its end.
    fn replay(&mut self, turn_id: &str, buf: &mut Vec<u8>, stream: &mut Stream<'_>) -> io::Result<bool> {
        let unread = |e: Error| io::Error::other(e.to_string());
        let Some(key) = self.key.clone() else { return Ok(false) };
        // Its state first: if it has its outcome by now, every event of it can be read by now.
        let turn = self.ctx.store.turn(turn_id).map_err(unread)?;
        let mut at = turn.events_after;
        // Where some of its events may be gone, its last one need not be there to be found.
        let pruned = self.ctx.store.event_bounds().map_err(unread)?.1 > at;
        let past = |event: &EventRow| pruned && turn.ended_at.is_some_and(|ended| event.at > ended);
        let only = Only::Turn { id: turn_id.to_owned(), replay: true };
        'pages: loop {
            let page = self.ctx.store.events(Some(&key), at, PAGE).map_err(unread)?;
            for event in &page.items {
                if past(event) {
                    break 'pages;
                }
                at = event.seq;
                if write(event, &only, buf) {
                    return Ok(true);
                }
            }
            stream.write(buf)?;
            buf.clear();
            if page.next.is_none() {
                break;
            }
        }
        self.after = self.after.max(at);
        if !matches!(turn.state.as_str(), "queued" | "running") {
            // Its events were pruned: its outcome is still known.
            let error = turn.error.map(|(code, message)| json!({ "code": code, "message": message }));
            let data = json!({ "key": key, "turn_id": turn_id, "outcome": turn.state, "error": error });
            sse::event(buf, Some("turn_end"), None, &data.to_string());
            return Ok(true);
        }
        Ok(false)
    }
}

/// Writes one event, if it is meant. `true`: it was the last that is.
fn write(event: &EventRow, only: &Only, buf: &mut Vec<u8>) -> bool {
    let meant = match only {
        Only::All => true,
        Only::Session(id) => event.session_id == *id,
        Only::Turn { id, .. } => event.turn_id.as_deref() == Some(id),
    };
    if meant {
        sse::event(buf, Some(&event.kind), Some(event.seq), &event.data);
    }
    meant && event.kind == "turn_end" && matches!(only, Only::Turn { .. })
}

/// `GET …/events`.
pub fn stream(api: &Api, request: &Request, query: &Query, of: Option<Target>, out: Responder<'_>) -> io::Result<()> {
    let open = || -> Result<(Feed, Only), ApiError> {
        let (key, only) = match of {
            None => (None, Only::All),
            Some(Target::Key(key)) => (Some(key), Only::All),
            Some(Target::Id(id)) => (Some(api.ctx.store.key_of(&id)?), Only::Session(id)),
        };
        let header = request.head.header("last-event-id");
        let mut feed = Feed::from(&api.ctx, key.as_deref(), query.number("after")?, header, query.flag("deltas")?)?;
        // `follow=0`: what is kept, and no more.
        feed.follow = query.get("follow") != Some("0");
        Ok((feed, only))
    };
    match open() {
        Ok((feed, only)) => feed.run(out, b": listening\n\n".to_vec(), only),
        Err(e) => out.send(e.response()),
    }
}
