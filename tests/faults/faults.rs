//! Agents that do not obey, workers that panic, a store that is slow or full, a stop that runs out of time, a blocked
//! stderr.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::daemon::{Daemon, PATIENCE, Proc, fake, run};
use crate::rig::{FS, NOTE, boot_ready, check_answers, check_calls, settled};

const SHORT: &str =
    "[shutdown]\ndrain = \"100ms\"\ninterrupt = \"3s\"\nhooks = \"3s\"\nclose = \"3s\"\ndeadline = \"30s\"\n";

/// Checklist 20. An agent that ignores the cancel, SIGTERM, or both, with a grandchild in a group of its own: killed within
/// `shutdown.interrupt`, nothing left, the exit in order.
#[test]
fn agents_that_do_not_obey() {
    for (flags, text) in [
        (&[][..], "grandchild; hang-hard"),
        (&["--ignore-term"][..], "grandchild; hang"),
        (&["--ignore-term", "--ignore-eof"][..], "grandchild; outlaw; hang-hard"),
    ] {
        let mut d = boot_ready(Daemon::new().config(&(fake(flags, "") + SHORT)), "");
        let mut events = d.events("local:a");
        d.post("local:a", text);
        events.until("text");
        let since = Instant::now();
        // `exit_code` looks for whatever is left.
        assert_eq!(d.stop(), 0, "{flags:?}");
        assert!(since.elapsed() < Duration::from_secs(10), "{flags:?}: {:?}", since.elapsed());
        assert_eq!(d.sql::<i64>("SELECT count(*) FROM turns WHERE state='interrupted'"), 1, "{flags:?}");
    }
}

/// Promise 5: a worker that panics costs its turn, told with a code; what waited behind it is answered, the activation has
/// its one end, and the stop is in order.
#[test]
fn a_worker_that_panics() {
    for point in ["prompt.before@local:a", "prompt.answered@local:a"] {
        let config = fake(&[], "") + FS;
        let mut d = boot_ready(Daemon::new().config(&config).hook("note.lua", NOTE), &format!("{point}=panic:2"));
        let (mut gate, mut events, first) = d.waiting("local:a", "");
        let (fails, waits) = (d.post("local:a", "say two"), d.post("local:a", "say three"));
        gate.open();
        let id = |t: &Value| t["turn_id"].as_str().unwrap().to_owned();
        assert_eq!(settled(&mut events, &id(&first)).0, "completed");
        let (outcome, end) = events.end_of(&fails);
        assert_eq!((outcome.as_str(), end["error"]["code"].is_string()), ("failed", true), "{point}: {end}");
        assert_eq!(settled(&mut events, &id(&waits)), ("completed".into(), 1), "{point}: what waited is answered");
        assert_eq!(d.send("local:a", "say four"), "four");
        assert_eq!(d.send("local:b", "say beside"), "beside");
        assert_eq!(d.stop(), 0, "{point}");
        check_answers(&d);
        check_calls(&d);
        assert_eq!(d.sql::<i64>("SELECT count(*) FROM activations"), 3, "{point}: one more than sessions");
    }
}

/// Promise 5: a worker that panics before it can begin: what it could not begin fails, one message each time, and it is
/// no loop without an end.
#[test]
fn a_worker_that_panics_at_its_start() {
    let config = fake(&[], "") + FS;
    let rule = "start.before@local:a=panic:1,start.before@local:a=panic:2";
    let mut d = boot_ready(Daemon::new().config(&config).hook("note.lua", NOTE), rule);
    d.client().post("/v1/hold", None).unwrap();
    let turns: Vec<Value> = (0..3).map(|n| d.post("local:a", &format!("say m{n}"))).collect();
    let mut events = d.events("local:a");
    d.client().post("/v1/release", None).unwrap();
    let outcomes: Vec<String> = turns.iter().map(|t| events.end_of(t).0).collect();
    assert_eq!(outcomes, ["failed", "failed", "completed"]);
    assert_eq!(d.stop(), 0);
    check_answers(&d);
    check_calls(&d);
}

