//! Relations between values: impossible ones are refused, useless ones are warned of.
//!
//! Owns the relations between limits. It must not know the text: it names keys, and the caller finds their lines.

use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::time::Duration;

use super::locate::join;
use super::raw::RawAgent;
use super::text::duration_text;
use super::{Agent, AgentKind, Config, Confine, DEFAULT_AGENT, Keep, LEAST_CONFINEMENT, McpServer, PermissionPolicy};
use crate::model::{names, offers};

/// The least time between the stop's phases and its deadline.
const SLACK: Duration = Duration::from_secs(1);
/// Below this a Lua state cannot load its libraries and a script.
const LEAST_MEMORY: u64 = 1 << 20;
/// Threads for hooks, each with a Lua state of its own.
const MOST_THREADS: usize = 256;
/// Two of an agent's longest lines: a daemon must be able to read one while the agent begins the next.
const LEAST_SPOOL: u64 = 64 << 20;
/// Below this no program of any size starts.
const LEAST_AGENT_MEMORY: u64 = 16 << 20;
/// The most processes that the kernel can count.
const MOST_PROCESSES: u32 = 4 << 20;
/// Ten thousand processors.
const MOST_CPU: u32 = 1_000_000;
/// No version of Landlock is as high.
const MOST_CONFINEMENT: u32 = 1000;
/// What makes a sandbox of its own, or needs another user's rights.
const NOT_CONFINED: [&str; 7] = ["bwrap", "podman", "unshare", "firejail", "flatpak", "sudo", "su"];
/// Each is a rule of every start.
const MOST_PLACES: usize = 256;
/// Given with every session.
const MOST_INSTRUCTIONS: usize = 64 << 10;

type Check = Result<(), (String, String)>;

fn fail<T>(key: impl Into<String>, why: impl Into<String>) -> Result<T, (String, String)> {
    Err((key.into(), why.into()))
}

/// Refuses an impossible configuration: the key to blame, and why.
pub fn config(c: &Config, given: &BTreeMap<String, RawAgent>) -> Check {
    sessions(c)?;
    shutdown(c)?;
    http(c)?;
    hooks(c)?;
    if c.retention.reports == 0 {
        return fail("retention.reports", "0 would keep no report, not even of the stop in progress; at least 1");
    }
    agents(c)?;
    for (name, agent) in &c.agent {
        one_agent(agent, given.get(name))?;
        if agent.confine_required && c.agents.keep == Keep::Never {
            let why = "agents are confined by what keeps them: it cannot be with [agents] keep = \"never\"";
            return fail(format!("{}.confine_required", join("agent", name)), why);
        }
    }
    for (n, route) in c.routes.iter().enumerate() {
        if route.pattern.is_empty() {
            return fail(format!("route[{n}].match"), "is empty and would match no key");
        }
        if !c.agent.contains_key(&route.agent) {
            let known: Vec<_> = c.agent.keys().map(String::as_str).collect();
            let why = format!("there is no agent {:?} (known: {})", route.agent, known.join(", "));
            return fail(format!("route[{n}].agent"), why);
        }
    }
    Ok(())
}

fn at_least_one(key: impl Into<String>, n: usize, what: &str) -> Check {
    if n == 0 { fail(key, format!("0 would let {what}; at least 1")) } else { Ok(()) }
}

fn above_zero(key: impl Into<String>, d: Option<Duration>, what: &str) -> Check {
    if d == Some(Duration::ZERO) { fail(key, format!("\"0s\" would {what}")) } else { Ok(()) }
}

fn sessions(c: &Config) -> Check {
    let s = &c.sessions;
    at_least_one("sessions.max_live", s.max_live, "no session run")?;
    at_least_one("sessions.queue_limit", s.queue_limit, "no message wait")?;
    at_least_one("sessions.queue_total", s.queue_total, "no message wait")?;
    if s.answer == 0 {
        return fail("sessions.answer", "\"0B\" would let no agent answer");
    }
    above_zero("sessions.idle_reset", s.idle_reset, "end the session with every message; \"never\" is off")
}

fn shutdown(c: &Config) -> Check {
    let s = &c.shutdown;
    if s.sum().saturating_add(SLACK) <= s.deadline {
        return Ok(());
    }
    let t = duration_text;
    fail(
        "shutdown.deadline",
        format!(
            "drain {} + interrupt {} + hooks {} + close {} = {}, which must stay at least {} below the deadline of {}",
            t(s.drain),
            t(s.interrupt),
            t(s.hooks),
            t(s.close),
            t(s.sum()),
            t(SLACK),
            t(s.deadline)
        ),
    )
}

