//! The daemon as a whole: status, health, stop, reload, hold, backup, reports.

use std::path::Path;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use serde_json::{Value, json};

use super::{Fault, Service};
use crate::clock;
use crate::daemon::context::{Reloaded, Request};
use crate::daemon::registry::Numbers;
use crate::model::keep_policy::StopRequest;
use crate::store::{Counts, JournalCounts};
use crate::thread;

/// How long the coordinator may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a reload may take.
const RELOAD: Duration = Duration::from_secs(120);
/// How long the store may take before it counts as not ready.
const READY: Duration = Duration::from_secs(2);
/// The longest wait for a stop's report: nobody waits beyond the stop.
const REPORT: Duration = Duration::from_secs(3600);
/// The most reports in one answer.
const REPORTS: usize = 100;

impl Service {
    /// The daemon's status.
    ///
    /// # Errors
    /// The store fails.
    pub fn status(&self) -> Result<Value, Fault> {
        let ctx = &self.ctx;
        let board = ctx.board();
        let (counts, journal, numbers) = self.counts()?;
        // A worker whose turn has just ended in the database is idle, although it has not said so yet.
        let idle = numbers.live.saturating_sub(usize::try_from(counts.running).unwrap_or(0));
        let (tally, hooks) = (ctx.store.tally(), &ctx.hooks);
        let pruned = tally.pruned;
        let stop = board.stop.map(|(reason, urgency, deadline_at)| {
            let blocking: Vec<Value> = ctx
                .registry
                .blocking()
                .into_iter()
                .map(|b| json!({ "key": b.key, "turn_id": b.turn_id, "age_ms": b.age.as_millis() as u64, "tool": b.tool }))
                .collect();
            json!({
                "reason": reason, "urgency": urgency, "agents": board.agents, "deadline_at": clock::rfc3339(deadline_at),
                "blocking": blocking,
            })
        });
        Ok(json!({
            "version": env!("CARGO_PKG_VERSION"), "pid": std::process::id(), "boot_id": ctx.boot_id, "phase": board.phase,
            "held": board.held, "started_at": clock::rfc3339(ctx.started_at), "supervised": ctx.supervised,
            "state_dir": ctx.state_dir, "config": ctx.config().file,
            "sessions": {
                "live": numbers.live, "kept": numbers.kept, "running": counts.running, "idle": idle,
                "queued": counts.queued, "waiting": numbers.waiting, "parked": counts.parked, "suspended": counts.suspended,
                "resume_pending": counts.resume_pending, "waiting_permission": ctx.registry.asking(),
            },
            "hooks": {
                "pending": journal.pending, "delivered": tally.delivered, "failed": journal.failed,
                "orphaned": tally.orphaned, "discarded": tally.discarded, "dropped": hooks.dropped(),
                "lost_threads": hooks.lost(), "off": hooks.is_off(),
            },
            "pruned": {
                "events": pruned.events, "ids": pruned.ids, "deliveries": pruned.deliveries, "set_aside": pruned.set_aside,
                "sessions": pruned.sessions, "rows": pruned.rows, "values": pruned.kv,
            },
            "threads": thread::count(), "thread_limit": thread::limit(), "listeners": ctx.hub.listeners(),
            "dropped_log_lines": crate::log::dropped(), "clock_problem": ctx.store.clock_problem().map(|p| p.to_string()),
            "bounds": ctx.bounds().told(), "stop": stop,
        }))
    }

    /// What is counted in the database and in memory: sessions, the journal, workers.
    ///
    /// # Errors
    /// The store fails.
    pub fn counts(&self) -> Result<(Counts, JournalCounts, Numbers), Fault> {
        Ok((self.ctx.store.counts()?, self.ctx.store.journal_counts()?, self.ctx.registry.numbers()))
    }

    /// Liveness: whether the coordinator and the store answered just now.
    #[must_use]
    pub fn health(&self) -> (bool, bool) {
        let (send, receive) = crossbeam_channel::bounded(1);
        let until = Instant::now() + PATIENCE;
        let asked = self.ctx.requests.send_deadline(Request::Ping(send), until);
        let coordinator = asked.is_ok() && receive.recv_deadline(until).is_ok();
        (coordinator, self.ctx.store.is_alive(PATIENCE))
    }

