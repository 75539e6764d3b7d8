//! A Lua state with limits: memory, time, and no function that reaches outside unless it is allowed.
//!
//! Used by the hook threads and by the lua agent. Owns the state; it must not know events or queues. A call that had to
//! be stopped, ran out of memory or panicked leaves the state *spoiled*, and its owner makes a new one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use mlua::chunk::ChunkMode;
use mlua::thread::ThreadStatus;
use mlua::{Error, Function, IntoLuaMulti, Lua, LuaOptions, MultiValue, StdLib, Table, Value};

use super::api::{self, Context, PRELUDE, json, logging, strings};
use super::deadline::Deadline;
use super::lock;
use crate::config;

/// Lua's own error when there is no memory left.
const OUT_OF_MEMORY: &str = "not enough memory";
/// The least memory that a state works in, in bytes.
const LEAST: usize = 1024 * 1024;

/// What a script may use beyond pure Lua.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    /// `ostler.exec`.
    pub exec: bool,
    /// `ostler.http`.
    pub http: bool,
    /// `io.open`, `io.lines`; below these roots, or anywhere when there are none.
    pub fs: Option<Vec<PathBuf>>,
    /// The state belongs to an agent, which must not block.
    pub agent: bool,
}

impl Allowed {
    /// What the configuration gives.
    #[must_use]
    pub fn of(hooks: &config::Hooks) -> Self {
        Self {
            exec: hooks.allow_exec,
            http: hooks.allow_http,
            fs: hooks.allow_fs.then(|| hooks.fs_roots.clone()),
            agent: false,
        }
    }
}

/// How a call ended.
#[derive(Debug)]
pub enum Outcome {
    /// It returned.
    Returned(MultiValue),
    /// It raised an error (or ran out of memory): the message, with a traceback on the lines after the first.
    Raised(String),
    /// It was stopped at its deadline: where it was.
    Stopped(String),
}

/// What makes the globals of scripts: copies of Lua's own, and `ostler` with what every script has.
#[derive(Clone)]
pub struct Globals {
    context: Arc<Context>,
    environment: Function,
    guard: Function,
    allowed: Arc<Allowed>,
    config: Arc<serde_json::Value>,
    version: Arc<str>,
}

impl Globals {
    /// What the state's functions share.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// What makes a Rust function raise strings.
    #[must_use]
    pub fn guard(&self) -> &Function {
        &self.guard
    }

    /// The globals of one script, and the `ostler` in them.
    ///
    /// # Errors
    /// Lua has no memory left.
    pub fn make(&self, lua: &Lua) -> mlua::Result<(Table, Table)> {
        let guard = &self.guard;
        let env: Table = self.environment.call(())?;
        let ostler = lua.create_table()?;
        ostler.set("log", logging::table(lua, guard, &self.context)?)?;
        ostler.set("json", json::table(lua, guard)?)?;
        ostler.set("version", &*self.version)?;
        ostler.set("config", json::to_lua(lua, &self.config, json::Null::Absent)?)?;
        if self.allowed.http {
            ostler.set("http", api::http::table(lua, guard, &self.context)?)?;
        }
        if self.allowed.exec {
            ostler.set("exec", api::exec::constructor(lua, guard, &self.context)?)?;
        }
        if let Some(roots) = &self.allowed.fs {
            env.set("io", api::fs::table(lua, guard, &self.context, roots)?)?;
        }
        ostler.set_metatable(Some(self.strict(lua)?))?;
        env.set("print", logging::print(lua, &self.context)?)?;
        env.set("ostler", &ostler)?;
        Ok((env, ostler))
    }

    /// Makes `ostler.jsn` an error with its line instead of a nil that fails elsewhere.
    fn strict(&self, lua: &Lua) -> mlua::Result<Table> {
        let meta = lua.create_table()?;
        let agent = self.allowed.agent;
        meta.set(
            "__index",
            api::function(lua, &self.guard, "", move |_, args| -> Result<Value, _> {
                let name = match args.value(1) {
                    Value::String(name) => name.to_string_lossy(),
                    other => other.type_name().to_owned(),
                };
                Err(api::ScriptError::Text(match name.as_str() {
                    "http" | "exec" if agent => {
                        format!("ostler.{name}: not available in an agent: agents must not block")
                    }
                    "http" | "exec" => format!("ostler.{name}: not allowed here: add \"{name}\" to allow in [hooks]"),
                    _ => format!("ostler.{name}: no such function"),
                }))
            })?,
        )?;
        meta.set("__metatable", false)?;
        Ok(meta)
    }
}

