//! The daemon as a whole: status, health, stop, reload, hold, backup, reports.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::route::Query;
use super::{Api, ApiError, bodies};
use crate::clock;
use crate::daemon::context::Request as Ask;
use crate::http::{Peer, Request, Response};
use crate::model::event::{StopReason, Urgency};
use crate::thread;

type Answer = Result<Response, ApiError>;

/// How long the coordinator may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

pub fn status(api: &Api) -> Answer {
    let ctx = &api.ctx;
    let board = ctx.board();
    let counts = ctx.store.counts()?;
    let journal = ctx.store.journal_counts()?;
    let numbers = ctx.registry.numbers();
    // A worker whose turn has just ended in the database is idle, although it has not said so yet.
    let idle = numbers.live.saturating_sub(usize::try_from(counts.running).unwrap_or(0));
    let (tally, hooks) = (ctx.store.tally(), &ctx.hooks);
    let pruned = tally.pruned;
    let stop = board.stop.map(|(reason, urgency, deadline_at)| {
        let blocking: Vec<Value> = ctx
            .registry
            .blocking()
            .into_iter()
            .map(|b| json!({ "key": b.key, "turn_id": b.turn_id, "age_ms": b.age.as_millis() as u64, "tool": b.tool }))
            .collect();
        json!({ "reason": reason, "urgency": urgency, "deadline_at": clock::rfc3339(deadline_at), "blocking": blocking })
    });
    Ok(Response::json(
        200,
        &json!({
            "version": env!("CARGO_PKG_VERSION"), "pid": std::process::id(), "boot_id": ctx.boot_id, "phase": board.phase,
            "held": board.held, "started_at": clock::rfc3339(ctx.started_at), "supervised": ctx.supervised,
            "state_dir": ctx.state_dir, "config": ctx.config().file,
            "sessions": {
                "live": numbers.live, "running": counts.running, "idle": idle,
                "queued": counts.queued, "waiting": numbers.waiting, "parked": counts.parked, "suspended": counts.suspended,
                "resume_pending": counts.resume_pending, "waiting_permission": ctx.registry.asking(),
            },
            "hooks": {
                "pending": journal.pending, "delivered": tally.delivered, "failed": journal.failed,
                "orphaned": tally.orphaned, "discarded": tally.discarded, "dropped": hooks.dropped(),
                "lost_threads": hooks.lost(), "off": hooks.is_off(),
            },
            "pruned": {
                "events": pruned.events, "ids": pruned.ids, "deliveries": pruned.deliveries, "set_aside": pruned.set_aside,
                "sessions": pruned.sessions, "rows": pruned.rows, "values": pruned.kv,
            },
            "threads": thread::count(), "thread_limit": thread::limit(), "listeners": ctx.hub.listeners(),
            "dropped_log_lines": crate::log::dropped(), "clock_problem": ctx.store.clock_problem().map(|p| p.to_string()),
            "stop": stop,
        }),
    ))
}

/// Liveness: the coordinator and the store answered just now.
pub fn health(api: &Api) -> Answer {
    let (send, receive) = crossbeam_channel::bounded(1);
    let until = Instant::now() + PATIENCE;
    let coordinator =
        api.ctx.requests.send_deadline(Ask::Ping(send), until).is_ok() && receive.recv_deadline(until).is_ok();
    let store = api.ctx.store.is_alive(PATIENCE);
    if coordinator && store {
        Ok(Response::json(200, &json!({ "ok": true })))
    } else {
        Ok(Response::json(503, &json!({ "ok": false, "coordinator": coordinator, "store": store })))
    }
}

/// How long the store may take before it counts as not ready.
const READY: Duration = Duration::from_secs(2);

