//! The coordinator's slow work: reads and writes of the store, each on a thread of its own.
//!
//! Each operation has an owner, an [`OpQueue`](crate::model::op_queue): it is requested, begun, and complete with its
//! event. The event also comes if the operation could not begin or panicked.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::{Coordinator, Event, Timer, reloaded_text};
use crate::config::Resume;
use crate::daemon::context::{Context, RETIRE, Reloaded};
use crate::daemon::delivery::Message;
use crate::daemon::registry::WorkRequest;
use crate::daemon::{dirs, hook_events, notify, prune, reload};
use crate::model::event::HookEvent;
use crate::model::lifecycle::Phase;
use crate::model::schedule::{self, Refused, Retry, after_refusal, probation_ends, retry_after};
use crate::store::{Overlooked, Pruned};
use crate::thread;

/// Sends its event when it is dropped, so an operation has an outcome even if it panics.
struct Outcome {
    to: Sender<Event>,
    event: Option<Event>,
}

impl Drop for Outcome {
    fn drop(&mut self) {
        if let Some(event) = self.event.take() {
            let _ = self.to.send_timeout(event, Duration::from_secs(60));
        }
    }
}

impl Coordinator {
    /// Runs an operation on a thread of its own. `lost` is its outcome if it panics.
    pub(super) fn aside(
        &self,
        name: &str,
        lost: Option<Event>,
        body: impl FnOnce(&Arc<Context>) -> Option<Event> + Send + 'static,
    ) -> io::Result<()> {
        let (ctx, to) = (self.ctx.clone(), self.own.0.clone());
        let job = Box::new(move || {
            let mut outcome = Outcome { to, event: lost };
            outcome.event = body(&ctx);
        });
        let started = self.ctx.runtime.spawn_own(name.to_owned(), thread::DEEP_STACK, job);
        started.map(drop).inspect_err(|e| log::error!("{name}: cannot start a thread: {e}"))
    }

    /// As [`Self::aside`], for the operations that a stop must not skip: if no thread can be started, the operation
    /// runs on the coordinator's thread, within its own time limit.
    pub(super) fn aside_or_here(
        &mut self,
        name: &str,
        lost: Event,
        body: impl FnOnce(&Arc<Context>) -> Event + Send + 'static,
    ) {
        let body = Arc::new(Mutex::new(Some(body)));
        let there = body.clone();
        let started = self.aside(name, Some(lost), move |ctx| taken(&there).map(|body| body(ctx)));
        if started.is_err()
            && let Some(body) = taken(&body)
        {
            let outcome = body(&self.ctx);
            self.here.push_back(outcome);
        }
    }

    /// Notes a sign of life for the next boot. If no thread can be started, the next minute's note replaces it.
    pub(super) fn note_alive(&mut self) {
        self.signs_of_life.request(None);
        if !self.signs_of_life.begin() {
            return;
        }
        let noted = self.aside("alive", Some(Event::AliveNoted), |ctx| {
            if let Err(e) = ctx.store.note_alive() {
                log::warn!("cannot note the sign of life: {e}");
            }
            Some(Event::AliveNoted)
        });
        if noted.is_err() {
            let _ = self.signs_of_life.complete();
        }
    }

    /// Ends the probation of a session that has run long enough.
    pub(super) fn look_at_probation(&mut self, now: Instant) {
        let Some((_, since)) = self.ctx.registry.probation() else { return };
        if let Some(at) = probation_ends(since, now) {
            if !self.timers.is_set(Timer::Probation) {
                self.timers.set(Timer::Probation, at);
            }
            return;
        }
        let Some(sid) = self.ctx.registry.take_probation(since) else { return };
        let stood = self.aside("probation", None, move |ctx| {
            // If this write fails, the end of its turn does it.
            match ctx.store.end_probation(sid) {
                Ok(()) => ctx.registry.end_probation(sid),
                Err(e) => log::warn!("cannot note the end of a session's probation: {e}"),
            }
            None
        });
        if stood.is_err() {
            self.ctx.registry.begin_probation(sid);
        }
    }

    /// Each session with waiting work gets a worker. Interrupted turns are paced, and after recent deaths of the daemon
    /// they begin later.
    pub(super) fn schedule(&mut self, deaths: u32) {
        self.continuations.hold_off(deaths, self.ctx.now());
        self.search_waiting();
    }

    /// Searches the store for waiting work.
    pub(super) fn search_waiting(&mut self) {
        self.schedules.request(None);
        self.begin_schedule();
    }

    fn begin_schedule(&mut self) {
        if self.machine.phase() != Phase::Running || !self.schedules.begin() {
            return;
        }
        if self.aside("schedule", Some(Event::Scheduled(None)), |ctx| Some(Event::Scheduled(waiting(ctx)))).is_err() {
            self.scheduled(None);
        }
    }

    /// The search for waiting work is over. `None`: the store failed.
    pub(super) fn scheduled(&mut self, interrupted: Option<Vec<WorkRequest>>) {
        let _ = self.schedules.complete();
        match interrupted {
            Some(interrupted) => {
                self.continuations.extend(interrupted);
                self.set_continuations();
                self.begin_schedule();
            }
            None => self.retry(Retry::Schedule, Timer::Schedule),
        }
    }

