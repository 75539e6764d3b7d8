//! A real daemon for a test: the binary with a directory of its own, its API, its log, its notify socket, its database.
//!
//! It waits for what the daemon says and never sleeps. Whatever it started is gone when it is dropped; an orderly exit
//! that leaves anything behind fails the test. What the daemon logged is printed when a test fails.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use ostler::client::{Client, ClientError, SseEvent, session_path};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use ureq::http::Method;

use crate::invariants;

mod diary;
mod events;
mod proc;

pub use diary::Diary;
pub use events::{Events, Turn};
pub use proc::{Lines, Proc, Ran, open_pid, run, wait_pidfd};

/// No test waits longer for anything that is to come.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A pipe with a name on which an agent waits (`wait-file PATH`) until the test opens it.
pub struct Gate {
    pub path: PathBuf,
    open: Option<std::fs::File>,
}

impl Gate {
    /// Whoever waits goes on, and whoever comes later.
    pub fn open(&mut self) {
        self.open = Some(std::fs::File::options().read(true).write(true).open(&self.path).unwrap());
    }
}

/// A pipe with a name that an agent opens (`notify PATH`) when it has come so far.
pub struct Bell {
    pub path: PathBuf,
    rang: Receiver<()>,
}

impl Bell {
    /// Until the agent has rung it.
    #[track_caller]
    pub fn wait(&self) {
        self.rang.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("nobody opens {}", self.path.display()));
    }
}

/// A pipe with a name from which an agent (`paced PATH N`) takes a byte for each line that it says.
pub struct Pace {
    pub path: PathBuf,
    file: std::fs::File,
}

impl Pace {
    /// Lets the agent say so many more lines.
    pub fn step(&mut self, lines: usize) {
        self.file.write_all(&vec![b'.'; lines]).unwrap();
    }
}

/// A daemon, or what is needed to start one.
pub struct Daemon {
    dir: TempDir,
    args: Vec<String>,
    env: Vec<(String, String)>,
    /// What `serve` is run by, if not by itself.
    wrapper: Vec<String>,
    /// Its state directory, below the test's.
    state: String,
    /// A socket that the service manager keeps for it, passed by LISTEN_FDS.
    listener: Option<OwnedFd>,
    proc: Option<Proc>,
    pub log: Arc<Lines>,
    /// What was said to the service manager.
    pub notes: Arc<Lines>,
    boots: usize,
    /// The last end was the daemon's own doing: nothing may be left, and the database is checked.
    orderly: bool,
}

impl Default for Daemon {
    fn default() -> Self {
        Self::new()
    }
}

