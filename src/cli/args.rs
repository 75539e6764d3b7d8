//! The command line: names, arguments and help. Parser, manual pages and completions are made from it.
//!
//! It must not know what the commands do.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::{Maybe, parse_maybe};

/// Keeps AI-agent sessions: takes a conversation in, carries it through restarts, and sees it off exactly once.
#[derive(Debug, Parser)]
#[command(name = "ostler", version, propagate_version = true, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Which daemon; may stand before or after the command.
    #[command(flatten)]
    pub to: Connect,
}

const AFTER_HELP: &str = "\
KEY is channel:conversation, such as telegram:4711. A name without a colon is local:NAME; a UUID is a session's id.
Exit codes: 0 done, 1 failed, 2 wrong usage, 69 the daemon is not there or does not answer, 78 configuration error,
124 `send` had no answer within --timeout.";

/// `--json` stands below a command's own options.
const JSON: usize = 900;

/// How the daemon is reached.
#[derive(Clone, Debug, Default, Args)]
pub struct Connect {
    /// The daemon's socket [default: $OSTLER_SOCKET, else the user's socket, else the service's]
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "url", help_heading = "Connection")]
    pub socket: Option<PathBuf>,
    /// The daemon's URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]
    #[arg(long, global = true, value_name = "URL", help_heading = "Connection")]
    pub url: Option<String>,
    /// File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Connection")]
    pub token_file: Option<PathBuf>,
}

/// The arguments of most commands: one session.
#[derive(Clone, Debug, Args)]
pub struct One {
    /// Key or id of the session
    #[arg(value_name = "KEY")]
    pub key: String,
    /// Print the API's JSON; errors too
    #[arg(long, display_order = JSON)]
    pub json: bool,
}

/// No argument of its own.
#[derive(Clone, Debug, Args)]
pub struct Plain {
    /// Print the API's JSON; errors too
    #[arg(long, display_order = JSON)]
    pub json: bool,
}

