//! Opens the activation of a session, and retries until that succeeds.

use std::sync::Arc;
use std::time::Instant;

use super::make::{named, working_dir};
use super::session::Session;
use super::{AGAIN, class};
use crate::agent::Identity;
use crate::config;
use crate::config::AgentKind;
use crate::daemon::context::Context;
use crate::daemon::mailbox::{Close, Letters, Mailbox};
use crate::daemon::registry::{Doing, WorkRequest};
use crate::daemon::turn_host::TurnHost;
use crate::model::names;
use crate::model::worker::{Then, open_again, opened};
use crate::store::{Definition, Error, Opened, Refusal};

/// An activation that is being opened.
pub struct Opening {
    config: config::Agent,
    /// The session's id, once it is known; empty if the name of its directory does not need it.
    id: Option<String>,
    /// A try failed: when it is tried again.
    again_at: Option<Instant>,
    /// Letters that came meanwhile, for the session once it is open, or for the next worker.
    letters: Letters,
}

/// The outcome of a try.
pub enum Tried {
    /// It is open.
    Open(Box<Session>),
    /// It is tried again at this instant.
    Later(Instant),
    /// The session is no longer open, a stop has begun, or the worker must close.
    Gone,
}

impl Opening {
    /// The opening of a session that this agent answers.
    pub fn new(config: config::Agent) -> Self {
        let id = (!names::needs_id(&config.cwd)).then(String::new);
        Self { config, id, again_at: None, letters: Letters::default() }
    }

    /// Tries to open it.
    pub fn try_to(&mut self, ctx: &Arc<Context>, request: &WorkRequest, mailbox: &Arc<Mailbox>) -> Tried {
        self.letters.add(mailbox.take());
        if open_again(self.letters.close) == Then::Gone {
            return self.leave(ctx, request);
        }
        if let Some(at) = self.again_at.filter(|at| *at > ctx.now()) {
            return Tried::Later(at);
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
        match ctx.store.open_activation(request.sid, self.config.name.clone(), cwd, definition(ctx, &self.config)) {
            // A session has one worker, so an activation of this boot that is open is without one: a commit in doubt opened
            // it, or it was left because of an order to close that the session's resumption had overtaken.
            Err(Error::Refused(Refusal::Stale)) => Ok((ctx.store.reopen_activation(request.sid)?, id)),
            opened => Ok((opened?, id)),
        }
    }

    /// The worker must close before the activation is open: its letters are for the next worker.
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
        ctx.registry.set_kept(request.sid, self.config.kind == AgentKind::Exec && ctx.shims().is_some());
        host.take_in(std::mem::take(&mut self.letters));
        host.work = true;
        host.auto_continue |= request.auto_continue;
        Box::new(Session::new(host, agent, opened.session.agent_session, opened.session.turns))
    }
}

/// The definition of an agent that may outlive the daemon, as its activation keeps it; `None`: it may not.
fn definition(ctx: &Context, config: &config::Agent) -> Option<Definition> {
    let per_turn = match config.kind {
        AgentKind::Acp => false,
        AgentKind::Exec => true,
        AgentKind::Openai | AgentKind::Lua | AgentKind::Echo => return None,
    };
    ctx.shims()?;
    Some(Definition { json: serde_json::to_string(config).ok()?, per_turn })
}
