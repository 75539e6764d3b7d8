//! A hook thread: one queue of tasks, and the thread that works it off in a Lua state of its own.
//!
//! The queue and the running call belong to [`HookThread`], not to the system's thread. When a call does not come back,
//! its thread is given up, the call is answered as timed out, and another thread goes on with the queue. The lost
//! thread sees by its `generation`, when it comes back, that it was replaced, and ends without touching anything. This
//! file must not know which events go to which hook thread.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::lock;
use super::scripts::{Plan, State};
use super::task::{self, Failure, Shared, Step, Task};
use crate::awake::Span;

/// The call that runs.
struct Running {
    task: Task,
    step: Step,
    began: Instant,
    /// After so much time awake the thread is given up.
    limit: Duration,
    awake: Span,
    lost_at: Instant,
}

impl Running {
    /// When the call will be given up, put off by the time that the process was paused.
    fn lost_at(&mut self, now: Instant) -> Instant {
        if self.lost_at <= now {
            let left = self.awake.left(self.limit);
            if !left.is_zero() {
                self.lost_at = now + left;
            }
        }
        self.lost_at
    }
}

struct Inner {
    queue: VecDeque<Task>,
    incoming: Option<(Arc<Plan>, Option<State>)>,
    running: Option<Running>,
    generation: u64,
    /// The thread was given up, and no other took its place.
    deserted: bool,
    /// Nothing but `stopped` is called any more.
    stopping: bool,
    closing: bool,
}

/// A queue of tasks and its thread.
pub(crate) struct HookThread {
    inner: Mutex<Inner>,
    wake: Condvar,
    bound: usize,
}

/// A task that does not fit, given back.
pub(crate) struct Full(pub Task);

impl HookThread {
    pub fn new(bound: usize) -> Self {
        Self {
            inner: Mutex::new(Inner {
                queue: VecDeque::new(),
                incoming: None,
                running: None,
                generation: 0,
                deserted: false,
                stopping: false,
                closing: false,
            }),
            wake: Condvar::new(),
            bound,
        }
    }

    /// Puts a task at the end.
    pub fn push(&self, task: Task) -> Result<(), Full> {
        let mut inner = lock(&self.inner);
        if inner.closing || (inner.stopping && !task.is_last()) || inner.queue.len() >= self.bound {
            return Err(Full(task));
        }
        inner.queue.push_back(task);
        drop(inner);
        self.wake.notify_one();
        Ok(())
    }

    /// Another plan and state, from the next task on.
    pub fn adopt(&self, plan: Arc<Plan>, state: Option<State>) {
        let old = lock(&self.inner).incoming.replace((plan, state));
        // A state is dropped outside of the lock: it may be large.
        drop(old);
        self.wake.notify_one();
    }

    /// Takes nothing but `stopped` from now on; gives back the tasks that waited.
    pub fn stop(&self) -> Vec<Task> {
        let mut inner = lock(&self.inner);
        inner.stopping = true;
        inner.queue.drain(..).collect()
    }

    /// Takes nothing any more, because the thread was given up and no other took its place. Gives back the tasks that
    /// waited.
    pub fn desert(&self) -> Vec<Task> {
        lock(&self.inner).deserted = true;
        self.stop()
    }

    /// Takes tasks again after a stop. True: a thread is needed.
    pub fn resume(&self) -> bool {
        let mut inner = lock(&self.inner);
        inner.stopping = inner.closing;
        std::mem::take(&mut inner.deserted)
    }

    /// Ends the thread when it is idle; gives back the tasks that waited.
    pub fn close(&self) -> Vec<Task> {
        let mut inner = lock(&self.inner);
        inner.stopping = true;
        inner.closing = true;
        let waiting = inner.queue.drain(..).collect();
        drop(inner);
        self.wake.notify_all();
        waiting
    }

    /// How many tasks wait or run.
    pub fn load(&self) -> usize {
        let inner = lock(&self.inner);
        inner.queue.len() + usize::from(inner.running.is_some())
    }

    /// When the running call will be given up.
    pub fn lost_at(&self, now: Instant) -> Option<Instant> {
        lock(&self.inner).running.as_mut().map(|r| r.lost_at(now))
    }

    /// Gives the thread up if its call is overdue: the call is answered, the rest of its task goes on. Gives the
    /// generation of the thread that is to follow.
    pub fn give_up(&self, now: Instant, shared: &Shared) -> Option<u64> {
        let mut inner = lock(&self.inner);
        let running = inner.running.take_if(|r| r.lost_at(now) <= now)?;
        inner.generation += 1;
        let generation = inner.generation;
        drop(inner);
        let failure = Failure {
            timed_out: true,
            text: "it hangs in a call that cannot be stopped; its thread is given up".to_owned(),
        };
        let Running { task, step, began, .. } = running;
        if let Some(rest) = task.conclude(&step, Err(failure), began.elapsed(), shared) {
            // The queue may exceed its bound by this task, which was in it before.
            lock(&self.inner).queue.push_front(rest);
        }
        Some(generation)
    }

    /// Which generation the next thread has.
    pub fn generation(&self) -> u64 {
        lock(&self.inner).generation
    }

    /// Works the queue off. `begun` is told when each call will be given up. True: this thread was given up before it
    /// ended.
    pub fn work(&self, generation: u64, mut plan: Arc<Plan>, shared: &Shared, begun: &dyn Fn(Instant)) -> bool {
        let mut state: Option<State> = None;
        loop {
            let mut inner = lock(&self.inner);
            let task = loop {
                if inner.generation != generation {
                    return true;
                }
                if let Some((new_plan, new_state)) = inner.incoming.take() {
                    drop(inner);
                    plan = new_plan;
                    state = new_state;
                    inner = lock(&self.inner);
                    continue;
                }
                if let Some(task) = inner.queue.pop_front() {
                    break task;
                }
                if inner.closing {
                    return false;
                }
                inner = self.wake.wait(inner).unwrap_or_else(PoisonError::into_inner);
            };
            drop(inner);
            if !self.run(generation, task, &plan, &mut state, shared, begun) {
                return true;
            }
        }
    }

    /// Runs a task to its end. False: this thread was given up meanwhile.
    fn run(
        &self,
        generation: u64,
        mut task: Task,
        plan: &Plan,
        state: &mut Option<State>,
        shared: &Shared,
        begun: &dyn Fn(Instant),
    ) -> bool {
        while let Some((next, step)) = task.next(plan, shared) {
            let (event, now) = (next.event(), Instant::now());
            // The time to make a state first does not count as the call's.
            let making = if task::is_usable(state.as_ref()) { Duration::ZERO } else { plan.time_to_build() };
            let limit = making + step.timeout() + shared.grace;
            let lost_at = now + limit;
            {
                let mut inner = lock(&self.inner);
                if inner.stopping && !next.is_last() {
                    drop(inner);
                    next.not_called(plan, "the hooks are closing");
                    return true;
                }
                let awake = Span::begin();
                inner.running = Some(Running { task: next, step: step.clone(), began: now, limit, awake, lost_at });
            }
            begun(lost_at);
            let outcome = task::call(plan, state, &step, event.as_deref(), shared);
            let running = {
                let mut inner = lock(&self.inner);
                if inner.generation != generation {
                    return false;
                }
                inner.running.take()
            };
            // Only giving this thread up takes the call away, and that raises the generation.
            let Some(Running { task: ran, step, began, .. }) = running else { return false };
            match ran.conclude(&step, outcome, began.elapsed(), shared) {
                Some(rest) => task = rest,
                None => return true,
            }
        }
        true
    }
}
