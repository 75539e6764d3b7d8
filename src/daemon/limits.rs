//! What the system allows: how many threads are safe, and how many descriptors.
//!
//! Past the limits a thread cannot be made, and worse: one whose signal stack cannot be mapped aborts the process. So
//! the daemon keeps its own threads below four fifths of the least of them.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Memory mappings that one thread costs.
const MAPS_PER_THREAD: u64 = 4;

/// With fewer descriptors than this hardly anything can be opened: the database, the socket, and an agent's pipes.
pub const LEAST_DESCRIPTORS: u64 = 64;

/// How many threads are safe, with what decides it.
#[must_use]
pub fn threads() -> (usize, String) {
    if let Some(n) = crate::failpoint::number("threads") {
        return (usize::try_from(n).unwrap_or(0).max(16), "a test".to_owned());
    }
    let number = |path: &str| std::fs::read_to_string(path).ok().and_then(|t| t.trim().parse::<u64>().ok());
    let maps_used = std::fs::read_to_string("/proc/self/maps").map_or(0, |t| t.lines().count() as u64);
    let of = |limit: u64, text: &str| (limit, text.to_owned());
    let mut bounds = Vec::new();
    if let Some(maps) = number("/proc/sys/vm/max_map_count") {
        bounds.push(of(maps.saturating_sub(maps_used) / MAPS_PER_THREAD, "vm.max_map_count"));
    }
    if let Some(n) = number("/proc/sys/kernel/threads-max") {
        bounds.push(of(n, "kernel.threads-max"));
    }
    if let Some(n) = getrlimit(Resource::Nproc).current {
        bounds.push(of(n, "RLIMIT_NPROC"));
    }
    if let Some(n) = cgroup_pids() {
        bounds.push(of(n, "the control group's pids.max"));
    }
    let (least, by) = bounds.into_iter().min().unwrap_or_else(|| of(10_000, "a guess"));
    (usize::try_from(least * 4 / 5).unwrap_or(usize::MAX).max(16), by)
}

/// The least `pids.max` of our control group and those above it.
fn cgroup_pids() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut least = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let root = match controllers {
            "" => "/sys/fs/cgroup",
            c if c.split(',').any(|c| c == "pids") => "/sys/fs/cgroup/pids",
            _ => continue,
        };
        let mut path = path.trim_end_matches('/').to_owned();
        loop {
            if let Ok(text) = std::fs::read_to_string(format!("{root}{path}/pids.max"))
                && let Ok(n) = text.trim().parse::<u64>()
            {
                least = Some(least.map_or(n, |l: u64| l.min(n)));
            }
            match path.rfind('/') {
                Some(at) => path.truncate(at),
                None => break,
            }
        }
    }
    least
}

/// Raises the soft limit of open descriptors to the hard one; returns it.
pub fn raise_descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    // What it starts gets the old one back: programs that select, or close every number, suffer from a large one.
    if let Some(soft) = limit.current {
        crate::proc::note_descriptors(soft);
    }
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(e) => {
            log::warn!("the limit of open descriptors stays at {:?}: {e}", limit.current);
            limit.current.unwrap_or(u64::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn some_threads_are_safe_and_not_all() {
        let (n, by) = super::threads();
        assert!((16..1_000_000).contains(&n), "{n} by {by}");
    }
}
