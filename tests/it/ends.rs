//! Ends, and what scripts are told of them: once each, in order, with what was said.

use std::time::Instant;

use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::{Value, json};
use ureq::http::Method;

use crate::daemon::{Daemon, PATIENCE, fake};
use crate::hooks::{RECORD, kinds, parse, records, wait_record};
use ostler::client::session_path;

fn delete(d: &Daemon, key: &str) -> u16 {
    match d.client().request(Method::DELETE, &session_path(key, ""), None, PATIENCE) {
        Ok(answer) => answer.status,
        Err(e) => e.status,
    }
}

fn reload(d: &Daemon, config: &str) {
    d.write_config(config);
    d.client().post("/v1/reload", None).unwrap();
}

/// The database of a daemon that is not there, to write to.
fn tamper(d: &Daemon, sql: &str) {
    Connection::open(d.path("state/ostler.db")).unwrap().execute_batch(sql).unwrap();
}

fn wait_end(d: &Daemon, key: &str, reason: &str) {
    let meant = |r: &Value| r["event"] == "session_end" && r["key"] == key && r["reason"] == reason;
    d.log.find(0, reason, |l| parse(l).is_some_and(|r| meant(&r)));
}

const ENDS: &str = "[agent.default]\nkind = \"echo\"\n[agent.slow]\nkind = \"echo\"\ndelay = \"10m\"\n\
    [[route]]\nmatch = \"slow:*\"\nagent = \"slow\"\n[shutdown]\ndrain = \"0s\"\n";

/// Checklist 33. Every way in which an activation closes gives one `session_end`, and every session that is over one
/// `session_closed`, parked ones too; what ended in order gets no second end at the stop.
#[test]
fn every_way_to_end_is_told_once() {
    let with = |more: &str| format!("{ENDS}[sessions]\n{more}\n");
    let mut d = Daemon::new().config(ENDS).hook("10-record.lua", RECORD).start();
    // People and operators.
    for key in ["suspend", "reset", "delete", "park", "daily"] {
        d.send(&format!("local:{key}"), "x");
    }
    d.act("local:suspend", "suspend");
    d.act("local:reset", "reset");
    assert_eq!(delete(&d, "local:delete"), 200);
    let old = d.turn("local:new", "x").session().to_owned();
    d.act("local:new", "suspend");
    d.send("local:new", "y");
    d.act(&old, "resume");
    // The policies, of live and of parked sessions.
    d.send("local:idle", "x");
    reload(&d, &with("idle_reset = \"1ms\""));
    d.send("local:idle", "y");
    reload(&d, &with("park_after = \"1ms\""));
    wait_end(&d, "local:park", "parked");
    wait_end(&d, "local:daily", "parked");
    reload(&d, &with("resume = \"on_message\""));
    d.act("local:park", "reset");
    d.send("local:stop", "x");
    d.signal(Signal::USR1);
    assert_eq!(d.exit_code(), 75);
    d.boot();
    d.send("local:crash", "x");
    let mut cut = d.events("slow:cut");
    d.post("slow:cut", "x");
    cut.until("turn_start");
    // The log has a thread of its own: what a handler wrote just before a death may be missing though it was called.
    for key in ["local:crash", "slow:cut"] {
        d.log.find(0, key, |l| parse(l).is_some_and(|r| r["event"] == "session_start" && r["key"] == key));
    }
    d.kill9();
    d.boot();
    wait_end(&d, "slow:cut", "crash");
    assert_eq!(d.stop(), 0);
    tamper(&d, "UPDATE sessions SET active_at=active_at-172800000 WHERE key='local:daily'");
    tamper(&d, "UPDATE sessions SET marked_at=marked_at-172800000 WHERE key='slow:cut'");
    d.write_config(&with("daily_reset = \"04:00\""));
    d.boot();
    d.send("local:daily", "y");
    let late = d.post("slow:cut", "y");
    assert_eq!(late["notice"]["code"], "session_expired", "{late}");
    assert_eq!(d.stop(), 0);

    let reasons = |event: &str| {
        d.sql::<String>(&format!(
            "SELECT group_concat(reason) FROM (SELECT DISTINCT json_extract(fields, '$.reason') AS reason FROM journal
             WHERE event='{event}' ORDER BY 1)"
        ))
    };
    assert_eq!(reasons("session_end"), "crash,deleted,idle,new,parked,reset,restart,shutdown,suspended");
    assert_eq!(reasons("session_closed"), "daily,deleted,expired,idle,new,reset");
    let once: i64 = d.sql(
        "SELECT count(*) FROM activations a JOIN sessions s ON s.sid=a.sid WHERE 1<>(SELECT count(*) FROM journal j
         WHERE j.sid=s.sid AND j.event='session_end' AND json_extract(j.fields, '$.epoch')=a.epoch)",
    );
    let closed: i64 = d.sql(
        "SELECT count(*) FROM sessions s WHERE (s.status='ended')<>(SELECT count(*) FROM journal j
         WHERE j.sid=s.sid AND j.event='session_closed')",
    );
    assert_eq!((once, closed), (0, 0), "told other than once");
    told_to_the_script(&d);
}