/// Readiness: not while starting or stopping, nor while the store refuses messages; then with the reason.
pub fn readiness(api: &Api) -> Answer {
    let board = api.ctx.board();
    let running = board.phase == "running" && board.stop.is_none();
    let reason = if running { api.ctx.store.trouble(READY) } else { None };
    let ready = running && reason.is_none();
    let mut answer = json!({ "ready": ready, "phase": board.phase });
    if let Some(reason) = reason {
        answer["reason"] = json!(reason);
    }
    Ok(Response::json(if ready { 200 } else { 503 }, &answer))
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
    let (send, receive) = crossbeam_channel::bounded(1);
    let gone = || ApiError::new(503, "stopping", "the daemon is leaving");
    api.ctx.requests.send_timeout(Ask::Stop(reason, urgency, send), PATIENCE).map_err(|_| gone())?;
    match receive.recv_timeout(PATIENCE).map_err(|_| gone())? {
        Ok(()) => {
            let board = api.ctx.board();
            let (reason, urgency) = board.stop.map_or((reason, urgency), |(r, u, _)| (r, u.max(urgency)));
            Ok(Response::json(202, &json!({ "reason": reason, "urgency": urgency })))
        }
        Err(why) => Err(ApiError::new(409, "conflict", why)),
    }
}

pub fn reload(api: &Api) -> Answer {
    let (send, receive) = crossbeam_channel::bounded(1);
    let gone = || ApiError::new(503, "stopping", "the daemon did not answer");
    api.ctx.requests.send_timeout(Ask::Reload(send), PATIENCE).map_err(|_| gone())?;
    match receive.recv_timeout(Duration::from_secs(120)).map_err(|_| gone())? {
        Ok(r) => Ok(Response::json(200, &json!({ "changed": r.changed, "needs_restart": r.needs_restart }))),
        Err(why) if api.ctx.board().stop.is_some() => Err(ApiError::new(503, "stopping", why)),
        Err(why) => Err(ApiError::new(422, "invalid_config", why)),
    }
}

pub fn hold(api: &Api, hold: bool) -> Answer {
    if api.ctx.board().stop.is_some() {
        return Err(ApiError::new(503, "stopping", "the daemon is stopping"));
    }
    let gone = || ApiError::new(503, "stopping", "the daemon did not answer");
    api.ctx.requests.send_timeout(Ask::Hold(hold), PATIENCE).map_err(|_| gone())?;
    // Answered once it holds: whoever asked may rely on it.
    let (send, receive) = crossbeam_channel::bounded(1);
    api.ctx.requests.send_timeout(Ask::Ping(send), PATIENCE).map_err(|_| gone())?;
    receive.recv_timeout(PATIENCE).map_err(|_| gone())?;
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
    let Some(path) = Some(std::path::Path::new(&path)).filter(|p| p.is_absolute()) else {
        return Err(ApiError::parameter("path: an absolute path is needed"));
    };
    if path.exists() {
        return Err(ApiError::new(409, "conflict", format!("{}: it is there already", path.display())));
    }
    let started = Instant::now();
    // Not the store's fault, and nothing that a second try would mend.
    let failed =
        |why: String| ApiError::new(409, "conflict", format!("{why}; the copy is written by the daemon's user"));
    api.ctx.store.backup(path).map_err(|e| failed(e.to_string()))?;
    let bytes = std::fs::metadata(path).map_or(0, |m| m.len());
    Ok(Response::json(200, &json!({ "path": path, "bytes": bytes, "took_ms": started.elapsed().as_millis() as u64 })))
}

pub fn reports(api: &Api) -> Answer {
    Ok(Response::json(200, &json!({ "reports": api.ctx.store.reports(None, 100)? })))
}

pub fn report(api: &Api, boot: &str, query: &Query) -> Answer {
    if query.flag("wait")? && boot == api.ctx.boot_id {
        // The stop's own report, held back until it is complete; nobody waits beyond the stop.
        return match api.ctx.wait_report(Duration::from_secs(3600)) {
            Some(report) => Ok(Response::json(200, &report)),
            None => Err(ApiError::not_found()),
        };
    }
    match api.ctx.store.reports(Some(boot), 1)?.pop() {
        Some(report) => Ok(Response::json(200, &report)),
        None => Err(ApiError::not_found()),
    }
}
