//! Worker slots. Counters are updated on every change of an entry, so admitting a session never scans all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::{Doing, Effect, Kind, LiveSession, Roster, Waiting, WorkRequest};
use crate::model::session::{Crowd, give_way};

/// The counters of one agent's live sessions, updated by [`Roster::change`].
#[derive(Debug, Default)]
pub(super) struct AgentSlots {
    pub live: usize,
    pub closing: usize,
    /// The idle sessions, the least recently used first: number of use, row.
    pub resting: BTreeMap<u64, i64>,
}

impl AgentSlots {
    fn count_out(&mut self, was: Kind, used: u64) {
        match was {
            Kind::Resting => drop(self.resting.remove(&used)),
            Kind::Closing => self.closing -= 1,
            Kind::Running | Kind::Starting => {}
        }
    }

    fn count_in(&mut self, is: Kind, used: u64, sid: i64) {
        match is {
            Kind::Resting => drop(self.resting.insert(used, sid)),
            Kind::Closing => self.closing += 1,
            Kind::Running | Kind::Starting => {}
        }
    }
}

/// The agent that answers a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route<'a> {
    /// Its name.
    pub agent: &'a str,
    /// The most sessions that it may have at once.
    pub most: usize,
    /// An idle session of it has nothing to close.
    pub light: bool,
}

/// The routes of a configuration.
pub trait Routes {
    /// The agent that answers this key.
    fn route(&self, key: &str) -> Route<'_>;
}

impl Roster {
    /// The only way to change an entry: updates the counters too.
    pub(super) fn change<T>(&mut self, sid: i64, how: impl FnOnce(&mut LiveSession) -> T) -> Option<T> {
        let entry = self.live.get_mut(&sid)?;
        let (was, used) = (entry.doing.kind(), entry.used);
        let result = how(entry);
        let (is, now) = (entry.doing.kind(), entry.used);
        if (was, used) != (is, now) {
            if let Some(slots) = self.by_agent.get_mut(&entry.agent) {
                slots.count_out(was, used);
                slots.count_in(is, now, sid);
            }
            self.running = self.running + usize::from(is == Kind::Running) - usize::from(was == Kind::Running);
        }
        Some(result)
    }

    /// Updates the counters after an entry was removed.
    pub(super) fn count_out(&mut self, entry: &LiveSession) {
        if let Some(slots) = self.by_agent.get_mut(&entry.agent) {
            slots.live -= 1;
            slots.count_out(entry.doing.kind(), entry.used);
        }
        self.running -= usize::from(entry.doing.kind() == Kind::Running);
        self.kept -= usize::from(entry.kept);
    }

    /// A live session has waiting work: wakes its worker, or keeps the request for the next one. `None`: it is not
    /// live.
    pub(super) fn wake_live(&mut self, request: &WorkRequest) -> Option<Vec<Effect>> {
        let used = self.next_use();
        let WorkRequest { sid, auto_continue, .. } = *request;
        self.change(sid, |entry| {
            entry.used = used;
            if entry.doing == Doing::Closing {
                let auto_continue = auto_continue || entry.again.as_ref().is_some_and(|r| r.auto_continue);
                entry.again = Some(WorkRequest { auto_continue, ..request.clone() });
                return Vec::new();
            }
            vec![Effect::Wake { sid, auto_continue }]
        })
    }

    /// The next number of use.
    pub(super) const fn next_use(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }

    /// The routes may have changed.
    pub fn routes_changed(&mut self) {
        self.waiting.forget_routes();
    }

    /// Gives free slots to the sessions that have waited longest, within `max_live` and the limit of each agent, and
    /// asks idle sessions to make room for the others. Returns the sessions that got a slot and an entry; the caller
    /// starts their workers. `has_work`: whether the mailbox of a session's worker has unread work.
    #[must_use]
    pub fn admit(
        &mut self,
        max_live: usize,
        routes: &dyn Routes,
        has_work: &dyn Fn(i64) -> bool,
    ) -> (Vec<Waiting>, Vec<Effect>) {
        let (mut admitted, mut effects) = (Vec::new(), Vec::new());
        if self.closed || self.searching || self.waiting.is_empty() {
            return (admitted, effects);
        }
        self.waiting.route(routes);
        while self.live.len() < max_live {
            let by_agent = &self.by_agent;
            let may = |agent: &str, most: usize| by_agent.get(agent).map_or(0, |slots| slots.live) < most;
            let Some((agent, waiting)) = self.waiting.take(may) else { break };
            if let Some(woken) = self.wake_live(&waiting.request) {
                // It has a worker already.
                effects.extend(woken);
            } else if self.leftovers.contains(&waiting.request.sid) {
                self.waiting.set_aside(waiting);
            } else {
                self.insert(&waiting.request, agent, routes.route(&waiting.request.key).light);
                admitted.push(waiting);
            }
        }
        if !self.waiting.is_empty() {
            effects.extend(self.make_room(max_live, has_work).into_iter().map(Effect::Park));
        }
        (admitted, effects)
    }

