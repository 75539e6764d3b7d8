//! One turn: translates the agent's updates for the host, and keeps open permissions until they are settled.
//!
//! Owns the bounded state of the turn so far; it must not know processes or sessions.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::wire::{Id, shorten, v1};
use crate::agent::json::Raw;
use crate::agent::text::Utf8;
use crate::agent::{Host, PermissionOption, PermissionOutcome, PermissionRequest, Said, ToolCall, one_line, say};

/// How much of each of a tool call's four raw fields is kept, in bytes: 64 KiB together.
const FIELD_LIMIT: usize = 16 * 1024;
/// The most items that are kept of a tool call's `content` when it is cut.
const CONTENT_ITEMS: usize = 32;
/// The longest line of text for people, in bytes.
const LINE_LIMIT: usize = 1024;
/// The most tool calls of one turn that are remembered for its permissions.
const TOOLS_KEPT: usize = 1024;
/// The most bytes that are remembered of their details.
const DETAILS_KEPT: usize = 4 * 1024 * 1024;
/// The most permissions open at once, and the most options of each.
const OPEN_LIMIT: usize = 64;
/// The most entries of a plan.
const PLAN_LIMIT: usize = 200;
/// The longest value in a `usage` update, in bytes.
const USAGE_LIMIT: usize = 4096;

/// The state of the running turn.
#[derive(Debug, Default)]
pub struct Turn {
    /// Whether the agent said anything at all.
    pub spoke: bool,
    /// Whether a permission was settled: the answer may have made the agent end its turn.
    pub settled: bool,
    tools: HashMap<String, ToolCall>,
    details: usize,
    open: Vec<(String, Id)>,
    /// Decoders of the text and the thoughts: a character may be split between two updates.
    text: Utf8,
    thought: Utf8,
    /// The message that the text belongs to, and how many newlines its text ends with.
    message: Option<String>,
    newlines: usize,
    wrote: bool,
}

/// What another daemon must know of a turn, beside its tool calls.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct SavedTurn {
    spoke: bool,
    settled: bool,
    open: Vec<(String, Id)>,
    text: Utf8,
    thought: Utf8,
    message: Option<String>,
    newlines: usize,
    wrote: bool,
}

impl Turn {
    /// What another daemon must know of it.
    pub fn saved(&self) -> SavedTurn {
        SavedTurn {
            spoke: self.spoke,
            settled: self.settled,
            open: self.open.clone(),
            text: self.text.clone(),
            thought: self.thought.clone(),
            message: self.message.clone(),
            newlines: self.newlines,
            wrote: self.wrote,
        }
    }

    /// A turn that goes on, with its tool calls.
    pub fn resume(saved: SavedTurn, tools: Vec<ToolCall>) -> Self {
        let SavedTurn { spoke, settled, open, text, thought, message, newlines, wrote } = saved;
        let mut turn =
            Self { spoke, settled, tools: HashMap::new(), details: 0, open, text, thought, message, newlines, wrote };
        tools.into_iter().for_each(|tool| turn.merge(tool));
        turn
    }

    /// Handles the `update` of a `session/update`. Unknown kinds are ignored.
    pub fn update(&mut self, host: &mut dyn Host, update: Raw<'_>) {
        let [kind, content, message, entries] = update.fields(["sessionUpdate", "content", "messageId", "entries"]);
        let kind = kind.string().unwrap_or_default();
        match kind.as_str() {
            "agent_message_chunk" => {
                say(host, Said::Thought(self.thought.finish()));
                return self.speak(host, content, message);
            }
            "agent_thought_chunk" => {
                self.write(host, None);
                let bytes = content_bytes(content);
                self.spoke |= !bytes.is_empty();
                return say(host, Said::Thought(self.thought.push(&bytes)));
            }
            _ => {}
        }
        let said = match kind.as_str() {
            "tool_call" | "tool_call_update" => match read_tool(update, kind == "tool_call") {
                Some(tool) => {
                    self.merge(tool.clone());
                    Said::Tool(tool)
                }
                None => return,
            },
            "plan" => Said::Plan(read_plan(entries)),
            "usage_update" => Said::Usage(pick(update, ["used", "size", "cost"])),
            _ => return,
        };
        self.spoke |= !matches!(said, Said::Usage(_));
        self.flush(host);
        host.said(said);
    }

