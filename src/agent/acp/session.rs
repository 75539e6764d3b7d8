//! The handshake, and the choice of the agent's session.
//!
//! Owns the order of attempts (resume, load, new) and the check of each: agents report success for sessions that they
//! do not know, or go on under another id. Only `session/list` and the replay of a load count as proof. It must not
//! know turns.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::{CallError, Client};
use super::login::{self, Method};
use super::offers;
use super::wire::{RpcError, shorten, v1};
use crate::agent::json::Raw;
use crate::agent::{Continuity, Entry, Failure, Host};
use crate::model::event::Role;
use crate::model::offers::Offers;

/// ACP's error code: the agent requires a login.
pub const AUTH_REQUIRED: i64 = -32000;
/// ACP's error code: the agent does not know the session (or another resource).
const NOT_FOUND: i64 = -32002;
/// The most pages of `session/list` that are read; a longer list counts as endless.
const PAGES: usize = 50;
/// The most values of an answer's `_meta` that are checked.
const PLACES: usize = 100;
/// How much of a replay's newest messages is remembered, in bytes.
const REPLAY_KEPT: usize = 1024 * 1024;
/// The most entries that are searched for the last completed turn.
const RECENT: usize = 20;
/// The most sessions of one page of `session/list` that are checked.
const LISTED: usize = 100_000;
/// The longest time for all pages of `session/list`.
const LIST_TIME: Duration = Duration::from_secs(15);

/// What an agent can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Capabilities {
    /// `session/load`
    pub load: bool,
    /// `session/resume`
    pub resume: bool,
    /// `session/list`
    pub list: bool,
    /// `session/close`
    pub close: bool,
    /// Servers of tools over HTTP.
    #[serde(default)]
    pub http: bool,
    /// Instructions that are added to its own.
    #[serde(default)]
    pub instructions: bool,
}

/// What an agent says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// What it can do.
    pub can: Capabilities,
    /// Its own name.
    pub name: String,
    /// How it can be logged in.
    pub methods: Vec<Method>,
}

impl Capabilities {
    fn read(result: Raw<'_>) -> Self {
        let [load, session, mcp] =
            result.get("agentCapabilities").fields(["loadSession", "sessionCapabilities", "mcpCapabilities"]);
        // An object means yes, even an empty one; so does `true`, which some agents write instead.
        let [resume, list, close, instructions] = session
            .fields(["resume", "list", "close", "systemPrompt"])
            .map(|value| value.is_object() || value.is_true());
        Self { load: load.is_true(), resume, list, close, http: mcp.get("http").is_true(), instructions }
    }
}

/// The session to ask the agent for.
#[derive(Clone, Debug)]
pub struct SessionRequest<'a> {
    /// What it is set up with.
    pub setup: v1::Setup<'a>,
    /// The agent's session of an earlier activation; `None` if it is lost.
    pub known: Option<&'a str>,
    /// Whether there is anything that the agent should remember.
    pub had_turns: bool,
    /// Its last process may have ended before it saved the session.
    pub unclean: bool,
    /// How much of the transcript the agent is given if its memory has a gap, in bytes.
    pub history: u64,
}

/// The session that the agent opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The agent's id for it.
    pub id: String,
    /// Whether it is new, kept or lost.
    pub continuity: Continuity,
    /// Whether there is proof of it beyond the agent's answer.
    pub proven: bool,
    /// The part of the conversation that is missing in the agent's memory, as context for it.
    pub lacks: Option<String>,
    /// What can be chosen in it.
    pub offers: Offers,
}

/// Why the agent opened no session.
#[derive(Debug)]
pub struct Trouble {
    /// For the sender.
    pub failure: Failure,
    /// Whether it failed while it reopened the session of an earlier activation.
    pub reopening: bool,
}

/// Sends `initialize` to the agent.
///
/// # Errors
/// The agent speaks another version, requires a login, died, or did not answer in time.
pub fn initialize(client: &mut Client, host: &mut dyn Host, until: Instant) -> Result<Hello, Failure> {
    let ask = |client: &mut Client, host: &mut dyn Host| {
        let answer = client.call(host, (v1::INITIALIZE, &v1::initialize()), until, &mut |_, _| {});
        answer.map_err(|e| explain(client, host, v1::INITIALIZE, e))
    };
    let speaks = |answer: &str| Raw::of(answer).get("protocolVersion").whole() == Some(v1::VERSION);
    let mut answer = ask(client, host)?;
    if !speaks(&answer) {
        // One that speaks a later version, too, may have answered with that.
        answer = ask(client, host)?;
    }
    let result = Raw::of(&answer);
    let version = result.get("protocolVersion");
    if !speaks(&answer) {
        let version = shorten(version.text(), 40);
        let why = format!("initialize: the agent speaks protocol version {version}, and ostler speaks {}", v1::VERSION);
        return Err(Failure::new("agent_start", why));
    }
    let name = result.get("agentInfo").get("name").string().unwrap_or_default();
    Ok(Hello { can: Capabilities::read(result), name: shorten(&name, 200), methods: login::read(result) })
}

