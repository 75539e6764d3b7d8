//! The hub: passes new events on to listeners.
//!
//! A listener keeps the number of the last event that it saw; all older events are in the database. Listeners that keep
//! up get the committed rows from memory, in a small queue, and never read them again. A queue that overflows is
//! emptied, and the listener reads from the database up to a given number. Previews (`delta`) are in memory only, in a
//! bounded queue; a later `text` repeats the content of previews that are dropped.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use crossbeam_channel::Sender;

use crate::store::{Commit, Published};

/// The most rows that wait for one listener, and the most bytes of their data.
const ROWS: usize = 64;
const BYTES: usize = 64 * 1024;
/// The most previews that wait for one listener.
const DELTAS: usize = 1024;

/// A preview, with its session and turn, because its text may quote the ids of others.
#[derive(Debug, PartialEq, Eq)]
pub struct Preview {
    /// The session.
    pub session_id: String,
    /// The turn.
    pub turn_id: String,
    /// The event's data as clients get it.
    pub json: String,
}

/// What a listener gets when it wakes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Up to this number it must read unseen events from the database.
    pub missed: i64,
    /// The rows committed since, in order.
    pub rows: VecDeque<Arc<Published>>,
    /// The previews since the last wait.
    pub deltas: Vec<Arc<Preview>>,
    /// The daemon exits: nothing more will come.
    pub closed: bool,
    /// The client seems to be gone: sending it something will show.
    pub doubt: bool,
    /// The client is gone.
    pub gone: bool,
}

#[derive(Debug, Default)]
struct Unread {
    missed: i64,
    rows: VecDeque<Arc<Published>>,
    bytes: usize,
    /// It sleeps, and no one has woken it yet.
    asleep: bool,
    deltas: VecDeque<Arc<Preview>>,
    closed: bool,
    doubt: bool,
    gone: bool,
}

impl Unread {
    fn is_silent(&self, seen: i64) -> bool {
        let told = self.closed || self.doubt || self.gone;
        self.missed <= seen && self.rows.is_empty() && self.deltas.is_empty() && !told
    }

    /// Up to here it reads for itself.
    fn miss(&mut self, newest: i64) {
        self.missed = self.missed.max(newest);
        self.rows.retain(|row| row.seq > newest);
        self.bytes = self.rows.iter().map(|row| row.data.len()).sum();
    }
}

/// One listener.
#[derive(Debug)]
pub struct Listener {
    key: Option<String>,
    wants_deltas: bool,
    unread: Mutex<Unread>,
    arrived: Condvar,
}

impl Listener {
    fn lock(&self) -> MutexGuard<'_, Unread> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for an event newer than `seen` or a preview, at most until the deadline.
    pub fn wait(&self, seen: i64, until: Instant) -> News {
        let mut unread = self.lock();
        while unread.is_silent(seen) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            unread.asleep = true;
            unread = self.arrived.wait_timeout(unread, left).unwrap_or_else(PoisonError::into_inner).0;
            unread.asleep = false;
        }
        unread.bytes = 0;
        News {
            missed: unread.missed,
            rows: std::mem::take(&mut unread.rows),
            deltas: unread.deltas.drain(..).collect(),
            closed: unread.closed,
            doubt: std::mem::take(&mut unread.doubt),
            gone: unread.gone,
        }
    }

    /// Queues a row. Returns whether the listener must be woken.
    fn put(&self, row: &Arc<Published>) -> bool {
        let mut unread = self.lock();
        if unread.rows.len() < ROWS && unread.bytes + row.data.len() <= BYTES {
            unread.bytes += row.data.len();
            unread.rows.push_back(row.clone());
        } else {
            unread.miss(row.seq);
        }
        std::mem::take(&mut unread.asleep)
    }

    fn update(&self, write: impl FnOnce(&mut Unread)) {
        let mut unread = self.lock();
        write(&mut unread);
        let asleep = std::mem::take(&mut unread.asleep);
        drop(unread);
        if asleep {
            self.arrived.notify_one();
        }
    }
}

