//! What nobody waits for is reaped, and what nobody answers for is ended. A process of its own, for it ends every orphan.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ostler::agent::process::end_orphans;
use ostler::proc::{reap_strays, spawn as spawn_registered};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags};

/// Runs a script in a group of its own that says a pid and exits, and returns the pid of what it left behind.
fn orphan(script: &str) -> i32 {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).stdout(Stdio::piped()).stderr(Stdio::null());
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let (mut child, _registered) = spawn_registered(&mut command).unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    text.trim().parse().unwrap()
}

fn exists(pid: i32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn orphans_are_reaped_and_at_the_end_ended() {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    // One that dies by itself becomes a zombie of ours, which is reaped.
    let dying = orphan("sleep 0.2 >/dev/null & echo $!");
    let fd = rustix::process::pidfd_open(Pid::from_raw(dying).unwrap(), PidfdFlags::empty()).unwrap();
    rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], None).unwrap();
    assert!(exists(dying), "a zombie until somebody reaps it");
    assert_eq!(reap_strays(), 1);
    assert!(!exists(dying));
    assert_eq!(reap_strays(), 0);
    // One without markers that goes on, and has started another.
    let going_on = orphan("env -i setsid sh -c 'sleep 1000 & sleep 1000; :' >/dev/null & echo $!");
    let mut waited_for = Command::new("/bin/sleep");
    waited_for.arg("1000");
    std::os::unix::process::CommandExt::process_group(&mut waited_for, 0);
    let (mut waited_for, _registered) = spawn_registered(&mut waited_for).unwrap();
    assert_eq!(end_orphans(Instant::now() + Duration::from_secs(20)), Vec::<String>::new());
    assert!(!exists(going_on));
    let pid = i32::try_from(waited_for.id()).unwrap();
    assert!(exists(pid) && waited_for.try_wait().unwrap().is_none(), "what somebody waits for is left to him");
    waited_for.kill().unwrap();
    waited_for.wait().unwrap();
}