/// Gets a session: the known one if the agent can go on with it, else a new one.
///
/// # Errors
/// The agent requires a login, died, did not answer in time, or opens no new session either.
pub fn open(
    client: &mut Client,
    host: &mut dyn Host,
    can: Capabilities,
    request: SessionRequest<'_>,
    until: Instant,
) -> Result<Opened, Trouble> {
    if let Some(known) = request.known {
        let reopened = reopen(client, host, can, (known, &request), until);
        if let Some(opened) = reopened.map_err(|failure| Trouble { failure, reopening: true })? {
            return Ok(opened);
        }
    }
    let created = create(client, host, &request.setup, until);
    let (id, offers) = created.map_err(|failure| Trouble { failure, reopening: false })?;
    let continuity = if request.had_turns { Continuity::Lost } else { Continuity::New };
    Ok(Opened { id, continuity, proven: true, lacks: None, offers })
}

/// Asks for a new session. Returns the agent's id for it, and what it offers there.
///
/// # Errors
/// As [`open`].
fn create(
    client: &mut Client,
    host: &mut dyn Host,
    setup: &v1::Setup<'_>,
    until: Instant,
) -> Result<(String, Offers), Failure> {
    let mut offered = Offers::default();
    let answer = client.call(host, (v1::NEW, &v1::new(setup)), until, &mut |method, params| {
        if method == v1::UPDATE {
            offers::update(&mut offered, params.get("update"));
        }
    });
    let result = answer.map_err(|e| explain(client, host, v1::NEW, e))?;
    offers::take_in(&mut offered, Raw::of(&result));
    Ok((new_id(&result)?, offered))
}

/// The id in an answer to [`v1::NEW`].
///
/// # Errors
/// It has none.
pub fn new_id(result: &str) -> Result<String, Failure> {
    match Raw::of(result).get("sessionId").string().filter(|id| !id.is_empty()) {
        Some(id) => Ok(id),
        None => Err(Failure::new("agent_start", format!("{}: the answer has no sessionId", v1::NEW))),
    }
}

