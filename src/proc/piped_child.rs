//! One child process in a session and a group of its own, with three pipes that never block.
//!
//! Owns the child, its pipes, the bytes that wait for its input, and the kill of its group. It must not know what the
//! child runs, nor what its output means. Nothing here blocks but [`PipedChild::wait`] and [`PipedChild::end`].
//!
//! The child leads its group, and its id is the group's. It is reaped last, so the id cannot be given to a stranger while
//! a signal may still be sent to the group.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus};

use super::children::{Registered, set_apart, spawn};

/// The most bytes that are read from a pipe before the caller is asked again.
const SLICE: usize = 64 * 1024;

/// Why there is no child.
#[derive(Debug)]
pub enum NoChild {
    /// The program was not started.
    NotStarted(io::Error),
    /// The program was started and killed again: the system has no descriptor to watch it with.
    NotWatched(io::Error),
}

/// A child with its pipes. When it is dropped unreaped, its group is killed, and the child is reaped as a stray.
#[derive(Debug)]
pub struct PipedChild {
    child: Child,
    _registered: Registered,
    pid: Pid,
    pidfd: OwnedFd,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    outgoing: Vec<u8>,
    written: usize,
    close_after: bool,
    progress: Instant,
    exited: bool,
    /// After the exit a read found nothing more: what comes now comes from somebody else who holds the pipe.
    drained: bool,
    reaped: bool,
}

