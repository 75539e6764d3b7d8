use super::*;
use crate::store::{Begun, TurnRef};

fn live(registry: &Registry, ready: Option<i64>) -> Arc<Mailbox> {
    let mailbox = Arc::new(Mailbox::default());
    let wish = Wish { sid: 7, key: "x:a".into(), asked: false };
    assert_eq!(registry.room(&wish, ("agent", false), 9, 9, &mailbox), Room::Granted);
    assert_eq!(registry.rest(7, ready), Some(true));
    mailbox
}

fn begun() -> Box<Begun> {
    let turn = TurnRef { sid: 7, epoch: 3, tid: 5 };
    let (turn_id, prompt) = ("t".into(), "p".into());
    Box::new(Begun { turn, turn_id, prompt, continues: None, first: true, turns: 0, alone: false })
}

/// Two messages to a parked session may each leave a wish, the second while the first is being granted.
#[test]
fn a_wish_of_a_session_that_is_live_by_now_does_not_wait() {
    let registry = Registry::default();
    let wish = Wish { sid: 7, key: "x:a".into(), asked: false };
    registry.want(wish.clone());
    let taken = registry.take_wishes();
    registry.want(wish);
    let mailbox = Arc::new(Mailbox::default());
    assert_eq!(registry.room(&taken[0], ("agent", false), 9, 9, &mailbox), Room::Granted);
    let again = registry.take_wishes();
    assert_eq!(registry.room(&again[0], ("agent", false), 9, 9, &Arc::default()), Room::Live);
    assert!(mailbox.has_work(), "its worker is told");
    assert_eq!(registry.numbers().waiting, 0);
}

#[test]
fn only_a_worker_that_rests_and_is_ready_is_set_aside_and_once() {
    let registry = Registry::default();
    let mailbox = live(&registry, None);
    assert!(registry.reserve("x:a").is_none(), "its agent is not ready");
    assert_eq!(registry.rest(7, Some(3)), Some(true));
    assert!(registry.reserve("x:b").is_none(), "another key");
    mailbox.post(|l| l.work = true);
    assert!(registry.reserve("x:a").is_none(), "it has a letter to read");
    let _ = mailbox.take();
    let reserved = registry.reserve("x:a").expect("set aside");
    assert_eq!((reserved.sid, reserved.epoch, registry.numbers().running), (7, 3, 1));
    assert!(registry.reserve("x:a").is_none() && !registry.may_park(7));
    assert_eq!((registry.begin(7), registry.rest(7, Some(3))), (Some(false), Some(false)), "its worker waits");
    reserved.hand_over(begun());
    assert_eq!(mailbox.take().begun, Some(begun()));
    assert_eq!((registry.begin(7), registry.numbers().running), (Some(true), 1));
    assert_eq!((registry.rest(7, Some(3)), registry.numbers().running), (Some(true), 0));
    registry.close_all();
    assert!(registry.reserve("x:a").is_none(), "a stop");
}

#[test]
fn a_stop_lets_go_who_rests_and_holds_nothing() {
    let registry = Registry::default();
    let mailboxes: Vec<_> = [(1, true, true), (2, false, true), (3, true, false), (4, true, true)]
        .into_iter()
        .map(|(sid, light, rests)| {
            let (wish, mailbox) = (Wish { sid, key: format!("x:{sid}"), asked: false }, Arc::new(Mailbox::default()));
            assert_eq!(registry.room(&wish, ("agent", light), 9, 9, &mailbox), Room::Granted);
            let doing = if rests { Doing::Idle } else { Doing::Starting };
            assert_eq!(registry.set(sid, doing), Some(()));
            mailbox
        })
        .collect();
    mailboxes[3].post(|l| l.work = true);
    registry.close_all();
    assert_eq!(registry.live().into_keys().collect::<Vec<_>>(), [2, 3, 4], "with an agent, starting, with a letter");
    let told: Vec<_> = mailboxes.iter().map(|m| m.take().close.is_some()).collect();
    assert_eq!(told, [false, true, true, true]);
}

#[test]
fn a_worker_that_writes_the_end_of_its_turn_is_set_aside_too() {
    let registry = Registry::default();
    let mailbox = live(&registry, Some(3));
    assert_eq!(registry.begin(7), Some(true));
    assert!(registry.reserve("x:a").is_none(), "it runs");
    registry.finishing(7, 3);
    let reserved = registry.reserve("x:a").expect("set aside");
    drop(reserved);
    assert_eq!((mailbox.take().work, registry.numbers().running), (true, 1), "it is not done yet");
    registry.finishing(7, 3);
    let reserved = registry.reserve("x:a").expect("set aside");
    assert_eq!((registry.set(7, Doing::Idle), registry.numbers().running), (Some(()), 1));
    drop(reserved);
    assert_eq!((mailbox.take().work, registry.numbers().running), (true, 0), "it is done");
    assert_eq!(registry.begin(7), Some(true));
    registry.finishing(7, 3);
    let reserved = registry.reserve("x:a").expect("set aside");
    assert_eq!(registry.rest(7, Some(3)), Some(false));
    reserved.hand_over(begun());
    assert_eq!((mailbox.take().begun, registry.numbers().running), (Some(begun()), 1));
}

#[test]
fn a_reservation_that_came_to_nothing_wakes_the_worker() {
    let registry = Registry::default();
    let mailbox = live(&registry, Some(3));
    drop(registry.reserve("x:a").expect("set aside"));
    assert_eq!((mailbox.take().work, registry.numbers().running), (true, 0));
    assert!(registry.reserve("x:a").is_none(), "until it rests again");
}

#[test]
fn a_turn_for_a_worker_that_went_is_looked_for_by_the_next() {
    let registry = Registry::default();
    let mailbox = live(&registry, Some(3));
    let reserved = registry.reserve("x:a").expect("set aside");
    assert_eq!(registry.set(7, Doing::Closing), Some(()));
    assert_eq!(registry.numbers().running, 0);
    reserved.hand_over(begun());
    assert_eq!(mailbox.take().begun, None);
    let (_, again) = registry.remove(7).expect("its entry");
    assert_eq!(again.map(|w| w.sid), Some(7));
}
