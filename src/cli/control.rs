//! The daemon as a whole: `status`, `hold`, `release`, `reload`, `backup`.

use std::time::Duration;

use serde_json::{Value, json};
use ureq::http::Method;

use super::args::{Backup, Plain, Status};
use super::render::{STATUS, ago_now, blocking, bold, clean, count, fields, items, number, text};
use super::stop;
use super::{Done, Failure, Ui};
use crate::client::Client;

/// A large database on a slow disk takes its time.
const BACKUP: Duration = Duration::from_secs(3600);
/// Reading configuration and scripts, and checking both.
const RELOAD: Duration = Duration::from_secs(120);

/// `status`
pub fn status(client: &Client, a: &Status, ui: &mut Ui) -> Done {
    if a.watch {
        return stop::watch(client, a.plain.json, ui);
    }
    let status = client.status(STATUS).map_err(|e| Failure::api("status", &e))?;
    // The status is shown even if the permissions cannot be read.
    let asked =
        || client.request(Method::GET, "/v1/permissions", None, STATUS).ok().map_or(0, |r| items(&r.body).len());
    let open = if a.plain.json { 0 } else { asked() };
    print_status(&status, open, a.plain.json, ui)
}

/// `, N what`, when there are any.
fn some(n: i64, what: &str) -> String {
    if n > 0 { format!(", {n} {what}") } else { String::new() }
}

/// What retention has removed since the start.
fn removed(s: &Value) -> String {
    let words = [
        ("events", "events"),
        ("ids", "message ids"),
        ("deliveries", "settled deliveries"),
        ("set_aside", "set-aside deliveries"),
        ("sessions", "sessions' texts"),
        ("values", "expired values"),
    ];
    let text: String = words.iter().map(|(name, what)| some(number(s, &format!("/pruned/{name}")), what)).collect();
    text.trim_start_matches(", ").to_owned()
}

fn print_status(s: &Value, open: usize, json: bool, ui: &mut Ui) -> Done {
    if json {
        ui.json(s)?;
        return Ok(0);
    }
    let n = |name: &str| number(s, &format!("/sessions/{name}"));
    let sessions = format!(
        "{} live ({} running, {} idle), {} parked, {} suspended",
        n("live"),
        n("running"),
        n("idle"),
        n("parked"),
        n("suspended")
    );
    let waiting: Vec<_> = [
        ("kept", "outlive the daemon"),
        ("queued", "queued"),
        ("waiting", "waiting"),
        ("resume_pending", "interrupted"),
    ]
    .iter()
    .filter(|(name, _)| n(name) > 0)
    .map(|(name, word)| format!("{} {word}", n(name)))
    .collect();
    let failed = number(s, "/hooks/failed");
    let aside = if failed > 0 { format!(", {failed} set aside (ostler hooks failed)") } else { String::new() };
    let off = if s["hooks"]["off"] == true {
        ", SWITCHED OFF: too many threads hang (mend the script, then ostler reload)"
    } else {
        ""
    };
    let hooks = format!(
        "{} pending, {} delivered{aside}{}{}{off}",
        number(s, "/hooks/pending"),
        number(s, "/hooks/delivered"),
        some(number(s, "/hooks/orphaned"), "orphaned"),
        some(number(s, "/hooks/lost_threads"), "threads lost"),
    );
    let dropped = match number(s, "/dropped_log_lines") {
        0 => String::new(),
        n => format!("{} dropped", count(n, "line")),
    };
    let supervised =
        if s["supervised"] == true { "yes" } else { "no: it restarts itself, but after a crash nothing starts it" };
    let held = if s["held"] == true { ", held: no turn starts (ostler release)" } else { "" };
    let title = bold(ui.color, &format!("{}{held}", clean(&text(s, "/phase"))));
    let rows = [
        ("version", text(s, "/version")),
        ("pid", text(s, "/pid")),
        ("boot", text(s, "/boot_id")),
        ("started", format!("{} ({})", ago_now(&text(s, "/started_at")), text(s, "/started_at"))),
        ("supervised", supervised.to_owned()),
        ("sessions", sessions),
        ("messages", waiting.join(", ")),
        ("permissions", if open > 0 { format!("{open} open (ostler permissions)") } else { String::new() }),
        ("hooks", hooks),
        ("threads", text(s, "/threads")),
        ("removed", removed(s)),
        ("log", dropped),
    ];
    ui.styled(title)?;
    ui.say(fields(&rows))?;
    if s["stop"].is_object() {
        ui.say(format!(
            "{} ({}), over by {}",
            text(s, "/stop/reason"),
            text(s, "/stop/urgency"),
            text(s, "/stop/deadline_at")
        ))?;
        for line in blocking(s) {
            ui.say(format!("  {line}"))?;
        }
    }
    Ok(0)
}

/// `hold` and `release`
pub fn hold(client: &Client, a: &Plain, on: bool, ui: &mut Ui) -> Done {
    let (path, what) = if on { ("/v1/hold", "hold") } else { ("/v1/release", "release") };
    let answer = client.post(path, None).map_err(|e| Failure::api(what, &e))?;
    if a.json {
        ui.json(&answer)?;
    } else if on {
        ui.say("held: messages are accepted, but no turn starts until `ostler release`")?;
    } else {
        ui.say("released: turns start")?;
    }
    Ok(0)
}

/// `reload`
pub fn reload(client: &Client, a: &Plain, ui: &mut Ui) -> Done {
    let answer = client.request(Method::POST, "/v1/reload", None, RELOAD).map_err(|e| Failure::api("reload", &e))?.body;
    if a.json {
        ui.json(&answer)?;
        return Ok(0);
    }
    let list = |name: &str| -> Vec<String> {
        let items = answer.get(name).and_then(Value::as_array);
        items.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let (changed, restart) = (list("changed"), list("needs_restart"));
    if changed.is_empty() {
        ui.say("reloaded: no key changed; scripts reloaded")?;
    } else {
        ui.say(format!("reloaded: {}", changed.join(", ")))?;
    }
    if !restart.is_empty() {
        ui.note(format!("reload: needs a restart to take effect: {}", restart.join(", ")));
    }
    Ok(0)
}

/// `backup`: done by the daemon, which has the database open; so the path is made absolute here.
pub fn backup(client: &Client, a: &Backup, ui: &mut Ui) -> Done {
    let what = a.file.display().to_string();
    let path = std::path::absolute(&a.file).map_err(|e| Failure::new(&what, e))?;
    let Some(name) = path.to_str() else { return Err(Failure::new(&what, "the path is not UTF-8 text")) };
    let answer = client.request(Method::POST, "/v1/backup", Some(&json!({ "path": name })), BACKUP).map_err(|e| {
        match e.code.as_str() {
            // It names the file, and in full.
            "conflict" => Failure { text: e.message.clone(), ..Failure::api(&what, &e) },
            _ => Failure::api(&what, &e),
        }
    })?;
    if a.json {
        ui.json(&answer.body)?;
        return Ok(0);
    }
    let bytes = match answer.body.get("bytes").and_then(Value::as_u64) {
        Some(n) => format!(" ({})", bytesize::ByteSize(n)),
        None => String::new(),
    };
    ui.say(format!("{name}: written{bytes}"))?;
    Ok(0)
}
