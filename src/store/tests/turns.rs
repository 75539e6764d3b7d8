//! Turns: begun, written to, ended, continued.

use super::*;
use crate::model::event::{EndReason, EventKind};
use serde_json::json;

fn text(t: &str) -> Item {
    Item::Text(t.into())
}

fn tool(id: &str, status: &str) -> Item {
    Item::Tool {
        id: id.into(),
        title: format!("tool {id}"),
        kind: "execute".into(),
        status: status.into(),
        detail: json!({}),
    }
}

#[test]
fn turns_begin_one_at_a_time_in_their_order() {
    let rig = Rig::new();
    let (a, b) = (rig.say(KEY, "a"), rig.say(KEY, "b"));
    assert_eq!(rig.store.peek_turn(a.sid).unwrap(), Some((a.turn_id.clone(), "a".into())));
    let epoch = rig.open(a.sid);
    let first = rig.begin(a.sid, epoch);
    assert_eq!((&first.turn_id, first.first, first.turns, first.on_probation), (&a.turn_id, true, 0, false));
    assert_eq!(rig.begin(a.sid, epoch), first, "two cannot run");
    assert!(rig.finish(first.turn, Outcome::Completed).more);
    let second = rig.begin(a.sid, epoch);
    assert_eq!((&second.turn_id, second.first, second.turns), (&b.turn_id, false, 1));
    assert!(!rig.finish(second.turn, Outcome::Completed).more);
    assert_eq!(rig.store.begin_turn(rig.next_turn(a.sid, epoch)).unwrap(), None);
    assert_eq!(
        rig.events(KEY, 0),
        ["session_start:new", "turn_start", "turn_end:completed", "turn_start", "turn_end:completed"]
    );
}

#[test]
fn a_begin_whose_commit_was_in_doubt_gives_the_same_turn_again() {
    for (cut, waits, on) in [
        (false, true, OnInterrupt::Resume),
        (true, false, OnInterrupt::Resume),
        (true, true, OnInterrupt::Resume),
        (true, true, OnInterrupt::Rerun),
    ] {
        let mut rig = Rig::new();
        let a = if cut {
            let (a, _) = rig.running(KEY, "cut off");
            rig.crash();
            a
        } else {
            rig.say(KEY, "first")
        };
        if waits {
            rig.say(KEY, "next");
        }
        let epoch = rig.open(a.sid);
        let begin = || Begin { auto_continue: true, on_interrupt: on, ..rig.next_turn(a.sid, epoch) };
        let first = rig.store.begin_turn(begin()).unwrap().unwrap();
        let seen = rig.newest();
        assert_eq!(rig.store.begin_turn(begin()).unwrap().unwrap(), first);
        assert_eq!(rig.newest(), seen, "and says it once");
        assert_eq!(rig.number("SELECT count(*) FROM turns WHERE state='running'"), 1);
        // Its worker goes without having heard of it: it is no turn without an activation.
        assert!(rig.store.close_activation(a.sid, epoch, EndReason::Parked, Actor::Policy).unwrap());
        assert_eq!((rig.state(&first.turn_id).as_str(), rig.mark(a.sid).as_str()), ("interrupted", "crash"));
    }
}

#[test]
fn no_turn_begins_behind_a_closed_door_or_for_a_stale_worker() {
    let rig = Rig::new();
    let a = rig.say(KEY, "a");
    let epoch = rig.open(a.sid);
    for door in [Admission::Held, Admission::Stopping] {
        rig.store.set_admission(door);
        assert_eq!(refused(rig.store.begin_turn(rig.next_turn(a.sid, epoch))), Refusal::Closed);
    }
    rig.store.set_admission(Admission::Open);
    assert_eq!(refused(rig.store.begin_turn(rig.next_turn(a.sid, epoch + 1))), Refusal::Stale);
    rig.store.close_activation(a.sid, epoch, EndReason::Parked, Actor::Policy).unwrap();
    assert_eq!(refused(rig.store.begin_turn(rig.next_turn(a.sid, epoch))), Refusal::Stale);
    assert_eq!(rig.state(&a.turn_id), "queued");
}

