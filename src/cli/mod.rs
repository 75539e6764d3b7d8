//! The commands. They talk to the daemon through [`crate::client`] only, and to people through [`Ui`].
//!
//! Owns arguments, output and exit codes. It must not know the daemon, the store or the hooks: what a command needs of
//! them comes in through [`Doors`], which `main` fills.

use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, FromArgMatches as _};
use serde_json::{Map, Value};

use crate::client::{self, Client, ClientError};
use crate::config::{self, Config, ConfigError};
use crate::exit;
use crate::model::event::HookEvent;

mod args;
mod chat;
mod check;
mod complete;
mod control;
pub mod doctor;
mod follow;
mod generate;
mod hooks;
mod manual;
mod permissions;
mod render;
mod report;
mod restore;
mod screen;
mod send;
mod serve;
mod sessions;
mod signals;
mod stop;
mod top;
mod transcript;

use args::{Cli, Command, Connect};

/// The options of `serve`, with the files looked up and read.
#[derive(Clone, Debug, PartialEq)]
pub struct ServeOptions {
    /// The configuration; `config.file` is what a reload reads again.
    pub config: Config,
    /// Database and lock.
    pub state_dir: PathBuf,
    /// Where the socket is made.
    pub socket: PathBuf,
    /// Ask a daemon that holds the state to stop.
    pub replace: bool,
    /// Do not resume interrupted turns.
    pub no_resume: bool,
}

/// A script, an event, the fields that replace the sample's, and the configuration with `[hooks]`.
pub type FireScript = fn(&Path, HookEvent, &Map<String, Value>, &Config) -> Result<Value, String>;

/// A state directory, a backup, and a callback that is shown the plan and confirms it.
pub type RestoreFile = fn(&Path, &Path, &mut dyn FnMut(&Value) -> bool) -> Result<bool, (u8, String)>;

/// A state directory: how many processes were ended and which are left, or the exit code and why nothing was done.
pub type EndAgents = fn(&Path) -> Result<(usize, Vec<String>), (u8, String)>;

/// What the commands need of the rest of the program.
#[derive(Clone, Copy)]
pub struct Doors {
    /// Runs the daemon; its exit code.
    pub serve: fn(ServeOptions) -> u8,
    /// Loads a hook script as the daemon would: a line for each warning, or the error; each names file and line.
    pub check_script: fn(&Path, &Config) -> Result<Vec<String>, String>,
    /// Loads a hook script and calls its handlers of an event with a sample that has these fields: what the API answers
    /// to `POST /v1/hooks/fire`, and `answer`, `sent` and `kv`.
    pub fire_script: FireScript,
    /// The reports in a state directory's database, newest first; nothing is changed there.
    pub reports: fn(&Path) -> Result<Vec<Value>, String>,
    /// Replaces a state directory's database with a backup, if the callback confirms the plan: whether it was done, or
    /// the exit code and why not.
    pub restore: RestoreFile,
    /// Ends what the agents of a state directory without a daemon have left.
    pub end_agents: EndAgents,
    /// Checks for the doctor that need more than the configuration and the client.
    pub checks: fn(&doctor::Ground<'_>) -> Vec<doctor::Check>,
}

/// Why a command failed: what is printed after `ostler: `, and the exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// `what: why`; empty when our output is closed.
    pub text: String,
    /// The API's code, if it was the API that refused.
    pub word: Option<String>,
}

impl Failure {
    fn new(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        Self::coded(exit::FAILURE, format!("{what}: {why}"))
    }

