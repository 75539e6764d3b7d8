//! Agents: whatever answers a message. One trait, five kinds: `acp`, `exec`, `openai`, `lua`, `echo`.
//!
//! An agent lives on its session's worker thread and is called by it alone. It owns what speaks to the outside (a child
//! process and its pipes, a socket) and nothing durable: the transcript, the queue, the marks and every deadline of a
//! turn belong to the worker, which lends itself as a [`Host`]. An agent must not know the store, the hooks or the API.
//!
//! A turn is a value, not a place on the stack: [`Agent::begin`] (or [`Agent::listen`]) starts it, [`Agent::input`]
//! takes it a step further whenever a descriptor is ready, a letter came or an instant passed, and [`Agent::end`]
//! clears up. Between two calls all that is known of the turn (process, pipes, unread bytes, open requests) is in the
//! agent, so that a worker can put it down there and take it up again. `openai` and `lua` live in this process and run
//! a turn to its end in `begin`.
//!
//! The one rule of blocking: what does wait (a start, an end, a close, those two) waits in [`Host::wait`] or on
//! something that the host can wake through [`Host::waker`]; so a cancel, a kill and a permission's answer always reach
//! it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

pub mod acp;
pub mod echo;
pub mod exec;
pub mod json;
mod lines;
pub mod lua;
pub mod openai;
pub mod process;
mod text;

/// What an agent is told of the session that it serves. Fixed for one activation.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The key, `channel:conversation[:thread]`.
    pub key: String,
    /// The session's id.
    pub session_id: String,
    /// The session's row, which tags every process of an agent.
    pub sid: i64,
    /// The daemon's boot id, which marks every process of an agent.
    pub boot_id: String,
    /// The working directory, made and absolute.
    pub cwd: PathBuf,
}

/// How the agent's own session was come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Continuity {
    /// The agent has no session of its own (exec, openai, lua, echo).
    Stateless,
    /// A new one, because the conversation is new.
    New,
    /// The agent knew the session and goes on.
    Kept,
    /// The agent had lost the session: a new one was made, and the first prompt will carry history as its context.
    Lost,
}

/// What came of [`Agent::start`].
#[derive(Clone, Debug)]
pub struct Started {
    /// The agent's own session id, to be kept for the next activation (ACP).
    pub agent_session: Option<String>,
    /// How it was come by.
    pub continuity: Continuity,
}

/// What went wrong with an agent, told to the sender as the turn's error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Stable word: `agent_start`, `agent_option`, `auth_required`, `agent_died`, `agent_error`, `agent_refused`,
    /// `timeout`.
    pub code: &'static str,
    /// For people: `what: why`, with the exit status and the tail of stderr where there is one.
    pub message: String,
}

impl Failure {
    /// A failure with a stable code and a message for people.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

/// How far a turn has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It goes on: [`Agent::input`] is to be called when one of [`Agent::watches`] is ready, a letter came, or the
    /// instant has passed.
    Pending {
        /// The agent's own next instant, if it has one. The turn's deadlines are the host's.
        until: Option<Instant>,
    },
    /// It is over: [`Agent::end`] is to be called, and nothing else of the turn any more.
    Done(Answer),
}

/// One prompt. Never empty.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// The turn's id.
    pub turn_id: String,
    /// Everything that the agent is to answer, the daemon's own notes included.
    pub text: String,
    /// Put before the prompt: context given by hooks.
    pub context: Option<String>,
    /// Its number among the frames that are sent to an agent below a shim.
    pub frame: Option<u64>,
    /// Whether this runs again what an interrupted turn had begun.
    pub resumed: bool,
}

/// How a prompt ended. What the agent said went through [`Host::said`] before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The whole answer was given. `stop_reason` is the agent's own word, where it has one.
    Completed {
        /// `end_turn`, `max_tokens`, …
        stop_reason: Option<String>,
    },
    /// No whole answer will come.
    Failed(Failure),
    /// It ended because of an interrupt ([`Host::interrupt`]), whatever the agent called it.
    Cancelled,
}

/// One tool call, as far as it is known. Upserted by `id`: a `None` leaves what was known.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ToolCall {
    /// The agent's id for the call.
    pub id: String,
    /// One line for people.
    pub title: Option<String>,
    /// `read edit delete move search execute think fetch switch_mode other`.
    pub kind: Option<String>,
    /// `pending in_progress completed failed`.
    pub status: Option<String>,
    /// The agent's raw fields (`rawInput`, `rawOutput`, `content`, `locations`), bounded in size.
    pub detail: Option<serde_json::Value>,
}

