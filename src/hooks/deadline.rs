//! The deadline of a Lua state: how a call is stopped that does not want to be stopped.
//!
//! Lua's count hook looks every [`STRIDE`] instructions. Past the deadline (or once a flag is set) it arms itself for
//! every single instruction of the coroutine that runs and *yields* where it can, because a yield passes through
//! `pcall` and `<close>` and nothing in Lua can catch it; where it cannot yield (inside a callback of a C function) it
//! raises an error, again and again, until no instruction is left that could catch one. What is spoiled that way is
//! thrown away by [`super::sandbox`]. It must not know what is called, nor by whom.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mlua::{HookTriggers, Lua, VmState};

use super::lock;
use crate::awake::Span;

/// Instructions between two looks at the clock. Small, because one instruction may copy tens of megabytes.
const STRIDE: u32 = 100;

/// "No deadline", in nanoseconds after the base.
const NEVER: u64 = u64::MAX;

/// When the call that runs in a state is over, and whether it had to be stopped.
#[derive(Debug)]
pub struct Deadline {
    base: Instant,
    /// When to look whether the time is spent, in nanoseconds after the base.
    at: AtomicU64,
    /// The time that the call was given, and how much of it the process was awake.
    given: Mutex<Option<(Span, Duration)>>,
    flag: Mutex<Option<Arc<AtomicBool>>>,
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
            fired: AtomicBool::new(false),
            trace: Mutex::new(String::new()),
        })
    }

    /// From now on the instant counts, put off by what the process is paused until then; `None`: there is none.
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

    /// The instant is over: whether the call had its time. If the process was paused meanwhile, the instant is put off.
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

    /// For the shims of C functions that switch coroutines: past the deadline, arms the coroutine that runs, so that
    /// its next instruction stops it. Otherwise a tree of coroutines, each shorter than the stride, would never be
    /// seen.
    ///
    /// # Errors
    /// Lua has no memory left.
    pub fn check(self: &Arc<Self>, lua: &Lua) -> mlua::Result<()> {
        if self.past() { self.arm(lua, 1) } else { Ok(()) }
    }

    fn arm(self: &Arc<Self>, lua: &Lua, every: u32) -> mlua::Result<()> {
        let deadline = Arc::clone(self);
        lua.set_global_hook(HookTriggers::new().every_nth_instruction(every), move |lua, _| {
            if deadline.past() { deadline.stop(lua) } else { Ok(VmState::Continue) }
        })
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

/// Whether the coroutine that runs may yield. mlua ignores a yield where it may not, which would let a callback of a C
/// function run on for ever.
#[allow(unsafe_code)]
fn yieldable(lua: &Lua) -> bool {
    // SAFETY: `state()` is the coroutine whose hook is being called: it lives at least until the hook returns, and this
    // thread holds the lock of the Lua state. `lua_isyieldable` reads one of its counters and changes nothing.
    unsafe { mlua::ffi::lua_isyieldable(lua.state()) != 0 }
}
