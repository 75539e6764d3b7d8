//! What a hook thread is asked to do, one call after the other, and how it is answered.
//!
//! A task is a value that goes from call to call: it says which handler is next, takes its outcome, and is answered
//! exactly once. It must not know threads.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mlua::Table;
use serde_json::Value as Json;

use super::api::{Call, json, logging, session};
use super::bell::TimerRun;
use super::kick::Kick;
use super::sandbox::{Outcome, Sandbox, first_line, message};
use super::scripts::{Handler, Plan, State, Timer};
use super::stats::{Ended, Stats};
use super::verdict::{self, Opinion};
use super::{Delivered, Event, HandlerId, HookHost, Verdict};
use crate::clock::{Millis, rfc3339};
use crate::model::event::HookEvent;

/// What all hook threads share.
pub(crate) struct Shared {
    pub host: Arc<dyn HookHost>,
    pub boot_id: String,
    pub stats: Stats,
    /// Beyond a call's timeout, before its thread is given up.
    pub grace: Duration,
    /// What ends the run of a timer.
    pub kick: Arc<Kick>,
}

/// Something to do on a hook thread.
pub(crate) enum Task {
    /// All handlers of an event.
    Notify { event: Arc<Event>, left: Option<VecDeque<HandlerId>>, failed: usize, done: Box<dyn FnOnce(usize) + Send> },
    /// One handler.
    Deliver { event: Arc<Event>, handler: HandlerId, done: Box<dyn FnOnce(Delivered) + Send> },
    /// The handlers of a synchronous event, chained.
    Ask {
        event: Arc<Event>,
        left: Option<VecDeque<HandlerId>>,
        answer: Option<String>,
        done: Box<dyn FnOnce(Verdict) + Send>,
    },
    /// A run of a timer.
    Timer(TimerRun),
}

/// One call of a task.
#[derive(Clone)]
pub(crate) enum Step {
    Handler(Handler),
    Timer(Timer, Millis),
}

impl Step {
    pub fn timeout(&self) -> Duration {
        match self {
            Self::Handler(h) => h.timeout,
            Self::Timer(t, _) => t.timeout,
        }
    }

    /// Event, script and name.
    pub fn label(&self) -> (&str, &str, &str) {
        match self {
            Self::Handler(h) => (h.id.event.as_str(), &h.id.script, &h.id.name),
            Self::Timer(t, _) => ("every", &t.script, &t.short),
        }
    }

    fn line(&self) -> usize {
        match self {
            Self::Handler(h) => h.line,
            Self::Timer(t, _) => t.line,
        }
    }

    /// `script:name`.
    fn called(&self) -> String {
        let (_, script, name) = self.label();
        format!("{script}:{name}")
    }
}

/// Why a call failed: one line for the caller, and the traceback for the log.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub timed_out: bool,
    pub text: String,
}

fn of(plan: &Plan, event: HookEvent) -> VecDeque<HandlerId> {
    plan.registered.of(event).map(|h| h.id.clone()).collect()
}

