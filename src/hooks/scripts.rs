//! Scripts: the files of the hooks directory, and what they register.
//!
//! Files are read once, checked and kept as text, so that a spoiled state can be built again from exactly what was
//! loaded. Each hook thread has a state of its own, and all states must register the same handlers. This file must not
//! know the threads.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mlua::{Function, Lua, Table, Value};

use super::api::every::Schedule;
use super::api::{self, Args, Call, ScriptError, duration, function, line_of, text, wrong};
use super::sandbox::{Allowed, Globals, Outcome, Sandbox, first_line, message, modules, require};
use super::{HandlerId, lock};
use crate::config;
use crate::model::event::HookEvent;
use crate::thread;

/// The largest script, in bytes.
const SCRIPT: u64 = 4 * 1024 * 1024;
/// The most files in `lib`.
const MODULES: usize = 1000;
/// The longest timeout that a registration may ask for.
const LONGEST: Duration = Duration::from_secs(3600);

/// Why a set of scripts was not loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError {
    /// The file (or directory).
    pub script: PathBuf,
    /// The line, where one is known.
    pub line: Option<usize>,
    /// `what: why`.
    pub message: String,
}

impl std::fmt::Display for LoadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.script.display(), self.message),
            None => write!(f, "{}: {}", self.script.display(), self.message),
        }
    }
}

impl std::error::Error for LoadError {}

impl LoadError {
    pub(crate) fn new(script: &Path, message: impl Into<String>) -> Self {
        Self { script: script.to_owned(), line: None, message: message.into() }
    }
}

/// One registered handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Handler {
    pub id: HandlerId,
    pub line: usize,
    pub priority: i64,
    pub timeout: Duration,
    /// A failure refuses, rather than passes.
    pub refuse: bool,
}

/// One registered timer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Timer {
    /// `script:name`, by which its runs are claimed.
    pub name: String,
    pub script: String,
    pub short: String,
    pub line: usize,
    pub schedule: Schedule,
    pub timeout: Duration,
}

/// What the scripts registered, in calling order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Registered {
    pub handlers: Vec<Handler>,
    pub timers: Vec<Timer>,
}

impl Registered {
    /// The handlers of one event, in calling order.
    pub fn of(&self, event: HookEvent) -> impl Iterator<Item = &Handler> {
        self.handlers.iter().filter(move |h| h.id.event == event)
    }

    pub fn find(&self, id: &HandlerId) -> Option<&Handler> {
        self.handlers.iter().find(|h| h.id == *id)
    }
}

/// The files, as they were read.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// Path, file name and text, in name order.
    pub scripts: Vec<(PathBuf, String, Arc<str>)>,
    /// Module name to its file's name (`lib/x.lua`) and text.
    pub modules: BTreeMap<String, (String, Arc<str>)>,
}

/// Everything that a state is built from.
pub(crate) struct Plan {
    pub sources: Arc<Sources>,
    pub settings: config::Hooks,
    pub version: String,
    pub registered: Registered,
}

/// A loaded state: the sandbox, and the functions that were registered in it.
pub(crate) struct State {
    pub sandbox: Sandbox,
    pub handlers: HashMap<HandlerId, Function>,
    pub timers: HashMap<String, Function>,
}

/// A whole loaded set: a state for each hook thread.
pub struct Scripts {
    pub(crate) plan: Arc<Plan>,
    pub(crate) states: Vec<State>,
}

impl std::fmt::Debug for Scripts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scripts").field("registered", &self.plan.registered).finish_non_exhaustive()
    }
}

impl Scripts {
    /// How many handlers and timers are registered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.plan.registered.handlers.len() + self.plan.registered.timers.len()
    }

    /// Whether nothing is registered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Reads and loads every script of the hooks directory, once for each hook thread.
///
/// # Errors
/// A file cannot be read, other users could write to it, it is not Lua, it fails or takes too long, it registers
/// something that makes no sense, or it registers different handlers in each state.
pub fn load(config: &config::Hooks, version: &str) -> Result<Scripts, LoadError> {
    let sources = match &config.dir {
        Some(dir) => {
            let sources = read(dir)?;
            if !dir.exists() {
                log::warn!("hooks.dir: {}: does not exist: no script is loaded", dir.display());
            }
            sources
        }
        None => Sources::default(),
    };
    load_sources(sources, config, version)
}

