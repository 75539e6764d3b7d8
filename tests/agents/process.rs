//! Finding, ending and reaping processes by their markers.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ostler::agent::process::{Leftover, end_leftovers, find_marked, is_alive};
use ostler::proc::{Registered, reap_strays, spawn as spawn_registered};

/// A marked process that ignores SIGTERM.
struct Marked {
    child: Child,
    _registered: Registered,
}

impl Marked {
    /// Returned when it ignores SIGTERM.
    fn new(session: &str, boot: &str) -> Self {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "trap '' TERM; echo; read line"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.env("OSTLER_SESSION_ID", session).env("OSTLER_BOOT_ID", boot);
        let (mut child, registered) = spawn_registered(&mut command).unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        Self { child, _registered: registered }
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn only(session: &str) -> Leftover {
    let found = find_marked(Some(session), None);
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap()
}

#[test]
fn what_a_dead_boot_left_is_found_and_ended() {
    let session = format!("left-{}", std::process::id());
    let mut marked = Marked::new(&session, "old-boot");
    let found = only(&session);
    assert_eq!((found.pid, found.boot_id.as_str(), found.name.as_str()), (marked.child.id(), "old-boot", "sh"));
    assert!(is_alive(found.pid, found.start) && !is_alive(found.pid, found.start + 1));
    assert!(find_marked(Some(&session), Some("old-boot")).is_empty());
    assert!(find_marked(None, Some("new-boot")).contains(&found));
    let until = Instant::now() + Duration::from_millis(900);
    assert_eq!(end_leftovers(std::slice::from_ref(&found), until), []);
    assert!(!is_alive(found.pid, found.start));
    let status = marked.child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
}

#[test]
fn what_is_not_what_was_found_is_left_alone() {
    let session = format!("other-{}", std::process::id());
    let _marked = Marked::new(&session, "b");
    let found = only(&session);
    let soon = || Instant::now() + Duration::from_millis(100);
    let strangers = [
        Leftover { start: found.start + 1, ..found.clone() },
        Leftover { boot_id: "c".into(), ..found.clone() },
        Leftover { session_id: None, ..found.clone() },
        Leftover { state_id: Some("x".into()), ..found.clone() },
        Leftover { pid: std::process::id(), ..found.clone() },
        Leftover { pid: 1, ..found.clone() },
    ];
    assert_eq!(end_leftovers(&strangers, soon()), [], "there is nobody left of those that were named");
    assert!(is_alive(found.pid, found.start));
}

#[test]
fn a_child_that_is_waited_for_is_not_reaped_by_others() {
    for _ in 0..20 {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exit 7"]).stdout(Stdio::piped());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let (mut child, registered) = spawn_registered(&mut command).unwrap();
        // Its output ends when it has exited, or is about to.
        std::io::Read::read_to_end(child.stdout.as_mut().unwrap(), &mut Vec::new()).unwrap();
        reap_strays();
        assert_eq!(child.wait().unwrap().code(), Some(7));
        drop(registered);
    }
}
