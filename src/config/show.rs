//! The configuration in force as TOML: the given values, and the defaults for the rest.
//!
//! Owns the decision which values are secrets and are not shown. It must not read files: a secret's file is named, not
//! opened.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use toml::{Table, Value};

use super::login::without_login;
use super::text::duration_text;
use super::{
    Agent, AgentKind, Agents, Budget, Config, Daemon, Hooks, Http, Maybe, McpServer, Retention, Route, Sessions,
};
use crate::model::offers::Pick;

/// The text in place of a secret.
const HIDDEN: &str = "(not shown)";
/// A name with one of these in it names a secret.
const SECRET: [&str; 9] = ["key", "token", "secret", "pass", "credential", "auth", "cookie", "private", "signature"];

/// Every key with its value, as a file that the parser takes. Values of `env` that are not the defaults, values of
/// `[hooks.config]` and arguments of commands whose name says that they are secret, and logins in URLs are not shown.
#[must_use]
pub fn show(c: &Config) -> String {
    let Config {
        daemon,
        http,
        sessions,
        shutdown,
        hooks,
        retention,
        agents,
        agent: named,
        routes,
        file: _,
        warnings: _,
    } = c;
    let mut out = Table::new();
    let Daemon { log } = daemon;
    out.insert("daemon".into(), table([("log", text(log))]));
    if let Some(Http { listen, token_file }) = http {
        let token_file = token_file.as_deref().map(path);
        let both = [("listen", Some(text(&listen.to_string()))), ("token_file", token_file)];
        out.insert("http".into(), table(both.into_iter().filter_map(|(k, v)| Some((k, v?)))));
    }
    let Sessions {
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
        stuck_threshold,
    } = sessions;
    let daily = daily_reset.map_or_else(|| "never".to_owned(), |(h, m)| format!("{h:02}:{m:02}"));
    out.insert(
        "sessions".into(),
        table([
            ("max_live", number(*max_live)),
            ("park_after", maybe(*park_after)),
            ("background_hold", maybe(*background_hold)),
            ("idle_reset", maybe(*idle_reset)),
            ("daily_reset", text(&daily)),
            ("queue_limit", number(*queue_limit)),
            ("queue_total", number(*queue_total)),
            ("answer", size(*answer)),
            ("busy", text(busy.as_str())),
            ("resume", text(resume.as_str())),
            ("resume_window", maybe(*resume_window)),
            ("stuck_threshold", number(*stuck_threshold as usize)),
        ]),
    );
    let Budget { drain, interrupt, hooks: pot, close, deadline } = shutdown;
    let parts = [("drain", drain), ("interrupt", interrupt), ("hooks", pot), ("close", close), ("deadline", deadline)];
    out.insert("shutdown".into(), table(parts.map(|(k, d)| (k, duration(*d)))));
    out.insert("hooks".into(), hooks_table(hooks));
    let Retention { ended, events, ids, journal, reports } = retention;
    let ages = [("ended", ended), ("events", events), ("ids", ids), ("journal", journal)].map(|(k, d)| (k, maybe(*d)));
    let reports = ("reports", number(*reports as usize));
    out.insert("retention".into(), table(ages.into_iter().chain([reports])));
    let Agents { keep, orphan_after, spool } = agents;
    let agents = [("keep", text(keep.as_str())), ("orphan_after", duration(*orphan_after)), ("spool", size(*spool))];
    out.insert("agents".into(), table(agents));
    out.insert("agent".into(), table(named.iter().map(|(name, a)| (name.as_str(), agent(a)))));
    let routes =
        routes.iter().map(|Route { pattern, agent }| table([("match", text(pattern)), ("agent", text(agent))]));
    let routes: Vec<_> = routes.collect();
    if !routes.is_empty() {
        out.insert("route".into(), Value::Array(routes));
    }
    toml::to_string(&out).unwrap_or_else(|e| format!("# {e}\n"))
}

fn hooks_table(h: &Hooks) -> Value {
    let Hooks { dir, threads, timeout, memory, allow_exec, allow_http, allow_fs, fs_roots, attempts, config } = h;
    let allow = [(allow_exec, "exec"), (allow_http, "http"), (allow_fs, "fs")];
    let allow = allow.into_iter().filter(|(on, _)| **on).map(|(_, word)| text(word)).collect();
    let own = [
        ("threads", number(*threads)),
        ("timeout", duration(*timeout)),
        ("memory", size(*memory)),
        ("allow", Value::Array(allow)),
        ("fs_roots", Value::Array(fs_roots.iter().map(|p| path(p)).collect())),
        ("attempts", number(*attempts as usize)),
    ];
    let dir = dir.as_deref().map(|d| ("dir", path(d)));
    let config = Some(("config", json(config))).filter(|(_, c)| c.as_table().is_some_and(|t| !t.is_empty()));
    table(dir.into_iter().chain(own).chain(config))
}

