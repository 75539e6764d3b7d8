//! Processes, waited for by their descriptors, and the lines that they write.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde_json::Value;

use super::PATIENCE;

/// Lines that come from elsewhere, kept, and waited for.
#[derive(Default)]
pub struct Lines {
    lines: Mutex<(Vec<String>, usize)>,
    came: Condvar,
}

impl Lines {
    pub fn push(&self, line: String) {
        self.lines.lock().unwrap().0.push(line);
        self.came.notify_all();
    }

    /// A source ended: no more of it will come.
    pub fn end(&self) {
        self.lines.lock().unwrap().1 += 1;
        self.came.notify_all();
    }

    pub fn wait_ended(&self, sources: usize) {
        let (lock, _) = self.came.wait_timeout_while(self.lines.lock().unwrap(), PATIENCE, |l| l.1 < sources).unwrap();
        assert!(lock.1 >= sources, "the log does not end: somebody holds its pipe");
    }

    pub fn all(&self) -> Vec<String> {
        self.lines.lock().unwrap().0.clone()
    }

    pub fn count(&self) -> usize {
        self.lines.lock().unwrap().0.len()
    }

    /// The first line from the `from`th on that is meant; waits for it.
    pub fn find(&self, from: usize, what: &str, meant: impl Fn(&str) -> bool) -> String {
        let find = |lines: &[String]| lines.iter().skip(from).find(|l| meant(l)).cloned();
        let (lines, _) =
            self.came.wait_timeout_while(self.lines.lock().unwrap(), PATIENCE, |l| find(&l.0).is_none()).unwrap();
        let found = find(&lines.0);
        // Whoever panics must not hold what the others need to say why they fail.
        drop(lines);
        found.unwrap_or_else(|| {
            let said = self.all();
            panic!("nobody said {what:?}; said: {:#?}", &said[from.min(said.len())..])
        })
    }
}

/// A child process whose exit is waited for by its descriptor.
pub struct Proc {
    pub child: Child,
    pidfd: OwnedFd,
}

impl Proc {
    pub fn spawn(command: &mut Command) -> Self {
        let child = command.spawn().unwrap();
        let pid = Pid::from_child(&child);
        Self { child, pidfd: rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::pidfd_send_signal(&self.pidfd, signal).unwrap();
    }

    /// Its end, if it comes in time.
    pub fn wait_for(&mut self, time: Duration) -> Option<ExitStatus> {
        if wait_pidfd(&self.pidfd, time) { Some(self.child.wait().unwrap()) } else { None }
    }
}

/// A process that is no child: its descriptor, or `None` if it is gone already.
pub fn open_pid(pid: u32) -> Option<OwnedFd> {
    rustix::process::pidfd_open(Pid::from_raw(i32::try_from(pid).unwrap())?, PidfdFlags::empty()).ok()
}

/// Whether a process ends within the time.
pub fn wait_pidfd(fd: &OwnedFd, time: Duration) -> bool {
    let until = Instant::now() + time;
    loop {
        let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).unwrap();
        match rustix::event::poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&left)) {
            Ok(n) => return n > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => panic!("{e}"),
        }
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Its output, if it did well.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    #[track_caller]
    pub fn json(self) -> Value {
        let out = self.ok();
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
    }
}

/// Runs a command to its end.
pub fn run(command: &mut Command, input: &str) -> Ran {
    let mut proc = Proc::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()));
    let mut stdin = proc.child.stdin.take().unwrap();
    let (mut out, mut err) = (proc.child.stdout.take().unwrap(), proc.child.stderr.take().unwrap());
    let out = std::thread::spawn(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        text
    });
    let err = std::thread::spawn(move || {
        let mut text = String::new();
        err.read_to_string(&mut text).unwrap();
        text
    });
    // A command that does not read its input is no error.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let status = proc.wait_for(PATIENCE).unwrap_or_else(|| {
        proc.signal(Signal::KILL);
        panic!("{command:?} does not end")
    });
    let code = status.code().unwrap_or_else(|| -status.signal().unwrap());
    Ran { code, out: out.join().unwrap(), err: err.join().unwrap() }
}
