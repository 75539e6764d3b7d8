//! The turn host: a worker's implementation of the agent's host. It turns the agent's output into items for the
//! [outbox](super::outbox), keeps the turn's deadlines, settles permissions, and passes interrupts on. The worker, not
//! the turn host, makes the decisions about sessions.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde_json::{Value, json};

use super::context::{CANCEL, Context};
use super::hub::Preview;
use super::mailbox::{Close, Letters, Mailbox, Why, Woken, newer, rises};
use super::outbox::TurnOutbox;
use super::registry::Answered;
use crate::agent::process::{Bound, Keeper, Process};
use crate::agent::{
    Durable, Entry, Host, Identity, Interrupt, Mark, NewShim, PermissionOutcome, PermissionRequest, Said, ToolCall,
    Wake, Watch,
};
use crate::config::{self, PermissionPolicy};
use crate::hooks::Verdict;
use crate::model::event::{EventKind, HookEvent};
use crate::model::turn::TurnState;
use crate::model::turn_clock::TurnClock;
use crate::store::{Batch, Begun, Item, TurnRef};

mod bounds;
mod kept;
mod permissions;

use permissions::{allow, deny};

/// The most tool calls of one turn that are remembered for upserts.
const TOOLS: usize = 4096;
/// How much of an answer `turn_end` handlers get, in bytes.
const SHOWN: usize = 1 << 20;

/// A preview of output that is not durable yet, as clients get it.
#[derive(serde::Serialize)]
struct Delta<'a> {
    key: &'a str,
    session_id: &'a str,
    turn_id: &'a str,
    kind: EventKind,
    offset: usize,
    text: &'a str,
}

/// A permission that waits for its answer.
struct Open {
    request: PermissionRequest,
    until: Option<Instant>,
    /// How often handlers were asked.
    asks: i64,
    /// Clients may answer it.
    shown: bool,
}

/// The state of the running turn.
pub struct Running {
    /// The turn for the store: session, epoch, turn.
    pub turn: TurnRef,
    /// Its id.
    pub turn_id: String,
    /// Why its time ran out, if it did.
    pub timed_out: Option<String>,
    /// Why its answer is cut off, if it was too long.
    pub too_large: Option<String>,
    /// The answer so far, for `turn_end` handlers.
    pub answer: String,
    outbox: TurnOutbox,
    /// The store accepted nothing at the last check.
    full: bool,
    clock: TurnClock,
    heard: Instant,
    offsets: [usize; 2],
    tools: HashMap<String, ToolCall>,
    open: Vec<Open>,
    /// Permissions of which somebody is told once they are durable.
    untold: Vec<permissions::Untold>,
}

/// The host of a worker's agent, for one activation.
pub struct TurnHost {
    /// The shared handles.
    pub ctx: Arc<Context>,
    /// The session's row.
    pub sid: i64,
    /// The activation's number.
    pub epoch: i64,
    /// The agent's definition at the open of the activation.
    pub agent: config::Agent,
    /// The turn in progress.
    pub running: Option<Running>,
    /// The session may have waiting work.
    pub work: bool,
    /// An interrupted turn is to go on without a message.
    pub auto_continue: bool,
    /// A turn that was begun for the worker, to be run next.
    pub begun: Option<Box<Begun>>,
    /// Close, after the running turn.
    pub close: Option<Close>,
    /// Let the agent go: it outlives the daemon.
    pub let_go: bool,
    /// The deadline of the close.
    pub close_by: Option<Instant>,
    /// The verdict of the `before_turn` hooks, and the number of its ask.
    pub before_turn: Option<(u64, Verdict)>,
    /// The newest cancel of a turn. It may come before that turn begins.
    cancel: Option<(i64, Instant)>,
    mailbox: Arc<Mailbox>,
    identity: Identity,
    interrupt: Option<(Interrupt, Why)>,
    settled: Vec<(String, PermissionOutcome)>,
    keep_answer: bool,
    /// The part of the transcript that was read for the agent. Each turn reads only new entries.
    history: VecDeque<Entry>,
    /// The newest entry that was read for it.
    history_upto: i64,
    /// What is known of the agent's shim.
    shim: kept::Shim,
    /// How many of the agent's processes the kernel had ended for want of memory when that was told last.
    out_of_memory: u64,
}

