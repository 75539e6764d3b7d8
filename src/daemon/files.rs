//! Watches the state directory for what somebody takes away while the daemon runs: the lock, and the database's files.
//!
//! A thread of its own sleeps until the kernel tells of a name that came or went; where it cannot be told, it looks every
//! few seconds.

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

/// How often it looks though it is told of nothing: what is cut off or remounted is no change of a name.
const LOOK: Duration = Duration::from_secs(60);
/// How often it looks where nobody tells.
const UNTOLD: Duration = Duration::from_secs(2);

/// Begins to watch. The lock is held until the guard that is returned is dropped, and released soon after.
///
/// # Errors
/// No thread is to be had.
pub fn watch(dir: &Path, mut lock: Lock, store: Store) -> std::io::Result<Guard> {
    let told = told(dir).inspect_err(|e| log::debug!("{}: nobody tells of changes: {e}", dir.display())).ok();
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
                        "{}: the lock was removed or replaced while the daemon runs; it is made anew",
                        dir.display()
                    );
                }
                LockState::Lost(why) if why != lost => {
                    log::error!("{}/lock: it was removed or replaced, and cannot be made anew: {why}", dir.display());
                    lost = why;
                }
                LockState::Lost(_) => {}
            }
            store.check_files();
            wait(told.as_ref(), &woken);
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

/// Where the kernel tells of names that come and go in the directory.
fn told(dir: &Path) -> rustix::io::Result<OwnedFd> {
    use inotify::{CreateFlags, WatchFlags};
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let names = WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO | WatchFlags::CREATE;
    inotify::add_watch(&fd, dir, names)?;
    Ok(fd)
}

fn wait(told: Option<&OwnedFd>, woken: &OwnedFd) {
    let mut fds = vec![PollFd::new(woken, PollFlags::IN)];
    fds.extend(told.map(|fd| PollFd::new(fd, PollFlags::IN)));
    let timeout = Timespec::try_from(if told.is_some() { LOOK } else { UNTOLD }).ok();
    let _ = poll(&mut fds, timeout.as_ref());
    if let Some(fd) = told {
        // What was told is taken, so that the next wait sleeps; everything is looked at, whatever it was.
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(fd, &mut buffer);
        while reader.next().is_ok() {}
    }
}
