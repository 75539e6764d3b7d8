//! What the daemon sends for the agent's input: pieces become frames, and whole frames wait until the agent reads them.
//!
//! A frame is given to the agent only when it is whole. What belongs to one whose connection ended before that is
//! forgotten, and sent again.

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;

use super::buffer::{BLOCK, Buffer};
use super::frame::Taken;
use super::spool::Spool;

/// The most bytes that may wait for the agent.
pub const INPUT_LIMIT: u64 = 64 * 1024 * 1024;

/// What became of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// It was taken, and more of its frame is expected.
    More,
    /// It was the last one: the frame was taken.
    Whole,
    /// The frame came before; it is dropped.
    Again,
    /// Another frame is expected first: its number. This one is dropped.
    Gap(u64),
    /// There is no room for it now. The frame is dropped.
    Full,
    /// The agent's input is closed. The frame is dropped.
    Closed,
}

/// A frame that is coming in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Open {
    number: u64,
    /// `None` while it is kept; else what its first piece was told, which holds for all.
    refused: Option<Piece>,
}

/// The frames for the agent's input.
#[derive(Debug)]
pub struct Input {
    bytes: Buffer,
    /// Where the whole frames end.
    whole: u64,
    highest: u64,
    open: Option<Open>,
    /// Once all is written the input is closed.
    closing: bool,
    closed: bool,
}

impl Default for Input {
    fn default() -> Self {
        Self { bytes: Buffer::new(BLOCK), whole: 0, highest: 0, open: None, closing: false, closed: false }
    }
}

impl Input {
    /// Gives it a spool.
    pub fn set_spool(&mut self, spool: Spool) {
        self.bytes.set_spool(spool);
    }

    /// How it stands.
    #[must_use]
    pub fn taken(&self) -> Taken {
        let (waiting, written) = (self.whole - self.bytes.start(), self.bytes.start());
        Taken { highest: self.highest, waiting, written, closed: self.closed }
    }

    /// Takes a piece of a frame.
    pub fn piece(&mut self, number: u64, last: bool, bytes: &[u8]) -> Piece {
        let open = match self.open {
            Some(open) if open.number == number => open,
            _ => {
                // The rest of another frame will not come any more.
                self.forget_open();
                let expected = self.highest.saturating_add(1);
                let refused = match number {
                    _ if self.closing || self.closed => {
                        Some(if number <= self.highest { Piece::Again } else { Piece::Closed })
                    }
                    n if n < expected => Some(Piece::Again),
                    n if n > expected => Some(Piece::Gap(expected)),
                    _ => None,
                };
                Open { number, refused }
            }
        };
        let refused = open.refused.or_else(|| {
            let waits = self.bytes.end() - self.bytes.start();
            let fits = waits.saturating_add(bytes.len() as u64) <= INPUT_LIMIT && self.bytes.append(bytes).is_ok();
            if !fits {
                self.bytes.truncate(self.whole);
            }
            (!fits).then_some(Piece::Full)
        });
        self.open = (!last).then_some(Open { number, refused });
        match refused {
            Some(refused) => refused,
            None if last => {
                self.whole = self.bytes.end();
                self.highest = number;
                Piece::Whole
            }
            None => Piece::More,
        }
    }

    /// Takes a frame that ends the input.
    pub fn close(&mut self, number: u64) -> Piece {
        let answer = self.piece(number, true, b"");
        self.closing |= answer == Piece::Whole;
        answer
    }

    /// Forgets a frame that is not whole: its connection has ended.
    pub fn forget_open(&mut self) {
        self.open = None;
        self.bytes.truncate(self.whole);
    }

    /// Forgets all that waits: nobody will read it.
    pub fn shut(&mut self) {
        self.forget_open();
        self.bytes.release(self.bytes.end());
        self.closed = true;
    }

    /// Whether something waits to be written.
    #[must_use]
    pub const fn waits(&self) -> bool {
        !self.closed && self.bytes.start() < self.whole
    }

    /// Writes what the agent takes now. `false`: its input is to be closed.
    ///
    /// # Errors
    /// The spool cannot be read; it is worth another try.
    pub fn write_to(&mut self, stdin: impl AsFd) -> io::Result<bool> {
        while self.waits() {
            let piece = self.bytes.piece(self.bytes.start())?;
            let most = usize::try_from(self.whole - self.bytes.start()).unwrap_or(usize::MAX);
            match rustix::io::write(&stdin, &piece[..piece.len().min(most)]) {
                Ok(n) => self.bytes.release(self.bytes.start() + n as u64),
                Err(Errno::AGAIN) => return Ok(true),
                Err(Errno::INTR) => {}
                // The agent closed its input. What that means shows on its output and in its exit.
                Err(_) => {
                    self.shut();
                    return Ok(false);
                }
            }
        }
        if self.closing {
            self.shut();
        }
        Ok(!self.closed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What an agent would read now.
    fn read(input: &mut Input) -> Vec<u8> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        input.write_to(&write).unwrap();
        drop(write);
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::fs::File::from(read), &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn frames_are_taken_whole_in_order_and_once() {
        let mut input = Input::default();
        assert_eq!(input.piece(1, true, b"one\n"), Piece::Whole);
        assert_eq!(input.piece(1, true, b"one\n"), Piece::Again);
        assert_eq!(input.piece(3, true, b"three\n"), Piece::Gap(2));
        assert_eq!(input.piece(2, false, b"tw"), Piece::More);
        assert_eq!(read(&mut input), b"one\n", "not before it is whole");
        assert_eq!(input.piece(2, true, b"o\n"), Piece::Whole);
        assert_eq!(read(&mut input), b"two\n");
        assert_eq!(input.piece(3, false, b"lost"), Piece::More);
        input.forget_open();
        assert_eq!(input.piece(3, false, b"th"), Piece::More);
        // Another frame while one is open: the open one is forgotten.
        assert_eq!(input.piece(4, true, b"four\n"), Piece::Gap(3));
        assert_eq!(input.piece(3, true, b"three\n"), Piece::Whole);
        assert_eq!(read(&mut input), b"three\n");
        assert_eq!(input.taken(), Taken { highest: 3, waiting: 0, written: 14, closed: false });
        assert_eq!(input.close(4), Piece::Whole);
        assert_eq!(input.close(4), Piece::Again);
        assert_eq!(input.piece(5, true, b"late"), Piece::Closed);
        assert_eq!(read(&mut input), b"");
        assert!(input.taken().closed);
        assert_eq!((input.piece(4, true, b"x"), input.piece(5, true, b"x")), (Piece::Again, Piece::Closed));
    }

    #[test]
    fn what_finds_no_room_is_not_taken_and_may_come_again() {
        // Without a spool there is room for one block.
        let mut input = Input::default();
        let much = vec![b'x'; BLOCK - 3];
        assert_eq!(input.piece(1, true, &much), Piece::Whole);
        assert_eq!(input.piece(2, false, b"ab"), Piece::More);
        assert_eq!(input.piece(2, false, b"cd"), Piece::Full);
        assert_eq!(input.piece(2, true, b"e"), Piece::Full, "all of the frame is refused");
        assert_eq!(input.piece(3, true, b"f"), Piece::Gap(2), "and what follows");
        assert_eq!(read(&mut input), much);
        assert_eq!(input.piece(2, true, b"abcde"), Piece::Whole);
        assert_eq!((input.piece(3, true, b"f"), read(&mut input)), (Piece::Whole, b"abcdef".to_vec()));
    }
}
