//! Workers and their agents.

use super::*;

/// The count at which a session is one death short of suspension; 0: never.
pub(super) const fn alone_at(threshold: i64) -> i64 {
    match threshold {
        0 => 0,
        1 => 1,
        more => more - 1,
    }
}

impl House {
    pub(super) fn work(&mut self, sid: i64) {
        let Some(mut w) = self.daemon.workers.remove(&sid) else { return };
        let stays = self.act(&mut w);
        if self.dead || stays {
            self.daemon.workers.insert(sid, w);
            return;
        }
        self.alone_over(sid);
        // What it was given and did not do is for the session's next worker.
        let opened = !matches!(w.at, At::Opening);
        if opened && w.close != Some(Close::Stop) && (w.work || w.asked) {
            self.want(sid, w.asked);
        }
    }

    /// One act of a worker. Whether it stays.
    pub(super) fn act(&mut self, w: &mut Worker) -> bool {
        match w.at.clone() {
            At::Opening => self.act_opening(w),
            At::Idle => self.act_idle(w),
            At::Running(run) => self.act_running(w, *run),
            At::Shutting(why) => {
                if why == Close::Stop {
                    return false;
                }
                // One that was told to go before it opened has an activation of its own to close; else it is closed already.
                let (sid, epoch) = (w.sid, w.epoch);
                match self.call(|s| s.close_activation(sid, epoch, EndReason::Parked, Actor::Policy)) {
                    Ok(_) | Err(Out::Refused(_)) => false,
                    Err(Out::Doubt) => w.close != Some(Close::Stop),
                    Err(Out::Dead) => true,
                }
            }
        }
    }

    pub(super) fn act_opening(&mut self, w: &mut Worker) -> bool {
        let (sid, again) = (w.sid, w.doubt);
        let opened = self.call(|s| match s.open_activation(sid, "agent".into(), "/w".into()) {
            Err(Error::Refused(Refusal::Stale)) if again => s.reopen_activation(sid),
            other => other,
        });
        match opened {
            Ok(opened) => {
                w.epoch = opened.epoch;
                w.at = At::Idle;
                true
            }
            Err(Out::Refused(_)) => false,
            Err(Out::Doubt) => {
                w.doubt = true;
                w.close.is_none()
            }
            Err(Out::Dead) => true,
        }
    }

    pub(super) fn act_idle(&mut self, w: &mut Worker) -> bool {
        if let Some(close) = w.close {
            w.at = At::Shutting(close);
            return true;
        }
        if w.killed {
            return false;
        }
        if !(w.work || w.asked) {
            if !self.quiet && self.dice.chance(15) {
                w.close = Some(Close::Park);
            }
            return true;
        }
        if self.daemon.held_back {
            return true;
        }
        let (sid, epoch, asked) = (w.sid, w.epoch, w.asked);
        if !self.quiet && self.dice.chance(5) {
            w.asked = false;
            match self.call(|s| s.fail_queued(sid, epoch, "agent_start".into(), "cannot".into())) {
                Ok(more) => {
                    w.work = more;
                }
                Err(Out::Refused(_)) => return false,
                Err(Out::Doubt | Out::Dead) => w.work = true,
            }
            return true;
        }
        w.work = false;
        let c = self.config;
        let begin = Begin {
            sid,
            epoch,
            on_interrupt: c.on_interrupt,
            resume: c.resume,
            policy: self.policy(),
            auto_continue: asked,
            context: None,
            fresh_id: uuid::Uuid::now_v7().to_string(),
            probation_at: alone_at(c.threshold),
        };
        match self.call(|s| s.begin_turn(begin)) {
            Ok(Some(begun)) => {
                w.asked = false;
                self.begun(w, begun);
                true
            }
            Ok(None) => {
                w.asked = false;
                true
            }
            Err(Out::Refused(Refusal::Closed)) => true,
            Err(Out::Refused(Refusal::OnProbation)) => {
                w.work = self.daemon.apart.insert(sid);
                true
            }
            Err(Out::Refused(_)) => {
                w.work = true;
                false
            }
            Err(Out::Doubt | Out::Dead) => {
                // If it did begin, and this worker must go before it hears of it, the next one goes on with it.
                w.work = true;
                w.asked = true;
                true
            }
        }
    }

    pub(super) fn begun(&mut self, w: &mut Worker, begun: Begun) {
        assert!(!begun.prompt.is_empty(), "an agent is asked something");
        if begun.on_probation {
            self.daemon.alone = Some((w.sid, self.ms()));
        }
        self.prompts.insert(begun.turn_id.clone(), begun.prompt);
        self.said.insert(begun.turn_id.clone(), (String::new(), 0));
        w.at = At::Running(Box::new(Run {
            turn: begun.turn,
            id: begun.turn_id,
            unkept: Outbox::default(),
            said: String::new(),
            kept: 0,
            ending: None,
        }));
    }

