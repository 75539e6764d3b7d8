//! What an agent heard and said, line by line, for a test that compares it with what the daemon kept.
//!
//! `$FAKE_AGENT_DIARY` names a directory; each session has a file in it, named by its id. A line is an object with the
//! agent's `pid`, the parent that started it as `shim`, and `began`, `heard` or `said`. What is heard is written when it is
//! read, what is said just before it is said: nobody can hear of anything that the diary does not have.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::parent_id;
use std::path::PathBuf;
use std::sync::OnceLock;

use serde_json::{Value, json};

/// A longer message has its length alone in the diary.
const LONGEST: usize = 64 * 1024;

fn file() -> Option<&'static File> {
    static FILE: OnceLock<Option<File>> = OnceLock::new();
    let open = || {
        let dir = PathBuf::from(std::env::var_os("FAKE_AGENT_DIARY")?);
        let name = std::env::var_os("OSTLER_SESSION_ID").unwrap_or_else(|| "agent".into());
        Some(File::options().create(true).append(true).open(dir.join(name)).unwrap())
    };
    FILE.get_or_init(open).as_ref()
}

fn write(what: &str, value: &Value) {
    let Some(mut file) = file() else { return };
    let text = value.to_string();
    let value = if text.len() > LONGEST { json!({ "length": text.len() }) } else { value.clone() };
    // The parent at the start: an orphan has another.
    static SHIM: OnceLock<u32> = OnceLock::new();
    let shim = SHIM.get_or_init(parent_id);
    let line = format!("{}\n", json!({ "pid": std::process::id(), "shim": shim, what: value }));
    // In one write, so that lines of two processes do not mix.
    file.write_all(line.as_bytes()).unwrap();
}

/// A process begins.
pub fn began(kind: &str) {
    write("began", &json!(kind));
}

/// Something came in.
pub fn heard(value: &Value) {
    write("heard", value);
}

/// Something is about to go out.
pub fn said(value: &Value) {
    write("said", value);
}
