//! SIGKILL under load: at named transactions, at steps of a boot and of a stop, and at moments that events choose.
//!
//! `OSTLER_KILLS` deaths (200) over two daemons, each seeded; a run is repeated by `OSTLER_KILL_SEED`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex};
use std::time::Instant;

use ostler::client::session_path;
use rustix::process::Signal;
use serde_json::{Value, json};
use ureq::http::Method;

use crate::daemon::{Daemon, PATIENCE};
use crate::rig::{self, Came, FS, NOTE, boot, boot_ready, check_answers, check_calls, check_kept, settled};

/// Transactions, each with what else its round needs to meet it.
const TRANSACTIONS: &[(&str, Needs)] = &[
    ("accept_message", Needs::Load),
    ("find_duplicate", Needs::Load),
    ("open_activation", Needs::Load),
    ("note_agent", Needs::Load),
    ("note_process", Needs::Load),
    ("begin_turn", Needs::Load),
    ("peek_turn", Needs::Load),
    ("append", Needs::Load),
    ("finish_turn", Needs::Load),
    ("fail_queued", Needs::Load),
    ("close_activation", Needs::Load),
    ("settle_delivery", Needs::Load),
    ("note_attempt", Needs::Load),
    ("kv_incr", Needs::Load),
    ("kv_set", Needs::Load),
    ("reset", Needs::Load),
    ("suspend", Needs::Load),
    ("resume", Needs::Load),
    ("cancel", Needs::Load),
    ("delete", Needs::Load),
    ("worker_died", Needs::Panic),
    ("open_boot", Needs::Load),
    ("prune", Needs::Reload),
    ("mark_running", Needs::Stop),
    ("refresh_marks", Needs::Stop),
    ("close_activations", Needs::Stop),
    ("note_uncalled", Needs::Stop),
    ("close_boot", Needs::Stop),
];
const STEPS: &[&str] = &["before", "inside", "committed"];
/// Steps of a boot.
const BOOT: &[&str] = &[
    "boot.locked",
    "boot.opened",
    "boot.looked",
    "boot.recovered",
    "boot.swept",
    "boot.listening",
    "boot.ready",
    "boot.started",
];
/// Places that are not in a transaction.
const OTHER: &[&str] =
    &["prompt.before", "prompt.answered", "delivery.before", "delivery.noted", "delivery.answered", "delivery.kept"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    Load,
    Panic,
    Reload,
    Stop,
}

/// How a round ends.
#[derive(Clone, Debug)]
enum Plan {
    /// At a failpoint; after as many events whatever else it needs is done.
    Point(String, Needs, u64),
    /// From outside, after as many events.
    Outside(u64),
}

/// The operator's keys: echo, and one whose sessions each need an agent session of their own.
const OPERATED: [&str; 2] = ["local:op", "local:fop"];

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// What clients and the executioner tell each other.
#[derive(Default)]
pub struct Clock {
    state: Mutex<(u64, usize)>,
    moved: Condvar,
}

impl Clock {
    /// An event was seen.
    pub fn tick(&self) {
        self.state.lock().unwrap().0 += 1;
        self.moved.notify_all();
    }

    /// A client has nothing more to do in this round.
    pub fn done(&self) {
        self.state.lock().unwrap().1 += 1;
        self.moved.notify_all();
    }

    /// Until as many events were seen, or all clients are done.
    pub fn wait(&self, events: u64, clients: usize) {
        let lock = self.state.lock().unwrap();
        let (lock, late) = self.moved.wait_timeout_while(lock, PATIENCE, |s| s.0 < events && s.1 < clients).unwrap();
        assert!(!late.timed_out(), "no event comes: {:?}", *lock);
    }
}

/// A message as its sender knows it.
#[derive(Clone, Debug)]
struct Sent {
    id: String,
    text: String,
    accepted: Option<Value>,
}

/// A client: it alone writes to its keys, resends what was not acknowledged under the same id, and goes on.
struct Sender {
    keys: Vec<String>,
    sent: BTreeMap<String, Vec<Sent>>,
    rng: Rng,
}

impl Sender {
    fn new(n: usize, seed: u64) -> Self {
        let keys = ["e", "f", "x"].iter().map(|kind| format!("local:{kind}{n}")).collect();
        Self { keys, sent: BTreeMap::new(), rng: Rng(seed) }
    }

    /// Sends until the daemon does not answer, or enough was sent.
    fn round(&mut self, d: &Daemon, clock: &Clock) {
        let _ = self.work(d, clock);
        clock.done();
    }

