//! Control groups, version 2: what a session's processes may use, what they have used, and how all of them are ended.
//!
//! Where the service manager delegates a group, three are made in it: `daemon/` (which the service manager makes, by
//! `DelegateSubgroup=daemon`), `shims/`, and `agents/`, which has one for each agent. Controllers are handed down only when
//! the daemon finds itself in `daemon/`: a group that hands them down takes no process any more, and a service manager that
//! puts the main process there could not start the service again. Without that subgroup the groups are made all the same:
//! processes are known by membership and ended by `cgroup.kill`, and limits are off.
//!
//! It must not know what an agent is. [`Groups::find`] looks once, at the start; everything else is a file below it.

use std::fmt;
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::Access;

/// The subgroup in which a service manager puts the daemon.
pub const DAEMON: &str = "daemon";
const SHIMS: &str = "shims";
const AGENTS: &str = "agents";
/// A group's processes.
pub const PROCS: &str = "cgroup.procs";
const HANDED_DOWN: &str = "cgroup.subtree_control";
/// The most groups that are looked at below one that is removed: an agent may make its own.
const MOST_BELOW: usize = 1024;

/// What a controller limits, in the order in which it is told.
const CONTROLLERS: [(&str, &str); 3] = [("memory", "memory"), ("pids", "processes"), ("cpu", "processor time")];

/// The limits of one agent's processes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes; `None`: no limit.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub processes: u32,
    /// Percent of one processor; `None`: no limit.
    pub cpu: Option<u32>,
    /// The share where processors are short, 1 to 10,000.
    pub cpu_weight: u32,
}

/// What the processes of a group use and have used; `None`: the kernel does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes now.
    pub memory: Option<u64>,
    /// The most bytes that they had at once.
    pub memory_peak: Option<u64>,
    /// Their limit in bytes, if they have one.
    pub memory_limit: Option<u64>,
    /// Processor time, in milliseconds.
    pub cpu_ms: Option<u64>,
    /// How many they are.
    pub processes: Option<u64>,
    /// How many of them the kernel has ended for want of memory.
    pub oom_kill: Option<u64>,
}

/// What works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Groups with the limits of these controllers.
    Limits(Vec<&'static str>),
    /// Groups without limits, and why.
    Membership(String),
    /// No groups, and why.
    Off(String),
}

impl State {
    /// `limits`, `membership` or `off`.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Limits(_) => "limits",
            Self::Membership(_) => "membership",
            Self::Off(_) => "off",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limits(on) => {
                let told = |all: bool| {
                    let those = CONTROLLERS.iter().filter(|(name, _)| on.contains(name) == all);
                    those.map(|(_, what)| *what).collect::<Vec<_>>().join(", ")
                };
                write!(f, "limits are in force: {}", told(true))?;
                let off = told(false);
                if off.is_empty() { Ok(()) } else { write!(f, "; not delegated: {off}") }
            }
            Self::Membership(why) => write!(f, "groups without limits: {why}"),
            Self::Off(why) => write!(f, "no groups: {why}"),
        }
    }
}

/// The daemon's groups, found once at its start.
#[derive(Clone, Debug)]
pub struct Groups {
    /// The delegated group.
    base: Option<PathBuf>,
    state: State,
}

impl Groups {
    /// Looks whether a group is delegated, and makes those below it. It never fails: what does not work is in the state.
    #[must_use]
    pub fn find() -> Self {
        match Place::of_this_process() {
            Ok(place) => Self::set_up(place.base, place.in_subgroup),
            Err(why) => Self::off(why),
        }
    }

    /// None at all.
    #[must_use]
    pub fn off(why: impl Into<String>) -> Self {
        Self { base: None, state: State::Off(why.into()) }
    }

    fn set_up(base: PathBuf, in_subgroup: bool) -> Self {
        for name in [SHIMS, AGENTS] {
            if let Err(e) = make_dir(&base.join(name)) {
                return Self::off(format!("{}: cannot be made: {e}", base.join(name).display()));
            }
        }
        let state = if in_subgroup {
            hand_down(&base)
        } else {
            let why = format!("the daemon is not in a subgroup {DAEMON:?} (systemd 254 and later make it)");
            State::Membership(why)
        };
        Self { base: Some(base), state }
    }

    /// What works.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Where shims are put: the pid goes into its `cgroup.procs`.
    #[must_use]
    pub fn shims(&self) -> Option<PathBuf> {
        Some(self.base.as_ref()?.join(SHIMS))
    }

