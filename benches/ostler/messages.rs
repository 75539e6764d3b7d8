//! Messages: accepted, and answered by an echo.

use std::time::Instant;

use crossbeam_channel::{Sender, bounded};
use rusqlite::Connection;

use crate::bare;
use crate::rig::{self, Daemon, ECHO, Place};
use crate::table::{Goal, Scale, Table, median, quantile};

const CLIENTS: usize = 64;

/// One client's durable accept, from the request's first byte to the 202.
pub fn accept_one(scale: Scale, table: &mut Table) {
    let n = scale.of(2000, 50);
    let pairs = (0..scale.of(5, 1)).map(|_| (accept_p50(n), commit_p50(n))).collect();
    let (ours, bare) = median(pairs);
    table.row("one client, durable accept (POST to 202), p50", "µs", ours, Some(bare), Goal::TimesOrMore(1.5, 150.0));
}

fn accept_p50(n: usize) -> f64 {
    let place = Place::new(&rig::config(ECHO), None);
    let daemon = place.start();
    let mut client = daemon.client();
    hold(&daemon);
    client.accept(0);
    p50(n, || client.accept(0))
}

/// What is measured is the accept alone, not the turn that would run beside it.
fn hold(daemon: &Daemon<'_>) {
    assert_eq!(daemon.client().post("/v1/hold", "").0, 202);
}

fn p50(n: usize, mut act: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..n)
        .map(|_| {
            let began = Instant::now();
            act();
            began.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    quantile(&mut times, 0.5)
}

fn commit_p50(n: usize) -> f64 {
    let dir = tempfile::tempdir().expect("a directory");
    let conn = bare::database(dir.path(), 1);
    p50(n, || {
        conn.execute_batch("BEGIN IMMEDIATE").expect("begun");
        bare::accept(&conn, 1);
        conn.execute_batch("COMMIT").expect("committed");
    })
}

/// Many clients at once: how many a second, and what CPU each message took, in microseconds.
#[derive(Clone, Copy)]
struct Load {
    rate: f64,
    generator: f64,
    daemon: f64,
}

/// Accepts a second.
pub fn accept_many(scale: Scale, table: &mut Table) {
    let each = scale.of(400, 10);
    let rounds = (0..scale.of(3, 1)).map(|_| (loaded(each, true), group_commits(each, false))).collect();
    shown(table, "durable accepts", "accept", rounds);
}

/// Whole echo turns a second.
pub fn turns(scale: Scale, table: &mut Table) {
    let each = scale.of(200, 5);
    let rounds = (0..scale.of(3, 1)).map(|_| (loaded(each, false), group_commits(each, true))).collect();
    shown(table, "whole echo turns", "turn", rounds);
}

fn shown(table: &mut Table, figure: &str, one: &str, mut rounds: Vec<(Load, Load)>) {
    rounds.sort_by(|a, b| (a.0.rate / a.1.rate).total_cmp(&(b.0.rate / b.1.rate)));
    let (ours, bare) = rounds[rounds.len() / 2];
    table.row(
        &format!("{CLIENTS} clients on {CLIENTS} keys, {figure}"),
        "/s",
        ours.rate,
        Some(bare.rate),
        Goal::Share(50.0),
    );
    table.note(&format!(
        "CPU a{} {one}: the daemon's {:.0} µs, its load generator's {:.0} µs; bare, all in one process: {:.0} µs",
        if one.starts_with('a') { "n" } else { "" },
        ours.daemon,
        ours.generator,
        bare.generator
    ));
}

fn loaded(each: usize, held: bool) -> Load {
    let place = Place::new(&rig::config(ECHO), None);
    let daemon = place.start();
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| daemon.client()).collect();
    for (key, client) in clients.iter_mut().enumerate() {
        client.turn(key);
    }
    if held {
        hold(&daemon);
    }
    let me = std::process::id();
    let cpu = (rig::cpu(me), rig::cpu(daemon.pid()));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for (key, client) in clients.iter_mut().enumerate() {
            scope.spawn(move || (0..each).for_each(|_| if held { client.accept(key) } else { client.turn(key) }));
        }
    });
    let took = began.elapsed().as_secs_f64();
    let n = (CLIENTS * each) as f64;
    Load {
        rate: n / took,
        generator: (rig::cpu(me) - cpu.0) * 1e6 / n,
        daemon: (rig::cpu(daemon.pid()) - cpu.1) * 1e6 / n,
    }
}

/// What a thread hands to the writer, and what it is told after the commit.
enum Job {
    Accept(i64, Sender<i64>),
    Turn(i64, i64, Sender<i64>),
}

/// As many threads hand their rows to one writer thread, which commits whatever waits, and wait for it.
fn group_commits(each: usize, turns: bool) -> Load {
    let dir = tempfile::tempdir().expect("a directory");
    let conn = bare::database(dir.path(), CLIENTS);
    let (jobs, inbox) = bounded::<Job>(1024);
    let writer = std::thread::spawn(move || {
        while let Ok(first) = inbox.recv() {
            let mut group = vec![first];
            group.extend(inbox.try_iter().take(511));
            conn.execute_batch("BEGIN IMMEDIATE").expect("begun");
            let tids: Vec<i64> = group.iter().map(|job| write(&conn, job)).collect();
            conn.execute_batch("COMMIT").expect("committed");
            for (job, tid) in group.iter().zip(tids) {
                let (Job::Accept(_, done) | Job::Turn(_, _, done)) = job;
                done.send(tid).expect("told");
            }
        }
    });
    let me = std::process::id();
    let cpu = rig::cpu(me);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for sid in 1..=CLIENTS as i64 {
            let jobs = jobs.clone();
            scope.spawn(move || {
                let (done, told) = bounded(1);
                for _ in 0..each {
                    jobs.send(Job::Accept(sid, done.clone())).expect("handed over");
                    let tid = told.recv().expect("told");
                    if turns {
                        jobs.send(Job::Turn(sid, tid, done.clone())).expect("handed over");
                        told.recv().expect("told");
                    }
                }
            });
        }
    });
    let took = began.elapsed().as_secs_f64();
    drop(jobs);
    writer.join().expect("the writer");
    let n = (CLIENTS * each) as f64;
    Load { rate: n / took, generator: (rig::cpu(me) - cpu) * 1e6 / n, daemon: 0.0 }
}

fn write(conn: &Connection, job: &Job) -> i64 {
    match job {
        Job::Accept(sid, _) => bare::accept(conn, *sid),
        Job::Turn(sid, tid, _) => {
            bare::turn(conn, *sid, *tid);
            *tid
        }
    }
}