impl Running {
    fn new(begun: &Begun, outbox: TurnOutbox, clock: TurnClock, heard: Instant) -> Self {
        Self {
            turn: begun.turn,
            turn_id: begun.turn_id.clone(),
            timed_out: None,
            too_large: None,
            answer: String::new(),
            outbox,
            full: false,
            clock,
            heard,
            offsets: [0; 2],
            tools: HashMap::new(),
            open: Vec::new(),
            untold: Vec::new(),
        }
    }
}

impl TurnHost {
    /// The host for one activation.
    #[must_use]
    pub fn new(
        ctx: Arc<Context>,
        sid: i64,
        epoch: i64,
        agent: config::Agent,
        mailbox: Arc<Mailbox>,
        identity: Identity,
    ) -> Self {
        Self {
            ctx,
            sid,
            epoch,
            agent,
            running: None,
            work: false,
            auto_continue: false,
            begun: None,
            close: None,
            let_go: false,
            close_by: None,
            before_turn: None,
            cancel: None,
            mailbox,
            identity,
            interrupt: None,
            settled: Vec::new(),
            keep_answer: false,
            history: VecDeque::new(),
            history_upto: 0,
            shim: kept::Shim::default(),
            out_of_memory: 0,
        }
    }

    /// The session's mailbox.
    #[must_use]
    pub const fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    /// Handles the letters that are there. `true`: one of them concerns the agent.
    pub fn collect(&mut self) -> bool {
        let letters = self.mailbox.take();
        self.take_in(letters)
    }

    /// Handles letters. `true`: one of them concerns the agent.
    pub fn take_in(&mut self, letters: Letters) -> bool {
        self.work |= letters.work;
        self.auto_continue |= letters.auto_continue;
        self.begun = letters.begun.or(self.begun.take());
        self.close = self.close.max(letters.close);
        self.let_go |= letters.let_go;
        self.close_by = letters.close_by.or(self.close_by);
        newer(&mut self.before_turn, letters.before_turn);
        let mut concerns = letters.close.is_some() || letters.close_by.is_some();
        if let Some((interrupt, why)) = letters.interrupt
            && rises(self.interrupt.map(|i| i.0), interrupt)
        {
            self.interrupt = Some((interrupt, why));
            concerns = true;
        }
        self.cancel = letters.cancel.or(self.cancel);
        if let Some((tid, by)) = letters.cancel
            && self.running.as_ref().is_some_and(|r| r.turn.tid == tid)
            && self.interrupt.is_none()
        {
            self.interrupt = Some((Interrupt::Cancel(by), Why::Cancelled));
            concerns = true;
        }
        for (id, outcome, by) in letters.permissions {
            self.settle(&id, outcome, by);
            concerns = true;
        }
        for (id, outcome) in letters.answers {
            self.settle_written(&id, outcome);
            concerns = true;
        }
        for (id, verdict) in letters.verdicts {
            concerns |= self.judged(&id, verdict);
        }
        concerns
    }

    /// A turn begins.
    pub fn begin(&mut self, begun: &Begun) {
        let now = self.ctx.now();
        let most = usize::try_from(self.ctx.config().sessions.answer).unwrap_or(usize::MAX);
        self.keep_answer = self.ctx.hooked(HookEvent::TurnEnd);
        if let Some((_, by)) = self.cancel.take().filter(|(tid, _)| *tid == begun.turn.tid) {
            self.interrupt.get_or_insert((Interrupt::Cancel(by), Why::Cancelled));
        }
        self.mailbox.turn_flag(Some(begun.turn.tid), self.interrupt.is_some());
        let clock = TurnClock::new(self.agent.turn_timeout.map(|t| now + t));
        let mut outbox = TurnOutbox::new(begun.turn, most, 0);
        if self.shim.begin(begun.frame) {
            outbox.set_marked(self.mailbox.clone());
        }
        self.running = Some(Running::new(begun, outbox, clock, now));
    }

    /// A turn has ended for the agent. Returns the output that must still be written, and the interrupt.
    pub fn end(&mut self) -> Option<(Running, Vec<Batch>, Option<Why>)> {
        self.collect();
        let open: Vec<(String, bool)> =
            self.running.iter().flat_map(|r| r.open.iter().map(|o| (o.request.request_id.clone(), o.shown))).collect();
        for (id, shown) in open {
            let answered = self.ctx.registry.answer_permission(self.sid, &id, None, "daemon");
            if shown && answered != Answered::Settled {
                // A client's answer is being made durable just now, and is told of.
                self.settle_written(&id, PermissionOutcome::Cancelled);
            } else {
                self.settle(&id, PermissionOutcome::Cancelled, "daemon");
            }
        }
        self.settled.clear();
        let mut running = self.running.take()?;
        let unconfirmed = running.outbox.finish();
        let why = self.interrupt.take().map(|i| i.1);
        self.mailbox.turn_flag(None, false);
        Some((running, unconfirmed, why))
    }