/// Promise 4: a slow store delays, and loses nothing: turns stream and end, the stop is in order.
#[test]
fn a_slow_store() {
    let slow = "append.inside=stall:150,finish_turn.inside=stall:300,mark_running.before=stall:500,close_activations.inside=stall:500";
    let mut d = boot_ready(Daemon::new().config(&(fake(&[], "") + SHORT)), slow);
    let want: String = (0..30).map(|n| format!("{n} ")).collect();
    assert_eq!(d.send("local:a", "stream 30 5"), want.trim_end_matches('\0'));
    let (_gate, _events, _) = d.waiting("local:b", "");
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM turns WHERE state='interrupted'"), 1);
}

/// Why it is not ready.
pub fn not_ready(d: &Daemon) -> String {
    let mut answer = d.raw_request(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    let told: Value = serde_json::from_str(&answer.split_off(answer.find('{').unwrap())).unwrap();
    assert_eq!((&told["ready"], &told["phase"]), (&Value::Bool(false), &Value::from("running")), "{told}");
    told["reason"].as_str().unwrap().to_owned()
}

/// Promise 4: another process holds the database's write lock: senders are told, what a turn says and its outcome are kept
/// for when it lets go, and a stop meanwhile is bounded, unclean, and loses nothing.
#[test]
fn a_busy_store() {
    let short = SHORT.replace("deadline = \"30s\"", "deadline = \"20s\"");
    let mut d = boot_ready(Daemon::new().config(&(fake(&[], "") + &short)), "");
    let (mut gate, mut events, turn) = d.waiting("local:a", "; say done");
    let other = rusqlite::Connection::open(d.path("state/ostler.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let e = d.try_post("local:b", "say hello", Some("hello")).unwrap_err();
    assert_eq!((e.status, e.code.as_str()), (503, "store_unavailable"), "{e}");
    assert_eq!(d.get("/v1/sessions")["sessions"].as_array().unwrap().len(), 1, "readers are not held up");
    let reason = not_ready(&d);
    assert!(reason.contains("locked"), "{reason}");
    assert_eq!(d.get("/healthz")["ok"], true);
    gate.open();
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(d.get("/readyz")["ready"], true);
    assert_eq!(events.end_of(&turn).0, "completed");
    assert!(d.said("local:a").contains(&"agent: begundone".to_owned()));
    let kept = d.post_id("local:b", "say hello", "hello");
    assert_eq!(settled(&mut d.events("local:b"), kept["turn_id"].as_str().unwrap()).0, "completed");
    let idle = d.gate("idle");
    let cut = d.post("local:a", &format!("say again; wait-file {}", idle.path.display()));
    events.until_where("its words", |e| e.event == "text" && e.data["turn_id"] == cut["turn_id"]);
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let since = Instant::now();
    d.sigterm();
    assert_eq!(d.ended().code(), Some(1));
    assert!(since.elapsed() < Duration::from_secs(21), "{:?}", since.elapsed());
    other.execute_batch("ROLLBACK").unwrap();
    drop(other);
    let mut d = boot_ready(d, "");
    assert_eq!(settled(&mut d.events("local:a"), cut["turn_id"].as_str().unwrap()), ("completed".into(), 2));
    assert_eq!(d.stop(), 0);
    check_answers(&d);
}

/// Checklist 10. The marks cannot be written in time: the stop goes on, and the next boot derives them.
#[test]
fn marks_that_cannot_be_written() {
    let config = fake(&[], "") + &SHORT.replace("close = \"3s\"", "close = \"300ms\"");
    let mut d = boot_ready(Daemon::new().config(&config), "mark_running.before=stall:2000");
    let (mut gate, _events, turn) = d.waiting("local:a", "");
    d.sigterm();
    // What it could not write in time makes it no stop in order.
    let code = d.ended().code().unwrap();
    assert!(code == 0 || code == 1, "{code}");
    d.check(false);
    gate.open();
    let mut d = boot_ready(d, "");
    assert_eq!(settled(&mut d.events("local:a"), turn["turn_id"].as_str().unwrap()), ("completed".into(), 2));
    assert_eq!(d.stop(), 0);
    check_answers(&d);
}

/// A file system of its own; unmounted at the end, also when something still uses it.
struct Small(PathBuf);

impl Small {
    /// `None` where this user may not mount.
    fn mount(path: PathBuf, size: &str) -> Option<Self> {
        std::fs::create_dir(&path).unwrap();
        let ran = run(
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "none"]).arg(&path),
            "",
        );
        (ran.code == 0).then(|| Self(path)).or_else(|| {
            eprintln!("SKIPPED: no small file system to be had: {}", ran.err);
            None
        })
    }

    /// Takes all the room there is.
    fn fill(&self) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.0.join("filler")).unwrap();
        let mut size = 1 << 16;
        while size > 0 {
            match file.write(&vec![7; size]) {
                Ok(n) if n > 0 => {}
                Ok(_) | Err(_) => size /= 2,
            }
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Checklist 31. A full disk: new messages are refused, nothing accepted is lost, a turn that ends meanwhile is told when
/// there is room again, and everything goes on.
#[test]
fn a_full_disk() {
    let d = Daemon::new().config(&(fake(&[], "") + SHORT));
    let Some(small) = Small::mount(d.path("state"), "12m") else { return };
    let mut d = boot_ready(d, "");
    let mut gate = d.gate("gate");
    let mut events = d.events("local:a");
    let turn = d.post_id("local:a", &format!("say begun; wait-file {}; say done", gate.path.display()), "run");
    events.until("text");
    small.fill();
    let (mut kept, mut refused) = (vec![("run".to_owned(), turn.clone())], None);
    for n in 0..400 {
        let id = format!("m{n}");
        match d.try_post("local:a", &format!("say {id} {}", "x".repeat(20_000)), Some(&id)) {
            Ok(accepted) => kept.push((id, accepted)),
            Err(e) => {
                assert_eq!((e.status, e.code.as_str()), (503, "store_unavailable"), "{e}");
                refused = Some(id);
                break;
            }
        }
    }
    let refused = refused.expect("a full disk refuses");
    // Whoever balances load is told why; a restart would free no room.
    let reason = not_ready(&d);
    assert!(reason.contains("full"), "{reason}");
    assert_eq!(d.get("/healthz")["ok"], true);
    gate.open();
    d.get("/v1/status");
    small.free();
    assert_eq!(d.get("/readyz")["ready"], true, "though nobody sent a message since");
    let again = d.try_post("local:a", &format!("say {refused} {}", "x".repeat(20_000)), Some(&refused));
    kept.push((refused, again.unwrap()));
    for (id, accepted) in &kept {
        let (outcome, _) = settled(&mut events, accepted["turn_id"].as_str().unwrap());
        assert_eq!(outcome, "completed", "{id}");
    }
    assert_eq!(d.stop(), 0);
    check_answers(&d);
    let messages: i64 = d.sql("SELECT count(*) FROM messages");
    assert_eq!(usize::try_from(messages).unwrap(), kept.len());
    drop(small);
}

/// Checklist 17, 18. Two signals in the same moment: `fast`, nothing started twice; a SIGHUP among them is refused.
#[test]
fn two_signals_at_once() {
    let config = fake(&[], "") + FS + &SHORT.replace("100ms", "20s");
    let mut d = boot_ready(Daemon::new().config(&config).hook("note.lua", NOTE), "");
    let (_gate, _events, _) = d.waiting("local:a", "");
    let since = Instant::now();
    d.signal(Signal::TERM);
    d.signal(Signal::INT);
    d.signal(Signal::HUP);
    assert_eq!(d.exit_code(), 0);
    assert!(since.elapsed() < Duration::from_secs(15), "it drained: {:?}", since.elapsed());
    let ends: i64 = d.sql("SELECT count(*) FROM journal WHERE event='session_end'");
    assert_eq!(ends, 1);
    let urgency: String = d.sql("SELECT json_extract(report, '$.urgency') FROM boots");
    assert_eq!(urgency, "fast");
}

/// Checklist 28. The whole deadline passes: the watchdog says in which phase and what ran, and leaves with 1; the next boot
/// goes on.
#[test]
fn the_deadline_passes() {
    for stall in
        ["stop.marked", "stop.timeout", "close_activations.inside", "stop.closed", "stop.left", "stop.unlocked"]
    {
        let config = fake(&[], "")
            + "[shutdown]\ndrain = \"100ms\"\ninterrupt = \"500ms\"\nhooks = \"500ms\"\nclose = \"400ms\"\ndeadline = \"2500ms\"\n";
        let mut d = boot_ready(Daemon::new().config(&config), &format!("{stall}=stall:25000"));
        let (mut gate, _events, turn) = d.waiting("local:a", "");
        let since = Instant::now();
        d.sigterm();
        let status = d.ended();
        let took = since.elapsed();
        assert_eq!(status.code(), Some(1), "{stall}: {status}");
        assert!(took < Duration::from_secs(6), "{stall}: {took:?}");
        if stall == "stop.marked" || stall == "stop.timeout" {
            let line = d.wait_log("the stop's deadline has passed");
            assert!(line.contains("local:a"), "{line}");
        }
        gate.open();
        // The next one has the time that it needs.
        d.write_config(&fake(&[], ""));
        let mut d = boot_ready(d, "");
        assert_eq!(
            settled(&mut d.events("local:a"), turn["turn_id"].as_str().unwrap()),
            ("completed".into(), 2),
            "{stall}"
        );
        assert_eq!(d.stop(), 0);
    }
}

/// A stderr that nobody reads, full to the brim.
fn full_pipe() -> (std::os::fd::OwnedFd, std::os::fd::OwnedFd) {
    let (read, write) = rustix::pipe::pipe().unwrap();
    let flags = rustix::fs::fcntl_getfl(&write).unwrap();
    rustix::fs::fcntl_setfl(&write, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    for size in [4096, 1] {
        while rustix::io::write(&write, &vec![b'x'; size]).is_ok() {}
    }
    rustix::fs::fcntl_setfl(&write, flags).unwrap();
    (read, write)
}

/// Checklist 28. Promise 4: stderr is blocked: neither the daemon's work nor its exit waits for it, nor does the watchdog.
#[test]
fn a_blocked_stderr() {
    for (rule, code) in [("", 0), ("stop.marked=stall:25000", 1)] {
        let d = Daemon::new().config(
            "[shutdown]\ndrain = \"100ms\"\ninterrupt = \"500ms\"\nhooks = \"500ms\"\nclose = \"400ms\"\ndeadline = \"4s\"\n",
        );
        let (read, write) = full_pipe();
        let mut command = d.serve_command();
        command.env("NOTIFY_SOCKET", d.path("notify")).env("OSTLER_FAILPOINTS", rule).env("RUST_LOG", "trace");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(write);
        let mut proc = Proc::spawn(&mut command);
        drop(command);
        d.notes.find(0, "READY", |l| l == "READY=1");
        for n in 0..20 {
            d.send("local:a", &format!("m{n}"));
        }
        let since = Instant::now();
        proc.signal(Signal::TERM);
        let Some(status) = proc.wait_for(PATIENCE) else {
            proc.signal(Signal::KILL);
            panic!("it hangs on stderr");
        };
        assert_eq!((status.code(), status.signal()), (Some(code), None), "{rule}");
        assert!(since.elapsed() < Duration::from_secs(8), "{rule}: {:?}", since.elapsed());
        drop(read);
        d.check(code == 0);
    }
}
