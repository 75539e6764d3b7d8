//! Completion of keys: a hidden command for the shells' completions. From the definition of the command line it finds
//! out whether a key belongs at the cursor, and prints the keys that begin with the typed text.
//!
//! It prints no errors, which would stand in the middle of the line.

use std::time::Duration;

use clap::{ArgAction, Command, CommandFactory as _};

use super::args::{Cli, Connect};
use super::render::{is_plain, items, text};
use super::{Done, Ui, reach};
use crate::client::name_to_key;

/// How long the daemon may take: the user is typing.
const PATIENCE: Duration = Duration::from_secs(1);
/// Sessions that are offered at the most.
const MOST: usize = 1000;

/// `complete -- WORD..`: the words of the line up to the cursor; the last word is incomplete.
pub fn complete(words: &[String], ui: &mut Ui) -> Done {
    let Some((to, typed)) = wanted(words) else { return Ok(0) };
    let Ok(client) = reach(&to) else { return Ok(0) };
    if client.answers(PATIENCE).is_err() {
        return Ok(0);
    }
    let path = format!("/v1/sessions?limit={MOST}");
    let Ok(reply) = client.request(ureq::http::Method::GET, &path, None, PATIENCE) else { return Ok(0) };
    for name in names(items(&reply.body).iter().map(|s| text(s, "/key")), &typed) {
        ui.say(name)?;
    }
    Ok(0)
}

/// The names that begin with a text. `local:` is left out unless it was typed.
fn names(keys: impl Iterator<Item = String>, typed: &str) -> Vec<String> {
    let short = |key: String| match key.strip_prefix("local:") {
        // A name that would be read as another key, an id or an option is written whole.
        Some(name) if !typed.starts_with("local:") && !name.starts_with('-') && name_to_key(name) == key => {
            name.to_owned()
        }
        _ => key,
    };
    let mut names: Vec<_> = keys.map(short).filter(|n| n.starts_with(typed) && is_plain(n)).collect();
    names.sort();
    names.dedup();
    names
}

/// Whether the last word is a key, of which daemon, and its typed part.
fn wanted(words: &[String]) -> Option<(Connect, String)> {
    let (typed, before) = words.split_last()?;
    let mut root = Cli::command();
    root.build();
    let mut command: &Command = &root;
    let (mut to, mut positional, mut only_positional) = (Connect::default(), 0, false);
    let mut before = before.iter().skip(1);
    while let Some(word) = before.next() {
        if word == "--" && !only_positional {
            only_positional = true;
        } else if word.starts_with('-') && word.len() > 1 && !only_positional {
            let (name, value) = word.split_once('=').map_or((word.as_str(), None), |(n, v)| (n, Some(v)));
            let Some(arg) = option(command, name) else { continue };
            if matches!(arg.get_action(), ArgAction::SetTrue | ArgAction::Help | ArgAction::Version) {
                continue;
            }
            let value = match value {
                Some(value) => value,
                None => match before.next() {
                    Some(value) => value,
                    // The cursor is at the option's value.
                    None => return is_key(arg).then(|| (to, typed.clone())),
                },
            };
            match arg.get_id().as_str() {
                "socket" => to.socket = Some(value.into()),
                "url" => to.url = Some(value.to_owned()),
                "token_file" => to.token_file = Some(value.into()),
                _ => {}
            }
        } else if let Some(below) = command.find_subcommand(word).filter(|_| positional == 0 && !only_positional) {
            command = below;
        } else {
            positional += 1;
        }
    }
    if typed.starts_with('-') && !only_positional || command.has_subcommands() {
        return None;
    }
    let arg = command.get_positionals().nth(positional)?;
    is_key(arg).then(|| (to, typed.clone()))
}

fn option<'c>(command: &'c Command, name: &str) -> Option<&'c clap::Arg> {
    command.get_opts().chain(command.get_arguments()).find(|a| match name.strip_prefix("--") {
        Some(long) => a.get_long() == Some(long),
        None => a.get_short().is_some_and(|s| name.ends_with(s)),
    })
}

fn is_key(arg: &clap::Arg) -> bool {
    arg.get_value_names().is_some_and(|names| names.first().is_some_and(|n| n == "KEY"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_offered_where_one_belongs() {
        for (line, want) in [
            ("ostler show al", Some("al")),
            ("ostler show ", Some("")),
            ("ostler ls --key t", Some("t")),
            ("ostler rm --all -y telegram:4", Some("telegram:4")),
            ("ostler logs -n 5 a", Some("a")),
            ("ostler transcript --after=5 a", Some("a")),
            ("ostler --socket /s events -f a", Some("a")),
            ("ostler cancel -- -a", Some("-a")),
            ("ostler send ", Some("")),
            ("ostler allow a", Some("a")),
            ("ostler sh", None),
            ("ostler ", None),
            ("ostler show --js", None),
            ("ostler show a ", None),
            ("ostler send a tex", None),
            ("ostler events --after ", None),
            ("ostler hooks ch", None),
            ("ostler hooks check a", None),
            ("ostler backup a", None),
            ("ostler status ", None),
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(wanted(&words).map(|(_, typed)| typed).as_deref(), want, "{line:?}");
        }
        let words: Vec<String> = "ostler --socket /s show --url=http://h a".split(' ').map(str::to_owned).collect();
        let (to, _) = wanted(&words).unwrap_or_else(|| panic!("no key"));
        assert_eq!((to.socket, to.url), (Some("/s".into()), Some("http://h".into())));
    }

    #[test]
    fn local_names_are_short_unless_they_would_mean_something_else() {
        let id = "local:0190a3c4-7b1e-7abc-8def-0123456789ab";
        let all = ["local:alice", "local:a:b", id, "telegram:4711", "local:-x", "local:bob", "local:\u{1b}c"];
        let found = |typed: &str| names(all.iter().map(|k| (*k).to_owned()), typed);
        assert_eq!(found(""), ["alice", "bob", "local:-x", id, "local:a:b", "telegram:4711"]);
        assert_eq!(found("a"), ["alice"]);
        assert_eq!(found("local:a"), ["local:a:b", "local:alice"]);
        assert_eq!(found("tele"), ["telegram:4711"]);
    }
}
