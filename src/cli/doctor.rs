//! `doctor`: finds problems and suggests fixes.
//!
//! Here are the checks that need the configuration, the file system and the client; `main` adds the rest.

use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::args::Doctor;
use super::render::STATUS;
use super::render::{bold, clean, number, text};
use super::{Done, Doors, Failure, PROBE, Ui};
use crate::client::{Client, ClientError};
use crate::config::{self, AgentKind, Config, Paths, paths};

/// With less free space the store will fail soon.
const SPACE_BAD: u64 = 64 << 20;
/// With less free space it may fail some time.
const SPACE_LOW: u64 = 512 << 20;

mod bounds;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It could not be checked from here.
    Skipped,
    /// It may become a problem.
    Warning,
    /// It fails, or will.
    Bad,
}

impl Verdict {
    const fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Skipped => "skipped",
            Self::Warning => "warning",
            Self::Bad => "bad",
        }
    }
}

/// One check and its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The subject: `state directory`.
    pub name: String,
    /// How bad it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// The remedy; empty when it is good.
    pub remedy: String,
}

impl Check {
    /// As it should be.
    pub fn good(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), verdict: Verdict::Good, found: found.into(), remedy: String::new() }
    }

    /// Anything else.
    pub fn not_good(
        verdict: Verdict,
        name: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { name: name.into(), verdict, found: found.into(), remedy: remedy.into() }
    }
}

/// What the checks look at.
#[derive(Clone, Copy, Debug)]
pub struct Ground<'a> {
    /// The configuration; the defaults if the file is wrong (which is a finding of its own).
    pub config: &'a Config,
    /// Database and lock.
    pub state_dir: &'a Path,
    /// The scripts, if there are any.
    pub hooks_dir: Option<&'a Path>,
    /// The daemon, if it answers.
    pub client: &'a Client,
    /// What its status says.
    pub status: Option<&'a Value>,
}

/// `doctor`
pub fn doctor(a: &Doctor, client: &Client, doors: &Doors, ui: &mut Ui) -> Done {
    let status = client.answers(PROBE).and_then(|()| client.status(STATUS));
    let found = ground(a.config.as_deref(), a.state_dir.as_deref(), status.as_ref().ok())
        .map_err(|why| Failure::coded(1, why))?;
    if a.end_agents {
        let done = end_agents(&found.state_dir, a.plain.json, doors, ui)?;
        return match done {
            Some(code) => Ok(code),
            None => ui.say("no process of an agent is left").map(|()| 0).map_err(Failure::from),
        };
    }
    let mut checks = Vec::new();
    let config = match config::load(found.config.as_deref()) {
        Ok(config) => {
            checks.extend(configuration(&config));
            config
        }
        Err(e) => {
            let remedy = "correct it; until then the daemon neither starts nor reloads";
            checks.push(Check::not_good(Verdict::Bad, "configuration", e.to_string(), remedy));
            Config::default()
        }
    };
    let hooks_dir = paths::hooks_dir(&config);
    checks.extend(secrets(&config));
    checks.extend(hooks_dir.as_deref().map(scripts).unwrap_or_default());
    checks.extend(agents(&config, hooks_dir.as_deref()));
    checks.extend(bounds::bounds(&config, &found.state_dir, status.as_ref().ok()));
    checks.extend(state(&found.state_dir));
    checks.extend(daemon(client, &status));
    let ground = Ground {
        config: &config,
        state_dir: &found.state_dir,
        hooks_dir: hooks_dir.as_deref(),
        client,
        status: status.as_ref().ok(),
    };
    checks.extend((doors.checks)(&ground));
    print(&checks, a.plain.json, ui)
}

/// Ends what the agents of a state directory without a daemon have left, and says so; `None`: nothing was left.
pub(super) fn end_agents(state_dir: &Path, json: bool, doors: &Doors, ui: &mut Ui) -> Result<Option<u8>, Failure> {
    let (ended, left) = (doors.end_agents)(state_dir).map_err(|(code, why)| Failure::coded(code, why))?;
    if ended == 0 && left.is_empty() {
        return Ok(None);
    }
    if json {
        ui.json(&json!({ "ended": ended, "left": left }))?;
    } else {
        let processes = if ended == 1 { "1 process".to_owned() } else { format!("{ended} processes") };
        ui.say(format!("{}: no daemon; {processes} of its agents ended", state_dir.display()))?;
        for process in &left {
            ui.note(format!("{process} could not be ended"));
        }
    }
    Ok(Some(u8::from(!left.is_empty())))
}

