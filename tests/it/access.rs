//! Who may come in, and at whose cost.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use serde_json::{Value, json};

use crate::bad::port;
use crate::daemon::{Daemon, PATIENCE};

/// Status and body of a raw answer.
fn answer(text: &str) -> (u16, Value) {
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("{text:?}"));
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    (status, serde_json::from_str(body).unwrap_or_default())
}

/// A request on the unix socket, with these header fields and no others.
fn ask(d: &Daemon, line: &str, headers: &str, body: &str) -> (u16, Value) {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    answer(&d.raw_request(format!("{line} HTTP/1.1\r\n{headers}{length}Connection: close\r\n\r\n{body}").as_bytes()))
}

fn ask_tcp(port: u16, line: &str, headers: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "{line} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    answer(&text)
}

fn code(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["error"]["code"].as_str().unwrap_or_default())
}

/// The most memory that a process had since it was last asked to forget.
fn most_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}

/// A body costs a few times its own bytes, whatever stands in it beside what is asked for, and however many come at once.
#[test]
fn a_body_costs_what_it_is_long() {
    const AT_ONCE: usize = 6;
    let mut d = Daemon::new().start();
    d.send("local:a", "warm");
    let mut body = String::from("{\"text\":\"hi\",\"x\":[1");
    while body.len() < (4 << 20) - 16 {
        body.push_str(",1");
    }
    body.push_str("]}");
    let pid = d.pid();
    if std::fs::write(format!("/proc/{pid}/clear_refs"), "5").is_err() {
        eprintln!("SKIPPED: the most memory that a process had cannot be reset here");
        return;
    }
    let before = most_memory(pid);
    std::thread::scope(|scope| {
        for n in 0..AT_ONCE {
            let (d, body) = (&d, &body);
            scope.spawn(move || {
                let line = format!("POST /v1/sessions/local%3A{n}/messages");
                let told = ask(d, &line, "Host: localhost\r\n", body);
                assert_eq!(told.0, 202, "{told:?}");
            });
        }
    });
    let cost = most_memory(pid).saturating_sub(before);
    let most = (8 * body.len() * AT_ONCE) as u64;
    assert!(cost <= most, "{} MiB for {AT_ONCE} bodies of 4 MiB", cost >> 20);
    assert_eq!(d.stop(), 0);
}

/// A web page drives the daemon through no listener: the unix socket, which may be forwarded to a port, has the rule of
/// the TCP listener. Nothing of what it asks for is done.
#[test]
fn no_page_comes_in_by_any_door() {
    let port = port();
    let d = Daemon::new().config(&format!("[http]\nlisten = \"127.0.0.1:{port}\"\n")).start();
    let line = "POST /v1/sessions/local%3Aa/messages";
    let foreign = ["Host: any-name\r\n", "Host: localhost.evil.example\r\n", "Host: 10.1.2.3:7411\r\n"];
    let pages = [
        "Host: localhost\r\nOrigin: http://evil.example\r\nContent-Type: text/plain\r\n",
        "Host: localhost\r\nOrigin: null\r\n",
        "Host: localhost\r\nOrigin: http://localhost\r\n",
        "Host: localhost\r\nSec-Fetch-Site: cross-site\r\n",
    ];
    for headers in foreign.iter().chain(&pages) {
        let told = ask(&d, line, headers, "{\"text\":\"never\"}");
        assert_eq!(code(&told), (403, "forbidden_origin"), "{headers}: {told:?}");
        let told = ask_tcp(port, "GET /v1/status", headers);
        assert_eq!(code(&told), (403, "forbidden_origin"), "{headers}: {told:?}");
    }
    // Who is refused for a name is told which, and what to do.
    let told = ask(&d, "GET /v1/status", foreign[0], "");
    let message = told.1["error"]["message"].as_str().unwrap();
    assert!(message.contains("any-name") && message.contains("http://localhost/"), "{message}");
    // What is no page's goes on as it was.
    for host in ["localhost", "localhost:80", "127.0.0.1:7411", "[::1]"] {
        assert_eq!(ask(&d, "GET /v1/status", &format!("Host: {host}\r\n"), "").0, 200, "{host}");
    }
    // Probes are asked under whatever name a machine has.
    for path in ["/healthz", "/readyz"] {
        assert_eq!(ask(&d, &format!("GET {path}"), "Host: pod-7\r\n", "").0, 200);
        assert_eq!(ask_tcp(port, &format!("GET {path}"), "Host: 10.1.2.3:7411\r\n").0, 200);
    }
    assert_eq!(d.get("/v1/sessions")["sessions"], json!([]));
}