/// Each journalled event reached the recorder: once, or again as redelivered (a death came before the note of it).
#[track_caller]
fn told_to_the_script(d: &Daemon) {
    let all = records(d, 0);
    let db = d.db();
    let mut statement = db.prepare("SELECT event_id, event, key FROM journal").unwrap();
    let rows = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?))).unwrap();
    for row in rows {
        let (id, event, key): (String, String, String) = row.unwrap();
        let told: Vec<&Value> = all.iter().filter(|r| r["event_id"] == *id).collect();
        assert!(!told.is_empty(), "{event} of {key} was never told");
        assert!(told.iter().skip(1).all(|r| r["redelivered"] == true), "{event} of {key}: {told:?}");
    }
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM deliveries WHERE state<>'delivered'"), 0);
}

/// Checklist 34. Nothing that is journalled is delivered before `daemon_start` is done, and nothing after `stopped` began,
/// however long the one or the other takes.
#[test]
fn daemon_start_is_first_and_stopped_last() {
    let slow = r#"
      local function busy() local began = os.clock() while os.clock() - began < 0.3 do end end
      ostler.on("daemon_start", function(ev) busy() ostler.log.info("REC " .. ostler.json.encode{ event = "started" }) end)
      ostler.on("stopped", function(ev) ostler.log.info("REC " .. ostler.json.encode{ event = "stopping" }) busy() end,
        { priority = 5 })
    "#;
    let mut d = Daemon::new().hook("05-slow.lua", slow).hook("10-record.lua", RECORD).start();
    for n in 0..10 {
        d.send(&format!("local:{n}"), "x");
    }
    d.kill9();
    let from = d.log.count();
    d.boot();
    d.send("local:new", "x");
    assert_eq!(d.stop(), 0);
    let all = records(&d, from);
    let at = |event: &str| all.iter().position(|r| r["event"] == event).unwrap_or_else(|| panic!("no {event}"));
    let first = all.iter().position(|r| r["event"].as_str().unwrap().starts_with("session_")).unwrap();
    assert!(at("started") < first, "{all:#?}");
    assert_eq!(at("stopping") + 2, all.len(), "only `stopped` itself is left: {all:#?}");
}

