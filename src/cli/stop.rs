//! `stop`, `restart`, `status --watch`: shows what a stop waits for, and waits until the process is gone.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use ureq::http::Method;

use super::args::{Restart, Stop};
use super::render::{STATUS, blocking, count, millis, number, text};
use super::{Done, Doors, Failure, PROBE, Ui, doctor, report};
use crate::client::{Client, ClientError};
use crate::clock;
use crate::model::event::{StopReason, Urgency};
use crate::model::keep_policy::Agents;
use crate::thread;

/// The status is read this often; the end of the process is noticed at once.
const LOOK: Duration = Duration::from_millis(250);
/// The least time between two lines of JSON.
const CHANGE: Duration = Duration::from_secs(1);
/// How long one reading of the status may take.
const ANSWER: Duration = Duration::from_secs(3);
/// How long after its deadline a stop counts as hung.
const GRACE: Duration = Duration::from_secs(15);
/// How long a stop without a known deadline may take.
const UNKNOWN: Duration = Duration::from_secs(600);
/// How long it may take until the next daemon is ready.
const NEXT_BOOT: Duration = Duration::from_secs(300);

/// `stop`. `named`: the daemon was chosen by its socket or URL, so that its state directory is not known.
pub fn stop(client: &Client, a: &Stop, named: bool, doors: &Doors, ui: &mut Ui) -> Done {
    client.answers(PROBE).map_err(|e| Failure::api("daemon", &e))?;
    if (a.state_dir.is_some() || !named)
        && let Err(e) = client.status(STATUS)
        && e.is_unreachable()
    {
        let found = doctor::ground(None, a.state_dir.as_deref(), None);
        let found = found.map_err(|why| Failure::coded(super::exit::FAILURE, why))?;
        // What is said of the daemon stands, if there is nothing to end.
        return doctor::end_agents(&found.state_dir, a.plain.json, doors, ui)?.ok_or_else(|| Failure::api("stop", &e));
    }
    let urgency = match (a.now, a.fast) {
        (true, _) => Urgency::Now,
        (_, true) => Urgency::Fast,
        _ => Urgency::Graceful,
    };
    let gone = bring_down(client, StopReason::Shutdown, urgency, a.keep.then_some(Agents::Keep), ui)?;
    verdict(&gone, "stopped", a.plain.json, ui)
}

/// `restart`
pub fn restart(client: &Client, a: &Restart, ui: &mut Ui) -> Done {
    let mut gone = bring_down(client, StopReason::Restart, Urgency::Graceful, a.end.then_some(Agents::End), ui)?;
    let ready = next_boot(client, &gone)?;
    if gone.report.is_none() {
        gone.report = client.get(&format!("/v1/reports/{}", gone.boot)).ok();
    }
    gone.took = gone.since.elapsed();
    verdict(&gone, &format!("restarted (boot {ready})"), a.plain.json, ui)
}

/// A boot that is no more.
struct Gone {
    boot: String,
    /// A service manager starts the next one; otherwise it is the same process.
    supervised: bool,
    /// The process, if it is on this machine.
    process: Option<OwnedFd>,
    since: Instant,
    took: Duration,
    report: Option<Value>,
    /// The urgency that it reported last.
    urgency: String,
}

/// Says how the stop went. Without a report (the exit cut the answer off) only a `now` is known to be unclean.
fn verdict(gone: &Gone, word: &str, json: bool, ui: &mut Ui) -> Done {
    let took = millis(i64::try_from(gone.took.as_millis()).unwrap_or(i64::MAX));
    let clean = match &gone.report {
        Some(r) => r["clean"] == true,
        None => gone.urgency != Urgency::Now.as_str(),
    };
    let code = u8::from(!clean);
    if json {
        ui.json(gone.report.as_ref().unwrap_or(&Value::Null))?;
        return Ok(code);
    }
    let outcomes = gone.report.as_ref().map(report::outcomes).filter(|o| !o.is_empty());
    let sessions = outcomes.map(|o| format!(": {o}")).unwrap_or_default();
    let not = if clean { "" } else { ", not clean" };
    ui.say(format!("{word} after {took}{not}{sessions}"))?;
    Ok(code)
}

