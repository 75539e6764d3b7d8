//! What an agent's processes may reach, as rules for Landlock, which its shim applies.
//!
//! Landlock knows grants and no exceptions. So what is left out (the state directory and the credentials directory) is left
//! out by granting everything beside the way that leads to it: the entries of `/`, of `/var`, of `/var/lib`, but for the one
//! that goes on. Listing is granted for `/` as a whole, because nothing above what is left out could be listed otherwise; so
//! names show there, and contents do not.
//!
//! What lies above what is left out is fixed with that: an entry made later there, or put in the place of another, is shut
//! for agents that run. Therefore nothing is left out below /etc or HOME, and `state` is the default only where the daemon's
//! user can make nothing there anyhow ([`Ground::find`]).
//!
//! All paths are given to the shim without symbolic links, and it follows none: an agent that puts one in the place of its
//! own directory gains nothing. It must not know how an agent is started; it looks at the file system and changes nothing.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use crate::config::{self, Confine};
use crate::shim::frame::Confined;
use crate::shim::start::{Confinement, Rule};

const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;
/// Everything that version 3 knows: contents, entries, renames between directories, truncation.
const ALL: u64 = (1 << 15) - 1;
const READ: u64 = EXECUTE | READ_FILE | READ_DIR;
const WRITE_DEVICE: u64 = READ | WRITE_FILE | TRUNCATE | IOCTL_DEV;
/// Signals, and abstract unix sockets.
const SCOPES: u64 = 3;

/// Fewer than the shim takes: the rest is for what is named.
const MOST_RULES: usize = 3500;
/// Devices that a program may expect to write to.
const DEVICES: [&str; 8] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx", "/dev/pts"];
/// Memory that processes share by name.
const SHARED_MEMORY: &str = "/dev/shm";
/// The kernel's own settings, and the control groups.
const KERNEL: &str = "/sys";

/// What is left out for every agent, and what is usual here. Made once at the daemon's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ground {
    /// The state directory, then the credentials directory where there is one; without symbolic links.
    left_out: Vec<PathBuf>,
    /// The state directory as it was named.
    named: PathBuf,
    /// The default of `confine`.
    usual: Confine,
}

/// The places of one agent.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// What is left out.
    pub ground: &'a Ground,
    /// Its working directory, which is there.
    pub cwd: &'a Path,
    /// Its HOME.
    pub home: Option<&'a Path>,
    /// Its TMPDIR; none: it uses /tmp.
    pub tmpdir: Option<&'a Path>,
}

impl Ground {
    /// For a daemon with this state directory, and the service manager's credentials where there are any.
    #[must_use]
    pub fn find(state_dir: &Path) -> Self {
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from).filter(|dir| dir.is_absolute());
        Self::of(state_dir, credentials.as_deref(), &|dir| rustix::fs::access(dir, Access::WRITE_OK).is_ok())
    }

    /// The same from what is known; `can_write`: whether this user can make entries in a directory.
    #[must_use]
    pub fn of(state_dir: &Path, credentials: Option<&Path>, can_write: &dyn Fn(&Path) -> bool) -> Self {
        let left_out: Vec<PathBuf> =
            [Some(state_dir), credentials].into_iter().flatten().filter_map(|dir| dir.canonicalize().ok()).collect();
        let above = left_out.iter().flat_map(|dir| dir.ancestors().skip(1));
        // A state directory that is not there cannot be left out.
        let is_open = left_out.is_empty() || above.into_iter().any(can_write);
        let usual = if is_open { Confine::None } else { Confine::State };
        Self { left_out, named: state_dir.to_owned(), usual }
    }

    /// The default of `confine` here: `state` where this user can make nothing in any directory above what is left out.
    #[must_use]
    pub const fn usual(&self) -> Confine {
        self.usual
    }

    /// What holds for an agent: its own setting, else the default; one that must be confined is.
    #[must_use]
    pub fn confine(&self, agent: &config::Agent) -> Confine {
        let usual = if agent.confine_required { Confine::State } else { self.usual };
        agent.confine.unwrap_or(usual)
    }

    /// A place without symbolic links, if it is one that can be granted: an agent may have put a link in the place of a
    /// directory that is its own, and a link that leads to what is left out grants nothing.
    fn resolved(&self, place: &Path) -> Option<PathBuf> {
        let real = place.canonicalize().ok()?;
        let Some(state) = self.left_out.first() else { return Some(real) };
        let hidden = self.left_out.iter().any(|dir| real.starts_with(dir));
        let plain = |root: &Path| place.strip_prefix(root).is_ok_and(|rest| state.join(rest) == real);
        (!hidden || plain(state) || plain(&self.named) || place == real).then_some(real)
    }
}