impl Daemon {
    /// An empty configuration: echo answers.
    pub fn new() -> Self {
        // A short name: the path of a socket has 107 bytes.
        let dir = tempfile::Builder::new().prefix("ost").tempdir_in("/tmp").unwrap();
        std::fs::create_dir(dir.path().join("hooks.d")).unwrap();
        for name in ["diary", "memory"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("ostler.toml"), "").unwrap();
        let notes = Arc::new(Lines::default());
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        let heard = Arc::clone(&notes);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n) = socket.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..n]);
                if text == "END" {
                    return;
                }
                text.lines().for_each(|l| heard.push(l.to_owned()));
            }
        });
        Self {
            dir,
            args: Vec::new(),
            env: Vec::new(),
            wrapper: Vec::new(),
            state: "state".to_owned(),
            listener: None,
            proc: None,
            log: Arc::default(),
            notes,
            boots: 0,
            orderly: false,
        }
    }

    /// The configuration; `@DIR@` is the test's directory, `@FAKE@` the scripted agent.
    pub fn config(self, text: &str) -> Self {
        self.write_config(text);
        self
    }

    pub fn write_config(&self, text: &str) {
        std::fs::write(self.path("ostler.toml"), self.fill(text)).unwrap();
    }

    fn fill(&self, text: &str) -> String {
        text.replace("@DIR@", self.dir.path().to_str().unwrap())
            .replace("@FAKE@", env!("CARGO_BIN_EXE_ostler-fake-agent"))
    }

    /// A script in the hooks' directory.
    pub fn hook(self, name: &str, text: &str) -> Self {
        self.write_hook(name, text);
        self
    }

    pub fn write_hook(&self, name: &str, text: &str) {
        std::fs::write(self.path("hooks.d").join(name), self.fill(text)).unwrap();
    }

    /// One more argument of `serve`.
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A state directory of another name.
    pub fn state(mut self, name: &str) -> Self {
        self.state = name.to_owned();
        self
    }

    /// From now on the socket is the service manager's: it outlives the daemon, to which it is passed.
    pub fn keep_socket(&mut self) {
        self.pass(UnixListener::bind(self.socket()).unwrap());
    }

    /// From now on it is passed this listening socket, which is the service manager's.
    pub fn pass(&mut self, listener: impl Into<OwnedFd>) {
        self.listener = Some(listener.into());
        // A child can be given a descriptor of that number only by itself.
        let script = "exec 3<&0 0</dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\"";
        self.set_wrapper(&["sh", "-c", script, "sh"]);
    }

    fn state_path(&self, name: &str) -> PathBuf {
        self.path(&self.state).join(name)
    }

    /// Has `serve` run by another program, which becomes it.
    pub fn set_wrapper(&mut self, words: &[&str]) {
        self.wrapper = words.iter().map(|w| (*w).to_owned()).collect();
    }

    /// Something in the test's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        path
    }

    pub fn gate(&self, name: &str) -> Gate {
        Gate { path: self.fifo(name), open: None }
    }

    pub fn bell(&self, name: &str) -> Bell {
        let path = self.fifo(name);
        let (ring, rang) = crossbeam_channel::bounded(1);
        let listened = path.clone();
        std::thread::spawn(move || {
            if std::fs::File::open(listened).is_ok() {
                let _ = ring.send(());
            }
        });
        Bell { path, rang }
    }

    pub fn pace(&self, name: &str) -> Pace {
        let path = self.fifo(name);
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        Pace { path, file }
    }

    /// What a session's agents wrote down; see [`kept`].
    pub fn diary(&self, session: &str) -> Diary {
        Diary::read(&self.path("diary").join(session))
    }

    pub fn socket(&self) -> PathBuf {
        self.path("sock")
    }

    /// The binary with a clean environment, which knows this daemon's socket.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ostler"));
        command.args(args);
        self.dress(&mut command);
        command
    }

    fn dress(&self, command: &mut Command) {
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", self.dir.path());
        command.env("OSTLER_SOCKET", self.socket()).env("TZ", "UTC").current_dir("/");
    }

    /// `serve` on this daemon's state, without a service manager.
    pub fn serve_command(&self) -> Command {
        let mut command = match self.wrapper.split_first() {
            None => self.command(&["serve"]),
            Some((program, args)) => {
                let mut command = Command::new(program);
                command.args(args).arg(env!("CARGO_BIN_EXE_ostler")).arg("serve");
                self.dress(&mut command);
                command
            }
        };
        command.env_remove("OSTLER_SOCKET");
        command.arg("--config").arg(self.path("ostler.toml")).arg("--state-dir").arg(self.path(&self.state));
        command.arg("--socket").arg(self.socket()).args(&self.args).envs(self.env.iter().map(|(n, v)| (n, v)));
        command
    }

    /// Starts it and waits for READY.
    #[track_caller]
    pub fn start(mut self) -> Self {
        self.boot();
        self
    }

    #[track_caller]
    pub fn boot(&mut self) {
        let from = self.notes.count();
        self.spawn();
        self.wait_ready(from);
    }

    /// Starts it and waits for nothing.
    pub fn spawn(&mut self) {
        assert!(self.proc.is_none(), "it runs already");
        let mut command = self.serve_command();
        command.env("NOTIFY_SOCKET", self.path("notify")).stdout(Stdio::null());
        command.stdin(self.listener.as_ref().map_or(Stdio::null(), |l| l.try_clone().unwrap().into()));
        command.stderr(Stdio::piped()).process_group(0);
        let mut proc = Proc::spawn(&mut command);
        let stderr = BufReader::new(proc.child.stderr.take().unwrap());
        let (log, notes) = (Arc::clone(&self.log), Arc::clone(&self.notes));
        self.boots += 1;
        let gone = format!("GONE {}", self.boots);
        std::thread::spawn(move || {
            for line in stderr.split(b'\n').map_while(Result::ok) {
                log.push(String::from_utf8_lossy(&line).into_owned());
            }
            log.end();
            // Whoever waits for READY must not wait for a dead one.
            notes.push(gone);
        });
        self.proc = Some(proc);
    }

    #[track_caller]
    pub fn wait_ready(&mut self, from: usize) {
        let gone = format!("GONE {}", self.boots);
        let said = self.notes.find(from, "READY=1", |l| l == "READY=1" || l == gone);
        assert_eq!(said, "READY=1", "it did not start: {:#?}", self.log.all());
    }

    /// Waits until it is ready or gone; whether it is ready.
    #[allow(dead_code, reason = "for the tests with faults")]
    #[track_caller]
    pub fn ready_or_gone(&mut self, from: usize) -> bool {
        let gone = format!("GONE {}", self.boots);
        self.notes.find(from, "READY=1, or its end", |l| l == "READY=1" || l == gone) == "READY=1"
    }

    /// Whether it had ended by a place in the notes.
    pub fn was_gone(&self, from: usize, to: usize) -> bool {
        let gone = format!("GONE {}", self.boots);
        self.notes.all()[from..to].contains(&gone)
    }

    /// Its end, whatever brings it. Nothing is checked, and what its agents left stays.
    #[allow(dead_code, reason = "for the tests with faults")]
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        let mut proc = self.proc.take().unwrap();
        let Some(status) = proc.wait_for(PATIENCE) else {
            self.proc = Some(proc);
            panic!("it does not end");
        };
        self.orderly = false;
        status
    }

    /// Runs `serve` where it is expected to fail: code and stderr.
    pub fn refuses(&self) -> Ran {
        run(&mut self.serve_command(), "")
    }

    pub fn pid(&self) -> u32 {
        self.proc.as_ref().unwrap().pid()
    }

    pub fn client(&self) -> Client {
        Client::unix(&self.socket())
    }

    pub fn get(&self, path: &str) -> Value {
        self.client().get(path).unwrap()
    }

    /// A request that is refused: status and code.
    #[track_caller]
    pub fn refusal(&self, method: Method, path: &str, body: Option<&Value>) -> (u16, String) {
        let e = self.client().request(method, path, body, PATIENCE).unwrap_err();
        (e.status, e.code)
    }

    pub fn show(&self, key: &str) -> Value {
        self.get(&session_path(key, ""))
    }

    pub fn status(&self) -> Value {
        self.get("/v1/status")
    }

    /// `cancel`, `reset`, …
    #[track_caller]
    pub fn act(&self, key: &str, what: &str) -> Value {
        self.client().post(&session_path(key, &format!("/{what}")), None).unwrap()
    }

    /// A message, accepted; the 202's body.
    #[track_caller]
    pub fn post(&self, key: &str, text: &str) -> Value {
        self.try_post(key, text, None).unwrap()
    }

    /// A turn of the fake agent that has said "begun" and waits for the gate; then it does `then` (such as `; say done`).
    #[track_caller]
    pub fn waiting(&self, key: &str, then: &str) -> (Gate, Events, Value) {
        let (gate, mut events) = (self.gate("gate"), self.events(key));
        let turn = self.post(key, &format!("say begun; wait-file {}{then}", gate.path.display()));
        events.until("text");
        (gate, events, turn)
    }

    #[track_caller]
    pub fn post_id(&self, key: &str, text: &str, id: &str) -> Value {
        self.try_post(key, text, Some(id)).unwrap()
    }

    pub fn try_post(&self, key: &str, text: &str, id: Option<&str>) -> Result<Value, ClientError> {
        let mut body = json!({ "text": text });
        if let Some(id) = id {
            body["id"] = id.into();
        }
        let path = session_path(key, "/messages");
        self.client().request(Method::POST, &path, Some(&body), PATIENCE).map(|r| {
            assert_eq!(r.status, 202);
            r.body
        })
    }

    /// A message and its whole turn.
    #[track_caller]
    pub fn turn(&self, key: &str, text: &str) -> Turn {
        self.turn_body(key, &json!({ "text": text }))
    }

    #[track_caller]
    pub fn turn_body(&self, key: &str, body: &Value) -> Turn {
        let until = Some(Instant::now() + PATIENCE);
        let path = session_path(key, "/messages");
        Turn::read(self.client().stream_until(&path, Method::POST, Some(body), None, until).unwrap())
    }

    /// A message and its answer.
    #[track_caller]
    pub fn send(&self, key: &str, text: &str) -> String {
        let turn = self.turn(key, text);
        assert_eq!(turn.outcome(), "completed", "{turn:?}");
        turn.text()
    }

    /// A client talks to the key without a pause, each message under an id of its own (`m0` and on), while something is
    /// done to the daemon: its requests may be cut off, but never is nobody there. What is done may wait for so many more
    /// messages to be accepted. Returns how many were.
    pub fn talked_to(&mut self, key: &str, done: impl FnOnce(&mut Self, &dyn Fn(usize))) -> i64 {
        let over = AtomicBool::new(false);
        let (sent, progress) = crossbeam_channel::unbounded();
        let (client, path) = (self.client(), session_path(key, "/messages"));
        std::thread::scope(|scope| {
            let over = &over;
            let talker = scope.spawn(move || {
                let mut n = 0i64;
                while !over.load(Ordering::SeqCst) {
                    let body = json!({ "text": "x", "id": format!("m{n}") });
                    match client.request(Method::POST, &path, Some(&body), PATIENCE) {
                        Ok(_) => {
                            n += 1;
                            sent.send(n).unwrap();
                        }
                        // Cut off in the stop, perhaps: again, under its id.
                        Err(e) if e.code == "queue_full" => {}
                        Err(e) => assert!(e.code != "unreachable" && e.is_passing(), "{e:?}"),
                    }
                }
                n
            });
            done(self, &|more| (0..more).for_each(|_| assert!(progress.recv_timeout(PATIENCE).is_ok())));
            over.store(true, Ordering::SeqCst);
            talker.join().unwrap()
        })
    }

    /// The events of a key from its beginning, and on.
    pub fn events(&self, key: &str) -> Events {
        Events::open(&self.client(), &session_path(key, "/events?after=0"), None)
    }

    /// What a key's event stream holds now.
    pub fn past(&self, key: &str) -> Vec<SseEvent> {
        Events::open(&self.client(), &session_path(key, "/events?after=0&follow=0"), None).rest()
    }

    pub fn transcript(&self, key: &str) -> Vec<Value> {
        self.get(&session_path(key, "/transcript?limit=1000"))["entries"].as_array().unwrap().clone()
    }

    /// What was said in a key's transcript: `role: text`.
    pub fn said(&self, key: &str) -> Vec<String> {
        let line = |e: &Value| format!("{}: {}", e["role"].as_str().unwrap(), e["text"].as_str().unwrap());
        self.transcript(key).iter().map(line).collect()
    }

    /// A command of the same binary.
    pub fn cli(&self, args: &[&str]) -> Ran {
        self.cli_in(args, "")
    }

    pub fn cli_in(&self, args: &[&str], input: &str) -> Ran {
        run(&mut self.command(args), input)
    }

    /// A raw connection.
    pub fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Raw bytes, and everything that comes back until the other side closes.
    pub fn raw_request(&self, bytes: &[u8]) -> String {
        let mut stream = self.raw();
        // An answer may come, and the connection close, before all was taken.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[track_caller]
    pub fn wait_log(&self, needle: &str) -> String {
        self.log.find(0, needle, |l| l.contains(needle))
    }

    pub fn signal(&self, signal: Signal) {
        self.proc.as_ref().unwrap().signal(signal);
    }

    pub fn sigterm(&self) {
        self.signal(Signal::TERM);
    }

    /// Its exit code, once it is gone by itself. Nothing may be left of it, and its database is sound.
    #[track_caller]
    pub fn exit_code(&mut self) -> i32 {
        let mut proc = self.proc.take().unwrap();
        let Some(status) = proc.wait_for(PATIENCE) else {
            self.proc = Some(proc);
            panic!("it does not exit");
        };
        self.orderly = true;
        self.log.wait_ended(self.boots);
        let code = status.code().unwrap_or_else(|| panic!("{status}"));
        let left = self.leftovers();
        assert!(left.is_empty(), "left behind: {left:?}");
        assert!(!self.state_path("ostler.db-wal").exists(), "the database's log was not folded in; exit code {code}");
        self.check(code != 1);
        code
    }

    /// SIGTERM, and its exit code.
    #[track_caller]
    pub fn stop(&mut self) -> i32 {
        self.sigterm();
        self.exit_code()
    }

    /// A stop in order, and a start on the same state.
    #[track_caller]
    pub fn restart(&mut self) {
        assert_eq!(self.stop(), 0);
        self.boot();
    }

    /// SIGKILL; what its agents left stays.
    pub fn kill9(&mut self) {
        let mut proc = self.proc.take().unwrap();
        proc.signal(Signal::KILL);
        assert!(proc.wait_for(PATIENCE).is_some());
        self.orderly = false;
    }

    /// The database of a daemon that is not there.
    pub fn db(&self) -> rusqlite::Connection {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        rusqlite::Connection::open_with_flags(self.state_path("ostler.db"), flags).unwrap()
    }

    /// One value from the database.
    pub fn sql<T: rusqlite::types::FromSql>(&self, sql: &str) -> T {
        self.db().query_row(sql, [], |r| r.get(0)).unwrap()
    }

    /// Every promise that the database shows. `closed`: a stop in order left it.
    #[track_caller]
    pub fn check(&self, closed: bool) {
        invariants::check(&self.db(), closed);
    }

    /// Ends what a daemon that was killed left running.
    pub fn end_leftovers(&self) {
        for (pid, _) in self.leftovers() {
            if let Some(fd) = open_pid(pid) {
                let _ = rustix::process::pidfd_send_signal(&fd, Signal::KILL);
                assert!(wait_pidfd(&fd, PATIENCE) || std::thread::panicking(), "process {pid} cannot be ended");
            }
        }
    }

    /// Processes that stand in the test's directory or have it in their environment, and shims that say that they are of its
    /// state directory.
    pub fn leftovers(&self) -> Vec<(u32, String)> {
        let dir = self.dir.path();
        let state = ostler::proc::mark::state_id(&self.path(&self.state));
        let of_state = state.map(|id| format!("{}={id}\0", ostler::proc::mark::STATE_VAR));
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
            if pid == std::process::id() || self.proc.as_ref().is_some_and(|p| p.pid() == pid) {
                continue;
            }
            let inside = std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
            let marked = || {
                let home = format!("HOME={}\0", dir.display());
                let has = |e: &[u8], text: &str| memchr::memmem::find(e, text.as_bytes()).is_some();
                std::fs::read(entry.path().join("environ"))
                    .is_ok_and(|e| has(&e, &home) || of_state.as_ref().is_ok_and(|mark| has(&e, mark)))
            };
            if inside || marked() {
                let name = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                found.push((pid, String::from_utf8_lossy(&name).replace('\0', " ")));
            }
        }
        found
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut proc) = self.proc.take() {
            proc.signal(Signal::KILL);
            assert!(proc.wait_for(PATIENCE).is_some() || std::thread::panicking());
        }
        self.end_leftovers();
        if let Ok(socket) = UnixDatagram::unbound() {
            let _ = socket.send_to(b"END", self.path("notify"));
        }
        if std::thread::panicking() {
            eprintln!("--- what the daemon logged ---\n{}\n------", self.log.all().join("\n"));
        }
    }
}

