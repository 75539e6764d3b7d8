//! The end: everything comes to rest, and what must hold then.

use ostler::model::event::Actor as By;
use ostler::store::Target;

use super::*;

impl Sim {
    /// Lets everything come to its end: no faults, nothing fails, everything suspended is resumed.
    pub fn settle_down(&mut self) {
        self.faults.death_in.store(0, Ordering::Relaxed);
        self.faults.commit.store(0, Ordering::Relaxed);
        self.quiet = true;
        self.notes.lock().unwrap().quiet = true;
        self.p().machine.full.store(false, Ordering::Relaxed);
        if self.process.as_ref().is_some_and(|p| p.stop_began.is_some()) {
            self.finish_stop();
        }
        let blocked = std::mem::take(&mut self.p().blocked);
        blocked.into_iter().for_each(|sid| self.p().ctx.registry.unblock(sid));
        self.request(Request::Hold(false));
        self.run_dry();
        for status in ["status='suspended'", "status='open' AND mark_reason IS NOT NULL AND cut_turn IS NOT NULL"] {
            for id in self.ids(&format!("SELECT id FROM sessions WHERE {status}")) {
                let ctx = self.process.as_ref().expect("a process").ctx.clone();
                // One that has gone on since is refused.
                if let Ok(acted) = ctx.store.resume(Target::Id(id), By::Operator) {
                    ctx.catch_up(&acted);
                }
                self.run_dry();
            }
        }
        self.handle(Event::Signal(Signal::Stop));
        self.finish_stop();
        self.run_dry();
        self.conclude();
    }

    fn ids(&self, sql: &str) -> Vec<String> {
        let mut statement = self.witness.conn().prepare(sql).unwrap();
        statement.query_map([], |r| r.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    }

    /// Walks a stop to its end, and starts again.
    fn finish_stop(&mut self) {
        let boots = self.boots;
        for _ in 0..20_000 {
            if self.boots > boots {
                return;
            }
            self.advance();
        }
        panic!("a stop does not end: {:?}", self.process.as_ref().map(|p| p.ctx.board()));
    }

    /// Something goes on, or else time passes. Whether something went on.
    fn advance(&mut self) -> bool {
        let p = self.p();
        p.handing.clear();
        let went_on = self.go_on();
        let came_back = self.come_back();
        if !went_on && !came_back {
            if !self.process.as_ref().expect("a process").coordinator.may_leave() {
                self.check_quiet();
            }
            self.pass();
        }
        self.after();
        went_on || came_back
    }

    /// Until nothing waits, runs or is owed, and nothing goes on for as long as an interrupted turn may be held off.
    fn run_dry(&mut self) {
        const WAITING: &str = "SELECT (SELECT count(*) FROM turns t JOIN sessions s ON s.sid=t.sid
               WHERE t.state='running' OR t.state='queued' AND s.status='open')
             + (SELECT count(*) FROM deliveries WHERE state='pending')";
        let mut since = self.clock.ms();
        for _ in 0..20_000 {
            if self.advance() || self.witness.number(WAITING) > 0 {
                since = self.clock.ms();
            } else if self.clock.ms() - since > 20_000 {
                let (read, newest) = (self.p().read, self.witness.seq);
                assert_eq!(read, newest, "a listener was not told");
                return;
            }
        }
        let p = self.process.as_ref().expect("a process");
        let threads: Vec<_> = p.threads.iter().map(|t| (t.sid, t.worker.state(), t.next)).collect();
        let waits = self.witness.texts(
            "SELECT 'turn '||t.tid||' '||t.state||' of '||t.sid||' '||s.status FROM turns t JOIN sessions s ON s.sid=t.sid
               WHERE t.state='running' OR t.state='queued' AND s.status='open'
             UNION ALL SELECT 'delivery '||did FROM deliveries WHERE state='pending'",
        );
        panic!("it does not come to rest: {waits:?} {threads:?} {:?} {:?}", p.ctx.registry, p.ctx.board());
    }

    fn conclude(&mut self) {
        let w = &self.witness;
        assert_eq!(w.number("SELECT count(*) FROM turns WHERE state IN ('queued', 'running')"), 0, "nothing waits");
        assert_eq!(w.number("SELECT count(*) FROM deliveries WHERE state='pending'"), 0, "nothing is owed");
        self.conclude_messages();
        self.conclude_journal();
        self.conclude_text();
    }

