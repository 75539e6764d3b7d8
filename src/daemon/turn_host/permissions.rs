//! An agent's permission requests: each goes to hooks, then to the client, is settled once, and its outcome becomes an
//! event.

use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

use super::{Open, TurnHost};
use crate::agent::{PermissionOption, PermissionOutcome, PermissionRequest};
use crate::clock;
use crate::daemon::hook_events::unjournalled;
use crate::daemon::registry::{Answered, OpenPermission};
use crate::hooks::{Event, Verdict};
use crate::model::event::{EventKind, HookEvent};
use crate::store::Item;

/// The most bytes of a permission request. A longer request is denied without being shown.
const SHOWN: usize = 64 << 10;
/// How long the answer of a client may take to become durable before this is looked at again.
const CLAIMED: Duration = Duration::from_secs(1);

/// Who is told of a permission once it is durable: nobody may answer what a death would make the agent ask anew.
#[derive(Clone, Debug)]
pub(super) enum Untold {
    /// The `permission` handlers.
    Handlers(String),
    /// Clients.
    Client(String),
}

impl TurnHost {
    /// Passes a permission request to hooks or to the client.
    pub(super) fn ask(&mut self, request: PermissionRequest) {
        if shown(&request, None).to_string().len() > SHOWN {
            log::warn!(key = self.identity.key; "permission denied: it is too long to be shown ({SHOWN} bytes)");
            let outcome = deny(&request.options);
            self.settled.push((request.request_id.clone(), outcome.clone()));
            self.emit_outcome(&request, &outcome, "limit");
            return;
        }
        let now = self.ctx.now();
        let until = self.agent.permission_timeout.map(|t| now + t);
        let hooked = self.ctx.hooked(HookEvent::Permission);
        if let Some(r) = self.running.as_mut() {
            r.open.push(Open { request: request.clone(), until, asks: i64::from(hooked), shown: false });
            r.clock.begin_wait(now);
        }
        if !hooked {
            return self.open_to_client(&request, true);
        }
        if let Some(r) = self.running.as_mut() {
            r.untold.push(Untold::Handlers(request.request_id.clone()));
        }
        self.push(asked(&request, 1, false), true);
        self.tell_untold();
    }

    /// Asks the `permission` handlers.
    fn ask_handlers(&self, request: &PermissionRequest, attempt: i64) {
        let mut fields = shown(request, self.running.as_ref().map(|r| r.turn_id.as_str()));
        fields["session_id"] = self.identity.session_id.as_str().into();
        // The older name of this field, for scripts.
        fields["tool"] = fields["tool_call_id"].take();
        if let Some(fields) = fields.as_object_mut() {
            fields.remove("tool_call_id");
        }
        let upto = self.ctx.store.newest_entry(self.sid).unwrap_or(0);
        let stood = (self.identity.session_id.clone(), upto);
        let event = Event {
            attempt: u32::try_from(attempt).unwrap_or(u32::MAX),
            redelivered: attempt > 1,
            ..unjournalled(HookEvent::Permission, &self.identity.key, fields, Some(stood))
        };
        let (mailbox, id) = (self.mailbox.clone(), request.request_id.clone());
        self.ctx.handlers.ask(event, Box::new(move |verdict| mailbox.post(|l| l.verdicts.push((id, verdict)))));
    }

    /// Clients may answer it. `of_agent`: it comes of the agent's output just now.
    fn open_to_client(&mut self, request: &PermissionRequest, of_agent: bool) {
        let mut data = shown(request, self.running.as_ref().map(|r| r.turn_id.as_str()));
        data["state"] = "open".into();
        let Some(r) = self.running.as_mut() else { return };
        r.untold.push(Untold::Client(request.request_id.clone()));
        let waits_for_mark = of_agent && r.outbox.is_marked();
        let asks = r.open.iter().find(|o| o.request.request_id == request.request_id).map_or(0, |o| o.asks);
        if !waits_for_mark {
            self.show_untold();
        }
        for item in [asked(request, asks, true), Item::Event(EventKind::Permission, data)] {
            if of_agent {
                self.push(item, true);
            } else {
                self.push_own(item);
            }
        }
        self.tell_untold();
    }

