//! Boots: recovery of what the last boot left, and the durable facts of a stop.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use super::shims::Pending;
use super::sql::params;
use super::tx::{SessionRow, Tx};
use super::{Error, Store};
use crate::clock::Millis;
use crate::model::event::{Actor, MarkReason, StopReason, Urgency};
use crate::model::recovery::{Death, Left, Verdict, judge};

/// This run of the daemon.
#[derive(Clone, Debug)]
pub struct BootInfo {
    /// Its random id.
    pub boot_id: String,
    /// Its process.
    pub pid: u32,
    /// `stuck_threshold`.
    pub threshold: i64,
    /// The boot of the machine, if agents of the last boot may be attached to.
    pub machine: Option<String>,
}

/// What recovery found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Boots that had died.
    pub deaths: i64,
    /// Activations that were still open.
    pub activations: i64,
    /// Turns that had been running.
    pub interrupted: i64,
    /// Sessions suspended for it.
    pub suspended: i64,
    /// Unclean boots within the last five minutes.
    pub recent_deaths: u32,
    /// Sessions whose agents may have outlived the last boot: not judged yet.
    pub pending: Vec<Pending>,
}

/// A stop, as noted at its first signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopNote {
    /// Why.
    pub reason: StopReason,
    /// How much of the ladder it walks.
    pub urgency: Urgency,
    /// When it must be over, by the wall clock.
    pub deadline_at: Millis,
    /// Agents that may outlive the daemon go on: their turns are not marked.
    pub keep: bool,
}

/// A boot that ended, or left activations open.
struct DeadBoot {
    bid: i64,
    death: Death,
    /// The session that was on probation.
    probation: Option<i64>,
    /// Its end is noted.
    ended: bool,
}

/// The note that a boot's stop keeps agents.
fn keeps(bid: i64) -> String {
    format!("keeps {bid}")
}

/// How many activations one transaction closes. A stop of ten thousand sessions thus lets other writers in between.
const BATCH: i64 = 1024;

impl Recovered {
    /// One more session was recovered.
    fn count(&mut self, verdict: &Verdict) {
        self.activations += 1;
        self.interrupted += i64::from(verdict.turn.is_some());
        self.suspended += i64::from(verdict.suspend);
    }
}

/// What became of one session in a stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopOutcome {
    /// Its row.
    pub sid: i64,
    /// Its key.
    pub key: String,
    /// Its id.
    pub session_id: String,
    /// The mark that it carries now.
    pub mark: Option<String>,
    /// The state of the turn that ended in the stop.
    pub turn: Option<String>,
    /// Its end is still owed to a handler.
    pub end_pending: bool,
}