#[test]
fn a_late_writer_changes_nothing() {
    let rig = Rig::new();
    let (a, b) = rig.running(KEY, "a");
    let wrong = [
        TurnRef { epoch: b.turn.epoch + 1, ..b.turn },
        TurnRef { tid: b.turn.tid + 1, ..b.turn },
        TurnRef { sid: b.turn.sid + 1, ..b.turn },
    ];
    let try_all = |turn: TurnRef| {
        assert_eq!(refused(rig.store.append(turn, batch(1, vec![text("late")]))), Refusal::Stale);
        let finish =
            rig.store.finish_turn(turn, batch(9, vec![text("late")]), Outcome::Completed, None, MarkReason::Crash);
        assert_eq!(refused(finish), Refusal::Stale);
    };
    for turn in wrong {
        try_all(turn);
    }
    for (n, gone) in
        [Outcome::Completed, Outcome::Failed, Outcome::Cancelled, Outcome::Interrupted].into_iter().enumerate()
    {
        let turn = if n == 0 { b.turn } else { rig.running(&format!("k:{n}"), "m").1.turn };
        rig.finish(turn, gone);
        let seen = rig.newest();
        try_all(turn);
        assert_eq!(rig.newest(), seen);
    }
    assert_eq!(refused(rig.store.note_agent(a.sid, 9, None)), Refusal::Stale);
    assert_eq!(refused(rig.store.note_process(a.sid, 9, 1, 1)), Refusal::Stale);
    assert_eq!(refused(rig.store.fail_queued(a.sid, 9, "c".into(), "t".into())), Refusal::Stale);
}

#[test]
fn a_piece_sent_twice_is_kept_once() {
    let rig = Rig::new();
    let (a, b) = rig.running(KEY, "m");
    let seen = rig.newest();
    for (number, piece) in [(1, "one "), (2, "two "), (2, "two "), (1, "one "), (3, "three")] {
        rig.store.append(b.turn, batch(number, vec![text(piece)])).unwrap();
    }
    assert_eq!(rig.events(KEY, seen), ["text:one ", "text:two ", "text:three"]);
    // What is in doubt comes with what was said since, and with the end.
    let of = |number, piece| Batch { number, items: vec![text(piece)], keep: None };
    rig.store.append(b.turn, vec![of(3, "three"), of(4, " four")]).unwrap();
    rig.store
        .finish_turn(b.turn, vec![of(4, " four"), of(5, " five")], Outcome::Completed, None, MarkReason::Crash)
        .unwrap();
    assert_eq!(rig.transcript(&a.session_id), ["user: m", "agent: one two three four five"]);
}

#[test]
fn text_is_sealed_before_each_tool_and_at_the_end() {
    let rig = Rig::new();
    let (a, b) = rig.running(KEY, "m");
    rig.store.append(b.turn, batch(1, vec![text("before "), text("the tool"), Item::Thought("hm".into())])).unwrap();
    assert_eq!(rig.transcript(&a.session_id), ["user: m"], "not before something closes it off");
    rig.store.append(b.turn, batch(2, vec![tool("t", "pending"), text("after"), tool("t", "completed")])).unwrap();
    let items = vec![Item::Event(EventKind::Usage, json!({ "tokens": 1 })), text(" all")];
    rig.store.finish_turn(b.turn, batch(3, items), Outcome::Completed, None, MarkReason::Crash).unwrap();
    assert_eq!(
        rig.transcript(&a.session_id),
        ["user: m", "agent: before the tool", "tool: tool t", "agent: after", "agent:  all"]
    );
    let said: String = rig.events(KEY, 0).iter().filter_map(|e| e.strip_prefix("text:")).collect();
    assert_eq!(said, "before the toolafter all", "joined, the pieces are the answer");
    let page = rig.store.transcript(&key(), 0, 100).unwrap();
    let tool = page.items.iter().find(|e| e["role"] == "tool").unwrap();
    assert_eq!((tool["status"].as_str(), tool["tool_call_id"].as_str()), (Some("completed"), Some("t")));
}

#[test]
fn hooks_context_is_kept_beside_the_prompt() {
    let rig = Rig::new();
    let a = rig.say(KEY, "m");
    let epoch = rig.open(a.sid);
    let begin = Begin { context: Some("context".into()), ..rig.next_turn(a.sid, epoch) };
    rig.store.begin_turn(begin).unwrap().unwrap();
    assert_eq!(rig.transcript(&a.session_id), ["system: context", "user: m"]);
}

