//! An OpenAI-compatible endpoint behind the daemon: streamed, remembered, and survived whatever it does.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use crossbeam_channel::Receiver;
use serde_json::{Value, json};

use crate::daemon::{Daemon, PATIENCE};

/// What it was asked.
struct Asked {
    head: String,
    body: Value,
}

impl Asked {
    /// `role: text` of each message that it was given.
    fn messages(&self) -> Vec<String> {
        let text = |m: &Value, of: &str| m[of].as_str().unwrap().to_owned();
        let all = self.body["messages"].as_array().unwrap();
        all.iter().map(|m| format!("{}: {}", text(m, "role"), text(m, "content"))).collect()
    }
}

/// An endpoint that gives each request the next of these answers, and hangs up, or says no more.
struct Endpoint {
    url: String,
    asked: Receiver<Asked>,
}

/// How an answer ends.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    HangUp,
    Silence,
}

impl Endpoint {
    fn start(answers: Vec<(String, Then)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (send, asked) = crossbeam_channel::unbounded();
        std::thread::spawn(move || {
            let mut silent = Vec::new();
            for (answer, then) in answers {
                let Ok((mut stream, _)) = listener.accept() else { return };
                let Some(request) = read(&stream) else { return };
                let _ = stream.write_all(answer.as_bytes());
                if then == Then::Silence {
                    silent.push(stream);
                }
                if send.send(request).is_err() {
                    return;
                }
            }
            // Held open until the test is over.
            let _ = listener.accept();
        });
        Self { url, asked }
    }

    fn next(&self) -> Asked {
        self.asked.recv_timeout(PATIENCE).expect("it is asked")
    }

    fn daemon(&self, more: &str) -> Daemon {
        let agent = format!("[agent.default]\nkind = \"openai\"\nurl = {:?}\nmodel = \"small\"\n{more}\n", self.url);
        Daemon::new().config(&agent)
    }
}

fn read(stream: &TcpStream) -> Option<Asked> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while reader.read_line(&mut head).ok()? > 2 {}
    let length = head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ").map(str::to_owned))?;
    let mut body = vec![0; length.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    Some(Asked { head, body: serde_json::from_slice(&body).ok()? })
}

const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";

/// A piece of an answer.
fn piece(text: &str) -> String {
    format!("data: {}\n\n", json!({ "choices": [{ "index": 0, "delta": { "content": text }, "finish_reason": null }] }))
}

fn stop() -> String {
    let last = json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": "stop" }] });
    format!("data: {last}\n\ndata: [DONE]\n\n")
}

fn whole(text: &str) -> (String, Then) {
    (format!("{HEAD}{}{}", piece(text), stop()), Then::HangUp)
}

fn status(line: &str, body: &str) -> (String, Then) {
    let length = body.len();
    (format!("HTTP/1.1 {line}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"), Then::HangUp)
}

