//! Attaches a session to its agent, which has outlived another daemon; or, if it has not, ends what is left of it and
//! settles the session as the boot would have done.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::AGAIN;
use super::make::named;
use super::session::Session;
use crate::agent::{Identity, Outlived, Progress};
use crate::config::{self, AgentKind};
use crate::daemon::context::Context;
use crate::daemon::mailbox::{Letters, Mailbox};
use crate::daemon::registry::{Doing, WorkRequest};
use crate::daemon::shims::{HeldShim, end_processes};
use crate::daemon::turn_host::TurnHost;
use crate::model::settings::Resume;
use crate::store::{Begun, Error, Pending, Refusal, Resumed, ShimRow};

/// What is left of an agent that did not outlive the daemon has so long to end.
const ENDS: Duration = Duration::from_secs(5);

/// A session that is being attached to its agent.
pub struct Attaching {
    pending: Pending,
    /// Its agent did not outlive the daemon; what it left is ended.
    gone: bool,
    letters: Letters,
}

/// The outcome of a try.
pub enum Attempt {
    /// It goes on; with the turn that runs.
    On(Box<Session>, Option<(Box<Begun>, Progress)>),
    /// It is tried again at this instant.
    Later(Instant),
    /// It was settled, or another thread has closed it.
    Gone,
}

/// Why it does not go on.
enum Not {
    /// Its agent is gone, or cannot be gone on with.
    Gone(String, Option<Box<ShimRow>>),
    /// Not now.
    Later(String),
    /// Its activation is closed.
    Closed,
}

impl Attaching {
    /// A session that the boot left pending.
    pub fn new(pending: Pending) -> Self {
        Self { pending, gone: false, letters: Letters::default() }
    }

    /// Tries to attach.
    pub fn try_to(&mut self, ctx: &Arc<Context>, request: &WorkRequest, mailbox: &Arc<Mailbox>) -> Attempt {
        self.letters.add(mailbox.take());
        if !self.gone {
            let _place = ctx.attaching();
            match self.attach(ctx, mailbox) {
                Ok((session, running)) => return Attempt::On(session, running),
                Err(Not::Closed) => {
                    self.forsake(ctx);
                    return Attempt::Gone;
                }
                Err(Not::Later(why)) => {
                    log::debug!(key = self.pending.key; "the session is not attached to yet: {why}");
                    return Attempt::Later(ctx.now() + AGAIN);
                }
                Err(Not::Gone(why, shim)) => {
                    log::warn!(key = self.pending.key; "the agent did not outlive the daemon: {why}");
                    self.end(ctx, shim.as_deref());
                    self.gone = true;
                }
            }
        }
        self.settle(ctx, request)
    }

    fn attach(&mut self, ctx: &Arc<Context>, mailbox: &Arc<Mailbox>) -> Result<Whole, Not> {
        let Pending { sid, epoch, alone, .. } = self.pending;
        crate::failpoint::hit_for("attach", "before", &self.pending.key);
        let shim = ctx.store.pending_shim(sid, epoch).map_err(|e| not(&e))?;
        let Some(shims) = ctx.shims() else {
            return Err(Not::Gone("agents are not kept".into(), shim.map(|s| Box::new(s.0))));
        };
        let mut attached = None;
        let session = ctx.store.session_in_row(sid).map_err(|e| not(&e))?;
        let identity = |cwd: &str| Identity {
            key: session.key.clone(),
            session_id: session.id.clone(),
            sid,
            boot_id: ctx.boot_id.clone(),
            cwd: cwd.into(),
        };
        if let Some((row, taken)) = shim {
            let from = u64::try_from(taken).unwrap_or(0);
            match shims.attach(&row, &identity(""), from) {
                Ok(held) if held.is_started() => attached = Some((held, row)),
                // It was never told to start its agent. A boot that dies from here on must not take it for one that is gone.
                Ok(held) => {
                    ctx.store.shim_gone(row.name).map_err(|e| not(&e))?;
                    drop(held);
                }
                Err(why) => return Err(Not::Gone(why, Some(Box::new(row)))),
            }
        }
        crate::failpoint::hit_for("attach", "attached", &self.pending.key);
        // From here on it is this boot's.
        let (held, row) = attached.unzip();
        let resumed = match ctx.store.attach_activation(sid, epoch, alone).map_err(|e| not(&e)) {
            Ok(resumed) => resumed,
            Err(why) => {
                if let (Not::Later(_), Some(held)) = (&why, held) {
                    held.let_go();
                }
                return Err(why);
            }
        };
        crate::failpoint::hit_for("attach", "committed", &self.pending.key);
        self.resume(ctx, mailbox, &identity(&resumed.cwd), resumed, held)
            .map_err(|why| Not::Gone(why, row.map(Box::new)))
    }

