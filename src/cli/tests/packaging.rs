//! What `packaging/` has in it says the same as the code.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::super::generate;
use super::super::testing::ostler;
use crate::config::{self, Config, KEYS, keys};
use crate::exit;
use crate::model::event::HookEvent;

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(packaging(name)).unwrap_or_else(|e| panic!("packaging/{name}: {e}"))
}

#[test]
fn what_is_made_from_the_code_is_up_to_date() {
    let remedy = "cargo run --release -- generate files packaging";
    for (name, text) in generate::files() {
        assert!(read(name) == text, "packaging/{name} is not what the code makes; make it anew: {remedy}");
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(ostler(&["generate", "files", dir.path().to_str().unwrap()]).code, 0);
    for (name, text) in generate::files() {
        assert_eq!(std::fs::read_to_string(dir.path().join(name)).unwrap(), text, "{name}");
    }
    assert_eq!(ostler(&["generate", "config"]).out, keys::sample());
}

#[test]
fn the_configuration_that_is_installed_is_the_default() {
    let file = packaging("ostler.toml");
    let config = config::load(Some(&file)).unwrap();
    assert_eq!(Config { file: None, ..config }, Config::default());
    let text = read("ostler.toml");
    for k in KEYS {
        assert!(text.contains(&format!("\n#{} = ", k.split().1)), "{} is not in it", k.key);
    }
}

#[test]
fn the_manuals_have_every_command_option_and_key() {
    let page = read("man/ostler.1");
    let cli = <super::super::args::Cli as clap::CommandFactory>::command();
    let mut options = 0;
    for command in cli.get_subcommands().filter(|c| !c.is_hide_set()) {
        let below: Vec<_> = command.get_subcommands().collect();
        for c in if below.is_empty() { vec![command] } else { below.clone() } {
            let name = if below.is_empty() {
                c.get_name().to_owned()
            } else {
                format!("{} {}", command.get_name(), c.get_name())
            };
            let heading = format!("\n.SS \"{}\"\n", name.replace('-', "\\-"));
            assert!(page.contains(&heading), "{name} is not in ostler(1)");
            for long in c.get_arguments().filter_map(clap::Arg::get_long) {
                options += 1;
                assert!(page.contains(&format!("\\fB\\-\\-{}\\fR", long.replace('-', "\\-"))), "{name} --{long}");
            }
        }
    }
    assert!(options > 40, "{options}");
    assert!(!page.contains("generate"), "what is hidden stays hidden");
    let page = read("man/ostler.toml.5");
    for k in KEYS {
        assert!(page.contains(&format!("\n\\fB{}\\fR (", k.split().1)), "{} is not in ostler.toml(5)", k.key);
    }
}

/// The class of an event's handlers in the annotations.
fn class(event: &str) -> String {
    event.split('_').map(|w| w[..1].to_uppercase() + &w[1..]).collect()
}

#[test]
fn the_manual_of_hooks_has_every_event_with_its_fields_and_the_whole_api() {
    let page = read("man/ostler-hooks.7").replace("\\-", "-");
    let annotations =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/ostler.d.lua")).unwrap();
    let events = page.split("\n.SH EVENTS\n").nth(1).unwrap().split("\n.SH ").next().unwrap();
    let told: Vec<&str> = events.split("\n.SS ").skip(1).map(|s| s.split_whitespace().next().unwrap()).collect();
    let known: Vec<&str> = HookEvent::ALL.iter().map(|e| e.as_str()).collect();
    assert_eq!(told, known, "the events, in their order");
    for (event, text) in HookEvent::ALL.iter().zip(events.split("\n.SS ").skip(1)) {
        let head = text.lines().next().unwrap();
        assert_eq!(head.contains("(journalled)"), event.is_journalled(), "{event}");
        assert_eq!(head.contains("(synchronous)"), event.is_synchronous(), "{event}");
        let start = format!("---@class ostler.{} : ", class(event.as_str()));
        let lines = annotations.lines().skip_while(|l| !l.starts_with(&start)).skip(1);
        let fields: BTreeSet<&str> =
            lines.take_while(|l| l.starts_with("---@field ")).map(|l| l.split(' ').nth(1).unwrap()).collect();
        assert!(!fields.is_empty(), "{event}");
        let said =
            text.lines().find_map(|l| l.strip_prefix("Fields: ")).unwrap_or_else(|| panic!("{event}: no fields"));
        let said: BTreeSet<&str> = said.trim_end_matches('.').split(", ").collect();
        assert_eq!(said, fields, "{event}");
    }
    for line in annotations.lines().filter_map(|l| l.strip_prefix("function ")) {
        let call = line.split('(').next().unwrap();
        let call = call.replace("SessionEvent:", "ev:").replace("Session:", ":").replace("File:", "file:");
        assert!(page.contains(&call), "{call} is not in ostler-hooks(7)");
    }
    for class in
        ["OnOptions", "EveryOptions", "KvSetOptions", "KvIncrOptions", "SendOptions", "HttpRequest", "ExecRequest"]
    {
        let start = format!("---@class ostler.{class}");
        let lines = annotations.lines().skip_while(|l| *l != start).skip(1).take_while(|l| l.starts_with("---@field "));
        for name in lines.map(|l| l.split(' ').nth(1).unwrap().trim_end_matches('?')) {
            assert!(page.contains(name), "{name} of {class} is not in ostler-hooks(7)");
        }
    }
}

/// `KEY=value` of a unit, the last one.
fn setting<'a>(unit: &'a str, key: &str) -> &'a str {
    unit.lines().rev().find_map(|l| l.strip_prefix(key)?.strip_prefix('=')).unwrap_or_else(|| panic!("no {key}="))
}