/// The same for sources that were read already.
pub(crate) fn load_sources(sources: Sources, config: &config::Hooks, version: &str) -> Result<Scripts, LoadError> {
    let place = config.dir.clone().unwrap_or_default();
    let count = if sources.scripts.is_empty() { 0 } else { config.threads.max(1) + 1 };
    // A thread of our own: scripts need a deep stack, and a script that cannot be stopped must not block the caller.
    let most =
        config.timeout * u32::try_from(sources.scripts.len() * (count + 1)).unwrap_or(1000) + Duration::from_secs(5);
    let (settings, version) = (config.clone(), version.to_owned());
    let (tell, told) = crossbeam_channel::bounded(1);
    let loading = thread::spawn_own("hook-load", thread::DEEP_STACK, move || {
        let _ = tell.send(load_all(sources, settings, version, count));
    });
    if let Err(e) = loading {
        return Err(LoadError::new(&place, format!("hooks cannot be loaded: {e}")));
    }
    match told.recv_timeout(most) {
        Ok(loaded) => loaded,
        Err(_) => Err(LoadError::new(&place, "hooks cannot be loaded: a script does not stop")),
    }
}

fn load_all(sources: Sources, settings: config::Hooks, version: String, count: usize) -> Result<Scripts, LoadError> {
    let sources = Arc::new(sources);
    let mut states = Vec::with_capacity(count);
    let mut registered = Registered::default();
    for nth in 0..count {
        let (state, found) = build(&sources, &settings, &version)?;
        if nth == 0 {
            registered = found;
        } else if found != registered {
            let dir = settings.dir.clone().unwrap_or_default();
            return Err(LoadError::new(&dir, "scripts register different handlers each time they are loaded"));
        }
        states.push(state);
    }
    Ok(Scripts { plan: Arc::new(Plan { sources, settings, version, registered }), states })
}

impl Plan {
    /// How long building a state may take.
    pub fn time_to_build(&self) -> Duration {
        self.settings.timeout * u32::try_from(self.sources.scripts.len()).unwrap_or(1000)
    }

    /// Builds a state again, in place of a spoiled one.
    pub fn rebuild(&self) -> Result<State, LoadError> {
        let (state, found) = build(&self.sources, &self.settings, &self.version)?;
        if found == self.registered {
            return Ok(state);
        }
        let dir = self.settings.dir.clone().unwrap_or_default();
        Err(LoadError::new(&dir, "scripts register different handlers each time they are loaded"))
    }
}

/// What the script that is loading has registered so far.
#[derive(Default)]
struct Registry {
    script: String,
    handlers: Vec<(Handler, Function)>,
    timers: Vec<(Timer, Function)>,
    ordinals: HashMap<HookEvent, usize>,
    closed: bool,
}

/// Builds one state and runs every script in it.
pub(crate) fn build(
    sources: &Arc<Sources>,
    settings: &config::Hooks,
    version: &str,
) -> Result<(State, Registered), LoadError> {
    let dir = settings.dir.clone().unwrap_or_default();
    let lua_failed = |e: &mlua::Error| LoadError::new(&dir, format!("hooks.memory: {}", first_line(&message(e))));
    let sandbox = Sandbox::new(settings, Allowed::of(settings), version).map_err(|e| lua_failed(&e))?;
    let registry = Arc::new(Mutex::new(Registry::default()));
    let loading = modules(sandbox.lua()).map_err(|e| lua_failed(&e))?;
    let maker = Maker {
        globals: sandbox.globals().clone(),
        registry: Arc::clone(&registry),
        sources: Arc::clone(sources),
        timeout: settings.timeout,
        modules: loading,
    };
    for (path, name, source) in &sources.scripts {
        {
            let mut registry = lock(&registry);
            registry.script.clone_from(name);
            registry.ordinals.clear();
        }
        run_script(&sandbox, &maker, path, name, source)?;
    }
    let mut registry = lock(&registry);
    registry.closed = true;
    let mut found = Registered::default();
    let mut handlers = HashMap::new();
    for (handler, function) in registry.handlers.drain(..) {
        handlers.insert(handler.id.clone(), function);
        found.handlers.push(handler);
    }
    // Stable: equal priorities stay in the order of files, and within a file.
    found.handlers.sort_by_key(|h| std::cmp::Reverse(h.priority));
    let mut timers = HashMap::new();
    for (timer, function) in registry.timers.drain(..) {
        timers.insert(timer.name.clone(), function);
        found.timers.push(timer);
    }
    drop(registry);
    sandbox.begin(Call::default());
    Ok((State { sandbox, handlers, timers }, found))
}

