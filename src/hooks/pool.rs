//! The hook threads: which of them gets an event, which calls are overdue, and how all of it ends.
//!
//! The configured number of threads serves journalled and notifying events, chosen by key. One thread more serves the
//! synchronous events, and one more the runs of timers, so that no event waits for either. The watch thread sleeps
//! until the nearest call is overdue, the timer thread until the next timer is due. Without scripts there are no
//! threads. Lock order: the watch before a hook thread; no other lock is taken while one is held.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::bell::{Bell, TimerRun};
use super::hook_thread::{Full, HookThread};
use super::kick::Kick;
use super::scripts::{Plan, Scripts};
use super::stats::{HandlerInfo, Stats};
use super::task::{Shared, Task};
use super::timer::{self, Timed};
use super::{Delivered, Event, HandlerId, HookHost, Verdict, lock};
use crate::clock::Millis;
use crate::model::event::HookEvent;
use crate::thread;

/// Tasks that may wait for one hook thread.
const BOUND: usize = 1024;
/// Threads that may hang at once before the hooks are switched off.
const LOSSES: usize = 8;
/// How long after a call's timeout its thread is given up.
const GRACE: Duration = Duration::from_secs(1);

/// Limits that tests lower.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    pub grace: Duration,
    pub rest: Duration,
    pub bound: usize,
    pub losses: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { grace: GRACE, rest: super::stats::REST, bound: BOUND, losses: LOSSES }
    }
}

/// The hooks of a daemon. Cheap to clone; the threads end when the last clone is gone.
#[derive(Clone)]
pub struct Hooks {
    pool: Arc<Pool>,
    _guard: Arc<Guard>,
}

/// Ends the threads with the last clone of [`Hooks`].
struct Guard(Arc<Pool>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.begin_close();
    }
}

/// What the threads share.
pub(crate) struct Pool {
    pub shared: Shared,
    current: RwLock<Arc<Plan>>,
    events: AtomicU32,
    threads: OnceLock<Vec<Arc<HookThread>>>,
    tuning: Tuning,
    watch: Mutex<Watch>,
    watch_wake: Condvar,
    alive: Mutex<usize>,
    ended: Condvar,
    handles: Mutex<Vec<JoinHandle<()>>>,
    lost: AtomicUsize,
    off: AtomicBool,
    /// Held while the hooks are switched on or off, so that all threads are switched together.
    switch: Mutex<()>,
    /// The daemon stops: nothing is switched on again.
    ending: AtomicBool,
    dropped: AtomicU64,
    pub timers: Arc<Bell>,
}

#[derive(Default)]
struct Watch {
    next: Option<Instant>,
    closing: bool,
}

/// Counts one thread while it lives.
struct ThreadCount(Arc<Pool>);

impl Drop for ThreadCount {
    fn drop(&mut self) {
        // The watch ends when no call runs any more: this may have been the last.
        drop(lock(&self.0.watch));
        self.0.watch_wake.notify_all();
        *lock(&self.0.alive) -= 1;
        self.0.ended.notify_all();
    }
}

fn bit(event: HookEvent) -> u32 {
    1 << (event as u32)
}

/// Wraps a callback so that its panic (which the panic hook logs) does not end the hook thread that calls it.
fn contained<T: 'static>(done: Box<dyn FnOnce(T) + Send>) -> Box<dyn FnOnce(T) + Send> {
    Box::new(move |answer| drop(catch_unwind(AssertUnwindSafe(|| done(answer)))))
}

impl Hooks {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system has no threads to give.
    pub fn start(scripts: Scripts, host: Arc<dyn HookHost>, boot_id: &str) -> io::Result<Self> {
        Self::start_with(scripts, host, boot_id, Tuning::default())
    }

