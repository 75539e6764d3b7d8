//! One step after the other, and what must hold after each.

use ostler::service::Service;
use ostler::store::Target;

use super::*;

impl Sim {
    /// Whatever happens next.
    pub fn step(&mut self) {
        self.steps += 1;
        if self.dice.chance(if self.outlives { 4 } else { 2 }) {
            let when = 1 + self.dice.below(16);
            self.faults.death_in.store(when, Ordering::Relaxed);
        }
        if self.dice.chance(3) {
            let how = 1 + self.dice.below(3) as u8;
            self.faults.commit.store(how, Ordering::Relaxed);
        }
        if self.dice.chance(6) {
            // For some steps, or not any more.
            let full = self.dice.chance(30);
            self.p().machine.full.store(full, Ordering::Relaxed);
        }
        if self.witness.trace {
            let p = self.process.as_ref().unwrap();
            let threads: Vec<_> = p.threads.iter().map(|t| (t.sid, &t.key, t.worker.state())).collect();
            eprintln!("step {} at {} {}: {threads:?}", self.steps, self.clock.ms() - T0, p.ctx.board().phase);
        }
        self.guarded(Self::happen);
        self.after();
    }

    fn happen(&mut self) {
        // Answers are handed over while a stop waits for that.
        if self.p().ctx.board().phase == "draining" && self.dice.chance(10) {
            return self.hand_over();
        }
        let die = self.dice.below(100);
        match if self.outlives && matches!(die, 55..58 | 83..90) && self.dice.chance(60) { 50 } else { die } {
            0..10 => self.send(),
            55..58 => self.people(),
            58..68 => {
                self.come_back();
            }
            68..80 => self.pass(),
            80..82 => self.ask_stop(),
            82 if self.dice.chance(30) => self.faults.dead.store(true, Ordering::Relaxed),
            83..86 => self.ask_reload(),
            86 => self.request(Request::Prune),
            87 => {
                let hold = self.dice.chance(30);
                self.request(Request::Hold(hold));
            }
            88..90 => self.hand_over(),
            90 => self.sweep(),
            91..93 => self.answer(),
            93 => self.clock.behind.store(0, Ordering::Relaxed),
            94 if self.dice.chance(10) => self.clock.behind.store(60_000, Ordering::Relaxed),
            95 => self.hang(),
            96 if self.dice.chance(30) => self.retry_events(),
            97 if self.dice.chance(40) => self.outside.world().surprise(),
            98..100 => {
                self.outside.world().act();
            }
            _ => {
                self.go_on();
            }
        }
    }

    /// A worker does not come back from what it does, or does at last.
    fn hang(&mut self) {
        let threads = self.p().threads.len() as u64;
        if threads > 0 {
            let nth = self.dice.below(threads) as usize;
            let thread = &mut self.p().threads[nth];
            thread.hangs = !thread.hangs;
        }
    }

