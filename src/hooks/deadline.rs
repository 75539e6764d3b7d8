//! The deadline of a Lua state: it stops a call that would run on.
//!
//! Lua's count hook looks at the clock every [`STRIDE`] instructions. Where instructions are slow and the deadline is
//! near it looks after each: one instruction may compare or copy tens of megabytes, and a hundred of them could outlast
//! the patience for a thread. Past the deadline (or once a flag is set) the hook runs at every instruction of the
//! running coroutine. It *yields* where it can, because a yield passes through `pcall` and `<close>`, and nothing in
//! Lua can catch it. Where it cannot yield (inside a callback of a C function) it raises an error, again and again,
//! until no instruction is left that could catch one. [`super::sandbox`] throws a state away that was stopped like
//! this. This file must not know what is called, nor by whom.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mlua::{HookTriggers, Lua, VmState};

use super::lock;
use crate::awake::Span;

/// Instructions between two looks at the clock.
const STRIDE: u32 = 100;
/// Looks so far apart, in nanoseconds, had a slow instruction between them.
const SLOW: u64 = 10_000_000;
/// The same for looks with one instruction between them.
const SLOW_ONE: u64 = 1_000_000;
/// Instructions in a row, none of them slow, after which the stride is the usual one again.
const CALM: u32 = 200;

/// "No deadline", in nanoseconds after the base.
const NEVER: u64 = u64::MAX;

/// When the running call must end, and whether it had to be stopped.
#[derive(Debug)]
pub struct Deadline {
    base: Instant,
    /// When to check whether the time is spent, in nanoseconds after the base.
    at: AtomicU64,
    /// The time of the call, and how much of it the process was awake.
    given: Mutex<Option<(Span, Duration)>>,
    flag: Mutex<Option<Arc<AtomicBool>>>,
    /// The last look, in nanoseconds after the base, and how many looks in a row found nothing slow.
    last: AtomicU64,
    calm: AtomicU32,
    fired: AtomicBool,
    trace: Mutex<String>,
}

