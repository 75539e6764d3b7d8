//! Tests of the server from outside, over real sockets, and of its parsers.
//!
//! Nothing here sleeps: a test waits for bytes, for the end of a stream, or on a channel. [`PATIENCE`] only bounds a
//! test that would otherwise hang.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bodies;
mod connections;
mod drain;
mod heads;
mod sse;

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Handler, Hangup, Head, Limits, Listener, Peer, Request, Responder, Response, Server};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);
/// A deadline of the server that a test means to run into.
const SOON: Duration = Duration::from_millis(150);

/// A handler with a path for each thing that may happen.
struct Scripted {
    /// `/wait` says that it is there.
    entered: Mutex<Sender<()>>,
    /// `/wait` waits for this.
    leave: Mutex<Receiver<()>>,
    /// `/firehose` tells how it ended.
    ended: Mutex<Sender<io::ErrorKind>>,
}

impl Handler for Scripted {
    fn body_limit(&self, head: &Head) -> u64 {
        if head.path == "/small" { 10 } else { 4 << 20 }
    }

    fn gate(&self, head: &Head, _peer: &Peer) -> Option<Response> {
        (head.path == "/closed").then(|| Response::new(401).body("no"))
    }

    fn handle(&self, request: Request, out: Responder<'_>) -> io::Result<()> {
        match request.head.path.as_str() {
            "/peer" => out.send(Response::new(200).body(format!("{:?}", request.peer))),
            "/wait" => {
                self.entered.lock().unwrap().send(()).unwrap();
                self.leave.lock().unwrap().recv_timeout(PATIENCE).unwrap();
                out.send(Response::new(200).body("waited"))
            }
            "/stream" => {
                let mut stream = out.stream(200, &[("Content-Type", "text/plain")])?;
                for part in ["one", "", "two", "three"] {
                    stream.write(part.as_bytes())?;
                }
                stream.finish()
            }
            "/unfinished" => out.stream(200, &[])?.write(b"half"),
            "/firehose" => {
                let mut stream = out.stream(200, &[])?;
                let error = loop {
                    if let Err(e) = stream.write(&[b'x'; 64 * 1024]) {
                        break e;
                    }
                };
                self.ended.lock().unwrap().send(error.kind()).unwrap();
                Err(error)
            }
            "/watch" => {
                let mut stream = out.stream(200, &[])?;
                let (seen, told) = channel();
                let _watch = stream.watch(Arc::new(move |hangup| {
                    let _ = seen.send(hangup);
                }))?;
                self.entered.lock().unwrap().send(()).unwrap();
                while told.recv_timeout(PATIENCE).unwrap() == Hangup::Perhaps {
                    self.entered.lock().unwrap().send(()).unwrap();
                    // To one that is gone this brings the answer that it is.
                    stream.write(b"still there?")?;
                }
                self.ended.lock().unwrap().send(io::ErrorKind::BrokenPipe).unwrap();
                Err(io::ErrorKind::BrokenPipe.into())
            }
            "/panic" => panic!("on purpose"),
            "/panic-late" => {
                let _stream = out.stream(200, &[])?;
                panic!("on purpose, half-way")
            }
            "/nothing" => Ok(()),
            "/fail" => Err(io::Error::other("on purpose")),
            "/split" => out.send(Response::new(200).header("X", "a\r\nSet-Cookie: b")),
            "/empty" => out.send(Response::new(204).body("never sent")),
            "/json" => out.send(Response::json(200, &serde_json::json!({"a": [1, null]}))),
            "/close" => out.send(Response::new(200).header("Connection", "close")),
            "/large" => out.send(Response::new(200).body(vec![b'y'; 3 << 20])),
            path => {
                let query = request.head.query.as_deref().unwrap_or("-");
                let mut body = format!("{} {path} {query} ", request.head.method).into_bytes();
                body.extend_from_slice(&request.body);
                out.send(Response::new(200).header("X-Seen", "yes").body(body))
            }
        }
    }
}

