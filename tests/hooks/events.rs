//! What the daemon's events have in them is what `scripts/ostler.d.lua` says: what is not optional there is always
//! there, and nothing else is.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const ANNOTATIONS: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/ostler.d.lua"));

/// The fields of a class: whether each may be absent.
fn fields(class: &str) -> BTreeMap<String, bool> {
    let head = format!("---@class ostler.{class}");
    let mut lines = ANNOTATIONS.lines().skip_while(|l| l.split(" : ").next() != Some(&head));
    let parent = lines.next().unwrap_or_else(|| panic!("no {class}")).split(" : ostler.").nth(1);
    let mut found = parent.map(fields).unwrap_or_default();
    for line in lines.take_while(|l| l.starts_with("---@field ")) {
        let mut words = line.split(' ').skip(1);
        let (name, kind) = (words.next().unwrap().to_owned(), words.next().unwrap());
        found.insert(name, kind.ends_with('?') || kind == "any");
    }
    found
}

/// The class of an event's handlers.
fn class(event: &str) -> String {
    event.split('_').map(|w| w[..1].to_uppercase() + &w[1..]).collect()
}

fn compare(class: &str, names: &BTreeSet<String>) {
    let said = fields(class);
    for name in names {
        assert!(said.contains_key(name), "ostler.{class} does not have {name}");
    }
    for (name, optional) in said {
        assert!(optional || names.contains(&name), "ostler.{class}: {name} is not there");
    }
}

const SCRIPT: &str = r#"
for _, event in ipairs { "daemon_start", "session_start", "message", "before_turn", "turn_start", "turn_end",
    "session_end", "session_closed", "shutdown", "stopped", "reload" } do
  ostler.on(event, function(ev)
    local names = {}
    for name in pairs(ev) do names[#names + 1] = name end
    if ev.session_id and ev.turn_id == nil or event:find("turn") then ev:transcript() end
    local file <close> = assert(io.open(ostler.config.out, "a"))
    assert(file:write(event .. " " .. table.concat(names, " ") .. "\n"))
  end)
end
"#;

#[test]
fn the_daemons_events_have_the_fields_that_are_annotated() {
    let mut daemon = Daemon::start(SCRIPT, "[agent.default]\nkind = \"echo\"\n");
    assert_eq!(say(&daemon.client, "local:a", "hello").outcome, "completed");
    let shown = daemon.get("/v1/sessions/local:a");
    daemon.post("/v1/sessions/local:a/reset", None);
    assert_eq!(say(&daemon.client, "local:a", "again").outcome, "completed");
    daemon.post("/v1/reload", None);
    assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.stderr());
    let mut events = BTreeSet::new();
    for line in daemon.log() {
        let (event, names) = line.split_once(' ').unwrap();
        let names: BTreeSet<String> = names.split(' ').map(str::to_owned).collect();
        compare(&class(event), &names);
        events.insert(event.to_owned());
    }
    // What fires nothing here is compared with its sample; a permission needs an agent that asks.
    assert_eq!(events.len(), 11, "{events:?}");
    let shown: BTreeSet<String> =
        shown.as_object().unwrap().iter().filter(|(_, v)| !v.is_null()).map(|(n, _)| n.clone()).collect();
    compare("SessionInfo", &shown);
}
