//! Finds processes that agents of earlier boots left running, and ends them before their sessions go on.
//!
//! It runs on a thread of its own while messages are accepted. No session starts before the search is over; then only
//! the sessions with a leftover process wait, until that process has ended.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::context::Context;
use super::shims::kill_processes;
use crate::agent::process::{self, Claim, Leftover};
use crate::proc::mark;
use crate::store::Store;
use crate::thread;

/// The longest time of one round of ending them.
const ROUND: Duration = Duration::from_secs(10);

/// What is killed in a stop has so long to be gone.
const LAST: Duration = Duration::from_secs(1);

/// The pause before the store is asked again for a process's session.
const PAUSE: Duration = Duration::from_secs(1);

/// Starts the search.
///
/// Shims come first: those whose agents go on (`kept`, by pid and start time), and all that descends from them, are no
/// leftovers.
pub fn start(ctx: &Arc<Context>, kept: Vec<(u32, u64)>) {
    ctx.registry.search_leftovers();
    ctx.sweeping.store(true, Ordering::Release);
    let (sweeper, spared) = (ctx.clone(), kept.clone());
    if let Err(e) = thread::spawn_own("sweep", thread::IO_STACK, move || sweep(&sweeper, &spared)) {
        log::warn!("cannot start a thread to search for processes of earlier agents, so the start waits for it: {e}");
        sweep(ctx, &kept);
    }
}

/// Sessions may wait for the search as long as this value lives. If the search panics, no session waits for ever: an
/// old process beside a new one does less harm.
struct Search<'h>(&'h Context);

impl Drop for Search<'_> {
    fn drop(&mut self) {
        self.0.sweeping.store(false, Ordering::Release);
        if std::thread::panicking() {
            log::error!("the search for processes of earlier agents failed; sessions start without it");
            self.0.registry.unblock_all();
        }
    }
}

fn sweep(ctx: &Context, kept: &[(u32, u64)]) {
    let _search = Search(ctx);
    crate::failpoint::hit("sweep", "begun");
    let stops = || ctx.board().stop.is_some();
    let claim =
        Claim { state_id: mark::own_state(), boot_id: Some(&ctx.boot_id), owner: Some(std::process::id()), kept };
    let found = process::find_dead(&claim);
    let mut left = ours(
        found,
        |id| ctx.store.sid_of(id),
        || {
            // Nobody wakes this thread, so this is a pause.
            std::thread::park_timeout(PAUSE);
            !stops()
        },
    );
    crate::failpoint::hit("boot", "looked");
    // What rows name may be needed: a shim has its row before its agent has a group or a directory.
    ctx.bounds().clean_all(&|| {
        let rows = ctx.store.shims().inspect_err(|e| log::warn!("the shims of agents cannot be read: {e}")).ok()?;
        Some(rows.into_iter().map(|(_, shim)| shim.name).collect())
    });
    ctx.registry.block_on_leftovers(left.iter().filter_map(|(sid, _)| *sid));
    ctx.tidy_now();
    if left.is_empty() {
        return forget_dead(ctx, kept);
    }
    log::warn!("{} processes of earlier agents still run; they are ended before their sessions start", left.len());
    for round in 0u32.. {
        let all: Vec<Leftover> = left.iter().map(|(_, l)| l.clone()).collect();
        let stuck = process::end_leftovers(&all, Instant::now() + ROUND);
        let mut freed = Vec::new();
        left.retain(|(sid, l)| {
            let keep = stuck.iter().any(|s| s.pid == l.pid && s.start == l.start);
            if !keep {
                freed.extend(*sid);
            }
            keep
        });
        for sid in freed {
            if !left.iter().any(|(s, _)| *s == Some(sid)) {
                ctx.registry.unblock(sid);
                ctx.tidy_now();
            }
        }
        crate::failpoint::hit("sweep", "round");
        if left.is_empty() || stops() {
            return forget_dead(ctx, kept);
        }
        if round == 0 {
            for (_, l) in &left {
                log::error!(session_id = l.session_id.as_deref().unwrap_or_default();
                    "{l} cannot be ended; its session waits");
            }
        }
    }
}

/// A stop overtakes the search, or those who look after an agent of an earlier boot: what dead boots left is killed now, so
/// that it leaves none. `all`: its own agents too, which were let go already.
pub fn cut_short(ctx: &Context, all: bool) {
    let until = Instant::now() + LAST;
    let but = (!all).then_some(ctx.boot_id.as_str());
    let stuck = match ctx.shims() {
        Some(shims) => shims.kill(but, until),
        None => kill_processes(but, until),
    };
    for left in stuck {
        log::error!("{left} cannot be ended");
    }
}

