//! What is relayed: each byte once and in order, each frame once and whole, whoever dies in between.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ostler::shim::client::{Client, Daemon, Event};
use ostler::shim::frame::{Code, Kept, PAYLOAD, Request, Status};
use ostler::shim::launch::SocketName;
use ostler::shim::proof::{Place, Token};
use ostler::shim::start::Start;

use crate::rig::{HANGS, Heard, Shim, gone, script};

/// Says twenty lines for each line that it hears: its first word, the length of the rest, and a count.
const ECHO: &str =
    r#"while read -r x rest; do i=0; while [ $i -lt 20 ]; do echo "$x ${#rest} $i"; i=$((i+1)); done; done"#;

/// The frame of a number: every fortieth has more bytes than a packet takes.
fn frame(n: u64) -> Vec<u8> {
    let rest = if n.is_multiple_of(40) { " ".to_owned() + &"x".repeat(70_000) } else { String::new() };
    format!("{n}{rest}\n").into_bytes()
}

/// What the agent says to the frames up to a number.
fn expected(last: u64) -> String {
    let length = |n: u64| if n.is_multiple_of(40) { 70_000 } else { 0 };
    (1..=last).flat_map(|n| (0..20).map(move |i| format!("{n} {} {i}\n", length(n)))).collect()
}

/// A small random number.
fn random(below: u64) -> u64 {
    let bytes: [u8; 8] = ostler::shim::proof::random().unwrap();
    u64::from_le_bytes(bytes) % below
}

/// A daemon that is killed: it keeps output in a file, whose length is its offset, and acknowledges what is in it. It is
/// this test's own program in a process of its own, and does nothing unless it is told what.
#[test]
fn a_daemon_that_is_killed() {
    let Ok(told) = std::env::var("SHIM_TEST_DAEMON") else { return };
    let [dir, name, token, file, boot, finish] = told.split('|').collect::<Vec<_>>().try_into().unwrap();
    let token: Vec<u8> = (0..32).map(|n| u8::from_str_radix(&token[2 * n..2 * n + 2], 16).unwrap()).collect();
    let dir_fd = File::open(dir).unwrap();
    let stat = std::fs::metadata(dir).unwrap();
    let mut out = File::options().append(true).open(file).unwrap();
    let daemon = Daemon {
        token: Token::from_bytes(token.try_into().unwrap()),
        place: Place::here(stat.dev(), stat.ino()).unwrap(),
        boot: boot.parse().unwrap(),
        from: out.metadata().unwrap().len(),
    };
    let name = SocketName::parse(name).unwrap();
    let (mut client, attached) = Client::attach(dir_fd.as_fd(), &name, daemon, Instant::now() + HANGS).unwrap();
    std::io::stderr().write_all(b"+").unwrap();
    let (mut highest, mut sent) = (attached.taken.highest, attached.taken.highest);
    let last = if finish == "1" { highest + 100 } else { u64::MAX };
    loop {
        while sent < last && sent < highest + 8 {
            sent += 1;
            client.input(sent, frame(sent)).unwrap();
            if sent % 7 == 0 {
                client.input(sent, frame(sent)).unwrap();
            }
            if sent == last {
                client.close_input(sent + 1).unwrap();
            }
        }
        let mut kept = None;
        client.flush().unwrap();
        match client.receive().unwrap() {
            Some(Event::Output { offset, bytes }) => {
                out.write_all(bytes).unwrap();
                kept = Some(offset + bytes.len() as u64);
            }
            Some(Event::Taken(taken)) => highest = taken.highest.min(last),
            Some(Event::Exit(exit)) => {
                assert_eq!((exit.status, exit.left), (Status::Code(0), 0));
                return client.acknowledge_exit().unwrap();
            }
            Some(Event::Trouble { code, number, text }) => panic!("{code:?} {number} {text}"),
            Some(_) => {}
            None => drop(client.wait(HANGS).unwrap()),
        }
        if let Some(offset) = kept {
            client.acknowledge(offset).unwrap();
        }
    }
}