    /// The group of an agent, made or found again, with its limits. The agent goes into it by itself. `None`: there are no
    /// groups.
    ///
    /// # Errors
    /// The name is no name of a directory; the group cannot be made, or a limit cannot be set.
    pub fn make(&self, name: &str, limits: &Limits) -> io::Result<Option<PathBuf>> {
        let Some(base) = &self.base else { return Ok(None) };
        let mut parts = Path::new(name).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) || name.contains('/') {
            return Err(io::Error::new(ErrorKind::InvalidInput, format!("{name:?} is not the name of a group")));
        }
        let dir = base.join(AGENTS).join(name);
        make_dir(&dir)?;
        if let State::Limits(on) = &self.state {
            for setting in settings(limits, on) {
                let file = dir.join(setting.file);
                match write(&file, &setting.value) {
                    Err(e) if setting.is_optional && e.kind() == ErrorKind::NotFound => {}
                    done => done.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", file.display())))?,
                }
            }
        }
        Ok(Some(dir))
    }

    /// The group of an agent, if it is there.
    #[must_use]
    pub fn agent(&self, name: &str) -> Option<PathBuf> {
        Some(self.base.as_ref()?.join(AGENTS).join(name)).filter(|dir| dir.is_dir())
    }

    /// Ends all that is in a group, at once.
    ///
    /// # Errors
    /// The kernel has no such thing (before 5.14), or the group is gone.
    pub fn kill(&self, group: &Path) -> io::Result<()> {
        write(&group.join("cgroup.kill"), "1")
    }

    /// Removes a group, and those that were made in it. One that is gone was removed.
    ///
    /// # Errors
    /// It has processes.
    pub fn remove(&self, group: &Path) -> io::Result<()> {
        let (mut below, mut next) = (vec![group.to_owned()], 0);
        while let Some(dir) = below.get(next).cloned() {
            next += 1;
            let Ok(entries) = std::fs::read_dir(&dir) else { continue };
            let dirs = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path());
            below.extend(dirs.take(MOST_BELOW.saturating_sub(below.len())));
        }
        below.iter().rev().try_for_each(|dir| match std::fs::remove_dir(dir) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        })
    }

    /// The agents' groups that are there, by name: this boot's, and those that earlier ones left.
    #[must_use]
    pub fn agents(&self) -> Vec<(String, PathBuf)> {
        let Some(base) = &self.base else { return Vec::new() };
        let entries = std::fs::read_dir(base.join(AGENTS)).into_iter().flatten().flatten();
        let dirs = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        dirs.filter_map(|e| Some((e.file_name().into_string().ok()?, e.path()))).collect()
    }

    /// Removes those groups that nobody is in; those with processes stay.
    pub fn remove_empty(&self, groups: impl IntoIterator<Item = (String, PathBuf)>) {
        for (_, dir) in groups {
            if !processes(&dir).is_ok_and(|n| n > 0)
                && let Err(e) = self.remove(&dir)
            {
                log::debug!("control group {}: cannot be removed yet: {e}", dir.display());
            }
        }
    }

    /// What a group's processes use and have used.
    #[must_use]
    pub fn usage(&self, group: &Path) -> Usage {
        usage(group)
    }
}

/// What a group's processes use and have used.
#[must_use]
pub fn usage(group: &Path) -> Usage {
    let one = |name: &str| read(&group.join(name)).and_then(|text| text.trim().parse().ok());
    let field = |file: &str, name: &str| read(&group.join(file)).and_then(|text| field(&text, name));
    Usage {
        memory: one("memory.current"),
        memory_peak: one("memory.peak"),
        memory_limit: one("memory.max"),
        cpu_ms: field("cpu.stat", "usage_usec").map(|us| us / 1000),
        processes: one("pids.current").or_else(|| processes(group).ok()),
        oom_kill: field("memory.events.local", "oom_kill"),
    }
}

/// Where a process stands.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    base: PathBuf,
    in_subgroup: bool,
}

impl Place {
    fn of_this_process() -> Result<Self, String> {
        let text = |path: &str| std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"));
        let own = directory(&text("/proc/self/cgroup")?, &text("/proc/self/mountinfo")?)?;
        let place = Self::of(&own.dir);
        // The group of a namespace's root, as a container has it, belongs to the container. Only the machine's own has no type.
        let is_containers = place.is_root(&own) && place.base.join("cgroup.type").exists();
        is_delegated(&place.base, is_containers || place.is_of_service())?;
        Ok(place)
    }