/// Asks for a stop and waits until the process is gone.
fn bring_down(
    client: &Client,
    reason: StopReason,
    urgency: Urgency,
    agents: Option<Agents>,
    ui: &mut Ui,
) -> Result<Gone, Failure> {
    let fail = |e: &ClientError| Failure::api(if reason == StopReason::Restart { "restart" } else { "stop" }, e);
    let before = client.status(STATUS).map_err(|e| fail(&e))?;
    let mut watch = BootWatch::at(client, &before);
    let since = Instant::now();
    let mut body = json!({ "reason": reason.as_str(), "urgency": urgency.as_str() });
    if let Some(agents) = agents {
        body["agents"] = agents.as_str().into();
    }
    client.post("/v1/stop", Some(&body)).map_err(|e| fail(&e))?;
    let report = wait_for_report(client, &watch.boot);
    let mut progress = Progress::new(ui);
    let mut limit: Option<Instant> = None;
    let mut said = urgency.as_str().to_owned();
    loop {
        match watch.next(LOOK) {
            Step::Gone => break,
            Step::Silent => {}
            Step::Status(status) => {
                limit = deadline(&status).or(limit);
                if status["stop"].is_object() {
                    said = text(&status, "/stop/urgency");
                }
                progress.show(&status, ui);
            }
        }
        if Instant::now() > limit.unwrap_or(since + UNKNOWN) + GRACE {
            progress.clear();
            return Err(Failure::new("stop", "the daemon still runs after its deadline; its log says what hangs"));
        }
    }
    progress.clear();
    let took = since.elapsed();
    // The answer was sent before the exit: it is here by now, or will never come.
    let report = report.and_then(|r| r.recv_timeout(Duration::from_secs(1)).ok());
    let supervised = before["supervised"] == true;
    Ok(Gone { boot: watch.boot, supervised, process: watch.process, since, took, report, urgency: said })
}

/// The report is asked for while the daemon still answers: `wait=1` holds the answer back until it is complete.
fn wait_for_report(client: &Client, boot: &str) -> Option<Receiver<Value>> {
    let (send, receive) = crossbeam_channel::bounded(1);
    let (client, path) = (client.clone(), format!("/v1/reports/{boot}?wait=1"));
    let ask = move || {
        if let Ok(reply) = client.request(Method::GET, &path, None, UNKNOWN) {
            let _ = send.send(reply.body);
        }
    };
    thread::spawn("report", thread::DEEP_STACK, ask).ok().map(|_| receive)
}

/// The instant at which a stop must be over, by our own clock.
fn deadline(status: &Value) -> Option<Instant> {
    let at: jiff::Timestamp = status.pointer("/stop/deadline_at")?.as_str()?.parse().ok()?;
    let left = u64::try_from(at.as_millisecond() - clock::now()).unwrap_or(0);
    Some(Instant::now() + Duration::from_millis(left))
}

fn next_boot(client: &Client, old: &Gone) -> Result<String, Failure> {
    let until = Instant::now() + NEXT_BOOT;
    loop {
        if let Ok(reply) = client.request(Method::GET, "/v1/status", None, ANSWER) {
            let boot = text(&reply.body, "/boot_id");
            let phase = text(&reply.body, "/phase");
            if boot != old.boot && phase != "starting" {
                return Ok(boot);
            }
        }
        if !old.supervised && old.process.as_ref().is_some_and(|process| ended(process, Duration::ZERO)) {
            let why =
                "the daemon has ended and nothing starts it again; its log says why. Start it with `ostler serve`";
            return Err(Failure::new("restart", why));
        }
        if Instant::now() > until {
            let why = format!("the daemon has not started again within {NEXT_BOOT:?}");
            return Err(Failure::new("restart", why));
        }
        std::thread::sleep(LOOK);
    }
}

/// `status --watch`: for people a moving line, else a line of JSON for each change.
pub fn watch(client: &Client, json: bool, ui: &mut Ui) -> Done {
    let first = client.status(STATUS).map_err(|e| Failure::api("status", &e))?;
    let mut watch = BootWatch::at(client, &first);
    if json {
        watch_json(&mut watch, first, ui)?;
        return Ok(0);
    }
    let mut progress = Progress::new(ui);
    progress.show(&first, ui);
    loop {
        match watch.next(LOOK) {
            Step::Gone => break,
            Step::Silent => {}
            Step::Status(status) => progress.show(&status, ui),
        }
    }
    progress.clear();
    ui.note("status: the daemon is gone");
    Ok(0)
}

fn watch_json(watch: &mut BootWatch<'_>, first: Value, ui: &mut Ui) -> Result<(), Failure> {
    let mut last = first;
    ui.json_line(&last)?;
    loop {
        // Flushed, because the reader must not wait until a buffer is full.
        ui.out.flush()?;
        match watch.next(CHANGE) {
            Step::Gone => return Ok(()),
            Step::Silent => {}
            Step::Status(status) if status == last => {}
            Step::Status(status) => {
                ui.json_line(&status)?;
                last = status;
            }
        }
    }
}

enum Step {
    /// The process ended.
    Gone,
    /// It is there but does not answer.
    Silent,
    Status(Value),
}

/// Watches one boot until it is gone.
struct BootWatch<'a> {
    client: &'a Client,
    boot: String,
    /// Of the process, if it is on this machine.
    process: Option<OwnedFd>,
}

