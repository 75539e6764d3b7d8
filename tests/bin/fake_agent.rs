//! A scripted agent for tests: speaks ACP on stdin and stdout and misbehaves on demand. Never shipped.
//!
//! Flags (what it is):
//!   --no-load          does not offer session/load (offered otherwise)
//!   --resume --list --close   offers these too
//!   --load-lies        load and resume of an unknown session "succeed" and give nothing back
//!   --saves-late N     of a session's prompts only the first N outlive the process
//!   --load-error       load and resume always fail with -32603
//!   --load-dies CODE   load and resume end the process
//!   --no-replay        load replays nothing, though it knows the session
//!   --resume-other     resume of an unknown session makes another one and answers under its id
//!   --resume-replays   resume replays like load
//!   --ignore-term      SIGTERM does nothing
//!   --ignore-eof       goes on when its input ends
//!   --slow-start MS    answers initialize after this
//!   --never-init       never answers initialize
//!   --bad-version      speaks protocol version 2
//!   --banner           prints text to stdout before it speaks
//!   --auth             wants a login for a session
//!   --login NAME       wants one, and knows the methods `by-variable` (by the variable NAME), `by-hand` and `terminal`
//!   --settings         has modes, models and options: tests/bin/fake_agent/settings.rs
//!   --refuses-mode     but refuses to change the mode
//!   --http --instructions   takes tools over HTTP, instructions
//!   --unknown-refuses  a prompt of an unknown session is answered with `refusal` instead of -32002
//!   --exec             a command instead: tests/bin/fake_agent/exec.rs
//! $FAKE_AGENT_STATE names a directory in which its sessions live on; without it they die with the process.
//! $FAKE_AGENT_DIARY names one in which it writes down all that it hears and says: tests/bin/fake_agent/diary.rs
//!
//! A prompt is a list of commands separated by `;`, looked for in the last line of the last text block that begins with
//! a command; any other prompt is answered with `heard: TEXT`:
//!   say X              answers X                        think X           a thought
//!   stream N MS        N pieces `0 1 2 …`, paced        plan, usage       one of each
//!   lines N MS         says the turn's next N lines, paced: `line 1`, `line 2`, …
//!   paced PATH N       the next N lines, each for a byte that comes from PATH (a FIFO), or until a cancel
//!   tool [ID]          tool_call, permission, update; says `tool done` or `tool denied`
//!   tool-open ID       tool_call in progress, titled `Run ID`, of which nothing more is heard
//!   permission         asks about an unannounced tool; says `outcome: …`
//!   permission-first   as `permission`, but on a cancel waits for that answer and then fails (-32603)
//!   image              a piece that is no text          kinds             updates of unknown kinds
//!   die CODE           writes to stderr and exits       vanish            closes stdout and stays
//!   hang               until a cancel, answered `cancelled`   hang-hard   ignores cancels
//!   cancel-error       until a cancel, answered with an error -32603; the turn is then taken for running for ever: each
//!                      later prompt of this process is answered with `Queued for the next turn.`
//!   cancel-code        until a cancel, answered with an error -32800
//!   line TEXT          that line, with @ID@ for the prompt's id, @S@ for the session's, @E9@ for that byte, @BOM@
//!   mute               gives the prompt no answer       await ID          waits for the answer to a request of that id;
//!                      says `answer: OUTCOME OPTION` or `answer: error CODE`
//!   longend BYTES      answers the prompt with a line of that length
//!   longtool BYTES     a tool call with so many bytes of numbers as its input, then `after`
//!   garbage            lines that are no messages       longline BYTES    one line of that length, then `after`
//!   flood N            N updates as fast as it can      stderr BYTES      that much on stderr
//!   grandchild         starts a sleep in a session of its own that ignores SIGTERM; says `grandchild PID`
//!   outlaw             like grandchild, with an empty environment; says `outlaw PID`
//!   child              the same in its own group; says `child PID`
//!   refuse             stops with `refusal`             stop REASON       stops with that reason
//!   error TEXT         fails the prompt with -32603     bye               answers, then exits with status 0
//!   forget             forgets the session after this turn
//!   late-ask           asks for permission after the turn's end; says `late: OUTCOME OPTION`
//!   late TEXT          says TEXT after the turn's end   foreign TEXT      says TEXT under another session's id
//!   signal PATH        opens and closes PATH (a FIFO) for writing after the turn's end, `late` words included
//!   notify PATH        the same at once
//!   own PATH TEXT      goes on, and says TEXT and opens PATH.said (a FIFO) for writing when PATH can be opened for reading
//!   recall             says how many prompts of this session came before: `prompts before: N`
//!   echo-context       says all blocks of the prompt, each in a line `[TEXT]`
//!   wait-file PATH     until PATH (a FIFO) can be opened for reading, or a cancel
//!   settings           says what is chosen in the session, and what it was set up with
//!   switch MODE        changes the mode by itself
//!   env NAME, cwd, pid says what it has; `env` alone says all of it
//!   ask METHOD         asks the client for METHOD and says the error's code
// What it leaves behind is the point of it.
#![allow(clippy::unwrap_used, clippy::zombie_processes)]

