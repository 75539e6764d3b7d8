//! People and programs: messages, and what is done to sessions.

use ostler::model::event::Actor as By;
use ostler::service::intake::{Message as Incoming, Origin};
use ostler::service::{Fault, Service};
use ostler::store::{Refusal, Target};

use super::*;

impl Sim {
    /// Somebody sends something, or sends it again: with the same id, at times with another text.
    pub(super) fn send(&mut self) {
        let again = !self.sent.is_empty() && self.dice.chance(30);
        let at = if again {
            let n = self.sent.len() as u64;
            self.dice.below(n) as usize
        } else {
            let key = if self.outlives && self.dice.chance(80) {
                *self.dice.pick(&KEYS[2..])
            } else {
                *self.dice.pick(&KEYS)
            };
            let n = self.sent.len();
            let id = self.dice.chance(70).then(|| format!("id{n}"));
            let at = self.p().ctx.store.now();
            self.sent.push(Sent { key, text: format!("<m{n}>"), id, acked: None, at, doubted: false });
            n
        };
        if again && self.sent[at].id.is_none() {
            return;
        }
        let sent = self.sent[at].clone();
        let ctx = self.process.as_ref().expect("a process").ctx.clone();
        let service = Service::new(ctx.clone(), self.p().delivery.clone());
        let other = sent.acked.is_some() && self.dice.chance(10);
        let text = if other { format!("{}!", sent.text) } else { sent.text.clone() };
        let message = Incoming { key: sent.key.into(), text: text.clone(), id: sent.id.clone(), session_id: None };
        // The process may die in it.
        self.sent[at].doubted |= sent.acked.is_some();
        let accepted = service.accept(message, &Origin::Script);
        if matches!(accepted, Ok(_) | Err(Fault::Store(Error::Refused(_)))) {
            self.sent[at].doubted = sent.doubted;
        }
        match accepted {
            Ok(a) => {
                let now = ctx.store.now();
                let ids = (a.turn_id.clone(), a.message_id.clone());
                match &sent.acked {
                    Some(before) if a.duplicate && (!sent.doubted || *before == ids) => {
                        assert_eq!(before, &ids, "the same turn and message");
                        assert!(!other, "an id was taken with another text");
                    }
                    Some(_) => {
                        self.check_forgotten(&sent);
                        // The older message is there; its id means the newer one.
                        let id = self.sent[at].id.take();
                        self.sent.push(Sent { text, id, acked: Some(ids), at: now, doubted: false, ..sent });
                    }
                    // A duplicate was kept by a commit in doubt, when it was sent first.
                    None if a.duplicate => self.sent[at].acked = Some(ids),
                    None => (self.sent[at].acked, self.sent[at].at) = (Some(ids), now),
                }
            }
            Err(Fault::Store(Error::Refused(Refusal::IdReused))) => assert!(other, "its own text"),
            Err(Fault::Store(Error::Refused(Refusal::QueueFull))) => {
                if sent.acked.is_some() {
                    // A duplicate meets no limit.
                    self.check_forgotten(&sent);
                }
            }
            Err(Fault::Store(Error::Refused(r))) => panic!("refused: {r}"),
            // It may or may not have been kept.
            Err(_) => {}
        }
    }

    /// The id of an acknowledged message was not known any more: it was old enough, and what became of it is over.
    fn check_forgotten(&self, sent: &Sent) {
        assert!(self.config.retention.ids.is_some(), "an id that was acknowledged is a duplicate: {sent:?}");
        assert!(sent.at <= self.clock.ms() - AGE_MS, "an id is forgotten too early: {sent:?}");
        let (turn, _) = sent.acked.as_ref().expect("acknowledged");
        let chain = "WITH RECURSIVE chain(tid) AS (SELECT tid FROM turns WHERE id=?1 UNION
               SELECT c.continued_by FROM chain JOIN turns c ON c.tid=chain.tid WHERE c.continued_by IS NOT NULL)
             SELECT 1 FROM chain JOIN turns c ON c.tid=chain.tid JOIN sessions s ON s.sid=c.sid
             WHERE c.state IN ('queued', 'running') OR s.cut_turn=c.tid";
        let goes_on = self.witness.conn().prepare_cached(chain).unwrap().exists([turn]).unwrap();
        assert!(!goes_on, "an id is forgotten, and its message is not over: {sent:?}");
    }

    /// An operator has what was set aside delivered again.
    pub(super) fn retry_events(&mut self) {
        self.note_deliveries("d.state='failed'", |seen| &mut seen.again);
        let ctx = self.process.as_ref().expect("a process").ctx.clone();
        let _ = Service::new(ctx, self.p().delivery.clone()).retry_event("all");
    }

    pub(super) fn people(&mut self) {
        let key = *self.dice.pick(&KEYS);
        let target = Target::Key(key.to_owned());
        let ctx = self.process.as_ref().expect("a process").ctx.clone();
        let agent = ctx.agent_of(key);
        let store = &ctx.store;
        let acted = match self.dice.below(14) {
            0..4 => store.cancel(target, false),
            4..6 => store.cancel(target, true),
            6..8 => store.reset(target, agent, By::User),
            8 => store.delete(target, false, By::User),
            9 if self.dice.chance(30) => store.delete(target, true, By::User),
            9..12 => store.suspend(target, agent, By::Operator),
            _ => store.resume(target, By::Operator),
        };
        match acted {
            Ok(acted) => ctx.catch_up(&acted),
            Err(Error::Refused(r)) => assert!(matches!(r, Refusal::SessionNotFound | Refusal::NotCurrent), "{r}"),
            Err(_) => {}
        }
    }
}