impl ToolCall {
    /// Takes in what is new of the call; what it does not name stays as it was, also of the detail's fields.
    pub fn merge(&mut self, news: Self) {
        self.title = news.title.or(self.title.take());
        self.kind = news.kind.or(self.kind.take());
        self.status = news.status.or(self.status.take());
        self.detail = match (self.detail.take(), news.detail) {
            (Some(serde_json::Value::Object(mut known)), Some(serde_json::Value::Object(news))) => {
                known.extend(news);
                Some(serde_json::Value::Object(known))
            }
            (known, news) => news.or(known),
        };
    }
}

/// A text of an agent's as one line, of at most so many bytes: nothing in it ends a line, moves a cursor or turns the
/// direction of what follows.
#[must_use]
pub fn one_line(text: &str, limit: usize) -> String {
    let plain = |c: char| match c {
        c if c.is_control() => ' ',
        '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => ' ',
        c => c,
    };
    let end = (0..=limit.min(text.len())).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0);
    let mut line: String = text[..end].chars().map(plain).collect();
    if end < text.len() {
        line.push('…');
    }
    line
}

/// Something that the agent says in a turn, in the order in which it says it.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// A piece of the answer.
    Text(String),
    /// A piece of reasoning.
    Thought(String),
    /// A tool call began or changed.
    Tool(ToolCall),
    /// The whole plan: replaces the one before. An array of `{content, priority, status}`.
    Plan(serde_json::Value),
    /// Tokens and cost, as the agent gives them.
    Usage(serde_json::Value),
    /// Anything else the sender should see: a code and a text.
    Notice(String, String),
}

/// Passes on what an agent says, unless it is an empty text or thought.
pub fn say(host: &mut dyn Host, said: Said) {
    if !matches!(&said, Said::Text(text) | Said::Thought(text) if text.is_empty()) {
        host.said(said);
    }
}

/// A choice that the agent offers when it asks for permission.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PermissionOption {
    /// The agent's own id, sent back as it came.
    pub option_id: String,
    /// For people.
    pub name: String,
    /// `allow_once allow_always reject_once reject_always`, or what the agent wrote.
    pub kind: String,
}

/// The agent asks for permission.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct PermissionRequest {
    /// Ours, unique within the activation; names the request in the API.
    pub request_id: String,
    /// The tool call that it is about, as far as known.
    pub tool: ToolCall,
    /// What it offers; at least one.
    pub options: Vec<PermissionOption>,
}

/// How a permission was settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PermissionOutcome {
    /// An option that the agent offered.
    Selected(String),
    /// Withdrawn by a cancel, an interrupt or a stop.
    Cancelled,
}

/// How firmly the agent is asked to end what it does. It only rises within a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Interrupt {
    /// Cancel by protocol, then by signals; the turn is to be over by the instant, whatever it takes.
    Cancel(Instant),
    /// Kill the process group at once.
    Kill,
}

/// Why [`Host::wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// At least one descriptor is ready; `ready[i]` was set for each.
    Ready,
    /// The instant passed.
    Timeout,
    /// A letter came: look at [`Host::interrupt`] and [`Host::permission_answers`].
    Letter,
}

/// One descriptor to wait for.
#[derive(Debug)]
pub struct Watch<'a> {
    /// Which.
    pub fd: BorrowedFd<'a>,
    /// Wait until it can be read (end of file and errors count).
    pub read: bool,
    /// Wait until it can be written.
    pub write: bool,
    /// Set by [`Host::wait`].
    pub ready: bool,
}

/// A shim that listens, and whose agent is not started yet.
#[derive(Clone, PartialEq, Eq)]
pub struct NewShim {
    /// The name of its socket.
    pub name: String,
    /// The secret that it shares with the daemon.
    pub token: [u8; 32],
    /// The boot of the machine.
    pub machine: String,
    /// Its process.
    pub pid: u32,
    /// That process's start time.
    pub start: u64,
}

impl std::fmt::Debug for NewShim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewShim").field("name", &self.name).field("pid", &self.pid).finish_non_exhaustive()
    }
}

/// How far the output of an agent below a shim was taken, and what is to be sent because of that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The shim.
    pub shim: String,
    /// All bytes before this offset were taken.
    pub offset: u64,
    /// And so many messages of the line that begins there.
    pub skip: usize,
    /// What the agent must know to go on from here in another daemon, as JSON.
    pub state: String,
    /// What is to be sent once this is durable.
    pub frames: Vec<Vec<u8>>,
    /// The shim has all frames up to this one.
    pub heard: u64,
    /// The shim waits for it to be kept: it has to tell the exit.
    pub urgent: bool,
}

/// What is durable since it was asked last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durable {
    /// Up to there the output is kept.
    pub offset: Option<u64>,
    /// What may be sent now, by number.
    pub frames: Vec<(u64, Vec<u8>)>,
}

