//! What a handler's answer means. It is read strictly: a typing error that silently does nothing is worse than a
//! failure.

use mlua::{MultiValue, Table, Value};
use serde_json::Value as Json;

use super::Event;
use super::api::{self, ScriptError};
use crate::model::event::HookEvent;
use crate::model::session::text_error;

/// What a synchronous handler wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Opinion {
    None,
    /// `message`: the text to go on with.
    Rewrite(String),
    /// `message`: the reason.
    Refuse(String),
    /// `before_turn`: what to put before the prompt.
    Context(String),
    /// `permission`: an option's id, `allow` or `deny`.
    Choose(String),
}

/// Reads what a handler of this event returned.
///
/// # Errors
/// It makes no sense for the event.
pub(crate) fn read(event: &Event, values: &MultiValue) -> Result<Opinion, String> {
    let value = values.front().cloned().unwrap_or(Value::Nil);
    if value.is_nil() {
        return Ok(Opinion::None);
    }
    let read = match event.kind {
        HookEvent::Message => message(&value),
        HookEvent::BeforeTurn => before_turn(&value),
        HookEvent::Permission => permission(event, &value),
        // Nothing is made of it: a handler may end in `return ostler.kv.set(…)`.
        _ => Ok(Opinion::None),
    };
    read.map_err(|error| match error {
        ScriptError::Text(why) => format!("returned something that makes no sense for '{}': {why}", event.kind),
        ScriptError::Lua(e) => e.to_string(),
    })
}

fn fields(value: &Value, known: &[&str]) -> Result<Table, ScriptError> {
    let Value::Table(table) = value else { return Err(api::wrong("result", "a table or nil", value)) };
    for pair in table.pairs::<Value, Value>() {
        let (key, _) = pair?;
        let name = api::text(&key, "field")?;
        if !known.contains(&name.as_str()) {
            return Err(ScriptError::text(format!("unknown field '{name}' (known: {})", known.join(", "))));
        }
    }
    Ok(table.clone())
}

fn field(table: &Table, name: &str) -> Result<Option<String>, ScriptError> {
    match table.raw_get::<Value>(name)? {
        Value::Nil => Ok(None),
        value => api::text(&value, name).map(Some),
    }
}

/// What a sender may not send, a handler may not make of it.
fn whole(text: String, name: &str) -> Result<String, ScriptError> {
    match text_error(&text) {
        None => Ok(text),
        Some(error) => Err(ScriptError::text(format!("{name}: {error}"))),
    }
}

fn message(value: &Value) -> Result<Opinion, ScriptError> {
    let table = fields(value, &["text", "refuse"])?;
    match (field(&table, "text")?, field(&table, "refuse")?) {
        (None, None) => Ok(Opinion::None),
        (Some(text), None) if text.trim().is_empty() => Err(ScriptError::text("text: is empty")),
        (Some(text), None) => whole(text, "text").map(Opinion::Rewrite),
        (None, Some(why)) => Ok(Opinion::Refuse(why)),
        (Some(_), Some(_)) => Err(ScriptError::text("either text or refuse")),
    }
}

fn before_turn(value: &Value) -> Result<Opinion, ScriptError> {
    let table = fields(value, &["context"])?;
    Ok(match field(&table, "context")? {
        Some(context) if !context.is_empty() => Opinion::Context(whole(context, "context")?),
        _ => Opinion::None,
    })
}

fn permission(event: &Event, value: &Value) -> Result<Opinion, ScriptError> {
    let choice = api::text(value, "result")?;
    if choice == "allow" || choice == "deny" {
        return Ok(Opinion::Choose(choice));
    }
    let offered: Vec<&str> = event
        .fields
        .get("options")
        .and_then(Json::as_array)
        .map(|options| options.iter().filter_map(|o| o.get("option_id").or(o.get("id"))?.as_str()).collect())
        .unwrap_or_default();
    if offered.contains(&choice.as_str()) {
        return Ok(Opinion::Choose(choice));
    }
    Err(ScriptError::text(format!("'{choice}' is no option (offered: {}; or allow, deny)", offered.join(", "))))
}
