//! The coordinator: a loop that takes one [`Event`] after the other, feeds the state machine of the daemon's life and
//! performs its actions. It makes no decisions itself.
//!
//! [`Coordinator::next_event`] is the only place where it waits. Slow work, such as every call of the store, runs on a
//! thread of its own, and its outcome is an event (`aside`). The actions of a stop are performed in order, one after
//! the other (`stop`, `closing`). All timers are in one table; each operation in progress has an owner, an [`OpQueue`].
//! [`schedule`] decides pacing and retries.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never, select};

use super::context::{Context, Reloaded, Request};
use super::delivery::{Delivery, Message};
use super::mailbox::Mailbox;
use super::registry::WorkRequest;
use super::report::Report;
use super::signals::Signal;
use super::{hook_events, notify, prune, reload, worker};
use crate::clock;
use crate::config::AgentKind;
use crate::model::event::{HookEvent, StopReason};
use crate::model::keep_policy::Agents;
use crate::model::lifecycle::{self, Action, Lifecycle, Phase};
use crate::model::op_queue::OpQueue;
use crate::model::schedule::{self, Continuations, Refused, Retry, WithoutThread, retry_after};
use crate::model::timers::Timers;
use crate::store::{Admission, Overlooked, Pending, Pruned, Recovered};
use crate::thread;

mod aside;
mod closing;
mod kind;
mod stop;

/// A timer. A timer that is no longer needed still fires and finds nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The next interrupted turn goes on.
    Continue,
    /// A sign of life is noted, if turns run.
    Alive,
    /// A session has been on probation for long enough.
    Probation,
    /// The next round of retention.
    Prune,
    /// The next try to start a worker's thread.
    Admit,
    /// The next try for messages that could not be refused.
    Refuse,
    /// Read what a commit in doubt did.
    Doubt,
    /// The next search for waiting work, after one that failed.
    Schedule,
    /// Remove files of deleted sessions.
    Tidy,
    /// The end of the time in which the service manager may say which kind of stop it is.
    Kind,
    /// The end of the time in which workers let their agents go.
    LetGo,
    /// The next try to start a thread for a session whose agent may have outlived the last boot.
    Attach,
    /// Update a stop's status line.
    Progress,
    /// The end of delivery's time to note which handlers it did not call.
    DeliveryEnd,
}

/// An event for the coordinator.
#[derive(Debug)]
pub enum Event {
    /// A signal came.
    Signal(Signal),
    /// The API requests something.
    Asked(Request),
    /// The registry or the hub may have work for it.
    Nudged,
    /// A commit of the store is in doubt.
    CommitInDoubt,
    /// A timer is due, or a sender has gone.
    Due,
    /// An event of the state machine.
    Life(lifecycle::Event),
    /// `daemon_start` handlers are done: the journal may be delivered.
    Started,
    /// The service manager said which kind of stop it is, or did not.
    KindKnown(StopReason),
    /// A worker's thread is about to end.
    WorkerEnded(i64),
    /// A reload has read configuration and scripts.
    Prepared(Result<Box<reload::Prepared>, String>),
    /// The sessions whose interrupted turn is to go on; `None`: the store failed.
    Scheduled(Option<Vec<WorkRequest>>),
    /// A step of retention ended; what it removed.
    Pruned(Option<Pruned>),
    /// Files of deleted sessions were removed; `true`: some are left.
    Tidied(bool),
    /// The store answers again after a commit in doubt: what that commit did. `None`: it does not answer yet.
    Undoubted(Option<Overlooked>),
    /// A sign of life was noted, or the write failed.
    AliveNoted,
    /// The outcome of failing a waiting message of a session without a thread.
    Refused(WorkRequest, Refused),
    /// An action of the stop on a thread of its own is over.
    Performed {
        /// The stop can still be a clean one.
        clean: bool,
    },
    /// The hooks' threads have ended, except this number of abandoned threads; `None`: unknown.
    HooksClosed(Option<usize>),
    /// Delivery has noted which handlers it did not call, and ended.
    DeliveryEnded,
    /// Whether the report and the clean record were written.
    Recorded(bool),
    /// Whether the store was checkpointed and released.
    Closed(bool),
}

/// The sources of events.
pub struct Inboxes {
    /// From the signals' thread.
    pub signals: Receiver<Signal>,
    /// From the API.
    pub requests: Receiver<Request>,
    /// From the registry and the hub.
    pub nudges: Receiver<()>,
    /// From the store: a commit is in doubt.
    pub doubts: Receiver<()>,
}

