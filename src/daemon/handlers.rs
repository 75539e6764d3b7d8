//! The calls of the operator's handlers that the daemon's parts make. A test of the real parts passes its own.
//!
//! [`Hooks`] implements them. Its surface for the operator (the list of handlers, the swap of scripts) is no part of
//! this.

use std::time::{Duration, Instant};

use crate::hooks::{Delivered, Event, HandlerId, Hooks, Verdict};
use crate::model::event::HookEvent;

/// The operator's handlers. No call blocks but [`Self::close`]; each callback is called once, on whatever thread.
pub trait Handlers: Send + Sync {
    /// Whether a handler is registered for the event.
    fn has(&self, event: HookEvent) -> bool;

    /// Calls all handlers of an event that is not journalled, in order. Told: how many failed or were not called.
    fn notify(&self, event: Event, done: Box<dyn FnOnce(usize) + Send>);

    /// Calls one handler of a journalled event.
    fn deliver(&self, handler: &HandlerId, event: Event, done: Box<dyn FnOnce(Delivered) + Send>);

    /// Asks the handlers of a synchronous event, chained.
    fn ask(&self, event: Event, done: Box<dyn FnOnce(Verdict) + Send>);

    /// Within what time [`Self::ask`] answers in any case.
    fn patience(&self) -> Duration;

    /// Whether too many calls hang, so that no handler is called until scripts are loaded anew.
    fn is_off(&self) -> bool;

    /// From now on no run of a timer begins; a running one goes on.
    fn stop_timers(&self);

    /// From now on nothing but `stopped` is called: what waits is answered with `NotCalled`.
    fn stop_calling(&self);

    /// Ends the threads, by the instant. Gives how many had to be abandoned.
    fn close(&self, until: Instant) -> usize;
}

impl Handlers for Hooks {
    fn has(&self, event: HookEvent) -> bool {
        Self::has(self, event)
    }

    fn notify(&self, event: Event, done: Box<dyn FnOnce(usize) + Send>) {
        Self::notify(self, event, done);
    }

    fn deliver(&self, handler: &HandlerId, event: Event, done: Box<dyn FnOnce(Delivered) + Send>) {
        Self::deliver(self, handler, event, done);
    }

    fn ask(&self, event: Event, done: Box<dyn FnOnce(Verdict) + Send>) {
        Self::ask(self, event, done);
    }

    fn patience(&self) -> Duration {
        Self::patience(self)
    }

    fn is_off(&self) -> bool {
        Self::is_off(self)
    }

    fn stop_timers(&self) {
        Self::stop_timers(self);
    }

    fn stop_calling(&self) {
        Self::stop_calling(self);
    }

    fn close(&self, until: Instant) -> usize {
        Self::close(self, until)
    }
}
