//! The session whose agent a process belongs to.
//!
//! Only positive evidence counts: the markers of this daemon's present boot in the environment of the process, or of an
//! ancestor that began after the daemon. The boot's id is new at each start and secret until then, so a process that
//! carries it was started by an agent of this boot. In doubt a process belongs to no agent: an operator who is mistaken
//! for an agent would be locked out of the daemon.

use super::mark::Marks;
use super::procfs;

/// The most ancestors that are looked at.
const DEPTH: usize = 64;

/// The daemon that asks.
#[derive(Clone, Copy, Debug)]
pub struct Daemon<'a> {
    /// Its pid.
    pub pid: u32,
    /// When it began, in clock ticks since the machine's boot.
    pub start: u64,
    /// Its present boot.
    pub boot_id: &'a str,
}

/// A process as it is seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its parent.
    pub parent: u32,
    /// When it began.
    pub start: u64,
    /// Its markers.
    pub marks: Option<Marks>,
}

/// The session whose agent the process `pid` belongs to, as `look` shows each process; `None`: no agent's.
///
/// The marker nearest to the daemon counts, because the daemon set it; processes below may have changed their own.
#[must_use]
pub fn agent_of(pid: u32, daemon: Daemon<'_>, look: impl Fn(u32) -> Option<Seen>) -> Option<String> {
    let (mut at, mut younger, mut found) = (pid, u64::MAX, None);
    for _ in 0..DEPTH {
        // The daemon, process 1, and process 0 (which stands for the outside of the namespace) are no agents.
        if at <= 1 || at == daemon.pid {
            break;
        }
        let Some(seen) = look(at) else { break };
        // A parent is at least as old as its child, or its pid was given anew; and what is older than the daemon is no
        // agent of it, nor is anything above.
        if seen.start > younger || seen.start < daemon.start {
            break;
        }
        if let Some(marks) = seen.marks.filter(|m| m.boot_id == daemon.boot_id)
            && let Some(session_id) = marks.session_id
        {
            found = Some(session_id);
        }
        (at, younger) = (seen.parent, seen.start);
    }
    found
}

/// The same for a live process, with this process as the daemon.
#[must_use]
pub fn agent_of_boot(pid: u32, boot_id: &str) -> Option<String> {
    let me = std::process::id();
    let daemon = Daemon { pid: me, start: procfs::stat(me)?.start, boot_id };
    agent_of(pid, daemon, |pid| {
        let stat = procfs::stat(pid)?;
        Some(Seen { parent: stat.parent, start: stat.start, marks: procfs::marks(pid) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const DAEMON: Daemon<'static> = Daemon { pid: 100, start: 1000, boot_id: "now" };

    /// A process: pid, parent, start, and boot and session of its markers.
    type Row = (u32, u32, u64, Option<(&'static str, Option<&'static str>)>);

    fn of(pid: u32, rows: &[Row]) -> Option<String> {
        let picture: HashMap<u32, Seen> = rows
            .iter()
            .map(|(pid, parent, start, marks)| {
                let marks = marks.map(|(boot, session)| Marks {
                    boot_id: boot.to_owned(),
                    session_id: session.map(str::to_owned),
                    ..Marks::default()
                });
                (*pid, Seen { parent: *parent, start: *start, marks })
            })
            .collect();
        agent_of(pid, DAEMON, |pid| picture.get(&pid).cloned())
    }

    #[test]
    fn what_an_agent_runs_is_the_agents() {
        let mine = Some(("now", Some("s1")));
        // The agent itself, and what it runs.
        let agent: Row = (200, 100, 1100, mine);
        assert_eq!(of(200, &[agent]).as_deref(), Some("s1"));
        assert_eq!(of(201, &[agent, (201, 200, 1200, mine)]).as_deref(), Some("s1"));
        // One whose environment was cleared, by its parent's.
        assert_eq!(of(202, &[agent, (201, 200, 1200, None), (202, 201, 1200, None)]).as_deref(), Some("s1"));
        // One that says to be another session's: what the daemon has set counts.
        assert_eq!(of(201, &[agent, (201, 200, 1200, Some(("now", Some("s2"))))]).as_deref(), Some("s1"));
        // One whose parent is gone: the first process or the daemon has adopted it, or one outside of the namespace.
        for parent in [0, 1, 100] {
            assert_eq!(of(203, &[(203, parent, 1200, mine)]).as_deref(), Some("s1"), "{parent}");
        }
    }

    #[test]
    fn in_doubt_it_is_nobodys() {
        let mine = Some(("now", Some("s1")));
        let picture: &[(&str, u32, &[Row])] = &[
            ("a command in a shell beside the daemon", 300, &[(300, 50, 2000, None), (50, 1, 10, None)]),
            ("one whose parent is outside of the namespace", 300, &[(300, 0, 2000, None)]),
            ("one that is gone", 300, &[]),
            ("the daemon, started by an agent of another one", 100, &[(100, 50, 1000, Some(("other", Some("s1"))))]),
            ("the daemon, whatever it carries", 100, &[(100, 50, 1000, mine)]),
            ("the first process, whatever it carries", 1, &[(1, 0, 1, mine)]),
            ("the one for those outside", 0, &[(0, 0, 0, mine)]),
            ("the shell that started the daemon, whatever it carries", 50, &[(50, 1, 999, mine)]),
            ("a command below that shell", 300, &[(300, 50, 2000, None), (50, 1, 999, mine)]),
            ("a child of the daemon that is no agent (a hook's)", 300, &[(300, 100, 2000, None)]),
            ("an agent's of another boot", 300, &[(300, 1, 2000, Some(("before", Some("s1"))))]),
            (
                "a command below another daemon's agent",
                300,
                &[(300, 60, 2000, None), (60, 1, 1500, Some(("x", Some("s"))))],
            ),
            ("one that carries a boot and no session", 300, &[(300, 1, 2000, Some(("now", None)))]),
            (
                "one whose parent's pid was given to an agent since",
                300,
                &[(300, 200, 2000, None), (200, 100, 2001, mine)],
            ),
            ("one that began before the daemon, on a socket that was kept", 300, &[(300, 1, 900, mine)]),
            ("a service manager's child beside the daemon", 300, &[(300, 1, 2000, None), (1, 0, 1, mine)]),
        ];
        for (what, pid, rows) in picture {
            assert_eq!(of(*pid, rows), None, "{what}");
        }
    }

    #[test]
    fn a_circle_ends() {
        assert_eq!(of(300, &[(300, 301, 2000, None), (301, 300, 2000, None)]), None);
    }

    #[test]
    fn this_process_is_no_agents() {
        assert_eq!(agent_of_boot(std::process::id(), "now"), None);
    }
}
