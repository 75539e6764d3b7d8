//! `lua`: an operator's Lua function, on the worker's own thread.
//!
//! Owns one sandbox of the hooks, and nothing outside of it: no process, no socket. The function has no deadline of its
//! own. The turn's deadline and the host's interrupt stop it, and a stopped state is discarded. The thread needs
//! [`crate::thread::DEEP_STACK`]: Lua nests C calls 200 deep.
//!
//! It waits for nothing. While it runs, Lua's count hook checks the host's flag and the turn's deadline.

use std::cell::RefCell;
use std::path::{Component, Path, PathBuf};
use std::time::Instant;

use mlua::{Function, Value};

use super::{Agent, Answer, Continuity, Failure, Host, Progress, Prompt, Said, Started};
use crate::config;
use crate::hooks::api::{Call, session};
use crate::hooks::sandbox::{Allowed, Outcome, Sandbox, first_line, message, modules, require};
use crate::hooks::scripts;

/// The lua agent.
pub struct Lua {
    name: String,
    handler: String,
    history: u64,
    hooks: config::Hooks,
    version: String,
    state: Option<State>,
}

struct State {
    sandbox: Sandbox,
    function: Function,
}

fn failed(code: &'static str, what: &Path, why: &str) -> Failure {
    Failure::new(code, format!("{}: {why}", what.display()))
}

impl Lua {
    /// The function in `handler`, a file below `agents` in the hooks directory, under the hooks' memory limit.
    #[must_use]
    pub fn new(agent: &config::Agent, hooks: &config::Hooks, version: &str) -> Self {
        Self {
            name: agent.name.clone(),
            handler: agent.handler.clone(),
            history: agent.history,
            hooks: hooks.clone(),
            version: version.to_owned(),
            state: None,
        }
    }

    /// The function's file: below `agents`, without `..`.
    fn file(&self) -> Result<PathBuf, Failure> {
        let handler = Path::new(&self.handler);
        let Some(dir) = &self.hooks.dir else {
            return Err(failed("agent_start", handler, "there is no hooks directory"));
        };
        if self.handler.is_empty() || !handler.components().all(|c| matches!(c, Component::Normal(_))) {
            return Err(failed(
                "agent_start",
                handler,
                "the name of a file below `agents` in the hooks directory expected",
            ));
        }
        Ok(dir.join("agents").join(handler))
    }

    /// Makes the state and takes the function from the file.
    fn build(&self, host: &dyn Host, until: Option<Instant>) -> Result<State, Failure> {
        let file = self.file()?;
        for dir in
            file.ancestors().skip(1).take_while(|d| self.hooks.dir.as_ref().is_some_and(|top| d.starts_with(top)))
        {
            scripts::guarded(dir).map_err(|e| Failure::new("agent_start", e.to_string()))?;
        }
        let start = |why: String| failed("agent_start", &file, &why);
        let text = scripts::read_script(&file).map_err(|e| Failure::new("agent_start", e.to_string()))?;
        let allowed = Allowed { fs: Allowed::of(&self.hooks).fs, agent: true, ..Allowed::default() };
        let sandbox = Sandbox::new(&self.hooks, allowed, &self.version).map_err(|e| start(message(&e)))?;
        sandbox.context().deadline.stop_on(Some(host.interrupted_flag()));
        self.enter(&sandbox, host);
        let chunk = self.globals(&sandbox).and_then(|env| sandbox.compile(&self.handler, &text, env));
        let chunk = chunk.map_err(|e| start(message(&e)))?;
        match sandbox.call(&chunk, (), until) {
            Outcome::Returned(values) => match values.front() {
                Some(Value::Function(f)) => Ok(State { function: f.clone(), sandbox }),
                other => {
                    let got = other.map_or("nothing", Value::type_name);
                    Err(start(format!("the file returned {got}: function(message) expected")))
                }
            },
            Outcome::Raised(why) => Err(start(why)),
            Outcome::Stopped(_) => Err(start("it did not return its function in time".to_owned())),
        }
    }

    fn globals(&self, sandbox: &Sandbox) -> mlua::Result<mlua::Table> {
        let (lua, globals) = (sandbox.lua(), sandbox.globals().clone());
        let (env, _) = globals.make(lua)?;
        let sources = self.hooks.dir.as_deref().map(scripts::modules_below).transpose();
        let sources = sources.map_err(|e| mlua::Error::runtime(e.to_string()))?.unwrap_or_default();
        let guard = globals.guard().clone();
        let find = move |name: &str| sources.get(name).cloned();
        let fresh = move |lua: &mlua::Lua| Ok(globals.make(lua)?.0);
        env.set("require", require(lua, &guard, find, fresh, &modules(lua)?)?)?;
        Ok(env)
    }

