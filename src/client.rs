//! The API's client side: requests and event streams over the daemon's unix socket, or TCP with a token. Shared by the
//! commands and the tests.
//!
//! Owns how a daemon is reached and what its errors mean. It must not know what a command does with an answer.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use ureq::http;

mod sse;
mod unix;

pub use sse::{SseEvent, SseParser};
pub use unix::connect;

/// A whole request and its answer, unless said otherwise.
const REQUEST: Duration = Duration::from_secs(60);
/// To have a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// A stream pings every 15 s: after three missed pings the daemon is gone.
const SILENCE: Duration = Duration::from_secs(45);
/// The longest answer. A message may have 4 MiB, and a page of a transcript has many.
const ANSWER: u64 = 256 << 20;
/// The characters that need no encoding in a segment of a path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What went wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code})")]
pub struct ClientError {
    /// The API's word (`session_not_found`), or one of ours: `unreachable` (nobody listens), `disconnected` (the answer
    /// did not come whole: it may or may not have been done), `timeout` (the same), `forbidden` (the socket is not ours
    /// to open), `protocol` (the answer makes no sense), `silent` (connections are accepted, nothing is answered).
    pub code: String,
    /// For people.
    pub message: String,
    /// The HTTP status, 0 when there was no answer.
    pub status: u16,
    /// The server's `Retry-After`.
    pub retry_after: Option<Duration>,
}

impl ClientError {
    fn local(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), status: 0, retry_after: None }
    }

    /// Nobody listens there.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        self.code == "unreachable"
    }

    /// No whole answer came, or the server asks to try again: the same request may succeed later. It may have been
    /// carried out, so only requests with an id, or that only read, should be repeated.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        is_passing(&self.code)
    }
}

/// See [`ClientError::is_passing`].
#[must_use]
pub fn is_passing(code: &str) -> bool {
    matches!(code, "unreachable" | "disconnected" | "timeout" | "stopping" | "store_unavailable")
}

/// An answer: the status and the body (`null` when it is empty, a string when it is not JSON).
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// The HTTP status, 200 to 299.
    pub status: u16,
    /// The body.
    pub body: Value,
}

/// A daemon to talk to.
#[derive(Clone, Debug)]
pub struct Client {
    agent: ureq::Agent,
    base: String,
    bearer: Option<String>,
    name: String,
    socket: Option<PathBuf>,
    /// What shows a daemon of the same user that this is no agent, should it not see that by itself.
    cookie: Option<String>,
}

impl Client {
    /// The daemon behind a unix socket.
    #[must_use]
    pub fn unix(socket: &Path) -> Self {
        let agent = ureq::Agent::with_parts(config(), unix::UnixConnector::new(socket, CONNECT), unix::NoResolver);
        Self {
            agent,
            base: "http://localhost".into(),
            bearer: None,
            name: socket.display().to_string(),
            socket: Some(socket.to_path_buf()),
            cookie: None,
        }
    }

    /// The daemon behind the first of these sockets, none of which was found: errors name all of them.
    #[must_use]
    pub fn unix_of(looked_at: &[PathBuf]) -> Self {
        let Some(last) = looked_at.last() else { return Self::unix(Path::new("")) };
        let names: Vec<_> = looked_at.iter().map(|p| p.display().to_string()).collect();
        Self { name: names.join(", "), ..Self::unix(last) }
    }

    /// The daemon behind a URL such as `http://127.0.0.1:7411`, with a bearer token.
    ///
    /// # Errors
    /// It is no `http://` or `https://` URL.
    pub fn url(url: &str, token: Option<&str>) -> Result<Self, ClientError> {
        let base = url.trim_end_matches('/').to_owned();
        if !base.starts_with("http://") && !base.starts_with("https://") {
            return Err(ClientError::local("protocol", format!("{url:?} is not an http:// or https:// URL")));
        }
        let bearer = token.map(|t| format!("Bearer {t}"));
        Ok(Self {
            agent: ureq::Agent::new_with_config(config()),
            name: base.clone(),
            base,
            bearer,
            socket: None,
            cookie: None,
        })
    }

    /// Shows the cookie of a state directory, if it is there and to be read.
    #[must_use]
    pub fn with_cookie(mut self, state_dir: &Path) -> Self {
        let cookie = crate::config::bounded::secret(&state_dir.join("cookie")).ok();
        self.cookie = cookie.filter(|c| !c.is_empty() && c.bytes().all(|b| b.is_ascii_alphanumeric()));
        self
    }