    pub(crate) fn start_with(
        scripts: Scripts,
        host: Arc<dyn HookHost>,
        boot_id: &str,
        tuning: Tuning,
    ) -> io::Result<Self> {
        let stats = Stats::with_rest(tuning.rest);
        let shared = Shared { host, boot_id: boot_id.to_owned(), stats, grace: tuning.grace, kick: Kick::new()? };
        let pool = Arc::new(Pool {
            shared,
            current: RwLock::new(Arc::clone(&scripts.plan)),
            events: AtomicU32::new(0),
            threads: OnceLock::new(),
            tuning,
            watch: Mutex::default(),
            watch_wake: Condvar::new(),
            alive: Mutex::new(0),
            ended: Condvar::new(),
            handles: Mutex::default(),
            lost: AtomicUsize::new(0),
            off: AtomicBool::new(false),
            switch: Mutex::new(()),
            ending: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            timers: Arc::default(),
        });
        let hooks = Self { _guard: Arc::new(Guard(Arc::clone(&pool))), pool };
        hooks.swap(scripts)?;
        Ok(hooks)
    }

    /// Whether a handler is registered for an event. Wait-free.
    #[must_use]
    pub fn has(&self, event: HookEvent) -> bool {
        self.pool.events.load(Ordering::Acquire) & bit(event) != 0
    }

    /// The handlers of an event, in calling order: priority, file order, order in the file.
    #[must_use]
    pub fn handlers(&self, event: HookEvent) -> Vec<HandlerId> {
        self.pool.plan().registered.of(event).map(|h| h.id.clone()).collect()
    }

    /// Calls all handlers of an event that is not journalled, in order, on the thread of its key. Never blocks; `done`
    /// is called once, with how many failed or were not called.
    pub fn notify(&self, event: Event, done: Box<dyn FnOnce(usize) + Send>) {
        if !self.has(event.kind) {
            return done(0);
        }
        let to = self.pool.thread_of(event.key.as_deref());
        self.pool.put(to, Task::Notify { event: Arc::new(event), left: None, failed: 0, done: contained(done) });
    }

    /// Calls one handler. Never blocks; `done` is called once, on any thread.
    pub fn deliver(&self, handler: &HandlerId, event: Event, done: Box<dyn FnOnce(Delivered) + Send>) {
        if self.pool.plan().registered.find(handler).is_none() {
            return done(Delivered::Orphaned);
        }
        let to = self.pool.thread_of(event.key.as_deref());
        self.pool.put(to, Task::Deliver { event: Arc::new(event), handler: handler.clone(), done: contained(done) });
    }

    /// Asks the handlers of a synchronous event, chained, on the thread of the synchronous ones. Never blocks; `done`
    /// is called once, at the latest when its own timeouts and those of the tasks before it have passed.
    pub fn ask(&self, event: Event, done: Box<dyn FnOnce(Verdict) + Send>) {
        if !self.has(event.kind) {
            return done(Verdict::Pass(None));
        }
        let to = self.pool.synchronous().cloned();
        self.pool.put(to, Task::Ask { event: Arc::new(event), left: None, answer: None, done: contained(done) });
    }

    /// The longest time within which [`Self::ask`] answers: each synchronous handler, for this task and those before
    /// it, takes all of its time, and a state has to be made for each.
    #[must_use]
    pub fn patience(&self) -> Duration {
        let plan = self.pool.plan();
        let waited_for = plan.registered.handlers.iter().filter(|h| h.id.event.is_synchronous());
        let one: Duration = waited_for.map(|h| h.timeout + self.pool.tuning.grace + plan.time_to_build()).sum();
        let before = self.pool.synchronous().map_or(0, |t| t.load());
        one.saturating_mul(u32::try_from(before).unwrap_or(u32::MAX).saturating_add(1))
    }