impl<'a> BootWatch<'a> {
    fn at(client: &'a Client, status: &Value) -> Self {
        Self { client, boot: text(status, "/boot_id"), process: process(client, status) }
    }

    fn next(&mut self, wait: Duration) -> Step {
        match &self.process {
            Some(process) if ended(process, wait) => return Step::Gone,
            Some(_) => {}
            None => std::thread::sleep(wait),
        }
        match self.client.request(Method::GET, "/v1/status", None, ANSWER) {
            Ok(reply) if text(&reply.body, "/boot_id") != self.boot => Step::Gone,
            Ok(reply) => Step::Status(reply.body),
            Err(e) if e.is_unreachable() && self.process.is_none() => Step::Gone,
            Err(_) => Step::Silent,
        }
    }
}

/// A handle of the daemon's process, if its pid is valid here: the socket may come from a container with its own pids.
fn process(client: &Client, status: &Value) -> Option<OwnedFd> {
    client.socket()?;
    let pid = i32::try_from(number(status, "/pid")).ok().and_then(rustix::process::Pid::from_raw)?;
    let name = |of: &str| std::fs::read(format!("/proc/{of}/comm")).ok();
    if name(&pid.as_raw_nonzero().to_string())? != name("self")? {
        return None;
    }
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
}

/// Waits for the end of a process, at most so long.
fn ended(process: &OwnedFd, wait: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    let seconds = i64::try_from(wait.as_secs()).unwrap_or(i64::MAX);
    let wait = Timespec { tv_sec: seconds, tv_nsec: i64::from(wait.subsec_nanos()) };
    // Interrupted by a signal: it is checked again next time.
    poll(&mut fds, Some(&wait)).is_ok_and(|n| n > 0)
}

/// The progress: a bar on a terminal, else a line for each change.
struct Progress {
    bar: Option<ProgressBar>,
    since: Instant,
    last: String,
}

impl Progress {
    fn new(ui: &Ui) -> Self {
        let bar = ui.err_tty.then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            bar.set_style(style("{msg}"));
            bar
        });
        Self { bar, since: Instant::now(), last: String::new() }
    }

    fn show(&mut self, status: &Value, ui: &mut Ui) {
        let blocking = blocking(status);
        let phase = text(status, "/phase");
        let Some(bar) = &self.bar else {
            // Ages change all the time; only the phase and the blocking keys and tools count.
            let list = status.pointer("/stop/blocking").and_then(Value::as_array);
            let who = list.into_iter().flatten().map(|b| format!("{} {}", text(b, "/key"), text(b, "/tool")));
            let now = format!("{} {phase} {}", sessions(status), who.collect::<Vec<_>>().join(", "));
            if now != self.last {
                self.last = now;
                let what = if blocking.is_empty() { sessions(status) } else { blocking.join("; ") };
                ui.note(format!("{phase}: {what}"));
            }
            return;
        };
        match deadline(status) {
            Some(until) => {
                let elapsed = self.since.elapsed();
                let whole = elapsed + until.saturating_duration_since(Instant::now());
                bar.set_style(style("{bar:24} {msg}"));
                bar.set_length(u64::try_from(whole.as_millis()).unwrap_or(u64::MAX));
                bar.set_position(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
            }
            None => self.since = Instant::now(),
        }
        let what = if blocking.is_empty() { sessions(status) } else { blocking.join("; ") };
        bar.set_message(format!("{phase}: {what}"));
        bar.tick();
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A template that does not parse falls back to the default look.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn sessions(status: &Value) -> String {
    let n = |name: &str| number(status, &format!("/sessions/{name}"));
    format!("{} live, {} running, {} queued", count(n("live"), "session"), n("running"), n("queued"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_end_of_a_process_is_noticed_at_once() {
        use std::process::{Command, Stdio};
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        assert!(!ended(&process, Duration::from_millis(10)), "it waits for input");
        drop(child.stdin.take());
        assert!(ended(&process, Duration::from_secs(20)));
        child.wait().unwrap();
    }

    #[test]
    fn another_process_with_the_daemons_pid_is_not_waited_for() {
        let client = Client::unix(std::path::Path::new("/s"));
        let ours = json!({ "pid": std::process::id() });
        assert!(process(&client, &ours).is_some(), "the same program");
        let parent = json!({ "pid": std::os::unix::process::parent_id() });
        let name = |of: &str| std::fs::read(format!("/proc/{of}/comm")).ok();
        let same = name(&parent["pid"].to_string()) == name("self");
        assert_eq!(process(&client, &parent).is_some(), same);
        assert!(process(&Client::url("http://h", None).unwrap(), &ours).is_none(), "another machine");
        assert!(process(&client, &json!({})).is_none());
    }
}
