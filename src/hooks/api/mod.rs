//! The `ostler.*` API: what scripts may ask for, one file a subject.
//!
//! Owns how a Rust function looks to a script: strict arguments, and errors that are strings with the script's line. It
//! must not know threads or queues: [`Context`] says what a call is about.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use mlua::{Function, IntoLuaMulti, Lua, LuaString, MultiValue, Table, Value};

use super::deadline::Deadline;
use super::kick::Kick;
use super::{HookHost, lock};

pub mod every;
pub mod exec;
pub mod fs;
pub mod http;
pub mod json;
pub mod kv;
pub mod logging;
pub mod session;
pub mod strings;

/// The chunk name of our own Lua, which is skipped when a script's line is looked for.
pub const PRELUDE: &str = "=ostler";

/// What a state's functions share.
pub struct Context {
    /// The deadline of the call that runs.
    pub deadline: Arc<Deadline>,
    /// The daemon, from [`super::Hooks::start`] on.
    pub host: OnceLock<Arc<dyn HookHost>>,
    /// Ends the waits of its calls; `None` for calls that are not cut off.
    pub kick: OnceLock<Arc<Kick>>,
    /// What runs in the state.
    pub call: Mutex<Call>,
    /// The state's memory limit, in bytes.
    pub memory: usize,
}

/// What runs in a state.
#[derive(Debug, Default)]
pub struct Call {
    /// `script:name` of the handler, or the script that is loading.
    pub label: String,
    /// The event's id; the ids of the messages that the call sends are made from it.
    pub event_id: String,
    /// The event's key, for the log.
    pub key: Option<String>,
    /// Scripts are loading: nothing may be asked of the daemon.
    pub loading: bool,
    /// Messages sent so far, by key.
    pub sent: HashMap<String, u32>,
}

impl Context {
    /// A state without a host and without a call.
    #[must_use]
    pub fn new(deadline: Arc<Deadline>, memory: usize) -> Arc<Self> {
        Arc::new(Self { deadline, host: OnceLock::new(), kick: OnceLock::new(), call: Mutex::default(), memory })
    }

    /// The host.
    ///
    /// # Errors
    /// A script is loading, or is only being checked.
    pub fn host(&self) -> Result<&Arc<dyn HookHost>, ScriptError> {
        if lock(&self.call).loading {
            return Err(ScriptError::text("not while a script loads: call it in a handler"));
        }
        self.host.get().ok_or_else(|| ScriptError::text("there is no daemon here"))
    }

    /// Refuses functions that reach outside while a script loads, because each state loads it.
    ///
    /// # Errors
    /// A script is loading.
    pub fn outside(&self) -> Result<(), ScriptError> {
        if lock(&self.call).loading {
            return Err(ScriptError::text("not while a script loads: call it in a handler"));
        }
        Ok(())
    }
}

/// Why an API function did not do what it was asked.
#[derive(Debug)]
pub enum ScriptError {
    /// For the script: raised as a string, with its line and the function's name before it.
    Text(String),
    /// An error of Lua itself (memory).
    Lua(mlua::Error),
}

impl ScriptError {
    /// A text for the script.
    pub fn text(why: impl Into<String>) -> Self {
        Self::Text(why.into())
    }
}

impl From<mlua::Error> for ScriptError {
    fn from(e: mlua::Error) -> Self {
        Self::Lua(e)
    }
}

impl From<String> for ScriptError {
    fn from(e: String) -> Self {
        Self::Text(e)
    }
}

/// The arguments of a call, asked for by place.
pub struct Args(MultiValue);

impl Args {
    /// The value at a place, from 0.
    #[must_use]
    pub fn value(&self, at: usize) -> Value {
        self.0.get(at).cloned().unwrap_or(Value::Nil)
    }

    /// Bytes; numbers count as strings, as in Lua.
    ///
    /// # Errors
    /// It is something else.
    pub fn bytes(&self, lua: &Lua, at: usize, name: &str) -> Result<LuaString, ScriptError> {
        match self.value(at) {
            Value::String(s) => Ok(s),
            v @ (Value::Integer(_) | Value::Number(_)) => {
                lua.coerce_string(v)?.ok_or_else(|| ScriptError::text(format!("{name}: a number without a text")))
            }
            other => Err(wrong(name, "a string", &other)),
        }
    }

    /// Text: a string of UTF-8.
    ///
    /// # Errors
    /// It is something else.
    pub fn text(&self, at: usize, name: &str) -> Result<String, ScriptError> {
        text(&self.value(at), name)
    }

    /// An integer; `None` where nothing is given.
    ///
    /// # Errors
    /// It is something else.
    pub fn integer(&self, at: usize, name: &str) -> Result<Option<i64>, ScriptError> {
        match self.value(at) {
            Value::Nil => Ok(None),
            value => integer(&value, name).map(Some),
        }
    }

