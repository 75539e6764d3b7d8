//! What is chosen in the sessions of an ACP agent, what they are set up with, and how it is logged in.

use std::collections::BTreeMap;

use ostler::agent::acp::Acp;
use ostler::agent::{Agent, Said};
use ostler::config::{Agent as Config, AgentKind, Consent, McpServer};
use ostler::model::offers::Pick;

use crate::host::{TestHost, config, done, failure, is_reaped, soon};

const FAKE: &str = env!("CARGO_BIN_EXE_ostler-fake-agent");

fn with(flags: &[&str], change: impl FnOnce(&mut Config)) -> (TestHost, Acp) {
    let command: Vec<&str> = [FAKE].iter().chain(flags).copied().collect();
    let mut config = config(AgentKind::Acp, &command);
    change(&mut config);
    (TestHost::new(), Acp::new(&config))
}

fn value(value: &str) -> Pick {
    Pick::Value(value.into())
}

fn choose(config: &mut Config) {
    config.mode = "ask first".into();
    config.model = "small".into();
    config.options = BTreeMap::from([("effort".into(), value("high")), ("fast".into(), Pick::Switch(true))]);
}

/// Says what the session has.
fn settings(host: &mut TestHost, agent: &mut Acp) -> String {
    assert_eq!(host.prompt(agent, "settings"), done());
    host.text()
}

#[test]
fn what_is_chosen_holds_in_every_session_however_it_was_opened() {
    for reopened_by in ["--load", "--resume"] {
        let state = tempfile::tempdir().unwrap();
        let flags: &[&str] = if reopened_by == "--resume" { &["--settings", "--resume"] } else { &["--settings"] };
        let (mut host, mut agent) = with(flags, |config| {
            choose(config);
            config.env.insert("FAKE_AGENT_STATE".into(), state.path().to_string_lossy().into_owned());
        });
        let session = host.start(&mut agent);
        assert_eq!(settings(&mut host, &mut agent), "ask small high true [] ");
        // Another process: it remembers the conversation, not what was chosen.
        failure(host.prompt(&mut agent, "die 1"));
        let started = agent.start(&mut host, session.as_deref(), true, soon()).unwrap();
        assert_eq!(started.agent_session, session, "{reopened_by}");
        assert_eq!(settings(&mut host, &mut agent), "ask small high true [] ", "{reopened_by}");
        host.close(&mut agent);
    }
    // Nothing is chosen: the agent's own.
    let (mut host, mut agent) = with(&["--settings"], |_| {});
    host.start(&mut agent);
    assert_eq!(settings(&mut host, &mut agent), "auto big low false [] ");
    host.close(&mut agent);
}

/// An agent that has forgotten its session within a turn opens another: there, too.
#[test]
fn what_is_chosen_holds_in_a_session_that_is_opened_in_a_turn() {
    let (mut host, mut agent) = with(&["--settings"], choose);
    host.start(&mut agent);
    assert_eq!(host.prompt(&mut agent, "say a; forget"), done());
    assert_eq!(settings(&mut host, &mut agent), "ask small high true [] ");
    host.close(&mut agent);
}

#[test]
fn what_an_agent_does_not_offer_fails_its_start_with_what_it_does() {
    type Change = fn(&mut Config);
    let cases: [(&[&str], Change, &str); 6] = [
        (&["--settings"], |c| c.mode = "plan".into(), "there is no mode \"plan\", only: auto, ask, yolo"),
        (&["--settings"], |c| c.model = "huge".into(), "there is no model \"huge\", only: big, small"),
        (
            &["--settings"],
            |c| drop(c.options.insert("fast".into(), value("very"))),
            "fast is true or false, not \"very\"",
        ),
        (
            &["--settings"],
            |c| drop(c.options.insert("x".into(), value("y"))),
            "there is no option \"x\", only: effort, fast",
        ),
        (&[], |c| c.mode = "ask".into(), "there is no mode \"ask\", only: none"),
        (
            &["--settings", "--refuses-mode"],
            |c| c.mode = "ask".into(),
            "it refuses mode \"ask\": not while it rains (-32602)",
        ),
    ];
    for (flags, change, why) in cases {
        let (mut host, mut agent) = with(flags, |config| {
            config.start_retries = 2;
            change(config);
        });
        let failure = agent.start(&mut host, None, false, soon()).unwrap_err();
        assert_eq!((failure.code, failure.message), ("agent_option", format!("agent test: {why}")));
        assert_eq!(host.processes.len(), 1, "another try would fail, too");
        assert!(is_reaped(host.processes[0].0));
    }
}