    /// Passes on a piece of the answer. Another message begins a new paragraph.
    fn speak(&mut self, host: &mut dyn Host, content: Raw<'_>, message: Raw<'_>) {
        let bytes = content_bytes(content);
        if bytes.is_empty() {
            return;
        }
        self.spoke = true;
        if let Some(message) = message.string().map(|id| shorten(&id, LINE_LIMIT)) {
            if self.message.as_ref().is_some_and(|before| *before != message) {
                self.write(host, None);
                if self.wrote {
                    let paragraph = "\n".repeat(2_usize.saturating_sub(self.newlines));
                    self.write(host, Some(paragraph.as_bytes()));
                }
            }
            self.message = Some(message);
        }
        self.write(host, Some(&bytes));
    }

    /// Passes text on. `None`: the text so far is complete, and a split character at its end is given up.
    fn write(&mut self, host: &mut dyn Host, bytes: Option<&[u8]>) {
        let text = match bytes {
            Some(bytes) => self.text.push(bytes),
            None => self.text.finish(),
        };
        if text.is_empty() {
            return;
        }
        let trailing = text.len() - text.trim_end_matches('\n').len();
        self.newlines = if trailing == text.len() { self.newlines + trailing } else { trailing };
        self.wrote = true;
        say(host, Said::Text(text));
    }

    /// Passes on what is left of split characters, before something else than text follows.
    pub fn flush(&mut self, host: &mut dyn Host) {
        say(host, Said::Thought(self.thought.finish()));
        self.write(host, None);
    }

    /// The agent asks for permission under its id. `Some`: the answer to send at once.
    pub fn ask(&mut self, host: &mut dyn Host, id: Id, params: Raw<'_>) -> Option<(Id, Value)> {
        let [options, call] = params.fields(["options", "toolCall"]);
        let options = read_options(options);
        let tool = read_tool(call, true);
        let (Some(tool), false) = (tool, options.is_empty() || self.open.len() >= OPEN_LIMIT) else {
            let text = "a permission request without a tool call or options, or one too many; it was withdrawn";
            log::warn!("{}: {text}", host.identity().key);
            host.said(Said::Notice("permission_unreadable".into(), format!("the agent sent {text}")));
            return Some((id, v1::permission(&PermissionOutcome::Cancelled)));
        };
        self.spoke = true;
        self.flush(host);
        // The agent may have announced the tool call under another id, or not at all.
        if !self.tools.contains_key(&tool.id) {
            host.said(Said::Tool(tool.clone()));
        }
        self.merge(tool.clone());
        let tool = self.tools.get(&tool.id).cloned().unwrap_or(tool);
        // Unique, so that a late answer to a withdrawn request cannot settle another request.
        let request_id = uuid::Uuid::now_v7().to_string();
        match host.permission(PermissionRequest { request_id: request_id.clone(), tool, options }) {
            Some(settled) => {
                self.settled = true;
                Some((id, v1::permission(&settled)))
            }
            None => {
                self.open.push((request_id, id));
                None
            }
        }
    }

    /// Whether a permission waits for its answer.
    pub fn is_asking(&self) -> bool {
        !self.open.is_empty()
    }

    /// A permission was settled: the answer to send. `None`: it is not open (any more).
    pub fn settle(&mut self, request_id: &str, settled: &PermissionOutcome) -> Option<(Id, Value)> {
        let at = self.open.iter().position(|(open, _)| open == request_id)?;
        self.settled = true;
        Some((self.open.swap_remove(at).1, v1::permission(settled)))
    }

    /// The agent withdraws a request: tells the host, and returns the answer to send.
    pub fn withdraw(&mut self, host: &mut dyn Host, id: &Id) -> Option<(Id, Value)> {
        let at = self.open.iter().position(|(_, open)| open == id)?;
        let (request_id, id) = self.open.swap_remove(at);
        host.permission_withdrawn(&request_id, "agent");
        Some((id, v1::permission(&PermissionOutcome::Cancelled)))
    }

