//! Performing what the machine says in a stop, and watching what still runs meanwhile.

use std::time::{Duration, Instant};

use super::{Coordinator, News, PROGRESS, Timer, millis};
use crate::agent::Interrupt;
use crate::daemon::delivery::Message;
use crate::daemon::report::Report;
use crate::daemon::{hook_events, notify, watchdog};
use crate::exit;
use crate::model::event::{HookEvent, StopReason, Urgency};
use crate::model::lifecycle::{Action, Event, Phase};
use crate::store::{Admission, StopNote};
use crate::thread;

impl Coordinator {
    /// Does what the machine says.
    pub(super) fn perform(&mut self, action: Action) {
        let ctx = self.ctx.clone();
        let Some(stop) = self.machine.stop() else { return };
        crate::failpoint::hit_word("act", &action);
        match action {
            Action::CloseAdmission => {
                ctx.store.set_admission(Admission::Stopping);
                ctx.handlers.stop_timers();
                self.report = Some(Report::begin(&ctx, stop, self.machine.phase()));
                self.timers.set(Timer::Progress, self.ctx.now());
                log::info!(
                    "stop: {} ({}), at most {} s",
                    stop.reason,
                    stop.urgency,
                    self.ctx.left(stop.deadline).as_secs()
                );
            }
            Action::TellManager => {
                notify::stopping(self.ctx.left(stop.deadline));
                let code = if stop.reason == StopReason::Restart { exit::RESTART } else { exit::FAILURE };
                watchdog::arm(stop.deadline, code);
            }
            Action::MarkRunning => {
                let note = StopNote {
                    reason: stop.reason,
                    urgency: stop.urgency,
                    deadline_at: self.ctx.wall() + millis(self.ctx.left(stop.deadline)),
                };
                match ctx.store.until(self.ctx.now() + ctx.config().shutdown.close).mark_running(note) {
                    Ok(n) => log::info!("stop: {n} running sessions are marked"),
                    Err(e) => log::error!("stop: the marks could not be written, the next boot derives them: {e}"),
                }
                crate::failpoint::hit("stop", "marked");
            }
            Action::HoldEnds => self.delivery.tell(Message::HoldEnds),
            Action::ReleaseEnds => self.delivery.tell(Message::ReleaseEnds),
            Action::CallShutdownHooks(until) => self.call_hooks(HookEvent::Shutdown, until, Event::ShutdownHooksEnded),
            Action::CloseWorkers => ctx.registry.close_all(),
            Action::RefreshMarks => {
                crate::failpoint::hit("stop", "timeout");
                if let Err(e) =
                    ctx.store.until(self.ctx.now() + ctx.config().shutdown.close).refresh_marks(stop.reason.mark())
                {
                    log::error!("stop: the marks could not be renewed: {e}");
                }
            }
            Action::Interrupt(until) => ctx.registry.interrupt_running(Interrupt::Cancel(until)),
            Action::Kill => ctx.registry.hurry(self.ctx.now(), true),
            Action::Abandon => {
                let given_up = ctx.registry.abandon();
                if !given_up.is_empty() {
                    let keys: Vec<&str> = given_up.iter().take(20).map(|(_, key)| key.as_str()).collect();
                    log::error!("stop: {} workers were abandoned: {}", given_up.len(), keys.join(" "));
                }
                if let Some(report) = &mut self.report {
                    report.abandoned(given_up);
                }
            }
            Action::NoteAbandoned => {
                let sids = self.report.as_ref().map_or_else(Vec::new, Report::given_up);
                let patient = ctx.store.until(self.ctx.now() + ctx.config().shutdown.close / 4);
                if let Err(e) = patient.note_abandoned(sids) {
                    log::error!("stop: the abandoned sessions could not be noted: {e}");
                }
            }
            Action::Sweep(until) => ctx.registry.hurry(until, false),
            Action::CloseActivations => {
                crate::failpoint::hit("stop", "swept");
                let patient = ctx.store.until(self.ctx.now() + ctx.config().shutdown.close);
                match patient.close_activations(stop.reason, ctx.config().sessions.stuck_threshold.into()) {
                    Ok(n) => log::info!("stop: {n} activations closed"),
                    Err(e) => log::error!("stop: the ends could not be written, the next boot writes them: {e}"),
                }
            }
            Action::DeliverEnds(_) => {
                crate::failpoint::hit("stop", "ended");
                let news = self.news.0.clone();
                self.delivery.tell(Message::Drain(Box::new(move || {
                    let _ = news.try_send(News::Life(Event::EndsDelivered));
                })));
            }
            Action::CallStopped(until) => {
                // No event is delivered after this.
                self.delivery.tell(Message::Halt);
                self.ctx.handlers.stop_calling();
                self.call_hooks(HookEvent::Stopped, until, Event::StoppedHooksEnded);
            }
            Action::CloseStore(until) => self.close_store(until),
            Action::Leave => self.leave = true,
        }
    }

