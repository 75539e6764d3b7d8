//! `ostler.kv`: durable values that all scripts share. Each call is one transaction of the store.

use std::sync::Arc;

use mlua::{Function, Lua, Table, Value};

use super::json::{Null, from_lua, to_lua};
use super::{Context, ScriptError, duration, function};

/// The longest key, in bytes.
const KEY: usize = 512;
/// The largest value, as JSON text in bytes.
const VALUE: usize = 64 * 1024;

fn key(args: &super::Args) -> Result<String, ScriptError> {
    let key = args.text(0, "key")?;
    if key.is_empty() || key.len() > KEY {
        return Err(ScriptError::text(format!("key: 1 to {KEY} bytes expected, got {}", key.len())));
    }
    Ok(key)
}

fn ttl(options: Option<&Table>) -> Result<Option<std::time::Duration>, ScriptError> {
    match options.map(|o| o.raw_get::<Value>("ttl")).transpose()? {
        None | Some(Value::Nil) => Ok(None),
        Some(v) => duration(&v, "ttl").map(Some),
    }
}

/// `ostler.kv`.
///
/// # Errors
/// Lua has no memory left.
pub fn table(lua: &Lua, guard: &Function, context: &Arc<Context>) -> mlua::Result<Table> {
    let kv = lua.create_table()?;
    let c = Arc::clone(context);
    kv.set(
        "get",
        function(lua, guard, "kv.get", move |lua, args| match c.host()?.kv_get(&key(&args)?)? {
            Some(json) => Ok(to_lua(lua, &json, Null::Value)?),
            None => Ok(Value::Nil),
        })?,
    )?;
    let c = Arc::clone(context);
    kv.set(
        "set",
        function(lua, guard, "kv.set", move |lua, args| {
            let key = key(&args)?;
            let value = match args.value(1) {
                Value::Nil => return Err(ScriptError::text("value: nil cannot be kept; use ostler.kv.delete")),
                value => from_lua(lua, &value)?,
            };
            let size = value.to_string().len();
            if size > VALUE {
                return Err(ScriptError::text(format!("'{key}': {size} bytes of JSON, {VALUE} are allowed")));
            }
            let options = args.options(2, &["ttl", "only_if"])?;
            let only_if = match options.as_ref().map(|o| o.raw_get::<Value>("only_if")).transpose()? {
                None | Some(Value::Nil) => None,
                Some(v) => Some(Some(from_lua(lua, &v)?).filter(|json| !json.is_null())),
            };
            Ok(c.host()?.kv_set(&key, Some(value), ttl(options.as_ref())?, only_if)?)
        })?,
    )?;
    let c = Arc::clone(context);
    kv.set(
        "delete",
        function(lua, guard, "kv.delete", move |_, args| Ok(c.host()?.kv_set(&key(&args)?, None, None, None)?))?,
    )?;
    let c = Arc::clone(context);
    kv.set(
        "incr",
        function(lua, guard, "kv.incr", move |_, args| {
            let key = key(&args)?;
            let by = args.integer(1, "by")?.unwrap_or(1);
            let options = args.options(2, &["ttl"])?;
            Ok(c.host()?.kv_incr(&key, by, ttl(options.as_ref())?)?)
        })?,
    )?;
    Ok(kv)
}
