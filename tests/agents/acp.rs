//! The ACP agent against a scripted one that does what real ones were seen to do, and worse.

use std::time::{Duration, Instant};

use ostler::agent::acp::Acp;
use ostler::agent::process::{find_marked, is_alive};
use ostler::agent::{Agent, Answer, Continuity, Entry, Host, Interrupt, PermissionOutcome, Prompt, Said};
use ostler::config::AgentKind;
use ostler::model::event::Role;

use crate::host::{TestHost, be_subreaper, config, done, failure, is_reaped, reap, soon};

const FAKE: &str = env!("CARGO_BIN_EXE_ostler-fake-agent");

fn agent(flags: &[&str]) -> Acp {
    let command: Vec<&str> = [FAKE].iter().chain(flags).copied().collect();
    Acp::new(&config(AgentKind::Acp, &command))
}

/// One whose sessions outlive it.
fn lasting(state: &tempfile::TempDir, flags: &[&str]) -> Acp {
    let command: Vec<&str> = [FAKE].iter().chain(flags).copied().collect();
    let mut config = config(AgentKind::Acp, &command);
    config.env.insert("FAKE_AGENT_STATE".into(), state.path().to_string_lossy().into_owned());
    Acp::new(&config)
}

fn begun(flags: &[&str]) -> (TestHost, Acp) {
    let (mut host, mut agent) = (TestHost::new(), agent(flags));
    host.start(&mut agent);
    (host, agent)
}

fn cancel_in(time: Duration) -> impl Fn() -> Interrupt {
    move || Interrupt::Cancel(Instant::now() + time)
}

#[test]
fn a_turn_is_told_in_order_and_whole() {
    let (mut host, mut agent) = begun(&["--banner", "--close"]);
    assert_eq!(host.prompt(&mut agent, "say a;think b;plan;usage;image;kinds;say c"), done());
    let said: Vec<String> = host.said.iter().map(|s| format!("{s:?}")).collect();
    assert_eq!(said[0], "Text(\"a\")");
    assert_eq!(said[1], "Thought(\"b\")");
    assert!(said[2].starts_with("Plan(") && said[2].contains("second"), "{}", said[2]);
    assert!(said[3].starts_with("Usage(") && said[3].contains("used"), "{}", said[3]);
    assert_eq!((said[4].as_str(), said[5].as_str()), ("Text(\"[image image/png]\")", "Text(\"c\")"));
    assert_eq!(said.len(), 6, "unknown kinds say nothing");
    let pid = host.processes[0].0;
    host.close(&mut agent);
    assert!(is_reaped(pid));
    assert!(!agent.is_ready());
}

#[test]
fn the_agents_environment_is_clean_and_marked() {
    let (mut host, mut agent) = begun(&[]);
    assert_eq!(host.prompt(&mut agent, "env"), done());
    let text = host.text();
    let mut names: Vec<&str> = text.lines().filter_map(|l| l.split_once('=')).map(|(name, _)| name).collect();
    names.retain(|n| !["PATH", "HOME"].contains(n));
    assert_eq!(names, ["LANG", "OSTLER_BOOT_ID", "OSTLER_KEY", "OSTLER_SESSION_ID"]);
    assert_eq!(host.prompt(&mut agent, "cwd"), done());
    assert_eq!(host.text(), host.identity().cwd.to_string_lossy());
    host.close(&mut agent);
}

/// Checklist 47.
#[test]
fn what_is_no_message_is_survived() {
    let (mut host, mut agent) = begun(&[]);
    assert_eq!(host.prompt(&mut agent, "garbage;say still here"), done());
    assert_eq!(host.text(), "still here");
    assert_eq!(host.prompt(&mut agent, "longline 20000000"), done());
    assert_eq!((host.text().as_str(), host.notices()), ("after", vec![]));
    assert_eq!(host.prompt(&mut agent, "longline 40000000"), done());
    assert_eq!((host.text().as_str(), host.notices()), ("after", vec!["line_too_long"]));
    assert_eq!(host.prompt(&mut agent, "ask fs/read_text_file"), done());
    assert_eq!(host.text(), "code -32601");
    host.close(&mut agent);
}