impl Durable {
    /// More is durable.
    pub fn add(&mut self, offset: i64, frames: Vec<(i64, Vec<u8>)>) {
        self.offset = self.offset.max(u64::try_from(offset).ok());
        let numbered = frames.into_iter().filter_map(|(number, bytes)| Some((u64::try_from(number).ok()?, bytes)));
        self.frames.extend(numbered);
    }
}

/// An agent that has outlived a daemon, for [`Agent::attach`].
#[derive(Debug)]
pub struct Outlived {
    /// Its process, attached to; `None`: it was never started (a command, once a turn).
    pub process: Option<process::Process>,
    /// Up to there its output is kept.
    pub offset: u64,
    /// And so many messages of the line that begins there.
    pub skip: usize,
    /// What it had marked there.
    pub state: Option<String>,
    /// The number of the last frame that was decided.
    pub frames: u64,
    /// What was decided to be sent to it, by number.
    pub unsent: Vec<(u64, Vec<u8>)>,
    /// The turn that runs.
    pub running: Option<RunsOn>,
}

/// A turn that runs on.
#[derive(Clone, Debug)]
pub struct RunsOn {
    /// Its prompt; `None`: the agent has begun it by itself.
    pub prompt: Option<Prompt>,
    /// Its tool calls so far.
    pub tools: Vec<ToolCall>,
    /// What the agent had marked belongs to this turn.
    pub marked: bool,
}

/// What a worker lends to its agent. All of it is called on the worker's thread.
pub trait Host {
    /// Who the agent serves.
    fn identity(&self) -> &Identity;

    /// The monotonic clock, for the agent's own instants.
    fn now(&self) -> Instant {
        Instant::now()
    }