    /// What was accepted is kept, answered at the most once, and goes on where it must.
    fn conclude_messages(&self) {
        let conn = self.witness.conn();
        let mut turns: BTreeMap<String, (String, Option<String>, String)> = BTreeMap::new();
        let mut statement = conn
            .prepare("SELECT t.id, t.state, n.id, s.status FROM turns t LEFT JOIN turns n ON n.tid=t.continued_by JOIN sessions s ON s.sid=t.sid")
            .unwrap();
        let mut rows = statement.query([]).unwrap();
        while let Some(r) = rows.next().unwrap() {
            turns.insert(r.get(0).unwrap(), (r.get(1).unwrap(), r.get(2).unwrap(), r.get(3).unwrap()));
        }
        for (id, (state, _, _)) in &turns {
            let told = self.witness.turns.get(id).and_then(|t| t.outcome.clone());
            assert_eq!(told.as_deref(), Some(state.as_str()), "each turn's outcome is told, once");
        }
        let prompts = &self.notes.lock().unwrap().prompts;
        for sent in &self.sent {
            let Some((first, message)) = &sent.acked else { continue };
            let found = conn
                .prepare_cached("SELECT text FROM messages m JOIN turns t ON t.tid=m.tid WHERE m.id=?1 AND t.id=?2")
                .unwrap()
                .query_row([message, first], |r| r.get::<_, String>(0));
            let found = found.unwrap_or_else(|e| panic!("accepted means kept: {sent:?}: {e}"));
            assert!(found == sent.text || found.is_empty(), "its text is kept: {sent:?}, {found:?}");
            let (mut turn, mut completed) = (first.clone(), 0);
            loop {
                let (state, next, status) = &turns[&turn];
                completed += i32::from(state == "completed");
                match (state.as_str(), next) {
                    ("interrupted", Some(next)) => turn.clone_from(next),
                    ("interrupted", None) => {
                        assert!(!self.strict || status == "ended", "it never went on: {sent:?}, turn {turn}");
                        break;
                    }
                    (_, None) => break,
                    (state, Some(_)) => panic!("{state}, and continued: {turn}"),
                }
            }
            assert!(completed <= 1, "two answers: {sent:?}");
            if completed == 1 {
                assert!(prompts[&turn].contains(&sent.text), "answered without having been asked: {sent:?}");
            }
        }
    }

    /// Each end and each start is journalled once; handlers got them in order, and none twice without a cause.
    fn conclude_journal(&self) {
        let conn = self.witness.conn();
        let mut order: BTreeMap<String, i64> = BTreeMap::new();
        let mut statement = conn.prepare("SELECT event_id, jid FROM journal").unwrap();
        let mut rows = statement.query([]).unwrap();
        while let Some(r) = rows.next().unwrap() {
            order.insert(r.get(0).unwrap(), r.get(1).unwrap());
        }
        if self.config.retention.journal.is_none() {
            assert_eq!(order.len(), self.witness.told.len(), "the journal is the stream's facts, each once");
        }
        let seen = self.seen.lock().unwrap();
        for ((handler, key), events) in &seen.order {
            // What was set aside and what was pruned is out of it.
            let jids: Vec<i64> = events.iter().filter_map(|id| order.get(id).copied()).collect();
            assert!(jids.is_sorted(), "{handler} got the events of {key} out of order: {jids:?}");
        }
        if !self.struck && self.boots <= 2 {
            assert!(seen.done.values().all(|n| *n == 1), "an event was handled twice without a cause");
        }
    }

    /// The transcript is what the agent said: nothing twice, nothing else; all of it where the turn was completed.
    fn conclude_text(&self) {
        let conn = self.witness.conn();
        let mut statement = conn
            .prepare(
                "SELECT coalesce(group_concat(e.text, ''), ''),
                   (SELECT t.state='completed' AND s.hidden=0 FROM turns t JOIN sessions s ON s.sid=t.sid WHERE t.id=?1) FROM
                   (SELECT text FROM entries WHERE tid=(SELECT tid FROM turns WHERE id=?1) AND role='agent' ORDER BY seq) e",
            )
            .unwrap();
        let notes = self.notes.lock().unwrap();
        for (id, said) in notes.said.iter().filter(|(id, _)| !id.is_empty()) {
            let (text, whole): (String, bool) = statement.query_row([id], |r| Ok((r.get(0)?, r.get(1)?))).unwrap();
            assert!(said.starts_with(&text), "turn {id}: {} bytes said, {} in the transcript", said.len(), text.len());
            assert!(!whole || text == *said, "turn {id} was completed, and its text is not whole");
        }
    }
}