impl Deadline {
    /// No deadline yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            base: Instant::now(),
            at: AtomicU64::new(NEVER),
            given: Mutex::new(None),
            flag: Mutex::new(None),
            last: AtomicU64::new(0),
            calm: AtomicU32::new(0),
            fired: AtomicBool::new(false),
            trace: Mutex::new(String::new()),
        })
    }

    /// Sets the instant, which is put off by the time that the process is paused; `None`: no deadline.
    pub fn set(&self, until: Option<Instant>) {
        *lock(&self.given) = until.map(|t| (Span::begin(), t.saturating_duration_since(Instant::now())));
        let nanos = until
            .map_or(NEVER, |t| u64::try_from(t.saturating_duration_since(self.base).as_nanos()).unwrap_or(NEVER - 1));
        self.at.store(nanos, Ordering::Relaxed);
    }

    /// From now on a set flag stops the call too.
    pub fn stop_on(&self, flag: Option<Arc<AtomicBool>>) {
        *lock(&self.flag) = flag;
    }

    /// What is left; `None`: there is no deadline.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        lock(&self.given).as_ref().map(|(span, given)| span.left(*given))
    }

    /// Whether the call must stop now.
    #[must_use]
    pub fn past(&self) -> bool {
        let at = self.at.load(Ordering::Relaxed);
        (at != NEVER && self.base.elapsed().as_nanos() >= u128::from(at) && self.is_spent())
            || lock(&self.flag).as_ref().is_some_and(|f| f.load(Ordering::Relaxed))
    }

    /// Called past the instant: whether the call had its time. If the process was paused meanwhile, the instant is put
    /// off.
    fn is_spent(&self) -> bool {
        let Some(left) = self.left().filter(|left| !left.is_zero()) else { return true };
        let nanos = (self.base.elapsed() + left).as_nanos();
        self.at.store(u64::try_from(nanos).unwrap_or(NEVER - 1), Ordering::Relaxed);
        false
    }

    /// Whether a call was stopped: its state must not be used again.
    #[must_use]
    pub fn fired(&self) -> bool {
        self.fired.load(Ordering::Relaxed)
    }

    /// Where the call was when it was stopped: a Lua traceback.
    #[must_use]
    pub fn trace(&self) -> String {
        lock(&self.trace).clone()
    }

    /// Watches the state: its main thread and every coroutine that is made from now on.
    ///
    /// # Errors
    /// Lua has no memory left.
    pub fn install(self: &Arc<Self>, lua: &Lua) -> mlua::Result<()> {
        self.arm(lua, STRIDE)
    }

    /// For the shims of C functions that switch coroutines: past the deadline, makes the next instruction of the
    /// running coroutine stop it. Otherwise a tree of coroutines, each shorter than the stride, would never be stopped.
    ///
    /// # Errors
    /// Lua has no memory left.
    pub fn check(self: &Arc<Self>, lua: &Lua) -> mlua::Result<()> {
        if self.past() { self.arm(lua, 1) } else { Ok(()) }
    }

    fn arm(self: &Arc<Self>, lua: &Lua, every: u32) -> mlua::Result<()> {
        let deadline = Arc::clone(self);
        lua.set_global_hook(HookTriggers::new().every_nth_instruction(every), move |lua, _| {
            if deadline.past() { deadline.stop(lua) } else { deadline.pace(lua) }
        })
    }

    /// Whether the deadline may come before as many instructions again, which took so long, are over.
    fn is_near(&self, now: u64, took: u64) -> bool {
        let at = self.at.load(Ordering::Relaxed);
        at.saturating_sub(now) <= took.saturating_mul(2) || lock(&self.flag).is_some()
    }

    /// Looks more often where instructions are slow, and as usual once they are not.
    fn pace(self: &Arc<Self>, lua: &Lua) -> mlua::Result<VmState> {
        let now = || u64::try_from(self.base.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let (stride, at) = (stride(lua), now());
        let took = at.saturating_sub(self.last.swap(at, Ordering::Relaxed));
        let slow = took > if stride > 1 { SLOW } else { SLOW_ONE };
        if slow {
            self.calm.store(0, Ordering::Relaxed);
            if stride == 1 || !self.is_near(at, took) {
                return Ok(VmState::Continue);
            }
            self.arm(lua, 1)?;
        } else if stride == 1 && self.calm.fetch_add(1, Ordering::Relaxed) >= CALM {
            self.arm(lua, STRIDE)?;
        } else {
            return Ok(VmState::Continue);
        }
        // Arming a deep stack takes time, which does not count as the script's.
        self.last.store(now(), Ordering::Relaxed);
        Ok(VmState::Continue)
    }

    fn stop(self: &Arc<Self>, lua: &Lua) -> mlua::Result<VmState> {
        if !self.fired.swap(true, Ordering::Relaxed) {
            let trace = lua.traceback(None, 0).map(|t| t.to_string_lossy()).unwrap_or_default();
            *lock(&self.trace) = trace;
        }
        self.arm(lua, 1)?;
        if yieldable(lua) { Ok(VmState::Yield) } else { Err(mlua::Error::runtime("timeout")) }
    }
}

/// How often the coroutine that runs is looked at: it was armed when it was made, or since.
#[allow(unsafe_code)]
fn stride(lua: &Lua) -> u32 {
    // SAFETY: `state()` is the coroutine whose hook is being called: it lives at least until the hook returns, and this
    // thread holds the lock of the Lua state. `lua_gethookcount` reads one of its integers and changes nothing.
    let count = unsafe { mlua::ffi::lua_gethookcount(lua.state()) };
    u32::try_from(count).unwrap_or(STRIDE)
}

/// Whether the coroutine that runs may yield. mlua ignores a yield where it may not, which would let a callback of a C
/// function run on for ever.
#[allow(unsafe_code)]
fn yieldable(lua: &Lua) -> bool {
    // SAFETY: `state()` is the coroutine whose hook is being called: it lives at least until the hook returns, and this
    // thread holds the lock of the Lua state. `lua_isyieldable` reads one of its counters and changes nothing.
    unsafe { mlua::ffi::lua_isyieldable(lua.state()) != 0 }
}
