//! The decisions in a worker's life: what it does next, and what follows from each outcome.
//!
//! A session has one worker, which is in one of the states below. The daemon performs the work of a state and asks a
//! function of this file what follows. `look` decides while it is idle; each other state has a closed set of outcomes.
//!
//! | State     | Work                                           | Outcome → what follows                                      |
//! |-----------|------------------------------------------------|-------------------------------------------------------------|
//! | Opening   | the activation is opened                       | [`opened`]: open → Idle; refused → Gone; in doubt → the same |
//! |           |                                                | after a pause, or Gone if it must close                      |
//! | Attaching | the shim of an agent that outlived another      | attached → Idle or Running; gone → settled as at a boot,     |
//! |           | daemon is attached to                          | Gone; in doubt, or another runs alone → the same after a     |
//! |           |                                                | pause                                                        |
//! | Idle      | decides what to do next ([`look`]), or waits   | Starting, Beginning, Running, Closing, or the next letter    |
//! | Starting  | the agent is started                           | [`started`]: ready → Beginning or Running; failed → Idle,    |
//! |           |                                                | backing off; must close → Idle; refused → Closing            |
//! | Beginning | hooks are asked, the turn's begin is committed | [`began`]: begun → Running; nothing, held, on probation →    |
//! |           |                                                | Idle; refused → Closing; in doubt → decides later            |
//! | Running   | the agent answers                              | pending → Running; done → Finishing, with its [`verdict`]    |
//! | Finishing | the outcome is committed                       | [`finished`]: written → Idle; refused → Idle; damaged →      |
//! |           |                                                | Closing; in doubt → the same after a pause, or Closing if it |
//! |           |                                                | is killed or its time is over                                |
//! | Closing   | the agent is closed, the activation ended      | [`closed`]: ended → Gone; in doubt → the same after a pause, |
//! |           |                                                | or Gone if another thread ends it                            |
//! | Gone      | nothing                                        |                                                              |

use std::time::{Duration, Instant};

use super::event::{MarkReason, Outcome, StopReason};

/// The longest pause before an agent that keeps dying is started again.
const BACKOFF: Duration = Duration::from_secs(60);

/// The states of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its activation is being opened.
    Opening,
    /// It goes on with the activation of another daemon: its agent's shim is attached to.
    Attaching,
    /// No turn runs and none begins.
    Idle,
    /// Its agent is being started.
    Starting,
    /// A turn is about to begin.
    Beginning,
    /// A turn runs.
    Running,
    /// A turn's outcome is being written.
    Finishing,
    /// Its agent and its activation are being closed.
    Closing,
    /// It has ended.
    Gone,
}

/// Why a running turn must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A client cancelled it.
    Cancelled,
    /// The daemon stops.
    Stop,
    /// Its session is no longer current: its writes are refused already.
    Retired,
}

/// How a worker must close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Close {
    /// To make room; its activation ends as parked.
    Park,
    /// The daemon stops: its activation is closed by the stop.
    Stop,
    /// Its session is no longer current: its activation is closed already.
    Retire,
}

/// The facts for an idle worker's decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AtRest {
    /// A stop ends it at once.
    pub killed: bool,
    /// It must let its agent go, which outlives the daemon.
    pub let_go: bool,
    /// It must close.
    pub close: Option<Close>,
    /// A turn was begun for it.
    pub begun: bool,
    /// Another thread is about to begin a turn for it, and there is time to wait for that.
    pub reserved: bool,
    /// Its agent has begun work by itself.
    pub agent_speaks: bool,
    /// The session may have waiting work.
    pub work: bool,
    /// It must wait before the next start or try.
    pub backing_off: bool,
    /// Its agent is ready for a prompt.
    pub agent_ready: bool,
}

/// What an idle worker does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Closes.
    Close(Close),
    /// Lets its agent go.
    LetGo,
    /// Starts its agent, for the waiting work.
    Start,
    /// Runs the turn that was begun for it.
    Run,
    /// Begins the next turn.
    Begin,
    /// Begins a turn for the work that its agent began by itself.
    BeginOwn,
    /// Rests.
    Rest,
}

