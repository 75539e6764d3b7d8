//! A running agent: its connection, its session and what is known of both.
//!
//! It must not know what a turn is made of.

use std::collections::HashSet;

use super::client::{Client, Event};
use super::session::{self, Capabilities};
use super::wire::v1;
use crate::agent::json::Raw;
use crate::agent::{Host, Said, one_line};
use crate::config::Consent;
use crate::model::offers::Offers;

/// A running agent.
#[derive(Debug)]
pub struct Live {
    pub client: Client,
    pub can: Capabilities,
    pub session: String,
    /// There is proof beyond the agent's answer that it knows the session.
    pub proven: bool,
    /// The session changed within a turn: the worker must be told its id by a `start`.
    pub changed: bool,
    /// The first event of work that the agent began between turns; it gets a turn of its own. Nothing after it has been
    /// read.
    pub own: Option<Event>,
    /// The place of that event in the agent's output.
    pub own_at: Option<(u64, usize)>,
    /// What can be chosen in the session.
    pub offers: Offers,
    /// What a mode that asks nobody meets, and why the agent was last known to ask nobody.
    pub consent: Option<Consent>,
    pub silent: Option<String>,
    /// The requests that choose something, whose answers are not waited for.
    pub choosing: HashSet<u64>,
}

impl Live {
    /// An agent whose session was opened.
    pub fn new(client: Client, can: Capabilities, session: String) -> Self {
        Self {
            client,
            can,
            session,
            proven: false,
            changed: false,
            own: None,
            own_at: None,
            offers: Offers::default(),
            consent: None,
            silent: None,
            choosing: HashSet::new(),
        }
    }

    /// Tells of an agent that asks nobody before it acts, once for each reason.
    pub fn tell_consent(&mut self, host: &mut dyn Host) {
        let silent = self.offers.asks_nobody();
        // After another daemon nothing of the mode is known until the agent tells.
        if silent == self.silent || self.offers.are_unknown() {
            return;
        }
        self.silent = silent;
        if let (Some(_), Some(why)) = (self.consent, &self.silent) {
            let text = format!("the agent asks nobody before it acts ({})", one_line(why, 200));
            log::warn!("{}: {text}", host.identity().key);
            host.said(Said::Notice("asks_nobody".into(), text));
        }
    }

    /// Whether an event shows work that the agent began by itself: an update of its session, or a permission request.
    pub fn is_own_work(&self, event: &Event) -> bool {
        match event {
            Event::Request(_, method, _) => method == v1::REQUEST_PERMISSION,
            Event::Notification(method, params) if method == v1::UPDATE => {
                let [id, update] = Raw::of(params).fields(["sessionId", "update"]);
                id.string().is_none_or(|id| id == self.session) && session::is_own_words(update)
            }
            _ => false,
        }
    }
}
