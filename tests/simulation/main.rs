//! The simulation: the real store, machine and recovery under a seed, with deaths at any step and commits in doubt.
//!
//! `OSTLER_SIM_SEEDS=N` runs N seeds (by default as many as take about half a minute), `OSTLER_SIM_SEED=N` that one alone.
#![allow(clippy::unwrap_used, missing_docs)]

mod dice;
mod house;
mod witness;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Instant;

use house::House;

/// As many as take about half a minute on one core.
const SEEDS: u64 = 600;
/// What happens before everything is let come to its end.
const STEPS: u64 = 120;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

fn run(seed: u64, dir: &Path, template: &Path) -> (u64, u64) {
    let mut house = House::new(seed, dir, template);
    for _ in 0..STEPS {
        house.step();
    }
    house.settle_down();
    (house.steps, house.boots)
}

#[test]
fn whatever_happens_in_whatever_order_the_promises_hold() {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let template = dir.path().join("template.db");
    let store = ostler::store::Store::open(&template).unwrap();
    store.close(Instant::now() + std::time::Duration::from_secs(10)).unwrap();
    let seeds = match number("OSTLER_SIM_SEED") {
        Some(one) => one..one + 1,
        None => 0..number("OSTLER_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let (began, count) = (Instant::now(), seeds.end - seeds.start);
    let (mut steps, mut boots, mut failed) = (0, 0, Vec::new());
    for seed in seeds {
        match catch_unwind(AssertUnwindSafe(|| run(seed, dir.path(), &template))) {
            Ok((s, b)) => {
                steps += s;
                boots += b;
            }
            Err(_) => {
                eprintln!("seed {seed} fails: OSTLER_SIM_SEED={seed} cargo test --release --test simulation");
                failed.push(seed);
                if failed.len() >= 5 {
                    break;
                }
            }
        }
    }
    eprintln!("{count} seeds, {steps} steps, {boots} boots in {:.1} s", began.elapsed().as_secs_f64());
    assert!(failed.is_empty(), "failing seeds: {failed:?}");
}
