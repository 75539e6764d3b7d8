//! The shapes that TOML is read into, and how they become the configuration.
//!
//! Owns the keys of the file and their defaults. It must not know which values fit each other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::text::{duration, json_table, size, some_duration, some_maybe, some_percent, some_size};
use super::{
    Agent, AgentKind, Agents, Budget, Config, Confine, Consent, DEFAULT_AGENT, Daemon, Hooks, Http, Maybe, McpServer,
    OnInterrupt, PermissionPolicy, Retention, Route, Sessions,
};
use crate::model::offers::Pick;

/// `[shutdown]` as it stands in the file.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct BudgetTable {
    #[serde(deserialize_with = "duration")]
    drain: Duration,
    #[serde(deserialize_with = "duration")]
    interrupt: Duration,
    #[serde(deserialize_with = "duration")]
    hooks: Duration,
    #[serde(deserialize_with = "duration")]
    close: Duration,
    #[serde(deserialize_with = "duration")]
    deadline: Duration,
}

impl Default for BudgetTable {
    fn default() -> Self {
        let Budget { drain, interrupt, hooks, close, deadline } = Budget::default();
        Self { drain, interrupt, hooks, close, deadline }
    }
}

impl From<BudgetTable> for Budget {
    fn from(table: BudgetTable) -> Self {
        let BudgetTable { drain, interrupt, hooks, close, deadline } = table;
        Self { drain, interrupt, hooks, close, deadline }
    }
}

/// The whole file.
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    daemon: Daemon,
    http: Option<Http>,
    sessions: Sessions,
    shutdown: BudgetTable,
    hooks: RawHooks,
    retention: Retention,
    agents: Agents,
    agent: BTreeMap<String, RawAgent>,
    route: Vec<RawRoute>,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawHooks {
    dir: Option<PathBuf>,
    threads: usize,
    #[serde(deserialize_with = "duration")]
    timeout: Duration,
    #[serde(deserialize_with = "size")]
    memory: u64,
    allow: Vec<Allow>,
    fs_roots: Vec<PathBuf>,
    attempts: u32,
    #[serde(deserialize_with = "json_table")]
    config: serde_json::Value,
}

/// What scripts may be allowed.
#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Allow {
    Exec,
    Http,
    Fs,
}

impl Default for RawHooks {
    fn default() -> Self {
        let d = Hooks::default();
        Self {
            dir: d.dir,
            threads: d.threads,
            timeout: d.timeout,
            memory: d.memory,
            allow: Vec::new(),
            fs_roots: d.fs_roots,
            attempts: d.attempts,
            config: d.config,
        }
    }
}

