//! The errors of the API: a status, a code that stays, a text for people.

use serde_json::json;

use crate::http::Response;
use crate::service::Fault;

/// An error on its way to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    status: u16,
    code: &'static str,
    message: String,
}

impl ApiError {
    /// Any.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// Its code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        self.code
    }

    /// 403 by a rule of access or a hook.
    pub fn refused(why: impl Into<String>) -> Self {
        Self::new(403, "refused", why)
    }

    /// 403 for an agent's own process.
    #[must_use]
    pub fn agent() -> Self {
        Self::new(403, "agent", "an agent's own process may read its own conversation and send to it, and no more")
    }

    /// 401.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::new(401, "unauthorized", "a valid bearer token is needed")
    }

    /// 403 for what a web page sent, or may have.
    pub fn origin(why: impl Into<String>) -> Self {
        Self::new(403, "forbidden_origin", why)
    }

    /// 404 for a path.
    #[must_use]
    pub fn not_found() -> Self {
        Self::new(404, "not_found", "no such resource")
    }

    /// 400 for a parameter.
    pub fn parameter(what: impl Into<String>) -> Self {
        Self::new(400, "invalid_parameter", what)
    }

    /// As an answer.
    #[must_use]
    pub fn response(&self) -> Response {
        let answer = Response::json(self.status, &json!({ "error": { "code": self.code, "message": self.message } }));
        match (self.status, self.code) {
            (401, _) => answer.header("WWW-Authenticate", "Bearer"),
            (503 | 429, _) => answer.header("Retry-After", "1"),
            _ => answer,
        }
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Fault> for ApiError {
    fn from(fault: Fault) -> Self {
        let code = fault.code();
        let status = match code {
            "invalid_parameter" | "invalid_key" | "invalid_text" => 400,
            "refused" => 403,
            "not_found" | "session_not_found" => 404,
            "not_current" | "ended" | "conflict" | "resolved" => 409,
            "invalid_config" | "id_reused" => 422,
            "queue_full" => 429,
            _ => 503,
        };
        Self::new(status, code, fault.to_string())
    }
}
