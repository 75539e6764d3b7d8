//! What the configuration promises: defaults, the contract's example, and an error for everything that cannot be.
#![allow(clippy::unwrap_used)]

use super::*;

const FILE: &str = "/etc/ostler/ostler.toml";

fn ok(text: &str) -> Config {
    parse(text, Some(Path::new(FILE))).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn an_empty_file_is_valid_and_means_the_defaults() {
    assert_eq!(parse("", None).unwrap(), Config::default());
    let c = Config::default();
    assert_eq!(c.sessions.park_after, Some(secs(1800)));
    assert_eq!(c.shutdown.sum(), secs(55));
    assert_eq!(c.retention.events, Some(secs(7 * 86_400)));
    assert_eq!(c.agent[DEFAULT_AGENT].kind, AgentKind::Echo);
    assert!(c.http.is_none() && c.warnings.is_empty());
}

#[test]
fn the_contracts_example_parses() {
    let c = ok(include_str!("testdata/interface.toml"));
    let a = &c.agent[DEFAULT_AGENT];
    assert_eq!((a.kind, a.on_interrupt), (AgentKind::Acp, OnInterrupt::Resume));
    assert_eq!(a.command, ["my-agent", "--acp"]);
    assert_eq!((a.history, a.turn_timeout), (64 << 10, Some(secs(7200))));
    assert_eq!(c.http.as_ref().unwrap().listen.port(), 7411);
    assert_eq!(c.hooks.dir, Some("/etc/ostler/hooks.d".into()));
    // The table shows the keys of every kind at once: those of other kinds are told, not refused.
    let told: Vec<_> = c.warnings.iter().map(|w| w.split(": ").nth(1).unwrap()).collect();
    assert_eq!(told, ["url", "api_key_file", "handler", "delay"].map(|k| format!("agent.default.{k}")));
    assert!(c.warnings[0].starts_with("/etc/ostler/ostler.toml:62: agent.default.url: "), "{}", c.warnings[0]);
}

#[test]
fn every_key_of_the_table_parses_with_its_default() {
    for k in KEYS {
        let (section, name) = k.split();
        let header = match section {
            "agent.*" => "[agent.default]".to_owned(),
            "route" => "[[route]]\nmatch = \"a:*\"".to_owned(),
            s => format!("[{s}]"),
        };
        for value in [k.default, k.example].into_iter().flatten() {
            let kind = match name {
                "command" => "kind = \"exec\"",
                "url" | "model" | "api_key_file" => "kind = \"openai\"\nmodel = \"m\"\nurl = \"http://h\"",
                "handler" => "kind = \"lua\"",
                "history" => "kind = \"acp\"\ncommand = [\"a\"]",
                "mode" | "options" | "consent" | "authenticate" | "system_prompt" | "mcp" => {
                    "kind = \"acp\"\ncommand = [\"a\"]"
                }
                "memory" | "processes" | "cpu" | "cpu_weight" | "confine" | "write" | "confine_required"
                | "confine_abi"
                    if section == "agent.*" =>
                {
                    "kind = \"exec\"\ncommand = [\"a\"]"
                }
                "kind" if value.contains("acp") => "command = [\"a\"]",
                _ => "",
            };
            if name == "match" || matches!((name, value), ("command", "[]") | ("url" | "model" | "handler", "\"\"")) {
                continue; // The default of a key that its kind requires; the refusals are tested below.
            }
            let kind: String =
                kind.lines().filter(|l| !l.starts_with(&format!("{name} "))).map(|l| format!("{l}\n")).collect();
            let text = format!("{header}\n{kind}{name} = {value}\n");
            let c = ok(&text);
            if Some(value) == k.default && kind.contains("exec") && name != "command" {
                let plain = ok("[agent.default]\nkind = \"exec\"\ncommand = [\"a\"]\n");
                assert_eq!(Config { warnings: Vec::new(), ..c.clone() }, plain, "{text}");
            }
            if Some(value) == k.default && kind.is_empty() && !matches!(section, "http" | "route") {
                assert_eq!(Config { file: None, ..c }, Config::default(), "{text}");
            }
        }
    }
    let http = ok("[http]").http.unwrap();
    assert_eq!(http, ok("[http]\nlisten = \"127.0.0.1:7411\"").http.unwrap());
}

#[test]
fn no_key_of_the_parser_is_missing_in_the_table() {
    let mut c = ok("[http]\n[[route]]\nmatch = \"*\"");
    c.agent.retain(|name, _| name == DEFAULT_AGENT);
    for key in keys::flat(&c).keys() {
        let generic = key.replace("agent.default.", "agent.*.").replace("route[0].", "route.");
        let in_table = KEYS.iter().any(|k| k.key == generic) || generic == "hooks.config";
        assert!(in_table, "{generic} is not in KEYS");
    }
    let flat = keys::flat(&c);
    for k in KEYS {
        let key = k.key.replace("agent.*.", "agent.default.").replace("route.", "route[0].");
        assert!(flat.contains_key(&key), "{} is in KEYS but nowhere else", k.key);
        assert!(keys::SECTIONS.iter().any(|(s, _)| *s == k.split().0), "{} has no section", k.key);
    }
}

#[test]
fn the_sample_is_valid_as_it_is_and_with_every_key_in_force() {
    assert_eq!(Config { file: None, ..ok(&keys::sample()) }, Config::default());
    let in_force: String = keys::sample()
        .lines()
        .map(|l| match l.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{l}\n"),
        })
        .collect();
    let in_force = in_force.replace("kind = \"echo\"", "kind = \"exec\"");
    let c = ok(&in_force);
    assert_eq!(c.agent[DEFAULT_AGENT].command, ["my-agent", "--acp"]);
    assert_eq!(c.routes.len(), 1);
}

