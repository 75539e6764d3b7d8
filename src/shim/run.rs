//! The shim's one thread: it waits for its agent, its daemon, signals and instants, and does what the machine says.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Signal;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};

use super::buffer::{BLOCK, Buffer, Took};
use super::child::Agent;
use super::conn::{self, Candidate, Conn};
use super::family;
use super::frame::{Standing, Who};
use super::input::Input;
use super::launch::{PROGRAM, READY, SEED, Seed};
use super::machine::{Action, Machine, Millis};
use super::proof::Place;
use super::ring::Ring;
use crate::proc::procfs;
use crate::sys;

mod daemon;

/// The most output that is kept in memory.
pub const MEMORY: usize = 1024 * 1024;
/// The most packets, reads or connections that are taken before the others are looked at again.
const TURNS: usize = 16;
/// After so long a failed spool is tried again.
const RETRY: Millis = 1000;
/// After so long without anything else the daemon hears how the input stands.
const SOON: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Runs a shim until it has nothing more to do.
#[must_use]
pub fn main() -> ExitCode {
    // A shim that has lost its way must not go on: its agent dies with it, and the daemon sees that.
    std::panic::set_hook(Box::new(|_| std::process::abort()));
    sys::close_from(3);
    sys::give_blocks_back();
    match Shim::begin() {
        Ok(mut shim) => {
            shim.run();
            ExitCode::SUCCESS
        }
        Err(e) => {
            let _ = writeln!(io::stdout(), "{e}");
            ExitCode::from(2)
        }
    }
}

/// Now, by the clock that also runs while the machine sleeps.
fn now() -> Millis {
    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000)
}

/// The shim.
struct Shim {
    seed: Seed,
    place: Place,
    own: Who,
    dir: OwnedFd,
    listener: OwnedFd,
    /// The socket's file: device and inode.
    made: (u64, u64),
    signals: OwnedFd,
    timer: OwnedFd,
    timer_at: Option<Millis>,
    machine: Machine,
    agent: Option<Agent>,
    output: Buffer,
    input: Input,
    errors: Ring,
    candidates: Vec<Candidate>,
    /// How many ever came.
    peers: u64,
    conn: Option<Conn>,
    /// What packets are received into; empty while it is not needed.
    packet: Vec<u8>,
    /// What waits for the agent cannot be read from its spool.
    input_stuck: bool,
    /// When the spool is tried again.
    retry_at: Option<Millis>,
    /// Since when the daemon is to hear how the input stands. That waits for a moment: alone it would wake the daemon just
    /// before an answer does.
    owes_taken: Option<Millis>,
    /// Nothing else happened meanwhile.
    overdue: bool,
    leaving: bool,
}

/// What is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ready {
    Signal,
    Timer,
    Listener,
    Candidate(u64),
    Conn,
    Stdin,
    Stdout,
    Stderr,
}

impl Shim {
    /// Reads what it is given, listens, says so, and cuts every tie to whoever started it.
    fn begin() -> io::Result<Self> {
        let bad = |e: &dyn std::fmt::Display| io::Error::other(format!("{PROGRAM} is started by ostler: {e}"));
        let mut bytes = Vec::new();
        if rustix::termios::isatty(rustix::stdio::stdin()) {
            return Err(bad(&"nobody else has a use for it"));
        }
        // Not by the library's own stdin, which keeps a buffer for good.
        File::open("/proc/self/fd/0")?.take(SEED as u64).read_to_end(&mut bytes)?;
        let seed = Seed::decode(&bytes).map_err(|e| bad(&e))?;
        bytes.fill(0);
        let dir = rustix::fs::openat(CWD, c".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        // It may lead its group already, if it was started by hand.
        let _ = rustix::process::setsid();
        let _ = rustix::thread::set_name(c"ostler-shim");
        rustix::process::chdir(c"/")?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        let read = [Signal::TERM, Signal::CHILD].map(Signal::as_raw);
        // A file's size limit is a full spool, and not an end.
        let ignored = [Signal::HUP, Signal::INT, Signal::XFSZ].map(Signal::as_raw);
        let signals = sys::signal_descriptor(&read, &ignored)?;
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let place = Place::here(seed.device, seed.inode)?;
        let pid = std::process::id();
        let own = Who { pid, start: procfs::stat(pid).ok_or(io::ErrorKind::NotFound)?.start };
        let (listener, made) = conn::listen(dir.as_fd(), seed.name.as_str())?;
        // Nothing of the starter's is held any more when it hears that this one listens.
        let mut starter = File::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?);
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        let _ = starter.write_all(&[READY]);
        let machine = Machine::new(now(), seed.patience);
        Ok(Self {
            seed,
            place,
            own,
            dir,
            listener,
            made,
            signals,
            timer,
            timer_at: None,
            machine,
            agent: None,
            output: Buffer::new(MEMORY),
            input: Input::default(),
            errors: Ring::default(),
            candidates: Vec::new(),
            peers: 0,
            conn: None,
            packet: Vec::new(),
            input_stuck: false,
            retry_at: None,
            owes_taken: None,
            overdue: false,
            leaving: false,
        })
    }

