//! Delivery of the journal: one thread passes each owed event to its handler and commits the outcome. Events of one key
//! are delivered to one handler in order.
//!
//! A handler's return is committed before the next event of the same [`OrderKey`] is delivered, so a committed delivery
//! is never repeated. A failed delivery is tried again after growing pauses, then set aside. The thread holds a window
//! of the oldest deliveries in memory; the rest waits in the store.
//!
//! If a boot died during a delivery, that delivery is called alone and before all others, so the next crash identifies
//! the handler that causes it. After its last attempt it is set aside.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};

use super::context::Context;
use crate::hooks::{Delivered, Event};
use crate::model::event::{EndReason, HookEvent};
use crate::store::{Owed, Settled};

/// The most deliveries held in memory that could be made now.
const WINDOW: usize = 512;
/// The most deliveries held in memory, including retries: a handler that fails for all keys must not hold up the
/// others.
const HELD: usize = 16 * WINDOW;
/// The most calls in progress at once.
const CALLS: usize = 32;
/// The pause after the store or a full hook thread refused.
const AGAIN: Duration = Duration::from_millis(500);
/// The pause while the hooks are switched off (a reload ends that), or the journal cannot be read.
const OFF: Duration = Duration::from_secs(10);
/// The longest pause between two attempts.
const LONGEST: Duration = Duration::from_secs(600);

/// A message to the delivery thread.
pub enum Message {
    /// More deliveries may be due.
    Due,
    /// Set-aside deliveries are due again: read the journal from the beginning.
    Rescan,
    /// `daemon_start` is done: begin to deliver.
    Go,
    /// The note of an attempt is committed: call the handler. `false`: it may not be, and no handler is called.
    Noted(i64, bool),
    /// A handler answered.
    Answered(i64, Delivered),
    /// The outcome is committed (`true`) or not.
    Settled(i64, bool),
    /// A stop has begun: no `session_end` is delivered beside the `shutdown` handlers.
    HoldEnds,
    /// The `shutdown` handlers are done or cut off.
    ReleaseEnds,
    /// Call this function when nothing more can be delivered now.
    Drain(Box<dyn FnOnce() + Send>),
    /// Call no handler any more.
    Halt,
    /// Note the events whose handlers were not called, call this function, and end.
    End(Box<dyn FnOnce() + Send>),
}

/// A handle to the thread.
#[derive(Clone)]
pub struct Delivery {
    inbox: Sender<Message>,
    /// More deliveries may be due: an inbox without room for a message cannot say so.
    due: Arc<AtomicBool>,
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Delivery")
    }
}

impl Delivery {
    /// A handle, and the thread's inbox. The inbox has room for all answers of calls in progress.
    #[must_use]
    pub fn new() -> (Self, Receiver<Message>) {
        let (send, receive) = crossbeam_channel::bounded(4 * WINDOW);
        (Self { inbox: send, due: Arc::default() }, receive)
    }

    /// More deliveries may be due. Never blocks, and leaves room in the inbox for answers: any message in it wakes the
    /// thread.
    pub fn poke(&self) {
        self.due.store(true, Ordering::SeqCst);
        if self.inbox.len() < WINDOW {
            let _ = self.inbox.try_send(Message::Due);
        }
    }