    fn coded(code: u8, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), word: None }
    }

    fn usage(text: impl Into<String>) -> Self {
        Self::coded(exit::USAGE, text)
    }

    /// The daemon went away or asks to come back.
    fn is_passing(&self) -> bool {
        self.word.as_deref().is_some_and(client::is_passing)
    }

    /// What `--json` prints: the API's error object.
    fn json(&self) -> Value {
        let word = self.word.as_deref().unwrap_or(match self.code {
            exit::USAGE => "usage",
            exit::UNAVAILABLE => "unreachable",
            exit::CONFIG => "invalid_config",
            exit::TIMEOUT => "timeout",
            _ => "failed",
        });
        serde_json::json!({ "error": { "code": word, "message": self.text } })
    }

    /// An error of the API about something, such as a key.
    fn api(what: impl std::fmt::Display, e: &ClientError) -> Self {
        let code = match e.code.as_str() {
            "unreachable" | "silent" => exit::UNAVAILABLE,
            "invalid_config" => exit::CONFIG,
            "invalid_key" | "invalid_parameter" | "invalid_text" => exit::USAGE,
            _ => 1,
        };
        // Without an answer the message names the daemon, because that is the problem.
        let text = match (e.status, e.is_unreachable()) {
            (0, true) => format!("{}; start it with `ostler serve`, or name its --socket or --url", e.message),
            (0, false) => e.message.clone(),
            _ => format!("{what}: {e}"),
        };
        Self { code, text, word: Some(e.code.clone()) }
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        // The reader of our output is gone: it gets no more text.
        let text = if e.kind() == io::ErrorKind::BrokenPipe { String::new() } else { format!("output: {e}") };
        Self::coded(exit::FAILURE, text)
    }
}

impl From<ConfigError> for Failure {
    fn from(e: ConfigError) -> Self {
        Self::coded(exit::CONFIG, e.to_string())
    }
}

/// A daemon that does not answer for so long hangs, or its process is stopped.
const PROBE: Duration = Duration::from_secs(5);

/// A command's exit code, or why it failed.
type Done = Result<u8, Failure>;

/// The terminal of the user.
pub struct Ui {
    out: Box<dyn Write>,
    err: Box<dyn Write>,
    /// Stdout is a terminal: answers stream, and control characters must not reach it.
    out_tty: bool,
    /// Stderr is a terminal: progress may move.
    err_tty: bool,
    /// Colour is welcome on stdout.
    color: bool,
    /// Columns of the terminal on stdout; `None`: as many as a line needs.
    width: Option<u16>,
    /// Reads a line that the user types; `None`: there is no terminal to ask on.
    typed: Option<Typed>,
}

/// Reads a line.
type Typed = Box<dyn FnMut() -> io::Result<String>>;

/// A line of stdin.
fn typed_line() -> io::Result<String> {
    let mut line = String::new();
    io::stdin().read_line(&mut line).map(|_| line)
}

impl Ui {
    fn terminal() -> Self {
        let out_tty = io::stdout().is_terminal();
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        let err_tty = io::stderr().is_terminal();
        let asked = err_tty && io::stdin().is_terminal();
        Self {
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
            out_tty,
            err_tty,
            typed: asked.then(|| Box::new(typed_line) as Typed),
            color: out_tty && !plain,
            width: if out_tty { columns() } else { None },
        }
    }

    /// A line on stdout. On a terminal control characters are removed, because no text is trusted.
    fn say(&mut self, line: impl std::fmt::Display) -> io::Result<()> {
        if self.out_tty {
            return writeln!(self.out, "{}", render::clean(&line.to_string()));
        }
        writeln!(self.out, "{line}")
    }

    /// A line with our colours; the rest of it is clean already.
    fn styled(&mut self, line: impl std::fmt::Display) -> io::Result<()> {
        writeln!(self.out, "{line}")
    }

    /// A line on stderr, as `ostler: LINE`. A closed stderr is no error.
    fn note(&mut self, line: impl std::fmt::Display) {
        let _ = writeln!(self.err, "ostler: {}", render::clean(&line.to_string()));
    }

    /// Confirms an action that cannot be undone: asks on a terminal; in a script, running the command is the
    /// confirmation.
    fn confirm(&mut self, question: &str) -> io::Result<bool> {
        let Some(typed) = &mut self.typed else { return Ok(true) };
        let _ = write!(self.err, "{} [y/N] ", render::clean(question));
        let _ = self.err.flush();
        Ok(matches!(typed()?.trim(), "y" | "Y" | "yes" | "Yes"))
    }

    /// Prints why a command failed, unless our output is closed.
    fn fail(&mut self, failure: &Failure, json: bool) {
        if failure.text.is_empty() {
        } else if json {
            let text = render::json_for_terminal(&failure.json().to_string());
            let _ = writeln!(self.err, "{text}");
        } else {
            self.note(&failure.text);
        }
    }

