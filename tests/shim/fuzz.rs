//! Frames that nobody vouches for, from both sides. `SHIM_FRAMES` says how many; a failing seed is printed, and
//! `SHIM_SEED` begins with it.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Instant;

use ostler::shim::client::{Client, Daemon};
use ostler::shim::conn;
use ostler::shim::frame::{
    Attached, Code, Confined, Exit, Kept, Ladder, Reply, Request, Rung, Standing, Status, Taken, VERSION, Who,
};
use ostler::shim::input::Input;
use ostler::shim::launch::{Seed, SocketName};
use ostler::shim::proof::{self, Challenges, Claim, Place, Token};
use ostler::shim::start::{Confinement, Rule, Start};

use crate::rig::{HANGS, Shim, lives, script, status};

/// A small generator (splitmix64).
struct Dice(u64);

impl Dice {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }
}

fn frames(normal: usize) -> usize {
    std::env::var("SHIM_FRAMES").map_or(normal, |n| n.parse::<usize>().unwrap())
}

fn first_seed() -> u64 {
    std::env::var("SHIM_SEED").map_or(1, |n| n.parse().unwrap())
}

/// Says which seed was at work when a test fails.
struct Seeded(u64);

impl Drop for Seeded {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("SHIM_SEED={}", self.0);
        }
    }
}

const PLACE: Place = Place { device: 1, inode: 2, machine: [3; 16] };

fn start() -> Start {
    Start {
        confine: Some(Confinement {
            handled: 0xffff,
            scopes: 3,
            least: 0,
            rules: vec![Rule { path: "/".into(), access: 9 }],
        }),
        spool: Some("/tmp".into()),
        cgroup: Some("/sys".into()),
        ..script("exit")
    }
}

/// A good request.
fn request(dice: &mut Dice, start: &[u8]) -> Vec<u8> {
    let bytes = &start[..start.len().min(60_000)];
    let number = dice.next() % 5;
    let ladder = Ladder { input: 1, term: 1, kill: 1, linger: 1 };
    let request = match dice.below(10) {
        0 => Request::Hello { version: VERSION, nonce: [7; 32] },
        1 => Request::Attach(ostler::shim::frame::Attach { boot: 1, from: 0, place: PLACE, proof: [1; 32] }),
        2 => Request::Start { last: dice.below(2) == 0, bytes },
        3 => Request::Input { number, last: dice.below(2) == 0, bytes: &bytes[..dice.below(bytes.len())] },
        4 => Request::CloseInput { number },
        5 => Request::Ack { offset: dice.next() % 100 },
        6 => Request::AckExit,
        7 => Request::Orphan { after: dice.next(), lease: dice.next() % 2 * dice.next() },
        8 => Request::End { rung: Rung::Terminate, ladder },
        _ => Request::Input { number: number + 1, last: true, bytes: b"{}\n" },
    };
    let mut packet = Vec::new();
    request.encode(&mut packet);
    packet
}

/// A good reply.
fn reply(dice: &mut Dice) -> Vec<u8> {
    let taken = Taken { highest: dice.next() % 9, waiting: 1, written: 2, closed: false };
    let kept = Kept { spooled: 1, full: false, error: 0, failures: 0 };
    let (agent, confined) = (Who { pid: 5, start: 6 }, Confined::default());
    let bytes = &[b'o'; 3000][..1 + dice.below(2999)];
    let reply = match dice.below(10) {
        0 => Reply::Challenge { version: VERSION, nonce: [2; 32], shim: agent, place: PLACE, proof: [3; 32] },
        1 => Reply::Attached(Attached {
            standing: Standing::Running,
            agent: Some(agent),
            confined,
            taken,
            acked: 0,
            available: dice.next() % 99,
            kept,
            status: None,
        }),
        2 => Reply::Started { agent, confined },
        3 => Reply::Taken(taken),
        4 => Reply::Output { offset: 0, bytes },
        5 => Reply::Stderr { dropped: 1, bytes },
        6 => Reply::Spool(kept),
        7 => Reply::Ending,
        8 => Reply::Exit(Exit { status: Status::Code(1), left: 3, named: vec![1, 2, 3] }),
        _ => Reply::Error { code: Code::Gap, number: 4, text: "a frame is missing" },
    };
    let mut packet = Vec::new();
    reply.encode(&mut packet);
    packet
}

