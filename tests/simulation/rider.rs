//! The daemon's side of an agent that outlives it: as the real kinds `acp` and `exec` use their host and their shim, but
//! with words of a few letters, and with what waits in them in their own order.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ostler::agent::{
    Agent, Answer, Continuity, Failure, Host, Interrupt, Mark, Outlived, PermissionOption, PermissionOutcome,
    PermissionRequest, Progress, Prompt, Said, Started, ToolCall, say,
};

use crate::dice::Dice;
use crate::parts::Fault;
use crate::sim::Death;
use crate::world::{Known, Outside};

/// The longest time that a cancel waits for the agent's answer.
const CANCEL: Duration = Duration::from_secs(5);
/// The longest time for an exit to be told.
const EXIT: Duration = Duration::from_secs(10);
/// A turn of the agent's own is over after this time without a word.
const QUIET: Duration = Duration::from_secs(2);

/// The connection to a shim.
struct Link {
    outside: Arc<Outside>,
    name: String,
    boot: u64,
    /// The number of the last frame that was sent.
    number: u64,
    ahead: BTreeMap<u64, Vec<u8>>,
    loose: Vec<Vec<u8>>,
    direct: bool,
    acknowledged: u64,
    over: bool,
}

impl Link {
    /// A new shim, noted, and its agent: for a turn, if it is a command.
    fn made(outside: &Arc<Outside>, host: &mut dyn Host, boot: u64, turn: Option<&str>) -> Result<Self, String> {
        let (sid, id) = (host.identity().sid, host.identity().session_id.clone());
        let new = outside.world().make(sid, &id);
        let mut link = Self::new(outside, new.name.clone(), boot);
        if let Err(why) = host.shim_started(new) {
            outside.world().kill_shim(&link.name);
            link.over = true;
            return Err(why);
        }
        outside.world().start(&link.name, turn);
        Ok(link)
    }

    fn new(outside: &Arc<Outside>, name: String, boot: u64) -> Self {
        let (outside, known) = (outside.clone(), outside.world().knows(&name));
        let (number, acknowledged) = (known.taken, known.received);
        Self {
            outside,
            name,
            boot,
            number,
            ahead: BTreeMap::new(),
            loose: Vec::new(),
            direct: false,
            acknowledged,
            over: false,
        }
    }

    fn known(&self) -> Known {
        self.outside.world().knows(&self.name)
    }

    fn send(&mut self, text: String) {
        if self.direct {
            self.transmit(self.number + 1, text.into_bytes());
        } else {
            self.loose.push(text.into_bytes());
        }
    }

    fn transmit(&mut self, number: u64, bytes: Vec<u8>) {
        if number <= self.number {
            return;
        }
        self.ahead.insert(number, bytes);
        while let Some(bytes) = self.ahead.remove(&(self.number + 1)) {
            self.number += 1;
            self.outside.world().transmit(&self.name, self.number, bytes);
        }
    }

    fn set_direct(&mut self, direct: bool) {
        self.direct = direct;
        if direct {
            std::mem::take(&mut self.loose).into_iter().for_each(|bytes| self.transmit(self.number + 1, bytes));
        }
    }

    fn acknowledge(&mut self, offset: u64) {
        if offset > self.acknowledged {
            self.acknowledged = offset;
            self.outside.world().acknowledge(&self.name, offset);
        }
    }

    fn take_in(&self, out: &mut Vec<u8>) {
        let deadly = self.outside.world().take_in(&self.name, out);
        if deadly {
            (self.outside.dies)();
            resume_unwind(Box::new(Death));
        }
    }

    /// Ends the agent, and leaves its exit to be acknowledged.
    fn wind_down(&self, host: &mut dyn Host, touches: bool) {
        self.outside.world().end(&self.name);
        touch(host, touches);
    }

    /// Ends it for good.
    fn end(mut self, host: &mut dyn Host, touches: bool) {
        touch(host, touches);
        let mut world = self.outside.world();
        world.end(&self.name);
        let mut thrown_away = Vec::new();
        // Each read is a part of what is there.
        for round in 0.. {
            if world.knows(&self.name).closed {
                break;
            }
            assert!(round < 10_000, "an agent is ended and does not end");
            world.take_in(&self.name, &mut thrown_away);
        }
        let received = world.knows(&self.name).received;
        if !world.knows(&self.name).lost {
            world.acknowledge(&self.name, received);
            world.take_in(&self.name, &mut thrown_away);
            world.acknowledge_exit(&self.name);
        }
        drop(world);
        touch(host, touches);
        self.over = true;
        host.shim_ended(&self.name);
    }