    /// The socket or URL, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The socket, if it is one: then the daemon runs on this machine.
    #[must_use]
    pub fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// Checks that the daemon answers at all: the system accepts connections even for a process that is stopped or
    /// hangs. The next request shows any other problem.
    ///
    /// # Errors
    /// `silent`: nothing was answered within the time.
    pub fn answers(&self, within: Duration) -> Result<(), ClientError> {
        match self.request(http::Method::GET, "/readyz", None, within) {
            Err(e) if e.code == "timeout" => {
                let why = "the daemon accepts connections but does not answer; its log says why, and if it hangs, \
                           its supervisor or SIGKILL ends it";
                Err(ClientError::local("silent", format!("{}: {why} (waited {within:?})", self.name)))
            }
            _ => Ok(()),
        }
    }

    /// The daemon's status, within a short time.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn status(&self, within: Duration) -> Result<Value, ClientError> {
        self.request(http::Method::GET, "/v1/status", None, within).map(|r| r.body)
    }

    /// A `GET` request.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.request(http::Method::GET, path, None, REQUEST).map(|r| r.body)
    }

    /// A `POST` request.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn post(&self, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        self.request(http::Method::POST, path, body, REQUEST).map(|r| r.body)
    }

    /// A `DELETE` request.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn delete(&self, path: &str) -> Result<Value, ClientError> {
        self.request(http::Method::DELETE, path, None, REQUEST).map(|r| r.body)
    }

    /// Any request, to be over within `timeout`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn request(
        &self,
        method: http::Method,
        path: &str,
        body: Option<&Value>,
        timeout: Duration,
    ) -> Result<Reply, ClientError> {
        let request = self.build(method, path, body, "application/json", None)?;
        let request = self.agent.configure_request(request).timeout_global(Some(timeout)).build();
        let mut answer = self.agent.run(request).map_err(|e| self.transport(e))?;
        let status = answer.status().as_u16();
        let retry_after = retry_after(&answer);
        let text = answer.body_mut().with_config().limit(ANSWER).read_to_vec().map_err(|e| self.transport(e))?;
        let body = if text.is_empty() {
            Value::Null
        } else {
            let as_text = |_| Value::String(String::from_utf8_lossy(&text).into_owned());
            serde_json::from_slice(&text).unwrap_or_else(as_text)
        };
        if (200..300).contains(&status) { Ok(Reply { status, body }) } else { Err(refusal(status, &body, retry_after)) }
    }

    /// Opens a stream of events: a `GET` of one, or a `POST` that is answered with one. `last_event_id` asks to go on
    /// after an event that was seen.
    ///
    /// # Errors
    /// See [`ClientError`]; once the stream is open, its items carry them.
    pub fn stream(
        &self,
        path: &str,
        method: http::Method,
        body: Option<&Value>,
        last_event_id: Option<u64>,
    ) -> Result<EventStream, ClientError> {
        self.stream_until(path, method, body, last_event_id, None)
    }

    /// As [`Client::stream`], but it ends at the instant at the latest.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn stream_until(
        &self,
        path: &str,
        method: http::Method,
        body: Option<&Value>,
        last_event_id: Option<u64>,
        until: Option<Instant>,
    ) -> Result<EventStream, ClientError> {
        let left = until.map(|t| t.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
        let request = self.build(method, path, body, "text/event-stream", last_event_id)?;
        let configured = self.agent.configure_request(request).timeout_per_read(Some(SILENCE));
        let mut answer = self.agent.run(configured.timeout_global(left).build()).map_err(|e| self.transport(e))?;
        let status = answer.status().as_u16();
        let kind = answer.headers().get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if (200..300).contains(&status) && kind.starts_with("text/event-stream") {
            let reader = Box::new(answer.into_body().into_reader());
            return Ok(EventStream { reader, parser: SseParser::default(), name: self.name.clone(), over: false });
        }
        let kind = kind.to_owned();
        let retry_after = retry_after(&answer);
        let text = answer.body_mut().with_config().limit(1 << 20).read_to_vec().map_err(|e| self.transport(e))?;
        let body = serde_json::from_slice(&text).unwrap_or(Value::Null);
        if (200..300).contains(&status) {
            let message = format!("{}: {path}: {kind:?} instead of a stream of events", self.name);
            return Err(ClientError { status, ..ClientError::local("protocol", message) });
        }
        Err(refusal(status, &body, retry_after))
    }

    fn build(
        &self,
        method: http::Method,
        path: &str,
        body: Option<&Value>,
        accept: &str,
        last_event_id: Option<u64>,
    ) -> Result<http::Request<Vec<u8>>, ClientError> {
        let mut request =
            http::Request::builder().method(method).uri(format!("{}{path}", self.base)).header("accept", accept);
        if let Some(bearer) = &self.bearer {
            request = request.header("authorization", bearer);
        }
        if let Some(cookie) = &self.cookie {
            request = request.header("x-ostler-cookie", cookie);
        }
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let body = match body {
            Some(body) => {
                request = request.header("content-type", "application/json");
                body.to_string().into_bytes()
            }
            None => Vec::new(),
        };
        request.body(body).map_err(|e| ClientError::local("protocol", format!("{}{path}: {e}", self.base)))
    }

    fn transport(&self, error: ureq::Error) -> ClientError {
        use std::io::ErrorKind as K;
        let name = &self.name;
        if let Some(why) = self.socket.as_deref().and_then(crate::config::paths::socket_too_long) {
            return ClientError::local("invalid_parameter", format!("{name}: {why}"));
        }
        match error {
            ureq::Error::Io(e) => match e.kind() {
                K::NotFound | K::ConnectionRefused | K::HostUnreachable | K::NetworkUnreachable => {
                    ClientError::local("unreachable", format!("{name}: the daemon is not there: {e}"))
                }
                K::PermissionDenied => ClientError::local("forbidden", format!("{name}: {e}")),
                K::TimedOut | K::WouldBlock => ClientError::local("timeout", format!("{name}: no answer in time")),
                _ => ClientError::local("disconnected", format!("{name}: the connection broke: {e}")),
            },
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => {
                ClientError::local("unreachable", format!("{name}: the daemon is not there: {error}"))
            }
            ureq::Error::Timeout(_) => ClientError::local("timeout", format!("{name}: no answer in time ({error})")),
            ureq::Error::Protocol(_) => {
                ClientError::local("disconnected", format!("{name}: the answer is not whole: {error}"))
            }
            other => ClientError::local("protocol", format!("{name}: {other}")),
        }
    }
}