#[test]
fn a_cancel_that_was_asked_for_is_what_stands_unless_the_answer_was_whole() {
    for (ended, stands) in [
        (Outcome::Completed, Outcome::Completed),
        (Outcome::Failed, Outcome::Cancelled),
        (Outcome::Cancelled, Outcome::Cancelled),
        (Outcome::Interrupted, Outcome::Cancelled),
    ] {
        let rig = Rig::new();
        let (a, b) = rig.running(KEY, "m");
        let acted = rig.store.cancel(key(), false).unwrap();
        assert_eq!(acted.cancel.iter().map(|c| c.0).collect::<Vec<_>>(), [a.sid]);
        let error = Some(("x".to_owned(), "y".to_owned()));
        let e = rig.store.finish_turn(b.turn, vec![], ended, error, MarkReason::Crash).unwrap();
        assert_eq!(e.outcome, stands);
        assert_eq!((rig.state(&b.turn_id), rig.store.turn(&b.turn_id).unwrap().error), (stands.to_string(), None));
        assert_eq!(rig.mark(a.sid), "");
    }
}

#[test]
fn which_end_clears_which_mark() {
    // (mark from before, this stop's mark, the drain ran out) and what each outcome leaves.
    for (before, stop, timeout) in
        [(true, false, false), (false, true, false), (true, true, false), (false, true, true), (true, true, true)]
    {
        for outcome in Outcome::ALL {
            let mut rig = Rig::new();
            let (a, _) = rig.running(KEY, "m");
            if before {
                rig.crash();
            } else {
                rig.store.cancel(key(), false).unwrap();
                rig.crash();
                assert_eq!(rig.mark(a.sid), "");
            }
            let epoch = rig.open(a.sid);
            rig.say(KEY, "n");
            let b = rig.begin(a.sid, epoch);
            if stop {
                rig.store.mark_running(note()).unwrap();
                assert_eq!(rig.mark(a.sid), if before { "crash" } else { "restart_timeout" });
            }
            if timeout {
                rig.pass(30_000);
                assert_eq!(rig.store.refresh_marks(MarkReason::RestartTimeout, false).unwrap(), 1);
                assert_eq!((rig.mark(a.sid), rig.marked_at(a.sid)), ("restart_timeout".into(), T0 + 30_000));
            }
            rig.store.finish_turn(b.turn, vec![], *outcome, None, MarkReason::RestartTimeout).unwrap();
            let stays = match outcome {
                Outcome::Completed => false,
                Outcome::Failed | Outcome::Cancelled => before,
                Outcome::Interrupted => true,
            };
            assert_eq!(!rig.mark(a.sid).is_empty(), stays, "before={before} stop={stop} timeout={timeout} {outcome}");
            assert_eq!(rig.marked_at(a.sid) != 0, stays);
            let unclean = if *outcome == Outcome::Completed { 0 } else { 1 };
            assert_eq!(rig.unclean(a.sid), if before { unclean } else { rig.unclean(a.sid) });
        }
    }
}

