//! A small daemon's face for tests: an HTTP server on a unix socket that answers as it is told.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Receiver;
use serde_json::Value;

use super::Client;
use crate::thread;

/// What a client asked.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// With its query.
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    /// `GET /v1/status`
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// How it is answered.
pub enum Answer {
    Json(u16, Value),
    /// Text of a stream of events, then its end.
    Sse(String),
    /// The same, but the connection breaks where the stream would go on.
    Cut(String),
    /// The connection breaks at once.
    Gone,
    /// First waits for something to happen (a message, or the other side dropped).
    After(Receiver<()>, Box<Answer>),
}

/// `{"error": …}`
pub fn refusal(status: u16, code: &str) -> Answer {
    Answer::Json(status, serde_json::json!({ "error": { "code": code, "message": format!("because of {code}") } }))
}

/// One event as it stands in a stream; `id` 0 is none.
pub fn event(id: u64, kind: &str, data: Value) -> String {
    let id = if id == 0 { String::new() } else { format!("id: {id}\n") };
    format!("event: {kind}\n{id}data: {data}\n\n")
}

type Handler = Box<dyn FnMut(&Request) -> Answer + Send>;

pub struct Fake {
    socket: PathBuf,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Request>>>,
    accepting: Option<JoinHandle<()>>,
}

impl Fake {
    pub fn start(socket: &Path, handler: impl FnMut(&Request) -> Answer + Send + 'static) -> Self {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let handler: Arc<Mutex<Handler>> = Arc::new(Mutex::new(Box::new(handler)));
        let (stopping, requests) = (Arc::clone(&stop), Arc::clone(&seen));
        let accepting = thread::spawn("fake", thread::IO_STACK, move || {
            for stream in listener.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    return;
                }
                let (stream, handler, requests) = (stream.unwrap(), Arc::clone(&handler), Arc::clone(&requests));
                thread::spawn("fake-conn", thread::IO_STACK, move || serve(stream, &handler, &requests)).unwrap();
            }
        });
        Self { socket: socket.to_path_buf(), stop, seen, accepting: Some(accepting.unwrap()) }
    }

    pub fn client(&self) -> Client {
        Client::unix(&self.socket)
    }

    /// What was asked so far, but for the status.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().iter().filter(|r| r.path != "/v1/status").cloned().collect()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.socket);
        let _ = self.accepting.take().unwrap().join();
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn serve(mut stream: UnixStream, handler: &Mutex<Handler>, seen: &Mutex<Vec<Request>>) {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let Some(request) = read(&mut stream) else { return };
    if request.path == "/readyz" {
        // Asked before anything else, and no test's concern.
        let _ = write!(stream, "HTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\n{{}}");
        return;
    }
    seen.lock().unwrap().push(request.clone());
    let mut answer = handler.lock().unwrap()(&request);
    while let Answer::After(what, then) = answer {
        let _ = what.recv_timeout(Duration::from_secs(20));
        answer = *then;
    }
    // A client that went away is the test's own affair.
    let _ = match answer {
        Answer::Json(status, body) => {
            let body = if body.is_null() { String::new() } else { body.to_string() };
            let head =
                format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n", body.len());
            write!(stream, "{head}Retry-After: 0\r\n\r\n{body}")
        }
        Answer::Sse(text) => stream_out(&mut stream, &text, "0\r\n\r\n"),
        Answer::Cut(text) => stream_out(&mut stream, &text, ""),
        Answer::Gone | Answer::After(..) => Ok(()),
    };
}

/// In small chunks, so that a client meets events cut at any byte.
fn stream_out(stream: &mut UnixStream, text: &str, end: &str) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    for piece in text.as_bytes().chunks(7) {
        write!(stream, "{:x}\r\n", piece.len())?;
        stream.write_all(piece)?;
        stream.write_all(b"\r\n")?;
    }
    stream.write_all(end.as_bytes())
}

fn read(stream: &mut UnixStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut head = httparse::Request::new(&mut headers);
        if let Ok(httparse::Status::Complete(end)) = head.parse(&bytes) {
            let headers: Vec<_> = head
                .headers
                .iter()
                .map(|h| (h.name.to_owned(), String::from_utf8_lossy(h.value).into_owned()))
                .collect();
            let (method, path) = (head.method.unwrap().to_owned(), head.path.unwrap().to_owned());
            let mut request = Request { method, path, headers, body: String::new() };
            let length: usize = request.header("content-length").map_or(0, |l| l.parse().unwrap());
            let mut body = bytes.split_off(end);
            while body.len() < length {
                let n = stream.read(&mut buffer).ok().filter(|n| *n > 0)?;
                body.extend_from_slice(&buffer[..n]);
            }
            request.body = String::from_utf8(body).unwrap();
            return Some(request);
        }
        let n = stream.read(&mut buffer).ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&buffer[..n]);
    }
}