#[test]
fn durations_and_sizes_are_read_as_written() {
    for (text, want) in [
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("7d", 7 * 86_400),
        ("1w", 7 * 86_400),
        ("90 minutes", 5400),
        ("0s", 0),
    ] {
        assert_eq!(parse_duration(text), Ok(secs(want)), "{text}");
    }
    assert_eq!(parse_duration("1500ms"), Ok(Duration::from_millis(1500)));
    assert_eq!(parse_maybe("never"), Ok(None));
    for bad in
        ["", "30", "-5m", "5m ago", "never", "soon", "1h30", "5 parsecs", "PT5M", "1:30:00", "200y", "40000d", "m"]
    {
        assert!(parse_duration(bad).is_err(), "{bad:?} was taken as {:?}", parse_duration(bad));
    }
    for text in ["1s", "1h30m", "36h", "250ms", "55s"] {
        let d = parse_duration(text).unwrap();
        assert_eq!(parse_duration(&duration_text(d)), Ok(d), "{text} became {}", duration_text(d));
    }
    assert_eq!(ok("[hooks]\nmemory = \"2MiB\"").hooks.memory, 2 << 20);
    assert_eq!(ok("[hooks]\nmemory = \"2MB\"").hooks.memory, 2_000_000);
}

/// Text, then the line and the key of the error, then a piece of the reason.
const BAD: &[(&str, usize, &str, &str)] = &[
    ("\n[sessions]\ndaily_reset = \"25:00\"", 3, "sessions.daily_reset", "\"25:00\" is not a local time (HH:MM)"),
    ("[sessions]\ndaily_reset = \"4:00\"", 2, "sessions.daily_reset", "not a local time"),
    ("[sessions]\ndaily_reset = \"04:60\"", 2, "sessions.daily_reset", "not a local time"),
    (
        "[sessions]\ndaily_reset = 04:00:00",
        2,
        "sessions.daily_reset",
        "04:00:00 is not a local time (HH:MM) or \"never\": put it in quotes",
    ),
    ("[sessions]\nmax_live = 5 6", 2, "sessions.max_live", "text must be in quotes, and a key has one value"),
    ("[agent]\nkind = \"acp\"", 2, "agent.kind", "expected a table: [agent.NAME]"),
    ("[shutdown]\ndrain = { a = 1 }", 2, "shutdown.drain", "a table is not a duration"),
    ("[sessions]\nmax_liv = 3", 2, "sessions.max_liv", "unknown key `max_liv`"),
    ("[session]\n", 1, "session", "unknown key `session`"),
    ("log = 1", 1, "log", "unknown key `log`"),
    ("[sessions]\n\n\nmax_live = \"many\"", 4, "sessions.max_live", "invalid type"),
    ("[sessions]\nmax_live = -1", 2, "sessions.max_live", "-1"),
    ("[sessions]\nmax_live = 0", 2, "sessions.max_live", "no session run"),
    ("[sessions]\nqueue_limit = 0", 2, "sessions.queue_limit", "at least 1"),
    ("[sessions]\nqueue_total = 0", 2, "sessions.queue_total", "at least 1"),
    ("[sessions]\nidle_reset = \"0s\"", 2, "sessions.idle_reset", "\"never\" is off"),
    ("[sessions]\nidle_reset = 0", 2, "sessions.idle_reset", "0 is not a duration"),
    ("[sessions]\npark_after = \"-5m\"", 2, "sessions.park_after", "\"-5m\" is not a duration"),
    ("[sessions]\nbusy = \"drop\"", 2, "sessions.busy", "expected one of `queue`, `collect`, `interrupt`"),
    ("[sessions]\nresume = \"later\"", 2, "sessions.resume", "expected one of"),
    ("sessions = 3", 1, "sessions", "invalid type"),
    ("[shutdown]\ndrain = 30", 2, "shutdown.drain", "30 is not a duration (such as \"30s\""),
    ("[shutdown]\ndrain = \"never\"", 2, "shutdown.drain", "\"never\" is not a duration"),
    ("[shutdown]\ndrain = true", 2, "shutdown.drain", "true is not a duration"),
    ("[shutdown]\ndrain = \"35s\"", 1, "shutdown.deadline", "drain 35s + interrupt 10s + hooks 10s + close 5s = 1m"),
    ("[shutdown]\nclose = \"5s\"\ndeadline = \"55s\"", 3, "shutdown.deadline", "at least 1s below the deadline of 55s"),
    ("[agents]\norphan_after = \"0s\"", 2, "agents.orphan_after", "end every agent at once"),
    ("[agents]\nspool = \"63MiB\"", 2, "agents.spool", "at least \"64MiB\""),
    ("[daemon]\nlog = \"inof\"", 2, "daemon.log", "\"inof\" is neither a level nor MODULE=LEVEL"),
    ("[daemon]\nlog = \"info,ostler=loud\"", 2, "daemon.log", "is not a log filter"),
    ("[daemon]\nlog = 3", 2, "daemon.log", "3 is not a log filter"),
    ("[http]\nlisten = \"localhost\"", 2, "http.listen", "is not an IP address with a port"),
    ("[http]\nlisten = \"0.0.0.0:80\"", 2, "http.listen", "needs http.token_file"),
    ("[http]\nlisten = \"[2001:db8::1]:80\"", 2, "http.listen", "needs http.token_file"),
    ("[http]\ntoken_file = \"\"", 2, "http.token_file", "is empty"),
    ("[hooks]\nallow = [\"exec\",\n \"net\"]", 3, "hooks.allow[1]", "expected one of `exec`, `http`, `fs`"),
    ("[hooks]\nallow = \"exec\"", 2, "hooks.allow", "invalid type"),
    ("[hooks]\nmemory = \"lots\"", 2, "hooks.memory", "\"lots\" is not a size"),
    ("[hooks]\nmemory = \"-1MiB\"", 2, "hooks.memory", "not a size"),
    ("[hooks]\nmemory = \"1KiB\"", 2, "hooks.memory", "at least 1MiB"),
    ("[hooks]\nmemory = 64", 2, "hooks.memory", "64 is not a size"),
    ("[hooks]\nthreads = 0", 2, "hooks.threads", "at least 1"),
    ("[hooks]\nattempts = 0", 2, "hooks.attempts", "at least 1"),
    ("[hooks]\ntimeout = \"0s\"", 2, "hooks.timeout", "before it begins"),
    ("[hooks]\ndir = \"\"", 2, "hooks.dir", "is empty"),
    ("[hooks]\nfs_roots = [\"notes\"]", 2, "hooks.fs_roots[0]", "not an absolute path"),
    ("[hooks]\n[hooks.config]\nx = inf", 2, "hooks.config", "inf is not a number"),
    ("[retention]\nreports = 0", 2, "retention.reports", "at least 1"),
    ("[retention]\nevents = \"a week\"", 2, "retention.events", "or \"never\""),
    ("[agent.a]\nkind = \"acp\"", 1, "agent.a.command", "needs a program"),
    ("[agent.a]\nkind = \"exec\"\ncommand = []", 3, "agent.a.command", "needs a program"),
    ("[agent.a]\nkind = \"exec\"\ncommand = \"ls\"", 3, "agent.a.command", "invalid type"),
    ("[agent.a]\nkind = \"exec\"\ncommand = [\"a\\u0000\"]", 3, "agent.a.command", "NUL"),
    ("[agent.a]\ncommand = [\"ls\"]", 1, "agent.a.kind", "is missing (`command` is for acp and exec)"),
    ("[agent.a]\nkind = \"openai\"\nmodel = \"m\"", 1, "agent.a.url", "needs an http:// or https:// URL"),
    ("[agent.a]\nkind = \"openai\"\nurl = \"ftp://h\"\nmodel = \"m\"", 3, "agent.a.url", "\"ftp://h\""),
    ("[agent.a]\nkind = \"openai\"\nurl = \"http://h\"", 1, "agent.a.model", "needs the model's name"),
    ("[agent.a]\nkind = \"lua\"", 1, "agent.a.handler", "needs a file"),
    ("[agent.a]\nkind = \"lua\"\nhandler = \"../x.lua\"", 3, "agent.a.handler", "below `agents`"),
    ("[agent.a]\nmode = \"ask\"", 1, "agent.a.kind", "is missing (`mode` is for acp)"),
    ("[agent.a]\nkind = \"acp\"\ncommand = [\"a\"]\nmode = 1", 4, "agent.a.mode", "invalid type"),
    (
        "[agent.a]\nkind = \"acp\"\ncommand = [\"a\"]\noptions = { mode = \"x\" }",
        4,
        "agent.a.options.mode",
        "write mode = ",
    ),
    (
        "[agent.a]\nkind = \"acp\"\ncommand = [\"a\"]\noptions = { effort = 3 }",
        4,
        "agent.a.options.effort",
        "a text, or true or false",
    ),
    ("[agent.a]\nkind = \"acp\"\ncommand = [\"a\"]\nconsent = \"yes\"", 4, "agent.a.consent", "expected `required` or"),
    ("[agent.a]\nkind = \"acp\"\ncommand = [\"a\"]\nauthenticate = []", 4, "agent.a.authenticate", "invalid type"),
    ("[agent.a]\nkind = \"acp\"\ncommand = [\"a\"]\nsystem_prompt = 1", 4, "agent.a.system_prompt", "invalid type"),
    ("[agent.a]\nkind = \"acp\"\ncommand = [\"a\"]\n[agent.a.mcp.b]", 4, "agent.a.mcp.b", "needs a command or a url"),
    (
        "[agent.a]\nkind = \"acp\"\ncommand = [\"a\"]\n[agent.a.mcp.b]\nurl = \"h\"",
        5,
        "agent.a.mcp.b.url",
        "an http:// or",
    ),
    (
        "[agent.a]\nkind = \"acp\"\ncommand = [\"a\"]\n[agent.a.mcp.b]\ncommand = [\"c\"]\nurl = \"http://h\"",
        6,
        "agent.a.mcp.b.url",
        "one of the two",
    ),
    (
        "[agent.a]\nkind = \"acp\"\ncommand = [\"a\"]\n[agent.a.mcp.b]\ncommand = [\"c\", \"{kee}\"]",
        5,
        "agent.a.mcp.b.command",
        "{kee} is not known",
    ),
    ("[agent.a]\nkind = \"acp\"\ncommand = [\"a\"]\n[agent.a.mcp.b]\ncmd = [\"c\"]", 5, "agent.a.mcp.b.cmd", "unknown"),
    (
        "[agent.a]\nkind = \"acp\"\ncommand = [\"a\"]\n[agent.a.mcp.b]\nurl = \"http://h\"\nheaders = { \"a b\" = \"x\" }",
        6,
        "agent.a.mcp.b.headers",
        "is no header",
    ),
    ("[agent.a]\nkind = \"robot\"", 2, "agent.a.kind", "expected one of `acp`"),
    ("[agent.a]\nkid = \"acp\"", 2, "agent.a.kid", "unknown key"),
    ("[agent.\"a b\"]\nmax_processes = 0", 2, "agent.\"a b\".max_processes", "at least 1"),
    ("[agent.a]\nturn_timeout = \"0s\"", 2, "agent.a.turn_timeout", "fail every turn"),
    ("[agent.a]\npermission_timeout = \"0s\"", 2, "agent.a.permission_timeout", "permission = \"deny\""),
    ("[agent.a]\nenv = { \"A=B\" = \"x\" }", 2, "agent.a.env", "not the name of a variable"),
    ("[agent.a]\nenv = { A = 1 }", 2, "agent.a.env.A", "invalid type"),
    ("[agent.a]\nenv_pass = [\"\"]", 2, "agent.a.env_pass", "not the name of a variable"),
    ("[agent.a]\ncwd = \"\"", 2, "agent.a.cwd", "must be a path"),
    ("[agent.a]\ncwd = \"~nobody/x\"", 2, "agent.a.cwd", "~USER is not supported"),
    (
        "[agent.a]\ncwd = \"work/{slug}/{user}\"",
        2,
        "agent.a.cwd",
        "{user} is not known, only {slug}, {key}, {hash}, {id}",
    ),
    ("[agent.a]\nenv = { A = \"{kee}\" }", 2, "agent.a.env", "{kee} is not known"),
    ("[agent.a]\nkind = \"exec\"\ncommand = [\"x\", \"{print}\"]", 3, "agent.a.command", "{print} is not known"),
    (
        "[[route]]\nmatch = \"*\"\n[[route]]\nmatch = \"a:*\"\nagent = \"x\"",
        5,
        "route[1].agent",
        "there is no agent \"x\"",
    ),
    ("[[route]]\nmatch = \"\"", 2, "route[0].match", "is empty"),
    ("[[route]]\nagent = \"default\"", 1, "route[0]", "missing key `match`"),
    ("[sessions]\nmax_live = 1\nmax_live = 2", 3, "sessions.max_live", "duplicate key"),
    ("[sessions]\nmax_live = \n", 2, "sessions.max_live", ""),
    ("[sessions\nmax_live = 1", 1, "", ""),
    ("[sessions]\nmax_live = \"x\"", 2, "sessions.max_live", "expected a whole number"),
    ("[sessions]\nmax_live = 99999999999999999999", 2, "sessions.max_live", "expected a whole number"),
    ("[sessions]\nstuck_threshold = -1", 2, "sessions.stuck_threshold", "expected a whole number, 0 or more"),
    ("[agent.a]\ncommand = \"x\"", 2, "agent.a.command", "expected a list"),
    ("[route]\nmatch = \"*\"", 1, "route", "write [[route]]"),
    ("[agent.a]\nkind = \"robot\"", 2, "agent.a.kind", "unknown value `robot`"),
    ("[http]\nlisten = \"localhost:80\"", 2, "http.listen", "such as \"127.0.0.1:7411\""),
    ("[agents]\nkeep = \"always\"", 2, "agents.keep", "expected one of `restart`, `crash`, `never`"),
    ("[agents]\norphan_after = \"never\"", 2, "agents.orphan_after", "\"never\" is not a duration"),
    ("[agent.a]\nmemory = \"1GiB\"", 1, "agent.a.kind", "is missing (`memory` is for acp and exec)"),
    ("[agent.a]\nkind = \"exec\"\ncommand = [\"a\"]\nmemory = \"1MiB\"", 4, "agent.a.memory", "at least 16MiB"),
    ("[agent.a]\nkind = \"exec\"\ncommand = [\"a\"]\nmemory = 7", 4, "agent.a.memory", "7 is not a size"),
    ("[agent.a]\nkind = \"exec\"\ncommand = [\"a\"]\nprocesses = 0", 4, "agent.a.processes", "0: 1 to 4194304"),
    ("[agent.a]\nkind = \"exec\"\ncommand = [\"a\"]\ncpu = \"0%\"", 4, "agent.a.cpu", "0%: 1% to 1000000%"),
    ("[agent.a]\nkind = \"exec\"\ncommand = [\"a\"]\ncpu = 2", 4, "agent.a.cpu", "2 is not a part of the processors"),
    ("[agent.a]\nkind = \"exec\"\ncommand = [\"a\"]\ncpu = \"+5%\"", 4, "agent.a.cpu", "is not a part"),
    ("[agent.a]\nkind = \"exec\"\ncommand = [\"a\"]\ncpu_weight = 10001", 4, "agent.a.cpu_weight", "1 to 10000"),
    ("[agent.a]\nkind = \"exec\"\ncommand = [\"a\"]\nconfine = \"home\"", 4, "agent.a.confine", "expected one of"),
    ("[agent.a]\nkind = \"exec\"\ncommand = [\"a\"]\nwrite = [\"notes\"]", 4, "agent.a.write[0]", "nor below ~"),
    ("[agent.a]\nkind = \"exec\"\ncommand = [\"a\"]\nconfine_abi = 2", 4, "agent.a.confine_abi", "2: 3 to"),
    (
        "[agent.a]\nkind = \"exec\"\ncommand = [\"a\"]\nconfine = \"none\"\nconfine_required = true",
        5,
        "agent.a.confine_required",
        "contradicts confine",
    ),
    (
        "[agents]\nkeep = \"never\"\n[agent.a]\nkind = \"exec\"\ncommand = [\"a\"]\nconfine_required = true",
        6,
        "agent.a.confine_required",
        "it cannot be with [agents] keep",
    ),
    ("[hooks]\nthreads = 100000", 2, "hooks.threads", "at most 256"),
];