/// How the daemon ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Why.
    pub reason: StopReason,
    /// Nothing was abandoned, all was written, the store is closed, and the urgency was not `now`.
    pub clean: bool,
    /// When the process must be gone.
    pub deadline: Option<Instant>,
    /// What became of the agents.
    pub agents: Agents,
    /// A restart, into which no shutdown came.
    pub again: bool,
}

/// A worker to start.
pub struct NewWorker {
    /// The shared handles.
    pub ctx: Arc<Context>,
    /// The session, and why it needs a worker.
    pub request: WorkRequest,
    /// Its agent, or the activation that it goes on with.
    pub begins: worker::Begins,
    /// Its mailbox.
    pub mailbox: Arc<Mailbox>,
    /// Called at its end.
    pub ended: Box<dyn FnOnce() + Send>,
}

/// Starts workers. An error: the thread cannot be started.
pub type StartWorker = Box<dyn Fn(NewWorker) -> io::Result<Option<JoinHandle<()>>> + Send>;

/// Starts a worker on a thread of its own.
///
/// # Errors
/// The thread cannot be started.
pub fn start_worker(new: NewWorker) -> io::Result<Option<JoinHandle<()>>> {
    let NewWorker { ctx, request, begins, mailbox, ended } = new;
    let is_deep = matches!(&begins, worker::Begins::Anew(agent) if agent.kind == AgentKind::Lua);
    let stack = if is_deep { thread::DEEP_STACK } else { thread::IO_STACK };
    let (runtime, name) = (ctx.runtime.clone(), format!("s{}", request.sid));
    let job = move || {
        worker::run(&ctx, &request, begins, &mailbox);
        ended();
    };
    runtime.spawn(name, stack, Box::new(job))
}

/// The coordinator.
pub struct Coordinator {
    ctx: Arc<Context>,
    machine: Lifecycle,
    delivery: Delivery,
    start_worker: StartWorker,
    /// Its own events: the outcomes of operations on other threads.
    own: (Sender<Event>, Receiver<Event>),
    /// Outcomes of operations that ran on this thread, because no other could be started.
    here: VecDeque<Event>,
    /// Events for the machine once its actions are performed.
    later: VecDeque<lifecycle::Event>,
    /// A SIGTERM whose kind the service manager is asked for.
    question: Option<kind::Question>,
    /// What becomes of the agents at the end of the stop in progress.
    agents: Agents,
    /// A shutdown came into a restart.
    overtaken: bool,
    /// Agents were let go.
    gone_on: bool,
    /// Sessions of an earlier boot were left open for their agents.
    adopted: bool,
    report: Option<Report>,
    continuations: Continuations,
    timers: Timers<Timer>,
    reloads: OpQueue<Sender<Result<Reloaded, String>>>,
    prunes: OpQueue<()>,
    doubts: OpQueue<()>,
    tidies: OpQueue<()>,
    schedules: OpQueue<()>,
    signs_of_life: OpQueue<()>,
    refusals: OpQueue<()>,
    /// Sessions whose oldest message is to be failed, and why.
    to_refuse: VecDeque<(WorkRequest, String)>,
    /// Agents that outlive the daemon are being let go.
    letting_go: bool,
    /// Sessions whose agents may have outlived the last boot, and which have no worker yet.
    unattached: Vec<Pending>,
    /// Sessions that request a worker again after a pause.
    not_refused: Vec<WorkRequest>,
    pruned: prune::Round,
    /// Actions of the machine that have not begun.
    actions: VecDeque<Action>,
    /// The stop's action that runs on a thread of its own: later actions wait for it.
    performing: OpQueue<()>,
    /// An action of the stop failed: the stop is not a clean one.
    unclean: bool,
    closing: Option<closing::Step>,
    leave: bool,
    hooks_abandoned: bool,
    /// The clean record is written and the store closed, or no closing has begun.
    released: bool,
}

