//! Named points at which a test may kill or stall the daemon. Compiled in with the feature `failpoints` only.
//!
//! `OSTLER_FAILPOINTS="accept_message.committed=kill:3,finish_turn.before=stall:500"`: the third hit of the first kills
//! the process as SIGKILL would, each hit of the second waits half a second (`once:500`: its first alone). `POINT@KEY` means the point in the session
//! under that key alone; `GATE/POINT` counts hits of the point only once the gate, a point too, was hit. `NAME=set:N` gives
//! a number that the product asks for by that name, from the start, or from when its gate was hit.

/// A point that has a name. Nothing at all without the feature.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub const fn hit(_name: &str, _step: &str) {}

/// A point in what is done for one key.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub const fn hit_for(_name: &str, _step: &str, _key: &str) {}

/// A point before something that has a word for it: the first of its `Debug` text.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub const fn hit_word<T: std::fmt::Debug>(_name: &str, _word: &T) {}

/// A number that a test sets; without the feature nobody can.
#[cfg(not(feature = "failpoints"))]
#[inline]
#[must_use]
pub const fn number(_name: &str) -> Option<i64> {
    None
}

#[cfg(feature = "failpoints")]
pub use armed::{hit, hit_for, hit_word, number};

#[cfg(feature = "failpoints")]
mod armed {
    use std::fmt::Debug;
    use std::sync::{Mutex, OnceLock, PoisonError};
    use std::time::Duration;

    struct Rule {
        gate: Option<String>,
        point: String,
        verb: String,
        number: i64,
        hits: i64,
    }

    fn plan() -> &'static Mutex<Vec<Rule>> {
        static PLAN: OnceLock<Mutex<Vec<Rule>>> = OnceLock::new();
        PLAN.get_or_init(|| {
            let text = std::env::var("OSTLER_FAILPOINTS").unwrap_or_default();
            let rule = |part: &str| {
                let (point, what) = part.split_once('=')?;
                let (verb, number) = what.split_once(':').unwrap_or((what, "1"));
                let (gate, point) = match point.split_once('/') {
                    Some((gate, point)) => (Some(gate.to_owned()), point),
                    None => (None, point),
                };
                let number = number.parse().ok()?;
                Some(Rule { gate, point: point.to_owned(), verb: verb.to_owned(), number, hits: 0 })
            };
            Mutex::new(text.split(',').filter_map(rule).collect())
        })
    }

    /// A point that has a name: does what the environment asks for it.
    pub fn hit(name: &str, step: &str) {
        at(&format!("{name}.{step}"));
    }

    /// A point in what is done for one key.
    pub fn hit_for(name: &str, step: &str, key: &str) {
        at(&format!("{name}.{step}"));
        at(&format!("{name}.{step}@{key}"));
    }

    /// A point before something that has a word for it: the first of its `Debug` text.
    pub fn hit_word<T: Debug>(name: &str, word: &T) {
        let text = format!("{word:?}");
        hit(name, text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default());
    }

    /// A number that a test sets; the last of its rules whose gate was hit counts.
    #[must_use]
    pub fn number(name: &str) -> Option<i64> {
        let plan = plan().lock().unwrap_or_else(PoisonError::into_inner);
        let set = |rule: &&Rule| rule.gate.is_none() && rule.point == name && rule.verb == "set";
        plan.iter().rev().find(set).map(|rule| rule.number)
    }

    fn at(point: &str) {
        let mut plan = plan().lock().unwrap_or_else(PoisonError::into_inner);
        let (mut stall, mut panics) = (Duration::ZERO, false);
        for rule in plan.iter_mut() {
            if rule.gate.as_deref() == Some(point) {
                rule.gate = None;
            }
            if rule.gate.is_some() || rule.point != point {
                continue;
            }
            rule.hits += 1;
            match rule.verb.as_str() {
                "kill" if rule.hits == rule.number => {
                    let _ = rustix::io::write(rustix::stdio::stderr(), format!("failpoint {point}: kill\n").as_bytes());
                    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                }
                "panic" if rule.hits == rule.number => panics = true,
                "once" if rule.hits == 1 => stall += Duration::from_millis(rule.number.unsigned_abs()),
                "stall" => stall += Duration::from_millis(rule.number.unsigned_abs()),
                _ => {}
            }
        }
        drop(plan);
        if !stall.is_zero() {
            std::thread::sleep(stall);
        }
        assert!(!panics, "failpoint {point}");
    }
}
