//! Agents that do not write as the protocol says: what they say costs at most the character that is wrong, what they ask
//! is answered, and a turn whose end is lost is failed soon.

use ostler::agent::acp::Acp;
use ostler::agent::{Agent, PermissionOutcome, Said};
use ostler::config::AgentKind;
use serde_json::json;

use crate::host::{TestHost, config, done, failure, soon};

const FAKE: &str = env!("CARGO_BIN_EXE_ostler-fake-agent");

fn begun() -> (TestHost, Acp) {
    let (mut host, mut agent) = (TestHost::new(), Acp::new(&config(AgentKind::Acp, &[FAKE])));
    host.start(&mut agent);
    (host, agent)
}

/// A command that writes a piece of the answer: a JSON text, written as it is.
fn chunk(text: &str) -> String {
    chunk_of("", text)
}

fn chunk_of(more: &str, text: &str) -> String {
    format!(
        r#"line {{"jsonrpc":"2.0","method":"session/update","params":{{"sessionId":"@S@","update":{{"sessionUpdate":"agent_message_chunk"{more},"content":{{"type":"text","text":"{text}"}}}}}}}}"#
    )
}

fn update(fields: &str) -> String {
    format!(
        r#"line {{"jsonrpc":"2.0","method":"session/update","params":{{"sessionId":"@S@","update":{{{fields}}}}}}}"#
    )
}

/// A command that answers the prompt with this line, and gives no other answer.
fn end(line: &str) -> String {
    format!("say before; line {line}; mute")
}

