//! Ends what a daemon that is no more has left of its agents: done where no daemon is, under the state's lock.

use std::path::Path;
use std::time::{Duration, Instant};

use super::restore::{Refused, take};
use crate::agent::process::{self, Claim};
use crate::proc::mark;

/// How long one round of ending them may take.
const ROUND: Duration = Duration::from_secs(5);
/// How often they are looked for: what one of them starts while it is ended is found by the next round.
const ROUNDS: usize = 3;

/// What became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// How many processes have ended: shims, agents, and what agents had started.
    pub ended: usize,
    /// Those that could not be ended, for people.
    pub left: Vec<String>,
}

/// Ends every process that the boots of a state directory have left: its shims, which end their agents by the ladder, and
/// whatever else carries its marks or descends from one that does. Their sessions' turns are interrupted by the next boot.
///
/// # Errors
/// [`Refused`]: a daemon has the state, or it cannot be used.
pub fn end_agents(state_dir: &Path) -> Result<Ended, Refused> {
    if !state_dir.exists() {
        return Ok(Ended::default());
    }
    let lock = take(state_dir)?;
    let state_id = mark::state_id(state_dir).map_err(|e| Refused::State(format!("{}: {e}", state_dir.display())))?;
    let claim = Claim { state_id: Some(&state_id), boot_id: None, owner: None, kept: &[] };
    let mut done = Ended::default();
    for _ in 0..ROUNDS {
        // One that names no directory is of an older version, and may be another's.
        let mut found = process::find_dead(&claim);
        found.retain(|l| l.state_id.is_some());
        if found.is_empty() {
            done.left.clear();
            break;
        }
        let left = process::end_leftovers(&found, Instant::now() + ROUND);
        done.ended += found.len() - left.len();
        done.left = left.iter().map(ToString::to_string).collect();
    }
    drop(lock);
    Ok(done)
}
