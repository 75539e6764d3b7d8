//! The openai agent against a small server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use ostler::agent::openai::Openai;
use ostler::agent::{Agent, Answer, Entry, Interrupt, Prompt, Said};
use ostler::config::{self, AgentKind};
use ostler::model::event::Role;
use serde_json::{Value, json};

use crate::host::{TestHost, config, failure};

/// What a server was asked: the head's lines and the body.
struct Asked {
    head: Vec<String>,
    body: Value,
}

/// Serves one request with this function; the connection stays open until the test drops the receiver.
fn serve(answer: impl FnOnce(&mut TcpStream) + Send + 'static) -> (config::Agent, Receiver<Asked>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config(AgentKind::Openai, &[]);
    config.url = format!("http://{}/v1/", listener.local_addr().unwrap());
    config.model = "small".into();
    let (asked, asks) = channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_string());
        }
        let length = head.iter().find_map(|l| l.to_lowercase().strip_prefix("content-length: ").map(str::to_string));
        let mut body = vec![0; length.unwrap().parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        asked.send(Asked { head, body: serde_json::from_slice(&body).unwrap() }).unwrap();
        answer(&mut stream);
    });
    (config, asks)
}

fn head(stream: &mut TcpStream, rest: &str) {
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n{rest}\r\n").unwrap();
}

fn event(stream: &mut TcpStream, delta: &Value, finish: Option<&str>) {
    let chunk = json!({ "choices": [{ "index": 0, "delta": delta, "finish_reason": finish }] });
    write!(stream, "data: {chunk}\n\n").unwrap();
}

fn run(config: &config::Agent) -> (TestHost, Answer) {
    let mut host = TestHost::new();
    let answer = ask(&mut host, config);
    (host, answer)
}

fn ask(host: &mut TestHost, config: &config::Agent) -> Answer {
    let mut agent = Openai::new(config);
    host.start(&mut agent);
    host.prompt(&mut agent, "and now?")
}

#[test]
fn an_answer_is_streamed_and_the_conversation_given() {
    let (mut config, asks) = serve(|stream| {
        head(stream, "");
        event(stream, &json!({ "reasoning_content": "hm" }), None);
        event(stream, &json!({ "content": "Hello " }), None);
        event(stream, &json!({ "content": "there" }), Some("stop"));
        stream.write_all(b"data: [DONE]\n\n").unwrap();
    });
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "  s3cret\n").unwrap();
    config.api_key_file = Some(key);
    let mut host = TestHost::new();
    let entry = |seq, role, text: &str| Entry { seq, turn_id: None, role, text: text.into(), at: 0 };
    host.history = vec![
        entry(1, Role::User, "hi"),
        entry(2, Role::Agent, "yes?"),
        entry(3, Role::Tool, "ran something"),
        entry(4, Role::System, "be kind"),
    ];
    let mut agent = Openai::new(&config);
    host.start(&mut agent);
    let prompt = Prompt {
        turn_id: "t".into(),
        text: "and now?".into(),
        context: Some("it rains".into()),
        frame: None,
        resumed: false,
    };
    let begun = agent.begin(&mut host, &prompt);
    let answer = host.drive(&mut agent, begun);
    assert_eq!(answer, Answer::Completed { stop_reason: Some("stop".into()) });
    assert_eq!(host.text(), "Hello there");
    assert_eq!(host.said[0], Said::Thought("hm".into()));
    let asked = asks.recv().unwrap();
    assert_eq!(asked.head[0], "POST /v1/chat/completions HTTP/1.1");
    assert!(asked.head.iter().any(|l| l.eq_ignore_ascii_case("authorization: Bearer s3cret")), "{:?}", asked.head);
    assert_eq!((&asked.body["model"], &asked.body["stream"]), (&json!("small"), &json!(true)));
    let messages: Vec<String> =
        asked.body["messages"].as_array().unwrap().iter().map(|m| format!("{} {}", m["role"], m["content"])).collect();
    let expected = [
        r#""user" "hi""#,
        r#""assistant" "yes?""#,
        r#""system" "be kind""#,
        r#""system" "it rains""#,
        r#""user" "and now?""#,
    ];
    assert_eq!(messages, expected);
}

#[test]
fn an_endpoint_that_does_not_stream_is_understood() {
    let (config, _asks) = serve(|stream| {
        let body = json!({ "choices": [{ "message": { "content": "whole" }, "finish_reason": "stop" }] }).to_string();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
    });
    let (host, answer) = run(&config);
    assert_eq!(answer, Answer::Completed { stop_reason: Some("stop".into()) });
    assert_eq!(host.text(), "whole");
}

