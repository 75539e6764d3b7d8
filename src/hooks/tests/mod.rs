//! What the hooks promise, tried on real threads with short timeouts. Nothing sleeps: every wait is for an answer.
#![allow(clippy::unwrap_used)]

mod annotations;
mod bodies;
mod hostile;
mod loading;
mod order;
mod outside;
mod scripts;
mod threads;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use serde_json::{Value, json};

use super::pool::Tuning;
use super::timer::Timed;
use super::*;
use crate::config;
use crate::model::event::Entry;
use crate::model::event::Role;

/// Longer than anything takes that works.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A host in memory: it keeps values, notes messages, and blocks the reading of one key until the test opens the gate.
pub struct MemoryHost {
    pub kv: Mutex<HashMap<String, Value>>,
    pub sent: Mutex<Vec<(String, String, String)>>,
    pub claims: Mutex<HashMap<String, Vec<Millis>>>,
    pub notes: Sender<String>,
    pub noted: Receiver<String>,
    pub gate: Receiver<()>,
    pub open: Sender<()>,
}

impl MemoryHost {
    pub fn new() -> Arc<Self> {
        let (notes, noted) = unbounded();
        let (open, gate) = unbounded();
        Arc::new(Self {
            kv: Mutex::default(),
            sent: Mutex::default(),
            claims: Mutex::default(),
            notes,
            noted,
            gate,
            open,
        })
    }
}

impl HookHost for MemoryHost {
    fn transcript(&self, id: &str, after: i64, limit: usize, upto: Option<i64>) -> Result<Vec<Entry>, String> {
        let upto = upto.unwrap_or(100);
        Ok((after + 1..=upto)
            .take(limit)
            .map(|seq| Entry { seq, turn_id: None, role: Role::User, text: format!("{id}/{seq}"), at: 0 })
            .collect())
    }

    fn kv_get(&self, key: &str) -> Result<Option<Value>, String> {
        if key == "block" {
            self.notes.send("blocked".to_owned()).unwrap();
            let _ = self.gate.recv_timeout(PATIENCE);
            return Ok(None);
        }
        Ok(lock(&self.kv).get(key).cloned())
    }

    fn kv_set(&self, key: &str, value: Option<Value>, _: Option<Duration>, only_if: OnlyIf) -> Result<bool, String> {
        if key == "note" {
            self.notes.send(value.unwrap().as_str().unwrap().to_owned()).unwrap();
            return Ok(true);
        }
        if key == "broken" {
            return Err("the store is away".to_owned());
        }
        let mut kv = lock(&self.kv);
        if only_if.is_some_and(|wanted| wanted != kv.get(key).cloned()) {
            return Ok(false);
        }
        match value {
            Some(value) => kv.insert(key.to_owned(), value),
            None => kv.remove(key),
        };
        Ok(true)
    }

    fn kv_incr(&self, key: &str, by: i64, _: Option<Duration>) -> Result<i64, String> {
        let mut kv = lock(&self.kv);
        let sum = kv.get(key).and_then(Value::as_i64).unwrap_or(0) + by;
        kv.insert(key.to_owned(), json!(sum));
        Ok(sum)
    }

    fn send(&self, key: &str, text: &str, id: Option<&str>) -> Result<Value, String> {
        lock(&self.sent).push((key.to_owned(), text.to_owned(), id.unwrap_or("").to_owned()));
        Ok(json!({ "turn_id": "t", "duplicate": false }))
    }

    fn session_info(&self, key: &str) -> Result<Option<Value>, String> {
        Ok((key != "local:nobody").then(|| json!({ "key": key, "id": "S", "state": "live" })))
    }

    fn timer_claim(&self, name: &str, due: Millis) -> Result<bool, String> {
        let mut claims = lock(&self.claims);
        let of = claims.entry(name.to_owned()).or_default();
        if of.contains(&due) {
            return Ok(false);
        }
        of.push(due);
        Ok(true)
    }

    fn timer_restart(&self, name: &str, due: Millis) -> Result<(), String> {
        lock(&self.claims).insert(name.to_owned(), vec![due]);
        Ok(())
    }