impl Store {
    /// Opens this boot's row and closes what dead boots left: every open activation ends, running turns become
    /// interrupted, their sessions are marked, and the death is counted. It is one transaction, so a death in it
    /// changes nothing. A session whose rows cannot be used is skipped.
    ///
    /// # Errors
    /// The store fails.
    pub fn open_boot(&self, info: BootInfo) -> Result<Recovered, Error> {
        let (bid, recovered) = self.write("open_boot", move |tx| {
            tx.trust_clock()?;
            let deaths = tx.deaths()?;
            tx.bid = tx.insert(
                "INSERT INTO boots (boot_id, pid, version, started_at, alive_at) VALUES (?1, ?2, ?3, ?4, ?4) RETURNING bid",
                params![info.boot_id, info.pid, env!("CARGO_PKG_VERSION"), tx.now],
            )?;
            let mut r = Recovered::default();
            for dead in &deaths {
                // What an earlier boot's death left is counted already; it was not attached to since.
                let death = &Death { on_probation: dead.death.on_probation || dead.ended, ..dead.death };
                let before = r.activations;
                tx.recover(dead.bid, death, dead.probation.filter(|_| !dead.ended), &info, &mut r)?;
                // One that ended in order, and whose agents go on, has not died.
                r.deaths += i64::from(!dead.ended || r.activations > before);
                if dead.ended {
                    continue;
                }
                let ended = tx.in_savepoint(|tx| {
                    Ok(tx.run(
                        "UPDATE boots SET ended_at=coalesce(ended_at, ?2), clean=0, solo=NULL WHERE bid=?1",
                        params![dead.bid, death.last_life],
                    )?)
                })?;
                if let Err(e) = ended {
                    log::warn!("recovery: the end of boot {} cannot be noted: {e}", dead.bid);
                }
            }
            // What a stop kept matters as long as something of it is open.
            tx.tell(
                "DELETE FROM meta WHERE name LIKE 'keeps %'
                 AND value<coalesce((SELECT min(bid) FROM activations WHERE closed_at IS NULL), ?1)",
                params![tx.bid],
            )?;
            tx.recover_rest(deaths.last().map(|d| d.death), info.threshold, &mut r)?;
            // The stops that made these marks are over.
            tx.update_sessions("recovery", "mark_boot=NULL", "mark_reason IS NOT NULL AND mark_boot IS NOT NULL", params![])?;
            let recent = tx.row(
                "SELECT count(*) FROM (SELECT 1 FROM boots WHERE clean=0 AND stop_reason IS NULL AND ended_at>?1 LIMIT 100) recent",
                params![tx.now - 300_000],
                |row| row.get(0),
            )?;
            r.recent_deaths = recent.unwrap_or(0);
            Ok((tx.bid, r))
        })?;
        self.shared.boot.store(bid, std::sync::atomic::Ordering::SeqCst);
        if let Some(problem) = self.clock_problem() {
            log::warn!("{problem}");
        }
        Ok(recovered)
    }

