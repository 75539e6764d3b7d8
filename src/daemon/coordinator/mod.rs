//! The coordinator: one select loop that feeds the machine of the daemon's life and performs its actions. It decides
//! nothing itself.
//!
//! It waits for signals, requests, nudges of the registry, workers that ended, news of its own actions, and the next
//! instant that is due; it never waits for anything else without a bound.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never, select};

use super::context::{Context, Reloaded, Request};
use super::delivery::{Delivery, Message};
use super::registry::WorkRequest;
use super::report::Report;
use super::signals::Signal;
use super::{hook_events, notify, prune, reload, worker};
use crate::clock;
use crate::config::AgentKind;
use crate::model::event::{HookEvent, StopReason, Urgency};
use crate::model::lifecycle::{Event, Lifecycle, Phase};
use crate::model::op_queue::OpQueue;
use crate::model::timers::Timers;
use crate::store::{Admission, Overlooked, Pruned, Recovered};
use crate::thread;

mod aside;
mod stop;

/// A sign of life while a turn runs.
const ALIVE: Duration = Duration::from_secs(60);
/// Continuations a second.
const PACE: Duration = Duration::from_millis(125);
/// How long a session that is resumed alone is watched.
const ALONE: Duration = Duration::from_secs(10);
/// How often something is looked for to prune; while there is more, without a pause.
const PRUNE: Duration = Duration::from_secs(600);
/// After a worker's thread could not be had.
const NO_THREAD: Duration = Duration::from_secs(1);
/// After a commit in doubt, and while the store does not answer yet.
const DOUBT: Duration = Duration::from_secs(1);
/// While a stop drains, its status line is renewed.
const PROGRESS: Duration = Duration::from_secs(1);

/// What is due at some instant. What makes one needless lets it come: it finds nothing to do then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The next interrupted turn goes on.
    Continue,
    /// A sign of life is noted, if turns run.
    Alive,
    /// A session has run alone for long enough.
    Alone,
    /// Something is looked for to prune.
    Prune,
    /// A worker's thread is tried again.
    Admit,
    /// What a commit in doubt did is looked for.
    Doubt,
    /// What waits is looked for again, for it could not be read.
    Schedule,
    /// Files of deleted sessions are still to go.
    Tidy,
    /// A stop's status line is renewed.
    Progress,
}

/// What comes back from the coordinator's own actions.
#[derive(Debug)]
pub enum News {
    /// To the machine.
    Life(Event),
    /// `daemon_start` handlers are done: the journal may be delivered.
    Started,
    /// A worker's thread is about to end.
    WorkerEnded(i64),
    /// A reload has read everything anew.
    Prepared(Result<Box<reload::Prepared>, String>),
    /// The sessions whose interrupted turn is to go on; `None`: they could not be read.
    Scheduled(Option<Vec<WorkRequest>>),
    /// A step of retention ended; what it removed.
    Pruned(Option<Pruned>),
    /// Files of deleted sessions were removed; whether some are still to go.
    Tidied(bool),
    /// The store answers again after a commit in doubt, and says what nobody was told of; or it does not yet.
    Undoubted(Option<Overlooked>),
    /// The clean record was written, and the store checkpointed and released; or one of them failed.
    Closed(bool),
}

/// What the coordinator is given.
pub struct Inboxes {
    /// From the signals' thread.
    pub signals: Receiver<Signal>,
    /// From the API.
    pub requests: Receiver<Request>,
    /// From the registry.
    pub nudges: Receiver<()>,
    /// From the store: a commit is in doubt.
    pub doubts: Receiver<()>,
}

/// How the daemon ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Why.
    pub reason: StopReason,
    /// Nothing was abandoned, and it was no `now`.
    pub clean: bool,
    /// By when the process is gone.
    pub deadline: Option<Instant>,
}