#[test]
fn a_flood_is_cut_by_a_cancel() {
    let (mut host, mut agent) = begun(&[]);
    assert_eq!(host.prompt(&mut agent, "flood 20000"), done());
    assert_eq!(host.said.len(), 20_000);
    host.interrupt_at("9 0 1", cancel_in(Duration::from_millis(400)));
    let began = Instant::now();
    assert_eq!(host.prompt(&mut agent, "flood 100000000"), Answer::Cancelled);
    assert!(began.elapsed() < Duration::from_secs(10), "took {:?}", began.elapsed());
    assert!(!agent.is_ready(), "it did not take the cancel, so it was ended");
    assert!(is_reaped(host.processes[0].0));
}

#[test]
fn much_on_stderr_blocks_nobody() {
    let (mut host, mut agent) = begun(&[]);
    assert_eq!(host.prompt(&mut agent, "stderr 1000000;say done"), done());
    assert_eq!(host.text(), "done");
    host.close(&mut agent);
}

#[test]
fn a_prompt_larger_than_a_pipe_arrives() {
    let (mut host, mut agent) = begun(&[]);
    let text = format!("{}\nsay got it", "x".repeat(3_000_000));
    assert_eq!(host.prompt(&mut agent, &text), done());
    assert_eq!(host.text(), "got it");
    host.close(&mut agent);
}

/// Checklist 46.
#[test]
fn death_in_a_turn_is_told_with_status_and_stderr_and_the_next_start_works() {
    let (mut host, mut agent) = begun(&[]);
    let told = failure(host.prompt(&mut agent, "say partly;die 3"));
    assert_eq!(told.code, "agent_died");
    assert_eq!(told.message, "the agent exited with status 3: fatal: told to die");
    assert_eq!(host.text(), "partly");
    assert!(!agent.is_ready() && is_reaped(host.processes[0].0));
    host.start(&mut agent);
    assert!(agent.is_ready());
    assert_eq!(host.prompt(&mut agent, "say again"), done());
    host.close(&mut agent);
}

#[test]
fn one_that_closes_its_output_is_as_good_as_dead() {
    let (mut host, mut agent) = begun(&[]);
    let told = failure(host.prompt(&mut agent, "say partly;vanish"));
    assert_eq!(told.code, "agent_died");
    assert!(told.message.contains("closed its output"), "{told}");
    assert!(is_reaped(host.processes[0].0), "it was ended");
}

#[test]
fn an_answer_given_before_the_exit_counts() {
    let (mut host, mut agent) = begun(&[]);
    assert_eq!(host.prompt(&mut agent, "say last words;bye"), done());
    assert_eq!(host.text(), "last words");
    // The exit is noticed between the turns, by the descriptors that the worker watches.
    while agent.is_ready() {
        let mut watches = agent.watches();
        assert!(!watches.is_empty());
        host.wait(&mut watches, Some(soon()));
        drop(watches);
        agent.idle(&mut host);
    }
    agent.idle(&mut host);
    assert!(agent.watches().is_empty());
    // It closed its output an instant before it exited, and was killed in between: it is dead a moment later.
    reap(host.processes[0].0);
    assert!(is_reaped(host.processes[0].0));
}

#[test]
fn late_words_do_not_go_into_the_next_turn_but_are_told() {
    let (mut host, mut agent) = begun(&[]);
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    assert_eq!(host.prompt(&mut agent, &format!("late stale;signal {};say first", fifo.display())), done());
    // Opened when the late words were written.
    std::fs::File::open(&fifo).unwrap();
    assert_eq!(host.prompt(&mut agent, "say second"), done());
    assert_eq!((host.text().as_str(), host.notices()), ("second", vec!["between_turns"]));
    let told = host.said.iter().any(|s| matches!(s, Said::Notice(_, text) if text.contains("stale")));
    assert!(told, "{:?}", host.said);
    host.close(&mut agent);
}