    fn timer_last(&self, name: &str) -> Result<Option<Millis>, String> {
        Ok(lock(&self.claims).get(name).and_then(|c| c.iter().max().copied()))
    }
}

/// A hooks directory with scripts in it.
pub fn scripts(files: &[(&str, &str)]) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        let parent = path.parent().unwrap();
        std::fs::create_dir_all(parent).unwrap();
        std::fs::set_permissions(parent, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    dir
}

pub fn settings(dir: &Path) -> config::Hooks {
    config::Hooks {
        dir: Some(dir.to_owned()),
        threads: 2,
        timeout: Duration::from_secs(5),
        memory: 16 * 1024 * 1024,
        allow_exec: false,
        allow_http: false,
        allow_fs: false,
        fs_roots: Vec::new(),
        attempts: 5,
        config: json!({ "colour": "red", "none": null }),
    }
}

pub const SHORT: Tuning =
    Tuning { grace: Duration::from_millis(100), rest: Duration::from_secs(60), bound: 1024, losses: 8 };

/// Hooks over one script.
pub fn hooks(script: &str) -> (Hooks, Arc<MemoryHost>) {
    hooks_with(&[("10-test.lua", script)], SHORT, |_| {})
}

pub fn hooks_with(
    files: &[(&str, &str)],
    tuning: Tuning,
    change: impl FnOnce(&mut config::Hooks),
) -> (Hooks, Arc<MemoryHost>) {
    let dir = scripts(files);
    let mut settings = settings(dir.path());
    change(&mut settings);
    let host = MemoryHost::new();
    let loaded = load(&settings, "1.2.3").unwrap();
    (Hooks::start_with(loaded, host.clone(), "boot", tuning).unwrap(), host)
}

pub fn event(kind: HookEvent, key: &str, fields: Value) -> Event {
    let key = (!key.is_empty()).then(|| key.to_owned());
    Event {
        kind,
        event_id: "event-1".to_owned(),
        at: 0,
        attempt: 1,
        redelivered: false,
        test: false,
        key,
        fields,
        transcript: Some(("S".to_owned(), 7)),
    }
}

pub fn ask(hooks: &Hooks, event: Event) -> Verdict {
    let (tell, told) = bounded(1);
    hooks.ask(event, Box::new(move |verdict| tell.send(verdict).unwrap()));
    told.recv_timeout(PATIENCE).unwrap()
}

pub fn notify(hooks: &Hooks, event: Event) -> usize {
    let (tell, told) = bounded(1);
    hooks.notify(event, Box::new(move |failed| tell.send(failed).unwrap()));
    told.recv_timeout(PATIENCE).unwrap()
}

pub fn deliver(hooks: &Hooks, event: Event) -> Delivered {
    let handler = hooks.handlers(event.kind).first().unwrap().clone();
    let (tell, told) = bounded(1);
    hooks.deliver(&handler, event, Box::new(move |delivered| tell.send(delivered).unwrap()));
    told.recv_timeout(PATIENCE).unwrap()
}

/// A message asked about: what it becomes.
pub fn message(hooks: &Hooks, text: &str) -> Verdict {
    ask(hooks, event(HookEvent::Message, "local:a", json!({ "key": "local:a", "text": text })))
}

fn rewritten(text: &str) -> Verdict {
    Verdict::Pass(Some(text.to_owned()))
}