    /// The turn is cancelled: takes back what nobody has answered. The answers come from the host.
    pub fn take_back(&self, host: &mut dyn Host) {
        self.open.iter().for_each(|(request_id, _)| host.permission_withdrawn(request_id, "daemon"));
    }

    /// The turn ends: the answers to all open requests.
    pub fn withdraw_all(&mut self) -> Vec<(Id, Value)> {
        self.open.drain(..).map(|(_, id)| (id, v1::permission(&PermissionOutcome::Cancelled))).collect()
    }

    /// Remembers the given fields of a tool call; its other fields stay as they are.
    fn merge(&mut self, tool: ToolCall) {
        let size = tool.detail.as_ref().map_or(0, |d| d.to_string().len());
        let known = self.tools.contains_key(&tool.id);
        if (self.tools.len() >= TOOLS_KEPT && !known) || self.details + size > DETAILS_KEPT {
            // This call is kept: the next permission is likely to concern it.
            let kept = self.tools.remove(&tool.id);
            self.details = 0;
            self.tools.clear();
            self.tools.extend(kept.map(|kept| (tool.id.clone(), kept)));
        }
        self.details += size;
        self.tools
            .entry(tool.id.clone())
            .or_insert_with(|| ToolCall { id: tool.id.clone(), ..ToolCall::default() })
            .merge(tool);
    }
}

/// The text of an update outside of its own turn; a tool call is shown by its title.
pub fn words(update: Raw<'_>) -> String {
    let [kind, content, title] = update.fields(["sessionUpdate", "content", "title"]);
    match kind.string().unwrap_or_default().as_str() {
        "agent_message_chunk" => crate::agent::text::lossy(&content_bytes(content)),
        "tool_call" => format!("[{}]", one_line(&title.string().unwrap_or_default(), LINE_LIMIT)),
        _ => String::new(),
    }
}

/// The text of a content block in bytes, whose last character may be incomplete; of other content its kind and name.
fn content_bytes(content: Raw<'_>) -> Vec<u8> {
    let [kind, text, mime, uri, resource] = content.fields(["type", "text", "mimeType", "uri", "resource"]);
    let name = |field: Raw<'_>| shorten(&field.string().unwrap_or_else(|| "unknown".to_string()), LINE_LIMIT);
    let named = match kind.string().unwrap_or_default().as_str() {
        "text" => return text.bytes().unwrap_or_default(),
        kind @ ("image" | "audio") => format!("[{kind} {}]", name(mime)),
        "resource_link" => format!("[resource {}]", name(uri)),
        "resource" => {
            let [text, uri] = resource.fields(["text", "uri"]);
            match text.bytes() {
                Some(text) => return text,
                None => format!("[resource {}]", name(uri)),
            }
        }
        "" => String::new(),
        other => format!("[{}]", shorten(other, 40)),
    };
    named.into_bytes()
}

fn read_tool(call: Raw<'_>, whole: bool) -> Option<ToolCall> {
    let [id, title, kind, status] = call.fields(["toolCallId", "title", "kind", "status"]);
    let line = |field: Raw<'_>| field.string().map(|text| one_line(&text, LINE_LIMIT));
    Some(ToolCall {
        id: id.string().filter(|id| !id.is_empty()).map(|id| shorten(&id, LINE_LIMIT))?,
        title: line(title),
        kind: line(kind),
        status: line(status).or_else(|| whole.then(|| "pending".to_string())),
        detail: bounded_detail(call),
    })
}

/// The raw fields that were given, each with a limit of its own, so a large field does not cut the others. A cut field
/// has `truncated` set.
fn bounded_detail(call: Raw<'_>) -> Option<Value> {
    const NAMES: [&str; 4] = ["rawInput", "rawOutput", "content", "locations"];
    let mut detail = Map::new();
    for (name, value) in NAMES.into_iter().zip(call.fields(NAMES)) {
        if value.is_null() {
            continue;
        }
        let kept = if name == "content" { bounded_content(value) } else { value.value(FIELD_LIMIT) };
        detail.insert(name.to_string(), kept);
    }
    (!detail.is_empty()).then_some(Value::Object(detail))
}

