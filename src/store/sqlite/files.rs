//! Whether the database's files are still those that were opened.
//!
//! The process can go on writing to a file that was deleted or replaced, but what it writes is lost when it ends. So
//! the writer checks before each transaction, and again before it acknowledges one.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::store::Error;

/// The files of one database.
pub(super) struct Files {
    path: PathBuf,
    log: PathBuf,
    known: Mutex<KnownFiles>,
}

#[derive(Default)]
struct KnownFiles {
    file: Option<Identity>,
    /// The database's length, which never shrinks by itself.
    length: u64,
    log: Option<Identity>,
}

type Identity = (u64, u64);

fn identity(path: &Path) -> Result<Option<(Identity, u64)>, String> {
    match std::fs::metadata(path) {
        Ok(m) => Ok(Some(((m.dev(), m.ino()), m.len()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(format!("{}: {e}", path.display())),
    }
}

/// The files are those that were opened; a database in memory has none.
///
/// # Errors
/// They are not: what happened to them.
pub(super) fn intact(files: Option<&Files>) -> Result<(), Error> {
    files.map_or(Ok(()), |files| files.check().map_err(Error::Unavailable))
}

impl Files {
    /// The files under this name, once they are opened.
    pub(super) fn new(path: &Path) -> Self {
        let log = path.with_file_name(format!("{}-wal", path.file_name().unwrap_or_default().to_string_lossy()));
        let known = match identity(path) {
            Ok(Some((file, length))) => KnownFiles { file: Some(file), length, log: None },
            Ok(None) | Err(_) => KnownFiles::default(),
        };
        Self { path: path.into(), log, known: Mutex::new(known) }
    }

    /// Closes or opens a connection; SQLite may then remove the log, or make another.
    pub(super) fn with_new_log<T>(&self, change: impl FnOnce() -> T) -> T {
        // Held meanwhile, so that nobody checks in between.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let done = change();
        known.log = None;
        done
    }

    /// Checks the files. An error says what happened to which file.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = known.file else { return Ok(()) };
        let path = self.path.display();
        match identity(&self.path)? {
            None => return Err(format!("{path}: the database was deleted or moved away while the daemon has it open")),
            Some((now, _)) if now != file => {
                return Err(format!("{path}: the database was replaced while the daemon has it open"));
            }
            Some((_, length)) if length < known.length => {
                return Err(format!("{path}: the database was cut off while the daemon has it open: it is damaged"));
            }
            Some((_, length)) => known.length = length,
        }
        match (identity(&self.log)?, known.log) {
            (Some((now, _)), None) => known.log = Some(now),
            (Some((now, _)), Some(log)) if now == log => {}
            (None, None) => {}
            (Some(_) | None, Some(_)) => {
                let log = self.log.display();
                return Err(format!("{log}: the database's log was deleted or replaced while the daemon has it open"));
            }
        }
        Ok(())
    }
}

/// Who holds a lock on a file, as the kernel lists them: pids, and what they run.
pub(super) fn lockers(path: &Path) -> Vec<String> {
    let Ok(meta) = std::fs::metadata(path) else { return Vec::new() };
    let (dev, ino) = (meta.dev(), meta.ino());
    let file = format!("{:02x}:{:02x}:{ino}", rustix::fs::major(dev), rustix::fs::minor(dev));
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let me = std::process::id();
    let holder = |line: &str| {
        let mut words = line.split_whitespace().skip(3);
        let write = words.next() == Some("WRITE");
        let pid: u32 = words.next()?.parse().ok()?;
        (write && words.next() == Some(file.as_str()) && pid != me).then_some(pid)
    };
    let mut pids: Vec<u32> = locks.lines().filter_map(holder).collect();
    pids.sort_unstable();
    pids.dedup();
    let name = |pid: &u32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        format!("{} (pid {pid})", name.trim())
    };
    pids.iter().map(name).collect()
}