fn agent(a: &Agent) -> Value {
    let Agent {
        name: _,
        kind,
        command,
        cwd,
        env,
        env_pass,
        max_processes,
        start_timeout,
        start_retries,
        turn_timeout,
        silence_timeout,
        permission,
        permission_timeout,
        on_interrupt,
        url,
        model,
        mode,
        options,
        consent,
        authenticate,
        system_prompt,
        mcp,
        api_key_file,
        history,
        handler,
        delay,
        memory,
        processes,
        cpu,
        cpu_weight,
        confine,
        write,
        confine_required,
        confine_abi,
    } = a;
    let process = matches!(kind, AgentKind::Acp | AgentKind::Exec);
    let list = |all: &[String]| Value::Array(all.iter().map(|s| text(s)).collect());
    let usual = Agent::of_kind("", *kind).env;
    let env = env.iter().map(|(n, v)| (n.as_str(), text(if usual.get(n) == Some(v) { v } else { HIDDEN })));
    let some = |s: &str| Some(s).filter(|s| !s.is_empty()).map(text);
    table(
        [
            ("kind", Some(text(kind.as_str()))),
            ("command", (!command.is_empty()).then(|| list(&arguments(command)))),
            ("cwd", Some(text(cwd))),
            ("env", Some(table(env))),
            ("env_pass", Some(list(env_pass))),
            ("max_processes", Some(number(*max_processes))),
            ("start_timeout", Some(duration(*start_timeout))),
            ("start_retries", Some(number(*start_retries as usize))),
            ("turn_timeout", Some(maybe(*turn_timeout))),
            ("silence_timeout", Some(maybe(*silence_timeout))),
            ("permission", Some(text(permission.as_str()))),
            ("permission_timeout", Some(maybe(*permission_timeout))),
            ("on_interrupt", Some(text(on_interrupt.as_str()))),
            ("url", some(&without_login(url))),
            ("model", some(model)),
            ("mode", some(mode)),
            ("options", (!options.is_empty()).then(|| table(options.iter().map(|(id, w)| (id.as_str(), pick(w)))))),
            ("consent", consent.map(|c| text(c.as_str()))),
            ("authenticate", some(authenticate)),
            ("system_prompt", some(system_prompt)),
            (
                "mcp",
                (!mcp.is_empty()).then(|| table(mcp.iter().map(|(name, server)| (name.as_str(), mcp_server(server))))),
            ),
            ("api_key_file", api_key_file.as_deref().map(path)),
            ("history", matches!(kind, AgentKind::Acp | AgentKind::Openai).then(|| size(*history))),
            ("handler", some(handler)),
            ("delay", (!delay.is_zero()).then(|| duration(*delay))),
            ("memory", memory.map(size)),
            ("processes", process.then(|| number(*processes as usize))),
            ("cpu", cpu.map(|percent| text(&format!("{percent}%")))),
            ("cpu_weight", process.then(|| number(*cpu_weight as usize))),
            ("confine", confine.map(|c| text(c.as_str()))),
            ("write", (!write.is_empty()).then(|| list(write))),
            ("confine_required", process.then_some(Value::Boolean(*confine_required))),
            ("confine_abi", process.then(|| number(*confine_abi as usize))),
        ]
        .into_iter()
        .filter_map(|(k, v)| Some((k, v?))),
    )
}

fn pick(pick: &Pick) -> Value {
    match pick {
        Pick::Switch(on) => Value::Boolean(*on),
        Pick::Value(value) => text(value),
    }
}

fn mcp_server(server: &McpServer) -> Value {
    let McpServer { command, env, url, headers } = server;
    let hidden = |all: &BTreeMap<String, String>| table(all.keys().map(|name| (name.as_str(), text(HIDDEN))));
    let command = Value::Array(arguments(command).iter().map(|s| text(s)).collect());
    let own = if url.is_empty() {
        [("command", command), ("env", hidden(env))]
    } else {
        [("url", text(&without_login(url))), ("headers", hidden(headers))]
    };
    table(own)
}

/// A command's arguments without secrets: the value of `--api-key=…`, the argument after `--token`, logins in URLs.
fn arguments(command: &[String]) -> Vec<String> {
    let mut after_secret = false;
    let one = |arg: &String| {
        let hide = std::mem::replace(&mut after_secret, false);
        if hide && !arg.starts_with('-') {
            return HIDDEN.to_owned();
        }
        match arg.split_once('=') {
            Some((name, _)) if is_secret(name) => format!("{name}={HIDDEN}"),
            _ => {
                after_secret = arg.starts_with('-') && is_secret(arg);
                without_login(arg)
            }
        }
    };
    command.iter().map(one).collect()
}

