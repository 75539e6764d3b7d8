//! One script tried out: loaded as the daemon would, and called over a host in memory.
//!
//! `ostler hooks fire EVENT --script FILE` and the tests of the shipped scripts run on it. Calls run one after the
//! other on the caller's own thread (which needs [`crate::thread::DEEP_STACK`]), with the daemon's own sandbox, chain
//! and limits. Files, programs and HTTP are real, where the configuration allows them.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::bell::TimerRun;
use super::kick::Kick;
use super::sample::SESSION;
use super::scripts::{LoadError, Plan, State, load_sources};
use super::stats::{REST, Stats};
use super::task::{self, Shared, Task};
use super::{Delivered, Event, HookHost, OnlyIf, Verdict, check, lock, sample_with};
use crate::clock::{self, Millis};
use crate::config;
use crate::model::event::{Entry, HookEvent, Role};

/// A host in memory.
#[derive(Debug, Default)]
pub struct TrialHost {
    kv: Mutex<BTreeMap<String, (Value, Option<Instant>)>>,
    sent: Mutex<Vec<(String, String, String)>>,
    transcripts: Mutex<HashMap<String, Vec<Entry>>>,
    sessions: Mutex<HashMap<String, Value>>,
}

impl TrialHost {
    /// What was sent: key, text and id of each message.
    #[must_use]
    pub fn sent(&self) -> Vec<(String, String, String)> {
        lock(&self.sent).clone()
    }

    /// What is kept now.
    #[must_use]
    pub fn kept(&self) -> BTreeMap<String, Value> {
        let now = Instant::now();
        let kv = lock(&self.kv);
        kv.iter().filter(|(_, (_, until))| alive(*until, now)).map(|(k, (v, _))| (k.clone(), v.clone())).collect()
    }

    /// What was said in a session, in order.
    pub fn say(&self, session_id: &str, what: impl IntoIterator<Item = (Role, String)>) {
        let entries = (1..).zip(what);
        let entry = |(seq, (role, text))| Entry { seq, turn_id: None, role, text, at: clock::now() };
        self.recall(session_id, entries.map(entry).collect());
    }

    /// A session's transcript.
    pub fn recall(&self, session_id: &str, entries: Vec<Entry>) {
        lock(&self.transcripts).insert(session_id.to_owned(), entries);
    }

    /// What is known of a session, under a key or an id.
    pub fn know(&self, name: &str, info: Value) {
        lock(&self.sessions).insert(name.to_owned(), info);
    }
}

fn alive(until: Option<Instant>, now: Instant) -> bool {
    until.is_none_or(|until| now < until)
}

impl HookHost for TrialHost {
    fn transcript(&self, id: &str, after: i64, limit: usize, upto: Option<i64>) -> Result<Vec<Entry>, String> {
        let upto = upto.unwrap_or(i64::MAX);
        let all = lock(&self.transcripts);
        let within = all.get(id).into_iter().flatten().filter(|e| e.seq > after && e.seq <= upto);
        Ok(within.take(limit).cloned().collect())
    }

    fn kv_get(&self, key: &str) -> Result<Option<Value>, String> {
        let kv = lock(&self.kv);
        Ok(kv.get(key).filter(|(_, until)| alive(*until, Instant::now())).map(|(value, _)| value.clone()))
    }

    fn kv_set(&self, key: &str, value: Option<Value>, ttl: Option<Duration>, only_if: OnlyIf) -> Result<bool, String> {
        let now = Instant::now();
        let mut kv = lock(&self.kv);
        let there = kv.get(key).filter(|(_, until)| alive(*until, now)).map(|(value, _)| value);
        if only_if.is_some_and(|wanted| wanted.as_ref() != there) {
            return Ok(false);
        }
        match value {
            Some(value) => drop(kv.insert(key.to_owned(), (value, ttl.and_then(|ttl| now.checked_add(ttl))))),
            None => return Ok(kv.remove(key).is_some_and(|(_, until)| alive(until, now))),
        }
        Ok(true)
    }

