//! The client's side of a connection: one process, numbered requests, one event after the other.
//!
//! Owns the process and the bytes in flight; it must not know sessions or turns. It refuses methods that ostler does
//! not offer and skips lines without a message, so sessions never see them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::wire::{self, Id, Lost, Message, RpcError};
use crate::agent::json::Raw;
use crate::agent::lines::{Line, Lines, Skipping};
use crate::agent::process::Process;
use crate::agent::{Host, Wake, one_line};

/// The longest line that is read, in bytes: whole images and whole files come on one line.
const LINE_LIMIT: usize = 32 * 1024 * 1024;
/// How many lines without a message are logged for one process.
const JUNK_LOGGED: u32 = 20;
/// How much of an agent's last line is shown, in bytes.
const LAST_SHOWN: usize = 500;
/// How long to wait for the exit status of an agent that has closed its output.
pub const EXIT_AFTER_EOF: Duration = Duration::from_millis(500);

/// Something that an agent did.
#[derive(Debug)]
pub enum Event {
    /// A request: id, method, parameters.
    Request(Id, String, String),
    /// A notification: method, parameters.
    Notification(String, String),
    /// The answer to our request of this number.
    Response(u64, Result<String, RpcError>),
    /// An unreadable message. If it was a request, it has been refused.
    Lost(Lost),
    /// The agent has exited or closed its output: nothing more will come.
    Gone,
    /// The deadline has passed.
    Timeout,
    /// The host may have a letter or an interrupt: the caller must check.
    CheckHost,
    /// The agent does not read its input.
    Deaf,
}

/// Why a request has no result.
#[derive(Debug)]
pub enum CallError {
    /// The agent refused it.
    Refused(RpcError),
    /// The answer was unreadable.
    Lost(String),
    /// The agent died.
    Gone,
    /// The deadline has passed.
    Timeout,
    /// An interrupt is in force.
    Interrupted,
}

/// What another daemon must know of a connection.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct SavedClient {
    requests: u64,
    skipping: Skipping,
}

/// A connection to an agent.
#[derive(Debug)]
pub struct Client {
    /// The agent's process.
    pub process: Process,
    lines: Lines,
    read: Vec<u8>,
    /// The other messages of the line that was read last.
    messages: VecDeque<Message>,
    /// Where that line began, and how many of its messages were given out.
    line: (u64, usize),
    /// So many messages of the next line were handled by another daemon.
    skip: usize,
    requests: u64,
    junk: u32,
    /// The last line without a message: some agents say there why they exit.
    last_junk: String,
}

impl Client {
    /// A connection to this process.
    pub fn new(process: Process) -> Self {
        Self {
            process,
            lines: Lines::new(LINE_LIMIT),
            read: Vec::new(),
            messages: VecDeque::new(),
            line: (0, 0),
            skip: 0,
            requests: 0,
            junk: 0,
            last_junk: String::new(),
        }
    }

    /// Goes on with the connection of another daemon from an offset, and so many messages of the line that begins there.
    pub fn resume(process: Process, (offset, skip): (u64, usize), saved: SavedClient) -> Self {
        let SavedClient { requests, skipping } = saved;
        let lines = Lines::resume(LINE_LIMIT, offset, skipping);
        Self { lines, requests, skip, line: (offset, 0), ..Self::new(process) }
    }

    /// What another daemon must know of it.
    pub fn saved(&self) -> SavedClient {
        SavedClient { requests: self.requests, skipping: self.lines.skipping() }
    }

    /// All before this offset was given out, and so many messages of the line that begins there.
    pub fn position(&self) -> (u64, usize) {
        if !self.messages.is_empty() {
            return self.line;
        }
        if self.process.is_drained() && self.lines.is_dry() {
            // The end of a last line that has no end is no message, and its exit is told once that is acknowledged.
            return (self.process.received(), 0);
        }
        (self.lines.position(), 0)
    }

    /// The number that the next request will have.
    pub const fn next_number(&self) -> u64 {
        self.requests + 1
    }

    /// That request was sent by another daemon.
    pub const fn note_request(&mut self) {
        self.requests += 1;
    }

    /// Sends a request that is decided already, as this frame, and returns its number.
    pub fn request_as(&mut self, frame: Option<u64>, method: &str, params: &Value) -> u64 {
        let Some(frame) = frame.filter(|_| self.process.shim().is_some()) else { return self.request(method, params) };
        self.requests += 1;
        self.process.transmit(frame, wire::request(self.requests, method, params));
        self.requests
    }

    /// Sends a request and returns its number.
    pub fn request(&mut self, method: &str, params: &Value) -> u64 {
        self.requests += 1;
        self.process.send(&wire::request(self.requests, method, params));
        self.requests
    }

    /// Sends a notification.
    pub fn notify(&mut self, method: &str, params: &Value) {
        self.process.send(&wire::notification(method, params));
    }

    /// Answers a request.
    pub fn respond(&mut self, id: &Id, result: &Value) {
        self.process.send(&wire::response(id, result));
    }

    /// Refuses a request for a method that is not offered.
    pub fn refuse(&mut self, id: &Id, method: &str) {
        self.process.send(&wire::refusal(Some(id), -32601, &format!("{method}: not offered by this client")));
    }

