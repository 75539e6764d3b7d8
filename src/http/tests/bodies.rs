//! Bodies: lengths, chunks, caps and pace.

use std::time::Duration;

use proptest::prelude::*;

use super::super::body::Chunked;
use super::*;

fn decode(pieces: &[&[u8]], cap: u64) -> Result<(Vec<u8>, usize, bool), u16> {
    let mut decoder = Chunked::new(cap);
    let mut body = Vec::new();
    let mut used = 0;
    for piece in pieces {
        used += decoder.push(piece, &mut body).map_err(|r| r.status)?;
    }
    Ok((body, used, decoder.is_done()))
}

const WIRE: &[u8] = b"5;a=\"b\"\r\nhello\r\n00B\r\n, my world!\r\n0;z\r\nTrailer: 1\r\nOther:2\r\n\r\n";

#[test]
fn chunks_may_come_in_any_pieces() {
    let expected = Ok((b"hello, my world!".to_vec(), WIRE.len(), true));
    assert_eq!(decode(&[WIRE], 16), expected);
    let single: Vec<&[u8]> = WIRE.chunks(1).collect();
    assert_eq!(decode(&single, 16), expected);
    for cut in 0..=WIRE.len() {
        let (a, b) = WIRE.split_at(cut);
        assert_eq!(decode(&[a, b], 16), expected, "cut at {cut}");
    }
}

#[test]
fn what_follows_the_last_chunk_is_left_alone() {
    assert_eq!(decode(&[b"1\r\nx\r\n0\r\n\r\nGET /"], 16), Ok((b"x".to_vec(), 11, true)));
}

#[test]
fn no_beginning_of_a_chunked_body_is_taken_for_the_whole() {
    for cut in 0..WIRE.len() {
        assert!(!decode(&[&WIRE[..cut]], 16).unwrap().2, "cut at {cut}");
    }
}

#[test]
fn malformed_chunks_are_refused() {
    let table: &[(u16, &[u8])] = &[
        (400, b"\r\n"),
        (400, b";x\r\n"),
        (400, b"g\r\n"),
        (400, b"0x5\r\n"),
        (400, b"+5\r\n"),
        (400, b"-1\r\n"),
        (400, b" 5\r\n"),
        (400, b"5 \r\n"),
        (400, b"5 ;x\r\n"),
        (400, b"5\n"),
        (400, b"5\rx"),
        (400, b"5;a\nb\r\n"),
        (400, b"5;a\rb\r\n"),
        (400, b"5;a\0\r\n"),
        (400, b"1\r\nx\n"),
        (400, b"1\r\nxy"),
        (400, b"1\r\nx\r\r"),
        (400, b"0\r\n\n"),
        (400, b"0\r\n folded\r\n\r\n"),
        (400, b"0\r\nA: b\n\r\n"),
        (400, b"00000000000000000\r\n"),
        (413, b"ffffffffffffffff\r\n"),
        (413, b"11\r\n"),
        (413, b"8\r\n12345678\r\n9\r\n"),
    ];
    for (status, wire) in table {
        assert_eq!(decode(&[wire], 16).err(), Some(*status), "{:?}", String::from_utf8_lossy(wire));
    }
}

#[test]
fn what_is_not_data_has_a_bound_too() {
    let extension = [b"1;".as_slice(), &[b'x'; 20_000]].concat();
    assert_eq!(decode(&[&extension], 16).err(), Some(400));
    let trailers = [b"0\r\n".as_slice(), &b"A: b\r\n".repeat(5000)].concat();
    assert_eq!(decode(&[&trailers], 16).err(), Some(400));
}

proptest! {
    #[test]
    fn chunked_bodies_come_out_as_they_went_in(
        chunks in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 1..60), "(;[a-z]{0,5})?"), 0..8),
        width in 1_usize..50,
    ) {
        let mut wire = Vec::new();
        for (data, extension) in &chunks {
            wire.extend(format!("{:X}{extension}\r\n", data.len()).bytes());
            wire.extend(data);
            wire.extend(b"\r\n");
        }
        wire.extend(b"0\r\n\r\n");
        let body: Vec<u8> = chunks.into_iter().flat_map(|(data, _)| data).collect();
        let pieces: Vec<&[u8]> = wire.chunks(width).collect();
        prop_assert_eq!(decode(&pieces, 1000), Ok((body, wire.len(), true)));
    }

    #[test]
    fn no_bytes_panic_the_decoder(bytes in "[0-9a-f;\r\n x]{0,60}", width in 1_usize..60, cap in 0_u64..40) {
        let pieces: Vec<&[u8]> = bytes.as_bytes().chunks(width).collect();
        let whole = decode(&[bytes.as_bytes()], cap);
        if let Ok((body, used, _)) = &whole {
            prop_assert!(body.len() as u64 <= cap && *used <= bytes.len());
        }
        // Pieces after the end are no part of it.
        let end = whole.as_ref().map_or(bytes.len(), |(_, used, _)| *used);
        let pieces = if whole.is_ok() { bytes.as_bytes()[..end].chunks(width).collect() } else { pieces };
        prop_assert_eq!(decode(&pieces, cap), whole);
    }
}

