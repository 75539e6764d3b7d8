//! Whose process is it? Peers and agents that this daemon cannot see as its own.

use crate::daemon::Daemon;

/// A daemon in a pid namespace of its own serves whoever comes from outside: their process has no number there.
#[test]
fn a_client_of_another_pid_namespace_is_served() {
    let can = std::process::Command::new("unshare").args(["-pf", "--mount-proc", "true"]).output();
    if !can.is_ok_and(|o| o.status.success()) {
        eprintln!("SKIPPED: this sandbox makes no pid namespace");
        return;
    }
    let mut d = Daemon::new();
    // The inner one is process 1 there and dies with the outer one.
    d.set_wrapper(&["unshare", "-pf", "--mount-proc", "--kill-child"]);
    d.boot();
    assert_eq!(d.send("local:a", "from outside"), "echo: from outside");
    d.signal(rustix::process::Signal::KILL);
    d.ended();
}