/// Tries each of the agent's methods to go on with a known session. `None`: it is lost.
fn reopen(
    client: &mut Client,
    host: &mut dyn Host,
    can: Capabilities,
    (known, request): (&str, &SessionRequest<'_>),
    until: Instant,
) -> Result<Option<Opened>, Failure> {
    let setup = &request.setup;
    let listed = if can.list { is_listed(client, host, (known, setup.cwd), until)? } else { None };
    let key = host.identity().key.clone();
    let kept = |proven, lacks, offers| {
        Some(Opened { id: known.to_string(), continuity: Continuity::Kept, proven, lacks, offers })
    };
    // A resume replays nothing, so it gives no proof. It is not tried if the session is not in the list, nor after an
    // unclean end if a load can show what is left.
    if can.resume && !(can.load && request.unclean) && listed != Some(false) {
        match ask(client, host, (v1::RESUME, v1::resume(known, setup)), known, until)? {
            Ok(replay) => return Ok(kept(listed == Some(true), None, replay.offers)),
            Err(why) => log::info!("{key}: session/resume of {known}: {why}"),
        }
    }
    if can.load {
        match ask(client, host, (v1::LOAD, v1::load(known, setup)), known, until)? {
            Ok(replay) if replay.pieces == 0 && request.had_turns => {
                log::info!("{key}: session/load of {known}: the replay is empty")
            }
            Ok(replay) if replay.pieces == 0 && listed != Some(true) => {}
            Ok(replay) => {
                let entries = host.history(request.history);
                let newest = entries.iter().rev().filter_map(|e| e.turn_id.as_deref());
                let newest = newest.take(RECENT).find(|id| host.is_completed(id));
                let missing = replay.missing(&entries, newest);
                let lacks = missing.map(missing_text);
                return Ok(kept(true, lacks, replay.offers));
            }
            Err(why) => log::info!("{key}: session/load of {known}: {why}"),
        }
    }
    Ok(None)
}

/// One attempt: the replay of the conversation, or why the agent did not open the session.
fn ask(
    client: &mut Client,
    host: &mut dyn Host,
    (method, params): (&str, Value),
    known: &str,
    until: Instant,
) -> Result<Result<Replay, String>, Failure> {
    let (mut replayed, mut other) = (Replay::default(), None);
    let answer = client.call(host, (method, &params), until, &mut |method, params| {
        if method != v1::UPDATE {
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
            None => {
                offers::take_in(&mut replayed.offers, Raw::of(&result));
                Ok(replayed)
            }
        },
        Err(CallError::Refused(e)) if e.code != AUTH_REQUIRED => Err(e.to_string()),
        Err(e) => return Err(explain(client, host, method, e)),
    })
}

/// An agent's replay of a conversation: the number of pieces, the user's messages, and what it offers now.
#[derive(Debug, Default)]
pub struct Replay {
    pieces: u64,
    users: String,
    offers: Offers,
}

impl Replay {
    fn take(&mut self, update: Raw<'_>) {
        if offers::update(&mut self.offers, update) || !is_conversation(update) {
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

    /// The entries that are missing in the replay, if the last completed turn (`newest`) is: all entries after the
    /// newest user message in it. Agents add text around a message and break lines in other places, so messages are
    /// compared without white space. A replay without user messages cannot be judged.
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

/// Whether an update belongs to the conversation, not to the agent's state.
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

/// Whether an update shows what the agent says or does, not its state and not a user's message.
pub fn is_own_words(update: Raw<'_>) -> bool {
    is_conversation(update) && update.get("sessionUpdate").string().as_deref() != Some("user_message_chunk")
}

/// Another session's id in an answer, in any of the places that agents use.
fn other_id(result: Raw<'_>, known: &str) -> Option<String> {
    let meta = result.get("_meta");
    let places = [result, meta].into_iter().chain(meta.values(PLACES));
    let ids = places.flat_map(|place| place.fields(["sessionId", "session_id"]));
    ids.filter_map(Raw::string).find(|id| id != known)
}

/// Whether the agent's list has the session. The first request asks for this directory, the second for all: one
/// directory can have several paths. `None`: unknown.
fn is_listed(
    client: &mut Client,
    host: &mut dyn Host,
    (known, cwd): (&str, &str),
    until: Instant,
) -> Result<Option<bool>, Failure> {
    let until = until.min(Instant::now() + LIST_TIME);
    for filter in [Some(cwd), None] {
        let mut cursor: Option<String> = None;
        for page in 0.. {
            if page == PAGES {
                return Ok(None);
            }
            let result =
                match client.call(host, (v1::LIST, &v1::list(filter, cursor.as_deref())), until, &mut |_, _| {}) {
                    Ok(result) => result,
                    Err(CallError::Refused(_) | CallError::Lost(_) | CallError::Timeout) => return Ok(None),
                    Err(e) => return Err(explain(client, host, v1::LIST, e)),
                };
            let [sessions, next] = Raw::of(&result).fields(["sessions", "nextCursor"]);
            if !sessions.is_array() {
                return Ok(None);
            }
            if sessions.items(LISTED).iter().any(|s| s.get("sessionId").string().as_deref() == Some(known)) {
                return Ok(Some(true));
            }
            match next.string().filter(|next| cursor.as_ref() != Some(next)) {
                Some(next) => cursor = Some(next),
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

/// A call's error as text for people.
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

/// The missing part of the conversation, as context for the agent.
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

/// The conversation so far, as context for an agent without memory of it. `None`: there is none.
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
    use serde_json::json;

    use super::*;

    #[test]
    fn capabilities_are_objects_even_empty_ones() {
        let result = json!({ "agentCapabilities": { "loadSession": true,
            "sessionCapabilities": { "list": {}, "resume": null, "close": { "x": 1 } } } });
        let expected = Capabilities { load: true, list: true, close: true, ..Capabilities::default() };
        assert_eq!(Capabilities::read(Raw::of(&result.to_string())), expected);
        assert_eq!(Capabilities::read(Raw::of("{}")), Capabilities::default());
    }

    #[test]
    fn another_id_is_found_in_each_of_its_places() {
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
    fn the_missing_part_begins_after_the_last_message_in_the_replay() {
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
        assert_eq!(seqs(Some("b")), None, "the last completed turn is there");
        assert_eq!(seqs(Some("c")), Some(vec![5, 6, 7]));
        assert_eq!(seqs(None), None);
        assert_eq!(seqs(Some("x")), None, "it is not among the entries");
        assert_eq!(
            Replay::default().missing(&entries, Some("c")),
            None,
            "a replay without user messages cannot be judged"
        );
        let text = missing_text(&entries[4..]);
        assert!(text.contains("user: third") && text.contains("agent: three"), "{text}");
    }

    #[test]
    fn unknown_sessions_are_recognised_by_code_and_by_text() {
        let error = |code, text: &str| RpcError { code, text: text.to_string() };
        assert!(is_unknown_session(&error(-32002, "Resource not found")));
        assert!(is_unknown_session(&error(-32603, "Internal error: Session 12 not found")));
        assert!(!is_unknown_session(&error(-32603, "Internal error: model not found")));
        assert!(!is_unknown_session(&error(-32000, "unknown session")));
    }
}
