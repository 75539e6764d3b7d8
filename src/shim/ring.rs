//! The last of what an agent wrote to stderr and nobody has heard yet. Pure.

use std::collections::VecDeque;

/// How many bytes are kept.
pub const RING: usize = 64 * 1024;

/// At most [`RING`] bytes, and how many before them were dropped.
#[derive(Debug, Default)]
pub struct Ring {
    bytes: VecDeque<u8>,
    dropped: u64,
}

impl Ring {
    /// Takes more in; the oldest beyond the bound are dropped and counted.
    pub fn push(&mut self, bytes: &[u8]) {
        let last = &bytes[bytes.len().saturating_sub(RING)..];
        let over = (self.bytes.len() + last.len()).saturating_sub(RING);
        self.dropped += (over + bytes.len() - last.len()) as u64;
        self.bytes.drain(..over);
        self.bytes.extend(last);
    }

    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How many bytes were dropped before the first that is left, and the first that are left, at most so many.
    #[must_use]
    pub fn front(&self, most: usize) -> (u64, Vec<u8>) {
        (self.dropped, self.bytes.iter().take(most).copied().collect())
    }

    /// Forgets so many from the front, which were told, and the count of the dropped. An empty ring keeps no memory.
    pub fn told(&mut self, bytes: usize) {
        self.bytes.drain(..bytes.min(self.bytes.len()));
        self.dropped = 0;
        if self.bytes.is_empty() {
            self.bytes = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_kept_and_the_others_counted() {
        let mut ring = Ring::default();
        assert!(ring.is_empty());
        ring.push(b"abc");
        assert_eq!(ring.front(2), (0, b"ab".to_vec()));
        ring.told(2);
        assert_eq!(ring.front(9), (0, b"c".to_vec()));
        ring.push(&vec![b'x'; RING - 1]);
        assert_eq!(ring.front(1), (0, b"c".to_vec()), "just full");
        ring.push(b"yz");
        assert_eq!(ring.front(1), (2, b"x".to_vec()));
        ring.push(&vec![b'w'; 3 * RING]);
        assert_eq!(ring.front(RING + 1), ((3 * RING + 2) as u64, vec![b'w'; RING]));
        ring.told(RING);
        assert!(ring.is_empty() && ring.bytes.capacity() == 0);
        ring.push(b"end");
        assert_eq!(ring.front(9), (0, b"end".to_vec()));
    }
}
