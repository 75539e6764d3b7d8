//! A shim in a directory of its own, and a daemon's part for it. Everything waits for descriptors, and nothing for long.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use ostler::shim::client::{Client, Daemon, Event, Lost, Refusal};
use ostler::shim::frame::{Attached, Code, Confined, Exit, Kept, Ladder, Taken, Who};
use ostler::shim::launch::{Program, Seed, SocketName};
use ostler::shim::machine::Patience;
use ostler::shim::proof::{Place, Token};
use ostler::shim::start::Start;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags};

/// No test waits longer for anything.
pub const HANGS: Duration = Duration::from_secs(60);
/// A ladder without long rungs.
pub const QUICK: Ladder = Ladder { input: 300, term: 300, kill: 30_000, linger: 300 };

/// What a client heard, to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Started(Who, Confined),
    Taken(Taken),
    Output(u64, Vec<u8>),
    Stderr(u64, Vec<u8>),
    Spool(Kept),
    Ending,
    EndOfOutput,
    Exit(Exit),
    Trouble(Code, u64, String),
}

pub struct Shim {
    pub dir: PathBuf,
    pub dir_fd: OwnedFd,
    pub seed: Seed,
    pub place: Place,
    pub child: Child,
    pub spool: tempfile::TempDir,
    _dir: Option<tempfile::TempDir>,
}

/// What a test starts: a shell script.
pub fn script(text: &str) -> Start {
    Start {
        argv: vec!["/bin/sh".into(), "-c".into(), text.into()],
        env: vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into())],
        cwd: "/".into(),
        ladder: QUICK,
        orphan: 60_000,
        ..Start::default()
    }
}

pub fn program() -> Program {
    Program::open(Path::new(env!("CARGO_BIN_EXE_ostler-shim"))).unwrap()
}

pub fn seed(lock: &Path, patience: Patience) -> Seed {
    let stat = rustix::fs::stat(lock).unwrap();
    let (token, name) = (Token::new().unwrap(), SocketName::new().unwrap());
    Seed { token, device: stat.st_dev, inode: stat.st_ino, patience, name }
}

impl Shim {
    pub fn new() -> Self {
        Self::patient(Patience::default())
    }

    pub fn patient(patience: Patience) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut shim = Self::in_dir(dir.path(), patience);
        shim._dir = Some(dir);
        shim
    }

    pub fn in_dir(dir: &Path, patience: Patience) -> Self {
        let seed = seed(dir, patience);
        let dir_fd: OwnedFd = File::open(dir).unwrap().into();
        // As a daemon does it: by its own descriptor of the directory, however long the path is.
        let by_fd = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir_fd));
        let marks = [(OsStr::new("OSTLER_BOOT_ID"), OsStr::new("shim-test"))];
        let mut spawned = program()
            .spawn(Path::new(&by_fd), &seed, &marks, |command: &mut Command| Ok((command.spawn()?, ())))
            .unwrap();
        spawned.listens_until(Instant::now() + HANGS).unwrap();
        let place = Place::here(seed.device, seed.inode).unwrap();
        let spool = tempfile::tempdir().unwrap();
        Self { dir: dir.to_owned(), dir_fd, seed, place, child: spawned.child, spool, _dir: None }
    }

    pub fn daemon(&self, boot: u64, from: u64) -> Daemon {
        Daemon { token: self.seed.token.clone(), place: self.place, boot, from }
    }

    pub fn try_attach(&self, daemon: Daemon) -> Result<(Link, Attached), Refusal> {
        let attached = Client::attach(self.dir_fd.as_fd(), &self.seed.name, daemon, Instant::now() + HANGS);
        attached.map(|(client, attached)| (Link { client }, attached))
    }

    pub fn attach(&self, boot: u64, from: u64) -> (Link, Attached) {
        self.try_attach(self.daemon(boot, from)).unwrap()
    }

    /// Attaches as boot 1 and starts that.
    pub fn start(&self, start: &Start) -> (Link, Who) {
        let (mut link, _) = self.attach(1, 0);
        link.client.start(start).unwrap();
        let who = link.until(|heard| if let Heard::Started(who, _) = heard { Some(*who) } else { None });
        (link, who)
    }

    pub fn with_spool(&self, start: Start) -> Start {
        Start { spool: Some(self.spool.path().to_owned()), ..start }
    }

    /// All that descends from it, held.
    fn family(&self) -> Vec<OwnedFd> {
        let hold =
            |pid: u32| rustix::process::pidfd_open(Pid::from_raw(pid.try_into().ok()?)?, PidfdFlags::empty()).ok();
        ostler::shim::family::descendants(self.child.id()).into_iter().filter_map(hold).collect()
    }

    /// Whether it has left, asked now.
    pub fn has_left(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until it has left.
    pub fn leaves(&mut self) {
        assert!(gone(self.child.id(), HANGS), "the shim stays");
        assert!(self.child.wait().unwrap().success());
        assert!(!self.dir.join(self.seed.name.as_str()).exists(), "it takes its socket away");
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // A killed shim takes its agent with it, but not what that has started.
        let left = self.family();
        let _ = self.child.kill();
        let _ = self.child.wait();
        for fd in left {
            let _ = rustix::process::pidfd_send_signal(fd, rustix::process::Signal::KILL);
        }
    }
}

