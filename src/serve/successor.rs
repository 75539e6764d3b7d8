//! A restart that no service manager makes: the process goes on in the program that stands at its path by then, with the
//! same pid, arguments and environment. Its listening sockets stay open, so that clients wait and none is refused.
//!
//! What the next program must know stands in one variable of its environment, and counts only for this very process. It
//! must not know what a stop does: it is called when all is closed.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

use crate::proc::{self, procfs};
use crate::sys::{self, SocketKind};

/// The variable.
const VARIABLE: &str = "OSTLER_SUCCESSOR";
/// What a service manager passed at the first start; the next program finds those sockets in the variable.
const MANAGERS: [&str; 3] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];
/// The longest list of inherited children: a variable has at most 128 KiB.
const MOST_INHERITED: usize = 1000;

/// Whose a listening socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Role {
    /// Ours, at the path of `--socket`; device and inode of its file.
    Own(u64, u64),
    /// A service manager's, passed at the first start.
    Passed,
    /// That of `[http]`.
    Http,
}

/// The listening sockets that the next program gets.
pub(super) type Kept = Vec<(Role, OwnedFd)>;

/// What the variable says.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// The process, by number and start: it is no other's.
    pid: u32,
    start: u64,
    /// Where the first program was; what stands there may be a script that runs the program proper.
    program: Option<String>,
    sockets: Vec<(Role, RawFd)>,
    /// The children that the first program had inherited.
    inherited: Vec<(u32, u64)>,
}

/// What the last program of this process left.
#[derive(Debug, Default)]
pub(super) struct Left {
    program: Option<PathBuf>,
    pub sockets: Vec<(Role, OwnedFd, SocketKind)>,
    pub inherited: Option<Vec<(u32, u64)>>,
}

/// Takes what the last program left, if there was one. Called once, before anything is opened.
pub(super) fn left() -> Left {
    let Some(note) = std::env::var(VARIABLE).ok().and_then(|text| read(&text, std::process::id())) else {
        return Left::default();
    };
    let mut sockets = Vec::new();
    for (role, number) in note.sockets {
        match sys::left_socket(number) {
            Ok((fd, kind)) => sockets.push((role, fd, kind)),
            Err(e) => log::warn!("{VARIABLE}: descriptor {number}: {e}"),
        }
    }
    Left { program: note.program.map(PathBuf::from), sockets, inherited: Some(note.inherited) }
}

/// Reads the variable, if it is meant for the process `me`.
fn read(text: &str, me: u32) -> Option<Note> {
    let note: Note = serde_json::from_str(text).ok()?;
    let start = procfs::stat(me)?.start;
    (note.pid == me && note.start == start).then_some(note)
}

/// This program, as it was started.
#[derive(Clone, Debug)]
pub(super) struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    /// The soft limit of descriptors.
    descriptors: Option<u64>,
}

impl Program {
    /// Called at the start, before the limits are raised and while the file is still there.
    pub fn note(left: &Left) -> io::Result<Self> {
        let running = std::env::current_exe()?;
        let arguments: Vec<OsString> = std::env::args_os().collect();
        let asked = arguments.first().map(PathBuf::from).unwrap_or_default();
        let called = || path_of(&asked, std::env::var_os("PATH").as_deref()).filter(|path| is_same(path, &running));
        let path = left.program.clone().or_else(called).unwrap_or(running.clone());
        Ok(Self { path, arguments, descriptors: getrlimit(Resource::Nofile).current })
    }

    /// The path that the next program is run from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Goes on in the program that is there now. Returns only if that fails.
    pub fn go_on(&self, kept: &Kept) -> io::Error {
        match self.command(kept) {
            Ok(mut command) => sys::go_on_as(&mut command),
            Err(e) => e,
        }
    }