    /// The number of this boot, which only rises.
    #[must_use]
    pub fn boot(&self) -> i64 {
        self.shared.boot.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// A sign of life, noted once a minute while a turn runs.
    ///
    /// # Errors
    /// The store fails.
    pub fn note_alive(&self) -> Result<(), Error> {
        self.write("note_alive", |tx| {
            tx.tell("UPDATE boots SET alive_at=?2 WHERE bid=?1", params![tx.bid, tx.now])?;
            Ok(())
        })
    }

    /// Ends the probation of a session: from now on a death counts against all that run.
    ///
    /// # Errors
    /// The store fails.
    pub fn end_probation(&self, sid: i64) -> Result<(), Error> {
        self.write("end_probation", move |tx| {
            tx.tell("UPDATE boots SET solo=NULL WHERE bid=?1 AND solo=?2", params![tx.bid, sid])?;
            Ok(())
        })
    }

    /// These workers were abandoned by a stop: their running turns count as unclean deaths, however this daemon ends.
    ///
    /// # Errors
    /// The store fails.
    pub fn note_abandoned(&self, sids: Vec<i64>) -> Result<(), Error> {
        self.write("note_abandoned", move |tx| {
            for sid in &sids {
                tx.for_one("stop", *sid, |tx| {
                    Ok(tx.run("UPDATE activations SET abandoned=1 WHERE sid=?1 AND closed_at IS NULL", params![sid])?)
                })?;
            }
            Ok(())
        })
    }

    /// Notes a stop and marks every running session, in one transaction, before anything waits. Returns how many were
    /// marked now.
    ///
    /// # Errors
    /// The store fails; the stop goes on, and the next boot derives the same from the rows that are open.
    pub fn mark_running(&self, stop: StopNote) -> Result<usize, Error> {
        self.write("mark_running", move |tx| {
            tx.tell(
                "UPDATE boots SET stop_reason=?2, stop_urgency=?3, stop_at=coalesce(stop_at, ?4), stop_deadline=?5 WHERE bid=?1",
                params![tx.bid, stop.reason.as_str(), stop.urgency.as_str(), tx.now, stop.deadline_at],
            )?;
            tx.note_keeps(stop.keep)?;
            // Earlier marks stay as they are; the new ones are remembered as this stop's.
            let (now, bid) = (tx.now, tx.bid);
            tx.update_sessions(
                "stop",
                "mark_reason=?1, marked_at=?2, mark_boot=?3",
                if stop.keep {
                    "mark_reason IS NULL AND status='open' AND sid IN (SELECT sid FROM turns WHERE state='running')
                     AND sid NOT IN (SELECT sid FROM kept)"
                } else {
                    "mark_reason IS NULL AND status='open' AND sid IN (SELECT sid FROM turns WHERE state='running')"
                },
                params![stop.reason.mark().as_str(), now, bid],
            )
        })
    }

    /// The drain is over: the mark of every session that still runs gets this stop's reason and time. `keep`: as in
    /// [`StopNote`].
    ///
    /// # Errors
    /// As for [`Store::mark_running`].
    pub fn refresh_marks(&self, reason: MarkReason, keep: bool) -> Result<usize, Error> {
        self.write("refresh_marks", move |tx| {
            // The first write of the stop may have failed.
            tx.note_keeps(keep)?;
            // An earlier mark gets the reason and the time too, but is not this stop's: only a completed turn clears
            // it.
            let (now, bid) = (tx.now, tx.bid);
            tx.update_sessions(
                "stop",
                "mark_boot=CASE WHEN mark_reason IS NULL THEN ?3 ELSE mark_boot END, mark_reason=?1, marked_at=?2",
                if keep {
                    "status='open' AND sid IN (SELECT sid FROM turns WHERE state='running')
                     AND sid NOT IN (SELECT sid FROM kept)"
                } else {
                    "status='open' AND sid IN (SELECT sid FROM turns WHERE state='running')"
                },
                params![reason.as_str(), now, bid],
            )
        })
    }

    /// Closes every open activation, running or idle: `session_end`, once each. Running turns become interrupted; for
    /// abandoned workers that counts as an unclean death. `spare`: of these sessions the activations stay open whose agents
    /// may go on; and the boot of the machine.
    ///
    /// # Errors
    /// The store fails; the next boot writes the ends.
    pub fn close_activations(
        &self,
        reason: StopReason,
        threshold: i64,
        spare: Option<(Vec<i64>, String)>,
    ) -> Result<i64, Error> {
        let spare = spare.map(|(sids, machine)| Arc::new((sids.into_iter().collect::<HashSet<i64>>(), machine)));
        let (mut closed, mut after) = (0, i64::MIN);
        // All batches share one deadline.
        let until = Instant::now() + self.patience;
        loop {
            let spare = spare.clone();
            let (batch, last) = self.until(until).write("close_activations", move |tx| {
                let open = tx.sids(
                    "SELECT sid FROM activations WHERE closed_at IS NULL AND sid>?1 ORDER BY sid LIMIT ?2",
                    params![after, BATCH],
                )?;
                let now = Death { stop: Some(reason), last_life: tx.now, on_probation: false };
                let mut batch = 0;
                for sid in &open {
                    if let Some((spared, machine)) = spare.as_deref()
                        && spared.contains(sid)
                        && tx.for_one("stop", *sid, |tx| tx.goes_on(*sid, machine))? == Some(true)
                    {
                        continue;
                    }
                    batch += i64::from(tx.settle_session(*sid, &now, None, threshold)?.is_some());
                }
                Ok((batch, open.last().copied()))
            })?;
            closed += batch;
            let Some(last) = last else { return Ok(closed) };
            after = last;
        }
    }

    /// Notes the end of the boot, whether it was clean, and the report. The last write of a stop.
    ///
    /// # Errors
    /// The store fails.
    pub fn close_boot(&self, clean: bool, report: Value, keep: u32) -> Result<(), Error> {
        self.write("close_boot", move |tx| {
            tx.tell(
                "UPDATE boots SET ended_at=?2, clean=?3, report=?4, solo=NULL WHERE bid=?1",
                params![tx.bid, tx.now, clean, report.to_string()],
            )?;
            tx.tell("DELETE FROM boots WHERE bid<=?1", params![tx.bid - i64::from(keep.max(1))])?;
            Ok(())
        })
    }

    /// Forgets which turns are to be continued: the first boot of a restored copy must not answer what its original
    /// did.
    ///
    /// # Errors
    /// The store fails.
    pub fn forget_cut_turns(&self) -> Result<usize, Error> {
        self.write("forget_cut_turns", |tx| {
            tx.update_sessions("restore", "cut_turn=NULL", "mark_reason IS NOT NULL AND cut_turn IS NOT NULL", &[])
        })
    }

    /// What became of the sessions that were live when a stop began, each given with the turn that ran in it then.
    ///
    /// # Errors
    /// The store fails.
    pub fn stop_outcomes(&self, live: &[(i64, Option<String>)]) -> Result<Vec<StopOutcome>, Error> {
        self.read(|sql| {
            let mut outcomes = Vec::with_capacity(live.len());
            for (sid, turn) in live {
                outcomes.extend(sql.row(
                    "SELECT s.key, s.id, s.mark_reason, (SELECT state FROM turns WHERE id=?2),
                       EXISTS (SELECT 1 FROM journal j JOIN deliveries d ON d.jid=j.jid
                               WHERE j.sid=s.sid AND d.state='pending')
                     FROM sessions s WHERE s.sid=?1",
                    params![sid, turn],
                    |r| {
                        Ok(StopOutcome {
                            sid: *sid,
                            key: r.text(0)?,
                            session_id: r.text(1)?,
                            mark: r.maybe_text(2)?,
                            turn: r.maybe_text(3)?,
                            end_pending: r.number(4)? != 0,
                        })
                    },
                )?);
            }
            Ok(outcomes)
        })
    }
}

impl Tx<'_> {
    /// Boots that never ended, and boots whose stop could not write every end. Their processes are dead, for this one
    /// holds the state directory's lock.
    fn deaths(&self) -> Result<Vec<DeadBoot>, Error> {
        let boots = self.rows(
            "SELECT bid, alive_at, stop_reason, solo, ended_at FROM boots WHERE ended_at IS NULL
             OR bid IN (SELECT bid FROM activations WHERE closed_at IS NULL) ORDER BY bid",
            params![],
            |r| {
                let ended = r.maybe_number(4)?.is_some();
                Ok((r.get::<i64>(0)?, r.number(1)?, r.maybe_text(2)?, r.maybe_number(3)?, ended))
            },
        )?;
        let newest = self.newest_commit()?.unwrap_or(0);
        boots
            .into_iter()
            .map(|(bid, alive, stop, probation, ended)| {
                // Not limited to the present time: if the clock is behind, the age would stay wrong once the clock is
                // right.
                let last_life = alive.max(newest);
                let stop = stop.as_deref().and_then(StopReason::parse);
                // A shutdown that keeps agents is a restart for them.
                let keeps = stop.is_some() && self.exists("SELECT 1 FROM meta WHERE name=?1", params![keeps(bid)])?;
                let stop = if keeps { Some(StopReason::Restart) } else { stop };
                // What this boot left open, a later one was to end, and may not have come to it.
                let stop = if self.was_shut_down_after(bid)? { Some(StopReason::Shutdown) } else { stop };
                let death = Death { stop, last_life, on_probation: probation.is_some() };
                Ok(DeadBoot { bid, death, probation, ended })
            })
            .collect()
    }

