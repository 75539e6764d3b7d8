//! Configuration: text in, [`Config`] out. Owns every limit, the stop budget and its check.
//!
//! Pure but for [`load`], which reads the file, and the look-ups in [`paths`]. An error names the file, the line and
//! the key. It must not know the daemon: what a limit does is decided where it is enforced.
//!
//! Reading order: the structs here; `read` turns text into values; `check` refuses what cannot be; [`keys`] is the one
//! table of keys, from which the manual and the sample are made; [`paths`] says where the files are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::event::string_enum;
use crate::model::names;

pub mod bounded;
mod check;
pub mod keys;
mod locate;
pub mod login;
pub mod paths;
mod raw;
mod read;
mod show;
mod text;

pub use crate::model::keep_policy::Keep;
use crate::model::offers::Pick;
pub use crate::model::settings::{Budget, Busy, Confine, Consent, OnInterrupt, Resume};
pub use check::{is_unseen, open_secrets};
pub use keys::{KEYS, KeyDoc, diff, needs_restart};
pub use paths::{Paths, find_file};
pub use show::show;
pub use text::{duration_text, parse_duration, parse_maybe};

/// A duration that may be "never".
pub type Maybe = Option<Duration>;

string_enum! {
    /// The kind of agent that runs a conversation.
    AgentKind {
        /// A program that speaks the Agent Client Protocol on stdin and stdout.
        Acp = "acp",
        /// A command, once a turn.
        Exec = "exec",
        /// An OpenAI-compatible endpoint.
        Openai = "openai",
        /// A Lua function.
        Lua = "lua",
        /// Repeats the message.
        Echo = "echo",
    }
}

string_enum! {
    /// Who answers a permission request of an agent.
    PermissionPolicy {
        /// Hooks, then the client.
        Ask = "ask",
        /// An offered `allow_once`.
        Allow = "allow",
        /// An offered reject option.
        Deny = "deny",
    }
}

/// The whole configuration, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[daemon]`
    pub daemon: Daemon,
    /// `[http]`, absent: unix socket only.
    pub http: Option<Http>,
    /// `[sessions]`
    pub sessions: Sessions,
    /// `[shutdown]`
    pub shutdown: Budget,
    /// `[hooks]`
    pub hooks: Hooks,
    /// `[retention]`
    pub retention: Retention,
    /// `[agents]`: what holds for all agents that are processes.
    pub agents: Agents,
    /// `[agent.NAME]`; always has `default`, which answers keys without a route (echo if it is not configured).
    pub agent: BTreeMap<String, Agent>,
    /// `[[route]]`, in order.
    pub routes: Vec<Route>,
    /// The file it came from, `None` for the defaults.
    pub file: Option<PathBuf>,
    /// Warnings about settings without effect, a line each (`FILE:LINE: KEY: why`).
    pub warnings: Vec<String>,
}

/// `[daemon]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Daemon {
    /// A log filter; `RUST_LOG` wins.
    #[serde(deserialize_with = "text::filter")]
    pub log: String,
}

/// `[http]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Where the TCP listener stands.
    #[serde(deserialize_with = "text::address")]
    pub listen: std::net::SocketAddr,
    /// The bearer token's file; needed for anything but loopback.
    pub token_file: Option<PathBuf>,
}

/// `[sessions]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sessions {
    /// Live sessions at once.
    pub max_live: usize,
    /// After this an idle session is parked.
    #[serde(deserialize_with = "text::maybe")]
    pub park_after: Maybe,
    /// How long an agent that has worked between turns is not parked.
    #[serde(deserialize_with = "text::maybe")]
    pub background_hold: Maybe,
    /// After this an idle session is over.
    #[serde(deserialize_with = "text::maybe")]
    pub idle_reset: Maybe,
    /// Local hour and minute at which sessions are over.
    #[serde(deserialize_with = "text::local_time")]
    pub daily_reset: Option<(i8, i8)>,
    /// Queued messages a session.
    pub queue_limit: usize,
    /// Waiting messages in all.
    pub queue_total: usize,
    /// The most that an agent may say in one turn, in bytes.
    #[serde(deserialize_with = "text::size")]
    pub answer: u64,
    /// What a message during a turn does.
    pub busy: Busy,
    /// When interrupted sessions go on.
    pub resume: Resume,
    /// How old a mark may be.
    #[serde(deserialize_with = "text::maybe")]
    pub resume_window: Maybe,
    /// Unclean deaths in a row before a session is suspended; 0 is off.
    pub stuck_threshold: u32,
}

