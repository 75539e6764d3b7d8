//! Turns: begin, append, end. Every write names session, epoch and turn, and is refused if they are not current.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use serde_json::json;

use super::outbox::Batch;
use super::output::Live;
use super::sql::{Row, SqlError, params};
use super::tx::{SessionRow, Tx};
use super::{Admission, Error, Refusal, Store};
use crate::clock::Millis;
use crate::model::event::{EventKind, MarkReason, Outcome, Role};
use crate::model::session::{Policy, age, may_resume};
use crate::model::settings::{OnInterrupt, Resume};
use crate::model::turn::{Continuation, CutOff, TurnState, continuation, note};

/// The most bytes of earlier messages that an agent is given again when a chain of interrupted turns is continued.
const CHAIN: usize = 16 << 20;
/// The text in place of a message that is lost.
const GONE: &str = "[Note from the session's host: the message that was cut off is lost.]";

/// What is told when messages had to be left out of a continuation.
const LOST: &str = "messages of the interrupted turns are not told to the agent again: they are too much, or lost";

/// The turn for which a worker writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnRef {
    /// The session's row.
    pub sid: i64,
    /// The activation's number.
    pub epoch: i64,
    /// The turn's row.
    pub tid: i64,
}

/// What [`Store::begin_turn`] needs to know beside the session.
#[derive(Clone, Debug)]
pub struct Begin {
    /// The session's row.
    pub sid: i64,
    /// The activation's number.
    pub epoch: i64,
    /// What becomes of an interrupted turn with this agent.
    pub on_interrupt: OnInterrupt,
    /// Whether interrupted turns go on at all.
    pub resume: Resume,
    /// The resume window.
    pub policy: Policy,
    /// A boot or an operator wants an interrupted turn to go on by itself.
    pub auto_continue: bool,
    /// What hooks put before the prompt.
    pub context: Option<String>,
    /// The id of a continuation that has a turn of its own; chosen beforehand, so that `before_turn` handlers can be told.
    pub fresh_id: String,
    /// From this count of unclean deaths on, a session runs on probation; 0: never.
    pub probation_at: i64,
}

/// The turn that a turn goes on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The interrupted turn's id.
    pub turn_id: String,
    /// Whether its message runs again; otherwise a note quotes it.
    pub rerun: bool,
}

/// A turn that has begun: its prompt is about to be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// The turn for later writes.
    pub turn: TurnRef,
    /// The turn's id.
    pub turn_id: String,
    /// What the agent is asked: the messages, or the continuation's note. Empty: the agent has begun it by itself.
    pub prompt: String,
    /// What it goes on with.
    pub continues: Option<Cut>,
    /// Whether it is the session's first turn.
    pub first: bool,
    /// Turns that the transcript holds already.
    pub turns: i64,
    /// The session is on probation: one death short of suspension, it runs alone for a while.
    pub on_probation: bool,
    /// The number of its prompt among the frames that are sent to its agent, if that agent may be kept.
    pub frame: Option<i64>,
}

/// An interrupted turn that its agent may have forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutShort {
    /// Its messages.
    pub message: String,
    /// Tool calls that it left open.
    pub tools: Vec<String>,
    /// Whether anything had come back.
    pub answered: bool,
    /// When it ended.
    pub ended_at: Millis,
}

/// How a turn ended, and what its session may do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The outcome that stands (a cancel that was asked for turns a failure into `cancelled`).
    pub outcome: Outcome,
    /// Whether more waits.
    pub more: bool,
}

/// The row of a turn that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TurnRow {
    /// It waited.
    Queued(i64),
    /// It begins as soon as it is there, with so many messages.
    New {
        /// How many.
        messages: i64,
    },
}

/// What is told of the begin of a turn that continues no other.
pub(super) fn plain_start() -> serde_json::Value {
    json!({ "continues": null, "resumed": false })
}

/// A turn that waits.
pub(super) struct QueuedTurn {
    pub tid: i64,
    pub id: String,
    /// How many messages share it.
    pub messages: i64,
}

impl QueuedTurn {
    fn read(r: &Row<'_>) -> Result<Self, SqlError> {
        Ok(Self { tid: r.get(0)?, id: r.get(1)?, messages: r.number(2)? })
    }
}

