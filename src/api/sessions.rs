//! Sessions: listed, shown, acted on.

use serde_json::{Value, json};

use super::route::Query;
use super::{Answer, Api, bodies};
use crate::http::{Request, Response};
use crate::service::Fault;
use crate::store::{SessionFilter, Target};

fn shown(session: Result<Value, Fault>) -> Answer {
    Ok(Response::json(200, &session?))
}

pub fn list(api: &Api, query: &Query) -> Answer {
    let states = query.get("state").unwrap_or_default().split(',').filter(|s| !s.is_empty());
    let filter = SessionFilter {
        states: states.map(str::to_owned).collect(),
        key: query.get("key").map(str::to_owned),
        limit: usize::try_from(query.number("limit")?.unwrap_or(100)).unwrap_or(100),
        before: query.number("cursor")?,
    };
    let page = api.service.sessions(&filter)?;
    Ok(Response::json(200, &json!({ "sessions": page.items, "next_cursor": page.next.map(|n| n.to_string()) })))
}

pub fn show(api: &Api, target: &Target) -> Answer {
    shown(api.service.session(target))
}

/// All permissions that agents wait for.
pub fn permissions(api: &Api) -> Response {
    Response::json(200, &json!({ "permissions": api.service.permissions() }))
}

/// The processes of all live sessions' agents.
pub fn processes(api: &Api) -> Response {
    Response::json(200, &json!({ "processes": api.service.processes() }))
}

pub fn transcript(api: &Api, target: &Target, query: &Query) -> Answer {
    let after = query.number("after")?.unwrap_or(0);
    let limit = usize::try_from(query.number("limit")?.unwrap_or(100)).unwrap_or(100).clamp(1, 1000);
    let page = api.service.transcript(target, after, limit)?;
    Ok(Response::json(200, &json!({ "entries": page.items, "next": page.next })))
}

pub fn cancel(api: &Api, target: &Target, query: &Query) -> Answer {
    shown(api.service.cancel(target, query.flag("queued")?))
}

pub fn reset(api: &Api, target: Target) -> Answer {
    shown(api.service.reset(target))
}

pub fn suspend(api: &Api, target: &Target) -> Answer {
    shown(api.service.suspend(target))
}

pub fn resume(api: &Api, target: Target) -> Answer {
    shown(api.service.resume(target))
}

pub fn delete(api: &Api, target: Target, query: &Query) -> Answer {
    let (all, files) = (query.flag("all")?, query.flag("files")?);
    shown(api.service.delete(target, all, files))
}

pub fn permission(api: &Api, target: &Target, request: &Request) -> Answer {
    let body: bodies::Permission = bodies::read(&request.body)?;
    let (request_id, option_id) = (body.request_id.needed("request_id")?, body.option_id.needed("option_id")?);
    shown(api.service.answer_permission(target, &request_id, &option_id))
}