/// `[hooks]`
#[derive(Clone, Debug, PartialEq)]
pub struct Hooks {
    /// Where the scripts are; `None`: `hooks.d` beside the configuration file, else none.
    pub dir: Option<PathBuf>,
    /// Threads for journalled and notifying events.
    pub threads: usize,
    /// One handler call.
    pub timeout: Duration,
    /// One Lua state, in bytes.
    pub memory: u64,
    /// Scripts may run commands.
    pub allow_exec: bool,
    /// Scripts may make HTTP requests.
    pub allow_http: bool,
    /// Scripts may open files.
    pub allow_fs: bool,
    /// With `allow_fs`: only below these; empty: wherever the process may.
    pub fs_roots: Vec<PathBuf>,
    /// Deliveries of a journalled event to a handler before it is set aside.
    pub attempts: u32,
    /// `ostler.config` in Lua.
    pub config: serde_json::Value,
}

/// `[retention]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Transcripts of ended sessions.
    #[serde(deserialize_with = "text::maybe")]
    pub ended: Maybe,
    /// The event stream.
    #[serde(deserialize_with = "text::maybe")]
    pub events: Maybe,
    /// Idempotency ids.
    #[serde(deserialize_with = "text::maybe")]
    pub ids: Maybe,
    /// Settled deliveries.
    #[serde(deserialize_with = "text::maybe")]
    pub journal: Maybe,
    /// Stop reports, a count.
    pub reports: u32,
}

/// `[agents]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Agents {
    /// Which exits of the daemon they outlive.
    pub keep: Keep,
    /// How long a kept agent works on without a daemon.
    #[serde(deserialize_with = "text::duration")]
    pub orphan_after: Duration,
    /// What an agent may say while nobody takes it in, in bytes; then it waits.
    #[serde(deserialize_with = "text::size")]
    pub spool: u64,
}

/// `[agent.NAME]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: AgentKind,
    /// acp, exec: program and arguments.
    pub command: Vec<String>,
    /// The working directory, with `{key}`; relative to the state directory.
    pub cwd: String,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// What it inherits of the daemon's.
    pub env_pass: Vec<String>,
    /// Live sessions of this agent.
    pub max_processes: usize,
    /// To be ready for a prompt.
    pub start_timeout: Duration,
    /// How often a start that failed is tried again, within `start_timeout`.
    pub start_retries: u32,
    /// A whole turn, without waits for a permission.
    pub turn_timeout: Maybe,
    /// Without a word from it.
    pub silence_timeout: Maybe,
    /// What its permission requests meet.
    pub permission: PermissionPolicy,
    /// Then denied.
    pub permission_timeout: Maybe,
    /// What becomes of an interrupted turn.
    pub on_interrupt: OnInterrupt,
    /// openai
    pub url: String,
    /// openai, acp: the model; for acp by the agent's own id or name, empty: the agent's.
    pub model: String,
    /// acp: the mode of each session, by the agent's own id or name; empty: the agent's.
    #[serde(default)]
    pub mode: String,
    /// acp: options of each session, by the agent's own ids.
    #[serde(default)]
    pub options: BTreeMap<String, Pick>,
    /// acp: what an agent in a mode that asks nobody meets.
    #[serde(default)]
    pub consent: Option<Consent>,
    /// acp: the method by which it is logged in; empty: none, or one whose variables are all set.
    #[serde(default)]
    pub authenticate: String,
    /// acp: instructions that are added to the agent's own, where it takes any.
    #[serde(default)]
    pub system_prompt: String,
    /// acp: tools for each session, by name.
    #[serde(default)]
    pub mcp: BTreeMap<String, McpServer>,
    /// openai
    pub api_key_file: Option<PathBuf>,
    /// openai, and acp when it lost the session; bytes.
    pub history: u64,
    /// lua: a file below `agents` in the hooks directory.
    pub handler: String,
    /// echo
    pub delay: Duration,
    /// acp, exec: memory of one session's processes together, in bytes; `None`: no limit.
    pub memory: Option<u64>,
    /// acp, exec: how many processes and threads they may be.
    pub processes: u32,
    /// acp, exec: their processor time, in percent of one processor; `None`: no limit.
    pub cpu: Option<u32>,
    /// acp, exec: their share where processors are wanted by more than there are, 1 to 10,000.
    pub cpu_weight: u32,
    /// acp, exec: what they may reach; `None`: decided where the daemon starts, by who may write above its state.
    pub confine: Option<Confine>,
    /// acp, exec: with [`Confine::Workdir`], more places that they may write; absolute, or below `~`, the agent's HOME.
    pub write: Vec<String>,
    /// acp, exec: an agent that cannot be confined is not started.
    pub confine_required: bool,
    /// acp, exec: the least version of Landlock that `confine_required` is content with.
    pub confine_abi: u32,
}

