//! The promises of each named transaction, on a database in memory-backed storage with a clock that only tests move.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::config::{Busy, OnInterrupt, Resume};
use crate::model::event::{Actor, MarkReason, Outcome, StopReason, Urgency};
use crate::model::session::Policy;

mod accept;
mod boots;
mod bytes;
pub(super) mod cost;
mod damage;
mod disk;
mod journal;
mod keep;
mod migrate;
mod people;
mod seam;
mod turns;
mod write;

/// Where every test's time begins.
const T0: i64 = 1_800_000_000_000;
const HOUR: i64 = 3_600_000;
const KEY: &str = "local:a";

pub(super) const POLICY: Policy =
    Policy { resume_window: Some(Duration::from_secs(3600)), idle_reset: None, daily_boundary: None };
pub(super) const LIMITS: Limits = Limits { policy: POLICY, busy: Busy::Queue, queue_limit: 32, queue_total: 10_000 };

/// A directory in memory where there is one.
pub(super) fn directory() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// What a turn says at once, under its number.
pub(super) fn batch(number: i64, items: Vec<Item>) -> Vec<Batch> {
    vec![Batch { number, items, keep: None }]
}

/// A store, its clock and its file.
pub(super) struct Rig {
    pub store: Store,
    pub now: Arc<AtomicI64>,
    pub path: PathBuf,
    boots: u32,
    _dir: tempfile::TempDir,
}

impl Rig {
    /// A store in its first boot.
    pub fn new() -> Self {
        let dir = directory();
        let now = Arc::new(AtomicI64::new(T0));
        let path = dir.path().join("ostler.db");
        let store = open(&path, &now);
        let mut rig = Self { store, now, path, boots: 0, _dir: dir };
        rig.boot(3);
        rig
    }

    pub fn boot(&mut self, threshold: i64) -> Recovered {
        self.boots += 1;
        self.store
            .open_boot(BootInfo { boot_id: format!("boot-{}", self.boots), pid: 1, threshold, machine: None })
            .unwrap()
    }

    /// The process dies, and a new one starts.
    pub fn crash(&mut self) -> Recovered {
        self.crash_at(3)
    }

    pub fn crash_at(&mut self, threshold: i64) -> Recovered {
        self.store = open(&self.path, &self.now);
        self.boot(threshold)
    }

    /// A stop in order, and a new start.
    pub fn restart(&mut self) -> Recovered {
        self.store.set_admission(Admission::Stopping);
        self.store.mark_running(note()).unwrap();
        self.store.close_activations(StopReason::Restart, 3, None).unwrap();
        self.store.close_boot(true, Value::Null, 100).unwrap();
        self.crash()
    }

    pub fn pass(&self, ms: i64) {
        self.now.fetch_add(ms, Ordering::SeqCst);
    }

    pub fn accept(&self, key: &str, text: &str) -> Accept {
        Accept {
            key: key.into(),
            text: text.into(),
            original: text.into(),
            client_id: None,
            agent: "agent".into(),
            limits: LIMITS,
            session_id: None,
        }
    }

    pub fn say(&self, key: &str, text: &str) -> Accepted {
        self.store.accept_message(self.accept(key, text)).unwrap()
    }

    pub fn open(&self, sid: i64) -> i64 {
        self.store.open_activation(sid, "agent".into(), "/w".into(), None).unwrap().epoch
    }

    pub fn next_turn(&self, sid: i64, epoch: i64) -> Begin {
        Begin {
            fresh_id: uuid::Uuid::now_v7().to_string(),
            sid,
            epoch,
            on_interrupt: OnInterrupt::Resume,
            resume: Resume::Auto,
            policy: POLICY,
            auto_continue: false,
            context: None,
            probation_at: 2,
        }
    }

    pub fn begin(&self, sid: i64, epoch: i64) -> Begun {
        self.store.begin_turn(self.next_turn(sid, epoch)).unwrap().unwrap()
    }

    /// A message under a key, in a turn that runs.
    pub fn running(&self, key: &str, text: &str) -> (Accepted, Begun) {
        let a = self.say(key, text);
        let epoch = self.open(a.sid);
        let b = self.begin(a.sid, epoch);
        (a, b)
    }

    pub fn finish(&self, turn: TurnRef, outcome: Outcome) -> Ended {
        self.store.finish_turn(turn, Vec::new(), outcome, None, MarkReason::ShutdownTimeout).unwrap()
    }

    /// One number, by SQL.
    pub fn number(&self, sql: &str) -> i64 {
        let sql = sql.to_owned();
        self.store.write("test", move |tx| Ok(tx.conn().query_row(&sql, [], |r| r.get(0))?)).unwrap()
    }