/// What makes the globals of a state's scripts, modules too.
#[derive(Clone)]
struct Maker {
    globals: Globals,
    registry: Arc<Mutex<Registry>>,
    sources: Arc<Sources>,
    timeout: Duration,
    modules: Table,
}

impl Maker {
    /// Globals for one script or module; no other sees what it sets there.
    fn make(&self, lua: &Lua) -> mlua::Result<Table> {
        let (guard, context, timeout) = (self.globals.guard(), self.globals.context(), self.timeout);
        let (env, ostler) = self.globals.make(lua)?;
        let r = Arc::clone(&self.registry);
        ostler.raw_set("on", function(lua, guard, "on", move |lua, args| on(lua, &r, &args, timeout))?)?;
        let r = Arc::clone(&self.registry);
        ostler.raw_set("every", function(lua, guard, "every", move |lua, args| every(lua, &r, &args, timeout))?)?;
        ostler.raw_set("kv", api::kv::table(lua, guard, context)?)?;
        ostler.raw_set("session", api::session::constructor(lua, guard, context)?)?;
        let (sources, maker) = (Arc::clone(&self.sources), self.clone());
        let find = move |name: &str| sources.modules.get(name).cloned();
        env.set("require", require(lua, guard, find, move |lua| maker.make(lua), &self.modules)?)?;
        Ok(env)
    }
}

fn run_script(sandbox: &Sandbox, maker: &Maker, path: &Path, name: &str, source: &str) -> Result<(), LoadError> {
    sandbox.begin(Call { label: name.to_owned(), loading: true, ..Call::default() });
    let failed = |e: mlua::Error| load_error(path, name, &message(&e));
    let env = maker.make(sandbox.lua()).map_err(failed)?;
    let chunk = sandbox.compile(name, source, env).map_err(failed)?;
    match sandbox.call(&chunk, (), Some(Instant::now() + maker.timeout)) {
        Outcome::Returned(_) => Ok(()),
        Outcome::Raised(why) => Err(load_error(path, name, &why)),
        Outcome::Stopped(trace) => {
            let mut error = load_error(path, name, &format!("it ran longer than {:?} while loading", maker.timeout));
            error.line = trace.lines().find_map(|l| line_in(l.trim(), name));
            Err(error)
        }
    }
}

fn while_loading(registry: &Registry) -> Result<(), ScriptError> {
    if registry.closed {
        return Err(ScriptError::text("only while the script loads, not in a handler"));
    }
    Ok(())
}

fn line_here(lua: &Lua, script: &str) -> usize {
    line_of(lua, |source| source == script).map_or(0, |(_, line)| line)
}

fn function_at(args: &Args, at: usize) -> Result<Function, ScriptError> {
    match args.value(at) {
        Value::Function(f) => Ok(f),
        other => Err(wrong("handler", "a function", &other)),
    }
}

/// The option `name`, if it is given.
fn option(options: Option<&Table>, name: &str) -> Result<Option<Value>, ScriptError> {
    let value = options.map(|o| o.raw_get::<Value>(name)).transpose()?;
    Ok(value.filter(|v| !v.is_nil()))
}

fn name_option(options: Option<&Table>) -> Result<Option<String>, ScriptError> {
    let Some(value) = option(options, "name")? else { return Ok(None) };
    let name = text(&value, "name")?;
    if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
        return Err(ScriptError::text("name: 1 to 64 bytes without control characters expected"));
    }
    Ok(Some(name))
}

fn timeout_option(options: Option<&Table>, default: Duration) -> Result<Duration, ScriptError> {
    let Some(value) = option(options, "timeout")? else { return Ok(default) };
    let timeout = duration(&value, "timeout")?;
    if timeout > LONGEST {
        return Err(ScriptError::text("timeout: the longest is 1h"));
    }
    Ok(timeout)
}

