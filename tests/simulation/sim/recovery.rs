//! What a boot has to make of what the last process left.

use ostler::store::Recovered;

use super::*;
use crate::parts::Delivery;

/// What recovery must leave.
pub(super) struct Expected {
    /// The deaths in a row of each session.
    deaths: BTreeMap<i64, i64>,
    /// Nothing is left to be recovered, nor did an agent end that a stop had kept.
    nothing: bool,
}

/// Whether a boot's stop keeps agents, in SQL.
fn keeps(bid: &str) -> String {
    format!("EXISTS (SELECT 1 FROM meta m WHERE m.name='keeps ' || {bid})")
}

/// Whether a later boot was stopped with all agents, in SQL.
fn shut_down_after(bid: &str) -> String {
    let kept = keeps("l.bid");
    format!("EXISTS (SELECT 1 FROM boots l WHERE l.bid>{bid} AND l.stop_reason='shutdown' AND NOT {kept})")
}

impl Sim {
    /// What the next boot must make of the tables.
    pub(super) fn expected(&mut self) -> Expected {
        // Agents go on after a stop that keeps them, unless a later one that ends them left them behind.
        let ended = format!("b.stop_reason IN ('restart', 'upgrade') OR {}", keeps("b.bid"));
        let later = shut_down_after("b.bid");
        let left = |lives: &str| {
            let left = format!(
                "SELECT (SELECT count(*) FROM boots WHERE ended_at IS NULL) + (SELECT count(*) FROM activations a
                   WHERE closed_at IS NULL AND NOT EXISTS (SELECT 1 FROM kept k JOIN boots b ON b.bid=a.bid
                     WHERE k.sid=a.sid AND {lives} AND b.ended_at IS NOT NULL AND (b.stop_reason IS NULL OR {ended})
                       AND NOT {later}))"
            );
            self.witness.number(&left)
        };
        // It may end by itself at any time, or with the machine.
        let lives = format!(
            "CASE k.per_turn WHEN 0
               THEN EXISTS (SELECT 1 FROM shims h WHERE h.sid=k.sid AND h.epoch=k.epoch AND h.ready=1 AND h.machine='{m}')
               ELSE NOT EXISTS (SELECT 1 FROM shims h JOIN turns t ON t.tid=h.tid
                 WHERE h.sid=k.sid AND t.state='running' AND h.machine<>'{m}') END",
            m = self.outside.world().machine()
        );
        let (kept, nothing) = (left("1=1") == 0, left(&lives) == 0);
        assert!(kept || !self.left_clean, "a stop that called itself clean leaves something to recover");
        self.left_clean = false;
        let conn = self.witness.conn();
        let mut statement = conn.prepare_cached("SELECT sid, unclean FROM sessions").unwrap();
        let mut deaths: BTreeMap<i64, i64> =
            statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).unwrap().collect::<Result<_, _>>().unwrap();
        // A death counts against all that run; against the one on probation only; in a stop, against what it gave up.
        let died = format!(
            "SELECT t.sid, CASE WHEN b.stop_reason IS NOT NULL OR {} THEN a.abandoned
               WHEN b.ended_at IS NOT NULL THEN 0 ELSE coalesce(b.solo=t.sid, 1) END
             FROM turns t JOIN activations a ON a.sid=t.sid AND a.closed_at IS NULL JOIN boots b ON b.bid=a.bid
             WHERE t.state='running'",
            shut_down_after("b.bid")
        );
        let mut statement = conn.prepare_cached(&died).unwrap();
        let mut rows = statement.query([]).unwrap();
        while let Some(r) = rows.next().unwrap() {
            *deaths.entry(r.get(0).unwrap()).or_default() += r.get::<_, i64>(1).unwrap();
        }
        Expected { deaths, nothing }
    }

    /// A boot leaves nothing open, and blames only what ran in a death that no stop explains.
    pub(super) fn check_recovery(&mut self, expected: &Expected, recovered: &Recovered) {
        if expected.nothing {
            assert_eq!((recovered.deaths, recovered.activations), (0, 0), "a stop in order leaves nothing");
        }
        let before = self.witness.unclean.clone();
        self.witness.check(true);
        let pending: BTreeSet<i64> = recovered.pending.iter().map(|p| p.sid).collect();
        let among = pending.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
        let open = format!("SELECT count(*) FROM activations WHERE closed_at IS NULL AND sid NOT IN ({among})");
        assert_eq!(self.witness.number(&open), 0, "a boot closes all whose agents are gone");
        let running = format!("SELECT count(*) FROM turns WHERE state='running' AND sid NOT IN ({among})");
        assert_eq!(self.witness.number(&running), 0);
        let closed = self.witness.texts(&format!("SELECT id FROM sessions WHERE sid NOT IN ({among})"));
        let ended = |id: &String| self.witness.sessions.get(id).is_none_or(|s| !s.open && s.running.is_none());
        assert!(closed.iter().all(ended), "each end is told");
        let threshold = i64::from(self.config.sessions.stuck_threshold);
        for (sid, unclean) in &self.witness.unclean {
            let (was, must) = (before.get(sid).copied().unwrap_or(0), expected.deaths.get(sid).copied().unwrap_or(0));
            assert_eq!(*unclean, must, "session {sid}: its {was} deaths in a row");
            if must > was {
                let status = format!("SELECT status='suspended' FROM sessions WHERE sid={sid}");
                let suspended = self.witness.number(&status) > 0;
                let due = threshold > 0 && must >= threshold;
                assert_eq!(suspended, due, "session {sid}: {must} deaths of {threshold}");
            }
        }
    }

    /// Handlers may have seen these deliveries, for all that the daemon can know.
    pub(super) fn doubt(&self, which: &str) {
        self.note_deliveries(which, |seen| &mut seen.in_doubt);
    }

    /// Notes some of the deliveries.
    pub(super) fn note_deliveries(&self, which: &str, place: fn(&mut Seen) -> &mut BTreeSet<Delivery>) {
        let these = format!("SELECT d.name, j.event_id FROM deliveries d JOIN journal j ON j.jid=d.jid WHERE {which}");
        let mut statement = self.witness.conn().prepare_cached(&these).unwrap();
        let rows = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).unwrap();
        place(&mut self.seen.lock().unwrap()).extend(rows.map(Result::unwrap));
    }
}