/// What commits in doubt have changed after all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlooked {
    /// Sessions that are over or suspended: their workers must stop.
    pub gone: Vec<i64>,
    /// Running turns, with their sessions, of which a cancel was asked for.
    pub cancelled: Vec<(i64, i64)>,
    /// The newest event.
    pub newest: i64,
}

impl Store {
    /// Begins the next turn of a session: the oldest queued one, or a continuation. When this returns, it is durably
    /// running. `None`: nothing is to be done. After a commit in doubt the caller sends this again, and gets the turn
    /// that began.
    ///
    /// # Errors
    /// [`Refusal::Closed`] while turns do not start, [`Refusal::Stale`] when the activation is not current,
    /// [`Refusal::OnProbation`] while another session that is one death short of suspension runs alone.
    pub fn begin_turn(&self, begin: Begin) -> Result<Option<Begun>, Error> {
        self.write("begin_turn", move |tx| tx.begin(&begin))
    }

    /// Begins a turn that the agent started by itself, without a message. After a commit in doubt the caller sends this
    /// again.
    ///
    /// # Errors
    /// As [`Store::begin_turn`].
    pub fn begin_agent_turn(&self, sid: i64, epoch: i64, id: String) -> Result<Begun, Error> {
        self.write("begin_agent_turn", move |tx| tx.begin_by_agent(sid, epoch, &id))
    }

    /// What [`Store::begin_turn`] would begin now, without beginning it: what `before_turn` handlers are shown.
    ///
    /// # Errors
    /// As there.
    pub fn preview_turn(&self, begin: Begin) -> Result<Option<Begun>, Error> {
        self.write("preview_turn", move |tx| {
            // The turn is begun and undone before anybody can see it, so that the decision stands in one place.
            let mark = tx.out.mark();
            tx.tell("SAVEPOINT preview", params![])?;
            let begun = tx.begin(&begin);
            tx.tell("ROLLBACK TO preview", params![])?;
            tx.tell("RELEASE preview", params![])?;
            tx.out.truncate(mark);
            begun
        })
    }

    /// The oldest turn that waits in a session: its id and its text.
    ///
    /// # Errors
    /// The store fails.
    pub fn peek_turn(&self, sid: i64) -> Result<Option<(String, String)>, Error> {
        self.write("peek_turn", move |tx| {
            let Some(turn) = tx.first_queued(sid)? else { return Ok(None) };
            Ok(Some((turn.id, tx.messages_of(turn.tid)?.join("\n\n"))))
        })
    }

    /// Adds output to a running turn. A batch that was kept before, by a commit in doubt, is known by its number and
    /// not kept again.
    ///
    /// # Errors
    /// [`Refusal::Stale`]: the turn has its outcome already.
    pub fn append(&self, turn: TurnRef, batches: Vec<Batch>) -> Result<(), Error> {
        self.write("append", move |tx| tx.append(turn, &batches))
    }

    /// As [`Store::append`]. `done` is called on the writer's thread after the commit, and must not block.
    pub fn append_then(
        &self,
        turn: TurnRef,
        batches: Vec<Batch>,
        done: impl FnOnce(Result<(), Error>) + Send + 'static,
    ) {
        self.write_then("append", move |tx| tx.append(turn, &batches), done);
    }

    /// Ends a running turn. `batches`: its last output, and earlier batches that are in doubt.
    ///
    /// # Errors
    /// [`Refusal::Stale`]: it has its outcome already; nothing was written.
    pub fn finish_turn(
        &self,
        turn: TurnRef,
        batches: Vec<Batch>,
        outcome: Outcome,
        error: Option<(String, String)>,
        mark: MarkReason,
    ) -> Result<Ended, Error> {
        self.write("finish_turn", move |tx| {
            let (s, live) = tx.current_turn(turn)?;
            let sealed = tx.write_last(&s, turn.tid, &live, &batches)?;
            // A cancel that was asked for is the outcome, unless the whole answer came first.
            let outcome = match (outcome, &live.cancel) {
                (Outcome::Failed | Outcome::Interrupted, Some(_)) => Outcome::Cancelled,
                (outcome, _) => outcome,
            };
            let error = if outcome == Outcome::Failed { error.clone() } else { None };
            tx.end_turn_with(&s, (turn.tid, &live.id), sealed, outcome, error.as_ref(), live.cancel.as_deref(), mark)?;
            Ok(Ended { outcome, more: s.queued > 0 })
        })
    }