#[test]
fn messages_are_rewritten_in_a_chain_and_refused() {
    let (hooks, _) = hooks(
        r#"
        ostler.on("message", function(ev) return { text = ev.text .. "1" } end)
        ostler.on("message", function(ev) if ev.text == "stop1" then return { refuse = "no" } end end)
        ostler.on("message", function(ev) return { text = ev.text .. "0" } end, { priority = 5 })
        ostler.on("message", function(ev) return nil end)
        "#,
    );
    assert_eq!(message(&hooks, "a"), rewritten("a01"));
    assert_eq!(message(&hooks, "stop"), rewritten("stop01"));
    let (hooks, _) = super::tests::hooks(r#"ostler.on("message", function(ev) return { refuse = "no" } end)"#);
    assert_eq!(message(&hooks, "a"), Verdict::Refuse("no".to_owned()));
}

#[test]
fn contexts_are_joined_and_permissions_go_to_the_first_opinion() {
    let (hooks, _) = hooks(
        r#"
        ostler.on("before_turn", function(ev) return { context = "one" } end)
        ostler.on("before_turn", function(ev) return { context = "two" } end)
        ostler.on("permission", function(ev) if ev.title == "x" then return "once" end end)
        ostler.on("permission", function(ev) return ev.title == "y" and "bogus" or "deny" end)
        "#,
    );
    let turn = event(HookEvent::BeforeTurn, "local:a", json!({ "text": "t" }));
    assert_eq!(ask(&hooks, turn), rewritten("one\n\ntwo"));
    let permission = |title: &str| {
        let fields = json!({ "title": title, "options": [{ "option_id": "once", "name": "n", "kind": "allow_once" }] });
        ask(&hooks, event(HookEvent::Permission, "local:a", fields))
    };
    assert_eq!(permission("x"), rewritten("once"));
    assert_eq!(permission("z"), rewritten("deny"));
    assert_eq!(permission("y"), Verdict::Pass(None), "an option that was not offered is a failure");
    let bad = hooks.list().iter().map(|h| h.failures).sum::<u64>();
    assert_eq!(bad, 1);
}

#[test]
fn answers_that_make_no_sense_are_failures() {
    for answer in [
        "7",
        "{ txt = 'a' }",
        "{ text = 7 }",
        "{ text = 'a', refuse = 'b' }",
        "true",
        "{ text = '' }",
        "{ 'a' }",
        "{ text = ' \\n' }",
        "{ text = 'a\\0b' }",
        "{ text = ('x'):rep(4 * 1024 * 1024 + 1) }",
    ] {
        let script = format!("ostler.on('message', function() return {answer} end, {{ on_error = 'refuse' }})");
        let (hooks, _) = hooks(&script);
        let Verdict::HookFailed(why) = message(&hooks, "a") else { panic!("{answer} was taken") };
        assert!(why.starts_with("10-test.lua:1: message of local:a: "), "{why}");
    }
}

#[test]
fn an_event_has_its_fields_and_a_json_form() {
    let (hooks, host) = hooks(
        r#"
        ostler.on("session_end", function(ev)
          local rows = ev:transcript{ after = 4, limit = 2 }
          assert(#rows == 2 and rows[1].seq == 5 and rows[1].text == "S/5" and rows[1].role == "user")
          assert(#ev:transcript() == 7, "bounded by where the session stood")
          assert(ev.previous_id == nil and ev.turns == 3 and math.type(ev.turns) == "integer")
          assert(ev.at == "1970-01-01T00:00:00.000Z" and ev.boot_id == "boot" and ev.attempt == 1)
          assert(ev.redelivered == false and ev.test == false and ev.event == "session_end")
          assert(ostler.version == "1.2.3" and ostler.config.colour == "red" and ostler.config.none == nil)
          ostler.kv.set("ev", ostler.json.decode(ostler.json.encode(ev)))
        end)
        "#,
    );
    let ev = event(HookEvent::SessionEnd, "local:a", json!({ "turns": 3, "previous_id": null }));
    assert_eq!(deliver(&hooks, ev), Delivered::Done);
    let kept = lock(&host.kv).get("ev").cloned().unwrap();
    assert_eq!(kept["key"], "local:a");
    assert_eq!(kept["event_id"], "event-1");
}

#[test]
fn a_failure_has_script_line_event_and_key_and_costs_others_nothing() {
    let (hooks, host) = hooks(
        r#"
        ostler.on("turn_end", function(ev)
          local x = nil
          return x.y
        end)
        ostler.on("turn_end", function(ev) ostler.kv.set("note", "second") end)
        ostler.on("session_end", function(ev)
          error({ code = 1 })
        end)
        "#,
    );
    assert_eq!(notify(&hooks, event(HookEvent::TurnEnd, "local:a", json!({}))), 1);
    assert_eq!(host.noted.recv_timeout(PATIENCE).unwrap(), "second");
    let Delivered::Failed(why) = deliver(&hooks, event(HookEvent::SessionEnd, "local:a", json!({}))) else { panic!() };
    assert!(why.starts_with("10-test.lua:7: session_end of local:a: "), "{why}");
    let list = hooks.list();
    assert_eq!((list[0].calls, list[0].failures, list[0].line), (1, 1, 2));
    assert_eq!((list[1].calls, list[1].failures), (1, 0));
}

#[test]
fn scripts_use_the_house() {
    let (hooks, host) = hooks(
        r#"
        ostler.on("session_end", function(ev)
          local kv = ostler.kv
          assert(kv.get("a") == nil)
          assert(kv.set("a", { 1, 2, x = nil }) == true)
          assert(#kv.get("a") == 2)
          assert(kv.set("a", 5, { only_if = ostler.json.null }) == false, "only if absent")
          assert(kv.set("a", 5, { only_if = { 1, 2 } }) == true, "only if equal")
          assert(kv.set("b", 1, { only_if = ostler.json.null, ttl = "1h" }) == true)
          assert(kv.incr("n") == 1 and kv.incr("n", 5) == 6)
          assert(kv.delete("b") == true and kv.get("b") == nil)
          local ok, why = pcall(kv.set, "broken", 1)
          assert(not ok and why:find("kv.set: the store is away", 1, true), why)
          for _, bad in ipairs{ function() kv.get() end, function() kv.get("") end, function() kv.set("a") end,
              function() kv.set("a", print) end, function() kv.set("a", 0/0) end, function() kv.set("a", 1, { tl = "1s" }) end,
              function() kv.set("a", ("x"):rep(70000)) end, function() kv.incr("n", 1.5) end,
              function() kv.set("a", 1, { ttl = "soon" }) end } do
            local ok, why = pcall(bad)
            assert(not ok and type(why) == "string" and why:find("^10%-test.lua:%d+: kv%."), tostring(why))
          end
          local s = ostler.session("local:b")
          assert(s:info().state == "live" and ostler.session("local:nobody"):info() == nil)
          assert(#s:transcript{ limit = 3 } == 3)
          assert(s:send("one").turn_id == "t")
          s:send("two") s:send("three", { id = "mine" })
        end)
        "#,
    );
    let ev = event(HookEvent::SessionEnd, "local:a", json!({}));
    assert_eq!(deliver(&hooks, ev.clone()), Delivered::Done);
    let first = std::mem::take(&mut *lock(&host.sent));
    lock(&host.kv).clear();
    assert_eq!(deliver(&hooks, ev), Delivered::Done);
    assert_eq!(*lock(&host.sent), first, "a redelivery sends with the same ids");
    assert_eq!(first[2].2, "mine");
    assert_ne!(first[0].2, first[1].2);
}

#[test]
fn three_timeouts_in_a_row_and_a_handler_rests() {
    for (on_error, verdict) in [("pass", None), ("refuse", Some(()))] {
        let script = format!(
            "ostler.on('message', function(ev) while ev.text == 'loop' do end end, \
             {{ timeout = '20ms', on_error = '{on_error}' }})"
        );
        let (hooks, _) = hooks(&script);
        for _ in 0..3 {
            let _ = message(&hooks, "loop");
        }
        let began = Instant::now();
        match (message(&hooks, "loop"), verdict) {
            (Verdict::Pass(None), None) => {}
            (Verdict::HookFailed(why), Some(())) => assert!(why.contains("skipped"), "{why}"),
            other => panic!("{other:?}"),
        }
        assert!(began.elapsed() < PATIENCE);
        let list = hooks.list();
        assert_eq!((list[0].timeouts, list[0].calls, list[0].skipped), (3, 3, 1));
    }
}

#[test]
fn an_answer_is_waited_for_as_long_as_the_handlers_may_take() {
    let (hooks, host) = hooks(
        "ostler.on('message', function() ostler.kv.get('block') end, { timeout = '10m' })\n\
         ostler.on('before_turn', function() end, { timeout = '1m' })\nostler.on('turn_end', function() end, { timeout = '1h' })",
    );
    let alone = hooks.patience();
    assert!(alone >= Duration::from_secs(660) && alone < Duration::from_secs(800), "{alone:?}");
    hooks.ask(event(HookEvent::Message, "local:a", json!({ "text": "a" })), Box::new(|_| {}));
    assert_eq!(host.noted.recv_timeout(PATIENCE).unwrap(), "blocked");
    assert_eq!(hooks.patience(), 2 * alone, "one stands before");
    host.open.send(()).unwrap();
}

#[test]
fn a_handler_that_rested_is_called_again() {
    let (hooks, _) = hooks_with(
        &[(
            "a.lua",
            "ostler.on('message', function(ev) while ev.text == 'loop' do end return { text = 'ok' } end, { timeout = '20ms' })",
        )],
        Tuning { rest: Duration::ZERO, ..SHORT },
        |_| {},
    );
    for _ in 0..3 {
        assert_eq!(message(&hooks, "loop"), Verdict::Pass(None));
    }
    assert_eq!(message(&hooks, "a"), rewritten("ok"));
}

#[test]
fn a_callback_that_panics_takes_nothing_with_it() {
    let (hooks, _) = hooks("ostler.on('session_end', function() end)\nostler.on('message', function() end)");
    let handler = hooks.handlers(HookEvent::SessionEnd)[0].clone();
    for _ in 0..20 {
        let ev = event(HookEvent::SessionEnd, "a:b", json!({}));
        hooks.deliver(&handler, ev, Box::new(|_| panic!("on purpose")));
    }
    assert_eq!(deliver(&hooks, event(HookEvent::SessionEnd, "a:b", json!({}))), Delivered::Done);
    assert_eq!(hooks.lost(), 0);
}

#[test]
fn making_a_state_anew_does_not_cost_the_calls_time() {
    // Each load takes longer than the call and the grace together: half a second of what both cores can do.
    let script = "local began = os.clock() while os.clock() - began < 0.5 do end\n\
        ostler.on('message', function(ev) while ev.text == 'loop' do end return { text = 'ok' } end, { timeout = '20ms' })";
    let (hooks, _) = hooks_with(&[("a.lua", script)], Tuning { grace: Duration::from_millis(200), ..SHORT }, |s| {
        s.timeout = Duration::from_secs(20);
        s.threads = 1;
    });
    for _ in 0..2 {
        assert_eq!(message(&hooks, "loop"), Verdict::Pass(None));
        assert_eq!(message(&hooks, "a"), rewritten("ok"));
    }
    assert_eq!(hooks.lost(), 0);
}

#[test]
fn a_full_queue_answers_at_once() {
    let (hooks, host) = hooks_with(
        &[(
            "a.lua",
            r#"
            ostler.on("session_end", function() ostler.kv.get("block") end)
            ostler.on("turn_end", function() end)
            "#,
        )],
        Tuning { bound: 3, ..SHORT },
        |settings| settings.threads = 1,
    );
    let (tell, told) = unbounded();
    let handler = hooks.handlers(HookEvent::SessionEnd)[0].clone();
    let go = |n: usize| {
        let tell = tell.clone();
        let ev = event(HookEvent::SessionEnd, "local:a", json!({}));
        hooks.deliver(&handler, ev, Box::new(move |d| tell.send((n, d)).unwrap()));
    };
    go(0);
    assert_eq!(host.noted.recv_timeout(PATIENCE).unwrap(), "blocked");
    (1..=4).for_each(go);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), (4, Delivered::NotCalled));
    assert_eq!(notify(&hooks, event(HookEvent::TurnEnd, "local:a", json!({}))), 1);
    assert_eq!(hooks.dropped(), 1);
    for n in 0..4 {
        host.open.send(()).unwrap();
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), (n, Delivered::Done));
    }
}

#[test]
fn when_calling_stops_the_queue_is_answered_and_only_stopped_is_called() {
    let (hooks, host) = hooks_with(
        &[(
            "a.lua",
            r#"
            ostler.on("session_end", function() ostler.kv.get("block") end)
            ostler.on("stopped", function(ev) ostler.kv.set("note", "stopped") end)
            ostler.on("turn_end", function() end)
            "#,
        )],
        SHORT,
        |settings| settings.threads = 1,
    );
    let (tell, told) = unbounded();
    let handler = hooks.handlers(HookEvent::SessionEnd)[0].clone();
    for n in 0..3 {
        let tell = tell.clone();
        let ev = event(HookEvent::SessionEnd, "local:a", json!({}));
        hooks.deliver(&handler, ev, Box::new(move |d| tell.send((n, d)).unwrap()));
    }
    assert_eq!(host.noted.recv_timeout(PATIENCE).unwrap(), "blocked");
    hooks.stop_calling();
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), (1, Delivered::NotCalled));
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), (2, Delivered::NotCalled));
    host.open.send(()).unwrap();
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), (0, Delivered::Done), "what ran goes on");
    assert_eq!(notify(&hooks, event(HookEvent::TurnEnd, "local:a", json!({}))), 1);
    assert_eq!(notify(&hooks, event(HookEvent::Stopped, "", json!({}))), 0);
    assert_eq!(host.noted.recv_timeout(PATIENCE).unwrap(), "stopped");
    assert_eq!(hooks.close(Instant::now() + PATIENCE), 0);
}

