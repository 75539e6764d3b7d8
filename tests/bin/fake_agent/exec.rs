//! The agent as a command (`--exec`): its input is the prompt, its output the answer.
//!
//! The commands are found as in a prompt of the other kind. `say`, `lines`, `paced`, `wait-file`, `notify`, `die`, `pid`, `cwd` and
//! `outlaw` mean the same here; `half PATH` writes the first byte of `ä`, waits for PATH, and writes the second; `long BYTES`
//! writes so many bytes and the end of a line; `wide N` writes `€` so many times.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Command, exit};
use std::sync::mpsc::channel;
use std::time::Duration;

use serde_json::json;

use super::diary;

const COMMANDS: &[&str] =
    &["say", "lines", "paced", "wait-file", "notify", "die", "pid", "cwd", "outlaw", "half", "long", "wide", "stderr"];

/// Reads the prompt, does what it says, and ends.
pub fn run() {
    diary::began("exec");
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).unwrap();
    diary::heard(&json!({ "prompt": text }));
    let line = text.lines().rfind(|l| COMMANDS.contains(&l.split([' ', ';']).next().unwrap_or_default()));
    let Some(line) = line else { return write(format!("heard: {text}").as_bytes()) };
    let mut number = 0;
    line.split(';').for_each(|command| act(command.trim(), &mut number));
    diary::said(&json!({ "end": true }));
}

/// Writes the next line.
fn next_line(number: &mut u64) {
    *number += 1;
    write(format!("line {number}\n").as_bytes());
}

fn act(command: &str, number: &mut u64) {
    let (word, rest) = command.split_once(' ').unwrap_or((command, ""));
    let argument = |n: usize| rest.split(' ').nth(n).and_then(|t| t.parse::<u64>().ok()).unwrap_or(0);
    match word {
        "say" => write(rest.as_bytes()),
        "lines" => {
            let (_keep, never) = channel::<()>();
            for _ in 0..argument(0) {
                next_line(number);
                let _ = never.recv_timeout(Duration::from_millis(argument(1)));
            }
        }
        "paced" => {
            let (path, count) = rest.rsplit_once(' ').unwrap();
            let mut paces = File::open(path).unwrap();
            for _ in 0..count.parse().unwrap() {
                paces.read_exact(&mut [0]).unwrap();
                next_line(number);
            }
        }
        "wait-file" => drop(File::open(rest).unwrap()),
        "notify" => drop(File::options().write(true).open(rest).unwrap()),
        "die" => {
            eprintln!("fatal: told to die");
            exit(i32::try_from(argument(0)).unwrap());
        }
        "pid" => write(format!("pid {}\n", std::process::id()).as_bytes()),
        "cwd" => write(std::env::current_dir().unwrap().to_string_lossy().as_bytes()),
        "outlaw" => {
            let child =
                Command::new("setsid").args(["/bin/sh", "-c", "trap '' TERM; exec sleep 1000"]).env_clear().spawn();
            write(format!("outlaw {}\n", child.unwrap().id()).as_bytes());
        }
        "half" => {
            let whole = "ä".as_bytes();
            write(&whole[..1]);
            drop(File::open(rest).unwrap());
            write(&whole[1..]);
        }
        "long" => {
            write(&b"x".repeat(usize::try_from(argument(0)).unwrap()));
            write(b"\n");
        }
        "wide" => write("€".repeat(usize::try_from(argument(0)).unwrap()).as_bytes()),
        "stderr" => eprintln!("{}", "e".repeat(usize::try_from(argument(0)).unwrap())),
        _ => write(format!("heard: {command}").as_bytes()),
    }
}

fn write(bytes: &[u8]) {
    diary::said(&json!({ "text": String::from_utf8_lossy(bytes) }));
    let mut out = std::io::stdout().lock();
    if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
        exit(0);
    }
}
