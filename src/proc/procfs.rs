//! What the kernel says of processes: `/proc/PID/stat` and the markers in `/proc/PID/environ`.
//!
//! Owns the reading of `/proc` and one shared picture of it; it must not know what a process is for, and signals
//! nothing.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::mark::{Marks, Tag};

/// The fields of `/proc/PID/stat` that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Its id.
    pub pid: u32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// `R S D Z T …`.
    pub state: char,
    /// Its parent.
    pub parent: u32,
    /// Its process group.
    pub group: u32,
    /// When it began, in clock ticks since boot: with the pid it names a process for good.
    pub start: u64,
}

impl Stat {
    /// Whether it still runs: neither a zombie nor being taken down.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// Reads a process's line; `None` when there is no such process (any more).
#[must_use]
pub fn stat(pid: u32) -> Option<Stat> {
    parse_stat(std::str::from_utf8(&read(&format!("/proc/{pid}/stat"))?).ok()?)
}

/// For how long a process has run that began at so many clock ticks since boot; the time in which the machine was suspended
/// counts.
#[must_use]
pub fn age(start: u64) -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let now = Duration::try_from(now).unwrap_or_default();
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    let began = Duration::from_secs(start / ticks) + Duration::from_millis(start % ticks * 1000 / ticks);
    now.saturating_sub(began)
}

/// The numbers of all processes.
pub(super) fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The tag of a process, which outlives a cleared environment.
#[must_use]
pub fn tag(pid: u32) -> Option<Tag> {
    parse_tag(&text(&format!("/proc/{pid}/limits"))?)
}

fn parse_tag(limits: &str) -> Option<Tag> {
    let line = limits.lines().find_map(|l| l.strip_prefix("Max realtime timeout"))?;
    Tag::of_limit(line.split_ascii_whitespace().next()?.parse().ok()?)
}

/// A whole text file of the kernel.
pub(super) fn text(path: &str) -> Option<String> {
    String::from_utf8(read(path)?).ok()
}

/// A whole file of the kernel, `None` if it cannot be read. Such files report a size of zero, so the library would read
/// a few bytes a dozen times; here the first read takes most files whole.
fn read(path: &str) -> Option<Vec<u8>> {
    let mut file = fs::File::open(path).ok()?;
    let mut bytes = Vec::with_capacity(8192);
    file.read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The name stands in parentheses and may contain spaces and parentheses: the last parenthesis closes it.
fn parse_stat(line: &str) -> Option<Stat> {
    let (open, close) = (line.find('(')?, line.rfind(')')?);
    let mut rest = line.get(close + 1..)?.split_ascii_whitespace();
    Some(Stat {
        pid: line[..open].trim().parse().ok()?,
        name: line.get(open + 1..close)?.to_string(),
        state: rest.next()?.chars().next()?,
        parent: rest.next()?.parse().ok()?,
        group: rest.next()?.parse().ok()?,
        // Field 22 of the line; `rest` began with field 3 and has given three.
        start: rest.nth(16)?.parse().ok()?,
    })
}

/// The markers of a process; `None` when it has none or is not ours to read.
#[must_use]
pub fn marks(pid: u32) -> Option<Marks> {
    environ(pid).marks()
}

/// Whether a process was run under this name (its first argument).
#[must_use]
pub fn is_named(pid: u32, name: &str) -> bool {
    read(&format!("/proc/{pid}/cmdline")).is_some_and(|line| line.split(|b| *b == 0).next() == Some(name.as_bytes()))
}

/// The files that a process has locked whole (`flock`): the kernel lists with each descriptor the locks that were taken
/// through it.
#[must_use]
pub fn locked_files(pid: u32) -> Vec<PathBuf> {
    let holds = |fd: &fs::DirEntry| {
        let info = format!("/proc/{pid}/fdinfo/{}", fd.file_name().to_string_lossy());
        let locked = |l: &str| l.starts_with("lock:") && l.contains("FLOCK") && l.contains("WRITE");
        fs::read_to_string(info).is_ok_and(|info| info.lines().any(locked))
    };
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    open.filter(holds).filter_map(|fd| fs::read_link(fd.path()).ok()).collect()
}

/// What a process's environment shows.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Environ {
    /// The process is gone, or not ours to read.
    Closed,
    /// No variables: the environment was cleared, or the process is in the middle of an exec.
    Empty,
    /// Variables, and the markers if they are among them.
    Read(Option<Marks>),
}

impl Environ {
    fn marks(self) -> Option<Marks> {
        if let Self::Read(marks) = self { marks } else { None }
    }
}

fn environ(pid: u32) -> Environ {
    match read(&format!("/proc/{pid}/environ")) {
        None => Environ::Closed,
        Some(bytes) if bytes.is_empty() => Environ::Empty,
        Some(bytes) => Environ::Read(Marks::parse(&bytes)),
    }
}

/// Every process that this user can see, with its markers.
#[derive(Debug)]
pub struct Picture {
    begun: Instant,
    /// The processes.
    pub all: Vec<(Stat, Option<Marks>)>,
}

impl Picture {
    /// A picture of these.
    #[cfg(test)]
    pub(crate) fn of(all: Vec<(Stat, Option<Marks>)>) -> Self {
        Self { begun: Instant::now(), all }
    }

