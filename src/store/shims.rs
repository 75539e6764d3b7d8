//! Agents that outlive the daemon: their shims, what was decided to be sent to them, what they ask, and how far their
//! output is kept.
//!
//! A shim's row is written before its agent is started. How far the agent's output is kept moves in the transaction that
//! keeps it ([`Keep`]), and so does what is sent because of it. The rows must not know what a line or a frame means.

use serde_json::{Value as Json, json};

use super::output::Item;
use super::sql::params;
use super::tx::{SessionRow, Tx};
use super::{Begun, Error, Refusal, Store, TurnRef};
use crate::clock::Millis;
use crate::model::event::{EventKind, StopReason};
use crate::model::recovery::{Death, Verdict};

/// A shim, as its row keeps it.
#[derive(Clone, PartialEq, Eq)]
pub struct ShimRow {
    /// The name of its socket.
    pub name: String,
    /// The secret that it shares with the daemon.
    pub token: [u8; 32],
    /// The boot of the machine.
    pub machine: String,
    /// The boot of the daemon that marks its processes.
    pub boot_id: String,
    /// Its process.
    pub pid: u32,
    /// That process's start time.
    pub pid_start: u64,
}

impl std::fmt::Debug for ShimRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShimRow").field("name", &self.name).field("pid", &self.pid).finish_non_exhaustive()
    }
}

/// What is sent to an agent, by number.
pub type Frames = Vec<(i64, Vec<u8>)>;

/// How far an agent's output is kept, and what is sent because of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keep {
    /// The shim.
    pub name: String,
    /// Up to there the output is kept.
    pub offset: i64,
    /// And so many messages of the line that begins there.
    pub skip: i64,
    /// What is known of the agent at that point, as JSON.
    pub state: String,
    /// What is sent to it, by number.
    pub frames: Frames,
    /// The shim has all frames up to this one.
    pub heard: i64,
}

/// A session whose agent may have outlived the last boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Its row.
    pub sid: i64,
    /// Its key.
    pub key: String,
    /// Its activation's number.
    pub epoch: i64,
    /// Its agent's name.
    pub agent: String,
    /// That agent's processes live for a turn.
    pub per_turn: bool,
    /// Its turn runs.
    pub running: bool,
    /// It is one death short of suspension, so it is attached to alone.
    pub alone: bool,
    /// How the last boot ended.
    pub death: Death,
    /// That death is counted against it.
    pub blamed: bool,
}

/// What an activation goes on with.
#[derive(Clone, Debug)]
pub struct Resumed {
    /// The session's id.
    pub session_id: String,
    /// The agent's own session id.
    pub agent_session: Option<String>,
    /// Turns so far.
    pub turns: i64,
    /// The agent's definition at the open, as JSON.
    pub definition: String,
    /// Its working directory.
    pub cwd: String,
    /// Its shim, if it has one.
    pub shim: Option<ShimRow>,
    /// Up to there its output is kept.
    pub offset: i64,
    /// And so many messages of the line that begins there.
    pub skip: i64,
    /// What is known of it at that point, as JSON.
    pub state: Option<String>,
    /// The number of the last frame that was decided.
    pub frames: i64,
    /// What it may not have been sent, by number.
    pub unsent: Frames,
    /// The turn that runs.
    pub running: Option<RunsOn>,
}

/// A turn that runs on.
#[derive(Clone, Debug)]
pub struct RunsOn {
    /// As it began.
    pub begun: Begun,
    /// What hooks put before its prompt.
    pub context: Option<String>,
    /// When it began, by the wall clock.
    pub started_at: Millis,
    /// How many appends it has had.
    pub pieces: i64,
    /// A cancel was asked for.
    pub cancelled: bool,
    /// Its tool calls: id, and all that is known of each, as JSON.
    pub tools: Vec<(String, Json)>,
    /// What its agent asked and has not been answered.
    pub asked: Vec<Asked>,
}

/// A permission that is not settled for its agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// Its id.
    pub request_id: String,
    /// The request, as JSON.
    pub request: Json,
    /// How often handlers were asked.
    pub asks: i64,
    /// Clients may answer it.
    pub shown: bool,
    /// Since when.
    pub since: Millis,
    /// How a client has answered it: an option's id.
    pub outcome: Option<String>,
}