#[test]
fn an_error_status_is_told_with_its_text() {
    for (body, expected) in
        [(r#"{"error":{"message":"no such model"}}"#, "no such model"), ("plain words", "plain words")]
    {
        let (config, _asks) = serve(move |stream| {
            write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        });
        let told = failure(run(&config).1);
        assert_eq!(told.code, "agent_error");
        assert!(told.message.contains("404") && told.message.contains(expected), "{told}");
    }
    let mut nobody = config(AgentKind::Openai, &[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    nobody.url = format!("http://{}/v1", listener.local_addr().unwrap());
    drop(listener);
    let told = failure(run(&nobody).1);
    assert!(told.message.contains(&nobody.url), "{told}");
    nobody.api_key_file = Some("/no/such/key".into());
    assert!(failure(run(&nobody).1).message.contains("api_key_file /no/such/key"));
}

/// A password in the address is in no error, and a piece that cannot be read is told.
#[test]
fn what_cannot_be_read_is_told_and_a_password_is_not() {
    let (mut config, _asks) = serve(|stream| {
        write!(stream, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno").unwrap();
    });
    config.url = config.url.replace("http://", "http://user:s3cret@");
    let told = failure(run(&config).1);
    assert!(told.message.contains("401") && told.message.contains("/v1/chat/completions"), "{told}");
    assert!(!told.message.contains("s3cret") && !told.message.contains("user"), "{told}");

    let (config, _asks) = serve(|stream| {
        head(stream, "");
        event(stream, &json!({ "content": "whole " }), None);
        stream.write_all(b"data: {\"choices\":[{\"delta\":{\"content\":\"lost\n\n").unwrap();
        stream.write_all(b"data: {\"choices\":[{\"delta\":{\"content\":\"\\ud83d\",\"x\":NaN}}]}\n\n").unwrap();
        stream.write_all(b"data: {\"choices\":[{\"delta\":{\"content\":\"\\ude00\"}}]}\n\n").unwrap();
        event(stream, &json!({ "content": " end" }), Some("stop"));
        stream.write_all(b"data: [DONE]\n\n").unwrap();
    });
    let (host, answer) = run(&config);
    assert_eq!(answer, Answer::Completed { stop_reason: Some("stop".into()) });
    assert_eq!((host.text().as_str(), host.notices()), ("whole 😀 end", vec!["answer_damaged"]));

    let (config, _asks) = serve(|stream| {
        head(stream, "");
        stream.write_all(b"data: {\"choices\":[{\"del\n\ndata: [DONE]\n\n").unwrap();
    });
    assert!(failure(run(&config).1).message.contains("could be read"));

    let (config, _asks) = serve(|stream| {
        head(stream, "");
        event(stream, &json!({}), Some("stop"));
        stream.write_all(b"data: [DONE]\n\n").unwrap();
    });
    let (host, _) = run(&config);
    assert_eq!(host.notices(), ["empty_answer"]);
}

#[test]
fn an_answer_that_is_cut_off_is_no_answer() {
    let (config, _asks) = serve(|stream| {
        head(stream, "");
        event(stream, &json!({ "content": "I was about to" }), None);
    });
    let (host, answer) = run(&config);
    assert_eq!(host.text(), "I was about to");
    assert!(failure(answer).message.contains("before the answer ended"));
    let (config, _asks) = serve(|stream| {
        head(stream, "Content-Length: 100000\r\n");
        event(stream, &json!({ "content": "I was about to" }), None);
    });
    assert_eq!(failure(run(&config).1).code, "agent_error");
    let (config, _asks) = serve(|stream| {
        head(stream, "");
        stream.write_all(b"data: {\"error\":{\"message\":\"overloaded\"}}\n\n").unwrap();
    });
    assert!(failure(run(&config).1).message.contains("overloaded"));
}

#[test]
fn a_drip_arrives_drop_by_drop_and_a_cancel_ends_a_silence_at_once() {
    let (tell, told) = channel();
    let (config, _asks) = serve(move |stream| {
        head(stream, "Transfer-Encoding: chunked\r\n");
        let text = "data: {\"choices\":[{\"delta\":{\"content\":\"drop\"}}]}\n\n";
        for byte in text.bytes() {
            write!(stream, "1\r\n{}\r\n", byte as char).unwrap();
            stream.flush().unwrap();
        }
        // Silent until the other side closes the connection.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        tell.send(()).unwrap();
    });
    let mut host = TestHost::new();
    host.interrupt_at("drop", || Interrupt::Cancel(Instant::now() + Duration::from_secs(20)));
    let threads = ostler::thread::count();
    let began = Instant::now();
    assert_eq!(ask(&mut host, &config), Answer::Cancelled);
    assert!(began.elapsed() < Duration::from_secs(5), "took {:?}", began.elapsed());
    told.recv_timeout(Duration::from_secs(10)).expect("the connection is closed");
    assert!(ostler::thread::count() <= threads + 4, "the reader's thread has ended");
    assert_eq!(host.text(), "drop");
}

#[test]
fn a_kill_ends_a_wait_for_the_first_byte() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (config, _asks) = serve(move |stream| {
        drop(theirs);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    });
    let mut host = TestHost::new();
    host.kill_at_hangup = Some(ours);
    let began = Instant::now();
    assert_eq!(ask(&mut host, &config), Answer::Cancelled);
    assert!(began.elapsed() < Duration::from_secs(5), "took {:?}", began.elapsed());
}