    /// Commits what the agent said so far, before it is let go.
    pub fn flush(&mut self) {
        if let Some(r) = self.running.as_mut() {
            r.outbox.flush(&self.ctx);
        }
    }

    /// Whether a stop ends this worker at once.
    #[must_use]
    pub fn is_killed(&self) -> bool {
        matches!(self.interrupt, Some((Interrupt::Kill, _)))
    }

    /// When the turn needs the host next: to send text, or for a timeout of a permission or the turn.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let r = self.running.as_ref()?;
        let open = r.open.iter().filter_map(|o| o.until).chain(r.outbox.due()).chain(self.shim.due());
        if !r.open.is_empty() || r.full || self.interrupt.is_some() {
            return open.min();
        }
        let silence = self.agent.silence_timeout.map(|s| r.heard + s);
        open.chain(r.clock.deadline()).chain(silence).min()
    }

    /// Does what is due. `true`: it concerns the agent.
    pub fn act_on_time(&mut self) -> bool {
        let now = self.ctx.now();
        self.shim.act(&self.ctx, self.sid);
        let Some(r) = self.running.as_mut() else { return false };
        r.outbox.act(&self.ctx);
        self.tell_untold();
        let Some(r) = self.running.as_mut() else { return false };
        if std::mem::replace(&mut r.full, !r.outbox.has_room()) && !r.full {
            // Its output was not read, so it has not been silent.
            r.heard = self.ctx.now();
        }
        let late: Vec<String> =
            r.open.iter().filter(|o| o.until.is_some_and(|u| u <= now)).map(|o| o.request.request_id.clone()).collect();
        for id in &late {
            self.deny(id, "timeout");
        }
        let Some(r) = self.running.as_mut() else { return false };
        if r.open.is_empty() && !r.full && self.interrupt.is_none() {
            let silent = self.agent.silence_timeout.filter(|s| r.heard + *s <= now);
            let over = r.clock.deadline().is_some_and(|d| d <= now);
            let why = if over {
                self.agent.turn_timeout.map(|t| format!("the turn took longer than {} s", t.as_secs_f64()))
            } else {
                silent.map(|s| format!("the agent was silent for {} s", s.as_secs_f64()))
            };
            if let Some(why) = why {
                r.timed_out = Some(why);
                self.interrupt = Some((Interrupt::Cancel(now + CANCEL), Why::Cancelled));
                return true;
            }
        }
        !late.is_empty()
    }

    fn push(&mut self, item: Item, at_once: bool) {
        let Some(r) = self.running.as_mut() else { return };
        if r.too_large.is_some() || !r.outbox.push(&self.ctx, item, at_once) {
            return self.cut_short();
        }
        r.full |= !r.outbox.has_room();
    }

    /// Takes an item that does not come of the agent's output.
    fn push_own(&mut self, item: Item) {
        let Some(r) = self.running.as_mut() else { return };
        if r.too_large.is_some() || !r.outbox.push_own(&self.ctx, item) {
            return self.cut_short();
        }
        r.full |= !r.outbox.has_room();
    }

    /// The answer is too long: cuts it off and cancels the turn.
    fn cut_short(&mut self) {
        let limit = self.ctx.config().sessions.answer;
        let Some(r) = self.running.as_mut().filter(|r| r.too_large.is_none()) else { return };
        let why = format!("the agent said more than {limit} bytes in one turn (sessions.answer)");
        log::warn!(key = self.identity.key, turn_id = r.turn_id; "{why}; it is cancelled");
        r.too_large = Some(why);
        self.interrupt.get_or_insert((Interrupt::Cancel(self.ctx.now() + CANCEL), Why::Cancelled));
    }

    fn speak(&mut self, kind: EventKind, mut text: String) {
        let Some(r) = self.running.as_mut() else { return };
        if text.is_empty() || r.too_large.is_some() {
            return;
        }
        let whole = text.len();
        // The part that fits is kept.
        let fits = (0..=r.outbox.left().min(whole)).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0);
        text.truncate(fits);
        if fits == 0 {
            return self.cut_short();
        }
        if kind == EventKind::Text && self.keep_answer {
            let room = SHOWN.saturating_sub(r.answer.len()).min(text.len());
            let end = (0..=room).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0);
            r.answer.push_str(&text[..end]);
        }
        // The position of the preview: bytes of this kind before it in this turn.
        let so_far = &mut r.offsets[usize::from(kind == EventKind::Thought)];
        let offset = *so_far;
        *so_far += text.len();
        let id = &self.identity;
        self.ctx.hub.delta(&id.key, || {
            let (key, session_id, turn_id, text) = (&id.key, &id.session_id, &r.turn_id, &text);
            let delta = Delta { key, session_id, turn_id, kind, offset, text };
            let json = serde_json::to_string(&delta).unwrap_or_default();
            Preview { session_id: session_id.clone(), turn_id: turn_id.clone(), json }
        });
        self.push(if kind == EventKind::Text { Item::Text(text) } else { Item::Thought(text) }, false);
        if fits < whole {
            self.cut_short();
        }
    }

    fn tool(&mut self, call: ToolCall) {
        let Some(r) = self.running.as_mut() else { return };
        if r.too_large.is_some() {
            return;
        }
        if r.tools.len() >= TOOLS && !r.tools.contains_key(&call.id) {
            // Ended calls need no more merging; if one changes again, it is reported as a new call.
            r.tools.retain(|_, t| !is_over(t));
            if r.tools.len() >= TOOLS {
                r.tools.clear();
            }
        }
        let known =
            r.tools.entry(call.id.clone()).or_insert_with(|| ToolCall { id: call.id.clone(), ..ToolCall::default() });
        let before = known.clone();
        known.merge(call);
        if *known == before {
            return;
        }
        let known = known.clone();
        let busy = r.tools.values().find(|t| !is_over(t)).map(|t| t.title.clone().unwrap_or_else(|| t.id.clone()));
        self.ctx.registry.set_tool(self.sid, busy);
        let or = |v: Option<String>, default: &str| v.filter(|v| !v.is_empty()).unwrap_or_else(|| default.to_owned());
        let item = Item::Tool {
            title: or(known.title, &known.id),
            id: known.id,
            kind: or(known.kind, "other"),
            status: or(known.status, "pending"),
            detail: known.detail.unwrap_or(Value::Null),
        };
        self.push(item, true);
    }
}

