//! Lists sessions, shows them and acts on them.

use serde_json::{Value, json};

use super::{Fault, Service};
use crate::clock;
use crate::daemon::registry::{Answered, ProcessInfo};
use crate::model::event::Actor;
use crate::model::session::key_error;
use crate::store::{Acted, Error, Page, Refusal, SessionFilter, SessionView, Target, TranscriptEntry};

/// The states that a listing can be filtered by.
pub const STATES: [&str; 6] = ["live", "parked", "suspended", "ended", "running", "resume_pending"];

impl Service {
    /// A page of sessions, newest first, as the API shows them.
    ///
    /// # Errors
    /// The filter names no state or no key, or the store fails.
    pub fn sessions(&self, filter: &SessionFilter) -> Result<Page<Value>, Fault> {
        if let Some(state) = filter.states.iter().find(|s| !STATES.contains(&s.as_str())) {
            return Err(Fault::Parameter(format!("state={state:?}: one of {}", STATES.join(", "))));
        }
        if let Some(key) = &filter.key
            && let Some(error) = key_error(key)
        {
            return Err(Fault::Key(format!("{key:?}: {error}")));
        }
        let page = self.ctx.store.sessions(filter)?;
        Ok(Page { items: page.items.into_iter().map(|s| self.whole(s)).collect(), next: page.next })
    }

    /// One session.
    ///
    /// # Errors
    /// There is none, or the store fails.
    pub fn session(&self, target: &Target) -> Result<Value, Fault> {
        let view = self.ctx.store.session(target).map_err(|e| self.missing(target, e))?;
        let sid = view.sid;
        let mut json = self.whole(view);
        let process = self.ctx.registry.process(sid).filter(ProcessInfo::is_live);
        json["process"] = process.map_or(Value::Null, |process| self.process(&process));
        Ok(json)
    }

    /// The processes of all live sessions' agents, by key: what they use, as far as control groups say so.
    #[must_use]
    pub fn processes(&self) -> Vec<Value> {
        let mut all = self.ctx.registry.processes();
        all.retain(|(_, process)| process.is_live());
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let shown = all.into_iter().map(|(key, process)| {
            let mut json = json!({ "key": key, "session_id": process.session_id, "agent": process.agent });
            for (name, value) in self.process(&process).as_object().into_iter().flatten() {
                json[name] = value.clone();
            }
            json
        });
        shown.collect()
    }

    /// A process, as the API shows it.
    fn process(&self, process: &ProcessInfo) -> Value {
        let usage = process.usage();
        let age = i64::try_from(process.age().as_millis()).unwrap_or(0);
        json!({
            "pid": process.pid, "since": clock::rfc3339(self.ctx.wall() - age),
            "memory": usage.memory, "memory_peak": usage.memory_peak, "memory_limit": usage.memory_limit,
            "cpu_ms": usage.cpu_ms, "processes": usage.processes, "confined": process.confined,
        })
    }

    /// A session with its open permissions, which only the registry knows.
    fn whole(&self, view: SessionView) -> Value {
        let mut json = view.json;
        json["permissions"] = json!(self.ctx.registry.permissions(view.sid));
        json
    }

    /// All permissions that agents wait for, oldest first.
    #[must_use]
    pub fn permissions(&self) -> Vec<Value> {
        let mut all: Vec<Value> = Vec::new();
        for (key, session_id, shown) in self.ctx.registry.all_permissions() {
            let mut one = json!({ "key": key, "session_id": session_id });
            for (name, value) in shown.as_object().into_iter().flatten() {
                one[name] = value.clone();
            }
            all.push(one);
        }
        all.sort_by(|a, b| a["since"].as_str().cmp(&b["since"].as_str()));
        all
    }