    /// A table of known options; `None` where nothing is given.
    ///
    /// # Errors
    /// It is something else, or has an option that is not in `known`.
    pub fn options(&self, at: usize, known: &[&str]) -> Result<Option<Table>, ScriptError> {
        match self.value(at) {
            Value::Nil => Ok(None),
            Value::Table(t) => {
                for pair in t.pairs::<Value, Value>() {
                    let (key, _) = pair?;
                    let Value::String(name) = &key else {
                        return Err(ScriptError::text(format!("options: names expected, got a {}", key.type_name())));
                    };
                    if !known.iter().any(|k| name.as_bytes() == k.as_bytes()) {
                        let name = name.to_string_lossy();
                        return Err(ScriptError::text(format!(
                            "unknown option '{name}' (known: {})",
                            known.join(", ")
                        )));
                    }
                }
                Ok(Some(t))
            }
            other => Err(wrong("options", "a table", &other)),
        }
    }

    /// How many were given.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether more than `most` values were given.
    #[must_use]
    pub fn more_than(&self, most: usize) -> bool {
        self.0.len() > most
    }
}

/// `name: expected, got`.
pub fn wrong(name: &str, expected: &str, got: &Value) -> ScriptError {
    ScriptError::text(format!("{name}: {expected} expected, got {}", got.type_name()))
}

/// A string of UTF-8.
///
/// # Errors
/// It is something else.
pub fn text(value: &Value, name: &str) -> Result<String, ScriptError> {
    match value {
        Value::String(s) => match s.to_str() {
            Ok(t) => Ok(t.to_owned()),
            Err(_) => Err(ScriptError::text(format!("{name}: is not UTF-8"))),
        },
        other => Err(wrong(name, "a string", other)),
    }
}

/// An integer, or a float that is one.
///
/// # Errors
/// It is something else.
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
pub fn integer(value: &Value, name: &str) -> Result<i64, ScriptError> {
    match value {
        Value::Integer(n) => Ok(*n),
        Value::Number(n) if n.fract() == 0.0 && n.abs() < 9.0e15 => Ok(*n as i64),
        other => Err(wrong(name, "an integer", other)),
    }
}

/// A duration as the configuration writes it (`"30s"`, `"1h30m"`).
///
/// # Errors
/// It is something else, or not above zero.
pub fn duration(value: &Value, name: &str) -> Result<std::time::Duration, ScriptError> {
    let said = text(value, name)?;
    every::parse_duration(&said).map_err(|why| ScriptError::text(format!("{name}: '{said}': {why}")))
}

/// Makes a Rust function that a script may call: it answers values, or raises a string with the script's line.
///
/// # Errors
/// Lua has no memory left.
pub fn function<R: IntoLuaMulti>(
    lua: &Lua,
    guard: &Function,
    name: &'static str,
    body: impl Fn(&Lua, Args) -> Result<R, ScriptError> + Send + 'static,
) -> mlua::Result<Function> {
    guard.call(raw_function(lua, name, body)?)
}

/// The same without the guard: answers `true, values` or `false, why`, for our own Lua to raise.
///
/// # Errors
/// Lua has no memory left.
pub fn raw_function<R: IntoLuaMulti>(
    lua: &Lua,
    name: &'static str,
    body: impl Fn(&Lua, Args) -> Result<R, ScriptError> + Send + 'static,
) -> mlua::Result<Function> {
    lua.create_function(move |lua, args: MultiValue| match body(lua, Args(args)) {
        Ok(values) => {
            let mut all = values.into_lua_multi(lua)?;
            all.push_front(Value::Boolean(true));
            Ok(all)
        }
        Err(ScriptError::Text(why)) => {
            let why = if name.is_empty() { why } else { format!("{name}: {why}") };
            (false, format!("{}{why}", locate(lua))).into_lua_multi(lua)
        }
        Err(ScriptError::Lua(e)) => Err(e),
    })
}

/// `script.lua:12: `, the nearest line of a script in the stack, or nothing.
#[must_use]
pub fn locate(lua: &Lua) -> String {
    line_of(lua, |_| true).map_or_else(String::new, |(source, line)| format!("{source}:{line}: "))
}

/// The nearest line in the stack whose source (a file name) is wanted.
pub fn line_of(lua: &Lua, wanted: impl Fn(&str) -> bool) -> Option<(String, usize)> {
    for level in 0..20 {
        let at = lua.inspect_stack(level, |frame| {
            let source = frame.source().source.map(|s| s.into_owned()).unwrap_or_default();
            frame.current_line().filter(|_| source.starts_with('@')).map(|line| (source[1..].to_owned(), line))
        })?;
        if let Some((source, line)) = at
            && wanted(&source)
        {
            return Some((source, line));
        }
    }
    None
}
