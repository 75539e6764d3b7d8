//! Turns: their states, where a waiting message goes, and what a continuation tells its agent.

use std::fmt::Write as _;
use std::time::Duration;

use super::settings::{Busy, OnInterrupt};

use super::event::{MarkReason, Outcome, string_enum};

string_enum! {
    /// The states of a turn.
    TurnState {
        /// Accepted, waiting.
        Queued = "queued",
        /// Its prompt is about to be given, or was given, to an agent that is ready.
        Running = "running",
        /// The whole answer was given.
        Completed = "completed",
        /// The agent or a deadline failed it.
        Failed = "failed",
        /// Somebody took it back.
        Cancelled = "cancelled",
        /// A stop or a crash cut it off.
        Interrupted = "interrupted",
    }
}

impl From<Outcome> for TurnState {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Completed => Self::Completed,
            Outcome::Failed => Self::Failed,
            Outcome::Cancelled => Self::Cancelled,
            Outcome::Interrupted => Self::Interrupted,
        }
    }
}

/// Where an accepted message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// It joins the turn that waits already, rather than getting one of its own.
    pub join: bool,
    /// The running turn is cancelled.
    pub interrupt: bool,
}

/// Where a message goes: `waiting` whether a turn is queued that it could join, `running` whether one runs.
#[must_use]
pub const fn place(busy: Busy, waiting: bool, running: bool) -> Placement {
    match busy {
        Busy::Queue => Placement { join: false, interrupt: false },
        Busy::Collect => Placement { join: waiting, interrupt: false },
        Busy::Interrupt => Placement { join: false, interrupt: running },
    }
}

/// What happens to the turn that was cut off, when its session would go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Continuation {
    /// A turn of its own, with a note.
    Note,
    /// A turn of its own that runs the message again.
    Rerun,
    /// The first waiting turn carries the note.
    Carried,
    /// Not now.
    Wait,
}

/// How an interrupted turn goes on. `waiting`: a message waits; `auto_continue`: a boot or an
/// operator wants it to go on by itself.
#[must_use]
pub const fn continuation(on_interrupt: OnInterrupt, waiting: bool, auto_continue: bool) -> Continuation {
    match (on_interrupt, waiting, auto_continue) {
        (OnInterrupt::Rerun, true, _) | (OnInterrupt::Rerun, false, true) => Continuation::Rerun,
        (OnInterrupt::Resume | OnInterrupt::Wait, true, _) => Continuation::Carried,
        (OnInterrupt::Resume, false, true) => Continuation::Note,
        (OnInterrupt::Rerun | OnInterrupt::Resume, false, false) | (OnInterrupt::Wait, false, _) => Continuation::Wait,
    }
}

/// What is known of a turn that was cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutOff<'a> {
    /// What cut it off.
    pub reason: MarkReason,
    /// How long ago.
    pub age: Duration,
    /// The message that it was answering.
    pub message: &'a str,
    /// Titles of tool calls that had started and may or may not have finished.
    pub tools: &'a [String],
    /// Whether anything had come back from the agent.
    pub answered: bool,
}

/// The note that a continuation begins with. It always quotes the message that was cut off, because the agent may never
/// have received it. With `next`, the message that waits, the agent is asked to answer that first.
#[must_use]
pub fn note(cut: &CutOff<'_>, next: Option<&str>) -> String {
    let what = match cut.reason {
        MarkReason::ShutdownTimeout => "the service was stopped",
        MarkReason::RestartTimeout => "the service was restarted",
        MarkReason::Crash => "the service crashed",
    };
    let mut text = account(what, cut);
    match next {
        None => text.push_str("Check what has been done already, then go on and finish the answer.]"),
        Some(next) => {
            text.push_str("A new message has come since; answer it first, then finish what is still open.]\n\n");
            text.push_str(next);
        }
    }
    text
}

/// What goes before a message to an agent whose process ended in the turn before: many agents write a turn down at its
/// end only, and know nothing of one that had none.
#[must_use]
pub fn recall(cut: &CutOff<'_>, next: &str) -> String {
    let mut text = account("your process ended", cut);
    text.push_str("You may remember nothing of it. A new message has come since; answer that, with this in mind.]\n\n");
    text.push_str(next);
    text
}

