//! At the limit of threads: what the daemon itself needs is kept for it, however many clients there are.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::process::Signal;
use ureq::http::Method;

use crate::daemon::{Daemon, PATIENCE};
use crate::rig::boot_ready;

/// Clients that begin a request and never end it, until one is turned away.
fn fill(d: &Daemon) -> Vec<UnixStream> {
    let mut clients = Vec::new();
    for _ in 0..64 {
        let mut client = d.raw();
        let _ = client.write_all(b"GET /v1/status HTTP/1.1\r\n");
        clients.push(client);
    }
    d.wait_log("clients are turned away");
    clients
}

/// Checklist 28, 38. Clients have all the threads that they can get: SIGHUP reloads, with the first scripts and their
/// threads, and a stop has its deadline.
#[test]
fn what_the_daemon_needs_is_there_at_the_limit() {
    let short = "[shutdown]\ndrain = \"100ms\"\ninterrupt = \"500ms\"\nhooks = \"500ms\"\nclose = \"400ms\"\ndeadline = \"2500ms\"\n[hooks]\nthreads = 1\n";
    let mut d = boot_ready(Daemon::new().config(short), "threads=set:32,stop.marked=stall:25000");
    let clients = fill(&d);
    d.write_hook("a.lua", "ostler.on('reload', function() ostler.log.info('RELOADED') end)\n");
    d.write_config(&format!("[sessions]\nqueue_limit = 7\n{short}"));
    let from = d.log.count();
    d.signal(Signal::HUP);
    d.log.find(from, "the reload", |l| l.contains("reloaded: changed sessions.queue_limit"));
    d.log.find(from, "its handler", |l| l.contains("RELOADED"));
    d.sigterm();
    let status = d.ended();
    assert_eq!(status.code(), Some(1), "the deadline ends it: {status}");
    d.wait_log("the stop's deadline has passed");
    drop(clients);
    d.write_config("[hooks]\nthreads = 1\n");
    let mut d = boot_ready(d, "");
    assert_eq!(d.stop(), 0);
}

/// The daemon has so many threads of hooks, by the system's list, which a thread that was joined may leave a little later.
fn hook_threads(d: &Daemon, expected: usize) {
    let began = Instant::now();
    loop {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", d.pid())).unwrap();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        let hooks: Vec<_> = names.filter(|name| name.starts_with("hook-")).collect();
        if hooks.len() == expected {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{expected} threads of hooks, not {hooks:?}");
        std::thread::yield_now();
    }
}

/// The threads of the first scripts are there all or not at all: a reload that does not get them is refused and changes
/// nothing; one that does serves every key.
#[test]
fn scripts_get_all_their_threads_or_none() {
    let threads = |n: usize| format!("[hooks]\nthreads = {n}\n");
    let mut d = boot_ready(Daemon::new().config(&threads(1)), "threads=set:32");
    hook_threads(&d, 0);
    d.write_hook("a.lua", "ostler.on('session_end', function(ev) ostler.log.info('END ' .. ev.key) end)\n");
    d.write_config(&threads(48));
    let refused = d.client().request(Method::POST, "/v1/reload", None, PATIENCE).unwrap_err();
    assert_eq!((refused.status, refused.code.as_str()), (422, "invalid_config"));
    assert!(refused.message.contains("cannot start a thread"), "{refused}");
    assert_eq!(d.get("/v1/hooks")["handlers"].as_array().unwrap().len(), 0, "the old ones, which are none");
    hook_threads(&d, 0);
    d.write_config(&threads(3));
    let reloaded = d.client().post("/v1/reload", None).unwrap();
    assert_eq!(reloaded["changed"][0], "hooks.threads", "{reloaded}");
    // Those of the key, one for what is waited for, one for timers' runs, the watch and the clock: none of the refused set.
    hook_threads(&d, 3 + 2 + 2);
    for key in 0..8 {
        d.send(&format!("local:{key}"), "x");
    }
    assert_eq!(d.stop(), 0);
    let ends = d.log.all().iter().filter(|l| l.contains("END local:")).count();
    assert_eq!(ends, 8);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM deliveries WHERE state='pending'"), 0);
}