    /// Calls the handlers of one of the stop's own events; the machine is told when they are done.
    fn call_hooks(&mut self, kind: HookEvent, until: Instant, done: Event) {
        let Some(stop) = self.machine.stop() else { return };
        let blocking = self.ctx.registry.blocking();
        let fields = match kind {
            HookEvent::Stopped => serde_json::json!({
                "reason": stop.reason, "clean": !self.machine.abandoned(),
                "report": self.report.as_ref().map(|r| r.json(&self.ctx, None)),
            }),
            _ => serde_json::json!({
                "reason": stop.reason, "deadline_ms": millis(self.ctx.left(until)),
                "running": blocking.iter().map(|b| b.key.as_str()).collect::<Vec<_>>(),
                "live": self.ctx.registry.numbers().live,
            }),
        };
        let news = self.news.0.clone();
        let event = hook_events::unjournalled(kind, "", fields, None);
        self.ctx.handlers.notify(
            event,
            Box::new(move |_| {
                let _ = news.try_send(News::Life(done));
            }),
        );
    }

    fn close_store(&mut self, until: Instant) {
        crate::failpoint::hit("stop", "stopped");
        self.delivery.tell(Message::Halt);
        self.ctx.handlers.stop_calling();
        let given_up = self.ctx.handlers.close(self.ctx.now() + self.ctx.left(until) / 4);
        self.hooks_abandoned = given_up > 0;
        // What was only queued for a handler is known by now: it was answered before the threads ended.
        let (ended, end) = crossbeam_channel::bounded(1);
        self.delivery.tell(Message::End(Box::new(move || {
            let _ = ended.try_send(());
        })));
        let _ = end.recv_timeout(self.ctx.left(until) / 4);
        let now = self.machine.stop().is_some_and(|s| s.urgency == Urgency::Now);
        let clean = !self.machine.abandoned() && !self.hooks_abandoned && !now;
        let report = match &mut self.report {
            Some(report) => {
                report.finish(clean);
                report.json(&self.ctx, Some(self.ctx.now() + self.ctx.left(until) / 4))
            }
            None => serde_json::Value::Null,
        };
        self.ctx.set_report(report.clone());
        let store = self.ctx.store.until(until);
        let keep = self.ctx.config().retention.reports;
        let recorded = store.close_boot(clean, report, keep);
        if let Err(e) = &recorded {
            log::error!("stop: the clean record could not be written: {e}");
        }
        self.released = false;
        let news = self.news.0.clone();
        crate::failpoint::hit("stop", "recorded");
        let ctx = self.ctx.clone();
        let body = move || {
            // Streams end with the last events; one whose client does not read has a quarter of the time.
            ctx.hub.close();
            ctx.hub.wait_left(ctx.now() + ctx.left(until) / 4);
            let closed = store.close(until);
            if let Err(e) = &closed {
                log::error!("stop: the store could not be closed: {e}");
            }
            crate::failpoint::hit("stop", "closed");
            let _ = news.send_timeout(News::Closed(closed.is_ok() && recorded.is_ok()), Duration::from_secs(60));
        };
        if let Err(e) = self.ctx.runtime.spawn_own("close".into(), thread::IO_STACK, Box::new(body)) {
            log::error!("stop: no thread to close the store: {e}");
        }
    }

    /// Tells the machine what has ended.
    pub(super) fn look_stopping(&mut self) {
        let numbers = self.ctx.registry.numbers();
        let delivering = self.ctx.hub.delivering();
        if numbers.live == 0 && (delivering == 0 || self.machine.phase() != Phase::Draining) {
            self.step(Event::WorkersGone);
        } else if numbers.running == 0 && delivering == 0 && self.machine.phase() != Phase::Sweeping {
            self.step(Event::TurnsEnded);
        }
    }

    /// Tells everybody else how far it is, as long as it waits for turns and workers.
    pub(super) fn show_progress(&mut self, now: Instant) {
        if !matches!(self.machine.phase(), Phase::Draining | Phase::Interrupting | Phase::Sweeping) {
            return;
        }
        self.timers.set(Timer::Progress, now + PROGRESS);
        let blocking = self.ctx.registry.blocking();
        let first =
            blocking.first().map(|b| format!(", longest: {} for {} s", b.key, b.age.as_secs())).unwrap_or_default();
        notify::status(&format!("{}: {} turns run{first}", self.machine.phase(), blocking.len()));
        self.keep_facts();
    }

    /// What the watchdog writes when the deadline passes.
    pub(super) fn keep_facts(&self) {
        let blocking = self.ctx.registry.blocking();
        let keys: Vec<&str> = blocking.iter().take(20).map(|b| b.key.as_str()).collect();
        watchdog::facts(&format!(
            "ostler: the stop's deadline has passed in phase {}: {} turns run ({}); leaving\n",
            self.machine.phase(),
            blocking.len(),
            keys.join(" ")
        ));
    }
}
