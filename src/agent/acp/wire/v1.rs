//! Version 1 of the protocol: the names of its methods and the shapes of what is sent.
//!
//! Typed by the protocol's own crate, so that another version can stand beside it. What an agent sends is read field by
//! field ([`Raw`](crate::agent::json::Raw)) where it chooses the size: a typed read copies a tool call's raw fields into
//! trees, and one bad field would lose the rest.

use agent_client_protocol_schema::{ProtocolVersion, v1};
use serde::Serialize;
use serde_json::{Value, json};

use crate::agent::PermissionOutcome;
use crate::config::McpServer;
use crate::model::offers::{Change, Pick};

/// The version.
pub const VERSION: u64 = 1;

pub const INITIALIZE: &str = v1::AGENT_METHOD_NAMES.initialize;
pub const AUTHENTICATE: &str = v1::AGENT_METHOD_NAMES.authenticate;
/// Asks for a new session.
pub const NEW: &str = v1::AGENT_METHOD_NAMES.session_new;
pub const LOAD: &str = v1::AGENT_METHOD_NAMES.session_load;
pub const RESUME: &str = v1::AGENT_METHOD_NAMES.session_resume;
pub const LIST: &str = v1::AGENT_METHOD_NAMES.session_list;
pub const CLOSE: &str = v1::AGENT_METHOD_NAMES.session_close;
pub const PROMPT: &str = v1::AGENT_METHOD_NAMES.session_prompt;
pub const CANCEL: &str = v1::AGENT_METHOD_NAMES.session_cancel;
pub const UPDATE: &str = v1::CLIENT_METHOD_NAMES.session_update;
pub const REQUEST_PERMISSION: &str = v1::CLIENT_METHOD_NAMES.session_request_permission;

/// Changes the model of agents that have models beside their options; the protocol has no such method any more.
const SET_MODEL: &str = "session/set_model";

/// A request: method and parameters.
pub type Call = (&'static str, Value);

/// What a session is set up with.
#[derive(Clone, Debug, Default)]
pub struct Setup<'a> {
    /// The working directory.
    pub cwd: &'a str,
    /// Servers of tools, by name.
    pub servers: Vec<(&'a str, &'a McpServer)>,
    /// Instructions that are added to the agent's own; empty: none.
    pub instructions: &'a str,
}

impl Setup<'_> {
    fn servers(&self) -> Vec<v1::McpServer> {
        let server = |(name, server): &(&str, &McpServer)| match server.command.split_first() {
            Some((program, args)) => {
                let env = server.env.iter().map(|(name, value)| v1::EnvVariable::new(name.clone(), value.clone()));
                let stdio = v1::McpServerStdio::new((*name).to_owned(), program);
                v1::McpServer::Stdio(stdio.args(args.to_vec()).env(env.collect()))
            }
            None => {
                let headers =
                    server.headers.iter().map(|(name, value)| v1::HttpHeader::new(name.clone(), value.clone()));
                let http = v1::McpServerHttp::new((*name).to_owned(), server.url.clone());
                v1::McpServer::Http(http.headers(headers.collect()))
            }
        };
        self.servers.iter().map(server).collect()
    }

    fn instructions(&self) -> Option<v1::SystemPrompt> {
        let text = Some(self.instructions).filter(|text| !text.is_empty())?;
        Some(v1::SystemPrompt::new(vec![v1::ContentBlock::from(text)]))
    }
}

/// Parameters, or a result. None of them can fail to be written: no map has keys that are no strings.
fn value(of: &impl Serialize) -> Value {
    serde_json::to_value(of).unwrap_or_default()
}

/// The parameters of [`INITIALIZE`].
pub fn initialize() -> Value {
    let info = v1::Implementation::new("ostler", env!("CARGO_PKG_VERSION")).title("ostler".to_owned());
    let switches = v1::SessionConfigOptionsCapabilities::new().boolean(v1::BooleanConfigOptionCapabilities::new());
    let session = v1::ClientSessionCapabilities::new().config_options(switches);
    let capabilities = v1::ClientCapabilities::new().session(session);
    value(&v1::InitializeRequest::new(ProtocolVersion::V1).client_capabilities(capabilities).client_info(info))
}

/// The parameters of [`AUTHENTICATE`].
pub fn authenticate(method: &str) -> Value {
    value(&v1::AuthenticateRequest::new(method.to_owned()))
}

/// The parameters of [`NEW`].
pub fn new(setup: &Setup<'_>) -> Value {
    let request = v1::NewSessionRequest::new(setup.cwd);
    value(&request.mcp_servers(setup.servers()).system_prompt(setup.instructions()))
}

/// The parameters of [`LOAD`].
pub fn load(session: &str, setup: &Setup<'_>) -> Value {
    let request = v1::LoadSessionRequest::new(session.to_owned(), setup.cwd);
    value(&request.mcp_servers(setup.servers()).system_prompt(setup.instructions()))
}

/// The parameters of [`RESUME`].
pub fn resume(session: &str, setup: &Setup<'_>) -> Value {
    let request = v1::ResumeSessionRequest::new(session.to_owned(), setup.cwd);
    value(&request.mcp_servers(setup.servers()).system_prompt(setup.instructions()))
}