    fn kv_incr(&self, key: &str, by: i64, ttl: Option<Duration>) -> Result<i64, String> {
        let now = Instant::now();
        let mut kv = lock(&self.kv);
        let there = kv.get(key).filter(|(_, until)| alive(*until, now)).cloned();
        // As the store has it: the first sets how long it lives.
        let (before, until) = there.unwrap_or_else(|| (json!(0), ttl.and_then(|ttl| now.checked_add(ttl))));
        let before = before.as_i64().ok_or("the value there is no integer")?;
        let sum = before.checked_add(by).ok_or("the sum is beyond 64 bits")?;
        kv.insert(key.to_owned(), (json!(sum), until));
        Ok(sum)
    }

    fn send(&self, key: &str, text: &str, id: Option<&str>) -> Result<Value, String> {
        let id = id.unwrap_or_default().to_owned();
        let mut sent = lock(&self.sent);
        let duplicate = sent.iter().any(|(k, _, i)| k == key && *i == id);
        if !duplicate {
            sent.push((key.to_owned(), text.to_owned(), id.clone()));
        }
        Ok(
            json!({ "session_id": SESSION, "turn_id": "trial", "message_id": id, "duplicate": duplicate, "deferred": false,
            "queued": 0 }),
        )
    }

    fn session_info(&self, key: &str) -> Result<Option<Value>, String> {
        Ok(lock(&self.sessions).get(key).cloned())
    }

    fn timer_claim(&self, _: &str, _: Millis) -> Result<bool, String> {
        Ok(true)
    }

    fn timer_restart(&self, _: &str, _: Millis) -> Result<(), String> {
        Ok(())
    }

    fn timer_last(&self, _: &str) -> Result<Option<Millis>, String> {
        Ok(None)
    }
}

/// One handler's call.
#[derive(Clone, Debug)]
pub struct Tried {
    /// Its script's file name.
    pub script: String,
    /// Its name.
    pub name: String,
    /// Its outcome.
    pub outcome: Delivered,
    /// How long it took.
    pub took: Duration,
}

/// The calls of an event, and their answer.
#[derive(Clone, Debug, Default)]
pub struct Fired {
    /// The calls, in order.
    pub calls: Vec<Tried>,
    /// The answer of the handlers of a synchronous event, chained.
    pub verdict: Option<Verdict>,
}

/// A loaded script and its host.
pub struct Trial {
    plan: Arc<Plan>,
    state: Option<State>,
    shared: Shared,
    host: Arc<TrialHost>,
}

impl std::fmt::Debug for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trial").field("registered", &self.plan.registered).finish_non_exhaustive()
    }
}

