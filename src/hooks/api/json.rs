//! JSON in Lua, and the values that go between the daemon and the scripts.
//!
//! Integers stay integers. `null` is decoded as `ostler.json.null`; in an event, a field that is null is absent. An
//! empty table is an object, unless it came from an array or from `ostler.json.array`.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::sync::Arc;

use mlua::{Function, Lua, LuaSerdeExt, Table, Value};
use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value as Json};

use super::{ScriptError, function, wrong};
use crate::hooks::deadline::Deadline;

/// How deep tables may nest.
const DEPTH: usize = 100;
/// How many values may be in one document.
const VALUES: usize = 1_000_000;
/// How many bytes of text may be in one document.
const BYTES: usize = 16 * 1024 * 1024;

/// How `null` is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Null {
    /// It is left out.
    Absent,
    /// `ostler.json.null`.
    Value,
}

/// A Lua value from JSON.
///
/// # Errors
/// Lua has no memory left.
pub fn to_lua(lua: &Lua, json: &Json, null: Null) -> mlua::Result<Value> {
    Ok(match json {
        Json::Null if null == Null::Value => Value::NULL,
        Json::Null => Value::Nil,
        Json::Bool(b) => Value::Boolean(*b),
        Json::Number(n) => match n.as_i64() {
            Some(i) => Value::Integer(i),
            None => Value::Number(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::String(lua.create_string(s)?),
        Json::Array(items) => {
            let table = lua.create_table_with_capacity(items.len(), 0)?;
            for (i, item) in items.iter().enumerate() {
                // A hole would shift what follows.
                table.raw_set(i + 1, to_lua(lua, item, Null::Value)?)?;
            }
            table.set_metatable(Some(lua.array_metatable()))?;
            Value::Table(table)
        }
        Json::Object(fields) => {
            let table = lua.create_table_with_capacity(0, fields.len())?;
            for (name, field) in fields {
                table.raw_set(name.as_str(), to_lua(lua, field, null)?)?;
            }
            Value::Table(table)
        }
    })
}

/// Lua values from JSON text. They are made while the text is read, so that the state's memory limit covers them.
fn decode(lua: &Lua, text: &[u8]) -> Result<Value, ScriptError> {
    let deadline = lua.app_data_ref::<Arc<Deadline>>().map(|d| Arc::clone(&d));
    let decoder = Decoder { lua, deadline, values: Cell::new(0), failed: RefCell::new(None) };
    let mut json = serde_json::Deserializer::from_slice(text);
    let value = decoder.deserialize(&mut json).and_then(|value| json.end().map(|()| value));
    match (value, decoder.failed.take()) {
        (_, Some(e)) => Err(ScriptError::Lua(e)),
        (Ok(value), None) => Ok(value),
        (Err(e), None) => Err(ScriptError::text(e.to_string())),
    }
}

struct Decoder<'l> {
    lua: &'l Lua,
    deadline: Option<Arc<Deadline>>,
    values: Cell<usize>,
    /// An error of Lua itself (memory), which must not become a text.
    failed: RefCell<Option<mlua::Error>>,
}

impl Decoder<'_> {
    fn lua<T, E: de::Error>(&self, made: mlua::Result<T>) -> Result<T, E> {
        made.map_err(|e| {
            self.failed.replace(Some(e));
            E::custom("Lua")
        })
    }

    /// Counts a value, and looks at the clock now and then.
    fn count<E: de::Error>(&self) -> Result<(), E> {
        self.values.set(self.values.get() + 1);
        if self.values.get().is_multiple_of(1024) && self.deadline.as_ref().is_some_and(|d| d.past()) {
            return Err(E::custom("timeout"));
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for &Decoder<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<Value, D::Error> {
        self.count()?;
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &Decoder<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::NULL)
    }

    fn visit_bool<E: de::Error>(self, b: bool) -> Result<Value, E> {
        Ok(Value::Boolean(b))
    }

    fn visit_i64<E: de::Error>(self, n: i64) -> Result<Value, E> {
        Ok(Value::Integer(n))
    }

    #[allow(clippy::cast_precision_loss)]
    fn visit_u64<E: de::Error>(self, n: u64) -> Result<Value, E> {
        Ok(i64::try_from(n).map_or(Value::Number(n as f64), Value::Integer))
    }

    fn visit_f64<E: de::Error>(self, n: f64) -> Result<Value, E> {
        Ok(Value::Number(n))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        self.lua(self.lua.create_string(text)).map(Value::String)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let table = self.lua(self.lua.create_table())?;
        let mut at = 0;
        while let Some(item) = items.next_element_seed(self)? {
            at += 1;
            self.lua(table.raw_set(at, item))?;
        }
        self.lua(table.set_metatable(Some(self.lua.array_metatable())))?;
        Ok(Value::Table(table))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let table = self.lua(self.lua.create_table())?;
        while let Some(name) = fields.next_key_seed(self)? {
            self.lua(table.raw_set(name, fields.next_value_seed(self)?))?;
        }
        Ok(Value::Table(table))
    }
}

/// JSON from a Lua value.
///
/// # Errors
/// It has no JSON form (a function, NaN, bytes that are not UTF-8, a mixed table), refers to itself, or is too large.
pub fn from_lua(lua: &Lua, value: &Value) -> Result<Json, ScriptError> {
    let array = lua.array_metatable();
    let deadline = lua.app_data_ref::<Arc<Deadline>>().map(|d| Arc::clone(&d));
    Encoder { array: array.to_pointer(), deadline, path: Vec::new(), values: 0, bytes: 0 }.value(value)
}

struct Encoder {
    array: *const c_void,
    deadline: Option<Arc<Deadline>>,
    path: Vec<*const c_void>,
    values: usize,
    bytes: usize,
}

impl Encoder {
    fn value(&mut self, value: &Value) -> Result<Json, ScriptError> {
        self.values += 1;
        if self.values > VALUES || self.bytes > BYTES {
            return Err(ScriptError::text(format!("more than {VALUES} values or {BYTES} bytes")));
        }
        if self.values.is_multiple_of(1024) && self.deadline.as_ref().is_some_and(|d| d.past()) {
            return Err(ScriptError::text("timeout"));
        }
        match value {
            Value::Nil => Ok(Json::Null),
            Value::LightUserData(p) if p.0.is_null() => Ok(Json::Null),
            Value::Boolean(b) => Ok(Json::Bool(*b)),
            Value::Integer(n) => Ok(Json::from(*n)),
            Value::Number(n) => match Number::from_f64(*n) {
                Some(n) => Ok(Json::Number(n)),
                None => Err(ScriptError::text(format!("{n} has no JSON form"))),
            },
            Value::String(s) => {
                self.bytes += s.as_bytes().len();
                match s.to_str() {
                    Ok(text) => Ok(Json::String(text.to_owned())),
                    Err(_) => Err(ScriptError::text("a string that is not UTF-8 has no JSON form")),
                }
            }
            Value::Table(t) => self.table(t),
            other => Err(ScriptError::text(format!("a {} has no JSON form", other.type_name()))),
        }
    }

    fn table(&mut self, table: &Table) -> Result<Json, ScriptError> {
        let at = table.to_pointer();
        if self.path.contains(&at) {
            return Err(ScriptError::text("a table that contains itself has no JSON form"));
        }
        if self.path.len() >= DEPTH {
            return Err(ScriptError::text(format!("tables nested deeper than {DEPTH}")));
        }
        self.path.push(at);
        let length = table.raw_len();
        let is_array = table.metatable().is_some_and(|m| m.to_pointer() == self.array);
        let json = if length > 0 || is_array { self.array(table, length) } else { self.object(table) };
        self.path.pop();
        json
    }

    fn array(&mut self, table: &Table, length: usize) -> Result<Json, ScriptError> {
        let mut items = Vec::new();
        for i in 1..=length {
            items.push(self.value(&table.raw_get::<Value>(i)?)?);
        }
        for pair in table.pairs::<Value, Value>() {
            let (key, _) = pair?;
            if !matches!(key, Value::Integer(i) if usize::try_from(i).is_ok_and(|i| i >= 1 && i <= length)) {
                return Err(ScriptError::text("a table with both a sequence and other keys has no JSON form"));
            }
        }
        Ok(Json::Array(items))
    }

    fn object(&mut self, table: &Table) -> Result<Json, ScriptError> {
        let mut fields = Map::new();
        for pair in table.pairs::<Value, Value>() {
            let (key, value) = pair?;
            let name = match &key {
                Value::String(s) => {
                    self.bytes += s.as_bytes().len();
                    s.to_str().map_err(|_| ScriptError::text("a key that is not UTF-8 has no JSON form"))?.to_owned()
                }
                other => return Err(wrong("key", "a string", other)),
            };
            let field = self.value(&value).map_err(|error| within(&name, error))?;
            fields.insert(name, field);
        }
        fields.sort_keys();
        Ok(Json::Object(fields))
    }
}

/// Names the field of an error, the innermost only.
fn within(name: &str, error: ScriptError) -> ScriptError {
    match error {
        ScriptError::Text(why) if !why.starts_with("field ") => ScriptError::Text(format!("field '{name}': {why}")),
        other => other,
    }
}

/// `ostler.json`.
///
/// # Errors
/// Lua has no memory left.
pub fn table(lua: &Lua, guard: &Function) -> mlua::Result<Table> {
    let json = lua.create_table()?;
    json.set("null", Value::NULL)?;
    json.set(
        "encode",
        function(lua, guard, "json.encode", |lua, args| {
            let json = from_lua(lua, &args.value(0))?;
            serde_json::to_string(&json).map_err(|e| ScriptError::text(e.to_string()))
        })?,
    )?;
    json.set(
        "decode",
        function(lua, guard, "json.decode", |lua, args| {
            let text = args.bytes(lua, 0, "text")?;
            if text.as_bytes().len() > BYTES {
                return Err(ScriptError::text(format!("more than {BYTES} bytes")));
            }
            decode(lua, &text.as_bytes())
        })?,
    )?;
    json.set(
        "array",
        function(lua, guard, "json.array", |lua, args| match args.value(0) {
            Value::Nil => {
                let table = lua.create_table()?;
                table.set_metatable(Some(lua.array_metatable()))?;
                Ok(table)
            }
            Value::Table(t) if t.metatable().is_none_or(|m| m == lua.array_metatable()) => {
                t.set_metatable(Some(lua.array_metatable()))?;
                Ok(t)
            }
            Value::Table(_) => Err(ScriptError::text("the table has a metatable already")),
            other => Err(wrong("array", "a table", &other)),
        })?,
    )?;
    Ok(json)
}