/// The places to check: those that the arguments name, else those of the daemon that answers, else those that `serve`
/// would use. A user without a state directory who reads the service's configuration gets the service's.
pub(super) fn ground(config: Option<&Path>, state_dir: Option<&Path>, status: Option<&Value>) -> Result<Paths, String> {
    let of_daemon = |name: &str| status.and_then(|s| s[name].as_str()).map(PathBuf::from);
    let config = config.map(PathBuf::from).or_else(|| of_daemon("config"));
    let state_dir = state_dir.map(PathBuf::from).or_else(|| of_daemon("state_dir"));
    let named = config.is_some() || state_dir.is_some();
    let mut found = Paths::of_daemon(config.as_deref(), state_dir.as_deref(), None, &paths::process_env)?;
    let service = Path::new(paths::SERVICE_STATE);
    if !named
        && found.config.as_deref() == Some(Path::new(paths::SERVICE_CONFIG))
        && !found.state_dir.exists()
        && service.exists()
    {
        found.state_dir = service.to_path_buf();
    }
    Ok(found)
}

fn print(checks: &[Check], json: bool, ui: &mut Ui) -> Done {
    let worst = checks.iter().map(|c| c.verdict).max().unwrap_or(Verdict::Good);
    let code = u8::from(worst == Verdict::Bad);
    if json {
        let list = checks
            .iter()
            .map(|c| json!({ "name": c.name, "verdict": c.verdict.word(), "found": c.found, "remedy": c.remedy }));
        ui.json(&json!({ "checks": list.collect::<Vec<_>>() }))?;
        return Ok(code);
    }
    for c in checks {
        let word =
            if c.verdict == Verdict::Good { c.verdict.word().to_owned() } else { bold(ui.color, c.verdict.word()) };
        ui.styled(format!("{word}: {}: {}", clean(&c.name), clean(&c.found)))?;
        if !c.remedy.is_empty() {
            ui.say(format!("      {}", c.remedy))?;
        }
    }
    Ok(code)
}

fn configuration(config: &Config) -> Vec<Check> {
    let found = config.file.as_ref().map_or("no file: the defaults".into(), |f| format!("{} is valid", f.display()));
    let mut out = vec![Check::good("configuration", found)];
    for warning in &config.warnings {
        let remedy = "remove or correct it";
        out.push(Check::not_good(Verdict::Warning, "configuration", warning, remedy));
    }
    out
}

/// The files with secrets exist, and only we can read them.
pub(super) fn secrets(config: &Config) -> Vec<Check> {
    let token = config.http.iter().filter_map(|h| h.token_file.as_ref()).map(|f| ("http.token_file".to_owned(), f));
    let keys = config.agent.values().filter(|a| a.kind == AgentKind::Openai);
    let keys = keys.filter_map(|a| Some((format!("agent.{}.api_key_file", a.name), a.api_key_file.as_ref()?)));
    token.chain(keys).map(|(name, file)| secret(name, file, config)).collect()
}

fn secret(name: String, file: &Path, config: &Config) -> Check {
    let path = paths::secret_file(file, config, &paths::process_env);
    let shown = path.display();
    match path.metadata() {
        Ok(m) if !m.is_file() => {
            Check::not_good(Verdict::Bad, name, format!("{shown} is not a file"), "name the file with the secret")
        }
        Ok(m) if m.len() == 0 => {
            Check::not_good(Verdict::Bad, name, format!("{shown} is empty"), "put the secret into it")
        }
        Ok(m) if m.mode() & 0o077 != 0 => {
            let found = format!("{shown} is readable for others (mode {:o})", m.mode() & 0o777);
            Check::not_good(Verdict::Warning, name, found, format!("chmod 600 {shown}"))
        }
        Ok(_) => Check::good(name, format!("{shown} is there")),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            Check::not_good(Verdict::Skipped, name, format!("{shown}: {e}"), "run this as the daemon's user")
        }
        Err(e) if file.components().count() == 1 && e.kind() == ErrorKind::NotFound => {
            let remedy = "if the service manager passes it as a credential, all is well";
            Check::not_good(Verdict::Skipped, name, format!("{shown}: {e}"), remedy)
        }
        Err(e) => Check::not_good(Verdict::Bad, name, format!("{shown}: {e}"), "make the file, or correct its name"),
    }
}