fn http(c: &Config) -> Check {
    match &c.http {
        Some(h) if !h.listen.ip().is_loopback() && h.token_file.is_none() => {
            fail("http.listen", format!("{} is not a loopback address, which needs http.token_file", h.listen))
        }
        Some(h) if h.token_file.as_ref().is_some_and(|f| f.as_os_str().is_empty()) => {
            fail("http.token_file", "is empty")
        }
        _ => Ok(()),
    }
}

fn hooks(c: &Config) -> Check {
    let h = &c.hooks;
    at_least_one("hooks.threads", h.threads, "no hook run")?;
    if h.threads > MOST_THREADS {
        return fail("hooks.threads", format!("{} would each have a Lua state; at most {MOST_THREADS}", h.threads));
    }
    at_least_one("hooks.attempts", h.attempts as usize, "no event be delivered")?;
    above_zero("hooks.timeout", Some(h.timeout), "stop every handler before it begins")?;
    if h.memory < LEAST_MEMORY {
        return fail("hooks.memory", format!("{} bytes are too few for a Lua state; at least 1MiB", h.memory));
    }
    if h.dir.as_ref().is_some_and(|d| d.as_os_str().is_empty()) {
        return fail("hooks.dir", "is empty");
    }
    for (n, root) in h.fs_roots.iter().enumerate() {
        if !root.is_absolute() {
            return fail(format!("hooks.fs_roots[{n}]"), format!("{:?} is not an absolute path", root.display()));
        }
    }
    Ok(())
}

fn agents(c: &Config) -> Check {
    if c.agents.spool < LEAST_SPOOL {
        return fail("agents.spool", "an agent's line may have 32 MiB; at least \"64MiB\"");
    }
    above_zero("agents.orphan_after", Some(c.agents.orphan_after), "end every agent at once; say keep = \"never\"")
}

/// Limits and confinement.
fn bounds(a: &Agent, key: &dyn Fn(&str) -> String) -> Check {
    if let Some(memory) = a.memory.filter(|m| *m < LEAST_AGENT_MEMORY) {
        return fail(key("memory"), format!("{memory} bytes are too few for any agent; at least 16MiB"));
    }
    let within = |name: &str, n: u32, least: u32, most: u32| {
        if (least..=most).contains(&n) { Ok(()) } else { fail(key(name), format!("{n}: {least} to {most}")) }
    };
    within("processes", a.processes, 1, MOST_PROCESSES)?;
    within("cpu_weight", a.cpu_weight, 1, 10_000)?;
    within("confine_abi", a.confine_abi, LEAST_CONFINEMENT, MOST_CONFINEMENT)?;
    if let Some(percent) = a.cpu.filter(|p| !(1..=MOST_CPU).contains(p)) {
        return fail(key("cpu"), format!("{percent}%: 1% to {MOST_CPU}%"));
    }
    for (n, place) in a.write.iter().enumerate() {
        let whole = place.starts_with('/') || place == "~" || place.starts_with("~/");
        if !whole || place.contains('\0') {
            return fail(
                format!("{}[{n}]", key("write")),
                format!("{place:?} is neither an absolute path nor below ~"),
            );
        }
    }
    if a.write.len() > MOST_PLACES {
        return fail(key("write"), format!("{} places; at most {MOST_PLACES}", a.write.len()));
    }
    if a.confine_required && a.confine == Some(Confine::None) {
        return fail(key("confine_required"), "contradicts confine = \"none\"");
    }
    Ok(())
}

fn one_agent(a: &Agent, given: Option<&RawAgent>) -> Check {
    let at = join("agent", &a.name);
    let key = |name: &str| format!("{at}.{name}");
    if a.name.is_empty() || a.name.chars().any(char::is_control) {
        return fail(at, "an agent's name must not be empty or have control characters");
    }
    kind_has_its_keys(a, given, &key)?;
    at_least_one(key("max_processes"), a.max_processes, "the agent serve no session")?;
    above_zero(key("start_timeout"), Some(a.start_timeout), "leave no time to start")?;
    above_zero(key("turn_timeout"), a.turn_timeout, "fail every turn; \"never\" is off")?;
    above_zero(key("silence_timeout"), a.silence_timeout, "fail every turn; \"never\" is off")?;
    above_zero(key("permission_timeout"), a.permission_timeout, "deny at once; say so with permission = \"deny\"")?;
    if a.cwd.is_empty() || a.cwd.contains('\0') {
        return fail(key("cwd"), "must be a path");
    }
    match names::home_of(&a.cwd) {
        names::Home::Other => {
            return fail(key("cwd"), format!("{:?}: ~USER is not supported; ~/ is the daemon's own home", a.cwd));
        }
        names::Home::Own(_) if super::paths::process_env("HOME").is_none_or(|h| !h.starts_with('/')) => {
            return fail(key("cwd"), format!("{:?}: $HOME is not set", a.cwd));
        }
        names::Home::Own(_) | names::Home::No => {}
    }
    known_names([&a.cwd], &key("cwd"))?;
    known_names(a.command.iter().skip(1), &key("command"))?;
    variables(&a.env, &key("env"))?;
    for name in &a.env_pass {
        variable(name, &key("env_pass"))?;
    }
    bounds(a, &key)?;
    offers(a, &key)?;
    for (name, server) in &a.mcp {
        mcp_server(server, name, &join(&key("mcp"), name))?;
    }
    Ok(())
}

