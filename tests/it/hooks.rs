//! The operator's Lua: told everything at least once, harmful to nobody.

use rustix::process::Signal;
use serde_json::{Value, json};
use ureq::http::Method;

use crate::daemon::{Daemon, fake};
use ostler::client::session_path;

/// Logs each event with its fields, and for session events its transcript.
pub const RECORD: &str = r#"
for _, name in ipairs({ "daemon_start", "session_start", "session_end", "session_closed", "turn_start", "turn_end", "shutdown", "stopped", "reload" }) do
  ostler.on(name, function(ev)
    local t = { event = ev.event, key = ev.key, event_id = ev.event_id, attempt = ev.attempt, redelivered = ev.redelivered,
      reason = ev.reason, epoch = ev.epoch, final = ev.final, actor = ev.actor, session_id = ev.session_id, turns = ev.turns,
      messages = ev.messages, next_id = ev.next_id, previous_id = ev.previous_id, outcome = ev.outcome, text = ev.text,
      clean = ev.clean, running = ev.running, live = ev.live, changed = ev.changed, boot_id = ev.boot_id }
    if ev.transcript then
      local said = {}
      for _, e in ipairs(ev:transcript{}) do said[#said + 1] = e.role .. ": " .. e.text end
      t.said = said
    end
    ostler.log.info("REC " .. ostler.json.encode(t))
  end, { name = "record" })
end
"#;

pub fn parse(line: &str) -> Option<Value> {
    let at = line.find("REC ")? + 4;
    serde_json::Deserializer::from_str(&line[at..]).into_iter().next()?.ok()
}

/// What the recorder has written from a line of the log on.
pub fn records(d: &Daemon, from: usize) -> Vec<Value> {
    d.log.all().iter().skip(from).filter_map(|l| parse(l)).collect()
}

#[track_caller]
pub fn wait_record(d: &Daemon, from: usize, event: &str) -> Value {
    parse(&d.log.find(from, event, |l| parse(l).is_some_and(|r| r["event"] == event))).unwrap()
}

pub fn kinds(records: &[Value], key: &str) -> Vec<String> {
    records.iter().filter(|r| r["key"] == key).map(|r| r["event"].as_str().unwrap().to_owned()).collect()
}

/// Checklist 39. Each event of a life, in order, with its fields; the transcript is the real one, also at the stop; `stopped` is last.
#[test]
fn every_event_is_told() {
    let mut d = Daemon::new().hook("10-record.lua", RECORD).start();
    d.send("local:a", "hello");
    let new = d.act("local:a", "reset")["id"].as_str().unwrap().to_owned();
    wait_record(&d, 0, "session_closed");
    d.send("local:a", "again");
    d.send("local:b", "idle");
    assert_eq!(d.stop(), 0);
    let all = records(&d, 0);
    assert_eq!(all.first().unwrap()["event"], "daemon_start");
    assert_eq!(all.last().unwrap()["event"], "stopped");
    assert_eq!(all.last().unwrap()["clean"], true);
    let journalled: Vec<String> = kinds(&all, "local:a").into_iter().filter(|k| k.starts_with("session")).collect();
    assert_eq!(journalled, ["session_start", "session_end", "session_closed", "session_start", "session_end"]);
    let of =
        |event: &str| all.iter().filter(|r| r["event"] == event && r["key"] == "local:a").cloned().collect::<Vec<_>>();
    let ends = of("session_end");
    assert_eq!(
        (&ends[0]["reason"], &ends[0]["final"], &ends[0]["actor"], &ends[0]["epoch"]),
        (&json!("reset"), &json!(true), &json!("user"), &json!(1))
    );
    assert_eq!((&ends[0]["turns"], &ends[0]["messages"], &ends[0]["next_id"]), (&json!(1), &json!(1), &json!(new)));
    assert_eq!(ends[0]["said"], json!(["user: hello", "agent: echo: hello"]));
    assert_eq!(
        (&ends[1]["reason"], &ends[1]["final"], &ends[1]["actor"]),
        (&json!("shutdown"), &json!(false), &json!("supervisor"))
    );
    assert_eq!(ends[1]["said"], json!(["user: again", "agent: echo: again"]));
    let starts = of("session_start");
    assert_eq!((&starts[0]["reason"], &starts[1]["reason"]), (&json!("new"), &json!("reset")));
    assert_eq!((&starts[1]["session_id"], &starts[1]["previous_id"]), (&json!(new), &ends[0]["session_id"]));
    let turns = of("turn_end");
    assert_eq!((turns.len(), &turns[0]["outcome"], &turns[0]["text"]), (2, &json!("completed"), &json!("echo: hello")));
    let shutdown = all.iter().find(|r| r["event"] == "shutdown").unwrap();
    assert_eq!((&shutdown["reason"], &shutdown["live"]), (&json!("shutdown"), &json!(2)));
    for r in all.iter().filter(|r| r["event"].as_str().unwrap().starts_with("session")) {
        assert_eq!((&r["redelivered"], &r["attempt"]), (&json!(false), &json!(1)), "{r}");
    }
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM deliveries WHERE state<>'delivered'"), 0);
}

/// `message` rewrites (the rewritten text alone is kept) and refuses; a duplicate never meets it.
#[test]
fn the_message_hook() {
    let script = r#"
      ostler.on("message", function(ev)
        if ev.text:find("secret") then return { refuse = "no secrets" } end
        return { text = ev.text:gsub("cat", "dog") }
      end, { priority = 10 })
      ostler.on("message", function(ev) return { text = ev.text .. "!" } end)
    "#;
    let mut d = Daemon::new().hook("10-m.lua", script).start();
    assert_eq!(d.send("local:a", "a cat"), "echo: a dog!");
    assert_eq!(d.said("local:a")[0], "user: a dog!");
    let first = d.post_id("local:a", "cat", "one");
    assert_eq!(d.post_id("local:a", "cat", "one")["turn_id"], first["turn_id"]);
    let e = d.try_post("local:a", "a secret", None).unwrap_err();
    assert_eq!((e.status, e.code.as_str()), (403, "refused"));
    assert!(e.message.contains("no secrets"), "{e}");
    let other = json!({ "text": "cat!", "id": "one" });
    assert_eq!(d.refusal(Method::POST, &session_path("local:a", "/messages"), Some(&other)), (422, "id_reused".into()));
    assert_eq!(d.stop(), 0);
    let kept: String = d.sql("SELECT group_concat(text) FROM messages");
    assert!(!kept.contains("cat"), "{kept}");
}

/// `before_turn` puts context before the prompt, kept as `system`.
#[test]
fn the_before_turn_hook() {
    let script = "ostler.on('before_turn', function(ev) return { context = 'It is ' .. (ev.first and 'early' or 'late') } end)\n";
    let mut d = Daemon::new().config(&fake(&[], "")).hook("10-c.lua", script).start();
    let context = d.send("local:a", "echo-context");
    assert!(context.contains("It is early") && context.find("It is early") < context.find("echo-context"), "{context}");
    assert_eq!(d.said("local:a")[..2], ["system: It is early", "user: echo-context"]);
    assert!(d.send("local:a", "echo-context").contains("It is late"));
    assert_eq!(d.stop(), 0);
}

/// A synchronous handler that fails lets pass, or refuses where its registration says so.
#[test]
fn a_message_hook_that_fails() {
    let script = r#"
      ostler.on("message", function(ev) if ev.key == "local:pass" then error("broken") end end)
      ostler.on("message", function(ev) if ev.key == "local:refuse" then error("broken") end end, { on_error = "refuse" })
      ostler.on("message", function(ev) if ev.key == "local:spin" then while true do end end end, { timeout = "100ms" })
    "#;
    let mut d = Daemon::new().hook("10-m.lua", script).start();
    assert_eq!(d.send("local:pass", "x"), "echo: x");
    let e = d.try_post("local:refuse", "x", None).unwrap_err();
    assert_eq!((e.status, e.code.as_str()), (503, "hook_failed"));
    assert_eq!(d.send("local:spin", "x"), "echo: x");
    assert_eq!(d.send("local:other", "x"), "echo: x");
    assert!(d.wait_log("10-m.lua:2").contains("broken"));
    assert_eq!(d.stop(), 0);
}

/// Checklist 37. A handler that errors costs no other handler anything; the error names script, line, event and key; what keeps failing
/// is set aside, listed, and can be retried or discarded.
#[test]
fn a_handler_that_errors() {
    let bad = "ostler.on('session_end', function(ev)\n  error('cannot')\nend, { name = 'bad' })\n";
    let mut d =
        Daemon::new().config("[hooks]\nattempts = 1\n").hook("05-bad.lua", bad).hook("10-record.lua", RECORD).start();
    d.send("local:a", "x");
    let mut events = d.events("local:a");
    d.act("local:a", "reset");
    events.until("session_end");
    wait_record(&d, 0, "session_end");
    let line = d.wait_log("05-bad.lua:2");
    assert!(line.contains("cannot") && line.contains("session_end") && line.contains("local:a"), "{line}");
    // The next event to the same handler comes after this one was set aside.
    d.send("local:a", "y");
    d.act("local:a", "reset");
    d.wait_log("set aside");
    let failed = d.get("/v1/hooks/failed");
    let event = &failed["events"][0];
    let id = event["event_id"].as_str().unwrap_or_else(|| panic!("{failed}")).to_owned();
    // Repaired, it is delivered.
    d.write_hook("05-bad.lua", "ostler.on('session_end', function(ev)\n  ostler.log.info('REPAIRED ' .. ev.event_id .. ' ' .. tostring(ev.redelivered) .. ' ' .. ev.attempt)\nend, { name = 'bad' })\n");
    d.client().post("/v1/reload", None).unwrap();
    d.client().post(&format!("/v1/hooks/failed/{id}/retry"), None).unwrap();
    let line = d.wait_log(&format!("REPAIRED {id}"));
    assert!(line.contains("true 2"), "{line}");
    assert_eq!(d.stop(), 0);
}

/// Checklist 36. A handler that never returns is cut off at its timeout; others and the stop go on; what it had is delivered by the next
/// boot under the same event_id.
#[test]
fn a_handler_that_never_returns() {
    let spin = "ostler.on('session_end', function(ev) ostler.log.info('SPIN ' .. ev.event_id); while true do end end, { timeout = '100ms', name = 'spin' })\n";
    let config = "[shutdown]\nhooks = \"2s\"\n";
    let mut d = Daemon::new().config(config).hook("05-spin.lua", spin).hook("10-record.lua", RECORD).start();
    d.send("local:a", "x");
    let code = d.stop();
    assert!(code == 0 || code == 1, "{code}");
    let told = d.wait_log("SPIN ");
    let id = told.split("SPIN ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    assert_eq!(
        records(&d, 0).iter().filter(|r| r["event"] == "session_end").count(),
        1,
        "the other handler was called"
    );
    assert_eq!(records(&d, 0).last().unwrap()["event"], "stopped");
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM deliveries WHERE state='pending'"), 1);
    let from = d.log.count();
    d.write_hook("05-spin.lua", "ostler.on('session_end', function(ev) ostler.log.info('DONE ' .. ev.event_id .. ' ' .. tostring(ev.redelivered) .. ' ' .. ev.attempt) end, { name = 'spin' })\n");
    d.boot();
    let line = d.log.find(from, "DONE", |l| l.contains(&format!("DONE {id} true")));
    assert!(!line.ends_with(" 1"), "a higher attempt: {line}");
    assert_eq!(d.stop(), 0);
}

/// Checklist 34. Order is promised a key and a handler, retries included: a script's end of one stretch, or its being set aside, comes
/// before its start of the next; other keys do not wait.
#[test]
fn an_end_comes_before_the_next_start() {
    let script = r#"
      ostler.on("session_end", function(ev)
        if ev.key == "local:a" and ev.attempt == 1 then error("not yet") end
        ostler.log.info("SAW end " .. ev.key .. " " .. ev.epoch .. ";")
      end)
      ostler.on("session_start", function(ev) ostler.log.info("SAW start " .. ev.key .. " " .. ev.reason .. ";") end)
    "#;
    let mut d = Daemon::new().hook("10-o.lua", script).start();
    d.send("local:a", "x");
    d.act("local:a", "reset");
    d.send("local:a", "y");
    d.send("local:b", "z");
    d.wait_log("SAW start local:a reset;");
    d.wait_log("SAW start local:b new;");
    let saw: Vec<String> =
        d.log.all().iter().filter_map(|l| Some(l.split("SAW ").nth(1)?.split(';').next()?.to_owned())).collect();
    let a: Vec<_> = saw.iter().filter(|s| s.contains("local:a")).collect();
    assert_eq!(a, ["start local:a new", "end local:a 1", "start local:a reset"]);
    let at = |what: &str| saw.iter().position(|s| s == what).unwrap();
    assert!(at("start local:b new") < at("end local:a 1"), "another key does not wait: {saw:?}");
    assert_eq!(d.stop(), 0);
}

/// Killed while a handler runs: the event comes again with the same id, a higher attempt and `redelivered`.
#[test]
fn a_death_in_a_handler() {
    let wait = "ostler.on('session_end', function(ev)\n  ostler.log.info('IN ' .. ev.event_id .. ' ' .. ev.attempt .. ' ' .. tostring(ev.redelivered))\n  if not ev.redelivered then while true do end end\nend, { timeout = '25s', name = 'w' })\n";
    let mut d = Daemon::new().hook("10-w.lua", wait).start();
    d.send("local:a", "x");
    d.act("local:a", "reset");
    let first = d.wait_log("IN ");
    assert!(first.contains(" 1 false"), "{first}");
    let id = first.split("IN ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    d.kill9();
    d.boot();
    d.wait_log(&format!("IN {id} 2 true"));
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM deliveries WHERE state<>'delivered'"), 0);
}

/// Checklist 39. After a crash the next boot tells the end, with the real transcript, before the start that follows.
#[test]
fn a_crash_is_told() {
    let mut d = Daemon::new().hook("10-record.lua", RECORD).start();
    d.send("local:a", "hello");
    d.kill9();
    let from = d.log.count();
    d.boot();
    let end = wait_record(&d, from, "session_end");
    assert_eq!((&end["reason"], &end["actor"]), (&json!("crash"), &json!("crash")));
    assert_eq!(end["said"], json!(["user: hello", "agent: echo: hello"]));
    d.send("local:a", "again");
    assert_eq!(d.stop(), 0);
    let all = records(&d, from);
    assert_eq!(all[0]["event"], "daemon_start", "nothing journalled before it");
    let mut journalled: Vec<String> = kinds(&all, "local:a").into_iter().filter(|k| k.starts_with("session")).collect();
    if all.iter().any(|r| r["event"] == "session_start" && r["epoch"] == 1) {
        // The death came before it was noted that this one had been told.
        assert_eq!(journalled.remove(0), "session_start");
    }
    assert_eq!(journalled, ["session_end", "session_start", "session_end"]);
}

/// An event owed to a handler that is gone is settled as orphaned; with no handler registered nothing is journalled.
#[test]
fn handlers_that_are_gone() {
    let spin = "ostler.on('session_end', function(ev) ostler.log.info('IN') while true do end end, { name = 'gone', timeout = '25s' })\n";
    let mut d = Daemon::new().hook("10-gone.lua", spin).start();
    d.send("local:a", "x");
    d.act("local:a", "reset");
    d.wait_log("IN");
    d.kill9();
    std::fs::remove_file(d.path("hooks.d/10-gone.lua")).unwrap();
    d.boot();
    assert_eq!(d.send("local:a", "y"), "echo: y");
    assert!(d.wait_log("orphaned: ").contains("10-gone.lua:gone"));
    assert_eq!(d.status()["hooks"]["orphaned"], 1);
    assert!(d.cli(&["hooks", "failed"]).ok().contains("orphaned"), "listed");
    assert!(d.cli(&["hooks", "retry", "--all"]).ok().contains("nothing was set aside"), "and not to be retried");
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<String>("SELECT group_concat(state) FROM deliveries"), "orphaned");
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM journal"), 1);
}

/// Checklist 38. SIGHUP swaps configuration and hooks at once; what a script had registered is undone; a running turn does not
/// notice.
#[test]
fn a_reload_swaps_all() {
    let mut d = Daemon::new()
        .config(&fake(&[], ""))
        .hook("10-m.lua", "ostler.on('message', function(ev) return { text = 'say old' } end)\n")
        .hook("20-record.lua", RECORD)
        .start();
    let gate_free = d.turn("local:a", "x");
    assert_eq!(gate_free.text(), "old");
    d.write_hook(
        "10-m.lua",
        "ostler.on('message', function(ev) if ev.key == 'local:a' then return { text = 'say new' } end end)\n",
    );
    d.write_config(&format!("[sessions]\nqueue_limit = 1\n{}", fake(&[], "")));
    d.signal(Signal::HUP);
    let told = wait_record(&d, 0, "reload");
    assert!(told["changed"].as_array().unwrap().iter().any(|c| c == "sessions.queue_limit"), "{told}");
    d.notes.find(0, "RELOADING", |l| l == "RELOADING=1");
    assert_eq!(d.send("local:a", "x"), "new");
    assert_eq!(
        d.get("/v1/hooks")["handlers"].as_array().unwrap().iter().filter(|h| h["event"] == "message").count(),
        1
    );
    // A turn that runs over a reload goes on.
    let (mut gate, mut events, running) = d.waiting("local:b", "; say done");
    let report = d.client().post("/v1/reload", None).unwrap();
    assert_eq!((&report["changed"], report["needs_restart"].is_null()), (&json!([]), false), "{report}");
    d.post("local:b", "say queued");
    assert_eq!(d.try_post("local:b", "x", None).unwrap_err().code, "queue_full", "the new limit is in force");
    gate.open();
    assert_eq!(events.end_of(&running).0, "completed");
    assert_eq!(d.stop(), 0);
}

/// Checklist 38. A bad file keeps the old ones, all of them, and says which line is wrong.
#[test]
fn a_bad_reload_changes_nothing() {
    let mut d =
        Daemon::new().hook("10-m.lua", "ostler.on('message', function(ev) return { text = 'old' } end)\n").start();
    d.write_hook("10-m.lua", "ostler.on('message', function(ev) return { text = 'new' } end)\n");
    d.write_hook("20-bad.lua", "\nthis is not lua\n");
    // Good by itself, and not taken without the scripts.
    d.write_config("[agent.default]\nkind = \"exec\"\ncommand = [\"/bin/cat\"]\n");
    let from = d.log.count();
    d.signal(Signal::HUP);
    d.log.find(from, "the line", |l| l.contains("20-bad.lua:2"));
    assert_eq!(d.send("local:new", "x"), "echo: old");
    let e = d.client().post("/v1/reload", None).unwrap_err();
    assert_eq!((e.status, e.code.as_str()), (422, "invalid_config"));
    assert!(e.message.contains("20-bad.lua:2"), "{e}");
    std::fs::remove_file(d.path("hooks.d/20-bad.lua")).unwrap();
    d.write_config("[sessions]\nmax_live = \"x\"\n");
    let ran = d.cli(&["reload"]);
    assert_eq!(ran.code, 78, "{ran:?}");
    assert!(ran.err.contains("ostler.toml:2"), "{ran:?}");
    assert_eq!(d.send("local:a", "x"), "echo: old");
    d.write_config("");
    d.client().post("/v1/reload", None).unwrap();
    assert_eq!(d.send("local:a", "x"), "echo: new");
    assert_eq!(d.stop(), 0);
}

/// Many sessions' ends, each told once to each handler, also those of idle ones at the stop.
#[test]
fn many_ends_are_told() {
    let config = "[agent.default]\nkind = \"echo\"\nmax_processes = 200\n";
    let mut d = Daemon::new().config(config).hook("10-record.lua", RECORD).start();
    std::thread::scope(|scope| {
        for c in 0..4 {
            let d = &d;
            scope.spawn(move || (0..30).for_each(|n| drop(d.send(&format!("local:{c}-{n}"), "x"))));
        }
    });
    assert_eq!(d.stop(), 0);
    let all = records(&d, 0);
    for c in 0..4 {
        for n in 0..30 {
            let told = kinds(&all, &format!("local:{c}-{n}"));
            assert_eq!(told.iter().filter(|k| *k == "session_end").count(), 1);
            assert_eq!(told.iter().filter(|k| *k == "session_start").count(), 1);
        }
    }
    assert_eq!(all.last().unwrap()["event"], "stopped");
}

/// `ostler.kv` is durable and shared, `ostler.session(key):send` makes one message of a redelivery too.
#[test]
fn scripts_keep_and_send() {
    let script = r#"
      ostler.on("session_closed", function(ev)
        ostler.kv.incr("closed", 1)
        if ev.key == "local:a" then ostler.session("local:log"):send("closed " .. ev.session_id) end
      end)
      ostler.on("message", function(ev) return { refuse = "only scripts" } end, { name = "gatekeeper", priority = 1 })
    "#;
    let d = Daemon::new().hook("10-kv.lua", script);
    std::fs::write(
        d.path("hooks.d/10-kv.lua"),
        script.replace(
            "return { refuse = \"only scripts\" }",
            "if ev.key == 'local:log' then return { refuse = 'only scripts' } end",
        ),
    )
    .unwrap();
    let mut d = d.start();
    let old = d.turn("local:a", "x").session().to_owned();
    let mut events = d.events("local:log");
    d.act("local:a", "reset");
    events.until("turn_end");
    assert_eq!(d.said("local:log")[0], format!("user: closed {old}"));
    assert_eq!(d.try_post("local:log", "x", None).unwrap_err().code, "refused");
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<String>("SELECT value FROM kv WHERE name='closed'"), "1");
}

/// `hooks fire` sends a sample with `ev.test`, which is never journalled.
#[test]
fn a_sample_event() {
    let script = "ostler.on('session_end', function(ev) ostler.log.info('TEST ' .. tostring(ev.test)) end)\n";
    let mut d = Daemon::new().hook("10-t.lua", script).start();
    d.cli(&["hooks", "fire", "session_end"]).ok();
    assert!(d.wait_log("TEST ").contains("TEST true"));
    assert_eq!(d.cli(&["hooks", "fire", "nonsense"]).code, 2);
    assert!(d.cli(&["hooks", "list"]).ok().contains("10-t.lua"));
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM journal"), 0);
}
