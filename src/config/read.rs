//! Text to values: the raw shapes that TOML is read into, and the readers of durations, sizes and times.
//!
//! Owns what can be said of one value alone; what values say of each other is in `check`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, de};

use super::locate::{self, Spans};
use super::{
    Agent, AgentKind, Budget, Config, ConfigError, DEFAULT_AGENT, Daemon, Hooks, Http, Maybe, OnInterrupt,
    PermissionPolicy, Retention, Route, Sessions, check,
};

/// Longest duration that is taken; more is `"never"`. Keeps every sum with a clock far from overflow.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

const DURATION: &str = "a duration (such as \"30s\", \"5m\", \"1h30m\")";
const MAYBE: &str = "a duration (such as \"30s\", \"5m\", \"1h30m\") or \"never\"";
const SIZE: &str = "a size (such as \"64KiB\", \"64MiB\")";
const LOCAL_TIME: &str = "a local time (HH:MM) or \"never\"";

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

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Raw {
    daemon: Daemon,
    http: Option<Http>,
    sessions: Sessions,
    shutdown: BudgetTable,
    hooks: RawHooks,
    retention: Retention,
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
    allow: Vec<Leave>,
    fs_roots: Vec<PathBuf>,
    attempts: u32,
    #[serde(deserialize_with = "json_table")]
    config: serde_json::Value,
}

/// What scripts may be allowed.
#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Leave {
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
    pub api_key_file: Option<PathBuf>,
    #[serde(deserialize_with = "some_size")]
    pub history: Option<u64>,
    pub handler: Option<String>,
    #[serde(deserialize_with = "some_duration")]
    pub delay: Option<Duration>,
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

/// See [`super::parse`].
pub fn config(text: &str, file: Option<&Path>) -> Result<Config, ConfigError> {
    let fail = |line: Option<usize>, key: Option<String>, why: &str| ConfigError {
        file: file.map(Path::to_path_buf),
        line,
        key,
        why: plain(why),
    };
    let document = toml::de::DeTable::parse(text).map_err(|e| {
        let at = e.span().map_or(text.len(), |s| s.start);
        fail(Some(locate::line(text, at)), locate::key_near(text, at), e.message())
    })?;
    let spans = Spans::new(text, document.get_ref());
    let raw: Raw = toml::from_str(text).map_err(|e| {
        let at = e.span().map_or(0, |s| s.start);
        let key = spans.path_at(at).map(str::to_owned);
        let hint = if key.as_deref() == Some("route") { ": write [[route]]" } else { "" };
        fail(Some(spans.line(at)), key, &format!("{}{hint}", e.message()))
    })?;
    let (mut config, given) = build(raw, file);
    check::config(&config, &given).map_err(|(key, why)| {
        // A key that has only its default has no line: its section's, or the first, stands in.
        let parents = std::iter::successors(Some(key.as_str()), |k| k.rsplit_once(['.', '[']).map(|(p, _)| p));
        let line = parents.into_iter().find_map(|k| spans.line_of(k)).unwrap_or(1);
        fail(Some(line), Some(key.clone()), &why)
    })?;
    config.warnings = check::warnings(&config, &given)
        .into_iter()
        .map(|(key, why)| fail(spans.line_of(&key), Some(key), &why).to_string())
        .collect();
    Ok(config)
}

/// The reader's words in those of TOML.
fn plain(why: &str) -> String {
    const WORDS: [(&str, &str); 12] = [
        ("unknown field", "unknown key"),
        ("missing field", "missing key"),
        ("unknown variant", "unknown value"),
        ("expected usize", "expected a whole number, 0 or more"),
        ("expected u32", "expected a whole number, 0 or more"),
        ("expected a sequence", "expected a list"),
        ("expected a map", "expected a table"),
        ("invalid type: map", "invalid type: table"),
        ("invalid type: sequence", "invalid type: list"),
        (" as i128", ""),
        (
            "string values must be quoted, expected literal string",
            "is not a value: text must be in quotes, and a key has one value",
        ),
        ("expected struct RawAgent", "expected a table: [agent.NAME]"),
    ];
    let line = why.trim_end().replace('\n', "; ");
    WORDS.iter().fold(line, |line, (theirs, ours)| line.replace(theirs, ours))
}

