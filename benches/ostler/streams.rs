//! What an agent says, on its way to the client: a `delta` beside a bare relay of the same lines.
//!
//! The agent is this program: it writes the monotonic clock into each piece just before it writes the piece to its pipe,
//! and the client compares it with the clock when it has the piece in hand.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::rig::{self, Place};
use crate::table::{Goal, Scale, Table, quantile};

/// Streams at once, pieces each, milliseconds between two.
#[derive(Clone, Copy)]
struct Shape {
    streams: usize,
    pieces: usize,
    pause: usize,
}

/// The first pieces of a stream, which find nothing warm.
const WARM: usize = 10;

/// One stream, and a hundred.
pub fn delta(scale: Scale, table: &mut Table) {
    for shape in [
        Shape { streams: 1, pieces: scale.of(800, 40), pause: 5 },
        Shape { streams: scale.of(100, 5), pieces: scale.of(100, 40), pause: 50 },
    ] {
        let mut rounds: Vec<[f64; 4]> = (0..scale.of(3, 1))
            .map(|_| {
                let (mut ours, mut bare) = (streamed(shape), relayed(shape));
                [
                    quantile(&mut ours, 0.5),
                    quantile(&mut bare, 0.5),
                    quantile(&mut ours, 0.99),
                    quantile(&mut bare, 0.99),
                ]
            })
            .collect();
        for (name, at) in [("p50", 0), ("p99", 2)] {
            rounds.sort_by(|a, b| (a[at] / a[at + 1]).total_cmp(&(b[at] / b[at + 1])));
            let middle = rounds[rounds.len() / 2];
            let s = if shape.streams == 1 { "" } else { "s" };
            let figure = format!("agent chunk to client (delta), {} stream{s}, {name}", shape.streams);
            table.row(&figure, "µs", middle[at], Some(middle[at + 1]), Goal::Times(1.5));
        }
    }
}

fn nanos() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// How old, in microseconds, each piece in a text is by now.
fn ages(text: &str, into: &mut Vec<f64>) {
    let now = nanos();
    for at in memchr::memmem::find_iter(text.as_bytes(), "stamp ") {
        let digits: String = text[at + 6..].chars().take_while(char::is_ascii_digit).collect();
        if let Ok(then) = digits.parse::<i64>() {
            into.push((now - then) as f64 / 1e3);
        }
    }
}

fn program(shape: Shape, kind: &str) -> Vec<String> {
    let me = std::env::current_exe().expect("this program").display().to_string();
    vec![me, "role:agent".into(), kind.into(), shape.pieces.to_string(), shape.pause.to_string()]
}

fn streamed(shape: Shape) -> Vec<f64> {
    let agent = format!("kind = \"acp\"\ncommand = {:?}", program(shape, "acp"));
    let place = Place::new(&rig::config(&agent), None);
    let daemon = place.start();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..shape.streams)
            .map(|key| {
                let mut client = daemon.client();
                scope.spawn(move || {
                    let mut seen = Vec::new();
                    client.stream(key, "?deltas=1", |chunk| {
                        let text = std::str::from_utf8(chunk).expect("text");
                        // What was said comes once more as a durable `text`; that is not what is measured.
                        for event in text.split("\n\n").filter(|e| e.starts_with("event: delta\n")) {
                            ages(event, &mut seen);
                        }
                    });
                    assert_eq!(seen.len(), shape.pieces, "every piece came");
                    seen.split_off(WARM)
                })
            })
            .collect();
        clients.into_iter().flat_map(|c| c.join().expect("a client")).collect()
    })
}

/// The same agents, each with a thread that reads its pipe, one that writes what was read to a socket, and its client.
fn relayed(shape: Shape) -> Vec<f64> {
    let command = program(shape, "bare");
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..shape.streams)
            .map(|_| {
                let (mut near, far) = UnixStream::pair().expect("a socket");
                let mut agent = Command::new(&command[0])
                    .args(&command[1..])
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .spawn()
                    .expect("an agent");
                let lines = BufReader::new(agent.stdout.take().expect("its output"));
                let (pass, passed) = mpsc::channel::<String>();
                scope.spawn(move || lines.lines().map_while(Result::ok).for_each(|line| drop(pass.send(line))));
                scope.spawn(move || {
                    for mut line in passed {
                        line.push('\n');
                        near.write_all(line.as_bytes()).expect("relayed");
                    }
                    let _ = agent.wait();
                });
                scope.spawn(move || {
                    let (mut far, mut line, mut seen) = (BufReader::new(far), String::new(), Vec::new());
                    while far.read_line(&mut line).expect("a line") > 0 {
                        ages(&line, &mut seen);
                        line.clear();
                    }
                    assert_eq!(seen.len(), shape.pieces, "every piece came");
                    seen.split_off(WARM)
                })
            })
            .collect();
        clients.into_iter().flat_map(|c| c.join().expect("a client")).collect()
    })
}

/// The role: an agent that says as many pieces, paced; at once, or when it is prompted in the Agent Client Protocol.
pub fn agent(args: &[String]) {
    let number = |at: usize| args[at].parse::<u64>().expect("a number");
    let (pieces, pause) = (number(1), Duration::from_millis(number(2)));
    if args[0] == "bare" {
        return say(pieces, pause);
    }
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let message: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let id = &message["id"];
        let result = match message["method"].as_str() {
            Some("initialize") => serde_json::json!({ "protocolVersion": 1, "agentCapabilities": {} }),
            Some("session/new") => serde_json::json!({ "sessionId": "one" }),
            Some("session/prompt") => {
                say(pieces, pause);
                serde_json::json!({ "stopReason": "end_turn" })
            }
            _ => continue,
        };
        write(&serde_json::json!({ "jsonrpc": "2.0", "id": id, "result": result }).to_string());
    }
}

fn say(pieces: u64, pause: Duration) {
    // Agents that began together do not speak together.
    let offset = Duration::from_micros(u64::from(std::process::id()) * 7919 % 50_000);
    let began = Instant::now() + offset;
    let mut line = String::new();
    for n in 0..pieces {
        let at = began + pause * u32::try_from(n).unwrap_or(u32::MAX);
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        line.clear();
        let _ = write!(
            line,
            "{{\"jsonrpc\":\"2.0\",\"method\":\"session/update\",\"params\":{{\"sessionId\":\"one\",\"update\":{{\
             \"sessionUpdate\":\"agent_message_chunk\",\"content\":{{\"type\":\"text\",\"text\":\"stamp {} \"}}}}}}}}",
            nanos()
        );
        write(&line);
    }
}

fn write(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()).expect("said");
}
