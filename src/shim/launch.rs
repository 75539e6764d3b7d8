//! How the daemon starts a shim: which program, and what it is given.
//!
//! The shim gets nothing by its arguments. Its environment has markers only. What it must know at once, the token above all,
//! comes through its stdin, which nobody else can read; the directory of its socket is its working directory at first. It
//! answers through its stdout: one byte when it listens, else a text. What to start it hears later, by START.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};

use super::frame::{Malformed, Reader, VERSION};
use super::machine::Patience;
use super::proof::{Token, random};

/// The name of the program.
pub const PROGRAM: &str = "ostler-shim";
/// The variable that names another program, for tests.
pub const PROGRAM_VAR: &str = "OSTLER_SHIM";
/// Where packages put it.
pub const LIBEXEC: &str = "/usr/libexec/ostler";
/// The characters of a socket's name.
pub const NAME: usize = 16;
/// The bytes of a [`Seed`].
pub const SEED: usize = 2 + 32 + 8 + 8 + 4 + 4 + NAME;
/// What a shim says when it listens.
pub const READY: u8 = b'+';
/// The most bytes of what it says else.
const COMPLAINT: u64 = 1024;

/// The name of a shim's socket in its directory.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketName([u8; NAME]);

impl SocketName {
    /// A new one, which nobody can guess.
    ///
    /// # Errors
    /// The kernel has no random bytes to give.
    pub fn new() -> io::Result<Self> {
        const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        Ok(Self(random::<NAME>()?.map(|b| LETTERS[usize::from(b % 32)])))
    }

    /// That one, from where it was kept; `None` if it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; NAME] = text.as_bytes().try_into().ok()?;
        bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()).then_some(Self(bytes))
    }

    /// Its letters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Letters and digits alone.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl std::fmt::Debug for SocketName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a shim is given at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// The secret that it shares with its daemon.
    pub token: Token,
    /// The device of the state directory's lock file.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// How long it waits for START, and for proofs.
    pub patience: Patience,
    /// Where it listens, in the directory that it is started in.
    pub name: SocketName,
}

impl Seed {
    /// The bytes of it.
    #[must_use]
    pub fn encode(&self) -> [u8; SEED] {
        let mut bytes = [0; SEED];
        let parts: [&[u8]; 7] = [
            &VERSION.to_le_bytes(),
            self.token.bytes(),
            &self.device.to_le_bytes(),
            &self.inode.to_le_bytes(),
            &self.patience.start.to_le_bytes(),
            &self.patience.hello.to_le_bytes(),
            &self.name.0,
        ];
        for (byte, from) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
            *byte = *from;
        }
        bytes
    }

    /// Reads it.
    ///
    /// # Errors
    /// It is none, or another version's.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut rest = Reader(bytes);
        if rest.u16()? != VERSION {
            return Err(Malformed("the daemon speaks another version of the protocol"));
        }
        let seed = Self {
            token: Token::from_bytes(rest.array()?),
            device: rest.u64()?,
            inode: rest.u64()?,
            patience: Patience { start: rest.u32()?, hello: rest.u32()? },
            name: std::str::from_utf8(rest.bytes(NAME)?)
                .ok()
                .and_then(SocketName::parse)
                .ok_or(Malformed("no name for a socket"))?,
        };
        rest.end()?;
        Ok(seed)
    }
}

/// The shim's program, held open, so that a daemon goes on with its own version while a package replaces the file.
#[derive(Debug)]
pub struct Program {
    file: OwnedFd,
    path: PathBuf,
}