fn build(raw: Raw, file: Option<&Path>) -> (Config, BTreeMap<String, RawAgent>) {
    let beside = |path: PathBuf| match file.and_then(Path::parent) {
        Some(dir) if path.is_relative() && !path.as_os_str().is_empty() => dir.join(path),
        _ => path,
    };
    let hooks = Hooks {
        dir: raw.hooks.dir.map(beside),
        threads: raw.hooks.threads,
        timeout: raw.hooks.timeout,
        memory: raw.hooks.memory,
        allow_exec: raw.hooks.allow.contains(&Leave::Exec),
        allow_http: raw.hooks.allow.contains(&Leave::Http),
        allow_fs: raw.hooks.allow.contains(&Leave::Fs),
        fs_roots: raw.hooks.fs_roots,
        attempts: raw.hooks.attempts,
        config: raw.hooks.config,
    };
    let mut agents = Config::default().agents;
    agents.extend(raw.agent.iter().map(|(name, given)| (name.clone(), agent(name, given))));
    let config = Config {
        daemon: raw.daemon,
        http: raw.http,
        sessions: raw.sessions,
        shutdown: raw.shutdown.into(),
        hooks,
        retention: raw.retention,
        agents,
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
        api_key_file: given.api_key_file.clone().or(d.api_key_file),
        history: given.history.unwrap_or(d.history),
        handler: given.handler.clone().unwrap_or(d.handler),
        delay: given.delay.unwrap_or(d.delay),
    }
}

/// Reads a duration such as `30s`, `5m`, `1h30m` or `7d` (a day is 24 hours).
///
/// # Errors
/// It is empty, negative, without a unit, longer than 100 years, or no duration.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not {DURATION}");
    // The parser also takes ISO 8601 ("P1D") and clock forms ("1:30:00"), which the manual does not promise.
    let friendly = text.starts_with(|c: char| c.is_ascii_digit()) && !text.contains(':');
    let span: jiff::Span = if friendly { text.parse().map_err(|_| wrong())? } else { return Err(wrong()) };
    let exact = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    let duration = Duration::try_from(exact).map_err(|_| wrong())?;
    if duration > LONGEST {
        return Err(format!("{text:?} is longer than 100 years"));
    }
    Ok(duration)
}

/// Reads a duration or `never` (`None`).
///
/// # Errors
/// As [`parse_duration`].
pub fn parse_maybe(text: &str) -> Result<Maybe, String> {
    if text == "never" {
        return Ok(None);
    }
    parse_duration(text).map(Some).map_err(|why| why.replace(DURATION, MAYBE))
}