/// The token opens the door under any name, whatever the scheme's case; without it a name makes no difference. One that is
/// as good as none is refused at the start.
#[test]
fn a_token_and_names() {
    let port = port();
    let d = Daemon::new().config(&format!("[http]\nlisten = \"127.0.0.1:{port}\"\ntoken_file = \"@DIR@/token\"\n"));
    for short in ["x", "1234567"] {
        std::fs::write(d.path("token"), short).unwrap();
        let ran = d.refuses();
        assert_eq!(ran.code, 78, "{ran:?}");
        assert!(ran.err.contains("http.token_file") && ran.err.contains("at least 8"), "{ran:?}");
    }
    std::fs::write(d.path("token"), "a-token-long-enough\n").unwrap();
    let _d = d.start();
    for scheme in ["Bearer", "bearer", "BEARER", "Bearer "] {
        for host in ["localhost", "ostler.example", "10.1.2.3:7411"] {
            let headers = format!("Host: {host}\r\nAuthorization: {scheme} a-token-long-enough\r\n");
            assert_eq!(ask_tcp(port, "GET /v1/status", &headers).0, 200, "{headers}");
        }
    }
    for headers in ["Host: ostler.example\r\n", "Host: ostler.example\r\nAuthorization: Basic a-token-long-enough\r\n"]
    {
        let told = ask_tcp(port, "GET /v1/status", headers);
        assert_eq!(code(&told), (401, "unauthorized"), "{headers}");
    }
}

/// A TCP socket that is passed follows the rule of the configured one: what the network reaches needs the token.
#[test]
fn a_passed_tcp_socket_needs_a_token() {
    let reachable = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = reachable.local_addr().unwrap().port();
    let mut d = Daemon::new();
    d.pass(reachable);
    d.spawn();
    assert_eq!(d.ended().code(), Some(78));
    let said = d.wait_log("LISTEN_FDS: ");
    assert!(said.contains(&format!("0.0.0.0:{port}")) && said.contains("token_file"), "{said}");
    // With one it is served, to whoever has it.
    std::fs::write(d.path("token"), "a-token-long-enough\n").unwrap();
    d.write_config("[http]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"@DIR@/token\"\n");
    let mut d = d.start();
    let told = ask_tcp(port, "POST /v1/stop", "Host: localhost\r\n");
    assert_eq!(code(&told), (401, "unauthorized"));
    let headers = "Host: localhost\r\nAuthorization: Bearer a-token-long-enough\r\n";
    assert_eq!(ask_tcp(port, "GET /v1/status", headers).0, 200);
    d.kill9();
    // This machine's own users may use one without; it is told.
    let own = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = own.local_addr().unwrap().port();
    let mut d = Daemon::new();
    d.pass(own);
    let d = d.start();
    assert_eq!(ask_tcp(port, "GET /v1/status", "Host: localhost\r\n").0, 200);
    d.wait_log(&format!("http://127.0.0.1:{port} has no token"));
}

