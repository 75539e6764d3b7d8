//! Cutting a stream of bytes into lines, whatever its pieces are and however long the lines.
//!
//! Owns one bounded buffer; it must not know what the lines mean.

/// A buffer that grew beyond this for one line is given back after it.
const BUFFER_KEPT: usize = 256 * 1024;
/// What is kept of each end of a line that is too long.
const END_KEPT: usize = 1024;

/// Cuts a stream of bytes into lines. Holds at most a line of the limit and one slice more.
#[derive(Debug)]
pub struct Lines {
    limit: usize,
    buffer: Vec<u8>,
    begin: usize,
    scanned: usize,
    /// How much of a line that is too long was thrown away already; 0: none is being skipped.
    skipped: usize,
    /// How that line began, and how it went on last.
    ends: [Vec<u8>; 2],
    /// How many bytes of the stream were given out as lines, or skipped.
    passed: u64,
}

/// How far a stream was cut into lines, to go on from there with another [`Lines`].
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Skipping {
    skipped: usize,
    ends: [Vec<u8>; 2],
}

/// What came on a line.
#[derive(Debug, PartialEq)]
pub enum Line<T> {
    /// All of it.
    Whole(T),
    /// It was too long: so many bytes were skipped. How it began and how it ended, in one.
    TooLong(usize, Vec<u8>),
}

impl Lines {
    /// Reads lines of at most so many bytes.
    pub const fn new(limit: usize) -> Self {
        Self { limit, buffer: Vec::new(), begin: 0, scanned: 0, skipped: 0, ends: [Vec::new(), Vec::new()], passed: 0 }
    }

    /// Goes on with a stream from this offset, where it stood so.
    pub fn resume(limit: usize, offset: u64, at: Skipping) -> Self {
        Self { skipped: at.skipped, ends: at.ends, passed: offset, ..Self::new(limit) }
    }

    /// The offset in the stream of the first byte that was neither given out nor skipped.
    pub const fn position(&self) -> u64 {
        self.passed
    }

    /// How it stands there.
    pub fn skipping(&self) -> Skipping {
        Skipping { skipped: self.skipped, ends: self.ends.clone() }
    }

    /// Whether [`Self::next`] has looked at all that there is.
    pub const fn is_dry(&self) -> bool {
        self.scanned == self.buffer.len()
    }

    /// Takes in what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.begin > 0 {
            self.buffer.drain(..self.begin);
            self.scanned -= self.begin;
            self.begin = 0;
        }
        if self.buffer.is_empty() && self.buffer.capacity() > BUFFER_KEPT {
            self.buffer = Vec::new();
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line as `read` makes of it, without its end; `None` when more bytes are needed.
    pub fn next<T>(&mut self, read: impl FnOnce(&[u8]) -> T) -> Option<Line<T>> {
        let Some(n) = memchr::memchr(b'\n', &self.buffer[self.scanned..]) else {
            self.scanned = self.buffer.len();
            if self.skipped > 0 || self.buffer.len() - self.begin > self.limit {
                self.skip(self.buffer.len());
                (self.buffer, self.begin, self.scanned) = (Vec::new(), 0, 0);
            }
            return None;
        };
        let end = self.scanned + n;
        let begin = std::mem::replace(&mut self.begin, end + 1);
        self.scanned = end + 1;
        if self.skipped > 0 || end - begin > self.limit {
            self.begin = begin;
            self.skip(end);
            self.begin = end + 1;
            self.passed += 1;
            return Some(Line::TooLong(std::mem::take(&mut self.skipped), std::mem::take(&mut self.ends).concat()));
        }
        self.passed += (end + 1 - begin) as u64;
        let line = &self.buffer[begin..end];
        Some(Line::Whole(read(line.strip_suffix(b"\r").unwrap_or(line))))
    }

    /// Passes over what the buffer has of a line that is too long, up to `end`.
    fn skip(&mut self, end: usize) {
        let bytes = &self.buffer[self.begin..end];
        if self.skipped == 0 {
            self.ends[0] = bytes[..bytes.len().min(END_KEPT)].to_vec();
            let rest = &bytes[bytes.len().min(END_KEPT)..];
            self.ends[1] = rest[rest.len().saturating_sub(END_KEPT)..].to_vec();
        } else {
            self.ends[1].extend_from_slice(&bytes[bytes.len().saturating_sub(END_KEPT)..]);
        }
        let over = self.ends[1].len().saturating_sub(END_KEPT);
        self.ends[1].drain(..over);
        self.skipped += bytes.len();
        self.passed += bytes.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SLICE: usize = 1024 * 1024;

    fn all(lines: &mut Lines) -> Vec<Line<String>> {
        std::iter::from_fn(|| lines.next(|l| String::from_utf8_lossy(l).into_owned())).collect()
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_they_are_cut(texts in prop::collection::vec("[a-z{} ]{0,9}", 0..9), size in 1_usize..7) {
            let stream: String = texts.iter().map(|t| format!("{t}\n")).collect();
            let mut lines = Lines::new(100);
            let mut got = Vec::new();
            for piece in stream.as_bytes().chunks(size) {
                lines.push(piece);
                got.extend(all(&mut lines));
            }
            let expected: Vec<_> = texts.into_iter().map(Line::Whole).collect();
            prop_assert_eq!(got, expected);
        }
    }

    /// Wherever a stream is left and taken up again, each line comes once.
    #[test]
    fn a_stream_is_taken_up_where_it_was_left() {
        let long = "x".repeat(40);
        let stream = format!("one\n{long}\ntwo\r\n\n{long}{long}\nend\n").into_bytes();
        let mut whole = Lines::new(20);
        whole.push(&stream);
        let expected = all(&mut whole);
        assert_eq!((whole.position(), expected.len()), (stream.len() as u64, 6));
        for size in 1..30 {
            let (mut lines, mut got) = (Lines::new(20), Vec::new());
            let mut at = 0;
            while at < stream.len() {
                let end = (at + size).min(stream.len());
                lines.push(&stream[at..end]);
                got.extend(all(&mut lines));
                assert!(lines.is_dry());
                at = usize::try_from(lines.position()).unwrap();
                if at < end && end < stream.len() {
                    // What was not given out is read again, and a little more.
                    lines = Lines::resume(20, at as u64, lines.skipping());
                    lines.push(&stream[at..end]);
                    got.extend(all(&mut lines));
                    at = end;
                } else {
                    at = end;
                }
            }
            assert_eq!(got, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn a_line_beyond_the_limit_is_skipped_and_the_next_is_read() {
        let mut lines = Lines::new(4 * SLICE);
        let slice = vec![b'x'; SLICE];
        for _ in 0..40 {
            lines.push(&slice);
            assert_eq!(all(&mut lines), []);
            assert!(lines.buffer.len() <= 5 * SLICE, "the buffer is bounded");
        }
        lines.push(b"xx\n{}\r\n");
        let ends = [&slice[..END_KEPT], &slice[..END_KEPT - 2], b"xx"].concat();
        assert_eq!(all(&mut lines), [Line::TooLong(40 * SLICE + 2, ends), Line::Whole("{}".to_string())]);
        let long = [&b"begin"[..], &slice, &slice, &slice, &slice, b"end\n"].concat();
        lines.push(&long);
        let Some(Line::TooLong(bytes, ends)) = lines.next(|_| ()) else { panic!("it is too long") };
        assert_eq!(bytes, long.len() - 1);
        assert!(ends.starts_with(b"begin") && ends.ends_with(b"xend") && ends.len() == 2 * END_KEPT);
        lines.push(b"");
        assert!(lines.buffer.capacity() <= BUFFER_KEPT);
    }
}