    /// Something that can go on does. `false`: nothing can, before time passes.
    pub(super) fn go_on(&mut self) -> bool {
        let now = self.clock.now();
        let p = self.process.as_ref().expect("a process");
        let due = p.coordinator.next_due().is_some_and(|at| at <= now);
        let told = !p.nudges.is_empty() || !p.doubts.is_empty() || !p.requests.1.is_empty();
        let mut able: Vec<usize> = Vec::new();
        able.extend((due || told || p.coordinator.has_outcomes()).then_some(0));
        able.extend((!p.machine.jobs.lock().unwrap().is_empty()).then_some(1));
        let pumps = !p.pump.has_ended() && (!p.inbox.is_empty() || p.pump_due.is_some_and(|at| at <= now));
        able.extend(pumps.then_some(2));
        able.extend((!p.starting.lock().unwrap().is_empty()).then_some(3));
        able.extend(p.ctx.store.has_gathered().then_some(4));
        let runs = |t: &Thread| match t.next {
            _ if t.hangs => false,
            Next::Again => true,
            Next::Wait { until, .. } => t.mailbox.has_letters() || until.is_some_and(|at| at <= now),
            Next::Gone => false,
        };
        let ready: Vec<usize> = p.threads.iter().enumerate().filter(|(_, t)| runs(t)).map(|(n, _)| n).collect();
        let outside = self.keeps();
        let kept = |t: &Thread| outside && !t.key.starts_with('k');
        let listen = |t: &Thread| !t.hangs && matches!(t.next, Next::Wait { agent: true, .. });
        let listening: Vec<usize> = p.threads.iter().enumerate().filter(|(_, t)| listen(t)).map(|(n, _)| n).collect();
        let (below, listening): (Vec<usize>, Vec<usize>) = listening.into_iter().partition(|n| kept(&p.threads[*n]));
        let news = |n: &usize| self.outside.world().is_readable(p.threads[*n].sid);
        let below: Vec<usize> = below.into_iter().filter(news).collect();
        able.extend(ready.iter().map(|n| 10 + n));
        if able.is_empty() && !p.swept {
            self.sweep();
            return true;
        }
        if able.is_empty() {
            self.check_quiet();
        }
        // An agent says something whenever it likes.
        if able.is_empty() || self.dice.chance(40) {
            let running = |n: &&usize| {
                let p = self.process.as_ref().expect("a process");
                p.threads[**n].worker.state() == ostler::model::worker::State::Running
            };
            let speaking: Vec<usize> = listening.iter().filter(running).chain(&below).copied().collect();
            if self.dice.chance(50) && self.outside.world().act() {
                return true;
            }
            if !speaking.is_empty() {
                let nth = *self.dice.pick(&speaking);
                self.work(nth, Input::Ready);
                return true;
            }
            if !listening.is_empty() && !self.quiet && self.dice.chance(30) {
                let nth = *self.dice.pick(&listening);
                self.work(nth, Input::Ready);
                return true;
            }
        }
        if able.is_empty() {
            return self.outside.world().act();
        }
        match *self.dice.pick(&able) {
            0 => self.coordinate(),
            1 => self.run_job(),
            2 => self.pump(),
            3 => self.start(),
            4 => self.process.as_ref().expect("a process").ctx.store.commit_gathered(),
            nth => {
                let thread = &self.process.as_ref().expect("a process").threads[nth - 10];
                let input = match thread.next {
                    Next::Again => Input::Go,
                    Next::Wait { .. } if thread.mailbox.has_letters() => Input::Letter,
                    Next::Wait { .. } | Next::Gone => Input::Timeout,
                };
                self.work(nth - 10, input);
            }
        }
        true
    }

    fn start(&mut self) {
        let p = self.process.as_mut().expect("a process");
        let new = p.starting.lock().unwrap().remove(0);
        let worker = match new.begins {
            Begins::Anew(agent) => Worker::open(&new.ctx, &new.request, *agent, &new.mailbox),
            Begins::Attaching(pending) => Worker::attach(&new.ctx, &new.request, *pending, &new.mailbox),
        };
        assert!(!p.threads.iter().any(|t| t.sid == new.request.sid), "a session has two workers");
        p.threads.push(Thread {
            sid: new.request.sid,
            key: new.request.key,
            worker,
            mailbox: new.mailbox,
            next: Next::Again,
            ended: Some(new.ended),
            hangs: false,
        });
    }

    fn work(&mut self, nth: usize, input: Input) {
        let thread = &mut self.p().threads[nth];
        // As its thread does it, but that a death goes on.
        thread.next = match catch_unwind(AssertUnwindSafe(|| thread.worker.step(input))) {
            Ok(next) => next,
            Err(payload) if payload.is::<Fault>() => thread.worker.panicked(),
            Err(payload) => resume_unwind(payload),
        };
        if thread.next == Next::Gone {
            let mut thread = self.p().threads.swap_remove(nth);
            if let Some(ended) = thread.ended.take() {
                ended();
            }
        }
    }

