//! What a turn costs as the store and the daemon fill up, with a plot of it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::fill;
use crate::plot::{Line, svg};
use crate::rig::{self, Daemon, ECHO, Place};
use crate::table::{Goal, Scale, Table, quantile};

/// The time of a turn (POST to its end) and the daemon's CPU a turn, in microseconds.
struct Cost {
    p50: f64,
    cpu: f64,
}

fn cost(daemon: &Daemon<'_>, turns: usize, key: impl Fn(usize) -> usize) -> Cost {
    let mut client = daemon.client();
    (0..turns / 10).for_each(|n| client.turn(key(n)));
    let before = rig::cpu(daemon.pid());
    let mut times: Vec<f64> = (0..turns)
        .map(|n| {
            let began = Instant::now();
            client.turn(key(n));
            began.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    let cpu = (rig::cpu(daemon.pid()) - before) * 1e6 / turns as f64;
    Cost { p50: quantile(&mut times, 0.5), cpu }
}

/// The plots.
pub fn run(scale: Scale, table: &mut Table) {
    messages(scale, table);
    sessions(scale, table);
    crowd(scale, table);
}

/// From one stored message to a million, half of them in the session that is asked.
fn messages(scale: Scale, table: &mut Table) {
    const SESSIONS: usize = 1000;
    let place = Place::new(&rig::config(ECHO), None);
    place.start().stop();
    fill::sessions(&place.database(), SESSIONS);
    let turns = scale.of(2000, 20);
    let mut points = Vec::new();
    let mut stored = 1;
    for size in [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000] {
        if scale.short && size > 1_000 {
            break;
        }
        fill::messages(&place.database(), stored..size, SESSIONS);
        stored = size;
        let daemon = place.start();
        let cost = cost(&daemon, turns, |_| 1);
        daemon.stop();
        told(table, &format!("a turn with {size} stored messages"), &cost);
        points.push((size as f64, cost));
    }
    plot(
        scale,
        "growth-messages",
        "Cost of a turn by stored messages",
        "messages in the store, half of them in this session",
        &points,
    );
}

/// From one live session to ten thousand: the turns of one of them, and of all in turn.
fn sessions(scale: Scale, table: &mut Table) {
    let place = Place::new(&rig::config(ECHO), None);
    let daemon = place.start();
    let turns = scale.of(2000, 20);
    let mut points = Vec::new();
    let mut live = 0;
    for size in [1, 10, 100, 1_000, 10_000] {
        if scale.short && size > 100 {
            break;
        }
        daemon.message_all(live..size);
        live = size;
        daemon.settle();
        // A stride that meets every session, so that each turn wakes another thread.
        let cost = cost(&daemon, turns, |n| (n * 7919) % size);
        told(table, &format!("a turn of {size} live sessions, one after the other"), &cost);
        points.push((size as f64, cost));
    }
    plot(
        scale,
        "growth-sessions",
        "Cost of a turn by live sessions",
        "live sessions, answering one after the other",
        &points,
    );
}

/// From a hundred keys to ten thousand that want a worker at once, where there is room for a hundred.
fn crowd(scale: Scale, table: &mut Table) {
    const ROOM: usize = 100;
    let mut points = Vec::new();
    for size in [100, 1_000, 10_000] {
        if scale.short && size > 200 {
            break;
        }
        let config = rig::config(ECHO).replace("max_live = 20000", &format!("max_live = {ROOM}"));
        let place = Place::new(&config, None);
        let daemon = place.start();
        let before = rig::cpu(daemon.pid());
        let began = Instant::now();
        daemon.message_all(0..size);
        daemon.settle();
        let each = |seconds: f64| seconds * 1e6 / size as f64;
        let cost = Cost { p50: each(began.elapsed().as_secs_f64()), cpu: each(rig::cpu(daemon.pid()) - before) };
        daemon.stop();
        table.row(&format!("a turn of {size} keys at once, room for {ROOM}"), "µs", cost.p50, None, Goal::Shown);
        table.note(&format!("the daemon's CPU: {:.0} µs a turn", cost.cpu));
        points.push((size as f64, cost));
    }
    plot(
        scale,
        "growth-crowd",
        "Cost of a turn by sessions that want a worker",
        "keys with a message at once, room for a hundred of them",
        &points,
    );
}

fn told(table: &mut Table, figure: &str, cost: &Cost) {
    table.row(&format!("{figure}, p50"), "µs", cost.p50, None, Goal::Shown);
    table.note(&format!("the daemon's CPU: {:.0} µs a turn", cost.cpu));
}

fn plot(scale: Scale, name: &str, title: &str, across: &str, points: &[(f64, Cost)]) {
    let line = |name: &str, of: fn(&Cost) -> f64| Line {
        name: name.to_owned(),
        points: points.iter().map(|(x, cost)| (*x, of(cost))).collect(),
    };
    let lines = [line("time, one client's median or a crowd's mean", |c| c.p50), line("the daemon's CPU", |c| c.cpu)];
    let text = svg(title, across, "µs a turn", &lines);
    let dir: PathBuf =
        if scale.short { std::env::temp_dir() } else { Path::new(env!("CARGO_MANIFEST_DIR")).join("docs") };
    let file = dir.join(format!("{name}.svg"));
    std::fs::create_dir_all(&dir).and_then(|()| std::fs::write(&file, text)).expect("a plot");
    if scale.short {
        let _ = std::fs::remove_file(file);
    } else {
        println!("  {}", file.display());
    }
}