/// What an idle worker does next. A turn that was begun for it comes before a close, unless its session is no longer
/// current; a close comes before everything else.
#[must_use]
pub const fn look(f: &AtRest) -> Act {
    if f.killed {
        return Act::Close(match f.close {
            Some(close) => close,
            None => Close::Stop,
        });
    }
    match f.close {
        Some(Close::Retire) => Act::Close(Close::Retire),
        None if f.let_go => Act::LetGo,
        Some(_) | None if f.begun => start_or(f, Act::Run),
        Some(_) if f.reserved => Act::Rest,
        Some(close) => Act::Close(close),
        None if f.backing_off => Act::Rest,
        None if f.agent_speaks => Act::BeginOwn,
        None if f.work => start_or(f, Act::Begin),
        None => Act::Rest,
    }
}

const fn start_or(f: &AtRest, act: Act) -> Act {
    if f.agent_ready { act } else { Act::Start }
}

/// The outcome of a write to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is committed.
    Yes {
        /// Another message waits.
        more: bool,
    },
    /// It was refused as stale: the session has gone on without this worker.
    Refused,
    /// The session's rows are damaged: another try would fail too.
    Damaged,
    /// It failed, and it may or may not be committed.
    InDoubt,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The next state has what it needs.
    Go,
    /// Idle: decides again at once. `worked`: its time to park starts again.
    Look {
        /// It did some work.
        worked: bool,
    },
    /// Idle: waits for a letter, because no work waits. `worked` as above.
    Rest {
        /// It did some work.
        worked: bool,
    },
    /// Idle: waits for a letter although it must close, because another thread is about to begin a turn for it.
    RestReserved,
    /// Idle, but it still counts as running, because a turn may have begun. Decides again after a pause.
    LookLater,
    /// Does the same again after a pause.
    Again,
    /// It closes: the session has gone on without it.
    Close,
    /// It has ended.
    Gone,
}

/// What follows the opening of the activation.
#[must_use]
pub const fn opened(written: Written) -> Then {
    match written {
        Written::Yes { .. } => Then::Look { worked: true },
        Written::Refused => Then::Gone,
        Written::Damaged | Written::InDoubt => Then::Again,
    }
}

/// Whether the opening is tried again: not by a worker that must close.
#[must_use]
pub const fn open_again(close: Option<Close>) -> Then {
    if close.is_some() { Then::Gone } else { Then::Again }
}

/// The outcome of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// The agent is ready.
    Ready,
    /// It was given up, because the worker must close.
    ToClose,
    /// It failed, and the waiting work fails with it: the outcome of that write.
    Failed(Written),
}

/// What follows the start of the agent.
#[must_use]
pub const fn started(came: Started) -> Then {
    match came {
        Started::Ready => Then::Go,
        Started::ToClose => Then::Look { worked: true },
        Started::Failed(Written::Refused) => Then::Close,
        Started::Failed(Written::Yes { .. } | Written::Damaged | Written::InDoubt) => Then::Rest { worked: true },
    }
}

/// The outcome of a turn's begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Began {
    /// It has begun.
    Begun,
    /// The worker was just chosen to give way.
    Chosen,
    /// Another thread is about to begin a turn.
    Reserved,
    /// No work waits, or no turn may begin now.
    Nothing,
    /// Another session is on probation. `new`: the worker did not know that before, so the probation may be over
    /// already.
    Probation {
        /// The worker did not know that before.
        new: bool,
    },
    /// The session has gone on without this worker.
    Refused,
    /// A turn may or may not have begun.
    InDoubt,
    /// The waiting work cannot begin (a hook refuses it, or it is damaged) and fails: the outcome of that write.
    Failed(Written),
}

/// What follows the begin of a turn.
#[must_use]
pub const fn began(came: Began) -> Then {
    match came {
        Began::Begun => Then::Go,
        Began::Chosen | Began::Nothing | Began::Probation { new: false } => Then::Rest { worked: false },
        Began::Reserved => Then::RestReserved,
        Began::Probation { new: true } | Began::Failed(Written::Yes { more: true }) => Then::Look { worked: true },
        Began::Refused | Began::Failed(Written::Refused) => Then::Close,
        Began::InDoubt => Then::LookLater,
        Began::Failed(Written::Yes { more: false } | Written::Damaged | Written::InDoubt) => {
            Then::Rest { worked: true }
        }
    }
}

/// What follows the write of a turn's outcome. `more`: another message waits, as far as the worker knows.
#[must_use]
pub const fn finished(written: Written, more: bool) -> Then {
    match written {
        Written::Yes { .. } | Written::Refused if more => Then::Look { worked: true },
        Written::Yes { .. } | Written::Refused => Then::Rest { worked: true },
        Written::Damaged => Then::Close,
        Written::InDoubt => Then::Again,
    }
}