    /// The worker of an admitted session could not be started: frees its slot and returns it to its place in the queue.
    /// `auto_continue`: a letter that came meanwhile asks for that.
    pub fn give_back(&mut self, mut waiting: Waiting, auto_continue: bool) -> Vec<Effect> {
        let _ = self.remove(waiting.request.sid);
        waiting.request.auto_continue |= auto_continue;
        self.waiting.give_back(waiting);
        vec![Effect::Nudge]
    }

    /// Chooses the sessions that give way to the waiting sessions, the least recently used first. They are closing from
    /// now on.
    fn make_room(&mut self, max_live: usize, has_work: &dyn Fn(i64) -> bool) -> Vec<i64> {
        let none = AgentSlots::default();
        let waits = self.waiting.queues().filter(|q| q.waiting > 0).map(|q| q.agent);
        let agents: BTreeSet<&str> = waits.chain(self.by_agent.keys().map(String::as_str)).collect();
        let agents: Vec<String> = agents.into_iter().map(str::to_owned).collect();
        let queues: BTreeMap<&str, _> = self.waiting.queues().map(|q| (q.agent, q)).collect();
        let crowd = |agent: &String| {
            let slots = self.by_agent.get(agent).unwrap_or(&none);
            let (waiting, most) = queues.get(agent.as_str()).map_or((0, 0), |q| (q.waiting, q.most));
            Crowd {
                waiting,
                free: most.saturating_sub(slots.live),
                closing: slots.closing,
                resting: slots.resting.len(),
            }
        };
        let crowds: Vec<Crowd> = agents.iter().map(crowd).collect();
        let (own, any) = give_way(&crowds, max_live.saturating_sub(self.live.len()));
        let mut going = Vec::new();
        for (agent, n) in agents.iter().zip(own) {
            going.extend((0..n).map_while(|_| self.take_longest_at_rest(Some(agent), has_work)));
        }
        going.extend((0..any).map_while(|_| self.take_longest_at_rest(None, has_work)));
        going
    }

    /// Takes the session of this agent (or of any) that has been idle longest and has no unread work. It is closing
    /// from now on.
    fn take_longest_at_rest(&mut self, agent: Option<&String>, has_work: &dyn Fn(i64) -> bool) -> Option<i64> {
        let works_aside = |sid: &i64| self.live.get(sid).is_some_and(|e| e.works_aside);
        let first = |slots: &AgentSlots| {
            let all = || slots.resting.iter().filter(|(_, sid)| !has_work(**sid));
            let first = all().find(|(_, sid)| !works_aside(sid)).or_else(|| all().next());
            first.map(|(used, sid)| (works_aside(sid), *used, *sid))
        };
        let (_, _, sid) = match agent {
            Some(name) => self.by_agent.get(name).and_then(first),
            None => self.by_agent.values().filter_map(first).min(),
        }?;
        self.change(sid, |entry| entry.doing = Doing::Closing)?;
        Some(sid)
    }

    /// A session goes on with the agent of another daemon: it is live whatever the limits say, and gives way as any other
    /// afterwards. `runs_since`: its turn runs.
    pub fn adopt(&mut self, request: &WorkRequest, agent: &str, light: bool, runs_since: Option<Instant>) {
        self.insert(request, agent.to_owned(), light);
        self.set_kept(request.sid, true);
        if let Some(since) = runs_since {
            // Nobody waits for that to change.
            let _ = self.set(request.sid, Doing::beginning(since), false);
        }
    }

    fn insert(&mut self, request: &WorkRequest, agent: String, light: bool) {
        let used = self.next_use();
        self.by_agent.entry(agent.clone()).or_default().live += 1;
        let entry = LiveSession {
            key: request.key.clone(),
            agent,
            light,
            kept: false,
            spared: false,
            doing: Doing::Starting,
            used,
            again: None,
            works_aside: false,
            ready: None,
            reserved: None,
        };
        self.live.insert(request.sid, entry);
        self.by_key.insert(request.key.clone(), request.sid);
    }
}