use std::collections::HashMap;
use std::io::{BufRead, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, exit};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

#[path = "fake_agent/diary.rs"]
mod diary;
#[path = "fake_agent/exec.rs"]
mod exec;
#[path = "fake_agent/settings.rs"]
mod settings;

use settings::Settings;

const COMMANDS: &[&str] = &[
    "say",
    "think",
    "stream",
    "lines",
    "paced",
    "plan",
    "usage",
    "tool",
    "tool-open",
    "permission",
    "permission-first",
    "image",
    "kinds",
    "die",
    "vanish",
    "hang",
    "hang-hard",
    "cancel-error",
    "cancel-code",
    "line",
    "mute",
    "await",
    "longend",
    "longtool",
    "garbage",
    "longline",
    "flood",
    "stderr",
    "grandchild",
    "child",
    "outlaw",
    "refuse",
    "stop",
    "error",
    "bye",
    "forget",
    "late",
    "late-ask",
    "signal",
    "notify",
    "own",
    "foreign",
    "recall",
    "echo-context",
    "wait-file",
    "settings",
    "switch",
    "env",
    "cwd",
    "pid",
    "ask",
];

enum Input {
    Line(Value),
    Opened,
    End,
}

/// How a command leaves the turn.
enum Flow {
    Next,
    Stop(&'static str),
    StopOther(String),
    Fail(i64, String),
    Mute,
}

struct Agent {
    args: Vec<String>,
    input: Receiver<Input>,
    sender: Sender<Input>,
    state: Option<PathBuf>,
    sessions: HashMap<String, Vec<String>>,
    settings: HashMap<String, Settings>,
    /// The method by which it was told to log in.
    login: Option<String>,
    requests: i64,
    ended: bool,
    late: Vec<Value>,
    signal: Option<String>,
    bye: bool,
    wedged: bool,
    /// The id of the running prompt.
    prompt: Value,
    /// How many of its lines were said.
    line: u64,
}

fn main() {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = args.iter().position(|a| a == "--ignore-term") {
        // An ignored signal stays ignored over an exec.
        args.remove(at);
        let script = "trap '' TERM; exec \"$0\" \"$@\"";
        let me = std::env::current_exe().unwrap();
        panic!("{}", Command::new("/bin/sh").arg("-c").arg(script).arg(me).args(args).exec());
    }
    if args.iter().any(|a| a == "--exec") {
        return exec::run();
    }
    diary::began("acp");
    let (sender, input) = channel();
    let lines = sender.clone();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if let Ok(value) = serde_json::from_str(&line) {
                diary::heard(&value);
                let _ = lines.send(Input::Line(value));
            }
        }
        let _ = lines.send(Input::End);
    });
    let state = std::env::var_os("FAKE_AGENT_STATE").map(PathBuf::from);
    let mut agent = Agent {
        args,
        input,
        sender,
        state,
        sessions: HashMap::new(),
        settings: HashMap::new(),
        login: None,
        requests: 0,
        ended: false,
        late: Vec::new(),
        signal: None,
        bye: false,
        wedged: false,
        prompt: Value::Null,
        line: 0,
    };
    if agent.has("--banner") {
        println!("Welcome to the fake agent!\n[not json");
    }
    agent.serve();
}

