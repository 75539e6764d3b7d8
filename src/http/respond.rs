//! Answers: whole, or streamed chunk by chunk.
//!
//! It owns the form of an answer on the wire, and what has been sent of the present answer. It writes the framing
//! fields itself: a handler's `Content-Length` and `Transfer-Encoding` are left out, and its `Connection` counts only
//! for `close`.

use std::io::{self, IoSlice};
use std::sync::Arc;

use super::head::{Framing, Head};
use super::shared::{Conn, Shared};
use super::{Alarm, Handler, Refusal, Watch};

/// An answer with its whole body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// 200 to 599.
    pub status: u16,
    /// Header fields, without those that delimit the message.
    pub headers: Vec<(String, String)>,
    /// The body. For HEAD it is measured and not sent; 204 and 304 have none.
    pub body: Vec<u8>,
}

impl Response {
    /// An answer without fields or body.
    #[must_use]
    pub fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    /// Adds a header field.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.body = bytes.into();
        self
    }

    /// An answer in JSON, on one line.
    #[must_use]
    pub fn json(status: u16, value: &serde_json::Value) -> Self {
        Self::json_text(status, value.to_string())
    }

    /// The same, of JSON that is text already.
    #[must_use]
    pub fn json_text(status: u16, mut text: String) -> Self {
        text.push('\n');
        Self::new(status).header("Content-Type", "application/json").body(text)
    }
}

/// What has been sent of the present answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Nothing,
    /// A part: cut short unless it becomes [`Sent::Whole`].
    Part,
    Whole,
}

/// One request's way back: what may be sent, and what was. A connection has one, made new for each request.
pub(super) struct Exchange {
    shared: Arc<Shared>,
    conn: Arc<Conn>,
    minor: u8,
    /// The answer has no body whatever it says: HEAD.
    mute: bool,
    keep_alive: bool,
    sent: Sent,
}

impl Exchange {
    pub(super) fn new(shared: Arc<Shared>, conn: Arc<Conn>) -> Self {
        Self { shared, conn, minor: 1, mute: false, keep_alive: false, sent: Sent::Nothing }
    }

    /// Begins anew for a request.
    pub(super) fn begin(&mut self, head: &Head, framing: Framing) {
        self.minor = head.minor;
        self.mute = head.method == "HEAD";
        self.keep_alive = framing.keep_alive;
        self.sent = Sent::Nothing;
    }

    /// Forgets the previous request, for an answer to a request that could not be read.
    pub(super) fn begin_unread(&mut self) {
        self.minor = 1;
        self.mute = false;
        self.keep_alive = false;
        self.sent = Sent::Nothing;
    }

    pub(super) fn sent(&self) -> Sent {
        self.sent
    }

    /// The client may send another request: the answer did not say otherwise.
    pub(super) fn may_go_on(&self) -> bool {
        self.keep_alive
    }

    /// The connection ends after this answer, and the answer says so.
    pub(super) fn close_after(&mut self) {
        self.keep_alive = false;
    }

