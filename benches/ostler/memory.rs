//! Memory: of the daemon alone, of a session at rest; and what the rest costs.
//!
//! A session's is anonymous memory (heap and stacks), from `smaps_rollup`: pages of the database that readers map are the
//! system's cache, not the session's. The daemon's own is all that is resident. Kernel memory of a thread is in neither.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::rig::{self, ECHO, Place};
use crate::table::{Goal, Scale, Table, median};

/// The daemon with no session.
pub fn base(scale: Scale, table: &mut Table) {
    let mut sizes: Vec<rig::Memory> = (0..scale.of(3, 1))
        .map(|_| {
            let place = Place::new(&rig::config(ECHO), None);
            let daemon = place.start();
            assert_eq!(daemon.client().get("/readyz").0, 200);
            rig::memory(daemon.pid())
        })
        .collect();
    sizes.sort_by(|a, b| a.rss.total_cmp(&b.rss));
    let size = sizes[sizes.len() / 2];
    table.row("the daemon with no session, resident", "MiB", size.rss / 1024.0, None, Goal::Below(12.0));
    table.note(&format!("of it anonymous: {:.1} MiB", size.anonymous / 1024.0));
}

/// An idle live echo session beside a parked thread with the same stack.
pub fn echo(scale: Scale, table: &mut Table) {
    let n = scale.of(10_000, 100);
    let pairs = (0..scale.of(2, 1)).map(|_| (sessions(ECHO, n), threads(n))).collect();
    let (ours, bare) = median(pairs);
    let figure = format!("one of {n} idle live sessions, anonymous memory");
    table.row(&figure, "KiB", ours, Some(bare), Goal::More(24.0));
}

/// An idle live session of an agent that is a process, which is not counted.
pub fn acp(scale: Scale, table: &mut Table) {
    let n = scale.of(500, 10);
    let agent = format!("kind = \"acp\"\ncommand = [{:?}]", env!("CARGO_BIN_EXE_ostler-fake-agent"));
    let pairs = vec![(sessions(&agent, n), threads(n))];
    let (ours, bare) = median(pairs);
    let figure = format!("one of {n} idle live ACP sessions, anonymous memory");
    table.row(&figure, "KiB", ours, Some(bare), Goal::Below(64.0));
}

fn sessions(agent: &str, n: usize) -> f64 {
    let place = Place::new(&rig::config(agent), None);
    let daemon = place.start();
    // The first ones pay for what all share.
    daemon.message_all(0..16);
    daemon.settle();
    let before = rig::memory(daemon.pid());
    daemon.message_all(16..n + 16);
    daemon.settle();
    assert_eq!(daemon.status()["sessions"]["live"], n + 16);
    (rig::memory(daemon.pid()).anonymous - before.anonymous) / n as f64
}

fn threads(n: usize) -> f64 {
    let memory_of = |n: usize| {
        let dir = tempfile::tempdir().expect("a directory");
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["role:threads", &n.to_string()]).stdin(Stdio::piped());
        let (mut child, _) = rig::until_ready(command, dir.path());
        let memory = rig::memory(child.id()).anonymous;
        drop(child.stdin.take());
        let _ = child.wait();
        memory
    };
    (memory_of(n + 16) - memory_of(16)) / n as f64
}

/// The role: a process with as many parked threads, until its input ends.
pub fn bare_threads(args: &[String]) {
    let n: usize = args[0].parse().expect("a number");
    let started = std::sync::Arc::new(std::sync::Barrier::new(n + 1));
    for _ in 0..n {
        let started = started.clone();
        let body = move || {
            started.wait();
            loop {
                std::thread::park();
            }
        };
        std::thread::Builder::new().stack_size(ostler::thread::IO_STACK).spawn(body).expect("a thread");
    }
    started.wait();
    rig::say_ready();
    let _ = std::io::stdin().read(&mut [0]);
    std::process::exit(0);
}

/// How often any thread of the daemon ran while nobody wanted anything.
pub fn idle(scale: Scale, table: &mut Table) {
    let n = scale.of(10_000, 100);
    let place = Place::new(&rig::config(ECHO), None);
    let daemon = place.start_alone();
    daemon.message_all(0..n);
    daemon.settle();
    // The log is folded into the file two seconds after the last commit, and then there is nothing to do.
    std::thread::sleep(Duration::from_secs(4));
    let (before, began) = (switches(daemon.pid()), Instant::now());
    let span = Duration::from_secs(scale.of(10, 1) as u64);
    std::thread::sleep(span.saturating_sub(began.elapsed()));
    let after = switches(daemon.pid());
    let figure = format!("context switches in {} s of {n} idle sessions, all threads", span.as_secs());
    table.row(&figure, "", after - before, Some(0.0), Goal::More(0.0));
}

fn switches(pid: u32) -> f64 {
    let mut sum = 0.0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads").flatten() {
        let text = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let numbers = text.lines().filter(|l| l.contains("ctxt_switches")).filter_map(|l| l.rsplit('\t').next());
        sum += numbers.filter_map(|n| n.trim().parse::<f64>().ok()).sum::<f64>();
    }
    sum
}