impl Coordinator {
    /// A coordinator that has not begun.
    #[must_use]
    pub fn new(ctx: Arc<Context>, delivery: Delivery, start_worker: StartWorker) -> Self {
        let machine = Lifecycle::new(ctx.config().shutdown);
        let now = ctx.now();
        let mut timers = Timers::default();
        timers.set(Timer::Alive, now + schedule::ALIVE);
        timers.set(Timer::Prune, now + schedule::RETENTION);
        Self {
            ctx,
            machine,
            delivery,
            start_worker,
            own: crossbeam_channel::bounded(4096),
            here: VecDeque::new(),
            later: VecDeque::new(),
            question: None,
            agents: Agents::End,
            overtaken: false,
            gone_on: false,
            adopted: false,
            report: None,
            continuations: Continuations::default(),
            timers,
            reloads: OpQueue::default(),
            prunes: OpQueue::default(),
            doubts: OpQueue::default(),
            tidies: OpQueue::default(),
            schedules: OpQueue::default(),
            signs_of_life: OpQueue::default(),
            refusals: OpQueue::default(),
            to_refuse: VecDeque::new(),
            letting_go: false,
            unattached: Vec::new(),
            not_refused: Vec::new(),
            pruned: prune::Round::default(),
            actions: VecDeque::new(),
            performing: OpQueue::default(),
            unclean: false,
            closing: None,
            leave: false,
            hooks_abandoned: false,
            released: true,
        }
    }

    /// Runs until the daemon may exit.
    pub fn run(mut self, inboxes: &Inboxes, recovered: &Recovered) -> Ending {
        self.begin(recovered);
        while !self.leave {
            let event = self.next_event(inboxes);
            self.handle(event);
        }
        self.ending()
    }

    /// Waits for the next event.
    fn next_event(&self, inboxes: &Inboxes) -> Event {
        let alarm = self.next_due().map_or_else(never, crossbeam_channel::at);
        select! {
            recv(inboxes.signals) -> signal => signal.map_or(Event::Due, Event::Signal),
            recv(inboxes.requests) -> request => request.map_or(Event::Due, Event::Asked),
            recv(inboxes.nudges) -> _ => Event::Nudged,
            recv(inboxes.doubts) -> _ => Event::CommitInDoubt,
            recv(self.own.1) -> event => event.unwrap_or(Event::Due),
            recv(alarm) -> _ => Event::Due,
        }
    }

