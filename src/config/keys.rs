//! The one table of keys: ostler.toml(5), the commented sample and the list of keys that need a restart are made from
//! it.
//!
//! A test compares it with the parser: every key parses with the default given here, and no key is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::{Agent, Agents, Budget, Config, Daemon, Hooks, Http, Retention, Route, Sessions};

/// One key, for manuals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyDoc {
    /// Dotted; `agent.*.` stands for every agent, `route.` for every route.
    pub key: &'static str,
    /// The default as TOML; `None`: absent by default.
    pub default: Option<&'static str>,
    /// An example, where the default shows nothing.
    pub example: Option<&'static str>,
    /// What it does, in a sentence or two.
    pub doc: &'static str,
}

impl KeyDoc {
    /// Section and name: `agent.*.kind` is `("agent.*", "kind")`.
    #[must_use]
    pub fn split(&self) -> (&'static str, &'static str) {
        self.key.rsplit_once('.').unwrap_or(("", self.key))
    }

    /// Whether a change needs a restart.
    #[must_use]
    pub fn needs_restart(&self) -> bool {
        restarts(self.key)
    }
}

const fn key(key: &'static str, default: &'static str, doc: &'static str) -> KeyDoc {
    KeyDoc { key, default: Some(default), example: None, doc }
}

const fn absent(key: &'static str, example: &'static str, doc: &'static str) -> KeyDoc {
    KeyDoc { key, default: None, example: Some(example), doc }
}

const fn shown(key: &'static str, default: &'static str, example: &'static str, doc: &'static str) -> KeyDoc {
    KeyDoc { key, default: Some(default), example: Some(example), doc }
}

/// Every section, with a sentence for manuals, in the order of the sample.
pub static SECTIONS: &[(&str, &str)] = &[
    ("daemon", "The daemon itself."),
    ("http", "A TCP listener with the same API as the socket. Without this section only the unix socket is served."),
    ("sessions", "Limits on sessions, and what happens to messages."),
    ("shutdown", "The budget of a stop. The sum of the phases must stay at least 1s below `deadline`."),
    ("hooks", "Lua scripts and their limits."),
    ("hooks.config", "Any values; scripts read them as `ostler.config`."),
    ("retention", "What is pruned, and when; a duration or \"never\"."),
    ("agents", "Agents that are processes (acp, exec), and what they outlive."),
    ("agent.*", "An agent, by name. `default` serves keys that no route claims; when it is not defined, echo does."),
    ("route", "Which agent serves which keys: the first route that matches wins."),
];

