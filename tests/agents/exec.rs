//! The exec agent against the shell.

use std::time::{Duration, Instant};

use ostler::agent::exec::Exec;
use ostler::agent::process::find_marked;
use ostler::agent::{Agent, Answer, Host, Interrupt, Progress, Prompt};
use ostler::config::AgentKind;

use crate::host::{TestHost, config, is_reaped};

fn shell(script: &str) -> (TestHost, Exec) {
    let (mut host, mut agent) = (TestHost::new(), Exec::new(&config(AgentKind::Exec, &["/bin/sh", "-c", script])));
    host.start(&mut agent);
    (host, agent)
}

fn done() -> Answer {
    Answer::Completed { stop_reason: None }
}

#[test]
fn the_message_is_the_input_and_the_output_the_answer() {
    let (mut host, mut agent) = shell("cat");
    let text = format!("für 10 € {}", "🐎".repeat(200_000));
    assert_eq!(host.prompt(&mut agent, &text), done());
    assert_eq!(host.text(), text, "more than a pipe holds, in both directions");
    let prompt =
        Prompt { turn_id: "t".into(), text: "hi".into(), context: Some("note".into()), frame: None, resumed: false };
    host.said.clear();
    let begun = agent.begin(&mut host, &prompt);
    assert_eq!(host.drive(&mut agent, begun), done());
    assert_eq!(host.text(), "note\n\nhi");
}

/// Between two steps all of a turn is in the agent: another thread goes on with it.
#[test]
fn a_turn_is_put_down_and_taken_up_on_another_thread() {
    let (mut host, mut agent) = shell("cat; sleep 0.1; echo more");
    let prompt = Prompt { turn_id: "t".into(), text: "hi ".into(), context: None, frame: None, resumed: false };
    let begun = agent.begin(&mut host, &prompt);
    assert_eq!(begun, Progress::Pending { until: None });
    let other = std::thread::spawn(move || {
        let mut host = TestHost::new();
        assert_eq!(host.drive(&mut agent, begun), done());
        host.text()
    });
    assert_eq!(other.join().unwrap(), "hi more\n");
}

#[test]
fn a_command_that_reads_nothing_is_fine() {
    let (mut host, mut agent) = shell("echo hello");
    assert_eq!(host.prompt(&mut agent, &"x".repeat(1_000_000)), done());
    assert_eq!(host.text(), "hello\n");
}

#[test]
fn a_failure_has_its_status_and_the_end_of_stderr() {
    let (mut host, mut agent) = shell("echo half; echo 'no such model' >&2; exit 4");
    let Answer::Failed(failure) = host.prompt(&mut agent, "hi") else { panic!("it failed") };
    assert_eq!(failure.code, "agent_error");
    assert!(failure.message.contains("exited with status 4: no such model"), "{failure}");
    assert_eq!(host.text(), "half\n");
    let (mut host, mut agent) = shell("kill -9 $$");
    let Answer::Failed(failure) = host.prompt(&mut agent, "hi") else { panic!("it failed") };
    assert!(failure.message.contains("was killed by signal 9"), "{failure}");
    let mut agent = Exec::new(&config(AgentKind::Exec, &["no-such-program-here"]));
    let Answer::Failed(failure) = host.prompt(&mut agent, "hi") else { panic!("it failed") };
    assert_eq!(failure.code, "agent_start");
}

#[test]
fn the_turn_and_its_rerun_are_in_the_environment() {
    let (mut host, mut agent) = shell("echo $OSTLER_TURN_ID ${OSTLER_RESUMED-first} $OSTLER_KEY");
    assert_eq!(host.prompt(&mut agent, "hi"), done());
    assert_eq!(host.text(), format!("turn-1 first {}\n", host.identity().key));
    let prompt = Prompt { turn_id: "turn-2".into(), text: "hi".into(), context: None, frame: None, resumed: true };
    host.said.clear();
    let begun = agent.begin(&mut host, &prompt);
    assert_eq!(host.drive(&mut agent, begun), done());
    assert!(host.text().starts_with("turn-2 1 "), "{}", host.text());
}

#[test]
fn a_cancel_ends_it_by_signals() {
    for script in ["echo go; sleep 1000", "trap '' TERM; echo go; sleep 1000; sleep 1000"] {
        let (mut host, mut agent) = shell(script);
        host.interrupt_at("go", || Interrupt::Cancel(Instant::now() + Duration::from_millis(900)));
        let began = Instant::now();
        assert_eq!(host.prompt(&mut agent, "hi"), Answer::Cancelled);
        assert!(began.elapsed() < Duration::from_secs(5), "{script}: took {:?}", began.elapsed());
        assert!(is_reaped(host.processes[0].0) && find_marked(Some(&host.identity().session_id), None).is_empty());
    }
}

#[test]
fn what_keeps_the_output_open_does_not_hold_up_the_turn_and_is_swept() {
    let (mut host, mut agent) = shell("(trap '' TERM; setsid sleep 1000) & echo answer; exit 0");
    let began = Instant::now();
    assert_eq!(host.prompt(&mut agent, "hi"), done());
    assert!(began.elapsed() < Duration::from_secs(8), "took {:?}", began.elapsed());
    assert_eq!(host.text(), "answer\n");
    assert!(find_marked(Some(&host.identity().session_id), None).is_empty());
}

/// What is too long the host says: it interrupts.
#[test]
fn an_endless_answer_is_cut() {
    let (mut host, mut agent) = shell("yes");
    host.interrupt_at("y\ny\n", || Interrupt::Cancel(Instant::now() + Duration::from_secs(2)));
    assert_eq!(host.prompt(&mut agent, "hi"), Answer::Cancelled);
    assert!(is_reaped(host.processes[0].0));
}