/// `ostler.on(event, function, { timeout, priority, name, on_error })`.
fn on(lua: &Lua, registry: &Mutex<Registry>, args: &Args, default: Duration) -> Result<(), ScriptError> {
    let mut registry = lock(registry);
    while_loading(&registry)?;
    let said = args.text(0, "event")?;
    let Some(event) = HookEvent::parse(&said) else {
        let known: Vec<_> = HookEvent::ALL.iter().map(|e| e.as_str()).collect();
        return Err(ScriptError::text(format!("unknown event '{said}' (known: {})", known.join(", "))));
    };
    let handler = function_at(args, 1)?;
    let options = args.options(2, &["timeout", "priority", "name", "on_error"])?;
    if args.more_than(3) {
        return Err(ScriptError::text("three arguments expected: an event, a function and options"));
    }
    let options = options.as_ref();
    let priority = match option(options, "priority")? {
        Some(value) => api::integer(&value, "priority")?,
        None => 0,
    };
    let refuse = match option(options, "on_error")? {
        None => false,
        Some(_) if !event.is_synchronous() => {
            return Err(ScriptError::text(format!(
                "on_error: '{event}' is not synchronous: only message, before_turn and permission are"
            )));
        }
        Some(value) => match text(&value, "on_error")?.as_str() {
            "pass" => false,
            "refuse" => true,
            other => return Err(ScriptError::text(format!("on_error: 'pass' or 'refuse' expected, got '{other}'"))),
        },
    };
    let timeout = timeout_option(options, default)?;
    let ordinal = registry.ordinals.entry(event).or_default();
    *ordinal += 1;
    let name = name_option(options)?.unwrap_or_else(|| ordinal.to_string());
    let id = HandlerId { event, script: registry.script.clone(), name };
    if let Some((other, _)) = registry.handlers.iter().find(|(h, _)| h.id == id) {
        return Err(ScriptError::text(format!(
            "a handler named '{}' for '{event}' is registered in line {}",
            id.name, other.line
        )));
    }
    let line = line_here(lua, &registry.script);
    registry.handlers.push((Handler { id, line, priority, timeout, refuse }, handler));
    Ok(())
}

/// `ostler.every(when, function, { name, timeout })`.
fn every(lua: &Lua, registry: &Mutex<Registry>, args: &Args, default: Duration) -> Result<(), ScriptError> {
    let mut registry = lock(registry);
    while_loading(&registry)?;
    let when = args.text(0, "when")?;
    let schedule = Schedule::parse(&when).map_err(|why| ScriptError::text(format!("when: '{when}': {why}")))?;
    let run = function_at(args, 1)?;
    let options = args.options(2, &["name", "timeout"])?;
    if args.more_than(3) {
        return Err(ScriptError::text("three arguments expected: when, a function and options"));
    }
    let timeout = timeout_option(options.as_ref(), default)?;
    let script = registry.script.clone();
    let nth = registry.timers.iter().filter(|(t, _)| t.script == script).count() + 1;
    let short = name_option(options.as_ref())?.unwrap_or_else(|| nth.to_string());
    let name = format!("{script}:{short}");
    if let Some((other, _)) = registry.timers.iter().find(|(t, _)| t.name == name) {
        return Err(ScriptError::text(format!("a timer named '{short}' is registered in line {}", other.line)));
    }
    let line = line_here(lua, &script);
    registry.timers.push((Timer { name, script, short, line, schedule, timeout }, run));
    Ok(())
}

/// A load error from a message of Lua, whose place is taken off.
pub(crate) fn load_error(path: &Path, name: &str, why: &str) -> LoadError {
    let first = first_line(why);
    let Some(line) = line_in(first, name) else { return LoadError::new(path, first) };
    let prefix = format!("{name}:{line}: ");
    let message = first.strip_prefix(&prefix).unwrap_or(first);
    LoadError { script: path.to_owned(), line: Some(line), message: message.to_owned() }
}

/// The line number in `name:LINE:` at the start of a text.
fn line_in(text: &str, name: &str) -> Option<usize> {
    let rest = text.strip_prefix(name)?.strip_prefix(':')?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    rest[digits..].starts_with(':').then(|| rest[..digits].parse().ok())?
}

/// Reads the directory: `*.lua` in name order, and the modules in `lib`.
pub(crate) fn read(dir: &Path) -> Result<Sources, LoadError> {
    let mut sources = Sources::default();
    if !dir.try_exists().map_err(|e| LoadError::new(dir, format!("cannot be read: {e}")))? {
        return Ok(sources);
    }
    guarded(dir)?;
    for path in listed(dir)? {
        if !path.is_dir() && path.extension().is_some_and(|e| e == "lua") {
            let name = file_name(&path)?;
            if !name.starts_with('.') && no_hook(&name).is_none() {
                let text = read_script(&path)?;
                sources.scripts.push((path, name, text));
            }
        }
    }
    sources.modules = modules_below(dir)?;
    Ok(sources)
}

