//! What is due when: one table, in which an entry is taken when it is handled.
//!
//! So a loop that sleeps until [`Timers::next`] cannot spin on an instant that has passed and that nobody cleared:
//! whoever handles an entry says again when it is due, or it is due no more.

use std::collections::BTreeMap;
use std::time::Instant;

/// The table; each kind of timer is in it once at the most.
#[derive(Debug)]
pub struct Timers<T> {
    at: BTreeMap<T, Instant>,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self { at: BTreeMap::new() }
    }
}

impl<T: Ord + Copy> Timers<T> {
    /// It is due then, whatever was said before.
    pub fn set(&mut self, timer: T, at: Instant) {
        self.at.insert(timer, at);
    }

    /// It is not due any more.
    pub fn clear(&mut self, timer: T) {
        self.at.remove(&timer);
    }

    /// Whether it is due at some time.
    #[must_use]
    pub fn is_set(&self, timer: T) -> bool {
        self.at.contains_key(&timer)
    }

    /// When the next one is due.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.at.values().min().copied()
    }

    /// Takes what is due out of the table, in the order of the kinds.
    #[must_use]
    pub fn take_due(&mut self, now: Instant) -> Vec<T> {
        let due: Vec<T> = self.at.iter().filter(|(_, at)| **at <= now).map(|(timer, _)| *timer).collect();
        for timer in &due {
            self.at.remove(timer);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_due_is_taken_once() {
        let t = Instant::now();
        let later = |s| t + Duration::from_secs(s);
        let mut timers = Timers::default();
        assert_eq!((timers.next(), timers.take_due(later(9))), (None, vec![]));
        timers.set('b', later(2));
        timers.set('a', later(2));
        timers.set('c', later(3));
        assert_eq!(timers.next(), Some(later(2)));
        assert_eq!(timers.take_due(later(1)), []);
        assert_eq!(timers.take_due(later(2)), ['a', 'b']);
        assert_eq!(timers.take_due(later(2)), [], "an instant that has passed is no reason to look again");
        assert_eq!(timers.next(), Some(later(3)));
    }

    #[test]
    fn the_newest_word_counts() {
        let t = Instant::now();
        let later = t + Duration::from_secs(5);
        let mut timers = Timers::default();
        timers.set(1, t);
        timers.set(1, later);
        assert!(timers.is_set(1) && timers.take_due(t).is_empty());
        timers.clear(1);
        assert!(!timers.is_set(1));
        assert_eq!(timers.next(), None);
    }
}
