use super::*;
use crate::agent::{PermissionOption, PermissionOutcome};
use crate::store::{Begun, TurnRef};

/// A registry with so many slots; what is under `acp:` has an agent that must be closed.
fn config(max_live: usize) -> Arc<Config> {
    let text = format!(
        "[sessions]\nmax_live = {max_live}\n[agent.many]\nkind = \"echo\"\nmax_processes = 100\n\
         [agent.heavy]\nkind = \"acp\"\ncommand = [\"true\"]\n\
         [[route]]\nmatch = \"acp:*\"\nagent = \"heavy\"\n[[route]]\nmatch = \"*\"\nagent = \"many\"\n"
    );
    Arc::new(crate::config::parse(&text, None).expect("a configuration"))
}

fn request(sid: i64, key: &str) -> WorkRequest {
    WorkRequest { sid, key: key.into(), auto_continue: false }
}

/// Who got a slot, and their mailboxes.
fn admit(registry: &Registry, config: &Arc<Config>) -> Vec<(i64, Arc<Mailbox>)> {
    registry.admit(config).into_iter().map(|a| (a.request().sid, a.mailbox)).collect()
}

fn live(registry: &Registry, ready: Option<i64>) -> Arc<Mailbox> {
    registry.want(request(7, "x:a"));
    let (sid, mailbox) = admit(registry, &config(9)).remove(0);
    assert_eq!((sid, registry.rest(7, ready)), (7, Some(true)));
    mailbox
}

fn begun() -> Box<Begun> {
    let turn = TurnRef { sid: 7, epoch: 3, tid: 5 };
    let (turn_id, prompt) = ("t".into(), "p".into());
    Box::new(Begun { turn, turn_id, prompt, continues: None, first: true, turns: 0, on_probation: false, frame: None })
}

/// What the roster decides reaches the mailboxes and who is nudged.
#[test]
fn what_is_decided_is_done() {
    let registry = Registry::default();
    let (send, nudges) = crossbeam_channel::bounded(1);
    registry.set_nudge(send);
    let nudged = || nudges.try_recv().is_ok();
    registry.want(request(7, "x:a"));
    assert!(nudged(), "somebody waits");
    let mailbox = admit(&registry, &config(9)).remove(0).1;
    registry.want(WorkRequest { auto_continue: true, ..request(7, "x:a") });
    let letters = mailbox.take();
    assert!(letters.work && letters.auto_continue && !nudged(), "its worker is told");
    assert_eq!(registry.rest(7, Some(3)), Some(true));
    registry.want(request(8, "x:b"));
    assert!(admit(&registry, &config(1)).is_empty());
    assert_eq!((mailbox.take().close, registry.begin(7)), (Some(Close::Park), None), "it makes room");
    registry.retire(7, Instant::now());
    let letters = mailbox.take();
    assert_eq!(letters.close, Some(Close::Retire));
    assert!(matches!(letters.interrupt, Some((Interrupt::Cancel(_), Why::Retired))));
    assert!(nudged() && registry.remove(7).is_some_and(|(join, again)| join.is_none() && again.is_none()));
    assert!(nudged() && registry.remove(7).is_none(), "a slot is free");
}

#[test]
fn work_that_lies_unread_keeps_a_worker() {
    let registry = Registry::default();
    let mailbox = live(&registry, Some(3));
    mailbox.post(|l| l.work = true);
    assert!(registry.reserve("x:a").is_none() && !registry.may_park(7));
    registry.want(request(8, "x:b"));
    assert!(admit(&registry, &config(1)).is_empty() && mailbox.take().close.is_none());
    assert!(admit(&registry, &config(1)).is_empty() && mailbox.take().close.is_some(), "once it was read");
}

#[test]
fn a_session_without_a_thread_keeps_what_came_for_it() {
    let registry = Registry::default();
    registry.want(request(7, "x:a"));
    let admitted = registry.admit(&config(9)).remove(0);
    registry.want(WorkRequest { auto_continue: true, ..request(7, "x:a") });
    registry.give_back(admitted);
    assert_eq!((registry.numbers().live, registry.numbers().waiting), (0, 1));
    assert!(registry.admit(&config(9))[0].request().auto_continue);
}

#[test]
fn another_configuration_routes_all_anew() {
    let registry = Registry::default();
    let text = "[agent.full]\nkind = \"echo\"\nmax_processes = 1\n[[route]]\nmatch = \"*\"\nagent = \"full\"\n";
    let full = Arc::new(crate::config::parse(text, None).expect("a configuration"));
    (1..=3).for_each(|sid| registry.want(request(sid, "x:a")));
    assert_eq!(admit(&registry, &full).len(), 1);
    assert_eq!(admit(&registry, &config(9)).len(), 2);
}