/// Every key, in the order of the sample.
pub static KEYS: &[KeyDoc] = &[
    key("daemon.log", "\"info\"", "Log filter: a level, or MODULE=LEVEL with commas between. RUST_LOG wins."),
    key("http.listen", "\"127.0.0.1:7411\"", "Address and port of the listener."),
    absent(
        "http.token_file",
        "\"/etc/ostler/token\"",
        "File with the bearer token; required for anything but loopback. A bare name is looked up in \
         $CREDENTIALS_DIRECTORY if that is set; other relative paths are beside this file.",
    ),
    key(
        "sessions.max_live",
        "1024",
        "Live sessions at once. Beyond it the least recently used idle session is parked; if all run, a new session waits.",
    ),
    key(
        "sessions.park_after",
        "\"30m\"",
        "An idle session is parked after this: its agent is closed, and its thread ends.",
    ),
    key(
        "sessions.background_hold",
        "\"1h\"",
        "After an agent has worked between turns, park_after does not park its session for this long.",
    ),
    key("sessions.idle_reset", "\"never\"", "A message after this much silence opens a new session."),
    shown(
        "sessions.daily_reset",
        "\"never\"",
        "\"04:00\"",
        "The first message after this local time (HH:MM) opens a new session.",
    ),
    key("sessions.queue_limit", "32", "Queued messages a session; beyond it a message is refused (queue_full)."),
    key("sessions.queue_total", "10000", "Waiting messages in all; beyond it a message is refused (overloaded)."),
    key(
        "sessions.answer",
        "\"64MiB\"",
        "The longest answer of one turn; beyond it the turn fails (answer_too_large), and the text so far is kept.",
    ),
    key(
        "sessions.busy",
        "\"queue\"",
        "What a message during a turn does: \"queue\" waits, \"collect\" joins all waiting messages in one turn, \
         \"interrupt\" cancels the turn.",
    ),
    key(
        "sessions.resume",
        "\"auto\"",
        "When interrupted sessions are resumed: \"auto\" at boot, \"on_message\" with the next message, \"never\".",
    ),
    key("sessions.resume_window", "\"1h\"", "How old an interruption may be; an older one opens a new session."),
    key(
        "sessions.stuck_threshold",
        "3",
        "Unclean deaths in a row without a completed turn before a session is suspended; 0 is off.",
    ),
    key("shutdown.drain", "\"30s\"", "Running turns may finish."),
    key("shutdown.interrupt", "\"10s\"", "Turns that still run are cancelled and their agents ended."),
    key("shutdown.hooks", "\"10s\"", "Time for all hooks of a stop together: `shutdown`, `session_end`, `stopped`."),
    key("shutdown.close", "\"5s\"", "The agents of idle sessions, and the store."),
    key(
        "shutdown.deadline",
        "\"60s\"",
        "The hard limit: then the process logs what hangs and exits at once with code 1.",
    ),
    absent(
        "hooks.dir",
        "\"/etc/ostler/hooks.d\"",
        "Directory of the scripts, relative to this file. Default: hooks.d beside this file, if it exists.",
    ),
    key("hooks.threads", "2", "Threads for journalled and notifying events; synchronous ones have their own."),
    key("hooks.timeout", "\"5s\"", "Limit of one handler call, unless its registration sets another."),
    key("hooks.memory", "\"64MiB\"", "Memory of one Lua state."),
    shown(
        "hooks.allow",
        "[]",
        "[\"exec\", \"http\", \"fs\"]",
        "What scripts may do beyond pure Lua: \"exec\" runs commands, \"http\" makes requests, \"fs\" opens files.",
    ),
    shown(
        "hooks.fs_roots",
        "[]",
        "[\"/srv/notes\"]",
        "With \"fs\": the directories below which scripts may open files; empty: everywhere that the process may.",
    ),
    key("hooks.attempts", "5", "Deliveries of a journalled event to a handler before it is set aside."),
    key("retention.ended", "\"never\"", "Transcripts of ended sessions."),
    key("retention.events", "\"7d\"", "The event stream."),
    key("retention.ids", "\"7d\"", "Idempotency ids."),
    key("retention.journal", "\"7d\"", "Settled deliveries; deliveries that were set aside are kept 30 days."),
    key("retention.reports", "100", "Stop reports, a count."),
    key(
        "agents.keep",
        "\"restart\"",
        "What running agents outlive: \"restart\" a crash or a restart of the daemon, \"crash\" a crash only, \"never\" \
         nothing. A stop ends them. `ostler stop --keep` and `ostler restart --end` differ for one time.",
    ),
    key(
        "agents.orphan_after",
        "\"2m\"",
        "How long an agent works on without a daemon; then it is ended. Also the time for which a stop of the service that \
         comes after a crash and before the next start leaves agents running.",
    ),
    key(
        "agents.spool",
        "\"256MiB\"",
        "What one agent may write while no daemon reads it: 1MiB in memory, the rest in the state directory; then the agent \
         waits. At least 64MiB.",
    ),
    shown(
        "agent.*.kind",
        "\"echo\"",
        "\"acp\"",
        "\"acp\" a program that speaks the Agent Client Protocol, \"exec\" a command run once a turn, \"openai\" an \
         OpenAI-compatible endpoint, \"lua\" a Lua function, \"echo\" repeats the message.",
    ),
    shown(
        "agent.*.command",
        "[]",
        "[\"my-agent\", \"--acp\"]",
        "acp, exec: program and arguments. A name without a slash is looked up in the agent's PATH, a relative path in its working directory.",
    ),
    key(
        "agent.*.cwd",
        "\"work/{slug}\"",
        "Working directory, relative to the state directory, made if missing; a leading ~/ is the home directory. {slug} is \
         the letters and digits of the session's key with a digest, {key} the key with all but A-Za-z0-9_- percent-encoded, \
         {hash} a digest of the key, {id} the session's id: known in env values and in command's arguments too. A session \
         that has a directory work/{key}, once the default, keeps it.",
    ),
    key(
        "agent.*.env",
        "{ LANG = \"C.UTF-8\" }",
        "The agent's environment. The daemon's own is not inherited, except env_pass.",
    ),
    key("agent.*.env_pass", "[\"PATH\", \"HOME\"]", "Variables of the daemon that the agent inherits."),
    key("agent.*.max_processes", "32", "Live sessions of this agent, by the same rule as sessions.max_live."),
    key("agent.*.start_timeout", "\"90s\"", "Time to become ready for a prompt."),
    key(
        "agent.*.start_retries",
        "1",
        "acp: how often a failed start is tried again within start_timeout. A missing login is not tried again.",
    ),
    key(
        "agent.*.turn_timeout",
        "\"2h\"",
        "Limit of a whole turn, without waits for a permission; then the turn is cancelled and fails (timeout).",
    ),
    key("agent.*.silence_timeout", "\"never\"", "Limit of silence of the agent in a turn; then the same."),
    key(
        "agent.*.permission",
        "\"ask\"",
        "Who answers a permission request: \"ask\" (hooks, then the client), or always \"allow\" or \"deny\".",
    ),
    key("agent.*.permission_timeout", "\"5m\"", "Limit of the wait for an answer; then the request is denied."),
    shown(
        "agent.*.on_interrupt",
        "\"rerun\"",
        "\"resume\"",
        "How an interrupted turn is resumed: \"resume\" continues with a note, \"rerun\" sends the message again, \
         \"wait\" waits for the next message. The default is \"resume\" for acp and \"rerun\" for the others.",
    ),
    shown("agent.*.url", "\"\"", "\"http://127.0.0.1:8080/v1\"", "openai: requests go to URL/chat/completions."),
    shown(
        "agent.*.model",
        "\"\"",
        "\"my-model\"",
        "openai: the model's name. acp: the model of each session, by the agent's own id or name for it.",
    ),
    shown(
        "agent.*.mode",
        "\"\"",
        "\"ask\"",
        "acp: the mode of each session, by the agent's own id or name for it; set again whenever a session is reopened. One \
         that the agent does not have fails the start (agent_option) with a list of those that it has. The same holds for \
         model and options.",
    ),
    shown(
        "agent.*.options",
        "{}",
        "{ effort = \"high\" }",
        "acp: further options of each session, by the agent's own ids: one of the agent's values, or true or false.",
    ),
    absent(
        "agent.*.consent",
        "\"required\"",
        "acp: what an agent meets whose mode is known to ask nobody before it acts. \"required\": that is told, in the log and \
         to the sender (asks_nobody). \"strict\": it is not started.",
    ),
    shown(
        "agent.*.authenticate",
        "\"\"",
        "\"api-key\"",
        "acp: the login method that the agent is told to use before a session is opened. Without it, an agent that wants a \
         login is told to use a method of its own whose variables are all set in its environment.",
    ),
    shown(
        "agent.*.system_prompt",
        "\"\"",
        "\"Answer in one sentence.\"",
        "acp: instructions that are added to the agent's own, where the agent takes any.",
    ),
    shown(
        "agent.*.mcp",
        "{}",
        "{ files = { command = [\"my-mcp\", \"--read-only\"] } }",
        "acp: tools for each session by the Model Context Protocol, a table for each: command and env of a program that the \
         agent starts, or url and headers of a server, where the agent takes those. {slug}, {key}, {hash} and {id} are known \
         in arguments and env.",
    ),
    absent(
        "agent.*.api_key_file",
        "\"/etc/ostler/api-key\"",
        "openai: file with the key, sent as a bearer token. A bare name is looked up in $CREDENTIALS_DIRECTORY if that is \
         set; other relative paths are beside this file.",
    ),
    key(
        "agent.*.history",
        "\"64KiB\"",
        "openai, and acp when the agent lost the session: how much of the transcript it is given, the newest whole \
         entries that fit.",
    ),
    shown("agent.*.handler", "\"\"", "\"reply.lua\"", "lua: a file below `agents` in the hooks directory."),
    key("agent.*.delay", "\"0s\"", "echo: time before the answer."),
    absent(
        "agent.*.memory",
        "\"2GiB\"",
        "acp, exec: memory of all processes of a session together. Beyond it the kernel ends one of them, and the turn \
         fails (out_of_memory) if that was the agent itself. This and the next three need control groups, which the \
         packaged service delegates with systemd 254 or later: `ostler doctor` says whether they are in force.",
    ),
    key("agent.*.processes", "512", "acp, exec: processes and threads of a session together."),
    absent("agent.*.cpu", "\"200%\"", "acp, exec: processor time of a session; \"100%\" is one processor."),
    key("agent.*.cpu_weight", "100", "acp, exec: share of a session while processors are short, 1 to 10000."),
    absent(
        "agent.*.confine",
        "\"state\"",
        "acp, exec: which files the agent's processes may reach, by Landlock. \"state\": all that the user may, except \
         the state directory (but for the session's own working directory) and the credentials directory. \"workdir\": \
         the same for reading; writing only below the working directory, HOME, TMPDIR and write. \"none\": all that the user \
         may; for agents with a sandbox of their own (bubblewrap, rootless containers) and for sudo, which fail \
         otherwise. The default is \"state\" where the daemon's user may not write to any directory above the state \
         directory, as in the packaged service, else \"none\".",
    ),
    shown(
        "agent.*.write",
        "[]",
        "[\"~/notes\", \"/srv/shared\"]",
        "acp, exec: with confine = \"workdir\", further places that the agent may write; ~ is its HOME.",
    ),
    key("agent.*.confine_required", "false", "acp, exec: an agent is not started where the kernel cannot confine it."),
    key(
        "agent.*.confine_abi",
        "3",
        "acp, exec: the least version of Landlock that confine_required takes. Before 3 an agent can truncate the \
         database, before 5 it can control devices, before 6 it can signal processes and reach abstract sockets.",
    ),
    absent(
        "route.match",
        "\"telegram:*\"",
        "Pattern of the keys that the route claims; * matches any characters. Required.",
    ),
    key("route.agent", "\"default\"", "The agent that serves them."),
];