    /// Answers a permission that an agent waits for; gives the session.
    ///
    /// # Errors
    /// There is no such session, the permission is settled, or the option was not offered.
    pub fn answer_permission(&self, target: &Target, request_id: &str, option_id: &str) -> Result<Value, Fault> {
        let session = self.ctx.store.session(target)?;
        let registry = &self.ctx.registry;
        let open = match registry.claim_permission(session.sid, request_id, option_id) {
            Ok(open) => Some(open),
            // Its agent has outlived another daemon, and is being attached to: the row knows.
            Err(Answered::Resolved) if registry.is_attaching(session.sid) => None,
            Err(Answered::NotOffered) => {
                return Err(Fault::Parameter(format!("option_id: {option_id:?} was not offered")));
            }
            Err(Answered::Resolved | Answered::Settled) => return Err(Fault::Resolved),
        };
        // The answer is durable before anybody is told, so that the agent gets it whatever dies.
        let (id, option) = (request_id.to_owned(), Some(option_id.to_owned()));
        match self.ctx.store.answer_permission(session.sid, id, option, "client") {
            Ok(true) => {
                registry.answered(session.sid, request_id, option_id);
                self.session(&Target::Id(session.id))
            }
            Ok(false) => {
                // Its turn is over; or it was about to become durable, and is asked for again.
                if let Some(open) = open {
                    registry.open_permission(session.sid, open);
                }
                Err(Fault::Resolved)
            }
            Err(e) => {
                if let Some(open) = open {
                    registry.open_permission(session.sid, open);
                }
                Err(e.into())
            }
        }
    }

    /// A page of a transcript.
    ///
    /// # Errors
    /// There is no such session, or the store fails.
    pub fn transcript(&self, target: &Target, after: i64, limit: usize) -> Result<Page<TranscriptEntry>, Fault> {
        self.ctx.store.transcript(target, after, limit).map_err(|e| self.missing(target, e))
    }

    /// The error for a key without a current session; it names a suspended session under the key.
    fn missing(&self, target: &Target, e: Error) -> Fault {
        let Target::Key(key) = target else { return e.into() };
        let suspended = SessionFilter {
            states: vec!["suspended".into()],
            key: Some(key.clone()),
            limit: 1,
            ..SessionFilter::default()
        };
        match (&e, self.ctx.store.sessions(&suspended)) {
            (Error::Refused(Refusal::SessionNotFound), Ok(page)) if !page.items.is_empty() => Fault::NoSession(
                format!("no current session; {} is suspended, and comes back with a resume", page.items[0].id),
            ),
            _ => e.into(),
        }
    }

    /// Tells the workers what a transaction changed; returns the session.
    fn acted(&self, acted: &Acted) -> Result<Value, Fault> {
        self.ctx.catch_up(acted);
        self.session(&Target::Id(acted.session_id.clone()))
    }

    /// The agent that would answer a target's key in a new session.
    fn agent(&self, target: &Target) -> Result<String, Fault> {
        Ok(match target {
            Target::Key(key) => self.ctx.agent_of(key),
            Target::Id(id) => self.ctx.agent_of(&self.ctx.store.key_of(id)?),
        })
    }

    /// Cancels the running turn, and with `queued` the waiting messages.
    ///
    /// # Errors
    /// There is no such session, or the store fails.
    pub fn cancel(&self, target: &Target, queued: bool) -> Result<Value, Fault> {
        let acted = self.ctx.store.cancel(target.clone(), queued).map_err(|e| self.missing(target, e))?;
        self.acted(&acted)
    }

    /// Ends the session; its key begins a new one.
    ///
    /// # Errors
    /// There is no such session, or the store fails.
    pub fn reset(&self, target: Target) -> Result<Value, Fault> {
        let agent = self.agent(&target)?;
        let acted = self.ctx.store.reset(target, agent, Actor::User)?;
        self.acted(&acted)
    }

    /// Suspends the session.
    ///
    /// # Errors
    /// There is no such session, or the store fails.
    pub fn suspend(&self, target: &Target) -> Result<Value, Fault> {
        let agent = self.agent(target)?;
        let acted = self.ctx.store.suspend(target.clone(), agent, Actor::Operator);
        self.acted(&acted.map_err(|e| self.missing(target, e))?)
    }

    /// Brings a suspended session back.
    ///
    /// # Errors
    /// There is no such session, it is ended, or the store fails.
    pub fn resume(&self, target: Target) -> Result<Value, Fault> {
        let acted = self.ctx.store.resume(target, Actor::Operator)?;
        self.acted(&acted)
    }

    /// Deletes the session, with `all` every session of its key, with `files` their directories too.
    ///
    /// # Errors
    /// There is no such session, another session works in its directory, or the store fails.
    pub fn delete(&self, target: Target, all: bool, files: bool) -> Result<Value, Fault> {
        let store = &self.ctx.store;
        let acted = if files {
            store.delete_with_files(target, all, Actor::User)
        } else {
            store.delete(target, all, Actor::User)
        }?;
        self.ctx.catch_up(&acted);
        // Its text and files are removed now, or once its ends are settled.
        self.ctx.prune_now();
        Ok(self.whole(store.session_in_row(acted.sid)?))
    }
}
