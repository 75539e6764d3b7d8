//! Runs the tests of the shipped scripts: `scripts/NAME.test.lua` beside each `scripts/NAME.lua`.
//!
//! A test file is plain Lua and speaks of the script from outside. What it has beside Lua's own library:
//!
//! | call | does |
//! |---|---|
//! | `test(name, function)` | one test; each begins with an empty host, an empty `dir` and a server that answers 200 |
//! | `start{config=, allow=}` | loads the script into the real sandbox, under this `[hooks]` |
//! | `refused(settings, words)` | loading it fails, and says these words |
//! | `fire(event, fields)` | a sample event with these fields in it; gives `outcome`, `error`, and of synchronous events `text`, `refuse`, `context`, `choice`, `hook_failed` |
//! | `delivered(fired)`, `failed(fired, words)` | every handler returned; one failed and said these words |
//! | `tick(name)` | runs a timer of `ostler.every` |
//! | `transcript(session_id, {{role, text}, …})`, `session(name, info)` | what the host knows |
//! | `kv.get(key)`, `kv.set(key, value)`, `sent()` | what the host keeps, and what was sent |
//! | `dir`, `files()` | the directory below which scripts may open files, and what is in it |
//! | `url`, `requests()`, `answers(status, …)` | a web server, what it was asked, and what it answers next |
//! | `equal(got, wanted)`, `null`, `array(list)` | |

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;

use mlua::{Function, Lua, LuaSerdeExt, MultiValue, Table};

use super::super::trial::{Trial, TrialHost, answer};
use super::*;
use crate::thread;

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts")
}

/// The helpers that are best said in Lua.
const PRELUDE: &str = r#"
function equal(got, wanted)
  if got ~= wanted then error(("got %s, wanted %s"):format(tostring(got), tostring(wanted)), 2) end
end
function delivered(fired)
  if fired.outcome ~= "delivered" then error(("%s: %s"):format(fired.outcome, fired.error), 2) end
end
function failed(fired, words)
  if fired.outcome ~= "failed" then error("it was " .. fired.outcome, 2) end
  if not fired.error:find(words, 1, true) then error("it says: " .. fired.error, 2) end
end
function refused(settings, words)
  local ok, why = pcall(start, settings)
  if ok then error("it was loaded", 2) end
  if not tostring(why):find(words, 1, true) then error("it says: " .. tostring(why), 2) end
end
"#;

/// A web server that notes what it is asked.
struct Web {
    url: String,
    asked: Arc<Mutex<Vec<Value>>>,
    answers: Arc<Mutex<VecDeque<u16>>>,
}

impl Web {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let web = Self { url, asked: Arc::default(), answers: Arc::default() };
        let (asked, answers) = (web.asked.clone(), web.answers.clone());
        // It ends with the process; a connection that says nothing costs only itself.
        let _ = thread::spawn("web", thread::IO_STACK, move || {
            for stream in listener.incoming().flatten() {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                if let Some(request) = request(&stream) {
                    lock(&asked).push(request);
                    let status = lock(&answers).pop_front().unwrap_or(200);
                    let head = format!("HTTP/1.1 {status} Said\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
                    let _ = (&stream).write_all(head.as_bytes());
                }
            }
        });
        web
    }
}

/// One request: its line, its headers by their names in small letters, its body, and that as JSON.
fn request(mut stream: &TcpStream) -> Option<Value> {
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let mut lines = head.lines();
            let line = lines.next()?.to_owned();
            let headers: serde_json::Map<String, Value> = lines
                .filter_map(|l| l.split_once(": "))
                .map(|(name, value)| (name.to_lowercase(), Value::from(value)))
                .collect();
            let length = headers.get("content-length").and_then(|v| v.as_str()?.parse().ok()).unwrap_or(0);
            if body.len() >= length {
                let parsed: Value = serde_json::from_str(body).unwrap_or_default();
                return Some(json!({ "line": line, "headers": headers, "body": body, "json": parsed }));
            }
        }
        let n = stream.read(&mut piece).ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&piece[..n]);
    }
}

