//! Permissions that agents wait for: what they look like, `permissions`, `allow`, `deny`.
//!
//! Owns how a request is shown, in `chat` too. It must not know how it reached us.

use serde_json::{Value, json};

use super::args::{Answer, Plain};
use super::render::{ago_now, bold, clean, count, cut, items, label, text};
use super::{Done, Failure, Ui};
use crate::client::{Client, name_to_key, session_path};

/// Lines of a request's details, so that its options stay on the screen.
const LINES: usize = 12;
/// Columns of a line if the terminal does not report its width.
const COLUMNS: usize = 100;
/// Options and places that are shown.
const MOST: usize = 20;

/// The request in a line.
pub fn title(p: &Value) -> String {
    let found = ["/title", "/tool/title", "/tool_call_id", "/tool", "/request_id"].iter().map(|at| text(p, at));
    label(&found.into_iter().find(|t| !t.is_empty()).unwrap_or_default())
}

/// The options, as they are offered.
pub fn options(p: &Value) -> &[Value] {
    p.get("options").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Shows a request: its title and kind, the command, the change or the input, the places, and each option with its
/// meaning. Every name has one line, and all of it fits a screen.
pub fn show(p: &Value, ui: &mut Ui) -> std::io::Result<()> {
    let kind = match text(p, "/kind") {
        kind if kind.is_empty() => kind,
        kind => format!(" ({})", label(&kind)),
    };
    let head = bold(ui.color, &format!("Permission requested: {}{kind}", title(p)));
    ui.styled(head)?;
    let width = ui.width.map_or(COLUMNS, usize::from).saturating_sub(2);
    let mut details = details(p);
    if details.len() > LINES {
        let more = details.len() - (LINES - 1);
        details.truncate(LINES - 1);
        details.push(format!("... {more} more lines"));
    }
    for line in details {
        ui.say(format!("  {}", cut(&line, width)))?;
    }
    for (n, option) in options(p).iter().enumerate().take(MOST) {
        let name = label(&text(option, "/name"));
        let kind = match text(option, "/kind") {
            kind if kind.is_empty() => kind,
            kind => format!(" [{}]", label(&kind).replace('_', " ")),
        };
        // The meaning of the option is not cut off with a long name.
        let name = cut(&name, width.saturating_sub(kind.chars().count() + 4));
        ui.say(format!("  {}. {name}{kind}", n + 1))?;
    }
    if options(p).len() > MOST {
        ui.say(format!("  ... {} more options", options(p).len() - MOST))?;
    }
    Ok(())
}

/// What the tool would do, a line each.
fn details(p: &Value) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(input) = p.get("input").filter(|i| !i.is_null() && **i != json!({})) {
        let command = ["command", "cmd"].iter().find_map(|name| input.get(name));
        match (command, input) {
            (Some(Value::String(command)), _) => lines(&mut out, "$ ", command),
            (Some(Value::Array(words)), _) => {
                let words: Vec<_> = words.iter().map(|w| text(w, "")).collect();
                lines(&mut out, "$ ", &words.join(" "));
            }
            (None, Value::String(input)) => lines(&mut out, "", input),
            _ => out.push(label(&input.to_string())),
        }
    }
    for part in p.get("content").and_then(Value::as_array).into_iter().flatten() {
        match text(part, "/type").as_str() {
            "diff" => {
                out.push(format!("change of {}", label(&text(part, "/path"))));
                let (old, new) = (text(part, "/oldText"), text(part, "/newText"));
                difference(&mut out, &old, &new);
            }
            _ => lines(&mut out, "", &text(part, "/content/text")),
        }
    }
    for place in p.get("locations").and_then(Value::as_array).into_iter().flatten().take(MOST) {
        let line = text(place, "/line");
        let line = if line.is_empty() { line } else { format!(":{line}") };
        out.push(format!("at {}{line}", label(&text(place, "/path"))));
    }
    out
}

fn lines(out: &mut Vec<String>, before: &str, text: &str) {
    for (n, line) in text.lines().enumerate() {
        let before = if n == 0 { before } else { &" ".repeat(before.len()) };
        out.push(format!("{before}{}", label(line)));
    }
}

