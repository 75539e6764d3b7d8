//! Which request is answered by whom. A key is one percent-encoded path segment.

use std::io;

use percent_encoding::percent_decode_str;

use super::{Answer, Api, ApiError, events, hooks, messages, metrics, sessions, status};
use crate::http::{Head, Request, Responder, Response};
use crate::model::session::key_error;
use crate::store::Target;

/// The query's parameters, decoded.
pub struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: Option<&str>) -> Result<Self, ApiError> {
        let mut all = Vec::new();
        for pair in text.unwrap_or_default().split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            all.push((decode(&name.replace('+', " "))?, decode(&value.replace('+', " "))?));
        }
        Ok(Self(all))
    }

    /// A parameter's value.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// A switch: `1`, `true` or nothing after its name.
    ///
    /// # Errors
    /// It is neither on nor off.
    pub fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.get(name) {
            None | Some("0" | "false") => Ok(false),
            Some("1" | "true" | "") => Ok(true),
            Some(other) => Err(ApiError::parameter(format!("{name}={other:?}: 0 or 1"))),
        }
    }

    /// A number that is not negative.
    ///
    /// # Errors
    /// It is no such number.
    pub fn number(&self, name: &str) -> Result<Option<i64>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(text) => match text.parse::<i64>() {
                Ok(n) if n >= 0 => Ok(Some(n)),
                _ => Err(ApiError::parameter(format!("{name}={text:?}: not a number from 0"))),
            },
        }
    }
}

fn decode(segment: &str) -> Result<String, ApiError> {
    match percent_decode_str(segment).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err(ApiError::parameter(format!("{segment:?}: it is not UTF-8"))),
    }
}

/// A key or an id, as it stands in a path.
fn target(segment: &str) -> Result<Target, ApiError> {
    let name = decode(segment).map_err(|_| ApiError::new(400, "invalid_key", "it is not UTF-8"))?;
    if let Ok(id) = uuid::Uuid::parse_str(&name) {
        return Ok(Target::Id(id.to_string()));
    }
    match key_error(&name) {
        None => Ok(Target::Key(name)),
        Some(error) => Err(ApiError::new(400, "invalid_key", format!("{name:?}: {error}"))),
    }
}

/// Answers a request.
///
/// # Errors
/// The connection failed.
pub fn handle(api: &Api, request: &Request, out: Responder<'_>) -> io::Result<()> {
    let query = match Query::parse(request.head.query.as_deref()) {
        Ok(query) => query,
        Err(e) => return out.send(e.response()),
    };
    let path = request.head.path.strip_prefix('/').unwrap_or_default();
    let parts: Vec<&str> = path.split('/').collect();
    // What can be got can be asked for its head; the server sends no body then. A stream has no end that a head could tell of.
    let streams = matches!(parts.as_slice(), ["v1", "events"] | ["v1", "sessions", _, "events"]);
    let method = match request.head.method.as_str() {
        "HEAD" if !streams => "GET",
        method => method,
    };
    let streaming = match (method, parts.as_slice()) {
        ("GET", ["v1", "events"]) => Some(None),
        ("GET", ["v1", "sessions", key, "events"]) => Some(Some(*key)),
        _ => None,
    };
    if let Some(key) = streaming {
        return match key.map(target).transpose() {
            Ok(of) => events::stream(api, request, &query, of, out),
            Err(e) => out.send(e.response()),
        };
    }
    if let ("POST", ["v1", "sessions", key, "messages"]) = (method, parts.as_slice()) {
        return match target(key) {
            Ok(to) => messages::post(api, request, &query, to, out),
            Err(e) => out.send(e.response()),
        };
    }
    let answer = answer(api, method, &parts, request, &query);
    out.send(answer.unwrap_or_else(|e| e.response()))
}

fn answer(api: &Api, method: &str, parts: &[&str], request: &Request, query: &Query) -> Answer {
    match (method, parts) {
        ("GET", ["healthz"]) => Ok(status::health(api)),
        ("GET", ["readyz"]) => Ok(status::readiness(api)),
        ("GET", ["metrics"]) => metrics::text(api),
        ("GET", ["v1", "status"]) => status::status(api),
        ("POST", ["v1", "stop"]) => status::stop(api, request),
        ("POST", ["v1", "reload"]) => status::reload(api),
        ("POST", ["v1", "hold"]) => status::hold(api, true),
        ("POST", ["v1", "release"]) => status::hold(api, false),
        ("POST", ["v1", "backup"]) => status::backup(api, request),
        ("GET", ["v1", "reports"]) => status::reports(api),
        ("GET", ["v1", "reports", boot]) => status::report(api, boot, query),
        ("GET", ["v1", "hooks"]) => Ok(hooks::list(api)),
        ("GET", ["v1", "hooks", "failed"]) => hooks::failed(api),
        ("POST", ["v1", "hooks", "fire"]) => hooks::fire(api, request),
        ("POST", ["v1", "hooks", "failed", id, "retry"]) => hooks::retry(api, &decode(id)?),
        ("DELETE", ["v1", "hooks", "failed", id]) => hooks::discard(api, &decode(id)?),
        ("GET", ["v1", "permissions"]) => Ok(sessions::permissions(api)),
        ("GET", ["v1", "processes"]) => Ok(sessions::processes(api)),
        ("GET", ["v1", "sessions"]) => sessions::list(api, query),
        ("GET", ["v1", "sessions", key]) => sessions::show(api, &target(key)?),
        ("DELETE", ["v1", "sessions", key]) => sessions::delete(api, target(key)?, query),
        ("GET", ["v1", "sessions", key, "transcript"]) => sessions::transcript(api, &target(key)?, query),
        ("POST", ["v1", "sessions", key, "cancel"]) => sessions::cancel(api, &target(key)?, query),
        ("POST", ["v1", "sessions", key, "reset"]) => sessions::reset(api, target(key)?),
        ("POST", ["v1", "sessions", key, "suspend"]) => sessions::suspend(api, &target(key)?),
        ("POST", ["v1", "sessions", key, "resume"]) => sessions::resume(api, target(key)?),
        ("POST", ["v1", "sessions", key, "permission"]) => sessions::permission(api, &target(key)?, request),
        (_, parts) => Ok(no_such(parts)),
    }
}

