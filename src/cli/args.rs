//! The command line: names, arguments and help. Parser, manual pages and completions are all made from it.
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
}

const AFTER_HELP: &str = "\
KEY is channel:conversation, such as telegram:4711. A name without a colon is local:NAME; a UUID is a session's id.
Exit codes: 0 done, 1 failed, 2 wrong usage, 69 the daemon is not there, 78 configuration error.";

/// How the daemon is reached.
#[derive(Clone, Debug, Default, Args)]
pub struct Connect {
    /// The daemon's socket [default: $OSTLER_SOCKET, or the first there is of the user's and the service's]
    #[arg(long, value_name = "FILE", conflicts_with = "url", help_heading = "Connection")]
    pub socket: Option<PathBuf>,
    /// The daemon's URL, such as http://127.0.0.1:7411, instead of a socket
    #[arg(long, value_name = "URL", help_heading = "Connection")]
    pub url: Option<String>,
    /// File with the bearer token for --url
    #[arg(long, value_name = "FILE", requires = "url", help_heading = "Connection")]
    pub token_file: Option<PathBuf>,
}

/// The commonest arguments: one session.
#[derive(Clone, Debug, Args)]
pub struct One {
    /// Key or id of the session
    #[arg(value_name = "KEY")]
    pub key: String,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub to: Connect,
    /// Print the API's JSON
    #[arg(long)]
    pub json: bool,
}

/// No argument but the daemon.
#[derive(Clone, Debug, Args)]
pub struct Plain {
    #[allow(missing_docs)]
    #[command(flatten)]
    pub to: Connect,
    /// Print the API's JSON
    #[arg(long)]
    pub json: bool,
}

/// The commands, in the order of the manual.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon in the foreground; its log goes to stderr
    Serve(Serve),
    /// Talk to an agent; answers stream, and a restart of the daemon does not end the conversation
    Chat(Chat),
    /// Send one message and print the answer, also when the daemon restarts in between
    Send(Send),
    /// List sessions
    Sessions(Sessions),
    /// Show a session
    Show(One),
    /// Print what was said in a session
    Transcript(Transcript),
    /// Print the events of a session
    Events(Events),
    /// Write a whole transcript as Markdown, or as JSON Lines with --json
    Export(One),
    /// Cancel the running turn
    Cancel(Cancel),
    /// End the session; the next message begins a new one
    Reset(One),
    /// Quarantine a session: no turn runs in it, the next message begins a new one
    Suspend(One),
    /// Bring back a suspended session, or continue an interrupted one
    Resume(One),
    /// Delete a session and its transcript
    Delete(Delete),
    /// Accept messages but start no turns, until `release`
    Hold(Plain),
    /// Start turns again after `hold`
    Release(Plain),
    /// Show what the daemon does, and what blocks a stop
    Status(Status),
    /// Stop the daemon, and wait until it is gone
    Stop(Stop),
    /// Stop the daemon so that its supervisor starts it again, and wait for it
    Restart(Restart),
    /// Read configuration and hooks again
    Reload(Plain),
    /// Show how a stop went
    Report(Report),
    /// Look after hooks
    #[command(subcommand)]
    Hooks(Hooks),
    /// Check a configuration file
    CheckConfig(CheckConfig),
    /// Look for what will go wrong, each with its remedy
    Doctor(Doctor),
    /// Copy the database, consistently, while the daemon runs
    Backup(Backup),
    /// Print shell completions
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
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
    /// Socket to make [default: $OSTLER_SOCKET, or by $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR, the state directory]
    #[arg(long, value_name = "FILE")]
    pub socket: Option<PathBuf>,
    /// Ask a daemon that holds the state to leave, and take its place
    #[arg(long)]
    pub replace: bool,
    /// Continue nothing that was interrupted; for the first start of a restored backup
    #[arg(long)]
    pub no_resume: bool,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Chat {
    /// Key of the session [default: local:$USER]
    #[arg(value_name = "KEY")]
    pub key: Option<String>,
    #[command(flatten)]
    pub to: Connect,
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
    /// The message's id: sent again with the same id, it is not run again [default: a new one]
    #[arg(long)]
    pub id: Option<String>,
    /// Only hand the message over, and print what the API says
    #[arg(long)]
    pub no_wait: bool,
    /// Wait this long for the answer; "never" waits for ever
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = limit)]
    pub timeout: Limit,
    #[command(flatten)]
    pub to: Connect,
}

/// A duration or never; a type of its own because the parser takes a bare `Option` for an argument that may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(pub Maybe);

