//! Closes a session: its agent, and its activation unless that is closed elsewhere.

use std::time::Duration;

use super::session::{Session, Stage};
use super::{Next, class};
use crate::agent;
use crate::daemon::context::CANCEL;
use crate::daemon::mailbox::Close;
use crate::daemon::registry::{Doing, WorkRequest};
use crate::model::event::{Actor, EndReason};
use crate::model::worker::{Then, Written, closed};

/// How long an agent may take to close, without another limit.
const CLOSE: Duration = Duration::from_secs(10);

impl Session {
    /// Closes the agent.
    pub(super) fn close(&mut self, why: Close) -> Next {
        let _ = self.ctx().registry.set(self.host.sid, Doing::Closing);
        let within = match why {
            Close::Retire => CANCEL,
            // The time that the sweep will grant: a worker must not be abandoned because its agent has to be killed.
            Close::Stop => self.ctx().config().shutdown.close * 4 / 10,
            Close::Park => CLOSE,
        };
        // A stop logs the number of closed activations in one line.
        let level = if why == Close::Park { log::Level::Info } else { log::Level::Debug };
        log::log!(level, key = self.key(), session_id = agent::Host::identity(&self.host).session_id; "session closes: {why:?}");
        let until = self.host.close_by.unwrap_or_else(|| self.ctx().now() + within);
        for left in self.agent.close(&mut self.host, until) {
            log::warn!(key = self.key(); "the agent could not be ended: {left}");
        }
        if why == Close::Stop {
            return Next::Gone;
        }
        self.host.collect();
        if self.host.work || self.host.auto_continue {
            // Its unfinished work is for the session's next worker. The session may have been resumed meanwhile; if
            // not, the next worker's activation is refused as stale.
            let request =
                WorkRequest { sid: self.host.sid, key: self.key().to_owned(), auto_continue: self.host.auto_continue };
            self.ctx().registry.want(request);
        }
        if why != Close::Park {
            return Next::Gone;
        }
        self.park(false)
    }

    /// Ends the activation as parked, and retries until that succeeds.
    pub(super) fn park(&mut self, tried: bool) -> Next {
        if tried {
            self.host.collect();
            if closed(Written::InDoubt, self.host.close) == Then::Gone {
                return Next::Gone;
            }
        }
        let store = &self.ctx().store;
        let ended = store.close_activation(self.host.sid, self.host.epoch, EndReason::Parked, Actor::Policy);
        let written = match &ended {
            Ok(_) => Written::Yes { more: false },
            Err(e) => class(e),
        };
        match (written, ended) {
            (Written::Damaged, Err(e)) => {
                log::error!(key = self.key(); "the session cannot be parked, the next boot tries it: {e}");
            }
            (Written::InDoubt, Err(e)) => log::error!(key = self.key(); "the session cannot be parked yet: {e}"),
            _ => {}
        }
        // A letter that changes the way to close is read after the pause.
        match closed(written, None) {
            Then::Again => self.pause(Stage::Parking { tried: true }),
            _ => Next::Gone,
        }
    }
}
