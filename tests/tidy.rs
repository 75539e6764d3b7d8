//! The house's rules that a machine can check: who may name what, and what must not stand anywhere.

use std::fs;
use std::path::{Path, PathBuf};

fn files(dir: &str, ending: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path: PathBuf = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().ends_with(ending) {
                let name =
                    path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(&path).to_string_lossy().into_owned();
                found.push((name, fs::read_to_string(&path).expect("a text")));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no files below {dir}");
    found
}

/// The text without comments, and without the tests at its end: what the product consists of.
fn product(text: &str) -> String {
    let body = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or(text);
    body.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn is_test(name: &str) -> bool {
    name.contains("/tests/") || name.ends_with("/tests.rs") || name.ends_with("/testing.rs")
}

/// Fails with every line that has one of `words` in a file that `may` does not allow.
fn only_in(words: &[&str], may: impl Fn(&str) -> bool, why: &str) {
    let mut wrong = Vec::new();
    for (name, text) in files("src", ".rs") {
        if is_test(&name) || may(&name) {
            continue;
        }
        for (n, line) in product(&text).lines().enumerate() {
            if words.iter().any(|w| line.contains(w)) {
                wrong.push(format!("{name}, product line {}: {}", n + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{why}:\n{}", wrong.join("\n"));
}

#[test]
fn each_library_is_named_in_its_room_only() {
    only_in(&["rusqlite"], |f| f.starts_with("src/store/sqlite/"), "SQLite belongs to its folder of the store");
    only_in(&["mlua"], |f| f.starts_with("src/hooks/") || f == "src/agent/lua.rs", "Lua belongs to the hooks");
    only_in(&["signal_hook"], |f| f.ends_with("/signals.rs"), "signals belong to signals.rs");
    only_in(&["httparse"], |f| f.starts_with("src/http/"), "HTTP parsing belongs to http");
    only_in(
        &["sd_notify"],
        |f| f == "src/daemon/notify.rs" || f == "src/sys.rs",
        "the service manager belongs to notify.rs",
    );
    only_in(&["hmac_sha256"], |f| f == "src/shim/proof.rs", "proofs belong to the shim's proof.rs");
    only_in(&["clap"], |f| f.starts_with("src/cli/"), "argument parsing belongs to the commands");
}

/// The rooms from the top down, each with the rooms that it may name. An arrow goes downwards only.
const ROOMS: &[(&str, &[&str])] = &[
    (
        "serve",
        &[
            "agent",
            "api",
            "client",
            "clock",
            "config",
            "daemon",
            "exit",
            "failpoint",
            "hooks",
            "http",
            "log",
            "model",
            "proc",
            "reserved",
            "service",
            "store",
            "sys",
            "thread",
        ],
    ),
    ("cli", &["client", "clock", "config", "exit", "log", "model", "thread"]),
    ("client", &["config", "sse"]),
    ("api", &["config", "exit", "hooks", "http", "log", "model", "proc", "service", "store", "thread"]),
    ("service", &["clock", "config", "daemon", "failpoint", "hooks", "log", "model", "store", "thread"]),
    (
        "daemon",
        &["agent", "clock", "config", "exit", "failpoint", "hooks", "log", "model", "proc", "store", "sys", "thread"],
    ),
    ("agent", &["clock", "config", "failpoint", "hooks", "model", "proc", "shim", "sse", "thread"]),
    ("hooks", &["awake", "clock", "config", "failpoint", "log", "model", "proc", "reserved", "sys", "thread"]),
    ("http", &["sse", "sys", "thread"]),
    ("store", &["clock", "config", "failpoint", "model", "thread"]),
    ("shim", &["proc", "sys"]),
    ("config", &["model"]),
    ("log", &["clock", "thread"]),
    ("awake", &["thread"]),
    ("model", &["clock"]),
    ("clock", &["failpoint"]),
    ("proc", &["failpoint", "sys"]),
    ("thread", &["sys"]),
    ("exit", &[]),
    ("failpoint", &[]),
    ("reserved", &[]),
    ("sse", &[]),
    ("sys", &[]),
];

/// The rooms that a text names: by `crate::room`, alone or in a group.
fn named(text: &str) -> Vec<&'static str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut words = Vec::new();
    for rest in text.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            None => words.push(rest.split(|c| !is_word(c)).next().unwrap_or_default().to_owned()),
            Some(group) => {
                // What stands at the group's own level.
                let (mut depth, mut word) = (0, String::new());
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => words.push(std::mem::take(&mut word)),
                        c if depth == 0 => word.push(c),
                        _ => {}
                    }
                }
                words.push(word);
            }
        }
    }
    let first = |w: &String| w.trim().split(|c| !is_word(c)).next().unwrap_or_default().to_owned();
    let words: Vec<String> = words.iter().map(first).collect();
    ROOMS.iter().map(|(room, _)| *room).filter(|room| words.iter().any(|w| w == room)).collect()
}

/// Every arrow of the product: a file, its room, and a room that it names.
fn arrows() -> Vec<(String, String, &'static str)> {
    let mut arrows = Vec::new();
    for (name, text) in files("src", ".rs") {
        if is_test(&name) || name == "src/main.rs" || name == "src/lib.rs" {
            continue;
        }
        let room = name.trim_start_matches("src/").split('/').next().unwrap_or_default();
        let room = room.trim_end_matches(".rs").to_owned();
        let others = named(&product(&text)).into_iter().filter(|other| *other != room);
        arrows.extend(others.map(|other| (name.clone(), room.clone(), other)));
    }
    arrows
}

/// A circle among arrows, if there is one.
fn circle<'a>(arrows: &[(&'a str, &'a str)]) -> Option<Vec<&'a str>> {
    /// `done`: rooms from which no circle is reached.
    fn walk<'a>(
        at: &'a str,
        arrows: &[(&'a str, &'a str)],
        path: &mut Vec<&'a str>,
        done: &mut Vec<&'a str>,
    ) -> Option<Vec<&'a str>> {
        if done.contains(&at) {
            return None;
        }
        if let Some(n) = path.iter().position(|room| *room == at) {
            return Some(path[n..].to_vec());
        }
        path.push(at);
        let found = arrows.iter().filter(|(from, _)| *from == at).find_map(|(_, to)| walk(to, arrows, path, done));
        path.pop();
        done.push(at);
        found
    }
    let mut done = Vec::new();
    arrows.iter().find_map(|(from, _)| walk(from, arrows, &mut Vec::new(), &mut done))
}

