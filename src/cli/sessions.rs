//! `sessions`, `show`, and the commands that act on a session.

use std::num::NonZeroUsize;

use serde_json::Value;

use super::args::{Delete, One, Sessions};
use super::render::{ago_now, bold, clean, fields, items, number, table, text};
use super::{Done, Failure, Ui};
use crate::client::{Client, name_to_key, segment, session_path};

/// Sessions asked for at a time.
const PAGE: usize = 200;

/// `sessions`: follows the cursor until there are enough.
pub fn list(client: &Client, a: &Sessions, ui: &mut Ui) -> Done {
    let limit = a.limit.map_or(usize::MAX, NonZeroUsize::get);
    let mut all: Vec<Value> = Vec::new();
    let mut cursor = String::new();
    while all.len() < limit {
        let mut path = format!("/v1/sessions?limit={}", PAGE.min(limit - all.len()));
        if let Some(state) = &a.state {
            path += &format!("&state={}", segment(state));
        }
        if let Some(key) = &a.key {
            path += &format!("&key={}", segment(&name_to_key(key)));
        }
        if !cursor.is_empty() {
            path += &format!("&cursor={}", segment(&cursor));
        }
        let page = client.get(&path).map_err(|e| Failure::api("sessions", &e))?;
        let found = items(&page);
        let next = text(&page, "/next_cursor");
        // A cursor that does not move would go on for ever.
        let stuck = found.is_empty() || next == cursor;
        all.extend_from_slice(found);
        cursor = next;
        if cursor.is_empty() || stuck {
            break;
        }
    }
    all.truncate(limit);
    if a.json {
        let cursor = if cursor.is_empty() { Value::Null } else { Value::String(cursor) };
        ui.json(&serde_json::json!({ "sessions": all, "next_cursor": cursor }))?;
        return Ok(0);
    }
    if all.is_empty() {
        ui.say("no sessions")?;
        return Ok(0);
    }
    let rows = all.iter().map(|s| {
        vec![
            text(s, "/key"),
            state(s),
            text(s, "/agent"),
            text(s, "/turns"),
            queued(s),
            ago_now(&text(s, "/updated_at")),
            text(s, "/id"),
        ]
    });
    let text = table(ui, &["key", "state", "agent", "turns", "queued", "updated", "id"], rows.collect());
    ui.say(text)?;
    Ok(0)
}

fn queued(s: &Value) -> String {
    match number(s, "/queued") {
        0 => String::new(),
        n => n.to_string(),
    }
}

/// The state in a word or two: what it does now comes before where it stands.
fn state(s: &Value) -> String {
    let mut out = match text(s, "/turn/state").as_str() {
        "running" => "running".to_owned(),
        _ => text(s, "/state"),
    };
    if s.pointer("/resume_pending").is_some_and(Value::is_object) {
        out += ", interrupted";
    }
    out
}

/// `show`
pub fn show(client: &Client, a: &One, ui: &mut Ui) -> Done {
    let key = name_to_key(&a.key);
    let session = client.get(&session_path(&key, "")).map_err(|e| Failure::api(&key, &e))?;
    print(&session, a.json, ui)
}

/// A session, whole.
pub fn print(s: &Value, json: bool, ui: &mut Ui) -> Done {
    if json {
        ui.json(s)?;
        return Ok(0);
    }
    let at = |pointer: &str| match text(s, pointer) {
        t if t.is_empty() => t,
        t => format!("{} ({t})", ago_now(&t)),
    };
    let turn = match text(s, "/turn/id") {
        id if id.is_empty() => String::new(),
        id => {
            let mut line = format!("{} {id}", text(s, "/turn/state"));
            for (name, pointer) in
                [("since", "/turn/started_at"), ("tool", "/turn/tool"), ("continues", "/turn/continues")]
            {
                let value = text(s, pointer);
                if !value.is_empty() {
                    line += &format!(", {name} {value}");
                }
            }
            line
        }
    };
    let mark = match text(s, "/resume_pending/reason") {
        reason if reason.is_empty() => reason,
        reason => format!("{reason}, {}", at("/resume_pending/marked_at")),
    };
    let ended = match text(s, "/end_reason") {
        reason if reason.is_empty() => at("/ended_at"),
        reason => format!("{reason}, {}", at("/ended_at")),
    };
    let unclean = if number(s, "/unclean") > 0 { text(s, "/unclean") } else { String::new() };
    let title = bold(ui.color, &clean(&text(s, "/key")));
    let rows = [
        ("id", text(s, "/id")),
        ("state", text(s, "/state")),
        ("agent", text(s, "/agent")),
        ("turn", turn),
        ("queued", queued(s)),
        ("interrupted", mark),
        ("unclean deaths", unclean),
        ("turns", text(s, "/turns")),
        ("messages", text(s, "/messages")),
        ("epoch", text(s, "/epoch")),
        ("created", at("/created_at")),
        ("updated", at("/updated_at")),
        ("ended", ended),
        ("previous", text(s, "/previous_id")),
        ("next", text(s, "/next_id")),
    ];
    ui.styled(title)?;
    ui.say(fields(&rows))?;
    Ok(0)
}

/// `cancel`, `reset`, `suspend`, `resume`: asked for, and said in a line.
pub fn act(client: &Client, a: &One, rest: &str, word: &str, ui: &mut Ui) -> Done {
    let key = name_to_key(&a.key);
    let session = client.post(&session_path(&key, rest), None).map_err(|e| Failure::api(&key, &e))?;
    done(&key, &session, a.json, word, ui)
}

/// `delete`
pub fn delete(client: &Client, a: &Delete, ui: &mut Ui) -> Done {
    let key = name_to_key(&a.one.key);
    let query: Vec<_> =
        [(a.all, "all=1"), (a.files, "files=1")].iter().filter(|(on, _)| *on).map(|(_, q)| *q).collect();
    let rest = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
    let session = client.delete(&session_path(&key, &rest)).map_err(|e| Failure::api(&key, &e))?;
    done(&key, &session, a.one.json, "deleted", ui)
}

fn done(key: &str, session: &Value, json: bool, word: &str, ui: &mut Ui) -> Done {
    if json {
        ui.json(session)?;
        return Ok(0);
    }
    match text(session, "/id") {
        id if id.is_empty() => ui.say(format!("{key}: {word}"))?,
        id => ui.say(format!("{key}: {word} (session {id}, {})", text(session, "/state")))?,
    }
    Ok(0)
}