    /// Sets the timer for the next interrupted turn, if turns may begin.
    pub(super) fn set_continuations(&mut self) {
        match self.continuations.due().filter(|_| self.is_open()) {
            Some(at) => self.timers.set(Timer::Continue, at),
            None => self.timers.clear(Timer::Continue),
        }
    }

    /// Reloads configuration and hooks.
    pub(super) fn reload(&mut self, asker: Option<Sender<Result<Reloaded, String>>>) {
        if self.machine.stop().is_some() {
            log::warn!("reload refused: the daemon is stopping");
            if let Some(asker) = asker {
                let _ = asker.try_send(Err(STOPPING.into()));
            }
            return;
        }
        self.reloads.request(asker);
        self.begin_reload();
    }

    fn begin_reload(&mut self) {
        if !self.reloads.begin() {
            return;
        }
        notify::reloading();
        let lost = Event::Prepared(Err("internal error, see the daemon's log".into()));
        let prepare = |ctx: &Arc<Context>| Some(Event::Prepared(reload::prepare(ctx).map(Box::new)));
        if let Err(e) = self.aside("reload", Some(lost), prepare) {
            self.prepared(Err(format!("cannot start a thread to read it: {e}")));
        }
    }

    /// Puts a prepared reload in force, unless a stop has begun meanwhile.
    pub(super) fn prepared(&mut self, prepared: Result<Box<reload::Prepared>, String>) {
        let askers = self.reloads.complete();
        if self.machine.stop().is_some() {
            return log::warn!("reload refused, the old configuration and hooks stay: {STOPPING}");
        }
        let outcome = prepared.and_then(|new| reload::put_in_force(&self.ctx, *new));
        notify::ready();
        match &outcome {
            Ok(r) => {
                log::info!("reloaded: {}", reloaded_text(r));
                let fields = serde_json::json!({ "changed": r.changed });
                let event = hook_events::unjournalled(HookEvent::Reload, "", fields, None);
                self.ctx.handlers.notify(event, Box::new(|_| ()));
                self.prune();
                if r.changed.iter().any(|key| key == "sessions.park_after") {
                    // Idle workers compute their time to park again.
                    self.ctx.registry.wake_all();
                }
            }
            Err(e) => log::error!("reload refused, the old configuration and hooks stay: {e}"),
        }
        for asker in askers {
            let _ = asker.try_send(outcome.clone());
        }
        self.begin_reload();
    }

    /// A stop has begun: refuses the waiting reloads; a reload in progress is not put in force.
    pub(super) fn refuse_reloads(&mut self) {
        for asker in self.reloads.dismiss() {
            let _ = asker.try_send(Err(STOPPING.into()));
        }
    }

    /// Begins a round of retention.
    pub(super) fn prune(&mut self) {
        self.prunes.request(None);
        self.begin_prune();
    }

    fn begin_prune(&mut self) {
        if self.machine.phase() != Phase::Running || !self.prunes.begin() {
            return;
        }
        self.timers.clear(Timer::Prune);
        if self.aside("prune", Some(Event::Pruned(None)), |ctx| Some(Event::Pruned(prune::step(ctx)))).is_err() {
            let _ = self.prunes.complete();
            self.retry(Retry::Retention, Timer::Prune);
        }
    }

    /// A step of retention ended.
    pub(super) fn pruned_step(&mut self, step: Option<Pruned>) {
        let _ = self.prunes.complete();
        if self.pruned.went_on(step) {
            self.prunes.request(None);
        }
        self.timers.set(Timer::Prune, self.ctx.now() + schedule::RETENTION);
        self.begin_prune();
    }

    /// Removes files of deleted sessions.
    pub(super) fn tidy(&mut self) {
        self.tidies.request(None);
        self.begin_tidy();
    }

    fn begin_tidy(&mut self) {
        if self.machine.phase() != Phase::Running || !self.tidies.begin() {
            return;
        }
        // Also set while it runs: a worker that ends meanwhile asks again.
        self.timers.set(Timer::Tidy, self.ctx.now() + schedule::RETENTION);
        if self.aside("tidy", Some(Event::Tidied(true)), |ctx| Some(Event::Tidied(dirs::step(ctx)))).is_err() {
            self.tidied(true);
        }
    }

    /// A step of the removal ended. `left`: some files are still there.
    pub(super) fn tidied(&mut self, left: bool) {
        let _ = self.tidies.complete();
        if !left {
            self.timers.clear(Timer::Tidy);
        }
        self.begin_tidy();
    }

    /// A commit was in doubt: once the store answers again, reads what that commit did.
    pub(super) fn doubt(&mut self) {
        self.doubts.request(None);
        self.begin_doubt();
    }