    fn work(&mut self, d: &Daemon, clock: &Clock) -> Option<()> {
        for n in 0..14 {
            let key = self.keys[self.rng.below(self.keys.len())].clone();
            let sent = self.sent.entry(key.clone()).or_default();
            let pending = sent.last().is_some_and(|s| s.accepted.is_none());
            if !pending && !sent.is_empty() && self.rng.below(6) == 0 {
                // What was acknowledged long ago, again.
                let old = sent[self.rng.below(sent.len())].clone();
                let again = post(d, &key, &old)?;
                clock.tick();
                check_same(&key, &old, &again);
                continue;
            }
            if !pending {
                let id = format!("m{}", sent.len());
                let text = if key.starts_with("local:f") && sent.len().is_multiple_of(3) {
                    format!("say part {id}; tool; say end {id}")
                } else {
                    format!("text {id}")
                };
                sent.push(Sent { id, text, accepted: None });
            }
            let last = sent.len() - 1;
            let message = sent[last].clone();
            if n % 4 == 3 {
                follow(d, &key, &message, clock, |accepted| sent[last].accepted = Some(accepted))?;
            } else {
                sent[last].accepted = Some(post(d, &key, &message)?);
                clock.tick();
            }
        }
        Some(())
    }
}

#[track_caller]
fn check_same(key: &str, old: &Sent, again: &Value) {
    let before = old.accepted.as_ref().unwrap();
    assert_eq!(again["duplicate"], true, "{key} {old:?}: {again}");
    for field in ["message_id", "turn_id", "session_id"] {
        assert_eq!(again[field], before[field], "{key} {old:?}: {again}");
    }
}

/// The 202, or `None` when the daemon is not there any more, or asks to come back.
fn post(d: &Daemon, key: &str, message: &Sent) -> Option<Value> {
    match d.try_post(key, &message.text, Some(&message.id)) {
        Ok(accepted) => Some(accepted),
        Err(e) if e.is_passing() => None,
        Err(e) => panic!("{key} {message:?}: {e}"),
    }
}

/// Sends, and follows the turn to its end.
fn follow(d: &Daemon, key: &str, message: &Sent, clock: &Clock, mut accepted: impl FnMut(Value)) -> Option<()> {
    let body = json!({ "text": message.text, "id": message.id });
    let path = session_path(key, "/messages");
    let stream = match d.client().stream_until(&path, Method::POST, Some(&body), None, Some(Instant::now() + PATIENCE))
    {
        Ok(stream) => stream,
        Err(e) if e.is_passing() => return None,
        Err(e) => panic!("{key} {message:?}: {e}"),
    };
    for event in stream {
        let Ok(event) = event else { return None };
        if event.event == "accepted" {
            accepted(event.data.clone());
        }
        clock.tick();
    }
    Some(())
}

/// Does what operators do, to keys of its own: nothing of it is checked but by the invariants.
/// `first`: the act that this round is about.
fn operate(d: &Daemon, rng: &mut Rng, clock: &Clock, first: &str) {
    const ACTS: &[&str] = &["post", "post", "post", "post", "reset", "suspend", "resume", "cancel", "delete"];
    let key_of = |n: usize| OPERATED[n].to_owned();
    let mut acts = vec![("post", key_of(1)), (first, key_of(1)), ("suspend", key_of(0)), ("resume", key_of(0))];
    acts.extend((0..8).map(|_| (ACTS[rng.below(ACTS.len())], key_of(rng.below(2)))));
    for (act, key) in acts {
        let passing = |code: &str| matches!(code, "unreachable" | "disconnected" | "timeout" | "stopping");
        let answer = match act {
            "reset" | "suspend" | "resume" => d.client().post(&session_path(&key, &format!("/{act}")), None),
            "cancel" => d.client().post(&session_path(&key, "/cancel?queued=1"), None),
            "delete" => d.client().delete(&session_path(&key, "")),
            _ => d.try_post(&key, "text", None),
        };
        match answer {
            Err(e) if passing(&e.code) => break,
            // Whom no agent can be started for.
            Ok(_) | Err(_) => {
                clock.tick();
                let _ = d.try_post("local:z", "text", None);
            }
        }
    }
    clock.done();
}

