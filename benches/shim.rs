//! What a shim costs, beside a bare pipe: `cargo bench --bench shim`, `-- --short` for a quick look.
//!
//! Memory is `Private_Dirty` of `smaps_rollup`. A chunk's way is there and back through `cat`: once by two pipes, once
//! through the shim, by turns in one run, so that noise hits both; half of the difference is one way.
#![allow(clippy::unwrap_used, missing_docs)]

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use ostler::shim::client::{Client, Daemon, Event};
use ostler::shim::launch::{Program, Seed, SocketName};
use ostler::shim::machine::Patience;
use ostler::shim::proof::{Place, Token};
use ostler::shim::start::Start;

const HANGS: Duration = Duration::from_secs(60);

struct Shim {
    child: Child,
    client: Client,
    dir_fd: OwnedFd,
    seed: Seed,
    place: Place,
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A shim with an agent.
fn shim(program: &Program, dir: &Path, argv: &[&str]) -> Shim {
    let dir_fd: OwnedFd = File::open(dir).unwrap().into();
    let stat = rustix::fs::fstat(&dir_fd).unwrap();
    let seed = Seed {
        token: Token::new().unwrap(),
        device: stat.st_dev,
        inode: stat.st_ino,
        patience: Patience::default(),
        name: SocketName::new().unwrap(),
    };
    let marks: [(&OsStr, &OsStr); 0] = [];
    let mut spawned = program.spawn(dir, &seed, &marks, |c: &mut Command| Ok((c.spawn()?, ()))).unwrap();
    spawned.listens_until(Instant::now() + HANGS).unwrap();
    let place = Place::here(seed.device, seed.inode).unwrap();
    let daemon = Daemon { token: seed.token.clone(), place, boot: 1, from: 0 };
    let (client, _) = Client::attach(dir_fd.as_fd(), &seed.name, daemon, Instant::now() + HANGS).unwrap();
    let mut shim = Shim { child: spawned.child, client, dir_fd, seed, place };
    let start = Start {
        argv: argv.iter().map(Into::into).collect(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        cwd: "/".into(),
        spool: Some(dir.to_owned()),
        spool_limit: 256 << 20,
        orphan: 60_000,
        ..Start::default()
    };
    shim.client.start(&start).unwrap();
    shim.until(|event| matches!(event, Event::Started { .. }));
    shim
}

impl Shim {
    /// Hears of things until one is wanted.
    fn until(&mut self, mut wanted: impl FnMut(&Event<'_>) -> bool) {
        loop {
            match self.client.receive().unwrap() {
                Some(event) => {
                    if wanted(&event) {
                        return;
                    }
                }
                None => assert!(self.client.wait(HANGS).unwrap()),
            }
        }
    }

    /// Reads so much output and acknowledges it.
    fn read(&mut self, bytes: u64) {
        let end = self.client.received() + bytes;
        while self.client.received() < end {
            self.until(|event| matches!(event, Event::Output { .. }));
            self.client.acknowledge(self.client.received()).unwrap();
        }
    }

    fn attach(&mut self, from: u64) {
        let daemon = Daemon { token: self.seed.token.clone(), place: self.place, boot: 1, from };
        let until = Instant::now() + HANGS;
        self.client = Client::attach(self.dir_fd.as_fd(), &self.seed.name, daemon, until).unwrap().0;
    }

    fn memory(&self, field: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id())).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix(field)).unwrap();
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
    }
}

/// `cat` with two pipes.
struct Bare(Child, ChildStdin, ChildStdout);

