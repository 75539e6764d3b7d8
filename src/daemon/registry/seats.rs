//! Places: who gets one, and who gives one up. What is counted of the live sessions for that is kept with every change of an
//! entry, so that neither a message nor a newcomer looks at all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::wishes::{Numbered, Queue};
use super::{Doing, Entry, Inner, Registry, Sort, Wish};
use crate::config::{AgentKind, Config};
use crate::daemon::mailbox::{Close, Mailbox};
use crate::model::session::{Crowd, give_way};

/// The live sessions of one agent, as far as they matter to those that wait. Kept by [`Inner::change`].
#[derive(Default)]
pub(super) struct OfAgent {
    pub live: usize,
    pub closing: usize,
    /// Those at rest, the least recently used first.
    pub resting: BTreeMap<u64, i64>,
}

/// A session that was given a place: its entry is made, its worker may be started with this mailbox.
#[derive(Debug)]
pub struct Newcomer {
    /// Who, and in which place it waited.
    pub of: Numbered,
    /// What its worker listens to.
    pub mailbox: Arc<Mailbox>,
}

impl Inner {
    /// The one way to change an entry: what is counted of it changes with it.
    pub(super) fn change<T>(&mut self, sid: i64, how: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let entry = self.live.get_mut(&sid)?;
        let (was, used) = (entry.doing.sort(), entry.used);
        let result = how(entry);
        let (is, now) = (entry.doing.sort(), entry.used);
        if (was, used) != (is, now) {
            if let Some(of) = self.by_agent.get_mut(&entry.agent) {
                of.count_out(was, used);
                of.count_in(is, now, sid);
            }
            self.running = self.running + usize::from(is == Sort::Running) - usize::from(was == Sort::Running);
        }
        Some(result)
    }

    /// Something waits in a live session: what tells its worker, or the next one. `None`: it is not live.
    pub(super) fn tell(&mut self, wish: &Wish) -> Option<impl FnOnce() + use<>> {
        let used = self.tick();
        let auto_continue = wish.auto_continue;
        let mailbox = self.change(wish.sid, |entry| {
            entry.used = used;
            if entry.doing == Doing::Closing {
                let auto_continue = auto_continue || entry.again.as_ref().is_some_and(|w| w.auto_continue);
                entry.again = Some(Wish { auto_continue, ..wish.clone() });
                return None;
            }
            Some(entry.mailbox.clone())
        })?;
        Some(move || {
            if let Some(mailbox) = mailbox {
                mailbox.post(|l| {
                    l.work = true;
                    l.auto_continue |= auto_continue;
                });
            }
        })
    }

    /// Chooses who gives way to those that still wait, the least recently used first; they are closing from now on.
    fn make_room(&mut self, max_live: usize) -> Vec<Arc<Mailbox>> {
        let none = OfAgent::default();
        let names: Vec<String> = {
            let waits = self.wishes.queues().filter(|(_, q)| q.len() > 0).map(|(name, _)| name);
            waits
                .chain(self.by_agent.keys().map(String::as_str))
                .collect::<BTreeSet<_>>()
                .into_iter()
                .map(str::to_owned)
                .collect()
        };
        let queues: HashMap<&str, &Queue> = self.wishes.queues().collect();
        let crowds: Vec<Crowd> = names
            .iter()
            .map(|name| {
                let of = self.by_agent.get(name).unwrap_or(&none);
                let (waiting, most) = queues.get(name.as_str()).map_or((0, 0), |q| (q.len(), q.most));
                Crowd { waiting, free: most.saturating_sub(of.live), closing: of.closing, resting: of.resting.len() }
            })
            .collect();
        let (own, any) = give_way(&crowds, max_live.saturating_sub(self.live.len()));
        let mut going = Vec::new();
        for (name, n) in names.iter().zip(own) {
            (0..n).map_while(|_| self.longest_at_rest(Some(name))).for_each(|m| going.push(m));
        }
        (0..any).map_while(|_| self.longest_at_rest(None)).for_each(|m| going.push(m));
        going
    }

