//! What a worker keeps of an agent that may outlive the daemon: its shim, how far its output was taken, what is sent to
//! it, and how a turn goes on that another daemon began.

use std::time::{Duration, Instant};

use serde_json::value::RawValue;

use super::permissions::Untold;
use super::{Open, Running, TurnHost};
use crate::agent::{Durable, Mark, NewShim, PermissionOutcome, PermissionRequest, RunsOn, ToolCall};
use crate::clock;
use crate::config::AgentKind;
use crate::daemon::context::Context;
use crate::daemon::outbox::TurnOutbox;
use crate::model::turn_clock::TurnClock;
use crate::store::{self, Batch, Keep, ShimRow};

/// A daemon that lives so long after it attached to a running turn was not killed by it.
const SURVIVED: Duration = Duration::from_secs(10);

/// What is known of an agent's shim.
#[derive(Default)]
pub(super) struct Shim {
    /// Its name, once what the agent says is marked.
    name: Option<String>,
    /// The number of the last frame that was decided.
    frames: i64,
    /// The number of the prompt of a turn that began before the agent was ready.
    prompt: Option<i64>,
    /// The last mark: nothing new is marked twice.
    last: Option<(u64, usize, String)>,
    /// What was to be sent and could not be made durable.
    undecided: Vec<Vec<u8>>,
    durable: Durable,
    /// When the deaths before this daemon count no more.
    survived_at: Option<Instant>,
}

impl Shim {
    /// A turn begins whose prompt has this number. Whether its agent marks.
    pub(super) fn begin(&mut self, frame: Option<i64>) -> bool {
        self.frames = self.frames.max(frame.unwrap_or(0));
        self.last = None;
        self.name.is_some()
    }

    pub(super) const fn due(&self) -> Option<Instant> {
        self.survived_at
    }

    pub(super) fn act(&mut self, ctx: &Context, sid: i64) {
        if self.survived_at.is_none_or(|at| at > ctx.now()) {
            return;
        }
        self.survived_at = None;
        ctx.registry.end_probation(sid);
        if let Err(e) = ctx.store.note_survived(sid) {
            log::warn!("that the daemon lived on cannot be noted: {e}");
        }
    }
}

/// What the rows keep of a turn beside the agent's own state.
#[derive(serde::Serialize, serde::Deserialize)]
struct Kept<'a> {
    /// The turn's id.
    turn: Option<String>,
    /// Bytes of text and of thoughts so far.
    said: [usize; 2],
    /// How many more bytes the agent may say.
    left: usize,
    /// When the turn's time is over, in milliseconds since the machine's boot.
    over_at: Option<u64>,
    /// The agent's own state.
    #[serde(borrow)]
    agent: &'a RawValue,
}

impl TurnHost {
    pub(super) fn note_shim(&mut self, shim: NewShim) -> Result<(), String> {
        let per_turn = self.agent.kind == AgentKind::Exec;
        let tid = self.running.as_ref().map(|r| r.turn.tid).filter(|_| per_turn);
        let NewShim { name, token, machine, pid, start } = shim;
        let boot_id = self.identity.boot_id.clone();
        let row = ShimRow { name: name.clone(), token, machine, boot_id, pid, pid_start: start };
        self.ctx.store.note_shim(self.sid, self.epoch, tid, row).map_err(|e| e.to_string())?;
        self.shim = Shim::default();
        self.ctx.registry.set_kept(self.sid, per_turn);
        if per_turn {
            self.shim.name = Some(name);
            if let Some(r) = self.running.as_mut() {
                r.outbox.set_marked(self.mailbox.clone());
            }
        }
        Ok(())
    }

    pub(super) fn forget_shim(&mut self, name: &str) {
        if self.shim.name.as_deref() == Some(name) {
            self.shim.name = None;
            self.ctx.registry.set_kept(self.sid, self.agent.kind == AgentKind::Exec);
        }
        // The row of one turn's command goes with the next one's.
        if self.agent.kind != AgentKind::Exec
            && let Err(e) = self.ctx.store.shim_gone(name.to_owned())
        {
            log::warn!("that a shim is gone cannot be noted: {e}");
        }
    }

    pub(super) fn note_ready(&mut self, frames: u64, session: &str, mark: Mark) -> Result<(), String> {
        let name = mark.shim.clone();
        let keep = self.keep_of(mark, Vec::new());
        let frames = i64::try_from(frames).unwrap_or(i64::MAX);
        let session = Some(session.to_owned());
        let readied = self.ctx.store.agent_ready(self.sid, self.epoch, frames, session, keep);
        let readied = readied.map_err(|e| e.to_string())?;
        (self.shim.name, self.shim.frames, self.shim.prompt) = (Some(name), readied.frames, readied.frame);
        self.ctx.registry.set_kept(self.sid, true);
        Ok(())
    }

