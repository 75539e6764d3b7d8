//! Promise 9 under SIGKILL: the daemon, the shim of an agent, or both die inside turns, at named transactions, at steps of a
//! boot, and at moments that events choose. Over the death of a daemon every turn goes on: each line of an agent is kept once
//! and in order, each prompt and each answer is heard once. Over the death of a shim a turn is interrupted and continued.
//!
//! `OSTLER_KEPT_KILLS` deaths inside turns (200) over two daemons, each seeded; `OSTLER_KEPT_SEED` repeats a run.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use ostler::client::{ClientError, SseEvent, session_path};
use rustix::process::Signal;
use serde_json::{Value, json};
use ureq::http::Method;

use crate::daemon::{Daemon, PATIENCE, kept, open_pid, wait_pidfd};
use crate::load::{Clock, Rng};
use crate::rig::{self, Came, FS, NOTE, boot, boot_ready, check_answers, check_calls};

/// Agents that ask, agents that are always allowed, commands; nobody kills a shim of the first of each.
const KEYS: [&str; 6] = ["local:a0", "local:a1", "local:y0", "local:y1", "local:x0", "local:x1"];

/// The transactions that a turn passes, and those in which it goes on.
const TRANSACTIONS: &[&str] = &[
    "accept_message",
    "begin_turn",
    "append",
    "finish_turn",
    "settle_delivery",
    "note_shim",
    "agent_ready",
    "keep_between",
    "answer_permission",
    "pending_shim",
    "attach_activation",
    "shim_gone",
];
const STEPS: &[&str] = &["before", "inside", "committed"];
/// Places that are in no transaction, and steps of a boot.
const PLACES: &[&str] = &[
    "prompt.before",
    "prompt.answered",
    "shim.listens",
    "shim.noted",
    "shim.started",
    "attach.before",
    "attach.attached",
    "attach.committed",
    "boot.locked",
    "boot.opened",
    "boot.looked",
    "boot.recovered",
    "boot.swept",
    "boot.listening",
    "boot.ready",
    "boot.started",
];

/// Who dies in a round, and after how many events.
#[derive(Clone, Debug)]
enum Plan {
    /// The daemon, at a failpoint; if it is not met, after so many.
    Point(String, u64),
    /// The daemon.
    Daemon(u64),
    /// A shim, and later the daemon.
    Shim(u64, u64),
    /// Both at once; whether the shim is first.
    Both(u64, bool),
}

/// What is known of a chat by all threads.
#[derive(Default)]
struct Shared {
    session: Mutex<Option<String>>,
    /// How many messages were sent.
    sent: AtomicUsize,
    /// The turn of a message up to this number may have been cut off, because a shim was killed.
    harmed: AtomicUsize,
    /// A turn is on its way.
    open: AtomicBool,
}

/// A message as its sender knows it.
#[derive(Debug)]
struct Sent {
    /// A word that is in no other message.
    mark: String,
    text: String,
    accepted: Option<Value>,
    /// The turn that ended its chain.
    ended: Option<String>,
}

/// Somebody who talks under one key: one message at a time, followed to its end over as many daemons as it takes.
struct Chat<'a> {
    key: &'static str,
    shared: &'a Shared,
    rng: Rng,
    sent: Vec<Sent>,
    /// The newest event.
    seen: u64,
    /// A question that is not known to be answered.
    asked: Option<Value>,
    /// How often it was said that a boot attached, and how many there were.
    reattached: usize,
    boots: usize,
    /// A turn has begun in this activation: from there on its agent is kept.
    begun: bool,
    entries: Vec<Value>,
    next_entry: i64,
}

/// `None` when the daemon is not there any more.
#[track_caller]
fn alive<T>(what: &str, answer: Result<T, ClientError>) -> Option<T> {
    match answer {
        Ok(value) => Some(value),
        Err(e) if e.code == "timeout" => panic!("{what}: nothing comes"),
        Err(e) if e.is_passing() => None,
        Err(e) => panic!("{what}: {e}"),
    }
}