#[test]
fn an_agent_that_asks_nobody_is_told_or_refused() {
    let (mut host, mut agent) =
        with(&["--settings"], |c| (c.mode, c.consent) = ("yolo".into(), Some(Consent::Required)));
    host.start(&mut agent);
    assert_eq!(host.prompt(&mut agent, "say a"), done());
    let told = |host: &TestHost| {
        let notice = |s: &Said| if let Said::Notice(code, text) = s { Some(format!("{code}: {text}")) } else { None };
        host.said.iter().filter_map(notice).collect::<Vec<_>>()
    };
    assert_eq!(told(&host), ["asks_nobody: the agent asks nobody before it acts (mode \"yolo\")"]);
    assert_eq!(host.prompt(&mut agent, "say b; switch ask; switch yolo"), done());
    assert_eq!(told(&host).len(), 1, "once, until it changes");
    host.close(&mut agent);
    let (mut host, mut agent) = with(&["--settings"], |c| (c.mode, c.consent) = ("yolo".into(), Some(Consent::Strict)));
    let refused = agent.start(&mut host, None, false, soon()).unwrap_err();
    assert_eq!(refused.code, "agent_option");
    assert!(
        refused.message.contains("it asks nobody before it acts (mode \"yolo\"), and consent is strict"),
        "{refused}"
    );
    // One that changes its mode by itself: the turn goes on, and no other begins.
    let (mut host, mut agent) = with(&["--settings"], |c| (c.mode, c.consent) = ("ask".into(), Some(Consent::Strict)));
    host.start(&mut agent);
    assert_eq!(host.prompt(&mut agent, "switch yolo; say a"), done());
    assert_eq!(host.notices(), ["asks_nobody"]);
    let refused = failure(host.prompt(&mut agent, "say b"));
    assert_eq!((refused.code, host.text().as_str(), agent.is_ready()), ("agent_option", "", false));
    host.start(&mut agent);
    assert_eq!(
        settings(&mut host, &mut agent),
        "ask big low false [] ",
        "its next process has the mode that was chosen"
    );
    host.close(&mut agent);
}

#[test]
fn a_session_is_given_tools_and_instructions_as_the_agent_takes_them() {
    let give = |config: &mut Config| {
        let local = McpServer { command: vec!["my-mcp".into()], ..McpServer::default() };
        let remote = McpServer { url: "http://127.0.0.1:1/mcp".into(), ..McpServer::default() };
        config.mcp = BTreeMap::from([("files".into(), local), ("web".into(), remote)]);
        config.system_prompt = "Be brief.".into();
    };
    for (flags, want) in [
        (&["--settings"][..], "auto big low false [files:stdio] "),
        (&["--settings", "--http", "--instructions"], "auto big low false [files:stdio web:http] Be brief."),
    ] {
        let (mut host, mut agent) = with(flags, give);
        host.start(&mut agent);
        assert_eq!(settings(&mut host, &mut agent), want);
        assert_eq!(host.prompt(&mut agent, "say a; forget"), done());
        assert_eq!(settings(&mut host, &mut agent), want, "also in a session that was opened in a turn");
        host.close(&mut agent);
    }
}

#[test]
fn how_an_agent_is_logged_in() {
    let logged_in = |method: &str, change: fn(&mut Config)| {
        let (mut host, mut agent) = with(&["--login", "FAKE_KEY"], |config| {
            config.authenticate = method.into();
            change(config);
        });
        let started = agent.start(&mut host, None, false, soon());
        let login = started.map(|_| settings(&mut host, &mut agent));
        host.close(&mut agent);
        login
    };
    let set = |config: &mut Config| drop(config.env.insert("FAKE_KEY".into(), "x".into()));
    assert_eq!(logged_in("by-variable", |_| {}).unwrap(), "auto big low false [] by-variable", "as it is told");
    assert_eq!(logged_in("", set).unwrap(), "auto big low false [] by-variable", "its variable is set");
    for (method, code, why) in [
        ("", "auth_required", "wants a login"),
        ("by-hand", "auth_required", "authenticate: refused: nobody is there"),
        ("terminal", "agent_option", "is for a terminal"),
        ("x", "agent_option", "there is no login method \"x\", only: terminal, by-hand, by-variable"),
    ] {
        let failure = logged_in(method, |_| {}).unwrap_err();
        assert_eq!(failure.code, code, "{method}: {failure}");
        assert!(failure.message.contains(why), "{method}: {failure}");
    }
}
