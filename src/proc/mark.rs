//! The marks of an agent's process: variables in its environment, a tag in an inherited limit, and the identity of its
//! state directory.
//!
//! The identity is kept outside the database on purpose: a copy of the database or of the directory must not claim the
//! processes that the original started. This file must not know what a process is for.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{AtFlags, StatxFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::sys;

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
    /// `OSTLER_STATE_ID`; older versions did not set it.
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

/// A mark that survives a cleared environment: the soft limit of real-time. Every child inherits it, and its value,
/// some hundred thousand years, restricts no process. Like the variables it says the state directory, the boot, and the
/// session's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(u64);

impl Tag {
    /// The highest bits of each tag. No real limit of time has them.
    const SIGN: u64 = 1 << 62;
    const STATE: u32 = 30;
    const BOOT: u32 = 6;
    const ROW: u32 = 26;

    /// The tag of a session's processes; the row 0 stands for no session.
    #[must_use]
    pub fn new(state_id: &str, boot_id: &str, sid: i64) -> Self {
        let digest = |text: &str, bits: u32| {
            uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, text.as_bytes()).as_u64_pair().0 >> (64 - bits)
        };
        let row = sid.cast_unsigned() & ((1 << Self::ROW) - 1);
        Self(
            Self::SIGN
                | digest(state_id, Self::STATE) << (Self::BOOT + Self::ROW)
                | digest(boot_id, Self::BOOT) << Self::ROW
                | row,
        )
    }

    /// The tag in a limit, if the limit is one.
    #[must_use]
    pub const fn of_limit(limit: u64) -> Option<Self> {
        if limit >> 62 == 1 { Some(Self(limit)) } else { None }
    }

    /// The limit.
    #[must_use]
    pub const fn limit(self) -> u64 {
        self.0
    }

    /// The session's row; `None` for no session.
    #[must_use]
    pub fn sid(self) -> Option<i64> {
        let row = self.0 & ((1 << Self::ROW) - 1);
        i64::try_from(row).ok().filter(|row| *row > 0)
    }

    /// Whether that state directory's daemon gave it, in any of its boots.
    #[must_use]
    pub fn is_of(self, state_id: &str) -> bool {
        self.0 >> (Self::BOOT + Self::ROW) == Self::new(state_id, "", 0).0 >> (Self::BOOT + Self::ROW)
    }

    /// Whether the same boot of the same state directory gave both.
    #[must_use]
    pub const fn same_boot(self, other: Self) -> bool {
        self.0 >> Self::ROW == other.0 >> Self::ROW
    }
}

/// Which daemon this process is.
#[derive(Debug)]
struct Own {
    state_id: String,
    boot_id: String,
    tags: bool,
}

static OWN: OnceLock<Own> = OnceLock::new();

/// Makes this process that boot of the daemon of that state directory; its agents are marked with it from now on. A tag
/// that this process got from an agent that started it is taken off, because its children do not belong to that agent.
pub fn declare(state_id: String, boot_id: String) {
    let before = getrlimit(Resource::Rttime);
    let tags = sys::set_soft_limit(Resource::Rttime, Tag::new(&state_id, &boot_id, 0).limit());
    let back = match before.current.and_then(Tag::of_limit) {
        Some(_) => before.maximum,
        None => before.current,
    };
    let _ = setrlimit(Resource::Rttime, Rlimit { current: back, maximum: before.maximum });
    // A process becomes a daemon once.
    let _ = OWN.set(Own { state_id, boot_id, tags });
}

/// The identity of this daemon's state directory; `None` in a process that is no daemon.
#[must_use]
pub fn own_state() -> Option<&'static str> {
    OWN.get().map(|own| own.state_id.as_str())
}

/// The tag that this daemon gives to the processes of a session's agent (0: of no session). `None` where the system
/// keeps no tags, and in a process that is no daemon.
#[must_use]
pub fn own_tag(sid: i64) -> Option<Tag> {
    OWN.get().filter(|own| own.tags).map(|own| Tag::new(&own.state_id, &own.boot_id, sid))
}

/// This daemon's boot; `None` in a process that is no daemon.
#[must_use]
pub fn own_boot() -> Option<&'static str> {
    OWN.get().map(|own| own.boot_id.as_str())
}

/// The identity of a state directory: its disk, its inode, and its time of birth. It survives a rename and any change
/// of the contents; a copy has another identity.
///
/// # Errors
/// The directory cannot be opened.
pub fn state_id(dir: &Path) -> io::Result<String> {
    let open = File::open(dir)?;
    // Statx is asked of a handle: the name may lead elsewhere a moment later.
    let wanted = StatxFlags::INO | StatxFlags::BTIME;
    match rustix::fs::statx(&open, c"", AtFlags::EMPTY_PATH, wanted) {
        Ok(s) => {
            // Not every file system keeps the time of birth; then disk and inode have to do.
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

    #[test]
    fn a_tag_says_whose_it_is() {
        let tag = Tag::new("here", "one", 77);
        assert_eq!(
            (Tag::of_limit(tag.limit()), tag.sid(), tag.is_of("here"), tag.is_of("there")),
            (Some(tag), Some(77), true, false)
        );
        assert!(tag.same_boot(Tag::new("here", "one", 5)) && Tag::new("here", "two", 5).is_of("here"));
        assert!(!tag.same_boot(Tag::new("here", "two", 77)) && !tag.same_boot(Tag::new("there", "one", 77)));
        assert_eq!(Tag::new("here", "one", 0).sid(), None);
        for limit in [0, 1, 200_000, u64::MAX, u64::MAX >> 1 >> 1, 1 << 63] {
            assert_eq!(Tag::of_limit(limit), None, "{limit}: no time that anybody means");
        }
    }
}