    pub(super) fn responder(&mut self) -> Responder<'_> {
        Responder { out: self }
    }

    /// Tells the client to send the body.
    pub(super) fn send_continue(&mut self) -> io::Result<()> {
        self.write(&[b"HTTP/1.1 100 Continue\r\n\r\n"])
    }

    fn write(&self, parts: &[&[u8]]) -> io::Result<()> {
        let mut slices = [IoSlice::new(&[]); 3];
        for (slice, part) in slices.iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        let result = self.conn.socket.write_all(&mut slices[..parts.len().min(3)], self.shared.limits.write_timeout);
        if let Err(e) = &result
            && e.kind() == io::ErrorKind::TimedOut
        {
            self.shared.counters.timeouts.add();
        }
        result
    }

    /// Settles whether the connection goes on after an answer with these fields.
    fn settle_keep_alive<'h>(&mut self, headers: impl Iterator<Item = (&'h str, &'h str)>) {
        let mut fields = headers.filter(|(n, _)| n.eq_ignore_ascii_case("connection"));
        if fields.any(|(_, v)| v.eq_ignore_ascii_case("close")) || self.shared.is_draining() {
            self.keep_alive = false;
        }
    }

    pub(super) fn send(&mut self, response: &Response) -> io::Result<()> {
        self.settle_keep_alive(borrowed(&response.headers));
        let bodiless = has_no_body(response.status);
        let length = if bodiless { Length::None } else { Length::Known(response.body.len()) };
        let head = head_bytes(response.status, borrowed(&response.headers), length, self.connection_field())?;
        self.sent = Sent::Part;
        if self.mute || bodiless {
            self.write(&[&head])?;
        } else {
            self.write(&[&head, &response.body])?;
        }
        self.sent = Sent::Whole;
        Ok(())
    }

    fn connection_field(&self) -> Option<&'static str> {
        match (self.keep_alive, self.minor) {
            (false, _) => Some("close"),
            (true, 0) => Some("keep-alive"),
            (true, _) => None,
        }
    }
}

fn borrowed(headers: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
    headers.iter().map(|(n, v)| (n.as_str(), v.as_str()))
}

fn has_no_body(status: u16) -> bool {
    matches!(status, 204 | 304)
}

/// A refusal as the handler shows it; in plain text if the handler fails.
pub(super) fn refusal(handler: &dyn Handler, refusal: &Refusal) -> Response {
    let shown = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| handler.error(refusal.status, &refusal.what)));
    let mut response = shown.unwrap_or_else(|_| Response::new(refusal.status));
    if response.status == 503 && !response.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("retry-after")) {
        response = response.header("Retry-After", "1");
    }
    response
}

/// A whole answer as bytes, for a client that gets no thread.
pub(super) fn last_words(response: &Response) -> io::Result<Vec<u8>> {
    let mut bytes =
        head_bytes(response.status, borrowed(&response.headers), Length::Known(response.body.len()), Some("close"))?;
    bytes.extend_from_slice(&response.body);
    Ok(bytes)
}

enum Length {
    None,
    Known(usize),
    Chunked,
}

/// The status line and header fields. A field that contains a line break is the handler's error.
fn head_bytes<'h>(
    status: u16,
    headers: impl Iterator<Item = (&'h str, &'h str)>,
    length: Length,
    connection: Option<&str>,
) -> io::Result<Vec<u8>> {
    if !(200..=599).contains(&status) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("answer: {status} is no final status")));
    }
    let mut out = format!("HTTP/1.1 {status} {}\r\n", reason(status));
    for (name, value) in headers {
        if ["content-length", "transfer-encoding", "connection"].iter().any(|own| name.eq_ignore_ascii_case(own)) {
            continue;
        }
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        let breaks = |c: char| c != '\t' && c.is_control();
        if name.is_empty() || !name.bytes().all(token) || value.contains(breaks) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("answer: field {name:?} is not valid")));
        }
        line(&mut out, name, value);
    }
    match length {
        Length::None => {}
        Length::Known(n) => line(&mut out, "Content-Length", &n.to_string()),
        Length::Chunked => line(&mut out, "Transfer-Encoding", "chunked"),
    }
    if let Some(connection) = connection {
        line(&mut out, "Connection", connection);
    }
    out.push_str("\r\n");
    Ok(out.into_bytes())
}

fn line(out: &mut String, name: &str, value: &str) {
    for part in [name, ": ", value, "\r\n"] {
        out.push_str(part);
    }
}

/// The way to answer one request. It is used up by the answer; dropped unused, the client gets a 500.
pub struct Responder<'c> {
    out: &'c mut Exchange,
}