/// `GET /v1/status` by a thread that is somebody else: status and code.
fn ask_as(socket: &Path, uid: u32, gid: u32, groups: &[u32]) -> (u16, String) {
    use rustix::process::{Gid, Uid};
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let groups: Vec<Gid> = groups.iter().map(|g| Gid::from_raw(*g)).collect();
            rustix::thread::set_thread_groups(&groups).unwrap();
            rustix::thread::set_thread_gid(Gid::from_raw(gid)).unwrap();
            rustix::thread::set_thread_uid(Uid::from_raw(uid)).unwrap();
            let mut stream = UnixStream::connect(socket).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let request = b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
            stream.write_all(request).unwrap();
            let mut text = String::new();
            let _ = stream.read_to_string(&mut text);
            let told = answer(&text);
            (told.0, code(&told).1.to_owned())
        });
        asking.join().unwrap()
    })
}

/// The unix socket is for root, the daemon's user and the group of its file, however the daemon came by it.
#[test]
fn a_socket_is_for_its_group() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: to come as another user takes root");
        return;
    }
    const GROUP: u32 = 54_321;
    let served = (200, String::new());
    let refused = (403, "refused".to_owned());
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    for passed in [true, false] {
        let mut d = Daemon::new().env("RUNTIME_DIRECTORY", "/run/ostler");
        mode(&d.path(""), 0o755);
        if passed {
            // As systemd makes one that says nothing of modes.
            let listener = UnixListener::bind(d.socket()).unwrap();
            mode(&d.socket(), 0o666);
            d.pass(listener);
        }
        let d = d.start();
        if passed {
            d.wait_log("every user may connect to it (mode 666)");
        }
        std::os::unix::fs::chown(d.socket(), None, Some(GROUP)).unwrap();
        mode(&d.socket(), 0o666);
        assert_eq!(ask_as(&d.socket(), 65_534, 65_534, &[]), refused);
        assert_eq!(ask_as(&d.socket(), 65_534, 65_534, &[1, 2]), refused);
        assert_eq!(ask_as(&d.socket(), 65_534, 65_534, &[1, GROUP]), served);
        assert_eq!(ask_as(&d.socket(), 65_534, GROUP, &[]), served);
        assert_eq!(ask_as(&d.socket(), 0, 0, &[]), served);
    }
}

/// A daemon with places for few clients: half of the threads that it takes to be safe. `None`: not to be had here.
fn small(config: &str) -> Option<Daemon> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: without root a low limit of processes would count those of others too");
        return None;
    }
    let mut d = Daemon::new().config(config);
    // dash has one letter for it, bash another.
    d.set_wrapper(&["sh", "-c", "ulimit -p 400 2>/dev/null || ulimit -u 400; exec \"$@\"", "sh"]);
    let d = d.start();
    d.wait_log("at most 320 threads");
    Some(d)
}