/// An agent `default` that is the scripted one, with more lines of its table.
pub fn fake(flags: &[&str], more: &str) -> String {
    let mut command = vec!["@FAKE@"];
    command.extend(flags);
    format!("[agent.default]\nkind = \"acp\"\ncommand = {}\n{more}\n", json!(command))
}

/// The same, where a daemon's death is the agent's too.
pub fn not_kept(flags: &[&str], more: &str) -> String {
    format!("{NEVER}{}", fake(flags, more))
}

/// Agents are children of the daemon.
pub const NEVER: &str = "[agents]\nkeep = \"never\"\n";

/// Agents that write down what they hear and say: the scripted one for each key (`flags` and `more` as in [`fake`]), the
/// same as a command for `local:x*`, and as one that is always allowed for `local:y*`.
pub fn kept(flags: &[&str], more: &str) -> String {
    let env = "env = { FAKE_AGENT_DIARY = \"@DIR@/diary\", FAKE_AGENT_STATE = \"@DIR@/memory\" }";
    let mut command = vec!["@FAKE@"];
    command.extend(flags);
    format!(
        "[agent.default]\nkind = \"acp\"\ncommand = {}\n{env}\n{more}\n\
         [agent.command]\nkind = \"exec\"\ncommand = [\"@FAKE@\", \"--exec\"]\n{env}\n\
         [agent.allowed]\nkind = \"acp\"\ncommand = [\"@FAKE@\"]\npermission = \"allow\"\n{env}\n\
         [[route]]\nmatch = \"local:x*\"\nagent = \"command\"\n\
         [[route]]\nmatch = \"local:y*\"\nagent = \"allowed\"\n",
        json!(command)
    )
}

/// Whether a file is where nobody can say that it is used: its bytes.
pub fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}