/// What one test of a script works on.
struct Stand {
    script: PathBuf,
    dir: tempfile::TempDir,
    host: Arc<TrialHost>,
    trial: Mutex<Option<Trial>>,
}

impl Stand {
    fn load(&self, asked: &Value) -> Result<(), String> {
        let allowed = |what: &str| asked["allow"].as_array().is_some_and(|list| list.contains(&json!(what)));
        let config = if asked["config"].is_object() { asked["config"].clone() } else { json!({}) };
        let hooks = config::Hooks {
            dir: None,
            allow_exec: allowed("exec"),
            allow_http: allowed("http"),
            allow_fs: allowed("fs"),
            fs_roots: vec![self.dir.path().to_owned()],
            config,
            ..settings(self.dir.path())
        };
        *lock(&self.trial) = None;
        let trial = Trial::new(&self.script, &hooks, self.host.clone()).map_err(|e| e.to_string())?;
        *lock(&self.trial) = Some(trial);
        Ok(())
    }

    fn fire(&self, event: &str, fields: &Value) -> Result<Value, String> {
        let kind = HookEvent::parse(event).ok_or_else(|| format!("{event}: no such event"))?;
        let fields = fields.as_object().cloned().unwrap_or_default();
        let mut trial = lock(&self.trial);
        let trial = trial.as_mut().ok_or("nothing is started")?;
        // As a real one, unless the test says otherwise.
        let test = fields.get("test") == Some(&json!(true));
        let fired = trial.fire(Event { test, ..sample_with(kind, &fields) });
        if fired.calls.is_empty() {
            return Err(format!("{event}: no handler is registered for it"));
        }
        let mut result = fired.verdict.as_ref().map_or_else(|| json!({}), |v| answer(kind, v));
        let outcome = |d: &Delivered| match d {
            Delivered::Done => None,
            Delivered::Failed(why) => Some(("failed", why.clone())),
            Delivered::TimedOut(why) => Some(("timed_out", why.clone())),
            other => Some(("not_called", format!("{other:?}"))),
        };
        let (outcome, error) = match fired.calls.iter().find_map(|call| outcome(&call.outcome)) {
            Some((outcome, error)) => (outcome, Value::from(error)),
            None => ("delivered", Value::Null),
        };
        result["outcome"] = outcome.into();
        result["error"] = error;
        Ok(result)
    }

    fn files(&self) -> Value {
        let read = |entry: std::io::Result<std::fs::DirEntry>| {
            let entry = entry.unwrap();
            let text = std::fs::read_to_string(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), Value::from(text))
        };
        std::fs::read_dir(self.dir.path()).unwrap().map(read).collect::<serde_json::Map<_, _>>().into()
    }
}

fn raised(why: String) -> mlua::Error {
    mlua::Error::runtime(why)
}