    /// The next event. Returns [`Event::CheckHost`] after each slice that was read, so the caller can check the host
    /// even if the agent writes without a pause.
    pub fn next(&mut self, host: &mut dyn Host, until: Option<Instant>) -> Event {
        if let Some(event) = self.next_read() {
            return event;
        }
        if self.process.is_drained() {
            return Event::Gone;
        }
        let deaf = self.process.write_deadline();
        let nearest = [until, deaf].into_iter().flatten().min();
        let wake = self.process.step(host, nearest, &mut self.read);
        self.lines.push(&self.read);
        self.read.clear();
        let now = Instant::now();
        match wake {
            Wake::Timeout if until.is_some_and(|t| t <= now) => Event::Timeout,
            _ if self.process.write_deadline().is_some_and(|t| t <= now) => Event::Deaf,
            Wake::Timeout | Wake::Ready | Wake::Letter => Event::CheckHost,
        }
    }

    /// Reads a slice of the output without waiting.
    pub fn take_in(&mut self) {
        self.process.take_in(&mut self.read);
        self.lines.push(&self.read);
        self.read.clear();
    }

    /// The next event in what has been read.
    pub fn next_ready(&mut self) -> Option<Event> {
        self.next_read().or_else(|| self.process.is_drained().then_some(Event::Gone))
    }

    /// The next event that is there, without waiting.
    pub fn try_next(&mut self) -> Option<Event> {
        if let Some(event) = self.next_read() {
            return Some(event);
        }
        self.take_in();
        self.next_ready()
    }

    /// Sends a request and waits for the answer. Notifications in between go to `told`, requests in between are
    /// refused.
    pub fn call(
        &mut self,
        host: &mut dyn Host,
        (method, params): (&str, &Value),
        until: Instant,
        told: &mut dyn FnMut(&str, Raw<'_>),
    ) -> Result<String, CallError> {
        let number = self.request(method, params);
        loop {
            if host.interrupt().is_some() {
                return Err(CallError::Interrupted);
            }
            match self.next(host, Some(until)) {
                Event::Response(n, answer) if n == number => return answer.map_err(CallError::Refused),
                Event::Notification(method, params) => told(&method, Raw::of(&params)),
                Event::Request(id, method, _) => self.refuse(&id, &method),
                Event::Gone => return Err(CallError::Gone),
                Event::Timeout | Event::Deaf => return Err(CallError::Timeout),
                Event::Lost(lost) if lost.answers() == Some(number) => return Err(CallError::Lost(lost.what)),
                Event::Response(..) | Event::Lost(_) | Event::CheckHost => {}
            }
            // An agent that is not ready for prompts, or not any more, is not kept.
            let (taken, _) = self.position();
            self.process.acknowledge(taken);
            // A flood of updates must not outrun the deadline.
            if Instant::now() >= until {
                return Err(CallError::Timeout);
            }
        }
    }

    /// The last line that it wrote, for the sender of the message. The kept part of its stderr goes to the operator's
    /// log.
    pub fn last_line(&self, host: &dyn Host, how: &str) -> String {
        let tail = self.process.stderr_tail();
        if !tail.is_empty() {
            log::warn!("{}: the agent's process {} {how}; it wrote: {tail}", host.identity().key, self.process.id());
        }
        let last = tail.lines().rev().map(str::trim).find(|line| !line.is_empty());
        one_line(last.unwrap_or(&self.last_junk), LAST_SHOWN)
    }

    /// How the agent ended, for people: exit status or signal, and its last line. If it has only closed its output,
    /// waits a moment for the exit.
    pub fn epitaph(&mut self, host: &mut dyn Host) -> String {
        let until = Instant::now() + EXIT_AFTER_EOF;
        while !self.process.has_exited() && Instant::now() < until && host.interrupt().is_none() {
            self.process.step(host, Some(until), &mut self.read);
            self.read.clear();
        }
        self.how_it_ended(host)
    }

    /// As [`Self::epitaph`], without waiting for the exit.
    pub fn how_it_ended(&self, host: &dyn Host) -> String {
        let how = self.process.exit_text().unwrap_or_else(|| "closed its output".to_string());
        let last = self.last_line(host, &how);
        if last.is_empty() { how } else { format!("{how}: {last}") }
    }

    fn next_read(&mut self) -> Option<Event> {
        loop {
            let Some(message) = self.messages.pop_front() else {
                self.line = (self.lines.position(), 0);
                match self.lines.next(Message::read)? {
                    Line::Whole(messages) => {
                        self.messages = messages.into();
                        self.line.1 = std::mem::take(&mut self.skip).min(self.messages.len());
                        self.messages.drain(..self.line.1);
                    }
                    Line::TooLong(bytes, ends) => {
                        self.messages.push_back(Message::Lost(Lost::too_long(bytes, &ends)));
                    }
                }
                continue;
            };
            self.line.1 += 1;
            match message {
                Message::Request(id, method, params) => return Some(Event::Request(id, method, params)),
                Message::Notification(method, params) => return Some(Event::Notification(method, params)),
                Message::Response(number, answer) => return Some(Event::Response(number, answer)),
                Message::Lost(lost) => {
                    log::warn!("agent process {}: {}", self.process.id(), lost.what);
                    if lost.is_request() {
                        let why = format!("{}: the request was not handled", lost.what);
                        self.process.send(&wire::refusal(lost.id.as_ref(), wire::PARSE_ERROR, &why));
                    }
                    return Some(Event::Lost(lost));
                }
                Message::Junk(head) => self.log_junk(&head),
            }
        }
    }

    fn log_junk(&mut self, text: &str) {
        self.junk = self.junk.saturating_add(1);
        text.clone_into(&mut self.last_junk);
        if self.junk <= JUNK_LOGGED {
            let last = if self.junk == JUNK_LOGGED { "; further ones are not logged" } else { "" };
            log::warn!("agent process {}: skipped a line without a message: {text}{last}", self.process.id());
        }
    }
}