/// The outcome of [`Store::agent_ready`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readied {
    /// The number of the last frame that was decided.
    pub frames: i64,
    /// The number of the prompt of the turn that runs already.
    pub frame: Option<i64>,
}

impl Store {
    /// Notes a shim, before its agent is started. `tid`: it is the parent of one turn's command, which may be kept from
    /// here on. Earlier shims of the session are gone.
    ///
    /// # Errors
    /// [`Refusal::Stale`]. The agent must not be started.
    pub fn note_shim(&self, sid: i64, epoch: i64, tid: Option<i64>, shim: ShimRow) -> Result<(), Error> {
        self.write("note_shim", move |tx| {
            tx.current_activation(sid, epoch)?;
            tx.forget_shims(sid)?;
            let start = i64::try_from(shim.pid_start).unwrap_or(0);
            tx.tell(
                "INSERT INTO shims (name, sid, epoch, tid, token, machine, boot_id, pid, pid_start, ready)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                params![
                    shim.name,
                    sid,
                    epoch,
                    tid,
                    shim.token.to_vec(),
                    shim.machine,
                    shim.boot_id,
                    shim.pid,
                    start,
                    tid.is_some()
                ],
            )?;
            tx.tell(
                "UPDATE activations SET pid=?3, pid_start=?4 WHERE sid=?1 AND epoch=?2",
                params![sid, epoch, shim.pid, start],
            )?;
            Ok(())
        })
    }

    /// The agent of a shim is ready for prompts: from here on it may be kept. `keep.frames` is empty; `frames` is the
    /// number of the last frame so far. The prompt of a turn that runs already is decided with it.
    ///
    /// # Errors
    /// [`Refusal::Stale`].
    pub fn agent_ready(
        &self,
        sid: i64,
        epoch: i64,
        frames: i64,
        agent_session: Option<String>,
        keep: Keep,
    ) -> Result<Readied, Error> {
        self.write("agent_ready", move |tx| {
            tx.current_activation(sid, epoch)?;
            tx.tell("UPDATE sessions SET agent_session=?2 WHERE sid=?1", params![sid, agent_session])?;
            tx.tell(
                "UPDATE shims SET ready=1, frames=?2, taken=?3, skip=?4, state=?5 WHERE name=?1",
                params![keep.name, frames, keep.offset, keep.skip, keep.state],
            )?;
            let frame = match tx.running_turn(sid)? {
                Some(tid) => tx.decide_prompt(sid, epoch, tid)?,
                None => None,
            };
            Ok(Readied { frames: frame.unwrap_or(frames), frame })
        })
    }

    /// Keeps how far an agent's output was taken between turns, and decides what is sent because of it. The numbers of
    /// `keep.frames` are not looked at: they are returned, in order. The same sent again after a commit in doubt returns
    /// the same.
    ///
    /// # Errors
    /// [`Refusal::Stale`].
    pub fn keep_between(&self, sid: i64, epoch: i64, keep: Keep) -> Result<Vec<i64>, Error> {
        self.write("keep_between", move |tx| {
            tx.current_activation(sid, epoch)?;
            let count = i64::try_from(keep.frames.len()).unwrap_or(0);
            let moved = tx.row(
                "UPDATE shims SET frames=frames+?2, taken=?3, skip=?4, state=?5
                 WHERE name=?1 AND (taken<?3 OR taken=?3 AND skip<?4) RETURNING frames",
                params![keep.name, count, keep.offset, keep.skip, keep.state],
                |r| r.get::<i64>(0),
            )?;
            let Some(last) = moved else {
                // It was kept before.
                let last: i64 = tx
                    .row("SELECT frames FROM shims WHERE name=?1", params![keep.name], |r| r.get(0))?
                    .ok_or(Refusal::Stale)?;
                return Ok((last - count + 1..=last).collect());
            };
            let numbers: Vec<i64> = (last - count + 1..=last).collect();
            for (number, (_, body)) in numbers.iter().zip(&keep.frames) {
                tx.put_frame(&keep.name, *number, body)?;
            }
            tx.drop_frames(&keep.name, keep.heard)?;
            Ok(numbers)
        })
    }

    /// A shim is known to be gone.
    ///
    /// # Errors
    /// The store fails; the row goes with the session's next shim, or at a boot.
    pub fn shim_gone(&self, name: String) -> Result<(), Error> {
        self.write("shim_gone", move |tx| {
            tx.tell("DELETE FROM frames WHERE name=?1", params![name])?;
            tx.tell("DELETE FROM shims WHERE name=?1", params![name])?;
            Ok(())
        })
    }

    /// A client answers a permission: the answer is durable before anybody is told. `false`: it is not open.
    ///
    /// # Errors
    /// The store fails.
    pub fn answer_permission(
        &self,
        sid: i64,
        request_id: String,
        outcome: Option<String>,
        by: &'static str,
    ) -> Result<bool, Error> {
        self.write("answer_permission", move |tx| {
            let Some(s) = tx.session(sid)? else { return Ok(false) };
            let asked = tx.row(
                "SELECT p.request, t.id FROM permissions p JOIN turns t ON t.tid=p.tid
                 WHERE p.request_id=?1 AND p.sid=?2 AND p.outcome IS NULL AND t.state='running'",
                params![request_id, sid],
                |r| Ok((r.get::<String>(0)?, r.get::<String>(1)?)),
            )?;
            let Some((request, turn_id)) = asked else { return Ok(false) };
            let word = outcome.clone().unwrap_or_else(|| "cancelled".to_owned());
            let read: Json = serde_json::from_str(&request).unwrap_or_default();
            let offered = |option: &Json| option["option_id"] == word.as_str();
            if outcome.is_some() && !read["options"].as_array().is_some_and(|all| all.iter().any(offered)) {
                return Ok(false);
            }
            tx.tell("UPDATE permissions SET outcome=?2 WHERE request_id=?1", params![request_id, word])?;
            let data = json!({
                "request_id": request_id, "state": "resolved", "outcome": word, "by": by,
                "tool_call_id": read["tool"]["id"], "title": read["tool"]["title"],
            });
            tx.emit(EventKind::Permission, &s.key, &s.id, Some(&turn_id), &data)?;
            Ok(true)
        })
    }

    /// What a session whose agent may have outlived the last boot goes on with, read only.
    ///
    /// # Errors
    /// [`Refusal::Stale`]: its activation is closed. [`Refusal::Damaged`]: its rows cannot be used.
    pub fn pending_shim(&self, sid: i64, epoch: i64) -> Result<Option<(ShimRow, i64)>, Error> {
        self.write("pending_shim", move |tx| {
            tx.current_activation(sid, epoch)?;
            tx.shim_of(sid, epoch)
        })
    }

    /// Takes an activation over for this boot. `attached`: its listeners are told so.
    ///
    /// # Errors
    /// [`Refusal::Stale`]: its activation is closed. [`Refusal::OnProbation`]: `alone`, and another session runs alone.
    pub fn attach_activation(&self, sid: i64, epoch: i64, alone: bool) -> Result<Resumed, Error> {
        self.write("attach_activation", move |tx| {
            let done = tx.in_savepoint(|tx| tx.attach(sid, epoch, alone))?;
            match done {
                Err(why) if why.refusal().is_none() => {
                    tx.name_damaged("attach", sid, &why);
                    Err(Refusal::Damaged.into())
                }
                done => done,
            }
        })
    }

    /// The agent of a session did not outlive the last boot after all: its activation ends and its turn is interrupted,
    /// as the boot would have done. Its shim's row goes with that, and not before: a command without a row counts as one
    /// that was never started.
    ///
    /// # Errors
    /// The store fails.
    pub fn settle_pending(&self, pending: Pending, threshold: i64) -> Result<Option<Verdict>, Error> {
        self.write("settle_pending", move |tx| {
            if tx.open_activation_of(pending.sid)?.is_none_or(|a| a.epoch != pending.epoch) {
                return Ok(None);
            }
            let settled = tx.settle_late(pending.sid, &pending.death, pending.blamed, threshold)?;
            if settled.is_some() {
                tx.forget_shims(pending.sid)?;
            }
            Ok(settled)
        })
    }

    /// The daemon has lived on after it attached to a session: the deaths before count no more.
    ///
    /// # Errors
    /// The store fails.
    pub fn note_survived(&self, sid: i64) -> Result<(), Error> {
        self.write("note_survived", move |tx| {
            tx.tell("UPDATE sessions SET unclean=0 WHERE sid=?1", params![sid])?;
            tx.tell("UPDATE boots SET solo=NULL WHERE bid=?1 AND solo=?2", params![tx.bid, sid])?;
            Ok(())
        })
    }

    /// The answer of a running turn so far, at most so many bytes.
    ///
    /// # Errors
    /// The store fails.
    pub fn answer_so_far(&self, tid: i64, most: usize) -> Result<String, Error> {
        let mut answer = String::new();
        let mut add = |text: &str| {
            let room = most.saturating_sub(answer.len()).min(text.len());
            let end = (0..=room).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0);
            answer.push_str(&text[..end]);
        };
        self.read(|sql| {
            let entries = "SELECT text FROM entries WHERE tid=?1 AND role='agent' ORDER BY seq";
            for text in sql.rows(entries, params![tid], |r| r.text(0))? {
                add(&text);
            }
            let pieces = sql.rows(
                "SELECT e.data FROM turns t JOIN sessions s ON s.sid=t.sid JOIN events e ON e.key=s.key
                 WHERE t.tid=?1 AND e.seq>t.sealed AND e.turn_id=t.id AND e.kind='text' ORDER BY e.seq",
                params![tid],
                |r| r.text(0),
            )?;
            for piece in pieces {
                let piece: Json = serde_json::from_str(&piece).unwrap_or_default();
                add(piece["text"].as_str().unwrap_or_default());
            }
            Ok(())
        })?;
        Ok(answer)
    }

    /// The shims of a session that rows name.
    ///
    /// # Errors
    /// The store fails.
    pub fn shims_of_session(&self, sid: i64) -> Result<Vec<ShimRow>, Error> {
        self.read(|sql| {
            sql.rows(
                "SELECT name, token, machine, boot_id, pid, pid_start FROM shims WHERE sid=?1",
                params![sid],
                read_shim,
            )
        })
    }

    /// The shims that rows name, with their sessions' ids: whoever is not among the pending is to be ended.
    ///
    /// # Errors
    /// The store fails.
    pub fn shims(&self) -> Result<Vec<(i64, ShimRow)>, Error> {
        self.read(|sql| {
            sql.rows(
                "SELECT name, token, machine, boot_id, pid, pid_start, sid FROM shims ORDER BY sid",
                params![],
                |r| Ok((r.get(6)?, read_shim(r)?)),
            )
        })
    }
}