    /// Tells of permissions that have become durable.
    pub(super) fn tell_untold(&mut self) {
        let Some(r) = self.running.as_mut() else { return };
        if r.untold.is_empty() || !r.outbox.is_clear() {
            return;
        }
        self.show_untold();
        let Some(r) = self.running.as_mut() else { return };
        for untold in std::mem::take(&mut r.untold) {
            let Untold::Handlers(id) = untold else { continue };
            let open = self.running.as_ref().and_then(|r| r.open.iter().find(|o| o.request.request_id == id));
            if let Some((request, attempt)) = open.map(|open| (open.request.clone(), open.asks)) {
                self.ask_handlers(&request, attempt);
            }
        }
    }

    /// Shows clients the permissions that they may answer. It comes before the commit that tells of them, because a client
    /// may answer as soon as it hears of one; an answer to what is not durable yet is refused by the store.
    pub(super) fn show_untold(&mut self) {
        let Some(r) = self.running.as_mut() else { return };
        let mut shown = Vec::new();
        r.untold.retain(|untold| match untold {
            Untold::Client(id) => {
                shown.extend(r.open.iter_mut().find(|o| o.request.request_id == *id).map(|open| {
                    open.shown = true;
                    open.request.clone()
                }));
                false
            }
            Untold::Handlers(_) => true,
        });
        let turn_id = r.turn_id.clone();
        for request in shown {
            let mut open = self::shown(&request, Some(&turn_id));
            open["since"] = clock::rfc3339(self.ctx.wall()).into();
            let (request_id, options, shown) = (request.request_id, request.options, Arc::new(open));
            let session_id = self.identity.session_id.clone();
            self.ctx.registry.open_permission(self.sid, OpenPermission { request_id, options, session_id, shown });
        }
    }

    /// The hooks have decided about a permission, or pass it on to the client. `true`: it is settled.
    pub(super) fn judged(&mut self, id: &str, verdict: Verdict) -> bool {
        let Some(request) = self.running.as_ref().and_then(|r| r.open.iter().find(|o| o.request.request_id == id))
        else {
            return false;
        };
        let request = request.request.clone();
        let choice = match verdict {
            Verdict::Pass(None) => {
                self.open_to_client(&request, false);
                // The request may have exceeded the limit of the answer.
                return self.interrupt.is_some();
            }
            Verdict::Pass(Some(word)) => word,
            Verdict::Refuse(why) | Verdict::HookFailed(why) => {
                log::warn!(key = self.identity.key; "permission denied, its hook failed: {why}");
                "deny".to_owned()
            }
        };
        let outcome = match choice.as_str() {
            "allow" => allow(&request.options),
            "deny" => deny(&request.options),
            id if request.options.iter().any(|o| o.option_id == id) => PermissionOutcome::Selected(id.to_owned()),
            other => {
                log::warn!(key = self.identity.key; "permission: a hook chose {other:?}, which the agent does not offer; denied");
                deny(&request.options)
            }
        };
        self.settle(id, outcome, "hook");
        true
    }

    /// Denies a permission that no one answered in time.
    pub(super) fn deny(&mut self, id: &str, by: &'static str) {
        let Some(open) = self.running.as_ref().and_then(|r| r.open.iter().find(|o| o.request.request_id == id)) else {
            return;
        };
        self.settle_unasked(id, deny(&open.request.options), by);
    }

    /// Settles a permission that neither a hook nor the client settled. It goes through the registry, so a client that
    /// answers at this moment is either first or gets an error.
    pub(super) fn settle_unasked(&mut self, id: &str, outcome: PermissionOutcome, by: &'static str) {
        let option = match &outcome {
            PermissionOutcome::Selected(id) => Some(id.clone()),
            PermissionOutcome::Cancelled => None,
        };
        if self.ctx.registry.answer_permission(self.sid, id, option.as_deref(), by) == Answered::Settled {
            self.collect();
            return;
        }
        let again = self.ctx.now() + CLAIMED;
        let open = self.running.as_mut().and_then(|r| r.open.iter_mut().find(|o| o.request.request_id == id));
        match open.filter(|open| open.shown) {
            // A client's answer is being made durable just now; if that fails, it is open again.
            Some(open) => open.until = Some(again),
            None => self.settle(id, outcome, by),
        }
    }

