//! `scripts/ostler.d.lua` says what there is: compared with the real API and the sample events, both ways, so that
//! neither grows or loses a name without the other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::super::trial::{Trial, TrialHost};
use super::*;
use crate::model::event::{Actor, EndReason, MarkReason, Outcome, StartReason, StopReason};
use crate::thread;

const TEXT: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/ostler.d.lua"));

type Names = BTreeSet<String>;

/// The annotations, read line by line.
#[derive(Default)]
struct Annotations {
    /// Functions and tables by their whole name: `ostler.kv.get`, `Session:send`.
    things: Names,
    /// Fields by class, with what they inherit.
    classes: BTreeMap<String, (Option<String>, Names)>,
    /// Words by alias.
    words: BTreeMap<String, Vec<String>>,
    /// Events that `ostler.on` knows by themselves, with the class that their handler gets, or the alias of the handler.
    events: BTreeMap<String, String>,
}

fn annotations() -> Annotations {
    let mut all = Annotations::default();
    let (mut class, mut alias) = (String::new(), String::new());
    for line in TEXT.lines() {
        if let Some(rest) = line.strip_prefix("---@class ostler.") {
            let (name, parent) = rest.split_once(" : ostler.").map_or((rest, None), |(n, p)| (n, Some(p.to_owned())));
            assert!(all.classes.insert(name.to_owned(), (parent, Names::new())).is_none(), "{name} twice");
            name.clone_into(&mut class);
        } else if let Some(rest) = line.strip_prefix("---@field ") {
            let name = rest.split(' ').next().unwrap().to_owned();
            assert!(all.classes.get_mut(&class).unwrap().1.insert(name), "{line} twice in {class}");
        } else if let Some(rest) = line.strip_prefix("---@alias ostler.") {
            rest.split(' ').next().unwrap().clone_into(&mut alias);
        } else if let Some(word) = line.strip_prefix("---| ") {
            all.words.entry(alias.clone()).or_default().push(word.trim_matches('"').to_owned());
        } else if let Some(rest) = line.strip_prefix("---@overload fun(event: \"") {
            let (event, rest) = rest.split_once('"').unwrap();
            let class = rest.split("ostler.").nth(1).unwrap().split([')', ',']).next().unwrap();
            all.events.insert(event.to_owned(), class.trim_start_matches("On").to_owned());
        } else if let Some(rest) = line.strip_prefix("function ") {
            assert!(all.things.insert(rest.split('(').next().unwrap().to_owned()), "{line} twice");
        } else if let Some((name, _)) = line.split_once(" = ").filter(|_| line.starts_with(char::is_lowercase))
            && !name.starts_with("local ")
        {
            assert!(all.things.insert(name.to_owned()), "{line} twice");
        }
    }
    all
}

impl Annotations {
    /// The fields of a class, inherited ones too.
    fn fields(&self, class: &str) -> Names {
        let (parent, own) = self.classes.get(class).unwrap_or_else(|| panic!("no class ostler.{class}"));
        let inherited = parent.as_ref().map(|p| self.fields(p)).unwrap_or_default();
        own.union(&inherited).cloned().collect()
    }

    fn methods(&self, of: &str) -> Names {
        self.things.iter().filter_map(|t| t.strip_prefix(of)?.strip_prefix(':')).map(str::to_owned).collect()
    }
}

/// Notes what the API is made of, and what it says of options that it does not know.
const WALK: &str = r#"
local function bogus(f, ...)
  local ok, why = pcall(f, ...)
  assert(not ok, "an unknown option was taken")
  return assert(why:match("%(known: (.-)%)"), why)