#[test]
fn two_hundred_daemons_die_and_each_byte_comes_once() {
    let kills: u64 = std::env::var("SHIM_KILLS").map_or(200, |n| n.parse().unwrap());
    let mut shim = Shim::new();
    drop(shim.start(&shim.with_spool(script(ECHO))));
    let out = tempfile::NamedTempFile::new().unwrap();
    let token: String = shim.seed.token.bytes().iter().map(|b| format!("{b:02x}")).collect();
    let daemon = |boot: u64, finish: u8| {
        let told = format!(
            "{}|{}|{token}|{}|{boot}|{finish}",
            shim.dir.display(),
            shim.seed.name.as_str(),
            out.path().display()
        );
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "relay::a_daemon_that_is_killed", "--nocapture"]).env("SHIM_TEST_DAEMON", told);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    for boot in 1..=kills {
        let mut child = daemon(boot, 0);
        // Some are killed in their greeting, most of them some milliseconds after it.
        if boot % 5 != 0 {
            let mut byte = [0];
            child.stderr.as_mut().unwrap().read_exact(&mut byte).unwrap();
            assert_eq!(&byte, b"+");
        }
        assert!(!gone(child.id(), Duration::from_micros(random(12_000))), "it does not leave by itself");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let end = daemon(kills + 1, 1).wait_with_output().unwrap();
    assert!(end.status.success(), "{}", String::from_utf8_lossy(&end.stderr));
    shim.leaves();
    let text = std::fs::read_to_string(out.path()).unwrap();
    let last: u64 = text.lines().last().unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(last > kills, "they did something: {last}");
    let same = text == expected(last);
    assert!(same, "{} bytes, not as expected", text.len());
}

#[test]
fn frames_that_came_twice_are_taken_once_and_half_a_message_is_forgotten() {
    let mut shim = Shim::new();
    let (mut link, _) = shim.start(&shim.with_spool(script("cat")));
    link.client.input(1, b"one\n".to_vec()).unwrap();
    link.client.input(1, b"one\n".to_vec()).unwrap();
    link.client.input(2, b"two\n".to_vec()).unwrap();
    assert_eq!(link.read_until("two\n"), "one\ntwo\n");
    // Half of a message, by hand: a client never does that.
    let mut half = Vec::new();
    Request::Input { number: 3, last: false, bytes: b"half of " }.encode(&mut half);
    rustix::net::send(link.client.descriptor(), &half, rustix::net::SendFlags::empty()).unwrap();
    drop(link);
    let (mut link, attached) = shim.attach(2, 8);
    assert_eq!((attached.taken.highest, attached.taken.written, attached.acked), (2, 8, 8));
    link.client.input(3, b"three\n".to_vec()).unwrap();
    assert_eq!(link.read_until("\n"), "three\n");
    link.client.input(5, b"five\n".to_vec()).unwrap();
    let gap = link.until(|h| if let Heard::Trouble(code, n, _) = h { Some((*code, *n)) } else { None });
    assert_eq!(gap, (Code::Gap, 4));
    link.client.input(4, vec![b'x'; 3 * PAYLOAD + 7]).unwrap();
    link.client.close_input(5).unwrap();
    let (bytes, exit) = link.finish();
    assert_eq!((bytes, exit.status), (vec![b'x'; 3 * PAYLOAD + 7], Status::Code(0)));
    link.client.acknowledge_exit().unwrap();
    shim.leaves();
}

#[test]
fn large_input_waits_in_the_spool_for_an_agent_that_does_not_read() {
    let shim = Shim::new();
    let (mut link, _) = shim.start(&shim.with_spool(script("read go < /dev/null; kill -STOP $$; wc -c; echo done")));
    let much = 20 * 1024 * 1024;
    link.client.input(1, vec![b'y'; much]).unwrap();
    let taken = link.until(|h| if let Heard::Taken(taken) = h { Some(*taken) } else { None });
    assert_eq!((taken.highest, taken.waiting + taken.written), (1, much as u64));
    assert_eq!(std::fs::read_dir(shim.spool.path()).unwrap().count(), 0, "the spool has no name");
    drop(link);
    let (mut link, attached) = shim.attach(2, 0);
    assert!(attached.taken.waiting > 0 && attached.taken.highest == 1);
    link.client.close_input(2).unwrap();
    let pid = attached.agent.unwrap().pid;
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap(),
        rustix::process::Signal::CONT,
    )
    .unwrap();
    assert_eq!(link.read_until("done\n").split_whitespace().collect::<Vec<_>>(), [&much.to_string(), "done"]);
}

