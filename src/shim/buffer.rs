//! Bytes that are numbered from the first on and kept until they are released: in memory in blocks, then in a spool.
//!
//! Three places follow one another: blocks of memory, the spool, and a carry of at most a block: what was read already when
//! the spool turned out to be full or broken. While there is a carry nothing more is taken in, so a failing disk loses
//! nothing. New bytes go to memory only while the spool is empty, else the order would be lost.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;

use super::frame::{Kept, PAYLOAD};
use super::spool::Spool;

/// The bytes of a block: as many as a packet takes, so that a block is sent as one.
pub const BLOCK: usize = PAYLOAD;
/// An empty block of which no more was ever used is kept; so a short line costs no memory to be asked for.
const SMALL: usize = 8 * 1024;

#[derive(Debug)]
struct Block {
    bytes: Box<[u8]>,
    from: usize,
    to: usize,
}

/// What came of reading a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Took {
    /// So many bytes.
    Bytes(usize),
    /// Nothing was there.
    Nothing,
    /// It is at its end.
    End,
}

/// Numbered bytes.
#[derive(Debug)]
pub struct Buffer {
    blocks: VecDeque<Block>,
    /// How many blocks may be held.
    most: usize,
    start: u64,
    /// Where the blocks end.
    blocks_end: u64,
    spool: Option<Spool>,
    carry: Vec<u8>,
    /// Through it bytes go to the spool; kept while the spool holds something.
    bounce: Box<[u8]>,
    error: Option<Errno>,
    failures: u64,
}

impl Buffer {
    /// An empty one that holds so many bytes in memory, at least one block.
    #[must_use]
    pub fn new(memory: usize) -> Self {
        Self {
            blocks: VecDeque::new(),
            most: (memory / BLOCK).max(1),
            start: 0,
            blocks_end: 0,
            spool: None,
            carry: Vec::new(),
            bounce: Box::default(),
            error: None,
            failures: 0,
        }
    }

    /// Gives it a spool.
    pub fn set_spool(&mut self, spool: Spool) {
        self.spool = Some(spool);
    }