impl<'a> Chat<'a> {
    fn new(key: &'static str, shared: &'a Shared, seed: u64) -> Self {
        let (sent, entries) = (Vec::new(), Vec::new());
        let rng = Rng(seed);
        Self {
            key,
            shared,
            rng,
            sent,
            seen: 0,
            asked: None,
            reattached: 0,
            boots: 0,
            begun: false,
            entries,
            next_entry: 0,
        }
    }

    fn harmed(&self) -> bool {
        self.shared.harmed.load(Ordering::SeqCst) >= self.sent.len()
    }

    /// A text that makes an agent say lines, with questions between them.
    fn new_message(&mut self) {
        let mark = format!("#{}#", self.sent.len());
        let mut lines = || format!("lines {} {}", 2 + self.rng.below(6), self.rng.below(20));
        let text = if self.key.starts_with("local:x") {
            format!("{mark}\n{}; say half ; {}", lines(), lines())
        } else {
            format!("{mark}\n{}; tool t; {}; permission; {}", lines(), lines(), lines())
        };
        self.sent.push(Sent { mark, text, accepted: None, ended: None });
        self.shared.sent.store(self.sent.len(), Ordering::SeqCst);
    }

    /// Goes on until the daemon is gone; `last`: or until the turn is over.
    fn work(&mut self, d: &Daemon, clock: &Clock, last: bool) -> Option<()> {
        self.answer(d)?;
        if self.settle(d)? && last {
            return Some(());
        }
        self.post(d)?;
        let path = session_path(self.key, &format!("/events?after={}", self.seen));
        let until = Some(Instant::now() + PATIENCE);
        for event in alive(self.key, d.client().stream_until(&path, Method::GET, None, None, until))? {
            let event = alive(self.key, event)?;
            self.seen = event.id.unwrap_or(self.seen);
            self.hear(d, &event)?;
            clock.tick();
            if self.settle(d)? {
                if last {
                    return Some(());
                }
                self.post(d)?;
            }
        }
        None
    }

    /// Sends what is not acknowledged, or the next message.
    fn post(&mut self, d: &Daemon) -> Option<()> {
        if self.sent.last().is_none_or(|s| s.ended.is_some()) {
            self.new_message();
        }
        let sent = self.sent.last_mut().unwrap();
        let accepted = alive(self.key, d.try_post(self.key, &sent.text, Some(&sent.mark)))?;
        *self.shared.session.lock().unwrap() = accepted["session_id"].as_str().map(str::to_owned);
        if let Some(before) = &sent.accepted {
            assert_eq!((&accepted["duplicate"], &accepted["turn_id"]), (&json!(true), &before["turn_id"]));
        } else {
            sent.accepted = Some(accepted);
        }
        self.shared.open.store(true, Ordering::SeqCst);
        Some(())
    }

    /// Gives the answer that is owed, if one is.
    fn answer(&mut self, d: &Daemon) -> Option<()> {
        let Some(id) = self.asked.clone() else { return Some(()) };
        let given = json!({ "request_id": id, "option_id": "allow-once" });
        match d.client().post(&session_path(self.key, "/permission"), Some(&given)) {
            // It may have been taken without that anybody heard of it: then an event says so.
            Err(e) if e.code == "resolved" => {}
            answer => {
                alive(self.key, answer)?;
                self.asked = None;
            }
        }
        Some(())
    }

