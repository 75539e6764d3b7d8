//! The outbox of a running turn: the agent's output that the store has not confirmed yet.
//!
//! Owns the batches, their pace (text within 100 ms, everything else at once) and the limits of unconfirmed output. It
//! must not know what an item means, nor whose turn it is.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use super::context::Context;
use super::mailbox::Mailbox;
use crate::agent::Durable;
use crate::store::{Batch, Error, Frames, Item, Keep, Outbox, PATIENCE, Refusal, TurnRef};

/// The longest time before text is committed.
const FLUSH: Duration = Duration::from_millis(100);
/// The pause after a failed write.
const AGAIN: Duration = Duration::from_secs(1);
/// With this much unconfirmed text the agent's output is not read.
const UNWRITTEN: usize = 8 << 20;
/// This much text is written without waiting for the 100 ms.
const PIECE: usize = 64 << 10;

/// An append in progress: its size, and the channel for its outcome. The agent's output is read meanwhile, so it does
/// not wait for the commit.
struct Sent {
    size: usize,
    /// What is durable once it is kept: an offset of the agent's output, and frames for it.
    durable: Option<(i64, Frames)>,
    outcome: Receiver<Result<(), Error>>,
}

/// The output of a turn's agent on its way to the store.
pub struct TurnOutbox {
    turn: TurnRef,
    batches: Outbox,
    unwritten: usize,
    /// How many more bytes the agent may say.
    left: usize,
    flush_at: Option<Instant>,
    sent: Option<Sent>,
    stale: bool,
    /// The agent marks how far its output was taken: only what was said before a mark is committed, together with it.
    marked: bool,
    /// Rung when an append is kept: an exit, or an answer, waits for that.
    bell: Option<Arc<Mailbox>>,
    /// What was said since the last mark.
    loose: Vec<Item>,
    /// The next mark is to be committed at once.
    urgent: bool,
    /// The last mark was made: it is committed with the outcome.
    held: bool,
    durable: Durable,
}

impl TurnOutbox {
    /// An outbox for a turn whose agent may say this many bytes.
    #[must_use]
    pub fn new(turn: TurnRef, most: usize, pieces: i64) -> Self {
        Self {
            turn,
            batches: Outbox::after(pieces),
            unwritten: 0,
            left: most,
            flush_at: None,
            sent: None,
            stale: false,
            marked: false,
            bell: None,
            loose: Vec::new(),
            urgent: false,
            held: false,
            durable: Durable::default(),
        }
    }

    /// From now on the agent marks how far its output was taken.
    pub fn set_marked(&mut self, bell: Arc<Mailbox>) {
        self.marked = true;
        self.bell = Some(bell);
    }

    /// Whether the agent marks.
    #[must_use]
    pub const fn is_marked(&self) -> bool {
        self.marked
    }

    /// Whether a mark should come before more is read.
    #[must_use]
    pub const fn wants_mark(&self) -> bool {
        self.marked && self.urgent && !self.held
    }

    /// Whether something was said since the last mark.
    #[must_use]
    pub fn is_loose(&self) -> bool {
        !self.loose.is_empty() || self.urgent
    }

