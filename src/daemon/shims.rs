//! What the daemon asks of its agents' shims, whatever they are. A test of the real parts passes its own.
//!
//! [`Keeper`] implements it: shims are processes. How an agent speaks to its process is no part of this, nor is what a
//! session makes of an agent that is gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::agent::Identity;
use crate::agent::process::{self, Claim, Keeper, KnownShim, Process};
use crate::proc::mark;
use crate::store::ShimRow;

/// The shims of this daemon's agents.
pub trait Shims: Send + Sync {
    /// What those agents need whose processes are to be made below a shim.
    fn keeper(&self) -> Option<Arc<Keeper>>;

    /// The boot of the machine, as rows keep it.
    fn own_machine(&self) -> String;

    /// How long agents may work on alone, from now on; every shim is told.
    fn set_orphan(&self, after: Duration);

    /// Attaches to a shim that a row names. `from`: up to there its agent's output is kept.
    ///
    /// # Errors
    /// There is no such shim, or it refuses: says why.
    fn attach(&self, shim: &ShimRow, whose: &Identity, from: u64) -> Result<Box<dyn HeldShim>, String>;

    /// Ends what is left of an agent that did not outlive a daemon, by the instant: its shim, and what its session has
    /// started. Returns a line for each process that cannot be ended.
    fn end(&self, shim: Option<&ShimRow>, session_id: Option<&str>, boot_id: &str, until: Instant) -> Vec<String>;

    /// Kills what is left of the agents of this state directory, by the instant. `but`: not those of this boot, the daemon's
    /// own. Returns a line for each process that cannot be ended.
    fn kill(&self, but: Option<&str>, until: Instant) -> Vec<String>;
}

/// A shim that this daemon has attached to. If it is dropped its agent is ended.
pub trait HeldShim: Send {
    /// Whether it was ever told to start its agent.
    fn is_started(&self) -> bool;

    /// Goes away, and leaves the agent as it is.
    fn let_go(self: Box<Self>);

    /// The process, for its agent; `None`: the agent has its own way to it.
    fn process(self: Box<Self>) -> Option<Process>;
}

/// A process below a shim, and whether it was started.
struct Attached(Process, bool);

impl HeldShim for Attached {
    fn is_started(&self) -> bool {
        self.1
    }

    fn let_go(self: Box<Self>) {
        self.0.let_go();
    }

    fn process(self: Box<Self>) -> Option<Process> {
        Some(self.0)
    }
}

/// The shims of the machine.
pub struct Processes(pub Arc<Keeper>);

impl Shims for Processes {
    fn keeper(&self) -> Option<Arc<Keeper>> {
        Some(self.0.clone())
    }

    fn own_machine(&self) -> String {
        self.0.own_machine()
    }

    fn set_orphan(&self, after: Duration) {
        self.0.set_orphan(after);
    }

    fn attach(&self, shim: &ShimRow, whose: &Identity, from: u64) -> Result<Box<dyn HeldShim>, String> {
        let known = KnownShim { name: shim.name.clone(), token: shim.token, boot_id: shim.boot_id.clone() };
        let attached = Process::attach(&self.0, &known, (whose, "the agent"), from);
        let (process, started) = attached.map_err(|e| e.to_string())?;
        Ok(Box::new(Attached(process, started)))
    }

    fn end(&self, shim: Option<&ShimRow>, session_id: Option<&str>, boot_id: &str, until: Instant) -> Vec<String> {
        let stuck = end_processes(shim, session_id, boot_id, until);
        if let Some(shim) = shim {
            self.0.remove_socket(&shim.name);
        }
        stuck
    }

    fn kill(&self, but: Option<&str>, until: Instant) -> Vec<String> {
        kill_processes(but, until)
    }
}

/// Ends a shim and what is left of its agent, by its marks. See [`Shims::end`].
pub fn end_processes(shim: Option<&ShimRow>, session_id: Option<&str>, boot_id: &str, until: Instant) -> Vec<String> {
    if let Some(shim) = shim {
        process::kill_own(shim.pid, shim.pid_start);
    }
    let Some(session_id) = session_id else { return Vec::new() };
    let mut left = process::find_marked(Some(session_id), Some(boot_id));
    left.retain(|l| l.state_id.as_deref() == mark::own_state());
    process::end_leftovers(&left, until).iter().map(ToString::to_string).collect()
}

/// Kills the processes of agents, by their marks. See [`Shims::kill`]. Those without the identity of
/// a directory stay: an older version's, or another daemon's, and there is no time to ask whose.
pub fn kill_processes(but: Option<&str>, until: Instant) -> Vec<String> {
    let owner = but.map(|_| std::process::id());
    let claim = Claim { state_id: mark::own_state(), boot_id: but, owner, kept: &[] };
    let mut left = process::find_dead(&claim);
    left.retain(|l| l.state_id.is_some());
    process::kill_leftovers(&left, until).iter().map(ToString::to_string).collect()
}
