//! Performs the machine's actions in a stop, and watches the turns and workers that still run.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Coordinator, Event, Timer, millis};
use crate::agent::Interrupt;
use crate::daemon::delivery::Message;
use crate::daemon::report::Report;
use crate::daemon::{hook_events, notify, sweep, watchdog};
use crate::exit;
use crate::model::event::{HookEvent, StopReason};
use crate::model::keep_policy::Agents;
use crate::model::lifecycle::{self, Action, Phase, Stop};
use crate::model::schedule::PROGRESS;
use crate::store::{Admission, StopNote, Store};

/// How long agents may work on alone over a restart, at most.
const RESTARTS: Duration = Duration::from_secs(120);
/// How long workers may take to let their agents go.
const LET_GO: Duration = Duration::from_secs(2);

impl Coordinator {
    /// Performs the machine's actions in order. An action on a thread of its own holds up the actions after it.
    pub(super) fn perform_next(&mut self) {
        while !self.performing.is_in_progress()
            && let Some(action) = self.actions.pop_front()
        {
            self.perform(action);
        }
    }

    /// Performs an action with the store on a thread of its own, within the given time. `body` returns whether
    /// the stop can still be a clean one.
    fn perform_aside(&mut self, name: &str, within: Duration, body: impl FnOnce(&Store) -> bool + Send + 'static) {
        let until = self.ctx.now() + within;
        self.performing.request(None);
        let _ = self.performing.begin();
        self.aside_or_here(name, Event::Performed { clean: false }, move |ctx| Event::Performed {
            clean: body(&ctx.store.until(until)),
        });
    }

    fn perform(&mut self, action: Action) {
        let ctx = self.ctx.clone();
        let Some(stop) = self.machine.stop() else { return };
        crate::failpoint::hit_word("act", &action);
        match action {
            Action::CloseAdmission => {
                ctx.store.set_admission(Admission::Stopping);
                ctx.handlers.stop_timers();
                self.report = Some(Report::begin(&ctx, stop, self.machine.phase()));
                self.timers.set(Timer::Progress, self.ctx.now());
                log::info!("stop: {} ({}), at most {} s", stop.reason, stop.urgency, ctx.left(stop.deadline).as_secs());
            }
            Action::TellManager => {
                notify::stopping(ctx.left(stop.deadline));
                let code = if stop.reason == StopReason::Restart { exit::RESTART } else { exit::FAILURE };
                watchdog::arm(stop.deadline, code);
            }
            Action::MarkRunning => self.mark_running(stop),
            Action::HoldEnds => self.delivery.send(Message::HoldEnds),
            Action::ReleaseEnds => self.delivery.send(Message::ReleaseEnds),
            Action::CallShutdownHooks(until) => {
                self.call_hooks(HookEvent::Shutdown, until, lifecycle::Event::ShutdownHooksEnded)
            }
            Action::CloseWorkers => ctx.registry.close_all(self.keeps()),
            Action::RefreshMarks => {
                crate::failpoint::hit("stop", "timeout");
                let keep = self.keeps();
                self.perform_aside("marks", ctx.config().shutdown.close, move |store| {
                    if let Err(e) = store.refresh_marks(stop.reason.mark(), keep) {
                        log::error!("stop: cannot update the marks: {e}");
                    }
                    true
                });
            }
            Action::Interrupt(until) => ctx.registry.interrupt_running(Interrupt::Cancel(until)),
            Action::Kill => ctx.registry.hurry(self.ctx.now(), true),
            Action::Abandon => {
                let abandoned = ctx.registry.abandon();
                if !abandoned.is_empty() {
                    let keys: Vec<&str> = abandoned.iter().take(20).map(|(_, key)| key.as_str()).collect();
                    log::error!("stop: {} workers were abandoned: {}", abandoned.len(), keys.join(" "));
                }
                if let Some(report) = &mut self.report {
                    report.abandon(abandoned);
                }
            }
            Action::NoteAbandoned => {
                let sids = self.report.as_ref().map_or_else(Vec::new, Report::abandoned);
                self.perform_aside("abandoned", ctx.config().shutdown.close / 4, move |store| {
                    if let Err(e) = store.note_abandoned(sids) {
                        log::error!("stop: cannot note the abandoned sessions: {e}");
                    }
                    // The machine knows of them.
                    true
                });
            }
            Action::Sweep(until) => ctx.registry.hurry(until, false),
            Action::CloseActivations => {
                crate::failpoint::hit("stop", "swept");
                let threshold = ctx.config().sessions.stuck_threshold.into();
                // An agent that has become ready since is ended by its worker.
                let spare = ctx.shims().filter(|_| self.keeps());
                let spare = spare.map(|shims| (ctx.registry.spared(), shims.own_machine()));
                self.perform_aside("ends", ctx.config().shutdown.close, move |store| {
                    let closed = store.close_activations(stop.reason, threshold, spare);
                    match &closed {
                        Ok(n) => log::info!("stop: {n} activations closed"),
                        Err(e) => log::error!("stop: cannot write the ends, the next boot writes them: {e}"),
                    }
                    closed.is_ok()
                });
            }
            Action::DeliverEnds(_) => {
                crate::failpoint::hit("stop", "ended");
                let own = self.own.0.clone();
                self.delivery.send(Message::Drain(Box::new(move || {
                    let _ = own.try_send(Event::Life(lifecycle::Event::EndsDelivered));
                })));
            }
            Action::CallStopped(until) => {
                // No event is delivered after this.
                self.delivery.send(Message::Halt);
                self.ctx.handlers.stop_calling();
                self.call_hooks(HookEvent::Stopped, until, lifecycle::Event::StoppedHooksEnded);
            }
            Action::LetGo => self.let_go(stop.reason),
            Action::CloseStore(until) => self.begin_closing(until),
            Action::Leave => self.leave = true,
        }
    }

