//! An agent's process below a shim, so that it outlives the daemon.
//!
//! Owns the connection to the shim. What is sent to the agent waits here ([`KeptChild::take_loose`]) until its owner says
//! that it is decided, and what was read is acknowledged when its owner says that it is kept. Until the agent is ready for
//! prompts, and once it is being closed, both happen at once: such an agent is never kept. This file must not know what
//! bytes mean.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

use super::keeper::Keeper;
use super::tail::Tail;
use crate::proc::{Registered, has_ended};
use crate::shim::client::{Client, Event, Lost};
use crate::shim::frame::{Attached, Confined, Exit, Ladder, Rung, Standing, Status, Taken, Who};

/// The most bytes that are read before the caller is asked again.
const SLICE: usize = 64 * 1024;

/// The agent of a shim.
#[derive(Debug)]
pub(super) struct KeptChild {
    keeper: Arc<Keeper>,
    name: String,
    client: Client,
    /// The shim, if it is a child of this process.
    child: Option<(Child, Registered)>,
    agent: Who,
    confined: Confined,
    pidfd: Option<OwnedFd>,
    taken: Taken,
    progress: Instant,
    /// It is being ended, or has ended by itself.
    ending: bool,
    /// It has closed its stdout.
    closed: bool,
    status: Option<Status>,
    /// All is over: how it ended.
    exit: Option<Exit>,
    /// The connection broke: the shim is gone.
    lost: bool,
    /// What is sent goes at once.
    direct: bool,
    /// What is read is acknowledged at once.
    discarded: bool,
    /// The number of the last frame that was sent.
    number: u64,
    /// What was decided behind a frame that was not sent yet.
    ahead: BTreeMap<u64, Vec<u8>>,
    /// What is to be sent once it is decided.
    loose: Vec<Vec<u8>>,
    acknowledged: u64,
    full: bool,
}

