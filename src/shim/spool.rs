//! A file without a name that holds bytes by their offset: what does not fit into memory.
//!
//! It is used in a circle, so that it never takes more of the disk than its limit, and is cut to nothing when all that it
//! holds was released. Nobody else can open it, so nothing in it is ever checked.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::proof::random;

/// A spool. The file is made with the first byte.
#[derive(Debug)]
pub struct Spool {
    dir: OwnedFd,
    file: Option<File>,
    limit: u64,
    /// The offset that stands at the file's beginning.
    base: u64,
    start: u64,
    end: u64,
}

impl Spool {
    /// A spool in a directory, for at most so many bytes.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub fn new(dir: &std::path::Path, limit: u64) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(CWD, dir, flags, Mode::empty())?;
        Ok(Self { dir, file: None, limit: limit.max(1), base: 0, start: 0, end: 0 })
    }

    /// How many bytes it holds.
    #[must_use]
    pub const fn held(&self) -> u64 {
        self.end - self.start
    }

    /// The offset behind its last byte.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// How many more it may hold.
    #[must_use]
    pub const fn room(&self) -> u64 {
        self.limit - self.held()
    }

    /// Begins anew at an offset; only while it is empty.
    pub fn begin_at(&mut self, offset: u64) {
        if self.held() == 0 {
            (self.base, self.start, self.end) = (offset, offset, offset);
        }
    }

    /// Appends, and says how many bytes it took: fewer when the limit is reached.
    ///
    /// # Errors
    /// Nothing was taken: the file cannot be made or written (the disk is full or broken).
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(usize::try_from(self.room()).unwrap_or(usize::MAX))];
        let mut taken = 0;
        while taken < bytes.len() {
            let (at, until_wrap) = self.place(self.end);
            let piece = &bytes[taken..][..until_wrap.min(bytes.len() - taken)];
            match self.file().and_then(|file| file.write_at(piece, at)) {
                Ok(0) => return if taken == 0 { Err(Errno::NOSPC.into()) } else { Ok(taken) },
                Ok(n) => {
                    taken += n;
                    self.end += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if taken > 0 => return Ok(taken),
                Err(e) => return Err(e),
            }
        }
        Ok(taken)
    }

    /// Reads from an offset that it holds, at most as many bytes as fit and lie together.
    ///
    /// # Errors
    /// The file cannot be read, or ends before it should.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let (at, until_wrap) = self.place(offset);
        let held = usize::try_from(self.end.saturating_sub(offset)).unwrap_or(usize::MAX);
        let most = into.len().min(until_wrap).min(held);
        let file = self.file.as_ref().ok_or(io::ErrorKind::UnexpectedEof)?;
        file.read_exact_at(&mut into[..most], at)?;
        Ok(most)
    }

    /// Forgets what lies before an offset.
    pub fn release(&mut self, offset: u64) {
        self.start = offset.clamp(self.start, self.end);
        self.cut();
    }

    /// Forgets what lies from an offset on.
    pub fn truncate(&mut self, offset: u64) {
        self.end = offset.clamp(self.start, self.end);
        self.cut();
    }

    /// Gives an empty file's room back to the disk.
    fn cut(&mut self) {
        if self.start == self.end {
            self.base = self.start;
            // Should it fail, the room is used again for what comes next.
            let _ = self.file.as_ref().map(|file| file.set_len(0));
        }
    }

    /// Where an offset stands in the file, and how many bytes lie from there on before the file begins again.
    fn place(&self, offset: u64) -> (u64, usize) {
        let at = (offset - self.base) % self.limit;
        (at, usize::try_from(self.limit - at).unwrap_or(usize::MAX))
    }

    fn file(&mut self) -> io::Result<&File> {
        if self.file.is_none() {
            self.file = Some(self.make()?);
        }
        self.file.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn make(&self) -> io::Result<File> {
        let mode = Mode::RUSR | Mode::WUSR;
        let plain = OFlags::RDWR | OFlags::CLOEXEC | OFlags::EXCL;
        match rustix::fs::openat(&self.dir, c".", plain | OFlags::TMPFILE, mode) {
            Ok(file) => return Ok(file.into()),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
            Err(e) => return Err(e.into()),
        }
        // A file system without nameless files: it has a name for a moment, which nobody can have made before.
        let name: String = random::<12>()?.iter().map(|b| format!("{b:02x}")).collect();
        let name = format!("spool-{name}");
        let file = rustix::fs::openat(&self.dir, &*name, plain | OFlags::CREATE | OFlags::NOFOLLOW, mode)?;
        rustix::fs::unlinkat(self.dir.as_fd(), &*name, AtFlags::empty())?;
        Ok(file.into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn it_goes_round_and_gives_its_room_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(dir.path(), 10).unwrap();
        spool.begin_at(100);
        assert_eq!(spool.append(b"abcdefgh").unwrap(), 8);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it has no name");
        spool.release(106);
        assert_eq!(spool.append(b"ijklmnopqrst").unwrap(), 8, "no more than fits");
        let mut into = [0; 16];
        assert_eq!(spool.read(106, &mut into).unwrap(), 4, "up to where the file begins again");
        assert_eq!(&into[..4], b"ghij");
        assert_eq!(spool.read(110, &mut into).unwrap(), 6);
        assert_eq!(&into[..6], b"klmnop");
        spool.truncate(112);
        assert_eq!((spool.end(), spool.room(), spool.append(b"xy").unwrap()), (112, 4, 2));
        assert_eq!(spool.read(110, &mut into).unwrap(), 4);
        assert_eq!(&into[..4], b"klxy");
        assert!(spool.file.as_ref().unwrap().metadata().unwrap().len() <= 10);
        spool.release(114);
        assert_eq!(spool.file.as_ref().unwrap().metadata().unwrap().len(), 0);
        assert!(spool.read(114, &mut into).is_ok_and(|n| n == 0));
    }
}
