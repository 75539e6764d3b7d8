//! The coordinator: one select loop that feeds the machine of the daemon's life and performs its actions. It decides
//! nothing itself.
//!
//! It waits for signals, requests, nudges of the registry, workers that ended, news of its own actions, and the next
//! instant that is due; it never waits for anything else without a bound.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never, select};

use super::delivery::{Delivery, Message};
use super::house::{House, RETIRE, Reloaded, Request};
use super::registry::Wish;
use super::report::Report;
use super::signals::Signal;
use super::{desk, notify, prune, reload, worker};
use crate::clock;
use crate::config::{AgentKind, Resume};
use crate::model::event::{HookEvent, StopReason, Urgency};
use crate::model::lifecycle::{Event, Lifecycle, Phase};
use crate::model::recovery::continuation_delay_s;
use crate::store::{Admission, Overlooked, Pruned, Recovered};
use crate::thread;

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

/// What comes back from the coordinator's own actions.
#[derive(Debug)]
pub enum News {
    /// To the machine.
    Life(Event),
    /// `daemon_start` handlers are done: the journal may be delivered.
    Started,
    /// A worker's thread is about to end.
    WorkerEnded(i64),
    /// A reload ended.
    Reloaded(Result<Reloaded, String>),
    /// A step of retention ended; what it removed.
    Pruned(Option<Pruned>),
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
}

/// The coordinator.
pub struct Coordinator {
    house: Arc<House>,
    machine: Lifecycle,
    delivery: Delivery,
    news: (Sender<News>, Receiver<News>),
    report: Option<Report>,
    deadline_guard: Option<Sender<()>>,
    continuations: VecDeque<Wish>,
    next_continuation: Option<Instant>,
    alive_at: Instant,
    prune_at: Instant,
    retry_at: Option<Instant>,
    doubt_at: Option<Instant>,
    progress_at: Option<Instant>,
    reloading: Vec<Sender<Result<Reloaded, String>>>,
    pruning: bool,
    /// Asked for again while a round was under way.
    prune_again: bool,
    pruned: prune::Round,
    leave: bool,
    hooks_abandoned: bool,
    /// The clean record is written and the store closed: else the next boot has to see to it.
    released: bool,
}

impl Coordinator {
    /// A coordinator that is about to start its loop.
    #[must_use]
    pub fn new(house: Arc<House>, delivery: Delivery) -> Self {
        let machine = Lifecycle::new(house.config().shutdown);
        let now = Instant::now();
        Self {
            house,
            machine,
            delivery,
            news: crossbeam_channel::bounded(4096),
            report: None,
            deadline_guard: None,
            continuations: VecDeque::new(),
            next_continuation: None,
            alive_at: now + ALIVE,
            prune_at: now + PRUNE,
            retry_at: None,
            doubt_at: None,
            progress_at: None,
            reloading: Vec::new(),
            pruning: false,
            prune_again: false,
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
            let due = self.due();
            let alarm = due.map_or_else(never, crossbeam_channel::at);
            select! {
                recv(inboxes.signals) -> signal => if let Ok(signal) = signal { self.signal(signal) },
                recv(inboxes.requests) -> request => if let Ok(request) = request { self.request(request) },
                recv(inboxes.nudges) -> _ => {}
                recv(inboxes.doubts) -> _ => self.doubt_at = Some(Instant::now() + DOUBT),
                recv(self.news.1) -> news => if let Ok(news) = news { self.take(news) },
                recv(alarm) -> _ => {}
            }
            while let Ok(news) = self.news.1.try_recv() {
                self.take(news);
            }
            self.look();
        }
        let reason = self.machine.stop().map_or(StopReason::Shutdown, |s| s.reason);
        let now = self.machine.stop().is_some_and(|s| s.urgency == Urgency::Now);
        Ending { reason, clean: self.released && !self.machine.abandoned() && !self.hooks_abandoned && !now }
    }