/// The answer to a path that is not there, or that does not take the method.
fn no_such(parts: &[&str]) -> Response {
    match allowed(parts) {
        Some(methods) => {
            let e = ApiError::new(405, "method_not_allowed", format!("this takes {methods}"));
            e.response().header("Allow", methods)
        }
        None => ApiError::not_found().response(),
    }
}

/// The same, told by the head alone; `None` for a request that somebody answers.
pub fn unknown(head: &Head) -> Option<Response> {
    let parts: Vec<&str> = head.path.strip_prefix('/').unwrap_or_default().split('/').collect();
    let takes = allowed(&parts).is_some_and(|methods| methods.split(", ").any(|m| m == head.method));
    (!takes).then(|| no_such(&parts))
}

/// Whether an agent's own process may ask for this: to read its own session (by its key or its id), and to send to it. What
/// it must not do is to answer its own questions, read what others say, or stop the daemon.
pub fn agent_may(head: &Head, session_id: &str, key: &str) -> bool {
    let parts: Vec<&str> = head.path.strip_prefix('/').unwrap_or_default().split('/').collect();
    let own = |segment: &str| match target(segment) {
        Ok(Target::Key(named)) => named == key,
        Ok(Target::Id(named)) => named == session_id,
        Err(_) => false,
    };
    match (head.method.as_str(), parts.as_slice()) {
        ("GET" | "HEAD", ["healthz" | "readyz"]) => true,
        ("GET" | "HEAD", ["v1", "sessions", named] | ["v1", "sessions", named, "transcript" | "events"])
        | ("POST", ["v1", "sessions", named, "messages"]) => own(named),
        _ => false,
    }
}

/// The methods of a path that exists.
fn allowed(parts: &[&str]) -> Option<&'static str> {
    match parts {
        ["healthz" | "readyz" | "metrics"]
        | ["v1", "status" | "reports" | "hooks" | "sessions" | "permissions" | "processes"]
        | ["v1", "reports", _]
        | ["v1", "hooks", "failed"]
        | ["v1", "sessions", _, "transcript"] => Some("GET, HEAD"),
        ["v1", "events"] | ["v1", "sessions", _, "events"] => Some("GET"),
        ["v1", "stop" | "reload" | "hold" | "release" | "backup"]
        | ["v1", "hooks", "fire"]
        | ["v1", "hooks", "failed", _, "retry"]
        | ["v1", "sessions", _, "messages" | "cancel" | "reset" | "suspend" | "resume" | "permission"] => Some("POST"),
        ["v1", "sessions", _] => Some("GET, HEAD, DELETE"),
        ["v1", "hooks", "failed", _] => Some("DELETE"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_reaches_its_own_session_only() {
        let id = "0190c0de-0000-7000-8000-000000000001";
        let own = ["local%3Aa", id, "local:a"];
        let may = |method: &str, path: &str| {
            let head = Head { method: method.into(), path: path.into(), query: None, headers: Vec::new(), minor: 1 };
            agent_may(&head, id, "local:a")
        };
        for name in own {
            for (method, path) in [("GET", ""), ("HEAD", ""), ("GET", "/transcript"), ("GET", "/events")] {
                assert!(may(method, &format!("/v1/sessions/{name}{path}")), "{method} {name}{path}");
            }
            assert!(may("POST", &format!("/v1/sessions/{name}/messages")));
            assert!(!may("DELETE", &format!("/v1/sessions/{name}")));
            for path in ["permission", "cancel", "reset", "suspend", "resume"] {
                assert!(!may("POST", &format!("/v1/sessions/{name}/{path}")), "{path}");
            }
        }
        for name in ["local%3Ab", "0190c0de-0000-7000-8000-000000000002", "a", "%FF", ""] {
            assert!(!may("GET", &format!("/v1/sessions/{name}")), "{name}");
            assert!(!may("POST", &format!("/v1/sessions/{name}/messages")), "{name}");
        }
        for (method, path) in [
            ("GET", "/v1/sessions"),
            ("GET", "/v1/events"),
            ("GET", "/v1/processes"),
            ("GET", "/v1/status"),
            ("GET", "/v1/hooks"),
            ("GET", "/metrics"),
            ("POST", "/v1/stop"),
            ("POST", "/v1/reload"),
            ("POST", "/v1/backup"),
        ] {
            assert!(!may(method, path), "{method} {path}");
        }
        assert!(may("GET", "/healthz") && may("GET", "/readyz"));
    }
}
