//! `transcript`, `events`, `export`: what was said.

use std::collections::VecDeque;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::time::Duration;

use serde_json::Value;
use ureq::http::Method;

use super::args::{Events, One, Transcript};
use super::render::STATUS;
use super::render::{clean, dim, error_text, items, number, text};
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
    if a.follow {
        return Reader { client, key: key.clone(), json: a.one.json, session: None, last: a.after }.run(a.tail, ui);
    }
    let read = |each: &mut dyn FnMut(&Value) -> Result<(), Failure>| match a.tail {
        Some(n) => tail(client, &key, n.get())?.iter().try_for_each(each),
        None => entries(client, &key, a.after, a.limit.map(NonZeroUsize::get), each),
    };
    if a.one.json {
        let mut all = Vec::new();
        read(&mut |e| {
            all.push(e.clone());
            Ok(())
        })?;
        ui.json(&serde_json::json!({ "entries": all, "next": null }))?;
        return Ok(0);
    }
    read(&mut |e| entry(e, false, ui))?;
    Ok(0)
}

/// An entry: a line of JSON, or a head and the text.
fn entry(e: &Value, json: bool, ui: &mut Ui) -> Result<(), Failure> {
    if json {
        ui.json_line(e)?;
        return Ok(());
    }
    let head = format!("[{}] {} {}", text(e, "/seq"), text(e, "/role"), text(e, "/at"));
    ui.styled(dim(ui.color, &clean(&head)))?;
    ui.say(clean(&said(e)))?;
    ui.say("")?;
    Ok(())
}

/// The newest entries, without reading all. Numbers rise and are shared with other sessions, so the end is found by a
/// binary search, and the beginning by steps back of growing size.
fn tail(client: &Client, key: &str, most: usize) -> Result<Vec<Value>, Failure> {
    let after = |seq: i64| -> Result<Option<i64>, Failure> {
        let page = client.get(&session_path(key, &format!("/transcript?limit=1&after={seq}")));
        Ok(items(&page.map_err(|e| Failure::api(key, &e))?).first().map(|e| number(e, "/seq")))
    };
    // There is an entry at `known`, and none beyond `end`.
    let (mut known, mut end) = (after(0)?.unwrap_or(0), i64::MAX);
    let mut step = 1_i64;
    while known < end {
        let ahead = known.saturating_add(step).min(known + (end - known) / 2);
        match after(ahead)? {
            Some(seq) => (known, step) = (seq, step.saturating_mul(2)),
            None => (end, step) = (ahead, (step / 2).max(1)),
        }
    }
    let mut window = i64::try_from(most).unwrap_or(i64::MAX);
    loop {
        let from = known.saturating_sub(window).max(0);
        let mut newest = VecDeque::new();
        entries(client, key, Some(from), None, |e| {
            newest.push_back(e.clone());
            if newest.len() > most {
                newest.pop_front();
            }
            Ok(())
        })?;
        if newest.len() == most || from == 0 {
            return Ok(newest.into());
        }
        window = window.saturating_mul(4);
    }
}

/// `transcript --follow`: entries as they become whole, that is with the end of their turn.
struct Reader<'a> {
    client: &'a Client,
    key: String,
    json: bool,
    /// The session whose entries are printed; the key may get another session later.
    session: Option<String>,
    /// The last entry printed.
    last: Option<i64>,
}