    fn let_go(mut self) {
        self.over = true;
        self.outside.world().let_go(&self.name);
    }

    fn mark(&mut self, offset: u64, skip: usize, state: String) -> Mark {
        let known = self.known();
        let frames = std::mem::take(&mut self.loose);
        Mark { shim: self.name.clone(), offset, skip, state, frames, heard: known.heard, urgent: known.ending }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if !self.over && !(self.outside.dead)() {
            self.outside.world().drops(&self.name, self.boot);
        }
    }
}

/// Waits as an agent does that has a process to wait for: letters are collected in it.
fn touch(host: &mut dyn Host, touches: bool) {
    if touches {
        // The machine's own time is behind the seed's.
        host.wait(&mut [], Some(Instant::now()));
    }
}

/// What a session's agent says, by lines; a line has one message or more.
struct Talk {
    link: Link,
    read: Vec<u8>,
    /// Where the first line of what was read begins, and how many of its messages were given out.
    at: (u64, usize),
    /// The agent's exit was given out.
    gone: bool,
    /// A message that begins a turn of the agent's own, and where it begins.
    own: Option<(String, (u64, usize))>,
}

impl Talk {
    /// The next message that was read.
    fn next(&mut self) -> Option<String> {
        if let Some(end) = self.read.iter().position(|b| *b == b'\n') {
            let line = String::from_utf8(self.read[..end].to_vec()).expect("text");
            let all: Vec<&str> = line.split(';').collect();
            let message = all[self.at.1].to_owned();
            self.at.1 += 1;
            if self.at.1 == all.len() {
                self.read.drain(..=end);
                self.at = (self.at.0 + end as u64 + 1, 0);
            }
            return Some(message);
        }
        let silent = self.link.known().closed;
        (silent && !std::mem::replace(&mut self.gone, silent)).then(|| "gone".to_owned())
    }

    fn take_in(&mut self) {
        self.link.take_in(&mut self.read);
    }

    /// All before it was given out.
    fn position(&self) -> (u64, usize) {
        if let Some((_, at)) = &self.own {
            return *at;
        }
        let known = self.link.known();
        if known.closed && !self.read.contains(&b'\n') && !known.lost {
            return (known.received, 0);
        }
        self.at
    }
}

/// What a turn waits for.
#[derive(Clone, PartialEq)]
enum Stage {
    Answer,
    Words(Instant),
    Exit(Instant),
}

/// A turn.
struct Ride {
    turn: Option<String>,
    stage: Stage,
    cancel: Option<Instant>,
    open: Vec<String>,
}

/// An agent for a whole session.
pub struct Rider {
    outside: Arc<Outside>,
    boot: u64,
    dice: Dice,
    talk: Option<Talk>,
    ride: Option<Ride>,
    condemned: bool,
    exited: Option<Link>,
    marked: u64,
}

impl Rider {
    pub fn new(outside: Arc<Outside>, boot: u64, seed: u64) -> Self {
        let dice = Dice::new(seed);
        Self { outside, boot, dice, talk: None, ride: None, condemned: false, exited: None, marked: 0 }
    }

    fn touches(&mut self) -> bool {
        self.dice.chance(40)
    }

    fn bury(&mut self, host: &mut dyn Host) {
        if let Some(link) = self.exited.take() {
            let touches = self.touches();
            link.end(host, touches);
        }
    }

    fn end_talk(&mut self, host: &mut dyn Host) {
        let touches = self.touches();
        if let Some(talk) = self.talk.take() {
            talk.link.end(host, touches);
        }
    }

    fn marked(&mut self) -> Option<Mark> {
        let ride = self.ride.as_ref().map(|ride| {
            serde_json::json!({ "own": matches!(ride.stage, Stage::Words(_)), "cancel": ride.cancel.is_some(), "open": ride.open })
        });
        let talk = self.talk.as_mut()?;
        let (offset, skip) = talk.position();
        Some(talk.link.mark(offset, skip, serde_json::json!({ "ride": ride }).to_string()))
    }