    /// Whether a service manager put the daemon into a subgroup of its service, which it does in delegated groups only. A
    /// user's own manager leaves no other mark.
    fn is_of_service(&self) -> bool {
        self.in_subgroup && self.base.extension().is_some_and(|kind| kind == "service")
    }

    fn of(dir: &Path) -> Self {
        match dir.parent() {
            Some(parent) if dir.file_name().is_some_and(|name| name == DAEMON) => {
                Self { base: parent.to_owned(), in_subgroup: true }
            }
            _ => Self { base: dir.to_owned(), in_subgroup: false },
        }
    }

    fn is_root(&self, own: &OwnGroup) -> bool {
        self.base == own.mount
    }
}

/// The directory of a process's own group, and where its hierarchy is mounted.
#[derive(Debug, PartialEq, Eq)]
struct OwnGroup {
    dir: PathBuf,
    mount: PathBuf,
}

/// From `/proc/self/cgroup` and `/proc/self/mountinfo`.
fn directory(cgroup: &str, mountinfo: &str) -> Result<OwnGroup, String> {
    let group =
        cgroup.lines().find_map(|l| l.strip_prefix("0::")).ok_or("the kernel has no control groups version 2")?;
    if group.starts_with("/..") {
        return Err("the daemon's group is outside its namespace".into());
    }
    // ID PARENT DEV ROOT POINT OPTIONS [TAGS] - TYPE SOURCE OPTIONS
    let mounts = mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?, left.next()?);
        right.starts_with("cgroup2 ").then(|| (unescaped(root), unescaped(point)))
    });
    for (root, point) in mounts {
        if let Ok(below) = Path::new(group).strip_prefix(&root) {
            // Not `join("")`, which ends in a slash.
            let dir = if below.as_os_str().is_empty() { point.clone() } else { point.join(below) };
            return Ok(OwnGroup { dir, mount: point });
        }
    }
    Err(format!("the hierarchy of {group} is not mounted"))
}

/// `\040` is a space.
fn unescaped(text: &str) -> PathBuf {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::new(), 0);
    while let Some(&byte) = bytes.get(at) {
        let code = bytes.get(at + 1..at + 4).filter(|_| byte == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        let code = code.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(code.unwrap_or(byte));
        at += if code.is_some() { 4 } else { 1 };
    }
    std::ffi::OsString::from_vec(out).into()
}

/// Whether a group was given to this daemon, and not only happens to be writable: to root every group is, and to a user
/// all those of the user's own manager.
fn is_delegated(base: &Path, is_known: bool) -> Result<(), String> {
    let shown = base.display();
    let own = rustix::process::geteuid().as_raw();
    let owner = |dir: &Path| std::fs::metadata(dir).map(|m| m.uid()).map_err(|e| format!("{}: {e}", dir.display()));
    let given_by_owner = own != 0 && owner(base)? == own && base.parent().is_some_and(|p| owner(p) != Ok(own));
    if !is_known && !given_by_owner && !has_mark(base) {
        return Err(format!("{shown} is not delegated (Delegate=yes in the unit)"));
    }
    for path in [base.to_owned(), base.join(PROCS)] {
        rustix::fs::access(&path, Access::WRITE_OK).map_err(|e| {
            let hint = if e == rustix::io::Errno::ROFS { " (ProtectControlGroups=no in the unit)" } else { "" };
            format!("{}: {e}{hint}", path.display())
        })?;
    }
    Ok(())
}

/// The mark by which a service manager says that a group is delegated.
fn has_mark(dir: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        let mut value = [0_u8; 8];
        rustix::fs::getxattr(dir, *name, &mut value).is_ok_and(|n| value.get(..n) == Some(b"1"))
    })
}

/// Hands the controllers down to the agents' groups, as many as there are.
fn hand_down(base: &Path) -> State {
    let there = read(&base.join("cgroup.controllers")).unwrap_or_default();
    let there: Vec<&str> = there.split_whitespace().collect();
    let mut on = Vec::new();
    let mut why = "no controllers are delegated".to_owned();
    for (name, _) in CONTROLLERS.into_iter().filter(|(name, _)| there.contains(name)) {
        let dirs = [base.to_owned(), base.join(AGENTS)];
        let handed = dirs.iter().try_for_each(|dir| {
            let file = dir.join(HANDED_DOWN);
            write(&file, &format!("+{name}")).map_err(|e| format!("{}: +{name}: {e}", file.display()))
        });
        match handed {
            Ok(()) => on.push(name),
            Err(e) => why = e,
        }
    }
    if on.is_empty() { State::Membership(why) } else { State::Limits(on) }
}

