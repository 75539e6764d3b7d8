//! The processes of the live sessions' agents: what is shown of them, and what their groups use.
//!
//! An entry may outlive its process: whoever shows one asks the kernel first ([`ProcessInfo::is_live`]).

use std::path::PathBuf;
use std::time::Duration;

use super::Registry;
use crate::proc::cgroup::{self, Usage};
use crate::proc::procfs;

/// The process of a session's agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessInfo {
    /// The session's id.
    pub session_id: String,
    /// The agent's name in the configuration.
    pub agent: String,
    /// Its process id.
    pub pid: u32,
    /// Its start time in clock ticks since the machine's boot.
    pub start: u64,
    /// The directory of its control group, if it has one of its own.
    pub cgroup: Option<PathBuf>,
    /// How it is confined, as it is shown; none: it is not.
    pub confined: Option<serde_json::Value>,
}

impl ProcessInfo {
    /// Whether that very process still runs.
    #[must_use]
    pub fn is_live(&self) -> bool {
        procfs::stat(self.pid).is_some_and(|s| s.start == self.start && s.is_live())
    }

    /// For how long it has run.
    #[must_use]
    pub fn age(&self) -> Duration {
        procfs::age(self.start)
    }

    /// What it and all that it started use, as far as a control group says so.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.cgroup.as_deref().map(cgroup::usage).unwrap_or_default()
    }
}

impl Registry {
    /// The agent of a session has a process now; it takes the place of the one before.
    pub fn set_process(&self, sid: i64, process: ProcessInfo) {
        if let Some(handle) = self.lock().handles.get_mut(&sid) {
            handle.process = Some(process);
        }
    }

    /// The last process of a session's agent.
    #[must_use]
    pub fn process(&self, sid: i64) -> Option<ProcessInfo> {
        self.lock().handles.get(&sid)?.process.clone()
    }

    /// The last process of each live session's agent, with the session's key.
    #[must_use]
    pub fn processes(&self) -> Vec<(String, ProcessInfo)> {
        let inner = self.lock();
        let live = inner.roster.live();
        live.filter_map(|(sid, key)| Some((key.to_owned(), inner.handles.get(&sid)?.process.clone()?))).collect()
    }
}
