//! The handshake, and which of the agent's sessions we get.
//!
//! Owns the order of attempts (resume, load, new) and the doubt in each of them: agents report success for sessions that
//! they do not know, or go on under another id. Believed is what `session/list` names and what a load replays. It must
//! not know turns.

use std::time::{Duration, Instant};

use serde_json::json;

use super::client::{CallError, Client};
use super::wire::{RpcError, shorten};
use crate::agent::json::Raw;
use crate::agent::{Continuity, Entry, Failure, Host};
use crate::model::event::Role;

/// The method that asks for a new session.
pub const NEW: &str = "session/new";
/// The version that is spoken here.
const VERSION: u64 = 1;
/// ACP's code for an agent that wants somebody to log in.
pub const AUTH_REQUIRED: i64 = -32000;
/// ACP's code for a session (or another resource) that the agent does not know.
const NOT_FOUND: i64 = -32002;
/// Pages of `session/list` that are read before it is taken for endless.
const PAGES: usize = 50;
/// Values of an answer's `_meta` that are looked at.
const PLACES: usize = 100;
/// The most of a replay's messages that is remembered, the newest.
const REPLAY_KEPT: usize = 1024 * 1024;
/// Entries among which the turn that was completed last is looked for.
const RECENT: usize = 20;
/// Sessions of one page of `session/list` that are looked at.
const LISTED: usize = 100_000;
/// For all of `session/list`.
const LIST_TIME: Duration = Duration::from_secs(15);

/// What an agent can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// `session/load`
    pub load: bool,
    /// `session/resume`
    pub resume: bool,
    /// `session/list`
    pub list: bool,
    /// `session/close`
    pub close: bool,
}

impl Capabilities {
    fn read(result: Raw<'_>) -> Self {
        let [load, session] = result.get("agentCapabilities").fields(["loadSession", "sessionCapabilities"]);
        // An object means yes, however empty; so does `true`, which some write instead.
        let [resume, list, close] =
            session.fields(["resume", "list", "close"]).map(|value| value.is_object() || value.is_true());
        Self { load: load.is_true(), resume, list, close }
    }
}

/// What is wanted of the agent.
#[derive(Clone, Copy, Debug)]
pub struct SessionRequest<'a> {
    /// The working directory.
    pub cwd: &'a str,
    /// The agent's session of an earlier activation, unless it is known to be lost.
    pub known: Option<&'a str>,
    /// Whether there is anything that the agent should remember.
    pub had_turns: bool,
    /// Its last process had no time to write anything down.
    pub unclean: bool,
    /// How much of the transcript it is given where it lacks some.
    pub history: u64,
}

/// The session that was got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The agent's id for it.
    pub id: String,
    /// How it was come by.
    pub continuity: Continuity,
    /// Whether there is more than the agent's word for it.
    pub proven: bool,
    /// What was said and is not in what it remembers, as context for it.
    pub lacks: Option<String>,
}

/// Why no session was got.
#[derive(Debug)]
pub struct Trouble {
    /// For the sender.
    pub failure: Failure,
    /// Whether it was in reopening the session of an earlier activation.
    pub reopening: bool,
}

/// Greets the agent.
///
/// # Errors
/// It speaks another version, wants a login, died, or did not answer in time.
pub fn initialize(client: &mut Client, host: &mut dyn Host, until: Instant) -> Result<Capabilities, Failure> {
    let params = json!({
        "protocolVersion": VERSION,
        "clientCapabilities": { "fs": { "readTextFile": false, "writeTextFile": false }, "terminal": false },
        "clientInfo": { "name": "ostler", "title": "ostler", "version": env!("CARGO_PKG_VERSION") },
    });
    let result = client
        .call(host, ("initialize", &params), until, &mut |_, _| {})
        .map_err(|e| explain(client, host, "initialize", e))?;
    let result = Raw::of(&result);
    let version = result.get("protocolVersion");
    if version.whole() != Some(VERSION) {
        let version = shorten(version.text(), 40);
        let why = format!("initialize: the agent speaks protocol version {version}, and ostler speaks {VERSION}");
        return Err(Failure::new("agent_start", why));
    }
    Ok(Capabilities::read(result))
}

/// Gets a session: the known one if the agent can go on with it, else a new one.
///
/// # Errors
/// The agent wants a login, died, did not answer in time, or gives no new session either.
pub fn open(
    client: &mut Client,
    host: &mut dyn Host,
    can: Capabilities,
    request: SessionRequest<'_>,
    until: Instant,
) -> Result<Opened, Trouble> {
    if let Some(known) = request.known {
        let reopened = reopen(client, host, can, (known, request), until);
        if let Some(opened) = reopened.map_err(|failure| Trouble { failure, reopening: true })? {
            return Ok(opened);
        }
    }
    let id = create(client, host, request.cwd, until).map_err(|failure| Trouble { failure, reopening: false })?;
    let continuity = if request.had_turns { Continuity::Lost } else { Continuity::New };
    Ok(Opened { id, continuity, proven: true, lacks: None })
}