    fn hear(&mut self, d: &Daemon, event: &SseEvent) -> Option<()> {
        let what = || format!("{}: {} {}", self.key, event.event, event.data);
        let sent = self.sent.last();
        match event.event.as_str() {
            "permission" if event.text("state") == "resolved" => {
                if self.asked.as_ref() == Some(&event.data["request_id"]) {
                    self.asked = None;
                }
            }
            "permission" if event.text("state") == "open" && self.key.starts_with("local:a") => {
                self.asked = Some(event.data["request_id"].clone());
                self.answer(d)?;
            }
            "notice" if event.text("code") == "reattached" => {
                self.reattached += 1;
                assert!(self.reattached < self.boots, "told more often than there were boots: {}", what());
            }
            "turn_start" => {
                let same =
                    sent.is_some_and(|s| s.accepted.as_ref().is_some_and(|a| a["turn_id"] == event.data["turn_id"]));
                assert!(same || self.harmed(), "another turn began: {}", what());
                self.begun = true;
            }
            "session_start" => self.begun = false,
            "session_end" => {
                assert!(!self.begun || self.harmed(), "an activation ended over the death of a daemon: {}", what());
            }
            "turn_end" => {
                let outcome = event.text("outcome");
                let goes_on = outcome == "interrupted" && self.harmed();
                // A daemon that sees its agent die fails the turn, as always.
                let died = outcome == "failed" && event.data["error"]["message"].to_string().contains("with its shim");
                let died = died && self.harmed();
                assert!(goes_on || died || outcome == "completed", "{}", what());
                if !goes_on {
                    self.asked = None;
                    self.sent.last_mut().unwrap().ended = Some(event.text("turn_id").to_owned());
                    self.shared.open.store(false, Ordering::SeqCst);
                }
            }
            _ => self.answer(d)?,
        }
        Some(())
    }

    /// Whether the newest turn is over; compares what was kept of it with what its agent said, once.
    fn settle(&mut self, d: &Daemon) -> Option<bool> {
        let Some(turn) = self.sent.last().and_then(|s| s.ended.clone()) else { return Some(self.sent.is_empty()) };
        loop {
            let path = session_path(self.key, &format!("/transcript?after={}&limit=1000", self.next_entry));
            let page = alive(self.key, d.client().get(&path))?;
            let entries = page["entries"].as_array().unwrap();
            self.next_entry = entries.last().map_or(self.next_entry, |e| e["seq"].as_i64().unwrap());
            self.entries.extend(entries.iter().cloned());
            if page["next"].is_null() {
                break;
            }
        }
        self.compare(d, &turn);
        // What is settled is of no more use.
        self.entries.clear();
        Some(true)
    }

    fn compare(&self, d: &Daemon, turn: &str) {
        let sent = self.sent.last().unwrap();
        let answer = |id: &Value| -> String {
            let of_turn = |e: &&Value| e["role"] == "agent" && e["turn_id"] == *id;
            self.entries.iter().filter(of_turn).map(|e| e["text"].as_str().unwrap()).collect()
        };
        let session = self.shared.session.lock().unwrap().clone().unwrap();
        let told = d.diary(&session).told;
        let told: Vec<_> = told.iter().filter(|t| t.prompt.contains(&sent.mark)).collect();
        if self.entries.is_empty() {
            // Compared before.
            return;
        }
        if self.harmed() {
            let ids: BTreeSet<&str> = self.entries.iter().filter_map(|e| e["turn_id"].as_str()).collect();
            for id in ids {
                let part = answer(&json!(id));
                let begun = told.iter().any(|t| t.said.starts_with(&part));
                assert!(begun, "{}: {id}: kept {part:?}, said {told:#?}", self.key);
            }
            return;
        }
        assert_eq!(sent.accepted.as_ref().unwrap()["turn_id"], turn, "{}: {sent:?}", self.key);
        assert_eq!(told.len(), 1, "{}: heard other than once: {told:#?}", self.key);
        assert_eq!(answer(&json!(turn)), told[0].said, "{}: what was kept, and what was said", self.key);
    }
}

/// What a run met.
#[derive(Default)]
struct Tally {
    /// Deaths while turns ran, of daemons and of shims.
    daemons: usize,
    shims: usize,
    turns: usize,
    met: BTreeSet<String>,
    missed: BTreeSet<String>,
    /// Agents whose shim was killed.
    cut: BTreeSet<u32>,
}

impl Tally {
    const fn deaths(&self) -> usize {
        self.daemons + self.shims
    }
}

