//! One turn as it is told: updates become what the agent says, and open permissions are kept until they are settled.
//!
//! Owns what is known of the turn so far, bounded; it must not know processes or sessions.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::wire::shorten;
use crate::agent::{Host, PermissionOption, PermissionOutcome, PermissionRequest, Said, ToolCall};

/// The most of a tool call's raw fields that is kept.
const DETAIL_LIMIT: usize = 16 * 1024;
/// The most of one line for people.
const LINE_LIMIT: usize = 1024;
/// Tool calls of one turn that are remembered for its permissions.
const TOOLS_KEPT: usize = 1024;
/// Permissions that may be open at once.
const OPEN_LIMIT: usize = 64;
/// Entries of a plan.
const PLAN_LIMIT: usize = 200;

/// What is known of the running turn.
#[derive(Debug, Default)]
pub struct Turn {
    /// Whether the agent said anything at all.
    pub spoke: bool,
    /// Whether a permission was settled: an agent may end its turn because of the answer.
    pub settled: bool,
    tools: HashMap<String, ToolCall>,
    open: Vec<(String, Value)>,
}

impl Turn {
    /// Takes in the `update` of a `session/update`. Kinds that nobody knows are passed over.
    pub fn update(&mut self, host: &mut dyn Host, update: &Value) {
        let kind = update["sessionUpdate"].as_str().unwrap_or_default();
        let said = match kind {
            "agent_message_chunk" => Said::Text(content_text(&update["content"])),
            "agent_thought_chunk" => Said::Thought(content_text(&update["content"])),
            "tool_call" | "tool_call_update" => match read_tool(update, kind == "tool_call") {
                Some(tool) => Said::Tool(self.merge(tool)),
                None => return,
            },
            "plan" => Said::Plan(read_plan(&update["entries"])),
            "usage_update" => Said::Usage(pick(update, &["used", "size", "cost"])),
            _ => return,
        };
        if matches!(&said, Said::Text(text) | Said::Thought(text) if text.is_empty()) {
            return;
        }
        self.spoke |= !matches!(said, Said::Usage(_));
        host.said(said);
    }

    /// The agent asks for leave under its id. `Some`: what to answer at once.
    pub fn ask(&mut self, host: &mut dyn Host, number: u64, id: Value, params: &Value) -> Option<(Value, Value)> {
        let options = read_options(&params["options"]);
        let tool = read_tool(&params["toolCall"], true);
        let (Some(tool), false) = (tool, options.is_empty() || self.open.len() >= OPEN_LIMIT) else {
            log::warn!("{}: a permission request without a tool call or choices, or one too many", host.identity().key);
            return Some((id, outcome(&PermissionOutcome::Cancelled)));
        };
        self.spoke = true;
        // The call that it is about may never have been announced, or be announced under another id.
        if !self.tools.contains_key(&tool.id) {
            host.said(Said::Tool(tool.clone()));
        }
        self.merge(tool.clone());
        let tool = self.tools.get(&tool.id).cloned().unwrap_or(tool);
        let request_id = format!("p{number}");
        match host.permission(PermissionRequest { request_id: request_id.clone(), tool, options }) {
            Some(settled) => {
                self.settled = true;
                Some((id, outcome(&settled)))
            }
            None => {
                self.open.push((request_id, id));
                None
            }
        }
    }

    /// A permission was settled: what to answer; `None` when it is not open (any more).
    pub fn settle(&mut self, request_id: &str, settled: &PermissionOutcome) -> Option<(Value, Value)> {
        let at = self.open.iter().position(|(open, _)| open == request_id)?;
        self.settled = true;
        Some((self.open.swap_remove(at).1, outcome(settled)))
    }

    /// The agent takes a request back.
    pub fn withdraw(&mut self, id: &Value) -> Option<(Value, Value)> {
        let at = self.open.iter().position(|(_, open)| open == id)?;
        Some((self.open.swap_remove(at).1, outcome(&PermissionOutcome::Cancelled)))
    }

    /// What to answer to all that are open when the turn ends.
    pub fn withdraw_all(&mut self) -> Vec<(Value, Value)> {
        self.open.drain(..).map(|(_, id)| (id, outcome(&PermissionOutcome::Cancelled))).collect()
    }

    /// Remembers what is new of a call and returns the news.
    fn merge(&mut self, tool: ToolCall) -> ToolCall {
        if self.tools.len() >= TOOLS_KEPT && !self.tools.contains_key(&tool.id) {
            self.tools.clear();
        }
        let known = self
            .tools
            .entry(tool.id.clone())
            .or_insert_with(|| ToolCall { id: tool.id.clone(), ..ToolCall::default() });
        known.title = tool.title.clone().or(known.title.take());
        known.kind = tool.kind.clone().or(known.kind.take());
        known.status = tool.status.clone().or(known.status.take());
        known.detail = tool.detail.clone().or(known.detail.take());
        tool
    }
}

/// The answer to a permission request.
pub fn outcome(settled: &PermissionOutcome) -> Value {
    match settled {
        PermissionOutcome::Selected(option) => json!({ "outcome": { "outcome": "selected", "optionId": option } }),
        PermissionOutcome::Cancelled => json!({ "outcome": { "outcome": "cancelled" } }),
    }
}