    /// Describes an interrupted turn to an agent that may have forgotten it: its messages, the tool calls that it left
    /// open, whether it had answered anything, and when it ended.
    ///
    /// # Errors
    /// [`Refusal::NotFound`].
    pub fn cut_short(&self, turn_id: String) -> Result<CutShort, Error> {
        self.write("cut_short", move |tx| {
            let (tid, sid, ended_at) = tx
                .row(
                    "SELECT tid, sid, coalesce(ended_at, created_at) FROM turns WHERE id=?1",
                    params![&turn_id],
                    |r| Ok((r.get::<i64>(0)?, r.get::<i64>(1)?, r.get(2)?)),
                )?
                .ok_or(Refusal::NotFound)?;
            let message = tx.chain_messages(tid)?.0.join("\n\n");
            Ok(CutShort { message, tools: tx.open_tools(tid)?, answered: tx.has_answered(sid, tid)?, ended_at })
        })
    }

    /// Fails the oldest queued turn of a session for which no worker can be started. `true`: another turn is queued.
    ///
    /// # Errors
    /// The store fails.
    pub fn fail_waiting(&self, sid: i64, code: &'static str, text: String) -> Result<bool, Error> {
        self.write("fail_waiting", move |tx| {
            let Some(s) = tx.session(sid)? else { return Ok(false) };
            tx.fail_first(&s, code, &text)?;
            Ok(tx.first_queued(sid)?.is_some())
        })
    }

    /// Fails the oldest queued turn: its agent cannot be started. The sender is notified. If a turn runs, begun by a
    /// commit in doubt, that one fails.
    ///
    /// # Errors
    /// The store fails.
    pub fn fail_queued(&self, sid: i64, epoch: i64, code: String, text: String) -> Result<bool, Error> {
        self.write("fail_queued", move |tx| {
            let s = tx.current_activation(sid, epoch)?;
            if let Some(tid) = tx.running_turn(sid)? {
                tx.end_turn(&s, tid, Outcome::Failed, Some(&(code.clone(), text.clone())), None, MarkReason::Crash)?;
                return Ok(tx.first_queued(sid)?.is_some());
            }
            let Some(turn) = tx.first_queued(sid)? else { return Ok(false) };
            tx.tell(
                "UPDATE turns SET state='failed', started_at=?2, ended_at=?2, error_code=?3, error_text=?4, epoch=?5 WHERE tid=?1",
                params![turn.tid, tx.now, code, text, epoch],
            )?;
            tx.leave_queue(sid, turn.messages)?;
            tx.user_entries(&s, turn.tid)?;
            let start = json!({ "continues": null, "resumed": false });
            tx.emit(EventKind::TurnStart, &s.key, &s.id, Some(&turn.id), &start)?;
            let end = json!({ "outcome": Outcome::Failed, "error": { "code": code, "message": text } });
            tx.emit(EventKind::TurnEnd, &s.key, &s.id, Some(&turn.id), &end)?;
            Ok(tx.first_queued(sid)?.is_some())
        })
    }

    /// Finds the changes of commits in doubt of which workers may not have been notified. `live`: the sessions that
    /// have a worker.
    ///
    /// # Errors
    /// The store fails.
    pub fn overlooked(&self, live: &[i64]) -> Result<Overlooked, Error> {
        self.read(|sql| {
            let mut found = Overlooked { newest: sql.newest_event()?, ..Overlooked::default() };
            for sid in live {
                let open = "SELECT 1 FROM sessions WHERE sid=?1 AND status='open' AND hidden=0";
                let cancelled = "SELECT tid FROM turns WHERE sid=?1 AND state='running' AND cancel IS NOT NULL";
                if !sql.exists(open, params![sid])? {
                    found.gone.push(*sid);
                } else if let Some(tid) = sql.row(cancelled, params![sid], |r| r.get(0))? {
                    found.cancelled.push((*sid, tid));
                }
            }
            Ok(found)
        })
    }
}

