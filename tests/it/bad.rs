//! What is wrong is refused with the right word, and harms nobody.

use std::io::{Read as _, Write as _};

use serde_json::{Value, json};
use ureq::http::Method;

use crate::daemon::Daemon;
use ostler::client::{Client, session_path};

/// A whole raw request; `Connection: close`.
fn raw(d: &Daemon, head: &str, body: &[u8]) -> (u16, String) {
    let mut bytes = format!("{head}\r\nHost: localhost\r\nConnection: close\r\n").into_bytes();
    if !body.is_empty() {
        bytes.extend(format!("Content-Length: {}\r\n", body.len()).bytes());
    }
    bytes.extend(b"\r\n");
    bytes.extend(body);
    let answer = d.raw_request(&bytes);
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"));
    (status, answer)
}

#[track_caller]
fn assert_code(answer: &str, code: &str) {
    let body: Value =
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap_or_else(|e| panic!("{e}: {answer}"));
    assert_eq!(body["error"]["code"], code, "{answer}");
    assert!(body["error"]["message"].as_str().is_some_and(|m| !m.is_empty()), "{answer}");
}

/// Bodies that are no message.
#[test]
fn bad_messages() {
    let mut d = Daemon::new().start();
    let post = "POST /v1/sessions/local%3Aa/messages HTTP/1.1";
    for (body, code) in [
        (&b"not json"[..], "invalid_json"),
        (b"[1,2]", "invalid_json"),
        (b"\"text\"", "invalid_json"),
        (b"{\"text\": \"x\"", "invalid_json"),
        (b"{\"text\": \"\xff\"}", "invalid_json"),
        (b"{\"text\": \"\\ud800\"}", "invalid_json"),
        (b"{}", "invalid_text"),
        (b"{\"text\": \"\"}", "invalid_text"),
        (b"{\"text\": \" \\n\\t \"}", "invalid_text"),
        (b"{\"text\": 7}", "invalid_text"),
        (b"{\"text\": null}", "invalid_text"),
        (b"{\"text\": [\"x\"]}", "invalid_text"),
        (b"{\"text\": \"x\", \"id\": 7}", "invalid_parameter"),
        (b"{\"text\": \"x\", \"id\": \"\"}", "invalid_parameter"),
        (b"{\"text\": \"x\", \"id\": \"a\\nb\"}", "invalid_parameter"),
        (b"{\"text\": \"x\", \"id\": \"a\\u001b[2J\"}", "invalid_parameter"),
    ] {
        let (status, answer) = raw(&d, post, body);
        assert_eq!(status, 400, "{}: {answer}", String::from_utf8_lossy(body));
        assert_code(&answer, code);
    }
    let (status, answer) = raw(&d, post, b"");
    assert_eq!(status, 400, "{answer}");
    assert_eq!(d.refusal(Method::GET, &session_path("local:a", ""), None).0, 404, "nothing was made");
    assert_eq!(d.send("local:a", "good"), "echo: good");
    assert_eq!(d.stop(), 0);
}

/// 4 MiB are taken, more is 413; both on a connection of their own and without harm.
#[test]
fn large_bodies() {
    let mut d = Daemon::new().start();
    let text = "x".repeat((4 << 20) - 100);
    assert_eq!(d.send("local:a", &text).len(), text.len() + 6);
    let body = json!({ "text": "x".repeat(4 << 20) }).to_string();
    let (status, answer) = raw(&d, "POST /v1/sessions/local%3Aa/messages HTTP/1.1", body.as_bytes());
    assert_eq!(status, 413);
    assert_code(&answer, "too_large");
    assert_eq!(d.send("local:a", "after"), "echo: after");
    assert_eq!(d.stop(), 0);
}

