//! Heads: a table of good and bad ones, and the parsers against anything at all.

use proptest::prelude::*;

use super::super::head::{BodyKind, Framing, Head, Scan, parse};

/// What becomes of a message head that comes in one piece; an error is the status.
fn judge(bytes: &[u8]) -> Result<(Head, Framing), u16> {
    let end = Scan::default().end(bytes).map_err(|r| r.status)?.expect("a complete head");
    parse(&bytes[..end], 64).map_err(|r| r.status)
}

fn good(bytes: &[u8]) -> (Head, Framing) {
    judge(bytes).unwrap_or_else(|s| panic!("{s} for {:?}", String::from_utf8_lossy(bytes)))
}

#[test]
fn good_heads_say_what_they_say() {
    let (head, framing) = good(b"POST /a%20b/c?x=1&y=?2 HTTP/1.1\r\nHost: h:1\r\nX-A: 1 \r\nx-a:\t2\r\nEmpty:\r\n\r\n");
    assert_eq!((head.method.as_str(), head.path.as_str()), ("POST", "/a%20b/c"));
    assert_eq!(head.query.as_deref(), Some("x=1&y=?2"));
    assert_eq!(head.header("X-a"), Some("1"));
    assert_eq!(head.header_all("x-A").collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!((head.header("empty"), head.header("none")), (Some(""), None));
    assert_eq!(framing, Framing { body: BodyKind::Length(0), keep_alive: true, expects_continue: false });
}

#[test]
fn framing_is_read_as_rfc_9112_says() {
    let body = |fields: &str| good(format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n").as_bytes()).1.body;
    assert_eq!(body(""), BodyKind::Length(0));
    assert_eq!(body("Content-Length: 5\r\n"), BodyKind::Length(5));
    assert_eq!(body("Content-Length: 5\r\ncontent-length: 5\r\n"), BodyKind::Length(5));
    assert_eq!(body("Content-Length: 5, 5\r\n"), BodyKind::Length(5));
    assert_eq!(body("Content-Length: 99999999999999999999999\r\n"), BodyKind::Length(u64::MAX));
    assert_eq!(body("Transfer-Encoding: Chunked\r\n"), BodyKind::Chunked);
}

#[test]
fn connections_are_kept_as_the_client_says() {
    let keep = |minor: u8, fields: &str| {
        good(format!("GET / HTTP/1.{minor}\r\nHost: h\r\n{fields}\r\n").as_bytes()).1.keep_alive
    };
    assert!(keep(1, ""));
    assert!(!keep(1, "Connection: Close\r\n"));
    assert!(!keep(1, "Connection: keep-alive, close\r\n"));
    assert!(!keep(1, "Connection: x\r\nConnection: close\r\n"));
    assert!(keep(1, "Connection: closed\r\n"));
    assert!(!keep(0, ""));
    assert!(keep(0, "Connection: keep-alive\r\n"));
}

#[test]
fn leave_to_send_is_asked_for_with_a_body_alone() {
    let expects = |minor: u8, fields: &str| {
        good(format!("PUT / HTTP/1.{minor}\r\nHost: h\r\n{fields}\r\n").as_bytes()).1.expects_continue
    };
    assert!(expects(1, "Expect: 100-Continue\r\nContent-Length: 1\r\n"));
    assert!(expects(1, "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n"));
    assert!(!expects(1, "Expect: 100-continue\r\n"));
    assert!(!expects(0, "Expect: 100-continue\r\nContent-Length: 1\r\n"));
}

#[test]
fn an_absolute_target_overrules_the_host() {
    let (head, _) = good(b"GET HTTP://real:8/p?q HTTP/1.1\r\nHost: claimed\r\n\r\n");
    assert_eq!((head.path.as_str(), head.query.as_deref()), ("/p", Some("q")));
    assert_eq!(head.header_all("host").collect::<Vec<_>>(), ["real:8"]);
    assert_eq!(good(b"GET http://a?q HTTP/1.1\r\nHost: a\r\n\r\n").0.path, "/");
    assert_eq!(good(b"GET http://a/ HTTP/1.0\r\n\r\n").0.header("host"), Some("a"));
    assert_eq!(good(b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n").0.path, "*");
}

#[test]
fn values_that_are_not_utf_8_are_latin_1() {
    let (head, _) = good(b"GET / HTTP/1.1\r\nHost: h\r\nA: caf\xe9\r\nB: caf\xc3\xa9\r\n\r\n");
    assert_eq!((head.header("a"), head.header("b")), (Some("caf\u{e9}"), Some("caf\u{e9}")));
}

#[test]
fn bad_heads_are_refused() {
    let h = "Host: h\r\n";
    let many: String = (0..65).map(|i| format!("X-{i}: 1\r\n")).collect();
    let table: Vec<(u16, String)> = vec![
        // Two ways to find the end of the body.
        (400, format!("POST / HTTP/1.1\r\n{h}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n")),
        (400, format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n")),
        (400, format!("POST / HTTP/1.1\r\n{h}Content-Length: 5\r\nContent-Length: 6\r\n\r\n")),
        (400, format!("POST / HTTP/1.1\r\n{h}Content-Length: 5, 6\r\n\r\n")),
        // Lengths that are none.
        (400, format!("POST / HTTP/1.1\r\n{h}Content-Length: +5\r\n\r\n")),
        (400, format!("POST / HTTP/1.1\r\n{h}Content-Length: -1\r\n\r\n")),
        (400, format!("POST / HTTP/1.1\r\n{h}Content-Length: 0x5\r\n\r\n")),
        (400, format!("POST / HTTP/1.1\r\n{h}Content-Length: 5 5\r\n\r\n")),
        (400, format!("POST / HTTP/1.1\r\n{h}Content-Length: 5,\r\n\r\n")),
        (400, format!("POST / HTTP/1.1\r\n{h}Content-Length:\r\n\r\n")),
        (400, format!("POST / HTTP/1.1\r\n{h}Content-Length: \u{665}\r\n\r\n")),
        // Codings.
        (501, format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding: gzip, chunked\r\n\r\n")),
        (501, format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n")),
        (400, format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding: chunked, gzip\r\n\r\n")),
        (400, format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding: chunked, chunked\r\n\r\n")),
        (400, format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n")),
        (400, format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding: identity\r\n\r\n")),
        (400, format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding: xchunked\r\n\r\n")),
        (400, format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding: \"chunked\"\r\n\r\n")),
        (400, format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding: chunked;q=1\r\n\r\n")),
        (400, format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding: \u{b}chunked\r\n\r\n")),
        (400, format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding: ,chunked\r\n\r\n")),
        (400, format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding:\r\n\r\n")),
        (400, format!("POST / HTTP/1.0\r\n{h}Transfer-Encoding: chunked\r\n\r\n")),
        // Fields that another parser would read otherwise.
        (400, format!("POST / HTTP/1.1\r\n{h}Content-Length : 5\r\n\r\n")),
        (400, format!("POST / HTTP/1.1\r\n{h}Transfer-Encoding : chunked\r\n\r\n")),
        (400, format!("GET / HTTP/1.1\r\n{h}A: 1\r\n folded\r\n\r\n")),
        (400, format!("GET / HTTP/1.1\r\n{h}A: 1\r\n\tfolded\r\n\r\n")),
        (400, format!("GET / HTTP/1.1\r\n A: 1\r\n{h}\r\n")),
        (400, format!("GET / HTTP/1.1\r\n{h}no colon\r\n\r\n")),
        (400, format!("GET / HTTP/1.1\r\n{h}: no name\r\n\r\n")),
        (400, format!("GET / HTTP/1.1\r\n{h}A(b): 1\r\n\r\n")),
        (400, format!("GET / HTTP/1.1\r\n{h}A: a\0b\r\n\r\n")),
        (400, format!("GET / HTTP/1.1\r\n{h}A: a\x7fb\r\n\r\n")),
        // Line ends.
        (400, "GET / HTTP/1.1\nHost: h\n\n".into()),
        (400, "GET / HTTP/1.1\r\nHost: h\n\r\n".into()),
        (400, "GET / HTTP/1.1\r\nHost: h\rX: 1\r\n\r\n".into()),
        (400, "GET / HTTP/1.1\r\nHost: h\r\r\n\r\n".into()),
        (400, "GET / HTTP/1.1\r\nHost: h\r\n\n".into()),
        // Host.
        (400, "GET / HTTP/1.1\r\n\r\n".into()),
        (400, format!("GET / HTTP/1.1\r\n{h}{h}\r\n")),
        (400, format!("GET / HTTP/1.0\r\n{h}{h}\r\n")),
        (400, "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n".into()),
        (400, "GET / HTTP/1.1\r\nHost: u@h\r\n\r\n".into()),
        (400, "GET / HTTP/1.1\r\nHost: h/x\r\n\r\n".into()),
        (400, format!("GET http://u@h/ HTTP/1.1\r\n{h}\r\n")),
        (400, format!("GET http:///x HTTP/1.1\r\n{h}\r\n")),
        (400, "GET http://h/ HTTP/1.1\r\n\r\n".into()),
        // Request lines.
        (400, format!("GET  / HTTP/1.1\r\n{h}\r\n")),
        (400, format!("GET /  HTTP/1.1\r\n{h}\r\n")),
        (400, format!("GET / x HTTP/1.1\r\n{h}\r\n")),
        (400, format!("GET / HTTP/1.1 \r\n{h}\r\n")),
        (400, format!(" GET / HTTP/1.1\r\n{h}\r\n")),
        (400, format!("G@T / HTTP/1.1\r\n{h}\r\n")),
        (400, format!("GET\t/ HTTP/1.1\r\n{h}\r\n")),
        (400, format!("GET x HTTP/1.1\r\n{h}\r\n")),
        (400, format!("GET * HTTP/1.1\r\n{h}\r\n")),
        (400, format!("GET /#f HTTP/1.1\r\n{h}\r\n")),
        (400, format!("GET /\u{e9} HTTP/1.1\r\n{h}\r\n")),
        (400, format!("GET ftp://h/ HTTP/1.1\r\n{h}\r\n")),
        (400, format!("GET /\r\n{h}\r\n")),
        (400, format!("GET / HTTP/1.11\r\n{h}\r\n")),
        (400, format!("GET / http/1.1\r\n{h}\r\n")),
        (505, format!("GET / HTTP/1.2\r\n{h}\r\n")),
        (505, "PRI * HTTP/2.0\r\n\r\n".into()),
        (501, format!("CONNECT h:1 HTTP/1.1\r\n{h}\r\n")),
        (417, format!("PUT / HTTP/1.1\r\n{h}Expect: the worst\r\n\r\n")),
        (431, format!("GET / HTTP/1.1\r\n{h}{many}\r\n")),
    ];
    for (status, head) in table {
        assert_eq!(judge(head.as_bytes()).err(), Some(status), "{head:?}");
    }
}

#[test]
fn sixty_four_fields_are_not_too_many() {
    let fields: String = (0..63).map(|i| format!("X-{i}: 1\r\n")).collect();
    assert_eq!(good(format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n").as_bytes()).0.headers.len(), 64);
}

#[test]
fn what_is_no_head_is_refused_at_its_first_byte() {
    assert!(Scan::default().end(b"\x16\x03\x01").is_err(), "a TLS hello");
    assert!(Scan::default().end(b"GET / HTTP/1.1\n").is_err());
    assert!(Scan::default().end(b"GET / HTTP/1.1\r\nA: b\rc").is_err());
}

/// Scans as the bytes come in, `cuts` telling where the pieces end.
fn scan_in_pieces(bytes: &[u8], cuts: &[usize]) -> Result<Option<usize>, u16> {
    let mut scan = Scan::default();
    for &cut in cuts {
        if let Some(end) = scan.end(&bytes[..cut]).map_err(|r| r.status)? {
            return Ok(Some(end));
        }
    }
    scan.end(bytes).map_err(|r| r.status)
}

#[test]
fn the_end_is_found_wherever_the_pieces_end() {
    let bytes = b"GET / HTTP/1.1\r\nHost: h\r\n\r\nGET /next HTTP/1.1\r\n";
    let all: Vec<usize> = (1..bytes.len()).collect();
    assert_eq!(scan_in_pieces(bytes, &all), Ok(Some(27)));
    for cut in all {
        assert_eq!(scan_in_pieces(bytes, &[cut]), Ok(Some(27)), "cut at {cut}");
    }
}

proptest! {
    #[test]
    fn no_bytes_panic_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&bytes, 64);
        let _ = Scan::default().end(&bytes);
    }

    /// Whatever passes has one reading: one length or chunks, never both, and a Host.
    #[test]
    fn what_passes_is_unambiguous(
        line in "(GET|POST|OPTIONS) (/|\\*|http://a/|/[ -~]{0,8}) HTTP/1\\.[01]\r\n",
        fields in proptest::collection::vec(
            "(Host|Content-Length|Transfer-Encoding|Connection|X)[ ]?:[ \t]?(5|6|5, 5|chunked|gzip, chunked|close|[ -~]{0,6})(\r\n|\n|\r\n )",
            0..5,
        ),
    ) {
        let bytes = format!("{line}{}\r\n", fields.concat()).into_bytes();
        if let Ok(Some(end)) = Scan::default().end(&bytes)
            && let Ok((head, framing)) = parse(&bytes[..end], 64)
        {
            let lengths: Vec<&str> = head.header_all("content-length").collect();
            let codings: Vec<&str> = head.header_all("transfer-encoding").collect();
            match framing.body {
                BodyKind::Chunked => prop_assert!(lengths.is_empty() && codings == ["chunked"]),
                BodyKind::Length(n) => {
                    prop_assert!(codings.is_empty());
                    prop_assert!(lengths.iter().flat_map(|l| l.split(", ")).all(|l| l.parse() == Ok(n)));
                }
            }
            prop_assert_eq!(head.header_all("host").count(), usize::from(head.minor == 1 || head.header("host").is_some()));
        }
    }

    #[test]
    fn pieces_make_no_difference(bytes in "[a:\r\n \t]{0,40}", cuts in proptest::collection::vec(0_usize..40, 0..6)) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
        cuts.sort_unstable();
        let whole = Scan::default().end(bytes.as_bytes()).map_err(|r| r.status);
        prop_assert_eq!(scan_in_pieces(bytes.as_bytes(), &cuts), whole);
    }
}
