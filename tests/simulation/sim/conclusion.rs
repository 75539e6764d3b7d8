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
        self.p().threads.iter_mut().for_each(|t| t.hangs = false);
        self.sweep();
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
        self.conclude_stream();
        self.conclude_turns();
        self.conclude_messages();
        self.conclude_prompts();
        self.conclude_permissions();
        self.conclude_order();
        self.conclude_journal();
        self.conclude_text();
    }

    /// No event that was seen is gone, but for the words of deleted sessions and what was old enough.
    fn conclude_stream(&self) {
        let w = &self.witness;
        let pruned = w.number("SELECT coalesce(max(value), 0) FROM meta WHERE name='events_pruned'");
        let (gone, kept): (Vec<_>, Vec<_>) = w.seqs.iter().partition(|(seq, _)| *seq <= pruned);
        let there = w.number(&format!("SELECT count(*) FROM events WHERE seq>{pruned}"));
        // A session that is not there any more was deleted, or purged, and then forgotten.
        let shown = w.texts("SELECT id FROM sessions WHERE hidden=0");
        let purged: i64 = w.words.iter().filter(|(id, _)| !shown.contains(id)).map(|(_, words)| words).sum();
        let missing = kept.len() as i64 - there;
        assert!((0..=purged).contains(&missing), "{missing} events are gone, {purged} were of the deleted");
        let last = self.clock.ms() - AGE_MS;
        let young = gone.iter().find(|(_, at)| *at > last);
        assert!(young.is_none(), "an event was removed too early: {young:?}, now {}", self.clock.ms());
        assert!(pruned == 0 || self.config.retention.events.is_some(), "events are kept for ever");
    }

    /// Each turn's outcome was told, once, and none is completed of which an agent was asked and did not complete it.
    fn conclude_turns(&self) {
        let notes = self.notes.lock().unwrap();
        let mut statement = self.witness.conn().prepare("SELECT id, state FROM turns").unwrap();
        let mut rows = statement.query([]).unwrap();
        while let Some(r) = rows.next().unwrap() {
            let (id, state): (String, String) = (r.get(0).unwrap(), r.get(1).unwrap());
            let told = self.witness.turns.get(&id).and_then(|t| t.outcome.clone());
            assert_eq!(told.as_deref(), Some(state.as_str()), "turn {id}: its outcome is told");
            assert!(
                state != "completed" || !notes.prompts.contains_key(&id) || notes.whole.contains(&id),
                "turn {id} is completed, and its agent was not"
            );
        }
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
        let retention = &self.config.retention;
        let forgets = retention.ids.is_some();
        for sent in &self.sent {
            let Some((first, message)) = &sent.acked else { continue };
            if forgets && sent.at <= self.clock.ms() - AGE_MS && !turns.contains_key(first) {
                // Its session was over and purged, and has been forgotten with its ids.
                let outcome = self.witness.turns.get(first).and_then(|t| t.outcome.as_ref());
                assert!(outcome.is_some(), "forgotten, and never over: {sent:?}");
                continue;
            }
            let found = conn
                .prepare_cached(
                    "SELECT m.text, s.purged OR s.hidden FROM messages m JOIN turns t ON t.tid=m.tid
                     JOIN sessions s ON s.sid=t.sid WHERE m.id=?1 AND t.id=?2",
                )
                .unwrap()
                .query_row([message, first], |r| Ok((r.get::<_, String>(0)?, r.get::<_, bool>(1)?)));
            let (found, purged) = found.unwrap_or_else(|e| panic!("accepted means kept: {sent:?}: {e}"));
            assert!(found == sent.text || found.is_empty() && purged, "its text is kept: {sent:?}, {found:?}");
            self.conclude_chain(sent, first, &turns);
        }
    }

    /// From the turn that a message was accepted for to the one that answers it.
    fn conclude_chain(&self, sent: &Sent, first: &str, turns: &BTreeMap<String, (String, Option<String>, String)>) {
        let prompts = &self.notes.lock().unwrap().prompts;
        let (mut turn, mut completed) = (first.to_owned(), 0);
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

    /// An agent is asked what was sent: all messages of its turn, in their order, and none of anybody else's.
    fn conclude_prompts(&self) {
        let conn = self.witness.conn();
        let own = "SELECT m.text FROM messages m JOIN turns t ON t.tid=m.tid WHERE t.id=?1 ORDER BY m.mid";
        let chain = "WITH RECURSIVE chain(tid, continues) AS (
               SELECT tid, continues FROM turns WHERE id=?1 UNION
               SELECT c.tid, c.continues FROM chain JOIN turns c ON c.tid=chain.continues)
             SELECT m.text FROM chain JOIN messages m ON m.tid=chain.tid";
        let texts = |sql: &str, turn: &str| -> Vec<String> {
            let mut statement = conn.prepare_cached(sql).unwrap();
            statement.query_map([turn], |r| r.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
        };
        for (turn, prompt) in &self.notes.lock().unwrap().prompts {
            let there = conn.prepare_cached("SELECT 1 FROM turns WHERE id=?1").unwrap().exists([turn]).unwrap();
            let of_chain = texts(chain, turn);
            if !there || of_chain.iter().any(String::is_empty) {
                // It was forgotten, or purged.
                continue;
            }
            let mut rest = prompt.as_str();
            for text in texts(own, turn) {
                let at = rest
                    .find(&text)
                    .unwrap_or_else(|| panic!("turn {turn} was not asked {text}, or too late: {prompt}"));
                rest = &rest[at + text.len()..];
            }
            // A note quotes what was asked before, if the agent's process ended in that.
            let recalls = prompt.starts_with("[Note from the session's host: your process ended");
            let said =
                prompt.lines().filter(|line| !(recalls && line.starts_with("> "))).collect::<Vec<_>>().join("\n");
            let asked = said.split('<').skip(1).filter_map(|part| part.split_once('>').map(|(word, _)| word));
            let theirs = |word: &&str| self.sent.iter().any(|s| s.text.trim_matches(['<', '>']) == *word);
            for word in asked.filter(theirs) {
                assert!(
                    of_chain.iter().any(|text| text.contains(&format!("<{word}>"))),
                    "turn {turn} was asked {word}, which is not its own: {prompt}"
                );
            }
        }
    }

    /// What a client was told to be the answer to a permission is what its agent heard, and one that waits for it hears it.
    fn conclude_permissions(&self) {
        let notes = self.notes.lock().unwrap();
        for (id, option) in &notes.agreed {
            let Some(turn) = notes.asked_in.get(id) else { continue };
            match notes.answers.get(id) {
                Some(heard) => assert_eq!(heard, option, "{id} of turn {turn}: what was agreed, and what was heard"),
                None => assert!(
                    !notes.whole.contains(turn) || notes.impatient.contains(turn),
                    "{id} of turn {turn}: {option} was agreed, and its agent never heard it"
                ),
            }
        }
    }

    /// Under a key messages are begun in the order in which they were accepted.
    fn conclude_order(&self) {
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

    /// Each end and each start is journalled once, for each handler; handlers got them in order, and none twice without a
    /// cause.
    fn conclude_journal(&self) {
        let conn = self.witness.conn();
        if self.config.retention.journal.is_none() {
            let journal: Vec<(String, String, String)> = conn
                .prepare("SELECT event, session_id, json_extract(fields, '$.reason') FROM journal ORDER BY jid")
                .unwrap()
                .query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
                .unwrap()
                .collect::<Result<_, _>>()
                .unwrap();
            assert!(journal == self.witness.told, "the journal is the stream's facts, each once");
            let owed = self.witness.number("SELECT count(*) FROM deliveries");
            assert_eq!(owed as usize, journal.len() * HANDLERS.len(), "to each handler once");
        }
        let mut order: BTreeMap<String, i64> = BTreeMap::new();
        let mut statement = conn.prepare("SELECT event_id, jid FROM journal").unwrap();
        let mut rows = statement.query([]).unwrap();
        while let Some(r) = rows.next().unwrap() {
            order.insert(r.get(0).unwrap(), r.get(1).unwrap());
        }
        let seen = self.seen.lock().unwrap();
        for ((handler, key), events) in &seen.order {
            // What was set aside and what was pruned is out of it.
            let again = |id: &&String| seen.again.contains(&(handler.clone(), (*id).clone()));
            let jids: Vec<i64> =
                events.iter().filter(|id| !again(id)).filter_map(|id| order.get(id).copied()).collect();
            assert!(jids.is_sorted(), "{handler} got the events of {key} out of order: {jids:?}");
        }
        for (of, n) in &seen.done {
            assert!(*n == 1 || seen.in_doubt.contains(of), "{of:?} was handled {n} times without a cause");
        }
    }

    /// The transcript is what the agent said: nothing twice, nothing else, all of what the stream tells; all of it where the
    /// turn was completed.
    fn conclude_text(&self) {
        let conn = self.witness.conn();
        let mut statement = conn
            .prepare(
                "SELECT coalesce(group_concat(e.text, ''), ''),
                   (SELECT t.state='completed' FROM turns t WHERE t.id=?1),
                   (SELECT s.hidden=0 AND s.purged=0 FROM turns t JOIN sessions s ON s.sid=t.sid WHERE t.id=?1) FROM
                   (SELECT text FROM entries WHERE tid=(SELECT tid FROM turns WHERE id=?1) AND role='agent' ORDER BY seq) e",
            )
            .unwrap();
        let notes = self.notes.lock().unwrap();
        for (id, said) in notes.said.iter().filter(|(id, _)| !id.is_empty()) {
            let found = statement.query_row([id], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?))).unwrap();
            let (text, whole, there): (String, Option<bool>, Option<bool>) = found;
            assert!(said.starts_with(&text), "turn {id}: {} bytes said, {} in the transcript", said.len(), text.len());
            if there == Some(true) {
                assert!(whole != Some(true) || text == *said, "turn {id} was completed, and its text is not whole");
                let streamed = self.witness.turns.get(id).map_or("", |t| t.text.as_str());
                assert!(text == streamed, "turn {id}: the transcript is the stream, joined");
            }
        }
    }
}
