//! Commands run in process, their output caught.
#![allow(clippy::unwrap_used)]

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::{Doors, Ui, execute, parse};

#[derive(Clone, Default)]
pub struct Caught(Arc<Mutex<Vec<u8>>>);

impl Caught {
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Caught {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A place for output that is no terminal, or claims to be one.
pub fn ui(tty: bool) -> (Ui, Caught, Caught) {
    let (out, err) = (Caught::default(), Caught::default());
    let ui = Ui {
        out: Box::new(out.clone()),
        err: Box::new(err.clone()),
        out_tty: tty,
        err_tty: false,
        color: false,
        width: None,
        typed: None,
    };
    (ui, out, err)
}

#[derive(Debug, PartialEq)]
pub struct Ran {
    pub code: u8,
    pub out: String,
    pub err: String,
}

pub const DOORS: Doors = Doors {
    serve: |_| 70,
    check_script: |path, _| {
        let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
        let shown = path.display();
        match text.as_str() {
            "bad" => Err(format!("{shown}:2: unexpected symbol")),
            _ => Ok(vec![format!("{shown}:1: warning: global 'x' does not exist")]),
        }
    },
    fire_script: |path, event, fields, _| match fields.get("bad") {
        Some(_) => Err(format!("{}:2: unexpected symbol", path.display())),
        None => Ok(serde_json::json!({
            "handlers": [{ "script": "a.lua", "name": event.as_str(), "outcome": "delivered" }],
            "answer": { "text": fields.get("text") }, "sent": [{ "key": "local:b", "text": "hello", "id": "1" }],
            "kv": { "n": 1 },
        })),
    },
    reports: |dir| match dir.file_name().and_then(|n| n.to_str()) {
        Some("state") => {
            Ok(vec![serde_json::json!({ "boot_id": "b1", "reason": "shutdown", "clean": true, "phases": [] })])
        }
        _ => Err(format!("{}: is not there", dir.display())),
    },
    restore: |dir, file, go| match file.file_name().and_then(|n| n.to_str()) {
        Some("copy.db") => Ok(go(&serde_json::json!({
            "file": file, "database": dir.join("ostler.db"),
            "restored": { "sessions": 2, "newest_message": "2026-11-22T01:36:12.345Z" },
            "replaced": { "kept_as": dir.join("old"), "problem": "it is damaged" },
        }))),
        _ => Err((69, format!("{}: another ostler owns it", dir.display()))),
    },
    end_agents: |dir| match dir.file_name().and_then(|n| n.to_str()) {
        Some("left") => Ok((3, Vec::new())),
        Some("stuck") => Ok((1, vec!["process 7 (agent)".to_owned()])),
        Some("owned") => Err((69, format!("{}: another ostler owns it", dir.display()))),
        _ => Ok((0, Vec::new())),
    },
    checks: |_| Vec::new(),
};

/// Runs a command line as `main` does.
pub fn ostler(args: &[&str]) -> Ran {
    ostler_on(false, args)
}

/// The same, with stdout a terminal or not.
pub fn ostler_on(tty: bool, args: &[&str]) -> Ran {
    ostler_wide(tty, None, args)
}

/// The same, with the columns of the terminal.
pub fn ostler_wide(tty: bool, width: Option<u16>, args: &[&str]) -> Ran {
    let (mut ui, out, err) = ui(tty);
    ui.width = width;
    go(ui, &out, &err, args)
}

/// The same at a terminal at which somebody types.
pub fn ostler_typed(typed: &str, args: &[&str]) -> Ran {
    let (mut ui, out, err) = ui(false);
    let mut lines: Vec<String> = typed.split_inclusive('\n').map(str::to_owned).rev().collect();
    ui.typed = Some(Box::new(move || Ok(lines.pop().unwrap_or_default())));
    go(ui, &out, &err, args)
}

fn go(mut ui: Ui, out: &Caught, err: &Caught, args: &[&str]) -> Ran {
    let args: Vec<_> = std::iter::once("ostler").chain(args.iter().copied()).map(Into::into).collect();
    let (cli, json) = parse(&args).unwrap();
    let code = execute(cli, json, &DOORS, &mut ui);
    Ran { code, out: out.text(), err: err.text() }
}

/// A command with `--socket`.
pub fn at(socket: &Path, args: &[&str]) -> Ran {
    let socket = socket.to_str().unwrap();
    ostler(&[args, &["--socket", socket]].concat())
}

/// Writes a file and returns its path.
pub fn file_in(dir: &std::path::Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}