fn send(message: &Value) {
    diary::said(message);
    let mut line = message.to_string();
    line.push('\n');
    send_raw(line.as_bytes());
}

fn send_raw(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
        exit(0);
    }
}

impl Agent {
    fn has(&self, flag: &str) -> bool {
        self.args.iter().any(|a| a == flag)
    }

    /// What follows a flag.
    fn word(&self, flag: &str) -> Option<&String> {
        let at = self.args.iter().position(|a| a == flag)?;
        self.args.get(at + 1)
    }

    fn number(&self, flag: &str) -> Option<u64> {
        self.word(flag)?.parse().ok()
    }

    fn serve(&mut self) {
        while let Some(message) = self.next() {
            let (id, params) = (message["id"].clone(), message["params"].clone());
            match message["method"].as_str() {
                Some("initialize") => self.initialize(&id),
                Some("authenticate") => match params["methodId"].as_str().unwrap() {
                    "by-hand" => fail(&id, -32603, "nobody is there"),
                    method => {
                        self.login = Some(method.to_string());
                        answer(&id, json!({}));
                    }
                },
                Some("session/new") if self.has("--auth") || self.has("--login") && self.login.is_none() => {
                    fail(&id, -32000, "Authentication required");
                }
                Some("session/set_mode") if self.has("--refuses-mode") => fail(&id, -32602, "not while it rains"),
                Some(method @ ("session/set_mode" | "session/set_model" | "session/set_config_option")) => {
                    let session = params["sessionId"].as_str().unwrap_or_default();
                    match self.settings.get_mut(session).and_then(|s| s.change(method, &params)) {
                        Some(result) => answer(&id, result),
                        None => fail(&id, -32601, method),
                    }
                }
                Some("session/new") => {
                    let session = self.new_session();
                    let result = self.set_up(&session, &params, json!({ "sessionId": session }));
                    send(&json!({ "jsonrpc": "2.0", "id": id, "result": result }));
                    update(&session, json!({ "sessionUpdate": "available_commands_update", "availableCommands": [] }));
                }
                Some(method @ ("session/load" | "session/resume")) => self.reopen(method, &id, &params),
                Some("session/list") => self.list(&id, &params),
                Some("session/close") => answer(&id, json!({})),
                Some("session/prompt") => self.prompt(&id, &params),
                Some(other) if !id.is_null() => fail(&id, -32601, other),
                None if id == "late" => {
                    let outcome = &message["result"]["outcome"];
                    let text = |name: &str| outcome[name].as_str().unwrap_or_default().to_string();
                    let session = self.sessions.keys().next().cloned().unwrap_or_default();
                    say(&session, &format!("late: {} {}", text("outcome"), text("optionId")));
                }
                _ => {}
            }
        }
        if self.has("--ignore-eof") {
            loop {
                std::thread::park();
            }
        }
    }

    /// The next message; `None` at the end of input.
    fn next(&mut self) -> Option<Value> {
        if self.ended {
            return None;
        }
        loop {
            match self.input.recv() {
                Ok(Input::Line(value)) => return Some(value),
                Ok(Input::Opened) => {}
                Ok(Input::End) | Err(_) => return None,
            }
        }
    }

