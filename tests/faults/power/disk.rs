//! A disk that keeps what fsync promised, and nothing else.
//!
//! What was done to a file is on the disk once an fsync of the file that began after it has returned; what was done to the
//! names in a directory, once one of the directory has. Until then each step may be there or not, whatever became of those
//! before it, and a write may be there in some of its sectors only.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::trace::Op;
use crate::load::Rng;

/// What a disk writes at once.
const SECTOR: u64 = 512;

/// A file's content, or nothing for a directory.
pub type Image = BTreeMap<PathBuf, Option<Vec<u8>>>;

#[derive(Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Resize(u64),
}

#[derive(Debug, Default)]
struct Inode {
    dir: bool,
    durable: Vec<u8>,
    /// Each with the step that made it.
    pending: Vec<(usize, Change)>,
}

/// What becomes of what no fsync has promised.
#[derive(Clone, Copy, Debug)]
pub enum Loss {
    /// All of it is lost.
    All,
    /// None is: as after a SIGKILL.
    None,
    /// A seed decides of each step, and of each sector.
    Some(u64),
}

/// The disk at one instant of the recording.
pub struct Disk {
    inodes: Vec<Inode>,
    /// Names that are there for good, and what happened to names since.
    durable: BTreeMap<PathBuf, usize>,
    pending: Vec<(usize, PathBuf, Option<usize>)>,
    /// Names as the processes see them.
    now: BTreeMap<PathBuf, usize>,
}

impl Disk {
    /// With a directory that is there for good.
    pub fn new(root: &Path) -> Self {
        let names = BTreeMap::from([(root.to_owned(), 0)]);
        Self {
            inodes: vec![Inode { dir: true, ..Inode::default() }],
            durable: names.clone(),
            pending: Vec::new(),
            now: names,
        }
    }

    fn name(&mut self, step: usize, path: &Path, inode: Option<usize>) {
        match inode {
            Some(inode) => self.now.insert(path.to_owned(), inode),
            None => self.now.remove(path),
        };
        self.pending.push((step, path.to_owned(), inode));
    }

    fn make(&mut self, step: usize, path: &Path, dir: bool) {
        self.inodes.push(Inode { dir, ..Inode::default() });
        self.name(step, path, Some(self.inodes.len() - 1));
    }

    fn change(&mut self, step: usize, path: &Path, change: Change) {
        // A file that was made before the recording began, or outside of what is looked at.
        let Some(&inode) = self.now.get(path) else { return };
        self.inodes[inode].pending.push((step, change));
    }

    /// The step of that number is done. Directories that are not there are those that no call made.
    pub fn apply(&mut self, step: usize, op: &Op) {
        match op {
            Op::Mkdir(path) => {
                let parent = path.parent().is_some_and(|p| self.now.contains_key(p));
                if parent && !self.now.contains_key(path) {
                    self.make(step, path, true);
                }
            }
            Op::Create(path, empties) => {
                if !self.now.contains_key(path) {
                    self.make(step, path, false);
                } else if *empties {
                    self.change(step, path, Change::Resize(0));
                }
            }
            Op::Write(path, at, data) => self.change(step, path, Change::Write(*at, data.clone())),
            Op::Resize(path, len) => self.change(step, path, Change::Resize(*len)),
            Op::Unlink(path) => {
                if self.now.contains_key(path) {
                    self.name(step, path, None);
                }
            }
            Op::Rename(from, to) => {
                if let Some(&inode) = self.now.get(from) {
                    self.name(step, to, Some(inode));
                    self.name(step, from, None);
                }
            }
            Op::Synced(path, upto) => self.synced(path, *upto),
            Op::Told(_) => {}
        }
    }

    fn synced(&mut self, path: &Path, upto: usize) {
        let Some(&inode) = self.now.get(path) else { return };
        let inode = &mut self.inodes[inode];
        if inode.dir {
            let durable = &mut self.durable;
            self.pending.retain(|(step, name, to)| {
                let settled = *step < upto && name.parent() == Some(path);
                if settled {
                    match to {
                        Some(inode) => durable.insert(name.clone(), *inode),
                        None => durable.remove(name),
                    };
                }
                !settled
            });
            return;
        }
        let kept = inode.pending.partition_point(|(step, _)| *step < upto);
        for (_, change) in inode.pending.drain(..kept) {
            apply(&mut inode.durable, &change, |_| true);
        }
    }

    /// What a power loss now may leave.
    pub fn image(&self, loss: Loss) -> Image {
        let mut dice = Dice::new(loss);
        let mut names = self.durable.clone();
        for (_, name, to) in &self.pending {
            if dice.keeps() {
                match to {
                    Some(inode) => names.insert(name.clone(), *inode),
                    None => names.remove(name),
                };
            }
        }
        let mut image = Image::new();
        for (path, inode) in &names {
            // Without its directory a file cannot be found.
            if path.parent().is_some_and(|p| names.keys().next() != Some(path) && !names.contains_key(p)) {
                continue;
            }
            let inode = &self.inodes[*inode];
            image.insert(path.clone(), (!inode.dir).then(|| inode.content(&mut dice)));
        }
        let whole: BTreeSet<PathBuf> = image.keys().cloned().collect();
        let root = whole.first().cloned().unwrap_or_default();
        image.retain(|p, _| p.ancestors().take_while(|a| *a != root).all(|a| whole.contains(a)));
        image
    }
}

impl Inode {
    fn content(&self, dice: &mut Dice) -> Vec<u8> {
        let mut content = self.durable.clone();
        for (_, change) in &self.pending {
            if dice.keeps() {
                let torn = dice.tears();
                apply(&mut content, change, |_| !torn || dice.keeps());
            }
        }
        content
    }
}

/// Does a change to a content, sector by sector of a write.
fn apply(content: &mut Vec<u8>, change: &Change, mut keeps: impl FnMut(u64) -> bool) {
    let size = |n: u64| usize::try_from(n).unwrap();
    match change {
        Change::Resize(len) => content.resize(size(*len), 0),
        Change::Write(at, data) => {
            let (mut from, end) = (*at, at + data.len() as u64);
            while from < end {
                let to = end.min((from / SECTOR + 1) * SECTOR);
                if keeps(from / SECTOR) {
                    if content.len() < size(to) {
                        content.resize(size(to), 0);
                    }
                    content[size(from)..size(to)].copy_from_slice(&data[size(from - at)..size(to - at)]);
                }
                from = to;
            }
        }
    }
}

/// What decides of each step.
struct Dice {
    loss: Loss,
    rng: Rng,
    /// Out of eight, how many steps are kept.
    share: usize,
}

impl Dice {
    fn new(loss: Loss) -> Self {
        let mut rng = Rng(if let Loss::Some(seed) = loss { seed } else { 0 });
        let share = 1 + rng.below(7);
        Self { loss, rng, share }
    }

    fn keeps(&mut self) -> bool {
        match self.loss {
            Loss::All => false,
            Loss::None => true,
            Loss::Some(_) => self.rng.below(8) < self.share,
        }
    }

    fn tears(&mut self) -> bool {
        matches!(self.loss, Loss::Some(_)) && self.rng.below(2) == 0
    }
}