    fn run(&mut self) {
        loop {
            self.act();
            self.tell();
            if self.leaving {
                break;
            }
            self.set_timer();
            let all = self.wait();
            self.overdue = all.is_empty();
            for ready in all {
                match ready {
                    Ready::Signal => self.take_signals(),
                    Ready::Timer => self.tick(),
                    Ready::Listener => self.accept(),
                    Ready::Candidate(n) => self.greet(n),
                    Ready::Conn => self.take_requests(),
                    Ready::Stdin => self.write_input(),
                    Ready::Stdout => self.read_output(),
                    Ready::Stderr => self.read_errors(),
                }
            }
        }
        family::reap(None);
        self.unlink();
    }

    /// Waits until something is ready. What was ready is looked at in this order: first what ends, then what comes in.
    fn wait(&self) -> Vec<Ready> {
        let mut what = vec![Ready::Signal, Ready::Timer, Ready::Listener];
        let of = |fd, flags| PollFd::from_borrowed_fd(fd, flags);
        let mut fds = vec![
            of(self.signals.as_fd(), PollFlags::IN),
            of(self.timer.as_fd(), PollFlags::IN),
            of(self.listener.as_fd(), PollFlags::IN),
        ];
        let mut add = |ready, fd| {
            what.push(ready);
            fds.push(fd);
        };
        if let Some(agent) = &self.agent {
            if let Some(stdout) = agent.stdout.as_ref().filter(|_| self.output.has_room()) {
                add(Ready::Stdout, of(stdout.as_fd(), PollFlags::IN));
            }
            if let Some(stderr) = &agent.stderr {
                add(Ready::Stderr, of(stderr.as_fd(), PollFlags::IN));
            }
            if let Some(stdin) = agent.stdin.as_ref().filter(|_| self.input.waits() && !self.input_stuck) {
                add(Ready::Stdin, of(stdin.as_fd(), PollFlags::OUT));
            }
        }
        if let Some(conn) = &self.conn {
            let flags = if conn.blocked { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            add(Ready::Conn, of(conn.descriptor(), flags));
        }
        for candidate in &self.candidates {
            add(Ready::Candidate(candidate.number), of(candidate.descriptor(), PollFlags::IN));
        }
        let until = self.owes_taken.map(|_| &SOON);
        match poll(&mut fds, until) {
            Ok(_) => {}
            Err(Errno::INTR) => return Vec::new(),
            // Nothing can be waited for. The agent dies with this process, and the daemon sees that.
            Err(_) => std::process::abort(),
        }
        what.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty()).map(|(ready, _)| ready).collect()
    }