fn config() -> ureq::config::Config {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .user_agent(concat!("ostler/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(CONNECT))
        // Every request has its own connection: a connection kept over a restart would fail.
        .max_idle_connections(0)
        .build()
}

fn retry_after(answer: &http::Response<ureq::Body>) -> Option<Duration> {
    let text = answer.headers().get(http::header::RETRY_AFTER)?.to_str().ok()?;
    // Bounded: a server must not make its clients wait for a day.
    text.parse().ok().map(|s: u64| Duration::from_secs(s.min(300)))
}

fn refusal(status: u16, body: &Value, retry_after: Option<Duration>) -> ClientError {
    let field = |name: &str| body.pointer(&format!("/error/{name}")).and_then(Value::as_str).map(str::to_owned);
    ClientError {
        code: field("code").unwrap_or_else(|| format!("http_{status}")),
        message: field("message").unwrap_or_else(|| format!("the server answered {status}")),
        status,
        retry_after,
    }
}

/// Events as they come. Ends with `None` when the server closes the stream, and after an error.
pub struct EventStream {
    reader: Box<dyn Read + Send>,
    parser: SseParser,
    name: String,
    over: bool,
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventStream").field("name", &self.name).field("over", &self.over).finish_non_exhaustive()
    }
}

impl EventStream {
    fn fail(&mut self, code: &str, why: &dyn std::fmt::Display) -> Option<Result<SseEvent, ClientError>> {
        self.over = true;
        Some(Err(ClientError::local(code, format!("{}: the stream broke: {why}", self.name))))
    }
}

impl Iterator for EventStream {
    type Item = Result<SseEvent, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut buffer = [0; 16 << 10];
        loop {
            if self.over {
                return None;
            }
            match self.parser.next_event() {
                Ok(Some(event)) => return Some(Ok(event)),
                Ok(None) => {}
                Err(why) => return self.fail("protocol", &why),
            }
            match self.reader.read(&mut buffer) {
                Ok(0) => self.over = true,
                Ok(n) => self.parser.feed(&buffer[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return self.fail("disconnected", &e),
            }
        }
    }
}

/// The key or id for a name in a command: a UUID is an id, and any other name without a colon gets `local:`.
#[must_use]
pub fn name_to_key(name: &str) -> String {
    // Other spellings of a UUID (`urn:uuid:…`, `{…}`) could be keys.
    match uuid::Uuid::try_parse(name) {
        Ok(id) if matches!(name.len(), 32 | 36) => id.to_string(),
        _ if name.contains(':') => name.to_owned(),
        _ => format!("local:{name}"),
    }
}

/// The path of a session's resource: `session_path("local:a", "/events?after=0")`. The name is a key or an id.
#[must_use]
pub fn session_path(key: &str, rest: &str) -> String {
    format!("/v1/sessions/{}{rest}", segment(key))
}

/// One segment of a path, or one value of a query, percent-encoded.
#[must_use]
pub fn segment(text: &str) -> String {
    match text {
        // A segment of dots alone would mean the parent or the same directory.
        "." | ".." => text.replace('.', "%2E"),
        _ => utf8_percent_encode(text, SEGMENT).to_string(),
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