#[test]
fn arrows_point_downwards_only() {
    let place = |room: &str| ROOMS.iter().position(|(name, _)| *name == room);
    for (room, may) in ROOMS {
        for other in *may {
            assert!(place(other) > place(room), "the table itself: {room} -> {other} points up, or names no room");
        }
    }
    let mut wrong = Vec::new();
    for (file, room, other) in arrows() {
        let Some((_, may)) = ROOMS.iter().find(|(name, _)| *name == room) else {
            panic!("{file}: a room that the plan of the house does not know");
        };
        // Lua stands for an agent in one file.
        let excepted = room != "agent" || other != "hooks" || file == "src/agent/lua.rs";
        if !may.contains(&other) || !excepted {
            wrong.push(format!("{file}: {room} -> {other}"));
        }
    }
    assert!(wrong.is_empty(), "arrows that point back:\n{}", wrong.join("\n"));
}

#[test]
fn no_rooms_stand_in_a_circle() {
    assert_eq!(circle(&[("a", "b"), ("b", "c"), ("a", "c")]), None);
    assert_eq!(circle(&[("x", "a"), ("a", "b"), ("b", "c"), ("c", "a")]), Some(vec!["a", "b", "c"]));
    let planted = named("use crate::model::event;\nuse crate::{api, thread::{self, spawn}, hooks::Hooks};");
    assert_eq!(planted, ["api", "hooks", "model", "thread"]);
    let all = arrows();
    assert!(all.len() > 60, "the arrows are found: {}", all.len());
    let pairs: Vec<(&str, &str)> = all.iter().map(|(_, room, other)| (room.as_str(), *other)).collect();
    assert_eq!(circle(&pairs), None, "rooms in a circle");
}

#[test]
fn the_model_is_pure() {
    let impure = ["std::thread", "std::fs", "Mutex", "Instant::now", "SystemTime::now", "clock::now"];
    only_in(&impure, |f| !f.starts_with("src/model/"), "the model does no I/O, reads no clock, has no lock");
}

