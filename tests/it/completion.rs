//! Keys are completed, in real shells.

use std::process::Command;

use crate::daemon::{Daemon, Ran, run};

/// A shell that runs a script, with the binary in its PATH; `None` where there is no such shell.
fn shell(d: &Daemon, name: &str, args: &[&str], script: &str) -> Option<Ran> {
    if Command::new(name).arg("--version").output().is_err() {
        eprintln!("SKIPPED: there is no {name} here");
        return None;
    }
    let bin = std::path::Path::new(env!("CARGO_BIN_EXE_ostler")).parent().unwrap().display().to_string();
    let mut command = Command::new(name);
    command.args(args).arg("-c").arg(script).env_clear().env("HOME", d.path("")).env("OSTLER_SOCKET", d.socket());
    command.env("PATH", format!("{bin}:/usr/bin:/bin")).current_dir("/");
    Some(run(&mut command, ""))
}

/// Bash splits words at colons, a key may have what a shell reads otherwise, and the rest is completed as before.
#[test]
fn bash_completes_keys() {
    let mut d = Daemon::new().start();
    for key in ["local:alice", "local:al b", "telegram:4711", "telegram:4712", "local:bob"] {
        d.send(key, "x");
    }
    let complete = |line: &str| {
        let script = format!(
            "source <(ostler completions bash); COMP_LINE={line:?}; COMP_POINT=${{#COMP_LINE}}; read -ra COMP_WORDS <<< \
             \"$COMP_LINE\"; [[ $COMP_LINE == *' ' ]] && COMP_WORDS+=(''); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _ostler_keys ostler \"${{COMP_WORDS[COMP_CWORD]}}\" ''; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        shell(&d, "bash", &["--norc", "--noprofile"], &script).map(|ran| ran.ok())
    };
    for (line, want) in [
        ("ostler show al", "al\\ b\nalice\n"),
        ("ostler show telegram:47", "4711\n4712\n"),
        ("ostler send bo", "bob\n"),
        ("ostler show local:bo", "bob\n"),
        ("ostler transc", "transcript\n"),
    ] {
        match complete(line) {
            Some(found) => assert_eq!(found, want, "{line}"),
            None => break,
        }
    }
    assert_eq!(d.stop(), 0);
}

#[test]
fn fish_completes_keys() {
    let mut d = Daemon::new().start();
    d.send("telegram:4711", "x");
    d.send("local:alice", "x");
    let complete = |line: &str| {
        let script = format!("ostler completions fish | source; complete -C {line:?}");
        shell(&d, "fish", &["--no-config"], &script).map(|ran| ran.ok())
    };
    for (line, want) in
        [("ostler show tele", "telegram:4711"), ("ostler show al", "alice"), ("ostler transc", "transcript")]
    {
        match complete(line) {
            Some(found) => assert!(found.lines().any(|l| l.split('\t').next() == Some(want)), "{line}: {found}"),
            None => break,
        }
    }
    assert_eq!(d.stop(), 0);
}
