//! What a hook costs, beside what Lua alone would cost: `cargo bench --bench hooks`, `-- --short` for a quick look.
//!
//! Each figure is the median of several runs. "Bare" is a plain Lua state on the same thread, called with a table of the
//! same fields: no sandbox, no deadline, no thread, nothing counted.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ostler::config;
use ostler::hooks::trial::TrialHost;
use ostler::hooks::{Event, HandlerId, Hooks, load, sample};
use ostler::model::event::HookEvent;
use serde_json::Value;

const SCRIPT: &str = include_str!("ends.lua");

/// The same work without ostler.
const BARE: &str = r#"
local turns = 0
return function(ev)
  turns = turns + ev.turns
  return ev.key .. ev.reason
end
"#;

/// What is measured how often.
struct Scale {
    runs: usize,
    calls: usize,
    ends: usize,
    states: usize,
}

fn settings(dir: &Path, threads: usize) -> config::Hooks {
    config::Hooks { dir: Some(dir.to_owned()), threads, ..config::Config::default().hooks }
}

fn end(key: usize) -> Event {
    let mut event = sample(HookEvent::SessionEnd);
    event.key = Some(format!("local:{key}"));
    event
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

fn medians(runs: usize, mut measure: impl FnMut() -> f64) -> f64 {
    median((0..runs).map(|_| measure()).collect())
}

/// A plain state with the same function, and what calls it with an event.
fn bare() -> impl FnMut(&Event) {
    let lua = mlua::Lua::new();
    let function: mlua::Function = lua.load(BARE).call(()).unwrap();
    move |event| {
        let table = lua.create_table().unwrap();
        for (name, value) in event.fields.as_object().unwrap() {
            let value = match value {
                Value::String(s) => mlua::Value::String(lua.create_string(s).unwrap()),
                Value::Bool(b) => mlua::Value::Boolean(*b),
                other => other.as_i64().map_or(mlua::Value::Nil, mlua::Value::Integer),
            };
            table.raw_set(name.as_str(), value).unwrap();
        }
        let _: mlua::Value = function.call(table).unwrap();
    }
}

/// Hands an event over and waits for its answer, one after the other: microseconds a call.
fn one_call(hooks: &Hooks, handler: &HandlerId, calls: usize) -> f64 {
    let (tell, told) = crossbeam_channel::bounded(1);
    let event = end(1);
    let began = Instant::now();
    for _ in 0..calls {
        let tell = tell.clone();
        hooks.deliver(handler, event.clone(), Box::new(move |d| drop(tell.send(d))));
        told.recv().unwrap();
    }
    began.elapsed().as_secs_f64() * 1e6 / calls as f64
}

/// Many ends under many keys, as many under way as the daemon has: milliseconds for all.
fn many_ends(hooks: &Hooks, handler: &HandlerId, events: &[Event]) -> f64 {
    let (tell, told) = crossbeam_channel::unbounded();
    let began = Instant::now();
    for (n, event) in events.iter().enumerate() {
        if n >= 32 {
            told.recv().unwrap();
        }
        let tell = tell.clone();
        hooks.deliver(handler, event.clone(), Box::new(move |d| drop(tell.send(d))));
    }
    for _ in 0..events.len().min(32) {
        told.recv().unwrap();
    }
    began.elapsed().as_secs_f64() * 1e3
}

/// The same on two threads with a plain state each.
fn many_bare(events: &[Event]) -> f64 {
    let began = Instant::now();
    std::thread::scope(|scope| {
        for half in events.chunks(events.len().div_ceil(2)) {
            scope.spawn(move || {
                let mut call = bare();
                half.iter().for_each(&mut call);
            });
        }
    });
    began.elapsed().as_secs_f64() * 1e3
}

fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: f64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size() as f64 / 1024.0
}

/// Resident memory of each of many things, in KiB.
fn memory<T>(states: usize, make: impl FnOnce() -> T) -> f64 {
    let before = resident();
    let made = make();
    let grown = resident() - before;
    drop(made);
    grown / states as f64
}

fn main() {
    let short = std::env::args().any(|a| a == "--short") || std::env::var_os("OSTLER_BENCH_SHORT").is_some();
    let scale = if short {
        Scale { runs: 3, calls: 500, ends: 2_000, states: 50 }
    } else {
        Scale { runs: 9, calls: 5_000, ends: 10_000, states: 200 }
    };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.lua"), SCRIPT).unwrap();
    // Memory first: what was freed before would be used again and not be seen. Whoever loads has one state more.
    let lua_memory = memory(scale.states, || (0..scale.states).map(|_| bare()).collect::<Vec<_>>());
    let ours_memory = memory(scale.states, || load(&settings(dir.path(), scale.states - 1), "bench").unwrap());
    let loading = medians(scale.runs, || {
        let began = Instant::now();
        drop(load(&settings(dir.path(), 2), "bench").unwrap());
        began.elapsed().as_secs_f64() * 1e3
    });
    let loading_bare = medians(scale.runs, || {
        let began = Instant::now();
        drop((0..3).map(|_| bare()).collect::<Vec<_>>());
        began.elapsed().as_secs_f64() * 1e3
    });

    let hooks =
        Hooks::start(load(&settings(dir.path(), 2), "bench").unwrap(), Arc::new(TrialHost::default()), "boot").unwrap();
    let handler = hooks.handlers(HookEvent::SessionEnd)[0].clone();
    let call = medians(scale.runs, || one_call(&hooks, &handler, scale.calls));
    let mut plain = bare();
    let event = end(1);
    let call_bare = medians(scale.runs, || {
        let began = Instant::now();
        (0..scale.calls).for_each(|_| plain(&event));
        began.elapsed().as_secs_f64() * 1e6 / scale.calls as f64
    });
    let events: Vec<Event> = (0..scale.ends).map(end).collect();
    let ends = medians(scale.runs, || many_ends(&hooks, &handler, &events));
    let ends_bare = medians(scale.runs, || many_bare(&events));
    assert_eq!(hooks.close(Instant::now() + Duration::from_secs(10)), 0);

    println!("{:<46} {:>12} {:>12} {:>7}", "figure", "ostler", "bare limit", "ratio");
    let ends_name = format!("{} session_end events through 2 threads (ms)", scale.ends);
    for (figure, ours, limit) in [
        ("one session_end call through the pool (µs)", call, call_bare),
        (ends_name.as_str(), ends, ends_bare),
        ("loading a script into 3 states (ms)", loading, loading_bare),
        ("memory of a state (KiB)", ours_memory, lua_memory),
    ] {
        println!("{figure:<46} {ours:>12.2} {limit:>12.2} {:>7.1}", ours / limit);
    }
}
