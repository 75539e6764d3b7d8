//! The daemon against the bare limit, in one run on one file system: durable accepts against SQLite commits of the same
//! rows, and the memory of an idle live session against that of a parked thread.
//!
//! `cargo bench --bench ostler`; `OSTLER_BENCH_SHORT=1` only shows that it runs. No pass or fail on time.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

const TEXT: &str = "how many horses are in the stable tonight, and which of them still want water?";
const SCHEMA: &str = include_str!("../src/store/0001_first.sql");

struct Size {
    rounds: usize,
    single: usize,
    many: usize,
    clients: usize,
    sessions: usize,
}

fn main() {
    let short = std::env::var_os("OSTLER_BENCH_SHORT").is_some();
    let size = if short {
        Size { rounds: 1, single: 50, many: 10, clients: 8, sessions: 100 }
    } else {
        Size { rounds: 3, single: 2000, many: 300, clients: 64, sessions: 2000 }
    };
    println!("{}", machine());
    println!("{:<58} {:>14} {:>14} {:>8}", "figure", "ostler", "bare", "ratio");
    let mut single = Vec::new();
    let mut many = Vec::new();
    for _ in 0..size.rounds {
        single.push((accept_single(size.single), commit_single(size.single)));
        many.push((accept_many(size.clients, size.many), commit_many(size.clients, size.many)));
    }
    let (ours, bare) = medians(single);
    row("one client, durable accept (POST to 202), p50, µs", ours, bare);
    let (ours, bare) = medians(many);
    row(&format!("{} clients on as many keys, durable accepts a second", size.clients), ours, bare);
    let (ours, bare) = (session_memory(size.sessions), thread_memory(size.sessions));
    row(&format!("memory of one of {} idle live sessions, KiB", size.sessions), ours, bare);
}

fn row(figure: &str, ours: f64, bare: f64) {
    println!("{figure:<58} {ours:>14.1} {bare:>14.1} {:>8.2}", ours / bare);
}

fn medians(mut pairs: Vec<(f64, f64)>) -> (f64, f64) {
    let middle = pairs.len() / 2;
    pairs.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
    pairs[middle]
}

fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("\t: unknown");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{cores} cores, {}; database and files below {}",
        model.trim_start_matches(['\t', ' ', ':']),
        std::env::temp_dir().display()
    )
}

