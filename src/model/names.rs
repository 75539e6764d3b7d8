//! Names of a session: `{slug}`, `{key}`, `{hash}` and `{id}` in an agent's `cwd`, `env` and `command`.
//!
//! Clients choose the text of keys. So the name of a directory has no part that leads out of its place, and two keys
//! never have the same name.

use std::path::{Path, PathBuf};

/// The default working directory of agents.
pub const DEFAULT_CWD: &str = "work/{slug}";
/// The same in ostler 0.1: a session that has a directory there keeps it.
const OLD_CWD: &str = "work/{key}";

/// The known names, in the order of the manual.
pub const KNOWN: [&str; 4] = ["slug", "key", "hash", "id"];

/// How much of a key its [`slug`] and `{key}` have, in bytes.
const SLUG: usize = 40;
const KEY: usize = 150;

/// Letters, digits and `-` of the key, plus a digest that makes it unique.
#[must_use]
pub fn slug(key: &str) -> String {
    let mut name = String::new();
    for c in key.chars() {
        match c {
            _ if name.len() >= SLUG => break,
            c if c.is_ascii_alphanumeric() => name.push(c),
            _ if name.is_empty() || name.ends_with('-') => {}
            _ => name.push('-'),
        }
    }
    let name = name.trim_end_matches('-');
    let digest = &hash(key)[..12];
    if name.is_empty() { digest.to_owned() } else { format!("{name}-{digest}") }
}

/// A digest of the key.
#[must_use]
pub fn hash(key: &str) -> String {
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, key.as_bytes()).simple().to_string()
}

/// The key with all but `A-Za-z0-9_-` percent-encoded, cut at 150 bytes plus its digest.
#[must_use]
pub fn encoded(key: &str) -> String {
    const KEPT: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC.remove(b'_').remove(b'-');
    let mut name = percent_encoding::utf8_percent_encode(key, KEPT).to_string();
    if name.len() > KEY {
        name.truncate(KEY);
        name = format!("{name}-{}", hash(key));
    }
    name
}

/// The words in braces: the position of each, and the word. A word after a `$` belongs to a shell.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.match_indices('{').filter_map(move |(at, _)| {
        let (word, _) = text[at + 1..].split_once('}')?;
        let is_word = !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase());
        (is_word && !text[..at].ends_with('$')).then_some((at, word))
    })
}

/// The first lower-case word in braces that is not a known name: probably a misspelt name. Other text in braces
/// (`${HOME}`, `{print $1}`, `{}`) is left as it is.
#[must_use]
pub fn unknown(text: &str) -> Option<&str> {
    words(text).map(|(_, word)| word).find(|word| !KNOWN.contains(word))
}

/// Whether the text has a name that makes it unique to the session or its key.
#[must_use]
pub fn is_own(text: &str) -> bool {
    words(text).any(|(_, word)| KNOWN.contains(&word))
}

/// Whether the text has `{id}`.
#[must_use]
pub fn needs_id(text: &str) -> bool {
    words(text).any(|(_, word)| word == "id")
}

/// The text with the names replaced.
#[must_use]
pub fn expand(text: &str, key: &str, id: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = 0;
    for (at, word) in words(text) {
        let name = match word {
            "slug" => slug(key),
            "key" => encoded(key),
            "hash" => hash(key),
            "id" => id.to_owned(),
            _ => continue,
        };
        out.push_str(&text[rest..at]);
        out.push_str(&name);
        rest = at + word.len() + 2;
    }
    out.push_str(&text[rest..]);
    out
}

/// The home directory that a path begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home<'a> {
    /// None.
    No,
    /// The daemon's own (`~`, `~/…`), and the rest of the path.
    Own(&'a str),
    /// Another user's (`~bob`), which is not supported.
    Other,
}

/// Whether a path begins with a `~`.
#[must_use]
pub fn home_of(text: &str) -> Home<'_> {
    match text.strip_prefix('~') {
        None => Home::No,
        Some("") => Home::Own(""),
        Some(rest) => rest.strip_prefix('/').map_or(Home::Other, Home::Own),
    }
}

/// The session whose working directory is requested.
#[derive(Clone, Copy, Debug)]
pub struct Whose<'a> {
    /// The session's key.
    pub key: &'a str,
    /// Its id; may be empty where [`needs_id`] says no.
    pub id: &'a str,
}

/// The working directory of a session. A relative directory is in the state directory. `is_dir`: whether a directory
/// exists.
#[must_use]
pub fn working_dir(
    state_dir: &Path,
    home: Option<&str>,
    template: &str,
    whose: Whose<'_>,
    is_dir: impl Fn(&Path) -> bool,
) -> PathBuf {
    let expanded = |template: &str| expand(template, whose.key, whose.id);
    if template == DEFAULT_CWD {
        let old = state_dir.join(expanded(OLD_CWD));
        if is_dir(&old) {
            return old;
        }
    }
    let path = expanded(template);
    match (home_of(&path), home) {
        (Home::Own(rest), Some(home)) => Path::new(home).join(rest),
        _ => state_dir.join(path),
    }
}