/// What is written into a file of a group.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    file: &'static str,
    value: String,
    /// A kernel may lack it, and the limit holds without it.
    is_optional: bool,
}

/// The files of a group's limits. Those without a limit are written too: a group that is found again had others.
fn settings(limits: &Limits, on: &[&str]) -> Vec<Setting> {
    let word = |n: Option<u64>| n.map_or_else(|| "max".to_owned(), |n| n.to_string());
    let set = |file: &'static str, value: String, is_optional: bool| Setting { file, value, is_optional };
    let mut all = Vec::new();
    if on.contains(&"memory") {
        // From nine tenths on they are slowed down, so that they can give back what they do not need.
        let high = limits.memory.map(|bytes| bytes / 10 * 9);
        let swap = limits.memory.map(|_| 0);
        all.push(set("memory.high", word(high), true));
        all.push(set("memory.max", word(limits.memory), false));
        all.push(set("memory.swap.max", word(swap), true));
    }
    if on.contains(&"pids") {
        all.push(set("pids.max", limits.processes.to_string(), false));
    }
    if on.contains(&"cpu") {
        // Microseconds in each tenth of a second.
        let quota = word(limits.cpu.map(|percent| u64::from(percent) * 1000));
        all.push(set("cpu.max", format!("{quota} 100000"), false));
        all.push(set("cpu.weight", limits.cpu_weight.to_string(), false));
    }
    all
}

/// How many processes are in a group itself.
fn processes(group: &Path) -> io::Result<u64> {
    let text = std::fs::read_to_string(group.join(PROCS))?;
    Ok(text.lines().filter(|l| !l.is_empty()).count() as u64)
}

/// `NAME NUMBER` in a line of its own.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match std::fs::create_dir(dir) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

fn read(file: &Path) -> Option<String> {
    std::fs::read_to_string(file).ok()
}

