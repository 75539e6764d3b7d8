//! Delivery of the journal: one thread that hands each owed event to its handler and commits what came of it. Events of one
//! key are delivered to one handler in order.
//!
//! A handler's return is committed before the next event of the same [`OrderKey`] is delivered, so a committed delivery is
//! never repeated. A failed delivery is tried again after growing pauses, then set aside. The thread holds a window of the
//! oldest deliveries in memory; the rest waits in the store.
//!
//! A delivery in or beside which a boot died is called alone, before all others, so the next crash identifies the one
//! handler that causes it. It is set aside when it has had its attempts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};

use super::context::Context;
use crate::hooks::{Delivered, Event};
use crate::model::event::{EndReason, HookEvent};
use crate::store::{Owed, Settled};

/// Deliveries held in memory that could be made now.
const WINDOW: usize = 512;
/// Deliveries held in memory, with those that wait to be tried again: one handler that fails for all keys must not keep
/// the others from theirs.
const HELD: usize = 16 * WINDOW;
/// Calls under way at once.
const CALLS: usize = 32;
/// After a refusal of the store or of a full hook thread.
const AGAIN: Duration = Duration::from_millis(500);
/// And while the hooks are switched off, which a reload ends, or the journal cannot be read.
const OFF: Duration = Duration::from_secs(10);
/// The longest pause between two attempts.
const LONGEST: Duration = Duration::from_secs(600);

/// What the thread is told.
pub enum Message {
    /// More may be due.
    Due,
    /// Set-aside deliveries are due again: look from the beginning.
    Rescan,
    /// `daemon_start` is done: deliver.
    Go,
    /// The attempt is committed: call.
    Noted(i64, bool),
    /// A handler answered.
    Answered(i64, Delivered),
    /// What came of it is committed, or not.
    Settled(i64, bool),
    /// A stop has begun: no `session_end` is delivered beside the `shutdown` handlers.
    HoldEnds,
    /// They are done or cut off.
    ReleaseEnds,
    /// Say when nothing more can be delivered now.
    Drain(Box<dyn FnOnce() + Send>),
    /// Call nobody any more.
    Halt,
    /// Note who was not called, say so, and end.
    End(Box<dyn FnOnce() + Send>),
}

/// A handle to the thread.
#[derive(Clone)]
pub struct Delivery(Sender<Message>);

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Delivery")
    }
}

impl Delivery {
    /// A handle, and the thread's inbox; bounded by what can be under way.
    #[must_use]
    pub fn new() -> (Self, Receiver<Message>) {
        let (send, receive) = crossbeam_channel::bounded(4 * WINDOW);
        (Self(send), receive)
    }

    /// More may be due. Never blocks, and leaves room in the inbox for answers: one that is that full is looked at anyway.
    pub fn poke(&self) {
        if self.0.len() < WINDOW {
            let _ = self.0.try_send(Message::Due);
        }
    }

    /// Sends something that must arrive.
    pub fn send(&self, message: Message) {
        if let Err(TrySendError::Full(message)) = self.0.try_send(message) {
            let _ = self.0.send_timeout(message, Duration::from_secs(5));
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
    /// The attempt under way was committed before its call.
    noted: bool,
    /// Its number.
    attempt: u32,
}

/// Deliveries that have the same one are made in order. The event is no part of it: a handler gets the end of one
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

/// Delivery without its thread: [`Self::take`] takes in what it is told, [`Self::turn`] does what can be done now.
pub struct Pump {
    ctx: Arc<Context>,
    me: Delivery,
    window: BTreeMap<i64, Item>,
    in_order: BTreeMap<OrderKey, BTreeSet<i64>>,
    cursor: i64,
    more: bool,
    /// The journal could not be read: not before this it is tried again.
    again: Option<Instant>,
    going: bool,
    /// No `session_end` is delivered now.
    ends_held: bool,
    halted: bool,
    ended: bool,
    calls: usize,
    /// The delivery that is called alone, for a boot died in it.
    suspect: Option<i64>,
    drained: Vec<Box<dyn FnOnce() + Send>>,
}

/// The thread, until it is told to end.
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
    /// Delivers nothing yet: until [`Message::Go`].
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

    /// Whether it was told to end.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.ended
    }