/// A client's connection.
pub struct Link {
    pub client: Client,
}

impl Link {
    /// The next thing; an error when the connection is over.
    pub fn next(&mut self) -> Result<Heard, Lost> {
        let until = Instant::now() + HANGS;
        loop {
            self.client.flush()?;
            match self.client.receive()? {
                None => {}
                Some(Event::Started { agent, confined }) => return Ok(Heard::Started(agent, confined)),
                Some(Event::Taken(taken)) => return Ok(Heard::Taken(taken)),
                Some(Event::Output { offset, bytes }) => return Ok(Heard::Output(offset, bytes.to_vec())),
                Some(Event::Stderr { dropped, bytes }) => return Ok(Heard::Stderr(dropped, bytes.to_vec())),
                Some(Event::Spool(kept)) => return Ok(Heard::Spool(kept)),
                Some(Event::Ending) => return Ok(Heard::Ending),
                Some(Event::EndOfOutput) => return Ok(Heard::EndOfOutput),
                Some(Event::Exit(exit)) => return Ok(Heard::Exit(exit)),
                Some(Event::Trouble { code, number, text }) => {
                    return Ok(Heard::Trouble(code, number, text.to_owned()));
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "nothing is heard of the shim");
            self.client.wait(left).unwrap();
        }
    }

    /// Goes on until something is found; what it is heard before is thrown away.
    pub fn until<T>(&mut self, mut wanted: impl FnMut(&Heard) -> Option<T>) -> T {
        loop {
            let heard = self.next().unwrap();
            if let Some(found) = wanted(&heard) {
                return found;
            }
        }
    }

    /// Reads output until it ends with that.
    pub fn read_until(&mut self, ends: &str) -> String {
        let mut all = Vec::new();
        loop {
            if let Heard::Output(_, bytes) = self.next().unwrap() {
                all.extend_from_slice(&bytes);
                if all.ends_with(ends.as_bytes()) {
                    return String::from_utf8_lossy(&all).into_owned();
                }
            }
        }
    }

    /// Acknowledges all output until the exit; gives both.
    pub fn finish(&mut self) -> (Vec<u8>, Exit) {
        let mut all = Vec::new();
        loop {
            match self.next().unwrap() {
                Heard::Output(_, bytes) => {
                    all.extend_from_slice(&bytes);
                    self.client.acknowledge(self.client.received()).unwrap();
                }
                Heard::Exit(exit) => return (all, exit),
                _ => {}
            }
        }
    }

    /// Waits until the other side has closed it.
    pub fn closes(&mut self) -> Lost {
        loop {
            if let Err(lost) = self.next() {
                return lost;
            }
        }
    }
}

/// Whether a process is dead (as a zombie too), or dies within that time.
pub fn gone(pid: u32, within: Duration) -> bool {
    let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    let Ok(fd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return true };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&within.try_into().unwrap())).unwrap() > 0
}

/// Whether it lives.
pub fn lives(pid: u32) -> bool {
    !gone(pid, Duration::ZERO)
}

/// A field of `/proc/PID/status`.
pub fn status(pid: u32, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field}")).trim().to_owned()
}
