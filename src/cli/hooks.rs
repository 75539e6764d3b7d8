//! `hooks`: registered handlers, set-aside events, and trials of scripts.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::args::{Aside, Connect, Fire, Hooks, Plain};
use super::render::{ago_now, clean, items, table, table_or_records, text};
use super::{Done, Doors, Failure, Ui, client, exit};
use crate::client::{Client, segment};
use crate::config::{self, Config, paths::process_env};
use crate::model::event::HookEvent;

/// `hooks …`
pub fn hooks(a: &Hooks, to: &Connect, doors: &Doors, ui: &mut Ui) -> Done {
    match a {
        Hooks::List(p) => list(&client(to)?, p, ui),
        Hooks::Check { files, config, json } => check(files, config.as_deref(), *json, doors, ui),
        Hooks::Fire(a) => fire(a, to, doors, ui),
        Hooks::Failed(p) => failed(&client(to)?, p, ui),
        Hooks::Retry(a) => aside(&client(to)?, a, true, ui),
        Hooks::Discard(a) => aside(&client(to)?, a, false, ui),
    }
}

/// A list from the API, to be shown as a table. `None`: it is shown already, as JSON, or as `none` because it is empty.
fn listed(client: &Client, path: &str, p: &Plain, none: &str, ui: &mut Ui) -> Result<Option<Value>, Failure> {
    let all = client.get(path).map_err(|e| Failure::api("hooks", &e))?;
    if p.json {
        ui.json(&all)?;
    } else if items(&all).is_empty() {
        ui.say(none)?;
    } else {
        return Ok(Some(all));
    }
    Ok(None)
}

fn list(client: &Client, p: &Plain, ui: &mut Ui) -> Done {
    let Some(all) = listed(client, "/v1/hooks", p, "no handler is registered", ui)? else { return Ok(0) };
    let fields = ["event", "script", "line", "name", "priority", "calls", "failures", "timeouts", "p50_us", "p99_us"];
    let rows = items(&all).iter().map(|h| fields.iter().map(|f| text(h, &format!("/{f}"))).collect());
    let text = table(ui, &fields, rows.collect());
    ui.say(text)?;
    Ok(0)
}

/// Checks every file, so that one wrong script does not hide the next.
fn check(files: &[PathBuf], config: Option<&Path>, json: bool, doors: &Doors, ui: &mut Ui) -> Done {
    let config = settings(config)?;
    let mut code = 0;
    let mut told = Vec::new();
    for file in files {
        let checked = (doors.check_script)(file, &config);
        if checked.is_err() {
            code = exit::CONFIG;
        }
        match checked {
            checked if json => told.push(json!({
                "file": file.display().to_string(), "valid": checked.is_ok(),
                "warnings": checked.as_ref().ok().cloned().unwrap_or_default(), "error": checked.err(),
            })),
            Ok(warnings) => {
                for warning in &warnings {
                    ui.note(warning);
                }
                ui.say(format!("{}: valid", file.display()))?;
            }
            Err(why) => ui.note(why),
        }
    }
    if json {
        ui.json(&json!({ "scripts": told }))?;
    }
    Ok(code)
}

/// The configuration, with the hooks directory that a daemon would use: `lib` is looked up there.
fn settings(file: Option<&Path>) -> Result<Config, Failure> {
    let mut config = config::load(config::find_file(file, &process_env).as_deref())?;
    config.hooks.dir = config::paths::hooks_dir(&config);
    Ok(config)
}

/// The longest file of fields, in bytes: what the API takes in a body.
const FIELDS: u64 = 4 << 20;

/// An object of fields in a file, or on stdin.
fn fields(file: &Path) -> Result<Map<String, Value>, Failure> {
    let shown = file.display().to_string();
    let text = match file.to_str() {
        Some("-") => config::bounded::take(std::io::stdin().lock(), FIELDS),
        _ => config::bounded::read(file, FIELDS),
    };
    let text = text.map_err(|e| Failure::new(&shown, e))?;
    match serde_json::from_slice(&text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(Failure::new(&shown, "an object of fields expected")),
        Err(e) => Err(Failure::new(&shown, e)),
    }
}