    /// The offset of the first byte that is held.
    #[must_use]
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// The offset behind the last.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.spool_end() + self.carry.len() as u64
    }

    fn spooled(&self) -> u64 {
        self.spool.as_ref().map_or(0, Spool::held)
    }

    fn spool_end(&self) -> u64 {
        self.spool.as_ref().filter(|s| s.held() > 0).map_or(self.blocks_end, Spool::end)
    }

    fn has_block(&self) -> bool {
        self.spooled() == 0 && (self.blocks.len() < self.most || self.blocks.back().is_some_and(|b| b.to < BLOCK))
    }

    /// Whether more may be taken in.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.carry.is_empty() && (self.has_block() || self.spool.as_ref().is_some_and(|s| s.room() > 0))
    }

    /// Whether something waits for the spool to work again, so that [`Self::settle`] is worth a try.
    #[must_use]
    pub const fn is_stuck(&self) -> bool {
        self.error.is_some()
    }

    /// How it stands, for the other side.
    #[must_use]
    pub fn kept(&self) -> Kept {
        let error = self.error.map_or(0, |e| e.raw_os_error().unsigned_abs());
        Kept { spooled: self.spooled(), full: !self.has_room(), error, failures: self.failures }
    }

    /// The free part of the last block, which is made where there is none.
    /// One with little room is left as it is where there may be more: what comes at once should go out as one packet.
    fn free(&mut self) -> &mut Block {
        let least = if self.blocks.len() < self.most { SMALL } else { 1 };
        if self.blocks.back().is_none_or(|b| BLOCK - b.to < least) {
            self.blocks.push_back(Block { bytes: vec![0; BLOCK].into(), from: 0, to: 0 });
        }
        let last = self.blocks.len() - 1;
        &mut self.blocks[last]
    }

    /// Takes in what a descriptor that does not block has, at most a block. Only while there is room.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read_from(&mut self, fd: impl AsFd) -> io::Result<Took> {
        let took = |n: Result<usize, Errno>| match n {
            Ok(0) => Ok(Took::End),
            Ok(n) => Ok(Took::Bytes(n)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Took::Nothing),
            Err(e) => Err(e.into()),
        };
        if self.has_block() {
            let block = self.free();
            let n = rustix::io::read(fd, &mut block.bytes[block.to..]);
            let taken = n.unwrap_or(0);
            block.to += taken;
            self.blocks_end += taken as u64;
            if taken == 0 {
                self.tidy();
            }
            return took(n);
        }
        let mut bounce = std::mem::take(&mut self.bounce);
        if bounce.is_empty() {
            bounce = vec![0; BLOCK].into();
        }
        let n = rustix::io::read(fd, &mut bounce[..]);
        if let Ok(n) = n {
            self.take_in(&bounce[..n]);
        }
        self.bounce = bounce;
        took(n)
    }

    /// Takes all of it in: what finds no place is carried.
    fn take_in(&mut self, bytes: &[u8]) {
        let placed = self.place(bytes);
        self.carry.extend_from_slice(&bytes[placed..]);
    }

    /// Takes all of it in, or nothing.
    ///
    /// # Errors
    /// There is no room for it, or the spool failed: `ENOBUFS` for the first.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        if !self.carry.is_empty() {
            return Err(Errno::NOBUFS);
        }
        let before = self.end();
        if self.place(bytes) == bytes.len() {
            return Ok(());
        }
        self.truncate(before);
        Err(self.error.take().unwrap_or(Errno::NOBUFS))
    }

    /// Puts bytes behind what is placed already, and says how many found a place. Notes why the others did not.
    fn place(&mut self, bytes: &[u8]) -> usize {
        let mut placed = 0;
        while placed < bytes.len() && self.has_block() {
            let block = self.free();
            let piece = &bytes[placed..][..(BLOCK - block.to).min(bytes.len() - placed)];
            block.bytes[block.to..block.to + piece.len()].copy_from_slice(piece);
            block.to += piece.len();
            placed += piece.len();
            self.blocks_end += piece.len() as u64;
        }
        let Some(spool) = self.spool.as_mut().filter(|_| placed < bytes.len()) else { return placed };
        spool.begin_at(self.blocks_end);
        while placed < bytes.len() && spool.room() > 0 {
            match spool.append(&bytes[placed..]) {
                Ok(n) => placed += n,
                Err(e) => {
                    self.note_failure(&e);
                    break;
                }
            }
        }
        placed
    }

    /// Tries again to find a place for what is carried. Call it when there may be one: bytes were released, or time has
    /// passed since the disk failed.
    pub fn settle(&mut self) {
        let carry = std::mem::take(&mut self.carry);
        let placed = self.place(&carry);
        if placed == carry.len() {
            self.error = None;
        } else {
            self.carry = carry;
            self.carry.drain(..placed);
        }
        if self.spooled() == 0 {
            self.bounce = Box::default();
        }
    }

    /// Notes that the spool could not be read. It is tried again like one that cannot be written.
    pub fn note_failure(&mut self, error: &io::Error) {
        self.error = Some(Errno::from_io_error(error).unwrap_or(Errno::IO));
        self.failures += 1;
    }

    /// What stands at an offset: at least a byte if there is one, at most a block.
    ///
    /// # Errors
    /// The spool cannot be read.
    pub fn piece(&self, offset: u64) -> io::Result<Cow<'_, [u8]>> {
        let length = |from: u64| usize::try_from(offset.saturating_sub(from)).unwrap_or(usize::MAX);
        if offset >= self.spool_end() {
            let carried = self.carry.get(length(self.spool_end())..).unwrap_or_default();
            return Ok(Cow::Borrowed(&carried[..carried.len().min(BLOCK)]));
        }
        if offset >= self.blocks_end {
            let Some(spool) = &self.spool else { return Ok(Cow::Borrowed(&[])) };
            let mut bytes = vec![0; BLOCK];
            let n = spool.read(offset, &mut bytes)?;
            bytes.truncate(n);
            return Ok(Cow::Owned(bytes));
        }
        let mut skip = length(self.start);
        for block in &self.blocks {
            let held = &block.bytes[block.from..block.to];
            match held.get(skip..).filter(|rest| !rest.is_empty()) {
                Some(rest) => return Ok(Cow::Borrowed(rest)),
                None => skip -= held.len(),
            }
        }
        Ok(Cow::Borrowed(&[]))
    }

    /// Forgets what lies before an offset.
    pub fn release(&mut self, offset: u64) {
        let offset = offset.clamp(self.start, self.end());
        let mut left = offset.min(self.blocks_end) - self.start.min(self.blocks_end);
        while left > 0 {
            let Some(block) = self.blocks.front_mut() else { break };
            let n = (block.to - block.from).min(usize::try_from(left).unwrap_or(usize::MAX));
            block.from += n;
            left -= n as u64;
            if block.from == block.to && (left > 0 || block.to == BLOCK) {
                self.blocks.pop_front();
            }
        }
        let carried = usize::try_from(offset.saturating_sub(self.spool_end())).unwrap_or(0);
        if let Some(spool) = self.spool.as_mut().filter(|s| s.held() > 0) {
            let end = spool.end();
            spool.release(offset);
            if spool.held() == 0 && offset >= end {
                self.blocks_end = end;
            }
        }
        if carried > 0 {
            self.carry.drain(..carried);
            self.blocks_end += carried as u64;
        }
        self.start = offset;
        self.tidy();
        if !self.carry.is_empty() || self.spooled() == 0 {
            self.settle();
        }
    }

    /// Forgets what lies from an offset on.
    pub fn truncate(&mut self, offset: u64) {
        let offset = offset.clamp(self.start, self.end());
        let keep = usize::try_from(offset.saturating_sub(self.spool_end())).unwrap_or(usize::MAX);
        self.carry.truncate(keep);
        if let Some(spool) = self.spool.as_mut().filter(|s| s.held() > 0) {
            spool.truncate(offset);
        }
        let mut cut = self.blocks_end.saturating_sub(offset.max(self.start));
        while cut > 0 {
            let Some(block) = self.blocks.back_mut() else { break };
            let n = (block.to - block.from).min(usize::try_from(cut).unwrap_or(usize::MAX));
            block.to -= n;
            cut -= n as u64;
            self.blocks_end -= n as u64;
            if block.from == block.to {
                self.blocks.pop_back();
            }
        }
        if self.spooled() == 0 {
            self.blocks_end = self.blocks_end.max(self.start);
        }
        self.tidy();
    }

    /// Gives memory back: an empty block goes, but for a last one of which little was used.
    fn tidy(&mut self) {
        while self.blocks.len() > 1 && self.blocks.front().is_some_and(|b| b.from == b.to) {
            self.blocks.pop_front();
        }
        if let [block] = self.blocks.make_contiguous()
            && block.from == block.to
        {
            if block.to > SMALL {
                self.blocks = VecDeque::new();
            } else {
                (block.from, block.to) = (0, 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    /// The bytes that a buffer holds, piece by piece.
    fn all(buffer: &Buffer) -> Vec<u8> {
        let mut bytes = Vec::new();
        while buffer.start() + (bytes.len() as u64) < buffer.end() {
            let piece = buffer.piece(buffer.start() + bytes.len() as u64).unwrap();
            assert!(!piece.is_empty() && piece.len() <= BLOCK);
            bytes.extend_from_slice(&piece);
        }
        assert!(buffer.piece(buffer.end()).unwrap().is_empty());
        bytes
    }

    /// A pipe that has these bytes and is closed.
    fn pipe(bytes: &[u8]) -> std::os::fd::OwnedFd {
        let (read, write) = rustix::pipe::pipe().unwrap();
        assert!(bytes.len() <= 65_536 && rustix::io::write(&write, bytes).unwrap() == bytes.len());
        read
    }

    #[derive(Clone, Debug)]
    enum Step {
        Read(usize),
        Append(usize),
        Release(usize),
        Truncate(usize),
        Settle,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (1_usize..65_536).prop_map(Step::Read),
            3 => (0_usize..200_000).prop_map(Step::Append),
            4 => (0_usize..150_000).prop_map(Step::Release),
            1 => (0_usize..100_000).prop_map(Step::Truncate),
            1 => Just(Step::Settle),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn it_holds_what_a_plain_list_would(
            steps in proptest::collection::vec(step(), 1..60),
            memory in 1_usize..4,
            spool in prop_oneof![Just(0_u64), 1_u64..300_000],
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut buffer = Buffer::new(memory * BLOCK);
            if spool > 0 {
                buffer.set_spool(Spool::new(dir.path(), spool).unwrap());
            }
            let (mut model, mut start, mut next) = (Vec::new(), 0_u64, 0_u32);
            let mut make = |n: usize| -> Vec<u8> {
                (0..n).map(|_| { next = next.wrapping_mul(1_664_525).wrapping_add(1_013_904_223); (next >> 24) as u8 }).collect()
            };
            for step in steps {
                match step {
                    Step::Read(n) if buffer.has_room() => {
                        let bytes = make(n);
                        let Took::Bytes(n) = buffer.read_from(pipe(&bytes)).unwrap() else { panic!("bytes are there") };
                        model.extend_from_slice(&bytes[..n]);
                    }
                    Step::Read(_) => {}
                    Step::Append(n) => {
                        let bytes = make(n);
                        if buffer.append(&bytes).is_ok() {
                            model.extend_from_slice(&bytes);
                        }
                    }
                    Step::Release(n) => {
                        let n = n.min(model.len());
                        start += n as u64;
                        model.drain(..n);
                        buffer.release(start);
                    }
                    Step::Truncate(n) => {
                        model.truncate(model.len().saturating_sub(n));
                        buffer.truncate(start + model.len() as u64);
                    }
                    Step::Settle => buffer.settle(),
                }
                prop_assert_eq!((buffer.start(), buffer.end()), (start, start + model.len() as u64));
                prop_assert!(buffer.blocks.len() <= memory && buffer.carry.len() <= BLOCK);
            }
            prop_assert!(all(&buffer) == model, "other bytes");
            buffer.release(buffer.end());
            prop_assert!(buffer.has_room() && buffer.blocks.len() <= 1 && buffer.bounce.is_empty());
        }
    }

    #[test]
    fn a_descriptor_without_bytes_and_one_at_its_end_are_told_apart() {
        let mut buffer = Buffer::new(0);
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        assert_eq!(buffer.read_from(&read).unwrap(), Took::Nothing);
        drop(write);
        assert_eq!(buffer.read_from(&read).unwrap(), Took::End);
        assert_eq!((buffer.end(), buffer.kept()), (0, Kept::default()));
    }

    #[test]
    fn a_spool_that_fails_is_a_full_spool_and_loses_nothing() {
        // Nobody may make a file in this directory.
        let mut buffer = Buffer::new(BLOCK);
        buffer.set_spool(Spool::new(std::path::Path::new("/proc/self"), 1 << 20).unwrap());
        let first = vec![b'a'; BLOCK];
        assert_eq!(buffer.append(&first), Ok(()));
        assert_eq!(buffer.read_from(pipe(b"more")).unwrap(), Took::Bytes(4));
        let kept = buffer.kept();
        assert!(kept.full && kept.error != 0 && kept.failures == 1 && kept.spooled == 0, "{kept:?}");
        assert!(buffer.append(b"no").is_err());
        assert_eq!(all(&buffer), [&first[..], b"more"].concat());
        buffer.settle();
        assert_eq!((buffer.kept().failures, buffer.is_stuck()), (2, true), "it is tried again");
        buffer.release(1);
        assert!(!buffer.has_room());
        buffer.release(BLOCK as u64);
        assert_eq!((buffer.kept().full, buffer.is_stuck(), all(&buffer)), (false, false, b"more".to_vec()));
    }
}