impl KeptChild {
    /// The agent of a shim to which this daemon has attached.
    pub(super) fn new(
        keeper: Arc<Keeper>,
        name: String,
        client: Client,
        child: Option<(Child, Registered)>,
        attached: &Attached,
    ) -> Self {
        keeper.link(&name, client.descriptor());
        let agent = attached.agent.unwrap_or_default();
        Self {
            pidfd: attached.agent.and_then(hold),
            keeper,
            name,
            acknowledged: client.received(),
            client,
            child,
            agent,
            confined: attached.confined,
            taken: attached.taken,
            progress: Instant::now(),
            ending: matches!(attached.standing, Standing::Ending | Standing::Gone),
            closed: false,
            status: attached.status,
            exit: None,
            lost: false,
            direct: false,
            discarded: false,
            number: attached.taken.highest,
            ahead: BTreeMap::new(),
            loose: Vec::new(),
            full: false,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The shim's own process.
    pub(super) const fn shim(&self) -> u32 {
        self.client.shim().pid
    }

    pub(super) const fn agent(&self) -> Who {
        self.agent
    }

    pub(super) const fn confined(&self) -> Confined {
        self.confined
    }

    pub(super) const fn is_over(&self) -> bool {
        self.exit.is_some() || self.lost
    }

    /// Whether no output comes any more.
    pub(super) const fn is_silent(&self) -> bool {
        self.closed || self.is_over()
    }

    pub(super) const fn is_lost(&self) -> bool {
        self.lost
    }

    pub(super) const fn is_ending(&self) -> bool {
        self.ending || self.lost
    }

    /// Whether the agent itself has exited, asked of the kernel now.
    pub(super) fn is_gone(&self) -> bool {
        self.is_over() || self.status.is_some() || self.pidfd.as_ref().is_none_or(|fd| has_ended(fd.as_fd()))
    }

    pub(super) const fn status(&self) -> Option<Status> {
        self.status
    }

    pub(super) const fn exit(&self) -> Option<&Exit> {
        self.exit.as_ref()
    }

    /// How many bytes the agent has not taken.
    pub(super) fn outgoing(&self) -> usize {
        let waiting = usize::try_from(self.taken.waiting).unwrap_or(usize::MAX);
        if self.full { usize::MAX } else { self.client.waiting().saturating_add(waiting) }
    }

    pub(super) const fn progress(&self) -> Instant {
        self.progress
    }

    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    pub(super) const fn heard(&self) -> u64 {
        self.taken.highest
    }

    pub(super) const fn received(&self) -> u64 {
        self.client.received()
    }

    pub(super) fn set_direct(&mut self, direct: bool) {
        self.direct = direct;
        if direct {
            for bytes in std::mem::take(&mut self.loose) {
                self.send(bytes);
            }
        }
    }

    pub(super) fn discard(&mut self) {
        self.discarded = true;
        self.acknowledge(self.client.received());
    }

    pub(super) fn has_loose(&self) -> bool {
        !self.loose.is_empty()
    }

    pub(super) fn take_loose(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.loose)
    }

    pub(super) fn send(&mut self, bytes: Vec<u8>) {
        if self.direct {
            self.transmit(self.number + 1, bytes);
        } else {
            self.loose.push(bytes);
        }
    }

    /// Sends what was decided, under its number, once all before it was sent: a prompt that another thread decided may
    /// come to its worker after a frame that was decided later.
    pub(super) fn transmit(&mut self, number: u64, bytes: Vec<u8>) {
        if number <= self.number {
            return;
        }
        self.ahead.insert(number, bytes);
        if self.outgoing() == 0 {
            self.progress = Instant::now();
        }
        while let Some(bytes) = self.ahead.remove(&(self.number + 1)) {
            self.number += 1;
            let sent = self.client.input(self.number, bytes);
            self.note(sent);
        }
    }

    pub(super) fn close_input(&mut self, number: u64) {
        if number > self.number {
            self.number = number;
            let sent = self.client.close_input(number);
            self.note(sent);
        }
    }

    /// What came before the offset is kept.
    pub(super) fn acknowledge(&mut self, offset: u64) {
        if offset > self.acknowledged {
            self.acknowledged = offset;
            let sent = self.client.acknowledge(offset);
            self.note(sent);
        }
    }

    pub(super) fn end(&mut self, rung: Rung, ladder: Ladder) {
        let sent = self.client.end(rung, ladder);
        self.note(sent);
    }

    pub(super) fn start(&mut self, start: &crate::shim::start::Start) {
        let sent = self.client.start(start);
        self.note(sent);
    }

    fn note(&mut self, sent: Result<(), Lost>) {
        if let Err(why) = sent {
            self.lose(&why);
        }
    }

    fn lose(&mut self, why: &Lost) {
        if !self.is_over() {
            log::warn!("agent process {}: its shim {}: {why}", self.agent.pid, self.client.shim().pid);
            self.lost = true;
            self.keeper.unlink(&self.name);
        }
    }

    /// Takes in what is there, at most a slice. Returns why the agent was not started, if that came.
    pub(super) fn take_in(&mut self, out: &mut Vec<u8>, tail: &mut Tail) -> Option<(u64, String)> {
        let (mut left, mut trouble) = (SLICE, None);
        while left > 0 && !self.is_over() {
            match self.client.receive() {
                Ok(None) => break,
                Ok(Some(Event::Output { bytes, .. })) => {
                    out.extend_from_slice(bytes);
                    left = left.saturating_sub(bytes.len());
                }
                Ok(Some(Event::Stderr { bytes, .. })) => {
                    tail.push(bytes);
                    let pid = self.agent.pid;
                    log::debug!("agent process {pid}: {}", String::from_utf8_lossy(bytes).trim_end());
                    left = left.saturating_sub(bytes.len());
                }
                Ok(Some(Event::Started { agent, confined })) => {
                    (self.agent, self.confined) = (agent, confined);
                    self.pidfd = hold(agent);
                }
                Ok(Some(Event::Taken(taken))) => {
                    if taken.written != self.taken.written {
                        self.progress = Instant::now();
                    }
                    self.taken = taken;
                }
                Ok(Some(Event::Spool(kept))) => {
                    if kept.full {
                        let why = if kept.error == 0 { "it is full" } else { "the disk takes no more" };
                        log::warn!("agent process {}: its output waits: {why}", self.agent.pid);
                    }
                }
                Ok(Some(Event::Ending)) => self.ending = true,
                Ok(Some(Event::EndOfOutput)) => self.closed = true,
                Ok(Some(Event::Exit(exit))) => {
                    self.status = Some(exit.status);
                    self.exit = Some(exit);
                }
                Ok(Some(Event::Trouble { code, number, text })) => match code {
                    crate::shim::frame::Code::Start => trouble = Some((number, text.to_owned())),
                    crate::shim::frame::Code::InputFull => self.full = true,
                    // It is being ended: nobody takes a frame any more.
                    _ => log::debug!("agent process {}: {text}", self.agent.pid),
                },
                Err(why) => {
                    self.lose(&why);
                    break;
                }
            }
        }
        if !self.is_over() {
            if self.discarded {
                self.acknowledge(self.client.received());
            }
            let sent = self.client.flush();
            self.note(sent);
        }
        trouble
    }

    /// What to wait for, and whether for room too.
    pub(super) fn descriptor(&self) -> Option<(BorrowedFd<'_>, bool)> {
        (!self.is_over()).then(|| (self.client.descriptor(), self.client.wants_to_write()))
    }

    /// Waits for the shim alone.
    pub(super) fn wait(&self, time: Duration) {
        let _ = self.client.wait(time);
    }

    /// All of it is over and kept: the shim leaves, and is waited for.
    pub(super) fn dismiss(&mut self, until: Instant) {
        let shim = hold(self.client.shim());
        if self.exit.is_some() {
            let sent = self.client.acknowledge_exit();
            self.note(sent);
        } else {
            self.keeper.remove_socket(&self.name);
        }
        self.keeper.unlink(&self.name);
        // Whosever child it is: a daemon that leaves has left nothing behind.
        if let Some(fd) = shim {
            let time = until.saturating_duration_since(Instant::now());
            let mut fds = [rustix::event::PollFd::from_borrowed_fd(fd.as_fd(), rustix::event::PollFlags::IN)];
            let _ = time.try_into().map(|time| rustix::event::poll(&mut fds, Some(&time)));
        }
        // One that stays is reaped as a stray.
        if let Some((mut child, _registered)) = self.child.take() {
            let _ = child.try_wait();
        }
    }

    /// Kills the shim, and by that the agent itself.
    pub(super) fn kill_shim(&mut self) {
        let shim = self.client.shim();
        if let Some(fd) = hold(shim) {
            let _ = rustix::process::pidfd_send_signal(&fd, Signal::KILL);
        }
        self.lost = true;
    }

    /// Goes away and leaves the agent running.
    pub(super) fn let_go(&mut self) {
        self.keeper.unlink(&self.name);
        if let Some((child, registered)) = self.child.take() {
            // The shim is no stray: nobody here ends it.
            std::mem::forget(registered);
            drop(child);
        }
    }
}

/// A descriptor of that very process.
fn hold(who: Who) -> Option<OwnedFd> {
    let fd = hold_pid(who.pid)?;
    super::is_alive(who.pid, who.start).then_some(fd)
}

fn hold_pid(pid: u32) -> Option<OwnedFd> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    rustix::process::pidfd_open(raw, PidfdFlags::empty()).ok()
}
