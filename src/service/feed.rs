//! Follows a key, or all keys: yields the stored events after a number, then new events, without a gap.
//!
//! A [`Feed`] yields [`Batch`]es; each surface writes them in its own format.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::{Fault, Service};
use crate::clock;
use crate::daemon::context::Context;
use crate::daemon::hub::{Delivering, Listening, News, Preview};
use crate::store::{Error, EventRow, Target};

/// The most events that are read at once; the store also has a limit in bytes.
const PAGE: usize = 256;

/// The events of a feed that the client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Only {
    /// All.
    All,
    /// The events of one session.
    Session(String),
    /// The events of one turn, until its end; `replay`: from its beginning.
    Turn {
        /// Its id.
        id: String,
        /// It may have begun before.
        replay: bool,
    },
}

impl Only {
    fn means(&self, event: &EventRow) -> bool {
        match self {
            Self::All => true,
            Self::Session(id) => event.session_id == *id,
            Self::Turn { id, .. } => event.turn_id.as_deref() == Some(id),
        }
    }

    fn means_preview(&self, of: &Preview) -> bool {
        match self {
            Self::All => true,
            Self::Session(id) => of.session_id == *id,
            Self::Turn { id, .. } => of.turn_id == *id,
        }
    }

    /// Whether an event is the last of this scope.
    fn ends_with(&self, event: &EventRow) -> bool {
        matches!(self, Self::Turn { .. }) && event.kind == "turn_end" && self.means(event)
    }
}

/// The start of a feed, and its options.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The last event that the client has seen; `None`: only new events.
    pub after: Option<i64>,
    /// Yield previews too.
    pub deltas: bool,
    /// Go on with new events after the stored ones.
    pub follow: bool,
}

/// A batch of a feed, to be written in this order.
#[derive(Debug, Default)]
pub struct Batch {
    /// The data of a `notice`, once, before everything else.
    pub notice: Option<Value>,
    /// Previews.
    pub previews: Vec<Arc<Preview>>,
    /// Durable events.
    pub events: Vec<EventRow>,
    /// The data of a `turn_end` whose own event was pruned.
    pub outcome: Option<Value>,
    /// The client may be gone: the surface must write something to find out.
    pub doubt: bool,
    /// What follows this batch.
    pub then: Then,
}

/// What follows a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Then {
    /// More events are there or may come.
    #[default]
    More,
    /// The end: the requested events are complete, or the daemon exits.
    Over,
    /// The client is gone.
    Gone,
}

/// A position in the stream of a key, or of all keys.
#[derive(Debug)]
pub struct Feed {
    ctx: Arc<Context>,
    key: Option<String>,
    only: Only,
    listening: Listening,
    /// The last event that was handled.
    after: i64,
    /// Up to this event the store must be read; later events come from the hub.
    missed: i64,
    deltas: bool,
    follow: bool,
    closed: bool,
    notice: Option<(&'static str, &'static str)>,
    replay: Option<Replay>,
    /// A drain waits until the answer has been handed over, which is when the feed is dropped.
    delivering: Option<Delivering>,
}

/// The state of a turn's replay.
#[derive(Debug)]
struct Replay {
    turn_id: String,
    at: i64,
    /// Some of its events may be pruned; events after its end do not belong to it.
    ended_at: Option<clock::Millis>,
    /// Its outcome by now, reported if its `turn_end` is pruned.
    outcome: Option<Value>,
}

impl Service {
    /// Starts to listen to a key, so that no event of a message that is accepted later is missed. [`Feed::of_turn`]
    /// then names the turn.
    ///
    /// # Errors
    /// The store fails.
    pub fn listen(&self, key: &str, deltas: bool) -> Result<Feed, Fault> {
        let ctx = self.ctx.clone();
        let listening = ctx.hub.listen(Some(key), deltas);
        let newest = match ctx.hub.newest() {
            0 => ctx.store.event_bounds()?.0,
            newest => newest,
        };
        Ok(Feed::new(ctx, Some(key.to_owned()), Only::All, listening, newest, deltas))
    }

    /// Follows a key, a session or everything.
    ///
    /// # Errors
    /// There is no such session, or the store fails.
    pub fn follow(&self, of: Option<Target>, wanted: &Wanted) -> Result<Feed, Fault> {
        let ctx = self.ctx.clone();
        let (key, only) = match of {
            None => (None, Only::All),
            Some(Target::Key(key)) => (Some(key), Only::All),
            Some(Target::Id(id)) => (Some(ctx.store.key_of(&id)?), Only::Session(id)),
        };
        let listening = ctx.hub.listen(key.as_deref(), wanted.deltas);
        let (newest, pruned) = ctx.store.event_bounds()?;
        let (after, notice) = match wanted.after {
            None => (newest, None),
            Some(n) if n > newest => {
                (newest, Some(("events_reset", "there is no such event here: the stream goes on from now")))
            }
            Some(n) if n < pruned => (n, Some(("events_pruned", "older events have been removed"))),
            Some(n) => (n, None),
        };
        let mut feed = Feed::new(ctx, key, only, listening, newest, wanted.deltas);
        (feed.after, feed.notice, feed.follow) = (after, notice, wanted.follow);
        Ok(feed)
    }
}

impl Feed {
    fn new(
        ctx: Arc<Context>,
        key: Option<String>,
        only: Only,
        listening: Listening,
        newest: i64,
        deltas: bool,
    ) -> Self {
        Self {
            ctx,
            key,
            only,
            listening,
            after: newest,
            missed: newest,
            deltas,
            follow: true,
            closed: false,
            notice: None,
            replay: None,
            delivering: None,
        }
    }