/// `[agent.NAME.mcp.NAME]`: a server of the Model Context Protocol, which the agent starts or connects to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct McpServer {
    /// The program and its arguments; else a URL is given.
    pub command: Vec<String>,
    /// The program's environment.
    pub env: BTreeMap<String, String>,
    /// Where it listens.
    pub url: String,
    /// Sent with each request to it.
    pub headers: BTreeMap<String, String>,
}

/// `[[route]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// A key; `*` is any characters.
    pub pattern: String,
    /// The agent's name.
    pub agent: String,
}

/// What is wrong with a configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, `None` for text from elsewhere.
    pub file: Option<PathBuf>,
    /// The line, from 1; `None` when the file cannot be read.
    pub line: Option<usize>,
    /// The dotted key (`sessions.daily_reset`, `route[0].agent`), where one is to blame.
    pub key: Option<String>,
    /// What is wrong with it.
    pub why: String,
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{}", file.display())?,
            None => f.write_str("configuration")?,
        }
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": {key}")?;
        }
        write!(f, ": {}", self.why)
    }
}

impl std::error::Error for ConfigError {}

/// Reads a configuration from text. `file` is where the text came from: it stands in errors, and relative paths in it
/// are taken from its directory.
///
/// # Errors
/// The text is not TOML, has a key that is not in [`KEYS`], or a value that cannot be.
pub fn parse(text: &str, file: Option<&Path>) -> Result<Config, ConfigError> {
    // Some editors put a byte order mark before the text.
    read::config(text.strip_prefix('\u{feff}').unwrap_or(text), file)
}

/// Reads the configuration file; `None` gives the defaults.
///
/// # Errors
/// The file cannot be read (every failure, a missing file too), or as [`parse`].
pub fn load(file: Option<&Path>) -> Result<Config, ConfigError> {
    let Some(path) = file else { return Ok(Config::default()) };
    let unreadable = |why: String| ConfigError { file: Some(path.to_path_buf()), line: None, key: None, why };
    if let Some(mode) = paths::open_to_all(path) {
        return Err(unreadable(format!(
            "every user could write to it (mode {mode:o}), and it names programs to run: chmod o-w it"
        )));
    }
    let bytes = bounded::read(path, bounded::CONFIGURATION).map_err(|e| unreadable(format!("cannot be read: {e}")))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let valid = e.utf8_error().valid_up_to();
        let line = 1 + e.as_bytes().iter().take(valid).filter(|b| **b == b'\n').count();
        ConfigError { line: Some(line), ..unreadable("is not UTF-8 text".into()) }
    })?;
    parse(&text, Some(path))
}

/// The least version of Landlock that protects the database: before it, a file that may not be opened can be truncated.
pub const LEAST_CONFINEMENT: u32 = 3;

/// The name of the agent that serves keys without a route.
pub const DEFAULT_AGENT: &str = "default";

static ECHO: LazyLock<Agent> = LazyLock::new(|| Agent::of_kind(DEFAULT_AGENT, AgentKind::Echo));

