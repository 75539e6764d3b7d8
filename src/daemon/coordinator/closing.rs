//! The last phase of a stop: the hooks' threads end, delivery notes which handlers it did not call, the report and the
//! clean record are written, and the store is closed. Each step runs on a thread of its own and has a quarter of the
//! remaining time.

use std::time::Instant;

use super::{Coordinator, Event, Timer};
use crate::daemon::context::Context;
use crate::daemon::delivery::Message;
use crate::daemon::report::Report;
use crate::model::event::Urgency;

/// The step in progress, with the deadline of all steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The hooks' threads end.
    Hooks(Instant),
    /// Delivery ends.
    Delivery(Instant),
    /// The report and the clean record are written.
    Record(Instant),
    /// The store is closed: the only step that a deadline may cut off.
    Store {
        /// The report and the clean record are written.
        recorded: bool,
    },
}

impl Coordinator {
    pub(super) fn begin_closing(&mut self, until: Instant) {
        crate::failpoint::hit("stop", "stopped");
        self.delivery.send(Message::Halt);
        self.ctx.handlers.stop_calling();
        self.closing = Some(Step::Hooks(until));
        self.released = false;
        self.aside_or_here("close", Event::HooksClosed(None), move |ctx| {
            let abandoned = ctx.handlers.close(ctx.now() + ctx.left(until) / 4);
            Event::HooksClosed(Some(abandoned))
        });
    }

    /// The hooks' threads have ended. Every queued call was answered before, so delivery knows which handlers were not
    /// called.
    pub(super) fn hooks_closed(&mut self, abandoned: Option<usize>) {
        let Some(Step::Hooks(until)) = self.closing else { return };
        self.hooks_abandoned = abandoned != Some(0);
        self.closing = Some(Step::Delivery(until));
        self.timers.set(Timer::DeliveryEnd, self.ctx.now() + self.ctx.left(until) / 4);
        let own = self.own.0.clone();
        self.delivery.send(Message::End(Box::new(move || {
            let _ = own.try_send(Event::DeliveryEnded);
        })));
    }

    /// Whether the stop did everything that a clean one does, up to here.
    pub(super) fn may_be_clean(&self) -> bool {
        let now = self.machine.stop().is_some_and(|s| s.urgency == Urgency::Now);
        !self.unclean && !self.machine.abandoned() && !self.hooks_abandoned && !now
    }

    /// Delivery has ended, or its time is over.
    pub(super) fn delivery_ended(&mut self) {
        let Some(Step::Delivery(until)) = self.closing else { return };
        self.timers.clear(Timer::DeliveryEnd);
        self.closing = Some(Step::Record(until));
        let clean = self.may_be_clean();
        let report = self.report.take();
        self.aside_or_here("record", Event::Recorded(false), move |ctx| {
            Event::Recorded(record(ctx, report, clean, until))
        });
    }

    /// The write of the report and the clean record is over. `done`: it succeeded.
    pub(super) fn recorded(&mut self, done: bool) {
        let Some(Step::Record(until)) = self.closing else { return };
        self.closing = Some(Step::Store { recorded: done });
        self.aside_or_here("close", Event::Closed(false), move |ctx| Event::Closed(close_store(ctx, until)));
    }
}

/// Writes the report and the clean record. Returns whether it succeeded.
fn record(ctx: &Context, report: Option<Report>, clean: bool, until: Instant) -> bool {
    let report = report.map_or(serde_json::Value::Null, |mut report| {
        report.finish(clean);
        report.json(ctx, Some(ctx.now() + ctx.left(until) / 4))
    });
    ctx.set_report(report.clone());
    let recorded = ctx.store.until(until).close_boot(clean, report, ctx.config().retention.reports);
    if let Err(e) = &recorded {
        log::error!("stop: cannot write the clean record: {e}");
    }
    crate::failpoint::hit("stop", "recorded");
    recorded.is_ok()
}

/// Ends the streams and closes the store. Returns whether it is closed.
fn close_store(ctx: &Context, until: Instant) -> bool {
    // Streams end after the last events; a stream whose client does not read has a quarter of the time.
    ctx.hub.close();
    ctx.hub.wait_left(ctx.now() + ctx.left(until) / 4);
    let closed = ctx.store.until(until).close(until);
    if let Err(e) = &closed {
        log::error!("stop: cannot close the store: {e}");
    }
    crate::failpoint::hit("stop", "closed");
    closed.is_ok()
}