impl Task {
    /// Whether its event is `stopped`, which is called when nothing else is.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Notify { event, .. } if event.kind == HookEvent::Stopped)
    }

    /// The event that its handlers see.
    pub fn event(&self) -> Option<Arc<Event>> {
        match self {
            Self::Notify { event, .. } | Self::Deliver { event, .. } | Self::Ask { event, .. } => {
                Some(Arc::clone(event))
            }
            Self::Timer(_) => None,
        }
    }

    /// The next call, with the task that goes on after it; `None`: it is over and answered.
    pub fn next(self, plan: &Plan, shared: &Shared) -> Option<(Self, Step)> {
        match self {
            Self::Notify { event, left, failed, done } => {
                let mut left = left.unwrap_or_else(|| of(plan, event.kind));
                while let Some(id) = left.pop_front() {
                    if let Some(handler) = plan.registered.find(&id) {
                        let step = Step::Handler(handler.clone());
                        return Some((Self::Notify { event, left: Some(left), failed, done }, step));
                    }
                }
                done(failed);
                None
            }
            Self::Deliver { event, handler, done } => {
                let Some(found) = plan.registered.find(&handler).cloned() else {
                    done(Delivered::Orphaned);
                    return None;
                };
                Some((Self::Deliver { event, handler, done }, Step::Handler(found)))
            }
            Self::Ask { event, left, answer, done } => {
                let mut left = left.unwrap_or_else(|| of(plan, event.kind));
                while let Some(id) = left.pop_front() {
                    let Some(handler) = plan.registered.find(&id) else { continue };
                    if shared.stats.skip((id.event.as_str(), &id.script, &id.name)) {
                        if handler.refuse {
                            done(Verdict::HookFailed(format!("{id}: skipped after three timeouts in a row")));
                            return None;
                        }
                        continue;
                    }
                    let step = Step::Handler(handler.clone());
                    return Some((Self::Ask { event, left: Some(left), answer, done }, step));
                }
                done(Verdict::Pass(answer));
                None
            }
            Self::Timer(run) => {
                let timer = plan.registered.timers.iter().find(|t| t.name == run.name)?.clone();
                let step = Step::Timer(timer, run.due);
                Some((Self::Timer(run), step))
            }
        }
    }

    /// Takes the outcome of a call. `None`: it was the last call, and the task is answered.
    pub fn conclude(
        self,
        step: &Step,
        outcome: Result<Opinion, Failure>,
        took: Duration,
        shared: &Shared,
    ) -> Option<Self> {
        let event = self.event();
        let told = self.count(step, &outcome, took, event.as_deref(), shared);
        match self {
            Self::Notify { event, left, failed, done } => {
                Some(Self::Notify { event, left, failed: failed + usize::from(outcome.is_err()), done })
            }
            Self::Deliver { done, .. } => {
                done(match (outcome, told) {
                    (Ok(_), _) => Delivered::Done,
                    (Err(f), told) if f.timed_out => Delivered::TimedOut(told),
                    (Err(_), told) => Delivered::Failed(told),
                });
                None
            }
            Self::Ask { event, left, answer, done } => {
                let refuse = matches!(step, Step::Handler(h) if h.refuse);
                match outcome {
                    Err(_) if refuse => {
                        done(Verdict::HookFailed(told));
                        None
                    }
                    Err(_) | Ok(Opinion::None) => Some(Self::Ask { event, left, answer, done }),
                    Ok(Opinion::Refuse(why)) => {
                        done(Verdict::Refuse(why));
                        None
                    }
                    Ok(Opinion::Choose(choice)) => {
                        done(Verdict::Pass(Some(choice)));
                        None
                    }
                    Ok(Opinion::Rewrite(text)) => {
                        let mut event = event;
                        if let Some(fields) = Arc::make_mut(&mut event).fields.as_object_mut() {
                            fields.insert("text".to_owned(), Json::from(text.as_str()));
                        }
                        Some(Self::Ask { event, left, answer: Some(text), done })
                    }
                    Ok(Opinion::Context(context)) => {
                        let answer =
                            Some(answer.map_or_else(|| context.clone(), |before| format!("{before}\n\n{context}")));
                        Some(Self::Ask { event, left, answer, done })
                    }
                }
            }
            Self::Timer(_) => None,
        }
    }

    /// Counts a call and logs its failure; gives the failure's text for the caller.
    fn count(
        &self,
        step: &Step,
        outcome: &Result<Opinion, Failure>,
        took: Duration,
        event: Option<&Event>,
        shared: &Shared,
    ) -> String {
        let label = step.label();
        let ended = match outcome {
            Ok(_) => Ended::Well,
            Err(f) if f.timed_out => Ended::TimedOut,
            Err(_) => Ended::Failed,
        };
        let open = shared.stats.ended(label, ended, took);
        let Err(failure) = outcome else { return String::new() };
        let key = event.and_then(|e| e.key.as_deref());
        let of = key.map_or_else(String::new, |key| format!(" of {key}"));
        let place = format!("{}:{}: {}{of}", label.1, step.line(), label.0);
        let mut fields = vec![
            ("hook".to_owned(), Json::from(step.called())),
            ("event".to_owned(), Json::from(label.0)),
            ("line".to_owned(), Json::from(step.line())),
        ];
        if let Some(key) = key {
            fields.push(("key".to_owned(), Json::from(key)));
        }
        if let Some(event) = event {
            fields.push(("event_id".to_owned(), Json::from(event.event_id.as_str())));
        }
        logging::write(log::Level::Error, fields, &format!("{place}: {}", failure.text));
        if open && matches!(self, Self::Ask { .. }) {
            let rest = shared.stats.rest();
            log::error!(target: "hook", hook = step.called().as_str();
                "{place}: three timeouts in a row: skipped for {rest:?}");
        }
        format!("{place}: {}", first_line(&failure.text))
    }

    /// Answers the task without (further) calls.
    pub fn not_called(self, plan: &Plan, why: &str) {
        match self {
            Self::Notify { event, left, failed, done } => {
                let left = left.unwrap_or_else(|| of(plan, event.kind));
                done(failed + left.len());
            }
            Self::Deliver { done, .. } => done(Delivered::NotCalled),
            Self::Ask { event, left, answer, done } => {
                let left = left.unwrap_or_else(|| of(plan, event.kind));
                let strict = left.iter().find(|id| plan.registered.find(id).is_some_and(|h| h.refuse));
                done(match strict {
                    Some(id) => Verdict::HookFailed(format!("{id}: was not called: {why}")),
                    None => Verdict::Pass(answer),
                });
            }
            Self::Timer(run) => {
                log::warn!(target: "hook", hook = run.name.as_str(); "timer {} is not run: {why}", run.name);
            }
        }
    }
}