/// Changes some of it: bits, bytes, lengths, the end.
fn mutate(dice: &mut Dice, packet: &mut Vec<u8>) {
    for _ in 0..dice.below(4) {
        let at = dice.below(packet.len().max(1));
        match dice.below(7) {
            0 if !packet.is_empty() => packet[at] ^= 1 << dice.below(8),
            1 if !packet.is_empty() => packet[at] = [0, 1, 0x7f, 0x80, 0xff][dice.below(5)],
            2 => packet.truncate(at),
            3 => packet.extend_from_slice(&dice.next().to_le_bytes()),
            4 if packet.len() >= 16 => packet[4..8].copy_from_slice(&(dice.next() as u32).to_le_bytes()),
            5 if packet.len() >= 16 => packet[8..16].copy_from_slice(&dice.next().to_le_bytes()),
            6 if packet.len() >= 24 => packet[16..20].copy_from_slice(&u32::MAX.to_le_bytes()),
            _ => {}
        }
    }
    // A length that is right again leads deeper.
    if dice.below(2) == 0 && packet.len() >= 16 {
        let length = u32::try_from(packet.len() - 16).unwrap();
        packet[4..8].copy_from_slice(&length.to_le_bytes());
    }
    packet.truncate(65_536);
}

#[test]
fn no_packet_makes_the_codec_panic_or_take_memory() {
    let before: u64 = status(std::process::id(), "VmHWM").trim_end_matches(" kB").parse().unwrap();
    let good = start().encode();
    let (mut input, mut understood) = (Input::default(), [0_usize; 2]);
    for seed in first_seed()..first_seed() + frames(100_000) as u64 {
        let (mut dice, _seeded) = (Dice(seed), Seeded(seed));
        let mut packet = request(&mut dice, &good);
        mutate(&mut dice, &mut packet);
        if let Ok(request) = Request::decode(&packet) {
            understood[0] += 1;
            // What is understood comes back as it was.
            let mut again = Vec::new();
            request.encode(&mut again);
            assert!(Request::decode(&again).as_ref() == Ok(&request));
            match request {
                Request::Start { bytes, .. } => drop(Start::decode(bytes)),
                Request::Input { number, last, bytes } => drop(input.piece(number, last, bytes)),
                Request::CloseInput { number } if seed % 64 == 0 => drop(input.close(number)),
                _ => {}
            }
            if input.taken().closed || seed % 512 == 0 {
                input = Input::default();
            }
        }
        let mut whole = good.clone();
        mutate(&mut dice, &mut whole);
        if let Ok(start) = Start::decode(&whole) {
            assert!(!start.argv.is_empty());
        }
        let mut packet = reply(&mut dice);
        mutate(&mut dice, &mut packet);
        if let Ok(reply) = Reply::decode(&packet) {
            understood[1] += 1;
            let mut again = Vec::new();
            reply.encode(&mut again);
            assert!(Reply::decode(&again).as_ref() == Ok(&reply));
        }
        let packet: Vec<u8> = (0..dice.below(64)).map(|_| dice.next() as u8).collect();
        let _ = (Request::decode(&packet), Reply::decode(&packet), Seed::decode(&packet));
    }
    assert!(understood.iter().all(|n| *n > frames(100_000) / 10), "most frames lead somewhere: {understood:?}");
    let after: u64 = status(std::process::id(), "VmHWM").trim_end_matches(" kB").parse().unwrap();
    assert!(after < before + 64 * 1024, "{before} to {after} KiB");
}

