//! Agents that the next daemon attaches to, where its configuration is another one: narrower limits, an agent that is
//! gone from it, or is defined otherwise.

use serde_json::{Value, json};

use crate::daemon::{Daemon, Gate, NEVER, kept};
use crate::kept::{answer, begun, lives, processes, session, stops};

const LASTS: &str = "[agents]\norphan_after = \"60s\"\n";

/// A turn that waits for its gate, and a daemon that dies in it; the next has another configuration.
fn over_a_change(d: &mut Daemon, key: &str, config: &str) -> (Gate, Value) {
    let gate = d.gate(&format!("gate-{}", key.replace(':', "-")));
    let (_, turn) = begun(d, key, &format!("say begun; wait-file {}; say done", gate.path.display()));
    let before = processes(d, session(&turn));
    d.kill9();
    d.write_config(config);
    d.boot();
    assert!(before.iter().all(lives), "{key}");
    (gate, turn)
}

/// The turn comes to its end, heard once, each word kept once.
#[track_caller]
fn completes(d: &Daemon, key: &str, turn: &Value) {
    assert_eq!(d.events(key).end_of(turn).0, "completed", "{key}");
    assert_eq!(answer(d, key, turn), "begundone", "{key}");
    let diary = d.diary(session(turn));
    let heard = diary.told.iter().filter(|told| told.prompt.contains("begun")).count();
    assert_eq!((heard, diary.agents.len()), (1, 1), "{key}: {diary:?}");
}

/// The keys whose activations have ended, of these.
fn ended<'a>(d: &Daemon, keys: &[&'a str]) -> Vec<&'a str> {
    let ends = |key: &str| d.past(key).iter().any(|e| e.event == "session_end");
    keys.iter().copied().filter(|key| ends(key)).collect()
}

/// Whichever limit is lower now: all that were live are live, none is ended for it, and a newcomer waits until enough of
/// them have given way, the running one after its turn.
#[test]
fn more_agents_than_the_limits_admit() {
    for (limits, of_agent) in [("[sessions]\nmax_live = 1\n", ""), ("", "max_processes = 1\n")] {
        let all = format!("{LASTS}{}", kept(&[], ""));
        let mut d = Daemon::new().config(&all).start();
        let idle = ["local:a", "local:b"];
        let said = idle.map(|key| d.turn(key, "pid"));
        let agents: Vec<_> = said.iter().flat_map(|turn| processes(&d, turn.session())).collect();
        let narrow = format!("{limits}{LASTS}{}", kept(&[], of_agent));
        let (mut gate, turn) = over_a_change(&mut d, "local:c", &narrow);
        // They are attached to: the one that is asked answers by the agent that it had.
        assert_eq!(d.send("local:a", "pid"), said[0].text(), "{narrow}");
        assert!(agents.iter().all(lives), "{narrow}");
        assert_eq!((d.status()["sessions"]["live"].clone(), ended(&d, &idle)), (json!(3), vec![]), "{narrow}");

        let mut newcomer = d.events("local:d");
        let new = d.post("local:d", "say new");
        for key in idle {
            d.events(key).until("session_end");
        }
        assert_eq!(d.show("local:d")["turn"]["state"], "queued", "{narrow}");
        assert_eq!(ended(&d, &["local:c"]), Vec::<&str>::new(), "{narrow}");
        gate.open();
        completes(&d, "local:c", &turn);
        assert_eq!(newcomer.end_of(&new).0, "completed", "{narrow}");
        assert_eq!(d.status()["sessions"]["live"], 1, "{narrow}");
        assert_eq!(d.send("local:b", "say again"), "again", "one that gave way comes back");
        stops(d);
    }
}

/// The next activation of a session, after one more turn in this one.
fn next_activation(d: &Daemon, key: &str, turn: &Value) {
    let pid = d.diary(session(turn)).newest().0;
    assert_eq!(d.send(key, "pid"), format!("pid {pid}"), "{key}: as long as it is live, it is the same agent");
    d.act(key, "suspend");
    d.act(session(turn), "resume");
}