fn read_shim(r: &super::sql::Row<'_>) -> Result<ShimRow, super::sql::SqlError> {
    let token: Vec<u8> = r.get(1)?;
    Ok(ShimRow {
        name: r.get(0)?,
        // A token of another length proves nothing, and nobody is attached to.
        token: token.try_into().unwrap_or([0; 32]),
        machine: r.get(2)?,
        boot_id: r.get(3)?,
        pid: r.get(4)?,
        pid_start: u64::try_from(r.get::<i64>(5)?).unwrap_or(0),
    })
}

impl Tx<'_> {
    /// The shims of a session are gone.
    pub(super) fn forget_shims(&mut self, sid: i64) -> Result<(), Error> {
        self.tell("DELETE FROM frames WHERE name IN (SELECT name FROM shims WHERE sid=?1)", params![sid])?;
        self.tell("DELETE FROM shims WHERE sid=?1", params![sid])?;
        Ok(())
    }

    /// The prompt of a turn that begins is decided: its number, if its agent may be kept.
    pub(super) fn decide_prompt(&mut self, sid: i64, epoch: i64, tid: i64) -> Result<Option<i64>, Error> {
        let frame = self.row(
            "UPDATE shims SET frames=frames+1 WHERE sid=?1 AND epoch=?2 AND ready=1 AND tid IS NULL RETURNING frames",
            params![sid, epoch],
            |r| r.get::<i64>(0),
        )?;
        if frame.is_some() {
            self.tell("UPDATE kept SET tid=?2, frame=?3 WHERE sid=?1", params![sid, tid, frame])?;
        }
        Ok(frame)
    }

    /// The number of the prompt of a turn that has begun.
    pub(super) fn prompt_of(&self, sid: i64, tid: i64) -> Result<Option<i64>, Error> {
        let frame =
            self.row("SELECT frame FROM kept WHERE sid=?1 AND tid=?2", params![sid, tid], |r| r.get::<Option<i64>>(0))?;
        Ok(frame.flatten())
    }

    fn put_frame(&mut self, name: &str, number: i64, body: &[u8]) -> Result<(), Error> {
        self.tell("INSERT INTO frames (name, number, body) VALUES (?1, ?2, ?3)", params![name, number, body.to_vec()])?;
        Ok(())
    }

    fn drop_frames(&mut self, name: &str, heard: i64) -> Result<(), Error> {
        self.tell("DELETE FROM frames WHERE name=?1 AND number<=?2", params![name, heard])?;
        Ok(())
    }

    /// Keeps how far an agent's output was taken within a turn, and what is sent because of it.
    pub(super) fn keep(&mut self, keep: &Keep) -> Result<(), Error> {
        let last = keep.frames.last().map_or(0, |f| f.0);
        self.tell(
            "UPDATE shims SET taken=?2, skip=?3, state=?4, frames=CASE WHEN frames<?5 THEN ?5 ELSE frames END
             WHERE name=?1",
            params![keep.name, keep.offset, keep.skip, keep.state, last],
        )?;
        for (number, body) in &keep.frames {
            self.put_frame(&keep.name, *number, body)?;
        }
        if keep.heard > 0 {
            self.drop_frames(&keep.name, keep.heard)?;
        }
        Ok(())
    }

    /// A permission is asked, or settled.
    pub(super) fn keep_permission(&mut self, sid: i64, tid: i64, item: &Item) -> Result<(), Error> {
        match item {
            Item::Asked { request_id, request, asks, shown } => self.tell(
                "INSERT INTO permissions (request_id, sid, tid, request, asks, shown, since) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (request_id) DO UPDATE SET asks=?5, shown=?6",
                params![request_id, sid, tid, request.to_string(), *asks, *shown, self.now],
            )?,
            Item::Settled(request_id) => {
                self.tell("DELETE FROM permissions WHERE request_id=?1", params![request_id])?;
            }
            Item::Text(_) | Item::Thought(_) | Item::Tool { .. } | Item::Event(..) => {}
        }
        Ok(())
    }

    /// Whether the agent of an activation that a death left open may live on: as far as the rows know.
    /// Then it says whether its processes live for a turn.
    pub(super) fn may_live_on(&self, s: &SessionRow, death: &Death, machine: &str) -> Result<Option<bool>, Error> {
        if death.stop == Some(StopReason::Shutdown) || s.status != "open" || s.hidden {
            return Ok(None);
        }
        let kept = self.row(
            "SELECT k.epoch, k.per_turn FROM kept k JOIN activations a ON a.sid=k.sid AND a.epoch=k.epoch
             WHERE k.sid=?1 AND a.closed_at IS NULL AND a.abandoned=0",
            params![s.sid],
            |r| Ok((r.number(0)?, r.number(1)? != 0)),
        )?;
        let Some((epoch, per_turn)) = kept else { return Ok(None) };
        if !per_turn {
            let ready = "SELECT 1 FROM shims WHERE sid=?1 AND epoch=?2 AND machine=?3 AND ready=1 AND tid IS NULL";
            return Ok(self.exists(ready, params![s.sid, epoch, machine])?.then_some(false));
        }
        let Some(tid) = self.running_turn(s.sid)? else { return Ok(Some(true)) };
        // A command without a shim's row was never started.
        let noted =
            self.row("SELECT machine FROM shims WHERE sid=?1 AND tid=?2", params![s.sid, tid], |r| r.text(0))?;
        Ok(noted.is_none_or(|noted| noted == machine).then_some(true))
    }

    fn shim_of(&self, sid: i64, epoch: i64) -> Result<Option<(ShimRow, i64)>, Error> {
        let running = self.running_turn(sid)?;
        let found = self.row(
            "SELECT name, token, machine, boot_id, pid, pid_start, taken, tid FROM shims WHERE sid=?1 AND epoch=?2 AND ready=1",
            params![sid, epoch],
            |r| Ok((read_shim(r)?, r.get::<i64>(6)?, r.get::<Option<i64>>(7)?)),
        )?;
        Ok(found.filter(|(_, _, tid)| tid.is_none() || *tid == running).map(|(shim, taken, _)| (shim, taken)))
    }

    fn attach(&mut self, sid: i64, epoch: i64, alone: bool) -> Result<Resumed, Error> {
        let s = self.current_activation(sid, epoch)?;
        if alone {
            if self.another_is_on_probation(sid)? {
                return Err(Refusal::OnProbation.into());
            }
            self.tell("UPDATE boots SET solo=?2 WHERE bid=?1", params![self.bid, sid])?;
        }
        self.tell("UPDATE activations SET bid=?3 WHERE sid=?1 AND epoch=?2", params![sid, epoch, self.bid])?;
        let (definition, cwd) = self
            .row(
                "SELECT k.definition, a.cwd FROM kept k JOIN activations a ON a.sid=k.sid AND a.epoch=k.epoch WHERE k.sid=?1",
                params![sid],
                |r| Ok((r.get::<String>(0)?, r.get::<String>(1)?)),
            )?
            .ok_or(Refusal::Stale)?;
        let shim = self.shim_of(sid, epoch)?.map(|(shim, _)| shim);
        let (mut offset, mut skip, mut state, mut frames) = (0, 0, None, 0);
        let mut unsent = Vec::new();
        if let Some(shim) = &shim {
            (offset, skip, state, frames) = self
                .row("SELECT taken, skip, state, frames FROM shims WHERE name=?1", params![shim.name], |r| {
                    Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?))
                })?
                .ok_or(Refusal::Stale)?;
            unsent =
                self.rows("SELECT number, body FROM frames WHERE name=?1 ORDER BY number", params![shim.name], |r| {
                    Ok((r.get(0)?, r.get(1)?))
                })?;
        }
        let running = match self.running_turn(sid)? {
            Some(tid) => Some(self.runs_on(&s, epoch, tid)?),
            None => None,
        };
        let turn_id = running.as_ref().map(|r| r.begun.turn_id.clone());
        if shim.is_some() {
            let text = "the daemon was started again, and the agent has gone on meanwhile";
            self.notice(&s, turn_id.as_deref(), "reattached", text)?;
        }
        let (session_id, agent_session, turns) = (s.id, s.agent_session, s.turns);
        Ok(Resumed {
            session_id,
            agent_session,
            turns,
            definition,
            cwd,
            shim,
            offset,
            skip,
            state,
            frames,
            unsent,
            running,
        })
    }

    fn runs_on(&self, s: &SessionRow, epoch: i64, tid: i64) -> Result<RunsOn, Error> {
        let before = SessionRow { turns: s.turns.saturating_sub(1), ..s.clone() };
        let begun = self.begun_again(&before, TurnRef { sid: s.sid, epoch, tid })?;
        let (started_at, pieces, cancelled) = self
            .row(
                "SELECT coalesce(started_at, created_at), pieces, cancel FROM turns WHERE tid=?1",
                params![tid],
                |r| Ok((r.get::<i64>(0)?, r.get::<i64>(1)?, r.maybe_text(2)?.is_some())),
            )?
            .ok_or(Refusal::Stale)?;
        let context = self.context_of(tid)?;
        let tools = self.rows(
            "SELECT tool_call_id, detail FROM entries WHERE tid=?1 AND role='tool' AND tool_call_id IS NOT NULL ORDER BY seq",
            params![tid],
            |r| Ok((r.text(0)?, serde_json::from_str(&r.text(1)?).unwrap_or_default())),
        )?;
        let asked = self.rows(
            "SELECT request_id, request, asks, shown, since, outcome FROM permissions WHERE tid=?1 ORDER BY since, request_id",
            params![tid],
            |r| {
                Ok(Asked {
                    request_id: r.get(0)?,
                    request: serde_json::from_str(&r.text(1)?).unwrap_or_default(),
                    asks: r.get(2)?,
                    shown: r.get(3)?,
                    since: r.get(4)?,
                    outcome: r.get(5)?,
                })
            },
        )?;
        Ok(RunsOn { begun, context, started_at, pieces, cancelled, tools, asked })
    }
}