/// `[agent.NAME]` as it stands in the file.
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct RawAgent {
    pub kind: Option<AgentKind>,
    pub command: Option<Vec<String>>,
    pub cwd: Option<String>,
    pub env: Option<BTreeMap<String, String>>,
    pub env_pass: Option<Vec<String>>,
    pub max_processes: Option<usize>,
    #[serde(deserialize_with = "some_duration")]
    pub start_timeout: Option<Duration>,
    pub start_retries: Option<u32>,
    #[serde(deserialize_with = "some_maybe")]
    pub turn_timeout: Option<Maybe>,
    #[serde(deserialize_with = "some_maybe")]
    pub silence_timeout: Option<Maybe>,
    pub permission: Option<PermissionPolicy>,
    #[serde(deserialize_with = "some_maybe")]
    pub permission_timeout: Option<Maybe>,
    pub on_interrupt: Option<OnInterrupt>,
    pub url: Option<String>,
    pub model: Option<String>,
    pub mode: Option<String>,
    pub options: Option<BTreeMap<String, Pick>>,
    pub consent: Option<Consent>,
    pub authenticate: Option<String>,
    pub system_prompt: Option<String>,
    pub mcp: Option<BTreeMap<String, McpServer>>,
    pub api_key_file: Option<PathBuf>,
    #[serde(deserialize_with = "some_size")]
    pub history: Option<u64>,
    pub handler: Option<String>,
    #[serde(deserialize_with = "some_duration")]
    pub delay: Option<Duration>,
    #[serde(deserialize_with = "some_size")]
    pub memory: Option<u64>,
    pub processes: Option<u32>,
    #[serde(deserialize_with = "some_percent")]
    pub cpu: Option<u32>,
    pub cpu_weight: Option<u32>,
    pub confine: Option<Confine>,
    pub write: Option<Vec<String>>,
    pub confine_required: Option<bool>,
    pub confine_abi: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRoute {
    #[serde(rename = "match")]
    pattern: String,
    #[serde(default = "default_agent")]
    agent: String,
}

fn default_agent() -> String {
    DEFAULT_AGENT.to_owned()
}

/// The configuration of a file, and its agents as they stand there.
pub fn build(raw: Raw, file: Option<&Path>) -> (Config, BTreeMap<String, RawAgent>) {
    let beside = |path: PathBuf| match file.and_then(Path::parent) {
        Some(dir) if path.is_relative() && !path.as_os_str().is_empty() => dir.join(path),
        _ => path,
    };
    let hooks = Hooks {
        dir: raw.hooks.dir.map(beside),
        threads: raw.hooks.threads,
        timeout: raw.hooks.timeout,
        memory: raw.hooks.memory,
        allow_exec: raw.hooks.allow.contains(&Allow::Exec),
        allow_http: raw.hooks.allow.contains(&Allow::Http),
        allow_fs: raw.hooks.allow.contains(&Allow::Fs),
        fs_roots: raw.hooks.fs_roots,
        attempts: raw.hooks.attempts,
        config: raw.hooks.config,
    };
    let mut named = Config::default().agent;
    named.extend(raw.agent.iter().map(|(name, given)| (name.clone(), agent(name, given))));
    let config = Config {
        daemon: raw.daemon,
        http: raw.http,
        sessions: raw.sessions,
        shutdown: raw.shutdown.into(),
        hooks,
        retention: raw.retention,
        agents: raw.agents,
        agent: named,
        routes: raw.route.into_iter().map(|r| Route { pattern: r.pattern, agent: r.agent }).collect(),
        file: file.map(Path::to_path_buf),
        warnings: Vec::new(),
    };
    (config, raw.agent)
}

fn agent(name: &str, given: &RawAgent) -> Agent {
    let d = Agent::of_kind(name, given.kind.unwrap_or(AgentKind::Echo));
    Agent {
        name: d.name,
        kind: d.kind,
        command: given.command.clone().unwrap_or(d.command),
        cwd: given.cwd.clone().unwrap_or(d.cwd),
        env: given.env.clone().unwrap_or(d.env),
        env_pass: given.env_pass.clone().unwrap_or(d.env_pass),
        max_processes: given.max_processes.unwrap_or(d.max_processes),
        start_timeout: given.start_timeout.unwrap_or(d.start_timeout),
        start_retries: given.start_retries.unwrap_or(d.start_retries),
        turn_timeout: given.turn_timeout.unwrap_or(d.turn_timeout),
        silence_timeout: given.silence_timeout.unwrap_or(d.silence_timeout),
        permission: given.permission.unwrap_or(d.permission),
        permission_timeout: given.permission_timeout.unwrap_or(d.permission_timeout),
        on_interrupt: given.on_interrupt.unwrap_or(d.on_interrupt),
        url: given.url.clone().unwrap_or(d.url),
        model: given.model.clone().unwrap_or(d.model),
        mode: given.mode.clone().unwrap_or(d.mode),
        options: given.options.clone().unwrap_or(d.options),
        consent: given.consent.or(d.consent),
        authenticate: given.authenticate.clone().unwrap_or(d.authenticate),
        system_prompt: given.system_prompt.clone().unwrap_or(d.system_prompt),
        mcp: given.mcp.clone().unwrap_or(d.mcp),
        api_key_file: given.api_key_file.clone().or(d.api_key_file),
        history: given.history.unwrap_or(d.history),
        handler: given.handler.clone().unwrap_or(d.handler),
        delay: given.delay.unwrap_or(d.delay),
        memory: given.memory.or(d.memory),
        processes: given.processes.unwrap_or(d.processes),
        cpu: given.cpu.or(d.cpu),
        cpu_weight: given.cpu_weight.unwrap_or(d.cpu_weight),
        confine: given.confine.or(d.confine),
        write: given.write.clone().unwrap_or(d.write),
        confine_required: given.confine_required.unwrap_or(d.confine_required),
        confine_abi: given.confine_abi.unwrap_or(d.confine_abi),
    }
}