/// A tool call's `content`: texts and diffs. If it is too long, the beginning of each item.
fn bounded_content(content: Raw<'_>) -> Value {
    if content.text().len() <= FIELD_LIMIT || !content.is_array() {
        return content.value(FIELD_LIMIT);
    }
    let items = content.items(CONTENT_ITEMS + 1);
    let share = FIELD_LIMIT / 3 / items.len().clamp(1, CONTENT_ITEMS) - 64;
    let cut = |field: Raw<'_>| field.string().map(|text| shorten(&text, share));
    let read = |item: &Raw<'_>| {
        let [kind, content, path, old, new] = item.fields(["type", "content", "path", "oldText", "newText"]);
        match kind.string().unwrap_or_default().as_str() {
            "diff" => {
                json!({ "type": "diff", "path": cut(path), "oldText": cut(old), "newText": cut(new), "truncated": true })
            }
            "content" => {
                let text = crate::agent::text::lossy(&content_bytes(content));
                let block = json!({ "type": "text", "text": shorten(&text, share) });
                json!({ "type": "content", "content": block, "truncated": true })
            }
            other => json!({ "type": shorten(other, 40), "truncated": true }),
        }
    };
    let mut kept: Vec<Value> = items.iter().take(CONTENT_ITEMS).map(read).collect();
    if items.len() > CONTENT_ITEMS {
        kept.push(json!({ "type": "more", "truncated": true }));
    }
    let kept = Value::from(kept);
    if kept.to_string().len() <= FIELD_LIMIT { kept } else { content.value(FIELD_LIMIT) }
}

fn read_plan(entries: Raw<'_>) -> Value {
    let read = |entry: Raw<'_>| {
        let [content, priority, status] = entry
            .fields(["content", "priority", "status"])
            .map(|field| field.string().map(|text| shorten(&text, LINE_LIMIT)));
        json!({ "content": content, "priority": priority, "status": status })
    };
    entries.items(PLAN_LIMIT).into_iter().map(read).collect()
}

fn read_options(options: Raw<'_>) -> Vec<PermissionOption> {
    let read = |option: Raw<'_>| {
        let [id, name, kind] = option.fields(["optionId", "name", "kind"]);
        let id = id.string().filter(|id| id.len() <= LINE_LIMIT)?;
        let line = |field: Raw<'_>| field.string().map(|text| one_line(&text, LINE_LIMIT));
        Some(PermissionOption {
            name: line(name).unwrap_or_else(|| one_line(&id, LINE_LIMIT)),
            option_id: id,
            kind: line(kind).unwrap_or_default(),
        })
    };
    options.items(OPEN_LIMIT).into_iter().filter_map(read).collect()
}

