//! The operator's scripts: what is registered, what was set aside, and a sample event on demand.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Api, ApiError, bodies};
use crate::daemon::delivery::Message;
use crate::hooks::{self, Delivered};
use crate::http::{Request, Response};
use crate::model::event::HookEvent;

type Answer = Result<Response, ApiError>;

pub fn list(api: &Api) -> Answer {
    let handlers = serde_json::to_value(api.ctx.hooks.list()).unwrap_or_default();
    Ok(Response::json(200, &json!({ "handlers": handlers })))
}

pub fn failed(api: &Api) -> Answer {
    let events: Vec<Value> = api.ctx.store.failed_events(1000)?.into_iter().map(|e| e.0).collect();
    Ok(Response::json(200, &json!({ "events": events })))
}

pub fn retry(api: &Api, id: &str) -> Answer {
    let all = (id != "all").then(|| id.to_owned());
    let deliveries = api.ctx.store.retry_failed(all)?;
    api.delivery.send(Message::Rescan);
    Ok(Response::json(200, &json!({ "deliveries": deliveries })))
}

pub fn discard(api: &Api, id: &str) -> Answer {
    let deliveries = api.ctx.store.discard_failed(id.to_owned())?;
    Ok(Response::json(200, &json!({ "deliveries": deliveries })))
}

/// Sends a sample event to each of its handlers; never journalled.
pub fn fire(api: &Api, request: &Request) -> Answer {
    let body: bodies::Fire = bodies::read(&request.body)?;
    let name = body.event.optional("event")?.unwrap_or_default();
    let Some(kind) = HookEvent::parse(&name) else {
        let known: Vec<&str> = HookEvent::ALL.iter().map(|e| e.as_str()).collect();
        return Err(ApiError::parameter(format!("event: {name:?}: one of {}", known.join(", "))));
    };
    let mut event = hooks::sample_with(kind, &body.fields.unwrap_or_default());
    event.test = true;
    let mut results = Vec::new();
    for handler in api.ctx.hooks.handlers(kind) {
        let began = Instant::now();
        let (send, receive) = crossbeam_channel::bounded(1);
        api.ctx.hooks.deliver(
            &handler,
            event.clone(),
            Box::new(move |d| {
                let _ = send.try_send(d);
            }),
        );
        let patience = api.ctx.config().hooks.timeout * 2 + Duration::from_secs(60);
        let delivered = receive.recv_timeout(patience).unwrap_or(Delivered::NotCalled);
        let (outcome, error) = match delivered {
            Delivered::Done => ("delivered", None),
            Delivered::Failed(why) => ("failed", Some(why)),
            Delivered::TimedOut(why) => ("timed_out", Some(why)),
            Delivered::Orphaned => ("orphaned", Some("it is not registered any more".to_owned())),
            Delivered::NotCalled => ("not_called", Some("the hooks are busy or closing".to_owned())),
        };
        results.push(json!({
            "script": handler.script, "name": handler.name, "outcome": outcome, "error": error,
            "took_us": began.elapsed().as_micros() as u64,
        }));
    }
    Ok(Response::json(200, &json!({ "handlers": results })))
}
