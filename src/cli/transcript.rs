//! `transcript`, `events`, `export`: what was said.

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::time::Duration;

use serde_json::Value;
use ureq::http::Method;

use super::args::{Events, One, Transcript};
use super::render::{clean, dim, error_text, items, text};
use super::{Done, Failure, Ui};
use crate::client::{Client, ClientError, EventStream, SseEvent, name_to_key, session_path};

/// Entries asked for at a time.
const PAGE: usize = 500;
/// Between two attempts to follow a stream further, from and to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Hands every entry of a transcript over, page by page.
fn entries(
    client: &Client,
    key: &str,
    after: Option<i64>,
    limit: Option<usize>,
    mut each: impl FnMut(&Value) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut after = after.map(|a| a.to_string()).unwrap_or_default();
    let mut left = limit.unwrap_or(usize::MAX);
    while left > 0 {
        let mut rest = format!("/transcript?limit={}", PAGE.min(left));
        if !after.is_empty() {
            rest += &format!("&after={after}");
        }
        let page = client.get(&session_path(key, &rest)).map_err(|e| Failure::api(key, &e))?;
        let found = items(&page);
        for entry in found.iter().take(left) {
            each(entry)?;
        }
        left = left.saturating_sub(found.len());
        let next = text(&page, "/next");
        if next.is_empty() || next == after || found.is_empty() {
            break;
        }
        after = next;
    }
    Ok(())
}

/// `transcript`
pub fn print(client: &Client, a: &Transcript, ui: &mut Ui) -> Done {
    let key = name_to_key(&a.one.key);
    if a.one.json {
        let mut all = Vec::new();
        entries(client, &key, a.after, a.limit.map(NonZeroUsize::get), |e| {
            all.push(e.clone());
            Ok(())
        })?;
        ui.json(&serde_json::json!({ "entries": all, "next": null }))?;
        return Ok(0);
    }
    let color = ui.color;
    entries(client, &key, a.after, a.limit.map(NonZeroUsize::get), |e| {
        let head = format!("[{}] {} {}", text(e, "/seq"), text(e, "/role"), text(e, "/at"));
        ui.styled(dim(color, &clean(&head)))?;
        ui.say(clean(&said(e)))?;
        ui.say("")?;
        Ok(())
    })?;
    Ok(0)
}

/// What an entry says; a tool call may have no text but a title.
fn said(entry: &Value) -> String {
    let title = || {
        let status = text(entry, "/status");
        let title = ["/title", "/tool/title", "/tool_call_id"].iter().map(|p| text(entry, p)).find(|t| !t.is_empty());
        let title = title.unwrap_or_default();
        if status.is_empty() { title } else { format!("{title} ({status})") }
    };
    match text(entry, "/text") {
        t if t.is_empty() => title(),
        t => t,
    }
}

/// `export`: Markdown to read, or JSON Lines to work with.
pub fn export(client: &Client, a: &One, ui: &mut Ui) -> Done {
    let key = name_to_key(&a.key);
    if a.json {
        entries(client, &key, None, None, |e| Ok(ui.json_line(e)?))?;
        return Ok(0);
    }
    let session = client.get(&session_path(&key, "")).map_err(|e| Failure::api(&key, &e))?;
    ui.say(format!("# {}\n", text(&session, "/key")))?;
    ui.say(format!("Session {}, begun {}.", text(&session, "/id"), text(&session, "/created_at")))?;
    entries(client, &key, None, None, |e| {
        let (role, at, said) = (text(e, "/role"), text(e, "/at"), said(e));
        match role.as_str() {
            "tool" => ui.say(format!("\n> Tool: {}", quoted(&said)))?,
            "system" => ui.say(format!("\n> Note: {}", quoted(&said)))?,
            _ => {
                let role = if role == "user" { "User" } else { "Agent" };
                ui.say(format!("\n## {role} ({at})\n\n{}", said.trim_end()))?;
            }
        }
        Ok(())
    })?;
    Ok(0)
}

fn quoted(text: &str) -> String {
    text.trim_end().replace('\n', "\n> ")
}