    fn initialize(&self, id: &Value) {
        if self.has("--never-init") {
            return;
        }
        if let Some(ms) = self.number("--slow-start") {
            let (_keep, never) = channel::<()>();
            let _ = never.recv_timeout(Duration::from_millis(ms));
        }
        let mut session = serde_json::Map::new();
        for name in ["resume", "list", "close"] {
            if self.has(&format!("--{name}")) {
                session.insert(name.into(), json!({}));
            }
        }
        if self.has("--instructions") {
            session.insert("systemPrompt".into(), json!({}));
        }
        let version = if self.has("--bad-version") { 2 } else { 1 };
        let methods = match self.word("--login") {
            Some(name) => json!([
                { "id": "terminal", "name": "In a terminal", "type": "terminal" },
                { "id": "by-hand", "name": "By hand" },
                { "id": "by-variable", "name": "By variable", "type": "env_var", "vars": [{ "name": name }] },
            ]),
            None => json!([]),
        };
        answer(
            id,
            json!({
                "protocolVersion": version,
                "agentInfo": { "name": "ostler-fake-agent", "version": "1" },
                "agentCapabilities": { "loadSession": !self.has("--no-load"), "sessionCapabilities": session,
                    "mcpCapabilities": { "http": self.has("--http") } },
                "authMethods": methods,
            }),
        );
    }

    /// A session is opened so: completes the answer.
    fn set_up(&mut self, session: &str, params: &Value, answer: Value) -> Value {
        let settings = Settings::new(params);
        let answer = if self.has("--settings") { settings.told(answer) } else { answer };
        self.settings.insert(session.to_string(), settings);
        answer
    }

    fn new_session(&mut self) -> String {
        let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
        let id = format!("fake-{}-{nanos}", std::process::id());
        self.keep(&id, Vec::new());
        id
    }

    fn keep(&mut self, id: &str, prompts: Vec<String>) {
        if let Some(dir) = &self.state {
            let most = self.number("--saves-late").map_or(prompts.len(), |n| prompts.len().min(n as usize));
            std::fs::write(dir.join(id), serde_json::to_string(&prompts[..most]).unwrap()).unwrap();
        }
        self.sessions.insert(id.to_string(), prompts);
    }

    fn known(&self, id: &str) -> Option<Vec<String>> {
        if self.has("--saves-late")
            && let Some(prompts) = self.sessions.get(id)
        {
            return Some(prompts.clone());
        }
        match &self.state {
            Some(dir) => serde_json::from_str(&std::fs::read_to_string(dir.join(id)).ok()?).ok(),
            None => self.sessions.get(id).cloned(),
        }
    }

    fn reopen(&mut self, method: &str, id: &Value, params: &Value) {
        if let Some(code) = self.number("--load-dies") {
            eprintln!("cannot read the session");
            exit(i32::try_from(code).unwrap());
        }
        let session = params["sessionId"].as_str().unwrap_or_default().to_string();
        match self.known(&session) {
            _ if self.has("--load-error") => fail(id, -32603, "Internal error"),
            Some(prompts) => {
                if (method == "session/load" && !self.has("--no-replay")) || self.has("--resume-replays") {
                    for text in &prompts {
                        let content = json!({ "type": "text", "text": text });
                        update(&session, json!({ "sessionUpdate": "user_message_chunk", "content": content }));
                        say(&session, "replayed");
                    }
                }
                let result = self.set_up(&session, params, json!({}));
                self.sessions.insert(session, prompts);
                answer(id, result);
            }
            None if self.has("--resume-other") && method == "session/resume" => {
                let other = self.new_session();
                self.sessions.insert(format!("alias {session}"), vec![other]);
                answer(id, json!({}));
            }
            None if self.has("--load-lies") => answer(id, json!({})),
            None => fail(id, -32603, "Internal error: session not found"),
        }
    }

    fn list(&self, id: &Value, params: &Value) {
        let mut all: Vec<String> = match &self.state {
            Some(dir) => {
                std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
            }
            None => self.sessions.keys().cloned().collect(),
        };
        all.sort();
        let from: usize = params["cursor"].as_str().and_then(|c| c.parse().ok()).unwrap_or(0);
        let page: Vec<Value> = all.iter().skip(from).take(2).map(|s| json!({ "sessionId": s, "cwd": "/" })).collect();
        let next = (from + 2 < all.len()).then(|| (from + 2).to_string());
        answer(id, json!({ "sessions": page, "nextCursor": next }));
    }