fn config() -> String {
    format!(
        "[sessions]\nstuck_threshold = 0\nqueue_limit = 100000\npark_after = \"40ms\"\n\
         [shutdown]\ndrain = \"20ms\"\ninterrupt = \"5s\"\nhooks = \"6s\"\n{FS}attempts = 100000\n\
         [agent.echo]\nkind = \"echo\"\ndelay = \"3ms\"\n[agent.exec]\nkind = \"exec\"\ncommand = [\"/bin/cat\"]\n\
         [agent.fake]\nkind = \"acp\"\ncommand = [\"@FAKE@\"]\npermission = \"allow\"\nenv = {{ FAKE_AGENT_STATE = \"@DIR@/agent\" }}\n\
         [agent.none]\nkind = \"acp\"\ncommand = [\"/bin/false\"]\n\
         [[route]]\nmatch = \"local:f*\"\nagent = \"fake\"\n[[route]]\nmatch = \"local:x*\"\nagent = \"exec\"\n\
         [[route]]\nmatch = \"local:z\"\nagent = \"none\"\n[[route]]\nmatch = \"*\"\nagent = \"echo\"\n"
    )
}

const MORE: &str = r#"
ostler.on("message", function(ev) return nil end)
ostler.on("before_turn", function(ev) return nil end)
ostler.on("session_end", function(ev)
  ostler.kv.incr("ends", 1)
  ostler.kv.set("last", ev.event_id)
end, { name = "count" })
"#;

/// Every plan of a run: each transaction's steps, a boot's, the rest, and moments from outside, as many as are wanted.
fn plans(rng: &mut Rng, count: usize, half: usize) -> Vec<Plan> {
    let mut named = Vec::new();
    for (name, needs) in TRANSACTIONS {
        for step in STEPS {
            named.push((format!("{name}.{step}"), *needs));
        }
    }
    named.extend(BOOT.iter().chain(OTHER).map(|p| ((*p).to_owned(), Needs::Load)));
    let mut plans: Vec<Plan> = (0..count)
        .map(|n| {
            let events = 1 + rng.next() % 40;
            if n % 3 == 2 {
                return Plan::Outside(events);
            }
            let (point, needs) = &named[(2 * (n - n / 3) + half) % named.len()];
            Plan::Point(point.clone(), *needs, events)
        })
        .collect();
    rng.shuffle(&mut plans);
    plans
}

/// The failpoints of a plan.
fn failpoints(plan: &Plan, rng: &mut Rng) -> String {
    let Plan::Point(point, needs, _) = plan else { return String::new() };
    let often = ["accept_message", "append", "begin_turn", "finish_turn", "settle_delivery", "prompt", "delivery"];
    let most = if often.iter().any(|o| point.starts_with(o)) { 12 } else { 1 };
    let hits = 1 + rng.below(most);
    match needs {
        Needs::Panic => format!("prompt.answered=panic:{},{point}=kill:1", 1 + rng.below(5)),
        Needs::Load | Needs::Reload | Needs::Stop => format!("{point}=kill:{hits}"),
    }
}

/// What a run met.
#[derive(Default)]
struct Tally {
    deaths: usize,
    at_points: usize,
    met: BTreeSet<String>,
    missed: BTreeSet<String>,
}

/// One round: boot, load, death. Gives the daemon back, dead.
fn round(mut d: Daemon, plan: &Plan, senders: &mut [Sender], rng: &mut Rng, tally: &mut Tally) -> Daemon {
    let points = failpoints(plan, rng);
    let from = d.log.count();
    let about = match plan {
        Plan::Point(point, ..) => point.split('.').next().unwrap_or_default(),
        Plan::Outside(_) => "",
    };
    // A new agent session comes with a new session.
    let about = if about == "note_agent" { "reset" } else { about };
    let came;
    (d, came) = boot(d, &points);
    if came == Came::Ready {
        let clock = Clock::default();
        let clients = senders.len() + 1;
        std::thread::scope(|scope| {
            for sender in senders.iter_mut() {
                scope.spawn(|| sender.round(&d, &clock));
            }
            scope.spawn(|| operate(&d, rng, &clock, about));
            match plan {
                Plan::Outside(events) => {
                    clock.wait(*events, clients);
                    d.signal(Signal::KILL);
                }
                Plan::Point(_, Needs::Stop, events) => {
                    clock.wait(*events, clients);
                    d.signal(Signal::TERM);
                }
                Plan::Point(_, Needs::Reload, events) => {
                    clock.wait(*events, clients);
                    d.signal(Signal::HUP);
                }
                Plan::Point(..) => {}
            }
        });
        if !matches!(plan, Plan::Point(_, Needs::Stop, _)) {
            d.signal(Signal::KILL);
        }
        let status = d.ended();
        tally.deaths += usize::from(status.code().is_none());
    } else {
        tally.deaths += 1;
    }
    if let Plan::Point(point, ..) = plan {
        let needle = format!("failpoint {point}: kill");
        if d.log.all().iter().skip(from).any(|l| l.contains(&needle)) {
            tally.at_points += 1;
            tally.met.insert(point.clone());
        } else {
            tally.missed.insert(point.clone());
        }
    }
    d
}