impl PipedChild {
    /// Starts the command with three pipes, in a session and a group of its own, with the tag of a session's row (0: of no
    /// session).
    ///
    /// # Errors
    /// The program cannot be started, or it cannot be watched.
    pub fn spawn(command: &mut Command, sid: i64) -> Result<Self, NoChild> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        set_apart(command, sid);
        let (mut child, registered) = spawn(command).map_err(NoChild::NotStarted)?;
        let pid = Pid::from_child(&child);
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let fds = [stdin.as_ref().map(AsFd::as_fd), stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)];
        let watched = fds
            .into_iter()
            .flatten()
            .try_for_each(|fd| rustix::io::ioctl_fionbio(fd, true))
            .and_then(|()| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
        let pidfd = match watched {
            Ok(pidfd) => pidfd,
            Err(e) => {
                let _ = rustix::process::kill_process_group(pid, Signal::KILL);
                let _ = child.try_wait();
                return Err(NoChild::NotWatched(e.into()));
            }
        };
        Ok(Self {
            child,
            _registered: registered,
            pid,
            pidfd,
            stdin,
            stdout,
            stderr,
            outgoing: Vec::new(),
            written: 0,
            close_after: false,
            progress: Instant::now(),
            exited: false,
            drained: false,
            reaped: false,
        })
    }

    /// The child's process id, which is its group's too.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether the exit was seen by [`Self::take_in`].
    #[must_use]
    pub const fn has_exited(&self) -> bool {
        self.exited
    }

    /// Whether the child has exited, asked of the kernel now.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.exited || has_ended(self.pidfd.as_fd())
    }

    /// Whether all that the child itself wrote to stdout was read: stdout is closed, or the child exited and a read found
    /// nothing more.
    #[must_use]
    pub const fn is_drained(&self) -> bool {
        self.stdout.is_none() || self.drained
    }

    /// Whether stdin is still open.
    #[must_use]
    pub const fn has_input(&self) -> bool {
        self.stdin.is_some()
    }

    /// Whether stdout is still open somewhere.
    #[must_use]
    pub const fn has_output(&self) -> bool {
        self.stdout.is_some()
    }

    /// How the child exited; `None` while it runs. The child stays unreaped.
    #[must_use]
    pub fn exit_status(&self) -> Option<WaitIdStatus> {
        let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), peek).ok()?
    }

    /// How many bytes the outgoing buffer holds; 0: nothing waits to be written.
    #[must_use]
    pub fn outgoing(&self) -> usize {
        self.outgoing.len()
    }

    /// When the child last took bytes of its input, or the first of those that wait was put there.
    #[must_use]
    pub const fn progress(&self) -> Instant {
        self.progress
    }

    /// Puts bytes into the outgoing buffer and writes what the pipe takes now. Bytes for a closed stdin are dropped.
    pub fn send(&mut self, bytes: &[u8]) {
        if self.stdin.is_none() {
            return;
        }
        if self.outgoing.is_empty() {
            self.progress = Instant::now();
        }
        self.outgoing.extend_from_slice(bytes);
        self.flush();
    }

    /// Closes stdin once everything is written.
    pub fn finish_input(&mut self) {
        self.close_after = true;
        self.flush();
    }

    /// Closes stdin now; what waits to be written is dropped.
    pub fn close_input(&mut self) {
        self.stdin = None;
        self.outgoing = Vec::new();
        self.written = 0;
    }

    fn flush(&mut self) {
        while let Some(stdin) = self.stdin.as_mut() {
            if self.written >= self.outgoing.len() {
                self.outgoing = Vec::new();
                self.written = 0;
                if self.close_after {
                    self.stdin = None;
                }
                return;
            }
            match stdin.write(&self.outgoing[self.written..]) {
                Ok(n) => {
                    self.written += n;
                    self.progress = Instant::now();
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                // The child closed its input. What that means shows on its output and in its exit.
                Err(_) => self.close_input(),
            }
        }
    }

    /// Moves the bytes that are ready now, at most a slice from each pipe, without waiting.
    pub fn take_in(&mut self, out: &mut dyn FnMut(&[u8]), err: &mut dyn FnMut(&[u8])) {
        // The exit is looked at before stdout is read: what was written before the exit is then read after it was seen.
        self.exited = self.is_gone();
        read_slice(&mut self.stderr, err);
        let empty = read_slice(&mut self.stdout, out);
        self.drained |= self.exited && empty;
        self.flush();
    }

    /// What to wait for, each with whether it is waited for to be writable: readable pipes, an input that has bytes
    /// waiting, and the exit until it was seen.
    pub fn descriptors(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        let readable = [
            self.stdout.as_ref().map(AsFd::as_fd),
            self.stderr.as_ref().map(AsFd::as_fd),
            (!self.exited).then_some(self.pidfd.as_fd()),
        ];
        let input = self.stdin.as_ref().filter(|_| !self.outgoing.is_empty());
        let readable = readable.into_iter().flatten().map(|fd| (fd, false));
        readable.chain(input.map(|input| (input.as_fd(), true)))
    }

    /// Waits until the child does something, until `also` is readable, or for so long. For a thread that waits for nothing
    /// else.
    ///
    /// # Errors
    /// The system cannot poll.
    pub fn wait(&self, also: Option<BorrowedFd<'_>>, time: Duration) -> io::Result<()> {
        let flags = |writable| if writable { PollFlags::OUT } else { PollFlags::IN };
        let own = self.descriptors().map(|(fd, writable)| PollFd::from_borrowed_fd(fd, flags(writable)));
        let mut fds: Vec<_> = own.chain(also.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))).collect();
        let time = Timespec::try_from(time).map_err(io::Error::other)?;
        match poll(&mut fds, Some(&time)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Sends a signal to the whole group, whose id is the child's own until it is reaped.
    ///
    /// # Errors
    /// The signal may not be sent. A group that is gone is no error.
    pub fn signal_group(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::kill_process_group(self.pid, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Sends SIGKILL to the child, wherever it is.
    pub fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Reaps the child if it has exited.
    pub fn reap(&mut self) {
        self.reaped |= !matches!(self.child.try_wait(), Ok(None));
    }

    /// Kills the group, waits for the child and reaps it.
    ///
    /// # Errors
    /// The child cannot be waited for.
    pub fn end(mut self) -> io::Result<ExitStatus> {
        let _ = self.signal_group(Signal::KILL);
        self.stdin = None;
        let status = self.child.wait()?;
        self.reaped = true;
        Ok(status)
    }
}

impl Drop for PipedChild {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.signal_group(Signal::KILL);
            self.reap();
        }
    }
}

/// Whether the process of a pidfd has ended (as a zombie too).
#[must_use]
pub fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|n| n > 0)
}

/// Reads at most a slice and says whether nothing more is there now; end of file and errors close the pipe.
fn read_slice<P: Read>(pipe: &mut Option<P>, taken: &mut dyn FnMut(&[u8])) -> bool {
    let mut buffer = [0; 16 * 1024];
    let mut left = SLICE;
    while let Some(open) = pipe.as_mut().filter(|_| left > 0) {
        match open.read(&mut buffer) {
            Ok(0) => *pipe = None,
            Ok(n) => {
                taken(&buffer[..n]);
                left = left.saturating_sub(n);
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
            Err(_) => *pipe = None,
        }
    }
    pipe.is_none()
}
