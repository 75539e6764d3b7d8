//! The coordinator: who gets a worker, and the stop, with the real machine.

use super::*;

impl House {
    pub(super) fn schedule(&mut self) {
        // By the store's time, as the daemon reckons: the wall clock may be behind.
        let now = self.store.as_ref().expect("a store").now();
        let since = self.config.window.map_or(0, |w| now - w.as_millis() as i64);
        let marked = (self.config.resume == Resume::Auto).then_some(since);
        let Ok(page) = self.call(|s| s.wanted(0, 1000, marked)) else { return };
        for w in page {
            let asked = marked.is_some();
            if w.queued {
                self.want(w.sid, asked);
            } else if !self.daemon.continuations.contains(&w.sid) {
                self.daemon.continuations.push_back(w.sid);
            }
        }
    }

    pub(super) fn want(&mut self, sid: i64, asked: bool) {
        if let Some(w) = self.daemon.workers.get_mut(&sid)
            && !matches!(w.at, At::Shutting(_))
        {
            w.work = true;
            w.asked |= asked;
        } else if !self.daemon.closed {
            *self.daemon.wishes.entry(sid).or_default() |= asked;
        }
    }

    /// Gives workers to sessions that want one.
    pub(super) fn seat(&mut self) {
        let d = &mut self.daemon;
        if d.machine.phase() != Phase::Running {
            return;
        }
        if let Some(sid) = d.continuations.pop_front() {
            self.want(sid, true);
        }
        let d = &mut self.daemon;
        let wishes: Vec<(i64, bool)> = d.wishes.iter().map(|(s, a)| (*s, *a)).collect();
        for (sid, asked) in wishes {
            if let Some(w) = d.workers.get_mut(&sid) {
                if !matches!(w.at, At::Shutting(_)) {
                    d.wishes.remove(&sid);
                    w.work = true;
                    w.asked |= asked;
                }
                continue;
            }
            if d.workers.len() >= self.config.max_live {
                let idle = d.workers.values_mut().find(|w| matches!(w.at, At::Idle) && !w.work && w.close.is_none());
                if let Some(w) = idle {
                    w.close = Some(Close::Park);
                }
                return;
            }
            d.wishes.remove(&sid);
            d.workers.insert(
                sid,
                Worker {
                    sid,
                    epoch: 0,
                    at: At::Opening,
                    work: true,
                    asked,
                    close: None,
                    interrupt: None,
                    killed: false,
                    doubt: false,
                },
            );
        }
    }

    pub(super) fn retire(&mut self, sid: i64) {
        self.daemon.wishes.remove(&sid);
        if let Some(w) = self.daemon.workers.get_mut(&sid) {
            w.close = Some(Close::Retire);
            w.interrupt = Some(Why::Retired);
        }
    }

    pub(super) fn catch_up(&mut self, acted: &Acted) {
        for sid in &acted.retired {
            self.retire(*sid);
        }
        for (sid, tid) in &acted.cancel {
            self.cancel_turn(*sid, *tid);
        }
        for sid in &acted.wake {
            self.want(*sid, acted.auto_continue);
        }
    }

    pub(super) fn cancel_turn(&mut self, sid: i64, tid: i64) {
        // A worker that has gone on to another turn, or to none, is not concerned.
        let concerned = |w: &&mut Worker| matches!(&w.at, At::Running(run) if run.turn.tid == tid);
        if let Some(w) = self.daemon.workers.get_mut(&sid).filter(concerned) {
            w.interrupt.get_or_insert(Why::Cancelled);
        }
    }

    /// What the coordinator does whenever it wakes in a stop.
    pub(super) fn look_stopping(&mut self) {
        let phase = self.daemon.machine.phase();
        if !matches!(phase, Phase::Draining | Phase::Interrupting | Phase::Sweeping) || self.dead {
            return;
        }
        let delivering = !self.quiet && self.dice.chance(20);
        let running = self.daemon.workers.values().any(|w| matches!(w.at, At::Running(_)));
        if self.daemon.workers.is_empty() && (!delivering || phase != Phase::Draining) {
            self.life(Event::WorkersGone);
        } else if !running && !delivering && phase != Phase::Sweeping {
            self.life(Event::TurnsEnded);
        }
    }