/// All listeners.
#[derive(Debug, Default)]
pub struct Hub {
    by_key: RwLock<HashMap<String, Vec<Arc<Listener>>>>,
    of_all: RwLock<Vec<Arc<Listener>>>,
    listeners: AtomicUsize,
    /// The newest published event.
    newest: AtomicI64,
    /// A commit is in doubt since the last one that was published.
    in_doubt: AtomicBool,
    /// By key, so that those of agents which outlive the daemon can be told apart.
    delivering: Mutex<BTreeMap<String, usize>>,
    /// Notified when the last answer in progress has been handed over.
    nudge: OnceLock<Sender<()>>,
    lost_deltas: AtomicU64,
    closed: AtomicBool,
    left: (Mutex<()>, Condvar),
}

impl Hub {
    /// Listens to one key, or to everything.
    #[must_use]
    pub fn listen(self: &Arc<Self>, key: Option<&str>, deltas: bool) -> Listening {
        let listener = Arc::new(Listener {
            key: key.map(str::to_owned),
            wants_deltas: deltas,
            unread: Mutex::default(),
            arrived: Condvar::new(),
        });
        match key {
            Some(key) => {
                let mut map = self.by_key.write().unwrap_or_else(PoisonError::into_inner);
                map.entry(key.to_owned()).or_default().push(listener.clone());
            }
            None => self.of_all.write().unwrap_or_else(PoisonError::into_inner).push(listener.clone()),
        }
        self.listeners.fetch_add(1, Ordering::SeqCst);
        if self.closed.load(Ordering::SeqCst) {
            // It came while `close` was notifying the others.
            listener.update(|s| s.closed = true);
        }
        Listening { hub: self.clone(), listener }
    }

    /// Wakes the listeners after a commit. Called by the committing thread, in commit order; does not block.
    pub fn publish(&self, commit: &Commit) {
        let Some(last) = commit.events.last() else { return };
        // Set before the listeners are read. A new listener registers first and reads this number afterwards, so it
        // starts at or after every row that it did not get.
        self.newest.fetch_max(last.seq, Ordering::SeqCst);
        if self.listeners.load(Ordering::SeqCst) == 0 {
            return;
        }
        if self.in_doubt.swap(false, Ordering::SeqCst) {
            return self.reread(last.seq);
        }
        // Each listener is woken once, after all of its rows are queued.
        let mut wake = Vec::new();
        let map = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
        let of_all = self.of_all.read().unwrap_or_else(PoisonError::into_inner);
        for event in &commit.events {
            let of_key = if map.is_empty() { None } else { map.get(&event.key) };
            wake.extend(of_key.into_iter().flatten().chain(of_all.iter()).filter(|l| l.put(event)).cloned());
        }
        drop((map, of_all));
        for listener in wake {
            listener.arrived.notify_one();
        }
    }

    /// Notes that a commit is in doubt: its events may be in the journal, and no listener has them. All listeners read the
    /// next events there. The writer calls it before its next commit, a caller when its time for an answer is over.
    pub fn doubt(&self) {
        self.in_doubt.store(true, Ordering::SeqCst);
    }

    /// Makes all listeners read for themselves what they have not seen up to this event.
    pub fn reread(&self, newest: i64) {
        self.newest.fetch_max(newest, Ordering::SeqCst);
        let map = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
        let of_all = self.of_all.read().unwrap_or_else(PoisonError::into_inner);
        for listener in map.values().flatten().chain(of_all.iter()) {
            listener.update(|unread| unread.miss(newest));
        }
    }

    /// The number of the newest event that was published, or found in the journal after a doubt; 0: none yet.
    pub fn newest(&self) -> i64 {
        self.newest.load(Ordering::SeqCst)
    }