impl<'c> Responder<'c> {
    /// Sends a whole answer.
    ///
    /// # Errors
    /// `TimedOut` if the client takes nothing for [`super::Limits::write_timeout`], or it is gone; `InvalidInput` for a
    /// status outside 200 to 599 or a field that is not valid, and then nothing was sent.
    pub fn send(self, response: Response) -> io::Result<()> {
        self.out.send(&response)
    }

    /// Begins an answer whose body comes bit by bit: chunked, or for HTTP/1.0 delimited by the end of the connection.
    /// The head is sent at once. To HEAD no body is sent, whatever is written.
    ///
    /// # Errors
    /// As [`Responder::send`].
    pub fn stream(self, status: u16, headers: &[(&str, &str)]) -> io::Result<Stream<'c>> {
        self.stream_with(status, headers, b"")
    }

    /// As [`Responder::stream`], with the first bytes sent together with the head.
    ///
    /// # Errors
    /// As [`Responder::send`].
    pub fn stream_with(self, status: u16, headers: &[(&str, &str)], first: &[u8]) -> io::Result<Stream<'c>> {
        let out = self.out;
        out.settle_keep_alive(headers.iter().copied());
        let mute = out.mute || has_no_body(status);
        let chunked = out.minor >= 1 && !has_no_body(status);
        if !chunked && !mute {
            out.keep_alive = false;
        }
        let length = if chunked { Length::Chunked } else { Length::None };
        let mut head = head_bytes(status, headers.iter().copied(), length, out.connection_field())?;
        out.sent = Sent::Part;
        if mute || first.is_empty() {
            out.write(&[&head])?;
        } else if chunked {
            head.extend_from_slice(format!("{:x}\r\n", first.len()).as_bytes());
            out.write(&[&head, first, b"\r\n"])?;
        } else {
            out.write(&[&head, first])?;
        }
        Ok(Stream { out, chunked, mute })
    }
}

/// An answer being streamed. Dropped unfinished, the connection is cut, so that the client sees that the end is
/// missing.
pub struct Stream<'c> {
    out: &'c mut Exchange,
    chunked: bool,
    mute: bool,
}

impl Stream<'_> {
    /// Sends bytes now, as one chunk.
    ///
    /// # Errors
    /// `TimedOut` if the client takes nothing for [`super::Limits::write_timeout`], or it is gone. Nothing more can be
    /// sent after that.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        // An empty chunk would be the end.
        if self.mute || bytes.is_empty() {
            return Ok(());
        }
        if !self.chunked {
            return self.out.write(&[bytes]);
        }
        let size = format!("{:x}\r\n", bytes.len());
        self.out.write(&[size.as_bytes(), bytes, b"\r\n"])
    }

    /// Ends the answer; the connection may go on.
    ///
    /// # Errors
    /// As [`Stream::write`].
    pub fn finish(self) -> io::Result<()> {
        if self.chunked && !self.mute {
            self.out.write(&[b"0\r\n\r\n"])?;
        }
        self.out.sent = Sent::Whole;
        Ok(())
    }

    /// Sends the last bytes, and ends the answer with them.
    ///
    /// # Errors
    /// As [`Stream::write`].
    pub fn finish_with(mut self, bytes: &[u8]) -> io::Result<()> {
        if self.mute || bytes.is_empty() || !self.chunked {
            self.write(bytes)?;
            return self.finish();
        }
        let size = format!("{:x}\r\n", bytes.len());
        self.out.write(&[size.as_bytes(), bytes, b"\r\n0\r\n\r\n"])?;
        self.out.sent = Sent::Whole;
        Ok(())
    }

    /// Calls the alarm when the client hangs up, for as long as the returned value is kept. The call may come at once,
    /// on this thread or on another. While the server drains, the server itself may have cut the connection.
    ///
    /// # Errors
    /// The system cannot watch one more.
    pub fn watch(&self, alarm: Alarm) -> io::Result<Watch> {
        self.out.shared.attendant.watch(&self.out.conn, alarm)
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        // The phrase may be empty: only people read it.
        _ => "",
    }
}
