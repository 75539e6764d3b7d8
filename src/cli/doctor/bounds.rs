//! What bounds agents' processes: limits by control groups, confinement by Landlock, and secrets that agents can read.
//!
//! The daemon says what there is; here it is held against what the configuration asks for.

use std::path::Path;

use serde_json::Value;

use super::{Check, Verdict};
use crate::config::{self, Agent, AgentKind, Config, Confine, Keep, LEAST_CONFINEMENT, paths};

const UNIT: &str = "set Delegate=yes, DelegateSubgroup=daemon and ProtectControlGroups=no in the unit (systemd 254 or later); \
    without a service manager: systemd-run --user -p Delegate=yes -p DelegateSubgroup=daemon ostler serve";

/// The findings; none where no agent is a process.
pub(super) fn bounds(config: &Config, state_dir: &Path, status: Option<&Value>) -> Vec<Check> {
    let agents: Vec<&Agent> =
        config.agent.values().filter(|a| matches!(a.kind, AgentKind::Acp | AgentKind::Exec)).collect();
    if agents.is_empty() {
        return Vec::new();
    }
    if config.agents.keep == Keep::Never {
        let found = "off: [agents] keep = \"never\"";
        let remedy =
            "with \"restart\" or \"crash\" agents have a parent of their own, which sets limits and confines them";
        return vec![Check { remedy: remedy.into(), ..Check::good("limits and confinement", found) }];
    }
    let Some(told) = status.map(|s| &s["bounds"]).filter(|b| b.is_object()) else {
        let remedy = "start the daemon: only it knows what its service manager gave it";
        return vec![Check::not_good(Verdict::Skipped, "limits and confinement", "no daemon answers", remedy)];
    };
    let usual = told["confine"].as_str().and_then(|word| Confine::ALL.iter().copied().find(|c| c.as_str() == word));
    let holds = |a: &Agent| {
        let usual = if a.confine_required { Confine::State } else { usual.unwrap_or(Confine::None) };
        a.confine.unwrap_or(usual)
    };
    let mut out = vec![limits(&agents, told)];
    out.extend(confinement(&agents, told["landlock"].as_u64().unwrap_or(0), &holds));
    if agents.iter().any(|a| holds(a) != Confine::None) {
        out.extend(secrets(config, state_dir));
    }
    out
}

fn limits(agents: &[&Agent], told: &Value) -> Check {
    let found = told["control_groups_told"].as_str().unwrap_or_default();
    let limited: Vec<&str> =
        agents.iter().filter(|a| a.memory.is_some() || a.cpu.is_some()).map(|a| a.name.as_str()).collect();
    match (told["control_groups"] == "limits", limited.is_empty()) {
        (true, _) => Check::good("limits", found),
        (false, true) => Check { remedy: UNIT.into(), ..Check::good("limits", found) },
        (false, false) => {
            let found = format!("{found}; the limits of {} are not in force", limited.join(", "));
            Check::not_good(Verdict::Warning, "limits", found, UNIT)
        }
    }
}

fn confinement(agents: &[&Agent], abi: u64, holds: &dyn Fn(&Agent) -> Confine) -> Vec<Check> {
    let one = |agent: &&Agent| {
        let (name, confine) = (format!("agent {}", agent.name), holds(agent));
        if confine == Confine::None {
            let found = "not confined: it may read the database, secrets and other sessions' files";
            // Where it is not the default, the daemon's user can make entries above the state directory.
            let remedy = "set confine = \"state\" if no agent makes files beside the directories that lead to the state \
                directory; or move the state to where only root can do so (the packaged service has it so)";
            let remedy = if agent.confine.is_none() { remedy } else { "" };
            return Check { remedy: remedy.into(), ..Check::good(name, found) };
        }
        let missing = confine.not_enforced(u32::try_from(abi).unwrap_or(0));
        let found = format!("confined: {confine}, by Landlock {abi}");
        if missing.is_empty() {
            return Check::good(name, found);
        }
        let found = format!("{found}; not enforced: {}", missing.join(", "));
        let verdict = match (agent.confine_required, abi) {
            (true, abi) if abi < u64::from(agent.confine_abi) => Verdict::Bad,
            (_, abi) if abi < u64::from(LEAST_CONFINEMENT) => Verdict::Warning,
            _ => Verdict::Good,
        };
        Check::not_good(verdict, name, found, "a newer kernel enforces all of it: Linux 6.12 or later")
    };
    agents.iter().map(one).collect()
}

