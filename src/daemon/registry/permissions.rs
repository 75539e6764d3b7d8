//! Open permissions: the requests of agents, kept until they are answered or their turn is over.

use std::sync::Arc;

use super::Registry;
use crate::agent::{PermissionOption, PermissionOutcome};

/// An open permission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenPermission {
    /// Its id.
    pub request_id: String,
    /// The options that the agent offers.
    pub options: Vec<PermissionOption>,
    /// The session of the agent.
    pub session_id: String,
    /// The request as clients see it.
    pub shown: Arc<serde_json::Value>,
}

/// The outcome of an answer to a permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// It was the first answer.
    Settled,
    /// The permission is settled already, or there is none.
    Resolved,
    /// The agent did not offer this option.
    NotOffered,
}

impl Registry {
    /// Adds an open permission, which clients can answer from now on.
    pub fn open_permission(&self, sid: i64, asked: OpenPermission) {
        if let Some(handle) = self.lock().handles.get_mut(&sid)
            && !handle.answered.contains(&asked.request_id)
        {
            handle.permissions.push(asked);
        }
    }

    /// A session's open permissions, oldest first.
    pub fn permissions(&self, sid: i64) -> Vec<Arc<serde_json::Value>> {
        let inner = self.lock();
        inner.handles.get(&sid).into_iter().flat_map(|h| h.permissions.iter().map(|p| p.shown.clone())).collect()
    }

    /// The open permissions of all sessions: key, session, and the request as clients see it.
    pub fn all_permissions(&self) -> Vec<(String, String, Arc<serde_json::Value>)> {
        let inner = self.lock();
        let mut all = Vec::new();
        for (sid, key) in inner.roster.live() {
            let open = inner.handles.get(&sid).into_iter().flat_map(|h| &h.permissions);
            all.extend(open.map(|p| (key.to_owned(), p.session_id.clone(), p.shown.clone())));
        }
        all
    }

    /// The number of sessions that wait for a permission.
    pub fn asking(&self) -> usize {
        self.lock().handles.values().filter(|h| !h.permissions.is_empty()).count()
    }

    /// A client answers an open permission: nobody else can settle it from here on. The answer is to be made durable and
    /// then given to the worker ([`Registry::answered`]), or given back ([`Registry::open_permission`]).
    ///
    /// # Errors
    /// As [`Answered`].
    pub fn claim_permission(&self, sid: i64, request_id: &str, option: &str) -> Result<OpenPermission, Answered> {
        let mut inner = self.lock();
        let permissions = &mut inner.handles.get_mut(&sid).ok_or(Answered::Resolved)?.permissions;
        let at = permissions.iter().position(|p| p.request_id == request_id).ok_or(Answered::Resolved)?;
        if !permissions[at].options.iter().any(|o| o.option_id == option) {
            return Err(Answered::NotOffered);
        }
        Ok(permissions.remove(at))
    }

    /// The answer of a client is durable: the worker gives it to its agent.
    pub fn answered(&self, sid: i64, request_id: &str, option: &str) {
        let outcome = PermissionOutcome::Selected(option.to_owned());
        if let Some(handle) = self.lock().handles.get_mut(&sid) {
            // Its worker may be about to show what it read before the answer.
            handle.permissions.retain(|p| p.request_id != request_id);
            if handle.attaching {
                handle.answered.push(request_id.to_owned());
            }
        }
        self.post(sid, |mailbox| mailbox.post(|l| l.answers.push((request_id.to_owned(), outcome))));
    }

    /// Settles an open permission. The first answer counts.
    pub fn answer_permission(&self, sid: i64, request_id: &str, option: Option<&str>, by: &'static str) -> Answered {
        let mut inner = self.lock();
        let Some(handle) = inner.handles.get_mut(&sid) else { return Answered::Resolved };
        let Some(at) = handle.permissions.iter().position(|p| p.request_id == request_id) else {
            return Answered::Resolved;
        };
        let outcome = match option {
            None => PermissionOutcome::Cancelled,
            Some(option) if handle.permissions[at].options.iter().any(|o| o.option_id == option) => {
                PermissionOutcome::Selected(option.to_owned())
            }
            Some(_) => return Answered::NotOffered,
        };
        handle.permissions.remove(at);
        let mailbox = handle.mailbox.clone();
        drop(inner);
        mailbox.post(|l| l.permissions.push((request_id.to_owned(), outcome, by)));
        Answered::Settled
    }
}
