//! The login of an agent: by the method that the configuration names, else by one whose variables are all set.
//!
//! It must not know what a method does. One that is made for a terminal is not asked of the agent.

use std::time::Instant;

use super::client::Client;
use super::session::explain;
use super::wire::v1;
use crate::agent::json::Raw;
use crate::agent::{Failure, Host, one_line};

/// The most methods, and the most variables of each.
const MANY: usize = 50;
/// The longest id of a method that is shown, in bytes.
const NAME: usize = 200;

/// A login method that an agent offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Method {
    id: String,
    /// It is done by a person, in a terminal.
    terminal: bool,
    /// The variables that it takes; empty: other means.
    variables: Vec<String>,
}

/// The methods in the answer to [`v1::INITIALIZE`].
pub fn read(answer: Raw<'_>) -> Vec<Method> {
    let method = |method: Raw<'_>| {
        let [id, kind, vars, name] = method.fields(["id", "type", "vars", "varName"]);
        let id = id.string().filter(|id| !id.is_empty() && id.len() <= NAME)?;
        let mut variables: Vec<String> = vars.items(MANY).into_iter().filter_map(|v| v.get("name").string()).collect();
        variables.extend(name.string());
        let kind = kind.string();
        if kind.as_deref() != Some("env_var") {
            variables.clear();
        }
        Some(Method { id, terminal: kind.as_deref() == Some("terminal"), variables })
    };
    answer.get("authMethods").items(MANY).into_iter().filter_map(method).collect()
}

/// The method to use for an agent that wants a login, if one can be used without a person.
pub fn by_variables<'m>(methods: &'m [Method], is_set: &dyn Fn(&str) -> bool) -> Option<&'m str> {
    let all_set = |m: &&Method| !m.terminal && !m.variables.is_empty() && m.variables.iter().all(|v| is_set(v));
    methods.iter().find(all_set).map(|m| m.id.as_str())
}

/// Whether the agent can be told to use a method.
///
/// # Errors
/// `agent_option`: it has no such method, or one for a terminal.
pub fn check(methods: &[Method], wanted: &str) -> Result<(), Failure> {
    match methods.iter().find(|m| m.id == wanted) {
        Some(method) if method.terminal => {
            let why = format!("the login method {wanted:?} is for a terminal: use it there once, as the daemon's user");
            Err(Failure::new("agent_option", why))
        }
        Some(_) => Ok(()),
        None => {
            let all: Vec<String> = methods.iter().map(|m| one_line(&m.id, NAME)).collect();
            let all = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
            Err(Failure::new("agent_option", format!("there is no login method {wanted:?}, only: {all}")))
        }
    }
}

/// Tells the agent to log in by a method.
///
/// # Errors
/// `auth_required`: it refuses; else it died, or did not answer in time.
pub fn log_in(client: &mut Client, host: &mut dyn Host, method: &str, until: Instant) -> Result<(), Failure> {
    log::info!("{}: the agent is told to log in by {method:?}", host.identity().key);
    let answer = client.call(host, (v1::AUTHENTICATE, &v1::authenticate(method)), until, &mut |_, _| {});
    answer.map(|_| ()).map_err(|e| {
        let refused = matches!(e, super::client::CallError::Refused(_));
        let failure = explain(client, host, v1::AUTHENTICATE, e);
        if refused { Failure { code: "auth_required", ..failure } } else { failure }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn which_method_is_used() {
        let answer = json!({ "authMethods": [
            { "id": "browser", "name": "A browser" },
            { "id": "login", "type": "terminal", "vars": [{ "name": "A" }] },
            { "id": "two", "type": "env_var", "vars": [{ "name": "A" }, { "name": "B" }] },
            { "id": "one", "type": "env_var", "varName": "C" },
            { "name": "no id" }, 7,
        ] });
        let methods = read(Raw::of(&answer.to_string()));
        assert_eq!(methods.len(), 4);
        let of = |set: &[&str]| by_variables(&methods, &|name| set.contains(&name)).map(str::to_owned);
        assert_eq!(of(&["A"]), None);
        assert_eq!(of(&["A", "B", "C"]).as_deref(), Some("two"));
        assert_eq!(of(&["C"]).as_deref(), Some("one"));
        assert_eq!(check(&methods, "browser"), Ok(()));
        assert!(check(&methods, "login").unwrap_err().message.contains("for a terminal"));
        let unknown = check(&methods, "x").unwrap_err();
        assert_eq!(unknown.code, "agent_option");
        assert_eq!(unknown.message, "there is no login method \"x\", only: browser, login, two, one");
        assert!(check(&[], "x").unwrap_err().message.ends_with("only: none"));
    }
}