#[test]
fn how_a_cut_turn_goes_on() {
    use OnInterrupt::{Rerun, Resume as Again, Wait};
    // (setting, a message waits, asked) -> the prompt of the next turn; "" for none.
    for (on, waits, asked, want) in [
        (Again, false, false, ""),
        (Again, false, true, "note"),
        (Again, true, false, "note+next"),
        (Again, true, true, "note+next"),
        (Rerun, false, false, ""),
        (Rerun, false, true, "cut off"),
        (Rerun, true, false, "cut off"),
        (Wait, false, true, ""),
        (Wait, true, false, "note+next"),
    ] {
        let name = format!("{on} waits={waits} asked={asked}");
        let mut rig = Rig::new();
        let (a, cut) = rig.running(KEY, "cut off");
        rig.store
            .append(cut.turn, batch(1, vec![text("so far"), tool("t", "in_progress"), tool("u", "completed")]))
            .unwrap();
        rig.crash();
        let epoch = rig.open(a.sid);
        let next = waits.then(|| rig.say(KEY, "next"));
        let begin = || Begin { on_interrupt: on, auto_continue: asked, ..rig.next_turn(a.sid, epoch) };
        let begun = rig.store.begin_turn(begin()).unwrap();
        if want.is_empty() {
            assert_eq!(begun, None, "{name}");
            assert_eq!(rig.mark(a.sid), "crash", "{name}: it still waits");
            continue;
        }
        let b = begun.unwrap();
        let cut_id = b.continues.clone().unwrap();
        assert_eq!((cut_id.turn_id.as_str(), cut_id.rerun), (cut.turn_id.as_str(), want == "cut off"), "{name}");
        assert_eq!(rig.store.turn(&cut.turn_id).unwrap().continued_by.as_deref(), Some(b.turn_id.as_str()), "{name}");
        match want {
            "cut off" => assert_eq!(b.prompt, "cut off", "{name}"),
            _ => {
                assert!(b.prompt.contains("> cut off") && b.prompt.contains("- tool t"), "{name}: {}", b.prompt);
                assert!(!b.prompt.contains("- tool u"), "{name}: finished tools are not in doubt");
                assert_eq!(b.prompt.ends_with("\n\nnext"), want == "note+next", "{name}: {}", b.prompt);
            }
        }
        assert_eq!(next.as_ref().is_some_and(|n| n.turn_id == b.turn_id), want == "note+next", "{name}");
        assert_eq!(rig.mark(a.sid), "crash", "{name}: only a completed turn clears it");
        rig.finish(b.turn, Outcome::Failed);
        // It goes on once: whatever came of it, nothing continues that turn again.
        match rig.store.begin_turn(begin()).unwrap() {
            None => assert!(!waits || want == "note+next", "{name}"),
            Some(b) => {
                assert!(waits && want == "cut off", "{name}");
                assert_eq!((b.prompt.as_str(), b.continues), ("next", None), "{name}");
            }
        }
    }
}

#[test]
fn when_a_cut_turn_does_not_go_on() {
    let mut rig = Rig::new();
    let (a, _) = rig.running(KEY, "m");
    rig.crash();
    let epoch = rig.open(a.sid);
    let ask = |rig: &Rig| Begin { auto_continue: true, ..rig.next_turn(a.sid, epoch) };
    assert_eq!(rig.store.begin_turn(Begin { resume: Resume::Never, ..ask(&rig) }).unwrap(), None);
    rig.pass(HOUR);
    assert_eq!(rig.store.begin_turn(ask(&rig)).unwrap(), None, "the mark expired");
    assert!(rig.store.wanted(0, 10, Some(T0 + 1)).unwrap().is_empty());
    let forever = Policy { resume_window: None, ..POLICY };
    let b = rig.store.begin_turn(Begin { policy: forever, ..ask(&rig) }).unwrap().unwrap();
    assert!(b.continues.is_some(), "without a window it never does");
    rig.finish(b.turn, Outcome::Interrupted);
    rig.store.forget_cut_turns().unwrap();
    let none = rig.store.begin_turn(ask(&rig)).unwrap();
    assert_eq!(none, None, "a restored copy answers nothing again");
}

#[test]
fn a_chain_is_quoted_whole_and_completes_once() {
    let mut rig = Rig::new();
    let (a, first) = rig.running(KEY, "first question");
    rig.crash();
    let epoch = rig.open(a.sid);
    rig.say(KEY, "second question");
    let second = rig.begin(a.sid, epoch);
    assert_eq!(second.continues.as_ref().unwrap().turn_id, first.turn_id);
    rig.crash();
    let epoch = rig.open(a.sid);
    let third = rig.store.begin_turn(Begin { auto_continue: true, ..rig.next_turn(a.sid, epoch) }).unwrap().unwrap();
    assert!(
        third.prompt.contains("> first question") && third.prompt.contains("> second question"),
        "{}",
        third.prompt
    );
    assert!(third.prompt.contains("Nothing had come back"), "{}", third.prompt);
    rig.finish(third.turn, Outcome::Completed);
    let states = [&first, &second, &third].map(|b| rig.state(&b.turn_id));
    assert_eq!(states, ["interrupted", "interrupted", "completed"]);
    assert_eq!((rig.mark(a.sid).as_str(), rig.unclean(a.sid)), ("", 0));
    assert_eq!(rig.store.begin_turn(Begin { auto_continue: true, ..rig.next_turn(a.sid, epoch) }).unwrap(), None);
}

