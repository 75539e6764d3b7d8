//! Who waits for a worker: in the order in which they came, each agent's apart, so that those of an agent that has no place
//! left neither hold up others nor are looked at again and again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::Wish;
use crate::config::Config;

/// Number and session of one that waits.
type Place = (u64, i64);

/// A wish, and which it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbered {
    pub(super) number: u64,
    /// What is wanted.
    pub wish: Wish,
}

/// The wishes for one agent.
#[derive(Debug)]
pub(super) struct Queue {
    /// How many sessions it may have at once.
    pub most: usize,
    waiting: VecDeque<Place>,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// In its order: one that was given back had come before those that came since.
    fn insert(&mut self, place: Place) {
        let at = self.waiting.partition_point(|p| p.0 < place.0);
        self.waiting.insert(at, place);
    }
}

/// All that wait, each session once.
#[derive(Default)]
pub(super) struct Wishes {
    known: HashMap<i64, Numbered>,
    /// Nobody has looked yet which agent they are for.
    fresh: Vec<Place>,
    queues: BTreeMap<String, Queue>,
    /// They have to wait for something else than room.
    aside: Vec<Place>,
    /// By which the queues were made.
    config: Option<Arc<Config>>,
    count: u64,
}

impl Wishes {
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    pub(super) fn add(&mut self, wish: Wish) {
        if let Some(known) = self.known.get_mut(&wish.sid) {
            known.wish.auto_continue |= wish.auto_continue;
            return;
        }
        self.count += 1;
        self.give_back(Numbered { number: self.count, wish });
    }

    /// One that was taken and must wait again, in its old place.
    pub(super) fn give_back(&mut self, numbered: Numbered) {
        let place = (numbered.number, numbered.wish.sid);
        match self.known.get_mut(&numbered.wish.sid) {
            Some(known) => known.wish.auto_continue |= numbered.wish.auto_continue,
            None => {
                self.known.insert(numbered.wish.sid, numbered);
                self.fresh.push(place);
            }
        }
    }

