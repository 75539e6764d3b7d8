//! The whole hostile suite in the real daemon: it goes on serving messages, and every script is reported.

use std::collections::BTreeMap;

use super::*;

#[path = "../../src/hooks/tests/bodies.rs"]
mod bodies;

/// Messages whose latency is taken, before and meanwhile.
const MESSAGES: usize = 200;
/// A message that waits as long as this was held up by something; how long they wait is printed, for whoever measures.
const HELD_UP: Duration = PATIENCE;

/// A well-behaved script beside the hostile ones: it is asked about each message.
const GOOD: &str = "ostler.on('message', function(ev) return { text = ev.text .. '!' } end, { on_error = 'refuse' })\n";

/// How long each message takes from its being sent to the end of its turn, sorted.
fn latencies(client: &Client) -> Vec<Duration> {
    let mut took: Vec<Duration> = (0..MESSAGES)
        .map(|_| {
            let began = Instant::now();
            let answered = say(client, "local:a", "hello");
            assert_eq!((answered.outcome.as_str(), answered.text.as_str()), ("completed", "echo: hello!"));
            began.elapsed()
        })
        .collect();
    took.sort();
    took
}

fn shown(of: &[Duration]) -> String {
    format!("median {:?}, p99 {:?}, most {:?}", of[of.len() / 2], of[of.len() * 99 / 100], of[of.len() - 1])
}

#[test]
fn hostile_scripts_are_reported_and_messages_do_not_wait_for_them() {
    let endless = bodies::ENDLESS.iter().map(|(name, body)| (*name, *body, "100ms"));
    let failing = bodies::FAILING.iter().map(|(name, body, _)| (*name, *body, "30s"));
    let all: Vec<_> = endless.chain(failing).collect();
    assert!(all.len() >= 40, "{}", all.len());
    let script = |name: &str, body: &str, timeout: &str| {
        format!(
            "ostler.on('turn_end', function(ev) if ev.key ~= 'hostile:{name}' then return end {body} end, \
             {{ timeout = '{timeout}' }})\n"
        )
    };
    let mut files: Vec<(String, String)> =
        all.iter().map(|(name, body, timeout)| (format!("{name}.lua"), script(name, body, timeout))).collect();
    files.push(("a.lua".to_owned(), GOOD.to_owned()));
    let mut daemon = Daemon::start_allowing("\"fs\"", &files, "[agent.default]\nkind = \"echo\"\n");
    let before = latencies(&daemon.client);

    for (name, ..) in &all {
        daemon.post(&session_path(&format!("hostile:{name}"), "/messages"), Some(&json!({ "text": "go" })));
    }
    let meanwhile = latencies(&daemon.client);
    println!("{} hostile handlers; a message alone: {}; meanwhile: {}", all.len(), shown(&before), shown(&meanwhile));
    assert!(meanwhile[MESSAGES - 1] < HELD_UP, "{}", shown(&meanwhile));

    // Each is counted once, as what it is.
    // Every one of them costs a state with all these scripts: on a busy machine that takes its time.
    let until = Instant::now() + 20 * PATIENCE;
    let missing = loop {
        let list = daemon.get("/v1/hooks");
        let counts: BTreeMap<&str, (u64, u64)> = list["handlers"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|h| h["event"] == "turn_end")
            .map(|h| {
                let count = |what: &str| h[what].as_u64().unwrap();
                (h["script"].as_str().unwrap(), (count("failures"), count("timeouts")))
            })
            .collect();
        let wanted = |name: &str| if bodies::ENDLESS.iter().any(|(n, _)| *n == name) { (0, 1) } else { (1, 0) };
        let missing: Vec<String> = all
            .iter()
            .filter(|(name, ..)| counts[format!("{name}.lua").as_str()] != wanted(name))
            .map(|(name, ..)| format!("{name} {:?}", counts[format!("{name}.lua").as_str()]))
            .collect();
        if missing.is_empty() || Instant::now() > until {
            break missing;
        }
    };
    assert!(missing.is_empty(), "(failures, timeouts) that are not theirs: {missing:?}");
    // And in the log, with its script, its line, the event and the key.
    let status = daemon.get("/v1/status");
    assert_eq!((&status["hooks"]["off"], &status["dropped_log_lines"]), (&json!(false), &json!(0)), "{status}");
    assert_eq!(say(&daemon.client, "local:a", "hello").text, "echo: hello!");
    assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.stderr());
    let log = daemon.stderr();
    for (name, ..) in &all {
        let told = format!("{name}.lua:1: turn_end of hostile:{name}: ");
        assert!(log.contains(&told), "not in the log: {told}");
    }
}
