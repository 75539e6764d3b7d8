//! Hooks in the real daemon: reloads under load, and what its events have in them.
#![allow(clippy::unwrap_used, missing_docs)]

mod events;
mod files;
mod hostile;
mod reload;
mod timers;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use ostler::client::{Client, session_path};
use serde_json::{Value, json};

/// Longer than anything takes that works.
const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon of our own, killed when it is dropped.
struct Daemon {
    child: Child,
    dir: tempfile::TempDir,
    client: Client,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What became of a message.
struct Answered {
    turn_id: String,
    text: String,
    outcome: String,
}

impl Daemon {
    /// Starts one with a script, which may write below `out`, and waits until it is ready.
    fn start(script: &str, config: &str) -> Self {
        Self::start_with(&[("a.lua".to_owned(), script.to_owned())], config)
    }

    /// The same with several scripts.
    fn start_with(scripts: &[(String, String)], config: &str) -> Self {
        Self::start_allowing(r#""exec", "fs", "http""#, scripts, config)
    }

    /// The same, which are allowed that only.
    fn start_allowing(allow: &str, scripts: &[(String, String)], config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for sub in ["hooks.d", "out"] {
            std::fs::create_dir(at(sub)).unwrap();
            std::fs::set_permissions(at(sub), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        for (name, script) in scripts {
            put(&at("hooks.d").join(name), script);
        }
        let hooks = format!(
            "[hooks]\nallow = [{allow}]\nfs_roots = [\"{0}\"]\nconfig = {{ out = \"{0}/out/log\" }}\n",
            dir.path().display()
        );
        put(&at("ostler.toml"), &format!("{hooks}{config}"));
        let (child, client) = Self::launch(dir.path());
        Self { child, dir, client }
    }

    /// Starts it again, after a stop.
    fn restart(&mut self) {
        std::fs::remove_file(self.at("notify")).unwrap();
        (self.child, self.client) = Self::launch(self.dir.path());
    }

    /// Starts the daemon of a directory and waits until it is ready.
    fn launch(dir: &Path) -> (Child, Client) {
        let at = |name: &str| dir.join(name);
        let ready = UnixDatagram::bind(at("notify")).unwrap();
        ready.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_ostler"))
            .arg("serve")
            .args([Path::new("--config"), &at("ostler.toml"), Path::new("--state-dir"), &at("state")])
            .args([Path::new("--socket"), &at("sock")])
            .env("NOTIFY_SOCKET", at("notify"))
            .env("RUST_LOG", "error")
            .stdin(Stdio::null())
            .stderr(Stdio::from(std::fs::File::create(at("stderr")).unwrap()))
            .spawn()
            .unwrap();
        let mut said = [0; 4096];
        let failed = loop {
            match ready.recv(&mut said) {
                Ok(n) if said[..n].windows(7).any(|w| w == b"READY=1") => break None,
                Ok(_) => {}
                Err(e) => break Some(e),
            }
        };
        if let Some(e) = failed {
            let _ = child.kill();
            let _ = child.wait();
            panic!("no READY: {e}: {}", std::fs::read_to_string(at("stderr")).unwrap_or_default());
        }
        (child, Client::unix(&at("sock")))
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn stderr(&self) -> String {
        std::fs::read_to_string(self.at("stderr")).unwrap_or_default()
    }

    /// What the script wrote, line by line.
    fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.at("out/log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Another script, in one step.
    fn script(&self, text: &str) {
        put(&self.at("next"), text);
        std::fs::rename(self.at("next"), self.at("hooks.d/a.lua")).unwrap();
    }

    fn get(&self, path: &str) -> Value {
        self.client.get(path).unwrap_or_else(|e| panic!("{path}: {e}: {}", self.stderr()))
    }

    fn post(&self, path: &str, body: Option<&Value>) -> Value {
        self.client.post(path, body).unwrap_or_else(|e| panic!("{path}: {e}: {}", self.stderr()))
    }

    fn stop(&mut self) -> ExitStatus {
        self.post("/v1/stop", Some(&json!({ "reason": "shutdown", "urgency": "graceful" })));
        let pid = rustix::process::Pid::from_child(&self.child);
        let fd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        let until = rustix::event::Timespec::try_from(PATIENCE).unwrap();
        let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        assert_eq!(rustix::event::poll(&mut fds, Some(&until)).unwrap(), 1, "it does not stop: {}", self.stderr());
        self.child.wait().unwrap()
    }
}

/// Sends a message and waits for its turn to end.
fn say(client: &Client, key: &str, text: &str) -> Answered {
    let path = session_path(key, "/messages");
    let until = Instant::now() + PATIENCE;
    let body = json!({ "text": text });
    let method = "POST".parse().unwrap();
    let stream = client.stream_until(&path, method, Some(&body), None, Some(until)).unwrap();
    let mut answered = Answered { turn_id: String::new(), text: String::new(), outcome: String::new() };
    for event in stream {
        let event = event.unwrap();
        match event.event.as_str() {
            "accepted" => event.text("turn_id").clone_into(&mut answered.turn_id),
            "text" => answered.text += event.text("text"),
            "turn_end" => event.text("outcome").clone_into(&mut answered.outcome),
            _ => {}
        }
    }
    answered
}

fn put(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
}