    fn become_ready(&mut self, recovered: &Recovered) {
        self.step(Event::BecameReady);
        self.house.set_ready();
        notify::ready();
        crate::failpoint::hit("boot", "ready");
        log::info!(boot_id = self.house.boot_id; "ready, {} after the start", took(clock::now() - self.house.started_at));
        let fields = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "recovered": {
                "deaths": recovered.deaths, "activations": recovered.activations,
                "interrupted": recovered.interrupted, "suspended": recovered.suspended,
            },
        });
        let news = self.news.0.clone();
        let event = desk::hook_event(HookEvent::DaemonStart, "", fields, None);
        self.house.hooks.notify(
            event,
            Box::new(move |_| {
                let _ = news.try_send(News::Started);
            }),
        );
        self.schedule(recovered.recent_deaths);
    }

    /// Every session in which something waits gets a worker, each on its own; interrupted turns are paced.
    fn schedule(&mut self, deaths: u32) {
        let config = self.house.config();
        let since = config
            .sessions
            .resume_window
            .map_or(0, |w| clock::now() - i64::try_from(w.as_millis()).unwrap_or(i64::MAX));
        let marked = (config.sessions.resume == Resume::Auto).then_some(since);
        let mut known: BTreeSet<i64> = self.continuations.iter().map(|c| c.sid).collect();
        let mut after = 0;
        loop {
            let page = match self.house.store.wanted(after, 1000, marked) {
                Ok(page) => page,
                Err(e) => {
                    log::error!("what waits cannot be read: {e}");
                    return;
                }
            };
            let Some(last) = page.last() else { break };
            after = last.sid;
            for w in page {
                let wish = Wish { sid: w.sid, key: w.key, asked: marked.is_some() };
                if w.queued {
                    self.house.registry.want(wish);
                } else if known.insert(w.sid) {
                    self.continuations.push_back(wish);
                }
            }
        }
        let at = Instant::now() + Duration::from_secs(continuation_delay_s(deaths).into());
        self.next_continuation = Some(self.next_continuation.map_or(at, |old| old.max(at)));
    }

    /// When something is due at the latest.
    fn due(&self) -> Option<Instant> {
        let numbers = self.house.registry.numbers();
        let continuation = self.next_continuation.filter(|_| !self.continuations.is_empty() && self.is_open());
        let alone = self.house.registry.alone().map(|(_, since)| since + ALONE);
        let alive = (numbers.running > 0 && self.machine.stop().is_none()).then_some(self.alive_at);
        let prune = (!self.pruning && self.machine.phase() == Phase::Running).then_some(self.prune_at);
        let retry = self.retry_at.filter(|_| self.house.registry.has_wishes());
        let doubt = self.doubt_at.filter(|_| self.machine.phase() == Phase::Running);
        [self.machine.alarm(), continuation, alone, alive, prune, retry, doubt, self.progress_at]
            .into_iter()
            .flatten()
            .min()
    }

    fn is_open(&self) -> bool {
        self.machine.phase() == Phase::Running && !self.house.board().held
    }

    /// Does what has become due or possible.
    fn look(&mut self) {
        let now = Instant::now();
        if self.machine.alarm().is_some_and(|at| at <= now) {
            self.step(Event::TimeUp);
        }
        match self.machine.phase() {
            Phase::Running => self.look_running(now),
            Phase::Draining | Phase::Interrupting | Phase::Sweeping => self.look_stopping(now),
            Phase::Starting | Phase::CallingHooks | Phase::Closing | Phase::Ended => {}
        }
    }

    fn look_running(&mut self, now: Instant) {
        if self.alive_at <= now && self.house.registry.numbers().running > 0 {
            self.alive_at = now + ALIVE;
            self.aside("alive", |house| {
                if let Err(e) = house.store.note_alive() {
                    log::warn!("the sign of life cannot be noted: {e}");
                }
                None
            });
        }
        if self.prune_at <= now && !self.pruning {
            self.pruning = true;
            self.aside("prune", |house| Some(News::Pruned(prune::step(house))));
        }
        if let Some(sid) = now.checked_sub(ALONE).and_then(|before| self.house.registry.take_alone(before)) {
            self.aside("alone", move |house| {
                // Where that cannot be written its turn's end does it.
                match house.store.clear_solo(sid) {
                    Ok(()) => house.registry.alone_over(sid),
                    Err(e) => log::warn!("a session still counts as running alone: {e}"),
                }
                None
            });
        }
        if self.doubt_at.is_some_and(|at| at <= now) {
            self.doubt_at = None;
            self.aside("doubt", |house| Some(News::Undoubted(look_for_overlooked(house))));
        }
        if self.is_open() {
            while self.next_continuation.is_some_and(|at| at <= now) {
                let Some(wish) = self.continuations.pop_front() else { break };
                self.next_continuation = self.next_continuation.map(|at| at + PACE);
                self.house.registry.want(wish);
            }
        }
        self.seat(now);
    }

    /// Gives workers to the sessions that want one, as far as there is room.
    fn seat(&mut self, now: Instant) {
        if self.retry_at.is_some_and(|at| at > now) {
            return;
        }
        self.retry_at = None;
        let config = self.house.config();
        let mut newcomers = VecDeque::from(self.house.registry.seat(&config, is_light));
        while let Some(newcomer) = newcomers.pop_front() {
            let agent = config.route(&newcomer.of.wish.key).clone();
            let stack = if agent.kind == AgentKind::Lua { thread::DEEP_STACK } else { thread::IO_STACK };
            let (house, news) = (self.house.clone(), self.news.0.clone());
            let (wish, mailbox) = (newcomer.of.wish.clone(), newcomer.mailbox.clone());
            let sid = wish.sid;
            let started = thread::spawn(format!("s{sid}"), stack, move || {
                worker::run(&house, &wish, agent, &mailbox);
                let _ = news.send(News::WorkerEnded(sid));
            });
            match started {
                Ok(join) => self.house.registry.started(sid, join),
                Err(e) if self.house.registry.numbers().live > newcomers.len() + 1 => {
                    // A worker that ends gives one back.
                    self.retry_at = Some(now + NO_THREAD);
                    newcomers.push_front(newcomer);
                    newcomers.into_iter().for_each(|n| self.house.registry.unseat(n));
                    return log::warn!("no thread for another session, tried again in a second: {e}");
                }
                Err(e) => {
                    let wish = newcomer.of.wish;
                    log::error!(key = wish.key; "no thread for the session: {e}");
                    let _ = self.house.registry.remove(wish.sid);
                    let why = format!("no thread for the session: {e}");
                    let _ = self.house.store.fail_waiting(wish.sid, "overloaded", why);
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
            Request::Prune => {
                self.prune_again = self.pruning;
                self.prune_at = Instant::now();
            }
        }
    }

    fn hold(&mut self, hold: bool) {
        if self.machine.stop().is_some() {
            return;
        }
        self.house.store.set_admission(if hold { Admission::Held } else { Admission::Open });
        self.house.show(|b| b.held = hold);
        log::info!("{}", if hold { "held: messages are accepted, no turn starts" } else { "released: turns start" });
        if !hold {
            self.house.registry.wake_all();
            self.schedule(0);
        }
    }

    fn reload(&mut self, answer: Option<Sender<Result<Reloaded, String>>>) {
        if self.machine.stop().is_some() {
            log::warn!("reload refused: the daemon is stopping");
            if let Some(answer) = answer {
                let _ = answer.try_send(Err("the daemon is stopping".into()));
            }
            return;
        }
        let idle = self.reloading.is_empty();
        self.reloading.push(answer.unwrap_or_else(|| crossbeam_channel::bounded(1).0));
        if idle {
            notify::reloading();
            self.aside("reload", |house| Some(News::Reloaded(reload::run(house))));
        }
    }

    fn ask_stop(&mut self, reason: StopReason, urgency: Urgency) {
        self.machine.set_budget(self.house.config().shutdown);
        self.step(Event::StopAsked(reason, urgency));
    }

    fn take(&mut self, news: News) {
        match news {
            News::Life(event) => self.step(event),
            News::Started => {
                crate::failpoint::hit("boot", "started");
                self.delivery.tell(Message::Go);
            }
            News::WorkerEnded(sid) => {
                self.retry_at = None;
                if let Some((join, again)) = self.house.registry.remove(sid) {
                    // The thread has said its last word: the join is a matter of microseconds.
                    if let Some(join) = join
                        && join.join().is_err()
                    {
                        log::error!("the worker of session row {sid} panicked at its end");
                    }
                    self.house.registry.alone_over(sid);
                    if let Some(wish) = again {
                        self.house.registry.want(wish);
                    }
                }
            }
            News::Reloaded(outcome) => {
                notify::ready();
                match &outcome {
                    Ok(r) => {
                        log::info!("reloaded: {} keys changed{}", r.changed.len(), restart_text(r));
                        let fields = serde_json::json!({ "changed": r.changed });
                        let event = desk::hook_event(HookEvent::Reload, "", fields, None);
                        self.house.hooks.notify(event, Box::new(|_| ()));
                        self.prune_at = Instant::now();
                        if r.changed.iter().any(|key| key == "sessions.park_after") {
                            // Whoever rests until its old time looks at the new one.
                            self.house.registry.wake_all();
                        }
                    }
                    Err(e) => log::error!("reload refused, the old configuration and hooks stay: {e}"),
                }
                for answer in self.reloading.drain(..) {
                    let _ = answer.try_send(outcome.clone());
                }
            }
            News::Closed(done) => {
                self.released = done;
                self.step(Event::StoreClosed);
            }
            News::Undoubted(None) => self.doubt_at = Some(Instant::now() + DOUBT),
            News::Undoubted(Some(overlooked)) => {
                for sid in overlooked.gone {
                    self.house.registry.retire(sid, Instant::now() + RETIRE);
                }
                for (sid, tid) in overlooked.cancelled {
                    self.house.cancel_turn(sid, tid);
                }
                if self.machine.phase() == Phase::Running {
                    self.schedule(0);
                }
            }
            News::Pruned(step) => {
                self.pruning = false;
                let more = self.pruned.went_on(step);
                let again = std::mem::take(&mut self.prune_again) || more;
                self.prune_at = Instant::now() + if again { Duration::ZERO } else { PRUNE };
            }
        }
    }

    /// Runs something that may take its time on a thread of its own.
    fn aside(&self, name: &str, body: impl FnOnce(&Arc<House>) -> Option<News> + Send + 'static) {
        let (house, news) = (self.house.clone(), self.news.0.clone());
        let body = move || {
            if let Some(result) = body(&house) {
                let _ = news.send_timeout(result, Duration::from_secs(60));
            }
        };
        if let Err(e) = thread::spawn(name, thread::DEEP_STACK, body) {
            log::error!("{name}: no thread: {e}");
        }
    }

    /// Feeds the machine, and does what it says.
    fn step(&mut self, event: Event) {
        let before = self.machine.phase();
        let actions = self.machine.step(event, Instant::now());
        let phase = self.machine.phase();
        if let Some(stop) = self.machine.stop() {
            let deadline_at = clock::now() + millis(stop.deadline.saturating_duration_since(Instant::now()));
            self.house.show(|b| b.stop = Some((stop.reason, stop.urgency, deadline_at)));
        }
        if phase != before {
            self.house.show(|b| b.phase = phase.as_str());
            if let Some(report) = &mut self.report {
                report.enter(phase);
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

/// Whether an agent of this kind holds nothing between two turns that would have to be closed.
const fn is_light(kind: AgentKind) -> bool {
    match kind {
        AgentKind::Echo | AgentKind::Exec | AgentKind::Openai => true,
        AgentKind::Acp | AgentKind::Lua => false,
    }
}

/// Once the store answers again: what a commit in doubt did after all. `None`: it does not answer yet.
fn look_for_overlooked(house: &House) -> Option<Overlooked> {
    if !house.store.answers(DOUBT) {
        return None;
    }
    let live: Vec<i64> = house.registry.live().into_keys().collect();
    house.store.overlooked(&live).inspect_err(|e| log::error!("what a commit in doubt did cannot be read: {e}")).ok()
}

fn restart_text(r: &Reloaded) -> String {
    if r.needs_restart.is_empty() {
        String::new()
    } else {
        format!(", needs a restart: {}", r.needs_restart.join(", "))
    }
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

fn millis(d: Duration) -> clock::Millis {
    clock::Millis::try_from(d.as_millis()).unwrap_or(clock::Millis::MAX)
}

fn took(ms: clock::Millis) -> String {
    format!("{ms} ms")
}