/// The request that makes a change in a session.
pub fn change(session: &str, change: &Change) -> Call {
    let names = v1::AGENT_METHOD_NAMES;
    match change {
        Change::Mode(mode) => {
            (names.session_set_mode, value(&v1::SetSessionModeRequest::new(session.to_owned(), mode.clone())))
        }
        Change::Model(model) => (SET_MODEL, json!({ "sessionId": session, "modelId": model })),
        Change::Setting(id, pick) => {
            let pick = match pick {
                Pick::Switch(on) => v1::SessionConfigOptionValue::boolean(*on),
                Pick::Value(value) => v1::SessionConfigOptionValue::value_id(value.clone()),
            };
            let request = v1::SetSessionConfigOptionRequest::new(session.to_owned(), id.clone(), pick);
            (names.session_set_config_option, value(&request))
        }
    }
}

/// The parameters of [`LIST`]: of a directory, or all, from a page on.
pub fn list(cwd: Option<&str>, cursor: Option<&str>) -> Value {
    let mut request = v1::ListSessionsRequest::new();
    (request.cwd, request.cursor) = (cwd.map(Into::into), cursor.map(str::to_owned));
    value(&request)
}

/// The parameters of [`CLOSE`].
pub fn close(session: &str) -> Value {
    value(&v1::CloseSessionRequest::new(session.to_owned()))
}

/// The parameters of [`CANCEL`].
pub fn cancel(session: &str) -> Value {
    value(&v1::CancelNotification::new(session.to_owned()))
}

/// The parameters of [`PROMPT`], a block for each text.
pub fn prompt(session: &str, texts: Vec<String>) -> Value {
    let blocks = texts.into_iter().map(v1::ContentBlock::from).collect();
    value(&v1::PromptRequest::new(session.to_owned(), blocks))
}

/// The answer to [`REQUEST_PERMISSION`].
pub fn permission(outcome: &PermissionOutcome) -> Value {
    value(&v1::RequestPermissionResponse::new(match outcome {
        PermissionOutcome::Selected(option) => {
            v1::RequestPermissionOutcome::Selected(v1::SelectedPermissionOutcome::new(option.clone()))
        }
        PermissionOutcome::Cancelled => v1::RequestPermissionOutcome::Cancelled,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_sent() {
        let capabilities = json!({ "fs": { "readTextFile": false, "writeTextFile": false }, "terminal": false });
        let sent = initialize();
        assert_eq!((&sent["protocolVersion"], &sent["clientInfo"]["name"]), (&json!(1), &json!("ostler")));
        for (name, offered) in capabilities.as_object().into_iter().flatten() {
            assert_eq!(&sent["clientCapabilities"][name], offered);
        }
        let bare = Setup { cwd: "/w", ..Setup::default() };
        assert_eq!(new(&bare), json!({ "cwd": "/w", "mcpServers": [] }));
        assert_eq!(load("s", &bare), json!({ "mcpServers": [], "cwd": "/w", "sessionId": "s" }));
        assert_eq!(resume("s", &bare), json!({ "sessionId": "s", "cwd": "/w" }));
        assert_eq!(sent["clientCapabilities"]["session"], json!({ "configOptions": { "boolean": {} } }));
        assert_eq!(authenticate("a"), json!({ "methodId": "a" }));
        assert_eq!(list(Some("/w"), None), json!({ "cwd": "/w" }));
        assert_eq!(list(None, Some("c")), json!({ "cursor": "c" }));
        assert_eq!((close("s"), cancel("s")), (json!({ "sessionId": "s" }), json!({ "sessionId": "s" })));
        let blocks = json!([{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }]);
        assert_eq!(prompt("s", vec!["a".into(), "b".into()]), json!({ "sessionId": "s", "prompt": blocks }));
        let selected = json!({ "outcome": { "outcome": "selected", "optionId": "a" } });
        assert_eq!(permission(&PermissionOutcome::Selected("a".into())), selected);
        let cancelled = json!({ "outcome": { "outcome": "cancelled" } });
        assert_eq!(permission(&PermissionOutcome::Cancelled), cancelled);
    }

    #[test]
    fn what_a_session_is_set_up_with() {
        let local = McpServer {
            command: vec!["my-mcp".into(), "-r".into()],
            env: [("A".to_owned(), "b".to_owned())].into(),
            ..McpServer::default()
        };
        let headers = [("X".to_owned(), "y".to_owned())].into();
        let remote = McpServer { url: "http://h".into(), headers, ..McpServer::default() };
        let setup = Setup { cwd: "/w", servers: vec![("l", &local), ("r", &remote)], instructions: "Be brief." };
        let servers = json!([
            { "name": "l", "command": "my-mcp", "args": ["-r"], "env": [{ "name": "A", "value": "b" }] },
            { "type": "http", "name": "r", "url": "http://h", "headers": [{ "name": "X", "value": "y" }] },
        ]);
        for sent in [new(&setup), load("s", &setup), resume("s", &setup)] {
            assert_eq!(sent["mcpServers"], servers);
            let told = json!({ "mode": "append", "content": [{ "type": "text", "text": "Be brief." }] });
            assert_eq!(sent["systemPrompt"], told);
        }
    }

    #[test]
    fn how_a_choice_is_sent() {
        let option = |pick| change("s", &Change::Setting("o".into(), pick)).1;
        for (sent, want) in [
            (change("s", &Change::Mode("m".into())).1, json!({ "sessionId": "s", "modeId": "m" })),
            (change("s", &Change::Model("m".into())).1, json!({ "sessionId": "s", "modelId": "m" })),
            (option(Pick::Value("v".into())), json!({ "sessionId": "s", "configId": "o", "value": "v" })),
            (
                option(Pick::Switch(true)),
                json!({ "sessionId": "s", "configId": "o", "type": "boolean", "value": true }),
            ),
        ] {
            assert_eq!(sent, want);
        }
    }
}
