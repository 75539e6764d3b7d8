//! The register of the children that have an owner who waits for them, and the reaping of all others.
//!
//! The daemon is a subreaper: processes that an agent leaves behind become its children and, when they die, zombies.
//! Reaping them must never take the exit status away from a worker that waits for its own agent. So [`spawn`] makes
//! every child of this process and registers it before anything could reap it, and it stays registered until its owner
//! is done.

use std::collections::HashSet;
use std::io;
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use rustix::process::{Pid, WaitOptions};

use super::mark::{Tag, own_tag};
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
        // Behind it there may be strays that were not seen.
        reap_strays();
    }
}

/// The children that this process had before it became the daemon. They are left alone.
static INHERITED: OnceLock<Vec<(u32, u64)>> = OnceLock::new();

/// The soft limit of descriptors that this process was started with; its children get it back.
static DESCRIPTORS: OnceLock<u64> = OnceLock::new();

/// Notes the inherited children: those that are there, or, in a process that had another program before, those that the
/// first program found. Called once, before the first child is made.
pub fn note_inherited(first: Option<Vec<(u32, u64)>>) {
    if let Some(all) = first {
        let _ = INHERITED.set(all);
        return;
    }
    let me = std::process::id();
    let of_ours = |(stat, _): &(procfs::Stat, _)| (stat.parent == me).then_some((stat.pid, stat.start));
    let _ = INHERITED.set(procfs::picture().all.iter().filter_map(of_ours).collect());
}

/// The inherited children: pid and start.
#[must_use]
pub fn inherited() -> Vec<(u32, u64)> {
    INHERITED.get().cloned().unwrap_or_default()
}

/// Whether this process is an inherited child.
#[must_use]
pub fn is_inherited(stat: &procfs::Stat) -> bool {
    INHERITED.get().is_some_and(|all| all.contains(&(stat.pid, stat.start)))
}

/// Notes the soft limit of descriptors that children are to have. Called before this process raises its own.
pub fn note_descriptors(soft: u64) {
    let _ = DESCRIPTORS.set(soft);
}

/// Prepares a child: a session of its own without a terminal, the limit of descriptors that this process was started
/// with, and the tag of a session's processes (the row 0: of none's).
pub fn set_apart(command: &mut Command, sid: i64) {
    crate::sys::set_up_child(command, DESCRIPTORS.get().copied(), own_tag(sid).map(Tag::limit));
}

/// Whether somebody waits for this child.
#[must_use]
pub fn is_registered(pid: u32) -> bool {
    owned().as_ref().is_some_and(|set| set.contains(&pid))
}

/// Whether this process ever made a child; without one there is nothing to reap.
#[must_use]
pub fn any_made() -> bool {
    owned().is_some()
}

/// Starts a child that [`reap_strays`] leaves alone for as long as the second value lives. Keep it until the child was
/// waited for; dropped earlier, the child is reaped like a stray. Everything in the daemon that starts a process uses
/// this.
///
/// # Errors
/// Those of [`Command::spawn`].
pub fn spawn(command: &mut Command) -> io::Result<(Child, Registered)> {
    // Readers do not block each other, and the only writer never waits for the lock.
    let making = MAKING.read().unwrap_or_else(PoisonError::into_inner);
    let child = command.spawn()?;
    owned().get_or_insert_default().insert(child.id());
    drop(making);
    let registered = Registered(child.id());
    reap_strays();
    Ok((child, registered))
}

/// Reaps the zombies that became this process's children when their parent died, and returns how many there were. Its
/// cost does not depend on the number of processes. Call it when a child signal comes. While a child is being made it
/// does nothing: [`spawn`] reaps afterwards. A registered zombie may hide others, which are reaped when its owner reaps
/// it.
pub fn reap_strays() -> usize {
    let Ok(_alone) = MAKING.try_write() else { return 0 };
    let own_group = crate::sys::own_group();
    let reap = |pid: u32| {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        pid.is_some_and(|pid| matches!(rustix::process::waitpid(Some(pid), WaitOptions::NOHANG), Ok(Some(_))))
    };
    // A library made a child in the daemon's own group without registering it, and waits for it itself.
    let stray = |stat: &procfs::Stat| (stat.group != own_group || is_inherited(stat)) && !is_registered(stat.pid);
    let mut reaped = 0;
    while let Some(pid) = crate::sys::dead_child().filter(|pid| !is_registered(*pid)) {
        match procfs::stat(pid) {
            Some(stat) if stray(&stat) => {
                if !reap(pid) {
                    break;
                }
                reaped += 1;
            }
            None => break,
            // No signal comes when this child is reaped, so the zombies that it hides are looked for now.
            Some(_) => {
                let all = procfs::picture();
                let me = std::process::id();
                let dead = all.all.iter().map(|(s, _)| s).filter(|s| s.parent == me && s.state == 'Z' && stray(s));
                reaped += dead.filter(|s| reap(s.pid)).count();
                break;
            }
        }
    }
    reaped
}