/// Whether a directory in which a session worked belongs to its key alone and may be removed with it: the agent's
/// definition, or a default, builds it from the key's names. A directory that keys share is never removed.
#[must_use]
pub fn is_own_dir(state_dir: &Path, home: Option<&str>, template: &str, whose: Whose<'_>, dir: &Path) -> bool {
    let made = |template: &str| working_dir(state_dir, home, template, whose, |_| false) == dir;
    [template, DEFAULT_CWD, OLD_CWD, "work/{hash}"].into_iter().any(|t| is_own(t) && made(t))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01a2";

    fn dir(template: &str, key: &str) -> String {
        let whose = Whose { key, id: ID };
        working_dir(Path::new("/s"), Some("/home/me"), template, whose, |_| false).display().to_string()
    }

    #[test]
    fn a_slug_is_a_name_for_every_program() {
        let alice = slug("local:alice");
        assert_eq!(&alice[..12], "local-alice-");
        assert!(alice[12..].len() == 12 && alice[12..].bytes().all(|b| b.is_ascii_hexdigit()));
        for key in ["local:alice", "x:../../etc", "x:%2e%2e", "mx:!room:example.org", "ü:ü", ":-", "tg:-100:7"] {
            let slug = slug(key);
            assert!(slug.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'), "{slug}");
            assert!(!slug.starts_with('-') && slug.len() <= SLUG + 13, "{slug}");
        }
        let long = |end: &str| slug(&format!("x:{}{end}", "long".repeat(40)));
        assert!(long("a") != long("b") && long("a").len() <= SLUG + 13);
        assert_ne!(slug("a:b-c"), slug("a:b c"), "keys that differ in what is left out");
        assert_ne!(slug("a:B"), slug("a:b"));
    }

    #[test]
    fn encoded_keys_lead_nowhere_else() {
        assert_eq!(dir("work/{key}", "local:alice"), "/s/work/local%3Aalice");
        assert_eq!(dir("work/{key}", "x:../../etc"), "/s/work/x%3A%2E%2E%2F%2E%2E%2Fetc");
        let long = |end: &str| dir("work/{key}", &format!("x:{}{end}", "ü".repeat(80)));
        assert!(long("a").len() < 200 && long("a") != long("b"));
        assert_eq!(dir("work/{hash}", "local:a").len(), "/s/work/".len() + 32);
    }

    #[test]
    fn names_are_put_in_place_and_all_else_is_left() {
        let expand = |text: &str| expand(text, "local:a", ID);
        for (text, becomes) in [
            ("--dir={id}/x-{id}", "--dir=01a2/x-01a2"),
            ("{key}", "local%3Aa"),
            ("echo ${HOME} ${key} $1", "echo ${HOME} ${key} $1"),
            ("{print $1}", "{print $1}"),
            ("xargs -I{} cp {}", "xargs -I{} cp {}"),
            ("{\"key\": {\"a\": 1}}", "{\"key\": {\"a\": 1}}"),
            ("{{id}}", "{01a2}"),
            ("{KEY} {k", "{KEY} {k"),
        ] {
            assert_eq!((expand(text).as_str(), unknown(text)), (becomes, None), "{text}");
        }
        assert_eq!(unknown("work/{key}/{user}"), Some("user"));
        assert_eq!(unknown("${user} {chat id}"), None);
        assert!(is_own("a-{slug}") && !is_own("/srv/project") && !is_own("${key}"));
        assert!(needs_id("{key}/{id}") && !needs_id("{key}"));
    }

    #[test]
    fn a_directory_is_found_from_home_or_the_state_directory() {
        assert_eq!(dir("/abs", "x:y"), "/abs");
        assert_eq!(dir("~/work/{id}", "x:y"), "/home/me/work/01a2");
        assert_eq!(dir("~", "x:y").trim_end_matches('/'), "/home/me");
        assert_eq!((home_of("~bob/x"), home_of("x/~")), (Home::Other, Home::No));
    }

    #[test]
    fn a_session_keeps_the_directory_of_the_old_default() {
        let whose = Whose { key: "local:a", id: ID };
        let with_old = |template: &str| {
            working_dir(Path::new("/s"), None, template, whose, |d| d == Path::new("/s/work/local%3Aa"))
        };
        assert_eq!(with_old(DEFAULT_CWD), Path::new("/s/work/local%3Aa"));
        assert_eq!(with_old("other/{slug}"), Path::new("/s/other").join(slug("local:a")));
    }

    #[test]
    fn what_keys_share_is_nobodys_own() {
        let whose = Whose { key: "local:a", id: ID };
        let own = |template: &str, dir: &str| is_own_dir(Path::new("/s"), None, template, whose, Path::new(dir));
        assert!(own(DEFAULT_CWD, &format!("/s/work/{}", slug("local:a"))));
        assert!(own(DEFAULT_CWD, "/s/work/local%3Aa"), "of the old default");
        assert!(own("/srv/{hash}", &format!("/srv/{}", hash("local:a"))));
        assert!(!own("/srv/project", "/srv/project"));
        assert!(!own(DEFAULT_CWD, "/srv/project") && !own(DEFAULT_CWD, "/s/work"));
    }
}