/// Asks for a new session and returns the agent's id for it.
///
/// # Errors
/// As [`open`].
fn create(client: &mut Client, host: &mut dyn Host, cwd: &str, until: Instant) -> Result<String, Failure> {
    let result =
        client.call(host, (NEW, &new_params(cwd)), until, &mut |_, _| {}).map_err(|e| explain(client, host, NEW, e))?;
    new_id(&result)
}

/// What is sent with [`NEW`].
pub fn new_params(cwd: &str) -> serde_json::Value {
    json!({ "cwd": cwd, "mcpServers": [] })
}

/// The id in an answer to [`NEW`].
///
/// # Errors
/// It has none.
pub fn new_id(result: &str) -> Result<String, Failure> {
    match Raw::of(result).get("sessionId").string().filter(|id| !id.is_empty()) {
        Some(id) => Ok(id),
        None => Err(Failure::new("agent_start", format!("{NEW}: the answer has no sessionId"))),
    }
}

/// Tries what the agent offers to go on with a known session; `None`: it is lost.
fn reopen(
    client: &mut Client,
    host: &mut dyn Host,
    can: Capabilities,
    (known, request): (&str, SessionRequest<'_>),
    until: Instant,
) -> Result<Option<Opened>, Failure> {
    let listed = if can.list { is_listed(client, host, (known, request.cwd), until)? } else { None };
    let key = host.identity().key.clone();
    let kept = |proven, lacks| Some(Opened { id: known.to_string(), continuity: Continuity::Kept, proven, lacks });
    // A resume replays nothing that would prove it: it is not tried when the list says that the session is gone, nor after
    // an unclean end where a load can show what is left.
    if can.resume && !(can.load && request.unclean) && listed != Some(false) {
        match ask(client, host, "session/resume", (known, request.cwd), until)? {
            Ok(_) => return Ok(kept(listed == Some(true), None)),
            Err(why) => log::info!("{key}: session/resume of {known}: {why}"),
        }
    }
    if can.load {
        match ask(client, host, "session/load", (known, request.cwd), until)? {
            Ok(replay) if replay.pieces == 0 && request.had_turns => {
                log::info!("{key}: session/load of {known}: nothing came back of what was said")
            }
            Ok(replay) if replay.pieces == 0 && listed != Some(true) => {}
            Ok(replay) => {
                let entries = host.history(request.history);
                let newest = entries.iter().rev().filter_map(|e| e.turn_id.as_deref());
                let newest = newest.take(RECENT).find(|id| host.is_completed(id));
                let missing = replay.missing(&entries, newest);
                return Ok(kept(true, missing.map(missing_text)));
            }
            Err(why) => log::info!("{key}: session/load of {known}: {why}"),
        }
    }
    Ok(None)
}

/// One attempt: what was replayed of the conversation, or why the session is not to be had.
fn ask(
    client: &mut Client,
    host: &mut dyn Host,
    method: &str,
    (known, cwd): (&str, &str),
    until: Instant,
) -> Result<Result<Replay, String>, Failure> {
    let (mut replayed, mut other) = (Replay::default(), None);
    let params = json!({ "sessionId": known, "cwd": cwd, "mcpServers": [] });
    let answer = client.call(host, (method, &params), until, &mut |method, params| {
        if method != "session/update" {
            return;
        }
        let [id, update] = params.fields(["sessionId", "update"]);
        match id.string() {
            Some(id) if id != known => other = Some(id),
            _ => replayed.take(update),
        }
    });
    Ok(match answer {
        Ok(result) => match other.or_else(|| other_id(Raw::of(&result), known)) {
            Some(other) => Err(format!("the agent goes on under another id, {other}")),
            None => Ok(replayed),
        },
        Err(CallError::Refused(e)) if e.code != AUTH_REQUIRED => Err(e.to_string()),
        Err(e) => return Err(explain(client, host, method, e)),
    })
}

/// What an agent replayed of a conversation: how many pieces, and what the user had said.
#[derive(Debug, Default)]
pub struct Replay {
    pieces: u64,
    users: String,
}

impl Replay {
    fn take(&mut self, update: Raw<'_>) {
        if !is_conversation(update) {
            return;
        }
        self.pieces += 1;
        let [kind, content] = update.fields(["sessionUpdate", "content"]);
        if kind.string().as_deref() == Some("user_message_chunk") {
            self.users.push_str(&squeezed(&content.get("text").string().unwrap_or_default()));
            let over = self.users.len().saturating_sub(REPLAY_KEPT);
            let from = (over..self.users.len()).find(|n| self.users.is_char_boundary(*n)).unwrap_or(0);
            self.users.drain(..if over > 0 { from } else { 0 });
        }
    }

    /// What is missing in it, if the turn that was completed last (`newest`) is: all after the newest message of a user that
    /// it has. Agents put other text around a message, and break lines in other places: it is looked for without them. An
    /// agent that replays nothing of users cannot be judged.
    fn missing<'e>(&self, entries: &'e [Entry], newest: Option<&str>) -> Option<&'e [Entry]> {
        let has = |entry: &Entry| entry.role == Role::User && self.users.contains(&squeezed(&entry.text));
        let newest = newest?;
        let mut asked =
            entries.iter().filter(|e| e.role == Role::User && e.turn_id.as_deref() == Some(newest)).peekable();
        if self.users.is_empty() || asked.peek().is_none() || asked.any(has) {
            return None;
        }
        let from = entries.iter().rposition(has).map_or(0, |at| at + 1);
        let next = entries[from..].iter().position(|e| e.role == Role::User).unwrap_or(0);
        Some(&entries[from + next..])
    }
}