    /// Calls the handlers of one of the stop's own events; `done` goes to the machine at their end.
    fn call_hooks(&mut self, kind: HookEvent, until: Instant, done: lifecycle::Event) {
        let Some(stop) = self.machine.stop() else { return };
        let blocking = self.ctx.registry.blocking();
        let fields = match kind {
            HookEvent::Stopped => serde_json::json!({
                "reason": stop.reason, "clean": self.may_be_clean(),
                "report": self.report.as_ref().map(|r| r.json(&self.ctx, None)),
            }),
            _ => serde_json::json!({
                "reason": stop.reason, "deadline_ms": millis(self.ctx.left(until)),
                "running": blocking.iter().map(|b| b.key.as_str()).collect::<Vec<_>>(),
                "live": self.ctx.registry.numbers().live,
            }),
        };
        let own = self.own.0.clone();
        let event = hook_events::unjournalled(kind, "", fields, None);
        self.ctx.handlers.notify(
            event,
            Box::new(move |_| {
                let _ = own.try_send(Event::Life(done));
            }),
        );
    }

    fn mark_running(&mut self, stop: Stop) {
        let deadline_at = self.ctx.wall() + millis(self.ctx.left(stop.deadline));
        let keep = self.keeps();
        let note = StopNote { reason: stop.reason, urgency: stop.urgency, deadline_at, keep };
        let ctx = self.ctx.clone();
        self.perform_aside("mark", self.ctx.config().shutdown.close, move |store| {
            match store.mark_running(note) {
                Ok(n) => log::info!("stop: {n} running sessions are marked"),
                Err(e) => log::error!("stop: cannot write the marks, the next boot derives them: {e}"),
            }
            crate::failpoint::hit("stop", "marked");
            // Whatever becomes of this daemon from here on, its agents do not outlive a stop that ends them.
            if let Some(shims) = ctx.shims() {
                let alone = if keep { ctx.config().agents.orphan_after.min(RESTARTS) } else { Duration::ZERO };
                shims.set_orphan(alone);
            }
            true
        });
    }

