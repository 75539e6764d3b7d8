//! The hub: tells listeners that there is something new, so that they read it from the store.
//!
//! A listener holds a number, not the events: what it misses it finds in the database. Only previews (`delta`) travel
//! through memory, in a bounded queue; one that overflows is told by the `text` that repeats it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use crate::store::Commit;

/// The most previews that wait for one listener.
const DELTAS: usize = 1024;

/// What a listener finds when it wakes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct News {
    /// The newest event's number, as far as told.
    pub newest: i64,
    /// Previews since the last look, as JSON.
    pub deltas: Vec<Arc<str>>,
    /// The daemon is leaving: no more will come.
    pub closed: bool,
}

#[derive(Debug, Default)]
struct State {
    newest: i64,
    deltas: VecDeque<Arc<str>>,
    wants_deltas: bool,
    closed: bool,
}

/// One listener.
#[derive(Debug)]
pub struct Listener {
    key: Option<String>,
    state: Mutex<State>,
    arrived: Condvar,
}

impl Listener {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something is newer than `seen`, a preview is there, or the instant passes.
    pub fn wait(&self, seen: i64, until: Instant) -> News {
        let mut state = self.lock();
        while state.newest <= seen && state.deltas.is_empty() && !state.closed {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        News { newest: state.newest, deltas: state.deltas.drain(..).collect(), closed: state.closed }
    }

    fn tell(&self, write: impl FnOnce(&mut State)) {
        write(&mut self.lock());
        self.arrived.notify_one();
    }
}

/// All listeners.
#[derive(Debug, Default)]
pub struct Hub {
    by_key: RwLock<HashMap<String, Vec<Arc<Listener>>>>,
    of_all: RwLock<Vec<Arc<Listener>>>,
    listeners: AtomicUsize,
    delivering: AtomicUsize,
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
            state: Mutex::new(State { wants_deltas: deltas, ..State::default() }),
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
            // It came while everybody was told.
            listener.tell(|s| s.closed = true);
        }
        Listening { hub: self.clone(), listener }
    }

    /// After a commit: wakes whoever listens. Called by the store's writer; does not block.
    pub fn publish(&self, commit: &Commit) {
        if commit.events.is_empty() || self.listeners.load(Ordering::SeqCst) == 0 {
            return;
        }
        let map = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
        if !map.is_empty() {
            for event in &commit.events {
                for listener in map.get(&*event.key).into_iter().flatten() {
                    listener.tell(|s| s.newest = s.newest.max(event.seq));
                }
            }
        }
        drop(map);
        let newest = commit.events.iter().map(|e| e.seq).max().unwrap_or(0);
        for listener in self.of_all.read().unwrap_or_else(PoisonError::into_inner).iter() {
            listener.tell(|s| s.newest = s.newest.max(newest));
        }
    }

    /// Whether a preview for this key would reach anybody.
    pub fn wants_deltas(&self, key: &str) -> bool {
        if self.listeners.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let map = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
        map.get(key).is_some_and(|all| all.iter().any(|l| l.lock().wants_deltas))
    }

    /// A preview, the moment the agent speaks.
    pub fn delta(&self, key: &str, json: &Arc<str>) {
        let map = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
        for listener in map.get(key).into_iter().flatten() {
            listener.tell(|s| {
                if !s.wants_deltas {
                } else if s.deltas.len() < DELTAS {
                    s.deltas.push_back(json.clone());
                } else {
                    self.lost_deltas.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    }

    /// Previews that a slow listener did not get.
    pub fn lost_deltas(&self) -> u64 {
        self.lost_deltas.load(Ordering::Relaxed)
    }

    /// How many listen.
    pub fn listeners(&self) -> usize {
        self.listeners.load(Ordering::SeqCst)
    }

    /// Answers that are being handed over to whoever sent the message: a drain waits for them.
    pub fn delivering(&self) -> usize {
        self.delivering.load(Ordering::SeqCst)
    }

    /// An answer is being handed over until the guard is dropped.
    #[must_use]
    pub fn deliver(self: &Arc<Self>) -> Delivering {
        self.delivering.fetch_add(1, Ordering::SeqCst);
        Delivering(self.clone())
    }

    /// The daemon leaves: every listener is told, reads what is there once more, and returns.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let map = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
        let of_all = self.of_all.read().unwrap_or_else(PoisonError::into_inner);
        for listener in map.values().flatten().chain(of_all.iter()) {
            listener.tell(|s| s.closed = true);
        }
    }
}

impl Hub {
    /// Waits until every listener has returned, or the instant passes. Whether all have.
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
pub struct Delivering(Arc<Hub>);

impl Drop for Delivering {
    fn drop(&mut self) {
        self.0.delivering.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A listener's place; leaving it ends the listening.
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
    use crate::store::Published;
    use std::time::Duration;

    fn commit(key: &str, seq: i64) -> Commit {
        Commit { events: vec![Published { seq, key: key.into() }], ..Commit::default() }
    }

    #[test]
    fn a_listener_hears_its_key_only() {
        let hub = Arc::new(Hub::default());
        let a = hub.listen(Some("x:a"), false);
        let all = hub.listen(None, false);
        hub.publish(&commit("x:b", 7));
        assert_eq!(a.wait(0, Instant::now()).newest, 0);
        assert_eq!(all.wait(0, Instant::now()).newest, 7);
        hub.publish(&commit("x:a", 8));
        assert_eq!(a.wait(0, Instant::now() + Duration::from_secs(9)).newest, 8);
        drop((a, all));
        assert_eq!(hub.listeners(), 0);
    }

    #[test]
    fn previews_are_bounded_and_counted() {
        let hub = Arc::new(Hub::default());
        let a = hub.listen(Some("x:a"), true);
        assert!(hub.wants_deltas("x:a") && !hub.wants_deltas("x:b"));
        for _ in 0..DELTAS + 3 {
            hub.delta("x:a", &"{}".into());
        }
        assert_eq!((a.wait(0, Instant::now()).deltas.len(), hub.lost_deltas()), (DELTAS, 3));
    }

    #[test]
    fn leaving_wakes_everybody() {
        let hub = Arc::new(Hub::default());
        let a = hub.listen(None, false);
        hub.close();
        assert!(a.wait(0, Instant::now() + Duration::from_secs(9)).closed);
    }
}