/// The coordinator.
pub struct Coordinator {
    ctx: Arc<Context>,
    machine: Lifecycle,
    delivery: Delivery,
    news: (Sender<News>, Receiver<News>),
    report: Option<Report>,
    continuations: VecDeque<WorkRequest>,
    /// When the next of them may begin.
    next_continuation: Option<Instant>,
    timers: Timers<Timer>,
    reloads: OpQueue<Sender<Result<Reloaded, String>>>,
    prunes: OpQueue<()>,
    doubts: OpQueue<()>,
    tidies: OpQueue<()>,
    schedules: OpQueue<()>,
    pruned: prune::Round,
    leave: bool,
    hooks_abandoned: bool,
    /// The clean record is written and the store closed: else the next boot has to see to it.
    released: bool,
}

impl Coordinator {
    /// A coordinator that is about to start its loop.
    #[must_use]
    pub fn new(ctx: Arc<Context>, delivery: Delivery) -> Self {
        let machine = Lifecycle::new(ctx.config().shutdown);
        let now = ctx.now();
        let mut timers = Timers::default();
        timers.set(Timer::Alive, now + ALIVE);
        timers.set(Timer::Prune, now + PRUNE);
        Self {
            ctx,
            machine,
            delivery,
            news: crossbeam_channel::bounded(4096),
            report: None,
            continuations: VecDeque::new(),
            next_continuation: None,
            timers,
            reloads: OpQueue::default(),
            prunes: OpQueue::default(),
            doubts: OpQueue::default(),
            tidies: OpQueue::default(),
            schedules: OpQueue::default(),
            pruned: prune::Round::default(),
            leave: false,
            hooks_abandoned: false,
            released: true,
        }
    }

    /// Runs until the daemon may leave.
    pub fn run(mut self, inboxes: &Inboxes, recovered: &Recovered) -> Ending {
        self.become_ready(recovered);
        while !self.leave {
            let due = self.machine.alarm().into_iter().chain(self.timers.next()).min();
            let alarm = due.map_or_else(never, crossbeam_channel::at);
            select! {
                recv(inboxes.signals) -> signal => if let Ok(signal) = signal { self.signal(signal) },
                recv(inboxes.requests) -> request => if let Ok(request) = request { self.request(request) },
                recv(inboxes.nudges) -> _ => {}
                recv(inboxes.doubts) -> _ => self.timers.set(Timer::Doubt, self.ctx.now() + DOUBT),
                recv(self.news.1) -> news => if let Ok(news) = news { self.take(news) },
                recv(alarm) -> _ => {}
            }
            while let Ok(news) = self.news.1.try_recv() {
                self.take(news);
            }
            self.look();
        }
        let stop = self.machine.stop();
        let now = stop.is_some_and(|s| s.urgency == Urgency::Now);
        Ending {
            reason: stop.map_or(StopReason::Shutdown, |s| s.reason),
            clean: self.released && !self.machine.abandoned() && !self.hooks_abandoned && !now,
            deadline: stop.map(|s| s.deadline),
        }
    }

