//! Landlock, the three system calls: a set of rules is made here, and the child restricts itself by it before its program
//! begins. Paths that are not there are left out; what the kernel does not know is taken off and told.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::frame::Confined;
use super::start::{Confinement, Rule};
use crate::sys;

/// Execute, write, read, truncate, control a device: the accesses that a plain file knows.
const OF_FILES: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15;

/// `struct landlock_ruleset_attr`. A kernel that knows less of it takes it, if what it does not know is nought.
#[repr(C)]
struct RulesetAttr {
    files: u64,
    net: u64,
    scopes: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    access: u64,
    parent: i32,
}

/// The version of the kernel's Landlock; 0: it has none, or it is switched off.
#[must_use]
#[allow(unsafe_code)]
pub fn version() -> u32 {
    const VERSION: u32 = 1;
    let none = std::ptr::null::<RulesetAttr>();
    // SAFETY: with this flag the kernel reads no memory and makes nothing: it returns a number.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, VERSION) };
    u32::try_from(version).unwrap_or(0)
}

/// The accesses to files, and the scopes, that a version knows.
#[must_use]
pub const fn known(version: u32) -> (u64, u64) {
    let bits = match version {
        0 => 0,
        1 => 13,
        2 => 14,
        3 | 4 => 15,
        _ => 16,
    };
    ((1 << bits) - 1, if version >= 6 { 3 } else { 0 })
}

/// A set of rules, ready to be restricted by; `None`: there is nothing that this kernel could enforce. And what it is.
///
/// # Errors
/// The kernel has less than is asked for at least (`Unsupported`), or a rule was refused.
pub fn rules(confine: &Confinement) -> io::Result<(Option<OwnedFd>, Confined)> {
    let abi = version();
    if abi < confine.least {
        let why = format!("this kernel has Landlock {abi} (0: none), and at least {} is required", confine.least);
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    let (files, scopes) = known(abi);
    let mut confined = Confined { abi, files: confine.handled & files, scopes: confine.scopes & scopes, missing: 0 };
    if confined.files == 0 && confined.scopes == 0 {
        return Ok((None, confined));
    }
    let set = create(&confined)?;
    for rule in &confine.rules {
        match add(set.as_fd(), rule, confined.files) {
            Ok(()) => {}
            Err(e) if is_not_there(&e) => confined.missing += 1,
            Err(e) => return Err(io::Error::new(e.kind(), format!("{}: {e}", rule.path.display()))),
        }
    }
    Ok((Some(set), confined))
}

/// Whether a rule's path is not there, or is a symbolic link now.
fn is_not_there(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

#[allow(unsafe_code)]
fn create(confined: &Confined) -> io::Result<OwnedFd> {
    let attr = RulesetAttr { files: confined.files, net: 0, scopes: confined.scopes };
    // SAFETY: the kernel reads as many bytes as the structure has, which lives through the call; what it returns, if it is
    // a descriptor, is new and belongs to nobody else.
    unsafe {
        match libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attr, size_of::<RulesetAttr>(), 0_u32) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?)),
        }
    }
}

#[allow(unsafe_code)]
fn add(set: BorrowedFd<'_>, rule: &Rule, handled: u64) -> io::Result<()> {
    const PATH_BENEATH: u32 = 1;
    // Paths are given without symbolic links. One that is there now was put there since, perhaps by an earlier agent.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let path = sys::open_without_links(CWD, &rule.path, flags, Mode::empty())?;
    let is_dir = FileType::from_raw_mode(rustix::fs::fstat(&path)?.st_mode).is_dir();
    let access = rule.access & handled & (if is_dir { u64::MAX } else { OF_FILES });
    if access == 0 {
        return Ok(());
    }
    let attr = PathBeneath { access, parent: path.as_raw_fd() };
    // SAFETY: both descriptors are open through the call, and the kernel reads the structure's bytes, which live as long.
    let answer =
        unsafe { libc::syscall(libc::SYS_landlock_add_rule, set.as_raw_fd(), PATH_BENEATH, &raw const attr, 0_u32) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Restricts this thread and all that it starts, for good. It may be called between fork and exec: it makes two system
/// calls and nothing else.
///
/// # Errors
/// The kernel refused.
#[allow(unsafe_code)]
pub fn restrict(set: BorrowedFd<'_>) -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    // SAFETY: the descriptor is open through the call, which takes integers alone.
    let answer = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, set.as_raw_fd(), 0_u32) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_knows_what_those_before_it_did() {
        assert_eq!((known(0), known(1).0, known(2).0.count_ones()), ((0, 0), 0x1fff, 14));
        for version in 1..20 {
            let ((files, scopes), (before, scopes_before)) = (known(version), known(version - 1));
            assert!(files & before == before && scopes & scopes_before == scopes_before, "{version}");
        }
        assert_eq!(known(6), (0xffff, 3));
    }
}