    /// Settles a permission with its outcome.
    pub(super) fn settle(&mut self, id: &str, outcome: PermissionOutcome, by: &'static str) {
        let Some(r) = self.running.as_mut() else { return };
        let Some(at) = r.open.iter().position(|o| o.request.request_id == id) else { return };
        let open = r.open.remove(at);
        // The wait does not count against the turn.
        let now = self.ctx.now();
        r.clock.end_wait(now);
        r.heard = now;
        self.settled.push((id.to_owned(), outcome.clone()));
        self.push(Item::Settled(id.to_owned()), true);
        self.emit_outcome(&open.request, &outcome, by);
    }

    /// A client has answered a permission, and that is durable already.
    pub(super) fn settle_written(&mut self, id: &str, outcome: PermissionOutcome) {
        let Some(r) = self.running.as_mut() else { return };
        let Some(at) = r.open.iter().position(|o| o.request.request_id == id) else { return };
        r.open.remove(at);
        let now = self.ctx.now();
        r.clock.end_wait(now);
        r.heard = now;
        self.settled.push((id.to_owned(), outcome));
        // The row goes with the frame that the agent is sent.
        self.push(Item::Settled(id.to_owned()), true);
    }

    /// Writes the outcome as an event of the session.
    pub(super) fn emit_outcome(&mut self, request: &PermissionRequest, outcome: &PermissionOutcome, by: &str) {
        let outcome = match outcome {
            PermissionOutcome::Selected(id) => id.as_str(),
            PermissionOutcome::Cancelled => "cancelled",
        };
        let data = json!({
            "request_id": request.request_id, "state": "resolved", "outcome": outcome, "by": by,
            "tool_call_id": request.tool.id, "title": request.tool.title,
        });
        self.push(Item::Event(EventKind::Permission, data), true);
    }
}

/// The row of a permission.
pub(super) fn asked(request: &PermissionRequest, asks: i64, shown: bool) -> Item {
    let json = serde_json::to_value(request).unwrap_or_default();
    Item::Asked { request_id: request.request_id.clone(), request: json, asks, shown }
}

/// A permission request for hooks and clients: the agent's intended action, whole or with a mark where it was cut.
fn shown(request: &PermissionRequest, turn_id: Option<&str>) -> Value {
    let detail = |name: &str| request.tool.detail.as_ref().map_or(Value::Null, |d| d[name].clone());
    json!({
        "request_id": request.request_id, "turn_id": turn_id, "tool_call_id": request.tool.id, "title": request.tool.title,
        "kind": request.tool.kind, "input": detail("rawInput"), "content": detail("content"),
        "locations": detail("locations"), "options": request.options.iter().map(option_json).collect::<Vec<_>>(),
    })
}

fn option_json(o: &PermissionOption) -> Value {
    json!({ "option_id": o.option_id, "name": o.name, "kind": o.kind })
}

/// The option for yes: an offered `allow_once`, else another option that allows, else none.
pub(super) fn allow(options: &[PermissionOption]) -> PermissionOutcome {
    choose(options, "allow_once", "allow")
}

/// The option for no: an offered `reject_once`, else another option that rejects, else the request is withdrawn.
pub(super) fn deny(options: &[PermissionOption]) -> PermissionOutcome {
    choose(options, "reject_once", "reject")
}

fn choose(options: &[PermissionOption], kind: &str, prefix: &str) -> PermissionOutcome {
    options
        .iter()
        .find(|o| o.kind == kind)
        .or_else(|| options.iter().find(|o| o.kind.starts_with(prefix)))
        .map_or(PermissionOutcome::Cancelled, |o| PermissionOutcome::Selected(o.option_id.clone()))
}