    /// Takes another set of scripts: running calls finish on the old set, later calls use the new one. The number of
    /// threads stays as the first scripts made it.
    ///
    /// # Errors
    /// The system has no threads to give (the first scripts of a daemon that had none): nothing has changed.
    pub fn swap(&self, scripts: Scripts) -> io::Result<()> {
        let pool = &self.pool;
        let Scripts { plan, states } = scripts;
        if !states.is_empty() && pool.threads.get().is_none() {
            // The thread of the timers' runs makes its state when the first timer runs.
            pool.start_threads(states.len() + 1)?;
        }
        let mut states = states.into_iter();
        for t in pool.threads() {
            t.adopt(Arc::clone(&plan), states.next());
        }
        let events = plan.registered.handlers.iter().fold(0, |bits, h| bits | bit(h.id.event));
        *pool.current.write().unwrap_or_else(PoisonError::into_inner) = plan;
        pool.events.store(events, Ordering::Release);
        pool.shared.stats.clear();
        pool.timers.ring();
        pool.switch_on();
        Ok(())
    }

    /// Every handler with its counts, in calling order; timers last, with the event `every`.
    #[must_use]
    pub fn list(&self) -> Vec<HandlerInfo> {
        self.pool.shared.stats.list(&self.pool.plan().registered)
    }