/// Whether the write of the outcome is tried again: not by a worker that is killed or whose time is over.
#[must_use]
pub const fn finish_again(killed: bool, late: bool) -> Then {
    if killed || late { Then::Close } else { Then::Again }
}

/// What follows the end of a parked session's activation. `close`: how the worker must close by now.
#[must_use]
pub fn closed(written: Written, close: Option<Close>) -> Then {
    match written {
        Written::Yes { .. } | Written::Refused | Written::Damaged => Then::Gone,
        // The stop ends it, or it has ended already.
        Written::InDoubt if close > Some(Close::Park) => Then::Gone,
        Written::InDoubt => Then::Again,
    }
}

/// Whether the idle worker waits for a letter. It decides again at once instead if a letter has `called` it already (to
/// close, to let its agent go, or to a turn that another thread began), or if its agent began work by itself during the
/// last turn.
#[must_use]
pub const fn rests(then: Then, called: bool, agent_speaks: bool) -> bool {
    match then {
        Then::RestReserved => true,
        Then::Rest { worked } => !(called || worked && agent_speaks),
        Then::Go | Then::Look { .. } | Then::LookLater | Then::Again | Then::Close | Then::Gone => false,
    }
}

/// How long the next start waits after this number of failures in a row: not after the first one, and longer after each
/// further one.
#[must_use]
pub fn pause(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        n => Duration::from_secs(1 << (n - 2).min(6)).min(BACKOFF),
    }
}

/// How an agent ended a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It gave the whole answer.
    Completed,
    /// It failed.
    Failed,
    /// It cancelled the turn, on request or by itself.
    Cancelled,
}

/// The result of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// It has this outcome, without an error.
    Ended(Outcome),
    /// It failed: its answer was too long.
    TooLarge,
    /// It failed: its time was over.
    TimedOut,
    /// It failed, with the agent's error.
    AgentFailed,
    /// It failed: its agent cancelled it without a request.
    AgentCancelled,
}

/// The result of a turn. An answer that is too long fails the turn. A whole answer completes it, whatever was requested
/// meanwhile. Otherwise a timeout or a request decides before the agent's own ending.
#[must_use]
pub const fn verdict(answer: Ending, too_large: bool, timed_out: bool, why: Option<Why>) -> Judged {
    match (answer, why) {
        _ if too_large => Judged::TooLarge,
        (Ending::Completed, _) => Judged::Ended(Outcome::Completed),
        _ if timed_out => Judged::TimedOut,
        (_, Some(Why::Stop)) => Judged::Ended(Outcome::Interrupted),
        (_, Some(Why::Cancelled | Why::Retired)) => Judged::Ended(Outcome::Cancelled),
        (Ending::Failed, None) => Judged::AgentFailed,
        (Ending::Cancelled, None) => Judged::AgentCancelled,
    }
}

/// The mark of a turn that is interrupted now.
#[must_use]
pub const fn mark(stop: Option<StopReason>) -> MarkReason {
    match stop {
        Some(StopReason::Restart) => MarkReason::RestartTimeout,
        Some(StopReason::Shutdown) | None => MarkReason::ShutdownTimeout,
    }
}

