//! What a START message says: the program, its environment, its confinement, the times. Pure.
//!
//! It comes in pieces and is read once it is whole, so its length is bounded here as a whole, and each count within it by
//! what is left of it: a list never reserves more memory than its bytes could fill.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use super::frame::{Ladder, Malformed, Reader, put_ladder};

/// The most bytes of a whole START: more than the kernel takes for arguments and environment.
pub const START_LIMIT: usize = 4 * 1024 * 1024;
/// The least that a spool holds, so that a line of 32 MiB and the wait for its end do not wait for each other.
pub const SPOOL_LEAST: u64 = 64 * 1024 * 1024;
/// The most limits of a process, and rules of a confinement.
const MANY: usize = 4096;

/// A limit of a process, by the kernel's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessLimit {
    /// `RLIMIT_…`.
    pub resource: u32,
    /// The soft limit; the hard one stays.
    pub soft: u64,
}

/// A path, and what may be done below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// A file or a directory, without symbolic links. One that is not there, or is reached by one, is left out and counted.
    pub path: PathBuf,
    /// `LANDLOCK_ACCESS_FS_…`; what does not fit a plain file is taken off for one.
    pub access: u64,
}

/// What an agent may do, for Landlock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    /// The accesses to files that are handled: only those are denied where no rule grants them. What the kernel does not
    /// know is taken off.
    pub handled: u64,
    /// `LANDLOCK_SCOPE_…`; what the kernel does not know is taken off.
    pub scopes: u64,
    /// The least version of Landlock with which the agent may be started; 0: even without any.
    pub least: u32,
    /// What is granted.
    pub rules: Vec<Rule>,
}

/// All that is needed to start an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// The program and its arguments. It is looked up in the `PATH` of [`Self::env`].
    pub argv: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Its working directory.
    pub cwd: PathBuf,
    /// Its limits.
    pub limits: Vec<ProcessLimit>,
    /// What is added to the shim's `oom_score_adj` for the agent.
    pub oom_adj: u16,
    /// The directory of its control group. The agent goes into it before its program begins.
    pub cgroup: Option<PathBuf>,
    /// Its confinement; none: it is not confined.
    pub confine: Option<Confinement>,
    /// Where the spool is made; none: there is no spool.
    pub spool: Option<PathBuf>,
    /// The most bytes of the spool; fewer than [`SPOOL_LEAST`] are as many.
    pub spool_limit: u64,
    /// How it is ended when nobody says how: by SIGTERM to the shim, or without a daemon for too long.
    pub ladder: Ladder,
    /// How long it may work on without a connection, in milliseconds.
    pub orphan: u64,
}

impl Start {
    /// The message, to be sent in pieces.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_list(&mut out, &self.argv, |out, arg| put_bytes(out, arg.as_bytes()));
        put_list(&mut out, &self.env, |out, (name, value)| {
            put_bytes(out, name.as_bytes());
            put_bytes(out, value.as_bytes());
        });
        put_bytes(&mut out, self.cwd.as_os_str().as_bytes());
        put_list(&mut out, &self.limits, |out, limit| {
            out.extend_from_slice(&limit.resource.to_le_bytes());
            out.extend_from_slice(&limit.soft.to_le_bytes());
        });
        out.extend_from_slice(&self.oom_adj.to_le_bytes());
        put_path(&mut out, self.cgroup.as_ref());
        out.push(u8::from(self.confine.is_some()));
        if let Some(confine) = &self.confine {
            out.extend_from_slice(&confine.handled.to_le_bytes());
            out.extend_from_slice(&confine.scopes.to_le_bytes());
            out.extend_from_slice(&confine.least.to_le_bytes());
            put_list(&mut out, &confine.rules, |out, rule| {
                put_bytes(out, rule.path.as_os_str().as_bytes());
                out.extend_from_slice(&rule.access.to_le_bytes());
            });
        }
        put_path(&mut out, self.spool.as_ref());
        out.extend_from_slice(&self.spool_limit.to_le_bytes());
        put_ladder(&mut out, self.ladder);
        out.extend_from_slice(&self.orphan.to_le_bytes());
        out
    }

    /// Reads a whole message.
    ///
    /// # Errors
    /// It is not one, or says something that no system can do: no program, a byte of nought in a name.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() > START_LIMIT {
            return Err(Malformed("a START is too long"));
        }
        let mut rest = Reader(bytes);
        let argv = list(&mut rest, START_LIMIT, 4, text)?;
        let env = list(&mut rest, START_LIMIT, 8, |rest| Ok((text(rest)?, text(rest)?)))?;
        let cwd = PathBuf::from(text(&mut rest)?);
        let limits = list(&mut rest, MANY, 12, |rest| Ok(ProcessLimit { resource: rest.u32()?, soft: rest.u64()? }))?;
        let oom_adj = rest.u16()?;
        let cgroup = path(&mut rest)?;
        let confine = match rest.flag()? {
            false => None,
            true => Some(Confinement {
                handled: rest.u64()?,
                scopes: rest.u64()?,
                least: rest.u32()?,
                rules: list(&mut rest, MANY, 12, |rest| Ok(Rule { path: text(rest)?.into(), access: rest.u64()? }))?,
            }),
        };
        let (spool, spool_limit) = (path(&mut rest)?, rest.u64()?.max(SPOOL_LEAST));
        let start = Self {
            argv,
            env,
            cwd,
            limits,
            oom_adj,
            cgroup,
            confine,
            spool,
            spool_limit,
            ladder: rest.ladder()?,
            orphan: rest.u64()?,
        };
        rest.end()?;
        if start.argv.is_empty() {
            return Err(Malformed("a START without a program"));
        }
        if start.env.iter().any(|(name, _)| name.is_empty() || name.as_bytes().contains(&b'=')) {
            return Err(Malformed("a variable without a name"));
        }
        Ok(start)
    }
}