    /// Sets the one timer to the next instant.
    fn set_timer(&mut self) {
        let greetings = self.candidates.iter().map(|c| c.until);
        let next = self.machine.deadline().into_iter().chain(self.retry_at).chain(greetings).min();
        if next == self.timer_at {
            return;
        }
        let nought = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Instants are counted from a millisecond that had begun: one more, and nothing comes too early.
        let value = next.map(|at| at.saturating_add(1)).map_or(nought, |at| Timespec {
            tv_sec: i64::try_from(at / 1000).unwrap_or(i64::MAX),
            // An instant of nought would switch the timer off.
            tv_nsec: i64::try_from(at % 1000 * 1_000_000).unwrap_or(0).max(1),
        });
        let time = Itimerspec { it_interval: nought, it_value: value };
        if timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &time).is_ok() {
            self.timer_at = next;
        }
    }

    fn tick(&mut self) {
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        self.timer_at = None;
        let now = now();
        self.machine.tick(now, family::left);
        self.candidates.retain(|candidate| candidate.until > now);
        if self.retry_at.is_some_and(|at| now >= at) {
            self.retry_at = None;
            self.output.settle();
            self.write_input();
            self.read_errors();
            self.read_output();
        }
    }

    /// Does what the machine says, until it says nothing more.
    fn act(&mut self) {
        loop {
            let actions = self.machine.actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                match action {
                    Action::CloseInput => self.close_input(),
                    Action::Terminate => {
                        if let Some(agent) = &self.agent {
                            agent.signal_group(Signal::TERM);
                        }
                    }
                    Action::Kill => self.kill(),
                    Action::ClosePipes => {
                        self.read_errors();
                        self.read_output();
                    }
                    Action::Leave => self.leaving = true,
                }
            }
        }
    }

    fn close_input(&mut self) {
        self.input.shut();
        if let Some(agent) = &mut self.agent {
            agent.stdin = None;
        }
    }

    /// Kills the agent and all below this process. What is dead already gives no signal any more, so that is looked at now.
    fn kill(&mut self) {
        self.close_input();
        self.look_at_leader();
        if let Some(agent) = &mut self.agent {
            agent.kill();
        }
        let own = self.own.pid;
        family::left().into_iter().for_each(|pid| family::kill(pid, own));
        self.reap();
        if self.machine.status().is_some() && family::left().is_empty() {
            self.machine.child_died(now(), &[]);
        }
    }

    /// Reaps what is dead. The leader waits until its group has been killed: its number is the group's.
    fn reap(&mut self) {
        self.look_at_leader();
        let may_go = self.machine.is_sweeping() || self.machine.standing() == Standing::Gone;
        let Some(agent) = &mut self.agent else { return family::reap(None) };
        if may_go && self.machine.status().is_some() {
            agent.let_go();
            family::reap(None);
        } else {
            family::reap(Some(agent.who.pid));
        }
    }

    fn look_at_leader(&mut self) {
        if self.machine.status().is_some() {
            return;
        }
        if let Some(status) = self.agent.as_ref().and_then(Agent::status) {
            self.machine.leader_gone(now(), status);
        }
    }

    fn take_signals(&mut self) {
        let (mut child, mut end) = (false, false);
        while let Some(signal) = sys::read_signal(&self.signals) {
            child |= signal == Signal::CHILD.as_raw();
            end |= signal == Signal::TERM.as_raw();
        }
        if end {
            self.machine.terminated(now());
        }
        if child {
            self.reap();
            if self.machine.is_sweeping() {
                self.machine.child_died(now(), &family::left());
            }
        }
    }

    fn write_input(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        let Some(stdin) = &agent.stdin else { return };
        self.input_stuck = false;
        match self.input.write_to(stdin) {
            Ok(true) => {}
            Ok(false) => agent.stdin = None,
            Err(_) => {
                self.input_stuck = true;
                self.retry_at = Some(now() + RETRY);
            }
        }
    }

    /// Reads what the agent wrote to stdout. Once all is over, nothing more to read is the end: whoever holds the pipe then
    /// is no child of ours.
    fn read_output(&mut self) {
        let over = self.machine.standing() == Standing::Gone;
        for _ in 0..TURNS {
            let Some(agent) = self.agent.as_mut().filter(|_| self.output.has_room()) else { break };
            let Some(stdout) = &agent.stdout else { break };
            match self.output.read_from(stdout) {
                // Less than a block: most likely there is no more, and if there is, poll says so.
                Ok(Took::Bytes(n)) if n < BLOCK / 2 && !over => break,
                Ok(Took::Bytes(_)) => {}
                Ok(Took::Nothing) if !over => break,
                Ok(Took::Nothing | Took::End) | Err(_) => {
                    agent.stdout = None;
                    break;
                }
            }
        }
        self.note_trouble();
        self.note_silence();
    }

    fn read_errors(&mut self) {
        let over = self.machine.standing() == Standing::Gone;
        let mut buffer = [0; 4096];
        for _ in 0..TURNS {
            let Some(agent) = &mut self.agent else { return };
            let Some(stderr) = &agent.stderr else { return };
            match rustix::io::read(stderr, &mut buffer) {
                Ok(n) if n > 0 => self.errors.push(&buffer[..n]),
                Err(Errno::AGAIN | Errno::INTR) if !over => break,
                Ok(_) | Err(_) => agent.stderr = None,
            }
        }
        self.note_silence();
    }

    fn note_silence(&mut self) {
        if self.agent.as_ref().is_some_and(Agent::is_silent) {
            self.machine.pipes_closed(now());
        }
    }

    /// What is tried again after a while: a spool that failed, and pipes that somebody else holds and still writes to.
    fn note_trouble(&mut self) {
        let held = self.machine.standing() == Standing::Gone
            && self.agent.as_ref().is_some_and(|agent| !agent.is_silent())
            && self.output.has_room();
        if self.output.is_stuck() || held {
            self.retry_at.get_or_insert(now() + RETRY);
        }
    }

    /// Takes the socket's name away, if it is still the one that was made here.
    fn unlink(&self) {
        let name = self.seed.name.as_str();
        let stat = rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW);
        if stat.is_ok_and(|s| (s.st_dev, s.st_ino) == self.made) {
            let _ = rustix::fs::unlinkat(&self.dir, name, AtFlags::empty());
        }
    }
}
