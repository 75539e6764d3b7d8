//! What the coordinator has done aside: reads and writes that may take their time, each on a thread of its own.
//!
//! Whatever is in progress has an owner, an [`OpQueue`](crate::model::op_queue): it is asked for, begun, and complete when
//! its news comes, which comes also when it could not be begun or failed in the middle.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::{ALONE, Coordinator, DOUBT, NO_THREAD, News, PRUNE, Timer, restart_text};
use crate::config::Resume;
use crate::daemon::context::{Context, RETIRE, Reloaded};
use crate::daemon::registry::WorkRequest;
use crate::daemon::{dirs, hook_events, notify, prune, reload};
use crate::model::event::HookEvent;
use crate::model::lifecycle::Phase;
use crate::model::recovery::continuation_delay_s;
use crate::store::{Overlooked, Pruned};
use crate::thread;

/// Told when it is dropped, so that what is aside has its news even if it panics.
struct Told {
    to: Sender<News>,
    news: Option<News>,
}

impl Drop for Told {
    fn drop(&mut self) {
        if let Some(news) = self.news.take() {
            let _ = self.to.send_timeout(news, Duration::from_secs(60));
        }
    }
}

impl Coordinator {
    /// Runs something that may take its time on a thread of its own. `lost` is its news if it does not come to its end.
    pub(super) fn aside(
        &self,
        name: &str,
        lost: Option<News>,
        body: impl FnOnce(&Arc<Context>) -> Option<News> + Send + 'static,
    ) -> io::Result<()> {
        let (ctx, to) = (self.ctx.clone(), self.news.0.clone());
        let job = Box::new(move || {
            let mut told = Told { to, news: lost };
            told.news = body(&ctx);
        });
        let started = self.ctx.runtime.spawn_own(name.to_owned(), thread::DEEP_STACK, job);
        started.map(drop).inspect_err(|e| log::error!("{name}: no thread: {e}"))
    }

    /// A sign of life, for the next boot.
    pub(super) fn note_alive(&self) {
        // Without a thread the next minute does it.
        let _ = self.aside("alive", None, |ctx| {
            if let Err(e) = ctx.store.note_alive() {
                log::warn!("the sign of life cannot be noted: {e}");
            }
            None
        });
    }

    /// A session that ran alone may have stood its time.
    pub(super) fn look_alone(&mut self, now: Instant) {
        let Some((_, since)) = self.ctx.registry.probation() else { return };
        if since + ALONE > now {
            if !self.timers.is_set(Timer::Alone) {
                self.timers.set(Timer::Alone, since + ALONE);
            }
            return;
        }
        let Some(sid) = now.checked_sub(ALONE).and_then(|before| self.ctx.registry.take_probation(before)) else {
            return;
        };
        let stood = self.aside("alone", None, move |ctx| {
            // Where that cannot be written its turn's end does it.
            match ctx.store.clear_solo(sid) {
                Ok(()) => ctx.registry.end_probation(sid),
                Err(e) => log::warn!("a session still counts as running alone: {e}"),
            }
            None
        });
        if stood.is_err() {
            self.ctx.registry.begin_probation(sid);
        }
    }

    /// Every session in which something waits gets a worker, each on its own; interrupted turns are paced, and begin after
    /// as much longer as more boots have died lately.
    pub(super) fn schedule(&mut self, deaths: u32) {
        let at = self.ctx.now() + Duration::from_secs(continuation_delay_s(deaths).into());
        self.next_continuation = Some(self.next_continuation.map_or(at, |old| old.max(at)));
        self.schedules.request(None);
        self.begin_schedule();
    }

    pub(super) fn begin_schedule(&mut self) {
        if self.machine.phase() != Phase::Running || !self.schedules.begin() {
            return;
        }
        if self.aside("schedule", Some(News::Scheduled(None)), |ctx| Some(News::Scheduled(wanted(ctx)))).is_err() {
            self.scheduled(None);
        }
    }