/// What a test file of this stand may call.
fn offer(lua: &Lua, stand: &Arc<Stand>, web: &Web) -> mlua::Result<()> {
    let env = lua.globals();
    let absent = mlua::serde::ser::Options::new().serialize_none_to_null(false).serialize_unit_to_null(false);
    env.set("null", lua.null())?;
    env.set("dir", stand.dir.path().to_str().unwrap())?;
    env.set("url", web.url.as_str())?;
    env.set(
        "array",
        lua.create_function(|lua, list: Table| {
            list.set_metatable(Some(lua.array_metatable()))?;
            Ok(list)
        })?,
    )?;
    let s = stand.clone();
    env.set("start", lua.create_function(move |lua, asked| s.load(&lua.from_value(asked)?).map_err(raised))?)?;
    let s = stand.clone();
    env.set(
        "fire",
        lua.create_function(move |lua, (event, fields): (String, mlua::Value)| {
            let fired = s.fire(&event, &lua.from_value(fields)?).map_err(raised)?;
            lua.to_value_with(&fired, absent)
        })?,
    )?;
    let s = stand.clone();
    env.set(
        "tick",
        lua.create_function(move |_, name: String| {
            let ran = lock(&s.trial).as_mut().and_then(|trial| trial.tick(&name));
            if ran == Some(Delivered::Done) { Ok(()) } else { Err(raised(format!("timer {name}: {ran:?}"))) }
        })?,
    )?;
    let s = stand.clone();
    env.set(
        "transcript",
        lua.create_function(move |_, (id, said): (String, Vec<Table>)| {
            let one = |entry: Table| {
                let role = Role::parse(&entry.get::<String>(1)?).ok_or_else(|| raised("no such role".to_owned()))?;
                Ok((role, entry.get::<String>(2)?))
            };
            s.host.say(&id, said.into_iter().map(one).collect::<mlua::Result<Vec<_>>>()?);
            Ok(())
        })?,
    )?;
    let s = stand.clone();
    env.set(
        "session",
        lua.create_function(move |lua, (name, info): (String, mlua::Value)| {
            s.host.know(&name, lua.from_value(info)?);
            Ok(())
        })?,
    )?;
    offer_findings(lua, stand, web)
}

/// What came of it.
fn offer_findings(lua: &Lua, stand: &Arc<Stand>, web: &Web) -> mlua::Result<()> {
    let (env, kv) = (lua.globals(), lua.create_table()?);
    let s = stand.clone();
    kv.set(
        "get",
        lua.create_function(move |lua, key: String| match s.host.kv_get(&key).map_err(raised)? {
            Some(value) => lua.to_value(&value),
            None => Ok(mlua::Value::Nil),
        })?,
    )?;
    let s = stand.clone();
    kv.set(
        "set",
        lua.create_function(move |lua, (key, value): (String, mlua::Value)| {
            s.host.kv_set(&key, Some(lua.from_value(value)?), None, None).map_err(raised)
        })?,
    )?;
    env.set("kv", kv)?;
    let s = stand.clone();
    env.set(
        "sent",
        lua.create_function(move |lua, ()| {
            let row = |(key, text, id)| json!({ "key": key, "text": text, "id": id });
            lua.to_value(&s.host.sent().into_iter().map(row).collect::<Vec<_>>())
        })?,
    )?;
    let s = stand.clone();
    env.set("files", lua.create_function(move |lua, ()| lua.to_value(&s.files()))?)?;
    let asked = web.asked.clone();
    env.set("requests", lua.create_function(move |lua, ()| lua.to_value(&*lock(&asked)))?)?;
    let answers = web.answers.clone();
    env.set(
        "answers",
        lua.create_function(move |_, statuses: mlua::Variadic<u16>| {
            lock(&answers).extend(statuses.iter());
            Ok(())
        })?,
    )?;
    Ok(())
}

/// The tests of a file, by name, in a state of their own over `stand`.
fn tests_of(file: &Path, stand: &Arc<Stand>, web: &Web) -> (Lua, Vec<(String, Function)>) {
    let lua = Lua::new();
    offer(&lua, stand, web).unwrap();
    lua.load(PRELUDE).set_name("=prelude").exec().unwrap();
    let found = Arc::new(Mutex::new(Vec::new()));
    let list = found.clone();
    let test = move |_: &Lua, (name, body): (String, Function)| {
        lock(&list).push((name, body));
        Ok(())
    };
    lua.globals().set("test", lua.create_function(test).unwrap()).unwrap();
    let text = std::fs::read_to_string(file).unwrap();
    let name = file.file_name().unwrap().to_str().unwrap();
    lua.load(text).set_name(format!("@{name}")).exec().unwrap_or_else(|e| panic!("{e}"));
    let tests = std::mem::take(&mut *lock(&found));
    (lua, tests)
}