#[test]
fn a_call_that_hangs_in_a_close_is_abandoned_and_counted() {
    let (hooks, host) = hooks("ostler.on('session_end', function() ostler.kv.get('block') end)");
    let handler = hooks.handlers(HookEvent::SessionEnd)[0].clone();
    hooks.deliver(&handler, event(HookEvent::SessionEnd, "local:a", json!({})), Box::new(|_| {}));
    assert_eq!(host.noted.recv_timeout(PATIENCE).unwrap(), "blocked");
    assert!(hooks.close(Instant::now() + Duration::from_millis(50)) >= 1);
    host.open.send(()).unwrap();
    assert_eq!(hooks.close(Instant::now() + PATIENCE), 0);
}

#[test]
fn every_runs_once_a_due_time_over_all_states_and_catches_up_once() {
    let script = r#"ostler.every("1d", function() ostler.kv.set("note", "ran") end, { name = "daily" })"#;
    let dir = scripts(&[("a.lua", script)]);
    let settings = settings(dir.path());
    let host = MemoryHost::new();
    let start = || {
        let loaded = load(&settings, "1").unwrap();
        Hooks::start_with(loaded, host.clone(), "boot", SHORT).unwrap()
    };
    let now = crate::clock::now();
    // It ran days ago: what was missed since comes once.
    lock(&host.claims).insert("a.lua:daily".to_owned(), vec![now - 5 * 86_400_000]);
    let hooks = start();
    assert_eq!(host.noted.recv_timeout(PATIENCE).unwrap(), "ran");
    assert_eq!(hooks.close(Instant::now() + PATIENCE), 0);
    let claims = lock(&host.claims)["a.lua:daily"].clone();
    assert_eq!(claims.len(), 2);
    assert!(claims[1] <= now && claims[1] > now - 86_400_000);
    assert_eq!(hooks.list()[0].calls, 1);
    // The next boot has nothing to catch up with; two daemons that find the same due time run it once.
    let hooks = start();
    hooks.pool_for_tests().run_timer("a.lua:daily", claims[1]);
    hooks.pool_for_tests().run_timer("a.lua:daily", claims[1] + 1);
    assert_eq!(host.noted.recv_timeout(PATIENCE).unwrap(), "ran");
    assert_eq!(hooks.close(Instant::now() + PATIENCE), 0);
    assert_eq!(host.noted.try_recv().ok(), None);
    assert_eq!(lock(&host.claims)["a.lua:daily"].len(), 3);
}

