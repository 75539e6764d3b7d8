//! Delivery of the journal: one thread that hands each owed event to its handler, in order a key and a handler, and
//! commits what came of it.
//!
//! A handler's return is committed before the next event of its lane is handed over, so what was committed is never
//! repeated. What fails is tried again after growing pauses, then set aside. It holds a window of the oldest deliveries in
//! memory; the rest waits in the store.
//!
//! A delivery in or beside which a boot died is called alone, before all others: so that of those that were under way
//! together only the one that kills the daemon is found in the next death, and set aside when it has had its attempts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
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
    Kept(i64, bool),
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

    /// Tells it something that must arrive.
    pub fn tell(&self, message: Message) {
        if let Err(TrySendError::Full(message)) = self.0.try_send(message) {
            let _ = self.0.send_timeout(message, Duration::from_secs(5));
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Calling,
    Keeping(Settled),
    Unkept(Settled),
}

struct Item {
    owed: Owed,
    state: State,
    not_before: Option<Instant>,
    /// The attempt under way was committed before its call.
    noted: bool,
    /// Its number.
    attempt: u32,
}

/// Script, handler's name and key: what is delivered in order. The event is no part of it: a handler's end of one stretch
/// comes before its start of the next.
type Lane = (String, String, String);

fn lane(owed: &Owed) -> Lane {
    (owed.handler.script.clone(), owed.handler.name.clone(), owed.key.clone())
}

struct Pump {
    ctx: Arc<Context>,
    me: Delivery,
    window: BTreeMap<i64, Item>,
    lanes: HashMap<Lane, BTreeSet<i64>>,
    cursor: i64,
    more: bool,
    /// The journal could not be read: not before this it is tried again.
    again: Option<Instant>,
    going: bool,
    /// No `session_end` is delivered now.
    ends_held: bool,
    halted: bool,
    calls: usize,
    alone: Option<i64>,
    drained: Vec<Box<dyn FnOnce() + Send>>,
}

/// The thread, until it is halted.
pub fn run(ctx: Arc<Context>, me: Delivery, inbox: &Receiver<Message>) {
    let mut pump = Pump {
        ctx,
        me,
        window: BTreeMap::new(),
        lanes: HashMap::new(),
        cursor: 0,
        more: true,
        again: None,
        going: false,
        ends_held: false,
        halted: false,
        calls: 0,
        alone: None,
        drained: Vec::new(),
    };
    loop {
        let next = pump.turn();
        let message = match next {
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => inbox.recv_timeout(at.saturating_duration_since(pump.ctx.now())),
        };
        match message {
            Ok(Message::End(done)) => return pump.end(done),
            Err(RecvTimeoutError::Disconnected) => return,
            Ok(message) => pump.take(message),
            Err(RecvTimeoutError::Timeout) => {}
        }
        for message in inbox.try_iter().take(4 * WINDOW) {
            match message {
                Message::End(done) => return pump.end(done),
                message => pump.take(message),
            }
        }
    }
}

impl Pump {
    fn take(&mut self, message: Message) {
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
            Message::Kept(did, kept) => self.kept(did, kept),
            Message::HoldEnds => self.ends_held = true,
            Message::ReleaseEnds => self.ends_held = false,
            Message::Drain(done) => self.drained.push(done),
            Message::Halt => self.halted = true,
            Message::End(done) => done(),
        }
    }

    /// What was handed over and is not settled may have been seen; what was not, was not.
    fn end(&self, done: Box<dyn FnOnce() + Send>) {
        let called = self.window.iter().filter(|(_, i)| i.state != State::Waiting).map(|(did, _)| *did).collect();
        self.ctx.store.note_uncalled(called, move |kept| {
            if let Err(e) = kept {
                log::warn!("which events were only queued for their handlers could not be noted: {e}");
            }
            done();
        });
    }

    /// Fills the window, calls what can be called, and says when to look again.
    fn turn(&mut self) -> Option<Instant> {
        if !self.going || self.halted {
            return None;
        }
        self.fill();
        let now = self.ctx.now();
        let mut next = self.again;
        let heads: Vec<i64> = self.lanes.values().filter_map(|lane| lane.first().copied()).collect();
        let heads: Vec<i64> = heads.into_iter().filter(|did| !self.is_held(*did)).collect();
        let due = |i: &Item| i.state == State::Waiting && i.not_before.is_none_or(|at| at <= now);
        let fatal = heads.iter().find(|did| self.window.get(did).is_some_and(|i| i.owed.fatal && due(i))).copied();
        for did in heads {
            let Some(item) = self.window.get(&did) else { continue };
            let ready = item.not_before.is_none_or(|at| at <= now);
            match (&item.state, ready) {
                (State::Waiting, true) if self.may_begin(did, fatal) => self.begin(did),
                (State::Unkept(settled), true) => {
                    let settled = settled.clone();
                    self.keep(did, settled);
                }
                (State::Waiting | State::Unkept(_), false) => next = next.into_iter().chain(item.not_before).min(),
                (State::Waiting, true) | (State::Calling | State::Keeping(_), _) => {}
            }
        }
        let busy = self.window.values().any(|i| match i.state {
            State::Calling | State::Keeping(_) => true,
            State::Waiting | State::Unkept(_) => i.not_before.is_none_or(|at| at <= now),
        });
        // What waits behind a delivery that is being tried again cannot be delivered now either.
        let stuck = self.calls == 0
            && (!self.more || self.again.is_some())
            && self.lanes.values().all(|l| {
                l.first().and_then(|did| self.window.get(did)).is_none_or(|i| i.not_before.is_some_and(|at| at > now))
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
                        self.lanes.entry(lane(&owed)).or_default().insert(owed.did);
                        self.window.insert(
                            owed.did,
                            Item { owed, state: State::Waiting, not_before, noted: false, attempt: 0 },
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
            return self.keep(did, Settled::SetAside(why));
        }
        item.state = State::Calling;
        self.calls += 1;
        if item.owed.fatal {
            self.alone = Some(did);
        }
        if item.noted {
            // Committed before the call: a handler that kills the daemon is set aside in the end, and a call that a death
            // cuts off has its number.
            let me = self.me.clone();
            let attempt = item.attempt;
            self.ctx.store.note_attempt(did, attempt, move |kept| me.tell(Message::Noted(did, kept.is_ok())));
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
        self.ctx.handlers.deliver(&owed.handler, event, Box::new(move |d| me.tell(Message::Answered(did, d))));
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
        self.keep(did, settled);
    }

    fn keep(&mut self, did: i64, settled: Settled) {
        let Some(item) = self.window.get_mut(&did) else { return };
        item.state = State::Keeping(settled.clone());
        let me = self.me.clone();
        let counted = item.noted;
        item.owed.uncalled = false;
        self.ctx.store.settle_delivery(did, settled, counted, move |kept| me.tell(Message::Kept(did, kept.is_ok())));
    }

    fn kept(&mut self, did: i64, kept: bool) {
        let Some(item) = self.window.get_mut(&did) else { return };
        let State::Keeping(settled) = item.state.clone() else { return };
        crate::failpoint::hit_for("delivery", "kept", &item.owed.key);
        match (kept, &settled) {
            (true, Settled::Retry(..)) => item.state = State::Waiting,
            (true, Settled::SetAside(why)) => {
                // Told once it is true: whoever reads this finds it listed.
                log::error!(key = item.owed.key, hook = item.owed.handler.script, event = item.owed.event_id;
                    "set aside after {} deliveries: {why}", item.owed.attempts);
                self.settled(did);
            }
            (true, Settled::Delivered | Settled::Orphaned) => {
                if settled == Settled::Orphaned {
                    log::warn!(key = item.owed.key, hook = item.owed.handler.script, event = item.owed.event_id;
                        "orphaned: {} is not registered any more", item.owed.handler);
                }
                self.settled(did);
            }
            // The handler is not called again for it in this boot: only the note of it is tried again.
            (false, _) => {
                item.state = State::Unkept(settled);
                item.not_before = Some(self.ctx.now() + AGAIN);
            }
        }
    }

    fn is_end(&self, did: i64) -> bool {
        self.window.get(&did).is_some_and(|i| i.owed.handler.event == HookEvent::SessionEnd)
    }

    /// Whether a delivery waits for the `shutdown` handlers.
    fn is_held(&self, did: i64) -> bool {
        self.ends_held && self.is_end(did) && self.window.get(&did).is_some_and(|i| i.state == State::Waiting)
    }

    /// Whether a delivery that is due may be called now: `fatal`, the first that a boot died in, goes before all others.
    fn may_begin(&self, did: i64, fatal: Option<i64>) -> bool {
        match fatal {
            Some(first) => first == did && self.calls == 0,
            None => self.calls < CALLS && self.alone.is_none(),
        }
    }

    /// A call has come back, or was not made.
    fn returned(&mut self, did: i64) {
        self.calls -= 1;
        if self.alone == Some(did) {
            self.alone = None;
        }
    }

    /// The call was not made: its attempt does not count, and it is tried again a little later.
    fn not_called(&mut self, did: i64) {
        let Some(item) = self.window.get_mut(&did) else { return };
        item.state = State::Waiting;
        item.not_before = Some(self.ctx.now() + if self.ctx.handlers.is_off() { OFF } else { AGAIN });
        if item.noted {
            self.ctx.store.take_back_attempt(did, item.owed.attempts, item.owed.uncalled, |_| ());
        }
    }

    /// Nothing more is to be done for it.
    fn settled(&mut self, did: i64) {
        if self.window.get(&did).is_some_and(|i| i.owed.fields["reason"] == EndReason::Deleted.as_str()) {
            // The text of a deleted session, and its files, wait for its ends.
            self.ctx.prune_now();
        }
        self.forget(did);
    }

    fn forget(&mut self, did: i64) {
        let Some(item) = self.window.remove(&did) else { return };
        let lane = lane(&item.owed);
        if let Some(dids) = self.lanes.get_mut(&lane) {
            dids.remove(&did);
            if dids.is_empty() {
                self.lanes.remove(&lane);
            }
        }
    }
}

/// The pause after as many attempts: 1 s, 5 s, 25 s, …
fn pause(attempts: u32) -> Duration {
    Duration::from_secs(5u64.saturating_pow(attempts.saturating_sub(1))).min(LONGEST)
}