    /// Takes in what it is told.
    pub fn take(&mut self, message: Message) {
        match message {
            Message::Due => self.more = true,
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
                // It may have been kept.
                self.returned(did);
                self.not_called(did);
            }
            Message::Answered(did, delivered) => self.answered(did, delivered),
            Message::Settled(did, kept) => self.was_settled(did, kept),
            Message::HoldEnds => self.ends_held = true,
            Message::ReleaseEnds => self.ends_held = false,
            Message::Drain(done) => self.drained.push(done),
            Message::Halt => self.halted = true,
            Message::End(done) => self.end(done),
        }
    }

    /// What was handed over and is not settled may have been seen; what was not, was not.
    fn end(&mut self, done: Box<dyn FnOnce() + Send>) {
        (self.halted, self.ended) = (true, true);
        let called = self.window.iter().filter(|(_, i)| i.progress != Progress::Waiting).map(|(did, _)| *did).collect();
        self.ctx.store.note_uncalled(called, move |kept| {
            if let Err(e) = kept {
                log::warn!("which events were only queued for their handlers could not be noted: {e}");
            }
            done();
        });
    }

    /// Fills the window, calls what can be called, and says when to look again; `None`: once it is told something.
    pub fn turn(&mut self) -> Option<Instant> {
        if !self.going || self.halted {
            return None;
        }
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
        // What waits behind a delivery that is being tried again cannot be delivered now either.
        let stuck = self.calls == 0
            && (!self.more || self.again.is_some())
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
                    log::error!("the hook journal cannot be read, tried again soon: {e}");
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
            // Committed before the call: a handler that kills the daemon is set aside in the end, and a call that a death
            // cuts off has its number.
            let me = self.me.clone();
            let attempt = item.attempt;
            self.ctx.store.note_attempt(did, attempt, move |kept| me.send(Message::Noted(did, kept.is_ok())));
        } else {
            self.call(did);
        }
    }

    /// The attempt is committed: it is made, unless a stop came before it.
    fn noted(&mut self, did: i64) {
        if self.halted || self.ends_held && self.is_end(did) {
            self.returned(did);
            self.not_called(did);
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
                // Told once it is true: whoever reads this finds it listed.
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
            // The handler is not called again for it in this boot: only the note of it is tried again.
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

    /// Whether a delivery that is due may be called now: `fatal`, the first that a boot died in, goes before all others.
    fn may_begin(&self, did: i64, fatal: Option<i64>) -> bool {
        match fatal {
            Some(first) => first == did && self.calls == 0,
            None => self.calls < CALLS && self.suspect.is_none(),
        }
    }

    /// A call has come back, or was not made.
    fn returned(&mut self, did: i64) {
        self.calls -= 1;
        if self.suspect == Some(did) {
            self.suspect = None;
        }
    }

    /// The call was not made: its attempt does not count, and it is tried again a little later.
    fn not_called(&mut self, did: i64) {
        let Some(item) = self.window.get_mut(&did) else { return };
        item.progress = Progress::Waiting;
        item.not_before = Some(self.ctx.now() + if self.ctx.handlers.is_off() { OFF } else { AGAIN });
        if item.noted {
            self.ctx.store.take_back_attempt(did, item.owed.attempts, item.owed.uncalled, |_| ());
        }
    }

    /// Nothing more is to be done for it.
    fn done(&mut self, did: i64) {
        if self.window.get(&did).is_some_and(|i| i.owed.fields["reason"] == EndReason::Deleted.as_str()) {
            // The text of a deleted session, and its files, wait for its ends.
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

/// The pause after as many attempts: 1 s, 5 s, 25 s, …
fn pause(attempts: u32) -> Duration {
    Duration::from_secs(5u64.saturating_pow(attempts.saturating_sub(1))).min(LONGEST)
}