    fn mark(&mut self, host: &mut dyn Host) {
        if let Some(mark) = self.marked() {
            host.mark(mark);
            self.durable(host);
        }
    }

    /// Reads what came between turns.
    fn listen_in(&mut self, host: &mut dyn Host) {
        for _ in 0..20 {
            let Some(talk) = self.talk.as_mut().filter(|talk| talk.own.is_none()) else { return };
            let at = talk.at;
            let message = talk.next().or_else(|| {
                talk.take_in();
                talk.next()
            });
            match message.as_deref() {
                None => return,
                Some("gone") => {
                    if let Some(talk) = self.talk.take() {
                        let name = talk.link.name.clone();
                        drop(talk);
                        host.shim_ended(&name);
                    }
                }
                Some(message) if message.starts_with("own ") || message.starts_with("ask ") => {
                    let at = if at.0 == talk.at.0 { (at.0, talk.at.1 - 1) } else { at };
                    talk.own = Some((message.to_owned(), at));
                }
                Some(_) => {}
            }
        }
    }

    fn mark_between(&mut self, host: &mut dyn Host) {
        if self.ride.is_some() {
            return;
        }
        let far = if self.dice.chance(30) { 0 } else { 256 };
        let marked = self.marked;
        let waits = self.talk.as_ref().is_some_and(|talk| {
            let known = talk.link.known();
            let far = talk.position().0.saturating_sub(marked) > far;
            !talk.link.loose.is_empty() || far || known.ending && known.exited.is_none()
        });
        if waits {
            self.marked = self.talk.as_ref().map_or(0, |talk| talk.position().0);
            self.mark(host);
        }
    }

    fn withdraw_all(&mut self) {
        let (Some(ride), Some(talk)) = (self.ride.as_mut(), self.talk.as_mut()) else { return };
        for id in std::mem::take(&mut ride.open) {
            talk.link.send(format!("answer {id} cancelled"));
        }
    }

    fn give_answers(&mut self, host: &mut dyn Host) {
        let (Some(ride), Some(talk)) = (self.ride.as_mut(), self.talk.as_mut()) else { return };
        for (id, outcome) in host.permission_answers() {
            if let Some(at) = ride.open.iter().position(|open| *open == id) {
                ride.open.remove(at);
                talk.link.send(format!("answer {id} {}", word(&outcome)));
            }
        }
    }

    /// Withdraws what nobody has answered.
    fn take_back(&mut self, host: &mut dyn Host) {
        let open = self.ride.as_ref().map_or_else(Vec::new, |ride| ride.open.clone());
        open.iter().for_each(|id| host.permission_withdrawn(id, "daemon"));
        self.give_answers(host);
    }

    /// Looks for an interrupt, and for answers.
    fn look(&mut self, host: &mut dyn Host) -> Option<Answer> {
        self.give_answers(host);
        let stage = self.ride.as_ref()?.stage.clone();
        match (host.interrupt(), stage) {
            (None, _) | (Some(_), Stage::Exit(_)) => {}
            (Some(Interrupt::Kill), _) => {
                self.condemned = true;
                return Some(Answer::Cancelled);
            }
            (Some(Interrupt::Cancel(until)), Stage::Answer) => {
                let share = (until.saturating_duration_since(host.now()) / 2).min(CANCEL);
                let by = host.now() + share;
                if self.ride.as_ref()?.cancel.is_none() {
                    self.take_back(host);
                    self.talk.as_mut()?.link.send("cancel".into());
                }
                let ride = self.ride.as_mut()?;
                ride.cancel = Some(ride.cancel.map_or(by, |before| before.min(until)));
            }
            (Some(Interrupt::Cancel(_)), Stage::Words(_)) => {
                self.take_back(host);
                self.withdraw_all();
                self.talk.as_mut()?.link.send("cancel".into());
                return Some(Answer::Cancelled);
            }
        }
        None
    }