impl Reader<'_> {
    fn run(mut self, begin: Option<NonZeroUsize>, ui: &mut Ui) -> Done {
        if let Some(n) = begin {
            // Entries before the tail are skipped.
            let newest = tail(self.client, &self.key, n.get())?;
            self.last = newest.first().map(|e| number(e, "/seq") - 1);
        }
        let mut follower = Follower { client: self.client, key: self.key.clone(), boot: None, last: None };
        follower.run(ui, &mut |event, ui| match event.map_or("", |e| e.event.as_str()) {
            // Also when the stream begins (again), for the entries that came before.
            "" | "turn_end" | "session_start" | "session_end" | "session_closed" => match self.catch_up(ui) {
                // The stream will break too, and begin again.
                Err(failure) if failure.is_passing() => Ok(()),
                done => done,
            },
            _ => Ok(()),
        })
    }

    /// Prints what is new, up to the first entry of a turn that still runs.
    fn catch_up(&mut self, ui: &mut Ui) -> Result<(), Failure> {
        let fail = |e: ClientError| Failure::api(&self.key, &e);
        let shown = match self.client.get(&session_path(&self.key, "")) {
            // Nothing was said under this key so far.
            Err(e) if e.status == 404 => return Ok(()),
            shown => shown.map_err(fail)?,
        };
        let session = text(&shown, "/id");
        match self.session.replace(session.clone()) {
            // The last entries of the previous session, which may be deleted by now.
            Some(old) if old != session => match self.print_new(&old, "", ui) {
                Err(failure) if failure.word.as_deref() == Some("session_not_found") => {}
                done => done?,
            },
            _ => {}
        }
        self.print_new(&session, &text(&shown, "/turn/id"), ui)
    }

    fn print_new(&mut self, session: &str, running: &str, ui: &mut Ui) -> Result<(), Failure> {
        let (json, mut last, mut waits) = (self.json, self.last, false);
        let done = entries(self.client, session, last, None, |e| {
            waits |= !running.is_empty() && text(e, "/turn_id") == running;
            if !waits {
                entry(e, json, ui)?;
                last = Some(number(e, "/seq"));
            }
            Ok(())
        });
        // Entries that were printed are not printed again, even if the rest failed.
        self.last = last;
        ui.out.flush()?;
        done
    }
}

/// The text of an entry; a tool call may have only a title.
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
    let json = a.one.json;
    if a.follow && a.tail.is_none() {
        return events_on(client, key, a.after, json, ui);
    }
    let fail = |e: ClientError| Failure::api(&key, &e);
    let path = session_path(&key, &format!("/events?after={}&follow=0", a.after.unwrap_or(0)));
    let mut last = None;
    let mut newest = VecDeque::new();
    for event in client.stream(&path, Method::GET, None, None).map_err(fail)? {
        let event = event.map_err(fail)?;
        last = event.id.or(last);
        let Some(most) = a.tail else {
            tell(&event, json, ui)?;
            continue;
        };
        newest.push_back(event);
        if newest.len() > most.get() {
            newest.pop_front();
        }
    }
    for event in &newest {
        tell(event, json, ui)?;
    }
    if a.follow {
        return events_on(client, key, last.or(Some(0)), json, ui);
    }
    if last.is_none() {
        // A stream may be opened before the first event; a request for past events is told that there are none.
        client.get(&session_path(&key, "")).map_err(fail)?;
    }
    Ok(0)
}

/// `events --follow`
fn events_on(client: &Client, key: String, last: Option<u64>, json: bool, ui: &mut Ui) -> Done {
    Follower { client, key, boot: None, last }.run(ui, &mut |event, ui| event.map_or(Ok(()), |e| tell(e, json, ui)))
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

/// The events of a key, over restarts of the daemon too, each event once.
struct Follower<'a> {
    client: &'a Client,
    key: String,
    /// The daemon's boot, as last known.
    boot: Option<String>,
    /// The last event told.
    last: Option<u64>,
}

/// Takes an event, or `None` when the stream begins.
type Each<'e> = dyn FnMut(Option<&SseEvent>, &mut Ui) -> Result<(), Failure> + 'e;

impl Follower<'_> {
    fn run(&mut self, ui: &mut Ui, each: &mut Each<'_>) -> Done {
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
                    each(None, ui)?;
                    for event in stream.map_while(Result::ok) {
                        self.last = event.id.or(self.last);
                        each(Some(&event), ui)?;
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

    /// A stream that continues where the last one ended, and whether another daemon answers.
    fn connect(&mut self) -> Result<(EventStream, bool), ClientError> {
        let boot = text(&self.client.status(STATUS)?, "/boot_id");
        let query = self.last.map(|id| format!("?after={id}")).unwrap_or_default();
        let stream =
            self.client.stream(&session_path(&self.key, &format!("/events{query}")), Method::GET, None, None)?;
        let restarted = self.boot.as_ref().is_some_and(|b| *b != boot);
        self.boot = Some(boot);
        Ok((stream, restarted))
    }
}

/// An event in a line: number, time, kind, and its main fields.
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
