//! Agents behind the daemon: what they say arrives whole, and what they do wrong costs their own turn.

use serde_json::{Value, json};
use ureq::http::Method;

use ostler::model::names::slug;

use crate::daemon::{Daemon, fake};
use ostler::client::session_path;

/// Text, thoughts, tools, plan and usage arrive as events; text and tools are in the transcript, each tool once.
#[test]
fn what_an_agent_says() {
    let mut d = Daemon::new().config(&fake(&[], "permission = \"allow\"")).start();
    let turn = d.turn("local:a", "think hm; say before; tool t1; plan; usage; say after");
    assert_eq!(turn.outcome(), "completed");
    assert_eq!(turn.text(), "beforetool doneafter");
    assert_eq!(turn.of("thought").map(|e| e.text("text")).collect::<String>(), "hm");
    let tools: Vec<_> =
        turn.of("tool").map(|e| (e.text("tool_call_id"), e.text("title"), e.text("kind"), e.text("status"))).collect();
    assert_eq!(tools.first().unwrap(), &("t1", "Touch a file", "execute", "pending"));
    // The permission request had given it another title.
    assert_eq!(tools.last().unwrap(), &("t1", "touch x", "execute", "completed"));
    assert_eq!((turn.of("plan").count(), turn.of("usage").count()), (1, 1));
    assert_eq!(d.said("local:a")[1..], ["agent: before", "tool: touch x", "agent: tool doneafter"]);
    assert_eq!(d.stop(), 0);
}

/// A permission by policy: allowed or denied with an option that the agent offered.
#[test]
fn a_permission_by_policy() {
    for (policy, outcome, option) in [("allow", "tool done", "allow-once"), ("deny", "tool denied", "reject")] {
        let d = Daemon::new().config(&fake(&[], &format!("permission = \"{policy}\""))).start();
        let turn = d.turn("local:a", "tool");
        assert_eq!((turn.outcome(), turn.text().as_str()), ("completed", outcome));
        let resolved = turn.of("permission").last().unwrap();
        assert_eq!((resolved.text("state"), resolved.text("outcome")), ("resolved", option));
        assert!(!resolved.text("by").is_empty() && !resolved.text("request_id").is_empty());
    }
}

/// A permission by a client: first come first served, only what was offered, and told in the stream.
#[test]
fn a_permission_by_the_api() {
    let mut d = Daemon::new().config(&fake(&[], "")).start();
    let mut events = d.events("local:a");
    let turn = d.post("local:a", "permission");
    let asked = events.until("permission");
    assert_eq!(asked.text("state"), "open");
    let options: Vec<_> =
        asked.data["options"].as_array().unwrap().iter().map(|o| o["option_id"].as_str().unwrap_or_default()).collect();
    assert_eq!(options, ["allow-once", "reject"], "{}", asked.data);
    let path = session_path("local:a", "/permission");
    let answer = |id: &str, option: &str| json!({ "request_id": id, "option_id": option });
    let id = asked.text("request_id");
    assert_eq!(d.refusal(Method::POST, &path, Some(&answer(id, "nonsense"))), (400, "invalid_parameter".into()));
    assert_eq!(d.refusal(Method::POST, &path, Some(&answer("other", "reject"))), (409, "resolved".into()));
    d.client().post(&path, Some(&answer(id, "reject"))).unwrap();
    assert_eq!(d.refusal(Method::POST, &path, Some(&answer(id, "allow-once"))), (409, "resolved".into()));
    assert_eq!(events.end_of(&turn).0, "completed");
    let resolved = events.seen.iter().rfind(|e| e.event == "permission").unwrap();
    assert_eq!(
        (resolved.text("state"), resolved.text("outcome"), resolved.text("by")),
        ("resolved", "reject", "client")
    );
    assert_eq!(d.said("local:a").last().unwrap(), "agent: outcome: selected reject");
    assert_eq!(d.stop(), 0);
}