    /// Notes whether this boot's stop keeps agents: the last request counts.
    fn note_keeps(&mut self, keep: bool) -> Result<(), Error> {
        if keep {
            let note = "INSERT INTO meta (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value=?2";
            return Ok(self.tell(note, params![keeps(self.bid), self.bid])?);
        }
        Ok(self.tell("DELETE FROM meta WHERE name=?1", params![keeps(self.bid)])?)
    }

    /// Whether a later boot was shut down, with all agents.
    fn was_shut_down_after(&self, bid: i64) -> Result<bool, Error> {
        Ok(self.exists(
            "SELECT 1 FROM boots b WHERE b.bid>?1 AND b.stop_reason=?2
             AND NOT EXISTS (SELECT 1 FROM meta m WHERE m.name='keeps ' || CAST(b.bid AS TEXT))",
            params![bid, StopReason::Shutdown.as_str()],
        )?)
    }

    /// The time of the newest event or message.
    fn newest_commit(&self) -> Result<Option<Millis>, Error> {
        let newest = |sql: &str| self.row(sql, params![], |r| r.maybe_number(0)).map(Option::flatten);
        let event = newest("SELECT at FROM events ORDER BY seq DESC LIMIT 1")?;
        Ok(event.max(newest("SELECT at FROM messages ORDER BY mid DESC LIMIT 1")?))
    }

