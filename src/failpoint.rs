//! Named points at which a test may kill or stall the daemon. Compiled in with the feature `failpoints` only.
//!
//! `OSTLER_FAILPOINTS="accept_message.committed=kill:3,finish_turn.before=stall:500"`: the third hit of the first kills
//! the process as SIGKILL would, each hit of the second waits half a second.

/// A point that has a name. Nothing at all without the feature.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub const fn hit(_name: &str, _step: &str) {}

/// A point that has a name: does what the environment asks for it.
#[cfg(feature = "failpoints")]
pub fn hit(name: &str, step: &str) {
    use std::collections::HashMap;
    use std::sync::{Mutex, OnceLock, PoisonError};
    type Plan = HashMap<String, (String, u64, u64)>;
    static PLAN: OnceLock<Mutex<Plan>> = OnceLock::new();
    let plan = PLAN.get_or_init(|| {
        let text = std::env::var("OSTLER_FAILPOINTS").unwrap_or_default();
        let entry = |part: &str| {
            let (point, what) = part.split_once('=')?;
            let (verb, number) = what.split_once(':').unwrap_or((what, "1"));
            Some((point.to_owned(), (verb.to_owned(), number.parse().ok()?, 0)))
        };
        Mutex::new(text.split(',').filter_map(entry).collect())
    });
    let mut plan = plan.lock().unwrap_or_else(PoisonError::into_inner);
    let Some((verb, number, hits)) = plan.get_mut(&format!("{name}.{step}")) else { return };
    *hits += 1;
    match verb.as_str() {
        "kill" if hits == number => {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
        "panic" if hits == number => {
            drop(plan);
            panic!("failpoint {name}.{step}");
        }
        "stall" => {
            let pause = std::time::Duration::from_millis(*number);
            drop(plan);
            std::thread::sleep(pause);
        }
        _ => {}
    }
}