    /// What waits was looked for; `None`: it could not be read.
    pub(super) fn scheduled(&mut self, wishes: Option<Vec<WorkRequest>>) {
        let _ = self.schedules.complete();
        match wishes {
            Some(wishes) => {
                let mut known: BTreeSet<i64> = self.continuations.iter().map(|c| c.sid).collect();
                self.continuations.extend(wishes.into_iter().filter(|w| known.insert(w.sid)));
                self.set_continuations();
                self.begin_schedule();
            }
            None => self.timers.set(Timer::Schedule, self.ctx.now() + DOUBT),
        }
    }

    /// Interrupted turns wait for their time, while turns may begin.
    pub(super) fn set_continuations(&mut self) {
        match self.next_continuation.filter(|_| self.is_open() && !self.continuations.is_empty()) {
            Some(at) => self.timers.set(Timer::Continue, at),
            None => self.timers.clear(Timer::Continue),
        }
    }

    /// Configuration and hooks are to be read anew.
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
        let lost = News::Prepared(Err("it failed by a fault of the daemon, see its log".into()));
        let prepare = |ctx: &Arc<Context>| Some(News::Prepared(reload::prepare(ctx).map(Box::new)));
        if let Err(e) = self.aside("reload", Some(lost), prepare) {
            self.prepared(Err(format!("no thread to read it: {e}")));
        }
    }

    /// What a reload read is put in force, unless a stop has begun meanwhile.
    pub(super) fn prepared(&mut self, prepared: Result<Box<reload::Prepared>, String>) {
        let askers = self.reloads.complete();
        if self.machine.stop().is_some() {
            return log::warn!("reload refused, the old configuration and hooks stay: {STOPPING}");
        }
        let outcome = prepared.and_then(|new| reload::put_in_force(&self.ctx, *new));
        notify::ready();
        match &outcome {
            Ok(r) => {
                log::info!("reloaded: {} keys changed{}", r.changed.len(), restart_text(r));
                let fields = serde_json::json!({ "changed": r.changed });
                let event = hook_events::unjournalled(HookEvent::Reload, "", fields, None);
                self.ctx.handlers.notify(event, Box::new(|_| ()));
                self.prune();
                if r.changed.iter().any(|key| key == "sessions.park_after") {
                    // Whoever rests until its old time looks at the new one.
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

    /// A stop has begun: a reload that was asked for is refused, one that is in progress comes to nothing.
    pub(super) fn refuse_reloads(&mut self) {
        for asker in self.reloads.dismiss() {
            let _ = asker.try_send(Err(STOPPING.into()));
        }
    }

    /// Something may be pruned.
    pub(super) fn prune(&mut self) {
        self.prunes.request(None);
        self.begin_prune();
    }

    fn begin_prune(&mut self) {
        if self.machine.phase() != Phase::Running || !self.prunes.begin() {
            return;
        }
        self.timers.clear(Timer::Prune);
        if self.aside("prune", Some(News::Pruned(None)), |ctx| Some(News::Pruned(prune::step(ctx)))).is_err() {
            let _ = self.prunes.complete();
            self.timers.set(Timer::Prune, self.ctx.now() + NO_THREAD);
        }
    }

    /// A step of retention ended.
    pub(super) fn pruned_step(&mut self, step: Option<Pruned>) {
        let _ = self.prunes.complete();
        if self.pruned.went_on(step) {
            self.prunes.request(None);
        }
        self.timers.set(Timer::Prune, self.ctx.now() + PRUNE);
        self.begin_prune();
    }

    /// Files of deleted sessions may be removed.
    pub(super) fn tidy(&mut self) {
        self.tidies.request(None);
        self.begin_tidy();
    }

    fn begin_tidy(&mut self) {
        if self.machine.phase() != Phase::Running || !self.tidies.begin() {
            return;
        }
        // Set while it runs as well: a worker that ends meanwhile asks again.
        self.timers.set(Timer::Tidy, self.ctx.now() + PRUNE);
        if self.aside("tidy", Some(News::Tidied(true)), |ctx| Some(News::Tidied(dirs::step(ctx)))).is_err() {
            self.tidied(true);
        }
    }

    /// Files were removed; some may be left.
    pub(super) fn tidied(&mut self, left: bool) {
        let _ = self.tidies.complete();
        if !left {
            self.timers.clear(Timer::Tidy);
        }
        self.begin_tidy();
    }

    /// A commit was in doubt: once the store answers again it says what nobody was told of.
    pub(super) fn doubt(&mut self) {
        self.doubts.request(None);
        self.begin_doubt();
    }

    fn begin_doubt(&mut self) {
        if self.machine.phase() != Phase::Running || !self.doubts.begin() {
            return;
        }
        let look = |ctx: &Arc<Context>| Some(News::Undoubted(look_for_overlooked(ctx)));
        if self.aside("doubt", Some(News::Undoubted(None)), look).is_err() {
            self.undoubted(None);
        }
    }

    /// The store said what nobody was told of, or does not answer yet.
    pub(super) fn undoubted(&mut self, overlooked: Option<Overlooked>) {
        let _ = self.doubts.complete();
        let Some(overlooked) = overlooked else {
            return self.timers.set(Timer::Doubt, self.ctx.now() + DOUBT);
        };
        for sid in overlooked.gone {
            self.ctx.registry.retire(sid, self.ctx.now() + RETIRE);
        }
        for (sid, tid) in overlooked.cancelled {
            self.ctx.cancel_turn(sid, tid);
        }
        if self.machine.phase() == Phase::Running {
            self.schedule(0);
        }
        self.begin_doubt();
    }

    /// A session for which no thread is to be had, now or soon: the sender of what waits first is told. What waits behind it
    /// is tried anew.
    pub(super) fn refuse_waiting(&mut self, wish: WorkRequest, why: String) {
        let told = wish.clone();
        let refused = self.aside("refuse", None, move |ctx| {
            match ctx.store.fail_waiting(told.sid, "overloaded", why) {
                Ok(false) => {}
                Ok(true) => ctx.registry.want(told),
                Err(e) => {
                    log::error!(key = told.key; "what waits there cannot be refused, tried again: {e}");
                    // Not at once: this is where neither a thread nor the store is to be had.
                    std::thread::park_timeout(NO_THREAD);
                    ctx.registry.want(told);
                }
            }
            None
        });
        if refused.is_err() {
            self.timers.set(Timer::Admit, self.ctx.now() + NO_THREAD);
            self.ctx.registry.want(wish);
        }
    }
}

const STOPPING: &str = "the daemon is stopping";

/// Reads what waits: who has something queued is given its wish at once, whose turn was interrupted is returned.
fn wanted(ctx: &Context) -> Option<Vec<WorkRequest>> {
    let config = ctx.config();
    let since =
        config.sessions.resume_window.map_or(0, |w| ctx.store.now() - i64::try_from(w.as_millis()).unwrap_or(i64::MAX));
    let marked = (config.sessions.resume == Resume::Auto).then_some(since);
    let (mut after, mut interrupted) = (0, Vec::new());
    loop {
        let page = ctx
            .store
            .wanted(after, 1000, marked)
            .inspect_err(|e| log::error!("what waits cannot be read: {e}"))
            .ok()?;
        let Some(last) = page.last() else { return Some(interrupted) };
        after = last.sid;
        for w in page {
            let wish = WorkRequest { sid: w.sid, key: w.key, auto_continue: marked.is_some() };
            if w.queued {
                ctx.registry.want(wish);
            } else {
                interrupted.push(wish);
            }
        }
    }
}

/// Once the store answers again: what a commit in doubt did after all. `None`: it does not answer yet.
fn look_for_overlooked(ctx: &Context) -> Option<Overlooked> {
    if !ctx.store.answers(DOUBT) {
        return None;
    }
    let live: Vec<i64> = ctx.registry.live().into_keys().collect();
    ctx.store.overlooked(&live).inspect_err(|e| log::error!("what a commit in doubt did cannot be read: {e}")).ok()
}
