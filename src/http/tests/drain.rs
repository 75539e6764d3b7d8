//! The end of a server: nobody new, the idle at once, the busy in peace, the stuck by force.

use std::time::Instant;

use super::*;

#[test]
fn a_drain_ends_each_connection_as_befits_it() {
    let f = Fixture::new();
    let mut idle = f.unix();
    assert_eq!(idle.get("/a").status, 200);
    let mut idle_tcp = f.tcp();
    assert_eq!(idle_tcp.get("/a").status, 200);
    let mut silent = f.unix();
    // The answer to the first shows that what came with it is there too.
    let mut half = f.unix();
    half.send("GET /a HTTP/1.1\r\nHost: h\r\n\r\nGET /half HTTP/1.1\r\nHo");
    assert_eq!(half.answer().status, 200);
    let mut active = f.unix();
    active.send("GET /wait HTTP/1.1\r\nHost: h\r\n\r\n");
    f.entered();
    std::thread::scope(|s| {
        let drain = s.spawn(|| f.server.drain(Instant::now() + PATIENCE));
        idle.assert_end();
        idle_tcp.assert_end();
        silent.assert_end();
        let told = half.answer();
        assert_eq!((told.status, told.field("retry-after").is_some()), (503, true), "it may safely come again");
        half.assert_end();
        assert!(UnixStream::connect(f.dir.path().join("s")).is_err(), "nobody new is let in");
        assert!(TcpStream::connect(f.tcp).is_err());
        assert!(!drain.is_finished(), "the active one is waited for");
        f.leave.send(()).unwrap();
        let answer = active.answer();
        assert_eq!((answer.text(), answer.field("connection")), ("waited", Some("close")));
        active.assert_end();
        assert_eq!(drain.join().unwrap(), 0, "nobody had to be cut");
    });
    assert_eq!(f.server.connections(), 0);
}

#[test]
fn a_client_that_was_answered_and_does_not_hang_up_delays_nothing() {
    let f = Fixture::new();
    // The server lingers, so that the client can read this although it has not sent all.
    let mut c = f.unix();
    c.send("POST /closed HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nhalf");
    assert_eq!(c.answer().status, 401);
    c.assert_end();
    assert_eq!(f.server.drain(Instant::now() + PATIENCE), 0);
    assert_eq!(f.server.connections(), 0);
}

#[test]
fn what_is_stuck_is_cut_at_the_instant() {
    let f = Fixture::new();
    let mut in_handler = f.unix();
    in_handler.send("GET /wait HTTP/1.1\r\nHost: h\r\n\r\n");
    f.entered();
    let mut unread = f.tcp();
    unread.send("GET /firehose HTTP/1.1\r\nHost: h\r\n\r\n");
    unread.head();
    let mut in_body = f.unix();
    in_body.send("POST /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n");
    in_body.head();
    let begun = Instant::now();
    assert_eq!(f.server.drain(begun + SOON), 3);
    assert!(begun.elapsed() >= SOON, "they had their time");
    in_handler.assert_end();
    assert!(f.ended.recv_timeout(PATIENCE).is_ok(), "its write ended");
    in_body.rest();
    f.leave.send(()).unwrap();
    assert!(f.server.wait_for_connections(0));
}

#[test]
fn a_body_on_its_way_may_arrive_in_a_drain() {
    let f = Fixture::new();
    let mut c = f.unix();
    c.send("POST /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    c.head();
    std::thread::scope(|s| {
        let drain = s.spawn(|| f.server.drain(Instant::now() + PATIENCE));
        let mut refused = UnixStream::connect(f.dir.path().join("s"));
        // Connecting fails once the listener is closed; until then, the connection is ended by the drain.
        while let Ok(stream) = &mut refused {
            let _ = stream.read(&mut [0; 1]);
            refused = UnixStream::connect(f.dir.path().join("s"));
        }
        c.send("ok");
        let answer = c.answer();
        assert_eq!((answer.text(), answer.field("connection")), ("POST /e - ok", Some("close")));
        assert_eq!(drain.join().unwrap(), 0);
    });
}

#[test]
fn after_accepting_stops_connections_go_on() {
    let f = Fixture::new();
    let mut c = f.unix();
    assert_eq!(c.get("/a").status, 200);
    f.server.stop_accepting();
    f.server.stop_accepting();
    assert!(UnixStream::connect(f.dir.path().join("s")).is_err());
    let answer = c.get("/a");
    assert_eq!((answer.status, answer.field("connection")), (200, None));
}

#[test]
fn a_socket_that_somebody_else_holds_stays_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let held = UnixListener::bind(&path).unwrap();
    let ours = held.try_clone().unwrap();
    struct Plain;
    impl Handler for Plain {
        fn handle(&self, _: Request, out: Responder<'_>) -> io::Result<()> {
            out.send(Response::new(200))
        }
    }
    let server = Server::start(vec![Listener::Unix(ours)], Limits::default(), Arc::new(Plain)).unwrap();
    server.stop_accepting();
    let stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut client = Client { stream, buf: Vec::new() };
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    let next = Server::start(vec![Listener::Unix(held)], Limits::default(), Arc::new(Plain)).unwrap();
    assert_eq!(client.answer().status, 200, "the queue is served by whoever comes next");
    assert_eq!((server.stats().accepted, next.stats().accepted), (0, 1));
}

#[test]
fn a_server_dropped_cuts_its_connections() {
    let f = Fixture::new();
    let mut c = f.unix();
    assert_eq!(c.get("/a").status, 200);
    drop(f.server);
    c.assert_end();
}
