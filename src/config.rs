//! Configuration: text in, [`Config`] out. Owns every limit, the stop budget and its check.
//!
//! Pure but for the one function that reads the file. An error names the file, the line and the key.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::event::words;

/// A duration that may be "never".
pub type Maybe = Option<Duration>;

words! {
    /// What a message during a turn does.
    Busy {
        /// It waits its turn.
        Queue = "queue",
        /// All that wait share one turn.
        Collect = "collect",
        /// It cancels the turn that runs.
        Interrupt = "interrupt",
    }
}

words! {
    /// When interrupted sessions go on after a boot.
    Resume {
        /// By themselves, right after the boot.
        Auto = "auto",
        /// With the next message under their key.
        OnMessage = "on_message",
        /// Never: the mark is kept, the next message opens a new session.
        Never = "never",
    }
}

words! {
    /// What runs a conversation.
    AgentKind {
        /// A program that speaks the Agent Client Protocol on stdin and stdout.
        Acp = "acp",
        /// A command, once a turn.
        Exec = "exec",
        /// An OpenAI-compatible endpoint.
        Openai = "openai",
        /// A Lua function.
        Lua = "lua",
        /// Answers with what it was told.
        Echo = "echo",
    }
}

words! {
    /// What a permission request of an agent meets.
    PermissionPolicy {
        /// Hooks, then the client.
        Ask = "ask",
        /// An offered `allow_once`.
        Allow = "allow",
        /// An offered reject option.
        Deny = "deny",
    }
}

words! {
    /// What becomes of an interrupted turn.
    OnInterrupt {
        /// A continuation with a note.
        Resume = "resume",
        /// The message runs again.
        Rerun = "rerun",
        /// It waits for the next message.
        Wait = "wait",
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
    pub shutdown: Shutdown,
    /// `[hooks]`
    pub hooks: Hooks,
    /// `[retention]`
    pub retention: Retention,
    /// `[agent.NAME]`; always has the one that answers keys without a route (`default`, echo when none is configured).
    pub agents: BTreeMap<String, Agent>,
    /// `[[route]]`, in order.
    pub routes: Vec<Route>,
    /// The file it came from, `None` for the defaults.
    pub file: Option<PathBuf>,
}

/// `[daemon]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    /// A log filter; `RUST_LOG` wins.
    pub log: String,
}

/// `[http]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// Where the TCP listener stands.
    pub listen: std::net::SocketAddr,
    /// The bearer token's file; needed for anything but loopback.
    pub token_file: Option<PathBuf>,
}

/// `[sessions]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sessions {
    /// Live sessions at once.
    pub max_live: usize,
    /// After this an idle session is parked.
    pub park_after: Maybe,
    /// After this an idle session is over.
    pub idle_reset: Maybe,
    /// Local hour and minute at which sessions are over.
    pub daily_reset: Option<(i8, i8)>,
    /// Queued messages a session.
    pub queue_limit: usize,
    /// Waiting messages in all.
    pub queue_total: usize,
    /// What a message during a turn does.
    pub busy: Busy,
    /// When interrupted sessions go on.
    pub resume: Resume,
    /// How old a mark may be.
    pub resume_window: Maybe,
    /// Unclean deaths in a row before a session is suspended; 0 is off.
    pub stuck_threshold: u32,
}

/// `[shutdown]`: the budget of a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// Steps 2 to 5.
    pub drain: Duration,
    /// Steps 6 and 7.
    pub interrupt: Duration,
    /// Steps 4, 9 and 10 together.
    pub hooks: Duration,
    /// Step 8's rest and the store.
    pub close: Duration,
    /// The hard end.
    pub deadline: Duration,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Transcripts of ended sessions.
    pub ended: Maybe,
    /// The event stream.
    pub events: Maybe,
    /// Idempotency ids.
    pub ids: Maybe,
    /// Settled deliveries.
    pub journal: Maybe,
    /// Stop reports, a count.
    pub reports: u32,
}

/// `[agent.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// openai
    pub model: String,
    /// openai
    pub api_key_file: Option<PathBuf>,
    /// openai, and acp when it lost the session; bytes.
    pub history: u64,
    /// lua: a file below `agents` in the hooks directory.
    pub handler: String,
    /// echo
    pub delay: Duration,
}

/// `[[route]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// A key; `*` is any characters.
    pub pattern: String,
    /// The agent's name.
    pub agent: String,
}