    /// JSON on stdout.
    fn json(&mut self, value: &Value) -> io::Result<()> {
        self.json_text(format!("{value:#}"))
    }

    /// JSON on one line of stdout.
    fn json_line(&mut self, value: &Value) -> io::Result<()> {
        self.json_text(value.to_string())
    }

    fn json_text(&mut self, text: String) -> io::Result<()> {
        let text = if self.out_tty { render::json_for_terminal(&text) } else { text };
        writeln!(self.out, "{text}")
    }
}

/// The terminal's width. Some report 0 columns, which means that lines are not cut.
fn columns() -> Option<u16> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    usable_width(size.ws_col)
}

/// The least width of a table; a narrower one would be a column of letters.
const NARROWEST: u16 = 80;

fn usable_width(columns: u16) -> Option<u16> {
    (columns > 0).then_some(columns.max(NARROWEST))
}

/// The program, with its parts as arguments.
#[must_use]
pub fn main(doors: &Doors) -> ExitCode {
    let mut ui = Ui::terminal();
    let args: Vec<_> = std::env::args_os().collect();
    match parse(&args) {
        Ok((cli, json)) => ExitCode::from(execute(cli, json, doors, &mut ui)),
        Err(e) => {
            // Help goes to stdout, an error to stderr; a closed stream changes nothing.
            match usage(&e) {
                Some(text) if args.iter().any(|a| a == "--json") => ui.fail(&Failure::usage(text.trim_end()), true),
                Some(text) => eprint_quietly(&format!("ostler: {text}")),
                None => drop(e.print()),
            }
            ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(exit::USAGE))
        }
    }
}

/// The command line, and whether its command is to print JSON.
fn parse(args: &[std::ffi::OsString]) -> Result<(Cli, bool), clap::Error> {
    fn json(m: &clap::ArgMatches) -> bool {
        m.try_get_one::<bool>("json").ok().flatten() == Some(&true) || m.subcommand().is_some_and(|(_, m)| json(m))
    }
    let matches = Cli::command().try_get_matches_from(args)?;
    Ok((Cli::from_arg_matches(&matches)?, json(&matches)))
}

fn execute(cli: Cli, json: bool, doors: &Doors, ui: &mut Ui) -> u8 {
    let done = run(cli, doors, ui).and_then(|code| {
        ui.out.flush()?;
        Ok(code)
    });
    done.unwrap_or_else(|failure| {
        ui.fail(&failure, json);
        failure.code
    })
}

/// What is wrong with the usage; `None`: help or the version, which is shown as it is.
fn usage(e: &clap::Error) -> Option<String> {
    e.render().to_string().strip_prefix("error: ").map(str::to_owned)
}

