//! What bounds the processes of agents on this machine: control groups and rules for files, found once at the start.
//!
//! Here they are put together for one agent that is about to be started below a shim. It must not know how it is started.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::confine::{self, Ground, Places};
use crate::config;
use crate::proc::cgroup::{Groups, Limits};
use crate::shim::landlock;
use crate::shim::launch::SocketName;
use crate::shim::start::Confinement;

/// The directory of agents' temporary files, in the state directory. A service whose unit has made it shows it to agents as
/// /tmp; each has a directory of its own in it.
pub const TEMPORARY: &str = "tmp";

/// What there is to bound agents with.
#[derive(Clone, Debug)]
pub struct Bounds {
    groups: Groups,
    ground: Ground,
    /// The directory of temporary files, where there is one.
    temporary: Option<PathBuf>,
    /// When it was looked.
    since: SystemTime,
}

/// The bounds of one agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// The directory of its control group.
    pub cgroup: Option<PathBuf>,
    /// The rules of its confinement; none: it is not confined.
    pub rules: Option<Confinement>,
}

impl Bounds {
    /// Looks what there is. It never fails: what there is not is told ([`Bounds::told`]).
    #[must_use]
    pub fn find(state_dir: &Path) -> Self {
        let temporary = Some(state_dir.join(TEMPORARY)).filter(|dir| dir.is_dir());
        Self { groups: Groups::find(), ground: Ground::find(state_dir), temporary, since: SystemTime::now() }
    }

    /// The control groups.
    #[must_use]
    pub const fn groups(&self) -> &Groups {
        &self.groups
    }

    /// What is left out for agents.
    #[must_use]
    pub const fn ground(&self) -> &Ground {
        &self.ground
    }

