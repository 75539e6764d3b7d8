//! What is needed to have shims: their program, their directory, and how long their agents may work on alone.
//!
//! Owns the connections' second descriptors, by which a stop says at once to every shim that its agent must not outlive
//! this daemon, whatever the workers do. It must not know agents' protocols.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::AtFlags;

use crate::shim::client::Daemon;
use crate::shim::conn;
use crate::shim::frame::Request;
use crate::shim::launch::{Program, SocketName};
use crate::shim::proof::{Place, Token};

/// The directory of the shims' sockets, in the state directory.
pub const SOCKETS: &str = "s";

/// What a daemon's shims have in common.
#[derive(Debug)]
pub struct Keeper {
    program: Program,
    path: PathBuf,
    dir: OwnedFd,
    place: Place,
    boot: u64,
    spool: u64,
    /// In milliseconds.
    orphan: AtomicU64,
    links: Mutex<BTreeMap<String, OwnedFd>>,
}

impl Keeper {
    /// Of this state directory, whose lock the caller holds. `boot`: the number of this boot, which only rises. `spool`:
    /// the most bytes of an agent's output on disk. `orphan`: how long an agent works on without a daemon.
    ///
    /// # Errors
    /// The program is not found, or the directory cannot be made.
    pub fn open(state_dir: &Path, boot: i64, spool: u64, orphan: Duration) -> io::Result<Self> {
        let path = state_dir.join(SOCKETS);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let lock = std::fs::metadata(state_dir.join("lock"))?;
        Ok(Self {
            program: Program::find()?,
            dir: File::open(&path)?.into(),
            path,
            place: Place::here(lock.dev(), lock.ino())?,
            boot: u64::try_from(boot).unwrap_or(0),
            spool,
            orphan: AtomicU64::new(millis(orphan)),
            links: Mutex::default(),
        })
    }

    /// The boot of the machine, as rows keep it.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn machine() -> io::Result<String> {
        Ok(hex(&Place::here(0, 0)?.machine))
    }

    /// The boot of the machine, as rows keep it.
    #[must_use]
    pub fn own_machine(&self) -> String {
        hex(&self.place.machine)
    }

    /// The shim's program.
    #[must_use]
    pub const fn program(&self) -> &Program {
        &self.program
    }

    /// The directory of the sockets, and of the spools.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same, open.
    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The lock file, by which a shim knows its own state directory.
    #[must_use]
    pub const fn place(&self) -> Place {
        self.place
    }

    /// The most bytes of an agent's output on disk.
    #[must_use]
    pub const fn spool(&self) -> u64 {
        self.spool
    }

    /// This daemon, for a shim with that token. `from`: up to there the agent's output is kept.
    #[must_use]
    pub fn daemon(&self, token: &Token, from: u64) -> Daemon {
        Daemon { token: token.clone(), place: self.place, boot: self.boot, from }
    }

    /// How long agents may work on alone, from now on; every shim is told. What a shim cannot be told now it is told
    /// never, and keeps the time before.
    pub fn set_orphan(&self, after: Duration) {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        self.orphan.store(millis(after), Ordering::SeqCst);
        for link in links.values() {
            say(link, after);
        }
    }

    /// How long agents may work on alone.
    #[must_use]
    pub fn orphan(&self) -> Duration {
        Duration::from_millis(self.orphan.load(Ordering::SeqCst))
    }

    /// A connection was made: its shim is told the time in force, and each later one.
    pub(super) fn link(&self, name: &str, socket: BorrowedFd<'_>) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        match socket.try_clone_to_owned() {
            Ok(socket) => {
                say(&socket, self.orphan());
                links.insert(name.to_owned(), socket);
            }
            Err(e) => log::warn!("the shim {name} is told nothing of a stop: {e}"),
        }
    }

    /// Removes the socket of a shim that is gone and could not do it.
    pub fn remove_socket(&self, name: &str) {
        if let Some(name) = SocketName::parse(name) {
            let _ = rustix::fs::unlinkat(&self.dir, name.as_str(), AtFlags::empty());
        }
    }

    /// Removes the sockets of which nobody knows: those of shims that were killed. `known`: the names that rows have.
    pub fn tidy(&self, known: &[String]) {
        for entry in std::fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| !known.iter().any(|k| k == name)) else { continue };
            self.remove_socket(name);
        }
    }

    /// A connection is over. Its descriptor must not keep it open.
    pub(super) fn unlink(&self, name: &str) {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

fn say(socket: &OwnedFd, after: Duration) {
    let mut packet = Vec::new();
    Request::Orphan { after: millis(after), lease: 0 }.encode(&mut packet);
    // A shim that is gone needs nothing.
    let _ = conn::send(socket, &[&packet]);
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