/// Kills the shim of an agent that is in a turn.
fn kill_a_shim(d: &Daemon, all: &[Shared], rng: &mut Rng, tally: &mut Tally) {
    let from = rng.below(3);
    for n in (0..3).map(|n| 2 * ((from + n) % 3) + 1) {
        let Some(session) = all[n].session.lock().unwrap().clone() else { continue };
        let diary = d.diary(&session);
        let in_turn = diary.told.last().is_some_and(|t| !t.ended);
        let Some((agent, shim)) = diary.agents.last().copied().filter(|_| in_turn) else { continue };
        let Some(fd) = open_pid(shim) else { continue };
        if std::fs::read_to_string(format!("/proc/{shim}/comm")).is_ok_and(|name| name.trim() == "ostler-shim") {
            all[n].harmed.store(all[n].sent.load(Ordering::SeqCst) + 1, Ordering::SeqCst);
            tally.cut.insert(agent);
            if rustix::process::pidfd_send_signal(&fd, Signal::KILL).is_ok() {
                tally.shims += 1;
                return;
            }
        }
    }
}

/// One round: a boot, talk, deaths. Gives the daemon back, dead.
fn round(
    mut d: Daemon,
    plan: &Plan,
    chats: &mut [Chat<'_>],
    all: &[Shared],
    rng: &mut Rng,
    tally: &mut Tally,
) -> Daemon {
    let points = match plan {
        Plan::Point(point, _) => {
            let often =
                ["append", "begin_turn", "finish_turn", "prompt", "accept_message", "answer_permission", "attach"];
            let most = if often.iter().any(|o| point.starts_with(o)) { 6 } else { 1 };
            format!("{point}=kill:{}", 1 + rng.below(most))
        }
        _ => String::new(),
    };
    let from = d.log.count();
    let came;
    (d, came) = boot(d, &points);
    chats.iter_mut().for_each(|chat| chat.boots += 1);
    if came == Came::Ready {
        let (clock, clients) = (Clock::default(), chats.len());
        std::thread::scope(|scope| {
            for chat in chats.iter_mut() {
                scope.spawn(|| {
                    chat.work(&d, &clock, false);
                    clock.done();
                });
            }
            let die = |events| {
                clock.wait(events, clients);
                d.signal(Signal::KILL);
            };
            match *plan {
                Plan::Point(_, events) | Plan::Daemon(events) => die(events),
                Plan::Shim(first, events) => {
                    clock.wait(first, clients);
                    kill_a_shim(&d, all, rng, tally);
                    die(first + events);
                }
                Plan::Both(events, true) => {
                    clock.wait(events, clients);
                    kill_a_shim(&d, all, rng, tally);
                    d.signal(Signal::KILL);
                }
                Plan::Both(events, false) => {
                    die(events);
                    kill_a_shim(&d, all, rng, tally);
                }
            }
        });
        assert!(d.ended().code().is_none());
    }
    if all.iter().any(|s| s.open.load(Ordering::SeqCst)) {
        tally.daemons += 1;
    }
    if let Plan::Point(point, _) = plan {
        let needle = format!("failpoint {point}: kill");
        let met = d.log.all().iter().skip(from).any(|l| l.contains(&needle));
        if met { &mut tally.met } else { &mut tally.missed }.insert(point.clone());
    }
    d
}

/// The next plan: by turns a named place, and somebody at any moment.
fn plan(n: usize, half: usize, rng: &mut Rng) -> Plan {
    let named: Vec<String> = TRANSACTIONS
        .iter()
        .flat_map(|name| STEPS.iter().map(move |step| format!("{name}.{step}")))
        .chain(PLACES.iter().map(|p| (*p).to_owned()))
        .collect();
    let events = 1 + rng.next() % 24;
    match n % 4 {
        0 | 2 => Plan::Point(named[(n + half) % named.len()].clone(), 40),
        1 => Plan::Daemon(events),
        _ if rng.below(2) == 0 => Plan::Shim(events, 1 + rng.next() % 12),
        _ => Plan::Both(events, rng.below(2) == 0),
    }
}

fn config() -> String {
    format!(
        "[agents]\norphan_after = \"60s\"\n[sessions]\nstuck_threshold = 0\n{FS}attempts = 100000\n{}",
        kept(&[], "")
    )
}

/// One daemon's whole life, with as many deaths.
fn life(seed: u64, kills: usize, half: usize) -> Tally {
    let mut rng = Rng(seed);
    let all: Vec<Shared> = KEYS.iter().map(|_| Shared::default()).collect();
    let mut chats: Vec<Chat<'_>> =
        KEYS.iter().zip(&all).map(|(key, shared)| Chat::new(key, shared, rng.next())).collect();
    let mut d = Daemon::new().config(&config()).hook("note.lua", NOTE);
    let mut tally = Tally::default();
    let mut n = 0;
    while tally.deaths() < kills {
        let plan = plan(n, half, &mut rng);
        d = round(d, &plan, &mut chats, &all, &mut rng, &mut tally);
        if n % 16 == 15 {
            d.check(false);
        }
        n += 1;
        assert!(n < 4 * kills + 20, "most rounds meet no turn");
    }
    finish(d, &mut chats, &tally);
    tally.turns = chats.iter().map(|c| c.sent.len()).sum();
    tally
}

/// Brings the daemon to rest, and checks what is left of it all.
fn finish(d: Daemon, chats: &mut [Chat<'_>], tally: &Tally) {
    let mut d = boot_ready(d, "");
    let clock = Clock::default();
    std::thread::scope(|scope| {
        for chat in chats.iter_mut() {
            scope.spawn(|| chat.work(&d, &clock, true).expect("the daemon lives"));
        }
    });
    // It looks for whatever is left.
    assert_eq!(d.stop(), 0);
    check_calls(&d);
    check_answers(&d);
    let ends: i64 = d.sql("SELECT count(*) FROM events WHERE kind='session_end'");
    assert_eq!(ends, d.sql::<i64>("SELECT count(*) FROM activations"), "one end for each activation");
    let sockets: Vec<_> =
        std::fs::read_dir(d.path("state/s")).into_iter().flatten().map(|e| e.unwrap().file_name()).collect();
    assert!(sockets.is_empty(), "sockets of shims are left: {sockets:?}");
    for chat in chats {
        let diary = d.diary(&chat.shared.session.lock().unwrap().clone().unwrap());
        for ((agent, id), answers) in &diary.permissions {
            let once = answers.len() == 1 || (answers.is_empty() && tally.cut.contains(agent));
            assert!(once, "{}: {agent} {id} was answered {answers:?}", chat.key);
        }
        assert_eq!(diary.cancels, 0, "{}", chat.key);
        if ["local:a0", "local:y0"].contains(&chat.key) {
            // Activations that ended before their agent was ready have none that heard anything.
            let agents: BTreeSet<u32> = diary.told.iter().map(|t| t.agent).collect();
            assert_eq!(agents.len(), 1, "{}: {agents:?} of {:?}", chat.key, diary.agents);
        }
    }
}

/// Promise 9: at least 200 deaths inside turns, at named places and at any moment.
#[test]
fn deaths_inside_turns() {
    let kills = usize::try_from(rig::number("OSTLER_KEPT_KILLS").unwrap_or(200)).unwrap();
    let since = Instant::now();
    let tallies = rig::lives("OSTLER_KEPT_SEED", kills, life);
    let sum = |of: fn(&Tally) -> usize| tallies.iter().map(of).sum::<usize>();
    let met: BTreeSet<&String> = tallies.iter().flat_map(|t| &t.met).collect();
    let missed: Vec<&String> = tallies.iter().flat_map(|t| &t.missed).filter(|p| !met.contains(p)).collect();
    eprintln!(
        "{} daemons and {} shims died inside {} turns, at {} named places, in {:?}; not met: {missed:?}",
        sum(|t| t.daemons),
        sum(|t| t.shims),
        sum(|t| t.turns),
        met.len(),
        since.elapsed()
    );
    assert!(sum(Tally::deaths) >= kills);
}

/// Promise 5: a session that kills the daemon each time it is attached to is attached to alone at last, then not any more:
/// its agent is ended, it is suspended, and the turns that ran beside it go on.
#[test]
fn a_deadly_agent_is_suspended() {
    let rule = "attach.committed@local:bad=kill:1";
    let mut d = boot_ready(Daemon::new().config(&format!("[agents]\norphan_after = \"60s\"\n{}", kept(&[], ""))), "");
    let mut gate = d.gate("gate");
    let mut turns = Vec::new();
    for key in ["local:a", "local:y", "local:x", "local:bad"] {
        let mut events = d.events(key);
        turns.push((key, d.post(key, &format!("say begun; wait-file {}; say done", gate.path.display()))));
        events.until("text");
    }
    let bad = turns.pop().unwrap().1;
    let (agent, shim) = d.diary(bad["session_id"].as_str().unwrap()).newest();
    let deadly = [agent, shim].map(|pid| open_pid(pid).unwrap());
    d.kill9();
    let mut deaths = 0;
    loop {
        let came;
        (d, came) = boot(d, rule);
        let suspended = || d.get("/v1/sessions?state=suspended")["sessions"].as_array().is_some_and(|s| !s.is_empty());
        if came == Came::Ready {
            // Until it is suspended, or the daemon is gone.
            let until = Some(Instant::now() + PATIENCE);
            let path = session_path("local:bad", "/events?after=0");
            let events = d.client().stream_until(&path, Method::GET, None, None, until);
            let told = |e: SseEvent| e.event == "turn_end";
            if events.into_iter().flatten().map_while(Result::ok).any(told) {
                assert!(suspended(), "its turn ended: {:#?}", d.past("local:bad"));
                break;
            }
            assert!(d.ended().code().is_none());
        }
        deaths += 1;
        assert!(deaths < 8, "it is never suspended");
        if deaths == 1 {
            gate.open();
        }
    }
    for (key, turn) in &turns {
        assert_eq!(d.events(key).end_of(turn).0, "completed", "{key}: its own turn, not another");
        let shown = d.show(key);
        assert_eq!((&shown["unclean"], &shown["resume_pending"]), (&json!(0), &Value::Null), "{shown}");
        let diary = d.diary(turn["session_id"].as_str().unwrap());
        assert_eq!((diary.told.len(), diary.agents.len()), (1, 1), "{key}");
    }
    assert_eq!(d.events("local:bad").end_of(&bad).0, "interrupted");
    for process in &deadly {
        assert!(wait_pidfd(process, PATIENCE), "its agent is ended, and its shim");
    }
    let listed = d.get("/v1/sessions?state=suspended");
    assert_eq!(listed["sessions"].as_array().unwrap().len(), 1, "{listed}");
    assert_eq!((&listed["sessions"][0]["key"], &listed["sessions"][0]["unclean"]), (&json!("local:bad"), &json!(3)));
    assert_eq!(d.stop(), 0);
}

/// A stop that comes at any step of a boot ends the agents that are being attached to.
#[test]
fn a_stop_at_each_step_of_attaching() {
    let stalls = ["boot.recovered", "boot.swept", "boot.listening", "boot.ready", "attach.before", "attach.attached"];
    for point in stalls.into_iter().chain(["attach.committed"]) {
        let config = format!("[agents]\norphan_after = \"60s\"\n[shutdown]\ndrain = \"50ms\"\n{}", kept(&[], ""));
        let mut d = boot_ready(Daemon::new().config(&config), "");
        let gate = d.gate("gate");
        let mut agents = Vec::new();
        for key in ["local:a", "local:y", "local:x"] {
            let mut events = d.events(key);
            let turn = d.post(key, &format!("say begun; wait-file {}; say done", gate.path.display()));
            events.until("text");
            agents.push(open_pid(d.diary(turn["session_id"].as_str().unwrap()).newest().0).unwrap());
        }
        d.kill9();
        let from = d.log.count();
        let mut d = d.env("OSTLER_FAILPOINTS", &format!("{point}=stall:700"));
        d.spawn();
        d.log.find(from, "that signals are heard", |l| l.contains("listening on"));
        d.sigterm();
        // It looks for whatever is left, and at the database.
        assert_eq!(d.exit_code(), 0, "{point}");
        for agent in &agents {
            assert!(wait_pidfd(agent, PATIENCE), "{point}: an agent goes on");
        }
        let open: i64 = d.sql("SELECT count(*) FROM activations WHERE closed_at IS NULL");
        assert_eq!(open, 0, "{point}");
    }
}

/// A turn whose agent says something and waits for a gate: what was accepted, and the agent and its shim, held.
fn begun(d: &Daemon, key: &str, text: &str) -> (Value, Vec<OwnedFd>) {
    let mut events = d.events(key);
    let turn = d.post(key, text);
    events.until("text");
    let (agent, shim) = d.diary(turn["session_id"].as_str().unwrap()).newest();
    (turn, [agent, shim].map(|pid| open_pid(pid).unwrap()).into())
}

/// What an agent said before it ended is more than a daemon reads at once: each death after a part of it leaves the rest
/// whole, in the middle of a line and of a character.
#[test]
fn what_an_agent_said_last_is_whole() {
    let (wide, line) = ("\u{20ac}".repeat(1_000_000), "\u{20ac}".repeat(100_000));
    let last = format!("say {line}; die 3");
    for (key, text, said, outcome) in
        [("local:x", "wide 1000000", wide, "completed"), ("local:a", &last, line.clone(), "failed")]
    {
        let mut d = boot_ready(Daemon::new().config(&config()), "");
        let mut gate = d.gate("gate");
        let (turn, processes) = begun(&d, key, &format!("say begun; wait-file {}; {text}", gate.path.display()));
        d.kill9();
        gate.open();
        assert!(wait_pidfd(&processes[0], PATIENCE));
        // With a part of it, or before the end, if it comes in one piece.
        let mut d = d.env("OSTLER_FAILPOINTS", "append.committed=kill:1,finish_turn.before=kill:1");
        for _ in 0..2 {
            d.spawn();
            assert!(d.ended().code().is_none(), "{key}");
        }
        let mut d = boot_ready(d, "");
        assert_eq!(d.events(key).end_of(&turn).0, outcome, "{key}");
        let of_turn = |e: &&Value| e["role"] == "agent" && e["turn_id"] == turn["turn_id"];
        let kept: String = d.transcript(key).iter().filter(of_turn).map(|e| e["text"].as_str().unwrap()).collect();
        assert!(kept == format!("begun{said}"), "{key}: what was kept, and what was said");
        assert_eq!(d.stop(), 0);
    }
}

/// A stop that ends agents, and comes when those of a stop that keeps them were let go already, ends them too.
#[test]
fn a_stop_after_agents_were_let_go() {
    for key in ["local:a", "local:x"] {
        let mut d = boot_ready(Daemon::new().config(&config()), "act.CloseStore=stall:1000");
        let gate = d.gate("gate");
        let (turn, processes) = begun(&d, key, &format!("say begun; wait-file {}", gate.path.display()));
        let from = d.log.count();
        d.client().post("/v1/stop", Some(&json!({ "agents": "keep" }))).unwrap();
        d.log.find(from, "that agents are let go", |l| l.contains("agents go on"));
        d.sigterm();
        assert_eq!(d.ended().code(), Some(1), "{key}: their ends are not written");
        assert!(processes.iter().all(|process| wait_pidfd(process, PATIENCE)), "{key}: they go on");
        let mut d = boot_ready(d, "");
        assert_eq!(d.events(key).end_of(&turn).0, "interrupted", "{key}");
        assert_eq!(d.stop(), 0);
    }
}
