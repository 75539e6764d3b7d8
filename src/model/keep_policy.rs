//! Which exits of the daemon keep agents: the contract's table, as one pure function.
//!
//! | exit | `keep = "restart"` | `"crash"` | `"never"` |
//! |---|---|---|---|
//! | died: SIGKILL, a panic, the kernel's memory killer, a watchdog, a deadline | kept | kept | ended |
//! | restart: `ostler restart`, SIGUSR1, exit code 75, `systemctl restart`, an upgrade | kept | ended | ended |
//! | shutdown: SIGTERM, SIGINT, `ostler stop` | ended | ended | ended |
//!
//! `ostler stop --keep` and `ostler restart --end` say otherwise for one time. It knows nothing of shims: how
//! agents are kept, and which cannot be, is decided where they run.

use super::event::{StopReason, Urgency, string_enum};

string_enum! {
    /// Which exits keep agents (`[agents] keep`).
    Keep {
        /// A restart, and what the daemon did not decide.
        Restart = "restart",
        /// Only what the daemon did not decide.
        Crash = "crash",
        /// None: agents are children of the daemon.
        Never = "never",
    }
}

string_enum! {
    /// What becomes of the agents at an exit.
    Agents {
        /// They go on, and the next boot takes them up.
        Keep = "keep",
        /// They are ended.
        End = "end",
    }
}

/// A stop, as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopRequest {
    /// Why.
    pub reason: StopReason,
    /// How much of the ladder it walks.
    pub urgency: Urgency,
    /// What becomes of the agents this time, if it is not what the configuration says.
    pub agents: Option<Agents>,
}

/// How the daemon goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It died, or its watchdog ended it: nobody decided it.
    Died,
    /// It stops, for this reason.
    Stop(StopReason),
}

/// What becomes of the agents at an exit. `this_time` is what the request itself said; where `keep` is `never` there is
/// nothing that could be kept, and a daemon that died was asked nothing.
#[must_use]
pub const fn agents_at(exit: Exit, keep: Keep, this_time: Option<Agents>) -> Agents {
    match (keep, exit, this_time) {
        (Keep::Never, Exit::Died | Exit::Stop(_), _) => Agents::End,
        (Keep::Restart | Keep::Crash, Exit::Died, _) => Agents::Keep,
        (Keep::Restart | Keep::Crash, Exit::Stop(_), Some(this_time)) => this_time,
        (Keep::Restart, Exit::Stop(StopReason::Restart), None) => Agents::Keep,
        (Keep::Restart | Keep::Crash, Exit::Stop(StopReason::Shutdown), None)
        | (Keep::Crash, Exit::Stop(StopReason::Restart), None) => Agents::End,
    }
}

/// What becomes of them when a further request comes in a stop: what was to be ended is ended, and a shutdown during a
/// restart ends what would have been kept. `asked` is what [`agents_at`] makes of it.
#[must_use]
pub const fn agents_after(now: Agents, asked: Agents) -> Agents {
    match (now, asked) {
        (Agents::Keep, Agents::Keep) => Agents::Keep,
        (Agents::End, _) | (_, Agents::End) => Agents::End,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_exit_keeps_what_the_contract_says() {
        const RESTART: Exit = Exit::Stop(StopReason::Restart);
        const SHUTDOWN: Exit = Exit::Stop(StopReason::Shutdown);
        const KEPT: Agents = Agents::Keep;
        const ENDED: Agents = Agents::End;
        // For a request that says nothing, to keep, to end.
        let table = [
            (Exit::Died, Keep::Restart, [KEPT, KEPT, KEPT]),
            (Exit::Died, Keep::Crash, [KEPT, KEPT, KEPT]),
            (Exit::Died, Keep::Never, [ENDED, ENDED, ENDED]),
            (RESTART, Keep::Restart, [KEPT, KEPT, ENDED]),
            (RESTART, Keep::Crash, [ENDED, KEPT, ENDED]),
            (RESTART, Keep::Never, [ENDED, ENDED, ENDED]),
            (SHUTDOWN, Keep::Restart, [ENDED, KEPT, ENDED]),
            (SHUTDOWN, Keep::Crash, [ENDED, KEPT, ENDED]),
            (SHUTDOWN, Keep::Never, [ENDED, ENDED, ENDED]),
        ];
        for (exit, keep, expected) in table {
            let got = [None, Some(KEPT), Some(ENDED)].map(|this_time| agents_at(exit, keep, this_time));
            assert_eq!(got, expected, "{exit:?}, {keep}");
        }
    }

    #[test]
    fn what_is_to_end_is_not_kept_after_all() {
        for (now, asked, expected) in [
            (Agents::Keep, Agents::Keep, Agents::Keep),
            (Agents::Keep, Agents::End, Agents::End),
            (Agents::End, Agents::Keep, Agents::End),
            (Agents::End, Agents::End, Agents::End),
        ] {
            assert_eq!(agents_after(now, asked), expected, "{now}, then {asked}");
        }
    }
}
