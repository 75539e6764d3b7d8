//! A restart that no service manager makes: the same process goes on in the program that is installed by then.

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use ureq::http::Method;

use crate::daemon::{Daemon, NEVER, PATIENCE, Proc, fake};

/// What runs `serve` without a service manager, from the test's own copy of the program.
const BY_HAND: &str = "unset NOTIFY_SOCKET; shift; exec @DIR@/ostler \"$@\"";

/// A daemon that was started by hand from a program of its own.
fn by_hand(config: &str) -> Daemon {
    started(Daemon::new().config(config), BY_HAND)
}

fn started(mut d: Daemon, script: &str) -> Daemon {
    install(&d, env!("CARGO_BIN_EXE_ostler"), "");
    let script = script.replace("@DIR@", d.path("").to_str().unwrap());
    d.set_wrapper(&["sh", "-c", &script, "sh"]);
    d.spawn();
    d.wait_log("ready,");
    d
}

/// Puts a program at the daemon's path: one that says something, and goes on as ostler.
fn install(d: &Daemon, program: &str, says: &str) {
    let text = format!("#!/bin/sh\n{says}\nexec {program} \"$@\"\n");
    let new = d.path("ostler.new");
    if says.is_empty() {
        std::fs::copy(program, &new).unwrap();
    } else {
        std::fs::write(&new, text).unwrap();
    }
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(new, d.path("ostler")).unwrap();
}

/// The pid stays, the program is the one that was installed meanwhile, no client is refused, and each message is there once.
#[test]
fn the_process_goes_on_in_the_new_program() {
    let mut d = by_hand("");
    assert_eq!(d.send("local:a", "one"), "echo: one");
    let pid = d.pid();
    let accepted = d.talked_to("local:a", |d, more| {
        for n in 0..3 {
            more(5);
            let boot = d.status()["boot_id"].clone();
            let says = format!("echo 'the new program {n}, pid '$$ >&2");
            install(d, env!("CARGO_BIN_EXE_ostler"), &says);
            let ran = d.cli(&["restart"]);
            assert!(ran.code == 0 && ran.out.starts_with("restarted (boot "), "{ran:?}");
            let status = d.status();
            assert_eq!((status["pid"].as_u64(), &status["supervised"]), (Some(pid.into()), &json!(false)));
            assert_ne!(status["boot_id"], boot);
            d.wait_log(&format!("the new program {n}, pid {pid}"));
        }
        more(5);
    });
    assert_eq!(d.stop(), 0);
    assert!(!d.socket().exists());
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM messages WHERE client_id LIKE 'm%'"), accepted);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM boots WHERE clean=1"), 4);
}

/// A socket that was passed at the start, over TCP here, goes from program to program.
#[test]
fn a_passed_socket_is_kept_too() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut d = Daemon::new();
    d.pass(listener);
    let passing = "exec 3<&0 0</dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; ";
    let mut d = started(d, &format!("{passing}{BY_HAND}"));
    for boots in 2..4 {
        // It connects while nobody accepts, or soon after.
        let from = d.log.count();
        d.signal(Signal::USR1);
        d.log.find(from, "its end", |l| l.contains("restarting in place"));
        let client = ostler::client::Client::url(&format!("http://{address}"), None).unwrap();
        let status = client.request(Method::GET, "/v1/status", None, PATIENCE).unwrap().body;
        assert_eq!(status["pid"].as_u64(), Some(d.pid().into()));
        d.log.find(from, "the next boot", |l| l.contains("ready,"));
        assert_eq!(d.sql::<i64>("SELECT count(*) FROM boots"), boots);
    }
    d.sigterm();
    assert_eq!(d.exit_code(), 0);
    assert!(TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok(), "it is the test's");
}

/// A listener of [http] is kept if it is to listen there, and another address is listened on anew.
#[test]
fn the_listener_of_http_follows_the_configuration() {
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (one, other) = (free(), free());
    let at = |address| format!("[http]\nlisten = \"{address}\"\n");
    let mut d = by_hand(&at(one));
    for (address, gone) in [(one, None), (other, Some(one))] {
        d.write_config(&at(address));
        assert_eq!(d.cli(&["restart"]).code, 0);
        assert!(TcpStream::connect(address).is_ok());
        assert!(gone.is_none_or(|gone| TcpStream::connect(gone).is_err()));
    }
    assert_eq!(d.stop(), 0);
}

/// Where the next program cannot be run it is told, and the exit code is that of a restart.
#[test]
fn a_program_that_is_gone_is_told() {
    let mut d = by_hand("");
    std::fs::remove_file(d.path("ostler")).unwrap();
    let ran = d.cli(&["restart"]);
    assert!(ran.code == 1 && ran.err.contains("nothing starts it again"), "{ran:?}");
    d.wait_log("cannot restart in place");
    assert_eq!(d.exit_code(), 75);
    assert!(!d.socket().exists(), "clients are refused, and do not wait for nobody");
}

/// A shutdown that comes into the restart is the stronger of the two.
#[test]
fn a_shutdown_during_a_restart_ends_the_process() {
    let mut d = by_hand(&format!("{NEVER}{}", fake(&[], "")));
    let (mut gate, mut events, running) = d.waiting("local:a", "; say done");
    d.signal(Signal::USR1);
    d.wait_log("running → draining");
    d.client().post("/v1/stop", None).unwrap();
    gate.open();
    assert_eq!(events.end_of(&running).0, "completed");
    assert_eq!(d.exit_code(), 75);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM boots"), 1);
}

/// One that is asked for its state leaves it, and does not go on with it.
#[test]
fn a_daemon_that_is_replaced_goes_on_nowhere() {
    let mut d = by_hand("");
    d.set_wrapper(&[]);
    let mut other = d.serve_command();
    other.arg("--replace").env("NOTIFY_SOCKET", d.path("notify")).stderr(Stdio::null());
    let from = d.notes.count();
    let mut other = Proc::spawn(&mut other);
    d.notes.find(from, "READY", |l| l.starts_with("READY") || l.starts_with("GONE"));
    assert_eq!(d.ended().code(), Some(0));
    other.signal(Signal::TERM);
    assert_eq!(other.wait_for(PATIENCE).unwrap().code(), Some(0));
    d.check(true);
}
