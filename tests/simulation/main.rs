//! The simulation: the real parts under a seed, with deaths at any step and commits in doubt.
//!
//! The coordinator, the registry with its roster, workers, delivery and hub run on one thread over the real store
//! ([`sim`]). What they are given instead of the machine's time and threads, the operator's handlers and agents is in
//! [`parts`]; what was promised, and whether the stream and the tables keep it, is known to the [`witness`].
//!
//! `OSTLER_SIM_SEEDS=N` runs N seeds (by default as many as take a minute or two on two cores), `OSTLER_SIM_FROM=N` begins
//! with that one, `OSTLER_SIM_SEED=N` runs that one alone, and `OSTLER_SIM_TRACE=1` tells what happens in it.
#![allow(clippy::unwrap_used, missing_docs)]

mod dice;
mod parts;
mod rider;
mod room;
mod sim;
mod witness;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use room::Room;

/// As many as take a minute or two on two cores; fewer where nothing is optimised.
const SEEDS: u64 = if cfg!(debug_assertions) { 300 } else { 10_000 };
/// What happens before everything is let come to its end.
const STEPS: u64 = 250;
/// Seeds that fail before the rest is given up.
const ENOUGH: usize = 5;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

#[test]
fn whatever_happens_in_whatever_order_the_promises_hold() {
    each_seed(SEEDS, || {
        let tools = std::sync::Arc::new(sim::Tools::new());
        move |seed, room| {
            let mut sim = sim::Sim::new(seed, room, tools.clone());
            for _ in 0..STEPS {
                sim.step();
            }
            sim.settle_down();
            (sim.steps, sim.boots, sim.leave())
        }
    });
}

/// Runs the seeds that are asked for, on as many threads as there are cores; each makes its own runner.
fn each_seed<R: FnMut(u64, Room) -> (u64, u64, Room)>(seeds: u64, make: impl Fn() -> R + Sync) {
    let (from, to) = match number("OSTLER_SIM_SEED") {
        Some(one) => (one, one + 1),
        None => {
            let from = number("OSTLER_SIM_FROM").unwrap_or(0);
            (from, from + number("OSTLER_SIM_SEEDS").unwrap_or(seeds))
        }
    };
    let began = Instant::now();
    let (next, steps, boots) = (AtomicU64::new(from), AtomicU64::new(0), AtomicU64::new(0));
    let failed = Mutex::new(Vec::new());
    let body = || {
        let mut room = None;
        let mut run = make();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= to || failed.lock().unwrap().len() >= ENOUGH {
                return;
            }
            let used = room.take().unwrap_or_else(|| Room::new(&seed.to_string()));
            match catch_unwind(AssertUnwindSafe(|| run(seed, used))) {
                Ok((s, b, left)) => {
                    steps.fetch_add(s, Ordering::Relaxed);
                    boots.fetch_add(b, Ordering::Relaxed);
                    room = Some(left);
                }
                Err(_) => {
                    eprintln!("seed {seed} fails: OSTLER_SIM_SEED={seed} cargo test --release --test simulation");
                    failed.lock().unwrap().push(seed);
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min((to - from) as usize);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(body);
        }
    });
    let failed = failed.into_inner().unwrap();
    eprintln!(
        "{} seeds, {} steps, {} boots in {:.1} s on {threads} threads",
        to - from,
        steps.into_inner(),
        boots.into_inner(),
        began.elapsed().as_secs_f64()
    );
    assert!(failed.is_empty(), "failing seeds: {failed:?}");
}