    /// A session does not want a worker any more.
    pub(super) fn forget(&mut self, sid: i64) {
        if self.known.remove(&sid).is_some() {
            let others = |p: &Place| p.1 != sid;
            self.fresh.retain(others);
            self.aside.retain(others);
            self.queues.values_mut().for_each(|q| q.waiting.retain(others));
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self { count: self.count, ..Self::default() };
    }

    /// Finds the agent of those that are new, or of all, if the configuration is another one than the last time.
    pub(super) fn route(&mut self, config: &Arc<Config>) {
        if !self.config.as_ref().is_some_and(|c| Arc::ptr_eq(c, config)) {
            self.config = Some(config.clone());
            let queues = std::mem::take(&mut self.queues);
            self.fresh.extend(queues.into_values().flat_map(|q| q.waiting));
        }
        for place in std::mem::take(&mut self.fresh) {
            let Some(known) = self.known.get(&place.1) else { continue };
            let agent = config.route(&known.wish.key);
            match self.queues.get_mut(&agent.name) {
                Some(queue) => queue.insert(place),
                None => {
                    let queue = Queue { most: agent.max_processes, waiting: VecDeque::from([place]) };
                    self.queues.insert(agent.name.clone(), queue);
                }
            }
        }
    }

    /// The queues, by the agent's name; some may be empty.
    pub(super) fn queues(&self) -> impl Iterator<Item = (&str, &Queue)> {
        self.queues.iter().map(|(name, queue)| (name.as_str(), queue))
    }

    /// Takes the one that has waited longest, of the agents that `may` have one more. With the agent's name.
    pub(super) fn take(&mut self, may: impl Fn(&str, &Queue) -> bool) -> Option<(String, Numbered)> {
        let first = |(_, q): &(&String, &Queue)| q.waiting.front().copied();
        let open = self.queues.iter().filter(|(name, q)| q.len() > 0 && may(name, q));
        let name = open.min_by_key(first)?.0.clone();
        let (_, sid) = self.queues.get_mut(&name)?.waiting.pop_front()?;
        Some((name, self.known.remove(&sid)?))
    }

    /// One that was taken waits for something else than room.
    pub(super) fn set_aside(&mut self, numbered: Numbered) {
        self.aside.push((numbered.number, numbered.wish.sid));
        self.known.insert(numbered.wish.sid, numbered);
    }

    /// What those that were set aside waited for may have come.
    pub(super) fn return_aside(&mut self) {
        self.fresh.append(&mut self.aside);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Arc<Config> {
        Arc::new(crate::config::parse(text, None).expect("a configuration"))
    }

    fn two() -> Arc<Config> {
        config(
            "[agent.a]\nkind = \"echo\"\nmax_processes = 1\n[agent.b]\nkind = \"echo\"\n\
             [[route]]\nmatch = \"a:*\"\nagent = \"a\"\n[[route]]\nmatch = \"*\"\nagent = \"b\"\n",
        )
    }

    fn wish(sid: i64, key: &str) -> Wish {
        Wish { sid, key: key.to_owned(), auto_continue: false }
    }

    fn order(wishes: &mut Wishes, may: impl Fn(&str) -> bool) -> Vec<i64> {
        std::iter::from_fn(|| wishes.take(|name, _| may(name)).map(|(_, n)| n.wish.sid)).collect()
    }

    #[test]
    fn first_come_first_served_and_a_full_agent_holds_up_nobody() {
        let mut wishes = Wishes::default();
        for (sid, key) in [(1, "a:1"), (2, "x"), (3, "a:2"), (4, "y"), (2, "x")] {
            wishes.add(wish(sid, key));
        }
        wishes.route(&two());
        assert_eq!(
            (wishes.len(), wishes.queues().map(|(n, q)| (n, q.len())).collect::<Vec<_>>()),
            (4, vec![("a", 2), ("b", 2)])
        );
        assert_eq!(wishes.queues().map(|(_, q)| q.most).next(), Some(1));
        assert_eq!(order(&mut wishes, |name| name == "b"), [2, 4]);
        wishes.add(wish(5, "z"));
        wishes.route(&two());
        assert_eq!(order(&mut wishes, |_| true), [1, 3, 5]);
        assert!(wishes.is_empty());
    }

    #[test]
    fn what_is_given_back_has_its_old_place() {
        let mut wishes = Wishes::default();
        let config = two();
        (1..=4).for_each(|sid| wishes.add(wish(sid, "x")));
        wishes.route(&config);
        let mut taken: Vec<_> = (0..3).map(|_| wishes.take(|_, _| true).expect("one").1).collect();
        wishes.add(Wish { auto_continue: true, ..wish(2, "x") });
        let third = taken.pop().expect("the third");
        wishes.set_aside(third);
        taken.into_iter().rev().for_each(|n| wishes.give_back(n));
        wishes.route(&config);
        assert_eq!(wishes.len(), 4, "the one that is set aside among them");
        wishes.forget(4);
        let first = wishes.take(|_, _| true).expect("one").1;
        assert_eq!(first.wish.sid, 1);
        wishes.return_aside();
        wishes.route(&config);
        // The second came anew meanwhile, so its place is the newer one.
        let rest: Vec<_> = std::iter::from_fn(|| wishes.take(|_, _| true)).map(|(_, n)| n.wish).collect();
        assert_eq!(rest, [wish(3, "x"), Wish { auto_continue: true, ..wish(2, "x") }]);
    }

    #[test]
    fn another_configuration_routes_all_anew() {
        let mut wishes = Wishes::default();
        wishes.add(wish(1, "a:1"));
        wishes.add(wish(2, "x"));
        wishes.route(&two());
        wishes.route(&config("[agent.c]\nkind = \"echo\"\n[[route]]\nmatch = \"*\"\nagent = \"c\"\n"));
        assert_eq!(wishes.queues().map(|(n, q)| (n, q.len())).collect::<Vec<_>>(), [("c", 2)]);
        assert_eq!(order(&mut wishes, |_| true), [1, 2]);
    }
}
