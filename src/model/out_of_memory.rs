//! An agent's processes went beyond their limit of memory: what becomes of the turn.
//!
//! The kernel ends the largest of them, which is often a tool and not the agent itself. If the agent goes on, so does its
//! turn, and the operator is told; if it died of it, the turn fails and says why. Pure: it is given what a control group
//! counts, and how the agent's first process stands.

use bytesize::ByteSize;

/// The turn's error, and the notice's code.
pub const CODE: &str = "out_of_memory";

/// What the group of an agent says of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// How many processes the kernel has ended in it; `None`: it does not count.
    pub ended: Option<u64>,
    /// The limit in bytes, if there is one.
    pub limit: Option<u64>,
    /// The most bytes that were in use at once.
    pub peak: Option<u64>,
}

/// How the agent's first process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leader {
    /// It runs.
    Lives,
    /// It exited with status 0.
    Succeeded,
    /// It was killed, or exited with another status.
    Failed,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing.
    Nothing,
    /// The turn goes on, and this is told.
    Notice(String),
    /// The turn fails with this error.
    Failed(String),
}

/// Judges it. `before`: how many processes the kernel had ended in the group when it was looked at last, 0 for a new group.
#[must_use]
pub fn judge(before: u64, memory: &Memory, leader: Leader) -> Judgement {
    let ended = memory.ended.unwrap_or(0).saturating_sub(before);
    if ended == 0 {
        return Judgement::Nothing;
    }
    let size = |bytes: Option<u64>| bytes.map(|bytes| ByteSize(bytes).to_string());
    let limit = size(memory.limit).map_or_else(|| "of the whole service".to_owned(), |limit| format!("of {limit}"));
    let peak = size(memory.peak).map_or_else(String::new, |peak| format!(", at most {peak} were in use"));
    let beyond = format!("beyond the memory limit {limit}{peak}");
    match leader {
        Leader::Failed => Judgement::Failed(format!("the agent went {beyond}, and the kernel ended it")),
        Leader::Lives | Leader::Succeeded => {
            let those = if ended == 1 { "a process".to_owned() } else { format!("{ended} processes") };
            Judgement::Notice(format!(
                "{those} that the agent had started went {beyond}, and the kernel ended what was largest"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_died_decides() {
        const MIB: u64 = 1 << 20;
        let seen = |ended| Memory { ended: Some(ended), limit: Some(64 * MIB), peak: Some(63 * MIB) };
        let nothing = Memory::default();
        // Ended before, what is seen, how the leader stands; what is to be done.
        let table = [
            (0, seen(0), Leader::Failed, "nothing"),
            (0, seen(0), Leader::Lives, "nothing"),
            (2, seen(2), Leader::Failed, "nothing"),
            (3, seen(2), Leader::Failed, "nothing"),
            (0, nothing, Leader::Failed, "nothing"),
            (0, seen(1), Leader::Lives, "notice"),
            (0, seen(1), Leader::Succeeded, "notice"),
            (1, seen(3), Leader::Lives, "notice"),
            (0, seen(1), Leader::Failed, "failed"),
            (1, seen(2), Leader::Failed, "failed"),
        ];
        for (before, memory, leader, want) in table {
            let (got, text) = match judge(before, &memory, leader) {
                Judgement::Nothing => ("nothing", None),
                Judgement::Notice(text) => ("notice", Some(text)),
                Judgement::Failed(text) => ("failed", Some(text)),
            };
            assert_eq!(got, want, "{before} {memory:?} {leader:?}");
            assert!(text.is_none_or(|t| t.contains("limit of 64.0 MiB, at most 63.0 MiB")), "limit and peak are named");
        }
        let Judgement::Notice(text) = judge(1, &seen(3), Leader::Lives) else { panic!() };
        assert!(text.starts_with("2 processes"), "{text}");
        let Judgement::Failed(text) = judge(0, &Memory { ended: Some(1), ..nothing }, Leader::Failed) else { panic!() };
        assert!(text.contains("of the whole service,"), "{text}");
    }
}