    /// How many notifications and timer runs were dropped because a queue was full or the hooks were switched off.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.pool.dropped.load(Ordering::Relaxed)
    }

    /// Threads that were given up and have not come back.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.pool.lost.load(Ordering::Relaxed)
    }

    /// Whether the hooks are off: too many threads hang, and no handler is called until scripts are reloaded.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.pool.off.load(Ordering::Acquire)
    }

    /// No run of a timer begins from now on; a run that began goes on.
    pub fn stop_timers(&self) {
        self.pool.ending.store(true, Ordering::Release);
        self.pool.timers.close();
        let plan = self.pool.plan();
        for task in self.pool.timer_runs().map(|t| t.stop()).unwrap_or_default() {
            task.not_called(&plan, "the daemon stops");
        }
    }

    /// Nothing but `stopped` is called from now on. Waiting tasks are answered with `NotCalled`; a running call goes on
    /// until its timeout, except that the run of a timer ends now, whatever it waits for.
    pub fn stop_calling(&self) {
        self.stop_timers();
        self.pool.shared.kick.kick();
        let plan = self.pool.plan();
        for t in self.pool.threads() {
            for task in t.stop() {
                task.not_called(&plan, "the hooks are closing");
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn pool_for_tests(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Ends the threads. Gives how many still ran at the instant and were abandoned.
    #[must_use]
    pub fn close(&self, until: Instant) -> usize {
        self.pool.begin_close();
        let mut alive = lock(&self.pool.alive);
        while *alive > 0 {
            let Some(left) = until.checked_duration_since(Instant::now()) else { break };
            alive = self.pool.ended.wait_timeout(alive, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let abandoned = *alive;
        drop(alive);
        for handle in lock(&self.pool.handles).drain(..) {
            // Ended threads are joined; others are detached.
            if abandoned == 0 || handle.is_finished() {
                let _ = handle.join();
            }
        }
        abandoned
    }
}

impl Timed for Pool {
    fn plan(&self) -> Arc<Plan> {
        self.plan()
    }

    fn bell(&self) -> &Bell {
        &self.timers
    }

    fn host(&self) -> &dyn HookHost {
        &*self.shared.host
    }

    fn run_timer(&self, name: &str, due: Millis) {
        self.put(self.timer_runs().cloned(), Task::Timer(TimerRun::new(name, due, &self.timers)));
    }
}

impl Pool {
    pub fn plan(&self) -> Arc<Plan> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn threads(&self) -> impl Iterator<Item = &Arc<HookThread>> {
        self.threads.get().into_iter().flatten()
    }

    /// The thread that serves a key; events without a key go to the first.
    fn thread_of(&self, key: Option<&str>) -> Option<Arc<HookThread>> {
        let threads = self.threads.get()?;
        let count = threads.len().saturating_sub(2).max(1);
        let nth = key.map_or(0, |key| {
            let mut hasher = DefaultHasher::new();
            key.hash(&mut hasher);
            usize::try_from(hasher.finish() % count as u64).unwrap_or(0)
        });
        threads.get(nth).cloned()
    }

    /// The thread of the synchronous events.
    fn synchronous(&self) -> Option<&Arc<HookThread>> {
        let threads = self.threads.get()?;
        threads.get(threads.len().checked_sub(2)?)
    }

    /// The thread of the timers' runs.
    fn timer_runs(&self) -> Option<&Arc<HookThread>> {
        self.threads.get()?.last()
    }

    /// Queues a task at a thread, or answers it at once.
    fn put(&self, to: Option<Arc<HookThread>>, task: Task) {
        let full = match to {
            Some(t) if !self.off.load(Ordering::Acquire) => t.push(task),
            _ => Err(Full(task)),
        };
        let Err(Full(task)) = full else { return };
        let why = if self.off.load(Ordering::Acquire) {
            "the hooks are switched off"
        } else {
            "too much waits, or they are closing"
        };
        if matches!(task, Task::Notify { .. } | Task::Timer(_)) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            if let Some(event) = task.event() {
                log::error!(target: "hook", event = event.kind.as_str(), key = event.key.as_deref().unwrap_or("");
                    "{} is dropped: {why}", event.kind);
            }
        }
        task.not_called(&self.plan(), why);
    }

    fn spawn(
        self: &Arc<Self>,
        name: impl Into<String>,
        stack: usize,
        body: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) -> io::Result<()> {
        *lock(&self.alive) += 1;
        let alive = ThreadCount(Arc::clone(self));
        let handle = thread::spawn_own(name, stack, move || {
            let alive = alive;
            body(&alive.0);
        })?;
        let mut handles = lock(&self.handles);
        handles.retain(|h| !h.is_finished());
        handles.push(handle);
        Ok(())
    }

    /// Starts all threads or none: a queue without a thread would hold its tasks for ever. No thread works before all are
    /// there; if one cannot be made, the others have ended when this returns.
    fn start_threads(self: &Arc<Self>, count: usize) -> io::Result<()> {
        let threads: Vec<_> = (0..count).map(|_| Arc::new(HookThread::new(self.tuning.bound))).collect();
        let all = count + 2;
        let (go, gone) = crossbeam_channel::bounded::<()>(all);
        if let Err(e) = self.spawn_threads(&threads, &gone) {
            drop(go);
            let waiting = std::mem::take(&mut *lock(&self.handles));
            for thread in waiting {
                let _ = thread.join();
            }
            return Err(e);
        }
        let _ = self.threads.set(threads);
        for _ in 0..all {
            let _ = go.send(());
        }
        Ok(())
    }

    /// The first threads: each works when it gets a word from the channel, and ends if the channel is dropped.
    fn spawn_threads(self: &Arc<Self>, threads: &[Arc<HookThread>], gone: &Receiver<()>) -> io::Result<()> {
        for (nth, t) in threads.iter().enumerate() {
            let (t, gone) = (Arc::clone(t), gone.clone());
            self.spawn(format!("hook-{nth}"), thread::DEEP_STACK, move |pool| {
                if gone.recv().is_ok() {
                    pool.work(&t, t.generation(), pool.plan());
                }
            })?;
        }
        for (name, life) in [("hook-watch", Self::watch as fn(&Arc<Self>)), ("hook-timer", |pool| timer::run(&**pool))]
        {
            let gone = gone.clone();
            self.spawn(name, thread::IO_STACK, move |pool| {
                if gone.recv().is_ok() {
                    life(pool);
                }
            })?;
        }
        Ok(())
    }

    /// Starts another thread on the queue of a thread that was given up.
    fn restart(self: &Arc<Self>, nth: usize) -> io::Result<()> {
        let Some(t) = self.threads.get().and_then(|threads| threads.get(nth)).cloned() else { return Ok(()) };
        let (generation, plan) = (t.generation(), self.plan());
        self.spawn(format!("hook-{nth}"), thread::DEEP_STACK, move |pool| pool.work(&t, generation, plan))
    }

    /// The life of a hook thread.
    fn work(&self, of: &HookThread, generation: u64, plan: Arc<Plan>) {
        if of.work(generation, plan, &self.shared, &|lost_at| self.begun(lost_at)) {
            self.lost.fetch_sub(1, Ordering::AcqRel);
            log::warn!(target: "hook", "a hook thread that was given up came back and ended");
        }
    }

    /// A call began that is to be given up at the instant: the watch may have to wake earlier.
    fn begun(&self, lost_at: Instant) {
        let mut watch = lock(&self.watch);
        if watch.next.is_none_or(|next| lost_at < next) {
            watch.next = Some(lost_at);
            self.watch_wake.notify_one();
        }
    }

    /// The life of the watch thread.
    fn watch(self: &Arc<Self>) {
        let mut watch = lock(&self.watch);
        // When closing it goes on as long as a call runs, so that whoever waits for its answer gets it.
        loop {
            let now = Instant::now();
            if watch.closing && self.threads().all(|t| t.lost_at(now).is_none()) {
                return;
            }
            if watch.next.is_some_and(|next| next <= now) {
                let threads = self.threads.get().map_or(&[][..], Vec::as_slice);
                let overdue: Vec<usize> =
                    (0..threads.len()).filter(|nth| threads[*nth].lost_at(now).is_some_and(|at| at <= now)).collect();
                watch.next = threads.iter().filter_map(|t| t.lost_at(now)).filter(|at| *at > now).min();
                if !overdue.is_empty() {
                    // Answers are given without the lock: whoever gets them may ask again at once.
                    drop(watch);
                    for nth in overdue {
                        self.replace(nth, now);
                    }
                    watch = lock(&self.watch);
                }
                continue;
            }
            watch = match watch.next {
                Some(next) => {
                    let left = next.saturating_duration_since(now);
                    self.watch_wake.wait_timeout(watch, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.watch_wake.wait(watch).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Gives up an overdue thread and starts another, or switches the hooks off.
    fn replace(self: &Arc<Self>, nth: usize, now: Instant) {
        let _switch = lock(&self.switch);
        let Some(overdue) = self.threads.get().and_then(|threads| threads.get(nth)) else { return };
        let lost = self.lost.fetch_add(1, Ordering::AcqRel) + 1;
        if overdue.give_up(now, &self.shared).is_none() {
            // It came back at the last moment.
            self.lost.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        log::error!(target: "hook", hook_thread = nth, lost = lost; "a hook thread hangs and is given up ({lost} by now)");
        let started =
            if lost < self.tuning.losses { self.restart(nth) } else { Err(io::Error::other("too many hang")) };
        if let Err(e) = started {
            self.off.store(true, Ordering::Release);
            log::error!(target: "hook", lost = lost; "HOOKS ARE SWITCHED OFF until the scripts are mended and reloaded: {e}");
            let plan = self.plan();
            for (n, t) in self.threads().enumerate() {
                for task in if n == nth { t.desert() } else { t.stop() } {
                    task.not_called(&plan, "the hooks are switched off");
                }
            }
        }
    }

    /// Other scripts are there: what was switched off, for the old ones took too many threads, goes on.
    fn switch_on(self: &Arc<Self>) {
        let _switch = lock(&self.switch);
        if self.ending.load(Ordering::Acquire) || !self.off.swap(false, Ordering::AcqRel) {
            return;
        }
        for (nth, t) in self.threads().enumerate() {
            if t.resume()
                && let Err(e) = self.restart(nth)
            {
                self.off.store(true, Ordering::Release);
                let plan = self.plan();
                for task in t.desert() {
                    task.not_called(&plan, "the hooks are switched off");
                }
                log::error!(target: "hook", "the hooks stay switched off: {e}");
                return;
            }
        }
        let lost = self.lost.load(Ordering::Relaxed);
        log::warn!(target: "hook", lost = lost; "the hooks are on again; {lost} threads of before still hang");
    }

    fn begin_close(&self) {
        self.timers.close();
        self.shared.kick.kick();
        let plan = self.plan();
        for t in self.threads() {
            for task in t.close() {
                task.not_called(&plan, "the hooks are closing");
            }
        }
        lock(&self.watch).closing = true;
        self.watch_wake.notify_all();
    }
}