/// Whoever decides sees what is asked for: in the event, in the session, in listings and in one list of all; until it is
/// settled.
#[test]
fn a_permission_is_shown() {
    let mut d = Daemon::new().config(&fake(&[], "")).start();
    let mut events = d.events("local:a");
    let edit = r#"line {"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"@S@","update":{"sessionUpdate":"tool_call","toolCallId":"t","title":"List the files","kind":"execute","rawInput":{"command":"rm -rf /important"},"content":[{"type":"diff","path":"/a","oldText":"x","newText":"y"}],"locations":[{"path":"/important"}]}}}"#;
    let ask = r#"line {"jsonrpc":"2.0","id":7,"method":"session/request_permission","params":{"sessionId":"@S@","toolCall":{"toolCallId":"t"},"options":[{"optionId":"y","name":"Yes\n  2. No","kind":"allow_always"}]}}; await 7"#;
    let turn = d.post("local:a", &format!("{edit}; {ask}"));
    let asked = events.until("permission");
    let open = d.show("local:a")["permissions"][0].clone();
    for shown in [&asked.data, &open] {
        assert_eq!((&shown["title"], &shown["kind"]), (&json!("List the files"), &json!("execute")), "{shown}");
        assert_eq!(shown["input"], json!({ "command": "rm -rf /important" }), "{shown}");
        assert_eq!(shown["content"][0]["newText"], "y", "{shown}");
        assert_eq!(shown["locations"], json!([{ "path": "/important" }]), "{shown}");
        assert_eq!(shown["options"], json!([{ "option_id": "y", "name": "Yes   2. No", "kind": "allow_always" }]));
        assert_eq!((&shown["turn_id"], &shown["tool_call_id"]), (&turn["turn_id"], &json!("t")));
    }
    assert!(open["since"].as_str().is_some(), "{open}");
    let listed = d.get("/v1/sessions");
    assert_eq!(listed["sessions"][0]["permissions"], json!([open]));
    let all = d.get("/v1/permissions");
    let one = &all["permissions"][0];
    assert_eq!((&one["key"], &one["request_id"]), (&json!("local:a"), &open["request_id"]), "{all}");
    assert_eq!(one["session_id"], d.show("local:a")["id"]);
    assert_eq!(d.status()["sessions"]["waiting_permission"], 1);
    let answer = json!({ "request_id": open["request_id"], "option_id": "y" });
    let after = d.client().post(&session_path("local:a", "/permission"), Some(&answer)).unwrap();
    assert_eq!(after["permissions"], json!([]));
    assert_eq!(events.end_of(&turn).0, "completed");
    assert_eq!(d.get("/v1/permissions"), json!({ "permissions": [] }));
    assert_eq!(d.status()["sessions"]["waiting_permission"], 0);
    assert_eq!(d.stop(), 0);
}