/// A text without white space.
fn squeezed(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

/// Whether an update is a piece of a conversation, rather than of the agent's state.
fn is_conversation(update: Raw<'_>) -> bool {
    matches!(
        update.get("sessionUpdate").string().as_deref(),
        Some(
            "user_message_chunk"
                | "agent_message_chunk"
                | "agent_thought_chunk"
                | "tool_call"
                | "tool_call_update"
                | "plan"
        )
    )
}

/// Whether an update is something that the agent says or does, rather than its state or what a user said.
pub fn is_own_words(update: Raw<'_>) -> bool {
    is_conversation(update) && update.get("sessionUpdate").string().as_deref() != Some("user_message_chunk")
}

/// Another session's id in an answer, where agents have been seen to put one.
fn other_id(result: Raw<'_>, known: &str) -> Option<String> {
    let meta = result.get("_meta");
    let places = [result, meta].into_iter().chain(meta.values(PLACES));
    let ids = places.flat_map(|place| place.fields(["sessionId", "session_id"]));
    ids.filter_map(Raw::string).find(|id| id != known)
}

/// Whether the agent's list has the session: asked for this directory first, then for all, because paths are spelt in
/// many ways. `None`: it cannot be told.
fn is_listed(
    client: &mut Client,
    host: &mut dyn Host,
    (known, cwd): (&str, &str),
    until: Instant,
) -> Result<Option<bool>, Failure> {
    let until = until.min(Instant::now() + LIST_TIME);
    for filter in [json!({ "cwd": cwd }), json!({})] {
        let mut params = filter;
        for page in 0.. {
            if page == PAGES {
                return Ok(None);
            }
            let result = match client.call(host, ("session/list", &params), until, &mut |_, _| {}) {
                Ok(result) => result,
                Err(CallError::Refused(_) | CallError::Lost(_) | CallError::Timeout) => return Ok(None),
                Err(e) => return Err(explain(client, host, "session/list", e)),
            };
            let [sessions, next] = Raw::of(&result).fields(["sessions", "nextCursor"]);
            if !sessions.is_array() {
                return Ok(None);
            }
            if sessions.items(LISTED).iter().any(|s| s.get("sessionId").string().as_deref() == Some(known)) {
                return Ok(Some(true));
            }
            match next.string().filter(|next| params["cursor"] != **next) {
                Some(next) => params["cursor"] = next.into(),
                None => break,
            }
        }
    }
    Ok(Some(false))
}

/// Whether an error says that the agent does not know the session.
pub fn is_unknown_session(error: &RpcError) -> bool {
    let text = error.text.to_ascii_lowercase();
    let says_so = ["not found", "unknown", "no such", "does not exist", "not exist"].iter().any(|s| text.contains(s));
    error.code == NOT_FOUND || (matches!(error.code, -32602 | -32603) && text.contains("session") && says_so)
}

/// A call's error, for people.
pub fn explain(client: &mut Client, host: &mut dyn Host, method: &str, error: CallError) -> Failure {
    let why = match error {
        CallError::Refused(e) if e.code == AUTH_REQUIRED => {
            let why = format!(
                "{method}: the agent wants a login: {e}; log in once with its own program as the daemon's user"
            );
            return Failure::new("auth_required", why);
        }
        CallError::Refused(e) => format!("{method}: refused: {e}"),
        CallError::Lost(what) => format!("{method}: its answer was on {what}"),
        CallError::Gone => format!("{method}: the agent {}", client.epitaph(host)),
        CallError::Timeout => {
            let last = client.last_line(host, "did not answer in time");
            let last = if last.is_empty() { last } else { format!(": {last}") };
            format!("{method}: no answer in time{last}")
        }
        CallError::Interrupted => format!("{method}: interrupted"),
    };
    Failure::new("agent_start", why)
}

/// What an agent lacks of what was said, as context for it.
fn missing_text(entries: &[Entry]) -> String {
    let mut text = String::from("A part of this conversation is not in your memory. It was, oldest first:\n");
    list(&mut text, entries);
    text.push_str("\n(End of what is not in your memory.)\n");
    text
}

fn list(text: &mut String, entries: &[Entry]) {
    for entry in entries {
        let at = crate::clock::rfc3339(entry.at);
        text.push_str(&format!("\n[{at}] {}: {}\n", entry.role, entry.text));
    }
}

/// What was said before, as context for an agent that does not remember it; `None` when nothing was.
pub fn history_text(entries: &[Entry]) -> Option<String> {
    let mut text = String::from(
        "This conversation began earlier, and your own memory of it was lost. What was said before, oldest first:\n",
    );
    list(&mut text, entries);
    text.push_str("\n(End of what was said before.)\n");
    (!entries.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_objects_however_empty() {
        let result = json!({ "agentCapabilities": { "loadSession": true,
            "sessionCapabilities": { "list": {}, "resume": null, "close": { "x": 1 } } } });
        let expected = Capabilities { load: true, resume: false, list: true, close: true };
        assert_eq!(Capabilities::read(Raw::of(&result.to_string())), expected);
        assert_eq!(Capabilities::read(Raw::of("{}")), Capabilities::default());
    }

    #[test]
    fn another_id_is_found_wherever_agents_put_it() {
        for result in [
            json!({ "sessionId": "b" }),
            json!({ "_meta": { "sessionId": "b" } }),
            json!({ "_meta": { "hermes": { "session_id": "b" } } }),
        ] {
            let result = result.to_string();
            assert_eq!(other_id(Raw::of(&result), "a").as_deref(), Some("b"), "{result}");
            assert_eq!(other_id(Raw::of(&result), "b"), None, "{result}");
        }
        assert_eq!(other_id(Raw::NULL, "a"), None);
    }

    #[test]
    fn what_a_replay_lacks_begins_after_the_last_message_that_it_has() {
        let mut replay = Replay::default();
        for text in ["<context/>\nmy horse\nis called ", "Juno", "second"] {
            let update = json!({ "sessionUpdate": "user_message_chunk", "content": { "type": "text", "text": text } });
            replay.take(Raw::of(&update.to_string()));
        }
        assert_eq!(replay.pieces, 3);
        let entry = |seq: i64, turn: &str, role, text: &str| Entry {
            seq,
            turn_id: Some(turn.into()),
            role,
            text: text.into(),
            at: 0,
        };
        let entries = [
            entry(1, "a", Role::User, "my horse is called Juno"),
            entry(2, "a", Role::Agent, "noted"),
            entry(3, "b", Role::User, "second"),
            entry(4, "b", Role::Agent, "two"),
            entry(5, "c", Role::User, "third"),
            entry(6, "c", Role::Agent, "three"),
            entry(7, "d", Role::User, "it died here"),
        ];
        let seqs = |newest| replay.missing(&entries, newest).map(|m| m.iter().map(|e| e.seq).collect::<Vec<_>>());
        assert_eq!(seqs(Some("b")), None, "the newest that was completed is there");
        assert_eq!(seqs(Some("c")), Some(vec![5, 6, 7]));
        assert_eq!(seqs(None), None);
        assert_eq!(seqs(Some("x")), None, "it is not within what is given");
        assert_eq!(Replay::default().missing(&entries, Some("c")), None, "one that replays no users cannot be judged");
        let text = missing_text(&entries[4..]);
        assert!(text.contains("user: third") && text.contains("agent: three"), "{text}");
    }

    #[test]
    fn unknown_sessions_are_told_by_code_and_by_text() {
        let error = |code, text: &str| RpcError { code, text: text.to_string() };
        assert!(is_unknown_session(&error(-32002, "Resource not found")));
        assert!(is_unknown_session(&error(-32603, "Internal error: Session 12 not found")));
        assert!(!is_unknown_session(&error(-32603, "Internal error: model not found")));
        assert!(!is_unknown_session(&error(-32000, "unknown session")));
    }
}