/// A Lua state with limits.
pub struct Sandbox {
    lua: Lua,
    globals: Globals,
    run: Function,
    spoiled: AtomicBool,
}

impl Sandbox {
    /// An empty state under the limits of `hooks`; `version` is what `ostler.version` says.
    ///
    /// # Errors
    /// The memory limit is too small for Lua itself.
    pub fn new(hooks: &config::Hooks, allowed: Allowed, version: &str) -> mlua::Result<Self> {
        let libraries = StdLib::STRING | StdLib::TABLE | StdLib::MATH | StdLib::UTF8 | StdLib::COROUTINE | StdLib::OS;
        let lua = Lua::new_with(libraries, LuaOptions::default())?;
        let memory = usize::try_from(hooks.memory).unwrap_or(usize::MAX).max(LEAST);
        lua.set_memory_limit(memory)?;
        let deadline = Deadline::new();
        deadline.install(&lua)?;
        lua.set_app_data(Arc::clone(&deadline));
        let context = Context::new(Arc::clone(&deadline), memory);
        // A slot of a Lua table is 16 bytes: what is longer than that cannot be there.
        let most = memory / 16;
        let (environment, guard, run) = lua
            .load(include_str!("prelude.lua"))
            .set_name(PRELUDE)
            .set_mode(ChunkMode::Text)
            .call((strings::primitives(&lua, &context)?, most))?;
        let globals = Globals {
            context,
            environment,
            guard,
            allowed: Arc::new(allowed),
            config: Arc::new(hooks.config.clone()),
            version: version.into(),
        };
        Ok(Self { lua, globals, run, spoiled: AtomicBool::new(false) })
    }

    /// The state.
    #[must_use]
    pub fn lua(&self) -> &Lua {
        &self.lua
    }

    /// What makes the globals of its scripts.
    #[must_use]
    pub fn globals(&self) -> &Globals {
        &self.globals
    }

    /// What its functions share.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.globals.context
    }

    /// Whether a call spoiled the state, so that no other call may run in it.
    #[must_use]
    pub fn spoiled(&self) -> bool {
        self.spoiled.load(Ordering::Relaxed) || self.context().deadline.fired()
    }

    /// No call may run in it any more.
    pub fn spoil(&self) {
        self.spoiled.store(true, Ordering::Relaxed);
    }

    /// Compiles a script; text only, because bytecode can crash Lua.
    ///
    /// # Errors
    /// A syntax error.
    pub fn compile(&self, name: &str, text: &str, env: Table) -> mlua::Result<Function> {
        self.lua.load(text).set_name(format!("@{name}")).set_mode(ChunkMode::Text).set_environment(env).into_function()
    }

    /// Runs a function as a coroutine, so that it can be stopped at the instant whatever it does.
    pub fn call(&self, function: &Function, args: impl IntoLuaMulti, until: Option<Instant>) -> Outcome {
        let deadline = &self.context().deadline;
        deadline.set(until);
        let outcome = catch_unwind(AssertUnwindSafe(|| self.resume(function, args)));
        // Read before the deadline is taken off: a call that returned at the last moment may have spoiled the state.
        let (stopped, past) = (deadline.fired(), deadline.past());
        deadline.set(None);
        match outcome {
            _ if stopped => Outcome::Stopped(tidy(&deadline.trace())),
            // Our own functions stop by themselves, with an error.
            Ok(Ok(Outcome::Raised(why))) if past => Outcome::Stopped(why),
            Ok(Ok(outcome)) => outcome,
            Ok(Err(e)) => {
                if first_line(&e.to_string()).ends_with(OUT_OF_MEMORY) {
                    self.spoil();
                }
                Outcome::Raised(message(&e))
            }
            Err(_) => {
                self.spoil();
                Outcome::Raised("a function of ostler panicked: see the log".to_owned())
            }
        }
    }

    fn resume(&self, function: &Function, args: impl IntoLuaMulti) -> mlua::Result<Outcome> {
        let thread = self.lua.create_thread(self.run.clone())?;
        let mut args = args.into_lua_multi(&self.lua)?;
        args.push_front(Value::Function(function.clone()));
        let mut values: MultiValue = thread.resume(args)?;
        if thread.status() == ThreadStatus::Resumable {
            return Ok(Outcome::Raised(
                "it yielded: coroutine.yield works only in a coroutine of the script".to_owned(),
            ));
        }
        if values.pop_front() == Some(Value::Boolean(true)) {
            return Ok(Outcome::Returned(values));
        }
        let mut part = || match values.pop_front() {
            Some(Value::String(text)) => text.to_string_lossy(),
            _ => String::new(),
        };
        let (why, trace) = (part(), part());
        if first_line(&why).ends_with(OUT_OF_MEMORY) {
            self.spoil();
        }
        Ok(Outcome::Raised(tidy(&format!("{why}\n{trace}"))))
    }

    /// Tells the API and the log what runs.
    pub fn begin(&self, call: api::Call) {
        *lock(&self.context().call) = call;
    }
}