    fn prompt(&mut self, id: &Value, params: &Value) {
        let asked = params["sessionId"].as_str().unwrap_or_default().to_string();
        let session = match self.sessions.get(&format!("alias {asked}")) {
            Some(other) => other[0].clone(),
            None => asked,
        };
        let Some(mut prompts) = self.known(&session) else {
            if self.has("--unknown-refuses") {
                return answer(id, json!({ "stopReason": "refusal" }));
            }
            return fail(id, -32002, "Resource not found");
        };
        if self.wedged {
            say(&session, "Queued for the next turn.");
            return answer(id, json!({ "stopReason": "end_turn" }));
        }
        let blocks: Vec<&str> =
            params["prompt"].as_array().unwrap().iter().filter_map(|b| b["text"].as_str()).collect();
        let text = blocks.last().copied().unwrap_or_default();
        let before = prompts.len();
        self.prompt = id.clone();
        self.line = 0;
        prompts.push(text.to_string());
        self.keep(&session, prompts);
        let line = text.lines().rfind(|l| COMMANDS.contains(&l.split([' ', ';']).next().unwrap_or_default()));
        let Some(line) = line else {
            say(&session, &format!("heard: {text}"));
            return answer(id, json!({ "stopReason": "end_turn" }));
        };
        let mut result = json!({ "stopReason": "end_turn" });
        for command in line.split(';') {
            match self.run(&session, command.trim(), (&blocks, before)) {
                Flow::Next => {}
                Flow::Stop(reason) => {
                    result = json!({ "stopReason": reason });
                    break;
                }
                Flow::StopOther(reason) => {
                    result = json!({ "stopReason": reason });
                    break;
                }
                Flow::Fail(code, text) => return fail(id, code, &text),
                Flow::Mute => return,
            }
        }
        answer(id, result);
        self.late.drain(..).for_each(|m| send(&m));
        if let Some(path) = self.signal.take() {
            std::fs::File::options().write(true).open(path).unwrap();
        }
        if self.bye {
            exit(0);
        }
    }