/// `events`
pub fn events(client: &Client, a: &Events, ui: &mut Ui) -> Done {
    let key = name_to_key(&a.one.key);
    if a.follow {
        return Follower { client, key, boot: None, last: a.after, json: a.one.json }.run(ui);
    }
    let fail = |e: ClientError| Failure::api(&key, &e);
    let path = session_path(&key, &format!("/events?after={}&follow=0", a.after.unwrap_or(0)));
    let mut none = true;
    for event in client.stream(&path, Method::GET, None, None).map_err(fail)? {
        tell(&event.map_err(fail)?, a.one.json, ui)?;
        none = false;
    }
    if none {
        // A stream may be opened before there is anything; whoever asks for what was wants to know that there is nothing.
        client.get(&session_path(&key, "")).map_err(fail)?;
    }
    Ok(0)
}

fn tell(event: &SseEvent, json: bool, ui: &mut Ui) -> Result<(), Failure> {
    if json {
        ui.json_line(&serde_json::json!({ "id": event.id, "event": event.event, "data": event.data }))?;
    } else {
        ui.say(line(event))?;
    }
    ui.out.flush()?;
    Ok(())
}

/// `events --follow`: over restarts of the daemon too, each event once.
struct Follower<'a> {
    client: &'a Client,
    key: String,
    /// The daemon's boot, as last known.
    boot: Option<String>,
    /// The last event told.
    last: Option<u64>,
    json: bool,
}

impl Follower<'_> {
    fn run(mut self, ui: &mut Ui) -> Done {
        let mut pause = PAUSE.0;
        let mut connected = false;
        let mut lost = false;
        loop {
            match self.connect() {
                Ok((stream, restarted)) => {
                    if lost {
                        ui.note(if restarted { "the daemon restarted" } else { "connected again" });
                    }
                    (connected, lost, pause) = (true, false, PAUSE.0);
                    for event in stream.map_while(Result::ok) {
                        self.last = event.id.or(self.last);
                        tell(&event, self.json, ui)?;
                    }
                }
                Err(e) if !connected || !e.is_passing() => return Err(Failure::api(&self.key, &e)),
                Err(_) => {}
            }
            if !lost {
                ui.note(format!("{}: the stream ended; waiting for the daemon", self.client.name()));
            }
            lost = true;
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// A stream from where the last one ended, and whether it is another daemon's.
    fn connect(&mut self) -> Result<(EventStream, bool), ClientError> {
        let boot = text(&self.client.get("/v1/status")?, "/boot_id");
        let query = self.last.map(|id| format!("?after={id}")).unwrap_or_default();
        let stream =
            self.client.stream(&session_path(&self.key, &format!("/events{query}")), Method::GET, None, None)?;
        let restarted = self.boot.as_ref().is_some_and(|b| *b != boot);
        self.boot = Some(boot);
        Ok((stream, restarted))
    }
}

/// An event in a line: number, time, kind, and what is particular to it.
fn line(event: &SseEvent) -> String {
    let data = &event.data;
    let id = event.id.map(|id| id.to_string()).unwrap_or_default();
    let what = match event.event.as_str() {
        "text" | "thought" | "delta" => text(data, "/text"),
        "tool" => format!("{} {}", text(data, "/title"), text(data, "/status")),
        "permission" => format!("{} {} {}", text(data, "/request_id"), text(data, "/state"), text(data, "/outcome")),
        "turn_start" => match text(data, "/continues") {
            turn if turn.is_empty() => text(data, "/turn_id"),
            turn => format!("{} continues {turn}", text(data, "/turn_id")),
        },
        "turn_end" => {
            let error = data.get("error").map(error_text).unwrap_or_default();
            format!("{} {} {error}", text(data, "/turn_id"), text(data, "/outcome"))
        }
        "session_start" | "session_end" | "session_closed" => {
            format!("{} {}", text(data, "/session_id"), text(data, "/reason"))
        }
        "notice" => format!("{} {}", text(data, "/code"), text(data, "/text")),
        _ => String::new(),
    };
    let line = format!("{id} {} {} {}", text(data, "/at"), event.event, clean(&what).replace('\n', "\\n"));
    line.trim().to_owned()
}