/// `require`: modules by name, each run once in this state, in globals of its own. `find` gives a module's file name
/// and text; `modules` is the state's table of those that are loaded and being loaded.
///
/// # Errors
/// Lua has no memory left.
pub fn require(
    lua: &Lua,
    guard: &Function,
    find: impl Fn(&str) -> Option<(String, Arc<str>)> + Send + 'static,
    globals: impl Fn(&Lua) -> mlua::Result<Table> + Send + 'static,
    modules: &Table,
) -> mlua::Result<Function> {
    // Makes the function of a module; our own Lua calls it, so that it may yield to the deadline.
    let open = api::raw_function(lua, "require", move |lua, args| {
        let name = args.text(0, "module")?;
        let Some((file, text)) = find(&name) else {
            return Err(api::ScriptError::Text(format!(
                "module '{name}' not found: no such file in lib below the hooks"
            )));
        };
        let chunk = lua.load(&*text).set_name(format!("@{file}")).set_mode(ChunkMode::Text);
        match chunk.set_environment(globals(lua)?).into_function() {
            Ok(function) => Ok(function),
            Err(e) => Err(api::ScriptError::Text(first_line(&message(&e)).to_owned())),
        }
    })?;
    lua.load(REQUIRE).set_name(PRELUDE).call((open, guard, modules))
}

/// What [`require`] keeps of a state's modules.
///
/// # Errors
/// Lua has no memory left.
pub fn modules(lua: &Lua) -> mlua::Result<Table> {
    lua.create_table_from([("loaded", lua.create_table()?), ("busy", lua.create_table()?)])
}

/// The Lua half of `require`: what is loaded, and what is being loaded.
const REQUIRE: &str = r#"
local open, guard, state = ...
local pcall, error = pcall, error
local loaded, busy = state.loaded, state.busy
open = guard(open)
return function(name)
  local value = loaded[name]
  if value ~= nil then return value end
  local run = open(name)
  if busy[name] then error("require: module '" .. name .. "' requires itself", 2) end
  busy[name] = true
  local ok, made = pcall(run, name)
  busy[name] = nil
  if not ok then error(made, 0) end
  if made == nil then made = true end
  loaded[name] = made
  return made
end"#;

/// The message of an error, its traceback on the lines after the first, without our own frames.
#[must_use]
pub fn message(e: &Error) -> String {
    match e {
        Error::RuntimeError(text) | Error::MemoryError(text) | Error::SyntaxError { message: text, .. } => tidy(text),
        other => tidy(&other.to_string()),
    }
}

/// A message and a traceback without the frames that are ours.
fn tidy(text: &str) -> String {
    let ours = |line: &&str| {
        let line = line.trim_start();
        let called = line.starts_with("[C]: in") && line.ends_with("'xpcall'");
        !(called || line.starts_with("ostler:") || line.starts_with("[C]: in ?"))
    };
    text.lines().enumerate().filter(|(n, line)| *n == 0 || ours(line)).map(|(_, l)| l).collect::<Vec<_>>().join("\n")
}

/// The first line.
#[must_use]
pub fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
