//! `ostler.log` and `print`: lines of scripts in the daemon's log, with their handler and key.

use std::sync::Arc;

use log::kv::{Key, Source, VisitSource};
use mlua::{Function, Lua, MultiValue, Table, Value};
use serde_json::Value as Json;

use super::json::from_lua;
use super::{Context, ScriptError, function, line_of};
use crate::hooks::lock;

/// The longest text that is logged, in bytes.
const TEXT: usize = 16 * 1024;
/// The most fields of one line.
const FIELDS: usize = 32;

/// Fields of a log line.
pub struct Fields(pub Vec<(String, Json)>);

impl Source for Fields {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), log::kv::Error> {
        for (name, value) in &self.0 {
            let value = match value {
                Json::String(s) => log::kv::Value::from(s.as_str()),
                Json::Bool(b) => log::kv::Value::from(*b),
                Json::Number(n) if n.is_i64() => log::kv::Value::from(n.as_i64().unwrap_or_default()),
                other => log::kv::Value::from_display(other),
            };
            visitor.visit_pair(Key::from_str(name), value)?;
        }
        Ok(())
    }
}

/// Writes one line with the target `hook`.
pub fn write(level: log::Level, fields: Vec<(String, Json)>, text: &str) {
    let fields = Fields(fields);
    log::logger().log(
        &log::Record::builder()
            .level(level)
            .target("hook")
            .module_path_static(Some(module_path!()))
            .key_values(&fields)
            .args(format_args!("{text}"))
            .build(),
    );
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A field that is not longer than a line's text may be.
fn short(value: Json) -> Json {
    match value {
        Json::String(text) if text.len() > TEXT => Json::from(cut(&text)),
        Json::Array(_) | Json::Object(_) => {
            let text = value.to_string();
            if text.len() > TEXT { Json::from(cut(&text)) } else { value }
        }
        short => short,
    }
}

/// The fields that every line of a script has: handler, line (with the file, where that is a module) and key.
fn who(lua: &Lua, context: &Context) -> Vec<(String, Json)> {
    let call = lock(&context.call);
    let mut fields = vec![("hook".to_owned(), Json::from(call.label.as_str()))];
    if let Some((file, line)) = line_of(lua, |_| true) {
        if !call.label.starts_with(&file) {
            fields.push(("file".to_owned(), Json::from(file)));
        }
        fields.push(("line".to_owned(), Json::from(line)));
    }
    if let Some(key) = &call.key {
        fields.push(("key".to_owned(), Json::from(key.as_str())));
    }
    fields
}

/// `ostler.log`.
///
/// # Errors
/// Lua has no memory left.
pub fn table(lua: &Lua, guard: &Function, context: &Arc<Context>) -> mlua::Result<Table> {
    use log::Level::{Debug, Error, Info, Warn};
    let table = lua.create_table()?;
    for (name, full, level) in [
        ("debug", "log.debug", Debug),
        ("info", "log.info", Info),
        ("warn", "log.warn", Warn),
        ("error", "log.error", Error),
    ] {
        let c = Arc::clone(context);
        table.set(
            name,
            function(lua, guard, full, move |lua, args| {
                // At any level: wrong arguments fail where the script is tried out, not only where the level is on.
                let text = args.bytes(lua, 0, "text")?;
                let given = args.value(1);
                if !matches!(given, Value::Nil | Value::Table(_)) {
                    return Err(super::wrong("fields", "a table", &given));
                }
                if log::max_level() < level {
                    return Ok(());
                }
                let text = text.to_string_lossy();
                let mut fields = who(lua, &c);
                if let Value::Table(t) = given {
                    for pair in t.pairs::<Value, Value>().take(FIELDS) {
                        let (key, value) = pair?;
                        let key = super::text(&key, "field")?;
                        let value = from_lua(lua, &value).unwrap_or_else(|error| match error {
                            ScriptError::Text(_) => Json::from(value.to_string().unwrap_or_default()),
                            ScriptError::Lua(e) => Json::from(e.to_string()),
                        });
                        let value = short(value);
                        fields.retain(|(name, _)| *name != key);
                        fields.push((key, value));
                    }
                }
                write(level, fields, cut(&text));
                Ok(())
            })?,
        )?;
    }
    Ok(table)
}

/// `print`: a line at `info`.
///
/// # Errors
/// Lua has no memory left.
pub fn print(lua: &Lua, context: &Arc<Context>) -> mlua::Result<Function> {
    let c = Arc::clone(context);
    lua.create_function(move |lua, values: MultiValue| {
        let mut line = String::new();
        for (i, value) in values.iter().enumerate() {
            if i > 0 {
                line.push('\t');
            }
            line.push_str(&value.to_string()?);
            if line.len() > TEXT {
                break;
            }
        }
        write(log::Level::Info, who(lua, &c), cut(&line));
        Ok(())
    })
}