    /// The directory of an agent's temporary files, made; none: it uses /tmp. It is removed with [`Bounds::clean`].
    ///
    /// # Errors
    /// It cannot be made.
    pub fn temporary(&self, name: &str) -> io::Result<Option<PathBuf>> {
        use std::os::unix::fs::DirBuilderExt as _;
        let Some(dir) = self.temporary.as_ref().map(|dir| dir.join(name)) else { return Ok(None) };
        match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => Ok(Some(dir)),
        }
    }

    /// Ends all that is in the group of an agent, and removes what it has left.
    pub fn end(&self, name: &str) {
        if let Some(group) = self.groups.agent(name)
            && let Err(e) = self.groups.kill(&group)
        {
            log::debug!("control group {}: {e}", group.display());
        }
        self.clean(name);
    }

    /// Removes what an agent of that name has left: its group, if it is empty, and its temporary files.
    pub fn clean(&self, name: &str) {
        if let Some(group) = self.groups.agent(name)
            && let Err(e) = self.groups.remove(&group)
        {
            log::debug!("control group {}: {e}", group.display());
        }
        if let Some(dir) = self.temporary.as_ref().map(|dir| dir.join(name))
            && let Err(e) = std::fs::remove_dir_all(&dir)
            && e.kind() != io::ErrorKind::NotFound
        {
            log::warn!("temporary files of an agent: {}: {e}", dir.display());
        }
    }

    /// Removes what agents have left that nobody needs any more: groups, and temporary files. `needed` is asked once, after
    /// it was looked what there is; `None`: nobody knows, and nothing is removed. Where nobody is needed, the directory of
    /// temporary files is emptied of all that is older than this daemon: agents use it as /tmp too.
    pub fn clean_all(&self, needed: &dyn Fn() -> Option<HashSet<String>>) {
        let groups = self.groups.agents();
        let entries = self.temporary.iter().flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten());
        let entries: Vec<std::fs::DirEntry> = entries.collect();
        if groups.is_empty() && entries.is_empty() {
            return;
        }
        let Some(needed) = needed() else { return };
        self.groups.remove_empty(groups.into_iter().filter(|(name, _)| !needed.contains(name)));
        let is_over = |entry: &std::fs::DirEntry| match entry.file_name().to_str() {
            Some(name) if SocketName::parse(name).is_some() => !needed.contains(name),
            _ => needed.is_empty() && entry.metadata().and_then(|m| m.modified()).is_ok_and(|at| at < self.since),
        };
        for entry in entries.iter().filter(|e| is_over(e)) {
            let path = entry.path();
            let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
            let removed = if is_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            if let Err(e) = removed {
                log::warn!("temporary files of an agent: {}: {e}", path.display());
            }
        }
    }

    /// The bounds of an agent that is about to be started: its group is made. `name` is unique to it on this machine; `env`
    /// is its whole environment.
    ///
    /// # Errors
    /// Its group cannot be made, or a limit cannot be set.
    pub fn of(
        &self,
        name: &str,
        agent: &config::Agent,
        cwd: &Path,
        env: &BTreeMap<String, OsString>,
    ) -> io::Result<Bound> {
        let limits =
            Limits { memory: agent.memory, processes: agent.processes, cpu: agent.cpu, cpu_weight: agent.cpu_weight };
        let place = |name: &str| env.get(name).map(Path::new).filter(|path| path.is_absolute());
        let places = Places { ground: &self.ground, cwd, home: place("HOME"), tmpdir: place("TMPDIR") };
        Ok(Bound { cgroup: self.groups.make(name, &limits)?, rules: confine::rules(&places, agent) })
    }

    /// What there is, for the status.
    #[must_use]
    pub fn told(&self) -> serde_json::Value {
        let state = self.groups.state();
        serde_json::json!({
            "control_groups": state.as_str(), "control_groups_told": state.to_string(),
            "landlock": landlock::version(), "confine": self.ground.usual().as_str(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::{AgentKind, Confine};

    #[test]
    fn an_agents_temporary_files_are_its_own_and_go_with_it() {
        const A: &str = "aaaaaaaaaaaaaaaa";
        const B: &str = "bbbbbbbbbbbbbbbb";
        const C: &str = "cccccccccccccccc";
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Bounds::find(dir.path()).temporary(A).unwrap(), None, "nobody has made the directory");
        let tmp = dir.path().join(TEMPORARY);
        std::fs::create_dir(&tmp).unwrap();
        std::fs::write(tmp.join("old"), "").unwrap();
        let later = SystemTime::now() + std::time::Duration::from_secs(60);
        let bounds = Bounds { groups: Groups::off("test"), since: later, ..Bounds::find(dir.path()) };
        let made = bounds.temporary(A).unwrap().unwrap();
        assert_eq!(bounds.temporary(A).unwrap(), Some(made.clone()), "again");
        std::fs::write(made.join("x"), "").unwrap();
        for other in [B, C] {
            bounds.temporary(other).unwrap();
        }
        bounds.clean(B);
        let left = || {
            let mut all: Vec<String> =
                std::fs::read_dir(&tmp).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            all.sort();
            all
        };
        bounds.clean_all(&|| None);
        assert_eq!(left(), [A, C, "old"], "nobody knows who needs what");
        bounds.clean_all(&|| Some(HashSet::from([A.to_owned()])));
        assert_eq!(left(), [A, "old"], "an agent that goes on may have made it");
        let now = Bounds { since: std::time::UNIX_EPOCH, ..bounds.clone() };
        now.clean_all(&|| Some(HashSet::new()));
        assert_eq!(left(), ["old"], "it is newer than the daemon");
        bounds.clean_all(&|| Some(HashSet::new()));
        assert!(left().is_empty());
    }

    #[test]
    fn an_agents_environment_names_its_places() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().canonicalize().unwrap().join(name);
        for name in ["state", "cwd", "home"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        let bounds = Bounds {
            groups: Groups::off("test"),
            ground: Ground::of(&at("state"), None, &|_| false),
            temporary: None,
            since: SystemTime::now(),
        };
        let env = BTreeMap::from([("HOME".to_owned(), at("home").into()), ("TMPDIR".to_owned(), "relative".into())]);
        let agent = config::Agent { confine: Some(Confine::Workdir), ..config::Agent::of_kind("x", AgentKind::Acp) };
        let bound = bounds.of("a", &agent, &at("cwd"), &env).unwrap();
        assert_eq!(bound.cgroup, None);
        let paths: Vec<PathBuf> = bound.rules.unwrap().rules.into_iter().map(|r| r.path).collect();
        assert!(paths.contains(&at("cwd")) && paths.contains(&at("home")) && !paths.contains(&at("state")));
        assert_eq!(bounds.told()["control_groups_told"], "no groups: test");
    }
}
