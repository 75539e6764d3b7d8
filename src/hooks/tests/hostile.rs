//! Hostile scripts: none of them outlives its deadline by more than a moment, and after each the same hooks go on.

use super::bodies::{ENDLESS, FAILING};
use super::*;

/// Shorter than the grace allows is enough; on a busy machine a stop takes its time.
const TIMEOUT: &str = "100ms";

/// What takes as long after its deadline was not stopped, but came to its end.
const LATE: Duration = Duration::from_secs(10);

fn handler(body: &str, timeout: &str) -> String {
    format!(
        "ostler.on('session_end', function(ev) if not ev.hostile then return end {body} end, {{ timeout = '{timeout}' }})\n\
         ostler.on('session_start', function(ev) local t = {{}} for i = 1, 100 do t[i] = ('a%d'):format(i):gsub('%d', '') end \
         assert(#t == 100) end)"
    )
}

/// Runs a hostile body, then looks whether the same hooks still work. Gives what became of the body.
fn survive(name: &str, body: &str, timeout: &str) -> (Delivered, Duration) {
    let (hooks, _) =
        hooks_with(&[("a.lua", &handler(body, timeout))], Tuning { grace: PATIENCE, ..SHORT }, |settings| {
            settings.threads = 1;
            settings.memory = 64 * 1024 * 1024;
            settings.timeout = PATIENCE;
        });
    let began = Instant::now();
    let hostile = deliver(&hooks, event(HookEvent::SessionEnd, "local:a", json!({ "hostile": true })));
    let took = began.elapsed();
    assert_eq!(deliver(&hooks, event(HookEvent::SessionStart, "local:a", json!({}))), Delivered::Done, "after {name}");
    assert_eq!(deliver(&hooks, event(HookEvent::SessionEnd, "local:a", json!({}))), Delivered::Done, "after {name}");
    assert_eq!(hooks.close(Instant::now() + PATIENCE), 0, "after {name}");
    assert_eq!(hooks.lost(), 0, "after {name}");
    (hostile, took)
}

#[test]
fn what_never_ends_is_stopped_soon_after_its_deadline() {
    let (mut late, mut wrong) = (Vec::new(), Vec::new());
    for (name, body) in ENDLESS {
        let (hostile, took) = survive(name, body, TIMEOUT);
        let stopped = "a.lua:1: session_end of local:a: stopped after 100ms";
        if !matches!(&hostile, Delivered::TimedOut(why) if why.contains(stopped)) {
            wrong.push((name, hostile));
        }
        // On a quiet machine all of them are stopped within half a second; on a busy one nobody knows.
        if took > LATE {
            late.push((name, took));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(late.is_empty(), "{late:?}");
}

#[test]
fn what_fails_says_why_and_costs_nothing() {
    let mut wrong = Vec::new();
    for (name, body, what) in FAILING {
        let body = format!("ev.hostile = nil {body}");
        let (hostile, _) = survive(name, &body, "20s");
        let says = |why: &str| {
            let why = why.strip_prefix("a.lua:1: session_end of local:a: ");
            why.is_some_and(|why| what.split('|').any(|what| why.contains(what)))
        };
        if !matches!(&hostile, Delivered::Failed(why) if says(why)) {
            wrong.push((name, hostile));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn one_script_cannot_reach_another() {
    let (hooks, _) = hooks_with(
        &[
            (
                "10-evil.lua",
                r#"
                string.format = nil  table.insert = nil  _G.print = nil  ostler.log = 1  ostler.config.colour = "blue"
                math.huge = 1  pairs = nil  secret = 1  ostler.json.encode = nil  ostler.kv.get = nil
                rawset(string, "find", function() return "evil" end)
                rawset(_G, "tostring", function() return "evil" end)
                rawset(ostler, "version", "evil")
                coroutine.wrap = nil  utf8.char = nil  os.time = nil
                if getmetatable("") then error("the strings' metatable is to be had") end
                local ok = pcall(rawset, getmetatable(ostler.json.array()), "x", 1)
                if ok then error("the arrays' metatable is to be had") end
                "#,
            ),
            (
                "20-good.lua",
                r#"
                ostler.on("message", function(ev)
                  assert(secret == nil and print and pairs and ostler.log.info and math.huge > 1 and os.time() > 0)
                  assert(("%d"):format(5) == "5" and string.format("%d", 5) == "5" and ("abc"):find("b") == 2)
                  assert(tostring(5) == "5" and ostler.version == "1.2.3" and ostler.config.colour == "red")
                  assert(ostler.json.encode({ 1 }) == "[1]" and ostler.kv.get("x") == nil and utf8.char(65) == "A")
                  assert(_G._G == _G and _ENV == _G and _G.ostler == ostler)
                  return { text = "good" }
                end, { on_error = "refuse" })
                "#,
            ),
        ],
        SHORT,
        |_| {},
    );
    assert_eq!(message(&hooks, "a"), Verdict::Pass(Some("good".to_owned())));
}

#[test]
fn the_shims_do_what_lua_does() {
    let (hooks, _) = hooks(include_str!("shims.lua"));
    assert_eq!(deliver(&hooks, event(HookEvent::SessionEnd, "a:b", json!({}))), Delivered::Done);
}