/// The most private memory that a shim has by now, in KiB.
fn most_memory(pid: u32) -> u64 {
    status(pid, "VmHWM").trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn no_packet_makes_the_shim_die_or_grow() {
    let good = start().encode();
    let shim = Shim::new();
    let (mut link, who) = shim.start(&shim.with_spool(script("trap '' TERM; cat >/dev/null; exec sleep 1000")));
    let many = frames(100_000) / 10;
    let (mut sent, mut cut, mut seed) = (0, 0, first_seed());
    while sent < many {
        let (mut dice, _seeded) = (Dice(seed), Seeded(seed));
        seed += 1;
        let mut packet = request(&mut dice, &good);
        mutate(&mut dice, &mut packet);
        // What would end the agent by right is left out.
        let ends = match Request::decode(&packet) {
            Ok(Request::End { .. } | Request::AckExit) => true,
            Ok(Request::Orphan { after, lease }) => after < 1 << 20 || (lease > 0 && lease < 1 << 20),
            _ => false,
        };
        if ends {
            continue;
        }
        sent += 1;
        let over = match rustix::net::send(link.client.descriptor(), &packet, rustix::net::SendFlags::NOSIGNAL) {
            Ok(_) => Request::decode(&packet).is_err(),
            Err(_) => true,
        };
        let closed = over
            || loop {
                match link.client.receive() {
                    Ok(Some(_)) => {}
                    Ok(None) => break false,
                    Err(_) => break true,
                }
            };
        if closed {
            link.closes();
            cut += 1;
            link = shim.attach(1, 0).0;
        }
    }
    assert!(lives(shim.child.id()) && lives(who.pid) && cut > 0, "{cut} of {sent}");
    let most = most_memory(shim.child.id());
    assert!(most < 12 * 1024, "{most} KiB");
}

#[test]
fn no_greeting_makes_the_shim_die() {
    let shim = Shim::new();
    for seed in first_seed()..first_seed() + frames(100_000) as u64 / 100 {
        let (mut dice, _seeded) = (Dice(seed), Seeded(seed));
        let socket: OwnedFd = {
            use rustix::net::{AddressFamily, SocketType, connect, socket};
            let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
            connect(&socket, &conn::address(shim.dir_fd.as_fd(), shim.seed.name.as_str()).unwrap()).unwrap();
            socket
        };
        for _ in 0..2 {
            let mut packet = request(&mut dice, b"start");
            mutate(&mut dice, &mut packet);
            let _ = rustix::net::send(&socket, &packet, rustix::net::SendFlags::NOSIGNAL);
        }
    }
    shim.attach(1, 0);
}

#[test]
fn no_packet_makes_the_client_panic() {
    // A shim of the test's own, which has the token and says anything.
    let dir = tempfile::tempdir().unwrap();
    let dir_fd: OwnedFd = std::fs::File::open(dir.path()).unwrap().into();
    let (name, token) = (SocketName::new().unwrap(), Token::new().unwrap());
    let (listener, _) = conn::listen(dir_fd.as_fd(), name.as_str()).unwrap();
    rustix::io::ioctl_fionbio(&listener, false).unwrap();
    let daemon = Daemon { token: token.clone(), place: PLACE, boot: 1, from: 0 };
    let many = frames(100_000) as u64 / 20;
    std::thread::scope(|scope| {
        let heard = scope.spawn(|| {
            let (mut events, mut lost) = (0_u64, 0_u64);
            while lost < many / 8 {
                let attached = Client::attach(dir_fd.as_fd(), &name, daemon.clone(), Instant::now() + HANGS);
                let Ok((mut client, _)) = attached else {
                    lost += 1;
                    continue;
                };
                loop {
                    match client.receive() {
                        Ok(Some(_)) => events += 1,
                        Ok(None) => assert!(client.wait(HANGS).unwrap()),
                        Err(_) => break,
                    }
                }
                lost += 1;
            }
            events
        });
        for seed in first_seed()..first_seed() + many / 8 {
            let (mut dice, _seeded) = (Dice(seed), Seeded(seed));
            let socket = rustix::net::accept(&listener).unwrap();
            let mut buffer = [0; 4096];
            let mut hear = || {
                rustix::net::recv(&socket, &mut buffer, rustix::net::RecvFlags::empty())
                    .map(|(n, _)| buffer[..n].to_vec())
            };
            let packet = hear().unwrap();
            let Ok(Request::Hello { nonce, .. }) = Request::decode(&packet) else { panic!("no greeting") };
            let who = Who { pid: std::process::id(), start: 1 };
            let both = Challenges { daemon: nonce, shim: [9; 32] };
            let proof = proof::prove(&token, VERSION, &both, &PLACE, &Claim::Shim { pid: who.pid, start: who.start });
            let say = |packet: &[u8]| rustix::net::send(&socket, packet, rustix::net::SendFlags::NOSIGNAL).is_ok();
            let mut packet = Vec::new();
            Reply::Challenge { version: VERSION, nonce: both.shim, shim: who, place: PLACE, proof }.encode(&mut packet);
            if dice.below(8) == 0 {
                mutate(&mut dice, &mut packet);
            }
            if !say(&packet) || hear().is_ok_and(|p| p.is_empty()) {
                continue;
            }
            for _ in 0..8 {
                let mut packet = reply(&mut dice);
                mutate(&mut dice, &mut packet);
                if packet.is_empty() || !say(&packet) {
                    break;
                }
            }
        }
        drop(listener);
        assert!(heard.join().unwrap() > 0);
    });
}