    pub(super) fn life(&mut self, event: Event) {
        if self.dead {
            return;
        }
        if matches!(event, Event::StopAsked(..)) && self.daemon.machine.stop().is_none() {
            self.began = Some(self.ms());
        }
        let actions = self.daemon.machine.step(event, self.instant());
        for action in actions {
            if self.dead {
                return;
            }
            self.perform(action);
        }
        let stopping = self.daemon.machine.stop().is_some();
        assert_eq!(
            stopping && self.daemon.machine.phase() != Phase::Ended,
            self.daemon.machine.alarm().is_some(),
            "a stop always has an alarm"
        );
    }

    pub(super) fn perform(&mut self, action: Action) {
        assert!(!self.daemon.left, "after Leave: {action:?}");
        let stop = self.daemon.machine.stop().expect("an action is a stop's");
        match action {
            Action::CloseAdmission => self.store.as_ref().expect("a store").set_admission(Admission::Stopping),
            Action::MarkRunning => {
                let note = StopNote { reason: stop.reason, urgency: stop.urgency, deadline_at: self.ms() + 60_000 };
                let kept = self.call(|s| s.mark_running(note)).is_ok();
                self.witness.marked(kept);
                self.daemon.marked |= kept;
            }
            Action::TellManager => {}
            Action::HoldEnds => self.daemon.ends_held = true,
            Action::ReleaseEnds => {
                self.daemon.ends_held = false;
                // Whatever comes of them, they are not waited for any more.
                self.daemon.shutdown_over = true;
            }
            Action::CallShutdownHooks(_) => self.daemon.hooks_running = true,
            Action::CloseWorkers => {
                self.daemon.closed = true;
                self.daemon.wishes.clear();
                for w in self.daemon.workers.values_mut() {
                    w.close = if w.close > Some(Close::Stop) { w.close } else { Some(Close::Stop) };
                }
            }
            Action::RefreshMarks => {
                let kept = self.call(|s| s.refresh_marks(stop.reason.mark())).is_ok();
                self.witness.marked(kept);
                self.daemon.marked |= kept;
            }
            Action::Interrupt(_) => {
                for w in self.daemon.workers.values_mut().filter(|w| matches!(w.at, At::Running(_))) {
                    w.interrupt.get_or_insert(Why::Stop);
                }
            }
            Action::Kill => {
                for w in self.daemon.workers.values_mut() {
                    w.killed = true;
                    w.interrupt.get_or_insert(Why::Stop);
                }
            }
            Action::Abandon => {
                let workers = std::mem::take(&mut self.daemon.workers);
                self.daemon.ghosts.extend(workers.into_values());
            }
            Action::NoteAbandoned => {
                let sids: Vec<i64> = self.daemon.ghosts.iter().map(|w| w.sid).collect();
                let _ = self.call(|s| s.note_abandoned(sids));
            }
            Action::Sweep(_) => {}
            Action::CloseActivations => {
                let threshold = self.config.threshold;
                if self.call(|s| s.close_activations(stop.reason, threshold)).is_ok() {
                    assert_eq!(self.witness.number("SELECT count(*) FROM activations WHERE closed_at IS NULL"), 0);
                }
            }
            Action::DeliverEnds(_) => self.daemon.draining = true,
            Action::CallStopped(_) => {
                self.daemon.halted = true;
                self.daemon.stopped_running = true;
            }
            Action::CloseStore(_) => {
                self.daemon.halted = true;
                let called: Vec<i64> = self.daemon.deliveries.keys().copied().collect();
                self.daemon.told_uncalled = self.later(|s, done| s.note_uncalled(called, done)).is_ok();
                let closed = self.call(|s| s.close_boot(true, serde_json::json!({}), 100)).is_ok();
                if !self.dead {
                    let until = Instant::now() + Duration::from_secs(30);
                    self.call(|s| s.close(until)).expect("the store closes");
                    self.daemon.store_closed =
                        closed && self.witness.number("SELECT count(*) FROM activations WHERE closed_at IS NULL") == 0;
                }
            }
            Action::Leave => {
                self.daemon.left = true;
                let took = self.ms() - self.began.expect("a stop began");
                assert!(took <= 59_000, "the stop took {took} ms");
            }
        }
    }
}