/// Opens an event stream: the connection, and the status of its answer.
fn open_stream<S: std::io::Read + std::io::Write>(mut stream: S, host: &str) -> (S, u16) {
    // One that is turned away may find the door shut already.
    let _ = write!(stream, "GET /v1/events HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    let status = std::str::from_utf8(&status[9..]).unwrap().parse().unwrap();
    (stream, status)
}

fn tcp(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A client that leaves gives its place back at once, and not with the next ping: ten times as many streams as there are
/// places, each opened and left, one after the other.
#[test]
fn streams_that_are_left_hold_no_place() {
    let port = port();
    let Some(d) = small(&format!("[http]\nlisten = \"127.0.0.1:{port}\"\n")) else { return };
    let until = std::time::Instant::now() + 2 * PATIENCE;
    let mut opened = 0;
    while opened < 1600 {
        assert!(std::time::Instant::now() < until, "{opened} streams, and no place comes free");
        let status =
            if opened % 2 == 0 { open_stream(d.raw(), "localhost").1 } else { open_stream(tcp(port), "localhost").1 };
        match status {
            200 => opened += 1,
            // On a machine with much to do the last ones may not have been let go yet.
            503 => {}
            other => panic!("{other}"),
        }
    }
    d.cli(&["status"]).ok();
}

/// Whoever comes by an address, and however many: root and the daemon's own user come in by the unix socket.
#[test]
fn nobody_keeps_an_operator_out() {
    let port = port();
    let Some(d) = small(&format!("[http]\nlisten = \"127.0.0.1:{port}\"\n")) else { return };
    let mut streams = Vec::new();
    loop {
        let (stream, status) = open_stream(tcp(port), "localhost");
        if status == 503 {
            break;
        }
        assert_eq!(status, 200);
        streams.push(stream);
        assert!(streams.len() < 160, "they take all places");
    }
    assert_eq!(streams.len(), 105, "of 160 places 40 are kept, and an eighth of the rest is not for TCP");
    d.cli(&["status"]).ok();
    assert_eq!(d.send("local:a", "x"), "echo: x");
    // All others are taken by the own user itself, who then is told so, also when he asks with a body.
    let mut own = Vec::new();
    loop {
        let (stream, status) = open_stream(d.raw(), "localhost");
        own.push(stream);
        if status == 503 {
            break;
        }
    }
    // A place may have come free meanwhile; what must not be is that he gets no answer.
    for n in 0..20 {
        let line = format!("POST /v1/sessions/local%3A{n}/messages");
        let told = ask(&d, &line, "Host: localhost\r\n", &format!("{{\"text\":\"{}\"}}", "y".repeat(100_000)));
        assert!(matches!(told.0, 202 | 503), "{told:?}");
    }
}

/// Those that only connect and say nothing have few places, and keep out no one but each other.
#[test]
fn silent_clients_keep_nobody_out() {
    let port = port();
    let config = format!("[http]\nlisten = \"127.0.0.1:{port}\"\ntoken_file = \"@DIR@/token\"\n");
    let d = Daemon::new();
    std::fs::write(d.path("token"), "a-token-long-enough\n").unwrap();
    let d = d.config(&config).start();
    let url = format!("http://127.0.0.1:{port}");
    let token = d.path("token");
    d.cli(&["status", "--url", &url, "--token-file", token.to_str().unwrap()]).ok();
    let silent: Vec<_> = (0..400).map(|_| tcp(port)).collect();
    for _ in 0..5 {
        d.cli(&["status"]).ok();
    }
    let metrics = d.raw_request(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let held = metrics.lines().find_map(|l| l.strip_prefix("ostler_connections ")).unwrap().parse::<u32>().unwrap();
    assert!(held <= 256 + 4, "{held} connections that said nothing");
    drop(silent);
}

/// The daemon creates a removed file of its socket again and logs that; clients that connect then are served.
/// Another daemon that has taken the place keeps it, also when the first one stops.
#[test]
fn a_socket_that_is_gone_comes_back() {
    let mut d = Daemon::new().start();
    std::fs::remove_file(d.socket()).unwrap();
    d.wait_log("the socket's file was removed; it is created again");
    assert_eq!(d.send("local:a", "x"), "echo: x");
    assert_eq!(std::fs::metadata(d.socket()).unwrap().permissions().mode() & 0o777, 0o600);
    // Another one takes the place at a stroke.
    let others = UnixListener::bind(d.path("other")).unwrap();
    std::fs::rename(d.path("other"), d.socket()).unwrap();
    d.wait_log("another daemon answers there");
    assert_eq!(d.stop(), 0);
    assert!(UnixStream::connect(d.socket()).is_ok(), "it was not the first one's to remove");
    drop(others);
    // A stop removes what it made.
    std::fs::remove_file(d.socket()).unwrap();
    d.boot();
    assert_eq!(d.stop(), 0);
    assert!(!d.socket().exists());
}

/// An agent's own process reads its own conversation and sends to it, and no more, whatever it does to its environment;
/// the operator beside it, and what his scripts run, are not taken for it.
#[test]
fn an_agents_own_process() {
    let ostler = env!("CARGO_BIN_EXE_ostler");
    let config = "[agent.default]\nkind = \"exec\"\ncommand = [\"sh\"]\n[hooks]\nallow = [\"exec\"]\n";
    let script = "ostler.on('turn_start', function(ev)
        local ran = ostler.exec{ argv = { '@OSTLER@', 'status', '--socket', '@DIR@/sock' } }
        ostler.log.info('a script ran it: ' .. ran.status)
    end)\n";
    let d = Daemon::new().config(config).hook("10-x.lua", &script.replace("@OSTLER@", ostler)).start();
    let to = format!("--socket {}", d.socket().display());
    let told = |ran: &str| d.send("local:a", &format!("{ran} 2>&1; echo rc=$?"));
    assert_eq!(d.send("local:b", "echo b"), "b\n");
    // Its own.
    for own in ["show $OSTLER_KEY", "transcript $OSTLER_SESSION_ID", "send $OSTLER_KEY 'echo later' --no-wait"] {
        let said = told(&format!("{ostler} {own} {to}"));
        assert!(said.ends_with("rc=0\n"), "{own}: {said}");
    }
    // Everything else.
    for more in ["show local:b", "transcript local:b", "send local:b x", "sessions", "status", "stop", "hold", "reload"]
    {
        for how in ["", "env -i ", "env OSTLER_SESSION_ID=x OSTLER_KEY=local:b "] {
            let said = told(&format!("{how}{ostler} {more} {to}"));
            assert!(said.contains("(agent)") && said.ends_with("rc=1\n"), "{how}{more}: {said}");
        }
    }
    // One that left its parent still carries the markers.
    let said = told(&format!(
        "(setsid {ostler} status {to} >left 2>&1; echo >>left) & while ! tail -n 1 left 2>/dev/null | grep -qx ''; do :; done; cat left"
    ));
    assert!(said.contains("(agent)"), "{said}");
    // The operator, in the shell that started the daemon, and one whose environment looks like an agent's.
    d.cli(&["status"]).ok();
    d.wait_log("a script ran it: 0");
    let mut command = d.command(&["status"]);
    command.env("OSTLER_BOOT_ID", "another").env("OSTLER_SESSION_ID", "x").env("OSTLER_KEY", "local:a");
    crate::daemon::run(&mut command, "").ok();
    assert_eq!(d.status()["phase"], "running");
}

/// A copy of the database is written wherever the daemon's user may write: not for whoever reaches a listener that asks for
/// no token. A configuration that every user could write to is not taken.
#[test]
fn what_is_the_operators_alone() {
    let port = port();
    let d = Daemon::new().config(&format!("[http]\nlisten = \"127.0.0.1:{port}\"\n"));
    let mode = |d: &Daemon, mode| {
        std::fs::set_permissions(d.path("ostler.toml"), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&d, 0o666);
    let check = d.cli(&["check-config", d.path("ostler.toml").to_str().unwrap()]);
    for ran in [d.refuses(), check] {
        assert_eq!(ran.code, 78, "{ran:?}");
        assert!(ran.err.contains("ostler.toml") && ran.err.contains("chmod o-w"), "{ran:?}");
    }
    mode(&d, 0o664);
    let d = d.start();
    let body = json!({ "path": d.path("copy.db") }).to_string();
    let head =
        format!("POST /v1/backup HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}", body.len());
    let mut stream = tcp(port);
    write!(stream, "{head}\r\n\r\n{body}").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(code(&answer(&text)), (403, "refused"));
    assert!(!d.path("copy.db").exists());
    assert_eq!(ask(&d, "POST /v1/backup", "Host: localhost\r\n", &body).0, 200);
    let doctor = d.cli(&["doctor", "--config", d.path("ostler.toml").to_str().unwrap()]);
    assert!(doctor.out.contains(&format!("127.0.0.1:{port} has no token")), "{doctor:?}");
}

/// A body is not waited for where nobody would read it.
#[test]
fn an_unknown_path_is_told_before_its_body() {
    let d = Daemon::new().start();
    for (line, wanted) in [
        ("POST /v1/nothing", (404, "not_found")),
        ("POST /v1/sessions/local%3Aa/nothing", (404, "not_found")),
        ("PUT /v1/sessions/local%3Aa/messages", (405, "method_not_allowed")),
    ] {
        let mut stream = d.raw();
        write!(stream, "{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000000\r\n\r\n").unwrap();
        let mut told = Vec::new();
        let mut byte = [0; 512];
        while !told.ends_with(b"}}\n") {
            let n = stream.read(&mut byte).unwrap();
            assert!(n > 0, "{line}: {}", String::from_utf8_lossy(&told));
            told.extend_from_slice(&byte[..n]);
        }
        let told = answer(&String::from_utf8(told).unwrap());
        assert_eq!(code(&told), wanted, "{line}");
    }
}

/// An agent outlives the daemon, and is known by its shim afterwards too, whatever its own processes do to their environment.
#[test]
fn what_descends_from_a_shim_is_an_agents_under_any_boot() {
    use std::os::unix::process::CommandExt as _;
    let d = Daemon::new().start();
    d.send("local:a", "x");
    d.send("local:b", "x");
    let id = d.show("local:a")["id"].as_str().unwrap().to_owned();
    let state_id = ostler::proc::mark::state_id(&d.path("state")).unwrap();
    // What a shim of an earlier boot looks like to the daemon, and what its agent runs.
    let script = "for what in 'show local:a' 'show local:b' status; do env -i $OSTLER $what --socket $SOCKET 2>&1 \
                  >/dev/null; echo rc=$?; done";
    let run = |state_id: &str| {
        let mut command = std::process::Command::new("sh");
        command.arg0("ostler-shim").args(["-c", script]).env_clear();
        command.env("OSTLER", env!("CARGO_BIN_EXE_ostler")).env("SOCKET", d.socket()).env("PATH", "/usr/bin:/bin");
        command.env("OSTLER_STATE_ID", state_id).env("OSTLER_SESSION_ID", &id).env("OSTLER_BOOT_ID", "before");
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let told = run(&state_id);
    assert_eq!(told.matches("rc=0").count(), 1, "its own: {told}");
    assert_eq!(told.matches("(agent)").count(), 2, "everything else: {told}");
    assert!(told.starts_with("rc=0\n"), "{told}");
    assert_eq!(
        run("of another directory"),
        "rc=0\nrc=0\nrc=0\n",
        "a shim of another directory is nothing to this daemon"
    );
}

/// Of a process that is gone nobody can say whose it was: it is served only with what agents cannot read.
#[test]
fn a_peer_that_is_gone_shows_the_cookie() {
    use rustix::process::Signal;
    use std::process::{Command, Stdio};
    let mut d = Daemon::new().start();
    let cookie = std::fs::read_to_string(d.path("state/cookie")).unwrap();
    assert_eq!(std::fs::metadata(d.path("state/cookie")).unwrap().permissions().mode() & 0o777, 0o600);
    // The one that connects ends, and its child asks for it.
    let script = "import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(sys.argv[2].encode())
if os.fork() == 0:
    while part := s.recv(4096):
        os.write(1, part)
";
    for (header, expected) in [
        (String::new(), 403),
        ("X-Ostler-Cookie: wrong\r\n".to_owned(), 403),
        (format!("X-Ostler-Cookie: {cookie}\r\n"), 200),
    ] {
        d.signal(Signal::STOP);
        let request = format!("GET /v1/status HTTP/1.1\r\nHost: localhost\r\n{header}Connection: close\r\n\r\n");
        let mut command = Command::new("python3");
        command.args(["-c", script]).arg(d.socket()).arg(&request).stdout(Stdio::piped());
        let mut asker = command.spawn().unwrap();
        assert!(asker.wait().unwrap().success());
        d.signal(Signal::CONT);
        let mut text = String::new();
        asker.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        let told = answer(&text);
        assert_eq!(told.0, expected, "{header}: {text}");
        assert!(expected == 200 || code(&told) == (403, "agent"), "{text}");
    }
    d.restart();
    assert_ne!(std::fs::read_to_string(d.path("state/cookie")).unwrap(), cookie, "another one in each boot");
}
