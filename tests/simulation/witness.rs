//! The witness: reads the durable event stream and the tables as anybody could, and knows what was promised.
//!
//! It keeps its own account of every session and turn, made from the stream alone, and compares the tables with it after
//! each step. It must not know what the simulated daemon means to do.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::Connection;
use serde_json::Value;

/// What the mark of a session must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    None,
    /// From before: only a completed turn clears it.
    Before,
    /// Made by the stop in progress: any end but an interrupt takes it back.
    Stop,
    /// As `Stop`, if its commit was kept.
    Doubt,
}

#[derive(Clone, Debug)]
pub struct Session {
    pub epoch: i64,
    pub open: bool,
    pub closed: bool,
    pub mark: Mark,
    pub running: Option<String>,
}

impl Session {
    const fn new() -> Self {
        Self { epoch: 0, open: false, closed: false, mark: Mark::None, running: None }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Turn {
    pub started: bool,
    pub outcome: Option<String>,
    pub text: String,
}

/// What must not change while a session is suspended.
type Still = (i64, i64, i64, Option<String>, Option<i64>, Option<i64>, i64, i64);

#[derive(Default)]
pub struct Witness {
    conn: Option<Connection>,
    pub seq: i64,
    pub events: i64,
    /// The number and the time of each event.
    pub seqs: Vec<(i64, i64)>,
    /// The number of each turn's start.
    pub begun: BTreeMap<String, i64>,
    /// What was said in each session, in events: a deleted one's is purged.
    pub words: BTreeMap<String, i64>,
    pub sessions: BTreeMap<String, Session>,
    pub turns: BTreeMap<String, Turn>,
    /// Every journalled event, as the stream told it.
    pub told: Vec<(String, String, String)>,
    still: BTreeMap<i64, Still>,
    pub unclean: BTreeMap<i64, i64>,
    /// Prints what it reads.
    pub trace: bool,
}

fn short(id: &str) -> &str {
    &id[id.len() - 4..]
}

impl Witness {
    /// A witness that looks through a connection of its own.
    pub fn new(eyes: Connection) -> Self {
        eyes.execute_batch("PRAGMA query_only=ON").unwrap();
        eyes.set_prepared_statement_cache_capacity(64);
        Self { conn: Some(eyes), trace: std::env::var_os("OSTLER_SIM_TRACE").is_some(), ..Self::default() }
    }

    pub fn eyes(self) -> Connection {
        self.conn.unwrap()
    }

    pub fn conn(&self) -> &Connection {
        self.conn.as_ref().unwrap()
    }

    pub fn number(&self, sql: &str) -> i64 {
        self.conn().prepare_cached(sql).unwrap().query_row([], |r| r.get(0)).unwrap()
    }

    /// The first column of every row.
    pub fn texts(&self, sql: &str) -> Vec<String> {
        let mut statement = self.conn().prepare_cached(sql).unwrap();
        statement.query_map([], |r| r.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    }

    /// Reads what is new in the stream. Whether anything was.
    pub fn read(&mut self) -> bool {
        let conn = self.conn.take().unwrap();
        let rows: Vec<(i64, String, String, Option<String>, String, i64)> = conn
            .prepare_cached("SELECT seq, kind, session_id, turn_id, data, at FROM events WHERE seq>?1 ORDER BY seq")
            .unwrap()
            .query_map([self.seq], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?, r.get(5)?)))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        self.conn = Some(conn);
        let any = !rows.is_empty();
        for (seq, kind, session, turn, data, at) in rows {
            assert!(seq > self.seq, "event numbers rise");
            self.seq = seq;
            self.events += 1;
            self.seqs.push((seq, at));
            if let Some(turn) = turn.as_ref().filter(|_| kind == "turn_start") {
                self.begun.insert(turn.clone(), seq);
            }
            if self.trace {
                eprintln!("  {seq} {kind} {} {} {data}", short(&session), turn.as_deref().map_or("", short));
            }
            let data: Value = serde_json::from_str(&data).unwrap();
            self.take(&kind, &session, turn.as_deref(), &data);
        }
        any
    }

    fn take(&mut self, kind: &str, id: &str, turn_id: Option<&str>, data: &Value) {
        let s = self.sessions.entry(id.to_owned()).or_insert_with(Session::new);
        let reason = data["reason"].as_str().unwrap_or_default().to_owned();
        match kind {
            "session_start" => {
                assert!(!s.closed && !s.open, "a second activation opens: {s:?}");
                assert_eq!(data["epoch"].as_i64(), Some(s.epoch + 1), "epochs have no gaps");
                s.epoch += 1;
                s.open = true;
                assert_eq!(reason == "resume", s.epoch > 1 && s.mark != Mark::None, "why it starts: {reason}, {s:?}");
                self.told.push((kind.into(), id.into(), reason));
            }
            "session_end" => {
                assert!(s.open && !s.closed, "an end of what is not open: {s:?}");
                assert_eq!(data["epoch"].as_i64(), Some(s.epoch));
                assert!(s.running.is_none(), "an end while a turn runs: {s:?}");
                let last = matches!(reason.as_str(), "reset" | "idle" | "daily" | "expired" | "deleted" | "new");
                assert_eq!(data["final"].as_bool(), Some(last));
                let pending = !data["resume_pending"].is_null();
                let marked = s.mark != Mark::None && !last;
                assert!(
                    pending == marked || s.mark == Mark::Doubt,
                    "the end tells the mark that is left: {data}, {s:?}"
                );
                s.open = false;
                self.told.push((kind.into(), id.into(), reason));
            }
            "session_closed" => {
                assert!(!s.open && !s.closed, "closed twice, or live: {s:?}");
                s.closed = true;
                s.mark = Mark::None;
                self.told.push((kind.into(), id.into(), reason));
            }
            "turn_start" => {
                let t = self.turns.entry(turn_id.unwrap().to_owned()).or_default();
                assert!(s.open && s.running.is_none(), "a turn starts where none may: {s:?}");
                assert!(!t.started && t.outcome.is_none(), "a turn starts again: {t:?}");
                t.started = true;
                s.running = turn_id.map(str::to_owned);
            }
            "turn_end" => {
                let outcome = data["outcome"].as_str().unwrap();
                let t = self.turns.entry(turn_id.unwrap().to_owned()).or_default();
                assert!(t.outcome.is_none(), "a second outcome, {outcome}: {t:?}");
                assert!(t.started || matches!(outcome, "cancelled" | "failed"), "it never began: {outcome}");
                t.outcome = Some(outcome.to_owned());
                if s.running.as_deref() == turn_id {
                    s.running = None;
                    s.mark = match (outcome, s.mark) {
                        ("completed", _) => Mark::None,
                        ("interrupted", _) => Mark::Before,
                        (_, Mark::Before) => Mark::Before,
                        (_, Mark::None | Mark::Stop | Mark::Doubt) => Mark::None,
                    };
                } else {
                    assert!(!t.started, "a turn ends that does not run here");
                }
            }
            "text" | "thought" | "tool" => {
                assert_eq!(s.running.as_deref(), turn_id, "said by a turn that does not run");
                *self.words.entry(id.to_owned()).or_default() += 1;
                if kind == "text" {
                    let t = self.turns.entry(turn_id.unwrap().to_owned()).or_default();
                    t.text.push_str(data["text"].as_str().unwrap());
                }
            }
            "plan" | "permission" => *self.words.entry(id.to_owned()).or_default() += 1,
            _ => {}
        }
    }

    /// The stop marked every running session, or may have.
    pub fn marked(&mut self, kept: bool) {
        // One that keeps agents leaves them alone.
        let spared = self.texts(SPARED);
        for (_, s) in self.sessions.iter_mut().filter(|(id, s)| s.running.is_some() && !spared.contains(id)) {
            s.mark = match (s.mark, kept) {
                (Mark::Before, _) => Mark::Before,
                (Mark::Stop, _) | (_, true) => Mark::Stop,
                (Mark::None | Mark::Doubt, false) => Mark::Doubt,
            };
        }
    }

    /// A boot has begun: a mark of a stop before it is taken back by nothing but a completed turn.
    pub fn stops_are_over(&mut self) {
        let marked = self.texts("SELECT id FROM sessions WHERE mark_reason IS NOT NULL");
        for (id, s) in &mut self.sessions {
            s.mark = match s.mark {
                // Whether it was made is no secret any more.
                Mark::Doubt if !marked.contains(id) => Mark::None,
                Mark::Doubt | Mark::Stop => Mark::Before,
                other => other,
            };
        }
    }

    /// Compares the tables with the account. `recovered`: a boot has just counted deaths.
    pub fn check(&mut self, recovered: bool) {
        let conn = self.conn.take().unwrap();
        let fault: Option<String> = {
            use rusqlite::OptionalExtension as _;
            conn.prepare_cached(FAULTS).unwrap().query_row([], |r| r.get(0)).optional().unwrap()
        };
        assert_eq!(fault, None, "in the tables");
        let mut statement = conn
            .prepare_cached(
                "SELECT sid, id, status, epoch, turns, messages, mark_reason, marked_at, cut_turn, unclean, active_at, hidden
                 FROM sessions",
            )
            .unwrap();
        let mut rows = statement.query([]).unwrap();
        let mut suspended = BTreeSet::new();
        let before = std::mem::take(&mut self.unclean);
        while let Some(r) = rows.next().unwrap() {
            let sid: i64 = r.get(0).unwrap();
            let id: String = r.get(1).unwrap();
            let status = r.get_ref(2).unwrap().as_str().unwrap().to_owned();
            let still: Still = (
                r.get(3).unwrap(),
                r.get(4).unwrap(),
                r.get(5).unwrap(),
                r.get(6).unwrap(),
                r.get(7).unwrap(),
                r.get(8).unwrap(),
                r.get(9).unwrap(),
                r.get(10).unwrap(),
            );
            let none = Session::new();
            let s = self.sessions.get(&id).unwrap_or(&none);
            let marked = still.3.is_some();
            let right = match s.mark {
                Mark::None => !marked,
                Mark::Before | Mark::Stop => marked,
                Mark::Doubt => true,
            };
            assert!(right, "session {sid} ({status}): marked {:?}, by promise {s:?}", still.3);
            assert_eq!(marked, still.4.is_some(), "session {sid}: a mark has its time");
            assert_eq!(still.0, s.epoch, "session {sid}: its epoch");
            assert_eq!(
                status == "ended",
                s.closed,
                "session {sid}: session_closed is said of what is over, and of that only"
            );
            self.unclean.insert(sid, still.6);
            if !recovered && still.6 > before.get(&sid).copied().unwrap_or(0) {
                let given_up = "SELECT 1 FROM activations WHERE sid=?1 AND epoch=?2 AND abandoned=1";
                let given_up = conn.prepare_cached(given_up).unwrap().exists([sid, still.0]).unwrap();
                assert!(given_up, "session {sid}: a death is counted, and nothing died");
            }
            if status == "suspended" {
                suspended.insert(sid);
                let was = self.still.entry(sid).or_insert_with(|| still.clone());
                assert_eq!(*was, still, "session {sid} is suspended and was touched");
            }
        }
        drop(rows);
        drop(statement);
        self.still.retain(|sid, _| suspended.contains(sid));
        self.conn = Some(conn);
    }

    /// Of the sessions that are one death short of suspension, one starts only when the one before it has run its time.
    /// `boot`: the number of the last event before this boot.
    pub fn check_alone(&self, alone_at: i64, alone_ms: i64, boot: i64) {
        let mut statement = self
            .conn()
            .prepare_cached(
                "SELECT t.id, t.started_at FROM turns t JOIN sessions s ON s.sid=t.sid JOIN activations a ON a.sid=t.sid
                 WHERE t.state='running' AND s.unclean>=?1 AND a.closed_at IS NULL AND a.bid=(SELECT max(bid) FROM boots)",
            )
            .unwrap();
        let running: Vec<(String, i64)> =
            statement.query_map([alone_at], |r| Ok((r.get(0)?, r.get(1)?))).unwrap().map(Result::unwrap).collect();
        // Those of earlier boots were attached to, and have not been for long.
        let (attached, mut begun): (Vec<_>, Vec<_>) =
            running.into_iter().partition(|(id, _)| self.begun.get(id).is_some_and(|seq| *seq <= boot));
        assert!(attached.len() <= 1, "sessions that may be deadly are attached to together: {attached:?}");
        begun.sort_by_key(|(_, at)| *at);
        let close = begun.windows(2).find(|pair| pair[1].1 - pair[0].1 < alone_ms);
        assert!(close.is_none(), "sessions that may be deadly run together: {close:?}");
    }

    /// Each session that runs is marked: what must hold from a stop's first wait on.
    pub fn check_marked(&self) {
        let bare = self.number(
            "SELECT count(*) FROM sessions s WHERE mark_reason IS NULL AND sid IN (SELECT sid FROM turns WHERE state='running')
             AND NOT EXISTS (SELECT 1 FROM kept k, meta m WHERE k.sid=s.sid
               AND m.name='keeps ' || (SELECT max(bid) FROM boots))",
        );
        assert_eq!(bare, 0, "sessions run unmarked in a stop");
    }
}

/// The sessions whose agents a stop in progress leaves alone.
const SPARED: &str = "SELECT s.id FROM sessions s JOIN kept k ON k.sid=s.sid
    WHERE EXISTS (SELECT 1 FROM meta WHERE name='keeps ' || (SELECT max(bid) FROM boots))";

/// What must never be in the tables, each with its name.
const FAULTS: &str = "
    SELECT 'a running turn without its activation, tid ' || tid FROM turns t WHERE state='running' AND NOT EXISTS
      (SELECT 1 FROM activations a WHERE a.sid=t.sid AND a.epoch=t.epoch AND a.closed_at IS NULL)
    UNION ALL SELECT 'a turn that waits or runs where it cannot, tid ' || tid FROM turns t JOIN sessions s ON s.sid=t.sid
      WHERE t.state IN ('queued', 'running') AND s.status<>'open'
    UNION ALL SELECT 'live, but not open, sid ' || s.sid FROM activations a JOIN sessions s ON s.sid=a.sid
      WHERE a.closed_at IS NULL AND s.status<>'open'
    UNION ALL SELECT 'marked, but over, sid ' || sid FROM sessions WHERE status='ended' AND (mark_reason IS NOT NULL OR cut_turn IS NOT NULL)
    UNION ALL SELECT 'cut without a mark, sid ' || sid FROM sessions WHERE cut_turn IS NOT NULL AND mark_reason IS NULL
    UNION ALL SELECT 'two current sessions, ' || key FROM sessions WHERE status='open' GROUP BY key HAVING count(*)>1
    UNION ALL SELECT 'a cut turn that was not cut, sid ' || s.sid FROM sessions s JOIN turns t ON t.tid=s.cut_turn
      WHERE t.state<>'interrupted' OR t.continued_by IS NOT NULL OR t.sid<>s.sid
    UNION ALL SELECT 'a message apart from its turn, mid ' || m.mid FROM messages m JOIN turns t ON t.tid=m.tid WHERE m.sid<>t.sid
    UNION ALL SELECT 'goes on, but was not cut off, tid ' || tid FROM turns WHERE continued_by IS NOT NULL AND state<>'interrupted'
    UNION ALL SELECT 'alone, but not running, bid ' || bid FROM boots WHERE solo IS NOT NULL AND solo NOT IN (SELECT sid FROM turns WHERE state='running')
    UNION ALL SELECT 'a chain that forks, tid ' || continues FROM turns WHERE continues IS NOT NULL GROUP BY continues HAVING count(*)>1
    LIMIT 1";
