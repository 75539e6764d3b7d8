//! The manual pages that have a source in the code: ostler(1) from the command line's definition, ostler.toml(5) from
//! the table of keys. ostler-hooks(7) is written by hand, and compared with the events and the API by a test.

use std::fmt::Write as _;

use clap::{Arg, Command, CommandFactory as _};

use super::args::Cli;
use crate::config::keys::{KEYS, SECTIONS};

/// When the text of the pages last changed.
const DATE: &str = "2026-11-27";
/// The text around the commands.
const FRAME: &str = include_str!("manual.roff");

/// ostler(1)
pub fn ostler() -> String {
    let mut cli = Cli::command();
    cli.build();
    let mut commands = String::new();
    let mut common: Vec<&Arg> = Vec::new();
    for command in cli.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        let (mut below, own): (Vec<_>, Vec<_>) =
            (command.get_subcommands().filter(|c| c.get_name() != "help").collect(), vec![command]);
        let all = if below.is_empty() { own } else { std::mem::take(&mut below) };
        for c in all {
            let name = if std::ptr::eq(c, command) { String::new() } else { format!("{} ", command.get_name()) };
            one(&mut commands, &name, c);
            for arg in c.get_arguments().filter(|a| is_common(a)) {
                if !common.iter().any(|known| known.get_id() == arg.get_id()) {
                    common.push(arg);
                }
            }
        }
    }
    let mut options = String::new();
    for arg in common {
        argument(&mut options, arg);
    }
    options += ".TP\n\\fB\\-h\\fR, \\fB\\-\\-help\\fR\nHelp, of every command.\n";
    options += ".TP\n\\fB\\-V\\fR, \\fB\\-\\-version\\fR\nThe version.\n";
    FRAME.replace("@DATE@", DATE).replace("@COMMANDS@", commands.trim_end()).replace("@COMMON@", options.trim_end())
}

/// Whether an option is the same for many commands, and so described once.
fn is_common(arg: &Arg) -> bool {
    arg.get_help_heading() == Some("Connection") || arg.get_id() == "json"
}

fn is_own(arg: &Arg) -> bool {
    !is_common(arg) && !arg.is_hide_set() && arg.get_id() != "help" && arg.get_id() != "version"
}

fn one(out: &mut String, before: &str, command: &Command) {
    let mut line = format!("\\fBostler {before}{}\\fR", roff(command.get_name()));
    let (positional, options): (Vec<&Arg>, Vec<&Arg>) =
        command.get_arguments().filter(|a| is_own(a)).partition(|a| a.is_positional());
    for arg in &options {
        let _ = write!(line, " [{}]", option(arg));
    }
    for arg in &positional {
        let name = format!("\\fI{}\\fR", roff(&value_name(arg)));
        let many = if arg.get_num_args().is_some_and(|n| n.max_values() > 1) { " ..." } else { "" };
        let _ = if arg.is_required_set() { write!(line, " {name}{many}") } else { write!(line, " [{name}]{many}") };
    }
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let aliases: Vec<_> = command.get_visible_aliases().collect();
    let about = if aliases.is_empty() { about } else { format!("{about} (alias: {})", aliases.join(", ")) };
    let _ = write!(out, ".SS {}\n{line}\n.PP\n{}.\n", quoted(&format!("{before}{}", command.get_name())), roff(&about));
    for arg in positional.iter().chain(&options) {
        argument(out, arg);
    }
    if let Some(help) = command.get_after_help() {
        for paragraph in help.to_string().split("\n\n") {
            let _ = match paragraph.trim_end().strip_prefix("Examples:\n") {
                Some(lines) => write!(out, ".PP\nExamples:\n.PP\n.EX\n{}\n.EE\n", roff(lines)),
                None => write!(out, ".PP\n{}\n", roff(paragraph.trim_end())),
            };
        }
    }
}

fn value_name(arg: &Arg) -> String {
    let names: Vec<&str> = arg.get_value_names().unwrap_or_default().iter().map(clap::builder::Str::as_str).collect();
    if names.is_empty() { arg.get_id().as_str().to_uppercase() } else { names.join(" ") }
}