impl Program {
    /// Finds it: what `$OSTLER_SHIM` names, else beside this program, else where packages put it.
    ///
    /// # Errors
    /// It is in none of these places: says which.
    pub fn find() -> io::Result<Self> {
        if let Some(path) = std::env::var_os(PROGRAM_VAR) {
            return Self::open(Path::new(&path));
        }
        let own = std::env::current_exe().ok();
        let places = own.as_deref().and_then(Path::parent).into_iter().chain([Path::new(LIBEXEC)]);
        let mut missing = Vec::new();
        for place in places {
            match Self::open(&place.join(PROGRAM)) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => missing.push(place.display().to_string()),
                found => return found,
            }
        }
        let why = format!("{PROGRAM}: not found in {}", missing.join(", "));
        Err(io::Error::new(io::ErrorKind::NotFound, why))
    }

    /// Takes that file.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        Ok(Self { file: file.into(), path: path.to_owned() })
    }

    /// Where it was found.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts a shim that listens in a directory. `marks` is its whole environment. `start` makes the process (the
    /// daemon registers its children); what it gives back beside the child is kept with it.
    ///
    /// # Errors
    /// The process was not made, or takes nothing.
    pub fn spawn<T>(
        &self,
        dir: &Path,
        seed: &Seed,
        marks: &[(&OsStr, &OsStr)],
        start: impl FnOnce(&mut Command) -> io::Result<(Child, T)>,
    ) -> io::Result<Spawned<T>> {
        let mut command = Command::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        command.arg0(PROGRAM).current_dir(dir).env_clear().envs(marks.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let (mut child, kept) = start(&mut command)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (Some(mut stdin), Some(ready)) = (stdin, stdout) else { return Err(io::ErrorKind::BrokenPipe.into()) };
        // It fits into the pipe, so this does not wait.
        stdin.write_all(&seed.encode())?;
        Ok(Spawned { child, kept, ready })
    }
}

/// A shim that was started and may not listen yet. It goes on whatever becomes of this value.
#[derive(Debug)]
pub struct Spawned<T> {
    /// Its process, as the daemon's child.
    pub child: Child,
    /// What came with it.
    pub kept: T,
    ready: ChildStdout,
}

impl<T> Spawned<T> {
    /// Readable once it has something to say: then [`Self::listens`] does not wait.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    /// Waits until it listens.
    ///
    /// # Errors
    /// What it says instead: it has left.
    pub fn listens(&mut self) -> io::Result<()> {
        let mut first = [0];
        match self.ready.read(&mut first)? {
            1 if first[0] == READY => return Ok(()),
            _ => {}
        }
        let mut text = first.to_vec();
        (&mut self.ready).take(COMPLAINT).read_to_end(&mut text)?;
        let text = String::from_utf8_lossy(&text);
        Err(io::Error::other(format!("{PROGRAM}: {}", text.trim_matches(['\0', ' ', '\n']))))
    }

    /// The same, for so long at most.
    ///
    /// # Errors
    /// It said something else, or nothing in that time.
    pub fn listens_until(&mut self, until: Instant) -> io::Result<()> {
        let time = until.saturating_duration_since(Instant::now());
        let time = time.try_into().map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.ready, PollFlags::IN)], Some(&time)) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            // A signal came: it has said something, or soon will; either way it is not waited for longer than it takes to leave.
            _ => self.listens(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_seed_comes_back_as_it_was() {
        let patience = Patience { start: 7, hello: 8 };
        let seed =
            Seed { token: Token::new().unwrap(), device: 1, inode: 2, patience, name: SocketName::new().unwrap() };
        let bytes = seed.encode();
        assert_eq!(Seed::decode(&bytes), Ok(seed.clone()));
        assert_eq!(SocketName::parse(seed.name.as_str()), Some(seed.name));
        for n in 0..SEED {
            assert!(Seed::decode(&bytes[..n]).is_err());
        }
        assert!(Seed::decode(&[&bytes[..], b"x"].concat()).is_err());
        let mut other = bytes;
        other[0] ^= 1;
        assert!(Seed::decode(&other).unwrap_err().to_string().contains("version"));
        for name in ["", "../../../../../..", "abcdefghijklmno/", "ABCDEFGHIJKLMNOP", "abcdefghijklmnopq"] {
            assert_eq!(SocketName::parse(name), None, "{name}");
        }
    }
}
