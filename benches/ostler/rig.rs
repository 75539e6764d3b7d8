//! A daemon of one's own, its clients, and what the system says of a process.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

pub const TEXT: &str = "how many horses are in the stable tonight, and which of them still want water?";

/// A handler that every end of a session is owed to.
pub const ENDS: &str = include_str!("../ends.lua");

/// Room for everything, and one agent.
pub fn config(agent: &str) -> String {
    format!(
        "[sessions]\nmax_live = 20000\nqueue_limit = 1000000\nqueue_total = 1000000\npark_after = \"never\"\n\
         [agent.default]\n{agent}\nmax_processes = 20000\n"
    )
}

/// The agent of most figures.
pub const ECHO: &str = "kind = \"echo\"";

/// A directory for a daemon: configuration, state, and perhaps a script.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new(config: &str, script: Option<&str>) -> Self {
        let place = Self(tempfile::tempdir().expect("a directory"));
        let mut text = config.to_owned();
        if let Some(script) = script {
            let hooks = place.path().join("hooks");
            std::fs::create_dir(&hooks).expect("a directory");
            std::fs::write(hooks.join("bench.lua"), script).expect("a script");
            text = format!("{text}[hooks]\ndir = {:?}\n", hooks.display().to_string());
        }
        std::fs::write(place.path().join("ostler.toml"), text).expect("a configuration");
        place
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    pub fn database(&self) -> PathBuf {
        self.state().join("ostler.db")
    }

    /// How to start its daemon.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ostler"));
        command
            .args(["serve", "--config"])
            .arg(self.path().join("ostler.toml"))
            .arg("--state-dir")
            .arg(self.state())
            .arg("--socket")
            .arg(self.path().join("sock"))
            .env_remove("RUST_LOG")
            .stderr(Stdio::null());
        command
    }

    pub fn start(&self) -> Daemon<'_> {
        self.start_as(self.command())
    }

    pub fn start_as(&self, command: Command) -> Daemon<'_> {
        let (child, ready_after) = until_ready(command, self.path());
        Daemon { child, place: self, ready_after }
    }

    /// Its daemon, known to be ready by its socket alone: no service manager is about.
    pub fn start_alone(&self) -> Daemon<'_> {
        let began = Instant::now();
        let child = self.command().env_remove("NOTIFY_SOCKET").spawn().expect("the daemon");
        let daemon = Daemon { child, place: self, ready_after: Duration::ZERO };
        while UnixStream::connect(self.path().join("sock")).is_err() || !daemon.client().get("/readyz").0.eq(&200) {
            assert!(began.elapsed() < Duration::from_secs(60), "the daemon is not ready");
            pause();
        }
        daemon
    }
}

/// Starts a program and waits for its READY=1: the program, and how long that took.
pub fn until_ready(mut command: Command, dir: &Path) -> (Child, Duration) {
    let notify = dir.join("notify");
    let _ = std::fs::remove_file(&notify);
    let ready = UnixDatagram::bind(&notify).expect("a socket");
    ready.set_read_timeout(Some(Duration::from_secs(120))).expect("a timeout");
    let began = Instant::now();
    let child = command.env("NOTIFY_SOCKET", &notify).spawn().expect("the program");
    let mut buf = [0u8; 4096];
    let mut said = || {
        let n = ready.recv(&mut buf).expect("READY");
        String::from_utf8_lossy(&buf[..n]).into_owned()
    };
    while !said().contains("READY=1") {}
    (child, began.elapsed())
}

/// What such a program says.
pub fn say_ready() {
    let to = std::env::var_os("NOTIFY_SOCKET").expect("whom to tell");
    let socket = UnixDatagram::unbound().expect("a socket");
    socket.send_to(b"READY=1", to).expect("told");
}

/// For states that can only be asked for.
pub fn pause() {
    std::thread::sleep(Duration::from_millis(2));
}

/// A daemon, killed when dropped.
pub struct Daemon<'p> {
    pub child: Child,
    place: &'p Place,
    pub ready_after: Duration,
}

