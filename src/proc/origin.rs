//! The session whose agent a process belongs to.
//!
//! Known by descent: an ancestor is a shim of this state directory, or carries the markers of this daemon's present boot
//! and began after the daemon. The boot's id is new at each start and secret until then, so a process that carries it was
//! started by an agent of this boot; a shim is older than the daemon that took it up again. What an agent has started by
//! others (`systemd-run --user`, a tmux server from outside, a container) does not descend from it, and is not caught.
//!
//! Of a process that is gone, or whose parents cannot be followed, nothing is known: who asks decides what that means.

use std::os::fd::AsFd;

use super::mark::Marks;
use super::procfs;
use crate::sys;

/// The most ancestors that are looked at.
const DEPTH: usize = 64;
/// How often the ancestors are read again, because one of them ended meanwhile.
const TRIES: usize = 4;

/// The daemon that asks.
#[derive(Clone, Copy, Debug)]
pub struct Daemon<'a> {
    /// Its pid.
    pub pid: u32,
    /// When it began, in clock ticks since the machine's boot.
    pub start: u64,
    /// Its present boot.
    pub boot_id: &'a str,
    /// Its state directory.
    pub state_id: &'a str,
}

/// A process as it is seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its parent.
    pub parent: u32,
    /// When it began.
    pub start: u64,
    /// It has a shim's name.
    pub shim: bool,
    /// Its markers.
    pub marks: Option<Marks>,
}

/// Where a process comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An agent of this session.
    Agent(String),
    /// No agent's.
    Outside,
    /// It is gone, or an ancestor ended while they were read.
    Unknown,
}

/// Where the process `pid` comes from, as `look` shows each process (`None`: it is not there, or not to be seen).
///
/// The evidence nearest to the daemon counts, because the daemon set it; processes below may have changed their own.
#[must_use]
pub fn origin_of(pid: u32, daemon: Daemon<'_>, look: impl Fn(u32) -> Option<Seen>) -> Origin {
    let (mut at, mut younger, mut child, mut found) = (pid, u64::MAX, None, None);
    for _ in 0..DEPTH {
        // The daemon, process 1, and process 0 (which stands for the outside of the namespace) are no agents.
        if at <= 1 || at == daemon.pid {
            return found.map_or(Origin::Outside, Origin::Agent);
        }
        let Some(seen) = look(at) else {
            // Another user's process may be hidden, and no agent's process has another user. But one that has ended is
            // nobody's parent any more.
            let hidden = child.is_some_and(|child| look(child).is_some_and(|c| c.parent == at));
            return match found {
                Some(session_id) => Origin::Agent(session_id),
                None if hidden => Origin::Outside,
                None => Origin::Unknown,
            };
        };
        // A parent is at least as old as its child, or its pid was given anew.
        if seen.start > younger {
            return found.map_or(Origin::Unknown, Origin::Agent);
        }
        if let Some(marks) = seen.marks
            && let Some(session_id) = marks.session_id
        {
            let of_a_shim = seen.shim && marks.state_id.as_deref() == Some(daemon.state_id);
            let of_this_boot = marks.boot_id == daemon.boot_id && seen.start >= daemon.start;
            if of_a_shim || of_this_boot {
                found = Some(session_id);
            }
        }
        (child, at, younger) = (Some(at), seen.parent, seen.start);
    }
    found.map_or(Origin::Unknown, Origin::Agent)
}

/// Where the peer of a connected unix socket comes from; `pid` is what the kernel noted at its connect. The process is held
/// on to meanwhile, so that its number means no other.
#[must_use]
pub fn of_peer(socket: impl AsFd, pid: Option<i32>, boot_id: &str, state_id: &str) -> Origin {
    // One without a number here is of a pid namespace above or beside ours. What an agent starts has one: it is in ours, or
    // below it.
    let Some(pid) = pid.and_then(|pid| u32::try_from(pid).ok()) else { return Origin::Outside };
    let me = std::process::id();
    let Some(own) = procfs::stat(me) else { return Origin::Unknown };
    let daemon = Daemon { pid: me, start: own.start, boot_id, state_id };
    let look = |pid: u32| {
        let stat = procfs::stat(pid)?;
        let shim = procfs::is_named(pid, SHIM);
        let may_count = shim || stat.start >= daemon.start;
        let marks = if may_count { procfs::marks(pid) } else { None };
        Some(Seen { parent: stat.parent, start: stat.start, shim, marks })
    };
    let Ok(process) = sys::peer_process(socket, pid) else { return Origin::Unknown };
    for _ in 0..TRIES {
        let origin = origin_of(pid, daemon, look);
        // A number that was given anew while it was looked at shows another process.
        if !process.is(pid) {
            return Origin::Unknown;
        }
        if origin != Origin::Unknown {
            return origin;
        }
    }
    Origin::Unknown
}