    fn command(&self, sockets: &Kept) -> io::Result<Command> {
        let pid = std::process::id();
        let start = procfs::stat(pid).ok_or(io::ErrorKind::NotFound)?.start;
        let mut inherited = proc::inherited();
        inherited.truncate(MOST_INHERITED);
        let numbers = sockets.iter().map(|(role, fd)| (*role, fd.as_raw_fd())).collect();
        let program = self.path.to_str().map(str::to_owned);
        let note = Note { pid, start, program, sockets: numbers, inherited };
        for (_, fd) in sockets {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
        }
        if let Some(soft) = self.descriptors {
            sys::set_soft_limit(Resource::Nofile, soft);
        }
        let mut command = Command::new(&self.path);
        if let Some((name, rest)) = self.arguments.split_first() {
            command.arg0(name).args(rest);
        }
        for name in MANAGERS {
            command.env_remove(name);
        }
        command.env(VARIABLE, serde_json::to_string(&note)?);
        Ok(command)
    }
}

/// Where a program of this name is: a path is itself, a bare name is looked for as a shell does.
fn path_of(name: &Path, path: Option<&std::ffi::OsStr>) -> Option<PathBuf> {
    if name.components().nth(1).is_some() || name.is_absolute() {
        return std::path::absolute(name).ok();
    }
    let dirs = std::env::split_paths(path?).filter(|dir| dir.is_absolute());
    dirs.map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Whether both names lead to one file.
fn is_same(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    id(one).is_some_and(|one| id(other) == Some(one))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_note_counts_for_this_very_process() {
        let me = std::process::id();
        let start = procfs::stat(me).unwrap().start;
        let text = |pid: u32, start: u64| {
            let sockets = vec![(Role::Own(1, 2), 7), (Role::Http, 8)];
            let note = Note { pid, start, program: Some("/p".into()), sockets, inherited: vec![(3, 4)] };
            serde_json::to_string(&note).unwrap()
        };
        let note = read(&text(me, start), me).unwrap();
        assert_eq!(note.sockets, [(Role::Own(1, 2), 7), (Role::Http, 8)]);
        assert_eq!(note.inherited, [(3, 4)]);
        assert!(read(&text(me + 1, start), me).is_none() && read(&text(me, start + 1), me).is_none());
        assert!(read("", me).is_none() && read("{}", me).is_none() && read("7", me).is_none());
    }

    #[test]
    fn what_is_no_listening_socket_is_not_taken() {
        use std::os::fd::IntoRawFd as _;
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(sys::left_socket(file.as_raw_fd()).is_err());
        assert!(file.metadata().is_ok(), "it is left as it is");
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(sys::left_socket(one.as_raw_fd()).is_err(), "connected, and not listening");
        for number in [-1, 0, 2, 1_000_000] {
            assert!(sys::left_socket(number).is_err(), "{number}");
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (fd, kind) = sys::left_socket(listener.into_raw_fd()).unwrap();
        assert_eq!((std::net::TcpListener::from(fd).local_addr().unwrap(), kind), (address, SocketKind::Tcp));
    }

    #[test]
    fn a_program_is_found_as_it_was_called() {
        let dir = tempfile::tempdir().unwrap();
        let path = std::env::join_paths([Path::new("relative"), Path::new("/none"), dir.path()]).unwrap();
        std::fs::write(dir.path().join("prog"), "").unwrap();
        let found = |name: &str| path_of(Path::new(name), Some(&path));
        assert_eq!(found("prog"), Some(dir.path().join("prog")));
        assert_eq!(found("other"), None);
        assert_eq!(found("/a/b"), Some("/a/b".into()));
        assert_eq!(found("./b"), Some(std::env::current_dir().unwrap().join("b")));
        assert_eq!(found("a/b"), Some(std::env::current_dir().unwrap().join("a/b")));
        assert_eq!(path_of(Path::new("prog"), None), None);
        // A link that is turned to a newer version leads to that one.
        std::os::unix::fs::symlink("prog", dir.path().join("link")).unwrap();
        assert!(is_same(&dir.path().join("link"), &dir.path().join("prog")));
        assert!(!is_same(&dir.path().join("link"), Path::new("/none")));
    }
}