impl Daemon<'_> {
    pub fn client(&self) -> Client {
        Client(BufReader::new(UnixStream::connect(self.place.path().join("sock")).expect("a connection")))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("a signal");
    }

    /// SIGTERM, and how long it took to go.
    pub fn stop(mut self) -> (Duration, ExitStatus) {
        let began = Instant::now();
        self.signal(Signal::TERM);
        let status = self.child.wait().expect("its status");
        (began.elapsed(), status)
    }

    /// Ends it without a word.
    pub fn kill(mut self) {
        self.child.kill().expect("killed");
        let _ = self.child.wait();
    }

    pub fn status(&self) -> serde_json::Value {
        let (code, body) = self.client().get("/v1/status");
        assert_eq!(code, 200);
        serde_json::from_str(&body).expect("JSON")
    }

    /// Waits until the status says what is wanted.
    pub fn until(&self, what: &str, holds: impl Fn(&serde_json::Value) -> bool) {
        let began = Instant::now();
        loop {
            let status = self.status();
            if holds(&status) {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(120), "not within two minutes: {what}: {status:#}");
            pause();
        }
    }

    /// Waits until nothing runs or waits.
    pub fn settle(&self) {
        self.until("idle", |s| ["running", "queued", "waiting"].iter().all(|n| s["sessions"][n] == 0));
    }

    /// A message to each of many keys, from several clients.
    pub fn message_all(&self, keys: std::ops::Range<usize>) {
        let next = std::sync::atomic::AtomicUsize::new(keys.start);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    let mut client = self.client();
                    loop {
                        let key = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if key >= keys.end {
                            return;
                        }
                        client.accept(key);
                    }
                });
            }
        });
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One keep-alive connection.
pub struct Client(BufReader<UnixStream>);

impl Client {
    fn ask(&mut self, method: &str, path: &str, accept: &str, body: &str) -> (u16, Option<usize>) {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.get_mut().write_all(request.as_bytes()).expect("sent");
        let mut line = String::new();
        self.0.read_line(&mut line).expect("an answer");
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
        let mut length = None;
        loop {
            line.clear();
            self.0.read_line(&mut line).expect("a header");
            if line == "\r\n" {
                return (status, length);
            }
            if let Some(n) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = Some(n.trim().parse().expect("a length"));
            }
        }
    }

    fn whole(&mut self, method: &str, path: &str, body: &str) -> (u16, String) {
        let (status, length) = self.ask(method, path, "application/json", body);
        let mut body = vec![0; length.expect("a length")];
        self.0.read_exact(&mut body).expect("a body");
        (status, String::from_utf8(body).expect("text"))
    }

    pub fn get(&mut self, path: &str) -> (u16, String) {
        self.whole("GET", path, "")
    }

    pub fn post(&mut self, path: &str, body: &str) -> (u16, String) {
        self.whole("POST", path, body)
    }

    /// A message, up to its 202.
    pub fn accept(&mut self, key: usize) {
        let body = format!("{{\"text\":\"{TEXT}\"}}");
        let (status, text) = self.post(&format!("/v1/sessions/bench:{key}/messages"), &body);
        assert_eq!(status, 202, "{text}");
    }

    /// A message and its answer, up to the end of its turn, which completes.
    pub fn turn(&mut self, key: usize) {
        assert!(self.turn_or_cancel(key), "the turn was cancelled");
    }

    /// The same where others reset the session: whether it completed.
    pub fn turn_or_cancel(&mut self, key: usize) -> bool {
        let mut buf = Vec::new();
        self.stream(key, "", |chunk| buf.extend_from_slice(chunk));
        let completed = contains(&buf, b"\"outcome\":\"completed\"");
        assert!(completed || contains(&buf, b"\"outcome\":\"cancelled\""), "{}", String::from_utf8_lossy(&buf));
        completed
    }

    /// A message and its answer's events, as the server's chunks.
    pub fn stream(&mut self, key: usize, query: &str, mut on: impl FnMut(&[u8])) {
        let body = format!("{{\"text\":\"{TEXT}\"}}");
        let path = format!("/v1/sessions/bench:{key}/messages{query}");
        let (status, _) = self.ask("POST", &path, "text/event-stream", &body);
        assert_eq!(status, 200);
        let (mut line, mut chunk) = (String::new(), Vec::new());
        loop {
            line.clear();
            self.0.read_line(&mut line).expect("a chunk");
            let size = usize::from_str_radix(line.trim_end(), 16).expect("a size");
            chunk.resize(size + 2, 0);
            self.0.read_exact(&mut chunk).expect("a chunk's bytes");
            if size == 0 {
                return;
            }
            on(&chunk[..size]);
        }
    }
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    memchr::memmem::find(bytes, what).is_some()
}

/// Memory of a process in KiB, as `smaps_rollup` has it.
#[derive(Clone, Copy)]
pub struct Memory {
    /// Resident, with what is shared with others.
    pub rss: f64,
    /// Private anonymous pages: heaps and stacks, no file, nothing shared.
    pub anonymous: f64,
}

pub fn memory(pid: u32) -> Memory {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("its memory");
    let field = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name)).expect("a size");
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number")
    };
    Memory { rss: field("Rss:"), anonymous: field("Anonymous:") }
}

/// CPU seconds that a process has used, threads that ended included.
pub fn cpu(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("its times");
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("a number");
    (ticks(11) + ticks(12)) / rustix::param::clock_ticks_per_second() as f64
}