    fn run(&mut self, session: &str, command: &str, (blocks, before): (&[&str], usize)) -> Flow {
        let (word, rest) = command.split_once(' ').unwrap_or((command, ""));
        let number = |n: usize| rest.split(' ').nth(n).and_then(|t| t.parse::<usize>().ok()).unwrap_or(0);
        match word {
            "say" => say(session, rest),
            "think" => update(
                session,
                json!({ "sessionUpdate": "agent_thought_chunk", "content": { "type": "text", "text": rest } }),
            ),
            "stream" => return self.stream(number(0), number(1), |_, n| say(session, &format!("{n} "))),
            "lines" => return self.stream(number(0), number(1), |agent, _| agent.next_line(session)),
            "paced" => return self.paced(session, rest),
            "plan" => update(
                session,
                json!({ "sessionUpdate": "plan", "entries": [
                { "content": "first", "priority": "high", "status": "in_progress" },
                { "content": "second", "priority": "low", "status": "pending" } ] }),
            ),
            "settings" => {
                let login = self.login.clone().unwrap_or_default();
                say(session, &format!("{}{login}", self.settings.get(session).map(Settings::text).unwrap_or_default()));
            }
            "switch" => {
                if let Some(settings) = self.settings.get_mut(session) {
                    settings.set_mode(rest);
                }
                update(session, json!({ "sessionUpdate": "current_mode_update", "currentModeId": rest }));
            }
            "usage" => update(session, json!({ "sessionUpdate": "usage_update", "used": 16, "size": 1000 })),
            "tool" => return self.tool(session, if rest.is_empty() { "tc-1" } else { rest }),
            "tool-open" => update(
                session,
                json!({ "sessionUpdate": "tool_call", "toolCallId": rest, "title": format!("Run {rest}"),
                "kind": "execute", "status": "in_progress" }),
            ),
            "permission" | "permission-first" => return self.permission(session, word == "permission-first"),
            "image" => update(
                session,
                json!({ "sessionUpdate": "agent_message_chunk",
                "content": { "type": "image", "mimeType": "image/png", "data": "AAAA" } }),
            ),
            "kinds" => {
                update(session, json!({ "sessionUpdate": "hologram_chunk", "content": 7 }));
                send(&json!({ "jsonrpc": "2.0", "method": "_fake/status", "params": 1 }));
                send(&json!({ "jsonrpc": "2.0", "method": "session/update", "params": "odd" }));
                send(&json!({ "jsonrpc": "2.0", "id": 9999, "result": "nobody asked" }));
            }
            "die" => {
                eprintln!("fatal: told to die");
                exit(i32::try_from(number(0)).unwrap());
            }
            "vanish" => {
                // The reader's end of the pipe sees the end of file when the shell closes its copy and ours is replaced.
                let script = "exec >&-; echo 'fatal: closed its output' >&2; exec sleep 1000";
                panic!("{}", Command::new("/bin/sh").arg("-c").arg(script).exec());
            }
            "hang" => return self.until_cancel(),
            "hang-hard" => loop {
                let _ = self.input.recv();
            },
            "cancel-error" => {
                self.until_cancel();
                self.wedged = true;
                let text = "Internal error: 'NoneType' object has no attribute 'startswith'";
                return Flow::Fail(-32603, text.into());
            }
            "cancel-code" => {
                self.until_cancel();
                return Flow::Fail(-32800, "Request cancelled".into());
            }
            "line" => self.line(session, rest),
            "longend" => {
                let x = "x".repeat(number(0));
                self.line(session, &format!("{{\"jsonrpc\":\"2.0\",\"id\":@ID@,\"result\":{{\"x\":\"{x}\"}}}}"));
                return Flow::Mute;
            }
            "longtool" => {
                let numbers = "1,".repeat(number(0) / 2);
                self.line(
                    session,
                    &format!(
                        "{{\"jsonrpc\":\"2.0\",\"method\":\"session/update\",\"params\":{{\"sessionId\":\"@S@\",\"update\":\
                         {{\"sessionUpdate\":\"tool_call\",\"toolCallId\":\"t\",\"rawInput\":[{numbers}1]}}}}}}"
                    ),
                );
                say(session, "after");
            }
            "mute" => return Flow::Mute,
            "await" => {
                let of: Value = serde_json::from_str(rest).unwrap();
                let m = loop {
                    match self.input.recv() {
                        Ok(Input::Line(m)) if m["method"].is_null() && m["id"] == of => break m,
                        Ok(Input::Line(_) | Input::Opened) => {}
                        Ok(Input::End) | Err(_) => exit(0),
                    }
                };
                let outcome = &m["result"]["outcome"];
                let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
                match m["error"]["code"].as_i64() {
                    Some(code) => say(session, &format!("answer: error {code}")),
                    None => {
                        say(session, &format!("answer: {} {}", text(&outcome["outcome"]), text(&outcome["optionId"])))
                    }
                }
            }
            "garbage" => send_raw(b"Traceback: not json\n{\"half\": \n[1,2,3]\n\n\xff\xfe\n{}\n"),
            "longline" => {
                let mut line = format!(
                    "{{\"jsonrpc\":\"2.0\",\"method\":\"_fake/long\",\"params\":\"{}\"}}",
                    "x".repeat(number(0))
                );
                line.push('\n');
                send_raw(line.as_bytes());
                say(session, "after");
            }
            "flood" => (0..number(0)).for_each(|n| say(session, &format!("{} ", n % 10))),
            "stderr" => eprintln!("{}", "e".repeat(number(0))),
            "grandchild" | "outlaw" | "child" => {
                let script = "trap '' TERM; exec sleep 1000";
                let mut sleep = Command::new(if word == "child" { "/bin/sh" } else { "setsid" });
                if word == "outlaw" {
                    sleep.env_clear();
                }
                let sleep = if word == "child" { &mut sleep } else { sleep.arg("/bin/sh") };
                let child = sleep.arg("-c").arg(script).spawn().unwrap();
                say(session, &format!("{word} {}", child.id()));
            }
            "refuse" => return Flow::Stop("refusal"),
            "stop" => return Flow::StopOther(rest.to_string()),
            "error" => return Flow::Fail(-32603, rest.to_string()),
            "bye" => self.bye = true,
            "forget" => {
                self.sessions.remove(session);
                if let Some(dir) = &self.state {
                    std::fs::remove_file(dir.join(session)).unwrap();
                }
            }
            "late-ask" => {
                let mut params = permission_params(session, "late-1");
                params["toolCall"]["title"] = "clean up".into();
                self.late.push(
                    json!({ "jsonrpc": "2.0", "id": "late", "method": "session/request_permission", "params": params }),
                );
            }
            "late" => self.late.push(message(session, rest)),
            "signal" => self.signal = Some(rest.to_string()),
            "notify" => drop(std::fs::File::options().write(true).open(rest).unwrap()),
            "own" => {
                let (path, text) = rest.split_once(' ').unwrap();
                let (path, words) = (path.to_string(), message(session, text));
                std::thread::spawn(move || {
                    drop(std::fs::File::open(&path).unwrap());
                    send(&words);
                    drop(std::fs::File::options().write(true).open(path + ".said").unwrap());
                });
            }
            "foreign" => say("somebody-else", rest),
            "recall" => say(session, &format!("prompts before: {before}")),
            "echo-context" => blocks.iter().for_each(|b| say(session, &format!("[{b}]\n"))),
            "wait-file" => {
                let (path, opened) = (rest.to_string(), self.sender.clone());
                std::thread::spawn(move || {
                    let _file = std::fs::File::open(path);
                    let _ = opened.send(Input::Opened);
                });
                return self.until_cancel();
            }
            "env" if rest.is_empty() => {
                let mut names: Vec<String> = std::env::vars().map(|(k, v)| format!("{k}={v}")).collect();
                names.sort();
                say(session, &names.join("\n"));
            }
            "env" => say(session, &std::env::var(rest).unwrap_or_else(|_| "unset".into())),
            "cwd" => say(session, &std::env::current_dir().unwrap().to_string_lossy()),
            "pid" => say(session, &format!("pid {}", std::process::id())),
            "ask" => {
                let answer = self.ask(rest, json!({ "sessionId": session, "path": "/etc/hostname" }), false);
                say(session, &format!("code {}", answer.unwrap_or_default()["error"]["code"]));
            }
            _ => say(session, &format!("heard: {command}")),
        }
        Flow::Next
    }

