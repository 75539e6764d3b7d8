//! What `ostler doctor` can only find with the daemon's own parts: the lock, the database, what dead agents left, the
//! unit's timeout, the system's limits. It changes nothing, and works with or without a daemon running.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{limits, lock};
use crate::agent::process::{self, Claim};
use crate::config::Config;
use crate::proc::mark;
use crate::store;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Good,
    /// Could not be looked at.
    Skipped,
    /// Will bite some day.
    Warning,
    /// Will fail, or has.
    Bad,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do; empty when it is good.
    pub remedy: String,
}

fn finding(name: &'static str, level: Level, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { name, level, found: found.into(), remedy: remedy.into() }
}

/// Looks at everything. `boot_id`: of the daemon that answers, if one does.
#[must_use]
pub fn examine(config: &Config, state_dir: &Path, boot_id: Option<&str>) -> Vec<Finding> {
    let db = state_dir.join("ostler.db");
    let mut all = Vec::new();
    match std::fs::read_dir(state_dir) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            let found = format!("{}: {e}", state_dir.display());
            all.push(finding("database", Level::Skipped, found, "ask as root, or as the daemon's user"));
        }
        _ => {
            all.push(examine_lock(state_dir, boot_id.is_some()));
            all.extend(examine_database(&db, lock::holder(state_dir)));
            all.push(examine_leftovers(state_dir, &db, boot_id));
        }
    }
    all.push(examine_unit(config));
    all.push(examine_threads(config));
    all.extend(examine_http(config));
    all
}

/// Where anybody on this machine comes in without being asked who he is.
fn examine_http(config: &Config) -> Option<Finding> {
    let http = config.http.as_ref()?;
    let address = http.listen;
    Some(match &http.token_file {
        Some(file) => finding("http", Level::Good, format!("{address}, with the token in {}", file.display()), ""),
        None => finding(
            "http",
            Level::Warning,
            format!("{address} has no token: every user of this machine may drive the daemon, and so may agents"),
            "set [http] token_file",
        ),
    })
}

fn examine_lock(state_dir: &Path, answers: bool) -> Finding {
    match (lock::holder(state_dir), answers) {
        (Some(pid), true) => finding("lock", Level::Good, format!("held by the daemon, pid {pid}"), ""),
        (Some(pid), false) => finding(
            "lock",
            Level::Bad,
            format!("{}: pid {pid} holds it, and no daemon answers here", state_dir.display()),
            format!(
                "look at that process; `ostler serve --replace` takes over from it, or pass the --socket of its daemon ({pid})"
            ),
        ),
        (None, true) => finding(
            "lock",
            Level::Warning,
            "the daemon that answers has another state directory",
            "pass the --state-dir of the daemon, or its configuration",
        ),
        (None, false) => finding("lock", Level::Good, "free", ""),
    }
}

fn examine_database(db: &Path, holder: Option<i32>) -> Vec<Finding> {
    if !db.exists() {
        if let Some(pid) = holder {
            let found = format!("{}: it is gone, though a daemon (pid {pid}) has it open", db.display());
            let remedy = "put it back at its place, or stop the daemon: what it was sent since is refused";
            return vec![finding("database", Level::Bad, found, remedy)];
        }
        return vec![finding("database", Level::Good, "none yet: the first start makes it", "")];
    }
    let file = match store::examine(db) {
        Ok(exam) if exam.sound == "ok" => {
            let found = format!("sound, schema {}, {} sessions, {} KiB", exam.schema, exam.sessions, exam.bytes / 1024);
            let damaged = exam.damaged.into_iter().map(|d| {
                let found = format!("{} {}: {}", d.key, d.session_id, d.why);
                let remedy = "all others are served; `ostler delete` puts this session away, a backup has it as it was";
                finding("session", Level::Bad, found, remedy)
            });
            return std::iter::once(finding("database", Level::Good, found, "")).chain(damaged).collect();
        }
        Ok(exam) => finding(
            "database",
            Level::Bad,
            format!("{}: damaged: {}", db.display(), exam.sound),
            "stop the daemon, and go back to a backup with `ostler restore FILE`, which keeps this file under another name",
        ),
        Err(e) => finding(
            "database",
            Level::Bad,
            e.to_string(),
            "see the message; nothing was changed; if the file is damaged, `ostler restore FILE` puts a backup at its place",
        ),
    };
    vec![file]
}