    fn enter(&self, sandbox: &Sandbox, host: &dyn Host) {
        let key = Some(host.identity().key.clone());
        sandbox.begin(Call { label: format!("agent {}", self.name), key, ..Call::default() });
    }

    /// Calls the function and returns its outcome.
    fn answer(&self, state: &State, host: &mut dyn Host, prompt: &Prompt) -> mlua::Result<Outcome> {
        let lua = state.sandbox.lua();
        let text = match &prompt.context {
            Some(context) => format!("{context}\n\n{}", prompt.text),
            None => prompt.text.clone(),
        };
        let identity = host.identity().clone();
        let until = host.deadline();
        let host = RefCell::new(host);
        lua.scope(|scope| {
            let message = lua.create_table()?;
            message.raw_set("text", text)?;
            message.raw_set("key", identity.key)?;
            message.raw_set("session_id", identity.session_id)?;
            message.raw_set("turn_id", prompt.turn_id.as_str())?;
            message.raw_set("resumed", prompt.resumed)?;
            let history = scope.create_function(|lua, _: mlua::MultiValue| {
                let entries = host.borrow_mut().history(self.history);
                session::entries(lua, &entries)
            })?;
            message.raw_set("transcript", history)?;
            Ok(state.sandbox.call(&state.function, message, until))
        })
    }

    /// Runs the function for one prompt.
    fn run(&mut self, host: &mut dyn Host, prompt: &Prompt) -> Answer {
        if host.interrupt().is_some() {
            return Answer::Cancelled;
        }
        if !self.is_ready() {
            self.state = None;
            match self.build(host, host.deadline()) {
                Ok(state) => self.state = Some(state),
                Err(_) if host.interrupt().is_some() => return Answer::Cancelled,
                Err(failure) => return Answer::Failed(failure),
            }
        }
        let Some(state) = &self.state else { return Answer::Cancelled };
        // Each turn may have a flag of its own.
        state.sandbox.context().deadline.stop_on(Some(host.interrupted_flag()));
        self.enter(&state.sandbox, host);
        let outcome = self.answer(state, host, prompt).unwrap_or_else(|e| Outcome::Raised(message(&e)));
        let broken = |why: &str| {
            let file = Path::new("agents").join(&self.handler);
            Answer::Failed(failed("agent_error", &file, why))
        };
        match outcome {
            Outcome::Stopped(_) => {
                if host.interrupt().is_none() {
                    // The turn's deadline stopped it; the host sees this in its next wait.
                    host.wait(&mut [], Some(Instant::now()));
                }
                Answer::Cancelled
            }
            Outcome::Raised(why) => {
                log::error!(target: "hook", hook = self.handler.as_str(), key = host.identity().key.as_str();
                    "lua agent: {why}");
                broken(first_line(&why))
            }
            Outcome::Returned(values) => match values.front() {
                Some(Value::String(text)) => match text.to_str() {
                    Ok(text) => {
                        if !text.is_empty() {
                            host.said(Said::Text(text.to_owned()));
                        }
                        Answer::Completed { stop_reason: None }
                    }
                    Err(_) => broken("it returned text that is not UTF-8"),
                },
                other => broken(&format!("it returned {}: a text expected", other.map_or("nothing", Value::type_name))),
            },
        }
    }
}

impl Agent for Lua {
    fn start(&mut self, host: &mut dyn Host, _: Option<&str>, _: bool, until: Instant) -> Result<Started, Failure> {
        self.state = None;
        self.state = Some(self.build(host, Some(until))?);
        Ok(Started { agent_session: None, continuity: Continuity::Stateless })
    }

    fn is_ready(&self) -> bool {
        self.state.as_ref().is_some_and(|s| !s.sandbox.spoiled())
    }

    fn begin(&mut self, host: &mut dyn Host, prompt: &Prompt) -> Progress {
        Progress::Done(self.run(host, prompt))
    }