impl Tx<'_> {
    fn append(&mut self, turn: TurnRef, batches: &[Batch]) -> Result<(), Error> {
        let (s, live) = self.current_turn(turn)?;
        self.add_new(&s, turn.tid, &live.id, batches)
    }

    fn begin(&mut self, b: &Begin) -> Result<Option<Begun>, Error> {
        let s = self.current_activation(b.sid, b.epoch)?;
        // A worker has one turn at a time. A turn that runs already was begun by a commit in doubt of its own.
        if let Some(tid) = self.running_turn(b.sid)? {
            let before = SessionRow { turns: s.turns.saturating_sub(1), ..s };
            return self.begun_again(&before, TurnRef { sid: b.sid, epoch: b.epoch, tid }).map(Some);
        }
        if self.admission() != Admission::Open {
            return Err(Refusal::Closed.into());
        }
        let queued = if s.queued > 0 { self.first_queued(b.sid)? } else { None };
        let may = b.resume != Resume::Never && s.marked_at.is_some_and(|at| may_resume(at, &b.policy, self.now));
        let mut cut = s.cut_turn.filter(|_| may);
        if let Some(tid) = cut
            && !self.exists("SELECT 1 FROM turns WHERE tid=?1", params![tid])?
        {
            // Its row is gone: there is nothing to continue, and the queue must not wait for it.
            cut = None;
        }
        let plan = match cut {
            Some(_) => continuation(b.on_interrupt, queued.is_some(), b.auto_continue),
            None => Continuation::Wait,
        };
        if queued.is_none() && matches!(plan, Continuation::Carried | Continuation::Wait) {
            return Ok(None);
        }
        let alone = b.probation_at > 0 && s.unclean >= b.probation_at;
        if alone && self.another_is_on_probation(s.sid)? {
            return Err(Refusal::OnProbation.into());
        }
        let QueuedTurn { tid, id: turn_id, messages } = match (plan, queued) {
            (Continuation::Note | Continuation::Rerun, _) => {
                let id = b.fresh_id.clone();
                QueuedTurn { tid: self.new_turn(&id, s.sid, 0)?, id, messages: 0 }
            }
            (Continuation::Carried | Continuation::Wait, Some(queued)) => queued,
            (Continuation::Carried | Continuation::Wait, None) => return Ok(None),
        };
        let cut = cut.filter(|_| plan != Continuation::Wait);
        let resumed = cut.is_some() && plan == Continuation::Rerun;
        if cut.is_none() && !alone {
            return self.begin_plainly(&s, b, QueuedTurn { tid, id: turn_id, messages }).map(Some);
        }
        self.tell("UPDATE turns SET continues=?2, resumed=?3 WHERE tid=?1", params![tid, cut, resumed])?;
        self.begins(s.sid, messages)?;
        if alone {
            self.tell("UPDATE boots SET solo=?2 WHERE bid=?1", params![self.bid, s.sid])?;
        }
        if let Some(cut) = cut {
            self.tell("UPDATE turns SET continued_by=?2 WHERE tid=?1", params![cut, tid])?;
            self.tell("UPDATE sessions SET cut_turn=NULL WHERE sid=?1", params![s.sid])?;
        }
        let (mut begun, note, lost) = self.begun(&s, TurnRef { sid: b.sid, epoch: b.epoch, tid })?;
        let data = json!({ "continues": begun.continues.as_ref().map(|c| &c.turn_id), "resumed": resumed });
        begun.frame = self.begin_row(&s, b.epoch, &turn_id, TurnRow::Queued(tid), &data)?.1;
        if let (Some(note), Some(cut)) = (note, &begun.continues) {
            self.entry(s.sid, Some(tid), Role::System, &note, Some(&json!({ "continues": cut.turn_id })))?;
        }
        if lost {
            self.notice(&s, Some(&turn_id), "message_lost", LOST)?;
            self.entry(s.sid, Some(tid), Role::System, LOST, None)?;
        }
        if let Some(context) = &b.context {
            self.entry(s.sid, Some(tid), Role::System, context, None)?;
        }
        self.user_entries(&s, tid)?;
        Ok(Some(begun))
    }

    /// Begins a turn that the agent started by itself.
    fn begin_by_agent(&mut self, sid: i64, epoch: i64, id: &str) -> Result<Begun, Error> {
        let s = self.current_activation(sid, epoch)?;
        let (tid, turn_id, turns) = match self.running_turn(sid)? {
            // It was begun by a commit in doubt of the same worker.
            Some(tid) => {
                let id = self.row("SELECT id FROM turns WHERE tid=?1", params![tid], |r| r.get(0))?;
                (tid, id.ok_or(Refusal::NotFound)?, s.turns - 1)
            }
            None => {
                if self.admission() != Admission::Open {
                    return Err(Refusal::Closed.into());
                }
                let data = json!({ "continues": null, "resumed": false, "origin": "agent" });
                let (tid, _) = self.begin_row(&s, epoch, id, TurnRow::New { messages: 0 }, &data)?;
                self.tell("UPDATE sessions SET turns=turns+1 WHERE sid=?1", params![sid])?;
                (tid, id.to_owned(), s.turns)
            }
        };
        let (turn, prompt) = (TurnRef { sid, epoch, tid }, String::new());
        Ok(Begun { turn, turn_id, prompt, continues: None, first: turns == 0, turns, on_probation: false, frame: None })
    }

    /// Whether another session is on probation now.
    pub(super) fn another_is_on_probation(&self, sid: i64) -> Result<bool, Error> {
        Ok(self.exists("SELECT 1 FROM boots WHERE bid=?1 AND solo<>?2", params![self.bid, sid])?)
    }

    /// Counts a turn that begins; its messages do not wait any more.
    fn begins(&mut self, sid: i64, messages: i64) -> Result<(), SqlError> {
        self.out.waiting -= messages;
        self.tell("UPDATE sessions SET turns=turns+1, queued=queued-?2 WHERE sid=?1", params![sid, messages])
    }

    /// The one begin of a turn: its event, and its row, which is running from here on. Returns the turn's row, and the
    /// number of its prompt if its agent may be kept.
    pub(super) fn begin_row(
        &mut self,
        s: &SessionRow,
        epoch: i64,
        id: &str,
        row: TurnRow,
        start: &serde_json::Value,
    ) -> Result<(i64, Option<i64>), Error> {
        let seq = self.emit(EventKind::TurnStart, &s.key, &s.id, Some(id), start)?;
        let tid = match row {
            TurnRow::Queued(tid) => {
                self.tell(
                    "UPDATE turns SET state='running', epoch=?2, started_at=?3, sealed=?4 WHERE tid=?1",
                    params![tid, epoch, self.now, seq],
                )?;
                tid
            }
            TurnRow::New { messages } => self.insert(
                "INSERT INTO turns (id, sid, state, messages, epoch, created_at, started_at, sealed, events_after)
                 VALUES (?1, ?2, 'running', ?3, ?4, ?5, ?5, ?6, ?7) RETURNING tid",
                params![id, s.sid, messages, epoch, self.now, seq, seq - 1],
            )?,
        };
        let frame = match row {
            TurnRow::New { messages: 0 } => None,
            TurnRow::New { .. } | TurnRow::Queued(_) => self.decide_prompt(s.sid, epoch, tid)?,
        };
        Ok((tid, frame))
    }

    /// Begins a turn that continues no other, as nearly every turn does, in few statements.
    fn begin_plainly(&mut self, s: &SessionRow, b: &Begin, turn: QueuedTurn) -> Result<Begun, Error> {
        let QueuedTurn { tid, id: turn_id, messages } = turn;
        let (_, frame) = self.begin_row(s, b.epoch, &turn_id, TurnRow::Queued(tid), &plain_start())?;
        self.begins(s.sid, messages)?;
        if let Some(context) = &b.context {
            self.entry(s.sid, Some(tid), Role::System, context, None)?;
        }
        self.user_entries(s, tid)?;
        let prompt = self.messages_of(tid)?.join("\n\n");
        let turn = TurnRef { sid: b.sid, epoch: b.epoch, tid };
        let (first, turns) = (s.turns == 0, s.turns);
        Ok(Begun { turn, turn_id, prompt, continues: None, first, turns, on_probation: false, frame })
    }

    /// Reads what a worker needs of a turn that has begun, and reads it again if that commit was in doubt. Also returns
    /// the note of a continuation, and whether messages had to be left out of it.
    fn begun(&self, s: &SessionRow, turn: TurnRef) -> Result<(Begun, Option<String>, bool), Error> {
        let tid = turn.tid;
        let (turn_id, cut, resumed) = self
            .row("SELECT id, continues, resumed FROM turns WHERE tid=?1", params![tid], |r| {
                Ok((r.get::<String>(0)?, r.get::<Option<i64>>(1)?, r.get::<bool>(2)?))
            })?
            .ok_or(Refusal::NotFound)?;
        let on_probation = self.exists("SELECT 1 FROM boots WHERE bid=?1 AND solo=?2", params![self.bid, s.sid])?;
        let own = self.messages_of(tid)?.join("\n\n");
        let (prompt, continues, note, lost) = match cut {
            None => (own, None, None, false),
            Some(cut) => self.take_up(s, cut, resumed, &own)?,
        };
        let (first, turns) = (s.turns == 0, s.turns);
        Ok((Begun { turn, turn_id, prompt, continues, first, turns, on_probation, frame: None }, note, lost))
    }

    /// Reads a turn again that has begun.
    pub(super) fn begun_again(&self, s: &SessionRow, turn: TurnRef) -> Result<Begun, Error> {
        let (mut begun, ..) = self.begun(s, turn)?;
        begun.frame = self.prompt_of(turn.sid, turn.tid)?;
        Ok(begun)
    }

    /// What hooks put before the prompt of a turn that has begun.
    pub(super) fn context_of(&self, tid: i64) -> Result<Option<String>, Error> {
        Ok(self.row(
            "SELECT text FROM entries WHERE tid=?1 AND role='system' AND detail IS NULL AND text<>?2 ORDER BY seq LIMIT 1",
            params![tid, LOST],
            |r| r.text(0),
        )?)
    }

    /// The prompt of a turn that continues the turn `cut`, the note in it, and whether messages had to be left out.
    /// `own`: its own messages, if any.
    fn take_up(
        &self,
        s: &SessionRow,
        cut: i64,
        rerun: bool,
        own: &str,
    ) -> Result<(String, Option<Cut>, Option<String>, bool), Error> {
        let turn_id: String =
            self.row("SELECT id FROM turns WHERE tid=?1", params![cut], |r| r.get(0))?.ok_or(Refusal::NotFound)?;
        let (told, lost) = self.chain_messages(cut)?;
        // A turn that the agent started by itself has no message that could run again.
        let by_agent = told.is_empty()
            && self.exists("SELECT 1 FROM turns WHERE tid=?1 AND messages=0 AND continues IS NULL", params![cut])?;
        let told = if told.is_empty() && !by_agent { GONE.to_owned() } else { told.join("\n\n") };
        let lost = lost && !by_agent;
        if rerun && !by_agent {
            return Ok((told, Some(Cut { turn_id, rerun: true }), None, lost));
        }
        let tools = self.open_tools(cut)?;
        let answered = self.has_answered(s.sid, cut)?;
        let reason = s.mark_reason.as_deref().and_then(MarkReason::parse).unwrap_or(MarkReason::Crash);
        let ago = age(s.marked_at.unwrap_or(self.now), self.now);
        let facts = CutOff { reason, age: ago, message: &told, tools: &tools, answered };
        let alone = note(&facts, None);
        let prompt = if own.is_empty() { alone.clone() } else { note(&facts, Some(own)) };
        Ok((prompt, Some(Cut { turn_id, rerun: false }), Some(alone), lost))
    }

    /// The titles of a turn's tool calls that have not ended.
    fn open_tools(&self, tid: i64) -> Result<Vec<String>, Error> {
        Ok(self.rows(
            "SELECT text FROM entries WHERE tid=?1 AND role='tool'
             AND tool_status IN ('pending', 'in_progress') ORDER BY seq",
            params![tid],
            |r| r.get::<String>(0),
        )?)
    }

    /// Whether a turn has answered anything. Looks from the newest entry back to the turn's first.
    fn has_answered(&self, sid: i64, tid: i64) -> Result<bool, Error> {
        let mut answered = false;
        self.sql.each("SELECT tid, role FROM entries WHERE sid=?1 ORDER BY seq DESC", params![sid], |r| {
            let (of, role): (Option<i64>, String) = (r.get(0)?, r.get(1)?);
            answered = of == Some(tid) && (role == Role::Agent.as_str() || role == Role::Tool.as_str());
            let is_of_earlier_turn = of.is_some_and(|of| of < tid);
            Ok(if answered || is_of_earlier_turn { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(answered)
    }

    /// Fails the oldest turn that waits in a session, if one does.
    pub(super) fn fail_first(&mut self, s: &SessionRow, code: &str, text: &str) -> Result<(), Error> {
        let Some(turn) = self.first_queued(s.sid)? else { return Ok(()) };
        self.tell(
            "UPDATE turns SET state='failed', ended_at=?2, error_code=?3, error_text=?4 WHERE tid=?1",
            params![turn.tid, self.now, code, text],
        )?;
        self.leave_queue(s.sid, turn.messages)?;
        self.user_entries(s, turn.tid)?;
        let data = json!({ "outcome": Outcome::Failed, "error": { "code": code, "message": text } });
        self.emit(EventKind::TurnEnd, &s.key, &s.id, Some(&turn.id), &data)?;
        Ok(())
    }

    /// The oldest turn that waits in a session.
    pub(super) fn first_queued(&self, sid: i64) -> Result<Option<QueuedTurn>, Error> {
        Ok(self.row(
            "SELECT tid, id, messages FROM turns WHERE sid=?1 AND state='queued' ORDER BY tid LIMIT 1",
            params![sid],
            QueuedTurn::read,
        )?)
    }

    /// The turns that wait in a session, oldest first.
    pub(super) fn queue_of(&self, sid: i64) -> Result<Vec<QueuedTurn>, Error> {
        Ok(self.rows(
            "SELECT tid, id, messages FROM turns WHERE sid=?1 AND state='queued' ORDER BY tid",
            params![sid],
            QueuedTurn::read,
        )?)
    }

    pub(super) fn running_turn(&self, sid: i64) -> Result<Option<i64>, Error> {
        Ok(self.row("SELECT tid FROM turns WHERE sid=?1 AND state='running'", params![sid], |r| r.get(0))?)
    }

    fn messages_of(&self, tid: i64) -> Result<Vec<String>, Error> {
        Ok(self.rows("SELECT text FROM messages WHERE tid=?1 ORDER BY mid", params![tid], |r| r.get(0))?)
    }

    /// The messages of a turn and of the turns that it continues, oldest first, and whether some are left out. A chain
    /// may be long: the newest messages that fit into [`CHAIN`] bytes are given, and always one.
    fn chain_messages(&self, tid: i64) -> Result<(Vec<String>, bool), Error> {
        let (mut told, mut left, mut lost) = (Vec::new(), CHAIN, false);
        let (mut link, mut seen) = (Some(tid), BTreeSet::new());
        while let Some(tid) = link.filter(|tid| !lost && seen.insert(*tid)) {
            self.sql.each("SELECT mid, text FROM messages WHERE tid=?1 ORDER BY mid DESC", params![tid], |r| {
                let message = r.text(1)?;
                if message.len() > left && !told.is_empty() {
                    lost = true;
                    return Ok(ControlFlow::Break(()));
                }
                left = left.saturating_sub(message.len());
                told.push((r.get::<i64>(0)?, message));
                Ok(ControlFlow::Continue(()))
            })?;
            link = self.row("SELECT continues FROM turns WHERE tid=?1", params![tid], |r| r.maybe_number(0))?.flatten();
        }
        told.sort_unstable_by_key(|(mid, _)| *mid);
        lost |= told.is_empty();
        Ok((told.into_iter().map(|(_, message)| message).collect(), lost))
    }

    /// The session of an activation, if that is the current one.
    pub(super) fn current_activation(&self, sid: i64, epoch: i64) -> Result<SessionRow, Error> {
        let sql = concat!(
            "SELECT ",
            super::tx::session_columns!(),
            " FROM sessions WHERE sid=?1
             AND EXISTS (SELECT 1 FROM activations a WHERE a.sid=?1 AND a.closed_at IS NULL AND a.epoch=?2)"
        );
        self.session_row(sql, params![sid, epoch], SessionRow::read)?.ok_or_else(|| Refusal::Stale.into())
    }

    /// A running turn and its session.
    fn current_turn(&self, turn: TurnRef) -> Result<(SessionRow, Live), Error> {
        let found = self.row(
            "SELECT id, cancel, pieces FROM turns WHERE tid=?1 AND sid=?2 AND epoch=?3 AND state='running'",
            params![turn.tid, turn.sid, turn.epoch],
            |r| Ok(Live { id: r.get(0)?, cancel: r.get(1)?, pieces: r.get(2)? }),
        )?;
        let live = found.ok_or(Refusal::Stale)?;
        let s = self.session(turn.sid)?.ok_or(Refusal::Stale)?;
        Ok((s, live))
    }

    /// Ends the running turn of a session, if one runs. For everybody but its worker.
    pub(super) fn end_running(
        &mut self,
        s: &SessionRow,
        outcome: Outcome,
        mark: Option<(MarkReason, Millis)>,
        why: Option<&str>,
    ) -> Result<bool, Error> {
        let Some((tid, cancel)) =
            self.row("SELECT tid, cancel FROM turns WHERE sid=?1 AND state='running'", params![s.sid], |r| {
                Ok((r.get::<i64>(0)?, r.maybe_text(1)?))
            })?
        else {
            return Ok(false);
        };
        let outcome = if cancel.is_some() { Outcome::Cancelled } else { outcome };
        let why = cancel.as_deref().or(why);
        let reason = mark.map_or(MarkReason::Crash, |m| m.0);
        self.end_turn(s, tid, outcome, None, why, reason)?;
        if let (Outcome::Interrupted, Some((_, at))) = (outcome, mark) {
            self.tell("UPDATE sessions SET marked_at=?2 WHERE sid=?1", params![s.sid, at])?;
        }
        Ok(true)
    }

    /// Ends a running turn: state, transcript, mark and stream together.
    pub(super) fn end_turn(
        &mut self,
        s: &SessionRow,
        tid: i64,
        outcome: Outcome,
        error: Option<&(String, String)>,
        cancel: Option<&str>,
        mark: MarkReason,
    ) -> Result<(), Error> {
        let turn_id =
            self.row("SELECT id FROM turns WHERE tid=?1", params![tid], |r| r.text(0))?.ok_or(Refusal::Stale)?;
        let sealed = self.move_to_transcript(s, tid, &turn_id)?;
        self.end_turn_with(s, (tid, &turn_id), sealed, outcome, error, cancel, mark)
    }

    /// As [`Tx::end_turn`], once the whole answer is in the transcript, up to the event `sealed`.
    #[allow(clippy::too_many_arguments)]
    fn end_turn_with(
        &mut self,
        s: &SessionRow,
        (tid, turn_id): (i64, &str),
        sealed: Option<i64>,
        outcome: Outcome,
        error: Option<&(String, String)>,
        cancel: Option<&str>,
        mark: MarkReason,
    ) -> Result<(), Error> {
        self.tell(
            "UPDATE turns SET state=?2, ended_at=?3, error_code=?4, error_text=?5, sealed=coalesce(?6, sealed)
             WHERE tid=?1 AND state='running'",
            params![
                tid,
                TurnState::from(outcome).as_str(),
                self.now,
                error.map(|e| e.0.as_str()),
                error.map(|e| e.1.as_str()),
                sealed
            ],
        )?;
        self.tell("UPDATE sessions SET active_at=?2 WHERE sid=?1", params![s.sid, self.now])?;
        match outcome {
            Outcome::Completed => {
                self.tell(
                    "UPDATE sessions SET mark_reason=NULL, marked_at=NULL, mark_boot=NULL, cut_turn=NULL, unclean=0
                     WHERE sid=?1 AND (mark_reason IS NOT NULL OR unclean>0 OR cut_turn IS NOT NULL)",
                    params![s.sid],
                )?;
            }
            // Any end but an interrupt removes a mark that this stop made; an earlier mark stays. If the stop was cut
            // off, the next boot writes the end, and the mark is a dead boot's.
            Outcome::Failed | Outcome::Cancelled => {
                self.tell(
                    "UPDATE sessions SET mark_reason=NULL, marked_at=NULL, mark_boot=NULL WHERE sid=?1 AND mark_boot IS NOT NULL",
                    params![s.sid],
                )?;
            }
            Outcome::Interrupted => {
                self.tell(
                    "UPDATE sessions SET mark_reason=?2, marked_at=?3, mark_boot=NULL, cut_turn=?4 WHERE sid=?1",
                    params![s.sid, mark.as_str(), self.now, tid],
                )?;
            }
        }
        self.tell("UPDATE boots SET solo=NULL WHERE bid=?1 AND solo=?2", params![self.bid, s.sid])?;
        self.tell("DELETE FROM permissions WHERE tid=?1", params![tid])?;
        let error = error.map(|(code, message)| json!({ "code": code, "message": message }));
        let mut data = json!({ "outcome": outcome, "error": error });
        if let (Outcome::Cancelled, Some(why)) = (outcome, cancel) {
            data["reason"] = why.into();
        }
        self.emit(EventKind::TurnEnd, &s.key, &s.id, Some(turn_id), &data)?;
        Ok(())
    }
}