/// An agent that is gone from the configuration serves its turn, and its session as long as that is live; the next
/// activation is served by the agent that the key has now.
#[test]
fn an_agent_that_is_configured_no_longer() {
    let gone = kept(&[], "").replace("[agent.allowed]", "[agent.gone]").replace("\"allowed\"", "\"gone\"");
    let mut d = Daemon::new().config(&format!("{LASTS}{gone}")).start();
    let now = format!("{LASTS}[agent.default]\nkind = \"exec\"\ncommand = [\"echo\", \"default\"]\n");
    let (mut gate, turn) = over_a_change(&mut d, "local:y", &now);
    assert_eq!(d.show("local:y")["agent"], "gone");
    gate.open();
    completes(&d, "local:y", &turn);
    next_activation(&d, "local:y", &turn);
    assert_eq!(d.send("local:y", "x"), "default\n");
    assert_eq!(d.show("local:y")["agent"], "default");
    stops(d);
}

/// An agent that is defined otherwise: the turn, and all that is asked in it, goes by the definition under which the
/// activation began, the next activation by the new one.
#[test]
fn an_agent_that_is_configured_otherwise() {
    let with = |permission: &str| format!("{LASTS}{}", kept(&[], &format!("permission = \"{permission}\"\n")));
    let mut d = Daemon::new().config(&with("ask")).start();
    let mut gate = d.gate("gate");
    let (_, turn) = begun(&d, "local:a", &format!("say begun; wait-file {}; permission", gate.path.display()));
    d.kill9();
    d.write_config(&with("deny"));
    d.boot();
    let mut events = d.events("local:a");
    gate.open();
    let asked = events.until_where("the question", |e| e.event == "permission" && e.text("state") == "open");
    let given = json!({ "request_id": asked.data["request_id"], "option_id": "allow-once" });
    d.client().post(&ostler::client::session_path("local:a", "/permission"), Some(&given)).unwrap();
    assert_eq!(events.end_of(&turn).0, "completed");
    assert_eq!(answer(&d, "local:a", &turn), "begunoutcome: selected allow-once");
    next_activation(&d, "local:a", &turn);
    let denied = d.turn("local:a", "permission");
    assert_eq!(denied.text(), "outcome: selected reject");
    assert!(denied.of("permission").all(|e| e.text("state") != "open"), "{denied:?}");
    stops(d);
}

/// The same, where even the kind is another one.
#[test]
fn an_agent_of_another_kind() {
    for key in ["local:a", "local:x"] {
        let mut d = Daemon::new().config(&format!("{LASTS}{}", kept(&[], ""))).start();
        let other = "[agent.default]\nkind = \"echo\"\n[agent.command]\nkind = \"echo\"\n\
                     [[route]]\nmatch = \"local:x*\"\nagent = \"command\"\n";
        let (mut gate, turn) = over_a_change(&mut d, key, &format!("{LASTS}{other}"));
        gate.open();
        completes(&d, key, &turn);
        d.act(key, "suspend");
        d.act(session(&turn), "resume");
        assert_eq!(d.send(key, "x"), "echo: x");
        stops(d);
    }
}

/// A daemon that keeps no agents ends those that were kept for it, before their sessions go on, and leaves nothing of them.
#[test]
fn keeping_is_turned_off() {
    for key in ["local:a", "local:x"] {
        let mut d = Daemon::new().config(&format!("{LASTS}{}", kept(&[], ""))).start();
        let idle = d.turn("local:idle", "say idle");
        let mut gate = d.gate("gate");
        let (_, turn) = begun(&d, key, &format!("say begun; wait-file {}; say done", gate.path.display()));
        let before: Vec<_> = [session(&turn), idle.session()].iter().flat_map(|s| processes(&d, s)).collect();
        d.kill9();
        d.write_config(&format!("{NEVER}{}", kept(&[], "")));
        d.boot();
        let mut events = d.events(key);
        assert_eq!(events.end_of(&turn).0, "interrupted", "{key}");
        let goes_on = |e: &ostler::client::SseEvent| e.event == "turn_start" && e.data["continues"].is_string();
        let next = events.until_where("its continuation", goes_on);
        assert!(!before[..2].iter().any(lives), "{key}: it still ran when the session went on");
        gate.open();
        assert_eq!(events.end_of(&next.data).0, "completed", "{key}");
        assert_eq!(d.send("local:idle", "say again"), "again");
        assert!(!before.iter().any(lives), "{key}");
        stops(d);
    }
}
