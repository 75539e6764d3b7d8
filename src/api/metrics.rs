//! `/metrics`: Prometheus text.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use serde_json::Value;

use super::{Api, ApiError};
use crate::hooks::HandlerInfo;
use crate::http::Response;
use crate::store::Pruned;

/// A text of gauges and counters.
pub fn text(api: &Api) -> Result<Response, ApiError> {
    let ctx = api.service.context();
    let (counts, journal, numbers) = api.service.counts()?;
    let server = api.server.get().and_then(std::sync::Weak::upgrade);
    let stats = server.as_ref().map(|s| s.stats()).unwrap_or_default();
    let mut out = String::new();
    let mut put = |name: &str, kind: &str, help: &str, value: f64| {
        let _ = writeln!(out, "# HELP ostler_{name} {help}\n# TYPE ostler_{name} {kind}\nostler_{name} {value}");
    };
    let mut gauge = |name: &str, help: &str, value: f64| put(name, "gauge", help, value);
    gauge("sessions_live", "Sessions with a worker.", numbers.live as f64);
    gauge("sessions_running", "Sessions with a running turn.", numbers.running as f64);
    gauge("sessions_waiting", "Sessions that wait for room.", numbers.waiting as f64);
    gauge("sessions_kept", "Live sessions whose agents outlive the daemon.", numbers.kept as f64);
    gauge("sessions_parked", "Sessions that go on with the next message.", counts.parked as f64);
    gauge("sessions_suspended", "Quarantined sessions.", counts.suspended as f64);
    gauge("sessions_resume_pending", "Sessions marked as cut off.", counts.resume_pending as f64);
    gauge("messages_queued", "Messages that wait.", counts.queued as f64);
    gauge("hook_threads_lost", "Hook threads that hang and were given up.", ctx.hooks.lost() as f64);
    gauge("hooks_off", "1: too many hook threads hang; no handler is called.", f64::from(u8::from(ctx.hooks.is_off())));
    gauge("hook_deliveries_pending", "Journalled events owed to a handler.", journal.pending as f64);
    gauge("hook_deliveries_failed", "Journalled events set aside.", journal.failed as f64);
    gauge("threads", "Threads of the daemon.", crate::thread::count() as f64);
    gauge("threads_limit", "The most threads that are safe here.", crate::thread::limit() as f64);
    gauge("event_listeners", "Open event streams.", ctx.hub.listeners() as f64);
    gauge("connections", "Open API connections.", server.as_ref().map_or(0, |s| s.connections()) as f64);
    let mut counter = |name: &str, help: &str, value: u64| put(name, "counter", help, value as f64);
    counter("connections_accepted_total", "API connections accepted.", stats.accepted);
    counter("connections_refused_total", "API connections refused for want of room.", stats.refused);
    counter("requests_total", "API requests.", stats.requests);
    counter("protocol_errors_total", "API requests that were no HTTP.", stats.protocol_errors);
    counter("client_timeouts_total", "API connections cut for being slow.", stats.timeouts);
    counter("log_lines_dropped_total", "Log lines dropped because the log stalled.", crate::log::dropped());
    counter("deltas_dropped_total", "Previews that a slow listener did not get.", ctx.hub.lost_deltas());
    counter("messages_accepted_total", "Messages accepted.", ctx.tally.accepted.load(Ordering::Relaxed));
    counter("messages_duplicate_total", "Messages that came again.", ctx.tally.duplicates.load(Ordering::Relaxed));
    let tally = ctx.store.tally();
    counter("hook_deliveries_delivered_total", "Journalled events whose handler returned.", tally.delivered);
    counter("hook_deliveries_set_aside_total", "Journalled events that failed too often.", tally.set_aside);
    counter("hook_deliveries_orphaned_total", "Journalled events whose handler was gone.", tally.orphaned);
    counter("hook_deliveries_discarded_total", "Set-aside events that an operator gave up.", tally.discarded);
    counter("hook_events_dropped_total", "Notifications and timer runs that were not made.", ctx.hooks.dropped());
    family(
        &mut out,
        "messages_refused_total",
        "Messages refused, by the error's code.",
        by("code", ctx.tally.refused()),
    );
    family(&mut out, "turns_total", "Turns that ended here, by outcome.", by("outcome", ctx.tally.turns()));
    let Pruned { events, ids, deliveries, set_aside, sessions, rows, kv } = tally.pruned;
    let pruned = [
        ("events", events),
        ("ids", ids),
        ("deliveries", deliveries),
        ("set_aside", set_aside),
        ("sessions", sessions),
        ("rows", rows),
        ("values", kv),
    ];
    family(&mut out, "pruned_total", "What retention removed.", by("what", pruned.map(|(what, n)| (what, n as u64))));
    let handlers = ctx.hooks.list();
    let of = |count: fn(&HandlerInfo) -> u64| handlers.iter().map(move |h| (labels(h), count(h)));
    family(&mut out, "hook_calls_total", "Calls of a handler since the last reload.", of(|h| h.calls));
    family(&mut out, "hook_failures_total", "Calls that failed.", of(|h| h.failures));
    family(&mut out, "hook_timeouts_total", "Calls that ran out of time.", of(|h| h.timeouts));
    family(&mut out, "hook_skipped_total", "Times that it was skipped after three timeouts.", of(|h| h.skipped));
    processes(&mut out, &api.service.processes());
    Ok(Response::new(200).header("Content-Type", "text/plain; version=0.0.4; charset=utf-8").body(out))
}