    /// Passes on a preview. It is formatted only if a listener wants it.
    pub fn delta(&self, key: &str, preview: impl FnOnce() -> Preview) {
        if self.listeners.load(Ordering::SeqCst) == 0 {
            return;
        }
        let map = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
        let mut wanting = map.get(key).into_iter().flatten().filter(|l| l.wants_deltas).peekable();
        if wanting.peek().is_none() {
            return;
        }
        let preview = Arc::new(preview());
        for listener in wanting {
            listener.update(|s| {
                if s.deltas.len() < DELTAS {
                    s.deltas.push_back(preview.clone());
                } else {
                    self.lost_deltas.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    }

    /// How many previews slow listeners did not get.
    pub fn lost_deltas(&self) -> u64 {
        self.lost_deltas.load(Ordering::Relaxed)
    }

    /// The number of listeners.
    pub fn listeners(&self) -> usize {
        self.listeners.load(Ordering::SeqCst)
    }

    /// Sets the channel that is notified when the last answer of a key has been handed over.
    pub fn set_nudge(&self, nudge: Sender<()>) {
        let _ = self.nudge.set(nudge);
    }

    /// The number of answers that are being handed over to the sender of their message: a drain waits for them.
    pub fn delivering(&self) -> usize {
        self.delivering_but(&[])
    }

    /// The same, without those of some keys: their turns go on after the drain.
    pub fn delivering_but(&self, keys: &[String]) -> usize {
        let all = self.delivering.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|(key, _)| !keys.contains(key)).map(|(_, count)| count).sum()
    }

    /// An answer of this key is being handed over, until the guard is dropped.
    #[must_use]
    pub fn deliver(self: &Arc<Self>, key: &str) -> Delivering {
        *self.delivering.lock().unwrap_or_else(PoisonError::into_inner).entry(key.to_owned()).or_default() += 1;
        Delivering(self.clone(), key.to_owned())
    }

    /// The daemon exits: every listener wakes, reads once more what is there, and returns.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let map = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
        let of_all = self.of_all.read().unwrap_or_else(PoisonError::into_inner);
        for listener in map.values().flatten().chain(of_all.iter()) {
            listener.update(|s| s.closed = true);
        }
    }
}

impl Hub {
    /// Waits until every listener has returned, at most until the deadline. Returns whether all have.
    pub fn wait_left(&self, until: Instant) -> bool {
        let mut guard = self.left.0.lock().unwrap_or_else(PoisonError::into_inner);
        while self.listeners() > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            guard = self.left.1.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// An answer on its way to its sender.
#[derive(Debug)]
pub struct Delivering(Arc<Hub>, String);

impl Drop for Delivering {
    fn drop(&mut self) {
        let mut all = self.0.delivering.lock().unwrap_or_else(PoisonError::into_inner);
        let left = all.get_mut(&self.1).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
            all.remove(&self.1);
        }
        drop(all);
        if left == 0
            && let Some(nudge) = self.0.nudge.get()
        {
            // A notice that already waits is enough.
            let _ = nudge.try_send(());
        }
    }
}

impl Listening {
    /// A function that wakes the listener because its client is gone (`true`) or seems to be (`false`).
    #[must_use]
    pub fn alarm(&self) -> Arc<dyn Fn(bool) + Send + Sync> {
        let listener = self.listener.clone();
        Arc::new(move |gone| listener.update(|s| if gone { s.gone = true } else { s.doubt = true }))
    }
}

/// A registered listener; dropping it ends the listening.
#[derive(Debug)]
pub struct Listening {
    hub: Arc<Hub>,
    listener: Arc<Listener>,
}

impl std::ops::Deref for Listening {
    type Target = Listener;
    fn deref(&self) -> &Listener {
        &self.listener
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mine = |l: &Arc<Listener>| Arc::ptr_eq(l, &self.listener);
        match &self.listener.key {
            Some(key) => {
                let mut map = self.hub.by_key.write().unwrap_or_else(PoisonError::into_inner);
                if let Some(all) = map.get_mut(key) {
                    all.retain(|l| !mine(l));
                    if all.is_empty() {
                        map.remove(key);
                    }
                }
            }
            None => self.hub.of_all.write().unwrap_or_else(PoisonError::into_inner).retain(|l| !mine(l)),
        }
        let _guard = self.hub.left.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.hub.listeners.fetch_sub(1, Ordering::SeqCst);
        self.hub.left.1.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn commit(key: &str, seq: i64) -> Commit {
        let event = Published {
            seq,
            key: key.into(),
            session_id: "s".into(),
            turn_id: None,
            kind: crate::model::event::EventKind::Notice,
            data: "{}".into(),
            at: 0,
        };
        Commit { events: vec![Arc::new(event)], ..Commit::default() }
    }

    fn seqs(news: &News) -> Vec<i64> {
        news.rows.iter().map(|r| r.seq).collect()
    }

    #[test]
    fn a_listener_hears_its_key_only() {
        let hub = Arc::new(Hub::default());
        let a = hub.listen(Some("x:a"), false);
        let all = hub.listen(None, false);
        hub.publish(&commit("x:b", 7));
        assert_eq!(seqs(&a.wait(0, Instant::now())), [0; 0]);
        assert_eq!(seqs(&all.wait(0, Instant::now())), [7]);
        hub.publish(&commit("x:a", 8));
        assert_eq!(seqs(&a.wait(0, Instant::now() + Duration::from_secs(9))), [8]);
        assert_eq!(hub.newest(), 8);
        drop((a, all));
        assert_eq!(hub.listeners(), 0);
    }

    #[test]
    fn a_listener_that_lags_is_told_where_to_read() {
        let hub = Arc::new(Hub::default());
        let a = hub.listen(Some("x:a"), false);
        let last = i64::try_from(ROWS).expect("few") + 1;
        (1..=last + 2).for_each(|seq| hub.publish(&commit("x:a", seq)));
        let news = a.wait(0, Instant::now());
        assert_eq!((news.missed, seqs(&news)), (last, vec![last + 1, last + 2]));
        assert_eq!(seqs(&a.wait(last + 2, Instant::now())), [0; 0], "what was missed is asked for once");
    }

    /// What a commit in doubt kept was handed to nobody: it is read, with the next events or once the store says what is there.
    #[test]
    fn after_a_doubt_everybody_reads() {
        let hub = Arc::new(Hub::default());
        let (a, b) = (hub.listen(Some("x:a"), false), hub.listen(Some("x:b"), false));
        hub.publish(&commit("x:a", 1));
        hub.doubt();
        hub.publish(&commit("x:a", 3));
        let news = a.wait(0, Instant::now() + Duration::from_secs(9));
        assert_eq!((news.missed, seqs(&news)), (3, vec![]), "nor what was in hand before");
        assert_eq!(b.wait(0, Instant::now()).missed, 3, "it may have been of any key");
        hub.publish(&commit("x:a", 4));
        hub.publish(&commit("x:a", 6));
        hub.reread(5);
        let news = a.wait(3, Instant::now() + Duration::from_secs(9));
        assert_eq!((news.missed, seqs(&news)), (5, vec![6]));
        assert_eq!((b.wait(3, Instant::now()).missed, hub.newest()), (5, 6));
    }

    #[test]
    fn previews_are_bounded_and_counted() {
        let hub = Arc::new(Hub::default());
        let a = hub.listen(Some("x:a"), true);
        let deaf = hub.listen(Some("x:b"), false);
        hub.delta("x:b", || panic!("nobody wants it"));
        for _ in 0..DELTAS + 3 {
            hub.delta("x:a", || Preview { session_id: "s".into(), turn_id: "t".into(), json: "{}".into() });
        }
        assert!(deaf.wait(0, Instant::now()).deltas.is_empty());
        assert_eq!((a.wait(0, Instant::now()).deltas.len(), hub.lost_deltas()), (DELTAS, 3));
    }

    #[test]
    fn the_last_answer_handed_over_nudges_whoever_waits_for_it() {
        let hub = Arc::new(Hub::default());
        let (nudge, nudged) = crossbeam_channel::bounded(1);
        hub.set_nudge(nudge);
        let (first, last) = (hub.deliver("x:a"), hub.deliver("x:a"));
        let kept = hub.deliver("x:kept");
        drop(first);
        assert!(nudged.is_empty() && hub.delivering() == 2);
        assert_eq!(hub.delivering_but(&["x:kept".to_owned()]), 1);
        drop(last);
        assert!(nudged.try_recv().is_ok() && hub.delivering_but(&["x:kept".to_owned()]) == 0);
        drop(kept);
        assert_eq!(hub.delivering(), 0);
    }

    #[test]
    fn whoever_is_gone_is_not_waited_for() {
        let hub = Arc::new(Hub::default());
        let a = hub.listen(None, false);
        let alarm = a.alarm();
        alarm(false);
        let news = a.wait(0, Instant::now() + Duration::from_secs(9));
        assert!(news.doubt && !news.gone);
        assert!(!a.wait(0, Instant::now()).doubt, "it is told once");
        let other = std::thread::spawn(move || alarm(true));
        assert!(a.wait(0, Instant::now() + Duration::from_secs(9)).gone);
        other.join().expect("told");
        assert!(a.wait(0, Instant::now()).gone, "and stays so");
    }

    #[test]
    fn close_wakes_every_listener() {
        let hub = Arc::new(Hub::default());
        let a = hub.listen(None, false);
        hub.close();
        assert!(a.wait(0, Instant::now() + Duration::from_secs(9)).closed);
    }
}
