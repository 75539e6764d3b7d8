//! All that descends from this process: found, killed, reaped.
//!
//! The shim is a subreaper with one child of its own making. Whatever an agent starts stays below it, whatever it does to its
//! group, session or environment; so descent is all that is asked.

use std::collections::{HashMap, HashSet};
use std::fs;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions};

use crate::proc::procfs;

/// The live processes that descend from a process, as far as they can be seen. Zombies are left out, but not their children.
#[must_use]
pub fn descendants(of: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut open = children(of).unwrap_or_else(|| by_parents(of));
    // Each number is taken once, so this ends, whatever changes meanwhile.
    let mut seen = HashSet::new();
    while let Some(pid) = open.pop() {
        if seen.insert(pid) {
            found.push(pid);
            open.extend(children(pid).unwrap_or_default());
        }
    }
    found.retain(|pid| procfs::stat(*pid).is_some_and(|stat| stat.is_live()));
    found.sort_unstable();
    found
}

/// What of this process's descendants lives still, for good: the kernel's lists of children may leave one out while another
/// dies. Without any child, dead or alive, there is none: each has a parent below this process, or this one.
#[must_use]
pub fn left() -> Vec<u32> {
    let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    if rustix::process::waitid(WaitId::All, peek).is_err_and(|e| e == Errno::CHILD) {
        return Vec::new();
    }
    let own = std::process::id();
    let mut found = descendants(own);
    if found.is_empty() {
        found = by_parents(own);
        found.retain(|pid| procfs::stat(*pid).is_some_and(|stat| stat.is_live()));
    }
    found
}

/// The children of all of a process's threads; `None` when it is gone, or the kernel has no such list.
fn children(of: u32) -> Option<Vec<u32>> {
    let mut all = Vec::new();
    let mut any = false;
    for thread in fs::read_dir(format!("/proc/{of}/task")).ok()?.flatten() {
        if let Ok(text) = fs::read_to_string(thread.path().join("children")) {
            any = true;
            all.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    any.then_some(all)
}

/// The same by the parents of all processes, for a kernel without lists of children.
fn by_parents(of: u32) -> Vec<u32> {
    let mut parents: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if let Some(stat) = entry.file_name().to_str().and_then(|n| n.parse().ok()).and_then(procfs::stat) {
            parents.entry(stat.parent).or_default().push(stat.pid);
        }
    }
    let mut found = Vec::new();
    let mut open = vec![of];
    while let Some(parent) = open.pop() {
        let born = parents.remove(&parent).unwrap_or_default();
        open.extend(&born);
        found.extend(born);
    }
    found
}

/// Whether a process descends from another.
#[must_use]
pub fn descends(mut pid: u32, from: u32) -> bool {
    // A line of parents is not endless, but it may change while it is read.
    for _ in 0..4096 {
        match procfs::stat(pid) {
            _ if pid == from => return true,
            Some(stat) if stat.parent > 1 => pid = stat.parent,
            _ => return false,
        }
    }
    false
}

/// Sends SIGKILL to a process, if it descends from `below`. It is held by a descriptor while that is looked at, so that a
/// stranger who has got its number meanwhile is spared.
pub fn kill(pid: u32, below: u32) {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(held) = rustix::process::pidfd_open(raw, PidfdFlags::empty()) else { return };
    if descends(pid, below) {
        let _ = rustix::process::pidfd_send_signal(held, Signal::KILL);
    }
}

/// Reaps the children that are dead, but not `spared`, which may hide others while it is dead itself.
pub fn reap(spared: Option<u32>) {
    while let Some(pid) = crate::sys::dead_child().filter(|pid| Some(*pid) != spared) {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        if !pid.is_some_and(|pid| matches!(rustix::process::waitpid(Some(pid), WaitOptions::NOHANG), Ok(Some(_)))) {
            return;
        }
    }
}