    fn run_job(&mut self) {
        let jobs = self.process.as_ref().expect("a process").machine.clone();
        let count = jobs.jobs.lock().unwrap().len() as u64;
        let nth = self.dice.below(count) as usize;
        let (name, job) = jobs.jobs.lock().unwrap().swap_remove(nth);
        if self.witness.trace {
            eprintln!("  job {name}");
        }
        if name == "close" {
            // Who follows reads what is there and returns.
            self.p().reader = None;
        }
        job();
    }

    /// The coordinator handles one event.
    fn coordinate(&mut self) {
        let p = self.process.as_mut().expect("a process");
        let event = if let Ok(request) = p.requests.1.try_recv() {
            Event::Asked(request)
        } else if p.nudges.try_recv().is_ok() {
            Event::Nudged
        } else if p.doubts.try_recv().is_ok() {
            Event::CommitInDoubt
        } else {
            Event::Due
        };
        self.handle(event);
    }

    pub(super) fn handle(&mut self, event: Event) {
        let now = self.clock.now();
        if self.witness.trace {
            eprintln!("  {event:?} at {}", self.clock.ms() - T0);
        }
        let p = self.p();
        if matches!(p.ctx.board().phase, "calling_hooks" | "closing") {
            // Who follows reads what is there and returns: where there is no thread the coordinator waits for that.
            p.reader = None;
        }
        p.coordinator.handle(event);
        // What has passed is taken out of the table: else its loop would spin.
        for round in 0.. {
            let Some(_) = p.coordinator.next_due().filter(|at| *at <= now) else { break };
            assert!(round < 4, "the coordinator spins");
            p.coordinator.handle(Event::Due);
        }
        if p.stop_began.is_none() && p.ctx.board().stop.is_some() {
            let at = self.clock.ms();
            let p = self.p();
            p.stop_began = Some(at);
            p.stops_with = Some(p.ctx.config());
        }
    }

    fn pump(&mut self) {
        let p = self.process.as_mut().expect("a process");
        // As its thread: all that it was told, then what can be done.
        p.uncalled_upto = self.witness.number("SELECT coalesce(max(did), 0) FROM deliveries");
        while let Ok(message) = p.inbox.try_recv() {
            p.pump.take(message);
        }
        p.scripts.heard.store(true, Ordering::Relaxed);
        if !p.pump.has_ended() {
            p.pump_due = p.pump.turn();
            let now = self.clock.now();
            let again = p.pump_due.filter(|at| *at <= now).and_then(|_| p.pump.turn());
            assert!(again.is_none_or(|at| at > now), "delivery spins");
            p.pump_due = p.pump_due.filter(|at| *at > now).or(again);
        }
    }

    /// A handler's call comes back, whichever.
    pub(super) fn come_back(&mut self) -> bool {
        let scripts = self.process.as_ref().expect("a process").scripts.clone();
        let count = scripts.calls.lock().unwrap().len() as u64;
        if count == 0 {
            return false;
        }
        let nth = self.dice.below(count) as usize;
        let call = scripts.calls.lock().unwrap().swap_remove(nth);
        let late = self.process.as_ref().expect("a process").pump.has_ended();
        scripts.come_back(call, &mut self.dice, self.quiet, late);
        true
    }

    /// Time passes: until something is due, or a part of that.
    pub(super) fn pass(&mut self) {
        let p = self.process.as_ref().expect("a process");
        let now = self.clock.now();
        let threads = p.threads.iter().filter(|t| !t.hangs).filter_map(|t| match t.next {
            Next::Wait { until, .. } => until,
            Next::Again | Next::Gone => Some(now),
        });
        let dues = p.coordinator.next_due().into_iter().chain(p.pump_due).chain(threads);
        let next = dues.min();
        // A thread that could run is not left alone for long.
        let starved = !p.machine.jobs.lock().unwrap().is_empty() || !p.starting.lock().unwrap().is_empty();
        let starved = starved || !p.inbox.is_empty() || !p.nudges.is_empty() || p.coordinator.has_outcomes();
        let starved = starved || p.ctx.store.has_gathered();
        let most = if starved { 20 } else { *self.dice.pick(&[200, 3000, 60_000, 2_000_000]) };
        let ms = 1 + self.dice.below(most) as i64;
        let room = next.map_or(i64::MAX, |at| at.saturating_duration_since(now).as_millis() as i64 + 1);
        self.clock.ms.fetch_add(ms.min(room), Ordering::Relaxed);
        self.outside.world().pass();
    }