/// Texts in which the names of a session are known.
fn known_names<'t>(texts: impl IntoIterator<Item = &'t String>, key: &str) -> Check {
    for text in texts {
        if let Some(word) = names::unknown(text) {
            let known = names::KNOWN.map(|name| format!("{{{name}}}")).join(", ");
            return fail(key, format!("{text:?}: {{{word}}} is not known, only {known}"));
        }
    }
    Ok(())
}

fn variable(name: &str, key: &str) -> Check {
    if name.is_empty() || name.contains(['=', '\0']) {
        return fail(key, format!("{name:?} is not the name of a variable"));
    }
    Ok(())
}

fn variables(env: &BTreeMap<String, String>, key: &str) -> Check {
    known_names(env.values(), key)?;
    for (name, value) in env {
        variable(name, key)?;
        if value.contains('\0') {
            return fail(key, format!("the value of {name} has a NUL byte"));
        }
    }
    Ok(())
}

/// What is chosen of the offers of an agent that speaks the protocol, and what its sessions are given.
fn offers(a: &Agent, key: &dyn Fn(&str) -> String) -> Check {
    for id in [offers::MODE, offers::MODEL] {
        if a.kind == AgentKind::Acp && a.options.contains_key(id) {
            return fail(join(&key("options"), id), format!("is a key of its own: write {id} = …"));
        }
    }
    if a.system_prompt.len() > MOST_INSTRUCTIONS {
        let why = format!("{} bytes; at most {MOST_INSTRUCTIONS}", a.system_prompt.len());
        return fail(key("system_prompt"), why);
    }
    for (name, many) in [("options", a.options.len()), ("mcp", a.mcp.len())] {
        if many > MOST_PLACES {
            return fail(key(name), format!("{many} of them; at most {MOST_PLACES}"));
        }
    }
    Ok(())
}

/// One server of tools.
fn mcp_server(server: &McpServer, name: &str, at: &str) -> Check {
    let key = |of: &str| join(at, of);
    if name.is_empty() || name.chars().any(char::is_control) {
        return fail(at, "its name must not be empty or have control characters");
    }
    match (server.command.first().is_some_and(|program| !program.is_empty()), server.url.is_empty()) {
        (true, true) => {}
        (false, false) if !server.url.starts_with("http://") && !server.url.starts_with("https://") => {
            let plain = server.url.rsplit('@').next().unwrap_or_default();
            return fail(key("url"), format!("{plain:?}: an http:// or https:// URL"));
        }
        (false, false) => {}
        (true, false) => return fail(key("url"), "it has a command already: one of the two"),
        (false, true) => return fail(at, "needs a command or a url"),
    }
    if server.command.iter().any(|part| part.contains('\0')) {
        return fail(key("command"), "has a NUL byte");
    }
    known_names(server.command.iter().skip(1), &key("command"))?;
    variables(&server.env, &key("env"))?;
    for (name, value) in &server.headers {
        let bad = |c: char| c.is_control() || !c.is_ascii();
        if name.is_empty() || name.contains(|c: char| bad(c) || c == ':' || c == ' ') || value.contains(bad) {
            return fail(key("headers"), format!("{name:?} is no header"));
        }
    }
    Ok(())
}

