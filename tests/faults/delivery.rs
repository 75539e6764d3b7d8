//! SIGKILL between any two steps of a delivery, and handlers that are the death of the daemon.

use ostler::client::session_path;
use serde_json::{Value, json};
use ureq::http::Method;

use crate::daemon::{Daemon, PATIENCE};
use crate::rig::{Came, FS, NOTE, boot_ready, calls, check_calls, end};

/// Hit by a delivery in the boot that journalled the event.
const FIRST: &[&str] = &[
    "delivery.before",
    "delivery.answered",
    "settle_delivery.before",
    "settle_delivery.inside",
    "settle_delivery.committed",
    "delivery.kept",
];
/// Hit by one in a later boot too.
const LATER: &[&str] = &["note_attempt.before", "note_attempt.inside", "note_attempt.committed", "delivery.noted"];

/// Promise 2: killed between any two steps of a delivery, in the boot that journalled the event and in the next: nothing is
/// lost, what was committed is not repeated, and what is repeated says so.
#[test]
fn deaths_between_steps() {
    for point in FIRST.iter().chain(LATER) {
        let rule = format!("{point}=kill:1");
        let first = if LATER.contains(point) { "delivery.before=kill:1" } else { rule.as_str() };
        let mut d = boot_ready(Daemon::new().config(FS).hook("note.lua", NOTE), first);
        let _ = d.try_post("local:a", "one", Some("one"));
        assert_eq!(end(&mut d), Came::Died, "{point}");
        d.check(false);
        // A boot that dies in the deliveries that the first left.
        let mut d = boot_ready(d, &rule);
        assert_eq!(end(&mut d), Came::Died, "{point}");
        d.check(false);
        let mut d = boot_ready(d, "");
        assert_eq!(d.turn("local:a", "two").outcome(), "completed");
        assert_eq!(d.stop(), 0, "{point}");
        check_calls(&d);
        let calls = calls(&d);
        let start = calls[0]["id"].as_str().unwrap();
        let times = calls.iter().filter(|c| c["id"] == start).count();
        let committed = matches!(*point, "settle_delivery.committed" | "delivery.kept");
        assert!(if committed { times == 1 } else { times <= 3 }, "{point}: {calls:#?}");
    }
}

/// As [`NOTE`], by another handler.
fn second() -> String {
    NOTE.replace("event = ev.event", "hook = \"second\", event = ev.event").replace("\"note\"", "\"second\"")
}

/// Talks, resets and talks again, as far as it gets: two activations, and two handlers owed five events each.
fn converse(d: &Daemon) {
    let talk = || -> Option<()> {
        let until = Some(std::time::Instant::now() + PATIENCE);
        for text in ["one", "two"] {
            let (path, body) = (session_path("local:a", "/messages"), json!({ "text": text }));
            let turn = d.client().stream_until(&path, Method::POST, Some(&body), None, until).ok()?;
            turn.last()?.ok()?;
            d.client().post(&session_path("local:a", "/reset"), None).ok()?;
        }
        Some(())
    };
    let _ = talk();
}

/// Promise 2, further on: the death comes at the n-th delivery, with two handlers under way.
#[test]
fn deaths_between_steps_of_several_handlers() {
    // What the transactions that journal are called: an event is committed there, and handed to nobody yet.
    let journalled = ["open_activation.committed", "reset.committed", "open_activation.inside", "reset.inside"];
    let deaths = FIRST.iter().flat_map(|point| [2, 3, 5, 7].map(|n| (*point, n)));
    for (point, n) in deaths.chain(journalled.iter().flat_map(|point| [1, 2].map(|n| (*point, n)))) {
        let hooks = Daemon::new().config(FS).hook("note.lua", NOTE).hook("second.lua", &second());
        let mut d = boot_ready(hooks, &format!("{point}=kill:{n}"));
        converse(&d);
        assert_eq!(end(&mut d), Came::Died, "{point} {n}");
        d.check(false);
        let mut d = boot_ready(d, "");
        assert_eq!(d.turn("local:a", "three").outcome(), "completed");
        assert_eq!(d.stop(), 0, "{point} {n}");
        check_calls(&d);
    }
}

/// What another handler does after it has noted its call: it kills the daemon from within it.
const KILL: &str = "f:close()\n  ostler.exec { argv = { \"sh\", \"-c\", \"kill -9 $PPID\" } }";

