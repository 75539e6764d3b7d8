//! The wait queue: one queue per agent, in order of arrival. A full agent neither holds up the others nor is rescanned.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::{Routes, WorkRequest};

/// Number and session of an entry: the number gives the order of arrival.
type Place = (u64, i64);

/// A request, and its place in the order of arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    number: u64,
    /// The request.
    pub request: WorkRequest,
}

/// The waiting requests of one agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queued<'a> {
    /// The agent's name.
    pub agent: &'a str,
    /// How many wait.
    pub waiting: usize,
    /// How many sessions the agent may have at once.
    pub most: usize,
}

/// The requests for one agent.
#[derive(Debug)]
struct AgentQueue {
    most: usize,
    places: VecDeque<Place>,
}

impl AgentQueue {
    /// Inserts in order of arrival: a returned request comes before requests that arrived later.
    fn insert(&mut self, place: Place) {
        let at = self.places.partition_point(|p| p.0 < place.0);
        self.places.insert(at, place);
    }
}

/// All waiting requests, each session once.
#[derive(Debug, Default)]
pub(super) struct WaitQueue {
    known: HashMap<i64, Waiting>,
    /// Requests whose agent is not known yet.
    fresh: Vec<Place>,
    queues: BTreeMap<String, AgentQueue>,
    /// Requests that wait for something else than a slot.
    aside: Vec<Place>,
    count: u64,
}

impl WaitQueue {
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    pub(super) fn add(&mut self, request: WorkRequest) {
        if let Some(known) = self.known.get_mut(&request.sid) {
            known.request.auto_continue |= request.auto_continue;
            return;
        }
        self.count += 1;
        self.give_back(Waiting { number: self.count, request });
    }

    /// Returns a request that was taken to its old place.
    pub(super) fn give_back(&mut self, waiting: Waiting) {
        let place = (waiting.number, waiting.request.sid);
        match self.known.get_mut(&waiting.request.sid) {
            Some(known) => known.request.auto_continue |= waiting.request.auto_continue,
            None => {
                self.known.insert(waiting.request.sid, waiting);
                self.fresh.push(place);
            }
        }
    }

    /// Removes a session's request.
    pub(super) fn forget(&mut self, sid: i64) {
        if self.known.remove(&sid).is_some() {
            let others = |p: &Place| p.1 != sid;
            self.fresh.retain(others);
            self.aside.retain(others);
            self.queues.values_mut().for_each(|q| q.places.retain(others));
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self { count: self.count, ..Self::default() };
    }

    /// The routes may have changed.
    pub(super) fn forget_routes(&mut self) {
        let queues = std::mem::take(&mut self.queues);
        self.fresh.extend(queues.into_values().flat_map(|q| q.places));
    }

    /// Finds the agents of new requests.
    pub(super) fn route(&mut self, routes: &dyn Routes) {
        for place in std::mem::take(&mut self.fresh) {
            let Some(known) = self.known.get(&place.1) else { continue };
            let route = routes.route(&known.request.key);
            match self.queues.get_mut(route.agent) {
                Some(queue) => queue.insert(place),
                None => {
                    let queue = AgentQueue { most: route.most, places: VecDeque::from([place]) };
                    self.queues.insert(route.agent.to_owned(), queue);
                }
            }
        }
    }

    /// The queues, by the agent's name; some may be empty.
    pub(super) fn queues(&self) -> impl Iterator<Item = Queued<'_>> {
        self.queues.iter().map(|(agent, q)| Queued { agent, waiting: q.places.len(), most: q.most })
    }

    /// Takes the oldest request of the agents that `may` have one more session (name, most). Returns it with the
    /// agent's name.
    pub(super) fn take(&mut self, may: impl Fn(&str, usize) -> bool) -> Option<(String, Waiting)> {
        let first = |(_, q): &(&String, &AgentQueue)| q.places.front().copied();
        let open = self.queues.iter().filter(|(agent, q)| !q.places.is_empty() && may(agent, q.most));
        let agent = open.min_by_key(first)?.0.clone();
        let (_, sid) = self.queues.get_mut(&agent)?.places.pop_front()?;
        Some((agent, self.known.remove(&sid)?))
    }

    /// A request that was taken must wait for something else than a slot.
    pub(super) fn set_aside(&mut self, waiting: Waiting) {
        self.aside.push((waiting.number, waiting.request.sid));
        self.known.insert(waiting.request.sid, waiting);
    }