/// The configuration as a commented sample: every key with its default, nothing in force.
#[must_use]
pub fn sample() -> String {
    let mut out = String::from(
        "# Configuration of ostler; see ostler.toml(5). Every key is optional: what stands here, commented out, is the\n\
         # default (or an example, where there is none). Durations: \"30s\", \"5m\", \"1h30m\", \"7d\", \"never\".\n\
         # `ostler check-config` checks it, `systemctl reload ostler` (or `ostler reload`) puts it in force.\n",
    );
    for (section, about) in SECTIONS {
        let header = match *section {
            "agent.*" => "[agent.default]".to_owned(),
            "route" => "[[route]]".to_owned(),
            name => format!("[{name}]"),
        };
        out.push('\n');
        comment(&mut out, about);
        let _ = writeln!(out, "#{header}");
        for k in KEYS.iter().filter(|k| k.split().0 == *section) {
            let value = k.default.filter(|d| !matches!(*d, "\"\"" | "[]")).or(k.example).unwrap_or("\"\"");
            comment(&mut out, k.doc);
            let _ = writeln!(out, "#{} = {value}", k.split().1);
        }
    }
    out
}

/// A comment, in lines that an editor shows whole.
fn comment(out: &mut String, text: &str) {
    let mut width = usize::MAX;
    for word in text.split(' ') {
        if width.saturating_add(word.len()) >= 100 {
            out.push_str(if width == usize::MAX { "#" } else { "\n#" });
            width = 1;
        }
        let _ = write!(out, " {word}");
        width += word.len() + 1;
    }
    out.push('\n');
}