#[test]
fn bodies_reach_the_handler() {
    let f = Fixture::new();
    let mut c = f.unix();
    c.send("POST /e?q HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(c.answer().text(), "POST /e q hello");
    c.send("POST /e HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    c.send(WIRE);
    assert_eq!(c.answer().text(), "POST /e - hello, my world!");
    let large = vec![b'z'; 4 << 20];
    c.send(format!("POST /e HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", large.len()));
    c.send(&large);
    assert_eq!(c.answer().body.len(), "POST /e - ".len() + large.len());
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let f = Fixture::new();
    let mut c = f.tcp();
    let head = b"\r\nPOST /e HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    for byte in head.iter().chain(WIRE) {
        c.send([*byte]);
    }
    assert_eq!(c.answer().text(), "POST /e - hello, my world!");
}

#[test]
fn a_body_above_the_cap_is_refused_before_it_comes() {
    let f = Fixture::new();
    for length in ["11", "4194305", "18446744073709551615", "99999999999999999999999999"] {
        let mut c = f.unix();
        c.send(format!("POST /small HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n"));
        let answer = c.answer();
        assert_eq!((answer.status, answer.field("connection")), (413, Some("close")));
        c.assert_end();
    }
    let mut c = f.unix();
    c.send("POST /small HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n");
    assert_eq!(c.answer().status, 413);
    c.assert_end();
    let mut c = f.unix();
    c.send("POST /small HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n0123456789");
    assert_eq!(c.answer().status, 200);
}

#[test]
fn a_client_that_sends_all_before_it_listens_still_reads_why_it_was_refused() {
    let f = Fixture::new();
    let mut c = f.tcp();
    c.send("POST /small HTTP/1.1\r\nHost: h\r\nContent-Length: 4194304\r\n\r\n");
    c.send(vec![b'x'; 4 << 20]);
    assert_eq!(c.answer().status, 413);
}

#[test]
fn leave_to_send_is_given_after_the_gate_and_the_cap() {
    let f = Fixture::new();
    let mut c = f.unix();
    c.send("POST /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    assert_eq!(c.head(), "HTTP/1.1 100 Continue\r\n\r\n");
    c.send("ok");
    assert_eq!(c.answer().text(), "POST /e - ok");
    c.send("POST /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(c.answer().status, 200, "whoever has begun needs no permission");
    for (path, status) in [("/closed", 401), ("/small", 413)] {
        let mut c = f.unix();
        c.send(format!("POST {path} HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 20\r\n\r\n"));
        assert_eq!(c.answer().status, status);
        c.assert_end();
    }
}

#[test]
fn a_slow_body_is_cut() {
    let f = Fixture::with(Limits { body_timeout: SOON, body_rate: 1 << 30, ..Limits::default() });
    for start in ["Content-Length: 100\r\n\r\nsome", "Transfer-Encoding: chunked\r\n\r\n5\r\nsom"] {
        let mut c = f.unix();
        c.send(format!("POST /e HTTP/1.1\r\nHost: h\r\n{start}"));
        let answer = c.answer();
        assert_eq!((answer.status, answer.field("connection")), (408, Some("close")));
        c.assert_end();
    }
    assert_eq!(f.server.stats().timeouts, 2);
}

#[test]
fn a_body_that_drips_is_cut_as_well() {
    let f = Fixture::with(Limits { body_timeout: SOON, body_rate: 1 << 30, ..Limits::default() });
    let c = f.unix();
    let mut drip = c.stream.try_clone().unwrap();
    let mut c = c;
    c.send("POST /e HTTP/1.1\r\nHost: h\r\nContent-Length: 4000000\r\n\r\n");
    // As fast as the socket takes single bytes; it ends when the server has hung up.
    let dripping = std::thread::spawn(move || while drip.write_all(b"x").is_ok() {});
    assert_eq!(c.answer().status, 408);
    c.stream.shutdown(std::net::Shutdown::Both).unwrap();
    dripping.join().unwrap();
}

#[test]
fn a_body_earns_time_by_the_bytes_it_brings() {
    use super::super::body::deadline;
    let limits = Limits { body_timeout: Duration::from_secs(10), body_rate: 1000, ..Limits::default() };
    let start = std::time::Instant::now();
    assert_eq!(deadline(start, 0, &limits) - start, Duration::from_secs(10));
    assert_eq!(deadline(start, 5000, &limits) - start, Duration::from_secs(15));
    let endless = Limits { body_timeout: Duration::MAX, body_rate: 0, ..Limits::default() };
    assert!(deadline(start, usize::MAX, &endless) > start, "extremes do not overflow");
}

#[test]
fn a_body_that_ends_early_is_not_handled() {
    let f = Fixture::new();
    let mut c = f.unix();
    c.send("POST /e HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf");
    c.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(c.answer().status, 400);
    c.assert_end();
}
