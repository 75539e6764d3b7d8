//! Before there is a session to work for: its activation is opened, as often as it takes.

use std::sync::Arc;
use std::time::Instant;

use super::make::{named, working_dir};
use super::session::Session;
use super::{AGAIN, class};
use crate::agent::Identity;
use crate::config;
use crate::daemon::context::Context;
use crate::daemon::mailbox::{Close, Letters, Mailbox};
use crate::daemon::registry::{Doing, WorkRequest};
use crate::daemon::turn_host::TurnHost;
use crate::model::names;
use crate::model::worker::{Then, open_again, opened};
use crate::store::{Error, Opened, Refusal};

/// An activation that is to be opened.
pub struct Opening {
    config: config::Agent,
    /// The session's id, as soon as it is known; empty if its directory's name does not need it.
    id: Option<String>,
    /// It was tried, and nobody knows whether that was kept.
    doubt: bool,
    /// It was tried in vain: when it is tried again.
    again_at: Option<Instant>,
    /// What came meanwhile: for the session once it is open, or for the next worker.
    letters: Letters,
}

/// What came of a try.
pub enum Tried {
    /// It is open.
    Open(Box<Session>),
    /// It is to be tried again at the instant.
    Later(Instant),
    /// The session is not open any more, or a stop has begun, or it was told to close.
    Gone,
}

impl Opening {
    /// For a session that this agent answers.
    pub fn new(config: config::Agent) -> Self {
        let id = (!names::needs_id(&config.cwd)).then(String::new);
        Self { config, id, doubt: false, again_at: None, letters: Letters::default() }
    }

    /// Tries to open it.
    pub fn try_to(&mut self, ctx: &Arc<Context>, request: &WorkRequest, mailbox: &Arc<Mailbox>) -> Tried {
        if let Some(at) = self.again_at {
            self.letters.add(mailbox.take());
            if open_again(self.letters.close) == Then::Gone {
                return self.leave(ctx, request);
            }
            if at > ctx.now() {
                return Tried::Later(at);
            }
        }
        let error = match self.open(ctx, request) {
            Ok((activation, id)) => return Tried::Open(self.session(ctx, request, mailbox, activation, &id)),
            Err(error) => error,
        };
        if opened(class(&error)) == Then::Gone {
            return Tried::Gone;
        }
        log::error!(key = request.key; "the session cannot be opened yet: {error}");
        let at = ctx.now() + AGAIN;
        self.again_at = Some(at);
        Tried::Later(at)
    }

    fn open(&mut self, ctx: &Context, request: &WorkRequest) -> Result<(Opened, String), Error> {
        let id = match &self.id {
            Some(id) => id.clone(),
            None => self.id.insert(ctx.store.session_in_row(request.sid)?.id).clone(),
        };
        let cwd = working_dir(&ctx.state_dir, &self.config.cwd, &request.key, &id).display().to_string();
        let opened = ctx.store.open_activation(request.sid, self.config.name.clone(), cwd);
        if std::mem::replace(&mut self.doubt, true) && matches!(opened, Err(Error::Refused(Refusal::Stale))) {
            // What stands open is its own, opened by a commit of whose fate it never heard.
            return Ok((ctx.store.reopen_activation(request.sid)?, id));
        }
        Ok((opened?, id))
    }

    /// It is to close before it is open: what came for it is for the next worker.
    fn leave(&self, ctx: &Context, request: &WorkRequest) -> Tried {
        let _ = ctx.registry.set(request.sid, Doing::Closing);
        if self.letters.close != Some(Close::Stop) {
            let auto_continue = request.auto_continue || self.letters.auto_continue;
            ctx.registry.want(WorkRequest { auto_continue, ..request.clone() });
        }
        Tried::Gone
    }

    fn session(
        &mut self,
        ctx: &Arc<Context>,
        request: &WorkRequest,
        mailbox: &Arc<Mailbox>,
        opened: Opened,
        id: &str,
    ) -> Box<Session> {
        let identity = Identity {
            key: opened.session.key.clone(),
            session_id: opened.session.id.clone(),
            sid: request.sid,
            boot_id: ctx.boot_id.clone(),
            cwd: working_dir(&ctx.state_dir, &self.config.cwd, &request.key, id),
        };
        crate::log::about("session_id", &identity.session_id);
        log::info!(key = identity.key, session_id = identity.session_id;
            "session live: activation {}, agent {}", opened.epoch, self.config.name);
        let config = named(self.config.clone(), &identity);
        let agent = (ctx.agents)(ctx, &config);
        let mut host = TurnHost::new(ctx.clone(), request.sid, opened.epoch, config, mailbox.clone(), identity);
        host.take_in(std::mem::take(&mut self.letters));
        host.work = true;
        host.auto_continue |= request.auto_continue;
        Box::new(Session::new(host, agent, opened.session.agent_session, opened.session.turns))
    }
}