/// The keys whose values differ, dotted and sorted: `agent.default.kind`, `route`, `http.listen`.
#[must_use]
pub fn diff(old: &Config, new: &Config) -> Vec<String> {
    let (old, new) = (flat(old), flat(new));
    let names: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    names.into_iter().filter(|name| old.get(*name) != new.get(*name)).cloned().collect()
}

/// The keys among them that take effect only with a restart.
#[must_use]
pub fn needs_restart(changed: &[String]) -> Vec<String> {
    changed.iter().filter(|key| restarts(key)).cloned().collect()
}

fn restarts(key: &str) -> bool {
    // The number of hook threads stays: with another number a key's events would change threads and lose their order.
    key.starts_with("http.") || key == "http" || key == "hooks.threads"
}

/// Puts every field of a section into the map. The pattern has no `..`, so a new field cannot be forgotten.
macro_rules! put {
    ($out:ident, $at:expr, $value:expr, $of:ident { $($field:ident $(as $name:literal)?),+ $(; $skip:ident)* }) => {{
        let $of { $($field,)+ $($skip: _,)* } = $value;
        $(
            #[allow(unused_mut, unused_assignments)]
            let mut name = stringify!($field);
            $(name = $name;)?
            $out.entry(format!("{}.{name}", $at)).or_insert_with(String::new).push_str(&format!("{:?};", $field));
        )+
    }};
}

