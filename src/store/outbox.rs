//! The output of a turn that is not known to be kept.
//!
//! Owns the numbers of a turn's batches. A batch that was sent is sent again unchanged and under its number, so that it
//! is kept exactly once even if its commit was in doubt. It must not know how a batch is written.

use super::output::Item;
use super::shims::{Frames, Keep};

/// What a turn adds in one write. The batches of a turn are numbered from 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Its number. A batch whose number is not above that of the last kept one is not kept again.
    pub number: i64,
    /// What was said.
    pub items: Vec<Item>,
    /// How far the agent's output is kept with it.
    pub keep: Option<Keep>,
}

/// The output of a turn that is not known to be kept, in order.
#[derive(Clone, Debug, Default)]
pub struct Outbox {
    number: i64,
    sent: Vec<Batch>,
    fresh: Vec<Item>,
    keep: Option<Keep>,
}

impl Outbox {
    /// The outbox of a turn that has had so many batches.
    #[must_use]
    pub fn after(pieces: i64) -> Self {
        Self { number: pieces, ..Self::default() }
    }

    /// How far the agent's output is kept with what was added so far. What was to be sent to it is added to.
    pub fn keep(&mut self, mut keep: Keep) {
        if let Some(before) = self.keep.take() {
            keep.frames.splice(0..0, before.frames);
        }
        self.keep = Some(keep);
    }

    /// The last [`Keep`] of what was sent, with all frames.
    #[must_use]
    pub fn sent_keep(&self) -> Option<(i64, Frames)> {
        let keeps = self.sent.iter().filter_map(|b| b.keep.as_ref());
        let offset = keeps.clone().next_back()?.offset;
        Some((offset, keeps.flat_map(|k| k.frames.iter().cloned()).collect()))
    }

    /// Adds the newest output. Adjacent pieces of text are joined.
    pub fn push(&mut self, item: Item) {
        match (self.fresh.last_mut(), item) {
            (Some(Item::Text(last)), Item::Text(more)) | (Some(Item::Thought(last)), Item::Thought(more)) => {
                last.push_str(&more);
            }
            (_, item) => self.fresh.push(item),
        }
    }

    /// Whether everything is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sent.is_empty() && self.fresh.is_empty() && self.keep.is_none()
    }

    /// Everything, to be written. From here on it is in doubt until [`Self::kept`], and nothing is added to a batch
    /// that was sent.
    pub fn send(&mut self) -> Vec<Batch> {
        if !self.fresh.is_empty() || self.keep.is_some() {
            self.number += 1;
            let (items, keep) = (std::mem::take(&mut self.fresh), self.keep.take());
            self.sent.push(Batch { number: self.number, items, keep });
        }
        self.sent.clone()
    }

    /// All that was sent is kept.
    pub fn kept(&mut self) {
        self.sent.clear();
    }

    /// It will not be kept any more.
    pub fn forget(&mut self) {
        self.sent.clear();
        self.fresh.clear();
        self.keep = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(t: &str) -> Item {
        Item::Text(t.into())
    }

    #[test]
    fn what_was_sent_is_sent_again_as_it_was_and_what_came_since_beside_it() {
        let mut u = Outbox::default();
        assert!(u.is_empty() && u.send().is_empty());
        u.push(text("a"));
        u.push(text("b"));
        let first = Batch { number: 1, items: vec![text("ab")], keep: None };
        assert!(!u.is_empty());
        assert_eq!(u.send(), vec![first.clone()]);
        assert!(!u.is_empty(), "sent is not kept");
        u.push(text("c"));
        u.push(Item::Thought("d".into()));
        u.push(Item::Thought("e".into()));
        u.push(text("f"));
        let second = Batch { number: 2, items: vec![text("c"), Item::Thought("de".into()), text("f")], keep: None };
        assert_eq!(u.send(), vec![first, second.clone()]);
        assert_eq!(u.send().last(), Some(&second), "under the same number");
        u.kept();
        assert!(u.is_empty() && u.send().is_empty());
        u.push(text("g"));
        assert_eq!(u.send(), vec![Batch { number: 3, items: vec![text("g")], keep: None }]);
        u.push(text("h"));
        u.forget();
        assert!(u.is_empty());
    }
}