#[test]
fn the_unit_gives_the_default_stop_its_time_and_knows_the_exit_codes() {
    let unit = read("ostler.service");
    let deadline = Config::default().shutdown.deadline.as_secs();
    let stop: u64 = setting(&unit, "TimeoutStopSec").parse().unwrap();
    assert!(stop >= deadline + 10, "a stop may take {deadline} s, the unit gives {stop} s");
    assert_eq!(setting(&unit, "RestartForceExitStatus"), exit::RESTART.to_string());
    assert_eq!(setting(&unit, "RestartPreventExitStatus"), "1 69 78");
    for code in [exit::FAILURE, exit::UNAVAILABLE, exit::CONFIG] {
        assert!(setting(&unit, "RestartPreventExitStatus").split(' ').any(|c| c == code.to_string()), "{code}");
    }
    assert!(!unit.contains("\nExecStop"), "SIGTERM is the stop");
    // A user's own is the same where agents outlive it.
    let user = read("user/ostler.service");
    for key in [
        "KillMode",
        "Delegate",
        "DelegateSubgroup",
        "TimeoutStopSec",
        "WatchdogSec",
        "RestartForceExitStatus",
        "RestartPreventExitStatus",
        "SuccessExitStatus",
        "OOMPolicy",
        "PrivateTmp",
        "ExecStart",
        "Type",
    ] {
        assert_eq!(setting(&user, key), setting(&unit, key), "{key}");
    }
    assert_eq!((setting(&unit, "KillMode"), setting(&unit, "Delegate")), ("process", "yes"));
    assert!(!unit.contains("\nProtectControlGroups"), "the daemon makes groups");
    let tasks: usize = setting(&unit, "TasksMax").parse().unwrap();
    let wanted = Config::default().sessions.max_live + crate::http::Limits::default().max_connections + 64;
    assert!(tasks * 4 / 5 > wanted, "TasksMax={tasks}: {wanted} threads may be wanted, and agents have some too");
}

#[test]
fn what_is_installed_is_where_the_code_looks() {
    use crate::config::paths::{SERVICE_CONFIG, SERVICE_SOCKET, SERVICE_STATE};
    use crate::shim::launch::{LIBEXEC, PROGRAM};
    let unit = read("ostler.service");
    let mut dirs = setting(&unit, "StateDirectory").split(' ').map(|dir| format!("/var/lib/{dir}"));
    assert_eq!(dirs.next().as_deref(), Some(SERVICE_STATE), "$STATE_DIRECTORY is the first of them");
    let (home, tmp) = (dirs.next().unwrap(), dirs.next().unwrap());
    assert_eq!(setting(&unit, "Environment"), format!("HOME={home} TMPDIR={tmp}"));
    assert_eq!(setting(&unit, "BindPaths"), format!("{tmp}:/tmp {tmp}:/var/tmp"));
    assert_eq!(format!("/run/{}/ostler.sock", setting(&unit, "RuntimeDirectory")), SERVICE_SOCKET);
    assert_eq!(setting(&read("ostler.socket"), "ListenStream"), SERVICE_SOCKET);
    assert!(read("sysusers.d/ostler.conf").contains(SERVICE_STATE), "the user's home");
    let manifest = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let shim = format!("target/release/{PROGRAM}");
    assert!(manifest.contains(&format!("[\"{shim}\", \"{}/\", \"755\"]", LIBEXEC.trim_start_matches('/'))));
    assert!(manifest.contains(&format!("{{ source = \"{shim}\", dest = \"{LIBEXEC}/{PROGRAM}\"")));
    assert!(read("arch/PKGBUILD").contains(&format!("\"$pkgdir{LIBEXEC}/{PROGRAM}\"")));
    for name in
        ["ostler.toml", "ostler.service", "user/ostler.service", "ostler.socket", "hooks.d/README", "agents.conf"]
    {
        let source = format!("\"packaging/{name}\"");
        assert_eq!(manifest.matches(&source).count(), 2, "{name} belongs into the deb and the rpm");
        assert!(read("arch/PKGBUILD").contains(&format!("packaging/{name}")), "{name} belongs into the PKGBUILD");
    }
    assert!(manifest.contains(&format!("\"{}\"", SERVICE_CONFIG.trim_start_matches('/'))));
    let version = env!("CARGO_PKG_VERSION");
    assert!(read("arch/PKGBUILD").contains(&format!("\npkgver={version}\n")), "the PKGBUILD's version");
    assert!(read("debian/changelog").starts_with(&format!("ostler ({version}-")), "the Debian changelog's version");
}
