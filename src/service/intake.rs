//! Intake: checks a message, passes it to `message` handlers, accepts it and wakes its session. Every surface uses it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::{Fault, Service};
use crate::daemon::context::{Context, RETIRE};
use crate::daemon::registry::WorkRequest;
use crate::daemon::{self, hook_events};
use crate::hooks::Verdict;
use crate::model::event::HookEvent;
use crate::model::session::{id_error, key_error, text_error};
use crate::store::{Accept, Accepted, Admission, Error, Target};

/// A message that passed the checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The key of its conversation.
    pub key: String,
    /// Its text.
    pub text: String,
    /// The sender's idempotency id: another message with the same id does nothing.
    pub id: Option<String>,
    /// The session that it must reach, if the sender named one.
    pub session_id: Option<String>,
}

/// The sender of a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// A client of the API; `message` handlers get its peer.
    Api(Value),
    /// A script. Its messages never go to `message` handlers.
    Script,
}

impl Service {
    /// Checks a message.
    ///
    /// # Errors
    /// What is wrong with the message.
    pub fn message(&self, to: Target, text: String, id: Option<String>) -> Result<Message, Fault> {
        if let Some(error) = text_error(&text) {
            return Err(Fault::Text(format!("the text {error}")));
        }
        if let Some(error) = id.as_deref().and_then(id_error) {
            return Err(Fault::Parameter(format!("id: {error}")));
        }
        let (key, session_id) = match to {
            Target::Key(key) => (key, None),
            Target::Id(id) => (self.ctx.store.key_of(&id)?, Some(id)),
        };
        if let Some(error) = key_error(&key) {
            return Err(Fault::Key(format!("{key:?}: {error}")));
        }
        Ok(Message { key, text, id, session_id })
    }

    /// Accepts a message. Once this returns, the message is committed.
    ///
    /// # Errors
    /// A rule or a handler refuses it, or the store fails. Each error is counted by its code.
    pub fn accept(&self, message: Message, from: &Origin) -> Result<Accepted, Fault> {
        let accepted = self.take_in(message, from).inspect_err(|e| self.ctx.tally.refuse(e.code()))?;
        let tally = &self.ctx.tally;
        let of = if accepted.duplicate { &tally.duplicates } else { &tally.accepted };
        of.fetch_add(1, Ordering::Relaxed);
        Ok(accepted)
    }

    fn take_in(&self, message: Message, from: &Origin) -> Result<Accepted, Fault> {
        let ctx = &self.ctx;
        let mut text = message.text.clone();
        if let Origin::Api(peer) = from
            && ctx.hooked(HookEvent::Message)
        {
            // A duplicate is answered before any hook.
            if let Some(id) = &message.id
                && let Some(known) = ctx.store.find_duplicate(&message.key, id, &message.text)?
            {
                return Ok(known);
            }
            let fields = json!({ "text": message.text, "id": message.id, "origin": "api", "peer": peer });
            match daemon::ask(ctx, hook_events::unjournalled(HookEvent::Message, &message.key, fields, None)) {
                Verdict::Pass(None) => {}
                Verdict::Pass(Some(rewritten)) => text = rewritten,
                Verdict::Refuse(why) => return Err(Fault::Refused(why)),
                Verdict::HookFailed(why) => return Err(Fault::HookFailed(why)),
            }
        }
        let accept = Accept {
            agent: ctx.agent_of(&message.key),
            limits: ctx.limits(),
            key: message.key,
            text,
            original: message.text,
            client_id: message.id,
            session_id: message.session_id,
        };
        Ok(accept_and_wake(ctx, accept)?)
    }
}

/// Accepts a message and wakes its worker.
///
/// If the session's worker is idle and its agent ready, the turn begins in the same transaction: the session is
/// reserved meanwhile, and its worker gets the turn. With a `before_turn` handler this is not possible, because the
/// handler must be asked in between.
///
fn accept_and_wake(ctx: &Arc<Context>, accept: Accept) -> Result<Accepted, Error> {
    let key = accept.key.clone();
    let plain = !ctx.hooked(HookEvent::BeforeTurn) && ctx.store.admission() == Admission::Open;
    let reserved = if plain { ctx.registry.reserve(&key) } else { None };
    let accepted = match reserved {
        None => ctx.store.accept_message(accept)?,
        Some(reserved) => {
            // If the commit is in doubt, the worker asks the store: the unused reservation wakes it.
            let (accepted, begun) = ctx.store.accept_and_begin(accept, (reserved.sid, reserved.epoch))?;
            if let Some(begun) = begun {
                crate::failpoint::hit("begin_turn", "committed");
                reserved.hand_over(Box::new(begun));
                return Ok(accepted);
            }
            accepted
        }
    };
    // While the daemon is held no worker is woken: a release first opens admission and then searches the database, so
    // it finds this message.
    let wakes = !accepted.deferred && ctx.store.admission() != Admission::Held;
    if accepted.duplicate {
        // The first try may have been committed although its sender got an error: then no worker was woken for it.
        if !accepted.over && wakes {
            ctx.registry.want(WorkRequest { sid: accepted.sid, key, auto_continue: false });
        }
        return Ok(accepted);
    }
    if let Some(retired) = accepted.retired {
        ctx.registry.retire(retired, ctx.now() + RETIRE);
    }
    if let Some(tid) = accepted.interrupt {
        ctx.cancel_turn(accepted.sid, tid);
    }
    if wakes {
        ctx.registry.want(WorkRequest { sid: accepted.sid, key, auto_continue: false });
    }
    Ok(accepted)
}