/// What cannot be shown is not asked: it is denied, and told by whom.
#[test]
fn a_permission_that_is_too_long_to_be_shown() {
    let mut d = Daemon::new().config(&fake(&[], "")).start();
    let option = |n: usize| format!(r#"{{"optionId":"y{n}","name":"{}","kind":"reject_once"}}"#, "x".repeat(1000));
    let options: Vec<String> = (0..64).map(option).collect();
    let ask = format!(
        r#"line {{"jsonrpc":"2.0","id":7,"method":"session/request_permission","params":{{"sessionId":"@S@","toolCall":{{"toolCallId":"t"}},"options":[{}]}}}}; await 7"#,
        options.join(",")
    );
    let turn = d.turn("local:a", &ask);
    assert_eq!(turn.text(), "answer: selected y0");
    let resolved = turn.of("permission").last().unwrap();
    assert_eq!((resolved.text("state"), resolved.text("by")), ("resolved", "limit"));
    assert_eq!(d.stop(), 0);
}

/// A permission by a hook.
#[test]
fn a_permission_by_a_hook() {
    for (back, outcome, by) in
        [("'allow'", "allow-once", "hook"), ("'deny'", "reject", "hook"), ("'reject'", "reject", "hook")]
    {
        let script =
            format!("ostler.on('permission', function(ev) if ev.kind == 'execute' then return {back} end end)\n");
        let d = Daemon::new().config(&fake(&[], "")).hook("10-p.lua", &script).start();
        let turn = d.turn("local:a", "permission");
        assert_eq!(turn.text(), format!("outcome: selected {outcome}"));
        let resolved = turn.of("permission").last().unwrap();
        assert_eq!((resolved.text("state"), resolved.text("outcome"), resolved.text("by")), ("resolved", outcome, by));
    }
}

/// Checklist 48. Nobody answers: denied with an option that the agent offered, after `permission_timeout`. A cancel resolves it, too.
#[test]
fn a_permission_that_nobody_answers() {
    let mut d = Daemon::new().config(&fake(&[], "permission_timeout = \"50ms\"")).start();
    let turn = d.turn("local:a", "permission");
    assert_eq!(turn.text(), "outcome: selected reject");
    assert_eq!(d.stop(), 0);
    let mut d = Daemon::new().config(&fake(&[], "")).start();
    let mut events = d.events("local:a");
    let turn = d.post("local:a", "permission");
    events.until("permission");
    d.act("local:a", "cancel");
    let resolved = events.until("permission");
    assert_eq!((resolved.text("state"), resolved.text("outcome")), ("resolved", "cancelled"));
    assert_eq!(events.end_of(&turn).0, "cancelled");
    assert_eq!(d.stop(), 0);
}

/// Fails a turn, with a code and a text that tell why; the daemon and other keys go on.
#[track_caller]
fn assert_fails(d: &Daemon, text: &str, code: &str, tells: &str) {
    let turn = d.turn("local:a", text);
    assert_eq!(turn.outcome(), "failed", "{turn:?}");
    assert_eq!(turn.error()["code"], code, "{}", turn.error());
    assert!(turn.error()["message"].as_str().unwrap().contains(tells), "{}", turn.error());
}

/// A command that is not there: the turn fails and says what is missing, and another message tries again.
#[test]
fn an_agent_that_is_missing() {
    let mut d = Daemon::new().config("[agent.default]\nkind = \"acp\"\ncommand = [\"/nonexistent/agent\"]\n").start();
    assert_fails(&d, "x", "agent_start", "/nonexistent/agent");
    assert_fails(&d, "y", "agent_start", "/nonexistent/agent");
    assert_eq!(d.show("local:a")["queued"], 0);
    assert_eq!(d.stop(), 0);
}

/// An agent that prints what is no protocol, or never says a word, fails to start within its time.
#[test]
fn an_agent_that_is_none() {
    for command in ["[\"/bin/echo\", \"hello, not json\"]", "[\"/bin/false\"]"] {
        let mut d = Daemon::new().config(&format!("[agent.default]\nkind = \"acp\"\ncommand = {command}\n")).start();
        assert_fails(&d, "x", "agent_start", "");
        assert_eq!(d.stop(), 0);
    }
    let mut d = Daemon::new().config(&fake(&["--never-init"], "start_timeout = \"200ms\"")).start();
    assert_fails(&d, "x", "agent_start", "");
    assert_eq!(d.stop(), 0);
    let mut d = Daemon::new().config(&fake(&["--bad-version"], "")).start();
    assert_fails(&d, "x", "agent_start", "version");
    assert_eq!(d.stop(), 0);
    let mut d = Daemon::new().config(&fake(&["--auth"], "")).start();
    assert_fails(&d, "x", "auth_required", "agent default: session/new: the agent wants a login");
    assert_eq!(d.stop(), 0);
}

/// Checklist 46. An agent that dies in a turn: its exit status and the tail of its stderr are told; the next message starts it again.
#[test]
fn an_agent_that_dies() {
    let mut d = Daemon::new().config(&fake(&[], "")).start();
    let turn = d.turn("local:a", "say part; die 3");
    assert_eq!((turn.outcome(), turn.text().as_str()), ("failed", "part"));
    assert_eq!(turn.error()["code"], "agent_died");
    let why = turn.error()["message"].as_str().unwrap();
    assert!(why.contains('3') && why.contains("fatal: told to die"), "{why}");
    assert_eq!(d.send("local:a", "say again"), "again");
    assert_eq!(d.show("local:a")["epoch"], 1, "the session's stretch goes on");
    assert_fails(&d, "vanish", "agent_died", "");
    assert_eq!(d.send("local:b", "say other"), "other");
    assert_eq!(d.stop(), 0);
}

/// An error of the agent's, a refusal.
#[test]
fn an_agent_that_fails() {
    let mut d = Daemon::new().config(&fake(&[], "")).start();
    assert_fails(&d, "error out of order", "agent_error", "out of order");
    assert_fails(&d, "refuse", "agent_refused", "");
    assert_eq!(d.send("local:a", "say fine"), "fine");
    assert_eq!(d.stop(), 0);
}

/// Checklist 47. Lines that are no messages, unknown kinds, a very long line, a flood: survived, and what is said arrives whole.
#[test]
fn an_agent_that_babbles() {
    let mut d = Daemon::new().config(&fake(&["--banner"], "")).start();
    assert_eq!(d.send("local:a", "garbage; kinds; say one"), "one");
    assert_eq!(d.send("local:a", "longline 200000"), "after");
    let flood: String = (0..5000).map(|n| format!("{} ", n % 10)).collect();
    assert_eq!(d.send("local:a", "flood 5000"), flood);
    assert_eq!(d.send("local:a", "stderr 300000; say loud"), "loud");
    // What is said under another session's id is nobody's.
    assert_eq!(d.send("local:a", "foreign intruder; say own"), "own");
    assert_eq!(d.stop(), 0);
}

/// A long line costs a few times its own bytes while it is read, whatever is in it.
#[test]
fn what_a_long_line_costs() {
    const LINE: u64 = 12 << 20;
    let mut d = Daemon::new().config(&fake(&[], "")).start();
    d.send("local:a", "say warm");
    let memory = |name: &str| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", d.pid())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    };
    let before = memory("VmRSS");
    let mut events = d.events("local:a");
    let turn = d.post("local:a", &format!("longtool {LINE}"));
    events.end_of(&turn);
    let cost = memory("VmHWM").saturating_sub(before);
    assert!(cost <= 8 * LINE, "{} MiB for {} MiB", cost >> 20, LINE >> 20);
    assert_eq!(d.stop(), 0);
}

/// An answer, and what the agent says right after it, in one piece: it is there when the turn ends.
const ANSWER_AND_MORE: &str = r#"say one; line {"jsonrpc":"2.0","id":@ID@,"result":{"stopReason":"end_turn"}}{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"@S@","update":{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"LATE"}}}}; mute"#;

/// Checklist 24. What an agent says after its turn is in no later one: it is a turn of its own, told and kept like any.
#[test]
fn late_words() {
    let mut d = Daemon::new().config(&fake(&[], "")).start();
    let mut events = d.events("local:a");
    assert_eq!(d.send("local:a", ANSWER_AND_MORE), "one");
    let own = loop {
        let start = events.until("turn_start");
        if start.data["origin"] == "agent" {
            break start;
        }
    };
    let said = events.until("text");
    assert_eq!((said.text("text"), said.text("turn_id")), ("LATE", own.text("turn_id")));
    assert_eq!(events.end_of(&json!({ "turn_id": own.text("turn_id") })).0, "completed");
    assert_eq!(d.send("local:a", "say two"), "two");
    let said = d.said("local:a");
    assert_eq!(said[1..3], ["agent: one", "agent: LATE"]);
    assert_eq!(said.last().unwrap(), "agent: two");
    assert_eq!(d.show("local:a")["turns"], 3);
    assert!(d.wait_log("the agent begins a turn by itself").contains(own.text("turn_id")));
    assert_eq!(d.stop(), 0);
}

/// A permission that an agent asks for between turns is opened like any other.
#[test]
fn a_permission_between_turns() {
    let mut d = Daemon::new().config(&fake(&[], "")).start();
    let mut events = d.events("local:a");
    assert_eq!(d.send("local:a", "say one; late-ask"), "one");
    let asked = events.until("permission");
    assert_eq!((asked.text("state"), asked.text("title")), ("open", "clean up"));
    let answer = json!({ "request_id": asked.text("request_id"), "option_id": "allow-once" });
    d.client().post(&session_path("local:a", "/permission"), Some(&answer)).unwrap();
    assert_eq!(events.end_of(&json!({ "turn_id": asked.text("turn_id") })).0, "completed");
    assert_eq!(d.said("local:a").last().unwrap(), "agent: late: selected allow-once");
    assert_eq!(d.stop(), 0);
}

/// An agent that works by itself is not parked meanwhile, and a stop waits for such a turn.
#[test]
fn an_agent_that_works_by_itself_is_kept() {
    let config = format!("[sessions]\npark_after = \"1ms\"\n{}", fake(&[], ""));
    let mut d = Daemon::new().config(&config).start();
    let mut events = d.events("local:a");
    let turn = d.post("local:a", ANSWER_AND_MORE);
    events.end_of(&turn);
    let own = events.until("turn_start");
    assert_eq!(events.end_of(&json!({ "turn_id": own.text("turn_id") })).0, "completed");
    // Another session, which is idle from then on, is parked.
    let mut others = d.events("local:b");
    d.send("local:b", "say x");
    assert_eq!(others.until("session_end").text("reason"), "parked");
    assert_eq!(d.show("local:a")["state"], "live", "{}", d.show("local:a"));
    // A stop in such a turn lets it end.
    d.send("local:a", ANSWER_AND_MORE);
    let own = loop {
        let start = events.until("turn_start");
        if start.data["origin"] == "agent" {
            break start;
        }
    };
    assert_eq!(d.stop(), 0);
    d.boot();
    let mut events = d.events("local:a");
    assert_eq!(events.end_of(&json!({ "turn_id": own.text("turn_id") })).0, "completed");
    assert_eq!(d.stop(), 0);
}

/// A turn that takes too long is cancelled: failed, `timeout`; one that is silent too long likewise.
#[test]
fn a_turn_that_takes_too_long() {
    for limit in ["turn_timeout", "silence_timeout"] {
        let mut d = Daemon::new().config(&fake(&[], &format!("{limit} = \"200ms\""))).start();
        let turn = d.turn("local:a", "say part; hang");
        assert_eq!(
            (turn.outcome(), turn.error()["code"].as_str(), turn.text().as_str()),
            ("failed", Some("timeout"), "part")
        );
        assert_eq!(d.send("local:a", "say next"), "next");
        assert_eq!(d.stop(), 0);
    }
}

/// Waiting for a permission does not count against a turn's time.
#[test]
fn a_permission_is_no_part_of_the_time() {
    let mut d = Daemon::new().config(&fake(&[], "turn_timeout = \"400ms\"\npermission_timeout = \"800ms\"")).start();
    assert_eq!(d.send("local:a", "permission; say fine"), "outcome: selected rejectfine");
    assert_eq!(d.stop(), 0);
}

/// A session goes on in its agent over a restart of the daemon: loaded, resumed, or given what was said.
#[test]
fn an_agent_remembers() {
    for flags in [&[][..], &["--resume"], &["--resume", "--list", "--close"]] {
        let mut d = Daemon::new().config(&fake(flags, "env = { FAKE_AGENT_STATE = \"@DIR@\" }")).start();
        d.send("local:a", "say one");
        d.restart();
        assert_eq!(d.send("local:a", "recall"), "prompts before: 1", "{flags:?}");
        assert_eq!(d.said("local:a"), ["user: say one", "agent: one", "user: recall", "agent: prompts before: 1"]);
        assert_eq!(d.stop(), 0);
    }
}

/// A turn that its agent's death cut off, or that was cancelled by ending it, is told with the next message.
#[test]
fn a_turn_that_the_agent_s_death_cut_off_is_told_with_the_next_message() {
    let mut d = Daemon::new().config(&fake(&[], "env = { FAKE_AGENT_STATE = \"@DIR@\" }")).start();
    d.send("local:a", "say hello");
    assert_eq!(d.turn("local:a", "tool-open t1; say half; die 3").outcome(), "failed");
    let told = d.send("local:a", "echo-context");
    for part in ["your process ended", "> tool-open t1; say half; die 3", "- Run t1", "echo-context"] {
        assert!(told.contains(part), "{part} in {told}");
    }
    assert_eq!(d.send("local:a", "echo-context"), "[echo-context]\n", "once");
    assert_eq!(d.said("local:a").iter().filter(|l| l.starts_with("user: ")).count(), 4);
    // Over a restart, too.
    assert_eq!(d.turn("local:a", "say quarter; die 3").outcome(), "failed");
    d.restart();
    let told = d.send("local:a", "echo-context");
    assert!(told.contains("> say quarter; die 3"), "{told}");
    assert_eq!(d.stop(), 0);
}

/// An agent whose load brings back less than there was is given what is missing, and the sender is told.
#[test]
fn an_agent_that_lost_a_part() {
    let flags = &["--saves-late", "1"];
    let mut d = Daemon::new().config(&fake(flags, "env = { FAKE_AGENT_STATE = \"@DIR@\" }")).start();
    for text in ["say one", "say two", "say three"] {
        d.send("local:a", text);
    }
    d.restart();
    let turn = d.turn("local:a", "echo-context");
    let notices: Vec<_> = turn.of("notice").map(|e| e.text("code")).collect();
    assert_eq!(notices, ["context_lost"]);
    let text = turn.text();
    for part in ["user: say two", "agent: two", "user: say three", "agent: three"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("user: say one"), "{text}");
    assert_eq!(d.send("local:a", "echo-context"), "[echo-context]\n", "once");
    assert_eq!(d.stop(), 0);
}

/// Checklist 45. An agent that lost the session, whether it says so or lies, is given the transcript as its first context.
#[test]
fn an_agent_that_forgot() {
    for flags in [&["--no-load"][..], &["--load-error"], &["--load-lies", "--list"]] {
        let mut d = Daemon::new().config(&fake(flags, "")).start();
        d.send("local:a", "say remember-this");
        d.restart();
        let context = d.send("local:a", "echo-context");
        assert!(context.contains("remember-this"), "{flags:?}: {context}");
        assert_eq!(d.said("local:a")[2], "user: echo-context", "the transcript keeps what the user wrote");
        assert_eq!(d.stop(), 0);
    }
}

/// Checklist 50. Agents have an environment of their own: what is configured, what is passed, who they are, and nothing else.
#[test]
fn an_agents_environment() {
    let d = Daemon::new().env("SECRET_OF_THE_DAEMON", "hidden").env("PASSED", "yes");
    let mut d = d.config(&fake(&[], "env = { OWN = \"mine\" }\nenv_pass = [\"PATH\", \"HOME\", \"PASSED\"]")).start();
    let turn = d.turn("local:a b", "env");
    let text = turn.text();
    let env: Vec<&str> = text.lines().collect();
    let boot = d.status()["boot_id"].as_str().unwrap().to_owned();
    for want in [
        "OWN=mine",
        "PASSED=yes",
        "OSTLER_KEY=local:a b",
        &format!("OSTLER_SESSION_ID={}", turn.session()),
        &format!("OSTLER_BOOT_ID={boot}"),
    ] {
        assert!(env.contains(&want), "{want}: {env:?}");
    }
    assert!(!text.contains("SECRET_OF_THE_DAEMON") && !text.contains("NOTIFY_SOCKET"), "{env:?}");
    assert_eq!(d.send("local:a b", "cwd"), d.path("state/work").join(slug("local:a b")).to_str().unwrap());
    assert_eq!(d.stop(), 0);
}

/// exec: the message on stdin, the answer is stdout; each turn a process with the turn's id.
#[test]
fn exec() {
    let config = "[agent.default]\nkind = \"exec\"\ncommand = [\"/bin/sh\", \"-c\", \"read -r m; echo \\\"$m|$OSTLER_KEY|$OSTLER_TURN_ID|${OSTLER_RESUMED-unset}|$(pwd)\\\"\"]\n";
    let mut d = Daemon::new().config(config).start();
    let turn = d.turn("local:a", "hello there");
    assert_eq!(
        turn.text(),
        format!("hello there|local:a|{}|unset|{}\n", turn.id(), d.path("state/work").join(slug("local:a")).display())
    );
    assert_eq!(d.stop(), 0);
}

/// exec: a non-zero exit fails the turn with what it wrote to stderr; what it had said is kept.
#[test]
fn exec_that_fails() {
    let config = "[agent.default]\nkind = \"exec\"\ncommand = [\"/bin/sh\", \"-c\", \"echo part; echo 'cannot do it' >&2; exit 7\"]\n";
    let mut d = Daemon::new().config(config).start();
    let turn = d.turn("local:a", "x");
    assert_eq!((turn.outcome(), turn.text().as_str()), ("failed", "part\n"));
    let why = turn.error()["message"].as_str().unwrap();
    assert!(why.contains('7') && why.contains("cannot do it"), "{why}");
    assert_eq!(d.stop(), 0);
}

/// Checklist 12. exec, cut off: run again with the same message, `OSTLER_RESUMED=1`, and the sender hears one whole answer.
#[test]
fn exec_runs_again() {
    let d = Daemon::new();
    let gate = d.gate("gate");
    let script = format!(
        "read -r m; if [ -z \\\"$OSTLER_RESUMED\\\" ]; then echo begun; read x <{}; fi; echo \\\"$m again\\\"",
        gate.path.display()
    );
    let mut d = d.config(&format!("[shutdown]\ndrain = \"10ms\"\n[agent.default]\nkind = \"exec\"\ncommand = [\"/bin/sh\", \"-c\", \"{script}\"]\n")).start();
    let mut events = d.events("local:a");
    let cut: Value = d.post("local:a", "hello");
    events.until("text");
    assert_eq!(d.stop(), 0);
    d.boot();
    let mut events = d.events("local:a");
    assert_eq!(events.end_of(&cut).0, "interrupted");
    let start = events.until("turn_start");
    assert_eq!((&start.data["continues"], &start.data["resumed"]), (&cut["turn_id"], &json!(true)));
    assert_eq!(events.end_of(&json!({ "turn_id": start.text("turn_id") })).0, "completed");
    assert_eq!(d.said("local:a").last().unwrap(), "agent: hello again\n");
    assert_eq!(d.stop(), 0);
}

/// Routes choose the agent by key; a lua agent answers in its own sandbox.
#[test]
fn routes_and_lua() {
    let config = "[agent.default]\nkind = \"echo\"\n[agent.l]\nkind = \"lua\"\nhandler = \"r.lua\"\n[[route]]\nmatch = \"lua:*\"\nagent = \"l\"\n";
    let d = Daemon::new().config(config);
    std::fs::create_dir(d.path("hooks.d/agents")).unwrap();
    std::fs::write(
        d.path("hooks.d/agents/r.lua"),
        "return function(m) if m.text == 'bad' then error('no') end return m.key .. ' said ' .. m.text .. ' after ' .. #m.transcript() end\n",
    )
    .unwrap();
    let mut d = d.start();
    assert_eq!(d.send("local:a", "x"), "echo: x");
    let answer = d.send("lua:a", "x");
    assert!(answer.starts_with("lua:a said x after "), "{answer}");
    let turn = d.turn("lua:a", "bad");
    assert_eq!(turn.outcome(), "failed");
    assert!(turn.error()["message"].as_str().unwrap().contains("r.lua:1"), "{}", turn.error());
    assert_eq!(d.show("lua:a")["agent"], "l");
    assert_eq!(d.stop(), 0);
}

/// A Lua function has a turn's time like any agent, whatever it does with it, and its session goes on after it.
#[test]
fn a_lua_function_that_never_returns() {
    for (limit, why) in [("turn_timeout", "took longer"), ("silence_timeout", "was silent")] {
        let config = format!("[agent.default]\nkind = \"lua\"\nhandler = \"r.lua\"\n{limit} = \"300ms\"\n");
        let d = Daemon::new().config(&config);
        std::fs::create_dir(d.path("hooks.d/agents")).unwrap();
        let script = "return function(m) while m.text == 'loop' do pcall(error) end return 'said ' .. m.text end\n";
        std::fs::write(d.path("hooks.d/agents/r.lua"), script).unwrap();
        let mut d = d.start();
        let turn = d.turn("local:a", "loop");
        assert_eq!((turn.outcome(), &turn.error()["code"]), ("failed", &json!("timeout")), "{turn:?}");
        assert!(turn.error()["message"].as_str().unwrap().contains(why), "{turn:?}");
        assert_eq!(d.send("local:a", "x"), "said x");
        assert_eq!(d.stop(), 0);
    }
}

/// An agent that says where it works, and what it was given.
const WHERE: &str = "[agent.default]\nkind = \"exec\"\ncommand = [\"/bin/sh\", \"-c\", \"echo $(pwd) $0 $WHO ${HOME}\", \"{key}\"]\nenv = { WHO = \"{id}\" }\n";

/// A session's names are in its directory, its environment and its agent's arguments; a shell's braces are left to it. What
/// worked in the directory of the old default goes on there.
#[test]
fn a_session_keeps_its_directory() {
    let mut d = Daemon::new().config(WHERE);
    std::fs::create_dir_all(d.path("state/work/local%3Aold")).unwrap();
    d.boot();
    let work = |name: &str| d.path("state/work").join(name).display().to_string();
    for (key, dir, encoded) in
        [("local:old", work("local%3Aold"), "local%3Aold"), ("local:new", work(&slug("local:new")), "local%3Anew")]
    {
        let turn = d.turn(key, "x");
        assert_eq!(
            turn.text(),
            format!("{dir} {encoded} {} {}\n", turn.session(), d.path("").display()).replace("/\n", "\n")
        );
    }
    d.write_config(&format!("{WHERE}cwd = \"mine/{{id}}\"\n"));
    d.restart();
    let turn = d.turn("local:old", "x");
    assert!(turn.text().starts_with(&d.path("state/mine").join(turn.session()).display().to_string()), "{turn:?}");
    assert_eq!(d.stop(), 0);
}

/// The agent's process is shown while it lives: in the session, in the list of all, in `top` and the metrics.
#[test]
fn the_process_of_an_agent() {
    let mut d = Daemon::new().config(&fake(&[], "")).start();
    assert_eq!(d.get("/v1/processes")["processes"], json!([]));
    let (mut gate, mut events, turn) = d.waiting("local:a", "; say done");
    let shown = d.show("local:a")["process"].clone();
    let pid = shown["pid"].as_u64().unwrap();
    let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(command.contains("fake-agent"), "{command}");
    let since: jiff::Timestamp = shown["since"].as_str().unwrap().parse().unwrap();
    let age = jiff::Timestamp::now().duration_since(since).as_secs();
    assert!((-2..600).contains(&age), "{since}");
    let all = d.get("/v1/processes")["processes"].clone();
    assert_eq!((all.as_array().unwrap().len(), &all[0]["key"], &all[0]["pid"]), (1, &json!("local:a"), &json!(pid)));
    let top = d.cli(&["top"]);
    assert!(top.out.contains("local:a") && top.out.contains(&pid.to_string()), "{top:?}");
    assert!(d.cli(&["show", "a"]).out.contains(&format!("pid {pid}")));
    assert!(d.get("/metrics").as_str().unwrap().contains("\nostler_agents 1\n"));
    gate.open();
    assert_eq!(events.end_of(&turn).0, "completed");
    assert_eq!(d.show("local:a")["process"]["pid"], json!(pid), "an idle agent's too");
    assert_eq!(d.stop(), 0);
}

/// A confined agent below its shim: it reads neither the database nor another session's files, and its session says how it is
/// confined. One that must be confined and cannot be is not started.
#[test]
fn an_agent_is_confined() {
    let script = "cat \"$STATE/ostler.db\" >/dev/null 2>&1; echo db $?; echo a > mine && cat mine; ls \"$STATE\" >/dev/null; echo ls $?; \
        while [ ! -e \"$GATE\" ]; do sleep 0.02; done";
    let mut d = Daemon::new();
    let (gate, state) = (d.path("open"), d.path("state"));
    let config = |confine: &str| {
        let command = json!(["sh", "-c", script]);
        format!(
            "[agent.default]\nkind = \"exec\"\ncommand = {command}\nenv = {{ STATE = {}, GATE = {} }}\n{confine}\n",
            json!(state),
            json!(gate)
        )
    };
    let (confined, free) = (config("confine = \"state\""), config("confine = \"none\""));
    d = d.config(&confined).start();
    let mut events = d.events("local:a");
    let turn = d.post("local:a", "go");
    events.until("text");
    let shown = d.show("local:a")["process"]["confined"].clone();
    std::fs::write(&gate, "").unwrap();
    assert_eq!(events.end_of(&turn).0, "completed");
    let abi = u64::from(ostler::shim::landlock::version());
    assert_eq!((&shown["confine"], &shown["abi"]), (&json!("state"), &json!(abi)), "{shown}");
    let said = d.said("local:a").pop().unwrap();
    let db = if abi == 0 { 0 } else { 1 };
    assert_eq!(said, format!("agent: db {db}\na\nls 0\n"));
    assert_eq!(d.status()["bounds"]["landlock"], json!(abi));

    d.write_config(&free);
    d.client().post("/v1/reload", None).unwrap();
    assert!(d.turn("local:b", "go").text().starts_with("db 0\n"));
    let never = format!("{}confine_required = true\nconfine_abi = 1000\n", config(""));
    d.write_config(&never);
    d.client().post("/v1/reload", None).unwrap();
    let turn = d.turn("local:c", "go");
    assert_eq!(turn.outcome(), "failed");
    d.wait_log("confinement: this kernel has Landlock");
    assert_eq!(d.stop(), 0);
}

/// A delegated group of the kernel's, as a service manager makes it: the daemon in its subgroup.
struct Delegated(std::path::PathBuf);

impl Delegated {
    fn new() -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = mounts.lines().find(|l| l.contains(" - cgroup2 "))?;
        let dir = std::path::Path::new(line.split(' ').nth(4)?).join(format!("ostler-it-{}", std::process::id()));
        std::fs::create_dir(&dir).ok()?;
        let made = Self(dir);
        std::fs::create_dir(made.0.join("daemon")).ok()?;
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&made.0, "user.delegate", b"1", flags).ok()?;
        Some(made)
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        for name in ["shims", "agents", "daemon", "."] {
            let _ = std::fs::remove_dir(self.0.join(name).components().collect::<std::path::PathBuf>());
        }
    }
}