/// One entry of a directory.
struct Entry {
    path: PathBuf,
    meta: Metadata,
}

/// The entries of a directory, by name; without symbolic links, whose targets have rules of their own.
fn entries(dir: &Path) -> Vec<Entry> {
    let all = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut all: Vec<Entry> = all
        .filter_map(|e| Some(Entry { path: e.path(), meta: std::fs::symlink_metadata(e.path()).ok()? }))
        .filter(|e| !e.meta.is_symlink())
        .collect();
    all.sort_by(|a, b| a.path.cmp(&b.path));
    all
}

struct Plan<'a> {
    ground: &'a Ground,
    /// Device and inode of what is left out, and of all above it: mounted elsewhere they are the same.
    on_the_way: Vec<(u64, u64)>,
    rules: Vec<Rule>,
    /// What there was no room for.
    dropped: usize,
}

impl<'a> Plan<'a> {
    fn new(ground: &'a Ground) -> Self {
        let ways = ground.left_out.iter().flat_map(|dir| dir.ancestors());
        let on_the_way = ways.filter_map(|dir| dir.metadata().ok()).map(|m| (m.dev(), m.ino())).collect();
        Self { ground, on_the_way, rules: Vec::new(), dropped: 0 }
    }

    fn add(&mut self, path: &Path, access: u64) {
        if self.rules.len() < MOST_RULES {
            self.rules.push(Rule { path: path.to_owned(), access });
        } else {
            self.dropped += 1;
        }
    }

    /// Grants that below a directory, without what is left out.
    fn beside(&mut self, dir: &Path, access: u64) {
        if self.ground.left_out.iter().any(|out| dir.starts_with(out)) {
            return;
        }
        if !self.ground.left_out.iter().any(|out| out.starts_with(dir)) {
            return self.add(dir, access);
        }
        for entry in entries(dir) {
            let leads_there = self.ground.left_out.iter().any(|out| out.starts_with(&entry.path));
            if leads_there {
                self.beside(&entry.path, access);
            } else if entry.path == Path::new(KERNEL) {
                self.add(&entry.path, READ);
            } else if !self.on_the_way.contains(&(entry.meta.dev(), entry.meta.ino())) {
                self.add(&entry.path, access);
            }
        }
    }

    /// Grants that below a place of the agent's own, which may lie in the state directory.
    fn own(&mut self, place: &Path, access: u64) {
        let Some(real) = self.ground.resolved(place) else { return };
        if !self.ground.left_out.iter().any(|out| real.starts_with(out)) {
            self.beside(&real, access);
        } else if !self.ground.left_out.contains(&real) {
            self.add(&real, access);
        }
    }

    /// Grants HOME. Where that is the state directory itself, what programs keep in it has names with a dot.
    fn home(&mut self, home: &Path, access: u64) {
        let Some(real) = self.ground.resolved(home).filter(|real| real.as_path() != Path::new("/")) else { return };
        if self.ground.left_out.first() != Some(&real) {
            return self.own(home, access);
        }
        let dotted = |e: &Entry| e.path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        for entry in entries(&real).into_iter().filter(dotted) {
            self.add(&entry.path, access);
        }
    }
}

/// The rules for an agent; `None`: it is not confined.
#[must_use]
pub fn rules(places: &Places<'_>, agent: &config::Agent) -> Option<Confinement> {
    let (confinement, dropped) = planned(places, agent)?;
    if dropped > 0 {
        log::warn!(
            "agent {}: {dropped} entries beside the state directory are shut for it: more than {MOST_RULES} are not granted",
            agent.name
        );
    }
    Some(confinement)
}