/// The lines in which two texts differ, without their common beginning and end.
fn difference(out: &mut Vec<String>, old: &str, new: &str) {
    let (old, new): (Vec<_>, Vec<_>) = (old.lines().collect(), new.lines().collect());
    let same = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let (old, new) = (&old[same..], &new[same..]);
    let end = old.iter().rev().zip(new.iter().rev()).take_while(|(a, b)| a == b).count();
    out.extend(old[..old.len() - end].iter().map(|l| format!("- {}", label(l))));
    out.extend(new[..new.len() - end].iter().map(|l| format!("+ {}", label(l))));
}

/// `permissions`
pub fn list(client: &Client, a: &Plain, ui: &mut Ui) -> Done {
    let all = client.get("/v1/permissions").map_err(|e| Failure::api("permissions", &e))?;
    if a.json {
        ui.json(&all)?;
        return Ok(0);
    }
    let open = items(&all);
    if open.is_empty() {
        ui.say("no agent waits for a permission")?;
    }
    let mut before: Option<String> = None;
    let mut n = 0;
    for p in open {
        let key = text(p, "/key");
        n = if before.as_ref() == Some(&key) { n + 1 } else { 1 };
        if before.is_some() {
            ui.say("")?;
        }
        let since = match text(p, "/since") {
            at if at.is_empty() => at,
            at => format!(", {}", ago_now(&at)),
        };
        ui.styled(bold(ui.color, &format!("{} {n}{}", clean(&label(&key)), clean(&since))))?;
        show(p, ui)?;
        before = Some(key);
    }
    Ok(0)
}

/// `allow` and `deny`: the one that is open, or the one with that number.
pub fn answer(client: &Client, a: &Answer, allow: bool, ui: &mut Ui) -> Done {
    let key = name_to_key(&a.key);
    let fail = |e| Failure::api(&key, &e);
    let session = client.get(&session_path(&key, "")).map_err(fail)?;
    let open = session.get("permissions").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let request = match (a.number, open) {
        (_, []) => return Err(Failure::new(&key, "no permission is open")),
        (None, [one]) => one,
        (None, several) => {
            let word = if allow { "allow" } else { "deny" };
            let titles: Vec<_> = several.iter().enumerate().map(|(n, p)| format!("{}: {}", n + 1, title(p))).collect();
            let titles = titles.join("; ");
            let why = format!("{} are open, name one with `ostler {word} {key} N`: {titles}", several.len());
            return Err(Failure::usage(format!("{key}: {why}")));
        }
        (Some(n), open) => open.get(n.get() - 1).ok_or_else(|| {
            Failure::usage(format!("{key}: there is no permission {n}: {} open", count_open(open.len())))
        })?,
    };
    let Some(option) = choice(options(request), allow) else {
        let word = if allow { "allows" } else { "rejects" };
        return Err(Failure::new(&key, format!("{}: the agent offers no option that {word} it", title(request))));
    };
    let body = json!({ "request_id": request["request_id"], "option_id": option["option_id"] });
    let id = match text(&session, "/id") {
        id if id.is_empty() => key.clone(),
        id => id,
    };
    let after = client.post(&session_path(&id, "/permission"), Some(&body)).map_err(|e| match e.code.as_str() {
        "resolved" => Failure { text: format!("{key}: {}: already answered", title(request)), ..fail(e) },
        _ => fail(e),
    })?;
    if a.json {
        ui.json(&after)?;
    } else {
        let done = if allow { "allowed" } else { "denied" };
        ui.say(format!("{key}: {done}: {} ({})", title(request), label(&text(option, "/name"))))?;
    }
    Ok(0)
}

fn count_open(n: usize) -> String {
    if n == 1 { "1 is".into() } else { format!("{n} are") }
}

/// The option that allows once, else another that allows; the same for a rejection. The name of an option does not
/// count.
fn choice(options: &[Value], allow: bool) -> Option<&Value> {
    let (once, any) = if allow { ("allow_once", "allow") } else { ("reject_once", "reject") };
    let kind = |o: &Value| text(o, "/kind");
    options.iter().find(|o| kind(o) == once).or_else(|| options.iter().find(|o| kind(o).starts_with(any)))
}

/// The permissions that a session waits for, in a line; empty if there is none.
pub fn waiting(session: &Value) -> String {
    let open = session.get("permissions").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    match open {
        [] => String::new(),
        [one] => format!("waiting for permission: {}", title(one)),
        [first, ..] => format!("waiting for {}: {}, ...", count(open.len() as i64, "permission"), title(first)),
    }
}
