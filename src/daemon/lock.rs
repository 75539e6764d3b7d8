//! The state directory's lock. The kernel holds it, so a dead owner never blocks a start, even if its pid is reused.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::proc::procfs;

/// How long a new owner may take to write its pid, and how long a dead owner's child may keep the lock.
const BEGINNING: Duration = Duration::from_secs(5);
/// The pause between two tries.
const AGAIN: Duration = Duration::from_millis(50);
/// Locked by a process that waits for the state of a live owner.
const REPLACE: &str = "lock.replace";

/// The lock, until it is dropped. The directory itself is locked too: a second daemon must not start beside the first
/// because an operator removed the file.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
    _dir: Option<File>,
}

/// The state of the lock file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockState {
    /// It is ours.
    Ours,
    /// It had been removed or replaced, and was created and locked again.
    Remade,
    /// Another daemon holds it, or it cannot be created again: why.
    Lost(String),
}

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Held {
    /// Another daemon lives.
    #[error("{}: another ostler{} owns it", dir.display(), pid_text(*pid))]
    Owned {
        /// The state directory.
        dir: PathBuf,
        /// Its pid, as it wrote it.
        pid: Option<i32>,
    },
    /// The file cannot be created or locked.
    #[error("{}: {error}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

fn pid_text(pid: Option<i32>) -> String {
    pid.map(|p| format!(" (pid {p})")).unwrap_or_default()
}

impl Lock {
    /// Takes the lock of a state directory and writes our pid into it. If the owner's process is gone, waits a moment:
    /// a daemon that was killed during a fork leaves the lock to the child until the child executes its program.
    ///
    /// # Errors
    /// [`Held`].
    pub fn take(dir: &Path) -> Result<Self, Held> {
        Self::take_pausing(dir, || std::thread::park_timeout(AGAIN))
    }

    /// As [`Self::take`], with the pause between two tries.
    fn take_pausing(dir: &Path, mut pause: impl FnMut()) -> Result<Self, Held> {
        let until = Instant::now() + BEGINNING;
        loop {
            match Self::try_take(dir) {
                Err(Held::Owned { pid, .. })
                    if Instant::now() < until && pid.and_then(|pid| owner(dir, pid)).is_none() =>
                {
                    pause();
                }
                other => return other,
            }
        }
    }

    /// One try.
    fn try_take(dir: &Path) -> Result<Self, Held> {
        let path = dir.join("lock");
        let fail = |error| Held::Io { path: path.clone(), error };
        let locked = match lock_dir(dir) {
            Ok(locked) => locked,
            Err(()) => {
                let pid = File::open(&path).ok().and_then(|mut file| read_pid(&mut file));
                return Err(Held::Owned { dir: dir.into(), pid });
            }
        };
        let mut file = open(&path).map_err(fail)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Held::Owned { dir: dir.into(), pid: read_pid(&mut file) }),
            Err(TryLockError::Error(error)) => return Err(fail(error)),
        }
        write_pid(&mut file).map_err(fail)?;
        Ok(Self { file, path, _dir: locked })
    }

    /// Checks that the file under the lock's name is still the locked file; if not, creates and locks it again.
    pub fn check(&mut self) -> LockState {
        let lost = |e: io::Error| LockState::Lost(e.to_string());
        let ours = match self.file.metadata() {
            Ok(meta) => (meta.dev(), meta.ino()),
            Err(e) => return lost(e),
        };
        match std::fs::metadata(&self.path) {
            Ok(meta) if (meta.dev(), meta.ino()) == ours => return LockState::Ours,
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return lost(e),
        }
        let mut file = match open(&self.path) {
            Ok(file) => file,
            Err(e) => return lost(e),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return LockState::Lost(format!("another ostler{} owns it", pid_text(read_pid(&mut file))));
            }
            Err(TryLockError::Error(e)) => return lost(e),
        }
        if let Err(e) = write_pid(&mut file) {
            return lost(e);
        }
        self.file = file;
        LockState::Remade
    }

    /// Takes the lock from a live owner: asks it for a restart, so that its agents are kept, waits, then kills it. Only the process that holds the lock is
    /// signalled, whatever pid stands in the file. An owner that is stopping already (`is_stopping`, asked with its
    /// pid) gets no further signal, which would cut its stop short. The same holds if another process has just asked
    /// it.
    ///
    /// # Errors
    /// [`Held`]: the owner did not release it in time, or another process took it first.
    pub fn replace(dir: &Path, patience: Duration, is_stopping: &dyn Fn(i32) -> bool) -> Result<Self, Held> {
        let until = Instant::now() + patience;
        let mut asked: Option<i32> = None;
        let mut speaks: Option<File> = None;
        let mut begins_by = Instant::now() + BEGINNING;
        let mut rounds = 0;
        while rounds < 8 {
            let pid = match Self::try_take(dir) {
                Err(Held::Owned { pid, .. }) => pid,
                other => return other,
            };
            // A new owner has not written its pid yet: the file is empty or has an old pid.
            let Some((pid, owner)) = pid.and_then(|pid| Some((pid, owner(dir, pid)?))) else {
                if Instant::now() >= begins_by {
                    break;
                }
                std::thread::park_timeout(AGAIN);
                continue;
            };
            begins_by = Instant::now() + BEGINNING;
            rounds += 1;
            if asked.is_some_and(|first| first != pid) {
                return Err(Held::Owned { dir: dir.into(), pid: Some(pid) });
            }
            // Only one of several processes that want the lock signals the owner.
            if speaks.is_none() {
                speaks = open(&dir.join(REPLACE)).ok().filter(|f| f.try_lock().is_ok());
            }
            let (signal, what) = match (asked, &speaks) {
                (None, None) => (None, "another process has asked it to leave; waiting"),
                (None, Some(_)) if is_stopping(pid) => (None, "it is already stopping; waiting"),
                (None, Some(_)) => (Some(Signal::USR1), "asking it to leave"),
                (Some(_), Some(_)) => (Some(Signal::KILL), "it did not leave in time; killing it"),
                (Some(_), None) => return Self::take(dir),
            };
            log::info!("another ostler (pid {pid}) owns {}: {what}", dir.display());
            if let Some(signal) = signal {
                let _ = pidfd_send_signal(&owner, signal);
            }
            let wait = match asked {
                None => until.saturating_duration_since(Instant::now()),
                Some(_) => Duration::from_secs(10),
            };
            let timeout =
                Timespec { tv_sec: i64::try_from(wait.as_secs()).unwrap_or(3600), tv_nsec: wait.subsec_nanos().into() };
            let _ = poll(&mut [PollFd::new(&owner, PollFlags::IN)], Some(&timeout));
            asked = Some(pid);
        }
        Self::take(dir)
    }
}

