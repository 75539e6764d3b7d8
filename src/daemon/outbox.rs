//! The outbox of a running turn: what the agent said and the store has not confirmed yet.
//!
//! Owns the batches, their pace (text within 100 ms, everything else at once) and the limits of what may wait. It must
//! not know what an item means, nor whose turn it is.

use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use super::context::Context;
use crate::store::{Batch, Error, Item, Outbox, PATIENCE, Refusal, TurnRef};

/// Text is committed at the latest after this.
const FLUSH: Duration = Duration::from_millis(100);
/// After a failed write, tried again after this.
const AGAIN: Duration = Duration::from_secs(1);
/// With so much unwritten text the agent is not listened to.
const UNWRITTEN: usize = 8 << 20;
/// So much is written without waiting for the 100 ms.
const PIECE: usize = 64 << 10;

/// An append under way: how much it is, and where its outcome comes. The agent is listened to meanwhile, so that what
/// it says does not wait behind a commit.
struct Sent {
    size: usize,
    outcome: Receiver<Result<(), Error>>,
}

/// What a turn's agent said, on its way to the store.
pub struct TurnOutbox {
    turn: TurnRef,
    batches: Outbox,
    unwritten: usize,
    /// How much the agent may still say, in bytes.
    left: usize,
    flush_at: Option<Instant>,
    sent: Option<Sent>,
    stale: bool,
}

impl TurnOutbox {
    /// For a turn whose agent may say so many bytes.
    #[must_use]
    pub fn new(turn: TurnRef, most: usize) -> Self {
        let batches = Outbox::default();
        Self { turn, batches, unwritten: 0, left: most, flush_at: None, sent: None, stale: false }
    }

    /// How many bytes the agent may still say.
    #[must_use]
    pub const fn left(&self) -> usize {
        self.left
    }

    /// Whether somebody else ended the turn: nothing more is written.
    #[must_use]
    pub const fn is_stale(&self) -> bool {
        self.stale
    }

    /// Whether the agent may say more now. Else the store takes nothing, and the agent waits for it as for any slow
    /// reader.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.stale || self.unwritten <= UNWRITTEN
    }

    /// When [`Self::act`] has something to do.
    #[must_use]
    pub const fn due(&self) -> Option<Instant> {
        self.flush_at
    }

    /// Takes an item; `at_once`: it and all before it are committed before this returns, if the store can. `false`: it
    /// is more than may still be said, and was not taken.
    pub fn push(&mut self, ctx: &Context, item: Item, at_once: bool) -> bool {
        if self.stale {
            return true;
        }
        let Some(left) = self.left.checked_sub(size(&item)) else { return false };
        self.unwritten += self.left - left;
        self.left = left;
        self.batches.push(item);
        let now = ctx.now();
        if at_once {
            self.flush(ctx);
        } else if self.unwritten >= PIECE && self.flush_at.is_none_or(|at| at <= now + FLUSH)
            // An agent that never pauses for a wait: its text is committed all the same.
            || self.flush_at.is_some_and(|at| at <= now)
        {
            self.send(ctx);
        } else if self.flush_at.is_none() {
            self.flush_at = Some(now + FLUSH);
        }
        true
    }

    /// Sends what is due to be sent.
    pub fn act(&mut self, ctx: &Context) {
        if self.flush_at.is_none_or(|at| at > ctx.now()) {
            return;
        }
        if self.has_room() {
            self.send(ctx);
        } else {
            // Nothing more is taken before it is known that the store takes something.
            self.flush(ctx);
        }
    }

    /// Commits what was said so far. It is kept for another try if the store fails.
    pub fn flush(&mut self, ctx: &Context) {
        self.send(ctx);
        self.await_sent(ctx);
    }

    /// The turn has ended: what is still to be written with its outcome.
    #[must_use]
    pub fn finish(&mut self) -> Vec<Batch> {
        self.batches.send()
    }

    /// Sends what was said so far to the store, and waits for the commit of what was sent before, but not for this one.
    fn send(&mut self, ctx: &Context) {
        if !self.await_sent(ctx) {
            return;
        }
        self.flush_at = None;
        if self.batches.is_empty() || self.stale {
            return;
        }
        let (tell, outcome) = sync_channel(1);
        ctx.store.append_then(self.turn, self.batches.send(), move |kept| drop(tell.send(kept)));
        self.sent = Some(Sent { size: std::mem::take(&mut self.unwritten), outcome });
    }

    /// Waits for what is under way. `false`: it is not known to be kept, and is sent again later.
    fn await_sent(&mut self, ctx: &Context) -> bool {
        let Some(sent) = self.sent.take() else { return true };
        let outcome = sent.outcome.recv_timeout(PATIENCE);
        match outcome.unwrap_or_else(|e| Err(Error::Unavailable(format!("append: the disk did not answer: {e}")))) {
            Ok(()) => {
                self.batches.kept();
                true
            }
            Err(Error::Refused(Refusal::Stale)) => {
                self.stale = true;
                self.batches.forget();
                self.flush_at = None;
                true
            }
            Err(e) => {
                // The key and the turn stand in every line of this thread.
                log::error!("what the agent says cannot be written yet: {e}");
                self.unwritten += sent.size;
                self.flush_at = Some(ctx.now() + AGAIN);
                false
            }
        }
    }
}

fn size(item: &Item) -> usize {
    match item {
        Item::Text(t) | Item::Thought(t) => t.len(),
        Item::Tool { title, detail, .. } => title.len() + detail.to_string().len(),
        Item::Event(_, v) => v.to_string().len(),
    }
}