/// The text of a content block; what is no text is named.
fn content_text(content: &Value) -> String {
    let name = |field: &str| shorten(content[field].as_str().unwrap_or("unknown"), LINE_LIMIT);
    match content["type"].as_str().unwrap_or_default() {
        "text" => content["text"].as_str().unwrap_or_default().to_string(),
        kind @ ("image" | "audio") => format!("[{kind} {}]", name("mimeType")),
        "resource_link" => format!("[resource {}]", name("uri")),
        "resource" => match content["resource"]["text"].as_str() {
            Some(text) => text.to_string(),
            None => {
                format!("[resource {}]", shorten(content["resource"]["uri"].as_str().unwrap_or("unknown"), LINE_LIMIT))
            }
        },
        "" => String::new(),
        other => format!("[{}]", shorten(other, 40)),
    }
}

fn read_tool(call: &Value, whole: bool) -> Option<ToolCall> {
    let line = |name: &str| call[name].as_str().map(|text| shorten(&text.replace(['\n', '\r'], " "), LINE_LIMIT));
    Some(ToolCall {
        id: call["toolCallId"].as_str().filter(|id| !id.is_empty())?.to_string(),
        title: line("title"),
        kind: line("kind"),
        status: line("status").or_else(|| whole.then(|| "pending".to_string())),
        detail: bounded_detail(call),
    })
}

/// The raw fields that were given. One that does not fit is replaced by its size and how it begins.
fn bounded_detail(call: &Value) -> Option<Value> {
    let mut left = DETAIL_LIMIT;
    let mut detail = Map::new();
    for name in ["rawInput", "rawOutput", "content", "locations"] {
        let value = &call[name];
        if value.is_null() {
            continue;
        }
        let text = value.to_string();
        let kept = if text.len() <= left {
            value.clone()
        } else {
            json!({ "truncated": true, "bytes": text.len(), "head": shorten(&text, left.min(1024)) })
        };
        left = left.saturating_sub(text.len().min(1024));
        left = left.saturating_sub(if kept == *value { text.len().saturating_sub(1024) } else { 0 });
        detail.insert(name.to_string(), kept);
    }
    (!detail.is_empty()).then_some(Value::Object(detail))
}

fn read_plan(entries: &Value) -> Value {
    let read = |entry: &Value| {
        let text = |name: &str| entry[name].as_str().map(|text| shorten(text, LINE_LIMIT));
        json!({ "content": text("content"), "priority": text("priority"), "status": text("status") })
    };
    entries.as_array().into_iter().flatten().take(PLAN_LIMIT).map(read).collect()
}

fn read_options(options: &Value) -> Vec<PermissionOption> {
    let read = |option: &Value| {
        let id = option["optionId"].as_str()?;
        let text = |name: &str| option[name].as_str().map(|text| shorten(text, LINE_LIMIT));
        Some(PermissionOption {
            option_id: id.to_string(),
            name: text("name").unwrap_or_else(|| id.to_string()),
            kind: text("kind").unwrap_or_default(),
        })
    };
    options.as_array().into_iter().flatten().filter_map(read).take(OPEN_LIMIT).collect()
}

fn pick(object: &Value, names: &[&str]) -> Value {
    let given = names.iter().filter(|name| !object[**name].is_null());
    given.map(|name| ((*name).to_string(), object[*name].clone())).collect::<Map<_, _>>().into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_no_text_is_named() {
        assert_eq!(content_text(&json!({ "type": "text", "text": "hi" })), "hi");
        assert_eq!(
            content_text(&json!({ "type": "image", "mimeType": "image/png", "data": "AAAA" })),
            "[image image/png]"
        );
        assert_eq!(
            content_text(&json!({ "type": "resource_link", "uri": "file:///a", "name": "a" })),
            "[resource file:///a]"
        );
        assert_eq!(content_text(&json!({ "type": "hologram" })), "[hologram]");
        assert_eq!(content_text(&Value::Null), "");
    }

    #[test]
    fn a_tool_calls_detail_is_bounded_field_by_field() {
        let big = "x".repeat(100_000);
        let tool = read_tool(
            &json!({ "toolCallId": "t1", "title": "a\nb", "rawInput": { "path": "/a" }, "rawOutput": big, "content": [big] }),
            false,
        )
        .unwrap();
        let detail = tool.detail.unwrap();
        assert_eq!(detail["rawInput"]["path"], "/a", "what fits is kept whole");
        assert_eq!((&detail["rawOutput"]["truncated"], &detail["rawOutput"]["bytes"]), (&json!(true), &json!(100_002)));
        assert!(detail.to_string().len() <= DETAIL_LIMIT + 512, "{}", detail.to_string().len());
        assert_eq!(tool.title.as_deref(), Some("a b"), "one line");
        assert_eq!(read_tool(&json!({ "title": "no id" }), true), None);
    }

    #[test]
    fn an_update_leaves_what_it_does_not_name() {
        let mut turn = Turn::default();
        turn.merge(
            read_tool(&json!({ "toolCallId": "t", "title": "T", "kind": "read", "rawInput": 1 }), true).unwrap(),
        );
        turn.merge(read_tool(&json!({ "toolCallId": "t", "status": "completed" }), false).unwrap());
        let known = &turn.tools["t"];
        assert_eq!((known.title.as_deref(), known.status.as_deref()), (Some("T"), Some("completed")));
        assert_eq!(known.detail, Some(json!({ "rawInput": 1 })));
        for n in 0..3 * TOOLS_KEPT {
            turn.merge(ToolCall { id: n.to_string(), ..ToolCall::default() });
        }
        assert!(turn.tools.len() <= TOOLS_KEPT);
    }

    #[test]
    fn options_without_an_id_are_not_offered() {
        let options = read_options(&json!([{ "name": "?" }, { "optionId": "a", "kind": "allow_once" }, 7]));
        let expected = PermissionOption { option_id: "a".into(), name: "a".into(), kind: "allow_once".into() };
        assert_eq!(options, [expected]);
    }
}
