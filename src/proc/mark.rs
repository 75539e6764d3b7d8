//! What marks a process as an agent's: variables in its environment, and the identity of the state directory that it
//! belongs to.
//!
//! The identity is kept outside the database on purpose: a copy of the database, or of the whole directory, is another
//! directory, and what it knows of is not its own. It must not know what a process is for.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{AtFlags, StatxFlags};

/// The variable that carries the session's id into every process of an agent.
pub const SESSION_VAR: &str = "OSTLER_SESSION_ID";
/// The variable that carries the boot's id into every process of an agent.
pub const BOOT_VAR: &str = "OSTLER_BOOT_ID";
/// The variable that carries the key into every process of an agent.
pub const KEY_VAR: &str = "OSTLER_KEY";
/// The variable that carries the state directory's identity into every process of an agent.
pub const STATE_VAR: &str = "OSTLER_STATE_ID";

/// The markers of an agent's process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// `OSTLER_SESSION_ID`.
    pub session_id: Option<String>,
    /// `OSTLER_BOOT_ID`.
    pub boot_id: String,
    /// `OSTLER_STATE_ID`; a version before it had none.
    pub state_id: Option<String>,
}

impl Marks {
    /// The markers in a block of variables; `None` when there are none.
    pub(super) fn parse(environ: &[u8]) -> Option<Self> {
        let value = |name: &str| {
            environ.split(|b| *b == 0).find_map(|entry| {
                let text = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
                Some(String::from_utf8_lossy(text).into_owned())
            })
        };
        Some(Self { boot_id: value(BOOT_VAR)?, session_id: value(SESSION_VAR), state_id: value(STATE_VAR) })
    }
}

static OWN: OnceLock<String> = OnceLock::new();

/// From now on this process is the daemon of that state directory: the agents that it starts carry its identity.
pub fn declare(state_id: String) {
    // A process is the daemon of one directory for all its life.
    let _ = OWN.set(state_id);
}

/// The identity of this daemon's state directory; `None` in a process that is no daemon.
#[must_use]
pub fn own_state() -> Option<&'static str> {
    OWN.get().map(String::as_str)
}

/// The identity of a state directory: where it is on which disk, and when it was made there. It survives a rename and a
/// change of all that is in it; a copy has another one.
///
/// # Errors
/// The directory cannot be opened.
pub fn state_id(dir: &Path) -> io::Result<String> {
    let open = File::open(dir)?;
    // Statx is asked of a handle: the name may lead elsewhere a moment later.
    let wanted = StatxFlags::INO | StatxFlags::BTIME;
    match rustix::fs::statx(&open, c"", AtFlags::EMPTY_PATH, wanted) {
        Ok(s) => {
            // Not every file system keeps the time of birth: then the place alone has to do.
            let born = if s.stx_mask & StatxFlags::BTIME.bits() == 0 {
                (0, 0)
            } else {
                (s.stx_btime.tv_sec, s.stx_btime.tv_nsec)
            };
            Ok(format!("{:x}.{:x}-{:x}-{:x}.{:x}", s.stx_dev_major, s.stx_dev_minor, s.stx_ino, born.0, born.1))
        }
        Err(_) => {
            let s = rustix::fs::fstat(&open)?;
            Ok(format!("{:x}-{:x}-0.0", s.st_dev, s.st_ino))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_whole_names_are_markers() {
        let block = b"XOSTLER_BOOT_ID=no\0OSTLER_BOOT_ID=b1\0PATH=/bin\0OSTLER_SESSION_ID=s=1\0";
        let marks = Marks::parse(block).unwrap();
        assert_eq!((marks.boot_id.as_str(), marks.session_id.as_deref(), marks.state_id), ("b1", Some("s=1"), None));
        let marks = Marks::parse(b"OSTLER_STATE_ID=8.1-2-3.4\0OSTLER_BOOT_ID=b\0").unwrap();
        assert_eq!((marks.session_id, marks.state_id.as_deref()), (None, Some("8.1-2-3.4")));
        assert_eq!(Marks::parse(b"OSTLER_SESSION_ID=s1\0OSTLER_BOOT_IDS=b\0"), None);
    }

    #[test]
    fn a_directory_keeps_its_identity_and_a_copy_has_another() {
        let dir = tempfile::tempdir().unwrap();
        let (one, moved, two) = (dir.path().join("one"), dir.path().join("moved"), dir.path().join("two"));
        std::fs::create_dir(&one).unwrap();
        std::fs::create_dir(&two).unwrap();
        let id = state_id(&one).unwrap();
        std::fs::write(one.join("lock"), "1").unwrap();
        std::fs::rename(&one, &moved).unwrap();
        assert_eq!(state_id(&moved).unwrap(), id);
        assert_ne!(state_id(&two).unwrap(), id);
        assert!(state_id(&one).is_err());
    }
}