    fn take() -> Self {
        let begun = Instant::now();
        Self { begun, ..Self::read(pids()) }
    }

    /// Those of these that there are.
    pub(super) fn read(pids: Vec<u32>) -> Self {
        let begun = Instant::now();
        let mut all: Vec<_> = pids
            .into_iter()
            .filter_map(|pid| {
                let stat = stat(pid)?;
                let environ = if stat.is_live() { environ(pid) } else { Environ::Closed };
                Some((stat, environ))
            })
            .collect();
        // A process in the middle of an exec shows an empty environment: looked at again now that it has had some time.
        // The kernel's own threads (children of process 2) have none for ever.
        for (stat, seen) in all.iter_mut().filter(|(stat, seen)| *seen == Environ::Empty && stat.parent != 2) {
            *seen = environ(stat.pid);
        }
        let all = all.into_iter().map(|(stat, seen)| (stat, seen.marks())).collect();
        Self { begun, all }
    }

    /// The live processes that descend from `ancestor`. A parent is at least as old as its child: a pid that was given
    /// away again while the picture was taken does not lead to strangers.
    #[must_use]
    pub fn descendants(&self, ancestor: u32) -> Vec<&(Stat, Option<Marks>)> {
        let Some((root, _)) = self.all.iter().find(|(s, _)| s.pid == ancestor) else { return Vec::new() };
        let mut children: HashMap<u32, Vec<&(Stat, Option<Marks>)>> = HashMap::new();
        for entry in &self.all {
            children.entry(entry.0.parent).or_default().push(entry);
        }
        let (mut found, mut parents) = (Vec::new(), vec![root]);
        // Each process has one parent and is taken out with it, so this ends.
        while let Some(parent) = parents.pop() {
            let born = children.remove(&parent.pid).unwrap_or_default();
            let born = born.into_iter().filter(|(s, _)| s.start >= parent.start);
            for entry in born {
                parents.push(&entry.0);
                found.push(entry);
            }
        }
        found.retain(|(s, _)| s.is_live());
        found
    }

    /// Those that a process descends from, its parent first, as far as they can be seen.
    #[must_use]
    pub fn ancestors(&self, pid: u32) -> Vec<&Stat> {
        let all: HashMap<u32, &Stat> = self.all.iter().map(|(s, _)| (s.pid, s)).collect();
        let (mut line, mut seen) = (Vec::new(), HashSet::from([pid]));
        let mut at = all.get(&pid).copied();
        while let Some(parent) = at.and_then(|s| all.get(&s.parent).copied()).filter(|p| seen.insert(p.pid)) {
            line.push(parent);
            at = Some(parent);
        }
        line
    }

    /// This process, those it descends from, and the first one of all: never to be signalled, whatever their markers
    /// say (the daemon itself carries some when an agent of another one started it).
    #[must_use]
    pub fn untouchable(&self) -> HashSet<u32> {
        let me = std::process::id();
        [0, 1, me].into_iter().chain(self.ancestors(me).iter().map(|s| s.pid)).collect()
    }
}

/// A picture that was begun after this call, shared with every caller that waits at the same time: a thousand agents
/// that are closed together cost a few scans and not a thousand.
#[must_use]
pub fn picture() -> Arc<Picture> {
    static LAST: Mutex<Option<Arc<Picture>>> = Mutex::new(None);
    let asked = Instant::now();
    // The lock is held while scanning on purpose: whoever waits for it wants just this scan's result, or the next
    // one's.
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    match last.as_ref() {
        Some(picture) if picture.begun >= asked => Arc::clone(picture),
        _ => Arc::clone(last.insert(Arc::new(Picture::take()))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let line = "4711 (a) b (c) S 12 4711 4711 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 2 3";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.pid, stat.name.as_str(), stat.state), (4711, "a) b (c", 'S'));
        assert_eq!((stat.parent, stat.group, stat.start), (12, 4711, 987_654));
        assert_eq!(parse_stat("4711 (cut off"), None);
    }

    #[test]
    fn only_the_soft_limit_of_real_time_is_a_tag() {
        let tag = Tag::new("here", "boot", 3);
        let line = |name: &str, soft: u64| format!("{name:<26}{soft:<21}unlimited            us\n");
        assert_eq!(parse_tag(&line("Max realtime timeout", tag.limit())), Some(tag));
        assert_eq!(parse_tag(&line("Max cpu time", tag.limit())), None);
        assert_eq!(parse_tag(&line("Max realtime timeout", 200_000)), None);
        assert_eq!(parse_tag("Max realtime timeout      unlimited            unlimited            us\n"), None);
    }

    #[test]
    fn the_picture_shows_this_process_and_protects_its_line() {
        let picture = picture();
        let me = std::process::id();
        let own = picture.all.iter().find(|(s, _)| s.pid == me).map(|(s, _)| s).unwrap();
        assert_eq!(Some(own.start), stat(me).map(|s| s.start));
        let spared = picture.untouchable();
        assert!(spared.contains(&me) && spared.contains(&own.parent) && spared.contains(&1));
    }
}