    fn close(&mut self, _: &mut dyn Host, _: Instant) -> Vec<String> {
        self.state = None;
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::super::{Entry, Identity, Interrupt, PermissionOutcome, PermissionRequest, Wake, Watch};
    use super::*;
    use crate::model::event::Role;
    use crate::thread;

    struct Bench {
        identity: Identity,
        flag: Arc<AtomicBool>,
        said: Vec<String>,
    }

    impl Host for Bench {
        fn identity(&self) -> &Identity {
            &self.identity
        }
        fn wait(&mut self, _: &mut [Watch<'_>], _: Option<Instant>) -> Wake {
            unreachable!("a lua agent does not wait")
        }
        fn interrupt(&self) -> Option<Interrupt> {
            self.flag.load(Ordering::Relaxed).then_some(Interrupt::Kill)
        }
        fn deadline(&self) -> Option<Instant> {
            None
        }
        fn interrupted_flag(&self) -> Arc<AtomicBool> {
            self.flag.clone()
        }
        fn waker(&self) -> std::io::Result<Arc<OwnedFd>> {
            unreachable!("a lua agent does not wait")
        }
        fn said(&mut self, what: Said) {
            if let Said::Text(text) = what {
                self.said.push(text);
            }
        }
        fn permission(&mut self, _: PermissionRequest) -> Option<PermissionOutcome> {
            None
        }
        fn permission_withdrawn(&mut self, _: &str, _: &'static str) {}
        fn permission_answers(&mut self) -> Vec<(String, PermissionOutcome)> {
            Vec::new()
        }
        fn process_started(&mut self, _: u32, _: u64) {}
        fn history(&mut self, limit: u64) -> Vec<Entry> {
            let text = format!("up to {limit}");
            vec![Entry { seq: 1, turn_id: None, role: Role::Agent, text, at: 0 }]
        }
    }

    /// An agent with these files below the hooks directory, and its host.
    fn agent(handler: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, Lua, Bench) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(path.parent().unwrap(), std::fs::Permissions::from_mode(0o755)).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        }
        let hooks = config::Hooks {
            dir: Some(dir.path().to_owned()),
            threads: 1,
            timeout: Duration::from_secs(5),
            memory: 16 << 20,
            allow_exec: true,
            allow_http: true,
            allow_fs: false,
            fs_roots: Vec::new(),
            attempts: 1,
            config: serde_json::json!({ "name": "Bob" }),
        };
        let lua = Lua {
            name: "bot".to_owned(),
            handler: handler.to_owned(),
            history: 4096,
            hooks,
            version: "1".to_owned(),
            state: None,
        };
        let identity = Identity {
            key: "local:a".to_owned(),
            session_id: "S".to_owned(),
            sid: 1,
            boot_id: "B".to_owned(),
            cwd: PathBuf::from("/"),
        };
        (dir, lua, Bench { identity, flag: Arc::default(), said: Vec::new() })
    }

    fn start(lua: &mut Lua, bench: &mut Bench) -> Result<Started, Failure> {
        lua.start(bench, None, false, Instant::now() + Duration::from_millis(300))
    }

    fn prompt(text: &str) -> Prompt {
        Prompt { turn_id: "T".to_owned(), text: text.to_owned(), context: None, frame: None, resumed: false }
    }

    /// The answer to a prompt: the function runs to its end when it begins.
    fn answer(lua: &mut Lua, bench: &mut Bench, prompt: &Prompt) -> Answer {
        let Progress::Done(answer) = lua.begin(bench, prompt) else { panic!("it runs to its end") };
        lua.end(bench);
        answer
    }

    fn completed() -> Answer {
        Answer::Completed { stop_reason: None }
    }

    #[test]
    fn it_answers_with_what_the_function_returns() {
        let script = r#"
            local m = require("m")
            local n = 0
            return function(message)
              n = n + 1
              local rows = message.transcript()
              return table.concat({ n, message.text, message.key, message.session_id, message.turn_id, rows[1].text,
                rows[1].role, ostler.config.name, m }, "|")
            end"#;
        let (_dir, mut lua, mut bench) =
            agent("sub/a.lua", &[("agents/sub/a.lua", script), ("lib/m.lua", "return 'M'")]);
        assert_eq!(start(&mut lua, &mut bench).unwrap().continuity, Continuity::Stateless);
        assert!(lua.is_ready());
        let with_context = Prompt { context: Some("be brief".to_owned()), ..prompt("hi") };
        assert_eq!(answer(&mut lua, &mut bench, &with_context), completed());
        assert_eq!(answer(&mut lua, &mut bench, &prompt("hi")), completed());
        assert_eq!(
            bench.said,
            ["1|be brief\n\nhi|local:a|S|T|up to 4096|agent|Bob|M", "2|hi|local:a|S|T|up to 4096|agent|Bob|M"]
        );
        assert!(lua.close(&mut bench, Instant::now()).is_empty());
        assert!(!lua.is_ready());
    }

    #[test]
    fn a_start_that_cannot_be_says_why() {
        for (handler, script, why) in [
            ("a.lua", "return 7", "returned integer: function(message) expected"),
            ("a.lua", "x = = 1", "a.lua:1: unexpected symbol"),
            ("a.lua", "error('on purpose')", "on purpose"),
            ("a.lua", "while true do end", "in time"),
            ("a.lua", "ostler.http.request{}", "ostler.http: not available in an agent"),
            ("a.lua", "ostler.on('message', print)", "ostler.on: no such function"),
            ("../a.lua", "", "a file below `agents`"),
            ("/etc/passwd", "", "a file below `agents`"),
            ("missing.lua", "", "cannot be read"),
        ] {
            let (_dir, mut lua, mut bench) = agent(handler, &[("agents/a.lua", script)]);
            let failure = start(&mut lua, &mut bench).unwrap_err();
            assert!(failure.code == "agent_start" && failure.message.contains(why), "{script}: {failure}");
            assert!(!lua.is_ready());
        }
    }

    #[test]
    fn a_function_that_fails_fails_the_turn_and_the_next_goes_on() {
        let script = r#"return function(m)
            if m.text == "error" then error("on purpose") end
            if m.text == "memory" then local t = {} for i = 1, 1e9 do t[i] = { i } end end
            if m.text == "bytes" then return "\xff" end
            if m.text == "table" then return {} end
            if m.text == "nil" then return end
            if m.text == "yield" then coroutine.yield() end
            return "ok"
        end"#;
        let (_dir, mut lua, mut bench) = agent("a.lua", &[("agents/a.lua", script)]);
        start(&mut lua, &mut bench).unwrap();
        for (text, why) in [
            ("error", "on purpose"),
            ("memory", "memory"),
            ("bytes", "not UTF-8"),
            ("table", "returned table"),
            ("nil", "returned nothing"),
            ("yield", "yielded"),
        ] {
            let Answer::Failed(failure) = answer(&mut lua, &mut bench, &prompt(text)) else { panic!("{text}") };
            assert!(failure.code == "agent_error" && failure.message.contains(why), "{failure}");
            assert!(failure.message.starts_with("agents/a.lua: "), "{failure}");
            assert_eq!(answer(&mut lua, &mut bench, &prompt("x")), completed(), "after {text}");
        }
    }

    #[test]
    fn an_interrupt_stops_whatever_it_does_and_the_next_turn_works() {
        for (i, body) in [
            "while true do end",
            "while true do pcall(function() while true do end end) end",
            "while true do pcall(coroutine.wrap(function() while true do end end)) end",
            "('x'):gsub('.', function() while true do pcall(function() while true do end end) end end)",
            "string.find(('a'):rep(30000), ('.-'):rep(8) .. 'b')",
            "while true do m.transcript() end",
        ]
        .iter()
        .enumerate()
        {
            let script = format!("return function(m) if m.text == 'go' then {body} end return 'ok' end");
            let (_dir, mut lua, mut bench) = agent("a.lua", &[("agents/a.lua", &script)]);
            start(&mut lua, &mut bench).unwrap();
            let (flag, (go, gone)) = (bench.flag.clone(), crossbeam_channel::bounded::<()>(1));
            let setter = thread::spawn("interrupt", thread::IO_STACK, move || {
                let _ = gone.recv_timeout(Duration::from_millis(30));
                flag.store(true, Ordering::Relaxed);
            });
            assert_eq!(answer(&mut lua, &mut bench, &prompt("go")), Answer::Cancelled, "{i}");
            drop(go);
            setter.unwrap().join().unwrap();
            assert_eq!(answer(&mut lua, &mut bench, &prompt("go")), Answer::Cancelled, "an interrupt in force");
            bench.flag.store(false, Ordering::Relaxed);
            assert_eq!(answer(&mut lua, &mut bench, &prompt("x")), completed(), "{i}");
            assert_eq!(bench.said, ["ok"]);
        }
    }

    #[test]
    fn the_deepest_nesting_fits_the_stack_that_workers_have() {
        let script = "return function(m) local function f() ('x'):gsub('.', f) end \
            local function g() coroutine.wrap(g)() end local function h() table.sort({ 1, 2, 3 }, h) end \
            return tostring(pcall(f)) .. tostring(pcall(g)) .. tostring(pcall(h)) end";
        let work = thread::spawn("worker", thread::DEEP_STACK, move || {
            let (_dir, mut lua, mut bench) = agent("a.lua", &[("agents/a.lua", script)]);
            start(&mut lua, &mut bench).unwrap();
            assert_eq!(answer(&mut lua, &mut bench, &prompt("x")), completed());
            bench.said
        });
        assert_eq!(work.unwrap().join().unwrap(), ["falsefalsefalse"]);
    }
}