    /// Follows one turn to its end; `replay`: from its beginning, because it may be running or over.
    ///
    /// # Errors
    /// The store fails.
    pub fn of_turn(mut self, id: &str, replay: bool) -> Result<Self, Fault> {
        self.only = Only::Turn { id: id.to_owned(), replay };
        if replay {
            // The state is read first: if it has an outcome, all of its events can be read after that.
            let turn = self.ctx.store.turn(id)?;
            let over = !matches!(turn.state.as_str(), "queued" | "running");
            let error = turn.error.map(|(code, message)| json!({ "code": code, "message": message }));
            let outcome = json!({ "key": self.key, "turn_id": id, "outcome": turn.state, "error": error });
            // If some of its events may be pruned, its last event may be missing.
            let pruned = self.ctx.store.event_bounds()?.1 > turn.events_after;
            self.replay = Some(Replay {
                turn_id: id.to_owned(),
                at: turn.events_after,
                ended_at: turn.ended_at.filter(|_| pruned),
                outcome: over.then_some(outcome),
            });
        }
        Ok(self)
    }

    /// A function that wakes a waiting feed because its client is gone (`true`) or seems to be (`false`).
    #[must_use]
    pub fn alarm(&self) -> Arc<dyn Fn(bool) + Send + Sync> {
        self.listening.alarm()
    }

    /// The events that are there without a read of the store, to be written together with the head.
    #[must_use]
    pub fn first(&mut self) -> Batch {
        let mut batch = Batch { notice: self.notice(), ..Batch::default() };
        if self.replay.is_none() && self.after >= self.missed {
            let news = self.listening.wait(self.after, Instant::now());
            self.take_in(news, &mut batch);
        }
        batch
    }

    /// The next batch: first the stored events, page by page, then new events. An empty batch: the deadline passed.
    ///
    /// # Errors
    /// The store fails.
    pub fn next(&mut self, until: Instant) -> Result<Batch, Fault> {
        let mut batch = Batch { notice: self.notice(), ..Batch::default() };
        if self.replay.is_some() {
            self.replay_page(&mut batch)?;
        } else if self.after < self.missed {
            self.page(&mut batch)?;
        } else if self.closed || !self.follow {
            batch.then = Then::Over;
        } else {
            let news = self.listening.wait(self.after, until);
            self.closed = news.closed;
            if news.gone {
                batch.then = Then::Gone;
                return Ok(batch);
            }
            batch.doubt = news.doubt;
            self.take_in(news, &mut batch);
        }
        Ok(batch)
    }

    /// Whether the store has events that were not yielded yet.
    #[must_use]
    pub const fn is_behind(&self) -> bool {
        self.after < self.missed
    }

    fn notice(&mut self) -> Option<Value> {
        let (code, text) = self.notice.take()?;
        let at = clock::rfc3339(clock::now());
        Some(json!({ "key": self.key, "session_id": null, "at": at, "code": code, "text": text }))
    }

    fn read(&self, after: i64) -> Result<(Vec<EventRow>, bool), Error> {
        let page = self.ctx.store.events(self.key.as_deref(), after, PAGE)?;
        Ok((page.items, page.next.is_some()))
    }

    fn page(&mut self, batch: &mut Batch) -> Result<(), Fault> {
        let (events, more) = self.read(self.after)?;
        if !self.put_all(events, batch) && !more {
            self.after = self.after.max(self.missed);
        }
        Ok(())
    }

    /// Adds the hub's previews and unread rows to a batch.
    fn take_in(&mut self, news: News, batch: &mut Batch) {
        if self.deltas {
            batch.previews = news.deltas.into_iter().filter(|d| self.only.means_preview(d)).collect();
        }
        self.missed = self.missed.max(news.missed);
        if self.after < self.missed {
            // Earlier events must be read first, and these with them.
            self.missed = news.rows.back().map_or(self.missed, |last| last.seq.max(self.missed));
            return;
        }
        let rows = news.rows.iter().filter(|r| r.seq > self.after).map(|r| (&**r).into()).collect();
        self.put_all(rows, batch);
    }

    /// Adds the wanted events to a batch. `true`: the feed ends with them.
    fn put_all(&mut self, events: Vec<EventRow>, batch: &mut Batch) -> bool {
        for event in events {
            self.after = event.seq;
            if !self.only.means(&event) {
                continue;
            }
            if matches!(self.only, Only::Turn { .. }) && event.kind == "turn_start" {
                let key = self.key.as_deref().unwrap_or_default();
                self.delivering.get_or_insert_with(|| self.ctx.hub.deliver(key));
            }
            let over = self.only.ends_with(&event);
            batch.events.push(event);
            if over {
                batch.then = Then::Over;
                return true;
            }
        }
        false
    }

    /// A page of the events of a turn so far.
    fn replay_page(&mut self, batch: &mut Batch) -> Result<(), Fault> {
        let Some(mut replay) = self.replay.take() else { return Ok(()) };
        let (events, more) = self.read(replay.at)?;
        let mut past = false;
        for event in events {
            past = replay.ended_at.is_some_and(|ended| event.at > ended);
            if past {
                break;
            }
            replay.at = event.seq;
            if self.only.means(&event) {
                let over = self.only.ends_with(&event);
                batch.events.push(event);
                if over {
                    batch.then = Then::Over;
                    return Ok(());
                }
            }
        }
        if more && !past {
            self.replay = Some(replay);
            return Ok(());
        }
        self.after = self.after.max(replay.at);
        if let Some(outcome) = replay.outcome {
            // Its events are pruned, but its outcome is known.
            log::debug!(turn_id = replay.turn_id; "the end of a turn is told from its row: its events were pruned");
            batch.outcome = Some(outcome);
            batch.then = Then::Over;
        }
        Ok(())
    }
}