    /// The requests that were set aside are tried again.
    pub(super) fn return_aside(&mut self) {
        self.fresh.append(&mut self.aside);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Route;
    use super::*;

    /// Keys that begin with `a:` are agent a's, which may have one session; all others are b's.
    struct Two;

    impl Routes for Two {
        fn route(&self, key: &str) -> Route<'_> {
            let (agent, most) = if key.starts_with("a:") { ("a", 1) } else { ("b", 9) };
            Route { agent, most, light: true }
        }
    }

    struct One;

    impl Routes for One {
        fn route(&self, _: &str) -> Route<'_> {
            Route { agent: "c", most: 9, light: true }
        }
    }

    fn request(sid: i64, key: &str) -> WorkRequest {
        WorkRequest { sid, key: key.to_owned(), auto_continue: false }
    }

    fn order(queue: &mut WaitQueue, may: impl Fn(&str) -> bool) -> Vec<i64> {
        std::iter::from_fn(|| queue.take(|agent, _| may(agent)).map(|(_, w)| w.request.sid)).collect()
    }

    #[test]
    fn first_come_first_served_and_a_full_agent_holds_up_nobody() {
        let mut queue = WaitQueue::default();
        for (sid, key) in [(1, "a:1"), (2, "x"), (3, "a:2"), (4, "y"), (2, "x")] {
            queue.add(request(sid, key));
        }
        queue.route(&Two);
        let queued: Vec<_> = queue.queues().collect();
        let [a, b] = [("a", 1), ("b", 9)].map(|(agent, most)| Queued { agent, waiting: 2, most });
        assert_eq!((queue.len(), queued), (4, vec![a, b]));
        assert_eq!(order(&mut queue, |agent| agent == "b"), [2, 4]);
        queue.add(request(5, "z"));
        queue.route(&Two);
        assert_eq!(order(&mut queue, |_| true), [1, 3, 5]);
        assert!(queue.is_empty());
    }

    #[test]
    fn what_is_given_back_has_its_old_place() {
        let mut queue = WaitQueue::default();
        (1..=4).for_each(|sid| queue.add(request(sid, "x")));
        queue.route(&Two);
        let mut taken: Vec<_> = (0..3).map(|_| queue.take(|_, _| true).expect("one").1).collect();
        queue.add(WorkRequest { auto_continue: true, ..request(2, "x") });
        let third = taken.pop().expect("the third");
        queue.set_aside(third);
        taken.into_iter().rev().for_each(|w| queue.give_back(w));
        queue.route(&Two);
        assert_eq!(queue.len(), 4, "with the request that is set aside");
        queue.forget(4);
        let first = queue.take(|_, _| true).expect("one").1;
        assert_eq!(first.request.sid, 1);
        queue.return_aside();
        queue.route(&Two);
        // The second came anew meanwhile, so its place is the newer one.
        let rest: Vec<_> = std::iter::from_fn(|| queue.take(|_, _| true)).map(|(_, w)| w.request).collect();
        assert_eq!(rest, [request(3, "x"), WorkRequest { auto_continue: true, ..request(2, "x") }]);
    }

    #[test]
    fn other_routes_hold_for_all_that_wait() {
        let mut queue = WaitQueue::default();
        queue.add(request(1, "a:1"));
        queue.add(request(2, "x"));
        queue.route(&Two);
        queue.forget_routes();
        queue.route(&One);
        assert_eq!(queue.queues().collect::<Vec<_>>(), [Queued { agent: "c", waiting: 2, most: 9 }]);
        assert_eq!(order(&mut queue, |_| true), [1, 2]);
    }

    #[test]
    fn a_session_that_wants_nothing_any_more_is_nowhere() {
        for aside in [false, true] {
            let mut queue = WaitQueue::default();
            (1..=2).for_each(|sid| queue.add(request(sid, "x")));
            queue.route(&Two);
            if aside {
                let (_, first) = queue.take(|_, _| true).expect("the first");
                queue.set_aside(first);
            }
            queue.forget(1);
            queue.return_aside();
            queue.route(&Two);
            assert_eq!((queue.len(), order(&mut queue, |_| true)), (1, vec![2]));
            queue.clear();
            assert!(queue.is_empty() && queue.queues().next().is_none());
        }
    }
}