/// Every key in force with its value as text.
pub(super) fn flat(c: &Config) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let Config { daemon, http, sessions, shutdown, hooks, retention, agents, agent, routes, file: _, warnings: _ } = c;
    put!(out, "daemon", daemon, Daemon { log });
    if let Some(http) = http {
        put!(out, "http", http, Http { listen, token_file });
    }
    put!(
        out,
        "sessions",
        sessions,
        Sessions {
            max_live,
            park_after,
            background_hold,
            idle_reset,
            daily_reset,
            queue_limit,
            queue_total,
            answer,
            busy,
            resume,
            resume_window,
            stuck_threshold
        }
    );
    put!(out, "shutdown", shutdown, Budget { drain, interrupt, hooks, close, deadline });
    put!(out, "hooks", hooks, Hooks {
        dir, threads, timeout, memory, allow_exec as "allow", allow_http as "allow", allow_fs as "allow", fs_roots,
        attempts, config
    });
    put!(out, "retention", retention, Retention { ended, events, ids, journal, reports });
    put!(out, "agents", agents, Agents { keep, orphan_after, spool });
    for agent in agent.values() {
        let at = super::locate::join("agent", &agent.name);
        put!(out, at, agent, Agent {
            kind, command, cwd, env, env_pass, max_processes, start_timeout, start_retries, turn_timeout, silence_timeout, permission,
            permission_timeout, on_interrupt, url, model, mode, options, consent, authenticate, system_prompt, mcp, api_key_file, history, handler, delay, memory, processes,
            cpu, cpu_weight, confine, write, confine_required, confine_abi; name
        });
    }
    for (n, route) in routes.iter().enumerate() {
        put!(out, format!("route[{n}]"), route, Route { pattern as "match", agent });
    }
    out
}
