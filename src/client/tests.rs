//! What the client promises of names, streams and errors.
#![allow(clippy::unwrap_used)]

use super::testing::{Answer, Fake, event, refusal};
use super::*;
use serde_json::json;

fn parse(pieces: &[&str]) -> Vec<SseEvent> {
    let mut parser = SseParser::default();
    let mut out = Vec::new();
    for piece in pieces {
        parser.feed(piece.as_bytes());
        while let Some(event) = parser.next_event().unwrap() {
            out.push(event);
        }
    }
    out
}

#[test]
fn events_come_out_whole_however_they_are_cut() {
    let text = ": hi\n\nevent: text\nid: 7\ndata: {\"text\":\"ä\\nb\"}\n\n\
        data: a\r\ndata:  b\r\n\r\nid: 9\rdata: 1\r\revent: x\n\n";
    let whole = parse(&[text]);
    assert_eq!(whole.len(), 3, "a comment and an event without data are none: {whole:?}");
    assert_eq!(whole[0], SseEvent { id: Some(7), event: "text".into(), data: json!({"text": "ä\nb"}) });
    assert_eq!(whole[1], SseEvent { id: None, event: "message".into(), data: json!("a\n b") });
    assert_eq!((whole[2].id, &whole[2].data), (Some(9), &json!(1)));
    let mut parser = SseParser::default();
    let mut single = Vec::new();
    for byte in text.as_bytes() {
        parser.feed(&[*byte]);
        while let Some(event) = parser.next_event().unwrap() {
            single.push(event);
        }
    }
    assert_eq!(single, whole, "byte by byte");
    assert!(parse(&["event: text\ndata: {}\n"]).is_empty(), "not before its empty line");
}

#[test]
fn an_event_without_end_is_refused() {
    let mut parser = SseParser::default();
    let line = vec![b'x'; 1 << 20];
    for _ in 0..32 {
        parser.feed(&line);
        assert_eq!(parser.next_event(), Ok(None));
    }
    parser.feed(&line);
    assert!(parser.next_event().is_err());
}

#[test]
fn names_become_keys_or_ids() {
    for (name, key) in [
        ("alice", "local:alice"),
        ("telegram:1", "telegram:1"),
        ("0190a3c4-7b1e-7abc-8def-0123456789AB", "0190a3c4-7b1e-7abc-8def-0123456789ab"),
        ("0190a3c47b1e7abc8def0123456789ab", "0190a3c4-7b1e-7abc-8def-0123456789ab"),
        ("urn:uuid:0190a3c4-7b1e-7abc-8def-0123456789ab", "urn:uuid:0190a3c4-7b1e-7abc-8def-0123456789ab"),
        ("0190a3c4", "local:0190a3c4"),
        ("", "local:"),
    ] {
        assert_eq!(name_to_key(name), key);
    }
    assert_eq!(session_path("local:a/b c?ä%", "/reset"), "/v1/sessions/local%3Aa%2Fb%20c%3F%C3%A4%25/reset");
    assert_eq!(segment(".."), "%2E%2E");
}

