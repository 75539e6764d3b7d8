//! `ostler.session(key)` and `ev:transcript{}`: what scripts see of conversations.

use std::sync::Arc;

use mlua::{Function, Lua, Table, Value};
use uuid::Uuid;

use super::json::{Null, to_lua};
use super::{Args, Context, ScriptError, function, integer};
use crate::hooks::lock;
use crate::model::event::Entry;

/// Entries in one answer, unless a script says otherwise.
const LIMIT: i64 = 1000;
/// Entries in one answer, at most.
const MOST: i64 = 10_000;

/// `after` and `limit` of a transcript call.
fn bounds(args: &Args, at: usize) -> Result<(i64, usize), ScriptError> {
    let options = args.options(at, &["after", "limit"])?;
    let field = |name: &str| -> Result<Option<i64>, ScriptError> {
        match options.as_ref().map(|o| o.raw_get::<Value>(name)).transpose()? {
            None | Some(Value::Nil) => Ok(None),
            Some(v) => integer(&v, name).map(Some),
        }
    };
    let limit = field("limit")?.unwrap_or(LIMIT);
    if !(1..=MOST).contains(&limit) {
        return Err(ScriptError::text(format!("limit: 1 to {MOST} expected, got {limit}")));
    }
    Ok((field("after")?.unwrap_or(0), usize::try_from(limit).unwrap_or(0)))
}

/// Transcript entries as a Lua array.
///
/// # Errors
/// Lua has no memory left.
pub fn entries(lua: &Lua, entries: &[Entry]) -> mlua::Result<Table> {
    let list = lua.create_table_with_capacity(entries.len(), 0)?;
    for entry in entries {
        let row = lua.create_table()?;
        row.raw_set("seq", entry.seq)?;
        row.raw_set("turn_id", entry.turn_id.as_deref())?;
        row.raw_set("role", entry.role.as_str())?;
        row.raw_set("text", entry.text.as_str())?;
        row.raw_set("at", crate::clock::rfc3339(entry.at))?;
        list.raw_push(row)?;
    }
    Ok(list)
}

/// `ev:transcript{}`, bounded by where the session stood.
///
/// # Errors
/// Lua has no memory left.
pub fn transcript_method(
    lua: &Lua,
    guard: &Function,
    context: &Arc<Context>,
    session_id: String,
    upto: i64,
) -> mlua::Result<Function> {
    let c = Arc::clone(context);
    function(lua, guard, "transcript", move |lua, args| {
        let (after, limit) = bounds(&args, 1)?;
        let found = c.host()?.transcript(&session_id, after, limit, Some(upto))?;
        Ok(entries(lua, &found)?)
    })
}

/// The id of a message for which the script names none: the same in every delivery of one event.
fn default_id(context: &Context, key: &str) -> String {
    let mut call = lock(&context.call);
    let nth = {
        let sent = call.sent.entry(key.to_owned()).or_default();
        *sent += 1;
        *sent
    };
    let name = format!("{}\n{}\n{key}\n{nth}", call.event_id, call.label);
    format!("hook-{}", Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()))
}

/// `ostler.session`.
///
/// # Errors
/// Lua has no memory left.
pub fn constructor(lua: &Lua, guard: &Function, context: &Arc<Context>) -> mlua::Result<Function> {
    let (g, c) = (guard.clone(), Arc::clone(context));
    function(lua, guard, "session", move |lua, args| {
        let key = args.text(0, "key")?;
        let session = lua.create_table()?;
        session.raw_set("key", key.as_str())?;
        let (k, x) = (key.clone(), Arc::clone(&c));
        session.raw_set(
            "send",
            function(lua, &g, "session:send", move |lua, args| {
                let text = args.text(1, "text")?;
                let options = args.options(2, &["id"])?;
                let id = match options.map(|o| o.raw_get::<Value>("id")).transpose()? {
                    None | Some(Value::Nil) => default_id(&x, &k),
                    Some(v) => super::text(&v, "id")?,
                };
                Ok(to_lua(lua, &x.host()?.send(&k, &text, Some(&id))?, Null::Absent)?)
            })?,
        )?;
        let (k, x) = (key.clone(), Arc::clone(&c));
        session.raw_set(
            "info",
            function(lua, &g, "session:info", move |lua, _| match x.host()?.session_info(&k)? {
                Some(json) => Ok(to_lua(lua, &json, Null::Absent)?),
                None => Ok(Value::Nil),
            })?,
        )?;
        let (k, x) = (key, Arc::clone(&c));
        session.raw_set(
            "transcript",
            function(lua, &g, "session:transcript", move |lua, args| {
                let (after, limit) = bounds(&args, 1)?;
                let Some(info) = x.host()?.session_info(&k)? else { return Ok(lua.create_table()?) };
                let Some(id) = info.get("id").and_then(|id| id.as_str()) else {
                    return Err(ScriptError::text("the session has no id"));
                };
                Ok(entries(lua, &x.host()?.transcript(id, after, limit, None)?)?)
            })?,
        )?;
        Ok(session)
    })
}