#[test]
fn a_turn_that_was_begun_is_handed_to_the_worker() {
    let registry = Registry::default();
    let mailbox = live(&registry, Some(3));
    let reservation = registry.reserve("x:a").expect("a reservation");
    assert_eq!((reservation.sid, reservation.epoch, registry.numbers().running), (7, 3, 1));
    assert_eq!((registry.begin(7), registry.rest(7, Some(3))), (Some(false), Some(false)), "its worker waits");
    reservation.hand_over(begun());
    assert_eq!((registry.begin(7), registry.rest(7, Some(3))), (Some(false), Some(true)), "it has not read of it");
    assert_eq!((mailbox.take().begun, registry.numbers().running), (Some(begun()), 1));
    assert_eq!((registry.begin(7), registry.numbers().running), (Some(true), 1));
}

#[test]
fn a_reservation_that_came_to_nothing_wakes_the_worker() {
    let registry = Registry::default();
    let mailbox = live(&registry, Some(3));
    drop(registry.reserve("x:a").expect("a reservation"));
    assert_eq!((mailbox.take().work, registry.numbers().running), (true, 0));
    assert!(registry.reserve("x:a").is_none(), "until it rests again");
}

#[test]
fn a_turn_for_a_worker_that_went_is_looked_for_by_the_next() {
    let registry = Registry::default();
    let mailbox = live(&registry, Some(3));
    let reservation = registry.reserve("x:a").expect("a reservation");
    assert_eq!(registry.set(7, Doing::Closing), Some(()));
    reservation.hand_over(begun());
    assert_eq!(mailbox.take().begun, None);
    let (_, again) = registry.remove(7).expect("its entry");
    assert_eq!(again.map(|r| r.sid), Some(7));
}

#[test]
fn a_stop_lets_go_who_rests_and_holds_nothing() {
    let registry = Registry::default();
    let mailboxes: Vec<_> = [(1, "x:1", true), (2, "acp:2", true), (3, "x:3", false), (4, "x:4", true)]
        .into_iter()
        .map(|(sid, key, rests)| {
            registry.want(request(sid, key));
            let mailbox = registry.admit(&config(9)).remove(0).mailbox;
            let doing = if rests { Doing::Idle } else { Doing::Starting };
            assert_eq!(registry.set(sid, doing), Some(()));
            mailbox
        })
        .collect();
    mailboxes[3].post(|l| l.work = true);
    registry.close_all(false);
    assert_eq!(registry.live().into_keys().collect::<Vec<_>>(), [2, 3, 4], "with an agent, starting, with a letter");
    let told: Vec<_> = mailboxes.iter().map(|m| m.take().close.is_some()).collect();
    assert_eq!(told, [false, true, true, true]);
    registry.hurry(Instant::now(), true);
    assert!(mailboxes[1].take().interrupt.is_some_and(|(i, _)| i == Interrupt::Kill));
    assert_eq!(registry.abandon().len(), 3);
}

#[test]
fn a_permission_is_answered_once_and_ends_with_its_turn() {
    let registry = Registry::default();
    let mailbox = live(&registry, Some(3));
    let open = |id: &str| {
        let option = PermissionOption { option_id: "yes".into(), name: "Yes".into(), kind: "allow_once".into() };
        let shown = Arc::new(serde_json::json!({ "id": id }));
        let permission = OpenPermission { request_id: id.into(), options: vec![option], session_id: "s".into(), shown };
        registry.open_permission(7, permission);
    };
    assert_eq!(registry.begin(7), Some(true));
    open("p1");
    open("p2");
    assert_eq!((registry.asking(), registry.permissions(7).len(), registry.all_permissions().len()), (1, 2, 2));
    let answer = |id: &str, option| registry.answer_permission(7, id, option, "api");
    assert_eq!(answer("p1", Some("no")), Answered::NotOffered);
    assert_eq!((answer("p1", Some("yes")), answer("p1", None)), (Answered::Settled, Answered::Resolved));
    let told = mailbox.take().permissions;
    assert_eq!(told, [("p1".into(), PermissionOutcome::Selected("yes".into()), "api")]);
    assert_eq!((registry.rest(7, Some(3)), registry.asking()), (Some(true), 0));
    assert_eq!(answer("p2", Some("yes")), Answered::Resolved);
}