/// Says as many numbered lines as a full spool and its memory hold, and some more.
fn flood(lines: u64) -> Start {
    script(&format!("seq -f '%063.0f' 1 {lines}"))
}

/// Reads all of it, and sees that it is the numbers from 1 to `lines`.
fn check_flood(link: &mut crate::rig::Link, lines: u64) {
    let (mut next, mut rest) = (1_u64, Vec::new());
    let exit = loop {
        match link.next().unwrap() {
            Heard::Output(_, bytes) => {
                rest.extend_from_slice(&bytes);
                let whole = rest.len() / 64 * 64;
                for line in rest[..whole].chunks(64) {
                    let number: u64 = std::str::from_utf8(line).unwrap().trim_end().parse().unwrap();
                    assert_eq!(number, next);
                    next += 1;
                }
                rest.drain(..whole);
                link.client.acknowledge(link.client.received()).unwrap();
            }
            Heard::Exit(exit) => break exit,
            _ => {}
        }
    };
    assert_eq!((next, rest.len(), exit.status), (lines + 1, 0, Status::Code(0)));
}

/// Attaches again until the spool stands as wanted.
fn kept_when(shim: &Shim, wanted: impl Fn(&Kept) -> bool) -> Kept {
    let (mut link, attached) = shim.attach(1, 0);
    if wanted(&attached.kept) {
        attached.kept
    } else {
        link.until(|h| match h {
            Heard::Spool(k) if wanted(k) => Some(*k),
            _ => None,
        })
    }
}

#[test]
fn what_nobody_takes_goes_to_the_spool_and_then_the_agent_waits() {
    let mut shim = Shim::new();
    let lines = (64 + 8) * 1024 * 1024 / 64;
    let (mut link, who) = shim.start(&shim.with_spool(flood(lines)));
    // Nothing is acknowledged, though much is read.
    let kept = link.until(|h| match h {
        Heard::Spool(kept) if kept.full => Some(*kept),
        _ => None,
    });
    assert_eq!((kept.spooled, kept.error, kept.failures), (64 * 1024 * 1024, 0, 0));
    assert!(crate::rig::lives(who.pid));
    drop(link);
    assert!(kept_when(&shim, |k| k.full).spooled > 0, "it stays so while nobody is there");
    let (mut link, attached) = shim.attach(2, 0);
    assert!(attached.kept.full && attached.available > 64 * 1024 * 1024 + 900_000);
    check_flood(&mut link, lines);
    link.client.acknowledge_exit().unwrap();
    shim.leaves();
}

#[test]
fn a_full_disk_is_a_full_spool_and_nothing_is_lost() {
    let mut shim = Shim::new();
    let disk = tempfile::tempdir().unwrap();
    let small = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "none"]).arg(disk.path()).status();
    let mounted = small.is_ok_and(|s| s.success());
    let lines = 8 * 1024 * 1024 / 64;
    if !mounted {
        eprintln!("no disk of our own: a limit of files' sizes stands for it");
        let limit = Command::new("prlimit").arg(format!("--pid={}", shim.child.id())).arg("--fsize=2097152").status();
        if !limit.is_ok_and(|s| s.success()) {
            eprintln!("SKIPPED: neither a disk nor a limit of our own");
            return;
        }
    }
    let (mut link, _) = shim.start(&Start { spool: Some(disk.path().to_owned()), ..flood(lines) });
    let kept = link.until(|h| match h {
        Heard::Spool(kept) if kept.error != 0 => Some(*kept),
        _ => None,
    });
    assert!(kept.full && kept.failures > 0 && kept.spooled <= 2 * 1024 * 1024, "{kept:?}");
    let error = rustix::io::Errno::from_raw_os_error(kept.error.try_into().unwrap());
    assert!([rustix::io::Errno::NOSPC, rustix::io::Errno::FBIG].contains(&error), "{error:?}");
    drop(link);
    let (mut link, attached) = shim.attach(2, 0);
    assert!(attached.kept.full);
    check_flood(&mut link, lines);
    link.client.acknowledge_exit().unwrap();
    shim.leaves();
    if mounted {
        Command::new("umount").arg(disk.path()).status().unwrap();
    }
}