/// Where a group is delegated an agent has one of its own, its shim another, and both are found again by the next daemon.
#[test]
fn an_agent_has_a_control_group() {
    let Some(delegated) = Delegated::new() else {
        eprintln!("SKIPPED: no control group (version 2) can be delegated here");
        return;
    };
    let group = delegated.0.display().to_string();
    let mut d = Daemon::new().config(&fake(&[], ""));
    d.set_wrapper(&["sh", "-c", &format!("echo 0 > {group}/daemon/cgroup.procs; exec \"$@\""), "sh"]);
    d.boot();
    let (mut gate, _, turn) = d.waiting("local:a", "; say done");
    let shown = d.show("local:a")["process"].clone();
    let pid = shown["pid"].as_u64().unwrap();
    let of = |pid: u64| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(of(pid).contains("/agents/"), "{}", of(pid));
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let shim: u64 = stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    assert!(of(shim).trim_end().ends_with("/shims"), "{}", of(shim));
    assert!(shown["processes"].as_u64().unwrap() >= 1 && shown["cpu_ms"].is_u64(), "{shown}");
    assert_ne!(d.status()["bounds"]["control_groups"], json!("off"));
    d.kill9();
    d.boot();
    let mut events = d.events("local:a");
    gate.open();
    assert_eq!(events.end_of(&turn).0, "completed");
    let after = d.show("local:a")["process"].clone();
    assert_eq!((&after["pid"], after["processes"].is_u64()), (&json!(pid), true), "{after}");
    assert_eq!(d.stop(), 0);
    assert_eq!(
        std::fs::read_dir(delegated.0.join("agents")).unwrap().flatten().filter(|e| e.path().is_dir()).count(),
        0
    );
}