fn bare(argv: &[&str]) -> Bare {
    let mut child =
        Command::new(argv[0]).args(&argv[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    Bare(child, stdin, stdout)
}

/// The times of so many ways there and back, in microseconds: by pipes, and through the shim.
fn round_trips(program: &Program, dir: &Path, size: usize, rounds: usize) -> [Vec<f64>; 2] {
    let (mut bare, mut shim) = (bare(&["cat"]), shim(program, dir, &["cat"]));
    let (chunk, mut back) = (vec![b'x'; size], vec![0; size]);
    let mut times = [Vec::new(), Vec::new()];
    let mut number = 0;
    for round in 0..rounds / 100 {
        for _ in 0..100 {
            let begun = Instant::now();
            bare.1.write_all(&chunk).unwrap();
            bare.2.read_exact(&mut back).unwrap();
            times[0].push(begun.elapsed().as_secs_f64() * 1e6);
        }
        for _ in 0..100 {
            let begun = Instant::now();
            number += 1;
            shim.client.input(number, chunk.clone()).unwrap();
            let end = number * size as u64;
            while shim.client.received() < end {
                shim.until(|event| matches!(event, Event::Output { .. }));
            }
            times[1].push(begun.elapsed().as_secs_f64() * 1e6);
            // A daemon acknowledges what it has committed, which is many chunks at once.
            if number % 16 == 0 {
                shim.client.acknowledge(end).unwrap();
            }
        }
        if round == 0 {
            times.iter_mut().for_each(Vec::clear);
        }
    }
    let _ = bare.0.kill();
    let _ = bare.0.wait();
    times.iter_mut().for_each(|t| t.sort_by(f64::total_cmp));
    times
}

fn at(times: &[f64], part: f64) -> f64 {
    times[((times.len() - 1) as f64 * part) as usize]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn memory(program: &Program, many: usize) {
    let dir = tempfile::tempdir().unwrap();
    // Pages that the linker has only just written are counted as dirty until they are on the disk.
    rustix::fs::sync();
    let mut one = shim(program, dir.path(), &["cat"]);
    println!(
        "| one shim at rest: Private_Dirty, PSS | {} KiB, {} KiB |",
        one.memory("Private_Dirty"),
        one.memory("Pss")
    );
    one.client.input(1, vec![b'x'; 8 << 20]).unwrap();
    while one.client.received() < 8 << 20 {
        one.client.flush().unwrap();
        if one.client.receive().unwrap().is_none() {
            one.client.wait(HANGS).unwrap();
        }
    }
    let full = one.memory("Private_Dirty");
    one.client.acknowledge(8 << 20).unwrap();
    one.client.input(2, b"x".to_vec()).unwrap();
    one.read(1);
    // What was acknowledged before this comes back is done with.
    one.client.input(3, b"x".to_vec()).unwrap();
    one.until(|event| matches!(event, Event::Output { .. }));
    println!("| the same with 8 MiB unacknowledged, and after | {full} KiB, {} KiB |", one.memory("Private_Dirty"));
    drop(one);
    let begun = Instant::now();
    let all: Vec<Shim> = (0..many).map(|_| shim(program, dir.path(), &["cat"])).collect();
    let time = begun.elapsed();
    let mean = |field| all.iter().map(|s| s.memory(field)).sum::<u64>() as f64 / many as f64;
    let (dirty, pss) = (mean("Private_Dirty"), mean("Pss"));
    println!("| one of {many}: Private_Dirty, PSS | {dirty:.0} KiB, {pss:.0} KiB |");
    let each = time.as_secs_f64() * 1e3 / many as f64;
    println!("| a shim from its spawn to its agent's, one after the other | {each:.1} ms |");
}

fn main() {
    let short = std::env::args().any(|a| a == "--short") || std::env::var_os("OSTLER_BENCH_SHORT").is_some();
    let program = Program::open(Path::new(env!("CARGO_BIN_EXE_ostler-shim"))).unwrap();
    let (rounds, many, sets) = if short { (400, 20, 1) } else { (20_000, 500, 6) };
    println!("| figure | |\n|---|---|");
    memory(&program, many);
    let dir = tempfile::tempdir().unwrap();
    println!("\n| there and back, {sets} sets of {rounds} | bare pipes | through the shim | more, one way | ratio |");
    println!("|---|---:|---:|---:|---:|");
    for size in [200, 4096] {
        let times: Vec<[Vec<f64>; 2]> = (0..sets).map(|_| round_trips(&program, dir.path(), size, rounds)).collect();
        for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
            let of = |n: usize| median(times.iter().map(|t| at(&t[n], part)).collect());
            let (bare, shim) = (of(0), of(1));
            println!(
                "| {size} B, {name} | {bare:.1} µs | {shim:.1} µs | {:+.1} µs | {:.1} × |",
                (shim - bare) / 2.0,
                shim / bare
            );
        }
    }
    let bytes: u64 = if short { 4 << 20 } else { 100 << 20 };
    let argv = ["head", "-c", &bytes.to_string(), "/dev/zero"];
    let sets = sets.max(5);
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..sets {
        let begun = Instant::now();
        let mut bare = bare(&argv);
        let mut buffer = vec![0; 65_536];
        while bare.2.read(&mut buffer).unwrap() > 0 {}
        bare.0.wait().unwrap();
        times[0].push(begun.elapsed().as_secs_f64() * 1e3);
        let begun = Instant::now();
        let mut attached = shim(&program, dir.path(), &argv);
        attached.read(bytes);
        times[1].push(begun.elapsed().as_secs_f64() * 1e3);
        // Nobody acknowledges: memory, then the spool; and then all of it again.
        let mut unread = shim(&program, dir.path(), &argv);
        while unread.client.received() < bytes {
            unread.until(|event| matches!(event, Event::Output { .. }));
        }
        let begun = Instant::now();
        unread.attach(0);
        unread.read(bytes);
        times[2].push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let [bare, attached, again] = times.map(median);
    println!("\n| {} MiB | bare pipe | attached, with the start of a shim | read back from the spool |", bytes >> 20);
    println!("|---|---:|---:|---:|\n| | {bare:.0} ms | {attached:.0} ms | {again:.0} ms |");
}
