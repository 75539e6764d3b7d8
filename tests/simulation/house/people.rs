//! People and programs: messages, and what is done to sessions.

use super::*;

impl House {
    pub(super) fn policy(&self) -> Policy {
        Policy { resume_window: self.config.window, idle_reset: self.config.idle_reset, daily_boundary: None }
    }

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
        self.send_one(at);
    }

    pub(super) fn send_one(&mut self, at: usize) {
        let sent = self.sent[at].clone();
        let other = sent.acked.is_some() && self.dice.chance(10);
        let text = if other { "other".to_owned() } else { sent.text.clone() };
        let accept = Accept {
            key: sent.key.into(),
            text: text.clone(),
            original: text,
            client_id: sent.id.clone(),
            agent: "agent".into(),
            limits: Limits {
                policy: self.policy(),
                busy: self.config.busy,
                queue_limit: self.config.queue_limit,
                queue_total: 10_000,
            },
            session_id: None,
        };
        let ready = self.ready();
        let accepted = match ready {
            None => self.call(|s| s.accept_message(accept)).map(|a| (a, None)),
            Some(ready) => self.call(|s| s.accept_and_begin(accept, ready)),
        };
        match accepted {
            Ok((a, begun)) => {
                assert!(!other, "an id was taken with another text");
                let ids = (a.session_id.clone(), a.turn_id.clone(), a.message_id.clone());
                if let Some(before) = &sent.acked {
                    assert!(a.duplicate, "an id that was acknowledged is a duplicate");
                    assert_eq!((&before.1, &before.2), (&ids.1, &ids.2), "the same turn and message");
                }
                self.sent[at].acked = Some(ids);
                if let Some(retired) = a.retired {
                    self.retire(retired);
                }
                if let Some(tid) = a.interrupt {
                    self.cancel_turn(a.sid, tid);
                }
                match begun {
                    Some(begun) => {
                        assert_eq!((begun.turn.sid, &begun.turn_id), (a.sid, &a.turn_id), "what began is what came");
                        assert_eq!(begun.prompt, sent.text, "and it alone");
                        let mut w = self.daemon.workers.remove(&a.sid).expect("the worker that was ready");
                        self.begun(&mut w, begun);
                        self.daemon.workers.insert(a.sid, w);
                    }
                    None if !a.deferred && !a.over => self.want(a.sid, false),
                    None => {}
                }
            }
            Err(Out::Refused(Refusal::IdReused)) => assert!(other, "its own text"),
            Err(Out::Refused(Refusal::QueueFull)) => assert!(sent.acked.is_none(), "a duplicate meets no limit"),
            Err(Out::Refused(r)) => panic!("refused: {r}"),
            Err(Out::Doubt | Out::Dead) => {
                // The worker that was set aside looks for itself.
                if let Some(w) = ready.and_then(|(sid, _)| self.daemon.workers.get_mut(&sid)) {
                    w.work = true;
                }
            }
        }
    }

    /// One of the workers that rest with nothing to do: row and epoch.
    fn ready(&self) -> Option<(i64, i64)> {
        let rests = |w: &&Worker| {
            matches!(w.at, At::Idle) && !(w.work || w.asked || w.killed) && w.close.is_none() && w.interrupt.is_none()
        };
        let all: Vec<_> = self.daemon.workers.values().filter(rests).map(|w| (w.sid, w.epoch)).collect();
        let any = usize::try_from(self.steps).unwrap_or(0) % all.len().max(1);
        all.get(any).copied().filter(|_| !self.daemon.held_back)
    }

    pub(super) fn people(&mut self) {
        let target = Target::Key((*self.dice.pick(&KEYS)).to_owned());
        let agent = || "agent".to_owned();
        let acted = match self.dice.below(14) {
            0..4 => self.call(|s| s.cancel(target, false)),
            4..6 => self.call(|s| s.cancel(target, true)),
            6..8 => self.call(|s| s.reset(target, agent(), Actor::User)),
            8 => self.call(|s| s.delete(target, false, Actor::User)),
            9 if self.dice.chance(30) => self.call(|s| s.delete(target, true, Actor::User)),
            9..12 => self.call(|s| s.suspend(target, agent(), Actor::Operator)),
            _ => self.call(|s| s.resume(target, Actor::Operator)),
        };
        match acted {
            Ok(acted) => self.catch_up(&acted),
            Err(Out::Refused(r)) => assert!(matches!(r, Refusal::SessionNotFound | Refusal::NotCurrent), "{r}"),
            Err(Out::Doubt | Out::Dead) => {}
        }
    }
}
