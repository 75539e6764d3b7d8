//! Open permissions: what an agent asks for, kept until somebody answers or its turn is over.

use std::sync::Arc;

use super::Registry;
use crate::agent::{PermissionOption, PermissionOutcome};

/// A permission that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenPermission {
    /// Its id.
    pub request_id: String,
    /// What the agent offers.
    pub options: Vec<PermissionOption>,
    /// The session that asks.
    pub session_id: String,
    /// What whoever may answer is shown.
    pub shown: Arc<serde_json::Value>,
}

/// What came of an answer to a permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// It was the first.
    Settled,
    /// It had been settled, or never asked.
    Resolved,
    /// The agent did not offer that.
    NotOffered,
}

impl Registry {
    /// The agent asks for a permission: known from here on to whoever may answer.
    pub fn open_permission(&self, sid: i64, asked: OpenPermission) {
        if let Some(handle) = self.lock().handles.get_mut(&sid) {
            handle.permissions.push(asked);
        }
    }

    /// What is open of a session, oldest first.
    pub fn permissions(&self, sid: i64) -> Vec<Arc<serde_json::Value>> {
        let inner = self.lock();
        inner.handles.get(&sid).into_iter().flat_map(|h| h.permissions.iter().map(|p| p.shown.clone())).collect()
    }

    /// What is open of all sessions: key, session and what is shown.
    pub fn all_permissions(&self) -> Vec<(String, String, Arc<serde_json::Value>)> {
        let inner = self.lock();
        let mut all = Vec::new();
        for (sid, key) in inner.roster.live() {
            let open = inner.handles.get(&sid).into_iter().flat_map(|h| &h.permissions);
            all.extend(open.map(|p| (key.to_owned(), p.session_id.clone(), p.shown.clone())));
        }
        all
    }

    /// How many sessions wait for a permission.
    pub fn asking(&self) -> usize {
        self.lock().handles.values().filter(|h| !h.permissions.is_empty()).count()
    }

    /// Settles an open permission, first come first served.
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