/// The scripts can be read, and no other user can change them; the daemon refuses other scripts.
pub(super) fn scripts(dir: &Path) -> Vec<Check> {
    let bad = |path: &Path, found: String, remedy: String| {
        Check::not_good(Verdict::Bad, "hooks", format!("{}: {found}", path.display()), remedy)
    };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            let found = format!("{}: {e}", dir.display());
            return vec![Check::not_good(Verdict::Skipped, "hooks", found, "run this as the daemon's user")];
        }
        Err(e) => return vec![bad(dir, e.to_string(), "make the directory, or correct hooks.dir".into())],
    };
    let lua = entries.filter_map(|e| e.ok().map(|e| e.path())).filter(|p| p.extension().is_some_and(|x| x == "lua"));
    let mut scripts: Vec<PathBuf> = lua.collect();
    scripts.sort();
    let mut out = Vec::new();
    for path in std::iter::once(dir).chain(scripts.iter().map(PathBuf::as_path)) {
        match path.metadata() {
            Ok(m) if m.mode() & 0o022 != 0 && !paths::is_read_only(path) => {
                let remedy = format!("chmod go-w {}; until then the daemon refuses it", path.display());
                out.push(bad(path, format!("others could write to it (mode {:o})", m.mode() & 0o777), remedy));
            }
            Ok(_) => {}
            Err(e) => out.push(bad(path, e.to_string(), "correct it, or remove it".into())),
        }
    }
    if out.is_empty() {
        out.push(Check::good("hooks", format!("{}: {} scripts", dir.display(), scripts.len())));
    }
    out
}

/// The programs and files of the agents exist.
fn agents(config: &Config, hooks_dir: Option<&Path>) -> Vec<Check> {
    config
        .agent
        .values()
        .map(|agent| {
            let name = format!("agent {}", agent.name);
            match agent.kind {
                AgentKind::Acp | AgentKind::Exec => {
                    let program = agent.command.first().map(String::as_str).unwrap_or_default();
                    let path =
                        agent.env.get("PATH").cloned().or_else(|| std::env::var("PATH").ok()).unwrap_or_default();
                    match find_program(program, &path) {
                        Some(found) => Check::good(name, format!("{} runs {}", agent.kind, found.display())),
                        None => {
                            let remedy = "install it, or give its whole path (the daemon's PATH may differ from yours)";
                            Check::not_good(
                                Verdict::Warning,
                                name,
                                format!("{program:?} is not a program here"),
                                remedy,
                            )
                        }
                    }
                }
                AgentKind::Lua => {
                    let file = hooks_dir.map(|d| d.join("agents").join(&agent.handler));
                    match file {
                        Some(file) if file.is_file() => Check::good(name, format!("lua runs {}", file.display())),
                        Some(file) => {
                            let found = format!("{} is not there", file.display());
                            Check::not_good(Verdict::Bad, name, found, "write it, or correct handler")
                        }
                        None => {
                            let found = format!("{} belongs below a hooks directory, and there is none", agent.handler);
                            Check::not_good(Verdict::Bad, name, found, "set hooks.dir")
                        }
                    }
                }
                AgentKind::Openai => {
                    Check::good(name, format!("openai asks {}", crate::config::login::without_login(&agent.url)))
                }
                AgentKind::Echo => Check::good(name, "echo"),
            }
        })
        .collect()
}

fn find_program(program: &str, path: &str) -> Option<PathBuf> {
    let runs = |p: &PathBuf| p.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if program.contains('/') {
        // A relative path depends on the session's working directory, which is not known here.
        let file = PathBuf::from(program);
        return (file.is_relative() || runs(&file)).then_some(file);
    }
    std::env::split_paths(path).map(|d| d.join(program)).find(runs)
}

