//! Turns that an agent begins by itself, and the note for a new process about the turn during which the last one died.

use super::Next;
use super::session::Session;
use crate::agent;
use crate::config::AgentKind;
use crate::model::event::MarkReason;
use crate::model::turn::{CutOff, recall};
use crate::model::worker::{Began, began};
use crate::store::{Error, Refusal};

impl Session {
    /// Begins a turn without a message, for work that the agent began by itself.
    pub(super) fn begin_own(&mut self) -> Next {
        let sid = self.host.sid;
        let came = match self.ctx().registry.begin(sid) {
            None => Began::Chosen,
            Some(false) => Began::Reserved,
            Some(true) => {
                let id = uuid::Uuid::now_v7().to_string();
                match self.ctx().store.begin_agent_turn(sid, self.host.epoch, id) {
                    Ok(begun) => {
                        log::info!(key = self.key(), turn_id = begun.turn_id; "the agent begins a turn by itself");
                        return self.turn(begun, None, true);
                    }
                    Err(Error::Refused(Refusal::Closed)) => Began::Nothing,
                    Err(Error::Refused(_)) => Began::Refused,
                    Err(e) => {
                        log::error!(key = self.key(); "the agent's own turn cannot begin yet: {e}");
                        Began::InDoubt
                    }
                }
            }
        };
        self.then(began(came))
    }

    /// The session's last turn, if its agent died during it.
    pub(super) fn died_before(&mut self) -> Option<String> {
        if self.turns == 0 || self.host.agent.kind != AgentKind::Acp {
            return None;
        }
        let history = self.host.agent.history;
        let last = agent::Host::history(&mut self.host, history).pop()?.turn_id?;
        let turn = self.ctx().store.turn(&last).ok()?;
        turn.error.is_some_and(|(code, _)| code == "agent_died").then_some(last)
    }

    /// A prompt that begins with a note about the turn during which the agent's process ended.
    pub(super) fn recalling(&self, turn_id: &str, prompt: &str) -> String {
        match self.ctx().store.cut_short(turn_id.to_owned()) {
            Ok(cut) => {
                let age = crate::model::session::age(cut.ended_at, self.ctx().wall());
                let facts = CutOff {
                    reason: MarkReason::Crash,
                    age,
                    message: &cut.message,
                    tools: &cut.tools,
                    answered: cut.answered,
                };
                recall(&facts, prompt)
            }
            Err(e) => {
                log::warn!(key = self.key(); "the agent is not told of the turn {turn_id}, in which it ended: {e}");
                prompt.to_owned()
            }
        }
    }
}