/// What is ignored where the daemon was started (a shell's background, `nohup`) is not ignored by its agents: a cancel's
/// signal would do nothing.
#[test]
fn an_agents_signals_are_plain() {
    for keep in ["restart", "never"] {
        let status = r#"command = ["grep", "-E", "SigIgn|SigBlk", "/proc/self/status"]"#;
        let text = format!("[agents]\nkeep = \"{keep}\"\n[agent.default]\nkind = \"exec\"\n{status}\n");
        let mut d = Daemon::new().config(&text);
        let ignoring = "trap '' HUP INT QUIT TSTP USR2 PIPE; exec \"$@\"";
        d.set_wrapper(&["sh", "-c", ignoring, "sh"]);
        let mut d = d.start();
        let told = d.send("local:a", "?");
        let sets: Vec<u64> = told
            .lines()
            // Those from 32 on are the C library's own.
            .map(|l| u64::from_str_radix(l.split_whitespace().last().unwrap(), 16).unwrap() & 0x7fff_ffff)
            .collect();
        assert_eq!(sets, [0, 0], "{keep}: {told}");
        assert_eq!(d.stop(), 0);
    }
}

/// What the configuration chooses for an agent's sessions holds after a restart that ends it, too; what the agent does not
/// offer fails the message with a list of what it does.
#[test]
fn a_mode_is_chosen() {
    let settings = "mode = \"ask\"\nmodel = \"small\"\noptions = { fast = true }\n";
    let memory = "env = { FAKE_AGENT_STATE = \"@DIR@/memory\" }\n";
    let mut d = Daemon::new().config(&fake(&["--settings"], &format!("{settings}{memory}"))).start();
    assert_eq!(d.send("local:a", "settings"), "ask small low true [] ");
    assert_eq!(d.stop(), 0);
    d.boot();
    assert_eq!(d.send("local:a", "settings"), "ask small low true [] ");
    assert_eq!(d.send("local:a", "recall"), "prompts before: 2", "the same session of the agent's");
    assert_eq!(d.stop(), 0);
    let mut d = Daemon::new().config(&fake(&["--settings"], "mode = \"plan\"")).start();
    assert_fails(&d, "x", "agent_option", "agent default: there is no mode \"plan\", only: auto, ask, yolo");
    assert_eq!(d.stop(), 0);
}
