//! `report`: how a stop went.

use serde_json::{Value, json};

use super::args::Report;
use super::render::STATUS;
use super::render::{ago_now, bold, clean, items, millis, number, table, text};
use super::{Done, Doors, Failure, Ui};
use crate::client::{Client, segment};
use crate::config::paths;

/// `report [BOOT]`: from the daemon, or from the database if no daemon runs and none was named.
pub fn report(client: &Client, a: &Report, named: bool, doors: &Doors, ui: &mut Ui) -> Done {
    let fail = |e| Failure::api("report", &e);
    let from_file = a.state_dir.is_some() || !named;
    if from_file && matches!(client.status(STATUS), Err(e) if e.is_unreachable()) {
        return of_database(a, doors, ui);
    }
    if let Some(boot) = &a.boot {
        let report = client.get(&format!("/v1/reports/{}", segment(boot))).map_err(|e| match e.status {
            404 => Failure::new(boot, "no report of this boot; `ostler report --all` lists them"),
            _ => Failure::api(boot, &e),
        })?;
        return print(&report, a.plain.json, ui);
    }
    let all = client.get("/v1/reports").map_err(fail)?;
    if a.all {
        return list(&all, a.plain.json, ui);
    }
    let newest = items(&all).iter().max_by_key(|r| text(r, "/started_at"));
    let Some(newest) = newest else {
        return Err(Failure::new("report", "no report yet: the daemon has not been stopped"));
    };
    // The list may be without the details.
    match newest.get("phases") {
        Some(_) => print(newest, a.plain.json, ui),
        None => {
            let boot = text(newest, "/boot_id");
            let whole = client.get(&format!("/v1/reports/{}", segment(&boot))).map_err(fail)?;
            print(&whole, a.plain.json, ui)
        }
    }
}

fn of_database(a: &Report, doors: &Doors, ui: &mut Ui) -> Done {
    let dir = paths::state_dir_to_read(a.state_dir.as_deref(), &paths::process_env)
        .map_err(|why| Failure::coded(1, format!("report: {why}")))?;
    let reports = (doors.reports)(&dir).map_err(|why| {
        let none = "no daemon answers, and the database cannot be read (--state-dir names another)";
        Failure::coded(1, format!("report: {none}: {why}"))
    })?;
    if a.all {
        return list(&json!({ "reports": reports }), a.plain.json, ui);
    }
    match &a.boot {
        None => match reports.first() {
            Some(newest) => print(newest, a.plain.json, ui),
            None => Err(Failure::new("report", "no report yet: the daemon has not been stopped")),
        },
        Some(boot) => match reports.iter().find(|r| text(r, "/boot_id") == *boot) {
            Some(report) => print(report, a.plain.json, ui),
            None => Err(Failure::new(boot, "no report of this boot; `ostler report --all` lists them")),
        },
    }
}

fn list(all: &Value, json: bool, ui: &mut Ui) -> Done {
    if json {
        ui.json(all)?;
        return Ok(0);
    }
    let rows = items(all).iter().map(|r| {
        vec![
            text(r, "/boot_id"),
            text(r, "/reason"),
            text(r, "/urgency"),
            clean_word(r),
            ago_now(&text(r, "/ended_at")),
        ]
    });
    let text = table(ui, &["boot", "reason", "urgency", "outcome", "ended"], rows.collect());
    ui.say(text)?;
    Ok(0)
}

fn clean_word(r: &Value) -> String {
    if r["clean"] == true { "clean".into() } else { "unclean".into() }
}

/// A report, whole.
pub fn print(r: &Value, json: bool, ui: &mut Ui) -> Done {
    if json {
        ui.json(r)?;
        return Ok(0);
    }
    let head = format!("{} ({}), {}", text(r, "/reason"), text(r, "/urgency"), clean_word(r));
    ui.styled(bold(ui.color, &clean(&head)))?;
    ui.say(format!("boot {}, {} to {}\n", text(r, "/boot_id"), text(r, "/started_at"), text(r, "/ended_at")))?;
    let phase = |p: &Value| vec![text(p, "/phase"), millis(number(p, "/took_ms")), millis(number(p, "/planned_ms"))];
    let list = |name: &str| r.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let phases = table(ui, &["phase", "took", "planned"], list("phases").iter().map(phase).collect());
    ui.say(phases)?;
    let session = |s: &Value| {
        let mark = if s["resume_pending"] == true { "will be continued" } else { "" };
        vec![text(s, "/key"), text(s, "/outcome"), text(s, "/tool"), mark.to_owned(), text(s, "/end_event")]
    };
    if list("sessions").is_empty() {
        ui.say("\nno session was live")?;
        return Ok(0);
    }
    let headers = ["session", "outcome", "tool", "mark", "end event"];
    let sessions = table(ui, &headers, list("sessions").iter().map(session).collect());
    ui.say("")?;
    ui.say(sessions)?;
    Ok(0)
}

/// How the sessions fared, in a line: `2 finished, 1 interrupted`.
pub fn outcomes(r: &Value) -> String {
    let list = r.get("sessions").and_then(Value::as_array);
    let of = |word: &str| list.into_iter().flatten().filter(|s| text(s, "/outcome") == word).count();
    ["finished", "interrupted", "abandoned", "idle"]
        .iter()
        .filter(|w| of(w) > 0)
        .map(|w| format!("{} {w}", of(w)))
        .collect::<Vec<_>>()
        .join(", ")
}