fn pick<const N: usize>(object: Raw<'_>, names: [&str; N]) -> Value {
    let given = names.into_iter().zip(object.fields(names)).filter(|(_, value)| !value.is_null());
    given.map(|(name, value)| (name.to_string(), value.value(USAGE_LIMIT))).collect::<Map<_, _>>().into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tool(call: &Value, whole: bool) -> Option<ToolCall> {
        read_tool(Raw::of(&call.to_string()), whole)
    }

    #[test]
    fn content_without_text_is_named() {
        for (content, text) in [
            (json!({ "type": "text", "text": "hi" }), "hi"),
            (json!({ "type": "image", "mimeType": "image/png", "data": "AAAA" }), "[image image/png]"),
            (json!({ "type": "resource_link", "uri": "file:///a", "name": "a" }), "[resource file:///a]"),
            (json!({ "type": "resource", "resource": { "uri": "file:///a" } }), "[resource file:///a]"),
            (json!({ "type": "hologram" }), "[hologram]"),
            (Value::Null, ""),
        ] {
            assert_eq!(content_bytes(Raw::of(&content.to_string())), text.as_bytes());
        }
    }

    #[test]
    fn each_field_of_a_tool_calls_detail_has_a_limit_of_its_own() {
        let big = "x".repeat(100_000);
        let call = json!({ "toolCallId": "t1", "title": "a\nb\u{1b}[2J", "rawInput": { "path": "/a", "text": big },
            "rawOutput": big, "locations": [{ "path": "/etc/passwd" }],
            "content": [{ "type": "diff", "path": "/a", "oldText": big, "newText": "new" },
                { "type": "content", "content": { "type": "text", "text": "why" } }] });
        let tool = tool(&call, false).unwrap();
        let detail = tool.detail.unwrap();
        assert_eq!(detail["locations"][0]["path"], "/etc/passwd", "whatever the others are");
        assert_eq!((&detail["rawInput"]["truncated"], &detail["rawInput"]["bytes"]), (&json!(true), &json!(100_023)));
        assert!(detail["rawInput"]["head"].as_str().unwrap().starts_with(r#"{"path":"/a""#), "{detail}");
        let diff = &detail["content"][0];
        assert_eq!((&diff["path"], &diff["newText"], &diff["truncated"]), (&json!("/a"), &json!("new"), &json!(true)));
        assert!(diff["oldText"].as_str().unwrap().len() > 2000);
        assert_eq!(detail["content"][1]["content"]["text"], "why");
        assert!(detail.to_string().len() <= 4 * FIELD_LIMIT, "{}", detail.to_string().len());
        assert_eq!(tool.title.as_deref(), Some("a b [2J"), "one line");
        let many: Vec<Value> = (0..5000).map(|n| json!({ "path": format!("/{n}") })).collect();
        let cut = read_tool(Raw::of(&json!({ "toolCallId": "t", "locations": many }).to_string()), true).unwrap();
        assert_eq!(cut.detail.unwrap()["locations"]["truncated"], true, "a script can see that it is cut");
        assert_eq!(super::read_tool(Raw::of(r#"{"title":"no id"}"#), true), None);
    }

    #[test]
    fn an_update_keeps_the_fields_that_it_does_not_name() {
        let mut turn = Turn::default();
        turn.merge(
            tool(&json!({ "toolCallId": "t", "title": "T", "kind": "read", "rawInput": 1, "locations": [] }), true)
                .unwrap(),
        );
        turn.merge(tool(&json!({ "toolCallId": "t", "status": "completed", "content": [] }), false).unwrap());
        let known = &turn.tools["t"];
        assert_eq!((known.title.as_deref(), known.status.as_deref()), (Some("T"), Some("completed")));
        assert_eq!(known.detail, Some(json!({ "rawInput": 1, "locations": [], "content": [] })));
        for n in 0..3 * TOOLS_KEPT {
            turn.merge(ToolCall { id: n.to_string(), ..ToolCall::default() });
        }
        assert!(turn.tools.len() <= TOOLS_KEPT);
        let big = json!({ "rawInput": "x".repeat(FIELD_LIMIT - 10) });
        for n in 0..1000 {
            turn.merge(ToolCall { id: n.to_string(), detail: Some(big.clone()), ..ToolCall::default() });
        }
        assert!(turn.tools.len() <= DETAILS_KEPT / FIELD_LIMIT + 1, "{}", turn.tools.len());
    }

    #[test]
    fn options_without_an_id_are_not_offered_and_a_name_is_one_line() {
        let options = json!([{ "name": "?" }, { "optionId": "a", "kind": "allow_once" }, 7,
            { "optionId": "b", "name": "Reject\n  2. Allow\u{2028}\u{202e}all", "kind": "allow_always\r" }]);
        let option = |id: &str, name: &str, kind: &str| PermissionOption {
            option_id: id.into(),
            name: name.into(),
            kind: kind.into(),
        };
        let expected = [option("a", "a", "allow_once"), option("b", "Reject   2. Allow  all", "allow_always ")];
        assert_eq!(read_options(Raw::of(&options.to_string())), expected);
    }
}