/// Prints to stderr, even if it is closed.
fn eprint_quietly(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

fn run(cli: Cli, doors: &Doors, ui: &mut Ui) -> Done {
    let to = &cli.to;
    match cli.command {
        Command::Serve(a) => serve::serve(&a, doors, ui),
        Command::Chat(a) => chat::chat(&client(to)?, a.key.as_deref(), ui),
        Command::Send(a) => send::send(&reach(to)?, &a, ui),
        Command::Sessions(a) => sessions::list(&client(to)?, &a, ui),
        Command::Show(a) => sessions::show(&client(to)?, &a, ui),
        Command::Transcript(a) => transcript::print(&client(to)?, &a, ui),
        Command::Events(a) => transcript::events(&client(to)?, &a, ui),
        Command::Export(a) => transcript::export(&client(to)?, &a, ui),
        Command::Cancel(a) => sessions::cancel(&client(to)?, &a, ui),
        Command::Reset(a) => sessions::act(&client(to)?, &a, "/reset", "reset", ui),
        Command::Suspend(a) => sessions::act(&client(to)?, &a, "/suspend", "suspended", ui),
        Command::Resume(a) => sessions::resume(&client(to)?, &a, ui),
        Command::Delete(a) => sessions::delete(&client(to)?, &a, ui),
        Command::Permissions(a) => permissions::list(&client(to)?, &a, ui),
        Command::Allow(a) => permissions::answer(&client(to)?, &a, true, ui),
        Command::Deny(a) => permissions::answer(&client(to)?, &a, false, ui),
        Command::Hold(a) => control::hold(&client(to)?, &a, true, ui),
        Command::Release(a) => control::hold(&client(to)?, &a, false, ui),
        Command::Status(a) => control::status(&client(to)?, &a, ui),
        Command::Top(a) => top::top(&client(to)?, &a, ui),
        Command::Stop(a) => stop::stop(&reach(to)?, &a, is_named(to), doors, ui),
        Command::Restart(a) => stop::restart(&client(to)?, &a, ui),
        Command::Reload(a) => control::reload(&client(to)?, &a, ui),
        Command::Report(a) => report::report(&client(to)?, &a, is_named(to), doors, ui),
        Command::Hooks(a) => hooks::hooks(&a, to, doors, ui),
        Command::CheckConfig(a) => check::check_config(&a, ui),
        Command::Doctor(a) => doctor::doctor(&a, &reach(to)?, doors, ui),
        Command::Backup(a) => control::backup(&client(to)?, &a, ui),
        Command::Restore(a) => restore::restore(&a, &reach(to)?, doors, ui),
        Command::Completions { shell } => generate::completions(shell, ui),
        Command::Complete { words } => complete::complete(&words, ui),
        Command::Generate(a) => generate::generate(&a, ui),
    }
}

/// The daemon that the flags or the environment name, if it answers. A daemon that hangs gets no request, because it
/// would carry it out whenever it goes on.
fn client(to: &Connect) -> Result<Client, Failure> {
    let client = reach(to)?;
    client.answers(PROBE).map_err(|e| Failure::api("daemon", &e))?;
    Ok(client)
}

/// Whether a daemon was named, by a flag or the environment.
fn is_named(to: &Connect) -> bool {
    let set = |name: &str| config::paths::process_env(name).is_some_and(|v| !v.is_empty());
    to.socket.is_some() || to.url.is_some() || set("OSTLER_SOCKET") || set("OSTLER_URL")
}

/// The daemon that the flags or the environment name.
fn reach(to: &Connect) -> Result<Client, Failure> {
    reach_with(to, &config::paths::process_env)
}

fn reach_with(to: &Connect, env: config::paths::Env<'_>) -> Result<Client, Failure> {
    let var = |name: &str| env(name).filter(|v| !v.is_empty());
    let url = match (&to.socket, &to.url, var("OSTLER_URL")) {
        (Some(_), Some(_), _) => return Err(Failure::usage("--socket and --url: give one of them")),
        (Some(_), None, _) => None,
        (None, Some(url), _) => Some(("--url", url.clone())),
        (None, None, Some(_)) if var("OSTLER_SOCKET").is_some() => {
            let why = "$OSTLER_SOCKET and $OSTLER_URL are both set: unset one, or give --socket or --url";
            return Err(Failure::usage(why));
        }
        (None, None, url) => url.map(|url| ("$OSTLER_URL", url)),
    };
    let Some((from, url)) = url else {
        if to.token_file.is_some() {
            return Err(Failure::usage("--token-file: is for --url; a socket needs no token"));
        }
        let client = Client::unix_of(&config::paths::client_sockets(to.socket.as_deref(), env));
        return Ok(match config::paths::state_dir_to_read(None, env) {
            Ok(state_dir) => client.with_cookie(&state_dir),
            Err(_) => client,
        });
    };
    let token = match to.token_file.clone().or_else(|| var("OSTLER_TOKEN_FILE").map(PathBuf::from)) {
        Some(file) => {
            let token = config::bounded::secret(&file).map_err(|e| Failure::new(file.display(), e))?;
            if token.contains(char::is_whitespace) {
                return Err(Failure::new(file.display(), "is not one token"));
            }
            Some(token)
        }
        None => None,
    };
    Client::url(&url, token.as_deref()).map_err(|e| Failure::usage(format!("{from}: {}", e.message)))
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