fn option(arg: &Arg) -> String {
    let mut text = String::new();
    if let Some(short) = arg.get_short() {
        let _ = write!(text, "\\fB\\-{short}\\fR");
    }
    if let Some(long) = arg.get_long() {
        let comma = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{comma}\\fB\\-\\-{}\\fR", roff(long));
    }
    if arg.get_action().takes_values() {
        let _ = write!(text, " \\fI{}\\fR", roff(&value_name(arg)));
    }
    text
}

fn argument(out: &mut String, arg: &Arg) {
    let head = if arg.is_positional() { format!("\\fI{}\\fR", roff(&value_name(arg))) } else { option(arg) };
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let default: Vec<_> = arg.get_default_values().iter().map(|v| v.to_string_lossy().into_owned()).collect();
    let default = match default.as_slice() {
        [] => String::new(),
        _ if !arg.get_action().takes_values() => String::new(),
        values => format!(" [default: {}]", values.join(" ")),
    };
    let values: Vec<_> = arg.get_possible_values().iter().map(|v| v.get_name().to_owned()).collect();
    let values = match values.as_slice() {
        [] => String::new(),
        _ if !arg.get_action().takes_values() => String::new(),
        values => format!(": {}", values.join(", ")),
    };
    let _ = write!(out, ".TP\n{head}\n{}{}{}.\n", roff(&help), roff(&values), roff(&default));
}

/// ostler.toml(5)
pub fn ostler_toml() -> String {
    let mut out = format!(
        ".TH ostler.toml 5 {DATE} ostler \"File Formats\"\n.SH NAME\nostler.toml \\- configuration of ostler(1)\n"
    );
    out += ".SH SYNOPSIS\n.I /etc/ostler/ostler.toml\n";
    out += ".SH DESCRIPTION\nTOML. Every key has a default, an empty file is valid, and an unknown key is an error.\n";
    out += "Durations are written \"30s\", \"5m\", \"1h30m\", \"7d\", or, where a key allows it, \"never\";\n";
    out += "sizes \"64MiB\".\n";
    out += ".PP\nThe file is the one given by \\-\\-config, else $OSTLER_CONFIG, else\n";
    out += "$XDG_CONFIG_HOME/ostler/ostler.toml, else /etc/ostler/ostler.toml.\n";
    out +=
        ".PP\n\\fBostler check\\-config\\fR checks it, and \\fBostler reload\\fR applies it: limits, routes, hooks,\n";
    out += "shutdown and log at once, an agent's definition from its sessions' next activation.\n";
    out += "[http] and hooks.threads take effect with a restart only.\n";
    for (section, about) in SECTIONS {
        let name = match *section {
            "agent.*" => "[agent.NAME]".to_owned(),
            "route" => "[[route]]".to_owned(),
            name => format!("[{name}]"),
        };
        let _ = write!(out, ".SH {}\n{}\n", quoted(&name), roff(about));
        for k in KEYS.iter().filter(|k| k.split().0 == *section) {
            let value = match (k.default, k.example) {
                (Some("\"\"" | "[]") | None, Some(example)) => format!("example: {}", roff(example)),
                (Some(default), _) => format!("default: {}", roff(default)),
                (None, None) => String::new(),
            };
            let _ = write!(out, ".TP\n\\fB{}\\fR ({value})\n{}\n", roff(k.split().1), roff(k.doc));
        }
    }
    out += EXAMPLES;
    out += ".SH SEE ALSO\n.BR ostler (1),\n.BR ostler\\-hooks (7)\n";
    out
}

const EXAMPLES: &str = r#".SH EXAMPLES
An agent that speaks the Agent Client Protocol for everybody, a model for one channel, and a TCP listener with a token:
.PP
.EX
[http]
listen = "0.0.0.0:7411"
token_file = "token"

[agent.default]
kind = "acp"
command = ["my\-agent", "\-\-acp"]

[agent.small]
kind = "openai"
url = "http://127.0.0.1:8080/v1"
model = "my\-model"

[[route]]
match = "telegram:*"
agent = "small"
.EE
"#;

/// Text without meaning to the formatter.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let line = |l: &str| if l.starts_with(['.', '\'']) { format!("\\&{l}") } else { l.to_owned() };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// One argument of a heading.
fn quoted(text: &str) -> String {
    format!("\"{}\"", roff(text))
}