    fn take(&mut self, host: &mut dyn Host, message: &str) -> Option<Answer> {
        let now = host.now();
        let ride = self.ride.as_mut()?;
        if let Stage::Words(quiet_at) = &mut ride.stage {
            *quiet_at = now + QUIET;
        }
        let mut words = message.splitn(3, ' ');
        match (words.next().unwrap_or_default(), words.next(), words.next()) {
            ("own", Some(text), None) if ride.turn.is_some() => {
                host.said(Said::Notice("between_turns".into(), text.to_owned()));
            }
            ("text" | "own", Some(text), None) => host.said(Said::Text(text.to_owned())),
            ("thought", Some(text), None) => host.said(Said::Thought(text.to_owned())),
            ("tool", Some(id), Some(status)) => host.said(Said::Tool(ToolCall {
                id: id.to_owned(),
                title: Some("tool".into()),
                status: Some(status.to_owned()),
                ..ToolCall::default()
            })),
            ("ask", Some(id), None) if ride.cancel.is_some() => {
                self.talk.as_mut()?.link.send(format!("answer {id} cancelled"));
            }
            ("ask", Some(id), None) => match host.permission(request(id)) {
                Some(outcome) => self.talk.as_mut()?.link.send(format!("answer {id} {}", word(&outcome))),
                None => ride.open.push(id.to_owned()),
            },
            ("done", Some(turn), Some(how)) => {
                if ride.turn.as_deref() != Some(turn) {
                    // The answer to a prompt that nobody waits for any more.
                    return None;
                }
                let cancelled = ride.cancel.is_some();
                self.withdraw_all();
                return Some(match how {
                    _ if cancelled => Answer::Cancelled,
                    "ok" => Answer::Completed { stop_reason: None },
                    "cancelled" => panic!("cancelled, and nobody asked for that"),
                    _ => Answer::Failed(Failure::new("agent_error", "no")),
                });
            }
            ("gone", None, None) => ride.stage = Stage::Exit(now + EXIT),
            other => panic!("an agent says {other:?}"),
        }
        None
    }

    /// Whether a time is over.
    fn late(&mut self, host: &dyn Host) -> Option<Answer> {
        let (now, known) = (host.now(), self.talk.as_ref()?.link.known());
        let ride = self.ride.as_ref()?;
        match ride.stage {
            Stage::Exit(until) => {
                let exited = known.exited.is_some() || known.lost;
                if !exited && now < until && host.interrupt().is_none() {
                    return None;
                }
                self.condemned = true;
                Some(match host.interrupt() {
                    Some(_) => Answer::Cancelled,
                    None => Answer::Failed(Failure::new("agent_died", "gone")),
                })
            }
            Stage::Answer | Stage::Words(_) => {
                let late = ride.cancel.is_some_and(|by| by <= now) && host.interrupt().is_some();
                self.condemned |= late;
                late.then_some(Answer::Cancelled)
            }
        }
    }

    fn advance(&mut self, host: &mut dyn Host) -> Progress {
        loop {
            if self.talk.is_none() {
                return self.over(host, Answer::Failed(Failure::new("agent_died", "it is not running")));
            }
            if let Some(answer) = self.look(host).or_else(|| self.late(host)) {
                return self.over(host, answer);
            }
            let (Some(talk), Some(ride)) = (self.talk.as_mut(), self.ride.as_ref()) else { continue };
            if !talk.link.loose.is_empty() || host.wants_mark() {
                self.mark(host);
                continue;
            }
            let message = if matches!(ride.stage, Stage::Exit(_)) { None } else { talk.next() };
            let Some(message) = message else {
                if let Stage::Words(quiet_at) = ride.stage
                    && quiet_at <= host.now()
                    && ride.open.is_empty()
                {
                    return self.over(host, Answer::Completed { stop_reason: None });
                }
                let until = match ride.stage {
                    Stage::Answer => ride.cancel,
                    Stage::Words(quiet_at) => ride.open.is_empty().then_some(quiet_at),
                    Stage::Exit(until) => Some(until),
                };
                self.mark(host);
                return Progress::Pending { until };
            };
            if let Some(answer) = self.take(host, &message) {
                return self.over(host, answer);
            }
        }
    }

    fn over(&mut self, host: &mut dyn Host, answer: Answer) -> Progress {
        self.ride = None;
        if let Some(mark) = self.marked() {
            host.mark_last(mark);
        }
        Progress::Done(answer)
    }