    fn become_ready(&mut self, recovered: &Recovered) {
        self.step(Event::BecameReady);
        self.ctx.set_ready();
        notify::ready();
        crate::failpoint::hit("boot", "ready");
        log::info!(boot_id = self.ctx.boot_id; "ready, {} after the start", took(self.ctx.wall() - self.ctx.started_at));
        let fields = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "recovered": {
                "deaths": recovered.deaths, "activations": recovered.activations,
                "interrupted": recovered.interrupted, "suspended": recovered.suspended,
            },
        });
        let news = self.news.0.clone();
        let event = hook_events::unjournalled(HookEvent::DaemonStart, "", fields, None);
        self.ctx.handlers.notify(
            event,
            Box::new(move |_| {
                let _ = news.try_send(News::Started);
            }),
        );
        self.schedule(recovered.recent_deaths);
        self.tidy();
    }

    fn is_open(&self) -> bool {
        self.machine.phase() == Phase::Running && !self.ctx.board().held
    }

    /// Does what has become due or possible.
    fn look(&mut self) {
        let now = self.ctx.now();
        if self.machine.alarm().is_some_and(|at| at <= now) {
            self.step(Event::TimeUp);
        }
        for timer in self.timers.take_due(now) {
            self.fire(timer, now);
        }
        match self.machine.phase() {
            Phase::Running => self.look_running(now),
            Phase::Draining | Phase::Interrupting | Phase::Sweeping => self.look_stopping(),
            Phase::Starting | Phase::CallingHooks | Phase::Closing | Phase::Ended => {}
        }
    }

    /// Handles what is due; it is not due any more.
    fn fire(&mut self, timer: Timer, now: Instant) {
        match timer {
            Timer::Continue => self.continue_some(now),
            // They are looked at whenever something happens.
            Timer::Alive | Timer::Alone | Timer::Admit => {}
            Timer::Prune => self.prune(),
            Timer::Tidy => self.tidy(),
            Timer::Doubt => self.doubt(),
            Timer::Schedule => {
                self.schedules.request(None);
                self.begin_schedule();
            }
            Timer::Progress => self.show_progress(now),
        }
    }

    fn look_running(&mut self, now: Instant) {
        if !self.timers.is_set(Timer::Alive) && self.ctx.registry.numbers().running > 0 {
            self.timers.set(Timer::Alive, now + ALIVE);
            self.note_alive();
        }
        self.look_alone(now);
        self.admit(now);
    }

    /// Interrupted turns whose time has come go on.
    fn continue_some(&mut self, now: Instant) {
        if !self.is_open() {
            return;
        }
        while self.next_continuation.is_some_and(|at| at <= now) {
            let Some(wish) = self.continuations.pop_front() else { break };
            self.next_continuation = self.next_continuation.map(|at| at + PACE);
            self.ctx.registry.want(wish);
        }
        self.set_continuations();
    }

    /// Gives workers to the sessions that want one, as far as there is room.
    fn admit(&mut self, now: Instant) {
        if self.timers.is_set(Timer::Admit) {
            return;
        }
        let config = self.ctx.config();
        let mut admitted = VecDeque::from(self.ctx.registry.admit(&config));
        while let Some(next) = admitted.pop_front() {
            let (request, mailbox) = (next.request().clone(), next.mailbox.clone());
            let agent = config.route(&request.key).clone();
            let stack = if agent.kind == AgentKind::Lua { thread::DEEP_STACK } else { thread::IO_STACK };
            let (ctx, news) = (self.ctx.clone(), self.news.0.clone());
            let sid = request.sid;
            let job = Box::new(move || {
                worker::run(&ctx, &request, agent, &mailbox);
                let _ = news.send(News::WorkerEnded(sid));
            });
            match self.ctx.runtime.spawn(format!("s{sid}"), stack, job) {
                Ok(join) => self.ctx.registry.started(sid, join),
                Err(e) if self.ctx.registry.numbers().live > admitted.len() + 1 => {
                    // A worker that ends gives one back.
                    self.timers.set(Timer::Admit, now + NO_THREAD);
                    admitted.push_front(next);
                    admitted.into_iter().for_each(|a| self.ctx.registry.give_back(a));
                    return log::warn!("no thread for another session, tried again in a second: {e}");
                }
                Err(e) => {
                    let request = next.request().clone();
                    log::error!(key = request.key; "no thread for the session: {e}");
                    let _ = self.ctx.registry.remove(request.sid);
                    self.refuse_waiting(request, format!("no thread for the session: {e}"));
                }
            }
        }
    }

    fn signal(&mut self, signal: Signal) {
        let again = self.machine.stop().map_or(Urgency::Graceful, |s| s.urgency.raised());
        match signal {
            Signal::Stop => self.ask_stop(StopReason::Shutdown, again),
            Signal::Restart => self.ask_stop(StopReason::Restart, again),
            Signal::Reload => self.reload(None),
        }
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Stop(reason, urgency, answer) => {
                let shutting = self.machine.stop().is_some_and(|s| s.reason == StopReason::Shutdown);
                if shutting && reason == StopReason::Restart {
                    let _ = answer.try_send(Err("a shutdown is in progress"));
                } else {
                    let _ = answer.try_send(Ok(()));
                    self.ask_stop(reason, urgency);
                }
            }
            Request::Reload(answer) => self.reload(Some(answer)),
            Request::Hold(hold) => self.hold(hold),
            Request::Ping(answer) => {
                let _ = answer.try_send(());
            }
            Request::Tidy => self.tidy(),
            Request::Prune => {
                self.prune();
                self.tidy();
            }
        }
    }

    fn hold(&mut self, hold: bool) {
        if self.machine.stop().is_some() {
            return;
        }
        self.ctx.store.set_admission(if hold { Admission::Held } else { Admission::Open });
        self.ctx.show(|b| b.held = hold);
        log::info!("{}", if hold { "held: messages are accepted, no turn starts" } else { "released: turns start" });
        if !hold {
            self.ctx.registry.wake_all();
            self.schedule(0);
        }
    }

    fn ask_stop(&mut self, reason: StopReason, urgency: Urgency) {
        self.machine.set_budget(self.ctx.config().shutdown);
        self.step(Event::StopAsked(reason, urgency));
        self.refuse_reloads();
    }

    fn take(&mut self, news: News) {
        match news {
            News::Life(event) => self.step(event),
            News::Started => {
                crate::failpoint::hit("boot", "started");
                self.delivery.tell(Message::Go);
            }
            News::WorkerEnded(sid) => {
                self.timers.clear(Timer::Admit);
                if let Some((join, again)) = self.ctx.registry.remove(sid) {
                    // The thread has said its last word: the join is a matter of microseconds.
                    if let Some(join) = join
                        && join.join().is_err()
                    {
                        log::error!("the worker of session row {sid} panicked at its end");
                    }
                    self.ctx.registry.end_probation(sid);
                    if self.timers.is_set(Timer::Tidy) {
                        // It may be the one in whose directory somebody was still at work.
                        self.tidy();
                    }
                    if let Some(wish) = again {
                        self.ctx.registry.want(wish);
                    }
                }
            }
            News::Prepared(prepared) => self.prepared(prepared),
            News::Scheduled(wishes) => self.scheduled(wishes),
            News::Undoubted(overlooked) => self.undoubted(overlooked),
            News::Pruned(step) => self.pruned_step(step),
            News::Tidied(left) => self.tidied(left),
            News::Closed(done) => {
                self.released = done;
                self.step(Event::StoreClosed);
            }
        }
    }

    /// Feeds the machine, and does what it says.
    fn step(&mut self, event: Event) {
        let before = self.machine.phase();
        let actions = self.machine.step(event, self.ctx.now());
        let phase = self.machine.phase();
        if let Some(stop) = self.machine.stop() {
            let deadline_at = self.ctx.wall() + millis(self.ctx.left(stop.deadline));
            self.ctx.show(|b| b.stop = Some((stop.reason, stop.urgency, deadline_at)));
        }
        if phase != before {
            self.ctx.show(|b| b.phase = phase.as_str());
            if let Some(report) = &mut self.report {
                report.enter(phase, self.ctx.now());
            }
            if self.machine.stop().is_some() {
                log::info!("stop: {before} → {phase}");
                self.keep_facts();
            }
        }
        for action in actions {
            self.perform(action);
        }
    }
}

fn restart_text(r: &Reloaded) -> String {
    if r.needs_restart.is_empty() {
        String::new()
    } else {
        format!(", needs a restart: {}", r.needs_restart.join(", "))
    }
}

fn millis(d: Duration) -> clock::Millis {
    clock::Millis::try_from(d.as_millis()).unwrap_or(clock::Millis::MAX)
}

fn took(ms: clock::Millis) -> String {
    format!("{ms} ms")
}