#[test]
fn requests_and_errors_go_there_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::start(&dir.path().join("s"), |r| match r.line().as_str() {
        "GET /v1/status" => Answer::Json(200, json!({ "pid": 3 })),
        "POST /v1/hold" => Answer::Json(202, Value::Null),
        "POST /v1/x" => Answer::Json(200, r.json()),
        "DELETE /v1/x" => refusal(404, "session_not_found"),
        "GET /gone" => Answer::Gone,
        "GET /plain" => Answer::Json(500, json!("oops")),
        _ => refusal(503, "stopping"),
    });
    let client = fake.client();
    assert_eq!(client.get("/v1/status").unwrap(), json!({ "pid": 3 }));
    assert_eq!(client.post("/v1/hold", None).unwrap(), Value::Null);
    let large = json!({ "text": "ä".repeat(1 << 20) });
    assert_eq!(client.post("/v1/x", Some(&large)).unwrap(), large);
    let e = client.delete("/v1/x").unwrap_err();
    assert_eq!(
        (e.status, e.code.as_str(), e.message.as_str()),
        (404, "session_not_found", "because of session_not_found")
    );
    assert!(!e.is_passing() && !e.is_unreachable());
    let e = client.get("/other").unwrap_err();
    assert!(e.is_passing() && e.retry_after == Some(Duration::ZERO), "{e:?}");
    assert_eq!(client.get("/plain").unwrap_err().code, "http_500");
    let e = client.get("/gone").unwrap_err();
    assert!(e.code == "disconnected" && e.is_passing(), "{e:?}");
    let e = client.stream("/v1/x", http::Method::POST, None, None).unwrap_err();
    assert_eq!(e.code, "protocol");
    drop(fake);
    let e = client.get("/v1/status").unwrap_err();
    assert!(e.is_unreachable() && e.message.contains("the daemon is not there"), "{e:?}");
}

#[test]
fn a_stream_tells_its_end_from_a_break() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::start(&dir.path().join("s"), |r| {
        assert_eq!(r.header("accept"), Some("text/event-stream"));
        let text = event(5, "text", json!({ "text": "hello" })) + ": ping\n\n" + &event(0, "delta", json!({}));
        match r.header("last-event-id") {
            Some("4") => Answer::Sse(text),
            Some("9") => refusal(404, "session_not_found"),
            _ => Answer::Cut(text),
        }
    });
    let client = fake.client();
    let whole: Vec<_> = client.stream("/e", http::Method::GET, None, Some(4)).unwrap().collect();
    assert_eq!(whole.len(), 2);
    assert_eq!(whole[0].as_ref().unwrap().id, Some(5));
    assert_eq!(whole[1].as_ref().unwrap().id, None);
    let cut: Vec<_> = client.stream("/e", http::Method::GET, None, None).unwrap().collect();
    assert_eq!(cut.len(), 3);
    assert_eq!(cut[2].as_ref().unwrap_err().code, "disconnected");
    let e = client.stream("/e", http::Method::GET, None, Some(9)).unwrap_err();
    assert_eq!((e.status, e.code.as_str()), (404, "session_not_found"));
}

#[test]
fn a_bearer_token_goes_with_every_request_over_tcp() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let server = crate::thread::spawn("tcp", crate::thread::IO_STACK, move || {
        use std::io::Write as _;
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").unwrap();
        String::from_utf8(head).unwrap()
    })
    .unwrap();
    let client = Client::url(&url, Some("secret")).unwrap();
    assert_eq!(client.get("/v1/status").unwrap(), json!({}));
    let head = server.join().unwrap().to_lowercase();
    assert!(
        head.contains("authorization: bearer secret\r\n") && head.starts_with("get /v1/status http/1.1\r\n"),
        "{head}"
    );
    assert!(client.get("/v1/status").unwrap_err().is_unreachable());
    assert!(Client::url("localhost:7411", None).is_err());
}

/// A server that is full answers before it has read, and closes: what it said is told, not that the connection broke.
#[test]
fn an_answer_that_comes_before_the_request_is_read_is_told() {
    use std::io::Write as _;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let full = std::thread::spawn(move || {
        let body = r#"{"error":{"code":"overloaded","message":"too many connections"}}"#;
        let (mut stream, _) = listener.accept().unwrap();
        write!(stream, "HTTP/1.1 503 X\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        stream.shutdown(std::net::Shutdown::Both).unwrap();
    });
    let client = Client::unix(&socket);
    // Longer than what a socket takes in unread.
    let body = serde_json::json!({ "text": "x".repeat(2 << 20) });
    let e = client.post("/v1/x", Some(&body)).unwrap_err();
    full.join().unwrap();
    assert_eq!((e.status, e.code.as_str(), e.message.as_str()), (503, "overloaded", "too many connections"));
}