    /// Whether agents that may outlive the daemon do.
    pub(super) fn keeps(&self) -> bool {
        self.agents == Agents::Keep && self.ctx.shims().is_some()
    }

    /// Agents are to be ended after all, in a stop that had left them alone.
    pub(super) fn spare_none(&self) {
        if let Some(shims) = self.ctx.shims() {
            shims.set_orphan(Duration::ZERO);
        }
        self.ctx.registry.spare_none();
    }

    /// The last act before the store is closed: agents that outlive the daemon are let go. A worker that does not come is
    /// left: what it had not committed the next boot reads again.
    fn let_go(&mut self, reason: StopReason) {
        if !self.keeps() {
            // What was left alone and is to be ended after all is closed like the rest.
            let overtaken = reason == StopReason::Restart && self.overtaken;
            // Agents of earlier boots may have nobody who ends them: those that were not attached to yet.
            let earlier = self.adopted || self.ctx.sweeping.load(Ordering::Acquire);
            let abandoned = self.report.as_ref().map_or_else(Vec::new, Report::abandoned);
            if !overtaken && !earlier && abandoned.is_empty() {
                return;
            }
            let (ctx, threshold) = (self.ctx.clone(), self.ctx.config().sessions.stuck_threshold.into());
            return self.perform_aside("leftovers", self.ctx.config().shutdown.close / 4, move |store| {
                if earlier {
                    sweep::cut_short(&ctx, false);
                }
                sweep::end_abandoned(&ctx, store, &abandoned);
                !overtaken || store.close_activations(StopReason::Shutdown, threshold, None).is_ok()
            });
        }
        if let Some(report) = &mut self.report {
            report.keep(self.ctx.registry.spared());
        }
        self.gone_on = true;
        let count = self.ctx.registry.let_go();
        log::info!("stop: {count} agents go on");
        if count > 0 {
            self.letting_go = true;
            self.performing.request(None);
            let _ = self.performing.begin();
            self.timers.set(Timer::LetGo, self.ctx.now() + LET_GO);
        }
    }

    /// Whether all agents are let go, or the time for it is over.
    pub(super) fn look_let_go(&mut self, late: bool) {
        let left = self.ctx.registry.spared().len();
        if self.letting_go && (left == 0 || late) {
            self.letting_go = false;
            self.timers.clear(Timer::LetGo);
            if left > 0 {
                log::warn!("stop: {left} workers are left with agents that go on");
            }
            self.here.push_back(Event::Performed { clean: true });
        }
    }

    /// Tells the machine if all turns or all workers have ended.
    pub(super) fn check_ended(&mut self) {
        let numbers = self.ctx.registry.numbers();
        // What a turn says that goes on after the restart is not waited for.
        let delivering = match self.ctx.hub.delivering() {
            0 => 0,
            _ => self.ctx.hub.delivering_but(&self.ctx.registry.spared_keys()),
        };
        if numbers.live == 0 && (delivering == 0 || self.machine.phase() != Phase::Draining) {
            self.step(lifecycle::Event::WorkersGone);
        } else if numbers.running == 0 && delivering == 0 && self.machine.phase() != Phase::Sweeping {
            self.step(lifecycle::Event::TurnsEnded);
        }
    }

    /// Shows the progress of the stop, as long as it waits for turns and workers.
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

    /// Updates the text that the watchdog prints when the deadline passes.
    pub(super) fn keep_facts(&self) {
        let blocking = self.ctx.registry.blocking();
        let keys: Vec<&str> = blocking.iter().take(20).map(|b| b.key.as_str()).collect();
        watchdog::facts(&format!(
            "ostler: the stop's deadline has passed in phase {}: {} turns run ({}); exiting\n",
            self.machine.phase(),
            blocking.len(),
            keys.join(" ")
        ));
    }
}