/// What comes between turns is a turn of the agent's own, which ends when it is quiet.
#[test]
fn an_agent_begins_a_turn_by_itself() {
    let (mut host, mut agent) = begun(&[]);
    assert_eq!(host.prompt(&mut agent, "say first;late the task;late , done"), done());
    let until_it_speaks = |host: &mut TestHost, agent: &mut Acp| {
        agent.idle(host);
        while !agent.wants_turn() {
            host.wait(&mut agent.watches(), Some(soon()));
            agent.idle(host);
        }
        host.said.clear();
    };
    until_it_speaks(&mut host, &mut agent);
    assert!(agent.watches().is_empty(), "nothing more is read before this is told");
    let begun = agent.listen(&mut host);
    assert_eq!(host.drive(&mut agent, begun), Answer::Completed { stop_reason: None });
    assert_eq!(host.text(), "the task, done");
    assert!(!agent.wants_turn() && agent.is_ready());

    host.settle = Box::new(|request, controls| {
        assert_eq!(request.tool.title.as_deref(), Some("clean up"));
        controls.answers.push((request.request_id.clone(), PermissionOutcome::Selected("reject".into())));
        controls.letter = true;
        None
    });
    assert_eq!(host.prompt(&mut agent, "say next;late-ask"), done());
    until_it_speaks(&mut host, &mut agent);
    let begun = agent.listen(&mut host);
    assert_eq!(host.drive(&mut agent, begun), Answer::Completed { stop_reason: None });
    assert_eq!(host.text(), "late: selected reject");

    // A cancel ends it at once.
    assert_eq!(host.prompt(&mut agent, "say last;late more"), done());
    until_it_speaks(&mut host, &mut agent);
    host.controls.interrupt = Some(Interrupt::Cancel(soon()));
    let begun = agent.listen(&mut host);
    assert_eq!(host.drive(&mut agent, begun), Answer::Cancelled);
    host.close(&mut agent);
}

#[test]
fn a_cancel_ends_the_turn_whatever_the_agent_calls_it() {
    for command in ["say go;hang", "say go;cancel-code", "say go;stream 100000 1"] {
        let (mut host, mut agent) = begun(&[]);
        host.interrupt_at("go", cancel_in(Duration::from_secs(20)));
        assert_eq!(host.prompt(&mut agent, command), Answer::Cancelled, "{command}");
        assert!(agent.is_ready(), "{command}: it answered the cancel, and lives on");
        host.hear = Box::new(|_, _| {});
        assert_eq!(host.prompt(&mut agent, "say next"), done());
        assert_eq!(host.text(), "next");
        host.close(&mut agent);
    }
}

/// As hermes-agent does when a tool runs or a permission is open.
#[test]
fn an_agent_that_fails_at_a_cancel_reopens_the_session_in_a_new_process() {
    for command in ["say go;cancel-error", "say go;permission-first"] {
        let state = tempfile::tempdir().unwrap();
        let (mut host, mut agent) = (TestHost::new(), lasting(&state, &[]));
        let session = host.start(&mut agent).unwrap();
        host.interrupt_at("go", cancel_in(Duration::from_secs(20)));
        assert_eq!(host.prompt(&mut agent, command), Answer::Cancelled, "{command}");
        assert!(!agent.is_ready() && is_reaped(host.processes[0].0), "{command}: what it answers next means nothing");
        host.hear = Box::new(|_, _| {});
        host.controls.interrupt = None;
        let started = agent.start(&mut host, Some(&session), true, soon()).unwrap();
        assert_eq!(started.continuity, Continuity::Kept, "{command}");
        assert_eq!(host.prompt(&mut agent, "recall"), done());
        assert_eq!(host.text(), "prompts before: 1", "{command}");
        host.close(&mut agent);
    }
    // Where the session would be lost with the process, the process is kept.
    let (mut host, mut agent) = begun(&["--no-load"]);
    host.interrupt_at("go", cancel_in(Duration::from_secs(20)));
    assert_eq!(host.prompt(&mut agent, "say go;cancel-error"), Answer::Cancelled);
    assert!(agent.is_ready());
    host.close(&mut agent);
}