fn is_secret(name: &str) -> bool {
    let name = name.to_lowercase();
    SECRET.iter().any(|word| name.contains(word))
}

/// `[hooks.config]`, which came from TOML.
fn json(value: &serde_json::Value) -> Value {
    use serde_json::Value as J;
    match value {
        J::Null => text(""),
        J::Bool(b) => Value::Boolean(*b),
        J::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(n), _) => Value::Integer(n),
            (None, Some(x)) => Value::Float(x),
            (None, None) => text(&n.to_string()),
        },
        J::String(s) => text(&without_login(s)),
        J::Array(all) => Value::Array(all.iter().map(json).collect()),
        J::Object(all) => {
            let shown = |(k, v): (&String, &J)| {
                let hide = is_secret(k) && !matches!(v, J::Object(_) | J::Bool(_));
                (k.clone(), if hide { text(HIDDEN) } else { json(v) })
            };
            Value::Table(all.iter().map(shown).collect())
        }
    }
}

fn table<'k>(rows: impl IntoIterator<Item = (&'k str, Value)>) -> Value {
    Value::Table(rows.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
}

fn text(s: &str) -> Value {
    Value::String(s.to_owned())
}

fn path(p: &Path) -> Value {
    text(&p.to_string_lossy())
}

fn number(n: usize) -> Value {
    Value::Integer(i64::try_from(n).unwrap_or(i64::MAX))
}

fn duration(d: Duration) -> Value {
    text(&duration_text(d))
}

fn maybe(d: Maybe) -> Value {
    d.map_or_else(|| text("never"), duration)
}

/// Bytes in the largest unit that divides them.
fn size(bytes: u64) -> Value {
    let unit =
        [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")].into_iter().find(|(n, _)| bytes.is_multiple_of(*n));
    text(&match unit {
        Some((n, name)) if bytes > 0 => format!("{}{name}", bytes / n),
        _ => format!("{bytes}B"),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::parse;

    #[test]
    fn what_is_shown_means_the_same() {
        let given = "[http]\nlisten = \"127.0.0.1:1\"\ntoken_file = \"/t\"\n\
            [sessions]\npark_after = \"1h 30m\"\ndaily_reset = \"04:05\"\n\
            [hooks]\ndir = \"/h\"\nallow = [\"fs\"]\nfs_roots = [\"/r\"]\nmemory = \"5MiB\"\n\
            [hooks.config]\nn = 1\nlist = [1.5, true]\n[hooks.config.deep]\nwho = \"me\"\n\
            [agent.default]\nkind = \"acp\"\ncommand = [\"a\", \"--acp\"]\nmemory = \"2GiB\"\ncpu = \"150%\"\n\
            confine = \"workdir\"\nwrite = [\"/srv\"]\n[agents]\nkeep = \"crash\"\n\
            [agent.o]\nkind = \"openai\"\nurl = \"http://h/v1\"\nmodel = \"m\"\n\
            [[route]]\nmatch = \"o:*\"\nagent = \"o\"\n";
        for text in ["", given] {
            let config = parse(text, None).unwrap();
            let shown = show(&config);
            let mut again = parse(&shown, None).unwrap_or_else(|e| panic!("{e}:\n{shown}"));
            // That a default has no effect on this kind of agent is no news.
            again.warnings.clone_from(&config.warnings);
            assert_eq!(again, config, "{shown}");
        }
        assert!(show(&Config::default()).contains("[sessions]\nmax_live = 1024\n"));
    }

    #[test]
    fn secrets_are_not_shown() {
        let text = "[hooks.config]\nurl = \"https://u:geheim1@h/x\"\n[hooks.config.irc]\npassword = \"geheim2\"\nuser = \"me\"\n\
            [agent.default]\nkind = \"acp\"\nenv = { LANG = \"C.UTF-8\", X = \"geheim3\" }\n\
            command = [\"a\", \"--api-key\", \"geheim4\", \"--token=geheim5\", \"db://u:geheim6@h\", \"--acp\"]\n\
            [agent.o]\nkind = \"openai\"\nurl = \"http://me:geheim7@h/v1\"\nmodel = \"m\"\n";
        let shown = show(&parse(text, None).unwrap());
        assert!(!shown.contains("geheim"), "{shown}");
        for piece in
            ["https://h/x", "user = \"me\"", "LANG = \"C.UTF-8\"", "--api-key", "\"--acp\"", "db://h", "http://h/v1"]
        {
            assert!(shown.contains(piece), "{piece}: {shown}");
        }
    }
}