    /// Writes a line as it is.
    fn line(&self, session: &str, text: &str) {
        let text = text.replace("@ID@", &self.prompt.to_string()).replace("@S@", session).replace("@BOM@", "\u{feff}");
        let mut bytes = Vec::new();
        for (n, piece) in text.split("@E9@").enumerate() {
            bytes.extend((n > 0).then_some(0xE9));
            bytes.extend_from_slice(piece.as_bytes());
        }
        bytes.push(b'\n');
        send_raw(&bytes);
    }

    fn next_line(&mut self, session: &str) {
        self.line += 1;
        say(session, &format!("line {}\n", self.line));
    }

    /// A line for each byte that comes.
    fn paced(&mut self, session: &str, rest: &str) -> Flow {
        let (path, count) = rest.rsplit_once(' ').unwrap();
        let (path, count, came) = (path.to_string(), count.parse::<usize>().unwrap(), self.sender.clone());
        std::thread::spawn(move || {
            let mut paces = std::fs::File::open(path).unwrap();
            for _ in 0..count {
                if paces.read_exact(&mut [0]).is_err() || came.send(Input::Opened).is_err() {
                    return;
                }
            }
        });
        for _ in 0..count {
            match self.until_cancel() {
                Flow::Next => self.next_line(session),
                other => return other,
            }
        }
        Flow::Next
    }