    /// Waits for a descriptor, a letter, or the instant (`None`: the turn's own deadlines still end it with a letter).
    fn wait(&mut self, watches: &mut [Watch<'_>], until: Option<Instant>) -> Wake;

    /// The interrupt in force, if any. The turn's own timeouts appear here too.
    fn interrupt(&self) -> Option<Interrupt>;

    /// When the turn's own timeouts end it, for code that cannot wait with [`Host::wait`]. Past it, a `wait` makes the
    /// interrupt.
    fn deadline(&self) -> Option<Instant>;

    /// A flag that is set from the moment an interrupt is in force, for code that can only look (a Lua hook).
    fn interrupted_flag(&self) -> Arc<std::sync::atomic::AtomicBool>;

    /// A descriptor that becomes readable when a letter comes, for code that must poll by itself.
    fn waker(&self) -> std::io::Result<Arc<OwnedFd>>;

    /// Whether the agent may say more: else the store takes nothing now, and it is to wait in [`Host::wait`] before it
    /// reads on. A worker sees to that for an agent whose turn goes step by step.
    fn has_room(&self) -> bool {
        true
    }

    /// The agent says something. Text is committed within 100 ms and before anything that follows it.
    fn said(&mut self, what: Said);

    /// The agent asks for permission. `Some`: settled at once by policy. `None`: the answer comes as a letter.
    fn permission(&mut self, request: PermissionRequest) -> Option<PermissionOutcome>;

    /// An open request is taken back, by its `agent` or, because the turn is cancelled, by the `daemon`: nobody is asked
    /// any more. Its outcome comes as an answer: `Cancelled`, or what somebody has answered just before.
    fn permission_withdrawn(&mut self, request_id: &str, by: &'static str);

    /// The permissions settled since the last call: request id and outcome.
    fn permission_answers(&mut self) -> Vec<(String, PermissionOutcome)>;

    /// A process of the agent began: noted durably, so that the next boot finds it. `start` is its start time in clock
    /// ticks since boot, field 22 of `/proc/PID/stat`.
    fn process_started(&mut self, pid: u32, start: u64);

    /// What agents' shims have in common; `None`: an agent is a plain child of the daemon.
    fn keeper(&self) -> Option<Arc<process::Keeper>> {
        None
    }

    /// A shim listens. It is noted durably; only then may its agent be started.
    ///
    /// # Errors
    /// It is not noted: says why.
    fn shim_started(&mut self, _shim: NewShim) -> Result<(), String> {
        Ok(())
    }

    /// The bounds of an agent that is about to be started below a shim (its name and pid), or without one; variables of its
    /// environment may be added.
    ///
    /// # Errors
    /// It may not be started so: says why.
    fn bound(
        &mut self,
        _shim: Option<(&str, u32)>,
        _env: &mut BTreeMap<String, OsString>,
    ) -> Result<Option<process::Bound>, String> {
        Ok(None)
    }

    /// A process of the agent runs, or has outlived another daemon.
    fn process_runs(&mut self, _process: &process::Process) {}

    /// A shim is gone, with all that its agent had started.
    fn shim_ended(&mut self, _name: &str) {}

    /// The agent below a shim is ready for prompts, after so many frames: from here on it may outlive the daemon.
    ///
    /// # Errors
    /// That is not noted: says why.
    fn agent_ready(&mut self, _frames: u64, _session: &str, _mark: Mark) -> Result<(), String> {
        Ok(())
    }

    /// What was read up to here was taken in, and all that the agent said so far belongs to it.
    fn mark(&mut self, _mark: Mark) {}

    /// The same at the end of a turn: it becomes durable with the turn's outcome, and not before.
    fn mark_last(&mut self, _mark: Mark) {}

    /// Whether a mark should come before more is read: what was said is to be durable.
    fn wants_mark(&self) -> bool {
        false
    }

    /// What of the marks is durable.
    fn durable(&mut self) -> Durable {
        Durable::default()
    }

    /// Whether the agent's last process before this activation had no time to write anything down.
    fn left_unclean(&mut self) -> bool {
        false
    }

    /// Whether a turn was answered to its end: the agent should remember it.
    fn is_completed(&mut self, _turn_id: &str) -> bool {
        true
    }

    /// The newest whole entries of the transcript that fit into `limit` bytes, oldest first, without the current turn.
    fn history(&mut self, limit: u64) -> Vec<Entry>;
}

pub use crate::model::event::Entry;

/// Whatever answers messages. Called by one thread at a time.
pub trait Agent: Send {
    /// Makes the agent ready for prompts; called before the first prompt and again after the agent died.
    /// `agent_session` is the agent's own session id of an earlier activation; `had_turns`: the transcript has a turn
    /// that the agent should remember. A stateless agent without a process has nothing to do here.
    ///
    /// # Errors
    /// The agent cannot be started, did not speak its protocol, or an interrupt came. Nothing is left running then.
    fn start(
        &mut self,
        _host: &mut dyn Host,
        _agent_session: Option<&str>,
        _had_turns: bool,
        _until: Instant,
    ) -> Result<Started, Failure> {
        Ok(Started { agent_session: None, continuity: Continuity::Stateless })
    }

    /// Whether the next prompt needs no `start` before it.
    fn is_ready(&self) -> bool {
        true
    }

    /// Begins a turn with a prompt, and takes it as far as it goes without waiting.
    fn begin(&mut self, host: &mut dyn Host, prompt: &Prompt) -> Progress;

    /// Begins a turn that the agent itself has begun ([`Agent::wants_turn`]); it is over when the agent has said
    /// nothing for a while.
    fn listen(&mut self, _host: &mut dyn Host) -> Progress {
        Progress::Done(Answer::Completed { stop_reason: None })
    }

    /// Takes the turn further: looks at what is there to be read, at [`Host::interrupt`], at
    /// [`Host::permission_answers`] and at the time. Does not wait. Once an interrupt is in force the turn is over in
    /// bounded time.
    ///
    /// Only called while a turn is [`Progress::Pending`]; an agent that runs to its end in [`Agent::begin`] never gets
    /// here.
    fn input(&mut self, _host: &mut dyn Host) -> Progress {
        Progress::Done(Answer::Cancelled)
    }

    /// The turn is over, and its answer is known: ends what it left behind (a command's processes; an agent's process
    /// that is of no more use). Waits in [`Host::wait`], for a few seconds at most.
    fn end(&mut self, _host: &mut dyn Host) {}

    /// Descriptors to watch. When one is ready, [`Agent::input`] is called in a turn and [`Agent::idle`] between turns.
    fn watches(&self) -> Vec<Watch<'_>> {
        Vec::new()
    }

    /// Takes in what came between turns (late updates, end of file). Must not block.
    fn idle(&mut self, _host: &mut dyn Host) {}

    /// Whether it has begun to say or ask something between turns: [`Agent::listen`] is to be called, in a turn of its
    /// own.
    fn wants_turn(&self) -> bool {
        false
    }

    /// Something that was marked has become durable: says so to the agent's shim, and sends what waited for it.
    fn durable(&mut self, _host: &mut dyn Host) {}

    /// Goes on with an agent that has outlived a daemon. `Some`: its turn goes on.
    ///
    /// # Errors
    /// What it had marked cannot be used. It is to be closed.
    fn attach(&mut self, _host: &mut dyn Host, _outlived: Outlived) -> Result<Option<Progress>, Failure> {
        Err(Failure::new("internal", "this agent lives in the daemon"))
    }

    /// Goes away and leaves an agent below a shim running. `false`: it has none, and is to be closed.
    fn let_go(&mut self) -> bool {
        false
    }

    /// Ends it, with everything it started: protocol, end of input, SIGTERM, SIGKILL, stray descendants; each step
    /// skipped when nothing is left, all of it over by the instant. Never fails: what could not be ended is returned, a
    /// line for each (pid and name).
    fn close(&mut self, _host: &mut dyn Host, _until: Instant) -> Vec<String> {
        Vec::new()
    }
}