#[test]
fn the_shim_decides_without_io_and_stands_on_its_own() {
    let pure = ["frame", "machine", "ring", "start"].map(|name| format!("src/shim/{name}.rs"));
    let impure = ["std::fs", "std::io", "std::process", "Instant", "SystemTime", "rustix", "crate::"];
    only_in(&impure, |f| !pure.iter().any(|name| name == f), "the shim's codec and its machine are pure");
    // It is one small process an agent: it has nothing of the daemon's.
    let heavy = ["log::", "serde", "thread::spawn", "crossbeam", "uuid", "thiserror", "jiff", "failpoint"];
    only_in(&heavy, |f| !f.starts_with("src/shim/"), "the shim has std, rustix, and a hash");
}

/// Words that once had a private meaning here; what stands in their place is known from elsewhere.
const OLD_WORDS: &[&str] = &[
    "house", "desk", "unkept", "seat", "seats", "wish", "wishes", "newcomer", "unseat", "lane", "lanes", "haunt",
    "haunted", "exorcise", "ghost", "ghosts", "strikes", "stirred",
];

#[test]
fn old_words_stay_gone() {
    let mut wrong = Vec::new();
    for (name, text) in files("src", ".rs") {
        if is_test(&name) {
            continue;
        }
        for (n, line) in text.lines().enumerate() {
            let mut words =
                line.split(|c: char| !c.is_ascii_alphanumeric()).flat_map(parts_of).map(|w| w.to_ascii_lowercase());
            if let Some(word) = words.find(|w| OLD_WORDS.contains(&w.as_str())) {
                wrong.push(format!("{name}:{}: {word}", n + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "words that a newcomer does not know:\n{}", wrong.join("\n"));
}

/// The words of a name in camel case.
fn parts_of(name: &str) -> Vec<&str> {
    let mut starts: Vec<usize> = name.char_indices().filter(|(_, c)| c.is_ascii_uppercase()).map(|(n, _)| n).collect();
    if name.chars().all(|c| !c.is_ascii_lowercase()) || starts.first() != Some(&0) {
        starts.insert(0, 0);
    }
    if name.chars().all(|c| !c.is_ascii_lowercase()) {
        starts.truncate(1);
    }
    starts.iter().enumerate().map(|(n, at)| &name[*at..starts.get(n + 1).copied().unwrap_or(name.len())]).collect()
}

#[test]
fn no_type_name_stands_twice_in_a_room() {
    assert_eq!(parts_of("TurnHost"), ["Turn", "Host"]);
    assert_eq!(parts_of("STRIKES"), ["STRIKES"]);
    let mut places: std::collections::BTreeMap<(String, String), Vec<String>> = std::collections::BTreeMap::new();
    for (name, text) in files("src", ".rs") {
        if is_test(&name) {
            continue;
        }
        let room = name.split('/').nth(1).unwrap_or_default().trim_end_matches(".rs").to_owned();
        for line in product(&text).lines() {
            let line = line.strip_prefix("pub").map_or(line, |rest| {
                rest.strip_prefix('(').and_then(|r| r.split_once(')')).map_or(rest, |(_, rest)| rest).trim_start()
            });
            let defined = ["struct ", "enum ", "trait ", "type "].iter().find_map(|w| line.strip_prefix(w));
            let Some(defined) = defined else { continue };
            let word = defined.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
            places.entry((room.clone(), word.to_owned())).or_default().push(name.clone());
        }
    }
    assert!(places.len() > 250, "the types are found: {}", places.len());
    let twice: Vec<String> = places
        .iter()
        .filter(|(_, at)| at.len() > 1)
        .map(|((_, word), at)| format!("{word}: {}", at.join(", ")))
        .collect();
    assert!(twice.is_empty(), "one name, two meanings:\n{}", twice.join("\n"));
}

#[test]
fn unsafe_code_stands_in_its_places_with_its_proof() {
    only_in(
        &["unsafe {", "unsafe fn", "allow(unsafe_code)"],
        |f| ["src/sys.rs", "src/hooks/deadline.rs", "src/shim/child.rs", "src/shim/landlock.rs"].contains(&f),
        "unsafe code",
    );
    for (name, text) in files("src", ".rs") {
        for (n, line) in text.lines().enumerate() {
            if line.contains("unsafe {") {
                let before: Vec<&str> = text.lines().skip(n.saturating_sub(8)).take(8).collect();
                assert!(before.iter().any(|l| l.contains("SAFETY:")), "{name}:{}: unsafe without its proof", n + 1);
            }
        }
    }
}

#[test]
fn threads_are_made_in_one_place() {
    only_in(&["thread::Builder", "std::thread::spawn"], |f| f == "src/thread.rs", "threads are made by thread::spawn");
}

#[test]
fn nothing_sleeps() {
    // The failpoints stall on purpose; a command that waits for a daemon to come back has nothing to wait on but time.
    let may = |f: &str| f == "src/failpoint.rs" || f.starts_with("src/cli/");
    only_in(&["thread::sleep", "sleep_ms"], may, "a sleep where an event is to be waited for");
    for (name, text) in files("tests", ".rs") {
        if name.ends_with("tidy.rs") || name.contains("/bin/") {
            continue;
        }
        assert!(!text.contains("thread::sleep"), "{name}: a test waits for events, never for time");
    }
}

#[test]
fn files_say_what_they_own_and_stay_readable() {
    for (name, text) in files("src", ".rs") {
        assert!(text.starts_with("//!") || is_test(&name), "{name}: a file opens with what it owns");
        let lines = product(&text).lines().count();
        assert!(lines <= 700, "{name}: {lines} lines: look whether it does two things");
    }
}

#[test]
fn nothing_is_left_for_later() {
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("X", "XX"),
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
    ];
    for dir in ["src", "tests", "benches"] {
        for (name, text) in files(dir, ".rs") {
            for mark in marks {
                assert!(!text.contains(mark), "{name}: {mark}");
            }
            assert!(!text.contains(concat!("#[ig", "nore")), "{name}: an ignored test");
        }
    }
}

/// The lines of the checklist of behaviours, each with what it is about; a test that shows one says `/// Checklist N, M.`
/// above it. `tests/CHECKLIST.md` says what each line promises and how its test was seen to fail.
const CHECKLIST: std::ops::RangeInclusive<u32> = 1..=53;

/// The numbers that the doc comments above tests name, each with its test's file.
fn tags() -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for dir in ["src", "tests"] {
        for (name, text) in files(dir, ".rs") {
            let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
            for (n, line) in lines.iter().enumerate() {
                let Some(tag) = line.strip_prefix("/// Checklist ") else { continue };
                let numbers = tag.split_once('.').unwrap_or_else(|| panic!("{name}:{}: {line}", n + 1)).0;
                let below = lines[n..].iter().find(|l| !l.starts_with("///")).unwrap_or(&"");
                assert_eq!(*below, "#[test]", "{name}:{}: a line of the checklist is shown by a test", n + 1);
                for number in numbers.split(", ") {
                    let number = number.parse().unwrap_or_else(|e| panic!("{name}:{}: {number:?}: {e}", n + 1));
                    assert!(CHECKLIST.contains(&number), "{name}:{}: no such line: {number}", n + 1);
                    found.push((number, name.clone()));
                }
            }
        }
    }
    found
}

#[test]
fn every_line_of_the_checklist_has_its_test() {
    let tags = tags();
    let missing: Vec<u32> = CHECKLIST.filter(|n| !tags.iter().any(|(tag, _)| tag == n)).collect();
    assert!(missing.is_empty(), "no test says that it shows these lines of the checklist: {missing:?}");
}

#[test]
fn the_checklist_names_tests_that_are_there() {
    let table = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/CHECKLIST.md")).expect("a table");
    let all: String = ["src", "tests"].iter().flat_map(|dir| files(dir, ".rs")).map(|(_, text)| text).collect();
    let mut lines = Vec::new();
    for row in table.lines() {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, number, _, tests, broken, _] = cells[..] else { continue };
        let Ok(number) = number.parse::<u32>() else { continue };
        assert!(!broken.is_empty(), "line {number}: how was its test seen to fail?");
        for test in tests.split('`').skip(1).step_by(2) {
            let name = test.rsplit([':', ' ']).next().unwrap_or(test);
            assert!(all.contains(&format!("\nfn {name}()")), "line {number}: there is no test {name}");
        }
        lines.push(number);
    }
    let missing: Vec<u32> = CHECKLIST.filter(|n| !lines.contains(n)).collect();
    assert!(missing.is_empty(), "the table has no row for {missing:?}");
}

#[test]
fn the_readme_has_its_two_commands_on_the_first_screen() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("a README");
    let screen: Vec<&str> = readme.lines().take(24).collect();
    let commands: Vec<&&str> = screen.iter().filter(|l| l.starts_with("cargo ")).collect();
    assert_eq!(commands, [&"cargo run --release -- serve", &"cargo test --release"]);
}
