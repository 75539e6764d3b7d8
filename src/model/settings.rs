//! The settings that decisions depend on. The configuration reads them; this room owns their meaning.

use std::time::Duration;

use super::event::string_enum;

string_enum! {
    /// What a message during a turn does.
    Busy {
        /// It waits its turn.
        Queue = "queue",
        /// All that wait share one turn.
        Collect = "collect",
        /// It cancels the turn that runs.
        Interrupt = "interrupt",
    }
}

string_enum! {
    /// When interrupted sessions go on after a boot.
    Resume {
        /// By themselves, right after the boot.
        Auto = "auto",
        /// With the next message under their key.
        OnMessage = "on_message",
        /// Never: the mark is kept, the next message opens a new session.
        Never = "never",
    }
}

string_enum! {
    /// What becomes of an interrupted turn.
    OnInterrupt {
        /// A continuation with a note.
        Resume = "resume",
        /// The message runs again.
        Rerun = "rerun",
        /// It waits for the next message.
        Wait = "wait",
    }
}

string_enum! {
    /// What of the file system an agent's processes may reach.
    Confine {
        /// Everything but the daemon's own state and other sessions' directories.
        State = "state",
        /// The same for reading; for writing only its own places.
        Workdir = "workdir",
        /// Everything that its user may.
        None = "none",
    }
}

string_enum! {
    /// What an agent's session must be for it to be asked for leave: an agent in a mode that asks nobody.
    Consent {
        /// It is told.
        Required = "required",
        /// It is not started.
        Strict = "strict",
    }
}

impl Confine {
    /// What the kernel does not enforce of it with this version of Landlock (0: none), in words: what an agent may do in
    /// spite of it.
    #[must_use]
    pub fn not_enforced(self, abi: u32) -> Vec<&'static str> {
        if self == Self::None {
            return Vec::new();
        }
        // What it is, and the version since which it is enforced.
        let all = [
            (1, "files"),
            (3, "truncate"),
            (if self == Self::Workdir { 5 } else { 0 }, "device ioctl"),
            (6, "signals"),
            (6, "abstract sockets"),
        ];
        all.into_iter().filter(|(since, _)| abi < *since).map(|(_, what)| what).collect()
    }
}

/// The budget of a stop: how long each phase may take (`[shutdown]`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Steps 2 to 5.
    pub drain: Duration,
    /// Steps 6 and 7.
    pub interrupt: Duration,
    /// Steps 4, 9 and 10 together.
    pub hooks: Duration,
    /// Step 8's rest and the store.
    pub close: Duration,
    /// The hard end.
    pub deadline: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            drain: Duration::from_secs(30),
            interrupt: Duration::from_secs(10),
            hooks: Duration::from_secs(10),
            close: Duration::from_secs(5),
            deadline: Duration::from_secs(60),
        }
    }
}

impl Budget {
    /// What the phases take together.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.drain.saturating_add(self.interrupt).saturating_add(self.hooks).saturating_add(self.close)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_does_not_enforce_is_told() {
        use Confine::{None as Free, State, Workdir};
        let everything = ["files", "truncate", "device ioctl", "signals", "abstract sockets"];
        for (confine, abi, want) in [
            (Workdir, 0, &everything[..]),
            (State, 0, &["files", "truncate", "signals", "abstract sockets"]),
            (State, 2, &["truncate", "signals", "abstract sockets"]),
            (State, 3, &["signals", "abstract sockets"]),
            (Workdir, 4, &["device ioctl", "signals", "abstract sockets"]),
            (Workdir, 5, &["signals", "abstract sockets"]),
            (Workdir, 6, &[]),
            (Free, 0, &[]),
        ] {
            assert_eq!(confine.not_enforced(abi), want, "{confine} {abi}");
        }
    }
}