    fn begin_doubt(&mut self) {
        // A drain too waits for the end of a turn that a commit in doubt kept.
        let unheard = matches!(self.machine.phase(), Phase::Starting | Phase::Closing | Phase::Ended);
        if unheard || !self.doubts.begin() {
            return;
        }
        let look = |ctx: &Arc<Context>| Some(Event::Undoubted(read_overlooked(ctx)));
        if self.aside("doubt", Some(Event::Undoubted(None)), look).is_err() {
            self.undoubted(None);
        }
    }

    /// The outcome of commits in doubt is read. `None`: the store does not answer yet.
    pub(super) fn undoubted(&mut self, overlooked: Option<Overlooked>) {
        let _ = self.doubts.complete();
        let Some(overlooked) = overlooked else {
            return self.retry(Retry::Doubt, Timer::Doubt);
        };
        for sid in overlooked.gone {
            self.ctx.registry.retire(sid, self.ctx.now() + RETIRE);
        }
        for (sid, tid) in overlooked.cancelled {
            self.ctx.cancel_turn(sid, tid);
        }
        self.ctx.hub.reread(overlooked.newest);
        // It may have made an old delivery due again.
        self.delivery.send(Message::Rescan);
        if self.machine.phase() == Phase::Running {
            self.schedule(0);
        }
        self.begin_doubt();
    }

    /// No worker thread can be started for a session: fails its oldest waiting message. The messages behind it are
    /// tried again.
    pub(super) fn refuse_waiting(&mut self, request: WorkRequest, why: String) {
        self.to_refuse.push_back((request, why));
        self.refusals.request(None);
        self.begin_refusal();
    }

    fn begin_refusal(&mut self) {
        if !self.refusals.begin() {
            return;
        }
        let Some((request, why)) = self.to_refuse.pop_front() else { return drop(self.refusals.complete()) };
        let lost = request.clone();
        let of = request.clone();
        let refuse = move |ctx: &Arc<Context>| {
            let refused = match ctx.store.fail_waiting(of.sid, "overloaded", why) {
                Ok(false) => Refused::All,
                Ok(true) => Refused::More,
                Err(e) => {
                    log::error!(key = of.key; "cannot fail the waiting message, tried again later: {e}");
                    Refused::Failed
                }
            };
            Some(Event::Refused(of, refused))
        };
        if self.aside("refuse", Some(Event::Refused(lost, Refused::Failed)), refuse).is_err() {
            let _ = self.refusals.complete();
            // The others would get no thread either.
            let others = std::mem::take(&mut self.to_refuse).into_iter().map(|(request, _)| request);
            self.not_refused.extend(std::iter::once(request).chain(others));
            self.refuse_later(retry_after(Retry::Refusal));
        }
    }

    fn refuse_later(&mut self, pause: Duration) {
        if !self.timers.is_set(Timer::Refuse) {
            self.timers.set(Timer::Refuse, self.ctx.now() + pause);
        }
    }

    /// The outcome of [`Self::refuse_waiting`].
    pub(super) fn refused(&mut self, request: WorkRequest, refused: Refused) {
        let _ = self.refusals.complete();
        match after_refusal(refused) {
            None => {}
            Some(Duration::ZERO) => self.ctx.registry.want(request),
            Some(pause) => {
                self.not_refused.push(request);
                self.refuse_later(pause);
            }
        }
        if !self.to_refuse.is_empty() {
            self.refusals.request(None);
            self.begin_refusal();
        }
    }
}

fn taken<T>(from: &Mutex<Option<T>>) -> Option<T> {
    from.lock().unwrap_or_else(PoisonError::into_inner).take()
}

const STOPPING: &str = "the daemon is stopping";

/// Reads the waiting work. Sessions with a waiting message get a worker at once; sessions with an interrupted turn are
/// returned.
fn waiting(ctx: &Context) -> Option<Vec<WorkRequest>> {
    let config = ctx.config();
    let since =
        config.sessions.resume_window.map_or(0, |w| ctx.store.now() - i64::try_from(w.as_millis()).unwrap_or(i64::MAX));
    let marked = (config.sessions.resume == Resume::Auto).then_some(since);
    let (mut after, mut interrupted) = (0, Vec::new());
    loop {
        let page = ctx
            .store
            .wanted(after, 1000, marked)
            .inspect_err(|e| log::error!("cannot read the waiting work: {e}"))
            .ok()?;
        let Some(last) = page.last() else { return Some(interrupted) };
        after = last.sid;
        for w in page {
            let request = WorkRequest { sid: w.sid, key: w.key, auto_continue: marked.is_some() };
            if w.queued {
                ctx.registry.want(request);
            } else {
                interrupted.push(request);
            }
        }
    }
}

/// What commits in doubt did, as soon as the store answers again. `None`: it does not answer yet.
fn read_overlooked(ctx: &Context) -> Option<Overlooked> {
    if !ctx.store.answers(retry_after(Retry::Doubt)) {
        return None;
    }
    let live: Vec<i64> = ctx.registry.live().into_keys().collect();
    ctx.store.overlooked(&live).inspect_err(|e| log::error!("what a commit in doubt did cannot be read: {e}")).ok()
}
