//! One operation at a time, and another one if it was requested meanwhile.
//!
//! A request during an operation may have a reason that this operation began too early to see, such as a file that has
//! changed since. So each request gets the outcome of an operation that began after it; requests during one operation
//! share the next.

/// An operation that is requested, in progress, or neither, with the requesters that wait for its outcome.
#[derive(Debug)]
pub struct OpQueue<A> {
    requested: Option<Vec<A>>,
    in_progress: Option<Vec<A>>,
}

impl<A> Default for OpQueue<A> {
    fn default() -> Self {
        Self { requested: None, in_progress: None }
    }
}

impl<A> OpQueue<A> {
    /// Requests the operation. `None`: the requester does not wait for the outcome.
    pub fn request(&mut self, asker: Option<A>) {
        self.requested.get_or_insert_with(Vec::new).extend(asker);
    }

    /// `true`: the caller must start the operation now. It is in progress until [`Self::complete`].
    #[must_use]
    pub fn begin(&mut self) -> bool {
        if self.in_progress.is_some() || self.requested.is_none() {
            return false;
        }
        self.in_progress = self.requested.take();
        true
    }

    /// The operation has an outcome, or could not be started. Returns the requesters that wait for it.
    #[must_use]
    pub fn complete(&mut self) -> Vec<A> {
        self.in_progress.take().unwrap_or_default()
    }

    /// Cancels all requests and returns their requesters. An operation in progress goes on until it is complete; none
    /// follows it.
    #[must_use]
    pub fn dismiss(&mut self) -> Vec<A> {
        let mut all = self.in_progress.as_mut().map(std::mem::take).unwrap_or_default();
        all.extend(self.requested.take().unwrap_or_default());
        all
    }

    /// Whether the operation is in progress.
    #[must_use]
    pub const fn is_in_progress(&self) -> bool {
        self.in_progress.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_during_an_operation_starts_another_one() {
        let mut ops = OpQueue::default();
        assert!(!ops.begin(), "nobody asked");
        ops.request(Some('a'));
        assert!(ops.begin() && !ops.begin(), "one at a time");
        ops.request(Some('b'));
        ops.request(Some('c'));
        ops.request(None);
        assert!(!ops.begin());
        assert_eq!(ops.complete(), ['a'], "the others asked after it began");
        assert!(ops.begin());
        assert_eq!(ops.complete(), ['b', 'c']);
        assert!(!ops.begin() && !ops.is_in_progress());
    }

    #[test]
    fn one_without_an_asker_runs_all_the_same() {
        let mut ops = OpQueue::<()>::default();
        ops.request(None);
        assert!(ops.begin());
        ops.request(None);
        assert!(ops.complete().is_empty());
        assert!(ops.begin());
    }

    #[test]
    fn who_is_dismissed_waits_for_nothing() {
        let mut ops = OpQueue::default();
        ops.request(Some(1));
        assert!(ops.begin());
        ops.request(Some(2));
        assert_eq!(ops.dismiss(), [1, 2]);
        assert!(ops.is_in_progress() && !ops.begin());
        assert!(ops.complete().is_empty());
        assert!(!ops.begin());
    }

    /// In any order of calls there is one operation at a time, and each requester gets one answer, from an operation
    /// that began after its request.
    #[test]
    fn every_order_answers_each_by_a_later_operation() {
        for orders in 0..3u32.pow(9) {
            let mut ops = OpQueue::default();
            let (mut asked, mut answered, mut running, mut began) = (0, Vec::new(), None, 0);
            let mut order = orders;
            for time in 0..9 {
                match order % 3 {
                    0 => {
                        ops.request(Some(time));
                        asked += 1;
                    }
                    1 => {
                        if ops.begin() {
                            assert!(running.replace(time).is_none(), "two at once: {orders}");
                            began += 1;
                        }
                    }
                    _ => {
                        for asker in ops.complete() {
                            assert!(running.is_some_and(|began| began > asker), "{orders}");
                            answered.push(asker);
                        }
                        running = None;
                    }
                }
                order /= 3;
            }
            answered.extend(ops.dismiss());
            answered.sort_unstable();
            answered.dedup();
            assert_eq!((answered.len(), began <= asked), (asked, true), "{orders}");
        }
    }
}