/// A daemon of its own, ended when dropped.
struct Daemon {
    child: Child,
    dir: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let config = "[sessions]\nmax_live = 12000\nqueue_limit = 1000000\nqueue_total = 1000000\n\
                      [agent.default]\nkind = \"echo\"\nmax_processes = 12000\n";
        std::fs::write(dir.path().join("ostler.toml"), config).expect("a configuration");
        let notify = dir.path().join("notify");
        let ready = std::os::unix::net::UnixDatagram::bind(&notify).expect("a socket");
        let child = Command::new(env!("CARGO_BIN_EXE_ostler"))
            .args(["serve", "--config"])
            .arg(dir.path().join("ostler.toml"))
            .arg("--state-dir")
            .arg(dir.path().join("state"))
            .arg("--socket")
            .arg(dir.path().join("sock"))
            .env("NOTIFY_SOCKET", &notify)
            .stderr(Stdio::null())
            .spawn()
            .expect("the daemon");
        let daemon = Self { child, dir };
        ready.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        let mut buf = [0u8; 4096];
        loop {
            let n = ready.recv(&mut buf).expect("READY");
            if String::from_utf8_lossy(&buf[..n]).contains("READY=1") {
                return daemon;
            }
        }
    }

    fn client(&self) -> Client {
        Client::new(&self.dir.path().join("sock"))
    }

    fn rss_kib(&self) -> f64 {
        rss_kib(self.child.id())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn rss_kib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// One keep-alive connection.
struct Client(BufReader<UnixStream>);

impl Client {
    fn new(socket: &Path) -> Self {
        Self(BufReader::new(UnixStream::connect(socket).expect("a connection")))
    }

    fn post(&mut self, path: &str, body: &str, accept: &str) -> u32 {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.get_mut().write_all(request.as_bytes()).expect("sent");
        let mut line = String::new();
        self.0.read_line(&mut line).expect("an answer");
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
        let mut length = 0;
        loop {
            line.clear();
            self.0.read_line(&mut line).expect("a header");
            if line == "\r\n" {
                break;
            }
            if let Some(n) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = n.trim().parse().expect("a length");
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).expect("a body");
        status
    }

    fn send(&mut self, key: &str) {
        let body = format!("{{\"text\":\"{TEXT}\"}}");
        assert_eq!(self.post(&format!("/v1/sessions/{key}/messages"), &body, "application/json"), 202);
    }
}

fn accept_single(n: usize) -> f64 {
    let daemon = Daemon::start();
    let mut client = daemon.client();
    // Held: what is measured is the accept alone, not the turn that would run beside it.
    assert_eq!(client.post("/v1/hold", "", "*/*"), 202);
    client.send("bench:0");
    let mut times: Vec<Duration> = Vec::with_capacity(n);
    for _ in 0..n {
        let began = Instant::now();
        client.send("bench:0");
        times.push(began.elapsed());
    }
    p50(times)
}

fn accept_many(clients: usize, each: usize) -> f64 {
    let daemon = Daemon::start();
    assert_eq!(daemon.client().post("/v1/hold", "", "*/*"), 202);
    let mut all: Vec<Client> = (0..clients).map(|_| daemon.client()).collect();
    for (i, client) in all.iter_mut().enumerate() {
        client.send(&format!("bench:{i}"));
    }
    let began = Instant::now();
    std::thread::scope(|scope| {
        for (i, client) in all.iter_mut().enumerate() {
            scope.spawn(move || (0..each).for_each(|_| client.send(&format!("bench:{i}"))));
        }
    });
    (clients * each) as f64 / began.elapsed().as_secs_f64()
}

fn p50(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e6
}

/// A database with the same tables and settings, and a session to write into.
fn bare(dir: &Path) -> Connection {
    let conn = Connection::open(dir.join("bare.db")).expect("a database");
    conn.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=4000;")
        .expect("settings");
    conn.execute_batch(SCHEMA).expect("the schema");
    for sid in 1..=64 {
        conn.execute(
            "INSERT INTO sessions (sid, id, key, status, start_reason, agent, created_at, active_at)
             VALUES (?1, ?2, ?3, 'open', 'new', 'default', 0, 0)",
            params![sid, uuid::Uuid::now_v7().to_string(), format!("bench:{sid}")],
        )
        .expect("a session");
    }
    conn
}

/// The rows of one accept.
fn rows(conn: &Connection, sid: i64) {
    let id = || uuid::Uuid::now_v7().to_string();
    conn.prepare_cached("INSERT INTO turns (id, sid, state, messages, created_at) VALUES (?1, ?2, 'queued', 1, 7)")
        .and_then(|mut s| s.execute(params![id(), sid]))
        .expect("a turn");
    let tid = conn.last_insert_rowid();
    conn.prepare_cached("INSERT INTO messages (id, key, sid, tid, text, at) VALUES (?1, ?2, ?3, ?4, ?5, 7)")
        .and_then(|mut s| s.execute(params![id(), format!("bench:{sid}"), sid, tid, TEXT]))
        .expect("a message");
    conn.prepare_cached("UPDATE sessions SET messages=messages+1, active_at=8 WHERE sid=?1")
        .and_then(|mut s| s.execute([sid]))
        .expect("a session");
}

fn commit_single(n: usize) -> f64 {
    let dir = tempfile::tempdir().expect("a directory");
    let conn = bare(dir.path());
    let mut times = Vec::with_capacity(n);
    for _ in 0..n {
        let began = Instant::now();
        conn.execute_batch("BEGIN IMMEDIATE").expect("begun");
        rows(&conn, 1);
        conn.execute_batch("COMMIT").expect("committed");
        times.push(began.elapsed());
    }
    p50(times)
}

/// As many threads hand their rows to one writer thread, which commits whatever waits, and wait for it.
fn commit_many(clients: usize, each: usize) -> f64 {
    let dir = tempfile::tempdir().expect("a directory");
    let conn = bare(dir.path());
    let (jobs, inbox) = mpsc::sync_channel::<(i64, mpsc::SyncSender<()>)>(1024);
    let writer = std::thread::spawn(move || {
        while let Ok(first) = inbox.recv() {
            let mut group = vec![first];
            group.extend(inbox.try_iter().take(511));
            conn.execute_batch("BEGIN IMMEDIATE").expect("begun");
            group.iter().for_each(|(sid, _)| rows(&conn, *sid));
            conn.execute_batch("COMMIT").expect("committed");
            group.iter().for_each(|(_, done)| done.send(()).expect("told"));
        }
    });
    let began = Instant::now();
    std::thread::scope(|scope| {
        for client in 0..clients {
            let jobs = jobs.clone();
            scope.spawn(move || {
                let (done, told) = mpsc::sync_channel(1);
                let sid = i64::try_from(client % 64).unwrap_or(0) + 1;
                for _ in 0..each {
                    jobs.send((sid, done.clone())).expect("handed over");
                    told.recv().expect("told");
                }
            });
        }
    });
    let rate = (clients * each) as f64 / began.elapsed().as_secs_f64();
    drop(jobs);
    writer.join().expect("the writer");
    rate
}

fn session_memory(n: usize) -> f64 {
    let daemon = Daemon::start();
    let mut client = daemon.client();
    client.send("bench:first");
    let before = daemon.rss_kib();
    for i in 0..n {
        client.send(&format!("bench:{i}"));
    }
    // Everything that was asked for has been answered once the daemon says that nothing runs or waits.
    loop {
        let mut status = UnixStream::connect(daemon.dir.path().join("sock")).expect("a connection");
        status.write_all(b"GET /v1/status HTTP/1.0\r\n\r\n").expect("asked");
        let mut text = String::new();
        status.read_to_string(&mut text).expect("told");
        if text.contains("\"running\":0") && text.contains("\"queued\":0") && text.contains("\"waiting\":0") {
            break;
        }
    }
    (daemon.rss_kib() - before) / n as f64
}

fn thread_memory(n: usize) -> f64 {
    let me = std::process::id();
    let (hold, held) = mpsc::channel::<()>();
    let held = std::sync::Arc::new(std::sync::Mutex::new(held));
    let before = rss_kib(me);
    let threads: Vec<_> = (0..n)
        .map(|_| {
            let held = held.clone();
            std::thread::Builder::new()
                .stack_size(ostler::thread::IO_STACK)
                .spawn(move || drop(held.lock().map(|h| h.recv())))
                .expect("a thread")
        })
        .collect();
    // A thread has its stack once it has taken its first steps; the last one made has had time when all are counted.
    while std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count) < n {}
    let after = rss_kib(me);
    drop(hold);
    for thread in threads {
        let _ = thread.join();
    }
    (after - before) / n as f64
}
