#![allow(clippy::unwrap_used)]
use super::*;
use std::os::unix::net::UnixStream;

const SOON: Duration = Duration::from_secs(20);

/// A packet of a bus: kind, fields (code, type, value), body; the order of its bytes is chosen.
fn packet(big: bool, kind: u8, fields: &[(u8, &str, &[u8])], body: &[u8]) -> Vec<u8> {
    let number = |n: usize| {
        let n = u32::try_from(n).unwrap();
        if big { n.to_be_bytes() } else { n.to_le_bytes() }
    };
    let mut inner = Vec::new();
    for (code, of, value) in fields {
        pad(&mut inner, 8);
        inner.extend([*code, 1, of.as_bytes()[0], 0]);
        match *of {
            "u" => inner.extend(*value),
            "g" => inner.extend([&[u8::try_from(value.len()).unwrap()], *value, &[0]].concat()),
            _ => inner.extend([&number(value.len())[..], *value, &[0]].concat()),
        }
    }
    let mut packet = vec![if big { b'B' } else { b'l' }, kind, 1, 1];
    packet.extend([number(body.len()), number(9), number(inner.len())].concat());
    packet.extend(inner);
    pad(&mut packet, 8);
    packet.extend(body);
    packet
}

/// The answer to our call of this number.
fn answer(serial: u32, of: &str, body: &[u8]) -> Vec<u8> {
    let serial = serial.to_le_bytes();
    packet(false, RETURN, &[(REPLY_SERIAL, "u", &serial), (7, "s", b":1.1"), (SIGNATURE, "g", of.as_bytes())], body)
}

fn value(packet: &[u8], of: &str) -> io::Result<Value> {
    let head = Head::read(packet)?;
    assert_eq!(head.signature, of);
    head.body().value(of)
}

#[test]
fn a_call_looks_as_the_specification_says() {
    let got = call(5, "a.b", "/c", "d.e", "F", &[Argument::Text("xyz"), Argument::Number(7)]).unwrap();
    let mut want = b"l\x01\x00\x01".to_vec();
    want.extend([12, 0, 0, 0, 5, 0, 0, 0, 0x3c, 0, 0, 0]);
    want.extend(b"\x01\x01o\x00\x02\x00\x00\x00/c\x00\x00\x00\x00\x00\x00");
    want.extend(b"\x02\x01s\x00\x03\x00\x00\x00d.e\x00\x00\x00\x00\x00");
    want.extend(b"\x03\x01s\x00\x01\x00\x00\x00F\x00\x00\x00\x00\x00\x00\x00");
    want.extend(b"\x06\x01s\x00\x03\x00\x00\x00a.b\x00\x00\x00\x00\x00");
    want.extend(b"\x08\x01g\x00\x02su\x00");
    // 16 + 0x48 bytes; the body: a text, its nought, a number.
    want[12] = 0x48;
    want.extend(b"\x03\x00\x00\x00xyz\x00\x07\x00\x00\x00");
    assert_eq!(got, want);
}

#[test]
fn answers_are_read_in_either_order_of_bytes() {
    assert_eq!(value(&answer(1, "s", b"\x02\0\0\0ab\0"), "s").unwrap(), Value::Text("ab".into()));
    let job = answer(1, "v", b"\x04(uo)\0\0\0\x07\0\0\0\x02\0\0\0/j\0");
    assert_eq!(value(&job, "v").unwrap().job().unwrap(), (7, "/j".into()));
    let text =
        packet(true, RETURN, &[(REPLY_SERIAL, "u", &[0, 0, 0, 1]), (SIGNATURE, "g", b"v")], b"\x01s\0\0\0\0\0\x01a\0");
    assert_eq!(value(&text, "v").unwrap().text().unwrap(), "a");
    // Another type than was asked for.
    assert!(value(&answer(1, "v", b"\x01u\0\0\x07\0\0\0"), "v").is_err());
    assert!(value(&job, "v").unwrap().text().is_err());
}

/// What comes may be anything: it is refused, or read as something, and nothing is read beyond it.
#[test]
fn no_packet_does_harm() {
    let whole = answer(1, "v", b"\x04(uo)\0\0\0\x07\0\0\0\x02\0\0\0/j\0");
    let read = |bytes: &[u8]| Head::read(bytes).and_then(|h| h.body().value("v"));
    for n in 0..whole.len() {
        assert!(read(&whole[..n]).is_err(), "{n} bytes");
    }
    let mut x = 0x9E37_79B9_7F4A_7C15_u64;
    let mut understood = 0;
    for _ in 0..200_000 {
        let mut bytes = whole.clone();
        for _ in 0..3 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            let at = usize::try_from(x % whole.len() as u64).unwrap();
            bytes[at] = x.to_le_bytes()[5];
        }
        understood += usize::from(read(&bytes).is_ok());
    }
    assert!(understood > 0, "some are harmless");
}

/// A bus that says what it is told to, to one client.
fn against(said: Vec<u8>, until: Duration) -> io::Result<Value> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (&theirs).write_all(&said).unwrap();
    let mut bus = Bus { stream: ours, until: Instant::now() + until, serial: 0 };
    bus.call("a.b", "/c", "d.e", "F", &[], "s")
}

#[test]
fn only_the_answer_to_the_call_counts() {
    let signal = packet(false, 4, &[(PATH, "o", b"/"), (SIGNATURE, "g", b"s")], b"\x01\0\0\0x\0");
    let earlier = answer(7, "s", b"\x01\0\0\0x\0");
    let right = answer(1, "s", b"\x02\0\0\0ab\0");
    let said = [signal.clone(), earlier, right.clone()].concat();
    assert_eq!(against(said, SOON).unwrap(), Value::Text("ab".into()));
    let refused = packet(false, ERROR, &[(REPLY_SERIAL, "u", &1u32.to_le_bytes()), (ERROR_NAME, "s", b"a.No")], b"");
    assert!(against(refused, SOON).unwrap_err().to_string().contains("a.No"));
    assert!(against(answer(1, "u", &[0; 4]), SOON).unwrap_err().to_string().contains("of type \"u\""));
    let many = [vec![signal; OTHERS].concat(), right].concat();
    assert!(against(many, SOON).unwrap_err().to_string().contains("too much"));
}

#[test]
fn what_is_too_long_or_never_comes_ends_the_question() {
    let mut long = answer(1, "s", b"");
    long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(against(long, SOON).unwrap_err().to_string().contains("too long"));
    let mut long = answer(1, "s", b"");
    long[12..16].copy_from_slice(&(u32::MAX - 20).to_le_bytes());
    assert!(against(long, SOON).unwrap_err().to_string().contains("too long"));
    let half = answer(1, "s", b"\x02\0\0\0ab\0");
    let late = against(half[..20].to_vec(), Duration::from_millis(50)).unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::TimedOut);
}

#[test]
fn a_bus_that_lets_nobody_in_is_no_bus() {
    let greet = |said: &[u8]| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&theirs).write_all(said).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        Bus::greet(ours, 0, Instant::now() + SOON).map(drop)
    };
    assert!(greet(b"REJECTED EXTERNAL\r\n").unwrap_err().to_string().contains("REJECTED"));
    assert!(greet(&[b'x'; 300]).unwrap_err().to_string().contains("long line"));
    assert!(greet(b"").is_err());
    let hello = answer(1, "s", b"\x04\0\0\0:1.2\0");
    assert!(greet(&[b"OK 1234\r\n", &hello[..]].concat()).is_ok());
}
