//! The HTTP surface: routes, JSON, event streams, access control. It parses requests, calls the
//! [`service`](crate::service) and prints the answers; it makes no decisions about sessions and keeps no state of them.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::json;
use subtle::ConstantTimeEq as _;

use crate::config::{self, Config};
use crate::http::{Handler, Head, Listener, Peer, Request, Responder, Response, Server};
use crate::proc::origin::{self, Origin};
use crate::service::Service;

mod access;
mod bodies;
mod error;
mod events;
mod hooks;
mod messages;
mod metrics;
mod route;
mod sessions;
mod status;

use access::{Caller, Marks};
pub use error::ApiError;

/// The answer to a request.
type Answer = Result<Response, ApiError>;

/// A shorter token, in bytes, is refused: it is too easy to guess.
const LEAST_TOKEN: usize = 8;
/// A shorter token, in bytes, is accepted with a warning, because such tokens are in use.
const SAFE_TOKEN: usize = 16;
/// The session of a process of the daemon's user that is gone or cannot be followed: it is treated as an agent's.
const UNKNOWN: &str = "";
/// The header in which such a process shows the cookie.
const COOKIE_HEADER: &str = "x-ostler-cookie";

/// The bearer token of the TCP listener.
#[derive(Clone)]
pub struct Token(Vec<u8>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// Reads the token's file, if one is configured.
///
/// # Errors
/// It cannot be read, is empty or far too short: a text that names the file.
pub fn token(config: &Config) -> Result<Option<Token>, String> {
    let Some(file) = config.http.as_ref().and_then(|h| h.token_file.as_ref()) else { return Ok(None) };
    let file = config::paths::secret_file(file, config, &config::paths::process_env);
    let text = config::bounded::secret(&file).map_err(|e| format!("http.token_file: {}: {e}", file.display()))?;
    if text.len() < LEAST_TOKEN {
        let why = format!("a token of {} bytes is soon guessed; at least {LEAST_TOKEN} are needed", text.len());
        return Err(format!("http.token_file: {}: {why}, better {SAFE_TOKEN}", file.display()));
    }
    if text.len() < SAFE_TOKEN {
        log::warn!(
            "http.token_file: {}: the token is short; one of at least {SAFE_TOKEN} bytes is better",
            file.display()
        );
    }
    Ok(Some(Token(text.into_bytes())))
}

/// A unix socket, and the group that may use it.
#[derive(Debug)]
struct Socket {
    /// Its file; `None` for a TCP listener and for a socket without a file.
    path: Option<PathBuf>,
    /// The group at the last check of its file.
    group: Mutex<Option<u32>>,
}

impl Socket {
    fn of(listener: &Listener) -> Self {
        let path = match listener {
            Listener::Unix(unix) => unix.local_addr().ok().and_then(|a| a.as_pathname().map(Path::to_path_buf)),
            Listener::Tcp(_) => None,
        };
        let socket = Self { path, group: Mutex::default() };
        let _seen = socket.group();
        socket
    }

    /// The group that may write to its file now, or at the last check if the file is gone.
    fn group(&self) -> Option<u32> {
        let mut known = self.group.lock().unwrap_or_else(PoisonError::into_inner);
        let meta = self.path.as_ref().and_then(|p| std::fs::metadata(p).ok()).filter(|m| m.file_type().is_socket());
        if let Some(meta) = meta {
            *known = (meta.mode() & 0o020 != 0).then(|| meta.gid());
        }
        *known
    }
}

/// The API.
pub struct Api {
    service: Arc<Service>,
    token: Option<Token>,
    sockets: Vec<Socket>,
    /// What programs of the daemon's user show; `None`: it could not be written.
    cookie: Option<String>,
    server: OnceLock<std::sync::Weak<Server>>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Api")
    }
}

impl Api {
    /// An API over the service, behind these listeners.
    #[must_use]
    pub fn new(service: Arc<Service>, token: Option<Token>, cookie: Option<String>, listeners: &[Listener]) -> Self {
        let sockets = listeners.iter().map(Socket::of).collect();
        Self { service, token, sockets, cookie, server: OnceLock::new() }
    }