fn planned(places: &Places<'_>, agent: &config::Agent) -> Option<(Confinement, usize)> {
    let confine = places.ground.confine(agent);
    let (all, handled) = match confine {
        Confine::None => return None,
        Confine::State => (ALL, ALL),
        Confine::Workdir => (ALL | IOCTL_DEV, ALL | IOCTL_DEV),
    };
    let mut plan = Plan::new(places.ground);
    plan.own(places.cwd, all);
    plan.own(places.tmpdir.unwrap_or(Path::new("/tmp")), all);
    if let Some(home) = places.home {
        plan.home(home, all);
    }
    if let Some(program) = agent.command.first().map(Path::new).filter(|p| p.is_absolute()) {
        program_of_its_own(&mut plan, program);
    }
    plan.rules.push(Rule { path: "/".into(), access: READ_DIR });
    match confine {
        Confine::Workdir => {
            for place in &agent.write {
                if let Some(place) = written(place, places.home) {
                    plan.own(&place, all);
                }
            }
            DEVICES.iter().for_each(|device| plan.add(Path::new(device), WRITE_DEVICE));
            plan.add(Path::new(SHARED_MEMORY), all);
            plan.add(Path::new("/dev"), READ | IOCTL_DEV);
            plan.beside(Path::new("/"), READ);
        }
        _ => plan.beside(Path::new("/"), all),
    }
    let least = if agent.confine_required { agent.confine_abi } else { 0 };
    Some((Confinement { handled, scopes: SCOPES, least, rules: plan.rules }, plan.dropped))
}

/// A program that is installed in the state directory may be run, with what lies beside it.
fn program_of_its_own(plan: &mut Plan<'_>, program: &Path) {
    let Some(real) = plan.ground.resolved(program) else { return };
    let Some(state) = plan.ground.left_out.first().filter(|state| real.starts_with(state)) else { return };
    let beside = real.parent().filter(|dir| dir != state).unwrap_or(&real).to_owned();
    plan.add(&beside, READ);
}

/// A place of `write`: `~` is the agent's HOME.
fn written(place: &str, home: Option<&Path>) -> Option<PathBuf> {
    match place.strip_prefix('~') {
        Some(rest) => Some(home?.join(rest.trim_start_matches('/'))),
        None => Some(place.into()),
    }
}

