//! `ostler restore`: done where no daemon is, under the state's lock.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::lock::{Held, Lock};
use crate::store::{
    self,
    restore::{Candidate, own_like},
};

/// Why nothing was restored; the present database is as it was.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A daemon has the state.
    #[error("{0}: this cannot be done under it; stop it first (`ostler stop`)")]
    Owned(Held),
    /// The state directory cannot be used.
    #[error("{0}")]
    State(String),
    /// The file cannot be restored, or not be written at its place.
    #[error("{0}")]
    Store(#[from] store::Error),
}

/// Puts a backup at the place of a state directory's database, if `go` says so of the plan.
///
/// # Errors
/// [`Refused`].
pub fn restore(state_dir: &Path, file: &Path, go: &mut dyn FnMut(&Value) -> bool) -> Result<bool, Refused> {
    // A bad file makes no directory.
    let mut lock = if state_dir.exists() { Some(take(state_dir)?) } else { None };
    let candidate = Candidate::check(file)?;
    if lock.is_none() {
        super::state_dir::make(state_dir).map_err(Refused::State)?;
        lock = Some(take(state_dir)?);
    }
    let plan = candidate.plan(&state_dir.join("ostler.db"))?;
    let done = go(&plan.json());
    if done {
        plan.perform()?;
    }
    drop(lock);
    Ok(done)
}

/// The lock, in a file that whoever runs the daemon can open later.
pub(super) fn take(state_dir: &Path) -> Result<Lock, Refused> {
    let path: PathBuf = state_dir.join("lock");
    let new = !path.exists();
    let lock = Lock::take(state_dir).map_err(|e| match e {
        Held::Owned { .. } => Refused::Owned(e),
        Held::Io { .. } => Refused::State(e.to_string()),
    })?;
    if new {
        let given = std::fs::metadata(state_dir).and_then(|dir| own_like(&path, &dir));
        given.map_err(|e| Refused::State(format!("{}: {e}", path.display())))?;
    }
    Ok(lock)
}