/// The modules in `lib` below a hooks directory: file name and text, by module name.
///
/// # Errors
/// One cannot be read, or other users could write to it.
pub fn modules_below(dir: &Path) -> Result<BTreeMap<String, (String, Arc<str>)>, LoadError> {
    let mut sources = Sources::default();
    let lib = dir.join("lib");
    if lib.is_dir() {
        read_modules(&lib, "", "lib", &mut sources, 0)?;
    }
    Ok(sources.modules)
}

/// Whether a Lua file beside the hook scripts is none of them, by its name.
pub(crate) fn no_hook(name: &str) -> Option<&'static str> {
    match () {
        () if name.ends_with(".test.lua") => Some("it is a script's test"),
        () if name.ends_with(".d.lua") => Some("it is an editor's annotations"),
        () => None,
    }
}

fn read_modules(dir: &Path, prefix: &str, shown: &str, sources: &mut Sources, depth: usize) -> Result<(), LoadError> {
    guarded(dir)?;
    for path in listed(dir)? {
        let name = file_name(&path)?;
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            if depth >= 8 {
                return Err(LoadError::new(&path, "modules nested deeper than 8 directories"));
            }
            read_modules(&path, &format!("{prefix}{name}."), &format!("{shown}/{name}"), sources, depth + 1)?;
        } else if let Some(stem) = name.strip_suffix(".lua").filter(|_| no_hook(&name).is_none()) {
            if sources.modules.len() >= MODULES {
                return Err(LoadError::new(&path, format!("more than {MODULES} modules")));
            }
            let module =
                if stem == "init" { prefix.trim_end_matches('.').to_owned() } else { format!("{prefix}{stem}") };
            sources.modules.insert(module, (format!("{shown}/{name}"), read_script(&path)?));
        }
    }
    Ok(())
}

fn file_name(path: &Path) -> Result<String, LoadError> {
    match path.file_name().and_then(|n| n.to_str()) {
        Some(name) if !name.chars().any(char::is_control) => Ok(name.to_owned()),
        _ => Err(LoadError::new(path, "the file's name is not UTF-8 text")),
    }
}

fn listed(dir: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let failed = |e: std::io::Error| LoadError::new(dir, format!("cannot be read: {e}"));
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    Ok(paths)
}

/// Refuses a file that users other than root and us could write to. On a read-only file system nobody can, whatever the
/// mode says: a container's ConfigMap is such a case.
///
/// # Errors
/// Its path and the remedy.
pub fn guarded(path: &Path) -> Result<(), LoadError> {
    let meta = std::fs::metadata(path).map_err(|e| LoadError::new(path, format!("cannot be read: {e}")))?;
    let us = rustix::process::geteuid().as_raw();
    if meta.mode() & 0o022 != 0 && !config::paths::is_read_only(path) {
        let mode = meta.mode() & 0o7777;
        return Err(LoadError::new(path, format!("other users could write to it (mode {mode:o}): chmod go-w it")));
    }
    if meta.uid() != 0 && meta.uid() != us {
        return Err(LoadError::new(
            path,
            format!("it belongs to user {}, neither root nor {us}: chown it", meta.uid()),
        ));
    }
    Ok(())
}

/// Reads one script that no other user could have written.
///
/// # Errors
/// It cannot be read, is too large or no text, or other users could write to it.
pub fn read_script(path: &Path) -> Result<Arc<str>, LoadError> {
    guarded(path)?;
    let meta = std::fs::metadata(path).map_err(|e| LoadError::new(path, format!("cannot be read: {e}")))?;
    if !meta.is_file() || meta.len() > SCRIPT {
        return Err(LoadError::new(path, format!("is not a file of at most {SCRIPT} bytes")));
    }
    let bytes = std::fs::read(path).map_err(|e| LoadError::new(path, format!("cannot be read: {e}")))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(without_head(&text).into()),
        Err(_) => Err(LoadError::new(path, "is not UTF-8 text")),
    }
}

/// The text without a byte order mark and without a first line that begins with `#`, as `lua` reads it. The end of that
/// line stays, so that lines keep their numbers.
fn without_head(text: &str) -> &str {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.starts_with('#') { &text[text.find('\n').unwrap_or(text.len())..] } else { text }
}