/// One daemon's whole life, with as many deaths; everything is checked at its end.
fn life(seed: u64, kills: usize, half: usize) -> Tally {
    let mut rng = Rng(seed);
    let mut d = Daemon::new().config(&config()).hook("note.lua", NOTE).hook("more.lua", MORE);
    std::fs::create_dir(d.path("agent")).unwrap();
    let mut senders: Vec<Sender> = (0..3).map(|n| Sender::new(n, rng.next())).collect();
    let mut tally = Tally::default();
    let plans = plans(&mut rng, kills, half);
    for (n, plan) in plans.iter().enumerate() {
        d = round(d, plan, &mut senders, &mut rng, &mut tally);
        if n % 16 == 15 {
            d.check(false);
        }
    }
    while tally.deaths < kills {
        let plan = Plan::Outside(1 + rng.next() % 40);
        d = round(d, &plan, &mut senders, &mut rng, &mut tally);
    }
    finish(d, &mut senders);
    tally
}

/// Brings the daemon to rest, and checks what it promised to each sender.
fn finish(d: Daemon, senders: &mut [Sender]) {
    let mut d = boot_ready(d, "");
    let mut ids = Vec::new();
    for (key, sent) in senders.iter_mut().flat_map(|s| s.sent.iter_mut()) {
        let mut events = d.events(key);
        for message in sent.iter_mut() {
            let again = post(&d, key, message).unwrap();
            if message.accepted.is_some() {
                check_same(key, message, &again);
            }
            message.accepted = Some(again.clone());
            ids.push(format!("{key} {}", message.id));
        }
        for message in &*sent {
            let turn = message.accepted.as_ref().unwrap()["turn_id"].as_str().unwrap();
            let (outcome, _) = settled(&mut events, turn);
            // A turn may fail of a panic that a failpoint made, never be lost.
            assert!(outcome == "completed" || outcome == "failed", "{key} {message:?}: {outcome}");
        }
        let said: Vec<String> = said_by_user(&d, key);
        let texts: Vec<String> = sent.iter().map(|m| m.text.clone()).collect();
        assert_eq!(said, texts, "{key}: each message once, in order");
    }
    // Whom no agent can be started for would wait for long.
    let _ = d.client().post(&session_path("local:z", "/cancel?queued=1"), None);
    for key in OPERATED {
        d.turn(key, "last");
    }
    assert_eq!(d.stop(), 0);
    check_calls(&d);
    check_answers(&d);
    check_kept(&d, &ids);
}

/// All that a user wrote under a key, over all pages.
fn said_by_user(d: &Daemon, key: &str) -> Vec<String> {
    let (mut said, mut after) = (Vec::new(), Some(0));
    while let Some(from) = after {
        let page = d.get(&session_path(key, &format!("/transcript?after={from}&limit=1000")));
        let entries = page["entries"].as_array().unwrap();
        said.extend(entries.iter().filter(|e| e["role"] == "user").map(|e| e["text"].as_str().unwrap().to_owned()));
        after = page["next"].as_i64();
    }
    said
}

/// Promises 1, 2 and 6: at least 200 deaths at named places and at any moment, and nothing acknowledged is lost or doubled.
#[test]
fn deaths_under_load() {
    let kills = usize::try_from(rig::number("OSTLER_KILLS").unwrap_or(200)).unwrap();
    let since = Instant::now();
    let tallies = rig::lives("OSTLER_KILL_SEED", kills, life);
    let (mut met, mut missed) = (BTreeSet::new(), BTreeSet::new());
    let (mut deaths, mut at_points) = (0, 0);
    for tally in tallies {
        deaths += tally.deaths;
        at_points += tally.at_points;
        met.extend(tally.met);
        missed.extend(tally.missed);
    }
    missed.retain(|p| !met.contains(p));
    eprintln!(
        "{deaths} deaths, {at_points} of them at {} named places, in {:?}; not met: {missed:?}",
        met.len(),
        since.elapsed()
    );
    assert!(deaths >= kills);
}
