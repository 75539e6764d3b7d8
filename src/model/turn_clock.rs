//! How long a turn may still take. Only time in which no permission is open counts; several may be open at once.

use std::time::Instant;

/// The clock of one turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TurnClock {
    deadline: Option<Instant>,
    waits: usize,
    waiting_since: Option<Instant>,
}

impl TurnClock {
    /// A turn begins, and may run until then.
    #[must_use]
    pub const fn new(deadline: Option<Instant>) -> Self {
        Self { deadline, waits: 0, waiting_since: None }
    }

    /// A permission is asked for.
    pub fn begin_wait(&mut self, now: Instant) {
        self.waits += 1;
        self.waiting_since.get_or_insert(now);
    }

    /// One is settled.
    pub fn end_wait(&mut self, now: Instant) {
        self.waits = self.waits.saturating_sub(1);
        if self.waits == 0
            && let Some(since) = self.waiting_since.take()
        {
            self.deadline = self.deadline.map(|d| d + now.saturating_duration_since(since));
        }
    }

    /// When its time is over; while it waits, as of when the wait began.
    #[must_use]
    pub const fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn waits_at_once_count_once() {
        let t = Instant::now();
        let s = |n| t + Duration::from_secs(n);
        let mut clock = TurnClock::new(Some(s(100)));
        clock.begin_wait(s(10));
        clock.begin_wait(s(20));
        clock.end_wait(s(30));
        assert_eq!(clock.deadline(), Some(s(100)), "one is still open");
        clock.end_wait(s(50));
        assert_eq!(clock.deadline(), Some(s(140)), "from the first to the last, not the sum of both");
        clock.begin_wait(s(60));
        clock.end_wait(s(65));
        assert_eq!(clock.deadline(), Some(s(145)));
        clock.end_wait(s(70));
        assert_eq!(clock.deadline(), Some(s(145)), "one too many changes nothing");
    }

    #[test]
    fn without_a_limit_there_is_none() {
        let t = Instant::now();
        let mut clock = TurnClock::new(None);
        clock.begin_wait(t);
        clock.end_wait(t + Duration::from_secs(9));
        assert_eq!(clock.deadline(), None);
    }
}