/// Whether a tool call has ended.
fn is_over(call: &ToolCall) -> bool {
    matches!(call.status.as_deref(), Some("completed" | "failed"))
}

impl Host for TurnHost {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn now(&self) -> Instant {
        self.ctx.now()
    }

    fn wait(&mut self, watches: &mut [Watch<'_>], until: Option<Instant>) -> Wake {
        loop {
            if self.collect() | self.act_on_time() {
                return Wake::Letter;
            }
            let due = [until, self.due()].into_iter().flatten().min();
            match self.mailbox.wait(watches, due) {
                Ok(Woken::Ready) => {
                    self.act_on_time();
                    return Wake::Ready;
                }
                Ok(Woken::Letter) => {}
                Ok(Woken::Timeout) => {
                    if until.is_some_and(|u| u <= self.ctx.now()) {
                        return Wake::Timeout;
                    }
                }
                Err(e) => {
                    log::error!(key = self.identity.key; "cannot wait for the agent: {e}");
                    return Wake::Timeout;
                }
            }
        }
    }

    fn interrupt(&self) -> Option<Interrupt> {
        if let Some((interrupt, _)) = &self.interrupt {
            return Some(*interrupt);
        }
        // Outside a turn, while the agent starts, a close ends the start.
        match (&self.running, self.close) {
            (None, Some(Close::Stop | Close::Retire)) => {
                Some(Interrupt::Cancel(self.close_by.unwrap_or_else(|| self.ctx.now() + CANCEL)))
            }
            (Some(r), _) if r.outbox.is_stale() => Some(Interrupt::Kill),
            _ => None,
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let r = self.running.as_ref()?;
        let silence = self.agent.silence_timeout.map(|s| r.heard + s);
        [r.clock.deadline(), silence].into_iter().flatten().min()
    }

    fn interrupted_flag(&self) -> Arc<AtomicBool> {
        self.mailbox.interrupted()
    }

    fn waker(&self) -> std::io::Result<Arc<OwnedFd>> {
        self.mailbox.waker()
    }

    fn has_room(&self) -> bool {
        self.interrupt.is_some() || self.running.as_ref().is_none_or(|r| !r.full)
    }

    fn said(&mut self, what: Said) {
        if let Some(r) = self.running.as_mut() {
            r.heard = self.ctx.now();
        }
        match what {
            Said::Text(text) => self.speak(EventKind::Text, text),
            Said::Thought(text) => self.speak(EventKind::Thought, text),
            Said::Tool(call) => self.tool(call),
            Said::Plan(entries) => self.push(Item::Event(EventKind::Plan, json!({ "entries": entries })), true),
            Said::Usage(usage) => self.push(Item::Event(EventKind::Usage, usage), true),
            Said::Notice(code, text) => {
                self.push(Item::Event(EventKind::Notice, json!({ "code": code, "text": text })), true);
            }
        }
    }

    fn permission(&mut self, request: PermissionRequest) -> Option<PermissionOutcome> {
        self.tool(request.tool.clone());
        let outcome = match self.agent.permission {
            PermissionPolicy::Allow => allow(&request.options),
            PermissionPolicy::Deny => deny(&request.options),
            PermissionPolicy::Ask => {
                self.ask(request);
                return None;
            }
        };
        self.emit_outcome(&request, &outcome, "policy");
        Some(outcome)
    }

    fn permission_withdrawn(&mut self, request_id: &str, by: &'static str) {
        self.settle_unasked(request_id, PermissionOutcome::Cancelled, by);
    }

    fn permission_answers(&mut self) -> Vec<(String, PermissionOutcome)> {
        std::mem::take(&mut self.settled)
    }

    fn keeper(&self) -> Option<Arc<Keeper>> {
        self.ctx.keeper()
    }

    fn shim_started(&mut self, shim: NewShim) -> Result<(), String> {
        self.note_shim(shim)
    }

    fn shim_ended(&mut self, name: &str) {
        self.forget_shim(name);
        self.unbound(name);
    }

    fn bound(
        &mut self,
        shim: Option<(&str, u32)>,
        env: &mut BTreeMap<String, OsString>,
    ) -> Result<Option<Bound>, String> {
        self.bounds(shim, env)
    }

    fn process_runs(&mut self, process: &Process) {
        Self::process_runs(self, process);
    }

    fn agent_ready(&mut self, frames: u64, session: &str, mark: Mark) -> Result<(), String> {
        self.note_ready(frames, session, mark)
    }

    fn mark(&mut self, mark: Mark) {
        self.keep_mark(mark, false);
    }

    fn mark_last(&mut self, mark: Mark) {
        self.keep_mark(mark, true);
    }

    fn wants_mark(&self) -> bool {
        self.running.as_ref().is_some_and(|r| r.outbox.wants_mark())
    }

    fn durable(&mut self) -> Durable {
        self.take_durable()
    }

    fn process_started(&mut self, pid: u32, start: u64) {
        if let Err(e) = self.ctx.store.note_process(self.sid, self.epoch, pid, start) {
            // The environment marker still identifies the process.
            log::warn!(key = self.identity.key; "the agent's process {pid} could not be noted: {e}");
        }
    }

    fn left_unclean(&mut self) -> bool {
        self.ctx.store.follows_a_crash(self.sid, self.epoch).unwrap_or(true)
    }

    fn is_completed(&mut self, turn_id: &str) -> bool {
        self.ctx.store.turn(turn_id).is_ok_and(|t| t.state == TurnState::Completed.as_str())
    }

    fn history(&mut self, limit: u64) -> Vec<Entry> {
        let but = self.running.as_ref().map_or(0, |r| r.turn.tid);
        let after = self.history_upto;
        match self.ctx.store.history(self.sid, but, after, limit) {
            Ok(read) => {
                if !read.all {
                    self.history.clear();
                }
                self.history.extend(read.entries);
                self.history_upto = read.upto;
                let mut size: u64 = self.history.iter().map(|e| e.text.len() as u64).sum();
                while size > limit
                    && let Some(oldest) = self.history.pop_front()
                {
                    size -= oldest.text.len() as u64;
                }
                self.history.iter().cloned().collect()
            }
            Err(e) => {
                log::error!(key = self.identity.key; "the transcript cannot be read: {e}");
                Vec::new()
            }
        }
    }
}
