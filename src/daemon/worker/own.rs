//! What an agent does without a message, and what it does not remember: a worker's part in both.

use std::time::Instant;

use super::{Next, Worker};
use crate::store::{Error, Refusal};

impl Worker {
    /// The agent works by itself: what it says and asks is a turn of its own, without a message.
    pub(super) fn own_turn(&mut self) -> Next {
        if self.start_after.is_some_and(|at| at > Instant::now()) {
            return Next::Idle;
        }
        let sid = self.desk.sid;
        match self.house().registry.begin(sid) {
            None => return Next::Idle,
            Some(false) => return Next::Reserved,
            Some(true) => {}
        }
        match self.house().store.begin_agent_turn(sid, self.desk.epoch, uuid::Uuid::now_v7().to_string()) {
            Ok(begun) => {
                log::info!(key = self.key(), turn_id = begun.turn_id; "the agent begins a turn by itself");
                let next = self.turn(&begun, None);
                self.own_work = Some(Instant::now());
                self.house().registry.hold_back(sid);
                next
            }
            Err(Error::Refused(Refusal::Closed)) => Next::Idle,
            Err(Error::Refused(_)) => self.gone(),
            Err(e) => {
                log::error!(key = self.key(); "the agent's own turn cannot begin yet: {e}");
                Next::Doubt
            }
        }
    }
}