/// Promise 2: killed while a handler runs, beside one that was called before it or is called after it: each event comes to
/// both, again only as redelivered.
#[test]
fn deaths_within_a_handler() {
    for name in ["a-second.lua", "z-second.lua"] {
        let config = FS.replace("[\"fs\"]", "[\"fs\", \"exec\"]");
        let mut d = Daemon::new().config(&config).hook("note.lua", NOTE);
        d.write_hook(name, &second().replace("f:close()", KILL));
        for n in 0..2 {
            d = boot_ready(d, "");
            if n == 0 {
                let _ = d.try_post("local:a", "one", None);
            }
            assert_eq!(end(&mut d), Came::Died, "{name} {n}");
            d.check(false);
        }
        d.write_hook(name, &second());
        let mut d = boot_ready(d, "");
        assert_eq!(d.turn("local:a", "two").outcome(), "completed");
        assert_eq!(d.stop(), 0);
        check_calls(&d);
        let calls = calls(&d);
        let deadly = calls.iter().filter(|c| c["hook"] == "second" && c["id"] == calls[0]["id"]);
        let attempts: Vec<i64> = deadly.map(|c| c["attempt"].as_i64().unwrap()).collect();
        assert_eq!(attempts, [1, 2, 3], "{calls:#?}");
    }
}

/// Spins on the events of `local:bad`, and of `local:slow*` at their first delivery.
const DEADLY: &str = r#"
ostler.on("session_start", function(ev)
  ostler.log.warn("called", { key = ev.key, attempt = ev.attempt, event_id = ev.event_id, redelivered = ev.redelivered })
  local bad = ev.key == "local:bad" or (ev.key:find("^local:slow") and ev.attempt == 1)
  while bad do end
end, { name = "deadly", timeout = "50s" })
"#;

/// Checklist 52. A handler that is the death of the daemon each time gets its attempts, numbered, and is then set aside
/// without a call; what was under way beside it is delivered; a retry calls it again.
#[test]
fn a_deadly_handler_is_set_aside() {
    let mut d = Daemon::new().config("[hooks]\nattempts = 3\n").hook("deadly.lua", DEADLY);
    for n in 0..3 {
        let from = d.log.count();
        d = boot_ready(d, "");
        let called = |key: &str| {
            let key = key.to_owned();
            move |l: &str| l.contains("called") && l.contains(&key)
        };
        if n == 0 {
            // Each answered, so that no later boot has a reason to start a session anew.
            d.send("local:bad", "x");
            d.log.find(from, "a call", called("local:bad"));
            for key in ["slow1", "slow2", "slow3", "slow4", "slow5"] {
                d.send(&format!("local:{key}"), "x");
            }
            // Those whose thread is not the one that the bad one holds.
            d.log.find(from, "a call", called("local:slow"));
        }
        d.log.find(from, "a call", called("local:bad"));
        d.kill9();
    }
    let from = d.log.count();
    d = boot_ready(d, "");
    d.log.find(from, "set aside", |l| l.contains("set aside") && l.contains("local:bad"));
    let failed = d.get("/v1/hooks/failed");
    let events = failed["events"].as_array().or_else(|| failed.as_array()).unwrap().clone();
    assert_eq!(events.len(), 1, "only the deadly one: {failed}");
    assert_eq!((&events[0]["key"], &events[0]["attempts"]), (&Value::from("local:bad"), &Value::from(3)), "{failed}");
    // Mended, and tried again.
    d.write_hook("deadly.lua", &DEADLY.replace("while bad do end", ""));
    d.client().post("/v1/reload", None).unwrap();
    let from = d.log.count();
    d.cli(&["hooks", "retry", "--all"]).ok();
    let again = d.log.find(from, "the retry", |l| l.contains("called") && l.contains("local:bad"));
    assert!(again.contains("attempt=4") && again.contains("redelivered=true"), "{again}");
    d.send("local:bad", "still answers");
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM deliveries WHERE state<>'delivered'"), 0);
}

/// Checklist 34. The start of a key's next activation waits for the end of the one before it, retries included.
#[test]
fn an_end_comes_before_the_next_start() {
    let script = r#"
        ostler.on("session_end", function(ev)
          ostler.log.warn("told end " .. ev.attempt .. " of " .. ev.key)
          if ev.attempt == 1 then error("not yet") end
        end)
        ostler.on("session_start", function(ev) ostler.log.warn("told start of " .. ev.key .. " " .. ev.reason) end)
    "#;
    let mut d = Daemon::new().hook("order.lua", script).start();
    d.send("local:a", "one");
    d.act("local:a", "reset");
    d.send("local:a", "two");
    d.send("local:b", "beside");
    d.log.find(0, "the second start", |l| l.contains("told start of local:a reset"));
    let told: Vec<String> = d
        .log
        .all()
        .iter()
        .filter_map(|l| l.split_once("told ").map(|(_, t)| t.split("local:a").next().unwrap_or_default().to_owned()))
        .filter(|t| !t.contains("local:b"))
        .collect();
    assert_eq!(told, ["start of ", "end 1 of ", "end 2 of ", "start of "]);
    assert_eq!(d.stop(), 0);
}
