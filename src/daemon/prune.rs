//! Retention in steps: each step removes a limited number of rows, and one log line sums up a round of steps.

use super::context::Context;
use crate::store::Pruned;

/// What the steps of this round have removed so far.
#[derive(Debug, Default)]
pub struct Round(Pruned);

impl Round {
    /// Adds a step. `false`: the round is over and logged.
    pub fn went_on(&mut self, step: Option<Pruned>) -> bool {
        let step = step.unwrap_or_default();
        self.0 += step;
        if step.total() > 0 {
            return true;
        }
        let Pruned { events, ids, deliveries, set_aside, sessions, rows, kv } = std::mem::take(&mut self.0);
        let counts = [
            (events, "events"),
            (ids, "message ids"),
            (deliveries, "settled deliveries"),
            (sessions, "sessions' transcripts"),
            (rows, "rows of sessions"),
            (kv, "expired values"),
        ];
        let removed: Vec<_> = counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        if !removed.is_empty() {
            log::info!("retention: removed {}", removed.join(", "));
        }
        if set_aside > 0 {
            log::warn!("retention: gave up {set_aside} set-aside deliveries that were neither retried nor discarded");
        }
        false
    }
}

/// One step. `None`: the store failed.
pub fn step(ctx: &Context) -> Option<Pruned> {
    ctx.store
        .prune(ctx.config().retention.clone())
        .inspect_err(|e| log::warn!("retention: cannot remove anything now: {e}"))
        .ok()
}