    /// Checks the wall clock against the times that earlier boots wrote.
    fn trust_clock(&mut self) -> Result<(), Error> {
        let boot =
            self.row("SELECT coalesce(ended_at, alive_at) FROM boots ORDER BY bid DESC LIMIT 1", params![], |r| {
                r.maybe_number(0)
            })?;
        self.shared.hold_clock_against(self.newest_commit()?.max(boot.flatten()));
        self.now = self.shared.clock().0;
        Ok(())
    }

    fn recover(
        &mut self,
        bid: i64,
        death: &Death,
        probation: Option<i64>,
        info: &BootInfo,
        r: &mut Recovered,
    ) -> Result<(), Error> {
        let left =
            self.sids("SELECT sid FROM activations WHERE closed_at IS NULL AND bid=?1 ORDER BY sid", params![bid])?;
        for sid in left {
            if let Some(machine) = &info.machine
                && let Some(Some(pending)) = self
                    .for_one("recovery", sid, |tx| tx.leave_pending(sid, death, probation, info.threshold, machine))?
            {
                r.pending.push(pending);
                continue;
            }
            if let Some(verdict) = self.settle_session(sid, death, probation, info.threshold)? {
                r.count(&verdict);
            }
        }
        Ok(())
    }

    /// Recovers what belongs to no known boot: activations whose boot's row is gone, and running turns without an
    /// activation.
    fn recover_rest(&mut self, newest: Option<Death>, threshold: i64, r: &mut Recovered) -> Result<(), Error> {
        let left = self.sids(
            "SELECT sid FROM activations WHERE closed_at IS NULL AND bid NOT IN (SELECT bid FROM boots WHERE bid<>?1)
             UNION SELECT t.sid FROM turns t WHERE t.state='running'
               AND NOT EXISTS (SELECT 1 FROM activations a WHERE a.sid=t.sid AND a.closed_at IS NULL)",
            params![self.bid],
        )?;
        let death = newest.unwrap_or(Death { stop: None, last_life: self.now, on_probation: false });
        for sid in left {
            log::warn!("recovery: session row {sid} was left live by a boot of which nothing is known");
            if let Some(verdict) = self.settle_session(sid, &death, None, threshold)? {
                r.count(&verdict);
            }
        }
        Ok(())
    }

    /// Settles one session that a death, or the end of a stop, leaves live. `None`: its rows cannot be used; it is
    /// skipped, and the log names it.
    fn settle_session(
        &mut self,
        sid: i64,
        death: &Death,
        probation: Option<i64>,
        threshold: i64,
    ) -> Result<Option<Verdict>, Error> {
        let what = if death.stop.is_some() { "stop" } else { "recovery" };
        self.for_one(what, sid, |tx| match tx.session_any(sid)? {
            Some(s) => tx.settle_left(s, death, probation, threshold),
            None => tx.settle_nobody(sid, death),
        })
    }

    /// A session whose agent may live on is not judged yet, but its death counts. `None`: it is to be judged.
    fn leave_pending(
        &mut self,
        sid: i64,
        death: &Death,
        probation: Option<i64>,
        threshold: i64,
        machine: &str,
    ) -> Result<Option<Pending>, Error> {
        let Some(s) = self.session_any(sid)? else { return Ok(None) };
        let Some(per_turn) = self.may_live_on(&s, death, machine)? else { return Ok(None) };
        let verdict = judge(death, &self.left(&s, probation)?, threshold);
        if verdict.suspend {
            return Ok(None);
        }
        let blamed = verdict.unclean > s.unclean;
        if blamed {
            self.tell("UPDATE sessions SET unclean=?2 WHERE sid=?1", params![sid, verdict.unclean])?;
        }
        let alone = verdict.turn.is_some() && threshold > 0 && verdict.unclean >= (threshold - 1).max(1);
        let (key, epoch, agent) = (s.key, s.epoch, s.agent);
        let running = verdict.turn.is_some();
        Ok(Some(Pending { sid, key, epoch, agent, per_turn, running, alone, death: *death, blamed }))
    }

