//! The last bytes of a stream, for error messages.

use std::collections::VecDeque;

/// How many bytes are kept.
const KEPT: usize = 8 * 1024;

/// Keeps the last 8 KiB of what is pushed.
#[derive(Debug, Default)]
pub struct Tail {
    bytes: VecDeque<u8>,
    cut: bool,
}

impl Tail {
    /// Takes in more; the oldest beyond 8 KiB is forgotten.
    pub fn push(&mut self, bytes: &[u8]) {
        let last = &bytes[bytes.len().saturating_sub(KEPT)..];
        let over = (self.bytes.len() + last.len()).saturating_sub(KEPT);
        self.cut |= over > 0 || last.len() < bytes.len();
        self.bytes.drain(..over);
        self.bytes.extend(last);
    }

    /// The kept bytes as text, without white space at the ends; from the first whole line if earlier bytes were
    /// forgotten.
    #[must_use]
    pub fn text(&self) -> String {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let whole = match text.split_once('\n') {
            Some((_, rest)) if self.cut && !rest.trim().is_empty() => rest,
            _ => &text,
        };
        whole.trim().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_is_kept_from_a_whole_line_on() {
        let mut tail = Tail::default();
        tail.push(b"first\n");
        assert_eq!(tail.text(), "first");
        for n in 0..2000 {
            tail.push(format!("line {n}\n").as_bytes());
        }
        let text = tail.text();
        assert!(text.len() <= KEPT && text.starts_with("line ") && text.ends_with("line 1999"), "{text}");
        tail.push(&vec![b'x'; 3 * KEPT]);
        assert_eq!(tail.text().len(), KEPT, "one endless line is cut in its middle");
    }
}