    fn send(&mut self, prompt: &Prompt, sent: bool) {
        let Some(talk) = self.talk.as_mut() else { return };
        let text = format!("prompt {} {}", prompt.turn_id, prompt.text);
        match prompt.frame {
            _ if sent => {}
            Some(frame) => talk.link.transmit(frame, text.into_bytes()),
            None => talk.link.send(text),
        }
        let turn = Some(prompt.turn_id.clone());
        self.ride = Some(Ride { turn, stage: Stage::Answer, cancel: None, open: Vec::new() });
    }

    fn stumble(&mut self) {
        if !self.outside.world().is_quiet() && self.dice.below(300) == 0 {
            resume_unwind(Box::new(Fault));
        }
    }
}

fn word(outcome: &PermissionOutcome) -> &str {
    match outcome {
        PermissionOutcome::Selected(option) => option,
        PermissionOutcome::Cancelled => "cancelled",
    }
}

fn request(id: &str) -> PermissionRequest {
    let option = |id: &str, kind: &str| PermissionOption { option_id: id.into(), name: id.into(), kind: kind.into() };
    let options = vec![option("yes", "allow_once"), option("no", "reject_once")];
    PermissionRequest {
        request_id: id.to_owned(),
        tool: ToolCall { id: format!("t-{id}"), ..ToolCall::default() },
        options,
    }
}

impl Agent for Rider {
    fn start(&mut self, host: &mut dyn Host, _: Option<&str>, _: bool, _: Instant) -> Result<Started, Failure> {
        self.bury(host);
        self.listen_in(host);
        if self.talk.as_ref().is_some_and(|talk| talk.link.known().gone || talk.link.known().lost) {
            self.end_talk(host);
        }
        let started = Started { agent_session: Some("a".into()), continuity: Continuity::Kept };
        if self.talk.is_some() {
            return Ok(started);
        }
        let failed = |why: String| Failure::new("agent_start", why);
        let mut link = Link::made(&self.outside, host, self.boot, None).map_err(failed)?;
        link.set_direct(true);
        link.send("hello".into());
        let touches = self.touches();
        touch(host, touches);
        link.send("hello".into());
        let quiet = self.outside.world().is_quiet();
        if host.interrupt().is_some() || !quiet && self.dice.chance(8) {
            link.end(host, touches);
            return Err(failed("it does not start".into()));
        }
        let (number, at) = (link.number, (0, 0));
        self.talk = Some(Talk { link, read: Vec::new(), at, gone: false, own: None });
        let Some(mark) = self.marked() else { return Err(failed("no mark".into())) };
        if let Err(why) = host.agent_ready(number, "a", mark) {
            self.end_talk(host);
            return Err(failed(why));
        }
        if let Some(talk) = self.talk.as_mut() {
            talk.link.set_direct(false);
        }
        Ok(started)
    }

    fn is_ready(&self) -> bool {
        self.talk.as_ref().is_some_and(|talk| !talk.link.known().gone && !talk.link.known().lost)
    }

    fn begin(&mut self, host: &mut dyn Host, prompt: &Prompt) -> Progress {
        self.listen_in(host);
        while let Some((message, _)) = self.talk.as_mut().and_then(|talk| talk.own.take()) {
            if let Some(id) = message.strip_prefix("ask ") {
                self.talk.as_mut().expect("it spoke").link.send(format!("answer {id} cancelled"));
            } else {
                host.said(Said::Notice("between_turns".into(), message));
            }
            self.listen_in(host);
        }
        if host.interrupt().is_some() {
            if let (Some(talk), Some(frame)) = (self.talk.as_mut(), prompt.frame) {
                talk.link.transmit(frame, Vec::new());
            }
            return Progress::Done(Answer::Cancelled);
        }
        if self.talk.is_none() {
            return self.over(host, Answer::Failed(Failure::new("agent_died", "it is not running")));
        }
        self.send(prompt, false);
        self.advance(host)
    }

    fn listen(&mut self, host: &mut dyn Host) -> Progress {
        let first = self.talk.as_mut().and_then(|talk| talk.own.take());
        let stage = Stage::Words(host.now() + QUIET);
        self.ride = Some(Ride { turn: None, stage, cancel: None, open: Vec::new() });
        if let Some((message, _)) = first {
            self.take(host, &message);
        }
        self.advance(host)
    }