/// A server on a unix and on a TCP socket, and the ends of the channels of [`Scripted`].
struct Fixture {
    server: Server,
    dir: tempfile::TempDir,
    tcp: std::net::SocketAddr,
    entered: Receiver<()>,
    leave: Sender<()>,
    ended: Receiver<io::ErrorKind>,
}

impl Fixture {
    /// A server none of whose deadlines comes within a test.
    fn new() -> Self {
        let never = 10 * PATIENCE;
        Self::with(Limits {
            head_timeout: never,
            idle_timeout: never,
            body_timeout: never,
            write_timeout: never,
            linger: never,
            ..Limits::default()
        })
    }

    fn with(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let unix = UnixListener::bind(dir.path().join("s")).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = tcp.local_addr().unwrap();
        let (entered_tx, entered) = channel();
        let (leave, leave_rx) = channel();
        let (ended_tx, ended) = channel();
        let handler = Arc::new(Scripted {
            entered: Mutex::new(entered_tx),
            leave: Mutex::new(leave_rx),
            ended: Mutex::new(ended_tx),
        });
        let server = Server::start(vec![Listener::Unix(unix), Listener::Tcp(tcp)], limits, handler).unwrap();
        Self { server, dir, tcp: addr, entered, leave, ended }
    }

    fn unix(&self) -> Client<UnixStream> {
        let stream = UnixStream::connect(self.dir.path().join("s")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client { stream, buf: Vec::new() }
    }

    fn tcp(&self) -> Client<TcpStream> {
        let stream = TcpStream::connect(self.tcp).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client { stream, buf: Vec::new() }
    }

    fn entered(&self) {
        self.entered.recv_timeout(PATIENCE).unwrap();
    }
}

/// The simplest client that tells whole answers from cut ones.
struct Client<S> {
    stream: S,
    buf: Vec<u8>,
}

#[derive(Debug, Clone)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|l| l.split_once(": "));
        fields.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v)
    }
}

impl<S: Read + Write> Client<S> {
    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Sends what may be refused before it is all sent.
    fn try_send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
        self.answer()
    }

    /// More bytes; false at the end. A reset is an end too.
    fn more(&mut self) -> bool {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(n) => {
                self.buf.extend_from_slice(&chunk[..n]);
                n > 0
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => false,
            Err(e) => panic!("the server said nothing: {e}"),
        }
    }

    fn head(&mut self) -> String {
        loop {
            if let Some(at) = self.buf.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = self.buf.drain(..at + 4).collect();
                return String::from_utf8(head).unwrap();
            }
            assert!(self.more(), "ended in a head: {:?}", String::from_utf8_lossy(&self.buf));
        }
    }

    fn exactly(&mut self, n: usize) -> Vec<u8> {
        while self.buf.len() < n {
            assert!(self.more(), "ended after {} of {n} bytes", self.buf.len());
        }
        self.buf.drain(..n).collect()
    }

    fn line(&mut self) -> String {
        loop {
            if let Some(at) = self.buf.windows(2).position(|w| w == b"\r\n") {
                let line: Vec<u8> = self.buf.drain(..at + 2).collect();
                return String::from_utf8(line[..at].to_vec()).unwrap();
            }
            assert!(self.more(), "ended in a line");
        }
    }

    fn answer(&mut self) -> Answer {
        let head = self.head();
        let status = head[9..12].parse().unwrap();
        let mut answer = Answer { status, head, body: Vec::new() };
        if let Some(n) = answer.field("content-length") {
            answer.body = self.exactly(n.parse().unwrap());
        } else if answer.field("transfer-encoding") == Some("chunked") {
            loop {
                let size = usize::from_str_radix(&self.line(), 16).unwrap();
                answer.body.extend(self.exactly(size));
                assert_eq!(self.line(), "");
                if size == 0 {
                    break;
                }
            }
        }
        answer
    }

    /// The rest, up to the end of the stream.
    fn rest(&mut self) -> Vec<u8> {
        while self.more() {}
        std::mem::take(&mut self.buf)
    }

    /// The server has closed, and said nothing more.
    fn assert_end(&mut self) {
        let rest = self.rest();
        assert!(rest.is_empty(), "more came: {:?}", String::from_utf8_lossy(&rest));
    }
}
