//! The coordinator's pacing and retries, as decisions.
//!
//! Interrupted turns go on one after the other, so that a turn that kills the daemon can be identified, and a boot does
//! not start all of them at once. A failed operation is tried again after a fixed pause, never at once.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::recovery::continuation_delay_s;
use super::roster::WorkRequest;

/// The time between two signs of life while a turn runs.
pub const ALIVE: Duration = Duration::from_secs(60);
/// How long a session on probation is watched.
pub const PROBATION: Duration = Duration::from_secs(10);
/// The time between two rounds of retention, and between two tries to remove files. The steps of a round have no pause.
pub const RETENTION: Duration = Duration::from_secs(600);
/// The time between two status lines of a stop.
pub const PROGRESS: Duration = Duration::from_secs(1);
/// The time between two continuations.
const CONTINUATION: Duration = Duration::from_millis(125);

/// An operation that failed and is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Retry {
    /// Starting a session's thread. A thread that ends makes room.
    Thread,
    /// Starting a thread for a step of retention.
    Retention,
    /// Failing a waiting message: no thread could be started, or the store failed.
    Refusal,
    /// Reading what a commit in doubt did.
    Doubt,
    /// Reading the waiting work.
    Schedule,
}

/// The pause before the next try.
#[must_use]
pub const fn retry_after(what: Retry) -> Duration {
    match what {
        Retry::Thread | Retry::Retention | Retry::Refusal | Retry::Doubt | Retry::Schedule => Duration::from_secs(1),
    }
}

/// What happens to a session whose thread could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithoutThread {
    /// It returns to its place in the queue and is tried again: another worker's end will make room.
    Wait,
    /// No other worker exists, so no thread will become free: its oldest message fails.
    Refuse,
}

/// Decides that. `others`: the number of live sessions with a thread.
#[must_use]
pub const fn without_thread(others: usize) -> WithoutThread {
    if others > 0 { WithoutThread::Wait } else { WithoutThread::Refuse }
}

/// The outcome of failing the oldest waiting message of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No other message waits.
    All,
    /// More messages wait: the session needs a worker again.
    More,
    /// The store or the thread failed.
    Failed,
}

/// The pause before the session of a failed message requests a worker again; `None`: no message waits. After a failure
/// there is a pause, because the store or threads are not available now.
#[must_use]
pub const fn after_refusal(refused: Refused) -> Option<Duration> {
    match refused {
        Refused::All => None,
        Refused::More => Some(Duration::ZERO),
        Refused::Failed => Some(retry_after(Retry::Refusal)),
    }
}

/// When the probation that began at `since` ends; `None`: it is over.
#[must_use]
pub fn probation_ends(since: Instant, now: Instant) -> Option<Instant> {
    Some(since + PROBATION).filter(|at| *at > now)
}

/// The queue of interrupted turns that are to go on, each session once.
#[derive(Debug, Default)]
pub struct Continuations {
    waiting: VecDeque<WorkRequest>,
    known: BTreeSet<i64>,
    next: Option<Instant>,
}

impl Continuations {
    /// Delays the next continuation; the delay grows with the number of boots that died recently.
    pub fn hold_off(&mut self, deaths: u32, now: Instant) {
        let at = now + Duration::from_secs(continuation_delay_s(deaths).into());
        self.next = Some(self.next.map_or(at, |old| old.max(at)));
    }

    /// Adds sessions whose interrupted turn is to go on. A session that already waits keeps its place.
    pub fn extend(&mut self, requests: impl IntoIterator<Item = WorkRequest>) {
        for request in requests {
            if self.known.insert(request.sid) {
                self.waiting.push_back(request);
            }
        }
    }

    /// When the next turn goes on; `None`: no turn waits.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.next.filter(|_| !self.waiting.is_empty())
    }

    /// Takes the requests whose time has come.
    #[must_use]
    pub fn take_due(&mut self, now: Instant) -> Vec<WorkRequest> {
        let mut due = Vec::new();
        while let Some(at) = self.next.filter(|at| *at <= now) {
            let Some(request) = self.waiting.pop_front() else { break };
            self.known.remove(&request.sid);
            self.next = Some(at + CONTINUATION);
            due.push(request);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(sid: i64) -> WorkRequest {
        WorkRequest { sid, key: format!("k:{sid}"), auto_continue: true }
    }

    fn sids(requests: &[WorkRequest]) -> Vec<i64> {
        requests.iter().map(|r| r.sid).collect()
    }

    #[test]
    fn interrupted_turns_go_on_one_after_the_other() {
        let t = Instant::now();
        let ms = |n| t + Duration::from_millis(n);
        let mut continuations = Continuations::default();
        assert_eq!((continuations.due(), continuations.take_due(ms(9999))), (None, vec![]));
        continuations.hold_off(0, t);
        assert_eq!(continuations.due(), None, "nothing waits");
        continuations.extend([1, 2, 1, 3].map(request));
        let begins = continuations.due().expect("they wait");
        assert_eq!(begins, t + Duration::from_secs(continuation_delay_s(0).into()));
        let at = |n| begins + Duration::from_millis(n);
        for (now, goes_on, due) in [
            (at(0), vec![1], Some(at(125))),
            (at(124), vec![], Some(at(125))),
            (at(130), vec![2], Some(at(250))),
            (at(900), vec![3], None),
            (at(999), vec![], None),
        ] {
            assert_eq!(sids(&continuations.take_due(now)), goes_on);
            assert_eq!(continuations.due(), due);
        }
        continuations.extend([request(1)]);
        assert_eq!(sids(&continuations.take_due(at(999))), [1], "it was interrupted again");
    }

    #[test]
    fn those_that_are_late_go_on_together() {
        let t = Instant::now();
        let mut continuations = Continuations::default();
        continuations.hold_off(0, t);
        continuations.extend((1..=4).map(request));
        assert_eq!(sids(&continuations.take_due(t + Duration::from_secs(3600))), [1, 2, 3, 4]);
    }

    #[test]
    fn the_more_boots_died_the_later_and_never_earlier() {
        let t = Instant::now();
        let mut continuations = Continuations::default();
        continuations.extend([request(1)]);
        assert_eq!(continuations.due(), None, "nobody said when");
        for (deaths, later) in [(5, 5), (0, 5), (3, 5)] {
            continuations.hold_off(deaths, t);
            assert_eq!(continuations.due(), Some(t + Duration::from_secs(continuation_delay_s(later).into())));
        }
    }

    #[test]
    fn who_gets_no_thread_waits_while_somebody_may_give_one_back() {
        for (others, becomes) in [(0, WithoutThread::Refuse), (1, WithoutThread::Wait), (9, WithoutThread::Wait)] {
            assert_eq!(without_thread(others), becomes);
        }
    }

    #[test]
    fn a_refusal_that_fails_is_not_tried_at_once() {
        for (refused, again) in [
            (Refused::All, None),
            (Refused::More, Some(Duration::ZERO)),
            (Refused::Failed, Some(Duration::from_secs(1))),
        ] {
            assert_eq!(after_refusal(refused), again);
        }
        for what in [Retry::Thread, Retry::Retention, Retry::Refusal, Retry::Doubt, Retry::Schedule] {
            assert!(retry_after(what) >= Duration::from_millis(100), "{what:?} would spin");
        }
    }

    #[test]
    fn a_probation_is_over_when_it_stood_its_time() {
        let t = Instant::now();
        for (age, looked_at) in [(0, true), (9, true), (10, false), (11, false)] {
            let at = probation_ends(t, t + Duration::from_secs(age));
            assert_eq!(at, looked_at.then_some(t + PROBATION), "{age} s");
        }
    }
}