/// Checklist 35. A reset gives one end and one start, and the id that the one names is the other's; a deletion gives an end
/// and no start; deleting nothing is told to nobody.
#[test]
fn a_reset_and_a_deletion() {
    let mut d = Daemon::new().hook("10-record.lua", RECORD).start();
    d.send("local:a", "x");
    d.send("local:b", "x");
    let new = d.act("local:a", "reset")["id"].clone();
    d.send("local:a", "y");
    assert_eq!(delete(&d, "local:b"), 200);
    assert_eq!((delete(&d, "local:b"), delete(&d, "local:nobody")), (404, 404));
    assert_eq!(d.stop(), 0);
    let all = records(&d, 0);
    let of = |key: &str| -> Vec<Value> {
        let journalled = |r: &&Value| r["key"] == key && r["event"].as_str().unwrap().starts_with("session_");
        all.iter().filter(journalled).cloned().collect()
    };
    let a = of("local:a");
    let names: Vec<&str> = a.iter().map(|r| r["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["session_start", "session_end", "session_closed", "session_start", "session_end"]);
    assert_eq!((&a[1]["next_id"], &a[2]["next_id"], &a[3]["session_id"]), (&new, &new, &new));
    assert_eq!(a[3]["previous_id"], a[1]["session_id"]);
    let b = of("local:b");
    let told: Vec<_> = b.iter().map(|r| (r["event"].as_str().unwrap(), r["reason"].as_str().unwrap())).collect();
    assert_eq!(told, [("session_start", "new"), ("session_end", "deleted"), ("session_closed", "deleted")]);
    assert_eq!((&b[1]["final"], &b[1]["next_id"]), (&json!(true), &Value::Null));
    assert!(kinds(&all, "local:nobody").is_empty());
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM journal WHERE key='local:nobody'"), 0);
}

/// Checklist 37. With no handler for them, journalled events are not written down.
#[test]
fn with_no_handler_nothing_piles_up() {
    let mut d = Daemon::new().hook("10-t.lua", "ostler.on('turn_end', function() end)\n").start();
    for _ in 0..3 {
        d.send("local:a", "x");
        d.act("local:a", "reset");
    }
    d.send("local:a", "x");
    d.kill9();
    d.boot();
    d.send("local:a", "x");
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT (SELECT count(*) FROM journal) + (SELECT count(*) FROM deliveries)"), 0);
}

/// Logs what it reads of the transcript, at the second attempt.
const LATE: &str = r#"
ostler.on("session_end", function(ev)
  if ev.attempt == 1 then error("not yet") end
  local said = {}
  for _, e in ipairs(ev:transcript{ limit = 10 }) do said[#said + 1] = e.role .. " " .. e.text end
  local rest = ev:transcript{ after = 1 }
  ostler.log.info("READ " .. table.concat(said, ", ") .. "; " .. #rest)
end)
"#;

/// Checklist 39. A delivery that comes late reads the transcript up to where the session stood at the event, also when it has
/// gone on since.
#[test]
fn a_late_delivery_reads_what_stood_at_the_event() {
    let mut d = Daemon::new().config("[sessions]\npark_after = \"1ms\"\n").hook("10-late.lua", LATE).start();
    let mut events = d.events("local:a");
    d.send("local:a", "one");
    events.until("session_end");
    d.send("local:a", "two");
    let read = d.wait_log("READ ");
    assert!(read.contains("READ user one, agent echo: one; 1"), "{read}");
    assert_eq!(d.stop(), 0);
}

/// Checklist 39. At a stop that cuts a turn off, its script reads what the agent had said by then.
#[test]
fn a_stop_tells_what_was_said_by_then() {
    let config = format!("[shutdown]\ndrain = \"0s\"\n{}", fake(&[], ""));
    let mut d = Daemon::new().config(&config).hook("10-record.lua", RECORD).start();
    let (_gate, _events, _) = d.waiting("local:a", "");
    assert_eq!(d.stop(), 0);
    let end = wait_record(&d, 0, "session_end");
    let said: Vec<&str> = end["said"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
    assert!(said[0].starts_with("user: say begun") && said[1] == "agent: begun", "{said:?}");
}

/// What is retried after its session's text was removed is told so, and not that nothing was ever said. What retention
/// removes is counted and logged.
#[test]
fn a_text_that_is_gone_is_no_empty_transcript() {
    let script = "ostler.on('session_end', function(ev) if ev.attempt == 1 then error('no') end ev:transcript() end)\n";
    let config = "[hooks]\nattempts = 1\n";
    let mut d = Daemon::new().config(config).hook("10-late.lua", script).start();
    d.send("local:a", "x");
    assert_eq!(delete(&d, "local:a"), 200);
    d.wait_log("set aside");
    // A reload looks for what may go.
    d.client().post("/v1/reload", None).unwrap();
    let told = d.wait_log("retention: removed");
    assert!(told.contains("1 sessions' transcripts") && !told.contains(" 0 "), "{told}");
    let id = d.get("/v1/hooks/failed")["events"][0]["event_id"].as_str().unwrap().to_owned();
    d.cli(&["hooks", "retry", &id]).ok();
    let why = d.wait_log("is gone");
    assert!(why.contains("10-late.lua:1: transcript: the text of session"), "{why}");
    assert_eq!(d.status()["pruned"]["sessions"], 1);
    assert_eq!(d.stop(), 0);
    // Long after, it is given up, and that is told too.
    tamper(&d, "UPDATE deliveries SET settled_at=1");
    let from = d.log.count();
    d.boot();
    d.client().post("/v1/reload", None).unwrap();
    d.log.find(from, "the loss", |l| l.contains("gave up 1 set-aside deliveries"));
    assert_eq!(d.status()["pruned"]["set_aside"], 1);
    assert!(metrics(&d).contains("\nostler_pruned_total{what=\"set_aside\"} 1\n"));
    assert!(d.cli(&["status"]).ok().contains("1 set-aside deliveries"));
    assert_eq!(d.stop(), 0);
}

fn metrics(d: &Daemon) -> String {
    d.raw_request(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
}

/// Until nothing is owed to any handler: no event tells of a delivery that is settled, so the daemon is asked.
fn settle(d: &Daemon) {
    let until = Instant::now() + PATIENCE;
    while d.status()["hooks"]["pending"] != 0 {
        assert!(Instant::now() < until, "{}", d.log.all().join("\n"));
        std::thread::yield_now();
    }
}

/// What became of deliveries and of calls, in `/metrics`, the status and the list.
#[test]
fn what_handlers_do_is_counted() {
    let script = "ostler.on('session_end', function(ev) error('no') end, { name = 'bad\"one' })\n\
        ostler.on('session_end', function(ev) end, { name = 'good' })\n\
        ostler.on('turn_end', function(ev) while true do end end, { name = 'spin', timeout = '50ms' })\n";
    let mut d = Daemon::new().config("[hooks]\nattempts = 1\n").hook("10-h.lua", script).start();
    d.send("local:a", "x");
    d.act("local:a", "reset");
    d.wait_log("set aside");
    d.wait_log("stopped after 50ms");
    // The two handlers of one event are done in an order of their own.
    settle(&d);
    let list = d.cli(&["hooks", "list"]).ok();
    assert!(list.contains("P50_US") && list.contains("P99_US") && list.contains("spin"), "{list}");
    let text = metrics(&d);
    for line in [
        "ostler_hook_failures_total{event=\"session_end\",script=\"10-h.lua\",name=\"bad\\\"one\"} 1",
        "ostler_hook_calls_total{event=\"session_end\",script=\"10-h.lua\",name=\"good\"} 1",
        "ostler_hook_timeouts_total{event=\"turn_end\",script=\"10-h.lua\",name=\"spin\"} 1",
        "ostler_hook_deliveries_delivered_total 1",
        "ostler_hook_deliveries_set_aside_total 1",
        "ostler_hooks_off 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}: {text}");
    }
    let hooks = d.status()["hooks"].clone();
    assert_eq!((&hooks["delivered"], &hooks["failed"], &hooks["pending"]), (&json!(1), &json!(1), &json!(0)));
    assert_eq!(d.stop(), 0);
}

/// A turn that a reset cuts off has its `turn_end` too.
#[test]
fn a_turn_that_somebody_else_ends_is_told() {
    let mut d = Daemon::new().config(&fake(&[], "")).hook("10-record.lua", RECORD).start();
    let (_gate, _events, _) = d.waiting("local:a", "");
    d.act("local:a", "reset");
    let end = wait_record(&d, 0, "turn_end");
    assert_eq!((&end["outcome"], &end["text"]), (&json!("cancelled"), &json!("begun")));
    assert_eq!(d.stop(), 0);
}

/// What a script logs has its handler, line and key; what it sends meets the same rules as what clients send, and is sent
/// once by a delivery that is repeated.
#[test]
fn scripts_log_and_send() {
    let script = r#"
      ostler.on("session_closed", function(ev)
        ostler.log.info("SAID", { colour = "red" })
        local log = ostler.session("local:log")
        local sent = log:send("told")
        assert(sent.duplicate == (ev.attempt > 1) and sent.deferred == false, ostler.json.encode(sent))
        for _, bad in ipairs{ function() log:send("") end, function() log:send("a\0b") end,
            function() log:send("x", { id = "" }) end, function() log:send("x", { id = ("x"):rep(129) }) end,
            function() ostler.session("nocolon"):send("x") end, function() log:send(("x"):rep(5 * 1024 * 1024)) end } do
          local ok, why = pcall(bad)
          assert(not ok and why:find("^10%-s.lua:%d+: session:send: "), tostring(why))
        end
        if ev.attempt == 1 then error("once more") end
        ostler.log.info("ALL DONE")
      end, { name = "say" })
    "#;
    let mut d = Daemon::new().hook("10-s.lua", script).start();
    d.send("local:a", "x");
    d.act("local:a", "reset");
    let said = d.wait_log("SAID");
    for field in ["hook=10-s.lua:say", "line=3", "key=local:a", "colour=red"] {
        assert!(said.contains(field), "{field}: {said}");
    }
    d.wait_log("ALL DONE");
    d.turn("local:log", "after");
    assert_eq!(d.said("local:log").iter().filter(|s| *s == "user: told").count(), 1);
    assert_eq!(d.stop(), 0);
}

/// A handler that fails for more keys than are held at once keeps no other handler from its events.
#[test]
fn one_that_fails_for_all_keys_holds_up_nobody_else() {
    let script = "ostler.on('session_end', function(ev) error('away') end, { name = 'broken' })\n\
        ostler.on('session_end', function(ev) ostler.log.info('GOOD ' .. ev.key) end, { name = 'good' })\n";
    let mut d = Daemon::new().hook("10-h.lua", script).start();
    assert_eq!(d.stop(), 0);
    tamper(
        &d,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<2000)
         INSERT INTO journal (event_id, event, key, session_id, sid, upto, fields, bid, at)
         SELECT 'e'||i, 'session_end', 'local:k'||i, 's'||i, 1000+i, 0, json_object('epoch', 1), 1, 0 FROM n;
         INSERT INTO deliveries (jid, script, name, state)
         SELECT jid, '10-h.lua', CASE event_id WHEN 'e2000' THEN 'good' ELSE 'broken' END, 'pending' FROM journal",
    );
    d.boot();
    d.wait_log("GOOD local:k2000");
    assert_eq!(d.status()["hooks"]["failed"], 0, "the others are still being tried");
    assert_eq!(d.stop(), 0);
}

/// When retention has emptied the journal, what comes next is delivered as before: numbers of deliveries are not given twice.
#[test]
fn what_comes_after_an_emptied_journal_is_delivered() {
    let config = "[retention]\njournal = \"1ms\"\n";
    let mut d = Daemon::new().config(config).hook("10-record.lua", RECORD).start();
    for key in ["local:a", "local:b"] {
        let from = d.log.count();
        for _ in 0..3 {
            let session = d.turn(key, "x").session().to_owned();
            d.act(key, "reset");
            let closed = |r: &Value| r["event"] == "session_closed" && r["session_id"] == session.as_str();
            d.log.find(from, "its end", |l| parse(l).is_some_and(|r| closed(&r)));
        }
        // A reload looks for what is to be pruned.
        while d.sql::<i64>("SELECT count(*) FROM deliveries") > 0 {
            reload(&d, config);
        }
        assert_eq!(d.sql::<i64>("SELECT count(*) FROM journal"), 0);
    }
    assert_eq!(d.stop(), 0);
}