/// The answer arrives in its pieces; the conversation is given, the key of a file beside the configuration, and no more
/// history than fits.
#[test]
fn a_conversation() {
    let endpoint = Endpoint::start(vec![
        (format!("{HEAD}{}{}{}", piece("hel"), piece("lo ü🐎"), stop()), Then::HangUp),
        whole("two"),
        whole("three"),
    ]);
    let d = endpoint.daemon("api_key_file = \"keys/key\"\nhistory = \"30B\"");
    std::fs::create_dir(d.path("keys")).unwrap();
    std::fs::write(d.path("keys/key"), "s3cret\n").unwrap();
    let d = d.hook("10-c.lua", "ostler.on('before_turn', function(ev) return { context = 'be brief' } end)\n");
    let mut d = d.start();
    assert_eq!(d.send("local:a", "one"), "hello ü🐎");
    let asked = endpoint.next();
    assert!(asked.head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{}", asked.head);
    assert!(asked.head.to_lowercase().contains("authorization: bearer s3cret\r\n"), "{}", asked.head);
    assert_eq!((&asked.body["model"], &asked.body["stream"]), (&json!("small"), &json!(true)));
    assert_eq!(asked.messages(), ["system: be brief", "user: one"]);
    assert_eq!(d.send("local:a", "a longer second message"), "two");
    let asked = endpoint.next().messages();
    assert_eq!(asked.last().unwrap(), "user: a longer second message");
    assert!(asked.iter().any(|m| m == "assistant: hello ü🐎"), "{asked:?}");
    // Over a restart it is the transcript that remembers.
    d.restart();
    assert_eq!(d.send("local:a", "third"), "three");
    let asked = endpoint.next().messages();
    assert!(!asked.iter().any(|m| m.contains("hello")), "too old to fit: {asked:?}");
    assert!(asked.iter().any(|m| m == "assistant: two"), "{asked:?}");
    assert_eq!(d.stop(), 0);
}

/// Whatever the endpoint does wrong fails its turn with what it said, and the next message is asked anew.
#[test]
fn what_an_endpoint_does_wrong() {
    let cut = format!("{HEAD}{}", piece("half"));
    let wrong = vec![
        (status("429 Too Many Requests", "{\"error\":{\"message\":\"slow down\"}}"), &["429", "slow down"][..]),
        (status("500 Internal Server Error", "it broke"), &["500", "it broke"]),
        (status("401 Unauthorized", "{\"error\":{\"message\":\"no such key\"}}"), &["401", "no such key"]),
        (status("302 Found", ""), &["302"]),
        ((cut, Then::HangUp), &["closed the connection"]),
        ((format!("{HEAD}data: {{\"choices\": [\n\n"), Then::HangUp), &[]),
        (("garbage\r\n\r\n".into(), Then::HangUp), &[]),
        ((String::new(), Then::HangUp), &[]),
        ((format!("{HEAD}data: {{\"error\":{{\"message\":\"overloaded\"}}}}\n\n"), Then::HangUp), &["overloaded"]),
    ];
    let told: Vec<&[&str]> = wrong.iter().map(|w| w.1).collect();
    let answers = wrong.into_iter().flat_map(|w| [w.0, whole("fine")]).collect();
    let endpoint = Endpoint::start(answers);
    let mut d = endpoint.daemon("").start();
    for words in told {
        let turn = d.turn("local:a", "x");
        assert_eq!((turn.outcome(), &turn.error()["code"]), ("failed", &json!("agent_error")), "{words:?}: {turn:?}");
        let message = turn.error()["message"].as_str().unwrap();
        assert!(words.iter().all(|w| message.contains(w)), "{words:?}: {message}");
        assert_eq!(d.send("local:a", "y"), "fine");
    }
    assert_eq!(d.stop(), 0);
}

/// Nobody there, no key: named.
#[test]
fn an_endpoint_that_is_not_there() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let agent = format!("[agent.default]\nkind = \"openai\"\nmodel = \"m\"\nurl = \"http://{gone}/v1\"\n");
    let d = Daemon::new().config(&agent).start();
    let turn = d.turn("local:a", "x");
    let message = turn.error()["message"].as_str().unwrap();
    assert!(turn.outcome() == "failed" && message.contains(&gone.to_string()), "{message}");
    d.write_config(&format!("{agent}api_key_file = \"missing-key\"\n"));
    d.cli(&["reload"]).ok();
    let turn = d.turn("local:b", "x");
    let message = turn.error()["message"].as_str().unwrap();
    assert!(message.contains(d.path("missing-key").to_str().unwrap()), "{message}");
}

/// A cancel ends a silence; a stop interrupts it, and the next boot asks again, once.
#[test]
fn a_silence() {
    let begun = || (format!("{HEAD}{}", piece("begun ")), Then::Silence);
    let endpoint = Endpoint::start(vec![begun(), begun(), whole("whole")]);
    let mut d = endpoint.daemon("[shutdown]\ndrain = \"1s\"\n").start();
    let mut events = d.events("local:a");
    let turn = d.post("local:a", "x");
    events.until("text");
    d.act("local:a", "cancel");
    assert_eq!(events.end_of(&turn).0, "cancelled");
    let turn = d.post("local:a", "y");
    events.until("text");
    d.restart();
    let mut events = d.events("local:a");
    assert_eq!(events.end_of(&turn).0, "interrupted");
    let again = events.until_where("the continuation's end", |e| {
        e.event == "turn_end"
            && e.text("turn_id") != turn["turn_id"].as_str().unwrap()
            && e.text("outcome") == "completed"
    });
    assert!(!again.text("turn_id").is_empty());
    let asked: Vec<_> = endpoint.asked.try_iter().map(|a| a.messages().pop().unwrap()).collect();
    assert_eq!(asked, ["user: x", "user: y", "user: y"]);
    assert_eq!(d.said("local:a").last().unwrap(), "agent: whole");
    assert_eq!(d.stop(), 0);
}