/// Runs every test of a script, each in a state and a host of its own; gives how many, or what failed.
fn run(script: &Path) -> Result<usize, String> {
    let file = script.with_extension("test.lua");
    let web = Web::start();
    let (mut nth, mut failures) = (0, String::new());
    loop {
        let dir = tempfile::tempdir().unwrap();
        let host = Arc::new(TrialHost::default());
        let stand = Arc::new(Stand { script: script.to_owned(), dir, host, trial: Mutex::default() });
        lock(&web.asked).clear();
        lock(&web.answers).clear();
        let (_lua, tests) = tests_of(&file, &stand, &web);
        let Some((name, body)) = tests.get(nth) else { break };
        if let Err(e) = body.call::<MultiValue>(()) {
            failures += &format!("{}: {name}: {e}\n", file.display());
        }
        nth += 1;
    }
    if failures.is_empty() { Ok(nth) } else { Err(failures) }
}

fn run_shipped(name: &str) {
    // A copy of our own: whoever checked the sources out may have left them to a group, and such scripts are refused.
    let test = name.replace(".lua", ".test.lua");
    let texts = [name, &test].map(|file| std::fs::read_to_string(shipped().join(file)).unwrap());
    let dir = scripts(&[(name, &texts[0]), (&test, &texts[1])]);
    let script = dir.path().join(name);
    let tried = thread::spawn("scripts", thread::DEEP_STACK, move || run(&script)).unwrap().join().unwrap();
    match tried {
        Ok(tests) => assert!(tests >= 3, "{name}: only {tests} tests"),
        Err(failures) => panic!("{failures}"),
    }
}

#[test]
fn archive() {
    run_shipped("archive.lua");
}

#[test]
fn webhook() {
    run_shipped("webhook.lua");
}

#[test]
fn permissions() {
    run_shipped("permissions.lua");
}

#[test]
fn filter() {
    run_shipped("filter.lua");
}

#[test]
fn memory() {
    run_shipped("memory.lua");
}

#[test]
fn report() {
    run_shipped("report.lua");
}

#[test]
fn every_shipped_script_has_its_test_and_says_what_it_needs() {
    let ran = include_str!("scripts.rs");
    let mut scripts = 0;
    for entry in std::fs::read_dir(shipped()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.extension().is_none_or(|e| e != "lua") || super::super::scripts::no_hook(&name).is_some() {
            continue;
        }
        scripts += 1;
        assert!(path.with_extension("test.lua").exists(), "{name}: no test beside it");
        assert!(ran.contains(&format!("run_shipped(\"{name}\")")), "{name}: its test is not run");
        let text = std::fs::read_to_string(&path).unwrap();
        let head: Vec<&str> = text.lines().take_while(|l| l.starts_with("--")).collect();
        assert!(
            head.len() >= 5 && head.iter().any(|l| l.contains("[hooks")),
            "{name}: opens with no comment on [hooks]"
        );
        assert!(text.lines().all(|l| l.chars().count() <= 120), "{name}: a line is too long");
    }
    assert_eq!(scripts, 6);
}

/// With everything allowed and each script's least configuration, `hooks check` has nothing to say, and they all live in
/// one directory together.
#[test]
fn the_shipped_scripts_are_clean_and_go_together() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let mut all = settings(dir.path());
    (all.allow_exec, all.allow_http, all.allow_fs) = (true, true, true);
    all.config = json!({ "archive": { "dir": "/nowhere" }, "webhook": { "url": "http://127.0.0.1:1/" } });
    let mut files = Vec::new();
    for entry in std::fs::read_dir(shipped()).unwrap() {
        let path = entry.unwrap().path();
        let copy = dir.path().join(path.file_name().unwrap());
        std::fs::copy(&path, &copy).unwrap();
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o644)).unwrap();
        if path.extension().is_some_and(|e| e == "lua") {
            files.push(copy);
        }
    }
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    for problem in check(&files, &all) {
        assert!(!problem.error && problem.message.starts_with("not looked at: it is "), "{problem}");
    }
    assert!(load(&all, "1").unwrap().len() >= 10);
}