fn kind_has_its_keys(a: &Agent, given: Option<&RawAgent>, key: &dyn Fn(&str) -> String) -> Check {
    if let Some(given) = given
        && given.kind.is_none()
        && let Some((name, kinds)) = kind_keys(given).into_iter().find(|(_, kinds)| !kinds.contains(&AgentKind::Echo))
    {
        let kinds: Vec<_> = kinds.iter().map(|k| k.as_str()).collect();
        return fail(key("kind"), format!("is missing (`{name}` is for {})", kinds.join(" and ")));
    }
    match a.kind {
        AgentKind::Acp | AgentKind::Exec => {
            let program = a.command.first().map(String::as_str).unwrap_or_default();
            if program.is_empty() {
                return fail(key("command"), format!("an agent of kind {} needs a program to run", a.kind));
            }
            if a.command.iter().any(|part| part.contains('\0')) {
                return fail(key("command"), "has a NUL byte");
            }
        }
        AgentKind::Openai => {
            if !a.url.starts_with("http://") && !a.url.starts_with("https://") {
                let plain = a.url.rsplit('@').next().unwrap_or_default();
                let why = if a.url.is_empty() { "is missing".into() } else { format!("{plain:?}") };
                return fail(key("url"), format!("{why}: an agent of kind openai needs an http:// or https:// URL"));
            }
            if a.model.is_empty() {
                return fail(key("model"), "an agent of kind openai needs the model's name");
            }
        }
        AgentKind::Lua => {
            let plain = |c: Component<'_>| matches!(c, Component::Normal(_));
            if a.handler.is_empty() || !Path::new(&a.handler).components().all(plain) {
                return fail(key("handler"), "an agent of kind lua needs a file below `agents` in the hooks directory");
            }
        }
        AgentKind::Echo => {}
    }
    Ok(())
}

/// The given keys that belong to some kinds only.
fn kind_keys(given: &RawAgent) -> Vec<(&'static str, &'static [AgentKind])> {
    const PROCESS: &[AgentKind] = &[AgentKind::Acp, AgentKind::Exec];
    const SESSION: &[AgentKind] = &[AgentKind::Acp];
    use AgentKind::{Acp, Echo, Exec, Lua, Openai};
    let all: [(bool, &'static str, &'static [AgentKind]); 21] = [
        (given.command.is_some(), "command", &[Acp, Exec]),
        (given.url.is_some(), "url", &[Openai]),
        (given.model.is_some(), "model", &[Acp, Openai]),
        (given.mode.is_some(), "mode", SESSION),
        (given.options.is_some(), "options", SESSION),
        (given.consent.is_some(), "consent", SESSION),
        (given.authenticate.is_some(), "authenticate", SESSION),
        (given.system_prompt.is_some(), "system_prompt", SESSION),
        (given.mcp.is_some(), "mcp", SESSION),
        (given.api_key_file.is_some(), "api_key_file", &[Openai]),
        (given.history.is_some(), "history", &[Acp, Openai]),
        (given.handler.is_some(), "handler", &[Lua]),
        (given.delay.is_some(), "delay", &[Echo]),
        (given.memory.is_some(), "memory", PROCESS),
        (given.processes.is_some(), "processes", PROCESS),
        (given.cpu.is_some(), "cpu", PROCESS),
        (given.cpu_weight.is_some(), "cpu_weight", PROCESS),
        (given.confine.is_some(), "confine", PROCESS),
        (given.write.is_some(), "write", PROCESS),
        (given.confine_required.is_some(), "confine_required", PROCESS),
        (given.confine_abi.is_some(), "confine_abi", PROCESS),
    ];
    all.into_iter().filter(|(is, ..)| *is).map(|(_, name, kinds)| (name, kinds)).collect()
}