/// The words of the language that it is read with mean nothing to whoever writes the file.
#[test]
fn errors_speak_of_toml() {
    for (text, ..) in BAD {
        let said = parse(text, None).map_err(|e| e.to_string()).unwrap_err();
        for word in ["usize", "u32", "u64", "i128", "sequence", "variant", " map", "syntax"] {
            assert!(!said.contains(word), "{word}: {said}");
        }
    }
}

#[test]
fn what_cannot_be_is_refused_with_file_line_and_key() {
    let mut wrong = Vec::new();
    for (text, line, key, why) in BAD {
        match parse(text, Some(Path::new(FILE))) {
            Err(e) => {
                let place = e.line == Some(*line) && e.key.as_deref().unwrap_or("") == *key;
                let said = e.why.contains(why) && !e.why.contains('\n');
                if !place || !said || !e.to_string().starts_with(&format!("{FILE}:{line}: {key}")) {
                    wrong.push(format!("{text}\n  gave {e}\n  not line {line}, {key}, {why}"));
                }
            }
            Ok(_) => wrong.push(format!("{text}\n  was taken")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ostler.toml");
    let e = load(Some(&path)).unwrap_err();
    assert!(e.to_string().starts_with(&format!("{}: cannot be read: ", path.display())), "{e}");
    std::fs::write(&path, b"[daemon]\nlog = \"\xff\"").unwrap();
    let e = load(Some(&path)).unwrap_err();
    assert_eq!(e.to_string(), format!("{}:2: is not UTF-8 text", path.display()));
    std::fs::write(&path, "[hooks]\ndir = \"my-hooks\"").unwrap();
    let c = load(Some(&path)).unwrap();
    assert_eq!(c.hooks.dir, Some(dir.path().join("my-hooks")), "relative to the file");
    assert_eq!(c.file, Some(path));
}

#[test]
fn a_file_may_begin_with_a_mark_and_may_not_be_open_to_all() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ostler.toml");
    std::fs::write(&path, "\u{feff}[sessions]\nmax_live = 3\n").unwrap();
    let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o664);
    let c = load(Some(&path)).unwrap();
    assert_eq!((c.sessions.max_live, c.warnings), (3, Vec::new()));
    mode(0o666);
    let refused = load(Some(&path)).unwrap_err().to_string();
    let want = "every user could write to it (mode 666), and it names programs to run: chmod o-w it";
    assert_eq!(refused, format!("{}: {want}", path.display()));
}

#[test]
fn hook_configuration_becomes_json() {
    let c = ok("[hooks.config]\nn = 3\nx = 1.5\nat = 2026-11-22\nlist = [true, { a = \"b\" }]");
    let want = serde_json::json!({ "n": 3, "x": 1.5, "at": "2026-11-22", "list": [true, { "a": "b" }] });
    assert_eq!(c.hooks.config, want);
}

#[test]
fn the_first_route_that_matches_wins() {
    let c = ok("[agent.default]\n[agent.a]\n[agent.b]\n\
        [[route]]\nmatch = \"telegram:*:a\"\nagent = \"a\"\n\
        [[route]]\nmatch = \"telegram:*\"\nagent = \"b\"\n\
        [[route]]\nmatch = \"local:x\"\nagent = \"a\"");
    for (key, agent) in [
        ("telegram:1:a", "a"),
        ("telegram:1:aa", "b"),
        ("telegram:", "b"),
        ("telegra", "default"),
        ("local:x", "a"),
        ("local:xy", "default"),
    ] {
        assert_eq!(c.route(key).name, agent, "{key}");
    }
    assert!(glob(b"*a*b*", b"xxaxxbxx") && !glob(b"*a*b", b"xxaxxbx") && glob(b"**", b"") && !glob(b"a", b""));
    let long = "a".repeat(200);
    assert!(!glob("*a".repeat(60).as_bytes(), format!("{long}b").as_bytes()), "and in no noticeable time");
}

#[test]
fn without_a_default_agent_the_rest_is_echo() {
    let c = ok("[agent.a]\nkind = \"exec\"\ncommand = [\"cat\"]\n[[route]]\nmatch = \"a:*\"\nagent = \"a\"");
    assert_eq!(c.route("a:1").kind, AgentKind::Exec);
    assert_eq!(c.route("b:1").kind, AgentKind::Echo);
    assert!(c.warnings.iter().any(|w| w.contains("echo answers keys")), "{:?}", c.warnings);
}

#[test]
fn what_has_no_effect_is_told() {
    let warns = |text: &str, want: &str| {
        let c = ok(text);
        assert!(c.warnings.iter().any(|w| w.contains(want)), "{want}: {:?}", c.warnings);
    };
    warns("[agent.a]", "1: agent.a: is never used");
    warns("[[route]]\nmatch = \"*\"\n[[route]]\nmatch = \"a:*\"", "3: route[1]: is never reached");
    warns("[[route]]\nmatch = \"alice\"", "2: route[0].match: \"alice\" matches no key");
    warns("[[route]]\nmatch = \"alice:?\"", "2: route[0].match: \"alice:?\": only * has a meaning");
    warns("[[route]]\nmatch = \"^alice:.*$\"", "only * has a meaning");
    warns("[[route]]\nmatch = \"al\u{200b}ice:*\"", "characters that are not seen");
    warns("[agent.\"a\u{202e}b\"]", "characters that are not seen");
    warns(
        "[agent.default]\nkind = \"openai\"\nmodel = \"m\"\nurl = \"http://h/v1/chat/completions/\"",
        "4: agent.default.url: requests go to URL/chat/completions: leave that out (\"http://h/v1\")",
    );
    warns("[hooks]\nfs_roots = [\"/srv\"]", "2: hooks.fs_roots: has no effect without \"fs\"");
    warns(
        "[agent.default]\nmemory = \"1GiB\"\nkind = \"echo\"",
        "2: agent.default.memory: has no effect on an agent of kind echo",
    );
    warns(
        "[agent.default]\nkind = \"exec\"\ncommand = [\"/usr/bin/bwrap\", \"a\"]",
        "3: agent.default.command: bwrap fails in an agent that is confined",
    );
    warns(
        "[agent.default]\nkind = \"exec\"\ncommand = [\"a\"]\ncpu = \"50%\"\n[agents]\nkeep = \"never\"",
        "4: agent.default.cpu: has no effect with [agents] keep = \"never\"",
    );
    let exec = "[agent.default]\nkind = \"exec\"\ncommand = [\"a\"]\n";
    warns(&format!("{exec}write = [\"~\"]"), "4: agent.default.write: has no effect unless confine = \"workdir\"");
    assert!(ok(&format!("{exec}write = [\"~\"]\nconfine = \"workdir\"")).warnings.is_empty());
    warns("[agent.default]\npermission = \"deny\"\npermission_timeout = \"1m\"", "3: agent.default.permission_timeout");
}

#[test]
fn secrets_that_agents_can_read_are_named() {
    let c = ok("[http]\ntoken_file = \"token\"\n[agent.a]\nkind = \"openai\"\nmodel = \"m\"\nurl = \"http://h\"\n\
        api_key_file = \"/etc/ostler/key\"\n[agent.b]\nkind = \"openai\"\nmodel = \"m\"\nurl = \"http://h\"\n\
        api_key_file = \"/var/lib/ostler/key\"");
    let open = |env: paths::Env<'_>| -> Vec<String> {
        open_secrets(&c, Path::new("/var/lib/ostler"), env).into_iter().map(|(key, _)| key).collect()
    };
    let credentials = |name: &str| (name == "CREDENTIALS_DIRECTORY").then(|| "/run/credentials/x".to_owned());
    assert_eq!(open(&credentials), ["agent.a.api_key_file"]);
    assert_eq!(open(&|_| None), ["http.token_file", "agent.a.api_key_file"]);
}

#[test]
fn what_changed_is_named_and_what_needs_a_restart() {
    let old = ok("[http]\n[agent.b]\n");
    let new = ok("[http]\nlisten = \"127.0.0.1:1\"\n[sessions]\nmax_live = 3\n[hooks]\nallow = [\"fs\"]\n\
        [agent.default]\ndelay = \"1s\"\n[[route]]\nmatch = \"a:*\"");
    let changed = diff(&old, &new);
    for key in
        ["http.listen", "sessions.max_live", "hooks.allow", "agent.default.delay", "agent.b.kind", "route[0].match"]
    {
        assert!(changed.iter().any(|c| c == key), "{key} is not in {changed:?}");
    }
    assert!(!changed.iter().any(|c| c == "agent.default.kind"), "{changed:?}");
    assert_eq!(needs_restart(&changed), ["http.listen"]);
    assert!(diff(&old, &old).is_empty());
    assert_eq!(needs_restart(&diff(&old, &ok("[http]\n[agent.b]\n[hooks]\nthreads = 5"))), ["hooks.threads"]);
    assert!(!needs_restart(&diff(&ok(""), &ok("[http]"))).is_empty(), "a listener that appears");
}