#[test]
fn a_cancel_that_is_ignored_ends_the_process() {
    for flags in [&[][..], &["--ignore-term", "--ignore-eof"]] {
        let (mut host, mut agent) = begun(flags);
        host.interrupt_at("go", cancel_in(Duration::from_millis(900)));
        let began = Instant::now();
        assert_eq!(host.prompt(&mut agent, "say go;child;hang-hard"), Answer::Cancelled);
        assert!(began.elapsed() < Duration::from_secs(8), "{flags:?} took {:?}", began.elapsed());
        assert!(!agent.is_ready());
        assert!(is_reaped(host.processes[0].0), "{flags:?}");
        assert!(find_marked(Some(&host.identity().session_id), None).is_empty(), "{flags:?}");
    }
}

#[test]
fn a_kill_is_at_once() {
    let (mut host, mut agent) = begun(&["--ignore-term", "--ignore-eof"]);
    host.interrupt_at("go", || Interrupt::Kill);
    let began = Instant::now();
    assert_eq!(host.prompt(&mut agent, "say go;hang-hard"), Answer::Cancelled);
    assert!(began.elapsed() < Duration::from_secs(3), "took {:?}", began.elapsed());
    assert!(is_reaped(host.processes[0].0));
}

/// Checklist 20.
#[test]
fn what_left_the_group_is_swept_and_no_zombie_is_left() {
    be_subreaper();
    let (mut host, mut agent) = begun(&[]);
    assert_eq!(host.prompt(&mut agent, "grandchild;outlaw;child"), done());
    let (far, near, outlaw) =
        (host.number_after("grandchild"), host.number_after("child"), host.number_after("outlaw"));
    let found = find_marked(Some(&host.identity().session_id), None);
    assert!(found.iter().any(|l| l.pid == far && is_alive(l.pid, l.start)), "{found:?}");
    host.close(&mut agent);
    // A dead child of another test may have hidden one of these.
    [far, near, outlaw].into_iter().for_each(reap);
    assert!(is_reaped(far) && is_reaped(near) && is_reaped(outlaw), "{far} {near} {outlaw}");
    assert!(found.iter().all(|l| !is_alive(l.pid, l.start)));
}

#[test]
fn one_that_ignores_the_end_of_its_input_and_sigterm_is_closed_in_time() {
    let (mut host, mut agent) = begun(&["--ignore-term", "--ignore-eof"]);
    let began = Instant::now();
    assert_eq!(agent.close(&mut host, began + Duration::from_millis(1500)), Vec::<String>::new());
    assert!(began.elapsed() < Duration::from_millis(3000), "took {:?}", began.elapsed());
    assert!(is_reaped(host.processes[0].0));
}

#[test]
fn a_permission_is_answered_by_policy_or_by_letter() {
    let (mut host, mut agent) = begun(&[]);
    host.settle = Box::new(|_, _| Some(PermissionOutcome::Selected("allow-once".into())));
    assert_eq!(host.prompt(&mut agent, "tool"), done());
    assert_eq!(host.text(), "tool done");
    let tools: Vec<_> = host.said.iter().filter_map(|s| if let Said::Tool(t) = s { Some(t) } else { None }).collect();
    assert_eq!(tools.len(), 2, "announced once: {tools:?}");
    assert_eq!((tools[0].title.as_deref(), tools[0].status.as_deref()), (Some("Touch a file"), Some("pending")));
    assert_eq!((tools[1].title.as_deref(), tools[1].status.as_deref()), (None, Some("completed")));
    assert_eq!(host.requests[0].options[1].option_id, "reject");

    host.settle = Box::new(|request, controls| {
        controls.answers.push((request.request_id.clone(), PermissionOutcome::Selected("reject".into())));
        controls.letter = true;
        None
    });
    assert_eq!(host.prompt(&mut agent, "permission"), done());
    assert_eq!(host.text(), "outcome: selected reject");
    let unannounced = host.said.iter().any(|s| matches!(s, Said::Tool(t) if t.id == "perm-check-1"));
    assert!(unannounced, "{:?}", host.said);
    assert_ne!(host.requests[0].request_id, host.requests[1].request_id);
    host.close(&mut agent);
}