/// A stop that ends agents has abandoned these workers: nobody else ends theirs, which would go on alone. `store`: with the
/// patience that the stop has left.
pub fn end_abandoned(ctx: &Context, store: &Store, sids: &[i64]) {
    let Some(shims) = ctx.shims() else { return };
    let until = Instant::now() + LAST;
    for sid in sids {
        let rows = store.shims_of_session(*sid).unwrap_or_else(|e| {
            log::error!("stop: the shims of an abandoned worker cannot be read: {e}");
            Vec::new()
        });
        for shim in rows {
            shims.end(Some(&shim), None, &ctx.boot_id, until);
            ctx.bounds().end(&shim.name);
        }
    }
}

/// Removes the rows of earlier daemons' shims that are gone.
fn forget_dead(ctx: &Context, kept: &[(u32, u64)]) {
    let Ok(shims) = ctx.store.shims() else { return };
    for (_, shim) in shims {
        let who = (shim.pid, shim.pid_start);
        // Those that this daemon has made have workers that know better.
        if shim.boot_id == ctx.boot_id || kept.contains(&who) || process::is_alive(who.0, who.1) {
            continue;
        }
        if let Some(keeper) = ctx.keeper() {
            keeper.remove_socket(&shim.name);
        }
        if let Err(e) = ctx.store.shim_gone(shim.name) {
            return log::warn!("the row of a shim that is gone cannot be removed: {e}");
        }
    }
}

/// The processes that belong to this state directory, with the rows of their sessions. A process without a session row
/// blocks no session. A process of an older version does not name its state directory; it is ours if the store knows
/// its session. If the store fails it is asked again, as long as `wait` returns true: without the answer a session
/// could start beside its old process.
fn ours<E: std::fmt::Display>(
    found: Vec<Leftover>,
    sid_of: impl Fn(&str) -> Result<Option<i64>, E>,
    wait: impl Fn() -> bool,
) -> Vec<(Option<i64>, Leftover)> {
    let mut ours = Vec::new();
    let mut told = false;
    for leftover in found {
        let sid = loop {
            let Some(id) = leftover.session_id.as_deref() else { break leftover.sid };
            match sid_of(id) {
                Ok(sid) => break sid,
                Err(e) => {
                    if !told {
                        told = true;
                        log::error!(session_id = id;
                            "cannot find the session of {leftover}, no session starts before: {e}");
                    }
                    if !wait() {
                        // The daemon stops, so no session starts any more.
                        return ours;
                    }
                }
            }
        };
        if sid.is_some() || leftover.state_id.is_some() {
            ours.push((sid, leftover));
        }
    }
    ours
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn leftover(pid: u32, session_id: Option<&str>) -> Leftover {
        Leftover {
            pid,
            start: 1,
            session_id: session_id.map(str::to_owned),
            sid: None,
            boot_id: "old".to_owned(),
            state_id: None,
            name: "agent".to_owned(),
        }
    }

    #[test]
    fn a_store_that_fails_is_asked_again() {
        let found =
            || vec![leftover(10, Some("a")), leftover(11, None), leftover(12, Some("b")), leftover(13, Some("?"))];
        let fails = Cell::new(3);
        let sid_of = |id: &str| {
            if fails.get() > 0 {
                fails.set(fails.get() - 1);
                return Err("disk I/O error");
            }
            Ok([("a", 1), ("b", 2)].iter().find(|(known, _)| *known == id).map(|(_, sid)| *sid))
        };
        let ours_of = |found| ours(found, sid_of, || true).iter().map(|(sid, l)| (*sid, l.pid)).collect::<Vec<_>>();
        assert_eq!(ours_of(found()), [(Some(1), 10), (Some(2), 12)]);
        assert_eq!(fails.get(), 0);
        fails.set(1);
        assert_eq!(ours(found(), sid_of, || false), [], "a stop");
        let mut marked = found();
        marked.iter_mut().for_each(|l| l.state_id = Some("here".to_owned()));
        assert_eq!(ours_of(marked), [(Some(1), 10), (None, 11), (Some(2), 12), (None, 13)], "of this very directory");
        let tagged = Leftover { sid: Some(5), state_id: Some("here".to_owned()), ..leftover(14, None) };
        assert_eq!(ours_of(vec![tagged]), [(Some(5), 14)], "of which only the row is known");
    }
}