#[test]
fn a_message_whose_agent_cannot_start_fails_and_is_told() {
    let rig = Rig::new();
    let (a, b) = (rig.say(KEY, "a"), rig.say(KEY, "b"));
    let epoch = rig.open(a.sid);
    assert!(rig.store.fail_queued(a.sid, epoch, "agent_start".into(), "no such file".into()).unwrap(), "more waits");
    assert!(!rig.store.fail_queued(a.sid, epoch, "agent_start".into(), "no such file".into()).unwrap());
    assert!(
        !rig.store.fail_queued(a.sid, epoch, "agent_start".into(), "no such file".into()).unwrap(),
        "nothing is no error"
    );
    for turn in [&a.turn_id, &b.turn_id] {
        assert_eq!(rig.store.turn(turn).unwrap().error, Some(("agent_start".into(), "no such file".into())));
    }
    let ends = rig.events(KEY, 0).iter().filter(|e| *e == "turn_end:failed").count();
    assert_eq!(ends, 2);
    let (_, begun) = rig.running("local:doubt", "begun in doubt");
    let waits = rig.say("local:doubt", "waits");
    assert!(rig.store.fail_queued(begun.turn.sid, 1, "agent_start".into(), "gone".into()).unwrap());
    assert_eq!([rig.state(&begun.turn_id), rig.state(&waits.turn_id)], ["failed", "queued"]);
    let c = rig.say("local:c", "c");
    rig.say("local:c", "behind it");
    let fail = || rig.store.fail_waiting(c.sid, "overloaded", "no thread".into()).unwrap();
    assert_eq!([fail(), fail(), fail()], [true, false, false], "whether another one waits");
    assert_eq!(rig.events("local:c", 0), ["turn_end:failed", "turn_end:failed"]);
}

/// However often it is cut off, what is run again is the message; nothing is left out but for its size.
#[test]
fn a_message_runs_again_after_any_number_of_interruptions() {
    let mut rig = Rig::new();
    let (a, _) = rig.running(KEY, "the question");
    let again = |rig: &Rig| {
        let epoch = rig.open(a.sid);
        let next_turn = Begin {
            auto_continue: true,
            on_interrupt: OnInterrupt::Rerun,
            probation_at: 0,
            ..rig.next_turn(a.sid, epoch)
        };
        rig.store.begin_turn(next_turn).unwrap().unwrap()
    };
    for n in 0..130 {
        rig.crash_at(0);
        assert_eq!(again(&rig).prompt, "the question", "after {n} interruptions");
    }
    assert!(!rig.events(KEY, 0).contains(&"notice:message_lost".to_owned()));
}

#[test]
fn of_messages_that_are_too_much_the_newest_are_told_again_and_the_rest_is_said_to_be_missing() {
    let mut rig = Rig::new();
    let long = |n: usize| format!("{n}{}", "x".repeat(4_000_000));
    let (a, mut begun) = rig.running(KEY, &long(0));
    for n in 1..6 {
        rig.crash_at(0);
        let epoch = rig.open(a.sid);
        rig.say(KEY, &long(n));
        // Each goes on with the one before it, and has a message of its own.
        let next_turn = Begin { on_interrupt: OnInterrupt::Resume, probation_at: 0, ..rig.next_turn(a.sid, epoch) };
        let next = rig.store.begin_turn(next_turn).unwrap().unwrap();
        assert_eq!(next.continues.as_ref().unwrap().turn_id, begun.turn_id);
        begun = next;
    }
    let told = rig.events(KEY, 0).iter().filter(|e| *e == "notice:message_lost").count();
    assert_eq!(told, 1, "four of four million bytes fit into 16 MiB, five do not");
    let quoted = |n: usize| begun.prompt.contains(&format!("> {n}x"));
    assert_eq!([0, 1, 2, 3, 4].map(quoted), [false, true, true, true, true]);
    assert!(begun.prompt.contains("5x"), "its own message is there in any case");
}