    fn stream(&mut self, count: usize, ms: usize, mut piece: impl FnMut(&mut Self, usize)) -> Flow {
        for n in 0..count {
            piece(self, n);
            let until = Instant::now() + Duration::from_millis(ms as u64);
            loop {
                match self.input.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(Input::Line(m)) if m["method"] == "session/cancel" => return Flow::Stop("cancelled"),
                    Ok(Input::End) | Err(RecvTimeoutError::Disconnected) => {
                        self.ended = true;
                        return Flow::Next;
                    }
                    Ok(_) => {}
                    Err(RecvTimeoutError::Timeout) => break,
                }
            }
        }
        Flow::Next
    }

    /// Waits for a cancel, or for the file that somebody waits for.
    fn until_cancel(&mut self) -> Flow {
        loop {
            match self.input.recv() {
                Ok(Input::Line(m)) if m["method"] == "session/cancel" => return Flow::Stop("cancelled"),
                Ok(Input::Line(_)) => {}
                Ok(Input::Opened) => return Flow::Next,
                Ok(Input::End) | Err(_) => {
                    self.ended = true;
                    return Flow::Stop("cancelled");
                }
            }
        }
    }

    /// Asks the client; `None` when a cancel came first (unless `first`: then the answer is waited for all the same).
    fn ask(&mut self, method: &str, params: Value, first: bool) -> Option<Value> {
        let id = self.requests;
        self.requests += 1;
        send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }));
        loop {
            match self.input.recv() {
                Ok(Input::Line(m)) if m["method"] == "session/cancel" && !first => return None,
                Ok(Input::Line(m)) if m["id"] == id && m["method"].is_null() => return Some(m),
                Ok(Input::Line(_) | Input::Opened) => {}
                Ok(Input::End) | Err(_) => exit(0),
            }
        }
    }

    fn tool(&mut self, session: &str, tool: &str) -> Flow {
        update(
            session,
            json!({ "sessionUpdate": "tool_call", "toolCallId": tool, "title": "Touch a file", "kind": "execute",
            "status": "pending", "rawInput": { "command": "touch x" } }),
        );
        let params = permission_params(session, tool);
        let Some(answer) = self.ask("session/request_permission", params, false) else {
            return Flow::Stop("cancelled");
        };
        let allowed = answer["result"]["outcome"]["optionId"] == "allow-once";
        let status = if allowed { "completed" } else { "failed" };
        update(
            session,
            json!({ "sessionUpdate": "tool_call_update", "toolCallId": tool, "status": status, "rawOutput": "ok" }),
        );
        say(session, if allowed { "tool done" } else { "tool denied" });
        Flow::Next
    }

    fn permission(&mut self, session: &str, first: bool) -> Flow {
        let params = permission_params(session, "perm-check-1");
        let Some(answer) = self.ask("session/request_permission", params, first) else {
            return Flow::Stop("cancelled");
        };
        let outcome = &answer["result"]["outcome"];
        if first && outcome["outcome"] == "cancelled" {
            self.wedged = true;
            return Flow::Fail(-32603, "Internal error".into());
        }
        let option = outcome["optionId"].as_str().unwrap_or("");
        say(session, &format!("outcome: {} {option}", outcome["outcome"].as_str().unwrap_or("none")));
        Flow::Next
    }
}

fn permission_params(session: &str, tool: &str) -> Value {
    json!({ "sessionId": session,
        "toolCall": { "toolCallId": tool, "title": "touch x", "kind": "execute", "status": "pending",
            "rawInput": { "command": "touch x" }, "locations": [{ "path": "/tmp/x" }] },
        "options": [
            { "optionId": "allow-once", "name": "Yes", "kind": "allow_once" },
            { "optionId": "reject", "name": "No", "kind": "reject_once" } ] })
}

fn message(session: &str, text: &str) -> Value {
    json!({ "jsonrpc": "2.0", "method": "session/update", "params": { "sessionId": session,
        "update": { "sessionUpdate": "agent_message_chunk", "content": { "type": "text", "text": text } } } })
}

fn say(session: &str, text: &str) {
    send(&message(session, text));
}

fn update(session: &str, update: Value) {
    send(
        &json!({ "jsonrpc": "2.0", "method": "session/update", "params": { "sessionId": session, "update": update } }),
    );
}

fn answer(id: &Value, result: Value) {
    send(&json!({ "jsonrpc": "2.0", "id": id, "result": result }));
}

fn fail(id: &Value, code: i64, text: &str) {
    send(&json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": text } }));
}
