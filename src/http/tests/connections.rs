//! Connections: answers, keep-alive, pipelining, deadlines, limits and a handler that fails.

use super::*;

#[test]
fn answers_over_both_kinds_of_socket() {
    let f = Fixture::new();
    let mut unix = f.unix();
    assert_eq!(unix.get("/a?b").text(), "GET /a b ");
    let uid = rustix::process::getuid().as_raw();
    let pid = std::process::id();
    let seen = unix.get("/peer").text().to_owned();
    assert!(seen.contains(&format!("uid: {uid}")) && seen.contains(&format!("pid: Some({pid})")), "{seen}");
    let mut tcp = f.tcp();
    assert_eq!(tcp.get("/a").field("x-seen"), Some("yes"));
    let here = tcp.stream.local_addr().unwrap();
    assert_eq!(tcp.get("/peer").text(), format!("Tcp({here})"));
    assert_eq!(f.server.connections(), 2);
    let stats = f.server.stats();
    assert_eq!((stats.accepted, stats.requests, stats.protocol_errors), (2, 4, 0));
}

#[test]
fn answers_have_their_form() {
    let f = Fixture::new();
    let mut c = f.unix();
    let json = c.get("/json");
    assert_eq!((json.field("content-type"), json.text()), (Some("application/json"), "{\"a\":[1,null]}\n"));
    let stream = c.get("/stream");
    assert_eq!((stream.field("transfer-encoding"), stream.text()), (Some("chunked"), "onetwothree"));
    let empty = c.get("/empty");
    assert_eq!((empty.status, empty.field("content-length")), (204, None));
    assert_eq!(c.get("/large").body.len(), 3 << 20);
    assert_eq!(c.get("/close").field("connection"), Some("close"));
    c.assert_end();
}

#[test]
fn head_and_options_are_the_handlers_and_head_has_no_body() {
    let f = Fixture::new();
    let mut c = f.unix();
    c.send("HEAD /a HTTP/1.1\r\nHost: h\r\n\r\nHEAD /stream HTTP/1.1\r\nHost: h\r\n\r\nOPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n");
    let head = c.head();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("Content-Length: 10\r\n"), "{head}");
    assert!(c.head().contains("Transfer-Encoding: chunked\r\n"));
    assert_eq!(c.answer().text(), "OPTIONS * - ");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let f = Fixture::new();
    let mut c = f.unix();
    let mut wire = String::new();
    for i in 0..50 {
        wire += &format!("POST /{i} HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{i:02}");
        wire += &format!("POST /{i} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nc\r\n0\r\n\r\n\r\n");
    }
    wire += "GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\nGET /never HTTP/1.1\r\nHost: h\r\n\r\n";
    c.send(wire);
    for i in 0..50 {
        assert_eq!(c.answer().text(), format!("POST /{i} - {i:02}"));
        assert_eq!(c.answer().text(), format!("POST /{i} - c"));
    }
    assert_eq!(c.answer().text(), "GET /last - ");
    c.assert_end();
    assert_eq!(f.server.stats().requests, 101);
}

#[test]
fn a_smuggled_request_is_not_served() {
    let f = Fixture::new();
    for head in [
        "Content-Length: 30\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 0\r\nContent-Length: 30\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding: identity\r\n",
    ] {
        let mut c = f.unix();
        c.send(format!("POST /a HTTP/1.1\r\nHost: h\r\n{head}\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"));
        let answer = c.answer();
        assert_eq!((answer.status, answer.field("connection")), (400, Some("close")), "{head}");
        c.assert_end();
    }
    let stats = f.server.stats();
    assert_eq!((stats.requests, stats.protocol_errors), (0, 4));
}