/// A duration as the configuration would have it: `1h 30m`, `0s`.
#[must_use]
pub fn duration_text(duration: Duration) -> String {
    match jiff::SignedDuration::try_from(duration) {
        Ok(d) => format!("{d:#}"),
        Err(_) => format!("{duration:?}"),
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    match text.parse::<bytesize::ByteSize>() {
        Ok(size) if text.starts_with(|c: char| c.is_ascii_digit()) => Ok(size.as_u64()),
        _ => Err(format!("{text:?} is not {SIZE}")),
    }
}

fn parse_local_time(text: &str) -> Result<Option<(i8, i8)>, String> {
    if text == "never" {
        return Ok(None);
    }
    let part = |s: &str, end: i8| s.parse::<i8>().ok().filter(|n| s.len() == 2 && (0..end).contains(n));
    text.split_once(':')
        .and_then(|(h, m)| Some((part(h, 24)?, part(m, 60)?)))
        .map(Some)
        .ok_or_else(|| format!("{text:?} is not {LOCAL_TIME}"))
}

/// A string that `parse` turns into a value; anything else is told what is wanted, so that `drain = 30` says what a
/// duration looks like.
fn string_as<'de, D: Deserializer<'de>, T>(
    d: D,
    wanted: &'static str,
    parse: fn(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    struct Visitor<T>(&'static str, fn(&str) -> Result<T, String>);
    impl<'de, T> de::Visitor<'de> for Visitor<T> {
        type Value = T;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            (self.1)(text).map_err(E::custom)
        }
        fn visit_i64<E: de::Error>(self, n: i64) -> Result<T, E> {
            Err(E::custom(format!("{n} is not {}", self.0)))
        }
        fn visit_f64<E: de::Error>(self, n: f64) -> Result<T, E> {
            Err(E::custom(format!("{n} is not {}", self.0)))
        }
        fn visit_bool<E: de::Error>(self, b: bool) -> Result<T, E> {
            Err(E::custom(format!("{b} is not {}", self.0)))
        }
        /// A bare date or time, such as `04:00:00`, comes as a table of one.
        fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            let at = toml::value::Datetime::deserialize(de::value::MapAccessDeserializer::new(map));
            Err(A::Error::custom(match at {
                Ok(at) => format!("{at} is not {}: put it in quotes", self.0),
                Err(_) => format!("a table is not {}", self.0),
            }))
        }
    }
    d.deserialize_any(Visitor(wanted, parse))
}

pub fn duration<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    string_as(d, DURATION, parse_duration)
}

pub fn maybe<'de, D: Deserializer<'de>>(d: D) -> Result<Maybe, D::Error> {
    string_as(d, MAYBE, parse_maybe)
}

pub fn local_time<'de, D: Deserializer<'de>>(d: D) -> Result<Option<(i8, i8)>, D::Error> {
    string_as(d, LOCAL_TIME, parse_local_time)
}

pub fn filter<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    string_as(d, "a log filter (such as \"info\")", |text| check::log_filter(text).map(|()| text.to_owned()))
}

pub(super) fn size<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    string_as(d, SIZE, parse_size)
}

fn some_duration<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    duration(d).map(Some)
}

/// An address with its port.
pub(super) fn address<'de, D: Deserializer<'de>>(d: D) -> Result<std::net::SocketAddr, D::Error> {
    let text = String::deserialize(d)?;
    text.parse().map_err(|_| {
        D::Error::custom(format!("{text:?} is not an IP address with a port (such as \"127.0.0.1:7411\")"))
    })
}

fn some_maybe<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Maybe>, D::Error> {
    maybe(d).map(Some)
}

fn some_size<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    size(d).map(Some)
}

/// A table of anything, as JSON: what Lua sees as `ostler.config`. Dates become strings.
fn json_table<'de, D: Deserializer<'de>>(d: D) -> Result<serde_json::Value, D::Error> {
    let table = toml::Table::deserialize(d)?;
    json(toml::Value::Table(table)).map_err(D::Error::custom)
}

fn json(value: toml::Value) -> Result<serde_json::Value, String> {
    use serde_json::Value as J;
    Ok(match value {
        toml::Value::String(s) => J::String(s),
        toml::Value::Integer(n) => J::from(n),
        toml::Value::Float(x) => {
            J::Number(serde_json::Number::from_f64(x).ok_or_else(|| format!("{x} is not a number that JSON has"))?)
        }
        toml::Value::Boolean(b) => J::Bool(b),
        toml::Value::Datetime(at) => J::String(at.to_string()),
        toml::Value::Array(items) => J::Array(items.into_iter().map(json).collect::<Result<_, _>>()?),
        toml::Value::Table(table) => {
            J::Object(table.into_iter().map(|(k, v)| Ok((k, json(v)?))).collect::<Result<_, String>>()?)
        }
    })
}