/// Keys of every kind: taken as they are when valid, refused by name when not.
#[test]
fn keys() {
    let mut d = Daemon::new().start();
    let longest = format!("x:{}", "y".repeat(198));
    for key in [
        "a:b",
        "local:two words",
        "local:a/b/../c",
        "telegram:-100:7",
        "ü:日本語 🐎",
        "x:%2F?&#",
        "a::",
        "x:..",
        &longest,
    ] {
        assert_eq!(d.send(key, "x"), "echo: x", "{key}");
        assert_eq!(d.show(key)["key"], *key);
    }
    let long = format!("x:{}", "y".repeat(199));
    for key in ["ab", "abc", ":b", "a:", "::", "a:\u{7}b", "a:b\nc", "a:\u{85}b", "", &long] {
        let body = json!({ "text": "x" });
        let refused = d.refusal(Method::POST, &session_path(key, "/messages"), Some(&body));
        if key.is_empty() {
            assert!(matches!(refused.0, 400 | 404), "{refused:?}");
        } else {
            assert_eq!(refused, (400, "invalid_key".into()), "{key:?}");
        }
    }
    let (status, answer) = raw(&d, "POST /v1/sessions/a%3A%FF%FE/messages HTTP/1.1", b"{\"text\":\"x\"}");
    assert_eq!(status, 400, "{answer}");
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM sessions"), 9);
}

/// Unknown paths are 404, known ones with another method 405 with what they allow.
#[test]
fn paths_and_methods() {
    let d = Daemon::new().start();
    d.send("local:a", "x");
    for path in [
        "/",
        "/v1",
        "/v2/status",
        "/v1/sessions/local%3Aa/nothing",
        "/v1/nothing",
        "/v1/status/x",
        "//",
        "/../etc/passwd",
    ] {
        let (status, answer) = raw(&d, &format!("GET {path} HTTP/1.1"), b"");
        assert_eq!(status, 404, "{path}: {answer}");
        assert_code(&answer, "not_found");
    }
    for (method, path, allow) in [
        ("DELETE", "/v1/status", "GET"),
        ("POST", "/v1/sessions", "GET"),
        ("GET", "/v1/sessions/local%3Aa/messages", "POST"),
        ("GET", "/v1/stop", "POST"),
        ("PUT", "/v1/sessions/local%3Aa", "DELETE"),
        ("PATCH", "/v1/sessions/local%3Aa/transcript", "GET"),
        ("POST", "/healthz", "GET"),
    ] {
        let (status, answer) = raw(&d, &format!("{method} {path} HTTP/1.1"), b"");
        assert_eq!(status, 405, "{method} {path}: {answer}");
        assert_code(&answer, "method_not_allowed");
        let header = answer.lines().find_map(|l| l.strip_prefix("Allow: ")).unwrap_or_else(|| panic!("{answer}"));
        assert!(header.split(", ").any(|m| m == allow), "{answer}");
    }
    // What can be got can be asked for its head.
    for path in ["/v1/status", "/v1/sessions", "/v1/sessions/local%3Aa", "/metrics", "/healthz"] {
        let (status, answer) = raw(&d, &format!("HEAD {path} HTTP/1.1"), b"");
        assert_eq!((status, answer.split_once("\r\n\r\n").map(|(_, body)| body)), (200, Some("")), "{path}: {answer}");
    }
    let missing = "/v1/sessions/00000000-0000-7000-8000-000000000000";
    assert_eq!(d.refusal(Method::GET, missing, None), (404, "session_not_found".into()));
    assert_eq!(d.refusal(Method::GET, "/v1/reports/none", None), (404, "not_found".into()));
    assert_eq!(d.refusal(Method::GET, "/v1/sessions?limit=x", None), (400, "invalid_parameter".into()));
    assert_eq!(d.refusal(Method::POST, "/v1/hooks/failed/none/retry", None).0, 404);
}