    fn ask_stop(&mut self) {
        if self.process.as_ref().is_some_and(|p| p.stop_began.is_some()) && self.dice.chance(70) {
            return;
        }
        let signal = *self.dice.pick(&[Signal::Stop, Signal::Restart]);
        if self.dice.chance(50) {
            return self.handle(Event::Signal(signal));
        }
        let (answer, _) = bounded(1);
        let urgency = *self.dice.pick(Urgency::ALL);
        let reason = *self.dice.pick(StopReason::ALL);
        let agents = *self.dice.pick(&[None, Some(Agents::Keep), Some(Agents::End)]);
        self.request(Request::Stop(StopRequest { reason, urgency, agents }, answer));
    }

    pub(super) fn request(&mut self, request: Request) {
        self.p().requests.0.try_send(request).expect("room");
    }

    fn ask_reload(&mut self) {
        if self.dice.chance(20) {
            return self.handle(Event::Signal(Signal::Reload));
        }
        self.write_config();
        let (answer, answered) = bounded(1);
        let value = self.value;
        self.p().reloads.push(Asked { value, answer: answered });
        self.request(Request::Reload(answer));
    }

    /// An answer begins or ends to be handed over.
    fn hand_over(&mut self) {
        let p = self.p();
        if p.handing.pop().is_none() {
            let hub = p.ctx.hub.clone();
            p.handing.push(hub.deliver("local:handed"));
        }
    }

    /// Somebody answers an open permission.
    fn answer(&mut self) {
        let p = self.process.as_ref().expect("a process");
        let (ctx, delivery) = (p.ctx.clone(), p.delivery.clone());
        let service = Service::new(ctx, delivery);
        let open = service.permissions();
        let Some(one) = open.last() else { return };
        let text = |name: &str| one[name].as_str().expect("a text").to_owned();
        let (key, id) = (text("key"), text("request_id"));
        let option = if self.dice.chance(80) { "yes" } else { "no" };
        if service.answer_permission(&Target::Key(key), &id, option).is_ok() {
            self.notes.lock().unwrap().agreed.insert(id, option.to_owned());
        }
    }

    /// What must hold after each step.
    pub(super) fn after(&mut self) {
        if !self.dead() {
            self.witness_reads();
        }
        self.check_gone_on();
        if !self.dead() && self.process.as_ref().is_some_and(|p| p.coordinator.may_leave()) {
            self.check_left();
            self.boot();
        }
        if self.dead() {
            self.boot();
        }
        self.check();
        if self.faults.written.swap(false, Ordering::Relaxed) {
            self.check_tables();
        }
    }

    fn witness_reads(&mut self) {
        for (name, fate) in self.faults.fates() {
            match name {
                "mark_running" | "refresh_marks" if fate != Fate::Lost => {
                    self.witness.marked(fate == Fate::Kept);
                    self.p().marked |= fate == Fate::Kept;
                }
                "close_activations" => {
                    let agents = self.p().coordinator.ending().agents;
                    self.p().closed = (fate == Fate::Kept).then_some(agents);
                }
                "note_uncalled" if fate == Fate::Kept => {
                    self.uncalled_upto = Some(self.p().uncalled_upto);
                    // Where the attempt was noted the stop may have come before the call.
                    self.doubt("d.state='pending' AND d.attempts>0");
                }
                "note_attempt" | "take_back_attempt" | "settle_delivery" if fate != Fate::Kept => {
                    self.doubt("d.state='pending'");
                }
                _ => {}
            }
        }
        self.witness.read();
        self.check_called();
    }