    /// The number of the prompt of a turn that is about to be run, as it was decided last.
    pub fn decided(&mut self, begun: Option<i64>) -> Option<i64> {
        self.shim.prompt.take().or(begun).filter(|_| self.shim.name.is_some())
    }

    fn keep_of(&self, mark: Mark, frames: Vec<(i64, Vec<u8>)>) -> Keep {
        let null = RawValue::NULL;
        let agent: &RawValue = serde_json::from_str(&mark.state).unwrap_or(null);
        let r = self.running.as_ref();
        let over_at = r.and_then(|r| r.clock.deadline()).map(|at| {
            let left = at.saturating_duration_since(self.ctx.now());
            clock::since_boot().saturating_add(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
        });
        let kept = Kept {
            turn: r.map(|r| r.turn_id.clone()),
            said: r.map_or([0; 2], |r| r.offsets),
            left: r.map_or(0, |r| r.outbox.left()),
            over_at,
            agent,
        };
        Keep {
            name: mark.shim,
            offset: i64::try_from(mark.offset).unwrap_or(i64::MAX),
            skip: i64::try_from(mark.skip).unwrap_or(0),
            state: serde_json::to_string(&kept).unwrap_or_default(),
            frames,
            heard: i64::try_from(mark.heard).unwrap_or(0),
        }
    }

    /// Makes a mark durable: within a turn by its outbox, between turns at once.
    pub(super) fn keep_mark(&mut self, mut mark: Mark, last: bool) {
        let mut bodies = std::mem::take(&mut self.shim.undecided);
        bodies.append(&mut mark.frames);
        let place = (mark.offset, mark.skip, mark.state.clone());
        let urgent =
            mark.urgent && self.shim.last.as_ref().is_none_or(|last| (last.0, last.1) != (mark.offset, mark.skip));
        let loose = self.running.as_ref().is_some_and(|r| r.outbox.is_loose());
        if bodies.is_empty() && !loose && !last && self.shim.last.as_ref() == Some(&place) {
            return self.tell_untold();
        }
        self.shim.last = Some(place);
        if self.running.is_none() {
            return self.keep_between(mark, bodies);
        }
        let frames: Vec<(i64, Vec<u8>)> = (self.shim.frames + 1..).zip(bodies).collect();
        self.shim.frames = frames.last().map_or(self.shim.frames, |f| f.0);
        let keep = self.keep_of(mark, frames);
        let Some(r) = self.running.as_mut() else { return };
        if last {
            r.outbox.mark_last(keep);
            return;
        }
        self.show_untold();
        let Some(r) = self.running.as_mut() else { return };
        r.outbox.mark(&self.ctx, keep, urgent);
        r.full |= !r.outbox.has_room();
        self.tell_untold();
    }

    fn keep_between(&mut self, mark: Mark, bodies: Vec<Vec<u8>>) {
        let offset = i64::try_from(mark.offset).unwrap_or(i64::MAX);
        let keep = self.keep_of(mark, bodies.iter().map(|body| (0, body.clone())).collect());
        match self.ctx.store.keep_between(self.sid, self.epoch, keep) {
            Ok(numbers) => {
                self.shim.frames = numbers.last().copied().unwrap_or(self.shim.frames);
                self.shim.durable.add(offset, numbers.into_iter().zip(bodies).collect());
            }
            Err(e) => {
                log::error!("what the agent said between two turns cannot be kept yet: {e}");
                (self.shim.undecided, self.shim.last) = (bodies, None);
            }
        }
    }

    pub(super) fn take_durable(&mut self) -> Durable {
        let mut all = std::mem::take(&mut self.shim.durable);
        if let Some(r) = self.running.as_mut() {
            let of_turn = r.outbox.take_durable();
            all.offset = all.offset.max(of_turn.offset);
            all.frames.extend(of_turn.frames);
        }
        all
    }

    /// A turn's outcome is durable, with these batches.
    pub fn finished(&mut self, batches: &[Batch]) {
        for keep in batches.iter().filter_map(|b| b.keep.as_ref()) {
            self.shim.durable.add(keep.offset, keep.frames.clone());
        }
    }

    /// Goes on with the shim of an agent that has outlived another daemon, and with its turn. Returns what the agent had
    /// marked, and its turn for the agent.
    pub fn resume(&mut self, resumed: &store::Resumed) -> (Option<String>, Option<RunsOn>) {
        let now = self.ctx.now();
        self.shim.name = resumed.shim.as_ref().map(|shim| shim.name.clone());
        self.shim.frames = resumed.frames;
        self.ctx.registry.set_kept(self.sid, true);
        let kept = resumed.state.as_deref().and_then(|state| serde_json::from_str::<Kept<'_>>(state).ok());
        let state = kept.as_ref().map(|kept| kept.agent.get().to_owned());
        let Some(on) = &resumed.running else { return (state, None) };
        let marked = kept.filter(|kept| kept.turn.as_deref() == Some(&on.begun.turn_id));
        let most = usize::try_from(self.ctx.config().sessions.answer).unwrap_or(usize::MAX);
        let left = marked.as_ref().map_or(most, |kept| kept.left);
        let mut outbox = TurnOutbox::new(on.begun.turn, left, on.pieces);
        if self.shim.name.is_some() {
            outbox.set_marked(self.mailbox.clone());
        }
        let over_in = match marked.as_ref().and_then(|kept| kept.over_at) {
            Some(at) => Some(Duration::from_millis(at.saturating_sub(clock::since_boot()))),
            None => self.agent.turn_timeout.map(|time| {
                let age = u64::try_from(self.ctx.wall().saturating_sub(on.started_at)).unwrap_or(0);
                time.saturating_sub(Duration::from_millis(age))
            }),
        };
        self.keep_answer = self.ctx.hooked(crate::model::event::HookEvent::TurnEnd);
        self.mailbox.turn_flag(Some(on.begun.turn.tid), on.cancelled);
        let mut running = Running::new(&on.begun, outbox, TurnClock::new(over_in.map(|time| now + time)), now);
        running.offsets = marked.as_ref().map_or([0; 2], |kept| kept.said);
        let tools: Vec<ToolCall> = on.tools.iter().filter_map(|(id, detail)| tool(id, detail)).collect();
        running.tools = tools.iter().map(|tool| (tool.id.clone(), tool.clone())).collect();
        if self.keep_answer {
            running.answer = self.ctx.store.answer_so_far(on.begun.turn.tid, super::SHOWN).unwrap_or_default();
        }
        self.running = Some(running);
        self.survives(now);
        if on.cancelled {
            let by = now + crate::daemon::context::CANCEL;
            self.interrupt = Some((crate::agent::Interrupt::Cancel(by), crate::daemon::mailbox::Why::Cancelled));
        }
        on.asked.iter().for_each(|asked| self.ask_again(asked));
        self.tell_untold();
        let prompt = (!on.begun.prompt.is_empty()).then(|| crate::agent::Prompt {
            turn_id: on.begun.turn_id.clone(),
            text: on.begun.prompt.clone(),
            context: on.context.clone(),
            frame: on.begun.frame.and_then(|frame| u64::try_from(frame).ok()),
            resumed: on.begun.continues.as_ref().is_some_and(|c| c.rerun),
        });
        (state, Some(RunsOn { prompt, tools, marked: marked.is_some() }))
    }

    fn survives(&mut self, now: Instant) {
        self.shim.survived_at = Some(now + SURVIVED);
    }

    /// A permission that was asked while another daemon was there.
    fn ask_again(&mut self, asked: &store::Asked) {
        let Ok(request) = serde_json::from_value::<PermissionRequest>(asked.request.clone()) else {
            return log::error!("a permission that was asked before cannot be read: {}", asked.request_id);
        };
        let now = self.ctx.now();
        let until = self.agent.permission_timeout.map(|time| now + time);
        let id = request.request_id.clone();
        let Some(r) = self.running.as_mut() else { return };
        r.clock.begin_wait(now);
        let asks = asked.asks + i64::from(!asked.shown && asked.outcome.is_none());
        r.open.push(Open { request: request.clone(), until, asks, shown: false });
        match &asked.outcome {
            Some(word) if word == "cancelled" => self.settle_written(&id, PermissionOutcome::Cancelled),
            Some(option) => self.settle_written(&id, PermissionOutcome::Selected(option.clone())),
            None if asked.shown => r.untold.push(Untold::Client(id)),
            None => {
                r.untold.push(Untold::Handlers(id));
                self.push_own(super::permissions::asked(&request, asks, false));
            }
        }
    }
}

/// A tool call of a turn, as its entry keeps it.
fn tool(id: &str, entry: &serde_json::Value) -> Option<ToolCall> {
    let text = |name: &str| entry[name].as_str().map(str::to_owned);
    let detail = entry.get("detail").filter(|detail| !detail.is_null()).cloned();
    (!id.is_empty()).then(|| ToolCall {
        id: id.to_owned(),
        title: text("title"),
        kind: text("kind"),
        status: text("status"),
        detail,
    })
}