/// The name that shims are run under.
const SHIM: &str = "ostler-shim";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::HashMap;

    const DAEMON: Daemon<'static> = Daemon { pid: 100, start: 1000, boot_id: "now", state_id: "here" };

    /// A process: pid, parent, start, and boot and session of its markers.
    type Row = (u32, u32, u64, Option<(&'static str, Option<&'static str>)>);

    fn seen((_, parent, start, marks): &Row, shim: Option<&str>) -> Seen {
        let marks = marks.map(|(boot, session)| Marks {
            boot_id: boot.to_owned(),
            session_id: session.map(str::to_owned),
            state_id: shim.map(str::to_owned),
        });
        Seen { parent: *parent, start: *start, shim: shim.is_some(), marks }
    }

    /// `shims`: those of the rows that have a shim's name, and the state directory in their markers.
    fn origin(pid: u32, rows: &[Row], shims: &[(u32, &str)]) -> Origin {
        let shim = |pid: u32| shims.iter().find(|(of, _)| *of == pid).map(|(_, state)| *state);
        let picture: HashMap<u32, Seen> = rows.iter().map(|row| (row.0, seen(row, shim(row.0)))).collect();
        origin_of(pid, DAEMON, |pid| picture.get(&pid).cloned())
    }

    fn of(pid: u32, rows: &[Row]) -> Option<String> {
        match origin(pid, rows, &[]) {
            Origin::Agent(session_id) => Some(session_id),
            Origin::Outside | Origin::Unknown => None,
        }
    }

    #[test]
    fn what_descends_from_a_shim_is_its_agents_whatever_boot_started_it() {
        let old = Some(("before", Some("s1")));
        let shim: Row = (150, 1, 500, old);
        let below = [shim, (200, 150, 501, None), (201, 200, 2000, None)];
        let agent = Origin::Agent("s1".to_owned());
        for pid in [150, 200, 201] {
            assert_eq!(origin(pid, &below, &[(150, "here")]), agent, "{pid}");
        }
        // Started by this boot, the daemon's child.
        assert_eq!(
            origin(200, &[(150, 100, 1500, old), below[1]], &[(150, "here")]),
            Origin::Unknown,
            "a pid given anew"
        );
        assert_eq!(origin(200, &[(150, 100, 1500, old), (200, 150, 1501, None)], &[(150, "here")]), agent);
        // A shim of another state directory, and what only has a shim's markers.
        assert_eq!(origin(201, &below, &[(150, "elsewhere")]), Origin::Outside);
        assert_eq!(origin(201, &below, &[]), Origin::Outside);
        // An agent that calls a process of its own a shim of another session: what stands nearer to the daemon counts.
        let fake = (200, 150, 501, Some(("before", Some("s2"))));
        assert_eq!(origin(201, &[shim, fake, (201, 200, 2000, None)], &[(150, "here"), (200, "here")]), agent);
    }

    #[test]
    fn what_cannot_be_followed_is_not_known() {
        assert_eq!(origin(300, &[], &[]), Origin::Unknown, "gone");
        let circle = [(300, 301, 2000, None), (301, 300, 2000, None)];
        assert_eq!(origin(300, &circle, &[]), Origin::Unknown);
        assert_eq!(origin(300, &[(300, 50, 2000, None), (50, 1, 10, None)], &[]), Origin::Outside);
        assert_eq!(origin(300, &[(300, 0, 2000, None)], &[]), Origin::Outside);
        // The parent is not to be seen, and stays the parent: it is another user's.
        assert_eq!(origin(300, &[(300, 50, 2000, None)], &[]), Origin::Outside);
        // It has ended: the child has another one when it is looked at again.
        let looks = std::cell::Cell::new(0);
        let look = |pid: u32| {
            looks.set(looks.get() + 1);
            let parent = if looks.get() == 1 { 50 } else { 1 };
            (pid == 300).then(|| seen(&(300, parent, 2000, None), None))
        };
        assert_eq!(origin_of(300, DAEMON, look), Origin::Unknown);
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
    fn this_process_is_no_agents() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let me = i32::try_from(std::process::id()).unwrap();
        assert_eq!(of_peer(&one, Some(me), "now", "here"), Origin::Outside);
        assert_eq!(of_peer(&one, None, "now", "here"), Origin::Outside);
        assert_eq!(of_peer(&one, Some(me + 1), "now", "here"), Origin::Unknown, "another than the kernel's");
    }

    /// It connects, and is gone and reaped before it is looked at.
    #[test]
    fn a_peer_that_is_gone_is_not_known() {
        let dir = tempfile::tempdir().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
        let script = "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])";
        let mut command = std::process::Command::new("python3");
        let mut child = command.args(["-c", script]).arg(dir.path().join("s")).spawn().unwrap();
        assert!(child.wait().unwrap().success());
        let (peer, _) = listener.accept().unwrap();
        let pid = sys::peer_cred(&peer).unwrap().pid;
        assert_eq!(pid, i32::try_from(child.id()).ok());
        assert_eq!(of_peer(&peer, pid, "now", "here"), Origin::Unknown);
    }
}
