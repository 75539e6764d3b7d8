//! One step after the other, and what must hold after each.

use super::*;

impl House {
    /// Whatever happens next.
    pub fn step(&mut self) {
        self.steps += 1;
        if self.dice.chance(2) {
            let when = 1 + self.dice.below(16);
            self.plan.death_in.store(when, Ordering::Relaxed);
        }
        if self.dice.chance(3) {
            let how = 1 + self.dice.below(2) as u8;
            self.plan.commit.store(how, Ordering::Relaxed);
        }
        if self.witness.trace {
            eprintln!("step {} at {}: {:?}", self.steps, self.ms() - T0, self.daemon.workers);
        }
        self.happen();
        self.after();
    }

    pub(super) fn happen(&mut self) {
        let stopping = self.daemon.machine.stop().is_some();
        match self.dice.below(100) {
            0..14 => self.send(),
            14..64 if !self.daemon.workers.is_empty() => {
                let sids: Vec<i64> = self.daemon.workers.keys().copied().collect();
                let sid = *self.dice.pick(&sids);
                self.work(sid);
            }
            14..64 if stopping => self.stop_goes_on(),
            64..68 => self.people(),
            68..74 => self.deliver(),
            74..80 => {
                let most = if stopping { 8000 } else { *self.dice.pick(&[5000, 5000, 5000, 60_000, 8_000_000]) };
                let ms = 1 + self.dice.below(most) as i64;
                self.pass(ms);
            }
            80..82 => {
                let reason = *self.dice.pick(StopReason::ALL);
                let again = self.daemon.machine.stop().map_or(Urgency::Graceful, |s| s.urgency.raised());
                let urgency = if self.dice.chance(70) { again } else { *self.dice.pick(Urgency::ALL) };
                if !stopping || self.dice.chance(50) {
                    self.life(Event::StopAsked(reason, urgency));
                }
            }
            82..84 if self.dice.chance(20) => self.crash(),
            84..94 if stopping => self.stop_goes_on(),
            94 => self.prune(),
            95 => {
                let _ = self.call(|s| s.retry_failed(None));
            }
            96 if !stopping => {
                let hold = !self.daemon.held_back;
                self.hold(hold);
            }
            97 => {
                let _ = self.call(Store::note_alive);
            }
            _ if !self.daemon.ghosts.is_empty() => self.haunt(),
            _ => {}
        }
    }

    pub(super) fn hold(&mut self, hold: bool) {
        self.daemon.held_back = hold;
        self.store.as_ref().expect("a store").set_admission(if hold { Admission::Held } else { Admission::Open });
        if !hold {
            for w in self.daemon.workers.values_mut() {
                w.work = true;
            }
            self.schedule();
        }
    }

    pub(super) fn prune(&mut self) {
        let age = |dice: &mut Dice| dice.chance(50).then(|| Duration::from_secs(*dice.pick(&[1, 3600])));
        let keep = Retention { ended: None, events: age(&mut self.dice), ids: None, journal: None, reports: 100 };
        let _ = self.call(|s| s.prune(keep));
    }

    /// Hooks return, ends are delivered, the store is closed; or time passes.
    pub(super) fn stop_goes_on(&mut self) {
        match self.daemon.machine.phase() {
            Phase::Closing => self.life(Event::StoreClosed),
            _ if self.daemon.hooks_running && self.dice.chance(50) => {
                self.daemon.hooks_running = false;
                self.life(Event::ShutdownHooksEnded);
            }
            Phase::CallingHooks if self.daemon.stopped_running && self.dice.chance(70) => {
                self.daemon.stopped_running = false;
                self.life(Event::StoppedHooksEnded);
            }
            Phase::CallingHooks if self.daemon.draining => {
                if self.dice.chance(50) {
                    self.deliver();
                } else {
                    self.life(Event::EndsDelivered);
                }
            }
            _ => {
                let ms = 1 + self.dice.below(10_000) as i64;
                self.pass(ms);
            }
        }
    }

    /// What a commit in doubt did after all is looked for.
    fn look_for_overlooked(&mut self) {
        self.daemon.doubt = false;
        let live: Vec<i64> = self.daemon.workers.keys().copied().collect();
        let Ok(overlooked) = self.call(|s| s.overlooked(&live)) else { return };
        for sid in overlooked.gone {
            self.retire(sid);
        }
        for (sid, tid) in overlooked.cancelled {
            self.cancel_turn(sid, tid);
        }
        self.schedule();
    }

    /// What follows each step, and what must hold after it.
    pub(super) fn after(&mut self) {
        if !self.dead {
            self.look_stopping();
        }
        if !self.dead {
            if let Some((sid, since)) = self.daemon.alone
                && since + ALONE_MS <= self.ms()
            {
                self.daemon.alone = None;
                if self.call(|s| s.end_probation(sid)).is_ok() {
                    self.alone_over(sid);
                }
            }
            if self.daemon.doubt && self.daemon.machine.phase() == Phase::Running && !self.dead {
                self.look_for_overlooked();
            }
            self.seat();
        }
        if self.dead || self.daemon.left {
            // Nobody is left to answer; the next process comes.
            self.boot();
        }
        self.check();
    }

    pub(super) fn check(&mut self) {
        if self.daemon.store_closed {
            return;
        }
        self.witness.check();
        if self.config.threshold > 0 {
            self.witness.check_alone(alone_at(self.config.threshold), ALONE_MS);
        }
        if self.daemon.machine.stop().is_some() && self.daemon.marked {
            self.witness.check_marked();
        }
    }
}