end
local found = {
  OnOptions = bogus(ostler.on, "stopped", print, { bogus = 1 }),
  EveryOptions = bogus(ostler.every, "1h", print, { bogus = 1 }),
}
local names = {}
local function walk(prefix, t)
  for key, value in pairs(t) do
    local name = prefix .. key
    names[#names + 1] = name
    if type(value) == "table" and name ~= "ostler.config" then walk(name .. ".", value) end
  end
end
local function keys(t)
  local list = {}
  for key in pairs(t) do list[#list + 1] = key end
  return table.concat(list, ", ")
end
ostler.on("session_end", function(ev)
  walk("ostler.", ostler) walk("io.", io) walk("os.", os)
  names[#names + 1] = "ostler" names[#names + 1] = "io" names[#names + 1] = "os"
  local session = ostler.session("local:a")
  local globals = {}
  for key in pairs(_G) do globals[#globals + 1] = key end
  found.things, found.globals = table.concat(names, ", "), table.concat(globals, ", ")
  found.session = keys(session)
  found.KvSetOptions = bogus(ostler.kv.set, "a", 1, { bogus = 1 })
  found.KvIncrOptions = bogus(ostler.kv.incr, "a", 1, { bogus = 1 })
  found.SendOptions = bogus(session.send, session, "x", { bogus = 1 })
  found.TranscriptOptions = bogus(ev.transcript, ev, { bogus = 1 })
  found.HttpRequest = bogus(ostler.http.request, { bogus = 1 })
  found.ExecRequest = bogus(ostler.exec, { bogus = 1 })
  found.Sent = keys(session:send("x"))
  found.Entry = keys(ev:transcript()[1])
  local done = keys(assert(ostler.exec { argv = { "true" } }))
  found.ExecResult = done .. ", " .. keys(assert(ostler.exec { argv = { "sh", "-c", "kill -9 $$" } }))
  found.HttpAnswer = keys(assert(ostler.http.request { url = ostler.config.url }))
  ostler.kv.set("found", found)
end, { timeout = "20s" })
ostler.on("message", function() return { bogus = 1 } end)
ostler.on("before_turn", function() return { bogus = 1 } end)
"#;

/// A script that notes the names of an event's fields.
fn listener(kind: HookEvent) -> String {
    let note = "local names = {} for name in pairs(ev) do names[#names + 1] = name end \
                if ev.test ~= true then error('no test') end \
                local ok = pcall(function() return ev:transcript() end) \
                ostler.kv.set(ev.event, { table.concat(names, ', '), ok })";
    format!("ostler.on('{kind}', function(ev) {note} end)\n")
}

fn split(list: &Value) -> Names {
    list.as_str().unwrap().split(", ").map(str::to_owned).collect()
}

fn trial(script: &str, config: Value) -> Trial {
    let dir = scripts(&[("a.lua", script)]);
    let mut all = settings(dir.path());
    (all.allow_exec, all.allow_http, all.allow_fs, all.config) = (true, true, true, config);
    Trial::new(&dir.path().join("a.lua"), &all, Arc::new(TrialHost::default())).unwrap()
}

fn on_a_deep_stack(test: impl FnOnce() + Send + 'static) {
    thread::spawn("annotations", thread::DEEP_STACK, test).unwrap().join().unwrap();
}

/// A web server that answers once.
fn once() -> String {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let _ = thread::spawn("web", thread::IO_STACK, move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    });
    url
}

#[test]
fn the_annotations_name_what_the_api_has_and_nothing_else() {
    on_a_deep_stack(|| {
        let said = annotations();
        let mut trial = trial(WALK, json!({ "url": once() }));
        let entry = Entry { seq: 1, turn_id: Some("T".to_owned()), role: Role::User, text: "x".to_owned(), at: 0 };
        trial.host().recall(super::super::sample::SESSION, vec![entry]);
        let fired = trial.fire(sample(HookEvent::SessionEnd));
        assert_eq!(fired.calls[0].outcome, Delivered::Done);
        let found = trial.host().kept()["found"].clone();
        for (class, list) in found.as_object().unwrap().iter().filter(|(name, _)| name.starts_with(char::is_uppercase))
        {
            assert_eq!(said.fields(class), split(list), "ostler.{class}");
        }
        let session: Names = said.fields("Session").union(&said.methods("Session")).cloned().collect();
        assert_eq!(session, split(&found["session"]), "what ostler.session gives");
        let globals: Names = said.things.iter().filter(|t| !t.contains(':')).cloned().collect();
        let mut things = split(&found["things"]);
        things.insert("require".to_owned());
        assert_eq!(globals, things, "functions and tables");
        for name in ["require", "io", "os", "ostler"] {
            assert!(split(&found["globals"]).contains(name), "{name}");
        }
        for (kind, class) in [(HookEvent::Message, "MessageResult"), (HookEvent::BeforeTurn, "BeforeTurnResult")] {
            let Delivered::Failed(why) = &trial.fire(sample(kind)).calls[0].outcome else { panic!("{kind}") };
            let known = why.split_once("(known: ").unwrap().1.split(')').next().unwrap();
            assert_eq!(said.fields(class), split(&known.into()), "{class}");
        }
    });
}

/// A userdata does not tell its methods: they are read where they are made.
#[test]
fn an_open_files_methods_are_annotated() {
    let source = include_str!("../api/fs.rs");
    let made = source.split("(lua, guard, \"file:").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
    assert_eq!(annotations().methods("File"), made.collect::<Names>());
}

#[test]
fn the_annotations_name_every_events_fields_and_nothing_else() {
    on_a_deep_stack(|| {
        let said = annotations();
        let all: Names = HookEvent::ALL.iter().map(|e| e.as_str().to_owned()).collect();
        assert_eq!(said.events.keys().cloned().collect::<Names>(), all, "the overloads of ostler.on");
        let mut script = String::new();
        for kind in HookEvent::ALL {
            let _ = write!(script, "{}", listener(*kind));
        }
        let mut trial = trial(&script, json!({}));
        for kind in HookEvent::ALL {
            let fired = trial.fire(sample(*kind));
            assert_eq!(fired.calls[0].outcome, Delivered::Done, "{kind}");
            let noted = trial.host().kept()[kind.as_str()].clone();
            let class = &said.events[kind.as_str()];
            assert_eq!(said.fields(class), split(&noted[0]), "fields of {kind} and ostler.{class}");
            let readable = said.classes[class].0.as_deref() == Some("SessionEvent");
            assert_eq!(noted[1], readable, "ev:transcript of {kind}");
        }
    });
}

#[test]
fn the_annotations_have_the_words_of_the_vocabulary() {
    let said = annotations();
    fn texts<T: Copy>(all: &[T], text: fn(T) -> &'static str) -> Vec<String> {
        all.iter().map(|w| text(*w).to_owned()).collect()
    }
    for (alias, words) in [
        ("EventName", texts(HookEvent::ALL, HookEvent::as_str)),
        ("EndReason", texts(EndReason::ALL, EndReason::as_str)),
        ("StartReason", texts(StartReason::ALL, StartReason::as_str)),
        ("Actor", texts(Actor::ALL, Actor::as_str)),
        ("MarkReason", texts(MarkReason::ALL, MarkReason::as_str)),
        ("Outcome", texts(Outcome::ALL, Outcome::as_str)),
        ("StopReason", texts(StopReason::ALL, StopReason::as_str)),
        ("Role", texts(Role::ALL, Role::as_str)),
    ] {
        assert_eq!(said.words[alias], words, "ostler.{alias}");
    }
    assert_eq!(said.words.len(), 8);
}

/// The parts of events that are tables: what the samples have in them is annotated, and the other way round.
#[test]
fn the_annotations_name_the_parts_of_events() {
    let said = annotations();
    let part = |kind: HookEvent, pointer: &str| -> Names {
        sample(kind).fields.pointer(pointer).unwrap().as_object().unwrap().keys().cloned().collect()
    };
    for (class, kind, pointer) in [
        ("Mark", HookEvent::SessionEnd, "/resume_pending"),
        ("Recovered", HookEvent::DaemonStart, "/recovered"),
        ("Location", HookEvent::Permission, "/locations/0"),
        ("Option", HookEvent::Permission, "/options/0"),
        ("Report", HookEvent::Stopped, "/report"),
    ] {
        assert_eq!(said.fields(class), part(kind, pointer), "ostler.{class}");
    }
    let peer = part(HookEvent::Message, "/peer");
    assert!(peer.is_subset(&said.fields("Peer")), "{peer:?}");
}

/// It is Lua, and nothing that an editor or a daemon could trip over.
#[test]
fn the_annotations_are_lua() {
    let lua = mlua::Lua::new();
    lua.load(TEXT).set_name("@ostler.d.lua").into_function().unwrap();
    assert!(TEXT.starts_with("---@meta"));
}