fn secrets(config: &Config, state_dir: &Path) -> Vec<Check> {
    let env = &paths::process_env;
    let open = config::open_secrets(config, state_dir, env);
    let open = open.into_iter().map(|(key, file)| (key, paths::secret_file(file, config, env)));
    // What is not there may be a credential of the service.
    let open = open.filter(|(_, path)| path.exists());
    open.map(|(key, path)| {
        let found = format!("{}: agents can read it although they are confined", path.display());
        let remedy = "pass it with LoadCredential= and a bare name, or put it into the state directory";
        Check::not_good(Verdict::Warning, key, found, remedy)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn checks(text: &str, bounds: &Value) -> Vec<(String, Verdict, String)> {
        let config = config::parse(text, None).unwrap();
        let status = json!({ "bounds": bounds });
        let all = super::bounds(&config, Path::new("/var/lib/ostler"), Some(&status));
        all.into_iter().map(|c| (c.name, c.verdict, c.found + " | " + &c.remedy)).collect()
    }

    const EXEC: &str = "[agent.default]\nkind = \"exec\"\ncommand = [\"a\"]\n";

    #[test]
    fn limits_that_are_not_in_force_are_told() {
        let told = |state: &str| json!({ "control_groups": state, "control_groups_told": state, "landlock": 7, "confine": "state" });
        let first = |text: &str, state: &str| checks(text, &told(state)).remove(0);
        let memory = format!("{EXEC}memory = \"1GiB\"");
        assert_eq!(first(&memory, "limits").1, Verdict::Good);
        assert_eq!(first(EXEC, "off").1, Verdict::Good, "nothing was asked for");
        assert!(first(EXEC, "off").2.contains("Delegate=yes"));
        let (_, verdict, text) = first(&memory, "membership");
        assert!(verdict == Verdict::Warning && text.contains("the limits of default are not in force"), "{text}");
        assert!(checks("", &told("off")).is_empty(), "echo is no process");
        let never = checks(&format!("{EXEC}[agents]\nkeep = \"never\""), &told("limits"));
        assert!(never.len() == 1 && never[0].2.contains("keep = \"never\""), "{never:?}");
        let config = config::parse(EXEC, None).unwrap();
        assert_eq!(super::bounds(&config, Path::new("/x"), None)[0].verdict, Verdict::Skipped);
    }

    #[test]
    fn what_is_not_enforced_is_told() {
        let one = |more: &str, abi: u32, usual: &str| {
            let told = json!({ "control_groups": "limits", "landlock": abi, "confine": usual });
            checks(&format!("{EXEC}{more}"), &told).remove(1)
        };
        for (more, abi, usual, verdict, piece) in [
            ("", 7, "state", Verdict::Good, "confined: state, by Landlock 7 | "),
            ("", 5, "state", Verdict::Good, "not enforced: signals, abstract sockets"),
            ("", 2, "state", Verdict::Warning, "not enforced: truncate"),
            ("confine_required = true", 2, "none", Verdict::Bad, "not enforced: truncate"),
            ("confine_required = true\nconfine_abi = 6", 5, "none", Verdict::Bad, "not enforced: signals"),
            ("", 7, "none", Verdict::Good, "set confine = \"state\""),
            ("confine = \"none\"", 7, "state", Verdict::Good, "not confined"),
        ] {
            let got = one(more, abi, usual);
            assert!(got.1 == verdict && got.2.contains(piece), "{more} {abi} {usual}: {got:?}");
        }
    }

    #[test]
    fn a_secret_beside_the_configuration_is_told_where_agents_are_confined() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("key"), "k").unwrap();
        let text = format!(
            "{EXEC}[agent.o]\nkind = \"openai\"\nurl = \"http://h\"\nmodel = \"m\"\napi_key_file = \"{}/key\"",
            dir.path().display()
        );
        let told = |confine: &str| json!({ "control_groups": "limits", "landlock": 7, "confine": confine });
        let (name, verdict, found) = checks(&text, &told("state")).pop().unwrap();
        assert_eq!((name.as_str(), verdict), ("agent.o.api_key_file", Verdict::Warning));
        assert!(found.contains("agents can read it") && found.contains("LoadCredential"), "{found}");
        assert!(checks(&text, &told("none")).iter().all(|(name, ..)| !name.contains("api_key")));
    }
}