fn put_list<T>(out: &mut Vec<u8>, items: &[T], mut put: impl FnMut(&mut Vec<u8>, &T)) {
    out.extend_from_slice(&u32::try_from(items.len()).unwrap_or(u32::MAX).to_le_bytes());
    items.iter().for_each(|item| put(out, item));
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_path(out: &mut Vec<u8>, path: Option<&PathBuf>) {
    put_bytes(out, path.map_or(OsStr::new(""), |path| path.as_os_str()).as_bytes());
}

/// A list of at most `most` items, each of which takes at least `least` bytes.
fn list<T>(
    rest: &mut Reader<'_>,
    most: usize,
    least: usize,
    mut item: impl FnMut(&mut Reader<'_>) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let count = usize::try_from(rest.u32()?).unwrap_or(usize::MAX);
    if count > most || count > rest.0.len() / least {
        return Err(Malformed("a list is longer than its message"));
    }
    (0..count).map(|_| item(rest)).collect()
}

fn text(rest: &mut Reader<'_>) -> Result<OsString, Malformed> {
    let length = usize::try_from(rest.u32()?).unwrap_or(usize::MAX);
    let bytes = rest.bytes(length)?;
    if bytes.contains(&0) {
        return Err(Malformed("a byte of nought in a name"));
    }
    Ok(OsString::from_vec(bytes.to_vec()))
}

fn path(rest: &mut Reader<'_>) -> Result<Option<PathBuf>, Malformed> {
    Ok(Some(text(rest)?).filter(|text| !text.is_empty()).map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Start {
        Start {
            argv: vec!["agent".into(), "".into(), "--flag".into()],
            env: vec![("PATH".into(), "/bin".into()), ("A".into(), "b=c".into())],
            cwd: "/work".into(),
            limits: vec![ProcessLimit { resource: 7, soft: 1024 }],
            oom_adj: 200,
            cgroup: Some("/sys/fs/cgroup/x".into()),
            confine: Some(Confinement {
                handled: 0xffff,
                scopes: 3,
                least: 3,
                rules: vec![Rule { path: "/".into(), access: 9 }, Rule { path: "/tmp".into(), access: 0xffff }],
            }),
            spool: Some("/var/lib/ostler".into()),
            spool_limit: SPOOL_LEAST + 1,
            ladder: Ladder { input: 1, term: 2, kill: 3, linger: 4 },
            orphan: 120_000,
        }
    }

    #[test]
    fn it_comes_back_as_it_was_and_no_part_of_it_does() {
        let plain = Start { argv: vec!["x".into()], spool_limit: SPOOL_LEAST, ..Start::default() };
        for start in [full(), plain] {
            let bytes = start.encode();
            assert_eq!(Start::decode(&bytes), Ok(start));
            (0..bytes.len()).for_each(|n| assert!(Start::decode(&bytes[..n]).is_err(), "{n} bytes of it"));
            assert!(Start::decode(&[&bytes[..], b"\0"].concat()).is_err());
        }
    }

    #[test]
    fn what_no_system_can_do_is_refused() {
        let refused = |change: &dyn Fn(&mut Start)| {
            let mut start = full();
            change(&mut start);
            Start::decode(&start.encode()).is_err()
        };
        assert!(!refused(&|_| ()));
        assert!(refused(&|s| s.argv.clear()));
        assert!(refused(&|s| s.argv[1] = "a\0b".into()));
        assert!(refused(&|s| s.env[0].0 = "".into()));
        assert!(refused(&|s| s.env[0].0 = "A=B".into()));
        assert!(refused(&|s| s.limits = vec![s.limits[0]; MANY + 1]));
        let huge = OsString::from_vec(vec![b'x'; START_LIMIT]);
        assert!(refused(&|s| s.argv.push(huge.clone())));
        let least = Start { spool_limit: 5, ..full() };
        assert_eq!(Start::decode(&least.encode()).map(|s| s.spool_limit), Ok(SPOOL_LEAST));
    }

    #[test]
    fn a_list_reserves_no_more_than_its_message_could_fill() {
        assert!(Start::decode(&u32::MAX.to_le_bytes()).is_err());
        assert!(Start::decode(&[255, 255, 255, 0, 1, 2, 3, 4]).is_err());
    }
}