/// Settings without effect: the key, and why.
pub fn warnings(c: &Config, given: &BTreeMap<String, RawAgent>) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let mut warn = |key: String, why: String| out.push((key, why));
    for (name, raw) in given {
        let kind = raw.kind.unwrap_or(AgentKind::Echo);
        for (key, kinds) in kind_keys(raw) {
            if !kinds.contains(&kind) {
                warn(join(&join("agent", name), key), format!("has no effect on an agent of kind {kind}"));
            }
        }
        if raw.permission_timeout.is_some() && raw.permission.is_some_and(|p| p != PermissionPolicy::Ask) {
            let why = "has no effect unless permission = \"ask\"".to_owned();
            warn(join(&join("agent", name), "permission_timeout"), why);
        }
        bounded(c, name, raw, &mut warn);
        if !matches!(raw.write.as_deref(), None | Some([])) && raw.confine != Some(Confine::Workdir) {
            warn(join(&join("agent", name), "write"), "has no effect unless confine = \"workdir\"".into());
        }
        if name != DEFAULT_AGENT && !c.routes.iter().any(|r| r.agent == *name) {
            warn(join("agent", name), "is never used: no route names it, and it is not `default`".into());
        }
    }
    let catch_all = c.routes.iter().position(|r| r.pattern.bytes().all(|b| b == b'*'));
    if let Some(first) = catch_all {
        for n in first + 1..c.routes.len() {
            warn(format!("route[{n}]"), format!("is never reached: route[{first}] matches every key"));
        }
    } else if !given.is_empty() && !given.contains_key(DEFAULT_AGENT) {
        warn("agent".into(), "no agent is called `default`: echo answers keys that no route claims".into());
    }
    for (n, route) in c.routes.iter().enumerate() {
        if let Some(what) = no_pattern(&route.pattern) {
            warn(format!("route[{n}].match"), format!("{:?}: {what}", route.pattern));
        }
        if !route.pattern.contains([':', '*']) {
            warn(format!("route[{n}].match"), format!("{:?} matches no key: every key has a colon", route.pattern));
        }
    }
    for (name, agent) in c.agent.iter().filter(|(_, a)| a.kind == AgentKind::Openai) {
        let path = agent.url.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
        if path.ends_with("/chat/completions") {
            let base = path.trim_end_matches("/chat/completions");
            let why = format!("requests go to URL/chat/completions: leave that out ({base:?})");
            warn(join(&join("agent", name), "url"), why);
        }
    }
    for name in given.keys().filter(|n| n.chars().any(is_unseen)) {
        warn(join("agent", name), format!("{name:?} has characters that are not seen"));
    }
    if !c.hooks.fs_roots.is_empty() && !c.hooks.allow_fs {
        warn("hooks.fs_roots".into(), "has no effect without \"fs\" in hooks.allow".into());
    }
    out
}

/// What does not go together with limits and confinement.
fn bounded(c: &Config, name: &str, raw: &RawAgent, warn: &mut impl FnMut(String, String)) {
    let key = |key: &str| join(&join("agent", name), key);
    let given = [
        ("memory", raw.memory.is_some()),
        ("processes", raw.processes.is_some()),
        ("cpu", raw.cpu.is_some()),
        ("cpu_weight", raw.cpu_weight.is_some()),
        ("confine", raw.confine.is_some_and(|c| c != Confine::None)),
    ];
    for (of, _) in given.into_iter().filter(|(_, is)| *is && c.agents.keep == Keep::Never) {
        warn(key(of), "has no effect with [agents] keep = \"never\"".into());
    }
    let words = raw.command.iter().flatten().filter_map(|word| Path::new(word).file_name()?.to_str());
    if let Some(tool) = words.into_iter().find(|word| NOT_CONFINED.contains(word))
        && raw.confine != Some(Confine::None)
    {
        let why = format!(
            "{tool} fails in an agent that is confined (no mounts, no setuid programs): set confine = \"none\", and leave the \
             sandbox to it"
        );
        warn(key("command"), why);
    }
}

/// The files with secrets that agents can read although they are confined: only the state directory and the service manager's
/// credentials are left out for them. The key of each, and the file.
#[must_use]
pub fn open_secrets<'c>(c: &'c Config, state_dir: &Path, env: super::paths::Env<'_>) -> Vec<(String, &'c Path)> {
    let token = c.http.iter().filter_map(|h| Some(("http.token_file".to_owned(), h.token_file.as_deref()?)));
    let keys = c.agent.values().filter_map(|a| {
        let file = a.api_key_file.as_deref().filter(|_| a.kind == AgentKind::Openai)?;
        Some((format!("{}.api_key_file", join("agent", &a.name)), file))
    });
    let credentials = env("CREDENTIALS_DIRECTORY").filter(|dir| dir.starts_with('/'));
    let is_open = |file: &Path| {
        let path = super::paths::secret_file(file, c, env);
        let path = path.canonicalize().unwrap_or(path);
        !path.starts_with(state_dir) && !credentials.as_ref().is_some_and(|dir| path.starts_with(dir))
    };
    token.chain(keys).filter(|(_, file)| is_open(file)).collect()
}

/// A character in a pattern that looks special but is not: only `*` is.
fn no_pattern(pattern: &str) -> Option<&'static str> {
    const WHY: &str = "only * has a meaning in a pattern, everything else stands for itself";
    let regex = pattern.starts_with('^')
        || pattern.ends_with('$')
        || [".*", ".+", "\\d", "\\w"].iter().any(|w| pattern.contains(w));
    let glob = pattern.contains(['?', '[', ']', '{', '}', '(', '|']);
    if regex || glob {
        return Some(WHY);
    }
    pattern.chars().any(is_unseen).then_some("it has characters that are not seen")
}

/// Characters of no width, and those that change the direction of what follows: two names that look the same should be.
pub fn is_unseen(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}