#[test]
fn http_1_0_is_served_and_closed_unless_it_asks() {
    let f = Fixture::new();
    let mut c = f.unix();
    c.send("GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(c.answer().field("connection"), Some("keep-alive"));
    c.send("GET /a HTTP/1.0\r\n\r\n");
    assert_eq!(c.answer().field("connection"), Some("close"));
    c.assert_end();
    let mut c = f.unix();
    c.send("GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let head = c.head();
    assert!(!head.contains("Transfer-Encoding") && head.contains("Connection: close\r\n"), "{head}");
    assert_eq!(c.rest(), b"onetwothree", "delimited by the end of the connection");
}

#[test]
fn the_gate_refuses_without_reading_the_body() {
    let f = Fixture::new();
    let mut c = f.tcp();
    c.send("POST /closed HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\nbegin");
    let answer = c.answer();
    assert_eq!((answer.status, answer.text(), answer.field("connection")), (401, "no", Some("close")));
    c.assert_end();
}

#[test]
fn an_endless_head_is_refused() {
    let f = Fixture::new();
    for (start, status) in [("GET / HTTP/1.1\r\nHost: h\r\nX: ", 431), ("GET /", 414)] {
        let mut c = f.unix();
        c.send(start);
        for _ in 0..64 {
            c.try_send([b'a'; 4096]);
        }
        assert_eq!(c.answer().status, status);
        c.assert_end();
    }
    // One that is only just too long, and one that is not.
    for (fill, status) in [(16 * 1024, 431), (16 * 1024 - 64, 200)] {
        let mut c = f.unix();
        c.send(format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "a".repeat(fill)));
        assert_eq!(c.answer().status, status);
    }
    // A line that alone is too long, come at once with all that follows it.
    let mut c = f.unix();
    c.send(format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(16 * 1024)));
    assert_eq!(c.answer().status, 414);
}

#[test]
fn five_hundred_half_sent_requests_are_all_cut() {
    // 500 clients and their 500 ends here are more than the usual soft limit.
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let f = Fixture::with(Limits { head_timeout: SOON, ..Limits::default() });
    let mut clients: Vec<_> = (0..500)
        .map(|i| {
            let mut c = f.unix();
            // Some say nothing at all.
            if i % 10 > 0 {
                c.send("GET / HTTP/1.1\r\nHo");
            }
            c
        })
        .collect();
    for (i, c) in clients.iter_mut().enumerate() {
        if i % 10 > 0 {
            assert_eq!(c.answer().status, 408);
        }
        c.assert_end();
    }
    drop(clients);
    assert!(f.server.wait_for_connections(0));
    assert_eq!(f.server.stats().timeouts, 450);
}

#[test]
fn a_head_that_drips_is_cut_as_well() {
    let f = Fixture::with(Limits { head_timeout: SOON, head_bytes: 1 << 30, ..Limits::default() });
    let mut c = f.unix();
    let mut drip = c.stream.try_clone().unwrap();
    c.send("GET / HTTP/1.1\r\nX: ");
    let dripping = std::thread::spawn(move || while drip.write_all(b"x").is_ok() {});
    assert_eq!(c.answer().status, 408);
    c.stream.shutdown(std::net::Shutdown::Both).unwrap();
    dripping.join().unwrap();
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let f = Fixture::with(Limits { idle_timeout: SOON, ..Limits::default() });
    let mut c = f.unix();
    assert_eq!(c.get("/a").status, 200);
    c.assert_end();
    assert_eq!(f.server.stats().timeouts, 0, "idleness is no offence");
}