impl Config {
    /// The agent that serves `key`: that of the first route that matches, else `default`.
    #[must_use]
    pub fn route<'a>(&'a self, key: &str) -> &'a Agent {
        let name = self.routes.iter().find(|r| r.matches(key)).map_or(DEFAULT_AGENT, |r| r.agent.as_str());
        self.agent.get(name).or_else(|| self.agent.get(DEFAULT_AGENT)).unwrap_or(&ECHO)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            daemon: Daemon::default(),
            http: None,
            sessions: Sessions::default(),
            shutdown: Budget::default(),
            hooks: Hooks::default(),
            retention: Retention::default(),
            agents: Agents::default(),
            agent: BTreeMap::from([(DEFAULT_AGENT.to_owned(), ECHO.clone())]),
            routes: Vec::new(),
            file: None,
            warnings: Vec::new(),
        }
    }
}

impl Default for Daemon {
    fn default() -> Self {
        Self { log: "info".into() }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: std::net::SocketAddr::from(([127, 0, 0, 1], 7411)), token_file: None }
    }
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            max_live: 1024,
            park_after: Some(minutes(30)),
            background_hold: Some(minutes(60)),
            idle_reset: None,
            daily_reset: None,
            queue_limit: 32,
            queue_total: 10_000,
            answer: 64 << 20,
            busy: Busy::Queue,
            resume: Resume::Auto,
            resume_window: Some(minutes(60)),
            stuck_threshold: 3,
        }
    }
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            dir: None,
            threads: 2,
            timeout: Duration::from_secs(5),
            memory: 64 << 20,
            allow_exec: false,
            allow_http: false,
            allow_fs: false,
            fs_roots: Vec::new(),
            attempts: 5,
            config: serde_json::Value::Object(serde_json::Map::new()),
        }
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self { ended: None, events: Some(days(7)), ids: Some(days(7)), journal: Some(days(7)), reports: 100 }
    }
}

impl Default for Agents {
    fn default() -> Self {
        Self { keep: Keep::Restart, orphan_after: minutes(2), spool: 256 << 20 }
    }
}

impl Agent {
    /// An agent of that kind with every default.
    #[must_use]
    pub fn of_kind(name: &str, kind: AgentKind) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            command: Vec::new(),
            cwd: names::DEFAULT_CWD.into(),
            env: BTreeMap::from([("LANG".to_owned(), "C.UTF-8".to_owned())]),
            env_pass: vec!["PATH".into(), "HOME".into()],
            max_processes: 32,
            start_timeout: Duration::from_secs(90),
            start_retries: 1,
            turn_timeout: Some(minutes(120)),
            silence_timeout: None,
            permission: PermissionPolicy::Ask,
            permission_timeout: Some(minutes(5)),
            on_interrupt: if kind == AgentKind::Acp { OnInterrupt::Resume } else { OnInterrupt::Rerun },
            url: String::new(),
            model: String::new(),
            mode: String::new(),
            options: BTreeMap::new(),
            consent: None,
            authenticate: String::new(),
            system_prompt: String::new(),
            mcp: BTreeMap::new(),
            api_key_file: None,
            history: 64 << 10,
            handler: String::new(),
            delay: Duration::ZERO,
            memory: None,
            processes: 512,
            cpu: None,
            cpu_weight: 100,
            confine: None,
            write: Vec::new(),
            confine_required: false,
            confine_abi: LEAST_CONFINEMENT,
        }
    }
}

impl Route {
    /// Whether the route claims the key.
    #[must_use]
    pub fn matches(&self, key: &str) -> bool {
        glob(self.pattern.as_bytes(), key.as_bytes())
    }
}

/// `*` matches any characters, every other character itself. It goes back to the last `*` only, so no pattern is slow.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            back = Some((p + 1, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            p += 1;
            t += 1;
        } else if let Some((star, taken)) = back {
            p = star;
            t = taken + 1;
            back = Some((star, taken + 1));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

const fn minutes(n: u64) -> Duration {
    Duration::from_secs(n * 60)
}

const fn days(n: u64) -> Duration {
    Duration::from_secs(n * 86_400)
}

#[cfg(test)]
mod tests;