    fn resume(
        &mut self,
        ctx: &Arc<Context>,
        mailbox: &Arc<Mailbox>,
        identity: &Identity,
        resumed: Resumed,
        held: Option<Box<dyn HeldShim>>,
    ) -> Result<Whole, String> {
        let config: config::Agent =
            serde_json::from_str(&resumed.definition).map_err(|e| format!("its definition cannot be read: {e}"))?;
        crate::log::about("session_id", &identity.session_id);
        log::info!(key = identity.key, session_id = identity.session_id;
            "session goes on: activation {}, agent {}", self.pending.epoch, config.name);
        let kind = config.kind;
        let config = named(config, identity);
        let mut agent = (ctx.agents)(ctx, &config);
        let (sid, epoch) = (self.pending.sid, self.pending.epoch);
        let mut host = TurnHost::new(ctx.clone(), sid, epoch, config, mailbox.clone(), identity.clone());
        let (state, running) = host.resume(&resumed);
        let process = held.and_then(|held| held.process());
        if let Some(process) = &process {
            host.process_runs(process);
        }
        host.take_in(std::mem::take(&mut self.letters));
        host.work = true;
        let frames = |all: Vec<(i64, Vec<u8>)>| {
            all.into_iter().filter_map(|(n, bytes)| Some((u64::try_from(n).ok()?, bytes))).collect()
        };
        let outlived = Outlived {
            process,
            offset: u64::try_from(resumed.offset).unwrap_or(0),
            skip: usize::try_from(resumed.skip).unwrap_or(0),
            state,
            frames: u64::try_from(resumed.frames).unwrap_or(0),
            unsent: frames(resumed.unsent),
            running,
        };
        let idle_command = kind == AgentKind::Exec && outlived.running.is_none();
        let progress =
            if idle_command { None } else { agent.attach(&mut host, outlived).map_err(|failure| failure.message)? };
        ctx.registry.attached(sid);
        let begun = resumed.running.map(|on| Box::new(on.begun));
        let session = Session::go_on(host, agent, resumed.agent_session, resumed.turns);
        Ok((Box::new(session), begun.zip(progress)))
    }

    /// Ends what is left of the agent.
    fn end(&self, ctx: &Context, shim: Option<&ShimRow>) {
        let until = Instant::now() + ENDS;
        let session = ctx.store.session_in_row(self.pending.sid).ok();
        let id = session.as_ref().map(|session| session.id.as_str());
        let stuck = match ctx.shims() {
            Some(shims) => shims.end(shim, id, &ctx.boot_id, until),
            None => end_processes(shim, id, &ctx.boot_id, until),
        };
        for stuck in stuck {
            log::error!(key = self.pending.key; "{stuck} cannot be ended");
        }
        if let Some(shim) = shim {
            ctx.bounds().end(&shim.name);
        }
    }

    /// Its activation was closed before it was attached to: nobody else ends its agent.
    fn forsake(&self, ctx: &Context) {
        let shims = ctx.store.shims_of_session(self.pending.sid).unwrap_or_else(|e| {
            log::warn!(key = self.pending.key; "the shims of a session that is over cannot be read: {e}");
            Vec::new()
        });
        for shim in shims {
            self.end(ctx, Some(&shim));
            if let Err(e) = ctx.store.shim_gone(shim.name) {
                log::warn!("that a shim is gone cannot be noted: {e}");
            }
        }
    }

    fn settle(&self, ctx: &Context, request: &WorkRequest) -> Attempt {
        let threshold = i64::from(ctx.config().sessions.stuck_threshold);
        match ctx.store.settle_pending(self.pending.clone(), threshold) {
            Ok(verdict) => {
                let _ = ctx.registry.set(self.pending.sid, Doing::Closing);
                let interrupted = verdict.is_some_and(|v| v.mark.is_some() && !v.suspend);
                let auto_continue = interrupted && ctx.config().sessions.resume == Resume::Auto;
                ctx.registry.want(WorkRequest { auto_continue, ..request.clone() });
                Attempt::Gone
            }
            Err(e) if e.lies_in_rows() => {
                log::error!(key = self.pending.key; "its end could not be written, the next boot writes it: {e}");
                Attempt::Gone
            }
            Err(e) => {
                log::error!(key = self.pending.key; "its end cannot be written yet: {e}");
                Attempt::Later(ctx.now() + AGAIN)
            }
        }
    }
}

/// A session that goes on, with its turn.
type Whole = (Box<Session>, Option<(Box<Begun>, Progress)>);

fn not(error: &Error) -> Not {
    match error {
        Error::Refused(Refusal::Stale | Refusal::NotFound | Refusal::SessionNotFound) => Not::Closed,
        Error::Refused(Refusal::OnProbation) => Not::Later("another session runs alone".to_owned()),
        e if e.lies_in_rows() => Not::Gone(e.to_string(), None),
        Error::Refused(_) => Not::Gone(error.to_string(), None),
        e => Not::Later(e.to_string()),
    }
}
