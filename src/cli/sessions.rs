//! `sessions`, `show`, and the commands that act on a session.

use std::num::NonZeroUsize;

use serde_json::Value;

use super::args::{Cancel, Delete, One, Sessions};
use super::render::{ago_now, bold, clean, count, cut, fields, fits, items, label, number, text, whole_table};
use super::{Done, Failure, Ui, permissions};
use crate::client::{Client, ClientError, name_to_key, segment, session_path};

/// A key is not cut below this many characters.
const SHORTEST_KEY: usize = 8;
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
        // A cursor that does not move would loop for ever.
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
    if a.quiet {
        for s in &all {
            ui.say(text(s, "/id"))?;
        }
        return Ok(0);
    }
    if all.is_empty() {
        ui.say("no sessions")?;
        return Ok(0);
    }
    let listing = listing(ui, &all, a.wide);
    ui.say(listing)?;
    if !cursor.is_empty() {
        ui.note("sessions: there are more (--limit)");
    }
    Ok(0)
}

/// Every column if they fit the terminal; else only the columns that identify a session, each id in one piece.
fn listing(ui: &Ui, all: &[Value], wide: bool) -> String {
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
    let whole = whole_table(&["key", "state", "agent", "turns", "queued", "updated", "id"], rows.collect());
    if wide || fits(ui, &whole) {
        return whole;
    }
    let narrow = |key: usize| {
        let rows = all.iter().map(|s| {
            vec![cut(&label(&text(s, "/key")), key), word(s), ago_now(&text(s, "/updated_at")), text(s, "/id")]
        });
        whole_table(&["key", "state", "updated", "id"], rows.collect())
    };
    let longest = all.iter().map(|s| label(&text(s, "/key")).chars().count()).max().unwrap_or(0);
    let table = narrow(longest);
    let widest = table.lines().map(|l| l.chars().count()).max().unwrap_or(0);
    let over = widest.saturating_sub(ui.width.map_or(usize::MAX, usize::from));
    if over == 0 { table } else { narrow(longest.saturating_sub(over).max(SHORTEST_KEY)) }
}

fn queued(s: &Value) -> String {
    match number(s, "/queued") {
        0 => String::new(),
        n => n.to_string(),
    }
}

/// The state in a word or two: a running turn or a wait counts more than the state itself.
fn state(s: &Value) -> String {
    let mut out = match text(s, "/turn/state").as_str() {
        "running" => "running".to_owned(),
        _ => text(s, "/state"),
    };
    if !permissions::waiting(s).is_empty() {
        out += ", waits for permission";
    }
    if s.pointer("/resume_pending").is_some_and(Value::is_object) {
        out += ", interrupted";
    }
    out
}

/// The same in one word.
fn word(s: &Value) -> String {
    match state(s) {
        state if state.contains("permission") => "permission?".into(),
        state if state.starts_with("running") => "running".into(),
        state if state.ends_with("interrupted") => "interrupted".into(),
        state => state,
    }
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
        ("process", process(s)),
        ("queued", queued(s)),
        ("permission", permissions::waiting(s)),
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

/// The agent's process in a line: what it uses, and how it is confined.
fn process(s: &Value) -> String {
    let Some(p) = s.get("process").filter(|p| p.is_object()) else { return String::new() };
    let size = |name: &str| p[name].as_u64().map(|bytes| bytesize::ByteSize(bytes).to_string());
    let mut parts = vec![format!("pid {}", text(p, "/pid"))];
    parts.extend(size("memory").map(|now| match size("memory_peak") {
        Some(peak) => format!("{now} of memory (at most {peak})"),
        None => format!("{now} of memory"),
    }));
    parts.extend(p["cpu_ms"].as_u64().map(|ms| format!("{}s of processor time", ms / 1000)));
    parts.extend(p["processes"].as_i64().map(|n| if n == 1 { "1 process".into() } else { format!("{n} processes") }));
    if let Some(confined) = p.get("confined").filter(|c| c.is_object()) {
        let without: Vec<String> = items(&confined["not_enforced"]).iter().map(|w| text(w, "")).collect();
        let without =
            if without.is_empty() { String::new() } else { format!(", not enforced: {}", without.join(", ")) };
        parts.push(format!("confined: {} (Landlock {}{without})", text(confined, "/confine"), text(confined, "/abi")));
    }
    parts.join(", ")
}

/// `reset`, `suspend`: asked for, and said in a line.
pub fn act(client: &Client, a: &One, rest: &str, word: &str, ui: &mut Ui) -> Done {
    let key = name_to_key(&a.key);
    let session = client.post(&session_path(&key, rest), None).map_err(|e| Failure::api(&key, &e))?;
    done(&key, &session, a.json, word, ui)
}

/// `cancel`
pub fn cancel(client: &Client, a: &Cancel, ui: &mut Ui) -> Done {
    let key = name_to_key(&a.one.key);
    let fail = |e: ClientError| Failure::api(&key, &e);
    let before = client.get(&session_path(&key, "")).map_err(fail)?;
    let rest = if a.queued { "/cancel?queued=1" } else { "/cancel" };
    let session = client.post(&session_path(&key, rest), None).map_err(fail)?;
    let word = match (a.queued, number(&before, "/queued"), text(&before, "/turn/state").as_str()) {
        (true, 0, _) => "no message was queued".to_owned(),
        (true, n, _) => format!("cancelled {}", count(n, "queued message")),
        (false, _, "running") => "cancelled".to_owned(),
        (false, ..) => "no turn was running".to_owned(),
    };
    done(&key, &session, a.one.json, &word, ui)
}

/// `resume`
pub fn resume(client: &Client, a: &One, ui: &mut Ui) -> Done {
    let key = name_to_key(&a.key);
    // The suspended session need not be the key's current session, which may be missing.
    let before = client.get(&session_path(&key, "")).unwrap_or_default();
    let session = client.post(&session_path(&key, "/resume"), None).map_err(|e| Failure::api(&key, &e))?;
    let marked = before["resume_pending"].is_object();
    let as_before = before["id"] == session["id"] && !marked && before["state"] != "suspended";
    let word = if as_before { "nothing to resume" } else { "resumed" };
    done(&key, &session, a.json, word, ui)
}

/// `delete`
pub fn delete(client: &Client, a: &Delete, ui: &mut Ui) -> Done {
    let key = name_to_key(&a.one.key);
    let query: Vec<_> =
        [(a.all, "all=1"), (a.files, "files=1")].iter().filter(|(on, _)| *on).map(|(_, q)| *q).collect();
    let what = if a.all { format!("every session under {key}") } else { format!("session {key}") };
    let files = if a.files { " and its files" } else { "" };
    if !a.yes && !ui.confirm(&format!("Delete {what} with its transcript{files}?"))? {
        return Err(Failure::new(&key, "not deleted"));
    }
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