fn examine_leftovers(state_dir: &Path, db: &Path, boot_id: Option<&str>) -> Finding {
    let state_id = mark::state_id(state_dir).ok();
    let owner = lock::holder(state_dir).and_then(|pid| u32::try_from(pid).ok());
    // Agents that work on alone are no leftovers; those of a file that cannot be read are told of with the file.
    let kept = if db.exists() { store::shims_of(db).unwrap_or_default() } else { Vec::new() };
    let claim = Claim { state_id: state_id.as_deref(), boot_id, owner, kept: &kept };
    let ours = |id: &str| db.exists() && store::knows_session(db, id).unwrap_or(false);
    let left: Vec<String> = process::find_dead(&claim)
        .into_iter()
        .filter(|l| l.state_id.is_some() || l.session_id.as_deref().is_some_and(ours))
        .map(|l| format!("{} ({})", l.pid, l.name))
        .collect();
    if left.is_empty() {
        return finding("leftovers", Level::Good, "no process of an earlier agent", "");
    }
    let remedy = match boot_id {
        Some(_) => "the daemon tried to end them when it started and could not: look at them, then kill them",
        None => "the next start ends them before their sessions run again",
    };
    finding("leftovers", Level::Warning, format!("processes of earlier agents: {}", left.join(", ")), remedy)
}

fn examine_unit(config: &Config) -> Finding {
    let (name, deadline) = ("stop budget", config.shutdown.deadline);
    if !Path::new("/run/systemd/system").exists() {
        return finding(name, Level::Good, format!("{} s; no systemd here", deadline.as_secs()), "");
    }
    let asked = Command::new("systemctl")
        .args(["show", "ostler.service", "--property=LoadState,TimeoutStopUSec"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let text = match asked {
        Ok(out) => String::from_utf8_lossy(&out.stdout).into_owned(),
        Err(e) => return finding(name, Level::Skipped, format!("systemctl: {e}"), "ask on the machine that runs it"),
    };
    let value = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_default();
    if value("LoadState=") != "loaded" {
        return finding(name, Level::Good, format!("{} s; no unit ostler.service", deadline.as_secs()), "");
    }
    match unit_time(value("TimeoutStopUSec=")) {
        Some(limit) if limit < deadline => finding(
            name,
            Level::Warning,
            format!("{} s, but the unit's TimeoutStopSec is {} s", deadline.as_secs(), limit.as_secs()),
            format!(
                "the daemon asks for the time when it stops, which needs Type=notify; better: TimeoutStopSec={} in the unit",
                deadline.as_secs() + 15
            ),
        ),
        Some(limit) => {
            finding(name, Level::Good, format!("{} s of the unit's {} s", deadline.as_secs(), limit.as_secs()), "")
        }
        None => finding(name, Level::Good, format!("{} s; the unit sets no limit", deadline.as_secs()), ""),
    }
}

/// A time as `systemctl show` writes it (`1min 30s`); `None` for none (`infinity`).
fn unit_time(text: &str) -> Option<Duration> {
    let mut sum = Duration::ZERO;
    for part in text.split_whitespace() {
        let at = part.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = part[..at].parse().ok()?;
        let unit = match &part[at..] {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "min" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        sum += Duration::from_secs_f64(number * unit);
    }
    (!sum.is_zero()).then_some(sum)
}

fn examine_threads(config: &Config) -> Finding {
    let (safe, by) = limits::threads();
    let wanted = config.sessions.max_live;
    if wanted + 64 > safe {
        let found = format!("{safe} are safe here (by {by}), sessions.max_live is {wanted}");
        return finding("threads", Level::Warning, found, format!("lower sessions.max_live, or raise {by}"));
    }
    finding("threads", Level::Good, format!("{safe} are safe here (by {by}), sessions.max_live is {wanted}"), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_times_are_read() {
        for (text, seconds) in
            [("1min 30s", Some(90)), ("75s", Some(75)), ("2h 5min", Some(7500)), ("infinity", None), ("", None)]
        {
            assert_eq!(unit_time(text).map(|d| d.as_secs()), seconds, "{text}");
        }
    }

    #[test]
    fn an_empty_state_directory_is_healthy_but_for_what_the_machine_says() {
        let dir = tempfile::tempdir().expect("a directory");
        let bad: Vec<_> =
            examine(&Config::default(), dir.path(), None).into_iter().filter(|f| f.level == Level::Bad).collect();
        assert_eq!(bad, []);
    }

    #[test]
    fn a_foreign_database_and_a_held_lock_are_found() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("ostler.db"), vec![7u8; 4096]).expect("written");
        let held = lock::Lock::take(dir.path()).expect("the lock");
        let found = examine(&Config::default(), dir.path(), None);
        let level = |name| found.iter().find(|f| f.name == name).map(|f| f.level);
        assert_eq!((level("lock"), level("database")), (Some(Level::Bad), Some(Level::Bad)));
        drop(held);
    }
}