/// When an idle session is parked. `own_work`: when its live agent last did work by itself. It may have more to do, so
/// it is not parked before `background_hold` has passed.
#[must_use]
pub fn park_at(
    idle_since: Instant,
    park_after: Option<Duration>,
    own_work: Option<Instant>,
    background_hold: Option<Duration>,
) -> Option<Instant> {
    let parked = idle_since + park_after?;
    let held = own_work.zip(background_hold).map(|(at, hold)| at + hold);
    Some(held.map_or(parked, |at| at.max(parked)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOSES: [Option<Close>; 4] = [None, Some(Close::Park), Some(Close::Stop), Some(Close::Retire)];

    fn all_facts() -> impl Iterator<Item = AtRest> {
        (0..256_u32).flat_map(|bits| {
            let bit = move |n: u32| bits >> n & 1 == 1;
            CLOSES.into_iter().map(move |close| AtRest {
                killed: bit(0),
                let_go: bit(7),
                close,
                begun: bit(1),
                reserved: bit(2),
                agent_speaks: bit(3),
                work: bit(4),
                backing_off: bit(5),
                agent_ready: bit(6),
            })
        })
    }

    /// What has to hold whatever else is the case.
    #[test]
    fn each_look_keeps_the_order_of_what_matters() {
        for f in all_facts() {
            let act = look(&f);
            match act {
                Act::Close(close) => assert_eq!(Some(close), f.close.or(f.killed.then_some(Close::Stop)), "{f:?}"),
                Act::Run => assert!(f.begun && f.agent_ready, "{f:?}"),
                Act::Begin => assert!(f.work && f.agent_ready, "{f:?}"),
                Act::Start => assert!(!f.agent_ready && (f.begun || f.work), "{f:?}"),
                Act::BeginOwn => assert!(f.agent_speaks, "{f:?}"),
                Act::LetGo => assert!(f.let_go && f.close.is_none() && !f.killed, "{f:?}"),
                Act::Rest => {}
            }
            let closes = matches!(act, Act::Close(_));
            if f.killed || f.close == Some(Close::Retire) {
                assert!(closes, "{f:?}");
            } else if f.let_go && f.close.is_none() {
                assert_eq!(act, Act::LetGo, "{f:?}");
            } else if f.begun {
                assert!(matches!(act, Act::Run | Act::Start), "a turn that was begun is run: {f:?}");
            } else if f.close.is_some() {
                assert_eq!(closes, !f.reserved, "{f:?}");
                assert!(closes || act == Act::Rest, "{f:?}");
            } else {
                assert_eq!(act == Act::Rest, f.backing_off || !(f.agent_speaks || f.work), "{f:?}");
            }
        }
    }

    #[test]
    fn looks() {
        let none = AtRest::default();
        let ready = AtRest { agent_ready: true, ..none };
        for (facts, act) in [
            (none, Act::Rest),
            (AtRest { work: true, ..none }, Act::Start),
            (AtRest { work: true, ..ready }, Act::Begin),
            (AtRest { work: true, backing_off: true, ..ready }, Act::Rest),
            (AtRest { agent_speaks: true, work: true, ..ready }, Act::BeginOwn),
            (AtRest { begun: true, ..none }, Act::Start),
            (AtRest { begun: true, backing_off: true, work: true, ..ready }, Act::Run),
            (AtRest { begun: true, close: Some(Close::Park), ..ready }, Act::Run),
            (AtRest { begun: true, close: Some(Close::Retire), ..ready }, Act::Close(Close::Retire)),
            (AtRest { reserved: true, close: Some(Close::Stop), ..ready }, Act::Rest),
            (AtRest { work: true, close: Some(Close::Stop), ..ready }, Act::Close(Close::Stop)),
            (AtRest { killed: true, begun: true, ..ready }, Act::Close(Close::Stop)),
            (AtRest { killed: true, close: Some(Close::Park), ..ready }, Act::Close(Close::Park)),
        ] {
            assert_eq!(look(&facts), act, "{facts:?}");
        }
    }

    /// The state table of this file, row by row.
    #[test]
    fn every_outcome_of_every_state() {
        use Written::{Damaged, InDoubt, Refused};
        let (more, none) = (Written::Yes { more: true }, Written::Yes { more: false });
        let (look, rest) = (Then::Look { worked: true }, Then::Rest { worked: true });
        let idle = Then::Rest { worked: false };
        for (written, then) in
            [(more, look), (none, look), (Refused, Then::Gone), (Damaged, Then::Again), (InDoubt, Then::Again)]
        {
            assert_eq!(opened(written), then, "Opening {written:?}");
        }
        for close in CLOSES {
            assert_eq!(open_again(close), if close.is_some() { Then::Gone } else { Then::Again }, "{close:?}");
        }
        for (came, then) in [
            (Started::Ready, Then::Go),
            (Started::ToClose, look),
            (Started::Failed(more), rest),
            (Started::Failed(none), rest),
            (Started::Failed(Refused), Then::Close),
            (Started::Failed(Damaged), rest),
            (Started::Failed(InDoubt), rest),
        ] {
            assert_eq!(started(came), then, "Starting {came:?}");
        }
        for (came, then) in [
            (Began::Begun, Then::Go),
            (Began::Chosen, idle),
            (Began::Reserved, Then::RestReserved),
            (Began::Nothing, idle),
            (Began::Probation { new: true }, look),
            (Began::Probation { new: false }, idle),
            (Began::Refused, Then::Close),
            (Began::InDoubt, Then::LookLater),
            (Began::Failed(more), look),
            (Began::Failed(none), rest),
            (Began::Failed(Refused), Then::Close),
            (Began::Failed(Damaged), rest),
            (Began::Failed(InDoubt), rest),
        ] {
            assert_eq!(began(came), then, "Beginning {came:?}");
        }
        for (written, waits, then) in [
            (more, true, look),
            (none, false, rest),
            (Refused, true, look),
            (Refused, false, rest),
            (Damaged, true, Then::Close),
            (Damaged, false, Then::Close),
            (InDoubt, true, Then::Again),
            (InDoubt, false, Then::Again),
        ] {
            assert_eq!(finished(written, waits), then, "Finishing {written:?} {waits}");
        }
        for (killed, late, then) in [
            (false, false, Then::Again),
            (true, false, Then::Close),
            (false, true, Then::Close),
            (true, true, Then::Close),
        ] {
            assert_eq!(finish_again(killed, late), then, "Finishing again {killed} {late}");
        }
        for close in CLOSES {
            for written in [more, none, Refused, Damaged] {
                assert_eq!(closed(written, close), Then::Gone, "Closing {written:?} {close:?}");
            }
            let others = matches!(close, Some(Close::Stop | Close::Retire));
            assert_eq!(closed(InDoubt, close), if others { Then::Gone } else { Then::Again }, "{close:?}");
        }
    }

    #[test]
    fn what_rests() {
        for (then, called, speaks, want) in [
            (Then::RestReserved, true, true, true),
            (Then::RestReserved, false, false, true),
            (Then::Rest { worked: true }, false, false, true),
            (Then::Rest { worked: true }, true, false, false),
            (Then::Rest { worked: true }, false, true, false),
            (Then::Rest { worked: false }, false, true, true),
            (Then::Rest { worked: false }, true, false, false),
            (Then::Look { worked: true }, false, false, false),
            (Then::LookLater, false, false, false),
        ] {
            assert_eq!(rests(then, called, speaks), want, "{then:?} {called} {speaks}");
        }
    }

    #[test]
    fn pauses_grow_to_a_minute() {
        let seconds: Vec<u64> = (0..11).map(|n| pause(n).as_secs()).collect();
        assert_eq!(seconds, [0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(pause(u32::MAX), BACKOFF);
    }

    #[test]
    fn verdicts() {
        use Ending::{Cancelled, Completed, Failed};
        use Judged::{AgentCancelled, AgentFailed, Ended, TimedOut, TooLarge};
        let whys = [None, Some(Why::Cancelled), Some(Why::Stop), Some(Why::Retired)];
        for answer in [Completed, Failed, Cancelled] {
            for timed_out in [false, true] {
                for why in whys {
                    assert_eq!(verdict(answer, true, timed_out, why), TooLarge);
                    let want = match (answer, timed_out, why) {
                        (Completed, ..) => Ended(Outcome::Completed),
                        (_, true, _) => TimedOut,
                        (_, _, Some(Why::Stop)) => Ended(Outcome::Interrupted),
                        (_, _, Some(_)) => Ended(Outcome::Cancelled),
                        (Failed, ..) => AgentFailed,
                        (Cancelled, ..) => AgentCancelled,
                    };
                    assert_eq!(verdict(answer, false, timed_out, why), want, "{answer:?} {timed_out} {why:?}");
                }
            }
        }
    }

    #[test]
    fn marks() {
        assert_eq!(mark(None), MarkReason::ShutdownTimeout);
        assert_eq!(mark(Some(StopReason::Shutdown)), MarkReason::ShutdownTimeout);
        assert_eq!(mark(Some(StopReason::Restart)), MarkReason::RestartTimeout);
    }

    #[test]
    fn a_session_is_parked_when_nothing_holds_it() {
        let t = Instant::now();
        let s = Duration::from_secs;
        assert_eq!(park_at(t, None, Some(t), Some(s(9))), None);
        assert_eq!(park_at(t, Some(s(5)), None, Some(s(9))), Some(t + s(5)));
        assert_eq!(park_at(t, Some(s(5)), Some(t), None), Some(t + s(5)));
        assert_eq!(park_at(t, Some(s(5)), Some(t), Some(s(9))), Some(t + s(9)));
        assert_eq!(park_at(t, Some(s(5)), Some(t), Some(s(3))), Some(t + s(5)));
    }
}
