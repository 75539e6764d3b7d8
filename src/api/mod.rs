//! The HTTP surface: routes, JSON, event streams, who may come in. It reads requests, asks the [`service`](crate::service)
//! and prints the answer; it decides nothing about sessions, and holds no truth.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::json;
use subtle::ConstantTimeEq as _;

use crate::config::{self, Config};
use crate::http::{Handler, Head, Listener, Peer, Request, Responder, Response, Server};
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

/// What a request is answered with.
type Answer = Result<Response, ApiError>;

/// A token of fewer bytes is soon guessed by whoever can reach the listener: it is refused.
const LEAST_TOKEN: usize = 8;
/// One of fewer bytes is taken, for the sake of those that are in use, and warned of.
const SAFE_TOKEN: usize = 16;

/// The bearer token of the TCP listener.
#[derive(Clone)]
pub struct Token(Vec<u8>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// Reads the token's file, where one is configured.
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

/// A unix socket, and which group it is for.
#[derive(Debug)]
struct Socket {
    /// Its file; `None` for a TCP listener, and for a socket that has none.
    path: Option<PathBuf>,
    /// The group when its file was last seen.
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

    /// The group that may write to its file, as it is now; as it was when the file is gone.
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
    server: OnceLock<std::sync::Weak<Server>>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Api")
    }
}

impl Api {
    /// Over the service, behind these listeners.
    #[must_use]
    pub fn new(service: Arc<Service>, token: Option<Token>, listeners: &[Listener]) -> Self {
        let sockets = listeners.iter().map(Socket::of).collect();
        Self { service, token, sockets, server: OnceLock::new() }
    }

    /// The server stands; its numbers can be shown.
    pub fn enter(&self, server: &Arc<Server>) {
        let _ = self.server.set(Arc::downgrade(server));
    }

    /// Who asks.
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
        match self.agent(peer) {
            Some(session_id) => {
                // One whose session is not known here is nobody's.
                let Ok(key) = self.service.key_of(session_id) else { return Ok(()) };
                if route::agent_may(head, session_id, &key) { Ok(()) } else { Err(ApiError::agent()) }
            }
            None => Ok(()),
        }
    }

    /// The session of whose agent the peer is a process. Agents run as the daemon's own user: nobody else is one.
    fn agent<'p>(&self, peer: &'p Peer) -> Option<&'p str> {
        let Peer::Unix { uid, pid: Some(pid), note, .. } = peer else { return None };
        if *uid != rustix::process::geteuid().as_raw() || !crate::proc::any_made() {
            return None;
        }
        let look = || crate::proc::origin::agent_of_boot(u32::try_from(*pid).ok()?, self.service.boot_id());
        note.get_or_init(look).as_deref()
    }
}

impl Handler for Api {
    fn gate(&self, head: &Head, peer: &Peer) -> Option<Response> {
        if let Err(e) = self.admit(head, peer) {
            return Some(e.response());
        }
        // Nobody's body is read for a path that is not there; without one the connection may go on after the answer.
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