#[test]
fn of_stderr_the_last_is_kept_and_the_rest_counted() {
    let mut shim = Shim::new();
    let (mut link, _) =
        shim.start(&script("echo begin >&2; read go; seq -f '%015.0f' 1 20000 >&2; echo said; read go"));
    assert_eq!(link.next().unwrap(), Heard::Stderr(0, b"begin\n".to_vec()));
    link.client.input(1, b"go\n".to_vec()).unwrap();
    // Whoever listens hears most of it, and how much was dropped.
    let (mut counted, mut last, mut said) = (0, Vec::new(), false);
    while !said || counted < 320_000 {
        match link.next().unwrap() {
            Heard::Stderr(before, bytes) => {
                counted += before + bytes.len() as u64;
                last = bytes;
            }
            Heard::Output(_, bytes) => said = bytes == b"said\n",
            _ => {}
        }
    }
    assert!(counted == 320_000 && last.ends_with(b"20000\n"), "{counted}");
    link.client.acknowledge(5).unwrap();
    link.client.close_input(2).unwrap();
    assert_eq!(link.finish().0, b"");
    link.client.acknowledge_exit().unwrap();
    shim.leaves();
}

#[test]
fn stderr_without_a_listener_is_bounded() {
    let shim = Shim::new();
    let flag = shim.spool.path().join("said");
    let text = format!("seq -f '%015.0f' 1 20000 >&2; : > {}; read go", flag.display());
    let watch = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::empty()).unwrap();
    rustix::fs::inotify::add_watch(&watch, shim.spool.path(), rustix::fs::inotify::WatchFlags::CREATE).unwrap();
    let (mut link, _) = shim.attach(1, 0);
    link.client.start(&script(&text)).unwrap();
    drop(link);
    let until = HANGS.try_into().unwrap();
    let made =
        rustix::event::poll(&mut [rustix::event::PollFd::new(&watch, rustix::event::PollFlags::IN)], Some(&until));
    assert_eq!(made, Ok(1), "the agent has said all, and was never held up");
    let (mut link, _) = shim.attach(2, 0);
    let (mut all, mut dropped) = (Vec::new(), 0);
    while !all.ends_with(b"20000\n") {
        if let Heard::Stderr(before, bytes) = link.next().unwrap() {
            dropped += before;
            all.extend_from_slice(&bytes);
        }
    }
    assert_eq!(dropped + all.len() as u64, 320_000);
    assert!(all.len() <= 64 * 1024 + 65_536, "the ring, and what the pipe still had: {}", all.len());
}

#[test]
fn a_client_sees_when_output_is_missing() {
    // A daemon that says a wrong offset is refused; the shim never guesses.
    let shim = Shim::new();
    let (mut link, _) = shim.start(&script("echo hello; read go"));
    link.read_until("hello\n");
    link.client.acknowledge(4).unwrap();
    drop(link);
    for (from, nearest) in [(3, 4), (7, 6)] {
        match shim.try_attach(shim.daemon(1, from)) {
            Err(ostler::shim::client::Refusal::Refused { code: Code::Offset, number, .. }) => {
                assert_eq!(number, nearest)
            }
            other => panic!("{:?}", other.map(|(_, attached)| attached)),
        }
    }
    let (mut link, attached) = shim.attach(1, 4);
    assert_eq!((attached.acked, attached.available), (4, 6));
    assert_eq!(link.next().unwrap(), Heard::Output(4, b"o\n".to_vec()));
    assert!(Path::new(&format!("/proc/{}", shim.child.id())).exists());
}