    /// Readiness: not while starting or stopping, nor while the store refuses messages; with the phase, and the reason
    /// where the store has one.
    #[must_use]
    pub fn readiness(&self) -> (bool, &'static str, Option<String>) {
        let board = self.ctx.board();
        let running = board.phase == "running" && board.stop.is_none();
        let reason = if running { self.ctx.store.trouble(READY) } else { None };
        (running && reason.is_none(), board.phase, reason)
    }

    /// Asks for a stop, or for a harder one; gives what is in force.
    ///
    /// # Errors
    /// The stop that is under way has another reason, or the daemon is leaving.
    pub fn stop(&self, asked: StopRequest) -> Result<StopRequest, Fault> {
        let answer = self.ask("the daemon is leaving", PATIENCE, |send| Request::Stop(asked, send))?;
        answer.map_err(|why| Fault::Conflict(why.to_owned()))?;
        let board = self.ctx.board();
        let (reason, urgency) = board.stop.map_or((asked.reason, asked.urgency), |(r, u, _)| (r, u.max(asked.urgency)));
        Ok(StopRequest { reason, urgency, agents: board.agents })
    }

    /// Reads the configuration and the scripts anew, and puts them in force, all or nothing.
    ///
    /// # Errors
    /// Something in them is wrong, or the daemon is stopping.
    pub fn reload(&self) -> Result<Reloaded, Fault> {
        let answer = self.ask("the daemon did not answer", RELOAD, Request::Reload)?;
        answer.map_err(|why| if self.ctx.board().stop.is_some() { Fault::Stopping(why) } else { Fault::Config(why) })
    }

    /// Starts no turns from now on, or starts them again.
    ///
    /// # Errors
    /// The daemon is stopping.
    pub fn hold(&self, hold: bool) -> Result<(), Fault> {
        if self.ctx.board().stop.is_some() {
            return Err(Fault::Stopping("the daemon is stopping".into()));
        }
        let gone = || Fault::Stopping("the daemon did not answer".into());
        self.ctx.requests.send_timeout(Request::Hold(hold), PATIENCE).map_err(|_| gone())?;
        // Answered once it holds: whoever asked may rely on it.
        self.ask("the daemon did not answer", PATIENCE, Request::Ping)
    }

    /// Asks the coordinator, and waits for its answer.
    fn ask<T>(&self, gone: &str, patience: Duration, request: impl FnOnce(Sender<T>) -> Request) -> Result<T, Fault> {
        let (send, receive) = crossbeam_channel::bounded(1);
        let gone = || Fault::Stopping(gone.to_owned());
        self.ctx.requests.send_timeout(request(send), PATIENCE).map_err(|_| gone())?;
        receive.recv_timeout(patience).map_err(|_| gone())
    }

    /// Writes a copy of the database to an absolute path where nothing is; gives its size in bytes.
    ///
    /// # Errors
    /// The path is relative or taken, or the copy fails.
    pub fn backup(&self, path: &Path) -> Result<u64, Fault> {
        if !path.is_absolute() {
            return Err(Fault::Parameter("path: an absolute path is needed".into()));
        }
        if path.exists() {
            return Err(Fault::Conflict(format!("{}: it is there already", path.display())));
        }
        // Not the store's fault, and nothing that a second try would mend.
        let failed = |why: String| Fault::Conflict(format!("{why}; the copy is written by the daemon's user"));
        self.ctx.store.backup(path).map_err(|e| failed(e.to_string()))?;
        Ok(std::fs::metadata(path).map_or(0, |m| m.len()))
    }

    /// The reports of the newest stops.
    ///
    /// # Errors
    /// The store fails.
    pub fn reports(&self) -> Result<Vec<Value>, Fault> {
        Ok(self.ctx.store.reports(None, REPORTS)?)
    }

    /// The report of a boot's stop; with `wait`, that of the running boot once it is complete.
    ///
    /// # Errors
    /// There is none, or the store fails.
    pub fn report(&self, boot: &str, wait: bool) -> Result<Value, Fault> {
        let report = if wait && boot == self.ctx.boot_id {
            self.ctx.wait_report(REPORT)
        } else {
            self.ctx.store.reports(Some(boot), 1)?.pop()
        };
        report.ok_or(Fault::NotFound)
    }
}
