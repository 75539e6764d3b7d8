//! The operator's scripts: what is registered, what was set aside, and a sample event on demand.

use serde_json::json;

use super::{Answer, Api, ApiError, bodies};
use crate::http::{Request, Response};
use crate::model::event::HookEvent;

pub fn list(api: &Api) -> Response {
    Response::json(200, &json!({ "handlers": api.service.handlers() }))
}

pub fn failed(api: &Api) -> Answer {
    Ok(Response::json(200, &json!({ "events": api.service.failed_events()? })))
}

pub fn retry(api: &Api, id: &str) -> Answer {
    Ok(Response::json(200, &json!({ "deliveries": api.service.retry_event(id)? })))
}

pub fn discard(api: &Api, id: &str) -> Answer {
    Ok(Response::json(200, &json!({ "deliveries": api.service.discard_event(id)? })))
}

pub fn fire(api: &Api, request: &Request) -> Answer {
    let body: bodies::Fire = bodies::read(&request.body)?;
    let name = body.event.optional("event")?.unwrap_or_default();
    let Some(kind) = HookEvent::parse(&name) else {
        let known: Vec<&str> = HookEvent::ALL.iter().map(|e| e.as_str()).collect();
        return Err(ApiError::parameter(format!("event: {name:?}: one of {}", known.join(", "))));
    };
    let results = api.service.fire(kind, &body.fields.unwrap_or_default());
    Ok(Response::json(200, &json!({ "handlers": results })))
}