/// One write: a file of the kernel's takes it whole or not at all.
fn write(file: &Path, value: &str) -> io::Result<()> {
    std::fs::OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LIMITS: Limits = Limits { memory: Some(1000), processes: 7, cpu: Some(150), cpu_weight: 50 };

    /// A directory that plays a delegated group, with the files that the kernel would make.
    fn played(controllers: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        std::fs::create_dir_all(base.join("agents")).unwrap();
        std::fs::write(base.join("cgroup.controllers"), controllers).unwrap();
        std::fs::write(base.join(HANDED_DOWN), "").unwrap();
        std::fs::write(base.join("agents").join(HANDED_DOWN), "").unwrap();
        dir
    }

    fn files(dir: &Path, all: &[(&str, &str)]) {
        std::fs::create_dir_all(dir).unwrap();
        all.iter().for_each(|(name, text)| std::fs::write(dir.join(name), text).unwrap());
    }

    #[test]
    fn the_own_group_is_found_where_it_is_mounted() {
        let unified = "25 22 0:23 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        let hybrid = "30 22 0:24 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            31 22 0:25 / /sys/fs/cgroup/unified rw - cgroup2 none rw\n";
        let bound = "40 22 0:23 /a/b /mnt/my\\040groups rw - cgroup2 cgroup2 rw\n";
        for (cgroup, mounts, dir) in [
            ("0::/system.slice/ostler.service/daemon\n", unified, "/sys/fs/cgroup/system.slice/ostler.service/daemon"),
            ("4:memory:/x\n0::/\n", hybrid, "/sys/fs/cgroup/unified"),
            ("0::/a/b/c\n", bound, "/mnt/my groups/c"),
        ] {
            let found = directory(cgroup, mounts).unwrap();
            assert_eq!(found.dir, Path::new(dir));
            assert_eq!(found.dir.as_os_str().len(), dir.len(), "no slash at its end");
        }
        for (cgroup, mounts, why) in [
            ("4:memory:/x\n", hybrid, "version 2"),
            ("0::/../x\n", unified, "outside its namespace"),
            ("0::/other\n", bound, "is not mounted"),
            ("0::/x\n", "", "is not mounted"),
        ] {
            assert!(directory(cgroup, mounts).unwrap_err().contains(why), "{why}");
        }
    }

    #[test]
    fn a_subgroup_is_known_by_its_name() {
        let place = |dir: &str| Place::of(Path::new(dir));
        assert_eq!(place("/c/u.service/daemon"), Place { base: "/c/u.service".into(), in_subgroup: true });
        assert_eq!(place("/c/u.service"), Place { base: "/c/u.service".into(), in_subgroup: false });
        // What a user's own manager delegates has no mark but the subgroup.
        let known = ["/c/u.service/daemon", "/c/u.service", "/c/u.scope/daemon", "/c/daemon"]
            .map(|dir| place(dir).is_of_service());
        assert_eq!(known, [true, false, false, false]);
        assert_eq!(place("/c/u.service/daemon2").base, Path::new("/c/u.service/daemon2"));
    }

    #[test]
    fn a_directory_that_nobody_delegated_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(PROCS), "").unwrap();
        let below = dir.path().join("x");
        files(&below, &[(PROCS, "")]);
        assert!(is_delegated(&below, false).unwrap_err().contains("is not delegated"));
        assert_eq!(is_delegated(&below, true), Ok(()), "but a container's own is");
        std::fs::remove_file(below.join(PROCS)).unwrap();
        assert!(is_delegated(&below, true).is_err(), "if it is one");
    }

    #[test]
    fn controllers_are_handed_down_to_a_daemon_in_a_subgroup_only() {
        let dir = played("cpuset cpu io memory pids\n");
        let groups = Groups::set_up(dir.path().to_owned(), true);
        assert_eq!(groups.state(), &State::Limits(vec!["memory", "pids", "cpu"]));
        assert_eq!(groups.state().to_string(), "limits are in force: memory, processes, processor time");
        // Each is one write; a file of the kernel's adds them up.
        for at in [dir.path().to_owned(), dir.path().join("agents")] {
            assert!(read(&at.join(HANDED_DOWN)).unwrap().starts_with("+cpu"), "{}", at.display());
        }
        assert_eq!(groups.shims(), Some(dir.path().join("shims")));

        let dir = played("pids\n");
        let some = Groups::set_up(dir.path().to_owned(), true);
        assert_eq!(some.state().to_string(), "limits are in force: processes; not delegated: memory, processor time");

        let dir = played("memory pids cpu\n");
        let none = Groups::set_up(dir.path().to_owned(), false);
        assert!(matches!(none.state(), State::Membership(why) if why.contains("subgroup \"daemon\"")));
        assert_eq!(read(&dir.path().join(HANDED_DOWN)).unwrap(), "", "nothing is handed down");
        assert!(dir.path().join("shims").is_dir());

        std::fs::remove_file(dir.path().join("agents").join(HANDED_DOWN)).unwrap();
        let refused = Groups::set_up(dir.path().to_owned(), true);
        assert!(matches!(refused.state(), State::Membership(why) if why.contains("subtree_control: +cpu")));
    }

    #[test]
    fn a_group_gets_its_limits_and_those_that_it_had_are_gone() {
        let dir = played("memory pids cpu");
        let groups = Groups::set_up(dir.path().to_owned(), true);
        let at = dir.path().join("agents/7");
        // All but the one that a kernel may lack.
        files(&at, &[("memory.high", ""), ("memory.max", ""), ("pids.max", ""), ("cpu.max", ""), ("cpu.weight", "")]);
        assert_eq!(groups.make("7", &LIMITS).unwrap(), Some(at.clone()));
        let has = |name: &str| read(&at.join(name)).unwrap();
        assert_eq!((has("memory.high"), has("memory.max"), has("pids.max")), ("900".into(), "1000".into(), "7".into()));
        assert_eq!((has("cpu.max"), has("cpu.weight")), ("150000 100000".into(), "50".into()));
        files(&at, &[("memory.high", ""), ("memory.max", ""), ("cpu.max", ""), ("memory.swap.max", "")]);
        groups.make("7", &Limits { memory: None, cpu: None, ..LIMITS }).unwrap();
        assert_eq!(
            (has("memory.max"), has("memory.swap.max"), has("cpu.max")),
            ("max".into(), "max".into(), "max 100000".into())
        );
        std::fs::remove_file(at.join("pids.max")).unwrap();
        assert!(
            groups.make("7", &LIMITS).unwrap_err().to_string().contains("pids.max"),
            "a limit that cannot be set is told"
        );
        for bad in ["", ".", "..", "a/b", "/a", "a/", "../x"] {
            assert_eq!(groups.make(bad, &LIMITS).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad:?}");
        }
        assert_eq!(Groups::off("x").make("7", &LIMITS).unwrap(), None);
    }

    #[test]
    fn no_swap_for_a_group_with_a_limit() {
        let value = |memory| {
            let all = settings(&Limits { memory, ..LIMITS }, &["memory"]);
            all.into_iter().find(|s| s.file == "memory.swap.max").unwrap().value
        };
        assert_eq!((value(Some(1)), value(None)), ("0".into(), "max".into()));
        assert!(settings(&LIMITS, &[]).is_empty());
    }

    #[test]
    fn usage_is_what_the_files_say() {
        let dir = played("");
        let groups = Groups::set_up(dir.path().to_owned(), false);
        let at = dir.path().join("agents/7");
        files(&at, &[(PROCS, "12\n13\n"), ("cpu.stat", "usage_usec 2500999\nuser_usec 1\n")]);
        let plain = Usage { cpu_ms: Some(2500), processes: Some(2), ..Usage::default() };
        assert_eq!(groups.usage(&at), plain, "without controllers");
        files(
            &at,
            &[("memory.current", "5\n"), ("memory.peak", "9\n"), ("memory.max", "max\n"), ("pids.current", "3\n")],
        );
        files(&at, &[("memory.events.local", "low 0\noom 4\noom_kill 2\noom_group_kill 8\n")]);
        let full = Usage { memory: Some(5), memory_peak: Some(9), processes: Some(3), oom_kill: Some(2), ..plain };
        assert_eq!(groups.usage(&at), full);
        assert_eq!(groups.usage(&dir.path().join("agents/8")), Usage::default());
    }

    #[test]
    fn what_an_earlier_boot_left_is_found_again_and_removed_when_it_is_empty() {
        let dir = played("");
        let groups = Groups::set_up(dir.path().to_owned(), false);
        for name in ["old", "needed"] {
            std::fs::create_dir_all(dir.path().join("agents").join(name).join("made/by/it")).unwrap();
        }
        files(&dir.path().join("agents/busy"), &[(PROCS, "1\n")]);
        let names = || {
            let mut all: Vec<String> = groups.agents().into_iter().map(|(name, _)| name).collect();
            all.sort();
            all
        };
        assert_eq!(names(), ["busy", "needed", "old"]);
        groups.remove_empty(groups.agents().into_iter().filter(|(name, _)| name != "needed"));
        assert_eq!(names(), ["busy", "needed"]);
        assert!(groups.remove(&dir.path().join("agents/old")).is_ok(), "what is gone was removed");
        assert!(groups.remove(&dir.path().join("agents/busy")).is_err());
        assert!(groups.kill(&dir.path().join("agents/busy")).is_err(), "a kernel without it says so");
    }

    /// With groups of the kernel's, where this user may make one: as a service manager delegates it, or as root does.
    #[test]
    fn real_groups_know_and_end_all_that_is_in_them() {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let base = directory(&text("/proc/self/cgroup"), &text("/proc/self/mountinfo"))
            .map(|own| own.dir.join(format!("ostler-test-{}", std::process::id())));
        let base = match base.map(|base| std::fs::create_dir(&base).map(|()| base)) {
            Ok(Ok(base)) => base,
            none => {
                eprintln!("SKIPPED: this machine delegates no control group to this test: {none:?}");
                return;
            }
        };
        let groups = Groups::set_up(base.clone(), false);
        let dir = groups.make("1", &LIMITS).unwrap().unwrap();
        // The shell and what it starts, which is in a session of its own.
        let script = format!("echo $$ > {}/{PROCS} && {{ setsid sleep 1000 & wait; }}", dir.display());
        let mut child = std::process::Command::new("sh").args(["-c", &script]).spawn().unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while groups.usage(&dir).processes.unwrap_or(0) < 2 {
            assert!(std::time::Instant::now() < until && child.try_wait().unwrap().is_none(), "they are not in it");
            std::thread::yield_now();
        }
        assert!(groups.usage(&dir).cpu_ms.is_some());
        assert!(groups.remove(&dir).is_err(), "a group with processes stays");
        groups.remove_empty(groups.agents());
        assert_eq!(groups.agents(), [("1".to_owned(), dir.clone())]);
        groups.kill(&dir).unwrap();
        assert!(!child.wait().unwrap().success());
        while groups.usage(&dir).processes != Some(0) {
            assert!(std::time::Instant::now() < until, "something of it is left");
            std::thread::yield_now();
        }
        groups.remove_empty(groups.agents());
        assert!(groups.agents().is_empty());
        groups.remove(&base).unwrap();
    }
}