/// Opens the file, and creates it if it is missing.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()))
}

/// Locks the directory itself. `None`: the file system cannot do that. `Err`: another daemon holds it.
fn lock_dir(dir: &Path) -> Result<Option<File>, ()> {
    let Ok(file) = File::open(dir) else { return Ok(None) };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(()),
        Err(TryLockError::Error(e)) => {
            log::debug!("{}: cannot lock the directory: {e}", dir.display());
            Ok(None)
        }
    }
}

/// The pid of the lock's present owner. Does not take the lock.
#[must_use]
pub fn holder(dir: &Path) -> Option<i32> {
    let mut file = File::open(dir.join("lock")).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => read_pid(&mut file),
        Ok(()) | Err(TryLockError::Error(_)) => None,
    }
}

/// Whether another process waits for this directory ([`Lock::replace`]): its owner must not go on in a new program.
#[must_use]
pub fn is_wanted(dir: &Path) -> bool {
    let Ok(file) = File::open(dir.join(REPLACE)) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

fn read_pid(file: &mut File) -> Option<i32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// A handle to the process, if it holds the lock. The handle is taken before the check, so a reused pid is never
/// signalled.
fn owner(dir: &Path, pid: i32) -> Option<std::os::fd::OwnedFd> {
    let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let lock = std::fs::canonicalize(dir.join("lock")).ok()?;
    let number = u32::try_from(pid).ok()?;
    procfs::locked_files(number).contains(&lock).then_some(pidfd)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A child of a killed daemon keeps the descriptors until it executes its program.
    #[test]
    fn the_child_of_a_dead_owner_is_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        let held = open(&path).expect("the file");
        held.try_lock().expect("locked");
        std::fs::write(&path, "4194305\n").expect("a pid that is nobody's");
        let mut held = Some(held);
        Lock::take_pausing(dir.path(), || drop(held.take())).expect("the lock");
        assert!(held.is_none(), "it was not to be had at once");
    }

    #[test]
    fn one_of_two_wins_and_names_the_other() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = Lock::take(dir.path()).expect("the lock");
        match Lock::take(dir.path()) {
            Err(Held::Owned { pid, .. }) => assert_eq!(pid, i32::try_from(std::process::id()).ok()),
            other => panic!("{other:?}"),
        }
        assert_eq!(holder(dir.path()), i32::try_from(std::process::id()).ok());
        drop(first);
        assert_eq!(holder(dir.path()), None);
        Lock::take(dir.path()).expect("free again, whatever pid stands in it");
    }

    #[test]
    fn a_removed_file_is_created_again_and_no_second_daemon_takes_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        let mut first = Lock::take(dir.path()).expect("the lock");
        assert_eq!(first.check(), LockState::Ours);
        std::fs::remove_file(&path).expect("removed");
        assert!(matches!(Lock::take(dir.path()), Err(Held::Owned { .. })), "before it was noticed");
        assert_eq!(first.check(), LockState::Remade);
        assert_eq!(holder(dir.path()), i32::try_from(std::process::id()).ok());
        // A process that does not respect the directory's lock.
        std::fs::remove_file(&path).expect("removed");
        let other = open(&path).expect("another file");
        other.try_lock().expect("locked");
        assert!(matches!(first.check(), LockState::Lost(_)));
        drop(other);
        assert_eq!(first.check(), LockState::Remade);
        drop(first);
        Lock::take(dir.path()).expect("free");
    }

    /// The owner has the lock and has not written its pid yet: the replacer waits.
    #[test]
    fn an_owner_that_just_begins_is_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        let beginning = open(&path).expect("the file");
        beginning.try_lock().expect("locked");
        let (taken, take) = std::sync::mpsc::channel();
        let theirs = dir.path().to_owned();
        let replacer = std::thread::spawn(move || {
            taken.send(()).expect("heard");
            Lock::replace(&theirs, Duration::from_secs(30), &|_| false).map(drop)
        });
        take.recv().expect("it begins");
        drop(beginning);
        replacer.join().expect("no panic").expect("it is taken once it is free");
    }

    #[test]
    fn a_process_that_does_not_hold_it_is_no_owner() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        std::fs::write(&path, "1\n").expect("written");
        assert!(owner(dir.path(), 1).is_none());
        // Nor is one that only looks at it.
        let me = i32::try_from(std::process::id()).expect("a pid");
        let _open = File::open(&path).expect("open");
        assert!(owner(dir.path(), me).is_none());
        let _lock = Lock::take(dir.path()).expect("the lock");
        assert!(owner(dir.path(), me).is_some());
    }
}