#[test]
fn a_cancel_withdraws_open_permissions() {
    for command in ["permission", "permission-first"] {
        let (mut host, mut agent) = begun(&[]);
        host.settle = Box::new(|_, controls| {
            controls.interrupt = Some(Interrupt::Cancel(soon()));
            controls.letter = true;
            None
        });
        assert_eq!(host.prompt(&mut agent, command), Answer::Cancelled, "{command}");
        assert_eq!(agent.is_ready(), command == "permission", "{command}: one answered, the other failed");
        host.close(&mut agent);
    }
}

/// An answer that was promised is what the agent hears, even if a cancel comes with it.
#[test]
fn a_cancel_withdraws_no_answered_permission() {
    let (mut host, mut agent) = begun(&[]);
    host.settle = Box::new(|request, controls| {
        controls.answers.push((request.request_id.clone(), PermissionOutcome::Selected("reject".into())));
        controls.interrupt = Some(Interrupt::Cancel(soon()));
        controls.letter = true;
        None
    });
    host.prompt(&mut agent, "permission");
    assert_eq!(host.text(), "outcome: selected reject");
    host.close(&mut agent);
}

#[test]
fn stop_reasons_have_their_outcomes() {
    let (mut host, mut agent) = begun(&[]);
    let completed = |reason: &str| Answer::Completed { stop_reason: Some(reason.into()) };
    assert_eq!(host.prompt(&mut agent, "say a;stop max_tokens"), completed("max_tokens"));
    assert_eq!(host.prompt(&mut agent, "say a;refuse"), completed("refusal"));
    assert_eq!(failure(host.prompt(&mut agent, "refuse")).code, "agent_refused");
    assert_eq!(failure(host.prompt(&mut agent, "stop cancelled")).code, "agent_error");
    assert_eq!(host.prompt(&mut agent, "say a;stop cancelled"), completed("cancelled"));
    let told = failure(host.prompt(&mut agent, "error out of tokens"));
    assert!(told.code == "agent_error" && told.message.contains("out of tokens"), "{told}");
    assert!(agent.is_ready(), "an error ends the turn alone");
    host.close(&mut agent);
}

fn past() -> Vec<Entry> {
    let entry = |seq, role, text: &str| Entry { seq, turn_id: None, role, text: text.into(), at: 0 };
    vec![entry(1, Role::User, "my horse is called Juno"), entry(2, Role::Agent, "noted")]
}

/// Two activations: a prompt in the first, then the second with these flags; its continuity, and its host and agent.
fn again(state: &tempfile::TempDir, flags: &[&str], known: Option<&str>) -> (TestHost, Acp, Continuity) {
    let (mut host, mut first) = (TestHost::new(), lasting(state, &[]));
    let session = host.start(&mut first).unwrap();
    assert_eq!(host.prompt(&mut first, "say hello"), done());
    host.close(&mut first);
    let mut second = lasting(state, flags);
    let (mut host, session) = (TestHost::new(), known.map_or(session, str::to_string));
    host.history = past();
    let started = second.start(&mut host, Some(&session), true, soon()).unwrap();
    assert!(host.said.is_empty(), "a replay is nobody's answer: {:?}", host.said);
    assert_eq!(started.continuity == Continuity::Kept, started.agent_session.as_deref() == Some(&session));
    (host, second, started.continuity)
}

#[test]
fn a_session_goes_on_over_processes() {
    let ways: [&[&str]; 6] = [
        &[],
        &["--no-load", "--resume"],
        &["--no-load", "--resume", "--list"],
        &["--resume", "--resume-replays"],
        &["--list", "--resume", "--load-lies"],
        &["--list"],
    ];
    for flags in ways {
        let state = tempfile::tempdir().unwrap();
        let (mut host, mut agent, continuity) = again(&state, flags, None);
        assert_eq!(continuity, Continuity::Kept, "{flags:?}");
        assert_eq!(host.prompt(&mut agent, "recall;echo-context"), done());
        assert_eq!(host.text(), "prompts before: 1[recall;echo-context]\n", "{flags:?}: no history is given twice");
        assert!(host.notices().is_empty());
        host.close(&mut agent);
    }
}

