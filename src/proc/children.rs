//! Whose child is it? The register of the children that somebody waits for, and the reaping of all others.
//!
//! The daemon is a subreaper: what an agent leaves behind becomes its child and, dead, a zombie. Reaping them must never
//! take the exit status from under a worker that waits for its own agent. So every child of this process is made by
//! [`spawn`], which registers it before anybody could reap it, and stays registered until its owner is done with it.

use std::collections::HashSet;
use std::io;
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use rustix::process::{Pid, WaitId, WaitIdOptions, WaitOptions};

use super::procfs;

/// Held for reading while a child is made and registered, for writing while strays are reaped.
static MAKING: RwLock<()> = RwLock::new(());
static OWNED: Mutex<Option<HashSet<u32>>> = Mutex::new(None);

fn owned() -> MutexGuard<'static, Option<HashSet<u32>>> {
    OWNED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A child's place in the register; given up when dropped.
#[derive(Debug)]
pub struct Registered(u32);

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(set) = owned().as_mut() {
            set.remove(&self.0);
        }
    }
}

/// Whether somebody waits for this child.
#[must_use]
pub fn is_registered(pid: u32) -> bool {
    owned().as_ref().is_some_and(|set| set.contains(&pid))
}

/// Whether this process ever had a child: without one there is nothing to look for.
#[must_use]
pub fn any_made() -> bool {
    owned().is_some()
}

/// Starts a child that [`reap_strays`] leaves alone for as long as the second value lives. Keep it until the child was
/// waited for; dropped earlier, the child is reaped like a stray. Everything in the daemon that starts a process uses this.
///
/// # Errors
/// Those of [`Command::spawn`].
pub fn spawn(command: &mut Command) -> io::Result<(Child, Registered)> {
    // Readers do not hold up each other; the only writer never waits for the lock.
    let making = MAKING.read().unwrap_or_else(PoisonError::into_inner);
    let child = command.spawn()?;
    owned().get_or_insert_default().insert(child.id());
    drop(making);
    let registered = Registered(child.id());
    reap_strays();
    Ok((child, registered))
}

/// Reaps the zombies that became this process's children when their parent died, and returns how many there were. Cheap
/// when there are none. Call it when a child signal comes; while a child is being made it does nothing, for [`spawn`] then
/// does it.
pub fn reap_strays() -> usize {
    let Ok(_alone) = MAKING.try_write() else { return 0 };
    // A look that takes nothing: mostly nobody is dead.
    let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    if !matches!(rustix::process::waitid(WaitId::All, peek), Ok(Some(_))) {
        return 0;
    }
    let me = std::process::id();
    let own_group = procfs::stat(me).map(|s| s.group);
    let mut reaped = 0;
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Some(stat) = procfs::stat(pid).filter(|s| s.parent == me && s.state == 'Z') else { continue };
        // A child in the daemon's own group was made by a library of ours that did not register it: it waits by itself.
        if Some(stat.group) == own_group || is_registered(pid) {
            continue;
        }
        let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
        if matches!(rustix::process::waitpid(Some(pid), WaitOptions::NOHANG), Ok(Some(_))) {
            reaped += 1;
        }
    }
    reaped
}
