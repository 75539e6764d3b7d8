//! The delivery of the journal.

use super::*;

impl House {
    /// Deliveries that handlers may have seen, for all that the next boot can know.
    pub(super) fn doubt_deliveries(&mut self) {
        let conn = self.witness.conn();
        let mut statement = conn.prepare_cached("SELECT did FROM deliveries WHERE state='pending'").unwrap();
        self.maybe_seen.extend(statement.query_map([], |r| r.get::<_, i64>(0)).unwrap().map(Result::unwrap));
    }

    /// The delivery thread hands one event over, or notes what came of one.
    pub(super) fn deliver(&mut self) {
        if self.daemon.halted {
            return;
        }
        let Ok(mut owed) = self.call(|s| s.pending_deliveries(0, 100)) else { return };
        for o in &owed {
            assert!(!self.settled.contains(&o.did), "settled, and owed again: {o:?}");
        }
        // What is held holds up what is behind it.
        if self.daemon.ends_held {
            let held = |o: &Owed| o.handler.event == HookEvent::SessionEnd;
            let lanes: BTreeSet<_> =
                owed.iter().filter(|o| held(o)).map(|o| (o.handler.name.clone(), o.key.clone())).collect();
            owed.retain(|o| !lanes.contains(&(o.handler.name.clone(), o.key.clone())));
        }
        // The head of each lane.
        let mut heads: BTreeMap<(String, String), Owed> = BTreeMap::new();
        for o in owed {
            heads.entry((o.handler.name.clone() + o.handler.event.as_str(), o.key.clone())).or_insert(o);
        }
        let heads: Vec<Owed> = heads.into_values().collect();
        if heads.is_empty() {
            return;
        }
        let o = self.dice.pick(&heads).clone();
        self.hand_over(&o);
    }

    pub(super) fn hand_over(&mut self, o: &Owed) {
        assert!(
            o.handler.event != HookEvent::SessionEnd || !self.daemon.hooks_running || self.daemon.shutdown_over,
            "an end is delivered beside the `shutdown` handlers: {o:?}"
        );
        let held = self.daemon.deliveries.get(&o.did).cloned();
        let (noted, next) = (o.is_noted_first(), o.next_attempt());
        let mut held = held.unwrap_or(Held { attempts: o.attempts, settled: None });
        if held.settled.is_none() {
            let kept = !noted || self.later(|s, done| s.note_attempt(o.did, next, done)).is_ok();
            if !kept || noted && !self.quiet && self.dice.chance(10) {
                // Its lane is full, or a stop comes first, or nobody knows whether that was kept: the call is not made.
                if self.later(|s, done| s.take_back_attempt(o.did, o.attempts, o.uncalled, done)).is_err() {
                    self.maybe_seen.insert(o.did);
                }
                return;
            }
            held.attempts = next;
            let last = self.attempts.insert(o.did, held.attempts).unwrap_or(0);
            assert!(held.attempts > last, "a call again is a higher attempt: {last}, then {}", held.attempts);
            assert!(held.attempts == 1 || last > 0 || self.maybe_seen.contains(&o.did), "redelivered, and never seen");
            if !self.quiet && self.dice.chance(10) {
                // It dies in the handler, or the handler takes its time.
                self.daemon.deliveries.insert(o.did, held.clone());
                if self.dice.chance(50) {
                    self.crash();
                } else {
                    self.daemon.deliveries.remove(&o.did);
                    self.settle(o, &mut Held { settled: Some(Settled::Retry("slow".into(), 0)), ..held });
                }
                return;
            }
            held.settled = Some(match self.dice.below(10) {
                _ if self.quiet => Settled::Delivered,
                0..7 => Settled::Delivered,
                _ if held.attempts >= ATTEMPTS => Settled::SetAside("why".into()),
                _ => Settled::Retry("why".into(), 0),
            });
        }
        self.settle(o, &mut held);
    }

    pub(super) fn settle(&mut self, o: &Owed, held: &mut Held) {
        let Some(settled) = held.settled.clone() else { return };
        let (did, counted) = (o.did, o.is_noted_first());
        let word = settled.clone();
        match self.later(|s, done| s.settle_delivery(did, word, counted, done)) {
            Ok(()) => {
                self.daemon.deliveries.remove(&did);
                if matches!(settled, Settled::Delivered) {
                    self.settled.insert(did);
                }
            }
            Err(Out::Doubt) => {
                self.daemon.deliveries.insert(did, held.clone());
            }
            Err(_) => {}
        }
    }

    /// A call whose outcome is told to a callback.
    pub(super) fn later(&mut self, f: impl FnOnce(&Store, Box<dyn FnOnce(Result<(), Error>) + Send>)) -> Res<()> {
        let told = Arc::new(Mutex::new(None));
        let sink = told.clone();
        self.call(move |s| {
            f(s, Box::new(move |r| *sink.lock().unwrap() = Some(r)));
            Ok(())
        })?;
        let told = told.lock().unwrap().take();
        match told.expect("the writer answers") {
            Ok(()) => Ok(()),
            Err(Error::Refused(r)) => Err(Out::Refused(r)),
            Err(_) => {
                self.daemon.doubt = true;
                self.daemon.doubted = true;
                Err(Out::Doubt)
            }
        }
    }
}