impl Trial {
    /// Loads one script with a host.
    ///
    /// # Errors
    /// It would not be loaded by a daemon with this configuration.
    pub fn new(script: &Path, config: &config::Hooks, host: Arc<TrialHost>) -> Result<Self, LoadError> {
        let sources = check::sources(script, config)?;
        let once = config::Hooks { threads: 1, ..config.clone() };
        let loaded = load_sources(sources, &once, env!("CARGO_PKG_VERSION"))?;
        let kick = Kick::new().map_err(|e| LoadError::new(script, format!("cannot be tried: {e}")))?;
        let shared = Shared {
            host: Arc::clone(&host) as Arc<dyn HookHost>,
            boot_id: "trial".to_owned(),
            stats: Stats::with_rest(REST),
            grace: Duration::ZERO,
            kick,
        };
        Ok(Self { plan: loaded.plan, state: loaded.states.into_iter().next(), shared, host })
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> &Arc<TrialHost> {
        &self.host
    }

    /// Calls the handlers of an event, in order.
    pub fn fire(&mut self, event: Event) -> Fired {
        let mut fired = Fired::default();
        let synchronous = event.kind.is_synchronous();
        let event = Arc::new(event);
        if synchronous {
            let answer = Arc::new(Mutex::new(None));
            let told = Arc::clone(&answer);
            let done = Box::new(move |verdict| *lock(&told) = Some(verdict));
            self.run(Task::Ask { event, left: None, answer: None, done }, &mut fired);
            fired.verdict = lock(&answer).take();
        } else {
            self.run(Task::Notify { event, left: None, failed: 0, done: Box::new(|_| ()) }, &mut fired);
        }
        fired
    }

    /// Runs a timer of `ostler.every` by its name; `None`: there is none.
    pub fn tick(&mut self, name: &str) -> Option<Delivered> {
        let timer = self.plan.registered.timers.iter().find(|t| t.short == name)?;
        let task = Task::Timer(TimerRun::new(&timer.name, clock::now(), &Arc::default()));
        let mut fired = Fired::default();
        self.run(task, &mut fired);
        fired.calls.pop().map(|tried| tried.outcome)
    }

    fn run(&mut self, task: Task, fired: &mut Fired) {
        let plan = Arc::clone(&self.plan);
        let mut left = Some(task);
        while let Some((task, step)) = left.take().and_then(|task| task.next(&plan, &self.shared)) {
            let (event, began) = (task.event(), Instant::now());
            let outcome = task::call(&plan, &mut self.state, &step, event.as_deref(), &self.shared);
            let took = began.elapsed();
            let (_, script, name) = step.label();
            fired.calls.push(Tried {
                script: script.to_owned(),
                name: name.to_owned(),
                outcome: match &outcome {
                    Ok(_) => Delivered::Done,
                    Err(failure) if failure.timed_out => Delivered::TimedOut(failure.text.clone()),
                    Err(failure) => Delivered::Failed(failure.text.clone()),
                },
                took,
            });
            left = task.conclude(&step, outcome, took, &self.shared);
        }
    }
}

/// `ostler hooks fire EVENT --script FILE`: tries a script with a sample event, and gives what the API would answer,
/// with the answer of synchronous handlers, the messages that were sent and what is kept.
///
/// # Errors
/// The script would not be loaded.
pub fn fire(
    script: &Path,
    kind: HookEvent,
    fields: &Map<String, Value>,
    hooks: &config::Hooks,
) -> Result<Value, LoadError> {
    let host = Arc::new(TrialHost::default());
    let said = [(Role::User, "a sample message"), (Role::Agent, "a sample answer")];
    let session = fields.get("session_id").and_then(Value::as_str).unwrap_or(SESSION);
    host.say(session, said.map(|(role, text)| (role, text.to_owned())));
    let mut trial = Trial::new(script, hooks, host)?;
    let fired = trial.fire(Event { test: true, ..sample_with(kind, fields) });
    let handlers: Vec<Value> = fired.calls.iter().map(tried).collect();
    let sent: Vec<Value> =
        trial.host.sent().iter().map(|(key, text, id)| json!({ "key": key, "text": text, "id": id })).collect();
    Ok(json!({
        "handlers": handlers, "answer": fired.verdict.as_ref().map(|v| answer(kind, v)), "sent": sent,
        "kv": trial.host.kept(),
    }))
}

fn tried(tried: &Tried) -> Value {
    let (outcome, error) = match &tried.outcome {
        Delivered::Done => ("delivered", None),
        Delivered::Failed(why) => ("failed", Some(why)),
        Delivered::TimedOut(why) => ("timed_out", Some(why)),
        Delivered::Orphaned => ("orphaned", None),
        Delivered::NotCalled => ("not_called", None),
    };
    let (error, trace) = match error.map(|why| why.split_once('\n').unwrap_or((why, ""))) {
        Some((error, trace)) => (Some(error), Some(trace).filter(|t| !t.is_empty())),
        None => (None, None),
    };
    let took = u64::try_from(tried.took.as_micros()).unwrap_or(u64::MAX);
    json!({
        "script": tried.script, "name": tried.name, "outcome": outcome, "error": error, "took_us": took,
        "traceback": trace,
    })
}

/// What the handlers of a synchronous event answered together, in the words of what a handler returns.
#[must_use]
pub fn answer(kind: HookEvent, verdict: &Verdict) -> Value {
    match verdict {
        Verdict::Pass(None) => json!({}),
        Verdict::Pass(Some(text)) => match kind {
            HookEvent::Message => json!({ "text": text }),
            HookEvent::BeforeTurn => json!({ "context": text }),
            _ => json!({ "choice": text }),
        },
        Verdict::Refuse(why) => json!({ "refuse": why }),
        Verdict::HookFailed(why) => json!({ "hook_failed": why }),
    }
}