/// What is no HTTP is refused or hung up on; requests that stop half-way keep nobody else waiting.
#[test]
fn half_requests() {
    let mut d = Daemon::new().start();
    let answer = d.raw_request(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n");
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer:?}");
    let long = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(64 << 10));
    assert!(d.raw_request(long.as_bytes()).starts_with("HTTP/1.1 414"));
    let both = b"POST /v1/hold HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert!(d.raw_request(both).starts_with("HTTP/1.1 400"));
    let half: Vec<_> = (0..50)
        .map(|n| {
            let mut s = d.raw();
            let text = "POST /v1/sessions/local%3Aa/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{\"text\": \"never\"";
            s.write_all(&text.as_bytes()[..text.len() - n]).unwrap();
            s
        })
        .collect();
    assert_eq!(d.send("local:a", "x"), "echo: x");
    // One goes on where it had stopped, another hangs up.
    drop(half);
    let mut late = d.raw();
    late.write_all(b"GET /v1/status HT").unwrap();
    assert_eq!(d.send("local:a", "y"), "echo: y");
    late.write_all(b"TP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    late.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(d.status()["sessions"]["running"], 0);
    assert_eq!(d.stop(), 0);
    assert_eq!(d.sql::<i64>("SELECT count(*) FROM messages"), 2);
}

/// A port that was free a moment ago.
pub fn port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The TCP listener wants its token, compares it whole, and turns web pages away.
#[test]
fn the_tcp_listener() {
    let port = port();
    let d = Daemon::new();
    std::fs::write(d.path("token"), "s3cret-token\n").unwrap();
    let d = d.config(&format!("[http]\nlisten = \"127.0.0.1:{port}\"\ntoken_file = \"@DIR@/token\"\n")).start();
    let url = format!("http://127.0.0.1:{port}");
    let with = |token: Option<&str>| Client::url(&url, token).unwrap().get("/v1/status");
    assert_eq!(with(Some("s3cret-token")).unwrap()["pid"], d.pid());
    for wrong in [None, Some("s3cret-toke"), Some("s3cret-tokenn"), Some("S3cret-token"), Some("")] {
        let e = with(wrong).unwrap_err();
        assert_eq!((e.status, e.code.as_str()), (401, "unauthorized"), "{wrong:?}");
    }
    let ask = |headers: &str| {
        let mut s = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        s.set_read_timeout(Some(crate::daemon::PATIENCE)).unwrap();
        write!(s, "GET /v1/status HTTP/1.1\r\nConnection: close\r\n{headers}\r\n").unwrap();
        let mut answer = String::new();
        let _ = s.read_to_string(&mut answer);
        answer
    };
    let auth = "Authorization: Bearer s3cret-token\r\n";
    assert!(ask(&format!("Host: 127.0.0.1:{port}\r\n{auth}")).starts_with("HTTP/1.1 200"));
    for origin in ["http://evil.example", "null", "https://127.0.0.1"] {
        let answer = ask(&format!("Host: 127.0.0.1:{port}\r\n{auth}Origin: {origin}\r\n"));
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert_code(&answer, "forbidden_origin");
    }
    let cli = d.cli(&["status", "--url", &url, "--token-file", d.path("token").to_str().unwrap()]);
    assert_eq!(cli.code, 0, "{cli:?}");
    assert_eq!(d.cli(&["status", "--url", &url]).code, 1);
}

/// Without a token only this machine's own names are served, so that no page can make a name of its own point here.
#[test]
fn names_of_this_machine() {
    let port = port();
    let d = Daemon::new().config(&format!("[http]\nlisten = \"127.0.0.1:{port}\"\n")).start();
    let ask = |host: &str| {
        let mut s = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        s.set_read_timeout(Some(crate::daemon::PATIENCE)).unwrap();
        write!(s, "GET /v1/status HTTP/1.1\r\nConnection: close\r\nHost: {host}\r\n\r\n").unwrap();
        let mut answer = String::new();
        let _ = s.read_to_string(&mut answer);
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    for good in [format!("127.0.0.1:{port}"), format!("localhost:{port}"), "LOCALHOST".into(), format!("[::1]:{port}")]
    {
        assert_eq!(ask(&good), "200", "{good}");
    }
    for bad in ["evil.example", "localhost.evil.example", "10.0.0.1", "127.0.0.1.evil.example:80"] {
        assert_eq!(ask(bad), "403", "{bad}");
    }
    drop(d);
}