/// What cut off what, as a note begins.
fn account(what: &str, cut: &CutOff<'_>) -> String {
    let since = ago(cut.age);
    let mut text = if cut.message.is_empty() {
        format!(
            "[Note from the session's host: {what} {since} ago while you were working by yourself, and you were cut off.\n\n"
        )
    } else {
        format!(
            "[Note from the session's host: {what} {since} ago while you were answering, and your answer was cut off. \
             The message was:\n\n{}\n\n",
            quoted(cut.message)
        )
    };
    if cut.tools.is_empty() {
        text.push_str("No tool call was in progress. ");
    } else {
        text.push_str("These tool calls had started and may or may not have finished:\n");
        for tool in cut.tools {
            let _ = writeln!(text, "- {}", tool.replace('\n', " "));
        }
    }
    if !cut.answered {
        text.push_str("Nothing had come back from you yet: you may never have received the message. ");
    }
    text
}

fn quoted(message: &str) -> String {
    message.lines().map(|line| format!("> {line}")).collect::<Vec<_>>().join("\n")
}

/// `12 s`, `3 min`, `2 h`, `4 days`.
fn ago(age: Duration) -> String {
    match age.as_secs() {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7_200 => format!("{} min", s / 60),
        s @ 7_200..172_800 => format!("{} h", s / 3_600),
        s => format!("{} days", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placement() {
        let p = |join, interrupt| Placement { join, interrupt };
        for (busy, waiting, running, want) in [
            (Busy::Queue, true, true, p(false, false)),
            (Busy::Queue, false, false, p(false, false)),
            (Busy::Collect, true, true, p(true, false)),
            (Busy::Collect, true, false, p(true, false)),
            (Busy::Collect, false, true, p(false, false)),
            (Busy::Interrupt, true, true, p(false, true)),
            (Busy::Interrupt, true, false, p(false, false)),
        ] {
            assert_eq!(place(busy, waiting, running), want, "{busy} {waiting} {running}");
        }
    }

    #[test]
    fn continuations() {
        use Continuation::*;
        use OnInterrupt::{Rerun as Again, Resume, Wait as Later};
        for (on, waiting, auto_continue, want) in [
            (Resume, false, false, Wait),
            (Resume, false, true, Note),
            (Resume, true, false, Carried),
            (Resume, true, true, Carried),
            (Again, false, false, Wait),
            (Again, false, true, Rerun),
            (Again, true, false, Rerun),
            (Again, true, true, Rerun),
            (Later, false, true, Wait),
            (Later, true, true, Carried),
        ] {
            assert_eq!(continuation(on, waiting, auto_continue), want, "{on} {waiting} {auto_continue}");
        }
    }

    #[test]
    fn the_note_quotes_and_tells() {
        let tools = ["rm -rf build".to_owned()];
        let cut = CutOff {
            reason: MarkReason::Crash,
            age: Duration::from_secs(90),
            message: "first\nsecond",
            tools: &tools,
            answered: false,
        };
        let alone = note(&cut, None);
        for part in ["crashed", "90 s ago", "> first\n> second", "- rm -rf build", "may never have received"] {
            assert!(alone.contains(part), "{part} in {alone}");
        }
        let with = note(&CutOff { tools: &[], answered: true, ..cut }, Some("what now?"));
        assert!(with.ends_with("\n\nwhat now?") && with.contains("answer it first") && !with.contains("may never"));
        let again = recall(&CutOff { tools: &tools, answered: true, ..cut }, "go on");
        for part in ["your process ended 90 s ago", "> first\n> second", "- rm -rf build", "remember nothing"] {
            assert!(again.contains(part), "{part} in {again}");
        }
        assert!(again.ends_with("\n\ngo on"), "{again}");
        let own = note(&CutOff { message: "", tools: &tools, answered: true, ..cut }, None);
        assert!(own.contains("working by yourself") && !own.contains("> ") && own.contains("- rm -rf build"), "{own}");
        for (reason, word) in [
            (MarkReason::ShutdownTimeout, "stopped"),
            (MarkReason::RestartTimeout, "restarted"),
            (MarkReason::Crash, "crashed"),
        ] {
            assert!(
                note(
                    &CutOff { reason, age: Duration::from_secs(7200), message: "m", tools: &[], answered: true },
                    None
                )
                .contains(word)
            );
        }
    }
}