/// The state directory can hold a database, and has room.
fn state(dir: &Path) -> Vec<Check> {
    let name = "state directory";
    let shown = dir.display();
    let meta = match dir.metadata() {
        Ok(meta) => meta,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return vec![Check::good(name, format!("{shown} is not there yet; the first start makes it"))];
        }
        Err(e) => return vec![Check::not_good(Verdict::Bad, name, format!("{shown}: {e}"), "make it accessible")],
    };
    if !meta.is_dir() {
        return vec![Check::not_good(Verdict::Bad, name, format!("{shown} is not a directory"), "move it away")];
    }
    let mut out = Vec::new();
    if meta.mode() & 0o007 != 0 {
        let found = format!("{shown} is open to everybody (mode {:o}): it holds transcripts", meta.mode() & 0o777);
        out.push(Check::not_good(Verdict::Warning, name, found, format!("chmod 700 {shown}")));
    }
    if let Ok(fs) = rustix::fs::statfs(dir) {
        // NFS, SMB, CIFS, SMB2: the database's shared memory does not work over them.
        if [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42].contains(&(fs.f_type as u64 & 0xffff_ffff)) {
            let remedy = "use --state-dir on a local disk: the database must not stand on a network file system";
            out.push(Check::not_good(Verdict::Bad, name, format!("{shown} is on a network file system"), remedy));
        }
    }
    if let Ok(fs) = rustix::fs::statvfs(dir) {
        let free = fs.f_bavail.saturating_mul(fs.f_frsize);
        let found = format!("{} free at {shown}", bytesize::ByteSize(free));
        let remedy = "free some space: messages are refused when the disk is full";
        out.push(match free {
            ..SPACE_BAD => Check::not_good(Verdict::Bad, "disk", found, remedy),
            SPACE_BAD..SPACE_LOW => Check::not_good(Verdict::Warning, "disk", found, remedy),
            _ => Check::good("disk", found),
        });
    }
    if out.iter().all(|c| c.name != name) {
        out.insert(0, Check::good(name, format!("{shown}")));
    }
    out
}

/// The daemon answers and reports no problem.
fn daemon(client: &Client, status: &Result<Value, ClientError>) -> Vec<Check> {
    let s = match status {
        Ok(s) => s,
        Err(e) if e.is_unreachable() => {
            let found = format!("not running (nothing listens on {})", client.name());
            return vec![Check::not_good(Verdict::Skipped, "daemon", found, "start it to check it too")];
        }
        Err(e) if e.code == "forbidden" => {
            let remedy =
                "join the group that owns the socket (ostler, for the service), or run this as the daemon's user";
            return vec![Check::not_good(Verdict::Warning, "daemon", e.message.clone(), remedy)];
        }
        Err(e) => {
            let remedy = "its log says why; if it hangs, the service manager's watchdog or a restart ends it";
            return vec![Check::not_good(Verdict::Bad, "daemon", e.message.clone(), remedy)];
        }
    };
    let version = text(s, "/version");
    let mut out =
        vec![Check::good("daemon", format!("{} (version {version}, pid {})", text(s, "/phase"), text(s, "/pid")))];
    let mut warn = |found: String, remedy: &str| out.push(Check::not_good(Verdict::Warning, "daemon", found, remedy));
    if version != env!("CARGO_PKG_VERSION") {
        let found = format!("it runs version {version}, this is {}", env!("CARGO_PKG_VERSION"));
        warn(found, "ostler restart");
    }
    if s["held"] == true {
        warn("it is held: messages wait and no turn starts".into(), "ostler release");
    }
    if let Some(problem) = s["clock_problem"].as_str() {
        warn(problem.to_owned(), "set the clock right, or have it set at boot (NTP)");
    }
    if s["hooks"]["off"] == true {
        let found = format!("the hooks are switched off: {} threads hang", number(s, "/hooks/lost_threads"));
        warn(found, "mend the script that the log names, then ostler reload");
    }
    for (pointer, what, remedy) in [
        ("/sessions/suspended", "suspended sessions", "ostler sessions --state suspended; ostler resume ID"),
        ("/hooks/failed", "hook deliveries set aside", "ostler hooks failed; then retry or discard"),
        ("/dropped_log_lines", "log lines dropped", "lower daemon.log, or see whether stderr is full, slow or closed"),
    ] {
        if number(s, pointer) > 0 {
            warn(format!("{} {what}", number(s, pointer)), remedy);
        }
    }
    out
}
