//! The end: everything comes to rest, and what must hold then.

use super::*;

impl House {
    /// Lets everything come to its end: no faults, nothing hangs, everything suspended is resumed.
    pub fn settle_down(&mut self) {
        self.plan.death_in.store(0, Ordering::Relaxed);
        self.plan.commit.store(0, Ordering::Relaxed);
        self.quiet = true;
        self.finish_stop();
        if self.daemon.held_back {
            self.hold(false);
        }
        for _ in 0..20 {
            let suspended = self
                .witness
                .conn()
                .prepare("SELECT id FROM sessions WHERE status='suspended'")
                .unwrap()
                .query_map([], |r| r.get(0))
                .unwrap()
                .collect::<Result<Vec<String>, _>>()
                .unwrap();
            let Some(id) = suspended.into_iter().next() else { break };
            let acted = self.call(|s| s.resume(Target::Id(id), Actor::Operator)).expect("resumed");
            self.catch_up(&acted);
            self.check();
        }
        // Without another boot: what waits must be found by those who were told of it, or by what follows a doubt.
        self.run_dry();
        let marked = self
            .witness
            .conn()
            .prepare("SELECT id FROM sessions WHERE status='open' AND mark_reason IS NOT NULL AND cut_turn IS NOT NULL")
            .unwrap()
            .query_map([], |r| r.get(0))
            .unwrap()
            .collect::<Result<Vec<String>, _>>()
            .unwrap();
        for id in marked {
            for w in self.daemon.workers.values_mut() {
                w.close = Some(Close::Park);
            }
            self.run_dry();
            let acted = self.call(|s| s.resume(Target::Id(id), Actor::Operator)).expect("resumed");
            self.catch_up(&acted);
            self.run_dry();
        }
        self.life(Event::StopAsked(StopReason::Shutdown, Urgency::Graceful));
        self.finish_stop();
        for _ in 0..10_000 {
            if self.witness.number("SELECT count(*) FROM deliveries WHERE state='pending'") == 0 {
                break;
            }
            self.deliver();
        }
        self.conclude();
    }

    /// Walks a stop to its end, if there is one, and starts again.
    pub(super) fn finish_stop(&mut self) {
        for _ in 0..10_000 {
            if self.daemon.machine.stop().is_none() {
                return;
            }
            let sids: Vec<i64> = self.daemon.workers.keys().copied().collect();
            for sid in sids {
                self.work(sid);
            }
            self.stop_goes_on();
            self.after();
        }
        panic!("a stop does not end");
    }

    /// Until no worker has anything to do.
    pub(super) fn run_dry(&mut self) {
        for _ in 0..2000 {
            let d = &self.daemon;
            let busy = d.workers.values().any(|w| w.work || w.asked || w.close.is_some() || !matches!(w.at, At::Idle));
            if !busy && d.wishes.is_empty() && d.apart.is_empty() && d.continuations.is_empty() {
                return;
            }
            let sids: Vec<i64> = self.daemon.workers.keys().copied().collect();
            for sid in sids {
                self.work(sid);
            }
            self.after();
        }
        panic!("the sessions do not come to rest: {:?} {:?}", self.daemon.workers, self.daemon.wishes);
    }

    /// What must hold in the end.
    pub(super) fn conclude(&mut self) {
        let w = &self.witness;
        assert_eq!(
            w.number("SELECT count(*) FROM turns WHERE state IN ('queued', 'running')"),
            0,
            "nothing waits for ever"
        );
        let hidden = self.hidden();
        let purged: i64 = hidden.iter().map(|id| w.words.get(id).copied().unwrap_or(0)).sum();
        let left = w.number(
            "SELECT count(*) FROM events WHERE kind NOT IN ('text', 'thought', 'tool')
             OR session_id NOT IN (SELECT id FROM sessions WHERE hidden=1)",
        );
        let pruned = w.number("SELECT coalesce(max(value), 0) FROM meta WHERE name='events_pruned'");
        if pruned == 0 {
            assert_eq!(
                left,
                w.events - purged,
                "no event that was seen is gone, but for the words of deleted sessions"
            );
        }
        let kept = w.seqs.iter().filter(|seq| **seq > pruned).count() as i64;
        let there = w.number(&format!("SELECT count(*) FROM events WHERE seq>{pruned}"));
        assert!(there <= kept && (pruned == 0 || purged > 0 || there == kept), "what is young enough is there");
        assert_eq!(
            w.number("SELECT count(*) FROM deliveries WHERE state='pending'"),
            0,
            "every event is delivered or set aside"
        );
        self.conclude_messages();
        self.conclude_journal();
        self.conclude_text();
        self.conclude_order();
    }

