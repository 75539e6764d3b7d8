//! What a boot has to make of what the last process left.

use ostler::store::Recovered;

use super::*;
use crate::parts::Delivery;

/// What recovery must leave.
pub(super) struct Expected {
    /// The deaths in a row of each session.
    deaths: BTreeMap<i64, i64>,
    /// Nothing is left to be recovered.
    nothing: bool,
}

impl Sim {
    /// What the next boot must make of the tables.
    pub(super) fn expected(&mut self) -> Expected {
        let left = "SELECT (SELECT count(*) FROM boots WHERE ended_at IS NULL) + (SELECT count(*) FROM activations WHERE closed_at IS NULL)";
        let nothing = self.witness.number(left) == 0;
        let clean = std::mem::take(&mut self.left_clean);
        assert!(nothing || !clean, "a stop that called itself clean leaves something to recover");
        let conn = self.witness.conn();
        let mut statement = conn.prepare_cached("SELECT sid, unclean FROM sessions").unwrap();
        let mut deaths: BTreeMap<i64, i64> =
            statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).unwrap().collect::<Result<_, _>>().unwrap();
        // A death counts against all that run; against the one on probation only; in a stop, against what it gave up.
        let mut statement = conn
            .prepare_cached(
                "SELECT t.sid, CASE WHEN b.stop_reason IS NOT NULL THEN a.abandoned ELSE coalesce(b.solo=t.sid, 1) END
                 FROM turns t JOIN activations a ON a.sid=t.sid AND a.closed_at IS NULL JOIN boots b ON b.bid=a.bid
                 WHERE t.state='running'",
            )
            .unwrap();
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
        let open = "SELECT count(*) FROM activations WHERE closed_at IS NULL";
        assert_eq!(self.witness.number(open), 0, "a boot closes all");
        assert_eq!(self.witness.number("SELECT count(*) FROM turns WHERE state='running'"), 0);
        assert!(self.witness.sessions.values().all(|s| !s.open && s.running.is_none()), "each end is told");
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