/// Checklist 45.
#[test]
fn a_lost_session_is_noticed_and_the_history_given_once() {
    let ways: [(&[&str], Option<&str>); 8] = [
        (&[], Some("unknown")),
        (&["--load-lies"], Some("unknown")),
        (&["--load-lies", "--resume", "--list"], Some("unknown")),
        (&["--no-replay"], None),
        (&["--no-replay", "--list"], None),
        (&["--load-error"], None),
        (&["--no-load"], None),
        (&["--resume", "--resume-other", "--list", "--no-load"], Some("unknown")),
    ];
    for (flags, known) in ways {
        let state = tempfile::tempdir().unwrap();
        let (mut host, mut agent, continuity) = again(&state, flags, known);
        assert_eq!(continuity, Continuity::Lost, "{flags:?}");
        assert_eq!(host.prompt(&mut agent, "echo-context"), done());
        assert_eq!(host.notices(), ["context_lost"], "{flags:?}");
        let text = host.text();
        let (juno, noted) = (text.find("user: my horse is called Juno"), text.find("agent: noted"));
        assert!(juno.is_some() && juno < noted && text.ends_with("[echo-context]\n"), "{flags:?}: {text}");
        assert_eq!(host.prompt(&mut agent, "echo-context"), done());
        assert_eq!((host.text().as_str(), host.notices()), ("[echo-context]\n", vec![]), "{flags:?}: once");
        host.close(&mut agent);
    }
}

/// Checklist 45.
#[test]
fn a_resume_that_lied_is_noticed_when_the_prompt_is_refused() {
    for flags in
        [&["--no-load", "--resume", "--load-lies"][..], &["--no-load", "--resume", "--load-lies", "--unknown-refuses"]]
    {
        let state = tempfile::tempdir().unwrap();
        let (mut host, mut agent, continuity) = again(&state, flags, Some("unknown"));
        assert_eq!(continuity, Continuity::Kept, "{flags:?}: nothing speaks against it yet");
        assert_eq!(host.prompt(&mut agent, "echo-context"), done(), "{flags:?}");
        assert_eq!(host.notices(), ["context_lost"], "{flags:?}");
        assert!(host.text().contains("Juno"), "{flags:?}: {}", host.text());
        assert!(!agent.is_ready(), "the new session's id is still to be told");
        let started = agent.start(&mut host, Some("unknown"), true, soon()).unwrap();
        assert_eq!(started.continuity, Continuity::Kept);
        assert!(started.agent_session.is_some_and(|id| id.starts_with("fake-")));
        assert_eq!(host.processes.len(), 1, "in the same process");
        assert_eq!(host.prompt(&mut agent, "recall"), done());
        assert_eq!(host.text(), "prompts before: 1");
        host.close(&mut agent);
    }
}

/// Checklist 45.
#[test]
fn a_resume_under_another_id_is_noticed_by_the_updates() {
    let state = tempfile::tempdir().unwrap();
    let (mut host, mut agent, continuity) =
        again(&state, &["--no-load", "--resume", "--resume-other"], Some("unknown"));
    assert_eq!(continuity, Continuity::Kept);
    assert_eq!(host.prompt(&mut agent, "say who are you"), done());
    assert_eq!((host.text().as_str(), host.notices()), ("who are you", vec!["context_lost"]));
    assert!(!agent.is_ready());
    let started = agent.start(&mut host, Some("unknown"), true, soon()).unwrap();
    assert_eq!(started.continuity, Continuity::Lost);
    assert_eq!(host.prompt(&mut agent, "echo-context"), done());
    assert!(host.text().contains("Juno"), "the next prompt carries the history: {}", host.text());
    host.close(&mut agent);
}

