//! What strikes the store, and when; and what became of the commits that the simulation has to know of.

use std::panic::resume_unwind;

use ostler::store::Step;

use super::*;

/// How a death travels through the daemon.
pub struct Death;

/// What became of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It was kept, and its caller was told.
    Kept,
    /// It was kept, and its caller was told that nobody knows.
    Doubted,
    /// It was not kept.
    Lost,
}

/// What strikes, and when. Shared with the store's environment.
#[derive(Default)]
pub(super) struct Faults {
    /// Steps until the process dies; 0: it does not.
    pub death_in: AtomicU64,
    /// The next COMMIT fails: 1 before it, 2 after it, 3 for want of room.
    pub commit: AtomicU8,
    /// The process is dead: what unwinds strikes nothing any more.
    pub dead: AtomicBool,
    /// Something was written since this was last looked at.
    pub written: AtomicBool,
    pub group: Mutex<Group>,
    /// The process died when running sessions were marked, and before it knew that.
    pub died_marking: AtomicBool,
    /// Tells where the process dies, and which commits fail.
    pub trace: bool,
    /// What became of commits since they were last looked at.
    pub fates: Mutex<Vec<(&'static str, Fate)>>,
}

/// The members of the transaction in progress.
#[derive(Default)]
pub(super) struct Group {
    names: Vec<&'static str>,
    /// All of them ran.
    complete: bool,
    /// What becomes of it is known.
    told: bool,
}

impl Faults {
    /// A new process begins.
    pub fn revive(&self) {
        self.dead.store(false, Ordering::Relaxed);
        self.written.store(true, Ordering::Relaxed);
        self.fates.lock().unwrap().clear();
        *self.group.lock().unwrap() = Group::default();
    }

    /// What became of commits since this was last asked.
    pub fn fates(&self) -> Vec<(&'static str, Fate)> {
        std::mem::take(&mut *self.fates.lock().unwrap())
    }

    pub fn strike(&self, name: &'static str, step: Step) -> bool {
        if self.dead.load(Ordering::Relaxed) {
            return true;
        }
        if self.death_in.load(Ordering::Relaxed) > 0 && self.death_in.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.dead.store(true, Ordering::Relaxed);
            let marks = |name: &str| matches!(name, "mark_running" | "refresh_marks");
            let now = step == Step::Committed && self.group.lock().unwrap().names.iter().any(|n| marks(n));
            // Or a moment before, and nobody has looked since.
            if now || self.fates.lock().unwrap().iter().any(|(n, fate)| marks(n) && *fate == Fate::Kept) {
                self.died_marking.store(true, Ordering::Relaxed);
            }
            if self.trace {
                eprintln!("  death in {name} {step:?}");
            }
            resume_unwind(Box::new(Death));
        }
        let mut group = self.group.lock().unwrap();
        let due = match step {
            Step::Before => {
                if std::mem::take(&mut group.complete) {
                    *group = Group::default();
                }
                group.names.push(name);
                return false;
            }
            Step::Inside => return false,
            Step::Commit => 1,
            Step::Committed => 2,
            Step::Room => 3,
        };
        group.complete = true;
        self.written.store(true, Ordering::Relaxed);
        let strikes = self.commit.compare_exchange(due, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if strikes && self.trace {
            eprintln!("  fault in {:?} {step:?}", group.names);
        }
        if (strikes || step == Step::Committed) && !std::mem::replace(&mut group.told, true) {
            let fate = match (strikes, step) {
                (false, _) => Fate::Kept,
                (true, Step::Committed) => Fate::Doubted,
                (true, _) => Fate::Lost,
            };
            self.fates.lock().unwrap().extend(group.names.iter().map(|name| (*name, fate)));
        }
        strikes
    }
}