/// The commands, in the order of the manual.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon in the foreground; its log goes to stderr
    #[command(after_help = "Examples:\n  ostler serve\n  ostler serve --config ostler.toml --state-dir /tmp/state")]
    Serve(Serve),
    /// Talk to an agent; answers stream, and the conversation survives a restart of the daemon
    #[command(after_help = "Examples:\n  ostler chat\n  ostler chat telegram:4711")]
    Chat(Chat),
    /// Send one message and print the answer, even if the daemon restarts meanwhile
    #[command(
        after_help = "Examples:\n  ostler send alice \"How are you?\"\n  git diff | ostler send alice - --timeout 10m"
    )]
    Send(Send),
    /// List sessions
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  ostler sessions --state running,suspended\n  ostler sessions -q --key alice"
    )]
    Sessions(Sessions),
    /// Show a session
    #[command(after_help = "Examples:\n  ostler show alice\n  ostler show telegram:4711 --json")]
    Show(One),
    /// Print the transcript of a session
    #[command(
        visible_alias = "logs",
        after_help = "Examples:\n  ostler transcript alice -n 20\n  ostler transcript alice --follow"
    )]
    Transcript(Transcript),
    /// Print the events of a session
    #[command(after_help = "Examples:\n  ostler events alice -n 50\n  ostler events alice --follow --json")]
    Events(Events),
    /// Write a whole transcript as Markdown, or as JSON Lines with --json
    #[command(after_help = "Examples:\n  ostler export alice > alice.md\n  ostler export alice --json > alice.jsonl")]
    Export(One),
    /// Cancel the running turn
    #[command(after_help = "Examples:\n  ostler cancel alice\n  ostler cancel alice --queued")]
    Cancel(Cancel),
    /// End the session; the next message begins a new one
    #[command(after_help = "Examples:\n  ostler reset alice\n  ostler reset telegram:4711")]
    Reset(One),
    /// Quarantine a session: it runs no more turns, and the next message begins a new session
    #[command(after_help = "Examples:\n  ostler suspend alice\n  ostler suspend telegram:4711")]
    Suspend(One),
    /// Bring back a suspended session, or continue an interrupted one
    #[command(after_help = "Examples:\n  ostler resume alice\n  ostler resume 0190a3c4-7b1e-7abc-8def-0123456789ab")]
    Resume(One),
    /// Delete a session and its transcript
    #[command(
        visible_alias = "rm",
        after_help = "Examples:\n  ostler delete alice\n  ostler delete alice --all --files --yes"
    )]
    Delete(Delete),
    /// List the permissions that agents are waiting for
    #[command(after_help = "Examples:\n  ostler permissions\n  ostler permissions --json")]
    Permissions(Plain),
    /// Allow an agent's request, once if the agent offers that
    #[command(after_help = "Examples:\n  ostler allow alice\n  ostler allow telegram:4711 2")]
    Allow(Answer),
    /// Deny an agent's request
    #[command(after_help = "Examples:\n  ostler deny alice\n  ostler deny telegram:4711 2")]
    Deny(Answer),
    /// Accept messages but start no turns, until `release`
    #[command(after_help = "Examples:\n  ostler hold\n  ostler hold --json")]
    Hold(Plain),
    /// Start turns again after `hold`
    #[command(after_help = "Examples:\n  ostler release\n  ostler release --json")]
    Release(Plain),
    /// Show the daemon's status, and what a stop is waiting for
    #[command(after_help = "Examples:\n  ostler status\n  ostler status --watch")]
    Status(Status),
    /// Show what agents' processes use: memory, processor time, processes; live on a terminal
    #[command(after_help = "Examples:\n  ostler top\n  ostler top --sort cpu\n  ostler top --json")]
    Top(Top),
    /// Stop the daemon and wait until it has exited; without a daemon, end what its agents left running
    #[command(after_help = "Examples:\n  ostler stop\n  ostler stop --fast")]
    Stop(Stop),
    /// Restart the daemon, by its service manager or in its own process, and wait until it is ready
    #[command(after_help = "Examples:\n  ostler restart\n  ostler restart --end")]
    Restart(Restart),
    /// Reload configuration and hooks
    #[command(after_help = "Examples:\n  ostler reload\n  ostler reload --json")]
    Reload(Plain),
    /// Show the report of a stop, from the database if no daemon runs
    #[command(after_help = "Examples:\n  ostler report\n  ostler report --all")]
    Report(Report),
    /// Manage hooks
    #[command(subcommand)]
    Hooks(Hooks),
    /// Check a configuration file
    #[command(after_help = "Examples:\n  ostler check-config\n  ostler check-config ostler.toml --show")]
    CheckConfig(CheckConfig),
    /// Check for problems and suggest fixes
    #[command(after_help = "Examples:\n  ostler doctor\n  ostler doctor --config ostler.toml --state-dir /tmp/state")]
    Doctor(Doctor),
    /// Make a consistent copy of the database while the daemon runs
    #[command(after_help = "Examples:\n  ostler backup /var/backups/ostler.db\n  ostler backup copy.db --json")]
    Backup(Backup),
    /// Replace the database with a backup while the daemon is down; the present database is kept under another name
    #[command(
        after_help = "Examples:\n  ostler restore /var/backups/ostler.db\n  ostler restore copy.db --state-dir /tmp/state --yes"
    )]
    Restore(Restore),
    /// Print shell completions
    #[command(
        after_help = "Examples:\n  ostler completions bash > ~/.local/share/bash-completion/completions/ostler\n  ostler completions fish > ~/.config/fish/completions/ostler.fish"
    )]
    Completions {
        /// Shell
        shell: clap_complete::Shell,
    },
    /// Print the keys that complete a command line, for the shells' completions
    #[command(hide = true)]
    Complete {
        /// The words up to the cursor
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Make files for packages
    #[command(subcommand, hide = true)]
    Generate(Generate),
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Serve {
    /// Configuration file [default: $OSTLER_CONFIG, the user's, /etc/ostler/ostler.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// State directory [default: $STATE_DIRECTORY, $XDG_STATE_HOME/ostler]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Socket to create [default: $OSTLER_SOCKET, or by $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR, the state directory]
    #[arg(long, value_name = "FILE")]
    pub socket: Option<PathBuf>,
    /// Replace the daemon that runs on this state directory
    #[arg(long)]
    pub replace: bool,
    /// Do not resume interrupted turns (for the first start from a backup)
    #[arg(long)]
    pub no_resume: bool,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Chat {
    /// Key of the session [default: local:$USER]
    #[arg(value_name = "KEY")]
    pub key: Option<String>,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Send {
    /// Key or id of the session
    #[arg(value_name = "KEY")]
    pub key: String,
    /// The message; - reads it from stdin
    #[arg(value_name = "TEXT", allow_hyphen_values = true)]
    pub text: String,
    /// The message's id; a message whose id was sent before is not run again [default: a new id]
    #[arg(long)]
    pub id: Option<String>,
    /// Do not wait for the answer
    #[arg(long)]
    pub no_wait: bool,
    /// Wait this long for the answer; "never" waits for ever
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = limit)]
    pub timeout: Limit,
    /// Print one JSON object with the outcome and the answer; with --no-wait the API's JSON. Errors too
    #[arg(long, display_order = JSON)]
    pub json: bool,
}

/// A duration or never; a type of its own because the parser takes a bare `Option` for an argument that may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(pub Maybe);

fn limit(text: &str) -> Result<Limit, String> {
    match parse_maybe(text)? {
        Some(Duration::ZERO) => Err("must be longer than zero (use --no-wait)".into()),
        other => Ok(Limit(other)),
    }
}

fn at_least_one(text: &str) -> Result<NonZeroUsize, String> {
    match text.parse::<usize>() {
        Ok(n) => NonZeroUsize::new(n).ok_or_else(|| "must be at least 1".into()),
        Err(_) => Err("must be a whole number, 1 or more".into()),
    }
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Sessions {
    /// Only sessions in these states: live, parked, suspended, ended, running, resume_pending [default: all but
    /// ended]
    #[arg(long, value_name = "STATE,..")]
    pub state: Option<String>,
    /// Only sessions under this key; --state ended lists its past sessions
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// At most this many
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub limit: Option<NonZeroUsize>,
    /// Print ids only
    #[arg(long, short, conflicts_with = "json")]
    pub quiet: bool,
    /// Print every column, however wide the terminal is
    #[arg(long, short)]
    pub wide: bool,
    /// Print the API's JSON; errors too
    #[arg(long, display_order = JSON)]
    pub json: bool,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Transcript {
    #[command(flatten)]
    pub one: One,
    /// Only entries after this one
    #[arg(long, value_name = "SEQ")]
    pub after: Option<i64>,
    /// At most this many entries
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub limit: Option<NonZeroUsize>,
    /// Only the last N entries
    #[arg(short = 'n', long, value_name = "N", value_parser = at_least_one, conflicts_with_all = ["after", "limit"])]
    pub tail: Option<NonZeroUsize>,
    /// Keep printing new entries, even after a restart of the daemon; with --json one per line
    #[arg(long, short, conflicts_with = "limit")]
    pub follow: bool,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Events {
    #[command(flatten)]
    pub one: One,
    /// Keep printing new events, even after a restart of the daemon
    #[arg(long, short)]
    pub follow: bool,
    /// Only events after this one [default: the oldest kept; with --follow: from now on]
    #[arg(long, value_name = "SEQ")]
    pub after: Option<u64>,
    /// Only the last N events; with --follow, begin with them
    #[arg(short = 'n', long, value_name = "N", value_parser = at_least_one, conflicts_with = "after")]
    pub tail: Option<NonZeroUsize>,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Cancel {
    #[command(flatten)]
    pub one: One,
    /// Cancel the queued messages instead of the running turn
    #[arg(long)]
    pub queued: bool,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Delete {
    #[command(flatten)]
    pub one: One,
    /// Delete every session that was ever under the key
    #[arg(long)]
    pub all: bool,
    /// Delete the agent's working directory too
    #[arg(long)]
    pub files: bool,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Answer {
    #[arg(value_name = "KEY", help = "Key or id of the session")]
    pub key: String,
    /// Which of the session's open permissions, by its number in `ostler permissions` [default: the only one]
    #[arg(value_name = "N", value_parser = at_least_one)]
    pub number: Option<NonZeroUsize>,
    /// Print the API's JSON; errors too
    #[arg(long, display_order = JSON)]
    pub json: bool,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    pub plain: Plain,
    /// Keep showing the status until the daemon has exited; with --json one line per change, at most one per second
    #[arg(long, short)]
    pub watch: bool,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Top {
    /// What comes first
    #[arg(long, value_name = "COLUMN", value_enum, default_value_t = TopOrder::Memory)]
    pub sort: TopOrder,
    /// Show it once, on a terminal too
    #[arg(long)]
    pub once: bool,
    /// Print the API's JSON once; errors too
    #[arg(long, display_order = JSON)]
    pub json: bool,
}

/// The order of `top`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum TopOrder {
    /// Most memory
    Memory,
    /// Most processor time since the last look
    Cpu,
    /// Most processes
    Processes,
    /// By key
    Key,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Stop {
    #[command(flatten)]
    pub plain: Plain,
    /// Interrupt running turns instead of waiting for them
    #[arg(long, conflicts_with = "now")]
    pub fast: bool,
    /// Kill the agents, close the database and exit
    #[arg(long)]
    pub now: bool,
    /// Without a daemon: end the agents of this state directory [default: the one that `serve` would use]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Let the agents work on; the next daemon takes them up if it starts within [agents] orphan_after
    #[arg(long)]
    pub keep: bool,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Restart {
    #[command(flatten)]
    pub plain: Plain,
    /// End the agents, which a restart keeps otherwise
    #[arg(long)]
    pub end: bool,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Report {
    /// The boot's id [default: the newest report]
    #[arg(value_name = "BOOT")]
    pub boot: Option<String>,
    /// List all reports
    #[arg(long, conflicts_with = "boot")]
    pub all: bool,
    /// Without a daemon: read this state directory [default: the one that `serve` would use]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    #[command(flatten)]
    pub plain: Plain,
}

/// The commands about hooks.
#[derive(Debug, Subcommand)]
pub enum Hooks {
    /// List registered handlers with their calls, failures and times
    #[command(after_help = "Examples:\n  ostler hooks list\n  ostler hooks list --json")]
    List(Plain),
    /// Load scripts as the daemon would; no daemon is needed
    #[command(
        after_help = "Examples:\n  ostler hooks check hooks.d/audit.lua\n  ostler hooks check hooks.d/a.lua hooks.d/b.lua --config ostler.toml"
    )]
    Check {
        /// Lua files
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
        /// Configuration file, for [hooks] and its limits
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print JSON; errors too
        #[arg(long, display_order = JSON)]
        json: bool,
    },
    /// Call the handlers with a sample event (ev.test = true), which is never journalled
    #[command(after_help = FIRE_HELP)]
    Fire(Fire),
    /// List events that were set aside after repeated failures
    #[command(after_help = "Examples:\n  ostler hooks failed\n  ostler hooks failed --json")]
    Failed(Plain),
    /// Deliver set-aside events once more
    #[command(
        after_help = "Examples:\n  ostler hooks retry 0190a3c4-7b1e-7abc-8def-0123456789ab\n  ostler hooks retry --all"
    )]
    Retry(Aside),
    /// Discard events that were set aside
    #[command(
        after_help = "Examples:\n  ostler hooks discard 0190a3c4-7b1e-7abc-8def-0123456789ab\n  ostler hooks discard --all"
    )]
    Discard(Aside),
}

const FIRE_HELP: &str = "\
--fields sets the event's fields; --json only changes the output. Fields that are not set have sample values: \
{\"key\": \"local:alice\", \"reason\": \"crash\"} sets two. event_id, attempt and redelivered can be set too; \
with a session_id, ev:transcript reads that session.

With --script no daemon is needed: what the script keeps and sends stays in memory and is printed, but files, programs \
and HTTP are real where the configuration allows them.

Exit codes: 0 all handlers returned, 1 a handler failed, 2 no such event, 78 the script or the configuration is wrong.

Examples:
  ostler hooks fire session_end
  ostler hooks fire message --script hooks.d/audit.lua --fields fields.json";

/// A sample event.
#[derive(Debug, Args)]
pub struct Fire {
    /// The event, such as session_end
    #[arg(value_name = "EVENT")]
    pub event: String,
    /// A JSON object of fields that replace the sample's; - reads it from stdin
    #[arg(long, value_name = "FILE")]
    pub fields: Option<PathBuf>,
    /// Call this script; no daemon is needed
    #[arg(long, value_name = "FILE", conflicts_with_all = ["socket", "url"])]
    pub script: Option<PathBuf>,
    /// With --script: configuration file, for [hooks] and its limits
    #[arg(long, value_name = "FILE", requires = "script")]
    pub config: Option<PathBuf>,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub plain: Plain,
}

/// Events that were set aside.
#[derive(Debug, Args)]
pub struct Aside {
    #[allow(missing_docs)]
    #[command(flatten)]
    pub which: Which,
    /// Print JSON; errors too
    #[arg(long, display_order = JSON)]
    pub json: bool,
}

/// One event that was set aside, or all of them.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Which {
    /// The event's id
    #[arg(value_name = "ID")]
    pub id: Option<String>,
    /// All of them
    #[arg(long)]
    pub all: bool,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct CheckConfig {
    /// The file [default: the one that `serve` would use]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Print the configuration in force, every key with its value; secrets are not shown
    #[arg(long, conflicts_with = "json")]
    pub show: bool,
    /// Print JSON; errors too
    #[arg(long, display_order = JSON)]
    pub json: bool,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Doctor {
    /// Configuration file [default: the one that `serve` would use]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// State directory [default: the one that `serve` would use]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Without a daemon: end what its agents left running
    #[arg(long)]
    pub end_agents: bool,
    #[command(flatten)]
    pub plain: Plain,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Backup {
    /// File to create
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Print the API's JSON; errors too
    #[arg(long, display_order = JSON)]
    pub json: bool,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Restore {
    /// The backup
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Configuration file [default: the one that `serve` would use]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// State directory [default: the one that `serve` would use]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
    /// Print JSON; errors too
    #[arg(long, display_order = JSON)]
    pub json: bool,
}

/// Files for packages.
#[derive(Debug, Subcommand)]
pub enum Generate {
    /// All generated files of packaging/: manual pages, completions, the commented sample configuration
    Files {
        /// Directory to write to
        dir: PathBuf,
    },
    /// The commented sample configuration
    Config,
}