    /// Sends a message that must arrive.
    pub fn send(&self, message: Message) {
        if let Err(TrySendError::Full(message)) = self.inbox.try_send(message) {
            let _ = self.inbox.send_timeout(message, Duration::from_secs(5));
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Progress {
    Waiting,
    Calling,
    Settling(Settled),
    Unsettled(Settled),
}

struct Item {
    owed: Owed,
    progress: Progress,
    not_before: Option<Instant>,
    /// The note of the present attempt was committed before its call.
    noted: bool,
    /// The number of the present attempt.
    attempt: u32,
}

/// Deliveries with equal order keys are made in order. The event is not a part of it: a handler gets the end of an
/// activation before the start of the next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct OrderKey {
    script: String,
    handler: String,
    key: String,
}

impl OrderKey {
    fn of(owed: &Owed) -> Self {
        Self { script: owed.handler.script.clone(), handler: owed.handler.name.clone(), key: owed.key.clone() }
    }
}

/// Delivery without its thread: [`Self::take`] handles a message, [`Self::turn`] does what can be done now.
pub struct Pump {
    ctx: Arc<Context>,
    me: Delivery,
    window: BTreeMap<i64, Item>,
    in_order: BTreeMap<OrderKey, BTreeSet<i64>>,
    cursor: i64,
    more: bool,
    /// The journal could not be read; it is tried again at this instant.
    again: Option<Instant>,
    going: bool,
    /// No `session_end` is delivered now.
    ends_held: bool,
    halted: bool,
    ended: bool,
    calls: usize,
    /// The delivery that is called alone, because a boot died during it.
    suspect: Option<i64>,
    drained: Vec<Box<dyn FnOnce() + Send>>,
}

/// The thread's body: runs until [`Message::End`].
pub fn run(ctx: Arc<Context>, me: Delivery, inbox: &Receiver<Message>) {
    let mut pump = Pump::new(ctx, me);
    loop {
        let next = pump.turn();
        let message = match next {
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => inbox.recv_timeout(at.saturating_duration_since(pump.ctx.now())),
        };
        match message {
            Err(RecvTimeoutError::Disconnected) => return,
            Ok(message) => pump.take(message),
            Err(RecvTimeoutError::Timeout) => {}
        }
        inbox.try_iter().take(4 * WINDOW).for_each(|message| pump.take(message));
        if pump.has_ended() {
            return;
        }
    }
}

impl Pump {
    /// A pump that delivers nothing before [`Message::Go`].
    #[must_use]
    pub const fn new(ctx: Arc<Context>, me: Delivery) -> Self {
        Self {
            ctx,
            me,
            window: BTreeMap::new(),
            in_order: BTreeMap::new(),
            cursor: 0,
            more: true,
            again: None,
            going: false,
            ends_held: false,
            halted: false,
            ended: false,
            calls: 0,
            suspect: None,
            drained: Vec::new(),
        }
    }

    /// Whether [`Message::End`] was handled.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.ended
    }

    /// Handles a message.
    pub fn take(&mut self, message: Message) {
        match message {
            // The flag beside the inbox says it.
            Message::Due => {}
            Message::Rescan => {
                self.more = true;
                self.cursor = 0;
            }
            Message::Go => self.going = true,
            Message::Noted(did, true) => {
                crate::failpoint::hit("delivery", "noted");
                self.noted(did);
            }
            Message::Noted(did, false) => {
                // The note may have been committed all the same.
                self.returned(did);
                self.not_called(did);
            }
            Message::Answered(did, delivered) => self.answered(did, delivered),
            Message::Settled(did, kept) => self.was_settled(did, kept),
            Message::HoldEnds => self.ends_held = true,
            Message::ReleaseEnds => self.ends_held = false,
            Message::Drain(done) => {
                // A commit in doubt may have kept more.
                (self.more, self.cursor) = (true, 0);
                self.drained.push(done);
            }
            Message::Halt => self.halted = true,
            Message::End(done) => self.end(done),
        }
    }

    /// A handler may have seen every event whose call began; all others are noted as not called.
    fn end(&mut self, done: Box<dyn FnOnce() + Send>) {
        (self.halted, self.ended) = (true, true);
        let called = self.window.iter().filter(|(_, i)| i.progress != Progress::Waiting).map(|(did, _)| *did).collect();
        self.ctx.store.note_uncalled(called, move |kept| {
            if let Err(e) = kept {
                log::warn!("cannot note which handlers were not called: {e}");
            }
            done();
        });
    }

    /// Fills the window, calls the handlers that can be called, and returns when to run again. `None`: at the next
    /// message.
    pub fn turn(&mut self) -> Option<Instant> {
        if !self.going || self.halted {
            return None;
        }
        self.more |= self.me.due.swap(false, Ordering::SeqCst);
        self.fill();
        let now = self.ctx.now();
        let mut next = self.again;
        let heads: Vec<i64> = self.in_order.values().filter_map(|dids| dids.first().copied()).collect();
        let heads: Vec<i64> = heads.into_iter().filter(|did| !self.is_held(*did)).collect();
        let due = |i: &Item| i.progress == Progress::Waiting && i.not_before.is_none_or(|at| at <= now);
        let fatal = heads.iter().find(|did| self.window.get(did).is_some_and(|i| i.owed.fatal && due(i))).copied();
        for did in heads {
            let Some(item) = self.window.get(&did) else { continue };
            let ready = item.not_before.is_none_or(|at| at <= now);
            match (&item.progress, ready) {
                (Progress::Waiting, true) if self.may_begin(did, fatal) => self.begin(did),
                (Progress::Unsettled(settled), true) => {
                    let settled = settled.clone();
                    self.settle(did, settled);
                }
                (Progress::Waiting | Progress::Unsettled(_), false) => {
                    next = next.into_iter().chain(item.not_before).min()
                }
                (Progress::Waiting, true) | (Progress::Calling | Progress::Settling(_), _) => {}
            }
        }
        let busy = self.window.values().any(|i| match i.progress {
            Progress::Calling | Progress::Settling(_) => true,
            Progress::Waiting | Progress::Unsettled(_) => i.not_before.is_none_or(|at| at <= now),
        });
        // Deliveries behind a delivery that waits for its retry cannot be made now either.
        let full = self.window.len() >= HELD;
        let stuck = self.calls == 0
            && (!self.more || self.again.is_some() || full)
            && self.in_order.values().all(|dids| {
                dids.first()
                    .and_then(|did| self.window.get(did))
                    .is_none_or(|i| i.not_before.is_some_and(|at| at > now))
            });
        if !busy && !self.more || stuck {
            for done in self.drained.drain(..) {
                done();
            }
        }
        next
    }

    fn fill(&mut self) {
        let now = self.ctx.now();
        if self.again.is_some_and(|at| at > now) {
            return;
        }
        self.again = None;
        let mut ready = self.window.values().filter(|i| i.not_before.is_none_or(|at| at <= now)).count();
        while self.more && ready < WINDOW && self.window.len() < HELD {
            match self.ctx.store.pending_deliveries(self.cursor, WINDOW) {
                Ok(page) => {
                    self.more = page.len() == WINDOW;
                    for owed in page {
                        self.cursor = self.cursor.max(owed.did);
                        if self.window.contains_key(&owed.did) {
                            continue;
                        }
                        let wait = u64::try_from(owed.next_at - self.ctx.wall()).unwrap_or(0);
                        let not_before = (wait > 0).then(|| self.ctx.now() + Duration::from_millis(wait).min(LONGEST));
                        ready += usize::from(not_before.is_none());
                        self.in_order.entry(OrderKey::of(&owed)).or_default().insert(owed.did);
                        self.window.insert(
                            owed.did,
                            Item { owed, progress: Progress::Waiting, not_before, noted: false, attempt: 0 },
                        );
                    }
                }
                Err(e) => {
                    log::error!("cannot read the hook journal, tried again soon: {e}");
                    self.again = Some(self.ctx.now() + OFF);
                    break;
                }
            }
        }
    }

    fn begin(&mut self, did: i64) {
        let limit = self.ctx.config().hooks.attempts;
        let Some(item) = self.window.get_mut(&did) else { return };
        item.noted = item.owed.is_noted_first();
        item.attempt = item.owed.next_attempt();
        if item.owed.fatal && item.owed.attempts >= limit {
            let why = format!("the daemon died in each of the last deliveries, {} in all", item.owed.attempts);
            return self.settle(did, Settled::SetAside(why));
        }
        item.progress = Progress::Calling;
        self.calls += 1;
        if item.owed.fatal {
            self.suspect = Some(did);
        }
        if item.noted {
            // The note is committed before the call, so a handler that kills the daemon is set aside in the end, and a
            // call that a death cuts off counts as an attempt.
            let me = self.me.clone();
            let attempt = item.attempt;
            self.ctx.store.note_attempt(did, attempt, move |kept| me.send(Message::Noted(did, kept.is_ok())));
        } else {
            self.call(did);
        }
    }

    /// The note of the attempt is committed: calls the handler, unless a stop came first.
    fn noted(&mut self, did: i64) {
        if self.halted || self.ends_held && self.is_end(did) {
            self.returned(did);
            self.not_called(did);
            // It is due when the ends are released: a drain does not wait for what has its time.
            if let Some(item) = self.window.get_mut(&did) {
                item.not_before = None;
            }
        } else {
            self.call(did);
        }
    }

    fn call(&mut self, did: i64) {
        let Some(item) = self.window.get_mut(&did) else { return };
        let owed = &item.owed;
        let event = Event {
            kind: owed.handler.event,
            event_id: owed.event_id.clone(),
            at: owed.at,
            attempt: item.attempt,
            redelivered: item.attempt > 1,
            test: false,
            key: Some(owed.key.clone()),
            fields: {
                let mut fields = owed.fields.clone();
                fields["session_id"] = owed.session_id.as_str().into();
                fields
            },
            transcript: Some((owed.session_id.clone(), owed.upto)),
        };
        crate::failpoint::hit_for("delivery", "before", &owed.key);
        let me = self.me.clone();
        self.ctx.handlers.deliver(&owed.handler, event, Box::new(move |d| me.send(Message::Answered(did, d))));
    }

    fn answered(&mut self, did: i64, delivered: Delivered) {
        self.returned(did);
        let Some(item) = self.window.get_mut(&did) else { return };
        crate::failpoint::hit_for("delivery", "answered", &item.owed.key);
        if !matches!(delivered, Delivered::NotCalled) {
            item.owed.fatal = false;
            item.owed.attempts = item.attempt;
        }
        let attempts = self.ctx.config().hooks.attempts;
        let settled = match delivered {
            Delivered::Done => Settled::Delivered,
            Delivered::Orphaned => Settled::Orphaned,
            Delivered::NotCalled => return self.not_called(did),
            Delivered::Failed(why) | Delivered::TimedOut(why) if item.owed.attempts >= attempts => {
                Settled::SetAside(why)
            }
            Delivered::Failed(why) | Delivered::TimedOut(why) => {
                let pause = pause(item.owed.attempts);
                item.not_before = Some(self.ctx.now() + pause);
                Settled::Retry(why, self.ctx.wall() + i64::try_from(pause.as_millis()).unwrap_or(0))
            }
        };
        self.settle(did, settled);
    }

    fn settle(&mut self, did: i64, settled: Settled) {
        let Some(item) = self.window.get_mut(&did) else { return };
        item.progress = Progress::Settling(settled.clone());
        let me = self.me.clone();
        let counted = item.noted;
        item.owed.uncalled = false;
        self.ctx.store.settle_delivery(did, settled, counted, move |kept| me.send(Message::Settled(did, kept.is_ok())));
    }

    fn was_settled(&mut self, did: i64, kept: bool) {
        let Some(item) = self.window.get_mut(&did) else { return };
        let Progress::Settling(settled) = item.progress.clone() else { return };
        crate::failpoint::hit_for("delivery", "kept", &item.owed.key);
        match (kept, &settled) {
            (true, Settled::Retry(..)) => item.progress = Progress::Waiting,
            (true, Settled::SetAside(why)) => {
                // Logged after the commit, so `ostler hooks failed` already lists it.
                log::error!(key = item.owed.key, hook = item.owed.handler.script, event = item.owed.event_id;
                    "set aside after {} deliveries: {why}", item.owed.attempts);
                self.done(did);
            }
            (true, Settled::Delivered | Settled::Orphaned) => {
                if settled == Settled::Orphaned {
                    log::warn!(key = item.owed.key, hook = item.owed.handler.script, event = item.owed.event_id;
                        "orphaned: {} is not registered any more", item.owed.handler);
                }
                self.done(did);
            }
            // The handler is not called again in this boot: only the write of the outcome is tried again.
            (false, _) => {
                item.progress = Progress::Unsettled(settled);
                item.not_before = Some(self.ctx.now() + AGAIN);
            }
        }
    }

    fn is_end(&self, did: i64) -> bool {
        self.window.get(&did).is_some_and(|i| i.owed.handler.event == HookEvent::SessionEnd)
    }

    /// Whether a delivery waits for the `shutdown` handlers.
    fn is_held(&self, did: i64) -> bool {
        self.ends_held && self.is_end(did) && self.window.get(&did).is_some_and(|i| i.progress == Progress::Waiting)
    }

    /// Whether a due delivery may be called now. `fatal`, the first delivery during which a boot died, goes before all
    /// others.
    fn may_begin(&self, did: i64, fatal: Option<i64>) -> bool {
        match fatal {
            Some(first) => first == did && self.calls == 0,
            None => self.calls < CALLS && self.suspect.is_none(),
        }
    }

    /// A call has returned, or was not made.
    fn returned(&mut self, did: i64) {
        self.calls -= 1;
        if self.suspect == Some(did) {
            self.suspect = None;
        }
    }

    /// The call was not made: the attempt does not count, and the delivery is tried again a little later.
    fn not_called(&mut self, did: i64) {
        let Some(item) = self.window.get_mut(&did) else { return };
        item.progress = Progress::Waiting;
        item.not_before = Some(self.ctx.now() + if self.ctx.handlers.is_off() { OFF } else { AGAIN });
        if item.noted {
            self.ctx.store.take_back_attempt(did, item.owed.attempts, item.owed.uncalled, |_| ());
        }
    }

    /// The delivery is settled.
    fn done(&mut self, did: i64) {
        if self.window.get(&did).is_some_and(|i| i.owed.fields["reason"] == EndReason::Deleted.as_str()) {
            // A deleted session's text and files are removed once its ends are settled.
            self.ctx.prune_now();
        }
        self.forget(did);
    }

    fn forget(&mut self, did: i64) {
        let Some(item) = self.window.remove(&did) else { return };
        let order_key = OrderKey::of(&item.owed);
        if let Some(dids) = self.in_order.get_mut(&order_key) {
            dids.remove(&did);
            if dids.is_empty() {
                self.in_order.remove(&order_key);
            }
        }
    }
}

/// The pause after this number of attempts: 1 s, 5 s, 25 s, …
fn pause(attempts: u32) -> Duration {
    Duration::from_secs(5u64.saturating_pow(attempts.saturating_sub(1))).min(LONGEST)
}
