//! Sizes: an answer in the transcript, pages, and what agents are given of the past.

use super::*;
use crate::model::event::Role;
use crate::store::output::ENTRY;
use crate::store::read::PAGE;

/// Text that tells where it was cut, in characters of two bytes.
fn long(bytes: usize) -> String {
    "é0é1é2é3é4é5é6é7é8é9"
        .chars()
        .cycle()
        .scan(0, |n, c| {
            *n += c.len_utf8();
            (*n <= bytes).then_some(c)
        })
        .collect()
}

fn entries(rig: &Rig, session_id: &str) -> Vec<String> {
    let all = rig.store.entries(session_id, 0, i64::MAX, 1000, usize::MAX).unwrap().unwrap();
    all.into_iter().filter(|e| e.role == Role::Agent).map(|e| e.text).collect()
}

/// Each way in which an answer comes into the transcript: by its last write, by writes before it, by a tool, by a death.
#[test]
fn a_long_answer_is_several_entries_and_one_text() {
    let whole = long(3 * ENTRY + 12_345);
    let tool = || Item::Tool {
        id: "t".into(),
        title: "t".into(),
        kind: "other".into(),
        status: "completed".into(),
        detail: Value::Null,
    };
    for way in ["at once", "in pieces", "a tool", "a death"] {
        let mut rig = Rig::new();
        let (a, b) = rig.running(KEY, "question");
        let said = |n, text: &str| batch(n, vec![Item::Text(text.into())]);
        match way {
            "at once" => {
                rig.store.finish_turn(b.turn, said(1, &whole), Outcome::Completed, None, MarkReason::Crash).unwrap();
            }
            "in pieces" => {
                let middle = whole.char_indices().nth(700_000).unwrap().0;
                rig.store.append(b.turn, said(1, &whole[..middle])).unwrap();
                let last = said(2, &whole[middle..]);
                rig.store.finish_turn(b.turn, last, Outcome::Completed, None, MarkReason::Crash).unwrap();
            }
            "a tool" => {
                rig.store.append(b.turn, said(1, &whole)).unwrap();
                rig.store.append(b.turn, batch(2, vec![tool()])).unwrap();
                rig.finish(b.turn, Outcome::Completed);
            }
            _ => {
                rig.store.append(b.turn, said(1, &whole)).unwrap();
                rig.crash();
            }
        }
        let kept = entries(&rig, &a.session_id);
        assert_eq!(kept.len(), 4, "{way}");
        assert!(kept.iter().all(|e| e.len() <= ENTRY), "{way}");
        assert!(kept.concat() == whole, "{way}");
        let pieces = rig.number("SELECT max(length(CAST(data AS BLOB))) FROM events WHERE kind='text'");
        assert!(pieces <= ENTRY as i64 + 20, "{way}: an event of {pieces} bytes");
        // An agent is given one text: all of it, or nothing where it does not fit.
        let past = |bytes: usize| {
            let past = rig.store.history(a.sid, 0, 0, bytes as u64).unwrap().entries;
            past.into_iter().map(|e| (e.role, e.text)).collect::<Vec<_>>()
        };
        let question = (Role::User, "question".to_owned());
        assert!(past(whole.len() + 8) == [question, (Role::Agent, whole.clone())], "{way}");
        assert!(past(whole.len()) == [(Role::Agent, whole.clone())], "{way}");
        assert!(past(whole.len() - 1).is_empty(), "{way}");
    }
}

#[test]
fn pages_are_bounded_in_bytes_and_hold_one_thing_at_least() {
    let rig = Rig::new();
    let text = |n: usize| format!("{n} {}", "x".repeat(if n == 3 { PAGE + 1000 } else { 900_000 }));
    for n in 0..12 {
        let a = rig.say(KEY, &text(n));
        rig.store.fail_waiting(a.sid, "c", "t".into()).unwrap();
    }
    let (mut seen, mut after, mut pages) = (Vec::new(), 0, 0);
    loop {
        let page = rig.store.transcript(&key(), after, 1000).unwrap();
        let texts: Vec<String> = page.items.iter().map(|e| e["text"].as_str().unwrap().to_owned()).collect();
        let size: usize = texts.iter().map(String::len).sum();
        assert!(size <= PAGE || texts.len() == 1, "{} entries of {size} bytes", texts.len());
        seen.extend(texts);
        pages += 1;
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert!(seen == (0..12).map(text).collect::<Vec<_>>(), "each once, in order");
    assert_eq!(pages, 4, "three, the long one, and eight");
    let few = rig.store.transcript(&key(), 0, 2).unwrap();
    assert_eq!((few.items.len(), few.next.is_some()), (2, true), "a limit in entries holds beside it");
}

#[test]
fn pages_of_events_are_bounded_in_bytes() {
    let rig = Rig::new();
    let (_, b) = rig.running(KEY, "question");
    for n in 1..11 {
        rig.store.append(b.turn, batch(n, vec![Item::Text("x".repeat(ENTRY))])).unwrap();
    }
    for key in [Some(KEY), None] {
        let (mut after, mut seen, mut pages) = (0, 0, 0);
        loop {
            let page = rig.store.events(key, after, 1000).unwrap();
            let size: usize = page.items.iter().map(|e| e.data.len()).sum();
            assert!(size <= PAGE + 4096, "{} events of {size} bytes", page.items.len());
            seen += page.items.len();
            pages += 1;
            match page.next {
                Some(next) => after = next,
                None => break,
            }
        }
        assert_eq!((seen, pages), (12, 4), "session_start, turn_start and ten pieces, three of them a page");
    }
}