    /// Sets the server, whose numbers can be shown from now on.
    pub fn enter(&self, server: &Arc<Server>) {
        let _ = self.server.set(Arc::downgrade(server));
    }

    /// The caller of a request.
    fn caller(&self, head: &Head, peer: &Peer) -> Caller {
        match (peer, &self.token) {
            (Peer::Unix { uid, gid, groups, listener, .. }, _) => {
                let own = rustix::process::geteuid().as_raw();
                let simple = access::may_connect(*uid, *gid, groups, own, None);
                let group = || self.sockets.get(*listener).and_then(Socket::group);
                if simple || access::may_connect(*uid, *gid, groups, own, group()) {
                    Caller::Member
                } else {
                    Caller::Stranger
                }
            }
            (Peer::Tcp(_), None) => Caller::Local,
            (Peer::Tcp(_), Some(token)) => {
                let given = head.header("authorization").and_then(access::bearer).unwrap_or_default();
                if bool::from(given.as_bytes().ct_eq(&token.0)) { Caller::Bearer } else { Caller::Nobody }
            }
        }
    }

    fn admit(&self, head: &Head, peer: &Peer) -> Result<(), ApiError> {
        let (host, origin, site) = (head.header("host"), head.header("origin"), head.header("sec-fetch-site"));
        access::judge(self.caller(head, peer), &head.path, &Marks { host, origin, site })?;
        let Some(session_id) = self.agent(peer, None) else { return Ok(()) };
        if session_id == UNKNOWN && self.shows_cookie(head) {
            return Ok(());
        }
        // One of a session that is not known, any more or at all, has no conversation that would be its own.
        let key = self.service.key_of(session_id).unwrap_or_default();
        if route::agent_may(head, session_id, &key) { Ok(()) } else { Err(ApiError::agent()) }
    }

    /// The session whose agent the peer's process belongs to, or [`UNKNOWN`]. Only the daemon's own user can be an agent. It is
    /// looked at once for a connection, by its socket.
    fn agent<'p>(&self, peer: &'p Peer, socket: Option<BorrowedFd<'_>>) -> Option<&'p str> {
        let Peer::Unix { uid, pid, note, .. } = peer else { return None };
        if *uid != rustix::process::geteuid().as_raw() {
            return None;
        }
        let look = || {
            let state_id = crate::proc::mark::own_state().unwrap_or_default();
            match socket.map(|s| origin::of_peer(s, *pid, self.service.boot_id(), state_id)) {
                Some(Origin::Outside) => None,
                Some(Origin::Agent(session_id)) => Some(session_id),
                Some(Origin::Unknown) | None => Some(UNKNOWN.to_owned()),
            }
        };
        note.get_or_init(look).as_deref()
    }

    /// Whether a request shows what only the daemon's user can read, and no confined agent.
    fn shows_cookie(&self, head: &Head) -> bool {
        let given = head.header(COOKIE_HEADER).unwrap_or_default();
        self.cookie.as_ref().is_some_and(|cookie| bool::from(given.as_bytes().ct_eq(cookie.as_bytes())))
    }
}

impl Handler for Api {
    fn meet(&self, peer: &Peer, socket: BorrowedFd<'_>) {
        let _known = self.agent(peer, Some(socket));
    }

    fn gate(&self, head: &Head, peer: &Peer) -> Option<Response> {
        if let Err(e) = self.admit(head, peer) {
            return Some(e.response());
        }
        // For an unknown path the body is not read; without a body the connection may go on after the answer.
        let has_body =
            head.header("content-length").is_some_and(|n| n != "0") || head.header("transfer-encoding").is_some();
        if has_body { route::unknown(head) } else { None }
    }

    fn body_limit(&self, head: &Head) -> u64 {
        bodies::limit(&head.path)
    }

    fn handle(&self, request: Request, out: Responder<'_>) -> io::Result<()> {
        route::handle(self, &request, out)
    }

    fn error(&self, status: u16, what: &str) -> Response {
        let code = match status {
            405 => "method_not_allowed",
            413 => "too_large",
            503 => "overloaded",
            500 => "internal",
            _ => "invalid_parameter",
        };
        Response::json(status, &json!({ "error": { "code": code, "message": what } }))
    }
}