    fn input(&mut self, host: &mut dyn Host) -> Progress {
        self.stumble();
        if let Some(talk) = self.talk.as_mut() {
            talk.take_in();
        }
        self.advance(host)
    }

    fn end(&mut self, host: &mut dyn Host) {
        if !std::mem::take(&mut self.condemned) {
            return;
        }
        let touches = self.touches();
        let Some(talk) = self.talk.take() else { return };
        let known = talk.link.known();
        if known.exited.is_none() && !known.lost {
            talk.link.wind_down(host, touches);
        }
        self.exited = Some(talk.link);
    }

    fn idle(&mut self, host: &mut dyn Host) {
        self.listen_in(host);
        self.mark_between(host);
    }

    fn wants_turn(&self) -> bool {
        self.talk.as_ref().is_some_and(|talk| talk.own.is_some())
    }

    fn durable(&mut self, host: &mut dyn Host) {
        let durable = host.durable();
        self.bury(host);
        let Some(talk) = self.talk.as_mut() else { return };
        durable.frames.into_iter().for_each(|(number, bytes)| talk.link.transmit(number, bytes));
        if let Some(offset) = durable.offset {
            talk.link.acknowledge(offset);
        }
    }

    fn attach(&mut self, host: &mut dyn Host, outlived: Outlived) -> Result<Option<Progress>, Failure> {
        let Outlived { offset, skip, state, frames, unsent, running, .. } = outlived;
        let failed = |why: &str| Failure::new("internal", why);
        let name = self.outside.world().attached(host.identity().sid).ok_or_else(|| failed("it has no process"))?;
        let mut link = Link::new(&self.outside, name, self.boot);
        let state: serde_json::Value =
            serde_json::from_str(&state.unwrap_or_default()).map_err(|e| failed(&e.to_string()))?;
        self.stumble();
        let highest = link.number;
        let frame = running.as_ref().and_then(|r| r.prompt.as_ref()).map(|p| p.frame.unwrap_or(u64::MAX));
        let sent = frame.is_none_or(|frame| frame <= highest);
        let known: Vec<u64> = unsent.iter().map(|f| f.0).chain(frame).collect();
        (highest + 1..=frames).filter(|n| !known.contains(n)).for_each(|n| link.transmit(n, Vec::new()));
        unsent.into_iter().for_each(|(number, bytes)| link.transmit(number, bytes));
        self.talk = Some(Talk { link, read: Vec::new(), at: (offset, skip), gone: false, own: None });
        self.marked = offset;
        let Some(turn) = running else { return Ok(None) };
        let now = host.now();
        let saved = &state["ride"];
        match turn.prompt {
            Some(prompt) if saved.is_null() || !turn.marked => self.send(&prompt, sent),
            prompt => {
                let own = prompt.is_none();
                let open = saved["open"].as_array().into_iter().flatten().filter_map(|id| id.as_str());
                self.ride = Some(Ride {
                    turn: prompt.map(|p| p.turn_id),
                    stage: if own { Stage::Words(now + QUIET) } else { Stage::Answer },
                    cancel: (saved["cancel"] == true).then(|| now + CANCEL),
                    open: open.map(str::to_owned).collect(),
                });
            }
        }
        Ok(Some(self.input(host)))
    }

    fn let_go(&mut self) -> bool {
        if let Some(link) = self.exited.take() {
            link.let_go();
            return true;
        }
        let Some(talk) = self.talk.take() else { return false };
        talk.link.let_go();
        true
    }

    fn close(&mut self, host: &mut dyn Host, _: Instant) -> Vec<String> {
        self.bury(host);
        self.listen_in(host);
        self.end_talk(host);
        Vec::new()
    }
}

/// An agent for one turn: a command.
pub struct Runner {
    outside: Arc<Outside>,
    boot: u64,
    dice: Dice,
    running: Option<Run>,
    over: Option<Run>,
}

struct Run {
    link: Link,
    /// The bytes of a character that is not whole.
    part: Vec<u8>,
    interrupted: bool,
}

impl Runner {
    pub fn new(outside: Arc<Outside>, boot: u64, seed: u64) -> Self {
        Self { outside, boot, dice: Dice::new(seed), running: None, over: None }
    }

