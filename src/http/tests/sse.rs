//! Server-sent events, there and back.

use proptest::prelude::*;

use super::super::sse::{event, ping};
use crate::sse::{Event, Reader};

fn read(pieces: &[&[u8]]) -> Vec<Event> {
    let mut reader = Reader::new(1000);
    let mut all = Vec::new();
    for piece in pieces {
        reader.feed(piece);
        while let Some(event) = reader.next_event().unwrap() {
            all.push(event);
        }
    }
    all
}

fn an_event(event: Option<&str>, id: Option<u64>, data: &str) -> Event {
    Event { event: event.unwrap_or_default().to_owned(), id, data: data.to_owned() }
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

const WIRE: &[u8] = b"\xef\xbb\xbf: hello\r\n\r\nevent: a\rid: 1\rdata: x\r\rdata\ndata:y\n\nretry: 5\nid: z\nevent:b\n\n: ping\n\nid: 3\ndata:  two\r\n\r\ndata: last";

#[test]
fn events_are_read_whatever_their_line_ends_and_pieces() {
    let expected =
        vec![an_event(Some("a"), Some(1), "x"), an_event(None, None, "\ny"), an_event(None, Some(3), " two")];
    assert_eq!(read(&[WIRE]), expected);
    let single: Vec<&[u8]> = WIRE.chunks(1).collect();
    assert_eq!(read(&single), expected);
    for cut in 0..=WIRE.len() {
        let (a, b) = WIRE.split_at(cut);
        assert_eq!(read(&[a, b]), expected, "cut at {cut}");
    }
    let mut reader = Reader::new(1000);
    reader.feed(b"data: last");
    assert_eq!(reader.next_event(), Ok(None));
    reader.finish();
    assert_eq!(reader.next_event(), Ok(Some(an_event(None, None, "last"))));
}

#[test]
fn an_event_too_large_is_refused_however_it_is_cut_and_comments_are_none() {
    for long in [format!("data: {}", "x".repeat(100)), "data: xxxx\n".repeat(20)] {
        let mut reader = Reader::new(50);
        reader.feed(long.as_bytes());
        assert!(reader.next_event().is_err(), "{long}");
    }
    let mut reader = Reader::new(50);
    for _ in 0..100 {
        reader.feed(b": ping\n");
        assert_eq!(reader.next_event(), Ok(None));
    }
    reader.feed(b"data: ok\n\n");
    assert_eq!(reader.next_event(), Ok(Some(an_event(None, None, "ok"))));
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        events in proptest::collection::vec((proptest::option::of("[a-z_]{1,9}"), proptest::option::of(0..i64::MAX), "[a-z :\n\u{e9}]{0,30}"), 0..6),
        width in 1_usize..40,
    ) {
        let mut wire = Vec::new();
        let mut expected = Vec::new();
        for (kind, id, data) in &events {
            ping(&mut wire);
            event(&mut wire, kind.as_deref(), *id, data);
            expected.push(an_event(kind.as_deref(), id.map(i64::cast_unsigned), data));
        }
        let pieces: Vec<&[u8]> = wire.chunks(width).collect();
        prop_assert_eq!(read(&pieces), expected);
    }
}
