//! The daemon as a whole: status, health, stop, reload, hold, backup, reports.

use std::time::Instant;

use serde_json::json;

use super::route::Query;
use super::{Answer, Api, ApiError, bodies};
use crate::http::{Peer, Request, Response};
use crate::model::event::{StopReason, Urgency};
use crate::model::keep_policy::{Agents, StopRequest};

pub fn status(api: &Api) -> Answer {
    Ok(Response::json(200, &api.service.status()?))
}

pub fn health(api: &Api) -> Response {
    match api.service.health() {
        (true, true) => Response::json(200, &json!({ "ok": true })),
        (coordinator, store) => {
            Response::json(503, &json!({ "ok": false, "coordinator": coordinator, "store": store }))
        }
    }
}

pub fn readiness(api: &Api) -> Response {
    let (ready, phase, reason) = api.service.readiness();
    let mut answer = json!({ "ready": ready, "phase": phase });
    if let Some(reason) = reason {
        answer["reason"] = json!(reason);
    }
    Response::json(if ready { 200 } else { 503 }, &answer)
}

pub fn stop(api: &Api, request: &Request) -> Answer {
    let body: bodies::Stop = bodies::read(&request.body)?;
    let reason = match body.reason.optional("reason")? {
        None => StopReason::Shutdown,
        Some(w) => {
            StopReason::parse(&w).ok_or_else(|| ApiError::parameter(format!("reason: {w:?}: shutdown or restart")))?
        }
    };
    let urgency = match body.urgency.optional("urgency")? {
        None => Urgency::Graceful,
        Some(w) => {
            Urgency::parse(&w).ok_or_else(|| ApiError::parameter(format!("urgency: {w:?}: graceful, fast or now")))?
        }
    };
    let agents = match body.agents.optional("agents")? {
        None => None,
        Some(w) => Some(Agents::parse(&w).ok_or_else(|| ApiError::parameter(format!("agents: {w:?}: keep or end")))?),
    };
    let StopRequest { reason, urgency, agents } = api.service.stop(StopRequest { reason, urgency, agents })?;
    Ok(Response::json(202, &json!({ "reason": reason, "urgency": urgency, "agents": agents })))
}

pub fn reload(api: &Api) -> Answer {
    let reloaded = api.service.reload()?;
    Ok(Response::json(200, &json!({ "changed": reloaded.changed, "needs_restart": reloaded.needs_restart })))
}

pub fn hold(api: &Api, hold: bool) -> Answer {
    api.service.hold(hold)?;
    Ok(Response::json(202, &json!({ "held": hold })))
}

pub fn backup(api: &Api, request: &Request) -> Answer {
    // The daemon makes a file, wherever its user may: that is for whoever is this user, or root, or has the daemon's token.
    let may = match &request.peer {
        Peer::Unix { uid, .. } => *uid == 0 || *uid == rustix::process::geteuid().as_raw(),
        Peer::Tcp(_) => api.token.is_some(),
    };
    if !may {
        let who = "root, the daemon's own user, or a TCP client with the token";
        return Err(ApiError::refused(format!("a copy is written by the daemon: only {who} may ask for one")));
    }
    let body: bodies::Backup = bodies::read(&request.body)?;
    let path = body.path.needed("path")?;
    let started = Instant::now();
    let bytes = api.service.backup(path.as_ref())?;
    Ok(Response::json(200, &json!({ "path": path, "bytes": bytes, "took_ms": started.elapsed().as_millis() as u64 })))
}

pub fn reports(api: &Api) -> Answer {
    Ok(Response::json(200, &json!({ "reports": api.service.reports()? })))
}

pub fn report(api: &Api, boot: &str, query: &Query) -> Answer {
    Ok(Response::json(200, &api.service.report(boot, query.flag("wait")?)?))
}
