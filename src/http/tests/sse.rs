//! Server-sent events, there and back.

use proptest::prelude::*;

use super::super::sse::{SseEvent, SseParser, event, ping};

fn read(pieces: &[&[u8]]) -> Vec<SseEvent> {
    let mut parser = SseParser::new();
    let mut all = Vec::new();
    for piece in pieces {
        parser.push(piece);
        all.extend(parser.by_ref());
    }
    all
}

fn an_event(event: Option<&str>, id: Option<i64>, data: &str) -> SseEvent {
    SseEvent { event: event.map(str::to_owned), id, data: data.to_owned() }
}

#[test]
fn events_are_written_as_the_standard_says() {
    let mut buf = Vec::new();
    event(&mut buf, Some("te\nxt"), Some(7), "{\"a\":1}");
    event(&mut buf, None, None, "one\ntwo\r\nthree\rfour\n");
    event(&mut buf, None, None, "");
    ping(&mut buf);
    let expected = "event: text\nid: 7\ndata: {\"a\":1}\n\n\
                    data: one\ndata: two\ndata: three\ndata: four\ndata: \n\n\
                    data: \n\n\
                    : ping\n\n";
    assert_eq!(String::from_utf8(buf).unwrap(), expected);
}

const WIRE: &[u8] = b"\xef\xbb\xbf: hello\r\n\r\nevent: a\rid: 1\rdata: x\r\rdata\ndata:y\n\nretry: 5\nid: z\nevent:b\n\n: ping\n\nid: -3\ndata:  two\r\n\r\ndata: lost";

#[test]
fn events_are_read_whatever_their_line_ends_and_pieces() {
    let expected =
        vec![an_event(Some("a"), Some(1), "x"), an_event(None, None, "\ny"), an_event(None, Some(-3), " two")];
    assert_eq!(read(&[WIRE]), expected);
    let single: Vec<&[u8]> = WIRE.chunks(1).collect();
    assert_eq!(read(&single), expected);
    for cut in 0..=WIRE.len() {
        let (a, b) = WIRE.split_at(cut);
        assert_eq!(read(&[a, b]), expected, "cut at {cut}");
    }
}

#[test]
fn an_event_too_large_is_left_out_whole() {
    for width in [1, 7, 1000] {
        let mut parser = SseParser::with_limit(50);
        let long = format!("id: 1\ndata: {}\ndata: more\n\nid: 2\ndata: ok\n\n", "x".repeat(100));
        let mut all = Vec::new();
        for piece in long.as_bytes().chunks(width) {
            parser.push(piece);
            all.extend(parser.by_ref());
        }
        assert_eq!(all, [an_event(None, Some(2), "ok")]);
        assert_eq!(parser.oversized(), 1);
    }
}

#[test]
fn comments_do_not_make_an_event_large() {
    let mut parser = SseParser::with_limit(50);
    for _ in 0..100 {
        parser.push(b": ping\n");
    }
    parser.push(b"data: ok\n\n");
    assert_eq!(parser.next(), Some(an_event(None, None, "ok")));
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        events in proptest::collection::vec((proptest::option::of("[a-z_]{1,9}"), any::<Option<i64>>(), "[a-z :\n\u{e9}]{0,30}"), 0..6),
        width in 1_usize..40,
    ) {
        let mut wire = Vec::new();
        let mut expected = Vec::new();
        for (kind, id, data) in &events {
            ping(&mut wire);
            event(&mut wire, kind.as_deref(), *id, data);
            expected.push(an_event(kind.as_deref(), *id, data));
        }
        let pieces: Vec<&[u8]> = wire.chunks(width).collect();
        prop_assert_eq!(read(&pieces), expected);
    }
}