    pub(super) fn act_running(&mut self, w: &mut Worker, mut run: Run) -> bool {
        if !self.quiet && run.ending.is_none() && self.dice.chance(2) {
            // The worker panics.
            let sid = w.sid;
            return match self.call(|s| s.worker_died(sid, false)) {
                Ok(()) => {
                    // What still waits in the session is for its next worker.
                    self.daemon.wishes.insert(sid, w.asked);
                    false
                }
                // Whether that was kept is found out by the next boot.
                Err(Out::Doubt) => {
                    self.crash();
                    true
                }
                Err(Out::Dead) => true,
                Err(Out::Refused(r)) => panic!("{r}"),
            };
        }
        if run.ending.is_none() {
            let outcome = match w.interrupt {
                Some(_) if w.killed || self.quiet || self.dice.chance(50) => Some(match w.interrupt {
                    _ if self.dice.chance(10) => Outcome::Completed,
                    Some(Why::Stop) => Outcome::Interrupted,
                    _ => Outcome::Cancelled,
                }),
                Some(_) => None,
                None if self.quiet => Some(Outcome::Completed),
                None => match self.dice.below(100) {
                    0..25 => Some(Outcome::Completed),
                    25..30 => Some(Outcome::Failed),
                    _ => None,
                },
            };
            match outcome {
                Some(outcome) => run.ending = Some((outcome, run.unkept.send())),
                None => return self.speak(w, run),
            }
        }
        self.finish(w, run)
    }

    /// The agent says something, or hangs.
    pub(super) fn speak(&mut self, w: &mut Worker, mut run: Run) -> bool {
        if self.dice.chance(30) {
            w.at = At::Running(Box::new(run));
            return true;
        }
        if self.dice.chance(80) {
            let piece = format!("{} ", self.dice.below(1000));
            run.said.push_str(&piece);
            run.unkept.push(Item::Text(piece));
            if self.dice.chance(30) {
                run.unkept.push(Item::Tool {
                    id: format!("t{}", self.dice.below(3)),
                    title: "tool".into(),
                    kind: "other".into(),
                    status: (*self.dice.pick(&["pending", "completed"])).to_owned(),
                    detail: serde_json::Value::Null,
                });
            }
        }
        self.flush(w, &mut run);
        w.at = At::Running(Box::new(run));
        true
    }

    /// Sends what is not known to be kept.
    pub(super) fn flush(&mut self, w: &mut Worker, run: &mut Run) {
        if run.unkept.is_empty() {
            return;
        }
        let (turn, batches) = (run.turn, run.unkept.send());
        self.said.insert(run.id.clone(), (run.said.clone(), run.kept));
        match self.call(|s| s.append(turn, batches)) {
            Ok(()) => {
                run.unkept.kept();
                run.kept = run.said.len();
                self.said.insert(run.id.clone(), (run.said.clone(), run.kept));
            }
            Err(Out::Refused(_)) => {
                assert!(w.close == Some(Close::Retire) || self.daemon.doubted, "a current worker is refused: {w:?}");
                w.interrupt = Some(Why::Retired);
                w.killed = true;
                run.unkept.forget();
            }
            Err(Out::Doubt | Out::Dead) => {}
        }
    }

    pub(super) fn finish(&mut self, w: &mut Worker, run: Run) -> bool {
        let Some((outcome, batches)) = run.ending.clone() else { return true };
        let turn = run.turn;
        let mark = match self.daemon.machine.stop().map(|s| s.reason) {
            Some(StopReason::Restart) => MarkReason::RestartTimeout,
            _ => MarkReason::ShutdownTimeout,
        };
        match self.call(|s| s.finish_turn(turn, batches, outcome, None, mark)) {
            Ok(ended) => {
                self.said.insert(run.id.clone(), (run.said.clone(), run.said.len()));
                w.work |= ended.more;
            }
            Err(Out::Refused(_)) => {
                let sid = w.sid;
                w.work |= matches!(self.call(|s| s.peek_turn(sid)), Ok(Some(_)));
            }
            Err(Out::Doubt) => {
                w.at = At::Running(Box::new(run));
                return !w.killed;
            }
            Err(Out::Dead) => {
                w.at = At::Running(Box::new(run));
                return true;
            }
        }
        w.at = At::Idle;
        w.interrupt = None;
        self.alone_over(w.sid);
        true
    }

    pub(super) fn alone_over(&mut self, sid: i64) {
        if self.daemon.alone.is_some_and(|(who, _)| who == sid) {
            self.daemon.alone = None;
        }
        for sid in std::mem::take(&mut self.daemon.apart) {
            if let Some(w) = self.daemon.workers.get_mut(&sid) {
                w.work = true;
            }
        }
    }

    /// A worker that was given up tries to write. It must change nothing.
    pub(super) fn haunt(&mut self) {
        let n = self.daemon.ghosts.len() as u64;
        let at = self.dice.below(n) as usize;
        let ghost = self.daemon.ghosts[at].clone();
        let At::Running(run) = ghost.at else { return };
        // Only once the stop closed what it had: before that it may still speak for the current turn.
        let closed = self.witness.number(&format!(
            "SELECT count(*) FROM turns WHERE tid={} AND state='running' AND epoch={}",
            run.turn.tid, run.turn.epoch
        )) == 0;
        if !closed {
            return;
        }
        let events = self.witness.events;
        let turn = run.turn;
        let wrote = self.call(|s| s.append(turn, vec![Batch { number: 1000, items: vec![Item::Text("late".into())] }]));
        assert!(!matches!(wrote, Ok(())), "a ghost wrote");
        let ended = self.call(|s| s.finish_turn(turn, Vec::new(), Outcome::Completed, None, MarkReason::Crash));
        assert!(ended.is_err(), "a ghost ended a turn");
        assert_eq!(events, self.witness.events);
    }
}
