//! Watches the state directory: detects a lock or database files that are removed or replaced while the daemon runs.
//!
//! A thread of its own sleeps until inotify reports a change of a name; without inotify it checks every few seconds.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

use super::lock::{Lock, LockState};
use crate::store::Store;
use crate::thread;

/// The time between two checks without a report: a truncated file or a new mount is no change of a name.
const CHECK: Duration = Duration::from_secs(60);
/// The time between two checks without inotify.
const POLL: Duration = Duration::from_secs(2);

/// Starts to watch. The lock is held until the returned guard is dropped.
///
/// # Errors
/// The thread cannot be started.
pub fn watch(dir: &Path, mut lock: Lock, store: Store) -> std::io::Result<Guard> {
    let changes = inotify_of(dir).inspect_err(|e| log::debug!("{}: no inotify: {e}", dir.display())).ok();
    let (guard, ended): (Sender<()>, Receiver<()>) = crossbeam_channel::bounded(1);
    let (wake, woken) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map(|(read, write)| (write, read))?;
    let dir = dir.to_owned();
    let thread = thread::spawn_own("files", thread::IO_STACK, move || {
        let mut lost = String::new();
        while ended.try_recv() == Err(TryRecvError::Empty) {
            match lock.check() {
                LockState::Ours => lost.clear(),
                LockState::Remade => {
                    lost.clear();
                    log::warn!(
                        "{}: the lock was removed or replaced while the daemon runs; it is created again",
                        dir.display()
                    );
                }
                LockState::Lost(why) if why != lost => {
                    log::error!("{}/lock: removed or replaced, and cannot be created again: {why}", dir.display());
                    lost = why;
                }
                LockState::Lost(_) => {}
            }
            store.check_files();
            wait(changes.as_ref(), &woken);
        }
        drop(lock);
    })?;
    Ok(Guard { ended: Some(guard), wake: Some(wake), thread: Some(thread) })
}

/// Holds the lock; dropped, it is released.
#[derive(Debug)]
pub struct Guard {
    ended: Option<Sender<()>>,
    wake: Option<OwnedFd>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.ended = None;
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// An inotify descriptor for names that come and go in the directory.
fn inotify_of(dir: &Path) -> rustix::io::Result<OwnedFd> {
    use inotify::{CreateFlags, WatchFlags};
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let names = WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO | WatchFlags::CREATE;
    inotify::add_watch(&fd, dir, names)?;
    Ok(fd)
}

fn wait(changes: Option<&OwnedFd>, woken: &OwnedFd) {
    let mut fds = vec![PollFd::new(woken, PollFlags::IN)];
    fds.extend(changes.map(|fd| PollFd::new(fd, PollFlags::IN)));
    let timeout = Timespec::try_from(if changes.is_some() { CHECK } else { POLL }).ok();
    let _ = poll(&mut fds, timeout.as_ref());
    if let Some(fd) = changes {
        // Drained, so the next wait sleeps. Everything is checked, whatever has changed.
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(fd, &mut buffer);
        while reader.next().is_ok() {}
    }
}