fn fire(a: &Fire, to: &Connect, doors: &Doors, ui: &mut Ui) -> Done {
    let (event, json) = (a.event.as_str(), a.plain.json);
    let fields = a.fields.as_deref().map(fields).transpose()?.unwrap_or_default();
    let answer = match &a.script {
        Some(script) => {
            let config = settings(a.config.as_deref())?;
            let Some(kind) = HookEvent::parse(event) else {
                let known: Vec<&str> = HookEvent::ALL.iter().map(|e| e.as_str()).collect();
                return Err(Failure::usage(format!("{event}: no such event: one of {}", known.join(", "))));
            };
            (doors.fire_script)(script, kind, &fields, &config).map_err(|text| Failure::coded(exit::CONFIG, text))?
        }
        None => client(to)?
            .post("/v1/hooks/fire", Some(&json!({ "event": event, "fields": fields })))
            .map_err(|e| Failure::api(event, &e))?,
    };
    let failed = items(&answer).iter().any(|r| !text(r, "/error").is_empty());
    if json {
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
        aftermath(&answer, ui)?;
    }
    Ok(u8::from(failed))
}

/// Prints what a script kept and sent when it was tried without a daemon.
fn aftermath(answer: &Value, ui: &mut Ui) -> std::io::Result<()> {
    for traceback in items(answer).iter().filter_map(|h| h.get("traceback").and_then(Value::as_str)) {
        for line in traceback.lines() {
            ui.say(clean(&line.replace('\t', "    ")))?;
        }
    }
    if let Some(answer) = answer.get("answer").filter(|a| !a.is_null()) {
        ui.say(clean(&format!("answer: {answer}")))?;
    }
    for sent in answer.get("sent").and_then(Value::as_array).into_iter().flatten() {
        ui.say(clean(&format!("sent to {}: {}", text(sent, "/key"), text(sent, "/text"))))?;
    }
    for (key, value) in answer.get("kv").and_then(Value::as_object).into_iter().flatten() {
        ui.say(clean(&format!("kv {key} = {value}")))?;
    }
    Ok(())
}

fn failed(client: &Client, p: &Plain, ui: &mut Ui) -> Done {
    let Some(all) = listed(client, "/v1/hooks/failed", p, "nothing was set aside", ui)? else { return Ok(0) };
    let row = |e: &Value| {
        let handler = [text(e, "/script"), text(e, "/name")].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>();
        let ago = ago_now(&text(e, "/at"));
        vec![
            text(e, "/event_id"),
            text(e, "/event"),
            text(e, "/key"),
            handler.join(" "),
            text(e, "/state"),
            text(e, "/attempts"),
            ago,
            text(e, "/error"),
        ]
    };
    let headers = ["id", "event", "key", "handler", "state", "attempts", "when", "error"];
    let text = table_or_records(ui, &headers, items(&all).iter().map(row).collect());
    ui.say(text)?;
    Ok(0)
}

fn aside(client: &Client, a: &Aside, retry: bool, ui: &mut Ui) -> Done {
    let act = |id: &str, ui: &mut Ui| -> Result<(), Failure> {
        let path = format!("/v1/hooks/failed/{}", segment(id));
        let done = if retry { client.post(&format!("{path}/retry"), None) } else { client.delete(&path) };
        done.map_err(|e| Failure::api(id, &e))?;
        if !a.json {
            ui.say(format!("{id}: {}", if retry { "will be delivered again" } else { "discarded" }))?;
        }
        Ok(())
    };
    let told = |ids: &[&String], ui: &mut Ui| {
        let word = if retry { "retried" } else { "discarded" };
        if a.json { ui.json(&json!({ word: ids })) } else { Ok(()) }
    };
    if let Some(id) = &a.which.id {
        act(id, ui)?;
        told(&[id], ui)?;
        return Ok(0);
    }
    // One event may be set aside for several handlers, and the API takes it once by its id. An event that is set aside
    // again meanwhile is not taken twice.
    let mut taken = BTreeSet::new();
    loop {
        let all = client.get("/v1/hooks/failed").map_err(|e| Failure::api("hooks", &e))?;
        let set_aside = items(&all).iter().filter(|e| text(e, "/state") != "orphaned");
        let ids: BTreeSet<String> = set_aside.map(|e| text(e, "/event_id")).filter(|id| !taken.contains(id)).collect();
        if ids.is_empty() {
            break;
        }
        for id in &ids {
            act(id, ui)?;
        }
        taken.extend(ids);
    }
    if taken.is_empty() && !a.json {
        ui.say("nothing was set aside")?;
    }
    told(&taken.iter().collect::<Vec<_>>(), ui)?;
    Ok(0)
}