#[test]
fn a_timer_that_never_ran_begins_with_the_present() {
    let dir = scripts(&[("a.lua", r#"ostler.every("04:00", function() ostler.kv.set("note", "ran") end)"#)]);
    let host = MemoryHost::new();
    let hooks = Hooks::start_with(load(&settings(dir.path()), "1").unwrap(), host.clone(), "b", SHORT).unwrap();
    let claimed = || lock(&host.claims).get("a.lua:1").cloned();
    let until = Instant::now() + PATIENCE;
    while claimed().is_none() && Instant::now() < until {
        std::thread::yield_now();
    }
    assert_eq!(hooks.close(Instant::now() + PATIENCE), 0);
    assert_eq!(claimed().map(|c| c.len()), Some(1), "noted, so that a run missed from now on is known");
    assert_eq!(host.noted.try_recv().ok(), None);
}

#[test]
fn no_scripts_no_threads() {
    let dir = tempfile::tempdir().unwrap();
    let hooks = Hooks::start(load(&settings(dir.path()), "1").unwrap(), MemoryHost::new(), "b").unwrap();
    assert!(!hooks.has(HookEvent::Message));
    assert_eq!(message(&hooks, "a"), Verdict::Pass(None));
    assert_eq!(notify(&hooks, event(HookEvent::TurnEnd, "", json!({}))), 0);
    assert_eq!(hooks.close(Instant::now()), 0);
    let id = HandlerId { event: HookEvent::SessionEnd, script: "a.lua".to_owned(), name: "1".to_owned() };
    let (tell, told) = bounded(1);
    hooks.deliver(&id, event(HookEvent::SessionEnd, "k:k", json!({})), Box::new(move |d| tell.send(d).unwrap()));
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Delivered::Orphaned);
}

#[test]
fn samples_have_every_field_and_go_through() {
    let all: String =
        HookEvent::ALL.iter().map(|e| format!("ostler.on('{e}', function(ev) assert(ev.test) end)\n")).collect();
    let (hooks, _) = hooks(&all);
    for kind in HookEvent::ALL {
        assert!(hooks.has(*kind));
        if kind.is_synchronous() {
            assert_eq!(ask(&hooks, sample(*kind)), Verdict::Pass(None));
        } else {
            assert_eq!(notify(&hooks, sample(*kind)), 0, "{kind}");
        }
    }
    assert!(hooks.list().iter().all(|h| h.calls == 1 && h.failures == 0));
}

#[test]
fn files_to_check_give_their_problems() {
    let dir = scripts(&[
        ("good.lua", "local x = require('m') ostler.on('stopped', function() end)"),
        ("bad.lua", "\nostler.on('nothing', print)"),
        ("lib/m.lua", "return 1"),
    ]);
    let at = |name: &str| -> PathBuf { dir.path().join(name) };
    assert_eq!(check(&[at("good.lua")], &settings(Path::new("/nowhere"))), []);
    let found = check(&[at("bad.lua"), at("missing.lua")], &settings(dir.path()));
    assert_eq!((found[0].line, found[0].error), (Some(2), true));
    assert!(found[0].message.contains("unknown event 'nothing'"), "{}", found[0]);
    assert_eq!(found.len(), 2);
    let dir =
        scripts(&[("warn.lua", "local x = 1\ny = x\nostler.on('stopped', function()\n  prnt(x, io)\nend)\nprint = 1")]);
    let found = check(&[dir.path().join("warn.lua")], &settings(dir.path()));
    let told: Vec<String> = found.iter().map(|p| format!("{} {}", p.line.unwrap(), p.message)).collect();
    assert_eq!(
        told,
        [
            "2 global 'y' is set and never read: is `local` missing?",
            "4 global 'io' does not exist: add \"fs\" to allow in [hooks]",
            "4 global 'prnt' does not exist",
            "6 global 'print' of the sandbox is overwritten",
        ]
    );
    assert!(found.iter().all(|p| !p.error));
}
