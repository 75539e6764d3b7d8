//! People and programs: messages, and what is done to sessions.

use ostler::model::event::Actor as By;
use ostler::service::intake::{Message as Incoming, Origin};
use ostler::service::{Fault, Service};
use ostler::store::{Refusal, Target};

use super::*;

impl Sim {
    pub(super) fn send(&mut self) {
        let again = !self.sent.is_empty() && self.dice.chance(30);
        let at = if again {
            let n = self.sent.len() as u64;
            self.dice.below(n) as usize
        } else {
            let key = *self.dice.pick(&KEYS);
            let n = self.sent.len();
            let id = self.dice.chance(70).then(|| format!("id{n}"));
            self.sent.push(Sent { key, text: format!("<m{n}>"), id, acked: None });
            n
        };
        if again && self.sent[at].id.is_none() {
            return;
        }
        let sent = self.sent[at].clone();
        let ctx = self.process.as_ref().expect("a process").ctx.clone();
        let service = Service::new(ctx, self.p().delivery.clone());
        let message = Incoming { key: sent.key.into(), text: sent.text.clone(), id: sent.id.clone(), session_id: None };
        match service.accept(message, &Origin::Script) {
            Ok(a) => {
                let ids = (a.turn_id.clone(), a.message_id.clone());
                if let Some(before) = &sent.acked {
                    assert!(a.duplicate, "an id that was acknowledged is a duplicate");
                    assert_eq!(before, &ids, "the same turn and message");
                }
                self.sent[at].acked = Some(ids);
            }
            Err(Fault::Store(Error::Refused(Refusal::QueueFull))) => {
                assert!(sent.acked.is_none(), "a duplicate meets no limit")
            }
            Err(Fault::Store(Error::Refused(r))) => panic!("refused: {r}"),
            // It may or may not have been kept.
            Err(_) => {}
        }
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
