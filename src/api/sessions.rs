//! Sessions: listed, shown, acted on.

use serde_json::json;

use super::route::Query;
use super::{Api, ApiError, bodies};
use crate::daemon::registry::Answered;
use crate::http::{Request, Response};
use crate::model::event::Actor;
use crate::model::session::key_fault;
use crate::store::{Acted, Error, Refusal, SessionFilter, SessionView, Target};

type Answer = Result<Response, ApiError>;

const STATES: [&str; 6] = ["live", "parked", "suspended", "ended", "running", "resume_pending"];

pub fn list(api: &Api, query: &Query) -> Answer {
    let mut states = Vec::new();
    for state in query.get("state").unwrap_or_default().split(',').filter(|s| !s.is_empty()) {
        if !STATES.contains(&state) {
            return Err(ApiError::parameter(format!("state={state:?}: one of {}", STATES.join(", "))));
        }
        states.push(state.to_owned());
    }
    let limit = usize::try_from(query.number("limit")?.unwrap_or(100)).unwrap_or(100);
    let key = query.get("key").map(str::to_owned);
    if let Some(key) = &key
        && let Some(fault) = key_fault(key)
    {
        return Err(ApiError::new(400, "invalid_key", format!("{key:?}: {fault}")));
    }
    let page = api.ctx.store.sessions(&SessionFilter { states, key, limit, before: query.number("cursor")? })?;
    let sessions: Vec<_> = page.items.into_iter().map(|s| whole(api, s)).collect();
    Ok(Response::json(200, &json!({ "sessions": sessions, "next_cursor": page.next.map(|n| n.to_string()) })))
}

pub fn show(api: &Api, target: Target) -> Answer {
    match api.ctx.store.session(&target) {
        Ok(view) => Ok(Response::json(200, &whole(api, view))),
        Err(e) => Err(missing(api, &target, e)),
    }
}

/// A session with what only the registry knows: the permissions that its agent waits for.
fn whole(api: &Api, view: SessionView) -> serde_json::Value {
    let mut json = view.json;
    json["permissions"] = json!(api.ctx.registry.permissions(view.sid));
    json
}

/// All permissions that agents wait for.
pub fn permissions(api: &Api) -> Response {
    let mut all: Vec<serde_json::Value> = Vec::new();
    for (key, session_id, shown) in api.ctx.registry.all_permissions() {
        let mut one = json!({ "key": key, "session_id": session_id });
        for (name, value) in shown.as_object().into_iter().flatten() {
            one[name] = value.clone();
        }
        all.push(one);
    }
    all.sort_by(|a, b| a["since"].as_str().cmp(&b["since"].as_str()));
    Response::json(200, &json!({ "permissions": all }))
}

/// A key that has no current session: whoever asks is told of the suspended one that stands there.
fn missing(api: &Api, target: &Target, e: Error) -> ApiError {
    let Target::Key(key) = target else { return e.into() };
    let suspended = SessionFilter {
        states: vec!["suspended".into()],
        key: Some(key.clone()),
        limit: 1,
        ..SessionFilter::default()
    };
    match (&e, api.ctx.store.sessions(&suspended)) {
        (Error::Refused(Refusal::SessionNotFound), Ok(page)) if !page.items.is_empty() => ApiError::new(
            404,
            "session_not_found",
            format!("no current session; {} is suspended, and comes back with a resume", page.items[0].id),
        ),
        _ => e.into(),
    }
}

pub fn transcript(api: &Api, target: Target, query: &Query) -> Answer {
    let after = query.number("after")?.unwrap_or(0);
    let limit = usize::try_from(query.number("limit")?.unwrap_or(100)).unwrap_or(100).clamp(1, 1000);
    let page = api.ctx.store.transcript(&target, after, limit).map_err(|e| missing(api, &target, e))?;
    Ok(Response::json(200, &json!({ "entries": page.items, "next": page.next })))
}

fn done(api: &Api, acted: &Acted) -> Answer {
    api.ctx.catch_up(acted);
    show(api, Target::Id(acted.session_id.clone()))
}

pub fn cancel(api: &Api, target: Target, query: &Query) -> Answer {
    let queued = query.flag("queued")?;
    let acted = api.ctx.store.cancel(target.clone(), queued).map_err(|e| missing(api, &target, e))?;
    done(api, &acted)
}

/// The agent that would answer a target's key in a new session.
fn agent(api: &Api, target: &Target) -> Result<String, ApiError> {
    let key = match target {
        Target::Key(key) => key.clone(),
        Target::Id(id) => api.ctx.store.key_of(id)?,
    };
    Ok(api.ctx.agent_of(&key))
}

pub fn reset(api: &Api, target: Target) -> Answer {
    let agent = agent(api, &target)?;
    let acted = api.ctx.store.reset(target, agent, Actor::User)?;
    done(api, &acted)
}

pub fn suspend(api: &Api, target: Target) -> Answer {
    let agent = agent(api, &target)?;
    let acted = api.ctx.store.suspend(target.clone(), agent, Actor::Operator).map_err(|e| missing(api, &target, e))?;
    done(api, &acted)
}

pub fn resume(api: &Api, target: Target) -> Answer {
    let acted = api.ctx.store.resume(target, Actor::Operator)?;
    done(api, &acted)
}

pub fn delete(api: &Api, target: Target, query: &Query) -> Answer {
    let (all, files) = (query.flag("all")?, query.flag("files")?);
    let store = &api.ctx.store;
    let acted =
        if files { store.delete_with_files(target, all, Actor::User) } else { store.delete(target, all, Actor::User) }?;
    api.ctx.catch_up(&acted);
    // Its text goes now, or once its ends are settled; so do its files.
    api.ctx.prune_now();
    Ok(Response::json(200, &whole(api, store.session_in_row(acted.sid)?)))
}

pub fn permission(api: &Api, target: Target, request: &Request) -> Answer {
    let body: bodies::Permission = bodies::read(&request.body)?;
    let (request_id, option_id) = (body.request_id.needed("request_id")?, body.option_id.needed("option_id")?);
    let session = api.ctx.store.session(&target)?;
    match api.ctx.registry.answer_permission(session.sid, &request_id, Some(&option_id), "client") {
        Answered::Settled => show(api, Target::Id(session.id)),
        Answered::Resolved => Err(ApiError::new(409, "resolved", "this permission is not open (any more)")),
        Answered::NotOffered => Err(ApiError::parameter(format!("option_id: {option_id:?} was not offered"))),
    }
}