    /// Whether all that was said is committed.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        self.loose.is_empty() && self.batches.is_empty() && self.sent.is_none()
    }

    /// What of the marks is durable.
    pub fn take_durable(&mut self) -> Durable {
        std::mem::take(&mut self.durable)
    }

    /// A mark: it is committed with what was said before it. `urgent`: at once.
    pub fn mark(&mut self, ctx: &Context, keep: Keep, urgent: bool) {
        if self.stale {
            return;
        }
        let urgent = urgent || std::mem::take(&mut self.urgent) || !keep.frames.is_empty();
        self.settle(keep);
        self.send_in_time(ctx, urgent);
    }

    /// Commits what was said so far: at once and whole, or soon.
    fn send_in_time(&mut self, ctx: &Context, at_once: bool) {
        let now = ctx.now();
        if at_once {
            self.flush(ctx);
        } else if self.unwritten >= PIECE && self.flush_at.is_none_or(|at| at <= now + FLUSH)
            // The text of an agent that writes without a pause must be committed too.
            || self.flush_at.is_some_and(|at| at <= now)
        {
            self.send(ctx);
        } else if self.flush_at.is_none() {
            self.flush_at = Some(now + FLUSH);
        }
    }

    /// The last mark: it is committed with the outcome, and not before.
    pub fn mark_last(&mut self, keep: Keep) {
        if !self.stale {
            self.settle(keep);
            self.held = true;
        }
    }

    fn settle(&mut self, keep: Keep) {
        for item in std::mem::take(&mut self.loose) {
            self.batches.push(item);
        }
        self.batches.keep(keep);
    }

    /// Takes an item that does not come of the agent's output, and commits it at once.
    pub fn push_own(&mut self, ctx: &Context, item: Item) -> bool {
        let marked = std::mem::replace(&mut self.marked, false);
        let taken = self.push(ctx, item, true);
        self.marked = marked;
        taken
    }

    /// How many more bytes the agent may say.
    #[must_use]
    pub const fn left(&self) -> usize {
        self.left
    }

    /// Whether the turn was ended elsewhere: nothing more is written.
    #[must_use]
    pub const fn is_stale(&self) -> bool {
        self.stale
    }

    /// Whether the agent's output may be read now. If not, the store accepts nothing, and the agent waits as for any
    /// slow reader.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.stale || self.unwritten <= UNWRITTEN
    }

    /// When [`Self::act`] must be called.
    #[must_use]
    pub const fn due(&self) -> Option<Instant> {
        self.flush_at
    }

    /// Takes an item. If the agent marks, it waits for the mark. `at_once`: this item and all before it are committed
    /// before this returns, unless the store fails. `false`: the item exceeds the limit of the answer and was not taken.
    pub fn push(&mut self, ctx: &Context, item: Item, at_once: bool) -> bool {
        if self.stale {
            return true;
        }
        let Some(left) = self.left.checked_sub(size(&item)) else { return false };
        self.unwritten += self.left - left;
        self.left = left;
        if self.marked {
            self.loose.push(item);
            self.urgent |= at_once;
            return true;
        }
        self.batches.push(item);
        self.send_in_time(ctx, at_once);
        true
    }

    /// Sends the text that is due, and looks whether what was sent is kept.
    pub fn act(&mut self, ctx: &Context) {
        if let Some(outcome) = self.sent.as_ref().and_then(|sent| sent.outcome.try_recv().ok()) {
            self.settle_sent(ctx, outcome);
        }
        if self.held {
            self.flush_at = None;
        }
        if self.flush_at.is_none_or(|at| at > ctx.now()) {
            return;
        }
        if self.has_room() {
            self.send(ctx);
        } else {
            // Nothing more is sent before the store has accepted something.
            self.flush(ctx);
        }
    }

    /// Commits the output so far. If the store fails, it is kept for another try.
    pub fn flush(&mut self, ctx: &Context) {
        self.send(ctx);
        self.await_sent(ctx);
    }

    /// The turn has ended: the output that must be written with its outcome.
    #[must_use]
    pub fn finish(&mut self) -> Vec<Batch> {
        for item in std::mem::take(&mut self.loose) {
            self.batches.push(item);
        }
        self.batches.send()
    }

    /// Sends the output so far to the store. Waits for the commit of the batch before, but not for this one.
    fn send(&mut self, ctx: &Context) {
        if self.held {
            return;
        }
        if !self.await_sent(ctx) {
            return;
        }
        self.flush_at = None;
        if self.batches.is_empty() || self.stale {
            return;
        }
        let (tell, outcome) = sync_channel(1);
        crate::failpoint::hit("append", "before");
        let bell = self.bell.clone();
        ctx.store.append_then(self.turn, self.batches.send(), move |kept| {
            drop(tell.send(kept));
            if let Some(bell) = bell {
                bell.post(|letters| letters.kept = true);
            }
        });
        let (size, durable) = (std::mem::take(&mut self.unwritten), self.batches.sent_keep());
        self.sent = Some(Sent { size, durable, outcome });
    }

    /// Waits for the append in progress. `false`: it may not be committed and is sent again later.
    fn await_sent(&mut self, ctx: &Context) -> bool {
        let Some(sent) = self.sent.as_ref() else { return true };
        let outcome = sent.outcome.recv_timeout(PATIENCE);
        let late = |e| Err(Error::Unavailable(format!("append: the disk did not answer: {e}")));
        self.settle_sent(ctx, outcome.unwrap_or_else(late))
    }

    fn settle_sent(&mut self, ctx: &Context, outcome: Result<(), Error>) -> bool {
        let Some(sent) = self.sent.take() else { return true };
        match outcome {
            Ok(()) => {
                self.batches.kept();
                crate::failpoint::hit("append", "after");
                if let Some((offset, frames)) = sent.durable {
                    self.durable.add(offset, frames);
                }
                true
            }
            Err(Error::Refused(Refusal::Stale)) => {
                self.stale = true;
                self.batches.forget();
                self.loose.clear();
                self.flush_at = None;
                true
            }
            Err(e) => {
                // Every log line of this thread has the key and the turn.
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
        // Shown by an event of its own.
        Item::Asked { .. } | Item::Settled(_) => 0,
    }
}