    /// Takes the session, of the agent or of any, that has rested longest and to which nothing has come: it is closing.
    fn longest_at_rest(&mut self, agent: Option<&String>) -> Option<Arc<Mailbox>> {
        let live = &self.live;
        let first = |of: &OfAgent| {
            let free = |sid: &i64| live.get(sid).is_some_and(|e| !e.mailbox.has_work());
            let aside = |sid: &i64| live.get(sid).is_some_and(|e| e.busy_aside);
            let all = || of.resting.iter().filter(|(_, sid)| free(sid));
            let first = all().find(|(_, sid)| !aside(sid)).or_else(|| all().next());
            first.map(|(used, sid)| (aside(sid), *used, *sid))
        };
        let (_, _, sid) = match agent {
            Some(name) => self.by_agent.get(name).and_then(first),
            None => self.by_agent.values().filter_map(first).min(),
        }?;
        self.change(sid, |entry| {
            entry.doing = Doing::Closing;
            entry.mailbox.clone()
        })
    }

    /// The next number of use.
    pub(super) const fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn admit(&mut self, wish: &Wish, agent: String, light: bool, mailbox: Arc<Mailbox>) {
        let used = self.tick();
        let of = self.by_agent.entry(agent.clone()).or_default();
        of.live += 1;
        let entry = Entry {
            key: wish.key.clone(),
            agent,
            light,
            mailbox,
            doing: Doing::Starting,
            used,
            join: None,
            again: None,
            permissions: Vec::new(),
            abandoned: false,
            busy_aside: false,
            ready: None,
            reserved: None,
        };
        self.live.insert(wish.sid, entry);
        self.by_key.insert(wish.key.clone(), wish.sid);
    }
}

impl OfAgent {
    pub(super) fn count_out(&mut self, was: Sort, used: u64) {
        match was {
            Sort::Resting => drop(self.resting.remove(&used)),
            Sort::Closing => self.closing -= 1,
            Sort::Running | Sort::Starting => {}
        }
    }

    fn count_in(&mut self, is: Sort, used: u64, sid: i64) {
        match is {
            Sort::Resting => drop(self.resting.insert(used, sid)),
            Sort::Closing => self.closing += 1,
            Sort::Running | Sort::Starting => {}
        }
    }
}

impl Registry {
    /// Gives places to those that have waited longest, as far as there are any, and asks sessions at rest to make some for
    /// the others. `is_light`: whether an agent of a kind holds nothing while at rest.
    pub fn seat(&self, config: &Arc<Config>, is_light: impl Fn(AgentKind) -> bool) -> Vec<Newcomer> {
        let mut newcomers = Vec::new();
        let mut letters: Vec<Box<dyn FnOnce()>> = Vec::new();
        let mut guard = self.lock();
        let inner = &mut *guard;
        if inner.closed || inner.searching || inner.wishes.is_empty() {
            return newcomers;
        }
        inner.wishes.route(config);
        while inner.live.len() < config.sessions.max_live {
            let by_agent = &inner.by_agent;
            let may = |name: &str, q: &Queue| by_agent.get(name).map_or(0, |of| of.live) < q.most;
            let Some((agent, of)) = inner.wishes.take(may) else { break };
            if let Some(tell) = inner.tell(&of.wish) {
                // It has a worker already: that one is told, or the next one.
                letters.push(Box::new(tell));
            } else if inner.haunted.contains(&of.wish.sid) {
                inner.wishes.set_aside(of);
            } else {
                let mailbox = Arc::new(Mailbox::default());
                let light = is_light(config.route(&of.wish.key).kind);
                inner.admit(&of.wish, agent, light, mailbox.clone());
                newcomers.push(Newcomer { of, mailbox });
            }
        }
        if !inner.wishes.is_empty() {
            for mailbox in inner.make_room(config.sessions.max_live) {
                letters.push(Box::new(move || mailbox.post(|l| l.close = l.close.max(Some(Close::Park)))));
            }
        }
        drop(guard);
        letters.into_iter().for_each(|post| post());
        newcomers
    }

    /// A newcomer's worker could not be started: its place is free, and it waits again where it had waited.
    pub fn unseat(&self, newcomer: Newcomer) {
        let Newcomer { mut of, mailbox } = newcomer;
        let _ = self.remove(of.wish.sid);
        // What came for it meanwhile came to nobody.
        of.wish.auto_continue |= mailbox.take().auto_continue;
        self.lock().wishes.give_back(of);
    }
}
