//! A system's bus with a systemd on it, as the daemon meets it: the greeting, and answers to the four calls that a daemon
//! makes at a SIGTERM. Written from D-Bus's specification, without the daemon's own code.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use crossbeam_channel::{Receiver, Sender};

/// What this systemd says.
#[derive(Clone, Copy)]
pub enum Says {
    /// The type of the unit's job, if it has one, and the manager's state.
    Job(Option<&'static str>, &'static str),
    /// Nothing at all.
    Nothing,
    /// That it knows no unit of this process.
    NoUnit,
}

/// The bus; each call's member is heard as it comes.
pub struct Bus {
    pub heard: Receiver<String>,
}

/// The user in the greeting, as the specification writes it: the digits of the number, each in hexadecimal.
fn hex(uid: u32) -> String {
    uid.to_string().bytes().map(|b| format!("{b:02x}")).collect()
}

fn text(value: &str) -> Vec<u8> {
    [&u32::try_from(value.len()).unwrap().to_le_bytes()[..], value.as_bytes(), b"\0"].concat()
}

fn aligned(mut bytes: Vec<u8>, to: usize) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
    bytes
}

fn packet(kind: u8, serial: u32, signature: &str, body: &[u8]) -> Vec<u8> {
    let mut fields = [&[5, 1, b'u', 0][..], &serial.to_le_bytes()].concat();
    if kind == 3 {
        fields.extend([&[4, 1, b's', 0][..], &text("org.freedesktop.systemd1.NoUnitForPID")].concat());
        fields = aligned(fields, 8);
    }
    let length = u8::try_from(signature.len()).unwrap();
    fields.extend([&[8, 1, b'g', 0, length][..], signature.as_bytes(), b"\0"].concat());
    let mut packet = vec![b'l', kind, 1, 1];
    packet.extend(
        [u32::try_from(body.len()).unwrap(), 1, u32::try_from(fields.len()).unwrap()].map(u32::to_le_bytes).concat(),
    );
    packet.extend(fields);
    [aligned(packet, 8), body.to_vec()].concat()
}

impl Bus {
    pub fn new(path: &Path, says: Says) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let (calls, heard) = crossbeam_channel::unbounded();
        std::thread::spawn(move || {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                match says {
                    Says::Nothing => {
                        let _ = calls.send("a client".to_owned());
                        held.push(stream);
                    }
                    _ => drop(serve(&stream, says, &calls)),
                }
            }
        });
        Self { heard }
    }
}

fn serve(stream: &UnixStream, says: Says, calls: &Sender<String>) -> std::io::Result<()> {
    let (mut input, mut output) = (BufReader::new(stream), stream);
    let mut line = String::new();
    input.read_line(&mut line)?;
    assert_eq!(line, format!("\0AUTH EXTERNAL {}\r\n", hex(rustix::process::geteuid().as_raw())));
    output.write_all(b"OK 0123456789abcdef\r\n")?;
    line.clear();
    input.read_line(&mut line)?;
    assert_eq!(line, "BEGIN\r\n");
    loop {
        let mut head = [0; 16];
        input.read_exact(&mut head)?;
        let number = |at: usize| u32::from_le_bytes(*head[at..].first_chunk().unwrap());
        let (body, serial, fields) = (number(4) as usize, number(8), number(12) as usize);
        let mut rest = vec![0; fields.next_multiple_of(8) + body];
        input.read_exact(&mut rest)?;
        let said = String::from_utf8_lossy(&rest).into_owned();
        let asks = |what: &str| said.contains(&format!("{what}\0"));
        let variant = |value: &str| (String::from("v"), [b"\x01s\0\0", &text(value)[..]].concat());
        let Says::Job(job, state) = says else {
            let answer = if asks("Hello") {
                packet(2, serial, "s", &text(":1.1"))
            } else {
                packet(3, serial, "s", &text("none"))
            };
            output.write_all(&answer)?;
            continue;
        };
        let (what, (signature, value)) = if asks("Hello") {
            // A bus tells a newcomer its name, too.
            output.write_all(&packet(4, 0, "s", &text(":1.1")))?;
            ("Hello", (String::from("s"), text(":1.1")))
        } else if asks("SystemState") {
            ("SystemState", variant(state))
        } else if asks("GetUnitByPID") {
            assert_eq!(body, 4, "a pid");
            ("GetUnitByPID", (String::from("o"), text("/org/freedesktop/systemd1/unit/ostler_2eservice")))
        } else if asks("JobType") {
            assert!(asks("/org/freedesktop/systemd1/job/12"), "{said}");
            ("JobType", variant(job.unwrap()))
        } else {
            assert!(asks("Job") && asks("/org/freedesktop/systemd1/unit/ostler_2eservice"), "{said}");
            let (id, path) = if job.is_some() { (12u32, "/org/freedesktop/systemd1/job/12") } else { (0, "/") };
            ("Job", (String::from("v"), [b"\x04(uo)\0\0\0", &id.to_le_bytes()[..], &text(path)].concat()))
        };
        output.write_all(&packet(2, serial, &signature, &value))?;
        let _ = calls.send(what.to_owned());
    }
}
