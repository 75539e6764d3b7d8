//! `hooks`: what is registered, what was set aside, and trying scripts out.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::args::{Aside, Hooks, Plain};
use super::render::{ago_now, items, table, text};
use super::{Done, Doors, Failure, Ui, client, exit};
use crate::client::{Client, segment};
use crate::config::{self, paths::process_env};

/// `hooks …`
pub fn hooks(a: &Hooks, doors: &Doors, ui: &mut Ui) -> Done {
    match a {
        Hooks::List(p) => list(&client(&p.to)?, p, ui),
        Hooks::Check { files, config } => check(files, config.as_deref(), doors, ui),
        Hooks::Fire { event, plain } => fire(&client(&plain.to)?, event, plain, ui),
        Hooks::Failed(p) => failed(&client(&p.to)?, p, ui),
        Hooks::Retry(a) => aside(&client(&a.to)?, a, true, ui),
        Hooks::Discard(a) => aside(&client(&a.to)?, a, false, ui),
    }
}

fn list(client: &Client, p: &Plain, ui: &mut Ui) -> Done {
    let all = client.get("/v1/hooks").map_err(|e| Failure::api("hooks", &e))?;
    if p.json {
        ui.json(&all)?;
        return Ok(0);
    }
    if items(&all).is_empty() {
        ui.say("no handler is registered")?;
        return Ok(0);
    }
    let fields = ["event", "script", "line", "name", "priority", "calls", "failures", "timeouts", "p50_us", "p99_us"];
    let rows = items(&all).iter().map(|h| fields.iter().map(|f| text(h, &format!("/{f}"))).collect());
    let text = table(ui, &fields, rows.collect());
    ui.say(text)?;
    Ok(0)
}

/// Every file is looked at, so that one wrong script does not hide the next.
fn check(files: &[PathBuf], config: Option<&Path>, doors: &Doors, ui: &mut Ui) -> Done {
    let config = config::load(config::find_file(config, &process_env).as_deref())?;
    let mut code = 0;
    for file in files {
        match (doors.check_script)(file, &config) {
            Ok(warnings) => {
                for warning in &warnings {
                    ui.note(warning);
                }
                ui.say(format!("{}: valid", file.display()))?;
            }
            Err(why) => {
                ui.note(why);
                code = exit::CONFIG;
            }
        }
    }
    Ok(code)
}

fn fire(client: &Client, event: &str, p: &Plain, ui: &mut Ui) -> Done {
    let answer =
        client.post("/v1/hooks/fire", Some(&json!({ "event": event }))).map_err(|e| Failure::api(event, &e))?;
    let failed = items(&answer).iter().any(|r| !text(r, "/error").is_empty());
    if p.json {
        ui.json(&answer)?;
    } else if items(&answer).is_empty() {
        ui.say(format!("{event}: no handler is registered for it"))?;
    } else {
        let row = |r: &Value| {
            vec![text(r, "/script"), text(r, "/name"), text(r, "/outcome"), text(r, "/took_us"), text(r, "/error")]
        };
        let headers = ["script", "name", "outcome", "took_us", "error"];
        let text = table(ui, &headers, items(&answer).iter().map(row).collect());
        ui.say(text)?;
    }
    Ok(u8::from(failed))
}

fn failed(client: &Client, p: &Plain, ui: &mut Ui) -> Done {
    let all = client.get("/v1/hooks/failed").map_err(|e| Failure::api("hooks", &e))?;
    if p.json {
        ui.json(&all)?;
        return Ok(0);
    }
    if items(&all).is_empty() {
        ui.say("nothing was set aside")?;
        return Ok(0);
    }
    let row = |e: &Value| {
        let handler = [text(e, "/script"), text(e, "/name")].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>();
        let ago = ago_now(&text(e, "/at"));
        vec![
            text(e, "/event_id"),
            text(e, "/event"),
            text(e, "/key"),
            handler.join(" "),
            text(e, "/attempts"),
            ago,
            text(e, "/error"),
        ]
    };
    let headers = ["id", "event", "key", "handler", "attempts", "when", "error"];
    let text = table(ui, &headers, items(&all).iter().map(row).collect());
    ui.say(text)?;
    Ok(0)
}

fn aside(client: &Client, a: &Aside, retry: bool, ui: &mut Ui) -> Done {
    let mut ids: Vec<String> = match &a.id {
        Some(id) => vec![id.clone()],
        None => {
            let all = client.get("/v1/hooks/failed").map_err(|e| Failure::api("hooks", &e))?;
            items(&all).iter().map(|e| text(e, "/event_id")).collect()
        }
    };
    // One event may be set aside for several handlers: the API takes it by its id, once.
    ids.sort();
    ids.dedup();
    for id in &ids {
        let path = format!("/v1/hooks/failed/{}", segment(id));
        let done = if retry { client.post(&format!("{path}/retry"), None) } else { client.delete(&path) };
        done.map_err(|e| Failure::api(id, &e))?;
        ui.say(format!("{id}: {}", if retry { "will be delivered again" } else { "discarded" }))?;
    }
    if ids.is_empty() {
        ui.say("nothing was set aside")?;
    }
    Ok(0)
}