    /// Whom handlers were called for just now: none whose outcome is known to the database.
    fn check_called(&self) {
        let called = std::mem::take(&mut self.seen.lock().unwrap().called);
        for (handler, event) in called {
            let state =
                "SELECT d.state FROM deliveries d JOIN journal j ON j.jid=d.jid WHERE d.name=?1 AND j.event_id=?2";
            let mut statement = self.witness.conn().prepare_cached(state).unwrap();
            let state: String = statement.query_row([&handler, &event], |r| r.get(0)).unwrap();
            assert_eq!(state, "pending", "{handler} is called for {event}, which is settled");
        }
    }

    /// What must hold whenever something was written.
    fn check_tables(&mut self) {
        self.witness.check(false);
        let threshold = i64::from(self.config.sessions.stuck_threshold);
        if threshold > 0 {
            let before = self.process.as_ref().map_or(0, |p| p.first);
            self.witness.check_alone((threshold - 1).max(1), 10_000, before);
        }
        let p = self.process.as_mut().expect("a process");
        if p.marked {
            self.witness.check_marked();
        }
        self.check_named();
        let p = self.process.as_mut().expect("a process");
        // A shutdown that comes into a restart closes the others later.
        if let Some(agents) = p.closed {
            let open = if agents == Agents::Keep {
                "SELECT count(*) FROM activations WHERE closed_at IS NULL AND sid NOT IN (SELECT sid FROM kept)"
            } else {
                "SELECT count(*) FROM activations WHERE closed_at IS NULL"
            };
            let open = self.witness.number(open);
            assert_eq!(open, 0, "a stop has closed all, and something is open");
        }
    }

    fn check(&mut self) {
        let p = self.process.as_mut().expect("a process");
        // Who listens and keeps up reads each row once, in order.
        if let Some(reader) = &p.reader {
            let news = reader.wait(p.read, Instant::now());
            p.read = p.read.max(news.missed);
            for row in news.rows {
                assert!(row.seq > p.read, "a listener is told of {} after {}", row.seq, p.read);
                p.read = row.seq;
            }
        }
        if let Some(config) = &p.stops_with {
            assert!(Arc::ptr_eq(config, &p.ctx.config()), "a reload comes into force in a stop");
        }
        let in_force = p.ctx.config().retention.reports as usize;
        p.reloads.retain(|asked| match asked.answer.try_recv() {
            Ok(Ok(_)) => {
                assert!(in_force >= asked.value, "a reload is answered by an older file: {in_force} < {}", asked.value);
                false
            }
            Ok(Err(_)) => false,
            Err(crossbeam_channel::TryRecvError::Empty) => true,
            Err(crossbeam_channel::TryRecvError::Disconnected) => panic!("a reload is never answered"),
        });
    }

    /// The daemon left in order: how long it took. What it left is looked at by the next boot.
    fn check_left(&mut self) {
        let p = self.process.as_ref().expect("a process");
        let took = self.clock.ms() - p.stop_began.expect("a stop began");
        assert!(took <= 59_000, "the stop took {took} ms");
        self.left_clean = p.coordinator.ending().clean;
        self.check_left_alive();
    }

    /// Nothing can go on before time passes: what waits then must wait for something.
    pub(super) fn check_quiet(&self) {
        let p = self.process.as_ref().expect("a process");
        let board = p.ctx.board();
        let numbers = p.ctx.registry.numbers();
        let over = numbers.running == 0 && p.ctx.hub.delivering() == 0;
        assert!(!(board.phase == "draining" && over), "nobody is woken though nothing runs");
        if board.stop.is_none() {
            assert!(p.reloads.is_empty(), "a reload waits, and nothing is done for it");
        } else if !p.coordinator.may_leave() {
            assert!(p.coordinator.next_due().is_some(), "a stop waits for something that has no end");
        }
    }
}
