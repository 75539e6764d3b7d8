//! The daemon's own files, which nothing else in this process may open: the database, what SQLite keeps beside it, the lock.
//!
//! Whoever closes any descriptor of a file gives up all POSIX locks that its process has on it, SQLite's too. So such a
//! file is told by its identity, whatever name or link leads to it, before it is opened. It must not know who asks.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The most identities that are kept: a file that was removed under the daemon stays open in it.
const MOST: usize = 256;

/// Device and inode.
type Identity = (u64, u64);

#[derive(Default)]
struct Reserved {
    paths: Vec<PathBuf>,
    seen: Vec<Identity>,
}

static RESERVED: Mutex<Reserved> = Mutex::new(Reserved { paths: Vec::new(), seen: Vec::new() });

impl Reserved {
    /// Notes what stands under the names by now: SQLite makes some of the files later, and others anew.
    fn note_files(&mut self) {
        for path in &self.paths {
            if let Ok(meta) = std::fs::metadata(path) {
                let identity = (meta.dev(), meta.ino());
                if !self.seen.contains(&identity) {
                    self.seen.push(identity);
                }
            }
        }
        let beyond = self.seen.len().saturating_sub(MOST);
        self.seen.drain(..beyond);
    }
}

/// From now on a database in the state directory, and what belongs to it, is the daemon's alone.
pub fn keep(state_dir: &Path) {
    let mut reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
    let names = ["ostler.db", "ostler.db-wal", "ostler.db-shm", "ostler.db-journal", "lock"];
    reserved.paths.extend(names.map(|name| state_dir.join(name)));
    reserved.note_files();
}

/// Whether a file is the daemon's own.
#[must_use]
pub fn is(file: &Metadata) -> bool {
    let mut reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
    reserved.note_files();
    reserved.seen.contains(&(file.dev(), file.ino()))
}