#[test]
fn a_client_that_never_reads_is_cut() {
    let f = Fixture::with(Limits { write_timeout: SOON, ..Limits::default() });
    let mut unix = f.unix();
    unix.send("GET /firehose HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(f.ended.recv_timeout(PATIENCE), Ok(io::ErrorKind::TimedOut));
    let got = unix.rest();
    assert!(!got.ends_with(b"0\r\n\r\n"), "the end is missing, and can be seen to be");
    let mut tcp = f.tcp();
    tcp.send("GET /firehose HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(f.ended.recv_timeout(PATIENCE), Ok(io::ErrorKind::TimedOut));
    tcp.rest();
    assert!(f.server.wait_for_connections(0));
    assert_eq!(f.server.stats().timeouts, 2);
}

#[test]
fn a_client_that_leaves_ends_its_stream() {
    let f = Fixture::new();
    let mut c = f.unix();
    c.send("GET /firehose HTTP/1.1\r\nHost: h\r\n\r\n");
    c.head();
    drop(c);
    let kind = f.ended.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(kind, io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{kind:?}");
}

/// Without a ping, and while nothing is written.
#[test]
fn a_stream_is_told_the_moment_its_client_is_gone() {
    let f = Fixture::new();
    let mut unix = f.unix();
    unix.send("GET /watch HTTP/1.1\r\nHost: h\r\n\r\n");
    f.entered();
    drop(unix);
    assert_eq!(f.ended.recv_timeout(PATIENCE), Ok(io::ErrorKind::BrokenPipe));
    // By an address the end of what a client sends looks the same at first.
    let mut tcp = f.tcp();
    tcp.send("GET /watch HTTP/1.1\r\nHost: h\r\n\r\n");
    tcp.head();
    f.entered();
    drop(tcp);
    f.entered();
    assert_eq!(f.ended.recv_timeout(PATIENCE), Ok(io::ErrorKind::BrokenPipe));
    assert!(f.server.wait_for_connections(0));
    // One that only sends no more is told on.
    let mut half = f.tcp();
    half.send("GET /watch HTTP/1.1\r\nHost: h\r\n\r\n");
    half.head();
    f.entered();
    half.stream.shutdown(std::net::Shutdown::Write).unwrap();
    f.entered();
    assert_eq!(half.line(), "c");
    assert_eq!(half.line(), "still there?");
    assert_eq!(f.server.connections(), 1);
    // It is told when the server cuts it, too.
    f.server.drain(std::time::Instant::now());
    assert_eq!(f.ended.recv_timeout(PATIENCE), Ok(io::ErrorKind::BrokenPipe));
}

/// A client that is turned away reads why, although it sends its request all the same and only then looks.
#[test]
fn whoever_is_turned_away_reads_why() {
    let f = Fixture::with(Limits { max_connections: 1, ..Limits::default() });
    let mut first = f.unix();
    assert_eq!(first.get("/a").status, 200);
    for _ in 0..20 {
        let mut c = f.unix();
        // What it is told is there before it says a word.
        rustix::event::poll(&mut [rustix::event::PollFd::new(&c.stream, rustix::event::PollFlags::IN)], None).unwrap();
        c.send(format!("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n{}", "x".repeat(100_000)));
        assert_eq!(c.answer().status, 503);
        c.assert_end();
    }
}

/// Those that say nothing have a few places among themselves, whoever else is let in.
#[test]
fn silent_clients_shut_nobody_out() {
    let f = Fixture::with(Limits { max_connections: 40, unknown: 5, ..Limits::default() });
    let silent: Vec<_> = (0..5).map(|_| f.tcp()).collect();
    let mut more = f.tcp();
    assert_eq!(more.answer().status, 503);
    assert_eq!(f.unix().get("/a").status, 200);
    drop(silent);
    assert!(f.server.wait_for_connections(0));
    // Once let in they do not count among these: what is kept for others is all that is left then.
    let mut known: Vec<_> = (0..27)
        .map(|_| {
            let mut c = f.tcp();
            assert_eq!(c.get("/a").status, 200);
            c
        })
        .collect();
    assert_eq!(f.tcp().answer().status, 503);
    let mut own: Vec<_> = (0..13).map(|_| f.unix()).collect();
    own.iter_mut().for_each(|c| assert_eq!(c.get("/a").status, 200));
    assert_eq!(f.unix().answer().status, 503);
    assert_eq!(known[0].get("/a").status, 200);
}

#[test]
fn a_handler_that_fails_costs_its_connection_alone() {
    let f = Fixture::new();
    let mut other = f.unix();
    assert_eq!(other.get("/a").status, 200);
    for path in ["/panic", "/nothing", "/fail", "/split"] {
        let mut c = f.unix();
        let answer = c.get(path);
        assert_eq!((answer.status, answer.field("connection")), (500, Some("close")), "{path}");
        assert!(!answer.head.contains("Set-Cookie"));
        c.assert_end();
    }
    for path in ["/panic-late", "/unfinished"] {
        let mut c = f.unix();
        c.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert!(c.head().starts_with("HTTP/1.1 200"));
        assert!(!c.rest().ends_with(b"0\r\n\r\n"), "{path}: no end is pretended");
    }
    assert_eq!(other.get("/a").status, 200);
    assert_eq!(f.server.stats().panics, 2);
}

#[test]
fn beyond_the_most_connections_clients_are_told_to_come_again() {
    let f = Fixture::with(Limits { max_connections: 2, ..Limits::default() });
    let mut first = f.unix();
    let mut second = f.tcp();
    assert_eq!((first.get("/a").status, second.get("/a").status), (200, 200));
    for _ in 0..3 {
        let mut c = f.tcp();
        let answer = c.answer();
        assert_eq!((answer.status, answer.field("connection")), (503, Some("close")));
        assert!(answer.field("retry-after").is_some());
        c.assert_end();
    }
    assert_eq!(f.server.stats().refused, 3);
    drop(first);
    assert!(f.server.wait_for_connections(1));
    assert_eq!(f.unix().get("/a").status, 200);
    assert_eq!(second.get("/a").status, 200);
}

/// Lowers the limit on descriptors, so it runs in a process of its own: this very test, started again.
#[test]
fn without_descriptors_the_accept_thread_waits_for_one() {
    const NAME: &str = "http::tests::connections::without_descriptors_the_accept_thread_waits_for_one";
    if std::env::var_os("HTTP_TEST_ALONE").is_none() {
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        let out = alone.args(["--exact", NAME, "--nocapture"]).env("HTTP_TEST_ALONE", "1").output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&out.stderr));
        return;
    }
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    use std::os::fd::AsRawFd;
    let f = Fixture::new();
    let mut first = f.unix();
    assert_eq!(first.get("/a").status, 200);
    let next = u64::try_from(std::fs::File::open("/dev/null").unwrap().as_raw_fd()).unwrap();
    let old = getrlimit(Resource::Nofile);
    // The client's own socket takes the last one.
    setrlimit(Resource::Nofile, Rlimit { current: Some(next + 1), maximum: old.maximum }).unwrap();
    let mut second = f.unix();
    second.send("GET /a HTTP/1.1\r\nHost: h\r\n\r\n");
    let cpu = || {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Duration::new(t.tv_sec.try_into().unwrap(), t.tv_nsec.try_into().unwrap())
    };
    let before = cpu();
    second.stream.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    let kind = second.stream.read(&mut [0; 16]).unwrap_err().kind();
    assert_eq!(kind, io::ErrorKind::WouldBlock, "nobody can be let in");
    assert!(cpu() - before < Duration::from_millis(150), "the accept thread spins");
    second.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    drop(first);
    assert_eq!(second.answer().status, 200);
}

#[test]
fn whoever_gets_no_thread_is_told_at_once() {
    // More stack than there is address space.
    let f = Fixture::with(Limits { stack: 1 << 50, ..Limits::default() });
    let mut c = f.unix();
    let answer = c.answer();
    assert_eq!((answer.status, answer.field("retry-after").is_some()), (503, true));
    c.assert_end();
    assert!(f.server.wait_for_connections(0));
    let stats = f.server.stats();
    assert_eq!((stats.accepted, stats.refused), (0, 1));
}