/// Whether a call may run in a state.
pub(crate) fn is_usable(state: Option<&State>) -> bool {
    state.is_some_and(|s| !s.sandbox.spoiled())
}

/// Calls one handler in the thread's state; makes the state first where there is none that is usable.
pub(crate) fn call(
    plan: &Plan,
    state: &mut Option<State>,
    step: &Step,
    event: Option<&Event>,
    shared: &Shared,
) -> Result<Opinion, Failure> {
    // For the lines that the handler logs, and for those about it.
    for name in ["session_id", "turn_id"] {
        crate::log::about(name, event.and_then(|e| e.fields[name].as_str()).unwrap_or_default());
    }
    if !is_usable(state.as_ref()) {
        // The old state goes first: two could need too much memory.
        *state = None;
        *state = Some(plan.rebuild().map_err(|e| failed(format!("the scripts cannot be loaded again: {e}")))?);
    }
    let until = Instant::now() + step.timeout();
    let Some(state) = state.as_ref() else { return Err(failed("there is no Lua state".to_owned())) };
    let context = state.sandbox.context();
    let _ = context.host.set(Arc::clone(&shared.host));
    if matches!(step, Step::Timer(..)) && context.kick.set(Arc::clone(&shared.kick)).is_ok() {
        context.deadline.stop_on(Some(shared.kick.flag()));
    }
    let (function, argument) = match step {
        Step::Handler(h) => (state.handlers.get(&h.id), event),
        Step::Timer(t, due) => {
            match shared.host.timer_claim(&t.name, *due) {
                Ok(true) => {}
                Ok(false) => return Ok(Opinion::None),
                Err(why) => return Err(failed(format!("the run cannot be claimed: {why}"))),
            }
            (state.timers.get(&t.name), None)
        }
    };
    let Some(function) = function else { return Err(failed("its function is missing".to_owned())) };
    let event_id = match (step, event) {
        (Step::Timer(t, due), _) => format!("{}@{due}", t.name),
        (Step::Handler(_), Some(event)) => event.event_id.clone(),
        (Step::Handler(_), None) => String::new(),
    };
    state.sandbox.begin(Call {
        label: step.called(),
        event_id,
        key: event.and_then(|e| e.key.clone()),
        loading: false,
        sent: std::collections::HashMap::new(),
    });
    let outcome = match argument.map(|event| table(&state.sandbox, event, &shared.boot_id)).transpose() {
        Ok(argument) => state.sandbox.call(function, argument, Some(until)),
        Err(e) => {
            state.sandbox.spoil();
            Outcome::Raised(message(&e))
        }
    };
    state.sandbox.begin(Call::default());
    match outcome {
        Outcome::Returned(values) => match event {
            Some(event) => verdict::read(event, &values).map_err(failed),
            None => Ok(Opinion::None),
        },
        Outcome::Raised(text) => Err(failed(text)),
        Outcome::Stopped(_) if context.kick.get().is_some_and(|kick| kick.is_kicked()) => {
            Err(failed("cut off because the daemon stops; this run is not repeated".to_owned()))
        }
        Outcome::Stopped(trace) => Err(Failure {
            timed_out: true,
            text: format!("stopped after {:?}\n{trace}", step.timeout()).trim_end().to_owned(),
        }),
    }
}

fn failed(text: String) -> Failure {
    Failure { timed_out: false, text }
}

/// An event as a handler sees it.
fn table(sandbox: &Sandbox, event: &Event, boot_id: &str) -> mlua::Result<Table> {
    let lua = sandbox.lua();
    let ev = lua.create_table()?;
    if let Some(fields) = event.fields.as_object() {
        for (name, value) in fields {
            ev.raw_set(name.as_str(), json::to_lua(lua, value, json::Null::Absent)?)?;
        }
    }
    if let Some(key) = &event.key
        && !ev.contains_key("key")?
    {
        ev.raw_set("key", key.as_str())?;
    }
    ev.raw_set("event", event.kind.as_str())?;
    ev.raw_set("event_id", event.event_id.as_str())?;
    ev.raw_set("at", rfc3339(event.at))?;
    ev.raw_set("boot_id", boot_id)?;
    ev.raw_set("attempt", event.attempt)?;
    ev.raw_set("redelivered", event.redelivered)?;
    ev.raw_set("test", event.test)?;
    if let Some((session_id, upto)) = &event.transcript {
        // In a metatable, so that the event still has a JSON form.
        let methods = lua.create_table()?;
        let (guard, context) = (sandbox.globals().guard(), sandbox.context());
        methods.raw_set("transcript", session::transcript_method(lua, guard, context, session_id.clone(), *upto)?)?;
        let meta = lua.create_table()?;
        meta.raw_set("__index", methods)?;
        ev.set_metatable(Some(meta))?;
    }
    Ok(ev)
}