    /// When [`Event::Due`] comes if no other event comes first.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        let alarm = self.machine.alarm().filter(|_| !self.must_wait());
        alarm.into_iter().chain(self.timers.next()).min()
    }

    /// Whether the machine gets no `TimeUp` now, because its actions are still being performed: the time of the next
    /// step has not begun. Each of these actions has its own time limit.
    fn must_wait(&self) -> bool {
        self.is_performing() || self.closing.is_some_and(|step| !matches!(step, closing::Step::Store { .. }))
    }

    fn is_performing(&self) -> bool {
        self.performing.is_in_progress() || !self.actions.is_empty()
    }

    /// Handles an event and all outcomes that are there by now, then does what has become due or possible.
    pub fn handle(&mut self, event: Event) {
        self.take(event);
        loop {
            while let Some(event) = self.here.pop_front().or_else(|| self.own.1.try_recv().ok()) {
                self.take(event);
            }
            self.look();
            // What was done here at once has its outcome already: nobody else would wake this thread for it.
            if self.here.is_empty() {
                return;
            }
        }
    }

    /// Whether an outcome of an operation on another thread waits to be handled.
    #[must_use]
    pub fn has_outcomes(&self) -> bool {
        !self.own.1.is_empty()
    }

    /// Whether the daemon may exit.
    #[must_use]
    pub const fn may_leave(&self) -> bool {
        self.leave
    }

    /// How the daemon ended, once it may exit.
    #[must_use]
    pub fn ending(&self) -> Ending {
        let stop = self.machine.stop();
        Ending {
            reason: stop.map_or(StopReason::Shutdown, |s| s.reason),
            clean: self.released && self.may_be_clean(),
            deadline: stop.map(|s| s.deadline),
            agents: self.agents,
            again: stop.is_some_and(|s| s.reason == StopReason::Restart) && !self.overtaken,
        }
    }

    /// The daemon is ready: messages are accepted, and turns begin.
    pub fn begin(&mut self, recovered: &Recovered) {
        // Before anything else can want a worker for them.
        for pending in &recovered.pending {
            self.ctx.registry.adopt(pending);
        }
        self.adopted = !recovered.pending.is_empty();
        self.unattached.clone_from(&recovered.pending);
        self.step(lifecycle::Event::BecameReady);
        self.ctx.set_ready();
        notify::ready();
        crate::failpoint::hit("boot", "ready");
        log::info!(boot_id = self.ctx.boot_id; "ready, {} after the start", took(self.ctx.wall() - self.ctx.started_at));
        let fields = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "recovered": {
                "deaths": recovered.deaths, "activations": recovered.activations,
                "interrupted": recovered.interrupted, "suspended": recovered.suspended,
                "kept": recovered.pending.len(),
            },
        });
        let own = self.own.0.clone();
        let event = hook_events::unjournalled(HookEvent::DaemonStart, "", fields, None);
        let started = move |_| {
            let _ = own.try_send(Event::Started);
        };
        self.ctx.handlers.notify(event, Box::new(started));
        self.attach();
        self.schedule(recovered.recent_deaths);
        self.tidy();
    }

    /// Starts workers for the sessions whose agents may have outlived the last boot.
    fn attach(&mut self) {
        while let Some(pending) = self.unattached.pop() {
            let sid = pending.sid;
            let Some(mailbox) = self.ctx.registry.mailbox(sid) else { continue };
            let own = self.own.0.clone();
            let started = (self.start_worker)(NewWorker {
                ctx: self.ctx.clone(),
                request: WorkRequest { sid, key: pending.key.clone(), auto_continue: false },
                begins: worker::Begins::Attaching(Box::new(pending.clone())),
                mailbox,
                ended: Box::new(move || {
                    let _ = own.send(Event::WorkerEnded(sid));
                }),
            });
            match started {
                Ok(join) => self.ctx.registry.started(sid, join),
                Err(e) => {
                    log::warn!(key = pending.key; "cannot start a thread to attach to the agent, tried again in a second: {e}");
                    self.unattached.push(pending);
                    return self.retry(Retry::Thread, Timer::Attach);
                }
            }
        }
    }

    fn is_open(&self) -> bool {
        self.machine.phase() == Phase::Running && !self.ctx.board().held
    }

    /// Does what has become due or possible.
    fn look(&mut self) {
        let now = self.ctx.now();
        if !self.must_wait() && self.machine.alarm().is_some_and(|at| at <= now) {
            self.step(lifecycle::Event::TimeUp);
        }
        for timer in self.timers.take_due(now) {
            self.fire(timer, now);
        }
        match self.machine.phase() {
            Phase::Running => self.look_running(now),
            Phase::Draining | Phase::Interrupting | Phase::Sweeping if !self.is_performing() => self.check_ended(),
            Phase::Draining | Phase::Interrupting | Phase::Sweeping => {}
            Phase::Starting | Phase::CallingHooks | Phase::Closing | Phase::Ended => {}
        }
    }

    /// Handles a timer that has fired.
    fn fire(&mut self, timer: Timer, now: Instant) {
        match timer {
            Timer::Continue => self.continue_some(now),
            // These are checked after every event.
            Timer::Alive | Timer::Probation | Timer::Admit => {}
            Timer::Prune => self.prune(),
            Timer::Refuse => std::mem::take(&mut self.not_refused).into_iter().for_each(|r| self.ctx.registry.want(r)),
            Timer::Tidy => self.tidy(),
            Timer::Doubt => self.doubt(),
            Timer::Schedule => self.search_waiting(),
            Timer::Kind => self.kind_known(StopReason::Shutdown),
            Timer::Attach => self.attach(),
            Timer::LetGo => self.look_let_go(true),
            Timer::Progress => self.show_progress(now),
            Timer::DeliveryEnd => self.delivery_ended(),
        }
    }

    /// Sets the timer for a retry.
    fn retry(&mut self, what: Retry, timer: Timer) {
        self.timers.set(timer, self.ctx.now() + retry_after(what));
    }

    fn look_running(&mut self, now: Instant) {
        if !self.timers.is_set(Timer::Alive) && self.ctx.registry.numbers().running > 0 {
            self.timers.set(Timer::Alive, now + schedule::ALIVE);
            self.note_alive();
        }
        self.look_at_probation(now);
        self.admit();
    }

    /// Continues the interrupted turns whose time has come.
    fn continue_some(&mut self, now: Instant) {
        if !self.is_open() {
            return;
        }
        for request in self.continuations.take_due(now) {
            self.ctx.registry.want(request);
        }
        self.set_continuations();
    }

    /// Starts workers for the sessions that wait for one, as long as there are slots.
    fn admit(&mut self) {
        if self.timers.is_set(Timer::Admit) {
            return;
        }
        let config = self.ctx.config();
        let mut admitted = VecDeque::from(self.ctx.registry.admit(&config));
        while let Some(next) = admitted.pop_front() {
            let request = next.request().clone();
            let (own, sid) = (self.own.0.clone(), request.sid);
            let ended = move || {
                let _ = own.send(Event::WorkerEnded(sid));
            };
            let started = (self.start_worker)(NewWorker {
                ctx: self.ctx.clone(),
                begins: worker::Begins::Anew(Box::new(config.route(&request.key).clone())),
                request: request.clone(),
                mailbox: next.mailbox.clone(),
                ended: Box::new(ended),
            });
            let e = match started {
                Ok(join) => {
                    self.ctx.registry.started(sid, join);
                    continue;
                }
                Err(e) => e,
            };
            // Neither this session nor the later ones have a thread.
            let others = self.ctx.registry.numbers().live.saturating_sub(admitted.len() + 1);
            match schedule::without_thread(others) {
                WithoutThread::Wait => {
                    self.retry(Retry::Thread, Timer::Admit);
                    admitted.push_front(next);
                    admitted.into_iter().for_each(|a| self.ctx.registry.give_back(a));
                    return log::warn!("cannot start a thread for another session, tried again in a second: {e}");
                }
                WithoutThread::Refuse => {
                    log::error!(key = request.key; "cannot start a thread for the session: {e}");
                    let _ = self.ctx.registry.remove(sid);
                    self.refuse_waiting(request, format!("cannot start a thread for the session: {e}"));
                }
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Signal(signal) => self.signal(signal),
            Event::Asked(request) => self.request(request),
            Event::Nudged | Event::Due => {}
            Event::CommitInDoubt => self.retry(Retry::Doubt, Timer::Doubt),
            Event::Life(event) if self.is_performing() => self.later.push_back(event),
            Event::Life(event) => self.step(event),
            Event::Started => {
                crate::failpoint::hit("boot", "started");
                self.delivery.send(Message::Go);
            }
            Event::KindKnown(reason) => self.kind_known(reason),
            Event::WorkerEnded(sid) => self.worker_ended(sid),
            Event::Prepared(prepared) => self.prepared(prepared),
            Event::Scheduled(requests) => self.scheduled(requests),
            Event::Pruned(step) => self.pruned_step(step),
            Event::Tidied(left) => self.tidied(left),
            Event::Undoubted(overlooked) => self.undoubted(overlooked),
            Event::AliveNoted => drop(self.signs_of_life.complete()),
            Event::Refused(request, refused) => self.refused(request, refused),
            Event::Performed { clean } => {
                self.unclean |= !clean;
                let _ = self.performing.complete();
                self.perform_next();
                while !self.is_performing()
                    && let Some(event) = self.later.pop_front()
                {
                    self.step(event);
                }
            }
            Event::HooksClosed(abandoned) => self.hooks_closed(abandoned),
            Event::DeliveryEnded => self.delivery_ended(),
            Event::Recorded(done) => self.recorded(done),
            Event::Closed(done) => {
                self.released = done && self.closing == Some(closing::Step::Store { recorded: true });
                self.step(lifecycle::Event::StoreClosed);
            }
        }
    }

    fn worker_ended(&mut self, sid: i64) {
        self.timers.clear(Timer::Admit);
        let Some((join, again)) = self.ctx.registry.remove(sid) else { return };
        // The thread has sent its last event, so the join takes microseconds.
        if let Some(join) = join
            && join.join().is_err()
        {
            log::error!("the worker of session row {sid} panicked at its end");
        }
        self.ctx.registry.end_probation(sid);
        self.look_let_go(false);
        if self.timers.is_set(Timer::Tidy) {
            // It may have worked in a directory that waits for its removal.
            self.tidy();
        }
        if let Some(request) = again {
            self.ctx.registry.want(request);
        }
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Stop(asked, answer) => {
                let _ = answer.try_send(self.request_stop(asked));
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
        if self.machine.stop().is_some() || self.question.is_some() {
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

    /// Feeds an event to the machine and performs its actions.
    fn step(&mut self, event: lifecycle::Event) {
        self.step_at(event, self.ctx.now());
    }

    /// As [`Self::step`], for what happened at an instant.
    fn step_at(&mut self, event: lifecycle::Event, at: Instant) {
        let before = self.machine.phase();
        let actions = self.machine.step(event, at);
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
        self.actions.extend(actions);
        self.perform_next();
    }
}

fn reloaded_text(r: &Reloaded) -> String {
    let changed = match &r.changed[..] {
        [] => "no key changed; scripts reloaded".to_owned(),
        changed => format!("changed {}; scripts reloaded", changed.join(", ")),
    };
    match &r.needs_restart[..] {
        [] => changed,
        keys => format!("{changed}; needs a restart: {}", keys.join(", ")),
    }
}

fn millis(d: Duration) -> clock::Millis {
    clock::Millis::try_from(d.as_millis()).unwrap_or(clock::Millis::MAX)
}

fn took(ms: clock::Millis) -> String {
    format!("{ms} ms")
}
