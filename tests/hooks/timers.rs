//! Timers in the real daemon: whatever one of them waits for, ends are delivered and a stop is in order; what was
//! missed runs once; and a pause of the process is nobody's timeout.

use std::net::TcpListener;

use rustix::process::{Pid, Signal, kill_process};

use super::*;

const NOTE: &str = r#"
local function note(text)
  local file <close> = assert(io.open(ostler.config.out, "a"))
  assert(file:write(text .. "\n"))
end
"#;

/// One thread for events, so that an event that could wait for a timer does.
const CONFIG: &str = "threads = 1\n[agent.default]\nkind = \"echo\"\n";

impl Daemon {
    fn count(&self, line: &str) -> usize {
        self.log().iter().filter(|l| *l == line).count()
    }

    /// Waits until a line was written so often.
    #[track_caller]
    fn await_lines(&self, line: &str, count: usize) {
        let until = Instant::now() + PATIENCE;
        while self.count(line) < count {
            assert!(
                Instant::now() < until,
                "{line} {} of {count} times: {:?}\n{}",
                self.count(line),
                self.log(),
                self.stderr()
            );
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_timer_that_hangs_delays_no_end_and_no_stop() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    for body in [
        "ostler.exec{argv = {'sleep', '1000'}, timeout = '1h'}",
        &format!("ostler.http.request{{url = '{url}', timeout = '1h'}}"),
        "while true do end",
    ] {
        let script = format!(
            "{NOTE} ostler.every('1s', function() note('tick') {body} note('over') end, {{ timeout = '1h' }})
            ostler.on('session_end', function() note('end') end)
            ostler.on('stopped', function() note('stopped') end)"
        );
        let mut daemon = Daemon::start(&script, CONFIG);
        daemon.await_lines("tick", 1);
        assert_eq!(say(&daemon.client, "local:a", "hello").outcome, "completed");
        daemon.post("/v1/sessions/local:a/reset", None);
        daemon.await_lines("end", 1);
        assert_eq!(say(&daemon.client, "local:a", "again").outcome, "completed");
        assert_eq!(daemon.stop().code(), Some(0), "{body}: {}", daemon.stderr());
        // The end of the stop was delivered too, no second run was begun beside the first, and that one was cut off.
        assert_eq!(daemon.log(), ["tick", "end", "end", "stopped"], "{body}");
        let cut = "every: cut off because the daemon stops";
        assert!(daemon.stderr().contains(cut), "{body}: {}", daemon.stderr());
    }
}

#[test]
fn a_slow_timer_has_no_backlog_and_another_has_its_turn() {
    // The slow one is due every second and takes more than two; the other one comes between its runs.
    let script = format!(
        "{NOTE} ostler.every('1s', function() note('slow') ostler.exec{{argv = {{'sleep', '2.1'}}}} end, {{ timeout = '1h', name = 's' }})
        ostler.every('1s', function() note('other') end, {{ name = 'o' }})"
    );
    let mut daemon = Daemon::start(&script, CONFIG);
    daemon.await_lines("slow", 4);
    let lines = daemon.log();
    let between: Vec<usize> = lines.split(|l| l == "slow").map(<[String]>::len).collect();
    // Before the first of the slow runs the other one may have had several; between two of them never more than one:
    // what was due meanwhile is one run.
    assert!(between[1..].iter().all(|others| *others <= 1), "{lines:?}");
    assert!(daemon.count("other") >= 2, "{lines:?}");
    assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.stderr());
}

#[test]
fn a_timer_whose_last_run_lies_in_the_future_runs_again() {
    let script = format!("{NOTE} ostler.every('1s', function() note('tick') end, {{ name = 't' }})");
    let mut daemon = Daemon::start(&script, CONFIG);
    daemon.await_lines("tick", 1);
    assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.stderr());
    // As if the clock had been in 2038 during the last boot.
    let database = rusqlite::Connection::open(daemon.at("state/ostler.db")).unwrap();
    let ahead = 2_150_000_000_000_i64;
    assert_eq!(database.execute("UPDATE timers SET last_due = ?1 WHERE name = 'a.lua:t'", [ahead]).unwrap(), 1);
    drop(database);
    let before = daemon.count("tick");
    daemon.restart();
    daemon.await_lines("tick", before + 1);
    assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.stderr());
    let database = rusqlite::Connection::open(daemon.at("state/ostler.db")).unwrap();
    let last: i64 = database.query_row("SELECT last_due FROM timers", [], |r| r.get(0)).unwrap();
    assert!(last < ahead, "and so it does at the next boot: {last}");
}

#[test]
fn a_pause_of_the_process_is_no_timeout() {
    // A program and a loop, each of which ends when the test says so: in the middle of a pause that is longer than the
    // handler has.
    let script = format!(
        "{NOTE} ostler.on('session_end', function()
          local root = ostler.config.out:match('^(.*)/out/log$')
          note('program')
          local wait = 'while ! test -e ' .. root .. '/program; do sleep 0.05; done'
          assert(ostler.exec{{argv = {{'sh', '-c', wait}}, timeout = '1h'}}.status == 0)
          note('loop') repeat local there <close> = io.open(root .. '/loop') until there
          note('done')
        end, {{ timeout = '6s' }})"
    );
    let mut daemon = Daemon::start(&script, CONFIG);
    assert_eq!(say(&daemon.client, "local:a", "hello").outcome, "completed");
    daemon.post("/v1/sessions/local:a/reset", None);
    for part in ["program", "loop"] {
        daemon.await_lines(part, 1);
        let pid = Pid::from_child(&daemon.child);
        kill_process(pid, Signal::STOP).unwrap();
        let slept = Command::new("sleep").arg("7").status();
        std::fs::write(daemon.at(part), "").unwrap();
        kill_process(pid, Signal::CONT).unwrap();
        assert!(slept.unwrap().success());
    }
    daemon.await_lines("done", 1);
    let list = daemon.get("/v1/hooks");
    assert_eq!((&list["handlers"][0]["timeouts"], &list["handlers"][0]["failures"]), (&json!(0), &json!(0)), "{list}");
    assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.stderr());
}
