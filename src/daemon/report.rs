//! The stop report: the planned and the real time of each phase, and the outcome of each session.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::context::Context;
use crate::clock::{self, Millis};
use crate::model::lifecycle::{Phase, Stop, plan};

/// The most sessions that are listed; sessions with a turn come first.
const LISTED: usize = 1000;

/// The report of a stop, while the stop goes on.
#[derive(Debug)]
pub struct Report {
    stop: Stop,
    began_at: Millis,
    phases: Vec<(Phase, Instant, Option<Duration>)>,
    live: Vec<(i64, Option<String>)>,
    tools: HashMap<i64, Option<String>>,
    abandoned: Vec<(i64, String)>,
    /// Sessions whose agents go on.
    kept: Vec<i64>,
    clean: Option<bool>,
}

impl Report {
    /// A stop begins.
    #[must_use]
    pub fn begin(ctx: &Context, stop: Stop, phase: Phase) -> Self {
        let blocking = ctx.registry.blocking();
        let running: HashMap<i64, Option<String>> = blocking.iter().map(|b| (b.sid, b.turn_id.clone())).collect();
        let idle = ctx.registry.live().into_keys().filter(|sid| !running.contains_key(sid)).map(|sid| (sid, None));
        let live = running.clone().into_iter().chain(idle).take(LISTED).collect();
        Self {
            stop,
            began_at: ctx.wall(),
            phases: vec![(phase, ctx.now(), None)],
            live,
            tools: blocking.into_iter().map(|b| (b.sid, b.tool)).collect(),
            abandoned: Vec::new(),
            kept: Vec::new(),
            clean: None,
        }
    }

    /// The next phase begins.
    pub fn enter(&mut self, phase: Phase, now: Instant) {
        if let Some((_, since, took)) = self.phases.last_mut() {
            *took = Some(now.saturating_duration_since(*since));
        }
        self.phases.push((phase, now, None));
    }

    /// The stop abandons workers.
    pub fn abandon(&mut self, workers: Vec<(i64, String)>) {
        self.abandoned.extend(workers);
    }

    /// The agents of these sessions go on.
    pub fn keep(&mut self, kept: Vec<i64>) {
        self.kept = kept;
    }

    /// The sessions whose workers this stop has abandoned.
    #[must_use]
    pub fn abandoned(&self) -> Vec<i64> {
        self.abandoned.iter().map(|(sid, _)| *sid).collect()
    }

    /// The stop is over.
    pub fn finish(&mut self, clean: bool) {
        self.clean = Some(clean);
    }

    /// The report as the API shows it. With `whole` it lists the sessions, which are read from the store until that
    /// instant.
    #[must_use]
    pub fn json(&self, ctx: &Context, whole: Option<Instant>) -> Value {
        let budget = ctx.config().shutdown;
        let now = ctx.now();
        let newest = self.phases.last().map(|p| p.0);
        let mut phases: Vec<Value> = Vec::new();
        // Every phase up to the newest, also phases that the stop skipped.
        for (phase, planned) in plan(&budget) {
            let spent = self.phases.iter().filter(|p| p.0 == phase);
            let took: Duration =
                spent.map(|(_, since, took)| took.unwrap_or_else(|| now.saturating_duration_since(*since))).sum();
            let (planned, took) = (planned.as_millis() as u64, took.as_millis() as u64);
            phases.push(json!({ "phase": phase, "planned_ms": planned, "took_ms": took }));
            if newest == Some(phase) {
                break;
            }
        }
        let urgency = ctx.board().stop.map_or(self.stop.urgency, |s| s.1);
        json!({
            "boot_id": ctx.boot_id, "reason": self.stop.reason, "urgency": urgency, "clean": self.clean,
            "started_at": clock::rfc3339(self.began_at), "ended_at": clock::rfc3339(ctx.wall()), "phases": phases,
            "sessions": whole.map_or_else(Vec::new, |until| self.sessions(ctx, until)),
        })
    }

    fn sessions(&self, ctx: &Context, until: Instant) -> Vec<Value> {
        let outcomes = ctx.store.until(until).stop_outcomes(&self.live).unwrap_or_else(|e| {
            log::error!("stop: cannot read the sessions' outcomes for the report: {e}");
            Vec::new()
        });
        outcomes
            .into_iter()
            .map(|s| {
                let abandoned = self.abandoned.iter().any(|(sid, _)| *sid == s.sid);
                let kept = self.kept.contains(&s.sid);
                let outcome = match s.turn.as_deref() {
                    _ if abandoned => "abandoned",
                    _ if kept => "kept",
                    Some("interrupted") => "interrupted",
                    Some(_) => "finished",
                    None => "idle",
                };
                let tool = self.tools.get(&s.sid).cloned().flatten();
                json!({
                    "key": s.key, "session_id": s.session_id, "outcome": outcome, "tool": tool,
                    "resume_pending": s.mark.is_some(),
                    "end_event": match (kept, s.end_pending) {
                        // It has not ended.
                        (true, _) => Value::Null,
                        (false, true) => "pending".into(),
                        (false, false) => "delivered".into(),
                    },
                })
            })
            .collect()
    }
}