#[test]
fn a_stranger_s_updates_are_nobody_s_answer() {
    let (mut host, mut agent) = begun(&[]);
    assert_eq!(host.prompt(&mut agent, "foreign gossip;say mine"), done());
    assert_eq!(host.text(), "mine");
    assert!(agent.is_ready());
    host.close(&mut agent);
}

#[test]
fn an_agent_that_dies_of_a_session_loses_it_and_not_the_conversation() {
    let state = tempfile::tempdir().unwrap();
    let mut agent = lasting(&state, &["--load-dies", "7"]);
    let mut host = TestHost::new();
    host.history = past();
    for _ in 0..2 {
        let failure = agent.start(&mut host, Some("poison"), true, soon()).unwrap_err();
        assert!(
            failure.message.contains("status 7") && failure.message.contains("cannot read the session"),
            "{failure}"
        );
    }
    let started = agent.start(&mut host, Some("poison"), true, soon()).unwrap();
    assert_eq!(started.continuity, Continuity::Lost);
    assert!(host.processes.iter().take(2).all(|(pid, _)| is_reaped(*pid)));
    host.close(&mut agent);
}

#[test]
fn context_stands_before_the_prompt() {
    let (mut host, mut agent) = begun(&[]);
    let prompt = Prompt {
        turn_id: "t".into(),
        text: "echo-context".into(),
        context: Some("the time is noon".into()),
        frame: None,
        resumed: false,
    };
    let begun = agent.begin(&mut host, &prompt);
    assert_eq!(host.drive(&mut agent, begun), done());
    assert_eq!(host.text(), "[the time is noon]\n[echo-context]\n");
    host.close(&mut agent);
}

#[test]
fn a_start_that_fails_says_why_and_leaves_nothing() {
    let cases: [(&[&str], &str); 3] = [
        (&["--bad-version"], "protocol version 2"),
        (&["--auth"], "wants a login"),
        (&["--never-init"], "initialize: no answer in time"),
    ];
    for (flags, expected) in cases {
        let (mut host, mut agent) = (TestHost::new(), agent(flags));
        let until = Instant::now() + Duration::from_millis(if flags == ["--never-init"] { 300 } else { 20_000 });
        let failure = agent.start(&mut host, None, false, until).unwrap_err();
        assert_eq!(failure.code, if flags == ["--auth"] { "auth_required" } else { "agent_start" });
        assert!(failure.message.contains(expected) && failure.message.starts_with("agent test: "), "{failure}");
        assert!(!agent.is_ready() && is_reaped(host.processes[0].0), "{flags:?}");
    }
}

#[test]
fn a_slow_start_is_no_failure_and_an_interrupt_ends_it() {
    let (mut host, mut slow) = (TestHost::new(), agent(&["--slow-start", "300"]));
    host.start(&mut slow);
    host.close(&mut slow);
    let (mut host, mut never) = (TestHost::new(), agent(&["--never-init"]));
    host.on_process = Box::new(|controls| controls.interrupt = Some(Interrupt::Cancel(soon())));
    let began = Instant::now();
    let failure = never.start(&mut host, None, false, soon()).unwrap_err();
    assert!(failure.message.contains("interrupted") && began.elapsed() < Duration::from_secs(10), "{failure}");
    assert!(is_reaped(host.processes[0].0));
}

#[test]
fn a_program_that_cannot_be_started_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "not a program").unwrap();
    let cases = [
        ("no-such-program-here", "not found in PATH"),
        ("/no/such/program", "/no/such/program: not found"),
        (plain.to_str().unwrap(), "not executable"),
    ];
    for (program, expected) in cases {
        let (mut host, mut agent) = (TestHost::new(), Acp::new(&config(AgentKind::Acp, &[program])));
        let failure = agent.start(&mut host, None, false, soon()).unwrap_err();
        assert!(failure.message.contains(program) && failure.message.contains(expected), "{failure}");
    }
    let mut no_path = config(AgentKind::Acp, &["no-such-program-here"]);
    no_path.env_pass.clear();
    let failure = Acp::new(&no_path).start(&mut TestHost::new(), None, false, soon()).unwrap_err();
    assert!(failure.message.contains("has no PATH"), "{failure}");
}
