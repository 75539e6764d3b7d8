//! A moment in the life of the machine's processes, and the processes that began since, found by their numbers. If few
//! began, each number is looked up, however many processes the machine has; else `/proc` is listed once.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::procfs::{self, Picture};

/// With more processes since a moment, one shared picture of all is cheaper.
const FEW: usize = 128;

/// The most numbers that are looked up one by one; beyond it `/proc` is listed.
const ASKED: u32 = 512;

/// Numbers rise and begin anew at the machine's bound, whose default is at least twice this. After so many new
/// processes the numbers may have begun anew twice.
const TRUSTED: u64 = 16_384;

/// A moment: the last number that had been given, and how many processes and threads had ever begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    last: u32,
    forks: u64,
}

impl Moment {
    /// Now; `None` where the kernel does not say.
    #[must_use]
    pub fn now() -> Option<Self> {
        let last = procfs::text("/proc/loadavg")?.split_ascii_whitespace().nth(4)?.parse().ok().filter(|n| *n > 0)?;
        let forks =
            procfs::text("/proc/stat")?.lines().find_map(|l| l.strip_prefix("processes "))?.trim().parse().ok()?;
        Some(Self { last, forks })
    }

    /// The numbers that were given since, if they are few; also those of threads and of processes that are gone.
    fn given_until(&self, now: &Self) -> Option<Vec<u32>> {
        let known = now.forks.saturating_sub(self.forks) < TRUSTED && now.last >= self.last;
        (known && now.last - self.last <= ASKED).then(|| (self.last + 1..=now.last).collect())
    }

    /// Whether a process of that number, found by `now`, may have begun since.
    fn may_have_begun(&self, now: &Self, pid: u32) -> bool {
        if now.forks.saturating_sub(self.forks) >= TRUSTED {
            true
        } else if now.last >= self.last {
            pid > self.last && pid <= now.last
        } else {
            pid > self.last || pid <= now.last
        }
    }
}

/// The numbers of all processes, at a moment after they were listed.
#[derive(Debug)]
struct Listing {
    begun: Instant,
    pids: Vec<u32>,
    now: Option<Moment>,
}

fn listing() -> Arc<Listing> {
    static LAST: Mutex<Option<Arc<Listing>>> = Mutex::new(None);
    let asked = Instant::now();
    // As with pictures: a caller that waits for the lock can use this listing, or the next.
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    match last.as_ref() {
        Some(listing) if listing.begun >= asked => Arc::clone(listing),
        _ => {
            let begun = Instant::now();
            let pids = procfs::pids();
            Arc::clone(last.insert(Arc::new(Listing { begun, pids, now: Moment::now() })))
        }
    }
}

/// A picture, begun after this call, of every process that began since the moment. It may have other processes too, and
/// threads, for which no pidfd can be opened.
#[must_use]
pub fn since(moment: Option<&Moment>) -> Arc<Picture> {
    let Some(moment) = moment else { return procfs::picture() };
    if let Some(given) = Moment::now().and_then(|now| moment.given_until(&now)) {
        return Arc::new(Picture::read(given));
    }
    let listing = listing();
    let Some(now) = &listing.now else { return procfs::picture() };
    let new: Vec<u32> = listing.pids.iter().copied().filter(|pid| moment.may_have_begun(now, *pid)).collect();
    if new.len() > FEW {
        return procfs::picture();
    }
    Arc::new(Picture::read(new))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_that_begin_anew_are_followed() {
        let at = |last, forks| Moment { last, forks };
        let begun = |now: &Moment| {
            [1, 99, 100, 101, 200, 32_000]
                .into_iter()
                .filter(|pid| at(100, 1000).may_have_begun(now, *pid))
                .collect::<Vec<u32>>()
        };
        assert_eq!(begun(&at(100, 1000)), Vec::<u32>::new());
        assert_eq!(begun(&at(200, 1100)), [101, 200]);
        assert_eq!(begun(&at(99, 9000)), [1, 99, 101, 200, 32_000], "they began anew");
        assert_eq!(at(100, 1000).given_until(&at(103, 1003)), Some(vec![101, 102, 103]));
        assert_eq!(at(100, 1000).given_until(&at(100, 1000)), Some(Vec::new()));
        for now in [at(99, 9000), at(101 + ASKED, 1600), at(103, 1000 + TRUSTED)] {
            assert_eq!(at(100, 1000).given_until(&now), None, "{now:?}");
        }
        assert_eq!(begun(&at(200, 1000 + TRUSTED)).len(), 6, "they may have done so twice: nobody knows");
    }

    #[test]
    fn what_began_since_is_in_the_picture() {
        let before = Moment::now();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let picture = since(before.as_ref());
        assert!(picture.all.iter().any(|(s, _)| s.pid == child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