#[test]
fn a_text_loses_at_most_the_character_that_is_wrong() {
    let (mut host, mut agent) = begun();
    for (pieces, expected) in [
        (&["start ", r"smile \ud83d", r"\ude00 middle", " tail"][..], "start smile 😀 middle tail"),
        (&[r"lone \ud83d", "x"], "lone \u{fffd}x"),
        (&[r"\ude00 first", r"last \ud83d"], "\u{fffd} firstlast \u{fffd}"),
        (&["caf@E9@"], "caf\u{fffd}"),
        (&["a\ttab"], "a\ttab"),
    ] {
        let prompt: Vec<String> = pieces.iter().map(|text| chunk(text)).collect();
        assert_eq!(host.prompt(&mut agent, &prompt.join("; ")), done(), "{pieces:?}");
        assert_eq!(host.text(), expected, "{pieces:?}");
        assert_eq!(host.notices(), [""; 0]);
    }
    // A half that goes on in the next message, or after a thought, is none.
    let thought = update(r#""sessionUpdate":"agent_thought_chunk","content":{"type":"text","text":"hm \ud83d"}"#);
    assert_eq!(host.prompt(&mut agent, &format!("{}; {thought}; {}", chunk(r"a\ud83d"), chunk(r"\ude00b"))), done());
    assert_eq!(host.text(), "a\u{fffd}\u{fffd}b");
    assert!(host.said.contains(&Said::Thought("\u{fffd}".into())), "{:?}", host.said);
    host.close(&mut agent);
}

#[test]
fn the_end_of_a_turn_is_understood_however_it_is_written() {
    let (mut host, mut agent) = begun();
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let with = |more: &str| format!(r#"{{"jsonrpc":"2.0","id":@ID@,"result":{{"stopReason":"end_turn"{more}}}}}"#);
    let plain = with("");
    let progress = r#"{"jsonrpc":"2.0","method":"_fake/progress","params":{}}"#;
    for line in [
        with(r#","_meta":{"title":"cut \ud83c"}"#),
        with(r#","_meta":{"cost":NaN,"most":-Infinity}"#),
        with(r#","_meta":{"cost":1e999}"#),
        with(&format!(r#","_meta":{{"t":{deep}}}"#)),
        with(r#","_meta":{"f":"caf@E9@"}"#),
        format!("@BOM@{plain}"),
        format!("{progress}{plain}"),
        format!("INFO 12:00 {{sent}} {plain}"),
        format!("[{progress},{plain}]"),
        plain.replace("@ID@", "\"@ID@\""),
        plain.replace("@ID@", "@ID@.0"),
    ] {
        assert_eq!(host.prompt(&mut agent, &end(&line)), done(), "{line}");
        assert_eq!((host.text().as_str(), host.notices()), ("before", vec![]), "{line}");
    }
    let error = r#"{"jsonrpc":"2.0","id":@ID@,"error":{"code":-32603,"message":"cannot read caf\udce9"}}"#;
    let told = failure(host.prompt(&mut agent, &end(error)));
    assert!(told.message.contains("cannot read caf\u{fffd}"), "{told}");
    host.close(&mut agent);
}

#[test]
fn a_turn_whose_end_is_lost_is_failed_soon_and_says_so() {
    let (mut host, mut agent) = begun();
    for command in [
        end(r#"{"jsonrpc":"2.0","id":@ID@,"result":{"stopReason":"end_tu"#),
        end(r#"{"result":{"x":broken here,"stopReason":"end_turn"},"jsonrpc":"2.0","id":@ID@}"#),
        "say before; longend 40000000".to_string(),
    ] {
        let told = failure(host.prompt(&mut agent, &command));
        assert_eq!(told.code, "agent_error");
        assert!(told.message.contains("the end of the answer is lost: "), "{told}");
        assert_eq!(host.text(), "before");
        assert!(agent.is_ready(), "it did end its turn");
    }
    // What is lost in the middle is told, and the turn goes on.
    let lost = update(r#""sessionUpdate":"agent_message_chunk","content":{"type":"text","text":lost}"#);
    assert_eq!(host.prompt(&mut agent, &format!("say a; {lost}; say b")), done());
    assert_eq!((host.text().as_str(), host.notices()), ("ab", vec!["line_unreadable"]));
    host.close(&mut agent);
}

#[test]
fn a_request_is_answered_whether_it_can_be_read_or_not() {
    let (mut host, mut agent) = begun();
    host.settle = Box::new(|_, _| Some(PermissionOutcome::Selected("y".into())));
    let request = |title: &str| {
        format!(
            r#"line {{"jsonrpc":"2.0","id":"p","method":"session/request_permission","params":{{"sessionId":"@S@","toolCall":{{"toolCallId":"t","title":"{title}","kind":"read"}},"options":[{{"optionId":"y","name":"Yes","kind":"allow_once"}}]}}}}; await "p""#
        )
    };
    assert_eq!(host.prompt(&mut agent, &request(r"read caf\udce9.txt")), done());
    assert_eq!(host.text(), "answer: selected y");
    assert_eq!(host.requests[0].tool.title.as_deref(), Some("read caf\u{fffd}.txt"));
    let broken = request("x").replace(r#""title":"x""#, r#""title":x"#);
    assert_eq!(host.prompt(&mut agent, &broken), done());
    assert_eq!((host.text().as_str(), host.notices()), ("answer: error -32700", vec!["line_unreadable"]));
    // One in which there is nothing to choose is withdrawn, and that is told.
    let empty = request("x").replace(r#"{"optionId":"y","name":"Yes","kind":"allow_once"}"#, "");
    assert_eq!(host.prompt(&mut agent, &empty), done());
    assert_eq!((host.text().as_str(), host.notices()), ("answer: cancelled ", vec!["permission_unreadable"]));
    host.close(&mut agent);
}

#[test]
fn what_was_said_of_a_tool_call_before_is_asked_with_it() {
    let (mut host, mut agent) = begun();
    host.settle = Box::new(|_, _| Some(PermissionOutcome::Selected("y".into())));
    let call = update(
        r#""sessionUpdate":"tool_call","toolCallId":"t1","title":"Shell","kind":"execute","rawInput":{"command":"rm -rf x"},"locations":[{"path":"/x"}]"#,
    );
    let content = update(
        r#""sessionUpdate":"tool_call_update","toolCallId":"t1","content":[{"type":"content","content":{"type":"text","text":"about to run"}}]"#,
    );
    let ask = r#"line {"jsonrpc":"2.0","id":7,"method":"session/request_permission","params":{"sessionId":"@S@","toolCall":{"toolCallId":"t1"},"options":[{"optionId":"y","name":"Yes\n  2. No","kind":"allow_once"}]}}; await 7"#;
    assert_eq!(host.prompt(&mut agent, &format!("{call}; {content}; {ask}")), done());
    let request = &host.requests[0];
    let detail = request.tool.detail.as_ref().unwrap();
    assert_eq!(
        (&detail["rawInput"]["command"], &detail["locations"][0]["path"], &detail["content"][0]["content"]["text"]),
        (&json!("rm -rf x"), &json!("/x"), &json!("about to run"))
    );
    assert_eq!((request.tool.title.as_deref(), request.tool.kind.as_deref()), (Some("Shell"), Some("execute")));
    assert_eq!(request.options[0].name, "Yes   2. No");
    host.close(&mut agent);
}

#[test]
fn a_turn_without_a_word_says_so() {
    let (mut host, mut agent) = begun();
    assert_eq!(host.prompt(&mut agent, "stop end_turn"), done());
    assert_eq!(host.notices(), ["empty_answer"]);
    assert_eq!(host.prompt(&mut agent, "say a word"), done());
    assert_eq!(host.notices(), [""; 0]);
    let error = r#"{"jsonrpc":"2.0","id":@ID@,"error":{"code":-32000,"message":"Authentication required"}}"#;
    assert_eq!(failure(host.prompt(&mut agent, &end(error))).code, "auth_required");
    host.close(&mut agent);
}

/// One that prints why it leaves where its messages should be, and one with a long story on stderr.
#[test]
fn what_an_agent_printed_before_it_left_is_told_in_one_line() {
    for (script, expected) in [
        (
            "echo 'this program is no longer maintained'",
            "the agent exited with status 0: this program is no longer maintained",
        ),
        (
            "echo a secret of the operator >&2; echo last words >&2; exit 3",
            "the agent exited with status 3: last words",
        ),
    ] {
        let (mut host, mut agent) = (TestHost::new(), Acp::new(&config(AgentKind::Acp, &["/bin/sh", "-c", script])));
        let failure = agent.start(&mut host, None, false, soon()).unwrap_err();
        assert_eq!(failure.message, format!("agent test: initialize: {expected}"));
    }
}

#[test]
fn a_start_that_failed_is_tried_once_more() {
    let state = tempfile::tempdir().unwrap();
    let script = format!("cd '{}'; if mkdir first 2>/dev/null; then exit 1; fi; exec '{FAKE}'", state.path().display());
    let mut config = config(AgentKind::Acp, &["/bin/sh", "-c", &script]);
    config.start_retries = 1;
    let (mut host, mut agent) = (TestHost::new(), Acp::new(&config));
    host.start(&mut agent);
    assert_eq!(host.processes.len(), 2);
    assert_eq!(host.prompt(&mut agent, "say here"), done());
    host.close(&mut agent);
    // Not for ever, and not for a login.
    for (command, code, processes) in [(&["/bin/false"][..], "agent_start", 2), (&[FAKE, "--auth"], "auth_required", 1)]
    {
        config.command = command.iter().map(ToString::to_string).collect();
        let (mut host, mut agent) = (TestHost::new(), Acp::new(&config));
        assert_eq!(agent.start(&mut host, None, false, soon()).unwrap_err().code, code);
        assert_eq!(host.processes.len(), processes);
    }
}

#[test]
fn another_message_begins_a_paragraph() {
    let (mut host, mut agent) = begun();
    let of = |id: &str, text: &str| chunk_of(&format!(r#","messageId":"{id}""#), text);
    let prompt = [of("m1", "Retrying..."), of("m2", "Error: "), of("m2", "no luck."), of("m3", r"\n"), of("m4", "end")];
    assert_eq!(host.prompt(&mut agent, &prompt.join("; ")), done());
    assert_eq!(host.text(), "Retrying...\n\nError: no luck.\n\n\nend");
    assert_eq!(host.prompt(&mut agent, &[of("m1", "a"), chunk("b"), of("m1", "c")].join("; ")), done());
    assert_eq!(host.text(), "abc");
    host.close(&mut agent);
}

/// What the agent takes back, nobody is asked about any more.
#[test]
fn a_permission_that_the_agent_takes_back_is_withdrawn() {
    let (mut host, mut agent) = begun();
    host.settle = Box::new(|_, _| None);
    let ask = r#"line {"jsonrpc":"2.0","id":7,"method":"session/request_permission","params":{"sessionId":"@S@","toolCall":{"toolCallId":"t","title":"x"},"options":[{"optionId":"y","name":"Yes","kind":"allow_once"}]}}"#;
    let back = r#"line {"jsonrpc":"2.0","method":"$/cancel_request","params":{"requestId":7}}; await 7"#;
    assert_eq!(host.prompt(&mut agent, &format!("{ask}; {back}")), done());
    let asked = host.requests[0].request_id.clone();
    assert_eq!(host.withdrawn, std::slice::from_ref(&asked));
    // An answer to it can meet no other request.
    assert_eq!(host.prompt(&mut agent, &format!("{ask}; {back}")), done());
    assert_ne!(host.requests.last().unwrap().request_id, asked);
    host.close(&mut agent);
}