    /// Sessions that were deleted.
    fn hidden(&self) -> Vec<String> {
        let conn = self.witness.conn();
        let mut statement = conn.prepare("SELECT id FROM sessions WHERE hidden=1").unwrap();
        statement.query_map([], |r| r.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    }

    pub(super) fn conclude_messages(&self) {
        let conn = self.witness.conn();
        let mut turns: BTreeMap<String, (String, Option<String>, String)> = BTreeMap::new();
        let mut statement = conn
            .prepare(
                "SELECT t.id, t.state, n.id, s.status FROM turns t LEFT JOIN turns n ON n.tid=t.continued_by JOIN sessions s ON s.sid=t.sid",
            )
            .unwrap();
        let mut rows = statement.query([]).unwrap();
        while let Some(r) = rows.next().unwrap() {
            turns.insert(r.get(0).unwrap(), (r.get(1).unwrap(), r.get(2).unwrap(), r.get(3).unwrap()));
        }
        for (id, (state, _, _)) in &turns {
            let told = self.witness.turns.get(id).and_then(|t| t.outcome.clone());
            assert_eq!(told.as_deref(), Some(state.as_str()), "each turn's outcome is told, once");
        }
        for sent in &self.sent {
            let Some((_, first, message)) = &sent.acked else { continue };
            let found = conn
                .prepare_cached("SELECT text FROM messages m JOIN turns t ON t.tid=m.tid WHERE m.id=?1 AND t.id=?2")
                .unwrap()
                .query_row([message, first], |r| r.get::<_, String>(0));
            let found = found.unwrap_or_else(|e| panic!("accepted means kept: {sent:?}: {e}"));
            let deleted = || {
                let sql = "SELECT hidden FROM sessions s JOIN turns t ON t.sid=s.sid WHERE t.id=?1";
                conn.prepare_cached(sql).unwrap().query_row([first], |r| r.get::<_, bool>(0)).unwrap()
            };
            assert!(found == sent.text || (found.is_empty() && deleted()), "its text is kept: {sent:?}, {found:?}");
            let (mut turn, mut completed) = (first.clone(), 0);
            loop {
                let (state, next, status) = &turns[&turn];
                completed += i32::from(state == "completed");
                match (state.as_str(), next) {
                    ("interrupted", Some(next)) => turn = next.clone(),
                    ("interrupted", None) => {
                        assert!(!self.config.strict() || status == "ended", "it never went on: {sent:?}, turn {turn}");
                        break;
                    }
                    (_, None) => break,
                    (state, Some(_)) => panic!("{state}, and continued: {turn}"),
                }
            }
            assert!(completed <= 1, "two answers: {sent:?}");
            if completed == 1 {
                let prompt = &self.prompts[&turn];
                assert!(prompt.contains(&sent.text), "answered without having been asked: {sent:?}, {prompt}");
            }
        }
    }

    pub(super) fn conclude_journal(&self) {
        let conn = self.witness.conn();
        let mut journal: Vec<(String, String, String)> = conn
            .prepare("SELECT event, session_id, json_extract(fields, '$.reason') FROM journal ORDER BY jid")
            .unwrap()
            .query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        assert!(journal == self.witness.told, "the journal is the stream's facts, each once");
        journal.clear();
        let owed = self.witness.number("SELECT count(*) FROM deliveries");
        assert_eq!(owed as usize, self.witness.told.len() * HANDLERS.len(), "to each handler once");
    }

    /// The transcript is what the agent said: all that was certainly kept, nothing twice, nothing else.
    pub(super) fn conclude_text(&self) {
        let conn = self.witness.conn();
        let mut statement = conn
            .prepare(
                "SELECT coalesce(group_concat(e.text, ''), '') FROM
                   (SELECT text FROM entries WHERE tid=(SELECT tid FROM turns WHERE id=?1) AND role='agent' ORDER BY seq) e",
            )
            .unwrap();
        let mut deleted =
            conn.prepare("SELECT 1 FROM turns t JOIN sessions s ON s.sid=t.sid WHERE t.id=?1 AND s.hidden=1").unwrap();
        for (id, (said, kept)) in &self.said {
            if deleted.exists([id]).unwrap() {
                continue;
            }
            let text: String = statement.query_row([id], |r| r.get(0)).unwrap();
            assert!(
                said.starts_with(&text) && text.len() >= *kept,
                "turn {id}: said {said:?}, kept {kept}, transcript {text:?}"
            );
            let streamed = self.witness.turns.get(id).map_or("", |t| t.text.as_str());
            assert_eq!(text, streamed, "the transcript is the stream, joined");
        }
    }

    /// Under a key messages are begun in the order in which they were accepted.
    pub(super) fn conclude_order(&self) {
        // By the stream's numbers, for the wall clock may have gone back.
        let conn = self.witness.conn();
        let mut statement = conn
            .prepare("SELECT m.key, t.id FROM messages m JOIN turns t ON t.tid=m.tid ORDER BY m.key, m.mid")
            .unwrap();
        let mut rows = statement.query([]).unwrap();
        let mut last = (String::new(), 0, String::new());
        while let Some(r) = rows.next().unwrap() {
            let (key, id): (String, String) = (r.get(0).unwrap(), r.get(1).unwrap());
            let Some(seq) = self.witness.begun.get(&id).copied() else { continue };
            assert!(last.0 != key || last.1 <= seq, "order under a key: {id} began before {}", last.2);
            last = (key, seq, id);
        }
    }
}
