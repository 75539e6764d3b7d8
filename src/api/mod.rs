//! The HTTP surface: routes, JSON, event streams, who may come in. It reads requests and asks the house; it decides nothing
//! about sessions, and holds no truth.

use std::io;
use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};
use subtle::ConstantTimeEq as _;

use crate::config::{self, Config};
use crate::daemon::delivery::Delivery;
use crate::daemon::house::House;
use crate::http::{Handler, Head, Peer, Request, Responder, Response, Server};

mod error;
mod events;
mod hooks;
mod messages;
mod metrics;
mod route;
mod sessions;
mod status;

pub use error::ApiError;

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
/// It cannot be read, or is empty: a text that names the file.
pub fn token(config: &Config) -> Result<Option<Token>, String> {
    let Some(file) = config.http.as_ref().and_then(|h| h.token_file.as_ref()) else { return Ok(None) };
    let file = config::paths::secret_file(file, config, &config::paths::process_env);
    let text = std::fs::read_to_string(&file).map_err(|e| format!("http.token_file: {}: {e}", file.display()))?;
    let text = text.trim();
    if text.is_empty() {
        return Err(format!("http.token_file: {}: it is empty", file.display()));
    }
    Ok(Some(Token(text.as_bytes().to_vec())))
}

/// The API.
pub struct Api {
    house: Arc<House>,
    token: Option<Token>,
    delivery: Delivery,
    group: bool,
    server: OnceLock<std::sync::Weak<Server>>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Api")
    }
}

impl Api {
    /// Over a house.
    #[must_use]
    pub fn new(house: Arc<House>, token: Option<Token>, delivery: Delivery) -> Self {
        // As a service, the socket's group decides; elsewhere only its owner and root come in.
        let group = std::env::var_os("RUNTIME_DIRECTORY").is_some() || std::env::var_os("LISTEN_FDS").is_some();
        Self { house, token, delivery, group, server: OnceLock::new() }
    }

    /// The server stands; its numbers can be shown.
    pub fn enter(&self, server: &Arc<Server>) {
        let _ = self.server.set(Arc::downgrade(server));
    }

    fn admit(&self, head: &Head, peer: &Peer) -> Result<(), ApiError> {
        match peer {
            Peer::Unix { uid, .. } => {
                let own = rustix::process::geteuid().as_raw();
                if self.group || *uid == 0 || *uid == own {
                    Ok(())
                } else {
                    Err(ApiError::refused("this socket is its owner's"))
                }
            }
            Peer::Tcp(_) => {
                self.admit_page(head)?;
                let Some(token) = &self.token else { return Ok(()) };
                let given = head.header("authorization").and_then(|a| a.strip_prefix("Bearer ")).unwrap_or_default();
                if bool::from(given.as_bytes().ct_eq(&token.0)) { Ok(()) } else { Err(ApiError::unauthorized()) }
            }
        }
    }

    /// A web page must not drive the daemon: neither by its origin, nor by a name that it made point here.
    fn admit_page(&self, head: &Head) -> Result<(), ApiError> {
        let host = head.header("host").unwrap_or_default();
        if let Some(origin) = head.header("origin")
            && origin.strip_prefix("http://") != Some(host)
        {
            return Err(ApiError::origin());
        }
        if self.token.is_some() {
            return Ok(());
        }
        let name =
            host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(host, |(n, _)| n);
        let local = name.eq_ignore_ascii_case("localhost")
            || name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if local { Ok(()) } else { Err(ApiError::origin()) }
    }
}

impl Handler for Api {
    fn gate(&self, head: &Head, peer: &Peer) -> Option<Response> {
        self.admit(head, peer).err().map(|e| e.response())
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

/// A JSON object from a body.
fn body(request: &Request) -> Result<Value, ApiError> {
    if request.body.is_empty() {
        return Ok(json!({}));
    }
    match serde_json::from_slice(&request.body) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(ApiError::new(400, "invalid_json", "the body is not a JSON object")),
        Err(e) => Err(ApiError::new(400, "invalid_json", format!("the body is not JSON: {e}"))),
    }
}