    /// One text, by SQL; null is empty.
    pub fn text(&self, sql: &str) -> String {
        let sql = sql.to_owned();
        let text: Option<String> =
            self.store.write("test", move |tx| Ok(tx.conn().query_row(&sql, [], |r| r.get(0))?)).unwrap();
        text.unwrap_or_default()
    }

    pub fn exec(&self, sql: &str) {
        let sql = sql.to_owned();
        self.store.write("test", move |tx| Ok(tx.conn().execute_batch(&sql)?)).unwrap();
    }

    pub fn status(&self, sid: i64) -> String {
        self.text(&format!("SELECT status FROM sessions WHERE sid={sid}"))
    }

    /// The mark of a session: its reason, or empty.
    pub fn mark(&self, sid: i64) -> String {
        self.text(&format!("SELECT mark_reason FROM sessions WHERE sid={sid}"))
    }

    pub fn marked_at(&self, sid: i64) -> i64 {
        self.number(&format!("SELECT coalesce(marked_at, 0) FROM sessions WHERE sid={sid}"))
    }

    pub fn unclean(&self, sid: i64) -> i64 {
        self.number(&format!("SELECT unclean FROM sessions WHERE sid={sid}"))
    }

    pub fn state(&self, turn_id: &str) -> String {
        self.store.turn(turn_id).unwrap().state
    }

    /// The events under a key after `after`, each `kind` or `kind:what`.
    pub fn events(&self, key: &str, after: i64) -> Vec<String> {
        self.store.events(Some(key), after, 10_000).unwrap().items.iter().map(told).collect()
    }

    /// The newest event's number.
    pub fn newest(&self) -> i64 {
        self.store.event_bounds().unwrap().0
    }

    /// The transcript of a session: `role: text`.
    pub fn transcript(&self, session_id: &str) -> Vec<String> {
        self.store
            .entries(session_id, 0, i64::MAX, 1000, usize::MAX)
            .unwrap()
            .unwrap()
            .into_iter()
            .map(|e| format!("{}: {}", e.role, e.text))
            .collect()
    }
}

impl Tx<'_> {
    /// Writes an event as if a row of its key's sessions were locked; there may be no such row.
    pub(super) fn emit_locked(
        &mut self,
        kind: crate::model::event::EventKind,
        key: &str,
        session_id: &str,
        data: &Value,
    ) -> Result<i64, Error> {
        self.locked.add_key(key);
        self.emit(kind, key, session_id, None, data)
    }
}

/// `kind`, or `kind:what` where something tells them apart.
fn told(e: &EventRow) -> String {
    let data: Value = serde_json::from_str(&e.data).unwrap();
    let what = match e.kind.as_str() {
        "turn_end" => {
            let reason = data["reason"].as_str().map(|r| format!("/{r}")).unwrap_or_default();
            format!("{}{reason}", data["outcome"].as_str().unwrap())
        }
        "notice" => data["code"].as_str().unwrap().to_owned(),
        "text" | "thought" => data["text"].as_str().unwrap().to_owned(),
        "session_start" | "session_end" | "session_closed" => data["reason"].as_str().unwrap().to_owned(),
        _ => return e.kind.clone(),
    };
    format!("{}:{what}", e.kind)
}

/// The environment of a store that commits on the caller's thread, at the time of `now`.
pub(super) fn env(now: &Arc<AtomicI64>) -> Env {
    let clock = now.clone();
    Env {
        clock: Arc::new(move || clock.load(Ordering::SeqCst)),
        durable: false,
        inline: true,
        memory: false,
        readers: 1,
        ..Env::default()
    }
}

pub(super) fn open(path: &std::path::Path, now: &Arc<AtomicI64>) -> Store {
    let store = Store::open_in(path, env(now)).unwrap();
    store.set_owed(Arc::new(|event| {
        if event.is_journalled() {
            vec![HandlerId { event, script: "10-audit.lua".into(), name: "1".into() }]
        } else {
            Vec::new()
        }
    }));
    store
}

pub(super) const fn note() -> StopNote {
    StopNote { reason: StopReason::Restart, urgency: Urgency::Graceful, deadline_at: T0 + 60_000, keep: false }
}

/// The refusal of something that must be refused.
pub(super) fn refused<T: std::fmt::Debug>(result: Result<T, Error>) -> Refusal {
    result.unwrap_err().refusal().unwrap()
}

pub(super) fn key() -> Target {
    Target::Key(KEY.into())
}

pub(super) const ACTOR: Actor = Actor::User;