    fn dismiss(&mut self, host: &mut dyn Host) {
        let touches = self.dice.chance(40);
        if let Some(run) = self.over.take() {
            run.link.end(host, touches);
        }
    }

    /// Gives a command its input; what its shim has it does not take again.
    fn run(&mut self, mut link: Link, prompt: &Prompt) {
        link.transmit(1, prompt.text.clone().into_bytes());
        if link.number < 2 {
            link.number = 2;
            self.outside.world().close_input(&link.name, 2);
        }
        self.running = Some(Run { link, part: Vec::new(), interrupted: false });
    }
}

impl Run {
    /// Whether it is over.
    fn read(&mut self, host: &mut dyn Host) -> bool {
        self.link.take_in(&mut self.part);
        let whole = match std::str::from_utf8(&self.part) {
            Ok(_) => self.part.len(),
            Err(e) => e.valid_up_to(),
        };
        let text: Vec<u8> = self.part.drain(..whole).collect();
        say(host, Said::Text(String::from_utf8(text).expect("text")));
        let known = self.link.known();
        if !known.lost {
            let part = if known.closed { 0 } else { self.part.len() as u64 };
            let mark = Mark {
                shim: self.link.name.clone(),
                offset: known.received - part,
                state: "null".into(),
                urgent: known.ending,
                ..Mark::default()
            };
            host.mark(mark);
        }
        if known.exited.is_some() || known.lost {
            return true;
        }
        self.interrupted = host.interrupt().is_some();
        self.interrupted
    }
}

impl Agent for Runner {
    fn begin(&mut self, host: &mut dyn Host, prompt: &Prompt) -> Progress {
        self.dismiss(host);
        if host.interrupt().is_some() {
            return Progress::Done(Answer::Cancelled);
        }
        let link = match Link::made(&self.outside, host, self.boot, Some(&prompt.turn_id)) {
            Ok(link) => link,
            Err(why) => return Progress::Done(Answer::Failed(Failure::new("agent_start", why))),
        };
        let touches = self.dice.chance(20);
        touch(host, touches);
        self.run(link, prompt);
        Progress::Pending { until: None }
    }

    fn input(&mut self, host: &mut dyn Host) -> Progress {
        if !self.outside.world().is_quiet() && self.dice.below(300) == 0 {
            resume_unwind(Box::new(Fault));
        }
        let Some(run) = self.running.as_mut() else { return Progress::Done(Answer::Cancelled) };
        if !run.read(host) {
            return Progress::Pending { until: None };
        }
        Progress::Done(match run.link.known().exited {
            _ if run.interrupted => Answer::Cancelled,
            Some(true) => Answer::Completed { stop_reason: None },
            _ => Answer::Failed(Failure::new("agent_error", "no")),
        })
    }

    fn durable(&mut self, host: &mut dyn Host) {
        let durable = host.durable();
        match (self.running.as_mut(), durable.offset) {
            (None, _) => self.dismiss(host),
            (Some(run), Some(offset)) => run.link.acknowledge(offset),
            (Some(_), None) => {}
        }
    }

    fn attach(&mut self, host: &mut dyn Host, outlived: Outlived) -> Result<Option<Progress>, Failure> {
        let Some(prompt) = outlived.running.and_then(|running| running.prompt) else { return Ok(None) };
        let attached = self.outside.world().attached(host.identity().sid);
        let Some(name) = attached else { return Ok(Some(self.begin(host, &prompt))) };
        let link = Link::new(&self.outside, name, self.boot);
        self.run(link, &prompt);
        Ok(Some(self.input(host)))
    }

    fn end(&mut self, host: &mut dyn Host) {
        let touches = self.dice.chance(40);
        let Some(run) = self.running.take() else { return };
        let known = run.link.known();
        if known.exited.is_none() && !known.lost {
            run.link.wind_down(host, touches);
        }
        self.over = Some(run);
    }

    fn let_go(&mut self) -> bool {
        self.over.take().into_iter().chain(self.running.take()).for_each(|run| run.link.let_go());
        true
    }

    fn close(&mut self, host: &mut dyn Host, _: Instant) -> Vec<String> {
        self.dismiss(host);
        Vec::new()
    }
}