fn limit(text: &str) -> Result<Limit, String> {
    match parse_maybe(text)? {
        Some(Duration::ZERO) => Err("must be longer than nothing (--no-wait does not wait)".into()),
        other => Ok(Limit(other)),
    }
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Sessions {
    /// Only these, with commas between: live, parked, suspended, ended, running, resume_pending [default: all but
    /// ended]
    #[arg(long, value_name = "STATE,..")]
    pub state: Option<String>,
    /// Only those under this key, with --state ended the past ones
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// At most this many
    #[arg(long, value_name = "N")]
    pub limit: Option<NonZeroUsize>,
    #[command(flatten)]
    pub to: Connect,
    /// Print the API's JSON
    #[arg(long)]
    pub json: bool,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Transcript {
    #[command(flatten)]
    pub one: One,
    /// Only what follows this entry
    #[arg(long, value_name = "SEQ")]
    pub after: Option<i64>,
    /// At most this many entries
    #[arg(long, value_name = "N")]
    pub limit: Option<NonZeroUsize>,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Events {
    #[command(flatten)]
    pub one: One,
    /// Go on with what comes, over restarts of the daemon too
    #[arg(long, short)]
    pub follow: bool,
    /// Only what follows this event [default: the oldest kept; with --follow: from now on]
    #[arg(long, value_name = "SEQ")]
    pub after: Option<u64>,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Cancel {
    #[command(flatten)]
    pub one: One,
    /// What waits, instead of the turn that runs
    #[arg(long)]
    pub queued: bool,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Delete {
    #[command(flatten)]
    pub one: One,
    /// Every session that was ever under the key
    #[arg(long)]
    pub all: bool,
    /// The agent's working directory too
    #[arg(long)]
    pub files: bool,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    pub plain: Plain,
    /// Go on showing it until the daemon is gone; with --json one line per change, at most one per second
    #[arg(long, short)]
    pub watch: bool,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Stop {
    #[command(flatten)]
    pub plain: Plain,
    /// Do not wait for running turns: interrupt them
    #[arg(long, conflicts_with = "now")]
    pub fast: bool,
    /// Kill agents, close the store and leave
    #[arg(long)]
    pub now: bool,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Restart {
    #[command(flatten)]
    pub plain: Plain,
    /// Stop it even if it has no supervisor, so that nothing starts it again
    #[arg(long)]
    pub force: bool,
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
    #[command(flatten)]
    pub plain: Plain,
}

/// The commands about hooks.
#[derive(Debug, Subcommand)]
pub enum Hooks {
    /// List registered handlers and how they fare
    List(Plain),
    /// Load scripts as the daemon would, without a daemon
    Check {
        /// Lua files
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
        /// Configuration file, for [hooks] and its limits
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Send handlers a sample event (ev.test = true), never journalled
    #[command(after_help = FIRE_HELP)]
    Fire(Fire),
    /// List events that were set aside because a handler kept failing
    Failed(Plain),
    /// Deliver what was set aside once more
    Retry(Aside),
    /// Give up on what was set aside
    Discard(Aside),
}

const FIRE_HELP: &str = "\
--json is about what is printed, as everywhere; --fields is what is sent. Without it the event has sample values, which \
the object's fields replace one by one: {\"key\": \"local:alice\", \"reason\": \"crash\"}. event_id, attempt and \
redelivered may be given too; a session_id makes ev:transcript read that session.

With --script no daemon is asked: what is kept and sent stays in memory and is shown, but files, programs and HTTP are \
real where the configuration allows them.

Exit codes: 0 all handlers returned, 1 one failed, 2 no such event, 78 the script or the configuration is wrong.";

/// A sample event.
#[derive(Debug, Args)]
pub struct Fire {
    /// The event, such as session_end
    #[arg(value_name = "EVENT")]
    pub event: String,
    /// A JSON object of fields that replace the sample's; - reads it from stdin
    #[arg(long, value_name = "FILE")]
    pub fields: Option<PathBuf>,
    /// Try this script, without a daemon
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
    /// The event's id
    #[arg(value_name = "ID", required_unless_present = "all")]
    pub id: Option<String>,
    /// All of them
    #[arg(long, conflicts_with = "id")]
    pub all: bool,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub to: Connect,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct CheckConfig {
    /// The file [default: the one that `serve` would use]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
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
    #[command(flatten)]
    pub plain: Plain,
}

#[allow(missing_docs)]
#[derive(Debug, Args)]
pub struct Backup {
    /// Where the copy is put; must not exist yet
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub to: Connect,
}

/// Files for packages.
#[derive(Debug, Subcommand)]
pub enum Generate {
    /// Everything in packaging/ that is made: manual pages, completions, the commented sample configuration
    Files {
        /// Where they are put
        dir: PathBuf,
    },
    /// The commented sample configuration
    Config,
}