/// How an agent is confined, as it is shown: the setting, the kernel's version of Landlock, and what that does not enforce.
#[must_use]
pub fn told(confine: Confine, confined: &Confined) -> serde_json::Value {
    serde_json::json!({
        "confine": confine.as_str(),
        "abi": confined.abi,
        "not_enforced": confine.not_enforced(confined.abi),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::AgentKind;

    /// `ROOT/a/b/state` with its parts, `ROOT/run/credentials/x`, and entries beside them.
    struct Played {
        dir: tempfile::TempDir,
        ground: Ground,
    }

    impl Played {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().canonicalize().unwrap();
            for made in [
                "a/b/state/work/own/deep",
                "a/b/state/work/other",
                "a/b/state/tmp/own",
                "a/b/state/home",
                "a/b/state/.config",
                "a/b/beside",
                "a/beside",
                "home/me/notes",
                "run/credentials/x",
                "run/beside",
            ] {
                std::fs::create_dir_all(root.join(made)).unwrap();
            }
            for file in ["a/b/state/ostler.db", "a/b/state/program", "a/b/file", "run/credentials/x/token"] {
                std::fs::write(root.join(file), "").unwrap();
            }
            std::os::unix::fs::symlink(root.join("a/b/state"), root.join("a/link")).unwrap();
            let ground = Ground::of(&root.join("a/b/state"), Some(&root.join("run/credentials/x")), &|_| false);
            Self { dir, ground }
        }

        fn at(&self, path: &str) -> PathBuf {
            self.dir.path().canonicalize().unwrap().join(path)
        }

        fn plan(&self, cwd: &str, home: Option<&str>, agent: &config::Agent) -> Confinement {
            let (cwd, tmpdir) = (self.at(cwd), self.at("a/b/state/tmp/own"));
            let home = home.map(|home| self.at(home));
            let places = Places { ground: &self.ground, cwd: &cwd, home: home.as_deref(), tmpdir: Some(&tmpdir) };
            rules(&places, agent).unwrap()
        }

        /// What is granted for a path by all rules on the way to it.
        fn granted(&self, plan: &Confinement, path: &str) -> u64 {
            let path = self.at(path);
            plan.rules.iter().filter(|r| path.starts_with(&r.path)).fold(0, |sum, r| sum | r.access)
        }
    }

    fn agent(confine: Option<Confine>) -> config::Agent {
        config::Agent { confine, ..config::Agent::of_kind("x", AgentKind::Acp) }
    }

    #[test]
    fn all_is_granted_but_what_is_left_out() {
        let played = Played::new();
        let plan = played.plan("a/b/state/work/own", Some("home/me"), &agent(Some(Confine::State)));
        assert_eq!((plan.handled, plan.scopes, plan.least), (ALL, SCOPES, 0));
        for own in ["a/b/state/work/own", "a/b/state/work/own/deep", "a/b/state/tmp/own", "home/me/notes", "a/b/beside"]
        {
            assert_eq!(played.granted(&plan, own), ALL, "{own}");
        }
        assert_eq!(played.granted(&plan, "a/b/file"), ALL, "a file beside it");
        assert_eq!((played.granted(&plan, "run/beside"), played.granted(&plan, "a/beside")), (ALL, ALL));
        for shut in [
            "a/b/state",
            "a/b/state/ostler.db",
            "a/b/state/work",
            "a/b/state/work/other",
            "a/b/state/tmp",
            "a/b/state/home",
            "run/credentials/x/token",
            "run/credentials",
            "a/b/made-later",
        ] {
            assert_eq!(played.granted(&plan, shut), READ_DIR, "{shut} can be listed and nothing else");
        }
        assert!(plan.rules.iter().all(|r| !r.path.ends_with("link")), "a link leads to what is left out");
        let kernel: Vec<u64> = plan.rules.iter().filter(|r| r.path.starts_with("/sys")).map(|r| r.access).collect();
        assert_eq!(kernel, [READ], "the kernel's settings are read only");
    }

    #[test]
    fn in_its_working_directory_it_writes_and_elsewhere_it_reads() {
        let played = Played::new();
        let wanted = config::Agent { write: vec!["~/notes".into()], ..agent(Some(Confine::Workdir)) };
        let plan = played.plan("a/b/state/work/own", Some("home"), &wanted);
        let all = ALL | IOCTL_DEV;
        assert_eq!(plan.handled, all);
        for (path, access) in [
            ("a/b/state/work/own/deep", all),
            ("a/b/state/tmp/own", all),
            ("home/me/notes", all),
            ("a/b/beside", READ),
            ("run/beside", READ),
            ("a/b/state/ostler.db", READ_DIR),
            ("run/credentials/x/token", READ_DIR),
        ] {
            assert_eq!(played.granted(&plan, path), access, "{path}");
        }
        let device = |path: &str| {
            let path = Path::new(path);
            plan.rules.iter().filter(|r| path.starts_with(&r.path)).fold(0, |sum, r| sum | r.access)
        };
        assert_eq!(device("/dev/null"), WRITE_DEVICE);
        assert_eq!(device("/dev/some-disk") & (WRITE_FILE | IOCTL_DEV), IOCTL_DEV);
        let wanted = config::Agent { write: vec!["/".into()], ..agent(Some(Confine::Workdir)) };
        let plan = played.plan("a/b/state/work/own", None, &wanted);
        assert_eq!(played.granted(&plan, "a/b/state/ostler.db"), READ_DIR, "what is left out stays so");
        assert_eq!(played.granted(&plan, "a/b/beside"), all);
    }

    #[test]
    fn a_link_in_the_place_of_an_own_directory_grants_nothing() {
        let played = Played::new();
        let state = played.at("a/b/state");
        for (name, target) in [("work/l1", "."), ("work/l2", "../work/other"), ("work/l3", "..")] {
            std::os::unix::fs::symlink(played.at("a/b/state").join(target), state.join(name)).unwrap();
            let plan = played.plan(&format!("a/b/state/{name}"), None, &agent(Some(Confine::State)));
            for shut in ["a/b/state/ostler.db", "a/b/state/work/other", "a/b/state/work/own"] {
                assert_eq!(played.granted(&plan, shut), READ_DIR, "{name}: {shut}");
            }
        }
        let named = Ground::of(&played.at("a/link"), None, &|_| false);
        let through = played.at("a/link/work/own");
        assert_eq!(
            named.resolved(&through),
            Some(played.at("a/b/state/work/own")),
            "the daemon's own way to it is none"
        );
    }

    #[test]
    fn home_is_granted_as_far_as_it_can_be() {
        let played = Played::new();
        let plan = |home: &str| played.plan("a/b/state/work/own", Some(home), &agent(Some(Confine::State)));
        assert_eq!(played.granted(&plan("a/b/state/home"), "a/b/state/home"), ALL);
        let itself = plan("a/b/state");
        assert_eq!(played.granted(&itself, "a/b/state/.config"), ALL);
        assert_eq!(played.granted(&itself, "a/b/state/ostler.db"), READ_DIR);
        assert_eq!(played.granted(&plan("a"), "a/b/state/ostler.db"), READ_DIR, "above the state directory");
        let program = played.at("a/b/state/home/bin");
        std::fs::create_dir(&program).unwrap();
        std::fs::write(program.join("agent"), "").unwrap();
        let command = vec![program.join("agent").display().to_string()];
        let plan = played.plan("a/b/state/work/own", None, &config::Agent { command, ..agent(Some(Confine::State)) });
        assert_eq!(played.granted(&plan, "a/b/state/home/bin/agent"), READ);
        assert_eq!(played.granted(&plan, "a/b/state/home"), READ_DIR);
        let command = vec![played.at("a/b/state/program").display().to_string()];
        let plan = played.plan("a/b/state/work/own", None, &config::Agent { command, ..agent(Some(Confine::State)) });
        assert_eq!(played.granted(&plan, "a/b/state/program"), READ);
        assert_eq!(played.granted(&plan, "a/b/state/ostler.db"), READ_DIR);
    }

    #[test]
    fn the_default_is_by_who_may_write_above() {
        let played = Played::new();
        let state = played.at("a/b/state");
        let usual = |open: &'static str, credentials: Option<&Path>| {
            let open = played.at(open);
            Ground::of(&state, credentials, &move |dir| dir == open).usual()
        };
        let credentials = played.at("run/credentials/x");
        for (open, credentials, want) in [
            ("nowhere", Some(credentials.as_path()), Confine::State),
            ("a/b/state", None, Confine::State),
            ("a/b", None, Confine::None),
            ("a", None, Confine::None),
            ("run", None, Confine::State),
            ("run", Some(&credentials), Confine::None),
        ] {
            assert_eq!(usual(open, credentials), want, "{open}");
        }
        let open = Ground::of(&state, None, &|_| true);
        assert_eq!(open.confine(&agent(None)), Confine::None);
        assert_eq!(open.confine(&agent(Some(Confine::Workdir))), Confine::Workdir);
        let required = config::Agent { confine_required: true, confine_abi: 4, ..agent(None) };
        assert_eq!(open.confine(&required), Confine::State);
        let places = |agent: &config::Agent| {
            rules(&Places { ground: &open, cwd: &state.join("work/own"), home: None, tmpdir: None }, agent)
        };
        assert_eq!(places(&agent(None)), None);
        assert_eq!(places(&required).unwrap().least, 4);
        assert_eq!(Ground::of(&played.at("gone"), None, &|_| false).usual(), Confine::None);
    }

    #[test]
    fn there_are_no_more_rules_than_a_shim_takes() {
        let played = Played::new();
        for n in 0..MOST_RULES + 50 {
            std::fs::write(played.at(&format!("a/b/n{n}")), "").unwrap();
        }
        let (cwd, agent) = (played.at("a/b/state/work/own"), agent(Some(Confine::State)));
        let places = Places { ground: &played.ground, cwd: &cwd, home: None, tmpdir: None };
        let (plan, dropped) = planned(&places, &agent).unwrap();
        assert!(dropped > 50 && plan.rules.len() <= MOST_RULES + 1, "{dropped}");
        assert_eq!(played.granted(&plan, "a/b/state/work/own"), ALL, "what is its own comes first");
        let start = crate::shim::start::Start {
            argv: vec!["x".into()],
            confine: Some(plan),
            spool_limit: crate::shim::start::SPOOL_LEAST,
            ..Default::default()
        };
        assert_eq!(crate::shim::start::Start::decode(&start.encode()), Ok(start));
    }

    #[test]
    fn how_an_agent_is_confined_is_shown() {
        let told = told(Confine::State, &Confined { abi: 5, ..Confined::default() });
        let want = serde_json::json!({ "confine": "state", "abi": 5, "not_enforced": ["signals", "abstract sockets"] });
        assert_eq!(told, want);
    }
}
