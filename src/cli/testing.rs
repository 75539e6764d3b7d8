//! Commands run in process, their output caught.
#![allow(clippy::unwrap_used)]

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use clap::Parser as _;

use super::args::Cli;
use super::{Doors, Ui, run};

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
    let cli = Cli::try_parse_from(std::iter::once(&"ostler").chain(args)).unwrap();
    let code = match run(cli.command, &DOORS, &mut ui) {
        Ok(code) => code,
        Err(failure) => {
            ui.note(&failure.text);
            failure.code
        }
    };
    Ran { code, out: out.text(), err: err.text() }
}

/// A command with `--socket`.
pub fn at(socket: &Path, args: &[&str]) -> Ran {
    let socket = socket.to_str().unwrap();
    ostler(&[args, &["--socket", socket]].concat())
}