/// The sessions that have lines of their own: those that use most memory.
const LARGEST: usize = 10;

/// What the agents' processes use: the sum, and the largest of them. A session's lines end with it, so they are gauges.
fn processes(out: &mut String, all: &[Value]) {
    let of = |p: &Value, name: &str| p[name].as_u64().unwrap_or(0);
    let mut largest: Vec<&Value> = all.iter().collect();
    largest.sort_by_key(|p| std::cmp::Reverse(of(p, "memory")));
    largest.truncate(LARGEST);
    let gauges: [(&str, &str, &str, f64); 3] = [
        ("memory_bytes", "memory", "Memory of agents' processes", 1.0),
        ("cpu_seconds", "cpu_ms", "Processor time of agents' processes that live", 1000.0),
        ("processes", "processes", "Processes of agents", 1.0),
    ];
    let _ = writeln!(out, "# HELP ostler_agents Agents that are a process.\n# TYPE ostler_agents gauge");
    let _ = writeln!(out, "ostler_agents {}", all.len());
    for (name, field, help, unit) in gauges {
        let sum: u64 = all.iter().map(|p| of(p, field)).sum();
        let _ = writeln!(out, "# HELP ostler_agents_{name} {help}, together.\n# TYPE ostler_agents_{name} gauge");
        let _ = writeln!(out, "ostler_agents_{name} {}", sum as f64 / unit);
        let _ = writeln!(out, "# HELP ostler_agent_{name} {help}, of the largest.\n# TYPE ostler_agent_{name} gauge");
        for p in &largest {
            let key = quoted(p["key"].as_str().unwrap_or_default());
            let _ = writeln!(out, "ostler_agent_{name}{{key=\"{key}\"}} {}", of(p, field) as f64 / unit);
        }
    }
}

/// A label's value.
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// A counter with a line for each of what it counts.
fn family(out: &mut String, name: &str, help: &str, lines: impl IntoIterator<Item = (String, u64)>) {
    let _ = writeln!(out, "# HELP ostler_{name} {help}\n# TYPE ostler_{name} counter");
    for (labels, value) in lines {
        let _ = writeln!(out, "ostler_{name}{{{labels}}} {value}");
    }
}

/// One label, a value each.
fn by<'a>(label: &str, counts: impl IntoIterator<Item = (&'a str, u64)>) -> impl Iterator<Item = (String, u64)> {
    counts.into_iter().map(move |(of, n)| (format!("{label}=\"{of}\""), n))
}

/// What names a handler.
fn labels(h: &HandlerInfo) -> String {
    format!("event=\"{}\",script=\"{}\",name=\"{}\"", h.event, quoted(&h.script), quoted(&h.name))
}