    /// Whether the agent of a session goes on without a daemon.
    fn goes_on(&self, sid: i64, machine: &str) -> Result<bool, Error> {
        let death = Death { stop: None, last_life: self.now, on_probation: false };
        match self.session_any(sid)? {
            Some(s) => Ok(self.may_live_on(&s, &death, machine)?.is_some()),
            None => Ok(false),
        }
    }

    /// Settles a session whose agent did not live on after all.
    pub(super) fn settle_late(
        &mut self,
        sid: i64,
        death: &Death,
        blamed: bool,
        threshold: i64,
    ) -> Result<Option<Verdict>, Error> {
        // Its death is counted already.
        if blamed {
            self.tell("UPDATE sessions SET unclean=unclean-1 WHERE sid=?1 AND unclean>0", params![sid])?;
        }
        let death = Death { on_probation: !blamed && death.stop.is_none(), ..*death };
        self.settle_session(sid, &death, None, threshold)
    }

    /// Ends an activation or a turn whose session is gone. Nobody is notified.
    fn settle_nobody(&mut self, sid: i64, death: &Death) -> Result<Verdict, Error> {
        log::warn!("recovery: session row {sid} is missing; what was left of it is closed");
        let left = Left { running: false, cancelled: false, on_probation: false, abandoned: false, unclean: 0 };
        let verdict = judge(death, &left, 0);
        self.tell(
            "UPDATE turns SET state='interrupted', ended_at=?2 WHERE sid=?1 AND state='running'",
            params![sid, self.now],
        )?;
        self.tell(
            "UPDATE activations SET closed_at=?2, end_reason=?3 WHERE sid=?1 AND closed_at IS NULL",
            params![sid, self.now, verdict.end.as_str()],
        )?;
        Ok(verdict)
    }

    /// What the model is told of a session that was left live.
    fn left(&self, s: &SessionRow, probation: Option<i64>) -> Result<Left, Error> {
        let cancel = self.row("SELECT cancel FROM turns WHERE sid=?1 AND state='running'", params![s.sid], |row| {
            row.maybe_text(0)
        })?;
        let abandoned = cancel.is_some()
            && self.exists(
                "SELECT 1 FROM activations WHERE sid=?1 AND closed_at IS NULL AND abandoned=1",
                params![s.sid],
            )?;
        Ok(Left {
            running: cancel.is_some(),
            cancelled: matches!(cancel, Some(Some(_))),
            on_probation: probation == Some(s.sid),
            abandoned,
            unclean: s.unclean,
        })
    }

    /// Settles one session, as the model judges it.
    fn settle_left(
        &mut self,
        s: SessionRow,
        death: &Death,
        probation: Option<i64>,
        threshold: i64,
    ) -> Result<Verdict, Error> {
        let verdict = judge(death, &self.left(&s, probation)?, threshold);
        if let Some(outcome) = verdict.turn {
            self.end_running(&s, outcome, verdict.mark, None)?;
            self.tell("UPDATE sessions SET unclean=?2 WHERE sid=?1", params![s.sid, verdict.unclean])?;
        }
        let s = if verdict.turn.is_some() { self.session_any(s.sid)?.unwrap_or(s) } else { s };
        self.close_activation(&s, verdict.end, verdict.actor, None)?;
        if verdict.suspend {
            log::warn!(key = s.key, session_id = s.id; "session suspended: the daemon died {} times in a row while it ran", verdict.unclean);
            let agent = s.agent.clone();
            self.suspend_session(&s, Actor::Supervisor, &agent)?;
        }
        Ok(verdict)
    }
}
