//! `restore`: a backup becomes the database of a daemon that is down.

use serde_json::Value;

use super::args::Restore;
use super::render::STATUS;
use super::render::{number, text};
use super::{Done, Doors, Failure, PROBE, Ui, doctor};
use crate::client::Client;

/// `restore FILE`
pub fn restore(a: &Restore, client: &Client, doors: &Doors, ui: &mut Ui) -> Done {
    let what = a.file.display().to_string();
    if !a.yes && ui.typed.is_none() {
        return Err(Failure::usage(
            "restore: there is no terminal to ask on: --yes replaces the database without asking",
        ));
    }
    // A daemon that answers uses the state directory that this command would change.
    let status = client.answers(PROBE).and_then(|()| client.status(STATUS));
    let found = doctor::ground(a.config.as_deref(), a.state_dir.as_deref(), status.as_ref().ok())
        .map_err(|why| Failure::coded(super::exit::FAILURE, why))?;
    let file = std::path::absolute(&a.file).map_err(|e| Failure::new(&what, e))?;
    let mut planned = Value::Null;
    let mut asked = Ok(true);
    let done = (doors.restore)(&found.state_dir, &file, &mut |plan| {
        planned = plan.clone();
        asked = tell(plan, a, ui);
        matches!(asked, Ok(true))
    });
    asked?;
    if !done.map_err(|(code, why)| Failure::coded(code, why))? {
        return Err(Failure::new(&what, "not restored"));
    }
    if a.json {
        ui.json(&planned)?;
        return Ok(0);
    }
    ui.say(format!("{}: restored", text(&planned, "/database")))?;
    ui.say(
        "start it the first time with `ostler serve --no-resume` if the original still runs, or if interrupted turns must \
         not go on",
    )?;
    Ok(0)
}

/// Says what will be done, and asks.
fn tell(plan: &Value, a: &Restore, ui: &mut Ui) -> std::io::Result<bool> {
    let mut lines = vec![
        format!("{} will become {}", text(plan, "/file"), text(plan, "/database")),
        format!("it has {}", holds(&plan["restored"])),
    ];
    if plan["replaced"].is_object() {
        lines.push(format!("the present database has {}", holds(&plan["replaced"])));
        lines.push(format!("the present database is kept as {}", text(plan, "/replaced/kept_as")));
    } else {
        lines.push("no database is there yet".to_owned());
    }
    for line in lines {
        match (a.json, a.yes) {
            (false, _) => ui.say(line)?,
            (true, false) => ui.note(line),
            (true, true) => {}
        }
    }
    ui.out.flush()?;
    Ok(a.yes || ui.confirm("Restore it?")?)
}

fn holds(of: &Value) -> String {
    if let Some(problem) = of["problem"].as_str() {
        return format!("what cannot be read: {problem}");
    }
    let newest = match of["newest_message"].as_str() {
        Some(at) => format!("the newest message is of {at}"),
        None => "no message".to_owned(),
    };
    match number(of, "/sessions") {
        1 => format!("1 session; {newest}"),
        n => format!("{n} sessions; {newest}"),
    }
}
